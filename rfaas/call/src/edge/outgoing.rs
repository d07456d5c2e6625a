//! A link as its sender has it.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, PrivateData, QueuePair, Region,
    RemoteAddress, RemoteMapping, Slice, Source,
};
use rfaas_protocol::edge::{
    EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus, InPlaceLength, TRACE_BYTES,
    TraceNote, TraceRecord,
};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Malformed, Role, Secret, parse_prefix};

use zerocopy::IntoBytes;

use super::ends::LinkEnd;
use super::link::Link;
use crate::writer::{NotWritten, Writer};

/// Distance between two lines, in bytes: each has room for a trace.
const LINE: usize = TRACE_BYTES;
const _: () = assert!(LINE.is_multiple_of(64), "none is on the cache line of another");

/// The sending end.
#[derive(Debug)]
pub struct OutLink {
    writer: Writer,
    /// Where slot 0 of edge 0 is. Until it is connected, nowhere.
    slots: RemoteAddress,
    edges: Link,
    /// A line for each slot of each edge, of which what is not a payload is sent.
    lines: Option<Region>,
}

/// Which slot a payload goes to, of which run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// Number of the slot.
    pub slot: u16,
    /// Low byte of the number of the run.
    pub run: u8,
}

impl SlotUse {
    fn immediate(self, edge: u16, status: EdgeStatus) -> u32 {
        EdgeImmediate { edge, slot: self.slot, run: self.run, status }.to_wire()
    }
}

/// The slots of an edge, mapped.
#[derive(Debug)]
pub(super) struct MappedSlots {
    slots: RemoteMapping,
    shape: EdgeShape,
}

impl MappedSlots {
    /// Returns where a slot starts, for a function.
    #[inline]
    pub(super) fn at(&self, slot: u16) -> *mut u8 {
        assert!(slot < self.shape.slots, "edges of a worker have the same slots");
        self.slots.as_ptr().wrapping_add(self.shape.start(slot) as usize)
    }
}

impl OutLink {
    /// Makes number `link` of those that go out, of these edges, unconnected, which sends memory of `domain`. Its end
    /// completes into `arrivals`. An error says what the device could not provide.
    pub fn new(
        device: &Device,
        domain: &Domain,
        link: usize,
        edges: Link,
        arrivals: &CompletionQueue,
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let receives = (arrivals, LinkEnd::Out(link).id(), 1);
        let writer = Writer::new(device, domain, edges.payloads(), receives)?;
        Ok(OutLink { writer, slots: RemoteAddress::default(), edges, lines: None })
    }

    /// Connects to the receiver, showing `secret`. `dial` connects with what is to be said first, and returns the
    /// answer; `malformed` makes an error of one that is none.
    pub fn connect<E>(
        &mut self,
        secret: Secret,
        dial: impl FnOnce(&mut QueuePair, &[u8]) -> Result<PrivateData, E>,
        malformed: impl FnOnce(Malformed) -> E,
    ) -> Result<(), E> {
        let hello = Hello::with(Role::Edge, &EdgeHello { secret });
        let answer = dial(self.writer.queue_pair(), &hello)?;
        let slots: EdgeSlots = parse_prefix(answer.as_slice()).map_err(malformed)?;
        self.slots = RemoteAddress { addr: slots.addr.get(), key: slots.key.get() };
        self.writer.warm_up();
        Ok(())
    }

    /// Accepts the worker that dials with `hello`: its slots are those of the only edge.
    pub fn accept(&mut self, request: ConnectRequest, hello: &WorkerHello) -> rdmalib::Result<()> {
        request.accept(self.writer.queue_pair(), &[])?;
        self.slots = RemoteAddress { addr: hello.input_addr.get(), key: hello.input_key.get() };
        Ok(())
    }

    /// Returns its edges.
    pub fn edges(&self) -> &Link {
        &self.edges
    }

    /// Writes `bytes` bytes of `memory`, from `at` on, which fit, over one of its edges.
    #[inline]
    pub(crate) fn send(
        &mut self,
        edge: u16,
        to: SlotUse,
        memory: (&Region, usize, u32),
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let immediate = to.immediate(edge, EdgeStatus::Value);
        self.writer.write(memory, self.place(edge, to.slot), Some(immediate), is_stopped)
    }

    /// Has lines of `domain` to send lengths and traces from.
    pub(super) fn with_lines(&mut self, domain: &Domain) -> rdmalib::Result<()> {
        if self.lines.is_none() {
            let bytes = self.edges.payloads() as usize * LINE;
            self.lines = Some(domain.allocate(bytes, Access::empty())?);
        }
        Ok(())
    }

