//! Lines on their way to standard error: a queue of bounded size, and the thread that writes it.
//!
//! A thread that pushes holds the lock for as long as it takes to copy a line. The writing thread
//! takes all lines at once and writes them without the lock. Lines for which there is no room, and
//! lines that cannot be written, are dropped and counted.
//!
//! Not `tracing-appender`: its queue is bounded in lines alone, a line that cannot be written is lost without
//! being counted, and the count of the others is for the program to fetch, not in the log.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use tracing::callsite::Identifier;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::limiter::Limiter;

/// Lines that may wait to be written: more than a manager with a thousand leases says when all of them end.
const MOST_LINES: usize = 8192;
/// Bytes that may wait; as many again may be on their way.
const MOST_BYTES: usize = 1 << 20;
/// Longest line, in bytes. Reasons and names in messages have a few hundred at most.
const LINE_BYTES: usize = 8 << 10;
/// How long the first of some lines waits for others: then their thread is woken once for all that a lease has to say
/// at its begin or end, which others wait for. Too short for anybody to notice; and when half of
/// what may wait is there, it is woken before.
const TOGETHER: Duration = Duration::from_millis(1);
/// Written at a time, unless a line is longer: `PIPE_BUF`, so that lines of several programs that share a pipe
/// stay whole.
const AT_ONCE: usize = 4096;

thread_local! {
    /// See [`wakes_later`].
    static WAKES_LATER: Cell<bool> = const { Cell::new(false) };
}

/// The place of the program that an event comes from.
pub(super) type Kind = Identifier;

/// Says whether this thread calls [`Queue::wake`] after it has pushed lines, so that they need not wake the thread that
/// writes, unless they are many.
pub(super) fn wakes_later(later: bool) {
    WAKES_LATER.set(later);
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Everything is written.
    empty: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines with their ends.
    waiting: Vec<u8>,
    lines: usize,
    /// Lines that were lost and not told yet.
    dropped: u64,
    /// The thread has lines that it took.
    writing: bool,
    /// It waits for lines, and is to be woken for the first.
    asleep: bool,
    /// It waits for more lines, and is to be woken when there are many.
    gathers: bool,
    /// Somebody waits until everything is written.
    urgent: bool,
    limiter: Limiter<Kind>,
}

impl State {
    fn add(&mut self, line: &str) {
        let cut = &line[..line.floor_char_boundary(LINE_BYTES)];
        let end = if cut.len() < line.len() { "…\n" } else { "\n" };
        if self.lines >= MOST_LINES || self.waiting.len() + cut.len() + end.len() > MOST_BYTES {
            self.dropped += 1;
            return;
        }
        self.waiting.extend_from_slice(cut.as_bytes());
        self.waiting.extend_from_slice(end.as_bytes());
        self.lines += 1;
    }

    /// Returns whether half of what may wait does.
    fn is_half_full(&self) -> bool {
        self.lines > MOST_LINES / 2 || self.waiting.len() > MOST_BYTES / 2
    }
}

/// Returns `text` with the time in front.
fn dated(text: &str) -> String {
    let mut line = String::with_capacity(text.len() + 30);
    let _ = SystemTime.format_time(&mut Writer::new(&mut line)); // a string takes everything
    line + " " + text
}

impl Queue {
    /// Makes an empty queue, and starts a thread that writes it to `sink`.
    pub(super) fn start(sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        Self::gathering(TOGETHER, sink)
    }

