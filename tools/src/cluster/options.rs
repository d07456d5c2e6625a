//! What a cluster on this machine is to be like.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use crate::binaries::Binaries;

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cores that its node leases out; need not be those of this machine.
    pub cores: u32,
    /// Memory that its node leases out, in MB.
    pub memory: u32,
    /// Whether there is a resource manager.
    pub resource_manager: bool,
    /// Whether workers are pinned to CPUs.
    pub pin_threads: bool,
    /// Whether the managers sleep while there is nothing to do.
    pub rdma_sleep: bool,
    /// The cluster secret.
    pub secret: u32,
    /// Name of the node.
    pub node: String,
    /// Address of the embedded device, IPv4 or IPv6; on it an address is only a name. Not used on the devices
    /// that the environment names ([`test_devices`](crate::test_devices)).
    pub address: IpAddr,
    /// Largest message that is sent inline, in bytes.
    pub max_inline_data: u32,
    /// Where the programs are.
    pub binaries: Binaries,
    /// `PATH` of the executor manager, which starts `executor` from it; by default the binaries' directory
    /// in front of ours.
    pub executor_path: Option<OsString>,
}

impl Default for Options {
    /// A node of two cores and 1024 MB, sleeping managers, a resource manager.
    fn default() -> Self {
        Options {
            cores: 2,
            memory: 1024,
            resource_manager: true,
            pin_threads: false,
            rdma_sleep: true,
            secret: 42,
            node: "local-node".into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            max_inline_data: 0,
            binaries: Binaries::beside_this_program(),
            executor_path: None,
        }
    }
}
