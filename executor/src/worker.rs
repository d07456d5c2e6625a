//! A worker: polls for invocations, calls the function, writes the output back. The hot path.
//!
//! ```text
//!   client ──write with immediate──▶ completion ──▶ header, checked ──▶ function ──▶ reply ──▶ client
//!                                      │ none                                          │
//!                                      └▶ spin, yield or sleep                         └▶ receive again
//! ```
//! One thread, one connection, one invocation after the other, in the order of arrival.
//! * ALL READY - slots, areas, receives and the library exist before the first invocation. Per
//!   invocation there is no allocation, lock, log line or system call, and one clock reading, after the
//!   reply.
//! * ROOM - at most one invocation a slot is under way, and a reply's receive is posted again before the
//!   next invocation is looked at: [`SPARE_RECEIVES`] more than slots are never used up by a client
//!   that keeps to its slots. One that does not, waits.
//! * ONE ANSWER - each completion is looked at once and answered once. An output area is written again
//!   when its slot is used again, which is after the client has seen the reply, and read the output if
//!   that stays in place: so its write is done, and no send completion has to be waited for.
//! * ONE PROCESS - a function may fork, and both processes return from it. The child has this worker's connection
//!   too, and ends here.
//! * HOSTILE - what a client sends is checked; it can only break its own connection, which ends the worker and
//!   leaves the others alone.
//!
//! Elsewhere: reading requests (`requests`), replies without the output (`details`), which memory (`layout`,
//! `library`), when to sleep (`spin`), counting (`meter`, `account`), starting and stopping (`crew`).

use std::sync::{Mutex, PoisonError};

use rdmalib::{
    CompletionQueue, Device, Domain, Flags, ForkMark, Operation, QueuePair, QueuePairConfig,
    RemoteAddress, RnrRetry, Source, Status, WorkCompletion, WorkRequest,
};
use rfaas_call::Spin;
use rfaas_protocol::invocation::{ReplyImmediate, ReplyStatus};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role};

use crate::account::{Account, Published, SETTLE_EACH_NS};
use crate::clock::{MS, now_ns, ticks, ticks_of};
use crate::cpus::Cpus;
use crate::dial::{DIAL_TIMEOUT, DialError, dial};
use crate::layout::{Layout, Slot};
use crate::library::{Library, Memory, leave_forked};
use crate::meter::Meter;
use crate::plan::Plan;
use crate::spin::{Idle, Spinner};
use crate::sync::{AtomicBool, Ordering};

mod details;
mod requests;

use requests::{Asked, Request, Requests};

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Receives posted beyond the number of slots (ROOM).
const SPARE_RECEIVES: u32 = 31;
/// Fewest replies that the send queue holds: enough that not every one needs to be signalled.
const MIN_SEND_DEPTH: u32 = 64;
/// Time that a client has to take replies when the send queue is full, in ns. One that keeps to its
/// slots never fills it.
const REPLY_TIMEOUT_NS: u64 = 1_000 * MS;

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// It was told to.
    #[error("stopped")]
    Stopped,
    /// The client ended the connection, or is gone.
    #[error("the client ended the connection")]
    Disconnected,
    /// The client does not follow the protocol.
    #[error("the client broke the protocol: {0}")]
    Breach(&'static str),
    /// A reply could not be written where the client wanted it.
    #[error("a reply was not taken: {0:?}")]
    Reply(Status),
    /// The client posts no receives for the replies it asks for.
    #[error("the client does not take replies")]
    NotTaken,
    /// The device refused a request.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A peer does not answer.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The device cannot provide what the worker needs.
    #[error("{what} of a worker: {source}")]
    Device {
        /// What was asked of it.
        what: &'static str,
        /// Its error.
        #[source]
        source: rdmalib::Error,
    },
}

/// Queue depths of a worker with `slots` slots: sends, receives.
fn depths(slots: u16) -> (u32, u32) {
    let slots = u32::from(slots);
    // Twice, because a reply leaves the queue only when a later signalled one has completed.
    ((2 * slots).max(MIN_SEND_DEPTH), slots + SPARE_RECEIVES)
}

