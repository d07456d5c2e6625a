//! The workers of a graph, connected, and the runs that are under way there.
//!
//! * The client owns the slots of all edges: a run has the same slot on each. When all outputs of it are there, all
//!   workers are done with it, since each has written before what it reads is written again.
//! * A worker that is gone takes the lane with it: runs under way fail, all executors end, and the next run has them
//!   started again. So nothing of an old run can land in a new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::{CompletionQueue, Region, Status, WorkCompletion};
use rfaas_call::edge::{EdgeEnd, InEdge, OutEdge, SlotUse};
use rfaas_call::{Awaited, Backoff, Pause, Sharing, Spin};
use rfaas_protocol::channel::Channel;
use rfaas_protocol::edge::{EdgeFailure, EdgeShape, EdgeStatus, FailedBecause};

use crate::cause::Cause;
use crate::lease_core::LeaseCore;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Longest sleep, after which limits are looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long managers may take to say why a worker is gone.
const CAUSE_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two questions for that, which rings no bell.
const NAP: Duration = Duration::from_millis(1);

/// One executor of the lane: of one function.
pub(super) struct Member {
    /// Of its lease. Whoever has the lane does not keep that.
    pub(super) lease: Arc<LeaseCore>,
    /// Its end makes the executor exit.
    pub(super) _control: Channel,
}

/// All of them, and what connects the client with them.
pub(super) struct Lane {
    pub(super) members: Vec<Member>,
    /// To each worker, by function: those that take no input have an edge of no bytes, whose end tells of theirs.
    pub(super) to_workers: Vec<OutEdge>,
    /// Functions that take the input.
    pub(super) sources: Vec<usize>,
    /// A copy of the input of each run, and where they are.
    pub(super) inputs: Region,
    pub(super) input: EdgeShape,
    /// From workers, by output of the graph.
    pub(super) outputs: Vec<InEdge>,
    pub(super) arrivals: CompletionQueue,
}

/// Why a run has failed, by itself: the lane lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunFailure {
    /// Number of the function.
    pub(super) function: usize,
    /// Bytes that it returned, and that fit.
    pub(super) bytes: (u32, u64),
}

/// Why a lane is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneLost {
    /// The executor of this function, or its lease, has ended.
    Ended(usize, Cause),
    /// A run was under way for so long.
    TimeLimit(Duration),
    /// A worker broke the protocol, or nobody says why it is gone.
    Worker(&'static str),
}

/// A slot and its run.
#[derive(Debug, Default)]
struct SlotState {
    /// Which run, if one is under way or not fetched yet.
    run: Option<u64>,
    /// Low byte that its payloads have: another one at each use.
    uses: u8,
    since: Option<Instant>,
    /// Outputs that are there.
    there: Vec<Option<u32>>,
    failed: Option<RunFailure>,
}

/// The slots of a lane.
pub(super) struct Slots {
    slots: Vec<SlotState>,
    sharing: Sharing,
    spin: Spin,
}

impl Slots {
    pub(super) fn new(depth: u16, outputs: usize, spin: Spin) -> Self {
        let slot = || SlotState { there: vec![None; outputs], ..SlotState::default() };
        let slots = std::iter::repeat_with(slot).take(depth.into()).collect();
        Slots { slots, sharing: Sharing::default(), spin }
    }

