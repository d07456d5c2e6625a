//! Leases of a node without a resource manager, as its clients see them.

mod common;

use std::fs;
use std::time::{Duration, SystemTime};

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdmalib::Status;
use rfaas_protocol::accounting::{COUNTERS_BYTES, EXECUTION_NS, HOT_POLLING_NS, INVOCATIONS};
use rfaas_protocol::allocation::{FromClient, RefusedBecause, ToClient};
use rfaas_protocol::assignment::Instructions;
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::lease::{EndReason, Token};
use rfaas_protocol::{Empty, Malformed, MessageKind, Role, Secret};

#[test]
fn a_lease_is_claimed_used_released_and_billed() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    assert_eq!(client.claim(unsigned(2)), 1);
    let Instructions { standby, assignment } = node.instructions();
    let assignment = assignment.unwrap();
    assert_eq!((assignment.lease, assignment.workers, assignment.slots), (1, 2, 4));
    assert_eq!((standby.manager, standby.most_workers), (node.address, 2));
    assert_eq!(assignment.client, "127.0.0.1:4000".parse().unwrap());
    assert_eq!(assignment.session_secret.0, Secret([9; 16]));
    assert_eq!(assignment.pin_to, None);

    for _ in 0..2 {
        let mut worker = Worker::connect(standby.manager, standby.manager_secret.0).unwrap();
        assert_eq!(worker.add(HOT_POLLING_NS, 1_000), Status::Success);
        assert_eq!(worker.add(EXECUTION_NS, 200), Status::Success);
        assert_eq!(worker.add(INVOCATIONS, 3), Status::Success);
    }
    let bill = client.release();
    assert_eq!(bill.hot_polling_ns.get(), 2_000);
    assert_eq!(bill.execution_ns.get(), 400);
    assert_eq!(bill.invocations.get(), 6);
    assert!(bill.allocated_ns.get() > 0);
    let pid = node.executors(1)[0];
    assert!(!runs(pid), "gone before the release is answered");
    node.stop();
}

#[test]
fn what_an_executor_counts_when_it_is_told_to_stop_is_billed() {
    let script = "cat > $DIR/input.$$ && mv $DIR/input.$$ $DIR/instructions
        trap 'touch $DIR/told; while [ ! -e $DIR/counted ]; do sleep 0.005; done; exit 0' TERM
        touch $DIR/ready
        while :; do sleep 0.01; done";
    let node = Node::alone(script);
    let mut client = node.client();
    client.claim(unsigned(1));
    let standby = node.instructions().standby;
    let mut worker = Worker::connect(standby.manager, standby.manager_secret.0).unwrap();
    wait_for("the executor", || node.setup.path("ready").exists().then_some(()));
    client.send(&FromClient::Release(Empty {}));
    wait_for("SIGTERM", || node.setup.path("told").exists().then_some(()));
    assert_eq!(worker.add(INVOCATIONS, 7), Status::Success);
    fs::write(node.setup.path("counted"), "").unwrap();
    match client.next() {
        ToClient::Released(released) => assert_eq!(released.bill.invocations.get(), 7),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forged_bill_never_exceeds_the_cores_times_the_time() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    client.claim(unsigned(2));
    let standby = node.instructions().standby;
    let mut worker = Worker::connect(standby.manager, standby.manager_secret.0).unwrap();
    assert_eq!(worker.add(HOT_POLLING_NS, u64::MAX), Status::Success);
    assert_eq!(worker.add(EXECUTION_NS, 1 << 60), Status::Success);
    // Nothing beyond its own counters can be written.
    assert_eq!(worker.add(COUNTERS_BYTES as u64, 1), Status::RemoteAccessError);
    let bill = client.release();
    let used = bill.hot_polling_ns.get() + bill.execution_ns.get();
    assert_eq!(used, 2 * bill.allocated_ns.get());
}

#[test]
fn only_who_knows_the_secret_may_count_and_not_without_bound() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    client.claim(unsigned(1));
    let standby = node.instructions().standby;
    let refused = Worker::connect(node.address, Secret([0; 16]));
    assert!(matches!(refused.err(), Some(rdmalib::Error::Rejected { .. })));
    let connect = || Worker::connect(node.address, standby.manager_secret.0);
    let workers: Vec<_> = std::iter::from_fn(|| connect().ok()).take(100).collect();
    assert!((1..100).contains(&workers.len()), "{} connections", workers.len());
    client.release();
    assert!(connect().is_err(), "the secret died with the executor");
}

#[test]
fn clients_share_the_node_and_who_does_not_fit_is_told_what_is_free() {
    let node = Node::alone(OBEDIENT);
    let (mut first, mut second, mut third) = (node.client(), node.client(), node.client());
    first.claim(unsigned(2));
    second.claim(unsigned(1));
    let (because, reason) = third.refused(allocate(unsigned(2)));
    assert_eq!(because, RefusedBecause::NoCapacity);
    assert!(reason.contains("2 cores asked for, 1 of 4 free"), "{reason}");
    first.release();
    assert_eq!(third.claim(unsigned(2)), 3);
    node.stop();
}

