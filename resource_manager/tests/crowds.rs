//! Peers that only take up room: they connect and hang up, say nothing, ask for nothing, or never register. A
//! client and a node that want something are served beside them.
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rdmalib::Device;
use rdmalib_testing::{many_descriptors, name};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{ClientName, FromClient, LeaseRequest, ToClient};
use rfaas_protocol::node::NodeHello;
use rfaas_protocol::{Empty, Nonce, Role};
use support::{Client, Files, Manager, Node, PATIENCE, device};

/// What is logged of a node that goes for others, and not because its time is up.
const NODE_MAKES_ROOM: &str = "has not registered makes room";

fn dial(device: &Device, manager: &Manager, role: Role) -> Channel {
    let mut channel = Channel::new(device, 8).unwrap();
    let hello = NodeHello { nonce: Nonce::generate() };
    let connected = match role {
        Role::Node => channel.connect(manager.rdma, role, &hello, PATIENCE),
        _ => channel.connect(manager.rdma, role, &Empty {}, PATIENCE),
    };
    connected.unwrap();
    channel
}

/// Asks for a lease of more than there is: the answer is what counts.
fn is_answered(device: &Device, manager: &Manager) {
    let mut channel = dial(device, manager, Role::Lease);
    let request = LeaseRequest {
        request: 1.into(),
        cores: 1000.into(),
        memory: 1.into(),
        timeout_ms: 1000.into(),
        max_nodes: 1.into(),
        client: ClientName::new("honest").unwrap(),
    };
    channel.send(&FromClient::Request(request)).unwrap();
    let answer = channel.receive::<ToClient>(PATIENCE).unwrap();
    assert!(matches!(answer, Incoming::Message(ToClient::Refused(_))), "{answer:?}");
}

fn is_disconnected(channel: &mut Channel) {
    let ended = channel.receive::<ToClient>(PATIENCE);
    assert!(matches!(ended, Err(ChannelError::Disconnected)), "{ended:?}");
}

#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    many_descriptors();
    let manager = Manager::start(&Files::new(&[]), &[]);
    let name = name(manager.rdma);
    let _silent: Vec<_> = (0..1100).map(|_| UnixStream::connect_addr(&name).unwrap()).collect();
    is_answered(&device(), &manager);
}

#[test]
fn who_connects_and_hangs_up_keeps_nobody_waiting() {
    let manager = Manager::start(&Files::new(&[]), &[]);
    let (name, over) = (name(manager.rdma), AtomicBool::new(false));
    thread::scope(|scope| {
        for garbage in [0, 224] {
            let (name, over) = (&name, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if let Ok(mut socket) = UnixStream::connect_addr(name) {
                        let _ = socket.write_all(&vec![b'x'; garbage]); // it may be closed already
                    }
                }
            });
        }
        let healthy = manager.call("GET", "/nodes", "").0;
        is_answered(&device(), &manager);
        over.store(true, Ordering::Relaxed);
        assert_eq!(healthy, 200);
    });
}

#[test]
fn who_asks_for_nothing_makes_room() {
    many_descriptors();
    // Room for 64 connections, 24 of them for clients of one user.
    let manager = Manager::start_limited(&Files::new(&[]), "ulimit -n 1024", &[]);
    let device = device();
    let mut crowd: Vec<_> = (0..100).map(|_| dial(&device, &manager, Role::Lease)).collect();
    is_answered(&device, &manager);
    is_disconnected(&mut crowd[0]);
}

#[test]
fn who_was_served_makes_room_too_for_clients_and_nodes() {
    many_descriptors();
    // Room for 64 connections, 24 of them for clients of one user.
    let manager = Manager::start_limited(&Files::new(&[]), "ulimit -n 1024", &[]);
    manager.add("first", 1000, 1000);
    manager.add("second", 1, 1000);
    let mut first = Node::ready(manager.rdma, "first");
    let mut crowd: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::new(manager.rdma);
            let lease = client.lease(1, 1);
            first.claim(&lease.token);
            manager.wait_lease(lease.token.terms.lease.get(), "active");
            client
        })
        .collect();
    is_answered(&device(), &manager);
    let _second = Node::ready(manager.rdma, "second");
    assert_eq!(manager.metric("rfaas_leases{state=\"active\"}"), 100, "leases go on");
    // Who went connects again when it asks.
    crowd[0] = Client::new(manager.rdma);
    crowd[0].lease(1, 1);
}

#[test]
fn who_never_registers_makes_room() {
    many_descriptors();
    let manager = Manager::start(&Files::new(&[]), &["-v"]);
    manager.add("honest", 1, 1024);
    let device = device();
    let mut crowd: Vec<_> = (0..200).map(|_| dial(&device, &manager, Role::Node)).collect();
    let _node = Node::ready(manager.rdma, "honest");
    is_disconnected(&mut crowd[0]);
    manager.logs(NODE_MAKES_ROOM); // and not because its time was up
    is_answered(&device, &manager);
}

#[test]
fn who_is_refused_as_a_node_takes_no_more_room_than_who_never_registers() {
    // Room for 16 connections; who was refused may read so for a second.
    let manager = Manager::start_limited(&Files::new(&[]), "ulimit -n 640", &["-v"]);
    manager.add("honest", 1, 1024);
    let refused = || Node::register(manager.rdma, "honest", 43);
    let _crowd: Vec<_> = (0..40).map(|_| refused()).collect();
    manager.logs(NODE_MAKES_ROOM);
    is_answered(&device(), &manager);
    let _node = Node::ready(manager.rdma, "honest");
}
