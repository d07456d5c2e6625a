//! Killing what is left in a control group.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often the processes of a group are listed and killed. While they may fork, there may be others each time.
const ROUNDS: usize = 16;

/// Kills all processes of the group at `path`. Some may be left, which is seen when it is removed.
pub fn kill(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // Version 1, or before Linux 5.14. Where processes are counted, there will be no further ones.
    let _ = fs::write(path.join("pids.max"), "0");
    for _ in 0..ROUNDS {
        let processes = listed(path);
        if processes.is_empty() {
            return;
        }
        for process in processes {
            let Some(pid) = Pid::from_raw(process) else { continue };
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Looked at behind that: it is one of this group, and not a later one of the same number.
            if listed(path).contains(&process) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

fn listed(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
