//! The manager's own end: in order on a signal, when no lease is left or their grace is over, however often
//! that is asked for (by a batch system, by systemd); at once on the second SIGINT, which a person sends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Error;
use crate::allocations::Event;
use crate::manager::Manager;

/// Time for those that stood by to be gone, which were killed before.
const STANDING_WITHIN: Duration = Duration::from_secs(1);
/// Time for the resource manager to acknowledge the last bills.
const BILLS_WITHIN: Duration = Duration::from_secs(1);
/// Time for clients to take their last messages.
const FAREWELL: Duration = Duration::from_millis(100);

/// How far an orderly stop is.
#[derive(Clone, Copy, Debug)]
pub struct Stopping {
    /// When all executors have to be gone: the last lease has ended some time before.
    give_up: Instant,
    /// When the last executor was gone.
    empty: Option<Instant>,
}

impl Stopping {
    /// When [`Manager::stopped`] is due at the latest.
    pub(super) fn deadline(&self) -> Instant {
        match self.empty {
            None => self.give_up,
            Some(empty) => empty + BILLS_WITHIN,
        }
    }
}

impl Manager {
    /// Signals asked to stop, `interrupts` of them SIGINT.
    pub(super) fn stop(
        &mut self,
        interrupts: u32,
        now: Instant,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Error> {
        self.interrupts = self.interrupts.saturating_add(interrupts);
        if self.interrupts > 1 {
            self.executors.kill_all(now);
            return Err(Error::Stopped("a second SIGINT stopped it at once"));
        }
        if self.stopping.is_some() {
            return Ok(());
        }
        let (executors, grace) = (self.executors.len(), self.drain);
        tracing::info!(executors, ?grace, "stopping");
        let leases_end = now + grace;
        let give_up = leases_end + self.executors.stop_within();
        self.stopping = Some(Stopping { give_up, empty: None });
        if let Some(upstream) = &mut self.upstream {
            upstream.drain(now, leases_end);
        }
        self.executors.end_standing(now);
        events.push_back(Event::Drain { grace });
        Ok(())
    }

    /// Whether an orderly stop is complete.
    pub(super) fn stopped(&mut self) -> Result<bool, Error> {
        let Some(stopping) = &mut self.stopping else { return Ok(false) };
        let now = Instant::now();
        if !self.allocations.is_empty() {
            if now >= stopping.give_up {
                self.executors.kill_all(now);
                return Err(Error::Stopped("executors were still there, although killed"));
            }
            return Ok(false);
        }
        let empty = *stopping.empty.get_or_insert(now);
        if !self.executors.none_stands() && now < empty + STANDING_WITHIN {
            return Ok(false); // killed; its end is news
        }
        if let Some(upstream) = &self.upstream
            && upstream.unacknowledged() > 0
        {
            if upstream.is_registered() && now < empty + BILLS_WITHIN {
                return Ok(false);
            }
            let bills = upstream.unacknowledged();
            tracing::warn!(bills, "the resource manager has not acknowledged the last bills");
        }
        self.clients.flush(now + FAREWELL);
        tracing::info!("stopped");
        Ok(true)
    }
}
