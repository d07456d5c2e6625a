//! The end of a container, which is not a child of this process as its engine is.
//!
//! ```text
//!   kill ──▶ `kill NAME` ──the engine's process ends, as its container has──▶ over
//!                └── not in 5 s: SIGKILL to the engine, and `rm --force NAME` ──ends, or its time is over──▶ over
//! ```
//! * An engine that ends for another reason than the end of its container leaves that behind: it is removed.
//! * Its commands are reaped here only, and waited for until they end or their time is over.
//! * What cannot be removed is removed by the next manager of this node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::Runner;
use super::engine::Helper;
use crate::allocations::Exit;

/// Time between SIGTERM and the kill: the engine passes the signal on and cleans up, which takes seconds on a slow
/// machine. The executor itself takes no longer than another.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the engine's process may take to end when its container was killed.
const ENGINE_ENDS_WITHIN: Duration = Duration::from_secs(5);
/// How long a command may take that ends or removes a container.
const COMMAND_WITHIN: Duration = Duration::from_secs(10);

/// How long a container may take to be gone that was told to stop, with whatever its engine does.
pub const STOP_WITHIN: Duration = STOP_GRACE
    .saturating_add(ENGINE_ENDS_WITHIN)
    .saturating_add(COMMAND_WITHIN)
    .saturating_add(SPARE);
const SPARE: Duration = Duration::from_secs(5);

/// Exit statuses of an engine's own from 125 on, and of a process that a signal has ended.
const OWN_STATUSES: std::ops::RangeInclusive<i32> = 125..=127;
const SIGNAL_STATUSES: std::ops::RangeInclusive<i32> = 129..=192;

/// Ends one container.
#[derive(Debug)]
pub struct ContainerEnd {
    runner: Arc<Runner>,
    name: String,
    killer: Option<Helper>,
    remover: Option<Helper>,
}

impl ContainerEnd {
    /// Of the container of this name.
    pub fn new(runner: Arc<Runner>, name: String) -> Self {
        ContainerEnd { runner, name, killer: None, remover: None }
    }

    /// Has it killed, which began at `since`. Returns whether the engine's process is to be killed too.
    pub fn kill(&mut self, since: Instant, now: Instant) -> bool {
        let Some(words) = self.runner.command.kill(&self.name) else { return true };
        if self.killer.is_none() {
            self.killer = self.help(&words, now);
        }
        let waited = now < since + ENGINE_ENDS_WITHIN;
        if !waited {
            self.remove(now);
        }
        !waited
    }

    fn remove(&mut self, now: Instant) {
        if self.remover.is_none()
            && let Some(words) = self.runner.command.remove(&[&self.name])
        {
            let (engine, name) = (self.runner.command.engine, &self.name);
            tracing::warn!(name, "{engine} has not ended a container in order: removing it");
            self.remover = self.help(&words, now);
        }
    }

    fn help(&self, words: &[String], now: Instant) -> Option<Helper> {
        let Runner { engine, exec, .. } = &*self.runner;
        let helper = engine.help(exec, words, now + COMMAND_WITHIN);
        let told = |error| tracing::warn!(name = self.name, %error, "cannot end a container");
        helper.map_err(told).ok()
    }

    /// The engine's process has ended like this. Returns how the executor has.
    pub fn engine_ended(&mut self, exit: Exit, now: Instant) -> Exit {
        match exit {
            Exit::Status(status) if SIGNAL_STATUSES.contains(&status) => {
                return Exit::Signal(status - 128);
            }
            Exit::Status(status) if !OWN_STATUSES.contains(&status) => {}
            _ => self.remove(now),
        }
        exit
    }

    /// Reaps commands that have ended, and kills those whose time is over. Returns whether nothing is done any more
    /// about its end: what kills it has nothing left to do when its engine has ended.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let over = |helper: &mut Option<Helper>| helper.as_mut().is_none_or(|it| it.is_over(now));
        over(&mut self.killer);
        over(&mut self.remover)
    }

    /// Whether `child` is a command that [`is_over`](Self::is_over) reaps.
    pub fn waits_for(&self, child: Pid) -> bool {
        self.helpers().any(|helper| helper.waits_for(child))
    }

    /// When [`is_over`](Self::is_over) is to be asked at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.helpers().filter_map(Helper::deadline).min()
    }

    fn helpers(&self) -> impl Iterator<Item = &Helper> {
        self.killer.iter().chain(&self.remover)
    }

    /// Has it removed by a process that nobody waits for.
    pub fn abandon(&mut self, now: Instant) {
        self.remove(now);
        [self.killer.take(), self.remover.take()].into_iter().flatten().for_each(Helper::leave);
    }
}
