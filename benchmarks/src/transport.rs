//! The ping-pong below the function service: the writes of an invocation without what calls the function.
//!
//! ```text
//!   own   payload ──write with immediate──▶ slot   peer: another process of this program
//!         output  ◀──write with immediate── slot
//! ```
//! The payload, its alignment, the flags and both ways of waiting are those of an invocation, so the difference between
//! the two is the cost of the service, which includes its header. The peer sends the slot back without copying it,
//! because the work of a function is not the transport's.
//!
//! The peer ends when the connection does, and is killed when its starter dies.

use std::hint::spin_loop;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, Source, Status, WorkCompletion, WorkRequest,
};
use rfaas_call::{Awaited, Backoff, Pause, Sharing, Spin};
use rfaas_program::Failure;
use rfaas_protocol::invocation::HEADER_SPACE;

use crate::echo::Echo;
use crate::machine::{End, settle_down};
use crate::peer::{PeerProcess, die_with_the_starter};
use crate::plan::{RunPlan, input, later};

/// Longest wait for a peer that answers at all.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the peer process to connect.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two checks whether the peer process still runs, while it starts.
const CHECK_AGAIN: Duration = Duration::from_millis(50);
/// Posted receives: one message is under way at a time, the others are as many as a worker has to spare.
const RECEIVES: u32 = 32;
/// Completions taken from the queue at a time, as client and worker do it.
const BATCH: usize = 16;
/// Requests that may be under way before one completes with an entry.
const SEND_DEPTH: u32 = 32;
/// Every so many requests one is signaled, as the service does it to free its queue.
const SIGNAL_EVERY: u32 = SEND_DEPTH / 2;

/// Why the ping-pong ended.
#[derive(Debug, thiserror::Error)]
enum PingPongFailure {
    #[error("the connection to the peer has ended ({0:?})")]
    Ended(Status),
    #[error("the peer did not answer within {TIMEOUT:?}")]
    Silent,
    #[error(transparent)]
    Rdma(#[from] rdmalib::Error),
}

/// The side that measures.
#[derive(Debug)]
pub struct Transport {
    end: PingPongEnd, // first: its requests name the regions below
    source: Region,
    output: Region,
    payload_bytes: usize,
    _peer: PeerProcess,
}

impl Transport {
    /// Starts the peer with `command`, this program with the flags of a peer except its address.
    pub fn start(plan: &RunPlan, mut command: Command) -> Result<Self, Failure> {
        let device = &plan.device.device;
        let mut listener = device.listen(plan.device.entry.port).map_err(input)?;
        command.arg("--peer").arg(listener.local_addr().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut peer = PeerProcess::start(command)?;

        let parts = || -> rdmalib::Result<_> {
            let domain = device.domain()?;
            let source = domain.allocate(HEADER_SPACE + plan.payload_len(), Access::empty())?;
            let landing = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
            let output = domain.allocate(HEADER_SPACE + plan.payload_len(), landing)?;
            let end = PingPongEnd::new(device, &domain, plan)?;
            Ok((end, source, output))
        };
        let (mut end, source, output) = parts().map_err(later)?;

        let start = Instant::now();
        let request = loop {
            match listener.next(CHECK_AGAIN).map_err(later)? {
                Some(request) => break request,
                None if peer.has_ended() => return Err(Failure::later("the peer process ended")),
                None if start.elapsed() > START_TIMEOUT => {
                    return Err(Failure::later("the peer process did not connect"));
                }
                None => {}
            }
        };
        end.peer = read_address(request.private_data())
            .ok_or_else(|| Failure::later("the peer process sent no address"))?;
        request.accept(&mut end.queue_pair, &wire_address(output.remote())).map_err(later)?;
        if plan.spin() != Spin::Never {
            settle_down(End::First); // after the peer was started, which would inherit it
        }
        Ok(Transport { end, source, output, payload_bytes: plan.payload_len(), _peer: peer })
    }
}

impl Echo for Transport {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.source.write(HEADER_SPACE + offset, bytes).map_err(later)
    }

