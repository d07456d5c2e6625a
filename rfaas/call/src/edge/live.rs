//! A call of a function, from inside: what it asks for is answered here.

use std::ops::Deref;
use std::time::{Duration, Instant};

use rfaas_protocol::edge::{EdgeFailure, InputKind, OutputKind};

use super::end::HopEnd;
use super::outgoing::SlotUse;
use super::stage::Stage;
use super::wires::{Answer, Made, Memory, Wires, not_written, noted};
use crate::callee::{Slot, SlotMemory};
use crate::place::Place;
use crate::turn::{About, Denied, Turn, Verdict};

/// Polls for an answer before the thread sleeps: some 50 µs, which are several hops.
const POLLS: u32 = 2000;
/// Polls between two looks at the clock.
const POLLS_A_LOOK: u32 = 64;
/// Longest sleep, after which the limit is looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How a function is done with a run.
pub(super) struct Over {
    /// What it made, or why there is nothing.
    pub(super) ended: Result<Made, EdgeFailure>,
    /// Edges that it has sent over before it returned, a bit each.
    pub(super) sent: u64,
    /// How often it was called.
    pub(super) calls: u16,
}

/// A call that is being made.
pub(super) struct Live<'a, M> {
    wires: &'a mut Wires,
    memory: &'a Memory<M>,
    stages: &'a [Stage],
    is_stopped: &'a dyn Fn() -> bool,
    stage: usize,
    to: SlotUse,
    slot: Slot,
    /// Number of the input that it is called with.
    first: usize,
    place: Place<'a>,
    /// Area of what it returns.
    area: usize,
    /// It is called with an item, and so many bytes are left for what it returns.
    item: Option<u32>,
    pub(super) sent: u64,
    pub(super) verdict: Option<Verdict>,
    /// What ends the worker once the function has returned.
    pub(super) broken: Option<HopEnd>,
}

/// What calls are made with, and what tells that the worker is to end.
type Around<'a, M> = (&'a mut Wires, &'a Memory<M>, &'a [Stage], &'a dyn Fn() -> bool);

