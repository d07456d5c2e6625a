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
//! The crate knows nothing of leases or functions; nothing above it knows devices. It is an
//! internal crate: applications use `rfaas`.
//!
//! # Example
//! Two ends in one process, on the embedded device. The server offers 64 bytes; the client writes
//! into them and announces that with immediate data.
//! ```
//! use std::time::Duration;
//!
//! use rdmalib::{
//!     Access, CompletionQueue, Device, DeviceSpec, Domain, Flags, Operation, Provider, QueuePair,
//!     QueuePairConfig, RemoteAddress, Result, Source, WorkRequest,
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
//!     let done = loop {
//!         match completions.poll_one() {
//!             Some(done) => break done,
//!             None => completions.wait(Some(LIMIT))?,
//!         }
//!     };
//!     assert_eq!((done.id, done.immediate, done.bytes), (1, Some(7), 5));
//!     let mut bytes = [0; 5];
//!     region.read(0, &mut bytes)?;
//!     assert_eq!(&bytes, b"hello");
//!     Ok(())
//! });
//!
//! let (_domain, _completions, mut pair) = end(&device)?;
//! let answer = pair.connect(to, &[], LIMIT)?;
//! let word = |at| u64::from_le_bytes(answer.as_slice()[at..at + 8].try_into().unwrap());
//! pair.post(&WorkRequest {
//!     id: 2,
//!     operation: Operation::Write {
//!         source: Source::Inline(b"hello"),
//!         to: RemoteAddress { addr: word(0), key: word(8) },
//!         immediate: Some(7),
//!     },
//!     flags: Flags::empty(),
//! })?;
//! server.join().expect("the server does not panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//! Inside there are four layers, and each imports only those above it in this list:
//! * `types`: plain types, which all others speak in
//! * `contract`: what a provider's objects guarantee
//! * `providers`: `shm` (the embedded device: shared memory of one host) and `verbs` (RDMA
//!   devices), and the one enum over them
//! * `facade`: the objects of the picture
//!
//! `process`, `events`, `waiting` and `sync` serve all of them; `faults` stands between facade and
//! providers.

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
