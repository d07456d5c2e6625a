//! Connections of clients: they ask for leases, give them back, and exchange what they cannot use.
//! An unclaimed lease ends soon after the connection that it was granted on; claimed leases do not depend on it.
//!
//! Clients are not known to the cluster, so their connections are bounded.
//! * BOUNDED - there are so many connections in all, and so many of one peer (a user or an address). When there
//!   is no room, a connection of the peer that has most makes room for one that comes: the one that has been
//!   silent longest, unless it waits for the claim of a lease. It has a last turn, and stays if it is granted
//!   something then. Our clients connect again when they ask.
//! * A request that would fit if less were leased is set aside. When nodes were heard, which is done once a pass
//!   for all of these requests, it is answered, or waits for room if it may. A request that never fits is refused at
//!   once. What waits is cancelled when its connection ends.
//! * The key of a lease goes out once, with its grant. A renewal is answered without it. A lease is exchanged or
//!   given back only on the connection that it was granted on, where it is known until it has ended. A token is
//!   shown here without its key and so proves nothing: nobody ends another's lease by showing it elsewhere.
//! * What a client says of its leases, which graph they are for, counts once for each, on the connection that it was
//!   granted on: so it is shown nothing of another's doing, and costs what a lease costs.
//! * DURABLE FIRST - an answer waits until the loop has committed what it tells of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rdmalib::{ConnectRequest, Device, Peer, WaitingList};
use rfaas_program::poll_loop::Idle;
use rfaas_protocol::channel::{Channel, ChannelError};
use rfaas_protocol::constraints::{Constraint, Constraints, MAX_GANG, MAX_WAIT_MS};
use rfaas_protocol::lease::{
    ClientName, EndReason, FromClient, GangRequest, LeaseGranted, LeaseId, LeaseRefused,
    LeaseRelease, LeaseRenew, LeaseReplace, LeaseRequest, LeaseUnmet, Reason, ToClient, Token,
    Unusable,
};
use rfaas_protocol::{Empty, Malformed};
use zerocopy::little_endian::U32;

use crate::link::{Announce, News, Outbox, Turn, take_messages};
use crate::pool::{
    Action, Ask, Asked, Denied, Grant, GraphWorker, LinkId, MAX_NODES, MOST_WAITING_OF_ONE, Now,
    Pool, WaitId,
};

/// The client that a lease is billed to if the request gives no name.
const NAMELESS: &str = "rdma";
/// Messages that a client may be ahead.
const RECEIVES: u32 = 16;
/// Most connections of one peer: as many of a machine's processes may be clients at once. There are
/// fewer where there is less room: half of it.
const MOST_OF_PEER: usize = 1024;
/// Connections of a peer that are looked at for one that can go: more than wait for claims of their
/// leases in the same moment, where claims take milliseconds.
const MOST_LOOKED_AT: usize = 64;
/// Messages that wait for a client, besides those that are under way to it: the answers to all of its requests that may
/// wait for room, which may be met in the same pass, and two of the longest to others.
const MOST_UNTAKEN: usize = MOST_WAITING_OF_ONE * MAX_GANG as usize + 2 * MAX_NODES as usize;
/// Leases remembered for a connection before those that have ended are left out.
const SWEEP: usize = 64;

struct ClientLink {
    channel: Channel,
    /// The peer that it is counted for.
    origin: Peer,
    outbox: Outbox<ToClient>,
    leases: Granted,
    /// Requests that wait for room.
    waits: BTreeSet<WaitId>,
    /// It was granted something since it was told that it has to go.
    granted: bool,
}

/// Leases granted on a connection, as long as they have not ended, and some that have: what may be
/// given back here without its key. No more than the cluster has cores, twice.
#[derive(Debug, Default)]
struct Granted {
    leases: BTreeSet<LeaseId>,
    /// The number of leases at which those that have ended are dropped next.
    sweep_at: usize,
    /// Up to this one they were claimed, or have ended.
    claimed_to: Option<LeaseId>,
}

impl Granted {
    fn note(&mut self, pool: &Pool, lease: LeaseId) {
        if self.leases.len() >= self.sweep_at.max(SWEEP) {
            self.leases.retain(|id| !pool.has_ended(*id));
            self.sweep_at = 2 * self.leases.len(); // so that each is looked at a few times only
        }
        self.leases.insert(lease);
    }

