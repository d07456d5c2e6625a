//! The floor of an invocation on an RDMA device: two processes that do nothing but write to each other.

use std::time::{Duration, Instant};

use rfaas_config::DeviceEntry;
use rfaas_program::Failure;

use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::effort::Effort;
use crate::ours::{Wait, warm_payloads};
use benchmarks::floor::{VERBS_NEED, VerbsPingPong, Waiting};
use benchmarks::machine::{End, cpu_of};
use benchmarks::samples::Samples;

/// Most round trips that are asked for at a time: many beside the first, which is slower.
const AT_ONCE: u32 = 100;

/// Writes with immediate data there and back on one device, with a receive posted for each.
#[derive(Debug)]
pub struct PingPong<'a> {
    /// The device of both ends.
    pub device: &'a DeviceEntry,
    /// How both wait.
    pub wait: Wait,
}

impl Contender for PingPong<'_> {
    fn id(&self) -> Id {
        match self.wait {
            Wait::Hot => Id::VerbsPolling,
            Wait::Warm => Id::VerbsSleeping,
        }
    }

    fn device(&self) -> Option<&str> {
        Some(&self.device.name)
    }

    fn settings(&self) -> String {
        format!(
            "a C program: writes with immediate data, a receive posted for each, inline up to {} B, {}",
            self.device.max_inline_data,
            self.wait.means()
        )
    }

    fn payloads(&self) -> Vec<u32> {
        match self.wait {
            Wait::Hot => PAYLOADS.to_vec(),
            Wait::Warm => warm_payloads(),
        }
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let waiting = match self.wait {
            Wait::Hot => Waiting::Hot,
            Wait::Warm => Waiting::Warm,
        };
        let cpus = [End::First, End::Last].map(|end| cpu_of(end).unwrap_or_default());
        let (address, inline) = (self.device.ip_address, self.device.max_inline_data);
        let started = VerbsPingPong::start(address, payload, inline, waiting, cpus)?;
        let mut floor = started.ok_or_else(|| NotMeasured::NotRun(VERBS_NEED.into()))?;
        take(&mut floor, payload, effort.warm_up())?;
        Ok(Round::of(take(&mut floor, payload, effort)?))
    }
}

/// As many round trips as `effort` says.
fn take(floor: &mut VerbsPingPong, payload: u32, effort: Effort) -> Result<Samples, Failure> {
    let at_once = effort.planned(payload).min(AT_ONCE);
    let mut samples = Samples::with_capacity(effort.most as usize);
    let start = Instant::now();
    while !effort.is_over(samples.each().len() as u32, start.elapsed()) {
        for round_trip in floor.round_trips(at_once)? {
            samples.record(Duration::from_nanos(round_trip));
        }
    }
    Ok(samples)
}
