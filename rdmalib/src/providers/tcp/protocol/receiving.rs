//! The half that receives: frames, where their payloads go, posted receives, and completions that
//! are held until there is a receive.

use std::time::Instant;

use super::super::memory::Place;
use super::super::wire::{FrameFlags, HEADER, Header, Kind, status_of};
use super::connection::Protocol;
use super::received::{Body, Held, Receiving, Target, What};
use super::sent::Answer;
use super::terms::{EAGER, Receive};
use crate::sync::Ordering;
use crate::types::{Access, Error, Opcode, Result, State, Status, WorkCompletion};

/// For those who post and poll.
impl Protocol {
    /// Whether one more receive fits.
    pub(in super::super) fn check_receive(&self) -> Result<()> {
        let Receiving { depth, outstanding, .. } = self.receiving;
        if outstanding >= depth { Err(Error::QueueFull { depth }) } else { Ok(()) }
    }

    /// Posts a receive that was checked; whether a request of the peer has waited for it.
    pub(in super::super) fn post_receive(
        &mut self,
        id: u64,
        buffer: Option<(Place, usize)>,
    ) -> bool {
        let receiving = &mut self.receiving;
        receiving.outstanding += 1;
        receiving.posted.push_back(Receive { id, buffer });
        if self.state == State::Error {
            self.flush_receives();
        } else if !receiving.held.is_empty() && self.is_open() {
            self.release_held();
            return true;
        }
        false
    }

    /// The next finished receive. Its place in the receive queue is free from now on.
    pub(in super::super) fn take_receive(&mut self) -> Option<WorkCompletion> {
        let completion = self.receiving.done.pop_front()?;
        self.receiving.outstanding -= 1;
        Some(completion)
    }

    pub(in super::super) fn has_receives(&self) -> bool {
        !self.receiving.done.is_empty()
    }

    /// How many of the peer's requests were carried out.
    pub(in super::super) fn carried_out(&self) -> u32 {
        let held = self.receiving.held.front().map(|held| held.sequence);
        match (held, self.failing) {
            (Some(held), Some((failed, _))) if (held.wrapping_sub(failed) as i32) < 0 => held,
            (_, Some((failed, _))) => failed,
            (Some(held), None) => held,
            (None, None) => self.receiving.next,
        }
    }
}

/// For the carrier.
impl Protocol {
    /// Where the next bytes that arrive belong, if they are payload for memory: place and length.
    pub(in super::super) fn landing(&self) -> Option<(Place, usize)> {
        let body = self.receiving.body.as_ref()?;
        match &body.target {
            Target::Place(place) if !place.memory.is_revoked() => Some((place.clone(), body.left)),
            Target::Receive(Receive { buffer: Some((place, _)), .. })
                if !place.memory.is_revoked() =>
            {
                Some((place.clone(), body.left))
            }
            _ => None,
        }
    }

    /// So many bytes have been put where [`landing`](Self::landing) said.
    pub(in super::super) fn landed(&mut self, bytes: usize) {
        let Some(body) = &mut self.receiving.body else { return };
        body.left -= bytes;
        match &mut body.target {
            Target::Place(place) | Target::Receive(Receive { buffer: Some((place, _)), .. }) => {
                place.offset += bytes;
            }
            _ => {}
        }
        if body.left == 0 {
            self.finish_body();
        }
    }

    /// Takes bytes that have arrived, in order.
    pub(in super::super) fn input(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.is_open() {
            if self.receiving.body.is_some() {
                bytes = self.body_input(bytes);
                continue;
            }
            let receiving = &mut self.receiving;
            let taken = (HEADER - receiving.filled).min(bytes.len());
            receiving.header[receiving.filled..][..taken].copy_from_slice(&bytes[..taken]);
            receiving.filled += taken;
            bytes = &bytes[taken..];
            if receiving.filled == HEADER {
                receiving.filled = 0;
                let header = Header::of_bytes(&receiving.header);
                self.begin(header);
            }
        }
    }

