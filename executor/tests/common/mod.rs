//! A client and an executor manager for one executor process: what it connects to, driven by hand.

#![allow(dead_code)] // each test uses its part
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, DeviceSpec, Flags, Listener, Operation,
    Provider, QueuePair, QueuePairConfig, Region, RemoteAddress, Source, Status, WorkCompletion,
    WorkRequest,
};
use rfaas::channel::{Channel, Incoming};
use rfaas::protocol::accounting::{AccountingHello, COUNTERS_BYTES, Counters};
use rfaas::protocol::accounting::{
    EXECUTION_NS, EXECUTOR_BEATS, HOT_POLLING_NS, INVOCATIONS, MANAGER_BEATS,
};
use rfaas::protocol::assignment::{AssignedDevice, Assignment, HexSecret};
use rfaas::protocol::invocation::{FailureDetail, ReplyImmediate, ReplyStatus, RequestHeader};
use rfaas::protocol::session::{ExecutorHello, FromExecutor, WorkerHello};
use rfaas::protocol::{Empty, Hello, Role, Secret, parse_prefix};
use zerocopy::{FromBytes, IntoBytes};

/// Longest wait for something that has to happen; far longer than it takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

const MANAGER_SECRET: Secret = Secret([1; 16]);
const SESSION_SECRET: Secret = Secret([2; 16]);

pub fn device() -> Device {
    Device::open(&DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    })
    .unwrap()
}

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
    compile("../tools/tests/functions/faulty.c", &[])
}

/// Waits until `happened`.
pub fn eventually<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = happened() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
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
            env: vec![],
        }
    }
}

/// The executor's accounting, as its manager has it.
pub struct Manager {
    pub listener: Listener,
    counters: Region,
    beats: u64,
    domain: rdmalib::Domain,
    pub connections: Vec<(QueuePair, CompletionQueue)>,
}

impl Manager {
    fn new(device: &Device) -> Self {
        let domain = device.domain().unwrap();
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        let counters = domain.allocate(COUNTERS_BYTES, access).unwrap();
        let listener = device.listen(0).unwrap();
        Manager { listener, counters, beats: 0, domain, connections: vec![] }
    }

    pub fn accept(&mut self, device: &Device, request: ConnectRequest) {
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        assert_eq!(role, Role::Accounting);
        let hello: AccountingHello = parse_prefix(body).unwrap();
        assert_eq!(hello.secret, MANAGER_SECRET);
        let queue = device.completion_queue(16).unwrap();
        let config =
            QueuePairConfig { send_depth: 1, receive_depth: 1, ..QueuePairConfig::default() };
        let mut pair = QueuePair::new(&self.domain, &queue, &queue, &config).unwrap();
        let place = self.counters.remote();
        let answer = Counters { addr: place.addr.into(), key: place.key.into() };
        request.accept(&mut pair, answer.as_bytes()).unwrap();
        self.connections.push((pair, queue));
    }

    pub fn hot_polling_ns(&self) -> u64 {
        self.counters.load_u64(HOT_POLLING_NS as usize).unwrap()
    }

    pub fn execution_ns(&self) -> u64 {
        self.counters.load_u64(EXECUTION_NS as usize).unwrap()
    }

    pub fn executors_beats(&self) -> u64 {
        self.counters.load_u64(EXECUTOR_BEATS as usize).unwrap()
    }

    /// Gives a sign of life of the manager.
    pub fn beat(&mut self) {
        self.beats += 1;
        self.counters.store_u64(MANAGER_BEATS as usize, self.beats).unwrap();
    }

    pub fn invocations(&self) -> u64 {
        self.counters.load_u64(INVOCATIONS as usize).unwrap()
    }
}

/// A reply, as the client saw it.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub slot: u16,
    pub status: ReplyStatus,
    pub sequence: u8,
    pub output: Vec<u8>,
    pub needed_bytes: u64,
}

/// The client's end of one worker.
pub struct Worker {
    pub pair: QueuePair,
    pub queue: CompletionQueue,
    pub hello: WorkerHello,
    input: Region,
    pub output: Region,
    output_stride: usize,
    sequence: u32,
}

