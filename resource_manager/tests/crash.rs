//! Crash consistency: the program is killed again and again while nodes and leases change, and started on
//! the same state file. Whatever was acknowledged is there, no id is used twice, every lease is billed once.
//!
//! ```text
//!   operator   adds and removes nodes        ┐                               ┌ what it was told
//!   batch      leases, renews, gives back    ├─▶ manager ──SIGKILL──▶ again ─┤ compared with what is there
//!   node       claims, ends, is acknowledged ┘                               └ and what was under way
//! ```
//! Each of the three owns what it changes and does one thing at a time, so that at most one change of each is
//! uncertain at a kill. `RFAAS_TEST_SEED` repeats a run (threads still interleave as they like).
//!
//! Elsewhere: that the disk is waited for, which a killed process does not show (`server/tests`).

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use rfaas_api::Renewal;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{EndReason, NodeName, Token};
use rfaas_protocol::node::{Bill, FromNode, LeaseClaimed, LeaseEnded, Register, ToNode};
use serde_json::{Value, json};
use support::*;

const KILLS: u32 = 200;
/// The program is killed within this time after it listens; sometimes before.
const LONGEST_RUN: Duration = Duration::from_millis(60);
const CORES: u64 = 60_000;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn fork(&mut self) -> Self {
        Random(self.below(u64::MAX))
    }
}

/// Whoever adds and removes nodes: their cores, as acknowledged.
#[derive(Default)]
struct Operator {
    nodes: BTreeMap<String, u64>,
    /// Under way: what the node's cores may be too.
    uncertain: Option<(String, Option<u64>)>,
}

impl Operator {
    fn run(&mut self, at: SocketAddr, random: &mut Random) {
        loop {
            let name = format!("x{}", random.below(8));
            let cores = (random.below(3) > 0).then(|| 1 + random.below(9));
            let (target, body) = match cores {
                Some(cores) => (format!("/add?node={name}"), node_json(cores)),
                None => (format!("/remove?node={name}"), String::new()),
            };
            self.uncertain = Some((name.clone(), cores));
            let Ok((status, answer)) = http(at, "POST", &target, &body) else { return };
            if status == 503 {
                return; // it was not committed any more
            }
            assert_eq!(status, 200, "{answer}");
            self.uncertain = None;
            match cores {
                Some(cores) => drop(self.nodes.insert(name, cores)),
                None => drop(self.nodes.remove(&name)),
            }
        }
    }

    /// Compares, and takes over what was uncertain.
    fn check(&mut self, nodes: &Value) {
        let there: BTreeMap<String, u64> = nodes
            .as_array()
            .unwrap()
            .iter()
            .map(|node| (node["node"].as_str().unwrap().into(), node["cores"].as_u64().unwrap()))
            .filter(|(name, _)| name != "a")
            .collect();
        if let Some((name, cores)) = self.uncertain.take()
            && there.get(&name).copied() == cores
        {
            match cores {
                Some(cores) => drop(self.nodes.insert(name, cores)),
                None => drop(self.nodes.remove(&name)),
            }
        }
        assert_eq!(there, self.nodes, "nodes");
    }
}

fn node_json(cores: u64) -> String {
    support::new_node(cores.try_into().unwrap(), 4_000_000)
}

/// What was acknowledged of a lease.
struct Lease {
    token: Option<Token>,
    expires_at: String,
    /// As the answer to its deletion had it.
    deleted: Option<String>,
}

/// Whoever leases over HTTP.
#[derive(Default)]
struct Batch {
    leases: BTreeMap<u64, Lease>,
    /// Under way: a lease that nobody heard of yet.
    granting: bool,
    renewing: Option<u64>,
    deleting: Option<u64>,
}

impl Batch {
    fn run(&mut self, at: SocketAddr, random: &mut Random, granted: &Sender<Token>) {
        while self.step(at, random, granted).is_some() {}
    }

