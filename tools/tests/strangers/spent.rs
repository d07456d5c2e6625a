//! What managers hold: descriptors, address space, memory, lines of log.

use std::fs;
use std::time::{Duration, Instant};

use testkit::test_devices::patience;
use testkit::{LocalCluster, procfs};

use testkit::wait::eventually_or;

/// Managers forget half-open connections after 5 s, those that wait after 30 s; then all of it is back.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// Descriptors that may differ: a log, a connection of the honest client that is being closed.
const DESCRIPTORS: usize = 8;
/// Address space that may differ, in KiB: stacks of threads, and what the allocator reserves for each (64 MiB, and it
/// keeps 8 per processor). One sparse file is a million times that.
const ADDRESSES_KIB: u64 = 1 << 20;
/// Memory that may differ, in KiB: what the allocator keeps of what was freed.
const MEMORY_KIB: u64 = 64 << 10;
/// Lines of log at once, and in a second: what a log lets pass of a few kinds of events that repeat
/// (`rfaas/program/src/log/limiter.rs`). Those about leases are the honest client's, and not counted.
const LINES: usize = 1000;
const LINES_PER_SECOND: usize = 100;

/// What both managers hold, and have logged.
#[derive(Clone, Debug)]
pub struct Spent {
    managers: Vec<Holds>,
    lines: usize,
    at: Instant,
}

#[derive(Clone, Debug)]
struct Holds {
    name: &'static str,
    id: u32,
    descriptors: usize,
    addresses_kib: u64,
    memory_kib: u64,
}

impl Spent {
    pub fn by_managers(cluster: &mut LocalCluster) -> Self {
        let resource_manager = cluster.resource_manager().unwrap().id();
        let executor_manager = cluster.executor_manager().unwrap().id();
        let managers = vec![
            Holds::of("resource manager", resource_manager),
            Holds::of("executor manager", executor_manager),
        ];
        Spent { managers, lines: lines(cluster).len(), at: Instant::now() }
    }

    /// Waits until what managers hold is what this says, after `what`; returns what
    /// they had logged meanwhile.
    pub fn is_given_back(&self, what: &str, cluster: &LocalCluster) -> Self {
        let now = || self.managers.iter().map(|manager| Holds::of(manager.name, manager.id));
        eventually_or(
            &format!("{what}: managers hold what they did before"),
            patience(FORGOTTEN),
            || self.managers.iter().zip(now()).all(|(before, now)| before.is_back(&now)),
            || format!("before: {:?}; now: {:?}", self.managers, now().collect::<Vec<_>>()),
        );
        let lines = lines(cluster);
        let more = lines.get(self.lines..).unwrap_or_default(); // of a long log the end is kept
        let last = more[more.len().saturating_sub(20)..].join("\n");
        let most = LINES + self.at.elapsed().as_secs() as usize * LINES_PER_SECOND;
        assert!(more.len() <= most, "{what}: {} lines of log, the last: {last}", more.len());
        Spent { managers: self.managers.clone(), lines: lines.len(), at: Instant::now() }
    }

    /// For people.
    pub fn told(&self) -> String {
        let told = self.managers.iter().map(|Holds { name, id, .. }| {
            let Holds { descriptors, addresses_kib, memory_kib, .. } = Holds::of(name, *id);
            let (addresses, memory) = (addresses_kib >> 10, memory_kib >> 10);
            format!("{name}: {descriptors} descriptors, {addresses} MiB of addresses, {memory} MiB of memory")
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

/// What managers have logged, but for leases.
fn lines(cluster: &LocalCluster) -> Vec<String> {
    let log = cluster.logs();
    log.lines().filter(|line| !line.contains("lease")).map(str::to_owned).collect()
}

impl Holds {
    fn of(name: &'static str, id: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{id}/status"))
            .unwrap_or_else(|error| panic!("the {name} is gone: {error}"));
        let kib = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key));
            let value = value.unwrap_or_else(|| panic!("the {name} has ended: {status}"));
            value.trim_end_matches("kB").trim().parse().unwrap()
        };
        Holds {
            name,
            id,
            descriptors: procfs::open_files(id).len(),
            addresses_kib: kib("VmSize:"),
            memory_kib: kib("VmRSS:"),
        }
    }

    fn is_back(&self, now: &Holds) -> bool {
        now.descriptors <= self.descriptors + DESCRIPTORS
            && now.addresses_kib <= self.addresses_kib + ADDRESSES_KIB
            && now.memory_kib <= self.memory_kib + MEMORY_KIB
    }
}