impl Worker {
    fn accept(device: &Device, request: ConnectRequest, hello: WorkerHello, output: u32) -> Self {
        let domain = device.domain().unwrap();
        let slots = u32::from(hello.slots.get());
        let config = QueuePairConfig {
            send_depth: 4 * slots,
            receive_depth: 4 * slots,
            ..QueuePairConfig::default()
        };
        let queue = device.completion_queue(8 * slots).unwrap();
        let mut pair = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
        for _ in 0..4 * slots {
            pair.post_receive(0, None).unwrap();
        }
        let output_stride = 64 + (output as usize).next_multiple_of(64);
        let input = slots as usize * hello.slot_stride.get() as usize;
        let remote = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let mut worker = Worker {
            input: domain.allocate(input, Access::empty()).unwrap(),
            output: domain.allocate(slots as usize * output_stride, remote).unwrap(),
            pair,
            queue,
            hello,
            output_stride,
            sequence: 0,
        };
        request.accept(&mut worker.pair, Empty {}.as_bytes()).unwrap();
        worker
    }

    /// A header for `slot` as a well-behaved client makes it.
    pub fn header(&mut self, slot: u16, function: u32, input_bytes: usize) -> RequestHeader {
        self.sequence += 1;
        let place =
            self.output.remote().offset((usize::from(slot) * self.output_stride + 64) as u64);
        RequestHeader {
            reply_addr: place.addr.into(),
            reply_key: place.key.into(),
            output_capacity: ((self.output_stride - 64) as u32).into(),
            function: function.into(),
            input_bytes: (input_bytes as u32).into(),
            sequence: self.sequence.into(),
            reserved: 0.into(),
        }
    }

    /// Writes `bytes` where `slot`'s header is, with `immediate`.
    pub fn write(&mut self, slot: u16, bytes: &[u8], immediate: Option<u32>) {
        let start = usize::from(slot) * self.hello.slot_stride.get() as usize + 32;
        self.input.write(start, bytes).unwrap();
        let to = RemoteAddress {
            addr: self.hello.input_addr.get() + start as u64,
            key: self.hello.input_key.get(),
        };
        let source = Source::Region(self.input.slice(start..start + bytes.len()).unwrap());
        self.pair
            .post(&WorkRequest {
                id: 1,
                operation: Operation::Write { source, to, immediate },
                flags: Flags::SIGNALED,
            })
            .unwrap();
    }

    pub fn submit_with(&mut self, header: RequestHeader, slot: u16, input: &[u8]) {
        let message = [header.as_bytes(), input].concat();
        self.write(slot, &message, Some(slot.into()));
    }

    /// Asks for `function`, without waiting.
    pub fn submit(&mut self, slot: u16, function: u32, input: &[u8]) {
        let header = self.header(slot, function, input.len());
        self.submit_with(header, slot, input);
    }

    /// What completes next, except for sends; `None` when the connection is over.
    fn completion(&mut self) -> Option<WorkCompletion> {
        let start = Instant::now();
        loop {
            match self.queue.poll_one() {
                Some(done) if done.status != Status::Success => return None,
                Some(done) if done.id == 0 => return Some(done),
                Some(_) => {}
                None => {
                    assert!(start.elapsed() < DEADLINE, "no reply within {DEADLINE:?}");
                    self.queue.wait(Some(Duration::from_millis(100))).unwrap();
                }
            }
        }
    }

    /// The next reply; `None` when the connection is over.
    pub fn reply(&mut self) -> Option<Reply> {
        let done = self.completion()?;
        self.pair.post_receive(0, None).unwrap();
        let reply = ReplyImmediate::from_wire(done.immediate.unwrap()).unwrap();
        let area = usize::from(reply.slot) * self.output_stride;
        let ok = reply.status == ReplyStatus::Ok;
        let mut output = vec![0; if ok { done.bytes as usize } else { 0 }];
        self.output.read(area + 64, &mut output).unwrap();
        let mut detail = [0; size_of::<FailureDetail>()];
        if !ok {
            assert_eq!(done.bytes as usize, detail.len());
            self.output.read(area, &mut detail).unwrap();
        }
        let detail = FailureDetail::read_from_bytes(&detail).unwrap();
        Some(Reply {
            slot: reply.slot,
            status: reply.status,
            sequence: reply.sequence,
            output,
            needed_bytes: detail.needed_bytes.get(),
        })
    }

    /// Calls `function` in slot 0 and returns its output.
    pub fn call(&mut self, function: u32, input: &[u8]) -> Vec<u8> {
        self.submit(0, function, input);
        let reply = self.reply().expect("the worker answers");
        assert_eq!((reply.slot, reply.status), (0, ReplyStatus::Ok));
        assert_eq!(reply.sequence, self.sequence as u8);
        reply.output
    }

