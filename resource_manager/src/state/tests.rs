//! A state file: what was committed is there, what is none of ours is refused.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use redb::{TableDefinition, TableHandle};
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::node::Bill;
use rfaas_protocol::placement::Policy;
use tempfile::TempDir;

use super::*;
use crate::pool::{Capacity, ChosenPolicy, GraphWorker, LeaseRecord, NodeRecord, NodeSpec, Terms};

fn id(id: u64) -> LeaseId {
    LeaseId::new(id).unwrap()
}

fn at(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    (directory, path)
}

fn node(name: &str, draining: bool) -> NodeRecord {
    let capacity = Capacity { cores: 4, memory: u32::MAX };
    let spec = NodeSpec::new(name, "node.example", 10_005, capacity).unwrap();
    let spec = spec.with_labels(&["gpu".into(), "rack=7".into()]).unwrap();
    let leaves_at = draining.then(|| at(1_234));
    NodeRecord {
        spec,
        instance: NonZeroU64::new(u64::MAX),
        draining,
        leaves_at,
        replaced: draining,
    }
}

fn lease(lease: u64) -> LeaseRecord {
    LeaseRecord {
        terms: Terms {
            lease: id(lease),
            cores: 1,
            memory: 2,
            expires_at: at(3),
            instance: NonZeroU64::new(4),
            client: "c".into(),
        },
        node: "a".into(),
        worker: lease.is_multiple_of(3).then(|| {
            let (name, functions) = ("words".into(), "split\ncount".into());
            let (lane, worker) = (1, u16::MAX);
            Arc::new(GraphWorker { graph: u64::MAX, name, lane, worker, functions })
        }),
        granted_at: at(5),
        while_connected: lease.is_multiple_of(2),
        claimed_at: (lease > 10).then(|| at(6)),
        ending: (lease > 20).then(|| (EndReason::Withdrawn, at(7))),
        used: Bill { invocations: 8.into(), ..Bill::default() },
    }
}

fn bill(lease: u64, ended_at: u64, reported: bool) -> Billed {
    Billed {
        lease: id(lease),
        client: "c".into(),
        node: "a".into(),
        cores: 1,
        memory: 2,
        bill: Bill { allocated_ns: 9.into(), ..Bill::default() },
        ended_at: at(ended_at),
        reason: EndReason::Expired,
        claimed: true,
        reported,
    }
}

fn bills(state: &StateFile, since: u64) -> Vec<Billed> {
    let mut bills = Vec::new();
    state.for_each_bill(None, Some(at(since)), |bill| bills.push(bill)).unwrap();
    bills
}

/// Changes that book these bills.
fn booking(bills: &[Billed]) -> Changes {
    Changes { bills: bills.to_vec(), ..Changes::default() }
}

/// What is wrong with the file at `path`.
fn refusal(path: &Path) -> String {
    let refusal = format!("{:#}", StateFile::open(path).unwrap_err());
    assert!(refusal.contains(&path.display().to_string()), "{refusal}");
    assert!(!refusal.contains('\n'), "{refusal}");
    refusal
}

#[test]
fn what_was_committed_is_there_in_the_next_run() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    assert_eq!(state.snapshot(at(0)).unwrap(), None, "the first run");
    state.begin(id(7)).unwrap();
    let mut changes = Changes::default();
    for name in ["a", "b", "c"] {
        changes.nodes.insert(name.into(), Some(node(name, name == "b")));
    }
    for number in [8, 9, 11, 22] {
        changes.leases.insert(id(number), Some(lease(number)));
    }
    state.commit(&changes).unwrap();
    let mut changes = booking(&[bill(9, 100, true), bill(33, 50, false)]);
    changes.policy = Some(ChosenPolicy { chosen: Policy::Spread, settings: Policy::BinPack });
    changes.nodes.insert("c".into(), None);
    changes.leases.insert(id(9), None);
    state.commit(&changes).unwrap();
    drop(state);

    let state = StateFile::open(&path).unwrap();
    let snapshot = state.snapshot(at(0)).unwrap().unwrap();
    let expected = Snapshot {
        nodes: vec![node("a", false), node("b", true)],
        leases: vec![lease(8), lease(11), lease(22)],
        bills: vec![bill(33, 50, false)],
        policy: Some(ChosenPolicy { chosen: Policy::Spread, settings: Policy::BinPack }),
        first_id: id(7),
        last_id: Some(id(33)),
    };
    assert_eq!(snapshot, expected);
    assert_eq!(state.bill(id(9)).unwrap(), Some(bill(9, 100, true)));
    assert_eq!(state.bill(id(8)).unwrap(), None);
}

