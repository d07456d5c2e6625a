//! Completion queues: which queue pairs they show, polling them, and sleeping.
//!
//! Completions are kept by the protocol of each queue pair. A poll takes those that are there, and
//! only if there are none looks whether the socket has more.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::carrier::STAGING;
use super::core::{Core, Inner};
use super::engine::EngineHandle;
use super::members::{Arm, BELL, Members};
use crate::contract;
use crate::types::{Notify, Result, WorkCompletion};

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Members<Core>>);

impl contract::Waker for Waker {
    fn wake(&self) {
        self.0.wake();
    }
}

/// A queue pair, as its completion queue knows it.
#[derive(Debug)]
struct Member {
    core: Arc<Core>,
    sends: bool,
    receives: bool,
    /// Its socket is in the set where this queue sleeps.
    is_in_set: bool,
    /// And it is waited for room to send.
    waits_for_room: bool,
}

/// The poller's end.
pub(crate) struct CompletionQueue {
    members: Arc<Members<Core>>,
    engine: Arc<EngineHandle>,
    all: Vec<Member>,
    seen: u32,
    /// Where the next poll starts, so that a busy queue pair does not starve the others.
    next: usize,
    staging: Box<[u8]>,
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue({})", self.all.len())
    }
}

impl Member {
    fn new(core: Arc<Core>, members: &Arc<Members<Core>>) -> Self {
        let (sends, receives) = core.shows_in(members);
        Member { core, sends, receives, is_in_set: false, waits_for_room: false }
    }

    fn has_some(&self, inner: &Inner) -> bool {
        (self.sends && inner.protocol.has_sends())
            || (self.receives && inner.protocol.has_receives())
    }

    #[inline]
    fn take(&self, inner: &mut Inner, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        while taken < out.len() {
            // Sends first: there are no more than were posted, so they keep no receive waiting.
            let mut completion = if self.sends { inner.protocol.take_send() } else { None };
            if completion.is_none() && self.receives {
                completion = inner.protocol.take_receive();
            }
            let Some(completion) = completion else { break };
            out[taken] = completion;
            taken += 1;
        }
        taken
    }

    #[inline]
    fn poll(&self, out: &mut [WorkCompletion], staging: &mut [u8]) -> usize {
        let mut inner = self.core.lock();
        let taken = self.take(&mut inner, out);
        if taken > 0 {
            return taken;
        }
        self.core.look(&mut inner, staging);
        self.take(&mut inner, out)
    }

    /// Whether there is something for this queue; if not, its socket wakes the thread that is about
    /// to sleep.
    fn prepare(&mut self, members: &Members<Core>, staging: &mut [u8]) -> Result<bool> {
        let mut inner = self.core.lock();
        if !self.has_some(&inner) {
            self.core.look_before_wait(&mut inner, staging);
        }
        if self.has_some(&inner) {
            return Ok(true); // perhaps it is answered: then the acknowledgement travels with that
        }
        self.core.tell_before_sleep(&mut inner);
        let waits = inner.protocol.has_output();
        let Some(carrier) = &inner.carrier else { return Ok(false) };
        let number = self.core.number();
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, waits);
        if !self.is_in_set {
            members.sleep()?.add(carrier, number, flags)?;
        } else if waits != self.waits_for_room {
            members.sleep()?.modify(carrier, number, flags)?;
        }
        (self.is_in_set, self.waits_for_room) = (true, waits);
        self.core.take_over(&mut inner);
        Ok(false)
    }
}

impl CompletionQueue {
    pub(super) fn new(engine: &Arc<EngineHandle>, capacity: u32) -> Result<Self> {
        Ok(CompletionQueue {
            members: Arc::new(Members::new(capacity)?),
            engine: engine.clone(),
            all: Vec::new(),
            seen: 0,
            next: 0,
            staging: vec![0; STAGING].into(),
        })
    }

    pub(super) fn members(&self) -> &Arc<Members<Core>> {
        &self.members
    }

    /// Brings `all` up to date with the members.
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
        let cores = self.members.all();
        self.all.retain(|member| cores.iter().any(|core| core.number() == member.core.number()));
        for core in cores {
            if !self.all.iter().any(|member| member.core.number() == core.number()) {
                self.all.push(Member::new(core, &self.members));
            }
        }
    }

    fn poll_all(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut taken = 0;
        for _ in 0..self.all.len() {
            if taken == out.len() {
                break;
            }
            if self.next >= self.all.len() {
                self.next = 0;
            }
            taken += self.all[self.next].poll(&mut out[taken..], &mut self.staging);
            self.next += 1;
        }
        taken
    }

    /// Sleeps until there is a completion, the bell rings, or it is `deadline`.
    fn sleep_until(&mut self, deadline: Option<Instant>) -> Result<()> {
        let mut is_ready = false;
        self.follow();
        for member in &mut self.all {
            is_ready |= member.prepare(&self.members, &mut self.staging)?;
        }
        let mut ready = Vec::new();
        while !is_ready {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            ready.clear();
            self.members.sleep()?.sleep(left, |number| ready.push(number))?;
            if ready.contains(&BELL) || left.is_some_and(|left| left.is_zero()) {
                return self.members.take_bell();
            }
            for member in &mut self.all {
                if ready.contains(&member.core.number()) {
                    is_ready |= member.prepare(&self.members, &mut self.staging)?;
                }
            }
        }
        Ok(())
    }
}

impl contract::CompletionQueue for CompletionQueue {
    type Waker = Waker;

    #[inline]
    fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        self.follow();
        match self.all.as_slice() {
            [only] => only.poll(out, &mut self.staging),
            _ => self.poll_all(out),
        }
    }

    /// No peer looks whether a thread is awake.
    #[inline]
    fn stay_awake(&mut self) {}

    fn arm(&mut self, notify: Notify) -> Result<()> {
        self.follow();
        self.members.set_armed(match notify {
            Notify::Any => Arm::Any,
            Notify::Solicited => Arm::Urgent,
        });
        for member in &self.all {
            let mut inner = member.core.lock();
            if inner.protocol.owes_acknowledgement() {
                inner.protocol.acknowledge();
                member.core.after(&mut inner);
            }
            member.core.leave_to_helper(&mut inner);
        }
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.members.take_bell()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.members.set_asleep(true);
        self.members.set_armed(Arm::Any);
        let result = self.sleep_until(deadline);
        self.members.set_armed(Arm::Never);
        self.members.set_asleep(false);
        self.engine.resume();
        result
    }

    fn waker(&self) -> Waker {
        Waker(self.members.clone())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.members.as_fd()
    }
}
