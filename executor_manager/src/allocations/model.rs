//! Random events in any order, also late ones, twice, and lost for long, against a model of the world
//! around the allocations: processes that exist, tokens that clients hold, runs of the manager one after
//! the other, and what the resource manager was told. Time is the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use rfaas_protocol::allocation::{RefusedBecause, ToClient};
use rfaas_protocol::lease::{NodeName, Token};
use rfaas_protocol::node::{Bill, LeaseEnded};

use super::tests::{HEARTBEAT, deployment, terms};
use super::*;
use crate::identity::Identity;
use crate::request::Authority;

const CAPACITY: Capacity = Capacity { cores: 4, memory: 400 };
const SECRET: &[u8] = b"secret of the model";
/// Leases that are granted in each run of the manager: those of the first are 1 to 7.
const LEASES: u64 = 8;
const CLIENTS: usize = 5;

/// Cases without PROPTEST_CASES in the environment.
const CASES: u32 = 2000;

#[derive(Clone, Debug)]
enum Step {
    /// `run`s ago the lease was granted; only tokens of this run are good.
    Claim {
        client: usize,
        lease: u64,
        runs_ago: u64,
        ms: u64,
    },
    Renew {
        client: usize,
        lease: u64,
        runs_ago: u64,
        ms: u64,
    },
    StartDone {
        lease: u64,
        works: bool,
    },
    GiveUp {
        lease: u64,
    },
    ExitDone {
        lease: u64,
        exit: Exit,
    },
    Release {
        client: usize,
    },
    Gone {
        client: usize,
    },
    End {
        lease: u64,
        runs_ago: u64,
        grace_ms: u64,
    },
    Wait {
        ms: u64,
    },
    Shrink {
        cores: u32,
    },
    Drain {
        grace_ms: u64,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (client, lease) = (0..CLIENTS, 1..LEASES);
    let runs_ago = prop_oneof![9 => Just(0_u64), 1 => Just(1)];
    let exit = prop_oneof![Just(Exit::Signal(11)), Just(Exit::Status(3)), Just(Exit::Silent)];
    let step = prop_oneof![
        40 => (client.clone(), lease.clone(), runs_ago.clone(), 0..80_u64)
            .prop_map(|(client, lease, runs_ago, ms)| Step::Claim { client, lease, runs_ago, ms }),
        20 => (client.clone(), lease.clone(), runs_ago.clone(), 0..160_u64)
            .prop_map(|(client, lease, runs_ago, ms)| Step::Renew { client, lease, runs_ago, ms }),
        40 => (lease.clone(), prop::bool::weighted(0.8))
            .prop_map(|(lease, works)| Step::StartDone { lease, works }),
        5 => lease.clone().prop_map(|lease| Step::GiveUp { lease }),
        40 => (lease.clone(), exit).prop_map(|(lease, exit)| Step::ExitDone { lease, exit }),
        20 => client.clone().prop_map(|client| Step::Release { client }),
        10 => client.prop_map(|client| Step::Gone { client }),
        10 => (lease, runs_ago, 0..30_u64)
            .prop_map(|(lease, runs_ago, grace_ms)| Step::End { lease, runs_ago, grace_ms }),
        25 => (0..40_u64).prop_map(|ms| Step::Wait { ms }),
        10 => (0..=CAPACITY.cores).prop_map(|cores| Step::Shrink { cores }),
        1 => (0..60_u64).prop_map(|grace_ms| Step::Drain { grace_ms }),
        2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..120)
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
    /// The resource manager ended it before anybody had claimed it.
    withdrawn: bool,
    /// The CPUs of its workers, from the first start of a claim until its end.
    pins: Vec<usize>,
    /// When it was claimed, and when its time is over, as its client was told.
    claimed_at: Option<Instant>,
    expires: Option<Instant>,
    /// What the resource manager was last told that it had used.
    used: Bill,
}

struct World {
    allocations: Allocations,
    authority: Authority,
    now: Instant,
    started: Instant,
    /// Of the manager: its number is its instance.
    run: u64,
    capacity: Capacity,
    /// When the last lease of a manager that is to stop ends.
    draining: Option<Instant>,
    /// Of this run.
    leases: BTreeMap<u64, Known>,
    clients: Vec<ClientId>,
    next_client: u64,
    /// The exit under way was told to a client.
    exit_told: bool,
}

/// Terms are signed, so a lease number always comes with the same ones, except for the end.
fn terms_of(lease: u64) -> LeaseTerms {
    let kind = (lease % 3) as u32;
    let instance = (1 + lease / LEASES).into();
    LeaseTerms { instance, ..terms(lease, 1 + kind, 50 + 30 * kind) }
}

fn authority(run: u64) -> Authority {
    let (name, instance) = (NodeName::new("here").unwrap(), run.try_into().unwrap());
    Authority::ResourceManager(Arc::new(Identity {
        name,
        instance,
        address: ([127, 0, 0, 1], 10_005).into(),
        secret: SECRET.into(),
        warning: None,
    }))
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = World {
            allocations: World::allocations(),
            authority: authority(1),
            now,
            started: now,
            run: 1,
            capacity: CAPACITY,
            draining: None,
            leases: BTreeMap::new(),
            clients: (0..CLIENTS as u64).map(ClientId).collect(),
            next_client: CLIENTS as u64,
            exit_told: false,
        };
        world.apply(Event::Capacity(CAPACITY));
        world
    }

