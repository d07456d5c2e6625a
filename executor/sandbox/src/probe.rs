//! Which layers there are: each is tried in a child, and then all of them together. A version number says less: a
//! container, a security module or a setting of the kernel can take a layer away.
//!
//! * What is reported can be put on, all of it. Where two layers exclude each other, the one that fails when all are
//!   put on is left out: root without CAP_SYS_ADMIN needs a user namespace, in which it may not change users, so that
//!   has no `user`.
//! * What could not be tried is not reported as missing: there is no report then.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use rfaas_protocol::isolation::{IsolationReport, Layer, Layers, MissingLayer, SandboxSettings};

use crate::attempt::{Failure, attempt};
use crate::error::{Error, failed};
use crate::sandbox::{NAMESPACES, Sandbox};
use crate::share::Share;

/// How executors are started, which decides what can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Cloned, each with namespaces of its own.
    Clone,
    /// Each by itself: it can enter namespaces, but not become the first process of one.
    Exec,
}

/// Why it is not known which layers there are.
#[derive(Debug, thiserror::Error)]
#[error("cannot try layers of isolation: {0}")]
pub struct ProbeError(String);

/// Share of an executor that is only tried.
const TRIED: Share = Share { memory: 16 << 20, base: 16 << 20 };

/// Returns which of the wanted layers there are. To be called in a process with one thread.
pub fn probe(settings: &SandboxSettings, launch: Launch) -> Result<IsolationReport, ProbeError> {
    let mut probe = Probe { settings, launch, found: Layers::NONE, missing: Vec::new() };
    for layer in settings.layers.iter() {
        match probe.look(layer) {
            Ok(()) => probe.found.add(layer),
            Err(Failure::Refused(reason)) => probe.missing.push(MissingLayer { layer, reason }),
            Err(Failure::NotTried(reason)) => return Err(ProbeError(format!("{layer}: {reason}"))),
        }
    }
    probe.put_all_on()?;
    Ok(IsolationReport { active: probe.found, missing: probe.missing })
}

struct Probe<'a> {
    settings: &'a SandboxSettings,
    launch: Launch,
    /// Layers that there are, of those that come first.
    found: Layers,
    missing: Vec<MissingLayer>,
}

