//! Added workers, asked of a pool in which the others are leases: one for each worker that runs, of one client, and
//! what else is used on a node is another's.

use std::num::NonZeroU64;
use std::time::Duration;

use resource_manager::placement::Policy;
use resource_manager::pool::{Ask, Capacity, Grant, LinkId, NodeSpec, Now, Pool, Run};
use rfaas_protocol::constraints::{Constraints, MAX_GANG, MAX_GROWN};
use rfaas_protocol::isolation::Layers;

use crate::cluster::Node;

const HOUR: Duration = Duration::from_secs(3600);
/// Nodes without other tenants have it.
const OWN: &str = "own";

/// What is asked for.
pub struct Growth<'a> {
    pub policy: Policy,
    pub nodes: &'a [Node],
    pub workers: u32,
    pub running: &'a [i64],
    pub others: &'a [i64],
    pub together: bool,
}

impl Growth<'_> {
    /// Whether one request can ask for it.
    pub fn is_one_request(&self) -> bool {
        (1..=MAX_GANG).contains(&self.workers)
            && (1..=MAX_GROWN).contains(&self.running.len())
            && self.nodes.iter().all(|node| node.slots > 0)
    }

    /// The node of each new worker; none if there is no room.
    pub fn place(&self) -> Result<Option<Vec<i64>>, String> {
        let now = Now::read();
        let mut pool = Pool::new(now, HOUR);
        pool.set_policy(self.policy);
        let mut nodes = self.nodes.to_vec();
        nodes.sort_by_key(|node| node.id);
        for (node, link) in nodes.iter().zip(0..) {
            let capacity = Capacity { cores: node.slots, memory: 1 << 20 };
            let spec = NodeSpec::new(&node.id.to_string(), "10.0.0.1", 10_005, capacity)?;
            let labels: &[String] =
                if self.others.contains(&node.id) { &[] } else { &[OWN.into()] };
            let added = pool.add_node(now, spec.with_labels(labels)?, &mut Vec::new());
            added.map_err(|conflict| conflict.to_string())?;
            let run = Run {
                instance: NonZeroU64::MIN,
                address: ([10, 0, 0, 1], 10_005).into(),
                clock_ahead_ms: 0,
                isolation: Layers::NONE,
            };
            pool.node_connected(now, &node.id.to_string(), run, LinkId(link), &mut Vec::new())?;
        }
        let mut leases = Vec::new();
        for id in self.running {
            leases.push(lease_on(&mut pool, now, *id, 1, "app")?.terms.lease);
        }
        for node in &nodes {
            let own = self.running.iter().filter(|id| **id == node.id).count();
            let own = u32::try_from(own).map_err(|error| error.to_string())?;
            match node.used.checked_sub(own).ok_or("more runs than is used")? {
                0 => {}
                cores => drop(lease_on(&mut pool, now, node.id, cores, "another")?),
            }
        }
        for node in nodes.iter().filter(|node| node.leaving) {
            pool.set_leaving(now, &node.id.to_string(), Duration::ZERO, &mut Vec::new())
                .ok_or("no such node")?;
        }
        let has = if self.others.is_empty() { Vec::new() } else { vec![OWN.into()] };
        let constraints = Constraints { together: self.together, has, ..Constraints::default() };
        let ask = Ask::new(1, 1, HOUR, "app")?.gang(self.workers, constraints)?.growing(leases)?;
        let Ok(grants) = pool.request(now, &ask) else { return Ok(None) };
        let mut placed = Vec::new();
        for Grant { node, terms, .. } in grants {
            let node: i64 = node.parse().map_err(|_| "a node that is none of the vector's")?;
            placed.extend(std::iter::repeat_n(node, terms.cores as usize));
        }
        Ok(Some(placed))
    }
}

fn lease_on(
    pool: &mut Pool,
    now: Now,
    node: i64,
    cores: u32,
    client: &str,
) -> Result<Grant, String> {
    let constraints = Constraints { nodes: vec![node.to_string()], ..Constraints::default() };
    let ask = Ask::new(cores, 1, HOUR, client)?.gang(1, constraints)?;
    let granted = pool.request(now, &ask).map_err(|denied| denied.to_string())?;
    granted.into_iter().next().ok_or_else(|| "nothing was granted".into())
}
