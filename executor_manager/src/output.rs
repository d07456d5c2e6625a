//! What executors and their functions write on standard output and error: read from sockets of their own, and kept
//! for the client of their lease.
//!
//! ```text
//!   executor, its functions ──socket: stdout──▶ its thread "output" ──▶ kept, by lease ──▶ client
//!                           ──socket: stderr──▶       └── what the executor says first ──▶ log
//! ```
//! * Nothing that a function writes gets into the log of the manager. What the program `executor`
//!   says before it loads a library does: it is for the operator.
//! * No executor has a descriptor of the manager's. One that floods its socket waits at it; one that
//!   changes its mode, closes it or leaves it to a daemon changes nothing here.
//! * The output of an executor is read by a thread of its own. Whatever becomes of that thread, no
//!   other lease's output waits for it, nor the manager's loop; a client's question at most
//!   [`ANSWER_WITHIN`].
//! * Descriptors that are passed over a socket are refused where the kernel can, and
//!   elsewhere discarded with the bytes that they come with.
//! * When an executor was reaped, what is in its sockets is read once more, and then they are
//!   closed, also if a process still holds them.
//! * A question is answered when everything was read that had been written when it came. So a client
//!   reads what a function printed before it returned, and the last words of one that has crashed.
//! * An executor that stands by writes for the operator alone, until it has a lease.
//! * Output is kept for as long as the connection that claimed its lease: some time beyond the lease's end.
//!
//! Sockets, not pipes: a writer holds the lock of a pipe while the kernel copies its bytes, which takes for ever if
//! they lie in memory that it never supplies. A reader, or a process that closes the other end, waits for the lock
//! and cannot be killed. The price is that `/dev/stdout` cannot be opened by that name.
//!
//! Elsewhere: how much is kept (`kept`), reading one executor (`reader`), its first lines (`lines`).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rfaas_program::poll_loop::Bell;
use rfaas_protocol::allocation::{OutputPart, OutputStream};

use crate::allocations::ClientId;

mod kept;
mod lines;
mod reader;

use kept::KeptOutputs;
use reader::{Reader, Stream};

/// Longest wait for the threads that read before a question is answered with what there is.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Executors of one lease that are read at a time: one runs, and a few that are gone may have left much.
const MOST_OF_A_LEASE: usize = 4;
/// Executors that are read at a time, one a core of a large node. What further ones write is not read.
const MOST_READ: usize = 1024;
/// Most of an executor's own words that is kept, in bytes: some lines.
const MOST_WORDS: usize = 2 << 10;
/// Stack of a reader, for which formatting a line is the most that it does.
const STACK_BYTES: usize = 256 << 10;

/// Reads what executors write, and answers clients that ask for it.
#[derive(Debug, Default)]
pub struct Outputs {
    shared: Arc<Shared>,
}

/// What the manager's loop and the readers share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the manager's loop.
    bell: OnceLock<Bell>,
}

#[derive(Debug, Default)]
struct State {
    kept: KeptOutputs,
    /// The lease of each connection that has claimed one.
    leases: HashMap<ClientId, u64>,
    /// One of a client at most.
    questions: Vec<Question>,
    /// How many questions were asked so far.
    asked: u64,
    /// By numbers that are never used twice.
    readers: BTreeMap<u64, ReaderState>,
    next_reader: u64,
}

/// A client's question that was not answered yet.
#[derive(Debug)]
struct Question {
    client: ClientId,
    lease: u64,
    from: u64,
    /// Its number.
    number: u64,
    /// When it is answered at the latest.
    until: Instant,
}

/// What is known of the thread that reads an executor.
#[derive(Debug)]
struct ReaderState {
    /// `None`: its executor has none yet.
    lease: Option<u64>,
    /// It has read all that had been written when this question came.
    has_read: u64,
    /// The executor was reaped.
    ended: bool,
    /// Rings when one of these changes, and when there is a question.
    bell: Arc<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // whole between two calls
    }

    fn wake_manager(&self) {
        self.bell.get().iter().for_each(|bell| bell.ring());
    }
}

impl State {
    /// Whether as many executors of `lease` are read as may be.
    fn has_most(&self, lease: u64) -> bool {
        let of_lease = self.readers.values().filter(|reader| reader.lease == Some(lease));
        of_lease.count() >= MOST_OF_A_LEASE
    }

    fn is_answerable(&self, question: &Question, now: Instant) -> bool {
        let of_lease = |reader: &&ReaderState| reader.lease == Some(question.lease);
        let mut readers = self.readers.values().filter(of_lease);
        now >= question.until || readers.all(|reader| reader.has_read >= question.number)
    }
}

