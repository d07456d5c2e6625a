//! The loop: one thread owns everything, waits for whatever comes first, and lets
//! [`Allocations`] decide.
//!
//! ```text
//!   signals, listener, clients, executors, resource manager, deadlines ──▶ events ─▶ Allocations ─▶ actions
//!        ▲ poll(2) until the next deadline                                                             │
//!        └─────────────────────────────────────────────────────────────────── processes, messages ◀────┘
//! ```
//! * A pass that made a connection is followed by another one, since that connection was not there to be
//!   armed.
//! * News of the resource manager are applied before messages of clients that were taken earlier, so a lease
//!   never arrives before the registration that allowed it.
//!
//! Elsewhere: how the loop waits (`rfaas_program::poll_loop`), its end (`stop`).

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use rdmalib::ConnectRequest;
use rfaas_program::describe;
use rfaas_program::log::MEASURED;
use rfaas_program::poll_loop::{
    Acceptor, Bell, Idle, Pass, PollLoop, Sources, WaitError, Wakeups, run,
};
use rfaas_protocol::Capacity;
use rfaas_protocol::accounting::AccountingHello;
use rfaas_protocol::allocation::{
    Allocate, ClaimHello, FromClient, RefusedBecause, Renew, ToClient,
};
use rfaas_protocol::channel::refuse;
use rfaas_protocol::lease::{EndReason, LeaseId};
use rfaas_protocol::node::LeaseEnded;
use rfaas_protocol::{Hello, Malformed, Role, parse_prefix};

use crate::Error;
use crate::allocations::{Action, Allocations, ClientId, Event};
use crate::cache::{Cache, FillingId};
use crate::clients::{Clients, Heard};
use crate::executors::Executors;
use crate::lease_log::LeaseLog;
use crate::request::{Authority, Deployment, Opening, RequestRefusal};
use crate::signals::Signals;
use crate::upstream::{DialError, News, Upstream};

mod stop;
pub use stop::Stopping;

/// Connections taken before everybody else has a turn.
pub const ACCEPT_BATCH: usize = 32;

/// Something that the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// SIGINT, SIGTERM, SIGHUP, SIGCHLD.
    Signals,
    /// Helper threads.
    Bell,
    /// Connections.
    Listener,
    /// The resource manager.
    Upstream,
    /// Clients.
    Clients,
    /// An executor that fills a library's file.
    Filling(FillingId),
    /// The end of an executor, or what starts them.
    Executors,
}

/// What the loop is made of; put together by [`run`](crate::run).
#[derive(Debug)]
pub struct Manager {
    /// Clients first: fields drop in order, and executors go with their leases.
    pub clients: Clients,
    /// What is logged of leases.
    pub lease_log: LeaseLog,
    /// The processes.
    pub executors: Executors,
    /// The libraries that are kept.
    pub cache: Cache,
    /// The resource manager, unless this node leases without one.
    pub upstream: Option<Upstream>,
    /// Where clients and executors connect.
    pub acceptor: Acceptor,
    /// Decides who holds what.
    pub allocations: Allocations,
    /// Decides whose tokens count.
    pub authority: Authority,
    /// SIGINT, SIGTERM, SIGHUP, SIGCHLD.
    pub signals: Signals,
    /// Rung by helper threads.
    pub bell: Bell,
    /// Whether to sleep while nothing happens.
    pub idle: Idle,
    /// How long leases may last after the first signal.
    pub drain: Duration,
    /// Set by the first signal.
    pub stopping: Option<Stopping>,
    /// Children that this manager did not start may be waiting to be reaped.
    pub strangers: bool,
    /// The number of SIGINTs that came.
    pub interrupts: u32,
}

impl Manager {
    /// Runs until a signal stops it.
    pub fn run(mut self) -> Result<(), Error> {
        let idle = self.idle;
        run(&mut self, idle)
    }

