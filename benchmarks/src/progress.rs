//! A progress bar on standard error, if that is a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// Updates of the bar in all: drawing takes time from the measured machine.
const UPDATES: u64 = 100;
/// Width of the bar, in characters.
const WIDTH: usize = 40;

/// Counts repetitions.
#[derive(Debug)]
pub struct ProgressBar {
    /// The beginning; `None` if there is no bar.
    begun: Option<Instant>,
    all: u64,
    done: u64,
    every: u64,
}

impl ProgressBar {
    /// A bar for `all` repetitions; invisible unless standard error is a terminal.
    pub fn of(all: u64) -> Self {
        let begun = stderr().is_terminal().then(Instant::now);
        ProgressBar { begun, all, done: 0, every: (all / UPDATES).max(1) }
    }

    /// Counts one repetition.
    pub fn step(&mut self) {
        self.done += 1;
        if let Some(begun) = self.begun
            && self.done.is_multiple_of(self.every)
        {
            let seconds = begun.elapsed().as_secs();
            draw(&format!("{} {}/{} {seconds} s", bar(self.done, self.all), self.done, self.all));
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if self.begun.is_some() {
            draw("");
        }
    }
}

fn bar(done: u64, all: u64) -> String {
    let share = done.min(all) as f64 / all.max(1) as f64;
    let filled = (share * WIDTH as f64) as usize;
    format!("{}{}", "█".repeat(filled), "░".repeat(WIDTH - filled))
}

/// Replaces the line. A terminal that is gone loses only the bar.
fn draw(line: &str) {
    let _ = write!(stderr(), "\r\x1b[2K{line}").and_then(|()| stderr().flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_keeps_its_width_from_nothing_to_more_than_all() {
        for (done, all, filled) in [(0, 10, 0), (5, 10, 20), (10, 10, 40), (11, 10, 40), (0, 0, 0)]
        {
            let bar = bar(done, all);
            assert_eq!(bar.chars().count(), WIDTH);
            assert_eq!(bar.chars().filter(|c| *c == '█').count(), filled);
        }
    }
}
