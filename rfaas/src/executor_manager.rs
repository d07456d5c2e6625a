//! The client's connection to the executor manager that holds its lease: claims, gives back, and
//! notes what the manager tells in between.
//!
//! ```text
//!   connect ──request_executor──▶ running ──ExecutorExited──▶ not running ──request_executor──▶ …
//!                └──LeaseEnding with grace 0, silence, or the connection's end──▶ over
//! ```
//! PROVED - the peer proves that it is the lease's node before it is shown a claim. A claim is of use on this
//! connection only (`rfaas_protocol`, `proof`).
//!
//! From the first executor on both sides give signs of life. A thread that waits here gives them meanwhile; for an
//! application that does something else, the keepalive thread does.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::eventfd::EventFd;

use rfaas_config::OpenDevice;
use rfaas_protocol::allocation::{
    Allocate, ClaimHello, ExecutorExited, FromClient, LeaseEnding, NodeProof, OutputPart,
    OutputStream, ReadOutput, RefusedBecause, Renew, ToClient,
};
use rfaas_protocol::assignment::MEMORY_LIMIT;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::heartbeat::{Heartbeat, Pulse};
use rfaas_protocol::lease::{EndReason, LeaseId, Token};
use rfaas_protocol::node::Bill;
use rfaas_protocol::reach::reach;
use rfaas_protocol::{Clock, Empty, Malformed, Nonces, Proof, Role, parse_prefix};

use crate::cause::{Cause, Ending};
use crate::error::{Error, ExecutorMemory, Exit, Result};
use crate::printed::Printed;
use crate::request::{Candidate, ExecutorRequest};

const WHAT: &str = "the executor manager";

/// What a poll of a claimed lease comes to.
pub(crate) enum Polled {
    /// Nothing more is to be done for it.
    Over,
    /// Somebody else has it.
    Busy,
    /// To be polled again then, unless its connection has news before.
    Until(Instant),
}

/// The connection, and what is known from it.
#[derive(Debug)]
pub(crate) struct ExecutorManager {
    channel: Channel,
    node: String,
    /// What the lease is claimed with, each time.
    token: Token,
    /// Of this connection.
    nonces: Nonces,
    running: bool,
    /// Of the executor that ran last.
    exit: Option<Exit>,
    /// Why the executor did not start after all, if it did not.
    not_started: Option<String>,
    ending: Option<Ending>,
    /// Why no executor will run any more.
    over: Option<Cause>,
    /// Signs of life, from the first executor on.
    pulse: Option<Pulse>,
    /// Wakes the thread that tells the application of an end.
    bell: Option<Arc<EventFd>>,
}

/// A message that somebody waits for.
enum ManagerAnswer {
    Allocated(LeaseId),
    Refused { because: RefusedBecause, reason: String },
    Released(Bill),
    Renewed(SystemTime),
    Output(Box<OutputPart>),
}

impl ExecutorManager {
    /// Connects to the executor manager of `candidate`, within `timeout`, on a new `connection`.
    pub(crate) fn connect(
        device: &OpenDevice,
        candidate: &Candidate,
        timeout: Duration,
        connection: &dyn Fn() -> Result<Channel, ChannelError>,
    ) -> Result<Self> {
        let (from, addresses) = (device.device.ip_address(), &candidate.addresses);
        let (token, hello) = (&candidate.token, ClaimHello::new(&candidate.token));
        let reached = reach(from, addresses, timeout, |address, limit| {
            let mut channel = connection()?;
            let answer = channel.connect(address, Role::Allocation, &hello, limit)?;
            let proof = parse_prefix::<NodeProof>(answer.as_slice());
            let proof = proof.unwrap_or_else(|_| NodeProof::none()); // of an older release, if it is none
            // A manager that takes unsigned claims has no secret: there is nothing to prove, and nothing to steal.
            if token.terms.id().is_some() && !proof.verify(&hello, address, token.key()) {
                return Err(ChannelError::Unproved { address, peer: channel.peer() });
            }
            Ok((channel, proof))
        });
        let (channel, proof) = reached.map_err(|source| match source {
            ChannelError::Unproved { address, peer } => {
                let (node, peer) =
                    (candidate.node.clone(), peer.unwrap_or_else(|| "unknown".into()));
                Error::Unproved { node, address, peer }
            }
            source => Error::unreachable(WHAT, addresses, source),
        })?;
        Ok(ExecutorManager {
            nonces: proof.nonces(&hello),
            channel,
            node: candidate.node.clone(),
            token: candidate.token,
            running: false,
            exit: None,
            not_started: None,
            ending: None,
            over: None,
            pulse: None,
            bell: None,
        })
    }

