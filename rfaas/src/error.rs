//! What can go wrong for an application: one variant for each decision that it may take.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rfaas_config::{ConfigError, ProgramError, describe};
use rfaas_protocol::Malformed;
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::assignment::STACK_OVERFLOW;
use rfaas_protocol::channel::ChannelError;
use rfaas_protocol::constraints::Constraint;
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::library::BATCH_PREFIX;
use rfaas_protocol::library::LibraryError;
use rfaas_protocol::session::MAX_FUNCTION_NAME_BYTES;

/// The result of every fallible call of the client library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a lease, a deployment or an invocation failed. [`describe`](crate::describe) tells it with its
/// [`source`](std::error::Error::source)s, in one line. So does its `Debug`, which is what `unwrap` and a
/// `main` that returns it show. [The front page](crate#what-to-do-about-an-error) sorts the
/// variants by what to do.
///
/// Four ends look alike:
/// * [`WorkerLost`](Self::WorkerLost): this call's worker was given up, because of another call or a
///   restart. The lease lives, and the next call goes on.
/// * [`ExecutorSilent`](Self::ExecutorSilent): the process hung and was ended. The lease lives; restart.
/// * [`ExecutorGone`](Self::ExecutorGone): the connections ended, and nobody said why: node, manager or
///   network failed. Take the lease for lost.
/// * [`LeaseEnded`](Self::LeaseEnded): the manager said that the lease is over, and why.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // -- asking for a lease --
    /// A file of settings is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address is not of the form `host:port`, or the host has no address.
    #[error("address {address} cannot be used: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection: the program is not running there, or the address is wrong.
    #[error("{what} at {address} cannot be reached")]
    Unreachable {
        /// Which program was called.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What happened.
        #[source]
        source: Box<ChannelError>,
    },
    /// A manager accepted the connection but answered nothing; try again later.
    #[error("{what} did not answer within {after:?}")]
    NoAnswer {
        /// Which program was asked.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// No lease on these terms: ask for less, or later.
    #[error("the lease was refused: {reason}")]
    LeaseRefused {
        /// In the manager's words.
        reason: String,
    },
    /// There would be room without one of these constraints or, if there are several, without all of these: change
    /// them, or ask later. Nothing is held.
    #[error("the lease was refused: {reason}")]
    ConstraintUnmet {
        /// Which.
        constraints: Vec<Constraint>,
        /// In the manager's words.
        reason: String,
    },
    /// A constraint that cannot be asked for.
    #[error("invalid request: {0}")]
    InvalidConstraint(String),
    /// An argument that no manager can honour.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// A graph that cannot be.
    #[error("the graph cannot be compiled: {0}")]
    InvalidGraph(String),

    // -- deploying --
    /// The library file cannot be read.
    #[error("function library {} cannot be read", path.display())]
    LibraryUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no function library; nothing was sent.
    #[error("{} cannot be used as a function library", path.display())]
    Library {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LibraryError,
    },
    /// The executor could not load the library, for instance because a dependency is missing there, or because its
    /// `rfaas_init` says that it cannot be called there.
    #[error("the executor cannot load the function library {}: {reason}", path.display())]
    LoadFailed {
        /// The file.
        path: PathBuf,
        /// What its loader said, or what `rfaas_init` returned.
        reason: String,
    },
    /// What the executor received is not the library that was announced, so it was not loaded. Deploy again.
    #[error(
        "the executor did not receive the function library as it was sent; it was not loaded: deploy again"
    )]
    LibraryGarbled,
    /// The executor manager does not start an executor for this lease.
    #[error("node {node} refused the allocation: {reason}")]
    AllocationRefused {
        /// Name of the node.
        node: String,
        /// To decide on.
        because: RefusedBecause,
        /// In the manager's words.
        reason: String,
    },
    /// A process listens at the node's address that is not the node, or does not know its cluster's secret. Nothing was
    /// sent to it.
    #[error(
        "who listens at {address} could not prove to be node {node} ({peer}); nothing was sent there"
    )]
    Unproved {
        /// Name of the node.
        node: String,
        /// Its address.
        address: SocketAddr,
        /// Which process listens there, as far as that is known.
        peer: String,
    },
    /// The executor ended before it was ready: a crash while the library was loaded.
    #[error("the executor ended while it started: {0}")]
    StartFailed(Exit),
    /// The executor was started but is not ready in time.
    #[error("the executor was not ready within {after:?} (`Deployment::start_timeout`): {missing}")]
    StartTimeout {
        /// `start_timeout` of the deployment.
        after: Duration,
        /// What was still waited for.
        missing: String,
    },
    /// The executor of a function of a graph did not start. All leases of its lane are given back, or kept for the next
    /// try.
    #[error("function {function:?} of the graph cannot be started on node {node}")]
    GraphNotStarted {
        /// Its name.
        function: String,
        /// Where it was to run.
        node: String,
        /// What happened there.
        #[source]
        source: Box<Error>,
    },
    /// A lease runs one executor at a time: drop the other one first.
    #[error("the lease already runs an executor; drop it before deploying again")]
    AlreadyDeployed,

    // -- invoking --
    /// The library exports no such function.
    #[error("no function {name:?} in the library; it has {}", NoSuchFunction { name, available })]
    UnknownFunction {
        /// Name asked for.
        name: String,
        /// Names that there are.
        available: Vec<String>,
    },
    /// The input does not fit into a slot; deploy with larger ones, or compile a graph with a larger input.
    #[error(
        "input of {bytes} bytes is too large: {max} fit; it takes `Deployment::input_bytes` of {bytes} or more (of a \
         graph: `Graph::input`)"
    )]
    InputTooLarge {
        /// Bytes of input.
        bytes: usize,
        /// `input_bytes` of the deployment, or bytes of the graph's input.
        max: usize,
    },
    /// The function returned more than fits; try again with a larger output.
    #[error(
        "the function returned {needed} bytes, the output holds {capacity}: it takes an output (`Executor::output`) and a `Deployment::output_bytes` of as much, unless the function does not return a length"
    )]
    OutputTooLarge {
        /// Bytes that it returned.
        needed: u64,
        /// Bytes that fit.
        capacity: usize,
    },
    /// The function or the buffer belongs to another executor.
    #[error("this {0} belongs to another executor")]
    Foreign(&'static str),
    /// Every slot of every worker has an invocation in flight; wait for one of them.
    #[error(
        "all slots of all workers are busy: wait for a call, or deploy with more `Deployment::slots`"
    )]
    AllSlotsBusy,
    /// A function killed the executor, and the invocations in flight with it. Restart it, or
    /// deploy again; [`Executor::printed`](crate::Executor::printed) may say more. SIGABRT also stands for a C++
    /// exception that nobody caught, and for a function that ended its worker's thread instead of returning.
    #[error("a function crashed the executor: {}", Exit::Signal(*signal))]
    FunctionCrashed {
        /// The signal.
        signal: i32,
    },
    /// A function ended the executor with `exit`. Restart it, or deploy again.
    #[error("a function ended the executor: {}", Exit::Status(*status))]
    FunctionExited {
        /// The exit status.
        status: i32,
    },
    /// A function has used up the stack of its worker: a recursion without an end, or one that is too deep
    /// for the limit that the node's operator has set (`ulimit -s` of the executor manager). Restart the
    /// executor, or deploy again. In a thread that a function has started, it is
    /// [`FunctionCrashed`](Self::FunctionCrashed) with SIGSEGV.
    #[error(
        "a function used up the stack of its worker, and ended the executor: a recursion without an end, or one too deep \
         for the stack limit of the node (`ulimit -s` of its executor manager)"
    )]
    StackOverflow,
    /// The executor has ended for want of memory: all that the node lets it have is used, or a function asked
    /// for more than that at once. Lease more memory, or use less; then restart the executor, or deploy
    /// again. It ended as a program does that does not expect this, with a null pointer, an exception, an
    /// assertion; or the kernel has ended it, since all processes of the lease together had no more.
    #[error(
        "the executor ended for want of memory: the lease has {leased_mb} MB{}; lease more (`LeaseRequest::new`), or use \
         less{}",
        used(.memory),
        other_limit(.memory)
    )]
    MemoryLimit {
        /// Memory of the lease, in MB. The node may let a process have more, or less if its operator has set a limit.
        leased_mb: u32,
        /// What all processes of the executor might have and had, if the node has control groups for executors.
        memory: Option<ExecutorMemory>,
    },
    /// The executor gave no sign of life, or saw none of its manager's: one of them was stopped, or hung.
    /// It was ended. Restart it, or deploy again.
    #[error("the executor and its manager gave each other no sign of life; it was ended")]
    ExecutorSilent,
    /// The invocation ran longer than the deployment allows. Its worker is given up; the next call
    /// has the executor replaced if nothing else is in flight.
    #[error(
        "the invocation ran past its time limit of {after:?} (`Deployment::invocation_timeout`)"
    )]
    TimeLimit {
        /// `invocation_timeout` of the deployment.
        after: Duration,
    },
    /// The worker of this invocation was given up: its executor was dropped, restarted, or replaced because
    /// of another call, or it broke the protocol. The function may have run or not. If the executor is still
    /// there, call again: the lease lives.
    #[error("the worker was lost: {reason}")]
    WorkerLost {
        /// Why.
        reason: &'static str,
    },
    /// A function of a graph failed, or its executor or lease ended: the run has no outputs. Runs of the same lane that
    /// were under way have failed too, or were submitted again if the graph is
    /// [idempotent](crate::Graph::idempotent), unless the function itself said so: `source` is
    /// [`OutputTooLarge`](Self::OutputTooLarge), [`FunctionFailed`](Self::FunctionFailed), [`NoValue`](Self::NoValue),
    /// [`NotItems`](Self::NotItems) or [`TooFewInputs`](Self::TooFewInputs) then. What has ended is started again.
    #[error("function {function:?} of the graph, its worker {worker} on node {node}, failed")]
    GraphFailed {
        /// Its name.
        function: String,
        /// Which of its workers.
        worker: usize,
        /// Where it ran.
        node: String,
        /// What happened there.
        #[source]
        source: Box<Error>,
    },
    /// A function of a graph said that it failed (`fail`).
    #[error("it said that it failed, with code {code}")]
    FunctionFailed {
        /// What it said.
        code: i32,
    },
    /// A function of a graph said that it has no value (`none`), where one is needed.
    #[error("it has no value")]
    NoValue,
    /// A function of a graph was to return, or got, a list of items, and the bytes are none.
    #[error("what is to be a list of items is none (docs/functions.md says what one looks like)")]
    NotItems,
    /// Fewer inputs of a function of a graph had a value than it waits for.
    #[error("{there} of its inputs had a value; it waits for {wanted}")]
    TooFewInputs {
        /// How many.
        there: u32,
        /// How many it waits for.
        wanted: u32,
    },
    /// The node, its manager or the way there failed. The function may have run or not. Ask for another lease.
    #[error("the executor is gone: its node or its executor manager failed")]
    ExecutorGone,
    /// The lease is over, as its manager has said, or as this application has wanted. Ask for another one.
    #[error("the lease has ended: {}", reason.name())]
    LeaseEnded {
        /// Why.
        reason: EndReason,
    },

    // -- below --
    /// What was made before a fork is the parent's: the child can neither use nor end it. Connect a client
    /// of its own in the child.
    #[error(
        "this process was forked from the one that connected the client, whose leases and connections are not its \
         own: connect a client in this process"
    )]
    Forked,
    /// A manager or executor broke the protocol.
    #[error("the peer broke the protocol")]
    Protocol(#[from] Malformed),
    /// A control connection failed.
    #[error("the connection to {what} failed")]
    Connection {
        /// The peer.
        what: &'static str,
        /// How.
        #[source]
        source: ChannelError,
    },
    /// The device refused.
    #[error(transparent)]
    Rdma(rdmalib::Error),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self))
    }
}

