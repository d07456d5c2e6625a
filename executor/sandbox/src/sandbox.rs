//! All layers together, in the order in which each still has the right to be put on.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use rfaas_protocol::isolation::{Layer, SandboxSettings};

use crate::error::Error;
use crate::share::Share;
use crate::{files, limits, rights, syscalls, view};

/// Namespaces that each executor has of its own.
pub const NAMESPACES: [(Layer, CloneFlags); 4] = [
    (Layer::PidNamespace, CloneFlags::CLONE_NEWPID),
    (Layer::MountNamespace, CloneFlags::CLONE_NEWNS),
    (Layer::IpcNamespace, CloneFlags::CLONE_NEWIPC),
    (Layer::UtsNamespace, CloneFlags::CLONE_NEWUTS),
];

/// The layers of a node's executors.
#[derive(Debug)]
pub struct Sandbox {
    /// With the view's directories where they really are.
    settings: SandboxSettings,
    /// Names of these that lead there by links, and where they lead.
    links: Vec<(PathBuf, PathBuf)>,
    filters: syscalls::Filters,
}

impl Sandbox {
    /// Makes one with the layers of `settings`, which have to be there ([`probe`](crate::probe)).
    pub fn new(mut settings: SandboxSettings) -> Sandbox {
        let filters = syscalls::Filters::new(settings.network);
        let mut links = Vec::new();
        for path in &mut settings.view {
            if let Ok(real) = path.canonicalize()
                && real != *path
            {
                links.push((std::mem::replace(path, real.clone()), real));
            }
        }
        Sandbox { settings, links, filters }
    }

    /// Enters what all executors share: namespaces and view. Once, in a process that executors are forked from, or
    /// in an executor that was started by itself.
    pub fn enter(&self) -> Result<(), Error> {
        view::enter(&self.settings, &self.links)?;
        rights::bound(self.settings.layers)?;
        if self.settings.layers.has(Layer::Seccomp) { self.filters.deny_always() } else { Ok(()) }
    }

    /// Returns the namespaces that a process is to be cloned with: it is the first process of the executor's.
    pub fn namespaces(&self) -> CloneFlags {
        let wanted = NAMESPACES.into_iter().filter(|(layer, _)| self.settings.layers.has(*layer));
        wanted.fold(CloneFlags::empty(), |all, (_, flag)| all | flag)
    }

    /// Returns those of them that a process can enter before it clones another one that is to have them: nothing in
    /// them is of the process that enters.
    pub fn enterable_before(&self) -> CloneFlags {
        self.namespaces() & (CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
    }

    /// Gives this process, which was cloned with [`namespaces`](Sandbox::namespaces), its own `/proc` and `/tmp`, which
    /// holds `memory` bytes or, as long as that is not known, few.
    pub fn furnish(&self, memory: Option<u64>) -> Result<(), Error> {
        view::furnish(&self.settings, memory)
    }

    /// Has `/tmp` hold `memory` bytes. For a process of the same namespaces that has not dropped its rights.
    pub fn grow(&self, memory: u64) -> Result<(), Error> {
        view::grow(&self.settings, memory)
    }

    /// Drops rights: from now on this process is as little trusted as what it will load. It becomes `user` of the
    /// range, which is its number among the executors that run.
    pub fn confine(&self, user: u32) -> Result<(), Error> {
        let layers = self.settings.layers;
        if layers.has(Layer::Limits) {
            limits::set(&self.settings)?;
        }
        rights::drop_all(&self.settings, user)?;
        files::restrict(&self.settings)?;
        if layers.has(Layer::Seccomp) {
            self.filters.deny_making()?;
        }
        Ok(())
    }

    /// Limits the memory of this process to its share.
    pub fn fit(&self, share: &Share) -> Result<(), Error> {
        if self.settings.layers.has(Layer::Limits) {
            limits::set_memory(&self.settings, share)?;
        }
        Ok(())
    }

    /// Takes away what an executor needs only until it has connected: sockets, by the network policy, and files of
    /// any size. For all threads of this process.
    pub fn close(&self, share: &Share) -> Result<(), Error> {
        if self.settings.layers.has(Layer::Seccomp) {
            self.filters.deny_sockets()?;
        }
        if self.settings.layers.has(Layer::Limits) {
            limits::set_file_size(share)?;
        }
        Ok(())
    }
}