    /// Asks for an executor as `request` says, and does something else `meanwhile`. Returns the number of the lease.
    pub(crate) fn request_executor(
        &mut self,
        request: &ExecutorRequest,
        deadline: Instant,
        meanwhile: &dyn Fn(),
    ) -> Result<LeaseId> {
        let claim = Allocate {
            signed: self.token.signed(),
            clock: Clock::now(),
            client: request.client.into(),
            session: request.session,
            hot_timeout_ms: request.spin.hot_timeout_ms().into(),
            input_bytes: request.input_bytes.into(),
            output_bytes: request.output_bytes.into(),
            code_bytes: request.code_bytes.into(),
            code_hash: request.code_hash,
            slots: request.slots.into(),
            serves: request.serves.to_wire(),
            proof: Proof::NONE,
        };
        let claim = claim.proved(self.token.key(), &self.nonces);
        self.send(&FromClient::Allocate(claim))?;
        meanwhile();
        loop {
            match self.answer(deadline)? {
                ManagerAnswer::Allocated(lease) => {
                    self.running = true;
                    self.exit = None;
                    self.not_started = None;
                    return Ok(lease);
                }
                ManagerAnswer::Refused { because, reason } => {
                    let node = self.node.clone();
                    return Err(Error::AllocationRefused { node, because, reason });
                }
                ManagerAnswer::Released(_)
                | ManagerAnswer::Renewed(_)
                | ManagerAnswer::Output(_) => {}
            }
        }
    }

    /// Shows `token`, which names a later end of the lease; returns that end as the manager has it.
    pub(crate) fn renew(&mut self, token: Token, deadline: Instant) -> Result<SystemTime> {
        let (signed, clock) = (token.signed(), Clock::now());
        self.send(&FromClient::Renew(Renew { signed, clock }))?;
        loop {
            match self.answer(deadline)? {
                ManagerAnswer::Renewed(end) => {
                    self.token = token;
                    return Ok(end);
                }
                ManagerAnswer::Refused { because: RefusedBecause::LeaseEnded, .. } => {
                    let reason = self.ending.map_or(EndReason::Expired, |ending| ending.reason);
                    return Err(Error::LeaseEnded { reason });
                }
                ManagerAnswer::Refused { reason, .. } => {
                    return Err(Error::LeaseRefused { reason });
                }
                ManagerAnswer::Allocated(_)
                | ManagerAnswer::Released(_)
                | ManagerAnswer::Output(_) => {}
            }
        }
    }

    /// Reads what executors and functions of the lease have written so far, within `timeout`. Also when the lease is
    /// over, as long as the connection is there.
    pub(crate) fn read_printed(&mut self, timeout: Duration) -> Result<Printed> {
        let (start, mut printed) = (Instant::now(), Printed::default());
        let mut end = None; // what is written meanwhile is of the next time
        loop {
            let from = printed.end();
            self.poll();
            let sent = self.channel.send(&FromClient::ReadOutput(ReadOutput { from: from.into() }));
            sent.map_err(|source| self.why_not(source))?;
            let part = self.output_part(from, start, timeout)?;
            let stream = OutputStream::from_wire(part.stream)?;
            printed.add(part.at.get(), stream, part.bytes()?)?;
            if printed.end() >= *end.get_or_insert(part.end.get()) || part.bytes()?.is_empty() {
                return Ok(printed);
            }
        }
    }

