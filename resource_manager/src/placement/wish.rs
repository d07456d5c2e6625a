//! What a request may wish of the places that it gets: constraints, which hold or are named in the refusal.

use rfaas_protocol::constraints::Constraint;

use super::places::LabelSet;

/// Constraints of a request. None, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// All workers on one node.
    pub together: bool,
    /// Each worker on a node of its own.
    pub apart: bool,
    /// This node has some of them: as many as fit, before others are looked at.
    pub near: Option<usize>,
    /// So many cores stay free on this node, or on each that is taken.
    pub leave_free: Option<LeaveFree>,
    /// So many cores of workers at least on each node that is taken.
    pub at_least: u32,
    /// Each node has these labels.
    pub has: LabelSet,
    /// The nodes themselves, one a worker.
    pub nodes: Vec<usize>,
    /// None of these nodes.
    pub not_on: Vec<usize>,
}

/// Cores that stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaveFree {
    /// How many.
    pub cores: u32,
    /// On which node; `None`: on each that is taken.
    pub on: Option<usize>,
}

impl Wish {
    /// The constraints that it has.
    pub fn constraints(&self) -> impl Iterator<Item = Constraint> {
        Constraint::ALL.into_iter().filter(|constraint| match constraint {
            Constraint::Nodes => !self.nodes.is_empty(),
            Constraint::Near => self.near.is_some(),
            Constraint::Together => self.together,
            Constraint::Apart => self.apart,
            Constraint::AtLeast => self.at_least > 1,
            Constraint::LeaveFree => self.leave_free.is_some(),
            Constraint::Has => self.has != LabelSet::default(),
            Constraint::NotOn => !self.not_on.is_empty(),
            _ => false,
        })
    }

    /// The same without one of them.
    pub(super) fn without(&self, constraint: Constraint) -> Wish {
        let mut wish = self.clone();
        match constraint {
            Constraint::Nodes => wish.nodes.clear(),
            Constraint::Near => wish.near = None,
            Constraint::Together => wish.together = false,
            Constraint::Apart => wish.apart = false,
            Constraint::AtLeast => wish.at_least = 0,
            Constraint::LeaveFree => wish.leave_free = None,
            Constraint::Has => wish.has = LabelSet::default(),
            Constraint::NotOn => wish.not_on.clear(),
            _ => {}
        }
        wish
    }

    /// Cores that stay free on a node.
    pub(super) fn leaves_free(&self, node: usize) -> u32 {
        match self.leave_free {
            Some(LeaveFree { cores, on }) if on.is_none_or(|on| on == node) => cores,
            _ => 0,
        }
    }

    /// Cores that stay free on each node.
    pub(super) fn leaves_free_everywhere(&self) -> u32 {
        self.leave_free.filter(|free| free.on.is_none()).map_or(0, |free| free.cores)
    }
}

/// Why workers were not placed: then none is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is too little room.
    #[error("there is no room for all of them")]
    NoRoom,
    /// There would be room without this constraint or, if there are several, without all of these.
    #[error("{}", unmet(constraints))]
    Constraint {
        /// Which.
        constraints: Vec<Constraint>,
    },
}

fn unmet(constraints: &[Constraint]) -> String {
    let names: Vec<_> = constraints.iter().map(|constraint| constraint.name()).collect();
    match names[..] {
        [name] => format!("constraint {name} cannot hold: without it there is room"),
        _ => format!("constraints {} cannot hold together", names.join(", ")),
    }
}
