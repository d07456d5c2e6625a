//! A link as its receiver has it: the slots that payloads arrive in.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, QueuePair, QueuePairConfig, Region, Status,
    WorkCompletion,
};
use rfaas_protocol::edge::{EdgeFailure, EdgeImmediate, EdgeSlots, EdgeStatus, InPlaceLength};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role, Secret};
use zerocopy::{FromBytes, IntoBytes};

use super::ends::{LinkEnd, SENDS_NOTHING, receives_of};
use super::link::{Link, Linked};

/// A payload that has arrived, checked against the shape of its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Number of its edge, at this end.
    pub edge: usize,
    /// Where it is.
    pub slot: u16,
    /// Low byte of the number of its run.
    pub run: u8,
    /// What it is.
    pub status: EdgeStatus,
    /// Its size.
    pub bytes: u32,
}

/// The receiving end.
#[derive(Debug)]
pub struct InLink {
    end: InEnd, // first: fields drop in order, and its receives are for the memory below
    slots: Region,
}

/// It without its memory.
#[derive(Debug)]
pub(super) struct InEnd {
    queue_pair: QueuePair,
    edges: Link,
    id: u64,
}

impl InLink {
    /// Makes number `link` of those that come in, of these edges, in a protection domain of its own, unconnected. What
    /// arrives completes into `arrivals`. An error says what the device could not provide.
    pub fn new(
        device: &Device,
        link: usize,
        edges: Link,
        arrivals: &CompletionQueue,
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let failed = |what| move |error| (what, error);
        let domain = device.domain().map_err(failed("protection domain"))?;
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let bytes = usize::try_from(edges.all_bytes()).unwrap_or(usize::MAX); // more than any machine has
        let slots = domain.allocate(bytes, access).map_err(failed("slots of edges"))?;
        let config = QueuePairConfig {
            send_depth: SENDS_NOTHING,
            receive_depth: receives_of(&edges),
            ..QueuePairConfig::default()
        };
        let mut queue_pair = QueuePair::new(&domain, arrivals, arrivals, &config)
            .map_err(failed("queue pair of a link"))?;
        let id = LinkEnd::In(link).id();
        for _ in 0..config.receive_depth {
            queue_pair.post_receive(id, None).map_err(failed("receives of a link"))?;
        }
        Ok(InLink { end: InEnd { queue_pair, edges, id }, slots })
    }

    /// Connects to the client as worker number `worker` of `session`, offering it the slots of the only edge. `dial`
    /// connects with what is to be said first.
    pub fn connect<E>(
        &mut self,
        session: Secret,
        worker: u16,
        dial: impl FnOnce(&mut QueuePair, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = self.slots.remote();
        let shape = self.end.edges.at(0).shape;
        let hello = WorkerHello {
            session,
            worker: worker.into(),
            slots: shape.slots.into(),
            slot_stride: u32::try_from(shape.stride()).unwrap_or(u32::MAX).into(),
            input_addr: place.addr.into(),
            input_key: place.key.into(),
        };
        dial(&mut self.end.queue_pair, &Hello::with(Role::Worker, &hello))
    }

    /// Accepts the sender that dials, which has shown the link's secret.
    pub fn accept(&mut self, request: ConnectRequest) -> rdmalib::Result<()> {
        let place = self.slots.remote();
        let slots = EdgeSlots { addr: place.addr.into(), key: place.key.into() };
        request.accept(&mut self.end.queue_pair, slots.as_bytes())
    }

    /// Returns what has arrived with `done`, or what is wrong with it. `None`: the sender is gone.
    #[inline]
    pub fn read(&self, done: &WorkCompletion) -> Result<Option<Arrival>, &'static str> {
        self.end.read(&self.slots, done)
    }

    /// Posts the receive of an arrival again.
    #[inline]
    pub fn repost(&mut self) -> rdmalib::Result<()> {
        self.end.repost()
    }

