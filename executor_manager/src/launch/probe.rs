//! Asking the program `executor` which layers of isolation there are: what it finds is what its processes have.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use rfaas_protocol::isolation::{IsolationReport, SandboxSettings};

use super::StartError;
use super::exec::Exec;

/// Time to answer. It takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: all layers with a reason each.
const MAX_ANSWER: usize = 64 << 10;

/// Runs the program until it has answered.
pub fn probe(exec: &Exec, settings: &SandboxSettings) -> Result<IsolationReport, StartError> {
    let (reader, writer) = pipe().map_err(StartError::Probe)?;
    let nothing = File::open("/dev/null").map_err(StartError::Probe)?;
    let asked = serde_json::to_string(settings).map_err(io::Error::from);
    let asked = asked.and_then(|text| Ok(CString::new(text)?)).map_err(StartError::Probe)?;
    let streams = [nothing.as_raw_fd(), writer.as_raw_fd(), io::stderr().as_raw_fd()];
    let pid = exec.spawn(&[c"executor", c"probe", &asked], streams, &[])?;
    drop(writer);
    let answer = read(reader);
    let _ = kill(pid, Signal::SIGKILL); // it has answered, or does not
    let _ = waitpid(pid, None);
    let report = answer.and_then(|answer| Ok(serde_json::from_slice(&answer)?));
    report.map_err(StartError::Probe)
}

/// Reads until the other end is closed.
fn read(mut reader: io::PipeReader) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut answer = Vec::new();
    let mut some = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, timeout)? == 0 {
            return Err(io::Error::other("no answer"));
        }
        match reader.read(&mut some)? {
            0 => return Ok(answer),
            bytes => answer.extend_from_slice(&some[..bytes]),
        }
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other("an endless answer"));
        }
    }
}