    /// Maps the receiver's slots of an edge, to be written in place; lengths are sent from `domain`. `None`: that is
    /// not worth it here, or not possible.
    pub(super) fn map(
        &mut self,
        edge: u16,
        domain: &Domain,
    ) -> rdmalib::Result<Option<MappedSlots>> {
        let (shape, from) = (self.edges.at(edge).shape, self.place(edge, 0));
        if !shape.is_in_place() {
            return Ok(None);
        }
        let bytes = usize::try_from(shape.all_bytes()).unwrap_or(usize::MAX);
        let access = Access::REMOTE_WRITE;
        let Some(slots) = self.writer.queue_pair().map_remote(from, bytes, access)? else {
            return Ok(None);
        };
        self.with_lines(domain)?;
        Ok(Some(MappedSlots { slots, shape }))
    }

    /// Says that a payload of so many bytes is in the slot, which is mapped.
    #[inline]
    pub(super) fn send_in_place(
        &mut self,
        edge: u16,
        to: SlotUse,
        bytes: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let length = InPlaceLength { bytes: bytes.into() };
        let at = self.edges.length_at(self.edges.at(edge), to.slot);
        let place = self.slots.offset(at);
        let immediate = Some(to.immediate(edge, EdgeStatus::InPlace));
        self.write_line(((edge, to.slot), 0), length.as_bytes(), place, immediate, is_stopped)
    }

    /// Writes what was done in a run to its slot, with what was noted. The receiver is not told.
    pub(super) fn send_trace(
        &mut self,
        edge: u16,
        slot: u16,
        (record, notes): (&TraceRecord, &[TraceNote]),
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        const NOTES_AT: usize = size_of::<TraceRecord>();
        let place = self.place(edge, slot);
        if !notes.is_empty() {
            // First: who reads the record finds them.
            let behind = place.offset(NOTES_AT as u64);
            let from = ((edge, slot), NOTES_AT);
            self.write_line(from, notes.as_bytes(), behind, None, &is_stopped)?;
        }
        self.write_line(((edge, slot), 0), record.as_bytes(), place, None, is_stopped)
    }

    #[inline]
    fn write_line(
        &mut self,
        ((edge, slot), into): ((u16, u16), usize),
        bytes: &[u8],
        place: RemoteAddress,
        immediate: Option<u32>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let Some(lines) = &self.lines else { return Ok(()) }; // made with what uses them
        let line = self.edges.at(edge).slots_before as usize + usize::from(slot);
        let at = line * LINE + into;
        lines.write(at, bytes)?;
        self.writer.write((lines, at, bytes.len() as u32), place, immediate, is_stopped)
    }

    /// Writes `payload`, which fits, over one of its edges. Fails if the connection is over, or the receiver does not
    /// take it for a second.
    pub fn send_slice(
        &mut self,
        edge: u16,
        to: SlotUse,
        payload: Slice<'_>,
    ) -> rdmalib::Result<()> {
        self.write(edge, to, payload, EdgeStatus::Value, || false).map_err(|why| match why {
            NotWritten::Device(error) => error,
            _ => rdmalib::Error::Disconnected,
        })
    }

    /// Writes that the worker is done with the run.
    pub(super) fn send_done(&mut self, edge: u16, to: SlotUse) -> Result<(), NotWritten> {
        let (place, immediate) = (self.place(edge, to.slot), to.immediate(edge, EdgeStatus::Value));
        self.writer.write_source(Source::Inline(&[]), place, immediate, || false)
    }

    /// Writes why the run has failed.
    pub(crate) fn send_failure(
        &mut self,
        edge: u16,
        to: SlotUse,
        failure: Slice<'_>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        self.write(edge, to, failure, EdgeStatus::Failed, is_stopped)
    }

    #[inline]
    fn write(
        &mut self,
        edge: u16,
        to: SlotUse,
        payload: Slice<'_>,
        status: EdgeStatus,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let (place, immediate) = (self.place(edge, to.slot), to.immediate(edge, status));
        self.writer.write_source(Source::Region(payload), place, immediate, is_stopped)
    }

    #[inline]
    fn place(&self, edge: u16, slot: u16) -> RemoteAddress {
        let linked = self.edges.at(edge);
        debug_assert!(slot < linked.shape.slots);
        self.slots.offset(linked.slot(slot))
    }
}