    /// Does everything that can be done now; returns whether there was anything. `any_ended`: each executor may have
    /// ended, and not only those of which that is known.
    fn work(&mut self, any_ended: bool) -> Result<bool, Error> {
        let now = Instant::now();
        let mut events = VecDeque::new();
        let seen = self.signals.take().map_err(|errno| Error::os("reading signals", errno))?;
        if seen.stop {
            self.stop(seen.interrupts, now, &mut events)?;
        }
        self.bell.silence();
        let mut worked = seen.stop || seen.child;
        worked |= self.cache.work(); // before clients: one of them may have waited for it
        worked |= self.take_connections(now);
        let heard = self.clients.receive(now);
        worked |= !heard.is_empty();
        worked |= self.take_news(now, &mut events)?; // before the messages of clients
        self.process(&mut events);
        for heard in heard {
            match heard {
                Heard::Message(client, message) => self.take_message(client, message, &mut events),
                Heard::Gone(client) => events.push_back(Event::ClientGone(client)),
            }
            self.process(&mut events); // one by one: answers keep the order of the questions
        }
        let any_ended = self.executors.tick(now) || any_ended;
        for (lease, reason) in self.executors.give_up_not_started(now) {
            if self.lease_log.admit(now, lease) {
                tracing::error!(name: MEASURED, %lease, "{reason}");
            }
            events.push_back(Event::GivenUp { lease, reason });
        }
        if any_ended || seen.child || self.executors.knows_of_ends() {
            events.extend(self.executors.reap(any_ended).into_iter().map(|gone| {
                if self.lease_log.admit(now, gone.lease) {
                    tracing::info!(name: MEASURED, lease = %gone.lease, exit = ?gone.exit, "executor is gone");
                }
                match gone.not_started {
                    Some(reason) if self.lease_log.admit(now, gone.lease) => {
                        tracing::error!(name: MEASURED, lease = %gone.lease, "{reason}");
                        Event::StartFailed { lease: gone.lease, reason }
                    }
                    Some(reason) => Event::StartFailed { lease: gone.lease, reason },
                    None => Event::Exited { lease: gone.lease, exit: gone.exit, usage: gone.usage },
                }
            }));
            self.strangers = true;
        }
        if self.strangers {
            self.strangers = self.executors.reap_strangers();
            worked |= self.strangers;
        }
        worked |= self.answer_questions(now, &mut events);
        worked |= !events.is_empty();
        events.push_back(Event::Time);
        self.process(&mut events);
        for (peer, lines) in self.lease_log.due(now) {
            tracing::warn!(
                ?peer,
                "{lines} lines about leases and executors of one peer were dropped: too many"
            );
        }
        self.clients.note_leases(now, |client| self.allocations.lease_of(client).is_some());
        Ok(worked)
    }

