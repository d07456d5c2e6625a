//! What a worker of a graph is connected with: notes what comes, sends what goes, and knows what is to be done next.

use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Instant;

use rdmalib::{Access, CompletionQueue, Domain, Region, Status, WorkCompletion};
use rfaas_protocol::edge::{EdgeFailure, EdgeStatus, FailedBecause, InputKind, OutputKind};

use super::end::HopEnd;
use super::ends::LinkEnd;
use super::incoming::{Arrival, InEnd};
use super::items::{self, HEADER, Item, Items};
use super::join::{Input, Joined, Joins};
use super::link::{EdgeAt, Linked};
use super::notes::Notes;
use super::outgoing::{MappedSlots, OutLink, SlotUse};
use super::stage::{InputFrom, Stage};
use crate::callee::{Slot, SlotMemory};
use crate::turn::Denied;
use crate::writer::NotWritten;

/// Where what comes and goes lies. Nothing moves while the worker lives.
#[derive(Debug)]
pub(super) struct Memory<M> {
    /// Of links that come in, by number.
    pub(super) ins: Vec<Region>,
    /// Areas of each stage, a slot for each run in each.
    pub(super) areas: Vec<Vec<M>>,
    /// Slots of a receiver, in which a stage writes in place, by stage.
    pub(super) mapped: Vec<Option<MappedSlots>>,
    /// Where items are sorted by whom they go to, by edge that goes out.
    pub(super) sorted: Vec<Option<Region>>,
    /// Where the items of a key are brought together.
    pub(super) gathered: Option<Region>,
}

/// The connections, and what there is of each run. Per run there is no allocation.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) ins: Vec<InEnd>,
    outs: Vec<OutLink>,
    pub(super) arrivals: CompletionQueue, // behind the queue pairs that complete into it
    /// On which of them the edges are that come in, and those that go out.
    pub(super) of_ins: Vec<EdgeAt>,
    of_outs: Vec<EdgeAt>,
    /// Which inputs of which stages an edge that comes in is.
    targets: Vec<Vec<(usize, usize)>>,
    pub(super) joins: Vec<Joins>,
    /// Answers to calls, by stage, input and slot.
    answers: Vec<Vec<Answer>>,
    /// Answers that are on their way though nobody waits for them, by stage and slot.
    owed: Vec<Box<[u8]>>,
    /// Which area of the other stage an input from the same worker is in, by stage, input and slot.
    areas_of: Vec<Box<[u8]>>,
    pub(super) ready: VecDeque<Ready>,
    /// Bytes that are sorted for each edge that goes out.
    filled: Vec<u32>,
    pub(super) slots: u16,
    /// What the function has noted of the run that it is called in. `None`: runs are not traced.
    pub(super) notes: Option<Notes>,
}

/// Something to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) stage: usize,
    pub(super) to: SlotUse,
    /// The input that has come last.
    pub(super) input: usize,
    /// Instead of a call, this is to be passed on.
    pub(super) failed: Option<EdgeFailure>,
}

/// An answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing was asked.
    None,
    /// It is waited for.
    Awaited,
    /// It is on its way, and nobody waits for it.
    Late,
    /// It is there: so many bytes, unless there are none.
    There(Option<u32>),
}

impl Wires {
    /// Makes them of connected links, and where on these the edges are.
    pub(super) fn new(
        (ins, of_ins): (Vec<InEnd>, Vec<EdgeAt>),
        (outs, of_outs): (Vec<OutLink>, Vec<EdgeAt>),
        arrivals: CompletionQueue,
        stages: &[Stage],
        slots: u16,
    ) -> Self {
        let targets_of = |edge: usize| {
            let targets = stages.iter().enumerate().flat_map(|(stage, described)| {
                let inputs = described.inputs.iter().enumerate();
                let of_edge = inputs.filter(|(_, input)| input.from == InputFrom::Edge(edge));
                of_edge.map(move |(number, _)| (stage, number))
            });
            targets.collect()
        };
        let runs = usize::from(slots);
        let inputs = |stage: &Stage| stage.inputs.len() * runs;
        let waiting = stages.iter().map(inputs).sum();
        Wires {
            targets: (0..of_ins.len()).map(targets_of).collect(),
            joins: stages.iter().map(|stage| Joins::new(stage, slots)).collect(),
            answers: stages.iter().map(|stage| vec![Answer::None; inputs(stage)]).collect(),
            owed: stages.iter().map(|_| vec![0; runs].into()).collect(),
            areas_of: stages.iter().map(|stage| vec![0; inputs(stage)].into()).collect(),
            ready: VecDeque::with_capacity(waiting),
            filled: vec![0; of_outs.len()],
            ins,
            outs,
            of_ins,
            of_outs,
            arrivals,
            slots,
            notes: None,
        }
    }

