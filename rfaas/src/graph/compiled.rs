//! A graph that runs.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::Notify;
use rfaas_call::{Awaited, Backoff, Pause, Sharing};
use rfaas_protocol::node::Bill;

use super::compile::{libraries, start_lanes};
use super::description::Graph;
use super::lane::{Lane, Plan};
use super::layout::lay_out;
use super::listed::Listed;
use super::map::Map;
use super::outcome::{Ended, Lost, RunEnd};
use super::slots::{Begun, LONGEST_SLEEP, Left};
use super::trace::Trace;
use super::workers::Loss;
use crate::buffer::Origin;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::grantor::Grantor;
use crate::session::sleep_on;

/// How often a run of an idempotent graph is submitted, the first time included.
const MOST_TRIES: u32 = 3;
/// Pause between two looks at lanes that start, which ring no bell.
const NAP: Duration = Duration::from_millis(1);

/// How long a worker's word of what it did may be behind its output.
const TRACE_WITHIN: Duration = Duration::from_millis(10);
/// Pause between two looks for it, which rings no bell.
const TRACE_NAP: Duration = Duration::from_micros(50);

/// A run of a graph that was submitted. Its outputs are fetched once ([`CompiledGraph::wait`]).
#[derive(Clone, Copy, Debug)]
pub struct Run {
    graph: Origin,
    number: u64,
    /// Lane and slot that it has, unless it was submitted again.
    likely: (u16, u16),
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        (self.graph, self.number) == (other.graph, other.number)
    }
}

impl Eq for Run {}

impl Hash for Run {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

/// A [`Graph`] whose executors run, each on a lease of its own. Dropping it gives the leases back.
///
/// As many runs may be under way, or not be fetched yet, as all [lanes](Graph::lanes) together have
/// [slots](Deployment::slots): its [`width`](Self::width). They are for one thread at a time (`&mut self`).
///
/// When an executor or a lease of a lane has ended, or a run took longer than
/// [`invocation_timeout`](Deployment::invocation_timeout), all connections of the lane are dropped, and the runs that
/// are under way there fail with the reason. A thread starts its executors again, on the same leases as far as those
/// live. The other lanes go on meanwhile. Only if there is none does [`submit`](Self::submit) wait for that thread.
///
/// ```no_run
/// # fn example(client: &rfaas::Client, graph: &mut rfaas::Graph, images: &[Vec<u8>]) -> rfaas::Result<()> {
/// use rfaas::Lanes;
///
/// graph.lanes(Lanes::up_to(2)).idempotent(true);
/// let mut graph = client.compile(graph)?;
/// for outputs in graph.map(images) {
///     println!("{} bytes", outputs?[0].len());
/// }
/// # Ok(())
/// # }
/// ```
pub struct CompiledGraph {
    lanes: Vec<Lane>,
    plan: Arc<Plan>,
    origin: Origin,
    last_run: u64,
    /// Runs that are over and have no slot any more, and were not fetched.
    ended: BTreeMap<u64, Ended>,
    /// Runs that have lost their lane and wait for another one, in order.
    again: VecDeque<Again>,
    sharing: Sharing,
}

/// A run that is to be submitted again.
struct Again {
    begun: Begun,
    input: Vec<u8>,
    /// What it has lost.
    lost: Arc<Lost>,
}

impl fmt::Debug for CompiledGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = &self.plan.graph.functions;
        let functions: Vec<_> = functions.iter().map(|function| &function.name).collect();
        let mut out = f.debug_struct("CompiledGraph");
        out.field("functions", &functions).field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl CompiledGraph {
    pub(crate) fn compile(
        grantor: &Arc<Grantor>,
        graph: &Graph,
        deployment: &Deployment,
    ) -> Result<CompiledGraph> {
        grantor.check_process()?;
        deployment.validate()?;
        let layout = lay_out(graph)?;
        let plan = Arc::new(Plan {
            graph: graph.clone(),
            libraries: libraries(grantor, graph, &layout)?,
            layout,
            deployment: deployment.clone(),
            grantor: grantor.clone(),
            listed: Listed::new(graph),
            domain: grantor.spares.domain(&grantor.device)?,
            dropped: AtomicBool::new(false),
        });
        let lanes = start_lanes(&plan)?;
        Ok(CompiledGraph {
            lanes,
            plan,
            origin: Origin::generate(),
            last_run: 0,
            ended: BTreeMap::new(),
            again: VecDeque::new(),
            sharing: Sharing::default(),
        })
    }

    /// Returns the name of the node of each worker, in the order in which functions were added; those of one lane after
    /// those of another.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.lanes.iter().flat_map(|lane| &lane.leases).map(|lease| lease.node())
    }

