//! What executors and their functions write on standard output and error: read from sockets of their own, and
//! passed on to the log of the manager.
//!
//! ```text
//!   executor, its functions ──socket: stdout──▶ its thread "output" ──lines, limited by lease──▶ log
//!                           ──socket: stderr──▶
//! ```
//! * No executor has a descriptor of the manager's. One that floods its socket waits at it, or loses
//!   lines; one that changes its mode, closes it or leaves it to a daemon changes nothing here.
//! * The output of an executor is read by a thread of its own. Whatever becomes of that thread, no
//!   other lease's output waits for it, nor the manager's loop, nor its end beyond [`LAST_WORDS`].
//! * Descriptors that are passed over a socket are refused where the kernel can, and
//!   elsewhere discarded with the bytes that they come with.
//! * When an executor was reaped, what is in its sockets is read once more, and then they are
//!   closed, also if a process still holds them.
//!
//! Sockets, not pipes: a writer holds the lock of a pipe while the kernel copies its bytes, which takes for ever if
//! they lie in memory that it never supplies. A reader, or a process that closes the other end, waits for the lock
//! and cannot be killed. The price is that `/dev/stdout` cannot be opened by that name.
//!
//! Elsewhere: what a lease may say (`limit`), lines (`lines`), how all lines of the log are limited and escaped
//! (`rfaas_program::log`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

mod limit;
mod lines;

use limit::{LeaseLimit, Limits};
use lines::Stream;

/// Bytes read from an executor in a [`PERIOD`], and then no more before its end: one that floods costs a
/// hundredth of a core to read.
const READ_BYTES: usize = 1 << 20;
const PERIOD: Duration = Duration::from_millis(100);
/// What a read counts for at least, so that one byte after the other is no way around that.
const READ_COST: usize = 1 << 10;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Bytes read of a stream whose executor is gone: more than a socket holds.
const LAST_BYTES: usize = 1 << 20;
/// Longest wait for the last words of executors when the manager ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Executors of one lease that are read at a time: one runs, and a few that are gone may have left much.
const MOST_OF_A_LEASE: usize = 4;
/// Executors that are read at a time, one a core of a large node. What further ones write is not read.
const MOST_READ: usize = 1024;
/// Stack of a reader, for which formatting a line is the most that it does.
const STACK_BYTES: usize = 256 << 10;

/// Reads what executors write.
#[derive(Debug, Default)]
pub struct Outputs {
    limits: Mutex<Limits>,
    readers: Arc<Readers>,
}

/// The number of threads.
#[derive(Debug, Default)]
struct Readers {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner) // a number is always whole
    }
}

/// One of them, from before its start until it has closed everything.
struct Counted(Arc<Readers>);

impl Counted {
    fn new(readers: &Arc<Readers>) -> Self {
        *readers.lock() += 1;
        Counted(readers.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.fewer.notify_all();
    }
}

/// The output of one executor; dropped when that is reaped.
#[derive(Debug)]
pub struct ExecutorOutput {
    /// Tells the reader, if there is one.
    ended: Option<Arc<EventFd>>,
}

impl Drop for ExecutorOutput {
    fn drop(&mut self) {
        if let Some(ended) = &self.ended {
            let _ = ended.write(1); // its first, for which there is room
        }
    }
}

/// What an executor is to have as its standard output and error.
#[derive(Debug)]
pub struct StandardStreams {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

impl Outputs {
    /// Sockets for an executor of `lease`, which are read from now on. If they cannot be, it writes to nowhere: no
    /// lease fails for that.
    pub fn follow(&self, lease: u64) -> io::Result<(ExecutorOutput, StandardStreams)> {
        let now = Instant::now();
        let limit = self.limits.lock().unwrap_or_else(PoisonError::into_inner).of(lease, now);
        // The book of limits has one, we have one, and each reader.
        let of_lease = Arc::strong_count(&limit) - 2;
        let followed = if of_lease >= MOST_OF_A_LEASE || *self.readers.lock() >= MOST_READ {
            Err(io::Error::other("too many are read still"))
        } else {
            self.start(limit)
        };
        followed.or_else(|error| to_nowhere(lease, &error))
    }

    /// Sockets, and a reader of them.
    fn start(&self, limit: Arc<LeaseLimit>) -> io::Result<(ExecutorOutput, StandardStreams)> {
        let (out, stdout) = stream("stdout")?;
        let (error, stderr) = stream("stderr")?;
        let output = self.read(vec![out, error], limit)?;
        Ok((output, StandardStreams { stdout: stdout.into(), stderr: stderr.into() }))
    }

