//! The slots of a lane, and the runs that are under way there.
//!
//! The client owns the slots of all edges: a run has the same slot on each. When all outputs of it are there, all
//! workers are done with it, since each has written before what it reads is written again.

use std::time::{Duration, Instant};

use rdmalib::{Status, WorkCompletion};
use rfaas_call::edge::{EdgeAt, LinkEnd, SlotUse};
use rfaas_call::{Awaited, Backoff, Pause, Sharing, Spin};
use rfaas_protocol::edge::{
    EdgeFailure, EdgeStatus, FailedBecause, MAX_NOTES, OutputKind, TRACE_BYTES, TraceNote,
    TraceRecord,
};
use zerocopy::FromBytes;

use super::layout::Layout;
use super::workers::{Loss, Member, Workers, lost_here};
use crate::lease_core::LeaseCore;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Bytes of what a worker tells.
const TRACE: usize = size_of::<TraceRecord>();
/// Longest sleep, after which limits are looked at again.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Why a run has failed, by itself: the lane lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunFailure {
    /// Number of the function.
    pub(super) function: usize,
    /// Which of the workers of that it was, and which member of the lane.
    pub(super) worker: usize,
    pub(super) member: usize,
    pub(super) because: FailedBecause,
    /// Bytes that it returned, and that fit; or its code; or how many inputs had a value, and how many it waits for.
    pub(super) detail: (u32, u32),
}

/// A run as it goes into a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// Its number.
    pub(super) run: u64,
    /// When it was submitted first.
    pub(super) since: Instant,
    /// How often before.
    pub(super) tries: u32,
}

/// A run that is in a slot.
struct Under {
    begun: Begun,
    input: usize,
    /// Nobody will fetch it: it was fetched, or given up.
    abandoned: bool,
    /// Outputs that are not there yet.
    missing: usize,
    /// Workers that may still do something for it, though all outputs are there.
    owed: usize,
    failed: Option<RunFailure>,
}

/// A slot, and its run if one is under way or not fetched yet.
struct SlotState {
    run: Option<Under>,
    /// Low byte that its payloads have: another one at each use.
    uses: u8,
    /// Bytes of the outputs that are there; then, what workers have told that are done.
    there: Vec<Option<u32>>,
}

/// What becomes of a run whose lane is lost.
pub(super) enum Left {
    /// It had ended.
    Over(Result<Vec<Vec<u8>>, RunFailure>),
    /// It was under way; whether it was past its limit, and its input.
    Cut { overdue: bool, input: Vec<u8> },
}

/// The slots of a lane.
pub(super) struct Slots {
    slots: Vec<SlotState>,
    /// How many of what comes are outputs.
    outputs: usize,
    /// How many have a run; how many of those are over and to be fetched.
    taken: usize,
    over: usize,
    /// How many runs nobody will fetch.
    abandoned: usize,
    sharing: Sharing,
    spin: Spin,
    limit: Duration,
}

impl Slots {
    /// Makes `depth` slots of runs of a graph that is laid out so, which take `limit` at most.
    pub(super) fn new(depth: u16, layout: &Layout, spin: Spin, limit: Duration) -> Self {
        let told = layout.ends.iter().filter(|end| end.kind != OutputKind::Trace).count();
        let slot = || SlotState { run: None, uses: 0, there: vec![None; told] };
        let slots = std::iter::repeat_with(slot).take(depth.into()).collect();
        let (outputs, sharing) = (layout.outputs, Sharing::default());
        Slots { slots, outputs, taken: 0, over: 0, abandoned: 0, sharing, spin, limit }
    }

    /// Returns how many slots have no run.
    pub(super) fn free(&self) -> usize {
        self.slots.len() - self.taken
    }

    /// Returns how many runs are to be fetched.
    pub(super) fn unfetched(&self) -> usize {
        self.taken - self.abandoned
    }

    /// Returns how many runs are under way that nobody will fetch.
    pub(super) fn abandoned(&self) -> usize {
        self.abandoned
    }

    /// Returns the slot of a run, which may be this `likely` one.
    pub(super) fn find(&self, run: u64, likely: usize) -> Option<usize> {
        let has = |slot: &SlotState| {
            slot.run.as_ref().is_some_and(|under| under.begun.run == run && !under.abandoned)
        };
        if self.slots.get(likely).is_some_and(has) {
            return Some(likely);
        }
        self.slots.iter().position(has)
    }