    /// Returns the link of an edge that goes out, and which of its edges that is.
    #[inline]
    pub(super) fn out(&mut self, edge: usize) -> (&mut OutLink, u16) {
        let EdgeAt { link, edge } = self.of_outs[edge];
        (&mut self.outs[link], edge)
    }

    fn at(&self, slot: u16, number: usize) -> usize {
        number * usize::from(self.slots) + usize::from(slot)
    }

    /// Notes what has come with `done`. Returns the link whose receive is to be posted again.
    #[inline]
    pub(super) fn note<M>(
        &mut self,
        stages: &[Stage],
        memory: &Memory<M>,
        done: &WorkCompletion,
    ) -> Result<Option<usize>, HopEnd> {
        let link = match LinkEnd::of(done.id) {
            LinkEnd::In(link) => link,
            LinkEnd::Out(link) => {
                return Err(HopEnd::ReceiverGone(
                    self.outs.get(link).map_or(0, |out| out.edges().name()),
                ));
            }
        };
        let (Some(end), Some(slots)) = (self.ins.get(link), memory.ins.get(link)) else {
            return Ok(None); // there is no such link
        };
        let name = end.edges().name();
        let breach = |what| HopEnd::Breach { input: name, what };
        let arrival = end.read(slots, done).map_err(breach)?.ok_or(HopEnd::SenderGone(name))?;
        let Arrival { edge, slot, run, status, bytes } = arrival;
        let input = match status {
            EdgeStatus::Value | EdgeStatus::InPlace => Input::Value(bytes),
            EdgeStatus::Failed => {
                Input::Failed(end.failure(slots, self.of_ins[edge].edge, slot)?)
            }
        };
        let to = SlotUse { slot, run };
        for target in 0..self.targets[edge].len() {
            let target = self.targets[edge][target];
            self.join(stages, target, to, input)
                .map_err(|what| HopEnd::Breach { input: edge, what })?;
        }
        Ok(Some(link))
    }

    /// Notes that an input of a stage has come.
    #[inline]
    pub(super) fn join(
        &mut self,
        stages: &[Stage],
        (stage, number): (usize, usize),
        to: SlotUse,
        input: Input,
    ) -> Result<(), &'static str> {
        if stages[stage].inputs[number].kind == InputKind::Answer {
            return self.answered(stages, (stage, number), to, input);
        }
        let joined = self.joins[stage].arrived((to.slot, to.run), number, input, Instant::now)?;
        let failed = match joined {
            Joined::Waits => {
                self.finish(stages, stage, to);
                return Ok(());
            }
            Joined::Call => None,
            Joined::Failed(failure) => Some(failure),
        };
        self.ready.push_back(Ready { stage, to, input: number, failed });
        Ok(())
    }

    #[cold]
    fn answered(
        &mut self,
        stages: &[Stage],
        (stage, number): (usize, usize),
        to: SlotUse,
        input: Input,
    ) -> Result<(), &'static str> {
        let at = self.at(to.slot, number);
        let answer = &mut self.answers[stage][at];
        match answer {
            Answer::Awaited => {
                *answer = Answer::There(match input {
                    Input::Value(bytes) => Some(bytes),
                    Input::Failed(_) => None,
                });
            }
            Answer::Late => {
                *answer = Answer::None;
                self.owed[stage][usize::from(to.slot)] -= 1;
                self.finish(stages, stage, to);
            }
            Answer::None | Answer::There(_) => return Err("it answered what was not asked"),
        }
        Ok(())
    }

    /// Returns the state of an answer.
    pub(super) fn answer(&mut self, (stage, number): (usize, usize), slot: u16) -> &mut Answer {
        let at = self.at(slot, number);
        &mut self.answers[stage][at]
    }

    /// Returns the state of an answer, to be looked at.
    pub(super) fn state(&self, (stage, number): (usize, usize), slot: u16) -> Answer {
        self.answers[stage][self.at(slot, number)]
    }

    /// Does not wait for an answer any more.
    pub(super) fn give_up(&mut self, (stage, number): (usize, usize), slot: u16) {
        *self.answer((stage, number), slot) = Answer::Late;
        self.owed[stage][usize::from(slot)] += 1;
    }

    /// Returns the area of the other stage that an input from the same worker is in.
    #[inline]
    pub(super) fn area_of(&self, (stage, number): (usize, usize), slot: u16) -> usize {
        self.areas_of[stage][self.at(slot, number)].into()
    }

    /// If a run is over for a stage, has that told to whoever waits for it.
    #[inline]
    fn finish(&mut self, stages: &[Stage], stage: usize, to: SlotUse) {
        if self.owed[stage][usize::from(to.slot)] == 0 && self.joins[stage].is_over(to.slot) {
            let done = |output: &usize| stages[stage].outputs[*output].kind == OutputKind::Done;
            for output in (stages[stage].edges()..stages[stage].outputs.len()).filter(done) {
                for edge in &stages[stage].outputs[output].to {
                    // It is told by the end of the connection, too: a failure ends the receives of that.
                    let (link, edge) = self.out(*edge);
                    let _ = link.send_done(edge, to);
                }
            }
        }
    }

    /// Notes that all that a stage makes of a run was sent.
    #[inline]
    pub(super) fn settle(&mut self, stages: &[Stage], stage: usize, to: SlotUse) {
        self.joins[stage].settle(to.slot);
        self.finish(stages, stage, to);
    }

    /// Has calls made that are due since nothing more is waited for. Returns when the next ones are.
    pub(super) fn look_at_the_clock(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for stage in 0..self.joins.len() {
            loop {
                let (due, at) = self.joins[stage].due(now);
                let Some((slot, run, joined)) = due else {
                    next = next.into_iter().chain(at).min();
                    break;
                };
                let to = SlotUse { slot, run };
                let failed = match joined {
                    Joined::Failed(failure) => Some(failure),
                    Joined::Call | Joined::Waits => None,
                };
                self.ready.push_back(Ready { stage, to, input: 0, failed });
            }
        }
        next
    }
}

