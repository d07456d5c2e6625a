//! Isolation of executors: the names of its layers, what an operator may choose, and what a node has.
//!
//! A node says with a set of [`Layers`] what its executors are isolated by. What each layer does is in the crate
//! `rfaas_sandbox`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Private memory of an executor before its share, in bytes: its program, libraries and their heaps.
pub const OWN_MEMORY: u64 = 128 << 20;
/// Processes and threads of one user, which is one executor: as many as a node has cores several times, and few enough
/// that the node goes on while they spin.
pub const MAX_TASKS: u64 = 1024;

/// Defines the layers, each with its bit on the wire and its name in settings and answers.
macro_rules! layers {
    ($($(#[$doc:meta])* $bit:literal => $variant:ident $name:literal,)*) => {
        /// One means of isolation. A kernel, a container or a user may lack it, so each is tried at the start.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Layer { $($(#[$doc])* $variant = $bit,)* }

        impl Layer {
            /// All layers, in the order in which they are put on.
            pub const ALL: &'static [Layer] = &[$(Layer::$variant,)*];

            /// Returns its name in settings, answers and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Layer::$variant => $name,)* }
            }
        }
    };
}

layers! {
    /// A user id of its own for each executor; needs root.
    0 => User "user",
    /// A user namespace, in which an ordinary user may make the other ones.
    1 => UserNamespace "user_namespace",
    /// A mount namespace.
    2 => MountNamespace "mount_namespace",
    /// Sees the system's directories, read-only, those of the operator, and a private bounded `/tmp`.
    3 => View "view",
    /// A process id namespace: sees no process but its own, and all of them end with it.
    4 => PidNamespace "pid_namespace",
    /// A namespace of System V and POSIX message queues, semaphores and shared memory.
    5 => IpcNamespace "ipc_namespace",
    /// A host name that it can change for nobody else.
    6 => UtsNamespace "uts_namespace",
    /// No capabilities.
    7 => Capabilities "capabilities",
    /// No program gives it rights that it has not.
    8 => NoNewPrivileges "no_new_privileges",
    /// Neither its memory nor its descriptors are open to others, and it leaves no core file.
    9 => NotDumpable "not_dumpable",
    /// Limits of memory, processes, file sizes, priorities.
    10 => Limits "limits",
    /// Landlock: writes no file outside `/tmp`, wherever a path leads.
    11 => LandlockFiles "landlock_files",
    /// Landlock: neither binds nor connects TCP sockets, unless its network is the host's.
    12 => LandlockNetwork "landlock_network",
    /// Landlock: sends no signal to processes that are not its own.
    13 => LandlockScopes "landlock_scopes",
    /// System calls that no function needs fail.
    14 => Seccomp "seccomp",
    /// A control group: memory, processes and processors of all its processes together.
    15 => ControlGroup "control_group",
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Layer::ALL.iter().copied().find(|layer| layer.name() == name);
        found.ok_or_else(|| {
            let all: Vec<_> = Layer::ALL.iter().map(|layer| layer.name()).collect();
            format!("no layer is named {name:?}; there are {}", all.join(", "))
        })
    }
}

impl Serialize for Layer {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Layers(u32);

impl Layers {
    /// No layer.
    pub const NONE: Layers = Layers(0);

    /// Returns all layers.
    pub fn all() -> Layers {
        Layer::ALL.iter().copied().collect()
    }

    /// Returns whether `layer` is among them.
    pub const fn has(self, layer: Layer) -> bool {
        self.0 & 1 << layer as u8 != 0
    }

    /// Adds `layer`.
    pub const fn add(&mut self, layer: Layer) {
        self.0 |= 1 << layer as u8;
    }

    /// Takes `layer` out.
    pub const fn remove(&mut self, layer: Layer) {
        self.0 &= !(1 << layer as u8);
    }

    /// Returns whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns them one by one, in the order in which they are put on.
    pub fn iter(self) -> impl Iterator<Item = Layer> {
        Layer::ALL.iter().copied().filter(move |&layer| self.has(layer))
    }

    /// Returns the wire form: one bit for each.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Reads the wire form. Layers that only a later release knows are left out.
    pub fn from_bits(bits: u32) -> Layers {
        Layers(bits & Layers::all().0)
    }
}

impl FromIterator<Layer> for Layers {
    fn from_iter<I: IntoIterator<Item = Layer>>(layers: I) -> Self {
        let mut set = Layers::NONE;
        layers.into_iter().for_each(|layer| set.add(layer));
        set
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Layer::name).collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(", ")) }
    }
}

impl Serialize for Layers {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<Layer>::deserialize(from)?.into_iter().collect())
    }
}

/// Which sockets functions may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPolicy {
    /// None.
    None,
    /// Those with which the kernel is asked about RDMA devices and routes (netlink).
    Rdma,
    /// All.
    Host,
}

/// User ids for executors: one for each that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Default for UserRange {
    /// Ids that others do not give away: beyond those of sssd (up to 2,000,200,000 by default) and of containers
    /// (systemd-nspawn, subuid(5)), below the foreign ones of systemd (from 2,147,352,576).
    fn default() -> Self {
        UserRange { first: 2_100_000_000, count: 65_536 }
    }
}

/// How the executors of a node are isolated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSettings {
    /// Layers to put on.
    pub layers: Layers,
    /// What executors see besides the system's directories.
    pub view: Vec<PathBuf>,
    /// Their user ids, if the manager is root.
    pub users: UserRange,
    /// Their sockets.
    pub network: NetworkPolicy,
    /// They use RDMA devices.
    pub rdma: bool,
}

/// Which layers a node has, and why not the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IsolationReport {
    /// What executors are isolated by.
    pub active: Layers,
    /// Layers that were wanted, tried, and are not to be had.
    pub missing: Vec<MissingLayer>,
}

/// What an executor finds in a container: who started that compares it with what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainedReport {
    /// Which of the layers that an executor puts on by itself are to be had there.
    pub own: IsolationReport,
    /// Its namespaces, as `/proc/self/ns` names them.
    pub namespaces: BTreeMap<String, PathBuf>,
    /// Its root directory cannot be written.
    pub root_is_read_only: bool,
    /// Its user id.
    pub user: u32,
    /// Most memory of its control group, in bytes, if that is limited.
    pub memory_limit: Option<u64>,
}

/// A layer that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingLayer {
    /// The layer.
    pub layer: Layer,
    /// Why not.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_name_everywhere() {
        for &layer in Layer::ALL {
            assert_eq!(layer.name().parse::<Layer>().unwrap(), layer);
            assert_eq!(serde_json::to_value(layer).unwrap(), layer.name());
            assert_eq!(serde_json::from_value::<Layer>(layer.name().into()).unwrap(), layer);
        }
        let error = "namespaces".parse::<Layer>().unwrap_err();
        assert!(error.contains("namespaces") && error.contains("pid_namespace"), "{error}");
    }

    #[test]
    fn a_set_of_layers_travels_as_bits_and_unknown_ones_are_left_out() {
        let some: Layers = [Layer::User, Layer::Seccomp].into_iter().collect();
        assert_eq!(some.bits(), 1 | 1 << 14);
        assert_eq!(Layers::from_bits(some.bits() | 1 << 31), some);
        assert_eq!(Layers::all().iter().count(), Layer::ALL.len());
        assert_eq!(some.to_string(), "user, seccomp");
        assert_eq!(Layers::NONE.to_string(), "none");
        assert_eq!(serde_json::to_value(some).unwrap(), serde_json::json!(["user", "seccomp"]));
    }
}