    /// Whether one of them was not claimed. Those before it are not looked at again.
    fn any_unclaimed(&mut self, pool: &Pool) -> bool {
        let start = self.claimed_to.map_or(Bound::Unbounded, Bound::Excluded);
        for id in self.leases.range((start, Bound::Unbounded)) {
            if pool.is_unclaimed(*id) {
                return true;
            }
            self.claimed_to = Some(*id);
        }
        false
    }
}

/// A request that is answered when nodes were heard.
struct SetAside {
    link: LinkId,
    request: U32,
    ask: Ask,
    /// How long it may wait for room then.
    wait: Duration,
}

/// All connections of clients.
pub(crate) struct ClientLinks {
    links: BTreeMap<LinkId, ClientLink>,
    /// Where connections announce news.
    news: News,
    /// Connections that do not have to go, by silence. One that was considered and stays comes last.
    staying: WaitingList<LinkId>,
    /// Connections that have their last turn.
    leaving: Vec<LinkId>,
    /// Connections that there may be, also while some of them leave.
    most: usize,
    /// Requests of this pass that were set aside, in order.
    set_aside: Vec<SetAside>,
    /// Requests that wait for room: whose they are, and their numbers there.
    waits: HashMap<WaitId, (LinkId, U32)>,
    /// Answers to send with [`deliver`](Self::deliver), in order (DURABLE FIRST).
    answers: Vec<(LinkId, ToClient)>,
    secret: Arc<[u8]>,
    idle: Idle,
}

impl ClientLinks {
    /// No connections yet. There may be `most`, and besides those that leave for up to `batch` that come in a pass.
    /// Fails only if the process has no descriptor left.
    pub(crate) fn new(
        secret: Arc<[u8]>,
        idle: Idle,
        most: usize,
        batch: usize,
    ) -> nix::Result<Self> {
        Ok(ClientLinks {
            links: BTreeMap::new(),
            news: News::new()?,
            staying: WaitingList::new((most / 2).min(MOST_OF_PEER), most),
            leaving: Vec::new(),
            most: most + batch,
            set_aside: Vec::new(),
            waits: HashMap::new(),
            answers: Vec::new(),
            secret,
            idle,
        })
    }

    /// The number of connections that do not have to go.
    pub(crate) fn len(&self) -> usize {
        self.staying.len()
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

    /// Makes room for one of `newcomer`, if there is none or all connections together are
    /// `full`. False if that cannot be done.
    pub(crate) fn make_room(
        &mut self,
        now: Now,
        newcomer: Peer,
        full: bool,
        pool: &mut Pool,
    ) -> bool {
        let Some(from) = self.staying.crowded(newcomer, full) else { return !full };
        let silent: Vec<_> = self.staying.oldest_of(from).take(MOST_LOOKED_AT).collect();
        for id in &silent {
            let Some(link) = self.links.get_mut(id) else { continue };
            if link.waits.is_empty() && !link.leases.any_unclaimed(pool) {
                link.granted = false;
                self.staying.remove(*id);
                self.leaving.push(*id);
                return true;
            }
            self.staying.refresh(*id); // so that others are looked at for the next one
        }
        // A client that does not claim its leases keeps nobody else out, and gets no more connections itself.
        let Some(oldest) = silent.first().filter(|_| from != newcomer) else { return false };
        tracing::debug!(?from, "connection of a client that does not claim its leases makes room");
        self.drop_link(now, *oldest, &ChannelError::Disconnected, pool);
        true
    }

    /// Takes a connection, for which there is room ([`make_room`](Self::make_room)).
    pub(crate) fn accept(
        &mut self,
        id: LinkId,
        device: &Device,
        request: ConnectRequest,
    ) -> Result<(), ChannelError> {
        let origin = request.origin();
        let mut channel = Channel::of_messages(device, RECEIVES)?;
        channel.accept(request, &Empty {})?;
        self.news.add(id, &channel)?;
        let (outbox, leases) = (Outbox::new(MOST_UNTAKEN), Granted::default());
        let (waits, granted) = (BTreeSet::new(), false);
        self.links.insert(id, ClientLink { channel, origin, outbox, leases, waits, granted });
        self.stay(id, origin);
        Ok(())
    }

    /// Notes a connection that does not have to go, after room was made for it.
    fn stay(&mut self, id: LinkId, origin: Peer) {
        let gone = self.staying.add(id, origin);
        debug_assert_eq!(gone, None, "there was room");
    }

    /// Connections that are to have their last turn.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.leaving.iter().copied()
    }