    /// Lets events have their effects, and the events that come of those.
    fn process(&mut self, events: &mut VecDeque<Event>) {
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            if let Event::ClientGone(client) = &event {
                self.executors.outputs().forget(*client);
            }
            self.allocations.apply(Instant::now(), event, &mut actions);
            for action in actions.drain(..) {
                self.perform(action, events);
            }
        }
    }

    fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        let now = Instant::now();
        match action {
            Action::Tell(client, message) => {
                tracing::trace!(client = client.0, ?message, "answered");
                if !self.clients.tell(client, &message) {
                    events.push_back(Event::ClientGone(client));
                }
            }
            Action::Start { lease, client, deployment, workers, memory, pins } => {
                let origin = self.clients.origin(client);
                self.lease_log.belongs(lease, origin);
                self.executors.outputs().keep(client, lease.get());
                let logged = self.lease_log.admit(now, lease);
                let is_signed = self.upstream.is_some();
                let library = self.executors.preloaded(&deployment);
                let library =
                    library.unwrap_or_else(|| self.cache.open(&deployment, origin, is_signed));
                match self.executors.start(lease, &deployment, library, (workers, memory), pins) {
                    Ok(pid) => {
                        if logged {
                            tracing::info!(name: MEASURED, %lease, client = client.0, pid, workers, "executor started");
                        }
                        events.push_front(Event::Started(lease));
                    }
                    Err(reason) => {
                        if logged {
                            tracing::error!(name: MEASURED, %lease, "{reason}");
                        }
                        events.push_front(Event::StartFailed { lease, reason }); // the lease may go on
                    }
                }
            }
            Action::Stop(lease) => self.executors.stop(lease, now),
            Action::Claimed(terms) => {
                let lease = LeaseId::new(terms.lease.get());
                if lease.is_some_and(|lease| self.lease_log.admit(now, lease)) {
                    tracing::info!(name: MEASURED,
                        lease = terms.lease.get(), client = ?terms.client,
                        cores = terms.cores.get(), memory = terms.memory.get(), "lease claimed"
                    );
                }
                if let Some(upstream) = &mut self.upstream {
                    upstream.claimed(&terms);
                }
            }
            Action::Ended(ended) => {
                if let Some(lease) = LeaseId::new(ended.terms.lease.get()) {
                    if self.lease_log.admit(now, lease) {
                        log_bill(&ended);
                    }
                    self.lease_log.ended(lease);
                }
                if let Some(upstream) = &mut self.upstream {
                    upstream.ended(ended);
                }
            }
        }
    }

    fn take_message(
        &mut self,
        client: ClientId,
        message: FromClient,
        events: &mut VecDeque<Event>,
    ) {
        let event = match message {
            FromClient::Allocate(allocate) => self.claim(client, &allocate),
            FromClient::Renew(renew) => self.renewal(client, &renew),
            FromClient::Release(_) => Ok(Event::Release(client)),
            FromClient::Heartbeat(_) => return, // that it came is all there is to it
            FromClient::ReadOutput(read) => {
                match self.executors.outputs().ask(Instant::now(), client, read.from.get()) {
                    true => return, // it is answered when everything was read
                    false => Err(RequestRefusal::no_lease()),
                }
            }
        };
        match event {
            Ok(event) => events.push_back(event),
            Err(refusal) => {
                tracing::debug!(client = client.0, reason = refusal.reason, "refused");
                self.perform(Action::Tell(client, refusal.message()), events);
            }
        }
    }

    fn claim(&self, client: ClientId, allocate: &Allocate) -> Result<Event, RequestRefusal> {
        let opening = self.clients.opening(client).unwrap_or(&Opening::Old);
        let time_left = self.authority.admit_claim(allocate, opening, self.time())?;
        let terms = allocate.signed.terms;
        let bad =
            |wrong: Malformed| RequestRefusal::new(RefusedBecause::BadRequest, wrong.to_string());
        let deployment = Deployment::try_from(allocate).map_err(bad)?;
        Ok(Event::Claim { client, terms, time_left, deployment })
    }

    /// A renewal of the lease that this connection holds; its holder was proved with its claim.
    fn renewal(
        &self,
        client: ClientId,
        Renew { signed, clock }: &Renew,
    ) -> Result<Event, RequestRefusal> {
        let held = self.allocations.lease_of(client);
        let time_left = self.authority.admit(signed, *clock, held, self.time())?;
        Ok(Event::Renew { client, terms: signed.terms, time_left })
    }

    /// Tells clients what their functions have written; returns whether there was something to tell.
    fn answer_questions(&mut self, now: Instant, events: &mut VecDeque<Event>) -> bool {
        let answers = self.executors.outputs().answers(now);
        let any = !answers.is_empty();
        for (client, part) in answers {
            if !self.clients.tell(client, &ToClient::OutputPart(part)) {
                events.push_back(Event::ClientGone(client));
            }
        }
        any
    }

    /// The time by the clock that leases end by.
    fn time(&self) -> SystemTime {
        let upstream = self.upstream.as_ref();
        upstream.map_or_else(SystemTime::now, |upstream| upstream.time(Instant::now()))
    }

    fn take_connections(&mut self, now: Instant) -> bool {
        let mut taken = 0;
        while let Some(request) = self.acceptor.next(now, taken) {
            taken += 1;
            self.connect(request, now);
        }
        taken > 0
    }

    fn connect(&mut self, request: ConnectRequest, now: Instant) {
        let hello = Hello::parse(request.private_data()).and_then(|(role, body)| {
            let accounting = role == Role::Accounting;
            let secret = accounting.then(|| parse_prefix::<AccountingHello>(body)).transpose()?;
            Ok::<_, Malformed>((role, secret, parse_prefix::<ClaimHello>(body).ok()))
        });
        match hello {
            Ok((Role::Allocation, _, hello)) => {
                let (opening, proof) =
                    self.authority.answer(hello, self.acceptor.listener().local_addr());
                self.clients.accept(request, opening, &proof, now);
            }
            Ok((Role::Accounting, Some(hello), _)) => self.executors.accept(hello.secret, request),
            Ok((Role::Lease, ..)) => {
                turn_away(
                    request,
                    "this is an executor manager: leases are granted by the resource manager",
                );
            }
            Ok(_) => turn_away(request, "this is an executor manager"),
            Err(error) => turn_away(request, &error.to_string()),
        }
    }

    fn take_news(&mut self, now: Instant, events: &mut VecDeque<Event>) -> Result<bool, Error> {
        let Some(upstream) = &mut self.upstream else { return Ok(false) };
        let news = upstream.pump(now);
        let any = !news.is_empty();
        for news in news {
            match news {
                News::Reached => {} // work enough not to sleep before it is armed (it was not there to be armed)
                News::Registered { cores, memory, leaves_at } => {
                    self.executors.set_leaving(leaves_at);
                    events.push_back(Event::Capacity(Capacity { cores, memory }));
                    self.allocations.in_use().for_each(|terms| upstream.claimed(terms));
                }
                News::EndLease { lease, reason, grace } => {
                    tracing::info!(
                        %lease, reason = reason.name(), grace_ms = grace.as_millis(),
                        "the resource manager ends a lease"
                    );
                    events.push_back(Event::End { lease, reason, grace });
                }
                News::UsedIsDue => {
                    let counted = |lease| self.executors.usage(lease);
                    upstream.used(self.allocations.used(now, counted));
                }
                News::NeverReached(error) => {
                    let why = format!("cannot reach the resource manager: {}", describe(&error));
                    return Err(match error {
                        DialError::Address(_) => Error::Start(why),
                        _ => Error::Unreachable(why),
                    });
                }
            }
        }
        Ok(any)
    }
}

