//! How two processes meet through the connection manager (rdma_cm(7)).
//!
//! ```text
//!   connector                                   listener
//!   resolve address, route ──▶ connect ────────▶ CONNECT_REQUEST ──▶ ConnectRequest
//!                                                accept: queue pair ready to receive
//!   CONNECT_RESPONSE ◀───────────────────────────┘
//!   queue pair ready to receive and to send
//!   establish ─────────────────────────────────▶ ESTABLISHED: ready to send   `core`
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::bindings::types::*;
use super::cm::{CmId, Event, EventChannel, Parameters};
use super::core::{Core, RETRY_COUNT};
use super::open::OpenDevice;
use crate::contract;
use crate::types::{Error, MAX_ACCEPT_DATA, MAX_REJECT_DATA, Peer, PrivateData, Result};

/// Events of the connection manager that one call handles.
const EVENTS: usize = 64;

/// Reasons for a rejection (InfiniBand specification 1.4, table 111): nobody listens; the
/// application refused.
const REJECT_INVALID_SERVICE_ID: i32 = 8;
const REJECT_CONSUMER: i32 = 28;

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Connects the queue pair of `core`, of `device`, to the listener at `to`; see
/// [`QueuePair::connect`](crate::QueuePair::connect).
pub(super) fn connect_to(
    core: &Arc<Core>,
    device: &OpenDevice,
    to: SocketAddr,
    private_data: &PrivateData,
    timeout: Duration,
) -> Result<PrivateData> {
    let from = device.address;
    let mut attempt = Attempt { from, to, timeout, deadline: Instant::now() + timeout };
    let channel = device.event_channel()?;
    let mut id = CmId::new(&channel)?;
    id.resolve_address(SocketAddr::new(from, 0), to, attempt.left())
        .map_err(|error| attempt.unreachable(&error.to_string()))?;
    attempt.expect(&channel, RDMA_CM_EVENT_ADDR_RESOLVED)?;
    id.resolve_route(attempt.left()).map_err(|error| attempt.unreachable(&error.to_string()))?;
    attempt.expect(&channel, RDMA_CM_EVENT_ROUTE_RESOLVED)?;
    id.connect(Parameters {
        queue_pair: core.device_number(),
        private_data: private_data.as_slice(),
        responder_resources: device.responder_resources,
        initiator_depth: device.initiator_depth,
        retry_count: RETRY_COUNT,
        rnr_retry_count: core.rnr_retry(),
    })
    .map_err(|error| attempt.unreachable(&error.to_string()))?;
    let answer = attempt.expect(&channel, RDMA_CM_EVENT_CONNECT_RESPONSE)?;
    let private_data = PrivateData::new(&answer.private_data, MAX_ACCEPT_DATA)?;
    core.connect(id)?;
    Ok(private_data)
}

/// Connecting, as far as errors tell of it.
#[derive(Clone, Copy)]
struct Attempt {
    from: std::net::IpAddr,
    to: SocketAddr,
    timeout: Duration,
    deadline: Instant,
}

impl Attempt {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn unreachable(&self, reason: &str) -> Error {
        Error::Unreachable { from: self.from, to: self.to, reason: reason.into() }
    }

    /// The next event, which has to be `wanted`.
    fn expect(&mut self, channel: &Arc<EventChannel>, wanted: rdma_cm_event_type) -> Result<Event> {
        let event = channel
            .next_before(self.deadline)?
            .ok_or(Error::TimedOut { what: "connecting", after: self.timeout })?;
        match event.kind {
            kind if kind == wanted => Ok(event),
            RDMA_CM_EVENT_REJECTED if event.status == REJECT_INVALID_SERVICE_ID => {
                Err(Error::ConnectionRefused(self.to))
            }
            RDMA_CM_EVENT_REJECTED if event.status == REJECT_CONSUMER => Err(Error::Rejected {
                private_data: PrivateData::new(&event.private_data, MAX_REJECT_DATA)?,
            }),
            kind => Err(self.unreachable(&reason(&channel.text(kind), event.status))),
        }
    }
}

