//! Who dials the workers of a graph: accepted on a thread of its own, which ends before any foreign code runs.
//!
//! ```text
//!   workers ──Expected: a link, and the secret that is shown for it──▶ this thread ◀──dials── senders
//!           ◀──the link, connected────────────────────────────────────┘
//! ```
//! Anyone may dial. Who does not show the secret of a link that is waited for is refused.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{ConnectRequest, Device, Listener};
use rfaas_call::edge::InLink;
use rfaas_protocol::channel::refuse;
use rfaas_protocol::edge::EdgeHello;
use rfaas_protocol::{Hello, Role, Secret, parse_prefix};

/// A link that waits for its sender.
#[derive(Debug)]
pub struct Expected {
    /// What the sender shows.
    pub secret: Secret,
    /// To be connected.
    pub link: InLink,
    /// Its number among the links to its worker.
    pub number: usize,
    /// Gets it back with that, connected. It is dropped if nobody comes in time.
    pub connected: Sender<(usize, InLink)>,
}

/// Where senders dial.
#[derive(Debug)]
pub struct Introductions(Listener);

impl Introductions {
    /// Listens at a free port of `device`.
    pub fn listen(device: &Device) -> rdmalib::Result<Self> {
        device.listen(0).map(Introductions)
    }

    /// Returns where.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// Accepts the senders of `count` links, which come over what is returned, within `timeout`.
    pub fn accept(self, count: usize, timeout: Duration) -> io::Result<Sender<Expected>> {
        let (sender, expected) = channel();
        let deadline = Instant::now() + timeout;
        let thread = thread::Builder::new().name("introductions".into());
        thread.spawn(move || work(self.0, &expected, count, deadline))?;
        Ok(sender)
    }
}

fn work(mut listener: Listener, expected: &Receiver<Expected>, count: usize, deadline: Instant) {
    let left = || deadline.saturating_duration_since(Instant::now());
    // All of them first: who dials meanwhile waits.
    let mut waiting = Vec::new();
    while waiting.len() < count {
        let Ok(next) = expected.recv_timeout(left()) else { return }; // a worker has failed, which is told
        waiting.push(next);
    }
    while !waiting.is_empty() && !left().is_zero() {
        match listener.next(left()) {
            Ok(Some(request)) => introduce(request, &mut waiting),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "cannot listen for other workers");
                return;
            }
        }
    }
}

/// Connects who dials to the link whose secret it shows.
fn introduce(request: ConnectRequest, waiting: &mut Vec<Expected>) {
    let secret = match Hello::parse(request.private_data()) {
        Ok((Role::Edge, body)) => parse_prefix(body).map(|hello: EdgeHello| hello.secret),
        Ok(_) => return refuse(request, "this executor waits for workers of its graph"),
        Err(error) => Err(error),
    };
    let secret = match secret {
        Ok(secret) => secret,
        Err(error) => return refuse(request, &error.to_string()),
    };
    let Some(at) = waiting.iter().position(|expected| expected.secret == secret) else {
        return refuse(request, "wrong secret of a link");
    };
    let Expected { mut link, number, connected, .. } = waiting.swap_remove(at);
    match link.accept(request) {
        Ok(()) => drop(connected.send((number, link))), // a worker that has ended needs none
        Err(error) => tracing::debug!(%error, "a sender is gone again"), // and so is its worker, which is told
    }
}
