//! The objects of libibverbs, each owned once: device context, protection domain, completion queue,
//! queue pair. (Memory regions: `memory`.)
//!
//! An object holds those that it was made from, so each is destroyed before what it refers to, on
//! every path. The library's functions are thread-safe (verbs(7)), which is why these are `Sync`.
//! What a call is given is checked here; what it means is decided by the callers.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::bindings::types::*;
use super::library::{Library, check};
use crate::types::{Error, Result};

/// Makes reads from `fd` return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl", e))?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(|e| Error::os("fcntl", e))?;
    Ok(())
}

fn object<T>(call: &'static str, raw: *mut T) -> Result<NonNull<T>> {
    NonNull::new(raw).ok_or_else(|| Error::os(call, io::Error::last_os_error()))
}

/// A drop must not panic, and has nobody to tell but the operator.
fn destroyed(call: &'static str, returned: i32) {
    if let Err(error) = check(returned) {
        tracing::error!(%error, "{call} failed; the object stays until this process ends");
    }
}

/// An open device.
#[derive(Debug)]
pub(super) struct Context {
    raw: NonNull<ibv_context>,
    pub(super) library: &'static Library,
}

// SAFETY: verbs(7): all functions of the library are thread-safe.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Has the drivers of this machine's devices loaded, which listing the devices does.
pub(super) fn load_drivers(library: &Library) -> io::Result<()> {
    let mut count = 0;
    // SAFETY: `count` is ours.
    let list = unsafe { library.verbs.ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the list is from above and not used any more.
    unsafe { library.verbs.ibv_free_device_list(list) };
    Ok(())
}

impl Context {
    /// Opens the device called `name`; `Ok(Err(names))` are those that there are if it is not one.
    pub(super) fn open(
        library: &'static Library,
        name: &str,
    ) -> io::Result<Result<Self, Vec<String>>> {
        let verbs = &library.verbs;
        let mut count = 0;
        // SAFETY: `count` is ours.
        let list = unsafe { verbs.ibv_get_device_list(&raw mut count) };
        if list.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut names = Vec::new();
        let mut opened = None;
        for index in 0..count.unsigned_abs() as usize {
            // SAFETY: the list has `count` entries.
            let entry = unsafe { list.add(index) };
            // SAFETY: as above.
            let device = unsafe { *entry };
            // SAFETY: an entry of a list that was not freed yet.
            let text = unsafe { verbs.ibv_get_device_name(device) };
            // SAFETY: the name is a C string and lives as long as the list.
            let found = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
            if found == name {
                // SAFETY: as for the name. The context keeps the device when the list is freed.
                opened = Some(object("ibv_open_device", unsafe { verbs.ibv_open_device(device) }));
                break;
            }
            names.push(found);
        }
        let error = io::Error::last_os_error(); // of opening; freeing may change it
        // SAFETY: the list is from above and not used any more.
        unsafe { verbs.ibv_free_device_list(list) };
        match opened {
            Some(Ok(raw)) => {
                let context = Context { raw, library };
                set_nonblocking(context.async_fd()).map_err(io::Error::other)?;
                Ok(Ok(context))
            }
            Some(Err(_)) => Err(error),
            None => Ok(Err(names)),
        }
    }

    /// What the device can do.
    pub(super) fn attributes(&self) -> Result<ibv_device_attr> {
        let mut attributes = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: an open context, and room for the attributes.
        let returned = unsafe {
            self.library.verbs.ibv_query_device(self.raw.as_ptr(), attributes.as_mut_ptr())
        };
        check(returned).map_err(|e| Error::os("ibv_query_device", e))?;
        // SAFETY: plain numbers: zeroed is a value, and the call has filled them.
        Ok(unsafe { attributes.assume_init() })
    }

    /// Whether it speaks InfiniBand's transport (InfiniBand, RoCE), not iWARP's.
    pub(super) fn is_infiniband(&self) -> bool {
        // SAFETY: an open context, whose device lives as long as it.
        let device = unsafe { self.raw.as_ref() }.device;
        // SAFETY: as above.
        unsafe { (*device).transport_type == IBV_TRANSPORT_IB }
    }

    /// Readable when there is an asynchronous event.
    pub(super) fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: an open context.
        let fd = unsafe { self.raw.as_ref() }.async_fd;
        // SAFETY: the descriptor is open as long as the context.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// The next asynchronous event (`ibv_get_async_event(3)`), if there is one now.
    pub(super) fn next_async_event(&self) -> Option<AsyncEvent<'_>> {
        let mut raw = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: an open context, and room for the event. The descriptor does not block.
        let returned =
            unsafe { self.library.verbs.ibv_get_async_event(self.raw.as_ptr(), raw.as_mut_ptr()) };
        // SAFETY: zeroed is a value (null pointers and numbers), and if there was an event it is
        // filled.
        (returned == 0).then(|| AsyncEvent { raw: unsafe { raw.assume_init() }, context: self })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here, and all that was made from it held it.
        destroyed("ibv_close_device", unsafe {
            self.library.verbs.ibv_close_device(self.raw.as_ptr())
        });
    }
}

