//! Each layer, on processes of its own. One thread runs one test after the other, so that they may fork.
//!
//! A test whose layers this machine does not have is ignored, with the reason in its name's place on standard error.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::get_dumpable;
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{
    Gid, Pid, Uid, chroot, getgid, getpid, getppid, getuid, setgroups, sethostname, setresgid,
    setresuid,
};
use rfaas_protocol::isolation::IsolationReport;
use rfaas_protocol::isolation::{Layer, Layers, NetworkPolicy, SandboxSettings, UserRange};
use rfaas_sandbox::{Failure, Launch, Sandbox, Share};

const MB: u64 = 1 << 20;
const SHARE: Share = Share { memory: 32 * MB, base: 0 };
/// Its number among the executors.
const USER: u32 = 3;
const USERS: UserRange = UserRange { first: 2_100_000_000, count: 8 };
/// User and group that every system has.
const NOBODY: u32 = 65_534;

type Outcome = Result<(), String>;

/// Who starts executors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    Nobody,
    /// An ordinary user where the kernel gives no user namespaces.
    Confined,
    /// Root without CAP_SYS_ADMIN, as in many containers.
    Contained,
}

/// Runs `f` in a child.
fn attempt(f: impl FnOnce() -> Outcome) -> Outcome {
    rfaas_sandbox::attempt(|| f().map_err(Failure::Refused)).map_err(|failure| failure.to_string())
}

fn probe(settings: &SandboxSettings, launch: Launch) -> Result<IsolationReport, String> {
    rfaas_sandbox::probe(settings, launch).map_err(|error| error.to_string())
}

/// All but what the executor manager makes.
fn all() -> SandboxSettings {
    let mut layers = Layers::all();
    layers.remove(Layer::ControlGroup);
    SandboxSettings {
        layers,
        view: Vec::new(),
        users: USERS,
        network: NetworkPolicy::None,
        rdma: false,
    }
}

fn only(layers: &[Layer]) -> SandboxSettings {
    SandboxSettings { layers: layers.iter().copied().collect(), ..all() }
}

/// Becomes who starts executors.
fn become_user(who: Who) -> Outcome {
    let errno = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
    if who == Who::Root {
        return Ok(());
    }
    if who == Who::Contained {
        let admin = caps::Capability::CAP_SYS_ADMIN;
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::drop(None, set, admin).map_err(|error| error.to_string())?;
        }
        return Ok(());
    }
    setgroups(&[]).map_err(errno("setgroups"))?;
    let group = Gid::from_raw(NOBODY);
    setresgid(group, group, group).map_err(errno("setresgid"))?;
    let user = Uid::from_raw(NOBODY);
    setresuid(user, user, user).map_err(errno("setresuid"))?;
    // A change of user closes /proc/self to that user, which a program that was started as it finds open.
    nix::sys::prctl::set_dumpable(true).map_err(errno("prctl"))?;
    if who == Who::Confined {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(errno("unshare"))?;
        for (file, text) in [
            ("/proc/self/setgroups", "deny"),
            ("/proc/self/uid_map", "0 65534 1"),
            ("/proc/self/gid_map", "0 65534 1"),
            ("/proc/sys/user/max_user_namespaces", "0"),
        ] {
            fs::write(file, text).map_err(|error| format!("{file}: {error}"))?;
        }
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::clear(None, set).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Runs `f` as an executor of `settings` that `who` has started, in the layers that there are.
fn sandboxed(who: Who, settings: &SandboxSettings, f: impl FnOnce() -> Outcome) -> Outcome {
    let text = |error: rfaas_sandbox::Error| error.to_string();
    attempt(|| {
        become_user(who)?;
        let layers = probe(settings, Launch::Clone)?.active;
        let sandbox = Sandbox::new(SandboxSettings { layers, ..settings.clone() });
        sandbox.enter().map_err(text)?;
        unshare(sandbox.namespaces()).map_err(|errno| errno.to_string())?;
        attempt(|| {
            sandbox.furnish(None).map_err(text)?;
            attempt(|| {
                sandbox.grow(SHARE.memory).map_err(text)?;
                sandbox.confine(USER).map_err(text)?;
                sandbox.fit(&SHARE).map_err(text)?;
                sandbox.close(&SHARE).map_err(text)?;
                f()
            })
        })
    })
}

fn ensure(what: &str, holds: bool) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}")) }
}

