//! A node in this process, for tests of the client: threads that speak the executor manager's, the
//! executor's and the workers' side of the protocol, and misbehave on demand.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test
#![allow(dead_code)] // each test program uses its part

mod worker;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdmalib::{Access, Device, Provider};
#[allow(unused_imports)] // each test program uses its part
pub use rdmalib_testing::eventually;
use rfaas::{Client, Executor, Lease, LeaseRequest};
use rfaas_config::{DeviceEntry, ExecutorEntry, ExecutorsDatabase, OpenDevice};
use rfaas_protocol::allocation::{
    Allocate, AllocateRefused, Allocated, ExecutorExited, FromClient, LeaseEnding, OutputPart,
    OutputStream, RefusedBecause, Released, Renewed, ToClient,
};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, refuse};
use rfaas_protocol::lease::{EndReason, Reason};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::node::Bill;
use rfaas_protocol::session::{
    CodeDiffers, CodeFrom, ExecutorHello, FromExecutor, FunctionNames, LoadFailed,
};
use rfaas_protocol::{Empty, Hello, Role, Secret, Text};

/// What executors of the node may have, in bytes, as it tells when one ends.
pub const MEMORY_LIMIT_OF_EXECUTORS: u64 = 192 << 20;

/// Ends what hangs; nothing here takes nearly as long.
pub const LONG: Duration = Duration::from_secs(60);

/// What the fake workers can do, by function name, sorted. All but the first are about the
/// protocol.
pub const FUNCTIONS: &[&str] = &[
    "empty",     // returns its input
    "exit",      // ends the executor with status 3
    "flush",     // answers all that `hold` holds, last first, then itself
    "grow",      // returns as many bytes as the first four of its input say
    "hold",      // answers only when `flush` is called
    "late",      // does not answer, but writes to the output for as long as it can
    "misplaced", // answers in place what cannot be, in the way that the first byte of its input says
    "never",     // does not answer, nor does anything after it in this worker
    "oversize",  // says that it has written more than fits
    "segfault",  // kills the executor with signal 11
    "sleep",     // waits as many milliseconds as the first byte of its input says
    "strangers", // answers from a slot that does not exist
    "twice",     // answers twice
    "unplug",    // closes the worker's connection; the executor lives
    "where",     // returns the number of its worker
];

/// How the node treats a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// As it should.
    Well,
    /// Refuses.
    Refused(RefusedBecause),
    /// Says that it has started an executor, which never dials.
    Silent,
    /// As it should, but it gives no sign of life although it promised to.
    NoSignOfLife,
    /// Likewise, and it does not notice that it is given up: as if nothing reached the node.
    OutOfReach,
    /// The executor dies at once, of this signal.
    Dies(i32),
    /// It dials, but dies of this signal when it gets the library.
    DiesLoading(i32),
    /// It cannot load the library.
    LoadFails,
    /// Its node has the library, so it wants no code.
    HasLibrary,
    /// What it receives is not the library that was announced.
    Differs,
    /// Impostors with a wrong secret dial first, then it does.
    Impostors,
    /// Workers offer impossible numbers first, then possible ones.
    WrongNumbers,
    /// The connection ends when the claim arrives.
    HangsUp,
    /// It names more functions than it said there are.
    TooManyFunctions,
}

/// What tests see of, and do to, a node.
#[derive(Debug, Default)]
struct Shared {
    /// Lives until the executor is to end, and how it ends.
    executor_ends: Option<Exit>,
    /// It is told to have been silent.
    executor_silent: bool,
    /// To be told to the client.
    news: Vec<ToClient>,
    /// Connections of clients are closed.
    hang_up: bool,
    stop: bool,
    /// So many claims and renewals are refused, for this reason.
    refusals: u32,
    because: Option<RefusedBecause>,
    /// Claims that were not refused so.
    allocations: u32,
    releases: u32,
    heartbeats: u32,
    /// Ends of leases that were shown, in ms.
    renewals: Vec<u64>,
    clients_gone: u32,
    /// Requests that only brought an input.
    repeated: u32,
    /// Requests that a worker has taken.
    taken: u32,
    /// Executors and workers that run.
    running: u32,
}

