//! The loop: one thread owns the listener, all connections and the pool. A pass hands news and time to the
//! pool, has the ledger commit what changed, and carries out what the pool says.
//!
//! ```text
//!   sleep ────▶ accept ──▶ turns of peers ──▶ nodes are heard, if anybody asks ──┐
//!      ▲                                                                          ▼
//!      │       deadlines ◀── requests that were set aside ◀── commands ◀──────────┘
//!      │           ▼
//!      │         commit ──▶ actions ──▶ answers over RDMA ──▶ answers over HTTP ──┐
//!      └──────────────────────────────────────────────────────────────────────────┘
//! ```
//! Elsewhere: how the loop waits (`rfaas_program::poll_loop`).
//!
//! DURABLE FIRST - nothing leaves this loop, to a node, a client or over HTTP, before the changes that it tells
//! of are committed ([`Ledger`]). Signs of life and refusals of connections tell of none.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use rdmalib::{ConnectRequest, Device, Listener};
use rfaas_program::inherited::descriptor_limit;
use rfaas_program::poll_loop::{
    Acceptor, DESCRIPTORS_PER_CONNECTION, Idle, Pass, PollLoop, Sources, Wakeups, run,
};
use rfaas_protocol::channel::refuse;
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::node::NodeHello;
use rfaas_protocol::{Hello, Role, parse_prefix};

use crate::client_links::ClientLinks;
use crate::commands::{Command, Commands, Inbox, SendAnswer, Work};
use crate::executors_database::Export;
use crate::ledger::Ledger;
use crate::link::Turn;
use crate::metrics::LoopEvents;
use crate::node_links::{NodeLinks, message_of};
use crate::pool::{Action, LinkId, Now, Pool};

/// Most connections taken before peers have their turn again. There are fewer where there is less
/// room, an eighth of it: a peer that has just come is heard before it makes room for many others.
const ACCEPT_BATCH: usize = 32;
/// Messages of clients taken before nodes have their turn again, as long as each client has one;
/// and of one of them.
const MESSAGES: usize = 1024;
const MESSAGES_OF_CLIENT: usize = 64;
/// Descriptors for everything else: files, HTTP connections (256), device.
const OTHER_DESCRIPTORS: u64 = 512;
/// Most connections, whatever the limit of descriptors.
const MAX_CONNECTIONS: u64 = 16_384;

/// Why the loop ends with what the state said.
const NOT_COMMITTED: &str = "the state could not be written, so nothing can be promised any more; leases in use go \
                             on: start it again when there is room on the disk";

/// Something that the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Commands,
    Listener,
    Nodes,
    Clients,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Node(LinkId),
    Client(LinkId),
}

/// What a resource manager serves with.
pub(crate) struct Server {
    device: Device,
    acceptor: Acceptor,
    inbox: Inbox,
    /// For threads that look up addresses.
    commands: Commands,
    pool: Pool,
    ledger: Ledger,
    nodes: NodeLinks,
    clients: ClientLinks,
    export: Option<Export>,
    heartbeat: Heartbeat,
    idle: Idle,
    max_connections: usize,
    next_link: u64,
    /// Connections that have news, or may have.
    due: BTreeSet<Link>,
    /// Whether more peers may want to connect than were taken.
    may_have_more: bool,
}

/// What a server knows of its cluster from its settings.
pub(crate) struct ClusterTerms {
    /// Signs leases, proves nodes.
    pub(crate) secret: Arc<[u8]>,
    pub(crate) heartbeat: Heartbeat,
    /// Whether to sleep until there is news.
    pub(crate) sleep: bool,
}

impl Server {
    pub(crate) fn new(
        (device, listener): (Device, Listener),
        (commands, inbox): (Commands, Inbox),
        (pool, ledger): (Pool, Ledger),
        export: Option<Export>,
        events: Arc<LoopEvents>,
        ClusterTerms { secret, heartbeat, sleep }: ClusterTerms,
    ) -> nix::Result<Self> {
        let idle = if sleep { Idle::Sleep } else { Idle::Poll };
        let max_connections = max_connections();
        Ok(Server {
            device,
            acceptor: Acceptor::new(listener, accept_batch(max_connections)),
            inbox,
            commands,
            pool,
            ledger,
            nodes: NodeLinks::new(secret.clone(), heartbeat, idle, events, max_connections)?,
            // A quarter is for nodes only.
            clients: ClientLinks::new(
                secret,
                idle,
                max_connections - max_connections / 4,
                accept_batch(max_connections),
            )?,
            export,
            heartbeat,
            idle,
            max_connections,
            next_link: 0,
            due: BTreeSet::new(),
            may_have_more: false,
        })
    }

