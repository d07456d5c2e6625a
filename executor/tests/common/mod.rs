//! A client and an executor manager for one executor process: what it connects to, driven by hand.

#![allow(dead_code)] // each test uses its part
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdmalib::{Access, ConnectRequest, Device, Listener, RemoteAddress};
pub use rdmalib_testing::{device, eventually, wait_for};
use rfaas_protocol::assignment::{
    AssignedDevice, Assignment, HexSecret, Instructions, LibraryFile, Standby,
};
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::session::{CodeFrom, ExecutorHello, FromExecutor, WorkerHello};
use rfaas_protocol::{Empty, Hello, Role, Secret, parse_prefix};

mod manager;
mod worker;
pub use manager::*;
pub use worker::*;

/// Longest wait for something that has to happen; far longer than it takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

const MANAGER_SECRET: Secret = Secret([1; 16]);
const SESSION_SECRET: Secret = Secret([2; 16]);

/// Compiles `source` (a path below this crate) with the system's compiler into a function library.
pub fn compile(source: &str, options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::read(compile_to(source, &dir.path().join("library.so"), options)).unwrap()
}

pub fn compile_to(source: &str, library: &Path, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let compiler = if source.extension().is_some_and(|e| e == "cpp") { "c++" } else { "cc" };
    let status = Command::new(compiler)
        .args(["-O1", "-Wall", "-shared", "-fPIC", "-o"])
        .args([library, &source])
        .args(options)
        .status()
        .expect("the system has a C compiler");
    assert!(status.success(), "{compiler} {source:?}");
    library.to_owned()
}

/// The library of functions that misbehave.
pub fn faulty() -> Vec<u8> {
    compile("../tools/testkit/functions/faulty.c", &[])
}

/// What a test wants of its executor.
pub struct Setup {
    pub workers: u16,
    pub slots: u16,
    pub input_bytes: u32,
    pub output_bytes: u32,
    pub hot_timeout_ms: i64,
    pub pin_to: Option<Vec<usize>>,
    pub max_inline_data: u32,
    pub heartbeat_ms: u32,
    /// Long, since the test gives no signs of life of the manager.
    pub silence_ms: u32,
    /// Soft limit of descriptors that its manager was started with.
    pub open_files: u64,
    /// The executor is one of a graph.
    pub graph: bool,
    pub env: Vec<(String, String)>,
}

impl Default for Setup {
    /// One warm worker with four slots of 4 KiB.
    fn default() -> Self {
        Setup {
            workers: 1,
            slots: 4,
            input_bytes: 4096,
            output_bytes: 4096,
            hot_timeout_ms: 0,
            pin_to: None,
            max_inline_data: 0,
            heartbeat_ms: 1000,
            silence_ms: 600_000,
            open_files: 1024,
            graph: false,
            env: vec![],
        }
    }
}

/// One executor process and what it is connected to.
pub struct Session {
    pub device: Device,
    pub child: Child,
    pub manager: Manager,
    pub control: Option<Channel>,
    /// Where its code comes from, as it says.
    pub code_from: Option<CodeFrom>,
    pub workers: Vec<Worker>,
    pub functions: Vec<String>,
    pub listener: Listener,
}

/// What a client hears about its library.
pub type Listed = Result<Vec<String>, String>;

pub fn instructions(
    setup: &Setup,
    manager: SocketAddr,
    client: SocketAddr,
    code: &[u8],
) -> Instructions {
    let standby = standby(setup, manager, setup.workers);
    Instructions { standby, assignment: Some(assignment(setup, client, code)) }
}

