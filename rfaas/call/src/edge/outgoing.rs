//! An edge as its sender has it.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Domain, PrivateData, QueuePair, Region,
    RemoteAddress, RemoteMapping, Slice, Source,
};
use rfaas_protocol::edge::{
    EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus, InPlaceLength, TraceRecord,
};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Malformed, Role, Secret, parse_prefix};

use zerocopy::IntoBytes;

use super::ends::EdgeEnd;
use crate::writer::{NotWritten, Writer};

/// Distance between two lines, in bytes.
const LINE: usize = 64;

/// The sending end.
#[derive(Debug)]
pub struct OutEdge {
    writer: Writer,
    /// Where slot 0 is. Until it is connected, nowhere.
    slots: RemoteAddress,
    shape: EdgeShape,
    /// A line for each slot, of which what is not a payload is sent.
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
    fn immediate(self, status: EdgeStatus) -> u32 {
        EdgeImmediate { slot: self.slot, run: self.run, status }.to_wire()
    }
}

/// The slots of a receiver, mapped.
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

impl OutEdge {
    /// Makes number `edge` of those that go out, unconnected, which sends memory of `domain`. Its end completes into
    /// `arrivals`. An error says what the device could not provide.
    pub fn new(
        device: &Device,
        domain: &Domain,
        shape: EdgeShape,
        edge: usize,
        arrivals: &CompletionQueue,
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let receives = (arrivals, EdgeEnd::Out(edge).id(), 1);
        let writer = Writer::new(device, domain, shape.slots, receives)?;
        Ok(OutEdge { writer, slots: RemoteAddress::default(), shape, lines: None })
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

    /// Accepts the worker that dials with `hello`: its slots are those of this edge.
    pub fn accept(&mut self, request: ConnectRequest, hello: &WorkerHello) -> rdmalib::Result<()> {
        request.accept(self.writer.queue_pair(), &[])?;
        self.slots = RemoteAddress { addr: hello.input_addr.get(), key: hello.input_key.get() };
        Ok(())
    }

    /// Returns what the slots are.
    pub fn shape(&self) -> EdgeShape {
        self.shape
    }

    /// Writes `bytes` bytes of `memory`, from `at` on, which fit.
    #[inline]
    pub(crate) fn send(
        &mut self,
        to: SlotUse,
        memory: (&Region, usize, u32),
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let immediate = to.immediate(EdgeStatus::Value);
        self.writer.write(memory, self.place(to.slot), Some(immediate), is_stopped)
    }

    /// Has lines of `domain` to send lengths and traces from.
    pub(super) fn with_lines(&mut self, domain: &Domain) -> rdmalib::Result<()> {
        let bytes = usize::from(self.shape.slots) * LINE;
        self.lines = Some(domain.allocate(bytes, Access::empty())?);
        Ok(())
    }

    /// Maps the slots of the receiver, to be written in place; lengths are sent from `domain`. `None`: that is not
    /// worth it here, or not possible.
    pub(super) fn map(&mut self, domain: &Domain) -> rdmalib::Result<Option<MappedSlots>> {
        if !self.shape.is_in_place() {
            return Ok(None);
        }
        let bytes = usize::try_from(self.shape.all_bytes()).unwrap_or(usize::MAX);
        let access = Access::REMOTE_WRITE;
        let Some(slots) = self.writer.queue_pair().map_remote(self.slots, bytes, access)? else {
            return Ok(None);
        };
        self.with_lines(domain)?;
        Ok(Some(MappedSlots { slots, shape: self.shape }))
    }

    /// Says that a payload of so many bytes is in the slot, which is mapped.
    #[inline]
    pub(super) fn send_in_place(
        &mut self,
        to: SlotUse,
        bytes: u32,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let length = InPlaceLength { bytes: bytes.into() };
        let place = self.place(to.slot).offset(self.shape.length_at());
        let immediate = Some(to.immediate(EdgeStatus::InPlace));
        self.write_line((to.slot, length.as_bytes()), place, immediate, is_stopped)
    }

    /// Writes what was done in a run to its slot. The receiver is not told.
    pub(super) fn send_trace(
        &mut self,
        slot: u16,
        record: &TraceRecord,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        self.write_line((slot, record.as_bytes()), self.place(slot), None, is_stopped)
    }

    #[inline]
    fn write_line(
        &mut self,
        (slot, bytes): (u16, &[u8]),
        place: RemoteAddress,
        immediate: Option<u32>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let Some(lines) = &self.lines else { return Ok(()) }; // made with what uses them
        let at = usize::from(slot) * LINE;
        lines.write(at, bytes)?;
        self.writer.write((lines, at, bytes.len() as u32), place, immediate, is_stopped)
    }

    /// Writes `payload`, which fits. Fails if the connection is over, or the receiver does not take it for a second.
    pub fn send_slice(&mut self, to: SlotUse, payload: Slice<'_>) -> rdmalib::Result<()> {
        self.write(to, payload, EdgeStatus::Value, || false).map_err(|why| match why {
            NotWritten::Device(error) => error,
            _ => rdmalib::Error::Disconnected,
        })
    }

    /// Writes that the worker is done with the run.
    pub(super) fn send_done(&mut self, to: SlotUse) -> Result<(), NotWritten> {
        let (place, immediate) = (self.place(to.slot), to.immediate(EdgeStatus::Value));
        self.writer.write_source(Source::Inline(&[]), place, immediate, || false)
    }

    /// Writes why the run has failed.
    pub(crate) fn send_failure(
        &mut self,
        to: SlotUse,
        failure: Slice<'_>,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        self.write(to, failure, EdgeStatus::Failed, is_stopped)
    }

    #[inline]
    fn write(
        &mut self,
        to: SlotUse,
        payload: Slice<'_>,
        status: EdgeStatus,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), NotWritten> {
        let source = Source::Region(payload);
        self.writer.write_source(source, self.place(to.slot), to.immediate(status), is_stopped)
    }

    #[inline]
    fn place(&self, slot: u16) -> RemoteAddress {
        debug_assert!(slot < self.shape.slots);
        self.slots.offset(self.shape.start(slot))
    }
}
