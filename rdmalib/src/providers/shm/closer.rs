//! Threads that close the descriptors that peers have a part in, because close(2) may take as long
//! as a peer likes.
//!
//! A descriptor that a peer passed may be a socket that lingers, or a file whose filesystem is a
//! process of the peer. A message that nobody has read may hold such descriptors. The thread that
//! closes the last one waits in the kernel, and no signal ends that. Closing the last descriptor of
//! a domain's file gives back its pages, which takes a second for some GiB.
//!
//! So such a descriptor is kept in a [`ClosedLater`], which hands it to a thread when it is
//! dropped. Nothing waits for these threads, also not at the end of the process, where nothing
//! lingers.
//!
//! What may take for ever has threads of its own ([`Closing::Unsure`]). A thread that is caught is
//! lost until the peer lets go. When all of them are, such descriptors wait, and then stay open;
//! all others are closed as usual. A descriptor cannot be taken back from the queue, because
//! refusing it closes it. Nor can we ask which one will take long: asking for its kind
//! (`fstatfs(2)`) may take as long.
//!
//! One thread of a kind works, and another waits beside it while there is more to do. When the
//! first has closed the same descriptor for [`SLOW`], the other takes over, and one more is started
//! to watch it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::socket::{MsgFlags, recv, recvmsg};

use crate::process::ForkMark;

/// Threads of a kind that close at the same time. One is enough unless a peer means harm.
const MOST_THREADS: usize = 8;
/// How long a thread that was woken waits for more: a connection that ends has several descriptors,
/// others often end with it, and whoever ends them has better things to do than to wake a thread
/// for each.
const TOGETHER: Duration = Duration::from_millis(1);
/// It waits for no more than these: a process may have 1,024 descriptors by default.
const MANY: usize = 64;
/// How long a thread may close one descriptor before another goes on with the others: some thousand
/// times what closing takes.
const SLOW: Duration = Duration::from_millis(50);
/// Pause between two calls of what is [checked again](check_later).
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// Descriptors of a kind that wait to be closed: more than connections that end at once. What comes
/// on top is never closed.
const MOST_WAITING: usize = 4096;

/// A descriptor that is closed after it was dropped.
#[derive(Debug)]
pub(super) struct ClosedLater<T: Descriptor>(Option<T>);

/// What a [`ClosedLater`] holds.
pub(super) trait Descriptor {
    /// What happens at once when it is dropped; what is to be closed. Never waits.
    fn end(self) -> Option<Closing>;
}

/// A descriptor that is to be closed.
#[derive(Debug)]
pub(super) enum Closing {
    /// Takes no longer than giving back memory does.
    Soon(OwnedFd),
    /// May take as long as a peer likes.
    Unsure(OwnedFd),
}

/// A domain's file, ours or a peer's that was found to be one.
impl Descriptor for OwnedFd {
    fn end(self) -> Option<Closing> {
        Some(Closing::Soon(self))
    }
}

/// A descriptor of a peer's choice: nothing is done to it that could wait for the peer.
#[derive(Debug)]
pub(super) struct Passed(pub(super) OwnedFd);

impl Descriptor for Passed {
    fn end(self) -> Option<Closing> {
        Some(Closing::Unsure(self.0))
    }
}

impl AsFd for Passed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connection of ours: the peer hears of its end.
impl Descriptor for UnixStream {
    fn end(self) -> Option<Closing> {
        let _ = self.shutdown(Shutdown::Both); // ENOTCONN: the peer was faster
        Some(match holds_descriptors(&self) {
            true => Closing::Unsure(self.into()),
            false => Closing::Soon(self.into()),
        })
    }
}

