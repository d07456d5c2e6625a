//! What hostile functions do, what their client may see of it, and which of it nothing contains
//! without isolation.

use crate::libraries::CONSTRUCTORS;

/// A hostile function or constructor.
pub struct Attack {
    /// Of the function; of a constructor, the macro that chooses it.
    pub name: &'static str,
    /// What it is given as its input, or that it is a constructor.
    pub input: Input,
    /// Beginnings of what its client may see.
    pub sees: &'static [&'static str],
    /// Whether that it worked is harm by itself.
    pub harm: Harm,
    /// Why it is not contained without isolation.
    pub escapes: Option<&'static str>,
    /// Layers of the sandbox, of which each contains it.
    pub layers: &'static [&'static str],
}

impl Attack {
    /// Whether it is contained on a node with these layers.
    pub fn is_contained_by(&self, active: &[String]) -> bool {
        self.escapes.is_none()
            || self.layers.iter().any(|layer| active.iter().any(|active| active == layer))
    }
}

/// What a function is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing that matters.
    Any,
    /// The port of the resource manager's HTTP interface.
    HttpPort,
    /// The files that the secret is in.
    SecretFiles,
    /// It is a constructor, and is loaded instead of called.
    Load,
}

/// When an attack has done harm, besides what it does to managers, to others, and leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Never: it only ends or spoils its own process.
    Own,
    /// When the function says that it did anything.
    Did,
}

const CRASHED: &[&str] = &["FunctionCrashed { signal: 11 }"];
/// What never returns.
pub const HUNG: &[&str] = &["TimeLimit"];
/// What takes too long to start.
pub const START_TIMEOUT: &str = "StartTimeout";
const ANSWERED: &[&str] = &["an answer"];
/// What becomes of a process without its descriptors is not for it to say.
const ANY_END: &[&str] = &[
    "an answer",
    "TimeLimit",
    "WorkerLost",
    "FunctionCrashed",
    "FunctionExited",
    "ExecutorSilent",
    "ExecutorGone",
    "Protocol",
    "OutputTooLarge",
];
const ANSWERED_OR_ENDED: &[&str] =
    &["an answer", "FunctionCrashed", "FunctionExited", "MemoryLimit"];
/// Whoever killed the manager may see anything.
const MANAGER_GONE: &[&str] = &["an answer", "ExecutorGone", "WorkerLost", "LeaseEnded", "nothing"];

const MANAGERS_USER: &str = "it has the manager's user";
const NO_LIMIT: &str = "it has no limit";

const fn own(name: &'static str, sees: &'static [&'static str]) -> Attack {
    Attack { name, input: Input::Any, sees, harm: Harm::Own, escapes: None, layers: &[] }
}

const fn reach(
    name: &'static str,
    escapes: &'static str,
    layers: &'static [&'static str],
) -> Attack {
    let (input, sees) = (Input::Any, ANSWERED);
    Attack { name, input, sees, harm: Harm::Did, escapes: Some(escapes), layers }
}

/// One that may meet a limit with a signal, or with an allocation that fails in code that cannot go on.
const fn take(name: &'static str, layers: &'static [&'static str]) -> Attack {
    Attack { sees: ANSWERED_OR_ENDED, ..reach(name, NO_LIMIT, layers) }
}

const fn load(name: &'static str, sees: &'static [&'static str]) -> Attack {
    Attack { input: Input::Load, ..own(name, sees) }
}

const fn kill(name: &'static str) -> Attack {
    let layers = &["user", "pid_namespace", "landlock_scopes"];
    Attack { sees: MANAGER_GONE, ..reach(name, MANAGERS_USER, layers) }
}

/// All of them, in the order of the table.
pub const ATTACKS: &[Attack] = &[
    own("null_write", CRASHED),
    own("wild_write", CRASHED),
    own("write_before_input", ANY_END),
    own("write_past_output", CRASHED),
    own("infinite_loop", HUNG),
    own("exit_now", &["FunctionExited { status: 7 }"]),
    own("underscore_exit", &["FunctionExited { status: 8 }"]),
    own("abort_now", &["FunctionCrashed { signal: 6 }"]),
    own("stack_overflow", &["StackOverflow"]),
    own("long_jump", ANY_END),
    own("uncaught_exception", &["FunctionCrashed { signal: 6 }"]),
    own("own_handlers", HUNG),
    own("block_signals", HUNG),
    own("returned_size", &["OutputTooLarge"]),
    own("scribble", ANY_END),
    own("close_descriptors", ANY_END),
    own("replace_descriptors", ANY_END),
    own("take_descriptors", ANSWERED),
    load(CONSTRUCTORS[0], &["StartFailed(Signal(11))"]),
    load(CONSTRUCTORS[1], &[START_TIMEOUT]),
    load(CONSTRUCTORS[2], &["StartFailed(Status(9))"]),
    load(CONSTRUCTORS[3], &["an answer", START_TIMEOUT]),
    take("fork_bomb", &["user", "control_group"]),
    take("thread_bomb", &["user", "control_group"]),
    take("memory_bomb", &["limits", "control_group"]),
    take("shared_memory_bomb", &["control_group"]),
    take("forked_memory_bomb", &["control_group"]),
    take("fill_disk", &["view"]),
    Attack {
        escapes: Some("it leaves the group that is killed"),
        layers: &["pid_namespace", "control_group"],
        ..own("grandchild", ANSWERED)
    },
    Attack {
        escapes: Some("the tracer leaves the group that is killed"),
        layers: &["pid_namespace", "control_group"],
        ..own("leave_a_tracer", ANSWERED)
    },
    reach("trace_managers", MANAGERS_USER, &["seccomp", "pid_namespace"]),
    reach("trace_tenants", MANAGERS_USER, &["seccomp", "pid_namespace"]),
    reach("memory_of_managers", MANAGERS_USER, &["user", "pid_namespace"]),
    reach("memory_of_tenants", MANAGERS_USER, &["user", "not_dumpable", "pid_namespace"]),
    Attack {
        input: Input::SecretFiles,
        ..reach("read_secret", MANAGERS_USER, &["pid_namespace"]) // command lines are everybody's
    },
    Attack { harm: Harm::Did, ..own("change_library", ANSWERED) },
    reach("file_of_tenant", MANAGERS_USER, &["user", "view"]),
    reach("abstract_sockets", "they belong to the network namespace", &["seccomp"]),
    Attack {
        input: Input::HttpPort,
        ..reach("http_interface", "it is open to its machine", &["seccomp", "landlock_network"])
    },
    reach("change_limits", MANAGERS_USER, &["capabilities"]),
    reach("change_priorities", MANAGERS_USER, &["capabilities"]),
    reach("change_affinity", NO_LIMIT, &["control_group"]),
    kill("kill_parent"),
    kill("kill_everything"),
];
