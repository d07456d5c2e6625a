//! What executors and their functions write on standard output and error: read from pipes of their own, and
//! passed on to the log of the manager.
//!
//! ```text
//!   executor, its functions ──pipe: stdout──▶ thread "output" ──lines, limited by lease──▶ log
//!                           ──pipe: stderr──▶
//! ```
//! * APART - no executor has a descriptor of the manager's. Who floods the pipe waits at it, or loses lines;
//!   who changes its mode, closes it or leaves it to a daemon changes nothing here.
//! * LAST WORDS - when an executor was reaped, what is in its pipes is read once more, and then they are
//!   closed, whoever still holds them.
//!
//! Elsewhere: how all lines of the log are limited and escaped (`rfaas::program::log`).

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Longest line that is passed on, in bytes; the rest of it is left out. Two terminals wide and many lines of
/// messages high.
const LINE_BYTES: usize = 1000;
/// Lines that a lease may have passed on at once: a backtrace and what led to it.
const BURST_LINES: u32 = 100;
/// Lines that it may have passed on a second, on and on.
const LINES_PER_SECOND: u32 = 10;
/// Their bytes at once, and a second: 350 MB of log a day, from a function that does nothing else.
const BURST_BYTES: u32 = 32 << 10;
const BYTES_PER_SECOND: u32 = 4 << 10;
/// Bytes read from a lease in a [`PERIOD`], and then no more before its end: a lease that floods costs a
/// hundredth of a core to read.
const READ_BYTES: usize = 1 << 20;
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Bytes read of a pipe whose executor is gone: as large as a process without privileges can make one.
const LAST_BYTES: usize = 1 << 20;
/// Time between two lines that tell how many lines of a lease were dropped.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Reads what executors write.
#[derive(Debug)]
pub struct Outputs {
    to: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// The thread's orders, and the bell that tells of them.
#[derive(Debug)]
struct Orders {
    orders: Sender<Order>,
    bell: EventFd,
}

impl Orders {
    fn give(&self, order: Order) {
        // The thread is gone only if it has panicked, which is in the log; a full counter rings too.
        let _ = self.orders.send(order);
        let _ = self.bell.write(1);
    }
}

#[derive(Debug)]
enum Order {
    Follow(Box<Followed>),
    /// The executor was reaped.
    Ended {
        lease: u64,
    },
    Stop,
}

/// The output of one executor; dropped when that is reaped.
#[derive(Debug)]
pub struct Output {
    lease: u64,
    to: Arc<Orders>,
}

impl Drop for Output {
    fn drop(&mut self) {
        self.to.give(Order::Ended { lease: self.lease });
    }
}

/// What an executor is to have as its standard output and error.
#[derive(Debug)]
pub struct Ends {
    /// Standard output.
    pub stdout: PipeWriter,
    /// Standard error.
    pub stderr: PipeWriter,
}

impl Outputs {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (orders, received) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let to = Arc::new(Orders { orders, bell });
        let reader = Reader { from: to.clone(), received, followed: Vec::new() };
        let thread = thread::Builder::new().name("output".into()).spawn(move || reader.run())?;
        Ok(Outputs { to, thread: Some(thread) })
    }

    /// Pipes for an executor of `lease`, which are read from now on.
    pub fn follow(&self, lease: u64) -> io::Result<(Output, Ends)> {
        let (out, stdout) = io::pipe()?;
        let (error, stderr) = io::pipe()?;
        let pipes = vec![Pipe::new("stdout", out)?, Pipe::new("stderr", error)?];
        self.to.give(Order::Follow(Box::new(Followed::new(lease, pipes, Instant::now()))));
        Ok((Output { lease, to: self.to.clone() }, Ends { stdout, stderr }))
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.to.give(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it waits for nothing but its bell; a panic of it is in the log
        }
    }
}

/// The thread.
struct Reader {
    from: Arc<Orders>,
    received: Receiver<Order>,
    followed: Vec<Followed>,
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let _ = self.from.bell.read(); // empty is fine: it does not block
            while let Ok(order) = self.received.try_recv() {
                match order {
                    Order::Follow(followed) => self.followed.push(*followed),
                    Order::Ended { lease } => {
                        self.ended(|followed| followed.lease == lease, &mut buffer)
                    }
                    Order::Stop => return self.ended(|_| true, &mut buffer),
                }
            }
            let now = Instant::now();
            for followed in &mut self.followed {
                followed.read(now, &mut buffer);
            }
            if self.wait(now).is_err() {
                thread::sleep(PERIOD); // no memory to wait with: reading goes on, if not as soon
            }
        }
    }

    /// LAST WORDS.
    fn ended(&mut self, is: impl Fn(&Followed) -> bool, buffer: &mut [u8]) {
        for mut followed in self.followed.extract_if(.., |followed| is(followed)) {
            followed.finish(Instant::now(), buffer);
        }
    }

    /// Waits for orders, or for something to read.
    fn wait(&self, now: Instant) -> nix::Result<()> {
        let mut polled = vec![PollFd::new(self.from.bell.as_fd(), PollFlags::POLLIN)];
        let mut deadline = None;
        for followed in &self.followed {
            if followed.may_read() {
                let pipes = followed.pipes.iter();
                polled.extend(pipes.map(|pipe| PollFd::new(pipe.from.as_fd(), PollFlags::POLLIN)));
            }
            deadline = deadline.into_iter().chain(followed.deadline()).min();
        }
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline: Instant| {
            let left = deadline.saturating_duration_since(now) + Duration::from_micros(999);
            PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
        });
        poll(&mut polled, timeout).map(drop)
    }
}

