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

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdmalib::Listener;
use rfaas_call::caller::{CallLimits, Calls, Driver, Workers};
use rfaas_protocol::Secret;
use rfaas_protocol::allocation::Serves;
use rfaas_protocol::channel::Channel;
use rfaas_protocol::lease::LeaseId;

use crate::assembly::Assembly;
use crate::deployment::{DeploymentSpecification, Phases};
use crate::error::{Error, Exit, Result};
use crate::executor_manager::Polled;
use crate::held_lease::HeldLease;
use crate::lease_core::{Claim, LeaseEnd, LeaseUse};
use crate::request::ExecutorRequest;

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
    let (device, spares) = (lease.device(), lease.spares());
    let mut listener = spares.listener(device)?;
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
        serves: Serves::Calls,
    };
    // Made while the manager starts the executor.
    let assembly = OnceCell::new();
    let make = || Assembly::new(device, spares, (lease.cores, session), specification);
    let meanwhile: &dyn Fn() = &|| {
        let _ = assembly.get_or_init(make);
    };
    let replace: &dyn Fn(&[_], _) -> _ = &|candidates, because| lease.replace(candidates, because);
    let connection: &dyn Fn() -> _ = &|| spares.connection(device);
    let claim = Claim { device, request: &request, deadline, replace, connection, meanwhile };
    let (lease_id, node) = state.start_executor(&claim, &mut phases)?;
    tracing::info!(lease = %lease_id, "lease claimed");
    if let Some(node) = &node {
        lease.claimed(lease_id, node);
    }
    let assembled = assembly.into_inner().unwrap_or_else(make).and_then(|mut assembly| {
        match assemble(&mut assembly, &mut listener, state, deadline, &mut phases)? {
            true => Ok(assembly),
            false => Err(Error::StartTimeout { after: timeout, missing: assembly.missing() }),
        }
    });
    if assembled.is_ok() {
        spares.keep_listener(listener, device); // else whoever dials late is to be refused now
    }
    // Not before: whoever waits gives signs of life, and the thread would only be in the way.
    if node.is_some() {
        lease.keep_alive(state);
    }
    let assembly = assembled?;
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
        // Armed before they are read: what comes later ends the sleep.
        let (exit, heard_by) = poll_manager(state)?;
        assembly.arm()?;
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
        let now = Instant::now();
        if now >= deadline {
            return Ok(false); // before anybody else who dials has a turn
        }
        if !connected && let Some(request) = listener.try_next()? {
            assembly.admit(request)?;
            continue;
        }
        let until = heard_by.map_or(deadline, |at| at.min(deadline));
        let dialling = (!connected).then_some(&*listener); // nobody is waited for any more
        sleep(assembly, dialling, state, until.saturating_duration_since(now))?;
    }
}

/// Sleeps until somebody dials at `listener`, executor or manager say something, or `timeout` is over.
fn sleep(
    assembly: &mut Assembly<'_>,
    listener: Option<&Listener>,
    state: &mut LeaseUse,
    timeout: Duration,
) -> Result<()> {
    let manager = state.manager();
    let descriptors = [listener.map(AsFd::as_fd), assembly.descriptor()].into_iter().flatten();
    let descriptors = descriptors.chain(manager.as_ref().map(|manager| manager.as_fd()));
    sleep_on(descriptors, timeout)?;
    assembly.acknowledge()
}

/// Sleeps until one of `descriptors` is readable, or `timeout` is over.
pub(crate) fn sleep_on<'fd>(
    descriptors: impl Iterator<Item = BorrowedFd<'fd>>,
    timeout: Duration,
) -> Result<()> {
    let mut polled: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Rounded up: who wakes before the deadline would spin until it.
    let timeout = PollTimeout::try_from(timeout + Duration::from_micros(999));
    match poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(rdmalib::Error::Os { call: "poll", source: errno.into() }.into()),
    }
}

/// Returns how the executor ended, if it did, and when to poll again at the latest. Fails if the lease ended.
pub(crate) fn poll_manager(state: &mut LeaseUse) -> Result<(Option<Exit>, Option<Instant>)> {
    let Some(manager) = state.manager() else { return Ok((None, None)) };
    let again_at = match manager.poll_armed() {
        Polled::Until(at) => Some(at),
        Polled::Busy | Polled::Over => None,
    };
    match (manager.over(), manager.not_started()) {
        (Some(cause), _) => Err(cause.into()),
        (None, Some(error)) => Err(error),
        (None, None) => Ok((manager.exit(), again_at)),
    }
}

/// Returns how the executor ended, whose connection has.
pub(crate) fn wait_for_exit(state: &mut LeaseUse) -> Result<Exit> {
    let Some(manager) = state.manager() else { return Ok(Exit::Unknown) };
    manager.wait_for_exit(Instant::now() + EXIT_NEWS)?;
    if let Some(error) = manager.not_started() {
        return Err(error);
    }
    Ok(manager.exit().unwrap_or(Exit::Unknown))
}

/// Returns a size, which was checked to fit, as it is on the wire.
pub(crate) fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("validated: less than 4 GiB")
}