    /// Returns the run that is over and was submitted first, and its slot.
    pub(super) fn first_over(&self) -> Option<(u64, usize)> {
        if self.over == 0 {
            return None;
        }
        let over = self.slots.iter().enumerate().filter_map(|(slot, state)| {
            let under =
                state.run.as_ref().filter(|under| under.missing == 0 && !under.abandoned)?;
            Some((under.begun.run, slot))
        });
        over.min()
    }

    /// Writes `input` to the workers, for a run in a slot, of which one is free. Returns that.
    pub(super) fn begin(
        &mut self,
        workers: &mut Workers,
        begun: Begun,
        input: &[u8],
    ) -> Result<usize, Loss> {
        let free = self.slots.iter().position(|slot| slot.run.is_none());
        let slot = free.expect("the caller has looked");
        let state = &mut self.slots[slot];
        state.uses = state.uses.wrapping_add(1);
        let to = SlotUse { slot: slot as u16, run: state.uses }; // a depth has 16 bits
        let start = workers.input.start(to.slot) as usize;
        workers.inputs.write(start, input).map_err(lost_here)?;
        for EdgeAt { link, edge } in &workers.ends[state.there.len()..] {
            // The trace that it has is of another run.
            workers.outputs[*link].write(*edge, to.slot, &[0; TRACE]).map_err(lost_here)?;
        }
        for source in &workers.sources {
            let payload = workers.inputs.slice(start..start + input.len()).map_err(lost_here)?;
            if let Err(error) = workers.to_workers[*source].send_slice(0, to, payload) {
                tracing::debug!(%error, "a run could not begin");
                return Err(workers.why_lost(*source, "it takes no input"));
            }
        }
        let (missing, owed) = (self.outputs, state.there.len() - self.outputs);
        let input = input.len();
        state.run = Some(Under { begun, input, abandoned: false, missing, owed, failed: None });
        state.there.fill(None);
        self.taken += 1;
        Ok(slot)
    }

    /// Returns whether all outputs of a slot's run are there.
    pub(super) fn is_over(&self, slot: usize) -> bool {
        self.slots[slot].run.as_ref().is_none_or(|under| under.missing == 0)
    }

    /// Takes the outputs of a run that is over, which frees its slot, once all workers are done with it.
    pub(super) fn take(
        &mut self,
        workers: &Workers,
        slot: usize,
    ) -> Result<Vec<Vec<u8>>, RunFailure> {
        let failed = self.slots[slot].run.as_ref().and_then(|under| under.failed);
        let sizes = self.slots[slot].there.iter().map(|bytes| bytes.unwrap_or(0) as usize);
        let outputs = workers.ends.iter().take(self.outputs).zip(sizes);
        let copy = outputs.map(|(EdgeAt { link, edge }, bytes)| {
            let mut output = vec![0; bytes];
            let copied = workers.outputs[*link].copy(*edge, slot as u16, 0, &mut output);
            copied.expect("its size was checked when it came");
            output
        });
        let taken = match failed {
            Some(failure) => Err(failure),
            None => Ok(copy.collect()),
        };
        self.abandon(slot);
        taken
    }

    /// Reads what a worker has told of the run in `slot`, if it has, and what was noted: `end` says where.
    pub(super) fn trace(
        &self,
        workers: &Workers,
        slot: usize,
        end: usize,
    ) -> Option<(TraceRecord, Vec<TraceNote>)> {
        let mut bytes = [0; TRACE];
        let EdgeAt { link, edge } = *workers.ends.get(end)?;
        workers.outputs[link].copy(edge, slot as u16, 0, &mut bytes).ok()?;
        let record = TraceRecord::read_from_bytes(&bytes).ok()?;
        if record.begin_ns.get() == 0 || record.run != self.slots[slot].uses {
            return None;
        }
        // They were written before.
        let mut bytes = [0; TRACE_BYTES - TRACE];
        workers.outputs[link].copy(edge, slot as u16, TRACE, &mut bytes).ok()?;
        let notes = <[TraceNote; MAX_NOTES]>::read_from_bytes(&bytes).ok()?;
        let count = usize::from(record.notes.get()).min(MAX_NOTES);
        Some((record, notes[..count].to_vec()))
    }

