//! A real executor manager on an embedded device, with shell scripts as executors, and the test as
//! its client, its executor's worker, and its resource manager.
#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdmalib::{
    Access, CompletionQueue, Device, DeviceSpec, Flags, Listener, Operation, Provider, QueuePair,
    QueuePairConfig, Region, RemoteAddress, Status, WorkRequest,
};
use rfaas::channel::{Channel, ChannelError, Incoming};
use rfaas::protocol::accounting::{AccountingHello, Counters};
use rfaas::protocol::allocation::{
    Allocate, AllocateRefused, FromClient, RefusedBecause, Renew, ToClient,
};
use rfaas::protocol::assignment::Assignment;
use rfaas::protocol::lease::{ClientName, EndReason, LeaseTerms, NodeName, Token};
use rfaas::protocol::node::{Bill, Challenge, FromNode, LeaseUsed, Registered, ToNode};
use rfaas::protocol::{Empty, Hello, Role, Secret, parse_prefix};
use tempfile::TempDir;

/// Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const NODE: &str = "exec-mgr-node";
pub const SECRET: &[u8] = b"42";

/// Keeps its assignment, runs until it is told to stop.
pub const OBEDIENT: &str = "trap 'exit 0' TERM
echo $$ >> $DIR/pids
cat > $DIR/assignment.$$ && mv $DIR/assignment.$$ $DIR/assignment
while :; do sleep 0.01; done";

/// Stops for SIGKILL only.
pub const STUBBORN: &str = "trap '' TERM
echo $$ >> $DIR/pids
while :; do sleep 0.01; done";

pub fn device() -> Device {
    let spec = DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    };
    Device::open(&spec).unwrap()
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process runs; a zombie does not.
pub fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Configuration and executor of a node in a directory of its own.
pub struct Setup {
    pub directory: TempDir,
    pub resource_manager: Option<SocketAddr>,
    pub cores: u32,
    pub memory: u32,
    pub pin_threads: bool,
    pub sleep: bool,
    pub heartbeat_ms: u32,
    /// Long, since the scripts give no sign of life.
    pub silence_ms: u32,
    pub drain_ms: u32,
}

impl Setup {
    pub fn new(executor: &str) -> Self {
        let setup = Setup {
            directory: tempfile::tempdir().unwrap(),
            resource_manager: None,
            cores: 4,
            memory: 1024,
            pin_threads: false,
            sleep: true,
            heartbeat_ms: 1000,
            silence_ms: 60_000,
            drain_ms: 200,
        };
        setup.script(executor);
        setup
    }

    /// Makes `script` the executor of processes that start from now on.
    pub fn script(&self, script: &str) {
        let program = self.path("executor");
        let fresh = self.path("executor.new");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(fresh, program).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> String {
        let (address, port) = match self.resource_manager {
            Some(address) => (address.ip().to_string(), address.port()),
            None => (String::new(), 0),
        };
        format!(
            r#"{{"config": {{"rdma_device": "shm0", "rdma_device_port": 0, "node_name": "{NODE}",
                "resource_manager_address": "{address}", "resource_manager_port": {port},
                "resource_manager_secret": 42, "rdma-sleep": {}, "cores": {}, "memory": {},
                "heartbeat_ms": {}, "silence_ms": {}, "drain_ms": {}}},
                "executor": {{"use_docker": false, "repetitions": 100, "warmup_iters": 0,
                "pin_threads": {}}}}}"#,
            self.sleep,
            self.cores,
            self.memory,
            self.heartbeat_ms,
            self.silence_ms,
            self.drain_ms,
            self.pin_threads
        )
    }

    /// The command, with its configuration written; its log goes to a file.
    pub fn command(&self) -> Command {
        let devices = r#"{"devices": [{"name": "shm0", "ip_address": "127.0.0.1", "port": 0,
            "max_inline_data": 0, "default_receive_buffer_size": 32, "provider": "shm"}]}"#;
        fs::write(self.path("devices.json"), devices).unwrap();
        fs::write(self.path("executor_manager.json"), self.config()).unwrap();
        let path = format!("{}:/usr/bin:/bin", self.directory.path().display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_executor_manager"));
        command
            .current_dir(self.directory.path())
            .args(["-c", "executor_manager.json", "--device-database", "devices.json", "-v"])
            .env("PATH", path)
            .env("DIR", self.directory.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("log")).unwrap());
        if self.resource_manager.is_none() {
            command.arg("--skip-resource-manager");
        }
        command
    }

    pub fn start(self) -> Node {
        let process = self.command().spawn().unwrap();
        let mut node = Node { setup: self, process, address: "0.0.0.0:0".parse().unwrap() };
        let line = node.wait_for_log("Listening on device shm0, address ");
        let address = line.rsplit("address ").next().unwrap();
        node.address = address.parse().unwrap();
        node
    }
}

