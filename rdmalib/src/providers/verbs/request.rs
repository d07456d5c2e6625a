//! Requests in the device's words.

#![allow(unsafe_code)]

use std::io;
use std::ptr;

use super::bindings::types::*;
use super::memory::Registered;
use super::objects::RawQueuePair;
use crate::types::work::{Operation, Slice, Source, WorkRequest};
use crate::types::{Error, Flags, RemoteAddress, Result};

/// Longest message or write, in bytes (InfiniBand specification 1.4, 9.3.3.1: 2^31).
pub(super) const MAX_BYTES: usize = 1 << 31;

/// A request in the device's words. Its element is attached when it is posted.
#[derive(Clone, Copy, Default)]
pub(super) struct DeviceRequest {
    pub(super) request: ibv_send_wr,
    element: ibv_sge,
}

impl DeviceRequest {
    /// Fills in `request`, without its `wr_id`. Of inline data only the address is taken.
    #[inline]
    pub(super) fn fill<B: AsRef<[u8]>>(
        &mut self,
        request: &WorkRequest<Registered, B>,
    ) -> Result<()> {
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
    pub(super) fn link(&mut self, next: *mut ibv_send_wr) -> *mut ibv_send_wr {
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

/// A send that waits for the peer to be ready.
#[derive(Debug)]
pub(super) struct KeptSend {
    pub(super) wr_id: u64,
    pub(super) request: WorkRequest<Registered, Box<[u8]>>,
}

impl KeptSend {
    pub(super) fn post(self, queue_pair: &RawQueuePair) -> Result<()> {
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
pub(super) fn refused(error: io::Error) -> Error {
    Error::os("posting a work request", error)
}

/// Returns the scatter/gather element of `slice`, which has at most [`MAX_BYTES`].
#[inline]
pub(super) fn element(slice: &Slice<Registered>) -> ibv_sge {
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
