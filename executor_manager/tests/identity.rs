//! Who is who: the resource manager proves itself to a node before it is obeyed, a node to its clients before it is
//! shown anything, and a claim is good on one connection. And what time it is, they agree on.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod common;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::*;
use rdmalib::{Device, Listener, PrivateData};
use rfaas_protocol::allocation::{
    ClaimHello, FromClient, NodeProof, RefusedBecause, Renew, ToClient,
};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{EndReason, LeaseKey, LeaseTerms, Token};
use rfaas_protocol::node::{
    EndLease, FromNode, ManagerProof, NodeHello, Registered, STAYS, ToNode,
};
use rfaas_protocol::{
    Bytes, Clock, Empty, Hello, Malformed, MessageKind, Nonce, Role, parse_prefix,
};

/// What an impostor says when a node calls it.
type Answer = fn(&NodeHello, SocketAddr) -> Option<ManagerProof>;

/// Listens where a listener of this process was just dropped. A process that another test has forked has that too until
/// it becomes its program.
fn listen_after(device: &Device, address: SocketAddr) -> Listener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match device.listen(address.port()) {
            Err(rdmalib::Error::AddressInUse(_)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            listener => return listener.unwrap(),
        }
    }
}

/// Takes a node's connection in the resource manager's place, and orders it about. `listener` is of `device`.
fn pass_for_the_resource_manager(
    device: &Device,
    listener: &mut Listener,
    answer: Answer,
) -> Channel {
    let address = listener.local_addr();
    let request = listener.next(PATIENCE).unwrap().expect("a node connects");
    let (_, body) = Hello::parse(request.private_data()).unwrap();
    let mut channel = Channel::new(device, 64).unwrap();
    match answer(&parse_prefix(body).unwrap(), address) {
        Some(proof) => channel.accept(request, &proof).unwrap(),
        None => channel.accept(request, &Empty {}).unwrap(),
    }
    let orders = [
        ToNode::Registered(Registered {
            cores: 64.into(),
            memory: 1.into(),
            heartbeat_ms: 1000.into(),
            silence_ms: 5000.into(),
            clock: Clock::now(),
            leaves_in_ms: STAYS.into(),
        }),
        ToNode::EndLease(EndLease {
            lease: 77.into(),
            reason: EndReason::Withdrawn.to_wire(),
            grace_ms: 0.into(),
        }),
    ];
    for order in orders {
        channel.send(&order).ok(); // it may have hung up
    }
    channel
}

#[test]
fn who_passes_for_the_resource_manager_is_told_nothing_and_ends_no_lease() {
    let mut manager = ResourceManager::new();
    let address = manager.address();
    let mut node = manager.node(OBEDIENT).start();
    let mut link = manager.register();
    let mut client = node.client();
    client.claim(link.signed(77, 2));
    assert_eq!(link.claimed(), 77);
    drop((link, manager));

    let device = device();
    let mut listener = device.listen(address.port()).unwrap();
    let impostors: [Answer; 3] = [
        |_, _| None,
        |hello, at| Some(ManagerProof::new(hello, at, b"another secret")),
        // It has the real one answer, which listens elsewhere.
        |hello, at| {
            let elsewhere = SocketAddr::new(at.ip(), at.port() ^ 1);
            Some(ManagerProof::new(hello, elsewhere, SECRET))
        },
    ];
    for answer in impostors.into_iter().chain(impostors) {
        let mut channel = pass_for_the_resource_manager(&device, &mut listener, answer);
        let told = channel.receive::<FromNode>(PATIENCE);
        assert!(matches!(told, Err(ChannelError::Disconnected)), "{told:?}");
    }
    drop(listener);
    node.wait_for_log("did not prove to know the cluster's secret");
    let log = node.log();
    assert_eq!(log.matches("did not prove").count(), 1, "told once: {log}");
    let peer = format!("process {} of user", std::process::id());
    assert!(log.contains(&peer), "{peer}: {log}");
    assert!(!log.contains("64 cores"), "{log}");

    let mut manager = ResourceManager::at(address.port());
    let mut link = manager.register();
    assert_eq!(link.claimed(), 77, "it went on");
    let bill = client.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
}

