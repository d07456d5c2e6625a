//! The handshake of the embedded device: any bytes with any descriptors, from who connects and from who listens, and
//! then memory that says anything.
//!
//! ```text
//!   input ──▶ message, files (what they are, their words), bytes behind it ──▶ Listener, or QueuePair::connect
//! ```
//! Whatever comes, the device refuses it or has a connection. Requests on that one end, and what was passed is closed.
//!
//! Elsewhere: peers that change their memory meanwhile (`rdmalib::providers::shm::hostile`).

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rdmalib::{
    Access, CompletionQueue, Device, Flags, Listener, MAX_ACCEPT_DATA, MAX_CONNECT_DATA, Operation,
    QueuePair, QueuePairConfig, Region, RemoteAddress, Source, WorkCompletion, WorkRequest,
};

use crate::assert_line;
use crate::cursor::Cursor;
use crate::device::open;

/// Bytes of a message of the handshake.
const MESSAGE_BYTES: usize = 224;
/// Bytes of a domain's key table, with which its file begins.
const TABLE_BYTES: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// Most words of a file that an input sets.
const MOST_WORDS: usize = 64;
/// Both ends are in this process. Only a finding takes so long.
const CONNECT_TIME: Duration = Duration::from_secs(60);
/// Bit of the ids of receives.
const RECEIVE: u64 = 1 << 32;

/// Bits of an input's first byte.
const LISTENS: u8 = 1;
const SHRINKS: u8 = 2;
const IS_NO_MEMFD: u8 = 4;
const SAYS_MORE: u8 = 8;
const IN_PARTS: u8 = 16;

pub(crate) fn run(bytes: &[u8]) {
    thread_local!(static ATTACKED: RefCell<Attacked> = RefCell::new(Attacked::new()));
    ATTACKED.with_borrow_mut(|attacked| attacked.by(&Peer::new(bytes)));
}

/// What a peer sends.
struct Peer {
    kind: u8,
    files: usize,
    message: Vec<u8>,
    file: File,
    /// What is asked of the connection, if there is one: where, with which key, how many bytes.
    asked: [(u64, u64, u16); 2],
}

impl Peer {
    fn new(bytes: &[u8]) -> Peer {
        let mut input = Cursor::new(bytes);
        let (kind, files, pages) = (input.u8(), usize::from(input.u8() % 4), input.u16());
        let message = input.bytes(MESSAGE_BYTES).to_vec();
        let asked = [(); 2].map(|()| (input.u64(), input.u64(), input.u16() % PAGE as u16));
        let file = file(kind, pages, &mut input);
        Peer { kind, files, message, file, asked }
    }

    /// Sends all that it has to say.
    fn speak(&self, socket: &UnixStream) {
        let number = [self.file.as_raw_fd(); 4];
        let control = [ControlMessage::ScmRights(&number[..self.files])];
        let control = if self.files == 0 { &[] } else { &control[..] };
        let parts = match self.kind & IN_PARTS {
            0 => (&self.message[..], &[][..]),
            _ => self.message.split_at(self.message.len() / 2),
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // It may be cut off in between.
        let _ = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(parts.0)], control, flags, None);
        for more in [parts.1, if self.kind & SAYS_MORE == 0 { &[] } else { &[1; 80][..] }] {
            if !more.is_empty() {
                let more = [IoSlice::new(more)];
                let _ = sendmsg::<()>(socket.as_raw_fd(), &more, &[], flags, None);
            }
        }
    }
}

/// Makes the file that a peer says is its memory.
fn file(kind: u8, pages: u16, words: &mut Cursor<'_>) -> File {
    if kind & IS_NO_MEMFD != 0 {
        return File::open("/dev/null").expect("every machine has it");
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"fuzz", flags).expect("memory"));
    let len = (TABLE_BYTES + PAGE * u64::from(pages % 1024)).saturating_sub(PAGE);
    file.set_len(len).expect("it is sparse");
    for _ in 0..MOST_WORDS {
        if words.is_empty() {
            break;
        }
        // Most words of a table are those of its first keys.
        let (at, word) = (u64::from(words.u16()) * 8, words.u64());
        if at + 8 <= len {
            file.write_all_at(&word.to_ne_bytes(), at).expect("it is there");
        }
    }
    if kind & SHRINKS == 0 {
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("it may be sealed");
    }
    file
}

/// The side that follows the protocol.
struct Attacked {
    device: Device,
    listener: Listener,
    /// Where the other side listens.
    theirs: UnixListener,
    at: SocketAddr,
}

