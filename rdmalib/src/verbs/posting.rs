//! The two halves of a queue pair, as their posters have them: requests in the device's words.
//!
//! Elsewhere: what other threads share of a queue pair (`core`), completions (`completion`).

#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::Arc;

use super::Domain;
use super::bindings::types::*;
use super::completion::CompletionQueue;
use super::core::{Core, DeviceQueuePair};
use super::objects::Sizes;
use super::places::Kind;
use crate::error::{Error, Result};
use crate::memory::{RegionInner, RemoteAddress, Slice};
use crate::queue_pair::{
    Flags, Operation, QueuePairConfig, Source, State, WorkRequest, check_atomic,
};

/// Longest message or write, in bytes (InfiniBand specification 1.4, 9.3.3.1: 2^31).
const MAX_BYTES: usize = 1 << 31;
/// Requests handed to the device with one doorbell.
const LIST: usize = 16;

/// Makes the two halves of a queue pair.
pub(crate) fn queue_pair(
    domain: &Domain,
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let device = &domain.device;
    let limits = device.limits();
    let depths = [config.send_depth, config.receive_depth];
    if depths.iter().any(|depth| !(1..=limits.max_queue_depth).contains(depth)) {
        return Err(Error::InvalidArgument("queue depths are from 1 to the device's limit"));
    }
    if config.max_inline_data > limits.max_inline_data {
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
    let max_inline_data = config.max_inline_data as usize;
    let device = device.clone();
    Ok((SendQueue { core, queue_pair, device, max_inline_data, posted: 0 }, receive))
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendQueue {
    core: Arc<Core>,
    queue_pair: Arc<DeviceQueuePair>,
    device: super::Device,
    max_inline_data: usize,
    posted: u32,
}

/// A request in the device's words. Its element is attached when it is posted.
#[derive(Clone, Copy, Default)]
struct Prepared {
    request: ibv_send_wr,
    element: ibv_sge,
}

impl Prepared {
    /// Attaches the element, and `next` behind the request.
    fn link(&mut self, next: *mut ibv_send_wr) -> *mut ibv_send_wr {
        self.request.sg_list = &raw mut self.element;
        self.request.next = next;
        &raw mut self.request
    }
}

impl SendQueue {
    pub(crate) fn number(&self) -> u32 {
        self.core.number()
    }

    pub(crate) fn state(&self) -> State {
        self.core.state()
    }

    pub(crate) fn disconnect(&mut self) {
        self.core.disconnect();
    }

    #[cfg(feature = "faults")]
    pub(crate) fn check_room(&self, ahead: u32) -> Result<()> {
        self.core.check_send_room(self.posted.wrapping_add(ahead))
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(super) fn device(&self) -> &super::Device {
        &self.device
    }

    /// Puts `request`, the `ahead`th after those posted, into the device's words: into `place`, which is empty.
    #[inline]
    fn prepare(&self, request: &WorkRequest<'_>, ahead: u32, place: &mut Prepared) -> Result<()> {
        let Prepared { request: raw, element } = place;
        raw.send_flags = flags(request.flags);
        match request.operation {
            Operation::Send { source, immediate } => {
                self.source(raw, element, source)?;
                raw.opcode = with_immediate(raw, immediate, IBV_WR_SEND, IBV_WR_SEND_WITH_IMM);
            }
            Operation::Write { source, to, immediate } => {
                self.source(raw, element, source)?;
                raw.opcode =
                    with_immediate(raw, immediate, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM);
                one_sided(raw, to)?;
            }
            Operation::Read { into, from } => {
                self.region(raw, element, into)?;
                raw.opcode = IBV_WR_RDMA_READ;
                one_sided(raw, from)?;
            }
            Operation::FetchAdd { into, at, add } => {
                check_atomic(into, at)?;
                self.region(raw, element, into)?;
                raw.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
                atomic(raw, at, add, 0)?;
            }
            Operation::CompareSwap { into, at, expect, swap } => {
                check_atomic(into, at)?;
                self.region(raw, element, into)?;
                raw.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
                atomic(raw, at, expect, swap)?;
            }
        }
        raw.wr_id = self.core.note(Kind::Send, self.posted.wrapping_add(ahead), request.id)?;
        Ok(())
    }

    #[inline]
    fn source(
        &self,
        raw: &mut ibv_send_wr,
        element: &mut ibv_sge,
        source: Source<'_>,
    ) -> Result<()> {
        match source {
            Source::Region(slice) => self.region(raw, element, slice),
            Source::Inline(bytes) if bytes.len() > self.max_inline_data => {
                Err(Error::InlineTooLarge { bytes: bytes.len(), max: self.max_inline_data })
            }
            Source::Inline([]) => Ok(()), // no element at all: any queue pair can send nothing
            Source::Inline(bytes) => {
                raw.send_flags |= IBV_SEND_INLINE;
                raw.num_sge = 1;
                element.addr = bytes.as_ptr().addr() as u64;
                element.length = bytes.len() as u32; // at most max_inline_data
                Ok(())
            }
        }
    }

    #[inline]
    fn region(&self, raw: &mut ibv_send_wr, element: &mut ibv_sge, slice: Slice<'_>) -> Result<()> {
        *element = scatter_gather(slice, &self.queue_pair)?;
        raw.num_sge = (slice.bytes > 0).into();
        Ok(())
    }

    #[inline]
    pub(crate) fn post(&mut self, request: &WorkRequest<'_>) -> Result<()> {
        let mut prepared = Prepared::default();
        self.prepare(request, 0, &mut prepared)?;
        if self.core.is_ready() {
            // SAFETY: a chain of one; `prepare` has checked its memory, which the request borrows.
            unsafe { self.queue_pair.post_send(prepared.link(ptr::null_mut())) }
                .map_err(|(_, error)| refused(error))?;
        } else {
            self.post_early(&prepared, request)?;
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// The peer is not ready yet, or there is none.
    #[cold]
    fn post_early(&mut self, prepared: &Prepared, request: &WorkRequest<'_>) -> Result<()> {
        if self.core.state() == State::Init {
            return Err(Error::InvalidArgument("queue pair is not connected"));
        }
        let inline = match request.operation {
            Operation::Send { source: Source::Inline(bytes), .. }
            | Operation::Write { source: Source::Inline(bytes), .. } => bytes,
            _ => &[],
        };
        match self.core.keep(Early::new(prepared, inline)) {
            None => Ok(()),
            Some(early) => early.post(&self.queue_pair), // ready by now
        }
    }

    pub(crate) fn post_list(&mut self, requests: &[WorkRequest<'_>]) -> (usize, Result<()>) {
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
            let mut list = [Prepared::default(); LIST];
            let mut prepared = 0;
            let mut result = Ok(());
            for (place, request) in list.iter_mut().zip(requests) {
                result = self.prepare(request, prepared, place);
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

    /// Posts with one doorbell; returns how many were posted.
    fn post_prepared(&self, list: &mut [Prepared]) -> (usize, Result<()>) {
        let first = list.iter_mut().rev().fold(ptr::null_mut(), |next, one| one.link(next));
        if first.is_null() {
            return (0, Ok(()));
        }
        // SAFETY: the chain that was just linked; `prepare` has checked the memory of each, which
        // the requests borrow.
        match unsafe { self.queue_pair.post_send(first) } {
            Ok(()) => (list.len(), Ok(())),
            Err((bad, error)) => {
                let is_bad = |one: &Prepared| ptr::eq(&raw const one.request, bad);
                (list.iter().position(is_bad).unwrap_or(0), Err(refused(error)))
            }
        }
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

impl ReceiveQueue {
    #[inline]
    pub(crate) fn post(&mut self, id: u64, buffer: Option<Slice<'_>>) -> Result<()> {
        let element = buffer.map(|slice| scatter_gather(slice, &self.queue_pair)).transpose()?;
        let wr_id = self.core.note(Kind::Receive, self.posted, id)?;
        self.queue_pair.post_receive(wr_id, element).map_err(refused)?;
        self.posted = self.posted.wrapping_add(1);
        self.core.posted(); // KICK
        Ok(())
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.core.half_dropped();
    }
}

/// A send that waits for the peer to be ready, with a copy of its inline data.
pub(super) struct Early {
    request: ibv_send_wr,
    element: ibv_sge,
    inline: Box<[u8]>,
}

// SAFETY: the pointers in `request` are set when it is posted, not before.
unsafe impl Send for Early {}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Early({} bytes)", self.element.length)
    }
}

impl Early {
    fn new(prepared: &Prepared, inline: &[u8]) -> Self {
        Early { request: prepared.request, element: prepared.element, inline: inline.into() }
    }

    pub(super) fn post(self, queue_pair: &DeviceQueuePair) -> Result<()> {
        let mut prepared = Prepared { request: self.request, element: self.element };
        if !self.inline.is_empty() {
            prepared.element.addr = self.inline.as_ptr().addr() as u64;
        }
        // SAFETY: a chain of one; its memory was checked when it was prepared, and inline data is
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

#[inline]
fn scatter_gather(slice: Slice<'_>, queue_pair: &DeviceQueuePair) -> Result<ibv_sge> {
    let RegionInner::Verbs(region) = slice.region.inner() else {
        return Err(Error::InvalidArgument("memory region is of another device"));
    };
    if !region.is_in(&queue_pair.domain) {
        return Err(Error::InvalidArgument("memory region is of another protection domain"));
    }
    if slice.bytes > MAX_BYTES {
        return Err(Error::InvalidArgument("one request moves at most 2 GiB"));
    }
    Ok(ibv_sge {
        addr: (region.as_ptr().addr() + slice.offset) as u64,
        length: slice.bytes as u32,
        lkey: region.local_key(),
    })
}

#[inline]
fn with_immediate(
    raw: &mut ibv_send_wr,
    immediate: Option<u32>,
    without: ibv_wr_opcode,
    with: ibv_wr_opcode,
) -> ibv_wr_opcode {
    let Some(immediate) = immediate else { return without };
    raw.__bindgen_anon_1.imm_data = immediate.to_be();
    with
}

#[inline]
fn one_sided(raw: &mut ibv_send_wr, at: RemoteAddress) -> Result<()> {
    raw.wr.rdma = ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: at.addr, rkey: rkey(at)? };
    Ok(())
}

/// The key as devices have them. No device has handed out one that is wider.
#[inline]
fn rkey(at: RemoteAddress) -> Result<u32> {
    u32::try_from(at.key).map_err(|_| Error::RemoteAccess)
}

fn atomic(raw: &mut ibv_send_wr, at: RemoteAddress, compare_add: u64, swap: u64) -> Result<()> {
    raw.wr.atomic = ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
        remote_addr: at.addr,
        compare_add,
        swap,
        rkey: rkey(at)?,
    };
    Ok(())
}

#[inline]
fn flags(flags: Flags) -> ibv_send_flags {
    let flag = |ours, devices| if flags.contains(ours) { devices } else { 0 };
    flag(Flags::SIGNALED, IBV_SEND_SIGNALED)
        | flag(Flags::SOLICITED, IBV_SEND_SOLICITED)
        | flag(Flags::FENCE, IBV_SEND_FENCE)
}