#[test]
fn a_node_whose_resource_manager_is_somebody_else_when_it_starts_waits_for_the_real_one() {
    let manager = ResourceManager::new();
    let address = manager.address();
    let setup = manager.node(OBEDIENT);
    drop(manager);
    let device = device();
    let mut listener = listen_after(&device, address);
    let mut node = setup.start();
    drop(pass_for_the_resource_manager(&device, &mut listener, |_, _| None));
    drop(listener);
    node.wait_for_log("did not prove to know the cluster's secret");
    let mut manager = ResourceManager::at(address.port());
    let link = manager.register();
    assert_eq!(link.address, node.address, "it says where it listens");
    node.client().claim(link.signed(77, 1));
}

#[test]
fn a_node_proves_to_be_that_of_the_lease_at_its_own_address() {
    let (_manager, node, link) = registered(OBEDIENT);
    let token = link.signed(77, 1);
    let (hello, answer) = open(node.address, ClaimHello::new(&token));
    let proof: NodeProof = parse_prefix(answer.1.as_slice()).unwrap();
    assert!(proof.verify(&hello, node.address, token.key()));
    let other = link.signed(78, 1);
    assert!(!proof.verify(&hello, node.address, other.key()), "of this lease only");
    let elsewhere = SocketAddr::new(node.address.ip(), node.address.port() ^ 1);
    assert!(!proof.verify(&hello, elsewhere, token.key()), "here only");
}

/// Opens a connection so.
fn open<B: Bytes>(address: SocketAddr, hello: B) -> (B, (Channel, PrivateData)) {
    let mut channel = Channel::new(&device(), 16).unwrap();
    let answer = channel.connect(address, Role::Allocation, &hello, PATIENCE).unwrap();
    (hello, (channel, answer))
}

#[test]
fn a_claim_that_was_seen_is_of_no_use_on_another_connection() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let token = link.signed(77, 1);
    let mut client = node.client_for(&token);
    let seen = client.proved(allocate(token));
    let mut thief = node.client_for(&token); // knows the number of the lease, not its key
    thief.send(&FromClient::Allocate(seen));
    let refused = refusal(thief.next());
    assert_eq!(refused.0, RefusedBecause::BadToken);
    assert!(refused.1.contains("did not prove"), "{refused:?}");
    // Nor does what goes over the network open anything: terms, signature, and another's key.
    let key = LeaseKey::derive(78.into(), link.instance.into(), SECRET);
    let forged = allocate(token).proved(&key, &thief.nonces);
    for claim in [allocate(token), forged] {
        thief.send(&FromClient::Allocate(claim));
        assert_eq!(refusal(thief.next()).0, RefusedBecause::BadToken);
    }
    thief.send(&FromClient::Renew(Renew { signed: token.signed(), clock: Clock::now() }));
    assert!(matches!(thief.next(), ToClient::Refused(_)), "nor is it renewed there");
    client.send(&FromClient::Allocate(seen));
    assert!(matches!(client.next(), ToClient::Allocated(_)));
    assert_eq!(link.claimed(), 77);
}

fn refusal(answer: ToClient) -> (RefusedBecause, String) {
    let ToClient::Refused(refused) = answer else { panic!("{answer:?}") };
    let because = RefusedBecause::from_wire(refused.because).unwrap();
    (because, refused.reason.get().unwrap().to_owned())
}

/// What a client of the release before says, which has no proof in it.
struct OldAllocate;

impl MessageKind for OldAllocate {
    fn encode(&self) -> Vec<u8> {
        [&[1, 0][..], &[7; 316]].concat()
    }

    fn decode(_: &[u8]) -> Result<Self, Malformed> {
        Ok(OldAllocate)
    }
}

