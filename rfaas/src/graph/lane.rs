//! A lane: leases, executors on them, connections to their workers, and the slots of these.
//!
//! ```text
//!   starting ──all are there──▶ ready ──an executor, a lease, a limit──▶ lost (connections are dropped first)
//!      ▲  └──a thread of its own──▶ lost                                   │
//!      └────────────on the same leases, as far as those live───────────────┘
//! ```
//! Its leases are acquired at once, all of them or none. One that is over is replaced alone, unless there are
//! constraints of all of them together: then they are acquired anew.
//!
//! It is started in a thread of its own, so that runs on other lanes go on meanwhile. Whoever drops the graph waits for
//! that thread, which is told to stop.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rdmalib::Domain;
use rfaas_protocol::constraints::MAX_GANG;

use super::description::Graph;
use super::layout::Layout;
use super::listed::Listed;
use super::slots::{Begun, Left, Slots};
use super::start::{Means, start};
use super::workers::{Loss, Workers};
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::grantor::Grantor;
use crate::held_lease::HeldLease;
use crate::lease_core::LeaseStage;
use crate::library::Library;

/// How many lanes a graph has ([`Graph::lanes`]): each has its own leases and executors, so that it fails by itself.
///
/// ```
/// use rfaas::Lanes;
///
/// let two = Lanes::exactly(2); // both, or the graph is not compiled
/// let some = Lanes::up_to(8); // as many as there is room for, at least one
/// assert_eq!(Lanes::default(), Lanes::exactly(1));
/// # let _ = (two, some);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Lanes {
    /// This many, all of them or none.
    pub fn exactly(lanes: usize) -> Self {
        Lanes { least: lanes, most: lanes }
    }

    /// As many as there is room for when the graph is compiled: at least one, and not more than this.
    pub fn up_to(lanes: usize) -> Self {
        Lanes { least: 1, most: lanes }
    }
}

impl Default for Lanes {
    /// Returns one.
    fn default() -> Self {
        Lanes::exactly(1)
    }
}

/// Times that a lane is started before that has failed: a lease may end meanwhile, and is replaced then.
const START_TRIES: usize = 2;
/// How long a lane that is leased anew waits for room: what it has given back is free when its nodes have said so.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// A lane that could not be started is tried again after this, while others serve.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What all lanes of a graph are made from.
pub(super) struct Plan {
    pub(super) graph: Graph,
    pub(super) layout: Layout,
    pub(super) deployment: Deployment,
    /// By worker.
    pub(super) libraries: Vec<Arc<Library>>,
    pub(super) grantor: Arc<Grantor>,
    pub(super) listed: Listed,
    /// Of all inputs.
    pub(super) domain: Domain,
    /// The graph is dropped: no lane is started any more.
    pub(super) dropped: AtomicBool,
}

/// A lane.
pub(super) struct Lane {
    // Dropped first: managers hear that leases are given back before connections end, and do not report failures.
    pub(super) leases: Vec<Arc<HeldLease>>,
    number: usize,
    stage: Stage,
    pub(super) slots: Slots,
    plan: Arc<Plan>,
}

enum Stage {
    Ready(Box<Workers>),
    Starting(JoinHandle<Started>),
    /// Since then.
    Lost(Instant),
}

/// Leases, which may be others than before, and what is on them.
type Started = (Vec<Arc<HeldLease>>, Result<Workers>);

impl Plan {
    /// Acquires the leases of `lane`: all of them, or none. Waits so long for room.
    pub(super) fn lease_all(&self, lane: usize, wait: Duration) -> Result<Vec<Arc<HeldLease>>> {
        let (workers, most) = (self.layout.workers.len(), MAX_GANG as usize);
        let mut leases = Vec::with_capacity(workers);
        for first in (0..workers).step_by(most) {
            // One that is not granted has those before it dropped, which gives them back.
            leases.extend(self.lease(lane, first..workers.min(first + most), wait)?);
        }
        Ok(leases)
    }

    /// Acquires the leases of these workers, in one request, and has the resource manager know whose they are.
    fn lease(
        &self,
        lane: usize,
        workers: Range<usize>,
        wait: Duration,
    ) -> Result<Vec<Arc<HeldLease>>> {
        let leases = u32::try_from(workers.len()).unwrap_or(u32::MAX);
        let request = self.graph.lease_request(workers.clone()).wait(wait);
        let granted = self.grantor.lease_all(leases, &request)?.into_iter();
        let held = |its| HeldLease::new(self.grantor.clone(), its, request.timeout);
        let leases: Vec<_> = granted.map(held).collect::<Result<_>>()?;
        for (worker, lease) in workers.zip(&leases) {
            let Some(id) = lease.id() else { continue };
            self.grantor.note(self.listed.worker(&self.graph, &self.layout, (lane, worker), id));
        }
        Ok(leases)
    }

    /// Replaces those of `leases` that are over; all of them, if there are constraints of all together.
    fn renew(&self, lane: usize, leases: &mut Vec<Arc<HeldLease>>) -> Result<()> {
        let over: Vec<_> = (0..leases.len()).filter(|&worker| is_over(&leases[worker])).collect();
        if !over.is_empty() && self.graph.of_all_leases().next().is_some() {
            leases.iter().for_each(|held| held.give_up());
            *leases = self.lease_all(lane, ROOM_WITHIN)?;
            return Ok(());
        }
        for worker in over {
            leases[worker].give_up();
            let new = self.lease(lane, worker..worker + 1, Duration::ZERO)?;
            leases.splice(worker..=worker, new);
        }
        Ok(())
    }

