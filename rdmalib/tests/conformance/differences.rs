//! Where a provider is known to differ from the list of facts: a line each, with the reason.

use rdmalib::{Provider, Status};

/// Of this provider, this status counts as that one.
const STATUSES: &[(Provider, Status, Status, &str)] = &[
    (
        Provider::Verbs,
        Status::RemoteOperationError,
        Status::RemoteInvalidRequest,
        "SoftRoCE refuses a message that is longer than its receive as an operation that failed",
    ),
    (
        Provider::Verbs,
        Status::Other(2), // IBV_WC_LOC_QP_OP_ERR
        Status::LocalLengthError,
        "and so it tells the receiver",
    ),
];

/// Providers that show a peer's memory (`SendQueue::map_remote`), and why others do not.
const MAPS_REMOTE_MEMORY: &[(Provider, bool, &str)] = &[
    (Provider::Shm, true, "the peer's memory is of this machine"),
    (Provider::Verbs, false, "it is behind a network"),
];

/// Whether `provider` shows a peer's memory.
pub fn maps_remote_memory(provider: Provider) -> bool {
    MAPS_REMOTE_MEMORY.iter().any(|(of, maps, _)| *of == provider && *maps)
}

/// `status`, or what it counts as.
pub fn as_elsewhere(provider: Provider, status: Status) -> Status {
    let known = STATUSES.iter().find(|(of, seen, ..)| *of == provider && *seen == status);
    known.map_or(status, |(_, _, counts_as, _)| *counts_as)
}