impl From<rdmalib::Error> for Error {
    fn from(error: rdmalib::Error) -> Self {
        match error {
            rdmalib::Error::Forked => Error::Forked,
            other => Error::Rdma(other),
        }
    }
}

impl ProgramError for Error {
    fn is_wrong_input(&self) -> bool {
        matches!(
            self,
            Error::Config(_)
                | Error::Address { .. }
                | Error::Invalid(_)
                | Error::InvalidConstraint(_)
                | Error::InvalidGraph(_)
                | Error::LibraryUnreadable { .. }
                | Error::Library { .. }
                | Error::LoadFailed { .. }
                | Error::UnknownFunction { .. }
                | Error::InputTooLarge { .. }
        )
    }
}

/// Most functions that a message lists; a large C++ library has thousands.
const LISTED: usize = 20;

/// What there is instead of a function, and why it may have been missed.
struct NoSuchFunction<'a> {
    name: &'a str,
    available: &'a [String],
}

impl fmt::Display for NoSuchFunction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoSuchFunction { name, available } = self;
        let (listed, rest) = available.split_at(available.len().min(LISTED));
        f.write_str(if listed.is_empty() { "none" } else { "" })?;
        f.write_str(&listed.join(", "))?;
        if !rest.is_empty() {
            write!(f, " and {} more", rest.len())?;
        }
        if name.len() > MAX_FUNCTION_NAME_BYTES {
            write!(
                f,
                "; names have at most {MAX_FUNCTION_NAME_BYTES} bytes, this one {}",
                name.len()
            )?;
        } else if let Some(mangled) = available.iter().find(|other| is_mangled(other, name)) {
            write!(f, "; {mangled} is its C++ name: add extern \"C\" to export it as {name}")?;
        } else if let Some(single) =
            name.strip_prefix(BATCH_PREFIX).filter(|single| available.iter().any(|it| it == single))
        {
            write!(f, "; {single} takes one run at a time, and cannot be called with batches")?;
        } else if let Some(batch) =
            available.iter().find(|it| it.strip_prefix(BATCH_PREFIX) == Some(*name))
        {
            write!(f, "; {batch} takes batches: `Graph::batch` says so of {name}")?;
        }
        Ok(())
    }
}