/// The output of one executor, as the thread has it.
#[derive(Debug)]
struct Followed {
    lease: u64,
    pipes: Vec<Pipe>,
    limit: Limit,
}

impl Followed {
    fn new(lease: u64, pipes: Vec<Pipe>, now: Instant) -> Self {
        Followed { lease, pipes, limit: Limit::new(now) }
    }

    fn may_read(&self) -> bool {
        self.limit.unread > 0 && !self.pipes.is_empty()
    }

    /// When there is something to do, whatever it writes.
    fn deadline(&self) -> Option<Instant> {
        let read_on = (!self.may_read() && !self.pipes.is_empty()).then_some(self.limit.read_on);
        let tell = (self.limit.dropped > 0).then_some(self.limit.tell);
        read_on.into_iter().chain(tell).min()
    }

    /// Reads what is there, a chunk of each pipe.
    fn read(&mut self, now: Instant, buffer: &mut [u8]) {
        let Followed { lease, pipes, limit } = self;
        limit.elapse(now);
        pipes.retain_mut(|pipe| {
            let most = limit.unread.min(buffer.len());
            let read = pipe.read(&mut buffer[..most], |line| limit.pass(now, *lease, line));
            limit.unread -= read.unwrap_or(0);
            read.is_some()
        });
        if limit.dropped > 0 && now >= limit.tell {
            limit.tell_dropped(*lease, now);
        }
    }

    /// Reads what is still there, and tells what was not told yet.
    fn finish(&mut self, now: Instant, buffer: &mut [u8]) {
        let Followed { lease, pipes, limit } = self;
        for pipe in pipes {
            let mut left = LAST_BYTES;
            while let Some(read @ 1..) = pipe.read(buffer, |line| limit.pass(now, *lease, line)) {
                left = left.saturating_sub(read);
                if left == 0 {
                    break;
                }
            }
            pipe.end(|line| limit.pass(now, *lease, line));
        }
        if limit.dropped > 0 {
            limit.tell_dropped(*lease, now);
        }
    }
}

/// One pipe.
#[derive(Debug)]
struct Pipe {
    stream: &'static str,
    from: File,
    /// Of a line whose end has not come.
    line: Vec<u8>,
    /// More of it came than is passed on.
    cut: bool,
}

/// A line, as far as it is passed on.
struct Line<'a> {
    stream: &'static str,
    bytes: &'a [u8],
    cut: bool,
}

impl Pipe {
    fn new(stream: &'static str, from: PipeReader) -> io::Result<Self> {
        // Somebody else may read it before us, through /proc; the other end is a file of its own.
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let from = File::from(OwnedFd::from(from));
        Ok(Pipe { stream, from, line: Vec::new(), cut: false })
    }

    /// Reads once; returns how much there was, or `None` when nobody can write any more.
    fn read(&mut self, buffer: &mut [u8], pass: impl FnMut(Line<'_>)) -> Option<usize> {
        if buffer.is_empty() {
            return Some(0);
        }
        match self.from.read(buffer) {
            Ok(0) => {
                self.end(pass);
                None
            }
            Ok(read) => {
                self.take(&buffer[..read], pass);
                Some(read)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(0),
                _ => None, // a pipe has no other errors
            },
        }
    }

    fn take(&mut self, bytes: &[u8], mut pass: impl FnMut(Line<'_>)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if text.len() < piece.len() {
                self.end(&mut pass);
            }
        }
    }

    /// Passes on the line that was begun; empty ones say nothing.
    fn end(&mut self, mut pass: impl FnMut(Line<'_>)) {
        if !self.line.is_empty() {
            pass(Line { stream: self.stream, bytes: &self.line, cut: self.cut });
        }
        self.line.clear();
        self.cut = false;
    }
}

/// How much of the output of one executor is read and passed on.
#[derive(Debug)]
struct Limit {
    lines: u32,
    bytes: u32,
    filled: Instant,
    unread: usize,
    read_on: Instant,
    dropped: u64,
    tell: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Limit {
            lines: BURST_LINES,
            bytes: BURST_BYTES,
            filled: now,
            unread: READ_BYTES,
            read_on: now + PERIOD,
            dropped: 0,
            tell: now,
        }
    }

