//! The devices that local clusters and tests run on: the embedded one, the one of [`PROVIDER`], or those that
//! [`VARIABLE`] names.
//!
//! ```text
//!   RFAAS_TEST_PROVIDER=tcp                                                     (all on one device at loopback)
//!   RDMA_TEST_DEVICES="rxe0=192.168.77.1 rxe1=192.168.77.2"
//!     clients ───────────▶ rxe0       rxe1 ◀─────── managers and executors       (one device: all on it)
//! ```
//! Elsewhere: finding the devices of a machine (`rdma_devices`), a machine that has such devices (`tools/rdma-vm`).

use std::env;
use std::net::IpAddr;
use std::time::Duration;

use rdmalib::Provider;
use rfaas_config::{DeviceEntry, Devices};

use crate::settings::DEVICE;

/// Environment variable with one or two RDMA devices, `NAME=ADDRESS`, apart by a blank.
pub const VARIABLE: &str = "RDMA_TEST_DEVICES";

/// Environment variable with the provider of the device at loopback: `shm`, as without it, or `tcp`.
pub const PROVIDER: &str = "RFAAS_TEST_PROVIDER";

/// How much longer than on the embedded device everything may take on RDMA devices: they may be software in an
/// emulated machine, where a millisecond of computing takes twenty.
const PATIENCE: u32 = 5;
/// Receives that a connection keeps posted, as the shipped device database has it.
const RECEIVES: u32 = 32;

/// A device for clients and one for managers and executors; they may be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestDevices {
    /// Where clients are.
    pub client: DeviceEntry,
    /// Where managers and executors are.
    pub server: DeviceEntry,
}

/// A variable is set, but names no devices.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadVariable {
    /// [`VARIABLE`].
    #[error(
        "{VARIABLE}={0:?}: expected are one or two devices as in \"rxe0=192.168.77.1 rxe1=192.168.77.2\""
    )]
    Devices(String),
    /// [`PROVIDER`].
    #[error("{PROVIDER}={0:?}: expected is \"shm\" or \"tcp\"")]
    Provider(String),
}

impl TestDevices {
    /// Returns the devices of the environment, or the embedded device at `address`.
    pub fn chosen(address: IpAddr) -> Result<Self, BadVariable> {
        if let Some(list) = env::var_os(VARIABLE) {
            return Self::parse(&list.to_string_lossy());
        }
        match env::var_os(PROVIDER) {
            None => Ok(Self::embedded(address)),
            Some(provider) => Self::local(&provider.to_string_lossy(), address),
        }
    }

    /// A device of `provider` at `address`, a loopback address, for both.
    fn local(provider: &str, address: IpAddr) -> Result<Self, BadVariable> {
        match provider {
            "shm" => Ok(Self::embedded(address)),
            "tcp" => {
                let device = entry("tcp0", Provider::Tcp, address);
                Ok(TestDevices { client: device.clone(), server: device })
            }
            _ => Err(BadVariable::Provider(provider.to_owned())),
        }
    }

    /// The embedded device for both, with the name that the shipped configuration has for it.
    pub fn embedded(address: IpAddr) -> Self {
        let device = entry(DEVICE, Provider::Shm, address);
        TestDevices { client: device.clone(), server: device }
    }

    fn parse(list: &str) -> Result<Self, BadVariable> {
        let device = |word: &str| {
            let (name, address) = word.split_once('=')?;
            (!name.is_empty()).then_some(())?;
            Some(entry(name, Provider::Verbs, address.parse().ok()?))
        };
        let devices: Option<Vec<_>> = list.split_whitespace().map(device).collect();
        match devices.as_deref() {
            Some([both]) => Ok(TestDevices { client: both.clone(), server: both.clone() }),
            Some([client, server]) => {
                Ok(TestDevices { client: client.clone(), server: server.clone() })
            }
            _ => Err(BadVariable::Devices(list.to_owned())),
        }
    }

    /// The same with messages of up to `bytes` sent inline.
    #[must_use]
    pub fn max_inline_data(mut self, bytes: u32) -> Self {
        self.client.max_inline_data = bytes;
        self.server.max_inline_data = bytes;
        self
    }

    /// What drives them.
    pub fn provider(&self) -> Provider {
        self.client.provider
    }

    /// Device database of the clients' machine.
    pub fn client_database(&self) -> Devices {
        Devices::new(vec![self.client.clone()])
    }

    /// Device database of the managers' machine.
    pub fn server_database(&self) -> Devices {
        Devices::new(vec![self.server.clone()])
    }
}

fn entry(name: &str, provider: Provider, ip_address: IpAddr) -> DeviceEntry {
    DeviceEntry {
        name: name.to_owned(),
        ip_address,
        port: 0,
        max_inline_data: 0,
        default_receive_buffer_size: RECEIVES,
        provider,
        trusted_user: None,
    }
}

/// Whether [`VARIABLE`] is set: tests then run on RDMA devices.
pub fn are_rdma() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// The longest wait for something that takes less than `time` on the embedded device.
pub fn patience(time: Duration) -> Duration {
    if are_rdma() { time * PATIENCE } else { time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_on_the_first_device_and_managers_on_the_second() {
        let two = TestDevices::parse("rxe0=192.168.77.1  rxe1=192.168.77.2").unwrap();
        assert_eq!(two.client_database().get("").unwrap().name, "rxe0");
        assert_eq!(two.server_database().get("").unwrap().name, "rxe1");
        assert_eq!(two.server.ip_address.to_string(), "192.168.77.2");
        assert_eq!(two.provider(), Provider::Verbs);
        let one = TestDevices::parse("mlx5_0=fd00::1").unwrap();
        assert_eq!(one.client, one.server);
        assert_eq!(one.max_inline_data(64).server.max_inline_data, 64);
    }

    #[test]
    fn a_provider_is_chosen_for_the_device_at_loopback() {
        let address: IpAddr = "127.0.0.9".parse().unwrap();
        assert_eq!(TestDevices::local("shm", address), Ok(TestDevices::embedded(address)));
        let tcp = TestDevices::local("tcp", address).unwrap();
        assert_eq!((tcp.provider(), tcp.server.ip_address), (Provider::Tcp, address));
        assert_eq!(tcp.client, tcp.server);
        let error = TestDevices::local("udp", address).unwrap_err().to_string();
        assert_eq!(error, "RFAAS_TEST_PROVIDER=\"udp\": expected is \"shm\" or \"tcp\"");
    }

    #[test]
    fn what_names_no_devices_is_reported_with_an_example() {
        for list in ["", "rxe0", "rxe0=", "=192.168.77.1", "rxe0=here", "a=::1 b=::2 c=::3"] {
            let error = TestDevices::parse(list).unwrap_err().to_string();
            assert!(error.starts_with("RDMA_TEST_DEVICES=\""), "{error}");
            assert!(error.contains("rxe0=192.168.77.1"), "{error}");
        }
    }
}
