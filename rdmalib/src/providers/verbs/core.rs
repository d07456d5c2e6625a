//! What the threads that deal with one queue pair share: its life, its connection, and which
//! requests are outstanding.
//!
//! ```text
//!   INIT ──accept──▶ ACCEPTED ──the peer is ready──▶ CONNECTED ──┐
//!     └─────────────connect───────────────────────────▲         ├──▶ ERROR
//!                                                               │ failed request, disconnect, event
//! ```
//! * The state only goes forward; the step to `ERROR` is made once, by the first to notice. Between
//!   ACCEPTED and CONNECTED sends are kept, since the peer's device would not take them yet
//!   and ours would try again only after its timeout; the step and the posting of what was kept
//!   happen under the lock, so their order stays.
//! * Some drivers (SoftRoCE) flush only what was posted before the queue pair failed. A poster reads
//!   the state after posting, and if it is ERROR makes the step again (`kick`). There is a SeqCst
//!   fence between posting and reading, and the step is SeqCst.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bindings::types::*;
use super::cm::{CmId, Event};
use super::engine::{EngineHandle, Watched};
use super::members::{Member, Reservation, SharedQueue};
use super::objects::{ProtectionDomain, RawQueuePair, Sizes};
use super::open::OpenDevice;
use super::places::{Kind, Places, Tag};
use super::request::KeptSend;
use super::status;
use crate::process::next_number;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::types::{Error, QueuePairConfig, Result, RnrRetry, State, Status};

const INIT: u32 = 0;
const ACCEPTED: u32 = 1;
const CONNECTED: u32 = 2;
const ERROR: u32 = 3;

/// Time for an acknowledgement before a request is sent again: code 14 is 4.096 µs · 2^14 = 67 ms
/// (InfiniBand specification 1.4, 9.9.2.1.1), which perftest and most applications use.
const ACK_TIMEOUT: u8 = 14;
/// How often it is sent again. One less than the most there is, which SoftRoCE takes as "for ever".
/// With the timeout, a silent peer is given up after 0.5 to 2 seconds.
pub(super) const RETRY_COUNT: u8 = 6;
/// `rnr_retry_count` for "for ever"; rdma_connect(3).
const RNR_FOREVER: u8 = 7;

/// The device's queue pair, and the places that its completions need.
#[derive(Debug)]
pub(super) struct DeviceQueuePair {
    raw: RawQueuePair, // first: a destroyed queue pair completes nothing any more
    _places: [Reservation<Core>; 2],
}

impl DeviceQueuePair {
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        send: &Arc<SharedQueue<Core>>,
        receive: &Arc<SharedQueue<Core>>,
        sizes: Sizes,
    ) -> Result<Self> {
        let places = [
            Reservation::new(send, sizes.send_depth)?,
            Reservation::new(receive, sizes.receive_depth)?,
        ];
        let raw = RawQueuePair::new(domain, send.raw(), receive.raw(), sizes)?;
        Ok(DeviceQueuePair { raw, _places: places })
    }
}

impl std::ops::Deref for DeviceQueuePair {
    type Target = RawQueuePair;

    fn deref(&self) -> &RawQueuePair {
        &self.raw
    }
}

/// The parts that are used under the lock, and end with the queue pair.
#[derive(Debug)]
struct Control {
    /// Declared, and so dropped, before the queue pair: the connection manager lets go of it first.
    id: Option<CmId>,
    queue_pair: Option<Arc<DeviceQueuePair>>,
    kept: Vec<KeptSend>,
    /// Whether the peer was told that the connection is over.
    told: bool,
}

/// A queue pair, seen by all.
pub(super) struct Core {
    number: u32,
    device_number: u32,
    state: AtomicU32,
    send: Places,
    receive: Places,
    send_completions: Arc<SharedQueue<Core>>,
    receive_completions: Arc<SharedQueue<Core>>,
    control: Mutex<Control>,
    rnr_retry: u8,
    rnr_timer: u8,
    port: u8,
    halves: AtomicU32,
    engine: Arc<EngineHandle>,
}

/// Short: completion queues and queue pairs refer to each other.
impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core({}, {:?})", self.number, self.state())
    }
}