    /// Serves until it is asked to stop. The connections end with it; leases in use do not.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let idle = self.idle;
        run(&mut self, idle)?;
        self.ledger.close().context(NOT_COMMITTED)?;
        self.write_database();
        Ok(())
    }

    /// Takes what the connections that are due, and those that leave, have sent.
    fn turns(&mut self, now: Now, due: &BTreeSet<Link>, actions: &mut Vec<Action>) {
        let leaving: Vec<_> = self.leaving().filter(|link| !due.contains(link)).collect();
        let all = || due.iter().chain(&leaving).copied();
        let clients = all().filter(|link| matches!(link, Link::Client(_))).count();
        let most = (MESSAGES / clients.max(1)).clamp(1, MESSAGES_OF_CLIENT);
        for link in all() {
            let pool = &mut self.pool;
            let turn = match link {
                Link::Node(id) => self.nodes.serve(now, id, pool, actions),
                Link::Client(id) => self.clients.serve(now, id, most, pool, actions),
            };
            if turn == Turn::Again {
                self.due.insert(link);
            }
        }
    }

    fn leaving(&self) -> impl Iterator<Item = Link> {
        let nodes = self.nodes.leaving().map(Link::Node);
        nodes.chain(self.clients.leaving().map(Link::Client))
    }

    /// Notes which connections are due; whether the listener and the commands are.
    fn note_news(&mut self, wakeups: Wakeups<Source>) -> (bool, bool) {
        let news = match wakeups {
            Wakeups::All => {
                self.due.extend(self.nodes.all().map(Link::Node));
                self.due.extend(self.clients.all().map(Link::Client));
                return (true, true);
            }
            Wakeups::Of(news) => news,
        };
        // All of them, so that they share a commit. What was acknowledged announces nothing before its turn; of one that
        // does, nothing is new.
        let note = |due: &mut BTreeSet<Link>, some: Vec<LinkId>, link: fn(LinkId) -> Link| {
            let before = due.len();
            due.extend(some.into_iter().map(link));
            due.len() > before
        };
        if news.contains(&Source::Nodes) {
            while note(&mut self.due, self.nodes.some_news(), Link::Node) {}
        }
        if news.contains(&Source::Clients) {
            while note(&mut self.due, self.clients.some_news(), Link::Client) {}
        }
        (news.contains(&Source::Listener), news.contains(&Source::Commands))
    }

    /// Takes the peers that want to connect.
    fn accept(&mut self, now: Now) {
        let mut taken = 0;
        while let Some(request) = self.acceptor.next(now.monotonic, taken) {
            taken += 1;
            self.take_peer(now, request);
        }
        self.may_have_more = self.acceptor.may_have_more(taken);
    }

    fn take_peer(&mut self, now: Now, request: ConnectRequest) {
        let peer_is = |(role, body)| match role {
            Role::Node => parse_prefix::<NodeHello>(body).map(|hello| (role, Some(hello))),
            _ => Ok((role, None)),
        };
        let (role, hello) = match Hello::parse(request.private_data()).and_then(peer_is) {
            Ok(client_or_node @ (Role::Lease | Role::Node, _)) => client_or_node,
            Ok(_) => {
                let why = "this is a resource manager, which is not what you want: check the port";
                return turn_away(request, why);
            }
            Err(malformed) => return turn_away(request, &malformed.to_string()),
        };
        let (origin, pool) = (request.origin(), &mut self.pool);
        let full = self.nodes.len() + self.clients.len() >= self.max_connections;
        let has_room = match role {
            // One that has not registered either goes for it, else a client.
            Role::Node if !full || self.nodes.gives_up_one_for(origin) => true,
            _ => self.clients.make_room(now, origin, full, pool),
        };
        if !has_room {
            let why = "the resource manager has too many connections; try again later";
            return turn_away(request, why);
        }
        let peer = request.peer();
        self.next_link += 1;
        let id = LinkId(self.next_link);
        let (link, accepted) = match hello {
            Some(hello) => {
                let address = self.acceptor.listener().local_addr();
                let accepted = self.nodes.accept(now, id, &self.device, request, &hello, address);
                (Link::Node(id), accepted)
            }
            None => (Link::Client(id), self.clients.accept(id, &self.device, request)),
        };
        match accepted {
            Ok(()) => {
                tracing::debug!(peer, ?role, "connected");
                self.due.insert(link); // it is not armed yet
            }
            Err(error) => tracing::warn!(peer, %error, "a connection could not be accepted"),
        }
    }

    /// Drops those that have had their last turn.
    fn make_way(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.nodes.make_way(now, &mut self.pool, actions);
        self.clients.make_way(now, &mut self.pool);
        let leaving: Vec<_> = self.leaving().collect(); // in place of those that stay
        self.due.extend(leaving);
    }

    /// What other threads ask for; and whether they ask to stop.
    fn take_commands(&mut self) -> (Vec<Work>, bool) {
        let mut all = Vec::new();
        while let Some(command) = self.inbox.try_next() {
            match command {
                Command::Work(work) => all.push(work),
                Command::Stop => return (all, true),
            }
        }
        (all, false)
    }

    /// Commits what changed, then does what the pool says and answers clients (DURABLE FIRST); and so on with
    /// what that leads to.
    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) -> anyhow::Result<()> {
        let mut nodes_changed = false;
        loop {
            let changes = self.pool.take_changes();
            self.ledger.settle(now, changes).context(NOT_COMMITTED)?;
            if actions.is_empty() && !self.clients.has_answers() {
                break;
            }
            for action in std::mem::take(actions) {
                nodes_changed |= action == Action::NodesChanged;
                self.carry_out(now, action, actions);
            }
            self.clients.deliver(now, &mut self.pool);
        }
        if nodes_changed {
            self.write_database();
        }
        Ok(())
    }

    /// Does one thing that the pool said; what that leads to is added to `actions`.
    fn carry_out(&mut self, now: Now, action: Action, actions: &mut Vec<Action>) {
        if let Some((link, message)) = message_of(&action, self.heartbeat) {
            return self.nodes.send(now, link, message, &mut self.pool, actions);
        }
        match action {
            Action::Close { link, reason } => self.nodes.close(now, link, &reason),
            Action::Resolve { node, host } => self.resolve(node, host),
            _ => {}
        }
    }

    /// Looks a host name up in a thread of its own, since that may take seconds.
    fn resolve(&self, node: Arc<str>, host: Arc<str>) {
        let commands = self.commands.clone();
        let look_up = move || {
            let found = rfaas_config::resolve(&host, 0);
            if let Err(error) = &found {
                tracing::warn!(?node, %error, "the node's address was not found; trying again");
            }
            let found: Vec<_> = found.into_iter().flatten().map(|found| found.ip()).collect();
            let told = commands.tell(move |pool, now, _| pool.resolved(now, &node, &host, found));
            told.unwrap_or_else(|stopped| tracing::debug!(%stopped, "address not needed any more"));
        };
        if let Err(error) = std::thread::Builder::new().name("resolve".into()).spawn(look_up) {
            tracing::error!(%error, "no thread to look up an address; trying again later");
        }
    }

    fn write_database(&self) {
        let Some(export) = &self.export else { return };
        if let Err(error) = export.write(&self.pool.nodes()) {
            tracing::error!(%error, "the executors database could not be written; its old state is kept");
        }
    }
}

