//! The zygote: a process of this program with one thread, in which all is loaded that depends on no
//! lease. Executors are cloned from it and need not load it again.
//!
//! ```text
//!   executor_manager ──Start──▶ zygote ──clone3──▶ guardian ──fork──▶ executor
//!          ▲                      │       └─ without a process namespace: executor
//!          └──pid, pidfd──────────┘
//! ```
//! * A child is the manager's, not the zygote's (CLONE_PARENT), also when the zygote is dead.
//! * ANSWERED - a child does nothing before the manager, which holds its pidfd then, lets it go. A
//!   manager that got no answer closes the lifeline, and can start another executor for the lease.
//! * The namespaces of message queues and of the host name take longest to make. So the zygote enters new ones
//!   while nobody waits for it, and the next child inherits them. No two children have the same.
//! * It ends with its manager. Signals that are sent to everybody, as systemd does, do not end it:
//!   its manager may be letting leases finish.
//!
//! The price: executors have the same addresses, since none has executed the program by itself.
//! What one finds out about where its code is, it knows of the others.
//!
//! Elsewhere: what the manager does without it (`executor_manager`, `launch`), the executor
//! (`run`).

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Write, stderr, stdin};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::unshare;
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid};
use rdmalib::Device;
use rfaas_program::describe;
use rfaas_program::local_channel::{LocalChannel, LocalError, from_file, to_file};
use rfaas_protocol::isolation::Layer;
use rfaas_protocol::launch::{
    FromZygote, NotStarted, Speaks, Started, ToGuardian, ToZygote, ZygoteSettings,
};
use rfaas_protocol::{Text, VERSION};
use rfaas_sandbox::{Launch, Sandbox, probe};

use crate::library::{Inherited, leave_at_once};

mod error;
mod guardian;
#[allow(unsafe_code)] // clone3, fork: see there
mod sibling;

use error::{ZygoteError, os};
use sibling::{Cloned, clone_sibling};

/// Argument of the program that makes a process a zygote. Only executor_manager starts one.
pub const ARGUMENT: &str = "zygote";

/// Name that a zygote has in `/proc`.
const NAME: &std::ffi::CStr = c"zygote";

/// After a child was cloned, before namespaces are made for the next: it needs the processor more, until it has
/// connected.
const FRESH_AFTER: Duration = Duration::from_millis(5);