impl Core {
    pub(super) fn new(
        queue_pair: Arc<DeviceQueuePair>,
        send: &Arc<SharedQueue<Core>>,
        receive: &Arc<SharedQueue<Core>>,
        config: &QueuePairConfig,
        device: &OpenDevice,
    ) -> Result<Arc<Self>> {
        let core = Arc::new(Core {
            number: next_number(),
            device_number: queue_pair.number(),
            state: AtomicU32::new(INIT),
            send: Places::new(config.send_depth),
            receive: Places::new(config.receive_depth),
            send_completions: send.clone(),
            receive_completions: receive.clone(),
            control: Mutex::new(Control {
                id: None,
                queue_pair: Some(queue_pair.clone()),
                kept: Vec::new(),
                told: false,
            }),
            rnr_retry: match config.rnr_retry {
                RnrRetry::Times(times) => times,
                RnrRetry::Forever => RNR_FOREVER,
            },
            rnr_timer: status::rnr_timer_code(config.rnr_timer),
            port: device.port,
            halves: AtomicU32::new(2),
            engine: device.engine.clone(),
        });
        core.initialise(&queue_pair)?;
        receive.attach(&core);
        if !Arc::ptr_eq(send, receive) {
            send.attach(&core);
        }
        let watched: Weak<Self> = Arc::downgrade(&core);
        core.engine.watch_events(core.device_number, watched);
        Ok(core)
    }

    /// Into the device's state INIT, in which receives can be posted.
    fn initialise(&self, queue_pair: &RawQueuePair) -> Result<()> {
        let attributes = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            pkey_index: 0,
            port_num: self.port,
            qp_access_flags: ALL_ACCESS,
            ..Default::default()
        };
        let mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
        queue_pair.modify(attributes, mask)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The device's number of the queue pair.
    pub(super) fn device_number(&self) -> u32 {
        self.device_number
    }

