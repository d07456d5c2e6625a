//! The device database of this machine: its RDMA devices, or the embedded one where there are none.
//!
//! What the kernel knows is read from `/sys/class/infiniband` (sysfs-class-infiniband, in the kernel's ABI
//! documentation), the addresses from getifaddrs(3). Only the inline limit needs the device itself.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rdmalib::Provider;
use rfaas_config::{DeviceEntry, Devices};

use testkit::DEVICE;

/// Receives that a connection keeps posted, as the original's generator wrote it.
const RECEIVES: u32 = 32;
/// Largest inline payload that is asked for, in bytes: what cards of today have at most. A request takes as
/// much room in its queue.
const MAX_INLINE_DATA: u32 = 1024;
const EMBEDDED_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The system does not give the facts.
    #[error("{what}: {source}")]
    Os {
        /// What was read.
        what: String,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A device that was asked for cannot be used.
    #[error("device {name:?} {reason}")]
    Unusable {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// A device as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FoundDevice {
    name: String,
    active: bool,
    interface: Option<String>,
}

/// The database of this machine: the active RDMA devices among `wanted` (all, if it is empty), or the embedded
/// device where the machine has none. `port` becomes each device's default port; 0: any free one.
pub fn scan(wanted: &[String], port: u16) -> Result<Devices, ScanError> {
    let found = devices_in(Path::new("/sys/class/infiniband"))?;
    let addresses = interface_addresses()?;
    let mut devices = select(wanted, port, &found, &addresses)?;
    for entry in &mut devices.devices {
        if entry.provider == Provider::Verbs {
            entry.max_inline_data = inline_limit(entry);
        }
    }
    Ok(devices)
}

/// Largest inline payload that the device gives a queue pair; 0, which always works, if it cannot be asked.
fn inline_limit(entry: &DeviceEntry) -> u32 {
    let asking = DeviceEntry { max_inline_data: MAX_INLINE_DATA, ..entry.clone() };
    match asking.open() {
        Ok(open) => open.device.limits().max_inline_data,
        Err(error) => {
            tracing::warn!("inline data is left off: {}", rfaas::describe(&error));
            0
        }
    }
}

fn select(
    wanted: &[String],
    port: u16,
    found: &[FoundDevice],
    addresses: &[(String, IpAddr)],
) -> Result<Devices, ScanError> {
    let mut entries = Vec::new();
    for device in found {
        let asked_for = wanted.contains(&device.name);
        if !asked_for && !wanted.is_empty() {
            continue;
        }
        match usable_address(device, addresses) {
            Ok(address) => {
                tracing::debug!(device = device.name, %address, "usable");
                entries.push(entry(&device.name, Provider::Verbs, address, port));
            }
            Err(reason) if asked_for => {
                return Err(ScanError::Unusable { name: device.name.clone(), reason });
            }
            Err(reason) => tracing::warn!(device = device.name, "left out: it {reason}"),
        }
    }
    for name in wanted {
        if name == DEVICE {
            entries.push(entry(DEVICE, Provider::Shm, EMBEDDED_ADDRESS, port));
        } else if !found.iter().any(|device| &device.name == name) {
            let names: Vec<_> = found.iter().map(|device| device.name.as_str()).collect();
            let reason = if names.is_empty() {
                format!("is not on this machine, which has no RDMA device; use {DEVICE:?}")
            } else {
                format!("is not on this machine, which has {}", names.join(", "))
            };
            return Err(ScanError::Unusable { name: name.clone(), reason });
        }
    }
    if entries.is_empty() {
        tracing::debug!("no active RDMA device: the embedded one is used");
        entries.push(entry(DEVICE, Provider::Shm, EMBEDDED_ADDRESS, port));
    }
    Ok(Devices::new(entries))
}

fn entry(name: &str, provider: Provider, ip_address: IpAddr, port: u16) -> DeviceEntry {
    DeviceEntry {
        name: name.to_owned(),
        ip_address,
        port,
        max_inline_data: 0, // until the device was asked
        default_receive_buffer_size: RECEIVES,
        provider,
        trusted_user: None,
    }
}

/// The address that connections to and from `device` use. A network interface may have several: IPv4 is
/// preferred, as the rest of a cluster most likely uses it, and of each kind the first, its primary one.
fn usable_address(device: &FoundDevice, addresses: &[(String, IpAddr)]) -> Result<IpAddr, String> {
    if !device.active {
        return Err("is not active (see `rdma link`)".into());
    }
    let Some(interface) = &device.interface else {
        return Err("has no network interface".into());
    };
    let mut of_interface: Vec<IpAddr> =
        addresses.iter().filter(|(name, _)| name == interface).map(|(_, ip)| *ip).collect();
    of_interface.sort_by_key(|ip| ip.is_ipv6()); // stable: the first stays the first
    let chosen = *of_interface
        .first()
        .ok_or_else(|| format!("has no IP address on its network interface {interface}"))?;
    if of_interface.len() > 1 {
        tracing::info!(device = device.name, %chosen, all = ?of_interface, "several addresses");
    }
    Ok(chosen)
}

/// The devices below `class`, by name; none where the kernel has no RDMA.
fn devices_in(class: &Path) -> Result<Vec<FoundDevice>, ScanError> {
    let mut names = match fs::read_dir(class) {
        Ok(list) => list
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    }
    .map_err(|source| ScanError::Os { what: class.display().to_string(), source })?;
    names.sort();
    Ok(names.into_iter().map(|name| device_at(&class.join(&name), name)).collect())
}

fn device_at(directory: &Path, name: String) -> FoundDevice {
    let mut ports = entries(&directory.join("ports"));
    ports.sort();
    // `4: ACTIVE`; a device is as active as its most active port.
    let port = ports.into_iter().find(|port| line(&port.join("state")).ends_with("ACTIVE"));
    let interface = port.as_ref().and_then(|port| {
        let by_port = line(&port.join("gid_attrs/ndevs/0"));
        (!by_port.is_empty()).then_some(by_port)
    });
    // A card without a GID of its interface yet (no carrier) still names it here.
    let interface = interface.or_else(|| {
        let first = entries(&directory.join("device/net")).into_iter().min()?;
        Some(first.file_name()?.to_string_lossy().into_owned())
    });
    FoundDevice { name, active: port.is_some(), interface }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The first line of a sysfs file; empty if there is none.
fn line(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Interfaces that are up and their addresses, in the kernel's order, without those that other nodes cannot use.
fn interface_addresses() -> Result<Vec<(String, IpAddr)>, ScanError> {
    let list = getifaddrs()
        .map_err(|errno| ScanError::Os { what: "getifaddrs".into(), source: errno.into() })?;
    Ok(list
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = address.as_sockaddr_in6().map(|v6| v6.ip());
            let v6 = v6.filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6);
            Some((interface.interface_name, v4.or(v6)?))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, active: bool, interface: &str) -> FoundDevice {
        FoundDevice { name: name.into(), active, interface: Some(interface.into()) }
    }

    fn names(devices: &Devices) -> Vec<&str> {
        devices.devices.iter().map(|device| device.name.as_str()).collect()
    }

    fn at(interface: &str, ip: &str) -> (String, IpAddr) {
        (interface.into(), ip.parse().unwrap())
    }

    #[test]
    fn a_machine_without_rdma_gets_the_embedded_device() {
        let devices = select(&[], 7, &[], &[at("eth0", "10.0.0.1")]).unwrap();
        assert_eq!(names(&devices), [DEVICE]);
        assert_eq!(devices.devices[0].provider, Provider::Shm);
        assert_eq!(devices.devices[0].port, 7);
    }

    #[test]
    fn the_first_ipv4_address_of_several_is_used() {
        let addresses = [
            at("lo", "127.0.0.1"),
            at("eth0", "fd00::1"),
            at("eth0", "10.0.0.1"),
            at("eth0", "10.0.0.2"),
        ];
        let devices = select(&[], 0, &[found("rxe0", true, "eth0")], &addresses).unwrap();
        assert_eq!(devices.devices[0].ip_address.to_string(), "10.0.0.1");
        let only_v6 = select(&[], 0, &[found("rxe0", true, "eth0")], &addresses[..2]).unwrap();
        assert_eq!(only_v6.devices[0].ip_address.to_string(), "fd00::1");
    }

    #[test]
    fn inactive_devices_are_left_out_unless_asked_for() {
        let all = [found("a", true, "eth0"), found("b", false, "eth0"), found("c", true, "eth1")];
        let addresses = [at("eth0", "10.0.0.1")];
        assert_eq!(names(&select(&[], 0, &all, &addresses).unwrap()), ["a"]);
        let error = select(&["b".into()], 0, &all, &addresses).unwrap_err().to_string();
        assert!(error.contains("\"b\" is not active"), "{error}");
        let error = select(&["c".into()], 0, &all, &addresses).unwrap_err().to_string();
        assert!(error.contains("no IP address on its network interface eth1"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_names_those_that_are() {
        let error = select(&["x".into()], 0, &[found("a", true, "eth0")], &[]).unwrap_err();
        assert_eq!(error.to_string(), "device \"x\" is not on this machine, which has a");
        assert!(select(&["x".into()], 0, &[], &[]).unwrap_err().to_string().contains("shm0"));
        assert_eq!(names(&select(&[DEVICE.into()], 0, &[], &[]).unwrap()), [DEVICE]);
    }

    #[test]
    fn devices_are_read_as_the_kernel_lists_them() {
        let class = tempfile::tempdir().unwrap();
        let port = class.path().join("rxe0/ports/1");
        fs::create_dir_all(port.join("gid_attrs/ndevs")).unwrap();
        fs::write(port.join("state"), "4: ACTIVE\n").unwrap();
        fs::write(port.join("gid_attrs/ndevs/0"), "eth0\n").unwrap();
        let card = class.path().join("mlx5_0");
        fs::create_dir_all(card.join("ports/1")).unwrap();
        fs::create_dir_all(card.join("device/net/ens1")).unwrap();
        fs::write(card.join("ports/1/state"), "1: DOWN\n").unwrap();
        let devices = devices_in(class.path()).unwrap();
        assert_eq!(devices, [found("mlx5_0", false, "ens1"), found("rxe0", true, "eth0")]);
        assert!(devices_in(&class.path().join("nothing")).unwrap().is_empty());
    }
}
