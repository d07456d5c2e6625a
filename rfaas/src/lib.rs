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
    ConfigError, DeviceEntry, Devices, ExecutorEntry, ExecutorsDatabase, OpenDevice,
};
pub use rfaas_protocol::Malformed;
pub use rfaas_protocol::allocation::RefusedBecause;
pub use rfaas_protocol::channel::ChannelError;
pub use rfaas_protocol::lease::EndReason;
pub use rfaas_protocol::library::LibraryError;
pub use rfaas_protocol::node::Bill;

/// The programs in README.md, which compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The programs in docs/programming.md, which compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/programming.md")]
struct Programming;
