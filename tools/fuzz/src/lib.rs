//! What is read from peers, users and files, each as a function of bytes that anybody may have written.
//!
//! ```text
//!   corpus/TARGET/* ──▶ tests/corpus.rs: every file, and what is close to it ──▶ TARGETS ──▶ reader, its properties
//!                  └──▶ libfuzzer/: whatever reaches new code (`tools/fuzz/run`) ─┘
//! ```
//! A target panics if a property does not hold. Beside "no panic in what reads" these are, where they make sense: what
//! was read is written as the same bytes; who does not know a secret proves nothing; what one program accepts, the next
//! one can carry out; an error is one line that a terminal can show; nothing is left of what a peer has passed.
//!
//! Targets keep no state from one input to the next, so that an input alone shows what was found.
//!
//! Elsewhere: two peers of the embedded device that write anything anywhere (`rdmalib::providers::shm::hostile`), what
//! clients do over time (`tools/tests/strangers`), foreign code (`tools/tests/hostile_functions`).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

mod cursor;
mod device;
mod handshake;
mod http;
mod invocations;
mod library;
mod local_channel;
mod messages;
mod replies;
mod settings;
mod tokens;

/// A reader and its properties.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its corpus and of its program.
    pub name: &'static str,
    /// Has `bytes` read.
    pub run: fn(&[u8]),
    /// How many inputs the gate makes of its corpus: fewer where an input takes longer.
    pub variants: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "handshake", run: handshake::run, variants: 1_000 },
    Target { name: "http", run: http::run, variants: 1_000 },
    Target { name: "invocations", run: invocations::run, variants: 1_000 },
    Target { name: "library", run: library::run, variants: 20_000 },
    Target { name: "local_channel", run: local_channel::run, variants: 10_000 },
    Target { name: "messages", run: messages::run, variants: 20_000 },
    Target { name: "replies", run: replies::run, variants: 1_000 },
    Target { name: "settings", run: settings::run, variants: 3_000 },
    Target { name: "tokens", run: tokens::run, variants: 10_000 },
];

/// The cluster secret of targets. The corpus has tokens that it has signed.
pub const SECRET: &[u8] = b"the secret of the corpus";

/// Has target `name` read `bytes`.
///
/// # Panics
///
/// If there is no such target, or a property does not hold.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("its name is in the list").run)(bytes);
}

/// Memory that a process with targets may allocate: many times what they use, and far below a length that an input may
/// claim (4 GiB).
const MOST_MEMORY: u64 = 1 << 30;

/// Bounds what this process can allocate, touched or not. An allocation beyond it ends the process.
///
/// # Panics
///
/// If the system does not let it.
pub fn limit_memory() {
    let (_, hard) = getrlimit(Resource::RLIMIT_DATA).expect("every process may ask");
    setrlimit(Resource::RLIMIT_DATA, MOST_MEMORY.min(hard), hard).expect("a limit may be lowered");
}

/// Checks what people are told: one line, which a terminal can show.
fn assert_line(text: &str) {
    assert!(!text.trim().is_empty(), "no words");
    assert!(!text.contains(char::is_control), "more than a line: {text:?}");
}