impl<'a, M: Deref<Target = SlotMemory>> Live<'a, M> {
    /// Makes one of a call with input `first`, which returns to `area`. `sent`: what earlier calls in the same run have
    /// sent.
    #[inline]
    pub(super) fn new(
        (wires, memory, stages, is_stopped): Around<'a, M>,
        (stage, to, slot): (usize, SlotUse, Slot),
        (first, place, area): (usize, Place<'a>, usize),
        sent: u64,
    ) -> Self {
        let (item, verdict, broken) = (None, None, None);
        Live {
            wires,
            memory,
            stages,
            is_stopped,
            stage,
            to,
            slot,
            first,
            place,
            area,
            item,
            sent,
            verdict,
            broken,
        }
    }

    /// Makes one of a call with an item, or with the items of a key, of input `first`; `left` bytes are left for what
    /// it returns.
    pub(super) fn of_item(
        around: Around<'a, M>,
        at: (usize, SlotUse, Slot),
        (first, place): (usize, Place<'a>),
        left: u32,
    ) -> Self {
        Live { item: Some(left), ..Live::new(around, at, (first, place, 0), 0) }
    }

    fn described(&self) -> &'a Stage {
        &self.stages[self.stage]
    }

    /// Returns the number of an edge that the function knows.
    fn edge(&self, edge: u32) -> Result<usize, Denied> {
        let edge = edge as usize;
        (edge < self.described().edges()).then_some(edge).ok_or(Denied::NoSuch)
    }

    /// Returns the area of what goes over an edge.
    fn area_of(&self, edge: usize) -> usize {
        if self.described().sends() { 1 + edge } else { self.area }
    }

    /// Sends what is in the area of `edge`.
    fn send(&mut self, edge: usize, bytes: u32) -> Result<(), Denied> {
        let made = Made { area: self.area_of(edge), slot: self.slot, bytes, in_place: false };
        let of = (self.stage, edge);
        let sent = self.wires.send(self.stages, self.memory, of, self.to, made, self.is_stopped);
        match sent {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(Denied::Bounds),
            Err(end) => {
                self.broken.get_or_insert(end);
                Err(Denied::Lost)
            }
        }
    }

    /// Notes what has come. Nothing is called.
    fn note_what_is_there(&mut self) -> Result<(), Denied> {
        while let Some(done) = self.wires.arrivals.poll_one() {
            let noted = self.wires.note(self.stages, self.memory, &done);
            let reposted = noted.and_then(|link| {
                link.map_or(Ok(()), |link| self.wires.ins[link].repost().map_err(HopEnd::from))
            });
            if let Err(end) = reposted {
                self.broken.get_or_insert(end);
                return Err(Denied::Lost);
            }
        }
        Ok(())
    }

    /// Returns which input the answers of a call over `edge` are. `None`: nothing is called over it.
    fn answer_of(&self, edge: usize) -> Option<usize> {
        let described = self.described();
        if described.outputs[edge].kind != OutputKind::Call {
            return None;
        }
        let calls = described.outputs[..edge].iter();
        let number = calls.filter(|output| output.kind == OutputKind::Call).count();
        let inputs = described.inputs.iter().enumerate();
        let answers = inputs.filter(|(_, input)| input.kind == InputKind::Answer);
        answers.map(|(input, _)| input).nth(number)
    }

    /// Waits for an answer, until the worker is to end. Meanwhile other things that come are noted, and nothing else is
    /// called.
    fn wait(&mut self, answer: usize, limit: Duration) -> Result<Option<u32>, Denied> {
        let deadline = Instant::now().checked_add(limit);
        let mut polls = 0;
        loop {
            self.note_what_is_there()?;
            let state = self.wires.answer((self.stage, answer), self.to.slot);
            if let Answer::There(bytes) = *state {
                *state = Answer::None;
                return Ok(bytes);
            }
            polls += 1;
            if polls < POLLS && polls % POLLS_A_LOOK != 0 {
                self.wires.arrivals.stay_awake();
                std::hint::spin_loop();
                continue;
            }
            if (self.is_stopped)() {
                self.broken.get_or_insert(HopEnd::Stopped);
                return Err(Denied::Lost);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                self.wires.give_up((self.stage, answer), self.to.slot);
                return Err(Denied::Time);
            }
            if polls >= POLLS {
                let sleep = left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP));
                if let Err(error) = self.wires.arrivals.wait(Some(sleep)) {
                    self.broken.get_or_insert(error.into());
                    return Err(Denied::Lost);
                }
            }
        }
    }
}

