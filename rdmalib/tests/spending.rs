//! What a peer that speaks the embedded device's handshake by itself can make a process spend:
//! descriptors, addresses, the listener's time. Counted before and after, so the tests run one after
//! the other.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rdmalib::{
    CompletionQueue, ConnectRequest, Device, Domain, Error, Listener, Peer, QueuePair,
    QueuePairConfig,
};
use rdmalib_testing::{LINGERING, device, eventually, lingering, name};

/// Longest wait for what must happen; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the table of keys at the start of a domain.
const KEY_TABLE: u64 = 8192 * 32;
/// Bytes of a message of the handshake, and what kinds there are.
const MESSAGE: usize = 224;
const CONNECT: u32 = 1;
const CROWDED: u32 = 4;
const EXHAUSTED: u32 = 5;
/// Users of whom there are no other processes, not even of another run of this test: this number
/// plus the process id.
const NOBODY_ELSE: u32 = 10_000_000;
/// Acceptances of one user that may be unread.
const UNREAD_KEPT: usize = 64;
/// Connectors of one user that have said nothing, and that a listener keeps.
const SILENT_KEPT: usize = 64;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until no more than `most` descriptors are open: what peers have a part in is closed a
/// little later.
fn at_most(most: usize) {
    let deadline = Instant::now() + PATIENCE;
    while descriptors() > most {
        assert!(Instant::now() < deadline, "{} descriptors, not {most}", descriptors());
        thread::sleep(Duration::from_millis(1));
    }
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Addresses in use, in bytes.
fn addresses() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

/// What one end of a connection is made of.
struct End {
    queue_pair: QueuePair,
    completions: CompletionQueue,
    _domain: Domain,
}

fn end(device: &Device) -> End {
    let domain = device.domain().unwrap();
    let completions = device.completion_queue(16).unwrap();
    let config = QueuePairConfig { send_depth: 8, receive_depth: 8, ..Default::default() };
    let queue_pair = QueuePair::new(&domain, &completions, &completions, &config).unwrap();
    End { queue_pair, completions, _domain: domain }
}

/// The message of a peer whose ring is right behind its key table.
fn message(kind: u32) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[..8].copy_from_slice(b"rdmashm3");
    bytes[8..16].copy_from_slice(&KEY_TABLE.to_ne_bytes());
    bytes[16..20].copy_from_slice(&8u32.to_ne_bytes());
    bytes[20..24].copy_from_slice(&kind.to_ne_bytes());
    bytes
}

fn kind_of(answer: &[u8]) -> u32 {
    u32::from_ne_bytes(answer[20..24].try_into().unwrap())
}

/// A file as a domain is one, of `bytes` bytes that were never written.
fn sparse(bytes: u64) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("raw", flags).unwrap();
    nix::unistd::ftruncate(&file, i64::try_from(bytes).unwrap()).unwrap();
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

fn dial(listener: &Listener) -> UnixStream {
    UnixStream::connect_addr(&name(listener.local_addr())).unwrap()
}