    /// Gives back what time brings.
    fn elapse(&mut self, now: Instant) {
        if now >= self.read_on {
            self.unread = READ_BYTES;
            self.read_on = now + PERIOD;
        }
        let ms = now.saturating_duration_since(self.filled).as_millis().min(1 << 20) as u32;
        if ms >= 1000 / LINES_PER_SECOND {
            self.lines = (self.lines + ms * LINES_PER_SECOND / 1000).min(BURST_LINES);
            self.bytes = (self.bytes + ms / 10 * (BYTES_PER_SECOND / 100)).min(BURST_BYTES);
            self.filled = now;
        }
    }

    fn pass(&mut self, now: Instant, lease: u64, line: Line<'_>) {
        let bytes = line.bytes.len() as u32; // LINE_BYTES at most
        if self.lines == 0 || self.bytes < bytes {
            if self.dropped == 0 {
                self.tell = now + TELL_AGAIN;
            }
            self.dropped += 1;
            return;
        }
        (self.lines, self.bytes) = (self.lines - 1, self.bytes - bytes);
        let mut text = String::from_utf8_lossy(line.bytes).into_owned();
        if line.cut {
            text.push('…');
        }
        // A field, since those are quoted: a function cannot pass its words off as the manager's.
        tracing::info!(lease, stream = line.stream, text, "an executor wrote");
    }

    fn tell_dropped(&mut self, lease: u64, now: Instant) {
        let lines = std::mem::take(&mut self.dropped);
        self.tell = now + TELL_AGAIN;
        tracing::warn!(
            "{lines} lines of the functions of lease {lease} were dropped: they write too much"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pipe() -> (Pipe, PipeWriter) {
        let (from, to) = io::pipe().unwrap();
        (Pipe::new("stdout", from).unwrap(), to)
    }

    fn read(pipe: &mut Pipe) -> (Option<usize>, Vec<String>) {
        let mut lines = Vec::new();
        let read = pipe.read(&mut [0; CHUNK], |line| {
            let cut = if line.cut { "…" } else { "" };
            lines.push(format!("{}{cut}", String::from_utf8_lossy(line.bytes)));
        });
        (read, lines)
    }

    #[test]
    fn lines_are_put_together_and_long_ones_are_cut() {
        let (mut pipe, mut to) = pipe();
        assert_eq!(read(&mut pipe), (Some(0), vec![]));
        to.write_all(b"one\n\ntwo").unwrap();
        assert_eq!(read(&mut pipe), (Some(8), vec!["one".into()]));
        to.write_all(b" and a half\n").unwrap();
        assert_eq!(read(&mut pipe).1, ["two and a half"]);
        to.write_all(&[b'x'; CHUNK]).unwrap();
        assert_eq!(read(&mut pipe), (Some(CHUNK), vec![]));
        assert!(pipe.line.len() <= LINE_BYTES);
        to.write_all(b"y\nz").unwrap();
        assert_eq!(read(&mut pipe).1, [format!("{}…", "x".repeat(LINE_BYTES))]);
        drop(to);
        assert_eq!(read(&mut pipe), (None, vec!["z".into()]), "its last line has no end");
    }

    #[test]
    fn a_lease_has_its_lines_and_bytes_and_time_brings_more() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let passed = |limit: &mut Limit, now, bytes: &[u8]| {
            let before = limit.dropped;
            limit.elapse(now);
            for _ in 0..1000 {
                limit.pass(now, 7, Line { stream: "stderr", bytes, cut: false });
            }
            1000 - (limit.dropped - before)
        };
        assert_eq!(passed(&mut limit, start, b"short"), u64::from(BURST_LINES));
        assert_eq!(limit.dropped, 1000 - u64::from(BURST_LINES));
        let later = start + Duration::from_secs(1);
        assert_eq!(passed(&mut limit, later, b"short"), u64::from(LINES_PER_SECOND));
        let mut limit = Limit::new(start);
        let long = vec![b'x'; LINE_BYTES];
        assert_eq!(passed(&mut limit, start, &long), u64::from(BURST_BYTES) / LINE_BYTES as u64);
        let much_later = start + Duration::from_secs(1 << 30);
        assert_eq!(passed(&mut limit, much_later, b"x"), u64::from(BURST_LINES));
    }

    #[test]
    fn an_executor_that_floods_is_read_in_measure_and_what_it_left_is_bounded() {
        let (pipe, mut to) = pipe();
        let start = Instant::now();
        let mut followed = Followed::new(7, vec![pipe], start);
        let mut buffer = vec![0; CHUNK];
        let mut written = 0;
        while followed.may_read() {
            to.write_all(&[b'\n'; CHUNK]).unwrap();
            written += CHUNK;
            followed.read(start, &mut buffer);
        }
        assert_eq!(written, READ_BYTES);
        assert!(followed.deadline().is_some_and(|at| at == start + PERIOD));
        followed.read(start + PERIOD, &mut buffer);
        assert!(followed.may_read());
        // A daemon holds the pipe and writes on and on: the end comes all the same.
        let daemon = thread::spawn(move || while to.write_all(&[b'x'; CHUNK]).is_ok() {});
        followed.finish(start, &mut buffer);
        drop(followed);
        daemon.join().unwrap(); // the pipe is closed under it
    }
}
