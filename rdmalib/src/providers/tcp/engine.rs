//! The helper thread of an open device: serves the connections whose owner does not poll.
//!
//! It sleeps on their sockets. While owners serve some by themselves, it wakes every [`TICK`] to see
//! whether they still do. It also ends what waits for too long, and keeps sockets whose connection is
//! over until the peer has read the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::SigSet;

use super::carrier::{Carrier, STAGING};
use crate::events::Events;
use crate::process::next_number;
use crate::sync::{AtomicBool, Ordering};
use crate::types::{Error, Result};

/// How often the helper looks whether owners still poll.
const TICK: Duration = Duration::from_millis(1);
/// Ticks for which all owners sleep until the helper stops looking.
const IDLE_TICKS: u32 = 100;
/// How long a socket is kept whose connection is over, if its peer says no end.
const LINGER: Duration = Duration::from_secs(1);
/// Most of them; more are closed at once.
const MOST_LINGERING: usize = 256;

/// What the owner of a queue pair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attendance {
    Polled,
    Asleep,
    Gone,
}

/// A queue pair, as the helper knows it.
pub(super) trait Served: Send + Sync {
    /// Does what there is to do.
    fn help(&self, staging: &mut [u8]);
    /// Looks for requests of the peer that have waited for too long.
    fn expire(&self, now: Instant);
    /// Looks whether its owner serves it, and serves it from then on if not.
    fn is_attended(&self, staging: &mut [u8]) -> Attendance;
    /// Whether its owner sleeps.
    fn is_asleep(&self) -> bool;
}

/// What other threads use of the helper.
struct Engine {
    events: Events,
    /// It looks at no owners; whoever begins to serve a connection wakes it.
    is_idle: AtomicBool,
    state: Mutex<EngineState>,
}

#[derive(Default)]
struct EngineState {
    cores: HashMap<u32, Weak<dyn Served>>,
    /// Those whose owner serves them.
    attended: Vec<u32>,
    /// When to look at which for requests that wait for too long.
    due: BTreeMap<(Instant, u32), ()>,
    lingering: HashMap<u32, (Carrier, Instant)>,
    stop: bool,
}

/// Stops the helper when the device closes. It is not joined: it may itself drop the last object of
/// the device.
#[derive(Debug)]
pub(super) struct EngineHandle(Arc<Engine>);

