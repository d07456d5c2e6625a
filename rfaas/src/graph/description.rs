//! What a graph is: functions, and what goes from where to where.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rfaas_protocol::constraints::{Constraint, Constraints};

use super::lane::Lanes;
use super::listed::plain;
use crate::buffer::Origin;
use crate::request::LeaseRequest;

/// Functions, and edges between them. It is a description: [`Client::compile`](crate::Client::compile) makes it run.
///
/// Every function has a worker of its own, on a lease of one core, unless it has [several](Self::workers), or
/// [shares](Self::share) that of another one. What it returns is written to all functions that an edge leads to, and to
/// the client if it is an output. It is called when everything that leads to it is there, unless its
/// [join](Self::join) says otherwise. It is called with the first of its inputs; a function that wants the others asks
/// for them (`docs/functions.md`). Inputs are numbered in the order in which what leads to the function was added, and
/// an edge from several workers is an input for each of these.
///
/// ```no_run
/// # fn example(client: &rfaas::Client, image: &[u8]) -> rfaas::Result<()> {
/// use rfaas::Graph;
///
/// let mut graph = Graph::new();
/// let decode = graph.function("libimages.so", "decode");
/// let thumbnail = graph.function("libimages.so", "thumbnail");
/// let classify = graph.function("libimages.so", "classify");
/// graph.input(decode, 4 << 20); // of at most 4 MiB
/// graph.edge(decode, thumbnail, 16 << 20).edge(decode, classify, 16 << 20);
/// graph.output(thumbnail, 64 << 10).output(classify, 64);
///
/// let mut graph = client.compile(&graph)?; // all leases or none
/// let outputs = graph.run(image)?;
/// println!("{} bytes of thumbnail, class {:?}", outputs[0].len(), outputs[1]);
/// # Ok(())
/// # }
/// ```
/// Four workers share what there is to do:
/// ```
/// use rfaas::Graph;
///
/// let mut graph = Graph::new();
/// let split = graph.function("libwords.so", "split");
/// let count = graph.function("libwords.so", "count");
/// let sum = graph.function("libwords.so", "sum");
/// graph.workers(count, 4);
/// graph.input(split, 1 << 20);
/// graph.each(split, count, 1 << 20); // a list of items: each is counted by one of the four
/// graph.edge(count, sum, 64 << 10); // four inputs of `sum`, one from each
/// graph.output(sum, 64 << 10);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    origin: Origin,
    /// What it is called where graphs are listed, if its caller says so.
    pub(super) name: Option<String>,
    pub(super) functions: Vec<Described>,
    pub(super) edges: Vec<Edge>,
    pub(super) inputs: Vec<End>,
    pub(super) outputs: Vec<End>,
    /// What each worker is leased with, and where.
    pub(super) lease: LeaseRequest,
    pub(super) lanes: Lanes,
    pub(super) idempotent: bool,
    pub(super) traced: bool,
}

/// A function of a [`Graph`], and only of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphFunction {
    graph: Origin,
    index: usize,
}

/// A function as it was described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) library: PathBuf,
    pub(super) name: String,
    /// How many workers call it.
    pub(super) workers: usize,
    /// The function whose worker it shares, if it has none of its own.
    pub(super) shares: Option<usize>,
    pub(super) join: Join,
    pub(super) within: Option<Duration>,
    /// It may send before it returns.
    pub(super) sends: bool,
    /// It may say that it is called again.
    pub(super) again: bool,
    /// It takes runs in batches: so many at most, of which the first waits so long for others.
    pub(super) batch: Option<(usize, Duration)>,
}

/// When a function of a [`Graph`] is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    /// When all inputs are there. If one has failed, the run has.
    #[default]
    All,
    /// When so many inputs are there, with these. Inputs that have failed, and later ones, do not count.
    Of(u32),
    /// With each input as it comes, until it has a value. Inputs that have failed, and later ones, do not count.
    Any,
}

/// Something that goes from one function to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The most of it.
    pub(super) bytes: usize,
    pub(super) kind: EdgeKind,
}

/// What goes over an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EdgeKind {
    /// All, to each worker.
    Whole,
    /// Items, each to one of the workers.
    Each,
    /// Items, those of a key to the same worker.
    Keyed,
    /// A call while the first one runs, which gets an answer of at most so many bytes.
    Call(usize),
}

