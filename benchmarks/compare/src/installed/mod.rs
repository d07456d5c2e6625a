//! Other people's measuring programs, where they are installed: their two ends, pinned as ours, and their output.
//!
//! Their row says what they need. A failure of theirs does not end the comparison.
//!
//! * Neither end outlives a measurement or this program.

pub mod libfabric;
pub mod perftest;
pub mod ucx;

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rfaas_program::Failure;

use super::contender::NotMeasured;
use super::server::os;
use benchmarks::machine::{End, cpu_of};

/// Longest wait for the server to listen.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time of a whole measurement.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two checks of a running end.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Start a program that dies with us, on a CPU of its own; both become that program.
const LAUNCHERS: [&str; 2] = ["setpriv", "taskset"];
const LAUNCHERS_PACKAGE: &str = "util-linux";

/// A program with two ends, on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// Debian package that has it.
    pub package: &'static str,
    /// Environment of both ends.
    pub environment: &'static [(&'static str, &'static str)],
}

impl Tool {
    /// Runs both ends and returns what the client printed. `server` and `client` are their arguments, in which they
    /// find the port that is to be used.
    pub fn run(
        self,
        server: impl Fn(u16) -> Vec<String>,
        client: impl Fn(u16) -> Vec<String>,
    ) -> Result<String, NotMeasured> {
        let needed = [self.program].into_iter().chain(LAUNCHERS);
        let packages = [self.package].into_iter().chain([LAUNCHERS_PACKAGE; LAUNCHERS.len()]);
        if let Some((program, package)) =
            needed.zip(packages).find(|(program, _)| !is_installed(program))
        {
            let reason = format!("{program} is not installed (Debian package {package})");
            return Err(NotMeasured::NotRun(reason));
        }
        let port = free_port()?;
        let mut server = self.start(End::Last, &server(port))?;
        let start = Instant::now();
        loop {
            let mut end = self.start(End::First, &client(port))?;
            let succeeded = end.ends_within(TIMEOUT)?;
            let (out, err) = end.printed();
            if succeeded {
                return Ok(out);
            }
            // Until the server listens, the client cannot connect.
            if start.elapsed() > START_TIMEOUT || server.has_ended() {
                let (_, servers) = server.printed();
                return Err(self.not_run(&[&err, &out, &servers]));
            }
            sleep(LOOK_AGAIN);
        }
    }

    /// Its output is not what is understood here.
    pub fn not_understood(self, output: &str) -> NotMeasured {
        self.not_run(&["its output is not understood", output])
    }

    /// The first of `reasons` that says something.
    fn not_run(self, reasons: &[&str]) -> NotMeasured {
        let mut lines = reasons.iter().flat_map(|text| text.lines().rev()).map(str::trim);
        let reason = lines.find(|line| !line.is_empty()).unwrap_or("it failed");
        NotMeasured::NotRun(format!("{}: {reason}", self.program))
    }

    fn start(self, end: End, arguments: &[String]) -> Result<Running, Failure> {
        let cpu = cpu_of(end).unwrap_or_default();
        let mut command = Command::new(LAUNCHERS[0]);
        command.args(["--pdeathsig", "KILL", "--", LAUNCHERS[1], "-c", &cpu.to_string()]);
        command.arg(self.program).args(arguments).envs(self.environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(Running).map_err(os(self.program))
    }
}

/// One end.
struct Running(Child);

impl Running {
    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Whether it ended well; one that has not ended in time is killed.
    fn ends_within(&mut self, timeout: Duration) -> Result<bool, Failure> {
        let start = Instant::now();
        loop {
            match self.0.try_wait().map_err(os("a measuring program"))? {
                Some(status) => return Ok(status.success()),
                None if start.elapsed() > timeout => {
                    self.end();
                    return Ok(false);
                }
                None => sleep(LOOK_AGAIN),
            }
        }
    }

    /// What it printed, which ends it. It is little, far less than a pipe takes.
    fn printed(&mut self) -> (String, String) {
        self.end();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        // What cannot be read is as good as not printed.
        let _ = self.0.stdout.take().map(|mut from| from.read_to_end(&mut out));
        let _ = self.0.stderr.take().map(|mut from| from.read_to_end(&mut err));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (text(out), text(err))
    }

    fn end(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}

/// A port that is free now.
fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(os("a TCP socket"))?;
    Ok(listener.local_addr().map_err(os("a TCP socket"))?.port())
}

/// Microseconds of one way as nanoseconds there and back.
fn round_trip_ns(one_way_us: f64) -> f64 {
    2.0 * 1000.0 * one_way_us
}

/// Whether a figure can be one of something that took place.
fn is_positive(figure: f64) -> bool {
    figure.is_finite() && figure > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(told: Result<String, NotMeasured>) -> String {
        match told {
            Err(NotMeasured::NotRun(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn shell(script: &str) -> impl Fn(u16) -> Vec<String> {
        move |port| vec!["-c".into(), script.into(), port.to_string()]
    }

    const SHELL: Tool = Tool { program: "sh", package: "dash", environment: &[("NAMED", "value")] };

    #[test]
    fn a_program_that_is_missing_is_named() {
        let tool = Tool { program: "no-such-program", ..SHELL };
        let told = tool.run(|_| vec![], |_| vec![]);
        assert_eq!(reason(told), "no-such-program is not installed (Debian package dash)");
    }

    #[test]
    fn the_client_is_asked_until_the_server_is_there_and_both_know_the_port() {
        // The server's being there is a directory of the port's name.
        let place = tempfile::tempdir().unwrap();
        let place = place.path().display();
        let server = format!("sleep 0.2; mkdir {place}/$0; sleep 60");
        let client = format!("echo $NAMED; echo nobody listens >&2; rmdir {place}/$0 2>&1");
        assert_eq!(SHELL.run(shell(&server), shell(&client)).unwrap(), "value\n");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let told = SHELL.run(shell("exit 3"), shell("echo first >&2; echo no device >&2; exit 1"));
        assert_eq!(reason(told), "sh: no device");
    }
}