/// An asynchronous event; what it is about is not destroyed before this is dropped.
pub(super) struct AsyncEvent<'a> {
    raw: ibv_async_event,
    context: &'a Context,
}

impl AsyncEvent<'_> {
    pub(super) fn kind(&self) -> ibv_event_type {
        self.raw.event_type
    }

    /// What it says, for logs.
    pub(super) fn text(&self) -> String {
        // SAFETY: any number is allowed.
        let text = unsafe { self.context.library.verbs.ibv_event_type_str(self.kind()) };
        // SAFETY: a string constant of the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// Device's number of the queue pair that it is about, if it is about one.
    pub(super) fn queue_pair(&self) -> Option<u32> {
        match self.kind() {
            IBV_EVENT_QP_FATAL
            | IBV_EVENT_QP_REQ_ERR
            | IBV_EVENT_QP_ACCESS_ERR
            | IBV_EVENT_COMM_EST
            | IBV_EVENT_SQ_DRAINED
            | IBV_EVENT_PATH_MIG
            | IBV_EVENT_PATH_MIG_ERR
            | IBV_EVENT_QP_LAST_WQE_REACHED => {
                // SAFETY: events of these kinds are about a queue pair (ibv_get_async_event(3)).
                let queue_pair = unsafe { self.raw.element.qp };
                // SAFETY: it is not destroyed before the event is acknowledged.
                Some(unsafe { (*queue_pair).qp_num })
            }
            _ => None,
        }
    }
}

impl Drop for AsyncEvent<'_> {
    fn drop(&mut self) {
        // SAFETY: got once, acknowledged once.
        unsafe { self.context.library.verbs.ibv_ack_async_event(&raw mut self.raw) };
    }
}

/// A protection domain.
#[derive(Debug)]
pub(super) struct ProtectionDomain {
    raw: NonNull<ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as for `Context`.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        // SAFETY: an open context.
        let raw = unsafe { context.library.verbs.ibv_alloc_pd(context.raw.as_ptr()) };
        Ok(ProtectionDomain { raw: object("ibv_alloc_pd", raw)?, context: context.clone() })
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }

    pub(super) fn library(&self) -> &'static Library {
        self.context.library
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed only here; regions and queue pairs held it.
        destroyed("ibv_dealloc_pd", unsafe {
            self.context.library.verbs.ibv_dealloc_pd(self.raw.as_ptr())
        });
    }
}

