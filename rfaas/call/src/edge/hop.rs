//! A worker of a graph: takes what comes over its edges, has its function called, and hands on what that returns.
//!
//! ```text
//!   completion ──▶ InEdge: checked ──▶ Joins ──all are there──▶ Service::call ──▶ every OutEdge
//!        │ none                          └─ one has failed: passed on, nothing is called
//!        └▶ Service::idle
//! ```
//! One thread, one run after the other. Per run there is no allocation, lock, log line or system call.

use std::ops::Deref;

use rdmalib::{CompletionQueue, Status, WorkCompletion};
use rfaas_protocol::edge::{EdgeFailure, FailedBecause};

use super::ends::EdgeEnd;
use super::incoming::{Arrival, InEdge};
use super::join::{Joined, Joins};
use super::outgoing::{OutEdge, SlotUse};
use crate::callee::{Service, Slot, SlotMemory};
use crate::place::Place;
use crate::writer::NotWritten;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;

/// Why a worker of a graph takes no more runs.
#[derive(Debug, thiserror::Error)]
pub enum HopEnd {
    /// It was stopped.
    #[error("stopped")]
    Stopped,
    /// Who sends over an edge is gone.
    #[error("the sender of input {0} is gone")]
    SenderGone(usize),
    /// Who receives over an edge is gone.
    #[error("the receiver of output {0} is gone")]
    ReceiverGone(usize),
    /// A sender does not follow the protocol.
    #[error("the sender of input {input} broke the protocol: {what}")]
    Breach {
        /// Number of the edge.
        input: usize,
        /// What it did.
        what: &'static str,
    },
    /// A payload could not be written where the receiver wants it.
    #[error("output {output} was not taken: {status:?}")]
    NotTaken {
        /// Number of the edge.
        output: usize,
        /// What the device says; success if it says nothing, and the receiver takes nothing.
        status: Status,
    },
    /// The library has no such function, which is checked before.
    #[error("the library has no function of number {0}")]
    NoFunction(u32),
    /// The device refused a request.
    #[error(transparent)]
    Device(#[from] rdmalib::Error),
}

/// A worker, connected.
#[derive(Debug)]
pub struct Hop<M> {
    ins: Vec<InEdge>,
    outs: Vec<OutEdge>,
    /// Where outputs are written, a slot each.
    memory: M,
    arrivals: CompletionQueue, // behind the queue pairs that complete into it
    joins: Joins,
    /// Most bytes of output that all edges hold.
    most: u32,
    /// Number of its function, in the library and in the graph.
    function: (u32, u16),
}

impl<M: Deref<Target = SlotMemory>> Hop<M> {
    /// Makes one of connected edges, which complete into `arrivals`: at least one that comes in. `memory` has as many
    /// slots as they, and room for what all of `outs` hold. `function` is its number in the library, and in the graph.
    pub fn new(
        (ins, outs): (Vec<InEdge>, Vec<OutEdge>),
        memory: M,
        arrivals: CompletionQueue,
        function: (u32, u16),
    ) -> Self {
        let layout = memory.layout();
        let most = outs.iter().map(|edge| edge.shape().bytes).min();
        let most = most.unwrap_or(0).min(layout.output_bytes());
        let joins = Joins::new(ins.len(), layout.slots());
        Hop { ins, outs, memory, arrivals, joins, most, function }
    }

    /// Takes runs until an edge ends or the service is stopped.
    pub fn serve(&mut self, service: &mut impl Service) -> HopEnd {
        let mut batch = [WorkCompletion::default(); BATCH];
        while !service.is_stopped() {
            let taken = self.arrivals.poll(&mut batch);
            let served = match &batch[..taken] {
                [] => service.idle(&mut self.arrivals).map_err(HopEnd::from),
                arrived => arrived.iter().try_for_each(|done| self.take(done, service)),
            };
            if let Err(end) = served {
                return end;
            }
        }
        HopEnd::Stopped
    }

    #[inline]
    fn take(&mut self, done: &WorkCompletion, service: &mut impl Service) -> Result<(), HopEnd> {
        if service.is_stopped() {
            return Err(HopEnd::Stopped);
        }
        let input = match EdgeEnd::of(done.id) {
            EdgeEnd::In(input) => input,
            EdgeEnd::Out(output) => return Err(HopEnd::ReceiverGone(output)),
        };
        let Some(edge) = self.ins.get(input) else { return Ok(()) }; // there is no such edge
        let breach = |what| HopEnd::Breach { input, what };
        let Some(arrival) = edge.read(done).map_err(breach)? else {
            return Err(HopEnd::SenderGone(input));
        };
        service.arrived();
        let failure = || edge.failure(arrival.slot).map_err(JoinError::Device);
        let joined = self.joins.arrived(input, &arrival, failure);
        let joined = joined.map_err(|error| match error {
            JoinError::Breach(what) => breach(what),
            JoinError::Device(error) => HopEnd::Device(error),
        })?;
        if let Joined::Complete { failed } = joined {
            self.run(&arrival, failed, service)?;
        }
        self.ins[input].repost()?;
        service.answered();
        Ok(())
    }

    /// Has the function called for the run of `arrival`, whose inputs are all there, and hands on what it returns.
    #[inline]
    fn run(
        &mut self,
        arrival: &Arrival,
        failed: Option<EdgeFailure>,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        let Arrival { slot, run, .. } = *arrival;
        let to = SlotUse { slot, run };
        let Some(area) = self.memory.layout().slot(slot.into()) else {
            return Err(HopEnd::Breach { input: 0, what: "it named a slot that has no output" });
        };
        if let Some(failure) = failed {
            return self.fail((to, area), &failure, service);
        }
        let input_bytes = self.joins.bytes(slot, 0);
        let place = Place::new(self.ins[0].at(slot), input_bytes, self.memory.output(area));
        let (function, in_graph) = self.function;
        let bytes = service.call(function, place).ok_or(HopEnd::NoFunction(function))?;
        if bytes > self.most {
            let failure = EdgeFailure {
                because: FailedBecause::OutputTooLarge.to_wire(),
                function: in_graph.into(),
                returned: bytes.into(),
                most: u64::from(self.most).into(),
            };
            return self.fail((to, area), &failure, service);
        }
        let (outputs, at) = self.memory.output(area);
        for (output, edge) in self.outs.iter_mut().enumerate() {
            edge.send(to, (outputs, at, bytes), || service.is_stopped())
                .map_err(|why| not_written(output, why))?;
        }
        Ok(())
    }

    #[cold]
    fn fail(
        &mut self,
        (to, area): (SlotUse, Slot),
        failure: &EdgeFailure,
        service: &impl Service,
    ) -> Result<(), HopEnd> {
        for (output, edge) in self.outs.iter_mut().enumerate() {
            let detail = self.memory.detail(area, failure)?;
            edge.send_failure(to, detail, || service.is_stopped())
                .map_err(|why| not_written(output, why))?;
        }
        Ok(())
    }
}

/// Why an arrival was not joined.
enum JoinError {
    Breach(&'static str),
    Device(rdmalib::Error),
}

impl From<&'static str> for JoinError {
    fn from(what: &'static str) -> Self {
        JoinError::Breach(what)
    }
}

fn not_written(output: usize, why: NotWritten) -> HopEnd {
    match why {
        NotWritten::Stopped => HopEnd::Stopped,
        NotWritten::Disconnected => HopEnd::ReceiverGone(output),
        NotWritten::Failed(status) => HopEnd::NotTaken { output, status },
        NotWritten::NotTaken => HopEnd::NotTaken { output, status: Status::Success },
        NotWritten::Device(error) => HopEnd::Device(error),
    }
}