    /// Starts the executors of `lane` on `leases`, or on others where these are over.
    fn start(&self, lane: usize, mut leases: Vec<Arc<HeldLease>>) -> Started {
        let mut started = Err(Error::Invalid("a lane is started at least once"));
        for attempt in 1..=START_TRIES {
            started = self.renew(lane, &mut leases).and_then(|()| {
                start(&Means {
                    graph: &self.graph,
                    layout: &self.layout,
                    deployment: &self.deployment,
                    libraries: &self.libraries,
                    leases: &leases,
                    domain: &self.domain,
                    device: &self.grantor.device,
                    stop: &self.dropped,
                })
            });
            match &started {
                Err(error) if is_of_a_lease(error) && !self.dropped.load(Ordering::Relaxed) => {
                    tracing::debug!(%error, attempt, "a lane could not be started");
                    if self.graph.has_constraints() {
                        // The manager exchanges none of these for one on a node that takes it.
                        leases
                            .iter()
                            .filter(|held| is_granted(held))
                            .for_each(|held| held.give_up());
                    }
                }
                _ => break,
            }
        }
        (leases, started)
    }
}

/// Returns whether nobody has claimed it.
fn is_granted(held: &HeldLease) -> bool {
    matches!(held.lock().stage, LeaseStage::Granted(_))
}

/// Returns whether no executor can be started on it any more.
fn is_over(held: &HeldLease) -> bool {
    let waits = is_granted(held) && held.expires_at() > SystemTime::now();
    !waits && !held.lives()
}

/// Returns whether a start failed since a lease or its node is gone: on another one it may not.
fn is_of_a_lease(error: &Error) -> bool {
    match error {
        Error::GraphNotStarted { source, .. } => is_of_a_lease(source),
        Error::LeaseEnded { .. }
        | Error::ExecutorGone
        | Error::Unreachable { .. }
        | Error::NoAnswer { .. }
        | Error::Connection { .. } => true,
        _ => false,
    }
}

impl Lane {
    /// Begins to start the one of this number on `leases`.
    pub(super) fn new(plan: &Arc<Plan>, number: usize, leases: Vec<Arc<HeldLease>>) -> Self {
        let Deployment { slots, spin, invocation_timeout, .. } = plan.deployment;
        let slots = Slots::new(slots, &plan.layout, spin, invocation_timeout);
        let stage = Stage::Lost(Instant::now());
        let mut lane = Lane { leases, number, stage, slots, plan: plan.clone() };
        lane.begin_start();
        lane
    }

    fn begin_start(&mut self) {
        let (plan, number, leases) = (self.plan.clone(), self.number, self.leases.clone());
        let builder = thread::Builder::new().name("rfaas-lane".into());
        self.stage = match builder.spawn(move || plan.start(number, leases)) {
            Ok(thread) => Stage::Starting(thread),
            Err(error) => {
                tracing::error!(%error, "no thread to start a lane of a graph");
                Stage::Lost(Instant::now())
            }
        };
    }

    /// Returns the slots and the workers, if these are there.
    pub(super) fn ready(&mut self) -> Option<(&mut Slots, &mut Workers)> {
        match &mut self.stage {
            Stage::Ready(workers) => Some((&mut self.slots, workers)),
            Stage::Starting(_) | Stage::Lost(_) => None,
        }
    }

    /// Returns the workers, if they are there.
    pub(super) fn workers(&self) -> Option<&Workers> {
        match &self.stage {
            Stage::Ready(workers) => Some(workers),
            Stage::Starting(_) | Stage::Lost(_) => None,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Starting(_))
    }

    /// Returns whether the thread that starts it is done.
    pub(super) fn has_started(&self) -> bool {
        matches!(&self.stage, Stage::Starting(thread) if thread.is_finished())
    }

    /// Has it started again if it is time for that, and takes what has started. `now`: others do not serve.
    pub(super) fn attend(&mut self, now: bool) {
        if self.has_started()
            && let Err(error) = self.finish_start()
        {
            tracing::warn!(%error, "a lane of a graph could not be started again");
        }
        if matches!(self.stage, Stage::Lost(since) if now || since.elapsed() >= AGAIN_AFTER) {
            self.begin_start();
        }
    }

    /// Waits until it is started: as long as the deployment lets a start take, at most twice.
    pub(super) fn finish_start(&mut self) -> Result<()> {
        let lost = Stage::Lost(Instant::now());
        let (leases, workers) = match std::mem::replace(&mut self.stage, lost) {
            Stage::Starting(thread) => thread
                .join()
                .map_err(|_| Error::Invalid("a thread that starts a lane has panicked"))?,
            other => {
                self.stage = other;
                return Ok(());
            }
        };
        self.leases = leases;
        self.stage = Stage::Ready(Box::new(workers?));
        Ok(())
    }

    /// Drops all connections, and has it started again. Returns the runs that somebody will fetch.
    #[cold]
    pub(super) fn cut(&mut self, why: Loss) -> Vec<(Begun, Left)> {
        let lost = Stage::Lost(Instant::now());
        let Stage::Ready(mut workers) = std::mem::replace(&mut self.stage, lost) else {
            return Vec::new();
        };
        let runs = self.slots.empty(&mut workers);
        drop(workers);
        tracing::info!(?why, "a lane of a graph is cut; its executors are started again");
        self.begin_start();
        runs
    }

    /// Waits for the thread that starts it, if there is one, which was told to stop.
    pub(super) fn stop(&mut self) {
        if self.is_starting() {
            self.finish_start().ok();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.plan.grantor.check_process().is_ok() {
            return self.stop();
        }
        // The thread is the parent's.
        let lost = Stage::Lost(Instant::now());
        if let Stage::Starting(thread) = std::mem::replace(&mut self.stage, lost) {
            std::mem::forget(thread);
        }
    }
}
