//! What happens to a lease while the application does something else: it is kept alive, its end is told,
//! it is renewed.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use rfaas::{Client, Deployment, EndReason, Error, LeaseRequest, Spin};
use rfaas_config::ExecutorsDatabase;
use rfaas_protocol::allocation::RefusedBecause;

use crate::buffers;
use crate::common::{LONG, Node, Start, eventually, library, open_device};

#[test]
fn an_application_that_does_nothing_gives_signs_of_life() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let before = node.heartbeats();
    eventually("five more", || node.heartbeats() >= before + 5);
    drop(executor);
    eventually("the lease is given back", || node.clients_gone() == 1);
}

#[test]
fn an_application_that_waits_for_its_executor_gives_signs_of_life() {
    let node = Node::start(Start::Silent);
    let lease = node.client().lease(LeaseRequest::new(1, 64)).unwrap();
    let deployment = Deployment::default().start_timeout(Duration::from_secs(2));
    let error = lease.deploy_with(library(), &deployment).unwrap_err();
    assert!(matches!(error, Error::StartTimeout { .. }), "{error}");
    // One in 20 ms is asked for.
    assert!(node.heartbeats() >= 3, "{} in 2 s", node.heartbeats());
}

#[test]
fn an_executor_manager_that_falls_silent_is_given_up() {
    let node = Node::start(Start::NoSignOfLife);
    let lease = node.client().lease(LeaseRequest::new(1, 64)).unwrap();
    let mut executor = lease.deploy(library()).unwrap();
    let (told, tells) = channel();
    lease.on_ending(move |ending| told.send(ending.reason).unwrap());
    assert_eq!(tells.recv_timeout(LONG).unwrap(), EndReason::NodeLost);
    eventually("calls fail", || {
        let empty = executor.function("empty").unwrap();
        let (input, mut output) = buffers(&executor, &[1]);
        match executor.invoke(&empty, &input, &mut output) {
            Ok(_) => false, // the executor has not noticed yet
            Err(error) => matches!(error, Error::ExecutorGone),
        }
    });
}

#[test]
fn invocations_in_flight_fail_when_nothing_reaches_their_node() {
    for spin in [Spin::Always, Spin::Never] {
        let node = Node::start(Start::OutOfReach);
        let lease = node.client().lease(LeaseRequest::new(2, 64)).unwrap();
        let mut executor = lease.deploy_with(library(), &Deployment::new().spin(spin)).unwrap();
        let never = executor.function("never").unwrap();
        let (input, output) = buffers(&executor, &[1]);
        let pending = executor.submit(&never, input, output).unwrap();
        let (input, mut output) = buffers(&executor, &[1]);
        let error = executor.invoke(&never, &input, &mut output).unwrap_err();
        assert!(matches!(error, Error::ExecutorGone), "{error}");
        let failed = pending.wait().unwrap_err();
        assert!(matches!(failed.error, Error::ExecutorGone), "{failed}");
    }
}

#[test]
fn an_announced_end_is_told_once_with_its_deadline() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let (told, tells) = channel();
    let before = Instant::now();
    executor.lease().on_ending(move |ending| told.send(ending).unwrap());
    node.announce(EndReason::Withdrawn, 60_000);
    let ending = tells.recv_timeout(LONG).unwrap();
    assert_eq!(ending.reason, EndReason::Withdrawn);
    assert!(ending.at >= before + Duration::from_secs(60));
    assert_eq!(executor.lease().ending(), Some(ending));
    node.announce(EndReason::Withdrawn, 0);
    assert!(tells.recv_timeout(Duration::from_millis(50)).is_err(), "told once");
    let (told, tells) = channel();
    executor.lease().on_ending(move |ending| told.send(ending.reason).unwrap());
    assert_eq!(tells.try_recv(), Ok(EndReason::Withdrawn), "known already: told at once");
}

