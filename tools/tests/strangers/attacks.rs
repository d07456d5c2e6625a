//! What strangers do. Each is this test program again, as another user, told by its environment.
//!
//! ```text
//!   connections   hang-up, garbage, half-open, waiting      what a peer can do with nothing but connecting
//!   handshakes    descriptors, sparse, unread               what it sends with its request, and does not take
//!   HTTP          slow-writers, slow-readers
//!   names         squat                                     what it takes that others would have
//!   leases        hoard                                     what it is granted, and does not use
//! ```
//! Elsewhere: attacks of whoever has a lease, which are those of functions and clients.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use nix::unistd::ftruncate;
use rfaas::{Client, Devices, LeaseRequest};
use rfaas_protocol::channel::Channel;
use rfaas_protocol::{Empty, Hello, Role};

use testkit::run::Running;

/// Environment variables: which attack, on whom, and for how long.
const ATTACK: &str = "STRANGER_ATTACK";
const RESOURCE_MANAGER: &str = "STRANGER_RESOURCE_MANAGER";
const EXECUTOR_MANAGER: &str = "STRANGER_EXECUTOR_MANAGER";
const HTTP: &str = "STRANGER_HTTP";
const DEVICES: &str = "STRANGER_DEVICES";
const MILLISECONDS: &str = "STRANGER_MILLISECONDS";
/// What a stranger says: that it has begun, and in the end how often it did what it does.
pub const AT_WORK: &str = "at-work";
const DID: &str = "did";

/// What one connects to the managers as.
const ROLES: [Role; 2] = [Role::Lease, Role::Allocation];
/// Connections that say nothing, held at a time: more than a manager waits for.
const HALF_OPEN: usize = 1100;
/// Connections that are made and say nothing more, held at a time at each manager.
const WAITING: usize = 300;
/// Connections over HTTP, likewise.
const SLOW: usize = 300;
/// Names taken: all that the embedded device takes ports from by itself, as far as descriptors go.
const NAMES: usize = 16384;
/// Leases of a core, held at a time: half of the node, so that there is something left to grant.
const HOARD: usize = 4;
/// Descriptors sent along with a request that needs one. The kernel takes 253 (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 20;
/// Bytes of a file without content: a third of what a process can address, so a few of them are all of it.
const SPARSE_BYTES: i64 = 1 << 45;
/// Pause of those who have all that they want, or are refused.
const PAUSE: Duration = Duration::from_millis(20);

/// What they need to know of the cluster: what any local user does.
pub struct Target {
    pub resource_manager: SocketAddr,
    pub executor_manager: SocketAddr,
    pub http: String,
    pub devices: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Connects and hangs up.
    HangUp,
    /// Connects, says something that is no request, and hangs up.
    Garbage,
    /// Connects, says nothing, and stays.
    HalfOpen,
    /// Connects as the protocol wants it, and says nothing more.
    Waiting,
    /// Sends more descriptors with a request than it takes.
    Descriptors,
    /// Sends a file of which nothing is there, larger than memory.
    Sparse,
    /// Asks for a connection, and reads no answer.
    Unread,
    /// Sends a request over HTTP byte by byte.
    SlowWriters,
    /// Asks much over HTTP, and reads nothing.
    SlowReaders,
    /// Takes names that clients and executors would listen at.
    Squat,
    /// Leases half of the node again and again, and claims nothing of it.
    Hoard,
}

impl Attack {
    pub const ALL: [Attack; 11] = [
        Attack::HangUp,
        Attack::Garbage,
        Attack::HalfOpen,
        Attack::Waiting,
        Attack::Descriptors,
        Attack::Sparse,
        Attack::Unread,
        Attack::SlowWriters,
        Attack::SlowReaders,
        Attack::Squat,
        Attack::Hoard,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Attack::HangUp => "hang-up",
            Attack::Garbage => "garbage",
            Attack::HalfOpen => "half-open",
            Attack::Waiting => "waiting",
            Attack::Descriptors => "descriptors",
            Attack::Sparse => "sparse",
            Attack::Unread => "unread",
            Attack::SlowWriters => "slow-writers",
            Attack::SlowReaders => "slow-readers",
            Attack::Squat => "squat",
            Attack::Hoard => "hoard",
        }
    }

    /// Waits for the end of a stranger that makes it; what it did, for people.
    pub fn did(self, stranger: Running) -> String {
        let finished = stranger.finish().success();
        let did: u64 = finished.said(DID).first().expect("it says what it did").parse().unwrap();
        assert!(did > 0, "{}: a stranger did nothing: {finished:?}", self.name());
        format!("{}: {did}", self.name())
    }
}

