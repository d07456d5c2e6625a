//! Control messages of all conversations, in both directions, and what opens a connection: any bytes, as who receives
//! them reads them, and then the fields as it uses them.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::SystemTime;

use executor_manager::request::Deployment;
use resource_manager::pool::GraphWorker;
use rfaas_call::Spin;
use rfaas_call::callee::Layout;
use rfaas_protocol::accounting::{AccountingHello, Counters};
use rfaas_protocol::allocation::{self, ClaimHello, NodeProof, OutputStream, RefusedBecause};
use rfaas_protocol::constraints::{Constraint, Constraints, MAX_GROWN};
use rfaas_protocol::edge::{EdgeHello, EdgeSlots, InputKind, Join, OutputKind, Takes};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::lease::{self, EndReason, LeaseTerms, Unusable};
use rfaas_protocol::node::{self, ManagerProof, NodeHello};
use rfaas_protocol::session::{CodeFrom, ExecutorHello, FromExecutor, ToExecutor, WorkerHello};
use rfaas_protocol::{
    Bytes, Clock, Empty, Hello, Malformed, MessageKind, Refusal, Role, Text, WireAddress, launch,
    parse_prefix,
};

use crate::assert_line;

fn gang(gang: &lease::GangRequest) {
    text(&gang.wanted.client);
    if let Some(constraints) = number(Constraints::read_from(gang))
        && let Err(why) = constraints.check(gang.wanted.leases.get())
    {
        assert_line(&why);
    }
}

pub(crate) fn run(bytes: &[u8]) {
    message(bytes, |message: &lease::FromClient| match message {
        lease::FromClient::Request(request) => text(&request.client),
        lease::FromClient::Gang(gang) => self::gang(gang),
        lease::FromClient::Grow(grow) => {
            assert!(grow.grown().len() <= MAX_GROWN);
            self::gang(&grow.gang());
        }
        lease::FromClient::Worker(worker) => {
            text(&worker.name);
            text(&worker.functions);
            if let Some((_, worker)) = number(GraphWorker::from_wire(worker)) {
                assert_line(&worker.name);
                worker.functions.lines().for_each(assert_line);
            }
        }
        lease::FromClient::Release(release) => terms(&release.token.terms),
        lease::FromClient::Renew(renew) => terms(&renew.token.terms),
        lease::FromClient::Replace(replace) => {
            terms(&replace.token.terms);
            if let Some(because) = number(Unusable::from_wire(replace.because)) {
                assert_line(because.in_words());
            }
        }
    });
    message(bytes, |message: &lease::ToClient| match message {
        lease::ToClient::Granted(granted) => {
            terms(&granted.token.terms);
            address(granted.manager);
        }
        lease::ToClient::Refused(refused) => text(&refused.reason),
        lease::ToClient::Unmet(unmet) => {
            text(&unmet.reason);
            number(Constraint::from_wire(unmet.constraints));
        }
    });
    message(bytes, |message: &node::FromNode| match message {
        node::FromNode::Register(register) => {
            text(&register.node);
            address(register.address);
            clock(register.clock);
            assert_line(&register.isolation().to_string());
        }
        node::FromNode::Claimed(claimed) => terms(&claimed.terms),
        node::FromNode::Ended(ended) => {
            terms(&ended.terms);
            end_reason(EndReason::from_wire(ended.reason));
        }
        node::FromNode::Heartbeat(beat) => clock(*beat),
        node::FromNode::Used(_) | node::FromNode::Draining(_) => {}
    });
    message(bytes, |message: &node::ToNode| match message {
        node::ToNode::Registered(registered) => {
            heartbeat(registered.heartbeat_ms.get(), registered.silence_ms.get());
            clock(registered.clock);
        }
        node::ToNode::Refused(refused) => text(&refused.reason),
        node::ToNode::EndedAck(_) => {}
        node::ToNode::EndLease(end) => end_reason(EndReason::from_wire(end.reason)),
        node::ToNode::Heartbeat(beat) => clock(*beat),
    });
    message(bytes, |message: &allocation::FromClient| match message {
        allocation::FromClient::Allocate(allocate) => claim(allocate),
        allocation::FromClient::Renew(renew) => {
            terms(&renew.signed.terms);
            clock(renew.clock);
        }
        allocation::FromClient::Release(_)
        | allocation::FromClient::Heartbeat(_)
        | allocation::FromClient::ReadOutput(_) => {}
    });
    message(bytes, |message: &allocation::ToClient| match message {
        allocation::ToClient::Allocated(allocated) => {
            heartbeat(allocated.heartbeat_ms.get(), allocated.silence_ms.get());
        }
        allocation::ToClient::Refused(refused) => {
            number(RefusedBecause::from_wire(refused.because));
            text(&refused.reason);
        }
        allocation::ToClient::LeaseEnding(ending) => {
            end_reason(EndReason::from_wire(ending.reason));
        }
        allocation::ToClient::OutputPart(part) => {
            number(OutputStream::from_wire(part.stream));
            match part.bytes() {
                Ok(bytes) => assert!(bytes.len() <= allocation::MAX_PART_BYTES),
                Err(malformed) => assert_line(&malformed.to_string()),
            }
        }
        allocation::ToClient::ExecutorExited(_)
        | allocation::ToClient::Released(_)
        | allocation::ToClient::Heartbeat(_)
        | allocation::ToClient::Renewed(_) => {}
    });
    message(bytes, |message: &FromExecutor| match message {
        FromExecutor::Functions(functions) => {
            let names = functions.get().unwrap_or_default();
            assert!(names.iter().all(|name| !name.is_empty() && !name.contains('\0')));
        }
        FromExecutor::LoadFailed(failed) => text(&failed.reason),
        FromExecutor::CodeDiffers(differs) => assert_line(&differs.received.to_string()),
        FromExecutor::Listening(listening) => address(listening.address),
    });
    message(bytes, |message: &ToExecutor| match message {
        ToExecutor::Part(part) => {
            text(&part.name);
            number(Join::from_wire(part.join));
            number(Takes::from_wire(part.takes));
        }
        ToExecutor::EdgeIn(edge) => {
            number(InputKind::from_wire(edge.kind));
        }
        ToExecutor::EdgeHere(edge) => {
            number(InputKind::from_wire(edge.kind));
        }
        ToExecutor::EdgeOut(edge) => {
            address(edge.to);
            number(OutputKind::from_wire(edge.kind));
        }
        ToExecutor::InputOfClient(_) | ToExecutor::Complete(_) => {}
    });
    message(bytes, |message: &launch::FromZygote| {
        if let launch::FromZygote::NotStarted(not) = message {
            text(&not.reason);
        }
    });
    message(bytes, |_: &launch::ToZygote| {});
    message(bytes, |_: &launch::FromGuardian| {});
    message(bytes, |_: &launch::ToGuardian| {});
    opening(bytes);
    answer(bytes);
}