/// Something that goes from the client to a function, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) function: usize,
    /// The most of it.
    pub(super) bytes: usize,
}

impl Default for Graph {
    fn default() -> Self {
        Graph::new()
    }
}

impl Graph {
    /// Returns one without functions, whose leases will have 256 MB each, for an hour.
    pub fn new() -> Self {
        Graph {
            origin: Origin::generate(),
            name: None,
            functions: Vec::new(),
            edges: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            lease: LeaseRequest::new(1, 256),
            traced: false,
            lanes: Lanes::default(),
            idempotent: false,
        }
    }

    /// Adds the function called `name` of the library at `library`, a file of this machine. The same one may be added
    /// more than once: each has a worker of its own.
    pub fn function(
        &mut self,
        library: impl AsRef<Path>,
        name: impl Into<String>,
    ) -> GraphFunction {
        let library = library.as_ref().to_owned();
        self.functions.push(Described {
            library,
            name: name.into(),
            workers: 1,
            shares: None,
            join: Join::All,
            within: None,
            sends: false,
            again: false,
            batch: None,
        });
        GraphFunction { graph: self.origin, index: self.functions.len() - 1 }
    }

    /// Sets what it is called where people see it: in `GET /graphs` of the resource manager. 1 to 64 bytes. Unless this
    /// is called, it has the name of the file that describes it or, without one, of the library of its first function.
    pub fn name(&mut self, name: impl Into<String>) -> &mut Self {
        self.name = Some(name.into());
        self
    }

    /// Returns its name, or the one that it has without.
    pub(super) fn shown_name(&self) -> String {
        let library = || self.functions.first()?.library.file_name()?.to_str();
        plain(self.name.as_deref().or_else(library).unwrap_or("graph"))
    }

    /// Returns the number of `function`; that of none if it is of another graph, which is told when this is compiled.
    fn index(&self, function: GraphFunction) -> usize {
        if function.graph == self.origin { function.index } else { usize::MAX }
    }

    /// Has `function` get the input of each run, of at most `bytes` bytes. Several functions may.
    pub fn input(&mut self, function: GraphFunction, bytes: usize) -> &mut Self {
        self.inputs.push(End { function: self.index(function), bytes });
        self
    }

    /// Has what `from` returns, at most `bytes` bytes, be the input of `to`.
    pub fn edge(&mut self, from: GraphFunction, to: GraphFunction, bytes: usize) -> &mut Self {
        self.add_edge(from, to, bytes, EdgeKind::Whole)
    }

    /// Has what `from` returns, a list of items of at most `bytes` bytes in all, be shared by the
    /// [workers](Self::workers) of `to`: each item goes to one of them, in turn. `to` is called once for each, and what
    /// it returns are the items of its own list, with the same keys. Lists are described in `docs/functions.md`.
    pub fn each(&mut self, from: GraphFunction, to: GraphFunction, bytes: usize) -> &mut Self {
        self.add_edge(from, to, bytes, EdgeKind::Each)
    }

    /// Does the same by key: items of the same key go to the same worker, which is called once for each key, with the
    /// list of all items of that key that have come over such edges.
    pub fn keyed(&mut self, from: GraphFunction, to: GraphFunction, bytes: usize) -> &mut Self {
        self.add_edge(from, to, bytes, EdgeKind::Keyed)
    }

    /// Lets `from` call `to` while it runs, with at most `bytes` bytes, and get an answer of at most `answer_bytes`
    /// bytes. Nothing else leads to `to` or from it.
    pub fn call(
        &mut self,
        from: GraphFunction,
        to: GraphFunction,
        bytes: usize,
        answer_bytes: usize,
    ) -> &mut Self {
        self.add_edge(from, to, bytes, EdgeKind::Call(answer_bytes))
    }

    fn add_edge(
        &mut self,
        from: GraphFunction,
        to: GraphFunction,
        bytes: usize,
        kind: EdgeKind,
    ) -> &mut Self {
        self.edges.push(Edge { from: self.index(from), to: self.index(to), bytes, kind });
        self
    }

    /// Has so many workers call `function`, each on a lease of its own. Each gets all that comes over an edge, or its
    /// share of the items. An [output](Self::output) of it is one for each of them.
    pub fn workers(&mut self, function: GraphFunction, workers: usize) -> &mut Self {
        self.change(function, |described| described.workers = workers)
    }

