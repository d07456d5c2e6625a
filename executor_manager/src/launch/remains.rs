//! What `/proc` tells of a process that was killed and cannot be reaped, proc_pid_stat(5).

use std::fs;

use nix::libc::{WEXITSTATUS, WIFSIGNALED, WTERMSIG};
use nix::unistd::Pid;

use crate::allocations::Exit;

/// Where the fields of `stat` begin to count: the first behind the name is the third.
const FIRST: usize = 3;
const STATE: usize = 3;
const FLAGS: usize = 9;
const EXIT_CODE: usize = 52;

/// Flag of a thread that is at its end (the kernel's `PF_EXITING`).
const EXITING: u32 = 4;

/// Processes that are looked at: one executor may have started very many.
const MOST: usize = 10_000;

/// Whether no thread of `pid`, which was sent SIGKILL or ends, runs any code of its program again,
/// nor one of its children: each has ended, is at its end, or is held there by a tracer. False
/// where `/proc` does not tell.
pub fn is_harmless(pid: Pid) -> bool {
    let mut processes = vec![pid.as_raw()];
    let mut looked_at = 0;
    while let Some(process) = processes.pop() {
        looked_at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
            if process == pid.as_raw() {
                return false;
            }
            continue; // a child that is gone
        };
        for thread in threads.flatten().map(|thread| thread.path()) {
            if fs::read_to_string(thread.join("stat")).is_ok_and(|stat| !is_over(&stat)) {
                return false;
            }
            let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|id| id.parse::<i32>().ok()));
        }
        if looked_at + processes.len() > MOST {
            return false;
        }
    }
    true
}

fn is_over(stat: &str) -> bool {
    let flags = field(stat, FLAGS).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    flags & EXITING != 0 || matches!(field(stat, STATE), Some("Z" | "X" | "t"))
}

/// Returns how `pid` ended, if it has and `/proc` tells. The code of a success is also what is
/// shown to those who may not know, so it tells nothing.
pub fn exit(pid: Pid) -> Option<Exit> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let code = field(&stat, EXIT_CODE)?.parse().ok()?;
    let known = field(&stat, STATE)? == "Z" && code != 0;
    known.then(|| match WIFSIGNALED(code) {
        true => Exit::Signal(WTERMSIG(code)),
        false => Exit::Status(WEXITSTATUS(code)),
    })
}

/// Field `number`, counted from 1 as in the manual, of a line with `(name)` in it. The name may
/// have blanks and parentheses in it.
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
        assert_eq!(exit(own), None);
    }
}
