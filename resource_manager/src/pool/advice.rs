//! Whether leases would be better placed elsewhere. It is advice: nobody is moved.

use std::collections::BTreeSet;
use std::sync::Arc;

use rfaas_protocol::constraints::{Constraints, MAX_GANG};
use rfaas_protocol::lease::LeaseId;

use super::{Now, Pool};
use crate::placement::Advice;

/// What another placement would bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Better {
    /// The leases that were granted together and have not ended, with their nodes; and where each would be.
    pub leases: Vec<(LeaseId, Arc<str>, Arc<str>)>,
    /// Whether one of them has to go, since its node leaves before it ends, and there is room nowhere.
    pub no_room: bool,
}

impl Better {
    /// The number of nodes that they are on, and would be on.
    pub fn nodes(&self) -> (usize, usize) {
        let now: BTreeSet<_> = self.leases.iter().map(|(_, node, _)| node).collect();
        let then: BTreeSet<_> = self.leases.iter().map(|(.., node)| node).collect();
        (now.len(), then.len())
    }
}

impl Pool {
    /// Says where a lease, and those that were granted with it, would be better placed by the policy. Leases with
    /// constraints but labels stay where these hold. After a restart of the program, a lease is alone. `None`: it has
    /// ended, or never was.
    pub fn better(&self, now: Now, id: LeaseId) -> Option<Better> {
        let lease = self.held.leases.get(id)?;
        let last = LeaseId::new(lease.gang.get().saturating_add(MAX_GANG.into()))?;
        let others = self.held.leases.between(lease.gang.min(id), last);
        let gang: Vec<_> = others.filter(|other| other.gang == lease.gang).collect();
        let running: Vec<_> = gang.iter().map(|lease| lease.slot).collect();
        let until = gang.iter().map(|lease| now.until(lease.terms.expires_at)).max();
        let of_nodes = &self.held.nodes;
        let advice = match &lease.constraints {
            Some(constraints) => of_nodes.better(lease.terms.holds(), &running, until, constraints),
            None => of_nodes.better(lease.terms.holds(), &running, until, &Constraints::default()),
        };
        let names = |slots: &[usize]| -> Vec<_> {
            let name = |slot: &usize| of_nodes.name(*slot).unwrap_or_default();
            slots.iter().map(name).collect()
        };
        let stay: Vec<_> = running.iter().map(|slot| slot.0).collect();
        let (to, no_room) = match advice {
            Advice::Stay => (names(&stay), false),
            Advice::Move(to) => (names(&to), false),
            Advice::NoRoom => (names(&stay), true),
        };
        let leases =
            gang.iter().zip(to).map(|(lease, to)| (lease.terms.lease, lease.node.clone(), to));
        Some(Better { leases: leases.collect(), no_room })
    }
}