    /// Does one thing; `None`: the manager is gone.
    fn step(&mut self, at: SocketAddr, random: &mut Random, granted: &Sender<Token>) -> Option<()> {
        let alive = |lease: &Lease| lease.token.is_some() && lease.deleted.is_none();
        let live: Vec<u64> =
            self.leases.iter().filter(|(_, l)| alive(l)).map(|(id, _)| *id).collect();
        let id = live.get(random.below(live.len().max(1) as u64) as usize).copied();
        match (random.below(4), id) {
            (0, Some(id)) => {
                self.renewing = Some(id);
                let lease = self.leases.get_mut(&id).unwrap();
                let token = lease.token.unwrap().to_text();
                let timeout_ms = Some(7_200_000 + random.below(9999));
                let body = serde_json::to_string(&Renewal { token, timeout_ms }).unwrap();
                let target = format!("/leases/{id}/renew");
                let (status, answer) = call(at, "POST", &target, &body)?;
                match status {
                    200 => lease.expires_at = answer["expires_at"].as_str().unwrap().into(),
                    409 => {} // its node ended it meanwhile
                    _ => panic!("{status} {answer}"),
                }
                self.renewing = None;
            }
            (1, Some(id)) => {
                self.deleting = Some(id);
                let (status, answer) = call(at, "DELETE", &format!("/leases/{id}"), "")?;
                assert_eq!(status, 200, "{answer}");
                let state = answer["state"].as_str().unwrap().to_owned();
                self.leases.get_mut(&id).unwrap().deleted = Some(state);
                self.deleting = None;
            }
            _ => {
                self.granting = true;
                let body = r#"{"cores":1,"memory":1,"client":"batch"}"#;
                let (status, answer) = call(at, "POST", "/leases", body)?;
                self.granting = false;
                if status == 409 {
                    return Some(()); // its node is not there yet
                }
                assert_eq!(status, 201, "{answer}");
                let id = answer["id"].as_u64().unwrap();
                let last = self.leases.keys().next_back().copied();
                assert!(Some(id) > last, "id {id} after {last:?}");
                let token = Token::from_text(answer["token"].as_str().unwrap()).unwrap();
                let expires_at = answer["expires_at"].as_str().unwrap().into();
                self.leases.insert(id, Lease { token: Some(token), expires_at, deleted: None });
                let _ = granted.send(token);
            }
        }
        Some(())
    }

    /// Compares, and takes over what was uncertain.
    fn check(&mut self, there: &BTreeMap<u64, Value>, bills: &BTreeMap<u64, Value>, node: &Node) {
        for id in there.keys().chain(bills.keys()) {
            if !self.leases.contains_key(id) {
                let last = self.leases.keys().next_back();
                assert!(
                    std::mem::take(&mut self.granting) && Some(id) > last,
                    "lease {id}, from nowhere"
                );
                let expires_at = String::new();
                self.leases.insert(*id, Lease { token: None, expires_at, deleted: None });
            }
        }
        for (id, lease) in &self.leases {
            let (found, bill) = (there.get(id), bills.get(id));
            assert!(found.is_some() != bill.is_some(), "lease {id}: {found:?}, {bill:?}");
            if node.acknowledged.contains(id) {
                let bill = bill.unwrap_or_else(|| panic!("lease {id} was acknowledged as ended"));
                assert_eq!(
                    (&bill["provisional"], &bill["allocated_ms"]),
                    (&json!(false), &json!(7))
                );
            }
            if let Some(found) = found {
                let end = found["expires_at"].as_str().unwrap();
                let renewing = self.renewing == Some(*id);
                let same = end == lease.expires_at || lease.token.is_none();
                assert!(same || (renewing && end > &*lease.expires_at), "lease {id}: {end}");
                match lease.deleted.as_deref() {
                    Some("ending") => assert_eq!(found["state"], "ending", "lease {id}"),
                    Some(other) => panic!("lease {id} is there, and was {other}"),
                    None => {}
                }
            } else {
                let may_end = lease.deleted.is_some()
                    || self.deleting == Some(*id)
                    || node.ended.contains_key(id)
                    || node.acknowledged.contains(id);
                assert!(may_end, "lease {id} has ended by itself: {bill:?}");
            }
        }
        self.granting = false;
        for id in self.renewing.take().into_iter().chain(self.deleting.take()) {
            let lease = self.leases.get_mut(&id).unwrap();
            match there.get(&id) {
                Some(found) => {
                    lease.expires_at = found["expires_at"].as_str().unwrap().into();
                    if found["state"] == "ending" {
                        lease.deleted.get_or_insert("ending".into());
                    }
                }
                None => drop(lease.deleted.get_or_insert("ended".into())),
            }
        }
    }
}