/// Tells the stranger that `command` will be what to do.
pub fn tell(command: &mut Command, attack: Attack, target: &Target, time: Duration) {
    command.env(ATTACK, attack.name());
    command.env(RESOURCE_MANAGER, target.resource_manager.to_string());
    command.env(EXECUTOR_MANAGER, target.executor_manager.to_string());
    command.env(HTTP, &target.http).env(DEVICES, &target.devices);
    command.env(MILLISECONDS, time.as_millis().to_string());
}

/// Whether this process is a stranger.
pub fn is_wanted() -> bool {
    std::env::var_os(ATTACK).is_some()
}

/// Runs in the stranger.
pub fn act() {
    let told = |variable: &str| std::env::var(variable).unwrap();
    let attack = Attack::ALL.into_iter().find(|attack| attack.name() == told(ATTACK)).unwrap();
    let managers = [RESOURCE_MANAGER, EXECUTOR_MANAGER].map(|name| told(name).parse().unwrap());
    let time = Duration::from_millis(told(MILLISECONDS).parse().unwrap());
    assert!(!nix::unistd::geteuid().is_root(), "a stranger has no rights");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();

    let mut stranger = Stranger { begin: Instant::now(), time, did: 0 };
    match attack {
        Attack::HangUp => stranger.connect(managers, |_| Ok(())),
        Attack::Garbage => stranger.connect(managers, |mut socket| socket.write_all(&[b'x'; 224])),
        Attack::HalfOpen => drop(stranger.hold(HALF_OPEN, |number| socket(managers[number % 2]))),
        Attack::Waiting => {
            let device = Devices::load(told(DEVICES)).unwrap().open_only().unwrap();
            stranger.hold(2 * WAITING, |number| {
                let role = ROLES[number % 2];
                let mut channel = Channel::new(&device.device, 16).map_err(io::Error::other)?;
                let answer = channel.connect(managers[number % 2], role, &Empty {}, PAUSE);
                answer.map(|_| channel).map_err(io::Error::other)
            });
        }
        Attack::Descriptors => {
            let memory = memory(ARENA_BYTES);
            let descriptors = [memory.as_raw_fd(); DESCRIPTORS];
            stranger.connect(managers, |socket| send(&socket, Role::Lease, &descriptors));
        }
        Attack::Sparse => {
            for (manager, role) in managers.into_iter().zip(ROLES) {
                accepted(manager, role, &memory(ARENA_BYTES));
            }
            stranger.hold(2 * WAITING, |number| sparse(managers[number % 2], ROLES[number % 2]));
        }
        Attack::Unread => unread(&mut stranger, managers),
        Attack::SlowWriters => slow_writers(&mut stranger, &told(HTTP)),
        Attack::SlowReaders => slow_readers(&mut stranger, &told(HTTP)),
        Attack::Squat => squat(&mut stranger, managers),
        Attack::Hoard => {
            let devices = Devices::load(told(DEVICES)).unwrap();
            let connected = OnceCell::new();
            stranger.hold(HOARD, |_| {
                if connected.get().is_none() {
                    // Turned away while others of this user leave too much unread.
                    let device = devices.open_only().unwrap();
                    let client = Client::connect_as(device, managers[0], "hoarder");
                    let _ = connected.set(client.map_err(io::Error::other)?);
                }
                let client = connected.get().expect("just set");
                client.lease(LeaseRequest::new(1, 16)).map_err(io::Error::other)
            });
        }
    }
    eprintln!("{DID} {}", stranger.did);
}

