//! What clients were granted and told, and what the resource manager has billed: compared in the end.
//!
//! * Each lease that a client was granted has exactly one bill.
//! * A client that was told a bill was told the one that is booked. It may have been told more than that if
//!   its node was killed before it could report the same: what is booked then is what was reported last, and marked
//!   provisional.
//! * Another bill, for a lease that nobody knows of, is for one that was granted to somebody who was killed then, or
//!   by a manager that was: it was never used.
//! * The sums of a client, as the resource manager adds them up, are those of its single bills.

use std::collections::BTreeMap;

use serde_json::Value;

use testkit::run::Finished;

/// Amounts of a bill, with the names that they have in JSON.
const AMOUNTS: [&str; 3] = ["hot_polling_ns", "execution_ns", "invocations"];

/// What the lives of one client came to.
#[derive(Default)]
pub struct Received {
    leases: Vec<u64>,
    /// By lease: milliseconds of allocation, [`AMOUNTS`].
    bills: BTreeMap<u64, (u64, [u64; 3])>,
    pub errors: BTreeMap<String, usize>,
}

impl Received {
    /// Adds what a life of the client has said.
    pub fn add(&mut self, client: &Finished) {
        self.leases.extend(client.said("lease").iter().map(|id| id.parse::<u64>().unwrap()));
        for line in client.said("bill") {
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            let [lease, allocated_ns, amounts @ ..] = &numbers[..] else { panic!("{line}") };
            let bill = (allocated_ns / 1_000_000, amounts.try_into().unwrap());
            assert_eq!(self.bills.insert(*lease, bill), None, "received twice");
        }
        for error in client.said("error") {
            *self.errors.entry(error).or_default() += 1;
        }
    }
}

/// What the comparison found.
#[derive(Debug, Default)]
pub struct Outcome {
    pub leases: usize,
    pub received: usize,
    pub provisional: usize,
    pub unknown: usize,
}

/// Compares what clients were told, by their names, with `bills` and `sums`, the answers of `/billing`. At most `lost`
/// grants were not heard by anybody.
pub fn compare(
    received: &BTreeMap<String, Received>,
    bills: &Value,
    sums: &Value,
    lost: usize,
) -> Outcome {
    let bills = bills.as_array().expect("a list of bills");
    let mut booked: BTreeMap<u64, &Value> = BTreeMap::new();
    for bill in bills {
        let lease = bill["lease"].as_u64().unwrap();
        assert!(booked.insert(lease, bill).is_none(), "lease {lease} is billed twice: {bills:?}");
    }
    let mut outcome = Outcome::default();
    for (client, received) in received {
        for lease in &received.leases {
            let bill = booked.remove(lease);
            let bill = bill.unwrap_or_else(|| panic!("lease {lease} of {client} has no bill"));
            assert_eq!(bill["client"], *client, "{bill}");
            outcome.leases += 1;
            outcome.provisional += usize::from(is_provisional(bill) && bill["allocated_ms"] != 0);
            if let Some(amounts) = received.bills.get(lease) {
                outcome.received += 1;
                is_as_told(bill, *amounts);
            }
        }
    }
    for bill in booked.values() {
        outcome.unknown += 1;
        let unused = bill["allocated_ms"] == 0 && AMOUNTS.iter().all(|amount| bill[amount] == 0);
        assert!(unused, "nobody was granted {bill}");
    }
    let unknown = outcome.unknown;
    assert!(unknown <= lost, "{unknown} bills are nobody's, {lost} grants were lost");
    add_up(bills, sums);
    outcome
}

fn is_provisional(bill: &Value) -> bool {
    bill["provisional"].as_bool().expect("every bill says so")
}

fn is_as_told(bill: &Value, (allocated_ms, amounts): (u64, [u64; 3])) {
    let booked = AMOUNTS.map(|amount| bill[amount].as_u64().unwrap());
    if is_provisional(bill) {
        let within = booked.iter().zip(&amounts).all(|(booked, received)| booked <= received);
        assert!(within, "{amounts:?} were told, more is booked: {bill}");
    } else {
        assert_eq!(booked, amounts, "the client was told something else: {bill}");
        assert_eq!(
            bill["allocated_ms"], allocated_ms,
            "the client was told something else: {bill}"
        );
    }
}

fn add_up(bills: &[Value], sums: &Value) {
    let mut expected: BTreeMap<&str, [u64; 6]> = BTreeMap::new();
    for bill in bills {
        let sum = expected.entry(bill["client"].as_str().unwrap()).or_default();
        let number = |key: &str| bill[key].as_u64().unwrap_or_else(|| panic!("no {key}: {bill}"));
        let of_bill = ["allocated_core_ms", "allocated_mb_ms", AMOUNTS[0], AMOUNTS[1], AMOUNTS[2]];
        sum[0] += 1;
        for (sum, key) in sum[1..].iter_mut().zip(of_bill) {
            *sum += number(key);
        }
    }
    let sums = sums.as_array().expect("a list of sums");
    assert_eq!(sums.len(), expected.len(), "sums: {sums:?}");
    for sum in sums {
        let keys =
            ["leases", "allocated_core_ms", "allocated_mb_ms", AMOUNTS[0], AMOUNTS[1], AMOUNTS[2]];
        let found = keys.map(|key| sum[key].as_u64().unwrap_or_else(|| panic!("no {key}: {sum}")));
        assert_eq!(Some(&found), expected.get(sum["client"].as_str().unwrap()), "sums: {sum}");
    }
}
