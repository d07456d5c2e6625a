//! Connections of executor managers: both sides prove who they are, then nodes report and are asked to do things.
//!
//! ```text
//!   accepted with our proof ──Register──▶ registered ──silent, malformed, gone──▶ dropped
//!             └── silent, refused ──▶ closing ──▶ dropped
//! ```
//! * PROVED - nothing that comes before a registration with the right proof reaches the pool.
//! * A node has one registered connection. A second is refused while the first is alive.
//! * A sign of life wakes nobody: it is taken when ours is due, that of all nodes in one pass. What a node with leases
//!   says beside it, what they have used, does wake the loop.
//! * DURABLE FIRST - what a node is told of leases, also that it is registered, goes through actions. The loop
//!   carries them out when what they tell of is committed.
//!
//! Elsewhere: what a report changes (`pool`); which messages there are (`rfaas_protocol::node`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use rdmalib::{ConnectRequest, Device, Peer, WaitingList};
use rfaas_program::poll_loop::Idle;
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::heartbeat::{Heartbeat, Pulse};
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms, Reason};
use rfaas_protocol::node::{
    EndLease, FromNode, LeaseEndedAck, ManagerProof, NodeHello, Register, RegisterRefused,
    Registered, STAYS, ToNode,
};
use rfaas_protocol::{Clock, Malformed, Nonces};

use crate::link::{Announce, News, Outbox, Turn, take_messages};
use crate::metrics::LoopEvents;
use crate::pool::{Action, Ask, Capacity, EndReport, LinkId, MAX_TIMEOUT, Now, Pool, Run, Terms};

/// How long a peer may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);
/// Peers that are not registered, in all: more executor managers than start in the same moment. A peer that comes
/// takes the place of the oldest; ours register at once. There are fewer where there is less room: an eighth of
/// it. One peer has half of them.
const MOST_UNREGISTERED: usize = 256;
/// How long a refusal has to arrive before its connection is cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages taken from one executor manager before the others have their turn.
const TURN: usize = 64;
/// Messages that wait for a slow executor manager: many times what a pass of the loop has for it. They are
/// about its leases, so none is left out.
const MOST_WAITING: usize = 4096;
/// Messages that an executor manager may be ahead; with more it waits for a pass of the loop. Each has a buffer, which
/// is in memory once it was used.
const RECEIVES: u32 = 64;

enum Phase {
    /// It is to register by then.
    Greeting { nonces: Nonces, until: Instant },
    /// It is the executor manager of this node.
    Registered { node: Arc<str>, pulse: Pulse },
    /// It was refused, and may read so until then.
    Closing { until: Instant },
}

struct NodeLink {
    channel: Channel,
    outbox: Outbox<ToNode>,
    phase: Phase,
    /// Its place in [`NodeLinks::deadlines`].
    noted: Instant,
    /// When all that it had sent was taken.
    taken: Instant,
}

impl NodeLink {
    /// When there is something to do about it at the latest.
    fn deadline(&self) -> Instant {
        match &self.phase {
            Phase::Greeting { until, .. } | Phase::Closing { until } => *until,
            Phase::Registered { pulse, .. } => pulse.deadline(),
        }
    }

    /// Has it looked at when its deadline has come, if that is sooner than it was.
    fn note_deadline(&mut self, id: LinkId, deadlines: &mut BTreeSet<(Instant, LinkId)>) {
        let deadline = self.deadline();
        if deadline < self.noted {
            deadlines.remove(&(self.noted, id));
            deadlines.insert((deadline, id));
            self.noted = deadline;
        }
    }
}

