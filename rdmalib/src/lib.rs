//! RDMA for programs that must also run without RDMA hardware.
//!
//! One safe API, the objects of libibverbs and librdmacm, over providers that are chosen once, when
//! a [`Device`] is opened:
//!
//! ```text
//!   Device ──▶ Domain ──▶ Region (owned, registered)  ──remote()──▶ RemoteAddress, sent to the peer
//!     │           └─────▶ QueuePair = SendQueue + ReceiveQueue ──connect / accept──▶ the peer's
//!     ├──▶ CompletionQueue ◀── finished work requests of one or several queue pairs
//!     └──▶ Listener ──▶ ConnectRequest
//! ```
//! It is an internal crate, without a promise of stability: applications use `rfaas`.
//!
//! # What holds
//! On every provider:
//! * **An error changes nothing.** A call does what it says, or returns an [`Error`] and leaves
//!   everything as it was. The exception is a connection that fails halfway: see
//!   [`QueuePair::connect`].
//! * **Three calls wait for others**: [`QueuePair::connect`], [`Listener::next`] and
//!   [`CompletionQueue::wait`]. Each has a time limit. Posting and polling make no system call
//!   while the peer keeps up, except to wake a thread that sleeps. (The driver of SoftRoCE makes
//!   some, and on TCP a post sends and a poll receives.)
//! * **Order.** The requests of a send queue are carried out in the order of posting, those of a
//!   receive queue are used up in that order, and the completions of one queue come in it.
//!   Completions of different queues have no order. On RDMA devices a request may overtake earlier
//!   reads and atomics ([`Flags::FENCE`]).
//! * **Whole or not at all.** A request that its key, range or rights do not allow changes no
//!   memory. When a completion says [`Status::Success`], all bytes are in place. If the connection
//!   ends in the middle of a request, part of its bytes may be in place, and no completion
//!   announces them.
//! * **A failed request ends the connection**, at both ends.
//! * **The end comes last.** What arrived before a connection ended is completed before the rest is
//!   [flushed](Status::Flushed). Every request that was posted completes or is flushed, except
//!   unsignaled requests that succeed.
//! * **A peer may lie.** Its bytes and messages never cause a panic, nor an access outside of
//!   memory that is registered for it. What it may do inside is said at [`Domain`].
//! * **Objects keep alive what they were made from.** A device closes with its last object, a
//!   domain ends with its last region and queue pair.
//!
//! [`Error`] and [`Status`] are different things. An `Error` says that a call failed and that
//! nothing was posted. A `Status` says how a request that was posted has ended.
//!
//! # Never
//! * Never make a reference to bytes of a [`Region`] or a [`RemoteMapping`]: a peer may change them
//!   at any moment. They are copied out, and a second read may return other bytes. So copy once,
//!   then check the copy.
//! * Never poll memory to learn that a write has arrived: its bytes land in any order. Ask for a
//!   completion, with immediate data.
//! * Never change the source of a request, nor use the buffer of a receive, before its completion.
//! * Never post more than [`send_depth`](QueuePairConfig::send_depth) requests without one that is
//!   [signaled](Flags::SIGNALED).
//! * Never drop a queue pair while completions matter that were not polled
//!   ([how to end](QueuePair#ending-a-connection)).
//! * Never share a domain among peers that must not reach each other's memory.
//! * Never use an object in a forked child ([below](#forked-processes)).
//!
//! # Example
//! Two ends in one process, on the embedded device. The server offers 64 bytes; the client writes
//! into them and announces that with immediate data. Two processes do the same: each opens the
//! device, the server listens at a port that both know (`device.listen(10000)`), and the client
//! connects to that port at the device's address.
//! ```
//! use std::time::{Duration, Instant};
//!
//! use rdmalib::{
//!     Access, CompletionQueue, Device, DeviceSpec, Domain, Error, Flags, Operation, Provider,
//!     QueuePair, QueuePairConfig, RemoteAddress, Result, Source, Status, WorkCompletion,
//!     WorkRequest,
//! };
//!
//! const LIMIT: Duration = Duration::from_secs(10);
//!
//! /// What both ends need: memory, completions, and a queue pair that is not connected yet.
//! fn end(device: &Device) -> Result<(Domain, CompletionQueue, QueuePair)> {
//!     let domain = device.domain()?;
//!     let completions = device.completion_queue(8)?;
//!     let config = QueuePairConfig {
//!         send_depth: 4,
//!         receive_depth: 4,
//!         max_inline_data: 64,
//!         ..QueuePairConfig::default()
//!     };
//!     let pair = QueuePair::new(&domain, &completions, &completions, &config)?;
//!     Ok((domain, completions, pair))
//! }
//!
//! /// The next completion, within the limit. A wait may return early, and without one.
//! fn next(completions: &mut CompletionQueue) -> Result<WorkCompletion> {
//!     let deadline = Instant::now() + LIMIT;
//!     loop {
//!         if let Some(done) = completions.poll_one() {
//!             return Ok(done);
//!         }
//!         let left = deadline.saturating_duration_since(Instant::now());
//!         if left.is_zero() {
//!             return Err(Error::TimedOut { what: "a completion", after: LIMIT });
//!         }
//!         completions.wait(Some(left))?;
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let device = Device::open(&DeviceSpec {
//!     name: "shm0".into(),
//!     provider: Provider::Shm,
//!     ip_address: [127, 0, 0, 1].into(),
//!     max_inline_data: 64,
//! })?;
//! let mut listener = device.listen(0)?; // any free port
//! let to = listener.local_addr();
//!
//! let server_device = device.clone();
//! let server = std::thread::spawn(move || -> Result<()> {
//!     let (domain, mut completions, mut pair) = end(&server_device)?;
//!     let region = domain.allocate(64, Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
//!     pair.post_receive(1, None)?; // before anything can arrive
//!     let request = listener.next(LIMIT)?.expect("the client connects");
//!     let RemoteAddress { addr, key } = region.remote();
//!     request.accept(&mut pair, &[addr.to_le_bytes(), key.to_le_bytes()].concat())?;
//!     let done = next(&mut completions)?;
//!     assert_eq!(done.status, Status::Success); // else nothing but id and queue_pair counts
//!     assert_eq!((done.id, done.immediate, done.bytes), (1, Some(7), 5));
//!     let mut bytes = [0; 5];
//!     region.read(0, &mut bytes)?;
//!     assert_eq!(&bytes, b"hello");
//!     Ok(())
//! });
//!
//! let (_domain, mut completions, mut pair) = end(&device)?;
//! let answer = pair.connect(to, &[], LIMIT)?;
//! let mut words = answer.as_slice().chunks_exact(8);
//! let mut word = || -> Option<u64> { Some(u64::from_le_bytes(words.next()?.try_into().ok()?)) };
//! let (Some(addr), Some(key)) = (word(), word()) else {
//!     return Err(Error::Protocol("the server says no address"));
//! };
//! pair.post(&WorkRequest {
//!     id: 2,
//!     operation: Operation::Write {
//!         source: Source::Inline(b"hello"),
//!         to: RemoteAddress { addr, key },
//!         immediate: Some(7),
//!     },
//!     flags: Flags::SIGNALED,
//! })?;
//! let done = next(&mut completions)?; // only then the queue pair may be dropped
//! assert_eq!((done.id, done.status), (2, Status::Success));
//! server.join().expect("the server does not panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Providers
//! | | [`Shm`](Provider::Shm), the embedded device | [`Verbs`](Provider::Verbs) | [`Tcp`](Provider::Tcp) |
//! | --- | --- | --- | --- |
//! | needs | Linux | a card for InfiniBand or RoCE, or SoftRoCE; `libibverbs.so.1` and `librdmacm.so.1`, loaded when a device is opened; memory that may be locked (`ulimit -l`) | Linux, an address |
//! | reaches | processes of one machine and one network namespace, of any user | machines of the RDMA network | machines of the IP network |
//! | who moves bytes | the thread that posts; the helper thread for requests that waited for a receive | the card | the threads that post and poll; the helper thread while nobody polls |
//! | helper threads | `rdma-shm`, one for each open device; from the first end of a connection on a few `rdma-close`, at most 16 for the process | `rdma-verbs`, one for each open device | `rdma-tcp`, one for each open device |
//! | the end of a peer's process | noticed at once | noticed at once; a machine that is silent only by a request, after 0.5 to 2 seconds ([`RetryExceeded`](Status::RetryExceeded)) | noticed at once; a machine that is silent after some 2 to 4 seconds, whether or not there is a request |
//! | who is at the other end, as text | process and user | [`ConnectRequest::peer`]: the address; [`QueuePair::peer`]: `None` | address and port |
//! | [`Peer`] | a user | an address | an address |
//! | [`PrivateData`] | as long as it was passed | padded with zeros | as long as it was passed |
//! | [`rnr_timer`](QueuePairConfig::rnr_timer) | that of the sender | that of the receiver, in steps | that of the sender, times the number of tries |
//! | a key that is too wide | fails in the completion ([`RemoteAccessError`](Status::RemoteAccessError)) | refused when it is posted ([`Error::RemoteAccess`]) | as on shm |
//! | [`Flags::WITH_COMPLETION`], [`CompletionQueue::stay_awake`], [`limit_peers`] | have an effect | have none | have none |
//!
//! [`Capabilities`] and [`Limits`] say the rest. Helper threads take no signals.
//!
//! # What to do about an error
//! | do | after |
//! | --- | --- |
//! | try again later | [`ConnectionRefused`](Error::ConnectionRefused), [`ConnectionDropped`](Error::ConnectionDropped), [`ListenerQueueFull`](Error::ListenerQueueFull), [`TooManyConnections`](Error::TooManyConnections), [`ListenerExhausted`](Error::ListenerExhausted), [`TimedOut`](Error::TimedOut); after polling completions, [`QueueFull`](Error::QueueFull) |
//! | read the refusal | [`Rejected`](Error::Rejected): the application at the other end did not want the connection |
//! | connect anew, with a new queue pair | [`Disconnected`](Error::Disconnected), [`Protocol`](Error::Protocol), and every [`Status`] but `Success` |
//! | correct the argument | [`InvalidArgument`](Error::InvalidArgument), [`OutOfBounds`](Error::OutOfBounds), [`InlineTooLarge`](Error::InlineTooLarge), [`PrivateDataTooLong`](Error::PrivateDataTooLong), [`CompletionQueueTooSmall`](Error::CompletionQueueTooSmall), [`RemoteAccess`](Error::RemoteAccess) |
//! | correct the settings, or tell the operator | [`DeviceUnavailable`](Error::DeviceUnavailable), [`AddressInUse`](Error::AddressInUse), [`Unreachable`](Error::Unreachable), [`WrongUser`](Error::WrongUser) |
//! | use less, or raise a limit | [`OutOfDescriptors`](Error::OutOfDescriptors), [`TooManyUnread`](Error::TooManyUnread), [`OutOfAddresses`](Error::OutOfAddresses), [`OutOfKeys`](Error::OutOfKeys), [`Registration`](Error::Registration), [`FileSizeLimit`](Error::FileSizeLimit) |
//! | open a device in this process | [`Forked`](Error::Forked) |
//! | report it | [`Os`](Error::Os) |
//!
//! # Threads
//! All objects may be moved to another thread.
//!
//! | object | threads at a time |
//! | --- | --- |
//! | [`Device`], [`Domain`], [`Region`], [`RemoteMapping`] | any number, through `&` or a clone |
//! | [`Waker`] | any number; it is there to be used from another thread |
//! | [`SendQueue`], [`ReceiveQueue`] | one poster each; the two halves of a queue pair may have two threads ([`QueuePair::split`]) |
//! | [`CompletionQueue`] | one poller, which need not be the thread that posts |
//! | [`Listener`] | one |
//!
//! "One" is checked when the program is compiled: the methods take `&mut self`.
//!
//! # Forked processes
//! A child of fork(2) inherits the objects of its parent, but they are not its own. In the child,
//! * calls return [`Error::Forked`], [`poll`](CompletionQueue::poll) finds nothing,
//!   [`state`](QueuePair::state) is [`State::Error`], and [`disconnect`](QueuePair::disconnect) and
//!   [`wake`](Waker::wake) do nothing;
//! * dropping an object forgets it: no peer is told, and nothing is given back before the child
//!   ends;
//! * what tells facts (a device's name, limits, a region's length) goes on doing so;
//! * the pointers of regions and mappings ([`Region::as_ptr`]) are not to be used, which is not
//!   checked: on RDMA devices the memory may be missing in the child (SIGSEGV), on the embedded
//!   device the parent and its peers change it. Nor is a descriptor
//!   ([`AsFd`](std::os::fd::AsFd)) to be used: it is the parent's, too.
//!
//! The child may open a device and begin anew. A child of vfork(2) is not told from its parent, and
//! before Linux 4.14 no child is.
//!
//! # Features
#![cfg_attr(feature = "faults", doc = "`faults` adds the module [`faults`](mod@faults)")]
#![cfg_attr(not(feature = "faults"), doc = "`faults` adds a module of this name")]
//! and `QueuePair::inject`: for tests, requests are lost, late, cut or doubled by script
//! (`cargo doc -p rdmalib --features faults` shows it). It is off by default and not for programs
//! that are shipped.

// Four layers: `types`, `contract`, `providers`, `facade`. Each imports only those before it in
// this list. `process`, `events`, `waiting` and `sync` serve all; `faults` stands between facade
// and providers (ARCHITECTURE.md).

mod contract;
mod events;
mod facade;
#[cfg(feature = "faults")]
pub mod faults;
mod process;
mod providers;
mod sync;
mod types;
mod waiting;

pub use facade::{
    CompletionQueue, ConnectRequest, Device, Domain, Listener, Operation, QueuePair, ReceiveQueue,
    Region, RemoteMapping, SendQueue, Slice, Source, Waker, WorkRequest,
};
pub use process::ForkMark;
pub use providers::shm::{limit_peers, refuse_descriptors};
pub use types::work;
pub use types::{
    Access, Capabilities, DeviceSpec, Error, Flags, Limits, MAX_ACCEPT_DATA, MAX_CONNECT_DATA,
    MAX_REJECT_DATA, Notify, Opcode, Peer, PrivateData, Provider, QueuePairConfig, RemoteAddress,
    Result, RnrRetry, State, Status, WorkCompletion,
};
pub use waiting::WaitingList;
