//! The objects of librdmacm, each owned once: event channels and connection identifiers.
//!
//! Queue pairs are not made through them (`rdma_create_qp`), because ours exist, with receives
//! posted, before it is known who the peer is: the identifier only says how to modify one
//! ([`CmId::attributes`]), as rdma_connect(3) describes for "user-managed" queue pairs. The library
//! may have a context of its own for the same device; numbers of queue pairs are the device's.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use super::bindings::types::*;
use super::library::{Library, check};
use super::objects::set_nonblocking;
use crate::events::readable_before;
use crate::types::{Error, Result};

/// Connection requests that wait to be accepted: the kernel's own limit
/// (`net.rdma_ucm.max_backlog`), beyond which it refuses.
const BACKLOG: i32 = 1024;

/// Where events of identifiers arrive; `rdma_create_event_channel(3)`.
#[derive(Debug)]
pub(super) struct EventChannel {
    raw: NonNull<rdma_event_channel>,
    library: &'static Library,
}

// SAFETY: librdmacm's functions may be called from any thread; the kernel serialises a channel.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub(super) fn new(library: &'static Library) -> io::Result<Self> {
        // SAFETY: no arguments.
        let raw = unsafe { library.cm.rdma_create_event_channel() };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = EventChannel { raw, library };
        set_nonblocking(channel.as_fd()).map_err(io::Error::other)?;
        Ok(channel)
    }

    /// The next event, if there is one now.
    pub(super) fn next(self: &Arc<Self>) -> Result<Option<Event>> {
        let mut raw = ptr::null_mut();
        // SAFETY: a live channel, and room for a pointer. The descriptor does not block.
        let returned =
            unsafe { self.library.cm.rdma_get_cm_event(self.raw.as_ptr(), &raw mut raw) };
        if returned != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EINTR) => Ok(None),
                _ => Err(Error::os("rdma_get_cm_event", error)),
            };
        }
        // SAFETY: the event just got; it is ours until it is acknowledged.
        let event = unsafe { &*raw };
        let copy = self.copy(event);
        // SAFETY: got once, acknowledged once, not used after.
        unsafe { self.library.cm.rdma_ack_cm_event(raw) };
        Ok(Some(copy))
    }

    fn copy(self: &Arc<Self>, event: &rdma_cm_event) -> Event {
        // SAFETY: all events of identifiers with the port space RDMA_PS_TCP are of this kind; where
        // one has nothing to tell, the library has zeroed it.
        let parameters = unsafe { &event.param.conn };
        let bytes = match parameters.private_data.is_null() {
            true => 0,
            false => usize::from(parameters.private_data_len),
        };
        let mut private_data = vec![0; bytes];
        // SAFETY: as many bytes as the event says it carries; the copy has room for as many.
        unsafe {
            ptr::copy(parameters.private_data.cast(), private_data.as_mut_ptr(), bytes);
        }
        let connector = (event.event == RDMA_CM_EVENT_CONNECT_REQUEST)
            .then(|| NonNull::new(event.id))
            .flatten()
            .map(|raw| CmId { raw, channel: self.clone() });
        Event {
            kind: event.event,
            status: event.status,
            responder_resources: parameters.responder_resources,
            initiator_depth: parameters.initiator_depth,
            private_data,
            connector,
        }
    }

    /// The next event before `deadline`, or `None`.
    pub(super) fn next_before(self: &Arc<Self>, deadline: Instant) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.next()? {
                return Ok(Some(event));
            }
            if !readable_before(&**self, deadline)? {
                return Ok(None);
            }
        }
    }

    /// What an event's kind is called, for logs and errors.
    pub(super) fn text(&self, kind: rdma_cm_event_type) -> String {
        // SAFETY: any number is allowed.
        let text = unsafe { self.library.cm.rdma_event_str(kind) };
        // SAFETY: a string constant of the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: a live channel.
        let fd = unsafe { self.raw.as_ref() }.fd;
        // SAFETY: open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed only here; identifiers on it held it, and every event
        // that was got is acknowledged.
        unsafe { self.library.cm.rdma_destroy_event_channel(self.raw.as_ptr()) };
    }
}

