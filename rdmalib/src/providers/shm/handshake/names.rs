//! The name of a listener: an abstract socket named after its address.
//!
//! A name belongs to the process that takes it first. Another process may have taken the port that
//! a program is configured to listen at, and then the program reports that. Where no port is
//! configured and others have taken those that are tried, the listener gets an address that nobody
//! can have taken before: on this device addresses are only names.

use crate::types::{Error, Result};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// Prefix of the socket's name.
const NAME: &str = "rdmalib-shm";
/// Where ephemeral ports are taken from (RFC 6335, section 6).
const EPHEMERAL: RangeInclusive<u16> = 49152..=65535;
/// Ports that are tried. Each costs a system call, and so many in a row are taken only if somebody
/// means harm.
const TRIES: u32 = 64;
/// First byte of addresses that mean something on one site only (RFC 4193).
const LOCAL: u8 = 0xfd;

/// Returns the name of the socket of the listener at `addr`.
pub(super) fn name_of(addr: SocketAddr) -> String {
    format!("{NAME}/{addr}")
}

/// A socket that is called after `addr`, and what it is called after if that has port 0.
pub(super) fn bind(addr: SocketAddr) -> Result<(UnixListener, SocketAddr)> {
    match addr.port() {
        0 => bind_free(addr.ip(), EPHEMERAL),
        _ => bind_to(addr),
    }
}

fn bind_to(addr: SocketAddr) -> Result<(UnixListener, SocketAddr)> {
    let name =
        UnixAddr::from_abstract_name(name_of(addr)).map_err(|e| Error::os("socket name", e))?;
    match UnixListener::bind_addr(&name) {
        Ok(socket) => Ok((socket, addr)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(Error::AddressInUse(addr)),
        Err(e) => Err(Error::os("bind", e)),
    }
}

/// A port of `ports` that is free at `ip`, or another address.
fn bind_free(ip: IpAddr, ports: RangeInclusive<u16>) -> Result<(UnixListener, SocketAddr)> {
    // Start somewhere else in each process, so that few tries are in vain.
    let start = std::process::id().wrapping_mul(0x9e37) ^ crate::process::next_number();
    let count = ports.len() as u32;
    let port = |i| ports.start() + (start.wrapping_add(i) % count) as u16;
    for addr in (0..count.min(TRIES)).map(|i| SocketAddr::new(ip, port(i))) {
        match bind_to(addr) {
            Err(Error::AddressInUse(_)) => {}
            bound_or_failed => return bound_or_failed,
        }
    }
    let addr = SocketAddr::new(unguessable().into(), *ports.start());
    tracing::warn!(%ip, %addr, "ports are taken there; listening at a made-up address instead");
    bind_to(addr)
}

/// An address out of 2^120. The standard library's hash is keyed with random bytes of the system.
fn unguessable() -> Ipv6Addr {
    let [high, low] = [0, 1].map(|half| u128::from(RandomState::new().hash_one(half)));
    let mut bytes = (high << 64 | low).to_be_bytes();
    bytes[0] = LOCAL;
    bytes.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_takes_all_ports_keeps_nobody_from_listening() {
        let ip: IpAddr = "127.70.0.5".parse().unwrap(); // nobody else's
        let ports = 49152..=49155;
        let free: Vec<_> = (0..4).map(|_| bind_free(ip, ports.clone()).unwrap()).collect();
        assert!(free.iter().all(|(_, addr)| addr.ip() == ip && ports.contains(&addr.port())));
        let others: Vec<_> = (0..2).map(|_| bind_free(ip, ports.clone()).unwrap()).collect();
        assert_ne!(others[0].1, others[1].1, "it could be guessed");
        for (_, addr) in others {
            let parsed: SocketAddr = addr.to_string().parse().unwrap();
            let name = UnixAddr::from_abstract_name(name_of(parsed)).unwrap();
            UnixStream::connect_addr(&name).expect("whoever is told the address finds it");
        }
    }

    #[test]
    fn a_port_that_was_told_is_taken_or_an_error() {
        let addr = "127.70.0.5:7".parse().unwrap();
        let (_taken, bound) = bind(addr).unwrap();
        assert_eq!(bound, addr);
        assert!(matches!(bind(addr), Err(Error::AddressInUse(taken)) if taken == addr));
    }
}
