//! A node and its resource manager: registration, tokens, claims, ends, bills, and what happens when
//! the connection does not last.

mod common;

use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::accounting::{EXECUTION_NS, INVOCATIONS};
use rfaas_protocol::allocation::{FromClient, RefusedBecause, ToClient};
use rfaas_protocol::channel::Incoming;
use rfaas_protocol::lease::{EndReason, NodeName, Reason, Token};
use rfaas_protocol::node::{FromNode, RegisterRefused, ToNode};
use rfaas_protocol::{Clock, Empty};

#[test]
fn a_node_registers_reports_claim_and_end_and_keeps_in_touch() {
    let (_manager, mut node, mut link) = registered(OBEDIENT);
    node.wait_for_log("registered as exec-mgr-node: 4 cores, 1024 MB");
    let mut client = node.client();
    assert_eq!(client.claim(link.signed(77, 2)), 77);
    assert_eq!(link.claimed(), 77);
    let bill = client.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
    link.acknowledge(77);
    for _ in 0..3 {
        assert!(matches!(link.next(), FromNode::Heartbeat(_)));
        link.send(&ToNode::Heartbeat(Clock::now()));
    }
    node.stop();
}

#[test]
fn a_weak_secret_is_warned_of_once_it_is_in_use() {
    let (mut manager, mut node, link) = registered(OBEDIENT);
    node.wait_for_log("the cluster secret from the configuration is weak");
    drop(link);
    let _link = manager.register();
    assert_eq!(node.log().matches("is weak").count(), 1, "{}", node.log());
    node.stop();
}

#[test]
fn an_end_is_reported_before_the_client_has_its_bill() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let mut client = node.client();
    for lease in 1..=20 {
        client.claim(link.signed(lease, 4));
        assert_eq!(link.claimed(), lease);
        client.release();
        // No waiting: it is there.
        let reported = std::iter::from_fn(|| link.channel.try_receive::<FromNode>().unwrap())
            .any(|report| matches!(report, Incoming::Message(FromNode::Ended(_))));
        assert!(reported, "lease {lease}");
        link.acknowledge(lease);
    }
}

