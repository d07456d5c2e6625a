//! Connections of clients: they ask for leases, give them back, and exchange what they cannot use. What an unclaimed lease is worth to
//! a client ends with its connection; claimed leases do not depend on it.
//!
//! Clients are not known to the cluster, so their connections are bounded.
//! * ROOM - of those that were never granted anything only so many stay, of one peer and in all: the oldest go
//!   for those that come. When there are too many connections altogether, the one that has been silent
//!   longest goes too, unless it holds leases or was heard just now. Our clients connect again when they ask.
//! * KEYLESS - the key of a lease goes out once, with its grant: a renewal is answered without it, and a lease is
//!   exchanged on the connection only that it was granted on. A token shown here proves no key.
//! * DURABLE FIRST - an answer waits until the loop has committed what it tells of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::{ConnectRequest, Device, Peer, WaitingList};
use rfaas::channel::{Channel, ChannelError};
use rfaas::protocol::lease::{
    EndReason, FromClient, LeaseGranted, LeaseId, LeaseRefused, LeaseRelease, LeaseRenew,
    LeaseReplace, LeaseRequest, Reason, ToClient, Token, Unusable,
};
use rfaas::protocol::{Empty, Malformed};
use zerocopy::little_endian::U32;

use crate::link::{Outbox, Turn, Waiting, take_messages};
use crate::nodes::Nodes;
use crate::pool::{Action, Ask, Grant, LeaseState, LinkId, Now, Pool};

/// Whom a lease is billed to if the client gives no name.
const NAMELESS: &str = "rdma";
/// Messages that a client may be ahead.
const RECEIVES: u32 = 16;
/// A client that was silent for less is not dropped to make room for another.
const IDLE: Duration = Duration::from_secs(5);
/// Most connections that were never granted anything: as many clients may have connected ahead of their first
/// question.
const MOST_UNSERVED: usize = 1024;
/// Leases remembered for a connection before those that were claimed or ended are left out.
const SWEEP: usize = 64;

struct ClientLink {
    channel: Channel,
    /// Whose it is.
    origin: Peer,
    outbox: Outbox<ToClient>,
    /// Leases granted on this connection that may be unclaimed still.
    leases: Vec<LeaseId>,
    heard: Instant,
    /// It was granted something.
    served: bool,
}

/// All of them.
pub(crate) struct Clients {
    links: BTreeMap<LinkId, ClientLink>,
    /// Those that were never granted anything (ROOM).
    unserved: WaitingList<LinkId>,
    /// Answers to send with [`deliver`](Self::deliver), in order (DURABLE FIRST).
    answers: Vec<(LinkId, ToClient)>,
    secret: Arc<[u8]>,
    waiting: Waiting,
}

impl Clients {
    /// None yet; there may be `most` together with other connections.
    pub(crate) fn new(secret: Arc<[u8]>, waiting: Waiting, most: usize) -> Self {
        let most = (most / 2).min(MOST_UNSERVED);
        let unserved = WaitingList::new(most / 2, most);
        Clients { links: BTreeMap::new(), unserved, answers: Vec::new(), secret, waiting }
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// The connections, to wait for.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (LinkId, &Channel)> {
        self.links.iter().map(|(id, link)| (*id, &link.channel))
    }

    /// Takes a connection. Who has to go for it is returned: it is to have its turn, and then
    /// [`make_way`](Self::make_way).
    pub(crate) fn accept(
        &mut self,
        now: Now,
        id: LinkId,
        device: &Device,
        request: ConnectRequest,
    ) -> Result<Option<LinkId>, ChannelError> {
        let origin = request.origin();
        let mut channel = Channel::new(device, RECEIVES)?;
        channel.accept(request, &Empty {})?;
        let (outbox, leases, heard) = (Outbox::default(), Vec::new(), now.monotonic);
        self.links.insert(id, ClientLink { channel, origin, outbox, leases, heard, served: false });
        Ok(self.unserved.add(id, origin))
    }

    /// ROOM. Drops a connection that has had its last turn, unless it was granted something then.
    pub(crate) fn make_way(&mut self, now: Now, id: LinkId, pool: &mut Pool) {
        if self.links.get(&id).is_some_and(|link| !link.served) {
            tracing::debug!("connection of a client makes room for others");
            self.drop_link(now, id, &ChannelError::Disconnected, pool);
        }
    }

    /// Drops an idle connection. False if there is none.
    pub(crate) fn make_room(&mut self, now: Now, pool: &mut Pool) -> bool {
        let idle = |link: &ClientLink| now.monotonic.saturating_duration_since(link.heard) >= IDLE;
        let victim = self
            .links
            .iter()
            .filter(|(_, link)| idle(link) && unclaimed(pool, &link.leases).next().is_none())
            .min_by_key(|(_, link)| link.heard)
            .map(|(id, _)| *id);
        let Some(id) = victim else {
            let Some(oldest) = self.unserved.oldest() else { return false };
            self.drop_link(now, oldest, &ChannelError::Disconnected, pool);
            return true;
        };
        let error = ChannelError::TimedOut { what: "hearing from the client", after: IDLE };
        self.drop_link(now, id, &error, pool);
        true
    }

    /// Silences the descriptor of a connection that had news.
    pub(crate) fn acknowledge(&mut self, id: LinkId) -> Result<(), ChannelError> {
        self.links.get_mut(&id).map_or(Ok(()), |link| link.channel.acknowledge())
    }

