//! What compiling a graph takes from elsewhere: libraries, leases, and lanes that start.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rfaas_protocol::allocation::RefusedBecause;
use rfaas_protocol::library::{BATCH_PREFIX, Exports, exports};

use super::description::Graph;
use super::lane::{Lane, Plan};
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::grantor::Grantor;
use crate::library::{KnownLibraries, Library};

/// Acquires the leases of all lanes, and starts their executors.
pub(super) fn start_lanes(plan: &Arc<Plan>) -> Result<Vec<Lane>> {
    let asked = plan.graph.lanes;
    let mut leased = Vec::new();
    while leased.len() < asked.most {
        match plan.lease_all(leased.len(), Duration::ZERO) {
            Ok(leases) => leased.push(leases),
            Err(error) if is_for_room(&error) && leased.len() >= asked.least => break,
            Err(error) => return Err(error),
        }
    }
    // Without a resource manager nobody keeps their room until they are claimed: one lane would take that of another.
    let granted = leased.iter().flatten().all(|lease| lease.id().is_some());
    let mut leased = leased.into_iter().enumerate();
    let mut starting: VecDeque<_> = leased
        .by_ref()
        .take(if granted { usize::MAX } else { 1 })
        .map(|(number, its)| Lane::new(plan, number, its))
        .collect();
    let (mut lanes, mut no_room) = (Vec::new(), None);
    while let Some(mut lane) = starting.pop_front() {
        match lane.finish_start() {
            Ok(()) => lanes.push(lane),
            Err(error) if is_for_room(&error) => no_room = no_room.or(Some(error)),
            Err(error) => {
                plan.dropped.store(true, Ordering::Relaxed); // for the others
                return Err(error);
            }
        }
        if starting.is_empty() {
            starting.extend(leased.next().map(|(number, its)| Lane::new(plan, number, its)));
        }
    }
    match no_room {
        Some(error) if lanes.len() < asked.least => Err(error),
        _ => Ok(lanes),
    }
}

/// Returns whether something failed for want of room.
fn is_for_room(error: &Error) -> bool {
    match error {
        Error::GraphNotStarted { source, .. } => is_for_room(source),
        Error::AllocationRefused { because, .. } => *because == RefusedBecause::NoCapacity,
        Error::LeaseRefused { .. } | Error::ConstraintUnmet { .. } => true,
        _ => false,
    }
}

/// Returns the library of each worker.
pub(super) fn libraries(
    grantor: &Grantor,
    graph: &Graph,
    layout: &Layout,
) -> Result<Vec<Arc<Library>>> {
    let by_function = read_libraries(&grantor.libraries, graph)?;
    Ok(layout.workers.iter().map(|worker| by_function[worker.function()].clone()).collect())
}

/// Returns the library of each function, which has it.
pub(super) fn read_libraries(known: &KnownLibraries, graph: &Graph) -> Result<Vec<Arc<Library>>> {
    let mut read: Vec<(&Path, Arc<Library>, Exports)> = Vec::new();
    let libraries = graph.functions.iter().map(|function| {
        let path = function.library.as_path();
        let at = match read.iter().position(|(at, ..)| *at == path) {
            Some(at) => at,
            None => {
                let library = known.read(path)?;
                let unusable = |source| Error::Library { path: path.to_owned(), source };
                let exports = exports(&library.code).map_err(unusable)?;
                read.push((path, library, exports));
                read.len() - 1
            }
        };
        let (_, library, exports) = &read[at];
        let has = if function.batch.is_some() { &exports.batches } else { &exports.functions };
        if has.contains(&function.name) {
            return Ok(library.clone());
        }
        let prefix = if function.batch.is_some() { BATCH_PREFIX } else { "" };
        let batches = exports.batches.iter().map(|name| format!("{BATCH_PREFIX}{name}"));
        Err(Error::UnknownFunction {
            name: format!("{prefix}{}", function.name),
            available: exports.functions.iter().cloned().chain(batches).collect(),
        })
    });
    libraries.collect()
}