/// The output of one executor; dropped when that is reaped.
#[derive(Debug)]
pub struct ExecutorOutput {
    /// Its reader, if there is one.
    reader: Option<(Arc<Shared>, u64)>,
    words: Arc<Words>,
}

/// What the executor has said last for the operator, in lines.
#[derive(Debug, Default)]
struct Words(Mutex<String>);

impl Words {
    fn add(&self, line: &str) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_str(line);
        words.push('\n');
        let more = words.len().saturating_sub(MOST_WORDS);
        let cut = words.ceil_char_boundary(more);
        words.drain(..cut);
    }
}

impl ExecutorOutput {
    /// What the executor writes from now on is that of `lease`, unless too many of that lease are read still.
    pub fn belongs_to(&self, lease: u64) {
        let Some((shared, number)) = &self.reader else { return };
        let mut state = shared.lock();
        if state.has_most(lease) {
            tracing::warn!(lease, "what this executor writes is not kept: too many are read still");
        } else if let Some(reader) = state.readers.get_mut(number) {
            reader.lease = Some(lease);
        }
    }

    /// The executor was reaped: what it left in its sockets is read. The manager's bell rings when it
    /// [is](Self::is_read).
    pub fn end(&self) {
        if let Some((shared, number)) = &self.reader
            && let Some(reader) = shared.lock().readers.get_mut(number)
        {
            reader.ended = true;
            ring(&reader.bell);
        }
    }

    /// Whether nobody reads it any more.
    pub fn is_read(&self) -> bool {
        let Some((shared, number)) = &self.reader else { return true };
        !shared.lock().readers.contains_key(number)
    }

    /// What the executor, or the engine of its container, has said last for the operator, in lines.
    pub fn words(&self) -> String {
        self.words.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ExecutorOutput {
    fn drop(&mut self) {
        self.end();
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
    /// Rings `bell` when [`answers`](Outputs::answers) may have some.
    pub fn ring_with_answers(&self, bell: Bell) {
        let _ = self.shared.bell.set(bell); // once, when the manager starts
    }

    /// Sockets for an executor of `lease`, if it has one, which are read from now on. If they cannot be, it writes to
    /// nowhere: no lease fails for that.
    pub fn follow(&self, lease: Option<u64>) -> io::Result<(ExecutorOutput, StandardStreams)> {
        let (too_many, all) = {
            let state = self.shared.lock();
            (lease.is_some_and(|lease| state.has_most(lease)), state.readers.len())
        };
        let followed = if too_many || all >= MOST_READ {
            Err(io::Error::other("too many are read still"))
        } else {
            self.start(lease)
        };
        followed.or_else(|error| to_nowhere(lease, &error))
    }

    /// Sockets, and a reader of them.
    fn start(&self, lease: Option<u64>) -> io::Result<(ExecutorOutput, StandardStreams)> {
        let (out, stdout) = stream(OutputStream::Stdout)?;
        let (error, stderr) = stream(OutputStream::Stderr)?;
        let output = self.read(lease, vec![out, error])?;
        Ok((output, StandardStreams { stdout: stdout.into(), stderr: stderr.into() }))
    }

    /// Starts a reader.
    fn read(&self, lease: Option<u64>, streams: Vec<Stream>) -> io::Result<ExecutorOutput> {
        let (reader, output) = self.reader(lease, streams)?;
        thread::Builder::new()
            .name("output".into())
            .stack_size(STACK_BYTES)
            .spawn(move || reader.run())?;
        Ok(output)
    }

    /// Makes a reader that does not run yet.
    fn reader(
        &self,
        lease: Option<u64>,
        streams: Vec<Stream>,
    ) -> io::Result<(Reader, ExecutorOutput)> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags)?);
        let mut state = self.shared.lock();
        let number = state.next_reader;
        state.next_reader += 1;
        let (has_read, ended) = (state.asked, false); // its executor has written nothing yet
        state.readers.insert(number, ReaderState { lease, has_read, ended, bell: bell.clone() });
        drop(state);
        let words = Arc::new(Words::default());
        let handle =
            ReaderHandle { shared: self.shared.clone(), number, bell, words: words.clone() };
        let output = ExecutorOutput { reader: Some((self.shared.clone(), number)), words };
        Ok((Reader::new(streams, handle, Instant::now()), output))
    }

    /// The output of `lease`, which `client` has claimed, is kept for it from now on, and that of its lease before not
    /// any longer.
    pub fn keep(&self, client: ClientId, lease: u64) {
        let mut state = self.shared.lock();
        if let Some(before) = state.leases.insert(client, lease).filter(|before| *before != lease) {
            state.kept.forget(before);
        }
        state.kept.keep(lease);
    }