#[test]
fn a_lease_has_one_bill_and_a_later_one_replaces_it() {
    let state = StateFile::in_memory().unwrap();
    state.commit(&booking(&[bill(1, 10, false), bill(2, 10, true)])).unwrap();
    state.commit(&booking(&[bill(1, 30, true)])).unwrap();
    assert_eq!(bills(&state, 0), [bill(2, 10, true), bill(1, 30, true)]);
    assert_eq!(state.bill(id(1)).unwrap(), Some(bill(1, 30, true)));
    state.commit(&booking(&[bill(3, 40, false), bill(3, 40, true)])).unwrap();
    assert_eq!(bills(&state, 40), [bill(3, 40, true)], "also within one commit");
}

#[test]
fn bills_of_leases_that_nobody_claimed_are_there_among_the_others_for_a_while() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    let unclaimed = |lease, ended_at| Billed { claimed: false, ..bill(lease, ended_at, false) };
    let all = [unclaimed(5, 10), bill(2, 20, true), unclaimed(3, 20), bill(9, 30, true)];
    state.commit(&booking(&all[2..])).unwrap();
    state.commit(&booking(&all[..2])).unwrap();
    assert_eq!(bills(&state, 0), all);
    assert_eq!(bills(&state, 20), all[1..]);
    assert_eq!(state.bill(id(3)).unwrap().as_ref(), Some(&all[2]));
    let mut paged = Vec::new();
    let mut next = Some(Cursor::at(None));
    while let Some(at) = next {
        let (page, after) = state.bills(None, at, UNIX_EPOCH + Duration::from_secs(1), 1).unwrap();
        paged.extend(page);
        next = after;
    }
    assert_eq!(paged, all);
    assert_eq!(state.bills(None, Cursor::at(None), at(20), 9).unwrap(), (all[..3].to_vec(), None));

    // One was claimed after all.
    state.commit(&booking(&[bill(3, 40, true)])).unwrap();
    assert_eq!(bills(&state, 30), [bill(9, 30, true), bill(3, 40, true)]);
    let first = 100;
    for start in (0..4 * MAX_UNCLAIMED).step_by(1024) {
        let many: Vec<_> = (start..start + 1024).map(|n| unclaimed(first + n, 50 + n)).collect();
        state.commit(&booking(&many)).unwrap();
        let kept = bills(&state, 50).len() as u64;
        assert_eq!(kept, MAX_UNCLAIMED.min(start + 1024));
    }
    let oldest = bills(&state, 50).first().map(|bill| bill.lease.get());
    assert_eq!(oldest, Some(first + 3 * MAX_UNCLAIMED), "the last are kept");
    assert_eq!(bills(&state, 0).iter().filter(|bill| bill.claimed).count(), 3, "for ever");
    drop(state);
    let last = StateFile::open(&path).unwrap().snapshot(at(0)).unwrap();
    assert_eq!(last, None, "it was not begun");
}