/// A queue for the invocations of one worker; the only one that it polls.
pub fn invocations(device: &Device, layout: &Layout) -> rdmalib::Result<CompletionQueue> {
    device.completion_queue(depths(layout.slots()).1)
}

/// The connection to the client.
#[derive(Debug)]
pub struct Connection {
    queue_pair: QueuePair, // first: fields drop in order, and its requests name the memory below
    sent: CompletionQueue,
    memory: Memory,
    /// Where small outputs are copied to be sent inline.
    inline: Box<[u8]>,
    /// Replies since the last signalled one.
    unsignaled: u32,
    signal_each: u32,
}

impl Connection {
    /// An unconnected one, whose invocations complete into `invocations`. In a protection domain of
    /// its own: the client reaches this worker's slots with it, and nothing else.
    pub fn new(
        device: &Device,
        layout: Layout,
        max_guards: usize,
        invocations: &CompletionQueue,
    ) -> Result<Connection, StartError> {
        let failed = |what| move |source| StartError::Device { what, source };
        let domain: Domain = device.domain().map_err(failed("protection domain"))?;
        let memory = Memory::new(&domain, layout, max_guards).map_err(failed("slots"))?;
        let (send_depth, receive_depth) = depths(layout.slots());
        let config = QueuePairConfig {
            send_depth,
            receive_depth,
            max_inline_data: device.spec().max_inline_data.min(device.limits().max_inline_data),
            rnr_retry: RnrRetry::Forever, // a slow client is not a broken one
            ..QueuePairConfig::default()
        };
        let sent = device.completion_queue(send_depth).map_err(failed("completion queue"))?;
        let mut queue_pair =
            QueuePair::new(&domain, &sent, invocations, &config).map_err(failed("queue pair"))?;
        for _ in 0..receive_depth {
            queue_pair.post_receive(0, None).map_err(failed("receives"))?;
        }
        Ok(Connection {
            queue_pair,
            sent,
            memory,
            inline: vec![0; config.max_inline_data as usize].into(),
            unsignaled: 0,
            signal_each: send_depth / 4,
        })
    }

    /// Connects to the client as worker `index`.
    pub fn connect(&mut self, plan: &Plan, index: u16) -> Result<(), StartError> {
        let (layout, inputs) = (self.memory.layout(), self.memory.remote_inputs());
        let hello = WorkerHello {
            session: plan.session,
            worker: index.into(),
            slots: layout.slots().into(),
            slot_stride: layout.slot_stride().into(),
            input_addr: inputs.addr.into(),
            input_key: inputs.key.into(),
        };
        let hello = Hello::with(Role::Worker, &hello);
        dial(&mut self.queue_pair, plan.client, &hello, DIAL_TIMEOUT)
            .map_err(|error| DialError::new("client", plan.client, &error))?;
        self.sent.poll_one(); // what the first look at a queue costs is paid now (ALL READY)
        Ok(())
    }

