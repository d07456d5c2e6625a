//! What is to be sent, and what waits for the peer.
//!
//! Requests are numbered by posting. `pending` has those that have not completed, `queue` those of
//! them that are in no frame yet; both are in order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::memory::{Memory, Place};
use super::terms::GATHERED;
use crate::types::work::WorkRequest;
use crate::types::{Opcode, Status, WorkCompletion};

/// A request that waits for its turn and owns what it refers to.
pub(super) type OwnedRequest = WorkRequest<Arc<Memory>, Box<[u8]>>;

/// A request that was posted and has not completed.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) opcode: Opcode,
    pub(super) signaled: bool,
    pub(super) answer: Answered,
    /// Bytes that the receiver may have to keep.
    pub(super) eager: usize,
    /// It cannot be sent, or its answer cannot land.
    pub(super) failed: Option<Status>,
}

/// What a request still waits for besides its acknowledgement.
#[derive(Debug)]
pub(super) enum Answered {
    Nothing,
    /// So many bytes that go there.
    Into(Place, usize),
}

/// What the peer asked for.
#[derive(Debug)]
pub(super) enum Answer {
    Bytes {
        sequence: u32,
        place: Place,
        bytes: usize,
    },
    Word {
        sequence: u32,
        value: u64,
    },
    /// A read of no bytes.
    Nothing {
        sequence: u32,
    },
    Clear {
        sequence: u32,
    },
}

/// A payload that is sent from where it is.
#[derive(Debug)]
pub(super) struct Large {
    pub(super) place: Place,
    pub(super) left: usize,
}

/// A message that was announced: no request is sent before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) sequence: u32,
    /// It may come.
    pub(super) is_clear: bool,
}

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) depth: u32,
    /// Number of the next request, counted on for ever.
    pub(super) posted: u32,
    /// Requests before this one have left the send queue: theirs or a later completion was polled.
    pub(super) retired: u32,
    /// Number of the first of `pending`.
    pub(super) first: u32,
    pub(super) pending: VecDeque<Pending>,
    /// Number of the first of `queue`.
    pub(super) next: u32,
    pub(super) queue: VecDeque<OwnedRequest>,
    /// Requests before this one were carried out by the peer.
    pub(super) acknowledged: u32,
    /// A message was announced, and no request is sent before it may come.
    pub(super) announced: Option<Announced>,
    /// A request could not be sent, and so none behind it is.
    pub(super) stopped: bool,
    /// Bytes of messages that may have to wait for a receive.
    pub(super) eager: usize,
    pub(super) answers: VecDeque<Answer>,
    /// Frames for the carrier, from `start` on, and what comes behind them.
    pub(super) frames: Vec<u8>,
    pub(super) start: usize,
    pub(super) large: Option<Large>,
    /// There was no room for an acknowledgement that is to travel alone.
    pub(super) wants_acknowledgement: bool,
    /// The peer was told of its failed request.
    pub(super) told_failure: bool,
    pub(super) done: VecDeque<(u32, WorkCompletion)>,
}

impl Sending {
    pub(super) fn new(depth: u32) -> Self {
        Sending {
            depth,
            posted: 0,
            retired: 0,
            first: 0,
            pending: VecDeque::new(),
            next: 0,
            queue: VecDeque::new(),
            acknowledged: 0,
            announced: None,
            stopped: false,
            eager: 0,
            answers: VecDeque::new(),
            frames: Vec::new(),
            start: 0,
            large: None,
            wants_acknowledgement: false,
            told_failure: false,
            done: VecDeque::new(),
        }
    }

    /// Whether a frame may be added: the ones before go out soon.
    pub(super) fn has_room(&self) -> bool {
        self.large.is_none() && self.frames.len() < GATHERED
    }

    /// Whether a read or an atomic has no answer yet.
    pub(super) fn waits_for_answers(&self) -> bool {
        let waits = |pending: &Pending| {
            matches!(pending.answer, Answered::Into(..)) && pending.opcode != Opcode::Send
        };
        let sent = self.next.wrapping_sub(self.first) as usize;
        self.pending.iter().take(sent).any(waits)
    }

    pub(super) fn pending(&mut self, sequence: u32) -> Option<&mut Pending> {
        let index = sequence.wrapping_sub(self.first);
        // Only what is in a frame can be answered.
        if index >= self.next.wrapping_sub(self.first) {
            return None;
        }
        self.pending.get_mut(index as usize)
    }

    pub(super) fn finish(&mut self, status: Status, number: u32) -> bool {
        let Some(done) = self.pending.pop_front() else { return false };
        let index = self.first;
        self.first = self.first.wrapping_add(1);
        self.eager -= done.eager;
        let shows = done.signaled || status != Status::Success;
        if shows {
            let (id, opcode) = (done.id, done.opcode);
            let completion =
                WorkCompletion { id, status, opcode, queue_pair: number, ..Default::default() };
            self.done.push_back((index, completion));
        }
        shows
    }
}
