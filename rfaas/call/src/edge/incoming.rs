//! An edge as its receiver has it: the slots that payloads arrive in.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, QueuePair, QueuePairConfig, Region, Status,
    WorkCompletion,
};
use rfaas_protocol::edge::{EdgeFailure, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role, Secret};
use zerocopy::{FromBytes, IntoBytes};

use super::ends::{EdgeEnd, SENDS_NOTHING, SPARE_RECEIVES};

/// A payload that has arrived, checked against the shape of its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
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
pub struct InEdge {
    queue_pair: QueuePair, // first: fields drop in order, and its receives are for the memory below
    slots: Region,
    shape: EdgeShape,
    id: u64,
}

impl InEdge {
    /// Makes number `edge` of those that come in, in a protection domain of its own, unconnected. What arrives
    /// completes into `arrivals`. An error says what the device could not provide.
    pub fn new(
        device: &Device,
        shape: EdgeShape,
        edge: usize,
        arrivals: &CompletionQueue,
    ) -> Result<Self, (&'static str, rdmalib::Error)> {
        let failed = |what| move |error| (what, error);
        let domain = device.domain().map_err(failed("protection domain"))?;
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let bytes = usize::try_from(shape.all_bytes()).unwrap_or(usize::MAX); // more than any machine has
        let slots = domain.allocate(bytes, access).map_err(failed("slots of an edge"))?;
        let config = QueuePairConfig {
            send_depth: SENDS_NOTHING,
            receive_depth: u32::from(shape.slots) + SPARE_RECEIVES,
            ..QueuePairConfig::default()
        };
        let mut queue_pair = QueuePair::new(&domain, arrivals, arrivals, &config)
            .map_err(failed("queue pair of an edge"))?;
        let id = EdgeEnd::In(edge).id();
        for _ in 0..config.receive_depth {
            queue_pair.post_receive(id, None).map_err(failed("receives of an edge"))?;
        }
        Ok(InEdge { queue_pair, slots, shape, id })
    }

    /// Connects to the client as worker number `worker` of `session`, offering it these slots. `dial` connects with
    /// what is to be said first.
    pub fn connect<E>(
        &mut self,
        session: Secret,
        worker: u16,
        dial: impl FnOnce(&mut QueuePair, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = self.slots.remote();
        let hello = WorkerHello {
            session,
            worker: worker.into(),
            slots: self.shape.slots.into(),
            slot_stride: u32::try_from(self.shape.stride()).unwrap_or(u32::MAX).into(),
            input_addr: place.addr.into(),
            input_key: place.key.into(),
        };
        dial(&mut self.queue_pair, &Hello::with(Role::Worker, &hello))
    }

    /// Accepts the sender that dials, which has shown the edge's secret.
    pub fn accept(&mut self, request: ConnectRequest) -> rdmalib::Result<()> {
        let place = self.slots.remote();
        let slots = EdgeSlots { addr: place.addr.into(), key: place.key.into() };
        request.accept(&mut self.queue_pair, slots.as_bytes())
    }

    /// Returns what has arrived with `done`, or what is wrong with it. `None`: the sender is gone.
    #[inline]
    pub fn read(&self, done: &WorkCompletion) -> Result<Option<Arrival>, &'static str> {
        if done.status != Status::Success {
            return Ok(None);
        }
        let Some(immediate) = done.immediate else { return Err("it sent a message") };
        let EdgeImmediate { slot, status, run } = EdgeImmediate::from_wire(immediate)
            .map_err(|_| "it used a status that does not exist")?;
        if slot >= self.shape.slots {
            return Err("it named a slot that it was not given");
        }
        let most = match status {
            EdgeStatus::Value => self.shape.bytes,
            EdgeStatus::Failed => size_of::<EdgeFailure>() as u32,
            EdgeStatus::InPlace => return Err("it has mapped what it cannot"),
        };
        if done.bytes > most {
            return Err("it wrote more than a slot holds");
        }
        Ok(Some(Arrival { slot, run, status, bytes: done.bytes }))
    }

    /// Posts the receive of an arrival again.
    #[inline]
    pub fn repost(&mut self) -> rdmalib::Result<()> {
        self.queue_pair.post_receive(self.id, None)
    }

    /// Returns where `slot` starts, which is one of the shape's, in which region.
    #[inline]
    pub(super) fn at(&self, slot: u16) -> (&Region, usize) {
        assert!(slot < self.shape.slots, "checked when it arrived");
        (&self.slots, self.shape.start(slot) as usize)
    }

    /// Copies bytes of a slot out, from `offset` on. Fails if they are not all in the slots.
    pub fn copy(&self, slot: u16, offset: usize, out: &mut [u8]) -> rdmalib::Result<()> {
        self.slots.read((self.shape.start(slot) as usize).saturating_add(offset), out)
    }

    /// Returns why a run has failed: of an arrival that says so. Its bytes are any.
    pub fn failure(&self, slot: u16) -> rdmalib::Result<EdgeFailure> {
        let mut bytes = [0; size_of::<EdgeFailure>()];
        self.copy(slot, 0, &mut bytes)?;
        Ok(EdgeFailure::read_from_bytes(&bytes).expect("the array has its size"))
    }
}