    #[inline]
    fn round_trip(&mut self) -> Result<usize, Failure> {
        let payload = HEADER_SPACE..HEADER_SPACE + self.payload_bytes;
        let to = self.end.peer.offset(HEADER_SPACE as u64);
        self.end.write(&self.source, payload, to).map_err(later)?;
        self.end.next().map_err(later)?;
        Ok(self.payload_bytes)
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        self.output.read(HEADER_SPACE + offset, out).map_err(later)
    }
}

/// The other side, in its own process: answers until the connection ends.
pub fn be_the_peer(plan: &RunPlan, starter: SocketAddr) -> Result<(), Failure> {
    die_with_the_starter()?; // had it died before, connecting would fail
    let device = &plan.device.device;
    let parts = || -> rdmalib::Result<_> {
        let domain = device.domain()?;
        let landing = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let slot = domain.allocate(HEADER_SPACE + plan.payload_len(), landing)?;
        let mut end = PingPongEnd::new(device, &domain, plan)?;
        let answer =
            end.queue_pair.connect(starter, &wire_address(slot.remote()), START_TIMEOUT)?;
        Ok((end, slot, answer))
    };
    let (mut end, slot, answer) = parts().map_err(later)?;
    end.peer = read_address(answer.as_slice())
        .ok_or_else(|| Failure::later("the starter sent no address"))?;
    if plan.spin() != Spin::Never {
        settle_down(End::Last);
    }

    let payload = HEADER_SPACE..HEADER_SPACE + plan.payload_len();
    let to = end.peer.offset(HEADER_SPACE as u64);
    loop {
        match end.next() {
            Ok(_) => {}
            Err(PingPongFailure::Ended(_)) => return Ok(()),
            // The starter may take its time between two repetitions.
            Err(PingPongFailure::Silent) => continue,
            Err(error) => return Err(later(error)),
        }
        end.write(&slot, payload.clone(), to).map_err(later)?;
    }
}

/// A queue pair and how its completions are waited for.
#[derive(Debug)]
struct PingPongEnd {
    queue_pair: QueuePair,
    completions: CompletionQueue,
    batch: [WorkCompletion; BATCH],
    peer: RemoteAddress,
    spin: Spin,
    /// Whether the other end needs the CPU that this one spins on.
    sharing: Sharing,
    sent: u32,
    /// A message has used up a receive, which is posted again after the next message is sent.
    receive_to_repost: bool,
    /// Room for the largest message that goes inline.
    inline: Vec<u8>,
}

impl PingPongEnd {
    fn new(device: &Device, domain: &Domain, plan: &RunPlan) -> rdmalib::Result<Self> {
        let max_inline_data =
            plan.device.entry.max_inline_data.min(device.limits().max_inline_data);
        let completions = device.completion_queue(SEND_DEPTH + RECEIVES)?;
        let config = QueuePairConfig {
            send_depth: SEND_DEPTH,
            receive_depth: RECEIVES,
            max_inline_data,
            ..QueuePairConfig::default()
        };
        let mut queue_pair = QueuePair::new(domain, &completions, &completions, &config)?;
        for _ in 0..RECEIVES {
            queue_pair.post_receive(0, None)?;
        }
        Ok(PingPongEnd {
            queue_pair,
            completions,
            batch: [WorkCompletion::default(); BATCH],
            peer: RemoteAddress::default(),
            spin: plan.spin(),
            sharing: Sharing::default(),
            sent: 0,
            receive_to_repost: false,
            inline: vec![0; max_inline_data as usize],
        })
    }

    /// Writes the bytes `message` of `region` with immediate data. Small ones go inline, as those of an invocation do.
    #[inline]
    fn write(
        &mut self,
        region: &Region,
        message: Range<usize>,
        to: RemoteAddress,
    ) -> rdmalib::Result<()> {
        let source = match self.inline.get_mut(..message.len()) {
            Some(inline) => {
                region.read(message.start, inline)?;
                Source::Inline(inline)
            }
            None => Source::Region(region.slice(message)?),
        };
        self.sent = self.sent.wrapping_add(1);
        let mut flags = Flags::SOLICITED | Flags::WITH_COMPLETION;
        flags.set(Flags::SIGNALED, self.sent.is_multiple_of(SIGNAL_EVERY));
        self.queue_pair.post(&WorkRequest {
            id: 0,
            operation: Operation::Write { source, to, immediate: Some(0) },
            flags,
        })?;
        if std::mem::take(&mut self.receive_to_repost) {
            self.queue_pair.post_receive(0, None)?;
        }
        Ok(())
    }

    /// Waits for the peer's next message.
    #[inline]
    fn next(&mut self) -> Result<u32, PingPongFailure> {
        let mut backoff = Backoff::new(self.spin, Awaited::Result);
        let mut begun = None;
        loop {
            let taken = self.completions.poll(&mut self.batch);
            if taken == 0 {
                match backoff.fruitless(self.sharing.is_likely()) {
                    Pause::Spin => {
                        self.completions.stay_awake();
                        spin_loop();
                    }
                    Pause::Yield => std::thread::yield_now(),
                    Pause::Look => self.look(&mut backoff, &mut begun)?,
                }
                continue;
            }
            let mut message = None;
            for done in &self.batch[..taken] {
                match (done.status, done.immediate) {
                    (Status::Success, Some(_)) => message = Some(done.bytes),
                    (Status::Success, None) => {} // a signaled write of ours
                    (status, _) => return Err(PingPongFailure::Ended(status)),
                }
            }
            if let Some(bytes) = message {
                backoff.fruitful(self.sharing.is_likely(), &mut self.sharing);
                self.receive_to_repost = true;
                return Ok(bytes);
            }
        }
    }

    /// Reads the clock, and sleeps if the time to spin is over. `begun` is when it was read first in this wait.
    fn look(
        &mut self,
        backoff: &mut Backoff,
        begun: &mut Option<Instant>,
    ) -> Result<(), PingPongFailure> {
        let now = Instant::now();
        if now.duration_since(*begun.get_or_insert(now)) > TIMEOUT {
            return Err(PingPongFailure::Silent);
        }
        if backoff.looked(now) {
            backoff.about_to_sleep();
            self.completions.wait(Some(TIMEOUT))?;
        }
        Ok(())
    }
}

/// Sixteen bytes: address, key; little-endian.
fn wire_address(address: RemoteAddress) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.addr.to_le_bytes());
    bytes[8..].copy_from_slice(&address.key.to_le_bytes());
    bytes
}

fn read_address(bytes: &[u8]) -> Option<RemoteAddress> {
    let (addr, rest) = bytes.split_first_chunk()?;
    let (key, _) = rest.split_first_chunk()?;
    Some(RemoteAddress { addr: u64::from_le_bytes(*addr), key: u64::from_le_bytes(*key) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_wire_and_its_padding() {
        let address = RemoteAddress { addr: u64::MAX - 7, key: 0x1234_5678 };
        let mut padded = wire_address(address).to_vec();
        padded.resize(196, 0);
        assert_eq!(read_address(&padded), Some(address));
        assert_eq!(read_address(&padded[..11]), None);
    }
}
