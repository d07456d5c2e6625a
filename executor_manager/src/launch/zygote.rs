//! The zygote that executors are cloned from: started, asked, and started again when it is lost.
//!
//! ```text
//!   none ──spawn──▶ starting ──Ready──▶ ready ◀──▶ asked for an executor
//!    ▲                 └── not ready in 5 s ─┬─ ended, or no answer in 500 ms
//!    └──────────── after a pause ◀───────────┘  SIGKILL
//! ```
//! * While there is none, executors are started by themselves (`exec`), unless they would lack a layer.
//! * A request has one outcome. A zygote that does not answer in time is killed, and what it has
//!   answered before its end counts. A child that is not let go does nothing (ANSWERED).
//! * What fails on this side, for want of descriptors or memory, is not the zygote's fault: it stays.
//!
//! Elsewhere: the other end of the conversation (the program `executor`, `zygote`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rfaas_program::describe;
use rfaas_program::inherited::told;
use rfaas_program::local_channel::{LocalChannel, LocalError, from_file, to_file, wait};
use rfaas_protocol::isolation::{IsolationReport, Layer, Layers};
use rfaas_protocol::launch::{FromZygote, Speaks, ToGuardian, ToZygote, ZygoteSettings};
use rfaas_protocol::{Empty, VERSION};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Descriptors;
use super::exec::Exec;
use crate::output::StandardStreams;

/// How long a zygote may take to be ready: loading the libraries of RDMA devices takes a tenth of
/// it on a slow machine.
pub const READY_WITHIN: Duration = Duration::from_secs(5);

/// How long it may take to answer. It takes a tenth of a millisecond; the loop waits for it.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// How long the end of one that was killed is waited for.
const END_WITHIN: Duration = Duration::from_millis(100);

/// Pause between two starts: the first one, doubled until one is ready, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a zygote is lost.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Spawn(String),
    #[error(transparent)]
    Channel(#[from] LocalError),
    #[error("it is not ready after {READY_WITHIN:?}")]
    NotReady,
    #[error("it speaks protocol version {0}, this program speaks {VERSION}")]
    Version(u16),
    #[error("it breaks the protocol")]
    Order,
    #[error("it has no {0}, which the first one had")]
    Fewer(Layer),
}

/// An executor that was cloned. It waits to be [let go](Cloned::let_go), and ends if it is dropped instead.
#[derive(Debug)]
pub struct Cloned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    lifeline: LocalChannel,
    guarded: bool,
}

/// An executor that may begin.
#[derive(Debug)]
pub struct Going {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// To its guardian, if it has one.
    pub guardian: Option<LocalChannel>,
}

impl Cloned {
    /// Lets it begin, in the control group that it moves into through `entrances`. One that cannot be told ends, as its
    /// lifeline is closed.
    pub fn let_go(self, entrances: &[File]) -> Going {
        let Cloned { pid, pidfd, lifeline, guarded } = self;
        let entrances: Vec<_> = entrances.iter().map(AsFd::as_fd).collect();
        let told = lifeline.send(&ToGuardian::Go(Empty {}), &entrances).is_ok();
        Going { pid, pidfd, guardian: (told && guarded).then_some(lifeline) }
    }
}

/// The zygote of this manager, if there is one.
#[derive(Debug)]
pub struct Zygote {
    settings: ZygoteSettings,
    process: Option<Process>,
    /// What the first one has found. None has less: a layer may fail to be found where memory is short.
    settled: Option<Layers>,
    /// When the next one may be started.
    again_at: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Process {
    pidfd: OwnedFd,
    channel: LocalChannel,
    ready_by: Instant,
    /// What it has found, once it is ready.
    report: Option<IsolationReport>,
}

impl Zygote {
    /// One that the first [`tick`](Zygote::tick) starts.
    pub fn new(settings: ZygoteSettings, now: Instant) -> Self {
        Zygote { settings, process: None, settled: None, again_at: now, pause: FIRST_PAUSE }
    }

    /// Returns what it has found of the layers of isolation, once it is ready.
    pub fn report(&self) -> Option<&IsolationReport> {
        self.process.as_ref()?.report.as_ref()
    }

    /// Returns what is readable when [`tick`](Zygote::tick) has something to do.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(|process| process.channel.as_fd())
    }

