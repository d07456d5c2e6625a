//! How two queue pairs meet: a listener, requests that it accepts or rejects, private data both
//! ways.
//!
//! Every connection is connection-managed (`rdma_cm(7)`): the connector passes up to
//! [`MAX_CONNECT_DATA`](crate::MAX_CONNECT_DATA) bytes, an acceptance carries up to
//! [`MAX_ACCEPT_DATA`], a rejection up to
//! [`MAX_REJECT_DATA`]. The numbers are those of RDMA_PS_TCP on InfiniBand
//! and hold on every provider.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::QueuePair;
use crate::contract::{ConnectRequest as _, Listener as _};
use crate::process::Owned;
use crate::providers::{AnyConnectRequest, AnyListener, each, each_optional};
use crate::types::{Error, MAX_ACCEPT_DATA, MAX_REJECT_DATA, Peer, PrivateData, Result};

/// Waits for connections at one address ([`Device::listen`](crate::Device::listen)). Dropping it
/// gives the address back; connectors whose requests were not taken get an error.
pub struct Listener {
    device: u32,
    inner: Owned<AnyListener>,
}

impl Listener {
    pub(super) fn new(device: u32, inner: AnyListener) -> Self {
        Listener { device, inner: Owned::new(inner) }
    }

    /// Returns the address where it listens, with the port that was chosen: what connectors are to
    /// be told.
    pub fn local_addr(&self) -> SocketAddr {
        each!(&*self.inner, listener => listener.local_addr())
    }

    /// Returns the next request, if there is one now. Never waits for a peer, and does bounded work
    /// whatever peers do: after some work without a request it returns `None`, and the descriptor
    /// stays readable.
    ///
    /// # Errors
    /// The listener goes on after an error; one connector may be gone.
    /// [`Error::OutOfDescriptors`]: this process has none for another connection.
    /// [`Error::DeviceUnavailable`]: the device was removed (verbs); listen again. [`Error::Os`].
    pub fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        self.inner.check()?;
        let request = each_optional!(&mut *self.inner, listener => listener.try_next()?);
        Ok(self.request(request))
    }

    /// Returns the next request within `timeout`, or `None`. Errors are those of
    /// [`try_next`](Self::try_next).
    pub fn next(&mut self, timeout: Duration) -> Result<Option<ConnectRequest>> {
        self.inner.check()?;
        let request = each_optional!(&mut *self.inner, listener => listener.next(timeout)?);
        Ok(self.request(request))
    }

    fn request(&self, inner: Option<AnyConnectRequest>) -> Option<ConnectRequest> {
        let device = self.device;
        inner.map(|inner| ConnectRequest { device, inner: Some(Owned::new(inner)) })
    }
}

/// Readable when [`Listener::try_next`] may have a request.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(&*self.inner, listener => listener.as_fd())
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.local_addr())
    }
}

/// A peer that wants to connect. Dropping the request rejects it without private data. It may be
/// kept, and answered in another thread, but the peer waits only as long as its time limit.
///
/// A request is answered once:
/// ```compile_fail,E0382
/// # use rdmalib::*;
/// fn answered_twice(request: ConnectRequest, pair: &mut QueuePair) {
///     let _ = request.accept(pair, &[]);
///     let _ = request.reject(&[]);
/// }
/// ```
pub struct ConnectRequest {
    device: u32,
    inner: Option<Owned<AnyConnectRequest>>, // None once it was answered
}

impl ConnectRequest {
    fn inner(&self) -> &Owned<AnyConnectRequest> {
        self.inner.as_ref().expect("taken only by the calls that consume the request")
    }

    /// Returns what the peer passed to [`QueuePair::connect`]; on verbs padded with zeros
    /// ([`PrivateData`](crate::PrivateData)).
    pub fn private_data(&self) -> &[u8] {
        each!(&**self.inner(), request => request.private_data())
    }

    /// Returns who it is, as far as the device knows; for logs.
    pub fn peer(&self) -> String {
        each!(&**self.inner(), request => request.peer())
    }

    /// Returns the user or machine that per-peer limits apply to: something that the peer cannot
    /// choose.
    pub fn origin(&self) -> Peer {
        each!(&**self.inner(), request => request.origin())
    }

    /// Connects the peer to `queue_pair` (in state `Init`, receives posted), passing back
    /// `private_data` (at most [`MAX_ACCEPT_DATA`] bytes). After `Ok`, requests may be posted at
    /// once, although the peer may not have read the answer yet.
    ///
    /// If this fails, the peer is refused (on verbs perhaps only when `queue_pair` is dropped), and
    /// `queue_pair` can be used for another request only if its [`state`](QueuePair::state) is
    /// still [`State::Init`](crate::State::Init).
    ///
    /// # Errors
    /// [`Error::Disconnected`]: the peer did not wait. If it gives up
    /// just now, the result may also be `Ok`, and the connection ends at once.
    /// [`Error::InvalidArgument`]: `queue_pair` was connected before or is over, or is of another
    /// device than the listener.
    /// [`Error::PrivateDataTooLong`].
    /// [`Error::TooManyUnread`] (shm).
    /// [`Error::Os`].
    pub fn accept(mut self, queue_pair: &mut QueuePair, private_data: &[u8]) -> Result<()> {
        self.inner().check()?; // in a forked child that is what is wrong
        let private_data = PrivateData::new(private_data, MAX_ACCEPT_DATA)?;
        queue_pair.check_unconnected()?;
        if queue_pair.device != self.device {
            return Err(Error::InvalidArgument("queue pair is not of the listener's device"));
        }
        let request = self.inner.take().expect("a request is answered once");
        queue_pair.accept(request.into_ours()?, &private_data)
    }

    /// Refuses the peer, passing it `private_data` (at most
    /// [`MAX_REJECT_DATA`] bytes): its connect is
    /// [`Error::Rejected`].
    ///
    /// # Errors
    /// [`Error::PrivateDataTooLong`]; or the answer did not reach
    /// the peer. It is refused in any case.
    pub fn reject(mut self, private_data: &[u8]) -> Result<()> {
        self.inner().check()?;
        self.answer_no(private_data)
    }

    fn answer_no(&mut self, private_data: &[u8]) -> Result<()> {
        let private_data = PrivateData::new(private_data, MAX_REJECT_DATA)?;
        let Some(request) = self.inner.take() else { return Ok(()) };
        each!(request.into_ours()?, request => request.reject(&private_data))
    }
}

impl Drop for ConnectRequest {
    fn drop(&mut self) {
        if let Err(error) = self.answer_no(&[]) {
            tracing::debug!(%error, "a refusal did not reach the connector");
        }
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectRequest({})", self.peer())
    }
}
