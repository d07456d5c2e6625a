//! The floor of a cold start: what the system takes to make a process, measured in turn with cold
//! starts by a minimal C program (`floor.c`).
//!
//! It is compiled when it is needed. Where there is no C compiler, the floor is not measured, and the
//! report says so.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rfaas_program::Failure;

const SOURCE: &str = include_str!("floor.c");

/// Compiles the program `$1` and runs it with the library `$2`. A shell does this, since it removes
/// what was compiled also when this process is killed: that ends the program's input.
const SCRIPT: &str = r#"
command -v cc >/dev/null || { echo none; exit; }
directory=$(mktemp -d) || exit
trap 'rm -rf "$directory"' EXIT
trap exit HUP INT TERM
printf %s "$1" | cc -O2 -x c -o "$directory/floor" - -ldl || exit
echo ready
"$directory/floor" "$2"
"#;

/// The C program, running. It ends with this value.
#[derive(Debug)]
pub struct Floor {
    shell: Child,
    ask: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct FloorTimes {
    /// Fork, exit and wait.
    pub fork: Duration,
    /// Fork, exec, dlopen of the library, exit and wait.
    pub exec: Duration,
}

impl Floor {
    /// Compiles and starts the program, whose second child loads `library`. `None`: there is no C compiler here.
    pub fn start(library: &Path) -> Result<Option<Floor>, Failure> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "floor", SOURCE])
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| not_measured(&error))?;
        let ask = shell.stdin.take();
        let told = BufReader::new(shell.stdout.take().expect("it is piped"));
        let mut floor = Floor { shell, ask, told };
        match floor.line()?.as_str() {
            "ready\n" => Ok(Some(floor)),
            "none\n" => Ok(None),
            _ => Err(not_measured(&"it was not compiled")),
        }
    }

    /// Measures once.
    pub fn once(&mut self) -> Result<FloorTimes, Failure> {
        let ask = self.ask.as_mut().expect("taken when this is dropped");
        ask.write_all(b"\n").map_err(|error| not_measured(&error))?;
        let line = self.line()?;
        let mut times = line.split_whitespace().map(|ns| ns.parse().map(Duration::from_nanos));
        match (times.next(), times.next()) {
            (Some(Ok(fork)), Some(Ok(exec))) => Ok(FloorTimes { fork, exec }),
            _ => Err(not_measured(&"a child of it failed")),
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.told.read_line(&mut line).map_err(|error| not_measured(&error))?;
        Ok(line)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.ask.take()); // it ends at the end of its input
        let _ = self.shell.wait();
    }
}

fn not_measured(why: &dyn Display) -> Failure {
    Failure::later(format!("the floor was not measured: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_measured_again_and_again() {
        let library = Path::new("libm.so.6");
        let Some(mut floor) = Floor::start(library).unwrap() else {
            panic!("the gate has a C compiler");
        };
        for _ in 0..3 {
            let times = floor.once().unwrap();
            assert!(!times.fork.is_zero() && !times.exec.is_zero(), "{times:?}");
        }
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_no_measurement() {
        let mut floor = Floor::start(Path::new("/nowhere.so")).unwrap().unwrap();
        let error = floor.once().unwrap_err().to_string();
        assert!(error.contains("not measured"), "{error}");
    }
}
