//! The client's connection to the resource manager: asks for leases and for more time, gives back leases
//! that were not used.
//!
//! * If the connection ends while a question is asked, the manager may be being
//!   started again. The client waits for it for a while, and asks once more on a new connection.
//!   That is safe: a lease that was granted on a connection which ends, and that nobody claimed,
//!   ends with it, and a renewal may be repeated.
//! * Tokens are shown without their keys: a process that listens at the resource manager's address cannot claim a lease
//!   with what it is sent.
//! * Numbers in an answer are checked. What was granted with impossible ones is given back.
//!
//! One question at a time: the thread that asks holds the connection until the answer is there. A request that may wait
//! for room holds it only to look for its answer, and whoever else takes the answer keeps it for it. What is said
//! meanwhile and not answered, as that a lease is dropped, waits in the outbox; the thread that lets go of the
//! connection sends what is in there, and so does the next question, before itself. What the manager has no room for
//! yet is sent later, by a thread that is there until all of it is sent, or the client has gone.

use std::collections::HashMap;
use std::mem;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rfaas_config::OpenDevice;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::constraints::Constraint;
use rfaas_protocol::lease::{
    self, ClientName, FromClient, GangRequest, GraphWorker, GrowRequest, LeaseGranted, LeaseId,
    LeaseRelease, LeaseRenew, LeaseReplace, ToClient, Token, Unusable,
};
use rfaas_protocol::reach::reach;
use rfaas_protocol::{Empty, Malformed, Role};

use crate::error::{Error, Result};
use crate::granted::{candidate, check, check_gang, check_grown};
use crate::request::Candidate;
use crate::request::LeaseRequest;

const WHAT: &str = "the resource manager";
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a manager that was there is tried to be reached again: one that is started again reads its
/// state within a second.
const RETURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pauses between tries, doubling.
const RETURN_PAUSES: RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_millis(200);
/// Pauses between two looks for the answer to a request that waits, doubling.
const WAIT_PAUSES: RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(5);
/// Longest wait for an answer; a manager decides in microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between tries to send to a manager that takes no messages just now.
const SEND_PAUSE: Duration = Duration::from_micros(50);
/// How long such a manager is waited for once before what is not answered is left for later: a pass of its loop, with
/// a commit to a disk.
const SEND_PATIENCE: Duration = Duration::from_millis(20);

/// Pauses between tries of the thread that sends what is left, doubling.
const REST_PAUSES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(100);

/// The connection.
pub(crate) struct ResourceManager {
    /// All addresses of its name, at least one.
    addresses: Vec<SocketAddr>,
    conversation: Mutex<Conversation>,
    /// What is said and not answered: leases to give back, and what leases are for.
    outbox: Mutex<Vec<FromClient>>,
}

struct Conversation {
    channel: Channel,
    /// Which connection it is, of those that there were.
    connection: u32,
    /// Number of the last question.
    request: u32,
    /// Questions of this connection whose answers may come late, and what came.
    late: HashMap<u32, LateAnswer>,
    /// What is said and not answered, and was not sent yet. No more than was granted.
    unsent: Vec<FromClient>,
    /// The manager was waited for in vain, and has taken nothing since.
    stuck: bool,
    /// There is a thread that sends what is left.
    sends_rest: bool,
}

/// A request for several leases.
struct GangQuestion<'a> {
    gang: GangRequest,
    /// Leases that it grows.
    grows: &'a [LeaseId],
}

impl GangQuestion<'_> {
    /// The question of this number, which may wait for so many milliseconds.
    fn ask(&self, number: u32, wait_ms: u64) -> FromClient {
        let gang = self.gang.with(number, wait_ms);
        match self.grows.is_empty() {
            true => FromClient::Gang(gang),
            false => FromClient::Grow(GrowRequest::new(&gang, self.grows)),
        }
    }
}

/// A request that waits, and where it was asked last: a number on a connection.
struct Late<'a> {
    question: GangQuestion<'a>,
    end: Instant,
    posted: Option<(u32, u32)>,
}

/// What came of an answer. Complete it is a result.
struct LateAnswer {
    most: u32,
    parts: Vec<LeaseGranted>,
    complete: Option<Result<()>>,
}

impl ResourceManager {
    pub(crate) fn connect(device: &OpenDevice, addresses: Vec<SocketAddr>) -> Result<Self> {
        let channel = open(device, &addresses)?;
        let conversation = Conversation {
            channel,
            connection: 0,
            request: 0,
            late: HashMap::new(),
            unsent: Vec::new(),
            stuck: false,
            sends_rest: false,
        };
        let (conversation, outbox) = (Mutex::new(conversation), Mutex::default());
        Ok(ResourceManager { addresses, conversation, outbox })
    }

