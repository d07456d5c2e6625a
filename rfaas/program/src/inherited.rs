//! What a manager was started with: limits and signals that somebody has set for it.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Fewest descriptors that a manager starts with: it has up to 20 itself, a node or client that is connected
/// has up to 8, and so has an executor.
pub const FEWEST_DESCRIPTORS: u64 = 64;

/// A limit with which a manager cannot serve anybody.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may have at most {limit} descriptors (open files), with which it cannot serve a lease: allow \
     {FEWEST_DESCRIPTORS} or, better, 65536 (`ulimit -n`, LimitNOFILE= of systemd)"
)]
pub struct TooFewDescriptors {
    limit: u64,
}

/// Raises the soft limit of descriptors of this process as far as it goes: every peer costs some, and the usual
/// one of 1024 is for programs that use `select(2)`. Returns the limit that there was.
pub fn raise_descriptor_limit() -> Result<u64, TooFewDescriptors> {
    // A system that does not say what the limit is has none that is known.
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(u64::MAX) };
    let now = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(errno) => {
            tracing::debug!(%errno, "the limit of open descriptors stays as it is");
            soft
        }
    };
    if now < FEWEST_DESCRIPTORS { Err(TooFewDescriptors { limit: now }) } else { Ok(soft) }
}

/// Returns how many descriptors this process may have open now. 1024, which POSIX systems have had
/// for long, where the system does not say.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Returns what the system said, and what to do where it was for want of a descriptor.
pub fn told(error: &io::Error) -> String {
    if error.raw_os_error() != Some(Errno::EMFILE as i32) {
        return error.to_string();
    }
    let limit = descriptor_limit();
    format!(
        "no file descriptor is left (at most {limit}): raise the limit (`ulimit -n`, LimitNOFILE= of systemd) or lease \
         fewer cores of this node"
    )
}

/// Returns whether this process ignores the signal of this number, which is what nohup(1) has it do
/// with SIGHUP. Where `/proc` is not mounted, no signal counts as ignored.
pub fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Reads `SigIgn` of proc_pid_status(5): hex digits, of which the lowest bit is signal 1.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal - 1).ok().and_then(|bit| 1u64.checked_shl(bit));
    mask.zip(bit).is_some_and(|(mask, bit)| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_descriptor_left_is_told_the_limit_and_what_to_do() {
        let words = told(&Errno::EMFILE.into());
        assert!(words.contains(&format!("at most {})", descriptor_limit())), "{words}");
        assert!(words.contains("`ulimit -n`"), "{words}");
        assert!(!told(&Errno::ENFILE.into()).contains("ulimit"), "that is the system's limit");
    }

    #[test]
    fn what_is_ignored_is_read_by_its_bit() {
        let status = "Name:\ta\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        let ignored: Vec<i32> = (-1..=66).filter(|&signal| ignores(status, signal)).collect();
        assert_eq!(ignored, [1, 13]);
        assert!(!ignores("", 1));
    }
}