    fn gathering(together: Duration, sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            filled: Condvar::new(),
            empty: Condvar::new(),
        });
        let thread = queue.clone();
        // Signals are for other threads: some programs read them from a descriptor, and block them for that
        // in threads that do not exist yet.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started =
            thread::Builder::new().name("log".into()).spawn(move || thread.write(together, sink));
        mask.thread_set_mask()?;
        started.map(|_| queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // a line is in it or not
    }

    /// Adds a line, with the time in front, unless `kind` has said too much.
    pub(super) fn push(&self, kind: Option<Kind>, line: &str) {
        let mut state = self.lock();
        if kind.is_none_or(|kind| state.limiter.admit(Instant::now(), kind, line)) {
            state.add(&dated(line));
            self.added(state);
        }
    }

    /// Adds a line as it is.
    pub(super) fn push_bare(&self, line: &str) {
        let mut state = self.lock();
        state.add(line);
        self.added(state);
    }

    /// Adds the counts of what was held back.
    pub(super) fn push_counts(&self) {
        let mut state = self.lock();
        for line in state.limiter.rest(Instant::now()) {
            state.add(&dated(&line));
        }
        self.added(state);
    }

    /// Wakes the thread if it has to be, and when it has not to wait for the lock.
    fn added(&self, mut state: MutexGuard<'_, State>) {
        let many = state.gathers && state.is_half_full();
        state.gathers &= !many;
        let later = WAKES_LATER.get() && !state.is_half_full();
        let wake = !later && std::mem::take(&mut state.asleep) || many;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Wakes the thread if it sleeps and there is something to write.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if state.asleep && !state.waiting.is_empty() {
            state.asleep = false;
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Waits until everything is written or was dropped, but not longer than `within`.
    pub(super) fn flush(&self, within: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        let mut state = self.lock();
        if !busy(&mut state) {
            return;
        }
        state.urgent = true;
        self.filled.notify_one();
        let waited = self.empty.wait_timeout_while(state, within, busy);
        drop(waited);
    }

    /// Writes, for ever.
    fn write(&self, together: Duration, mut sink: impl Write) {
        let (mut lines, mut torn) = (Vec::new(), false);
        loop {
            lines.clear();
            let notice = self.take(together, &mut lines);
            let lost = write_lines(&mut sink, &lines, &mut torn);
            if lost > 0 {
                let all = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
                // The notice goes first. If it was lost with the rest, what it tells of is still to be told.
                let again = if notice > 0 && lost == all { notice - 1 } else { 0 };
                self.lock().dropped += lost + again;
            }
        }
    }

    /// Waits for lines and takes them all; returns how many lost ones the first of them tells of.
    fn take(&self, together: Duration, lines: &mut Vec<u8>) -> u64 {
        let mut state = self.lock();
        state.writing = false;
        loop {
            let now = Instant::now();
            for line in state.limiter.due(now) {
                state.add(&dated(&line));
            }
            if !state.waiting.is_empty() {
                break;
            }
            state.urgent = false;
            self.empty.notify_all();
            state.asleep = true;
            state = match state.limiter.next_deadline() {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let wait = due.saturating_duration_since(now);
                    let woken = self.filled.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.asleep = false;
        state.gathers = true;
        let more = |state: &mut State| !state.urgent && !state.is_half_full();
        let gathered = self.filled.wait_timeout_while(state, together, more);
        let mut state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        state.gathers = false;
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            let told = format!(
                " WARN {dropped} lines of the log were dropped: they could not be written or were not taken in time"
            );
            lines.extend_from_slice(dated(&told).as_bytes());
            lines.push(b'\n');
        }
        lines.append(&mut state.waiting);
        state.lines = 0;
        state.writing = true;
        dropped
    }
}

/// Writes `lines`, whole ones at a time; returns how many were lost. `torn`: the last one that was written
/// has no end.
fn write_lines(sink: &mut impl Write, mut lines: &[u8], torn: &mut bool) -> u64 {
    let count = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    if *torn && sink.write_all(b"\n").is_err() {
        return count(lines);
    }
    *torn = false;
    while !lines.is_empty() {
        let mut piece = &lines[..next_piece(lines)];
        while !piece.is_empty() {
            match sink.write(piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written @ 1..) => {
                    *torn = piece[written - 1] != b'\n';
                    (piece, lines) = (&piece[written..], &lines[written..]);
                }
                // What comes behind is not tried: it would be waiting while the log goes on.
                Ok(0) | Err(_) => return count(lines),
            }
        }
    }
    0
}

/// Returns the length of the lines at the front of `lines` that are written at once: one at least.
fn next_piece(lines: &[u8]) -> usize {
    let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let whole = end(&lines[..lines.len().min(AT_ONCE)]);
    let first = || lines.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    whole.or_else(first).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests;
