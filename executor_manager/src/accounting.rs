//! Counters that the workers of one executor process add to, remotely: where their time goes; and the
//! signs of life that the process and this manager give each other.
//!
//! Each process has a protection domain of its own with nothing in it but its counters, so the worst
//! that it can write is its own bill, which is [clamped](crate::allocations::Usage::bill). Who shows
//! the secret of its assignment is let in, as often as it has workers.
//!
//! Nothing arrives on these connections and nothing is polled: additions land without this process,
//! and that an executor is gone is known from its process.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, QueuePair, QueuePairConfig, Region,
};
use rfaas::protocol::Secret;
use rfaas::protocol::accounting::{
    COUNTERS_BYTES, Counters, EXECUTION_NS, EXECUTOR_BEATS, HOT_POLLING_NS, INVOCATIONS,
    MANAGER_BEATS,
};
use zerocopy::IntoBytes;

use crate::allocations::Usage;

/// Connections of a process besides those of its workers: one for its signs of life.
const OTHERS: u32 = 1;

/// The counters of one executor process.
#[derive(Debug)]
pub struct Account {
    secret: Secret,
    connections: Vec<QueuePair>, // first: fields drop in order, and these reach the rest
    most_connections: u32,
    counters: Region,
    /// Signs of life that we gave.
    beats: u64,
    completions: CompletionQueue,
    domain: Domain,
}

impl Account {
    /// Counters at zero, for a process of `workers` workers.
    pub fn new(device: &Device, workers: u16) -> rdmalib::Result<Self> {
        let most_connections = u32::from(workers) + OTHERS;
        let domain = device.domain()?;
        let counters =
            domain.allocate(COUNTERS_BYTES, Access::LOCAL_WRITE | Access::REMOTE_ATOMIC)?;
        let depths = 2 * most_connections; // one send and one receive each, see `accept`
        let completions = device.completion_queue(depths)?;
        let (secret, connections) = (Secret::generate(), Vec::new());
        let beats = 0;
        Ok(Account { secret, connections, most_connections, counters, beats, completions, domain })
    }

    /// What the process must show.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    /// Connects a thread of the process, which has shown the secret, and tells it where to count.
    /// Gives the request back if the process has as many connections as it may.
    pub fn accept(&mut self, request: ConnectRequest) -> Result<(), AcceptError> {
        if self.connections.len() >= self.most_connections as usize {
            return Err(AcceptError::TooMany(request));
        }
        let config =
            QueuePairConfig { send_depth: 1, receive_depth: 1, ..QueuePairConfig::default() };
        let mut queue_pair =
            QueuePair::new(&self.domain, &self.completions, &self.completions, &config)?;
        let place = self.counters.remote();
        let counters = Counters { addr: place.addr.into(), key: place.key.into() };
        request.accept(&mut queue_pair, counters.as_bytes())?;
        self.connections.push(queue_pair);
        Ok(())
    }

    /// What was counted so far; all of it once the process is gone.
    pub fn read(&self) -> Usage {
        Usage {
            hot_polling_ns: self.counter(HOT_POLLING_NS),
            execution_ns: self.counter(EXECUTION_NS),
            invocations: self.counter(INVOCATIONS),
        }
    }

    /// Gives the process a sign of life; returns how many it gave. Stored and not added, so that the
    /// next one makes up for one that the process undid.
    pub fn beat(&mut self) -> u64 {
        self.beats += 1;
        self.counters
            .store_u64(MANAGER_BEATS as usize, self.beats)
            .expect("the offsets lie in COUNTERS_BYTES");
        self.counter(EXECUTOR_BEATS)
    }

    fn counter(&self, offset: u64) -> u64 {
        self.counters.load_u64(offset as usize).expect("the offsets lie in COUNTERS_BYTES")
    }
}

/// Why a thread of an executor was not connected.
#[derive(Debug)]
pub enum AcceptError {
    /// All connections that its process may have are there; the request is to be refused.
    TooMany(ConnectRequest),
    /// The device refused.
    Rdma(rdmalib::Error),
}

impl From<rdmalib::Error> for AcceptError {
    fn from(error: rdmalib::Error) -> Self {
        AcceptError::Rdma(error)
    }
}