    /// Returns its number in the list of graphs that the resource manager has (`GET /graphs`), drawn when it was
    /// compiled.
    pub fn id(&self) -> u64 {
        self.plan.listed.id()
    }

    /// Returns how many lanes it has: with [`Lanes::up_to`](crate::Lanes::up_to), as many as there was room for.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Returns how many runs may be under way or not be fetched yet: the slots of all lanes.
    pub fn width(&self) -> usize {
        self.lanes.len() * usize::from(self.plan.deployment.slots)
    }

    /// Begins a run with a copy of `input`, on the lane that has most room.
    ///
    /// # Errors
    /// [`Error::AllSlotsBusy`]: fetch a run first. [`Error::InputTooLarge`]. Where no lane is left and none can be
    /// started again, what [`Client::compile`](crate::Client::compile) returns; the next call tries again. Where a lane
    /// is lost while it is given the input, what [`wait`](Self::wait) returns then.
    pub fn submit(&mut self, input: &[u8]) -> Result<Run> {
        self.plan.grantor.check_process()?;
        let most = self.plan.graph.input_bytes();
        if input.len() > most {
            return Err(Error::InputTooLarge { bytes: input.len(), max: most });
        }
        if self.unfetched() >= self.width() {
            return Err(Error::AllSlotsBusy);
        }
        self.last_run += 1;
        let mut begun = Begun { run: self.last_run, since: Instant::now(), tries: 1 };
        loop {
            let number = match self.roomiest() {
                Some(number) if self.is_well() => number,
                _ => self.room()?,
            };
            let Some((slots, workers)) = self.lanes[number].ready() else { continue };
            // What has ended before costs no run.
            if let Err(loss) = slots.poll(workers) {
                self.lose(number, loss);
                continue;
            }
            match slots.begin(workers, begun, input) {
                Ok(slot) => {
                    let likely = (number as u16, slot as u16); // both are few
                    return Ok(Run { graph: self.origin, number: begun.run, likely });
                }
                Err(loss) => {
                    let lost = self.lose(number, loss);
                    if !self.plan.graph.idempotent || begun.tries >= MOST_TRIES {
                        return Err(lost.to_error());
                    }
                    begun.tries += 1;
                }
            }
        }
    }

    /// Waits until `run` is over. Returns its outputs, in the order of [`Graph::output`].
    ///
    /// # Errors
    /// * [`Error::GraphFailed`]: a function returned too much, or its executor or lease has ended, or its worker broke
    ///   the protocol ([`Error::WorkerLost`] is the source then).
    /// * [`Error::TimeLimit`]: it took longer than [`Deployment::invocation_timeout`]. [`Error::WorkerLost`]: another
    ///   run of the lane did.
    /// * [`Error::Foreign`]: it was fetched before, or is of another graph.
    pub fn wait(&mut self, run: Run) -> Result<Vec<Vec<u8>>> {
        let over = self.wait_until_over(run);
        self.finish(run, over)
    }

