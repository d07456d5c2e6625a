//! The honest neighbour: a tenant of the same node that calls while others are hostile. It has a
//! file and a socket, for others to reach for.

use std::path::Path;
use std::time::{Duration, Instant};

use rfaas::{Client, Executor, Function, Input, Output, Result, Spin};
use testkit::service::{call_with_room, deploy, warm};

/// Calls at a time: most of them find the worker polling.
const CALLS: usize = 50;
const PAYLOAD: usize = 64;
const POLLING: Duration = Duration::from_millis(1);
/// Nobody waits for ever for a neighbour that was killed.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The neighbour, which has an executor.
pub struct Neighbour {
    executor: Executor,
    echo: Function,
    input: Input,
    output: Output,
    /// What it could make of its file and its socket.
    pub settled: String,
}

impl Neighbour {
    pub fn new(client: &Client, library: &Path) -> Self {
        let deployment = warm().spin(Spin::For(POLLING)).invocation_timeout(CALL_LIMIT);
        let mut executor = deploy(client, 1, library, &deployment);
        let settled = call_with_room(&mut executor, "settle", &[], 4096).unwrap();
        let (input, output) = (executor.input(PAYLOAD).unwrap(), executor.output(PAYLOAD).unwrap());
        let echo = executor.function("echo").unwrap();
        let settled = String::from_utf8_lossy(&settled).into_owned();
        Neighbour { executor, echo, input, output, settled }
    }

    /// Calls some times; adds how long each took.
    pub fn calls(&mut self, times: &mut Vec<Duration>) -> Result<()> {
        for number in 0..CALLS {
            let begin = Instant::now();
            self.input.fill(number as u8);
            let bytes = self.executor.invoke(&self.echo, &self.input, &mut self.output)?;
            let output = self.output.to_vec(..bytes)?;
            assert_eq!(output, [number as u8; PAYLOAD], "the neighbour got another result");
            times.push(begin.elapsed());
        }
        Ok(())
    }
}

/// The time that 99 of 100 do not exceed.
pub fn p99(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}
