//! Devices: the choice between providers is made here, once, when a device is opened.

use std::{fmt, net::IpAddr, net::SocketAddr, str::FromStr};

use crate::completion::CompletionQueue;
use crate::connection::Listener;
use crate::error::{Error, Result};
use crate::memory::Domain;
use crate::process::Owned;
use crate::{shm, verbs};

/// Which implementation drives a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// libibverbs and librdmacm: InfiniBand, RoCE, SoftRoCE.
    Verbs,
    /// The embedded device: shared memory between processes of one host.
    Shm,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Verbs => "verbs",
            Provider::Shm => "shm",
        })
    }
}

impl FromStr for Provider {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "verbs" => Ok(Provider::Verbs),
            "shm" => Ok(Provider::Shm),
            _ => Err(Error::InvalidArgument("provider is neither \"verbs\" nor \"shm\"")),
        }
    }
}

/// What is needed to open a device: one entry of the device database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Name; for verbs as `ibv_devices` prints it, free for shm.
    pub name: String,
    /// Which implementation opens it.
    pub provider: Provider,
    /// Address of the interface that belongs to the device: where listeners bind, from where
    /// connections go out. On shm only a name: all processes of one network namespace that use the
    /// same address and port meet.
    pub ip_address: IpAddr,
    /// Largest inline payload to ask of the device, in bytes; 0 disables inline data.
    pub max_inline_data: u32,
}

/// What a device can do; requests beyond it are refused with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest inline payload, in bytes.
    pub max_inline_data: u32,
    /// Most work requests that one send or receive queue holds.
    pub max_queue_depth: u32,
    /// Most entries of one completion queue.
    pub max_completion_entries: u32,
}

/// An open device. A cheap handle: clones refer to the same device, which closes with the last
/// object that was made from it.
#[derive(Clone)]
pub struct Device {
    spec: DeviceSpec,
    pub(crate) inner: Owned<Inner>,
}

/// The one place where a provider is chosen.
#[derive(Clone, Debug)]
pub(crate) enum Inner {
    Shm(shm::Device),
    Verbs(verbs::Device),
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
        let inner = match spec.provider {
            Provider::Shm => Inner::Shm(shm::Device::open(spec)?),
            Provider::Verbs => Inner::Verbs(verbs::Device::open(spec)?),
        };
        Ok(Device { spec: spec.clone(), inner: Owned::new(inner) })
    }

    /// The entry that the device was opened from.
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// Name in the device database.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Which implementation drives it.
    pub fn provider(&self) -> Provider {
        self.spec.provider
    }

    /// Address that listeners bind and connections come from.
    pub fn ip_address(&self) -> IpAddr {
        self.spec.ip_address
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        match &*self.inner {
            Inner::Shm(device) => device.limits(),
            Inner::Verbs(device) => device.limits(),
        }
    }

    /// A new protection domain: regions and queue pairs of one domain belong together, and a peer
    /// reaches only the regions of the domain whose queue pair it is connected to.
    pub fn domain(&self) -> Result<Domain> {
        Domain::new(self)
    }

    /// A protection domain whose memory does not grow: for regions and queue pairs that need
    /// `bytes` bytes at most, each its region or its receives, in whole pages. On the embedded
    /// device peers share the domain's memory, and so none of them can make it larger; where peers
    /// cannot, it is a domain like any other.
    pub fn fixed_domain(&self, bytes: usize) -> Result<Domain> {
        Domain::fixed(self, bytes)
    }

    /// A completion queue for up to `capacity` entries: the sum of the depths of all queues that
    /// complete into it.
    pub fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        CompletionQueue::new(self, capacity)
    }

    /// Listens for connections at this device's address. `port` 0 chooses a free one, which
    /// [`Listener::local_addr`] tells.
    pub fn listen(&self, port: u16) -> Result<Listener> {
        Listener::new(self, SocketAddr::new(self.spec.ip_address, port))
    }
}
