//! The quickstart, as whoever may call it first: as root, as an ordinary user, and in a container, where there are no
//! namespaces to be had. It works each time, and says what isolates functions.
//!
//! A container is made of what it takes away: a user namespace in which no other can be made, and in which root has the
//! capabilities that container engines leave it.

#![allow(clippy::unwrap_used)] // what does not hold panics; that is what a test does

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;
use rfaas_protocol::isolation::{Layer, Layers};
use tempfile::TempDir;
use testkit::run::{library, program, run};

/// An ordinary user: nobody's number, as in `strangers`.
const ORDINARY: u32 = 70_004;
/// Its number in a container, like that of the first user of most machines.
const ORDINARY_IN_CONTAINER: u32 = 1000;
/// What Docker and Podman leave root of a container (capabilities(7)), as setpriv(1) has them.
const LEFT_TO_ROOT: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                            +sys_chroot,+setfcap";

/// Who calls it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Root,
    User,
    RootOfContainer,
    UserOfContainer,
}

impl Caller {
    const ALL: [Caller; 4] =
        [Caller::Root, Caller::User, Caller::RootOfContainer, Caller::UserOfContainer];

    fn fact(self) -> &'static str {
        match self {
            Caller::Root => "it_works_as_root",
            Caller::User => "it_works_as_an_ordinary_user",
            Caller::RootOfContainer => "it_works_as_root_of_a_container_without_namespaces",
            Caller::UserOfContainer => "it_works_as_a_user_of_a_container_without_namespaces",
        }
    }

    /// What has to be here for it, beside what all need.
    fn needs(self) -> &'static str {
        match self {
            Caller::Root => "needs root",
            Caller::User => "needs to be an ordinary user, or root",
            Caller::RootOfContainer | Caller::UserOfContainer => {
                "needs setpriv and unshare (util-linux), and user namespaces for everybody"
            }
        }
    }

    /// Runs what comes behind it as this caller.
    fn command(self) -> Command {
        let script = |script: String| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "sh", "-ec", &script, "sh"]);
            command
        };
        // So many namespaces of users may there be below this one.
        let most = |count| format!("echo {count} >/proc/sys/user/max_user_namespaces");
        match self {
            Caller::Root => Command::new("env"),
            Caller::User if geteuid().is_root() => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={ORDINARY}")).arg(format!("--regid={ORDINARY}"));
                command.args(["--clear-groups", "env"]);
                command
            }
            Caller::User => Command::new("env"),
            Caller::RootOfContainer => {
                let most = most(0);
                script(format!("{most}; exec setpriv --bounding-set={LEFT_TO_ROOT} \"$@\""))
            }
            Caller::UserOfContainer => {
                let (most, user) = (most(1), ORDINARY_IN_CONTAINER);
                script(format!(
                    "{most}; exec unshare --user --map-user={user} --map-group={user} \"$@\""
                ))
            }
        }
    }

    /// Why it cannot be tried here, if it cannot.
    fn impossible(self) -> Option<&'static str> {
        let is_possible = match self {
            Caller::Root => geteuid().is_root(),
            Caller::User | Caller::RootOfContainer | Caller::UserOfContainer => {
                let tried = self.command().arg("true").stderr(Stdio::null()).status();
                tried.is_ok_and(|status| status.success())
            }
        };
        (!is_possible).then(|| self.needs())
    }

    fn may_have(self, layer: Layer) -> bool {
        let takes_rights = matches!(
            layer,
            Layer::UserNamespace
                | Layer::MountNamespace
                | Layer::View
                | Layer::PidNamespace
                | Layer::IpcNamespace
                | Layer::UtsNamespace
        );
        match self {
            Caller::Root => layer != Layer::UserNamespace,
            Caller::User => layer != Layer::User,
            Caller::RootOfContainer => !takes_rights,
            Caller::UserOfContainer => !takes_rights && layer != Layer::User,
        }
    }
}

/// The quickstart and all that it starts, where every user can read them: the tree may be in a home that is its owner's
/// alone.
fn installed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let files =
        ["quickstart", "resource_manager", "executor_manager", "executor", "warm_benchmarker"];
    let files = files.map(program).into_iter().chain([program("sample_image")]);
    for file in files.chain(["functions", "thumbnailer"].map(library)) {
        fs::copy(&file, directory.path().join(file.file_name().unwrap())).unwrap();
    }
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A home of its own for `caller`.
fn home(caller: Caller) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    if caller == Caller::User && geteuid().is_root() {
        chown(home.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
    home
}

fn works(caller: Caller, installed: &Path) -> Result<(), Failed> {
    let home = home(caller);
    let quickstart = |arguments: &[&str]| {
        let mut command = caller.command();
        command.arg(installed.join("quickstart")).args(arguments);
        command.arg("--output").arg(home.path().join("thumbnail.jpg"));
        command.env("HOME", home.path()).env("TMPDIR", home.path()).current_dir("/");
        run(command).success()
    };
    let told = quickstart(&["--json"]).json();
    let layers: Layers = serde_json::from_value(told["isolation"].clone()).unwrap();
    println!("{}: {layers}", caller.fact());
    // These take no rights, and every kernel that this is developed on has them.
    for layer in [Layer::NoNewPrivileges, Layer::NotDumpable, Layer::Limits] {
        assert!(layers.has(layer), "{layer} takes nothing: {layers}");
    }
    for layer in layers.iter() {
        assert!(caller.may_have(layer), "{layer} is not to be had: {layers}");
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "its thumbnail is all that is left");

    let told = quickstart(&[]).stdout;
    for words in ["3 leases granted", &format!("isolated by {layers}")] {
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
    Ok(())
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // each has the processors to itself
    let installed = std::sync::Arc::new(installed());
    let trials = Caller::ALL.map(|caller| match caller.impossible() {
        Some(why) => {
            Trial::ignorable_test(caller.fact(), move || Ok(Completion::ignored_with(why)))
        }
        None => {
            let installed = installed.clone();
            Trial::test(caller.fact(), move || works(caller, installed.path()))
        }
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    drop(installed); // `exit` would leave it
    conclusion.exit();
}
