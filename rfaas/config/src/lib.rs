//! Settings: one struct for each JSON file in `config/`, read with its `load`; and how a program
//! reports an error. This crate is internal: applications use `rfaas`.
//!
//! ```text
//!   file ──serde──▶ struct ──validate──▶ T::load(path)      else one line that names file and key
//! ```
//! Every key is explained in `config/README.md`, which a test compares with these structs; those of a graph, of which
//! there is no shipped file, in `docs/graphs.md`. A key that
//! is not there has its default; a key that nobody knows is refused, since it is a typing error.
//!
//! Elsewhere: command lines, whose flags override these settings.

mod benchmark;
mod container;
mod devices;
mod executor_manager;
mod executors;
mod file;
mod graph;
mod report;
mod resource_manager;
mod secret;
pub mod shell;

pub use benchmark::{BenchmarkConfig, BenchmarkNode, BenchmarkRun};
pub use container::{ContainerSettings, Engine};
pub use devices::{DeviceEntry, Devices, OpenDevice, TrustedUser};
pub use executor_manager::{
    CacheSharing, ExecutorManagerConfig, ExecutorManagerNode, ExecutorSettings, Isolation, Launch,
};
pub use executors::{ExecutorEntry, ExecutorsDatabase};
pub use file::{ConfigError, EXECUTOR_MANAGER_PORT, Invalid, RESOURCE_MANAGER_PORT, resolve};
pub use graph::{
    GraphFile, GraphFileBatch, GraphFileEdge, GraphFileEdgeKind, GraphFileFunction, GraphFileInput,
    GraphFileJoin, GraphFileOutput,
};
pub use report::{ProgramError, describe};
pub use resource_manager::{
    AddressRange, ClientLimits, ResourceManagerConfig, ResourceManagerNode,
};
pub use secret::{ClusterSecret, SECRET_VARIABLE, SecretValue};
