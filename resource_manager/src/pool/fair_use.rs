//! What one client may hold and ask for, and how long a lease waits for its claim.
//!
//! A client chooses its name itself, and may choose another's. So limits hold for the peer that asks, under
//! whatever name: the user or the machine ([`Ask::by`](super::Ask::by)). What a stranger
//! holds under a name takes nothing from others of that name. The peer that asked is not
//! kept in the state: after a restart of the program, leases of before count for all peers that ask under their
//! names.
//! * What is granted with a limit is within it, for the peer that asks.
//! * UNCLAIMED - leases that wait for their claim are limited in number. Those that waited in vain count on, and more,
//!   by the time that they took from others; two hours bring all back. So nobody can hold a cluster with leases that
//!   it never claims, whichever way it asks for them again.
//! * BOUNDED - a peer of which nothing is known that matters any more is forgotten. Of the others, there are never
//!   more than [`MOST_KNOWN`] that hold no lease.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::Peer;

use super::ask::Ask;
use super::lease::GrantedLease;
use super::{MAX_TIMEOUT, Now};

/// Most clients that hold nothing of which the requests of the last second, or leases that they have not claimed, are
/// known, besides those that hold leases.
pub(super) const MOST_KNOWN: usize = 1 << 16;
/// Requests are counted over so long.
const SECOND: Duration = Duration::from_secs(1);
/// What a lease that waited in vain for the whole time counts, beside one that waits. Who claims none can hold, one
/// after the other, 32 leases for 10 s each (of the defaults), and after that one for 10 s in every two minutes.
const IN_VAIN: f64 = 8.0;
/// In so long, as many are forgiven as may wait: long beside the time for a claim, short enough for the next day's
/// work.
const FORGIVEN_IN: Duration = Duration::from_secs(3600);
/// No more counts than so many times what may wait, so that all is forgiven in so many times [`FORGIVEN_IN`].
const MOST_COUNTED: f64 = 2.0;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairUse {
    /// How long a lease waits for its claim.
    pub claim_timeout: Duration,
    /// Cores of all leases of one peer; `None`: as many as there are.
    pub cores: Option<u32>,
    /// Memory of all leases of one peer, in MB.
    pub memory: Option<u32>,
    /// Leases of one peer.
    pub leases: Option<u32>,
    /// Leases of one peer that wait for their claim, with those that have waited in vain (UNCLAIMED).
    pub unclaimed: Option<u32>,
    /// How far in the future a lease may end.
    pub timeout: Option<Duration>,
    /// Requests for leases in a second.
    pub requests_per_second: Option<u32>,
}

/// No limit, and leases wait as long as they last.
impl Default for FairUse {
    fn default() -> Self {
        FairUse {
            claim_timeout: MAX_TIMEOUT,
            cores: None,
            memory: None,
            leases: None,
            unclaimed: None,
            timeout: None,
            requests_per_second: None,
        }
    }
}

/// The peer or client that a limit is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A name that leases are billed to, where nothing else is known of the peer that asks.
    Client(Arc<str>),
    /// A user or a machine, under whatever name.
    Peer(Peer),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Client(name) => write!(f, "client {name:?}"),
            Who::Peer(Peer::User(user)) => write!(f, "user {user}"),
            Who::Peer(Peer::Address(address)) => address.fmt(f),
            Who::Peer(_) => f.write_str("an unknown user"),
        }
    }
}

/// A limit that a request goes beyond.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Limit {
    /// What may be held at a time.
    #[error("{who} may hold {most} {what} at a time (limits.{key}) and holds {held}")]
    Held {
        /// The peer or client that it is for.
        who: Who,
        /// Key in the settings: `cores`, `memory`, `leases`.
        key: &'static str,
        /// What is limited, for people.
        what: &'static str,
        /// The limit.
        most: u64,
        /// What it holds.
        held: u64,
    },
    /// Leases that wait for their claim, or waited in vain.
    #[error(
        "{who} may have {most} leases that it has not claimed (limits.unclaimed): claim them \
         (the first deployment does) or give them back; those that ended unclaimed count for up to \
         two hours"
    )]
    Unclaimed {
        /// The peer or client that it is for.
        who: Who,
        /// The limit.
        most: u32,
    },
    /// How far in the future a lease may end.
    #[error("timeout_ms is {}, and a lease may last {} ms (limits.timeout_ms): ask for less (LeaseRequest::timeout; an hour where none is given)", .asked.as_millis(), .most.as_millis())]
    Timeout {
        /// The limit.
        most: Duration,
        /// What was asked for.
        asked: Duration,
    },
    /// How often one may ask.
    #[error(
        "{who} may ask for {most} leases in a second (limits.requests_per_second): ask again later"
    )]
    Rate {
        /// The peer or client that it is for.
        who: Who,
        /// The limit.
        most: u32,
    },
}