/// Notes a number for the trace, if there is one.
#[cold]
pub(super) fn noted(notes: &mut Option<Notes>, key: &[u8], value: i64) -> Result<(), Denied> {
    notes.as_mut().map_or(Ok(()), |notes| notes.add(key, value))
}

/// What a stage has made, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    /// Number of the area.
    pub(super) area: usize,
    pub(super) slot: Slot,
    pub(super) bytes: u32,
    /// It was written in place, to the slot of the only edge.
    pub(super) in_place: bool,
}

impl Wires {
    /// Sends what a stage has made over its edge of number `output`. Returns why that cannot be, if so.
    #[inline]
    pub(super) fn send<M: Deref<Target = SlotMemory>>(
        &mut self,
        stages: &[Stage],
        memory: &Memory<M>,
        (stage, output): (usize, usize),
        to: SlotUse,
        made: Made,
        is_stopped: impl Fn() -> bool + Copy,
    ) -> Result<Option<EdgeFailure>, HopEnd> {
        let described = &stages[stage];
        let output = &described.outputs[output];
        let (region, at) = memory.areas[stage][made.area].output(made.slot);
        let sorts = matches!(output.kind, OutputKind::Each | OutputKind::Keyed);
        if sorts && output.to.len() > 1 {
            if let Err(failure) = self.sort(
                described,
                output.kind,
                &output.to,
                memory,
                (region, at),
                made.bytes,
                to.slot,
            ) {
                return Ok(Some(failure));
            }
            for edge in &output.to {
                let Some(sorted) = &memory.sorted[*edge] else { continue };
                let filled = self.filled[*edge];
                let (link, on_link) = self.out(*edge);
                let start = link.edges().at(on_link).shape.start(to.slot) as usize;
                link.send(on_link, to, (sorted, start, filled), is_stopped)
                    .map_err(|why| not_written(*edge, why))?;
            }
            return Ok(None);
        }
        for edge in &output.to {
            let (link, on_link) = self.out(*edge);
            let sent = match made.in_place {
                true => link.send_in_place(on_link, to, made.bytes, is_stopped),
                false => link.send(on_link, to, (region, at, made.bytes), is_stopped),
            };
            sent.map_err(|why| not_written(*edge, why))?;
        }
        for target in &output.here {
            let at = self.at(to.slot, target.1);
            self.areas_of[target.0][at] = made.area as u8; // one of at most 66: as many as edges, and two
            self.join(stages, *target, to, Input::Value(made.bytes))
                .map_err(|what| HopEnd::Breach { input: target.1, what })?;
        }
        Ok(None)
    }

