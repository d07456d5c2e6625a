//! From flags to an executor: what the benchmarks of the function service do before they measure.

use std::path::PathBuf;

use rfaas::{Client, Deployment, Executor, Input, LeaseRequest, Output};
use rfaas_config::ExecutorsDatabase;
use rfaas_program::Failure;
use testkit::Binaries;

use crate::cli::Service;
use crate::pattern;
use crate::plan::{Plan, input};

/// Name of the shipped library.
const SHIPPED: &str = "functions";
/// The function whose output is known: its input.
const ECHO: &str = "empty";
/// The one that returns only what is stamped of it.
const EDGES: &str = "edges";

/// What is known of a function's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is the input.
    All,
    /// It is as long as the input, and the same where that is stamped.
    Stamps,
    /// Nothing.
    Nothing,
}

impl Known {
    /// Of the function of this name.
    pub fn of(function: &str) -> Self {
        match function {
            ECHO => Known::All,
            EDGES => Known::Stamps,
            _ => Known::Nothing,
        }
    }
}

/// A client of the resource manager or, with an executors database, of the executor managers in it.
pub fn connect(plan: &Plan, flags: &Service) -> Result<Client, Failure> {
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

/// What is asked for: `cores`, and the configured memory.
pub fn request(plan: &Plan, cores: u32) -> LeaseRequest {
    LeaseRequest::new(cores, plan.settings.benchmark.memory)
}

/// How executors are deployed.
pub fn deployment(plan: &Plan, flags: &Service) -> Deployment {
    let bytes = flags.slot_bytes.unwrap_or(plan.payload_bytes);
    Deployment::default()
        .input_bytes(bytes as usize)
        .output_bytes(bytes as usize)
        .slots(flags.slots)
        .spin(plan.spin())
}

/// The library to deploy.
pub fn library(flags: &Service) -> Result<PathBuf, Failure> {
    match &flags.functions {
        Some(file) => Ok(file.clone()),
        None => Binaries::beside_this_program().library(SHIPPED).map_err(Failure::input),
    }
}

/// An input and an output for each worker. If the function is one whose result is known, each result is checked.
#[derive(Debug)]
pub struct Buffers {
    /// Inputs, one for each worker.
    pub inputs: Vec<Input>,
    /// Outputs, one for each worker.
    pub outputs: Vec<Output>,
    known: Known,
}

impl Buffers {
    /// For payloads of this run, which `function` is called with on `workers` workers. Inputs hold ones, as the
    /// tutorial has it.
    pub fn new(
        plan: &Plan,
        executor: &Executor,
        function: &str,
        workers: u32,
    ) -> Result<Self, Failure> {
        let one = |_| {
            let mut input = executor.input(plan.payload_len())?;
            input.fill(1);
            Ok((input, executor.output(plan.payload_len())?))
        };
        let pairs = (0..workers).map(one).collect::<Result<Vec<_>, Failure>>()?;
        let (inputs, outputs) = pairs.into_iter().unzip();
        Ok(Buffers { inputs, outputs, known: Known::of(function) })
    }

    /// How far results can be checked.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Stamps each input with a number that no other one of this run has.
    pub fn stamp(&mut self, repetition: u64) -> Result<(), Failure> {
        if self.known == Known::Nothing {
            return Ok(());
        }
        let first = repetition * self.inputs.len() as u64;
        (first..).zip(&mut self.inputs).try_for_each(|(number, input)| {
            pattern::write_stamp(input.len(), number, |offset, bytes| {
                input.write(offset, bytes).map_err(Failure::from)
            })
        })
    }

    /// Fails unless each result, of the size given, is that of its own input.
    pub fn check(&self, sizes: &[usize], repetition: u64) -> Result<(), Failure> {
        if self.known == Known::Nothing {
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
