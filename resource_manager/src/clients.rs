//! Connections of clients: they ask for leases and give them back. What an unclaimed lease is worth to
//! a client ends with its connection; claimed leases do not depend on it.
//!
//! Clients are not known to the cluster, so their connections are bounded: when there are too many,
//! the one that has been silent longest goes, unless it holds leases or was heard just now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::{ConnectRequest, Device};
use rfaas::channel::{Channel, ChannelError};
use rfaas::protocol::lease::{
    EndReason, FromClient, LeaseGranted, LeaseId, LeaseRefused, LeaseRelease, LeaseRequest, Reason,
    ToClient, Token,
};
use rfaas::protocol::{Empty, Malformed};

use crate::link::{Turn, Waiting, take_messages};
use crate::nodes::Nodes;
use crate::pool::{Action, Ask, LeaseState, LinkId, Now, Pool};

/// Whom a lease is billed to if the client gives no name.
const NAMELESS: &str = "rdma";
/// Messages that a client may be ahead.
const RECEIVES: u32 = 16;
/// A client that was silent for less is not dropped to make room for another.
const IDLE: Duration = Duration::from_secs(5);
/// Leases remembered for a connection before those that were claimed or ended are left out.
const SWEEP: usize = 64;

struct ClientLink {
    channel: Channel,
    /// Leases granted on this connection that may be unclaimed still.
    leases: Vec<LeaseId>,
    heard: Instant,
}

/// All of them.
pub(crate) struct Clients {
    links: BTreeMap<LinkId, ClientLink>,
    secret: Arc<[u8]>,
    waiting: Waiting,
}

impl Clients {
    pub(crate) fn new(secret: Arc<[u8]>, waiting: Waiting) -> Self {
        Clients { links: BTreeMap::new(), secret, waiting }
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// The connections, to wait for.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (LinkId, &Channel)> {
        self.links.iter().map(|(id, link)| (*id, &link.channel))
    }

    /// Takes a connection.
    pub(crate) fn accept(
        &mut self,
        now: Now,
        id: LinkId,
        device: &Device,
        request: ConnectRequest,
    ) -> Result<(), ChannelError> {
        let mut channel = Channel::new(device, RECEIVES)?;
        channel.accept(request, &Empty {})?;
        self.links.insert(id, ClientLink { channel, leases: Vec::new(), heard: now.monotonic });
        Ok(())
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
        let Some(id) = victim else { return false };
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
        let Some(ClientLink { channel, leases, heard }) = self.links.get_mut(&id) else {
            return Turn::Done;
        };
        let secret = &self.secret;
        let turn = take_messages(channel, self.waiting, |channel, message| {
            *heard = now.monotonic;
            match message {
                FromClient::Request(request) => {
                    let hear = |pool: &mut Pool| nodes.hear(now, pool, out);
                    channel.send(&answer(now, &request, secret, pool, leases, hear)?)
                }
                FromClient::Renew(renew) => {
                    let reason = Reason::truncated("this resource manager does not renew leases");
                    let refused = LeaseRefused { request: renew.request, reason };
                    channel.send(&ToClient::Refused(refused))
                }
                FromClient::Release(release) => give_back(now, &release, secret, pool, out),
            }
        });
        turn.unwrap_or_else(|error| {
            self.drop_link(now, id, &error, pool);
            Turn::Done
        })
    }

    fn drop_link(&mut self, now: Now, id: LinkId, why: &ChannelError, pool: &mut Pool) {
        let Some(mut link) = self.links.remove(&id) else { return };
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

/// Asks the pool; has it `hear` what nodes have sent before it refuses. A lease that is granted is noted
/// in `leases`.
fn answer(
    now: Now,
    request: &LeaseRequest,
    secret: &[u8],
    pool: &mut Pool,
    leases: &mut Vec<LeaseId>,
    hear: impl FnOnce(&mut Pool),
) -> Result<ToClient, Malformed> {
    let client = match request.client.get()? {
        "" => NAMELESS,
        name => name,
    };
    let timeout = Duration::from_millis(request.timeout_ms.get());
    let ask = Ask::new(request.cores.get(), request.memory.get(), timeout, client);
    let granted = ask.and_then(|ask| {
        if !pool.has_room(&ask) {
            hear(pool);
        }
        pool.request(now, &ask).map_err(|denied| denied.to_string())
    });
    Ok(match granted {
        Ok(grants) => {
            let grant = grants.first().expect("a request is met by one lease at least");
            if leases.len() >= SWEEP {
                *leases = unclaimed(pool, leases).collect();
            }
            leases.push(grant.terms.lease);
            ToClient::Granted(LeaseGranted {
                request: request.request,
                part: 0.into(),
                parts: 1.into(),
                manager: grant.manager.into(),
                token: Token::sign(grant.to_wire(), secret),
            })
        }
        Err(why) => ToClient::Refused(LeaseRefused {
            request: request.request,
            reason: Reason::truncated(&why),
        }),
    })
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
    if !release.token.verify(secret) {
        return Err(Malformed::Field("token").into());
    }
    if let Some(lease) = LeaseId::new(release.token.terms.lease.get()) {
        pool.end_lease(now, lease, EndReason::Released, out);
    }
    Ok(())
}
