//! The connections of clients: taking their messages, answering them, and dropping those that only
//! take up room.
//!
//! ```text
//!   waiting (its time runs) ──claims──▶ holding (heartbeats both ways) ──lease ends──▶ waiting
//! ```
//! * A connection that says nothing valid for [`SAY_SOMETHING`] or holds no lease for
//!   [`CLAIM_SOMETHING`] is dropped. Only so many may wait for that, of one peer and in all; then those that have
//!   waited longest go for those that come, after what they have sent by then was taken.
//! * ALIVE - a client that holds a lease is sent a sign of life in every period, and dropped when it was silent
//!   for too long. A client whose messages are still unread is not silent.
//! * HOSTILE - what a client does wrong ends its own connection and no other.
//! * Of a client that floods, [`TURN`] messages are taken, then the next one has its turn.
//!
//! Elsewhere: what a message does (`manager`, `allocations`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rdmalib::{ConnectRequest, Device, Peer, WaitingList};
use rfaas_program::describe;
use rfaas_program::descriptor_set::{DescriptorSet, Tells};
use rfaas_program::inherited::descriptor_limit;
use rfaas_program::poll_loop::DESCRIPTORS_PER_CONNECTION;
use rfaas_protocol::Empty;
use rfaas_protocol::allocation::{FromClient, LeaseEnding, NodeProof, RefusedBecause, ToClient};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, refuse};
use rfaas_protocol::heartbeat::{Heartbeat, Pulse};
use rfaas_protocol::lease::EndReason;

use crate::allocations::ClientId;
use crate::request::{Opening, RequestRefusal};

/// Time for the first valid message. Our clients send it at once.
pub const SAY_SOMETHING: Duration = Duration::from_secs(5);
/// Time without a lease, since connecting or since the last one ended.
pub const CLAIM_SOMETHING: Duration = Duration::from_secs(30);
/// Most connections without a lease: a few for each core of a large node, and few enough not to
/// exhaust its descriptors.
pub const MOST_WAITING: usize = 256;
/// Most of these connections of one peer: a user of this machine, or an address.
pub const MOST_WAITING_OF_PEER: usize = 128;
/// Messages taken from one client before the next has its turn.
const TURN: usize = 8;
/// Receives posted on a connection: a client has at most two messages and some beats under way.
const RECEIVES: u32 = 8;

/// What clients did.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once or twice each; not kept")]
pub enum Heard {
    /// One sent this.
    Message(ClientId, FromClient),
    /// This connection has ended.
    Gone(ClientId),
}

#[derive(Debug)]
struct Client {
    channel: Channel,
    peer: String,
    /// The peer that it is counted for.
    origin: Peer,
    opening: Opening,
    standing: Standing,
    /// It has said something valid.
    spoke: bool,
    /// It has to go, unless what it has sent by now gets it a lease.
    last_turn: bool,
    connected: Instant,
}

/// What is expected of a client.
#[derive(Clone, Copy, Debug)]
enum Standing {
    /// It holds no lease, and is dropped at this time.
    Waiting { until: Instant },
    /// It holds one, and signs of life are expected of it.
    Holding(Pulse),
}

/// All connections of clients.
#[derive(Debug)]
pub struct Clients {
    device: Device,
    heartbeat: Heartbeat,
    connected: BTreeMap<ClientId, Client>,
    /// Where armed connections announce news.
    news: DescriptorSet,
    /// Clients that hold no lease.
    waiting: WaitingList<ClientId>,
    /// When those that hold a lease are given the next sign of life, all of them in one pass.
    beat_at: Instant,
    next: u64,
}

impl Clients {
    /// No clients yet. They will connect to `device`, and beat as `heartbeat` says. Fails only if this process has no
    /// descriptor left.
    pub fn new(device: Device, heartbeat: Heartbeat) -> nix::Result<Self> {
        let most = most_waiting();
        let waiting = WaitingList::new(most.div_ceil(2).min(MOST_WAITING_OF_PEER), most);
        let (connected, beat_at) = (BTreeMap::new(), Instant::now());
        let news = DescriptorSet::new()?;
        Ok(Clients { device, heartbeat, connected, news, waiting, beat_at, next: 1 })
    }

