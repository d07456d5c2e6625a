//! Serving a connection: one request after the other, until it ends.

use std::ops::Deref;
use std::time::Instant;

use rdmalib::{CompletionQueue, Status, WorkCompletion};
use rfaas_protocol::invocation::ReplyStatus;

use super::connection::CallerConnection;
use super::end::ServiceEnd;
use super::memory::SlotMemory;
use super::requests::{Request, Requests};
use crate::place::Place;
use crate::turn::{BatchRun, Turn};

/// Completions taken from the queue at a time.
const BATCH: usize = 16;

/// What a callee does for its caller, and between calls.
///
/// Its methods are called on the path of a call, in this order: `arrived`, `call`, `answered`. Functions of a generic
/// type, they are compiled into that path.
pub trait Service {
    /// Returns whether the callee is to end.
    fn is_stopped(&self) -> bool;

    /// Returns what tells that while a function is called, which may wait for others.
    fn stop(&self) -> impl Fn() -> bool + use<Self> {
        || false
    }

    /// A request was found.
    fn arrived(&mut self);

    /// Calls the function of this number at `place`. Returns how many bytes of output it says it
    /// wrote, which may be any number; `None` if there is no such function.
    fn call(&mut self, function: u32, place: Place<'_>) -> Option<u32>;

    /// Does the same for a function of a graph, which may ask for more by `turn`.
    fn call_in(&mut self, function: u32, place: Place<'_>, turn: &mut dyn Turn) -> Option<u32> {
        let _ = turn;
        self.call(function, place)
    }

    /// Calls the function of this number among those that take batches, with these runs. Returns what it returns, which
    /// is 0 unless all of them have failed with that as their code; `None` if there is no such function.
    fn call_batch(
        &mut self,
        function: u32,
        runs: &mut [BatchRun],
        turn: &mut dyn Turn,
    ) -> Option<i32> {
        let _ = (function, runs, turn);
        None
    }

    /// Notes that the reply is on its way.
    fn answered(&mut self);

    /// A poll of `requests` found nothing: spins, lets others run, or sleeps, until some time at most.
    fn idle(
        &mut self,
        requests: &mut CompletionQueue,
        until: Option<Instant>,
    ) -> rdmalib::Result<()>;
}

/// One connection and its requests. Slots, areas and receives exist before the first request. Per request there is no
/// allocation, lock, log line or system call.
#[derive(Debug)]
pub struct Callee<M> {
    connection: CallerConnection<M>,
    queue: CompletionQueue, // behind the queue pair that completes into it
    requests: Requests,
}

impl<M: Deref<Target = SlotMemory>> Callee<M> {
    /// Takes a connected `connection`, whose requests complete into `queue`.
    pub fn new(connection: CallerConnection<M>, queue: CompletionQueue) -> Self {
        let requests = Requests::new(connection.memory().layout().slots());
        Callee { connection, queue, requests }
    }

    /// Serves requests until the connection ends or the service is stopped.
    pub fn serve(&mut self, service: &mut impl Service) -> ServiceEnd {
        let mut batch = [WorkCompletion::default(); BATCH];
        while !service.is_stopped() {
            let taken = self.queue.poll(&mut batch);
            let served = match &batch[..taken] {
                [] => service.idle(&mut self.queue, None).map_err(ServiceEnd::from),
                arrived => arrived.iter().try_for_each(|done| self.answer(done, service)),
            };
            if let Err(end) = served {
                return end;
            }
        }
        ServiceEnd::Stopped
    }

    /// Answers one request. Each completion is looked at once and answered once.
    #[inline]
    fn answer(
        &mut self,
        done: &WorkCompletion,
        service: &mut impl Service,
    ) -> Result<(), ServiceEnd> {
        if service.is_stopped() {
            return Err(ServiceEnd::Stopped);
        }
        if done.status != Status::Success {
            return Err(self.connection.why_ended());
        }
        service.arrived();
        let request = self.requests.read(done, self.connection.memory())?;
        let Request { slot, header, .. } = &request;
        let result = call(&request, self.connection.memory(), service);
        let is_stopped = || service.is_stopped();
        match result {
            Ok(bytes) if header.output_stays => {
                self.connection.reply_in_place(*slot, header, bytes, is_stopped)?;
            }
            Ok(bytes) => self.connection.reply(*slot, header, bytes, is_stopped)?,
            Err((status, needed)) => {
                self.connection.reply_failure(*slot, header, status, needed, is_stopped)?;
            }
        }
        self.connection.repost_receive()?;
        service.answered();
        Ok(())
    }
}

/// Checks `request` and has the function called. Returns how many bytes of output are to be sent.
#[inline]
fn call(
    request: &Request,
    memory: &SlotMemory,
    service: &mut impl Service,
) -> Result<u32, (ReplyStatus, u32)> {
    let Request { slot, header, input_bytes, makes_sense } = request;
    let output_capacity = header.output_capacity.min(memory.layout().output_bytes());
    if !makes_sense {
        return Err((ReplyStatus::Malformed, 0));
    }
    match service.call(header.function, memory.place(*slot, *input_bytes)) {
        None => Err((ReplyStatus::UnknownFunction, 0)),
        Some(bytes) if bytes > output_capacity => Err((ReplyStatus::OutputTooLarge, bytes)),
        Some(bytes) => Ok(bytes),
    }
}
