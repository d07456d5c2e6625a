//! The connection of a worker to its executor manager: what the worker used is added there, with
//! remote fetch-add.
//!
//! ```text
//!   Meter ──(worker, before each call)──▶ Published ──(main thread, if a call takes long)─┐
//!     └──(worker, at most each 100 ms, before sleeping, at its end)──────────────────▶ Account ──▶ manager
//! ```
//! * Time is billed once: `billed` is what the manager was sent, and only the difference to it is sent.
//!   The thread that settles, the worker or the main thread in its place, holds the account.
//! * After the last settlement nothing is added.
//!
//! A function that runs for long, or never returns, keeps its worker from settling. Then the main
//! thread does: it sees in [`Published`] what the worker had used when the call began, and since
//! when it runs.

use std::time::Duration;

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, Status, WorkCompletion, WorkRequest,
};
use rfaas_protocol::accounting::{EXECUTION_NS, HOT_POLLING_NS, INVOCATIONS};

use crate::clock::{MS, now_ns, ns_of};
use crate::dial::{DialError, dial_manager};
use crate::meter::{Totals, Used};
use crate::plan::{DIAL_TIMEOUT, StandbyPlan};
use crate::sync::{AtomicU64, Ordering};

/// Time between two settlements of a busy worker.
pub const SETTLE_EACH_NS: u64 = 100 * MS;

/// Counters, each of eight bytes.
const COUNTERS: usize = 3;
const WORD: usize = 8;

/// What a worker had used when it called the function that it is in. Written by the worker before and
/// after each call, so on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))] // two lines: processors fetch them in pairs
pub struct Published {
    hot_polling: AtomicU64,
    execution: AtomicU64,
    invocations: AtomicU64,
    /// When the call began, or 0 outside of calls.
    calls_since: AtomicU64,
}

impl Published {
    /// Shows that a call begins at `now`, when so much had been `used`; all in ticks.
    #[inline]
    pub fn begin(&self, used: &Used, now: u64) {
        self.hot_polling.store(used.hot_polling, Ordering::Relaxed);
        self.execution.store(used.execution, Ordering::Relaxed);
        self.invocations.store(used.invocations, Ordering::Relaxed);
        // Release: a thread that sees the call sees what was used at its beginning.
        self.calls_since.store(now, Ordering::Release);
    }

    /// Shows that the call has returned.
    #[inline]
    pub fn end(&self) {
        self.calls_since.store(0, Ordering::Release);
    }

    /// If the worker has been in a call for at least `longer_than_ns` at `now`, in ticks: what it has used
    /// by now, counting the call's time but not yet the call.
    ///
    /// A call that ends at this very moment may count twice here; `since` makes up for that with what
    /// follows, since only the difference is billed, and the manager bounds the bill by the time the lease lasted.
    pub fn in_call(&self, longer_than_ns: u64, now: u64) -> Option<Totals> {
        let since = self.calls_since.load(Ordering::Acquire);
        let passed = now.saturating_sub(since);
        (since != 0 && ns_of(passed) >= longer_than_ns).then(|| self.used_and(passed))
    }

    /// Returns what the worker had used when its last call began, whatever became of that.
    pub fn before_call(&self) -> Totals {
        self.used_and(0)
    }

    fn used_and(&self, execution: u64) -> Totals {
        let used = Used {
            hot_polling: self.hot_polling.load(Ordering::Relaxed),
            execution: self.execution.load(Ordering::Relaxed).saturating_add(execution),
            invocations: self.invocations.load(Ordering::Relaxed),
        };
        used.totals()
    }
}

/// One worker's account at the manager.
#[derive(Debug)]
pub struct Account {
    queue_pair: QueuePair, // first: fields drop in order, and its requests name the region below
    sent: CompletionQueue,
    /// Old values of the counters, which nobody needs.
    old_values: Region,
    counters: Option<RemoteAddress>,
    billed: Totals,
    /// A settlement is on its way.
    outstanding: bool,
    closed: bool,
}

impl Account {
    /// An unconnected account, the end of whose connection completes into `ends`.
    pub fn new(
        device: &Device,
        domain: &Domain,
        ends: &CompletionQueue,
    ) -> rdmalib::Result<Account> {
        let config = QueuePairConfig {
            send_depth: COUNTERS as u32,
            receive_depth: 1,
            ..QueuePairConfig::default()
        };
        let sent = device.completion_queue(config.send_depth)?;
        let mut queue_pair = QueuePair::new(domain, &sent, ends, &config)?;
        queue_pair.post_receive(0, None)?; // never used: it is flushed when the connection ends
        Ok(Account {
            queue_pair,
            sent,
            old_values: domain.allocate(COUNTERS * WORD, Access::LOCAL_WRITE)?,
            counters: None,
            billed: Totals::default(),
            outstanding: false,
            closed: false,
        })
    }

