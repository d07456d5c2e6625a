//! One wait of a caller: how it spins ([`Backoff`]), and how long it sleeps.

use std::time::{Duration, Instant};

use super::workers::Next;
use crate::backoff::{Awaited, Backoff};
use crate::spin::Spin;

/// Longest sleep, after which deadlines are checked again.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Sleep while the cause of a lost connection is awaited, which rings no bell here.
const NAP: Duration = Duration::from_millis(1);

/// One wait.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) backoff: Backoff,
    /// How long to sleep before the next poll.
    sleep: Option<Duration>,
}

impl Wait {
    pub(super) fn new(spin: Spin) -> Self {
        Wait { backoff: Backoff::new(spin, Awaited::Result), sleep: None }
    }

    /// The clock was read: it is `now`, and `next` happens by itself.
    pub(super) fn looked(&mut self, now: Instant, next: Next) {
        let spun = self.backoff.looked(now);
        self.sleep = if next.cause_awaited {
            Some(NAP)
        } else if spun {
            let left =
                next.deadline.map_or(LONGEST_SLEEP, |until| until.saturating_duration_since(now));
            Some(left.min(LONGEST_SLEEP))
        } else {
            None
        };
        if self.sleep.is_some() {
            self.backoff.about_to_sleep();
        }
    }

    /// Returns how long to sleep before the next poll, once.
    #[inline]
    pub(super) fn take_sleep(&mut self) -> Option<Duration> {
        self.sleep.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Pause;

    const NOTHING: Next = Next { deadline: None, cause_awaited: false };

    #[test]
    fn a_warm_wait_sleeps_until_the_next_deadline_once() {
        let now = Instant::now();
        let mut wait = Wait::new(Spin::Never);
        let deadline = Some(now + Duration::from_millis(5));
        wait.looked(now, Next { deadline, ..NOTHING });
        assert_eq!(wait.take_sleep(), Some(Duration::from_millis(5)));
        assert_eq!(wait.take_sleep(), None);
        wait.looked(now, NOTHING);
        assert_eq!(wait.take_sleep(), Some(LONGEST_SLEEP));
    }

    #[test]
    fn a_hot_wait_does_not_sleep() {
        let now = Instant::now();
        let mut wait = Wait::new(Spin::Always);
        wait.looked(now, NOTHING);
        wait.looked(now + Duration::from_secs(100), NOTHING);
        assert_eq!(wait.take_sleep(), None);
    }

    #[test]
    fn while_a_cause_is_awaited_every_wait_is_a_nap() {
        let mut wait = Wait::new(Spin::Always);
        wait.looked(Instant::now(), Next { cause_awaited: true, ..NOTHING });
        assert_eq!(wait.take_sleep(), Some(NAP));
        assert_eq!(wait.backoff.fruitless(false), Pause::Look);
    }
}
