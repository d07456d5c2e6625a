//! The life of a lease, event by event.

use super::*;
use rfaas_protocol::Secret;
use rfaas_protocol::allocation::ExecutorExited;
use rfaas_protocol::lease::{ClientName, NodeName};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::node::Bill;

const SECOND: Duration = Duration::from_secs(1);
pub(super) const HEARTBEAT: Heartbeat =
    Heartbeat { period: SECOND, silence: Duration::from_secs(5) };
const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

pub(super) fn terms(lease: u64, cores: u32, memory: u32) -> LeaseTerms {
    LeaseTerms {
        lease: lease.into(),
        cores: cores.into(),
        memory: memory.into(),
        expires_at_ms: 0.into(), // judged before, see `time_left`
        instance: 5.into(),
        node: NodeName::new("here").unwrap(),
        client: ClientName::new("someone").unwrap(),
    }
}

pub(super) fn deployment() -> Deployment {
    Deployment {
        client: "127.0.0.1:4000".parse().unwrap(),
        session: Secret([1; 16]),
        hot_timeout_ms: -1,
        graph: false,
        input_bytes: 64,
        output_bytes: 64,
        code_bytes: 1000,
        code_hash: LibraryHash([0; 32]),
        owner: ClientName::new("someone").unwrap(),
        slots: 4,
    }
}

/// Four cores and 1000 MB, at a time that the test moves.
struct Node {
    allocations: Allocations,
    now: Instant,
}

impl Node {
    fn new() -> Self {
        let mut node = Node { allocations: Allocations::new(None, HEARTBEAT), now: Instant::now() };
        node.apply(Event::Capacity(Capacity { cores: 4, memory: 1000 }));
        node
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.allocations.apply(self.now, event, &mut out);
        out
    }

    fn claim(&mut self, client: ClientId, terms: LeaseTerms) -> Vec<Action> {
        let deployment = deployment();
        self.apply(Event::Claim { client, terms, time_left: 60 * SECOND, deployment })
    }

    /// Claims and starts.
    fn lease(&mut self, client: ClientId, number: u64, cores: u32) -> LeaseId {
        let lease = LeaseId::new(number).unwrap();
        let out = self.claim(client, terms(number, cores, 100));
        assert!(matches!(out[..], [Action::Start { lease: started, .. }] if started == lease));
        let out = self.apply(Event::Started(lease));
        assert!(matches!(out[0], Action::Tell(to, ToClient::Allocated(_)) if to == client));
        assert_eq!(out[1], Action::Claimed(terms(number, cores, 100)), "nobody waits for that");
        lease
    }

    fn exit(&mut self, lease: LeaseId, usage: Usage) -> Vec<Action> {
        self.apply(Event::Exited { lease, exit: Exit::Status(0), usage })
    }
}

fn refusal(out: &[Action]) -> RefusedBecause {
    let [Action::Tell(_, ToClient::Refused(refused))] = out else { panic!("{out:?}") };
    RefusedBecause::from_wire(refused.because).unwrap()
}

/// The end that was reported, its reason and its bill.
fn ended(out: &[Action]) -> (EndReason, Bill) {
    let mut ends = out.iter().filter_map(|action| match action {
        Action::Ended(ended) => Some(ended),
        _ => None,
    });
    let end = ends.next().unwrap_or_else(|| panic!("no end in {out:?}"));
    assert!(ends.next().is_none(), "two ends in {out:?}");
    (EndReason::from_wire(end.reason).unwrap(), end.bill)
}

fn told_ending(out: &[Action]) -> Option<(EndReason, u32)> {
    out.iter().find_map(|action| match action {
        Action::Tell(_, ToClient::LeaseEnding(ending)) => {
            Some((EndReason::from_wire(ending.reason).unwrap(), ending.grace_ms.get()))
        }
        _ => None,
    })
}

