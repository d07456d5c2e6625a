//! A worker of a graph: takes what comes over its edges, has its functions called, and hands on what they return.
//!
//! ```text
//!   completion ──▶ Wires::note: checked, joined ──enough is there──▶ ready ──▶ Service::call_in ──▶ Wires::send
//!        │ none                                                      ▲ └─ failed: passed on, nothing is called
//!        └▶ Service::idle              what goes to a stage of its own ┘
//! ```
//! One thread, one call after the other. Per run there is no lock, log line or system call, but those of a function's
//! own; and no allocation, but that of the list of items that are taken by key, which grows to the longest there was.

use std::ops::Deref;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rdmalib::{Access, CompletionQueue, Domain, Region, WorkCompletion};
use rfaas_protocol::edge::{EdgeFailure, FailedBecause, InputKind, OutputKind, Takes, TraceRecord};

use super::end::HopEnd;
use super::incoming::{InEnd, InLink};
use super::items::{self, HEADER, Item, Items};
use super::link::{EdgeAt, Link};
use super::live::{Live, Over};
use super::notes::Notes;
use super::outgoing::{OutLink, SlotUse};
use super::stage::{InputFrom, Stage};
use super::wires::{Made, Memory, Ready, Wires, failure, linked, not_written, sorted_of};
use crate::callee::{Service, Slot, SlotMemory};
use crate::place::Place;
use crate::turn::Verdict;

/// Completions taken from the queue at a time.
pub(super) const COMPLETIONS: usize = 16;

/// A stage, and where it writes: as many areas as it [has](Stage::areas), each with a slot for each run.
#[derive(Debug)]
pub struct StageMemory<M> {
    /// What is to be done.
    pub stage: Stage,
    /// Where its function writes.
    pub areas: Vec<M>,
}

/// A worker, connected.
#[derive(Debug)]
pub struct Hop<M> {
    pub(super) wires: Wires, // first: fields drop in order, and its requests name the memory below
    pub(super) memory: Memory<M>,
    pub(super) stages: Vec<Stage>,
    /// Items of all inputs of a run that are taken by key.
    keyed: Vec<Keyed>,
    timed: bool,
    traced: bool,
}

/// An item of some input.
#[derive(Clone, Copy, Debug)]
struct Keyed {
    input: usize,
    item: Item,
}

impl<M: Deref<Target = SlotMemory>> Hop<M> {
    /// Makes one of connected links, which complete into `arrivals`: at least one that comes in. Stages name edges by
    /// their numbers on these. What it needs itself is of `domain`, in which the areas of the stages are.
    ///
    /// # Errors
    /// The device has no memory for that.
    pub fn new(
        (ins, mut outs): (Vec<InLink>, Vec<OutLink>),
        stages: Vec<StageMemory<M>>,
        arrivals: CompletionQueue,
        domain: &Domain,
    ) -> rdmalib::Result<Self> {
        // The ends last: what fails below drops them first, and then their memory.
        let (regions, ends): (Vec<Region>, Vec<_>) = ins.into_iter().map(InLink::split).unzip();
        let of_ins = Link::places(ends.iter().map(InEnd::edges));
        let of_outs = Link::places(outs.iter().map(OutLink::edges));
        let (stages, areas): (Vec<Stage>, Vec<Vec<M>>) =
            stages.into_iter().map(|StageMemory { stage, areas }| (stage, areas)).unzip();
        let slots = areas.iter().flatten().map(|area| area.layout().slots()).min().unwrap_or(0);
        let mut mapped = Vec::with_capacity(stages.len());
        let mut traced = false;
        for (number, stage) in stages.iter().enumerate() {
            // Where a function may write more than the edge holds, it is to meet a guard page.
            let fits = |out: &EdgeAt| area_bytes(&areas[number]) <= linked(&outs, *out).shape.bytes;
            let only = stage.only_edge().map(|edge| of_outs[edge]);
            let slots = match only.filter(fits) {
                Some(at) => outs[at.link].map(at.edge, domain)?,
                None => None,
            };
            mapped.push(slots);
            for output in stage.outputs.iter().filter(|output| output.kind == OutputKind::Trace) {
                traced = true;
                output
                    .to
                    .iter()
                    .try_for_each(|edge| outs[of_outs[*edge].link].with_lines(domain))?;
            }
        }
        let gathers = stages.iter().filter(|stage| stage.takes == Takes::Keyed);
        let most = gathers.map(|stage| {
            let items = stage.inputs.iter().filter(|input| input.kind == InputKind::Items);
            let bytes = items.map(|input| match input.from {
                InputFrom::Edge(edge) => {
                    let EdgeAt { link, edge } = of_ins[edge];
                    ends[link].edges().at(edge).shape.bytes as usize
                }
                InputFrom::Here(from) => area_bytes(&areas[from]) as usize,
            });
            // The last item of one is filled up in front of the first one of the next.
            let bytes = bytes.map(|bytes| bytes.next_multiple_of(HEADER as usize));
            bytes.sum::<usize>()
        });
        let gathered = match most.max() {
            Some(bytes) => Some(domain.allocate(bytes.max(1), Access::empty())?),
            None => None,
        };
        let sorted = sorted_of(&stages, (&outs, &of_outs), domain)?;
        let mut wires = Wires::new((ends, of_ins), (outs, of_outs), arrivals, &stages, slots);
        wires.notes = traced.then(Notes::new);
        Ok(Hop {
            wires,
            memory: Memory { ins: regions, areas, mapped, sorted, gathered },
            timed: stages.iter().any(|stage| stage.join.within.is_some()),
            stages,
            keyed: Vec::new(),
            traced,
        })
    }