    pub(super) fn rnr_retry(&self) -> u8 {
        self.rnr_retry
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            INIT => State::Init,
            ACCEPTED | CONNECTED => State::Connected,
            _ => State::Error,
        }
    }

    /// Whether requests go to the device, or have to be kept for it.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), CONNECTED | ERROR)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state.load(Ordering::Acquire) == ERROR
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self, kind: Kind) -> &Places {
        match kind {
            Kind::Send => &self.send,
            Kind::Receive => &self.receive,
        }
    }

    /// The `wr_id` of the request with this index, noted as `id`, if there is room for it. For the
    /// one who posts to that queue, who then posts it or asks again for the same index.
    #[inline]
    pub(super) fn note(&self, kind: Kind, index: u32, id: u64) -> Result<u64> {
        self.places(kind).note(index, id)?;
        Ok(Tag::to_wr_id(self.number, kind, index))
    }

    /// Whether there is room for the send with this index.
    #[cfg(feature = "faults")]
    pub(super) fn check_send_room(&self, index: u32) -> Result<()> {
        self.send.check(index)
    }

    /// The id under which a completed request was posted; frees its place. For the poller.
    #[inline]
    pub(super) fn retire(&self, tag: Tag) -> u64 {
        self.places(tag.kind).retire(tag)
    }

    /// Keeps a send until the peer is ready; hands it back if it is by now.
    #[cold]
    pub(super) fn keep(&self, send: KeptSend) -> Option<KeptSend> {
        let mut control = self.control();
        if self.is_ready() {
            return Some(send);
        }
        control.kept.push(send);
        None
    }

    /// To be called after posting: lets the device flush what came too late to be flushed.
    #[inline]
    pub(super) fn posted(&self) {
        fence(Ordering::SeqCst); // between posting and reading the state
        if self.state.load(Ordering::Relaxed) == ERROR {
            self.kick();
        }
    }

    #[cold]
    fn kick(&self) {
        if let Some(queue_pair) = &self.control().queue_pair {
            into_error(queue_pair);
        }
    }

    /// Lets the queue pair receive from the peer of `id`, and to the point where it may also send.
    fn ready_to_receive(&self, id: &mut CmId, queue_pair: &RawQueuePair) -> Result<()> {
        let (mut attributes, mask) = id.attributes(IBV_QPS_INIT)?;
        attributes.qp_access_flags = ALL_ACCESS;
        queue_pair.modify(attributes, mask | IBV_QP_ACCESS_FLAGS)?;
        let (mut attributes, mask) = id.attributes(IBV_QPS_RTR)?;
        attributes.min_rnr_timer = self.rnr_timer;
        queue_pair.modify(attributes, mask | IBV_QP_MIN_RNR_TIMER)
    }

    fn ready_to_send(&self, id: &mut CmId, queue_pair: &RawQueuePair) -> Result<()> {
        let (mut attributes, mask) = id.attributes(IBV_QPS_RTS)?;
        attributes.timeout = ACK_TIMEOUT;
        attributes.retry_cnt = RETRY_COUNT;
        attributes.rnr_retry = self.rnr_retry;
        let ours = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY;
        queue_pair.modify(attributes, mask | ours)
    }

    /// The peer has accepted `id`: from `INIT` to `CONNECTED`.
    pub(super) fn connect(self: &Arc<Self>, mut id: CmId) -> Result<()> {
        let made = {
            let mut control = self.control();
            let queue_pair = control.queue_pair.clone().ok_or(Error::Disconnected)?;
            let made = self
                .ready_to_receive(&mut id, &queue_pair)
                .and_then(|()| self.ready_to_send(&mut id, &queue_pair))
                .and_then(|()| id.establish().map_err(|e| Error::os("rdma_establish", e)));
            control.id = Some(id);
            made.and_then(|()| self.advance(INIT, CONNECTED))
        };
        self.watch(made)
    }

    /// Answers the connector of `id` with `answer`: from `INIT` to `ACCEPTED`.
    pub(super) fn accept(
        self: &Arc<Self>,
        mut id: CmId,
        answer: impl FnOnce(&mut CmId) -> Result<()>,
    ) -> Result<()> {
        let made = {
            let mut control = self.control();
            let queue_pair = control.queue_pair.clone().ok_or(Error::Disconnected)?;
            let made = self
                .ready_to_receive(&mut id, &queue_pair)
                .and_then(|()| self.advance(INIT, ACCEPTED))
                .and_then(|()| answer(&mut id));
            control.id = Some(id);
            made
        };
        self.watch(made)
    }

    /// Makes a step forward.
    fn advance(&self, from: u32, to: u32) -> Result<()> {
        match self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Disconnected),
        }
    }

    /// Watches a connection that was made; gives up a queue pair that could not be connected, whose
    /// device is no more in the state INIT.
    fn watch(self: &Arc<Self>, made: Result<()>) -> Result<()> {
        let watched = made.and_then(|()| {
            let channel = self.control().id.as_ref().map(|id| id.channel().clone());
            channel.map_or(Ok(()), |channel| {
                self.engine.watch_connection(self.device_number, &channel)
            })
        });
        if watched.is_err() {
            self.disconnect();
        }
        watched
    }

    /// The peer is ready, too: from `ACCEPTED` to `CONNECTED`, and what was kept is posted.
    fn established(&self) {
        let mut control = self.control();
        let Control { id: Some(id), queue_pair: Some(queue_pair), kept, told } = &mut *control
        else {
            return;
        };
        if *told {
            // It was told before it was connected, when the connection manager had nobody to tell.
            if let Err(error) = id.disconnect() {
                tracing::debug!(%error, "rdma_disconnect");
            }
            return;
        }
        let made = self
            .ready_to_send(id, queue_pair)
            .and_then(|()| kept.drain(..).try_for_each(|send| send.post(queue_pair)))
            .and_then(|()| self.advance(ACCEPTED, CONNECTED));
        drop(control);
        if let Err(error) = made {
            // Also if the peer's first request was refused by the device: then it has failed
            // already.
            tracing::debug!(%error, "a connection ended before it was established");
            self.fail();
        }
    }

    /// Into the error state: everything outstanding is flushed. Made once. The connection manager
    /// does not tell the peer: where its request was what failed here, the device has refused it,
    /// and must have its say before the connection manager's word overtakes it.
    pub(super) fn fail(&self) {
        if self.state.swap(ERROR, Ordering::SeqCst) == ERROR {
            return;
        }
        let mut control = self.control();
        let Control { queue_pair, kept, .. } = &mut *control;
        if let Some(queue_pair) = queue_pair {
            into_error(queue_pair);
            for send in kept.drain(..) {
                if let Err(error) = send.post(queue_pair) {
                    tracing::debug!(%error, "a send that was kept is lost"); // no such device known
                }
            }
        }
        drop(control);
        self.send_completions.wake();
        self.receive_completions.wake();
    }

    /// As `fail`, and tells the peer.
    pub(super) fn disconnect(&self) {
        self.fail();
        let mut control = self.control();
        if std::mem::replace(&mut control.told, true) {
            return;
        }
        if let Some(id) = &mut control.id
            && let Err(error) = id.disconnect()
        {
            tracing::debug!(%error, "rdma_disconnect"); // never connected, or the peer was faster
        }
    }

    /// A request of `kind` has failed with `status`.
    #[cold]
    pub(super) fn request_failed(&self, kind: Kind, status: Status) {
        // What was flushed is a consequence; a receive fails by a request of the peer's.
        if kind == Kind::Send && status != Status::Flushed {
            self.disconnect();
        } else {
            self.fail();
        }
    }

    fn connection_event(&self, event: &Event) {
        match event.kind {
            RDMA_CM_EVENT_ESTABLISHED => self.established(),
            // Only says that the numbers of the connection may be used again, or that addresses
            // moved.
            RDMA_CM_EVENT_TIMEWAIT_EXIT | RDMA_CM_EVENT_ADDR_CHANGE => {}
            RDMA_CM_EVENT_DEVICE_REMOVAL => {
                tracing::warn!("the device of a connection was removed; it ends");
                self.disconnect();
            }
            // Disconnected; or, of one that was not established yet, any way to fail.
            _ => self.disconnect(),
        }
    }

    /// To be called when a half is dropped; with the second one the queue pair is gone.
    pub(super) fn half_dropped(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.disconnect();
        self.engine.unwatch(self.device_number);
        self.send_completions.detach(self);
        self.receive_completions.detach(self);
        let mut control = self.control();
        let (id, queue_pair) = (control.id.take(), control.queue_pair.take());
        drop(control);
        drop(id); // first, as in `Control`
        drop(queue_pair);
    }
}

