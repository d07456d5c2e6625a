//! What the tests of whole programs share: one at a time, run a program with a deadline, build a library, look for
//! leftovers.

#![allow(dead_code)] // each test file uses its own part

pub mod leftovers;
pub mod waiting;

use std::ffi::OsStr;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas::{Client, Deployment, Executor, LeaseRequest, Spin};
use serde_json::Value;
use tools::test_devices::{are_rdma, patience};
use tools::{Binaries, LocalCluster, Options, TestDevices};

/// Longest that anything here takes, unless it hangs.
pub fn deadline() -> Duration {
    patience(Duration::from_secs(120))
}

/// Spinning processes slow each other down, and leftovers are looked for in the whole machine: tests of one file
/// run one after the other.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner) // a failed test does not fail the others
}

pub fn binaries() -> Binaries {
    Binaries::beside_this_program()
}

pub fn program(name: &str) -> PathBuf {
    binaries().program(name).unwrap_or_else(|error| panic!("{error}"))
}

pub fn library(name: &str) -> PathBuf {
    binaries().library(name).unwrap_or_else(|error| panic!("{error}"))
}

pub fn cluster(options: Options) -> LocalCluster {
    LocalCluster::start(options).unwrap_or_else(|error| panic!("{error}"))
}

/// The devices that these tests run on, the embedded one at `address`.
pub fn devices_at(address: IpAddr) -> TestDevices {
    TestDevices::chosen(address).unwrap_or_else(|error| panic!("{error}"))
}

/// `times`, or a tenth of it on RDMA devices: there each round makes system calls, in a machine that may be emulated,
/// and some tests would take minutes.
pub fn rounds(times: u32) -> u32 {
    if are_rdma() { times / 10 } else { times }
}

/// A directory of this source tree.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
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
    pub status: ExitStatus,
    pub stdout: String,
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
        assert_eq!(self.status.code(), Some(2), "{self:?}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !is_log(line)).collect();
        assert_eq!(lines.len(), 1, "one line is expected: {self:?}");
        assert!(lines[0].starts_with("error: "), "{self:?}");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} is expected in: {}", lines[0]);
        }
        assert_eq!(self.stdout, "", "nothing is printed for bad input");
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

    /// All of it. To be called when the program has ended.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it only reads");
        }
        self.so_far()
    }
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

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
            let ended = self.has_said_all(); // looked at first: its last words count
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

pub fn run(command: Command) -> Finished {
    start(command).finish()
}

/// Program `name` with `arguments`.
pub fn command(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program(name));
    command.args(arguments);
    command
}

/// The transport benchmark on the device of clients. It needs no cluster: the shipped files are enough, with that device
/// in them, which are put into `directory`.
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

/// Waits until `done` says so, which must be before [`deadline`].
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_or(what, deadline(), done, String::new);
}

/// Waits until `done` says so, which must be before `limit`; a failure is told with the `state`.
pub fn eventually_or(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> bool,
    state: impl Fn() -> String,
) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?} {}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Builds a function library from C source in `directory`.
pub fn c_library(directory: &Path, name: &str, source: &Path, flags: &[&str]) -> PathBuf {
    system_tool("cc");
    let library = directory.join(format!("lib{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).args(flags);
    run(cc).success();
    library
}

/// The functions that misbehave, of `functions/faulty.c`.
pub fn faulty(directory: &Path) -> PathBuf {
    c_library(directory, "faulty", &source("tools/tests/functions/faulty.c"), &[])
}

/// A library whose only function `name` returns its input with `add` added to each byte.
pub fn adder(directory: &Path, name: &str, add: u8) -> PathBuf {
    let text = format!(
        "#include <stdint.h>\n\
         uint32_t {name}(unsigned char *in, uint32_t bytes, unsigned char *out) {{\n\
             for (uint32_t i = 0; i < bytes; i++) out[i] = in[i] + {add};\n\
             return bytes;\n\
         }}\n"
    );
    let source = directory.join(format!("{name}.c"));
    std::fs::write(&source, text).expect("the directory can be written");
    c_library(directory, name, &source, &[])
}

/// A small deployment that sleeps while idle: most tests are not about spinning.
pub fn warm() -> Deployment {
    Deployment::new().spin(Spin::Never).input_bytes(4096).output_bytes(4096)
}

/// Leases `cores` cores and deploys `library`.
pub fn deploy(client: &Client, cores: u32, library: &Path, deployment: &Deployment) -> Executor {
    client
        .lease(LeaseRequest::new(cores, 64))
        .and_then(|lease| lease.deploy_with(library, deployment))
        .unwrap_or_else(|error| panic!("{error:?}"))
}

/// Calls `function` with `input`; returns the output, for which there is room for as many bytes.
pub fn call(executor: &mut Executor, function: &str, input: &[u8]) -> rfaas::Result<Vec<u8>> {
    let room = input.len().max(64);
    call_with_room(executor, function, input, room)
}

/// Calls `function` with `input` and an output of `room` bytes.
pub fn call_with_room(
    executor: &mut Executor,
    function: &str,
    input: &[u8],
    room: usize,
) -> rfaas::Result<Vec<u8>> {
    let function = executor.function(function)?;
    let mut sent = executor.input(input.len().max(1))?;
    sent.write(0, input)?;
    sent.set_len(input.len())?;
    let mut output = executor.output(room)?;
    let bytes = executor.invoke(&function, &sent, &mut output)?;
    output.to_vec(..bytes)
}

/// Kills process `id` as `kill -9` does.
pub fn kill_9(id: u32) {
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL).expect("it runs");
}

/// Whether a process that has ended was ended by `signal`.
pub fn ended_by(finished: &Finished, signal: Signal) -> bool {
    finished.status.signal() == Some(signal as i32)
}
