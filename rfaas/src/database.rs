//! Leases without a resource manager: what a list of executor managers may be asked for. Nothing is asked
//! here, so it may turn out to be taken when a lease is deployed.

use std::cmp::Reverse;
use std::slice;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rfaas_config::ExecutorEntry;
use rfaas_protocol::lease::{ClientName, LeaseTerms, NodeName, Token};

use crate::error::{Error, Result};
use crate::request::Candidate;
use crate::request::LeaseRequest;

/// Returns those of `entries` that have what `request` asks for, in order.
pub(crate) fn lease(
    entries: &[ExecutorEntry],
    request: &LeaseRequest,
    client: ClientName,
) -> Result<Vec<Candidate>> {
    let expires_at_ms = end_ms(request.timeout).into();
    let fits =
        |entry: &&ExecutorEntry| entry.cores >= request.cores && entry.memory >= request.memory;
    let candidate = |entry: &ExecutorEntry| {
        let node = NodeName::new(&entry.node)
            .ok_or(Error::Invalid("the name of a node in the database is too long"))?;
        let terms = LeaseTerms {
            lease: 0.into(),
            cores: request.cores.into(),
            memory: request.memory.into(),
            expires_at_ms,
            instance: 0.into(),
            node,
            client,
        };
        let addresses = entry.socket_addrs()?;
        Ok(Candidate { node: entry.node.clone(), addresses, token: Token::unsigned(terms) })
    };
    let candidates: Vec<Candidate> =
        entries.iter().filter(fits).map(candidate).collect::<Result<_>>()?;
    if candidates.is_empty() {
        let (cores, memory) = (request.cores, request.memory);
        return Err(Error::LeaseRefused {
            reason: format!("no node of the executors database has {cores} cores and {memory} MB"),
        });
    }
    Ok(candidates)
}

/// Returns what `request` asks for, from one of `entries` if one has it, else divided: for each
/// part, who may be asked for it.
pub(crate) fn divide(
    entries: &[ExecutorEntry],
    request: &LeaseRequest,
    client: ClientName,
) -> Result<Vec<Vec<Candidate>>> {
    match lease(entries, request, client) {
        Err(Error::LeaseRefused { .. }) if request.max_nodes > 1 => {}
        whole => return Ok(vec![whole?]),
    }
    let parts = shares(entries, request).ok_or_else(|| Error::LeaseRefused {
        reason: format!(
            "no {} nodes of the executors database have {} cores and {} MB together",
            request.max_nodes, request.cores, request.memory
        ),
    })?;
    let part = |(entry, cores)| {
        let request = LeaseRequest { cores, memory: request.memory_of(cores), ..request.clone() };
        lease(slice::from_ref(entry), &request, client)
    };
    parts.into_iter().map(part).collect()
}

/// Divides the cores among as few of `entries` as possible, each of which has the memory that goes with its
/// share. `None` if they do not suffice.
fn shares<'a>(
    entries: &'a [ExecutorEntry],
    request: &LeaseRequest,
) -> Option<Vec<(&'a ExecutorEntry, u32)>> {
    let mut largest: Vec<_> = entries
        .iter()
        .map(|entry| (entry, entry.cores.min(request.cores_with(entry.memory))))
        .collect();
    largest.sort_by_key(|(_, cores)| Reverse(*cores)); // stable: of equal ones the first
    let mut left = request.cores;
    let mut parts = Vec::new();
    for (entry, cores) in largest.into_iter().take(request.max_nodes as usize) {
        let cores = cores.min(left);
        if cores > 0 {
            parts.push((entry, cores));
            left -= cores;
        }
    }
    (left == 0).then_some(parts)
}

/// Returns the claim of `token`, until `timeout` from now if it ends before.
pub(crate) fn renew(token: Token, timeout: Duration) -> Token {
    let end = end_ms(timeout).max(token.terms.expires_at_ms.get());
    Token::unsigned(LeaseTerms { expires_at_ms: end.into(), ..token.terms })
}

/// `timeout` from now, in milliseconds since the Unix epoch.
fn end_ms(timeout: Duration) -> u64 {
    SystemTime::now()
        .checked_add(timeout)
        .and_then(|end| u64::try_from(end.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok())
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes with these cores and memory.
    fn nodes(sizes: &[(u32, u32)]) -> Vec<ExecutorEntry> {
        let entry = |(index, &(cores, memory)): (usize, &(u32, u32))| ExecutorEntry {
            node: index.to_string(),
            address: "127.0.0.1".into(),
            port: 1,
            cores,
            memory,
            labels: Vec::new(),
        };
        sizes.iter().enumerate().map(entry).collect()
    }

    /// Node, cores and memory of each part.
    fn divided(sizes: &[(u32, u32)], request: &LeaseRequest) -> Option<Vec<(String, u32, u32)>> {
        let client = ClientName::new("alice")?;
        let parts = divide(&nodes(sizes), request, client).ok()?;
        let part = |part: Vec<Candidate>| {
            let terms = part[0].token.terms;
            (part[0].node.clone(), terms.cores.get(), terms.memory.get())
        };
        Some(parts.into_iter().map(part).collect())
    }

    #[test]
    fn one_node_is_preferred_and_else_the_largest_are_taken() {
        let sizes = [(1, 100), (8, 100), (2, 100), (6, 100)];
        let request = LeaseRequest::new(8, 80).max_nodes(2);
        assert_eq!(divided(&sizes, &request), Some(vec![("1".into(), 8, 80)]));
        let request = LeaseRequest::new(11, 33).max_nodes(2);
        let parts = vec![("1".into(), 8, 24), ("3".into(), 3, 9)];
        assert_eq!(divided(&sizes, &request), Some(parts));
        assert_eq!(divided(&sizes, &LeaseRequest::new(15, 15).max_nodes(2)), None);
        assert!(divided(&sizes, &LeaseRequest::new(17, 17).max_nodes(4)).is_some());
        assert_eq!(divided(&sizes, &LeaseRequest::new(18, 18).max_nodes(9)), None);
        assert_eq!(divided(&sizes, &LeaseRequest::new(9, 9)), None);
    }

    #[test]
    fn a_node_gets_no_more_cores_than_it_has_memory_for() {
        let request = LeaseRequest::new(4, 103).max_nodes(3);
        let parts = vec![("1".into(), 3, 78), ("0".into(), 1, 26)];
        assert_eq!(divided(&[(4, 30), (4, 78)], &request), Some(parts));
        assert_eq!(divided(&[(4, 25), (4, 78)], &request), None);
        assert_eq!(divided(&[(4, 0), (4, 77)], &request), None);
    }
}
