//! From nothing to the first result, again and again: lease, deployment, invocation, release.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use benchmarks::echo::Known;
use benchmarks::floor::ColdFloor;
use benchmarks::progress::ProgressBar;
use benchmarks::service::{self, Buffers};
use benchmarks::{Measure, Report, RunPlan, Samples, Service};
use clap::{Parser, value_parser};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rdmalib::Provider;
use rfaas::Client;
use rfaas_program::{self as program, Failure};

/// Measures cold starts: each repetition leases cores, deploys the library, calls the function once on each core
/// and releases the lease. In turn with it, the floors: a fork, and fork + exec + dlopen of a minimal
/// C program with the same library, on an RDMA device fork + exec + rdma_connect (not measured where
/// there is no C compiler, cc, or no header of rdma-core).
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    #[command(flatten)]
    service: Service,
    /// Cores to lease, a worker on each.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    cores: u32,
    /// Deploy a library that the node has never seen in each repetition. Otherwise the node keeps it from
    /// the first one.
    #[arg(long)]
    first_ever: bool,
    /// Deploy the library with bytes behind it that mean nothing to the loader, so that its file has MB megabytes
    /// (of 2^20 bytes); without it as it is.
    #[arg(long, value_name = "MB", value_parser = value_parser!(u32).range(1..=4095))]
    library_mb: Option<u32>,
    /// Pause after each repetition.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause: u64,
}

/// Phases in the order of the samples file: the original's, then those that it did not measure.
const COLUMNS: [&str; 7] =
    ["connect", "submit", "spawn_connect", "initialize", "execute", "lease", "total"];
/// Phases in the order in which they happen.
const ORDER: [&str; 7] =
    ["lease", "connect", "submit", "spawn_connect", "initialize", "execute", "total"];

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.measure.printing.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let plan = RunPlan::of(&cli.measure)?;
    let library = service::library(&cli.service)?;
    let client = service::connect(&plan, &cli.service)?;
    let mut libraries = Libraries::new(library.clone(), &cli)?;
    let start = ColdStart { plan: &plan, cli: &cli, client: &client };

    for number in 0..plan.warmup_repetitions {
        start.once(&libraries.next()?, number.into())?;
    }
    let mut sent = 0;
    let repetitions = plan.repetitions as usize;
    let mut columns = COLUMNS.map(|name| (name, Samples::with_capacity(repetitions)));
    let (mut floor, least) = floor_of(&plan, &library)?;
    let mut floors = [Samples::with_capacity(repetitions), Samples::with_capacity(repetitions)];
    let mut progress = ProgressBar::of(plan.repetitions.into());
    for number in 0..plan.repetitions {
        let (times, library_sent) = start.once(&libraries.next()?, number.into())?;
        sent += u32::from(library_sent);
        for ((_, samples), time) in columns.iter_mut().zip(times) {
            samples.record(time);
        }
        if let Some(floor) = &mut floor {
            let times = floor.once()?;
            floors[0].record(times.fork);
            floors[1].record(times.exec);
        }
        progress.step();
        std::thread::sleep(Duration::from_millis(cli.pause));
    }
    drop(progress);

    let mut report = Report::new("cold_benchmarker", &plan, Some(&cli.service.name));
    report.set("workers", cli.cores);
    report.set("library_bytes", libraries.bytes);
    report.set("library_sent", sent); // in so many repetitions
    for name in ORDER {
        let (_, samples) =
            columns.iter().find(|(column, _)| *column == name).expect("both lists have all names");
        report.phase(name, samples);
    }
    if floor.is_some() {
        report.floor("fork", &floors[0]);
        report.floor(least, &floors[1]);
    }
    let columns = columns.each_ref().map(|(name, samples)| (*name, samples));
    let note = format!(
        "library of {} bytes: sent in {sent} of {} repetitions\n",
        libraries.bytes, plan.repetitions
    );
    report.finish(&cli.measure, &columns, &note)
}

/// The floor of a cold start on the device of `plan`, and its name in the report.
fn floor_of(plan: &RunPlan, library: &Path) -> Result<(Option<ColdFloor>, &'static str), Failure> {
    let device = &plan.device.device;
    Ok(match device.spec().provider {
        Provider::Verbs => (ColdFloor::connecting(device.ip_address())?, "exec_connect"),
        Provider::Shm | Provider::Tcp => (ColdFloor::loading(library)?, "exec_dlopen"),
    })
}

/// The library of each repetition. What is behind an ELF file's sections means nothing to the loader, so it can have
/// any size, and be another one each time.
struct Libraries {
    path: PathBuf,
    bytes: u64,
    first_ever: bool,
    /// The library, if the file at `path` is not used as it is.
    code: Option<Vec<u8>>,
    /// The one of the last repetition, in memory.
    last: Option<File>,
}

impl Libraries {
    /// The file at `path` each time, unless `cli` asks for others.
    fn new(path: PathBuf, cli: &Cli) -> Result<Self, Failure> {
        let code = fs::read(&path);
        let mut code =
            code.map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        if let Some(mb) = cli.library_mb {
            service::enlarge(&mut code, (mb as usize) << 20);
        }
        let bytes = code.len() as u64;
        let code = (cli.first_ever || cli.library_mb.is_some()).then_some(code);
        Ok(Libraries { path, bytes, first_ever: cli.first_ever, code, last: None })
    }

    /// The next one.
    fn next(&mut self) -> Result<PathBuf, Failure> {
        let Some(code) = &self.code else { return Ok(self.path.clone()) };
        let file = match self.last.take().filter(|_| !self.first_ever) {
            Some(file) => file,
            None => file_of(code, self.first_ever)
                .map_err(|error| Failure::later(format!("a library in memory: {error}")))?,
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.last = Some(file);
        Ok(path.into())
    }
}

/// A file in memory with `code`, and if it is to be `fresh`, something that no other one has.
fn file_of(code: &[u8], fresh: bool) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"library", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(code)?;
    if fresh {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        file.write_all(&now.to_ne_bytes())?;
    }
    Ok(file)
}

/// What a repetition needs.
struct ColdStart<'a> {
    plan: &'a RunPlan,
    cli: &'a Cli,
    client: &'a Client,
}

impl ColdStart<'_> {
    /// One repetition: its times, in the order of [`COLUMNS`], and whether `library` was sent.
    fn once(&self, library: &Path, number: u64) -> Result<([Duration; 7], bool), Failure> {
        let begin = Instant::now();
        let request = service::request(self.plan, self.cli.cores);
        let lease = self.client.lease(request)?;
        let leased = begin.elapsed();
        let deployment = service::deployment(self.plan, &self.cli.service);
        let mut executor = lease.deploy_with(library, &deployment)?;
        let deployed = begin.elapsed();

        let function = executor.function(&self.cli.service.name)?;
        let mut buffers = Buffers::new(self.plan, &executor, self.cli.cores)?;
        let known = Known::of(&self.cli.service.name);
        buffers.stamp(known, number)?;
        let ready = Instant::now();
        let sizes = executor.invoke_all(&function, &buffers.inputs, &mut buffers.outputs);
        let execute = ready.elapsed();
        buffers.check(known, &sizes?, number)?;

        let phases = *executor.phases();
        executor.release()?;
        let times = [
            phases.connect,
            phases.submit,
            phases.spawn_connect,
            phases.initialize,
            execute,
            leased,
            deployed + execute,
        ];
        Ok((times, phases.library_sent))
    }
}