/// Whether descriptors may be among what came over `socket` and was not taken, which is over; then
/// closing it closes them. What comes without any is taken.
fn holds_descriptors(socket: &UnixStream) -> bool {
    /// Enough for what a peer that follows the protocol has said.
    const LOOKS: usize = 16;
    let mut bytes = [0; 256];
    for _ in 0..LOOKS {
        // Without room for descriptors the kernel installs none, and says that it would have.
        let (flags, mut parts) =
            (MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT, [IoSliceMut::new(&mut bytes)]);
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, flags) {
            Ok(message) if message.flags.contains(MsgFlags::MSG_CTRUNC) => return true,
            Ok(message) if message.bytes > 0 => {
                let seen = message.bytes;
                let _ = recv(socket.as_raw_fd(), &mut bytes[..seen], MsgFlags::MSG_DONTWAIT);
            }
            _ => return false,
        }
    }
    true
}

impl<T: Descriptor> From<T> for ClosedLater<T> {
    fn from(descriptor: T) -> Self {
        ClosedLater(Some(descriptor))
    }
}

impl<T: Descriptor> ClosedLater<T> {
    /// The same descriptor, as another kind.
    pub(super) fn map<U: Descriptor>(mut self, into: impl FnOnce(T) -> U) -> ClosedLater<U> {
        ClosedLater(self.0.take().map(into))
    }
}

impl<T: Descriptor> Deref for ClosedLater<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl<T: Descriptor + AsFd> AsFd for ClosedLater<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

impl<T: Descriptor> Drop for ClosedLater<T> {
    fn drop(&mut self) {
        if let Some(closing) = self.0.take().and_then(T::end) {
            close(closing);
        }
    }
}

/// The threads of this process.
#[derive(Debug)]
struct Closers {
    mark: ForkMark,
    soon: Closer,
    unsure: Closer,
}

/// Threads, and what they have to do.
#[derive(Debug, Default)]
struct Closer {
    work: Mutex<Work>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
    /// Those that do not work, from before they start.
    idle: usize,
    /// Counts up whenever another thread begins to work; a thread that began before has stopped.
    turn: u64,
    /// Since when the thread that works has closed the same descriptor; `None`: none works.
    busy_since: Option<Instant>,
    /// What to check again, and when.
    check: Option<(Instant, Check)>,
}

impl Work {
    /// When an idle thread is to begin to work.
    fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.busy_since.map_or(now, |since| since + SLOW);
        (!self.waiting.is_empty()).then_some(due)
    }
}

/// The threads, unless they are another process's: a child has none of its parent's.
fn closers() -> Option<&'static Closers> {
    static CLOSERS: OnceLock<Closers> = OnceLock::new();
    let closers = CLOSERS.get_or_init(|| Closers {
        mark: ForkMark::new(),
        soon: Closer::default(),
        unsure: Closer::default(),
    });
    closers.mark.is_here().then_some(closers)
}

/// Has a descriptor closed. Does not wait.
fn close(closing: Closing) {
    let Some(closers) = closers() else { return };
    let (closer, descriptor) = match closing {
        Closing::Soon(descriptor) => (&closers.soon, descriptor),
        Closing::Unsure(descriptor) => (&closers.unsure, descriptor),
    };
    let mut work = closer.work();
    if work.waiting.len() >= MOST_WAITING {
        drop(work);
        tracing::error!(
            "descriptors of peers cannot be closed: too many take too long; one is left open"
        );
        let _ = descriptor.into_raw_fd();
        return;
    }
    work.waiting.push_back(descriptor);
    closer.watch(&mut work);
    // A thread that has slept since there was nothing is woken; one that was woken before waits for
    // that many at most.
    let wake = matches!(work.waiting.len(), 1 | MANY);
    drop(work);
    if wake {
        closer.more.notify_one();
    }
}

/// Closes what can be closed by now; whether there is more.
type Check = fn() -> bool;

/// Has a thread call `check` every second, until it returns false. There is one such function. Does
/// not wait.
pub(super) fn check_later(check: Check) {
    let Some(closers) = closers() else { return };
    let mut work = closers.soon.work();
    if work.check.is_none() {
        work.check = Some((Instant::now() + CHECK_AGAIN, check));
        closers.soon.watch(&mut work);
        drop(work);
        closers.soon.more.notify_one();
    }
}

