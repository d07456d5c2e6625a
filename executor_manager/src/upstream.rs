//! The connection to the resource manager: registered, kept alive, made again when it ends.
//!
//! ```text
//!   waiting ─▶ dialing (helper thread) ─▶ registering ─▶ registered
//!      ▲ 100 ms … 1 s │ failed                │ refused, silent │ ended, silent
//!      └──────────────┴───────────────────────┴─────────────────┘
//! ```
//! * Nothing here blocks: looking up a name and connecting may wait, so a helper thread does them and
//!   wakes the loop with the result.
//! * ONE END - the end of a lease is kept, and sent again on every new connection, until the resource
//!   manager has acknowledged it.
//! * ALIVE - each side says something in every period that the resource manager set; one that was silent
//!   for too long is lost. With each of ours goes what the leases in use have used so far.
//!
//! Elsewhere: what is claimed and ended (`allocations`); leases go on while nobody is connected.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use rfaas_config::{ExecutorManagerNode, OpenDevice};
use rfaas_program::describe;
use rfaas_program::poll_loop::Bell;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::heartbeat::{Heartbeat, Pulse};
use rfaas_protocol::isolation::Layers;
use rfaas_protocol::lease::{EndReason, LeaseId, LeaseTerms};
use rfaas_protocol::node::{
    Draining, FromNode, LeaseClaimed, LeaseEnded, LeaseUsed, Register, RegisterRefused, Registered,
    STAYS, ToNode,
};
use rfaas_protocol::{Clock, Malformed, Nonces};

use crate::clock::ClusterClock;
use crate::identity::Identity;

mod dial;
pub use dial::DialError;
use dial::{Dialed, connect};

/// First and longest pause before dialing again. An operator who adds the node, or starts the resource manager
/// again, waits for it to appear.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How soon messages that the connection had no room for are tried again.
const SEND_AGAIN: Duration = Duration::from_millis(20);
/// What the resource manager did.
#[derive(Debug)]
pub enum News {
    /// It was reached. The connection is new, so nobody has [armed](Upstream::arm) it yet.
    Reached,
    /// The node is registered; it may lease out so much.
    Registered {
        /// Cores.
        cores: u32,
        /// Memory in MB.
        memory: u32,
        /// When it leaves.
        leaves_at: Option<Instant>,
    },
    /// A lease is to end.
    EndLease {
        /// This one.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// How long invocations may go on.
        grace: Duration,
    },
    /// What leases in use have used so far is to be [reported](Upstream::used).
    UsedIsDue,
    /// It could not be reached, and never was.
    NeverReached(DialError),
}

#[derive(Debug)]
enum UpstreamState {
    Waiting { until: Instant },
    Dialing { answer: mpsc::Receiver<Dialed> },
    Registering { channel: Channel, since: Instant },
    Registered { channel: Channel, pulse: Pulse },
}

/// The connection to the resource manager, in whatever state it is.
#[derive(Debug)]
pub struct Upstream {
    device: OpenDevice,
    target: ExecutorManagerNode,
    identity: Arc<Identity>,
    /// What executors are isolated by.
    isolation: Layers,
    bell: Bell,
    state: UpstreamState,
    /// The signs of life that the resource manager asked for last.
    heartbeat: Heartbeat,
    backoff: Duration,
    /// What the resource manager's says, by which leases end.
    clock: ClusterClock,
    /// The executor manager is to stop: when its last lease ends.
    draining: Option<Instant>,
    /// It was connected once, or is to be waited for.
    reached: bool,
    /// What is wrong with the secret was logged.
    warned: bool,
    /// The last failure that was logged; each is logged once.
    logged: Option<String>,
    /// Waiting to be sent on this connection.
    outgoing: VecDeque<FromNode>,
    /// Ends that the resource manager has not acknowledged, by lease (ONE END).
    unacknowledged: BTreeMap<u64, LeaseEnded>,
}

impl Upstream {
    /// Will dial the resource manager of `target`, as `identity`, at the first
    /// [`pump`](Upstream::pump). `bell` is rung when [`pump`](Upstream::pump) is due.
    pub fn new(
        device: OpenDevice,
        target: ExecutorManagerNode,
        identity: Arc<Identity>,
        isolation: Layers,
        bell: Bell,
        now: Instant,
    ) -> Self {
        let heartbeat = target.heartbeat();
        Upstream {
            device,
            target,
            identity,
            isolation,
            bell,
            state: UpstreamState::Waiting { until: now },
            heartbeat,
            backoff: BACKOFF.0,
            clock: ClusterClock::default(),
            draining: None,
            reached: false,
            warned: false,
            logged: None,
            outgoing: VecDeque::new(),
            unacknowledged: BTreeMap::new(),
        }
    }