impl EngineHandle {
    pub(super) fn start() -> Result<Self> {
        let engine = Arc::new(Engine {
            events: Events::new()?,
            is_idle: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let helper = engine.clone();
        thread::Builder::new()
            .name("rdma-tcp".into())
            .spawn(move || helper.run())
            .map_err(|e| Error::os("starting the device's helper thread", e))?;
        Ok(EngineHandle(engine))
    }

    /// Serves a new connection.
    pub(super) fn add(&self, number: u32, core: Weak<dyn Served>, carrier: &Carrier) -> Result<()> {
        self.0.state().cores.insert(number, core);
        self.0.events.add(carrier, number, EpollFlags::EPOLLIN)
    }

    /// Waits for other things of it.
    pub(super) fn modify(&self, number: u32, carrier: &Carrier, flags: EpollFlags) -> Result<()> {
        self.0.events.modify(carrier, number, flags)
    }

    /// Its owner serves it, until a tick sees that it does not.
    pub(super) fn attend(&self, number: u32) {
        let mut state = self.0.state();
        let is_first = state.attended.is_empty();
        if !state.attended.contains(&number) {
            state.attended.push(number);
        }
        drop(state);
        if is_first {
            self.0.events.wake(); // it looks at nobody
        }
        self.resume();
    }

    /// Looks at owners again, if the helper has stopped doing so.
    #[inline]
    pub(super) fn resume(&self) {
        if self.0.is_idle.load(Ordering::SeqCst) && self.0.is_idle.swap(false, Ordering::SeqCst) {
            self.0.events.wake();
        }
    }

    /// Looks at `number` at `due`.
    pub(super) fn call_at(&self, due: Instant, number: u32) {
        self.0.state().due.insert((due, number), ());
        self.0.events.wake();
    }

    /// Forgets a queue pair.
    pub(super) fn forget(&self, number: u32) {
        let mut state = self.0.state();
        state.cores.remove(&number);
        state.due.retain(|(_, other), ()| *other != number);
    }

    /// Keeps a socket whose connection is over until the peer has read that, so that what was sent
    /// to it is not lost: closing a socket that has unread bytes would throw it away.
    pub(super) fn linger(&self, number: u32, carrier: Carrier) {
        self.0.events.remove(&carrier);
        let mut state = self.0.state();
        state.attended.retain(|other| *other != number);
        if carrier.discard() || state.lingering.len() >= MOST_LINGERING || state.stop {
            return;
        }
        let id = next_number();
        if self.0.events.add(&carrier, id, EpollFlags::EPOLLIN).is_ok() {
            state.lingering.insert(id, (carrier, Instant::now() + LINGER));
            drop(state);
            self.0.events.wake();
        }
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.0.state().stop = true;
        self.0.events.wake();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn core(&self, number: u32) -> Option<Arc<dyn Served>> {
        self.state().cores.get(&number).and_then(Weak::upgrade)
    }

    fn run(&self) {
        // Signals are for the program's own threads.
        let _ = SigSet::all().thread_block();
        let mut staging = vec![0; STAGING];
        let (mut next_tick, mut asleep) = (Instant::now() + TICK, 0);
        loop {
            let slept =
                self.events.sleep(self.timeout(next_tick), |number| match self.core(number) {
                    Some(core) => core.help(&mut staging),
                    None => self.discard(number),
                });
            if let Err(error) = slept {
                tracing::error!(%error, "cannot wait; connections are served by their owners only");
                thread::sleep(Duration::from_secs(1)); // no end of retries without a pause
            }
            let now = Instant::now();
            let mut state = self.state();
            if state.stop && state.lingering.is_empty() {
                return;
            }
            state.lingering.retain(|_, (_, until)| *until > now);
            drop(state);
            self.expire(now);
            if now >= next_tick {
                asleep = self.tick(asleep, &mut staging);
                next_tick = now + TICK;
            }
        }
    }

    /// Until when to sleep at most.
    fn timeout(&self, next_tick: Instant) -> Option<Duration> {
        let state = self.state();
        let due = state.due.keys().next().map(|(due, _)| *due);
        let lingering = state.lingering.values().map(|(_, until)| *until).min();
        let looks = !state.attended.is_empty() && !self.is_idle.load(Ordering::SeqCst);
        let tick = looks.then_some(next_tick);
        let first = [due, lingering, tick].into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Reads what still comes over a connection that is over.
    fn discard(&self, number: u32) {
        let mut state = self.state();
        if state.lingering.get(&number).is_some_and(|(carrier, _)| carrier.discard()) {
            state.lingering.remove(&number);
        }
    }

    fn expire(&self, now: Instant) {
        loop {
            let mut state = self.state();
            let Some((&(due, number), ())) = state.due.first_key_value() else { return };
            if due > now {
                return;
            }
            state.due.remove(&(due, number));
            drop(state);
            if let Some(core) = self.core(number) {
                core.expire(now);
            }
        }
    }

    /// Serves those from now on whose owner has stopped. Returns for how many ticks all owners have
    /// been asleep.
    fn tick(&self, asleep: u32, staging: &mut [u8]) -> u32 {
        let attended = std::mem::take(&mut self.state().attended);
        let mut polled = false;
        let mut still = Vec::with_capacity(attended.len());
        for number in attended {
            let Some(core) = self.core(number) else { continue };
            match core.is_attended(staging) {
                Attendance::Gone => continue,
                Attendance::Polled => polled = true,
                Attendance::Asleep => {}
            }
            still.push(number);
        }
        let mut state = self.state();
        for number in still {
            if !state.attended.contains(&number) {
                state.attended.push(number);
            }
        }
        if polled || state.attended.is_empty() {
            return 0;
        }
        if asleep + 1 < IDLE_TICKS {
            return asleep + 1;
        }
        drop(state);
        self.is_idle.store(true, Ordering::SeqCst);
        let attended = self.state().attended.clone(); // whoever comes after that wakes this thread
        // Look again: one that has just woken up has not seen that it has to wake this thread.
        let all_asleep = |number: &u32| self.core(*number).is_none_or(|core| core.is_asleep());
        if !attended.iter().all(all_asleep) {
            self.is_idle.store(false, Ordering::SeqCst);
        }
        0
    }
}