#[test]
fn a_client_that_disappears_frees_its_cores_and_its_executor_is_gone() {
    let mut node = Node::alone(OBEDIENT);
    let mut client = node.client();
    client.claim(unsigned(4));
    let pid = node.executors(1)[0];
    drop(client);
    wait_until_free(&node, 4);
    assert!(!runs(pid));
    node.wait_for_log("client_gone");
}

#[test]
fn an_expired_lease_ends_and_its_client_is_told() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    let lasts = Duration::from_secs(3); // a busy machine claims it, and starts its executor, before that
    client.claim(Token::unsigned(terms(0, 4, 100, lasts)));
    let pid = node.executors(1)[0];
    assert_eq!(client.ending(), (EndReason::Expired, 0));
    wait_until_free(&node, 4);
    assert!(!runs(pid));
    let expired = Token::unsigned(terms(0, 4, 100, Duration::ZERO));
    assert_eq!(client.refused(allocate(expired)).0, RefusedBecause::LeaseEnded);
}

#[test]
fn hostile_numbers_are_refused_and_nothing_is_started() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    for cores in [0, 0xffff, 0x1_0000, u32::MAX, i32::MIN as u32] {
        let (because, _) = client.refused(allocate(unsigned(cores)));
        assert!(matches!(because, RefusedBecause::BadRequest | RefusedBecause::NoCapacity));
    }
    let mut large = allocate(unsigned(4));
    large.input_bytes = u32::MAX.into();
    large.slots = 1024.into();
    let (because, reason) = client.refused(large);
    assert_eq!(because, RefusedBecause::BadRequest);
    assert!(reason.contains("MB of memory"), "{reason}");
    let mut forever = unsigned(1);
    forever.terms.expires_at_ms = u64::MAX.into();
    client.claim(forever);
    node.executors(1);
    client.release();
    assert_eq!(node.executors(1).len(), 1);
    node.stop();
}

/// Bytes that are no message of this conversation.
struct Garbage(Vec<u8>);

impl MessageKind for Garbage {
    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(_: &[u8]) -> Result<Self, Malformed> {
        Ok(Garbage(Vec::new()))
    }
}

#[test]
fn garbage_ends_the_connection_it_came_on_and_no_other() {
    let node = Node::alone(OBEDIENT);
    let mut good = node.client();
    good.claim(unsigned(1));
    let cut = FromClient::Allocate(allocate(unsigned(1))).encode();
    for garbage in [vec![], vec![1], vec![0xff; 64], cut[..100].to_vec(), vec![0; 1024]] {
        let mut bad = node.client();
        bad.channel.send(&Garbage(garbage)).unwrap();
        bad.ended();
    }
    good.release();
    node.stop();
}

#[test]
fn peers_that_want_something_else_are_refused_in_words() {
    let node = Node::alone(OBEDIENT);
    for role in [Role::Lease, Role::Node, Role::Executor, Role::Worker, Role::Accounting] {
        let mut channel = Channel::new(&device(), 4).unwrap();
        let refused = channel.connect(node.address, role, &Empty {}, PATIENCE);
        assert!(matches!(refused, Err(ChannelError::Refused(_))), "{role:?}: {refused:?}");
    }
    node.client().claim(unsigned(1));
}

#[test]
fn a_connection_that_says_nothing_is_dropped_and_one_with_a_lease_stays() {
    let node = Node::alone(OBEDIENT);
    let (mut silent, mut holder) = (node.client(), node.client());
    holder.claim(unsigned(1));
    silent.ended();
    holder.release();
}

#[test]
fn a_release_of_nothing_is_refused() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    client.send(&FromClient::Release(Empty {}));
    assert!(matches!(client.next(), ToClient::Refused(_)));
    client.claim(unsigned(1));
    client.release();
}

#[test]
fn a_client_that_takes_no_answers_is_dropped_and_no_other() {
    let node = Node::alone(OBEDIENT);
    let mut good = node.client();
    good.claim(unsigned(1));
    let mut deaf = node.client();
    wait_for("the end of the connection", || {
        match deaf.channel.send(&FromClient::Release(Empty {})) {
            Ok(()) | Err(ChannelError::Busy) => None,
            Err(ChannelError::Disconnected) => Some(()),
            Err(error) => panic!("{error}"),
        }
    });
    good.release();
    node.stop();
}

#[test]
fn everything_works_while_polling() {
    let mut setup = Setup::new(OBEDIENT);
    setup.sleep = false;
    let node = setup.start();
    let mut client = node.client();
    client.claim(unsigned(2));
    let pid = node.executors(1)[0];
    client.release();
    assert!(!runs(pid));
    node.setup.script("kill -SEGV $$");
    client.claim(unsigned(2));
    assert_eq!(client.exited().signal.get(), Signal::SIGSEGV as i32);
    node.stop();
}