    /// Returns a slot without a run.
    pub(super) fn free(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.run.is_none())
    }

    /// Returns the slot of a run.
    pub(super) fn of(&self, run: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.run == Some(run))
    }

    /// Posts `input` for `run` in `slot`, which is free.
    pub(super) fn begin(
        &mut self,
        lane: &mut Lane,
        (slot, run): (usize, u64),
        input: &[u8],
    ) -> rdmalib::Result<()> {
        let state = &mut self.slots[slot];
        state.uses = state.uses.wrapping_add(1);
        let to = SlotUse { slot: slot as u16, run: state.uses }; // a depth has 16 bits
        let start = lane.input.start(to.slot) as usize;
        lane.inputs.write(start, input)?;
        for source in &lane.sources {
            let payload = lane.inputs.slice(start..start + input.len())?;
            lane.to_workers[*source].send_slice(to, payload)?;
        }
        state.run = Some(run);
        state.since = Some(Instant::now());
        state.there.fill(None);
        state.failed = None;
        Ok(())
    }

    /// Returns whether all outputs of a slot's run are there.
    pub(super) fn is_over(&self, slot: usize) -> bool {
        self.slots[slot].there.iter().all(Option::is_some)
    }

    /// Takes the outputs of a run that is over, which frees its slot.
    pub(super) fn take(&mut self, lane: &Lane, slot: usize) -> Result<Vec<Vec<u8>>, RunFailure> {
        let state = &mut self.slots[slot];
        state.run = None;
        if let Some(failure) = state.failed.take() {
            return Err(failure);
        }
        let sizes = state.there.iter().map(|bytes| bytes.unwrap_or(0) as usize);
        let outputs = lane.outputs.iter().zip(sizes).map(|(edge, bytes)| {
            let mut output = vec![0; bytes];
            edge.copy(slot as u16, 0, &mut output).expect("its size was checked when it came");
            output
        });
        Ok(outputs.collect())
    }

    /// Returns the runs that have a slot, and those.
    pub(super) fn runs(&self) -> Vec<(u64, usize)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, state)| Some((state.run?, slot))).collect()
    }

    /// Frees a slot without its outputs: the lane is no more.
    pub(super) fn forget(&mut self, slot: usize) {
        self.slots[slot].run = None;
    }

    /// Waits until the run in `slot` is over, for `limit` from its begin. Notes what comes of others.
    pub(super) fn wait(
        &mut self,
        lane: &mut Lane,
        slot: usize,
        limit: Duration,
    ) -> Result<(), LaneLost> {
        let mut backoff = Backoff::new(self.spin, Awaited::Result);
        let deadline = self.slots[slot].since.and_then(|since| since.checked_add(limit));
        let mut batch = [WorkCompletion::default(); BATCH];
        while !self.is_over(slot) {
            let early = self.sharing.is_likely();
            let taken = lane.arrivals.poll(&mut batch);
            if taken > 0 {
                backoff.fruitful(early, &mut self.sharing);
                batch[..taken].iter().try_for_each(|done| self.arrived(lane, done))?;
                continue;
            }
            match backoff.fruitless(early) {
                Pause::Spin => {
                    lane.arrivals.stay_awake();
                    std::hint::spin_loop();
                }
                Pause::Yield => std::thread::yield_now(),
                Pause::Look => {
                    let now = Instant::now();
                    if deadline.is_some_and(|deadline| now >= deadline) {
                        return Err(LaneLost::TimeLimit(limit));
                    }
                    lane.check(LeaseCore::noted_cause)?;
                    if backoff.looked(now) {
                        backoff.about_to_sleep();
                        let left = deadline.map_or(LONGEST_SLEEP, |at| at - now);
                        lane.arrivals.wait(Some(left.min(LONGEST_SLEEP))).map_err(lost_here)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes what has arrived by now, of a lane that is lost: what is wrong is of no interest any more.
    pub(super) fn drain(&mut self, lane: &mut Lane) {
        while let Some(done) = lane.arrivals.poll_one() {
            if matches!(EdgeEnd::of(done.id), EdgeEnd::In(_)) && done.status == Status::Success {
                let _ = self.arrived(lane, &done);
            }
        }
    }

    /// Notes what has arrived.
    fn arrived(&mut self, lane: &mut Lane, done: &WorkCompletion) -> Result<(), LaneLost> {
        let output = match EdgeEnd::of(done.id) {
            EdgeEnd::Out(_) => return Err(lane.why_lost("a worker ended its connection")),
            EdgeEnd::In(output) => output,
        };
        let Some(edge) = lane.outputs.get(output) else { return Ok(()) }; // there is no such edge
        let breach = LaneLost::Worker;
        let Some(arrival) = edge.read(done).map_err(breach)? else {
            return Err(lane.why_lost("a worker ended its connection"));
        };
        let state = self.slots.get_mut(usize::from(arrival.slot));
        let state = state.filter(|state| state.run.is_some() && state.uses == arrival.run);
        let state = state.ok_or_else(|| breach("it wrote an output that is not waited for"))?;
        if state.there[output].replace(arrival.bytes).is_some() {
            return Err(breach("it wrote an output twice"));
        }
        if arrival.status == EdgeStatus::Failed {
            let failure = edge.failure(arrival.slot).map_err(lost_here)?;
            let failure = run_failure(&failure, lane.members.len()).map_err(breach)?;
            state.failed.get_or_insert(failure);
        }
        lane.outputs[output].repost().map_err(lost_here)?;
        Ok(())
    }
}

/// Reads why a run has failed.
fn run_failure(failure: &EdgeFailure, functions: usize) -> Result<RunFailure, &'static str> {
    let because = FailedBecause::from_wire(failure.because);
    if because != Ok(FailedBecause::OutputTooLarge) {
        return Err("it failed for no reason there is");
    }
    let function = usize::from(failure.function.get());
    if function >= functions {
        return Err("it failed in a function that is not in the graph");
    }
    Ok(RunFailure { function, bytes: (failure.returned.get(), failure.most.get()) })
}

fn lost_here(error: rdmalib::Error) -> LaneLost {
    tracing::error!(%error, "the device of this machine fails a graph");
    LaneLost::Worker("the device of this machine refused a request")
}

impl Lane {
    /// Fails if an executor or its lease is over, of which `known` tells.
    fn check(&self, known: fn(&LeaseCore) -> Option<Cause>) -> Result<(), LaneLost> {
        let known = self.members.iter().map(|member| known(&member.lease));
        match known.enumerate().find_map(|(function, cause)| Some((function, cause?))) {
            Some((function, cause)) => Err(LaneLost::Ended(function, cause)),
            None => Ok(()),
        }
    }

    /// Returns why a worker is gone: what its manager says, or else `otherwise`.
    pub(super) fn why_lost(&self, otherwise: &'static str) -> LaneLost {
        let deadline = Instant::now() + CAUSE_WITHIN;
        loop {
            if let Err(lost) = self.check(LeaseCore::ask_cause) {
                return lost;
            }
            if Instant::now() >= deadline {
                return LaneLost::Worker(otherwise);
            }
            std::thread::sleep(NAP);
        }
    }
}