    fn body_input<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(body) = &mut self.receiving.body else { return bytes };
        let taken = body.left.min(bytes.len());
        let (these, rest) = bytes.split_at(taken);
        body.left -= taken;
        let mut refused = None;
        match &mut body.target {
            Target::Place(place) => {
                if place.memory.is_revoked() {
                    refused = Some(Status::RemoteAccessError);
                } else {
                    place.memory.put(place.offset, these);
                    place.offset += taken;
                }
            }
            Target::Receive(Receive { buffer: Some((place, _)), .. }) => {
                if place.memory.is_revoked() {
                    refused = Some(Status::RemoteOperationError);
                } else {
                    place.memory.put(place.offset, these);
                    place.offset += taken;
                }
            }
            Target::Kept(kept) => kept.extend_from_slice(these),
            Target::Operands(operands) => {
                let start = body.header.length.get() as usize - body.left - taken;
                operands[start..][..taken].copy_from_slice(these);
            }
            Target::Receive(_) | Target::Nowhere => {}
        }
        if let Some(status) = refused {
            self.refuse_body(status);
        } else if self.receiving.body.as_ref().is_some_and(|body| body.left == 0) {
            self.finish_body();
        }
        rest
    }

    /// The memory that a payload was for has gone while it arrived.
    fn refuse_body(&mut self, status: Status) {
        let Some(body) = self.receiving.body.take() else { return };
        let sequence = body.header.sequence.get();
        match (body.kind, body.target) {
            (Kind::Answer, _) => {
                let rest = Body { target: Target::Nowhere, ..body };
                self.receiving.body = (rest.left > 0).then_some(rest);
                self.answered(sequence, Some(Status::LocalProtectionError));
            }
            (_, Target::Receive(receive)) => {
                self.complete(receive, Status::LocalProtectionError, |_| {});
                self.fail(sequence, status);
            }
            _ => self.fail(sequence, status),
        }
    }
}

/// Frames.
impl Protocol {
    /// A header has arrived.
    fn begin(&mut self, header: Header) {
        let Some(kind) = header.kind() else { return self.violation("a frame of no known kind") };
        if !self.acknowledged(header.acknowledged.get()) {
            return self.violation("it acknowledges what was not sent");
        }
        if self.state != State::Connected {
            return; // the acknowledgement has brought the end
        }
        let sequence = header.sequence.get();
        match kind {
            Kind::Acknowledge => {}
            Kind::Clear => {
                if !self.cleared(sequence) {
                    self.violation("it clears what was not announced");
                }
            }
            Kind::Failed => {
                if !self.refused(sequence, status_of(header.immediate.get())) {
                    self.violation("it refuses what was not sent");
                }
            }
            Kind::Answer => self.begin_answer(header),
            Kind::Data => self.begin_data(header),
            _ => {
                if sequence != self.receiving.next {
                    return self.violation("its requests are not in order");
                }
                self.begin_request(header, kind);
            }
        }
    }

    fn begin_answer(&mut self, header: Header) {
        let bytes = header.length.get() as usize;
        let Some(place) = self.answer_place(header.sequence.get(), bytes) else {
            return self.violation("it answers what was not asked");
        };
        let is_writable = !place.memory.is_revoked();
        let target = if is_writable { Target::Place(place) } else { Target::Nowhere };
        self.expect(header, Kind::Answer, target);
    }

    fn begin_data(&mut self, header: Header) {
        let receive = match self.receiving.held.front_mut() {
            Some(Held { sequence, bytes, what: What::Cleared(receive), .. })
                if *sequence == header.sequence.get() && *bytes == header.length.get() as usize =>
            {
                receive.take()
            }
            _ => None,
        };
        let Some(receive) = receive else {
            return self.violation("it sends what was not asked for");
        };
        self.expect(header, Kind::Data, Target::Receive(receive));
    }

    fn begin_request(&mut self, header: Header, kind: Kind) {
        let (sequence, bytes) = (header.sequence.get(), header.length.get() as usize);
        if kind != Kind::Read && self.answers() > 0 {
            self.frame_answers();
        }
        match kind {
            Kind::Send => self.begin_send(header),
            Kind::Announce => {
                self.receiving.next = sequence.wrapping_add(1);
                self.hold(&header, What::Announced);
                if self.is_open() {
                    self.release_held();
                }
            }
            Kind::Write if bytes == 0 => self.expect(header, kind, Target::Nowhere),
            Kind::Write => match self.reachable(&header, bytes, Access::REMOTE_WRITE) {
                Some(place) => self.expect(header, kind, Target::Place(place)),
                None => self.fail(sequence, Status::RemoteAccessError),
            },
            Kind::Read => {
                self.receiving.next = sequence.wrapping_add(1);
                if bytes == 0 {
                    return self.reply(Answer::Nothing { sequence });
                }
                match self.reachable(&header, bytes, Access::REMOTE_READ) {
                    Some(place) => self.reply(Answer::Bytes { sequence, place, bytes }),
                    None => self.fail(sequence, Status::RemoteAccessError),
                }
            }
            _ => {
                let operands = if kind == Kind::FetchAdd { 8 } else { 16 };
                if bytes != operands {
                    return self.violation("an atomic of another length");
                }
                self.expect(header, kind, Target::Operands([0; 16]));
            }
        }
    }