#[test]
fn a_released_lease_is_free_and_billed_once_its_process_is_gone() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 3);
    assert_eq!(node.allocations.free(), Capacity { cores: 1, memory: 900 });
    node.now += 2 * SECOND;
    assert_eq!(node.apply(Event::Release(A)), [Action::Stop(lease)]);
    assert_eq!(node.allocations.free().cores, 1, "held until the process is gone");
    node.now += SECOND; // the executor took its time; that is not billed
    let usage = Usage { hot_polling_ns: 5, execution_ns: 6, invocations: 7 };
    let out = node.exit(lease, usage);
    let (reason, bill) = ended(&out);
    assert_eq!(reason, EndReason::Released);
    let expected = Bill {
        allocated_ns: 2_000_000_000.into(),
        hot_polling_ns: 5.into(),
        execution_ns: 6.into(),
        invocations: 7.into(),
    };
    assert_eq!(bill, expected);
    assert_eq!(out[1], Action::Tell(A, ToClient::Released(Released { bill })), "told last");
    assert_eq!(node.allocations.free(), Capacity { cores: 4, memory: 1000 });
    assert!(node.allocations.is_empty());
}

#[test]
fn an_expired_lease_is_stopped_its_client_told_and_billed_to_the_expiry() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    assert_eq!(node.allocations.next_deadline(), Some(node.now + 60 * SECOND));
    node.now += 59 * SECOND;
    assert_eq!(node.apply(Event::Time), []);
    node.now += 2 * SECOND;
    let out = node.apply(Event::Time);
    assert_eq!(told_ending(&out), Some((EndReason::Expired, 0)));
    assert_eq!(out[1], Action::Stop(lease));
    let (reason, bill) = ended(&node.exit(lease, Usage::default()));
    assert_eq!((reason, bill.allocated_ns.get()), (EndReason::Expired, 60_000_000_000));
}

#[test]
fn a_client_that_disappears_ends_its_lease() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    assert_eq!(node.apply(Event::ClientGone(A)), [Action::Stop(lease)]);
    let out = node.exit(lease, Usage::default());
    assert_eq!(ended(&out).0, EndReason::ClientGone);
    assert_eq!(out.len(), 1, "nobody is left to be told: {out:?}");
}

#[test]
fn a_lease_that_is_ending_cannot_be_claimed_again_and_its_holder_is_told_why() {
    let mut node = Node::new();
    node.lease(A, 7, 2);
    node.apply(Event::Release(A));
    assert_eq!(refusal(&node.claim(A, terms(7, 2, 100))), RefusedBecause::LeaseEnded);
}

#[test]
fn a_withdrawn_lease_gets_its_grace_and_ends_for_the_reason_given() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    let end = |grace| Event::End { lease, reason: EndReason::Withdrawn, grace };
    let out = node.apply(end(10 * SECOND));
    assert_eq!(told_ending(&out), Some((EndReason::Withdrawn, 10_000)));
    assert_eq!(node.apply(end(20 * SECOND)), [], "a later end changes nothing");
    node.now += 10 * SECOND;
    let out = node.apply(Event::Time);
    assert_eq!(told_ending(&out), Some((EndReason::Withdrawn, 0)));
    assert_eq!(ended(&node.exit(lease, Usage::default())).0, EndReason::Withdrawn);

    let lease = node.lease(A, 8, 1);
    let out = node.apply(Event::End { lease, reason: EndReason::Withdrawn, grace: Duration::ZERO });
    assert_eq!(out.last(), Some(&Action::Stop(lease)));
}