/// All connections of executor managers.
pub(crate) struct NodeLinks {
    // Boxed: a link is taken out of the map and put back in each of its turns.
    links: BTreeMap<LinkId, Box<NodeLink>>,
    /// The registered ones.
    registered: HashMap<Arc<str>, LinkId>,
    /// Where connections announce news.
    news: News,
    /// When to look at each at the latest. A deadline that has moved to later since is found then.
    deadlines: BTreeSet<(Instant, LinkId)>,
    /// When the next sign of life is given, to all nodes in one pass.
    beat_at: Instant,
    secret: Arc<[u8]>,
    heartbeat: Heartbeat,
    idle: Idle,
    events: Arc<LoopEvents>,
    /// Connections that have not registered, also those that were refused.
    unregistered: WaitingList<LinkId>,
    /// Connections that have their last turn, since others have come.
    leaving: Vec<LinkId>,
    /// Connections that are to be served again: with more messages than `hear` took, or with messages that wait for them.
    unserved: BTreeSet<LinkId>,
}

impl NodeLinks {
    /// No connections yet. There may be `most` together with those of clients. Fails only if the process has no descriptor
    /// left.
    pub(crate) fn new(
        secret: Arc<[u8]>,
        heartbeat: Heartbeat,
        idle: Idle,
        events: Arc<LoopEvents>,
        most: usize,
    ) -> nix::Result<Self> {
        let unregistered = (most / 8).clamp(2, MOST_UNREGISTERED);
        Ok(NodeLinks {
            links: BTreeMap::new(),
            registered: HashMap::new(),
            news: News::new()?,
            deadlines: BTreeSet::new(),
            beat_at: Instant::now(),
            secret,
            heartbeat,
            idle,
            events,
            unregistered: WaitingList::new(unregistered / 2, unregistered),
            leaving: Vec::new(),
            unserved: BTreeSet::new(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// All connections.
    pub(crate) fn all(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.links.keys().copied()
    }

    /// Readable when there are [`news`](Self::some_news).
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.news.descriptor()
    }

    /// Some of the connections that have news; none only if no connection has.
    pub(crate) fn some_news(&mut self) -> Vec<LinkId> {
        let links = &mut self.links;
        self.news.some(|id| links.get_mut(&id).map_or(Ok(()), |link| link.channel.acknowledge()))
    }

    /// Whether one that is not registered goes for one that comes from there.
    pub(crate) fn gives_up_one_for(&self, newcomer: Peer) -> bool {
        self.unregistered.crowded(newcomer, false).is_some()
    }

    /// Connections that are to have their last turn.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.leaving.iter().copied()
    }

    /// Takes a connection that was opened with `hello` at `address`, proving who we are and asking its peer to
    /// register.
    pub(crate) fn accept(
        &mut self,
        now: Now,
        id: LinkId,
        device: &Device,
        request: ConnectRequest,
        hello: &NodeHello,
        address: SocketAddr,
    ) -> Result<(), ChannelError> {
        let origin = request.origin();
        let proof = ManagerProof::new(hello, address, &self.secret);
        let mut channel = Channel::of_messages(device, RECEIVES)?;
        channel.accept(request, &proof)?;
        let nonces = Nonces { caller: hello.nonce, called: proof.nonce };
        self.news.add(id, &channel)?;
        let until = now.monotonic + GREETING;
        let (phase, outbox) = (Phase::Greeting { nonces, until }, Outbox::new(MOST_WAITING));
        let (noted, taken) = (until, now.monotonic);
        self.links.insert(id, Box::new(NodeLink { channel, outbox, phase, noted, taken }));
        self.deadlines.insert((noted, id));
        self.leaving.extend(self.unregistered.add(id, origin));
        Ok(())
    }

    /// Drops those that have had their last turn, unless they have registered then.
    pub(crate) fn make_way(&mut self, now: Now, pool: &mut Pool, out: &mut Vec<Action>) {
        let registered = |link: &NodeLink| matches!(link.phase, Phase::Registered { .. });
        for id in std::mem::take(&mut self.leaving) {
            if self.links.get(&id).is_some_and(|link| !registered(link)) {
                tracing::debug!("a connection that has not registered makes room for others");
                self.drop_link(now, id, &ChannelError::Disconnected, pool, out);
            }
        }
    }

    /// Takes what a peer sent. Its connection is dropped if it ended or deserves it.
    pub(crate) fn serve(
        &mut self,
        now: Now,
        id: LinkId,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) -> Turn {
        // Out of the map, since a registration may concern another connection too.
        let Some(mut link) = self.links.remove(&id) else { return Turn::Done };
        let NodeLink { channel, outbox, phase, taken, .. } = &mut *link;
        let announce = match (self.idle, outbox.is_empty()) {
            (Idle::Poll, _) => Announce::Nothing,
            (Idle::Sleep, true) => Announce::Announced,
            (Idle::Sleep, false) => Announce::Everything,
        };
        let unseen = now.monotonic.saturating_duration_since(*taken);
        let turn = take_messages(channel, announce, TURN, |channel, message| {
            if let Phase::Registered { pulse, .. } = phase {
                pulse.heard(now.monotonic);
            }
            self.message((now, unseen), id, channel, phase, message, pool, out)
        });
        let turn = turn.and_then(|turn| outbox.flush(channel).map(|()| turn));
        if turn.as_ref().is_ok_and(|turn| *turn == Turn::Done) {
            *taken = now.monotonic;
        }
        if !outbox.is_empty() && announce == Announce::Announced {
            self.unserved.insert(id); // to announce when it takes more
        }
        if matches!(phase, Phase::Registered { .. }) {
            self.unregistered.remove(id);
        }
        link.note_deadline(id, &mut self.deadlines);
        self.links.insert(id, link);
        turn.unwrap_or_else(|error| {
            self.drop_link(now, id, &error, pool, out);
            Turn::Done
        })
    }

    /// Takes what all nodes have announced by now, up to [`TURN`] messages of each. To be called between
    /// reading a wish for capacity and refusing it, once for all that were read: a client that gave
    /// a lease back was told so after its node had reported the end, so that report is seen here.
    pub(crate) fn hear(&mut self, now: Now, pool: &mut Pool, out: &mut Vec<Action>) {
        if self.idle == Idle::Poll {
            let all = self.all().collect();
            return self.hear_of(all, now, pool, out);
        }
        let mut heard = BTreeSet::new();
        loop {
            let (news, again): (Vec<_>, Vec<_>) =
                self.some_news().into_iter().partition(|id| heard.insert(*id));
            self.unserved.extend(again); // what it announces is of after this call
            if news.is_empty() {
                return;
            }
            self.hear_of(news, now, pool, out);
        }
    }

    fn hear_of(&mut self, ids: Vec<LinkId>, now: Now, pool: &mut Pool, out: &mut Vec<Action>) {
        for id in ids {
            if self.serve(now, id, pool, out) == Turn::Again {
                self.unserved.insert(id);
            }
        }
    }

    /// Connections that are to be served again before the loop sleeps.
    pub(crate) fn take_unserved(&mut self) -> BTreeSet<LinkId> {
        std::mem::take(&mut self.unserved)
    }

    #[allow(clippy::too_many_arguments)] // the parts of a link that is out of the map
    fn message(
        &mut self,
        (now, unseen): (Now, Duration),
        id: LinkId,
        channel: &mut Channel,
        phase: &mut Phase,
        message: FromNode,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) -> Result<(), ChannelError> {
        match (&*phase, message) {
            (Phase::Closing { .. }, _) => {} // it has not read that it was refused
            (Phase::Greeting { nonces, .. }, FromNode::Register(register)) => {
                match self.register(now, id, &register, nonces, pool, out)? {
                    Ok(node) => {
                        if self.beat_at <= now.monotonic {
                            self.beat_at = now.monotonic + self.heartbeat.period;
                        }
                        // The answer is the first sign of life.
                        let pulse = Pulse::together(self.heartbeat, now.monotonic, self.beat_at);
                        self.registered.insert(node.clone(), id);
                        *phase = Phase::Registered { node, pulse };
                        out.extend(pool.tell_node(id));
                    }
                    Err(why) => {
                        let reason = Reason::truncated(&why);
                        channel.send(&ToNode::Refused(RegisterRefused { reason }))?;
                        *phase = Phase::Closing { until: now.monotonic + LAST_WORDS };
                    }
                }
            }
            (Phase::Registered { node, .. }, FromNode::Claimed(claim)) => {
                pool.claimed(now, id, &read_terms(&claim.terms, node)?, out);
            }
            (Phase::Registered { node, .. }, FromNode::Ended(ended)) => {
                let report = EndReport {
                    terms: read_terms(&ended.terms, node)?,
                    reason: EndReason::from_wire(ended.reason)?,
                    bill: ended.bill,
                };
                pool.ended(now, id, &report, out);
            }
            (Phase::Registered { .. }, FromNode::Used(used)) => {
                let lease = LeaseId::new(used.lease.get()).ok_or(Malformed::Field("lease"))?;
                pool.used(id, lease, used.bill);
            }
            (Phase::Registered { .. }, FromNode::Draining(draining)) => {
                let grace = Duration::from_millis(draining.grace_ms.get().into());
                pool.draining(now, id, grace, out);
            }
            (Phase::Registered { .. }, FromNode::Heartbeat(clock)) => {
                pool.clock(now, id, ahead_when_said(clock.ahead_of(now.wall), unseen));
            }
            (Phase::Greeting { .. }, _) => return Err(Malformed::Field("registration").into()),
            (Phase::Registered { .. }, FromNode::Register(_)) => {
                return Err(Malformed::Field("second registration").into());
            }
        }
        Ok(())
    }

    /// Registers the node that a peer says it is. The inner `Err` is the reason that it is sent.
    fn register(
        &mut self,
        now: Now,
        id: LinkId,
        register: &Register,
        nonces: &Nonces,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) -> Result<Result<Arc<str>, String>, ChannelError> {
        let name = register.node.get()?;
        let instance = NonZeroU64::new(register.instance.get());
        let instance = instance.ok_or(Malformed::Field("instance"))?;
        if !register.verify(nonces, &self.secret) {
            let why = "the cluster secret is not this resource manager's: \
                       resource_manager_secret there must be rdma-secret here";
            return Ok(Err(refuse(name, why.into())));
        }
        // The newer connection wins if the older is dead, which was perhaps not looked at yet.
        let older = self.registered.get(name).copied();
        let is_dead =
            |older: &LinkId| self.links.get(older).is_some_and(|link| !link.channel.is_connected());
        if let Some(dead) = older.filter(is_dead) {
            self.drop_link(now, dead, &ChannelError::Disconnected, pool, out);
        }
        let (address, clock_ahead_ms) =
            (register.address.into(), register.clock.ahead_of(now.wall));
        let run = Run { instance, address, clock_ahead_ms, isolation: register.isolation() };
        Ok(match pool.node_connected(now, name, run, id, out) {
            Ok(_) => Ok(name.into()),
            Err(why) => Err(refuse(name, why)),
        })
    }

    /// Sends a message to a node. A node that takes none is lost.
    pub(crate) fn send(
        &mut self,
        now: Now,
        id: LinkId,
        message: ToNode,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match link.outbox.send(&mut link.channel, message) {
            Ok(()) if link.outbox.is_empty() => {}
            Ok(()) => drop(self.unserved.insert(id)), // it is to announce when it takes more
            Err(error) => self.drop_link(now, id, &error, pool, out),
        }
    }

    /// Ends the connection of a node that was removed.
    pub(crate) fn close(&mut self, now: Now, id: LinkId, why: &str) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let refused = RegisterRefused { reason: Reason::truncated(why) };
        if let Err(error) = link.outbox.send(&mut link.channel, ToNode::Refused(refused)) {
            tracing::debug!(%error, "a node that was removed could not be told");
        }
        let closing = Phase::Closing { until: now.monotonic + LAST_WORDS };
        if let Phase::Registered { node, .. } = std::mem::replace(&mut link.phase, closing)
            && self.registered.get(&node) == Some(&id)
        {
            self.registered.remove(&node);
        }
        if !link.outbox.is_empty() {
            self.unserved.insert(id); // it is to announce when it takes more
        }
        link.note_deadline(id, &mut self.deadlines);
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes what peers have sent that announce nothing, gives signs of life that are due, drops peers whose own did not
    /// come.
    pub(crate) fn tick(&mut self, now: Now, pool: &mut Pool, out: &mut Vec<Action>) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now.monotonic
        {
            if self.serve(now, id, pool, out) == Turn::Again {
                self.unserved.insert(id);
            }
            let Some(link) = self.links.get_mut(&id) else { continue }; // its deadline went with it
            let NodeLink { channel, outbox, phase, .. } = &mut **link;
            let error = match phase {
                Phase::Greeting { until, .. } if *until <= now.monotonic => {
                    Some(ChannelError::TimedOut { what: "registering", after: GREETING })
                }
                Phase::Closing { until } if *until <= now.monotonic => {
                    Some(ChannelError::TimedOut { what: "closing", after: LAST_WORDS })
                }
                Phase::Greeting { .. } | Phase::Closing { .. } => None,
                Phase::Registered { pulse, .. } => {
                    let beat = pulse.beat(now.monotonic);
                    if beat {
                        self.beat_at = now.monotonic + self.heartbeat.period;
                    }
                    match pulse.silent(now.monotonic) {
                        Some(after) => {
                            self.events.silent_node();
                            let what = "hearing from the executor manager";
                            Some(ChannelError::TimedOut { what, after })
                        }
                        // What waits for it is as good a sign of life.
                        None if beat && outbox.is_empty() => {
                            outbox.send(channel, ToNode::Heartbeat(Clock::now())).err()
                        }
                        None => None,
                    }
                }
            };
            if !link.outbox.is_empty() {
                self.unserved.insert(id);
            }
            self.deadlines.remove(&(link.noted, id));
            link.noted = link.deadline();
            self.deadlines.insert((link.noted, id));
            if let Some(error) = error {
                self.drop_link(now, id, &error, pool, out);
            }
        }
    }

    fn drop_link(
        &mut self,
        now: Now,
        id: LinkId,
        why: &ChannelError,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) {
        let Some(mut link) = self.links.remove(&id) else { return };
        self.unregistered.remove(id);
        self.deadlines.remove(&(link.noted, id));
        self.news.remove(&link.channel);
        link.channel.disconnect();
        if let Phase::Registered { node, .. } = &link.phase
            && self.registered.get(node) == Some(&id)
        {
            self.registered.remove(node);
        }
        match link.phase {
            Phase::Closing { .. } => tracing::debug!(%why, "refused connection closed"),
            Phase::Greeting { .. } => {
                // A node of another cluster finds that we are not its resource manager, and says no more.
                tracing::warn!(
                    %why,
                    "a connection as executor manager ended before it registered: is its cluster secret ours?"
                );
            }
            Phase::Registered { node, .. } => {
                match why {
                    ChannelError::Disconnected => tracing::debug!(?node, "it disconnected"),
                    _ => tracing::warn!(?node, %why, "connection dropped"),
                }
                pool.node_disconnected(now, id, out);
            }
        }
    }
}

/// Logs why a registration is refused.
fn refuse(name: &str, why: String) -> String {
    tracing::warn!(node = name, reason = why, "an executor manager was refused");
    why
}

/// How far a clock was ahead that was read by its owner up to `unseen` ago: what that makes of it counts for nobody.
fn ahead_when_said(ahead_ms: i64, unseen: Duration) -> i64 {
    let unseen = i64::try_from(unseen.as_millis()).unwrap_or(i64::MAX);
    if ahead_ms < 0 { ahead_ms.saturating_add(unseen).min(0) } else { ahead_ms }
}

/// The message to a node that an action of the pool means, if it means one.
pub(crate) fn message_of(action: &Action, heartbeat: Heartbeat) -> Option<(LinkId, ToNode)> {
    Some(match *action {
        Action::EndLease { link, lease, reason, grace } => {
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX).into();
            let end = EndLease { lease: lease.get().into(), reason: reason.to_wire(), grace_ms };
            (link, ToNode::EndLease(end))
        }
        Action::AcknowledgeEnd { link, lease } => {
            (link, ToNode::EndedAck(LeaseEndedAck { lease: lease.get().into() }))
        }
        Action::TellNode { link, capacity, leaves_at } => {
            (link, registered(capacity, heartbeat, leaves_at))
        }
        Action::Close { .. } | Action::Resolve { .. } | Action::NodesChanged => return None,
    })
}