    fn begin_send(&mut self, header: Header) {
        let (sequence, bytes) = (header.sequence.get(), header.length.get() as usize);
        if bytes > EAGER {
            return self.violation("a long message that was not announced");
        }
        if self.receiving.held.is_empty()
            && let Some(receive) = self.receiving.posted.pop_front()
        {
            if let Some(receive) = self.fits(receive, sequence, bytes) {
                self.expect(header, Kind::Send, Target::Receive(receive));
            }
            return;
        }
        if self.receiving.kept + bytes > EAGER {
            return self.violation("more messages than are kept");
        }
        self.receiving.kept += bytes;
        self.expect(header, Kind::Send, Target::Kept(Vec::with_capacity(bytes)));
    }

    /// The receive again if it takes a message of `bytes`; or else both sides fail.
    fn fits(&mut self, receive: Receive, sequence: u32, bytes: usize) -> Option<Receive> {
        let (room, is_gone) = match &receive.buffer {
            Some((place, room)) => (*room, place.memory.is_revoked()),
            None => (0, false),
        };
        if bytes > room {
            self.complete(receive, Status::LocalLengthError, |_| {});
            self.fail(sequence, Status::RemoteInvalidRequest);
            return None;
        }
        if is_gone {
            self.complete(receive, Status::LocalProtectionError, |_| {});
            self.fail(sequence, Status::RemoteOperationError);
            return None;
        }
        Some(receive)
    }

    fn reachable(&mut self, header: &Header, bytes: usize, access: Access) -> Option<Place> {
        let at = (header.address.get(), header.key.get());
        self.receiving.keys.find(&mut self.receiving.last, at, bytes, access)
    }

    /// An answer, if the peer may have so many.
    fn reply(&mut self, answer: Answer) {
        if self.answers() >= self.receiving.peer.send_depth as usize {
            return self.violation("more requests than it said");
        }
        self.answer(answer);
    }

    fn expect(&mut self, header: Header, kind: Kind, target: Target) {
        let left = header.length.get() as usize;
        self.receiving.body = Some(Body { header, kind, left, target });
        if left == 0 {
            self.finish_body();
        }
    }

    /// All bytes of a frame are there.
    fn finish_body(&mut self) {
        let Some(Body { header, kind, target, .. }) = self.receiving.body.take() else { return };
        let (sequence, bytes) = (header.sequence.get(), header.length.get() as usize);
        if kind == Kind::Answer {
            let is_gone = matches!(target, Target::Nowhere) && bytes > 0;
            return self.answered(sequence, is_gone.then_some(Status::LocalProtectionError));
        }
        let mut immediate = header.immediate();
        let mut is_solicited = header.flags().contains(FrameFlags::SOLICITED);
        if kind == Kind::Data {
            // They came with the announcement.
            let held = self.receiving.held.pop_front();
            immediate = held.as_ref().and_then(|held| held.immediate);
            is_solicited = held.is_some_and(|held| held.is_solicited);
        } else {
            self.receiving.next = sequence.wrapping_add(1);
        }
        match target {
            Target::Receive(receive) => {
                self.complete(receive, Status::Success, |done| {
                    (done.bytes, done.immediate) = (bytes as u32, immediate);
                });
                self.news.urgent |= is_solicited;
            }
            Target::Kept(message) => {
                self.hold(&header, What::Message(message));
                self.release_held();
            }
            Target::Operands(operands) => self.atomic(&header, kind, operands),
            Target::Place(_) | Target::Nowhere => {
                if immediate.is_some() {
                    self.hold(&header, What::Write);
                    self.release_held();
                }
            }
        }
    }

