//! The zygote, asked by hand: this test is the executor manager whose children it clones.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rdmalib_testing::{eventually, wait_for};
use rfaas_program::local_channel::{LocalChannel, from_file, to_file};
use rfaas_protocol::isolation::{
    IsolationReport, Layer, Layers, NetworkPolicy, SandboxSettings, UserRange,
};
use rfaas_protocol::launch::{
    Ended, FromGuardian, FromZygote, Speaks, ToGuardian, ToZygote, ZygoteSettings,
};
use rfaas_protocol::{Empty, VERSION};

struct Zygote {
    process: Child,
    channel: LocalChannel,
}

/// Starts one that speaks to a manager of `version`.
fn spawn(layers: Layers, version: u16) -> Zygote {
    let (channel, theirs) = LocalChannel::pair().unwrap();
    let sandbox = SandboxSettings {
        layers,
        view: vec![],
        users: UserRange { first: 0, count: 0 },
        network: NetworkPolicy::Host,
        rdma: false,
    };
    let settings = ZygoteSettings { provider: "shm".into(), sandbox };
    let settings = to_file(c"settings", &settings).unwrap();
    let speaks = Speaks { version: version.into() };
    channel.send(&ToZygote::Prepare(speaks), &[settings.as_fd()]).unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_executor"))
        .arg("zygote")
        .stdin(Stdio::from(theirs.as_fd().try_clone_to_owned().unwrap()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Zygote { process, channel }
}

impl Zygote {
    /// One that is ready, with those of `layers` that it has found.
    fn ready(layers: Layers) -> (Self, Layers) {
        let zygote = spawn(layers, VERSION);
        let (message, files) = zygote.channel.receive::<FromZygote>(None).unwrap();
        assert!(matches!(message, FromZygote::Ready(_)), "{message:?}");
        let [report] = <[OwnedFd; 1]>::try_from(files).unwrap();
        let report: IsolationReport = from_file(File::from(report)).unwrap();
        (zygote, report.active)
    }

    /// Asks for an executor, whose instructions are nonsense; returns what it prints, and its
    /// lifeline.
    fn ask(&self) -> (UnixStream, LocalChannel) {
        let input = to_file(c"instructions", &"nonsense").unwrap();
        let (printed, output) = UnixStream::pair().unwrap();
        let (lifeline, theirs) = LocalChannel::pair().unwrap();
        let given = [input.as_fd(), output.as_fd(), output.as_fd(), theirs.as_fd()];
        self.channel.send(&ToZygote::Start(Empty {}), &given).unwrap();
        (printed, lifeline)
    }

    /// The child that it was asked for.
    fn started(&self) -> Pid {
        let (message, files) = self.channel.receive::<FromZygote>(None).unwrap();
        let FromZygote::Started(started) = message else { panic!("{message:?}") };
        assert_eq!(files.len(), 1, "its pidfd");
        Pid::from_raw(started.pid.get() as i32)
    }

    fn ends(mut self) {
        drop(self.channel);
        let status = wait_for("the end of the zygote", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
}

/// Lets a child begin.
fn go(lifeline: &LocalChannel) {
    lifeline.send(&ToGuardian::Go(Empty {}), &[]).unwrap();
}

fn all_of(mut printed: UnixStream) -> String {
    let mut text = String::new();
    printed.read_to_string(&mut text).unwrap();
    text
}

/// The exit status of an executor whose instructions make no sense.
const BAD_INPUT: i32 = 2;

#[test]
fn a_child_is_the_managers_and_its_end_is_told() {
    let (zygote, layers) = Zygote::ready(Layers::NONE);
    assert_eq!(layers, Layers::NONE);
    let (printed, lifeline) = zygote.ask();
    let child = zygote.started();
    go(&lifeline);
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, BAD_INPUT));
    let text = all_of(printed);
    assert!(text.starts_with("error: instructions on standard input"), "{text}");
    // An executor without a guardian does not have it; the zygote closes its own when it has answered.
    eventually("nobody has the lifeline", || lifeline.is_gone());
    zygote.ends();
}

#[test]
fn a_guardian_tells_how_its_executor_ended() {
    let wanted = [Layer::UserNamespace, Layer::PidNamespace].into_iter().collect();
    let (zygote, layers) = Zygote::ready(wanted);
    if layers.has(Layer::PidNamespace) {
        let (printed, lifeline) = zygote.ask();
        let child = zygote.started();
        go(&lifeline);
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        let (FromGuardian::Ended(told), _) = lifeline.receive(None).unwrap();
        assert_eq!(told, Ended { signal: 0.into(), status: (BAD_INPUT as u32).into() });
        let text = all_of(printed);
        assert!(text.starts_with("error: instructions on standard input"), "{text}");
    }
    zygote.ends();
}

#[test]
fn no_two_children_have_the_same_namespaces() {
    let wanted = [Layer::UserNamespace, Layer::IpcNamespace, Layer::UtsNamespace];
    let (zygote, layers) = Zygote::ready(wanted.into_iter().collect());
    let mut lifelines = Vec::new();
    for (layer, name) in [(Layer::IpcNamespace, "ipc"), (Layer::UtsNamespace, "uts")] {
        let of = |id: u32| fs::read_link(format!("/proc/{id}/ns/{name}")).unwrap();
        let mut seen = BTreeSet::from([of(std::process::id())]);
        for pause in [0, 0, 50, 0] {
            std::thread::sleep(Duration::from_millis(pause)); // time to make them before
            let (_, lifeline) = zygote.ask();
            let child = zygote.started();
            seen.insert(of(child.as_raw().unsigned_abs()));
            lifelines.push((child, lifeline));
        }
        assert_eq!(seen.len() == 5, layers.has(layer), "{seen:?}");
    }
    for (child, lifeline) in lifelines {
        drop(lifeline);
        waitpid(child, None).unwrap();
    }
    zygote.ends();
}

#[test]
fn a_child_that_is_not_let_go_does_nothing() {
    for layers in [Layers::NONE, [Layer::UserNamespace, Layer::PidNamespace].into_iter().collect()]
    {
        let (zygote, _) = Zygote::ready(layers);
        let (printed, lifeline) = zygote.ask();
        let child = zygote.started();
        drop(lifeline); // as of a manager that could not take its pidfd
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 1));
        assert_eq!(all_of(printed), "");
        zygote.ends();
    }
}

