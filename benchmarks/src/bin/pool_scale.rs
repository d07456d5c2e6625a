//! How the resource manager's pool scales with the number of nodes: the pool alone, without connections, store
//! or log.
//!
//! Nodes have 16 cores, leases 1 to 4. For each number of nodes, half of all cores are leased; then one lease,
//! chosen at random, is reported as ended, and another is granted and claimed in its place, again and again. An
//! operation is one of request, claim and end, with the changes that a store would be given taken after each.
//!
//! What an operation takes is processor time, since others may use the machine too; it has steps of 10 ms, and
//! random numbers are part of it. Memory is what the process has more of in memory (VmRSS) when nodes or leases
//! were added; pools stay until the end, so that none takes what another gave back.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::progress::ProgressBar;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use resource_manager::pool::{
    Action, Ask, Capacity, EndReport, Grant, LinkId, NodeSpec, Now, Pool, Run,
};
use rfaas_program::{self as program, Failure};
use rfaas_protocol::isolation::Layers;
use rfaas_protocol::lease::EndReason;
use rfaas_protocol::node::Bill;
use serde::Serialize;
use serde_json::json;
use testkit::procfs::Stat;

const CORES: u32 = 16;
const MEMORY: u32 = 16 * 4096;
/// Most cores of a lease; on average it has half of them and a half.
const LARGEST: u64 = 4;
/// Operations of a lease: request, claim, end.
const OPERATIONS: u64 = 3;
/// Fewest nodes or leases whose memory stands out of a resident set of pages.
const FEWEST_SEEN: u64 = 1000;

/// Measures how the resource manager's pool scales: leases opened, claimed and closed with more and more nodes.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Numbers of nodes.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "10,100,1000,10000",
          value_parser = value_parser!(u32).range(1..=1_000_000))]
    nodes: Vec<u32>,
    /// Leases opened, claimed and closed with each.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..))]
    leases: u64,
    /// Seed of the random choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    printing: Printing,
}

/// What was measured with one number of nodes.
#[derive(Debug, Serialize)]
struct Row {
    nodes: u32,
    open_leases: u64,
    leases_per_second: f64,
    operation_ns: f64,
    /// How much longer an operation takes than with the first number of nodes.
    growth: f64,
    /// The same of the binary logarithm of the number of nodes.
    log2_growth: f64,
    bytes_per_node: Option<u64>,
    bytes_per_lease: Option<u64>,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let mut progress = ProgressBar::of(cli.leases * cli.nodes.len() as u64);
    let mut rows: Vec<Row> = Vec::new();
    let mut clusters = Vec::new();
    for &nodes in &cli.nodes {
        let mut row = measure(&mut clusters, nodes, &cli, &mut progress)?;
        if let Some(first) = rows.first() {
            row.growth = row.operation_ns / first.operation_ns;
            row.log2_growth = f64::from(row.nodes).log2() / f64::from(first.nodes).log2();
        }
        rows.push(row);
    }
    drop(progress);
    let machine = Machine::this();
    let object = json!({
        "benchmark": "pool_scale",
        "leases": cli.leases,
        "seed": cli.seed,
        "sizes": rows,
        "machine": machine,
    });
    let mut table =
        format!("pool_scale: {} leases opened, claimed and closed\non {machine}\n\n", cli.leases);
    table += &format!("{:>8}{:>12}{:>12}{:>14}", "nodes", "open", "leases/s", "ns/operation");
    table += &format!("{:>9}{:>9}{:>13}{:>13}\n", "growth", "of log2", "bytes/node", "bytes/lease");
    let bytes = |bytes: Option<u64>| bytes.map_or("–".into(), |bytes| bytes.to_string());
    for row in &rows {
        let Row { nodes, open_leases, leases_per_second, operation_ns, .. } = row;
        table += &format!("{nodes:>8}{open_leases:>12}{leases_per_second:>12.0}");
        table += &format!("{operation_ns:>14.0}{:>9.2}{:>9.2}", row.growth, row.log2_growth);
        table += &format!("{:>13}{:>13}\n", bytes(row.bytes_per_node), bytes(row.bytes_per_lease));
    }
    print_one(cli.printing, object, table)
}