    /// Nobody will fetch the run in `slot`, which is free once all workers are done with that.
    pub(super) fn abandon(&mut self, slot: usize) {
        let Some(under) = &mut self.slots[slot].run else { return };
        if !under.abandoned {
            under.abandoned = true;
            self.abandoned += 1;
            self.over -= usize::from(under.missing == 0);
        }
        self.clear_if_done(slot);
    }

    /// Frees a slot that nobody needs any more.
    fn clear_if_done(&mut self, slot: usize) {
        let done = |under: &Under| under.abandoned && under.missing == 0 && under.owed == 0;
        if self.slots[slot].run.as_ref().is_some_and(done) {
            self.clear(slot);
        }
    }

    /// Frees a slot.
    fn clear(&mut self, slot: usize) {
        let Some(under) = self.slots[slot].run.take() else { return };
        self.taken -= 1;
        match under.abandoned {
            true => self.abandoned -= 1,
            false => self.over -= usize::from(under.missing == 0),
        }
    }

    /// Empties all slots of a lane that is lost. Returns the runs that somebody will fetch.
    pub(super) fn empty(&mut self, workers: &mut Workers) -> Vec<(Begun, Left)> {
        self.drain(workers);
        let now = Instant::now();
        let mut runs = Vec::new();
        for slot in 0..self.slots.len() {
            let Some(Under { begun, input, abandoned, .. }) = self.slots[slot].run else {
                continue;
            };
            let left = if self.is_over(slot) {
                let over = self.take(workers, slot);
                self.clear(slot); // workers that were to be done with it are gone
                Left::Over(over)
            } else {
                self.clear(slot);
                let mut copy = vec![0; input];
                let start = workers.input.start(slot as u16) as usize;
                workers.inputs.read(start, &mut copy).expect("it was written there");
                Left::Cut { overdue: now >= begun.deadline(self.limit), input: copy }
            };
            if !abandoned {
                runs.push((begun, left));
            }
        }
        runs
    }

    /// Fails if a run is under way for longer than it may.
    fn check_limits(&self, now: Instant) -> Result<(), Loss> {
        match self.first_deadline().is_some_and(|deadline| now >= deadline) {
            true => Err(Loss::TimeLimit(self.limit)),
            false => Ok(()),
        }
    }

