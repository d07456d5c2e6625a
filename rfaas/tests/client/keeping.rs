//! What happens to a lease while the application does something else: it is kept alive, its end is told,
//! it is renewed.

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rfaas::channel::{Channel, Incoming};
use rfaas::protocol::lease::{
    ClientName, FromClient, LeaseGranted, LeaseRefused, LeaseTerms, NodeName, Reason, ToClient,
    Token,
};
use rfaas::protocol::{Empty, Malformed};
use rfaas::{Client, Deployment, EndReason, Error, LeaseRequest, Spin};

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
    let deployment = Deployment::default().start_timeout(Duration::from_millis(300));
    let error = lease.deploy_with(library(), &deployment).unwrap_err();
    assert!(matches!(error, Error::StartTimeout { .. }), "{error}");
    assert!(node.heartbeats() >= 3, "{} in 300 ms", node.heartbeats());
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
        assert_eq!(node.running(), 3, "neither worker nor executor has noticed");
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

/// A resource manager that answers each message as `answers` says.
fn resource_manager(
    answers: impl Fn(&FromClient) -> Vec<ToClient> + Send + 'static,
) -> (Client, std::sync::mpsc::Receiver<FromClient>) {
    let (address_out, address_in) = channel();
    let (told_out, told_in) = channel();
    thread::spawn(move || {
        let device = open_device();
        let mut listener = device.device.listen(0).unwrap();
        address_out.send(listener.local_addr()).unwrap();
        let request = listener.next(LONG).unwrap().unwrap();
        let mut client = Channel::new(&device.device, 8).unwrap();
        client.accept(request, &Empty {}).unwrap();
        while let Ok(Incoming::Message(message)) = client.receive(LONG) {
            // A client that finds fault with the first answer may not wait for the second.
            answers(&message).iter().for_each(|answer| drop(client.send(answer)));
            told_out.send(message).ok();
        }
    });
    let address: SocketAddr = address_in.recv().unwrap();
    (Client::connect(open_device(), address).unwrap(), told_in)
}

/// Part `part` of `parts` of the answer to question `request`: lease `part` + 1, which ends at `end_ms`.
fn granted(request: u32, part: u16, parts: u16, end_ms: u64) -> ToClient {
    let terms = LeaseTerms {
        lease: (u64::from(part) + 1).into(),
        cores: 2.into(),
        memory: 32.into(),
        expires_at_ms: end_ms.into(),
        instance: 1.into(),
        node: NodeName::new(&format!("node-{part}")).unwrap(),
        client: ClientName::new("anonymous").unwrap(),
    };
    ToClient::Granted(LeaseGranted {
        request: request.into(),
        part: part.into(),
        parts: parts.into(),
        manager: "127.0.0.1:1".parse::<SocketAddr>().unwrap().into(),
        token: Token::sign(terms, b"secret"),
    })
}

const END_MS: u64 = 1_900_000_000_000;

#[test]
fn a_request_for_several_nodes_gives_a_lease_on_each() {
    let (client, told) = resource_manager(|message| match message {
        FromClient::Request(question) => {
            (0..3).map(|part| granted(question.request.get(), part, 3, END_MS)).collect()
        }
        _ => vec![],
    });
    let leases = client.lease_many(LeaseRequest::new(6, 96).max_nodes(4)).unwrap();
    let nodes: Vec<_> = leases.iter().map(|lease| (lease.node(), lease.cores())).collect();
    assert_eq!(nodes, [("node-0", 2), ("node-1", 2), ("node-2", 2)]);
    let FromClient::Request(question) = told.recv().unwrap() else { panic!("not a request") };
    assert_eq!(question.max_nodes.get(), 4);
    let error = client.lease(LeaseRequest::new(6, 96).max_nodes(4)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn an_answer_whose_parts_do_not_fit_together_is_malformed_and_given_back() {
    for numbers in [[(0, 3), (2, 3)], [(0, 2), (1, 3)], [(1, 2), (0, 2)], [(0, 9), (1, 9)]] {
        let (client, told) = resource_manager(move |message| match message {
            FromClient::Request(question) => numbers
                .iter()
                .map(|&(part, parts)| granted(question.request.get(), part, parts, END_MS))
                .collect(),
            _ => vec![],
        });
        let error = client.lease_many(LeaseRequest::new(6, 96).max_nodes(4)).unwrap_err();
        assert!(matches!(error, Error::Protocol(Malformed::Field(_))), "{error}");
        drop(client);
        let released = told.iter().filter(|told| matches!(told, FromClient::Release(_))).count();
        assert!(released >= 1, "{numbers:?}");
    }
}

#[test]
fn a_resource_manager_renews_or_refuses() {
    let (client, _told) = resource_manager(|message| match message {
        FromClient::Request(question) => vec![granted(question.request.get(), 0, 1, END_MS)],
        FromClient::Renew(question) if question.timeout_ms.get() == 1000 => {
            vec![granted(question.request.get(), 0, 1, END_MS + 5)]
        }
        FromClient::Renew(question) => {
            let reason = Reason::truncated("the lease has ended");
            vec![ToClient::Refused(LeaseRefused { request: question.request, reason })]
        }
        FromClient::Release(_) => vec![],
    });
    let lease = client.lease(LeaseRequest::new(2, 32)).unwrap();
    let before = lease.expires_at();
    let end = lease.renew(Duration::from_secs(1)).unwrap();
    assert_eq!(end, before + Duration::from_millis(5));
    let error = lease.renew(Duration::from_secs(2)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    assert_eq!(lease.expires_at(), end, "it ends when it would have");
}
