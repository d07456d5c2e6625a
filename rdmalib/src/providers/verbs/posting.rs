//! The two halves of a queue pair, as their posters have them.
//!
//! Elsewhere: requests in the device's words (`request`), what other threads share of a queue pair
//! (`core`), completions (`completion`).

#![allow(unsafe_code)]

use std::net::SocketAddr;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::completion::CompletionQueue;
use super::connect::{ConnectRequest, connect_to};
use super::core::{Core, DeviceQueuePair};
use super::memory::{MemoryRegion, NeverMapped, Registered};
use super::objects::{ProtectionDomain, Sizes};
use super::open::OpenDevice;
use super::places::Kind;
use super::request::{DeviceRequest, KeptSend, MAX_BYTES, element, refused};
use crate::contract::{self, Memory};
use crate::types::work::{MessageLimits, Slice, WorkRequest};
use crate::types::{Access, Error, PrivateData, QueuePairConfig, RemoteAddress, Result, State};

/// Requests handed to the device with one doorbell.
const LIST: usize = 16;

/// Makes the two halves of a queue pair, in `domain` of `device`.
pub(super) fn queue_pair(
    device: &Arc<OpenDevice>,
    domain: &Arc<ProtectionDomain>,
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let most = device.limits;
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
    let queue_pair = Arc::new(DeviceQueuePair::new(domain, send, receive, sizes)?);
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
    device: Arc<OpenDevice>,
    limits: MessageLimits,
    posted: u32,
}

impl SendQueue {
    /// Checks `request`, the `ahead`th after those posted, and fills it into `place`, which is
    /// empty.
    #[inline]
    fn prepare<'a, M: Memory<'a, MemoryRegion>>(
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

impl contract::SendQueue for SendQueue {
    type Region = MemoryRegion;
    type RemoteMemory = NeverMapped;
    type ConnectRequest = ConnectRequest;

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
    fn post<'a, M: Memory<'a, MemoryRegion>>(
        &mut self,
        request: &WorkRequest<M, &'a [u8]>,
    ) -> Result<()> {
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

    fn post_list<'a, M: Memory<'a, MemoryRegion>>(
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

impl contract::ReceiveQueue for ReceiveQueue {
    type Region = MemoryRegion;

    #[inline]
    fn post<'a, M: Memory<'a, MemoryRegion>>(
        &mut self,
        id: u64,
        buffer: Option<Slice<M>>,
    ) -> Result<()> {
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

/// Returns `region`, if it is in `domain`.
#[inline]
fn region_in<'a, M: Memory<'a, MemoryRegion>>(
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
