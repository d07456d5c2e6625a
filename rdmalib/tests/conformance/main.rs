//! What every provider has in common: one list of facts, run on each device.
//!
//! ```text
//! cargo test -p rdmalib --test conformance                 all of them
//! cargo test -p rdmalib --test conformance shm::a_write    some
//! RDMA_TEST_DEVICES="rxe0=192.168.77.1 rxe1=192.168.77.2"  also on these RDMA devices: between two
//!                                                          processes of the first, and from the
//!                                                          first to the second
//! ```
//! A fact is a function of a [`Fixture`], which says on which devices the two ends are. Facts that
//! need a second process start this program again with [`peer::ROLE`] set.

// A fact that does not hold panics; that is what a test does.
#![allow(clippy::unwrap_used)]

mod ends;
mod facts;
mod peer;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libtest_mimic::{Arguments, Completion, Trial};
use rdmalib::{Capabilities, Device, DeviceSpec, Provider, Status};

/// Devices of the two ends of a connection.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Who listens.
    pub server: DeviceSpec,
    /// Who connects.
    pub client: DeviceSpec,
    /// How the provider differs from others. All other facts are the same on all of them.
    pub capabilities: Capabilities,
}

impl Fixture {
    fn new(server: &DeviceSpec, client: &DeviceSpec) -> Self {
        let device = Device::open(server).expect("the devices of a fixture open");
        let capabilities = device.capabilities();
        Fixture { server: server.clone(), client: client.clone(), capabilities }
    }

    /// What `status` counts as, where a message longer than its receive may end with another.
    pub fn status(&self, status: Status) -> Status {
        match status {
            _ if self.capabilities.exact_length_errors => status,
            Status::RemoteOperationError => Status::RemoteInvalidRequest,
            Status::Other(2) => Status::LocalLengthError, // IBV_WC_LOC_QP_OP_ERR
            _ => status,
        }
    }

    /// `times`, or a twentieth of it where a round costs a hundred times more.
    pub fn rounds(&self, times: u32) -> u32 {
        match self.server.provider {
            Provider::Shm => times,
            Provider::Verbs | Provider::Tcp => times / 20,
        }
    }
}

fn device(name: &str, provider: Provider, ip_address: IpAddr) -> DeviceSpec {
    DeviceSpec { name: name.into(), provider, ip_address, max_inline_data: 256 }
}

/// Names the devices for the facts on verbs, as `NAME=ADDRESS NAME=ADDRESS`.
const DEVICES: &str = "RDMA_TEST_DEVICES";

/// The two devices of [`DEVICES`], if it is set.
fn rdma_devices() -> Option<[DeviceSpec; 2]> {
    let text = std::env::var(DEVICES).ok()?;
    let devices: Vec<_> = text
        .split_whitespace()
        .map(|entry| {
            let (name, address) = entry.split_once('=').expect("NAME=ADDRESS");
            device(name, Provider::Verbs, address.parse().expect("an IP address"))
        })
        .collect();
    Some(devices.try_into().unwrap_or_else(|_| panic!("{DEVICES} names two devices")))
}

fn main() {
    if let Ok(role) = std::env::var(peer::ROLE) {
        peer::act(&role);
        return;
    }
    let shm = device("shm0", Provider::Shm, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let ipv6 = device("shm0", Provider::Shm, IpAddr::V6(Ipv6Addr::LOCALHOST));
    let tcp = device("tcp0", Provider::Tcp, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let tcp_ipv6 = device("tcp0", Provider::Tcp, IpAddr::V6(Ipv6Addr::LOCALHOST));
    let verbs = rdma_devices();
    let verbs_with =
        |server: usize| verbs.as_ref().map(|devices| Fixture::new(&devices[server], &devices[0]));
    let fixtures = [
        ("shm", Some(Fixture::new(&shm, &shm))),
        ("shm_ipv6", Some(Fixture::new(&ipv6, &ipv6))),
        ("tcp", Some(Fixture::new(&tcp, &tcp))),
        ("tcp_ipv6", Some(Fixture::new(&tcp_ipv6, &tcp_ipv6))),
        ("verbs", verbs_with(0)),
        ("verbs_pair", verbs_with(1)),
    ];
    let mut trials = Vec::new();
    for (prefix, fixture) in &fixtures {
        for (name, fact) in facts::ALL {
            // One address family is enough for all but the handshake.
            if *prefix == "shm_ipv6" && !name.starts_with("connecting::") {
                continue;
            }
            let name = format!("{prefix}::{name}");
            trials.push(match fixture {
                None => not_run(name),
                Some(fixture) => {
                    let fixture = fixture.clone();
                    Trial::test(name, move || {
                        fact(&fixture);
                        Ok(())
                    })
                }
            });
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A trial that is told as ignored, with the reason.
fn not_run(name: String) -> Trial {
    let reason = format!("needs RDMA devices ({DEVICES})");
    Trial::ignorable_test(name, || Ok(Completion::ignored_with(reason)))
}
