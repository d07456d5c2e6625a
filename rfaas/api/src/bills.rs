//! Bills: of one lease, and summed up by client.

use serde::{Deserialize, Serialize};

/// The bill of a lease that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bill {
    /// The id of the lease.
    pub lease: u64,
    /// Who pays.
    pub client: String,
    /// Where it was.
    pub node: String,
    /// Cores that it held.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub cores: u32,
    /// Memory that it held, in MB.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4294967295_u64, format = Int64))]
    pub memory: u32,
    /// How long it held them, in milliseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub allocated_ms: u64,
    /// Time that workers polled without work, in nanoseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub hot_polling_ns: u64,
    /// Time that functions ran, in nanoseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub execution_ns: u64,
    /// Functions called.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub invocations: u64,
    /// When it ended. RFC 3339, UTC, with milliseconds.
    #[cfg_attr(feature = "openapi", schema(format = DateTime))]
    pub ended_at: String,
    /// Why it ended.
    pub reason: Reason,
    /// Cores times `allocated_ms`.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub allocated_core_ms: u64,
    /// Memory times `allocated_ms`.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub allocated_mb_ms: u64,
    /// The node did not report it (yet): it may be replaced, and then ends later. Never so if nobody claimed
    /// the lease, unless its node was lost, which may have had no time to say that it was claimed. Of those that
    /// nobody claimed the last 16,384 bills at least are kept, and of all others each.
    pub provisional: bool,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Reason {
    /// Its client gave it back.
    Released,
    /// Its time was over.
    Expired,
    /// Its client was gone.
    ClientGone,
    /// The operator ended it, or withdrew its node.
    Withdrawn,
    /// Its node was lost.
    NodeLost,
    /// Its node's executor manager was stopped.
    Shutdown,
    /// Nobody claimed it in time.
    Unclaimed,
}

/// The sum of a client's bills.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClientBill {
    /// Who pays.
    pub client: String,
    /// Leases.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub leases: u64,
    /// Cores that they held, times the time, in core-milliseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub allocated_core_ms: u64,
    /// Memory that they held, times the time, in MB-milliseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub allocated_mb_ms: u64,
    /// Time that workers polled without work, in nanoseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub hot_polling_ns: u64,
    /// Time that functions ran, in nanoseconds.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub execution_ns: u64,
    /// Functions called.
    #[cfg_attr(feature = "openapi", schema(minimum = 0))]
    pub invocations: u64,
}