impl Member for Core {
    fn number(&self) -> u32 {
        self.number
    }
}

impl Watched for Core {
    fn take_connection_events(&self) {
        let Some(channel) = self.control().id.as_ref().map(|id| id.channel().clone()) else {
            return;
        };
        loop {
            match channel.next() {
                Ok(Some(event)) => self.connection_event(&event),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection's events cannot be read; it ends");
                    self.engine.unwatch_connection(&channel);
                    return self.disconnect();
                }
            }
        }
    }

    fn device_event(&self, kind: ibv_event_type) {
        match kind {
            IBV_EVENT_COMM_EST => {
                // The peer's first message overtook the connection manager's.
                if let Some(id) = &mut self.control().id
                    && let Err(error) = id.notify(kind)
                {
                    tracing::debug!(%error, "rdma_notify"); // established by now
                }
            }
            IBV_EVENT_QP_FATAL => self.disconnect(),
            IBV_EVENT_QP_REQ_ERR | IBV_EVENT_QP_ACCESS_ERR => self.fail(),
            _ => {}
        }
    }

    fn device_failed(&self) {
        self.disconnect();
    }
}

/// All rights at the queue pair: those of the memory regions decide.
const ALL_ACCESS: ibv_access_flags = IBV_ACCESS_LOCAL_WRITE
    | IBV_ACCESS_REMOTE_WRITE
    | IBV_ACCESS_REMOTE_READ
    | IBV_ACCESS_REMOTE_ATOMIC;

fn into_error(queue_pair: &RawQueuePair) {
    let attributes = ibv_qp_attr { qp_state: IBV_QPS_ERR, ..Default::default() };
    if let Err(error) = queue_pair.modify(attributes, IBV_QP_STATE) {
        tracing::warn!(%error, "a queue pair cannot be put into the error state"); // device gone
    }
}
