//! DURABLE FIRST, with a store that takes its time and one that fails.

use std::io;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdmalib_testing::device;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::constraints::MAX_GANG;
use rfaas_protocol::lease::{
    ClientName, EndReason, FromClient, GangRequest, LeaseGranted, LeaseId, LeaseRequest, NodeName,
    ToClient, Token,
};
use rfaas_protocol::node::{
    Bill, FromNode, LeaseClaimed, LeaseEnded, ManagerProof, NodeHello, Register, ToNode,
};
use rfaas_protocol::{Bytes, Empty, MessageKind, Nonce};

use super::*;
use crate::commands::{Stopped, commands};
use crate::pool::{Capacity, MOST_WAITING_OF_ONE, NodeSpec};
use crate::state::StateFile;

/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to listen for what must not come.
const A_WHILE: Duration = Duration::from_millis(100);
const SECRET: &[u8] = b"secret";

/// What happens when the store is to be synced to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Done,
    Waits,
    Fails,
}

/// A store in memory with a disk that does what a test says.
#[derive(Clone, Debug)]
struct Disk(Arc<(Mutex<Sync>, Condvar)>);

impl Disk {
    fn set(&self, sync: Sync) {
        *self.0.0.lock().unwrap() = sync;
        self.0.1.notify_all();
    }
}

#[derive(Debug)]
struct Backend(InMemoryBackend, Disk);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (sync, changed) = &*self.1.0;
        let waits = |sync: &mut Sync| *sync == Sync::Waits;
        match *changed.wait_while(sync.lock().unwrap(), waits).unwrap() {
            Sync::Fails => Err(io::ErrorKind::StorageFull.into()),
            _ => self.0.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A server with node `a`, on a disk.
struct World {
    disk: Disk,
    state: Arc<StateFile>,
    commands: Commands,
    address: SocketAddr,
    server: Option<JoinHandle<anyhow::Result<()>>>,
}

impl World {
    fn new() -> Self {
        let (mut world, server) = World::paused();
        world.server = Some(thread::spawn(move || server.run()));
        world
    }

    /// One whose server does what a test has it do.
    fn paused() -> (Self, Server) {
        let disk = Disk(Arc::new((Mutex::new(Sync::Done), Condvar::new())));
        let backend = Backend(InMemoryBackend::new(), disk.clone());
        let state = Arc::new(StateFile::with_backend(backend).unwrap());
        let now = Now::read();
        let mut pool = Pool::new(now, Duration::from_secs(10));
        state.begin(pool.first_id()).unwrap();
        let capacity = Capacity { cores: 4, memory: 64 };
        let spec = NodeSpec::new("a", "127.0.0.1", 10_005, capacity).unwrap();
        pool.add_node(now, spec, &mut Vec::new()).unwrap();
        let events = Arc::new(LoopEvents::default());
        let mut ledger = Ledger::new(state.clone(), events.clone(), Duration::from_secs(1));
        ledger.settle(now, pool.take_changes()).unwrap();
        let (device, (commands, inbox)) = (device(), commands().unwrap());
        let listener = device.listen(0).unwrap();
        let address = listener.local_addr();
        let heartbeat = Heartbeat::from_ms(60_000, 600_000); // not in between
        let terms = ClusterTerms { secret: SECRET.into(), heartbeat, sleep: true };
        let ends = (commands.clone(), inbox);
        let server = Server::new((device, listener), ends, (pool, ledger), None, events, terms);
        (World { disk, state, commands, address, server: None }, server.unwrap())
    }

    fn dial(&self, role: Role, body: &impl Bytes) -> (Channel, rdmalib::PrivateData) {
        let mut channel = Channel::new(&device(), 64).unwrap();
        let answer = channel.connect(self.address, role, body, PATIENCE).unwrap();
        (channel, answer)
    }

    /// The executor manager of `a`, which has asked to be registered.
    fn node(&self) -> Channel {
        let hello = NodeHello { nonce: Nonce::generate() };
        let (mut channel, answer) = self.dial(Role::Node, &hello);
        let proof: ManagerProof = parse_prefix(answer.as_slice()).unwrap();
        let nonces = proof.verify(&hello, self.address, SECRET).unwrap();
        let (name, address) = (NodeName::new("a").unwrap(), ([127, 0, 0, 1], 10_005).into());
        let register = Register::new(name, 7, address, &nonces, SECRET);
        channel.send(&FromNode::Register(register)).unwrap();
        channel
    }

    /// A client that has asked for a lease.
    fn client(&self) -> Channel {
        let (mut channel, _) = self.dial(Role::Lease, &Empty {});
        ask(&mut channel, 1, 1);
        channel
    }

    /// Leases that are on the disk.
    fn leases(&self) -> Vec<u64> {
        let snapshot = self.state.snapshot(Now::read().wall).unwrap().unwrap();
        snapshot.leases.iter().map(|lease| lease.terms.lease.get()).collect()
    }

    /// Sends work to the loop from another thread, as HTTP does; its answer.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pool, Now) -> T + Send + 'static,
    ) -> JoinHandle<Result<T, Stopped>> {
        let commands = self.commands.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(commands.ask(move |pool, now, _| work(pool, now)))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.disk.set(Sync::Done);
        let _ = self.commands.stop();
        if let Some(server) = self.server.take() {
            server.join().unwrap().unwrap();
        }
    }
}

