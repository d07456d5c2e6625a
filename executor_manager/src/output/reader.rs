//! The thread that reads one executor.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rfaas_protocol::allocation::OutputStream;

use super::ReaderHandle;
use super::lines::ExecutorLines;

/// Bytes read from an executor in a [`PERIOD`], and then no more before its end: one that floods costs a
/// hundredth of a core to read.
pub(super) const READ_BYTES: usize = 1 << 20;
pub(super) const PERIOD: Duration = Duration::from_millis(100);
/// What a read counts for at least, so that one byte after the other is no way around that.
pub(super) const READ_COST: usize = 1 << 10;
/// Bytes read at once.
pub(super) const CHUNK: usize = 16 << 10;
/// Bytes read of a stream whose executor is gone: more than a socket holds.
const LAST_BYTES: usize = 1 << 20;

/// Where a stream is read from, without waiting.
pub(super) trait Readable: Read + AsFd + Send {}

impl<S: Read + AsFd + Send> Readable for S {}

/// What an executor writes to one of its standard descriptors.
pub(super) struct Stream {
    name: OutputStream,
    from: Box<dyn Readable>,
}

impl Stream {
    pub(super) fn new(name: OutputStream, from: impl Readable + 'static) -> Self {
        Stream { name, from: Box::new(from) }
    }

    /// Reads once; returns how much there was, or `None` when nobody can write any more.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.from.read(buffer) {
            Ok(0) => None,
            Ok(read) => Some(read),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(0),
                _ => None, // nobody will write to it again
            },
        }
    }
}

/// Reads the streams of one executor until that is reaped.
pub(super) struct Reader {
    streams: Vec<Stream>,
    lines: ExecutorLines,
    pace: Pace,
    handle: ReaderHandle, // last: fields drop in order, and it is there until the others are closed
}

impl Reader {
    pub(super) fn new(streams: Vec<Stream>, handle: ReaderHandle, now: Instant) -> Self {
        Reader { streams, lines: ExecutorLines::default(), pace: Pace::new(now), handle }
    }

    pub(super) fn run(mut self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.wait(Instant::now()).is_err() {
                thread::sleep(PERIOD); // no memory to wait with: reading goes on, if not as soon
            }
            let (asked, ended) = self.handle.look();
            if ended {
                return self.finish(&mut buffer);
            }
            while self.read(Instant::now(), &mut buffer) {}
            if self.deadline().is_none() {
                self.handle.has_read(asked); // and it did not stop for its pace
            }
        }
    }

    pub(super) fn may_read(&self) -> bool {
        self.pace.left > 0 && !self.streams.is_empty()
    }

    /// When there is something to do, whatever the executor writes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.pace.left == 0 && !self.streams.is_empty()).then_some(self.pace.read_on)
    }

    /// Waits for something to read, or to do.
    fn wait(&self, now: Instant) -> nix::Result<()> {
        let mut polled = vec![PollFd::new(self.handle.bell.as_fd(), PollFlags::POLLIN)];
        if self.may_read() {
            let streams = self.streams.iter();
            polled.extend(streams.map(|s| PollFd::new(s.from.as_fd(), PollFlags::POLLIN)));
        }
        let timeout = self.deadline().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(now) + Duration::from_micros(999);
            PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
        });
        poll(&mut polled, timeout).map(drop)
    }

    /// Reads what is there, a chunk of each stream; returns whether there was something.
    pub(super) fn read(&mut self, now: Instant, buffer: &mut [u8]) -> bool {
        self.pace.elapse(now);
        let Reader { streams, lines, pace, handle } = self;
        let mut any = false;
        streams.retain_mut(|stream| {
            let most = pace.left.min(buffer.len());
            if most == 0 {
                return true;
            }
            let read = stream.read(&mut buffer[..most]);
            let bytes = read.unwrap_or(0);
            if bytes > 0 {
                any = true;
                pace.left = pace.left.saturating_sub(bytes.max(READ_COST));
                take(handle, lines, stream.name, &buffer[..bytes]);
            }
            read.is_some()
        });
        any
    }

    /// Reads what is still there.
    pub(super) fn finish(mut self, buffer: &mut [u8]) {
        for stream in &mut self.streams {
            let mut left = LAST_BYTES;
            while let Some(read @ 1..) = stream.read(buffer) {
                take(&self.handle, &mut self.lines, stream.name, &buffer[..read]);
                left = left.saturating_sub(read.max(READ_COST));
                if left == 0 {
                    break;
                }
            }
        }
        self.lines.end(|line| self.handle.say(line));
    }
}

/// Sees to `bytes`, which came on `stream`.
fn take(handle: &ReaderHandle, lines: &mut ExecutorLines, stream: OutputStream, bytes: &[u8]) {
    let of_functions = match stream {
        OutputStream::Stderr => lines.take(bytes, |line| handle.say(line)),
        OutputStream::Stdout => bytes, // the executor itself prints nothing
    };
    if !of_functions.is_empty() {
        handle.keep(stream, of_functions);
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