impl Shared {
    /// Returns why the next claim or renewal is refused, if it is.
    fn refuses(&mut self) -> Option<RefusedBecause> {
        self.refusals = self.refusals.checked_sub(1)?;
        self.because
    }
}

#[derive(Clone, Copy, Debug)]
struct Exit {
    signal: i32,
    status: i32,
}

/// A node; ends when dropped.
pub struct Node {
    pub device: OpenDevice,
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

/// Opens the embedded device.
pub fn open_device() -> OpenDevice {
    DeviceEntry {
        name: "shm0".into(),
        ip_address: "127.0.0.1".parse().unwrap(),
        port: 0,
        max_inline_data: 0,
        default_receive_buffer_size: 32,
        provider: Provider::Shm,
        trusted_user: None,
    }
    .open()
    .unwrap()
}

impl Node {
    pub fn start(start: Start) -> Node {
        let (address_out, address_in) = channel();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || serve(&start, &of_thread, &address_out));
        let address = address_in.recv().unwrap();
        Node { device: open_device(), address, shared, thread: Some(thread) }
    }

    /// A node that works well and a lease of `cores` cores there.
    pub fn leased(cores: u32) -> (Node, Lease) {
        let node = Node::start(Start::Well);
        let lease = node.client().lease(LeaseRequest::new(cores, 64)).unwrap();
        (node, lease)
    }

    /// Likewise, deployed.
    pub fn deployed(cores: u32, deployment: &rfaas::Deployment) -> (Node, Executor) {
        let (node, lease) = Node::leased(cores);
        let executor = lease.deploy_with(library(), deployment).unwrap();
        (node, executor)
    }

    /// As a list of nodes has it.
    pub fn entry(&self, name: &str, cores: u32) -> ExecutorEntry {
        ExecutorEntry {
            node: name.into(),
            address: self.address.ip().to_string(),
            port: self.address.port(),
            cores,
            memory: 1024,
            labels: Vec::new(),
        }
    }