    /// Passes on that a run has failed, over the edge of number `output`.
    #[cold]
    pub(super) fn send_failure<M: Deref<Target = SlotMemory>>(
        &mut self,
        stages: &[Stage],
        memory: &Memory<M>,
        (stage, output): (usize, usize),
        (to, slot): (SlotUse, Slot),
        failure: &EdgeFailure,
        is_stopped: impl Fn() -> bool + Copy,
    ) -> Result<(), HopEnd> {
        for edge in &stages[stage].outputs[output].to {
            let detail = memory.areas[stage][0].detail(slot, failure)?;
            let (link, on_link) = self.out(*edge);
            link.send_failure(on_link, to, detail, is_stopped)
                .map_err(|why| not_written(*edge, why))?;
        }
        for target in &stages[stage].outputs[output].here {
            self.join(stages, *target, to, Input::Failed(*failure))
                .map_err(|what| HopEnd::Breach { input: target.1, what })?;
        }
        Ok(())
    }

    /// Sorts items by whom they go to.
    #[allow(clippy::too_many_arguments)] // all of one output
    fn sort<M>(
        &mut self,
        described: &Stage,
        kind: OutputKind,
        edges: &[usize],
        memory: &Memory<M>,
        payload: (&Region, usize),
        bytes: u32,
        slot: u16,
    ) -> Result<(), EdgeFailure> {
        let not_items = || failure(described, FailedBecause::NotItems, bytes, 0);
        edges.iter().for_each(|edge| self.filled[*edge] = 0);
        for (number, item) in Items::of(payload, bytes).enumerate() {
            let item = item.map_err(|_| not_items())?;
            let chosen = match kind {
                OutputKind::Keyed => item.key as usize,
                _ => number,
            };
            let edge = edges[chosen % edges.len()];
            let shape = linked(&self.outs, self.of_outs[edge]).shape;
            let at = self.filled[edge] + HEADER;
            let end = at.checked_add(item.bytes).filter(|end| *end <= shape.bytes);
            let (Some(_), Some(sorted)) = (end, &memory.sorted[edge]) else {
                let needed = at.saturating_add(item.bytes);
                return Err(failure(described, FailedBecause::OutputTooLarge, needed, shape.bytes));
            };
            let start = shape.start(slot) as usize;
            let placed = Item { at, ..item };
            let from = (payload.0, payload.1 + item.at as usize);
            let copied = items::write_header((sorted, start), placed)
                .and_then(|()| items::copy(from, (sorted, start + at as usize), item.bytes));
            copied.map_err(|_| not_items())?;
            // The last item needs no room behind it.
            self.filled[edge] =
                items::after(at, item.bytes).unwrap_or(shape.bytes).min(shape.bytes);
        }
        Ok(())
    }
}

/// Returns why a run has failed in this stage.
#[cold]
pub(super) fn failure(
    stage: &Stage,
    because: FailedBecause,
    returned: u32,
    most: u32,
) -> EdgeFailure {
    EdgeFailure {
        because: because.to_wire(),
        function: stage.function.1.into(),
        member: stage.member.0.into(),
        unused: 0.into(),
        returned: returned.into(),
        most: most.into(),
    }
}

pub(super) fn not_written(output: usize, why: NotWritten) -> HopEnd {
    match why {
        NotWritten::Stopped => HopEnd::Stopped,
        NotWritten::Disconnected => HopEnd::ReceiverGone(output),
        NotWritten::Failed(status) => HopEnd::NotTaken { output, status },
        NotWritten::NotTaken => HopEnd::NotTaken { output, status: Status::Success },
        NotWritten::Device(error) => HopEnd::Device(error),
    }
}

/// Returns an edge that goes out.
pub(super) fn linked(outs: &[OutLink], at: EdgeAt) -> &Linked {
    outs[at.link].edges().at(at.edge)
}

/// Where the items of each edge are sorted, of those that go to several workers.
pub(super) fn sorted_of(
    stages: &[Stage],
    (outs, of_outs): (&[OutLink], &[EdgeAt]),
    domain: &Domain,
) -> rdmalib::Result<Vec<Option<Region>>> {
    let mut sorted: Vec<Option<Region>> = of_outs.iter().map(|_| None).collect();
    let outputs = stages.iter().flat_map(|stage| &stage.outputs);
    let several = outputs.filter(|output| {
        matches!(output.kind, OutputKind::Each | OutputKind::Keyed) && output.to.len() > 1
    });
    for edge in several.flat_map(|output| &output.to) {
        let shape = linked(outs, of_outs[*edge]).shape;
        let bytes = usize::try_from(shape.all_bytes()).unwrap_or(usize::MAX);
        sorted[*edge] = Some(domain.allocate(bytes, Access::empty())?);
    }
    Ok(sorted)
}