/// What the connection manager said, in words.
fn reason(event: &str, status: i32) -> String {
    match status {
        0 => event.to_owned(),
        ..0 => format!("{event}: {}", io::Error::from_raw_os_error(-status)),
        _ => format!("{event}, reason {status}"),
    }
}

/// Waits for connectors at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    id: CmId, // listens until it is dropped
    channel: Arc<EventChannel>,
    address: SocketAddr,
    device: Arc<OpenDevice>,
}

impl Listener {
    pub(super) fn new(device: &Arc<OpenDevice>, address: SocketAddr) -> Result<Self> {
        let channel = device.event_channel()?;
        let mut id = CmId::new(&channel)?;
        let refused = |call: &'static str, error: io::Error| match errno(&error) {
            Some(Errno::EADDRINUSE) => Error::AddressInUse(address),
            _ => Error::os(call, error),
        };
        id.bind(address).map_err(|error| refused("rdma_bind_addr", error))?;
        id.listen().map_err(|error| refused("rdma_listen", error))?;
        let address = SocketAddr::new(address.ip(), id.local_port());
        Ok(Listener { id, channel, address, device: device.clone() })
    }

    fn request(&self, event: Event) -> Result<Option<ConnectRequest>> {
        if event.kind == RDMA_CM_EVENT_DEVICE_REMOVAL {
            return Err(self.device.unavailable("it was removed while listening"));
        }
        // Anything else is about connectors that gave up before they were answered.
        let Some(id) = event.connector else { return Ok(None) };
        Ok(Some(ConnectRequest {
            id,
            private_data: event.private_data,
            responder_resources: event.responder_resources,
            initiator_depth: event.initiator_depth,
        }))
    }
}

impl contract::Listener for Listener {
    type ConnectRequest = ConnectRequest;

    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.channel().as_fd()
    }

    fn try_next(&mut self) -> Result<Option<ConnectRequest>> {
        for _ in 0..EVENTS {
            let Some(event) = self.channel.next()? else { break };
            if let Some(request) = self.request(event)? {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn next(&mut self, timeout: Duration) -> Result<Option<ConnectRequest>> {
        let deadline = Instant::now() + timeout;
        while let Some(event) = self.channel.next_before(deadline)? {
            if let Some(request) = self.request(event)? {
                return Ok(Some(request));
            }
            if Instant::now() >= deadline {
                break; // also if connectors that give up keep coming
            }
        }
        Ok(None)
    }
}

/// A peer that wants to connect.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    id: CmId,
    private_data: Vec<u8>,
    responder_resources: u8,
    initiator_depth: u8,
}

impl contract::ConnectRequest for ConnectRequest {
    fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    fn peer(&self) -> String {
        self.id.peer().map_or_else(|| "an unknown address".into(), |peer| peer.to_string())
    }

    fn origin(&self) -> Peer {
        self.id.peer().map_or(Peer::Unknown, |peer| Peer::Address(peer.ip().to_canonical()))
    }

    fn reject(mut self, private_data: &PrivateData) -> Result<()> {
        self.id.reject(private_data.as_slice()).map_err(|e| Error::os("rdma_reject", e))
    }
}

impl ConnectRequest {
    /// Connects the peer to the queue pair of `core`, of `device`.
    pub(super) fn accept(
        mut self,
        core: &Arc<Core>,
        device: &OpenDevice,
        private_data: &PrivateData,
    ) -> Result<()> {
        // A channel of its own: what happens to the connection is not the listener's business.
        self.id.migrate(device.event_channel()?)?;
        core.accept(self.id, |id| {
            id.accept(Parameters {
                queue_pair: core.device_number(),
                private_data: private_data.as_slice(),
                responder_resources: self.responder_resources.min(device.responder_resources),
                initiator_depth: self.initiator_depth.min(device.initiator_depth),
                retry_count: RETRY_COUNT,
                rnr_retry_count: core.rnr_retry(),
            })
            .map_err(|error| match errno(&error) {
                // The connector did not wait for the answer.
                Some(Errno::EINVAL | Errno::ENOTCONN | Errno::ECONNRESET) => Error::Disconnected,
                _ => Error::os("rdma_accept", error),
            })
        })
    }
}