/// Status and JSON; `None`: the manager is gone, or is going.
fn call(at: SocketAddr, method: &str, target: &str, body: &str) -> Option<(u16, Value)> {
    let (status, text) = http(at, method, target, body).ok()?;
    (status != 503).then(|| (status, serde_json::from_str(&text).unwrap()))
}

/// The executor manager of node `a`: what it holds outlives the connection.
#[derive(Default)]
struct Node {
    held: BTreeMap<u64, Token>,
    /// Ended and reported, again after each reconnection.
    ended: BTreeMap<u64, Token>,
    /// That the end is booked.
    acknowledged: BTreeSet<u64>,
}

impl Node {
    fn run(&mut self, at: SocketAddr, random: &mut Random, granted: Receiver<Token>) {
        if let Ok((mut channel, nonces)) = dial_node(at, b"42") {
            let name = NodeName::new("a").unwrap();
            let register = Register::new(name, INSTANCE, listens(), &nonces, b"42");
            let registered = channel.send(&FromNode::Register(register));
            let ended = registered.and_then(|()| self.serve(&mut channel, random, &granted));
            assert!(!matches!(ended, Err(ChannelError::Malformed(_))), "{ended:?}");
        }
    }

    /// Until the connection ends.
    fn serve(
        &mut self,
        channel: &mut Channel,
        random: &mut Random,
        granted: &Receiver<Token>,
    ) -> Result<(), ChannelError> {
        loop {
            match channel.receive(Duration::from_micros(500)) {
                Ok(Incoming::Message(ToNode::Registered(_))) => {
                    for token in self.held.values() {
                        channel.send(&FromNode::Claimed(LeaseClaimed { terms: token.terms }))?;
                    }
                    for token in self.ended.values() {
                        channel.send(&report(token))?;
                    }
                }
                Ok(Incoming::Message(ToNode::EndedAck(ack))) => {
                    self.ended.remove(&ack.lease.get());
                    self.acknowledged.insert(ack.lease.get());
                }
                Ok(Incoming::Message(ToNode::EndLease(end))) => {
                    self.end(channel, end.lease.get())?
                }
                Ok(Incoming::Message(ToNode::Heartbeat(_))) => {}
                Ok(other) => panic!("{other:?}"),
                Err(ChannelError::TimedOut { .. }) => {
                    if let Ok(token) = granted.try_recv()
                        && random.below(2) == 0
                    {
                        self.held.insert(token.terms.lease.get(), token);
                        channel.send(&FromNode::Claimed(LeaseClaimed { terms: token.terms }))?;
                    }
                    let some = self.held.keys().nth(random.below(16) as usize).copied();
                    some.map_or(Ok(()), |id| self.end(channel, id))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn end(&mut self, channel: &mut Channel, id: u64) -> Result<(), ChannelError> {
        let Some(token) = self.held.remove(&id) else { return Ok(()) };
        self.ended.insert(id, token);
        channel.send(&report(&token))
    }
}

fn report(token: &Token) -> FromNode {
    let bill = Bill { allocated_ns: 7_000_000.into(), ..Bill::default() };
    let reason = EndReason::Released.to_wire();
    FromNode::Ended(LeaseEnded { terms: token.terms, reason, bill })
}

/// Rows of an answer by `key`, of which each may be there once.
fn by_id(rows: &Value, key: &str) -> BTreeMap<u64, Value> {
    let mut found = BTreeMap::new();
    for row in rows.as_array().unwrap() {
        let before = found.insert(row[key].as_u64().unwrap(), row.clone());
        assert!(before.is_none(), "twice: {row}");
    }
    found
}

#[test]
fn whatever_was_acknowledged_is_there_after_each_of_200_kills() {
    let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("RFAAS_TEST_SEED").ok().map_or_else(clock, |s| s.parse().unwrap());
    eprintln!("RFAAS_TEST_SEED={seed}");
    let start = Instant::now();
    let mut random = Random(seed);
    let files = Files::new(&[("state_file", json!("state")), ("silence_ms", json!(60_000))]);
    let (mut operator, mut batch, mut node) =
        (Operator::default(), Batch::default(), Node::default());
    for round in 0..KILLS {
        if random.below(8) == 0 {
            let mut starting =
                files.command(&[]).stderr(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            starting.kill().unwrap();
            starting.wait().unwrap();
        }
        let mut manager = Manager::start(&files, &[]);
        operator.check(&manager.get("/nodes"));
        let (leases, bills) = (manager.get("/leases"), manager.get("/billing"));
        batch.check(&by_id(&leases, "id"), &by_id(&bills, "lease"), &node);
        if round == 0 {
            assert_eq!(manager.call("POST", "/add?node=a", &node_json(CORES)).0, 200);
        }
        let (sender, granted) = channel();
        let (http, rdma) = (manager.http, manager.rdma);
        let mut randoms = [random.fork(), random.fork(), random.fork()];
        let [for_operator, for_batch, for_node] = &mut randoms;
        std::thread::scope(|scope| {
            scope.spawn(|| operator.run(http, for_operator));
            scope.spawn(|| batch.run(http, for_batch, &sender));
            let node = &mut node;
            scope.spawn(move || node.run(rdma, for_node, granted));
            std::thread::sleep(LONGEST_RUN.mul_f64(random.below(1000) as f64 / 1000.0));
            kill(manager.pid(), Signal::SIGKILL).unwrap();
        });
        manager.ended();
    }
    all_of_it_ends(&files, &mut batch, &mut node);
    let (leases, seconds) = (batch.leases.len(), start.elapsed().as_secs_f64());
    eprintln!("{KILLS} kills, {leases} leases, {seconds:.1} s");
    assert!(leases > 200, "too few leases to prove anything: {leases}");
}

/// Everything is given back, and billed once.
fn all_of_it_ends(files: &Files, batch: &mut Batch, node: &mut Node) {
    let manager = Manager::start(files, &[]);
    let (leases, bills) = (manager.get("/leases"), manager.get("/billing"));
    batch.check(&by_id(&leases, "id"), &by_id(&bills, "lease"), node); // the last kill's, too
    let (sender, granted) = channel();
    drop(sender);
    let mut random = Random(0);
    std::thread::scope(|scope| {
        let rdma = manager.rdma;
        scope.spawn(move || node.run(rdma, &mut random, granted));
        for id in by_id(&manager.get("/leases"), "id").into_keys() {
            manager.call("DELETE", &format!("/leases/{id}"), "");
        }
        wait_for("the end of all leases", || (manager.get("/leases") == json!([])).then_some(()));
        kill(manager.pid(), Signal::SIGKILL).unwrap();
    });
    let manager = Manager::start(files, &[]);
    assert_eq!(manager.get("/nodes/a")["free_cores"], CORES);
    let bills = by_id(&manager.get("/billing"), "lease");
    assert!(bills.keys().eq(batch.leases.keys()), "each lease has its bill");
    let sums = manager.get("/billing?by=client");
    assert_eq!(sums[0]["leases"], batch.leases.len());
}