fn refused<T>(what: &str, result: Result<T, Errno>, errno: Errno) -> Outcome {
    match result {
        Err(error) if error == errno => Ok(()),
        Err(error) => Err(format!("{what}: {error} instead of {errno}")),
        Ok(_) => Err(format!("{what} is allowed")),
    }
}

fn is_refused<T>(what: &str, result: std::io::Result<T>, kind: ErrorKind) -> Outcome {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(format!("{what}: {error} instead of {kind}")),
        Ok(_) => Err(format!("{what} is allowed")),
    }
}

/// What honest functions do.
fn work() -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let shell =
        Command::new("/bin/sh").args(["-c", "echo $((6 * 7)) | cat"]).output().map_err(text)?;
    ensure("a program and its child run", shell.stdout == b"42\n")?;
    let threads: Vec<_> = (0..8).map(|i| std::thread::spawn(move || i * i)).collect();
    let sum: i32 = threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum();
    ensure("threads run", sum == 140)?;
    attempt(|| Ok(())).map_err(|error| format!("fork: {error}"))?;
    fs::write("/tmp/file", b"content").map_err(text)?;
    ensure("a file of /tmp is read back", fs::read("/tmp/file").map_err(text)? == b"content")?;
    fs::create_dir("/tmp/directory").map_err(text)?;
    fs::rename("/tmp/file", "/tmp/directory/file").map_err(text)?;
    fs::write("/dev/shm/segment", b"shared").map_err(text)?;
    File::options()
        .write(true)
        .open("/dev/null")
        .and_then(|mut f| f.write_all(b"x"))
        .map_err(text)?;
    let mut random = [0; 8];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).map_err(text)?;
    let status = fs::read_to_string("/proc/self/status").map_err(text)?;
    ensure("/proc/self is there", status.contains("Threads"))?;
    // As libraries are loaded.
    let memory = memfd_create(c"library", MFdFlags::MFD_CLOEXEC).map_err(|e| e.to_string())?;
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    UnixStream::pair().map_err(text)?;
    fs::read("/sys/devices/system/cpu/online").map_err(text)?;
    std::env::temp_dir().exists().then_some(()).ok_or("temp_dir".into())
}

fn honest_functions_work(who: Who) -> Outcome {
    sandboxed(who, &all(), work)
}

fn only_system_directories_are_seen_and_none_is_written(who: Who) -> Outcome {
    let secret = Path::new("/var/rfaas-secret-of-the-node");
    fs::write(secret, b"secret").map_err(|error| error.to_string())?;
    let seen = sandboxed(who, &all(), || {
        for hidden in [secret, Path::new("/etc/shadow"), Path::new("/root"), Path::new("/home")] {
            ensure(&format!("{} is hidden", hidden.display()), !hidden.exists())?;
        }
        for path in ["/usr/x", "/etc/x", "/x", "/usr/bin/x"] {
            ensure(&format!("{path} cannot be written"), fs::write(path, b"x").is_err())?;
        }
        ensure("the old root is gone", !Path::new("/old").exists())?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        let writable = mounts.lines().filter(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let is_open = fields[5].split(',').any(|option| option == "rw");
            is_open
                && !["/tmp", "/proc"].iter().any(|at| fields[4].starts_with(at))
                && !fields[4].starts_with("/dev/")
        });
        let writable: Vec<_> = writable.collect();
        ensure(&format!("nothing else is mounted writable: {writable:?}"), writable.is_empty())
    });
    let _ = fs::remove_file(secret);
    seen
}

fn what_the_operator_names_is_seen_read_only_also_below_tmp(who: Who) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let place = format!("/tmp/rfaas-view-{}", std::process::id());
    let directory = Path::new(&place).join("libraries");
    fs::create_dir_all(&directory).map_err(text)?;
    fs::write(directory.join("file"), b"shown").map_err(text)?;
    let by_link = Path::new("/var").join(format!("rfaas-link-{}", std::process::id()));
    std::os::unix::fs::symlink(&directory, &by_link).map_err(text)?;
    let settings = SandboxSettings { view: vec![by_link.clone()], ..all() };
    let seen = sandboxed(who, &settings, || {
        for path in [&directory, &by_link] {
            let file = path.join("file");
            let content =
                fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            ensure("the file is seen", content == b"shown")?;
            ensure("it cannot be written", fs::write(&file, b"x").is_err())?;
        }
        Ok(())
    });
    let _ = fs::remove_dir_all(&place);
    let _ = fs::remove_file(&by_link);
    seen
}

