//! Many executors of one node that have nothing to do, and what is left of them when their leases are given back.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rfaas::{Client, Deployment, Executor, Function, Input, LeaseRequest, Output, Spin};
use rfaas_program::Failure;
use testkit::procfs::{self, Processes};

use crate::pattern;

/// Payload of the calls, in bytes.
const PAYLOAD: usize = 64;
/// Memory of a lease, in MB.
pub const LEASE_MB: u32 = 16;
/// Stack of a thread that gives a lease back.
const STACK_BYTES: usize = 256 << 10;
/// How often is looked whether something is left. It takes processor time of those that are ending.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// When what is left then counts as left for good.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Where control groups are, and how deep those of a manager may be.
const GROUPS: &str = "/sys/fs/cgroup";
const GROUPS_DEPTH: u32 = 8;

/// Executors with a lease each, of one worker that sleeps while it has nothing to do.
#[derive(Debug)]
pub struct Crowd {
    members: Vec<Member>,
    /// How long each took from nothing to its first result.
    pub starts: Vec<Duration>,
}

#[derive(Debug)]
struct Member {
    executor: Executor,
    function: Function,
    input: Input,
    output: Output,
}

impl Crowd {
    /// Starts `count` executors with `library`, one after the other, and calls a function on each.
    pub fn start(client: &Client, count: u32, library: &Path) -> Result<Self, Failure> {
        let deployment = Deployment::new().spin(Spin::Never);
        let deployment = deployment.input_bytes(PAYLOAD).output_bytes(PAYLOAD);
        let mut crowd = Crowd { members: Vec::new(), starts: Vec::new() };
        for number in 0..count {
            let begin = Instant::now();
            let started = client
                .lease(LeaseRequest::new(1, LEASE_MB))
                .and_then(|lease| lease.deploy_with(library, &deployment))
                .map_err(Failure::from)
                .and_then(Member::new)
                .and_then(|mut member| member.call(number.into()).map(|()| member));
            let member = started.map_err(|error| {
                Failure::later(format!("executor {} of {count}: {error}", number + 1))
            })?;
            crowd.starts.push(begin.elapsed());
            crowd.members.push(member);
        }
        Ok(crowd)
    }

    /// Calls a function on each.
    pub fn call(&mut self) -> Result<(), Failure> {
        (0..).zip(&mut self.members).try_for_each(|(number, member)| member.call(number))
    }

    /// Gives all leases back at once, each from a thread; returns when each has its bill.
    pub fn release(self) -> Result<(), Failure> {
        let release = |member: Member| {
            let bill = member.executor.release()?;
            match bill.invocations.get() {
                0 => Err(Failure::later("the bill of an executor that was called has no call")),
                _ => Ok(()),
            }
        };
        thread::scope(|scope| {
            let start = |member| {
                let thread = thread::Builder::new().stack_size(STACK_BYTES);
                let started = thread.spawn_scoped(scope, move || release(member));
                started.map_err(|error| Failure::later(format!("no thread to release: {error}")))
            };
            let threads = self.members.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
            let ended = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
            ended.collect()
        })
    }
}

impl Member {
    fn new(executor: Executor) -> Result<Self, Failure> {
        let function = executor.function("empty")?;
        let (input, output) = (executor.input(PAYLOAD)?, executor.output(PAYLOAD)?);
        Ok(Member { executor, function, input, output })
    }

    /// Fails unless its input comes back.
    fn call(&mut self, number: u64) -> Result<(), Failure> {
        let Member { executor, function, input, output } = self;
        pattern::write_stamp(PAYLOAD, number, |offset, bytes| {
            input.write(offset, bytes).map_err(Failure::from)
        })?;
        let returned = executor.invoke(function, input, output)?;
        pattern::compare_length(number, PAYLOAD, returned)?;
        pattern::check_stamp(PAYLOAD, number, |offset, out| {
            output.read(offset, out).map_err(Failure::from)
        })
    }
}

/// What an executor manager holds of its executors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Processes, with the zygote and what stands by.
    pub processes: usize,
    /// Their control groups, with those that are made ahead.
    pub groups: usize,
    /// Descriptors of the manager: sockets, shared memory.
    pub descriptors: usize,
}

impl Held {
    /// Whether it is no more than `before`.
    fn is_at_most(self, before: Held) -> bool {
        self.processes <= before.processes
            && self.groups <= before.groups
            && self.descriptors <= before.descriptors
    }
}

/// An executor manager, watched from outside.
#[derive(Debug)]
pub struct Watched {
    manager: u32,
    /// Its directories of control groups, one in each hierarchy.
    groups: Vec<PathBuf>,
}

impl Watched {
    /// Watches the executor manager with process id `manager`.
    pub fn new(manager: u32) -> Self {
        let mut groups = Vec::new();
        let prefix = format!("rfaas-{manager}-");
        find_directories(Path::new(GROUPS), &prefix, GROUPS_DEPTH, &mut groups);
        Watched { manager, groups }
    }

    /// Process ids of all that it has started, and what that has.
    pub fn processes(&self) -> Vec<u32> {
        let processes = Processes::now();
        let started: Vec<u32> = processes.children(self.manager).map(|(id, _)| id).collect();
        let guarded = started.iter().flat_map(|id| processes.children(*id).map(|(id, _)| id));
        started.iter().copied().chain(guarded).collect()
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let groups = self.groups.iter().flat_map(|directory| directories(directory)).count();
        let descriptors = procfs::open_files(self.manager).len();
        Held { processes: self.processes().len(), groups, descriptors }
    }

    /// Waits until it holds no more than `before`.
    pub fn wait_until_gone(&self, before: Held) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let held = self.held();
            if held.is_at_most(before) {
                return Ok(());
            }
            if start.elapsed() >= GONE_WITHIN {
                return Err(Failure::later(format!(
                    "after {GONE_WITHIN:?} the executor manager has {held:?}, and had {before:?}"
                )));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until it has held as much for a while; returns that.
    pub fn at_rest(&self) -> Held {
        let mut last = (self.held(), Instant::now());
        while last.1.elapsed() < REST {
            thread::sleep(LOOK_AGAIN);
            let held = self.held();
            if held != last.0 {
                last = (held, Instant::now());
            }
        }
        last.0
    }
}

/// How long nothing changes until nothing will: longer than an executor takes until it stands by.
const REST: Duration = Duration::from_millis(500);

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path())
}

/// Adds to `found` the directories below `path` whose name begins with `prefix`, down to `depth`.
fn find_directories(path: &Path, prefix: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for path in directories(path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) {
            found.push(path);
        } else if depth > 0 {
            find_directories(&path, prefix, depth - 1, found);
        }
    }
}
