//! Calls in place: a slot whose memory is mapped, posting to that slot, where the output has stayed.
//!
//! * HELD - a slot that was found here is not taken out of the free ones. The application's call in place
//!   borrows its executor, so until that ends nobody else posts, and the slot stays free for it.
//! * MAPPED ONCE - mappings are a worker's and are kept for later calls; who uses one holds it too, since a
//!   worker may be given up meanwhile.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use rdmalib::{Access, RemoteAddress, RemoteMapping};

use super::{Call, Failure, Verdict, Worker, Workers};
use crate::client::tickets::Ticket;
use crate::error::Result;
use rfaas_protocol::invocation::HEADER_SPACE;

/// A slot, by its worker and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) struct Place {
    pub(in crate::client) worker: usize,
    pub(in crate::client) slot: u16,
}

/// What a search for a slot comes to.
#[derive(Debug)]
pub(in crate::client) enum Found {
    /// This one is free. The mapping is of all of its worker's slots, if the provider can.
    Slot(Place, Option<Arc<RemoteMapping>>),
    /// All are in use.
    Busy,
    /// There is no worker any more; the reason is awaited.
    Lost,
}

/// What is mapped of a worker's memory.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// All slots, once they were asked for.
    inputs: Option<Option<Arc<RemoteMapping>>>,
    /// By slot: where its output is, and the mapping.
    outputs: Vec<Option<(RemoteAddress, Arc<RemoteMapping>)>>,
}

impl Workers {
    /// A free slot of the worker with the least to do. An error is about the executor as a whole or about
    /// this process; what goes wrong with one worker leads to the next.
    pub(in crate::client) fn find(&mut self, woken: &mut Vec<Waker>) -> Result<Found> {
        loop {
            if let Verdict::Final(failure) = self.verdict {
                return Err(failure.into_error(self.limit));
            }
            let Some(index) = self.choose() else {
                return Ok(if self.alive > 0 { Found::Busy } else { Found::Lost });
            };
            let worker = &mut self.workers[index];
            match worker.inputs() {
                Ok(inputs) => {
                    let (slot, _) = worker.slots.next().expect("chosen for its free slot");
                    return Ok(Found::Slot(Place { worker: index, slot }, inputs));
                }
                Err(rdmalib::Error::Disconnected) => self.lose(index, None, woken),
                Err(rdmalib::Error::RemoteAccess) => {
                    self.lose(index, Some("it offered slots that its key does not open"), woken);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where the input of `place` is in the mapping of its worker's slots.
    pub(in crate::client) fn input_offset(&self, place: Place) -> usize {
        let stride = self.workers[place.worker].area.stride as usize;
        usize::from(place.slot) * stride + HEADER_SPACE
    }

    /// Posts `call` to `place`, as [`Workers::post`] does to any slot: the input is there, and nowhere else.
    #[inline(never)] // one branch is what it costs other calls
    pub(super) fn post_in_place(
        &mut self,
        place: Place,
        call: &Call<'_>,
        deadline: Option<Instant>,
        woken: &mut Vec<Waker>,
    ) -> Result<Option<Ticket>> {
        loop {
            if let Verdict::Final(failure) = self.verdict {
                return Err(failure.into_error(self.limit));
            }
            let worker = &mut self.workers[place.worker]; // they stay in their places until the verdict
            if !worker.alive {
                return self.post_to_lost(call, deadline);
            }
            let sequence = worker.slots.sequence(place.slot);
            match worker.post_to(place.worker, (place.slot, sequence), call) {
                Ok(()) => {
                    let ticket = self.tickets.issue(call.room, deadline);
                    self.workers[place.worker].slots.occupy(place.slot, ticket); // HELD
                    return Ok(Some(ticket));
                }
                Err(rdmalib::Error::QueueFull { .. }) => return Ok(None),
                Err(rdmalib::Error::Disconnected) => self.lose(place.worker, None, woken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The worker of `call` is gone, which is not posted then; the ticket is for the reason.
    #[cold]
    fn post_to_lost(
        &mut self,
        call: &Call<'_>,
        deadline: Option<Instant>,
    ) -> Result<Option<Ticket>> {
        if self.verdict == Verdict::None {
            let reason = "it was given up before this call, whose input it held";
            return Err(Failure::WorkerLost(reason).into_error(self.limit));
        }
        let ticket = self.tickets.issue(call.room, deadline);
        self.orphans.push(ticket); // VERDICT
        Ok(Some(ticket))
    }

    /// The output of `place`, which its worker says has stayed at `at`: `bytes` bytes, mapped.
    pub(in crate::client) fn output(
        &mut self,
        place: Place,
        at: RemoteAddress,
        bytes: usize,
    ) -> rdmalib::Result<Arc<RemoteMapping>> {
        match self.workers.get_mut(place.worker) {
            Some(worker) if worker.alive => worker.output(place.slot, at, bytes),
            _ => Err(rdmalib::Error::Disconnected),
        }
    }

    /// HOSTILE. A worker has answered something that cannot be.
    #[cold]
    pub(in crate::client) fn breach(
        &mut self,
        worker: usize,
        breach: &'static str,
        woken: &mut Vec<Waker>,
    ) {
        if self.workers.get(worker).is_some_and(|worker| worker.alive) {
            tracing::warn!(worker, breach, "worker broke the protocol; it is cut off");
            self.lose(worker, Some(breach), woken);
        }
    }

    /// The connection of `worker` has ended.
    #[cold]
    pub(in crate::client) fn gone(&mut self, worker: usize, woken: &mut Vec<Waker>) {
        if self.workers.get(worker).is_some_and(|worker| worker.alive) {
            self.lose(worker, None, woken);
        }
    }
}

impl Worker {
    /// All slots, mapped; `None` if the provider cannot.
    fn inputs(&mut self) -> rdmalib::Result<Option<Arc<RemoteMapping>>> {
        if let Some(inputs) = &self.mapped.inputs {
            return Ok(inputs.clone()); // MAPPED ONCE
        }
        let bytes = usize::from(self.area.count) * self.area.stride as usize;
        let access = Access::REMOTE_READ | Access::REMOTE_WRITE;
        let inputs = self.send.map_remote(self.area.first, bytes, access)?.map(Arc::new);
        Ok(self.mapped.inputs.insert(inputs).clone())
    }

    fn output(
        &mut self,
        slot: u16,
        at: RemoteAddress,
        bytes: usize,
    ) -> rdmalib::Result<Arc<RemoteMapping>> {
        let slot = usize::from(slot);
        let outputs = &mut self.mapped.outputs;
        outputs.resize(outputs.len().max(slot + 1), None);
        if let Some((was, output)) = &outputs[slot]
            && *was == at
        {
            return Ok(output.clone()); // MAPPED ONCE
        }
        let output = self.send.map_remote(at, bytes, Access::REMOTE_READ)?;
        let output = Arc::new(output.ok_or(rdmalib::Error::RemoteAccess)?);
        outputs[slot] = Some((at, output.clone()));
        Ok(output)
    }
}
