//! All runs: everybody in turn, once a run.

use std::collections::BTreeSet;
use std::thread;

use rdmalib::Provider;
use rfaas_config::Devices;
use rfaas_program::Failure;

use crate::contender::{Contender, NotMeasured};
use crate::effort::Effort;
use crate::floors::bounce::Bounce;
use crate::floors::copies::Copies;
use crate::floors::eventfd::Wake;
use crate::floors::verbs::PingPong;
use crate::installed::libfabric::Libfabric;
use crate::installed::perftest::{WriteLat, write_bandwidth};
use crate::installed::ucx::Ucx;
use crate::ours::{InPlace, Service, Site, Transport, Wait};
use crate::peers::grpc::Grpc;
use crate::peers::http::Http;
use crate::peers::unix::Unix;
use crate::results::{Rates, Results, Row};
use crate::{PAYLOADS, SHOWN};
use benchmarks::progress::ProgressBar;

/// Invocations in flight on one worker.
const IN_FLIGHT: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Bytes of messages whose bandwidth is measured.
const STREAMED: [u32; 3] = [4 << 10, 64 << 10, 1 << 20];

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Devices of ours, by name; an empty name is the only device of the database.
    pub devices: Vec<String>,
    /// Runs.
    pub runs: u32,
    /// Effort of a cell.
    pub effort: Effort,
    /// Payloads, of those that contenders are measured with, in bytes.
    pub payloads: Vec<u32>,
}

/// Runs all of it on devices of `database`. Returns what was measured, and on which devices.
pub fn run(
    settings: &Settings,
    database: &Devices,
) -> Result<(Results, Vec<(String, Provider)>), Failure> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let mut once = BTreeSet::new();
    if let Some(twice) = settings.devices.iter().find(|name| !once.insert(*name)) {
        return Err(Failure::input(format!("device {twice:?} is given twice")));
    }
    let start = |name: &String| Site::start(database, name, cores);
    let sites = settings.devices.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let contenders = contenders(&sites);
    let mut results = Results {
        rows: contenders.iter().map(|contender| Row::of(&**contender)).collect(),
        in_flight: sites.iter().map(rates).collect(),
        scaling: sites.iter().map(rates).collect(),
        bandwidth: sites.iter().filter(is_verbs).map(rates).collect(),
    };
    let payloads = |contender: &dyn Contender| {
        let all = contender.payloads().into_iter();
        all.filter(|payload| settings.payloads.contains(payload)).collect::<Vec<_>>()
    };
    let cells: usize = contenders.iter().map(|contender| payloads(&**contender).len()).sum();
    let mut progress = ProgressBar::of(u64::from(settings.runs) * cells as u64);
    let mut skipped = BTreeSet::new();
    for _ in 0..settings.runs {
        for (at, contender) in contenders.iter().enumerate() {
            for payload in payloads(&**contender) {
                progress.step();
                if skipped.contains(&(at, payload)) {
                    continue;
                }
                let row = &mut results.rows[at];
                if !measure(&**contender, payload, settings.effort, row)? {
                    skipped.insert((at, payload));
                }
            }
        }
        for (at, site) in sites.iter().enumerate() {
            throughput(site, settings.effort, &mut results.in_flight[at])?;
            scaling(site, cores, settings.effort, &mut results.scaling[at])?;
        }
        for (rates, site) in results.bandwidth.iter_mut().zip(sites.iter().filter(is_verbs)) {
            bandwidth(site, settings.effort, rates)?;
        }
    }
    drop(progress);
    drop(contenders);
    let devices = sites.iter().map(|site| (site.device().name.clone(), site.device().provider));
    let devices = devices.collect();
    sites.into_iter().try_for_each(Site::stop)?;
    Ok((results, devices))
}

/// Everybody, in the order of the table.
fn contenders<'a>(sites: &'a [Site]) -> Vec<Box<dyn Contender + 'a>> {
    let mut all: Vec<Box<dyn Contender>> = vec![Box::new(Bounce), Box::new(Copies), Box::new(Wake)];
    for site in sites {
        if is_verbs(&site) {
            let device = site.device();
            all.push(Box::new(WriteLat { device }));
            all.push(Box::new(PingPong { device, wait: Wait::Hot }));
            all.push(Box::new(PingPong { device, wait: Wait::Warm }));
        }
        for wait in [Wait::Hot, Wait::Warm] {
            all.push(Box::new(Transport { site, wait }));
            all.push(Box::new(Service { site, wait }));
            if wait == Wait::Hot {
                all.push(Box::new(InPlace { site }));
            }
        }
    }
    all.push(Box::new(Ucx::Message));
    all.push(Box::new(Ucx::Put));
    all.push(Box::new(Libfabric));
    all.push(Box::new(Unix));
    all.push(Box::new(Grpc::Unix));
    all.push(Box::new(Grpc::Tcp));
    all.push(Box::new(Http));
    all
}

/// Measures one cell; `false` if it cannot be.
fn measure(
    contender: &dyn Contender,
    payload: u32,
    effort: Effort,
    row: &mut Row,
) -> Result<bool, Failure> {
    match alone(|| contender.measure(payload, effort)) {
        Ok(mut round) => {
            if payload != SHOWN {
                round.each = Vec::new();
            }
            row.cells.entry(payload).or_default().0.push(round);
            Ok(true)
        }
        Err(NotMeasured::NotRun(reason)) => {
            row.not_run.get_or_insert(reason);
            Ok(false)
        }
        Err(NotMeasured::Failed(failure)) => {
            Err(Failure::later(format!("{}, {payload} bytes: {failure}", row.name)))
        }
    }
}

fn throughput(site: &Site, effort: Effort, rates: &mut Rates) -> Result<(), Failure> {
    for in_flight in IN_FLIGHT {
        let rate = alone(|| site.in_flight(in_flight, effort))?;
        rates.by.entry(in_flight.into()).or_default().push(rate);
    }
    Ok(())
}

fn scaling(site: &Site, cores: u32, effort: Effort, rates: &mut Rates) -> Result<(), Failure> {
    for workers in 1..=cores {
        let rate = alone(|| site.scaling(workers, effort))?;
        rates.by.entry(workers).or_default().push(rate);
    }
    Ok(())
}

fn bandwidth(site: &Site, effort: Effort, rates: &mut Rates) -> Result<(), Failure> {
    for payload in STREAMED {
        match write_bandwidth(site.device(), payload, effort) {
            Ok(rate) => rates.by.entry(payload).or_default().push(rate),
            Err(NotMeasured::NotRun(reason)) => {
                rates.not_run.get_or_insert(reason);
            }
            Err(NotMeasured::Failed(failure)) => return Err(failure),
        }
    }
    Ok(())
}

/// Does `what` in a thread of its own: one that is pinned stays pinned, and what it starts would be too.
fn alone<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(what);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_verbs(site: &&Site) -> bool {
    site.device().provider == Provider::Verbs
}

fn rates<S: std::borrow::Borrow<Site>>(site: S) -> Rates {
    Rates::on(&site.borrow().device().name)
}

const _: () = assert!(PAYLOADS[3] == SHOWN, "the payload that is shown is one of those");
