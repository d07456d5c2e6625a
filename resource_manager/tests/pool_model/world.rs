//! The pool, a store behind it, executor managers and clients around it; what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdmalib::Peer;
use resource_manager::pool::{
    Action, Ask, Billed, Capacity, Changes, Denied, EXPIRY_MARGIN, EndReport, FairUse, Grant,
    LeaseState, LeaseView, LinkId, NodeSpec, NodeState, NodeSums, NotRenewed, NotReplaced, Now,
    Pool, Run, Terms,
};
use rfaas_protocol::constraints::Constraints;
use rfaas_protocol::isolation::Layers;
use rfaas_protocol::lease::{EndReason, LeaseId, Unusable};
use rfaas_protocol::node::Bill;

use super::lifetimes::Lifetimes;
use super::managers::{Manager, Report};
use super::store::Store;
use super::{Lie, NODES, Op};

const NODE_RETURN: Duration = Duration::from_millis(1_500);
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// Cores that the one client here may hold.
const MOST_CORES: u32 = 10;

fn rules() -> FairUse {
    FairUse { claim_timeout: CLAIM_TIMEOUT, cores: Some(MOST_CORES), ..FairUse::default() }
}

/// Invocations in a bill that is not to be believed.
const FORGED: u64 = 1_000_000;

/// A lease that was granted, as its client knows it.
struct Client {
    grant: Grant,
    /// Whether it was: the resource manager may have been killed before it said so.
    told: bool,
}

/// The resource manager is killed during an event.
#[derive(Clone, Copy)]
struct Crash {
    committed: bool,
    down: Duration,
}

pub struct World {
    pool: Pool,
    store: Store,
    /// Changes that may wait.
    waiting: Vec<Changes>,
    now: Now,
    lifetimes: Lifetimes,
    /// When each node last came or went.
    moved: [SystemTime; NODES],
    crash: Option<Crash>,
    managers: Vec<Manager>,
    links: u64,
    clients: Vec<Client>,
    /// Ends that were acknowledged, which are not to be forgotten.
    acknowledged: BTreeMap<LeaseId, EndReport>,
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn node_of(grant: &Grant) -> usize {
    grant.node[5..].parse().expect("see `name`")
}

impl World {
    pub fn new() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let now = Now { monotonic: Instant::now(), wall };
        let pool = Pool::new(now, NODE_RETURN).with_rules(now, rules());
        World {
            store: Store::new(pool.first_id()),
            pool,
            waiting: Vec::new(),
            now,
            lifetimes: Lifetimes::new(wall),
            moved: [wall; NODES],
            crash: None,
            managers: (0..NODES).map(|_| Manager::new()).collect(),
            links: 0,
            clients: Vec::new(),
            acknowledged: BTreeMap::new(),
        }
    }

    /// The lease that an operation means.
    fn client(&self, index: usize) -> Option<usize> {
        index.checked_rem(self.clients.len()).filter(|at| self.clients[*at].told)
    }

    fn id(&self, index: usize) -> Option<LeaseId> {
        self.client(index).map(|at| self.clients[at].grant.terms.lease)
    }

    pub fn apply(&mut self, op: &Op) {
        if let Op::Crash { committed, down_ms } = *op {
            self.crash = Some(Crash { committed, down: Duration::from_millis(down_ms) });
            return;
        }
        let mut out = Vec::new();
        let told = self.happen(op, &mut out);
        self.settle(out, told);
        self.check();
    }