    /// Takes runs until an edge ends or the service is stopped.
    pub fn serve(&mut self, service: &mut impl Service) -> HopEnd {
        let batch = self.stages.first().and_then(|stage| stage.batch);
        let served = match (batch, self.traced) {
            (None, false) => self.serve_as::<false>(service),
            (None, true) => self.serve_as::<true>(service),
            (Some(plan), false) => self.serve_batches::<false>(plan, service),
            (Some(plan), true) => self.serve_batches::<true>(plan, service),
        };
        served.err().unwrap_or(HopEnd::Stopped)
    }

    fn serve_as<const TRACED: bool>(&mut self, service: &mut impl Service) -> Result<(), HopEnd> {
        let mut batch = [WorkCompletion::default(); COMPLETIONS];
        while !service.is_stopped() {
            let until = if self.timed { self.look_at_the_clock::<TRACED>(service)? } else { None };
            let taken = self.wires.arrivals.poll(&mut batch);
            match &batch[..taken] {
                [] => service.idle(&mut self.wires.arrivals, until)?,
                arrived => {
                    arrived.iter().try_for_each(|done| self.take::<TRACED>(done, service))?;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn take<const TRACED: bool>(
        &mut self,
        done: &WorkCompletion,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        if service.is_stopped() {
            return Err(HopEnd::Stopped);
        }
        service.arrived();
        let link = self.wires.note(&self.stages, &self.memory, done)?;
        self.run_what_is_ready::<TRACED>(service)?;
        // Now: the next worker does not wait for it.
        if let Some(link) = link {
            self.wires.ins[link].repost()?;
        }
        service.answered();
        Ok(())
    }

    #[cold]
    fn look_at_the_clock<const TRACED: bool>(
        &mut self,
        service: &mut impl Service,
    ) -> Result<Option<Instant>, HopEnd> {
        let next = self.wires.look_at_the_clock(Instant::now());
        if !self.wires.ready.is_empty() {
            service.arrived();
            self.run_what_is_ready::<TRACED>(service)?;
            service.answered();
        }
        Ok(next)
    }

    #[inline]
    fn run_what_is_ready<const TRACED: bool>(
        &mut self,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        while let Some(ready) = self.wires.ready.pop_front() {
            self.run::<TRACED>(ready, service)?;
            if service.is_stopped() {
                return Err(HopEnd::Stopped);
            }
        }
        Ok(())
    }

    /// Has the function called for a run of which enough is there, and hands on what it returns.
    #[inline]
    fn run<const TRACED: bool>(
        &mut self,
        ready: Ready,
        service: &mut impl Service,
    ) -> Result<(), HopEnd> {
        let Ready { stage, to, input, failed } = ready;
        let layout = self.memory.areas[stage][0].layout();
        let Some(slot) = layout.slot(to.slot.into()) else {
            return Err(HopEnd::Breach { input, what: "it named a slot that has no output" });
        };
        let begun = if TRACED { Some(self.begin()) } else { None };
        let over = match failed {
            Some(failure) => Over { ended: Err(failure), sent: 0, calls: 0 },
            None if !self.wires.joins[stage].is_wanted(to.slot, to.run) => return Ok(()),
            None => self.call(ready, slot, service)?,
        };
        let Over { ended, sent, calls } = over;
        let is_any = failed.is_none() && self.wires.joins[stage].is_any();
        let made = match ended {
            Ok(made) => Ok(made),
            Err(failure)
                if is_any
                    && FailedBecause::from_wire(failure.because) == Ok(FailedBecause::NoValue) =>
            {
                match self.wires.joins[stage].tried_in_vain(to.slot) {
                    Some(failure) => Err(failure),
                    None => return Ok(()),
                }
            }
            Err(failure) => Err(failure),
        };
        let failed = self.hand_on(stage, (to, slot), made, sent, || service.is_stopped())?;
        if let Some(begun) = &begun {
            let did = (made.map_or(0, |made| made.bytes), failed.is_some(), calls);
            self.trace(begun, stage, (to.slot, to.run), did, 1, service)?;
        }
        self.wires.settle(&self.stages, stage, to);
        Ok(())
    }

    /// Sends what a stage has made of a run, or why there is nothing, over all edges but those that it has `sent` over.
    /// Returns why the run has failed, if so. Each caller has a type of `is_stopped`, and with it a copy of all that is
    /// behind, which is compiled into it.
    #[inline(always)]
    pub(super) fn hand_on(
        &mut self,
        stage: usize,
        (to, slot): (SlotUse, Slot),
        made: Result<Made, EdgeFailure>,
        sent: u64,
        is_stopped: impl Fn() -> bool + Copy,
    ) -> Result<Option<EdgeFailure>, HopEnd> {
        let edges = self.stages[stage].edges();
        let mut failed = made.err();
        for output in (0..edges).filter(|output| sent & 1 << output == 0) {
            if self.stages[stage].outputs[output].kind == OutputKind::Call {
                continue;
            }
            if let (Ok(made), None) = (made, failed) {
                let of = (stage, output);
                failed = self.wires.send(&self.stages, &self.memory, of, to, made, is_stopped)?;
            }
            if let Some(failure) = &failed {
                let of = (stage, output);
                self.wires.send_failure(
                    &self.stages,
                    &self.memory,
                    of,
                    (to, slot),
                    failure,
                    is_stopped,
                )?;
            }
        }
        Ok(failed)
    }

    /// Has the function called, as often as it is to be.
    #[inline]
    fn call(
        &mut self,
        ready: Ready,
        slot: Slot,
        service: &mut impl Service,
    ) -> Result<Over, HopEnd> {
        match self.stages[ready.stage].takes {
            Takes::Whole => self.call_whole(ready, slot, service),
            Takes::Each => self.call_each(ready, slot, service),
            Takes::Keyed => self.call_keyed(ready, slot, service),
        }
    }

    #[inline]
    fn call_whole(
        &mut self,
        ready: Ready,
        slot: Slot,
        service: &mut impl Service,
    ) -> Result<Over, HopEnd> {
        let Ready { stage, to, input, .. } = ready;
        let described = &self.stages[stage];
        let joins = &self.wires.joins[stage];
        let mut first = if joins.is_any() { input } else { joins.first(to.slot).unwrap_or(0) };
        let bytes = joins.bytes(to.slot, first).unwrap_or(0);
        let areas = &self.memory.areas[stage];
        let mut area = 0;
        let from = self.memory.input(&self.wires, described, (stage, first), to.slot);
        let mut place = Place::new(from, bytes, areas[area].output(slot));
        let mapped = self.memory.mapped[stage].as_ref();
        if let Some(mapped) = mapped {
            place = place.with_output(mapped.at(to.slot));
        }
        let is_stopped = service.stop();
        let mut calls = 0u16;
        let mut sent = 0;
        loop {
            let mut live = Live::new(
                (&mut self.wires, &self.memory, &self.stages, &is_stopped),
                (stage, to, slot),
                (first, place, area),
                sent,
            );
            let (function, _) = described.function;
            let returned = service.call_in(function, place, &mut live);
            let (verdict, broken) = (live.verdict, live.broken.take());
            sent = live.sent;
            let returned = returned.ok_or(HopEnd::NoFunction(function))?;
            if let Some(end) = broken {
                return Err(end);
            }
            calls = calls.saturating_add(1);
            let in_place = mapped.is_some();
            let ended = match verdict {
                None => fits(described, sent, Made { area, slot, bytes: returned, in_place }),
                Some(Verdict::Again(bytes)) => {
                    if service.is_stopped() {
                        return Err(HopEnd::Stopped);
                    }
                    // What it has made is the input now, and the other area takes what it makes of that.
                    let from = areas[area].output(slot);
                    area = if area == 0 { areas.len() - 1 } else { 0 };
                    place = Place::new(from, bytes, areas[area].output(slot));
                    first = 0;
                    continue;
                }
                Some(Verdict::Failed(code)) => Err(said_failed(described, code)),
                Some(Verdict::NoValue) => Err(failure(described, FailedBecause::NoValue, 0, 0)),
            };
            return Ok(Over { ended, sent, calls });
        }
    }

    /// Has the function called once for each item of its inputs that are items.
    fn call_each(
        &mut self,
        ready: Ready,
        slot: Slot,
        service: &mut impl Service,
    ) -> Result<Over, HopEnd> {
        let stage = ready.stage;
        let mut list = List::default();
        for number in 0..self.stages[stage].inputs.len() {
            let Some(bytes) = self.bytes_of_items(ready, number) else { continue };
            let mut next = 0;
            loop {
                let from = self.input(ready, number);
                let Some(item) = Items::from(from, bytes, next).next() else { break };
                let Ok(item) = item else {
                    let ended = Err(not_items(&self.stages[stage], bytes));
                    return Ok(Over { ended, sent: 0, calls: list.calls });
                };
                let input = from.0.as_ptr().wrapping_add(from.1 + item.at as usize);
                if let Some(over) = self.call_item(
                    ready,
                    slot,
                    (number, item.key),
                    (input, item.bytes),
                    &mut list,
                    service,
                )? {
                    return Ok(over);
                }
                next = items::after(item.at, item.bytes).unwrap_or(bytes);
            }
        }
        Ok(list.over(slot))
    }

    /// Has the function called once for each key, with all items of that key, in the order of keys.
    fn call_keyed(
        &mut self,
        ready: Ready,
        slot: Slot,
        service: &mut impl Service,
    ) -> Result<Over, HopEnd> {
        let stage = ready.stage;
        let mut list = List::default();
        let mut keyed = std::mem::take(&mut self.keyed);
        keyed.clear();
        let mut first = 0;
        for number in (0..self.stages[stage].inputs.len()).rev() {
            let Some(bytes) = self.bytes_of_items(ready, number) else { continue };
            first = number;
            for item in Items::of(self.input(ready, number), bytes) {
                let Ok(item) = item else {
                    self.keyed = keyed;
                    let ended = Err(not_items(&self.stages[stage], bytes));
                    return Ok(Over { ended, sent: 0, calls: 0 });
                };
                keyed.push(Keyed { input: number, item });
            }
        }
        keyed.sort_unstable_by_key(|keyed| (keyed.item.key, keyed.input, keyed.item.at));
        let mut over = None;
        for of_key in keyed.chunk_by(|a, b| a.item.key == b.item.key) {
            let (Some(gathered), Some(one)) = (&self.memory.gathered, of_key.first()) else {
                break;
            };
            let mut end = 0;
            for Keyed { input, item } in of_key {
                let from = self.input(ready, *input);
                let at = end + HEADER;
                // There is room for all items of all inputs, and a size is that of what was read.
                items::write_header((gathered, 0), Item { at, ..*item })?;
                items::copy(
                    (from.0, from.1 + item.at as usize),
                    (gathered, at as usize),
                    item.bytes,
                )?;
                end = items::after(at, item.bytes).unwrap_or(u32::MAX);
            }
            let bytes = (end as usize).min(gathered.len()) as u32;
            let input = gathered.as_ptr();
            over = self.call_item(
                ready,
                slot,
                (first, one.item.key),
                (input, bytes),
                &mut list,
                service,
            )?;
            if over.is_some() {
                break;
            }
        }
        self.keyed = keyed;
        Ok(over.unwrap_or_else(|| list.over(slot)))
    }

    /// Returns where an input is.
    fn input(&self, ready: Ready, number: usize) -> (&Region, usize) {
        let Ready { stage, to, .. } = ready;
        self.memory.input(&self.wires, &self.stages[stage], (stage, number), to.slot)
    }

    /// Returns how many bytes an input has that is items, if it is there.
    fn bytes_of_items(&self, ready: Ready, number: usize) -> Option<u32> {
        let is_items = self.stages[ready.stage].inputs[number].kind == InputKind::Items;
        let bytes = self.wires.joins[ready.stage].bytes(ready.to.slot, number);
        bytes.filter(|_| is_items)
    }

    /// Has the function called with an item, or the items of a key. What it returns is added to `list`. Returns how the
    /// run has ended, if that has failed.
    fn call_item(
        &mut self,
        ready: Ready,
        slot: Slot,
        (number, key): (usize, u32),
        (input, bytes): (*mut u8, u32),
        list: &mut List,
        service: &mut impl Service,
    ) -> Result<Option<Over>, HopEnd> {
        let Ready { stage, to, .. } = ready;
        let described = &self.stages[stage];
        let area = &self.memory.areas[stage][0];
        let (region, start) = area.output(slot);
        let most = most_left(described, 0).min(area.layout().output_bytes());
        let Some(at) = list.end.checked_add(HEADER).filter(|at| *at <= most) else {
            let needed = list.end.saturating_add(HEADER);
            let ended = Err(failure(described, FailedBecause::OutputTooLarge, needed, most));
            return Ok(Some(Over { ended, sent: 0, calls: list.calls }));
        };
        let place = Place::of((input, bytes), (region, start + at as usize));
        let is_stopped = service.stop();
        let live =
            (&mut self.wires, &self.memory, &self.stages[..], &is_stopped as &dyn Fn() -> bool);
        let mut live = Live::of_item(live, (stage, to, slot), (number, place), most - at);
        let (function, _) = described.function;
        let returned = service.call_in(function, place, &mut live);
        let verdict = live.verdict;
        let returned = returned.ok_or(HopEnd::NoFunction(function))?;
        list.calls = list.calls.saturating_add(1);
        let failed = match verdict {
            Some(Verdict::NoValue) => return Ok(None), // it has none for this item
            Some(Verdict::Failed(code)) => said_failed(described, code),
            _ if returned > most - at => {
                let needed = at.saturating_add(returned);
                failure(described, FailedBecause::OutputTooLarge, needed, most)
            }
            _ => {
                items::write_header((region, start), Item { key, at, bytes: returned })?;
                list.bytes = at + returned;
                list.end = items::after(at, returned).unwrap_or(u32::MAX);
                return Ok(None);
            }
        };
        Ok(Some(Over { ended: Err(failed), sent: 0, calls: list.calls }))
    }

    /// Begins a trace.
    #[cold]
    pub(super) fn begin(&mut self) -> Begun {
        self.wires.notes.iter_mut().for_each(Notes::clear);
        Begun::now()
    }

    /// Tells what was done in a run, with which the function was called as one of so many.
    #[cold]
    pub(super) fn trace(
        &mut self,
        begun: &Begun,
        stage: usize,
        (slot, run): (u16, u8),
        (bytes_out, failed, calls): (u32, bool, u16),
        together: u16,
        service: &impl Service,
    ) -> Result<(), HopEnd> {
        let described = &self.stages[stage];
        let inputs = 0..described.inputs.len();
        let notes = self.wires.notes.take().unwrap_or_default();
        let bytes_in = inputs.filter_map(|input| self.wires.joins[stage].bytes(slot, input));
        let record = TraceRecord {
            begin_ns: begun.since_epoch_ns.into(),
            took_ns: u64::try_from(begun.at.elapsed().as_nanos()).unwrap_or(u64::MAX).into(),
            bytes_in: bytes_in.fold(0u32, u32::saturating_add).into(),
            bytes_out: bytes_out.into(),
            together: together.into(),
            notes: (notes.all().len() as u16).into(), // few
            calls: calls.into(),
            run,
            failed: failed.into(),
        };
        for output in described.outputs.iter().filter(|output| output.kind == OutputKind::Trace) {
            for edge in &output.to {
                let (link, on_link) = self.wires.out(*edge);
                link.send_trace(on_link, slot, (&record, notes.all()), || service.is_stopped())
                    .map_err(|why| not_written(*edge, why))?;
            }
        }
        self.wires.notes = Some(notes);
        Ok(())
    }
}

/// Returns how much a stage may write.
fn area_bytes<M: Deref<Target = SlotMemory>>(areas: &[M]) -> u32 {
    areas.first().map_or(0, |area| area.layout().output_bytes())
}

/// When something began, by both clocks.
pub(super) struct Begun {
    at: Instant,
    since_epoch_ns: u64,
}

impl Begun {
    fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_epoch_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        Begun { at: Instant::now(), since_epoch_ns }
    }
}

/// What calls with items have returned so far.
#[derive(Default)]
struct List {
    /// Where the next header is.
    end: u32,
    /// Bytes, without what is between the last item and that.
    bytes: u32,
    calls: u16,
}

impl List {
    fn over(self, slot: Slot) -> Over {
        let made = Made { area: 0, slot, bytes: self.bytes, in_place: false };
        Over { ended: Ok(made), sent: 0, calls: self.calls }
    }
}

/// Returns the most that all edges hold that what a function returns is still to go over.
#[inline]
pub(super) fn most_left(stage: &Stage, sent: u64) -> u32 {
    let edges = stage.outputs[..stage.edges()].iter().enumerate();
    let left =
        edges.filter(|(edge, output)| sent & 1 << edge == 0 && output.kind != OutputKind::Call);
    left.map(|(_, output)| output.bytes).min().unwrap_or(u32::MAX)
}

/// Checks that what a function returned fits the edges that it is still to go over.
#[inline]
pub(super) fn fits(stage: &Stage, sent: u64, made: Made) -> Result<Made, EdgeFailure> {
    match most_left(stage, sent) {
        most if made.bytes > most => {
            Err(failure(stage, FailedBecause::OutputTooLarge, made.bytes, most))
        }
        _ => Ok(made),
    }
}

/// A function said that it failed.
#[cold]
pub(super) fn said_failed(stage: &Stage, code: i32) -> EdgeFailure {
    failure(stage, FailedBecause::Function, u32::from_le_bytes(code.to_le_bytes()), 0)
}

/// What came over an edge of items is no list of them.
#[cold]
fn not_items(stage: &Stage, bytes: u32) -> EdgeFailure {
    failure(stage, FailedBecause::NotItems, bytes, 0)
}

impl<M: Deref<Target = SlotMemory>> Memory<M> {
    /// Returns where an input of a stage is.
    #[inline]
    pub(super) fn input(
        &self,
        wires: &Wires,
        described: &Stage,
        (stage, number): (usize, usize),
        slot: u16,
    ) -> (&Region, usize) {
        match described.inputs[number].from {
            InputFrom::Edge(edge) => {
                let EdgeAt { link, edge } = wires.of_ins[edge];
                let linked = wires.ins[link].edges().at(edge);
                assert!(slot < linked.shape.slots, "checked when it arrived");
                (&self.ins[link], linked.slot(slot) as usize)
            }
            InputFrom::Here(from) => {
                let area = &self.areas[from][wires.area_of((stage, number), slot)];
                let slot = area.layout().slot(slot.into()).expect("all stages have the same slots");
                area.output(slot)
            }
        }
    }
}
