//! Control groups of executors: what all processes of a lease may take together.
//!
//! ```text
//!   maker thread ──makes──▶ ready ──take──▶ Group: attach, limit ──drop──▶ maker thread ──kills, removes──▶
//! ```
//! * A group is of one executor, and never used again: memory that was charged to it may stay, as that of a library
//!   that the node keeps.
//! * Nothing on the way of a lease waits for a group: some are made ahead, and they are removed by the thread. Nor for
//!   moving into it: a process with one thread moves itself (`entrances`). That another one moves it waits until all
//!   processors have passed through the kernel, some 13 ms (the kernel's `cgroup_threadgroup_rwsem`).
//! * What keeps a process from leaving its group is a layer of its sandbox: `user`, `view` or `landlock_files`. Without
//!   any of these, it may write to the hierarchy as this manager does.
//! * BOUNDED - [`MOST_GROUPS`], with those that cannot be removed yet. Beyond that no executor is started.
//! * Those of a manager that was killed are removed by the next one (`hierarchy`).
//!
//! Elsewhere: limits of single processes (`rfaas_sandbox`), how much an executor gets (`share`).

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hierarchy::{Hierarchy, Stale};
use rfaas_program::control_groups::Version;
use rfaas_protocol::isolation::MAX_TASKS;

mod hierarchy;
mod leftover;
mod share;

pub use share::limits_of;

/// Most groups at a time: an executor for each core of the largest node, several times.
const MOST_GROUPS: usize = 4096;
/// Groups that are made ahead: executors that are started at once, within a [`PAUSE`].
const READY: usize = 4;
/// After a group was taken or given back, before the next are made and removed: the executor starts meanwhile.
const PAUSE: Duration = Duration::from_millis(10);
/// A group that is still busy is tried again after the first, and less and less often.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// When it is time to say that one cannot be removed.
const BUSY_FOR: Duration = Duration::from_secs(10);
/// How long what is left at the end may take.
const END_WITHIN: Duration = Duration::from_millis(500);

/// Makes groups for executors.
#[derive(Debug)]
pub struct Groups {
    shared: Arc<Shared>,
    maker: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the loop and the thread share.
#[derive(Debug)]
struct Shared {
    hierarchies: Vec<Hierarchy>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Place>,
    /// Groups that are there, with those in use.
    count: usize,
    next: u64,
}

/// What the thread is asked to do.
#[derive(Debug)]
enum Order {
    /// One was taken.
    Refill,
    Remove(Place),
    /// All are to be removed.
    End,
}

/// The directories of a group, one in each hierarchy; of a manager that was killed, all that it has left in one.
#[derive(Debug, Default)]
struct Place {
    paths: Vec<PathBuf>,
    /// What a process writes to in order to move in.
    entrances: Vec<File>,
}

/// What an executor may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory of all its processes, in bytes: private, shared, and files in memory.
    pub memory: u64,
    /// The processors, if it is kept on some.
    pub cpus: Option<Vec<usize>>,
}

/// What a group says of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMemory {
    /// The limit, in bytes.
    pub limit: u64,
    /// The most that was used at a time, in bytes.
    pub used: u64,
    /// The kernel has killed a process, since there was no more.
    pub killed: bool,
}

/// The control group of an executor. Dropping it kills what is left there.
#[derive(Debug)]
pub struct Group {
    place: Option<Place>,
    shared: Arc<Shared>,
    maker: Sender<Order>,
}

impl Groups {
    /// Has groups made in the group of this process. `Err`: why there can be none. With `cpus`, executors are kept on
    /// their processors.
    pub fn start(cpus: bool) -> Result<Self, String> {
        let controllers =
            if cpus { &["memory", "pids", "cpuset"][..] } else { &["memory", "pids"] };
        let (hierarchies, stale) = Hierarchy::all(controllers)?;
        let shared = Arc::new(Shared { hierarchies, state: Mutex::default() });
        // One is made, given a limit and removed, to see whether that works. No process is moved into it.
        let tried = shared.make().map_err(|error| format!("cannot make a group: {error}"))?;
        let limits = GroupLimits { memory: 1 << 20, cpus: None };
        let limited = shared.limit(&tried, &limits);
        shared.state().count -= 1;
        tried.remove().map_err(|error| format!("cannot remove a group: {error}"))?;
        limited.map_err(|error| format!("cannot limit memory: {error}"))?;
        let (maker, orders) = channel();
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("groups".into());
        shared.state().count += stale.len();
        let stale = stale.into_iter().map(|Stale { paths, lock }| {
            Retired::new(Place { paths, entrances: Vec::new() }, Some(lock))
        });
        let stale = stale.collect();
        let thread = thread.spawn(move || of_thread.serve(&orders, stale));
        let thread = Some(thread.map_err(|error| format!("no thread: {error}"))?);
        let _ = maker.send(Order::Refill); // it lives as long as this
        Ok(Groups { shared, maker, thread })
    }