    /// An event. Returns what is to be said to a client: the lease, as it is from then on.
    fn happen(&mut self, op: &Op, out: &mut Vec<Action>) -> Vec<Grant> {
        let now = self.now;
        match *op {
            Op::Add { node, cores, memory } => {
                let capacity = Capacity { cores, memory };
                let spec = NodeSpec::new(&name(node), "127.0.0.1", 1, capacity).unwrap();
                let _ = self.pool.add_node(now, spec, out);
            }
            Op::Remove { node, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.pool.remove_node(now, &name(node), grace, out);
            }
            Op::Connect { node, obeys } => self.connect(node, obeys, out),
            Op::Disconnect { node } => {
                self.disconnect(node, out);
            }
            Op::Restart { node } => {
                self.disconnect(node, out);
                self.managers[node].restarted();
            }
            Op::Stop { node } => {
                self.managers[node].stopping = true;
                if let Some(link) = self.managers[node].link {
                    self.pool.draining(now, link, Duration::from_secs(1), out);
                }
            }
            Op::Request { cores, memory, timeout_ms, max_nodes, while_connected } => {
                let timeout = Duration::from_millis(timeout_ms);
                let ask = Ask::new(cores, memory, timeout, "c").unwrap();
                let ask = ask.on_nodes(max_nodes).unwrap();
                let ask = if while_connected { ask.while_connected() } else { ask };
                let grants = self.request(&ask, Capacity { cores, memory }, max_nodes);
                self.lifetimes.granted(now.wall, while_connected, &grants);
                return grants;
            }
            Op::Grow { leases, workers, each: (cores, memory), timeout_ms } => {
                let leases: Vec<_> = leases.into_iter().filter_map(|at| self.id(at)).collect();
                if leases.is_empty() {
                    return Vec::new();
                }
                let ask = Ask::new(cores, memory, Duration::from_millis(timeout_ms), "c").unwrap();
                let ask = ask.gang(workers, Constraints::default()).unwrap();
                let ask = ask.growing(leases.clone()).unwrap();
                let grants = self.grow(&ask, &leases, workers, Capacity { cores, memory });
                self.lifetimes.granted(now.wall, false, &grants);
                return grants;
            }
            Op::Renew { lease, timeout_ms } => return self.renew(lease, timeout_ms),
            Op::Replace { lease, origin } => return self.replace(lease, origin, out),
            Op::Claim { lease } => {
                if let Some(at) = self.client(lease) {
                    let grant = &self.clients[at].grant;
                    let manager = &mut self.managers[node_of(grant)];
                    manager.renew(&grant.terms);
                    manager.claim(now, &grant.terms);
                }
            }
            Op::Work { lease } => {
                if let Some((manager, id)) = self.holder(lease) {
                    manager.work(id);
                }
            }
            Op::End { lease } => {
                if let Some((manager, id)) = self.holder(lease) {
                    manager.end(id, EndReason::Released);
                }
            }
            Op::Delete { lease } => {
                if let Some(at) = self.client(lease) {
                    self.delete(at, out);
                }
            }
            Op::ClientGone { lease } => {
                let lease = self.id(lease).and_then(|id| self.pool.lease(id));
                self.pool.client_gone(now, lease.as_ref().map(|lease| lease.lease));
                lease.iter().for_each(|lease| self.lifetimes.client_gone(now.wall, lease));
            }
            Op::Deliver { node, which, again } => self.deliver(node, which, again, out),
            Op::Lose { node, which } => {
                let under_way = &mut self.managers[node].under_way;
                which.checked_rem(under_way.len()).map(|at| under_way.remove(at));
            }
            Op::Forge { node, lease, lie } => self.forge(node, lease, lie, out),
            Op::Pass { ms } => {
                self.pass(Duration::from_millis(ms));
                self.pool.tick(self.now, out);
                let next = self.pool.next_deadline();
                assert!(next.is_none_or(|at| at > self.now.monotonic), "a loop would spin");
            }
            Op::Flush => self.flush(),
            Op::Crash { .. } => {}
        }
        Vec::new()
    }

    fn holder(&mut self, lease: usize) -> Option<(&mut Manager, LeaseId)> {
        let grant = &self.clients[self.client(lease)?].grant;
        Some((&mut self.managers[node_of(grant)], grant.terms.lease))
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
        for manager in self.managers.iter_mut().filter(|manager| manager.obeys) {
            manager.mind_the_time(self.now);
        }
    }

    fn connect(&mut self, node: usize, obeys: bool, out: &mut Vec<Action>) {
        let manager = &mut self.managers[node];
        manager.obeys = obeys;
        if manager.link.is_some() {
            return;
        }
        self.links += 1;
        let link = LinkId(self.links);
        self.moved[node] = self.now.wall;
        let address = ([127, 0, 0, 1], 1).into();
        let run =
            Run { instance: manager.instance, address, clock_ahead_ms: 0, isolation: Layers::NONE };
        if self.pool.node_connected(self.now, &name(node), run, link, out).is_ok() {
            manager.connected(link);
        }
    }

