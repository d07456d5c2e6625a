//! Functions on leased cores of other nodes, called in microseconds: the client library.
//!
//! An application leases cores, deploys a library of functions there, and calls them: one write
//! brings the input straight to a worker that is already polling.
//!
//! # A first program
//! It needs a resource manager and an executor manager to be running. The script
//! `tools/quickstart` of the repository starts both on this machine, calls functions and stops them
//! again: it shows that everything works here. `docs/tutorial.md` starts them by hand, to stay.
//!
//! It also needs a file that lists the devices of the machine. This one has the embedded device,
//! which works everywhere and reaches the processes of one machine (`config/README.md` has all
//! keys):
//! ```json
//! {
//!   "devices": [
//!     { "name": "shm0", "provider": "shm", "ip_address": "127.0.0.1" }
//!   ]
//! }
//! ```
//! The program:
//! ```no_run
//! use rfaas::{Client, Devices, LeaseRequest};
//!
//! fn main() -> rfaas::Result<()> {
//!     let devices = Devices::load("config/devices.json")?;
//!     let client = Client::connect(devices.open("shm0")?, "127.0.0.1:10000")?;
//!     let lease = client.lease(LeaseRequest::new(2, 512))?; // 2 cores, 512 MB
//!     let mut executor = lease.deploy("target/release/libfunctions.so")?; // a file of this machine
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
//! * [`Lease::grow`] leases more cores beside a lease, while its executor serves.
//! * [`Client::compile`] makes a [`Graph`] run: functions that hand on what they return, from worker to worker.
//! * [`Input`] and [`Output`] are registered memory. The type system keeps them apart from calls in flight.
//! * [`Executor::printed`] is what functions have written on standard output and error.
//! * [`Error`] has a variant for each decision that an application may take.
//!
//! # Several calls at once
//! A lease of *n* cores is an executor with *n* workers, and each runs one call at a time. Up to
//! [`slots`](Deployment::slots) calls may be in flight at each worker, the first of them running.
//! * [`Executor::invoke_all`] makes a list of calls, of any length, on all workers, and blocks.
//! * [`Executor::submit`] starts one call and returns. Several threads or tasks may wait for the
//!   [`Pending`] calls of one executor. When all slots are taken it fails with
//!   [`Error::AllSlotsBusy`], and gives the buffers back.
//! * [`Executor::invoke`] makes one call and blocks; other workers are then idle, unless calls were
//!   submitted before.
//!
//! An [`Executor`] makes calls for one thread at a time (`&mut self`). A [`Client`] serves several.
//!
//! # Defaults
//! | | default | changed with |
//! | --- | --- | --- |
//! | time of a lease | 1 hour | [`LeaseRequest::timeout`], [`Lease::renew`] |
//! | nodes of a request | 1 | [`LeaseRequest::max_nodes`] |
//! | name on the bill | `anonymous` | [`Client::connect_as`] |
//! | largest input, largest output | 1 MiB each | [`Deployment::input_bytes`], [`Deployment::output_bytes`] |
//! | calls in flight at a worker | 4 | [`Deployment::slots`] |
//! | workers and blocked callers | spin always | [`Deployment::spin`] |
//! | longest call | 60 s | [`Deployment::invocation_timeout`] |
//! | longest start of an executor | 30 s | [`Deployment::start_timeout`] |
//! | a process that a function has ended is replaced by the next call | no | [`Deployment::restart`] |
//! | longest search for another executor, in an idempotent call | 30 s | [`Deployment::failover_timeout`] |
//!
//! Memory of leases and nodes is in MB of 2²⁰ bytes, which is the same as MiB. All other sizes are
//! in bytes.
//!
//! # What to do about an error
//! | do | after |
//! | --- | --- |
//! | call again; the function may have run | [`WorkerLost`](Error::WorkerLost), [`TimeLimit`](Error::TimeLimit): the next call replaces the process first, if nothing else is in flight; of a graph, the lane is started again at once |
//! | submit the run again; functions may have run | [`GraphFailed`](Error::GraphFailed): its source says what happened |
//! | as its source says | [`GraphNotStarted`](Error::GraphNotStarted) |
//! | wait for a call, then call again | [`AllSlotsBusy`](Error::AllSlotsBusy) |
//! | call again with a larger buffer or deployment | [`OutputTooLarge`](Error::OutputTooLarge) (the function has run), [`InputTooLarge`](Error::InputTooLarge) |
//! | [`restart`](Executor::restart), then call again; with [`Deployment::restart`] the next call does so; the lease lives | [`FunctionCrashed`](Error::FunctionCrashed), [`FunctionExited`](Error::FunctionExited), [`StackOverflow`](Error::StackOverflow), [`MemoryLimit`](Error::MemoryLimit), [`ExecutorSilent`](Error::ExecutorSilent) |
//! | lease anew, deploy, call again | [`ExecutorGone`](Error::ExecutorGone), [`LeaseEnded`](Error::LeaseEnded) |
//! | ask later, or for less | [`LeaseRefused`](Error::LeaseRefused), [`AllocationRefused`](Error::AllocationRefused), [`NoAnswer`](Error::NoAnswer), [`Unreachable`](Error::Unreachable), [`Connection`](Error::Connection), [`StartTimeout`](Error::StartTimeout), [`LibraryGarbled`](Error::LibraryGarbled) |
//! | correct the program or its settings | [`Invalid`](Error::Invalid), [`InvalidGraph`](Error::InvalidGraph), [`Config`](Error::Config), [`Address`](Error::Address), [`LibraryUnreadable`](Error::LibraryUnreadable), [`Library`](Error::Library), [`LoadFailed`](Error::LoadFailed), [`StartFailed`](Error::StartFailed), [`UnknownFunction`](Error::UnknownFunction), [`Foreign`](Error::Foreign), [`AlreadyDeployed`](Error::AlreadyDeployed) |
//! | give up, and tell the operator | [`Unproved`](Error::Unproved), [`Protocol`](Error::Protocol), most of [`Rdma`](Error::Rdma) |
//! | connect a client in this process | [`Forked`](Error::Forked) |
//!
//! [`Executor::invoke_idempotent`] goes on by itself after `WorkerLost`, `ExecutorSilent`,
//! `ExecutorGone`, after `LeaseEnded` (unless this application gave the lease back) and after
//! somebody has killed the executor: it restarts, or leases anew, and asks again later while there
//! is nothing to be had. What the function does itself is an error at once, a `TimeLimit` too.
//!
//! # Function libraries
//! A function library is a shared object for Linux. Each function that it exports can be called by its symbol's name:
//! ```c
//! // returns the bytes of output, written to `output`; input and output are at least 64-byte aligned
//! uint32_t name(void *input, uint32_t input_bytes, void *output);
//! ```
//! The same in Rust, in a crate of type `cdylib`. The library lies on the machine of the caller, and deploying sends
//! it, unless the node has kept it from an earlier deployment. So it is built for the kind of processor that
//! both machines have.
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
mod buffer;
mod cause;
mod client;
mod database;
mod deployed;
mod deployment;
mod dialled;
mod error;
mod executor;
mod executor_manager;
mod failover;
mod granted;
mod grantor;
mod graph;
mod held_lease;
mod in_place;
mod keepalive;
mod lease;
mod lease_core;
mod library;
mod pending;
mod printed;
mod request;
mod resource_manager;
mod session;
mod spares;

pub use buffer::{Input, Output};
pub use cause::Ending;
pub use client::Client;
pub use deployed::Function;
pub use deployment::{Deployment, Phases};
pub use error::{Error, ExecutorMemory, Exit, Result};
pub use executor::Executor;
pub use graph::{CompiledGraph, Graph, GraphFunction, Join, Lanes, Map, Run, Span, Trace};
pub use in_place::{InPlaceCall, InPlaceResult};
pub use lease::Lease;
pub use pending::{Completed, Failed, Pending};
pub use printed::Printed;
pub use request::LeaseRequest;
pub use rfaas_call::Spin;
pub use rfaas_config::{
    ConfigError, DeviceEntry, Devices, ExecutorEntry, ExecutorsDatabase, Invalid, OpenDevice,
    TrustedUser, describe,
};
pub use rfaas_protocol::Malformed;
pub use rfaas_protocol::allocation::{OutputStream, RefusedBecause};
pub use rfaas_protocol::channel::ChannelError;
pub use rfaas_protocol::constraints::Constraint;
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