    /// Returns the part of the output that was asked for, `timeout` after `start` at the latest.
    fn output_part(
        &mut self,
        from: u64,
        start: Instant,
        timeout: Duration,
    ) -> Result<Box<OutputPart>> {
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match self.next(left) {
                _ if left.is_zero() => return Err(Error::NoAnswer { what: WHAT, after: timeout }),
                Some(ManagerAnswer::Output(part)) if part.from.get() == from => return Ok(part),
                Some(ManagerAnswer::Refused { .. }) => return Err(Error::ExecutorGone),
                _ if !self.channel.is_connected() => {
                    return Err(self.why_not(ChannelError::Disconnected));
                }
                _ => {} // nothing yet, or what an earlier question was answered late
            }
        }
    }

    /// Returns why the manager cannot be asked any more: the end of the lease, or else `source`.
    fn why_not(&self, source: ChannelError) -> Error {
        self.over.map_or(Error::Connection { what: WHAT, source }, Error::from)
    }

    /// Returns what the lease is claimed with.
    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// Has `bell` rung when an end of the lease is learned of.
    pub(crate) fn ring_on_news(&mut self, bell: Arc<EventFd>) {
        self.bell = Some(bell);
    }

    /// Polls, and has the descriptor tell of more.
    pub(crate) fn poll_armed(&mut self) -> Polled {
        let armed = self.channel.acknowledge().and_then(|()| {
            self.poll();
            self.channel.arm_for_announced()
        });
        if let Err(error) = armed {
            self.note(Err(error));
        }
        self.poll(); // again: what came before it was armed rings no bell
        match (&self.pulse, self.over) {
            (Some(pulse), None) => Polled::Until(pulse.deadline()),
            _ => Polled::Over,
        }
    }

    /// Returns the name of its node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Gives the lease back, and does something else `meanwhile`; returns its bill.
    pub(crate) fn release(&mut self, timeout: Duration, meanwhile: &dyn Fn()) -> Result<Bill> {
        let deadline = Instant::now() + timeout;
        self.send(&FromClient::Release(Empty {}))?;
        meanwhile();
        loop {
            if let ManagerAnswer::Released(bill) = self.answer(deadline)? {
                return Ok(bill);
            }
        }
    }

    /// Gives the lease back as far as that is possible without waiting.
    pub(crate) fn release_without_bill(&mut self) {
        if let Err(error) = self.channel.send(&FromClient::Release(Empty {})) {
            // The end of the connection, which follows, says the same.
            tracing::debug!(%error, node = self.node, "lease not given back in words");
        }
    }

    /// Waits until no executor runs, by `deadline`; false if one still does.
    pub(crate) fn wait_for_exit(&mut self, deadline: Instant) -> Result<bool> {
        while self.running {
            if let Some(cause) = self.over {
                return Err(cause.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.next(left);
        }
        Ok(true)
    }

    /// Notes what arrived, and gives a sign of life if one is due. Never waits.
    pub(crate) fn poll(&mut self) {
        while self.over.is_none() {
            match self.channel.try_receive() {
                Ok(None) => break,
                Ok(Some(incoming)) => drop(self.note(Ok(incoming))), // nobody waits for an answer
                Err(error) => drop(self.note(Err(error))),
            }
        }
        self.beat();
    }

    /// Gives a sign of life if one is due, and gives the manager up if it gave none for too long.
    fn beat(&mut self) {
        let Some(pulse) = self.pulse.as_mut().filter(|_| self.over.is_none()) else { return };
        let now = Instant::now();
        if pulse.beat(now)
            && let Err(error) = self.channel.send_unannounced(&FromClient::Heartbeat(Empty {}))
        {
            tracing::debug!(%error, node = self.node, "no sign of life sent"); // the end will be told
        }
        if let Some(silence) = pulse.silent(now) {
            tracing::warn!(node = self.node, ?silence, "the executor manager is silent: given up");
            self.channel.disconnect();
            self.end(Cause::Gone);
        }
    }

    /// Notes that it is over, for the first cause that is known.
    fn end(&mut self, cause: Cause) {
        let reason = match *self.over.get_or_insert(cause) {
            Cause::LeaseEnded(reason) => reason,
            _ => EndReason::NodeLost,
        };
        self.ending.get_or_insert(Ending { reason, at: Instant::now() });
        self.bell.iter().for_each(|bell| ring(bell));
    }

    /// Returns how the executor ended, if it did.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Returns why the executor did not start after all, if it did not.
    pub(crate) fn not_started(&self) -> Option<Error> {
        let (because, node) = (RefusedBecause::SpawnFailed, self.node.clone());
        let reason = self.not_started.clone()?;
        Some(Error::AllocationRefused { node, because, reason })
    }

    /// Returns why there is no executor any more, as far as it was noted.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match (self.over, self.exit) {
            // A lease that ends takes its executor along: that is the cause, not the exit.
            (Some(Cause::LeaseEnded(reason)), _) => Some(Cause::LeaseEnded(reason)),
            (_, Some(exit)) => Some(Cause::Exited(exit)),
            (over, None) => over,
        }
    }

    /// Returns why the lease is over, if it is.
    pub(crate) fn over(&self) -> Option<Cause> {
        self.over
    }

    /// Returns the end of the lease, once it is announced or has come.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    fn send(&mut self, message: &FromClient) -> Result<()> {
        self.poll();
        if let Some(cause) = self.over {
            return Err(cause.into());
        }
        self.channel.send(message).map_err(|source| Error::Connection { what: WHAT, source })
    }

    /// Returns the next answer, by `deadline`.
    fn answer(&mut self, deadline: Instant) -> Result<ManagerAnswer> {
        let start = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(answer) = self.next(left) {
                return Ok(answer);
            }
            if let Some(cause) = self.over {
                return Err(cause.into());
            }
            if left.is_zero() {
                return Err(Error::NoAnswer { what: WHAT, after: start.elapsed() });
            }
        }
    }

    /// Notes what arrives next within `timeout`; an answer is returned.
    fn next(&mut self, timeout: Duration) -> Option<ManagerAnswer> {
        let beat = self.pulse.as_ref().map(|pulse| {
            pulse.deadline().saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
        });
        let answer = match self.channel.receive(beat.map_or(timeout, |beat| beat.min(timeout))) {
            Err(ChannelError::TimedOut { .. }) => None,
            received => self.note(received),
        };
        self.beat();
        answer
    }

    fn note(
        &mut self,
        received: Result<Incoming<ToClient>, ChannelError>,
    ) -> Option<ManagerAnswer> {
        if let (Ok(_), Some(pulse)) = (&received, &mut self.pulse) {
            pulse.heard(Instant::now());
        }
        let noted = match received {
            Ok(Incoming::Message(message)) => self.read(message),
            Ok(Incoming::Written { .. }) => Err(Malformed::Field("message kind")),
            Err(ChannelError::Malformed(malformed)) => Err(malformed),
            Err(error) => {
                tracing::debug!(%error, node = self.node, "executor manager's connection ended");
                let announced = self.ending.map(|ending| Cause::LeaseEnded(ending.reason));
                self.end(announced.unwrap_or(Cause::Gone));
                return None;
            }
        };
        noted.unwrap_or_else(|malformed| {
            tracing::warn!(%malformed, node = self.node, "executor manager broke the protocol");
            self.channel.disconnect();
            self.end(Cause::Gone);
            None
        })
    }

    fn read(&mut self, message: ToClient) -> Result<Option<ManagerAnswer>, Malformed> {
        Ok(Some(match message {
            ToClient::Allocated(allocated) => {
                let (period, silence) = (allocated.heartbeat_ms.get(), allocated.silence_ms.get());
                let heartbeat = Heartbeat::from_ms(period, silence);
                self.pulse.get_or_insert(Pulse::new(heartbeat, Instant::now()));
                let lease = LeaseId::new(allocated.lease.get());
                ManagerAnswer::Allocated(lease.ok_or(Malformed::Field("lease"))?)
            }
            ToClient::Refused(refused) => {
                let because = RefusedBecause::from_wire(refused.because)?;
                let reason = refused.reason.get()?.to_owned();
                // Of an executor that it began to start: what else is asked meanwhile is refused for other reasons.
                if self.running && because == RefusedBecause::SpawnFailed {
                    self.running = false;
                    self.not_started = Some(reason);
                    return Ok(None);
                }
                ManagerAnswer::Refused { because, reason }
            }
            ToClient::Released(released) => ManagerAnswer::Released(released.bill),
            ToClient::Renewed(renewed) => {
                let end = Duration::from_millis(renewed.expires_at_ms.get());
                ManagerAnswer::Renewed(UNIX_EPOCH.checked_add(end).ok_or(Malformed::Field("end"))?)
            }
            ToClient::OutputPart(part) => ManagerAnswer::Output(Box::new(part)),
            ToClient::Heartbeat(_) => return Ok(None),
            ToClient::ExecutorExited(exited) => {
                let ExecutorExited { signal, status, silent, .. } = exited;
                self.running = false;
                self.exit = Some(match (silent.get(), signal.get()) {
                    (1.., _) => Exit::Silent,
                    (0, MEMORY_LIMIT) => {
                        let leased_mb = self.token.terms.memory.get();
                        Exit::MemoryRefused { leased_mb, memory: memory_of(&exited) }
                    }
                    (0, 0) => Exit::Status(status.get()),
                    (0, signal) => Exit::Signal(signal),
                });
                return Ok(None);
            }
            ToClient::LeaseEnding(LeaseEnding { reason, grace_ms }) => {
                let reason = EndReason::from_wire(reason)?;
                let grace = Duration::from_millis(grace_ms.get().into());
                self.ending = Some(Ending { reason, at: Instant::now() + grace });
                self.bell.iter().for_each(|bell| ring(bell));
                if grace.is_zero() {
                    self.end(Cause::LeaseEnded(reason));
                }
                return Ok(None);
            }
        }))
    }
}

/// Returns what the processes of an executor had of memory, if the node says so.
fn memory_of(exited: &ExecutorExited) -> Option<ExecutorMemory> {
    let (limit, used) = (exited.memory_limit.get(), exited.memory_used.get());
    (limit > 0).then_some(ExecutorMemory { limit_mb: limit >> 20, used_mb: used >> 20 })
}

/// Wakes the thread that sleeps on `bell`.
pub(crate) fn ring(bell: &EventFd) {
    let _ = bell.write(1); // fails only if it has been ringing 2^64 times already
}

/// Readable when a connection that was [polled](ExecutorManager::poll_armed) has news.
impl AsFd for ExecutorManager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
