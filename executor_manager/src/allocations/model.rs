//! Random events in any order, also late ones and twice, against a model of the world around the
//! allocations: processes that exist, and what the resource manager was told.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rfaas::protocol::allocation::ToClient;

use super::tests::{HEARTBEAT, deployment, terms};
use super::*;

const CAPACITY: Capacity = Capacity { cores: 4, memory: 400 };

#[derive(Clone, Debug)]
enum Step {
    Claim { client: usize, lease: u64, ms: u64 },
    StartDone { lease: u64, works: bool },
    ExitDone { lease: u64 },
    Release { client: usize },
    Gone { client: usize },
    End { lease: u64, grace_ms: u64 },
    Wait { ms: u64 },
    Shrink { cores: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (client, lease) = (0..5_usize, 1..8_u64);
    let step = prop_oneof![
        4 => (client.clone(), lease.clone(), 0..80_u64)
            .prop_map(|(client, lease, ms)| Step::Claim { client, lease, ms }),
        4 => (lease.clone(), prop::bool::weighted(0.8))
            .prop_map(|(lease, works)| Step::StartDone { lease, works }),
        4 => lease.clone().prop_map(|lease| Step::ExitDone { lease }),
        2 => client.clone().prop_map(|client| Step::Release { client }),
        1 => client.prop_map(|client| Step::Gone { client }),
        1 => (lease, 0..30_u64).prop_map(|(lease, grace_ms)| Step::End { lease, grace_ms }),
        2 => (0..40_u64).prop_map(|ms| Step::Wait { ms }),
        1 => (0..=CAPACITY.cores).prop_map(|cores| Step::Shrink { cores }),
    ];
    prop::collection::vec(step, 0..120)
}

/// Terms are signed, so a lease number always comes with the same ones.
fn terms_of(lease: u64) -> LeaseTerms {
    terms(lease, 1 + (lease % 3) as u32, 50 + 30 * (lease % 3) as u32)
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Process {
    #[default]
    None,
    Starting,
    Running,
    Stopping,
}

#[derive(Clone, Debug, Default)]
struct Known {
    process: Process,
    /// Since the first start of a claim until its end.
    held: bool,
    claimed: u32,
    ended: u32,
}

struct World {
    allocations: Allocations,
    now: Instant,
    capacity: Capacity,
    leases: BTreeMap<u64, Known>,
    clients: Vec<ClientId>,
    next_client: u64,
    /// The exit under way was told to a client.
    exit_told: bool,
}

impl World {
    fn new() -> Self {
        let allocations =
            Allocations::new(Some(CpuPool::new(0..CAPACITY.cores as usize)), HEARTBEAT);
        let clients = (0..5).map(ClientId).collect();
        let leases = BTreeMap::new();
        let (now, next_client, exit_told) = (Instant::now(), 5, false);
        let mut world =
            World { allocations, now, capacity: CAPACITY, leases, clients, next_client, exit_told };
        world.apply(Event::Capacity(CAPACITY));
        world
    }

    fn known(&mut self, lease: u64) -> &mut Known {
        self.leases.entry(lease).or_default()
    }

    fn apply(&mut self, event: Event) {
        let mut out = Vec::new();
        self.allocations.apply(self.now, event.clone(), &mut out);
        for action in out {
            self.check(&event, action);
        }
    }

    fn check(&mut self, event: &Event, action: Action) {
        let capacity = self.capacity;
        match action {
            Action::Tell(client, message) => {
                assert!(self.clients.contains(&client), "told a client that is gone: {event:?}");
                if let ToClient::ExecutorExited(_) = message {
                    let told = std::mem::replace(&mut self.exit_told, true);
                    assert!(!told, "one exit told twice");
                }
            }
            Action::Start { lease, workers, pins, .. } => {
                let known = self.known(lease.get());
                assert_eq!(known.process, Process::None, "two processes for lease {lease}");
                assert_eq!(known.ended, 0, "started after its end");
                known.process = Process::Starting;
                assert_eq!(u32::from(workers), terms_of(lease.get()).cores.get());
                assert_eq!(pins.map(|pins| pins.len()), Some(usize::from(workers)));
                if !std::mem::replace(&mut known.held, true) {
                    let held = || self.leases.iter().filter(|(_, known)| known.held);
                    let cores: u32 = held().map(|(&id, _)| terms_of(id).cores.get()).sum();
                    let memory: u32 = held().map(|(&id, _)| terms_of(id).memory.get()).sum();
                    assert!(cores <= capacity.cores, "{cores} cores leased of {capacity:?}");
                    assert!(memory <= capacity.memory, "{memory} MB leased of {capacity:?}");
                }
            }
            Action::Stop(lease) => {
                let known = self.known(lease.get());
                assert_eq!(known.process, Process::Running, "stopped twice, or nothing to stop");
                known.process = Process::Stopping;
            }
            Action::Claimed(terms) => {
                let known = self.known(terms.lease.get());
                known.claimed += 1;
                assert_eq!((known.claimed, known.ended), (1, 0), "claimed twice");
            }
            Action::Ended(ended) => {
                let cores = u64::from(ended.terms.cores.get());
                let known = self.known(ended.terms.lease.get());
                known.ended += 1;
                known.held = false;
                assert_eq!((known.claimed, known.ended), (1, 1), "billed twice, or unclaimed");
                assert_eq!(known.process, Process::None, "its process still runs");
                let used = ended.bill.hot_polling_ns.get() + ended.bill.execution_ns.get();
                assert!(used <= cores * ended.bill.allocated_ns.get(), "{ended:?}");
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Claim { client, lease, ms } => {
                let time_left = Duration::from_millis(ms);
                let (client, terms) = (self.clients[client], terms_of(lease));
                self.apply(Event::Claim { client, terms, time_left, deployment: deployment() });
            }
            Step::StartDone { lease, works } => self.start_done(lease, works),
            Step::ExitDone { lease } => self.exit_done(lease),
            Step::Release { client } => self.apply(Event::Release(self.clients[client])),
            Step::Gone { client } => {
                let gone = std::mem::replace(&mut self.clients[client], ClientId(self.next_client));
                self.next_client += 1;
                self.apply(Event::ClientGone(gone));
                self.apply(Event::ClientGone(gone));
            }
            Step::End { lease, grace_ms } => self.apply(Event::End {
                lease: LeaseId::new(lease).unwrap(),
                reason: EndReason::Withdrawn,
                grace: Duration::from_millis(grace_ms),
            }),
            Step::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.apply(Event::Time);
                let next = self.allocations.next_deadline();
                assert!(next.is_none_or(|next| next > self.now), "something due was left undone");
            }
            Step::Shrink { cores } => {
                self.capacity = Capacity { cores, ..CAPACITY };
                self.apply(Event::Capacity(self.capacity));
            }
        }
    }

    /// The start under way, if there is one, succeeds or fails; sometimes told although none is.
    fn start_done(&mut self, lease: u64, works: bool) {
        let id = LeaseId::new(lease).unwrap();
        let known = self.known(lease);
        if known.process == Process::Starting {
            known.process = if works { Process::Running } else { Process::None };
            known.held &= works || known.claimed > 0;
        }
        self.apply(if works {
            Event::Started(id)
        } else {
            Event::StartFailed { lease: id, reason: "scripted".into() }
        });
    }

    /// The process, if there is one, ends; told twice, with counters that no machine reaches.
    fn exit_done(&mut self, lease: u64) {
        let id = LeaseId::new(lease).unwrap();
        let usage = Usage { hot_polling_ns: u64::MAX, execution_ns: 1 << 40, invocations: 1 };
        let known = self.known(lease);
        if known.process == Process::Starting {
            return; // nothing can exit that has not started
        }
        known.process = Process::None;
        self.exit_told = false;
        for _ in 0..2 {
            self.apply(Event::Exited { lease: id, exit: Exit::Signal(9), usage });
        }
    }
}

proptest! {
    #[test]
    fn leases_are_never_overcommitted_and_each_ends_and_is_billed_exactly_once(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.apply(Event::Drain { grace: Duration::ZERO });
        for lease in 1..8 {
            if world.known(lease).process == Process::Starting {
                world.start_done(lease, true);
            }
            world.exit_done(lease);
        }
        prop_assert!(world.allocations.is_empty());
        prop_assert!(!world.clients.iter().any(|&client| world.allocations.lease_of(client).is_some()));
        prop_assert_eq!(world.allocations.next_deadline(), None);
        prop_assert_eq!(world.allocations.free(), world.capacity);
        prop_assert_eq!(world.allocations.cpus.as_ref().map(CpuPool::in_use), Some(0));
        for (lease, known) in &world.leases {
            prop_assert_eq!(known.claimed, known.ended, "lease {}", lease);
            prop_assert!(!known.held, "lease {}", lease);
        }
    }
}