#[test]
fn a_page_looks_at_so_many_bills_whosever_they_are_and_goes_on_behind_them() {
    let state = StateFile::in_memory().unwrap();
    let others = MOST_LOOKED_AT as u64;
    let unclaimed = |bill| Billed { claimed: false, ..bill };
    let named = |bill| Billed { client: "rare".into(), ..bill };
    // Every third was not claimed, so that both tables are looked at.
    let of_others = |n: u64| match n % 3 {
        0 => unclaimed(bill(n, n, false)),
        _ => bill(n, n, true),
    };
    let mut all: Vec<_> = (1..=others).map(of_others).collect();
    all.push(named(unclaimed(bill(others + 1, others + 1, false))));
    all.push(named(bill(others + 2, 0, true)));
    state.commit(&booking(&all)).unwrap();
    let until = at(u64::MAX);
    let page = |client, from| state.bills(Some(client), from, until, 9).unwrap();
    let leases = |bills: &[Billed]| bills.iter().map(|bill| bill.lease.get()).collect::<Vec<_>>();
    let (first, next) = page("rare", Cursor::at(None));
    assert_eq!(leases(&first), [others + 2]);
    let (second, end) = page("rare", next.unwrap());
    assert_eq!((leases(&second), end), (vec![others + 1], None));
    let (none, next) = page("nobody", Cursor::at(None));
    assert_eq!(none, []);
    assert_eq!(page("nobody", next.unwrap()), (Vec::new(), None));
    let mut found = Vec::new();
    state.for_each_bill(Some("rare"), None, |bill| found.push(bill.lease.get())).unwrap();
    assert_eq!(found, [others + 2, others + 1]);
}

#[test]
fn the_number_of_a_lease_that_nobody_claimed_is_not_used_again() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    state.begin(id(7)).unwrap();
    state.commit(&booking(&[Billed { claimed: false, ..bill(33, 50, false) }])).unwrap();
    drop(state);
    let snapshot = StateFile::open(&path).unwrap().snapshot(at(0)).unwrap().unwrap();
    assert_eq!(snapshot.last_id, Some(id(33)));
    assert_eq!(snapshot.bills.len(), 1, "a report may still come");

    // Also when so many others have ended since that its bill is not kept.
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    state.begin(id(7)).unwrap();
    let last = id(10 * MAX_UNCLAIMED);
    let many = (8..2 * MAX_UNCLAIMED + 8).map(|n| bill(n, n, false));
    let all: Vec<_> = std::iter::once(bill(last.get(), 1, false)).chain(many).collect();
    let all: Vec<_> = all.into_iter().map(|bill| Billed { claimed: false, ..bill }).collect();
    state.commit(&booking(&all)).unwrap();
    assert_eq!(state.bill(last).unwrap(), None);
    assert_eq!(state.bill(id(8)).unwrap(), None);
    assert_eq!(state.snapshot(at(0)).unwrap().unwrap().last_id, Some(last));
}

#[test]
fn a_commit_takes_twice_as_many_unclaimed_bills_away_as_it_adds_at_most() {
    let state = StateFile::in_memory().unwrap();
    let unclaimed = |n| Billed { claimed: false, ..bill(n, n, false) };
    let too_many = MAX_UNCLAIMED + 5;
    let transaction = state.database.begin_write().unwrap();
    let mut table = transaction.open_table(UNCLAIMED).unwrap();
    for n in 1..=too_many {
        table.insert((n, n), rows::billed_row(&unclaimed(n))).unwrap();
    }
    drop(table);
    transaction.commit().unwrap();
    let mut kept = Vec::new();
    for n in too_many + 1..=too_many + 6 {
        state.commit(&booking(&[unclaimed(n), bill(10 * n, n, true)])).unwrap();
        kept.push(bills(&state, 0).iter().filter(|bill| !bill.claimed).count() as u64);
    }
    assert_eq!(kept, [4, 3, 2, 1, 0, 0].map(|more| MAX_UNCLAIMED + more));
}

#[test]
fn a_file_of_before_bills_of_unclaimed_leases_had_a_table_is_taken_over() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    state.begin(id(7)).unwrap();
    let transaction = state.database.begin_write().unwrap();
    transaction.delete_table(UNCLAIMED).unwrap();
    let before = TableDefinition::<u64, (u64, bool)>::new(rows::UNCLAIMED_BEFORE.name());
    transaction.open_table(before).unwrap().insert(1, (2, true)).unwrap();
    transaction.commit().unwrap();
    drop(state);
    let state = StateFile::open(&path).unwrap();
    assert!(state.database.begin_read().unwrap().open_table(before).is_err(), "it is gone");
    assert_eq!(state.snapshot(at(0)).unwrap().map(|snapshot| snapshot.first_id), Some(id(7)));
    assert_eq!(bills(&state, 0), []);
}