    /// Returns the addresses of the resource manager.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Asks for leases that meet `request` together: one for each node, in order. Does something else `meanwhile`.
    pub(crate) fn lease(
        self: &Arc<Self>,
        device: &OpenDevice,
        request: &LeaseRequest,
        client: ClientName,
        meanwhile: &dyn Fn(),
    ) -> Result<Vec<Candidate>> {
        let granted = self.ask(device, request.max_nodes, meanwhile, |number| {
            FromClient::Request(lease::LeaseRequest {
                request: number.into(),
                cores: request.cores.into(),
                memory: request.memory.into(),
                timeout_ms: wire_ms(request.timeout).into(),
                max_nodes: request.max_nodes.into(),
                client,
            })
        })?;
        check(&granted, request)
            .inspect_err(|_| granted.iter().for_each(|part| self.give_back(part.token)))?;
        granted.iter().map(candidate).collect()
    }

    /// Asks for `leases` leases of what `request` asks for, all or none; waits as long as it says. If it `grows` some,
    /// for as many workers, and a lease for each node.
    pub(crate) fn lease_gang(
        self: &Arc<Self>,
        device: &OpenDevice,
        (leases, request): (u32, &LeaseRequest),
        grows: &[LeaseId],
        client: ClientName,
        meanwhile: &dyn Fn(),
    ) -> Result<Vec<Candidate>> {
        let each = (request.cores, request.memory);
        let mut gang = GangRequest::new(0.into(), leases, each, wire_ms(request.timeout));
        gang.wanted.client = client;
        request.constraints.write_to(&mut gang).map_err(Error::InvalidConstraint)?;
        let question = GangQuestion { gang, grows };
        let granted = match request.wait.is_zero() {
            true => self.ask(device, leases, meanwhile, |number| question.ask(number, 0))?,
            false => {
                let granted = self.wait(device, (question, request.wait), meanwhile);
                self.flush();
                granted?
            }
        };
        let checked = match grows.is_empty() {
            true => check_gang(&granted, leases, request),
            false => check_grown(&granted, leases, request),
        };
        checked.inspect_err(|_| granted.iter().for_each(|part| self.give_back(part.token)))?;
        granted.iter().map(candidate).collect()
    }

