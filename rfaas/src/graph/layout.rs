//! What each worker of a graph is told. Pure.
//!
//! A worker is a lease, an executor with one thread, and the functions that it calls. What it is told does not say yet
//! where others are: edges between workers have numbers (`Told::EdgeIn`, `Told::EdgeOut`), and so have those to the
//! client (`Told::ToClient`).

use rfaas_protocol::edge::{InputKind, Join as WireJoin, OutputKind, TRACE_BYTES, Takes};

use super::check::{TOO_LARGE, check, wrong};
use super::description::{Described, EdgeKind, Graph, Join};
use crate::error::Result;

/// All of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) workers: Vec<WorkerLayout>,
    /// Edges between workers, by number: from which to which.
    pub(super) edges: Vec<(usize, usize)>,
    /// What comes to the client, by number: first the outputs of a run.
    pub(super) ends: Vec<EndLayout>,
    /// How many of them are outputs of a run.
    pub(super) outputs: usize,
    /// Workers that get the input.
    pub(super) sources: Vec<usize>,
}

/// Something that comes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndLayout {
    pub(super) worker: usize,
    pub(super) bytes: usize,
    pub(super) kind: OutputKind,
}

/// A worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WorkerLayout {
    pub(super) parts: Vec<PartLayout>,
    /// Bytes of all that comes to it in a run, and the most that goes from it at a time.
    pub(super) bytes: (usize, usize),
    /// Bytes of the input of the client.
    pub(super) of_client: Option<usize>,
}

impl PartLayout {
    /// Returns where it tells what it does, among the ends.
    pub(super) fn trace(&self) -> Option<usize> {
        self.told.iter().find_map(|told| match *told {
            Told::ToClient { end, kind: OutputKind::Trace, .. } => Some(end),
            _ => None,
        })
    }
}

impl WorkerLayout {
    /// Returns the first function that it calls.
    pub(super) fn function(&self) -> usize {
        self.parts.first().map_or(0, |part| part.function)
    }

    /// Returns which of the workers of its functions it is.
    pub(super) fn member(&self) -> usize {
        self.parts.first().map_or(0, |part| part.member)
    }
}

/// A function of a worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PartLayout {
    pub(super) function: usize,
    pub(super) member: usize,
    pub(super) takes: Takes,
    pub(super) told: Vec<Told>,
}

/// What a worker is told of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It gets the input.
    Input { bytes: usize },
    /// Edge number `edge` of those between workers comes to it.
    EdgeIn { edge: usize, bytes: usize, kind: InputKind },
    /// Something comes from part `from` of the same worker, over edge `number` of that.
    EdgeHere { from: usize, number: usize, bytes: usize, kind: InputKind },
    /// Edge number `edge` of those between workers goes from it, as its own edge `number`, to `worker`.
    EdgeOut { edge: usize, worker: usize, number: usize, bytes: usize, kind: OutputKind },
    /// Its own edge `number` goes to the client, where it is `end`.
    ToClient { end: usize, number: usize, bytes: usize, kind: OutputKind },
}

impl Described {
    /// Returns whether the worker tells the client when it is done with a run: outputs may be there before.
    fn tells_its_end(&self, calls: bool) -> bool {
        self.sends || calls || self.within.is_some() || self.join != Join::All
    }
}

impl Join {
    /// Returns the wire form, and how many inputs are wanted.
    pub(super) fn to_wire(self) -> (WireJoin, u32) {
        match self {
            Join::All => (WireJoin::All, 0),
            Join::Of(wanted) => (WireJoin::Of, wanted),
            Join::Any => (WireJoin::Any, 0),
        }
    }
}

/// Checks a graph and lays it out. An error says what is wrong, with the names of functions.
pub(super) fn lay_out(graph: &Graph) -> Result<Layout> {
    let layout = laid_out(graph, &check(graph)?);
    match layout.workers.iter().find(|worker| worker.bytes.0 >= TOO_LARGE) {
        Some(worker) => {
            let (name, bytes) = (&graph.functions[worker.function()].name, worker.bytes.0);
            Err(wrong(format!("{bytes} bytes come to a worker of {name:?}: 4 GiB are too many")))
        }
        None => Ok(layout),
    }
}

