//! What was granted, checked: numbers of an answer are not believed.
//!
//! Elsewhere: asking, and giving back what is impossible (`resource_manager`).

use std::collections::BTreeSet;
use std::slice;

use rfaas_protocol::Malformed;
use rfaas_protocol::lease::LeaseGranted;

use crate::error::Result;
use crate::request::{Candidate, LeaseRequest};

/// Returns where a lease that was granted may be claimed.
pub(crate) fn candidate(granted: &LeaseGranted) -> Result<Candidate> {
    let LeaseGranted { manager, token, .. } = *granted;
    let node = token.terms.node.get()?.to_owned();
    Ok(Candidate { node, addresses: vec![manager.into()], token })
}

/// Checks that `parts` are leases, and together what was asked for.
pub(crate) fn check(parts: &[LeaseGranted], request: &LeaseRequest) -> Result<(), Malformed> {
    let mut cores = 0;
    for terms in parts.iter().map(|part| &part.token.terms) {
        terms.node.get()?;
        terms.id().ok_or(Malformed::Field("lease"))?;
        let part = u16::try_from(terms.cores.get()).map_err(|_| Malformed::Field("cores"))?;
        if part == 0 || terms.memory.get() == 0 {
            return Err(Malformed::Field("cores or memory"));
        }
        cores += u64::from(part);
    }
    if cores != u64::from(request.cores) {
        return Err(Malformed::Field("sum of cores"));
    }
    Ok(())
}

/// Checks that `parts` are leases, as many as were asked for, and each what was asked for.
pub(crate) fn check_gang(
    parts: &[LeaseGranted],
    leases: u32,
    request: &LeaseRequest,
) -> Result<(), Malformed> {
    if parts.len() != leases as usize {
        return Err(Malformed::Field("number of leases"));
    }
    parts.iter().try_for_each(|part| check(slice::from_ref(part), request))
}

/// Checks that `parts` are leases on nodes of their own, which have so many workers together, each what was asked for.
pub(crate) fn check_grown(
    parts: &[LeaseGranted],
    workers: u32,
    request: &LeaseRequest,
) -> Result<(), Malformed> {
    let (mut nodes, mut all) = (BTreeSet::new(), 0);
    for part in parts {
        let terms = &part.token.terms;
        let (cores, memory) = (terms.cores.get(), terms.memory.get());
        let here = cores / request.cores;
        check(slice::from_ref(part), &LeaseRequest { cores, ..request.clone() })?;
        let whole = (
            u64::from(here) * u64::from(request.cores),
            u64::from(here) * u64::from(request.memory),
        );
        if whole != (cores.into(), memory.into()) {
            return Err(Malformed::Field("cores or memory"));
        }
        if !nodes.insert(terms.node.get()?) {
            return Err(Malformed::Field("node"));
        }
        all += u64::from(here);
    }
    if all != u64::from(workers) {
        return Err(Malformed::Field("sum of cores"));
    }
    Ok(())
}
