//! Ours: the transport below the service and the service itself, on a cluster of our programs on this machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rfaas::{Client, Deployment, Executor, Function, Lease, LeaseRequest};
use rfaas_config::{DeviceEntry, Devices};
use rfaas_program::Failure;
use testkit::{LocalCluster, Options, TestDevices};

use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{measure, repeat, sample};
use crate::effort::Effort;
use benchmarks::calls::{Calls, CallsInPlace};
use benchmarks::cli::{Measure, Printing};
use benchmarks::echo::{Known, compare_once};
use benchmarks::machine::{End, cpu_of, move_to, settle_down, settle_process};
use benchmarks::plan::{RunPlan, input, later};
use benchmarks::service::Buffers;
use benchmarks::transport;

/// The function that returns its input, the one that returns as much but touches only its ends, and the
/// library that has them.
const FUNCTION: &str = "empty";
const EDGES: &str = "edges";
const LIBRARY: &str = "functions";
/// Memory that is leased, in MB: 16 MiB in and out, and room.
const LEASED_MB: u32 = 256;
/// Payload of throughputs, in bytes.
const SMALL: u32 = 64;
/// Payload that costs an RDMA device nothing beside its message, in bytes.
const WORD: u32 = 8;
/// Invocations of one list, which workers go through with all slots in use: filling and draining
/// them takes a small part of its time, and its buffers, each on a page of its own, fit into the
/// caches.
const LIST: u32 = 256;
/// Slots of each worker where the number of workers is what changes.
const SCALING_SLOTS: u16 = 16;

/// Payloads of warm round trips, in bytes.
pub(crate) fn warm_payloads() -> Vec<u32> {
    vec![WORD, SMALL]
}

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// They spin.
    Hot,
    /// They sleep.
    Warm,
}

impl Wait {
    fn hot_timeout_ms(self) -> i64 {
        match self {
            Wait::Hot => -1,
            Wait::Warm => 0,
        }
    }

    fn payloads(self) -> Vec<u32> {
        match self {
            Wait::Hot => PAYLOADS.to_vec(),
            Wait::Warm => warm_payloads(),
        }
    }

    pub(crate) fn means(self) -> &'static str {
        match self {
            Wait::Hot => "both spin",
            Wait::Warm => "both sleep",
        }
    }
}

/// A cluster on one device, which sleeps while there is no lease.
#[derive(Debug)]
pub struct Site {
    cluster: LocalCluster,
    library: PathBuf,
    device: DeviceEntry,
}

impl Site {
    /// Starts one on device `name` of `devices`, or the only one for an empty name, that leases `cores` cores.
    pub fn start(devices: &Devices, name: &str, cores: u32) -> Result<Self, Failure> {
        let device = devices.get(name).map_err(input)?.clone();
        device.open().map_err(input)?; // before anything is started
        let options = Options {
            cores,
            memory: LEASED_MB * cores,
            pin_threads: true,
            devices: Some(TestDevices { client: device.clone(), server: device.clone() }),
            ..Options::default()
        };
        let cluster = LocalCluster::start(options).map_err(later)?;
        let library = cluster.library(LIBRARY).map_err(input)?;
        Ok(Site { cluster, library, device })
    }

    /// The device that it is on.
    pub fn device(&self) -> &DeviceEntry {
        &self.device
    }

    /// Stops its programs.
    pub fn stop(self) -> Result<(), Failure> {
        self.cluster.stop().map_err(later)
    }

    fn plan(&self, payload: u32, wait: Wait) -> Result<RunPlan, Failure> {
        RunPlan::of(&Measure {
            config: self.cluster.benchmark(),
            device_database: self.cluster.devices(),
            size: payload,
            repetitions: None,
            warmup_repetitions: None,
            hot_timeout: Some(wait.hot_timeout_ms()),
            output_stats: None,
            printing: Printing { json: false, verbose: false },
        })
    }

    /// The other end of the transport: the program that measures it alone.
    fn transport_peer(&self, plan: &RunPlan) -> Result<Command, Failure> {
        let mut command = self.cluster.benchmark_command("transport_benchmarker").map_err(input)?;
        command.arg("--size").arg(plan.payload_bytes.to_string());
        command.arg("--hot-timeout").arg(plan.hot_timeout_ms.to_string());
        Ok(command)
    }

    fn deploy(
        &self,
        plan: &RunPlan,
        workers: u32,
        slots: u16,
    ) -> Result<(Lease, Executor, Function), Failure> {
        let address = self.cluster.resource_manager_address();
        let address = address.ok_or_else(|| Failure::later("there is no resource manager"))?;
        let client = Client::connect(plan.device.clone(), address)?;
        let lease = client.lease(LeaseRequest::new(workers, LEASED_MB * workers))?;
        let deployment = Deployment::default()
            .input_bytes(plan.payload_len())
            .output_bytes(plan.payload_len())
            .slots(slots)
            .spin(plan.spin());
        let executor = lease.deploy_with(&self.library, &deployment)?;
        let function = executor.function(FUNCTION)?;
        Ok((lease, executor, function))
    }

    /// Has everything on the CPU that is its own: workers on the last, the client on the first.
    fn settle(&self) {
        for executor in self.cluster.executors_running() {
            settle_process(executor, End::Last);
        }
        settle_down(End::First);
    }