    /// Writes the first `bytes` bytes of output in `slot` to where the client wants them.
    #[inline]
    fn reply(
        &mut self,
        slot: Slot,
        asked: &Asked,
        bytes: u32,
        stop: &AtomicBool,
    ) -> Result<(), End> {
        let flags = self.flags();
        let request = |source| write(slot, asked, ReplyStatus::Ok, source, asked.reply, flags);
        let posted = match self.inline.get_mut(..bytes as usize) {
            Some(copy) if bytes > 0 => {
                self.memory.read_output(slot, copy)?;
                self.queue_pair.post(&request(Source::Inline(copy)))
            }
            _ => {
                let output = self.memory.output(slot, bytes)?;
                self.queue_pair.post(&request(Source::Region(output)))
            }
        };
        match posted {
            Ok(()) => Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => {
                let (memory, queue_pair) = (&self.memory, &mut self.queue_pair);
                let request = request(Source::Region(memory.output(slot, bytes)?));
                post_when_there_is_room(queue_pair, &mut self.sent, &request, stop)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Flags of the next reply. Each so many are signalled, which makes room for those before; the client
    /// may sleep, so all ring its bell.
    #[inline]
    fn flags(&mut self) -> Flags {
        let flags = Flags::SOLICITED | Flags::WITH_COMPLETION;
        self.unsignaled += 1;
        if self.unsignaled < self.signal_each {
            return flags;
        }
        self.unsignaled = 0;
        // What is there from the last signalled one makes room now; a failure also ends the receives.
        self.sent.poll(&mut [WorkCompletion::default(); BATCH]);
        flags | Flags::SIGNALED
    }

    /// Why the connection ended: the failed reply, if that is why.
    fn why_ended(&mut self) -> End {
        while let Some(done) = self.sent.poll_one() {
            if !matches!(done.status, Status::Success | Status::Flushed) {
                return End::Reply(done.status);
            }
        }
        End::Disconnected
    }
}

#[inline]
fn write<'a>(
    slot: Slot,
    asked: &Asked,
    status: ReplyStatus,
    source: Source<'a>,
    to: RemoteAddress,
    flags: Flags,
) -> WorkRequest<'a> {
    let sequence = asked.sequence as u8; // its low byte is what returns
    let immediate = ReplyImmediate { slot: slot.number(), status, sequence }.to_wire();
    WorkRequest {
        id: 0,
        operation: Operation::Write { source, to, immediate: Some(immediate) },
        flags,
    }
}

/// Posts `request`; while the queue is full, waits for the client to take earlier replies.
#[cold]
fn post_when_there_is_room(
    queue_pair: &mut QueuePair,
    sent: &mut CompletionQueue,
    request: &WorkRequest<'_>,
    stop: &AtomicBool,
) -> Result<(), End> {
    // Signalled, so that a queue full of unsignalled replies comes to an end.
    let request = WorkRequest { flags: request.flags | Flags::SIGNALED, ..*request };
    let deadline_ns = now_ns() + REPLY_TIMEOUT_NS;
    loop {
        match queue_pair.post(&request) {
            Ok(()) => return Ok(()),
            Err(rdmalib::Error::QueueFull { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(done) = sent.poll_one() {
            match done.status {
                Status::Success => {}
                Status::Flushed => return Err(End::Disconnected),
                status => return Err(End::Reply(status)),
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Err(End::Stopped);
        }
        if now_ns() >= deadline_ns {
            return Err(End::NotTaken);
        }
        std::thread::yield_now();
    }
}

/// What a worker shares with the main thread.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Its account at the manager.
    pub account: &'a Mutex<Account>,
    /// What it shows of its calls.
    pub published: &'a Published,
    /// Set when it is to end.
    pub stop: &'a AtomicBool,
}

/// A worker at work.
#[derive(Debug)]
pub struct Worker<'a> {
    connection: Connection,
    invocations: CompletionQueue, // behind the queue pair that completes into it
    requests: Requests,
    library: &'a Library,
    shared: Shared<'a>,
    spinner: Spinner,
    meter: Meter,
    process: ForkMark,
    /// Where it may go when it has to share its CPU; `None` if it is pinned.
    cpus: Option<Cpus>,
    /// The last poll that found nothing, in ticks.
    idle_at: u64,
    /// When the account is to be settled next, in ticks.
    settle_at: u64,
}

impl<'a> Worker<'a> {
    /// Starts now; moves among `cpus`.
    pub fn new(
        connection: Connection,
        invocations: CompletionQueue,
        library: &'a Library,
        spin: Spin,
        cpus: Option<Cpus>,
        shared: Shared<'a>,
    ) -> Self {
        let now = ticks();
        Worker {
            requests: Requests::new(connection.memory.layout().slots()),
            connection,
            invocations,
            library,
            shared,
            spinner: Spinner::new(spin, now_ns()),
            meter: Meter::new(now),
            process: ForkMark::new(),
            cpus,
            idle_at: now,
            settle_at: now + ticks_of(SETTLE_EACH_NS),
        }
    }

    /// Serves invocations until the connection ends or `stop` is set. The account is not yet closed
    /// then; [`Meter::used`] has what is due.
    pub fn serve(&mut self) -> End {
        let mut batch = [WorkCompletion::default(); BATCH];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let taken = self.invocations.poll(&mut batch);
            let outcome = match &batch[..taken] {
                [] => self.idle(),
                arrived => arrived.iter().try_for_each(|done| self.take(done)),
            };
            if let Err(end) = outcome {
                self.meter.polled(ticks());
                return end;
            }
        }
        self.meter.polled(ticks());
        End::Stopped
    }

    /// What it has used.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Answers one invocation.
    #[inline]
    fn take(&mut self, done: &WorkCompletion) -> Result<(), End> {
        let stop = self.shared.stop;
        if stop.load(Ordering::Relaxed) {
            return Err(End::Stopped);
        }
        if done.status != Status::Success {
            return Err(self.connection.why_ended());
        }
        self.meter.polled(self.idle_at);
        let request = self.requests.read(done, &self.connection.memory)?;
        let Request { slot, asked, .. } = &request;
        match self.call(&request) {
            Ok(bytes) if asked.output_stays => {
                self.connection.reply_in_place(*slot, asked, bytes, stop)?;
            }
            Ok(bytes) => self.connection.reply(*slot, asked, bytes, stop)?,
            Err((status, needed)) => {
                self.connection.reply_failure(*slot, asked, status, needed, stop)?;
            }
        }
        self.connection.queue_pair.post_receive(0, None)?;
        let now = ticks(); // now, when the client has its reply
        self.meter.executed(now);
        self.spinner.worked();
        self.settle_if_due(now);
        Ok(())
    }

    /// Checks the request, calls the function, counts. Returns how many bytes of output are to be sent.
    #[inline]
    fn call(&mut self, request: &Request) -> Result<u32, (ReplyStatus, u32)> {
        let Request { slot, asked, input_bytes, makes_sense } = request;
        let memory = &self.connection.memory;
        let output_capacity = asked.output_capacity.min(memory.layout().output_bytes());
        if !makes_sense {
            return Err((ReplyStatus::Malformed, 0));
        }
        let Some(function) = self.library.function(asked.function) else {
            return Err((ReplyStatus::UnknownFunction, 0));
        };
        self.shared.published.begin(self.meter.used(), self.meter.mark());
        let bytes = function.call(memory, *slot, *input_bytes);
        if !self.process.is_here() {
            leave_forked(); // ONE PROCESS
        }
        self.shared.published.end();
        self.meter.called();
        if bytes > output_capacity {
            return Err((ReplyStatus::OutputTooLarge, bytes));
        }
        Ok(bytes)
    }

    /// A poll found nothing.
    #[inline]
    fn idle(&mut self) -> Result<(), End> {
        match self.spinner.idle() {
            Idle::Poll => {
                self.invocations.stay_awake();
                self.idle_at = ticks();
                std::hint::spin_loop();
            }
            Idle::Clock => self.look_at_the_clock(),
            Idle::Yield => {
                std::thread::yield_now();
                self.look_at_the_clock();
            }
            Idle::Sleep => self.sleep()?,
        }
        Ok(())
    }

    fn look_at_the_clock(&mut self) {
        if self.spinner.time_is(now_ns())
            && let Some(cpus) = &self.cpus
        {
            cpus.move_on();
        }
        let now = ticks();
        self.meter.polled(now);
        self.settle_if_due(now);
    }

    fn sleep(&mut self) -> Result<(), End> {
        let now = ticks();
        self.meter.polled(now);
        self.settle(now);
        self.invocations.wait(None)?; // ended by its waker when `stop` is set
        self.meter.slept(ticks());
        Ok(())
    }

    #[inline]
    fn settle_if_due(&mut self, now: u64) {
        if now >= self.settle_at {
            self.settle(now);
        }
    }

    #[cold]
    fn settle(&mut self, now: u64) {
        self.settle_at = now + ticks_of(SETTLE_EACH_NS);
        // Not waited for: the main thread has it only after a call that took long, and settles then.
        if let Ok(mut account) = self.shared.account.try_lock() {
            account.settle(&self.meter.used().totals());
        }
    }
}

/// The account, also after a thread that held it has died.
pub fn locked(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
