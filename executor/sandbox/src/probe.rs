//! Which layers there are: each is tried in a child. A version number says less: a container, a security module or a
//! setting of the kernel can take a layer away.

use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use rfaas_protocol::isolation::{IsolationReport, Layer, Layers, MissingLayer, SandboxSettings};

use crate::attempt::attempt;
use crate::error::{Error, failed};
use crate::sandbox::Sandbox;
use crate::share::Share;

/// How executors are started, which decides what can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Cloned, each with namespaces of its own.
    Clone,
    /// Each by itself: it can enter namespaces, but not become the first process of one.
    Exec,
}

/// Share of an executor that is only tried.
const TRIED: Share = Share { memory: 16 << 20, base: 16 << 20, user: 0 };

/// Returns which of the wanted layers there are. To be called in a process with one thread.
pub fn probe(settings: &SandboxSettings, launch: Launch) -> IsolationReport {
    let mut probe = Probe { settings, found: Layers::NONE, missing: Vec::new() };
    for layer in settings.layers.iter() {
        match probe.look(layer, launch) {
            Ok(()) => probe.found.add(layer),
            Err(reason) => probe.missing.push(MissingLayer { layer, reason }),
        }
    }
    IsolationReport { active: probe.found, missing: probe.missing }
}

struct Probe<'a> {
    settings: &'a SandboxSettings,
    /// Layers that there are, of those that come first.
    found: Layers,
    missing: Vec<MissingLayer>,
}

impl Probe<'_> {
    fn look(&self, layer: Layer, launch: Launch) -> Result<(), String> {
        let needs = |other: Layer| {
            if self.found.has(other) { Ok(()) } else { Err(format!("needs {other}")) }
        };
        match layer {
            Layer::User if !geteuid().is_root() => Err("needs root".into()),
            Layer::UserNamespace if may_mount() => Err("not needed: this user may mount".into()),
            Layer::View => needs(Layer::MountNamespace).and_then(|()| self.put_on(layer)),
            Layer::PidNamespace if launch == Launch::Exec => {
                Err("an executor that is started by itself is not the first process of one".into())
            }
            Layer::PidNamespace => self.first_process(),
            Layer::IpcNamespace => self.enter_too(layer, CloneFlags::CLONE_NEWIPC),
            Layer::UtsNamespace => self.enter_too(layer, CloneFlags::CLONE_NEWUTS),
            Layer::Seccomp
            | Layer::LandlockFiles
            | Layer::LandlockNetwork
            | Layer::LandlockScopes
                if self.found.has(Layer::NoNewPrivileges) || may_mount() =>
            {
                self.put_on(layer)
            }
            Layer::Seccomp
            | Layer::LandlockFiles
            | Layer::LandlockNetwork
            | Layer::LandlockScopes => needs(Layer::NoNewPrivileges),
            _ => self.put_on(layer),
        }
    }

    /// A sandbox of `layer` and of what it stands on.
    fn with(&self, layer: Layer) -> Sandbox {
        let ground: &[Layer] = match layer {
            Layer::View => &[Layer::UserNamespace, Layer::MountNamespace],
            Layer::PidNamespace => &[Layer::UserNamespace, Layer::MountNamespace, Layer::View],
            Layer::MountNamespace | Layer::IpcNamespace | Layer::UtsNamespace => {
                &[Layer::UserNamespace]
            }
            _ => &[Layer::NoNewPrivileges],
        };
        let mut layers: Layers = ground.iter().copied().filter(|&l| self.found.has(l)).collect();
        layers.add(layer);
        Sandbox::new(SandboxSettings { layers, ..self.settings.clone() })
    }

    /// Puts `layer` on a child.
    fn put_on(&self, layer: Layer) -> Result<(), String> {
        let sandbox = self.with(layer);
        attempt(|| {
            let put_on = || {
                sandbox.enter()?;
                sandbox.furnish(&TRIED)?;
                sandbox.confine(&TRIED)?;
                sandbox.close(&TRIED)
            };
            put_on().map_err(|error| text(&error))
        })
    }

    /// Has a child enter one more namespace.
    fn enter_too(&self, layer: Layer, flag: CloneFlags) -> Result<(), String> {
        let sandbox = self.with(layer);
        attempt(|| {
            let enter = || {
                sandbox.enter()?;
                unshare(flag).map_err(failed(layer, "unshare"))
            };
            enter().map_err(|error| text(&error))
        })
    }

    /// Has a child of a child be the first process of a namespace, with its own `/proc`.
    fn first_process(&self) -> Result<(), String> {
        let layer = Layer::PidNamespace;
        let sandbox = self.with(layer);
        attempt(|| {
            let enter = || {
                sandbox.enter()?;
                unshare(CloneFlags::CLONE_NEWPID | mounts_of(&sandbox))
                    .map_err(failed(layer, "unshare(CLONE_NEWPID)"))
            };
            enter().map_err(|error: Error| text(&error))?;
            attempt(|| sandbox.furnish(&TRIED).map_err(|error| text(&error)))
        })
    }
}

fn mounts_of(sandbox: &Sandbox) -> CloneFlags {
    sandbox.namespaces() & CloneFlags::CLONE_NEWNS
}

/// Returns whether this process may make namespaces without one of users: it has CAP_SYS_ADMIN.
fn may_mount() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Returns what an error says without the layer, which the report has.
fn text(error: &Error) -> String {
    let source: &io::Error = &error.source;
    format!("{}: {source}", error.what)
}
