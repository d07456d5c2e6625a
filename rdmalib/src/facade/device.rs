//! Devices: opening one chooses the provider of everything that is made from it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{CompletionQueue, Domain, Listener};
use crate::contract::Device as _;
use crate::process::{Owned, next_number};
use crate::providers::{self, AnyDevice, each, each_into};
#[cfg(feature = "faults")]
use crate::types::Error;
use crate::types::{Capabilities, DeviceSpec, Limits, Provider, Result};

/// An open device. A cheap handle: clones refer to the same device, which closes with the last
/// object that was made from it.
#[derive(Clone)]
pub struct Device {
    spec: DeviceSpec,
    /// The same in clones, and in all that is made from it.
    number: u32,
    pub(crate) inner: Owned<AnyDevice>,
}

impl Device {
    /// Opens the device that `spec` describes. Each call opens a device of its own: objects that are
    /// made from two do not fit together, even if they are of the same hardware.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`](crate::Error::DeviceUnavailable): it is not there or cannot be
    /// used; the text says why and what to do.
    /// [`Error::OutOfDescriptors`](crate::Error::OutOfDescriptors) or
    /// [`Error::Os`](crate::Error::Os): this process has no room for it.
    pub fn open(spec: &DeviceSpec) -> Result<Device> {
        #[cfg(feature = "faults")]
        crate::faults::read_environment().map_err(|error| Error::DeviceUnavailable {
            device: spec.name.clone(),
            provider: spec.provider,
            reason: error.to_string(),
        })?;
        let inner = Owned::new(providers::open(spec)?);
        Ok(Device { spec: spec.clone(), number: next_number(), inner })
    }

    /// Loads what devices of `provider` need in a process, and opens none: processes that are
    /// forked from this one have it.
    ///
    /// # Errors
    /// What is missing and what to do, in people's words.
    pub fn prepare(provider: Provider) -> std::result::Result<(), String> {
        providers::prepare(provider)
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
    /// reaches only the regions of the domain whose queue pair it is connected to. Its memory grows
    /// as it is used.
    ///
    /// # Errors
    /// Only for want of descriptors, memory or address space.
    pub fn domain(&self) -> Result<Domain> {
        self.inner.check()?;
        let inner = each_into!(&*self.inner, device => device.domain()?);
        Ok(Domain::new(self.number, inner))
    }

    /// Makes a protection domain for `bytes` bytes, which nobody can make larger. Where peers share
    /// the memory of a domain ([`Capabilities::shares_domain_memory`], the embedded device), a peer
    /// could otherwise make it use as much memory as the machine has. Elsewhere it is a domain like
    /// any other, and `bytes` is ignored.
    ///
    /// `bytes` is the sum of all regions and queue pairs, each in whole pages of 4096 bytes. A
    /// queue pair takes 144 bytes for each receive, their number rounded up to a power of two, and
    /// 384 more. Dropping a region gives its bytes back, dropping a queue pair does not. Memory
    /// that was never written takes none of the machine.
    ///
    /// # Errors
    /// As [`domain`](Self::domain), and [`Error::InvalidArgument`](crate::Error::InvalidArgument)
    /// if so much cannot be addressed. When it is full, [`Domain::allocate`] and
    /// [`QueuePair::new`](crate::QueuePair::new) return
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument); there may be room for somewhat
    /// more than `bytes`.
    pub fn fixed_domain(&self, bytes: usize) -> Result<Domain> {
        self.inner.check()?;
        let inner = each_into!(&*self.inner, device => device.fixed_domain(bytes)?);
        Ok(Domain::new(self.number, inner))
    }

    /// Makes a completion queue for up to `capacity` entries: the sum of the depths of all queues
    /// that complete into it. So it cannot overflow.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if `capacity` is 0 or beyond
    /// [`Limits::max_completion_entries`]; or for want of descriptors or memory.
    pub fn completion_queue(&self, capacity: u32) -> Result<CompletionQueue> {
        self.inner.check()?;
        let inner = each_into!(&*self.inner, device => device.completion_queue(capacity)?);
        Ok(CompletionQueue::new(self.number, inner))
    }

    /// Listens for connections at this device's address. `port` 0 chooses a free one.
    /// [`Listener::local_addr`] returns address and port. (If other programs have taken so many
    /// ports that it finds none, the embedded device also makes up an address.)
    ///
    /// # Errors
    /// [`Error::AddressInUse`](crate::Error::AddressInUse);
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an address that is none of its
    /// own (`0.0.0.0`, on shm); [`Error::Os`](crate::Error::Os).
    pub fn listen(&self, port: u16) -> Result<Listener> {
        self.inner.check()?;
        let addr = SocketAddr::new(self.spec.ip_address, port);
        let inner = each_into!(&*self.inner, device => device.listen(addr)?);
        Ok(Listener::new(self.number, inner))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {}, {})", self.name(), self.provider(), self.ip_address())
    }
}
