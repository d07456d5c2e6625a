//! Constraints of a request for leases: where its leases may be. Each has a name, by which it is refused if it cannot
//! hold.

use zerocopy::little_endian::{U16, U32};

use crate::lease::{
    GangRequest, GrowRequest, LeaseId, MAX_NODE_NAME_BYTES, NodeName, WantedLeases,
};
use crate::placement::check_labels;
use crate::{Malformed, Text};

/// Most leases of a request: it is answered by as many messages at once, half of what may be under way to a peer
/// ([`channel`](crate::channel)).
pub const MAX_GANG: u32 = 32;
/// Most leases that a request grows.
pub const MAX_GROWN: usize = MAX_GANG as usize;
/// Longest wait of a request.
pub const MAX_WAIT_MS: u64 = 3_600_000;
/// Most bytes of all labels of a request together, with a line feed between two.
pub const MAX_HAS_BYTES: usize = 256;
/// Most bytes of all node names of a request together, likewise.
pub const MAX_NODES_BYTES: usize = 512;

const TOGETHER: u16 = 1;
const APART: u16 = 2;

/// One of the constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Constraint {
    /// The nodes themselves.
    Nodes,
    /// Beginning at a node.
    Near,
    /// All on one node.
    Together,
    /// Each on a node of its own.
    Apart,
    /// So many cores on each node at least.
    AtLeast,
    /// Cores that stay free.
    LeaveFree,
    /// Labels.
    Has,
    /// Nodes left out.
    NotOn,
}

impl Constraint {
    /// All constraints, in the order in which one is blamed.
    pub const ALL: [Constraint; 8] = [
        Constraint::Nodes,
        Constraint::Near,
        Constraint::Together,
        Constraint::Apart,
        Constraint::AtLeast,
        Constraint::LeaveFree,
        Constraint::Has,
        Constraint::NotOn,
    ];

    /// Returns its name in requests and refusals.
    pub const fn name(self) -> &'static str {
        match self {
            Constraint::Nodes => "nodes",
            Constraint::Near => "near",
            Constraint::Together => "together",
            Constraint::Apart => "apart",
            Constraint::AtLeast => "at_least",
            Constraint::LeaveFree => "leave_free",
            Constraint::Has => "has",
            Constraint::NotOn => "not_on",
        }
    }

    /// Returns the wire form of several: a bit each.
    #[doc(hidden)]
    pub fn to_wire(constraints: &[Constraint]) -> U16 {
        constraints.iter().fold(0, |bits, one| bits | 1_u16 << *one as u16).into()
    }

    /// Reads the wire form of several; bits of others are an error.
    #[doc(hidden)]
    pub fn from_wire(bits: U16) -> Result<Vec<Constraint>, Malformed> {
        let bits = bits.get();
        match bits >> Constraint::ALL.len() {
            0 => {
                Ok(Constraint::ALL.into_iter().filter(|one| bits >> *one as u16 & 1 == 1).collect())
            }
            _ => Err(Malformed::Field("constraints")),
        }
    }
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The constraints of a request. None, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constraints {
    /// All leases on one node.
    pub together: bool,
    /// Each lease on a node of its own.
    pub apart: bool,
    /// This node has some of them: as many as fit, before others are looked at.
    pub near: Option<String>,
    /// So many cores stay free on each node that is taken.
    pub leave_free: u32,
    /// So many cores at least of the request on each node that is taken.
    pub at_least: u32,
    /// Each node has these labels.
    pub has: Vec<String>,
    /// The nodes themselves, one a lease.
    pub nodes: Vec<String>,
}

impl Constraints {
    /// Checks that they can be asked for, for so many leases; `Err` says which is wrong and what it may be.
    pub fn check(&self, leases: u32) -> Result<(), String> {
        self.near.iter().try_for_each(|node| check_node("near", node))?;
        self.nodes.iter().try_for_each(|node| check_node("nodes", node))?;
        check_labels(&self.has).map_err(|why| format!("has: {why}"))?;
        if !self.nodes.is_empty() && self.nodes.len() != leases as usize {
            let nodes = self.nodes.len();
            return Err(format!(
                "nodes names {nodes} nodes for {leases} leases: one a lease is needed"
            ));
        }
        for (what, names, most) in
            [("has", &self.has, MAX_HAS_BYTES), ("nodes", &self.nodes, MAX_NODES_BYTES)]
        {
            let bytes = names.iter().map(|name| name.len() + 1).sum::<usize>().saturating_sub(1);
            if bytes > most {
                return Err(format!("{what} has {bytes} bytes in all, more than {most}"));
            }
        }
        Ok(())
    }

