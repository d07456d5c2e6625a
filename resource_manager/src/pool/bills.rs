//! What was used: one bill a lease, in the order in which they ended. Kept while the program runs.

use std::collections::HashMap;

use rfaas::protocol::lease::LeaseId;

use super::record::Billed;

/// All bills.
#[derive(Debug, Default)]
pub(super) struct Bills {
    list: Vec<Billed>,
    index: HashMap<LeaseId, usize>,
}

impl Bills {
    /// Adds the bill of a lease that has none, or replaces one that was provisional. A reported
    /// bill is final.
    pub(super) fn book(&mut self, bill: Billed) {
        match self.index.get(&bill.lease) {
            None => {
                self.index.insert(bill.lease, self.list.len());
                self.list.push(bill);
            }
            Some(&at) if !self.list[at].reported => self.list[at] = bill,
            Some(_) => tracing::debug!(lease = %bill.lease, "already billed"),
        }
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&Billed> {
        self.index.get(&id).map(|&at| &self.list[at])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Billed> {
        self.list.iter()
    }
}