/// Returns whether `symbol` is what a C++ compiler makes of a function `name` that is not `extern
/// "C"` (Itanium C++ ABI, 5.1: names follow their lengths).
fn is_mangled(symbol: &str, name: &str) -> bool {
    symbol.starts_with("_Z") && symbol.contains(&format!("{}{name}", name.len()))
}

/// How an executor process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Killed by this signal.
    Signal(i32),
    /// Exited with this status.
    Status(i32),
    /// It ended for want of memory.
    MemoryRefused {
        /// Memory of the lease, in MB.
        leased_mb: u32,
        /// What its processes might have and had, if the node knows.
        memory: Option<ExecutorMemory>,
    },
    /// It gave no sign of life, or saw none of its manager's.
    Silent,
    /// It closed its connection, and its manager says nothing else.
    Unknown,
}

impl Error {
    /// Nobody was reached at `addresses`, which are of one program and not empty; of those the first is named.
    pub(crate) fn unreachable(
        what: &'static str,
        addresses: &[SocketAddr],
        source: ChannelError,
    ) -> Self {
        let address = *addresses.first().expect("a name that resolves has an address");
        Error::Unreachable { what, address, source: Box::new(source) }
    }
}

/// What the processes of an executor might have of memory, and had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorMemory {
    /// Most that they might have together, in MB: that of the lease, and what an executor needs besides.
    pub limit_mb: u64,
    /// Most that they had at a time, in MB.
    pub used_mb: u64,
}