/// What a peer holds and has asked for.
#[derive(Debug)]
struct PeerUse {
    cores: u64,
    memory: u64,
    leases: u64,
    /// Requests that it may make at once, and when that was so: it grows to the limit in a second.
    requests: f64,
    at: Instant,
    /// Leases that wait for their claim.
    waiting: u32,
    /// What those count that waited in vain (UNCLAIMED), and when it was so much: time takes it away.
    in_vain: f64,
    in_vain_at: Instant,
}

impl PeerUse {
    /// What leases that waited in vain still count, if `most` may wait.
    fn in_vain(&self, now: Instant, most: u32) -> f64 {
        let since = now.saturating_duration_since(self.in_vain_at).as_secs_f64();
        (self.in_vain - since * f64::from(most) / FORGIVEN_IN.as_secs_f64()).max(0.0)
    }

    fn add_in_vain(&mut self, now: Instant, most: u32, leases: f64) {
        let counted = self.in_vain(now, most) + leases;
        self.in_vain = counted.min(MOST_COUNTED * f64::from(most));
        self.in_vain_at = now;
    }
}

/// The rules, and who holds what.
#[derive(Debug, Default)]
pub(super) struct Shares {
    rules: FairUse,
    known: HashMap<Who, PeerUse>,
    /// The number of them that hold leases.
    holders: usize,
    /// When those that hold nothing were last gone through.
    swept: Option<Instant>,
    /// Somebody may hold more than when this was last taken.
    eased: bool,
}