    /// Whether the worker ends the connection.
    pub fn ends(&mut self) -> bool {
        eventually("the end of the connection", || {
            while let Some(done) = self.queue.poll_one() {
                if done.status != Status::Success {
                    return Some(true);
                }
            }
            None
        })
    }
}

/// One executor process and what it is connected to.
pub struct Session {
    pub device: Device,
    pub child: Child,
    pub manager: Manager,
    pub control: Option<Channel>,
    pub workers: Vec<Worker>,
    pub functions: Vec<String>,
    pub listener: Listener,
}

/// What a client hears about its library.
pub type Listed = Result<Vec<String>, String>;

pub fn assignment(
    setup: &Setup,
    manager: SocketAddr,
    client: SocketAddr,
    code: &[u8],
) -> Assignment {
    Assignment {
        lease: 7,
        device: AssignedDevice {
            name: "shm0".into(),
            provider: "shm".into(),
            ip_address: [127, 0, 0, 1].into(),
            max_inline_data: setup.max_inline_data,
        },
        manager,
        manager_secret: HexSecret(MANAGER_SECRET),
        client,
        session_secret: HexSecret(SESSION_SECRET),
        workers: setup.workers,
        pin_to: setup.pin_to.clone(),
        slots: setup.slots,
        input_bytes: setup.input_bytes,
        output_bytes: setup.output_bytes,
        code_bytes: code.len() as u32,
        hot_timeout_ms: setup.hot_timeout_ms,
        heartbeat_ms: setup.heartbeat_ms,
        silence_ms: setup.silence_ms,
    }
}

/// Starts the program with `input` on standard input.
pub fn spawn(input: &str, env: &[(String, String)]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_executor"))
        .envs(env.iter().map(|(key, value)| (key, value)))
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

    /// Likewise, started by `spawn` with its assignment.
    pub fn spawn_by(setup: &Setup, code: &[u8], spawn: impl FnOnce(&str) -> Child) -> Session {
        let device = device();
        let manager = Manager::new(&device);
        let listener = device.listen(0).unwrap();
        let assignment =
            assignment(setup, manager.listener.local_addr(), listener.local_addr(), code);
        let child = spawn(&serde_json::to_string(&assignment).unwrap());
        Session {
            device,
            child,
            manager,
            control: None,
            workers: vec![],
            functions: vec![],
            listener,
        }
    }

    /// Accepts the executor, its workers and their accounts, and sends the code.
    pub fn connect(&mut self, setup: &Setup, code: &[u8]) {
        let workers = usize::from(setup.workers);
        eventually("all connections", || {
            self.accept_next(setup, code);
            // One more for the signs of life.
            (self.manager.connections.len() == workers + 1 && self.workers.len() == workers)
                .then_some(())
        });
        self.workers.sort_by_key(|worker| worker.hello.worker.get());
    }

    /// Accepts the executor and sends the code, and accepts who else comes in the next `time`: a worker
    /// may need the dynamic loader's lock, which a constructor that hangs does not give back.
    pub fn connect_control(&mut self, setup: &Setup, code: &[u8], time: Duration) {
        eventually("the executor's connection", || {
            self.accept_next(setup, code);
            self.control.is_some().then_some(())
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

    fn accept(&mut self, setup: &Setup, code: &[u8], request: ConnectRequest) {
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        match role {
            Role::Executor => {
                let hello: ExecutorHello = parse_prefix(body).unwrap();
                assert_eq!(hello.session, SESSION_SECRET);
                let mut control = Channel::new(&self.device, 16).unwrap();
                control.accept(request, &Empty {}).unwrap();
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

    fn listed(&mut self) -> Listed {
        let control = self.control.as_mut().unwrap();
        let mut names = vec![];
        loop {
            match control.receive(DEADLINE).unwrap() {
                Incoming::Message(FromExecutor::Function(entry)) => {
                    assert_eq!(entry.index.get() as usize, names.len());
                    names.push(entry.name.get().unwrap().to_owned());
                    if names.len() == entry.count.get() as usize {
                        return Ok(names);
                    }
                }
                Incoming::Message(FromExecutor::LoadFailed(failed)) => {
                    return Err(failed.reason.get().unwrap().to_owned());
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Number of the function `name`.
    pub fn function(&self, name: &str) -> u32 {
        self.functions.iter().position(|f| f == name).expect("a function of the library") as u32
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
        assert!(status.success());
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
    eventually("the end of the executor", || child.try_wait().unwrap())
}
