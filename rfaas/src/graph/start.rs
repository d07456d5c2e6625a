//! Starting the executors of a graph, and introducing their workers to each other.
//!
//! ```text
//!   each lease: claim ──▶ executor dials ──Listening──▶ all are there: each is told its parts ──▶ workers dial
//!                                                        each other, and the client ──▶ functions are named
//! ```
//! * All of them are there or none: if one fails, the connections to all are dropped, at which they exit.
//! * Anyone may dial. A peer that does not show the secret of an executor or of a link is refused.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{Access, CompletionQueue, ConnectRequest, Domain, Listener};
use rfaas_call::edge::{InLink, Link, OutLink, arrival_queue};
use rfaas_config::OpenDevice;
use rfaas_protocol::allocation::Serves;
use rfaas_protocol::channel::refuse;
use rfaas_protocol::edge::{EdgeHello, EdgeShape};
use rfaas_protocol::session::{
    CodeFrom, EdgeHere, EdgeIn, EdgeOut, ExecutorHello, InputOfClient, Part, ToExecutor,
    WorkerHello,
};
use rfaas_protocol::{Empty, Hello, Malformed, Role, Secret, Text, parse_prefix};

use super::description::Graph;
use super::layout::{Layout, PartLayout, Told, WorkerLayout};
use super::links::Links;
use super::workers::{Member, Workers};
use crate::deployment::{Deployment, Phases};
use crate::dialled::{DialledExecutor, failed};
use crate::error::{Error, Result};
use crate::held_lease::HeldLease;
use crate::lease_core::{Claim, LeaseUse};
use crate::library::Library;
use crate::request::ExecutorRequest;
use crate::session::{poll_manager, sleep_on, wait_for_exit, wire};

/// Longest sleep while an executor has not taken all that it is told, which rings no bell.
const NAP: Duration = Duration::from_millis(1);
/// Longest sleep before it is looked whether all of this is to stop.
const LOOK: Duration = Duration::from_millis(20);

/// What a graph is started from.
pub(super) struct Means<'a> {
    pub(super) graph: &'a Graph,
    pub(super) layout: &'a Layout,
    pub(super) deployment: &'a Deployment,
    /// By worker.
    pub(super) libraries: &'a [Arc<Library>],
    pub(super) leases: &'a [Arc<HeldLease>],
    /// Of all inputs.
    pub(super) domain: &'a Domain,
    pub(super) device: &'a OpenDevice,
    /// Nobody wants it any more.
    pub(super) stop: &'a AtomicBool,
}

impl Means<'_> {
    /// Says which function could not be started, and where.
    fn not_started(&self, member: usize, source: Error) -> Error {
        let function = self.layout.workers.get(member).map(WorkerLayout::function);
        let function = function.and_then(|function| self.graph.functions.get(function));
        let function = function.map(|function| function.name.clone());
        let node = self.leases.get(member).map(|lease| lease.node().to_owned());
        Error::GraphNotStarted {
            function: function.unwrap_or_default(),
            node: node.unwrap_or_default(),
            source: Box::new(source),
        }
    }
}

/// What there is of the executor of a worker.
struct Starting<'a> {
    session: Secret,
    state: MutexGuard<'a, LeaseUse>,
    control: Option<DialledExecutor>,
    /// Its part was made, and what of that it has not taken yet.
    told: bool,
    to_tell: VecDeque<ToExecutor>,
    /// To its worker, until that has dialled.
    unconnected: Option<OutLink>,
    worker: Option<OutLink>,
}

/// What there is of a link to the client.
struct StartingOutput {
    secret: Secret,
    link: InLink,
    connected: bool,
}

