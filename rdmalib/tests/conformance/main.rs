//! What every provider has in common: one list of facts, run on each device.
//!
//! ```text
//! cargo test -p rdmalib --test conformance                 all of them
//! cargo test -p rdmalib --test conformance shm::a_write    some
//! ```
//! A fact is a function of a [`Fixture`], which says on which devices the two ends are. Facts that
//! need a second process start this program again with [`peer::ROLE`] set.

// A fact that does not hold panics; that is what a test does.
#![allow(clippy::unwrap_used)]

mod ends;
mod facts;
mod peer;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libtest_mimic::{Arguments, Trial};
use rdmalib::{DeviceSpec, Provider};

/// Devices of the two ends of a connection.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Who listens.
    pub server: DeviceSpec,
    /// Who connects.
    pub client: DeviceSpec,
}

impl Fixture {
    fn shm(ip_address: IpAddr) -> Self {
        let device = DeviceSpec {
            name: "shm0".into(),
            provider: Provider::Shm,
            ip_address,
            max_inline_data: 256,
        };
        Fixture { server: device.clone(), client: device }
    }
}

fn main() {
    if let Ok(role) = std::env::var(peer::ROLE) {
        peer::act(&role);
        return;
    }
    let fixtures = [
        ("shm", Fixture::shm(IpAddr::V4(Ipv4Addr::LOCALHOST))),
        ("shm_ipv6", Fixture::shm(IpAddr::V6(Ipv6Addr::LOCALHOST))),
    ];
    let mut trials = Vec::new();
    for (prefix, fixture) in fixtures {
        for (name, fact) in facts::ALL {
            // One address family is enough for all but the handshake.
            if prefix == "shm_ipv6" && !name.starts_with("connecting::") {
                continue;
            }
            let fixture = fixture.clone();
            trials.push(Trial::test(format!("{prefix}::{name}"), move || {
                fact(&fixture);
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
