//! The kill matrix: each process of a lease is killed, and stopped, at each moment of the lease. Whoever is left
//! carries on or is told a typed error; cores and memory are free again in time; nothing is left; there is one bill.
//!
//! ```text
//!   { client, executor, executor manager, resource manager }        who
//! × { SIGKILL, SIGSTOP }                                            how: its death is seen at once, its silence when
//!                                                                   the configured limit is over
//! × { idle lease, during allocation, hot invocation, warm invocation }       when
//! ```
//! * The fault comes while the library is being loaded, or while its function runs, and not earlier or
//!   later: both wait for a file ([`testkit::waiting`]). During allocation is while it is loaded.
//! * The client is a process of its own (`client`), like the others; this one only watches, over HTTP and in
//!   `/proc`.
//! * The limits are those that the project promises: [`RECOVERY`], and the silence that is configured. That
//!   is a promise of being correct, not one of being fast: a lease that is not free then was forgotten.
//!
//! Elsewhere: many faults at random (`chaos`), a link that goes down (`faults`).

#![allow(clippy::unwrap_used)] // a cell that does not hold panics; that is what a test does

mod cell;
mod client;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

use cell::{Cell, Fault, Moment, Row, Victim};
use testkit::waiting::Waiting;

/// The longest that cores and memory may take to be free, after a death or after the silence that is as good as one.
const RECOVERY: Duration = Duration::from_secs(2);

fn main() {
    if client::is_wanted() {
        return client::act();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // leftovers are looked for in the whole machine
    let rows = Arc::<Mutex<Vec<Row>>>::default();
    let waiting = Arc::new(Waiting::build());
    let mut trials = Vec::new();
    for victim in Victim::ALL {
        for fault in Fault::ALL {
            for moment in Moment::ALL {
                let cell = Cell { victim, fault, moment };
                let (rows, waiting) = (Arc::clone(&rows), Arc::clone(&waiting));
                trials.push(Trial::test(cell.name(), move || {
                    let row = cell.run(&waiting);
                    rows.lock().unwrap().push(row);
                    Ok(())
                }));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let rows = rows.lock().unwrap();
    if !rows.is_empty() {
        print(&rows);
    }
    drop(waiting);
    conclusion.exit();
}

/// The matrix: the cells that hold; those that do not were told above.
fn print(rows: &[Row]) {
    let titles =
        ["victim", "signal", "moment", "what the client saw", "billed as", "free after", "limit"];
    let lines: Vec<[String; 7]> = rows.iter().map(Row::columns).collect();
    let width = |column: usize| {
        let longest = lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        longest.max(titles[column].len())
    };
    let print = |line: &[String; 7]| {
        let columns = line.iter().enumerate();
        let columns: Vec<_> = columns.map(|(i, text)| format!("{text:<0$}", width(i))).collect();
        println!("  {}", columns.join("  ").trim_end());
    };
    println!("kill matrix: {} cells hold", rows.len());
    print(&titles.map(String::from));
    lines.iter().for_each(print);
    println!("  (a resource manager: from when it runs again, as its leases go on without it)\n");
}
