//! Requests that wait for room, in the order in which they came.
//!
//! ```text
//!   first that could be met   ──▶ nodes are held back for it: they take no other lease until it is met
//!   those before and behind   ──▶ what is free elsewhere
//! ```
//! * IN ORDER - whenever there may be more room, those who wait are tried one after the other. Who comes later and is
//!   smaller may be met before, but never from nodes that are held back.
//! * NOT STARVED - nodes that are held back become empty as their leases end, but for those that the request grows.
//!   They have room for it then, and do not leave before its lease would end. So it is met in the end, whatever others
//!   ask for, unless leases there are renewed for longer than it waits, or there is no room beside what it grows: then
//!   nothing is held back for it until some of that has ended.
//! * Whom a limit keeps from what there is room for, since it was granted something else meanwhile, waits on: nothing
//!   is held back for it, and a claim or an end of a lease has it tried again.
//! * BOUNDED - so many wait in all, and so many of one peer, none for longer than [`MAX_WAIT`].
//!
//! They are not kept in the state: who asked is gone with the program, and asks again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rfaas_protocol::Capacity;
use rfaas_protocol::constraints::MAX_WAIT_MS;
use rfaas_protocol::lease::EndReason;

use super::ask::{Ask, Denied};
use super::fair_use::{Who, who};
use super::lease::Grant;
use super::node_index::NodeSlot;
use super::{Action, Now, Pool};

/// Longest wait.
pub const MAX_WAIT: Duration = Duration::from_millis(MAX_WAIT_MS);
/// Most requests that wait: each is tried when there may be more room, which takes some microseconds.
pub const MOST_WAITING: usize = 256;
/// Most requests of one peer that wait.
pub const MOST_WAITING_OF_ONE: usize = 16;

/// Names a request that waits, while this program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitId(u64);

/// What becomes of a request that may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// There was room.
    Granted(Vec<Grant>),
    /// It waits.
    Waits(WaitId),
}

#[derive(Debug)]
struct Waiter {
    ask: Ask,
    since: Instant,
    until: Instant,
    /// None: it was not looked for yet.
    target: Option<Target>,
}

/// Nodes that have room for a request when they are empty but for what it grows; none: there are no such nodes.
#[derive(Debug)]
struct Target {
    /// Of the nodes, as they were then.
    version: u64,
    /// What it grew then, by node.
    grown: Vec<(usize, Capacity)>,
    nodes: Vec<NodeSlot>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    last: u64,
    /// In the order in which they came.
    queue: BTreeMap<WaitId, Waiter>,
    deadlines: BTreeSet<(Instant, WaitId)>,
    of_peer: HashMap<Who, usize>,
    /// Nodes that are held back.
    held_back: Vec<NodeSlot>,
    /// Others wait than when they were last tried.
    changed: bool,
    /// A limit kept one of them from being tried for room.
    limited: bool,
    /// Answers that were not taken yet.
    answers: BTreeMap<WaitId, Result<Vec<Grant>, Denied>>,
    /// Those of them that were not told of yet.
    news: Vec<WaitId>,
}

impl Waiting {
    fn add(&mut self, now: Now, ask: Ask, wait: Duration) -> Result<WaitId, Denied> {
        let who = who(&ask.client, ask.peer);
        let of_peer = self.of_peer.get(&who).copied().unwrap_or(0);
        if of_peer >= MOST_WAITING_OF_ONE {
            return Err(Denied::TooManyWait { who: Some(who), most: MOST_WAITING_OF_ONE });
        }
        if self.queue.len() >= MOST_WAITING {
            return Err(Denied::TooManyWait { who: None, most: MOST_WAITING });
        }
        self.last += 1;
        let (id, since) = (WaitId(self.last), now.monotonic);
        let until = since + wait;
        self.of_peer.insert(who, of_peer + 1);
        self.deadlines.insert((until, id));
        self.queue.insert(id, Waiter { ask, since, until, target: None });
        self.changed = true;
        Ok(id)
    }

    fn remove(&mut self, id: WaitId) -> Option<Waiter> {
        let waiter = self.queue.remove(&id)?;
        self.deadlines.remove(&(waiter.until, id));
        let who = who(&waiter.ask.client, waiter.ask.peer);
        if let Some(of_peer) = self.of_peer.get_mut(&who) {
            *of_peer -= 1;
            if *of_peer == 0 {
                self.of_peer.remove(&who);
            }
        }
        self.changed = true;
        Some(waiter)
    }

    fn answer(&mut self, id: WaitId, answer: Result<Vec<Grant>, Denied>) {
        self.answers.insert(id, answer);
        self.news.push(id);
    }

    /// Who waits too long is next; `at_once`: they are to be tried.
    pub(super) fn first_deadline(&self, at_once: bool) -> Option<Instant> {
        let tried = self.queue.values().next().filter(|_| at_once || self.changed);
        let over = self.deadlines.first().map(|(at, _)| *at);
        tried.map(|first| first.since).into_iter().chain(over).min()
    }
}