    /// Connects a client that has opened the conversation so, answering it `proof`; or refuses it.
    pub fn accept(
        &mut self,
        request: ConnectRequest,
        opening: Opening,
        proof: &NodeProof,
        now: Instant,
    ) {
        let (peer, origin) = (request.peer(), request.origin());
        let mut channel = match Channel::of_messages(&self.device, RECEIVES) {
            Ok(channel) => channel,
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(error, peer, "no room for another client");
                refuse(request, &format!("this node cannot take another client: {error}"));
                return;
            }
        };
        match channel.accept(request, proof) {
            Ok(()) => {}
            Err(ChannelError::Disconnected) => {
                tracing::debug!(peer, "client was gone before it was connected");
                return;
            }
            Err(error) => {
                tracing::warn!(error = describe(&error), peer, "a client could not be connected");
                return;
            }
        }
        let id = ClientId(self.next);
        self.next += 1;
        if let Err(errno) = self.news.add(&channel, id.0, Tells::Always) {
            tracing::warn!(%errno, peer, "a client cannot be waited for: dropped");
            return;
        }
        tracing::debug!(client = id.0, peer, "client connected");
        let standing = Standing::Waiting { until: now + SAY_SOMETHING };
        let (spoke, last_turn, connected) = (false, false, now);
        let client =
            Client { channel, peer, origin, opening, standing, spoke, last_turn, connected };
        self.connected.insert(id, client);
        self.note_waiting(id, origin, now);
    }

    /// Notes that `id` waits. The client that has to go for that has its last turn.
    fn note_waiting(&mut self, id: ClientId, origin: Peer, now: Instant) {
        let gone = self.waiting.add(id, origin);
        if let Some(client) = gone.and_then(|gone| self.connected.get_mut(&gone)) {
            client.standing = Standing::Waiting { until: now };
            client.last_turn = true;
        }
    }

    fn forget(&mut self, id: ClientId) {
        if let Some(client) = self.connected.remove(&id) {
            self.news.remove(&client.channel);
        }
        self.waiting.remove(id);
    }

    /// How a client has opened the conversation.
    pub fn opening(&self, id: ClientId) -> Option<&Opening> {
        self.connected.get(&id).map(|client| &client.opening)
    }

    /// The peer that a client is counted for.
    pub fn origin(&self, id: ClientId) -> Peer {
        self.connected.get(&id).map_or(Peer::Unknown, |client| client.origin)
    }

    /// Takes what arrived, beats, and drops connections whose time is up. Returns something as long as
    /// there may be more.
    pub fn receive(&mut self, now: Instant) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut gone = Vec::new();
        if now >= self.beat_at {
            self.beat_at = now + self.heartbeat.period;
        }
        for (&id, client) in &mut self.connected {
            let taken = heard.len();
            let open = client.take_turn(id, &mut heard);
            let spoke = heard.len() > taken;
            if !open || !client.in_time(id, spoke, now) {
                heard.push(Heard::Gone(id));
                gone.push(id);
            }
        }
        gone.into_iter().for_each(|id| self.forget(id));
        heard
    }

    /// Sends `message`. False if that client is gone or does not take messages; then it is dropped.
    pub fn tell(&mut self, id: ClientId, message: &ToClient) -> bool {
        let Some(client) = self.connected.get_mut(&id) else { return false };
        match client.channel.send(message) {
            Ok(()) => true,
            Err(ChannelError::Disconnected) => {
                true // what it sent before its end is still to be taken; then it is heard to be gone
            }
            Err(error) => {
                tracing::debug!(client = id.0, peer = client.peer, %error, "client dropped");
                self.forget(id);
                false
            }
        }
    }

    /// Notes which clients hold a lease: the time of the others runs.
    pub fn note_leases(&mut self, now: Instant, holds: impl Fn(ClientId) -> bool) {
        let mut again = Vec::new();
        for (&id, client) in &mut self.connected {
            match (holds(id), client.holds()) {
                (true, false) => {
                    let pulse = Pulse::together(self.heartbeat, now, self.beat_at);
                    client.standing = Standing::Holding(pulse);
                    client.last_turn = false;
                    self.waiting.remove(id);
                }
                (false, true) => {
                    client.standing = Standing::Waiting { until: now + CLAIM_SOMETHING };
                    again.push((id, client.origin));
                }
                _ => {}
            }
        }
        again.into_iter().for_each(|(id, origin)| self.note_waiting(id, origin, now));
    }

    /// When [`receive`](Clients::receive) is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let due = |client: &Client| match &client.standing {
            Standing::Waiting { until } => *until,
            Standing::Holding(pulse) => pulse.deadline(),
        };
        self.connected.values().map(due).min()
    }

    /// Asks all connections to announce news at their descriptors.
    pub fn arm(&mut self) {
        for client in self.connected.values_mut() {
            if let Err(error) = client.channel.arm_for_announced() {
                tracing::debug!(peer = client.peer, %error, "client's queue cannot be armed");
                client.channel.disconnect();
            }
        }
    }

    /// Readable when an armed connection announces news.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes back the announcements of clients.
    pub fn acknowledge(&mut self) {
        let mut found = Vec::new();
        self.news.take_readable(&mut found);
        for client in found {
            let Some(client) = self.connected.get_mut(&ClientId(client)) else { continue };
            if let Err(error) = client.channel.acknowledge() {
                tracing::debug!(peer = client.peer, %error, "client's event cannot be taken");
                client.channel.disconnect();
            }
        }
    }

    /// Gives clients until `deadline` to take what was sent to them.
    pub fn flush(&mut self, deadline: Instant) {
        for client in self.connected.values_mut() {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(error) = client.channel.flush(left) {
                tracing::debug!(peer = client.peer, %error, "client did not take its last messages");
            }
        }
    }
}

