//! Where leases of a request go, and why they go nowhere: the names of a request become numbers, which placement knows.
//!
//! Elsewhere: which of the nodes that fit are taken (`placement`), who waits for room (`waiting`).

use std::sync::Arc;
use std::time::Instant;

use rfaas_api::NodeState;
use rfaas_protocol::Capacity;
use rfaas_protocol::constraints::{Constraint, Constraints};

use super::Now;
use super::ask::{Ask, Denied};
use super::node_index::NodeSlot;
use super::node_table::NodeTable;
use crate::placement::{Advice, Gang, LeaveFree, Refused, Wish};

/// Why what is asked for goes nowhere now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotPlaced {
    /// There is too little room.
    NoRoom,
    /// There would be room without one of these constraints, or without all.
    Unmet(Vec<Constraint>),
    /// A constraint names what is not there; in words.
    Unknown(Constraint, String),
}

impl NodeTable {
    /// Whether `ask` could be met if nothing were leased, as far as its constraints let it.
    pub(super) fn fits_when_empty(&self, ask: &Ask) -> bool {
        self.index.fits_when_empty(ask.wanted, ask.most_parts())
            && self.sums().ever_hold(ask.total())
    }

    /// Whether `ask` could be met likewise if all nodes were ready but those that are withdrawn: after a restart none
    /// is.
    pub(super) fn may_ever_fit(&self, ask: &Ask) -> bool {
        self.index.may_ever_fit(ask.wanted, ask.most_parts(), ask.total())
    }

    /// Where what is asked for goes ([`NodeIndex::place`]): a node for each lease. `beside` is what leases hold that it
    /// grows, by node.
    pub(super) fn place(
        &self,
        now: Now,
        ask: &Ask,
        beside: &[(usize, Capacity)],
    ) -> Result<Vec<(NodeSlot, Capacity)>, NotPlaced> {
        let until = now.monotonic + ask.timeout;
        if ask.is_plain() {
            let placed = self.index.place(self.policy, ask.wanted, ask.most_parts(), until);
            return placed.ok_or(NotPlaced::NoRoom);
        }
        let (workers, each) = (ask.leases, ask.wanted);
        let wish = self.wish(ask)?;
        let gang = Gang { workers, each, until: Some(until), wish: &wish, beside };
        let placed = self.index.place_gang(self.policy, gang).map_err(|refused| match refused {
            Refused::NoRoom => NotPlaced::NoRoom,
            Refused::Constraint { constraints } => NotPlaced::Unmet(constraints),
        })?;
        let placed = placed.into_iter().map(|slot| (slot, each));
        Ok(if ask.grows.is_empty() { placed.collect() } else { one_a_node(placed) })
    }

    /// Whether leases of `each` on these nodes would be better placed elsewhere. With constraints but labels, they
    /// stay.
    pub(super) fn better(
        &self,
        each: Capacity,
        running: &[NodeSlot],
        until: Option<Instant>,
        constraints: &Constraints,
    ) -> Advice {
        let running: Vec<_> = running.iter().map(|slot| slot.0).collect();
        let Ok(has) = self.labels.find(&constraints.has) else { return Advice::Stay };
        let wish = Wish { has, ..Wish::default() };
        let only_labels =
            *constraints == Constraints { has: constraints.has.clone(), ..Constraints::default() };
        let workers = u32::try_from(running.len()).unwrap_or(u32::MAX);
        let gang = Gang { workers, each, until, wish: &wish, beside: &[] };
        match only_labels {
            true => self.index.better(self.policy, gang, &running),
            false => Advice::Stay,
        }
    }

    /// The name of the node in a slot.
    pub(super) fn name(&self, slot: usize) -> Option<Arc<str>> {
        self.get(NodeSlot(slot)).map(|node| node.spec.name().clone())
    }

    /// The nodes where what is asked for would go if nothing were leased but what it grows, none of which leaves before
    /// `until`; those that were chosen `before`, if they still do.
    pub(super) fn place_when_empty(
        &self,
        ask: &Ask,
        until: Instant,
        beside: &[(usize, Capacity)],
        before: &[NodeSlot],
    ) -> Option<Vec<NodeSlot>> {
        let wish = self.wish(ask).ok()?;
        let (workers, each) = (ask.leases, ask.wanted);
        let gang = Gang { workers, each, until: Some(until), wish: &wish, beside };
        self.index.place_when_empty(self.policy, gang, before)
    }

    /// Has nodes take no leases, or again.
    pub(super) fn hold_back(&mut self, nodes: &[NodeSlot], held_back: bool) {
        for slot in nodes {
            self.change(*slot, |node| node.held_back = held_back);
        }
    }

    /// Goes up when anything changes of a node but what is free.
    pub(super) fn version(&self) -> u64 {
        self.index.version()
    }

