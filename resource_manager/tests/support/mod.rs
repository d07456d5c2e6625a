//! A real `resource_manager` process on the embedded device, and peers that speak to it: an executor
//! manager and a client made of nothing but a control connection.

#![allow(dead_code)] // each test program uses a part
#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
pub use rdmalib_testing::{device, wait_for};
use rfaas_api::NewNode;
use rfaas_config::ClusterSecret;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{
    ClientName, EndReason, FromClient, GangRequest, GraphWorker, LeaseGranted, LeaseRenew,
    LeaseRequest, NodeName, ToClient, Token,
};
use rfaas_protocol::node::{
    Bill, EndLease, FromNode, LeaseClaimed, LeaseEnded, ManagerProof, NodeHello, Register, ToNode,
};
use rfaas_protocol::{Clock, Empty, Nonce, Nonces, Role, Text, parse_prefix};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that anything may take; far more than it does, since machines may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Files that a resource manager starts with.
pub struct Files {
    pub directory: TempDir,
}

impl Files {
    /// Settings with free ports and `extra` keys.
    pub fn new(extra: &[(&str, Value)]) -> Self {
        let files = Files { directory: tempfile::tempdir().unwrap() };
        let mut config = json!({
            "rdma_device": "shm0", "rdma_device_port": 0,
            "http_network_address": "127.0.0.1", "http_network_port": 0,
            "rdma-threads": 1, "rdma-secret": 42, "rdma-sleep": true,
            // A machine that is busy may take long from a grant to its claim.
            "claim_timeout_ms": 3_600_000,
        });
        for (key, value) in extra {
            config[key] = value.clone();
        }
        files.write("resource_manager.json", &json!({ "config": config }).to_string());
        let device = json!({
            "name": "shm0", "ip_address": "127.0.0.1", "port": 0, "max_inline_data": 0,
            "default_receive_buffer_size": 32, "provider": "shm",
        });
        files.write("devices.json", &json!({ "devices": [device] }).to_string());
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_resource_manager"));
        command
            .current_dir(self.directory.path())
            .args(["-c", "resource_manager.json", "--device-database", "devices.json"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs one that is not expected to serve.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

/// The body that adds a node on this machine.
pub fn new_node(cores: u32, memory: u32) -> String {
    let (ip_address, labels) = (LOCALHOST.to_string(), None);
    let node = NewNode { ip_address, port: 10_005, cores, memory, labels };
    serde_json::to_string(&node).unwrap()
}

/// A running resource manager; killed when dropped.
pub struct Manager {
    child: Child,
    log: Receiver<String>,
    /// What it logged before it listened.
    pub greeting: String,
    pub rdma: SocketAddr,
    pub http: SocketAddr,
}

impl Manager {
    /// Starts one and waits until it listens.
    pub fn start(files: &Files, arguments: &[&str]) -> Self {
        Manager::spawn(files.command(arguments))
    }

    /// Starts one by a shell that limits what it may use before.
    pub fn start_limited(files: &Files, limit: &str, arguments: &[&str]) -> Self {
        let manager = files.command(arguments);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]);
        shell.arg(manager.get_program()).args(manager.get_args());
        shell.current_dir(files.directory.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        Manager::spawn(shell)
    }

    /// Starts one by this command.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("resource_manager: {line}");
                let _ = sender.send(line);
            }
        });
        let mut greeting = String::new();
        let mut address = |text: &str| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let line: String = log.recv_timeout(left).expect("it listens");
                greeting += &line;
                if let Some((_, address)) = line.split_once(text) {
                    return address.trim().parse().unwrap();
                }
            }
        };
        let rdma = address("Listening on device shm0, address ");
        let http = address("HTTP interface at ");
        Manager { child, log, greeting, rdma, http }
    }

    /// Waits for a line of its log.
    pub fn logs(&self, text: &str) {
        wait_for(text, || self.log.try_iter().find(|line| line.contains(text)));
    }

    /// Whether a line with this has come that was not waited for.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.try_iter().any(|line| line.contains(text))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Ends it with `signal`, returns its exit status.
    pub fn end(mut self, signal: Signal) -> Option<i32> {
        kill(self.pid(), signal).unwrap();
        self.ended()
    }

    /// Waits until it has ended, returns its exit status.
    pub fn ended(&mut self) -> Option<i32> {
        wait_for("its end", || self.child.try_wait().unwrap()).code()
    }

    /// Status and JSON answer of an HTTP request.
    pub fn call(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, text) = http(self.http, method, target, body).unwrap();
        (status, serde_json::from_str(&text).unwrap())
    }

    /// What `/metrics` says of the first whose name begins so.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = http(self.http, "GET", "/metrics", "").unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    pub fn get(&self, target: &str) -> Value {
        self.call("GET", target, "").1
    }

    /// Adds a node as the tutorial does.
    pub fn add(&self, node: &str, cores: u32, memory: u32) {
        let body = new_node(cores, memory);
        let answer = self.call("POST", &format!("/add?node={node}"), &body);
        assert_eq!(answer.0, 200, "{answer:?}");
    }

    pub fn node_state(&self, node: &str) -> Option<String> {
        self.get(&format!("/nodes/{node}"))["state"].as_str().map(str::to_owned)
    }

    pub fn wait_node(&self, node: &str, state: &str) {
        wait_for(state, || self.node_state(node).filter(|s| s == state));
    }

    pub fn lease_state(&self, id: u64) -> Option<String> {
        self.get(&format!("/leases/{id}"))["state"].as_str().map(str::to_owned)
    }

    pub fn wait_lease(&self, id: u64, state: &str) {
        wait_for(state, || self.lease_state(id).filter(|s| s == state));
    }

    /// The bill of a lease, of which there may be only one.
    pub fn bill(&self, id: u64) -> Option<Value> {
        let bills = self.get("/billing");
        let mut of_lease = bills.as_array().unwrap().iter().filter(|bill| bill["lease"] == id);
        let bill = of_lease.next().cloned();
        assert!(of_lease.next().is_none(), "billed twice: {bills}");
        bill
    }

    pub fn wait_bill(&self, id: u64) -> Value {
        wait_for("a bill", || self.bill(id))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and text of an HTTP request; an error if nobody is there to answer all of it.
pub fn http(at: SocketAddr, method: &str, target: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = "Host: x\r\nConnection: close";
    let request =
        format!("{method} {target} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(cut)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    if head.lines().any(|line| line == "transfer-encoding: chunked") {
        return Ok((status, unchunked(body).ok_or_else(cut)?)); // a list of several pages
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length.and_then(|length| length.parse::<usize>().ok()) {
        Some(length) if body.len() == length => Ok((status, body.to_owned())),
        _ => Err(cut()),
    }
}

/// What was sent in chunks (RFC 9112, 7.1), if all of them are there.
fn unchunked(mut chunks: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body += rest.get(..length)?;
        chunks = rest.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// Connects to a resource manager as `role`.
pub fn dial(manager: SocketAddr, role: Role) -> Result<Channel, ChannelError> {
    let mut channel = Channel::new(&device(), 64)?;
    channel.connect(manager, role, &Empty {}, PATIENCE)?;
    Ok(channel)
}

/// Connects to a resource manager as an executor manager whose secret is `secret`; it must prove that it has the
/// same.
pub fn dial_node(manager: SocketAddr, secret: &[u8]) -> Result<(Channel, Nonces), ChannelError> {
    let (channel, nonces, proved) = meet(manager, secret)?;
    assert!(proved, "the resource manager has another secret");
    Ok((channel, nonces))
}

/// Likewise; returns whether it proved that.
pub fn meet(manager: SocketAddr, secret: &[u8]) -> Result<(Channel, Nonces, bool), ChannelError> {
    let mut channel = Channel::new(&device(), 64)?;
    let hello = NodeHello { nonce: Nonce::generate() };
    let answer = channel.connect(manager, Role::Node, &hello, PATIENCE)?;
    let proof: ManagerProof = parse_prefix(answer.as_slice())?;
    let nonces = Nonces { caller: hello.nonce, called: proof.nonce };
    Ok((channel, nonces, proof.verify(&hello, manager, secret).is_some()))
}

/// Where all nodes here say that they listen.
pub fn listens() -> SocketAddr {
    SocketAddr::new(LOCALHOST, 10_005)
}

/// Which run executor managers here are unless a test says otherwise: they come back as the same.
pub const INSTANCE: u64 = 7;

/// An executor manager that does what a test says, and sends heartbeats by itself once it is
/// registered, however slow the test is.
pub struct Node {
    channel: Arc<Mutex<Channel>>,
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Node {
    /// Connects and registers; the answer may be a refusal.
    pub fn register(manager: SocketAddr, name: &str, secret: u32) -> (Self, ToNode) {
        Node::register_as(manager, name, secret, INSTANCE)
    }

    fn register_as(manager: SocketAddr, name: &str, secret: u32, instance: u64) -> (Self, ToNode) {
        let secret = ClusterSecret::of(&secret.into());
        let (mut channel, nonces, _) = meet(manager, secret.bytes()).unwrap();
        let name = NodeName::new(name).unwrap();
        let register = Register::new(name, instance, listens(), &nonces, secret.bytes());
        channel.send(&FromNode::Register(register)).unwrap();
        let mut node = Node { channel: Arc::new(Mutex::new(channel)), heart: None };
        let answer = node.receive();
        if matches!(answer, ToNode::Registered(_)) {
            let (stop, stopped) = std::sync::mpsc::channel();
            let channel = node.channel.clone();
            let beat = move || {
                while stopped.recv_timeout(Duration::from_millis(500))
                    == Err(RecvTimeoutError::Timeout)
                {
                    // It fails when the connection has ended; the test finds out by itself.
                    let beat = FromNode::Heartbeat(Clock::now());
                    let _ = channel.lock().unwrap().send_unannounced(&beat); // as ours do
                }
            };
            node.heart = Some((stop, std::thread::spawn(beat)));
        }
        (node, answer)
    }

    /// One that is taken.
    pub fn ready(manager: SocketAddr, name: &str) -> Self {
        Node::ready_as(manager, name, INSTANCE)
    }

    /// One that is taken, of this run.
    pub fn ready_as(manager: SocketAddr, name: &str, instance: u64) -> Self {
        let (node, answer) = Node::register_as(manager, name, 42, instance);
        assert!(matches!(answer, ToNode::Registered(_)), "{answer:?}");
        node
    }

    /// Stops sending heartbeats.
    pub fn fall_silent(&mut self) {
        if let Some((stop, thread)) = self.heart.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }

    /// The next message, heartbeats included; an error once the connection has ended.
    pub fn next(&mut self) -> Result<ToNode, ChannelError> {
        wait_for("a message", || match self.channel.lock().unwrap().try_receive::<ToNode>() {
            Ok(None) => None,
            Ok(Some(Incoming::Message(message))) => Some(Ok(message)),
            Ok(Some(Incoming::Written { .. })) => panic!("nobody may write here"),
            Err(error) => Some(Err(error)),
        })
    }

    /// The next message that is not a heartbeat.
    pub fn receive(&mut self) -> ToNode {
        loop {
            match self.next().expect("it is told something") {
                ToNode::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    /// Waits until the resource manager has ended the connection, whatever it says before.
    pub fn ended(&mut self) {
        while self.next().is_ok() {}
    }

    pub fn send(&mut self, message: &FromNode) {
        self.channel.lock().unwrap().send(message).unwrap();
    }

    pub fn claim(&mut self, token: &Token) {
        self.send(&FromNode::Claimed(LeaseClaimed { terms: token.terms }));
    }

    /// Reports an end, with 7 ms of use.
    pub fn report(&mut self, token: &Token, reason: EndReason) {
        self.try_report(token, reason).unwrap();
    }

    /// Likewise, if the manager has room for it.
    pub fn try_report(&mut self, token: &Token, reason: EndReason) -> Result<(), ChannelError> {
        let bill = Bill {
            allocated_ns: 7_000_000.into(),
            hot_polling_ns: 2.into(),
            execution_ns: 3.into(),
            invocations: 4.into(),
        };
        let ended = LeaseEnded { terms: token.terms, reason: reason.to_wire(), bill };
        self.channel.lock().unwrap().send(&FromNode::Ended(ended))
    }

    /// Waits until an end was acknowledged.
    pub fn acknowledged(&mut self, token: &Token) {
        match self.receive() {
            ToNode::EndedAck(ack) => assert_eq!(ack.lease, token.terms.lease),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it is told to end a lease.
    pub fn told_to_end(&mut self, token: &Token) -> EndLease {
        match self.receive() {
            ToNode::EndLease(end) => {
                assert_eq!(end.lease, token.terms.lease);
                end
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fall_silent(); // so that the connection ends here
    }
}

/// A client that does what a test says.
pub struct Client {
    pub channel: Channel,
}

impl Client {
    pub fn new(manager: SocketAddr) -> Self {
        Client { channel: dial(manager, Role::Lease).unwrap() }
    }

    pub fn ask(&mut self, cores: u32, memory: u32, timeout_ms: u64) -> ToClient {
        self.ask_nodes(cores, memory, timeout_ms, 1);
        self.answer()
    }

    /// Asks for a lease that may be met from several nodes, without waiting for the answers.
    pub fn ask_nodes(&mut self, cores: u32, memory: u32, timeout_ms: u64, max_nodes: u32) {
        let client = ClientName::new("tester").unwrap();
        let request = LeaseRequest {
            request: 5.into(),
            cores: cores.into(),
            memory: memory.into(),
            timeout_ms: timeout_ms.into(),
            max_nodes: max_nodes.into(),
            client,
        };
        self.channel.send(&FromClient::Request(request)).unwrap();
    }

    /// Asks for leases of a core that may wait for room, as question `request`, without waiting for the answer.
    pub fn ask_gang(&mut self, request: u32, leases: u32, wait_ms: u64) {
        let gang = GangRequest::new(request.into(), leases, (1, 1), 3_600_000);
        self.channel.send(&FromClient::Gang(gang.with(request, wait_ms))).unwrap();
    }

    /// Says that `lease` is for a worker of graph 7, "words".
    pub fn note_worker(&mut self, lease: &LeaseGranted, worker: u16, functions: &str) {
        let said = GraphWorker {
            lease: lease.token.terms.lease,
            graph: 7.into(),
            lane: 0.into(),
            worker: worker.into(),
            name: Text::truncated("words"),
            functions: Text::truncated(functions),
        };
        self.channel.send(&FromClient::Worker(said)).unwrap();
    }

    /// Asks for more time.
    pub fn renew(&mut self, token: Token, timeout_ms: u64) -> ToClient {
        let renew = LeaseRenew { request: 6.into(), timeout_ms: timeout_ms.into(), token };
        self.channel.send(&FromClient::Renew(renew)).unwrap();
        self.answer()
    }

    /// The next answer.
    pub fn answer(&mut self) -> ToClient {
        match self.channel.receive::<ToClient>(PATIENCE).unwrap() {
            Incoming::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    pub fn lease(&mut self, cores: u32, memory: u32) -> LeaseGranted {
        match self.ask(cores, memory, 3_600_000) {
            ToClient::Granted(granted) => granted,
            other => panic!("{other:?}"),
        }
    }
}

/// An executors database with one node.
pub fn database(path: &Path, node: &str, cores: u32) {
    let entry = json!({
        "node": node, "address": "127.0.0.1", "port": 10_005, "cores": cores, "memory": 512,
    });
    std::fs::write(path, json!({ "executors": [entry] }).to_string()).unwrap();
}
