//! What tests of several crates share: the embedded device, what peers do that speak its handshake by
//! themselves, and waiting.
//!
//! A function that fails panics, and so fails the test.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use rdmalib::{Device, DeviceSpec, Provider};

/// Opens the embedded device at 127.0.0.1. Each call makes a device of its own.
pub fn device() -> Device {
    let spec = DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    };
    Device::open(&spec).unwrap()
}

/// Returns the name of the socket of a listener at `addr`.
pub fn name(addr: SocketAddr) -> UnixAddr {
    UnixAddr::from_abstract_name(format!("rdmalib-shm/{addr}")).unwrap()
}

/// Lets this process open as many descriptors as it may.
pub fn many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// How long closing a [`lingering`] socket takes, unless its other end goes first.
pub const LINGERING: Duration = Duration::from_secs(120);

/// Returns a socket and its other end. The last close(2) of the socket waits until what was sent
/// has arrived, which it never does.
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

/// Far longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, and returns that.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `holds` returns true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}