    /// Returns those that hold for one of the leases by itself, which was granted on `node`.
    #[must_use]
    pub fn of_one(&self, node: &str) -> Self {
        let named = self.nodes.iter().filter(|name| *name == node).take(1);
        Constraints {
            together: false,
            apart: false,
            near: self.near.clone(),
            leave_free: self.leave_free,
            at_least: 0,
            has: self.has.clone(),
            nodes: named.cloned().collect(),
        }
    }

    /// Writes them into a request.
    pub fn write_to(&self, request: &mut GangRequest) -> Result<(), String> {
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        request.wanted.flags = (bit(self.together, TOGETHER) | bit(self.apart, APART)).into();
        request.wanted.at_least = self.at_least.into();
        request.wanted.leave_free = self.leave_free.into();
        request.near = text("near", self.near.as_deref().unwrap_or_default())?;
        request.wanted.has = text("has", &self.has.join("\n"))?;
        request.nodes = text("nodes", &self.nodes.join("\n"))?;
        Ok(())
    }

    /// Reads those of a request. They are to be [checked](Self::check).
    pub fn read_from(request: &GangRequest) -> Result<Self, Malformed> {
        let flags = request.wanted.flags.get();
        if flags & !(TOGETHER | APART) != 0 {
            return Err(Malformed::Field("flags of a request"));
        }
        let near = Some(request.near.get()?).filter(|near| !near.is_empty());
        Ok(Constraints {
            together: flags & TOGETHER != 0,
            apart: flags & APART != 0,
            near: near.map(Into::into),
            leave_free: request.wanted.leave_free.get(),
            at_least: request.wanted.at_least.get(),
            has: lines(request.wanted.has.get()?),
            nodes: lines(request.nodes.get()?),
        })
    }
}

fn check_node(what: &str, name: &str) -> Result<(), String> {
    match name.len() {
        1..=MAX_NODE_NAME_BYTES if !name.chars().any(char::is_control) => Ok(()),
        1..=MAX_NODE_NAME_BYTES => Err(format!("{what} has a node name with a control character")),
        bytes => {
            Err(format!("{what} has a node name of {bytes} bytes, not 1 to {MAX_NODE_NAME_BYTES}"))
        }
    }
}

fn text<const N: usize>(what: &str, value: &str) -> Result<Text<N>, String> {
    Text::new(value).ok_or_else(|| format!("{what} has {} bytes, more than {N}", value.len()))
}

fn lines(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split('\n').map(Into::into).collect() }
}

impl GangRequest {
    /// Makes one without constraints.
    pub fn new(request: U32, leases: u32, (cores, memory): (u32, u32), timeout_ms: u64) -> Self {
        let wanted = WantedLeases {
            request,
            leases: leases.into(),
            cores: cores.into(),
            memory: memory.into(),
            timeout_ms: timeout_ms.into(),
            wait_ms: 0.into(),
            flags: 0.into(),
            at_least: 0.into(),
            leave_free: 0.into(),
            client: Text::truncated(""),
            has: Text::truncated(""),
        };
        GangRequest { wanted, near: NodeName::truncated(""), nodes: Text::truncated("") }
    }

    /// Returns the same as another question, that may wait for so many milliseconds.
    #[must_use]
    pub fn with(mut self, request: u32, wait_ms: u64) -> Self {
        (self.wanted.request, self.wanted.wait_ms) = (request.into(), wait_ms.into());
        self
    }
}

impl GrowRequest {
    /// Makes one that asks for what `gang` does, but names no node, beside the first [`MAX_GROWN`] of `leases`.
    pub fn new(gang: &GangRequest, leases: &[LeaseId]) -> Self {
        let mut grows = [0.into(); MAX_GROWN];
        for (at, lease) in grows.iter_mut().zip(leases) {
            *at = lease.get().into();
        }
        GrowRequest { wanted: gang.wanted, grows }
    }