fn measure(
    clusters: &mut Vec<Cluster>,
    nodes: u32,
    &Cli { leases, seed, .. }: &Cli,
    progress: &mut ProgressBar,
) -> Result<Row, Failure> {
    let mut random = Random(seed);
    let before = resident();
    let mut cluster = Cluster::new(nodes)?;
    let with_nodes = resident();
    let wanted = u64::from(nodes) * u64::from(CORES) / 2; // always room for one more
    let mut open = Vec::new();
    let mut leased = 0;
    while leased < wanted {
        let grant = cluster.open(&mut random)?;
        leased += u64::from(grant.terms.cores);
        open.push(grant);
    }
    let with_leases = resident();
    let open_leases = open.len() as u64;

    let start = (Instant::now(), processor_time());
    for _ in 0..leases {
        let at = random.below(open_leases) as usize;
        cluster.close(&open[at])?;
        open[at] = cluster.open(&mut random)?;
        progress.step();
    }
    let (elapsed, used) = (start.0.elapsed(), processor_time().saturating_sub(start.1));
    clusters.push(cluster);
    // What is noted here of a lease that is open is no part of the pool.
    let noted = size_of::<Grant>() as u64;
    let each = |bytes: u64, of: u64| (of >= FEWEST_SEEN).then(|| bytes / of);
    Ok(Row {
        nodes,
        open_leases,
        leases_per_second: leases as f64 / elapsed.as_secs_f64(),
        operation_ns: used.as_nanos() as f64 / (leases * OPERATIONS) as f64,
        growth: 1.0,
        log2_growth: 1.0,
        bytes_per_node: each(with_nodes.saturating_sub(before), nodes.into()),
        bytes_per_lease: each(with_leases.saturating_sub(with_nodes), open_leases)
            .map(|bytes| bytes.saturating_sub(noted)),
    })
}

/// A pool whose nodes are all connected.
struct Cluster {
    pool: Pool,
    actions: Vec<Action>,
}

impl Cluster {
    fn new(nodes: u32) -> Result<Self, Failure> {
        let now = Now::read();
        let mut cluster =
            Cluster { pool: Pool::new(now, Duration::from_secs(1)), actions: Vec::new() };
        for number in 0..nodes {
            let name = format!("node-{number}");
            let capacity = Capacity { cores: CORES, memory: MEMORY };
            let spec =
                NodeSpec::new(&name, "10.0.0.1", 10_005, capacity).map_err(Failure::later)?;
            cluster.pool.add_node(now, spec, &mut cluster.actions).map_err(Failure::later)?;
            let link = LinkId(number.into());
            let address = ([10, 0, 0, 1], 10_005).into();
            let run = Run {
                instance: std::num::NonZeroU64::MIN,
                address,
                clock_ahead_ms: 0,
                isolation: Layers::NONE,
            };
            cluster
                .pool
                .node_connected(now, &name, run, link, &mut cluster.actions)
                .map_err(Failure::later)?;
            cluster.done()?;
        }
        Ok(cluster)
    }

    /// What the loop does after an operation.
    fn done(&mut self) -> Result<(), Failure> {
        self.actions.clear();
        match self.pool.take_changes().is_empty() {
            false => Ok(()),
            true => Err(Failure::later("an operation changed nothing")),
        }
    }

    /// A lease that is asked for, and claimed at its node.
    fn open(&mut self, random: &mut Random) -> Result<Grant, Failure> {
        let now = Now::read();
        let cores = 1 + random.below(LARGEST) as u32;
        let hour = Duration::from_secs(3600);
        let ask = Ask::new(cores, 64, hour, "client").map_err(Failure::later)?;
        let grant = self.pool.request(now, &ask).map_err(Failure::later)?.pop();
        let grant = grant.ok_or_else(|| Failure::later("a request was met by nothing"))?;
        self.done()?;
        self.pool.claimed(now, link_of(&grant)?, &grant.terms, &mut self.actions);
        self.done()?;
        Ok(grant)
    }

    /// The node reports its end.
    fn close(&mut self, grant: &Grant) -> Result<(), Failure> {
        let terms = grant.terms.clone();
        let report = EndReport { terms, reason: EndReason::Released, bill: Bill::default() };
        self.pool.ended(Now::read(), link_of(grant)?, &report, &mut self.actions);
        self.done()
    }
}

/// The connection of a lease's node, whose number it has.
fn link_of(grant: &Grant) -> Result<LinkId, Failure> {
    let number = grant.node.strip_prefix("node-").and_then(|number| number.parse().ok());
    number.map(LinkId).ok_or_else(|| Failure::later("a lease on a node that nobody added"))
}

/// Bytes of this process that are in memory, proc_pid_status(5).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn processor_time() -> Duration {
    Stat::of(std::process::id()).map_or(Duration::ZERO, |stat| stat.processor_time())
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same choices for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
