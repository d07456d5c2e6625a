//! Work requests: one shape from the application to a provider's wire.
//!
//! Applications use the aliases [`crate::WorkRequest`], [`crate::Operation`], [`crate::Source`] and
//! [`crate::Slice`], which are these types for a [`Region`](crate::Region). The parameters are for
//! the layers of this crate.
//!
//! ```text
//!   WorkRequest<&Region, &[u8]>      an application posts it            (crate::WorkRequest)
//!        │ check: once, by the provider that it is posted to
//!   WorkRequest<M, &[u8]>            M: memory as that provider has it
//!        │ map: only for a request that has to wait
//!   WorkRequest<M, Box<[u8]>>        it owns what it refers to
//! ```
//! `M` is whatever names registered memory, `B` holds the bytes that are copied while posting.

use super::{Error, RemoteAddress, Result};

bitflags::bitflags! {
    /// Options of one work request; `ibv_post_send(3)`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Completes with an entry in the send completion queue. Without it only a failure does.
        ///
        /// An unsignaled request has succeeded when a later one of the same queue completes with
        /// success. A request takes a place in the send queue until its own or a later completion
        /// is polled. So at least one in every
        /// [`send_depth`](crate::QueuePairConfig::send_depth) requests is signaled, and
        /// completions are polled: otherwise every further post is
        /// [`QueueFull`](crate::Error::QueueFull), for ever.
        const SIGNALED = 1;
        /// Wakes a receiver that waits for [`Notify::Solicited`](crate::Notify::Solicited). For
        /// sends, and writes with immediate data.
        const SOLICITED = 2;
        /// Starts after all earlier reads and atomics of this queue have finished. Without it a
        /// request on an RDMA device may overtake them; on the embedded device it never does.
        const FENCE = 4;
        /// For writes with immediate data. You promise: the receiver reads the bytes only after it
        /// has polled the completion; until it answers, you neither change the source nor post
        /// another request for the same destination. The embedded device may then copy later or
        /// with the receiver's help, and so faster. Your own completion of the request is not the
        /// answer. Inline bytes are copied while posting, and so are free at once. Other devices
        /// ignore this flag.
        const WITH_COMPLETION = 8;
    }
}

/// A checked range of registered memory: the scatter/gather element of a work request. Made by
/// [`Region::slice`](crate::Region::slice).
#[derive(Clone, Copy)]
pub struct Slice<M> {
    pub(crate) region: M,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Where the bytes of a send or write come from. `M` is a reference to a region, `B` the bytes.
#[derive(Clone, Copy, Debug)]
pub enum Source<M, B> {
    /// Registered memory, which must stay as it is until the request has completed. If it changes
    /// before, the peer gets arbitrary bytes, and nothing else happens.
    Region(Slice<M>),
    /// Any memory, copied while posting; at most
    /// [`max_inline_data`](crate::QueuePairConfig::max_inline_data) bytes.
    Inline(B),
}

/// What a work request does. `M` is a reference to a region, `B` inline bytes. The rights that it
/// needs are at [`Access`](crate::Access).
#[derive(Clone, Copy, Debug)]
pub enum Operation<M, B> {
    /// Two-sided: the bytes go to the receive that the peer posted first. If there is none, the
    /// request waits, as [`RnrRetry`](crate::RnrRetry) says.
    Send {
        /// The message.
        source: Source<M, B>,
        /// Immediate data for the receiver's completion, in host byte order.
        immediate: Option<u32>,
    },
    /// One-sided: the bytes go to `to`. With immediate data they also use up a receive and complete
    /// at the peer; if there is none, the request waits, as for a send. Without, the peer does not
    /// notice.
    Write {
        /// The bytes; may be empty.
        source: Source<M, B>,
        /// Their destination.
        to: RemoteAddress,
        /// Immediate data for the receiver's completion, in host byte order.
        immediate: Option<u32>,
    },
    /// One-sided: fills `into` with the peer's bytes.
    Read {
        /// Destination; its region needs [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
        into: Slice<M>,
        /// Where the bytes are.
        from: RemoteAddress,
    },
    /// Adds to an aligned 64-bit counter of the peer; the old value lands in `into`.
    FetchAdd {
        /// Eight bytes for the old value, in host byte order.
        into: Slice<M>,
        /// The counter; a multiple of 8.
        at: RemoteAddress,
        /// What is added, wrapping.
        add: u64,
    },
    /// Replaces an aligned 64-bit word of the peer if it has the expected value; the old value
    /// lands in `into`.
    CompareSwap {
        /// Eight bytes for the old value, in host byte order.
        into: Slice<M>,
        /// The word; a multiple of 8.
        at: RemoteAddress,
        /// Value that it must have.
        expect: u64,
        /// Value that it then gets.
        swap: u64,
    },
}

/// One request for the send queue. `M` is a reference to a region, `B` inline bytes.
#[derive(Clone, Copy, Debug)]
pub struct WorkRequest<M, B> {
    /// Returned in the completion; free for the caller.
    pub id: u64,
    /// What to do.
    pub operation: Operation<M, B>,
    /// How.
    pub flags: Flags,
}

impl<M: std::fmt::Debug> std::fmt::Debug for Slice<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Slice { region, offset, bytes } = self;
        write!(f, "Slice({bytes} bytes from {offset} on, of {region:?})")
    }
}

