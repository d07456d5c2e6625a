//! Strangers: processes of another user, who has no lease and no secret, do to both managers
//! whatever any local user can, while an honest client leases, deploys, calls and gives back. It is
//! served each time; how long it takes is printed for each attack beside how long it takes in
//! peace. What managers hold is counted before and after.
//!
//! ```text
//! cargo test -p tools --test strangers                        each attack for two seconds
//! STRANGERS_SECONDS=60 cargo test -p tools --test strangers
//! ```
//! * Every cycle of the honest client ends well, and every question over HTTP is answered (`honest`).
//! * An attack that does nothing proves nothing: each says how often it did what it does (`attacks`).
//! * When strangers are gone, so is what managers spent on them (`spent`).
//!
//! Elsewhere: what the device makes of hostile bytes (`rdmalib/src/providers/shm/hostile.rs`).

#![allow(clippy::unwrap_used)] // what does not hold panics; that is what a test does

mod attacks;
mod honest;
mod spent;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Trial};
use testkit::test_devices::are_rdma;
use testkit::{LocalCluster, Options};

use attacks::{Attack, Target};
use honest::{Honest, Served};
use spent::Spent;
use testkit::run::{Running, start};
use testkit::service::{all_is_free, cluster};
use testkit::wait::{deadline, eventually_or};

/// Environment variable: how long each attack takes.
const SECONDS: &str = "STRANGERS_SECONDS";
/// The gate's: with all attacks, and the time until managers have forgotten each, less than a minute.
const SHORT: Duration = Duration::from_secs(2);
/// User and group of strangers: nobody's, so far from the numbers that systems give (login.defs(5), systemd's 60001 to
/// 60513 and 61184 to 65519 of services that are made up on the spot) that no process of theirs is met.
const STRANGER: u32 = 70_003;
/// A name of the machine on the embedded device that nobody else uses, so that names that are taken there are nobody's.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 70, 0, 3));

fn main() {
    if attacks::is_wanted() {
        return attacks::act();
    }
    let arguments = Arguments::from_args();
    let name = "an_honest_client_is_served_whatever_another_user_does";
    let trial = match impossible() {
        Some(why) => Trial::ignorable_test(name, move || Ok(Completion::ignored_with(why))),
        None => Trial::test(name, || {
            strangers();
            Ok(())
        }),
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

/// Why there can be no strangers here.
fn impossible() -> Option<&'static str> {
    let mut another = Command::new("/");
    // The program cannot be run: what is asked is whether the system lets us be somebody else before that.
    another.uid(STRANGER).gid(STRANGER);
    let refused = another.spawn().expect_err("a directory is no program");
    match refused.raw_os_error() {
        _ if are_rdma() => Some("needs the embedded device"),
        Some(nix::libc::EACCES) => None,
        _ => Some("needs root, to have processes of another user"),
    }
}

fn strangers() {
    let seconds = std::env::var(SECONDS).ok().map(|text| {
        text.parse().unwrap_or_else(|_| panic!("{SECONDS}={text} is no number of seconds"))
    });
    let mut scene = Scene::start(seconds.map_or(SHORT, Duration::from_secs));
    let mut honest = Honest::new(&scene.cluster);
    honest.cycle().expect("a first client warms everything up");
    scene.cluster.wait_for_rest(Options::default().prewarm as usize);
    let mut spent = Spent::by_managers(&mut scene.cluster);
    let peace = scene.during(&mut honest, "in peace", &[]);
    println!("\n{}\n{}", Served::HEADER, peace.row("in peace"));
    println!("before: {}", spent.told());
    let each = Attack::ALL.iter().map(|attack| (attack.name(), std::slice::from_ref(attack)));
    for (what, attacks) in each.chain([("all at once", &Attack::ALL[..])]) {
        let during = scene.during(&mut honest, what, attacks);
        println!("{}", during.row(what));
        spent = spent.is_given_back(what, &scene.cluster);
    }
    println!("after: {}", spent.told());
    all_is_free(&scene.cluster);
    drop(honest);
    scene.cluster.stop().unwrap();
}

/// The cluster, and what strangers need of it.
struct Scene {
    cluster: LocalCluster,
    target: Target,
    time: Duration,
    /// Readable by everybody, unlike the cluster's own.
    files: tempfile::TempDir,
}

impl Scene {
    fn start(time: Duration) -> Self {
        let options =
            Options { address: ADDRESS, talkative: false, cores: 8, ..Options::default() };
        let cluster = cluster(options);
        let files = tempfile::tempdir().unwrap();
        let open = |path: PathBuf, mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        open(files.path().to_owned(), 0o755);
        let devices = files.path().join("devices.json");
        fs::copy(cluster.devices(), &devices).unwrap();
        // The tree may be in a home that is its owner's alone.
        let program = files.path().join("stranger");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        open(program, 0o755);
        let target = Target {
            resource_manager: cluster.resource_manager_address().unwrap(),
            executor_manager: cluster.executor_manager_address(),
            http: cluster.http().unwrap().base().replace("http://", ""),
            devices: open(devices, 0o644),
        };
        Scene { cluster, target, time, files }
    }

    /// What the honest client is served while strangers make these attacks at the same time.
    fn during(&self, honest: &mut Honest, what: &str, attacks: &[Attack]) -> Served {
        let strangers: Vec<(Attack, Running)> =
            attacks.iter().map(|attack| (*attack, self.stranger(*attack))).collect();
        let at_work = |running: &Running| !running.said(attacks::AT_WORK).is_empty();
        let said = || strangers.iter().map(|(_, running)| running.words()).collect::<String>();
        let all = || strangers.iter().all(|(_, running)| at_work(running));
        eventually_or("strangers are at work", deadline(), all, said);

        let over = AtomicBool::new(false);
        let mut served = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(self.time);
                over.store(true, Ordering::Relaxed);
            });
            honest.until(what, || over.load(Ordering::Relaxed))
        });
        for (attack, running) in strangers {
            let did = attack.did(running);
            served.attacks = format!("{} {did}", served.attacks).trim().to_owned();
        }
        served
    }

    fn stranger(&self, attack: Attack) -> Running {
        let mut command = Command::new(self.files.path().join("stranger"));
        command.uid(STRANGER).gid(STRANGER).current_dir("/").stdin(Stdio::null());
        command.env("TMPDIR", "/tmp");
        attacks::tell(&mut command, attack, &self.target, self.time);
        start(command)
    }
}