    /// Returns when [`tick`](Zygote::tick) is due at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.process {
            None => Some(self.again_at),
            Some(process) => (!process.is_ready()).then_some(process.ready_by),
        }
    }

    /// Starts one if there is none, and hears what it says of itself. Never waits.
    pub fn tick(&mut self, exec: &Exec, now: Instant) {
        match &mut self.process {
            None if now >= self.again_at => {
                self.again_at = now + self.pause;
                self.pause = LONGEST_PAUSE.min(2 * self.pause);
                match Process::spawn(&self.settings, exec, now) {
                    Ok(process) => self.process = Some(process),
                    Err(trouble) => self.lose(&trouble),
                }
            }
            None => {}
            Some(process) => match process.listen(now) {
                Ok(Some(found)) => self.settle(found),
                Ok(None) => {}
                Err(trouble) => self.lose(&trouble),
            },
        }
    }

    /// Goes on with a zygote that has `found` these layers, unless another one had more.
    fn settle(&mut self, found: Layers) {
        let settled = *self.settled.get_or_insert(found);
        match settled.iter().find(|&layer| !found.has(layer)) {
            None => self.pause = FIRST_PAUSE,
            Some(missing) => self.lose(&Trouble::Fewer(missing)),
        }
    }

    /// Whether it can be asked for executors.
    pub fn is_ready(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_ready)
    }

    /// Waits until it is ready or lost, or the time is over.
    pub fn wait_until_ready(&mut self, exec: &Exec, within: Duration) {
        let end = Instant::now() + within;
        self.tick(exec, Instant::now());
        while let Some(process) = self.process.as_ref().filter(|process| !process.is_ready()) {
            let left = process.ready_by.min(end).saturating_duration_since(Instant::now());
            if left.is_zero() && end < process.ready_by {
                return;
            }
            let mut polled = [PollFd::new(process.channel.as_fd(), PollFlags::POLLIN)];
            if wait(&mut polled, Some(left)).is_err() {
                return; // no memory to wait with; the loop goes on with it
            }
            self.tick(exec, Instant::now());
        }
    }

    /// Has an executor cloned, or returns why there is none.
    pub fn start(&mut self, descriptors: &Descriptors<'_>) -> Result<Cloned, String> {
        let process = self.process.as_ref().filter(|process| process.is_ready());
        let process = process.ok_or_else(|| "there is no zygote yet".to_owned())?;
        match process.ask(descriptors) {
            Ok(Ok(cloned)) => Ok(cloned),
            Ok(Err(reason)) => {
                tracing::warn!(reason, "cannot clone an executor");
                Err(reason)
            }
            Err(trouble) => {
                self.lose(&trouble);
                Err(describe(&trouble))
            }
        }
    }

    /// Is without one from now on.
    fn lose(&mut self, trouble: &Trouble) {
        self.process = None;
        tracing::warn!(
            error = describe(trouble),
            "no zygote: executors wait for another one, or start by themselves, more slowly, if they \
             lack no layer of isolation then"
        );
    }
}

