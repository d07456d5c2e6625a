//! Leases that have ended and whose tokens have not: a token is good for one claim, so its lease is
//! remembered until the token expires by itself. Pure.

use std::collections::HashMap;
use std::time::Instant;

use rfaas_protocol::lease::LeaseId;

/// Fewest entries before expired ones are looked for.
const LEAST_SWEEP: usize = 64;

/// The leases that may not be claimed again. Its size follows the number of ended leases whose
/// tokens are still good: expired entries are swept out whenever it has doubled.
#[derive(Debug)]
pub struct EndedLeases {
    until: HashMap<LeaseId, Instant>,
    sweep_at: usize,
}

impl EndedLeases {
    /// No lease has ended yet.
    pub fn new() -> Self {
        EndedLeases { until: HashMap::new(), sweep_at: LEAST_SWEEP }
    }

    /// Remembers `lease` until its token is worthless.
    pub fn remember(&mut self, lease: LeaseId, now: Instant, until: Instant) {
        if self.until.len() >= self.sweep_at {
            self.until.retain(|_, until| *until > now);
            self.sweep_at = LEAST_SWEEP.max(2 * self.until.len());
        }
        let entry = self.until.entry(lease).or_insert(until);
        *entry = until.max(*entry);
    }

    /// Whether `lease` has ended. May still say so after its token expired.
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.until.contains_key(&lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ended_leases_are_remembered_until_their_tokens_expire_and_then_forgotten() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut ended = EndedLeases::new();
        for number in 1..=10_000_u32 {
            let now = start + second * number;
            ended.remember(LeaseId::new(number.into()).unwrap(), now, now + 100 * second);
        }
        for number in 9_901..=10_000 {
            assert!(ended.contains(LeaseId::new(number).unwrap()));
        }
        assert!(!ended.contains(LeaseId::new(1).unwrap()));
        assert!(ended.until.len() <= 2 * 101 + LEAST_SWEEP, "{} entries", ended.until.len());
    }
}
