//! A graph that runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rdmalib::Domain;
use rfaas_protocol::library::exported_functions;
use rfaas_protocol::node::Bill;

use super::check::check;
use super::description::Graph;
use super::lane::{Lane, LaneLost, RunFailure, Slots};
use super::start::{Means, start};
use crate::buffer::Origin;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::grantor::Grantor;
use crate::held_lease::HeldLease;
use crate::lease_core::LeaseStage;
use crate::library::Library;
use crate::request::LeaseRequest;

/// A run of a graph that was submitted. Its outputs are fetched once ([`CompiledGraph::wait`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    graph: Origin,
    number: u64,
}

/// A [`Graph`] whose executors run, each on a lease of its own. Dropping it gives the leases back.
///
/// As many runs as the deployment has [slots](Deployment::slots) may be under way. They are for one thread at a time
/// (`&mut self`).
///
/// When an executor or a lease has ended, or a run took longer than
/// [`invocation_timeout`](Deployment::invocation_timeout), all runs under way fail with the reason, and the next
/// [`submit`](Self::submit) has the executors started again, on the same leases as far as those live.
pub struct CompiledGraph {
    // Dropped first: managers hear that leases are given back before connections end, and do not report failures.
    leases: Vec<Arc<HeldLease>>,
    lane: Option<Lane>,
    slots: Slots,
    graph: Graph,
    deployment: Deployment,
    libraries: Vec<Arc<Library>>,
    grantor: Arc<Grantor>,
    domain: Domain,
    origin: Origin,
    last_run: u64,
    /// Runs that have ended with their lane, and were not fetched.
    ended: BTreeMap<u64, Ended>,
}

impl fmt::Debug for CompiledGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> =
            self.graph.functions.iter().map(|function| &function.name).collect();
        f.debug_struct("CompiledGraph").field("functions", &functions).finish_non_exhaustive()
    }
}

/// How a run has ended.
type Ended = Result<Vec<Vec<u8>>, RunEnd>;

/// Why a run has no outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunEnd {
    /// A function of it has failed.
    Failed(RunFailure),
    /// The workers are gone.
    Lost(LaneLost),
}

impl CompiledGraph {
    pub(crate) fn compile(
        grantor: &Arc<Grantor>,
        graph: &Graph,
        deployment: &Deployment,
    ) -> Result<CompiledGraph> {
        grantor.check_process()?;
        deployment.validate()?;
        check(graph)?;
        let libraries = read_libraries(grantor, graph)?;
        let request = graph.lease_request();
        // One that is not granted has the others dropped, which gives them back.
        let leases = graph.functions.iter().map(|_| lease(grantor, &request));
        let leases = leases.collect::<Result<Vec<_>>>()?;
        let mut compiled = CompiledGraph {
            lane: None,
            slots: Slots::new(deployment.slots, graph.outputs.len(), deployment.spin),
            graph: graph.clone(),
            deployment: deployment.clone(),
            libraries,
            leases,
            grantor: grantor.clone(),
            domain: grantor.spares.domain(&grantor.device)?,
            origin: Origin::generate(),
            last_run: 0,
            ended: BTreeMap::new(),
        };
        compiled.start()?;
        Ok(compiled)
    }

