//! Hints of where calls go, as policies and constraints. The first node is the main one.
//!
//! | source | ours |
//! | --- | --- |
//! | none | `first_fit`, main the first node |
//! | force local | the same, `near` main and `together` |
//! | never alone | the same, `at_least` 2 |
//! | underfull | the same, `leave_free` half of main, rounded up |
//! | cached | the same; again for the same application and size: its `nodes` |

use std::collections::BTreeMap;

use resource_manager::placement::{LeaveFree, Policy, Wish, place};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Answer;
use crate::cluster::{Cluster, Node, gang};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    hint: String,
    #[serde(default)]
    nodes: Vec<Node>,
    main: i64,
    #[serde(default)]
    calls: u32,
    #[serde(default)]
    hints_disabled: bool,
    #[serde(default)]
    sequence: Vec<Step>,
    expect: Option<Expected>,
    // What it is about, and where it is from.
    #[serde(rename = "id")]
    _id: String,
    #[serde(rename = "origin")]
    _origin: String,
    #[serde(rename = "source")]
    _source: Option<Value>,
    #[serde(rename = "why")]
    _why: Option<String>,
    #[serde(rename = "derived_from")]
    _derived_from: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    nodes: Vec<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    application: u64,
    nodes: Vec<Node>,
    calls: u32,
    expect: Vec<i64>,
    #[serde(rename = "why")]
    _why: Option<String>,
}

pub fn run(vector: &Value) -> Result<Answer, String> {
    let vector = Vector::deserialize(vector).map_err(|error| error.to_string())?;
    if vector.hint == "cached" {
        return cached(&vector.sequence);
    }
    let cluster = Cluster::in_order(&vector.nodes, &[]);
    let main = cluster.number(vector.main);
    let none = Wish::default();
    let wish = match &*vector.hint {
        _ if vector.hints_disabled => none,
        "none" => none,
        "force_local" => Wish { near: Some(main), together: true, ..none },
        "never_alone" => Wish { at_least: 2, ..none },
        "underfull" => {
            let cores = vector.nodes[main].slots.div_ceil(2);
            Wish { leave_free: Some(LeaveFree { cores, on: Some(main) }), ..none }
        }
        other => return Err(format!("hint {other:?} is not known")),
    };
    let expected = vector.expect.ok_or("nothing is expected")?.nodes;
    let (brief, ours) = placed(&cluster, vector.calls, &wish);
    let overloads = overloads(&vector.nodes, &expected);
    Ok(Answer { overloads, ..Answer::new(brief, ours, json!(expected)) })
}

fn placed(cluster: &Cluster, calls: u32, wish: &Wish) -> (&'static str, Value) {
    match place(&cluster.places, Policy::FirstFit, gang(calls, wish, &[])) {
        Ok(nodes) => ("placed", json!(cluster.ids(nodes))),
        Err(_) => ("refused", json!("refused")),
    }
}

fn overloads(nodes: &[Node], placed: &[i64]) -> bool {
    let count = |node: &Node| placed.iter().filter(|id| **id == node.id).count();
    nodes.iter().any(|node| count(node) > node.free() as usize)
}

/// A step that differs by design is refused, and the others are as they say.
fn cached(steps: &[Step]) -> Result<Answer, String> {
    let mut known: BTreeMap<(u64, u32), Vec<i64>> = BTreeMap::new();
    let (mut ours, mut expected, mut any) = (Vec::new(), Vec::new(), false);
    for step in steps {
        let cluster = Cluster::in_order(&step.nodes, &[]);
        let nodes = known.get(&(step.application, step.calls));
        let nodes = nodes.map(|ids| cluster.numbers(ids)).unwrap_or_default();
        let (brief, answer) = placed(&cluster, step.calls, &Wish { nodes, ..Wish::default() });
        match overloads(&step.nodes, &step.expect) {
            true if brief != "refused" => return Err(format!("{answer} overloads")),
            true => any = true,
            false if answer != json!(step.expect) => {
                return Err(format!("{answer}, not {:?}", step.expect));
            }
            false => drop(known.insert((step.application, step.calls), step.expect.clone())),
        }
        ours.push(answer);
        expected.push(json!(step.expect));
    }
    let brief = if any { "refused" } else { "placed" };
    Ok(Answer { overloads: any, ..Answer::new(brief, ours, expected) })
}
