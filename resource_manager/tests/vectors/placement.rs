//! New, added and moved workers.
//!
//! | source | ours |
//! | --- | --- |
//! | bin-pack, compact | `bin_pack`, `compact` |
//! | spot, new and added | `bin_pack`, whose order is the same |
//! | added | a request of a pool that grows leases (`growing`) |
//! | spot, moved | `away`, under any policy |
//! | one node only | `together` |
//! | nodes of other tenants are no candidates | `has` a label that these lack |

use resource_manager::placement::{Advice, Policy, Wish, away, better, place};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Answer;
use crate::cluster::{Cluster, Node, OWN, gang, held};
use crate::growing::Growth;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    kind: Kind,
    policy: Option<String>,
    nodes: Vec<Node>,
    calls: u32,
    #[serde(default)]
    running: Vec<i64>,
    #[serde(default)]
    other_tenant_nodes: Vec<i64>,
    #[serde(default)]
    one_node_only: bool,
    expect: Value,
    // What it is about, and where it is from.
    #[serde(rename = "id")]
    _id: String,
    #[serde(rename = "origin")]
    _origin: String,
    #[serde(rename = "source")]
    _source: Option<Value>,
    #[serde(rename = "why")]
    _why: Option<String>,
    #[serde(rename = "note")]
    _note: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    New,
    ScaleChange,
    DistChange,
}

pub fn run(policy: Option<&str>, vector: &Value) -> Result<Answer, String> {
    let vector = Vector::deserialize(vector).map_err(|error| error.to_string())?;
    let named = vector.policy.as_deref().or(policy).ok_or("it has no policy")?;
    let cluster = Cluster::by_id(&vector.nodes, &vector.other_tenant_nodes);
    let running = cluster.numbers(&vector.running);
    let has = if vector.other_tenant_nodes.is_empty() { Wish::default().has } else { OWN };
    let wish = Wish { together: vector.one_node_only, has, ..Wish::default() };
    let beside = held(&running);
    let gang = gang(vector.calls, &wish, &beside);
    let placed = |policy| place(&cluster.places, policy, gang).ok().map(|nodes| cluster.ids(nodes));
    let ours = match vector.kind {
        Kind::New => verdict(placed(policy_of(named)?)),
        Kind::ScaleChange => {
            let policy = policy_of(named)?;
            let growth = Growth {
                policy,
                nodes: &vector.nodes,
                workers: vector.calls,
                running: &vector.running,
                others: &vector.other_tenant_nodes,
                together: vector.one_node_only,
            };
            match growth.is_one_request() {
                true => verdict(growth.place()?),
                false => verdict(placed(policy)),
            }
        }
        Kind::DistChange => {
            advice(&cluster, named, better_or_away(&cluster, named, gang, &running)?)
        }
    };
    Ok(Answer::new("otherwise", ours, vector.expect))
}

fn verdict(nodes: Option<Vec<i64>>) -> Value {
    match nodes {
        Some(nodes) => json!({"verdict": "placed", "nodes": nodes}),
        None => json!({"verdict": "not_enough_slots"}),
    }
}

/// The policy of ours that places as theirs does.
pub fn policy_of(named: &str) -> Result<Policy, String> {
    match named {
        "spot" => Ok(Policy::BinPack),
        other => other.parse(),
    }
}

pub fn better_or_away(
    cluster: &Cluster,
    named: &str,
    gang: resource_manager::placement::Gang<'_>,
    running: &[usize],
) -> Result<Advice, String> {
    Ok(match named {
        "spot" => away(&cluster.places, gang, running),
        other => better(&cluster.places, other.parse()?, gang, running),
    })
}

fn advice(cluster: &Cluster, named: &str, advice: Advice) -> Value {
    match advice {
        Advice::Stay => json!({"verdict": "do_not_migrate"}),
        Advice::Move(nodes) => json!({"verdict": "placed", "nodes": cluster.ids(nodes)}),
        Advice::NoRoom if named == "spot" => json!({"verdict": "must_freeze"}),
        Advice::NoRoom => json!({"verdict": "not_enough_slots"}),
    }
}