    /// Connects to the manager.
    pub fn connect(&mut self, plan: &StandbyPlan) -> Result<(), DialError> {
        self.counters = Some(dial_manager(&mut self.queue_pair, plan, DIAL_TIMEOUT)?);
        self.poll(); // what the first poll of a queue costs is paid before the first call
        Ok(())
    }

    /// Adds what `totals` are ahead of what the manager was sent, unless the last settlement is still
    /// on its way: then the next one takes it along. Never waits.
    pub fn settle(&mut self, totals: &Totals) {
        self.poll();
        let Some(counters) = self.counters.filter(|_| !self.outstanding && !self.closed) else {
            return;
        };
        let due = totals.since(&self.billed);
        // What is posted last completes last, and only it tells.
        let parts = [
            (HOT_POLLING_NS, due.hot_polling_ns),
            (EXECUTION_NS, due.execution_ns),
            (INVOCATIONS, due.invocations),
        ];
        let Some(last) = parts.iter().rposition(|(_, amount)| *amount > 0) else { return };
        for (i, (offset, amount)) in parts.into_iter().enumerate() {
            if amount > 0 && !self.add(i, counters.offset(offset), amount, i == last) {
                return;
            }
            match offset {
                HOT_POLLING_NS => self.billed.hot_polling_ns += amount,
                EXECUTION_NS => self.billed.execution_ns += amount,
                _ => self.billed.invocations += amount,
            }
        }
        self.outstanding = true;
    }

    /// Settles for the last time: `totals` and waits until the manager has them, for at most `timeout`.
    /// Whether it has.
    pub fn close(&mut self, totals: &Totals, timeout: Duration) -> bool {
        /// Time between two polls: the manager's device answers without its processor.
        const POLL_EACH: Duration = Duration::from_micros(20);
        let deadline_ns =
            now_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        while !self.closed && self.counters.is_some() {
            self.settle(totals);
            if !self.outstanding || now_ns() >= deadline_ns {
                break;
            }
            std::thread::sleep(POLL_EACH);
        }
        let done = !self.closed && totals.since(&self.billed) == Totals::default();
        self.closed = true;
        done && !self.outstanding
    }

    /// Posts one addition. `false` if the connection has ended.
    fn add(&mut self, part: usize, at: RemoteAddress, amount: u64, signaled: bool) -> bool {
        let posted = self.old_values.slice(part * WORD..(part + 1) * WORD).and_then(|into| {
            self.queue_pair.post(&WorkRequest {
                id: 0,
                operation: Operation::FetchAdd { into, at, add: amount },
                flags: if signaled { Flags::SIGNALED } else { Flags::default() },
            })
        });
        if let Err(error) = &posted {
            tracing::debug!(%error, "time could not be counted at the manager");
            self.closed = true;
        }
        posted.is_ok()
    }

    /// Notes what became of the settlement on its way.
    fn poll(&mut self) {
        let mut done = [WorkCompletion::default(); COUNTERS];
        let taken = self.sent.poll(&mut done);
        for completion in &done[..taken] {
            if completion.status == Status::Success {
                self.outstanding = false;
            } else {
                tracing::debug!(status = ?completion.status, "time was not counted at the manager");
                self.closed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{start, ticks, ticks_of};

    #[test]
    fn a_call_shows_what_was_used_when_it_began_and_since() {
        start();
        std::thread::sleep(Duration::from_millis(20)); // how long ticks are is known by then
        let published = Published::default();
        let now = ticks();
        assert_eq!(published.in_call(0, now), None);
        let used =
            Used { hot_polling: ticks_of(5 * MS), execution: ticks_of(7 * MS), invocations: 2 };
        published.begin(&used, now);
        assert_eq!(published.in_call(50 * MS, now + ticks_of(40 * MS)), None);
        let totals = published.in_call(50 * MS, now + ticks_of(60 * MS)).expect("long enough");
        // As exact as the length of a tick is known, whatever this machine is busy with.
        let near = |got: u64, ms: u64| got.abs_diff(ms * MS) < ms * MS / 10;
        assert!(near(totals.hot_polling_ns, 5) && near(totals.execution_ns, 67), "{totals:?}");
        assert_eq!(totals.invocations, 2);
        published.end();
        assert_eq!(published.in_call(0, now + ticks_of(99 * MS)), None);
    }
}
