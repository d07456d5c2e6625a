//! A worker of a graph: its edges, made and connected before any foreign code runs.
//!
//! Elsewhere: what it does then (`rfaas_call::edge`), who dials it (`introductions`), what it is for (`parts`).

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rdmalib::{CompletionQueue, Device, Domain};
use rfaas_call::callee::Layout;
use rfaas_call::edge::{Hop, InLink, Link, OutLink, StageMemory, arrival_queue};
use rfaas_protocol::edge::EdgeShape;

use crate::dial::{DialError, dial, dial_client};
use crate::introductions::Expected;
use crate::library::{GuardedMemory, Library};
use crate::parts::{Edge, LinkPlan, NamedStage, Source, Work};
use crate::plan::{PARTS_TIMEOUT, Plan, page_bytes};
use crate::worker::WorkerStartError;

/// Time that other workers have to dial, and to accept: the client gives up before by its own limit, half a minute by
/// default, and then this process ends.
pub const INTRODUCED_WITHIN: Duration = PARTS_TIMEOUT;

/// Whom an output is dialled at, in errors.
const RECEIVER: &str = "worker that gets its output";

/// The edges of a worker, connected.
#[derive(Debug)]
pub struct Edges {
    ins: Vec<InLink>,
    outs: Vec<OutLink>,
    /// The connection to the client, where that is no input.
    client: Option<InLink>,
    /// Areas of each stage.
    areas: Vec<Vec<GuardedMemory>>,
    /// What they are in.
    domain: Domain,
}

/// What edges are made with.
pub struct Means<'a> {
    /// Of this device.
    pub device: &'a Device,
    /// Of this deployment.
    pub plan: &'a Plan,
    /// What arrives over them completes here.
    pub arrivals: &'a CompletionQueue,
    /// Most guard pages behind outputs.
    pub max_guards: usize,
}

/// Makes the queue that all links of a worker complete into, its connection to the client too.
pub fn arrivals(device: &Device, slots: u16, work: &Work) -> rdmalib::Result<CompletionQueue> {
    let client = Link::new([(0, EdgeShape { slots, bytes: 0 })]); // of an input, it is there twice
    let ins: Vec<_> = work.in_links.iter().map(|plan| link(plan, &work.inputs, slots)).collect();
    arrival_queue(device, ins.iter().chain([&client]), work.out_links.len())
}

/// Returns the edges of a link with their shapes.
fn link<T>(plan: &LinkPlan<T>, edges: &[Edge<T>], slots: u16) -> Link {
    let shape = |number: usize| EdgeShape { slots, bytes: edges[number].bytes };
    Link::new(plan.edges.iter().map(|number| (*number, shape(*number))))
}