    fn disconnect(&mut self, node: usize, out: &mut Vec<Action>) {
        let link = self.managers[node].link;
        self.moved[node] = self.now.wall;
        self.managers[node].disconnected();
        if let Some(link) = link {
            self.pool.node_disconnected(self.now, link, out);
            // What it said last may come after: it concerns nobody.
            self.pool.used(link, self.pool.first_id(), Bill::default());
        }
    }

    fn request(&mut self, ask: &Ask, wanted: Capacity, max_nodes: u32) -> Vec<Grant> {
        let possible = self.possible(wanted, max_nodes);
        let held: u32 = self.pool.leases().iter().map(|lease| lease.cores).sum();
        let answer = self.pool.try_request(self.now, ask).and_then(|granted| match granted {
            Some(grants) => Ok(grants),
            None => {
                assert!(!possible, "set aside though there is room");
                self.pool.request_again(self.now, ask)
            }
        });
        let grants = match answer {
            Ok(grants) => grants,
            Err(Denied::Limit(limit)) => {
                assert!(held + wanted.cores > MOST_CORES, "{limit}, and {held} are held");
                return Vec::new();
            }
            Err(denied) => {
                assert!(!possible, "refused though there is room: {denied}");
                return Vec::new();
            }
        };
        assert!(held + wanted.cores <= MOST_CORES, "more than one client may hold");
        assert!(possible, "granted without room");
        assert!((1..=max_nodes as usize).contains(&grants.len()));
        assert_eq!(grants.iter().map(|grant| grant.terms.cores).sum::<u32>(), wanted.cores);
        let nodes: BTreeSet<_> = grants.iter().map(|grant| grant.node.clone()).collect();
        assert_eq!(nodes.len(), grants.len(), "two parts on one node");
        for terms in grants.iter().map(|grant| &grant.terms) {
            let share = (wanted.memory * terms.cores).div_ceil(wanted.cores);
            assert_eq!(terms.memory, share);
        }
        grants
    }

    /// Workers beside leases: all or none, first where these hold most, a lease a node.
    fn grow(&mut self, ask: &Ask, leases: &[LeaseId], workers: u32, each: Capacity) -> Vec<Grant> {
        let takes = |free: Capacity| (free.cores / each.cores).min(free.memory / each.memory);
        let nodes = self.pool.nodes();
        let ready = nodes.iter().filter(|node| node.state == NodeState::Ready);
        let room: BTreeMap<_, _> =
            ready.map(|node| (node.spec.name().clone(), takes(node.free))).collect();
        let mut grown: BTreeMap<_, u32> = BTreeMap::new();
        let leases: BTreeSet<_> = leases.iter().collect();
        let live = leases.into_iter().filter_map(|id| self.pool.lease(*id));
        for lease in live.filter(|lease| lease.state != LeaseState::Ending) {
            *grown.entry(lease.node).or_default() += lease.cores;
        }
        let own = |node: &Arc<str>| grown.get(node).copied().unwrap_or(0);
        let held: u32 = self.pool.leases().iter().map(|lease| lease.cores).sum();
        let may_hold = held + workers * each.cores <= MOST_CORES;
        let possible = room.values().sum::<u32>() >= workers;
        let grants = match self.pool.request(self.now, ask) {
            Ok(grants) => grants,
            Err(denied) => {
                let is_limit = matches!(denied, Denied::Limit(_));
                assert!(if is_limit { !may_hold } else { !possible }, "{denied}");
                return Vec::new();
            }
        };
        assert!(possible && may_hold, "granted without room, or more than a client may hold");
        let mut taken: BTreeMap<_, u32> = BTreeMap::new();
        for grant in &grants {
            let here = grant.terms.cores / each.cores;
            let whole = (here * each.cores, here * each.memory);
            assert_eq!((grant.terms.cores, grant.terms.memory), whole, "a part of a worker");
            assert!(taken.insert(grant.node.clone(), here).is_none(), "two leases on one node");
        }
        assert_eq!(taken.values().sum::<u32>(), workers, "all or none");
        for node in taken.keys() {
            for (other, room) in &room {
                let full = taken.get(other).copied().unwrap_or(0) == *room;
                assert!(own(other) <= own(node) || full, "{other} holds more than {node}");
            }
        }
        grants
    }

