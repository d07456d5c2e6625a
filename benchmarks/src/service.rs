//! From flags to an executor: what the benchmarks of the function service do before they measure.

use std::path::PathBuf;

use rfaas::{Client, Deployment, Executor, Input, LeaseRequest, Output};
use rfaas_config::ExecutorsDatabase;
use rfaas_program::Failure;
use testkit::Binaries;

use crate::cli::Service;
use crate::echo::Known;
use crate::pattern;
use crate::plan::{RunPlan, input};

/// Name of the shipped library.
const SHIPPED: &str = "functions";

/// A client of the resource manager or, with an executors database, of the executor managers in it.
pub fn connect(plan: &RunPlan, flags: &Service) -> Result<Client, Failure> {
    if let Some(file) = &flags.executors_database {
        let database = ExecutorsDatabase::load(file).map_err(input)?;
        return Client::with_executors(plan.device.clone(), database).map_err(Failure::from);
    }
    let manager = plan.settings.config.resource_manager().map_err(input)?.ok_or_else(|| {
        Failure::input(
            "nobody to lease from: set \"resource_manager_address\" in the configuration or give \
             --executors-database",
        )
    })?;
    Client::connect(plan.device.clone(), &manager[..]).map_err(Failure::from)
}

/// Leases `cores` cores and deploys the library there.
pub fn deploy(plan: &RunPlan, flags: &Service, cores: u32) -> Result<Executor, Failure> {
    let library = library(flags)?;
    let lease = connect(plan, flags)?.lease(request(plan, cores))?;
    Ok(lease.deploy_with(&library, &deployment(plan, flags))?)
}

/// What is asked for: `cores`, and the configured memory.
pub fn request(plan: &RunPlan, cores: u32) -> LeaseRequest {
    LeaseRequest::new(cores, plan.settings.benchmark.memory)
}

/// How executors are deployed.
pub fn deployment(plan: &RunPlan, flags: &Service) -> Deployment {
    let bytes = flags.slot_bytes.unwrap_or(plan.payload_bytes);
    Deployment::default()
        .input_bytes(bytes as usize)
        .output_bytes(bytes as usize)
        .slots(flags.slots)
        .spin(plan.spin())
}

/// Makes `code`, a library, as large as `bytes`, if it is smaller. What is behind an ELF file's sections means
/// nothing to the loader.
pub fn enlarge(code: &mut Vec<u8>, bytes: usize) {
    let shipped = code.len().max(1);
    while code.len() < bytes {
        code.extend_from_within(..shipped.min(bytes - code.len()));
    }
}

/// The library to deploy.
pub fn library(flags: &Service) -> Result<PathBuf, Failure> {
    match &flags.functions {
        Some(file) => Ok(file.clone()),
        None => Binaries::beside_this_program().library(SHIPPED).map_err(Failure::input),
    }
}

/// An input and an output for each worker.
#[derive(Debug)]
pub struct Buffers {
    /// Inputs, one for each worker.
    pub inputs: Vec<Input>,
    /// Outputs, one for each worker.
    pub outputs: Vec<Output>,
}

impl Buffers {
    /// For payloads of this run on `workers` workers. Inputs hold ones, as the tutorial has it.
    pub fn new(plan: &RunPlan, executor: &Executor, workers: u32) -> Result<Self, Failure> {
        let one = |_| {
            let mut input = executor.input(plan.payload_len())?;
            input.fill(1);
            Ok((input, executor.output(plan.payload_len())?))
        };
        let pairs = (0..workers).map(one).collect::<Result<Vec<_>, Failure>>()?;
        let (inputs, outputs) = pairs.into_iter().unzip();
        Ok(Buffers { inputs, outputs })
    }

    /// Stamps each input with a number that no other one of this run has, if that can be checked.
    pub fn stamp(&mut self, known: Known, repetition: u64) -> Result<(), Failure> {
        if known == Known::Nothing {
            return Ok(());
        }
        let first = repetition * self.inputs.len() as u64;
        (first..).zip(&mut self.inputs).try_for_each(|(number, input)| {
            pattern::write_stamp(input.len(), number, |offset, bytes| {
                input.write(offset, bytes).map_err(Failure::from)
            })
        })
    }

    /// Fails unless each result, of the size given, is that of its own input, if so much is known.
    pub fn check(&self, known: Known, sizes: &[usize], repetition: u64) -> Result<(), Failure> {
        if known == Known::Nothing {
            return Ok(());
        }
        let first = repetition * self.inputs.len() as u64;
        let results = self.inputs.iter().zip(&self.outputs).zip(sizes);
        (first..).zip(results).try_for_each(|(number, ((input, output), &returned))| {
            pattern::compare_length(repetition, input.len(), returned)?;
            pattern::check_stamp(returned, number, |offset, out| {
                output.read(offset, out).map_err(Failure::from)
            })
        })
    }
}