/// Starts all executors, within the deployment's limit.
pub(super) fn start(means: &Means<'_>) -> Result<Workers> {
    let Means { graph, layout, deployment, leases, device, .. } = *means;
    let deadline = Instant::now() + deployment.start_timeout;
    let mut listener = device.device.listen(device.entry.port)?;
    let links = Links::of(layout, deployment.slots);
    let of_client: Vec<_> =
        links.to_client.iter().map(|(_, ends)| of_ends(layout, deployment, ends)).collect();
    let arrivals = arrival_queue(&device.device, &of_client, leases.len())?;
    let mut outputs = make_outputs(means, of_client, &arrivals)?;
    let input = shape(deployment, graph.input_bytes());
    let bytes = usize::try_from(input.all_bytes()).unwrap_or(usize::MAX);
    let inputs = means.domain.allocate(bytes, Access::empty())?;
    let mut starting = claim_all(means, &listener, &arrivals, deadline)?;
    let secrets: Vec<_> = (0..links.count).map(|_| Secret::generate()).collect();
    let introducing = Introducing { links: &links, secrets: &secrets };
    let started =
        assemble(means, (introducing, &mut listener), &mut starting, &mut outputs, deadline);
    for starting in &mut starting {
        starting.state.deployed = started.is_ok();
    }
    started?;
    let mut members = Vec::with_capacity(leases.len());
    let mut to_workers = Vec::with_capacity(leases.len());
    for ((layout, lease), starting) in layout.workers.iter().zip(leases).zip(starting) {
        let (Some(control), Some(worker)) = (starting.control, starting.worker) else {
            return Err(Error::Invalid("a graph is started when all of it is there"));
        };
        lease.core.wake_at_end(arrivals.waker());
        let (lease, _control) = (lease.core.clone(), control.finish().0);
        let functions = layout.parts.iter().map(|part| part.function).collect();
        members.push(Member { functions, worker: layout.member(), lease, _control });
        to_workers.push(worker);
    }
    let sources = layout.sources.clone();
    let from = links.to_client.iter().map(|(worker, _)| *worker).collect();
    let outputs = outputs.into_iter().map(|output| output.link).collect();
    let ends = links.ends;
    Ok(Workers { members, to_workers, sources, inputs, input, outputs, from, ends, arrivals })
}

fn shape(deployment: &Deployment, bytes: usize) -> EdgeShape {
    EdgeShape { slots: deployment.slots, bytes: wire(bytes) }
}

fn made((what, error): (&'static str, rdmalib::Error)) -> Error {
    tracing::debug!(what, %error, "cannot be made");
    error.into()
}

/// Returns the edges of a link to the client.
fn of_ends(layout: &Layout, deployment: &Deployment, ends: &[usize]) -> Link {
    Link::new(ends.iter().map(|end| (*end, shape(deployment, layout.ends[*end].bytes))))
}

fn make_outputs(
    means: &Means<'_>,
    links: Vec<Link>,
    arrivals: &CompletionQueue,
) -> Result<Vec<StartingOutput>> {
    let outputs = links.into_iter().enumerate().map(|(number, edges)| {
        let link = InLink::new(&means.device.device, number, edges, arrivals).map_err(made)?;
        Ok(StartingOutput { secret: Secret::generate(), link, connected: false })
    });
    outputs.collect()
}

/// Has the managers of all leases start an executor each, at the same time.
fn claim_all<'a>(
    means: &Means<'a>,
    listener: &Listener,
    arrivals: &CompletionQueue,
    deadline: Instant,
) -> Result<Vec<Starting<'a>>> {
    let client = listener.local_addr();
    let claims = means.leases.iter().enumerate().map(|(worker, lease)| {
        let (session, request) = request(means, worker, client);
        let shape = shape(means.deployment, means.layout.workers[worker].of_client.unwrap_or(0));
        let edges = Link::new([(0, shape)]);
        let link = OutLink::new(&means.device.device, means.domain, worker, edges, arrivals);
        Ok((lease, session, request, link.map_err(made)?))
    });
    let claims = claims.collect::<Result<Vec<_>>>()?;
    let claimed: Vec<_> = thread::scope(|scope| {
        let claiming = claims.iter().map(|(lease, _, request, _)| {
            let claim = move || claim(lease, request, deadline);
            thread::Builder::new().name("rfaas-claim".into()).spawn_scoped(scope, claim)
        });
        let claiming: Vec<_> = claiming.collect();
        // All are waited for, also after an error.
        let claimed = claiming.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join(),
            Err(source) => Ok(Err(rdmalib::Error::Os { call: "clone", source }.into())),
        });
        claimed.collect()
    });
    let starting = claims.into_iter().zip(claimed).enumerate();
    let starting = starting.map(|(member, ((lease, session, _, link), claimed))| {
        claimed
            .unwrap_or(Err(Error::Invalid("a thread that claims a lease panicked")))
            .map_err(|error| means.not_started(member, error))?;
        Ok(Starting {
            session,
            state: lease.lock(),
            control: None,
            told: false,
            to_tell: VecDeque::new(),
            unconnected: Some(link),
            worker: None,
        })
    });
    starting.collect()
}

