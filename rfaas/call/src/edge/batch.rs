//! A worker whose function takes batches: it waits until several runs are complete, and has the function called once
//! with all of them.
//!
//! ```text
//!   completion ──▶ Wires::note ──complete──▶ ready ──as many as there are, up to `most`──▶ Service::call_batch
//!        │ none                                │ fewer, and the first has not waited for `wait`           │
//!        └▶ Service::idle ◀────────────────────┘             each to its own slot: Hop::hand_on ◀─────────┘
//! ```
//! Such a worker has one stage, with one input: nothing else waits while it waits, and runs that are complete are in the
//! order in which they came. A worker without batches has nothing of this on its path.

use std::ops::Deref;
use std::time::{Duration, Instant};

use rdmalib::WorkCompletion;
use rfaas_protocol::edge::{EdgeFailure, FailedBecause};

use super::end::HopEnd;
use super::hop::{Begun, COMPLETIONS, Hop, fits, most_left, said_failed};
use super::notes::Notes;
use super::outgoing::SlotUse;
use super::stage::{BatchPlan, Stage};
use super::wires::{Made, Ready, failure, noted};
use crate::callee::{Service, Slot, SlotMemory};
use crate::place::Place;
use crate::turn::{About, BatchRun, Denied, Turn, Verdict};

/// What a function that is called with a batch may ask for: who it is. All else it has for each run. What it notes is
/// noted of all of them.
struct InBatch<'a> {
    about: About,
    notes: &'a mut Option<Notes>,
}

impl Turn for InBatch<'_> {
    fn about(&self) -> About {
        self.about
    }

    fn area(&self) -> (*mut u8, u32) {
        (std::ptr::null_mut(), 0)
    }

    fn input(&self, _number: u32) -> Result<(*const u8, u32), Denied> {
        Err(Denied::Rights)
    }

    fn output(&self, _edge: u32) -> Result<(*mut u8, u32), Denied> {
        Err(Denied::Rights)
    }

    fn emit(&mut self, _edge: u32, _bytes: u32) -> Result<(), Denied> {
        Err(Denied::Rights)
    }

    fn call(
        &mut self,
        _edge: u32,
        _bytes: u32,
        _limit_ns: u64,
    ) -> Result<(*const u8, u32), Denied> {
        Err(Denied::Rights)
    }

    fn note(&mut self, key: &[u8], value: i64) -> Result<(), Denied> {
        noted(self.notes, key, value)
    }

    fn end(&mut self, _verdict: Verdict) -> Result<(), Denied> {
        Err(Denied::Rights)
    }
}

/// Returns how many bytes the function has made of a run, or how it has ended it otherwise.
fn made(run: &BatchRun, stage: &Stage) -> Result<u32, EdgeFailure> {
    match run.ended {
        0 => Ok(run.output_bytes),
        BatchRun::NO_VALUE => Err(failure(stage, FailedBecause::NoValue, 0, 0)),
        _ => Err(said_failed(stage, run.code)),
    }
}

fn about(stage: &Stage, slot: u16) -> About {
    About {
        function: stage.function.1,
        member: stage.member.0,
        members: stage.member.1,
        slot,
        inputs: 1,
        edges: stage.edges() as u32, // at most 64
    }
}

/// A batch that is put together. It has room for as many runs as there can be.
struct Batch {
    ready: Vec<Ready>,
    runs: Vec<BatchRun>,
}

impl<M: Deref<Target = SlotMemory>> Hop<M> {
    /// Takes runs until an edge ends or the service is stopped.
    pub(super) fn serve_batches<const TRACED: bool>(
        &mut self,
        plan: BatchPlan,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        let most = usize::from(plan.most.min(self.wires.slots)).max(1);
        let mut batch = Batch { ready: Vec::with_capacity(most), runs: Vec::with_capacity(most) };
        let mut completions = [WorkCompletion::default(); COMPLETIONS];
        // When the first run that is complete does not wait any longer, if that counts.
        let mut due: Option<Instant> = None;
        while !service.is_stopped() {
            let taken = self.wires.arrivals.poll(&mut completions);
            for done in &completions[..taken] {
                self.note_one::<TRACED>(done, service)?;
            }
            let complete = self.wires.ready.len();
            if complete < most && taken == completions.len() {
                continue; // there may be more
            }
            if complete == 0 {
                due = None;
                service.idle(&mut self.wires.arrivals, None)?;
                continue;
            }
            if complete < most && plan.wait > Duration::ZERO {
                let now = Instant::now();
                let at = *due.get_or_insert(now + plan.wait);
                if now < at {
                    if taken == 0 {
                        service.idle(&mut self.wires.arrivals, Some(at))?;
                    }
                    continue;
                }
            }
            let began = (plan.wait > Duration::ZERO).then(Instant::now);
            service.arrived();
            batch.ready.clear();
            batch.ready.extend(self.wires.ready.drain(..complete.min(most)));
            self.run_batch::<TRACED>(&mut batch, service)?;
            service.answered();
            // Those that had no room were complete then, and those that have come since have waited no longer.
            due = began.map(|began| began + plan.wait);
        }
        Ok(())
    }

