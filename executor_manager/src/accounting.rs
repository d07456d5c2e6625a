//! Counters that the workers of one executor process add to remotely, and the signs of life that the process
//! and this manager give each other.
//!
//! Each process has a protection domain of its own with nothing in it but its counters, so the worst
//! that it can write is its own bill, which is [clamped](crate::allocations::Usage::bill). A peer that
//! shows the secret of the assignment is let in, as often as the process has workers.
//!
//! * FIXED - the process shares the domain's memory, so that is as large as it has to be from the start; nothing
//!   that the process does takes more of it. A place that a connector did not wait for is the next one's.
//!
//! Nothing arrives on these connections and nothing is polled: additions land without this process,
//! and that an executor is gone is known from its process.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, QueuePair, QueuePairConfig, Region,
    State,
};
use rfaas_protocol::Secret;
use rfaas_protocol::accounting::{
    COUNTERS_BYTES, Counters, EXECUTION_NS, EXECUTOR_BEATS, HOT_POLLING_NS, INVOCATIONS,
    LEAVES_AT_NS, MANAGER_BEATS,
};
use zerocopy::IntoBytes;

use crate::allocations::Usage;

/// Connections of a process besides those of its workers: one for its signs of life.
const OTHERS: u32 = 1;
/// Memory of the counters, and of each connection: a page, in which one receive and what tells of it fit.
const PAGE: usize = 4096;

/// The counters of one executor process.
#[derive(Debug)]
pub struct ExecutorAccount {
    secret: Secret,
    connections: Vec<QueuePair>, // first: fields drop in order, and these reach the rest
    /// Was made for a connector that did not wait for it.
    spare: Option<QueuePair>,
    /// Queue pairs so far, with those that came to nothing.
    made: u32,
    most_connections: u32,
    /// Connections that there is memory for.
    room: u32,
    counters: Region,
    /// Signs of life that we gave.
    beats: u64,
    /// What was said last of when the node leaves.
    leaves_at_ns: u64,
    completions: CompletionQueue,
    domain: Domain,
}

impl ExecutorAccount {
    /// Counters at zero, for a process of at most `workers` workers.
    pub fn new(device: &Device, workers: u16) -> rdmalib::Result<Self> {
        let most_connections = u32::from(workers) + OTHERS;
        let domain = device.fixed_domain(PAGE * (1 + most_connections as usize))?; // FIXED
        let counters =
            domain.allocate(COUNTERS_BYTES, Access::LOCAL_WRITE | Access::REMOTE_ATOMIC)?;
        let depths = 2 * most_connections; // one send and one receive each, see `accept`
        let completions = device.completion_queue(depths)?;
        Ok(ExecutorAccount {
            secret: Secret::generate(),
            connections: Vec::new(),
            spare: None,
            made: 0,
            most_connections,
            room: most_connections,
            counters,
            beats: 0,
            leaves_at_ns: 0,
            completions,
            domain,
        })
    }

    /// Has the process have `workers` workers from now on, of those that it may have.
    pub fn limit(&mut self, workers: u16) {
        self.most_connections = (u32::from(workers) + OTHERS).min(self.room);
    }

    /// What the process must show.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    /// Connects a thread of the process, which has shown the secret, and tells it where to count.
    /// Gives the request back if the process has as many connections as it may.
    pub fn accept(&mut self, request: ConnectRequest) -> Result<(), AcceptError> {
        let mut queue_pair = match self.spare.take() {
            Some(queue_pair) => queue_pair,
            None if self.made < self.most_connections => self.make_queue_pair()?,
            None => return Err(AcceptError::TooMany(request.into())),
        };
        let place = self.counters.remote();
        let counters = Counters { addr: place.addr.into(), key: place.key.into() };
        let accepted = request.accept(&mut queue_pair, counters.as_bytes());
        if accepted.is_ok() {
            self.connections.push(queue_pair);
        } else if queue_pair.state() == State::Init {
            self.spare = Some(queue_pair);
        }
        Ok(accepted?)
    }

