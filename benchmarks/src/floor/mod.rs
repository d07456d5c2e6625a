//! The floor of a cold start: what the system takes to make a process, measured in turn with cold
//! starts by a minimal C program (`floor.c`).
//!
//! It is compiled when it is needed. Where there is no C compiler, the floor is not measured, and the
//! report says so.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rfaas_program::Failure;
use tempfile::TempDir;

const SOURCE: &str = include_str!("floor.c");

/// The C program, running. It ends with this value.
#[derive(Debug)]
pub struct Floor {
    process: Child,
    ask: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
    _directory: TempDir,
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
        let failed = |error| Failure::later(format!("the floor cannot be measured: {error}"));
        let directory = tempfile::tempdir().map_err(failed)?;
        let (source, program) = (directory.path().join("floor.c"), directory.path().join("floor"));
        std::fs::write(&source, SOURCE).map_err(failed)?;
        let compiler = Command::new("cc")
            .args(["-O2", "-o"])
            .args([&program, &source])
            .arg("-ldl") // in libc itself since glibc 2.34
            .stdin(Stdio::null())
            .status();
        match compiler {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(Failure::later(format!("cc of the floor: {status}"))),
            Err(_) => return Ok(None),
        }
        let mut process = Command::new(&program)
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let ask = process.stdin.take();
        let told = BufReader::new(process.stdout.take().expect("it is piped"));
        Ok(Some(Floor { process, ask, told, _directory: directory }))
    }

    /// Measures once.
    pub fn once(&mut self) -> Result<FloorTimes, Failure> {
        let mut line = String::new();
        self.ask
            .as_mut()
            .expect("taken when this is dropped")
            .write_all(b"\n")
            .and_then(|()| self.told.read_line(&mut line))
            .map_err(|error| Failure::later(format!("the floor was not measured: {error}")))?;
        let mut times = line.split_whitespace().map(|ns| ns.parse().map(Duration::from_nanos));
        match (times.next(), times.next()) {
            (Some(Ok(fork)), Some(Ok(exec))) => Ok(FloorTimes { fork, exec }),
            _ => Err(Failure::later("the floor was not measured: a child of it failed")),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.ask.take()); // it ends at the end of its input
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
