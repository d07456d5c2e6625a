//! Functions on leased cores of other nodes, called in microseconds: the client library.
//!
//! An application leases cores, deploys a library of functions there, and calls them by writing
//! their input straight into the memory of a worker that is already polling. It needs a resource
//! manager and an executor manager to be running; `tools/quickstart` starts both on this machine.
//!
//! ```no_run
//! use rfaas::{Client, Devices, LeaseRequest};
//!
//! fn main() -> rfaas::Result<()> {
//!     let devices = Devices::load("config/devices.json")?;
//!     let client = Client::connect(devices.open("shm0")?, "127.0.0.1:10000")?;
//!     let lease = client.lease(LeaseRequest::new(2, 512))?; // 2 cores, 512 MB
//!     let mut executor = lease.deploy("target/release/libfunctions.so")?;
//!
//!     let empty = executor.function("empty")?; // echoes its input
//!     let (mut input, mut output) = (executor.input(64)?, executor.output(64)?);
//!     input.fill(1);
//!     let n = executor.invoke(&empty, &input, &mut output)?; // blocks until the result is there
//!     println!("{:?}", output.to_vec(..n)?);
//!
//!     let pending = executor.submit(&empty, input, output)?; // a future; or wait for it:
//!     println!("{} bytes", pending.wait()?.bytes);
//!
//!     let mut call = executor.in_place(&empty, 64)?; // in the memory that the function reads
//!     call.write(0, &[1; 64])?;
//!     println!("{:?}", call.invoke()?.to_vec(..)?); // and where it wrote
//!     executor.release()?; // gives the cores back and waits for that; to drop it only asks for it
//!     Ok(())
//! }
//! ```
//!
//! # What there is
//! * [`Client`] acquires a [`Lease`], and that [deploys](Lease::deploy) an [`Executor`], which makes calls.
//! * [`Executor::invoke`] blocks, [`Executor::submit`] returns a future ([`Pending`]), [`Executor::in_place`] copies
//!   nothing, [`Executor::invoke_idempotent`] goes on elsewhere when a node is lost.
//! * [`Input`] and [`Output`] are registered memory. The type system keeps them apart from calls in flight.
//! * [`Error`] has a variant for each decision that an application may take.
//!
//! # Function libraries
//! A function library is a shared object for Linux. Each function that it exports can be called by its symbol's name:
//! ```c
//! // returns the bytes of output, written to `output`; input and output are at least 64-byte aligned
//! uint32_t name(void *input, uint32_t input_bytes, void *output);
//! ```
//! The same in Rust, in a crate of type `cdylib`:
//! ```
//! #[unsafe(no_mangle)]
//! pub extern "C" fn name(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
//!     0 // no output
//! }
//! ```
//! Several threads may call a function at once, one for each worker. How many bytes fit at `output` is for caller and
//! function to agree on: returning more is an error of that call, writing more destroys the executor. A child that a
//! function forks has neither input nor output if the node's device is an RDMA device (`ibv_fork_init(3)`): it is to be
//! given a copy of what it needs.

mod assembly;
mod bell;
mod buffer;
mod cause;
mod client;
mod database;
mod deployed;
mod deployment;
mod error;
mod executor;
mod executor_manager;
mod failover;
mod grantor;
mod held_lease;
mod in_place;
mod keepalive;
mod lease;
mod lease_handle;
mod library;
mod pending;
mod request;
mod resource_manager;
mod session;
mod specification;

pub use buffer::{Input, Output};
pub use client::Client;
pub use deployed::Function;
pub use deployment::{Deployment, Phases};
pub use error::{Error, Exit, Result, describe};
pub use executor::Executor;
pub use executor_manager::Ending;
pub use in_place::{InPlaceCall, InPlaceResult};
pub use lease::Lease;
pub use pending::{Completed, Failed, Pending};
pub use request::LeaseRequest;
pub use rfaas_call::Spin;
pub use rfaas_config::{
    ConfigError, DeviceEntry, Devices, ExecutorEntry, ExecutorsDatabase, Invalid, OpenDevice,
    TrustedUser,
};
pub use rfaas_protocol::Malformed;
pub use rfaas_protocol::allocation::RefusedBecause;
pub use rfaas_protocol::channel::ChannelError;
pub use rfaas_protocol::lease::{EndReason, LeaseId};
pub use rfaas_protocol::library::LibraryError;
pub use rfaas_protocol::node::Bill;
pub use rfaas_protocol::reach::Tried;

/// The programs in README.md, which compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The programs in docs/programming.md, which compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/programming.md")]
struct Programming;
