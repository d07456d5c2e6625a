//! A progress bar on standard error, if somebody watches it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Steps between two updates, as a share of all: drawing takes time from the measured machine.
const UPDATES: u64 = 100;

/// Counts repetitions.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    done: u64,
    every: u64,
}

impl Progress {
    /// A bar for `all` repetitions; invisible unless standard error is a terminal.
    pub fn of(all: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed}");
            let bar = ProgressBar::new(all);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, done: 0, every: (all / UPDATES).max(1) }
    }

    /// One repetition more is done.
    pub fn step(&mut self) {
        self.done += 1;
        if let Some(bar) = &self.bar
            && self.done.is_multiple_of(self.every)
        {
            bar.set_position(self.done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
