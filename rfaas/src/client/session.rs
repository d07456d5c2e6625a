//! Deploying: the lease is claimed, its executor and workers dial back, the library is sent to
//! them.
//!
//! ```text
//!   claim ──Allocated──▶ listen: executor ──▶ code is written ──▶ functions  ┐ in any order,
//!                        workers, one by one                                 ┘ until all are there
//! ```
//! * ALL-OR-NOTHING - whatever goes wrong, connections made so far are dropped, at which the
//!   executor exits.
//! * ENDS - the whole has one deadline. Sooner it ends with the executor: its manager tells.
//! * HOSTILE - anyone may dial. Who does not show the session's secret, or offers numbers that
//!   cannot be, is refused, and the real one is waited for.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::Listener;
use zerocopy::FromZeros;

use super::assembly::Assembly;
use super::buffer::Owner;
use super::drive::{Driver, Shared};
use super::executor::{Deployed, Parts};
use super::lease::{LeaseInner, LeaseState};
use super::{Deployment, Executor, Phases};
use crate::error::{Error, Exit, Result};
use crate::function::exported_functions;
use crate::protocol::Secret;
use crate::protocol::allocation::Allocate;
use crate::protocol::lease::{LeaseTerms, Token};

/// A wait for connections is cut short so often, to see what the manager and the executor say.
const TICK: Duration = Duration::from_millis(1);
/// Longest start, so that a deadline can be computed: a century.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// After an executor's connection has ended, how long its manager may take to say why.
const EXIT_NEWS: Duration = Duration::from_secs(1);

/// Starts an executor for `lease` with the library at `path`.
pub(super) fn deploy(
    lease: &Arc<LeaseInner>,
    path: &Path,
    deployment: &Deployment,
) -> Result<Executor> {
    deployment.validate()?;
    let code = read_library(path)?;
    let mut state = lease.lock();
    let start = Instant::now();
    let deadline = start + deployment.start_timeout.min(FOREVER);
    let device = lease.device();
    let mut listener = device.device.listen(device.entry.port)?;
    let mut phases = Phases::default();
    let session = Secret::generate();
    let request = Allocate {
        token: Token::unsigned(LeaseTerms::new_zeroed()), // the lease's takes its place
        client: listener.local_addr().into(),
        session,
        hot_timeout_ms: deployment.spin.hot_timeout_ms().into(),
        input_bytes: wire(deployment.input_bytes).into(),
        output_bytes: wire(deployment.output_bytes).into(),
        code_bytes: wire(code.len()).into(),
        slots: deployment.slots.into(),
    };
    let mut assembly = Assembly::new(device, lease.cores(), session, deployment, &code)?;
    let lease_id = state.claim(lease, &request, deadline, &mut phases)?;
    tracing::info!(lease = %lease_id, node = lease.node(), "lease claimed");
    assemble(&mut assembly, &mut listener, &mut state, deadline, deployment, &mut phases)?;
    tracing::info!(lease = %lease_id, workers = lease.cores(), "executor ready");
    state.deployed();
    drop(state);

    let ready = assembly.finish();
    let workers = ready.workers.len();
    let driver = Driver::new(ready.completions, ready.receives);
    let weak = Arc::downgrade(lease);
    Ok(Executor::new(Parts {
        lease: Deployed(Arc::clone(lease)),
        shared: Shared::new(ready.workers, driver, ready.functions, deployment, weak),
        control: ready.control,
        domain: ready.domain,
        owner: Owner::generate(),
        deployment: deployment.clone(),
        lease_id,
        workers,
        phases,
    }))
}

/// Brings executor and workers together; their manager has said that it started them.
fn assemble(
    assembly: &mut Assembly<'_>,
    listener: &mut Listener,
    state: &mut LeaseState,
    deadline: Instant,
    deployment: &Deployment,
    phases: &mut Phases,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let exit = look_at_manager(state)?;
        let control_lives = assembly.read_control()?;
        if let Some(exit) = exit {
            return Err(Error::StartFailed(exit));
        }
        if !control_lives {
            return Err(Error::StartFailed(wait_for_exit(state)?));
        }
        let connected = assembly.is_connected();
        if connected && let Some(loaded_in) = assembly.loaded_in() {
            phases.initialize = loaded_in;
            phases.spawn_connect = started.elapsed().saturating_sub(loaded_in);
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (after, missing) = (deployment.start_timeout, assembly.missing());
            return Err(Error::StartTimeout { after, missing });
        }
        if connected {
            assembly.wait_for_control(left.min(TICK))?;
        } else if let Some(request) = listener.next(left.min(TICK))? {
            assembly.admit(request)?;
        }
    }
}

/// How the executor ended, if it did; an error if the lease did.
fn look_at_manager(state: &mut LeaseState) -> Result<Option<Exit>> {
    let Some(manager) = state.manager() else { return Ok(None) };
    manager.look();
    match manager.over() {
        Some(failure) => Err(failure.into_error(Duration::ZERO)),
        None => Ok(manager.exit()),
    }
}

/// How the executor ended, whose connection has.
fn wait_for_exit(state: &mut LeaseState) -> Result<Exit> {
    let Some(manager) = state.manager() else { return Ok(Exit::Unknown) };
    manager.wait_for_exit(Instant::now() + EXIT_NEWS)?;
    Ok(manager.exit().unwrap_or(Exit::Unknown))
}

/// The library, if it is one.
fn read_library(path: &Path) -> Result<Vec<u8>> {
    let path_of_error = || path.to_owned();
    let code = std::fs::read(path)
        .map_err(|source| Error::LibraryUnreadable { path: path_of_error(), source })?;
    exported_functions(&code).map_err(|source| Error::Library { path: path_of_error(), source })?;
    if u32::try_from(code.len()).is_err() {
        return Err(Error::Invalid("a function library is smaller than 4 GiB"));
    }
    Ok(code)
}

/// A size that was checked to fit.
fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("validated: less than 4 GiB")
}