impl Pool {
    /// Answers what [`try_request`](Self::try_request) has not; if there is no room, the request waits for it.
    pub fn wait(&mut self, now: Now, ask: &Ask, wait: Duration) -> Result<Asked, Denied> {
        let wait = wait.min(MAX_WAIT);
        if wait.is_zero() {
            return self.request_again(now, ask).map(Asked::Granted);
        }
        let asked = self.place(now, ask).and_then(|placed| match placed {
            Ok(grants) => Ok(Asked::Granted(grants)),
            Err(_) => self.waiting.add(now, ask.clone(), wait).map(Asked::Waits),
        });
        if let Ok(Asked::Waits(_)) = asked {
            tracing::debug!(client = ?ask.client, ?wait, "a request waits for room");
        }
        asked.inspect_err(|denied| self.note_denied(ask, denied))
    }

    /// The number of requests that wait.
    pub fn count_waiting(&self) -> usize {
        self.waiting.queue.len()
    }

    /// Requests that were answered since this was last called. Each answer is to be [taken](Self::take_answer).
    pub fn answered(&mut self) -> Vec<WaitId> {
        std::mem::take(&mut self.waiting.news)
    }

    /// The answer to a request that waited, which is to be [taken](Self::take_answer) once it was told.
    pub fn answer(&self, id: WaitId) -> Option<&Result<Vec<Grant>, Denied>> {
        self.waiting.answers.get(&id)
    }

    /// The answer to a request that waited. It is there no more then.
    pub fn take_answer(&mut self, id: WaitId) -> Option<Result<Vec<Grant>, Denied>> {
        self.waiting.answers.remove(&id)
    }

    /// Nobody waits for a request any more. What it was granted ends.
    pub fn cancel_wait(&mut self, now: Now, id: WaitId, out: &mut Vec<Action>) {
        self.waiting.remove(id);
        if self.waiting.queue.is_empty() {
            self.let_go(); // else it is done when the others are tried, and nobody comes before them
        }
        for grant in self.take_answer(id).and_then(Result::ok).unwrap_or_default() {
            self.end_lease(now, grant.terms.lease, EndReason::ClientGone, out);
        }
    }

    /// Answers those for whom there is room, and those who have waited long enough.
    pub(super) fn serve_waiting(&mut self, now: Now) {
        self.try_waiting(now);
        self.end_waits(now);
        self.try_waiting(now); // there are nodes that are not held back any more
    }

    /// Whether what was gained since they were last tried may be something for those who wait.
    pub(super) fn has_gained(&self) -> bool {
        self.held.nodes.has_gained() || (self.waiting.limited && self.held.shares.has_eased())
    }

    /// Answers those for whom there is room.
    fn try_waiting(&mut self, now: Now) {
        let gained = self.has_gained();
        self.held.nodes.take_gained();
        self.held.shares.take_eased();
        if !std::mem::take(&mut self.waiting.changed) && !gained {
            return;
        }
        self.let_go();
        self.waiting.limited = false;
        let all: Vec<_> = self.waiting.queue.keys().copied().collect();
        for id in all {
            let Some(waiter) = self.waiting.queue.get(&id) else { continue };
            let ask = waiter.ask.clone();
            match self.place(now, &ask) {
                Ok(Err(_)) if self.waiting.held_back.is_empty() => self.hold_back(id),
                Ok(Err(_)) => {}
                Ok(Ok(grants)) => {
                    self.waiting.remove(id);
                    self.waiting.answer(id, Ok(grants));
                }
                Err(_) => self.waiting.limited = true,
            }
        }
        self.waiting.changed = false;
        self.held.nodes.take_gained(); // nothing but what was held back, and let go
    }

    /// Answers those who have waited long enough.
    fn end_waits(&mut self, now: Now) {
        while let Some(&(at, id)) = self.waiting.deadlines.first()
            && at <= now.monotonic
        {
            let Some(waiter) = self.waiting.remove(id) else { continue };
            let placed = self
                .place(now, &waiter.ask)
                .and_then(|placed| placed.map_err(|why| self.held.nodes.denied(&waiter.ask, why)));
            let waited = waiter.until - waiter.since;
            let answer = placed.map_err(|denied| denied.after(waited));
            if let Err(denied) = &answer {
                self.note_denied(&waiter.ask, denied);
            }
            self.waiting.answer(id, answer);
        }
    }

    /// Holds back nodes for a request, if there are some that it could be met from.
    fn hold_back(&mut self, id: WaitId) {
        let Some(waiter) = self.waiting.queue.get_mut(&id) else { return };
        let grown = self.held.grown(&waiter.ask);
        let version = self.held.nodes.version();
        let target = match waiter.target.take() {
            Some(target) if target.version == version && target.grown == grown => target,
            before => {
                let before = before.map(|target| target.nodes).unwrap_or_default();
                let until = waiter.until + waiter.ask.timeout; // it may be met in its last moment
                let nodes = &self.held.nodes;
                let nodes = nodes.place_when_empty(&waiter.ask, until, &grown, &before);
                Target { version, grown, nodes: nodes.unwrap_or_default() }
            }
        };
        self.waiting.held_back.clone_from(&target.nodes);
        waiter.target = Some(target);
        self.held.nodes.hold_back(&self.waiting.held_back, true);
    }

    fn let_go(&mut self) {
        let held_back = std::mem::take(&mut self.waiting.held_back);
        self.held.nodes.hold_back(&held_back, false);
    }
}
