//! Leases and deployments: what goes right, and what goes wrong on the way.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rfaas::{Client, Deployment, Error, Exit, Lease, LeaseRequest};
use rfaas_config::ExecutorsDatabase;
use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::lease::{
    FromClient, LeaseGranted, LeaseRefused, LeaseTerms, NodeName, Reason, ToClient, Token,
};
use rfaas_protocol::{Empty, Hello, Role};

use crate::common::{LONG, Node, Start, eventually, library, open_device};

/// A lease of `cores` cores at a node that starts executors as `start` says.
fn leased(start: Start, cores: u32) -> (Node, Lease) {
    let node = Node::start(start);
    let lease = node.client().lease(LeaseRequest::new(cores, 64)).unwrap();
    (node, lease)
}

#[test]
fn a_deployment_knows_its_functions_workers_node_and_phases() {
    let (_node, lease) = leased(Start::Well, 3);
    assert_eq!((lease.cores(), lease.node(), lease.id()), (3, "fake", None));
    let executor = lease.deploy(library()).unwrap();
    assert_eq!(executor.workers(), 3);
    assert_eq!(executor.functions(), crate::common::FUNCTIONS);
    assert_eq!(executor.node(), "fake");
    assert_eq!(executor.lease_id().get(), 77);
    assert_eq!(lease.id(), Some(executor.lease_id()));
    let phases = executor.phases();
    assert!(phases.connect > Duration::ZERO && phases.submit > Duration::ZERO);
    assert!(phases.spawn_connect > Duration::ZERO && phases.initialize > Duration::ZERO);
}

#[test]
fn dropping_the_executor_gives_the_lease_back_and_ends_its_threads() {
    let (node, lease) = leased(Start::Well, 2);
    let executor = lease.deploy(library()).unwrap();
    drop(lease);
    drop(executor);
    eventually("the manager is told", || node.clients_gone() == 1);
    assert_eq!(node.releases(), 1);
    eventually("the executor ends", || node.running() == 0);
}

#[test]
fn a_refused_claim_says_why() {
    let (_node, lease) = leased(Start::Refused(RefusedBecause::NoCapacity), 1);
    let error = lease.deploy(library()).unwrap_err();
    let Error::AllocationRefused { node, because, reason } = error else { panic!("{error}") };
    assert_eq!((node.as_str(), because), ("fake", RefusedBecause::NoCapacity));
    assert_eq!(reason, "as the test wants it");
}