/// A running executor manager; killed when dropped.
pub struct Node {
    pub setup: Setup,
    process: Child,
    pub address: SocketAddr,
}

impl Node {
    /// Without a resource manager.
    pub fn alone(executor: &str) -> Self {
        Setup::new(executor).start()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.setup.path("log")).unwrap()
    }

    /// The first line of the log with `text`.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            let written = log.rfind('\n').map_or("", |end| &log[..end]);
            if let Some(line) = written.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "it ended with {ended:?}:\n{log}");
            assert!(start.elapsed() < PATIENCE, "no line with {text:?} in\n{log}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the executor manager", || self.process.try_wait().unwrap())
    }

    /// Asks it to stop, and checks that it does so in order.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "{status:?}, signal {:?}:\n{}",
            status.signal(),
            self.log()
        );
    }

    /// Process ids of the executors that were started so far, at least `count`.
    pub fn executors(&self, count: usize) -> Vec<i32> {
        wait_for("executors", || {
            let text = fs::read_to_string(self.setup.path("pids")).ok()?;
            let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            (pids.len() >= count && text.ends_with('\n')).then_some(pids)
        })
    }

    /// The assignment of the executor that was started last; taken.
    pub fn assignment(&self) -> Assignment {
        let path = self.setup.path("assignment");
        let text = wait_for("an assignment", || fs::read(&path).ok());
        fs::remove_file(path).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the executor manager:\n{}", self.log());
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            // Two signals: it ends at once, and its scripts with it, which know no other end.
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGINT);
            self.wait();
        }
    }
}

pub fn terms(lease: u64, cores: u32, memory: u32, lasts: Duration) -> LeaseTerms {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + lasts;
    LeaseTerms {
        lease: lease.into(),
        cores: cores.into(),
        memory: memory.into(),
        expires_at_ms: (end.as_millis() as u64).into(),
        instance: 0.into(),
        node: NodeName::new(NODE).unwrap(),
        client: ClientName::new("tester").unwrap(),
    }
}

pub fn hour() -> Duration {
    Duration::from_secs(3600)
}

pub fn unsigned(cores: u32) -> Token {
    Token::unsigned(terms(0, cores, 100, hour()))
}

pub fn allocate(token: Token) -> Allocate {
    Allocate {
        token,
        client: SocketAddr::from(([127, 0, 0, 1], 4000)).into(),
        session: Secret([9; 16]),
        hot_timeout_ms: (-1).into(),
        input_bytes: 64.into(),
        output_bytes: 64.into(),
        code_bytes: 1000.into(),
        slots: 4.into(),
    }
}

