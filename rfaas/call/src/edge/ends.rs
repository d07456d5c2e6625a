//! Whose completions are whose, and how many there may be.

use rdmalib::{CompletionQueue, Device};

/// Receives beyond one a slot: who writes twice is to be found out, not to be blocked.
pub(super) const SPARE_RECEIVES: u32 = 31;
/// Requests that a receiver's send queue must have room for at least, though it sends nothing.
pub(super) const SENDS_NOTHING: u32 = 1;
/// Bit of a receive's id that says that it is of an edge out. The rest is the number of the edge.
const OUT: u64 = 1 << 32;

/// Which edge of a worker or client a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeEnd {
    /// One that comes in.
    In(usize),
    /// One that goes out, of which nothing comes but its end.
    Out(usize),
}

impl EdgeEnd {
    /// Returns the id of receives.
    pub(super) fn id(self) -> u64 {
        match self {
            EdgeEnd::In(edge) => edge as u64,
            EdgeEnd::Out(edge) => OUT | edge as u64,
        }
    }

    /// Returns whose id this is.
    #[inline]
    pub fn of(id: u64) -> Self {
        let edge = id as u32 as usize; // the low half
        if id & OUT == 0 { EdgeEnd::In(edge) } else { EdgeEnd::Out(edge) }
    }
}

/// Makes the queue that so many edges complete into: those that come in, of `slots` slots each, and those that go out.
pub fn arrival_queue(
    device: &Device,
    slots: u16,
    (ins, outs): (usize, usize),
) -> rdmalib::Result<CompletionQueue> {
    let count = |edges: usize| u32::try_from(edges).unwrap_or(u32::MAX);
    let of_in = u32::from(slots) + SPARE_RECEIVES + SENDS_NOTHING;
    device.completion_queue(count(ins).saturating_mul(of_in).saturating_add(count(outs)).max(1))
}