/// Serves the manager, and returns when that has ended; in each child that becomes an executor,
/// returns what `executor` returns. To be called before there is another thread.
pub fn serve(executor: impl FnOnce(Inherited, Sandbox) -> ExitCode) -> ExitCode {
    let served = Zygote::prepare().and_then(Zygote::serve);
    let became = served.and_then(|child| child.map(Child::become_executor).transpose());
    match became {
        Ok(Some((inherited, sandbox))) => executor(inherited, sandbox),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            // Of a process that has no log. That it cannot be told cannot be told either.
            let _ = writeln!(stderr(), "error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// A zygote that takes requests.
struct Zygote {
    manager: LocalChannel,
    /// The manager's process, in the process namespace that it has in common with this one.
    parent: Pid,
    sandbox: Sandbox,
    /// Each executor is in a process namespace, and has a guardian.
    guarded: bool,
    /// It is in namespaces that are the next child's, and in which nobody else has been.
    fresh: Cell<bool>,
}

impl Zygote {
    fn prepare() -> Result<Self, ZygoteError> {
        let manager = LocalChannel::from(stdin().as_fd().try_clone_to_owned().map_err(os("dup"))?);
        let nothing = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        dup2_stdin(nothing.map_err(os("/dev/null"))?).map_err(os("dup2"))?;
        let (first, files) = manager.receive::<ToZygote>(None)?;
        let ToZygote::Prepare(speaks) = first else { return Err(ZygoteError::Order) };
        if speaks.version.get() != VERSION {
            return Err(ZygoteError::Version { theirs: speaks.version.get() });
        }
        let [settings] = <[OwnedFd; 1]>::try_from(files).map_err(|_| ZygoteError::Order)?;
        let ZygoteSettings { provider, mut sandbox } =
            from_file(File::from(settings)).map_err(os("settings"))?;

        let parent = getppid();
        set_name(NAME).map_err(os("prctl"))?;
        let asking = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        SigSet::from_iter(asking).thread_block().map_err(os("sigprocmask"))?;
        let provider = provider.parse().map_err(|_| ZygoteError::Order)?;
        Device::prepare(provider).map_err(ZygoteError::Device)?;
        crate::clock::start();
        // Behind what loads libraries, and before the first fork.
        if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
            return Err(ZygoteError::Threads);
        }
        let report = probe(&sandbox, Launch::Clone)?;
        sandbox.layers = report.active;
        let guarded = sandbox.layers.has(Layer::PidNamespace);
        let sandbox = Sandbox::new(sandbox);
        sandbox.enter()?;
        // Behind that, which clears it.
        set_pdeathsig(Signal::SIGKILL).map_err(os("prctl"))?;
        if !guarded && !sibling::knows_thread_ids() {
            return Err(ZygoteError::ThreadIds);
        }
        let report = to_file(c"report", &report).map_err(os("memfd_create"))?;
        let speaks = Speaks { version: VERSION.into() };
        manager.send(&FromZygote::Ready(speaks), &[report.as_fd()])?;
        let fresh = Cell::new(false);
        Ok(Zygote { manager, parent, sandbox, guarded, fresh })
    }

    /// Takes requests until the manager has ended. In a child, returns that.
    fn serve(self) -> Result<Option<Child>, ZygoteError> {
        loop {
            match self.serve_one() {
                Ok(None) => {}
                Ok(Some(given)) => return Ok(Some(Child { zygote: self, given })),
                Err(ZygoteError::Channel(LocalError::Gone)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a request and clones the child. In that, returns what it needs.
    fn serve_one(&self) -> Result<Option<Given>, ZygoteError> {
        let (request, descriptors) = self.next()?;
        let ToZygote::Start(_) = request else { return Err(ZygoteError::Order) };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(ZygoteError::Order);
        let streams = Streams { input: next()?, output: next()?, error: next()? };
        let lifeline = LocalChannel::from(next()?);
        let given = Given { streams, lifeline, more: descriptors.collect() };
        Ok(self.clone_child()?.then_some(given))
    }

    /// Waits for a request. Meanwhile it makes namespaces for the next child.
    fn next(&self) -> Result<(ToZygote, Vec<OwnedFd>), ZygoteError> {
        if !self.fresh.get() {
            match self.manager.receive(Some(FRESH_AFTER)) {
                Err(LocalError::Late) => {}
                received => return Ok(received?),
            }
            let _ = self.freshen(); // tried again with the request
        }
        Ok(self.manager.receive(None)?)
    }

    /// Enters namespaces that are the next child's, unless it is in such.
    fn freshen(&self) -> nix::Result<()> {
        if !self.fresh.get() {
            unshare(self.sandbox.enterable_before())?;
            self.fresh.set(true);
        }
        Ok(())
    }

    /// Clones a child, and answers the manager. Returns whether this is the child.
    fn clone_child(&self) -> Result<bool, ZygoteError> {
        let rest = self.sandbox.namespaces() - self.sandbox.enterable_before();
        let cloned = self.freshen().and_then(|()| clone_sibling(rest));
        self.fresh.set(false); // they are the child's, if there is one
        match cloned {
            Ok(Cloned::Child) => return Ok(true),
            Ok(Cloned::Parent { pid, pidfd }) => {
                let started = Started { pid: pid.as_raw().unsigned_abs().into() };
                self.manager.send(&FromZygote::Started(started), &[pidfd.as_fd()])?;
            }
            Err(errno) => {
                let reason = Text::truncated(&describe(&errno));
                self.manager.send(&FromZygote::NotStarted(NotStarted { reason }), &[])?;
            }
        }
        Ok(false)
    }
}

/// The descriptors that come with a request.
struct Given {
    streams: Streams,
    lifeline: LocalChannel,
    /// The library's file and what is closed when that is filled, or the channel of one that stands by.
    more: Vec<OwnedFd>,
}

/// The standard streams of an executor; its input is the assignment.
struct Streams {
    input: OwnedFd,
    output: OwnedFd,
    error: OwnedFd,
}

/// A cloned process, before it is an executor.
struct Child {
    zygote: Zygote,
    given: Given,
}

impl Child {
    /// Becomes an executor: a process with its own session and namespaces, the instructions as
    /// standard input, and no other descriptor but those that are returned. A guardian stays behind,
    /// if there is one.
    fn become_executor(self) -> Result<(Inherited, Sandbox), ZygoteError> {
        let Child { zygote: Zygote { manager, parent, sandbox, guarded, .. }, given } = self;
        let Given { streams, lifeline, more } = given;
        set_pdeathsig(Signal::SIGKILL).map_err(os("prctl"))?;
        lead_session()?;
        // It is let go (ANSWERED).
        let Ok((ToGuardian::Go(_), group)) = lifeline.receive(None) else { leave_at_once(1) };
        // Behind the first call: a manager that ended before that ends nobody. It may have let go of its zygote.
        let orphaned = if guarded { lifeline.is_gone() } else { getppid() != parent };
        if orphaned {
            leave_at_once(1);
        }
        drop(manager);
        for entrance in group {
            File::from(entrance).write_all(b"0").map_err(os("moving into its control group"))?;
        }
        let mut executors = (streams, more);
        if guarded {
            executors = guardian::leave_behind(lifeline, &sandbox, executors)?;
            lead_session()?;
        }
        let (streams, more) = executors;
        dup2_stdin(&streams.input).map_err(os("dup2"))?;
        dup2_stdout(&streams.output).map_err(os("dup2"))?;
        dup2_stderr(&streams.error).map_err(os("dup2"))?;
        Ok((Inherited::passed(more), sandbox))
    }
}

/// Begins a session, and in it a process group: the terminal that the manager was started from is
/// out of reach.
fn lead_session() -> Result<(), ZygoteError> {
    match setsid() {
        Ok(_) => Ok(()),
        Err(errno) => Err(os::<Errno>("setsid")(errno)),
    }
}