#[test]
fn a_crashed_executor_is_told_and_the_lease_may_start_another() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 2);
    let usage = Usage { hot_polling_ns: 1, execution_ns: 2, invocations: 3 };
    node.now += SECOND;
    let out = node.apply(Event::Exited { lease, exit: Exit::Signal(11), usage });
    let told = ExecutorExited {
        signal: 11.into(),
        status: 0.into(),
        silent: 0.into(),
        memory_limit: 0.into(),
        memory_used: 0.into(),
    };
    assert_eq!(out, [Action::Tell(A, ToClient::ExecutorExited(told))]);
    assert_eq!(node.allocations.free().cores, 2, "still claimed");
    assert_eq!(refusal(&node.claim(B, terms(7, 2, 100))), RefusedBecause::BadRequest);
    assert_eq!(refusal(&node.claim(A, terms(8, 2, 100))), RefusedBecause::BadRequest);

    assert!(matches!(node.claim(A, terms(7, 2, 100))[..], [Action::Start { .. }]));
    let out = node.apply(Event::Started(lease));
    assert!(matches!(out[..], [Action::Tell(A, ToClient::Allocated(_))]), "claimed once: {out:?}");
    node.now += SECOND;
    node.apply(Event::Release(A));
    let (_, bill) = ended(&node.exit(lease, usage));
    assert_eq!((bill.hot_polling_ns.get(), bill.execution_ns.get()), (2, 4), "both executors");
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_free_and_fits_after_a_release() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 3);
    let out = node.claim(B, terms(8, 2, 100));
    assert_eq!(refusal(&out), RefusedBecause::NoCapacity);
    assert!(format!("{out:?}").contains("2 cores asked for, 1 of 4 free"), "{out:?}");
    assert_eq!(refusal(&node.claim(B, terms(8, 1, 901))), RefusedBecause::NoCapacity);
    assert_eq!(refusal(&node.claim(B, terms(8, u32::MAX, 1))), RefusedBecause::BadRequest);
    assert_eq!(refusal(&node.claim(B, terms(8, 1, u32::MAX))), RefusedBecause::NoCapacity);
    assert_eq!(refusal(&node.claim(B, terms(8, 0, 100))), RefusedBecause::BadRequest);
    node.apply(Event::Release(A));
    assert_eq!(refusal(&node.claim(B, terms(8, 2, 100))), RefusedBecause::NoCapacity);
    node.exit(lease, Usage::default());
    node.lease(B, 8, 4);
}

#[test]
fn nothing_is_leased_before_the_capacity_is_known_or_after_it_shrank() {
    let mut node = Node { allocations: Allocations::new(None, HEARTBEAT), now: Instant::now() };
    assert_eq!(refusal(&node.claim(A, terms(7, 1, 1))), RefusedBecause::NoCapacity);
    node.apply(Event::Capacity(Capacity { cores: 2, memory: 200 }));
    let lease = node.lease(A, 7, 2);
    node.apply(Event::Capacity(Capacity { cores: 1, memory: 50 }));
    assert_eq!(node.allocations.free(), Capacity { cores: 0, memory: 0 });
    node.apply(Event::Release(A));
    node.exit(lease, Usage::default());
    assert_eq!(node.allocations.free(), Capacity { cores: 1, memory: 50 });
}

#[test]
fn a_claim_whose_executor_cannot_start_leaves_nothing_behind_and_may_be_tried_again() {
    let mut node = Node::new();
    let lease = LeaseId::new(7).unwrap();
    node.claim(A, terms(7, 2, 100));
    let out = node.apply(Event::StartFailed { lease, reason: "no executor".into() });
    assert_eq!(refusal(&out), RefusedBecause::SpawnFailed);
    assert_eq!(node.allocations.free(), Capacity { cores: 4, memory: 1000 });
    assert!(node.allocations.is_empty());
    node.lease(B, 7, 2);
}

#[test]
fn a_restart_that_fails_keeps_the_lease() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 2);
    node.exit(lease, Usage::default());
    node.claim(A, terms(7, 2, 100));
    let out = node.apply(Event::StartFailed { lease, reason: "no memory".into() });
    assert_eq!(refusal(&out), RefusedBecause::SpawnFailed);
    assert!(node.allocations.lease_of(A).is_some());
    let out = node.apply(Event::Release(A));
    assert_eq!(ended(&out).0, EndReason::Released, "no process: billed at once");
}