    /// Returns the name of the node that each function runs on, in the order in which they were added.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.leases.iter().map(|lease| lease.node())
    }

    /// Begins a run with a copy of `input`.
    ///
    /// # Errors
    /// [`Error::AllSlotsBusy`]: fetch a run first. [`Error::InputTooLarge`]. Where executors have to be
    /// started again, what [`Client::compile`](crate::Client::compile) returns; the next call tries again.
    pub fn submit(&mut self, input: &[u8]) -> Result<Run> {
        self.grantor.check_process()?;
        let most = self.graph.most_input();
        if input.len() > most {
            return Err(Error::InputTooLarge { bytes: input.len(), max: most });
        }
        let waiting = self.slots.runs().len() + self.ended.len();
        if waiting >= usize::from(self.deployment.slots) {
            return Err(Error::AllSlotsBusy);
        }
        if self.lane.is_none() {
            self.start()?;
        }
        let (Some(lane), Some(slot)) = (&mut self.lane, self.slots.free()) else {
            return Err(Error::AllSlotsBusy);
        };
        self.last_run += 1;
        let run = self.last_run;
        if let Err(error) = self.slots.begin(lane, (slot, run), input) {
            tracing::debug!(%error, "a run could not begin");
            let lost = lane.why_lost("a worker is gone");
            self.lose(lost);
            return Err(self.error_of(&lost));
        }
        Ok(Run { graph: self.origin, number: run })
    }

    /// Waits until `run` is over. Returns its outputs, in the order of [`Graph::output`].
    ///
    /// # Errors
    /// [`Error::GraphFailed`]: a function returned too much, or its executor or lease has ended.
    /// [`Error::TimeLimit`]: it took longer than [`Deployment::invocation_timeout`]. [`Error::WorkerLost`]: a worker
    /// broke the protocol, or nobody says what became of it. [`Error::Foreign`]: it was fetched before, or is of
    /// another graph.
    pub fn wait(&mut self, run: Run) -> Result<Vec<Vec<u8>>> {
        self.grantor.check_process()?;
        if run.graph != self.origin {
            return Err(Error::Foreign("run"));
        }
        if let Some(slot) = self.slots.of(run.number)
            && let Some(lane) = &mut self.lane
        {
            match self.slots.wait(lane, slot, self.deployment.invocation_timeout) {
                Ok(()) => {
                    let ended = self.slots.take(lane, slot).map_err(RunEnd::Failed);
                    return self.outcome(ended);
                }
                Err(lost) => self.lose(lost),
            }
        }
        let ended = self.ended.remove(&run.number).ok_or(Error::Foreign("run"))?;
        self.outcome(ended)
    }

    /// Runs the graph once with `input`, and waits for its outputs.
    pub fn run(&mut self, input: &[u8]) -> Result<Vec<Vec<u8>>> {
        let run = self.submit(input)?;
        self.wait(run)
    }

    /// Gives all leases back and waits for their bills, in the order in which functions were added. All are given back
    /// also if a bill does not come: then it is the first error.
    pub fn release(mut self) -> Result<Vec<Bill>> {
        let bills: Vec<_> = self.leases.iter().map(|lease| lease.release()).collect();
        self.lane = None;
        let bills = bills.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(bills.into_iter().flatten().collect())
    }

    fn outcome(&self, ended: Ended) -> Result<Vec<Vec<u8>>> {
        ended.map_err(|end| match end {
            RunEnd::Failed(RunFailure { function, bytes: (returned, most) }) => {
                let capacity = usize::try_from(most).unwrap_or(usize::MAX);
                let source = Error::OutputTooLarge { needed: returned.into(), capacity };
                self.failed_in(function, source)
            }
            RunEnd::Lost(lost) => self.error_of(&lost),
        })
    }

    fn error_of(&self, lost: &LaneLost) -> Error {
        match *lost {
            LaneLost::Ended(function, cause) => self.failed_in(function, cause.into()),
            LaneLost::TimeLimit(after) => Error::TimeLimit { after },
            LaneLost::Worker(reason) => Error::WorkerLost { reason },
        }
    }

    fn failed_in(&self, function: usize, source: Error) -> Error {
        let name = self.graph.functions.get(function).map(|described| described.name.clone());
        let node = self.leases.get(function).map(|lease| lease.node().to_owned());
        Error::GraphFailed {
            function: name.unwrap_or_default(),
            node: node.unwrap_or_default(),
            source: Box::new(source),
        }
    }

    /// Lets the workers go, for this reason. What has ended before is kept.
    #[cold]
    fn lose(&mut self, why: LaneLost) {
        let Some(mut lane) = self.lane.take() else { return };
        self.slots.drain(&mut lane);
        for (run, slot) in self.slots.runs() {
            let ended = match self.slots.is_over(slot) {
                true => self.slots.take(&lane, slot).map_err(RunEnd::Failed),
                false => Err(RunEnd::Lost(why)),
            };
            self.slots.forget(slot);
            self.ended.insert(run, ended);
        }
        tracing::info!(?why, "a graph is cut: its executors are started again for the next run");
        drop(lane);
    }

    /// Starts all executors, on the leases that there are, or on new ones where these are over.
    fn start(&mut self) -> Result<()> {
        let request = self.graph.lease_request();
        for held in &mut self.leases {
            let granted = matches!(held.lock().stage, LeaseStage::Granted(_));
            let waits = granted && held.expires_at() > SystemTime::now();
            if !waits && !held.lives() {
                held.give_up();
                *held = lease(&self.grantor, &request)?;
            }
        }
        let means = Means {
            graph: &self.graph,
            deployment: &self.deployment,
            libraries: &self.libraries,
            leases: &self.leases,
            domain: &self.domain,
            device: &self.grantor.device,
        };
        self.lane = Some(start(&means)?);
        Ok(())
    }
}

fn lease(grantor: &Arc<Grantor>, request: &LeaseRequest) -> Result<Arc<HeldLease>> {
    HeldLease::new(grantor.clone(), grantor.lease(request)?, request.timeout)
}

/// Returns the library of each function, which has it.
fn read_libraries(grantor: &Grantor, graph: &Graph) -> Result<Vec<Arc<Library>>> {
    let mut read: Vec<(&Path, Arc<Library>, Vec<String>)> = Vec::new();
    let libraries = graph.functions.iter().map(|function| {
        let path = function.library.as_path();
        let at = match read.iter().position(|(known, ..)| *known == path) {
            Some(at) => at,
            None => {
                let library = grantor.libraries.read(path)?;
                let names = exported_functions(&library.code);
                let unusable = |source| Error::Library { path: path.to_owned(), source };
                read.push((path, library, names.map_err(unusable)?));
                read.len() - 1
            }
        };
        let (_, library, names) = &read[at];
        match names.contains(&function.name) {
            true => Ok(library.clone()),
            false => Err(Error::UnknownFunction {
                name: function.name.clone(),
                available: names.clone(),
            }),
        }
    });
    libraries.collect()
}