    /// Drops those that have had their last turn, unless they were granted something then: so
    /// others leave after the next pass.
    pub(crate) fn make_way(&mut self, now: Now, pool: &mut Pool) {
        for id in std::mem::take(&mut self.leaving) {
            let Some(link) = self.links.get(&id) else { continue };
            let (granted, origin) = (link.granted, link.origin);
            let stays = granted && self.links.len() <= self.most;
            if stays && self.make_room(now, origin, false, pool) {
                self.stay(id, origin);
            } else {
                tracing::debug!("connection of a client makes room for others");
                self.drop_link(now, id, &ChannelError::Disconnected, pool);
            }
        }
    }

    /// Takes up to `most` messages of a peer. Its connection is dropped if it ended or deserves it.
    pub(crate) fn serve(
        &mut self,
        now: Now,
        id: LinkId,
        most: usize,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) -> Turn {
        let Some(link) = self.links.get_mut(&id) else { return Turn::Done };
        let ClientLink { channel, origin, outbox, leases, granted, .. } = link;
        let (secret, answers, aside) = (&self.secret, &mut self.answers, &mut self.set_aside);
        let mut heard = false;
        let announce = match self.idle {
            Idle::Poll => Announce::Nothing,
            Idle::Sleep => Announce::Everything,
        };
        let turn = take_messages(channel, announce, most, |_, message| {
            heard = true;
            let (number, wait, asked) = match message {
                FromClient::Request(request) => {
                    (request.request, Duration::ZERO, ask_of(&request)?)
                }
                FromClient::Gang(gang) => (gang.wanted.request, wait_of(&gang), gang_of(&gang)?),
                FromClient::Grow(grow) => {
                    let gang = grow.gang();
                    let asked = gang_of(&gang)?.and_then(|ask| ask.growing(grow.grown()));
                    (gang.wanted.request, wait_of(&gang), asked)
                }
                other => {
                    let answer = match other {
                        FromClient::Renew(wanted) => renew(now, &wanted, *origin, secret, pool)?,
                        FromClient::Replace(wanted) => {
                            replace(now, &wanted, secret, pool, leases, *origin, out)?
                        }
                        FromClient::Release(release) => {
                            return give_back(now, &release, secret, leases, pool, out);
                        }
                        FromClient::Worker(said) => {
                            let (lease, worker) = GraphWorker::from_wire(&said)?;
                            if leases.leases.contains(&lease) {
                                pool.note_worker(lease, worker);
                            }
                            return Ok(());
                        }
                        FromClient::Request(_) | FromClient::Gang(_) | FromClient::Grow(_) => {
                            return Ok(()); // seen above
                        }
                    };
                    *granted |= matches!(answer, ToClient::Granted(_));
                    answers.push((id, answer));
                    return Ok(());
                }
            };
            match answer(now, asked, *origin, pool) {
                RequestOutcome::Granted(grants) => {
                    *granted = true;
                    let grants = note_grants(number, &grants, secret, pool, leases);
                    answers.extend(grants.map(|granted| (id, granted)));
                }
                RequestOutcome::Denied(denied) => answers.push((id, denial(number, &denied))),
                RequestOutcome::Wrong(why) => answers.push((id, refused(number, &why))),
                RequestOutcome::Aside(ask) => {
                    aside.push(SetAside { link: id, request: number, ask, wait });
                }
            }
            Ok(())
        });
        let turn = turn.and_then(|turn| outbox.flush(channel).map(|()| turn));
        if heard {
            self.staying.refresh(id);
        }
        turn.unwrap_or_else(|error| {
            self.drop_link(now, id, &error, pool);
            Turn::Done
        })
    }

    /// Whether requests wait for nodes to be heard, and then for
    /// [`answer_aside`](Self::answer_aside).
    pub(crate) fn has_aside(&self) -> bool {
        !self.set_aside.is_empty()
    }

    /// Answers the requests that were set aside, now that nodes were heard, or has them wait for room.
    pub(crate) fn answer_aside(&mut self, now: Now, pool: &mut Pool) {
        for SetAside { link: id, request, ask, wait } in std::mem::take(&mut self.set_aside) {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let answer = match pool.wait(now, &ask, wait) {
                Ok(Asked::Granted(grants)) => Ok(grants),
                Err(denied) => Err(denied),
                Ok(Asked::Waits(wait)) => {
                    link.waits.insert(wait);
                    self.waits.insert(wait, (id, request));
                    continue;
                }
            };
            self.answer(id, request, answer, pool);
        }
    }

