//! Names of policies, and moves of one application among others.
//!
//! | source | ours |
//! | --- | --- |
//! | migration | `place`, then `better` with the nodes as they are then |
//! | migration of applications | `better` (`away` under spot) for each that asks, in turn |
//! | freeze | `away` finds no room; later, the application is placed as a new one |
//! | a decision's nodes | grants of a gang on these `nodes`, by a pool |
//! | the type of a request, the cache, batches, their results | none: `differs.json` says why |

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use resource_manager::placement::{Advice, Policy, Wish, place};
use resource_manager::pool::{Ask, Capacity, LinkId, NodeSpec, Now, Pool, Run};
use rfaas_protocol::constraints::Constraints;
use rfaas_protocol::isolation::Layers;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Answer;
use crate::cluster::{Cluster, Node, gang, held};
use crate::placement::{better_or_away, policy_of};

#[derive(Debug, Deserialize)]
struct Migration {
    policy: String,
    nodes: Vec<Node>,
    main: i64,
    calls: u32,
    grown_from: Option<u32>,
    then: Vec<Then>,
    expect: Value,
}

/// A node as it is when something better is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Then {
    node: i64,
    slots: u32,
    used: u32,
}

#[derive(Debug, Deserialize)]
struct OfApps {
    policy: String,
    nodes: Vec<Node>,
    running: Vec<Vec<i64>>,
    #[serde(default)]
    asks: Vec<usize>,
    #[serde(default)]
    steps: Vec<Step>,
    leaving: Option<i64>,
    migrations: Option<u64>,
    expect: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    asks: Option<usize>,
    status_of: Option<usize>,
    app_ends: Option<usize>,
    #[serde(default)]
    in_flight: bool,
    wait_for: Option<usize>,
    expect: Option<Value>,
    #[serde(rename = "effect")]
    _effect: Option<String>,
}

pub fn run(vector: &Value) -> Result<Answer, String> {
    let kind = vector["kind"].as_str().ok_or("it has no kind")?;
    let wrong = |error: serde_json::Error| error.to_string();
    match kind {
        "policy_name" => Ok(policy_name(vector)),
        "migration" => migration(&Migration::deserialize(vector).map_err(wrong)?),
        "migration_of_apps" => of_apps(&OfApps::deserialize(vector).map_err(wrong)?),
        "freeze" => freeze(&OfApps::deserialize(vector).map_err(wrong)?),
        "unique_nodes" => unique_nodes(&UniqueNodes::deserialize(vector).map_err(wrong)?),
        "type" => Ok(by_design("three calls", vector)),
        "cache" => Ok(by_design("no cache", vector)),
        "from_mapping" | "remove" => Ok(by_design("grants", vector)),
        "batch_valid" | "status_new" | "finished_count" => Ok(by_design("no batch", vector)),
        other => Err(format!("kind {other:?} is not known")),
    }
}

/// Nothing of ours is asked: there is no such thing, in a word.
fn by_design(brief: &'static str, vector: &Value) -> Answer {
    Answer::new(brief, brief, vector["expect"].clone())
}

#[derive(Debug, Deserialize)]
struct UniqueNodes {
    nodes: Vec<i64>,
    expect: Value,
}

/// Two gangs on the same nodes: each is equal to a copy, and another than the other.
fn unique_nodes(vector: &UniqueNodes) -> Result<Answer, String> {
    let now = Now::read();
    let mut pool = Pool::new(now, Duration::from_secs(10));
    let names: Vec<_> = vector.nodes.iter().map(ToString::to_string).collect();
    for (name, link) in names.iter().zip(0..) {
        let capacity = Capacity { cores: 64, memory: 64 };
        let spec = NodeSpec::new(name, "10.0.0.1", 10_005, capacity)?;
        pool.add_node(now, spec, &mut Vec::new()).map_err(|conflict| conflict.to_string())?;
        let address = ([10, 0, 0, 1], 10_005).into();
        let (instance, isolation) = (NonZeroU64::MIN, Layers::NONE);
        let run = Run { instance, address, clock_ahead_ms: 0, isolation };
        let _ = pool.node_connected(now, name, run, LinkId(link), &mut Vec::new()); // named twice
    }
    let constraints = Constraints { nodes: names, ..Constraints::default() };
    let ask = Ask::new(1, 1, Duration::from_secs(60), "app")?;
    let ask = ask.gang(u32::try_from(vector.nodes.len()).unwrap(), constraints)?;
    let [one, other] =
        [(); 2].map(|()| pool.request(now, &ask).map_err(|denied| denied.to_string()));
    let (one, other) = (one?, other?);
    let unique: BTreeSet<i64> = one.iter().map(|grant| grant.node.parse().unwrap()).collect();
    let ours = json!({
        "calls": one.len(), "unique": unique, "single_node": unique.len() == 1,
        "equal_to_copy": one.clone() == one, "equal_with_other_group": one == other,
    });
    Ok(Answer::new("otherwise", ours, vector.expect.clone()))
}

fn policy_name(vector: &Value) -> Answer {
    let name = vector["name"].as_str().unwrap_or_default().replace('-', "_");
    let ours = if name.parse::<Policy>().is_ok() { "known" } else { "unknown" };
    let expected = if vector["expect"] == "known" { "known" } else { "unknown" };
    Answer::new(ours, ours, expected)
}

