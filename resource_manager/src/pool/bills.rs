//! Bills that a report may still concern: those that are provisional, and all of leases of an earlier
//! state, of which only they tell that they have ended. All others are out of the pool's hands.

use std::collections::BTreeMap;

use rfaas_protocol::lease::LeaseId;

use super::{Billed, MAX_TIMEOUT, Now};

/// Most of them; the oldest go first. A client may have as many leases as it likes granted and ended that
/// nobody ever claims, so there is a bound. Reports of their use do not come.
const MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct OpenBills(BTreeMap<LeaseId, Billed>);

impl OpenBills {
    pub(super) fn book(&mut self, now: Now, first_id: LeaseId, billed: &Billed) {
        if billed.reported && billed.lease >= first_id {
            self.0.remove(&billed.lease);
            return;
        }
        self.0.insert(billed.lease, billed.clone());
        // Ids are in the order of time, nearly; what is missed here is seen later.
        while let Some((_, oldest)) = self.0.first_key_value()
            && (self.0.len() > MAX || is_old(now, oldest))
        {
            self.0.pop_first();
        }
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&Billed> {
        self.0.get(&id)
    }
}

/// Whether no report comes any more: no lease lasts so long.
fn is_old(now: Now, billed: &Billed) -> bool {
    now.wall.duration_since(billed.ended_at).is_ok_and(|age| age > MAX_TIMEOUT)
}
