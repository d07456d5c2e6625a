//! The half that sends: requests that wait for their turn, answers to the peer, frames that the
//! carrier has not taken, and requests that wait for the peer.

use std::borrow::Borrow;
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::super::memory::{Memory, Place};
use super::super::wire::{FrameFlags, Header, Kind, status_code};
use super::connection::Protocol;
use super::sent::{Announced, Answer, Answered, Large, Pending, Sending};
use super::terms::{COPIED, EAGER};
use crate::types::work::{Operation, Slice, Source, WorkRequest};
use crate::types::{
    Access, Error, Flags, Opcode, RemoteAddress, Result, State, Status, WorkCompletion,
};

/// For posters.
impl Protocol {
    /// Whether one more request fits after `ahead` others.
    pub(in super::super) fn check_room(&self, ahead: u32) -> Result<()> {
        let Sending { depth, posted, retired, .. } = self.sending;
        if posted.wrapping_add(ahead).wrapping_sub(retired) >= depth {
            return Err(Error::QueueFull { depth });
        }
        Ok(())
    }

    /// Posts a request that was checked.
    pub(in super::super) fn post(
        &mut self,
        request: &WorkRequest<&Arc<Memory>, &[u8]>,
    ) -> Result<()> {
        if self.state == State::Init {
            return Err(Error::InvalidArgument("queue pair is not connected"));
        }
        self.check_room(0)?;
        let (opcode, answer) = match &request.operation {
            Operation::Send { .. } => (Opcode::Send, Answered::Nothing),
            Operation::Write { .. } => (Opcode::Write, Answered::Nothing),
            Operation::Read { into, .. } => (Opcode::Read, answered(into)),
            Operation::FetchAdd { into, .. } => (Opcode::FetchAdd, answered(into)),
            Operation::CompareSwap { into, .. } => (Opcode::CompareSwap, answered(into)),
        };
        let signaled = request.flags.contains(Flags::SIGNALED);
        let pending = Pending { id: request.id, opcode, signaled, answer, eager: 0, failed: None };
        self.sending.pending.push_back(pending);
        self.sending.posted = self.sending.posted.wrapping_add(1);
        if self.state == State::Error {
            self.flush_sends(Status::Flushed);
        } else if !(self.sending.queue.is_empty() && self.encode(request)) {
            let owned = request.map(|memory| Arc::clone(memory), |bytes| Box::from(*bytes));
            self.sending.queue.push_back(owned);
        }
        Ok(())
    }

    /// The next finished request. Its place in the send queue is free from now on.
    pub(in super::super) fn take_send(&mut self) -> Option<WorkCompletion> {
        let (index, completion) = self.sending.done.pop_front()?;
        self.sending.retired = index.wrapping_add(1);
        Some(completion)
    }

    pub(in super::super) fn has_sends(&self) -> bool {
        !self.sending.done.is_empty()
    }
}

fn answered(into: &Slice<&Arc<Memory>>) -> Answered {
    Answered::Into(Place { memory: Arc::clone(into.region), offset: into.offset }, into.bytes)
}

/// For the carrier.
impl Protocol {
    /// What is to be sent next: frames, and the bytes that follow them, where they are.
    pub(in super::super) fn chunks(&mut self) -> (&[u8], Option<(&Place, usize)>) {
        self.gather();
        let Sending { frames, start, large, .. } = &self.sending;
        (&frames[*start..], large.as_ref().map(|large| (&large.place, large.left)))
    }

    /// So many of these bytes were sent.
    pub(in super::super) fn sent(&mut self, bytes: usize) {
        let sending = &mut self.sending;
        let of_frames = bytes.min(sending.frames.len() - sending.start);
        sending.start += of_frames;
        if sending.start == sending.frames.len() {
            sending.frames.clear();
            sending.start = 0;
        }
        if let Some(large) = &mut sending.large {
            let of_large = (bytes - of_frames).min(large.left);
            large.place.offset += of_large;
            large.left -= of_large;
            if large.left == 0 {
                sending.large = None;
            }
        }
    }

    /// Whether there is something to send now.
    pub(in super::super) fn has_output(&mut self) -> bool {
        let (frames, large) = self.chunks();
        !frames.is_empty() || large.is_some()
    }