    /// Whether there may be room where there was none when this was last called.
    pub(super) fn take_gained(&mut self) -> bool {
        self.index.take_gained()
    }

    /// The same, to be looked at again.
    pub(super) fn has_gained(&self) -> bool {
        self.index.has_gained()
    }

    /// The constraints of a request, with numbers for names.
    fn wish(&self, ask: &Ask) -> Result<Wish, NotPlaced> {
        let Constraints { together, apart, ref near, leave_free, at_least, ref has, ref nodes } =
            ask.constraints;
        let number = |constraint: Constraint, name: &String| {
            let unknown = || format!("constraint {constraint}: no node is named {name:?}");
            let slot = self.find(name).ok_or_else(|| NotPlaced::Unknown(constraint, unknown()))?;
            Ok(slot.0)
        };
        let near = near.iter().map(|name| number(Constraint::Near, name)).next().transpose()?;
        let nodes = nodes.iter().map(|name| number(Constraint::Nodes, name));
        let has = self.labels.find(has).map_err(|label| {
            let why = format!("constraint has: no node has label {label:?}");
            NotPlaced::Unknown(Constraint::Has, why)
        })?;
        Ok(Wish {
            together,
            apart,
            near,
            leave_free: (leave_free > 0).then_some(LeaveFree { cores: leave_free, on: None }),
            at_least: if at_least > ask.wanted.cores { at_least } else { 0 }, // else each worker has them
            has,
            nodes: nodes.collect::<Result<_, _>>()?,
            not_on: Vec::new(),
        })
    }

    /// Why a request is not met, for its client.
    pub(super) fn denied(&self, ask: &Ask, why: NotPlaced) -> Denied {
        match why {
            NotPlaced::NoRoom if self.count(NodeState::Ready) == 0 => {
                Denied::NoNodes(self.why_no_room(ask))
            }
            NotPlaced::NoRoom => Denied::NoRoom(self.why_no_room(ask)),
            NotPlaced::Unknown(constraint, why) => {
                Denied::Unmet { constraints: vec![constraint], why }
            }
            NotPlaced::Unmet(constraints) => {
                let why = Refused::Constraint { constraints: constraints.clone() }.to_string();
                Denied::Unmet { constraints, why }
            }
        }
    }

    /// Where all that is asked for goes, on another node than the one in `slot`.
    pub(super) fn place_elsewhere(&self, now: Now, ask: &Ask, slot: NodeSlot) -> Option<NodeSlot> {
        self.index.place_elsewhere(self.policy, ask.wanted, slot, now.monotonic + ask.timeout)
    }

    /// Why there is no room for what is asked for, for people.
    pub(super) fn why_no_room(&self, ask: &Ask) -> String {
        let Capacity { cores, memory } = ask.wanted;
        let on = match (ask.leases, ask.most_parts()) {
            (1, 1) => "no ready node has".to_owned(),
            (1, parts) => format!("no {parts} ready nodes together have"),
            (leases, _) => format!("no ready nodes have {leases} times"),
        };
        let leaving = match self.index.leaving() {
            0 => String::new(),
            nodes => format!("; {nodes} leaving, with room for what ends before"),
        };
        if self.by_name.is_empty() {
            "no node is known: add one with POST /add".into()
        } else if self.count(NodeState::Ready) == 0 {
            format!(
                "no node is ready: {} registered, {} draining, {} lost",
                self.count(NodeState::Registered),
                self.count(NodeState::Draining),
                self.count(NodeState::Lost)
            )
        } else if self.fits_when_empty(ask) {
            let most = self.index.most_free();
            format!(
                "{on} {} and {memory} MB free now: {} is the most on one, {} MB on one, perhaps another{leaving}",
                counted(cores),
                counted(most.cores),
                most.memory
            )
        } else {
            let most = self.index.largest();
            format!(
                "{on} {} and {memory} MB in all: {} is the most on one, {} MB on one, perhaps another",
                counted(cores),
                counted(most.cores),
                most.memory
            )
        }
    }
}

/// Has what goes to one node be one part, in the order in which nodes come first.
fn one_a_node(placed: impl Iterator<Item = (NodeSlot, Capacity)>) -> Vec<(NodeSlot, Capacity)> {
    let mut parts: Vec<(NodeSlot, Capacity)> = Vec::new();
    for (slot, each) in placed {
        match parts.iter_mut().find(|(other, _)| *other == slot) {
            Some((_, part)) => {
                part.cores += each.cores;
                part.memory += each.memory;
            }
            None => parts.push((slot, each)),
        }
    }
    parts
}

/// `cores` for people.
fn counted(cores: u32) -> String {
    if cores == 1 { "1 core".into() } else { format!("{cores} cores") }
}
