//! What other systems do with graphs (`tools/vectors`), asked of ours, with real processes: each vector passes, or a
//! line of `differs.json` says why ours answers otherwise. `RFAAS_VECTORS` names a directory of other vectors.
//!
//! | source | ours |
//! | --- | --- |
//! | executor of a function | worker of a function: a lease |
//! | pin, unpin | a lease that is granted, given back |
//! | trigger of a function | input |
//! | object of a session | payload of a run |
//! | MULTIEXEC | a join of any |
//! | chained call, exec graph | edge, trace |

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod cloudburst;
mod exec_graph;
mod scene;
mod triggers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use testkit::wait::one_at_a_time;

use scene::Scene;

/// Files of vectors that are about graphs.
const FILES: [&str; 3] = ["cloudburst", "exec_graph", "triggers"];

/// What ours answers to a vector, and what the vector expects; `brief`: the former in a word.
struct Answer {
    brief: &'static str,
    ours: Value,
    expected: Value,
}

impl Answer {
    fn new(ours: impl Into<Value>, expected: impl Into<Value>) -> Self {
        Answer { brief: "otherwise", ours: ours.into(), expected: expected.into() }
    }

    /// Ours has nothing of that kind, for the reason that `differs.json` gives.
    fn not_ours() -> Self {
        Answer { brief: "not ours", ours: Value::Null, expected: Value::Bool(true) }
    }
}

/// A line of `differs.json`: which vectors it is about, what ours answers to them, and why.
#[derive(Debug, Deserialize)]
struct Line {
    file: String,
    ours: Option<String>,
    reason: String,
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Lines {
    differs: Vec<Line>,
}

impl Line {
    fn is_about(&self, file: &str, vector: &Value, answer: &Answer) -> bool {
        file == self.file
            && self.ours.as_deref() == Some(answer.brief)
            && self.fields.iter().all(|(field, value)| &vector[field] == value)
    }
}

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let shown = path.display();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{shown}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{shown}: {error}"))
}

#[test]
fn every_vector_of_graphs_is_answered_as_it_says_or_differs_by_design() {
    let _guard = one_at_a_time();
    let directory = std::env::var_os("RFAAS_VECTORS").map_or_else(ours, PathBuf::from);
    let lines: Lines = read(&ours().join("differs.json"));
    assert!(lines.differs.iter().all(|line| !line.reason.is_empty()));
    let scene = Scene::new();
    let mut failed = Vec::new();
    for file in FILES {
        let path = directory.join(file).with_extension("json");
        if !path.exists() {
            println!("{file:12} is not there");
            continue;
        }
        let of_file: Value = read(&path);
        let (mut passed, mut differ) = (0, 0);
        for vector in of_file["vectors"].as_array().expect("a file has vectors") {
            let id = vector["id"].as_str().expect("a vector has an id");
            let answer = match file {
                "cloudburst" => cloudburst::run(&scene, vector),
                "exec_graph" => exec_graph::run(&scene, vector),
                _ => triggers::run(&scene, vector),
            };
            match answer {
                Ok(answer) if answer.ours == answer.expected => passed += 1,
                Ok(answer)
                    if lines.differs.iter().any(|line| line.is_about(file, vector, &answer)) =>
                {
                    differ += 1;
                }
                Ok(Answer { brief, ours, expected }) => {
                    failed.push(format!("{file} {id}: {ours} ({brief}), not {expected}"));
                }
                Err(why) => failed.push(format!("{file} {id}: {why}")),
            }
        }
        println!("{file:12} {passed:4} passed {differ:4} differ by design");
    }
    scene.done();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
