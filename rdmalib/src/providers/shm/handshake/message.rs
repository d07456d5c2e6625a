//! The two messages of a handshake, with the descriptors that come with them.
//!
//! What a peer may have passed is closed by other threads (`closer`), and what it passes beside its
//! memory is not taken.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::closer::{ClosedLater, Passed};
use super::super::core::MAX_QUEUE_DEPTH;
use super::super::link::Link;
use super::super::peer::origin;
use super::super::peer_arena::{PeerArena, PeerFile};
use super::super::received::{look, refuse_descriptors};
use crate::types::{Error, MAX_ACCEPT_DATA, PrivateData, Result};
use rdmalib_ring::{ArrivalPusher, words_needed};

/// First words of every message: name and version of this handshake.
const MAGIC: u64 = u64::from_le_bytes(*b"rdmashm3");
/// More than a peer that follows the protocol has to say before it is connected: a few times that
/// it wakes us.
const EARLY_BYTES: usize = 64;
const TOO_MANY_FILES: Error = Error::Protocol("the peer passes more than its memory");

/// Both messages: a request, or the answer to one. Same machine, so native byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Message {
    magic: u64,
    pub(super) ring_offset: u64,
    pub(super) ring_depth: u32,
    pub(super) kind: u32,
    data_bytes: u32,
    data: [u8; MAX_ACCEPT_DATA],
}
const _: () = assert!(size_of::<Message>() == 224);

pub(super) const CONNECT: u32 = 1;
pub(super) const ACCEPT: u32 = 2;
pub(super) const REJECT: u32 = 3;
/// Turned away by the listener itself: others came later, and there is no more room.
pub(super) const CROWDED: u32 = 4;
/// Likewise: it has no descriptor or address space left.
pub(super) const EXHAUSTED: u32 = 5;

impl Message {
    pub(super) fn new(kind: u32, ring: (u64, u32), private_data: &PrivateData) -> Self {
        let bytes = private_data.as_slice();
        let mut data = [0; MAX_ACCEPT_DATA];
        data[..bytes.len()].copy_from_slice(bytes);
        Message {
            magic: MAGIC,
            ring_offset: ring.0,
            ring_depth: ring.1,
            kind,
            data_bytes: bytes.len() as u32,
            data,
        }
    }

    pub(super) fn private_data(&self, max: usize) -> Result<PrivateData> {
        let bytes = self.data.get(..self.data_bytes as usize);
        bytes
            .ok_or(Error::Protocol("private data length"))
            .and_then(|bytes| PrivateData::new(bytes, max))
    }

    /// Makes the link to the peer at the other end of `socket`, which sent this message and `file`.
    pub(super) fn link(
        &self,
        file: Option<ClosedLater<Passed>>,
        socket: &UnixStream,
    ) -> Result<Link> {
        let file = file.ok_or(Error::Protocol("the peer sent no memory"))?;
        let depth = self.ring_depth;
        if !depth.is_power_of_two() || depth > MAX_QUEUE_DEPTH {
            return Err(Error::Protocol("ring depth"));
        }
        let memory = PeerArena::new(PeerFile::new(file, origin(socket))?)?;
        let ring = memory.map_ring(self.ring_offset, 8 * words_needed(depth))?;
        let ring = ArrivalPusher::new(ring, depth).ok_or(Error::Protocol("ring size"))?;
        Ok(Link::new(memory, ring))
    }
}

pub(super) fn send_message(
    socket: &UnixStream,
    message: &Message,
    file: Option<&OwnedFd>,
) -> Result<()> {
    let fds: Vec<RawFd> = file.iter().map(|file| file.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let data = [IoSlice::new(message.as_bytes())];
    match sendmsg::<()>(socket.as_raw_fd(), &data, control, flags, None) {
        Ok(n) if n == size_of::<Message>() => Ok(()),
        // A fresh socket takes a message of this size whole, unless its peer is gone.
        Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Err(Error::Disconnected),
        Err(errno) => Err(Error::os("sendmsg", errno)),
    }
}

/// `None`: nothing has come yet.
pub(super) fn receive_message(
    socket: &UnixStream,
) -> Result<Option<(Message, Option<ClosedLater<Passed>>)>> {
    let mut bytes = [0; size_of::<Message>()];
    let received = match look(socket, &mut bytes) {
        Ok(received) => received,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(Errno::ECONNRESET) => return Err(Error::Disconnected),
        Err(errno) => return Err(Error::os("recvmsg", errno)),
    };
    match received.bytes {
        0 => return Err(Error::Disconnected),
        n if n != size_of::<Message>() => return Err(Error::Protocol("handshake of a wrong size")),
        _ => {}
    }
    let message = Message::read_from_bytes(&bytes).expect("the buffer has the message's size");
    if message.magic != MAGIC {
        return Err(Error::Protocol("the peer is another program or version"));
    }
    if received.files.len() > 1 {
        return Err(TOO_MANY_FILES);
    }
    let file = received.files.into_iter().next();
    match (&file, received.cut) {
        (None, true) => return Err(why_none_came(socket)),
        (Some(_), true) => return Err(TOO_MANY_FILES),
        _ => {}
    }
    // The same bytes again (`received`), and we have the file.
    let taken = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
    taken.map_err(|e| Error::os("recv", e))?;
    expect_no_files(socket)?;
    Ok(Some((message, file)))
}

/// Why no descriptor came of a message that has some, although there is room for two. This process
/// may have no more; and if it may, a security module does not let it have this one: that is the
/// peer's doing, and nothing is wrong here.
fn why_none_came(socket: &UnixStream) -> Error {
    match socket.try_clone() {
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => Error::os("recvmsg", error),
        _ => Error::Protocol("the peer's memory is kept from this process"),
    }
}

/// From now on the peer passes no descriptors, and has not passed any with what it has sent
/// already: reading what wakes us would close them there and then.
fn expect_no_files(socket: &UnixStream) -> Result<()> {
    refuse_descriptors(socket);
    let mut bytes = [0; EARLY_BYTES];
    match look(socket, &mut bytes) {
        Ok(early) if !early.files.is_empty() || early.cut => Err(TOO_MANY_FILES),
        Ok(early) if early.bytes == bytes.len() => {
            Err(Error::Protocol("the peer does not wait for us"))
        }
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNRESET) => Ok(()), // its end is noticed later
        Err(errno) => Err(Error::os("recvmsg", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_does_not_come_although_there_is_room_is_the_peers_doing() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert!(matches!(why_none_came(&socket), Error::Protocol(_)));
    }
}