fn send_with(socket: &UnixStream, bytes: &[u8], files: &[RawFd]) {
    let control = [ControlMessage::ScmRights(files)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn has_news(listener: &Listener) -> bool {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

/// Takes and drops all requests that there are, and returns how many.
fn drain(listener: &mut Listener) -> usize {
    let mut requests = 0;
    while has_news(listener) {
        requests += usize::from(listener.try_next().unwrap().is_some());
    }
    requests
}

fn request(listener: &mut Listener) -> ConnectRequest {
    listener.next(PATIENCE).unwrap().expect("somebody connects")
}

/// A connector that follows the protocol is served.
fn serve_an_honest_one(device: &Device, listener: &mut Listener) {
    let to = listener.local_addr();
    let other = device.clone();
    let connector = thread::spawn(move || {
        let mut end = end(&other);
        end.queue_pair.connect(to, b"honest", PATIENCE).map(|_| end)
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "not served");
        let request = request(listener);
        if request.private_data() == b"honest" {
            let mut end = end(device);
            request.accept(&mut end.queue_pair, &[]).unwrap();
            connector.join().unwrap().expect("connected");
            return;
        }
    }
}

#[test]
fn descriptors_that_come_with_a_request_are_ours_and_closed_however_many() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let file = sparse(KEY_TABLE + (1 << 20));
    let before = descriptors();
    for passed in [1, 2, 3, 4, 5, 20, 253] {
        for first in [file.as_raw_fd(), 0] {
            let mut files = vec![0; passed];
            files[0] = first;
            let socket = dial(&listener);
            send_with(&socket, &message(CONNECT), &files);
            let asked_for = first == file.as_raw_fd() && passed == 1;
            assert_eq!(drain(&mut listener), usize::from(asked_for));
        }
    }
    at_most(before);
}

#[test]
fn descriptors_that_come_with_an_answer_or_a_doorbell_are_closed_too() {
    let _alone = alone();
    let device = device();
    let file = sparse(KEY_TABLE + (1 << 20));
    let addr = "127.0.0.1:7".parse().unwrap(); // no device of the other tests listens there
    let raw = UnixListener::bind_addr(&name(addr)).unwrap();
    let before = descriptors();
    let answerer = thread::spawn(move || {
        for passed in [20, 1] {
            let (mut socket, _) = raw.accept().unwrap();
            socket.read_exact(&mut [0; MESSAGE]).unwrap();
            send_with(&socket, &message(2), &vec![file.as_raw_fd(); passed]);
            let _ = socket.read(&mut [0]); // until it is connected, or is not
            let files = [file.as_raw_fd(); 20];
            let control = [ControlMessage::ScmRights(&files)];
            let bell = [IoSlice::new(&[1])];
            let flags = MsgFlags::MSG_NOSIGNAL;
            // Refused where the kernel can.
            let _ = sendmsg::<()>(socket.as_raw_fd(), &bell, &control, flags, None);
        }
        (raw, file)
    });
    let error = end(&device).queue_pair.connect(addr, &[], PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    let mut end = end(&device);
    end.queue_pair.connect(addr, &[], PATIENCE).unwrap();
    end.queue_pair.disconnect();
    let raw = answerer.join().unwrap();
    end.completions.wait(Some(Duration::from_millis(10))).unwrap();
    drop(end);
    at_most(before);
    drop(raw);
}

#[test]
fn a_file_is_not_mapped_as_large_as_it_says() {
    const PEERS: u64 = 200;
    /// For the raw peer's domain and for our own, nothing of which is large.
    const MOST_PER_PEER: u64 = 16 << 20;
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let (maps, used, before) = (mappings(), addresses(), descriptors());
    let mut ends = Vec::new();
    for _ in 0..PEERS {
        let mut socket = dial(&listener);
        let file = sparse(1 << 46);
        send_with(&socket, &message(CONNECT), &[file.as_raw_fd()]);
        let mut end = end(&device);
        request(&mut listener).accept(&mut end.queue_pair, &[]).unwrap();
        socket.read_exact(&mut [0; MESSAGE]).unwrap();
        ends.push((end, socket, file));
    }
    let grown = addresses() - used;
    assert!(grown <= PEERS * MOST_PER_PEER, "{grown} bytes for {PEERS} peers");
    serve_an_honest_one(&device, &mut listener);
    drop(ends);
    at_most(before);
    // A few threads: those of the honest one may leave their stacks in the allocator's cache,
    // and those that close stay.
    assert!(mappings() <= maps + 64, "{} mappings were {maps}", mappings());
    // Each has 64 MiB of addresses for what it allocates.
    assert!(addresses() <= used + (512 << 20), "{} bytes were {used}", addresses());
}

#[test]
fn who_hangs_up_again_and_again_has_its_turn_and_no_more() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let before = descriptors();
    for garbage in [0, 1, MESSAGE] {
        for _ in 0..100 {
            let mut socket = dial(&listener);
            socket.write_all(&vec![b'x'; garbage]).unwrap();
        }
        assert!(listener.try_next().unwrap().is_none());
        assert!(has_news(&listener), "all of them were taken in one turn");
        assert_eq!(drain(&mut listener), 0);
    }
    at_most(before);
    serve_an_honest_one(&device, &mut listener);
}

#[test]
fn who_says_nothing_makes_room_and_is_told_so() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let before = descriptors();
    let mut silent = Vec::new();
    for _ in 0..4 * SILENT_KEPT {
        silent.push(dial(&listener));
        assert_eq!(drain(&mut listener), 0);
    }
    at_most(before + silent.len() + SILENT_KEPT);
    serve_an_honest_one(&device, &mut listener);
    let mut answer = [0; MESSAGE];
    silent[0].read_exact(&mut answer).unwrap();
    assert_eq!(kind_of(&answer), CROWDED);
    assert_eq!(silent[0].read(&mut answer).unwrap(), 0, "and closed");
    let youngest = silent.last().unwrap();
    youngest.set_nonblocking(true).unwrap();
    assert!((&*youngest).read(&mut answer).is_err(), "the youngest still waits");
}

/// Whether a thread of this process is in close(2); `None` where the kernel does not say.
fn somebody_closes() -> Option<bool> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let calls: Vec<_> = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("syscall")).ok())
        .collect();
    let close = format!("{} ", libc::SYS_close);
    (!calls.is_empty()).then(|| calls.iter().any(|call| call.starts_with(&close)))
}

