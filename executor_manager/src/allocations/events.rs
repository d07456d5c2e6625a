//! What passes between [`Allocations`](super::Allocations) and the loop around it: what happened, what
//! is to be done, and the figures in both.

use std::time::Duration;

use nix::sys::signal::Signal;
use rfaas_protocol::Capacity;
use rfaas_protocol::allocation::{ExecutorExited, ToClient};
use rfaas_protocol::assignment::MEMORY_LIMIT;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::{Bill, LeaseEnded};

use crate::request::Deployment;

/// Shortest time that a call takes a worker, in ns: for each it finds an arrival, checks a request, writes a reply and
/// reads the clock, which takes some ten times as long on the fastest machine that was measured.
const NS_A_CALL: u64 = 10;

/// Names a client's connection. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// What executors of a lease counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Spinning without work, in ns, summed over workers.
    pub hot_polling_ns: u64,
    /// Functions running, in ns, summed over workers.
    pub execution_ns: u64,
    /// Functions called.
    pub invocations: u64,
}

impl Usage {
    /// The sum of two; counters of a hostile executor stay at the largest number.
    #[must_use]
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            hot_polling_ns: self.hot_polling_ns.saturating_add(other.hot_polling_ns),
            execution_ns: self.execution_ns.saturating_add(other.execution_ns),
            invocations: self.invocations.saturating_add(other.invocations),
        }
    }

    /// The larger of each: counters do not run back.
    #[must_use]
    pub fn max(self, other: Usage) -> Usage {
        Usage {
            hot_polling_ns: self.hot_polling_ns.max(other.hot_polling_ns),
            execution_ns: self.execution_ns.max(other.execution_ns),
            invocations: self.invocations.max(other.invocations),
        }
    }

    /// The bill of `cores` held for `allocated`. What was counted beyond that is not billed (CLAMPED),
    /// polling first, but for the `polling_reported` before, in ns; nor are more calls than there was time for.
    pub fn bill(self, cores: u32, allocated: Duration, polling_reported: u64) -> Bill {
        let allocated_ns = u64::try_from(allocated.as_nanos()).unwrap_or(u64::MAX);
        let most = allocated_ns.saturating_mul(cores.into());
        let execution_ns = self.execution_ns.min(most.saturating_sub(polling_reported));
        Bill {
            allocated_ns: allocated_ns.into(),
            hot_polling_ns: self.hot_polling_ns.min(most - execution_ns).into(),
            execution_ns: execution_ns.into(),
            invocations: self.invocations.min(most / NS_A_CALL).min(Bill::MOST_INVOCATIONS).into(),
        }
    }
}

/// How an executor process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal killed it.
    Signal(i32),
    /// It exited with this status.
    Status(i32),
    /// It gave no sign of life and was killed, or saw none of ours and ended.
    Silent,
    /// It ended for want of memory, and its control group tells how much it had, in bytes.
    Memory {
        /// Most that it might have.
        limit: u64,
        /// Most that it had at a time.
        used: u64,
    },
}

impl Exit {
    /// The message to the client.
    pub fn message(self) -> ToClient {
        let (signal, status, silent) = match self {
            Exit::Signal(signal) => (signal, 0, 0),
            Exit::Status(status) => (0, status, 0),
            Exit::Silent => (Signal::SIGKILL as i32, 0, 1),
            Exit::Memory { .. } => (MEMORY_LIMIT, 0, 0),
        };
        let (memory_limit, memory_used) = match self {
            Exit::Memory { limit, used } => (limit, used),
            _ => (0, 0),
        };
        ToClient::ExecutorExited(ExecutorExited {
            signal: signal.into(),
            status: status.into(),
            silent: silent.into(),
            memory_limit: memory_limit.into(),
            memory_used: memory_used.into(),
        })
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The node may lease out so much.
    Capacity(Capacity),
    /// A client showed an admitted token and asks for an executor.
    Claim {
        /// Its connection.
        client: ClientId,
        /// The terms of the token. Terms that name no lease get the next free number.
        terms: LeaseTerms,
        /// Until the token expires.
        time_left: Duration,
        /// What it wants.
        deployment: Deployment,
    },
    /// The process of [`Action::Start`] runs.
    Started(LeaseId),
    /// It could not be started; or it runs and its container has not started, which is gone and reaped.
    StartFailed {
        /// For this lease.
        lease: LeaseId,
        /// Why, for the client.
        reason: String,
    },
    /// The process runs and its container has not started in time: it was killed, and will be gone.
    GivenUp {
        /// For this lease.
        lease: LeaseId,
        /// Why, for the client.
        reason: String,
    },
    /// The process is gone and reaped.
    Exited {
        /// The lease.
        lease: LeaseId,
        /// How it ended.
        exit: Exit,
        /// All that it counted.
        usage: Usage,
    },
    /// A client gives its lease back.
    Release(ClientId),
    /// A client's connection has ended.
    ClientGone(ClientId),
    /// The resource manager ends a lease.
    End {
        /// This one.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// How long invocations may go on.
        grace: Duration,
    },
    /// A client showed an admitted token with a later end for the lease that it holds.
    Renew {
        /// Its connection.
        client: ClientId,
        /// The terms of the token.
        terms: LeaseTerms,
        /// Until the token expires.
        time_left: Duration,
    },
    /// The manager is to stop.
    Drain {
        /// How long leases may still last; zero: they end now.
        grace: Duration,
    },
    /// Time has passed.
    Time,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "moved once or twice each; not kept")]
pub enum Action {
    /// Send this to that client.
    Tell(ClientId, ToClient),
    /// Start an executor; answered by [`Event::Started`] or [`Event::StartFailed`].
    Start {
        /// For this lease.
        lease: LeaseId,
        /// Which client asked.
        client: ClientId,
        /// What for.
        deployment: Deployment,
        /// Worker threads.
        workers: u16,
        /// Memory of the lease, in MB.
        memory: u32,
        /// CPU of each, if they are pinned.
        pins: Option<Vec<usize>>,
    },
    /// Stop the executor of a lease; answered by [`Event::Exited`], once.
    Stop(LeaseId),
    /// A lease is in use: tell the resource manager.
    Claimed(LeaseTerms),
    /// A lease has ended: tell the resource manager until it has understood.
    Ended(LeaseEnded),
}
