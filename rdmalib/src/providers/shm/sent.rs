//! Finished sends on their way from the thread that carried them out to the poller.
//!
//! A request leaves the send queue when its own or a later completion is polled: `retired` is
//! stored with Release in `take` and loaded with Acquire in `check_room`.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::{Error, Opcode, Result, Status};

/// The finished sends of one queue pair. The thread that carries out requests pushes, the poller
/// takes, the poster asks for room.
#[derive(Debug)]
pub(super) struct SentRing {
    depth: u32,
    mask: u32,
    entries: Box<[Entry]>,
    tail: AtomicU32,
    /// Requests whose place in the send queue is free again.
    retired: AtomicU32,
}

#[derive(Debug, Default)]
struct Entry {
    id: AtomicU64,
    /// `index << 32 | opcode << 16 | status`.
    what: AtomicU64,
}

/// A finished send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) opcode: Opcode,
    pub(super) status: Status,
}

const OPCODES: [Opcode; 5] =
    [Opcode::Send, Opcode::Write, Opcode::Read, Opcode::FetchAdd, Opcode::CompareSwap];
const STATUSES: [Status; 8] = [
    Status::Success,
    Status::LocalLengthError,
    Status::LocalProtectionError,
    Status::Flushed,
    Status::RemoteInvalidRequest,
    Status::RemoteAccessError,
    Status::RemoteOperationError,
    Status::RnrRetryExceeded,
];

fn status_code(status: Status) -> u64 {
    STATUSES.iter().position(|s| *s == status).expect("the embedded device makes no other") as u64
}

impl SentRing {
    /// For a send queue of `depth` requests.
    pub(super) fn new(depth: u32) -> Self {
        let size = depth.next_power_of_two();
        SentRing {
            depth,
            mask: size - 1,
            entries: (0..size).map(|_| Entry::default()).collect(),
            tail: AtomicU32::new(0),
            retired: AtomicU32::new(0),
        }
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    /// Whether one more request fits, after `posted`.
    #[inline]
    pub(super) fn check_room(&self, posted: u32) -> Result<()> {
        let retired = self.retired.load(Ordering::Acquire);
        if posted.wrapping_sub(retired) >= self.depth {
            return Err(Error::QueueFull { depth: self.depth });
        }
        Ok(())
    }

    /// The request with this index has ended.
    pub(super) fn push(&self, index: u32, sent: Sent) {
        let tail = self.tail.load(Ordering::Relaxed);
        let entry = &self.entries[(tail & self.mask) as usize];
        entry.id.store(sent.id, Ordering::Relaxed);
        let what = u64::from(index) << 32 | (sent.opcode as u64) << 16 | status_code(sent.status);
        entry.what.store(what, Ordering::Relaxed);
        // At most `depth` requests are outstanding, so the poller has left this entry.
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
    }

    /// Whether there are more than the `head` that were taken.
    #[inline]
    pub(super) fn has_more(&self, head: u32) -> bool {
        self.tail.load(Ordering::Acquire) != head
    }

    /// The next, after the `head` that were taken.
    #[inline]
    pub(super) fn take(&self, head: u32) -> Option<Sent> {
        if !self.has_more(head) {
            return None;
        }
        let entry = &self.entries[(head & self.mask) as usize];
        let (id, what) = (entry.id.load(Ordering::Relaxed), entry.what.load(Ordering::Relaxed));
        let index = (what >> 32) as u32;
        self.retired.store(index.wrapping_add(1), Ordering::Release);
        Some(Sent {
            id,
            opcode: OPCODES[(what >> 16 & 0xffff) as usize],
            status: STATUSES[(what & 0xffff) as usize],
        })
    }
}
