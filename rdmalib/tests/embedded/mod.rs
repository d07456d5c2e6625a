//! The embedded device in tests, also of other crates (by `#[path]`), and peers that speak its handshake by themselves.
#![allow(dead_code)] // each test program uses a part
#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rdmalib::{Device, DeviceSpec, Provider};

/// Opens it in this process.
pub fn device() -> Device {
    let spec = DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    };
    Device::open(&spec).unwrap()
}

/// The socket of whoever listens at `addr`.
pub fn name(addr: SocketAddr) -> UnixAddr {
    UnixAddr::from_abstract_name(format!("rdmalib-shm/{addr}")).unwrap()
}

/// Lets this process open as many descriptors as it may: for a crowd in it.
pub fn many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
