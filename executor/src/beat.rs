//! Signs of life: the executor's to its manager, and the manager's to the executor. A thread with a
//! connection of its own adds to one counter in the manager's memory and reads others, once a
//! period: the manager's beats, and when the node leaves.
//!
//! ```text
//!   beat ──add 1──▶ executor's beats │ manager's memory
//!        ──add 0──▶ manager's beats  │  ──old value──▶ unchanged for too long: silent
//!        ──add 0──▶ when it leaves   │  ──old value──▶ what functions are told that ask
//! ```
//! It begins before there is a client to dial, so that an executor that is stopped there is missed too. No worker
//! waits for it, and it goes on until the process ends, whatever functions do.
//!
//! Elsewhere: the end of the connection (`watch`, as for those of the workers).

use std::io;
use std::sync::Arc;
use std::thread;

use rdmalib::{
    Access, CompletionQueue, Device, Flags, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, Status, WorkCompletion, WorkRequest,
};
use rfaas_protocol::accounting::{EXECUTOR_BEATS, LEAVES_AT_NS, MANAGER_BEATS};
use rfaas_protocol::heartbeat::Beats;

use crate::dial::{DialError, dial_manager};
use crate::library::set_leaving;
use crate::plan::StandbyPlan;

/// Additions under way at a time: to our counter, and of nothing to the others, which reads them.
const ADDITIONS: u32 = 3;
/// Where old values go: first that of our own counter, which nobody needs, then those of the others.
const OLD_VALUES_BYTES: usize = 24;
const MANAGER_AT: usize = 8;
const LEAVES_AT: usize = 16;

/// Why there are no signs of life any more.
#[derive(Debug, thiserror::Error)]
pub enum BeatError {
    /// The manager did not take the connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The device cannot provide what is needed.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
    /// There is no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// The manager gave no sign of life.
    #[error("the executor manager gives no sign of life")]
    Silent,
}

/// Starts the thread, which dials the manager, calls `connected`, and `ended` when it is silent. The end
/// of its connection completes into `ends`.
pub fn start(
    plan: &Arc<StandbyPlan>,
    device: &Device,
    ends: &CompletionQueue,
    connected: impl FnOnce() + Send + 'static,
    ended: impl FnOnce(BeatError) + Send + 'static,
) -> Result<(), BeatError> {
    let mut connection = BeatConnection::new(device, ends)?;
    let plan = plan.clone();
    thread::Builder::new().name("beat".into()).spawn(move || {
        if let Err(error) = beat(&mut connection, &plan, connected) {
            ended(error);
        }
    })?;
    Ok(())
}

/// Gives signs of life until the connection ends, which the main thread learns by itself, or the manager is silent.
fn beat(
    connection: &mut BeatConnection,
    plan: &StandbyPlan,
    connected: impl FnOnce(),
) -> Result<(), BeatError> {
    let counters = dial_manager(&mut connection.queue_pair, plan, plan.first_dial_timeout)?;
    connected();
    let mut beats = Beats::new(plan.heartbeat);
    while connection.send(counters) {
        thread::sleep(plan.heartbeat.period);
        let managers = connection.managers_beats()?;
        set_leaving(connection.leaves_at()?);
        if beats.silent(managers) {
            return Err(BeatError::Silent);
        }
    }
    Ok(())
}

/// The connection to the counters.
struct BeatConnection {
    queue_pair: QueuePair, // first: fields drop in order, and its requests name the region below
    sent: CompletionQueue,
    old_values: Region,
    outstanding: bool,
    ended: bool,
}

impl BeatConnection {
    fn new(device: &Device, ends: &CompletionQueue) -> rdmalib::Result<BeatConnection> {
        let config = QueuePairConfig {
            send_depth: ADDITIONS,
            receive_depth: 1,
            ..QueuePairConfig::default()
        };
        let domain = device.domain()?;
        let sent = device.completion_queue(ADDITIONS)?;
        let mut queue_pair = QueuePair::new(&domain, &sent, ends, &config)?;
        queue_pair.post_receive(0, None)?; // never used: it is flushed when the connection ends
        let old_values = domain.allocate(OLD_VALUES_BYTES, Access::LOCAL_WRITE)?;
        Ok(BeatConnection { queue_pair, sent, old_values, outstanding: false, ended: false })
    }

    /// Gives a sign of life and reads the manager's, unless the last one is still on its way. Returns false if the
    /// connection has ended.
    fn send(&mut self, counters: RemoteAddress) -> bool {
        if !self.outstanding && !self.ended {
            self.outstanding = true;
            for (at, into, add, flags) in [
                (EXECUTOR_BEATS, 0, 1, Flags::default()),
                (LEAVES_AT_NS, LEAVES_AT, 0, Flags::default()),
                (MANAGER_BEATS, MANAGER_AT, 0, Flags::SIGNALED),
            ] {
                let posted = self.old_values.slice(into..into + 8).and_then(|into| {
                    let at = counters.offset(at);
                    let operation = Operation::FetchAdd { into, at, add };
                    self.queue_pair.post(&WorkRequest { id: 0, operation, flags })
                });
                self.ended |= posted.is_err();
            }
        }
        !self.ended
    }

    /// Returns the manager's beats, as they were last read.
    fn managers_beats(&mut self) -> rdmalib::Result<u64> {
        let mut done = [WorkCompletion::default(); ADDITIONS as usize];
        let taken = self.sent.poll(&mut done);
        for completion in &done[..taken] {
            self.outstanding = false;
            self.ended |= completion.status != Status::Success;
        }
        self.old_values.load_u64(MANAGER_AT)
    }

    /// Returns when the node leaves, as it was last read: 0 if it stays.
    fn leaves_at(&self) -> rdmalib::Result<u64> {
        self.old_values.load_u64(LEAVES_AT)
    }
}