pub struct Client {
    pub channel: Channel,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let mut channel = Channel::new(&device(), 16).unwrap();
        channel.connect(address, Role::Allocation, &Empty {}, PATIENCE).unwrap();
        Client { channel }
    }

    pub fn send(&mut self, message: &FromClient) {
        self.channel.send(message).unwrap();
    }

    /// The next message that is not a heartbeat, which it answers.
    pub fn next(&mut self) -> ToClient {
        loop {
            match self.channel.receive(PATIENCE).unwrap() {
                Incoming::Message(ToClient::Heartbeat(_)) => self.beat(),
                Incoming::Message(message) => return message,
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn beat(&mut self) {
        self.send(&FromClient::Heartbeat(Empty {}));
    }

    /// The next heartbeat, which must come before anything else.
    pub fn heartbeat(&mut self) {
        let next = self.channel.receive(PATIENCE).unwrap();
        assert!(matches!(next, Incoming::Message(ToClient::Heartbeat(_))), "{next:?}");
    }

    /// Waits for the end of the connection, saying nothing.
    pub fn ended(&mut self) {
        loop {
            match self.channel.receive::<ToClient>(PATIENCE) {
                Err(ChannelError::Disconnected) => return,
                Ok(Incoming::Message(ToClient::Heartbeat(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn ask(&mut self, allocate: Allocate) -> ToClient {
        self.send(&FromClient::Allocate(allocate));
        self.next()
    }

    /// Claims; returns the number of the lease.
    pub fn claim(&mut self, token: Token) -> u64 {
        match self.ask(allocate(token)) {
            ToClient::Allocated(allocated) => allocated.lease.get(),
            other => panic!("{other:?}"),
        }
    }

    /// Claims and is refused.
    pub fn refused(&mut self, allocate: Allocate) -> (RefusedBecause, String) {
        match self.ask(allocate) {
            ToClient::Refused(refused) => why(&refused),
            other => panic!("{other:?}"),
        }
    }

    /// Renews; returns the new end, in ms since the epoch.
    pub fn renew(&mut self, token: Token) -> Result<u64, (RefusedBecause, String)> {
        self.send(&FromClient::Renew(Renew { token }));
        match self.next() {
            ToClient::Renewed(renewed) => Ok(renewed.expires_at_ms.get()),
            ToClient::Refused(refused) => Err(why(&refused)),
            other => panic!("{other:?}"),
        }
    }

    pub fn release(&mut self) -> Bill {
        self.send(&FromClient::Release(Empty {}));
        match self.next() {
            ToClient::Released(released) => released.bill,
            other => panic!("{other:?}"),
        }
    }

    /// Waits to be told that the lease ends; returns why and the grace in ms.
    pub fn ending(&mut self) -> (EndReason, u32) {
        match self.next() {
            ToClient::LeaseEnding(ending) => {
                (EndReason::from_wire(ending.reason).unwrap(), ending.grace_ms.get())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn why(refused: &AllocateRefused) -> (RefusedBecause, String) {
    let because = RefusedBecause::from_wire(refused.because).unwrap();
    (because, refused.reason.get().unwrap().to_owned())
}

/// A worker of an executor, as far as the manager sees it.
pub struct Worker {
    queue_pair: QueuePair,
    completions: CompletionQueue,
    old: Region,
    counters: RemoteAddress,
}

impl Worker {
    pub fn connect(manager: SocketAddr, secret: Secret) -> Result<Self, rdmalib::Error> {
        let device = device();
        let domain = device.domain()?;
        let completions = device.completion_queue(16)?;
        let config =
            QueuePairConfig { send_depth: 4, receive_depth: 4, ..QueuePairConfig::default() };
        let mut queue_pair = QueuePair::new(&domain, &completions, &completions, &config)?;
        let hello = Hello::with(Role::Accounting, &AccountingHello { secret });
        let answer = queue_pair.connect(manager, &hello, PATIENCE)?;
        let counters: Counters = parse_prefix(answer.as_slice()).unwrap();
        let counters = RemoteAddress { addr: counters.addr.get(), key: counters.key.get() };
        let old = domain.allocate(8, Access::LOCAL_WRITE)?;
        Ok(Worker { queue_pair, completions, old, counters })
    }

    /// Adds to the counter at `offset`; returns its old value.
    pub fn fetch_add(&mut self, offset: u64, add: u64) -> u64 {
        assert_eq!(self.add(offset, add), Status::Success);
        self.old.load_u64(0).unwrap()
    }

    /// Adds to the counter at `offset`; returns how that ended.
    pub fn add(&mut self, offset: u64, add: u64) -> Status {
        let request = WorkRequest {
            id: 1,
            operation: Operation::FetchAdd {
                into: self.old.slice(0..8).unwrap(),
                at: self.counters.offset(offset),
                add,
            },
            flags: Flags::SIGNALED,
        };
        self.queue_pair.post(&request).unwrap();
        wait_for("the end of an addition", || self.completions.poll_one()).status
    }
}

/// The test as resource manager.
pub struct ResourceManager {
    pub listener: Listener,
    device: Device,
}

impl ResourceManager {
    pub fn new() -> Self {
        let device = device();
        ResourceManager { listener: device.listen(0).unwrap(), device }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// A node that reports to this one.
    pub fn node(&self, executor: &str) -> Setup {
        let mut setup = Setup::new(executor);
        setup.resource_manager = Some(self.address());
        setup
    }

    /// Takes a node's connection and its registration, which must be one of the cluster.
    pub fn meet(&mut self) -> NodeLink {
        let request = self.listener.next(PATIENCE).unwrap().expect("a node connects");
        let (role, _) = Hello::parse(request.private_data()).unwrap();
        assert_eq!(role, Role::Node);
        let challenge = Challenge { nonce: [7; 32] };
        let mut channel = Channel::new(&self.device, 64).unwrap();
        channel.accept(request, &challenge).unwrap();
        let mut link = NodeLink { channel, instance: 0 };
        match link.next() {
            FromNode::Register(register) => {
                assert!(register.verify(&challenge, SECRET));
                assert_eq!(register.node.get(), Ok(NODE));
                link.instance = register.instance.get();
                assert_ne!(link.instance, 0);
            }
            other => panic!("{other:?}"),
        }
        link
    }

    /// Takes a node's registration and grants it four cores.
    pub fn register(&mut self) -> NodeLink {
        self.register_with(1000, 5000)
    }

    /// Likewise, with these signs of life.
    pub fn register_with(&mut self, heartbeat_ms: u32, silence_ms: u32) -> NodeLink {
        let mut link = self.meet();
        link.send(&ToNode::Registered(Registered {
            cores: 4.into(),
            memory: 1024.into(),
            heartbeat_ms: heartbeat_ms.into(),
            silence_ms: silence_ms.into(),
        }));
        link
    }
}

pub struct NodeLink {
    pub channel: Channel,
    /// Of the executor manager that registered.
    pub instance: u64,
}

impl NodeLink {
    /// Terms of a lease that is granted for this run of the node.
    pub fn terms(&self, lease: u64, cores: u32, lasts: Duration) -> LeaseTerms {
        LeaseTerms { instance: self.instance.into(), ..terms(lease, cores, 100, lasts) }
    }

    pub fn signed(&self, lease: u64, cores: u32) -> Token {
        Token::sign(self.terms(lease, cores, hour()), SECRET)
    }

    pub fn send(&mut self, message: &ToNode) {
        self.channel.send(message).unwrap();
    }

    /// The next message, of any kind.
    pub fn next(&mut self) -> FromNode {
        match self.channel.receive(PATIENCE).unwrap() {
            Incoming::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    /// The next message that is neither a heartbeat nor what comes with it. Keeps the node content
    /// meanwhile.
    pub fn next_report(&mut self) -> FromNode {
        loop {
            match self.next() {
                FromNode::Heartbeat(_) => self.send(&ToNode::Heartbeat(Empty {})),
                FromNode::Used(_) => {}
                report => return report,
            }
        }
    }

    /// The next report of what a lease used so far. Keeps the node content meanwhile.
    pub fn used(&mut self) -> LeaseUsed {
        loop {
            match self.next() {
                FromNode::Heartbeat(_) => self.send(&ToNode::Heartbeat(Empty {})),
                FromNode::Used(used) => return used,
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn claimed(&mut self) -> u64 {
        match self.next_report() {
            FromNode::Claimed(claimed) => claimed.terms.lease.get(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits to be told that the node is to stop; returns the time left in ms.
    pub fn draining(&mut self) -> u32 {
        match self.next_report() {
            FromNode::Draining(draining) => draining.grace_ms.get(),
            other => panic!("{other:?}"),
        }
    }

    pub fn ended(&mut self) -> (u64, EndReason, Bill) {
        match self.next_report() {
            FromNode::Ended(ended) => {
                let reason = EndReason::from_wire(ended.reason).unwrap();
                (ended.terms.lease.get(), reason, ended.bill)
            }
            other => panic!("{other:?}"),
        }
    }
}