impl PollLoop for Server {
    type Source = Source;
    type Error = anyhow::Error;

    fn pass(&mut self, wakeups: Wakeups<Source>) -> anyhow::Result<Pass> {
        let now = Now::read();
        let (newcomers, commands) = self.note_news(wakeups);
        let due = std::mem::take(&mut self.due);
        if newcomers || self.may_have_more || self.acceptor.paused_until().is_some() {
            self.accept(now);
        }
        let mut actions = Vec::new();
        self.turns(now, &due, &mut actions);
        let (work, stop) = match commands {
            true => self.take_commands(),
            false => (Vec::new(), false),
        };
        if !work.is_empty() || self.clients.has_aside() {
            // Once a pass, however many ask.
            self.nodes.hear(now, &mut self.pool, &mut actions);
        }
        let done = work.into_iter().map(|work| work(&mut self.pool, now, &mut actions));
        let answers: Vec<SendAnswer> = done.collect();
        self.clients.answer_aside(now, &mut self.pool);
        self.make_way(now, &mut actions);
        // After what peers said: a peer whose messages are still unread is not taken for silent.
        self.pool.tick(now, &mut actions);
        self.nodes.tick(now, &mut self.pool, &mut actions);
        self.clients.answer_waiting(&mut self.pool);
        self.settle(now, &mut actions)?;
        answers.into_iter().for_each(|answer| answer());
        self.due.extend(self.nodes.take_unserved().into_iter().map(Link::Node));
        Ok(match (stop, self.due.is_empty() && !self.may_have_more) {
            (true, _) => Pass::Stop,
            (false, true) => Pass::Done,
            (false, false) => Pass::Again,
        })
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a, Source>) {
        sources.add(Source::Commands, self.inbox.as_fd());
        self.acceptor.add_to(Source::Listener, sources);
        sources.add(Source::Nodes, self.nodes.descriptor());
        sources.add(Source::Clients, self.clients.descriptor());
    }

    fn acknowledge(&mut self, source: Source) {
        match source {
            Source::Commands => self.inbox.acknowledge(),
            Source::Listener => {}
            Source::Nodes | Source::Clients => {} // those that have news are, when it is seen which
        }
    }

    fn next_deadline(&self, _: Instant) -> Option<Instant> {
        [
            self.pool.next_deadline(),
            self.nodes.next_deadline(),
            self.ledger.next_deadline(),
            self.acceptor.paused_until(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

fn turn_away(request: ConnectRequest, why: &str) {
    tracing::warn!(peer = request.peer(), why, "connection refused");
    refuse(request, why);
}

fn accept_batch(max_connections: usize) -> usize {
    (max_connections / 8).clamp(1, ACCEPT_BATCH)
}

/// The number of connections that the limit of descriptors allows.
fn max_connections() -> usize {
    let descriptors = descriptor_limit().saturating_sub(OTHER_DESCRIPTORS);
    let connections = descriptors / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(connections.clamp(16, MAX_CONNECTIONS)).unwrap_or(16)
}
