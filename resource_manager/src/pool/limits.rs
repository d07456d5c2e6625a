//! Bounds of what can be asked for, and how long the pool waits for others.

use std::time::Duration;

/// Most cores of a node or lease: an executor's assignment counts its workers in 16 bits.
pub const MAX_CORES: u32 = u16::MAX as u32;
/// Most nodes of a request: it is answered by as many messages at once, half of what may be under way to a
/// peer (`rfaas_protocol::channel`).
pub const MAX_NODES: u32 = 32;
/// Longest lease.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a lease lasts if the request does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest grace period of a node's withdrawal.
pub const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Grace period of a withdrawal that does not name one.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// How long after a start of this program nodes may take to register again before their leases end:
/// twice the longest pause between two tries of an executor manager to reconnect (5 s).
pub const RESTART_RETURN: Duration = Duration::from_secs(10);
/// How long a node that came back may take to report the leases that it still holds; it does so at
/// once, so this is generous.
pub const RECLAIM: Duration = Duration::from_secs(3);
/// How long after its client has gone an unclaimed lease is kept, since its claim may be under way
/// from the node.
pub const CLAIM_IN_FLIGHT: Duration = Duration::from_secs(2);
/// How long after its expiry an active lease may take to be reported as ended: the node ends it by
/// its own clock, and is asked only if it did not.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(2);
/// How long after the grace period a node may take to report a lease as ended, before that is
/// taken as given: ten times what it waits before it kills an executor (500 ms).
pub const END_MARGIN: Duration = Duration::from_secs(5);
/// Pause before a node's host name is looked up again after it was not found.
pub const RESOLVE_AGAIN: Duration = Duration::from_secs(5);