    /// Has the resource manager be waited for, if it is not there at first.
    pub fn wait(&mut self) {
        self.reached = true;
    }

    /// Reports that a lease is in use. Without a connection nothing is kept: the loop reports all leases after
    /// [`News::Registered`].
    pub fn claimed(&mut self, terms: &LeaseTerms) {
        self.report(FromNode::Claimed(LeaseClaimed { terms: *terms }));
    }

    /// Tells that a lease has ended, until that is acknowledged.
    pub fn ended(&mut self, ended: LeaseEnded) {
        self.unacknowledged.insert(ended.terms.lease.get(), ended);
        self.report(FromNode::Ended(ended));
    }

    /// Reports what leases have used so far, unless the resource manager has not even taken the report before.
    pub fn used(&mut self, used: Vec<LeaseUsed>) {
        if self.outgoing.is_empty() {
            used.into_iter().for_each(|used| self.report(FromNode::Used(used)));
        }
    }

    /// Tells, now and on every later connection, that no lease is to be granted here any more, and that
    /// the last one ends at `deadline`.
    pub fn drain(&mut self, now: Instant, deadline: Instant) {
        self.draining = Some(deadline);
        self.report(draining(now, deadline));
    }

    /// Sends `message` now if there is room for it: a client that learns of an end next may ask the
    /// resource manager for what became free.
    fn report(&mut self, message: FromNode) {
        if let UpstreamState::Registered { channel, .. } = &mut self.state {
            self.outgoing.push_back(message);
            if let Err(error) = send_waiting(&mut self.outgoing, channel) {
                tracing::debug!(%error, "not sent; the next `pump` fails for the same reason");
            }
        }
    }

    /// What the clock says that leases end by.
    pub fn time(&self, now: Instant) -> SystemTime {
        self.clock.now(now)
    }

    /// Ends that the resource manager has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Whether the node is registered now.
    pub fn is_registered(&self) -> bool {
        matches!(self.state, UpstreamState::Registered { .. })
    }

    /// Takes what arrived, sends what waits, connects again when it is time. Never waits.
    pub fn pump(&mut self, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        // The state is moved out and put back, so that an early return means: lost.
        match std::mem::replace(&mut self.state, UpstreamState::Waiting { until: now }) {
            UpstreamState::Waiting { until } if now < until => {
                self.state = UpstreamState::Waiting { until }
            }
            UpstreamState::Waiting { .. } => self.dial(now),
            UpstreamState::Dialing { answer } => match answer.try_recv() {
                Err(mpsc::TryRecvError::Empty) => self.state = UpstreamState::Dialing { answer },
                Ok(Ok((channel, nonces))) => {
                    self.register(channel, &nonces, now);
                    news.push(News::Reached);
                }
                Ok(Err(error)) => self.not_reached(error, now, &mut news),
                Err(mpsc::TryRecvError::Disconnected) => self.lost("the helper thread ended", now),
            },
            UpstreamState::Registering { channel, since } => {
                self.await_registration(channel, since, now, &mut news);
            }
            UpstreamState::Registered { channel, pulse } => {
                self.converse(channel, pulse, now, &mut news)
            }
        }
        news
    }