#[test]
fn a_node_that_refuses_is_passed_over_for_the_next_in_the_list() {
    let full = Node::start(Start::Refused(RefusedBecause::NoCapacity));
    let well = Node::start(Start::Well);
    let gone = well.device.device.listen(0).unwrap().local_addr(); // nobody listens there any more
    let mut nowhere = well.entry("nowhere", 9);
    nowhere.port = gone.port();
    let executors =
        vec![full.entry("small", 1), nowhere, full.entry("full", 9), well.entry("well", 9)];
    let database = ExecutorsDatabase { executors };
    let client = Client::with_executors(well.device.clone(), database).unwrap();
    let lease = client.lease(LeaseRequest::new(2, 64)).unwrap();
    assert_eq!(lease.node(), "nowhere");
    let executor = lease.deploy(library()).unwrap();
    assert_eq!((executor.node(), lease.node()), ("well", "well"));
    assert_eq!(full.allocations(), 1);

    let error = client.lease(LeaseRequest::new(10, 64)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    let error = client.lease(LeaseRequest::new(1, 2000)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    let error = client.lease(LeaseRequest::new(0, 64)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn a_node_that_nobody_runs_is_unreachable() {
    let (node, lease) = leased(Start::Well, 1);
    drop(node);
    let error = lease.deploy(library()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn an_executor_that_never_dials_is_an_error_when_its_time_is_over() {
    let (_node, lease) = leased(Start::Silent, 1);
    let limit = Duration::from_secs(1); // in which a busy machine has claimed the lease
    let deployment = Deployment::default().start_timeout(limit);
    let error = lease.deploy_with(library(), &deployment).unwrap_err();
    let Error::StartTimeout { after, missing } = error else { panic!("{error}") };
    assert_eq!(after, limit);
    assert!(missing.contains("not connected"), "{missing}");
}

#[test]
fn an_executor_that_dies_while_it_starts_is_an_error_at_once() {
    for start in [Start::Dies(9), Start::DiesLoading(9)] {
        let (_node, lease) = leased(start, 1);
        let error = lease.deploy(library()).unwrap_err();
        assert!(matches!(error, Error::StartFailed(Exit::Signal(9))), "{error}");
    }
}

#[test]
fn a_library_that_cannot_be_loaded_is_told_in_the_loaders_words() {
    let (_node, lease) = leased(Start::LoadFails, 1);
    let error = lease.deploy(library()).unwrap_err();
    let Error::LoadFailed { reason, .. } = error else { panic!("{error}") };
    assert!(reason.contains("libmissing.so"), "{reason}");
}

#[test]
fn a_library_that_the_node_has_is_announced_and_not_sent() {
    for (start, sent) in [(Start::Well, true), (Start::HasLibrary, false)] {
        let (_node, lease) = leased(start, 1);
        let mut executor = lease.deploy(library()).unwrap();
        assert_eq!(executor.phases().library_sent, sent);
        let function = executor.function("empty").unwrap();
        let (input, mut output) = (executor.input(8).unwrap(), executor.output(8).unwrap());
        executor.invoke(&function, &input, &mut output).unwrap();
    }
}

#[test]
fn a_library_that_has_not_arrived_as_it_was_announced_is_an_error_of_its_own() {
    let (_node, lease) = leased(Start::Differs, 1);
    let error = lease.deploy(library()).unwrap_err();
    assert!(matches!(error, Error::LibraryGarbled), "{error}");
}

#[test]
fn a_manager_that_hangs_up_is_an_error() {
    let (_node, lease) = leased(Start::HangsUp, 1);
    let error = lease.deploy(library()).unwrap_err();
    assert!(matches!(error, Error::ExecutorGone), "{error}");
}

#[test]
fn impostors_and_impossible_numbers_are_refused_and_the_real_ones_waited_for() {
    for start in [Start::Impostors, Start::WrongNumbers] {
        let (_node, lease) = leased(start, 2);
        let executor = lease.deploy(library()).unwrap();
        assert_eq!(executor.workers(), 2);
    }
}

#[test]
fn a_function_list_that_contradicts_itself_is_refused_or_cut_short() {
    let (_node, lease) = leased(Start::TooManyFunctions, 1);
    match lease.deploy(library()) {
        // It had the announced number before the next one came, and does not ask further.
        Ok(executor) => assert_eq!(executor.functions(), crate::common::FUNCTIONS),
        Err(error) => assert!(matches!(error, Error::Protocol(_)), "{error}"),
    }
}

#[test]
fn a_file_that_is_no_library_is_refused_before_anything_is_sent() {
    let (node, lease) = leased(Start::Well, 1);
    let error = lease.deploy("does/not/exist.so").unwrap_err();
    assert!(matches!(error, Error::LibraryUnreadable { .. }), "{error}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
    let error = lease.deploy(file.path()).unwrap_err();
    assert!(matches!(error, Error::Library { .. }), "{error}");
    let error = lease.deploy_with(library(), &Deployment::default().slots(0)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(node.allocations(), 0);
    lease.deploy(library()).unwrap();
}

/// A resource manager that grants the first lease and refuses others; sends what it is told.
fn resource_manager() -> (SocketAddr, std::sync::mpsc::Receiver<FromClient>) {
    let (address_out, address_in) = channel();
    let (told_out, told_in) = channel();
    thread::spawn(move || {
        let device = open_device();
        let mut listener = device.device.listen(0).unwrap();
        address_out.send(listener.local_addr()).unwrap();
        // The connection of the first client breaks; it comes again.
        for serves in [1, u32::MAX] {
            let request = listener.next(LONG).unwrap().unwrap();
            let (role, _) = Hello::parse(request.private_data()).unwrap();
            assert_eq!(role, Role::Lease);
            let mut client = Channel::new(&device.device, 8).unwrap();
            client.accept(request, &Empty {}).unwrap();
            for _ in 0..serves {
                let Ok(Incoming::Message(message)) = client.receive(LONG) else { return };
                told_out.send(message).ok();
                let FromClient::Request(question) = message else { continue };
                let answer = if question.cores.get() > 4 {
                    let reason = Reason::truncated("4 cores are free");
                    ToClient::Refused(LeaseRefused { request: question.request, reason })
                } else {
                    let terms = LeaseTerms {
                        lease: 9.into(),
                        cores: question.cores,
                        memory: question.memory,
                        expires_at_ms: 1_800_000_000_000.into(),
                        instance: 1.into(),
                        node: NodeName::new("node-a").unwrap(),
                        client: question.client,
                    };
                    let token = Token::sign(terms, b"secret");
                    let manager = "127.0.0.1:1".parse::<SocketAddr>().unwrap().into();
                    ToClient::Granted(LeaseGranted {
                        request: question.request,
                        manager,
                        part: 0.into(),
                        parts: 1.into(),
                        token,
                    })
                };
                client.send(&answer).unwrap();
                client.flush(LONG).unwrap();
            }
        }
    });
    (address_in.recv().unwrap(), told_in)
}

#[test]
fn a_resource_manager_grants_and_refuses_and_is_told_of_a_lease_that_is_not_used() {
    let (address, told) = resource_manager();
    let client = Client::connect_as(open_device(), address, "a client").unwrap();
    let lease = client.lease(LeaseRequest::new(2, 64).timeout(Duration::from_secs(9))).unwrap();
    assert_eq!(lease.id().unwrap().get(), 9);
    assert_eq!((lease.cores(), lease.node()), (2, "node-a"));
    let FromClient::Request(question) = told.recv().unwrap() else { panic!("not a request") };
    assert_eq!(question.client.get(), Ok("a client"));
    assert_eq!(question.timeout_ms.get(), 9000);

    // Its connection has ended meanwhile: another is made.
    let refused = client.lease(LeaseRequest::new(5, 64)).unwrap_err();
    let refused = match refused {
        // It was ending while the question was on its way.
        Error::Connection { .. } => client.lease(LeaseRequest::new(5, 64)).unwrap_err(),
        refused => refused,
    };
    assert!(matches!(refused, Error::LeaseRefused { reason } if reason == "4 cores are free"));

    drop(client);
    drop(lease);
    let release = told.iter().find_map(|message| match message {
        FromClient::Release(release) => Some(release.token.terms.lease.get()),
        _ => None,
    });
    assert_eq!(release, Some(9));
}

#[test]
fn a_name_with_several_addresses_is_reached_at_the_one_where_the_manager_listens() {
    let device = open_device();
    let (manager, _told) = resource_manager();
    let nobody = device.device.listen(0).unwrap().local_addr(); // not any more
    let other_family: SocketAddr = "[::1]:7".parse().unwrap();
    let addresses = [other_family, nobody, manager];
    Client::connect(device.clone(), &addresses[..]).unwrap();

    let error = Client::connect(device, &addresses[..2]).unwrap_err();
    let Error::Unreachable { source, .. } = &error else { panic!("{error}") };
    let told = source.to_string();
    assert!(told.contains(&nobody.to_string()) && told.contains("[::1]:7"), "{told}");
}

#[test]
fn a_manager_that_does_not_run_and_an_address_that_is_none_are_told_apart() {
    let device = open_device();
    let nowhere = device.device.listen(0).unwrap().local_addr();
    let error = Client::connect(device.clone(), nowhere).unwrap_err();
    assert!(matches!(error, Error::Unreachable { address, .. } if address == nowhere), "{error}");
    let error = Client::connect(device.clone(), "no port").unwrap_err();
    assert!(matches!(error, Error::Address { .. }), "{error}");
    assert!(error.to_string().contains("an address is host:port"), "{error}");
    let error = Client::connect_as(device, nowhere, &"x".repeat(65)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}