    /// Whether something was carried out that the peer does not know yet.
    pub(in super::super) fn owes_acknowledgement(&self) -> bool {
        self.carried_out() != self.receiving.told
    }

    /// Tells the peer what was carried out, by itself, if something was that it does not know.
    pub(in super::super) fn acknowledge(&mut self) {
        self.sending.wants_acknowledgement = true;
        self.acknowledge_if_wanted();
    }

    fn acknowledge_if_wanted(&mut self) {
        if self.sending.wants_acknowledgement && self.is_open() && self.sending.has_room() {
            self.sending.wants_acknowledgement = false;
            if self.owes_acknowledgement() {
                self.frame(Header::new(Kind::Acknowledge, 0, 0));
            }
        }
    }

    /// Makes frames of what waits, as long as there is room.
    fn gather(&mut self) {
        self.gather_frames();
        self.acknowledge_if_wanted(); // what is ahead of it has its count too
    }

    fn gather_frames(&mut self) {
        while self.state == State::Connected && self.sending.has_room() {
            if let Some(answer) = self.sending.answers.pop_front() {
                self.encode_answer(answer);
            } else if let Some((sequence, status)) = self.failing {
                if !self.sending.told_failure {
                    self.sending.told_failure = true;
                    let mut header = Header::new(Kind::Failed, sequence, 0);
                    header.immediate = U32::new(status_code(status));
                    self.frame(header);
                }
                return;
            } else if let Some(announced) = self.sending.announced {
                if !announced.is_clear {
                    return;
                }
                self.encode_announced(announced.sequence);
            } else {
                let Some(request) = self.sending.queue.pop_front() else { return };
                if !self.encode(&request) {
                    self.sending.queue.push_front(request);
                    return;
                }
            }
        }
    }

    /// Adds a header, and says in it what was carried out.
    fn frame(&mut self, mut header: Header) {
        let carried_out = self.carried_out();
        header.acknowledged = U32::new(carried_out);
        self.receiving.told = carried_out;
        self.sending.frames.extend_from_slice(header.as_bytes());
    }

    /// Adds bytes of registered memory behind a header.
    fn payload(&mut self, memory: &Arc<Memory>, offset: usize, bytes: usize) {
        if bytes <= COPIED {
            memory.append_to(offset, bytes, &mut self.sending.frames);
        } else {
            let place = Place { memory: memory.clone(), offset };
            self.sending.large = Some(Large { place, left: bytes });
        }
    }