/// Waits until a thread is in close(2), which may be a while after the socket was handed to it.
/// Without one, the test that asks shows nothing.
fn something_lingers() {
    eventually("a thread closes what lingers", || somebody_closes() != Some(false));
}

#[test]
fn nobody_waits_until_what_a_peer_passed_is_closed() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let before = descriptors();
    let start = Instant::now();
    let file = sparse(KEY_TABLE + (1 << 20));
    let mut others = Vec::new();
    for way in 0..4 {
        let (passed, other) = lingering();
        let socket = dial(&listener);
        let asked_for = message(CONNECT);
        match way {
            0 => send_with(&socket, &asked_for, &[passed.as_raw_fd()]), // in place of its memory
            1 => send_with(&socket, &asked_for, &[file.as_raw_fd(), passed.as_raw_fd()]),
            2 => send_with(&socket, &asked_for[1..], &[passed.as_raw_fd()]),
            _ => {
                send_with(&socket, &asked_for, &[file.as_raw_fd()]);
                send_with(&socket, &[1], &[passed.as_raw_fd()]); // as what wakes us later
            }
        }
        drop(passed);
        assert_eq!(drain(&mut listener), 0);
        others.push((socket, other));
    }
    serve_an_honest_one(&device, &mut listener);
    assert!(start.elapsed() < LINGERING, "waited for a peer");
    something_lingers();
    drop((others, file));
    at_most(before);
}

#[test]
fn what_is_never_closed_keeps_nothing_else_open() {
    /// More than there are threads for what may take for ever.
    const STUCK: usize = 12;
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let mut others = Vec::new();
    for way in 0..2 * STUCK {
        let (passed, other) = lingering();
        let socket = dial(&listener);
        match way % 2 {
            0 => send_with(&socket, &message(CONNECT), &[passed.as_raw_fd()]),
            _ => send_with(&socket, &message(CONNECT)[1..], &[passed.as_raw_fd()]),
        }
        drop(passed);
        assert_eq!(drain(&mut listener), 0);
        others.push(other);
    }
    // Connectors, honest or not, beside what is stuck.
    let before = descriptors();
    for _ in 0..2 * SILENT_KEPT {
        serve_an_honest_one(&device, &mut listener);
        dial(&listener).write_all(&[b'x'; MESSAGE]).unwrap();
        assert_eq!(drain(&mut listener), 0);
    }
    at_most(before);
    something_lingers();
    drop(others);
    at_most(before - 2 * STUCK);
}

#[test]
fn a_request_is_counted_for_the_user_of_its_process() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let socket = dial(&listener);
    let file = sparse(KEY_TABLE + (1 << 20));
    send_with(&socket, &message(CONNECT), &[file.as_raw_fd()]);
    let origin = request(&mut listener).origin();
    assert_eq!(origin, Peer::User(nix::unistd::getuid().as_raw()));
}

/// Connects to somebody who does `what` with each connector.
fn connect_to(what: impl FnOnce(UnixListener) + Send + 'static) -> Error {
    let device = device();
    let addr = "127.0.0.1:7".parse().unwrap();
    let raw = UnixListener::bind_addr(&name(addr)).unwrap();
    let other = thread::spawn(move || what(raw));
    let error = end(&device).queue_pair.connect(addr, &[], PATIENCE).unwrap_err();
    other.join().unwrap();
    error
}

