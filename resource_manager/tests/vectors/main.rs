//! What other systems decide (`tools/vectors`), asked of ours: each vector passes, or a line of `differs.json`
//! says why ours answers otherwise. `RFAAS_VECTORS` names a directory of other vectors.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod cluster;
mod decisions;
mod growing;
mod hints;
mod house;
mod placement;
mod planner;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// What ours answers to a vector, and what the vector expects; `brief`: the former in a word.
struct Answer {
    brief: &'static str,
    ours: Value,
    expected: Value,
    overloads: bool,
}

impl Answer {
    fn new(brief: &'static str, ours: impl Into<Value>, expected: impl Into<Value>) -> Self {
        Answer { brief, ours: ours.into(), expected: expected.into(), overloads: false }
    }
}

/// A line of `differs.json`: which vectors it is about, what ours answers to them, and why.
#[derive(Debug, Deserialize)]
struct Line {
    file: String,
    ours: Option<String>,
    #[serde(default)]
    overloads: bool,
    reason: String,
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    differs: Vec<Line>,
    /// What another test answers.
    elsewhere: Vec<Line>,
}

impl Line {
    fn is_about(&self, file: &str, vector: &Value) -> bool {
        let named = file == self.file || file.split('_').next() == Some(&*self.file);
        named && self.fields.iter().all(|(field, value)| &vector[field] == value)
    }
}

fn run(file: &str, of_file: &Value, vector: &Value) -> Result<Answer, String> {
    match file {
        "placement_hints" => hints::run(vector),
        "decisions" => decisions::run(vector),
        "planner_http" => planner::run(vector),
        _ if file.starts_with("placement_") => placement::run(of_file["policy"].as_str(), vector),
        _ => Err("the kind of file is not known".into()),
    }
}

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/vectors")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let shown = path.display();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{shown}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{shown}: {error}"))
}

#[test]
fn every_vector_is_answered_as_it_says_or_differs_by_design() {
    let directory = std::env::var_os("RFAAS_VECTORS").map_or_else(ours, PathBuf::from);
    let lines: Lines = read(&ours().join("differs.json"));
    let entries = std::fs::read_dir(&directory);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.retain(|path| path.file_name().is_some_and(|name| name != "differs.json"));
    files.sort();
    assert!(!files.is_empty(), "{} has no vectors", directory.display());
    let (mut failed, mut sums) = (Vec::new(), [0; 3]);
    for path in files {
        let file = path.file_stem().unwrap().to_str().unwrap();
        let of_file: Value = read(&path);
        let vectors = of_file["vectors"].as_array().expect("a file has vectors");
        let mut counts = [0; 3];
        for vector in vectors {
            let id = vector["id"].as_str().expect("a vector has an id");
            let differs = |answer: &Answer| {
                lines.differs.iter().any(|line| {
                    line.is_about(file, vector)
                        && (!line.overloads || answer.overloads)
                        && line.ours.as_deref() == Some(answer.brief)
                })
            };
            let elsewhere = lines.elsewhere.iter().any(|line| line.is_about(file, vector));
            let outcome = if elsewhere { Ok(None) } else { run(file, &of_file, vector).map(Some) };
            match outcome {
                Ok(None) => counts[2] += 1,
                Ok(Some(answer)) if answer.ours == answer.expected => counts[0] += 1,
                Ok(Some(answer)) if differs(&answer) => counts[1] += 1,
                Ok(Some(Answer { brief, ours, expected, .. })) => {
                    failed.push(format!("{file} {id}: {ours} ({brief}), not {expected}"));
                }
                Err(why) => failed.push(format!("{file} {id}: {why}")),
            }
        }
        let [passed, differs, elsewhere] = counts;
        println!(
            "{file:20} {passed:4} passed {differs:4} differ by design {elsewhere:4} elsewhere"
        );
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    println!(
        "{:20} {:4} passed {:4} differ by design {:4} elsewhere",
        "all", sums[0], sums[1], sums[2]
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_line_of_what_differs_has_a_reason() {
    let lines: Lines = read(&ours().join("differs.json"));
    for line in lines.differs.iter().chain(&lines.elsewhere) {
        assert!(!line.reason.is_empty(), "{line:?}");
    }
    assert!(lines.differs.iter().all(|line| line.ours.is_some()));
}
