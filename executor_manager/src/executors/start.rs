//! Starting executors: for a lease, or to stand by.

use std::collections::BTreeSet;
use std::time::Instant;

use rfaas_program::describe;
use rfaas_program::descriptor_set::Tells;
use rfaas_program::inherited::told;
use rfaas_program::local_channel::LocalError;
use rfaas_protocol::assignment::{
    AssignedDevice, AssignedSandbox, Assignment, HexSecret, Instructions, Standby,
};
use rfaas_protocol::heartbeat::Beats;
use rfaas_protocol::lease::LeaseId;

use super::standing::{Expected, Standing};
use super::{Executors, Running, number_of};
use crate::accounting::ExecutorAccount;
use crate::cache::Library;
use crate::groups::limits_of;
use crate::launch::ExecutorChild;
use crate::preload::Kind;
use crate::request::Deployment;

/// Most workers of a lease that one which stands by can have: its counters have room for so many. A lease of more
/// workers takes longer to start anyway.
const STANDBY_WORKERS: u16 = 64;
/// Those that stand by that are given up at a time for a lease: two have more descriptors than a start needs at its
/// height, of which some are closed by another thread.
const GIVEN_UP: usize = 2;

impl Executors {
    /// Starts the executor of `lease`, which has none, or gives it one that stands by; returns its process id, or an
    /// explanation for client and operator.
    pub fn start(
        &mut self,
        lease: LeaseId,
        deployment: &Deployment,
        library: Library,
        (workers, memory): (u16, u32),
        pins: Option<Vec<usize>>,
    ) -> Result<i32, String> {
        self.prewarm.rest(Instant::now());
        let assignment = Assignment {
            lease: lease.get(),
            memory,
            client: deployment.client,
            session_secret: HexSecret(deployment.session),
            workers,
            pin_to: pins,
            slots: deployment.slots,
            input_bytes: deployment.input_bytes,
            output_bytes: deployment.output_bytes,
            code_bytes: deployment.code_bytes,
            code_hash: deployment.code_hash,
            library: library.kind(),
            hot_timeout_ms: deployment.hot_timeout_ms,
            graph: deployment.graph,
        };
        self.last = Some(assignment.clone());
        while workers <= STANDBY_WORKERS
            && let Some(at) = self.find_standing(deployment)
        {
            let standing = self.standing.swap_remove(at);
            let kind = standing.kind;
            match standing.assign(&assignment, &library, self.preload.libraries(kind)) {
                Ok(running) => {
                    self.prewarm.of(kind).taken();
                    let pid = running.process.pid();
                    tracing::debug!(%lease, pid, "an executor that stood by has the lease");
                    self.running.insert(lease, running);
                    return Ok(pid);
                }
                // It is ended with what it stands for, and reaped as a stranger.
                Err(error) => {
                    match self.prewarm.of(kind).lost(true, Instant::now()) {
                        true => tracing::warn!(%lease, %error, "an executor that stood by is lost"),
                        false => {
                            tracing::debug!(%lease, %error, "another one that stood by is lost")
                        }
                    }
                    // For want of descriptors, say: the others are as good as they were, and would be lost alike.
                    if matches!(error, LocalError::Os(_)) {
                        break;
                    }
                }
            }
        }
        let started = match self.start_own(&assignment, &library) {
            Err(reason) if self.give_up_standing(&reason) => self.start_own(&assignment, &library),
            started => started,
        };
        let running = started?;
        let pid = running.process.pid();
        self.running.insert(lease, running);
        Ok(pid)
    }

    /// Returns one that stands by and that `deployment` can have: with its library loaded, or else with none.
    fn find_standing(&self, deployment: &Deployment) -> Option<usize> {
        let loaded = self.preload.kind_with(deployment.code_hash, deployment.code_bytes);
        let ready = |kind: Kind| {
            self.standing.iter().position(|standing| standing.kind == kind && standing.is_ready())
        };
        loaded.and_then(ready).or_else(|| ready(Kind::PLAIN))
    }

    /// Starts an executor that has an assignment from the start.
    fn start_own(&mut self, assignment: &Assignment, library: &Library) -> Result<Running, String> {
        let sandbox = self.sandbox()?;
        let account = self.account(assignment.workers)?;
        let user = sandbox.as_ref().map(|sandbox| sandbox.user);
        let standby = self.standby(&account, assignment.workers, sandbox);
        let instructions = Instructions { standby, assignment: Some(assignment.clone()) };
        let process = self.launcher.start(assignment.lease, &instructions, library);
        let process = process.map_err(|error| error.to_string())?;
        Ok(self.watched(process, account, user))
    }

    /// Ends some of those that stand by, or will, so that a lease which could not be served for this `reason` gets what
    /// they have: users, descriptors. Returns whether there were any.
    fn give_up_standing(&mut self, reason: &str) -> bool {
        if !self.launcher.can_start_standing() {
            return false; // it is for want of a zygote, and there would be no others
        }
        let kept = self.standing.len().saturating_sub(GIVEN_UP);
        let given_up = self.standing.split_off(kept);
        for standing in &given_up {
            let prewarm = self.prewarm.of(standing.kind);
            prewarm.given_up(standing.was_ready(), Instant::now());
            let pid = standing.running.process.pid();
            tracing::info!(pid, reason, "an executor that stood by makes room for a lease");
        }
        !given_up.is_empty() // they are killed as they are dropped, and reaped as strangers
    }