/// A completion queue with its channel of events.
#[derive(Debug)]
pub(super) struct RawCompletionQueue {
    raw: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for RawCompletionQueue {}
// SAFETY: as for `Context`.
unsafe impl Sync for RawCompletionQueue {}

impl RawCompletionQueue {
    pub(super) fn new(context: &Arc<Context>, entries: i32) -> Result<Self> {
        let verbs = &context.library.verbs;
        // SAFETY: an open context.
        let channel = unsafe { verbs.ibv_create_comp_channel(context.raw.as_ptr()) };
        let channel = object("ibv_create_comp_channel", channel)?;
        // SAFETY: an open context and channel; the last argument is the first interrupt vector.
        let raw = unsafe {
            verbs.ibv_create_cq(context.raw.as_ptr(), entries, ptr::null_mut(), channel.as_ptr(), 0)
        };
        match object("ibv_create_cq", raw) {
            Ok(raw) => {
                let queue = RawCompletionQueue { raw, channel, context: context.clone() };
                set_nonblocking(queue.fd())?;
                Ok(queue)
            }
            Err(error) => {
                // SAFETY: made above, used by nobody.
                unsafe { verbs.ibv_destroy_comp_channel(channel.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Readable when an armed queue has an event.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as this.
        let fd = unsafe { self.channel.as_ref() }.fd;
        // SAFETY: as above, and so does its descriptor.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes completions; `ibv_poll_cq(3)`. Returns how many, `None` if the queue is broken.
    #[inline]
    pub(super) fn poll(&self, room: &mut [ibv_wc]) -> Option<usize> {
        // SAFETY: an open context, whose table of operations its driver has filled.
        let poll = unsafe { self.context.raw.as_ref() }.ops.poll_cq?;
        // SAFETY: a live queue of that context, and room for as many completions as asked for.
        let taken = unsafe { poll(self.raw.as_ptr(), room.len() as i32, room.as_mut_ptr()) };
        usize::try_from(taken).ok().filter(|taken| *taken <= room.len())
    }

    /// Asks for one event; `ibv_req_notify_cq(3)`.
    pub(super) fn request_event(&self, solicited_only: bool) -> Result<()> {
        // SAFETY: as in `poll`.
        let arm = unsafe { self.context.raw.as_ref() }.ops.req_notify_cq;
        let arm = arm.ok_or(Error::InvalidArgument("the device's driver has no events"))?;
        // SAFETY: a live queue of that context.
        let returned = unsafe { arm(self.raw.as_ptr(), solicited_only.into()) };
        check(returned).map_err(|e| Error::os("ibv_req_notify_cq", e))
    }

    /// Consumes the events that there are.
    pub(super) fn take_events(&self) {
        let verbs = &self.context.library.verbs;
        let (mut queue, mut user) = (ptr::null_mut(), ptr::null_mut());
        loop {
            // SAFETY: a live channel, and room for what it tells. The descriptor does not block.
            let returned = unsafe {
                verbs.ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut user)
            };
            if returned != 0 {
                return; // EAGAIN: there are no more
            }
            // SAFETY: one event of this queue, the channel's only one, was got.
            unsafe { verbs.ibv_ack_cq_events(self.raw.as_ptr(), 1) };
        }
    }
}

impl Drop for RawCompletionQueue {
    fn drop(&mut self) {
        let verbs = &self.context.library.verbs;
        // SAFETY: made in `new`, destroyed only here; queue pairs held it, and all events that were
        // got are acknowledged.
        destroyed("ibv_destroy_cq", unsafe { verbs.ibv_destroy_cq(self.raw.as_ptr()) });
        // SAFETY: likewise, after its only queue.
        destroyed("ibv_destroy_comp_channel", unsafe {
            verbs.ibv_destroy_comp_channel(self.channel.as_ptr())
        });
    }
}

/// Sizes of a queue pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) send_depth: u32,
    pub(super) receive_depth: u32,
    pub(super) max_inline_data: u32,
}

/// A queue pair of the reliable connected kind.
#[derive(Debug)]
pub(super) struct RawQueuePair {
    raw: NonNull<ibv_qp>,
    pub(super) domain: Arc<ProtectionDomain>,
    // What it completes into must outlive it.
    _send: Arc<RawCompletionQueue>,
    _receive: Arc<RawCompletionQueue>,
}

// SAFETY: as for `Context`.
unsafe impl Send for RawQueuePair {}
// SAFETY: as for `Context`.
unsafe impl Sync for RawQueuePair {}

impl RawQueuePair {
    /// In the state RESET.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        send: &Arc<RawCompletionQueue>,
        receive: &Arc<RawCompletionQueue>,
        sizes: Sizes,
    ) -> Result<Self> {
        let context = &domain.context;
        let ours = |queue: &RawCompletionQueue| Arc::ptr_eq(&queue.context, context);
        if !ours(send) || !ours(receive) {
            return Err(Error::InvalidArgument("completion queue is of another device"));
        }
        let mut wanted = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: send.raw.as_ptr(),
            recv_cq: receive.raw.as_ptr(),
            srq: ptr::null_mut(),
            cap: ibv_qp_cap {
                max_send_wr: sizes.send_depth,
                max_recv_wr: sizes.receive_depth,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: sizes.max_inline_data,
            },
            qp_type: IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: an open domain and completion queues of its device.
        let raw =
            unsafe { context.library.verbs.ibv_create_qp(domain.raw.as_ptr(), &raw mut wanted) };
        let (_send, _receive) = (send.clone(), receive.clone());
        Ok(RawQueuePair {
            raw: object("ibv_create_qp", raw)?,
            domain: domain.clone(),
            _send,
            _receive,
        })
    }

    /// The device's number of it.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: alive as long as this.
        unsafe { self.raw.as_ref() }.qp_num
    }

    pub(super) fn modify(&self, mut attributes: ibv_qp_attr, mask: ibv_qp_attr_mask) -> Result<()> {
        let verbs = &self.domain.context.library.verbs;
        // SAFETY: a live queue pair; what makes no sense is refused by the kernel.
        let returned =
            unsafe { verbs.ibv_modify_qp(self.raw.as_ptr(), &raw mut attributes, mask as i32) };
        check(returned).map_err(|e| Error::os("ibv_modify_qp", e))
    }

    /// Posts a chain of requests; `ibv_post_send(3)`. `Err`: the first that was not posted, and
    /// why.
    ///
    /// # Safety
    /// `first` starts a null-terminated chain whose elements name memory by keys of the device, or,
    /// if they are inline, memory that can be read now.
    #[inline]
    pub(super) unsafe fn post_send(
        &self,
        first: *mut ibv_send_wr,
    ) -> Result<(), (*mut ibv_send_wr, io::Error)> {
        // SAFETY: an open context, whose table of operations its driver has filled.
        let Some(post) = (unsafe { self.domain.context.raw.as_ref() }).ops.post_send else {
            return Err((first, io::ErrorKind::Unsupported.into()));
        };
        let mut bad = first;
        // SAFETY: a live queue pair, and a chain as the caller promises.
        let returned = unsafe { post(self.raw.as_ptr(), first, &raw mut bad) };
        check(returned).map_err(|error| (bad, error))
    }

    /// Posts one receive; `ibv_post_recv(3)`. A buffer is memory named by a key of the device,
    /// which the device checks.
    #[inline]
    pub(super) fn post_receive(&self, id: u64, buffer: Option<ibv_sge>) -> io::Result<()> {
        // SAFETY: as in `post_send`.
        let post = unsafe { self.domain.context.raw.as_ref() }.ops.post_recv;
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut element = buffer.unwrap_or_default();
        let mut request = ibv_recv_wr {
            wr_id: id,
            next: ptr::null_mut(),
            sg_list: &raw mut element,
            num_sge: buffer.is_some().into(),
        };
        let mut bad = ptr::null_mut();
        // SAFETY: a live queue pair, one request, one element; the driver copies them.
        check(unsafe { post(self.raw.as_ptr(), &raw mut request, &raw mut bad) })
    }
}

impl Drop for RawQueuePair {
    fn drop(&mut self) {
        let verbs = &self.domain.context.library.verbs;
        // SAFETY: made in `new`, destroyed only here; the completion queues are fields, so alive.
        destroyed("ibv_destroy_qp", unsafe { verbs.ibv_destroy_qp(self.raw.as_ptr()) });
    }
}