fn answer_with(kind: u32) -> impl FnOnce(UnixListener) + Send {
    move |listener| {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; MESSAGE]).unwrap();
        socket.write_all(&message(kind)).unwrap();
    }
}

#[test]
fn nobody_listens_is_said_only_when_nobody_does() {
    let _alone = alone();
    let device = device();
    let addr = "127.0.0.1:7".parse().unwrap();
    let error = end(&device).queue_pair.connect(addr, &[], PATIENCE).unwrap_err();
    assert!(matches!(error, Error::ConnectionRefused(to) if to == addr), "{error}");

    let error = connect_to(|listener| drop(listener.accept().unwrap()));
    assert!(matches!(error, Error::ConnectionDropped(to) if to == addr), "{error}");
    let error = connect_to(answer_with(CROWDED));
    assert!(matches!(error, Error::TooManyConnections(to) if to == addr), "{error}");
    let error = connect_to(answer_with(EXHAUSTED));
    assert!(matches!(error, Error::ListenerExhausted(to) if to == addr), "{error}");
}

#[test]
fn a_full_queue_is_told_as_one() {
    let _alone = alone();
    let device = device();
    let addr = "127.0.0.1:7".parse().unwrap();
    let raw = UnixListener::bind_addr(&name(addr)).unwrap();
    nix::sys::socket::listen(&raw, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let full: Vec<_> = (0..2).map(|_| UnixStream::connect_addr(&name(addr)).unwrap()).collect();
    let timeout = Duration::from_millis(20);
    let error = end(&device).queue_pair.connect(addr, &[], timeout).unwrap_err();
    assert!(matches!(error, Error::ListenerQueueFull { to, .. } if to == addr), "{error}");
    drop(full);
}

/// Runs the test `name` as another user without rights, because root is exempt from the limit. Returns
/// whether it did: only root can.
fn as_another_user(name: &str) -> bool {
    if !nix::unistd::getuid().is_root() {
        return false;
    }
    // The tree may be in a home that is its owner's alone.
    let user = NOBODY_ELSE + std::process::id();
    let program = std::env::temp_dir().join(format!("rdmalib-spending-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = Command::new(&program)
        .args(["--exact", name])
        .uid(user)
        .gid(user)
        .current_dir("/")
        .output();
    std::fs::remove_file(&program).unwrap();
    let said = String::from_utf8_lossy(&run.unwrap().stdout).into_owned();
    assert!(said.contains("1 passed"), "{said}");
    true
}

#[test]
fn acceptances_that_nobody_reads_are_few_and_keep_nobody_from_passing_descriptors() {
    /// Descriptors that may be under way.
    const LIMIT: u64 = UNREAD_KEPT as u64 + 8;
    let _alone = alone();
    let name = "acceptances_that_nobody_reads_are_few_and_keep_nobody_from_passing_descriptors";
    if as_another_user(name) {
        return;
    }
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let file = sparse(KEY_TABLE + (1 << 20));
    let before = descriptors();
    let mut accept_under = |limit: u64| {
        let socket = dial(&listener);
        send_with(&socket, &message(CONNECT), &[file.as_raw_fd()]);
        let mut end = end(&device);
        let accepted = listener.try_next().unwrap().map(|request| {
            limited(Resource::RLIMIT_NOFILE, limit, || request.accept(&mut end.queue_pair, &[]))
        });
        (socket, accepted) // and the connection ends
    };
    let mut unread: Vec<_> = (0..UNREAD_KEPT / 2).map(|_| accept_under(LIMIT)).collect();
    let (_, refused) = accept_under(UNREAD_KEPT as u64 / 4);
    let error = refused.unwrap().unwrap_err();
    assert!(matches!(error, Error::TooManyUnread { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    unread.extend((0..LIMIT).map(|_| accept_under(LIMIT)));
    let accepted = unread.iter().filter(|(_, accepted)| matches!(accepted, Some(Ok(()))));
    assert_eq!(accepted.count(), UNREAD_KEPT);
    let mut answer = [0; MESSAGE];
    unread.last_mut().unwrap().0.read_exact(&mut answer).unwrap();
    assert_eq!(kind_of(&answer), CROWDED);

    unread[0].0.read_exact(&mut answer).unwrap();
    until_there_is_room(|| accept_under(LIMIT).1.map(Result::unwrap));
    drop(unread);
    at_most(before);
    serve_an_honest_one(&device, &mut listener);
}

/// Connects until a connector is accepted: the listener does not check for each whether there is
/// room again.
fn until_there_is_room<T>(mut accept: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(accepted) = accept() {
            return accepted;
        }
        assert!(Instant::now() < deadline, "there is no room");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn acceptances_that_nobody_reads_are_as_few_while_their_connections_live() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let file = sparse(KEY_TABLE + (1 << 20));
    let before = descriptors();
    let mut accept = || {
        let socket = dial(&listener);
        send_with(&socket, &message(CONNECT), &[file.as_raw_fd()]);
        let accepted = listener.try_next().unwrap().map(|request| {
            let mut end = end(&device);
            request.accept(&mut end.queue_pair, &[]).unwrap();
            end
        });
        (socket, accepted)
    };
    let mut live: Vec<_> = (0..2 * UNREAD_KEPT).map(|_| accept()).collect();
    assert_eq!(live.iter().filter(|(_, accepted)| accepted.is_some()).count(), UNREAD_KEPT);
    let mut answer = [0; MESSAGE];
    live.last_mut().unwrap().0.read_exact(&mut answer).unwrap();
    assert_eq!(kind_of(&answer), CROWDED);
    live.truncate(UNREAD_KEPT);

    // Whichever way it ends: it is read, or its connector goes.
    live[0].0.read_exact(&mut answer).unwrap();
    let (silent, _live) = until_there_is_room(|| {
        let (socket, accepted) = accept();
        accepted.map(|end| (socket, end))
    });
    drop(silent);
    until_there_is_room(|| accept().1);
    drop((live, _live));
    at_most(before);
    serve_an_honest_one(&device, &mut listener);
}

/// Runs `what` with another soft limit.
fn limited<T>(resource: Resource, soft: u64, what: impl FnOnce() -> T) -> T {
    let (before, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, soft.min(hard), hard).unwrap();
    let result = what();
    setrlimit(resource, before, hard).unwrap();
    result
}

#[test]
fn a_listener_without_descriptors_tells_who_connects() {
    let _alone = alone();
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let mut socket = dial(&listener);
    let file = sparse(KEY_TABLE + (1 << 20));
    send_with(&socket, &message(CONNECT), &[file.as_raw_fd()]);
    // The lowest that is free. The connection takes it, and none is left for the descriptor that
    // comes with the request.
    let free = file.try_clone().unwrap().as_raw_fd() as u64;
    let taken = limited(Resource::RLIMIT_NOFILE, free + 1, || listener.try_next());
    assert!(matches!(taken, Err(Error::OutOfDescriptors { .. })), "its own program is told too");
    let mut answer = [0; MESSAGE];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(kind_of(&answer), EXHAUSTED);
    serve_an_honest_one(&device, &mut listener);
}

#[test]
fn limits_of_this_process_are_errors_that_name_them() {
    let _alone = alone();
    let device = device();
    let open = descriptors() as u64;
    let error = limited(Resource::RLIMIT_NOFILE, open, || {
        // All that are left, and one more.
        let mut queues = Vec::new();
        loop {
            match device.completion_queue(1) {
                Ok(queue) => queues.push(queue),
                Err(error) => return error,
            }
        }
    });
    assert!(matches!(error, Error::OutOfDescriptors { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");

    let error = limited(Resource::RLIMIT_FSIZE, 100 << 10, || device.domain().unwrap_err());
    assert!(matches!(error, Error::FileSizeLimit { limit: 102_400, .. }), "{error}");
    assert!(error.to_string().contains("ulimit -f"), "{error}");

    let domain = device.domain().unwrap();
    let error = limited(Resource::RLIMIT_AS, addresses() + (64 << 20), || {
        domain.allocate(1 << 30, rdmalib::Access::empty()).unwrap_err()
    });
    assert!(matches!(error, Error::OutOfAddresses { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -v"), "{error}");
}