    /// Answers requests that have waited, those of clients among all that were answered.
    pub(crate) fn answer_waiting(&mut self, pool: &mut Pool) {
        for wait in pool.answered() {
            let Some((id, request)) = self.waits.remove(&wait) else { continue };
            if let Some(link) = self.links.get_mut(&id) {
                link.waits.remove(&wait);
            }
            if let Some(answer) = pool.take_answer(wait) {
                self.answer(id, request, answer, pool);
            }
        }
    }

    fn answer(
        &mut self,
        id: LinkId,
        request: U32,
        answer: Result<Vec<Grant>, Denied>,
        pool: &Pool,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match answer {
            Ok(grants) => {
                link.granted = true;
                let (secret, leases) = (&self.secret, &mut link.leases);
                let grants = note_grants(request, &grants, secret, pool, leases);
                self.answers.extend(grants.map(|granted| (id, granted)));
            }
            Err(denied) => self.answers.push((id, denial(request, &denied))),
        }
    }

    /// Whether there are answers to [`deliver`](Self::deliver).
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Sends the answers that wait, now that what they tell of is committed. A client that takes
    /// none is dropped.
    pub(crate) fn deliver(&mut self, now: Now, pool: &mut Pool) {
        for (id, answer) in std::mem::take(&mut self.answers) {
            let Some(link) = self.links.get_mut(&id) else { continue }; // gone; `client_gone` was told
            if let Err(error) = link.outbox.send(&mut link.channel, answer) {
                self.drop_link(now, id, &error, pool);
            }
        }
    }

    fn drop_link(&mut self, now: Now, id: LinkId, why: &ChannelError, pool: &mut Pool) {
        let Some(mut link) = self.links.remove(&id) else { return };
        self.staying.remove(id);
        self.news.remove(&link.channel);
        let peer = link.channel.peer();
        link.channel.disconnect();
        match why {
            ChannelError::Disconnected => tracing::debug!(peer, "client disconnected"),
            _ => tracing::warn!(peer, %why, "connection of a client dropped"),
        }
        for wait in link.waits {
            self.waits.remove(&wait);
            pool.cancel_wait(now, wait, &mut Vec::new()); // it was not answered, so nothing is to be ended
        }
        pool.client_gone(now, link.leases.leases);
    }
}

/// What becomes of a request.
enum RequestOutcome {
    Granted(Vec<Grant>),
    /// It cannot be.
    Wrong(String),
    Denied(Denied),
    /// It is known when nodes were heard.
    Aside(Ask),
}

/// A request for one lease, or for one that may be divided.
fn ask_of(request: &LeaseRequest) -> Result<Result<Ask, String>, Malformed> {
    let timeout = Duration::from_millis(request.timeout_ms.get());
    let (cores, memory) = (request.cores.get(), request.memory.get());
    let ask = Ask::new(cores, memory, timeout, name_of(&request.client)?);
    Ok(ask.and_then(|ask| ask.on_nodes(request.max_nodes.get())))
}

/// A request for several leases, with constraints.
fn gang_of(request: &GangRequest) -> Result<Result<Ask, String>, Malformed> {
    let wanted = &request.wanted;
    let timeout = Duration::from_millis(wanted.timeout_ms.get());
    let constraints = Constraints::read_from(request)?;
    let wait_ms = wanted.wait_ms.get();
    if wait_ms > MAX_WAIT_MS {
        return Ok(Err(format!("wait_ms is {wait_ms}, not from 0 to {MAX_WAIT_MS}")));
    }
    let (cores, memory) = (wanted.cores.get(), wanted.memory.get());
    let ask = Ask::new(cores, memory, timeout, name_of(&wanted.client)?);
    Ok(ask.and_then(|ask| ask.gang(wanted.leases.get(), constraints)))
}

/// How long it may wait for room.
fn wait_of(request: &GangRequest) -> Duration {
    Duration::from_millis(request.wanted.wait_ms.get())
}

fn name_of(client: &ClientName) -> Result<&str, Malformed> {
    Ok(match client.get()? {
        "" => NAMELESS,
        name => name,
    })
}

/// Asks the pool, as far as it knows without hearing nodes.
fn answer(now: Now, asked: Result<Ask, String>, origin: Peer, pool: &mut Pool) -> RequestOutcome {
    let ask = match asked {
        Ok(ask) => ask.while_connected().by(origin),
        Err(wrong) => return RequestOutcome::Wrong(wrong),
    };
    match pool.try_request(now, &ask) {
        Err(denied) => RequestOutcome::Denied(denied),
        Ok(Some(grants)) => RequestOutcome::Granted(grants),
        Ok(None) => RequestOutcome::Aside(ask),
    }
}