fn tmp_is_private_and_as_large_as_the_memory_of_the_lease(who: Who) -> Outcome {
    let foreign = format!("/tmp/rfaas-foreign-{}", std::process::id());
    fs::write(&foreign, b"x").map_err(|error| error.to_string())?;
    let result = sandboxed(who, &all(), || {
        ensure("files of others are not seen", !Path::new(&foreign).exists())?;
        let chunk = vec![1; MB as usize];
        let mut written = 0;
        for i in 0.. {
            // Several: one alone meets the limit of file sizes.
            let mut file = File::create(format!("/tmp/{i}")).map_err(|error| error.to_string())?;
            for _ in 0..8 {
                match file.write_all(&chunk) {
                    Ok(()) => written += MB,
                    Err(error) if error.kind() == ErrorKind::StorageFull => {
                        let (least, most) = (SHARE.memory * 3 / 4, SHARE.memory); // beyond what it had first
                        return ensure("it is full at its size", (least..=most).contains(&written));
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        Ok(())
    });
    let _ = fs::remove_file(&foreign);
    result
}

fn no_other_process_is_seen_or_reached(who: Who) -> Outcome {
    let outside = getpid();
    sandboxed(who, &all(), || {
        ensure("it is one of the first", getpid().as_raw() < 16)?;
        let processes = fs::read_dir("/proc").map_err(|error| error.to_string())?;
        let processes =
            processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        ensure("it sees itself and its parent alone", processes.count() <= 2)?;
        refused("a signal to the manager", kill(outside, None), Errno::ESRCH)?;
        ensure(
            "the first process cannot be killed",
            kill(Pid::from_raw(1), None).is_err() || getppid().as_raw() == 1,
        )
    })
}

fn an_executor_has_a_user_of_its_own(_: Who) -> Outcome {
    sandboxed(Who::Root, &all(), || {
        let id = USERS.first + USER;
        ensure("user", getuid().as_raw() == id)?;
        ensure("group", getgid().as_raw() == id)?;
        let none = nix::unistd::getgroups().map_err(|errno| errno.to_string())?;
        ensure("no other group", none.is_empty())?;
        let root = Uid::from_raw(0);
        refused("becoming root", setresuid(root, root, root), Errno::EPERM)
    })
}

fn no_right_is_left_and_none_can_be_had(who: Who) -> Outcome {
    sandboxed(who, &all(), || {
        let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
        for line in status.lines().filter(|line| line.starts_with("Cap")) {
            ensure(line, line.ends_with("0000000000000000"))?;
        }
        ensure("no new privileges", status.contains("NoNewPrivs:\t1"))?;
        ensure("not dumpable", get_dumpable() == Ok(false))
    })
}

fn calls_that_no_function_needs_fail(who: Who) -> Outcome {
    let nothing = None::<&str>;
    sandboxed(who, &only(&[Layer::NoNewPrivileges, Layer::Seccomp]), || {
        let tmpfs = mount(Some("x"), "/tmp", Some("tmpfs"), MsFlags::empty(), nothing);
        refused("mount", tmpfs, Errno::EPERM)?;
        for flag in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_FILES] {
            refused("unshare", unshare(flag), Errno::EPERM)?;
        }
        let own = File::open("/proc/self/ns/user").map_err(|error| error.to_string())?;
        refused("setns", setns(&own, CloneFlags::empty()), Errno::EPERM)?;
        refused("ptrace", ptrace::attach(getppid()), Errno::EPERM)?;
        refused("chroot", chroot("/tmp"), Errno::EPERM)?;
        refused("sethostname", sethostname("x"), Errno::EPERM)?;
        let no_randomness = nix::sys::personality::Persona::ADDR_NO_RANDOMIZE;
        refused("personality", nix::sys::personality::set(no_randomness), Errno::EPERM)?;
        let asked = nix::sys::personality::get();
        asked.map(drop).map_err(|errno| format!("asking for the personality: {errno}"))
    })
}

fn networks(who: Who) -> Outcome {
    let layers = [Layer::NoNewPrivileges, Layer::Seccomp, Layer::LandlockNetwork];
    let with = |network| SandboxSettings { network, ..only(&layers) };
    let udp = || UdpSocket::bind("127.0.0.1:0");
    let tcp = || TcpListener::bind("127.0.0.1:0");
    let netlink =
        |protocol| socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), Some(protocol));
    sandboxed(who, &with(NetworkPolicy::None), || {
        is_refused("TCP", tcp(), ErrorKind::PermissionDenied)?;
        is_refused("UDP", udp(), ErrorKind::PermissionDenied)?;
        is_refused("a Unix socket", UnixListener::bind("/tmp/x"), ErrorKind::PermissionDenied)?;
        refused("netlink", netlink(SockProtocol::NetlinkRoute), Errno::EPERM)?;
        // It could send to any abstract name of the node.
        is_refused("a pair for datagrams", UnixDatagram::pair(), ErrorKind::PermissionDenied)?;
        UnixStream::pair().map(drop).map_err(|error| format!("a pair: {error}"))
    })?;
    sandboxed(who, &with(NetworkPolicy::Rdma), || {
        is_refused("TCP", tcp(), ErrorKind::PermissionDenied)?;
        refused("netlink", netlink(SockProtocol::NetlinkKObjectUEvent), Errno::EPERM)?;
        netlink(SockProtocol::NetlinkRoute).map(drop).map_err(|errno| format!("routes: {errno}"))
    })?;
    sandboxed(who, &with(NetworkPolicy::Host), || {
        let listener = tcp().map_err(|error| format!("TCP: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        std::net::TcpStream::connect(address).map(drop).map_err(|error| format!("TCP: {error}"))
    })
}

fn closing_holds_for_threads_that_run_already(who: Who) -> Outcome {
    attempt(|| {
        become_user(who)?;
        let sandbox = Sandbox::new(only(&[Layer::NoNewPrivileges, Layer::Seccomp]));
        sandbox.enter().map_err(|error| error.to_string())?;
        sandbox.confine(USER).map_err(|error| error.to_string())?;
        let (go, wait) = mpsc::channel::<()>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let before = UnixListener::bind("").is_ok(); // a name that the kernel chooses
            let _ = ready.send(());
            let _ = wait.recv();
            (before, UdpSocket::bind("127.0.0.1:0").map(drop))
        });
        let _ = started.recv();
        sandbox.close(&SHARE).map_err(|error| error.to_string())?;
        let _ = go.send(());
        let (before, after) = thread.join().map_err(|_| "the thread panicked")?;
        ensure("sockets can be made before", before)?;
        is_refused("a socket", after, ErrorKind::PermissionDenied)
    })
}

fn memory_beyond_the_share_is_not_given(who: Who) -> Outcome {
    sandboxed(who, &all(), || {
        let mut some: Vec<u8> = Vec::new();
        let fits = some.try_reserve_exact((SHARE.memory / 2) as usize).is_ok();
        ensure("its share is given", fits)?;
        let mut more: Vec<u8> = Vec::new();
        let fits = more.try_reserve_exact((SHARE.memory + 512 * MB) as usize).is_ok();
        ensure("more is not", !fits)?;
        let core = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE);
        ensure("no core file", core == Ok((0, 0)))
    })
}