/// What an executor of `most_workers` knows before it has a lease.
pub fn standby(setup: &Setup, manager: SocketAddr, most_workers: u16) -> Standby {
    Standby {
        device: AssignedDevice {
            name: "shm0".into(),
            provider: "shm".into(),
            ip_address: [127, 0, 0, 1].into(),
            max_inline_data: setup.max_inline_data,
        },
        manager,
        manager_secret: HexSecret(MANAGER_SECRET),
        most_workers,
        open_files: setup.open_files,
        heartbeat_ms: setup.heartbeat_ms,
        silence_ms: setup.silence_ms,
        sandbox: None,
        memory: None,
        preload: vec![],
    }
}

pub fn assignment(setup: &Setup, client: SocketAddr, code: &[u8]) -> Assignment {
    Assignment {
        lease: 7,
        memory: 512,
        client,
        session_secret: HexSecret(SESSION_SECRET),
        workers: setup.workers,
        pin_to: setup.pin_to.clone(),
        slots: setup.slots,
        input_bytes: setup.input_bytes,
        output_bytes: setup.output_bytes,
        code_bytes: code.len() as u32,
        code_hash: LibraryHash::of(code),
        library: LibraryFile::Absent,
        hot_timeout_ms: setup.hot_timeout_ms,
        graph: setup.graph,
    }
}

/// Starts the program with `input` on standard input.
pub fn spawn(input: &str, env: &[(String, String)]) -> Child {
    let mut executor = Command::new(env!("CARGO_BIN_EXE_executor"));
    spawn_as(executor.envs(env.iter().map(|(key, value)| (key, value))), input)
}

/// Likewise, as `command`.
pub fn spawn_as(command: &mut Command, input: &str) -> Child {
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may not want to read
    child
}

impl Session {
    /// Starts an executor with `code` and waits until it serves.
    pub fn start(setup: &Setup, code: &[u8]) -> Session {
        let (mut session, listed) = Session::start_and_list(setup, code);
        session.functions = listed.expect("the library is loaded");
        session
    }

    /// A hot worker whose function `allocations_so_far` tells what its thread has allocated, and `echo`.
    pub fn counting_allocations() -> Session {
        let dir = tempfile::tempdir().unwrap(); // not needed once the executor runs
        let counter = dir.path().join("counter.so");
        compile_to("tests/functions/count_malloc.c", &counter, &["-ldl"]);
        let setup = Setup {
            hot_timeout_ms: -1,
            env: vec![("LD_PRELOAD".into(), counter.to_str().unwrap().into())],
            ..Setup::default()
        };
        Session::start(&setup, &compile("tests/functions/allocations.c", &[]))
    }

    /// Starts an executor with `code`; returns what it says about the library.
    pub fn start_and_list(setup: &Setup, code: &[u8]) -> (Session, Listed) {
        let mut session = Session::spawn(setup, code);
        session.connect(setup, code);
        let listed = session.listed();
        (session, listed)
    }

    /// Starts an executor that nobody answers yet.
    pub fn spawn(setup: &Setup, code: &[u8]) -> Session {
        Session::spawn_by(setup, code, |assignment| spawn(assignment, &setup.env))
    }

    /// Likewise, started by `spawn` with its instructions.
    pub fn spawn_by(setup: &Setup, code: &[u8], spawn: impl FnOnce(&str) -> Child) -> Session {
        let device = device();
        let manager = Manager::new(&device);
        let listener = device.listen(0).unwrap();
        let instructions =
            instructions(setup, manager.listener.local_addr(), listener.local_addr(), code);
        let child = spawn(&serde_json::to_string(&instructions).unwrap());
        Session::of(device, child, manager, listener)
    }

    /// An executor that is at the other ends of these.
    pub fn of(device: Device, child: Child, manager: Manager, listener: Listener) -> Session {
        Session {
            device,
            child,
            manager,
            control: None,
            code_from: None,
            workers: vec![],
            functions: vec![],
            listener,
        }
    }

