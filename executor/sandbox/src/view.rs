//! The view: a root directory of executors' own, read-only, with what programs need and nothing of the node's users.
//!
//! ```text
//!   /usr /bin /lib… /sbin   the system's, read-only          /proc       the node's; each executor mounts its own, in
//!                                                                        which root without a user changes nothing
//!   /etc                    few files, copied                /tmp        each executor its own, bounded
//!   /sys                    devices, classes, read-only      /dev/shm, /var/tmp ─▶ /tmp
//!   /dev                    null, zero, full, random, urandom, infiniband
//!   what the operator names, read-only
//! ```
//! It is made once, in a mount namespace that executors inherit. Each executor has its own copy of that, in which it
//! mounts its `/proc` and `/tmp`.
//!
//! Elsewhere: what may be done with a file that is seen (`files`), and by whom (`rights`).

use std::fs::{self, File, create_dir, create_dir_all};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};
use rfaas_protocol::isolation::{Layer, SandboxSettings};

use crate::error::{Error, failed};

/// Directories of the system, where they are: programs, libraries and their data.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32"];
/// What libraries read of `/etc`, if it is there: files are copied, directories are seen as they are.
const ETC: [&str; 16] = [
    "ld.so.cache",
    "alternatives",
    "localtime",
    "timezone",
    "locale.alias",
    "nsswitch.conf",
    "passwd",
    "group",
    "hosts",
    "host.conf",
    "resolv.conf",
    "services",
    "protocols",
    "os-release",
    "libibverbs.d",
    "rdma",
];
/// Largest file that is copied, in bytes: a cache of all libraries of a large system has some 500 KB.
const MAX_COPIED: u64 = 16 << 20;
/// Parts of `/sys` that libraries look for processors, memory and RDMA devices in. None has another file system inside.
const SYS: [&str; 3] = ["devices", "class", "kernel/mm"];
/// Parts of `/proc` that root may write without capabilities, and that change the whole node.
const OF_THE_KERNEL: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];
/// Device files. The last is there on machines with RDMA devices.
const DEV: [&str; 6] = ["null", "zero", "full", "random", "urandom", "infiniband"];
/// Links of `/dev`.
const DEV_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("shm", "/tmp"),
];
/// Where the new root is mounted at first: a directory that every system has.
const PLACE: &str = "/tmp";
/// Where the old root is while the new one is furnished.
const OLD: &str = "/old";
/// Size of the new root itself: copied files and empty directories.
const ROOT_OPTIONS: &str = "mode=755,size=32m,nr_inodes=4096";
/// Files and directories that an executor may have in its `/tmp`.
const TMP_FILES: u64 = 65_536;
/// Least size of `/tmp`, in bytes.
const MIN_TMP: u64 = 16 << 20;

const NONE: Option<&str> = None;

/// Enters namespaces and view.
pub fn enter(settings: &SandboxSettings, links: &[(PathBuf, PathBuf)]) -> Result<(), Error> {
    let layers = settings.layers;
    if layers.has(Layer::UserNamespace) {
        enter_user_namespace()?;
    }
    if !layers.has(Layer::MountNamespace) {
        return Ok(());
    }
    let layer = Layer::MountNamespace;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed(layer, "unshare(CLONE_NEWNS)"))?;
    // What is mounted from now on is seen by nobody else.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(failed(layer, "making mounts private"))?;
    if layers.has(Layer::View) { build(settings, links) } else { Ok(()) }
}

/// Becomes in a new user namespace who it was outside.
fn enter_user_namespace() -> Result<(), Error> {
    let (user, group) = (geteuid(), getegid());
    let layer = Layer::UserNamespace;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed(layer, "unshare(CLONE_NEWUSER)"))?;
    for (file, line) in [
        ("setgroups", "deny".to_string()), // user_namespaces(7): before an ordinary user may map its group
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, line).map_err(failed(layer, path))?;
    }
    Ok(())
}

fn view<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    failed(Layer::View, what)
}

fn build(settings: &SandboxSettings, links: &[(PathBuf, PathBuf)]) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("sandbox"), PLACE, Some("tmpfs"), flags, Some(ROOT_OPTIONS))
        .map_err(view("mounting a root"))?;
    chdir(PLACE).map_err(view("chdir"))?;
    create_dir(&OLD[1..]).map_err(view("mkdir"))?;
    pivot_root(".", &OLD[1..]).map_err(view("pivot_root"))?;
    chdir("/").map_err(view("chdir"))?;

    for name in SYSTEM {
        show(Path::new("/").join(name), true)?;
    }
    make_dir("/etc")?;
    for name in ETC {
        show_or_copy(&Path::new("/etc").join(name))?;
    }
    for name in SYS {
        show(Path::new("/sys").join(name), true)?;
    }
    make_dir("/dev")?;
    for name in DEV {
        show(Path::new("/dev").join(name), false)?;
    }
    for (name, target) in DEV_LINKS {
        link(target, &Path::new("/dev").join(name))?;
    }
    show("/proc".into(), false)?;
    make_dir("/tmp")?;
    make_dir("/var")?;
    link("/tmp", Path::new("/var/tmp"))?;
    for path in &settings.view {
        if !old(path).exists() {
            let missing = io::Error::from(ErrorKind::NotFound);
            return Err(view(format!("executor.view: {}", path.display()))(missing));
        }
        show(path.clone(), true)?;
    }
    for (path, real) in links {
        if !path.exists() {
            create_dir_all(path.parent().unwrap_or(path)).map_err(view("mkdir"))?;
            link(real, path)?;
        }
    }
    if let Some(directory) = std::env::var_os("TMPDIR") {
        stand_in(&PathBuf::from(directory))?;
    }
    umount2(OLD, MntFlags::MNT_DETACH).map_err(view("detaching the old root"))?;
    fs::remove_dir(OLD).map_err(view("rmdir"))?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(NONE, "/", NONE, read_only, NONE).map_err(view("making the root read-only"))
}