fn a_fork_bomb_ends_at_the_limit(_: Who) -> Outcome {
    sandboxed(Who::Root, &all(), || {
        let mut threads = Vec::new();
        let (keep, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let refused = (0..2000).find_map(|_| {
            let wait = std::sync::Arc::clone(&wait);
            let thread = std::thread::Builder::new().stack_size(16 << 10);
            match thread.spawn(move || drop(wait.lock().map(|wait| wait.recv()))) {
                Ok(thread) => {
                    threads.push(thread);
                    None
                }
                Err(error) => Some(error.kind()),
            }
        });
        drop(keep);
        ensure("a thread too many is refused", refused == Some(ErrorKind::WouldBlock))
    })
}

fn landlock_keeps_files_where_there_is_no_view(who: Who) -> Outcome {
    sandboxed(who, &only(&[Layer::NoNewPrivileges, Layer::LandlockFiles]), || {
        let path = "/var/rfaas-written";
        is_refused("a file", fs::write(path, b"x"), ErrorKind::PermissionDenied)?;
        fs::read("/etc/passwd").map_err(|error| format!("reading: {error}"))?;
        let path = format!("/tmp/rfaas-landlock-{}", std::process::id());
        fs::write(&path, b"x").and_then(|()| fs::remove_file(&path)).map_err(|e| e.to_string())
    })
}

fn landlock_keeps_signals_where_there_is_no_namespace(who: Who) -> Outcome {
    sandboxed(who, &only(&[Layer::NoNewPrivileges, Layer::LandlockScopes]), || {
        refused("a signal to the parent", kill(getppid(), None), Errno::EPERM)?;
        kill(getpid(), None).map_err(|errno| format!("a signal to itself: {errno}"))
    })
}

fn of_layers_that_exclude_each_other_one_is_left_out(_: Who) -> Outcome {
    attempt(|| {
        become_user(Who::Contained)?;
        let report = probe(&all(), Launch::Clone)?;
        let missing: Vec<_> = report.missing.iter().map(|missing| missing.layer).collect();
        ensure(&format!("{:?}", report.missing), missing == [Layer::User])?;
        ensure(
            "the reason is told",
            report.missing[0].reason.starts_with("not together with the others: setgroups"),
        )
    })?;
    sandboxed(Who::Contained, &all(), work)
}

fn an_attempt_that_could_not_be_made_is_no_refusal(who: Who) -> Outcome {
    attempt(|| {
        become_user(who)?;
        let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
        nix::sys::resource::setrlimit(files, 3, 3).map_err(|errno| errno.to_string())?;
        match probe(&all(), Launch::Clone) {
            Ok(report) => Err(format!("without descriptors there is a report: {report:?}")),
            Err(error) => ensure(&error, error.contains("pipe: ")),
        }
    })
}

fn a_file_stays_readable_for_others_of_its_user(who: Who) -> Outcome {
    sandboxed(who, &only(&[Layer::NoNewPrivileges, Layer::Seccomp]), || {
        let file = memfd_create(c"library", MFdFlags::MFD_CLOEXEC).map_err(|e| e.to_string())?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let to = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        is_refused("chmod to nothing", to(0), ErrorKind::PermissionDenied)?;
        let closed = fchmod(&file, Mode::S_IWUSR);
        refused("fchmod to what is not readable", closed, Errno::EPERM)?;
        let flags = FchmodatFlags::FollowSymlink;
        let closed = fchmodat(AT_FDCWD, path.as_str(), Mode::empty(), flags);
        refused("fchmodat to nothing", closed, Errno::EPERM)?;
        to(0o400).map_err(|error| format!("chmod to read-only: {error}"))?;
        fchmod(&file, Mode::S_IRWXU).map_err(|errno| format!("fchmod: {errno}"))
    })
}

fn root_without_a_user_changes_nothing_of_the_kernel(_: Who) -> Outcome {
    let tries = || {
        let paths = ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger"];
        for path in paths.into_iter().filter(|path| Path::new(path).exists()) {
            let opened = File::options().write(true).open(path);
            let refused = opened.is_err_and(|error| {
                matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
            });
            ensure(&format!("{path} cannot be written"), refused)?;
        }
        fs::write("/proc/self/comm", b"function").map_err(|error| format!("its name: {error}"))
    };
    let mut layers = all().layers;
    layers.remove(Layer::User);
    for other in [Layer::LandlockFiles, Layer::View] {
        let mut layers = layers;
        layers.remove(other);
        sandboxed(Who::Root, &SandboxSettings { layers, ..all() }, tries)
            .map_err(|error| format!("without {other}: {error}"))?;
    }
    Ok(())
}

fn without_a_view_it_sees_its_own_processes_too(who: Who) -> Outcome {
    let layers = [Layer::UserNamespace, Layer::MountNamespace, Layer::PidNamespace];
    sandboxed(who, &only(&layers), || {
        let processes = fs::read_dir("/proc").map_err(|error| error.to_string())?;
        let processes =
            processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        ensure("it sees itself and its parent alone", processes.count() <= 2)
    })
}

fn an_ordinary_user_lacks_nothing_but_users(_: Who) -> Outcome {
    attempt(|| {
        become_user(Who::Nobody)?;
        let report = probe(&all(), Launch::Clone)?;
        let missing: Vec<_> = report.missing.iter().map(|missing| missing.layer).collect();
        ensure(&format!("{:?}", report.missing), missing == [Layer::User])
    })
}

fn without_user_namespaces_the_rest_is_put_on_and_the_reason_is_told(_: Who) -> Outcome {
    attempt(|| {
        become_user(Who::Confined)?;
        let report = probe(&all(), Launch::Clone)?;
        let found = report.active;
        for layer in [Layer::Seccomp, Layer::NoNewPrivileges, Layer::NotDumpable, Layer::Limits] {
            ensure(&format!("{layer} is there: {:?}", report.missing), found.has(layer))?;
        }
        for layer in [Layer::UserNamespace, Layer::MountNamespace, Layer::View, Layer::PidNamespace]
        {
            let missing = report.missing.iter().find(|missing| missing.layer == layer);
            ensure(&format!("{layer} is missing"), missing.is_some_and(|m| !m.reason.is_empty()))?;
        }
        Ok(())
    })?;
    sandboxed(Who::Confined, &all(), || {
        is_refused("a file", fs::write("/var/x", b"x"), ErrorKind::PermissionDenied)?;
        is_refused("TCP", TcpListener::bind("127.0.0.1:0"), ErrorKind::PermissionDenied)
    })
}

fn an_executor_that_is_started_by_itself_has_all_but_process_ids(who: Who) -> Outcome {
    attempt(|| {
        become_user(who)?;
        let report = probe(&all(), Launch::Exec)?;
        ensure("no process ids", !report.active.has(Layer::PidNamespace))?;
        let sandbox = Sandbox::new(SandboxSettings { layers: report.active, ..all() });
        let text = |error: rfaas_sandbox::Error| error.to_string();
        sandbox.enter().map_err(text)?;
        sandbox.furnish(Some(SHARE.memory)).map_err(text)?;
        sandbox.confine(USER).map_err(text)?;
        sandbox.fit(&SHARE).map_err(text)?;
        sandbox.close(&SHARE).map_err(text)?;
        work()
    })
}

/// Prints what a sandbox costs over a child without one.
fn cost() -> Outcome {
    const TIMES: u32 = 200;
    for who in [Who::Root, Who::Nobody] {
        attempt(|| {
            become_user(who)?;
            let text = |error: rfaas_sandbox::Error| error.to_string();
            let start = Instant::now();
            let report = probe(&all(), Launch::Clone)?;
            let probed = start.elapsed();
            let sandbox = Sandbox::new(SandboxSettings { layers: report.active, ..all() });
            let start = Instant::now();
            sandbox.enter().map_err(text)?;
            println!("{who:?}: probed in {probed:?}, entered in {:?}", start.elapsed());
            let plain = median(TIMES, || attempt(|| Ok(())))?;
            println!("  a child: {plain:.0} us");
            let mut steps: Vec<Vec<f64>> = vec![Vec::new(); 5];
            for _ in 0..TIMES {
                let mut took = [0.0; 5];
                measured(&sandbox, &mut took)?;
                steps.iter_mut().zip(took).for_each(|(all, one)| all.push(one));
            }
            let names = ["unshare", "furnish", "confine", "fit", "close"];
            for (name, mut times) in names.into_iter().zip(steps) {
                times.sort_by(f64::total_cmp);
                println!("  {name}: {:.0} us", times[times.len() / 2]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn measured(sandbox: &Sandbox, took: &mut [f64; 5]) -> Outcome {
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let text = |error: rfaas_sandbox::Error| error.to_string();
    attempt(|| {
        let mut writer = writer;
        let mut tell = |since: Instant| {
            let us = since.elapsed().as_secs_f64() * 1e6;
            writer.write_all(&us.to_le_bytes()).map_err(|error| error.to_string())
        };
        let start = Instant::now();
        unshare(sandbox.namespaces()).map_err(|errno| errno.to_string())?;
        tell(start)?;
        attempt(|| {
            let steps: [&dyn Fn() -> Result<(), rfaas_sandbox::Error>; 4] = [
                &|| sandbox.furnish(Some(SHARE.memory)),
                &|| sandbox.confine(USER),
                &|| sandbox.fit(&SHARE),
                &|| sandbox.close(&SHARE),
            ];
            for step in steps {
                let start = Instant::now();
                step().map_err(text)?;
                tell(start)?;
            }
            Ok(())
        })
    })?;
    for one in took {
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        *one = f64::from_le_bytes(bytes);
    }
    Ok(())
}

fn median(times: u32, mut f: impl FnMut() -> Outcome) -> Result<f64, String> {
    let mut all = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        f()?;
        all.push(start.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

/// A test for each of `users`, which needs `layers`.
fn trials(
    name: &str,
    test: fn(Who) -> Outcome,
    users: &[Who],
    layers: &[Layer],
) -> impl Iterator<Item = Trial> {
    let reason = |who: Who| {
        attempt(|| {
            become_user(who)?;
            let report = probe(&all(), Launch::Clone)?;
            let missing = report.missing.iter().find(|missing| layers.contains(&missing.layer));
            missing.map_or(Ok(()), |missing| Err(format!("{}: {}", missing.layer, missing.reason)))
        })
    };
    let trials: Vec<_> = users
        .iter()
        .map(|&who| {
            let name = if users.len() > 1 {
                format!("{who:?}::{name}").to_lowercase()
            } else {
                name.into()
            };
            let missing = reason(who);
            if let Err(reason) = &missing {
                eprintln!("{name}: cannot run here: {reason}");
            }
            Trial::test(name, move || test(who).map_err(Failed::from))
                .with_ignored_flag(missing.is_err())
        })
        .collect();
    trials.into_iter()
}

fn main() {
    use Layer::*;
    const BOTH: &[Who] = &[Who::Root, Who::Nobody];
    const ROOT: &[Who] = &[Who::Root];
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // on this thread, which forks
    let mut all = Vec::new();
    macro_rules! facts {
        ($($name:ident $users:ident $layers:expr;)*) => {
            $(all.extend(trials(stringify!($name), $name, $users, &$layers));)*
        };
    }
    facts! {
        honest_functions_work BOTH [View, PidNamespace];
        only_system_directories_are_seen_and_none_is_written BOTH [View];
        what_the_operator_names_is_seen_read_only_also_below_tmp BOTH [View];
        tmp_is_private_and_as_large_as_the_memory_of_the_lease BOTH [View];
        no_other_process_is_seen_or_reached BOTH [View, PidNamespace];
        an_executor_has_a_user_of_its_own ROOT [User];
        no_right_is_left_and_none_can_be_had BOTH [Capabilities, NoNewPrivileges, NotDumpable];
        calls_that_no_function_needs_fail BOTH [Seccomp];
        networks BOTH [Seccomp];
        closing_holds_for_threads_that_run_already BOTH [Seccomp];
        memory_beyond_the_share_is_not_given BOTH [Limits];
        a_fork_bomb_ends_at_the_limit ROOT [User, Limits];
        landlock_keeps_files_where_there_is_no_view BOTH [LandlockFiles];
        landlock_keeps_signals_where_there_is_no_namespace BOTH [LandlockScopes];
        an_ordinary_user_lacks_nothing_but_users ROOT [];
        of_layers_that_exclude_each_other_one_is_left_out ROOT [User, View];
        an_attempt_that_could_not_be_made_is_no_refusal BOTH [];
        a_file_stays_readable_for_others_of_its_user BOTH [Seccomp];
        root_without_a_user_changes_nothing_of_the_kernel ROOT [View, PidNamespace, LandlockFiles];
        without_a_view_it_sees_its_own_processes_too BOTH [PidNamespace, MountNamespace];
        without_user_namespaces_the_rest_is_put_on_and_the_reason_is_told ROOT [];
        an_executor_that_is_started_by_itself_has_all_but_process_ids BOTH [View];
    }
    let cost_asked = Trial::test("cost", || cost().map_err(Failed::from)).with_ignored_flag(true);
    all.push(cost_asked);
    libtest_mimic::run(&arguments, all).exit();
}
