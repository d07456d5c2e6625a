//! The channel between a manager and the processes that start its executors: any packet with any descriptors, and
//! whatever the file behind one of them says.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe;
use rfaas_program::local_channel::{LocalChannel, LocalError, MAX_DESCRIPTORS, from_file, to_file};
use rfaas_protocol::MessageKind;
use rfaas_protocol::assignment::Assignment;
use rfaas_protocol::isolation::IsolationReport;
use rfaas_protocol::launch::{FromGuardian, FromZygote, ToGuardian, ToZygote, ZygoteSettings};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::assert_line;
use crate::cursor::Cursor;

/// Largest packet that is sent: more than any that is taken.
const MOST_BYTES: usize = 2048;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Cursor::new(bytes);
    let (kind, descriptors) = (input.u8(), usize::from(input.u8()) % (MAX_DESCRIPTORS + 4));
    let bytes = input.rest();
    match kind % 5 {
        0 => packet::<FromZygote>(bytes, descriptors),
        1 => packet::<ToZygote>(bytes, descriptors),
        2 => packet::<FromGuardian>(bytes, descriptors),
        3 => packet::<ToGuardian>(bytes, descriptors),
        _ => {
            value::<Assignment>(bytes);
            value::<ZygoteSettings>(bytes);
            value::<IsolationReport>(bytes);
        }
    }
}

/// Sends a packet with `count` descriptors and receives it. None of them is open afterwards.
fn packet<M: MessageKind>(bytes: &[u8], count: usize) {
    let (one, other) = LocalChannel::pair().expect("a pair of sockets");
    let (end, passed) = pipe().expect("a pipe");
    let numbers = vec![passed.as_raw_fd(); count];
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if count == 0 { &[] } else { &control[..] };
    let data = [IoSlice::new(&bytes[..bytes.len().min(MOST_BYTES)])];
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(one.as_fd().as_raw_fd(), &data, control, flags, None).expect("there is room");
    match other.try_receive::<M>() {
        Ok(received) => {
            let (message, descriptors) = received.expect("it was sent");
            assert_eq!(message.encode(), bytes);
            assert_eq!(descriptors.len(), count);
        }
        Err(LocalError::Gone) => assert!(bytes.is_empty(), "nobody has gone"),
        Err(error) => assert_line(&error.to_string()),
    }
    drop((passed, one, other));
    let mut polled = [PollFd::new(end.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).expect("a pipe can be polled");
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    assert!(events.contains(PollFlags::POLLHUP), "a descriptor is still open");
}

/// Reads what a descriptor leads to. What was read is written as something that reads as the same.
fn value<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(value) = from_file::<T>(bytes) else { return }; // why not, the log escapes
    let text = serde_json::to_string(&value).expect("it was JSON");
    let passed: T =
        from_file(to_file(c"value", &value).expect("a file")).expect("what was written is read");
    assert_eq!(serde_json::to_string(&passed).expect("likewise"), text);
}