    /// Copies bytes of a slot of an edge of the link out, from `offset` on, which are in it. Fails if they
    /// are beyond all slots.
    pub fn copy(&self, edge: u16, slot: u16, offset: usize, out: &mut [u8]) -> rdmalib::Result<()> {
        self.slots.read(self.end.start(edge, slot).saturating_add(offset), out)
    }

    /// Writes to the start of a slot of an edge, which nothing is awaited in. Fails if that has no room.
    pub fn write(&self, edge: u16, slot: u16, bytes: &[u8]) -> rdmalib::Result<()> {
        self.slots.write(self.end.start(edge, slot), bytes)
    }

    /// Returns why a run has failed: of an arrival over `edge` that says so. Its bytes are any.
    pub fn failure(&self, edge: u16, slot: u16) -> rdmalib::Result<EdgeFailure> {
        self.end.failure(&self.slots, edge, slot)
    }

    /// Returns its edges.
    pub fn edges(&self) -> &Link {
        &self.end.edges
    }

    /// Returns it in two, of which the first is to be dropped last.
    pub(super) fn split(self) -> (Region, InEnd) {
        (self.slots, self.end)
    }
}

impl InEnd {
    /// Returns what has arrived in `slots` with `done`, or what is wrong with it. `None`: the sender is gone.
    #[inline]
    pub(super) fn read(
        &self,
        slots: &Region,
        done: &WorkCompletion,
    ) -> Result<Option<Arrival>, &'static str> {
        if done.status != Status::Success {
            return Ok(None);
        }
        let Some(immediate) = done.immediate else { return Err("it sent a message") };
        let EdgeImmediate { edge, slot, status, run } = EdgeImmediate::from_wire(immediate)
            .map_err(|_| "it used a status that does not exist")?;
        let linked = self.edges.get(edge).ok_or("it named an edge that it was not given")?;
        if slot >= linked.shape.slots {
            return Err("it named a slot that it was not given");
        }
        let (bytes, most) = match status {
            EdgeStatus::Value => (done.bytes, linked.shape.bytes),
            EdgeStatus::Failed => (done.bytes, size_of::<EdgeFailure>() as u32),
            EdgeStatus::InPlace => (self.length_in_place(slots, linked, slot)?, linked.shape.bytes),
        };
        if bytes > most {
            return Err("it wrote more than a slot holds");
        }
        Ok(Some(Arrival { edge: linked.number, slot, run, status, bytes }))
    }
    /// Reads the length of a payload in place, once.
    fn length_in_place(
        &self,
        slots: &Region,
        linked: &Linked,
        slot: u16,
    ) -> Result<u32, &'static str> {
        if !linked.shape.is_in_place() {
            return Err("it has mapped what it may not");
        }
        let at = self.edges.length_at(linked, slot);
        let mut bytes = [0; size_of::<InPlaceLength>()];
        let read = slots.read(usize::try_from(at).unwrap_or(usize::MAX), &mut bytes);
        read.map_err(|_| "its slots have no room for a length")?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Posts the receive of an arrival again.
    #[inline]
    pub(super) fn repost(&mut self) -> rdmalib::Result<()> {
        self.queue_pair.post_receive(self.id, None)
    }

    /// Returns why a run has failed, as it is in `slots`.
    pub(super) fn failure(
        &self,
        slots: &Region,
        edge: u16,
        slot: u16,
    ) -> rdmalib::Result<EdgeFailure> {
        let mut bytes = [0; size_of::<EdgeFailure>()];
        slots.read(self.start(edge, slot), &mut bytes)?;
        Ok(EdgeFailure::read_from_bytes(&bytes).expect("the array has its size"))
    }

    /// Returns its edges.
    pub(super) fn edges(&self) -> &Link {
        &self.edges
    }

    /// Returns where a slot of an edge starts. One that is not given is nowhere.
    #[inline]
    fn start(&self, edge: u16, slot: u16) -> usize {
        self.edges.get(edge).map_or(usize::MAX, |linked| linked.slot(slot) as usize)
    }
}