fn request(means: &Means<'_>, worker: usize, client: SocketAddr) -> (Secret, ExecutorRequest) {
    let Means { layout, deployment, libraries, .. } = *means;
    let session = Secret::generate();
    let (input, output) = layout.workers[worker].bytes;
    let library = &libraries[worker];
    let request = ExecutorRequest {
        client,
        session,
        spin: deployment.spin,
        input_bytes: wire(input.max(1)),
        output_bytes: wire(output.max(1)),
        code_bytes: wire(library.code.len()),
        code_hash: library.hash,
        slots: deployment.slots,
        serves: Serves::Graph,
    };
    (session, request)
}

/// Has the manager of `lease` start an executor. From then on the lease is kept alive, however long others take.
fn claim(lease: &HeldLease, request: &ExecutorRequest, deadline: Instant) -> Result<()> {
    let mut state = lease.lock();
    state.deployed = false;
    let (device, spares) = (lease.device(), lease.spares());
    let replace: &dyn Fn(&[_], _) -> _ = &|candidates, because| lease.replace(candidates, because);
    let connection: &dyn Fn() -> _ = &|| spares.connection(device);
    let meanwhile: &dyn Fn() = &|| {};
    let claim = Claim { device, request, deadline, replace, connection, meanwhile };
    let (id, node) = state.start_executor(&claim, &mut Phases::default())?;
    tracing::info!(lease = %id, "lease claimed for a graph");
    if let Some(node) = &node {
        lease.claimed(id, node);
        lease.keep_alive(&mut state);
    }
    Ok(())
}