impl Shares {
    /// `leases` are those that there are already.
    pub(super) fn new<'a>(
        now: Now,
        rules: FairUse,
        leases: impl Iterator<Item = &'a GrantedLease>,
    ) -> Self {
        let mut shares = Shares { rules, ..Shares::default() };
        leases.for_each(|lease| shares.take(now.monotonic, lease));
        shares
    }

    /// Whether somebody may hold more than when this was last called: a lease was claimed, or has ended.
    pub(super) fn take_eased(&mut self) -> bool {
        std::mem::take(&mut self.eased)
    }

    /// The same, to be looked at again.
    pub(super) fn has_eased(&self) -> bool {
        self.eased
    }

    pub(super) fn claim_timeout(&self) -> Duration {
        self.rules.claim_timeout
    }

    /// Whether anything has to be known of anybody.
    fn is_limited(&self) -> bool {
        let FairUse { cores, memory, leases, unclaimed, requests_per_second, .. } = self.rules;
        [cores, memory, leases, unclaimed, requests_per_second].iter().any(Option::is_some)
    }

    fn of(&mut self, now: Instant, who: Who) -> &mut PeerUse {
        let requests = f64::from(self.rules.requests_per_second.unwrap_or(0));
        self.known.entry(who).or_insert(PeerUse {
            cores: 0,
            memory: 0,
            leases: 0,
            requests,
            at: now,
            waiting: 0,
            in_vain: 0.0,
            in_vain_at: now,
        })
    }

    /// Whether a lease may end so far in the future.
    pub(super) fn check_timeout(&self, asked: Duration) -> Result<(), Limit> {
        match self.rules.timeout {
            Some(most) if asked > most => Err(Limit::Timeout { most, asked }),
            _ => Ok(()),
        }
    }

    /// Counts a request, or refuses it.
    pub(super) fn count(&mut self, now: Now, ask: &Ask) -> Result<(), Limit> {
        let Some(most) = self.rules.requests_per_second else { return Ok(()) };
        let now = now.monotonic;
        let who = who(&ask.client, ask.peer);
        if self.is_full() && !self.known.contains_key(&who) {
            self.sweep(now);
            if self.is_full() {
                return Err(Limit::Rate { who, most });
            }
        }
        let known = self.of(now, who.clone());
        let since = now.saturating_duration_since(known.at).as_secs_f64();
        known.requests = (known.requests + since * f64::from(most)).min(f64::from(most));
        known.at = now;
        if known.requests < 1.0 {
            return Err(Limit::Rate { who, most });
        }
        known.requests -= 1.0;
        Ok(())
    }

    /// Whether as many are known that hold nothing as may be.
    fn is_full(&self) -> bool {
        self.known.len() - self.holders >= MOST_KNOWN
    }

    /// Forgets peers that hold nothing, made no request in the last second and owe no claim. That takes as long as
    /// there are many, so it is done once a second.
    fn sweep(&mut self, now: Instant) {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < SECOND;
        if !self.swept.is_some_and(is_recent) {
            self.swept = Some(now);
            let most = self.rules.unclaimed.unwrap_or(0);
            self.known.retain(|_, known| {
                known.leases > 0 || is_recent(known.at) || known.in_vain(now, most) > 0.0
            });
        }
    }

    /// Whether `leases` more leases may be held, which are what `ask` wants.
    pub(super) fn check(&self, now: Instant, ask: &Ask, leases: usize) -> Result<(), Limit> {
        if !self.is_limited() {
            return Ok(());
        }
        let FairUse { cores, memory, leases: most_leases, .. } = self.rules;
        let total = ask.total();
        let who = who(&ask.client, ask.peer);
        let its_name = ask.peer.map(|_| Who::Client(ask.client.clone()));
        let known = [Some(&who), its_name.as_ref()].map(|who| self.known.get(who?));
        let held = |of: fn(&PeerUse) -> u64| known.into_iter().flatten().map(of).sum::<u64>();
        for (key, what, most, held, more) in [
            ("cores", "cores", cores, held(|known| known.cores), total.cores.into()),
            ("memory", "MB", memory, held(|known| known.memory), total.memory.into()),
            ("leases", "leases", most_leases, held(|known| known.leases), leases as u64),
        ] {
            if let Some(most) = most.map(u64::from)
                && held + more > most
            {
                return Err(Limit::Held { who, key, what, most, held });
            }
        }
        if let Some(most) = self.rules.unclaimed {
            let of = |known: &PeerUse| f64::from(known.waiting) + known.in_vain(now, most);
            let unclaimed: f64 = known.into_iter().flatten().map(of).sum();
            if unclaimed + leases as f64 > f64::from(most) {
                return Err(Limit::Unclaimed { who, most });
            }
        }
        Ok(())
    }

    pub(super) fn take(&mut self, now: Instant, lease: &GrantedLease) {
        if !self.is_limited() {
            return;
        }
        let known = self.of(now, who(&lease.terms.client, lease.peer));
        known.cores += u64::from(lease.terms.cores);
        known.memory += u64::from(lease.terms.memory);
        known.leases += 1;
        self.holders += usize::from(known.leases == 1);
    }

    /// Counts a lease that was [taken](Self::take) among those that wait for their claim; returns since when it does.
    pub(super) fn wait_for_claim(&mut self, now: Instant, lease: &GrantedLease) -> Option<Instant> {
        self.rules.unclaimed.filter(|_| lease.is_unclaimed())?;
        self.of(now, who(&lease.terms.client, lease.peer)).waiting += 1;
        Some(now)
    }

    /// `lease` is claimed: it waits no more, and did not in vain.
    pub(super) fn claimed(&mut self, now: Instant, lease: &GrantedLease) {
        self.eased = true;
        self.end_wait(now, lease, false);
    }

    /// `lease` waits no more.
    fn end_wait(&mut self, now: Instant, lease: &GrantedLease, in_vain: bool) {
        let (Some(most), Some(since)) = (self.rules.unclaimed, lease.waits_since) else { return };
        let who = who(&lease.terms.client, lease.peer);
        let Some(known) = self.known.get_mut(&who) else { return };
        known.waiting -= 1;
        if in_vain {
            let took = now.saturating_duration_since(since).as_secs_f64();
            let part = (took / self.rules.claim_timeout.as_secs_f64()).min(1.0);
            known.add_in_vain(now, most, IN_VAIN * part);
        }
    }

    /// `lease` has ended; if nobody has claimed it, perhaps `in_vain`.
    pub(super) fn give(&mut self, now: Instant, lease: &GrantedLease, in_vain: bool) {
        if !self.is_limited() {
            return;
        }
        self.eased = true;
        if lease.is_unclaimed() {
            self.end_wait(now, lease, in_vain);
        }
        if self.is_full() {
            self.sweep(now);
        }
        let is_full = self.is_full();
        let who = who(&lease.terms.client, lease.peer);
        let Some(known) = self.known.get_mut(&who) else { return };
        known.cores -= u64::from(lease.terms.cores);
        known.memory -= u64::from(lease.terms.memory);
        known.leases -= 1;
        let (holds_none, owes) = (known.leases == 0, known.in_vain > 0.0);
        self.holders -= usize::from(holds_none);
        let matters = self.rules.requests_per_second.is_some() || owes && !is_full;
        if holds_none && !matters {
            self.known.remove(&who);
        }
    }
}

/// The peer or client that a lease counts for.
pub(super) fn who(client: &Arc<str>, peer: Option<Peer>) -> Who {
    peer.map_or_else(|| Who::Client(client.clone()), Who::Peer)
}
