//! An edge as its sender has it.

use rdmalib::{
    CompletionQueue, ConnectRequest, Device, Domain, PrivateData, QueuePair, Region, RemoteAddress,
    Slice, Source,
};
use rfaas_protocol::edge::{EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Malformed, Role, Secret, parse_prefix};

use super::ends::EdgeEnd;
use crate::writer::{NotWritten, Writer};

/// The sending end.
#[derive(Debug)]
pub struct OutEdge {
    writer: Writer,
    /// Where slot 0 is. Until it is connected, nowhere.
    slots: RemoteAddress,
    shape: EdgeShape,
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
        Ok(OutEdge { writer, slots: RemoteAddress::default(), shape })
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
        self.writer.write(memory, self.place(to.slot), to.immediate(EdgeStatus::Value), is_stopped)
    }

    /// Writes `payload`, which fits. Fails if the connection is over, or the receiver does not take it for a second.
    pub fn send_slice(&mut self, to: SlotUse, payload: Slice<'_>) -> rdmalib::Result<()> {
        self.write(to, payload, EdgeStatus::Value, || false).map_err(|why| match why {
            NotWritten::Device(error) => error,
            _ => rdmalib::Error::Disconnected,
        })
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