    /// Asks `question`, and waits for the answer for as long. Others ask for theirs meanwhile: the connection is held
    /// only while it is looked at. After a lost connection the rest of the time is asked for, behind those who wait
    /// then.
    fn wait(
        self: &Arc<Self>,
        device: &OpenDevice,
        (question, wait): (GangQuestion<'_>, Duration),
        meanwhile: &dyn Fn(),
    ) -> Result<Vec<LeaseGranted>> {
        let mut late = Late { question, end: Instant::now() + wait, posted: None };
        let mut pause = *WAIT_PAUSES.start();
        loop {
            let mut conversation = self.lock();
            match conversation.look_for(&mut late) {
                Ok(Some(parts)) => return Ok(parts),
                Ok(None) => {}
                Err(Error::Connection { .. }) => conversation.reconnect(self.reach_again(device)?),
                Err(error) => return Err(error),
            }
            if Instant::now() > late.end + ANSWER_TIMEOUT {
                conversation.forget(&late);
                return Err(Error::NoAnswer { what: WHAT, after: wait + ANSWER_TIMEOUT });
            }
            drop(conversation);
            if pause == *WAIT_PAUSES.start() {
                meanwhile();
            }
            self.flush();
            thread::sleep(pause);
            pause = (2 * pause).min(*WAIT_PAUSES.end());
        }
    }

    /// Asks for more time; returns the new token.
    pub(crate) fn renew(
        self: &Arc<Self>,
        device: &OpenDevice,
        token: Token,
        timeout: Duration,
    ) -> Result<Token> {
        let granted = self.ask(device, 1, &|| (), |number| {
            let timeout_ms = wire_ms(timeout).into();
            let token = token.without_key();
            FromClient::Renew(LeaseRenew { request: number.into(), timeout_ms, token })
        })?;
        let renewed = granted.first().map(|granted| granted.token);
        renewed
            .filter(|renewed| renewed.terms.same_lease(&token.terms))
            .map(|renewed| renewed.with_key_of(&token))
            .ok_or(Malformed::Field("lease").into())
    }

    /// Asks for a lease like that of `token`, which could not be used, on another node. After an error that is as
    /// before.
    pub(crate) fn replace(
        self: &Arc<Self>,
        device: &OpenDevice,
        token: Token,
        because: Unusable,
    ) -> Result<Candidate> {
        let granted = self.ask(device, 1, &|| (), |number| {
            let token = token.without_key();
            let because = because.to_wire();
            FromClient::Replace(LeaseReplace { request: number.into(), token, because })
        })?;
        let replaced = granted.first().ok_or(Malformed::Field("part of an answer"))?;
        let (old, new) = (&token.terms, &replaced.token.terms);
        let alike = (new.cores, new.memory) == (old.cores, old.memory) && new.id().is_some();
        if !alike {
            self.give_back(replaced.token);
            return Err(Malformed::Field("terms of another lease").into());
        }
        candidate(replaced)
    }

    /// Asks `question`, once more after a lost connection, given its number; at most `most` leases answer it.
    fn ask(
        self: &Arc<Self>,
        device: &OpenDevice,
        most: u32,
        meanwhile: &dyn Fn(),
        question: impl Fn(u32) -> FromClient,
    ) -> Result<Vec<LeaseGranted>> {
        let mut conversation = self.lock();
        let mut answer = conversation.ask(most, meanwhile, &question);
        if let Err(Error::Connection { .. }) = answer {
            conversation.reconnect(self.reach_again(device)?);
            answer = conversation.ask(most, meanwhile, &question);
        }
        drop(conversation);
        self.flush();
        answer
    }

    /// Makes a new connection, after one that was lost, by [`RETURN_TIMEOUT`].
    fn reach_again(&self, device: &OpenDevice) -> Result<Channel> {
        let start = Instant::now();
        let mut pause = *RETURN_PAUSES.start();
        loop {
            match open(device, &self.addresses) {
                Err(error @ Error::Unreachable { .. }) => {
                    if start.elapsed() + pause > RETURN_TIMEOUT {
                        return Err(error);
                    }
                    tracing::debug!(%error, "the resource manager is tried again");
                }
                opened => return opened,
            }
            thread::sleep(pause);
            pause = (2 * pause).min(*RETURN_PAUSES.end());
        }
    }

    /// Gives back a lease that was not claimed. Does not wait for longer than [`SEND_PATIENCE`].
    pub(crate) fn give_back(self: &Arc<Self>, token: Token) {
        self.post(FromClient::Release(LeaseRelease { token: token.without_key() }));
    }

    /// Says what a lease is for, that was just granted. Does not wait for longer than [`SEND_PATIENCE`].
    pub(crate) fn note(self: &Arc<Self>, worker: GraphWorker) {
        self.post(FromClient::Worker(worker));
    }

    /// Sends what is not answered.
    fn post(self: &Arc<Self>, message: FromClient) {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.flush();
    }

    /// Sends what is in the outbox, unless the thread that has the connection does so afterwards. What the manager does
    /// not take is left to a thread.
    fn flush(self: &Arc<Self>) {
        loop {
            let mut conversation = match self.conversation.try_lock() {
                Ok(conversation) => conversation,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            conversation.take_from(&self.outbox);
            if conversation.unsent.is_empty() {
                return;
            }
            let patience = if conversation.stuck { Duration::ZERO } else { SEND_PATIENCE };
            let all = conversation.send_unsent(patience);
            conversation.stuck = !all;
            if !all {
                self.leave_rest(&mut conversation);
                return;
            }
            // Once more: one that came since found the connection taken and left it to us.
        }
    }

    /// Has a thread send what is left, unless there is one.
    fn leave_rest(self: &Arc<Self>, conversation: &mut Conversation) {
        if mem::replace(&mut conversation.sends_rest, true) {
            return;
        }
        let manager = Arc::downgrade(self);
        let thread = thread::Builder::new().name("rfaas-outbox".into());
        if let Err(error) = thread.spawn(move || send_rest(&manager)) {
            conversation.sends_rest = false; // it goes with what is said next
            tracing::error!(%error, "no thread sends what the resource manager has no room for yet");
        }
    }

    /// Holds the connection, with all that is to be said on it before what is asked next.
    fn lock(&self) -> MutexGuard<'_, Conversation> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        conversation.take_from(&self.outbox);
        conversation
    }
}

impl Conversation {
    fn ask(
        &mut self,
        most: u32,
        meanwhile: &dyn Fn(),
        question: impl Fn(u32) -> FromClient,
    ) -> Result<Vec<LeaseGranted>> {
        self.request = self.request.wrapping_add(1);
        let question = question(self.request);
        let mut parts: Vec<LeaseGranted> = Vec::new();
        let answer = self.send_behind_unsent(&question);
        let answer = answer.and_then(|()| {
            meanwhile();
            self.take_answer(most, &mut parts)
        });
        let grants = matches!(
            question,
            FromClient::Request(_)
                | FromClient::Gang(_)
                | FromClient::Grow(_)
                | FromClient::Replace(_)
        );
        if answer.is_err() && grants {
            parts.drain(..).for_each(|part| self.give_back(part.token));
        }
        answer.map(|()| parts)
    }

