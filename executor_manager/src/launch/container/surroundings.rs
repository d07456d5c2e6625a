//! What isolates an executor in a container: measured in one, and compared with what this manager has. Pure, but for
//! that.

use std::fs;

use rfaas_protocol::isolation::{ContainedReport, IsolationReport, Layer, Layers, MissingLayer};

/// Layers that an executor puts on by itself. The others are the engine's.
pub const OWN: [Layer; 8] = [
    Layer::Capabilities,
    Layer::NoNewPrivileges,
    Layer::NotDumpable,
    Layer::Limits,
    Layer::LandlockFiles,
    Layer::LandlockNetwork,
    Layer::LandlockScopes,
    Layer::Seccomp,
];

/// Layers that are namespaces, by their names in `/proc/self/ns`.
const NAMESPACES: [(Layer, &str); 5] = [
    (Layer::UserNamespace, "user"),
    (Layer::MountNamespace, "mnt"),
    (Layer::PidNamespace, "pid"),
    (Layer::IpcNamespace, "ipc"),
    (Layer::UtsNamespace, "uts"),
];

/// What was found in a container.
#[derive(Debug)]
pub struct Found {
    /// All layers.
    pub report: IsolationReport,
    /// Those that the executor puts on by itself.
    pub own: Layers,
}

/// Returns what `inside` says, of a container for `user` with so much memory. What was not found there is missing,
/// whatever the engine was told.
pub fn found(inside: ContainedReport, user: Option<u32>, memory: u64) -> Found {
    let own = inside.own.active;
    let mut report = inside.own;
    let mut look = |layer, found: bool, reason: &str| match found {
        true => report.active.add(layer),
        false => report.missing.push(MissingLayer { layer, reason: reason.into() }),
    };
    let apart = |name: &str| {
        let own = fs::read_link(format!("/proc/self/ns/{name}"));
        inside.namespaces.get(name).is_some_and(|theirs| own.is_ok_and(|own| own != *theirs))
    };
    for (layer, name) in NAMESPACES {
        look(layer, apart(name), "the container shares that of the node");
    }
    let seen = apart("mnt") && inside.root_is_read_only;
    look(Layer::View, seen, "the root directory of the container can be written");
    let is_user = user.is_some_and(|user| user == inside.user);
    look(Layer::User, is_user, "all executors have the same user");
    let bounded = inside.memory_limit.is_some_and(|limit| limit <= memory);
    look(Layer::ControlGroup, bounded, "the engine has not limited the memory of the container");
    Found { report, own }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn inside() -> ContainedReport {
        let names = NAMESPACES.iter().map(|(_, name)| *name);
        ContainedReport {
            own: IsolationReport {
                active: [Layer::Seccomp].into_iter().collect(),
                missing: vec![],
            },
            namespaces: names.map(|name| (name.to_owned(), PathBuf::from("other"))).collect(),
            root_is_read_only: true,
            user: 7,
            memory_limit: Some(100),
        }
    }

    #[test]
    fn what_was_found_inside_is_what_there_is() {
        let found = found(inside(), Some(7), 100);
        let all = NAMESPACES.iter().map(|(layer, _)| *layer);
        let all = all.chain([Layer::View, Layer::User, Layer::ControlGroup, Layer::Seccomp]);
        assert_eq!(found.report.active, all.collect());
        assert_eq!(found.own, [Layer::Seccomp].into_iter().collect());
    }

    #[test]
    fn what_is_not_found_is_not_claimed() {
        let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let names = NAMESPACES.iter().map(|(_, name)| *name);
        let shared = ContainedReport {
            namespaces: names.map(|name| (name.to_owned(), own(name))).collect(),
            user: 0,
            memory_limit: None,
            ..inside()
        };
        let nothing = found(shared, Some(7), 100).report;
        assert_eq!(nothing.active, [Layer::Seccomp].into_iter().collect());
        assert_eq!(nothing.missing.len(), NAMESPACES.len() + 3);
        let writable = ContainedReport { root_is_read_only: false, ..inside() };
        assert!(!found(writable, None, 99).report.active.has(Layer::View));
        assert!(!found(inside(), None, 99).report.active.has(Layer::User));
        assert!(!found(inside(), None, 99).report.active.has(Layer::ControlGroup));
        let unknown = ContainedReport { namespaces: Default::default(), ..inside() };
        assert!(!found(unknown, None, 100).report.active.has(Layer::PidNamespace));
    }
}
