//! The two halves of a queue pair, as their posters have them: requests in the device's words.
//!
//! Elsewhere: what other threads share of a queue pair (`core`), completions (`completion`).

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::bindings::types::*;
use super::completion::CompletionQueue;
use super::connect::{ConnectRequest, connect_to};
use super::core::{Core, DeviceQueuePair};
use super::memory::{MemoryRegion, Registered};
use super::objects::{ProtectionDomain, Sizes};
use super::places::Kind;
use super::{Domain, NeverMapped, Verbs};
use crate::contract::{self, Device as _, Memory};
use crate::types::work::{MessageLimits, Operation, Slice, Source, WorkRequest};
use crate::types::{
    Access, Error, Flags, PrivateData, QueuePairConfig, RemoteAddress, Result, State,
};

/// Longest message or write, in bytes (InfiniBand specification 1.4, 9.3.3.1: 2^31).
const MAX_BYTES: usize = 1 << 31;
/// Requests handed to the device with one doorbell.
const LIST: usize = 16;

/// Makes the two halves of a queue pair.
pub(super) fn queue_pair(
    domain: &Domain,
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let device = &domain.device;
    let most = device.limits();
    let depths = [config.send_depth, config.receive_depth];
    if depths.iter().any(|depth| !(1..=most.max_queue_depth).contains(depth)) {
        return Err(Error::InvalidArgument("queue depths are from 1 to the device's limit"));
    }
    if config.max_inline_data > most.max_inline_data {
        return Err(Error::InvalidArgument("max_inline_data is larger than the device's limit"));
    }
    let sizes = Sizes {
        send_depth: config.send_depth,
        receive_depth: config.receive_depth,
        max_inline_data: config.max_inline_data,
    };
    let (send, receive) = (send.shared(), receive.shared());
    let queue_pair = Arc::new(DeviceQueuePair::new(&domain.raw, send, receive, sizes)?);
    let core = Core::new(queue_pair.clone(), send, receive, config, device)?;
    let receive = ReceiveQueue { core: core.clone(), queue_pair: queue_pair.clone(), posted: 0 };
    let limits = MessageLimits { inline: config.max_inline_data as usize, bytes: MAX_BYTES };
    let device = device.clone();
    Ok((SendQueue { core, queue_pair, device, limits, posted: 0 }, receive))
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendQueue {
    core: Arc<Core>,
    queue_pair: Arc<DeviceQueuePair>,
    device: super::Device,
    limits: MessageLimits,
    posted: u32,
}

/// A request in the device's words. Its element is attached when it is posted.
#[derive(Clone, Copy, Default)]
struct DeviceRequest {
    request: ibv_send_wr,
    element: ibv_sge,
}

impl DeviceRequest {
    /// Fills in `request`, without its `wr_id`. Of inline data only the address is taken.
    #[inline]
    fn fill<B: AsRef<[u8]>>(&mut self, request: &WorkRequest<Registered, B>) -> Result<()> {
        self.request.send_flags = flags(request.flags);
        match &request.operation {
            Operation::Send { source, immediate } => {
                self.source(source);
                self.opcode(*immediate, IBV_WR_SEND, IBV_WR_SEND_WITH_IMM);
            }
            Operation::Write { source, to, immediate } => {
                self.source(source);
                self.opcode(*immediate, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM);
                self.one_sided(*to)?;
            }
            Operation::Read { into, from } => {
                self.region(into);
                self.request.opcode = IBV_WR_RDMA_READ;
                self.one_sided(*from)?;
            }
            Operation::FetchAdd { into, at, add } => {
                self.region(into);
                self.request.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
                self.atomic(*at, *add, 0)?;
            }
            Operation::CompareSwap { into, at, expect, swap } => {
                self.region(into);
                self.request.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
                self.atomic(*at, *expect, *swap)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn source<B: AsRef<[u8]>>(&mut self, source: &Source<Registered, B>) {
        match source {
            Source::Region(slice) => self.region(slice),
            Source::Inline(bytes) => match bytes.as_ref() {
                [] => {} // no element at all: any queue pair can send nothing
                bytes => {
                    self.request.send_flags |= IBV_SEND_INLINE;
                    self.request.num_sge = 1;
                    self.element.addr = bytes.as_ptr().addr() as u64;
                    self.element.length = bytes.len() as u32; // at most max_inline_data
                }
            },
        }
    }

    #[inline]
    fn region(&mut self, slice: &Slice<Registered>) {
        self.element = element(slice);
        self.request.num_sge = (slice.bytes > 0).into();
    }

    #[inline]
    fn opcode(&mut self, immediate: Option<u32>, without: ibv_wr_opcode, with: ibv_wr_opcode) {
        self.request.opcode = without;
        if let Some(immediate) = immediate {
            self.request.__bindgen_anon_1.imm_data = immediate.to_be();
            self.request.opcode = with;
        }
    }

    #[inline]
    fn one_sided(&mut self, at: RemoteAddress) -> Result<()> {
        self.request.wr.rdma =
            ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: at.addr, rkey: rkey(at)? };
        Ok(())
    }

    fn atomic(&mut self, at: RemoteAddress, compare_add: u64, swap: u64) -> Result<()> {
        self.request.wr.atomic = ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
            remote_addr: at.addr,
            compare_add,
            swap,
            rkey: rkey(at)?,
        };
        Ok(())
    }

    /// Attaches the element, and `next` behind the request.
    fn link(&mut self, next: *mut ibv_send_wr) -> *mut ibv_send_wr {
        self.request.sg_list = &raw mut self.element;
        self.request.next = next;
        &raw mut self.request
    }
}

/// Returns the key as devices have them. No device has handed out one that is wider.
#[inline]
fn rkey(at: RemoteAddress) -> Result<u32> {
    u32::try_from(at.key).map_err(|_| Error::RemoteAccess)
}

impl SendQueue {
    /// Checks `request`, the `ahead`th after those posted, and fills it into `place`, which is
    /// empty.
    #[inline]
    fn prepare<'a, M: Memory<'a, Verbs>>(
        &self,
        request: &WorkRequest<M, &'a [u8]>,
        ahead: u32,
        place: &mut DeviceRequest,
    ) -> Result<WorkRequest<Registered, &'a [u8]>> {
        let request = request.check(self.limits, |region| {
            Ok(region_in(&self.queue_pair.domain, region)?.registered())
        })?;
        place.fill(&request)?;
        let index = self.posted.wrapping_add(ahead);
        place.request.wr_id = self.core.note(Kind::Send, index, request.id)?;
        Ok(request)
    }

    /// The peer is not ready yet, or there is none.
    #[cold]
    fn keep(&mut self, wr_id: u64, request: &WorkRequest<Registered, &[u8]>) -> Result<()> {
        if self.core.state() == State::Init {
            return Err(Error::InvalidArgument("queue pair is not connected"));
        }
        let request = request.map(|memory| *memory, |bytes| (*bytes).into());
        match self.core.keep(KeptSend { wr_id, request }) {
            None => Ok(()),
            Some(send) => send.post(&self.queue_pair), // ready by now
        }
    }

    /// Posts with one doorbell; returns how many were posted.
    fn post_prepared(&self, list: &mut [DeviceRequest]) -> (usize, Result<()>) {
        let first = list.iter_mut().rev().fold(ptr::null_mut(), |next, one| one.link(next));
        if first.is_null() {
            return (0, Ok(()));
        }
        // SAFETY: the chain that was just linked; `prepare` has checked the memory of each, which
        // the requests borrow.
        match unsafe { self.queue_pair.post_send(first) } {
            Ok(()) => (list.len(), Ok(())),
            Err((bad, error)) => {
                let is_bad = |one: &DeviceRequest| ptr::eq(&raw const one.request, bad);
                (list.iter().position(is_bad).unwrap_or(0), Err(refused(error)))
            }
        }
    }
}

impl contract::SendQueue<Verbs> for SendQueue {
    fn number(&self) -> u32 {
        self.core.number()
    }

    fn state(&self) -> State {
        self.core.state()
    }

    fn peer(&self) -> Option<String> {
        None
    }

    /// The connection manager does not know users: `listener` has no effect.
    fn connect(
        &mut self,
        to: SocketAddr,
        _listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
        connect_to(&self.core, &self.device, to, private_data, timeout)
    }

    fn accept(&mut self, request: ConnectRequest, private_data: &PrivateData) -> Result<()> {
        request.accept(&self.core, &self.device, private_data)
    }

    fn disconnect(&mut self) {
        self.core.disconnect();
    }

    #[inline]
    fn post<'a, M: Memory<'a, Verbs>>(&mut self, request: &WorkRequest<M, &'a [u8]>) -> Result<()> {
        let mut prepared = DeviceRequest::default();
        let request = self.prepare(request, 0, &mut prepared)?;
        if self.core.is_ready() {
            // SAFETY: a chain of one; `prepare` has checked its memory, which the request borrows.
            unsafe { self.queue_pair.post_send(prepared.link(ptr::null_mut())) }
                .map_err(|(_, error)| refused(error))?;
        } else {
            self.keep(prepared.request.wr_id, &request)?;
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    fn post_list<'a, M: Memory<'a, Verbs>>(
        &mut self,
        requests: &[WorkRequest<M, &'a [u8]>],
    ) -> (usize, Result<()>) {
        let mut posted = 0;
        if !self.core.is_ready() {
            for request in requests {
                if let Err(error) = self.post(request) {
                    return (posted, Err(error));
                }
                posted += 1;
            }
            return (posted, Ok(()));
        }
        for requests in requests.chunks(LIST) {
            let mut list = [DeviceRequest::default(); LIST];
            let mut prepared = 0;
            let mut result = Ok(());
            for (place, request) in list.iter_mut().zip(requests) {
                result = self.prepare(request, prepared, place).map(drop);
                if result.is_err() {
                    break;
                }
                prepared += 1;
            }
            let (done, posting) = self.post_prepared(&mut list[..prepared as usize]);
            posted += done;
            self.posted = self.posted.wrapping_add(done as u32);
            // What the device refused comes before what was not prepared.
            if let Err(error) = posting.and(result) {
                return (posted, Err(error));
            }
        }
        (posted, Ok(()))
    }

    #[cfg(feature = "faults")]
    fn check_room(&self, ahead: u32) -> Result<()> {
        self.core.check_send_room(self.posted.wrapping_add(ahead))
    }

    fn map_remote(
        &mut self,
        _at: RemoteAddress,
        _bytes: usize,
        _access: Access,
    ) -> Result<Option<NeverMapped>> {
        Ok(None)
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.core.disconnect(); // the connection ends with its sending half
        self.core.half_dropped();
    }
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    core: Arc<Core>,
    queue_pair: Arc<DeviceQueuePair>,
    posted: u32,
}

impl contract::ReceiveQueue<Verbs> for ReceiveQueue {
    #[inline]
    fn post<'a, M: Memory<'a, Verbs>>(&mut self, id: u64, buffer: Option<Slice<M>>) -> Result<()> {
        let received = |slice: Slice<M>| {
            if slice.bytes > MAX_BYTES {
                return Err(Error::InvalidArgument("one receive takes at most 2 GiB"));
            }
            let region = region_in(&self.queue_pair.domain, slice.region)?;
            if !region.access().contains(Access::LOCAL_WRITE) {
                return Err(Error::InvalidArgument("a receive buffer needs LOCAL_WRITE"));
            }
            Ok(element(&slice.map(|_| region.registered())))
        };
        let element = buffer.map(received).transpose()?;
        let wr_id = self.core.note(Kind::Receive, self.posted, id)?;
        self.queue_pair.post_receive(wr_id, element).map_err(refused)?;
        self.posted = self.posted.wrapping_add(1);
        self.core.posted();
        Ok(())
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.core.half_dropped();
    }
}

/// A send that waits for the peer to be ready.
#[derive(Debug)]
pub(super) struct KeptSend {
    wr_id: u64,
    request: WorkRequest<Registered, Box<[u8]>>,
}

impl KeptSend {
    pub(super) fn post(self, queue_pair: &DeviceQueuePair) -> Result<()> {
        let mut prepared = DeviceRequest::default();
        prepared.fill(&self.request)?;
        prepared.request.wr_id = self.wr_id;
        // SAFETY: a chain of one; its memory was checked when it was posted, and inline data is
        // the copy that lives here.
        unsafe { queue_pair.post_send(prepared.link(ptr::null_mut())) }
            .map_err(|(_, error)| refused(error))
    }
}

/// What `ibv_post_send(3)` or `ibv_post_recv(3)` refused.
#[cold]
fn refused(error: io::Error) -> Error {
    Error::os("posting a work request", error)
}

/// Returns `region`, if it is in `domain`.
#[inline]
fn region_in<'a, M: Memory<'a, Verbs>>(
    domain: &ProtectionDomain,
    region: M,
) -> Result<&'a MemoryRegion> {
    let Some(region) = region.of_provider() else {
        return Err(Error::InvalidArgument("memory region is of another device"));
    };
    if !region.is_in(domain) {
        return Err(Error::InvalidArgument("memory region is of another protection domain"));
    }
    Ok(region)
}

/// Returns the scatter/gather element of `slice`, which has at most [`MAX_BYTES`].
#[inline]
fn element(slice: &Slice<Registered>) -> ibv_sge {
    ibv_sge {
        addr: slice.region.first + slice.offset as u64,
        length: slice.bytes as u32,
        lkey: slice.region.local_key,
    }
}

#[inline]
fn flags(flags: Flags) -> ibv_send_flags {
    let flag = |ours, devices| if flags.contains(ours) { devices } else { 0 };
    flag(Flags::SIGNALED, IBV_SEND_SIGNALED)
        | flag(Flags::SOLICITED, IBV_SEND_SOLICITED)
        | flag(Flags::FENCE, IBV_SEND_FENCE)
}