    /// Takes grants into `parts` until there are as many as they say there are.
    fn take_answer(&mut self, most: u32, parts: &mut Vec<LeaseGranted>) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = ANSWER_TIMEOUT.saturating_sub(start.elapsed());
            let message = match self.channel.receive(left) {
                Ok(Incoming::Message(message)) => message,
                Ok(Incoming::Written { .. }) => return Err(Malformed::Field("message kind").into()),
                Err(ChannelError::TimedOut { .. }) => {
                    return Err(Error::NoAnswer { what: WHAT, after: ANSWER_TIMEOUT });
                }
                Err(source) => return Err(failed(source)),
            };
            if number_of(&message) != self.request {
                self.take_late(message);
            } else if add(message, most, parts)? {
                return Ok(());
            }
        }
    }

    /// Sends a question behind what was said before it. Waits for room at the manager as long as for an answer.
    fn send_behind_unsent(&mut self, question: &FromClient) -> Result<()> {
        let start = Instant::now();
        let left = || ANSWER_TIMEOUT.saturating_sub(start.elapsed());
        loop {
            let sent = match self.send_unsent(left()) {
                true => self.channel.send(question),
                false => Err(ChannelError::Busy),
            };
            match sent {
                Err(ChannelError::Busy) if left().is_zero() => {
                    return Err(Error::NoAnswer { what: WHAT, after: ANSWER_TIMEOUT });
                }
                Err(ChannelError::Busy) => thread::sleep(SEND_PAUSE),
                sent => return sent.map_err(failed),
            }
        }
    }

    /// Goes on with a new connection.
    fn reconnect(&mut self, channel: Channel) {
        self.channel = channel;
        self.unsent.clear(); // it was of leases of the other, which say nothing here
        self.stuck = false;
        self.connection = self.connection.wrapping_add(1);
        self.late.clear(); // they are asked again
    }

    /// Asks what was not asked on this connection, and looks for the answer.
    fn look_for(&mut self, late: &mut Late<'_>) -> Result<Option<Vec<LeaseGranted>>> {
        let number = match late.posted {
            Some((number, connection)) if connection == self.connection => number,
            _ => {
                let number = self.request.wrapping_add(1);
                let left = late.end.saturating_duration_since(Instant::now());
                if !self.send_unsent(Duration::ZERO) {
                    return Ok(None); // it is asked when there is room for it
                }
                match self.channel.send(&late.question.ask(number, wire_ms(left))) {
                    Err(ChannelError::Busy) => return Ok(None),
                    sent => sent.map_err(failed)?,
                }
                self.request = number;
                let most = late.question.gang.wanted.leases.get();
                let (parts, complete) = (Vec::new(), None);
                self.late.insert(number, LateAnswer { most, parts, complete });
                late.posted = Some((number, self.connection));
                number
            }
        };
        while let Some(incoming) = self.channel.try_receive().map_err(failed)? {
            match incoming {
                Incoming::Message(message) => self.take_late(message),
                Incoming::Written { .. } => return Err(Malformed::Field("message kind").into()),
            }
        }
        let complete = |answer: &mut LateAnswer| answer.complete.take();
        let Some(complete) = self.late.get_mut(&number).and_then(complete) else { return Ok(None) };
        let parts = self.late.remove(&number).map(|answer| answer.parts).unwrap_or_default();
        match complete {
            Ok(()) => Ok(Some(parts)),
            Err(error) => {
                parts.iter().for_each(|part| self.give_back(part.token));
                Err(error)
            }
        }
    }

    /// Takes no answer to it any more.
    fn forget(&mut self, late: &Late<'_>) {
        let Some((number, _)) = late.posted else { return };
        let answer = self.late.remove(&number);
        let parts = answer.into_iter().flat_map(|answer| answer.parts);
        parts.for_each(|part| self.give_back(part.token));
    }

    /// Takes an answer to another question than the last. If nobody waits for it, the question was given up.
    fn take_late(&mut self, message: ToClient) {
        let number = number_of(&message);
        match (self.late.get_mut(&number), message) {
            (Some(LateAnswer { most, parts, complete: complete @ None }), message) => {
                *complete = match add(message, *most, parts) {
                    Ok(false) => None,
                    Ok(true) => Some(Ok(())),
                    Err(error) => Some(Err(error)),
                };
            }
            (_, ToClient::Granted(granted)) => self.give_back(granted.token),
            (_, ToClient::Refused(_) | ToClient::Unmet(_)) => {}
        }
    }

    /// Has a lease given back with what is sent next.
    fn give_back(&mut self, token: Token) {
        self.unsent.push(FromClient::Release(LeaseRelease { token: token.without_key() }));
    }

    /// Takes over what is in `outbox`.
    fn take_from(&mut self, outbox: &Mutex<Vec<FromClient>>) {
        self.unsent.append(&mut outbox.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sends what is not answered, leases that are given back first. Returns whether there was room for all of it
    /// within `patience`. What cannot be sent at all is gone with the connection.
    fn send_unsent(&mut self, patience: Duration) -> bool {
        self.unsent.sort_by_key(|message| !matches!(message, FromClient::Release(_)));
        let (start, mut sent) = (Instant::now(), 0);
        while let Some(message) = self.unsent.get(sent) {
            match self.channel.send(message) {
                Err(ChannelError::Busy) if start.elapsed() >= patience => break,
                Err(ChannelError::Busy) => thread::sleep(SEND_PAUSE),
                result => {
                    log_sent(message, result);
                    sent += 1;
                }
            }
        }
        self.unsent.drain(..sent);
        self.unsent.is_empty()
    }
}

/// Sends what is left as there is room for it.
fn send_rest(manager: &Weak<ResourceManager>) {
    let mut pause = *REST_PAUSES.start();
    loop {
        thread::sleep(pause);
        pause = (2 * pause).min(*REST_PAUSES.end());
        let Some(manager) = manager.upgrade() else { return };
        let mut conversation = manager.lock();
        if conversation.send_unsent(Duration::ZERO) {
            (conversation.stuck, conversation.sends_rest) = (false, false);
            drop(conversation);
            manager.flush(); // one that came since found the connection taken
            return;
        }
    }
}

fn log_sent(message: &FromClient, sent: std::result::Result<(), ChannelError>) {
    match (message, sent) {
        (FromClient::Release(LeaseRelease { token }), sent) => {
            let lease = token.terms.lease.get();
            match sent {
                Ok(()) => tracing::debug!(lease, "lease given back"),
                // An unclaimed lease ends with the connection, and at the latest when its time is over.
                Err(error) => tracing::debug!(%error, lease, "lease not given back"),
            }
        }
        (_, Ok(())) => {}
        (_, Err(error)) => {
            tracing::debug!(%error, "the resource manager was not told what a lease is for")
        }
    }
}

/// The question that a message answers.
fn number_of(message: &ToClient) -> u32 {
    match message {
        ToClient::Granted(granted) => granted.request.get(),
        ToClient::Refused(refused) => refused.request.get(),
        ToClient::Unmet(unmet) => unmet.request.get(),
    }
}

/// Adds a part of an answer, which has `most` parts at most. Returns whether it is complete.
fn add(message: ToClient, most: u32, parts: &mut Vec<LeaseGranted>) -> Result<bool> {
    match message {
        ToClient::Granted(granted) => {
            let (part, count) = (granted.part.get(), granted.parts.get());
            let expected = usize::from(part) == parts.len()
                && part < count
                && u32::from(count) <= most
                && parts.first().is_none_or(|first| first.parts == granted.parts);
            parts.push(granted);
            match expected {
                true => Ok(parts.len() == usize::from(count)),
                false => Err(Malformed::Field("part of an answer").into()),
            }
        }
        ToClient::Refused(refused) => {
            Err(Error::LeaseRefused { reason: refused.reason.get()?.to_owned() })
        }
        ToClient::Unmet(unmet) => Err(Error::ConstraintUnmet {
            constraints: Constraint::from_wire(unmet.constraints)?,
            reason: unmet.reason.get()?.to_owned(),
        }),
    }
}

fn failed(source: ChannelError) -> Error {
    Error::Connection { what: WHAT, source }
}

fn wire_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn open(device: &OpenDevice, addresses: &[SocketAddr]) -> Result<Channel> {
    let from = device.device.ip_address();
    let reached = reach(from, addresses, CONNECT_TIMEOUT, |address, limit| {
        let mut channel = Channel::new(&device.device, device.entry.default_receive_buffer_size)?;
        channel.expect_listener(device.trusted_user);
        channel.connect(address, Role::Lease, &Empty {}, limit)?;
        Ok(channel)
    });
    reached.map_err(|source| Error::unreachable(WHAT, addresses, source))
}
