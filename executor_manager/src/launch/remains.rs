//! What `/proc` tells of a process that was killed and cannot be reaped, proc_pid_stat(5).

use std::fs;

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// Where the fields of `stat` begin to count: the first behind the name is the third.
const FIRST: usize = 3;
const STATE: usize = 3;
const EXIT_CODE: usize = 52;

/// Whether no thread of `pid`, which was sent SIGKILL, runs any code of its program again: each has ended,
/// or a tracer holds it at its end. False where `/proc` does not tell.
pub fn is_harmless(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut threads = threads.flatten().map(|thread| thread.path().join("stat"));
    threads.all(|file| match fs::read_to_string(file) {
        Ok(stat) => matches!(field(&stat, STATE), Some("Z" | "X" | "t")),
        Err(_) => true, // it is gone
    })
}

/// Returns how `pid` ended, if it has and `/proc` tells. The code of a success is also what is shown to those
/// who may not know, so it tells nothing.
pub fn exit_status(pid: Pid) -> Option<WaitStatus> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let code = field(&stat, EXIT_CODE)?.parse().ok()?;
    let known = field(&stat, STATE)? == "Z" && code != 0;
    known.then(|| WaitStatus::from_raw(pid, code).ok()).flatten()
}

/// Field `number`, counted from 1 as in the manual, of a line with `(name)` in it. The name may have blanks and
/// parentheses in it.
fn field(stat: &str, number: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split_whitespace().nth(number - FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_that_may_look_like_fields() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let stat = format!("7 (a) Z 1) S {}\n", fields.join(" "));
        assert_eq!(field(&stat, STATE), Some("S"));
        assert_eq!(field(&stat, 4), Some("4"));
        assert_eq!(field(&stat, EXIT_CODE), Some("52"));
        assert_eq!(field(&stat, 53), None);
        assert_eq!(field("7 (a)", STATE), None);
    }

    #[test]
    fn a_process_that_runs_is_not_harmless_and_has_no_exit_status() {
        let own = Pid::this();
        assert!(!is_harmless(own));
        assert_eq!(exit_status(own), None);
    }
}
