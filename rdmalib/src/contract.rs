//! The contract of a provider: the objects that it has, and what each of them guarantees.
//!
//! ```text
//!   facade (Device, Domain, Region, QueuePair, …)      safe, knows no provider
//!     │ one enum over the providers: `providers::Any`, matched once a call
//!   contract: these traits                             static dispatch; no object is a `dyn`
//!     │
//!   providers: shm, verbs, tcp                         know the plain types and this contract
//! ```
//! A provider is a folder under `providers` with types that implement these traits, beginning with
//! [`Device`], and one line in each list of `providers/mod.rs`, with the arms that the compiler then
//! asks for. What all providers have in common is tested by the facts in `tests/conformance`. What
//! may differ, and how, is a field of [`Capabilities`] or a row on the crate's front page.
//!
//! For all objects (the front page of the crate says more, for its users):
//! * A call either does what it says or returns an error and changes nothing. (A connection that
//!   fails halfway uses its queue pair up.)
//! * Nothing waits, except `connect`, `next` and `wait`, which have a time limit, and `arm`, which
//!   pauses for a millisecond after [`stay_awake`](CompletionQueue::stay_awake).
//! * Bytes and messages of a peer may be lies; they never cause a panic or an access outside of
//!   memory that is registered for them.
//! * Handles are cheap to clone; an object keeps alive what it was made from.
//! * What is [hot](SendQueue::post) makes no system call and takes no lock while the peer keeps up;
//!   on tcp it makes one, and takes a lock that nobody else holds for long.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::types::work::{Slice, WorkRequest};
use crate::types::{
    Access, Capabilities, DeviceSpec, Limits, Notify, Peer, PrivateData, QueuePairConfig,
    RemoteAddress, Result, State, WorkCompletion,
};

/// An open device. It closes with the last object that was made from it.
pub(crate) trait Device: Clone {
    type Domain: Domain<CompletionQueue = Self::CompletionQueue>;
    type CompletionQueue: CompletionQueue;
    type Listener: Listener;

    /// Opens the device that `spec` describes, or says why not and what to do
    /// (`DeviceUnavailable`).
    fn open(spec: &DeviceSpec) -> Result<Self>;
    /// What it takes; requests beyond are refused with an error.
    fn limits(&self) -> Limits;
    /// How it differs from other providers.
    fn capabilities(&self) -> Capabilities;
    /// A protection domain whose memory grows as it is used.
    fn domain(&self) -> Result<Self::Domain>;
    /// A domain that no peer can make larger than `bytes` bytes, in whole pages for each region and
    /// each queue pair's receives.
    fn fixed_domain(&self, bytes: usize) -> Result<Self::Domain>;
    /// A completion queue for the queues of several queue pairs with `capacity` requests in all.
    fn completion_queue(&self, capacity: u32) -> Result<Self::CompletionQueue>;
    /// Listens at `addr`; port 0 chooses a free one.
    fn listen(&self, addr: SocketAddr) -> Result<Self::Listener>;
}

/// A protection domain. A peer reaches the regions of the domain whose queue pair it is connected
/// to, and no others.
pub(crate) trait Domain: Clone {
    type Region: Region;
    type CompletionQueue: CompletionQueue;
    type SendQueue: SendQueue<Region = Self::Region>;
    type ReceiveQueue: ReceiveQueue<Region = Self::Region>;

    /// Registers `bytes` bytes of zeroed, page-aligned memory, with a key that no earlier region of
    /// the domain has had for long. Remote rights come with `LOCAL_WRITE`.
    fn allocate(&self, bytes: usize, access: Access) -> Result<Self::Region>;
    /// Makes the two halves of a queue pair in state `Init`. Sets aside room in the completion
    /// queues, so that they cannot overflow.
    fn queue_pair(
        &self,
        send: &Self::CompletionQueue,
        receive: &Self::CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<(Self::SendQueue, Self::ReceiveQueue)>;
}

/// Registered memory. Dropping it revokes its key before its memory is used for something else, and
/// a request that still names it fails.
pub(crate) trait Region {
    /// Length in bytes, as asked for; at least 1.
    fn len(&self) -> usize;
    /// First byte: valid, readable and writable while the region lives.
    fn as_ptr(&self) -> *mut u8;
    /// How a peer names the first byte. The key is never 0.
    fn remote(&self) -> RemoteAddress;
}

/// A range of a peer's memory that is mapped here, and stays mapped while this lives.
pub(crate) trait RemoteMemory {
    /// Length in bytes, as asked for; at least 1.
    fn len(&self) -> usize;
    /// First byte: valid, and accessible as it was asked for.
    fn as_ptr(&self) -> *mut u8;
}

/// Finished requests of one or several queue pairs.
pub(crate) trait CompletionQueue {
    type Waker: Waker;

