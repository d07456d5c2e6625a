//! Who listens at a node's address has to prove to be that node before it is shown anything; and a node that cannot
//! be used is not the end of a lease.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rfaas::{Client, Deployment, Error, LeaseRequest};
use rfaas_config::OpenDevice;
use rfaas_protocol::allocation::{
    self, Allocate, AllocateRefused, ClaimHello, NodeProof, RefusedBecause,
};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, refuse};
use rfaas_protocol::lease::{
    ClientName, FromClient, LeaseGranted, LeaseRefused, LeaseTerms, NodeName, Reason, ToClient,
    Token, Unusable,
};
use rfaas_protocol::{Empty, Hello, Role, parse_prefix};

use crate::common::{LONG, library, open_device};
use crate::granting::answering;

const SECRET: &[u8] = b"secret";

fn token(lease: u64) -> Token {
    let terms = LeaseTerms {
        lease: lease.into(),
        cores: 1.into(),
        memory: 64.into(),
        expires_at_ms: 1_900_000_000_000.into(),
        instance: 3.into(),
        node: NodeName::new(&format!("node-{lease}")).unwrap(),
        client: ClientName::new("anonymous").unwrap(),
    };
    Token::sign(terms, SECRET)
}

fn granted(request: u32, lease: u64, manager: SocketAddr) -> ToClient {
    ToClient::Granted(LeaseGranted {
        request: request.into(),
        part: 0.into(),
        parts: 1.into(),
        manager: manager.into(),
        token: token(lease),
    })
}

/// A client of a resource manager that grants lease 1 at the first of `nodes`, and in exchange for each the next; it
/// tells what it was told.
fn client_of(nodes: Vec<SocketAddr>) -> (Client, Receiver<FromClient>) {
    answering(move |message| match message {
        FromClient::Request(question) => vec![granted(question.request.get(), 1, nodes[0])],
        FromClient::Replace(question) => {
            let lease = question.token.terms.lease.get();
            let other = usize::try_from(lease).ok().and_then(|next| nodes.get(next));
            let reason = Reason::truncated("there is no other");
            vec![match other {
                Some(node) => granted(question.request.get(), lease + 1, *node),
                None => ToClient::Refused(LeaseRefused { request: question.request, reason }),
            }]
        }
        FromClient::Renew(question) => {
            let reason = Reason::truncated("as the test wants it");
            vec![ToClient::Refused(LeaseRefused { request: question.request, reason })]
        }
        FromClient::Grow(question) => {
            let (request, reason) =
                (question.wanted.request, Reason::truncated("as the test wants it"));
            vec![ToClient::Refused(LeaseRefused { request, reason })]
        }
        FromClient::Release(_) | FromClient::Gang(_) | FromClient::Worker(_) => vec![],
    })
}

/// Somebody who listens, and answers one who claims with what `answer` makes of his hello and the address. Tells what
/// it was told then, until the connection ended.
fn listener(
    answer: impl Fn(&ClaimHello, SocketAddr) -> Vec<u8> + Send + 'static,
) -> (SocketAddr, Receiver<Vec<Allocate>>) {
    let (address_out, address_in) = channel();
    let (told_out, told_in) = channel();
    thread::spawn(move || {
        let OpenDevice { device, .. } = open_device();
        let mut listener = device.listen(0).unwrap();
        let address = listener.local_addr();
        address_out.send(address).unwrap();
        let request = listener.next(LONG).unwrap().unwrap();
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        assert_eq!(role, Role::Allocation);
        let answer = answer(&parse_prefix(body).unwrap(), address);
        let mut client = Channel::new(&device, 8).unwrap();
        match parse_prefix::<NodeProof>(&answer) {
            Ok(proof) => client.accept(request, &proof).unwrap(),
            Err(_) => client.accept(request, &Empty {}).unwrap(),
        }
        let mut told = Vec::new();
        loop {
            match client.receive::<allocation::FromClient>(LONG) {
                Ok(Incoming::Message(allocation::FromClient::Allocate(claim))) => {
                    told.push(claim);
                    let reason = Reason::truncated("as the test wants it");
                    let because = RefusedBecause::NoCapacity.to_wire();
                    let refused = AllocateRefused { because, reason };
                    client.send(&allocation::ToClient::Refused(refused)).unwrap();
                }
                Err(ChannelError::Disconnected) => break,
                other => panic!("{other:?}"),
            }
        }
        told_out.send(told).unwrap();
    });
    (address_in.recv().unwrap(), told_in)
}