fn migration(vector: &Migration) -> Result<Answer, String> {
    // At ties, the source begins at main: the last number.
    let mut nodes = vector.nodes.clone();
    nodes.sort_by_key(|node| (node.id == vector.main, std::cmp::Reverse(node.id)));
    let policy = policy_of(&vector.policy)?;
    let wish = Wish::default();
    let mut running: Vec<usize> = Vec::new();
    let first = vector.grown_from.unwrap_or(vector.calls);
    for count in [first, vector.calls - first] {
        let cluster = Cluster::in_order(&nodes, &[]);
        let placed = place(&cluster.places, policy, gang(count, &wish, &held(&running)));
        for number in placed.map_err(|refused| refused.to_string())? {
            nodes[number].used += 1;
            running.push(number);
        }
    }
    for then in &vector.then {
        let node = nodes.iter_mut().find(|node| node.id == then.node).ok_or("no such node")?;
        (node.slots, node.used) = (then.slots, then.used);
    }
    let cluster = Cluster::in_order(&nodes, &[]);
    let advice =
        better_or_away(&cluster, &vector.policy, gang(vector.calls, &wish, &[]), &running)?;
    let migrate = matches!(advice, Advice::Move(_));
    let mut ours = json!({"migrate": migrate, "group_changes": migrate});
    if vector.expect.get("running").is_some() {
        ours["running"] = json!(cluster.ids(running));
    }
    if let Advice::Move(to) = advice {
        let to = cluster.ids(to).into_iter().enumerate();
        ours["moves"] = to.map(|(index, to)| json!({"index": index, "to": to})).collect();
    }
    Ok(Answer::new("otherwise", ours, vector.expect.clone()))
}

/// Applications that run.
struct Apps<'a> {
    vector: &'a OfApps,
    running: Vec<Vec<i64>>,
}

impl Apps<'_> {
    fn cluster(&self) -> Cluster {
        let mut nodes = self.vector.nodes.clone();
        for node in &mut nodes {
            let used = self.running.iter().flatten().filter(|id| **id == node.id).count();
            node.used += u32::try_from(used).unwrap();
            node.leaving = self.vector.leaving == Some(node.id);
        }
        Cluster::by_id(&nodes, &[])
    }

    /// Has an application ask for something better, and move. Returns whether there was room.
    fn ask(&mut self, app: usize, migrations: &mut u64) -> Result<bool, String> {
        let (cluster, wish) = (self.cluster(), Wish::default());
        let running = cluster.numbers(&self.running[app]);
        let gang = gang(u32::try_from(running.len()).unwrap(), &wish, &[]);
        match better_or_away(&cluster, &self.vector.policy, gang, &running)? {
            Advice::Stay => {}
            Advice::NoRoom => return Ok(false),
            Advice::Move(to) => {
                *migrations += 1;
                self.running[app] = cluster.ids(to);
            }
        }
        Ok(true)
    }
}

fn of_apps(vector: &OfApps) -> Result<Answer, String> {
    let mut apps = Apps { vector, running: vector.running.clone() };
    let mut migrations = 0;
    for app in &vector.asks {
        if !apps.ask(*app, &mut migrations)? {
            return Ok(Answer::new("otherwise", "no room", vector.expect.clone()));
        }
    }
    let mut expected = vector.expect.clone().ok_or("nothing is expected")?;
    // Ranks of an application are alike: what counts is how many are on each node.
    let mut ours = json!({"after": apps.running});
    for side in [&mut expected, &mut ours] {
        for app in side["after"].as_array_mut().into_iter().flatten() {
            let ranks = app.as_array_mut().ok_or("ranks are no list")?;
            ranks.sort_by_key(|rank| rank.as_i64());
        }
    }
    if let Some(count) = vector.migrations {
        (ours["migrations"], expected["migrations"]) = (json!(migrations), json!(count));
    }
    Ok(Answer::new("otherwise", ours, expected))
}

/// The list of those that wait is the test's; what runs where is ours.
fn freeze(vector: &OfApps) -> Result<Answer, String> {
    let mut apps = Apps { vector, running: vector.running.clone() };
    let (mut frozen, mut ended) = (Vec::new(), Vec::new());
    let (mut ours, mut expected) = (Vec::new(), Vec::new());
    for step in &vector.steps {
        let answer = match *step {
            Step { asks: Some(app), .. } => match apps.ask(app, &mut 0)? {
                true => json!("room"),
                false => {
                    apps.running[app].clear();
                    frozen.push(app);
                    json!("must_freeze")
                }
            },
            Step { app_ends: Some(app), .. } => {
                apps.running[app].clear();
                ended.push(app);
                continue;
            }
            Step { status_of: Some(app), .. } => {
                let (cluster, wish) = (apps.cluster(), Wish::default());
                let workers = u32::try_from(vector.running[app].len()).unwrap();
                let placed =
                    place(&cluster.places, policy_of(&vector.policy)?, gang(workers, &wish, &[]));
                if let (true, Ok(nodes)) = (frozen.contains(&app), placed) {
                    apps.running[app] = cluster.ids(nodes);
                    frozen.retain(|other| *other != app);
                }
                json!({"finished": ended.contains(&app)})
            }
            Step { in_flight: true, .. } => {
                let running = apps.running.iter().filter(|app| !app.is_empty()).count();
                json!({"running": running, "frozen": frozen})
            }
            Step { wait_for: Some(app), .. } => json!({"after": apps.running[app]}),
            _ => return Err(format!("step {step:?} is not known")),
        };
        ours.push(answer);
        expected.push(step.expect.clone().unwrap_or_default());
    }
    Ok(Answer::new("otherwise", ours, expected))
}
