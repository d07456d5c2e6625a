//! What it takes to see completions: the queue and the receiving halves of all connections of a caller.
//!
//! There is one [`Driver`] for all that wait, and only one thread at a time has it. So no completion is seen twice, and
//! whoever has it resolves what comes, no matter who asked for it.

use std::task::Waker;
use std::thread;
use std::time::Duration;

use std::fmt::Debug;

use rdmalib::{CompletionQueue, ReceiveQueue, WorkCompletion};

use super::connection::{receive_id, replier};
use super::wait::Wait;
use super::workers::Workers;
use crate::backoff::Pause;
use crate::sharing::Sharing;

/// Completions taken from the queue at a time.
const BATCH: usize = 16;

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
