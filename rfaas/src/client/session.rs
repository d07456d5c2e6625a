//! Deploying: the lease is claimed, its executor and workers dial back, the library is sent to
//! them.
//!
//! ```text
//!   claim ──Allocated──▶ listen: executor ──▶ code is written ──▶ functions  ┐ in any order,
//!                        workers, one by one                                 ┘ until all are there
//! ```
//! * ALL-OR-NOTHING - whatever goes wrong, connections made so far are dropped, at which the
//!   executor exits.
//! * AGAIN - what an application has made for an executor is of the [`Blueprint`], not of the process:
//!   buffers and functions outlive the process, and any number can be started one after the other.
//! * ENDS - the whole has one deadline. Sooner it ends with the executor: its manager tells.
//! * HOSTILE - anyone may dial. Who does not show the session's secret, or offers numbers that
//!   cannot be, is refused, and the real one is waited for.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdmalib::{Domain, Listener};
use zerocopy::FromZeros;

use super::assembly::Assembly;
use super::buffer::Owner;
use super::drive::{Driver, Shared};
use super::executor::Deployed;
use super::lease::LeaseInner;
use super::life::LeaseState;
use super::{Deployment, Executor, Phases, library};
use crate::error::{Error, Exit, Result};
use rfaas_protocol::allocation::Allocate;
use rfaas_protocol::channel::Channel;
use rfaas_protocol::lease::{LeaseId, SignedTerms};
use rfaas_protocol::{Clock, Proof, Secret};

/// A wait for connections is cut short so often, to see what the manager and the executor say.
const TICK: Duration = Duration::from_millis(1);
/// Longest start, so that a deadline can be computed: a century.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// After an executor's connection has ended, how long its manager may take to say why.
const EXIT_NEWS: Duration = Duration::from_secs(1);

/// What stays when an executor process is replaced by another, on its lease or elsewhere.
#[derive(Debug)]
pub(super) struct Blueprint {
    /// The library.
    pub(super) code: Arc<[u8]>,
    pub(super) deployment: Deployment,
    /// Of all buffers, and of the connections to whichever workers there are.
    pub(super) domain: Domain,
    pub(super) owner: Owner,
}

/// An executor process that is ready.
pub(super) struct Started {
    pub(super) shared: Shared,
    pub(super) control: Channel,
    pub(super) lease_id: LeaseId,
    pub(super) phases: Phases,
}

/// Starts an executor for `lease` with the library at `path`.
pub(super) fn deploy(
    lease: &Arc<LeaseInner>,
    path: &Path,
    deployment: &Deployment,
) -> Result<Executor> {
    deployment.validate()?;
    let blueprint = Blueprint {
        code: library::read(path)?.into(),
        deployment: deployment.clone(),
        domain: lease.device().device.domain()?,
        owner: Owner::generate(),
    };
    let (deployed, started) = start(lease, &blueprint, deployment.start_timeout)?;
    Ok(Executor::new(deployed, blueprint, started))
}

/// Starts an executor as `blueprint` says on `lease`, which runs none, within `timeout`.
pub(super) fn start(
    lease: &Arc<LeaseInner>,
    blueprint: &Blueprint,
    timeout: Duration,
) -> Result<(Deployed, Started)> {
    let mut state = lease.lock();
    let started = launch(lease, &mut state, blueprint, timeout)?;
    state.deployed();
    Ok((Deployed(Arc::clone(lease)), started))
}

/// Starts another executor for `deployed`, whose last one was told to end; waits for that first.
pub(super) fn start_again(
    deployed: &Deployed,
    blueprint: &Blueprint,
    timeout: Duration,
) -> Result<Started> {
    let mut state = deployed.0.lock();
    state.undeployed();
    let started = launch(&deployed.0, &mut state, blueprint, timeout);
    state.deployed(); // also after a failure: the lease is whose it was
    started
}

fn launch(
    lease: &Arc<LeaseInner>,
    state: &mut LeaseState,
    blueprint: &Blueprint,
    timeout: Duration,
) -> Result<Started> {
    let deployment = &blueprint.deployment;
    let deadline = Instant::now() + timeout.min(FOREVER);
    let device = lease.device();
    let mut listener = device.device.listen(device.entry.port)?;
    let mut phases = Phases::default();
    let session = Secret::generate();
    let request = Allocate {
        signed: SignedTerms::new_zeroed(), // the lease's, the time and the proof take their places
        clock: Clock::new_zeroed(),
        proof: Proof::NONE,
        client: listener.local_addr().into(),
        session,
        hot_timeout_ms: deployment.spin.hot_timeout_ms().into(),
        input_bytes: wire(deployment.input_bytes).into(),
        output_bytes: wire(deployment.output_bytes).into(),
        code_bytes: wire(blueprint.code.len()).into(),
        slots: deployment.slots.into(),
    };
    let mut assembly = Assembly::new(device, lease.cores(), session, blueprint)?;
    let first = state.manager().is_none();
    let lease_id = state.claim(lease, &request, deadline, &mut phases)?;
    if first {
        lease.keep_alive(state);
    }
    tracing::info!(lease = %lease_id, node = lease.node(), "lease claimed");
    if !assemble(&mut assembly, &mut listener, state, deadline, &mut phases)? {
        return Err(Error::StartTimeout { after: timeout, missing: assembly.missing() });
    }
    tracing::info!(lease = %lease_id, workers = lease.cores(), "executor ready");

    let ready = assembly.finish();
    let driver = Driver::new(ready.completions, ready.receives);
    let weak = Arc::downgrade(lease.life());
    lease.life().wake_at_end(driver.waker());
    Ok(Started {
        shared: Shared::new(ready.workers, driver, ready.functions, deployment, weak),
        control: ready.control,
        lease_id,
        phases,
    })
}

/// Brings executor and workers together; their manager has said that it started them. False if they
/// are not complete at `deadline`.
fn assemble(
    assembly: &mut Assembly<'_>,
    listener: &mut Listener,
    state: &mut LeaseState,
    deadline: Instant,
    phases: &mut Phases,
) -> Result<bool> {
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

/// A size that was checked to fit.
fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("validated: less than 4 GiB")
}