fn bytes(proof: &NodeProof) -> Vec<u8> {
    zerocopy::IntoBytes::as_bytes(proof).to_vec()
}

/// Claims it; it cannot be deployed, since nobody here starts executors.
fn deploy(client: &Client) -> Error {
    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    let deployment = Deployment::new().start_timeout(Duration::from_secs(20));
    lease.deploy_with(library(), &deployment).unwrap_err()
}

/// Returns why leases were said to be of no use.
fn exchanges(told: &Receiver<FromClient>) -> Vec<Unusable> {
    told.iter()
        .filter_map(|told| match told {
            FromClient::Replace(replace) => Some(Unusable::from_wire(replace.because).unwrap()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_lease_that_was_exchanged_grows_under_its_new_number() {
    let nodes = [(); 2].map(|()| listener(|_, _| vec![]).0);
    let (client, told) = client_of(nodes.into());
    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    let deployment = Deployment::new().start_timeout(Duration::from_secs(20));
    lease.deploy_with(library(), &deployment).unwrap_err();
    let with_others = client.grow(&[&lease], 1, LeaseRequest::new(1, 64));
    for error in [lease.grow(1).unwrap_err(), with_others.unwrap_err()] {
        assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    }
    let grown = told.try_iter().filter_map(|told| match told {
        FromClient::Grow(question) => Some(question.grown()),
        _ => None,
    });
    let numbers: Vec<_> = grown.flatten().map(|lease| lease.get()).collect();
    assert_eq!(numbers, [2, 2], "the first was given up for it");
}

#[test]
fn who_does_not_prove_to_be_the_node_is_shown_nothing() {
    type Answer = fn(&ClaimHello, SocketAddr) -> Vec<u8>;
    let impostors: [(&str, Answer); 5] = [
        ("says nothing", |_, _| vec![]),
        ("proves nothing", |_, _| bytes(&NodeProof::none())),
        ("does not know the secret", |hello, at| {
            bytes(&NodeProof::new(hello, at, &hello.key(b"another")))
        }),
        ("knows the key of another lease", |hello, at| {
            let other = ClaimHello { lease: 2.into(), ..*hello };
            bytes(&NodeProof::new(hello, at, &other.key(SECRET)))
        }),
        ("has the node answer, which listens elsewhere", |hello, at| {
            let elsewhere = SocketAddr::new(at.ip(), at.port() ^ 1);
            bytes(&NodeProof::new(hello, elsewhere, &hello.key(SECRET)))
        }),
    ];
    for (who, answer) in impostors {
        let (address, shown) = listener(answer);
        let (client, told) = client_of(vec![address]);
        let error = deploy(&client);
        let Error::Unproved { node, address: at, peer } = &error else {
            panic!("{who}: {error:?}")
        };
        assert_eq!((&**node, *at), ("node-1", address), "{who}");
        assert!(peer.starts_with("process "), "{who}: {peer}");
        assert_eq!(shown.recv().unwrap(), [], "{who}: it was shown something");
        drop(client);
        assert_eq!(exchanges(&told), [Unusable::Unproved], "{who}");
    }
}

#[test]
fn the_node_of_a_lease_is_shown_a_claim_that_is_good_on_this_connection_only() {
    let proves = |hello: &ClaimHello, at| bytes(&NodeProof::new(hello, at, &hello.key(SECRET)));
    let (address, shown) = listener(proves);
    let (client, told) = client_of(vec![address]);
    let error = deploy(&client);
    assert!(matches!(error, Error::AllocationRefused { .. }), "{error:?}");
    let [claim] = shown.recv().unwrap()[..] else { panic!("not one claim") };
    assert!(claim.signed.verify(SECRET));
    let key = token(1);
    let key = zerocopy::IntoBytes::as_bytes(key.key());
    let said = zerocopy::IntoBytes::as_bytes(&claim);
    assert!(!said.windows(key.len()).any(|part| part == key), "the key itself was shown");
    drop(client);
    assert_eq!(exchanges(&told), [Unusable::Refused]);
}

#[test]
fn a_resource_manager_is_not_shown_keys() {
    let (client, told) = client_of(vec![([127, 0, 0, 1], 1).into()]);
    let lease = client.lease(LeaseRequest::new(1, 64)).unwrap();
    lease.renew(Duration::from_secs(1)).unwrap_err();
    let error = lease.deploy(library()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    drop((lease, client));
    let mut shown = 0;
    for told in told.iter() {
        let token = match told {
            FromClient::Renew(renew) => renew.token,
            FromClient::Replace(replace) => replace.token,
            FromClient::Release(release) => release.token,
            FromClient::Request(_)
            | FromClient::Gang(_)
            | FromClient::Grow(_)
            | FromClient::Worker(_) => continue,
        };
        assert!(token.signed().verify(SECRET) && !token.verify(SECRET), "{told:?}");
        shown += 1;
    }
    assert!(shown >= 2, "{shown}");
}

/// Refuses the first who connects.
fn refusing() -> SocketAddr {
    let (address_out, address_in) = channel();
    thread::spawn(move || {
        let OpenDevice { device, .. } = open_device();
        let mut listener = device.listen(0).unwrap();
        address_out.send(listener.local_addr()).unwrap();
        refuse(listener.next(LONG).unwrap().unwrap(), "too many clients wait");
    });
    address_in.recv().unwrap()
}

#[test]
fn a_lease_that_its_node_does_not_take_is_exchanged_until_one_does_or_too_many_did_not() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let (impostor, _shown) = listener(|_, _| vec![]);
    let proves = |hello: &ClaimHello, at| bytes(&NodeProof::new(hello, at, &hello.key(SECRET)));
    let (last, shown) = listener(proves);
    let (client, told) = client_of(vec![refusing(), nobody, impostor, last, nobody]);
    // The first error is told: the others follow from it.
    let error = deploy(&client);
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, ChannelError::Refused(_)), "{source:?}");
    let [claim] = shown.recv().unwrap()[..] else { panic!("not one claim") };
    assert_eq!(claim.signed.terms.lease.get(), 4);
    drop(client);
    let why = exchanges(&told);
    use Unusable::{Refused, Unproved, Unreachable};
    assert_eq!(why, [Refused, Unreachable, Unproved], "no lease that nobody would try");
}

#[test]
fn a_manager_of_another_user_than_the_trusted_one_is_told_nothing() {
    let ours = nix::unistd::getuid().as_raw();
    let trusting = |user: u32| OpenDevice { trusted_user: Some(user), ..open_device() };
    // Somebody listens in the resource manager's place.
    let device = open_device().device;
    let mut listener = device.listen(0).unwrap();
    let address = listener.local_addr();
    let error = Client::connect(trusting(ours + 1), address).unwrap_err();
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    let told = source.to_string();
    for user in [ours, ours + 1] {
        assert!(told.contains(&format!("user {user}")), "{told}");
    }
    assert!(listener.next(Duration::from_millis(50)).unwrap().is_none(), "it was told something");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Channel::new(&device, 8).unwrap();
            client.accept(listener.next(LONG).unwrap().unwrap(), &Empty {}).unwrap();
        });
        Client::connect(trusting(ours), address).unwrap();
    });
}