    fn encode_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Bytes { sequence, place, bytes } => {
                self.frame(Header::new(Kind::Answer, sequence, bytes as u32));
                self.payload(&place.memory, place.offset, bytes);
            }
            Answer::Word { sequence, value } => {
                self.frame(Header::new(Kind::Answer, sequence, 8));
                self.sending.frames.extend_from_slice(&value.to_le_bytes());
            }
            Answer::Nothing { sequence } => self.frame(Header::new(Kind::Answer, sequence, 0)),
            Answer::Clear { sequence } => self.frame(Header::new(Kind::Clear, sequence, 0)),
        }
    }

    fn encode_announced(&mut self, sequence: u32) {
        self.sending.announced = None;
        let Some(pending) = self.sending.pending(sequence) else { return };
        let answer = std::mem::replace(&mut pending.answer, Answered::Nothing);
        if let Answered::Into(place, bytes) = answer {
            self.frame(Header::new(Kind::Data, sequence, bytes as u32));
            self.payload(&place.memory, place.offset, bytes);
        }
    }

    /// Makes a frame of the request whose turn it is; `false`: it has to wait.
    fn encode<M, B>(&mut self, request: &WorkRequest<M, B>) -> bool
    where
        M: Borrow<Arc<Memory>>,
        B: AsRef<[u8]>,
    {
        let sending = &self.sending;
        let waits = sending.announced.is_some()
            || sending.stopped
            || self.failing.is_some()
            || (request.flags.contains(Flags::FENCE) && sending.waits_for_answers());
        if waits || !sending.has_room() || self.state != State::Connected {
            return false;
        }
        let sequence = self.sending.next;
        if let Some(status) = cannot_be_sent(&request.operation) {
            let index = sequence.wrapping_sub(self.sending.first) as usize;
            self.sending.pending[index].failed = Some(status);
            self.sending.stopped = true;
            self.sending.next = sequence.wrapping_add(1);
            self.settle();
            return true;
        }
        let mut flags = FrameFlags::empty();
        flags.set(FrameFlags::SOLICITED, request.flags.contains(Flags::SOLICITED));
        match &request.operation {
            Operation::Send { source, immediate } => {
                return self.encode_send(sequence, source, *immediate, flags);
            }
            Operation::Write { source, to, immediate } => {
                let mut header = with_remote(Kind::Write, sequence, source.len(), *to);
                set_immediate(&mut header, *immediate, flags);
                self.frame(header);
                self.source(source);
            }
            Operation::Read { into, from } => {
                self.frame(with_remote(Kind::Read, sequence, into.bytes, *from));
            }
            Operation::FetchAdd { at, add, .. } => {
                self.frame(with_remote(Kind::FetchAdd, sequence, 8, *at));
                self.sending.frames.extend_from_slice(&add.to_le_bytes());
            }
            Operation::CompareSwap { at, expect, swap, .. } => {
                self.frame(with_remote(Kind::CompareSwap, sequence, 16, *at));
                self.sending.frames.extend_from_slice(&expect.to_le_bytes());
                self.sending.frames.extend_from_slice(&swap.to_le_bytes());
            }
        }
        self.sending.next = sequence.wrapping_add(1);
        true
    }

    /// A message goes at once if the receiver can keep it, and is announced if it never could.
    fn encode_send<M, B>(
        &mut self,
        sequence: u32,
        source: &Source<M, B>,
        immediate: Option<u32>,
        flags: FrameFlags,
    ) -> bool
    where
        M: Borrow<Arc<Memory>>,
        B: AsRef<[u8]>,
    {
        let bytes = source.len();
        let index = sequence.wrapping_sub(self.sending.first) as usize;
        if bytes > EAGER {
            let mut header = Header::new(Kind::Announce, sequence, bytes as u32);
            set_immediate(&mut header, immediate, flags);
            self.frame(header);
            self.sending.announced = Some(Announced { sequence, is_clear: false });
            if let Source::Region(slice) = source {
                let memory = Arc::clone(slice.region.borrow());
                let place = Place { memory, offset: slice.offset };
                self.sending.pending[index].answer = Answered::Into(place, slice.bytes);
            }
            self.sending.next = sequence.wrapping_add(1);
            return true;
        }
        if self.sending.eager + bytes > EAGER {
            return false; // until the peer has acknowledged some
        }
        self.sending.eager += bytes;
        self.sending.pending[index].eager = bytes;
        let mut header = Header::new(Kind::Send, sequence, bytes as u32);
        set_immediate(&mut header, immediate, flags);
        self.frame(header);
        self.source(source);
        self.sending.next = sequence.wrapping_add(1);
        true
    }

    fn source<M: Borrow<Arc<Memory>>, B: AsRef<[u8]>>(&mut self, source: &Source<M, B>) {
        match source {
            Source::Region(slice) => {
                self.payload(slice.region.borrow(), slice.offset, slice.bytes);
            }
            Source::Inline(bytes) => self.sending.frames.extend_from_slice(bytes.as_ref()),
        }
    }
}

/// For what arrives.
impl Protocol {
    pub(super) fn answer(&mut self, answer: Answer) {
        self.sending.answers.push_back(answer);
    }

    /// Makes frames of short answers, so that they have the bytes of before what comes next. A long one is sent from
    /// where it is, and may have later ones: a peer that wants otherwise fences.
    pub(super) fn frame_answers(&mut self) {
        while self.state == State::Connected && self.sending.has_room() {
            let Some(answer) = self.sending.answers.pop_front() else { return };
            self.encode_answer(answer);
        }
    }

    pub(super) fn answers(&self) -> usize {
        self.sending.answers.len()
    }

    /// The peer has carried out the requests before `count`. `false`: it cannot have.
    pub(super) fn acknowledged(&mut self, count: u32) -> bool {
        let sending = &mut self.sending;
        let more = count.wrapping_sub(sending.acknowledged);
        if more > sending.next.wrapping_sub(sending.acknowledged) {
            return false;
        }
        if more > 0 {
            sending.acknowledged = count;
            self.settle();
        }
        true
    }