impl Attacked {
    fn new() -> Attacked {
        let device = open(0);
        let listener = device.listen(0).expect("an address");
        // Addresses are only names there: this is that of the listener, in another family.
        let mut ip = Ipv6Addr::LOCALHOST.octets();
        ip[0] = 0xfd;
        let at = SocketAddr::new(IpAddr::V6(ip.into()), listener.local_addr().port());
        let theirs = UnixListener::bind_addr(&name(at)).expect("nobody else has this name");
        Attacked { device, listener, theirs, at }
    }

    fn by(&mut self, peer: &Peer) {
        if peer.kind & LISTENS != 0 { self.connect(peer) } else { self.listen(peer) }
    }

    /// The peer connects.
    fn listen(&mut self, peer: &Peer) {
        let listener = name(self.listener.local_addr());
        let socket = UnixStream::connect_addr(&listener).expect("it listens");
        peer.speak(&socket);
        match self.listener.try_next() {
            Ok(None) => {} // it was told nothing, or dropped who has told it
            Ok(Some(request)) => {
                assert!(request.private_data().len() <= MAX_CONNECT_DATA);
                let mut end = End::new(&self.device);
                match request.accept(&mut end.queue_pair, &[7; 9]) {
                    Ok(()) => end.use_connection(peer),
                    Err(error) => assert_line(&error.to_string()),
                }
            }
            Err(error) => panic!("the listener has failed: {error}"),
        }
    }

    /// The peer listens.
    fn connect(&mut self, peer: &Peer) {
        let mut end = End::new(&self.device);
        let (theirs, at) = (&self.theirs, self.at);
        std::thread::scope(|scope| {
            let speaks = scope.spawn(|| {
                let (socket, _) = theirs.accept().expect("somebody connects");
                peer.speak(&socket);
                // Who says nothing is waited for.
                (!peer.message.is_empty()).then_some(socket)
            });
            let connected = end.queue_pair.connect(at, &[7; 9], CONNECT_TIME);
            let _socket = speaks.join().expect("it has spoken");
            match connected {
                Ok(answer) => {
                    assert!(answer.as_slice().len() <= MAX_ACCEPT_DATA);
                    end.use_connection(peer);
                }
                Err(error) => assert_line(&error.to_string()),
            }
        });
    }
}

/// One end that follows the protocol, and its memory.
struct End {
    queue_pair: QueuePair, // first: its requests name the memory below
    completions: CompletionQueue,
    bytes: Region,
}

impl End {
    fn new(device: &Device) -> End {
        let domain = device.domain().expect("a domain");
        let bytes = domain.allocate(PAGE as usize, Access::LOCAL_WRITE).expect("memory");
        let completions = device.completion_queue(32).expect("a queue");
        let depth =
            QueuePairConfig { send_depth: 8, receive_depth: 8, ..QueuePairConfig::default() };
        let mut queue_pair =
            QueuePair::new(&domain, &completions, &completions, &depth).expect("a queue pair");
        for id in 0..8 {
            let bytes = bytes.slice(0..64).expect("it is a page");
            queue_pair.post_receive(RECEIVE | id, Some(bytes)).expect("there is room");
        }
        End { queue_pair, completions, bytes }
    }

    /// Writes to the peer and reads from it, wherever it says, and takes what has arrived.
    fn use_connection(&mut self, peer: &Peer) {
        let [(written, written_key, bytes), (read, read_key, more)] = peer.asked;
        let place = |addr, key| RemoteAddress { addr, key };
        let of = |bytes: u16| self.bytes.slice(0..usize::from(bytes)).expect("it is a page");
        let (to, from, source) = (place(written, written_key), place(read, read_key), of(bytes));
        let source = Source::Region(source);
        for operation in [
            Operation::Send { source, immediate: None },
            Operation::Write { source, to, immediate: None },
            Operation::Write { source, to, immediate: Some(7) },
            Operation::Read { into: of(more), from },
            Operation::FetchAdd { into: of(8), at: from, add: 1 },
        ] {
            let request = WorkRequest { id: 0, operation, flags: Flags::SIGNALED };
            if let Err(error) = self.queue_pair.post(&request) {
                assert_line(&error.to_string());
            }
        }
        if let Err(error) = self.queue_pair.map_remote(from, usize::from(more), Access::REMOTE_READ)
        {
            assert_line(&error.to_string());
        }
        let mut completed = [WorkCompletion::default(); 32];
        let mut receives = 0;
        for _ in 0..4 {
            let taken = self.completions.poll(&mut completed);
            receives += completed[..taken].iter().filter(|done| done.id & RECEIVE != 0).count();
        }
        assert!(receives <= 8, "more receives than were posted");
    }
}

fn name(at: SocketAddr) -> UnixAddr {
    UnixAddr::from_abstract_name(format!("rdmalib-shm/{at}")).expect("it is short")
}