impl Edges {
    /// Makes the edges of worker number `index` as `work` says and connects them. Those that come in from other workers
    /// go to `introductions` for that.
    pub fn connect(
        means: &Means<'_>,
        index: u16,
        work: &Work,
        introductions: &Sender<Expected>,
    ) -> Result<Edges, WorkerStartError> {
        let Means { device, plan, arrivals, .. } = *means;
        let failed = |(what, source)| WorkerStartError::Device { what, source };
        let slots = plan.layout.slots();
        let (connected, introduced) = channel();
        let mut of_client = None;
        for (number, plan) in work.in_links.iter().enumerate() {
            let edges = link(plan, &work.inputs, slots);
            let link = InLink::new(device, number, edges, arrivals).map_err(failed)?;
            match plan.with {
                Source::Client => of_client = Some((number, link)),
                Source::Dialler(secret) => {
                    let connected = connected.clone();
                    let expected = Expected { secret, link, number, connected };
                    // If nobody takes it, it does not come back either.
                    let _ = introductions.send(expected);
                }
            }
        }
        drop(connected); // the end of the others is then the end of all

        // What it sends is in one domain, in which nobody else writes anything of use.
        let domain = device.domain().map_err(|source| failed(("protection domain", source)))?;
        let areas = areas(means, &domain, &work.stages)?;
        let mut outs = Vec::with_capacity(work.out_links.len());
        for (number, plan) in work.out_links.iter().enumerate() {
            let (edges, (to, secret)) = (link(plan, &work.outputs, slots), plan.with);
            let mut link =
                OutLink::new(device, &domain, number, edges, arrivals).map_err(failed)?;
            link.connect(
                secret,
                |queue_pair, hello| {
                    dial(queue_pair, to, hello, INTRODUCED_WITHIN)
                        .map_err(|error| DialError::new(RECEIVER, to, &error))
                },
                |error| DialError::malformed(RECEIVER, to, &error),
            )?;
            outs.push(link);
        }

        // Last: the client takes a worker that has dialled it for one that is connected.
        let (number, mut client) = match of_client {
            Some((number, link)) => (Some(number), link),
            None => {
                let number = work.in_links.len(); // nothing comes over it but its end
                let none = Link::new([(work.inputs.len(), EdgeShape { slots, bytes: 0 })]);
                (None, InLink::new(device, number, none, arrivals).map_err(failed)?)
            }
        };
        let mut ins: Vec<_> = work.in_links.iter().map(|_| None).collect();
        for _ in 0..work.dialled_by() {
            let (number, link) = introduced.recv_timeout(INTRODUCED_WITHIN).map_err(|_| {
                WorkerStartError::Edges("the sender of an input has not come".into())
            })?;
            ins[number] = Some(link);
        }
        client.connect(plan.session, index, |queue_pair, hello| {
            dial_client(queue_pair, plan, hello)
        })?;
        let client = match number {
            Some(number) => {
                ins[number] = Some(client);
                None
            }
            None => Some(client),
        };
        let ins = ins.into_iter().flatten().collect();
        Ok(Edges { ins, outs, client, areas, domain })
    }

    /// Returns the worker, which calls functions of `library`, and its connection to the client where that is no input:
    /// that is to live as long.
    pub fn begin(
        self,
        arrivals: CompletionQueue,
        library: &Library,
        work: Work,
    ) -> Result<(Hop<GuardedMemory>, Option<InLink>), WorkerStartError> {
        let Edges { ins, outs, client, areas, domain } = self;
        let stages = work.stages.into_iter().zip(areas).map(|(named, areas)| {
            let NamedStage { name, mut stage, .. } = named;
            let (number, what) = match stage.batch {
                None => (library.number(&name), "function"),
                Some(_) => (library.batch_number(&name), "function that takes batches"),
            };
            let missing = || WorkerStartError::Edges(format!("no {what} is called {name:?}"));
            stage.function.0 = number.ok_or_else(missing)?;
            Ok(StageMemory { stage, areas })
        });
        let stages = stages.collect::<Result<Vec<_>, WorkerStartError>>()?;
        let hop = Hop::new((ins, outs), stages, arrivals, &domain)
            .map_err(|source| WorkerStartError::Device { what: "memory", source })?;
        Ok((hop, client))
    }
}

/// Makes the areas that functions write to.
fn areas(
    means: &Means<'_>,
    domain: &Domain,
    stages: &[NamedStage],
) -> Result<Vec<Vec<GuardedMemory>>, WorkerStartError> {
    let all: usize = stages.iter().map(|named| named.stage.areas()).sum();
    let guards = means.max_guards / all.max(1);
    let areas = stages.iter().map(|named| {
        let slots = means.plan.layout.slots();
        let layout = Layout::new(slots, 0, named.area_bytes, page_bytes())
            .map_err(|error| WorkerStartError::Edges(error.to_string()))?;
        let area = || {
            GuardedMemory::new(domain, layout, guards)
                .map_err(|source| WorkerStartError::Device { what: "outputs", source })
        };
        (0..named.stage.areas()).map(|_| area()).collect()
    });
    areas.collect()
}