#[test]
fn a_start_that_is_given_up_is_told_at_once_and_frees_its_lease_when_the_process_is_gone() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 4);
    let given_up = || Event::GivenUp { lease, reason: "late".into() };
    assert_eq!(refusal(&node.apply(given_up())), RefusedBecause::SpawnFailed);
    assert!(node.apply(given_up()).is_empty(), "told once");
    let again = refusal(&node.claim(A, terms(7, 4, 100)));
    assert_eq!(again, RefusedBecause::SpawnFailed, "which may be tried again");
    assert!(node.apply(Event::Release(A)).is_empty(), "it was killed already");
    assert_eq!(node.allocations.free().cores, 0);
    let exited = Event::Exited { lease, exit: Exit::Signal(9), usage: Usage::default() };
    assert_eq!(ended(&node.apply(exited)).0, EndReason::Released);
    assert!(node.allocations.is_empty());
}

#[test]
fn a_container_that_does_not_start_after_all_keeps_the_lease_unless_that_ends() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 2);
    let failed = || Event::StartFailed { lease, reason: "the engine said so".into() };
    assert_eq!(refusal(&node.apply(failed())), RefusedBecause::SpawnFailed);
    assert!(node.apply(failed()).is_empty(), "told once");
    node.claim(A, terms(7, 2, 100));
    node.apply(Event::Started(lease));
    node.apply(Event::Release(A));
    assert_eq!(ended(&node.apply(failed())).0, EndReason::Released, "it is gone: billed");
    assert!(node.allocations.is_empty());
}

#[test]
fn without_a_resource_manager_leases_are_numbered_here() {
    let mut node = Node::new();
    for (client, number) in [(A, 1), (B, 2)] {
        let lease = LeaseId::new(number).unwrap();
        let out = node.claim(client, terms(0, 1, 100));
        assert!(matches!(out[..], [Action::Start { lease: started, .. }] if started == lease));
        node.apply(Event::Started(lease));
    }
    let lease = LeaseId::new(1).unwrap();
    node.exit(lease, Usage::default());
    let out = node.claim(A, terms(0, 1, 100));
    assert!(
        matches!(out[..], [Action::Start { lease: started, .. }] if started == lease),
        "the same lease again: {out:?}"
    );
}

#[test]
fn a_release_that_crosses_an_expiry_still_gets_the_bill() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    node.now += 61 * SECOND;
    node.apply(Event::Time);
    assert_eq!(node.apply(Event::Release(A)), []);
    let out = node.exit(lease, Usage::default());
    assert!(matches!(out[1], Action::Tell(A, ToClient::Released(_))));
    assert_eq!(ended(&out).0, EndReason::Expired);
}

#[test]
fn counters_beyond_the_cores_that_were_held_are_not_billed() {
    let forged = Usage { hot_polling_ns: u64::MAX, execution_ns: u64::MAX, invocations: 1 };
    let bill = forged.bill(2, SECOND, 0);
    assert_eq!((bill.execution_ns.get(), bill.hot_polling_ns.get()), (2_000_000_000, 0));
    let half = Usage { hot_polling_ns: u64::MAX, execution_ns: 500_000_000, invocations: 1 };
    let bill = half.bill(2, SECOND, 0);
    assert_eq!((bill.execution_ns.get(), bill.hot_polling_ns.get()), (500_000_000, 1_500_000_000));
    assert_eq!(forged.plus(forged).execution_ns, u64::MAX);
    let ages = forged.bill(u32::MAX, Duration::MAX, 0);
    assert_eq!((ages.allocated_ns.get(), ages.execution_ns.get()), (u64::MAX, u64::MAX));
}

/// What lease 7 is told to have used, if its executor shows these counters.
fn told(
    node: &mut Node,
    hot_polling_ns: u64,
    execution_ns: u64,
    invocations: u64,
) -> (u64, u64, u64) {
    let counted = Usage { hot_polling_ns, execution_ns, invocations };
    let used = node.allocations.used(node.now, |_| counted);
    let bill = used[0].bill;
    (bill.hot_polling_ns.get(), bill.execution_ns.get(), bill.invocations.get())
}

