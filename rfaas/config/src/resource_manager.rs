//! `resource_manager.json`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::{
    ConfigError, File, Invalid, RESOURCE_MANAGER_PORT, require, require_heartbeat, resolve,
};
use super::secret::{ClusterSecret, SecretValue};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::placement::Policy;

/// Settings of a resource manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceManagerConfig {
    /// All of them.
    pub config: ResourceManagerNode,
}

/// Where a resource manager listens and what it shares with the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceManagerNode {
    /// Name in the device database; empty: its only device.
    pub rdma_device: String,
    /// Port for clients and executor managers; 0: any free one.
    pub rdma_device_port: u16,
    /// IP address or name to serve HTTP at; unspecified (`0.0.0.0`): all interfaces.
    pub http_network_address: String,
    /// Other machines whose HTTP requests may change something.
    pub http_changes_from: Vec<AddressRange>,
    /// Port to serve HTTP at; 0: any free one.
    pub http_network_port: u16,
    /// Accepted, without effect.
    #[serde(rename = "rdma-threads")]
    pub rdma_threads: u32,
    /// Cluster secret that signs leases, unless it is elsewhere ([`ClusterSecret`]).
    #[serde(rename = "rdma-secret")]
    pub rdma_secret: SecretValue,
    /// File that has the cluster secret; empty: none.
    pub secret_file: String,
    /// Wait for events asleep; false: poll for them.
    #[serde(rename = "rdma-sleep")]
    pub rdma_sleep: bool,
    /// How often it and executor managers say something to each other, in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which they give each other up, in milliseconds.
    pub silence_ms: u32,
    /// How long an executor manager whose connection has ended may stay away before its leases end, in
    /// milliseconds.
    pub node_return_ms: u32,
    /// File that keeps nodes, leases and bills; empty: they are lost with the program.
    pub state_file: String,
    /// How long a lease lasts that nobody claims at its node, in milliseconds.
    pub claim_timeout_ms: u32,
    /// How leases are placed, until that is changed over HTTP.
    pub placement: Policy,
    /// What one client may hold at a time.
    pub limits: ClientLimits,
}

/// What one client may hold and ask for; `None`: as much as there is. Each limit holds for a client's name, and for the
/// user or machine that asks under whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientLimits {
    /// Cores of all its leases.
    pub cores: Option<u32>,
    /// Memory of all its leases, in MB.
    pub memory: Option<u32>,
    /// Leases.
    pub leases: Option<u32>,
    /// Leases that wait for their claim, with those that have waited in vain.
    pub unclaimed: u32,
    /// Time of a lease, also of a renewed one from then on, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Requests for leases in a second.
    pub requests_per_second: Option<u32>,
}

/// No limit but that of leases that nobody claims: eight of the largest requests at a time.
impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            cores: None,
            memory: None,
            leases: None,
            unclaimed: 256,
            timeout_ms: None,
            requests_per_second: None,
        }
    }
}

impl Default for ResourceManagerNode {
    fn default() -> Self {
        ResourceManagerNode {
            rdma_device: String::new(),
            rdma_device_port: RESOURCE_MANAGER_PORT,
            http_network_address: "127.0.0.1".into(),
            http_changes_from: Vec::new(),
            http_network_port: 5000,
            rdma_threads: 1,
            rdma_secret: SecretValue::default(),
            secret_file: String::new(),
            rdma_sleep: true,
            heartbeat_ms: 1000,
            silence_ms: 5000,
            node_return_ms: 1500,
            state_file: String::new(),
            claim_timeout_ms: 10_000,
            placement: Policy::default(),
            limits: ClientLimits::default(),
        }
    }
}

impl ResourceManagerConfig {
    /// Reads the settings at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }
}

impl ResourceManagerNode {
    /// Returns where to serve HTTP: the first of these that is an address of this machine.
    pub fn http_addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        resolve(&self.http_network_address, self.http_network_port)
    }

    /// Returns the cluster secret, from wherever it is configured.
    pub fn secret(&self) -> Result<ClusterSecret, ConfigError> {
        ClusterSecret::load(&self.rdma_secret, &self.secret_file)
    }

    /// Returns how long a lease lasts that nobody claims.
    pub fn claim_timeout(&self) -> Duration {
        Duration::from_millis(self.claim_timeout_ms.into())
    }

    /// Signs of life between it and executor managers.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat::from_ms(self.heartbeat_ms, self.silence_ms)
    }
}