fn registered(capacity: Capacity, heartbeat: Heartbeat, leaves_at: Option<Instant>) -> ToNode {
    let in_ms = |at: Instant| {
        let left = at.saturating_duration_since(Instant::now());
        u64::try_from(left.as_millis()).unwrap_or(STAYS)
    };
    ToNode::Registered(Registered {
        cores: capacity.cores.into(),
        memory: capacity.memory.into(),
        heartbeat_ms: heartbeat.period_ms().into(),
        silence_ms: heartbeat.silence_ms().into(),
        clock: Clock::now(),
        leaves_in_ms: leaves_at.map_or(STAYS, in_ms).into(),
    })
}

/// Terms that `node` reports, if they make sense and are its own.
fn read_terms(wire: &LeaseTerms, node: &str) -> Result<Terms, Malformed> {
    if wire.node.get()? != node {
        return Err(Malformed::Field("node"));
    }
    let client = wire.client.get()?;
    let (cores, memory) = (wire.cores.get(), wire.memory.get());
    Ask::new(cores, memory, MAX_TIMEOUT, client).map_err(|_| Malformed::Field("terms"))?;
    let expires_at = Duration::from_millis(wire.expires_at_ms.get());
    Ok(Terms {
        lease: LeaseId::new(wire.lease.get()).ok_or(Malformed::Field("lease"))?,
        cores,
        memory,
        expires_at: UNIX_EPOCH.checked_add(expires_at).ok_or(Malformed::Field("expires_at_ms"))?,
        instance: NonZeroU64::new(wire.instance.get()),
        client: client.into(),
    })
}