    /// Waits until `run` is over, for `timeout` at most. Returns what [`wait`](Self::wait) returns, or `None` if it is
    /// not over: then it goes on, and can be waited for again. What limits a run is
    /// [`invocation_timeout`](Deployment::invocation_timeout).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn example(graph: &mut rfaas::CompiledGraph) -> rfaas::Result<()> {
    /// let run = graph.submit(b"input")?;
    /// let outputs = loop {
    ///     match graph.wait_timeout(run, Duration::from_millis(100)) {
    ///         Some(outputs) => break outputs?,
    ///         None => println!("still running"),
    ///     }
    /// };
    /// # drop(outputs);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_timeout(&mut self, run: Run, timeout: Duration) -> Option<Result<Vec<Vec<u8>>>> {
        // Without a limit, if it is after all that an `Instant` can be.
        let over = self.wait_until(run, Instant::now().checked_add(timeout)).transpose()?;
        Some(self.finish(run, over))
    }

    /// Waits until `run` is over, and returns its lane and slot, if it still has one.
    fn wait_until_over(&mut self, run: Run) -> Result<Option<(usize, usize)>> {
        self.wait_until(run, None).map(Option::flatten)
    }

    /// Does the same until some time at most. Returns `None` if the run is not over then.
    fn wait_until(
        &mut self,
        run: Run,
        until: Option<Instant>,
    ) -> Result<Option<Option<(usize, usize)>>> {
        self.plan.grantor.check_process()?;
        loop {
            self.attend(false);
            if let Some((number, slot)) = self.find(run) {
                let Some((slots, workers)) = self.lanes[number].ready() else { continue };
                match slots.wait(workers, slot, until) {
                    Ok(true) => return Ok(Some(Some((number, slot)))),
                    Ok(false) => return Ok(None),
                    Err(loss) => {
                        self.lose(number, loss);
                    }
                }
            } else if self.waits_for_lane(run) {
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(None);
                }
                self.look();
                self.rest();
            } else {
                return Ok(Some(None));
            }
        }
    }

    /// Takes the outputs of a run that is over.
    fn finish(&mut self, run: Run, over: Result<Option<(usize, usize)>>) -> Result<Vec<Vec<u8>>> {
        match over? {
            Some((number, slot)) => self.take(number, slot),
            None => self.fetch_ended(run).unwrap_or(Err(Error::Foreign("run"))),
        }
    }

    /// Does the same, and returns what was done in the run: of a graph that is [traced](Graph::traced). What a worker
    /// tells is on its way when its output is; a trace that is incomplete 10 ms later says what is missing.
    pub fn wait_traced(&mut self, run: Run) -> (Result<Vec<Vec<u8>>>, Trace) {
        let over = self.wait_until_over(run);
        let trace = match over {
            Ok(Some((number, slot))) => self.trace(number, slot),
            _ => Trace::of(&self.plan.graph, &self.plan.layout, |_, _| None, |_| String::new()),
        };
        (self.finish(run, over), trace)
    }

    /// Returns what workers have told of a run that is over.
    fn trace(&self, number: usize, slot: usize) -> Trace {
        let lane = &self.lanes[number];
        let deadline = Instant::now() + TRACE_WITHIN;
        loop {
            let trace = Trace::of(
                &self.plan.graph,
                &self.plan.layout,
                |_, part| lane.slots.trace(lane.workers()?, slot, part.trace()?),
                |worker| {
                    lane.leases.get(worker).map_or_else(String::new, |lease| lease.node().into())
                },
            );
            if trace.is_complete() || Instant::now() >= deadline {
                return trace;
            }
            thread::sleep(TRACE_NAP);
        }
    }

    /// Returns what [`wait`](Self::wait) does if `run` is over, else `None`. It waits for no run.
    ///
    /// ```no_run
    /// # fn example(graph: &mut rfaas::CompiledGraph) -> rfaas::Result<()> {
    /// let run = graph.submit(b"input")?;
    /// let outputs = loop {
    ///     match graph.poll(run) {
    ///         Some(outputs) => break outputs?,
    ///         None => std::thread::yield_now(), // or something useful
    ///     }
    /// };
    /// # drop(outputs);
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll(&mut self, run: Run) -> Option<Result<Vec<Vec<u8>>>> {
        if let Err(error) = self.plan.grantor.check_process() {
            return Some(Err(error));
        }
        self.attend(false);
        if let Some((number, _)) = self.find(run) {
            self.look_at(number);
        }
        match self.find(run) {
            Some((number, slot)) if self.lanes[number].slots.is_over(slot) => {
                Some(self.take(number, slot))
            }
            Some(_) => None,
            None => self.fetch_ended(run),
        }
    }

    /// Waits until any run is over, and returns it with what [`wait`](Self::wait) returns; of several, the one that was
    /// submitted first. `None` if all were fetched.
    ///
    /// ```no_run
    /// # fn example(graph: &mut rfaas::CompiledGraph, inputs: &[Vec<u8>]) -> rfaas::Result<()> {
    /// for input in inputs {
    ///     graph.submit(input)?; // not more than `graph.width()`
    /// }
    /// while let Some((_run, outputs)) = graph.wait_any() {
    ///     println!("{} bytes", outputs?[0].len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_any(&mut self) -> Option<(Run, Result<Vec<Vec<u8>>>)> {
        if let Err(error) = self.plan.grantor.check_process() {
            self.last_run.checked_sub(1)?;
            self.last_run = 0; // once, so that loops end
            return Some((self.numbered(0), Err(error)));
        }
        let mut backoff = Backoff::new(self.plan.deployment.spin, Awaited::Result);
        loop {
            self.attend(false);
            let over = self.first_over();
            let ended = self.ended.first_key_value().map(|(run, _)| *run);
            if let Some((number, run, slot)) = over
                && ended.is_none_or(|ended| run < ended)
            {
                return Some((self.numbered(run), self.take(number, slot)));
            }
            if let Some((run, ended)) = self.ended.pop_first() {
                return Some((self.numbered(run), self.outcome(ended)));
            }
            if self.unfetched() == 0 {
                return None;
            }
            let early = self.sharing.is_likely();
            if self.poll_all() {
                backoff.fruitful(early, &mut self.sharing);
                continue;
            }
            match backoff.fruitless(early) {
                Pause::Spin => std::hint::spin_loop(),
                Pause::Yield => thread::yield_now(),
                Pause::Look => {
                    self.look();
                    if backoff.looked(Instant::now()) {
                        backoff.about_to_sleep();
                        self.rest();
                    }
                }
            }
        }
    }

    /// Runs the graph once with `input`, and waits for its outputs.
    pub fn run(&mut self, input: &[u8]) -> Result<Vec<Vec<u8>>> {
        let run = self.submit(input)?;
        self.wait(run)
    }

    /// Runs the graph once with each of `inputs`, as many at a time as there is [room](Self::width) for. Returns their
    /// outputs in the same order. Inputs are taken as room comes. An error is that of one run: the others go on.
    ///
    /// ```no_run
    /// # fn example(graph: &mut rfaas::CompiledGraph) -> rfaas::Result<()> {
    /// let inputs = (0..1000u32).map(u32::to_le_bytes);
    /// let sum: usize = graph.map(inputs).map(|outputs| outputs.map_or(0, |o| o[0].len())).sum();
    /// # drop(sum);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<I>(&mut self, inputs: I) -> Map<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        Map::new(self, inputs.into_iter())
    }

    /// Gives all leases back and waits for their bills, in the order of [`nodes`](Self::nodes). All are given back also
    /// if a bill does not come: then it is the first error.
    pub fn release(mut self) -> Result<Vec<Bill>> {
        self.plan.grantor.check_process()?;
        self.plan.dropped.store(true, Ordering::Relaxed);
        self.lanes.iter_mut().for_each(Lane::stop);
        let leases = self.lanes.iter().flat_map(|lane| &lane.leases);
        let bills: Vec<_> = leases.map(|lease| lease.release()).collect();
        let bills = bills.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(bills.into_iter().flatten().collect())
    }

    /// Nobody will fetch `run`.
    pub(super) fn abandon(&mut self, run: Run) {
        if let Some((number, slot)) = self.find(run) {
            self.lanes[number].slots.abandon(slot);
        }
        self.ended.remove(&run.number);
        self.again.retain(|again| again.begun.run != run.number);
    }

    fn numbered(&self, number: u64) -> Run {
        Run { graph: self.origin, number, likely: (0, 0) }
    }

    /// Returns how many runs were not fetched.
    fn unfetched(&self) -> usize {
        let in_slots: usize = self.lanes.iter().map(|lane| lane.slots.unfetched()).sum();
        in_slots + self.ended.len() + self.again.len()
    }

    /// Returns whether all lanes are ready and no run waits for one.
    fn is_well(&self) -> bool {
        self.again.is_empty() && self.lanes.iter().all(Lane::is_ready)
    }

    /// Returns the number of the lane that has most room, if one has.
    fn roomiest(&self) -> Option<usize> {
        let lanes = self.lanes.iter().enumerate().rev(); // of several, the first
        let ready = lanes.filter(|(_, lane)| lane.is_ready() && lane.slots.free() > 0);
        ready.max_by_key(|(_, lane)| lane.slots.free()).map(|(number, _)| number)
    }

    /// Returns lane and slot of a run that has one.
    fn find(&self, run: Run) -> Option<(usize, usize)> {
        if run.graph != self.origin {
            return None;
        }
        let (lane, slot) = (run.likely.0.into(), run.likely.1.into());
        let at = |number: usize, lane: &Lane| Some((number, lane.slots.find(run.number, slot)?));
        let likely = self.lanes.get(lane).and_then(|its| at(lane, its));
        likely.or_else(|| self.lanes.iter().enumerate().find_map(|(number, its)| at(number, its)))
    }

    fn first_over(&self) -> Option<(usize, u64, usize)> {
        let lanes = self.lanes.iter().enumerate();
        let over = lanes.filter_map(|(number, lane)| {
            let (run, slot) = lane.slots.first_over()?;
            Some((number, run, slot))
        });
        over.min_by_key(|(_, run, _)| *run)
    }

    /// Takes how a run has ended that has no slot; `None` if it waits for one.
    fn fetch_ended(&mut self, run: Run) -> Option<Result<Vec<Vec<u8>>>> {
        if self.waits_for_lane(run) {
            return None;
        }
        let ended = match run.graph == self.origin {
            true => self.ended.remove(&run.number),
            false => None,
        };
        Some(ended.map_or(Err(Error::Foreign("run")), |ended| self.outcome(ended)))
    }

    /// Returns whether a run has lost its lane and waits for another one.
    fn waits_for_lane(&self, run: Run) -> bool {
        run.graph == self.origin && self.again.iter().any(|again| again.begun.run == run.number)
    }

    /// Takes the outputs of a run that is over.
    fn take(&mut self, number: usize, slot: usize) -> Result<Vec<Vec<u8>>> {
        let ended = self.take_from(number, slot);
        self.outcome(ended)
    }

    fn take_from(&mut self, number: usize, slot: usize) -> Ended {
        let lane = &mut self.lanes[number];
        let Some((slots, workers)) = lane.ready() else { return Ok(Vec::new()) };
        slots.take(workers, slot).map_err(|failure| RunEnd::failed(lane, failure))
    }

    fn outcome(&self, ended: Ended) -> Result<Vec<Vec<u8>>> {
        ended.map_err(|end| end.into_error(&self.plan))
    }

    /// Cuts a lane, and notes what becomes of its runs. Nobody is told before all its connections are dropped.
    #[cold]
    fn lose(&mut self, number: usize, loss: Loss) -> Arc<Lost> {
        let Plan { graph, deployment, .. } = &*self.plan;
        let limit = deployment.invocation_timeout;
        let lane = &mut self.lanes[number];
        let lost = Lost::of(&self.plan, lane, loss);
        for (begun, left) in lane.cut(loss) {
            let ended = match left {
                Left::Over(over) => over.map_err(|failure| RunEnd::failed(lane, failure)),
                Left::Cut { overdue: true, .. } => Err(RunEnd::TimeLimit(limit)),
                Left::Cut { input, .. } if graph.idempotent && begun.tries < MOST_TRIES => {
                    let begun = Begun { tries: begun.tries + 1, ..begun };
                    self.again.push_back(Again { begun, input, lost: lost.clone() });
                    continue;
                }
                Left::Cut { .. } => Err(RunEnd::Lost(lost.clone())),
            };
            self.ended.insert(begun.run, ended);
        }
        lost
    }

    /// Takes lanes that have started, has others started again, and submits runs again. `now`: at once, if no lane
    /// serves.
    fn attend(&mut self, now: bool) {
        if self.is_well() {
            return;
        }
        let now = now && !self.lanes.iter().any(Lane::is_ready);
        for lane in &mut self.lanes {
            lane.attend(now);
        }
        self.submit_again();
    }

    /// Submits runs again that have lost their lane, as far as there is room.
    fn submit_again(&mut self) {
        let (limit, now) = (self.plan.deployment.invocation_timeout, Instant::now());
        for again in std::mem::take(&mut self.again) {
            match now >= again.begun.deadline(limit) {
                true => _ = self.ended.insert(again.begun.run, Err(RunEnd::Lost(again.lost))),
                false => self.again.push_back(again),
            }
        }
        while !self.again.is_empty() {
            if self.roomiest().is_none() {
                // Those that are over need no slot.
                while let Some((number, run, slot)) = self.first_over() {
                    let ended = self.take_from(number, slot);
                    self.ended.insert(run, ended);
                }
            }
            let Some(number) = self.roomiest() else { return };
            let Some((slots, workers)) = self.lanes[number].ready() else { return };
            let Some(Again { mut begun, input, lost }) = self.again.pop_front() else { return };
            tracing::debug!(run = begun.run, tries = begun.tries, "a run is submitted again");
            if let Err(loss) = slots.begin(workers, begun, &input) {
                self.lose(number, loss);
                begun.tries += 1;
                match begun.tries > MOST_TRIES {
                    true => _ = self.ended.insert(begun.run, Err(RunEnd::Lost(lost))),
                    false => self.again.push_back(Again { begun, input, lost }),
                }
            }
        }
    }

    /// Returns a lane that has room. Waits only while no lane serves, or for runs that nobody will fetch.
    #[cold]
    fn room(&mut self) -> Result<usize> {
        loop {
            self.attend(true);
            self.look();
            if let Some(number) = self.roomiest() {
                return Ok(number);
            }
            let mut ready = self.lanes.iter().filter(|lane| lane.is_ready()).peekable();
            if ready.peek().is_none() {
                self.wait_for_start()?;
            } else if ready.any(|lane| lane.slots.abandoned() > 0) {
                self.rest();
            } else {
                return Err(Error::AllSlotsBusy);
            }
        }
    }

    /// Waits until one of the lanes, of which none serves, is started. Fails with the error of one if none can be.
    fn wait_for_start(&mut self) -> Result<()> {
        let mut failed = Error::WorkerLost { reason: "no lane of the graph could be started" };
        while self.lanes.iter().any(Lane::is_starting) {
            for lane in self.lanes.iter_mut().filter(|lane| lane.has_started()) {
                match lane.finish_start() {
                    Ok(()) => return Ok(()),
                    Err(error) => failed = error,
                }
            }
            thread::sleep(NAP);
        }
        Err(failed)
    }

    /// Notes what has arrived on all lanes. Returns whether there was something.
    fn poll_all(&mut self) -> bool {
        let mut found = false;
        for number in 0..self.lanes.len() {
            let Some((slots, workers)) = self.lanes[number].ready() else { continue };
            match slots.poll(workers) {
                Ok(some) => found |= some,
                Err(loss) => {
                    self.lose(number, loss);
                    found = true;
                }
            }
        }
        found
    }

    /// Notes what has arrived on all lanes, and which of them are lost.
    fn look(&mut self) {
        (0..self.lanes.len()).for_each(|number| self.look_at(number));
    }

    fn look_at(&mut self, number: usize) {
        let Some((slots, workers)) = self.lanes[number].ready() else { return };
        let looked = slots.poll(workers).and_then(|found| match found {
            true => Ok(()),
            false => slots.check(workers, Instant::now()),
        });
        if let Err(loss) = looked {
            self.lose(number, loss);
        }
    }

    /// Sleeps until something may have come, or a lane have started, or a run have reached its limit.
    fn rest(&mut self) {
        let now = Instant::now();
        let mut timeout = LONGEST_SLEEP;
        if !self.is_well() {
            timeout = NAP;
        }
        let lanes = self.lanes.iter_mut().enumerate();
        let mut ready: Vec<_> =
            lanes.filter_map(|(number, lane)| Some((number, lane.ready()?))).collect();
        let mut lost = Vec::new();
        for (number, (slots, workers)) in &mut ready {
            let left = slots.first_deadline().map(|at| at.saturating_duration_since(now));
            timeout = left.map_or(timeout, |left| left.min(timeout));
            // Armed before it is polled: what comes later ends the sleep.
            let armed = workers.arrivals.arm(Notify::Any).is_ok();
            let polled = slots.poll(workers);
            if !armed || !matches!(polled, Ok(false)) {
                timeout = Duration::ZERO;
            }
            lost.extend(polled.err().map(|loss| (*number, loss)));
        }
        let descriptors = ready.iter().map(|(_, (_, workers))| workers.descriptor());
        if let Err(error) = sleep_on(descriptors, timeout) {
            tracing::error!(%error, "cannot sleep");
        }
        for (_, (_, workers)) in &mut ready {
            workers.arrivals.acknowledge().ok();
        }
        for (number, loss) in lost {
            self.lose(number, loss);
        }
    }
}

impl Drop for CompiledGraph {
    fn drop(&mut self) {
        self.plan.dropped.store(true, Ordering::Relaxed);
    }
}
