//! Completion queues of the embedded device: no memory of their own, but a list of the queue pairs
//! whose arrivals and finished sends they show.
//!
//! A poller that spins says so once (`stay_awake`) and spares its peers a fence (AWAKE in
//! `rdmalib_ring`). A peer that has not seen that this was taken back does not wake anybody, so the
//! sleep after that is a short one ([`NAP`]).
//!
//! Elsewhere: the list, and sleeping (`members`); what a queue pair has to show (`poller`).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::members::QueueMembers;
use super::poller::PairPoller;
use crate::contract;
use crate::sync::{Ordering, fence};
use crate::types::{Notify, Result, WorkCompletion};
use rdmalib_ring::Arm;

/// The sleep after having been awake. What a processor has stored, others see within microseconds:
/// it is written out in order, whatever else the processor does, also when it is interrupted.
const NAP: Duration = Duration::from_millis(1);

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<QueueMembers<Core>>);

impl contract::Waker for Waker {
    fn wake(&self) {
        self.0.wake();
    }
}

/// The poller's end.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    members: Arc<QueueMembers<Core>>,
    pollers: Vec<PairPoller>,
    seen: u32,
    /// Peers know that no thread sleeps here.
    awake: bool,
    /// Where the next poll starts, so that a busy queue pair does not starve the others.
    next: usize,
}

impl CompletionQueue {
    pub(crate) fn new(capacity: u32) -> Result<Self> {
        let members = Arc::new(QueueMembers::new(capacity)?);
        Ok(CompletionQueue { members, pollers: Vec::new(), seen: 0, awake: false, next: 0 })
    }

    pub(crate) fn members(&self) -> &Arc<QueueMembers<Core>> {
        &self.members
    }

    fn poll_all(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        for _ in 0..self.pollers.len() {
            if taken == out.len() {
                break;
            }
            if self.next >= self.pollers.len() {
                self.next = 0;
            }
            taken += self.pollers[self.next].poll(&mut out[taken..]);
            self.next += 1;
        }
        taken
    }

    /// Brings `pollers` up to date with the members.
    #[inline]
    fn follow(&mut self) {
        let generation = self.members.generation(); // MEMBERS
        if generation != self.seen {
            self.seen = generation;
            self.refresh();
        }
    }

    #[cold]
    fn refresh(&mut self) {
        let members = self.members.all();
        self.pollers
            .retain(|poller| members.iter().any(|core| core.number() == poller.core().number()));
        for core in &members {
            if !self.pollers.iter().any(|s| s.core().number() == core.number()) {
                let poller = PairPoller::new(core.clone(), &self.members);
                poller.stay_awake(self.awake);
                self.pollers.push(poller);
            }
        }
        let alone = self.pollers.len() == 1;
        self.pollers.iter_mut().for_each(|poller| poller.connect(alone));
    }

    /// [`ArrivalTaker::places_used`](rdmalib_ring::ArrivalTaker::places_used) of the queue pair
    /// `number`.
    #[cfg(test)]
    pub(super) fn places_used(&self, number: u32) -> u32 {
        self.pollers.iter().find(|s| s.core().number() == number).map_or(0, PairPoller::places_used)
    }

    #[cold]
    fn set_awake(&mut self, awake: bool) {
        self.awake = awake;
        self.pollers.iter().for_each(|poller| poller.stay_awake(awake));
        fence(Ordering::SeqCst); // a sleep of `NAP` counts from now
    }

    fn set_armed(&self, arm: Arm) {
        self.members.set_armed(arm);
        self.pollers.iter().for_each(|poller| poller.arm(arm));
        fence(Ordering::SeqCst); // LOCAL WAKE
    }

    fn ready(&mut self) -> bool {
        self.follow();
        self.pollers.iter_mut().any(PairPoller::ready)
    }

    fn take_events(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.members.take_events(timeout)
    }
}

impl contract::CompletionQueue for CompletionQueue {
    type Waker = Waker;

    #[inline]
    fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        self.follow();
        match self.pollers.as_mut_slice() {
            [only] => only.poll(out),
            _ => self.poll_all(out),
        }
    }

    #[inline]
    fn stay_awake(&mut self) {
        if !self.awake {
            self.set_awake(true);
        }
    }

    fn arm(&mut self, notify: Notify) -> Result<()> {
        self.follow();
        if self.awake {
            self.set_awake(false);
            std::thread::sleep(NAP);
        }
        let arm = match notify {
            Notify::Any => Arm::Any,
            Notify::Solicited => Arm::Solicited,
        };
        self.set_armed(arm);
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.take_events(Some(Duration::ZERO))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.follow();
        let mut timeout = timeout;
        if self.awake {
            self.set_awake(false);
            timeout = Some(timeout.map_or(NAP, |timeout| timeout.min(NAP)));
        }
        self.set_armed(Arm::Any);
        // Look again: one that landed before `arm` rang no bell, and we would sleep on it.
        let result = if self.ready() { Ok(()) } else { self.take_events(timeout) };
        self.set_armed(Arm::Never);
        result
    }

    fn waker(&self) -> Waker {
        Waker(self.members.clone())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.members.as_fd()
    }
}