/// Returns where something of the old root is now.
fn old(path: &Path) -> PathBuf {
    Path::new(OLD).join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows what is at `path` of the old root at the same place, if there is something: with what is mounted below it, and
/// as the same link if it is one.
fn show(path: PathBuf, read_only: bool) -> Result<(), Error> {
    let what = || format!("showing {}", path.display());
    let source = old(&path);
    let kind = match fs::symlink_metadata(&source) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(view(what())(error)),
    };
    if let Some(parent) = path.parent() {
        create_dir_all(parent).map_err(view(what()))?;
    }
    if kind.is_symlink() && !path.exists() {
        let target = fs::read_link(&source).map_err(view(what()))?;
        return link(target, &path);
    }
    // Inside of what is shown already, it is there.
    if !path.exists() {
        let made = if kind.is_dir() { create_dir(&path) } else { File::create(&path).map(drop) };
        made.map_err(view(what()))?;
    }
    bind(&source, &path, read_only).map_err(view(what()))
}

/// Mounts `source` at `path` too.
fn bind(source: &Path, path: &Path, read_only: bool) -> io::Result<()> {
    mount(Some(source), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    if read_only { crate::mounts::make_read_only(path) } else { Ok(()) }
}

/// Shows a directory, and copies a file or what a link leads to, for what others put in its place later is not seen
/// anyway.
fn show_or_copy(path: &Path) -> Result<(), Error> {
    let source = old(path);
    match fs::symlink_metadata(&source) {
        Ok(found) if found.is_dir() => return show(path.into(), true),
        Ok(found) if found.is_symlink() => {
            let target = fs::read_link(&source).map_err(view(path.display().to_string()))?;
            let inside = path.parent().unwrap_or(path).join(&target);
            if inside.exists() {
                return link(target, path); // into what is shown already, such as /usr
            }
        }
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    // One that cannot be read is none of an executor's either.
    let Ok(file) = File::open(&source) else { return Ok(()) };
    let mut bytes = Vec::new();
    file.take(MAX_COPIED).read_to_end(&mut bytes).map_err(view(path.display().to_string()))?;
    let mut options = File::options();
    let copy = options.write(true).create_new(true).mode(0o444).open(path);
    copy.and_then(|mut copy| copy.write_all(&bytes)).map_err(view(path.display().to_string()))
}

fn make_dir(path: &str) -> Result<(), Error> {
    create_dir_all(path).map_err(view(path))
}

fn link(target: impl AsRef<Path>, path: &Path) -> Result<(), Error> {
    symlink(target, path).map_err(view(path.display().to_string()))
}

/// Has the directory that the environment names for temporary files lead to `/tmp`, if nothing is there.
fn stand_in(path: &Path) -> Result<(), Error> {
    if !path.is_absolute() || path.exists() || path.starts_with("/tmp") {
        return Ok(());
    }
    let Some(parent) = path.parent() else { return Ok(()) };
    match create_dir_all(parent).and_then(|()| symlink("/tmp", path)) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok(()), // inside of what is shown
        made => made.map_err(view(format!("TMPDIR {}", path.display()))),
    }
}

/// Mounts `/proc` and `/tmp` of an executor, in a mount namespace of its own. Without one, it sees the node's. `/tmp`
/// holds `memory` bytes or, as long as that is not known, the least.
pub fn furnish(settings: &SandboxSettings, memory: Option<u64>) -> Result<(), Error> {
    let layers = settings.layers;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if layers.has(Layer::PidNamespace) && layers.has(Layer::MountNamespace) {
        mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, NONE)
            .map_err(failed(Layer::PidNamespace, "mounting /proc"))?;
    }
    if !layers.has(Layer::View) {
        return Ok(());
    }
    if !layers.has(Layer::User) && geteuid().is_root() {
        for name in OF_THE_KERNEL {
            close_to_root(&Path::new("/proc").join(name))?;
        }
    }
    // What the operator shows below /tmp would be hidden.
    let shown = settings.view.iter().filter(|path| path.starts_with("/tmp"));
    let shown: Vec<_> = shown.map(|path| open_place(path).map(|file| (path, file))).collect();
    let size = size_of_tmp(memory.unwrap_or(0));
    let options = format!("mode=1777,{size},nr_inodes={TMP_FILES}");
    mount(Some("tmp"), "/tmp", Some("tmpfs"), safe, Some(options.as_str()))
        .map_err(view("mounting /tmp"))?;
    for entry in shown {
        let (path, file) = entry.map_err(view("opening what is shown below /tmp"))?;
        let what = || format!("showing {}", path.display());
        create_dir_all(path).map_err(view(what()))?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        bind(&source, path, true).map_err(view(what()))?;
    }
    chdir("/tmp").map_err(view("chdir"))
}

/// Makes a part of `/proc` read-only, if it is there.
fn close_to_root(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    bind(path, path, true).map_err(view(format!("making {} read-only", path.display())))
}

/// Has the `/tmp` of this mount namespace hold `memory` bytes.
pub fn grow(settings: &SandboxSettings, memory: u64) -> Result<(), Error> {
    if !settings.layers.has(Layer::View) {
        return Ok(());
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let size = size_of_tmp(memory);
    mount(NONE, "/tmp", NONE, flags, Some(size.as_str())).map_err(view("resizing /tmp"))
}

fn size_of_tmp(memory: u64) -> String {
    format!("size={}", memory.max(MIN_TMP))
}

fn open_place(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH).open(path)
}
