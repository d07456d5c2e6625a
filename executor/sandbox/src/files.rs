//! Landlock (landlock(7)): what this process may do with files and TCP, and to whom it may send signals, whatever user
//! it is. It holds for what it starts too.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rfaas_protocol::isolation::{Layer, Layers, NetworkPolicy, SandboxSettings};

use crate::error::{Error, failed};

/// Directories in which files may be written, made and removed, as far as their permissions allow it. In `/dev` there
/// is nothing but what belongs to everybody. Of `/proc`, what is of this process; a process that it starts has to do
/// without. The last is in a view the first.
const WRITABLE: [&str; 4] = ["/tmp", "/dev", "/proc/self", "/var/tmp"];

/// Puts on the layers of Landlock.
pub fn restrict(settings: &SandboxSettings) -> Result<(), Error> {
    let layers = settings.layers;
    let Some(first) = first_of(layers) else { return Ok(()) };
    let os = |what: &'static str| {
        move |error: landlock::RulesetError| failed(first, what)(io::Error::other(describe(&error)))
    };
    let mut rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if layers.has(Layer::LandlockFiles) {
        rules = rules.handle_access(AccessFs::from_all(ABI::V1)).map_err(os("files"))?;
        rules = rules.set_compatibility(CompatLevel::BestEffort);
        rules = rules.handle_access(AccessFs::from_all(ABI::V5)).map_err(os("files"))?;
        rules = rules.set_compatibility(CompatLevel::HardRequirement);
    }
    if layers.has(Layer::LandlockNetwork) && settings.network != NetworkPolicy::Host {
        rules = rules.handle_access(AccessNet::from_all(ABI::V4)).map_err(os("TCP"))?;
    }
    if layers.has(Layer::LandlockScopes) {
        // Not of abstract sockets: executors connect over them later. Then `close` takes all sockets away.
        rules = rules.scope(Scope::Signal).map_err(os("signals"))?;
    }
    let mut rules = rules.create().map_err(os("landlock_create_ruleset"))?;
    if layers.has(Layer::LandlockFiles) {
        rules = rules.set_compatibility(CompatLevel::BestEffort);
        rules = allow(rules, "/", AccessFs::from_read(ABI::V5))?;
        let own = if layers.has(Layer::View) { &WRITABLE[..3] } else { &WRITABLE[..] };
        for path in own {
            rules = allow(rules, path, AccessFs::from_all(ABI::V5))?;
        }
    }
    let status = rules.no_new_privs(false).restrict_self();
    let status = status.map_err(os("landlock_restrict_self"))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        let error = io::Error::from(io::ErrorKind::Unsupported);
        return Err(failed(first, "landlock_restrict_self")(error));
    }
    Ok(())
}

/// Returns the layer that an error is told of.
fn first_of(layers: Layers) -> Option<Layer> {
    let mine = [Layer::LandlockFiles, Layer::LandlockNetwork, Layer::LandlockScopes];
    mine.into_iter().find(|&layer| layers.has(layer))
}

/// Allows `access` to what is below `path`, if that is there.
fn allow(
    rules: landlock::RulesetCreated,
    path: &str,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, Error> {
    if !Path::new(path).exists() {
        return Ok(rules);
    }
    let failed = |error: String| {
        failed(Layer::LandlockFiles, format!("a rule for {path}"))(io::Error::other(error))
    };
    let below = PathFd::new(path).map_err(|error| failed(error.to_string()))?;
    rules.add_rule(PathBeneath::new(below, access)).map_err(|error| failed(describe(&error)))
}

/// Returns what an error says, with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