/// Returns what else may limit the memory of a process, unless it is known what did.
fn other_limit(memory: &Option<ExecutorMemory>) -> &'static str {
    match memory {
        Some(_) => "",
        None => "; a limit of the node (`ulimit` of its executor manager) counts too",
    }
}

/// Returns the end of a sentence about a limit of memory.
fn used(memory: &Option<ExecutorMemory>) -> String {
    memory.map_or_else(String::new, |ExecutorMemory { limit_mb, used_mb }| {
        format!(
            " (its processes had {used_mb} MB of {limit_mb}, with what an executor needs besides)"
        )
    })
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {number}"),
            },
            Exit::Status(status) => write!(f, "exit status {status}"),
            Exit::MemoryRefused { leased_mb, memory } => {
                let used = used(memory);
                write!(f, "it had no more memory; the lease has {leased_mb} MB{used}")
            }
            Exit::Silent => f.write_str("it and its manager gave each other no sign of life"),
            Exit::Unknown => f.write_str("it closed its connection"),
        }
    }
}

/// Returns the names of the signals that functions die of; signal(7), x86 and Arm.
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        4 => "SIGILL, illegal instruction",
        6 => "SIGABRT: abort, a failed assertion, or an exception that nobody caught",
        7 => "SIGBUS, bad memory access",
        8 => "SIGFPE, arithmetic error",
        9 => "SIGKILL, killed, perhaps for want of memory",
        11 => "SIGSEGV, bad memory access",
        15 => "SIGTERM, terminated",
        STACK_OVERFLOW => "stack overflow",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_told_with_the_name_of_its_signal() {
        let text = Error::FunctionCrashed { signal: 11 }.to_string();
        assert_eq!(text, "a function crashed the executor: signal 11 (SIGSEGV, bad memory access)");
        let text = Error::FunctionExited { status: 3 }.to_string();
        assert_eq!(text, "a function ended the executor: exit status 3");
    }

    #[test]
    fn an_unknown_function_is_told_with_those_there_are() {
        let available = vec!["empty".to_owned(), "sum".to_owned()];
        let text = Error::UnknownFunction { name: "emtpy".into(), available }.to_string();
        assert_eq!(text, "no function \"emtpy\" in the library; it has empty, sum");
    }

    #[test]
    fn of_many_functions_some_are_told() {
        let available = (0..5000).map(|number| format!("f{number}")).collect();
        let text = Error::UnknownFunction { name: "g".into(), available }.to_string();
        assert!(text.ends_with("f18, f19 and 4980 more"), "{text}");
    }

    #[test]
    fn a_function_that_is_there_under_its_cpp_name_is_told_with_the_cure() {
        let available =
            vec!["_Z15forgot_extern_cPvjS_".to_owned(), "_ZN3lib3sumEPvjS0_".to_owned()];
        let unknown = |name: &str| {
            Error::UnknownFunction { name: name.into(), available: available.clone() }.to_string()
        };
        let text = unknown("forgot_extern_c");
        assert!(
            text.ends_with("; _Z15forgot_extern_cPvjS_ is its C++ name: add extern \"C\" to export it as forgot_extern_c"),
            "{text}"
        );
        assert!(unknown("sum").contains("_ZN3lib3sumEPvjS0_ is its C++ name"));
        assert!(!unknown("extern_c").contains("its C++ name"));
    }

    #[test]
    fn a_function_that_takes_batches_or_none_is_told_as_what_it_is() {
        let available = vec!["one".to_owned(), "rfaas_batch_all".to_owned()];
        let unknown = |name: &str| {
            Error::UnknownFunction { name: name.into(), available: available.clone() }.to_string()
        };
        let text = unknown("rfaas_batch_one");
        assert!(text.ends_with("; one takes one run at a time, and cannot be called with batches"));
        let text = unknown("all");
        assert!(text.ends_with("; rfaas_batch_all takes batches: `Graph::batch` says so of all"));
        assert!(!unknown("other").contains("takes"));
        let text = Error::UnknownFunction { name: "f".into(), available: vec![] }.to_string();
        assert_eq!(text, "no function \"f\" in the library; it has none");
    }

    #[test]
    fn a_name_that_is_too_long_is_told_with_the_limit() {
        let unknown = Error::UnknownFunction { name: "f".repeat(513), available: vec!["g".into()] };
        let text = unknown.to_string();
        assert!(text.ends_with("it has g; names have at most 512 bytes, this one 513"), "{text}");
    }

    #[test]
    fn what_is_too_small_is_told_with_the_option_that_makes_it_larger() {
        let after = Duration::from_secs(1);
        for (error, option) in [
            (Error::InputTooLarge { bytes: 9, max: 8 }, "`Deployment::input_bytes` of 9 or more"),
            (Error::OutputTooLarge { needed: 9, capacity: 8 }, "`Deployment::output_bytes`"),
            (Error::AllSlotsBusy, "`Deployment::slots`"),
            (Error::TimeLimit { after }, "`Deployment::invocation_timeout`"),
            (Error::StartTimeout { after, missing: String::new() }, "`Deployment::start_timeout`"),
        ] {
            let text = error.to_string();
            assert!(text.contains(option) && text.len() < 250, "{text}");
        }
    }
}