    /// Whether `wanted` fits, by looking at every node.
    fn possible(&self, wanted: Capacity, max_nodes: u32) -> bool {
        let nodes = self.pool.nodes();
        let ready = nodes.iter().filter(|node| node.state == NodeState::Ready);
        let fits = |free: Capacity, cores: u32| {
            free.cores >= cores && free.memory * wanted.cores >= wanted.memory * cores
        };
        let mut takes: Vec<u32> = ready
            .map(|node| (0..=wanted.cores).rev().find(|cores| fits(node.free, *cores)).unwrap_or(0))
            .collect();
        takes.sort_unstable_by_key(|cores| std::cmp::Reverse(*cores));
        takes.iter().take(max_nodes as usize).sum::<u32>() >= wanted.cores
    }

    fn renew(&mut self, lease: usize, timeout_ms: u64) -> Vec<Grant> {
        let Some(at) = self.client(lease) else { return Vec::new() };
        let before = &self.clients[at].grant;
        let (id, manager) = (before.terms.lease, &self.managers[node_of(before)]);
        let lease = self.pool.lease(id);
        let state = lease.as_ref().map(|lease| lease.state);
        let is_over = lease.as_ref().is_none_or(|lease| lease.expires_at <= self.now.wall);
        let is_stopping = manager.stopping && manager.link.is_some();
        let timeout = Duration::from_millis(timeout_ms);
        match self.pool.renew(self.now, id, timeout, None) {
            Ok(renewed) => {
                let lease = lease.expect("it has not ended");
                assert!(matches!(lease.state, LeaseState::Granted | LeaseState::Active));
                assert!(!is_over && !is_stopping, "too late");
                let expires_at = lease.expires_at.max(self.now.wall + timeout);
                let terms = Terms { expires_at, ..before.terms.clone() };
                assert_eq!(renewed, Grant { terms, ..before.clone() });
                self.lifetimes.renewed(id);
                vec![renewed]
            }
            Err(error) => {
                assert!(match error {
                    NotRenewed::Ended(_) => is_over,
                    NotRenewed::Ending { .. } => is_stopping || state == Some(LeaseState::Ending),
                    other => panic!("{other}"),
                });
                Vec::new()
            }
        }
    }

    /// A lease is to end, which is said twice.
    fn delete(&mut self, at: usize, out: &mut Vec<Action>) {
        let grant = &self.clients[at].grant;
        let (id, node) = (grant.terms.lease, &self.managers[node_of(grant)]);
        let before = self.pool.lease(id).map(|lease| lease.state);
        let after = match before {
            Some(LeaseState::Active | LeaseState::Ending) => LeaseState::Ending,
            _ => LeaseState::Ended,
        };
        let reason = EndReason::Withdrawn;
        assert_eq!(self.pool.end_lease(self.now, id, reason, out), Some(after));
        let said = out.len();
        if before == Some(LeaseState::Active) {
            assert_eq!(said, usize::from(node.link.is_some()), "its node is asked to end it");
        }
        assert_eq!(self.pool.end_lease(self.now, id, reason, out), Some(after));
        assert_eq!(out.len(), said, "repeating it changes nothing");
        let never = LeaseId::new(1).unwrap();
        assert_eq!(self.pool.end_lease(self.now, never, reason, out), None);
    }