#[test]
fn what_leases_were_for_that_an_earlier_program_has_ended_is_dropped() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    state.begin(id(1)).unwrap();
    let leases: std::collections::BTreeMap<_, _> =
        [3, 6, 9].map(|number| (id(number), Some(lease(number)))).into();
    state.commit(&Changes { leases: leases.clone(), ..Changes::default() }).unwrap();
    let transaction = state.database.begin_write().unwrap();
    transaction.open_table(LEASES).unwrap().remove(6).unwrap(); // which is all that it knows to do
    transaction.commit().unwrap();
    drop(state);
    let state = StateFile::open(&path).unwrap();
    let kept = |state: &StateFile| {
        let workers = state.database.begin_read().unwrap().open_table(WORKERS).unwrap();
        workers.iter().unwrap().map(|row| row.unwrap().0.value()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&state), [3, 9]);
    assert_eq!(state.snapshot(at(0)).unwrap().unwrap().leases, [lease(3), lease(9)]);

    // It is written once, and goes with its lease.
    let used = |number| {
        let worker =
            Arc::new(GraphWorker { lane: 9, ..(**lease(3).worker.as_ref().unwrap()).clone() });
        let changed = LeaseRecord { worker: Some(worker), granted_at: at(8), ..lease(number) };
        Changes { leases: [(id(number), Some(changed))].into(), ..Changes::default() }
    };
    state.commit(&used(3)).unwrap();
    let expected = LeaseRecord { granted_at: at(8), ..lease(3) };
    assert_eq!(state.snapshot(at(0)).unwrap().unwrap().leases, [expected, lease(9)]);
    let ended = Changes { leases: [(id(3), None)].into(), ..Changes::default() };
    state.commit(&ended).unwrap();
    assert_eq!(kept(&state), [9]);
}

#[test]
fn a_link_leads_to_the_state_file() {
    let (directory, path) = place();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("state", &link).unwrap();
    StateFile::open(&link).unwrap().begin(id(3)).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(StateFile::open(&path).unwrap().snapshot(at(0)).unwrap().is_some());
    fs::write(&path, "").unwrap();
    StateFile::open(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::metadata(&path).unwrap().len() > 0);
}

#[test]
fn bills_since_a_time_begin_there_in_the_order_in_which_leases_ended() {
    let state = StateFile::in_memory().unwrap();
    let all = [bill(5, 10, true), bill(1, 20, true), bill(2, 20, true), bill(4, 30, true)];
    state.commit(&booking(&[all[3].clone(), all[1].clone()])).unwrap();
    state.commit(&booking(&[all[2].clone(), all[0].clone()])).unwrap();
    assert_eq!(bills(&state, 0), all);
    assert_eq!(bills(&state, 20), all[1..]);
    assert_eq!(bills(&state, 21), all[3..]);
    let mut none = 0;
    state.for_each_bill(Some("somebody else"), None, |_| none += 1).unwrap();
    assert_eq!(none, 0);
}

#[test]
fn a_snapshot_has_bills_of_earlier_states_and_none_that_nobody_reports_any_more() {
    let state = StateFile::in_memory().unwrap();
    state.begin(id(10)).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let now = UNIX_EPOCH + 1000 * day;
    let recent = |lease, reported| Billed { ended_at: now - day, ..bill(lease, 0, reported) };
    let booked = [bill(12, 5, false), recent(5, true), recent(13, true), recent(14, false)];
    state.commit(&booking(&booked)).unwrap();
    let snapshot = state.snapshot(now).unwrap().unwrap();
    assert_eq!(snapshot.bills, [recent(5, true), recent(14, false)]);
    assert_eq!(snapshot.last_id, Some(id(14)));
}