/// Reads a message; what was read is written as the same bytes.
fn message<M: MessageKind + Debug + PartialEq>(bytes: &[u8], fields: impl FnOnce(&M)) {
    match M::decode(bytes) {
        Ok(message) => {
            assert_eq!(message.encode(), bytes);
            assert_line(&format!("{message:?}"));
            fields(&message);
        }
        Err(malformed) => assert_line(&malformed.to_string()),
    }
}

/// Reads private data of who connects, as who listens does.
fn opening(bytes: &[u8]) {
    let (role, body) = match Hello::parse(bytes) {
        Ok(opened) => opened,
        Err(malformed) => return assert_line(&malformed.to_string()),
    };
    match role {
        Role::Lease => same(bytes, role, parse_prefix::<Empty>(body)),
        Role::Node => same(bytes, role, parse_prefix::<NodeHello>(body)),
        Role::Allocation => same(bytes, role, parse_prefix::<ClaimHello>(body)),
        Role::Accounting => same(bytes, role, parse_prefix::<AccountingHello>(body)),
        Role::Executor => {
            let hello = parse_prefix::<ExecutorHello>(body);
            if let Ok(hello) = &hello {
                number(CodeFrom::from_wire(hello.code_from));
            }
            same(bytes, role, hello);
        }
        Role::Worker => same(bytes, role, parse_prefix::<WorkerHello>(body)),
        Role::Edge => same(bytes, role, parse_prefix::<EdgeHello>(body)),
    }
}