    fn atomic(&mut self, header: &Header, kind: Kind, operands: [u8; 16]) {
        let sequence = header.sequence.get();
        let operand = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&operands[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let place = self.reachable(header, 8, Access::REMOTE_ATOMIC);
        let word = place.as_ref().and_then(|place| place.memory.word(place.offset));
        let Some(word) = word else { return self.fail(sequence, Status::RemoteAccessError) };
        let value = if kind == Kind::FetchAdd {
            word.fetch_add(operand(0), Ordering::AcqRel)
        } else {
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match word.compare_exchange(operand(0), operand(8), order.0, order.1) {
                Ok(value) | Err(value) => value,
            }
        };
        self.reply(Answer::Word { sequence, value });
    }
}

/// Receives.
impl Protocol {
    /// Completes a receive.
    fn complete(
        &mut self,
        receive: Receive,
        status: Status,
        fill: impl FnOnce(&mut WorkCompletion),
    ) {
        let opcode = Opcode::Receive;
        let mut done = WorkCompletion { status, opcode, ..self.completion(receive.id) };
        fill(&mut done);
        self.receiving.done.push_back(done);
        self.news.receives = true;
        self.news.urgent |= status != Status::Success;
    }

    /// Holds a request until there is a receive.
    fn hold(&mut self, header: &Header, what: What) {
        let peer = self.receiving.peer;
        if self.receiving.held.len() >= peer.send_depth as usize {
            return self.violation("more requests than it said");
        }
        self.receiving.held.push_back(Held {
            sequence: header.sequence.get(),
            immediate: header.immediate(),
            is_solicited: header.flags().contains(FrameFlags::SOLICITED),
            bytes: header.length.get() as usize,
            deadline: None,
            what,
        });
        self.wait_for_receive();
    }

    /// The time of the first request runs that waits for a receive.
    fn wait_for_receive(&mut self) {
        let Receiving { held, posted, peer, .. } = &mut self.receiving;
        if let (Some(first), Some(patience)) = (held.front_mut(), peer.patience)
            && posted.is_empty()
            && first.deadline.is_none()
            && !matches!(first.what, What::Cleared(_))
        {
            first.deadline = Some(Instant::now() + patience);
            if patience.is_zero() {
                self.expire(Instant::now());
            }
        }
    }

    /// Gives requests that are held the receives that there are.
    fn release_held(&mut self) {
        while self.is_open() && !self.receiving.posted.is_empty() {
            let receiving = &mut self.receiving;
            let Some(held) = receiving.held.front_mut() else { return };
            let (sequence, bytes) = (held.sequence, held.bytes);
            match &mut held.what {
                What::Cleared(_) => return,
                What::Announced => {
                    let receive = receiving.posted.pop_front().expect("there is one");
                    held.deadline = None;
                    let Some(receive) = self.fits(receive, sequence, bytes) else { return };
                    if let Some(held) = self.receiving.held.front_mut() {
                        held.what = What::Cleared(Some(receive));
                    }
                    return self.answer(Answer::Clear { sequence });
                }
                What::Write | What::Message(_) => {}
            }
            let held = receiving.held.pop_front().expect("there is one");
            let receive = receiving.posted.pop_front().expect("there is one");
            let (immediate, is_solicited) = (held.immediate, held.is_solicited);
            let mut opcode = Opcode::ReceiveWithImmediate;
            let receive = if let What::Message(message) = held.what {
                opcode = Opcode::Receive;
                self.receiving.kept -= message.len();
                let Some(receive) = self.fits(receive, sequence, bytes) else { return };
                if let Some((place, _)) = &receive.buffer {
                    place.memory.put(place.offset, &message);
                }
                receive
            } else {
                receive
            };
            self.complete(receive, Status::Success, |done| {
                (done.opcode, done.immediate, done.bytes) = (opcode, immediate, bytes as u32);
            });
            self.news.urgent |= is_solicited;
        }
        self.wait_for_receive();
    }

    /// Flushes all receives, first those that a message was about to fill.
    pub(super) fn flush_receives(&mut self) {
        let body = self.receiving.body.take();
        if let Some(Body { target: Target::Receive(receive), .. }) = body {
            self.complete(receive, Status::Flushed, |_| {});
        }
        if let Some(Held { what: What::Cleared(Some(receive)), .. }) =
            self.receiving.held.pop_front()
        {
            self.complete(receive, Status::Flushed, |_| {});
        }
        while let Some(receive) = self.receiving.posted.pop_front() {
            self.complete(receive, Status::Flushed, |_| {});
        }
        self.receiving.held.clear();
        self.receiving.last = None;
    }
}
