//! The loop of a manager: one thread owns everything, waits for whatever comes first, and does what it can.
//!
//! ```text
//!   arm ──▶ pass ──▶ poll(2): descriptors of all sources, until the next deadline ──▶ acknowledge ──┐
//!    ▲                                                                                    news ◀────┘
//!    └────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! A pass comes between arming a descriptor and sleeping on it. So what came before it was armed is found by
//! that pass, and what comes later ends the sleep.
//!
//! A loop that does not sleep takes every source to have news in every pass, and lets other processes have
//! their turn in between.
//!
//! Elsewhere: what a pass does is each manager's own; connections that wait for something have places in a
//! [`WaitingList`](rdmalib::WaitingList).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdmalib::{ConnectRequest, Listener};

use crate::describe;
use crate::log::WokenLater;

/// Descriptors that one connection may use on any provider, rounded up.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 8;

/// Pause after a listener failed, which it does when descriptors run out: the loop does not spin on it.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// What a loop does between two passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It sleeps on descriptors, which must be armed.
    Sleep,
    /// It goes on at once.
    Poll,
}

/// What the loop goes on with after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// It sleeps until there is news.
    Done,
    /// There may be more to do: the next pass follows without sleeping.
    Again,
    /// It ends.
    Stop,
}

/// Who may have something for the next pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wakeups<S> {
    /// All sources: nobody has looked.
    All,
    /// These had news.
    Of(Vec<S>),
}

/// Waiting failed, which it does not unless the system is out of memory.
#[derive(Debug, thiserror::Error)]
#[error("poll(2) failed")]
pub struct WaitError(#[from] pub Errno);

/// A manager, as its loop sees it.
pub trait PollLoop {
    /// Names what the loop waits for.
    type Source: Copy;
    /// Why the loop ends early.
    type Error: From<WaitError>;

    /// Has descriptors announce what comes from now on, as far as the last pass did not. Called before each
    /// pass of a loop that sleeps.
    fn arm(&mut self) {}

    /// Does everything that can be done now. Never waits.
    fn pass(&mut self, wakeups: Wakeups<Self::Source>) -> Result<Pass, Self::Error>;

    /// Adds all that the loop waits for.
    fn sources<'a>(&'a self, sources: &mut Sources<'a, Self::Source>);

    /// Takes back the announcement of a source that had news.
    fn acknowledge(&mut self, source: Self::Source);

    /// Returns when the next pass is due at the latest.
    fn next_deadline(&self, now: Instant) -> Option<Instant>;
}

/// The descriptors that a loop waits for.
#[derive(Debug)]
pub struct Sources<'a, S> {
    names: Vec<S>,
    descriptors: Vec<PollFd<'a>>,
}

impl<'a, S> Sources<'a, S> {
    /// Adds `descriptor`, which is readable when `source` has news.
    pub fn add(&mut self, source: S, descriptor: BorrowedFd<'a>) {
        self.names.push(source);
        self.descriptors.push(PollFd::new(descriptor, PollFlags::POLLIN));
    }
}

/// Runs the loop of `manager` until a pass ends it.
pub fn run<M: PollLoop>(manager: &mut M, idle: Idle) -> Result<(), M::Error> {
    let mut wakeups = Wakeups::All;
    let log = WokenLater::begin(); // whoever waits for what a pass does is answered first
    loop {
        if idle == Idle::Sleep {
            manager.arm();
        }
        let pass = manager.pass(wakeups)?;
        log.wake();
        wakeups = match (pass, idle) {
            (Pass::Stop, _) => return Ok(()),
            (_, Idle::Poll) => {
                std::thread::yield_now();
                Wakeups::All
            }
            (Pass::Again, Idle::Sleep) => Wakeups::Of(wait(manager, PollTimeout::ZERO)?),
            (Pass::Done, Idle::Sleep) => {
                let now = Instant::now();
                let timeout = timeout(manager.next_deadline(now), now);
                Wakeups::Of(wait(manager, timeout)?)
            }
        };
    }
}

/// Waits until a source has news or the time is over; returns those that have.
fn wait<M: PollLoop>(manager: &mut M, timeout: PollTimeout) -> Result<Vec<M::Source>, WaitError> {
    let mut sources = Sources { names: Vec::new(), descriptors: Vec::new() };
    manager.sources(&mut sources);
    let Sources { names, mut descriptors } = sources;
    match poll(&mut descriptors, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let has_news = |descriptor: &PollFd| descriptor.any().unwrap_or(true);
    let news = names.into_iter().zip(&descriptors).filter(|(_, fd)| has_news(fd));
    let news: Vec<M::Source> = news.map(|(name, _)| name).collect();
    drop(descriptors);
    news.iter().for_each(|source| manager.acknowledge(*source));
    Ok(news)
}

/// Returns the time until `deadline` for `poll(2)`, rounded up so that it is over when poll
/// returns.
fn timeout(deadline: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(now);
    let ms = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
    PollTimeout::try_from(ms as i32).unwrap_or(PollTimeout::MAX)
}

/// Takes connections, a batch in a pass, and leaves the listener alone for a while after it failed.
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    /// Most connections in a pass, so that peers have their turn again.
    batch: usize,
    paused_until: Option<Instant>,
}