/// One that is at work.
struct Stranger {
    begin: Instant,
    time: Duration,
    did: u64,
}

impl Stranger {
    /// It did what it does once more; whether there is time left.
    fn goes_on(&mut self) -> bool {
        self.did += 1;
        if self.did == 1 {
            eprintln!("{AT_WORK} now");
            self.begin = Instant::now();
        }
        self.has_time()
    }

    fn has_time(&self) -> bool {
        self.begin.elapsed() < self.time
    }

    /// Connects to the managers in turn, does something with the connection, and hangs up.
    fn connect(&mut self, managers: [SocketAddr; 2], act: impl Fn(UnixStream) -> io::Result<()>) {
        while self.has_time() {
            for manager in managers {
                // Refused, or cut while it did: that is for the manager to decide.
                let _ = socket(manager).and_then(&act);
            }
            self.goes_on();
        }
    }

    /// Holds `most` of what `make` makes, and makes it again when it is refused; returns what it holds in the end.
    fn hold<T>(&mut self, most: usize, make: impl Fn(usize) -> io::Result<T>) -> Vec<T> {
        let mut held = Vec::new();
        let mut number = 0;
        while self.has_time() {
            match make(number) {
                Ok(one) if held.len() < most => held.push(one),
                Ok(one) => {
                    // The oldest goes: it may long be forgotten there.
                    held.push(one);
                    held.remove(0);
                    thread::sleep(PAUSE);
                }
                Err(_) => thread::sleep(PAUSE),
            }
            number += 1;
            self.goes_on();
        }
        held
    }
}

/// The embedded device's name for `address` (`rdmalib/src/providers/shm/handshake/names.rs`).
fn name(address: SocketAddr) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("rdmalib-shm/{address}"))
}

fn socket(address: SocketAddr) -> io::Result<UnixStream> {
    let socket = UnixStream::connect_addr(&name(address)?)?;
    socket.set_write_timeout(Some(PAUSE))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Where the ring is in the memory that a request brings, how deep it is, and the bytes of both: as the device lays it
/// out (`rdmalib/src/providers/shm/arena.rs`). What is wrong here is told by [`accepted`].
const RING_OFFSET: u64 = 8192 * 32;
const RING_DEPTH: u32 = 32;
const ARENA_BYTES: i64 = RING_OFFSET as i64 + (64 << 10);

/// A request to connect as `role`, whose memory is the first of `descriptors`.
fn send(socket: &UnixStream, role: Role, descriptors: &[RawFd]) -> io::Result<()> {
    let hello = Hello::with(role, &Empty {});
    let mut request = [0; 224];
    request[..8].copy_from_slice(b"rdmashm3");
    request[8..16].copy_from_slice(&RING_OFFSET.to_ne_bytes());
    request[16..20].copy_from_slice(&RING_DEPTH.to_ne_bytes());
    request[20..24].copy_from_slice(&1_u32.to_ne_bytes()); // a request
    request[24..28].copy_from_slice(&(hello.len() as u32).to_ne_bytes());
    request[28..28 + hello.len()].copy_from_slice(&hello);
    let rights = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&request)], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Sealed memory, as a domain's; of one that is large nothing is there.
fn memory(bytes: i64) -> OwnedFd {
    let memory =
        memfd_create("stranger", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&memory, bytes).unwrap();
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL)).unwrap();
    memory
}