/// Sends a request of this number.
fn ask(channel: &mut Channel, number: u32, cores: u32) {
    let request = LeaseRequest {
        request: number.into(),
        cores: cores.into(),
        memory: 1.into(),
        timeout_ms: 60_000.into(),
        max_nodes: 1.into(),
        client: ClientName::new("c").unwrap(),
    };
    channel.send(&FromClient::Request(request)).unwrap();
}

/// What `connect` returns, which needs connections to be taken meanwhile.
fn taken<T: Send>(server: &mut Server, connect: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let connecting = scope.spawn(connect);
        while !connecting.is_finished() {
            server.accept(Now::read());
            thread::yield_now();
        }
        connecting.join().unwrap()
    })
}

/// Takes what peers have sent; what they are told is sent.
fn turns(server: &mut Server) {
    server.note_news(Wakeups::All);
    let (due, mut actions) = (std::mem::take(&mut server.due), Vec::new());
    server.turns(Now::read(), &due, &mut actions);
    server.settle(Now::read(), &mut actions).unwrap();
}

fn hears_nothing<M: MessageKind + std::fmt::Debug>(channel: &mut Channel) {
    match channel.receive::<M>(A_WHILE) {
        Err(ChannelError::TimedOut { .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn hear<M: MessageKind + std::fmt::Debug>(channel: &mut Channel) -> M {
    match channel.receive(PATIENCE).unwrap() {
        Incoming::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn granted(channel: &mut Channel) -> LeaseGranted {
    match hear(channel) {
        ToClient::Granted(granted) => granted,
        other => panic!("{other:?}"),
    }
}

fn end(token: &Token) -> FromNode {
    let (reason, bill) = (EndReason::Released.to_wire(), Bill::default());
    FromNode::Ended(LeaseEnded { terms: token.terms, reason, bill })
}

#[test]
fn nobody_is_told_anything_before_it_is_on_the_disk() {
    let world = World::new();
    world.disk.set(Sync::Waits);
    let mut node = world.node();
    hears_nothing::<ToNode>(&mut node);
    world.disk.set(Sync::Done);
    assert!(matches!(hear(&mut node), ToNode::Registered(_)));

    world.disk.set(Sync::Waits);
    let mut client = world.client();
    hears_nothing::<ToClient>(&mut client);
    assert!(world.leases().is_empty());
    world.disk.set(Sync::Done);
    let token = granted(&mut client).token;
    let id = token.terms.lease.get();
    assert_eq!(world.leases(), [id]);

    node.send(&FromNode::Claimed(LeaseClaimed { terms: token.terms })).unwrap();
    world.disk.set(Sync::Waits);
    node.send(&end(&token)).unwrap();
    hears_nothing::<ToNode>(&mut node);
    let asked = world.ask(|pool, _| pool.nodes().len());
    thread::sleep(A_WHILE);
    assert!(!asked.is_finished(), "an answer over HTTP");
    assert_eq!(world.leases(), [id]);
    world.disk.set(Sync::Done);
    loop {
        match hear(&mut node) {
            ToNode::EndedAck(ack) => break assert_eq!(ack.lease.get(), id),
            ToNode::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(world.leases().is_empty());
    assert_eq!(asked.join().unwrap(), Ok(1));
}

#[test]
fn a_commit_that_fails_ends_the_manager_and_nobody_is_told() {
    let mut world = World::new();
    let mut node = world.node();
    assert!(matches!(hear(&mut node), ToNode::Registered(_)));
    let before = granted(&mut world.client()).token.terms.lease.get();
    world.disk.set(Sync::Fails);
    let mut client = world.client();
    let answer = client.receive::<ToClient>(PATIENCE);
    assert!(matches!(answer, Err(ChannelError::Disconnected)), "{answer:?}");
    let error = world.server.take().unwrap().join().unwrap().unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("the state could not be written") && error.contains("no storage space"),
        "{error}"
    );
    assert_eq!(world.ask(|_, _| ()).join().unwrap(), Err(Stopped));
    world.disk.set(Sync::Done);
    assert_eq!(world.leases(), [before]);
}

#[test]
fn only_a_request_that_may_find_room_when_nodes_were_heard_waits_for_that() {
    let (world, mut server) = World::paused();
    let mut node = taken(&mut server, || world.node());
    turns(&mut server);
    assert!(matches!(hear(&mut node), ToNode::Registered(_)));
    let mut client = taken(&mut server, || world.dial(Role::Lease, &Empty {}).0);
    for (number, cores) in [(1, 4), (2, 4), (3, 5), (4, 1)] {
        ask(&mut client, number, cores);
    }
    turns(&mut server);
    let first = granted(&mut client);
    assert_eq!(first.request.get(), 1);
    match hear(&mut client) {
        ToClient::Refused(refused) => assert_eq!(refused.request.get(), 3, "it never fits"),
        other => panic!("{other:?}"),
    }
    hears_nothing::<ToClient>(&mut client);
    assert!(server.clients.has_aside());

    node.send(&end(&first.token)).unwrap();
    let mut actions = Vec::new();
    server.nodes.hear(Now::read(), &mut server.pool, &mut actions);
    server.clients.answer_aside(Now::read(), &mut server.pool);
    server.settle(Now::read(), &mut actions).unwrap();
    assert!(!server.clients.has_aside());
    assert_eq!(granted(&mut client).request.get(), 2);
    match hear(&mut client) {
        ToClient::Refused(refused) => assert_eq!(refused.request.get(), 4, "there is no more room"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_that_a_client_may_wait_for_is_answered_at_once() {
    let (world, mut server) = World::paused();
    let gangs = u32::try_from(MOST_WAITING_OF_ONE).unwrap();
    let cores = gangs * MAX_GANG;
    let spec = NodeSpec::new("a", "127.0.0.1", 10_005, Capacity { cores, memory: cores });
    server.pool.add_node(Now::read(), spec.unwrap(), &mut Vec::new()).unwrap();
    let _node = taken(&mut server, || world.node());
    turns(&mut server);
    let mut client = taken(&mut server, || world.dial(Role::Lease, &Empty {}).0);
    ask(&mut client, 0, cores);
    server.pass(Wakeups::All).unwrap();
    let held = LeaseId::new(granted(&mut client).token.terms.lease.get()).unwrap();
    for number in 1..=gangs {
        let gang = GangRequest::new(number.into(), MAX_GANG, (1, 1), 60_000);
        client.send(&FromClient::Gang(gang.with(number, 60_000))).unwrap();
        server.pass(Wakeups::All).unwrap();
    }
    assert_eq!(server.pool.count_waiting(), MOST_WAITING_OF_ONE);
    let now = Now::read();
    server.pool.end_lease(now, held, EndReason::Released, &mut Vec::new());
    server.pass(Wakeups::All).unwrap();
    for number in 1..=gangs {
        for part in 0..MAX_GANG {
            turns(&mut server);
            let granted = granted(&mut client);
            assert_eq!((granted.request.get(), granted.part.get().into()), (number, part));
        }
    }
}

#[test]
fn who_waits_for_a_claim_stays_and_is_dropped_only_for_others() {
    let (world, mut server) = World::paused();
    let node = taken(&mut server, || world.node());
    turns(&mut server);
    let mut holder = taken(&mut server, || world.client());
    turns(&mut server);
    granted(&mut holder);
    let _silent = taken(&mut server, || world.dial(Role::Lease, &Empty {}).0);
    let (now, me, other) =
        (Now::read(), rdmalib::Peer::User(nix::unistd::geteuid().as_raw()), rdmalib::Peer::Unknown);
    let (clients, pool) = (&mut server.clients, &mut server.pool);
    assert!(
        clients.make_room(now, me, true, pool),
        "the other one, which has been silent for less"
    );
    assert_eq!((clients.len(), clients.leaving().count()), (1, 1));
    assert!(!clients.make_room(now, me, true, pool), "from itself it has nothing to take");
    assert!(clients.make_room(now, other, true, pool));
    assert_eq!((clients.len(), clients.leaving().count()), (0, 1));
    let ended = holder.receive::<ToClient>(PATIENCE);
    assert!(matches!(ended, Err(ChannelError::Disconnected)), "{ended:?}");
    assert!(!clients.make_room(now, other, true, pool), "there is nobody");
    drop(node);
}