    /// Where the answer to request `sequence` goes, if it has so many bytes.
    pub(super) fn answer_place(&mut self, sequence: u32, bytes: usize) -> Option<Place> {
        let pending = self.sending.pending(sequence)?;
        match &pending.answer {
            Answered::Into(place, expected)
                if *expected == bytes && pending.opcode != Opcode::Send =>
            {
                Some(place.clone())
            }
            _ => None,
        }
    }

    /// The answer to request `sequence` is there, or could not land.
    pub(super) fn answered(&mut self, sequence: u32, failed: Option<Status>) {
        if let Some(pending) = self.sending.pending(sequence) {
            pending.answer = Answered::Nothing;
            pending.failed = failed;
        }
        self.settle();
    }

    /// The message that was announced may come. `false`: none was.
    pub(super) fn cleared(&mut self, sequence: u32) -> bool {
        match &mut self.sending.announced {
            Some(announced) if announced.sequence == sequence && !announced.is_clear => {
                announced.is_clear = true;
                true
            }
            _ => false,
        }
    }

    /// Request `sequence` has failed at the peer. `false`: there is no such request.
    pub(super) fn refused(&mut self, sequence: u32, status: Status) -> bool {
        let Some(pending) = self.sending.pending(sequence) else { return false };
        pending.failed = Some(status);
        self.settle();
        self.end(Status::Flushed);
        true
    }

    /// Completes what can be completed, in order.
    pub(super) fn settle(&mut self) {
        if self.state == State::Error {
            return;
        }
        while let Some(oldest) = self.sending.pending.front() {
            if let Some(status) = oldest.failed {
                return self.end(status);
            }
            let first = self.sending.first;
            let is_acknowledged = (self.sending.acknowledged.wrapping_sub(first) as i32) > 0;
            if !is_acknowledged || matches!(oldest.answer, Answered::Into(..)) {
                return;
            }
            self.news.sends |= self.sending.finish(Status::Success, self.number);
        }
    }

    /// Completes all requests: the oldest with `oldest`, the others as flushed.
    pub(super) fn flush_sends(&mut self, oldest: Status) {
        let mut status = oldest;
        while let Some(pending) = self.sending.pending.front() {
            // One that has failed may not be the oldest: those before it wait for receives.
            let failed = pending.failed;
            self.sending.finish(failed.unwrap_or(status), self.number);
            status = Status::Flushed;
            self.news.sends = true;
            self.news.urgent = true;
        }
        let sending = &mut self.sending;
        sending.next = sending.posted;
        sending.queue.clear();
        sending.answers.clear();
        sending.frames.clear();
        (sending.start, sending.large) = (0, None);
    }
}

/// Why a request cannot be sent.
fn cannot_be_sent<M: Borrow<Arc<Memory>>, B>(operation: &Operation<M, B>) -> Option<Status> {
    let (memory, needed): (&Arc<Memory>, _) = match operation {
        Operation::Send { source, .. } | Operation::Write { source, .. } => match source {
            Source::Region(slice) => (slice.region.borrow(), Access::empty()),
            Source::Inline(_) => return None,
        },
        Operation::Read { into, .. }
        | Operation::FetchAdd { into, .. }
        | Operation::CompareSwap { into, .. } => (into.region.borrow(), Access::LOCAL_WRITE),
    };
    let is_allowed = memory.access().contains(needed) && !memory.is_revoked();
    (!is_allowed).then_some(Status::LocalProtectionError)
}

fn with_remote(kind: Kind, sequence: u32, bytes: usize, at: RemoteAddress) -> Header {
    let mut header = Header::new(kind, sequence, bytes as u32);
    header.address = U64::new(at.addr);
    header.key = U32::new(u32::try_from(at.key).unwrap_or(0)); // 0 is nobody's: it is refused
    header
}

fn set_immediate(header: &mut Header, immediate: Option<u32>, mut flags: FrameFlags) {
    flags.set(FrameFlags::IMMEDIATE, immediate.is_some());
    header.immediate = U32::new(immediate.unwrap_or(0));
    header.set_flags(flags);
}