impl File for ResourceManagerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        require_heartbeat(self.config.heartbeat_ms, self.config.silence_ms)?;
        require(
            self.config.claim_timeout_ms > 0,
            "config.claim_timeout_ms",
            "must be at least 1 (ms)",
        )?;
        let ClientLimits { cores, memory, leases, unclaimed, timeout_ms, requests_per_second } =
            self.config.limits;
        require(unclaimed > 0, "config.limits.unclaimed", "must be at least 1")?;
        for (key, limit) in [
            ("cores", cores.map(u64::from)),
            ("memory", memory.map(u64::from)),
            ("leases", leases.map(u64::from)),
            ("timeout_ms", timeout_ms),
            ("requests_per_second", requests_per_second.map(u64::from)),
        ] {
            let key = format!("config.limits.{key}");
            require(limit != Some(0), &key, "must be at least 1; leave it out for no limit")?;
        }
        require(
            !self.config.http_network_address.is_empty(),
            "config.http_network_address",
            "must not be empty; \"0.0.0.0\" serves all interfaces",
        )
    }
}

/// Addresses that begin alike: `192.168.0.0/24`, or one, `192.168.0.29`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: IpAddr,
    prefix_bits: u8,
}

impl AddressRange {
    /// Returns whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        // An IPv4 peer of an IPv6 socket is one of IPv4.
        let ((mine, bits), (other, other_bits)) = (bits(self.first), bits(address.to_canonical()));
        let beyond = bits - u32::from(self.prefix_bits);
        bits == other_bits && (mine ^ other).checked_shr(beyond).unwrap_or(0) == 0
    }
}

/// Bits before the IPv4 address in one of IPv6 that stands for it, `::ffff:192.168.0.29`.
const MAPPED_BITS: u8 = 96;

/// Returns an address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits().into(), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an IP address nor a range like 192.168.0.0/24");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (&*text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| wrong())?;
        let all: u8 = if first.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => all,
            Some(prefix) => prefix.parse().ok().filter(|bits| *bits <= all).ok_or_else(wrong)?,
        };
        // Peers with IPv4 addresses are told as such, also by an IPv6 socket: so are their ranges.
        match first {
            IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), prefix_bits.checked_sub(MAPPED_BITS)) {
                (Some(v4), Some(prefix_bits)) => Ok(AddressRange { first: v4.into(), prefix_bits }),
                (Some(v4), None) => Err(format!(
                    "{text:?} has addresses of IPv4 and IPv6: write a range of IPv4 like {v4}/24"
                )),
                (None, _) => Ok(AddressRange { first, prefix_bits }),
            },
            IpAddr::V4(_) => Ok(AddressRange { first, prefix_bits }),
        }
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        format!("{}/{}", range.first, range.prefix_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Result<AddressRange, String> {
        AddressRange::try_from(text.to_owned())
    }

    #[test]
    fn a_range_has_the_addresses_that_begin_alike() {
        for (text, inside, outside) in [
            ("192.168.0.29", "192.168.0.29", "192.168.0.28"),
            ("192.168.0.0/24", "192.168.0.255", "192.168.1.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
            ("::ffff:10.1.2.3", "::ffff:10.1.2.3", "::1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::1", "::1", "127.0.0.1"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("::/0", "::1", "1.2.3.4"),
        ] {
            let range = range(text).unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{inside} in {text}");
            assert!(!range.contains(outside.parse().unwrap()), "{outside} in {text}");
            assert_eq!(AddressRange::try_from(String::from(range)), Ok(range));
        }
        for wrong in ["", "node", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "fd00::/129", "/8"] {
            assert!(range(wrong).unwrap_err().contains("192.168.0.0/24"), "{wrong}");
        }
        let mixed = range("::ffff:10.0.0.0/90").unwrap_err();
        assert!(mixed.contains("range of IPv4 like 10.0.0.0/24"), "{mixed}");
    }
}