    /// Has `function` be called by the worker of `with`, one after the other: they are of the same library. What goes
    /// from one to the other does not leave it.
    pub fn share(&mut self, function: GraphFunction, with: GraphFunction) -> &mut Self {
        let with = self.index(with);
        self.change(function, |described| described.shares = Some(with))
    }

    /// Sets when `function` is called.
    pub fn join(&mut self, function: GraphFunction, join: Join) -> &mut Self {
        self.change(function, |described| described.join = join)
    }

    /// Has `function` be called so long after the first of its inputs, at the latest, with those that are there. In
    /// milliseconds, at least one.
    pub fn within(&mut self, function: GraphFunction, within: Duration) -> &mut Self {
        self.change(function, |described| described.within = Some(within))
    }

    /// Lets `function` send over edges before it returns.
    pub fn emits(&mut self, function: GraphFunction) -> &mut Self {
        self.change(function, |described| described.sends = true)
    }

    /// Lets `function` say that it is to be called again in the same run, with what it has made so far.
    pub fn again(&mut self, function: GraphFunction) -> &mut Self {
        self.change(function, |described| described.again = true)
    }

    /// Has `function` be called with up to `most` runs at once: with all that are complete when its worker is ready for
    /// the next call, and of which the first has waited for others for `wait`. With [`Duration::ZERO`] none waits, and
    /// batches are as large as what has come meanwhile. There are never more runs than a lane has
    /// [slots](crate::Deployment::slots).
    ///
    /// The function is one that is written for that, which its library exports as `rfaas_batch_NAME`
    /// (`docs/functions.md`). Of each run it has the input, and an output that goes over the edges of that run alone.
    /// One run may fail, or all. It takes one input that it is called with: it has no [`join`](Self::join) and no worker
    /// that it [shares](Self::share), gets no items, is no function that is [called](Self::call), and does nothing before
    /// it returns.
    ///
    /// What a run waits counts: [`invocation_timeout`](crate::Deployment::invocation_timeout) is that of each run, from
    /// when it was submitted. With one that is past it, its lane starts again: the other runs of the batch are lost, or
    /// submitted again if the graph is [`idempotent`](Self::idempotent).
    ///
    /// ```
    /// # use std::time::Duration;
    /// let mut graph = rfaas::Graph::new();
    /// let decode = graph.function("libimages.so", "decode");
    /// let classify = graph.function("libimages.so", "classify"); // rfaas_batch_classify
    /// graph.batch(classify, 16, Duration::from_micros(500));
    /// graph.input(decode, 1 << 20).edge(decode, classify, 600 << 10).output(classify, 64);
    /// ```
    pub fn batch(&mut self, function: GraphFunction, most: usize, wait: Duration) -> &mut Self {
        self.change(function, |described| described.batch = Some((most, wait)))
    }

    /// One of another graph is an edge to it, which is told when this is compiled.
    fn change(
        &mut self,
        function: GraphFunction,
        change: impl FnOnce(&mut Described),
    ) -> &mut Self {
        let index = self.index(function);
        match self.functions.get_mut(index) {
            Some(described) => change(described),
            None => self.inputs.push(End { function: usize::MAX, bytes: 0 }),
        }
        self
    }

    /// Has what `function` returns, at most `bytes` bytes, be an output of each run. Outputs are numbered in the order
    /// of these calls.
    pub fn output(&mut self, function: GraphFunction, bytes: usize) -> &mut Self {
        self.outputs.push(End { function: self.index(function), bytes });
        self
    }

    /// Returns what is asked for these workers of a lane.
    pub(super) fn lease_request(&self, workers: Range<usize>) -> LeaseRequest {
        let mut request = self.lease.clone();
        if let Some(nodes) = request.constraints.nodes.get(workers) {
            request.constraints.nodes = nodes.to_vec();
        }
        request
    }

    /// Returns the constraints that are of all leases of a lane together: one lease for itself can neither keep nor
    /// break them.
    pub(super) fn of_all_leases(&self) -> impl Iterator<Item = Constraint> {
        let Constraints { together, apart, near, at_least, .. } = &self.lease.constraints;
        let set = [
            (Constraint::Together, *together),
            (Constraint::Apart, *apart),
            (Constraint::Near, near.is_some()),
            (Constraint::AtLeast, *at_least > 0),
        ];
        set.into_iter().filter_map(|(constraint, is_set)| is_set.then_some(constraint))
    }