/// Brings all together.
fn assemble(
    means: &Means<'_>,
    (introducing, listener): (Introducing<'_>, &mut Listener),
    starting: &mut [Starting<'_>],
    outputs: &mut [StartingOutput],
    deadline: Instant,
) -> Result<()> {
    loop {
        if means.stop.load(Ordering::Relaxed) {
            return Err(Error::Invalid("the graph was dropped while it started"));
        }
        let mut wake_at = deadline.min(Instant::now() + LOOK);
        for (member, one) in starting.iter_mut().enumerate() {
            let heard_by = look(one).map_err(|error| means.not_started(member, error))?;
            wake_at = heard_by.map_or(wake_at, |at| at.min(wake_at));
        }
        introduce(means, (introducing, listener.local_addr()), starting, outputs);
        for (member, one) in starting.iter_mut().enumerate() {
            if !tell(one).map_err(|error| means.not_started(member, error))? {
                wake_at = wake_at.min(Instant::now() + NAP);
            }
        }
        let dialled = starting.iter().all(|one| one.control.is_some() && one.worker.is_some())
            && outputs.iter().all(|output| output.connected);
        if dialled && starting.iter().all(|one| is_loaded(one)) {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            let (after, missing) =
                (means.deployment.start_timeout, missing(means, starting, outputs));
            return Err(Error::StartTimeout { after, missing });
        }
        if !dialled && let Some(request) = listener.try_next()? {
            admit(means, request, starting, outputs)?;
            continue;
        }
        let of_executors = starting.iter_mut().flat_map(|one| {
            let Starting { state, control, .. } = one;
            let manager = state.manager().map(|manager| (*manager).as_fd());
            [manager, control.as_ref().map(AsFd::as_fd)]
        });
        let dialling = (!dialled).then(|| listener.as_fd());
        let descriptors = of_executors.flatten().chain(dialling);
        sleep_on(descriptors, wake_at.saturating_duration_since(now))?;
        for control in starting.iter_mut().filter_map(|one| one.control.as_mut()) {
            control.acknowledge()?;
        }
    }
}

/// Reads what executor and manager have said, so that what they say later ends a sleep. Returns when to look again.
fn look(one: &mut Starting<'_>) -> Result<Option<Instant>> {
    let (exit, heard_by) = poll_manager(&mut one.state)?;
    let mut lives = true;
    if let Some(control) = &mut one.control {
        control.arm()?;
        lives = control.read()?;
    }
    match (exit, lives) {
        (Some(exit), _) => Err(Error::StartFailed(exit)),
        (None, false) => Err(Error::StartFailed(wait_for_exit(&mut one.state)?)),
        (None, true) => Ok(heard_by),
    }
}

/// Tells an executor what it is to be told, as far as it takes that now. Returns whether that is all.
fn tell(one: &mut Starting<'_>) -> Result<bool> {
    let Some(control) = &mut one.control else { return Ok(true) };
    while let Some(message) = one.to_tell.front() {
        if !control.tell(message)? {
            return Ok(false);
        }
        one.to_tell.pop_front();
    }
    Ok(true)
}

fn is_loaded(one: &Starting<'_>) -> bool {
    one.control.as_ref().is_some_and(|control| control.loaded_in().is_some())
}

/// Returns what is waited for, in words.
fn missing(means: &Means<'_>, starting: &[Starting<'_>], outputs: &[StartingOutput]) -> String {
    let count = |what: fn(&Starting<'_>) -> bool| starting.iter().filter(|one| what(one)).count();
    let of = starting.len();
    let executors = count(|one| one.control.is_some());
    let workers = count(|one| one.worker.is_some());
    let ends = outputs.iter().filter(|output| output.connected).count();
    let loaded = count(is_loaded);
    // The first that is behind the others: they wait for it.
    let steps: [fn(&Starting<'_>) -> bool; 3] =
        [|one| one.control.is_some(), |one| one.worker.is_some(), is_loaded];
    let first = steps.iter().find_map(|step| starting.iter().position(|one| !step(one)));
    let first = first.map_or_else(String::new, |member| {
        let function = means.layout.workers[member].function();
        let function = &means.graph.functions[function].name;
        format!("; waited for: {function:?} on node {}", means.leases[member].node())
    });
    let outputs = outputs.len();
    format!(
        "{executors} of {of} executors and {workers} workers have connected, {ends} of {outputs} have connected their outputs, and {loaded} \
         have loaded their library{first}"
    )
}

/// Admits who dials, or refuses it.
fn admit(
    means: &Means<'_>,
    request: ConnectRequest,
    starting: &mut [Starting<'_>],
    outputs: &mut [StartingOutput],
) -> Result<()> {
    let why = match identify(request.private_data(), starting, outputs) {
        Ok(Dialler::Executor(one, hello, code_from)) => {
            let lease = &means.leases[one];
            let channel = lease.spares().control(means.device).map_err(failed)?;
            let library = &means.libraries[one];
            starting[one].control =
                DialledExecutor::accept(channel, request, (&hello, code_from), library)?;
            return Ok(());
        }
        Ok(Dialler::Worker(one, hello)) => {
            if let Some(mut link) = starting[one].unconnected.take() {
                link.accept(request, &hello).map_err(|error| {
                    tracing::debug!(%error, "a worker is gone again");
                    Error::WorkerLost { reason: "it was gone when it was accepted" }
                })?;
                starting[one].worker = Some(link);
            }
            return Ok(());
        }
        Ok(Dialler::Output(output)) => {
            // If it is gone again, so is its worker, of which the manager tells.
            outputs[output].connected = outputs[output].link.accept(request).is_ok();
            return Ok(());
        }
        Err(why) => why,
    };
    tracing::debug!(peer = request.peer(), why, "connection refused");
    refuse(request, &why);
    Ok(())
}

/// A peer that showed a secret.
enum Dialler {
    Executor(usize, ExecutorHello, CodeFrom),
    Worker(usize, WorkerHello),
    Output(usize),
}

/// Returns which peer dialled, or why it is refused.
fn identify(
    private_data: &[u8],
    starting: &[Starting<'_>],
    outputs: &[StartingOutput],
) -> Result<Dialler, String> {
    let text = |malformed: Malformed| malformed.to_string();
    let of = |session: Secret| {
        let at = starting.iter().position(|one| one.session == session);
        at.ok_or_else(|| String::from("wrong session secret"))
    };
    let (role, body) = Hello::parse(private_data).map_err(text)?;
    match role {
        Role::Executor => {
            let hello: ExecutorHello = parse_prefix(body).map_err(text)?;
            let code_from = CodeFrom::from_wire(hello.code_from).map_err(text)?;
            let one = of(hello.session)?;
            match starting[one].control {
                Some(_) => Err("the executor is connected already".into()),
                None => Ok(Dialler::Executor(one, hello, code_from)),
            }
        }
        Role::Worker => {
            let hello: WorkerHello = parse_prefix(body).map_err(text)?;
            let one = of(hello.session)?;
            match (&starting[one].unconnected, hello.worker.get()) {
                (Some(link), 0) => match offers(&hello, link.edges().only_shape()) {
                    true => Ok(Dialler::Worker(one, hello)),
                    false => Err("its slots are not those that it was told of".into()),
                },
                (None, 0) => Err("worker 0 is connected already".into()),
                (_, other) => Err(format!("there is no worker {other} in this lease")),
            }
        }
        Role::Edge => {
            let hello: EdgeHello = parse_prefix(body).map_err(text)?;
            let at = outputs.iter().position(|output| output.secret == hello.secret);
            match at {
                Some(at) if !outputs[at].connected => Ok(Dialler::Output(at)),
                Some(_) => Err("this link is connected already".into()),
                None => Err("wrong secret of a link".into()),
            }
        }
        _ => Err("this client waits for the executors of a graph".into()),
    }
}

/// Returns whether a worker has the slots that are written to.
fn offers(hello: &WorkerHello, shape: Option<EdgeShape>) -> bool {
    let stride = u64::from(hello.slot_stride.get());
    shape.is_some_and(|shape| (hello.slots.get(), stride) == (shape.slots, shape.stride()))
}

/// Tells each executor the part of its worker, once all of them have said where that is dialled.
fn introduce(
    means: &Means<'_>,
    (introducing, client): (Introducing<'_>, SocketAddr),
    starting: &mut [Starting<'_>],
    outputs: &[StartingOutput],
) {
    if starting.iter().all(|one| one.told) {
        return;
    }
    let listening = starting.iter().map(|one| one.control.as_ref()?.listening());
    let Some(addresses) = listening.collect::<Option<Vec<_>>>() else { return };
    let around = Around { introducing, addresses: &addresses, client, outputs };
    for (worker, one) in starting.iter_mut().enumerate() {
        for part in &means.layout.workers[worker].parts {
            one.to_tell.push_back(ToExecutor::Part(described(means.graph, part)));
            one.to_tell.extend(part.told.iter().map(|told| around.message(told)));
        }
        one.to_tell.push_back(ToExecutor::Complete(Empty {}));
        one.told = true;
    }
}

/// Returns the description of a part. Workers have one thread each: all parts are of the first.
fn described(graph: &Graph, part: &PartLayout) -> Part {
    let described = &graph.functions[part.function];
    let number = |number: usize| u16::try_from(number).expect("checked: no more workers than that");
    let (join, wanted) = described.join.to_wire();
    let within = described.within.map_or(0, |within| within.as_millis());
    let (batch, wait) = described.batch.unwrap_or_default();
    Part {
        worker: 0.into(),
        function: number(part.function).into(),
        member: number(part.member).into(),
        members: number(described.workers).into(),
        join: join.to_wire(),
        wanted: u16::try_from(wanted).expect("checked: no more than inputs").into(),
        takes: part.takes.to_wire(),
        batch: number(batch).into(),
        within_ms: u32::try_from(within).expect("checked: not that long").into(),
        batch_wait_us: u32::try_from(wait.as_micros()).expect("checked likewise").into(),
        name: Text::new(&described.name).expect("checked: the library has it"),
    }
}

/// How workers are connected with each other and with the client.
#[derive(Clone, Copy)]
struct Introducing<'a> {
    links: &'a Links,
    /// By link between workers.
    secrets: &'a [Secret],
}

/// Where everything is.
struct Around<'a> {
    introducing: Introducing<'a>,
    /// By worker.
    addresses: &'a [SocketAddr],
    client: SocketAddr,
    outputs: &'a [StartingOutput],
}

impl Around<'_> {
    /// Returns what a worker is told.
    fn message(&self, told: &Told) -> ToExecutor {
        let number_of = |number: usize| {
            let number = u16::try_from(number).expect("checked: no more edges than that");
            zerocopy::little_endian::U16::new(number)
        };
        let Introducing { links, secrets } = self.introducing;
        match *told {
            Told::Input { bytes } => {
                ToExecutor::InputOfClient(InputOfClient { bytes: wire(bytes).into() })
            }
            Told::EdgeIn { edge, bytes, kind } => ToExecutor::EdgeIn(EdgeIn {
                secret: secrets[links.edges[edge].link],
                bytes: wire(bytes).into(),
                kind: kind.to_wire(),
                on_link: links.edges[edge].edge.into(),
            }),
            Told::EdgeHere { from, number, bytes, kind } => ToExecutor::EdgeHere(EdgeHere {
                from: number_of(from),
                edge: number_of(number),
                bytes: wire(bytes).into(),
                kind: kind.to_wire(),
            }),
            Told::EdgeOut { edge, worker, number, bytes, kind } => ToExecutor::EdgeOut(EdgeOut {
                to: self.addresses[worker].into(),
                secret: secrets[links.edges[edge].link],
                bytes: wire(bytes).into(),
                edge: number_of(number),
                kind: kind.to_wire(),
                on_link: links.edges[edge].edge.into(),
            }),
            Told::ToClient { end, number, bytes, kind } => ToExecutor::EdgeOut(EdgeOut {
                to: self.client.into(),
                secret: self.outputs[links.ends[end].link].secret,
                bytes: wire(bytes).into(),
                edge: number_of(number),
                kind: kind.to_wire(),
                on_link: links.ends[end].edge.into(),
            }),
        }
    }
}
