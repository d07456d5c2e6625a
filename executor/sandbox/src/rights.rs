//! User, capabilities, new privileges, dumping: what this process is to the kernel.

use std::io;

use caps::CapSet;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rfaas_protocol::isolation::{Layer, Layers, SandboxSettings};

use crate::error::{Error, failed};

/// Empties the bounding set: no program that is started from now on gets a capability. What this process has stays.
pub fn bound(layers: Layers) -> Result<(), Error> {
    if layers.has(Layer::Capabilities) && holds(caps::Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding).map_err(caps_failed("emptying the bounding set"))?;
    }
    Ok(())
}

fn holds(capability: caps::Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Gives up all rights, in the order in which each step still has the right to be made.
pub fn drop_all(settings: &SandboxSettings, user: u32) -> Result<(), Error> {
    let layers = settings.layers;
    if layers.has(Layer::User) {
        become_user(settings, user)?;
    }
    if layers.has(Layer::Capabilities) {
        drop_capabilities()?;
    }
    if layers.has(Layer::NoNewPrivileges) {
        let layer = Layer::NoNewPrivileges;
        set_no_new_privs().map_err(failed(layer, "prctl(PR_SET_NO_NEW_PRIVS)"))?;
    }
    if layers.has(Layer::NotDumpable) {
        set_dumpable(false).map_err(failed(Layer::NotDumpable, "prctl(PR_SET_DUMPABLE)"))?;
    }
    Ok(())
}

/// Becomes the user of this number in the range, in the group of the same number and in no other.
fn become_user(settings: &SandboxSettings, number: u32) -> Result<(), Error> {
    let users = settings.users;
    let id = users.first.checked_add(number).filter(|_| number < users.count);
    let id = id.ok_or_else(|| {
        let what = format!("user {number} of {} from {}", users.count, users.first);
        failed(Layer::User, what)(io::Error::from(io::ErrorKind::InvalidInput))
    })?;
    setgroups(&[]).map_err(failed(Layer::User, "setgroups"))?;
    let group = Gid::from_raw(id);
    let gid = setresgid(group, group, group);
    gid.map_err(failed(Layer::User, format!("setresgid to {id}")))?;
    let user = Uid::from_raw(id);
    let uid = setresuid(user, user, user);
    uid.map_err(failed(Layer::User, format!("setresuid to {id}")))
}

/// Drops them from every set. That of ambient ones is emptied with them (capabilities(7)).
fn drop_capabilities() -> Result<(), Error> {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(caps_failed("capset"))?;
    }
    Ok(())
}

fn caps_failed(what: &'static str) -> impl FnOnce(caps::errors::CapsError) -> Error {
    move |error| failed(Layer::Capabilities, what)(io::Error::other(error.to_string()))
}
