//! Messages between processes of one machine that trust each other, with descriptors (unix(7),
//! SCM_RIGHTS): a manager and what it starts executors with.
//!
//! A message is one packet (SOCK_SEQPACKET), so it comes whole or not at all. Sending never waits.
//!
//! Elsewhere: what is said (`rfaas_protocol::launch`).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rfaas_protocol::assignment::MAX_PRELOADED;
use rfaas_protocol::launch::MAX_JSON_BYTES;
use rfaas_protocol::{MAX_MESSAGE_BYTES, Malformed, MessageKind};
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most descriptors of a message: streams, channels, and the [libraries](MAX_PRELOADED) of the operator.
pub const MAX_DESCRIPTORS: usize = 8 + MAX_PRELOADED;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The other end is closed.
    #[error("the other process has ended")]
    Gone,
    /// None came in the time.
    #[error("the other process does not answer")]
    Late,
    /// What came is none.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The system failed.
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// One end of a pair of sockets. Readable when there is a message, or the other end is closed.
#[derive(Debug)]
pub struct LocalChannel(OwnedFd);

impl LocalChannel {
    /// Makes two ends that are connected.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((LocalChannel(one), LocalChannel(other)))
    }

    /// Sends `message` with duplicates of `descriptors`.
    pub fn send(
        &self,
        message: &impl MessageKind,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LocalError> {
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = descriptors.len() <= MAX_DESCRIPTORS;
        let passed = SendAncillaryMessage::ScmRights(descriptors);
        if !(fits && (descriptors.is_empty() || control.push(passed))) {
            return Err(io::Error::other("too many descriptors for one message").into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags) {
            Ok(_) => Ok(()), // a packet is sent whole
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(LocalError::Gone),
            Err(errno) => Err(LocalError::Os(errno.into())),
        }
    }

    /// Returns the next message and its descriptors, if there is one.
    pub fn try_receive<M: MessageKind>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, LocalError> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
                Err(rustix::io::Errno::CONNRESET) => return Err(LocalError::Gone),
                Err(errno) => return Err(LocalError::Os(errno.into())),
            };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        if received.bytes == 0 {
            return Err(LocalError::Gone); // no message is empty
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::from(Errno::EMFILE).into()); // there was no room for a descriptor
        }
        Ok(Some((M::decode(&bytes[..received.bytes])?, descriptors)))
    }

    /// Returns the next message and its descriptors. Waits for it, but not longer than `within`.
    pub fn receive<M: MessageKind>(
        &self,
        within: Option<Duration>,
    ) -> Result<(M, Vec<OwnedFd>), LocalError> {
        let deadline = within.map(|within| Instant::now() + within);
        loop {
            if let Some(received) = self.try_receive()? {
                return Ok(received);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(LocalError::Late);
            }
            wait(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], left)
                .map_err(io::Error::from)?;
        }
    }

    /// Whether the other end is closed.
    pub fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0].revents().is_some_and(|events| events.intersects(gone))
    }
}

/// One end that was inherited.
impl From<OwnedFd> for LocalChannel {
    fn from(socket: OwnedFd) -> Self {
        LocalChannel(socket)
    }
}

/// One end that is passed on.
impl From<LocalChannel> for OwnedFd {
    fn from(channel: LocalChannel) -> OwnedFd {
        channel.0
    }
}

impl AsFd for LocalChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns a file with `value` that exists only as a descriptor. A file and not a pipe: it takes a
/// value of any length at once. `name` is what `/proc` shows.
pub fn to_file(name: &CStr, value: &impl Serialize) -> io::Result<File> {
    let json = serde_json::to_vec(value)?;
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&json)?;
    file.rewind()?; // the offset is the reader's too
    Ok(file)
}

/// Returns the value that is in `file`.
pub fn from_file<T: DeserializeOwned>(file: impl Read) -> io::Result<T> {
    let mut text = String::new();
    file.take(MAX_JSON_BYTES).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits until one of `polled` has news or the time is over, which is rounded up so that it is over
/// then.
pub fn wait(polled: &mut [PollFd<'_>], within: Option<Duration>) -> nix::Result<()> {
    let timeout = within.map_or(PollTimeout::NONE, |within| {
        let ms = within.as_micros().div_ceil(1000);
        PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
    });
    match poll(polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use rfaas_protocol::launch::{FromZygote, Started, ToZygote};

    use super::*;

    fn answer() -> FromZygote {
        FromZygote::Started(Started { pid: 7.into() })
    }

    #[test]
    fn a_message_comes_whole_with_its_descriptors() {
        let (one, other) = LocalChannel::pair().unwrap();
        assert!(other.try_receive::<FromZygote>().unwrap().is_none());
        let file = to_file(c"value", &["passed"]).unwrap();
        one.send(&answer(), &[file.as_fd(), one.as_fd()]).unwrap();
        let (message, descriptors) = other.receive::<FromZygote>(None).unwrap();
        assert_eq!(message, answer());
        let [passed, _] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        assert_eq!(from_file::<[String; 1]>(File::from(passed)).unwrap(), ["passed"]);
    }

    #[test]
    fn who_does_not_answer_is_late_and_who_has_ended_is_gone() {
        let (one, other) = LocalChannel::pair().unwrap();
        let late = one.receive::<FromZygote>(Some(Duration::from_millis(1)));
        assert!(matches!(late, Err(LocalError::Late)), "{late:?}");
        assert!(!one.is_gone());
        other.send(&answer(), &[]).unwrap();
        drop(other);
        assert!(one.is_gone());
        assert!(one.receive::<FromZygote>(None).is_ok(), "its last message is still there");
        assert!(matches!(one.receive::<FromZygote>(None), Err(LocalError::Gone)));
        assert!(matches!(one.send(&answer(), &[]), Err(LocalError::Gone)));
    }

    #[test]
    fn more_descriptors_than_fit_are_not_sent_and_another_message_is_an_error() {
        let (one, other) = LocalChannel::pair().unwrap();
        let many = [one.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(one.send(&answer(), &many).is_err());
        one.send(&answer(), &many[1..]).unwrap();
        assert!(matches!(other.receive::<ToZygote>(None), Err(LocalError::Malformed(_))));
    }

    #[test]
    fn no_more_is_read_than_what_is_passed_may_have() {
        let endless = io::repeat(b' ');
        assert!(from_file::<u8>(endless).is_err());
    }
}
