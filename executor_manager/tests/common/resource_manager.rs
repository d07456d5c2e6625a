//! The test as the resource manager of an executor manager.

use std::net::SocketAddr;
use std::time::Duration;

use rdmalib::{Device, Listener};
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::lease::{EndReason, LeaseTerms, Token};
use rfaas_protocol::node::{
    Bill, EndLease, FromNode, LeaseEndedAck, LeaseUsed, ManagerProof, NodeHello, Registered, STAYS,
    ToNode,
};
use rfaas_protocol::{Clock, Hello, Role, parse_prefix};

use super::{Client, NODE, Node, PATIENCE, SECRET, Setup, device, hour, terms};

/// The test as resource manager.
pub struct ResourceManager {
    pub listener: Listener,
    device: Device,
}

impl ResourceManager {
    pub fn new() -> Self {
        ResourceManager::at(0)
    }

    /// At a port, such as one that a node was told of; 0: any free one.
    pub fn at(port: u16) -> Self {
        let device = device();
        ResourceManager { listener: device.listen(port).unwrap(), device }
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
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        assert_eq!(role, Role::Node);
        let hello: NodeHello = parse_prefix(body).unwrap();
        let proof = ManagerProof::new(&hello, self.address(), SECRET);
        let nonces = proof.verify(&hello, self.address(), SECRET).unwrap();
        let mut channel = Channel::new(&self.device, 64).unwrap();
        channel.accept(request, &proof).unwrap();
        let mut link = NodeLink { channel, instance: 0, address: self.address() };
        match link.next() {
            FromNode::Register(register) => {
                assert!(register.verify(&nonces, SECRET));
                link.address = register.address.into();
                assert_eq!(register.node.get(), Ok(NODE));
                link.instance = register.instance.get();
                assert_ne!(link.instance, 0);
            }
            other => panic!("{other:?}"),
        }
        link
    }

    /// Takes a node's registration and grants it four cores. A test that is slow is not given up.
    pub fn register(&mut self) -> NodeLink {
        self.register_with(1000, 60_000)
    }

    /// Likewise, with these signs of life.
    pub fn register_with(&mut self, heartbeat_ms: u32, silence_ms: u32) -> NodeLink {
        let mut link = self.meet();
        link.send(&ToNode::Registered(Registered {
            cores: 4.into(),
            memory: 1024.into(),
            heartbeat_ms: heartbeat_ms.into(),
            silence_ms: silence_ms.into(),
            clock: Clock::now(),
            leaves_in_ms: STAYS.into(),
        }));
        link
    }
}

/// A node that is registered, and its resource manager.
pub fn registered(executor: &str) -> (ResourceManager, Node, NodeLink) {
    let mut manager = ResourceManager::new();
    let node = manager.node(executor).start();
    let link = manager.register();
    (manager, node, link)
}

/// Likewise, and a client to which lease 77 with so many cores is granted, and which has claimed it.
pub fn in_use(executor: &str, cores: u32) -> (ResourceManager, Node, NodeLink, Client) {
    let (manager, node, mut link) = registered(executor);
    let mut client = node.client();
    assert_eq!(client.claim(link.signed(77, cores)), 77);
    assert_eq!(link.claimed(), 77);
    (manager, node, link, client)
}

pub struct NodeLink {
    pub channel: Channel,
    /// Of the executor manager that registered.
    pub instance: u64,
    /// Where it says that it listens.
    pub address: SocketAddr,
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

    /// Has the node end a lease.
    pub fn end(&mut self, lease: u64, reason: EndReason, grace_ms: u32) {
        let (lease, reason) = (lease.into(), reason.to_wire());
        self.send(&ToNode::EndLease(EndLease { lease, reason, grace_ms: grace_ms.into() }));
    }

    /// Acknowledges the end of a lease.
    pub fn acknowledge(&mut self, lease: u64) {
        self.send(&ToNode::EndedAck(LeaseEndedAck { lease: lease.into() }));
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
                FromNode::Heartbeat(_) => self.send(&ToNode::Heartbeat(Clock::now())),
                FromNode::Used(_) => {}
                report => return report,
            }
        }
    }

    /// The next report of what a lease used so far. Keeps the node content meanwhile.
    pub fn used(&mut self) -> LeaseUsed {
        loop {
            match self.next() {
                FromNode::Heartbeat(_) => self.send(&ToNode::Heartbeat(Clock::now())),
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
