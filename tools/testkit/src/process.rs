//! One program that a cluster started: its log, its end.
//!
//! * It is killed when this program dies, however that happens: it is started through `setpriv --pdeathsig`
//!   (util-linux), from a thread that lives as long as the cluster, because the kernel sends that signal when the
//!   starting *thread* ends (`PR_SET_PDEATHSIG(2const)`).
//! * It is waited for before its value is gone.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Pause between two checks whether a process that was asked to stop has ended.
const CHECK_AGAIN: Duration = Duration::from_millis(5);

/// Lines of a program's log that are kept, the last ones: some 15 MB of a cluster that runs for weeks.
const MOST_LINES: usize = 100_000;

/// A program to start.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub path: OsString,
    pub directory: PathBuf,
    /// Whether its log goes to the standard error of this program too.
    pub show: bool,
}

impl Launch {
    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn command(&self, dying_with_us: bool) -> Command {
        let mut command = if dying_with_us {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            setpriv
        } else {
            Command::new(&self.program)
        };
        command
            .args(&self.arguments)
            .env("PATH", &self.path)
            .env("TMPDIR", &self.directory)
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .current_dir(&self.directory)
            .process_group(0) // Ctrl-C at a terminal is for this program, which then stops them in order
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

/// Starts programs that die with it.
#[derive(Debug)]
pub(crate) struct ProcessKeeper {
    requests: Option<Sender<(Launch, Sender<io::Result<Child>>)>>,
    thread: Option<JoinHandle<()>>,
}

impl ProcessKeeper {
    pub fn start() -> io::Result<Self> {
        let (requests, receiver) = channel::<(Launch, Sender<io::Result<Child>>)>();
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || {
            for (launch, answer) in receiver {
                let child = match launch.command(true).spawn() {
                    // A machine (or PATH) without setpriv: stopped by our destructors only.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        launch.command(false).spawn()
                    }
                    other => other,
                };
                // The answer is lost only if the thread that asked has panicked.
                let _ = answer.send(child);
            }
        })?;
        Ok(ProcessKeeper { requests: Some(requests), thread: Some(thread) })
    }

    pub fn spawn(&self, launch: &Launch) -> io::Result<Process> {
        let gone = || io::Error::other("the thread that starts programs has ended");
        let (answer, child) = channel();
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send((launch.clone(), answer)).map_err(|_| gone())?;
        let child = child.recv().map_err(|_| gone())??;
        Ok(Process::new(launch.name(), child, launch.show))
    }
}

impl Drop for ProcessKeeper {
    fn drop(&mut self) {
        self.requests = None; // ends the loop
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic, and a destructor could not report it
        }
    }
}

/// A running program and what it has logged.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    log: Log,
}

impl Process {
    fn new(name: String, mut child: Child, show: bool) -> Self {
        let log = Log::default();
        if let Some(stderr) = child.stderr.take() {
            log.follow(stderr, show.then(|| name.clone()));
        }
        Process { name, child, ended: None, log }
    }

    /// Name of the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far; the end of it, if that is much.
    pub fn log(&self) -> String {
        self.log.lock().lines.make_contiguous().join("\n")
    }

    /// What `find` makes of the first logged line that it accepts, if one appears within `timeout` and
    /// before the program ends.
    pub fn wait_for<T>(
        &mut self,
        timeout: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0_usize;
        let mut lines = self.log.lock();
        loop {
            let new = seen.saturating_sub(lines.forgotten);
            if let Some(found) = lines.lines.iter().skip(new).find_map(|line| find(line)) {
                return Some(found);
            }
            seen = lines.forgotten + lines.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.closed || left.is_zero() {
                return None;
            }
            lines = self.log.wait(lines, left);
        }
    }

    /// How it ended, or `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends it `signal`, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            // It may have ended since: then there is nothing to do.
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        }
    }

    /// Waits until it has ended; `None` if it has not within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while self.exit_status().is_none() && Instant::now() < deadline {
            std::thread::sleep(CHECK_AGAIN);
        }
        self.ended
    }

    /// Asks it to stop, and kills it if it has not after `grace`. Returns how it ended.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus, NotStopped> {
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT); // one that was halted with SIGSTOP hears nothing
        if let Some(status) = self.wait(grace) {
            return Ok(status);
        }
        self.kill();
        Err(NotStopped { name: self.name.clone(), after: grace })
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        if self.exit_status().is_none() {
            let _ = self.child.kill(); // fails only if it has ended
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// For messages: `exit status: 2` or `signal: 9 (SIGKILL)`, and the log.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ended {
            None => write!(f, "{} (running)", self.name)?,
            Some(status) => write!(f, "{} ({status})", self.name)?,
        }
        write!(f, " logged:\n{}", self.log())
    }
}