/// The number of clients that may wait, as far as there are descriptors: half of these are for leases.
fn most_waiting() -> usize {
    let most = descriptor_limit() / 2 / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(most).unwrap_or(MOST_WAITING).clamp(2, MOST_WAITING)
}

impl Client {
    fn holds(&self) -> bool {
        matches!(self.standing, Standing::Holding(_))
    }

    /// Beats if it is time; false if the client's time is up. `spoke`: it was heard just now.
    fn in_time(&mut self, id: ClientId, spoke: bool, now: Instant) -> bool {
        let pulse = match &mut self.standing {
            Standing::Waiting { until } if now < *until => return true,
            Standing::Waiting { .. } if self.last_turn => {
                self.last_turn = false;
                if spoke {
                    return true; // the next time it has a lease or goes
                }
                let why = "too many clients wait to claim a lease on this node: try again later";
                let refused = RequestRefusal::new(RefusedBecause::NoCapacity, why).message();
                let told = self.channel.send(&refused);
                tracing::debug!(client = id.0, peer = self.peer, ?told, "client makes room");
                return false;
            }
            Standing::Waiting { .. } => {
                tracing::debug!(
                    client = id.0,
                    peer = self.peer,
                    "client asks for nothing: dropped"
                );
                return false;
            }
            Standing::Holding(pulse) => pulse,
        };
        if spoke {
            pulse.heard(now);
        }
        if pulse.beat(now) {
            match self.channel.send_unannounced(&ToClient::Heartbeat(Empty {})) {
                Ok(()) | Err(ChannelError::Disconnected) => {} // its end is heard when it is its turn
                // It takes nothing: what it says, and then its silence, decides.
                Err(error) => tracing::debug!(client = id.0, peer = self.peer, %error, "no beat"),
            }
        }
        let Some(silence) = pulse.silent(now) else { return true };
        tracing::info!(client = id.0, peer = self.peer, ?silence, "client is silent: given up");
        // One that was only stopped reads this when it goes on.
        let reason = EndReason::ClientGone.to_wire();
        let ending = LeaseEnding { reason, grace_ms: 0.into() };
        if let Err(error) = self.channel.send(&ToClient::LeaseEnding(ending)) {
            tracing::debug!(client = id.0, peer = self.peer, %error, "it is not told that either");
        }
        false
    }