#[test]
fn what_a_lease_was_told_to_have_used_is_never_less_later() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    node.now += SECOND;
    assert_eq!(told(&mut node, 600_000_000, 300_000_000, 30), (600_000_000, 300_000_000, 30));
    // The executor sets its counters back, and then forges them.
    assert_eq!(told(&mut node, 0, 0, 0), (600_000_000, 300_000_000, 30));
    let forged = told(&mut node, 1, u64::MAX, 31);
    assert_eq!(forged, (600_000_000, 400_000_000, 31), "no more than was held, nor less polling");
    node.exit(lease, Usage { invocations: 1, ..Usage::default() });
    assert_eq!(told(&mut node, u64::MAX, u64::MAX, u64::MAX), forged, "no executor counts");
    // The next one counts from zero.
    node.claim(A, terms(7, 1, 100));
    node.apply(Event::Started(lease));
    assert_eq!(told(&mut node, 0, 0, 2).2, 33);
    let (_, bill) =
        ended(&[node.apply(Event::Release(A)), node.exit(lease, Usage::default())].concat());
    assert_eq!((bill.hot_polling_ns.get(), bill.invocations.get()), (600_000_000, 33));
}

#[test]
fn more_calls_than_there_was_time_for_are_not_billed_nor_more_than_json_keeps_exactly() {
    let calls = |invocations, cores, time| {
        let usage = Usage { hot_polling_ns: 0, execution_ns: 0, invocations };
        usage.bill(cores, time, 0).invocations.get()
    };
    assert_eq!(calls(u64::MAX, 2, SECOND), 200_000_000);
    assert_eq!(calls(50_000_000, 1, SECOND), 50_000_000);
    assert_eq!(calls(u64::MAX, u32::MAX, Duration::MAX), 1 << 53);
    assert_eq!(calls(7, 1, Duration::ZERO), 0);
}

#[test]
fn times_longer_than_32_bits_of_nanoseconds_or_microseconds_are_billed_whole() {
    let mut node = Node::new();
    let day = 24 * 3600 * SECOND; // 86,400,000,000 µs
    let claim = Event::Claim {
        client: A,
        terms: terms(7, 1, 100),
        time_left: 30 * day,
        deployment: deployment(),
    };
    node.apply(claim);
    let lease = LeaseId::new(7).unwrap();
    node.apply(Event::Started(lease));
    node.now += day;
    node.apply(Event::Release(A));
    let usage =
        Usage { hot_polling_ns: 5_000_000_000, execution_ns: 80_000_000_000_000, invocations: 9 };
    let (_, bill) = ended(&node.exit(lease, usage));
    assert_eq!(bill.allocated_ns.get(), 86_400_000_000_000);
    assert_eq!(
        (bill.hot_polling_ns.get(), bill.execution_ns.get()),
        (5_000_000_000, 80_000_000_000_000)
    );
}

#[test]
fn a_lease_without_end_does_not_overflow_the_clock() {
    let mut node = Node::new();
    let claim = Event::Claim {
        client: A,
        terms: terms(7, 1, 100),
        time_left: Duration::MAX,
        deployment: deployment(),
    };
    assert!(matches!(node.apply(claim)[..], [Action::Start { .. }]));
    let lease = LeaseId::new(7).unwrap();
    node.apply(Event::Started(lease));
    node.apply(Event::End { lease, reason: EndReason::Withdrawn, grace: Duration::MAX });
    assert!(node.allocations.next_deadline().is_some());
}

fn renewal(client: ClientId, terms: LeaseTerms, time_left: Duration) -> Event {
    Event::Renew { client, terms, time_left }
}