#[test]
fn a_token_is_good_for_one_claim_on_the_node_it_names() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let (mut client, mut other) = (node.client(), node.client());
    let mut elsewhere = link.terms(77, 1, hour());
    elsewhere.node = NodeName::new("elsewhere").unwrap();
    let mut forged = link.signed(77, 1);
    forged.terms.cores = 4.into();
    for token in [
        forged,
        unsigned(1),
        Token::unsigned(terms(77, 1, 100, hour())),
        Token::sign(link.terms(77, 1, hour()), b"43"),
        Token::sign(elsewhere, SECRET),
        Token::sign(link.terms(0, 1, hour()), SECRET),
    ] {
        assert_eq!(client.refused(allocate(token)).0, RefusedBecause::BadToken);
    }
    client.claim(link.signed(77, 1));
    link.claimed();
    let (because, reason) = other.refused(allocate(link.signed(77, 1)));
    assert_eq!(because, RefusedBecause::BadRequest);
    assert!(reason.contains("another connection"), "{reason}");
    client.release();
    for client in [&mut client, &mut other] {
        assert_eq!(client.refused(allocate(link.signed(77, 1))).0, RefusedBecause::LeaseEnded);
    }
    assert_eq!(link.ended().0, 77);
    link.end(78, EndReason::Withdrawn, 0); // before its claim
    link.acknowledge(77);
    link.next();
    wait_for("the end of an unclaimed lease", || {
        let mut client = node.client();
        match client.ask(allocate(link.signed(78, 1))) {
            ToClient::Refused(refused) => {
                assert_eq!(refused.because, RefusedBecause::LeaseEnded.to_wire());
                Some(())
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_withdrawn_lease_ends_after_its_grace() {
    let (_manager, node, mut link, mut client) = in_use(OBEDIENT, 2);
    let pid = node.executors(1)[0];
    link.end(77, EndReason::Withdrawn, 500);
    assert_eq!(client.ending(), (EndReason::Withdrawn, 500));
    assert!(runs(pid));
    assert_eq!(client.ending(), (EndReason::Withdrawn, 0));
    let (lease, reason, bill) = link.ended();
    assert_eq!((lease, reason), (77, EndReason::Withdrawn));
    assert!(bill.allocated_ns.get() >= 500_000_000, "{bill:?}");
    assert!(!runs(pid));
    client.claim(link.signed(78, 4));
    link.claimed();
    link.end(78, EndReason::Withdrawn, 0);
    assert_eq!(client.ending(), (EndReason::Withdrawn, 0));
    assert_eq!(link.ended().0, 78);
}

#[test]
fn leases_survive_the_resource_manager_and_are_reported_to_the_next_one() {
    let (mut manager, mut node, mut link) = registered(OBEDIENT);
    let (mut stays, mut ends) = (node.client(), node.client());
    stays.claim(link.signed(77, 2));
    ends.claim(link.signed(78, 1));
    assert_eq!([link.claimed(), link.claimed()], [77, 78]);
    let bill = ends.release();
    assert_eq!(link.ended(), (78, EndReason::Released, bill));
    drop(link); // without having acknowledged

    node.wait_for_log("no connection to the resource manager");
    let mut link = manager.register();
    // Both in one order or the other, and the bill is the same as before.
    let mut reports = [link.next_report(), link.next_report()];
    reports.sort_by_key(|report| matches!(report, FromNode::Ended(_)));
    match reports {
        [FromNode::Claimed(claimed), FromNode::Ended(ended)] => {
            assert_eq!(claimed.terms.lease.get(), 77);
            assert_eq!((ended.terms.lease.get(), ended.bill), (78, bill));
        }
        other => panic!("{other:?}"),
    }
    link.acknowledge(78);
    assert!(matches!(link.next(), FromNode::Heartbeat(_))); // by then it has the acknowledgement
    link.send(&ToNode::Heartbeat(Clock::now()));
    link.next();
    drop(link);

    let mut link = manager.register();
    assert_eq!(link.claimed(), 77, "and 78 not once more");
    let bill = stays.release();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
}

#[test]
fn a_lease_that_ends_while_nobody_listens_is_billed_later() {
    let (mut manager, mut node, link, mut client) = in_use(OBEDIENT, 2);
    drop(link);
    node.wait_for_log("no connection to the resource manager");
    let bill = client.release();
    let mut link = manager.register();
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
}

#[test]
fn an_unknown_node_is_warned_of_once_and_registers_as_soon_as_it_is_known() {
    let mut manager = ResourceManager::new();
    let mut node = manager.node(OBEDIENT).start();
    let reason = Reason::new("node exec-mgr-node is not known: add it").unwrap();
    let [_, _, unregistered] = [0; 3].map(|_| {
        let mut link = manager.meet();
        link.send(&ToNode::Refused(RegisterRefused { reason }));
        link.channel.flush(PATIENCE).unwrap();
        link.signed(77, 1)
    });
    let mut client = node.client();
    let (because, reason) = client.refused(allocate(unregistered));
    assert_eq!(because, RefusedBecause::NoCapacity);
    assert!(reason.contains("not registered"), "{reason}");
    let link = manager.register();
    node.wait_for_log("registered as");
    let log = node.log();
    assert_eq!(log.matches("node exec-mgr-node is not known: add it").count(), 1, "{log}");
    client.claim(link.signed(77, 1));
}

#[test]
fn a_resource_manager_that_is_not_there_yet_is_waited_for_if_that_is_asked_for() {
    let manager = ResourceManager::new();
    let (address, setup) = (manager.address(), manager.node(OBEDIENT));
    drop(manager);
    let mut command = setup.command();
    command.arg("--wait");
    let mut node = setup.start_as(command);
    node.wait_for_log("no connection to the resource manager: nobody listens at");
    let mut manager = ResourceManager::at(address.port());
    let link = manager.register();
    node.client().claim(link.signed(77, 1));
    node.stop();
}

#[test]
fn a_resource_manager_that_falls_silent_is_given_up_and_dialed_again() {
    let mut manager = ResourceManager::new();
    let mut node = manager.node(OBEDIENT).start();
    let _silent = manager.register_with(1000, 3000);
    let _next = manager.register();
    node.wait_for_log("silent for");
}

#[test]
fn a_stopping_node_sends_its_bills_first() {
    let (_manager, mut node, mut link, mut client) = in_use(STUBBORN, 2);
    node.executors(1);
    node.signal(Signal::SIGTERM);
    assert_eq!(link.draining(), 200);
    assert_eq!(client.ending(), (EndReason::Shutdown, 200));
    assert_eq!(client.ending(), (EndReason::Shutdown, 0));
    let (lease, reason, _) = link.ended();
    assert_eq!((lease, reason), (77, EndReason::Shutdown));
    link.acknowledge(77);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
}

#[test]
fn a_stopping_node_does_not_wait_for_a_resource_manager_that_is_gone() {
    let (manager, mut node, link, _client) = in_use(OBEDIENT, 2);
    drop((link, manager));
    node.wait_for_log("no connection to the resource manager");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    assert!(node.log().contains("has not acknowledged the last bills"), "{}", node.log());
}

#[test]
fn a_stopping_node_says_so_to_the_next_resource_manager_too() {
    let mut manager = ResourceManager::new();
    let mut setup = manager.node(OBEDIENT);
    setup.drain_ms = 600_000;
    let mut node = setup.start();
    let mut link = manager.register();
    let mut client = node.client();
    client.claim(link.signed(77, 2));
    link.claimed();
    node.signal(Signal::SIGTERM);
    assert_eq!(link.draining(), 600_000);
    drop(link);
    let mut link = manager.register();
    let left = link.draining();
    assert!((1..600_000).contains(&left), "{left}");
    assert_eq!(link.claimed(), 77);
    client.ending();
    client.release();
    assert_eq!(link.ended().0, 77);
    link.acknowledge(77);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
}

#[test]
fn what_a_lease_uses_is_told_while_it_is_used() {
    let mut manager = ResourceManager::new();
    let node = manager.node(OBEDIENT).start();
    let mut link = manager.register_with(20, 60_000);
    let mut client = node.client();
    client.claim(link.signed(77, 2));
    let first = node.instructions().standby;
    assert_eq!(link.claimed(), 77);
    let mut worker = Worker::connect(first.manager, first.manager_secret.0).unwrap();
    worker.fetch_add(INVOCATIONS, 3);
    worker.fetch_add(EXECUTION_NS, u64::MAX);
    wait_for("the calls", || (link.used().bill.invocations.get() == 3).then_some(()));
    let used = link.used();
    assert_eq!(used.lease.get(), 77);
    let (allocated, execution) = (used.bill.allocated_ns.get(), used.bill.execution_ns.get());
    assert!(allocated > 0 && execution == 2 * allocated, "clamped: {used:?}");

    // Of the lease, not only of the executor that runs.
    kill(Pid::from_raw(node.executors(1)[0]), Signal::SIGKILL).unwrap();
    client.exited();
    client.claim(link.signed(77, 2));
    let next = node.instructions().standby;
    let mut worker = Worker::connect(next.manager, next.manager_secret.0).unwrap();
    worker.fetch_add(INVOCATIONS, 4);
    wait_for("all calls", || (link.used().bill.invocations.get() == 7).then_some(()));
    let bill = client.release();
    assert_eq!(bill.invocations.get(), 7);
    assert_eq!(link.ended(), (77, EndReason::Released, bill));
}

#[test]
fn a_renewed_lease_is_reported_with_its_new_end() {
    let (mut manager, node, mut link) = registered(OBEDIENT);
    let mut client = node.client();
    let lasts = |link: &NodeLink, ms| link.terms(77, 1, Duration::from_millis(ms));
    let (short, long) = (lasts(&link, 3000), lasts(&link, 600_000));
    client.claim(Token::sign(short, SECRET));
    assert_eq!(link.claimed(), 77);
    assert_eq!(client.renew(Token::unsigned(long)).unwrap_err().0, RefusedBecause::BadToken);
    let renewed = client.renew(Token::sign(long, SECRET));
    assert_eq!(renewed, Ok(long.expires_at_ms.get()));
    let other = Token::sign(link.terms(78, 1, hour()), SECRET);
    assert_eq!(client.renew(other).unwrap_err().0, RefusedBecause::BadRequest);
    std::thread::sleep(Duration::from_millis(3000));
    drop(link);
    let mut link = manager.register();
    match link.next_report() {
        FromNode::Claimed(claimed) => assert_eq!(claimed.terms, long),
        other => panic!("{other:?}"),
    }
    link.end(77, EndReason::Withdrawn, 60_000);
    assert_eq!(client.ending(), (EndReason::Withdrawn, 60_000));
    let refused = client.renew(Token::sign(long, SECRET)).unwrap_err();
    assert_eq!(refused.0, RefusedBecause::LeaseEnded, "it is being withdrawn");
    client.release();
    let again = node.client().refused(allocate(Token::sign(long, SECRET)));
    assert_eq!(again.0, RefusedBecause::LeaseEnded);
}

#[test]
fn a_node_that_was_stopped_reads_what_waits_before_it_gives_up_its_resource_manager() {
    const SILENCE: Duration = Duration::from_secs(3); // a busy machine is heard before that
    let mut manager = ResourceManager::new();
    let mut node = manager.node(OBEDIENT).start();
    let mut link = manager.register_with(50, SILENCE.as_millis() as u32);
    node.wait_for_log("registered as");
    node.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    while stopped.elapsed() < SILENCE + Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(150));
        link.send(&ToNode::Heartbeat(Clock::now()));
    }
    node.signal(Signal::SIGCONT);
    let mut client = node.client();
    client.claim(link.signed(77, 1));
    assert_eq!(link.claimed(), 77);
    assert!(!node.log().contains("no connection"), "{}", node.log());
}

#[test]
fn claims_and_releases_in_quick_succession_are_each_reported_in_order() {
    let (_manager, node, mut link) = registered(OBEDIENT);
    let mut client = node.client();
    for lease in 1..=60 {
        client.claim(link.signed(lease, 4));
        client.send(&FromClient::Release(Empty {}));
        assert!(matches!(client.next(), ToClient::Released(_)));
    }
    for lease in 1..=60 {
        assert_eq!(link.claimed(), lease);
        let (ended, reason, _) = link.ended();
        assert_eq!((ended, reason), (lease, EndReason::Released));
        link.acknowledge(lease);
    }
    std::thread::sleep(Duration::from_millis(10));
    node.stop();
}

#[test]
fn a_token_of_before_a_restart_of_the_node_is_refused_by_the_next_one() {
    let (mut manager, node, link) = registered(OBEDIENT);
    let (used, unused) = (link.signed(77, 1), link.signed(78, 1));
    let mut client = node.client();
    client.claim(used);
    client.release();
    drop((link, node));
    let node = manager.node(OBEDIENT).start();
    let link = manager.register();
    let mut client = node.client();
    for token in [used, unused] {
        let (because, reason) = client.refused(allocate(token));
        assert_eq!(because, RefusedBecause::LeaseEnded);
        assert!(reason.contains("before this executor manager was started"), "{reason}");
    }
    client.claim(link.signed(79, 1));
}