#[test]
fn a_client_of_an_older_release_is_told_so_and_costs_no_more_than_its_connection() {
    let node = Node::alone(OBEDIENT);
    let (_, (mut old, _)) = open(node.address, Empty {});
    for _ in 0..2 {
        old.send(&OldAllocate).unwrap();
        let Ok(Incoming::Message(answer)) = old.receive(PATIENCE) else { panic!("no answer") };
        let (because, reason) = refusal(answer);
        assert_eq!(because, RefusedBecause::BadToken);
        assert!(reason.contains("release of this client is too old"), "{reason}");
    }
    let (_, (mut new, _)) = open(
        node.address,
        ClaimHello { lease: 0.into(), instance: 0.into(), nonce: Nonce::generate() },
    );
    new.send(&OldAllocate).unwrap();
    let ended = new.receive::<ToClient>(PATIENCE);
    assert!(matches!(ended, Err(ChannelError::Disconnected)), "{ended:?}");
    node.client().claim(unsigned(1));
}

/// `token`'s lease, until `left` after what a clock says that is `ahead` of ours.
fn until(link: &NodeLink, lease: u64, left: Duration, behind: Duration) -> Token {
    let end = SystemTime::now() - behind + left;
    let expires_at_ms = Clock::from(end).ms;
    Token::sign(LeaseTerms { expires_at_ms, ..link.terms(lease, 1, hour()) }, SECRET)
}

#[test]
fn a_lease_ends_by_the_resource_manager_s_clock_however_wrong_the_node_s_is() {
    const BEHIND: Duration = Duration::from_secs(7200);
    const MINUTE: Duration = Duration::from_secs(60);
    let mut manager = ResourceManager::new();
    let mut node = manager.node(OBEDIENT).start();
    let mut link = manager.meet();
    link.send(&ToNode::Registered(Registered {
        cores: 4.into(),
        memory: 1024.into(),
        heartbeat_ms: 1000.into(),
        silence_ms: 60_000.into(),
        clock: (SystemTime::now() - BEHIND).into(),
        leaves_in_ms: STAYS.into(),
    }));
    // When it has been so for a while.
    wait_for("the difference to be told", || {
        link.send(&ToNode::Heartbeat((SystemTime::now() - BEHIND).into()));
        std::thread::sleep(Duration::from_millis(100));
        node.log().contains(" s ahead of the resource manager's").then_some(())
    });
    let told = node.wait_for_log(" s ahead of the resource manager's");
    let seconds = told.split_once("clock of this node is ").unwrap().1.split_once(' ').unwrap().0;
    // Whole ones, and more by the time that the message was under way.
    let seconds: u64 = seconds.parse().unwrap();
    assert!(seconds >= BEHIND.as_secs(), "{told}");
    let mut client = node.client();
    client.claim(until(&link, 77, MINUTE, BEHIND));
    let later = until(&link, 77, 2 * MINUTE, BEHIND);
    assert_eq!(client.renew(later), Ok(later.terms.expires_at_ms.get()), "likewise");
    // By more than the message with the clock was under way.
    let over = until(&link, 78, Duration::ZERO, BEHIND + MINUTE);
    let (because, _) = node.client().refused(allocate(over));
    assert_eq!(because, RefusedBecause::LeaseEnded, "and not later");
    // It is set: from the next sign of life on that counts.
    link.send(&ToNode::Heartbeat(Clock::now()));
    wait_for("the new time", || {
        let mut client = node.client_for(&until(&link, 79, MINUTE, BEHIND));
        let claim = allocate(until(&link, 79, MINUTE, BEHIND));
        matches!(client.ask(claim), ToClient::Refused(_)).then_some(())
    });
    node.client().claim(until(&link, 80, MINUTE, Duration::ZERO));
    assert_eq!(node.log().matches("ahead of the resource manager's").count(), 1);
}

#[test]
fn an_unsigned_claim_ends_by_its_client_s_clock() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    let behind = SystemTime::now() - Duration::from_secs(7200);
    let mut claim = allocate(unsigned(1));
    claim.clock = behind.into();
    claim.signed.terms.expires_at_ms = Clock::from(behind + Duration::from_secs(60)).ms;
    assert!(matches!(client.ask(claim), ToClient::Allocated(_)), "it is not over");
}