#[test]
fn a_lease_without_a_resource_manager_is_renewed_before_and_after_it_is_claimed() {
    let (node, lease) = Node::leased(1);
    let hour = Duration::from_secs(3600);
    let end = lease.renew(2 * hour).unwrap();
    assert!(end > SystemTime::now() + hour && lease.expires_at() == end);
    let _executor = lease.deploy(library()).unwrap();
    assert!(node.renewals().is_empty(), "the claim has shown the new end");
    let end = lease.renew(3 * hour).unwrap();
    assert!(end > SystemTime::now() + 2 * hour && lease.expires_at() == end);
    assert_eq!(node.renewals().len(), 1);
    assert_eq!(lease.renew(hour).unwrap(), end, "a renewal does not shorten a lease");
}

#[test]
fn a_renewal_that_the_executor_manager_refuses_changes_nothing() {
    let (node, lease) = Node::leased(1);
    let executor = lease.deploy(library()).unwrap();
    let end = lease.expires_at();
    let hours = Duration::from_secs(7200);
    node.refuse(1, RefusedBecause::BadToken);
    let error = lease.renew(hours).unwrap_err();
    assert!(matches!(&error, Error::LeaseRefused { reason } if reason == "as the test wants it"));
    node.refuse(1, RefusedBecause::LeaseEnded);
    let error = lease.renew(hours).unwrap_err();
    let expired = EndReason::Expired;
    assert!(matches!(error, Error::LeaseEnded { reason } if reason == expired), "{error}");
    let error = lease.renew(Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(lease.expires_at(), end);
    assert!(lease.renew(hours).unwrap() > end);
    executor.release().unwrap();
    let error = lease.renew(hours).unwrap_err();
    let released = EndReason::Released;
    assert!(matches!(error, Error::LeaseEnded { reason } if reason == released), "{error}");
}

#[test]
fn an_executor_that_gave_no_sign_of_life_is_told_apart_from_a_crash() {
    let (node, mut executor) = Node::deployed(1, &Deployment::default());
    let never = executor.function("never").unwrap();
    let (input, output) = buffers(&executor, &[1]);
    let pending = executor.submit(&never, input, output).unwrap();
    node.kill_silent_executor();
    let failed = pending.wait().unwrap_err();
    assert!(matches!(failed.error, Error::ExecutorSilent), "{failed}");
    let (input, mut output) = buffers(&executor, &[1]);
    let error = executor.invoke(&never, &input, &mut output).unwrap_err();
    assert!(matches!(error, Error::ExecutorSilent), "{error}");
}

#[test]
fn a_lease_is_given_back_where_its_last_handle_is_dropped_while_its_end_is_being_told() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    let (begun, begins) = channel();
    let (goes_on, go_on) = channel::<()>();
    executor.lease().on_ending(move |_| {
        begun.send(()).unwrap();
        go_on.recv().ok();
    });
    node.announce(EndReason::Withdrawn, 60_000);
    begins.recv_timeout(LONG).unwrap();
    drop(executor); // and with it the client
    eventually("the manager is told", || node.clients_gone() == 1);
    assert_eq!(node.releases(), 1);
    drop(goes_on);
}

#[test]
fn an_application_that_panics_when_it_is_told_of_an_end_keeps_its_other_leases() {
    let (node, other) = (Node::start(Start::Well), Node::start(Start::Well));
    let executors = vec![node.entry("node", 1), other.entry("other", 2)];
    let client = Client::with_executors(open_device(), ExecutorsDatabase { executors }).unwrap();
    let leased = |cores| client.lease(LeaseRequest::new(cores, 64)).unwrap();
    let executors = [1, 2].map(|cores| leased(cores).deploy(library()).unwrap());
    let (told, tells) = channel::<()>();
    executors[0].lease().on_ending(move |_| {
        let _told = told;
        panic!("as the test wants it");
    });
    node.announce(EndReason::Withdrawn, 60_000);
    assert_eq!(tells.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected), "dropped by a panic");
    let before = other.heartbeats();
    eventually("the other one is kept alive", || other.heartbeats() > before + 2);
}