/// It did not stop when asked to.
#[derive(Debug, thiserror::Error)]
#[error("{name} had not stopped {after:?} after SIGTERM and was killed")]
pub struct NotStopped {
    name: String,
    after: Duration,
}

/// Lines that a program logged, as they come.
#[derive(Clone, Debug, Default)]
struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    /// How many were before these.
    forgotten: usize,
    closed: bool,
}

impl Lines {
    fn push(&mut self, line: String) {
        if self.lines.len() == MOST_LINES {
            self.lines.pop_front();
            self.forgotten += 1;
        }
        self.lines.push_back(line);
    }
}

impl Log {
    /// Takes the lines of `stream`. With a name, they also go to standard error, behind that.
    fn follow(&self, stream: impl Read + Send + 'static, name: Option<String>) {
        let log = self.clone();
        std::thread::spawn(move || {
            // Not `lines()`: a program may log bytes that are no UTF-8.
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(name) = &name {
                    let _ = writeln!(io::stderr(), "{name}: {line}"); // if this fails: the line is kept
                }
                log.lock().push(line);
                log.0.1.notify_all();
            }
            log.lock().closed = true;
            log.0.1.notify_all();
        });
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // A panic while it was held leaves at worst one line out.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>, timeout: Duration) -> MutexGuard<'a, Lines> {
        self.0.1.wait_timeout(lines, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            path: std::env::var_os("PATH").unwrap(),
            directory: std::env::temp_dir(),
            show: false,
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_kept_and_all_of_it_is_looked_at() {
        let keeper = ProcessKeeper::start().unwrap();
        let last = MOST_LINES + 10;
        let script = format!("seq {last} >&2; sleep 60");
        let mut process = keeper.spawn(&shell(&script)).unwrap();
        let found =
            process.wait_for(Duration::from_secs(60), |l| (l == last.to_string()).then_some(()));
        assert_eq!(found, Some(()));
        assert!(process.log().starts_with("11\n12\n"));
    }

    #[test]
    fn a_logged_line_is_waited_for_and_kept() {
        let keeper = ProcessKeeper::start().unwrap();
        let mut process =
            keeper.spawn(&shell("echo first >&2; echo port 12 >&2; sleep 60")).unwrap();
        let port = process
            .wait_for(Duration::from_secs(30), |l| l.strip_prefix("port ").map(String::from));
        assert_eq!(port.as_deref(), Some("12"));
        assert!(process.log().starts_with("first\n"));
        assert!(process.exit_status().is_none());
    }

    #[test]
    fn waiting_for_a_line_ends_with_the_program() {
        let keeper = ProcessKeeper::start().unwrap();
        let mut process = keeper.spawn(&shell("exit 3")).unwrap();
        assert_eq!(process.wait_for(Duration::from_secs(60), |_| Some(())), None);
        assert_eq!(process.wait(Duration::from_secs(60)).and_then(|s| s.code()), Some(3));
    }

    #[test]
    fn a_program_that_ignores_sigterm_is_killed_and_reported() {
        let keeper = ProcessKeeper::start().unwrap();
        let mut process = keeper
            .spawn(&shell("trap '' TERM; echo ready >&2; while :; do sleep 1; done"))
            .unwrap();
        assert_eq!(process.wait_for(Duration::from_secs(30), |_| Some(())), Some(()));
        assert!(process.stop(Duration::from_millis(50)).is_err());
        assert!(process.exit_status().is_some());
    }

    #[test]
    fn programs_die_with_the_thread_that_keeps_them() {
        let keeper = ProcessKeeper::start().unwrap();
        let mut process = keeper.spawn(&shell("echo ready >&2; exec sleep 60")).unwrap();
        assert_eq!(process.wait_for(Duration::from_secs(30), |_| Some(())), Some(()));
        drop(keeper);
        let status = process.wait(Duration::from_secs(30)).expect("it outlived its keeper");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