/// Notes what was granted in `leases`; the parts of the answer.
fn note_grants(
    request: U32,
    grants: &[Grant],
    secret: &[u8],
    pool: &Pool,
    leases: &mut Granted,
) -> impl Iterator<Item = ToClient> {
    grants.iter().for_each(|grant| leases.note(pool, grant.terms.lease));
    let parts = u16::try_from(grants.len()).expect("at most MAX_NODES");
    (0..parts).zip(grants).map(move |(part, grant)| {
        let token = Token::sign(grant.to_wire(), secret);
        granted_part(request, grant, (part, parts), token)
    })
}

/// Gives a lease more time.
fn renew(
    now: Now,
    wanted: &LeaseRenew,
    origin: Peer,
    secret: &[u8],
    pool: &mut Pool,
) -> Result<ToClient, Malformed> {
    let lease = LeaseId::new(wanted.token.terms.lease.get()).ok_or(Malformed::Field("lease"))?;
    if !wanted.token.signed().verify(secret) {
        return Ok(refused(wanted.request, "the token is not signed with the cluster secret"));
    }
    let timeout = Duration::from_millis(wanted.timeout_ms.get());
    Ok(match pool.renew(now, lease, timeout, Some(origin)) {
        Ok(grant) => {
            // The key went out with the grant.
            let token = Token::sign(grant.to_wire(), secret).without_key();
            granted_part(wanted.request, &grant, (0, 1), token)
        }
        Err(why) => refused(wanted.request, &why.to_string()),
    })
}

/// Exchanges a lease that its client cannot use for one on another node.
#[allow(clippy::too_many_arguments)] // what a turn of a client has
fn replace(
    now: Now,
    wanted: &LeaseReplace,
    secret: &[u8],
    pool: &mut Pool,
    leases: &mut Granted,
    origin: Peer,
    out: &mut Vec<Action>,
) -> Result<ToClient, Malformed> {
    let lease = LeaseId::new(wanted.token.terms.lease.get()).ok_or(Malformed::Field("lease"))?;
    let because = Unusable::from_wire(wanted.because)?;
    if !wanted.token.signed().verify(secret) {
        return Ok(refused(wanted.request, "the token is not signed with the cluster secret"));
    }
    // The answer has the key of the new lease: it goes where the key of the old one went.
    if !leases.leases.contains(&lease) {
        return Ok(refused(wanted.request, "the lease was not granted on this connection"));
    }
    Ok(match pool.replace(now, lease, because, origin, out) {
        Ok(grant) => {
            leases.leases.remove(&lease);
            leases.note(pool, grant.terms.lease);
            granted_part(wanted.request, &grant, (0, 1), Token::sign(grant.to_wire(), secret))
        }
        Err(why) => refused(wanted.request, &why.to_string()),
    })
}

fn granted_part(request: U32, grant: &Grant, (part, parts): (u16, u16), token: Token) -> ToClient {
    ToClient::Granted(LeaseGranted {
        request,
        part: part.into(),
        parts: parts.into(),
        manager: grant.manager.into(),
        token,
    })
}

fn denial(request: U32, denied: &Denied) -> ToClient {
    let why = denied.to_string();
    match denied {
        Denied::Unmet { constraints, .. } => ToClient::Unmet(LeaseUnmet {
            request,
            constraints: Constraint::to_wire(constraints),
            reason: Reason::truncated(&why),
        }),
        _ => refused(request, &why),
    }
}

fn refused(request: U32, why: &str) -> ToClient {
    ToClient::Refused(LeaseRefused { request, reason: Reason::truncated(why) })
}

/// Ends the lease whose token is shown, if it was granted on this connection or the token has its
/// key. It may have been claimed: the client does not know if the answer was lost. For any other,
/// or one that has ended, nothing changes.
fn give_back(
    now: Now,
    release: &LeaseRelease,
    secret: &[u8],
    leases: &Granted,
    pool: &mut Pool,
    out: &mut Vec<Action>,
) -> Result<(), ChannelError> {
    if !release.token.signed().verify(secret) {
        return Err(Malformed::Field("token").into());
    }
    let Some(lease) = LeaseId::new(release.token.terms.lease.get()) else { return Ok(()) };
    if leases.leases.contains(&lease) || release.token.verify(secret) {
        pool.end_lease(now, lease, EndReason::Released, out);
    }
    Ok(())
}