    /// Returns a group in which nobody is.
    pub fn take(&self) -> io::Result<Group> {
        let ready = self.shared.state().ready.pop();
        let place = match ready {
            Some(place) => place,
            None => self.shared.make()?,
        };
        let _ = self.maker.send(Order::Refill);
        Ok(Group {
            place: Some(place),
            shared: Arc::clone(&self.shared),
            maker: self.maker.clone(),
        })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = self.maker.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // END_WITHIN
        }
    }
}

impl Group {
    /// Returns files with which a process that has one thread moves in, by writing `0` to each. Once.
    pub fn entrances(&mut self) -> Vec<File> {
        self.place.as_mut().map_or_else(Vec::new, |place| std::mem::take(&mut place.entrances))
    }

    /// Moves process `pid`, which has not made another one, into it. It takes milliseconds. Nobody else moves in then.
    pub fn attach(&mut self, pid: i32) -> io::Result<()> {
        drop(self.entrances());
        let mut paths = self.place.iter().flat_map(|place| &place.paths);
        paths.try_for_each(|path| fs::write(path.join("cgroup.procs"), pid.to_string()))
    }

    /// Sets what it may have.
    pub fn limit(&self, limits: &GroupLimits) -> io::Result<()> {
        self.place.as_ref().map_or(Ok(()), |place| self.shared.limit(place, limits))
    }