    fn make_queue_pair(&mut self) -> rdmalib::Result<QueuePair> {
        let config =
            QueuePairConfig { send_depth: 1, receive_depth: 1, ..QueuePairConfig::default() };
        let made = QueuePair::new(&self.domain, &self.completions, &self.completions, &config)?;
        self.made += 1;
        Ok(made)
    }

    /// What was counted so far; all of it once the process is gone.
    pub fn read(&self) -> Usage {
        Usage {
            hot_polling_ns: self.counter(HOT_POLLING_NS),
            execution_ns: self.counter(EXECUTION_NS),
            invocations: self.counter(INVOCATIONS),
        }
    }

    /// Gives the process a sign of life; returns how many it gave. Stored and not added, so that the
    /// next one makes up for one that the process undid, or an adapter, whose additions need not be
    /// atomic with what a processor stores.
    pub fn beat(&mut self) -> u64 {
        self.beats += 1;
        self.store(MANAGER_BEATS, self.beats);
        self.store(LEAVES_AT_NS, self.leaves_at_ns);
        self.counter(EXECUTOR_BEATS)
    }

    /// Says when the node leaves. The process looks once a period.
    pub fn set_leaving(&mut self, at: Option<Instant>) {
        self.leaves_at_ns = at.map_or(0, |at| {
            let now =
                clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
            let at = now + at.saturating_duration_since(Instant::now());
            u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(1)
        });
        self.store(LEAVES_AT_NS, self.leaves_at_ns);
    }

    fn store(&self, offset: u64, value: u64) {
        let stored = self.counters.store_u64(offset as usize, value);
        stored.expect("the offsets lie in COUNTERS_BYTES");
    }

    fn counter(&self, offset: u64) -> u64 {
        self.counters.load_u64(offset as usize).expect("the offsets lie in COUNTERS_BYTES")
    }
}

/// Why a thread of an executor was not connected.
#[derive(Debug)]
pub enum AcceptError {
    /// All connections that its process may have are there; the request is to be refused.
    TooMany(Box<ConnectRequest>),
    /// The device refused.
    Rdma(rdmalib::Error),
}

impl From<rdmalib::Error> for AcceptError {
    fn from(error: rdmalib::Error) -> Self {
        AcceptError::Rdma(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use rdmalib::Listener;
    use rdmalib_testing::device;

    use super::*;

    /// More than there would be room for.
    const HASTY: usize = 300;
    const WORKERS: u16 = 2;

    /// The request of a connector that did not wait.
    fn hasty(device: &Device, domain: &Domain, listener: &mut Listener) -> ConnectRequest {
        let completions = device.completion_queue(128).unwrap();
        let config = QueuePairConfig::default();
        let mut connector = QueuePair::new(domain, &completions, &completions, &config).unwrap();
        let to = listener.local_addr();
        connector.connect(to, b"hasty", Duration::from_micros(1)).unwrap_err();
        listener.next(Duration::from_secs(30)).unwrap().expect("it has asked")
    }

    #[test]
    fn who_does_not_wait_to_be_connected_takes_no_place() {
        let device = device();
        let mut listener = device.listen(0).unwrap();
        let mut account = ExecutorAccount::new(&device, WORKERS).unwrap();
        let domain = device.domain().unwrap();
        for _ in 0..HASTY {
            let request = hasty(&device, &domain, &mut listener);
            let refused = account.accept(request).unwrap_err();
            assert!(matches!(refused, AcceptError::Rdma(rdmalib::Error::Disconnected)));
        }
        assert_eq!((account.made, account.connections.len()), (1, 0));
    }

    #[test]
    fn a_process_cannot_make_the_memory_of_its_counters_larger() {
        let _account = ExecutorAccount::new(&device(), WORKERS).unwrap();
        let fixed = std::fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
            let path = entry.unwrap().path();
            let is_domain = std::fs::read_link(&path)
                .is_ok_and(|file| file.to_string_lossy().contains("memfd:rdmalib-shm"));
            let seals = || fcntl(std::fs::File::open(&path).ok()?, FcntlArg::F_GET_SEALS).ok();
            is_domain && seals().is_some_and(|seals| seals & SealFlag::F_SEAL_GROW.bits() != 0)
        });
        assert!(fixed, "no domain's file is sealed");
    }
}