impl Probe<'_> {
    fn look(&self, layer: Layer) -> Result<(), Failure> {
        let refused = |reason: &str| Err(Failure::Refused(reason.into()));
        if let Some(other) = ground_of(layer).filter(|&other| !self.found.has(other)) {
            return refused(&format!("needs {other}"));
        }
        match layer {
            Layer::ControlGroup => refused("the executor manager makes it"),
            Layer::User if !geteuid().is_root() => refused("needs root"),
            Layer::UserNamespace if may_mount() => refused("not needed: this user may mount"),
            Layer::PidNamespace if self.launch == Launch::Exec => {
                refused("an executor that is started by itself is not the first process of one")
            }
            Layer::PidNamespace => self.first_process(),
            Layer::IpcNamespace => self.enter_too(layer, CloneFlags::CLONE_NEWIPC),
            Layer::UtsNamespace => self.enter_too(layer, CloneFlags::CLONE_NEWUTS),
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
        self.sandbox(layers)
    }

    fn sandbox(&self, layers: Layers) -> Sandbox {
        Sandbox::new(SandboxSettings { layers, ..self.settings.clone() })
    }

    /// Puts `layer` on a child.
    fn put_on(&self, layer: Layer) -> Result<(), Failure> {
        let sandbox = self.with(layer);
        attempt(|| put_on(&sandbox).map_err(|error| failure(&error)))
    }

    /// Has a child enter one more namespace.
    fn enter_too(&self, layer: Layer, flag: CloneFlags) -> Result<(), Failure> {
        let sandbox = self.with(layer);
        attempt(|| {
            let entered = sandbox.enter().and_then(|()| enter(layer, flag));
            entered.map_err(|error| failure(&error))
        })
    }

    /// Has a child of a child be the first process of a namespace, with its own `/proc`.
    fn first_process(&self) -> Result<(), Failure> {
        let sandbox = self.with(Layer::PidNamespace);
        attempt(|| {
            let entered = sandbox.enter().and_then(|()| {
                enter(Layer::PidNamespace, CloneFlags::CLONE_NEWPID | mounts_of(&sandbox))
            });
            entered.map_err(|error| failure(&error))?;
            attempt(|| sandbox.furnish(None).map_err(|error| failure(&error)))
        })
    }

    /// Puts all that was found on a child, as it is put on an executor. Leaves out what fails, and what needs that,
    /// until the rest can be put on.
    fn put_all_on(&mut self) -> Result<(), ProbeError> {
        loop {
            let told = match self.start() {
                Ok(()) => return Ok(()),
                Err(Failure::NotTried(reason)) => return Err(ProbeError(reason)),
                Err(Failure::Refused(told)) => told,
            };
            let (name, reason) = told.split_once(": ").unwrap_or_default();
            let layer = name.parse().ok().filter(|&layer| self.found.has(layer));
            let Some(layer) = layer else { return Err(ProbeError(told)) };
            self.leave_out(layer, format!("not together with the others: {reason}"));
        }
    }

    /// Confines a child as an executor is. A failure begins with the layer that could not be put on.
    fn start(&self) -> Result<(), Failure> {
        let sandbox = self.sandbox(self.found);
        let told = |error: Error| Failure::of(error.source.raw_os_error(), error.to_string());
        attempt(|| {
            if self.launch == Launch::Exec {
                return put_on(&sandbox).map_err(told);
            }
            sandbox.enter().map_err(told)?;
            for (layer, flag) in NAMESPACES {
                if self.found.has(layer) {
                    enter(layer, flag).map_err(told)?;
                }
            }
            attempt(|| put_on_entered(&sandbox).map_err(told))
        })
    }

    fn leave_out(&mut self, layer: Layer, reason: String) {
        self.found.remove(layer);
        self.missing.push(MissingLayer { layer, reason });
        while let Some(other) = self.found.iter().find(|&other| ground_of(other) == Some(layer)) {
            self.leave_out(other, format!("needs {layer}"));
        }
    }
}

/// Returns the layer without which `layer` is not to be had by this user.
fn ground_of(layer: Layer) -> Option<Layer> {
    match layer {
        Layer::View => Some(Layer::MountNamespace),
        _ if may_mount() => None,
        Layer::MountNamespace | Layer::PidNamespace | Layer::IpcNamespace | Layer::UtsNamespace => {
            Some(Layer::UserNamespace)
        }
        Layer::Seccomp | Layer::LandlockFiles | Layer::LandlockNetwork | Layer::LandlockScopes => {
            Some(Layer::NoNewPrivileges)
        }
        _ => None,
    }
}

fn put_on(sandbox: &Sandbox) -> Result<(), Error> {
    sandbox.enter()?;
    put_on_entered(sandbox)
}

fn put_on_entered(sandbox: &Sandbox) -> Result<(), Error> {
    sandbox.furnish(Some(TRIED.memory))?;
    sandbox.confine(0)?;
    sandbox.fit(&TRIED)?;
    sandbox.close(&TRIED)
}

fn enter(layer: Layer, namespaces: CloneFlags) -> Result<(), Error> {
    unshare(namespaces).map_err(failed(layer, "unshare"))
}

fn mounts_of(sandbox: &Sandbox) -> CloneFlags {
    sandbox.namespaces() & CloneFlags::CLONE_NEWNS
}

/// Returns whether this process may make namespaces without one of users: it has CAP_SYS_ADMIN.
fn may_mount() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Returns why a layer is not put on, without its name, which the report has.
fn failure(error: &Error) -> Failure {
    let source = &error.source;
    Failure::of(source.raw_os_error(), format!("{}: {source}", error.what))
}
