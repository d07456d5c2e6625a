//! How two queue pairs meet: a listener, requests that it accepts or rejects, private data both ways.
//!
//! Every connection is connection-managed (`rdma_cm(7)`): who connects passes up to
//! [`MAX_CONNECT_DATA`] bytes, who accepts answers with up to [`MAX_ACCEPT_DATA`], who rejects with up
//! to [`MAX_REJECT_DATA`]. The numbers are those of RDMA_PS_TCP on InfiniBand and hold on every provider.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::device::{Device, Inner};
use crate::error::{Error, Result};
use crate::process::Owned;
use crate::queue_pair::{QueuePair, SendInner, SendQueue};
use crate::waiting::Peer;
use crate::{shm, verbs};

/// Most private data in a connection request, in bytes; `rdma_connect(3)`.
pub const MAX_CONNECT_DATA: usize = 56;
/// Most private data in an acceptance, in bytes; `rdma_accept(3)`.
pub const MAX_ACCEPT_DATA: usize = 196;
/// Most private data in a rejection, in bytes; `rdma_reject(3)`.
pub const MAX_REJECT_DATA: usize = 148;

/// Private data of a handshake message. May be longer than what the peer passed, then padded with
/// zeros (verbs does not carry the length): a reader knows how much it expects.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateData(Box<[u8]>);

impl PrivateData {
    pub(crate) fn new(data: &[u8], max: usize) -> Result<Self> {
        if data.len() > max {
            return Err(Error::PrivateDataTooLong { bytes: data.len(), max });
        }
        Ok(PrivateData(data.into()))
    }

    pub(crate) fn nothing() -> Self {
        PrivateData(Box::default())
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateData({} bytes)", self.0.len()) // may hold a token: never logged
    }
}

/// Waits for connections at one address.
pub struct Listener {
    inner: Owned<ListenerInner>,
}

#[derive(Debug)]
enum ListenerInner {
    Shm(shm::Listener),
    Verbs(verbs::Listener),
}

impl Listener {
    pub(crate) fn new(device: &Device, addr: SocketAddr) -> Result<Self> {
        device.inner.check()?;
        let inner = match &*device.inner {
            Inner::Shm(device) => ListenerInner::Shm(device.listen(addr)?),
            Inner::Verbs(device) => ListenerInner::Verbs(device.listen(addr)?),
        };
        Ok(Listener { inner: Owned::new(inner) })
    }

    /// Where it listens, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        match &*self.inner {
            ListenerInner::Shm(listener) => listener.local_addr(),
            ListenerInner::Verbs(listener) => listener.local_addr(),
        }
    }

    /// The next request, if there is one now. Never waits for a peer, and does not go on for ever whatever peers
    /// do: after some work without a request it returns `None`, and the descriptor stays readable.
    pub fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        self.inner.check()?;
        let request = match &mut *self.inner {
            ListenerInner::Shm(listener) => listener.try_next()?.map(RequestInner::Shm),
            ListenerInner::Verbs(listener) => listener.try_next()?.map(RequestInner::Verbs),
        };
        Ok(request.map(ConnectRequest::new))
    }

    /// The next request within `timeout`, or `None`.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<ConnectRequest>> {
        self.inner.check()?;
        let request = match &mut *self.inner {
            ListenerInner::Shm(listener) => listener.next(timeout)?.map(RequestInner::Shm),
            ListenerInner::Verbs(listener) => listener.next(timeout)?.map(RequestInner::Verbs),
        };
        Ok(request.map(ConnectRequest::new))
    }
}

/// Readable when [`Listener::try_next`] may have a request.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.inner {
            ListenerInner::Shm(listener) => listener.as_fd(),
            ListenerInner::Verbs(listener) => listener.as_fd(),
        }
    }
}

/// A peer that wants to connect. Dropping it rejects it without private data.
pub struct ConnectRequest {
    inner: Option<Owned<RequestInner>>, // None once it was answered
}

#[derive(Debug)]
enum RequestInner {
    Shm(shm::ConnectRequest),
    Verbs(verbs::ConnectRequest),
}

impl ConnectRequest {
    fn new(inner: RequestInner) -> Self {
        ConnectRequest { inner: Some(Owned::new(inner)) }
    }

    fn inner(&self) -> &RequestInner {
        self.inner.as_ref().expect("taken only by the calls that consume the request")
    }

    /// What the peer passed to [`QueuePair::connect`].
    pub fn private_data(&self) -> &[u8] {
        match self.inner() {
            RequestInner::Shm(request) => request.private_data(),
            RequestInner::Verbs(request) => request.private_data(),
        }
    }

    /// Who it is, as far as the device knows; for logs.
    pub fn peer(&self) -> String {
        match self.inner() {
            RequestInner::Shm(request) => request.peer(),
            RequestInner::Verbs(request) => request.peer(),
        }
    }

    /// Whom limits count it for: something that the peer cannot choose.
    pub fn origin(&self) -> Peer {
        match self.inner() {
            RequestInner::Shm(request) => request.origin(),
            RequestInner::Verbs(request) => request.origin(),
        }
    }

    /// Connects the peer to `queue_pair` (in state `Init`, receives posted), passing back
    /// `private_data` (at most [`MAX_ACCEPT_DATA`] bytes). If this fails the peer is refused.
    pub fn accept(mut self, queue_pair: &mut QueuePair, private_data: &[u8]) -> Result<()> {
        let request = self.inner.take().expect("a request is answered once");
        request.into_ours()?.accept(queue_pair.sending(), private_data)
    }

    /// Refuses the peer, telling it `private_data` (at most [`MAX_REJECT_DATA`] bytes).
    pub fn reject(mut self, private_data: &[u8]) -> Result<()> {
        self.answer_no(private_data)
    }

    fn answer_no(&mut self, private_data: &[u8]) -> Result<()> {
        let Some(request) = self.inner.take() else { return Ok(()) };
        match request.into_ours()? {
            RequestInner::Shm(request) => request.reject(private_data),
            RequestInner::Verbs(request) => request.reject(private_data),
        }
    }
}

impl RequestInner {
    fn accept(self, queue: &mut SendQueue, private_data: &[u8]) -> Result<()> {
        match (self, queue.inner()) {
            (RequestInner::Shm(request), SendInner::Shm(send)) => {
                request.accept(send, private_data)
            }
            (RequestInner::Verbs(request), SendInner::Verbs(send)) => {
                request.accept(send, private_data)
            }
            #[cfg(feature = "faults")]
            (request, SendInner::Faulty(send)) => {
                send.with(|send| request.accept(send, private_data))
            }
            _ => Err(Error::InvalidArgument("queue pair is of another device than the listener")),
        }
    }
}

impl Drop for ConnectRequest {
    fn drop(&mut self) {
        if let Err(error) = self.answer_no(&[]) {
            tracing::debug!(%error, "a refusal did not reach the connector");
        }
    }
}