impl Process {
    fn spawn(settings: &ZygoteSettings, exec: &Exec, now: Instant) -> Result<Self, Trouble> {
        let os = |error: io::Error| Trouble::Spawn(told(&error));
        let (channel, theirs) = LocalChannel::pair().map_err(os)?;
        let settings = to_file(c"settings", settings).map_err(os)?;
        let speaks = Speaks { version: VERSION.into() };
        channel.send(&ToZygote::Prepare(speaks), &[settings.as_fd()])?;
        let pid =
            exec.start_zygote(theirs.as_fd()).map_err(|error| Trouble::Spawn(error.to_string()))?;
        let pidfd = rustix::process::Pid::from_raw(pid.as_raw())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| os(errno.into()))?;
        Ok(Process { pidfd, channel, ready_by: now + READY_WITHIN, report: None })
    }

    fn is_ready(&self) -> bool {
        self.report.is_some()
    }

    /// Hears what it says unasked; returns what it has found when it becomes ready.
    fn listen(&mut self, now: Instant) -> Result<Option<Layers>, Trouble> {
        match self.channel.try_receive()? {
            None if !self.is_ready() && now >= self.ready_by => Err(Trouble::NotReady),
            None => Ok(None),
            Some((FromZygote::Ready(speaks), files)) if !self.is_ready() => {
                if speaks.version.get() != VERSION {
                    return Err(Trouble::Version(speaks.version.get()));
                }
                let [report] = <[OwnedFd; 1]>::try_from(files).map_err(|_| Trouble::Order)?;
                let report: IsolationReport =
                    from_file(File::from(report)).map_err(|_| Trouble::Order)?;
                tracing::info!(layers = %report.active, "executors are cloned from a zygote");
                Ok(Some(self.report.insert(report).active))
            }
            Some(_) => Err(Trouble::Order),
        }
    }

    /// Asks for an executor and waits for the answer: that, or why there is none.
    fn ask(&self, given: &Descriptors<'_>) -> Result<Result<Cloned, String>, Trouble> {
        let (lifeline, theirs) = match LocalChannel::pair() {
            Ok(ends) => ends,
            Err(error) => return Ok(Err(format!("no lifeline: {}", told(&error)))),
        };
        let StandardStreams { stdout, stderr } = &given.streams;
        let first = [given.input.as_fd(), stdout.as_fd(), stderr.as_fd(), theirs.as_fd()];
        let more = given.more.iter().map(AsFd::as_fd);
        let given: Vec<_> = first.into_iter().chain(more).collect();
        match self.channel.send(&ToZygote::Start(Empty {}), &given) {
            // Nothing was sent.
            Err(LocalError::Os(error)) => {
                return Ok(Err(format!("cannot ask the zygote: {}", told(&error))));
            }
            sent => sent?,
        }
        drop(theirs);
        let answer = match self.channel.receive(Some(ANSWER_WITHIN)) {
            Err(LocalError::Late) => {
                self.end();
                self.channel.try_receive()?.ok_or(LocalError::Late)? // what it said before its end
            }
            // The answer has come, and its pidfd is lost. The child is not let go, and ends.
            Err(LocalError::Os(error)) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
                return Ok(Err(format!("no pidfd of its process: {}", told(&error))));
            }
            answer => answer?,
        };
        match answer {
            (FromZygote::Started(started), files) => {
                let [pidfd] = <[OwnedFd; 1]>::try_from(files).map_err(|_| Trouble::Order)?;
                let pid = i32::try_from(started.pid.get()).map_err(|_| Trouble::Order)?;
                let guarded =
                    self.report.as_ref().is_some_and(|it| it.active.has(Layer::PidNamespace));
                Ok(Ok(Cloned { pid: Pid::from_raw(pid), pidfd, lifeline, guarded }))
            }
            (FromZygote::NotStarted(answer), _) => {
                Ok(Err(answer.reason.get().unwrap_or("unknown").to_owned()))
            }
            (FromZygote::Ready(_), _) => Err(Trouble::Order),
        }
    }

    /// Kills it and waits for its end, which a kill is not refused.
    fn end(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = wait(&mut polled, Some(END_WITHIN));
    }
}

/// It is gone with its value. One that takes longer to end is reaped with the children that this
/// program has not started, or by init.
impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), look);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use rfaas_protocol::isolation::{Layers, NetworkPolicy, SandboxSettings, UserRange};

    use super::*;

    fn zygote(now: Instant) -> Zygote {
        let sandbox = SandboxSettings {
            layers: Layers::NONE,
            view: Vec::new(),
            users: UserRange { first: 0, count: 0 },
            network: NetworkPolicy::Host,
            rdma: false,
        };
        Zygote::new(ZygoteSettings { provider: "shm".into(), sandbox }, now)
    }

    #[test]
    fn one_that_has_fewer_layers_than_the_first_is_none() {
        let mut zygote = zygote(Instant::now());
        let layers = |layers: &[Layer]| layers.iter().copied().collect::<Layers>();
        zygote.pause = LONGEST_PAUSE;
        zygote.settle(layers(&[Layer::View, Layer::Limits]));
        assert_eq!(zygote.pause, FIRST_PAUSE);
        zygote.pause = LONGEST_PAUSE;
        zygote.settle(layers(&[Layer::Limits]));
        assert_eq!(zygote.pause, LONGEST_PAUSE, "the next one is not tried at once");
        zygote.settle(layers(&[Layer::View, Layer::Limits, Layer::Seccomp]));
        assert_eq!(zygote.pause, FIRST_PAUSE);
    }

    #[test]
    fn one_that_cannot_be_started_is_tried_less_and_less_often() {
        let exec = Exec::new(OsString::new(), None, Vec::new()); // finds no program
        let mut now = Instant::now();
        let mut zygote = zygote(now);
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                zygote.tick(&exec, now);
                let pause = zygote.deadline().unwrap() - now;
                now += pause;
                pause
            })
            .collect();
        assert_eq!(pauses[..3], [1, 2, 4].map(|times| times * FIRST_PAUSE));
        assert_eq!(pauses[11], LONGEST_PAUSE);
    }
}