    /// Returns when the first of the runs that are under way is to be over.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        let under_way = self.slots.iter().filter_map(|slot| slot.run.as_ref());
        let under_way = under_way.filter(|under| under.missing > 0 || under.owed > 0);
        under_way.map(|under| under.begun.deadline(self.limit)).min()
    }

    /// Notes what has arrived. Never waits. Returns whether there was something.
    pub(super) fn poll(&mut self, workers: &mut Workers) -> Result<bool, Loss> {
        let mut batch = [WorkCompletion::default(); BATCH];
        let taken = workers.arrivals.poll(&mut batch);
        self.arrived_all(workers, &batch[..taken])?;
        Ok(taken > 0)
    }

    /// Fails if a run takes too long, or an executor or its lease is known to be over.
    pub(super) fn check(&self, workers: &Workers, now: Instant) -> Result<(), Loss> {
        self.check_limits(now)?;
        workers.check(LeaseCore::noted_cause)
    }

    /// Waits until the run in `slot` is over, or some time at most; returns whether it is. Notes what comes of others.
    pub(super) fn wait(
        &mut self,
        workers: &mut Workers,
        slot: usize,
        until: Option<Instant>,
    ) -> Result<bool, Loss> {
        let mut backoff = Backoff::new(self.spin, Awaited::Result);
        let mut batch = [WorkCompletion::default(); BATCH];
        while !self.is_over(slot) {
            let early = self.sharing.is_likely();
            let taken = workers.arrivals.poll(&mut batch);
            if taken > 0 {
                backoff.fruitful(early, &mut self.sharing);
                self.arrived_all(workers, &batch[..taken])?;
                continue;
            }
            match backoff.fruitless(early) {
                Pause::Spin => {
                    workers.arrivals.stay_awake();
                    std::hint::spin_loop();
                }
                Pause::Yield => std::thread::yield_now(),
                Pause::Look => {
                    let now = Instant::now();
                    self.check(workers, now)?;
                    if until.is_some_and(|until| now >= until) {
                        return Ok(false);
                    }
                    if backoff.looked(now) {
                        backoff.about_to_sleep();
                        let next = self.first_deadline().into_iter().chain(until).min();
                        let left = next.map_or(LONGEST_SLEEP, |at| at - now);
                        workers.arrivals.wait(Some(left.min(LONGEST_SLEEP))).map_err(lost_here)?;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Notes what has arrived by now, of a lane that is lost.
    fn drain(&mut self, workers: &mut Workers) {
        while let Some(done) = workers.arrivals.poll_one() {
            self.arrived_late(workers, &done);
        }
    }

    /// Notes what has arrived at a time: also what came behind the end of a worker.
    #[inline]
    fn arrived_all(&mut self, workers: &mut Workers, batch: &[WorkCompletion]) -> Result<(), Loss> {
        let mut batch = batch.iter();
        let arrived = batch.try_for_each(|done| self.arrived(workers, done));
        batch.for_each(|done| self.arrived_late(workers, done)); // none, unless the lane is lost
        arrived
    }

    /// Notes an output of a lane that is lost: what is wrong with it is of no interest any more.
    fn arrived_late(&mut self, workers: &mut Workers, done: &WorkCompletion) {
        if matches!(LinkEnd::of(done.id), LinkEnd::In(_)) && done.status == Status::Success {
            let _ = self.arrived(workers, done);
        }
    }

    /// Notes what has arrived.
    fn arrived(&mut self, workers: &mut Workers, done: &WorkCompletion) -> Result<(), Loss> {
        const GONE: &str = "it ended its connection";
        let number = match LinkEnd::of(done.id) {
            LinkEnd::Out(member) => return Err(workers.why_lost(member, GONE)),
            LinkEnd::In(link) => link,
        };
        let Some(link) = workers.outputs.get(number) else { return Ok(()) }; // there is no such link
        let from = workers.from[number];
        let breach = |reason| Loss::Worker(from, reason);
        let Some(arrival) = link.read(done).map_err(breach)? else {
            return Err(workers.why_lost(from, GONE));
        };
        let output = arrival.edge;
        let state = self.slots.get_mut(usize::from(arrival.slot));
        let state = state.filter(|state| state.uses == arrival.run);
        let state = state.and_then(|state| Some((state.run.as_mut()?, &mut state.there)));
        let (run, there) =
            state.ok_or_else(|| breach("it wrote an output that is not waited for"))?;
        match there.get(output) {
            Some(None) => {}
            Some(Some(_)) => return Err(breach("it wrote an output twice")),
            None => return Err(breach("it says that a trace is an output")),
        }
        if arrival.status == EdgeStatus::Failed {
            let edge = workers.ends[output].edge;
            let failure = link.failure(edge, arrival.slot).map_err(lost_here)?;
            let failure = run_failure(&failure, &workers.members).map_err(breach)?;
            run.failed.get_or_insert(failure);
        }
        there[output] = Some(arrival.bytes);
        match output < self.outputs {
            true => {
                run.missing -= 1;
                self.over += usize::from(run.missing == 0 && !run.abandoned);
            }
            false => run.owed -= 1,
        }
        self.clear_if_done(arrival.slot.into());
        workers.outputs[number].repost().map_err(lost_here)?;
        Ok(())
    }
}

impl Begun {
    /// Returns when it is to be over that may take `limit`.
    pub(super) fn deadline(&self, limit: Duration) -> Instant {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        self.since + limit.min(CENTURY)
    }
}

/// Reads why a run has failed.
fn run_failure(failure: &EdgeFailure, members: &[Member]) -> Result<RunFailure, &'static str> {
    let because = FailedBecause::from_wire(failure.because);
    let because = because.map_err(|_| "it failed for no reason there is")?;
    let function = usize::from(failure.function.get());
    let worker = usize::from(failure.member.get());
    let is_it = |member: &Member| member.worker == worker && member.functions.contains(&function);
    let member = members.iter().position(is_it);
    let member = member.ok_or("it failed in a function that is not in the graph")?;
    let detail = (failure.returned.get(), failure.most.get());
    Ok(RunFailure { function, worker, member, because, detail })
}