    /// Returns whether a lease of a lane cannot be exchanged for any other.
    pub(super) fn has_constraints(&self) -> bool {
        self.lease.constraints != Constraints::default()
    }

    /// Returns the largest input of a run, in bytes: all functions take it that get the input.
    pub fn input_bytes(&self) -> usize {
        self.inputs.iter().map(|end| end.bytes).min().unwrap_or(0)
    }

    /// Sets how many lanes it is compiled to, one unless this is called. Each lane has its own leases, executors and
    /// [slots](crate::Deployment::slots), and a run goes to the one with most room: so that many more runs can be under
    /// way. What ends a lane ends the runs on it, and no others.
    pub fn lanes(&mut self, lanes: Lanes) -> &mut Self {
        self.lanes = lanes;
        self
    }

    /// Sets whether a run may run more than once, which is not so unless this is called. A run whose lane was lost is
    /// then submitted again, three times at most and within its limit, and its caller learns nothing of it.
    pub fn idempotent(&mut self, idempotent: bool) -> &mut Self {
        self.idempotent = idempotent;
        self
    }

    /// Has workers tell what they do in each run ([`CompiledGraph::wait_traced`](crate::CompiledGraph::wait_traced)):
    /// one more write each, of 32 bytes. Without that, tracing costs nothing.
    pub fn traced(&mut self, traced: bool) -> &mut Self {
        self.traced = traced;
        self
    }

    /// Sets the memory of the lease of each function, in MB.
    pub fn memory_mb(&mut self, memory_mb: u32) -> &mut Self {
        self.lease.memory = memory_mb;
        self
    }

    /// Sets how long the leases last.
    pub fn lease_time(&mut self, lease_time: Duration) -> &mut Self {
        self.lease.timeout = lease_time;
        self
    }

    /// Has all workers of a lane be on one node. Several lanes may be on several nodes.
    ///
    /// This and the following are constraints of each lane, whose leases are asked for at once.
    /// [`Client::compile`](crate::Client::compile) fails with
    /// [`Error::ConstraintUnmet`](crate::Error::ConstraintUnmet), which names the one that cannot hold, and holds
    /// nothing then. They hold as well when a lane is started again.
    ///
    /// ```no_run
    /// # fn example(client: &rfaas::Client, graph: &mut rfaas::Graph) -> rfaas::Result<()> {
    /// graph.together().has("gpu");
    /// match client.compile(graph) {
    ///     Err(rfaas::Error::ConstraintUnmet { constraints, .. }) => println!("{constraints:?} cannot hold"),
    ///     compiled => println!("on {:?}", compiled?.nodes().next()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn together(&mut self) -> &mut Self {
        self.lease.constraints.together = true;
        self
    }

    /// Has each worker of a lane be on a node of its own.
    pub fn apart(&mut self) -> &mut Self {
        self.lease.constraints.apart = true;
        self
    }

    /// Has as many workers of each lane be on this node as fit there, at least one.
    pub fn near(&mut self, node: impl Into<String>) -> &mut Self {
        self.lease.constraints.near = Some(node.into());
        self
    }

    /// Has so many cores stay free on each node that is taken, when it is taken.
    pub fn leave_free(&mut self, cores: u32) -> &mut Self {
        self.lease.constraints.leave_free = cores;
        self
    }

    /// Has at least so many workers of a lane be on each node that it takes.
    pub fn at_least(&mut self, workers: u32) -> &mut Self {
        self.lease.constraints.at_least = workers; // of one core each
        self
    }

    /// Has each node have this label. Several may be asked for: up to 256 bytes together.
    pub fn has(&mut self, label: impl Into<String>) -> &mut Self {
        self.lease.constraints.has.push(label.into());
        self
    }

    /// Names the nodes themselves, one for each worker of a lane, in the order in which functions were added: up to 512
    /// bytes together.
    pub fn nodes<N: Into<String>>(&mut self, nodes: impl IntoIterator<Item = N>) -> &mut Self {
        self.lease.constraints.nodes = nodes.into_iter().map(Into::into).collect();
        self
    }
}