    /// Takes up to [`TURN`] messages; false if the connection is to be dropped.
    fn take_turn(&mut self, id: ClientId, heard: &mut Vec<Heard>) -> bool {
        for _ in 0..TURN {
            match self.channel.try_receive() {
                Ok(None) => return true,
                Ok(Some(Incoming::Message(message))) => {
                    let first = !std::mem::replace(&mut self.spoke, true);
                    // A client that has to go does not stay for a first message.
                    let more_time = first && !self.last_turn;
                    if more_time && let Standing::Waiting { until } = &mut self.standing {
                        *until = self.connected + CLAIM_SOMETHING;
                    }
                    heard.push(Heard::Message(id, message));
                }
                Ok(Some(Incoming::Written { .. })) => {
                    tracing::warn!(
                        peer = self.peer,
                        "client wrote where nothing is offered: dropped"
                    );
                    return false;
                }
                Err(ChannelError::Disconnected) => {
                    tracing::debug!(client = id.0, peer = self.peer, "client disconnected");
                    return false;
                }
                // It says what its release says; that has an answer.
                Err(ChannelError::Malformed(_)) if matches!(self.opening, Opening::Old) => {
                    let why = "the release of this client is too old: it cannot prove that the lease is its own; use \
                               the same release on both sides";
                    let refusal = RequestRefusal::new(RefusedBecause::BadToken, why).message();
                    if let Err(error) = self.channel.send(&refusal) {
                        tracing::debug!(client = id.0, peer = self.peer, %error, "client dropped");
                        return false;
                    }
                }
                Err(error) => {
                    // Without its number, so that a peer that does it over and over is told of once.
                    tracing::warn!(peer = self.peer, %error, "client dropped");
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rdmalib::Listener;
    use rdmalib_testing::device;
    use rfaas_protocol::Role;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// A client of `clients`, connected at `now`.
    fn connected(clients: &mut Clients, listener: &mut Listener, now: Instant) -> Channel {
        let (device, address) = (clients.device.clone(), listener.local_addr());
        std::thread::scope(|scope| {
            let connecting = scope.spawn(move || {
                let mut channel = Channel::new(&device, RECEIVES).unwrap();
                channel.connect(address, Role::Allocation, &Empty {}, LONG).unwrap();
                channel
            });
            let request = listener.next(LONG).unwrap().unwrap();
            clients.accept(request, Opening::Old, &NodeProof::none(), now);
            connecting.join().unwrap()
        })
    }

    #[test]
    fn who_has_to_go_does_not_stay_for_a_first_word_that_claims_nothing() {
        let device = device();
        let mut listener = device.listen(0).unwrap();
        let mut clients = Clients::new(device, Heartbeat::from_ms(1000, 5000)).unwrap();
        clients.waiting = WaitingList::new(1, 1);
        let start = Instant::now();
        let mut first = connected(&mut clients, &mut listener, start);
        let _second = connected(&mut clients, &mut listener, start);
        first.send(&FromClient::Heartbeat(Empty {})).unwrap();
        let of_first = ClientId(1);
        let heard = clients.receive(start);
        assert!(matches!(heard[..], [Heard::Message(id, _)] if id == of_first), "{heard:?}");
        clients.receive(start); // its last turn is over: it holds nothing
        assert!(!clients.connected.contains_key(&of_first));
        assert_eq!(clients.connected.len(), 1, "who came for it waits");
    }
}