    /// Takes what a peer sent. Its connection is dropped if it ended or deserves it.
    pub(crate) fn serve(
        &mut self,
        now: Now,
        id: LinkId,
        nodes: &mut Nodes,
        pool: &mut Pool,
        out: &mut Vec<Action>,
    ) -> Turn {
        let Some(link) = self.links.get_mut(&id) else { return Turn::Done };
        let ClientLink { channel, origin, outbox, leases, heard, served } = link;
        let (secret, waiting) = (&self.secret, &mut self.answers);
        let turn = take_messages(channel, self.waiting, |_, message| {
            *heard = now.monotonic;
            match message {
                FromClient::Request(request) => {
                    let hear = |pool: &mut Pool| nodes.hear(now, pool, out);
                    let answers = answer(now, &request, *origin, secret, pool, leases, hear)?;
                    *served |= answers.iter().any(is_granted);
                    waiting.extend(answers.into_iter().map(|answer| (id, answer)));
                }
                FromClient::Renew(wanted) => {
                    let answer = renew(now, &wanted, *origin, secret, pool)?;
                    *served |= is_granted(&answer);
                    waiting.push((id, answer));
                }
                FromClient::Replace(wanted) => {
                    let answer = replace(now, &wanted, secret, pool, leases, *origin, out)?;
                    *served |= is_granted(&answer);
                    waiting.push((id, answer));
                }
                FromClient::Release(release) => give_back(now, &release, secret, pool, out)?,
            }
            Ok(())
        });
        let turn = turn.and_then(|turn| outbox.flush(channel).map(|()| turn));
        if *served {
            self.unserved.remove(id);
        }
        turn.unwrap_or_else(|error| {
            self.drop_link(now, id, &error, pool);
            Turn::Done
        })
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
        self.unserved.remove(id);
        link.channel.disconnect();
        match why {
            ChannelError::Disconnected => tracing::debug!("client disconnected"),
            _ => tracing::warn!(%why, "connection of a client dropped"),
        }
        pool.client_gone(now, link.leases);
    }
}

/// Those of `leases` that were not claimed and have not ended.
fn unclaimed<'a>(pool: &'a Pool, leases: &'a [LeaseId]) -> impl Iterator<Item = LeaseId> + 'a {
    let granted = |id: &LeaseId| pool.lease(*id).is_some_and(|l| l.state == LeaseState::Granted);
    leases.iter().copied().filter(granted)
}

fn is_granted(answer: &ToClient) -> bool {
    matches!(answer, ToClient::Granted(_))
}

/// Asks the pool; has it `hear` what nodes have sent before it refuses. Leases that are granted are noted
/// in `leases`.
fn answer(
    now: Now,
    request: &LeaseRequest,
    origin: Peer,
    secret: &[u8],
    pool: &mut Pool,
    leases: &mut Vec<LeaseId>,
    hear: impl FnOnce(&mut Pool),
) -> Result<Vec<ToClient>, Malformed> {
    let client = match request.client.get()? {
        "" => NAMELESS,
        name => name,
    };
    let timeout = Duration::from_millis(request.timeout_ms.get());
    let ask = Ask::new(request.cores.get(), request.memory.get(), timeout, client)
        .and_then(|ask| ask.on_nodes(request.max_nodes.get()));
    let granted = ask.and_then(|ask| {
        let ask = ask.while_connected().by(origin);
        if !pool.has_room(&ask) {
            hear(pool);
        }
        pool.request(now, &ask).map_err(|denied| denied.to_string())
    });
    let grants = match granted {
        Ok(grants) => grants,
        Err(why) => return Ok(vec![refused(request.request, &why)]),
    };
    if leases.len() >= SWEEP {
        *leases = unclaimed(pool, leases).collect();
    }
    leases.extend(grants.iter().map(|grant| grant.terms.lease));
    let parts = u16::try_from(grants.len()).expect("at most MAX_NODES");
    let numbered = (0..parts).zip(&grants);
    Ok(numbered
        .map(|(part, grant)| {
            let token = Token::sign(grant.to_wire(), secret);
            granted_part(request.request, grant, (part, parts), token)
        })
        .collect())
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
            // KEYLESS
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
    leases: &mut Vec<LeaseId>,
    origin: Peer,
    out: &mut Vec<Action>,
) -> Result<ToClient, Malformed> {
    let lease = LeaseId::new(wanted.token.terms.lease.get()).ok_or(Malformed::Field("lease"))?;
    let because = Unusable::from_wire(wanted.because)?;
    if !wanted.token.signed().verify(secret) {
        return Ok(refused(wanted.request, "the token is not signed with the cluster secret"));
    }
    // The answer has the key of the new lease: it goes where the key of the old one went.
    if !leases.contains(&lease) {
        return Ok(refused(wanted.request, "the lease was not granted on this connection"));
    }
    Ok(match pool.replace(now, lease, because, origin, out) {
        Ok(grant) => {
            leases.retain(|id| *id != lease);
            leases.push(grant.terms.lease);
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

fn refused(request: U32, why: &str) -> ToClient {
    ToClient::Refused(LeaseRefused { request, reason: Reason::truncated(why) })
}

/// Ends the lease whose token is shown. A token that is not ours, or of a lease that has ended, changes
/// nothing: the client may not know yet.
fn give_back(
    now: Now,
    release: &LeaseRelease,
    secret: &[u8],
    pool: &mut Pool,
    out: &mut Vec<Action>,
) -> Result<(), ChannelError> {
    if !release.token.signed().verify(secret) {
        return Err(Malformed::Field("token").into());
    }
    if let Some(lease) = LeaseId::new(release.token.terms.lease.get()) {
        pool.end_lease(now, lease, EndReason::Released, out);
    }
    Ok(())
}
