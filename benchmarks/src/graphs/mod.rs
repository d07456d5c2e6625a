//! What graphs take, beside what they are compared with: one function for each figure.
//!
//! ```text
//!   client ─▶ chain_begin (worker 1) ─▶ chain_copy (2) ─▶ chain_copy (1) ─▶ … ─▶ chain_end (1) ─▶ client
//!             reads the clock                                                    reads it again, tells the difference
//! ```
//! A chain is measured by its own first and last function, which are on the same worker: what the client needs, and how
//! soon it is woken, is no part of it. So the client sleeps while it waits, and two cores are enough for two workers
//! that spin.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rfaas::{Client, CompiledGraph, Deployment, Executor, Graph, Lanes, LeaseRequest, Spin};
use rfaas_program::Failure;
use serde_json::Value;
use testkit::LocalCluster;
use testkit::procfs::{processor_time_of_threads, proportional_memory};

use crate::crowd::Watched;

/// Payload of a small message, in bytes.
pub const SMALL: usize = 64;
/// Payload of a large one.
pub const LARGE: usize = 1 << 20;
/// Functions of a long chain: what a chain costs once is small beside so many hops.
const LONG: usize = 1000;
/// Hops of a short one.
pub const HOPS: usize = 10;
/// Slots of edges whose memory is measured, and bytes of each.
const SLOTS: u16 = 16;
const SLOT_BYTES: usize = 4096;
/// Edges between two workers: few, and many.
const EDGES: [usize; 2] = [2, 60];
/// How often a client looks for the end of a run while it sleeps.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// How much a function does that works, in microseconds.
const WORK_US: u32 = 50;
/// What a node needs to get ready for the next leases.
const REST: Duration = Duration::from_millis(300);

/// Where and how often is measured.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The cluster.
    pub cluster: &'a LocalCluster,
    /// Process id of its executor manager.
    pub executor_manager: u32,
    /// Its client.
    pub client: &'a Client,
    /// The library of [`library`].
    pub library: &'a Path,
    /// Runs of each kind.
    pub repetitions: u32,
    /// Calls of the longest map.
    pub calls: u32,
}

/// Compiles the functions that graphs are measured with, into `directory`.
pub fn library(directory: &Path) -> Result<PathBuf, Failure> {
    let library = directory.join("libgraphs.so");
    let failed =
        |why: String| Failure::later(format!("the functions cannot be compiled by cc: {why}"));
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O2", "-x", "c", "-o"]).arg(&library).arg("-");
    let mut cc =
        command.stdin(Stdio::piped()).spawn().map_err(|error| failed(error.to_string()))?;
    let text = include_bytes!("functions.c");
    let written = cc.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text));
    let status = cc.wait().map_err(|error| failed(error.to_string()))?;
    written.map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(library) } else { Err(failed(status.to_string())) }
}

fn hot() -> Deployment {
    Deployment::new().spin(Spin::Always)
}

fn warm() -> Deployment {
    Deployment::new().spin(Spin::Never)
}

/// The middle one of `times`.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Runs `graph` once, and sleeps while it waits, whatever the graph's workers do.
fn run_asleep(graph: &mut CompiledGraph, input: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let run = graph.submit(input)?;
    loop {
        thread::sleep(LOOK_AGAIN);
        if let Some(outputs) = graph.poll(run) {
            return Ok(outputs?);
        }
    }
}