    /// Starts one of this kind that stands by.
    pub(super) fn start_standing(&mut self, kind: Kind, now: Instant) -> Result<(), String> {
        let sandbox = self.sandbox()?;
        let mut account = self.account(STANDBY_WORKERS)?;
        account.limit(1); // until it has a lease
        let user = sandbox.as_ref().map(|sandbox| sandbox.user);
        let mut standby = self.standby(&account, STANDBY_WORKERS, sandbox);
        standby.preload = self.preload.libraries(kind).to_vec();
        // The next lease is often like the last. For another one it is changed. What constructors of libraries may
        // have does not depend on that.
        let is_limited = user.is_some() && standby.preload.is_empty();
        let expected = self.last.as_ref().map(|last| Expected {
            memory: last.memory,
            limits: is_limited.then(|| limits_of(last, &[])),
        });
        standby.memory = expected.as_ref().map(|expected| expected.memory);
        let limits = expected.as_ref().and_then(|expected| expected.limits.as_ref());
        let instructions = Instructions { standby, assignment: None };
        let files = self.preload.files(kind);
        let started = self.launcher.start_standing(&instructions, files, limits);
        let (process, channel) = started.map_err(|error| error.to_string())?;
        let running = self.watched(process, account, user);
        self.standing.push(Standing::new(running, (kind, expected), channel, now));
        Ok(())
    }

    fn account(&self, workers: u16) -> Result<ExecutorAccount, String> {
        let account = ExecutorAccount::new(&self.device, workers);
        let account = account.map(|mut account| {
            account.set_leaving(self.leaves_at);
            account
        });
        account.map_err(|error| {
            let why = match &error {
                rdmalib::Error::OutOfDescriptors { source, .. } => told(source),
                error => describe(error),
            };
            format!("no counters for the executor: {why}")
        })
    }

    /// Watches a process that was started just now.
    fn watched(
        &mut self,
        process: ExecutorChild,
        account: ExecutorAccount,
        user: Option<u32>,
    ) -> Running {
        let now = Instant::now();
        if self.all().next().is_none() {
            self.beat_at = now + self.heartbeat.period;
        }
        let number = number_of(&process);
        for descriptor in process.descriptors() {
            if let Err(errno) = self.ends.add(descriptor, number, Tells::Once) {
                tracing::debug!(pid = number, %errno, "its end will be told by SIGCHLD alone");
            }
        }
        Running {
            process,
            account,
            user,
            beats: Beats::new(self.heartbeat),
            silent: false,
            may_miss_us_until: None,
            start_by: self.launcher.containers().map(|containers| now + containers.start_within()),
            ended: None,
        }
    }

    /// Returns what an executor of `most_workers` has to know before it has a lease.
    fn standby(
        &self,
        account: &ExecutorAccount,
        most_workers: u16,
        sandbox: Option<AssignedSandbox>,
    ) -> Standby {
        let spec = self.device.spec();
        Standby {
            device: AssignedDevice {
                name: spec.name.clone(),
                provider: spec.provider.to_string(),
                ip_address: spec.ip_address,
                max_inline_data: spec.max_inline_data,
            },
            manager: self.manager,
            manager_secret: HexSecret(account.secret()),
            most_workers,
            open_files: self.open_files,
            heartbeat_ms: self.heartbeat.period_ms(),
            silence_ms: self.heartbeat.silence_ms(),
            sandbox,
            memory: None,
            preload: Vec::new(),
        }
    }

    /// Returns the sandbox of one more executor: with a user whom no other has.
    fn sandbox(&mut self) -> Result<Option<AssignedSandbox>, String> {
        let Some(settings) = &self.settings else { return Ok(None) };
        let used: BTreeSet<u32> = self.all().filter_map(|running| running.user).collect();
        let count = settings.users.count;
        let user = free_user(self.next_user, count, &used)
            .ok_or_else(|| format!("all {count} users of executor.users have an executor"))?;
        let sandbox = AssignedSandbox { settings: settings.clone(), user };
        self.next_user = user.wrapping_add(1);
        Ok(Some(sandbox))
    }
}

/// Returns the first of `count` users from `next` on, and then from 0, that is not `used`. So one that was free is not
/// taken at once: what a killed executor has left behind may still be ending, and counts for its user.
fn free_user(next: u32, count: u32, used: &BTreeSet<u32>) -> Option<u32> {
    let start = next.min(count);
    (start..count).chain(0..start).find(|user| !used.contains(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_was_just_free_is_taken_last() {
        let used = BTreeSet::from([1, 3]);
        assert_eq!(free_user(0, 4, &used), Some(0));
        assert_eq!(free_user(1, 4, &used), Some(2));
        assert_eq!(free_user(3, 4, &used), Some(0));
        assert_eq!(free_user(4, 4, &used), Some(0));
        assert_eq!(free_user(u32::MAX, 4, &used), Some(0));
        assert_eq!(free_user(2, 2, &BTreeSet::from([0, 1])), None);
    }
}