    /// Returns what it says of memory. `None`: it does not.
    pub fn memory(&self) -> Option<GroupMemory> {
        self.shared.memory(self.place.as_ref()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && let Err(unsent) = self.maker.send(Order::Remove(place))
            && let Order::Remove(place) = unsent.0
        {
            let _ = place.remove(); // the thread has ended: what stays is removed by the next manager
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of `place` for `controller`.
    fn find(&self, place: &Place, controller: &str) -> Option<(Version, PathBuf)> {
        let places = self.hierarchies.iter().zip(&place.paths);
        let mut found = places.filter(|(it, _)| it.controllers.contains(&controller));
        found.next().map(|(hierarchy, path)| (hierarchy.version, path.clone()))
    }

    fn make(&self) -> io::Result<Place> {
        let number = {
            let mut state = self.state();
            if state.count >= MOST_GROUPS {
                return Err(io::Error::other("too many control groups cannot be removed yet"));
            }
            state.count += 1;
            state.next += 1;
            state.next
        };
        let made = self.make_numbered(number);
        if made.is_err() {
            self.state().count -= 1;
        }
        made
    }

    fn make_numbered(&self, number: u64) -> io::Result<Place> {
        let mut place = Place::default();
        let made = self.hierarchies.iter().try_for_each(|hierarchy| {
            let path = hierarchy.directory.join(number.to_string());
            fs::create_dir(&path)?;
            let entrance = path.join(match hierarchy.version {
                Version::One => "tasks",
                Version::Two => "cgroup.procs", // it has no threads of their own
            });
            place.paths.push(path);
            place.entrances.push(File::options().write(true).open(entrance)?);
            Ok(())
        });
        let made = made.and_then(|()| self.prepare(&place));
        if let Err(error) = made {
            let _ = place.remove();
            return Err(error);
        }
        Ok(place)
    }

    /// Sets what is the same for all: no swapping, and the number of processes.
    fn prepare(&self, place: &Place) -> io::Result<()> {
        for (hierarchy, path) in self.hierarchies.iter().zip(&place.paths) {
            if hierarchy.controllers.contains(&"pids") {
                fs::write(path.join("pids.max"), MAX_TASKS.to_string())?;
            }
            if hierarchy.controllers.contains(&"memory") {
                // A kernel without swapping has neither of these.
                let _ = match hierarchy.version {
                    Version::One => fs::write(path.join("memory.swappiness"), "0"),
                    Version::Two => fs::write(path.join("memory.swap.max"), "0"),
                };
            }
        }
        Ok(())
    }

    fn limit(&self, place: &Place, limits: &GroupLimits) -> io::Result<()> {
        if let Some((version, path)) = self.find(place, "memory") {
            fs::write(path.join(version.memory_limit()), limits.memory.to_string())?;
        }
        if let Some(cpus) = &limits.cpus
            && let Some((_, path)) = self.find(place, "cpuset")
        {
            let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
            fs::write(path.join("cpuset.cpus"), cpus.join(","))?;
        }
        Ok(())
    }

    fn memory(&self, place: &Place) -> Option<GroupMemory> {
        let (version, path) = self.find(place, "memory")?;
        let read = |file: &str| fs::read_to_string(path.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse().ok();
        let (peak, events) = match version {
            Version::One => ("memory.max_usage_in_bytes", "memory.oom_control"),
            Version::Two => ("memory.peak", "memory.events"),
        };
        let killed = read(events)?
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim() != "0");
        // Before Linux 5.19, version 2 does not say how much it was.
        let used = number(peak).or_else(|| number("memory.current"))?;
        Some(GroupMemory { limit: number(version.memory_limit())?, used, killed })
    }

    /// Makes groups ahead and removes those that are given back, until it is asked to end.
    fn serve(&self, orders: &Receiver<Order>, mut retired: Vec<Retired>) {
        loop {
            let order = match retired.iter().map(|one| one.again_at).min() {
                None => orders.recv().ok(),
                Some(at) => {
                    match orders.recv_timeout(at.saturating_duration_since(Instant::now())) {
                        Err(RecvTimeoutError::Timeout) => Some(Order::Refill),
                        order => order.ok(),
                    }
                }
            };
            thread::sleep(PAUSE);
            let mut ends = false;
            for order in order.into_iter().chain(orders.try_iter()) {
                match order {
                    Order::Refill => {}
                    Order::Remove(place) => retired.push(Retired::new(place, None)),
                    Order::End => ends = true,
                }
            }
            self.remove(&mut retired);
            if ends {
                return self.finish(retired);
            }
            self.refill();
        }
    }

    fn refill(&self) {
        while self.state().ready.len() < READY {
            match self.make() {
                Ok(place) => self.state().ready.push(place),
                Err(error) => {
                    tracing::debug!(%error, "no control group ahead");
                    return;
                }
            }
        }
    }

    /// Removes what is due, and can be removed.
    fn remove(&self, retired: &mut Vec<Retired>) {
        let (now, before) = (Instant::now(), retired.len());
        retired.retain_mut(|one| !one.try_remove(now));
        self.state().count -= before - retired.len();
    }

    /// Removes all, as far as they are empty within [`END_WITHIN`]. The next manager removes the others.
    fn finish(&self, mut retired: Vec<Retired>) {
        let ready = std::mem::take(&mut self.state().ready);
        retired.extend(ready.into_iter().map(|place| Retired::new(place, None)));
        let end = Instant::now() + END_WITHIN;
        loop {
            self.remove(&mut retired);
            if retired.is_empty() || Instant::now() >= end {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Place {
    fn kill(&self) {
        self.paths.iter().for_each(|path| leftover::kill(path));
    }

    /// Removes it. What is removed already is no error.
    fn remove(&self) -> io::Result<()> {
        let results = self.paths.iter().map(|path| match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        results.fold(Ok(()), Result::and)
    }
}

/// A group that is to be removed.
#[derive(Debug)]
struct Retired {
    place: Place,
    since: Instant,
    again_at: Instant,
    pause: Duration,
    told: bool,
    /// Of one that another manager has left.
    _lock: Option<File>,
}

impl Retired {
    fn new(place: Place, lock: Option<File>) -> Self {
        let now = Instant::now();
        let (since, again_at) = (now, now);
        Retired { place, since, again_at, pause: FIRST_RETRY, told: false, _lock: lock }
    }

    /// Removes it if that is due, and kills what is in it; returns whether it is gone.
    fn try_remove(&mut self, now: Instant) -> bool {
        if now < self.again_at {
            return false;
        }
        self.place.kill();
        let Err(error) = self.place.remove() else { return true };
        self.again_at = now + self.pause;
        self.pause = LAST_RETRY.min(2 * self.pause);
        if !self.told && now.duration_since(self.since) >= BUSY_FOR {
            self.told = true;
            let path = self.place.paths.first().map(|path| path.display().to_string());
            tracing::warn!(path, %error, "a control group cannot be removed: a process there does not end");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_groups_than_may_be_until_some_are_removed() {
        let shared = Shared { hierarchies: Vec::new(), state: Mutex::default() };
        let made: Vec<_> = (0..MOST_GROUPS).map(|_| shared.make().unwrap()).collect();
        assert!(shared.make().is_err());
        let mut retired = made.into_iter().map(|place| Retired::new(place, None)).collect();
        shared.remove(&mut retired);
        assert!(retired.is_empty() && shared.make().is_ok());
    }

    #[test]
    fn a_group_that_a_process_was_moved_into_keeps_no_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let entrances = vec![File::open(&path).unwrap()];
        let shared = Shared { hierarchies: Vec::new(), state: Mutex::default() };
        let place = Some(Place { paths: vec![path], entrances });
        let mut group = Group { place, shared: Arc::new(shared), maker: channel().0 };
        group.attach(4711).unwrap();
        let moved = fs::read_to_string(directory.path().join("cgroup.procs")).unwrap();
        assert_eq!((moved.as_str(), group.entrances().len()), ("4711", 0));
    }

    #[test]
    fn a_group_that_is_busy_is_removed_when_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let busy = directory.path().join("1");
        fs::create_dir(&busy).unwrap();
        fs::write(busy.join("process"), "").unwrap(); // keeps it from being removed
        let mut retired =
            Retired::new(Place { paths: vec![busy.clone()], entrances: Vec::new() }, None);
        let now = Instant::now();
        assert!(!retired.try_remove(now));
        fs::remove_dir_all(&busy).unwrap();
        assert!(!retired.try_remove(now), "before its time");
        assert!(retired.try_remove(now + FIRST_RETRY), "what is removed is gone");
    }
}
