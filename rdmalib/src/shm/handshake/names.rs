//! What a listener is called: an abstract socket named after its address.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use crate::error::{Error, Result};

/// Prefix of the socket's name.
const NAME: &str = "rdmalib-shm";
/// Where ephemeral ports are taken from (RFC 6335, section 6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

/// The name of the socket of whoever listens at `addr`.
pub(super) fn name_of(addr: SocketAddr) -> String {
    format!("{NAME}/{addr}")
}

fn socket_name(addr: SocketAddr) -> Result<UnixAddr> {
    UnixAddr::from_abstract_name(name_of(addr)).map_err(|e| Error::os("socket name", e))
}

pub(super) fn bind(addr: SocketAddr) -> Result<(UnixListener, SocketAddr)> {
    let bind = |addr: SocketAddr| match UnixListener::bind_addr(&socket_name(addr)?) {
        Ok(socket) => Ok(socket),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(Error::AddressInUse(addr)),
        Err(e) => Err(Error::os("bind", e)),
    };
    if addr.port() != 0 {
        return Ok((bind(addr)?, addr));
    }
    // Start somewhere else in each process, so that few tries are in vain.
    let start = std::process::id().wrapping_mul(0x9e37) ^ crate::queue_pair::next_number();
    for i in 0..EPHEMERAL.len() as u32 {
        let port = EPHEMERAL.start() + (start.wrapping_add(i) % EPHEMERAL.len() as u32) as u16;
        let candidate = SocketAddr::new(addr.ip(), port);
        match bind(candidate) {
            Ok(socket) => return Ok((socket, candidate)),
            Err(Error::AddressInUse(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::AddressInUse(addr))
}
