//! Programs that a test runs: with a deadline, their output kept.
//!
//! Elsewhere: the managers of a cluster, whose logs are followed line by line (`process`).

use std::ffi::OsStr;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Binaries;
use crate::service::devices_at;
use crate::wait::{deadline, eventually, eventually_or};

/// What was built with the running test.
pub fn binaries() -> Binaries {
    Binaries::beside_this_program()
}

/// Built program `name`.
pub fn program(name: &str) -> PathBuf {
    binaries().program(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Built function library `libNAME.so`.
pub fn library(name: &str) -> PathBuf {
    binaries().library(name).unwrap_or_else(|error| panic!("{error}"))
}

/// A directory of this source tree.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A tool of the system that a test cannot do without.
pub fn system_tool(name: &str) {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(found, "this test needs `{name}`: install it (tools/check does)");
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it printed on standard output.
    pub stdout: String,
    /// All that it printed on standard error.
    pub stderr: String,
}

impl Finished {
    /// What it has said on standard error in lines that begin with the word `key`: their rest.
    pub fn said(&self, key: &str) -> Vec<String> {
        said(&self.stderr, key)
    }

    /// The exit status; a signal is a failure of the test.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// The same; an exit status other than 0 is a failure of the test.
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// Standard output, which is one JSON object and nothing else.
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no single JSON object ({error}): {self:?}"));
        assert!(value.is_object(), "{value}");
        value
    }

    /// Fails unless this is what bad input leads to: exit status 2 and one line on standard error, which says all
    /// of `words`.
    pub fn is_bad_input(&self, words: &[&str]) {
        self.is_refusal(2, words);
    }

    /// Fails unless this is what a peer leads to that is not there: exit status 1 and such a line.
    pub fn is_unreachable(&self, words: &[&str]) {
        self.is_refusal(1, words);
    }

    fn is_refusal(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !is_log(line)).collect();
        assert_eq!(lines.len(), 1, "one line is expected: {self:?}");
        assert!(lines[0].starts_with("error: "), "{self:?}");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} is expected in: {}", lines[0]);
        }
        assert_eq!(self.stdout, "", "nothing is printed by what has not begun");
    }
}

/// Of the lines that are whole: a program may be writing the last one, or have been killed while it did.
fn said(text: &str, key: &str) -> Vec<String> {
    let rest = |line: &str| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned);
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).filter_map(rest).collect()
}

/// A line of a manager's log that asks nothing of anybody: a time, the level, the text.
fn is_log(line: &str) -> bool {
    line.starts_with("20") && line.split_whitespace().nth(1) == Some("INFO")
}

/// A running program.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Printed,
    stderr: Printed,
    command: String,
}

/// Starts `command` and collects what it prints.
pub fn start(mut command: Command) -> Running {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("NO_COLOR", "1")
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = Printed::collect(child.stdout.take());
    let stderr = Printed::collect(child.stderr.take());
    Running { child, stdout, stderr, command: format!("{command:?}") }
}

/// What a program has printed so far.
#[derive(Debug)]
struct Printed {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Printed {
    fn collect(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let all = bytes.clone();
        let reader = stream.map(|mut stream| {
            std::thread::spawn(move || {
                let mut some = [0; 4096];
                while let read @ 1.. = stream.read(&mut some).expect("a pipe can be read") {
                    all.lock().expect("nobody panics with it").extend_from_slice(&some[..read]);
                }
            })
        });
        Printed { bytes, reader }
    }

    fn so_far(&self) -> String {
        let bytes = self.bytes.lock().expect("nobody panics with it");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All of it. To be called when the program has ended. What it has started must have ended too before
    /// [`deadline`], or have closed what it inherited.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let held = || format!("; so far: {}", self.so_far());
            let what = "all processes with the output of a program that has ended close it";
            eventually_or(what, deadline(), || reader.is_finished(), held);
            reader.join().expect("it only reads");
        }
        self.so_far()
    }
}

impl Running {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_some()
    }

    /// Whether it has ended; if so, all that it has said on standard error has been read.
    pub fn has_said_all(&mut self) -> bool {
        let ended = self.has_ended();
        if ended {
            self.stderr.whole();
        }
        ended
    }

    /// Waits until it has said `words` on standard error, which must be before [`deadline`] and its end.
    pub fn says(&mut self, words: &str) {
        eventually(&format!("{} says {words:?}", self.command), || {
            let ended = self.has_said_all(); // checked first: what it says last counts
            let said = self.stderr.so_far();
            assert!(!ended || said.contains(words), "{} ended: {said}", self.command);
            said.contains(words)
        });
    }

    /// What it has said on standard error in lines that begin with the word `key`: their rest.
    pub fn said(&self, key: &str) -> Vec<String> {
        said(&self.stderr.so_far(), key)
    }

    /// Everything that it has said on standard error so far.
    pub fn words(&self) -> String {
        self.stderr.so_far()
    }

    /// Waits for its end, which must come before [`deadline`].
    pub fn finish(mut self) -> Finished {
        let deadline = Instant::now() + deadline();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
                panic!("{} hangs; so far: {stdout}\n{stderr}", self.command);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Finished { status, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `command` and waits for its end.
pub fn run(command: Command) -> Finished {
    start(command).finish()
}

/// Program `name` with `arguments`.
pub fn command(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program(name));
    command.args(arguments);
    command
}

/// The transport benchmark on the device of clients. It needs no cluster: the shipped files are
/// enough, with that device in them, which are put into `directory`.
pub fn transport_benchmarker(directory: &Path) -> Command {
    let devices = devices_at(Ipv4Addr::LOCALHOST.into());
    let text = std::fs::read_to_string(source("config/benchmark.json")).expect("it is shipped");
    let mut settings: Value = serde_json::from_str(&text).expect("it is JSON");
    settings["config"]["rdma_device"] = devices.client.name.clone().into();
    let config = directory.join("benchmark.json");
    std::fs::write(&config, settings.to_string()).expect("the directory can be written");
    let database = directory.join("devices.json");
    let text = serde_json::to_string(&devices.client_database()).expect("it is plain data");
    std::fs::write(&database, text).expect("the directory can be written");

    let mut command = Command::new(program("transport_benchmarker"));
    command.arg("--config").arg(config).arg("--device-database").arg(database);
    command
}

/// Kills process `id` as `kill -9` does.
pub fn kill_9(id: u32) {
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL).expect("it runs");
}

/// Whether a process that has ended was ended by `signal`.
pub fn ended_by(finished: &Finished, signal: Signal) -> bool {
    finished.status.signal() == Some(signal as i32)
}
