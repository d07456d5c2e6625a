//! What it takes to see completions: the queue and the receiving halves of all connections of a caller.
//! How a caller waits for them: how it spins ([`Backoff`]), and how long it sleeps ([`Wait`]).
//!
//! There is one [`Driver`] for all that wait, and only one thread at a time has it. So no completion is seen twice, and
//! whoever has it resolves what comes, no matter who asked for it.

use std::fmt::Debug;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{CompletionQueue, ReceiveQueue, WorkCompletion};

use super::connection::{receive_id, replier};
use super::workers::{Next, Workers};
use crate::backoff::{Awaited, Backoff, Pause, Spin};
use crate::sharing::Sharing;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;
/// Longest sleep, after which deadlines are checked again.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Sleep while the cause of a lost connection is awaited, which rings no bell here.
const NAP: Duration = Duration::from_millis(1);

/// The queue and the receiving halves.
#[derive(Debug)]
pub struct Driver {
    completions: CompletionQueue,
    receives: Vec<ReceiveQueue>,
    /// Workers whose replies used up a receive. They are posted again at the next wait: after the next request, and
    /// not before the caller has its result. At most a batch, which is less than there are to spare.
    to_repost: Vec<usize>,
    batch: [WorkCompletion; BATCH],
    /// Whether a worker needs the CPU that is spun on.
    sharing: Sharing,
}

impl Driver {
    /// Takes the queue that all connections complete into, and their receiving halves in the order of their workers.
    pub fn new(completions: CompletionQueue, receives: Vec<ReceiveQueue>) -> Self {
        let batch = [WorkCompletion::default(); BATCH];
        Driver {
            completions,
            receives,
            to_repost: Vec::with_capacity(BATCH),
            batch,
            sharing: Sharing::default(),
        }
    }

    /// Returns what ends the sleep of the thread that has the driver.
    pub fn waker(&self) -> rdmalib::Waker {
        self.completions.waker()
    }

    /// Polls as `wait` says until there are completions, and returns their number, or until it is time to read the
    /// clock, and returns 0.
    #[inline]
    pub(super) fn wait(&mut self, wait: &mut Wait) -> usize {
        self.repost();
        if let Some(time) = wait.take_sleep()
            && let Err(error) = self.completions.wait(Some(time))
        {
            // Without the bell it polls now and then.
            tracing::error!(%error, "cannot sleep on the completion queue");
            thread::sleep(time.min(Duration::from_millis(1)));
        }
        let early = self.sharing.is_likely();
        loop {
            let taken = self.completions.poll(&mut self.batch);
            if taken > 0 {
                wait.backoff.fruitful(early, &mut self.sharing);
                return taken;
            }
            match wait.backoff.fruitless(early) {
                Pause::Spin => {
                    self.completions.stay_awake();
                    std::hint::spin_loop();
                }
                Pause::Yield => thread::yield_now(),
                Pause::Look => return 0,
            }
        }
    }

    /// Resolves the first `taken` completions of the batch.
    #[inline]
    pub(super) fn apply<C: Copy + Debug + PartialEq>(
        &mut self,
        taken: usize,
        workers: &mut Workers<C>,
        woken: &mut Vec<Waker>,
    ) {
        for completion in &self.batch[..taken] {
            self.to_repost.extend(replier(completion));
            workers.apply(completion, woken);
        }
    }

    /// Resolves what has completed by now, without waiting.
    pub(super) fn poll_all<C: Copy + Debug + PartialEq>(
        &mut self,
        workers: &mut Workers<C>,
        woken: &mut Vec<Waker>,
    ) {
        loop {
            self.repost();
            let taken = self.completions.poll(&mut self.batch);
            self.apply(taken, workers, woken);
            if taken < BATCH {
                return;
            }
        }
    }

    /// Posts the receives that replies have used up.
    #[inline]
    fn repost(&mut self) {
        while let Some(worker) = self.to_repost.pop() {
            if let Some(receives) = self.receives.get_mut(worker) {
                // A failure means that the connection is gone, which other receives tell.
                receives.post(receive_id(worker), None).ok();
            }
        }
    }
}

/// One wait of a caller.
#[derive(Debug)]
pub(super) struct Wait {
    backoff: Backoff,
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
    fn take_sleep(&mut self) -> Option<Duration> {
        self.sleep.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