/// Lays out a graph that was checked. `order`: functions, each behind those that lead to it.
fn laid_out(graph: &Graph, order: &[usize]) -> Layout {
    let host = |function: usize| graph.functions[function].shares.unwrap_or(function);
    // Workers, in the order of the functions that have one of their own.
    let mut first_worker = vec![0; graph.functions.len()];
    let mut workers: Vec<WorkerLayout> = Vec::new();
    for (function, described) in graph.functions.iter().enumerate() {
        if described.shares.is_none() {
            first_worker[function] = workers.len();
            workers.extend((0..described.workers).map(|_| WorkerLayout::default()));
        }
    }
    let mut part_of = vec![0; graph.functions.len()];
    for &function in order {
        let host = host(function);
        for member in 0..graph.functions[host].workers {
            let parts = &mut workers[first_worker[host] + member].parts;
            part_of[function] = parts.len();
            let takes = graph.takes(function);
            parts.push(PartLayout { function, member, takes, told: Vec::new() });
        }
    }
    let members = |function: usize| {
        let host = host(function);
        (0..graph.functions[host].workers).map(move |member| (host, member))
    };
    let worker_of = |(host, member): (usize, usize)| first_worker[host] + member;
    let mut builder =
        Builder { workers, part_of: &part_of, numbers: vec![0; graph.functions.len()] };
    let mut layout = Layout {
        workers: Vec::new(),
        edges: Vec::new(),
        ends: Vec::new(),
        outputs: 0,
        sources: Vec::new(),
    };

    // Inputs first: a function is called with the first one, and numbers them in this order.
    for end in &graph.inputs {
        for worker in members(end.function).map(worker_of) {
            builder.tell(worker, end.function, Told::Input { bytes: end.bytes });
            let of_client = builder.workers[worker].of_client.get_or_insert(0);
            *of_client = end.bytes.max(*of_client);
            if !layout.sources.contains(&worker) {
                layout.sources.push(worker);
            }
        }
    }
    let mut answers = Vec::new();
    for edge in &graph.edges {
        let (input, output) = match edge.kind {
            EdgeKind::Whole => (InputKind::Whole, OutputKind::Whole),
            EdgeKind::Each => (InputKind::Items, OutputKind::Each),
            EdgeKind::Keyed => (InputKind::Items, OutputKind::Keyed),
            EdgeKind::Call(bytes) => {
                answers.push((edge, bytes));
                (InputKind::Whole, OutputKind::Call)
            }
        };
        let number = builder.number(edge.from);
        for from in members(edge.from).map(worker_of) {
            for to in members(edge.to).map(worker_of) {
                builder.connect(
                    (edge.from, from),
                    (edge.to, to),
                    (number, edge.bytes),
                    (input, output),
                    &mut layout.edges,
                );
            }
        }
    }
    // Behind all that is waited for. A function that is called has this edge only.
    for (edge, bytes) in answers {
        let number = builder.number(edge.to);
        for (from, to) in members(edge.to).map(worker_of).zip(members(edge.from).map(worker_of)) {
            let kinds = (InputKind::Answer, OutputKind::Whole);
            builder.connect(
                (edge.to, from),
                (edge.from, to),
                (number, bytes),
                kinds,
                &mut layout.edges,
            );
        }
    }
    for end in &graph.outputs {
        let number = builder.number(end.function);
        for worker in members(end.function).map(worker_of) {
            builder.end(
                &mut layout,
                (end.function, worker),
                (number, end.bytes),
                OutputKind::Whole,
            );
        }
    }
    layout.outputs = layout.ends.len();
    for (function, described) in graph.functions.iter().enumerate() {
        let calls = graph
            .edges
            .iter()
            .any(|edge| edge.from == function && matches!(edge.kind, EdgeKind::Call(_)));
        if described.again {
            for worker in members(function).map(worker_of) {
                let bytes = 0;
                let from = part_of[function];
                builder.tell(
                    worker,
                    function,
                    Told::EdgeHere { from, number: 0, bytes, kind: InputKind::Again },
                );
            }
        }
        if described.tells_its_end(calls) {
            let number = builder.number(function);
            for worker in members(function).map(worker_of) {
                builder.end(&mut layout, (function, worker), (number, 0), OutputKind::Done);
            }
        }
    }
    // Last: nothing that arrives is one of these.
    for function in (0..graph.functions.len()).filter(|_| graph.traced) {
        let number = builder.number(function);
        for worker in members(function).map(worker_of) {
            let size = (number, TRACE_BYTES);
            builder.end(&mut layout, (function, worker), size, OutputKind::Trace);
        }
    }
    layout.workers = builder.workers;
    for worker in &mut layout.workers {
        worker.measure();
    }
    layout
}