    /// A client could not use its lease, or says so.
    fn replace(&mut self, lease: usize, origin: usize, out: &mut Vec<Action>) -> Vec<Grant> {
        let Some(at) = self.client(lease) else { return Vec::new() };
        let before = &self.clients[at].grant;
        let (id, terms, from) = (before.terms.lease, before.terms.clone(), before.node.clone());
        let state = self.pool.lease(id).map(|lease| lease.state);
        let granted = self.pool.lease(id).map(|lease| lease.expires_at);
        let elsewhere = self.pool.nodes().iter().any(|node| {
            let wanted = Capacity { cores: terms.cores, memory: terms.memory };
            node.state == NodeState::Ready && *node.spec.name() != from && node.free.holds(wanted)
        });
        let origin = Peer::User(origin as u32);
        match self.pool.replace(self.now, id, Unusable::Refused, origin, out) {
            Ok(other) => {
                assert_eq!(state, Some(LeaseState::Granted));
                assert!(elsewhere && other.node != from, "not elsewhere");
                let (new, old) = (&other.terms, &terms);
                assert_eq!((new.cores, new.memory), (old.cores, old.memory));
                assert_eq!(Some(new.expires_at), granted, "until the same time");
                assert!(self.pool.has_ended(id), "it has both");
                let node = node_of(&self.clients[at].grant);
                let connected = self.managers[node].link.map(|_| self.moved[node]);
                self.lifetimes.exchanged(id, new.lease, connected.unwrap_or(self.now.wall));
                vec![other]
            }
            Err(NotReplaced::NoRoom { .. }) => {
                assert!(!elsewhere, "there is room elsewhere");
                assert_eq!(state, Some(LeaseState::Granted));
                assert_eq!(self.pool.lease(id).map(|lease| lease.state), state, "it has neither");
                Vec::new()
            }
            Err(NotReplaced::NotUnclaimed(_)) => {
                let over = terms.expires_at <= self.now.wall;
                assert!(state != Some(LeaseState::Granted) || over, "{state:?}");
                Vec::new()
            }
            Err(NotReplaced::Constrained(lease)) => panic!("{lease} has no constraints"),
            Err(NotReplaced::Limit(limit)) => panic!("there are no limits: {limit}"),
        }
    }

    fn deliver(&mut self, node: usize, which: usize, again: bool, out: &mut Vec<Action>) {
        let manager = &mut self.managers[node];
        let Some(link) = manager.link else { return };
        let Some(at) = which.checked_rem(manager.under_way.len()) else { return };
        let report = match again {
            true => manager.under_way[at].clone(),
            false => manager.under_way.remove(at),
        };
        match report {
            Report::Claimed(terms) => self.claimed(link, &terms, out),
            Report::Used(lease, bill) => self.pool.used(link, lease, bill),
            Report::Ended(report) => self.pool.ended(self.now, link, &report, out),
        }
    }

    /// A node reports that a lease of its own is in use: it is, or the node is told to end it.
    fn claimed(&mut self, link: LinkId, terms: &Terms, out: &mut Vec<Action>) {
        let id = terms.lease;
        let state = |pool: &Pool| pool.lease(id).map(|lease| lease.state);
        let goes_on = matches!(state(&self.pool), Some(LeaseState::Granted | LeaseState::Active));
        let said = out.len();
        self.pool.claimed(self.now, link, terms, out);
        match out[said..] {
            [] => assert_eq!((goes_on, state(&self.pool)), (true, Some(LeaseState::Active))),
            [Action::EndLease { link: to, lease, reason, grace }] => {
                assert_eq!((goes_on, to, lease), (false, link, id));
                let guess = self.store.bills.get(&id).filter(|billed| !billed.reported);
                assert!(guess.is_none_or(|billed| billed.reason == reason), "not why it ended");
                let is_ending = state(&self.pool) == Some(LeaseState::Ending);
                assert!(is_ending || grace.is_zero(), "{grace:?} for what has ended");
            }
            ref other => panic!("{other:?}"),
        }
    }

    fn forge(&mut self, node: usize, lease: usize, lie: Lie, out: &mut Vec<Action>) {
        let (Some(link), Some(at)) = (self.managers[node].link, self.client(lease)) else { return };
        let mut terms = self.clients[at].grant.terms.clone();
        match lie {
            Lie::Node => {}
            Lie::Id { beyond } => {
                terms.lease = LeaseId::new(terms.lease.get() + beyond).unwrap();
            }
            Lie::Cores => terms.cores += 1,
            Lie::Memory => terms.memory += 1,
            Lie::Client => terms.client = "another".into(),
            Lie::Instance => terms.instance = terms.instance.map(|i| i.saturating_add(1)),
            Lie::Expiry => terms.expires_at += Duration::from_secs(3600),
        }
        let before = self.pool.lease(terms.lease);
        // These two are not in a bill.
        let is_seen = matches!(lie, Lie::Instance | Lie::Expiry) && before.is_some();
        let of = |terms: &Terms| (terms.lease, terms.cores, terms.memory, terms.client.clone());
        let mut grants = self.clients.iter().map(|client| &client.grant);
        let is_true = |grant: &Grant| node_of(grant) == node && of(&grant.terms) == of(&terms);
        if grants.any(is_true) && !is_seen {
            return; // that would be the truth
        }
        self.pool.claimed(self.now, link, &terms, out);
        let [Action::EndLease { lease, reason, grace, .. }] = out[..] else {
            panic!("it goes on: {out:?}");
        };
        assert_eq!((lease, grace), (terms.lease, Duration::ZERO));
        let guess = self.store.bills.get(&lease).filter(|billed| !billed.reported);
        let is_guess = guess.is_some_and(|billed| billed.reason == reason);
        assert!(is_guess || reason == EndReason::Withdrawn, "{reason:?}");
        let bill = Bill { invocations: FORGED.into(), ..Bill::default() };
        self.pool.used(LinkId(u64::MAX), terms.lease, bill);
        let lease = terms.lease;
        let report = EndReport { terms, reason: EndReason::Released, bill };
        let mut answer = Vec::new();
        self.pool.ended(self.now, link, &report, &mut answer);
        // It is acknowledged, but not to the executor manager, which has not said it.
        assert!(matches!(answer[..], [Action::AcknowledgeEnd { .. }]), "it has ended something");
        assert_eq!(self.pool.lease(lease), before, "it has changed something");
    }