impl PollLoop for Manager {
    type Source = Source;
    type Error = Error;

    fn arm(&mut self) {
        self.clients.arm();
        if let Some(upstream) = &mut self.upstream {
            upstream.arm();
        }
    }

    /// Serves all clients, whichever had news: there are few.
    fn pass(&mut self, wakeups: Wakeups<Source>) -> Result<Pass, Error> {
        let worked = self.work(wakeups == Wakeups::All)?;
        Ok(match (self.stopped()?, worked) {
            (true, _) => Pass::Stop,
            (false, true) => Pass::Again,
            (false, false) => Pass::Done,
        })
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a, Source>) {
        sources.add(Source::Signals, self.signals.as_fd());
        sources.add(Source::Bell, self.bell.as_fd());
        self.acceptor.add_to(Source::Listener, sources);
        if let Some(descriptor) = self.upstream.as_ref().and_then(Upstream::descriptor) {
            sources.add(Source::Upstream, descriptor);
        }
        sources.add(Source::Clients, self.clients.descriptor());
        for descriptor in self.executors.descriptors() {
            sources.add(Source::Executors, descriptor);
        }
        for (filling, descriptor) in self.cache.descriptors() {
            sources.add(Source::Filling(filling), descriptor);
        }
    }

    fn acknowledge(&mut self, source: Source) {
        match source {
            // Each pass takes them.
            Source::Signals | Source::Bell | Source::Listener => {}
            Source::Filling(_) => {}
            Source::Executors => self.executors.acknowledge(),
            Source::Upstream => self.upstream.iter_mut().for_each(Upstream::acknowledge),
            Source::Clients => self.clients.acknowledge(),
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let stopping = self.stopping.as_ref().map(Stopping::deadline);
        let upstream = self.upstream.as_ref().and_then(|upstream| upstream.next_deadline(now));
        [
            self.allocations.next_deadline(),
            self.executors.next_deadline(),
            self.executors.outputs().next_deadline(),
            self.clients.next_deadline(),
            self.lease_log.next_deadline(),
            self.acceptor.paused_until(),
            stopping,
            upstream,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Waiting for events failed.
impl From<WaitError> for Error {
    fn from(WaitError(errno): WaitError) -> Self {
        Error::os("waiting for events", errno)
    }
}

fn turn_away(request: ConnectRequest, why: &str) {
    tracing::warn!(peer = request.peer(), why, "connection refused");
    refuse(request, why);
}

fn log_bill(ended: &LeaseEnded) {
    let ms = |ns: u64| ns as f64 / 1e6;
    tracing::info!(
        name: MEASURED,
        lease = ended.terms.lease.get(),
        reason = EndReason::from_wire(ended.reason).map_or("unknown", EndReason::name),
        allocated_ms = ms(ended.bill.allocated_ns.get()),
        hot_polling_ms = ms(ended.bill.hot_polling_ns.get()),
        execution_ms = ms(ended.bill.execution_ns.get()),
        invocations = ended.bill.invocations.get(),
        "lease ended"
    );
}