    fn allocations() -> Allocations {
        Allocations::new(Some(CpuPool::new(0..CAPACITY.cores as usize)), HEARTBEAT)
    }

    /// Number of `lease` as it was granted `runs_ago`.
    fn number(&self, lease: u64, runs_ago: u64) -> u64 {
        lease + LEASES * (self.run - 1).saturating_sub(runs_ago)
    }

    fn known(&mut self, lease: u64) -> &mut Known {
        self.leases.entry(lease).or_default()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + (self.now - self.started)
    }

    /// The terms of `lease` for so long from now on, and for how long its token entitles here.
    fn show(&self, lease: u64, ms: u64) -> (LeaseTerms, Result<Duration, RequestRefusal>) {
        let expires_at_ms = (self.now - self.started).as_millis() as u64 + ms;
        let terms = LeaseTerms { expires_at_ms: expires_at_ms.into(), ..terms_of(lease) };
        let signed = Token::sign(terms, SECRET).signed();
        let admitted = self.authority.admit(&signed, self.wall().into(), None, self.wall());
        if terms.instance.get() != self.run {
            assert_eq!(admitted.clone().unwrap_err().because, RefusedBecause::LeaseEnded);
        }
        (terms, admitted)
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.allocations.apply(self.now, event.clone(), &mut out);
        for action in &out {
            self.check(&event, action.clone());
        }
        out
    }