impl Acceptor {
    /// Takes up to `batch` connections of `listener` in a pass.
    pub fn new(listener: Listener, batch: usize) -> Self {
        Acceptor { listener, batch, paused_until: None }
    }

    /// Returns the listener.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Returns the next connection that waits, if this pass has `taken` fewer than a batch.
    pub fn next(&mut self, now: Instant, taken: usize) -> Option<ConnectRequest> {
        if taken >= self.batch || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        self.listener.try_next().unwrap_or_else(|error| {
            tracing::warn!(error = describe(&error), "a connection could not be taken");
            self.paused_until = Some(now + LISTEN_AGAIN);
            None
        })
    }

    /// Returns whether a pass that has taken so many left some that may wait.
    pub fn may_have_more(&self, taken: usize) -> bool {
        taken >= self.batch
    }

    /// Returns when the pause after a failure is over.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Adds the listener as `source`, unless it pauses.
    pub fn add_to<'a, S>(&'a self, source: S, sources: &mut Sources<'a, S>) {
        if self.paused_until.is_none() {
            sources.add(source, self.listener.as_fd());
        }
    }
}

/// Wakes the loop from another thread; all clones are of one bell.
#[derive(Clone, Debug)]
pub struct Bell(Arc<EventFd>);

impl Bell {
    /// Makes a bell that was not rung. Fails only if the process has no descriptor left.
    pub fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Bell(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// Wakes the loop.
    pub fn ring(&self) {
        match self.0.write(1) {
            Ok(_) | Err(Errno::EAGAIN) => {} // EAGAIN: it has been ringing 2^64 times already
            Err(errno) => tracing::error!(%errno, "the loop cannot be woken"),
        }
    }

    /// Silences it. To be called before looking for what it was rung for, so that nothing is missed.
    pub fn silence(&self) {
        let _ = self.0.read(); // EAGAIN: it did not ring
    }
}

/// Readable when it was rung.
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_never_shorter_than_the_deadline_is_away() {
        let now = Instant::now();
        assert_eq!(timeout(None, now), PollTimeout::NONE);
        assert_eq!(timeout(Some(now), now), PollTimeout::ZERO);
        for (us, ms) in [(1, 1), (1000, 1), (1001, 2), (499_999, 500)] {
            let deadline = now + Duration::from_micros(us);
            assert_eq!(timeout(Some(deadline), now), PollTimeout::from(ms as u16));
        }
        let far = now + Duration::from_secs(1 << 32);
        assert_eq!(timeout(Some(far), now), PollTimeout::try_from(i32::MAX).unwrap());
    }

    /// Passes until `passes` are over; `bell` is rung in the first.
    struct Counting {
        bell: Bell,
        passes: u32,
        seen: Vec<Wakeups<u8>>,
    }

    impl PollLoop for Counting {
        type Source = u8;
        type Error = WaitError;

        fn pass(&mut self, wakeups: Wakeups<u8>) -> Result<Pass, WaitError> {
            self.seen.push(wakeups);
            if self.seen.len() == 1 {
                self.bell.ring();
            }
            self.passes -= 1;
            Ok(if self.passes == 0 { Pass::Stop } else { Pass::Done })
        }

        fn sources<'a>(&'a self, sources: &mut Sources<'a, u8>) {
            sources.add(7, self.bell.as_fd());
        }

        fn acknowledge(&mut self, _: u8) {
            self.bell.silence();
        }

        fn next_deadline(&self, now: Instant) -> Option<Instant> {
            Some(now + Duration::from_millis(1))
        }
    }

    #[test]
    fn a_loop_that_sleeps_passes_for_news_and_for_deadlines_and_another_always() {
        let counting = |idle| {
            let mut counting = Counting { bell: Bell::new().unwrap(), passes: 3, seen: Vec::new() };
            run(&mut counting, idle).unwrap();
            counting.seen
        };
        let sleeping = [Wakeups::All, Wakeups::Of(vec![7]), Wakeups::Of(vec![])];
        assert_eq!(counting(Idle::Sleep), sleeping);
        assert_eq!(counting(Idle::Poll), [Wakeups::All, Wakeups::All, Wakeups::All]);
    }
}