/// What was read of private data is written as its first bytes, but for the version.
fn same<T: Bytes + Debug>(bytes: &[u8], role: Role, body: Result<T, Malformed>) {
    /// Where the version stands.
    const VERSION: std::ops::Range<usize> = 4..6;
    match body {
        Ok(body) => {
            let mut written = Hello::with(role, &body);
            written[VERSION].copy_from_slice(&bytes[VERSION]);
            assert!(bytes.starts_with(&written));
            assert_line(&format!("{body:?}"));
        }
        Err(malformed) => assert_line(&malformed.to_string()),
    }
}

/// Reads private data of an acceptance or a refusal.
fn answer(bytes: &[u8]) {
    if let Ok(refusal) = parse_prefix::<Refusal>(bytes) {
        text(&refusal);
    }
    for debug in [
        parse_prefix::<NodeProof>(bytes).map(|proof| format!("{proof:?}")),
        parse_prefix::<ManagerProof>(bytes).map(|proof| format!("{proof:?}")),
        parse_prefix::<Counters>(bytes).map(|counters| format!("{counters:?}")),
        parse_prefix::<EdgeSlots>(bytes).map(|slots| format!("{slots:?}")),
    ] {
        assert_line(&debug.unwrap_or_else(|malformed| malformed.to_string()));
    }
}

/// Judges a claim as a node does. One that is taken can be carried out by an executor.
fn claim(allocate: &allocation::Allocate) {
    terms(&allocate.signed.terms);
    clock(allocate.clock);
    let deployment = match Deployment::try_from(allocate) {
        Ok(deployment) => deployment,
        Err(malformed) => return assert_line(&malformed.to_string()),
    };
    let LeaseTerms { cores, memory, .. } = allocate.signed.terms;
    match deployment.check(cores.get(), memory.get()) {
        Ok(()) => {
            let layout = Layout::new(
                deployment.slots,
                deployment.input_bytes,
                deployment.output_bytes,
                4096, // of this machine or not: it is a power of two
            );
            assert!(layout.is_ok(), "the executor refuses what the node has taken: {layout:?}");
            assert!(Spin::from_hot_timeout_ms(deployment.hot_timeout_ms).is_some());
        }
        Err(refusal) => {
            assert_line(&refusal.reason);
            let told = refusal.message();
            let allocation::ToClient::Refused(refused) = told else { panic!("{told:?}") };
            assert!(refusal.reason.starts_with(refused.reason.get().expect("it was a text")));
        }
    }
}

fn terms(terms: &LeaseTerms) {
    text(&terms.node);
    text(&terms.client);
    assert_eq!(terms.id().is_none(), terms.lease.get() == 0);
    assert!(terms.same_lease(terms));
    terms.expired(SystemTime::now());
}

/// A text is the one that was meant, or none.
fn text<const N: usize>(text: &Text<N>) {
    match text.get() {
        Ok(words) => {
            assert!(words.len() <= N);
            assert_eq!(Text::<N>::truncated(words).get(), Ok(words));
        }
        Err(malformed) => assert_line(&malformed.to_string()),
    }
}

/// An address is the same after a way there and back.
fn address(wire: WireAddress) {
    let address = SocketAddr::from(wire);
    assert_eq!(SocketAddr::from(WireAddress::from(address)), address);
}

fn clock(clock: Clock) {
    let now = SystemTime::now();
    assert_eq!(Clock::from(clock.time()), clock, "no time is lost");
    assert_eq!(clock.ahead_of(now) > 0, clock.ms.get() > Clock::from(now).ms.get());
}

fn heartbeat(period_ms: u32, silence_ms: u32) {
    let heartbeat = Heartbeat::from_ms(period_ms, silence_ms);
    assert!(heartbeat.period_ms() >= Heartbeat::SHORTEST_PERIOD_MS);
    assert!(heartbeat.silence >= heartbeat.period);
}

fn end_reason(reason: Result<EndReason, Malformed>) {
    if let Some(reason) = number(reason) {
        assert_line(reason.name());
    }
}

/// Returns what a number means, if it means something.
fn number<T>(read: Result<T, Malformed>) -> Option<T> {
    read.map_err(|malformed| assert_line(&malformed.to_string())).ok()
}
