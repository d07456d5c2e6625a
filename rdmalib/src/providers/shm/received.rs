//! Reading a message and the descriptors that come with it: all of them, also those of a message
//! that was cut short.
//!
//! Every descriptor that the kernel has installed in this process gets an owner before anything
//! else is looked at: a peer chooses how many it passes, and a process can run out of them.
//!
//! A message is first copied and left in the socket. It is taken once everything that came with it
//! is known to have an owner: the kernel closes on the spot what there is no room for, and that may
//! take long (`closer`).
//!
//! The code does not use nix, which returns an error for a control message that was cut
//! (`MSG_CTRUNC`) in place of the descriptors that the kernel has installed.

#![allow(unsafe_code)]

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use super::closer::{ClosedLater, Passed};

/// Descriptors that the kernel installs of one message, at most: one is needed, and one more tells
/// of others.
const MOST: usize = 2;

/// Room for one control message, as `cmsg(3)` lays it out: the data follows the header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    descriptors: [RawFd; MOST],
}

/// A message, and the descriptors that came with it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) files: Vec<ClosedLater<Passed>>,
    /// There were more descriptors than there is room for, or than this process may have open.
    pub(super) cut: bool,
}

/// Copies the next message into `data` and leaves it in the socket; does not wait.
pub(super) fn look(socket: &UnixStream, data: &mut [u8]) -> Result<Received, Errno> {
    // SAFETY: plain integers, for which zero is a value.
    let mut control: Control = unsafe { mem::zeroed() };
    let mut parts = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: integers and pointers, for which zero and null are values.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut parts;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_PEEK;
    // SAFETY: the message names memory of this frame, with its lengths.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let bytes = Errno::result(count)? as usize; // not negative, just checked
    let files = control.take(message.msg_controllen);
    Ok(Received { bytes, files, cut: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Makes the kernel refuse descriptors that the other end of `socket` passes from now on, where it
/// can (Linux 6.16 and later), and returns whether it does. Messages that were sent before keep
/// theirs.
///
/// The embedded device uses it on its own sockets. It is public for the executor manager, which
/// reads the output of functions from sockets. It has nothing to do with devices.
pub fn refuse_descriptors(socket: &UnixStream) -> bool {
    const SO_PASSRIGHTS: libc::c_int = 83; // asm-generic/socket.h
    let (no, bytes): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    let (fd, value) = (socket.as_raw_fd(), (&raw const no).cast());
    // SAFETY: an integer of this frame and its size. An older kernel says that it does not know the
    // option.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, value, bytes) == 0 }
}

impl Control {
    /// Takes ownership of the descriptors in the first `len` bytes, which the kernel has written.
    fn take(&self, len: usize) -> Vec<ClosedLater<Passed>> {
        let head = mem::offset_of!(Control, descriptors);
        let is_ours = len >= head
            && self.header.cmsg_level == libc::SOL_SOCKET
            && self.header.cmsg_type == libc::SCM_RIGHTS;
        if !is_ours {
            return Vec::new(); // none: nothing else was asked for
        }
        let count = self.header.cmsg_len.min(len).saturating_sub(head) / size_of::<RawFd>();
        // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
        let own = |fd: &RawFd| Passed(unsafe { OwnedFd::from_raw_fd(*fd) });
        self.descriptors.iter().take(count).map(own).map(ClosedLater::from).collect()
    }
}
