//! Whose completions are whose, and how many there may be.

use rdmalib::{CompletionQueue, Device};

use super::link::Link;

/// Receives of a link beyond one a slot: who writes twice is to be found out, not to be blocked.
const SPARE_RECEIVES: u32 = 31;
/// Requests that a receiver's send queue must have room for at least, though it sends nothing.
pub(super) const SENDS_NOTHING: u32 = 1;
/// Bit of a receive's id that says that it is of a link out. The rest is the number of the link.
const OUT: u64 = 1 << 32;

/// Which link of a worker or client a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// One that comes in.
    In(usize),
    /// One that goes out, of which nothing comes but its end.
    Out(usize),
}

impl LinkEnd {
    /// Returns the id of receives.
    pub(super) fn id(self) -> u64 {
        match self {
            LinkEnd::In(link) => link as u64,
            LinkEnd::Out(link) => OUT | link as u64,
        }
    }

    /// Returns whose id this is.
    #[inline]
    pub fn of(id: u64) -> Self {
        let link = id as u32 as usize; // the low half
        if id & OUT == 0 { LinkEnd::In(link) } else { LinkEnd::Out(link) }
    }
}

/// Returns how many receives a link has posted.
pub(super) fn receives_of(edges: &Link) -> u32 {
    edges.payloads().saturating_add(SPARE_RECEIVES)
}

/// Makes the queue that links complete into: those of these edges that come in, and so many that go out.
pub fn arrival_queue<'a>(
    device: &Device,
    ins: impl IntoIterator<Item = &'a Link>,
    outs: usize,
) -> rdmalib::Result<CompletionQueue> {
    let of_in = |edges| receives_of(edges).saturating_add(SENDS_NOTHING);
    let ins = ins.into_iter().map(of_in).fold(0, u32::saturating_add);
    let outs = u32::try_from(outs).unwrap_or(u32::MAX);
    device.completion_queue(ins.saturating_add(outs).max(1))
}