#[test]
fn a_renewed_lease_lasts_until_its_new_end_and_is_in_use_with_its_new_terms() {
    let mut node = Node::new();
    node.lease(A, 7, 1);
    let mut later = terms(7, 1, 100);
    later.expires_at_ms = 90_000.into();
    let renewed = Renewed { expires_at_ms: 90_000.into() };
    let answer = [Action::Tell(A, ToClient::Renewed(renewed))];
    assert_eq!(node.apply(renewal(A, later, 90 * SECOND)), answer);
    let earlier = renewal(A, terms(7, 1, 100), 10 * SECOND);
    assert_eq!(node.apply(earlier), answer, "never to an earlier time");
    assert_eq!(node.allocations.in_use().collect::<Vec<_>>(), [&later]);
    assert_eq!(node.allocations.next_deadline(), Some(node.now + 90 * SECOND));
    node.now += 100 * SECOND;
    assert_eq!(told_ending(&node.apply(Event::Time)), Some((EndReason::Expired, 0)));
}

#[test]
fn only_who_holds_a_lease_that_is_not_being_ended_renews_it() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    let asked = |client, number, cores| renewal(client, terms(number, cores, 100), 90 * SECOND);
    assert_eq!(refusal(&node.apply(asked(B, 7, 1))), RefusedBecause::LeaseEnded);
    assert_eq!(refusal(&node.apply(asked(A, 8, 1))), RefusedBecause::BadRequest);
    assert_eq!(refusal(&node.apply(asked(A, 7, 2))), RefusedBecause::BadRequest);
    node.apply(Event::End { lease, reason: EndReason::Withdrawn, grace: SECOND });
    assert_eq!(refusal(&node.apply(asked(A, 7, 1))), RefusedBecause::LeaseEnded);
    node.now += SECOND;
    node.apply(Event::Time);
    assert_eq!(refusal(&node.apply(asked(A, 7, 1))), RefusedBecause::LeaseEnded);
}

#[test]
fn a_node_that_is_to_stop_ends_all_leases_in_time_also_one_that_only_starts() {
    let mut node = Node::new();
    let running = node.lease(A, 7, 1);
    node.claim(B, terms(8, 1, 100));
    let starting = LeaseId::new(8).unwrap();
    let out = node.apply(Event::Drain { grace: 10 * SECOND });
    assert_eq!(told_ending(&out), Some((EndReason::Shutdown, 10_000)));
    assert_eq!(out.len(), 1, "the other waits for the answer to its claim: {out:?}");
    node.now += 4 * SECOND;
    let out = node.apply(Event::Started(starting));
    assert!(matches!(out[0], Action::Tell(B, ToClient::Allocated(_))), "{out:?}");
    assert_eq!(told_ending(&out), Some((EndReason::Shutdown, 6_000)));
    assert_eq!(refusal(&node.claim(ClientId(3), terms(9, 1, 100))), RefusedBecause::Draining);
    let renewed = node.apply(renewal(A, terms(7, 1, 100), 90 * SECOND));
    assert_eq!(refusal(&renewed), RefusedBecause::Draining);
    node.now += 6 * SECOND;
    let out = node.apply(Event::Time);
    for lease in [running, starting] {
        assert!(out.contains(&Action::Stop(lease)), "{out:?}");
        assert_eq!(ended(&node.exit(lease, Usage::default())).0, EndReason::Shutdown);
    }
    assert!(node.allocations.is_empty());
}

#[test]
fn an_executor_that_was_killed_for_its_silence_is_told_to_have_been_silent() {
    let mut node = Node::new();
    let lease = node.lease(A, 7, 1);
    let out = node.apply(Event::Exited { lease, exit: Exit::Silent, usage: Usage::default() });
    let told = ExecutorExited {
        signal: 9.into(),
        status: 0.into(),
        silent: 1.into(),
        memory_limit: 0.into(),
        memory_used: 0.into(),
    };
    assert_eq!(out, [Action::Tell(A, ToClient::ExecutorExited(told))]);
    assert!(matches!(node.claim(A, terms(7, 1, 100))[..], [Action::Start { .. }]));
}