#[test]
fn a_child_of_which_nobody_was_told_does_nothing() {
    for layers in [Layers::NONE, [Layer::UserNamespace, Layer::PidNamespace].into_iter().collect()]
    {
        let (mut zygote, _) = Zygote::ready(layers);
        let (printed, lifeline) = zygote.ask();
        // It takes the request, and cannot answer it. A manager that has no answer lets nobody go.
        drop(std::mem::replace(&mut zygote.channel, LocalChannel::pair().unwrap().0));
        drop(lifeline);
        assert_eq!(all_of(printed), "");
        zygote.ends();
    }
}

#[test]
fn signals_that_everybody_gets_do_not_end_it() {
    let (zygote, _) = Zygote::ready(Layers::NONE);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(zygote.process.id() as i32), signal).unwrap();
    }
    let (_printed, lifeline) = zygote.ask();
    let child = zygote.started();
    go(&lifeline);
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, BAD_INPUT));
    zygote.ends();
}

#[test]
fn another_version_and_another_parent_than_a_manager_are_refused_in_one_line() {
    let mut other = spawn(Layers::NONE, VERSION + 1).process;
    let by_hand = Command::new(env!("CARGO_BIN_EXE_executor")).arg("zygote").output().unwrap();
    let mut text = String::new();
    other.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!other.wait().unwrap().success() && !by_hand.status.success());
    assert!(text.contains("protocol version") && text.lines().count() == 1, "{text}");
    let text = String::from_utf8(by_hand.stderr).unwrap();
    assert!(text.contains("executor_manager starts") && text.lines().count() == 1, "{text}");
}