    /// Invocations per second with `in_flight` slots of one worker always in use.
    pub fn in_flight(&self, in_flight: u16, effort: Effort) -> Result<f64, Failure> {
        let plan = self.plan(SMALL, Wait::Hot)?;
        let (_lease, executor, function) = self.deploy(&plan, 1, in_flight)?;
        self.settle();
        per_second(&plan, executor, &function, effort)
    }

    /// Invocations per second with `workers` workers, each on the CPU that it was given.
    pub fn scaling(&self, workers: u32, effort: Effort) -> Result<f64, Failure> {
        let plan = self.plan(SMALL, Wait::Hot)?;
        let (_lease, executor, function) = self.deploy(&plan, workers, SCALING_SLOTS)?;
        per_second(&plan, executor, &function, effort)
    }
}

/// Invocations per second of long lists; making them and checking their results takes none of that time.
fn per_second(
    plan: &RunPlan,
    mut executor: Executor,
    function: &Function,
    effort: Effort,
) -> Result<f64, Failure> {
    let mut buffers = Buffers::new(plan, &executor, LIST)?;
    let mut number = 0;
    let mut lists = |effort: Effort| {
        let (mut done, mut spent) = (0.0, Duration::ZERO);
        repeat(effort, || {
            buffers.stamp(Known::All, number)?;
            let start = Instant::now();
            let sizes = executor.invoke_all(function, &buffers.inputs, &mut buffers.outputs);
            spent += start.elapsed();
            buffers.check(Known::All, &sizes?, number)?;
            number += 1;
            done += f64::from(LIST);
            Ok(())
        })?;
        Ok::<_, Failure>(done / spent.as_secs_f64())
    };
    lists(effort.warm_up())?;
    let rate = lists(effort)?;
    executor.release()?;
    Ok(rate)
}

/// Writes with immediate data there and back.
#[derive(Debug)]
pub struct Transport<'a> {
    /// Where.
    pub site: &'a Site,
    /// How.
    pub wait: Wait,
}

impl Contender for Transport<'_> {
    fn id(&self) -> Id {
        match self.wait {
            Wait::Hot => Id::Transport,
            Wait::Warm => Id::TransportWarm,
        }
    }

    fn device(&self) -> Option<&str> {
        Some(&self.site.device.name)
    }

    fn settings(&self) -> String {
        format!("writes with immediate data as an invocation's, no service, {}", self.wait.means())
    }

    fn payloads(&self) -> Vec<u32> {
        self.wait.payloads()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let plan = self.site.plan(payload, self.wait)?;
        let peer = self.site.transport_peer(&plan)?;
        let first = cpu_of(End::First);
        if self.wait == Wait::Warm {
            settle_down(End::Last); // which the other process inherits; hot ends settle down by themselves
        }
        let mut transport = transport::Transport::start(&plan, peer)?;
        if let Some(first) = first {
            move_to(first);
        }
        Ok(Round::of(measure(&mut transport, payload, effort)?))
    }
}

/// Blocking invocations, one after the other.
#[derive(Debug)]
pub struct Service<'a> {
    /// Where.
    pub site: &'a Site,
    /// How.
    pub wait: Wait,
}

impl Contender for Service<'_> {
    fn id(&self) -> Id {
        match self.wait {
            Wait::Hot => Id::Service,
            Wait::Warm => Id::ServiceWarm,
        }
    }

    fn device(&self) -> Option<&str> {
        Some(&self.site.device.name)
    }

    fn settings(&self) -> String {
        format!(
            "blocking invoke of `{FUNCTION}` in lib{LIBRARY}.so, one leased core, one slot of the payload's size, {}",
            self.wait.means()
        )
    }

    fn payloads(&self) -> Vec<u32> {
        self.wait.payloads()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let plan = self.site.plan(payload, self.wait)?;
        let (_lease, mut executor, function) = self.site.deploy(&plan, 1, 1)?;
        let mut calls = Calls::new(&plan, &mut executor, &function)?;
        self.site.settle();
        let samples = measure(&mut calls, payload, effort)?;
        drop(calls);
        executor.release().map_err(Failure::from)?;
        Ok(Round::of(samples))
    }
}

/// Calls whose input and output stay where the function has them, one after the other in the same slot.
#[derive(Debug)]
pub struct InPlace<'a> {
    /// Where.
    pub site: &'a Site,
}

impl Contender for InPlace<'_> {
    fn id(&self) -> Id {
        Id::InPlace
    }

    fn device(&self) -> Option<&str> {
        Some(&self.site.device.name)
    }

    fn settings(&self) -> String {
        format!(
            "as invocation, hot, of `{EDGES}`, which looks at the ends of its input and returns as much: in_place \
             once, then invoke and, not measured, again in the same slot"
        )
    }

    fn payloads(&self) -> Vec<u32> {
        Wait::Hot.payloads()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let plan = self.site.plan(payload, Wait::Hot)?;
        let (_lease, mut executor, echo) = self.site.deploy(&plan, 1, 1)?;
        let edges = executor.function(EDGES).map_err(Failure::from)?;
        self.site.settle();
        let mut calls = CallsInPlace::new(&mut executor, &edges, plan.payload_len())?;
        let samples = sample(&mut calls, payload, effort)?;
        drop(calls);
        // All of a payload comes back from the function that returns all.
        compare_once(
            &mut CallsInPlace::new(&mut executor, &echo, plan.payload_len())?,
            payload as usize,
            0,
        )?;
        executor.release().map_err(Failure::from)?;
        Ok(Round::of(samples))
    }
}
