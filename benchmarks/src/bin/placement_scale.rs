//! What it takes to place a gang on more and more nodes, by each policy: placement alone, without pool or log.
//!
//! Nodes have 16 cores, of which a random number is free. A gang of workers of one core each is placed again and again
//! on the same nodes, as it comes and apart (each worker on a node of its own). Beside it, as many single workers are
//! placed by first fit, one after the other, each taken from what is free before the next: what a client gets today
//! that asks for them one by one.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchmarks::Printing;
use benchmarks::machine::Machine;
use benchmarks::report::print_one;
use clap::{Parser, value_parser};
use resource_manager::placement::{Gang, Place, Places, Policy, Wish, place};
use resource_manager::pool::Capacity;
use rfaas_program::{self as program, Failure};
use serde::Serialize;
use serde_json::json;

const CORES: u32 = 16;
const EACH: Capacity = Capacity { cores: 1, memory: 64 };

/// Measures how placement scales: a gang placed by each policy, beside single leases by first fit.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Numbers of nodes.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "100,1000,10000",
          value_parser = value_parser!(u32).range(100..=1_000_000))]
    nodes: Vec<u32>,
    /// Workers of a gang.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=100))]
    workers: u32,
    /// Gangs placed by each policy.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value_parser!(u32).range(1..))]
    gangs: u32,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Debug, Serialize)]
struct Row {
    nodes: u32,
    policy: &'static str,
    apart: bool,
    gang_ns: f64,
    /// The same number of single workers by first fit.
    first_fit_ns: f64,
    ratio: f64,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for &nodes in &cli.nodes {
        let mut places = cluster(nodes);
        let first_fit_ns = first_fit(&mut places, cli.workers, cli.gangs)?;
        for policy in Policy::ALL {
            for apart in [false, true] {
                let wish = Wish { apart, ..Wish::default() };
                let gang = Gang {
                    workers: cli.workers,
                    each: EACH,
                    until: None,
                    wish: &wish,
                    beside: &[],
                };
                let start = Instant::now();
                for _ in 0..cli.gangs {
                    place(black_box(&places), policy, black_box(gang)).map_err(Failure::later)?;
                }
                let gang_ns = start.elapsed().as_nanos() as f64 / f64::from(cli.gangs);
                let (policy, ratio) = (policy.name(), gang_ns / first_fit_ns);
                rows.push(Row { nodes, policy, apart, gang_ns, first_fit_ns, ratio });
            }
        }
    }
    let machine = Machine::this();
    let object = json!({
        "benchmark": "placement_scale",
        "workers": cli.workers,
        "gangs": cli.gangs,
        "sizes": rows,
        "machine": machine,
    });
    let mut table = format!("placement_scale: gangs of {} workers\non {machine}\n\n", cli.workers);
    table += &format!("{:>8}{:>12}{:>8}{:>12}", "nodes", "policy", "apart", "ns/gang");
    table += &format!("{:>18}{:>8}\n", "ns/singles", "ratio");
    for Row { nodes, policy, apart, gang_ns, first_fit_ns, ratio } in &rows {
        table += &format!("{nodes:>8}{policy:>12}{apart:>8}{gang_ns:>12.0}");
        table += &format!("{first_fit_ns:>18.0}{ratio:>8.2}\n");
    }
    print_one(cli.printing, object, table)
}

/// Nodes of which a random number of cores is free.
fn cluster(nodes: u32) -> Places {
    let mut places = Places::default();
    let mut random = 1_u64; // Knuth's MMIX, TAOCP 2, 3.3.4
    for number in 0..nodes as usize {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let capacity = |cores| Capacity { cores, memory: cores * 4096 };
        let free = (random >> 33) as u32 % (CORES + 1);
        places.set(number, Some(&Place::new(capacity(free), capacity(CORES))));
    }
    places
}

/// How long so many single workers take, one after the other.
fn first_fit(places: &mut Places, workers: u32, times: u32) -> Result<f64, Failure> {
    let wish = Wish::default();
    let gang = Gang { workers: 1, each: EACH, until: None, wish: &wish, beside: &[] };
    let mut taken = Duration::ZERO;
    let mut nodes = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        for _ in 0..workers {
            let placed = place(black_box(places), Policy::FirstFit, black_box(gang));
            let node = placed.map_err(Failure::later)?[0];
            let Capacity { cores, memory } = places.free(node);
            let left = Capacity { cores: cores - EACH.cores, memory: memory - EACH.memory };
            places.set_free(node, left);
            nodes.push(node);
        }
        taken += start.elapsed();
        for node in nodes.drain(..) {
            let Capacity { cores, memory } = places.free(node);
            places.set_free(
                node,
                Capacity { cores: cores + EACH.cores, memory: memory + EACH.memory },
            );
        }
    }
    Ok(taken.as_nanos() as f64 / f64::from(times))
}
