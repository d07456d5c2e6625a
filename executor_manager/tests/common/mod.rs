//! A real executor manager on an embedded device, with shell scripts as executors, and the test as
//! its client, its executor's worker, and its resource manager.
#![allow(dead_code, unused_imports)] // each test binary uses its part
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdmalib::{
    Access, CompletionQueue, Device, Flags, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, Status, WorkRequest,
};
use rfaas_config::SECRET_VARIABLE;
use rfaas_protocol::accounting::{AccountingHello, Counters};
use rfaas_protocol::allocation::ToClient;
use rfaas_protocol::assignment::{Assignment, Instructions};
use rfaas_protocol::lease::Token;
use rfaas_protocol::{Hello, Role, Secret, parse_prefix};
use tempfile::TempDir;

mod client;
mod resource_manager;
pub use client::*;
pub use rdmalib_testing::*;
#[allow(unused_imports)] // each test binary uses its part
pub use resource_manager::*;

/// Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const NODE: &str = "exec-mgr-node";
pub const SECRET: &[u8] = b"42";

/// Keeps its instructions, runs until it is told to stop.
pub const OBEDIENT: &str = "trap 'exit 0' TERM
echo $$ >> $DIR/pids
cat > $DIR/input.$$ && mv $DIR/input.$$ $DIR/instructions
while :; do sleep 0.01; done";

/// Stops for SIGKILL only.
pub const STUBBORN: &str = "trap '' TERM
echo $$ >> $DIR/pids
while :; do sleep 0.01; done";

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
    /// How executors are started: a script is no zygote.
    pub launch: &'static str,
    /// Variables that executors get.
    pub environment: Vec<String>,
    pub program: PathBuf,
}

impl Setup {
    pub fn new(executor: &str) -> Self {
        let setup = Setup::without_executor(tempfile::tempdir().unwrap());
        setup.script(executor);
        setup
    }

    /// Likewise, with the program in that directory too, and nothing else of what was built.
    pub fn apart() -> Self {
        // On the file system of the program: a copy might be open for writing in a process that another test
        // starts at that moment, and could not be run.
        let mut setup =
            Setup::without_executor(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let program = setup.path("executor_manager");
        fs::hard_link(&setup.program, &program).unwrap();
        setup.program = program;
        setup
    }

    fn without_executor(directory: TempDir) -> Self {
        Setup {
            directory,
            resource_manager: None,
            cores: 4,
            memory: 1024,
            pin_threads: false,
            sleep: true,
            heartbeat_ms: 1000,
            silence_ms: 60_000,
            drain_ms: 200,
            launch: "exec",
            environment: vec!["DIR".into()],
            program: env!("CARGO_BIN_EXE_executor_manager").into(),
        }
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
                "executor": {{"launch": "{}", "isolation": "none", "use_docker": false, "repetitions": 100, "warmup_iters": 0,
                "pin_threads": {}, "environment": {:?}}}}}"#,
            self.sleep,
            self.cores,
            self.memory,
            self.heartbeat_ms,
            self.silence_ms,
            self.drain_ms,
            self.launch,
            self.pin_threads,
            self.environment
        )
    }

    /// The command, with its configuration written; its log goes to a file.
    pub fn command(&self) -> Command {
        self.command_by(Command::new(&self.program))
    }

    /// The same, run by a shell that does `first` before it becomes the program.
    pub fn command_after(&self, first: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{first}; exec \"$0\" \"$@\"")]).arg(&self.program);
        self.command_by(shell)
    }

    /// The same, by a command that ends with the program.
    pub fn command_by(&self, mut command: Command) -> Command {
        let devices = r#"{"devices": [{"name": "shm0", "ip_address": "127.0.0.1", "port": 0,
            "max_inline_data": 0, "default_receive_buffer_size": 32, "provider": "shm"}]}"#;
        fs::write(self.path("devices.json"), devices).unwrap();
        fs::write(self.path("executor_manager.json"), self.config()).unwrap();
        let path = format!("{}:/usr/bin:/bin", self.directory.path().display());
        command
            .current_dir(self.directory.path())
            .args(["-c", "executor_manager.json", "--device-database", "devices.json", "-v"])
            .env("PATH", path)
            .env("DIR", self.directory.path())
            .env_remove("RUST_LOG")
            .env_remove(SECRET_VARIABLE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("log")).unwrap());
        if self.resource_manager.is_none() {
            command.arg("--skip-resource-manager");
        }
        command
    }

    pub fn start(self) -> Node {
        let command = self.command();
        self.start_as(command)
    }

    /// Starts it by a shell that does `first` before it becomes the program.
    pub fn start_after(self, first: &str) -> Node {
        let command = self.command_after(first);
        self.start_as(command)
    }

    pub fn start_as(self, mut command: Command) -> Node {
        let process = command.spawn().unwrap();
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

    /// The assignment of the executor that was started last; its instructions are taken.
    pub fn assignment(&self) -> Assignment {
        self.instructions().assignment.unwrap()
    }

    /// The instructions of the executor that was started last; taken.
    pub fn instructions(&self) -> Instructions {
        let path = self.setup.path("instructions");
        let text = wait_for("instructions", || fs::read(&path).ok());
        fs::remove_file(path).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One for the lease of `token`.
    pub fn client_for(&self, token: &Token) -> Client {
        let terms = &token.terms;
        Client::connect_for(self.address, terms.lease.get(), terms.instance.get())
    }
}

/// Waits until `cores` can be leased, by leasing and releasing them.
pub fn wait_until_free(node: &Node, cores: u32) {
    let mut client = node.client();
    wait_for("free cores", || match client.ask(allocate(unsigned(cores))) {
        ToClient::Allocated(_) => Some(()),
        _ => None,
    });
    client.release();
}

/// A node that sleeps while there is nothing to do, and one that polls.
pub fn nodes(executor: &str) -> [Node; 2] {
    [true, false].map(|sleep| {
        let mut setup = Setup::new(executor);
        setup.sleep = sleep;
        setup.start()
    })
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the executor manager:\n{}", self.log());
        }
        // After two SIGINT it ends at once, and its scripts with it, which know no other end. Two that wait to
        // be read are one.
        wait_for("the end of the executor manager", || {
            let ended = self.process.try_wait().unwrap();
            if ended.is_none() {
                self.signal(Signal::SIGINT);
            }
            ended
        });
    }
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
