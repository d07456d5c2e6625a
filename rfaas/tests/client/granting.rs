//! What a resource manager answers, and what becomes of it: leases on one node or several, renewals, and
//! answers that are wrong, incomplete, or interrupted.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rfaas::{Client, EndReason, Error, LeaseRequest};
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::constraints::{Constraint, Constraints};
use rfaas_protocol::lease::{
    ClientName, FromClient, LeaseGranted, LeaseRefused, LeaseTerms, LeaseUnmet, NodeName, Reason,
    ToClient, Token,
};
use rfaas_protocol::{Empty, Malformed};

use crate::common::{LONG, Node, Start, open_device};

/// What a resource manager does with a message.
enum Does {
    /// Answers it.
    Answers(Vec<ToClient>),
    /// Answers it, ends, and is started again after a while.
    Restarts(Vec<ToClient>),
}

/// A resource manager that does with each message as `does` says, given how often it was started before;
/// and a client, which is told of every message there. It is there until a client has gone.
fn resource_manager(
    does: impl Fn(u32, &FromClient) -> Does + Send + 'static,
) -> (Client, Receiver<FromClient>) {
    let (address_out, address_in) = channel();
    let (told_out, told_in) = channel();
    thread::spawn(move || {
        let device = open_device();
        let mut port = 0;
        'runs: for run in 0.. {
            let mut listener = device.device.listen(port).unwrap();
            port = listener.local_addr().port();
            address_out.send(listener.local_addr()).ok();
            let request = listener.next(LONG).unwrap().unwrap();
            let mut client = Channel::new(&device.device, 8).unwrap();
            client.accept(request, &Empty {}).unwrap();
            while let Ok(Incoming::Message(message)) = client.receive(LONG) {
                told_out.send(message).ok();
                let (Does::Answers(answers) | Does::Restarts(answers)) = &does(run, &message);
                // A client that finds fault with the first answer may not wait for the second.
                answers.iter().for_each(|answer| drop(client.send(answer)));
                if let Does::Restarts(_) = does(run, &message) {
                    client.flush(LONG).unwrap();
                    drop((client, listener));
                    thread::sleep(Duration::from_millis(100)); // nobody listens meanwhile
                    continue 'runs;
                }
            }
            return;
        }
    });
    let address: SocketAddr = address_in.recv().unwrap();
    (Client::connect(open_device(), address).unwrap(), told_in)
}

/// Likewise, but it answers only.
pub(crate) fn answering(
    answers: impl Fn(&FromClient) -> Vec<ToClient> + Send + 'static,
) -> (Client, Receiver<FromClient>) {
    resource_manager(move |_, message| Does::Answers(answers(message)))
}

/// Returns how many leases were given back, when the client has gone.
fn given_back(client: Client, told: &Receiver<FromClient>) -> usize {
    drop(client);
    told.iter().filter(|told| matches!(told, FromClient::Release(_))).count()
}

/// Part `part` of `parts` of the answer to question `request`: lease `part` + 1, which ends at `end_ms`.
fn grant(request: u32, part: u16, parts: u16, end_ms: u64) -> LeaseGranted {
    let terms = LeaseTerms {
        lease: (u64::from(part) + 1).into(),
        cores: 2.into(),
        memory: 32.into(),
        expires_at_ms: end_ms.into(),
        instance: 1.into(),
        node: NodeName::new(&format!("node-{part}")).unwrap(),
        client: ClientName::new("anonymous").unwrap(),
    };
    LeaseGranted {
        request: request.into(),
        part: part.into(),
        parts: parts.into(),
        manager: "127.0.0.1:1".parse::<SocketAddr>().unwrap().into(),
        token: Token::sign(terms, b"secret"),
    }
}

fn granted(request: u32, part: u16, parts: u16, end_ms: u64) -> ToClient {
    ToClient::Granted(grant(request, part, parts, end_ms))
}

const HOUR: Duration = Duration::from_secs(3600);
const END_MS: u64 = 1_900_000_000_000;