    /// Takes up to `out.len()` completions and returns how many. Those of one queue come in the
    /// order of posting; what a peer sent before a connection's end comes before what the end
    /// flushes.
    fn poll(&mut self, out: &mut [WorkCompletion]) -> usize;
    /// Says that polls follow and no wait.
    fn stay_awake(&mut self);
    /// Makes the descriptor readable at the next completion that `notify` names.
    fn arm(&mut self, notify: Notify) -> Result<()>;
    /// Takes what made the descriptor readable.
    fn acknowledge(&mut self) -> Result<()>;
    /// Sleeps until there may be a completion, a waker was used, or `timeout` is over.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<()>;
    /// Ends waits from another thread.
    fn waker(&self) -> Self::Waker;
    /// Readable when an armed queue has an event.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// Ends a wait on a completion queue from another thread.
pub(crate) trait Waker: Clone {
    /// Ends the wait under way, or else the next one.
    fn wake(&self);
}

/// Memory of an application's request, which may be another provider's.
pub(crate) trait Memory<'a, R>: Copy {
    /// The region, if it is of the provider whose regions are `R`.
    fn of_provider(self) -> Option<&'a R>;
}

/// The half of a queue pair that sends, writes and reads. Dropping it ends the connection.
pub(crate) trait SendQueue {
    type Region: 'static;
    type RemoteMemory: RemoteMemory;
    type ConnectRequest: ConnectRequest;

    /// Number of the queue pair in completions; unique in this process while it lives.
    fn number(&self) -> u32;
    /// Notices a peer's end without a poll.
    fn state(&self) -> State;
    /// Who is at the other end, as far as the device knows; for logs.
    fn peer(&self) -> Option<String>;
    /// Connects to the listener at `to`, if that is of user `listener`, where the kernel knows.
    fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData>;
    /// Connects to the peer that made `request`, which is refused if this fails.
    fn accept(&mut self, request: Self::ConnectRequest, private_data: &PrivateData) -> Result<()>;
    /// Ends the connection: the requests of both sides are flushed. Idempotent.
    fn disconnect(&mut self);
    /// Posts one request. Checks it once ([`WorkRequest::check`]). Requests are carried out in
    /// order, each wholly or not at all; a failed one ends the connection.
    fn post<'a, M: Memory<'a, Self::Region>>(
        &mut self,
        request: &WorkRequest<M, &'a [u8]>,
    ) -> Result<()>;
    /// Posts in order, with one doorbell where the device can. Returns how many were posted, and
    /// the error that stopped it.
    fn post_list<'a, M: Memory<'a, Self::Region>>(
        &mut self,
        requests: &[WorkRequest<M, &'a [u8]>],
    ) -> (usize, Result<()>);
    /// Whether there is room for one more request than the `ahead` that will be posted before it.
    #[cfg(feature = "faults")]
    fn check_room(&self, ahead: u32) -> Result<()>;
    /// Maps a range of the peer's memory that its key allows; `None` without
    /// [`Capabilities::maps_remote_memory`].
    fn map_remote(
        &mut self,
        at: RemoteAddress,
        bytes: usize,
        access: Access,
    ) -> Result<Option<Self::RemoteMemory>>;
}

/// The half of a queue pair that posts receives.
pub(crate) trait ReceiveQueue {
    type Region: 'static;

    /// Posts a receive: for a peer's send that goes to `buffer`, or for a write with immediate
    /// data.
    fn post<'a, M: Memory<'a, Self::Region>>(
        &mut self,
        id: u64,
        buffer: Option<Slice<M>>,
    ) -> Result<()>;
}

/// Waits for connections at one address, which it gives back when dropped.
pub(crate) trait Listener {
    type ConnectRequest: ConnectRequest;

    /// The address, with the port that was chosen.
    fn local_addr(&self) -> SocketAddr;
    /// The next request, if there is one now. Bounded work, whatever peers do.
    fn try_next(&mut self) -> Result<Option<Self::ConnectRequest>>;
    /// The next request within `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Option<Self::ConnectRequest>>;
    /// Readable when there may be a request.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// A peer that wants to connect and waits for an answer.
pub(crate) trait ConnectRequest {
    /// What it passed.
    fn private_data(&self) -> &[u8];
    /// Who it is, as far as the device knows; for logs.
    fn peer(&self) -> String;
    /// Whom limits count it for: something that the peer cannot choose.
    fn origin(&self) -> Peer;
    /// Refuses it.
    fn reject(self, private_data: &PrivateData) -> Result<()>;
}
