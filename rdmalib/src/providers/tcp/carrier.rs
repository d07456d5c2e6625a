//! The carrier: one TCP socket, which moves what the protocol says. It never blocks.
//!
//! Small frames are read into the caller's buffer. Of a large payload, what was not read with its
//! header goes straight to its place, and what follows it into the buffer, with one call.

#![allow(unsafe_code)]

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::protocol::Protocol;

/// Bytes of the buffer that a caller of [`Carrier::receive`] has.
pub(super) const STAGING: usize = 32 << 10;

/// Payloads with so many bytes left go straight to their place.
const DIRECT: usize = 4 << 10;
/// Most bytes of one call, and calls of a turn that sends, so that others have their turn.
const MOST: usize = 1 << 20;
const SENDS: u32 = 16;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// There was nothing.
    Nothing,
    /// There may be more.
    Some,
    /// It was all that there was.
    All,
    /// The peer has ended, or cannot be reached any more.
    End(Ending),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer has closed it.
    Closed,
    /// The peer's machine does not answer.
    Silent,
}

/// A socket in non-blocking mode.
#[derive(Debug)]
pub(super) struct Carrier {
    socket: TcpStream,
    /// Nothing can be sent any more, for this reason, which the kernel tells once; what has arrived can still be read.
    broken: Option<Ending>,
}

impl Carrier {
    pub(super) fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Carrier { socket, broken: None })
    }

    /// Sends what the protocol has, as far as there is room and a turn goes; whether some is left.
    #[inline]
    pub(super) fn send(&mut self, protocol: &mut Protocol) -> bool {
        for _ in 0..SENDS {
            let (frames, large) = protocol.chunks();
            if self.broken.is_some() || (frames.is_empty() && large.is_none()) {
                return false;
            }
            let sent = match large {
                None => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(self.socket.as_raw_fd(), frames, flags)
                }
                Some((place, bytes)) => {
                    let bytes = bytes.min(MOST);
                    self.send_two(frames, (place.memory.at(place.offset, bytes), bytes))
                }
            };
            match sent {
                Ok(bytes) => protocol.sent(bytes),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return true,
                Err(errno) => self.broken = Some(ending(errno)), // it is seen by reading
            }
        }
        protocol.has_output()
    }

    #[cold]
    fn send_two(&self, frames: &[u8], (bytes, length): (*mut u8, usize)) -> nix::Result<usize> {
        let mut parts = [
            libc::iovec { iov_base: frames.as_ptr().cast_mut().cast(), iov_len: frames.len() },
            libc::iovec { iov_base: bytes.cast(), iov_len: length },
        ];
        let message = message(&mut parts);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: both parts are readable: `frames` is borrowed, and the other was checked by
        // `Memory::at` and is mapped as long as the protocol has its place. The kernel only reads
        // them.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, flags) };
        Errno::result(sent).map(|sent| sent as usize)
    }

    /// Reads once, and gives it to the protocol.
    #[inline]
    pub(super) fn receive(&mut self, protocol: &mut Protocol, staging: &mut [u8]) -> Received {
        let landing = protocol.landing().filter(|(_, bytes)| *bytes >= DIRECT);
        let Some((place, bytes)) = landing else {
            let received = recv(self.socket.as_raw_fd(), staging, MsgFlags::MSG_DONTWAIT);
            return match received {
                Ok(0) => Received::End(self.broken.unwrap_or(Ending::Closed)),
                Ok(received) => {
                    protocol.input(&staging[..received]);
                    if received < staging.len() { Received::All } else { Received::Some }
                }
                Err(errno) => failed(errno),
            };
        };
        let bytes = bytes.min(MOST);
        let to = place.memory.at(place.offset, bytes);
        match self.receive_two((to, bytes), staging) {
            Ok(0) => Received::End(self.broken.unwrap_or(Ending::Closed)),
            Ok(received) => {
                let landed = received.min(bytes);
                protocol.landed(landed);
                protocol.input(&staging[..received - landed]);
                if received < bytes + staging.len() { Received::All } else { Received::Some }
            }
            Err(errno) => failed(errno),
        }
    }

    #[cold]
    fn receive_two(
        &self,
        (bytes, length): (*mut u8, usize),
        staging: &mut [u8],
    ) -> nix::Result<usize> {
        let mut parts = [
            libc::iovec { iov_base: bytes.cast(), iov_len: length },
            libc::iovec { iov_base: staging.as_mut_ptr().cast(), iov_len: staging.len() },
        ];
        let mut message = message(&mut parts);
        // SAFETY: both parts are writable: the first was checked by `Memory::at`, its caller keeps
        // it mapped, and no reference to it exists; the other is borrowed.
        let received =
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        Errno::result(received).map(|received| received as usize)
    }

    /// Reads and forgets what a connection that is over still brings; whether that was all.
    pub(super) fn discard(&self) -> bool {
        let mut bytes = [0; 4096];
        for _ in 0..16 {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// Tells the peer that nothing follows.
    pub(super) fn shut_down(&self) {
        let _ = self.socket.shutdown(Shutdown::Write); // ENOTCONN: the peer was faster
    }
}

impl AsFd for Carrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn failed(errno: Errno) -> Received {
    match errno {
        Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM => Received::Nothing,
        errno => Received::End(ending(errno)),
    }
}

fn ending(errno: Errno) -> Ending {
    match errno {
        Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH => Ending::Silent,
        _ => Ending::Closed,
    }
}

/// A message of these parts.
fn message(parts: &mut [libc::iovec; 2]) -> libc::msghdr {
    // SAFETY: a message of no parts, no name and no control data, which is what zeros mean.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message
}
