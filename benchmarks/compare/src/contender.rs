//! A contender: its name, its settings, and how one cell of its row is measured.

use std::fmt;

use rfaas_program::Failure;
use serde::Serialize;

use crate::effort::Effort;
use benchmarks::samples::Samples;

/// What a contender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What nothing can be faster than.
    Floor,
    /// What this project is.
    Ours,
    /// What users would pick instead.
    Peer,
}

/// All contenders, in the order of the table. Our own, and the verbs tools, are there once a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Id {
    /// A cache line between two processes.
    Bounce,
    /// Two copies in memory.
    Copies,
    /// Two processes that wake each other.
    Eventfd,
    /// `ib_write_lat`.
    WriteLat,
    /// A C program's writes with immediate data, spinning.
    VerbsPolling,
    /// The same, sleeping.
    VerbsSleeping,
    /// The ping-pong below the service, spinning.
    Transport,
    /// The same, sleeping.
    TransportWarm,
    /// A blocking invocation, spinning.
    Service,
    /// The same, of a function whose input and output stay where they are.
    InPlace,
    /// The same, sleeping.
    ServiceWarm,
    /// `ucx_perftest -t ucp_am_lat`.
    UcxMessage,
    /// `ucx_perftest -t ucp_put_lat`.
    UcxPut,
    /// `fi_pingpong`.
    Libfabric,
    /// A Unix stream socket.
    Unix,
    /// gRPC over a Unix socket.
    GrpcUnix,
    /// gRPC over TCP.
    GrpcTcp,
    /// HTTP over TCP.
    Http,
}

impl Id {
    /// What it is.
    pub fn kind(self) -> Kind {
        match self {
            Id::Bounce
            | Id::Copies
            | Id::Eventfd
            | Id::WriteLat
            | Id::VerbsPolling
            | Id::VerbsSleeping => Kind::Floor,
            Id::Transport | Id::TransportWarm | Id::Service | Id::InPlace | Id::ServiceWarm => {
                Kind::Ours
            }
            Id::UcxMessage
            | Id::UcxPut
            | Id::Libfabric
            | Id::Unix
            | Id::GrpcUnix
            | Id::GrpcTcp
            | Id::Http => Kind::Peer,
        }
    }
}

/// As tables and plots call it.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Id::Bounce => "cache-line bounce",
            Id::Copies => "two memcpy",
            Id::Eventfd => "eventfd ping-pong",
            Id::WriteLat => "ib_write_lat × 2",
            Id::VerbsPolling => "verbs ping-pong, polling",
            Id::VerbsSleeping => "verbs ping-pong, sleeping",
            Id::Transport => "transport, hot",
            Id::TransportWarm => "transport, warm",
            Id::Service => "invocation, hot",
            Id::InPlace => "invocation in place, hot",
            Id::ServiceWarm => "invocation, warm",
            Id::UcxMessage => "UCX active message × 2",
            Id::UcxPut => "UCX put × 2",
            Id::Libfabric => "libfabric shm × 2",
            Id::Unix => "Unix socket",
            Id::GrpcUnix => "gRPC, Unix socket",
            Id::GrpcTcp => "gRPC, TCP",
            Id::Http => "HTTP, TCP",
        })
    }
}

/// A contender.
pub trait Contender: Sync {
    /// Its identity.
    fn id(&self) -> Id;

    /// Its device, if it is there once per device.
    fn device(&self) -> Option<&str> {
        None
    }

    /// Its setup, for readers who judge whether that is fair.
    fn settings(&self) -> String;

    /// Payloads that it is measured with, in bytes.
    fn payloads(&self) -> Vec<u32>;

    /// Measures round trips of `payload` bytes, in a thread of its own, which it may pin.
    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured>;
}

/// Why there is no figure.
#[derive(Debug)]
pub enum NotMeasured {
    /// It cannot run here; its row says why.
    NotRun(String),
    /// Something is broken, which ends the program.
    Failed(Failure),
}

impl From<Failure> for NotMeasured {
    fn from(failure: Failure) -> Self {
        NotMeasured::Failed(failure)
    }
}

/// What one run has measured of one payload: round trips, in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// How many.
    pub repetitions: u64,
    /// Their median, or where only that is known ([`is_mean`](Round::is_mean)) their mean.
    pub p50: f64,
    /// Whether `p50` is a mean.
    pub is_mean: bool,
    /// 99th percentile, if it is known.
    pub p99: Option<f64>,
    /// 99.9th percentile, if it is known.
    pub p999: Option<f64>,
    /// Each of them, if they are known.
    pub each: Vec<u64>,
}

impl Round {
    /// The round trips `samples`. A percentile that is only the largest of them is left out.
    pub fn of(samples: Samples) -> Self {
        let statistics = samples.statistics();
        let count = samples.each().len();
        Round {
            repetitions: count as u64,
            p50: statistics.p50 as f64,
            is_mean: false,
            p99: (count >= 100).then_some(statistics.p99 as f64),
            p999: (count >= 1000).then_some(statistics.p999 as f64),
            each: samples.each().to_vec(),
        }
    }
}