    fn check(&mut self, event: &Event, action: Action) {
        match action {
            Action::Tell(client, message) => {
                assert!(self.clients.contains(&client), "told a client that is gone: {event:?}");
                match message {
                    ToClient::ExecutorExited(_) => {
                        let told = std::mem::replace(&mut self.exit_told, true);
                        assert!(!told, "one exit told twice");
                    }
                    ToClient::Renewed(_) => {
                        let Event::Renew { terms, time_left, .. } = event else {
                            panic!("{event:?}")
                        };
                        assert_eq!(self.draining, None, "renewed although it is to stop");
                        let end = Some(self.now + *time_left);
                        let held = self.allocations.lease_of(client);
                        assert_eq!(held, LeaseId::new(terms.lease.get()), "another holds it");
                        let known = self.known(terms.lease.get());
                        assert!(known.held && known.ended == 0, "renewed after its end");
                        known.expires = known.expires.max(end);
                    }
                    _ => {}
                }
            }
            Action::Start { lease, workers, pins, .. } => {
                assert_eq!(u32::from(workers), terms_of(lease.get()).cores.get());
                let pins = pins.expect("workers are pinned here");
                assert_eq!(pins.len(), usize::from(workers));
                self.check_start(event, lease.get(), pins);
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
            Action::Ended(ended) => self.check_end(&ended),
        }
    }

    fn check_start(&mut self, event: &Event, lease: u64, pins: Vec<usize>) {
        let Event::Claim { time_left, .. } = event else { panic!("{event:?}") };
        let (now, capacity, draining) = (self.now, self.capacity, self.draining);
        assert_eq!(terms_of(lease).instance.get(), self.run, "of another run");
        let known = self.known(lease);
        assert_eq!(known.process, Process::None, "two processes for lease {lease}");
        assert!(known.ended == 0 && !known.withdrawn, "started after its end");
        known.process = Process::Starting;
        if std::mem::replace(&mut known.held, true) {
            assert_eq!(known.pins, pins, "a lease keeps its CPUs");
            return;
        }
        known.pins = pins;
        assert_eq!(draining, None, "a new lease although it is to stop");
        (known.claimed_at, known.expires) = (Some(now), Some(now + *time_left));
        let held = || self.leases.iter().filter(|(_, known)| known.held);
        let cores: u32 = held().map(|(&id, _)| terms_of(id).cores.get()).sum();
        let memory: u32 = held().map(|(&id, _)| terms_of(id).memory.get()).sum();
        assert!(cores <= capacity.cores, "{cores} cores leased of {capacity:?}");
        assert!(memory <= capacity.memory, "{memory} MB leased of {capacity:?}");
        let pins: Vec<_> = held().flat_map(|(_, known)| &known.pins).collect();
        let cpus: BTreeSet<_> = pins.iter().collect();
        assert_eq!(pins.len(), cpus.len(), "two workers on one CPU: {pins:?}");
    }

    /// A client shows its token. What is refused changes nothing.
    fn claim(&mut self, client: ClientId, terms: LeaseTerms, time_left: Duration) {
        let lease = terms.lease.get();
        let before = (self.allocations.free(), self.allocations.lease_of(client));
        let known = self.known(lease);
        let is_over = known.ended > 0 || known.withdrawn;
        let event = Event::Claim { client, terms, time_left, deployment: deployment() };
        let refused = self.apply(event).into_iter().find_map(|action| match action {
            Action::Tell(_, ToClient::Refused(refused)) => Some(refused.because),
            _ => None,
        });
        let Some(because) = refused else {
            assert_eq!(self.known(lease).process, Process::Starting, "neither taken nor refused");
            return;
        };
        assert_eq!((self.allocations.free(), self.allocations.lease_of(client)), before);
        if is_over && before.1.is_none() && self.draining.is_none() {
            assert_eq!(because, RefusedBecause::LeaseEnded.to_wire());
        }
    }

    fn check_end(&mut self, ended: &LeaseEnded) {
        let draining = self.draining;
        let known = self.known(ended.terms.lease.get());
        known.ended += 1;
        known.held = false;
        assert_eq!((known.claimed, known.ended), (1, 1), "billed twice, or unclaimed");
        assert_eq!(known.process, Process::None, "its process still runs");
        check_clamped(&ended.terms, &ended.bill);
        let (bill, used) = (ended.bill, known.used);
        assert!(bill.allocated_ns >= used.allocated_ns && bill.invocations >= used.invocations);
        let end = known.claimed_at.unwrap() + Duration::from_nanos(bill.allocated_ns.get());
        assert!(Some(end) <= known.expires, "it lasted longer than its client was told");
        assert!(draining.is_none_or(|deadline| end <= deadline), "it outlasted the drain");
        if EndReason::from_wire(ended.reason) == Ok(EndReason::Expired) {
            assert_eq!(Some(end), known.expires, "it expired before its time");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Claim { client, lease, runs_ago, ms } => {
                let (terms, admitted) = self.show(self.number(lease, runs_ago), ms);
                let client = self.clients[client];
                if let Ok(time_left) = admitted {
                    self.claim(client, terms, time_left);
                }
            }
            Step::Renew { client, lease, runs_ago, ms } => {
                let (terms, admitted) = self.show(self.number(lease, runs_ago), ms);
                let client = self.clients[client];
                if let Ok(time_left) = admitted {
                    for _ in 0..2 {
                        self.apply(Event::Renew { client, terms, time_left });
                    }
                }
            }
            Step::StartDone { lease, works } => self.start_done(self.number(lease, 0), works),
            Step::GiveUp { lease } => self.give_up(self.number(lease, 0)),
            Step::ExitDone { lease, exit } => self.exit_done(self.number(lease, 0), exit),
            Step::Release { client } => {
                self.apply(Event::Release(self.clients[client]));
            }
            Step::Gone { client } => {
                let gone = std::mem::replace(&mut self.clients[client], ClientId(self.next_client));
                self.next_client += 1;
                self.apply(Event::ClientGone(gone));
                self.apply(Event::ClientGone(gone));
            }
            Step::End { lease, runs_ago, grace_ms } => {
                let lease = self.number(lease, runs_ago);
                let known = self.known(lease);
                known.withdrawn |= !known.held;
                self.apply(Event::End {
                    lease: LeaseId::new(lease).unwrap(),
                    reason: EndReason::Withdrawn,
                    grace: Duration::from_millis(grace_ms),
                });
            }
            Step::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.report_used(); // before what is due is done
                self.apply(Event::Time);
                let next = self.allocations.next_deadline();
                assert!(next.is_none_or(|next| next > self.now), "something due was left undone");
                self.report_used();
            }
            Step::Shrink { cores } => {
                self.capacity = Capacity { cores, ..CAPACITY };
                self.apply(Event::Capacity(self.capacity));
            }
            Step::Drain { grace_ms } => self.drain(Duration::from_millis(grace_ms)),
            Step::Restart => self.restart(),
        }
    }