/// A copy of a connection manager's event.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) kind: rdma_cm_event_type,
    /// A negative errno, or the peer's reason for a rejection; `rdma_get_cm_event(3)`.
    pub(super) status: i32,
    /// Reads and atomics of the peer that this side may have to answer at once.
    pub(super) responder_resources: u8,
    /// Reads and atomics of this side that the peer can answer at once.
    pub(super) initiator_depth: u8,
    pub(super) private_data: Vec<u8>,
    /// The connector, if this is a connection request.
    pub(super) connector: Option<CmId>,
}

/// What each side of a handshake tells the other; `rdma_connect(3)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameters<'a> {
    pub(super) queue_pair: u32,
    pub(super) private_data: &'a [u8],
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry_count: u8,
}

/// A connection identifier; `rdma_create_id(3)`. Dropping it ends its connection, refuses its
/// connector, or stops listening.
#[derive(Debug)]
pub(super) struct CmId {
    raw: NonNull<rdma_cm_id>,
    channel: Arc<EventChannel>, // outlives `raw`, which is destroyed in `drop`
}

// SAFETY: librdmacm's functions may be called from any thread, and `&mut` or a lock keeps two from
// one identifier.
unsafe impl Send for CmId {}

impl CmId {
    pub(super) fn new(channel: &Arc<EventChannel>) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: a live channel, and room for a pointer.
        let returned = unsafe {
            channel.library.cm.rdma_create_id(
                channel.raw.as_ptr(),
                &raw mut raw,
                ptr::null_mut(),
                RDMA_PS_TCP,
            )
        };
        check(returned).map_err(|e| Error::os("rdma_create_id", e))?;
        let raw = NonNull::new(raw).ok_or(Error::InvalidArgument("no connection identifier"))?;
        Ok(CmId { raw, channel: channel.clone() })
    }

    fn library(&self) -> &'static Library {
        self.channel.library
    }

    pub(super) fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Takes the address, and the device that has it.
    pub(super) fn bind(&mut self, address: SocketAddr) -> io::Result<()> {
        let address = SockaddrStorage::from(address);
        // SAFETY: a live identifier; the address is only read.
        check(unsafe {
            self.library().cm.rdma_bind_addr(self.raw.as_ptr(), address.as_ptr().cast_mut().cast())
        })
    }

    pub(super) fn listen(&mut self) -> io::Result<()> {
        // SAFETY: a live identifier.
        check(unsafe { self.library().cm.rdma_listen(self.raw.as_ptr(), BACKLOG) })
    }

    /// Finds the way from one address to the other, part one; then an event comes.
    pub(super) fn resolve_address(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()> {
        let (from, to) = (SockaddrStorage::from(from), SockaddrStorage::from(to));
        // SAFETY: a live identifier; the addresses are only read.
        check(unsafe {
            self.library().cm.rdma_resolve_addr(
                self.raw.as_ptr(),
                from.as_ptr().cast_mut().cast(),
                to.as_ptr().cast_mut().cast(),
                milliseconds(timeout),
            )
        })
    }

    /// Part two; then another event comes.
    pub(super) fn resolve_route(&mut self, timeout: Duration) -> io::Result<()> {
        // SAFETY: a live identifier.
        check(unsafe {
            self.library().cm.rdma_resolve_route(self.raw.as_ptr(), milliseconds(timeout))
        })
    }

    pub(super) fn connect(&mut self, parameters: Parameters<'_>) -> io::Result<()> {
        let mut parameters = parameters.raw();
        // SAFETY: a live identifier, and parameters whose private data outlive the call.
        check(unsafe { self.library().cm.rdma_connect(self.raw.as_ptr(), &raw mut parameters) })
    }

    pub(super) fn accept(&mut self, parameters: Parameters<'_>) -> io::Result<()> {
        let mut parameters = parameters.raw();
        // SAFETY: as in `connect`.
        check(unsafe { self.library().cm.rdma_accept(self.raw.as_ptr(), &raw mut parameters) })
    }

    /// Tells the acceptor that this side is ready.
    pub(super) fn establish(&mut self) -> io::Result<()> {
        // SAFETY: a live identifier.
        check(unsafe { self.library().cm.rdma_establish(self.raw.as_ptr()) })
    }

    /// Tells the connection manager what the device has said of this connection.
    pub(super) fn notify(&mut self, event: ibv_event_type) -> io::Result<()> {
        // SAFETY: a live identifier.
        check(unsafe { self.library().cm.rdma_notify(self.raw.as_ptr(), event) })
    }

    pub(super) fn reject(&mut self, private_data: &[u8]) -> io::Result<()> {
        let bytes = private_data.len() as u8; // at most MAX_REJECT_DATA, checked by the caller
        // SAFETY: a live identifier, and as many bytes as said.
        check(unsafe {
            self.library().cm.rdma_reject(self.raw.as_ptr(), private_data.as_ptr().cast(), bytes)
        })
    }

    pub(super) fn disconnect(&mut self) -> io::Result<()> {
        // SAFETY: a live identifier.
        check(unsafe { self.library().cm.rdma_disconnect(self.raw.as_ptr()) })
    }

    /// Lets the events of this identifier arrive at `channel` from now on.
    pub(super) fn migrate(&mut self, channel: Arc<EventChannel>) -> Result<()> {
        // SAFETY: a live identifier and a live channel; no event of it is unacknowledged.
        let returned =
            unsafe { self.library().cm.rdma_migrate_id(self.raw.as_ptr(), channel.raw.as_ptr()) };
        check(returned).map_err(|e| Error::os("rdma_migrate_id", e))?;
        self.channel = channel;
        Ok(())
    }

    /// How a queue pair gets into `state` for this connection; `rdma_init_qp_attr` of librdmacm.
    pub(super) fn attributes(
        &mut self,
        state: ibv_qp_state,
    ) -> Result<(ibv_qp_attr, ibv_qp_attr_mask)> {
        let mut attributes = ibv_qp_attr { qp_state: state, ..Default::default() };
        let mut mask = 0;
        // SAFETY: a live identifier, and room for what it tells.
        let returned = unsafe {
            self.library().cm.rdma_init_qp_attr(
                self.raw.as_ptr(),
                &raw mut attributes,
                &raw mut mask,
            )
        };
        check(returned).map_err(|e| Error::os("rdma_init_qp_attr", e))?;
        Ok((attributes, mask as ibv_qp_attr_mask))
    }

    /// Name of the device that it is bound to, and which of its ports; `None` if it is bound to
    /// none.
    pub(super) fn device(&self) -> Option<(String, u8)> {
        // SAFETY: a live identifier.
        let id = unsafe { self.raw.as_ref() };
        let context = NonNull::new(id.verbs)?;
        // SAFETY: the library keeps the context of a bound identifier open.
        let device = unsafe { context.as_ref() }.device;
        // SAFETY: and its device.
        let name = unsafe { self.library().verbs.ibv_get_device_name(device) };
        // SAFETY: a C string that lives as long as the device.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        Some((name, id.port_num))
    }

    /// Port that it is bound to.
    pub(super) fn local_port(&self) -> u16 {
        // SAFETY: a live identifier.
        u16::from_be(unsafe { self.library().cm.rdma_get_src_port(self.raw.as_ptr()) })
    }

    /// Address of the peer, if it is known.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: a live identifier.
        let address = unsafe { &self.raw.as_ref().route.addr.__bindgen_anon_2 };
        // SAFETY: the union is as large as its largest member, this one, and was zeroed by the
        // library; the family says which smaller address it is.
        let storage = unsafe { &address.dst_storage };
        // SAFETY: a valid address of the length of a storage.
        let storage = unsafe {
            SockaddrStorage::from_raw(
                ptr::from_ref(storage).cast(),
                Some(size_of::<libc::sockaddr_storage>() as libc::socklen_t),
            )
        }?;
        let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: made by the library, destroyed only here; all its events are acknowledged, so
        // this does not wait for us.
        let returned = unsafe { self.library().cm.rdma_destroy_id(self.raw.as_ptr()) };
        if let Err(error) = check(returned) {
            tracing::error!(%error, "rdma_destroy_id failed; the kernel frees it with the process");
        }
    }
}

impl Parameters<'_> {
    fn raw(&self) -> rdma_conn_param {
        rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: self.private_data.len() as u8, // at most 196, checked by the callers
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 1,
            retry_count: self.retry_count,
            rnr_retry_count: self.rnr_retry_count,
            srq: 0,
            qp_num: self.queue_pair,
        }
    }
}

/// At least one: zero is "now".
fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}
