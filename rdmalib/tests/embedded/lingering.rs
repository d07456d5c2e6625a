//! A socket that takes long to close, for tests of this crate and of what is inside of it (by `#[path]`).
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::Linger};

/// How long closing it takes, unless its other end goes first.
pub const LINGERING: Duration = Duration::from_secs(120);

/// A socket whose last close(2) waits until what was sent has arrived, which it does not; and its other end.
pub fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let linger = libc::linger { l_onoff: 1, l_linger: LINGERING.as_secs() as libc::c_int };
    setsockopt(&socket, Linger, &linger).unwrap();
    (socket, other)
}