    /// `client` is gone, and nobody else may ask for its output.
    pub fn forget(&self, client: ClientId) {
        let mut state = self.shared.lock();
        state.questions.retain(|question| question.client != client);
        if let Some(lease) = state.leases.remove(&client) {
            state.kept.forget(lease);
        }
    }

    /// `client` asks for what comes after the first `from` bytes. False if it has claimed no lease.
    pub fn ask(&self, now: Instant, client: ClientId, from: u64) -> bool {
        let mut state = self.shared.lock();
        let Some(&lease) = state.leases.get(&client) else { return false };
        state.asked += 1;
        let (number, until) = (state.asked, now + ANSWER_WITHIN);
        state.questions.retain(|question| question.client != client);
        state.questions.push(Question { client, lease, from, number, until });
        let of_lease = state.readers.values().filter(|reader| reader.lease == Some(lease));
        of_lease.for_each(|reader| ring(&reader.bell));
        true
    }

    /// The questions that can be answered at `now`, with their answers.
    pub fn answers(&self, now: Instant) -> Vec<(ClientId, OutputPart)> {
        let mut state = self.shared.lock();
        let questions = std::mem::take(&mut state.questions);
        let (answered, open) =
            questions.into_iter().partition(|question| state.is_answerable(question, now));
        state.questions = open;
        let answer =
            |question: Question| (question.client, state.kept.part(question.lease, question.from));
        Vec::into_iter(answered).map(answer).collect()
    }

    /// When [`answers`](Outputs::answers) has some at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.shared.lock().questions.iter().map(|question| question.until).min()
    }
}

/// What an executor gets that is not followed because of `error`.
fn to_nowhere(
    lease: Option<u64>,
    error: &io::Error,
) -> io::Result<(ExecutorOutput, StandardStreams)> {
    tracing::warn!(lease, %error, "what this executor writes is not read");
    let nowhere = File::options().write(true).open("/dev/null")?;
    let stderr = nowhere.try_clone()?.into();
    let output = ExecutorOutput { reader: None, words: Arc::default() };
    Ok((output, StandardStreams { stdout: nowhere.into(), stderr }))
}

/// A stream, and the end of it that an executor gets.
fn stream(name: OutputStream) -> io::Result<(Stream, UnixStream)> {
    let (from, to) = UnixStream::pair()?;
    from.set_nonblocking(true)?; // ours alone: the other end is a file of its own
    // Older kernels hold what is passed until a read discards it.
    let _ = rdmalib::refuse_descriptors(&from);
    Ok((Stream::new(name, from), to))
}

fn ring(bell: &EventFd) {
    let _ = bell.write(1); // fails only if it has been ringing 2^64 times already
}

/// What a reader has of the others: where its bytes go, and what it is to do. It is counted until this is dropped.
#[derive(Debug)]
struct ReaderHandle {
    shared: Arc<Shared>,
    number: u64,
    bell: Arc<EventFd>,
    words: Arc<Words>,
}

impl ReaderHandle {
    /// The number of the last question, and whether the executor was reaped.
    fn look(&self) -> (u64, bool) {
        let _ = self.bell.read(); // before looking: what comes after that rings again
        let state = self.shared.lock();
        (state.asked, state.readers.get(&self.number).is_none_or(|reader| reader.ended))
    }

    /// The lease of its executor, if that has one.
    fn lease(&self) -> Option<u64> {
        self.shared.lock().readers.get(&self.number)?.lease
    }

    /// Logs what the executor says, for the operator. The place in the program is limited: not too many lines of all.
    fn say(&self, text: &str) {
        tracing::info!(lease = self.lease(), text, "an executor says");
        self.words.add(text);
    }

    /// Keeps what functions have written. Without a lease there are none.
    fn keep(&self, stream: OutputStream, bytes: &[u8]) {
        if let Some(lease) = self.lease() {
            self.shared.lock().kept.append(lease, stream, bytes);
        }
    }

    /// Everything was read that had been written when question `number` came.
    fn has_read(&self, number: u64) {
        let mut state = self.shared.lock();
        let Some(reader) = state.readers.get_mut(&self.number) else { return };
        reader.has_read = number;
        let lease = reader.lease;
        let awaited = state.questions.iter().any(|question| Some(question.lease) == lease);
        drop(state);
        if awaited {
            self.shared.wake_manager();
        }
    }
}

impl Drop for ReaderHandle {
    fn drop(&mut self) {
        self.shared.lock().readers.remove(&self.number);
        self.shared.wake_manager();
    }
}

#[cfg(test)]
mod tests;