/// What it is made with.
struct Builder<'a> {
    workers: Vec<WorkerLayout>,
    /// Number of the part that a function is, on its workers.
    part_of: &'a [usize],
    /// How many edges go from a function so far.
    numbers: Vec<usize>,
}

impl Builder<'_> {
    /// Returns the number of the next edge from a function.
    fn number(&mut self, function: usize) -> usize {
        self.numbers[function] += 1;
        self.numbers[function] - 1
    }

    fn tell(&mut self, worker: usize, function: usize, told: Told) {
        let part = self.part_of[function];
        self.workers[worker].parts[part].told.push(told);
    }

    /// Adds an edge from a function at a worker to another one.
    fn connect(
        &mut self,
        (from, at): (usize, usize),
        (to, worker): (usize, usize),
        (number, bytes): (usize, usize),
        (input, output): (InputKind, OutputKind),
        edges: &mut Vec<(usize, usize)>,
    ) {
        if at == worker {
            let from = self.part_of[from];
            self.tell(worker, to, Told::EdgeHere { from, number, bytes, kind: input });
            return;
        }
        let edge = edges.len();
        edges.push((at, worker));
        self.tell(at, from, Told::EdgeOut { edge, worker, number, bytes, kind: output });
        self.tell(worker, to, Told::EdgeIn { edge, bytes, kind: input });
    }

    /// Adds an edge from a function at a worker to the client.
    fn end(
        &mut self,
        layout: &mut Layout,
        (function, worker): (usize, usize),
        (number, bytes): (usize, usize),
        kind: OutputKind,
    ) {
        let end = layout.ends.len();
        layout.ends.push(EndLayout { worker, bytes, kind });
        self.tell(worker, function, Told::ToClient { end, number, bytes, kind });
    }
}

impl WorkerLayout {
    /// Adds up what comes and goes.
    fn measure(&mut self) {
        for told in self.parts.iter().flat_map(|part| &part.told) {
            match *told {
                Told::Input { bytes }
                | Told::EdgeIn { bytes, .. }
                | Told::EdgeHere { bytes, .. } => {
                    self.bytes.0 = self.bytes.0.saturating_add(bytes);
                }
                Told::EdgeOut { bytes, .. } | Told::ToClient { bytes, .. } => {
                    self.bytes.1 = self.bytes.1.max(bytes);
                }
            }
        }
    }
}

impl Graph {
    /// Returns how a function takes its inputs.
    fn takes(&self, function: usize) -> Takes {
        let mut kinds = self.edges.iter().filter(|edge| edge.to == function).map(|edge| edge.kind);
        if kinds.clone().any(|kind| kind == EdgeKind::Keyed) {
            Takes::Keyed
        } else if kinds.any(|kind| kind == EdgeKind::Each) {
            Takes::Each
        } else {
            Takes::Whole
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_comes_to_a_worker_has_a_size_that_can_be_said() {
        let mut graph = Graph::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| graph.function("lib.so", name));
        graph.input(a, 64).edge(a, c, 64).output(c, 64);
        graph.edge(a, b, 1 << 31).edge(b, c, (1 << 31) - 1).edge(a, c, 1 << 30);
        assert!(lay_out(&graph).is_ok());
        graph.edge(a, c, 1 << 31);
        let error = lay_out(&graph).unwrap_err().to_string();
        assert!(error.contains("bytes come to a worker of \"c\""), "{error}");
    }
}