impl<M: Deref<Target = SlotMemory>> Turn for Live<'_, M> {
    fn about(&self) -> About {
        let described = self.described();
        let waited = |input: &&super::stage::StageInput| {
            matches!(input.kind, InputKind::Whole | InputKind::Items)
        };
        About {
            function: described.function.1,
            member: described.member.0,
            members: described.member.1,
            slot: self.to.slot,
            inputs: described.inputs.iter().filter(waited).count() as u32, // at most 64
            edges: described.edges() as u32,
        }
    }

    fn area(&self) -> (*mut u8, u32) {
        let area = || self.memory.areas[self.stage][self.area].layout().output_bytes();
        (self.place.output(), self.item.unwrap_or_else(area))
    }

    fn input(&self, number: u32) -> Result<(*const u8, u32), Denied> {
        let number = number as usize;
        if number == self.first {
            return Ok((self.place.input().cast_const(), self.place.input_bytes()));
        }
        let described = self.described();
        let input = described.inputs.get(number).ok_or(Denied::NoSuch)?;
        if !matches!(input.kind, InputKind::Whole | InputKind::Items) {
            return Err(Denied::NoSuch);
        }
        let bytes = self.wires.joins[self.stage].bytes(self.to.slot, number);
        let bytes = bytes.ok_or(Denied::Absent)?;
        let of = (self.stage, number);
        let (region, at) = self.memory.input(self.wires, described, of, self.to.slot);
        Ok((region.as_ptr().wrapping_add(at).cast_const(), bytes))
    }

    fn output(&self, edge: u32) -> Result<(*mut u8, u32), Denied> {
        let edge = self.edge(edge)?;
        if self.sent & 1 << edge != 0 {
            return Err(Denied::Busy); // the receiver may read it now
        }
        if let Some(answer) = self.answer_of(edge)
            && self.wires.state((self.stage, answer), self.to.slot) != Answer::None
        {
            return Err(Denied::Busy); // who is asked may read it still
        }
        if let Some(left) = self.item {
            return Ok((self.place.output(), left));
        }
        let bytes = self.described().outputs[edge].bytes;
        if self.area_of(edge) == self.area {
            return Ok((self.place.output(), bytes));
        }
        let (region, at) = self.memory.areas[self.stage][self.area_of(edge)].output(self.slot);
        Ok((region.as_ptr().wrapping_add(at), bytes))
    }

    fn emit(&mut self, edge: u32, bytes: u32) -> Result<(), Denied> {
        let edge = self.edge(edge)?;
        let described = self.described();
        let output = &described.outputs[edge];
        // A function that is tried with each input would send once for each.
        let is_any = self.wires.joins[self.stage].is_any();
        let may = described.sends() && !is_any && self.item.is_none();
        if !may || output.kind == OutputKind::Call {
            return Err(Denied::Rights);
        }
        if bytes > output.bytes {
            return Err(Denied::Bounds);
        }
        if self.sent & 1 << edge != 0 {
            return Err(Denied::Busy);
        }
        self.send(edge, bytes)?;
        self.sent |= 1 << edge;
        Ok(())
    }

    fn call(&mut self, edge: u32, bytes: u32, limit_ns: u64) -> Result<(*const u8, u32), Denied> {
        let edge = self.edge(edge)?;
        let described = self.described();
        let output = &described.outputs[edge];
        let answer = self.answer_of(edge);
        let (OutputKind::Call, Some(answer), None) = (output.kind, answer, self.item) else {
            return Err(Denied::Rights);
        };
        if bytes > output.bytes {
            return Err(Denied::Bounds);
        }
        if self.wires.state((self.stage, answer), self.to.slot) == Answer::Late {
            self.note_what_is_there()?;
        }
        let state = self.wires.answer((self.stage, answer), self.to.slot);
        if *state != Answer::None {
            return Err(Denied::Busy);
        }
        *state = Answer::Awaited;
        let (region, at) = self.memory.areas[self.stage][self.area_of(edge)].output(self.slot);
        for out in &output.to {
            let (link, edge) = self.wires.out(*out);
            let sent = link.send(edge, self.to, (region, at, bytes), self.is_stopped);
            if let Err(why) = sent {
                self.broken.get_or_insert(not_written(*out, why));
                return Err(Denied::Lost);
            }
        }
        let bytes = self.wait(answer, Duration::from_nanos(limit_ns))?.ok_or(Denied::Lost)?;
        let of = (self.stage, answer);
        let (region, at) = self.memory.input(self.wires, described, of, self.to.slot);
        Ok((region.as_ptr().wrapping_add(at).cast_const(), bytes))
    }

    fn note(&mut self, key: &[u8], value: i64) -> Result<(), Denied> {
        noted(&mut self.wires.notes, key, value)
    }

    fn end(&mut self, verdict: Verdict) -> Result<(), Denied> {
        if let Verdict::Again(bytes) = verdict {
            let described = self.described();
            if self.item.is_some() || !described.loops() {
                return Err(Denied::Rights);
            }
            let most = self.memory.areas[self.stage][self.area].layout().output_bytes();
            if bytes > most {
                return Err(Denied::Bounds);
            }
        }
        self.verdict = Some(verdict);
        Ok(())
    }
}