impl Closer {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is an idle thread from now on, if there may be one.
    fn watch(&'static self, work: &mut Work) {
        if work.idle == 0 && work.threads < MOST_THREADS {
            match self.start_thread() {
                Ok(()) => (work.threads, work.idle) = (work.threads + 1, 1),
                Err(error) => tracing::error!(%error, "no thread to close descriptors of peers"), // the next one tries
            }
        }
    }

    fn start_thread(&'static self) -> io::Result<()> {
        thread::Builder::new().name("rdma-close".into()).spawn(|| self.run()).map(drop)
    }

    fn run(&'static self) {
        // Signals are for the program's own threads.
        let _ = SigSet::all().thread_block();
        let mut work = self.work();
        loop {
            work = self.wait(work);
            work.idle -= 1;
            work.turn += 1;
            let turn = work.turn;
            if work.idle > 0 && (work.waiting.len() > 1 || work.check.is_some()) {
                self.more.notify_one(); // it may sleep without a limit, which was this thread's to keep
            }
            while work.turn == turn {
                work.busy_since = None;
                let Some(descriptor) = work.waiting.pop_front() else { break };
                work.busy_since = Some(Instant::now());
                if !work.waiting.is_empty() {
                    self.watch(&mut work);
                }
                drop(work);
                drop(descriptor);
                work = self.work();
            }
            work.idle += 1;
        }
    }

    /// Waits until there is something to close and no other thread does; meanwhile calls what is to
    /// be checked again.
    fn wait<'a>(&'a self, mut work: MutexGuard<'a, Work>) -> MutexGuard<'a, Work> {
        loop {
            let now = Instant::now();
            let due = work.due(now);
            let check_due = work.check.take_if(|(at, _)| *at <= now); // a new one may come meanwhile
            if let Some((_, check)) = check_due {
                drop(work);
                let more = check();
                work = self.work();
                if more {
                    work.check.get_or_insert((now + CHECK_AGAIN, check));
                }
            } else if due.is_some_and(|due| due <= now) {
                if work.busy_since.is_some() {
                    return work;
                }
                let few = |work: &mut Work| work.waiting.len() < MANY;
                let together = self.more.wait_timeout_while(work, TOGETHER, few);
                work = together.unwrap_or_else(PoisonError::into_inner).0;
                if work.busy_since.is_none() && !work.waiting.is_empty() {
                    return work;
                }
            } else {
                work = match due.into_iter().chain(work.check.map(|(at, _)| at)).min() {
                    Some(at) => {
                        let waited = self.more.wait_timeout(work, at - now);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.more.wait(work).unwrap_or_else(PoisonError::into_inner),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;
    use nix::unistd::{pipe2, read};
    use rdmalib_testing::lingering;

    use super::*;
    use crate::events::readable_before;

    /// Only a failing test waits so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_descriptor_is_closed_although_none_is_dropped_behind_it() {
        for round in 0..20 {
            let (reader, writer) = pipe2(OFlag::O_NONBLOCK).unwrap();
            drop(ClosedLater::from(writer));
            readable_before(&reader, Instant::now() + PATIENCE).unwrap();
            assert_eq!(read(&reader, &mut [0]), Ok(0), "the end of the pipe, round {round}");
        }
    }

    #[test]
    fn what_waits_behind_a_descriptor_that_is_stuck_is_closed_although_none_is_dropped_behind_it() {
        let pause = Duration::from_millis(10); // longer than TOGETHER, and shorter than SLOW
        let mut others = Vec::new();
        for between in [Duration::ZERO, pause, pause] {
            let ((passed, other), (reader, writer)) =
                (lingering(), pipe2(OFlag::O_NONBLOCK).unwrap());
            others.push(other);
            drop(ClosedLater::from(Passed(passed.into())));
            thread::sleep(between);
            drop(ClosedLater::from(Passed(writer)));
            readable_before(&reader, Instant::now() + PATIENCE).unwrap();
            assert_eq!(read(&reader, &mut [0]), Ok(0), "the end of the pipe");
            let work = closers().unwrap().unsure.work();
            assert!(
                work.threads - work.idle >= others.len(),
                "nothing was stuck: this shows nothing"
            );
        }
    }
}
