//! What a graph is: functions, and what goes from where to where.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lane::Lanes;
use crate::buffer::Origin;
use crate::request::LeaseRequest;

/// Functions, and edges between them. It is a description: [`Client::compile`](crate::Client::compile) makes it run.
///
/// Every function has a worker of its own, on a lease of one core. What it returns is written to all functions that an
/// edge leads to, and to the client if it is an output. It is called when everything that leads to it is there: today
/// one edge, or the input.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    origin: Origin,
    pub(super) functions: Vec<Described>,
    pub(super) edges: Vec<Edge>,
    pub(super) inputs: Vec<End>,
    pub(super) outputs: Vec<End>,
    memory_mb: u32,
    lease_time: Duration,
    pub(super) lanes: Lanes,
    pub(super) idempotent: bool,
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
}

/// Something that goes from one function to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The most of it.
    pub(super) bytes: usize,
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
            functions: Vec::new(),
            edges: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            memory_mb: 256,
            lease_time: Duration::from_secs(3600),
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
        self.functions.push(Described { library, name: name.into() });
        GraphFunction { graph: self.origin, index: self.functions.len() - 1 }
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
        self.edges.push(Edge { from: self.index(from), to: self.index(to), bytes });
        self
    }

    /// Has what `function` returns, at most `bytes` bytes, be an output of each run. Outputs are numbered in the order
    /// of these calls.
    pub fn output(&mut self, function: GraphFunction, bytes: usize) -> &mut Self {
        self.outputs.push(End { function: self.index(function), bytes });
        self
    }

    /// Returns what is asked for each function.
    pub(super) fn lease_request(&self) -> LeaseRequest {
        LeaseRequest::new(1, self.memory_mb).timeout(self.lease_time)
    }

    /// Returns the largest input, which all functions take that take the input.
    pub(super) fn most_input(&self) -> usize {
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

    /// Sets the memory of the lease of each function, in MB.
    pub fn memory_mb(&mut self, memory_mb: u32) -> &mut Self {
        self.memory_mb = memory_mb;
        self
    }

    /// Sets how long the leases last.
    pub fn lease_time(&mut self, lease_time: Duration) -> &mut Self {
        self.lease_time = lease_time;
        self
    }
}