#[test]
fn a_request_for_several_nodes_gives_a_lease_on_each() {
    let (client, told) = answering(|message| match message {
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
    let several = || LeaseRequest::new(6, 96).max_nodes(4);
    for request in [several().has("gpu"), several().wait(Duration::from_secs(1))] {
        let error = client.lease_many(request).unwrap_err().to_string();
        assert!(error.contains("goes with neither gang, constraints nor waiting"), "{error}");
    }
}

#[test]
fn a_gang_is_asked_for_with_its_constraints_and_gives_as_many_leases() {
    let (client, told) = answering(|message| match message {
        FromClient::Gang(question) => {
            (0..3).map(|part| granted(question.wanted.request.get(), part, 3, END_MS)).collect()
        }
        _ => vec![],
    });
    let request =
        LeaseRequest::new(2, 32).near("n1").has("gpu").has("fast").at_least(4).leave_free(1);
    let leases = client.lease_gang(3, request.apart()).unwrap();
    assert_eq!(leases.len(), 3);
    let FromClient::Gang(question) = told.recv().unwrap() else { panic!("not a gang") };
    let constraints = Constraints::read_from(&question).unwrap();
    let expected = Constraints {
        apart: true,
        near: Some("n1".into()),
        leave_free: 1,
        at_least: 4,
        has: vec!["gpu".into(), "fast".into()],
        ..Constraints::default()
    };
    assert_eq!(constraints, expected);
    let wanted = question.wanted;
    let asked = (wanted.leases.get(), wanted.cores.get(), wanted.wait_ms.get());
    assert_eq!(asked, (3, 2, 0));
    for request in [
        LeaseRequest::new(1, 1).max_nodes(2),
        LeaseRequest::new(1, 1).nodes(["a"]),
        LeaseRequest::new(1, 1).has("two words"),
        LeaseRequest::new(1, 1).near(""),
        LeaseRequest::new(1, 1).wait(Duration::from_secs(3601)),
    ] {
        let error = client.lease_gang(2, request).unwrap_err();
        assert!(matches!(error, Error::Invalid(_) | Error::InvalidConstraint(_)), "{error}");
    }
    assert_eq!(told.try_iter().count(), 0, "nothing was sent");
}

#[test]
fn a_gang_of_another_number_of_leases_is_given_back() {
    let (client, told) = answering(|message| match message {
        FromClient::Gang(question) => {
            (0..2).map(|part| granted(question.wanted.request.get(), part, 2, END_MS)).collect()
        }
        _ => vec![],
    });
    let error = client.lease_gang(3, LeaseRequest::new(2, 32)).unwrap_err();
    assert!(matches!(error, Error::Protocol(Malformed::Field(_))), "{error}");
    assert_eq!(given_back(client, &told), 2);
}

/// A client whose requests are answered by a lease of two cores, and whose growths by as many as are in `nodes`, on
/// these nodes.
fn growing(nodes: &'static [u16]) -> (Client, Receiver<FromClient>) {
    answering(move |message| match message {
        FromClient::Gang(question) => vec![granted(question.wanted.request.get(), 0, 1, END_MS)],
        FromClient::Grow(question) => {
            let parts = u16::try_from(nodes.len()).unwrap();
            let grant = |(part, node): (u16, &u16)| {
                let on = grant(question.wanted.request.get(), *node, parts, END_MS);
                ToClient::Granted(LeaseGranted { part: part.into(), ..on })
            };
            (0..parts).zip(nodes).map(grant).collect()
        }
        FromClient::Renew(question) => vec![granted(question.request.get(), 0, 1, END_MS)],
        _ => vec![],
    })
}

#[test]
fn a_lease_grows_by_cores_like_its_own_where_it_may_be() {
    let (client, told) = growing(&[0, 1]);
    let request = LeaseRequest::new(2, 31).near("n1").has("gpu").together();
    let lease = client.lease(request).unwrap();
    let more = lease.grow(4).unwrap();
    let of: Vec<_> = more.iter().map(|lease| (lease.node(), lease.cores())).collect();
    assert_eq!(of, [("node-0", 2), ("node-1", 2)]);
    told.recv().unwrap(); // that it leases
    let FromClient::Grow(question) = told.recv().unwrap() else { panic!("it does not grow") };
    assert_eq!(question.grown(), [lease.id().unwrap()]);
    let wanted = question.wanted;
    let asked = (wanted.leases.get(), wanted.cores.get(), wanted.memory.get());
    assert_eq!(asked, (4, 1, 16), "half of the 32 MB of two cores");
    // It was granted for an hour, whatever the clocks of managers say.
    let left = Duration::from_millis(question.wanted.timeout_ms.get());
    assert!(left <= HOUR && left + LONG > HOUR, "{left:?}");
    lease.renew(2 * HOUR).unwrap();
    lease.grow(4).unwrap();
    let again = told.try_iter().filter_map(|told| match told {
        FromClient::Grow(question) => Some(Duration::from_millis(question.wanted.timeout_ms.get())),
        _ => None,
    });
    let left = again.last().unwrap();
    assert!(left <= 2 * HOUR && left + LONG > 2 * HOUR, "{left:?}");

    let constraints = Constraints::read_from(&question.gang()).unwrap();
    let expected =
        Constraints { together: true, has: vec!["gpu".into()], ..Constraints::default() };
    assert_eq!(constraints, expected, "it says itself where it is");
}

#[test]
fn leases_grow_by_what_is_asked_for_and_what_cannot_be_is_not_asked() {
    let (client, told) = growing(&[1]);
    let leases = [(); 2].map(|()| client.lease(LeaseRequest::new(2, 32).has("a")).unwrap());
    let both: Vec<_> = leases.iter().collect();
    let request = LeaseRequest::new(1, 16).at_least(2).wait(LONG);
    let grown = client.grow(&both, 2, request).unwrap();
    let [more] = &grown[..] else { panic!("one node") };
    assert_eq!((more.node(), more.cores()), ("node-1", 2));
    let grows = told.try_iter().find_map(|told| match told {
        FromClient::Grow(question) => Some(question),
        _ => None,
    });
    let question = grows.unwrap();
    assert_eq!(question.grown().len(), 2);
    assert!(question.wanted.wait_ms.get() > 0 && question.wanted.at_least.get() == 2);
    let one = || LeaseRequest::new(1, 16);
    for (grown, workers, request) in [
        (&both[..], 33, one()),
        (&both[..], 0, one()),
        (&[][..], 1, one()),
        (&vec![both[0]; 33], 1, one()),
        (&both[..], 1, one().near("n1")),
        (&both[..], 1, one().nodes(["n1"])),
        (&both[..], 2, one().max_nodes(2)),
    ] {
        let error = client.grow(grown, workers, request).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert!(matches!(leases[0].grow(33), Err(Error::Invalid(_))));
    assert_eq!(told.try_iter().count(), 0, "nothing was sent");
}

#[test]
fn a_lease_whose_time_is_over_does_not_grow() {
    let (client, told) = growing(&[0, 1]);
    let request = LeaseRequest::new(2, 31).has("gpu").timeout(Duration::from_millis(20));
    let lease = client.lease(request).unwrap();
    told.recv().unwrap();
    thread::sleep(Duration::from_millis(20));
    let error = lease.grow(1).unwrap_err();
    assert!(matches!(error, Error::LeaseEnded { reason: EndReason::Expired }), "{error}");
    assert_eq!(told.try_iter().count(), 0, "nothing was sent");
}

#[test]
fn without_a_resource_manager_nothing_grows() {
    let node = Node::start(Start::Well);
    let lease = node.client().lease(LeaseRequest::new(1, 32)).unwrap();
    let error = lease.grow(1).unwrap_err().to_string();
    assert!(error.contains("growing and waiting need a resource manager"), "{error}");
}

#[test]
fn what_is_grown_otherwise_than_asked_for_is_given_back() {
    // The workers asked for, of so many cores and MB; each lease has two cores and 32 MB.
    for (nodes, workers, each) in [
        (&[0, 0][..], 4, (1, 16)), // twice the same node
        (&[0, 1][..], 3, (1, 16)),
        (&[0][..], 4, (1, 16)),
        (&[0, 1][..], 4, (1, 15)),
        (&[0][..], 1, (3, 48)),
    ] {
        let (client, told) = growing(nodes);
        let lease = client.lease(LeaseRequest::new(2, 32).has("a")).unwrap();
        let (cores, memory) = each;
        let error = client.grow(&[&lease], workers, LeaseRequest::new(cores, memory)).unwrap_err();
        assert!(matches!(error, Error::Protocol(Malformed::Field(_))), "{error}");
        drop(lease);
        assert_eq!(given_back(client, &told), nodes.len() + 1);
    }
}

#[test]
fn a_constraint_that_cannot_hold_is_told_by_its_name() {
    let (client, _told) = answering(|message| match message {
        FromClient::Gang(question) => vec![ToClient::Unmet(LeaseUnmet {
            request: question.wanted.request,
            constraints: Constraint::to_wire(&[Constraint::Near, Constraint::Has]),
            reason: Reason::truncated("so it is"),
        })],
        _ => vec![],
    });
    let error = client.lease(LeaseRequest::new(2, 32).near("n1").has("gpu")).unwrap_err();
    let Error::ConstraintUnmet { constraints, reason } = error else { panic!("{error}") };
    assert_eq!(constraints, [Constraint::Near, Constraint::Has]);
    assert_eq!(reason, "so it is");
}

#[test]
fn a_request_that_waits_is_answered_late_and_others_meanwhile() {
    let (client, told) = answering({
        let waits = std::sync::Mutex::new(None);
        move |message| match message {
            FromClient::Gang(question) => {
                *waits.lock().unwrap() = Some(question.wanted.request.get());
                vec![]
            }
            // The second request has the first one answered, and is answered itself.
            FromClient::Request(question) => {
                let late = waits.lock().unwrap().take().into_iter();
                let now = granted(question.request.get(), 0, 1, END_MS);
                let late = late.map(|request| granted(request, 0, 1, END_MS));
                late.chain([now]).collect()
            }
            _ => vec![],
        }
    });
    let waiting = {
        let client = client.clone();
        thread::spawn(move || client.lease(LeaseRequest::new(2, 32).wait(LONG)).unwrap())
    };
    let FromClient::Gang(question) = told.recv().unwrap() else { panic!("not a gang") };
    assert!(
        (1..=u64::try_from(LONG.as_millis()).unwrap()).contains(&question.wanted.wait_ms.get())
    );
    let second = client.lease(LeaseRequest::new(2, 32)).unwrap();
    let first = waiting.join().unwrap();
    drop((first, second));
    assert_eq!(given_back(client, &told), 2);
}

const GANGS: usize = 4; // of 32 leases each: more than can be under way

/// A client that has given back its gangs, and a resource manager that takes nothing more until the sender is dropped.
fn given_back_to_a_busy_manager() -> (Client, Receiver<FromClient>, Sender<()>) {
    let (goes_on, may_go_on) = channel();
    let (client, told) = answering(move |message| match message {
        FromClient::Gang(question) => {
            let leases = question.wanted.leases.get() as u16;
            let part = |part| granted(question.wanted.request.get(), part, leases, END_MS);
            (0..leases).map(part).collect()
        }
        FromClient::Request(question) => vec![granted(question.request.get(), 0, 1, END_MS)],
        FromClient::Release(_) => {
            may_go_on.recv().ok(); // it takes nothing before, and then everything
            vec![]
        }
        _ => vec![],
    });
    let leases: Vec<_> =
        (0..GANGS).map(|_| client.lease_gang(32, LeaseRequest::new(2, 32)).unwrap()).collect();
    drop(leases); // does not wait for the manager
    (client, told, goes_on)
}

#[test]
fn what_a_busy_resource_manager_does_not_take_is_sent_when_it_does_without_another_message() {
    let (client, told, goes_on) = given_back_to_a_busy_manager();
    drop(goes_on);
    let taken = (0..GANGS + 32 * GANGS).map(|_| told.recv_timeout(LONG).unwrap());
    let releases = taken.filter(|told| matches!(told, FromClient::Release(_)));
    assert_eq!(releases.count(), 32 * GANGS);
    // And again: the thread that did it is not there any more.
    drop(client.lease(LeaseRequest::new(2, 32)).unwrap());
    assert!(matches!(told.recv_timeout(LONG).unwrap(), FromClient::Request(_)));
    assert!(matches!(told.recv_timeout(LONG).unwrap(), FromClient::Release(_)));
}

#[test]
fn what_a_busy_resource_manager_does_not_take_is_sent_later_and_on_the_same_connection() {
    for wait in [Duration::ZERO, LONG] {
        let (client, told, goes_on) = given_back_to_a_busy_manager();
        let later = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(goes_on);
        });
        let last = client.lease(LeaseRequest::new(2, 32).wait(wait)).unwrap();
        later.join().unwrap();
        let told: Vec<_> = told.try_iter().collect();
        let releases = |told: &[FromClient]| {
            told.iter().filter(|told| matches!(told, FromClient::Release(_))).count()
        };
        assert_eq!((told.len(), releases(&told)), (GANGS + 32 * GANGS + 1, 32 * GANGS));
        assert!(
            !matches!(told.last(), Some(FromClient::Release(_))),
            "the question is behind them"
        );
        drop(last);
    }
}

#[test]
fn what_is_granted_on_impossible_terms_is_given_back() {
    let impossible: [fn(&mut LeaseTerms); 5] = [
        |terms| terms.lease = 0.into(),
        |terms| terms.cores = 0.into(),
        |terms| terms.cores = 3.into(), // not what was asked for
        |terms| terms.cores = u32::MAX.into(),
        |terms| terms.memory = 0.into(),
    ];
    for (index, change) in impossible.into_iter().enumerate() {
        let (client, told) = answering(move |message| match message {
            FromClient::Request(question) => {
                let mut grant = grant(question.request.get(), 1, 2, END_MS);
                change(&mut grant.token.terms);
                vec![granted(question.request.get(), 0, 2, END_MS), ToClient::Granted(grant)]
            }
            _ => vec![],
        });
        let error = client.lease_many(LeaseRequest::new(4, 64).max_nodes(2)).unwrap_err();
        assert!(matches!(error, Error::Protocol(Malformed::Field(_))), "{index}: {error}");
        assert_eq!(given_back(client, &told), 2, "{index}");
    }
}

#[test]
fn an_answer_that_stops_half_way_is_given_back() {
    let (client, told) = answering(|message| match message {
        FromClient::Request(question) => vec![granted(question.request.get(), 0, 2, END_MS)],
        _ => vec![],
    });
    let error = client.lease_many(LeaseRequest::new(4, 64).max_nodes(2)).unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert_eq!(given_back(client, &told), 1);
}

#[test]
fn a_resource_manager_that_is_started_again_is_asked_again() {
    // Once it has the question only, once it has answered half of it.
    for answered in [0, 1] {
        let (client, told) = resource_manager(move |run, message| match (run, message) {
            (0, FromClient::Request(question)) => Does::Restarts(
                (0..answered)
                    .map(|part| granted(question.request.get(), part, 2, END_MS))
                    .collect(),
            ),
            (_, FromClient::Request(question)) => Does::Answers(
                (0..2).map(|part| granted(question.request.get(), part, 2, END_MS)).collect(),
            ),
            (1, FromClient::Renew(_)) => Does::Restarts(vec![]),
            (_, FromClient::Renew(question)) => {
                Does::Answers(vec![granted(question.request.get(), 0, 1, END_MS + 5)])
            }
            (
                _,
                FromClient::Release(_)
                | FromClient::Replace(_)
                | FromClient::Gang(_)
                | FromClient::Grow(_)
                | FromClient::Worker(_),
            ) => Does::Answers(vec![]),
        });
        let leases = client.lease_many(LeaseRequest::new(4, 64).max_nodes(2)).unwrap();
        assert_eq!(leases.len(), 2);
        let before = leases[0].expires_at();
        let renewed = leases[0].renew(Duration::from_secs(1)).unwrap();
        assert_eq!(renewed, before + Duration::from_millis(5));
        let asked = |told: &FromClient| matches!(told, FromClient::Request(_));
        assert_eq!(told.try_iter().filter(asked).count(), 2);
    }
}

#[test]
fn an_answer_whose_parts_do_not_fit_together_is_malformed_and_given_back() {
    for numbers in [[(0, 3), (2, 3)], [(0, 2), (1, 3)], [(1, 2), (0, 2)], [(0, 9), (1, 9)]] {
        let (client, told) = answering(move |message| match message {
            FromClient::Request(question) => numbers
                .iter()
                .map(|&(part, parts)| granted(question.request.get(), part, parts, END_MS))
                .collect(),
            _ => vec![],
        });
        let error = client.lease_many(LeaseRequest::new(6, 96).max_nodes(4)).unwrap_err();
        assert!(matches!(error, Error::Protocol(Malformed::Field(_))), "{error}");
        assert!(given_back(client, &told) >= 1, "{numbers:?}");
    }
}

#[test]
fn a_resource_manager_renews_or_refuses() {
    let (client, _told) = answering(|message| match message {
        FromClient::Request(question) => vec![granted(question.request.get(), 0, 1, END_MS)],
        FromClient::Renew(question) if question.timeout_ms.get() == 1000 => {
            vec![granted(question.request.get(), 0, 1, END_MS + 5)]
        }
        FromClient::Renew(question) => {
            let reason = Reason::truncated("the lease has ended");
            vec![ToClient::Refused(LeaseRefused { request: question.request, reason })]
        }
        FromClient::Release(_)
        | FromClient::Replace(_)
        | FromClient::Gang(_)
        | FromClient::Grow(_)
        | FromClient::Worker(_) => vec![],
    });
    let lease = client.lease(LeaseRequest::new(2, 32)).unwrap();
    let before = lease.expires_at();
    let end = lease.renew(Duration::from_secs(1)).unwrap();
    assert_eq!(end, before + Duration::from_millis(5));
    let error = lease.renew(Duration::from_secs(2)).unwrap_err();
    assert!(matches!(error, Error::LeaseRefused { .. }), "{error}");
    assert_eq!(lease.expires_at(), end, "it ends when it would have");
}