    /// A client that knows this node only.
    pub fn client(&self) -> Client {
        let executors = vec![self.entry("fake", 128)];
        Client::with_executors(self.device.clone(), ExecutorsDatabase { executors }).unwrap()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Ends the executor by a signal, from outside.
    pub fn kill_executor(&self, signal: i32) {
        self.shared().executor_ends = Some(Exit { signal, status: 0 });
    }

    /// Ends the executor as one that gave no sign of life.
    pub fn kill_silent_executor(&self) {
        self.shared().executor_silent = true;
        self.kill_executor(9);
    }

    /// Tells the client that its lease ends.
    pub fn announce(&self, reason: EndReason, grace_ms: u32) {
        let ending = LeaseEnding { reason: reason.to_wire(), grace_ms: grace_ms.into() };
        self.shared().news.push(ToClient::LeaseEnding(ending));
    }

    /// Closes the connections of clients, as if the manager had died, and ends the executor.
    pub fn hang_up(&self) {
        let mut shared = self.shared();
        shared.hang_up = true;
        shared.executor_ends = Some(Exit { signal: 9, status: 0 });
    }

    /// Requests that only brought an input, since they were what their slot had been asked before.
    pub fn repeated(&self) -> u32 {
        lock(&self.shared).repeated
    }

    /// Requests that its workers have taken so far.
    pub fn taken(&self) -> u32 {
        self.shared().taken
    }

    /// Refuses the next `claims` claims or renewals.
    pub fn refuse(&self, claims: u32, because: RefusedBecause) {
        let mut shared = self.shared();
        shared.refusals = claims;
        shared.because = Some(because);
    }

    pub fn allocations(&self) -> u32 {
        self.shared().allocations
    }

    pub fn releases(&self) -> u32 {
        self.shared().releases
    }

    pub fn heartbeats(&self) -> u32 {
        self.shared().heartbeats
    }

    pub fn renewals(&self) -> Vec<u64> {
        self.shared().renewals.clone()
    }

    pub fn clients_gone(&self) -> u32 {
        self.shared().clients_gone
    }

    /// Executor and worker threads.
    pub fn running(&self) -> u32 {
        self.shared().running
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        {
            let mut shared = self.shared();
            shared.stop = true;
            shared.executor_ends = Some(Exit { signal: 0, status: 0 });
        }
        let thread = self.thread.take().unwrap();
        if !thread::panicking() {
            thread.join().unwrap();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The executor manager: one client after the other.
fn serve(start: &Start, shared: &Arc<Mutex<Shared>>, address: &Sender<SocketAddr>) {
    let device = rdmalib_testing::device(); // as another process would open it
    let mut listener = device.listen(0).unwrap();
    address.send(listener.local_addr()).unwrap();
    while !lock(shared).stop {
        let Some(request) = listener.next(Duration::from_millis(5)).unwrap() else { continue };
        match Hello::parse(request.private_data()) {
            Ok((Role::Allocation, _)) => {
                let mut client = Channel::new(&device, 8).unwrap();
                if client.accept(request, &Empty {}).is_ok() {
                    serve_client(start, shared, &device, &mut client);
                    lock(shared).clients_gone += 1;
                    lock(shared).hang_up = false;
                }
            }
            _ => refuse(request, "this is an executor manager"),
        }
    }
}

/// Nodes here give no signs of life at all; only some are given up for that, once they are deployed to. The others
/// never, however long a test takes.
fn silence_ms(start: &Start) -> u32 {
    if matches!(start, Start::NoSignOfLife | Start::OutOfReach) { 3000 } else { 3_600_000 }
}

fn serve_client(start: &Start, shared: &Arc<Mutex<Shared>>, device: &Device, client: &mut Channel) {
    let mut executor: Option<Fake> = None;
    loop {
        {
            let mut shared = lock(shared);
            if shared.stop || shared.hang_up {
                break;
            }
            for message in shared.news.drain(..) {
                client.send(&message).ok();
            }
        }
        if let Some(exit) = executor.as_mut().and_then(|fake| fake.exited.try_recv().ok()) {
            let message = ExecutorExited {
                signal: exit.signal.into(),
                status: exit.status.into(),
                silent: u16::from(lock(shared).executor_silent).into(),
                memory_limit: MEMORY_LIMIT_OF_EXECUTORS.into(),
                memory_used: MEMORY_LIMIT_OF_EXECUTORS.into(),
            };
            client.send(&ToClient::ExecutorExited(message)).ok();
            // Afterwards: unlike a process, its threads may still be waiting for the client.
            executor.take().unwrap().join();
        }
        match client.receive(Duration::from_millis(1)) {
            Ok(Incoming::Message(FromClient::Allocate(allocate))) => {
                assert!(executor.is_none(), "claimed again while the executor runs");
                if let Some(because) = lock(shared).refuses() {
                    client.send(&refusal(because)).unwrap();
                    continue;
                }
                lock(shared).allocations += 1;
                match start {
                    Start::HangsUp => break,
                    Start::Refused(because) => client.send(&refusal(*because)).unwrap(),
                    _ => {
                        client
                            .send(&ToClient::Allocated(Allocated {
                                lease: 77.into(),
                                heartbeat_ms: 20.into(),
                                silence_ms: silence_ms(start).into(),
                            }))
                            .unwrap();
                        executor = Some(Fake::start(start, shared, device, &allocate));
                    }
                }
            }
            Ok(Incoming::Message(FromClient::Release(_))) => {
                lock(shared).releases += 1;
                lock(shared).executor_ends = Some(Exit { signal: 15, status: 0 });
                if let Some(fake) = executor.take() {
                    fake.join();
                }
                let bill = Bill { invocations: 5.into(), ..Bill::default() };
                client.send(&ToClient::Released(Released { bill })).ok();
            }
            Ok(Incoming::Message(FromClient::Heartbeat(_))) => lock(shared).heartbeats += 1,
            Ok(Incoming::Message(FromClient::ReadOutput(read))) => {
                // Ten bytes were dropped before these.
                let (from, text) = (read.from.get(), b"printed");
                let rest = &text[(from.saturating_sub(10) as usize).min(text.len())..];
                let part = OutputPart::new(from, from.max(10), 17, OutputStream::Stderr, rest);
                client.send(&ToClient::OutputPart(part)).ok();
            }
            Ok(Incoming::Message(FromClient::Renew(renew))) => {
                if let Some(because) = lock(shared).refuses() {
                    client.send(&refusal(because)).unwrap();
                    continue;
                }
                let expires_at_ms = renew.signed.terms.expires_at_ms;
                lock(shared).renewals.push(expires_at_ms.get());
                client.send(&ToClient::Renewed(Renewed { expires_at_ms })).ok();
            }
            Ok(Incoming::Written { .. }) => panic!("a client writes nothing here"),
            Err(ChannelError::TimedOut { .. }) => {}
            Err(_) if *start == Start::OutOfReach => thread::sleep(Duration::from_millis(1)),
            Err(_) => break,
        }
    }
    lock(shared).executor_ends = Some(Exit { signal: 9, status: 0 });
    client.disconnect();
    if let Some(fake) = executor {
        fake.join();
    }
}

fn refusal(because: RefusedBecause) -> ToClient {
    let reason = Reason::truncated("as the test wants it");
    ToClient::Refused(AllocateRefused { because: because.to_wire(), reason })
}

/// An executor process, as threads.
struct Fake {
    exited: Receiver<Exit>,
    threads: Vec<JoinHandle<()>>,
}

impl Fake {
    fn start(
        start: &Start,
        shared: &Arc<Mutex<Shared>>,
        device: &Device,
        allocate: &Allocate,
    ) -> Fake {
        lock(shared).executor_ends = None;
        let (exits, exited) = channel();
        let mut threads = Vec::new();
        match start {
            Start::Silent => return Fake { exited, threads },
            Start::Dies(signal) => {
                exits.send(Exit { signal: *signal, status: 0 }).unwrap();
                return Fake { exited, threads };
            }
            _ => {}
        }
        let allocate = *allocate;
        let cores = allocate.signed.terms.cores.get();
        for index in 0..cores {
            let (start, shared, device) = (start.clone(), Arc::clone(shared), device.clone());
            threads.push(thread::spawn(move || {
                let _running = Running::new(&shared);
                worker::run(&start, &shared, &device, &allocate, u16::try_from(index).unwrap());
            }));
        }
        let (start, shared, device) = (start.clone(), Arc::clone(shared), device.clone());
        threads.push(thread::spawn(move || {
            let _running = Running::new(&shared);
            let exit = control(&start, &shared, &device, &allocate);
            // The workers go with the process; then the manager hears of it.
            lock(&shared).executor_ends.get_or_insert(exit);
            let exit = lock(&shared).executor_ends.unwrap();
            exits.send(exit).ok();
        }));
        Fake { exited, threads }
    }

    fn join(self) {
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

struct Running(Arc<Mutex<Shared>>);

impl Running {
    fn new(shared: &Arc<Mutex<Shared>>) -> Self {
        lock(shared).running += 1;
        Running(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0).running -= 1;
    }
}

/// The main thread of an executor: takes the code, names the functions, ends with its client.
fn control(start: &Start, shared: &Mutex<Shared>, device: &Device, allocate: &Allocate) -> Exit {
    let mut channel = Channel::new(device, 4).unwrap();
    let code_bytes = allocate.code_bytes.get();
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
    let code = channel.domain().allocate(code_bytes as usize, access).unwrap();
    let hello = |session| ExecutorHello {
        session,
        code_addr: code.remote().addr.into(),
        code_key: code.remote().key.into(),
        code_from: match start {
            Start::HasLibrary => CodeFrom::Node.to_wire(),
            _ => CodeFrom::Client.to_wire(),
        },
    };
    if *start == Start::Impostors {
        let mut impostor = Channel::new(device, 4).unwrap();
        let hello = hello(Secret::generate());
        let refused = impostor.connect(allocate.client.into(), Role::Executor, &hello, LONG);
        assert!(matches!(refused, Err(ChannelError::Refused(why)) if why.contains("secret")));
        let mut confused = Channel::new(device, 4).unwrap();
        let hello = ExecutorHello { session: allocate.session, code_from: 9.into(), ..hello };
        let refused = confused.connect(allocate.client.into(), Role::Executor, &hello, LONG);
        assert!(matches!(refused, Err(ChannelError::Refused(why)) if why.contains("code")));
        let mut stranger = Channel::new(device, 4).unwrap();
        let refused = stranger.connect(allocate.client.into(), Role::Lease, &Empty {}, LONG);
        assert!(matches!(refused, Err(ChannelError::Refused(_))));
    }
    let exit = Exit { signal: 0, status: 0 };
    let hello = hello(allocate.session);
    if channel.connect(allocate.client.into(), Role::Executor, &hello, LONG).is_err() {
        return exit;
    }
    let is_sent = *start != Start::HasLibrary;
    if is_sent {
        match channel.receive::<FromExecutor>(LONG) {
            Ok(Incoming::Written { immediate, .. }) => assert_eq!(immediate, code_bytes),
            _ => return exit,
        }
    }
    match start {
        Start::DiesLoading(signal) => return Exit { signal: *signal, status: 0 },
        Start::LoadFails => {
            let reason = Text::truncated("libmissing.so: cannot open shared object file");
            channel.send(&FromExecutor::LoadFailed(LoadFailed { reason })).unwrap();
            channel.flush(LONG).ok();
            return Exit { signal: 0, status: 1 };
        }
        Start::Differs => {
            let received = LibraryHash([7; 32]);
            channel.send(&FromExecutor::CodeDiffers(CodeDiffers { received })).unwrap();
            channel.flush(LONG).ok();
            return Exit { signal: 0, status: 3 };
        }
        _ => {}
    }
    let mut sent = vec![0; code_bytes as usize];
    code.read(0, &mut sent).unwrap();
    let shipped = std::fs::read(library()).unwrap();
    assert_eq!(allocate.code_hash, LibraryHash::of(&shipped), "it was announced");
    if is_sent {
        assert_eq!(sent, shipped, "the library arrived as it is");
    } else {
        assert!(sent.iter().all(|byte| *byte == 0), "nothing was written, nor is it later");
    }
    let names: Vec<_> = FUNCTIONS.iter().map(|&name| name.to_owned()).collect();
    let (all, _) = FunctionNames::from(&names, 0);
    // Names that come in parts are one list, too.
    let (last, _) = FunctionNames::from(&names, 1);
    let (mut first, _) = FunctionNames::from(&names[..1], 0);
    first.count = all.count;
    let mut more = first;
    more.first = all.count;
    let parts: &[FunctionNames] = match start {
        Start::TooManyFunctions => &[all, more],
        _ => &[first, last],
    };
    for (sent, names) in parts.iter().enumerate() {
        if let Err(error) = channel.send(&FromExecutor::Functions(*names)) {
            // The client does not listen to the end of a list that is too long.
            assert!(sent > 0, "{error}");
            return exit;
        }
    }
    loop {
        if let Some(exit) = lock(shared).executor_ends {
            return exit;
        }
        match channel.receive::<FromExecutor>(Duration::from_millis(2)) {
            Err(ChannelError::TimedOut { .. }) => {}
            _ => return exit, // the client has gone
        }
    }
}

/// A function library: the smallest ELF file that exports functions would do, and the test
/// program's own C library is one that every machine has.
pub fn library() -> std::path::PathBuf {
    use std::sync::OnceLock;
    static LIBRARY: OnceLock<std::path::PathBuf> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let is_libc = |path: &&str| path.contains("/libc.so") || path.contains("/libc-");
            maps.lines()
                .filter_map(|line| line.split_whitespace().nth(5))
                .find(is_libc)
                .expect("tests are linked with the C library")
                .into()
        })
        .clone()
}