    /// Returns what it asks for, wherever that is.
    pub fn gang(&self) -> GangRequest {
        let (near, nodes) = (NodeName::truncated(""), Text::truncated(""));
        GangRequest { wanted: self.wanted, near, nodes }
    }

    /// Returns the leases that it grows.
    pub fn grown(&self) -> Vec<LeaseId> {
        self.grows.iter().filter_map(|lease| LeaseId::new(lease.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Constraints {
        Constraints {
            together: true,
            apart: true,
            near: Some("a node".into()),
            leave_free: 7,
            at_least: 9,
            has: vec!["gpu".into(), "rack=7".into()],
            nodes: vec!["n1".into(), "n2".into()],
        }
    }

    #[test]
    fn what_is_written_into_a_request_is_read_from_it() {
        for constraints in [Constraints::default(), all()] {
            let mut request = GangRequest::new(1.into(), 2, (1, 1), 1);
            constraints.write_to(&mut request).unwrap();
            assert_eq!(Constraints::read_from(&request), Ok(constraints));
        }
        let mut request = GangRequest::new(1.into(), 2, (1, 1), 1);
        request.wanted.flags = 4.into();
        assert_eq!(Constraints::read_from(&request), Err(Malformed::Field("flags of a request")));
    }

    #[test]
    fn one_lease_keeps_the_constraints_that_need_no_other() {
        let one = Constraints { nodes: vec!["n2".into()], ..all() };
        let one = Constraints { together: false, apart: false, at_least: 0, ..one };
        assert_eq!(all().of_one("n2"), one);
        assert_eq!(one.check(1), Ok(()));
        assert_eq!(Constraints::default().of_one("n2"), Constraints::default());
    }

    #[test]
    fn growing_asks_for_what_a_gang_does_but_where() {
        let mut gang = GangRequest::new(1.into(), 2, (3, 4), 5).with(6, 7);
        gang.wanted.client = Text::truncated("alice");
        all().write_to(&mut gang).unwrap();
        let leases = [8, 9].map(|id| LeaseId::new(id).unwrap());
        let grow = GrowRequest::new(&gang, &leases);
        assert_eq!(grow.grown(), leases);
        (gang.near, gang.nodes) = (Text::truncated(""), Text::truncated(""));
        assert_eq!(grow.gang(), gang);
        let many: Vec<_> = (1..40).filter_map(LeaseId::new).collect();
        assert_eq!(GrowRequest::new(&gang, &many).grown(), many[..MAX_GROWN]);
    }

    #[test]
    fn constraints_are_a_bit_each_on_the_wire() {
        for constraint in Constraint::ALL {
            let bits = Constraint::to_wire(&[constraint]);
            assert_eq!(bits.get().count_ones(), 1);
            assert_eq!(Constraint::from_wire(bits), Ok(vec![constraint]));
        }
        let all = Constraint::to_wire(&Constraint::ALL);
        assert_eq!(Constraint::from_wire(all), Ok(Constraint::ALL.into()));
        assert!(Constraint::from_wire((all.get() + 1).into()).is_err());
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused_by_its_name() {
        assert_eq!(all().check(2), Ok(()));
        let none = Constraints::default;
        let long = "x".repeat(MAX_NODE_NAME_BYTES + 1);
        for (constraints, leases, error) in [
            (Constraints { near: Some(String::new()), ..none() }, 1, "near has a node name of 0"),
            (Constraints { near: Some("a\nb".into()), ..none() }, 1, "near has a node name with"),
            (Constraints { nodes: vec![long], ..none() }, 1, "nodes has a node name of 129"),
            (Constraints { nodes: vec!["a".into()], ..none() }, 2, "nodes names 1 nodes for 2"),
            (Constraints { has: vec!["a b".into()], ..none() }, 1, "has: labels[0]"),
            (
                Constraints { has: (0..5).map(|n| format!("{n:064}")).collect(), ..none() },
                1,
                "has has 324 bytes in all",
            ),
            (
                Constraints { nodes: (0..5).map(|n| format!("{n:0128}")).collect(), ..none() },
                5,
                "nodes has 644 bytes in all",
            ),
        ] {
            let why = constraints.check(leases).unwrap_err();
            assert!(why.starts_with(error), "{why}");
        }
    }
}