impl Bench<'_> {
    /// A chain of so many hops, alternately of two workers; `hops` is even. Edges are of `bytes` bytes.
    fn chain(&self, hops: usize, bytes: usize, middle: &str) -> Graph {
        let mut graph = Graph::new();
        let mut functions = Vec::new();
        for number in 0..=hops {
            let name = match number {
                0 => "chain_begin",
                _ if number == hops => "chain_end",
                _ => middle,
            };
            let function = graph.function(self.library, name);
            if number > 1 {
                graph.share(function, functions[number % 2]);
            }
            functions.push(function);
        }
        graph.input(functions[0], 4);
        for two in functions.windows(2) {
            graph.edge(two[0], two[1], bytes);
        }
        graph.output(functions[hops], 16);
        graph
    }

    /// Nanoseconds that a chain of so many hops between two workers that spin takes, from its first function to its
    /// last.
    pub fn chain_ns(&self, hops: usize, bytes: usize, middle: &str) -> Result<f64, Failure> {
        self.time_of(&self.chain(hops, bytes, middle), bytes)
    }

    /// Nanoseconds of a chain, over whose edges so many bytes go.
    fn time_of(&self, graph: &Graph, bytes: usize) -> Result<f64, Failure> {
        // One run at a time.
        let mut graph = self.client.compile_with(graph, &hot().slots(1))?;
        let input = (bytes as u32).to_le_bytes();
        let mut times = Vec::new();
        for number in 0..self.repetitions + self.repetitions / 10 {
            let outputs = run_asleep(&mut graph, &input)?;
            let (time, came) = told(&outputs)?;
            if came != bytes as u64 {
                return Err(Failure::later(format!(
                    "{came} of {bytes} bytes came through a chain"
                )));
            }
            if number >= self.repetitions / 10 {
                times.push(time as f64);
            }
        }
        graph.release()?;
        Ok(median(times))
    }

    /// Nanoseconds of a hop of a small message between two workers.
    pub fn hop_ns(&self) -> Result<f64, Failure> {
        Ok(self.chain_ns(LONG, SMALL, "chain_copy")? / LONG as f64)
    }

    /// Nanoseconds of such a hop of a graph that tells the client what was done where.
    pub fn traced_hop_ns(&self) -> Result<f64, Failure> {
        let mut graph = self.chain(LONG, SMALL, "chain_copy");
        Ok(self.time_of(graph.traced(true), SMALL)? / LONG as f64)
    }

    /// Nanoseconds of a small round trip that the benchmark `program` measures, both ends spinning.
    pub fn round_trip_ns(&self, program: &str) -> Result<f64, Failure> {
        let mut command = self.cluster.benchmark_command(program).map_err(Failure::input)?;
        command.args(["--json", "--hot-timeout", "-1", "--size", &SMALL.to_string()]);
        command.args(["--repetitions", &(100 * self.repetitions).to_string()]);
        command.args(["--warmup-repetitions", &(10 * self.repetitions).to_string()]);
        let failed = |why: String| Failure::later(format!("{program}: {why}"));
        let output =
            command.stderr(Stdio::inherit()).output().map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(output.status.to_string()));
        }
        let told: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
        let median = told["round_trip_ns"]["p50"].as_f64();
        median.ok_or_else(|| failed("it tells no round trip".to_owned()))
    }

    /// Nanoseconds of a run of ten functions through the client, one invocation after the other alternately on two
    /// workers, and by edges. All sleep while they wait: three that spin have no core each on two.
    pub fn through_the_client_and_by_edges_ns(&self) -> Result<(f64, f64), Failure> {
        let mut direct = [self.direct("chain_copy", &warm())?, self.direct("chain_copy", &warm())?];
        let mut graph = Graph::new();
        let functions: Vec<_> =
            (0..HOPS).map(|_| graph.function(self.library, "chain_copy")).collect();
        for (number, function) in functions.iter().enumerate().skip(2) {
            graph.share(*function, functions[number % 2]);
        }
        graph.input(functions[0], SMALL).output(functions[HOPS - 1], SMALL);
        for two in functions.windows(2) {
            graph.edge(two[0], two[1], SMALL);
        }
        let mut graph = self.client.compile_with(&graph, &warm())?;
        let input = [7; SMALL];
        let (mut client, mut edges) = (Vec::new(), Vec::new());
        for number in 0..self.repetitions + self.repetitions / 10 {
            let start = Instant::now();
            for number in 0..HOPS {
                direct[number % 2].call()?;
            }
            let through_client = start.elapsed();
            let start = Instant::now();
            let outputs = graph.run(&input)?;
            let by_edges = start.elapsed();
            if outputs != [input] {
                return Err(Failure::later("a chain returned something else than its input"));
            }
            if number >= self.repetitions / 10 {
                client.push(through_client.as_nanos() as f64);
                edges.push(by_edges.as_nanos() as f64);
            }
        }
        graph.release()?;
        Ok((median(client), median(edges)))
    }

    /// An executor with one worker, of the function `name`.
    fn direct(&self, name: &str, deployment: &Deployment) -> Result<Direct, Failure> {
        let deployment = deployment.clone().input_bytes(SMALL).output_bytes(SMALL);
        let lease = self.client.lease(LeaseRequest::new(1, 256))?;
        let executor = lease.deploy_with(self.library, &deployment)?;
        let function = executor.function(name)?;
        let mut input = executor.input(SMALL)?;
        input.fill(0);
        let output = executor.output(SMALL)?;
        Ok(Direct { executor, function, input, output })
    }

    /// Nanoseconds of an invocation that works, the slowest of `width` at once, and of a graph that does the same and
    /// joins the results. The join is on one of these workers.
    pub fn direct_and_joined_ns(&self, width: usize) -> Result<(f64, f64), Failure> {
        let input = WORK_US.to_le_bytes();
        let mut graph = Graph::new();
        let works: Vec<_> = (0..width).map(|_| graph.function(self.library, "work")).collect();
        let join = graph.function(self.library, "chain_copy");
        graph.share(join, works[0]).output(join, 4);
        for work in works {
            graph.input(work, 4).edge(work, join, 4);
        }
        let mut graph = self.client.compile_with(&graph, &hot())?;
        let mut joined = Vec::new();
        for _ in 0..self.repetitions {
            let start = Instant::now();
            graph.run(&input)?;
            joined.push(start.elapsed().as_nanos() as f64);
        }
        graph.release()?;
        let lease = self.client.lease(LeaseRequest::new(width as u32, 256))?;
        let deployment = hot().input_bytes(SMALL).output_bytes(SMALL);
        let mut executor = lease.deploy_with(self.library, &deployment)?;
        let function = executor.function("work")?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for _ in 0..width {
            let mut one = executor.input(4)?;
            one.write(0, &input)?;
            inputs.push(one);
            outputs.push(executor.output(4)?);
        }
        let mut direct = Vec::new();
        for _ in 0..self.repetitions {
            let start = Instant::now();
            executor.invoke_all(&function, &inputs, &mut outputs)?;
            direct.push(start.elapsed().as_nanos() as f64);
        }
        executor.release()?;
        Ok((median(direct), median(joined)))
    }

    /// Calls a second of a map over so many workers, each call working for a while.
    pub fn calls_per_second(&self, workers: usize) -> Result<f64, Failure> {
        let mut graph = Graph::new();
        let work = graph.function(self.library, "work");
        graph.input(work, 4).output(work, 4).lanes(Lanes::exactly(workers));
        let mut graph = self.client.compile_with(&graph, &warm().slots(SLOTS))?;
        let input = WORK_US.to_le_bytes();
        for outputs in graph.map((0..100).map(|_| input)) {
            outputs?;
        }
        let start = Instant::now();
        let mut done = 0_u32;
        for outputs in graph.map((0..self.calls).map(|_| input)) {
            outputs?;
            done += 1;
        }
        let rate = f64::from(done) / start.elapsed().as_secs_f64();
        graph.release()?;
        Ok(rate)
    }

    /// Nanoseconds of a lease with an executor that stood by, and of compiling a graph of ten such.
    pub fn lease_and_compile_ns(&self, repetitions: u32) -> Result<(f64, f64), Failure> {
        let mut graph = Graph::new();
        let functions: Vec<_> =
            (0..HOPS).map(|_| graph.function(self.library, "chain_copy")).collect();
        graph.input(functions[0], SMALL).output(functions[HOPS - 1], SMALL);
        for two in functions.windows(2) {
            graph.edge(two[0], two[1], SMALL);
        }
        let (mut leases, mut compiles) = (Vec::new(), Vec::new());
        for number in 0..=repetitions {
            thread::sleep(REST);
            let start = Instant::now();
            let direct = self.direct("chain_copy", &warm())?;
            let lease = start.elapsed();
            direct.executor.release()?;
            thread::sleep(REST);
            let start = Instant::now();
            let graph = self.client.compile_with(&graph, &warm())?;
            let compile = start.elapsed();
            graph.release()?;
            if number > 0 {
                leases.push(lease.as_nanos() as f64);
                compiles.push(compile.as_nanos() as f64);
            }
        }
        Ok((median(leases), median(compiles)))
    }

    /// Bytes of memory of an edge, and percent of a core that a graph needs which has nothing to do.
    pub fn bytes_of_an_edge_and_idle_percent(&self) -> Result<(f64, f64), Failure> {
        let watched = Watched::new(self.executor_manager);
        let mut memory = [0.0; 2];
        let mut percent = 0.0;
        for (memory, edges) in memory.iter_mut().zip(EDGES) {
            let mut graph = Graph::new();
            let first = graph.function(self.library, "chain_copy");
            let second = graph.function(self.library, "chain_copy");
            graph.input(first, SLOT_BYTES).output(second, SLOT_BYTES);
            for _ in 0..edges {
                graph.edge(first, second, SLOT_BYTES);
            }
            watched.at_rest();
            let mut graph = self.client.compile_with(&graph, &warm().slots(SLOTS))?;
            let input = [1; SLOT_BYTES];
            for outputs in graph.map((0..4 * SLOTS).map(|_| input)) {
                outputs?; // all slots were written
            }
            watched.at_rest();
            let mut used = watched.processes();
            used.push(std::process::id());
            // What stands by is there in both cases: as many.
            *memory = used.iter().filter_map(|id| proportional_memory(*id)).sum::<u64>() as f64;
            let of = |ids: &[u32]| ids.iter().map(|id| processor_time_of_threads(*id)).sum();
            let (start, begun): (Instant, Duration) = (Instant::now(), of(&used));
            thread::sleep(Duration::from_secs(2));
            let worked = of(&used).saturating_sub(begun);
            percent = 100.0 * worked.as_secs_f64() / start.elapsed().as_secs_f64();
            graph.release()?;
        }
        Ok(((memory[1] - memory[0]) / (EDGES[1] - EDGES[0]) as f64, percent))
    }
}

/// What `chain_end` returned: nanoseconds, and bytes that came to it.
fn told(outputs: &[Vec<u8>]) -> Result<(u64, u64), Failure> {
    let numbers = outputs.first().and_then(|output| {
        let (time, rest) = output.split_first_chunk()?;
        Some((u64::from_le_bytes(*time), u64::from_le_bytes(*rest.first_chunk()?)))
    });
    numbers.ok_or_else(|| Failure::later("a chain has told no time"))
}

/// An executor with one worker.
struct Direct {
    executor: Executor,
    function: rfaas::Function,
    input: rfaas::Input,
    output: rfaas::Output,
}

impl Direct {
    fn call(&mut self) -> Result<(), Failure> {
        match self.executor.invoke(&self.function, &self.input, &mut self.output)? {
            SMALL => Ok(()),
            other => Err(Failure::later(format!("{other} bytes came back, not {SMALL}"))),
        }
    }
}
