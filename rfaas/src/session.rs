//! Starting an executor process: the lease is claimed, executor and workers dial back, the library is sent unless the
//! node has it.
//!
//! ```text
//!   claim ──Allocated──▶ listen: executor ──▶ code, if wanted ──▶ functions  ┐ in any order,
//!                        workers, one by one                                 ┘ until all are there
//! ```
//! * If anything goes wrong, connections made so far are dropped, at which the executor exits.
//! * The whole has one deadline. It ends sooner if the executor does, which its manager tells.
//! * Anyone may dial. A peer that does not show the session's secret, or offers numbers that cannot be, is refused, and
//!   the real one is waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::Listener;
use rfaas_call::caller::{CallLimits, Calls, Driver, Workers};
use rfaas_protocol::Secret;
use rfaas_protocol::channel::Channel;
use rfaas_protocol::lease::LeaseId;

use crate::assembly::Assembly;
use crate::deployment::{DeploymentSpecification, Phases};
use crate::error::{Error, Exit, Result};
use crate::held_lease::HeldLease;
use crate::lease_core::{Claim, LeaseEnd, LeaseUse};
use crate::request::ExecutorRequest;

/// A wait for connections is cut short so often, to hear what the manager and the executor say.
const TICK: Duration = Duration::from_millis(1);
/// Longest start, so that a deadline can be computed: a century.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// After an executor's connection has ended, how long its manager may take to say why.
const EXIT_NEWS: Duration = Duration::from_secs(1);

/// An executor process that is ready.
pub(crate) struct Started {
    pub(crate) calls: Calls<LeaseEnd>,
    pub(crate) control: Channel,
    /// Names of its functions, by number.
    pub(crate) functions: Vec<String>,
    pub(crate) lease_id: LeaseId,
    pub(crate) phases: Phases,
}

/// Starts an executor as `specification` says on `lease`, which runs none, within `timeout`.
pub(crate) fn start(
    lease: &Arc<HeldLease>,
    specification: &DeploymentSpecification,
    timeout: Duration,
) -> Result<Started> {
    let mut state = lease.lock();
    let started = launch(lease, &mut state, specification, timeout)?;
    state.deployed = true;
    Ok(started)
}

/// Starts another executor for `lease`, whose last one was asked to end. Waits for that first.
pub(crate) fn start_again(
    lease: &Arc<HeldLease>,
    specification: &DeploymentSpecification,
    timeout: Duration,
) -> Result<Started> {
    let mut state = lease.lock();
    state.deployed = false;
    let started = launch(lease, &mut state, specification, timeout);
    state.deployed = true; // also after a failure: the same executor has the lease
    started
}

fn launch(
    lease: &Arc<HeldLease>,
    state: &mut LeaseUse,
    specification: &DeploymentSpecification,
    timeout: Duration,
) -> Result<Started> {
    let deployment = &specification.deployment;
    let deadline = Instant::now() + timeout.min(FOREVER);
    let device = lease.device();
    let mut listener = device.device.listen(device.entry.port)?;
    let mut phases = Phases::default();
    let session = Secret::generate();
    let request = ExecutorRequest {
        client: listener.local_addr(),
        session,
        spin: deployment.spin,
        input_bytes: wire(deployment.input_bytes),
        output_bytes: wire(deployment.output_bytes),
        code_bytes: wire(specification.library.code.len()),
        code_hash: specification.library.hash,
        slots: deployment.slots,
    };
    let mut assembly = Assembly::new(device, lease.cores, session, specification)?;
    let replace: &dyn Fn(&[_], _) -> _ = &|candidates, because| lease.replace(candidates, because);
    let claim = Claim { device, request: &request, deadline, replace };
    let (lease_id, node) = state.start_executor(&claim, &mut phases)?;
    if let Some(node) = node {
        lease.claimed(lease_id, &node);
        lease.keep_alive(state);
    }
    tracing::info!(lease = %lease_id, node = lease.node(), "lease claimed");
    if !assemble(&mut assembly, &mut listener, state, deadline, &mut phases)? {
        return Err(Error::StartTimeout { after: timeout, missing: assembly.missing() });
    }
    tracing::info!(lease = %lease_id, workers = lease.cores, "executor ready");

    let ready = assembly.finish();
    let driver = Driver::new(ready.completions, ready.receives);
    lease.core.wake_at_end(driver.waker());
    let limits = CallLimits {
        spin: deployment.spin,
        timeout: deployment.invocation_timeout,
        output_bytes: deployment.output_bytes,
    };
    let workers = Workers::new(ready.workers, limits.timeout);
    Ok(Started {
        calls: Calls::new(workers, driver, limits, LeaseEnd::of(&lease.core)),
        control: ready.control,
        functions: ready.functions,
        lease_id,
        phases,
    })
}

/// Brings executor and workers together, after their manager has said that it started them. Returns false if they are
/// not complete at `deadline`.
fn assemble(
    assembly: &mut Assembly<'_>,
    listener: &mut Listener,
    state: &mut LeaseUse,
    deadline: Instant,
    phases: &mut Phases,
) -> Result<bool> {
    let started = Instant::now();
    loop {
        let exit = poll_manager(state)?;
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
            phases.library_sent = assembly.library_sent();
            phases.spawn_connect = started.elapsed().saturating_sub(loaded_in);
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        if connected {
            assembly.wait_for_control(left.min(TICK))?;
        } else if let Some(request) = listener.next(left.min(TICK))? {
            assembly.admit(request)?;
        }
    }
}

/// Returns how the executor ended, if it did. Fails if the lease did.
fn poll_manager(state: &mut LeaseUse) -> Result<Option<Exit>> {
    let Some(manager) = state.manager() else { return Ok(None) };
    manager.poll();
    match manager.over() {
        Some(cause) => Err(cause.into()),
        None => Ok(manager.exit()),
    }
}

/// Returns how the executor ended, whose connection has.
fn wait_for_exit(state: &mut LeaseUse) -> Result<Exit> {
    let Some(manager) = state.manager() else { return Ok(Exit::Unknown) };
    manager.wait_for_exit(Instant::now() + EXIT_NEWS)?;
    Ok(manager.exit().unwrap_or(Exit::Unknown))
}

/// Returns a size, which was checked to fit, as it is on the wire.
fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("validated: less than 4 GiB")
}
