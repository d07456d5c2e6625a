//! Floors that are C programs: what the system takes to make a process (`process.c`), and what an RDMA device takes
//! for a connection and for a write (`verbs.c`).
//!
//! They are compiled when they are needed. Where there is no C compiler, or no header of an RDMA device, a floor is
//! not measured, and the report says so.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rfaas_program::Failure;

mod c_program;

use c_program::{CProgram, Source};

const PROCESS: Source =
    Source { text: include_str!("process.c"), headers: "dlfcn.h", libraries: "-ldl" };
const VERBS: Source = Source {
    text: include_str!("verbs.c"),
    headers: "rdma/rdma_cma.h infiniband/verbs.h",
    libraries: "-lrdmacm -libverbs",
};
/// What is needed for the floors of RDMA devices.
pub const VERBS_NEED: &str = "needs a C compiler and the headers of rdma-core (Debian packages librdmacm-dev, \
    libibverbs-dev)";

/// The floor of a cold start, measured in turn with cold starts.
#[derive(Debug)]
pub struct ColdFloor(CProgram);

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct FloorTimes {
    /// Fork, exit and wait.
    pub fork: Duration,
    /// Fork, exec, what a program does that does the least, exit and wait.
    pub exec: Duration,
}

impl ColdFloor {
    /// Of a program that loads `library`. `None`: it cannot be measured here.
    pub fn loading(library: &Path) -> Result<Option<ColdFloor>, Failure> {
        Ok(CProgram::start(PROCESS, &[library])?.map(ColdFloor))
    }

    /// Of a program that connects to another one on the RDMA device of `address`. `None`: it cannot be measured here.
    pub fn connecting(address: IpAddr) -> Result<Option<ColdFloor>, Failure> {
        Ok(CProgram::start(VERBS, &["cold".to_owned(), address.to_string()])?.map(ColdFloor))
    }

    /// Measures once.
    pub fn once(&mut self) -> Result<FloorTimes, Failure> {
        match self.0.ask("")?[..] {
            [fork, exec] => Ok(FloorTimes {
                fork: Duration::from_nanos(fork),
                exec: Duration::from_nanos(exec),
            }),
            _ => Err(Failure::later("the floor of a cold start has not two figures")),
        }
    }
}

/// How both ends of a [`VerbsPingPong`] wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// They poll.
    Hot,
    /// They sleep.
    Warm,
}

/// Writes with immediate data there and back, each taking a receive of its target, between two processes that do
/// nothing else: the floor of an invocation on an RDMA device.
#[derive(Debug)]
pub struct VerbsPingPong(CProgram);

impl VerbsPingPong {
    /// Starts both ends on the device of `address`. Payloads of `payload` bytes go with their request up to `inline`
    /// bytes. `cpus`: of the end that asks, and of the other one. `None`: it cannot be measured here.
    pub fn start(
        address: IpAddr,
        payload: u32,
        inline: u32,
        waiting: Waiting,
        cpus: [usize; 2],
    ) -> Result<Option<VerbsPingPong>, Failure> {
        let wait = match waiting {
            Waiting::Hot => "hot",
            Waiting::Warm => "warm",
        };
        let numbers = [payload as usize, inline as usize].map(|number| number.to_string());
        let cpus = cpus.map(|cpu| cpu.to_string());
        let address = address.to_string();
        let [payload, inline] = &numbers;
        let arguments = ["ping", &address, payload, inline, wait, &cpus[0], &cpus[1]];
        Ok(CProgram::start(VERBS, &arguments.map(OsStr::new))?.map(VerbsPingPong))
    }

    /// Measures so many round trips, in nanoseconds.
    pub fn round_trips(&mut self, repetitions: u32) -> Result<Vec<u64>, Failure> {
        self.0.ask(&repetitions.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_measured_again_and_again() {
        let library = Path::new("libm.so.6");
        let Some(mut floor) = ColdFloor::loading(library).unwrap() else {
            panic!("the gate has a C compiler");
        };
        for _ in 0..3 {
            let times = floor.once().unwrap();
            assert!(!times.fork.is_zero() && !times.exec.is_zero(), "{times:?}");
        }
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_no_measurement() {
        let mut floor = ColdFloor::loading(Path::new("/nowhere.so")).unwrap().unwrap();
        let error = floor.once().unwrap_err().to_string();
        assert!(error.contains("not measured"), "{error}");
    }

    #[test]
    fn a_header_that_is_not_here_is_told_apart_from_a_program_that_is_wrong() {
        let source = Source { text: "int main(void) { return 0; }", headers: "", libraries: "" };
        let start = |source| CProgram::start(source, &["argument"]);
        assert!(start(source).unwrap().is_some());
        assert!(start(Source { headers: "stdio.h no/such.h", ..source }).unwrap().is_none());
        let error = start(Source { text: "int main(", ..source }).unwrap_err().to_string();
        assert!(error.contains("not compiled"), "{error}");
    }
}
