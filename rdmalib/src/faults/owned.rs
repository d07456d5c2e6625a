//! A work request that outlives the call that posted it: regions stay registered, inline data is copied.

use crate::memory::{Region, RemoteAddress, Slice};
use crate::queue_pair::{Flags, Operation, Source, WorkRequest};

/// As [`WorkRequest`].
#[derive(Debug)]
pub(super) struct OwnedRequest {
    id: u64,
    operation: OwnedOperation,
    flags: Flags,
}

/// As [`Slice`].
#[derive(Debug)]
struct OwnedSlice {
    region: Region,
    offset: usize,
    bytes: usize,
}

/// As [`Source`].
#[derive(Debug)]
enum OwnedSource {
    Region(OwnedSlice),
    Inline(Box<[u8]>),
}

/// As [`Operation`].
#[derive(Debug)]
enum OwnedOperation {
    Send { source: OwnedSource, immediate: Option<u32> },
    Write { source: OwnedSource, to: RemoteAddress, immediate: Option<u32> },
    Read { into: OwnedSlice, from: RemoteAddress },
    FetchAdd { into: OwnedSlice, at: RemoteAddress, add: u64 },
    CompareSwap { into: OwnedSlice, at: RemoteAddress, expect: u64, swap: u64 },
}

impl OwnedSlice {
    fn new(slice: Slice<'_>) -> Self {
        OwnedSlice { region: slice.region.share(), offset: slice.offset, bytes: slice.bytes }
    }

    fn as_slice(&self) -> Slice<'_> {
        Slice { region: &self.region, offset: self.offset, bytes: self.bytes }
    }
}

impl OwnedSource {
    fn new(source: Source<'_>) -> Self {
        match source {
            Source::Region(slice) => OwnedSource::Region(OwnedSlice::new(slice)),
            Source::Inline(bytes) => OwnedSource::Inline(bytes.into()),
        }
    }

    fn as_source(&self) -> Source<'_> {
        match self {
            OwnedSource::Region(slice) => Source::Region(slice.as_slice()),
            OwnedSource::Inline(bytes) => Source::Inline(bytes),
        }
    }
}

impl OwnedRequest {
    pub(super) fn new(request: &WorkRequest<'_>) -> Self {
        let operation = match request.operation {
            Operation::Send { source, immediate } => {
                OwnedOperation::Send { source: OwnedSource::new(source), immediate }
            }
            Operation::Write { source, to, immediate } => {
                OwnedOperation::Write { source: OwnedSource::new(source), to, immediate }
            }
            Operation::Read { into, from } => {
                OwnedOperation::Read { into: OwnedSlice::new(into), from }
            }
            Operation::FetchAdd { into, at, add } => {
                OwnedOperation::FetchAdd { into: OwnedSlice::new(into), at, add }
            }
            Operation::CompareSwap { into, at, expect, swap } => {
                OwnedOperation::CompareSwap { into: OwnedSlice::new(into), at, expect, swap }
            }
        };
        OwnedRequest { id: request.id, operation, flags: request.flags }
    }

    pub(super) fn as_request(&self) -> WorkRequest<'_> {
        let operation = match &self.operation {
            OwnedOperation::Send { source, immediate } => {
                Operation::Send { source: source.as_source(), immediate: *immediate }
            }
            OwnedOperation::Write { source, to, immediate } => {
                Operation::Write { source: source.as_source(), to: *to, immediate: *immediate }
            }
            OwnedOperation::Read { into, from } => {
                Operation::Read { into: into.as_slice(), from: *from }
            }
            OwnedOperation::FetchAdd { into, at, add } => {
                Operation::FetchAdd { into: into.as_slice(), at: *at, add: *add }
            }
            OwnedOperation::CompareSwap { into, at, expect, swap } => Operation::CompareSwap {
                into: into.as_slice(),
                at: *at,
                expect: *expect,
                swap: *swap,
            },
        };
        WorkRequest { id: self.id, operation, flags: self.flags }
    }
}