    /// The resource manager is told what leases in use have used: more than before, and not too much.
    fn report_used(&mut self) {
        let counted = |lease: LeaseId| Usage { invocations: lease.get(), ..FORGED };
        for used in self.allocations.used(self.now, counted) {
            let lease = used.lease.get();
            check_clamped(&terms_of(lease), &used.bill);
            let known = self.known(lease);
            assert_eq!((known.claimed, known.ended), (1, 0), "not in use");
            assert!(used.bill.allocated_ns >= known.used.allocated_ns);
            // What runs counted so much, and its last word is not less.
            known.used = Bill { invocations: 0.into(), ..used.bill };
        }
    }

    fn drain(&mut self, grace: Duration) {
        let deadline = self.now + grace;
        self.draining = Some(self.draining.map_or(deadline, |earlier| earlier.min(deadline)));
        self.apply(Event::Drain { grace });
    }

    /// The manager is killed, and with it its executors and connections; another one begins.
    fn restart(&mut self) {
        self.run += 1;
        self.authority = authority(self.run);
        self.allocations = World::allocations();
        self.draining = None;
        self.leases.clear(); // their bills are the resource manager's to make
        for client in &mut self.clients {
            *client = ClientId(self.next_client);
            self.next_client += 1;
        }
        self.apply(Event::Capacity(self.capacity));
    }

    /// The start under way, if there is one, succeeds or fails, or what was started turns out not to be there;
    /// sometimes told although nothing is.
    fn start_done(&mut self, lease: u64, works: bool) {
        let id = LeaseId::new(lease).unwrap();
        let known = self.known(lease);
        if known.process == Process::Starting {
            known.process = if works { Process::Running } else { Process::None };
            known.held &= works || known.claimed > 0;
        } else if !works {
            known.process = Process::None;
        }
        self.apply(if works {
            Event::Started(id)
        } else {
            Event::StartFailed { lease: id, reason: "scripted".into() }
        });
    }

    /// The process, if there is one, is killed, as its container has not started in time.
    fn give_up(&mut self, lease: u64) {
        let known = self.known(lease);
        if known.process == Process::Running {
            known.process = Process::Stopping;
        }
        let told = |actions: Vec<Action>| {
            assert!(actions.iter().all(|it| matches!(it, Action::Tell(_, ToClient::Refused(_)))));
            actions.len()
        };
        let given_up =
            || Event::GivenUp { lease: LeaseId::new(lease).unwrap(), reason: "scripted".into() };
        assert!(told(self.apply(given_up())) <= 1);
        assert_eq!(told(self.apply(given_up())), 0, "told twice");
    }

    /// The process, if there is one, ends; told twice, with counters that no machine reaches.
    fn exit_done(&mut self, lease: u64, exit: Exit) {
        let id = LeaseId::new(lease).unwrap();
        let known = self.known(lease);
        if known.process == Process::Starting {
            return; // nothing can exit that has not started
        }
        known.process = Process::None;
        self.exit_told = false;
        for _ in 0..2 {
            self.apply(Event::Exited { lease: id, exit, usage: FORGED });
        }
    }
}

/// Counters that no machine reaches.
const FORGED: Usage = Usage { hot_polling_ns: u64::MAX, execution_ns: 1 << 40, invocations: 1 };

/// CLAMPED.
fn check_clamped(terms: &LeaseTerms, bill: &Bill) {
    let used = bill.hot_polling_ns.get() + bill.execution_ns.get();
    assert!(used <= u64::from(terms.cores.get()) * bill.allocated_ns.get(), "{bill:?}");
}

fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(CASES))
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn leases_are_never_overcommitted_and_each_ends_and_is_billed_exactly_once(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.drain(Duration::ZERO);
        for lease in 1..LEASES {
            let lease = world.number(lease, 0);
            if world.known(lease).process == Process::Starting {
                world.start_done(lease, true);
            }
            world.exit_done(lease, Exit::Status(0));
        }
        prop_assert!(world.allocations.is_empty());
        prop_assert!(world.clients.iter().all(|&client| world.allocations.lease_of(client).is_none()));
        prop_assert_eq!(world.allocations.next_deadline(), None);
        prop_assert_eq!(world.allocations.free(), world.capacity);
        let nothing = Capacity { cores: 0, memory: 0 };
        prop_assert_eq!(world.allocations.room.taken(), (nothing, Some(0)));
        prop_assert!(world.allocations.used(world.now, |_| FORGED).is_empty());
        for (lease, known) in &world.leases {
            prop_assert_eq!(known.claimed, known.ended, "lease {}", lease);
            prop_assert!(!known.held, "lease {}", lease);
        }
    }
}
