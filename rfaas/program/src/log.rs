//! The log of a program: lines on standard error, for which no thread waits.
//!
//! ```text
//!   tracing::info!, … ──▶ one line, escaped ──▶ limiter ──▶ queue ──▶ thread "log" ──▶ standard error
//! ```
//! * A thread that logs neither waits for standard error nor learns that it cannot be written. It
//!   may be a full disk, a pipe whose reader has gone, or one that nobody reads. What is lost is
//!   counted, and the count is logged when writing works again.
//! * An event is one line: text of peers and functions cannot end a line, nor command a terminal.
//!
//! Elsewhere: what may wait and what is lost (`queue`), what is logged once with a count (`limiter`). Which of the
//! [`MEASURED`] events are logged is decided where they come from.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

mod budget;
mod limiter;
mod queue;

pub use budget::Budget;
use queue::{Kind, Queue};

/// Name of an event that is limited where it is logged, for each peer that can cause it. The budget of a place in the
/// program, which the peers would share, does not apply to it.
pub const MEASURED: &str = "measured";

/// Longest wait of a program that ends for its last lines to be taken. Who reads a log takes a line in
/// milliseconds, and who does not read it is not waited for by those who watch the program's end.
pub const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of this process.
static LOG: OnceLock<Arc<Queue>> = OnceLock::new();

/// Starts the thread that writes. [`complain`] works from then on.
pub(super) fn start() -> io::Result<()> {
    let queue =
        Queue::start(StandardError(File::from(io::stderr().as_fd().try_clone_to_owned()?)))?;
    if LOG.set(queue).is_ok() {
        std::panic::set_hook(Box::new(panicked));
    }
    Ok(())
}

/// Logs the events of `tracing`, from `level` on; `RUST_LOG` overrides.
pub(super) fn subscribe(level: &str) {
    let Some(queue) = LOG.get() else { return };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time() // the queue writes it: the limiter compares lines
        .with_writer(LogWriter { queue: queue.clone(), colours })
        .with_ansi(colours)
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// Reports the end of the program in one line, behind what was logged before.
pub fn complain(error: &impl Display) {
    if let Some(queue) = LOG.get() {
        queue.push_counts();
        queue.push_bare(&format!("error: {}", escaped(&error.to_string(), false)));
    }
}

/// Ends the log: logs what was held back, and waits until everything is written, but not longer than `within`.
pub fn finish(within: Duration) {
    if let Some(queue) = LOG.get() {
        queue.push_counts();
        queue.flush(within);
    }
}

/// As long as this is there, what its thread logs is written when that calls [`wake`](Self::wake), which it has to
/// before it sleeps; at once if that is much.
#[derive(Debug)]
pub(crate) struct WokenLater;

impl WokenLater {
    /// Begins.
    pub(crate) fn begin() -> Self {
        queue::wakes_later(true);
        WokenLater
    }

    /// Has what was logged be written.
    pub(crate) fn wake(&self) {
        if let Some(queue) = LOG.get() {
            queue.wake();
        }
    }
}

impl Drop for WokenLater {
    fn drop(&mut self) {
        queue::wakes_later(false);
        self.wake();
    }
}

/// A panic is logged like everything else. The standard library's own message would wait for standard error.
fn panicked(info: &PanicHookInfo<'_>) {
    let Some(queue) = LOG.get() else { return };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let told = info.to_string().replace('\n', " ");
    queue.push(None, &escaped(&format!("ERROR thread '{name}' {told}"), false));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            queue.push(None, &escaped(line, false));
        }
    }
    queue.flush(LAST_LINES); // the process may end with this thread
}

/// Where `tracing` writes events.
struct LogWriter {
    queue: Arc<Queue>,
    colours: bool,
}

/// Where it writes one.
struct EventWriter<'a> {
    to: &'a LogWriter,
    kind: Option<Kind>,
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> EventWriter<'a> {
        EventWriter { to: self, kind: None }
    }

    /// Events below the usual level are logged without limit, since the operator has asked for
    /// them; others are limited.
    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> EventWriter<'a> {
        let limited = *metadata.level() <= Level::INFO && metadata.name() != MEASURED;
        EventWriter { to: self, kind: limited.then(|| metadata.callsite()) }
    }
}

impl Write for EventWriter<'_> {
    /// Takes a whole event. Never fails: `tracing` would tell of that with `eprintln!`, which panics.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = escaped(text.trim_end_matches('\n'), self.to.colours);
        self.to.queue.push(self.kind.take(), &line);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns `text` as one line without control characters, or marks that change the direction of
/// writing. `colours`: our own escape sequences are in it, and those of others are gone already
/// (`tracing` escapes them).
fn escaped(text: &str, colours: bool) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x1b' if colours => line.push(c),
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                line.extend(c.escape_unicode());
            }
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// Standard error, under a number of its own: functions in this process may close the other, which then
/// becomes that of a connection.
struct StandardError(File);

impl Write for StandardError {
    /// Waits for room, also if others have made the open file non-blocking.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut room = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut room, PollTimeout::NONE)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Mutex;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn what_peers_say_stays_on_its_line_and_does_not_command_the_terminal() {
        let forged = "client\n2026-11-29T06:00:00Z  INFO lease ended\r\x1b[2J\u{9b}31m\u{202e}x\0";
        let line = escaped(forged, false);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.contains('\u{202e}'), "{line:?}");
        assert!(line.starts_with("client\\n2026"), "{line:?}");
        assert_eq!(escaped("grüße, 世界 → \"ok\" \\", false), "grüße, 世界 → \"ok\" \\");
        assert_eq!(escaped("\x1b[32mINFO\x1b[0m", true), "\x1b[32mINFO\x1b[0m");
    }

    /// What was written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_that_are_measured_where_they_come_from_are_not_limited_again() {
        let written = Written::default();
        let queue = Queue::start(written.clone()).unwrap();
        let events = LogWriter { queue: queue.clone(), colours: false };
        let subscriber = tracing_subscriber::fmt().with_writer(events).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            for i in 0..1000 {
                tracing::info!(name: MEASURED, lease = 1, "of a measure");
                tracing::info!(lease = 2, "without one, {i}");
            }
        });
        queue.flush(Duration::from_secs(30));
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.matches("of a measure").count(), 1000);
        assert!(written.matches("without one").count() < 1000);
    }

    #[test]
    fn a_descriptor_that_others_made_non_blocking_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut standard_error = StandardError(File::from(std::os::fd::OwnedFd::from(writer)));
        let bytes = vec![b'x'; 1 << 20]; // many times what a pipe holds
        let expected = bytes.clone();
        let writing = std::thread::spawn(move || standard_error.write_all(&bytes));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writing.join().unwrap().unwrap();
        assert!(read == expected);
    }
}
