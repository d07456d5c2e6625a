//! The honest client: leases a core, deploys, calls, gives back, and asks over HTTP, over and over.
//! It does not try again: what fails once has failed.

use std::time::{Duration, Instant};

use rfaas::{Client, Error, LeaseRequest};
use testkit::{Http, LocalCluster};

use testkit::run::library;
use testkit::service::warm;

/// Calls of one lease.
const CALLS: usize = 50;
const PAYLOAD: usize = 64;

/// The client.
pub struct Honest {
    client: Client,
    http: Http,
    library: std::path::PathBuf,
}

/// How long a cycle took.
pub struct Cycle {
    /// From asking for a lease to the first result.
    first: Duration,
    /// Each further call.
    calls: Vec<Duration>,
    /// The question over HTTP.
    http: Duration,
}

/// What was served in some time.
#[derive(Default)]
pub struct Served {
    first: Vec<Duration>,
    calls: Vec<Duration>,
    http: Vec<Duration>,
    /// What strangers did meanwhile, in their words.
    pub attacks: String,
}

impl Honest {
    pub fn new(cluster: &LocalCluster) -> Self {
        let (client, http) = (cluster.client().unwrap(), cluster.http().unwrap().clone());
        Honest { client, http, library: library("functions") }
    }

    /// Goes on until `over`, at least once.
    pub fn until(&mut self, what: &str, over: impl Fn() -> bool) -> Served {
        let mut served = Served::default();
        loop {
            let cycle = self.cycle().unwrap_or_else(|error| {
                let cycles = served.first.len();
                panic!("{what}: the honest client was not served, after {cycles} cycles: {error:?}")
            });
            served.first.push(cycle.first);
            served.calls.extend(cycle.calls);
            served.http.push(cycle.http);
            if over() {
                return served;
            }
        }
    }

    /// From a lease to its end.
    pub fn cycle(&mut self) -> Result<Cycle, Error> {
        let begin = Instant::now();
        let lease = self.client.lease(LeaseRequest::new(1, 64))?;
        let mut executor = lease.deploy_with(&self.library, &warm())?;
        let empty = executor.function("empty")?;
        let (mut input, mut output) = (executor.input(PAYLOAD)?, executor.output(PAYLOAD)?);
        let mut calls = Vec::with_capacity(CALLS);
        let mut first = Duration::ZERO;
        for number in 0..=CALLS {
            let call = Instant::now();
            input.fill(number as u8);
            let bytes = executor.invoke(&empty, &input, &mut output)?;
            assert_eq!(output.to_vec(..bytes)?, [number as u8; PAYLOAD], "another call's result");
            match number {
                0 => first = begin.elapsed(),
                _ => calls.push(call.elapsed()),
            }
        }
        executor.release()?;
        let asked = Instant::now();
        let answer = self.http.get("/healthz").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(Cycle { first, calls, http: asked.elapsed() })
    }
}

impl Served {
    pub const HEADER: &str = "                  cycles   lease to result p50, p99    call p50, p99          HTTP p50, p99";

    /// A row of the table under [`HEADER`](Self::HEADER).
    pub fn row(&self, what: &str) -> String {
        let [first, calls, http] = [&self.first, &self.calls, &self.http].map(|times| {
            format!("{:>9.2?} {:>9.2?}", percentile(times, 50), percentile(times, 99))
        });
        format!(
            "{what:<17} {:>6}     {first}     {calls}     {http}   {}",
            self.first.len(),
            self.attacks
        )
    }
}

/// The time that `percent` of `times`, which are not empty, do not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}