    /// Accepts the executor, its workers and their accounts, and sends the code, if there is any.
    pub fn connect(&mut self, setup: &Setup, code: &[u8]) {
        let workers = usize::from(setup.workers);
        eventually("all connections", || {
            self.accept_next(setup, code);
            // One more for the signs of life.
            let counting = self.manager.connections.len();
            counting == workers + 1 && self.workers.len() == workers && self.control.is_some()
        });
        self.workers.sort_by_key(|worker| worker.hello.worker.get());
    }

    /// Accepts the executor and sends the code, and accepts who else comes in the next `time`: a worker
    /// may need the dynamic loader's lock, which a constructor that hangs does not give back.
    pub fn connect_control(&mut self, setup: &Setup, code: &[u8], time: Duration) {
        eventually("the executor's connection", || {
            self.accept_next(setup, code);
            self.control.is_some()
        });
        let start = Instant::now();
        while start.elapsed() < time {
            self.accept_next(setup, code);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn accept_next(&mut self, setup: &Setup, code: &[u8]) {
        if let Some(request) = self.manager.listener.try_next().unwrap() {
            self.manager.accept(&self.device, request);
        }
        if let Some(request) = self.listener.try_next().unwrap() {
            self.accept(setup, code, request);
        }
    }

    /// Accepts one that comes to the client; the executor itself is sent the code.
    pub fn accept(&mut self, setup: &Setup, code: &[u8], request: ConnectRequest) {
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        match role {
            Role::Executor => {
                let hello: ExecutorHello = parse_prefix(body).unwrap();
                assert_eq!(hello.session, SESSION_SECRET);
                let mut control = Channel::new(&self.device, 16).unwrap();
                control.accept(request, &Empty {}).unwrap();
                let from = CodeFrom::from_wire(hello.code_from).unwrap();
                self.code_from = Some(from);
                if from == CodeFrom::Node || code.is_empty() {
                    self.control = Some(control);
                    return;
                }
                let source = control.domain().allocate(code.len(), Access::empty()).unwrap();
                source.write(0, code).unwrap();
                let to = RemoteAddress { addr: hello.code_addr.get(), key: hello.code_key.get() };
                control.write_with_immediate(&source, code.len(), to, 0).unwrap();
                control.flush(DEADLINE).unwrap();
                self.control = Some(control);
            }
            Role::Worker => {
                let hello: WorkerHello = parse_prefix(body).unwrap();
                assert_eq!(hello.session, SESSION_SECRET);
                assert_eq!(hello.slots.get(), setup.slots);
                assert_eq!(hello.input_addr.get() % 64, 0);
                self.workers.push(Worker::accept(&self.device, request, hello, setup.output_bytes));
            }
            other => panic!("{other:?}"),
        }
    }

    /// What the executor says about the library.
    pub fn listed(&mut self) -> Listed {
        let mut names = vec![];
        while !self.listed_next(&mut names)? {}
        Ok(names)
    }

    /// Adds what it says next to the `names` that it has said. Returns whether these are all.
    pub fn listed_next(&mut self, names: &mut Vec<String>) -> Result<bool, String> {
        match self.control.as_mut().unwrap().receive(DEADLINE).unwrap() {
            Incoming::Message(FromExecutor::Functions(part)) => {
                assert_eq!(part.first.get() as usize, names.len());
                names.extend(part.get().unwrap().into_iter().map(str::to_owned));
                Ok(names.len() == part.count.get() as usize)
            }
            Incoming::Message(FromExecutor::LoadFailed(failed)) => {
                Err(failed.reason.get().unwrap().to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Number of the function `name`.
    pub fn function(&self, name: &str) -> u32 {
        self.functions.iter().position(|f| f == name).expect("a function of the library") as u32
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal as its manager, which this process is.
    pub fn signal(&self, signal: &str) {
        let signal: Signal = format!("SIG{signal}").parse().unwrap();
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub fn exit_status(&mut self) -> ExitStatus {
        exit_status(&mut self.child)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn exit_status(child: &mut Child) -> ExitStatus {
    wait_for("the end of the executor", || child.try_wait().unwrap())
}