    /// When [`pump`](Upstream::pump) is due at the latest, if no descriptor tells before.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            UpstreamState::Waiting { until } => Some(*until),
            UpstreamState::Dialing { .. } => None, // the helper wakes us, and its waits end
            UpstreamState::Registering { since, .. } => Some(*since + self.heartbeat.silence),
            UpstreamState::Registered { pulse, .. } => {
                let next = pulse.deadline();
                Some(if self.outgoing.is_empty() { next } else { next.min(now + SEND_AGAIN) })
            }
        }
    }

    /// Asks the connection, if there is one, to announce news at [`descriptor`](Upstream::descriptor).
    pub fn arm(&mut self) {
        self.with_channel(Channel::arm);
    }

    /// Takes the announcement back.
    pub fn acknowledge(&mut self) {
        self.with_channel(Channel::acknowledge);
    }

    /// What to poll.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            UpstreamState::Registering { channel, .. }
            | UpstreamState::Registered { channel, .. } => Some(channel.as_fd()),
            UpstreamState::Waiting { .. } | UpstreamState::Dialing { .. } => None,
        }
    }

    fn with_channel(&mut self, call: fn(&mut Channel) -> Result<(), ChannelError>) {
        if let UpstreamState::Registering { channel, .. }
        | UpstreamState::Registered { channel, .. } = &mut self.state
            && let Err(error) = call(channel)
        {
            tracing::debug!(%error, "resource manager's queue failed");
            channel.disconnect(); // and the next `pump` notices
        }
    }

    /// In a thread, since this may wait.
    fn dial(&mut self, now: Instant) {
        let (sender, answer) = mpsc::channel();
        let (device, target, bell) = (self.device.clone(), self.target.clone(), self.bell.clone());
        let secret = self.identity.secret.clone();
        let helper = std::thread::Builder::new().name("dial".into()).spawn(move || {
            // Nobody takes the result if the manager has stopped in the meantime.
            let _ = sender.send(connect(&device, &target, &secret));
            bell.ring();
        });
        match helper {
            Ok(_detached) => self.state = UpstreamState::Dialing { answer },
            Err(error) => self.lost(&describe(&DialError::Thread(error)), now),
        }
    }

    fn register(&mut self, mut channel: Channel, nonces: &Nonces, now: Instant) {
        self.reached = true;
        let Identity { name, instance, address, secret, .. } = &*self.identity;
        let register = Register::new(*name, instance.get(), *address, nonces, secret).isolated_by(
            self.isolation,
            nonces,
            secret,
        );
        match channel.send(&FromNode::Register(register)) {
            Ok(()) => self.state = UpstreamState::Registering { channel, since: now },
            Err(error) => self.lost(&describe(&error), now),
        }
    }

    fn await_registration(
        &mut self,
        mut channel: Channel,
        since: Instant,
        now: Instant,
        news: &mut Vec<News>,
    ) {
        match channel.try_receive() {
            Ok(None) if now < since + self.heartbeat.silence => {
                self.state = UpstreamState::Registering { channel, since };
            }
            Ok(None) => self.lost("no answer to the registration", now),
            // Its answer waits until its disk has the registration; that may take longer than a period.
            Ok(Some(Incoming::Message(ToNode::Heartbeat(_)))) => {
                self.await_registration(channel, since, now, news);
            }
            Ok(Some(Incoming::Message(ToNode::Registered(granted)))) => {
                (self.logged, self.backoff) = (None, BACKOFF.0);
                let ends = self.unacknowledged.values().copied().map(FromNode::Ended);
                let drain = self.draining.map(|deadline| draining(now, deadline));
                self.outgoing = drain.into_iter().chain(ends).collect();
                news.push(self.registered(&granted, now));
                self.state =
                    UpstreamState::Registered { channel, pulse: Pulse::new(self.heartbeat, now) };
            }
            Ok(Some(Incoming::Message(ToNode::Refused(refused)))) => self.refused(&refused, now),
            Ok(Some(other)) => {
                self.lost(&format!("unexpected before registration: {other:?}"), now)
            }
            Err(error) => self.lost(&describe(&error), now),
        }
    }

    fn converse(
        &mut self,
        mut channel: Channel,
        mut pulse: Pulse,
        now: Instant,
        news: &mut Vec<News>,
    ) {
        loop {
            match channel.try_receive() {
                Ok(None) => break,
                // The operator took the node back.
                Ok(Some(Incoming::Message(ToNode::Refused(refused)))) => {
                    return self.refused(&refused, now);
                }
                Ok(Some(incoming)) => {
                    pulse.heard(now);
                    let heartbeat = self.heartbeat;
                    if let Err(error) = self.take_in(incoming, now, news) {
                        return self.lost(&describe(&error), now);
                    }
                    if self.heartbeat != heartbeat {
                        pulse = Pulse::new(self.heartbeat, now);
                    }
                }
                Err(error) => return self.lost(&describe(&error), now),
            }
        }
        if pulse.beat(now) {
            self.outgoing.push_back(FromNode::Heartbeat(Clock::now()));
            news.push(News::UsedIsDue);
        }
        if pulse.silent(now).is_some() {
            return self.lost(&format!("silent for {:?}", self.heartbeat.silence), now);
        }
        if let Err(error) = send_waiting(&mut self.outgoing, &mut channel) {
            return self.lost(&describe(&error), now);
        }
        self.state = UpstreamState::Registered { channel, pulse };
    }

    fn take_in(
        &mut self,
        incoming: Incoming<ToNode>,
        now: Instant,
        news: &mut Vec<News>,
    ) -> Result<(), Malformed> {
        let Incoming::Message(message) = incoming else {
            return Err(Malformed::Field("write without a destination"));
        };
        match message {
            ToNode::Heartbeat(clock) => self.clock.set(now, SystemTime::now(), clock),
            ToNode::EndedAck(ack) => {
                self.unacknowledged.remove(&ack.lease.get());
            }
            ToNode::EndLease(end) => {
                let lease = LeaseId::new(end.lease.get()).ok_or(Malformed::Field("lease"))?;
                let reason = EndReason::from_wire(end.reason)?;
                let grace = Duration::from_millis(end.grace_ms.get().into());
                news.push(News::EndLease { lease, reason, grace });
            }
            // The operator changed what the node may lease out.
            ToNode::Registered(granted) => news.push(self.registered(&granted, now)),
            ToNode::Refused(_) => unreachable!("`converse` takes refusals"),
        }
        Ok(())
    }

    fn registered(&mut self, granted: &Registered, now: Instant) -> News {
        self.clock.set(now, SystemTime::now(), granted.clock);
        let (cores, memory) = (granted.cores.get(), granted.memory.get());
        let leaves_in = Some(granted.leaves_in_ms.get()).filter(|ms| *ms != STAYS);
        // One that is too far away to be an `Instant` is none.
        let leaves_at = leaves_in.and_then(|ms| now.checked_add(Duration::from_millis(ms)));
        self.heartbeat = Heartbeat::from_ms(granted.heartbeat_ms.get(), granted.silence_ms.get());
        let node = self.identity.name.get().unwrap_or_default();
        tracing::info!("registered as {node}: {cores} cores, {memory} MB");
        if let Some(warning) = self.identity.warning.as_deref().filter(|_| !self.warned) {
            tracing::warn!("{warning}");
            self.warned = true;
        }
        News::Registered { cores, memory, leaves_at }
    }

    fn refused(&mut self, refused: &RegisterRefused, now: Instant) {
        let reason = refused.reason.get().unwrap_or("no reason that can be read");
        let reason = reason.replace(char::is_control, " ");
        self.tell_operator(&format!("the resource manager refuses this node: {reason}"));
        self.retry(now);
    }

    fn not_reached(&mut self, error: DialError, now: Instant, news: &mut Vec<News>) {
        // An impostor of the resource manager does not end what waits for the real one.
        if self.reached || error.is_impostor() {
            self.lost(&describe(&error), now);
        } else {
            self.retry(now);
            news.push(News::NeverReached(error));
        }
    }

    fn lost(&mut self, why: &str, now: Instant) {
        self.tell_operator(&format!(
            "no connection to the resource manager: {why}; leases go on, trying again"
        ));
        self.retry(now);
    }

    /// Once for each failure, not at every attempt.
    fn tell_operator(&mut self, text: &str) {
        if self.logged.as_deref() != Some(text) {
            tracing::warn!("{text}");
            self.logged = Some(text.to_owned());
        }
    }

    fn retry(&mut self, now: Instant) {
        self.outgoing.clear();
        self.state = UpstreamState::Waiting { until: now + self.backoff };
        self.backoff = (2 * self.backoff).min(BACKOFF.1);
    }
}

/// The message that no lease is to be granted any more, sent at `now`.
fn draining(now: Instant, deadline: Instant) -> FromNode {
    let left = deadline.saturating_duration_since(now).as_millis();
    let grace_ms = u32::try_from(left).unwrap_or(u32::MAX).into();
    FromNode::Draining(Draining { grace_ms })
}

/// Sends what waits, in order, as far as there is room. The end of the connection is no error here:
/// it is told by receiving, after everything that arrived before it.
fn send_waiting(
    waiting: &mut VecDeque<FromNode>,
    channel: &mut Channel,
) -> Result<(), ChannelError> {
    while let Some(message) = waiting.front() {
        let sent = match message {
            FromNode::Heartbeat(_) => channel.send_unannounced(message), // it is looked for
            _ => channel.send(message),
        };
        match sent {
            Ok(()) => drop(waiting.pop_front()),
            Err(ChannelError::Busy | ChannelError::Disconnected) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