    /// Notes what has come. A run that has failed is passed on at once.
    fn note_one<const TRACED: bool>(
        &mut self,
        done: &WorkCompletion,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        // Before the run is handed on: then its slot may be used again.
        if let Some(link) = self.wires.note(&self.stages, &self.memory, done)? {
            self.wires.ins[link].repost()?;
        }
        let Some(Ready { to, failed: Some(failure), .. }) = self.wires.ready.back().copied() else {
            return Ok(());
        };
        self.wires.ready.pop_back();
        let begun = if TRACED { Some(self.begin()) } else { None };
        service.arrived();
        self.conclude(begun.as_ref(), to, Err(failure), (0, 1), service)?;
        service.answered();
        Ok(())
    }

    /// Has the function called with runs that are complete, and hands on what it makes of each.
    fn run_batch<const TRACED: bool>(
        &mut self,
        batch: &mut Batch,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        let Batch { ready, runs } = batch;
        let begun = if TRACED { Some(self.begin()) } else { None };
        let stage = &self.stages[0];
        let room = self.memory.areas[0][0].layout().output_bytes().min(most_left(stage, 0));
        runs.clear();
        for Ready { to, .. } in ready.iter() {
            let slot = self.slot(*to);
            let bytes = self.wires.joins[0].bytes(to.slot, 0).unwrap_or(0);
            let from = self.memory.input(&self.wires, stage, (0, 0), to.slot);
            let mut place = Place::new(from, bytes, self.memory.areas[0][0].output(slot));
            if let Some(mapped) = &self.memory.mapped[0] {
                place = place.with_output(mapped.at(to.slot));
            }
            runs.push(BatchRun::new(place, to.slot, room));
        }
        let function = stage.function.0;
        let first = ready.first().map_or(0, |first| first.to.slot);
        let about = about(stage, first);
        let mut turn = InBatch { about, notes: &mut self.wires.notes };
        let returned = service.call_batch(function, runs, &mut turn);
        let returned = returned.ok_or(HopEnd::NoFunction(function))?;
        let together = runs.len() as u16; // no more than slots
        for (Ready { to, .. }, run) in ready.iter().zip(runs.iter()) {
            let (stage, slot) = (&self.stages[0], self.slot(*to));
            let in_place = self.memory.mapped[0].is_some();
            let ended = match returned {
                0 => made(run, stage),
                code => Err(said_failed(stage, code)), // all of them
            };
            let made =
                ended.and_then(|bytes| fits(stage, 0, Made { area: 0, slot, bytes, in_place }));
            self.conclude(begun.as_ref(), *to, made, (1, together), service)?;
        }
        Ok(())
    }

    /// Hands on what became of a run, in which the function was called so often, with so many runs at once.
    fn conclude(
        &mut self,
        begun: Option<&Begun>,
        to: SlotUse,
        made: Result<Made, EdgeFailure>,
        (calls, together): (u16, u16),
        service: &impl Service,
    ) -> Result<(), HopEnd> {
        let slot = self.slot(to);
        let failed = self.hand_on(0, (to, slot), made, 0, || service.is_stopped())?;
        if let Some(begun) = begun {
            let did = (made.map_or(0, |made| made.bytes), failed.is_some(), calls);
            self.trace(begun, 0, (to.slot, to.run), did, together, service)?;
        }
        self.wires.settle(&self.stages, 0, to);
        Ok(())
    }

    /// Returns the slot of a run, which is one of those of the edge that it has come over.
    fn slot(&self, to: SlotUse) -> Slot {
        let layout = self.memory.areas[0][0].layout();
        layout.slot(to.slot.into()).expect("edges and areas have the same slots")
    }
}