    fn flush(&mut self) {
        for changes in self.waiting.drain(..) {
            self.store.commit(changes);
        }
    }

    /// What the loop does after events: makes changes durable, then says and does what follows.
    fn settle(&mut self, mut actions: Vec<Action>, mut told: Vec<Grant>) {
        loop {
            let changes = self.pool.take_changes();
            let urgent = changes.urgent;
            let guesses = changes.bills.iter().filter(|billed| !billed.reported);
            guesses.for_each(|billed| self.lifetimes.check_guess(billed));
            self.waiting.push(changes);
            let crash = self.crash.take();
            if urgent && crash.is_none_or(|crash| crash.committed) {
                self.flush();
            }
            if let Some(crash) = crash {
                let kept = self.store.live();
                told.retain(|grant| kept.contains(&grant.terms.lease));
                self.remember(told, false);
                return self.restart(crash.down);
            }
            self.remember(std::mem::take(&mut told), true);
            if actions.is_empty() {
                return;
            }
            let mut next = Vec::new();
            actions.into_iter().for_each(|action| self.act(action, &mut next));
            actions = next;
        }
    }

    fn remember(&mut self, grants: Vec<Grant>, told: bool) {
        for grant in grants {
            let same = |client: &&mut Client| client.grant.terms.lease == grant.terms.lease;
            match self.clients.iter_mut().find(same) {
                Some(client) if told => client.grant = grant,
                Some(_) => {} // a renewal that it did not hear of
                None => self.clients.push(Client { grant, told }),
            }
        }
    }

    /// The resource manager is gone, and with it what was not durable; another is started.
    fn restart(&mut self, down: Duration) {
        self.waiting.clear();
        self.managers.iter_mut().for_each(Manager::disconnected);
        self.pass(down);
        self.lifetimes.restarted(self.now.wall);
        let pool = Pool::restore(self.now, NODE_RETURN, self.store.snapshot());
        self.pool = pool.with_rules(self.now, rules());
        assert!(self.pool.leases().iter().map(|l| l.lease).eq(self.store.live()), "not restored");
    }

    fn act(&mut self, action: Action, out: &mut Vec<Action>) {
        match action {
            Action::EndLease { link, lease, reason, .. } => {
                let of_lease = self.pool.lease(lease).filter(|_| reason == EndReason::Expired);
                let is_due = |lease: LeaseView| lease.expires_at + EXPIRY_MARGIN <= self.now.wall;
                assert!(of_lease.is_none_or(is_due), "its node ends it by its own clock");
                if let Some(manager) = self.manager(link).filter(|manager| manager.obeys) {
                    manager.end(lease, reason);
                }
            }
            Action::AcknowledgeEnd { link, lease } => {
                let report = self.manager(link).and_then(|m| m.unacknowledged.remove(&lease));
                if let Some(report) = report {
                    self.acknowledged.insert(lease, report);
                }
            }
            Action::Close { link, .. } => {
                self.manager(link).map(Manager::disconnected);
                self.pool.node_disconnected(self.now, link, out);
            }
            Action::TellNode { .. } | Action::NodesChanged => {}
            Action::Resolve { .. } => panic!("addresses are numbers here"),
        }
    }