impl<M> Slice<M> {
    /// Returns the same range of what `f` makes of its memory.
    #[inline]
    pub(crate) fn map<'s, N>(&'s self, f: impl FnOnce(&'s M) -> N) -> Slice<N> {
        Slice { region: f(&self.region), offset: self.offset, bytes: self.bytes }
    }
}

impl<M, B: AsRef<[u8]>> Source<M, B> {
    /// Returns how many bytes there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Source::Region(slice) => slice.bytes,
            Source::Inline(bytes) => bytes.as_ref().len(),
        }
    }
}

impl<M, B> Operation<M, B> {
    /// Returns the same operation on what the two functions make of memory and bytes.
    pub(crate) fn map<'s, N, C>(
        &'s self,
        memory: impl Fn(&'s M) -> N,
        bytes: impl Fn(&'s B) -> C,
    ) -> Operation<N, C> {
        let source = |source: &'s Source<M, B>| match source {
            Source::Region(slice) => Source::Region(slice.map(&memory)),
            Source::Inline(inline) => Source::Inline(bytes(inline)),
        };
        match self {
            Operation::Send { source: from, immediate } => {
                Operation::Send { source: source(from), immediate: *immediate }
            }
            Operation::Write { source: from, to, immediate } => {
                Operation::Write { source: source(from), to: *to, immediate: *immediate }
            }
            Operation::Read { into, from } => {
                Operation::Read { into: into.map(&memory), from: *from }
            }
            Operation::FetchAdd { into, at, add } => {
                Operation::FetchAdd { into: into.map(&memory), at: *at, add: *add }
            }
            Operation::CompareSwap { into, at, expect, swap } => Operation::CompareSwap {
                into: into.map(&memory),
                at: *at,
                expect: *expect,
                swap: *swap,
            },
        }
    }
}

impl<M, B> WorkRequest<M, B> {
    /// Returns the same request on what the two functions make of memory and bytes.
    pub(crate) fn map<'s, N, C>(
        &'s self,
        memory: impl Fn(&'s M) -> N,
        bytes: impl Fn(&'s B) -> C,
    ) -> WorkRequest<N, C> {
        let operation = self.operation.map(memory, bytes);
        WorkRequest { id: self.id, operation, flags: self.flags }
    }
}

/// What a queue pair takes in one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageLimits {
    /// Most inline bytes.
    pub(crate) inline: usize,
    /// Most bytes of registered memory.
    pub(crate) bytes: usize,
}

impl<M: Copy, B: AsRef<[u8]> + Copy> WorkRequest<M, B> {
    /// Checks what can be checked before a request is posted: memory, lengths, and the shape of
    /// atomics. `memory` returns a region as the provider has it, or why the queue pair cannot use
    /// it.
    #[inline]
    pub(crate) fn check<N>(
        &self,
        limits: MessageLimits,
        memory: impl Fn(M) -> Result<N>,
    ) -> Result<WorkRequest<N, B>> {
        let slice = |slice: Slice<M>| {
            let region = memory(slice.region)?;
            if slice.bytes > limits.bytes {
                return Err(Error::InvalidArgument(
                    "one request moves less than 4 GiB, on an RDMA device at most 2 GiB",
                ));
            }
            Ok(Slice { region, offset: slice.offset, bytes: slice.bytes })
        };
        let source = |source: Source<M, B>| match source {
            Source::Region(region) => slice(region).map(Source::Region),
            Source::Inline(inline) => {
                let bytes = inline.as_ref().len();
                if bytes > limits.inline {
                    return Err(Error::InlineTooLarge { bytes, max: limits.inline });
                }
                Ok(Source::Inline(inline))
            }
        };
        let word = |into: Slice<M>, at: RemoteAddress| {
            if into.bytes != 8 {
                return Err(Error::InvalidArgument("an atomic returns eight bytes"));
            }
            if !at.addr.is_multiple_of(8) {
                return Err(Error::InvalidArgument(
                    "an atomic's remote address is a multiple of 8",
                ));
            }
            slice(into)
        };
        let operation = match self.operation {
            Operation::Write { source: from, to, immediate } => {
                Operation::Write { source: source(from)?, to, immediate }
            }
            Operation::Send { source: from, immediate } => {
                Operation::Send { source: source(from)?, immediate }
            }
            Operation::Read { into, from } => Operation::Read { into: slice(into)?, from },
            Operation::FetchAdd { into, at, add } => {
                Operation::FetchAdd { into: word(into, at)?, at, add }
            }
            Operation::CompareSwap { into, at, expect, swap } => {
                Operation::CompareSwap { into: word(into, at)?, at, expect, swap }
            }
        };
        Ok(WorkRequest { id: self.id, operation, flags: self.flags })
    }
}