#[cfg(test)]
mod tests {
    use rfaas_protocol::lease::{ClientName, NodeName};

    use super::*;

    #[test]
    fn a_clock_is_behind_by_no_more_than_was_not_waited_for() {
        let ms = Duration::from_millis;
        assert_eq!(ahead_when_said(3000, ms(500)), 3000);
        assert_eq!(ahead_when_said(-3000, ms(500)), -2500);
        assert_eq!(ahead_when_said(-300, ms(500)), 0);
        assert_eq!(ahead_when_said(i64::MIN, Duration::MAX), -1, "no overflow, whatever it says");
    }

    fn wire() -> LeaseTerms {
        LeaseTerms {
            lease: 7.into(),
            cores: 2.into(),
            memory: 64.into(),
            expires_at_ms: 1_700_000_000_000.into(),
            instance: 5.into(),
            node: NodeName::new("a").unwrap(),
            client: ClientName::new("c").unwrap(),
        }
    }

    #[test]
    fn terms_of_another_node_or_without_sense_are_malformed() {
        assert_eq!(read_terms(&wire(), "a").unwrap().cores, 2);
        assert!(read_terms(&wire(), "b").is_err());
        assert!(read_terms(&LeaseTerms { lease: 0.into(), ..wire() }, "a").is_err());
        assert!(read_terms(&LeaseTerms { cores: 0.into(), ..wire() }, "a").is_err());
        assert!(read_terms(&LeaseTerms { cores: u32::MAX.into(), ..wire() }, "a").is_err());
        assert!(read_terms(&LeaseTerms { memory: 0.into(), ..wire() }, "a").is_err());
        let endless = LeaseTerms { expires_at_ms: u64::MAX.into(), ..wire() };
        let _ = read_terms(&endless, "a"); // no panic, whatever the clock's range
    }
}
