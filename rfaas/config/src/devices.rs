//! `devices.json`: the devices of a machine, so that programs are told no more than a name.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rdmalib::{Device, DeviceSpec, Provider};
use rfaas_protocol::channel::MOST_RECEIVES;
use serde::{Deserialize, Serialize};

use super::file::{ConfigError, File, Invalid, require};

/// The device database.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// The devices, each with its own name.
    pub devices: Vec<DeviceEntry>,
    /// Where it was read, for error messages.
    #[serde(skip)]
    path: PathBuf,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// Name; for verbs as `ibv_devices` prints it, free for shm and tcp.
    pub name: String,
    /// Address of the interface that belongs to the device.
    pub ip_address: IpAddr,
    /// Port on which a client listens for its executors; 0: any free one.
    #[serde(default)]
    pub port: u16,
    /// Largest payload, in bytes, that is sent inline; 0 disables inline data.
    #[serde(default)]
    pub max_inline_data: u32,
    /// Receives that a connection keeps posted; at least one.
    #[serde(default = "default_receives")]
    pub default_receive_buffer_size: u32,
    /// Which implementation drives it.
    #[serde(default = "verbs", with = "provider")]
    pub provider: Provider,
    /// For shm: the user, by name or number, that managers run as. Clients and executor managers then connect only to
    /// processes of this user, and send nothing to another that listens at a manager's address. `None`: to any process
    /// that listens there, as with TCP on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_user: Option<TrustedUser>,
}

/// A user of this machine, as a name or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TrustedUser {
    /// By its number.
    Id(u32),
    /// By its name; a text of digits is a number.
    Name(String),
}

impl TrustedUser {
    /// Returns its number. Fails if this machine does not know its name.
    pub fn id(&self) -> Result<u32, String> {
        let name = match self {
            TrustedUser::Id(id) => return Ok(*id),
            TrustedUser::Name(name) => name,
        };
        if let Ok(id) = name.parse() {
            return Ok(id);
        }
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("this machine has no user {name:?}")),
            Err(errno) => Err(format!("user {name:?} cannot be looked up: {errno}")),
        }
    }
}

/// An open device and its entry in the database.
#[derive(Clone)]
pub struct OpenDevice {
    /// The device.
    pub device: Device,
    /// Port and receives to use on it.
    pub entry: DeviceEntry,
    /// Number of its trusted user, if it has one.
    pub trusted_user: Option<u32>,
}

impl fmt::Debug for OpenDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenDevice({:?})", self.device)
    }
}

impl Devices {
    /// Makes a database that is in no file.
    pub fn new(devices: Vec<DeviceEntry>) -> Self {
        Devices { devices, path: "device database".into() }
    }

    /// Reads the database at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        Ok(Devices { path: path.to_owned(), ..Self::read(path)? })
    }

    /// Returns the entry of device `name`, as settings have it: one that is empty chooses [the only
    /// device](Self::only).
    pub fn get(&self, name: &str) -> Result<&DeviceEntry, ConfigError> {
        if name.is_empty() {
            return self.only();
        }
        self.devices.iter().find(|entry| entry.name == name).ok_or_else(|| {
            ConfigError::UnknownDevice {
                path: self.path.clone(),
                name: name.to_owned(),
                available: self.names(),
            }
        })
    }

    /// Returns the entry of the only device. Fails unless there is exactly one.
    pub fn only(&self) -> Result<&DeviceEntry, ConfigError> {
        match &self.devices[..] {
            [only] => Ok(only),
            _ => Err(ConfigError::NoDeviceChosen {
                path: self.path.clone(),
                available: self.names(),
            }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.devices.iter().map(|entry| entry.name.clone()).collect()
    }

    /// Opens the only device. Fails unless there is exactly one.
    pub fn open_only(&self) -> Result<OpenDevice, ConfigError> {
        self.only()?.open()
    }

    /// Opens device `name`, found as by [`get`](Self::get).
    pub fn open(&self, name: &str) -> Result<OpenDevice, ConfigError> {
        self.get(name)?.open()
    }
}

impl DeviceEntry {
    /// Opens the device.
    pub fn open(&self) -> Result<OpenDevice, ConfigError> {
        let spec = DeviceSpec {
            name: self.name.clone(),
            provider: self.provider,
            ip_address: self.ip_address,
            max_inline_data: self.max_inline_data,
        };
        let trusted_user = self.trusted_user.as_ref().map(TrustedUser::id).transpose();
        let trusted_user = trusted_user.map_err(|reason| {
            let (device, provider) = (self.name.clone(), self.provider);
            let reason = format!("its trusted_user: {reason}");
            ConfigError::Open(rdmalib::Error::DeviceUnavailable { device, provider, reason })
        })?;
        let device = Device::open(&spec).map_err(ConfigError::Open)?;
        if self.provider == Provider::Shm && trusted_user.is_none() {
            tracing::debug!(
                device = self.name,
                "without a trusted_user, managers of any user are connected to"
            );
        }
        Ok(OpenDevice { device, entry: self.clone(), trusted_user })
    }
}

impl File for Devices {
    fn validate(&self) -> Result<(), Invalid> {
        for (i, entry) in self.devices.iter().enumerate() {
            let key = |name| format!("devices[{i}].{name}");
            require(!entry.name.is_empty(), &key("name"), "must not be empty")?;
            require(
                self.devices[..i].iter().all(|earlier| earlier.name != entry.name),
                &key("name"),
                &format!("device {:?} is listed twice", entry.name),
            )?;
            require(
                (1..=MOST_RECEIVES).contains(&entry.default_receive_buffer_size),
                &key("default_receive_buffer_size"),
                &format!("must be from 1 to {MOST_RECEIVES}"),
            )?;
            require(
                entry.trusted_user.is_none() || entry.provider == Provider::Shm,
                &key("trusted_user"),
                "is for provider \"shm\": elsewhere a peer is a machine, not a user",
            )?;
        }
        Ok(())
    }
}

/// Returns what the original's generator writes.
fn default_receives() -> u32 {
    32
}

fn verbs() -> Provider {
    Provider::Verbs
}

/// A provider as its name.
mod provider {
    use rdmalib::Provider;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(provider: &Provider, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(provider)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Provider, D::Error> {
        let name = String::deserialize(input)?;
        name.parse().map_err(|_| D::Error::unknown_variant(&name, &["verbs", "tcp", "shm"]))
    }
}