    /// Starts a reader.
    fn read(&self, streams: Vec<Stream>, limit: Arc<LeaseLimit>) -> io::Result<ExecutorOutput> {
        let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let _counted = Counted::new(&self.readers);
        let pace = Pace::new(Instant::now());
        let reader = Reader { streams, limit, ended: ended.clone(), pace, _counted };
        thread::Builder::new()
            .name("output".into())
            .stack_size(STACK_BYTES)
            .spawn(move || reader.run())?;
        Ok(ExecutorOutput { ended: Some(ended) })
    }
}

impl Drop for Outputs {
    /// The readers are not joined: nothing waits for them.
    fn drop(&mut self) {
        let read = self.readers.lock();
        drop(self.readers.fewer.wait_timeout_while(read, LAST_WORDS, |count| *count > 0));
    }
}

/// What an executor gets that is not followed because of `error`.
fn to_nowhere(lease: u64, error: &io::Error) -> io::Result<(ExecutorOutput, StandardStreams)> {
    tracing::warn!(lease, %error, "what this executor writes is not read");
    let nowhere = File::options().write(true).open("/dev/null")?;
    let stderr = nowhere.try_clone()?.into();
    Ok((ExecutorOutput { ended: None }, StandardStreams { stdout: nowhere.into(), stderr }))
}

/// A stream, and the end of it that an executor gets.
fn stream(name: &'static str) -> io::Result<(Stream, UnixStream)> {
    let (from, to) = UnixStream::pair()?;
    from.set_nonblocking(true)?; // ours alone: the other end is a file of its own
    // Older kernels hold what is passed until a read discards it.
    let _ = rdmalib::refuse_descriptors(&from);
    Ok((Stream::new(name, from), to))
}

/// The thread that reads one executor.
struct Reader {
    streams: Vec<Stream>,
    limit: Arc<LeaseLimit>,
    /// Rings when the executor was reaped.
    ended: Arc<EventFd>,
    pace: Pace,
    _counted: Counted, // last: fields drop in order, and it is there until the others are closed
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match self.wait(Instant::now()) {
                Ok(true) => return self.finish(&mut buffer),
                Ok(false) => self.read(Instant::now(), &mut buffer),
                Err(_) => thread::sleep(PERIOD), // no memory to wait with: reading goes on, if not as soon
            }
        }
    }

    fn may_read(&self) -> bool {
        self.pace.left > 0 && !self.streams.is_empty()
    }

    /// When there is something to do, whatever the executor writes.
    fn deadline(&self) -> Option<Instant> {
        let read_on =
            (self.pace.left == 0 && !self.streams.is_empty()).then_some(self.pace.read_on);
        read_on.into_iter().chain(self.limit.deadline()).min()
    }

    /// Waits for something to read; returns whether the executor is gone.
    fn wait(&self, now: Instant) -> nix::Result<bool> {
        let mut polled = vec![PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        if self.may_read() {
            let streams = self.streams.iter();
            polled.extend(streams.map(|s| PollFd::new(s.from.as_fd(), PollFlags::POLLIN)));
        }
        let timeout = self.deadline().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(now) + Duration::from_micros(999);
            PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
        });
        poll(&mut polled, timeout)?;
        Ok(polled[0].any().unwrap_or(true))
    }

    /// Reads what is there, a chunk of each stream.
    fn read(&mut self, now: Instant, buffer: &mut [u8]) {
        let Reader { streams, limit, pace, .. } = self;
        pace.elapse(now);
        streams.retain_mut(|stream| {
            let most = pace.left.min(buffer.len());
            if most == 0 {
                return true;
            }
            let read = stream.read(&mut buffer[..most], |line| limit.pass(now, line));
            pace.left = pace.left.saturating_sub(read.unwrap_or(0).max(READ_COST));
            read.is_some()
        });
        if limit.deadline().is_some_and(|at| at <= now) {
            limit.tell_dropped(now);
        }
    }

    /// Reads what is still there, and passes on what was not passed on yet.
    fn finish(mut self, buffer: &mut [u8]) {
        let now = Instant::now();
        for stream in &mut self.streams {
            let mut left = LAST_BYTES;
            while let Some(read @ 1..) = stream.read(buffer, |line| self.limit.pass(now, line)) {
                left = left.saturating_sub(read.max(READ_COST));
                if left == 0 {
                    break;
                }
            }
            stream.end(|line| self.limit.pass(now, line));
        }
        self.limit.tell_dropped(now);
    }
}

/// How much is read of one executor.
#[derive(Debug)]
struct Pace {
    left: usize,
    read_on: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Pace { left: READ_BYTES, read_on: now + PERIOD }
    }

    /// Gives back what time brings.
    fn elapse(&mut self, now: Instant) {
        if now >= self.read_on {
            *self = Pace::new(now);
        }
    }
}

#[cfg(test)]
mod tests;