    fn manager(&mut self, link: LinkId) -> Option<&mut Manager> {
        self.managers.iter_mut().find(|manager| manager.link == Some(link))
    }

    /// What always holds.
    fn check(&mut self) {
        let leases = self.pool.leases();
        let mut held: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for lease in &leases {
            let (cores, memory) = held.entry(&lease.node).or_default();
            *cores += lease.cores;
            *memory += lease.memory;
        }
        self.check_counts(&leases);
        for node in self.pool.nodes() {
            let (cores, memory) = held.remove(&**node.spec.name()).unwrap_or_default();
            let all = node.spec.capacity();
            assert_eq!(node.free.cores.checked_add(cores), Some(all.cores), "over-committed");
            assert_eq!(node.free.memory.checked_add(memory), Some(all.memory), "over-committed");
        }
        assert!(held.is_empty(), "leases without a node: {held:?}");
        let live: BTreeSet<_> = leases.iter().map(|lease| lease.lease).collect();
        let billed = self.store.billed();
        assert_eq!(live, self.store.live(), "not durable");
        assert!(billed.iter().all(|id| self.pool.has_ended(*id)), "ended, and the pool knows not");
        assert!(!live.iter().any(|id| self.pool.has_ended(*id)), "not ended");
        let granted: BTreeSet<_> = self.clients.iter().map(|c| c.grant.terms.lease).collect();
        assert_eq!(granted, live.union(&billed).copied().collect(), "lost or invented");
        assert_eq!(granted.len(), self.clients.len(), "an id twice");
        let totals = self.pool.totals();
        let open = totals.granted - totals.ended.iter().sum::<u64>();
        assert_eq!(open, live.len() as u64, "ended twice");
        let forged = |bill: &Billed| bill.bill.invocations.get() == FORGED;
        assert!(!self.store.bills.values().any(forged), "billed what was not granted");
        for (lease, report) in &self.acknowledged {
            let kept = self.store.bills.get(lease).filter(|kept| kept.reported && kept.claimed);
            let known = kept.map(|kept| (kept.bill, kept.reason));
            assert_eq!(known, Some((report.bill, report.reason)), "the bill of {lease} is lost");
        }
        let (managers, moved) = (&self.managers, &self.moved);
        self.lifetimes.check(self.now.wall, leases, |node| {
            let node = node[5..].parse::<usize>().expect("see `name`");
            managers[node].link.map(|_| moved[node])
        });
    }

    /// What is counted is what there is.
    fn check_counts(&self, leases: &[LeaseView]) {
        for state in LeaseState::ALL {
            let all = leases.iter().filter(|lease| lease.state == state).count();
            assert_eq!(self.pool.count_leases(state), all, "{state:?}");
        }
        let (nodes, mut sums) = (self.pool.nodes(), NodeSums::default());
        for state in NodeState::ALL {
            let all = nodes.iter().filter(|node| node.state == state).count();
            assert_eq!(self.pool.count_nodes(state), all, "{state:?}");
        }
        for node in nodes.iter().filter(|node| node.state == NodeState::Ready) {
            let Capacity { cores, memory } = node.spec.capacity();
            sums.cores += u64::from(cores);
            sums.memory += u64::from(memory);
            sums.free_cores += u64::from(node.free.cores);
            sums.free_memory += u64::from(node.free.memory);
        }
        assert_eq!(self.pool.sums(), sums);
    }

    /// Nobody does anything any more: every lease ends. Then executor managers come back and say what was
    /// not acknowledged: it replaces what was a guess.
    pub fn come_to_rest(&mut self) {
        for _ in 0..120 {
            self.apply(&Op::Pass { ms: 1_000 });
        }
        assert!(self.pool.leases().is_empty(), "leases that never end");
        for node in self.pool.nodes() {
            assert_eq!(node.free, node.spec.capacity());
        }
        for node in 0..NODES {
            self.apply(&Op::Add { node, cores: 4, memory: 4 });
            self.apply(&Op::Disconnect { node });
            self.apply(&Op::Connect { node, obeys: true });
            while !self.managers[node].under_way.is_empty() {
                self.apply(&Op::Deliver { node, which: 0, again: false });
            }
            assert!(self.managers[node].unacknowledged.is_empty(), "not acknowledged");
        }
        assert!(self.store.live().is_empty());
    }
}