#[test]
fn a_signal_stops_executors_tells_clients_and_ends_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Node::alone(OBEDIENT);
        let (mut first, mut second) = (node.client(), node.client());
        first.claim(unsigned(1));
        second.claim(unsigned(1));
        let pids = node.executors(2);
        node.signal(signal);
        for grace_ms in [200, 0] {
            assert_eq!(first.ending(), (EndReason::Shutdown, grace_ms));
            assert_eq!(second.ending(), (EndReason::Shutdown, grace_ms));
        }
        assert_eq!(node.wait().code(), Some(0), "{}", node.log());
        assert!(pids.iter().all(|&pid| !runs(pid)));
        first.ended();
    }
}

#[test]
fn a_node_that_is_to_stop_takes_no_new_lease_and_ends_with_its_last_one() {
    let mut setup = Setup::new(OBEDIENT);
    setup.drain_ms = 600_000;
    let mut node = setup.start();
    let (mut holder, mut waiting) = (node.client(), node.client());
    let token = unsigned(1);
    assert_eq!(holder.claim(token), 1);
    let pid = node.executors(1)[0];
    node.signal(Signal::SIGTERM);
    assert_eq!(holder.ending(), (EndReason::Shutdown, 600_000));
    for client in [&mut waiting, &mut node.client()] {
        assert_eq!(client.refused(allocate(unsigned(1))).0, RefusedBecause::Draining);
    }
    assert_eq!(holder.renew(unsigned(1)).unwrap_err().0, RefusedBecause::Draining);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(holder.exited().signal.get(), Signal::SIGKILL as i32);
    assert_eq!(holder.claim(token), 1, "what is held may still be used");
    assert_eq!(holder.ending().0, EndReason::Shutdown);
    holder.release();
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
}

#[test]
fn a_node_that_drains_is_not_hurried_by_sigterm_and_sighup_however_often() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut setup = Setup::new(OBEDIENT);
        setup.drain_ms = 600_000;
        let mut node = setup.start();
        let mut holder = node.client();
        holder.claim(unsigned(1));
        for again in [signal, signal, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
            node.signal(again);
            // It has read the signal when it refuses, which is after it read the request.
            let (because, _) = node.client().refused(allocate(unsigned(1)));
            assert_eq!(because, RefusedBecause::Draining);
        }
        assert_eq!(holder.ending(), (EndReason::Shutdown, 600_000));
        holder.release();
        assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    }
}

#[test]
fn a_node_without_leases_stops_at_once() {
    let mut setup = Setup::new(OBEDIENT);
    setup.drain_ms = u32::MAX;
    setup.start().stop();
}

#[test]
fn a_lease_is_renewed_by_a_token_with_a_later_end() {
    let node = Node::alone(OBEDIENT);
    let mut client = node.client();
    let lasts = |ms| Token::unsigned(terms(0, 4, 100, Duration::from_millis(ms)));
    assert_eq!(client.renew(lasts(3000)).unwrap_err().0, RefusedBecause::LeaseEnded);
    assert_eq!(client.claim(lasts(3000)), 1);
    let later = lasts(4000);
    assert_eq!(client.renew(later), Ok(later.terms.expires_at_ms.get()));
    assert_eq!(client.renew(lasts(2000)), Ok(later.terms.expires_at_ms.get()), "never earlier");
    let mut numbered = lasts(5000);
    numbered.terms.lease = 1.into();
    assert_eq!(client.renew(numbered), Ok(numbered.terms.expires_at_ms.get()));
    numbered.terms.lease = 2.into();
    assert_eq!(client.renew(numbered).unwrap_err().0, RefusedBecause::BadToken);
    let mut more = lasts(5000);
    more.terms.memory = 1000.into();
    assert_eq!(client.renew(more).unwrap_err().0, RefusedBecause::BadRequest);
    assert_eq!(client.ending(), (EndReason::Expired, 0));
    let now = SystemTime::now();
    assert!(numbered.terms.expired(now), "{now:?}: {numbered:?}");
    wait_until_free(&node, 4);
}

#[test]
fn a_second_sigint_stops_at_once_and_leaves_no_executor() {
    let mut setup = Setup::new(STUBBORN);
    setup.drain_ms = 600_000;
    let mut node = setup.start();
    let mut client = node.client();
    client.claim(unsigned(1));
    let pid = node.executors(1)[0];
    node.signal(Signal::SIGINT);
    node.wait_for_log("stopping");
    node.signal(Signal::SIGINT);
    assert_eq!(node.wait().code(), Some(1), "{}", node.log());
    wait_for("the end of the executor", || (!runs(pid)).then_some(()));
}

#[test]
fn many_clients_come_and_go_and_nothing_is_left() {
    let node = Node::alone(OBEDIENT);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    let mut client = node.client();
    client.claim(unsigned(1));
    client.release();
    drop(client);
    wait_until_free(&node, 4);
    wait_for("quiet", || (descriptors() <= 20).then_some(()));
    let before = descriptors();
    for i in 0..40 {
        let mut client = node.client();
        client.claim(unsigned(4));
        if i % 2 == 0 {
            client.release();
        }
        drop(client);
        wait_until_free(&node, 4);
    }
    wait_for("descriptors to be closed", || (descriptors() <= before).then_some(()));
    node.stop();
}