/// A request with `memory` is what the device takes for one: else this has to follow it. And the memory that
/// comes with the answer cannot be made larger.
fn accepted(manager: SocketAddr, role: Role, memory: &OwnedFd) {
    let socket = socket(manager).unwrap();
    match send(&socket, role, &[memory.as_raw_fd()]) {
        // Other strangers have too many under way themselves.
        Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => return,
        sent => sent.unwrap(),
    }
    let (mut answer, mut control) = ([0; 24], nix::cmsg_space!(RawFd));
    let mut parts = [IoSliceMut::new(&mut answer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let received = received.expect("a request is answered");
    let memory = received.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    if answer[20..] == 4_u32.to_ne_bytes() {
        return; // turned away: other strangers have left too much unread, and this is not the time to ask
    }
    assert_eq!(answer[20..], 2_u32.to_ne_bytes(), "a request as strangers make it is not accepted");
    let path = format!("/proc/self/fd/{}", memory.expect("memory comes with it"));
    let memory = File::options().write(true).open(path).unwrap();
    let larger = memory.set_len(memory.metadata().unwrap().len() + 1).unwrap_err();
    assert_eq!(larger.kind(), io::ErrorKind::PermissionDenied, "{larger}");
}

/// A connection, if it is made, with as much memory of nothing as the system lets a file have.
fn sparse(manager: SocketAddr, role: Role) -> io::Result<UnixStream> {
    let socket = socket(manager)?;
    send(&socket, role, &[memory(SPARSE_BYTES).as_raw_fd()])?;
    Ok(socket)
}

fn unread(stranger: &mut Stranger, managers: [SocketAddr; 2]) {
    let memory = memory(ARENA_BYTES);
    let held = stranger.hold(HALF_OPEN, |number| {
        let socket = socket(managers[number % 2])?;
        send(&socket, ROLES[number % 2], &[memory.as_raw_fd()])?;
        socket.shutdown(Shutdown::Write)?; // it ends there, and not here, where the answer stays
        Ok(socket)
    });
    let answers: Vec<[u8; 24]> = held.iter().filter_map(peek).collect();
    let count =
        |kind: u32| answers.iter().filter(|bytes| bytes[20..] == kind.to_ne_bytes()).count();
    let (accepted, crowded) = (count(2), count(4));
    assert!(accepted > 0 && crowded > 0, "{accepted} accepted, {crowded} turned away");
}

/// The beginning of an answer, which stays where it is.
fn peek(socket: &UnixStream) -> Option<[u8; 24]> {
    let mut answer = [0; 24];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    (recv(socket.as_raw_fd(), &mut answer, flags) == Ok(answer.len())).then_some(answer)
}

fn slow_writers(stranger: &mut Stranger, http: &str) {
    let mut held: Vec<TcpStream> = Vec::new();
    while stranger.has_time() {
        held.retain_mut(|connection| connection.write_all(b"x").is_ok());
        while held.len() < SLOW && stranger.has_time() {
            let Ok(mut connection) = TcpStream::connect(http) else { break };
            if connection.write_all(b"POST /leases HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").is_ok()
            {
                held.push(connection);
            }
            stranger.goes_on();
        }
        thread::sleep(PAUSE);
    }
}

fn slow_readers(stranger: &mut Stranger, http: &str) {
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let mut held: Vec<TcpStream> = Vec::new();
    while stranger.has_time() {
        held.retain_mut(|connection| match connection.write(&ask) {
            Err(error) => error.kind() == io::ErrorKind::WouldBlock, // it does not read any more either
            Ok(_) => true,
        });
        while held.len() < SLOW && stranger.has_time() {
            let Ok(connection) = TcpStream::connect(http) else { break };
            if connection.set_nonblocking(true).is_ok() {
                held.push(connection);
            }
            stranger.goes_on();
        }
        thread::sleep(PAUSE);
    }
}

fn squat(stranger: &mut Stranger, managers: [SocketAddr; 2]) {
    for manager in managers {
        let taken = UnixListener::bind_addr(&name(manager).unwrap()).unwrap_err();
        assert_eq!(taken.raw_os_error(), Some(Errno::EADDRINUSE as i32), "{taken}");
    }
    let ports = (49152..=u16::MAX).step_by((65536 - 49152) / NAMES);
    let at = |port| name(SocketAddr::new(managers[0].ip(), port)).unwrap();
    let mut held = Vec::new();
    for port in ports {
        // Taken by somebody who was there before.
        held.extend(UnixListener::bind_addr(&at(port)));
    }
    stranger.goes_on();
    while stranger.has_time() {
        thread::sleep(PAUSE);
    }
    stranger.did = held.len() as u64;
}
