//! What a store does with changes, as plainly as possible, and what must hold of it at any moment:
//! the program may be killed then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use resource_manager::pool::{Billed, Changes, LeaseRecord, NodeRecord, Snapshot};
use rfaas_protocol::lease::LeaseId;

pub struct Store {
    first_id: LeaseId,
    nodes: BTreeMap<Arc<str>, NodeRecord>,
    leases: BTreeMap<LeaseId, LeaseRecord>,
    pub bills: BTreeMap<LeaseId, Billed>,
}

impl Store {
    pub fn new(first_id: LeaseId) -> Self {
        let (nodes, leases, bills) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Store { first_id, nodes, leases, bills }
    }

    pub fn commit(&mut self, changes: Changes) {
        for (name, node) in changes.nodes {
            match node {
                Some(node) => self.nodes.insert(name, node),
                None => self.nodes.remove(&name),
            };
        }
        let ended: Vec<_> =
            changes.leases.iter().filter(|(_, lease)| lease.is_none()).map(|(id, _)| *id).collect();
        for (id, lease) in changes.leases {
            match lease {
                Some(lease) => self.leases.insert(id, lease),
                None => self.leases.remove(&id),
            };
        }
        for bill in changes.bills {
            let before = self.bills.insert(bill.lease, bill);
            assert!(before.is_none_or(|before| !before.reported), "a final bill was replaced");
        }
        assert!(ended.iter().all(|id| self.bills.contains_key(id)), "ended without a bill");
        self.check();
    }

    fn check(&self) {
        let mut held: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for (id, lease) in &self.leases {
            assert!(!self.bills.contains_key(id), "billed before its end");
            let (cores, memory) = held.entry(&lease.node).or_default();
            *cores += lease.terms.cores;
            *memory += lease.terms.memory;
        }
        for (node, (cores, memory)) in held {
            let capacity = self.nodes[node].spec.capacity();
            assert!(cores <= capacity.cores && memory <= capacity.memory, "over-committed");
        }
    }

    pub fn live(&self) -> BTreeSet<LeaseId> {
        self.leases.keys().copied().collect()
    }

    pub fn billed(&self) -> BTreeSet<LeaseId> {
        self.bills.keys().copied().collect()
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.values().cloned().collect(),
            leases: self.leases.values().cloned().collect(),
            bills: self.bills.values().filter(|bill| !bill.reported).cloned().collect(),
            policy: None,
            first_id: self.first_id,
            last_id: self.leases.keys().chain(self.bills.keys()).max().copied(),
        }
    }
}
