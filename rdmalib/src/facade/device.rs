//! Devices: opening one chooses the provider of everything that is made from it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{CompletionQueue, Domain, Listener};
use crate::contract::Device as _;
use crate::process::Owned;
use crate::providers::{self, AnyDevice, each};
#[cfg(feature = "faults")]
use crate::types::Error;
use crate::types::{Capabilities, DeviceSpec, Limits, Provider, Result};

/// An open device. A cheap handle: clones refer to the same device, which closes with the last
/// object that was made from it.
#[derive(Clone)]
pub struct Device {
    spec: DeviceSpec,
    pub(crate) inner: Owned<AnyDevice>,
}

impl Device {
    /// Opens the device that `spec` describes.
    pub fn open(spec: &DeviceSpec) -> Result<Device> {
        #[cfg(feature = "faults")]
        crate::faults::read_environment().map_err(|error| Error::DeviceUnavailable {
            device: spec.name.clone(),
            provider: spec.provider,
            reason: error.to_string(),
        })?;
        Ok(Device { spec: spec.clone(), inner: Owned::new(providers::open(spec)?) })
    }

    /// Returns the entry that the device was opened from.
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// Returns its name in the device database.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Returns which implementation drives it.
    pub fn provider(&self) -> Provider {
        self.spec.provider
    }

    /// Returns the address that listeners bind and connections come from.
    pub fn ip_address(&self) -> IpAddr {
        self.spec.ip_address
    }

    /// Returns how much it takes.
    pub fn limits(&self) -> Limits {
        each!(&*self.inner, device => device.limits())
    }

    /// Returns how it differs from devices of other providers.
    pub fn capabilities(&self) -> Capabilities {
        each!(&*self.inner, device => device.capabilities())
    }

    /// Makes a protection domain: regions and queue pairs of one domain belong together, and a peer
    /// reaches only the regions of the domain whose queue pair it is connected to.
    pub fn domain(&self) -> Result<Domain> {
        Domain::new(self)
    }

    /// Makes a protection domain whose memory does not grow: for regions and queue pairs that need
    /// `bytes` bytes at most, each region and each queue pair's receives in whole pages. Where
    /// peers share the domain's memory ([`Capabilities::shares_domain_memory`]), none of them can
    /// make it larger; elsewhere it is a domain like any other.
    pub fn fixed_domain(&self, bytes: usize) -> Result<Domain> {
        Domain::fixed(self, bytes)
    }

    /// Makes a completion queue for up to `capacity` entries: the sum of the depths of all queues
    /// that complete into it.
    pub fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        CompletionQueue::new(self, capacity)
    }

    /// Listens for connections at this device's address. `port` 0 chooses a free one, which
    /// [`Listener::local_addr`] returns.
    pub fn listen(&self, port: u16) -> Result<Listener> {
        Listener::new(self, SocketAddr::new(self.spec.ip_address, port))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {}, {})", self.name(), self.provider(), self.ip_address())
    }
}