#[test]
fn any_time_and_number_that_a_peer_may_name_is_kept() {
    let state = StateFile::with_backend(InMemoryBackend::new()).unwrap();
    state.begin(id(1)).unwrap();
    let mut endless = lease(u64::MAX);
    endless.terms.expires_at = UNIX_EPOCH + Duration::from_millis(u64::MAX);
    endless.granted_at = UNIX_EPOCH - Duration::from_secs(1);
    let leases = [(id(u64::MAX), Some(endless))].into();
    state.commit(&Changes { leases, ..Changes::default() }).unwrap();
    let read = state.snapshot(at(0)).unwrap().unwrap().leases.remove(0);
    assert_eq!(read.granted_at, UNIX_EPOCH);
    assert_eq!(read.terms.expires_at, at(u64::MAX), "as late as can be written");
}

#[test]
fn a_state_in_memory_keeps_bills_alone() {
    let state = StateFile::in_memory().unwrap();
    state.begin(id(1)).unwrap();
    let nodes = [("a".into(), Some(node("a", false)))].into();
    let leases = [(id(3), Some(lease(3)))].into();
    state.commit(&Changes { nodes, leases, ..Changes::default() }).unwrap();
    let leases = [(id(4), Some(lease(4)))].into();
    let booked = Changes { leases, ..booking(&[bill(3, 10, true)]) };
    state.commit(&booked).unwrap();
    assert_eq!(bills(&state, 0), [bill(3, 10, true)]);
    let snapshot = state.snapshot(at(0)).unwrap().unwrap();
    assert!(snapshot.nodes.is_empty() && snapshot.leases.is_empty(), "{snapshot:?}");
}

#[test]
fn a_state_file_has_one_writer() {
    let (_directory, path) = place();
    let first = StateFile::open(&path).unwrap();
    assert!(refusal(&path).contains("another resource manager has it open"));
    drop(first);
    StateFile::open(&path).unwrap();
}

#[test]
fn a_file_that_is_no_state_file_is_refused_and_stays_as_it_is() {
    let (directory, path) = place();
    for content in [&b"{\"executors\": []}"[..], &[0; 100_000], b"redb\x1a\x0a\xa9\x0d\x0a"] {
        fs::write(&path, content).unwrap();
        refusal(&path);
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert!(refusal(directory.path()).contains("is not a file"));
    refusal(&directory.path().join("none/state"));

    let others = directory.path().join("others");
    let database = Builder::new().create(&others).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u8, u8>::new("meta")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(refusal(&others).contains("something else"));
}

#[test]
fn a_file_of_a_newer_format_is_refused_by_its_number() {
    let (_directory, path) = place();
    StateFile::open(&path).unwrap();
    let database = Builder::new().open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(FORMAT_KEY, FORMAT + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(refusal(&path).contains("has format 2, and this program knows only 1"));
}

#[test]
fn an_empty_file_becomes_a_state_file_and_nothing_else_is_left() {
    let (directory, path) = place();
    fs::write(&path, "").unwrap();
    StateFile::open(&path).unwrap().begin(id(3)).unwrap();
    let snapshot = StateFile::open(&path).unwrap().snapshot(at(0)).unwrap();
    assert_eq!(snapshot.map(|snapshot| snapshot.first_id), Some(id(3)));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_is_refused_in_one_line() {
    let (_directory, path) = place();
    let state = StateFile::open(&path).unwrap();
    state.begin(id(1)).unwrap();
    for number in 0..200_u64 {
        let name: Arc<str> = format!("node-{number}").into();
        let nodes = [(name.clone(), Some(node(&name, false)))].into();
        state.commit(&Changes { nodes, ..Changes::default() }).unwrap();
    }
    drop(state);
    let good = fs::read(&path).unwrap();
    let places = good.windows(5).enumerate().filter(|(_, bytes)| bytes == b"node-");
    let middle = places.map(|(at, _)| at).nth(100).unwrap();
    let mut damaged = good.clone();
    damaged.iter_mut().skip(middle / 4096 * 4096).take(4096).for_each(|byte| *byte = !*byte);
    fs::write(&path, damaged).unwrap();
    match StateFile::open(&path) {
        Err(error) => assert!(!format!("{error:#}").contains('\n'), "{error:#}"),
        // A page that was given up since: nothing is missing.
        Ok(state) => assert_eq!(state.snapshot(at(0)).unwrap().unwrap().nodes.len(), 200),
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    refusal(&path);
}
