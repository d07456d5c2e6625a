//! What called what, and where it ran: edges of a graph that is run, as its trace has them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use rfaas::{Error, Graph, Span, Trace};
use serde_json::{Value, json};

use crate::Answer;
use crate::scene::{CORES, Scene, name};

pub fn run(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    match vector["kind"].as_str().ok_or("it has no kind")? {
        "graph" => graph(scene, vector),
        "nodes_used" => Ok(nodes_used(vector)),
        "chained" => chained(scene, vector),
        "call" => call(scene, vector),
        "chain" => chain(scene),
        "threads" => threads(scene, vector),
        "error" => error(scene, vector),
        "details" | "message_counts" => Ok(Answer::not_ours()),
        other => Err(format!("kind {other:?} is not known")),
    }
}

/// Runs a graph with these edges. Returns the names of the functions that took part, with those that each leads to.
fn children(
    scene: &Scene,
    names: &BTreeSet<String>,
    edges: &[(String, String)],
    times: u64,
) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
    let mut graph = Graph::new();
    let names: Vec<_> = names.iter().collect();
    let functions: Vec<_> = names.iter().map(|_| graph.function(&scene.library, "same")).collect();
    let at = |name: &String| names.iter().position(|known| *known == name).unwrap();
    for (number, name) in names.iter().enumerate() {
        if edges.iter().all(|(_, to)| to != *name) {
            graph.input(functions[number], 64);
        }
        if edges.iter().all(|(from, _)| from != *name) {
            graph.output(functions[number], 64);
        }
    }
    for (from, to) in edges {
        graph.edge(functions[at(from)], functions[at(to)], 64);
    }
    let mut graph = scene.compile(graph.traced(true))?;
    let mut found = BTreeMap::new();
    for _ in 0..times {
        let run = graph.submit(b"x")?;
        let (outputs, trace) = graph.wait_traced(run);
        outputs?;
        // Asked for at once after the last result: none may be missing.
        assert!(trace.is_complete(), "{trace:?}");
        found = (0..trace.spans.len())
            .map(|span| {
                let to = trace.children(span).map(|to| names[to].clone());
                (names[span].clone(), to.collect())
            })
            .collect();
    }
    Ok(found)
}

fn edges_of(vector: &Value) -> Vec<(String, String)> {
    let edges = vector["edges"].as_array().into_iter().flatten();
    edges.map(|edge| (name(&edge[0]), name(&edge[1]))).collect()
}

fn graph(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let expect = &vector["expect"];
    if expect.get("missing").is_some() {
        return Ok(Answer::not_ours());
    }
    let names = vector["results"].as_array().into_iter().flatten().map(name).collect();
    let times = vector["repeats"].as_u64().unwrap_or(1);
    let found = children(scene, &names, &edges_of(vector), times);
    let found = found.map_err(|error| error.to_string())?;
    let mut ours = json!({"nodes": found.len(), "children": {}});
    let mut expected = json!({"nodes": expect["nodes"], "children": {}});
    for (from, to) in expect["children"].as_object().into_iter().flatten() {
        ours["children"][from] = json!(found.get(from));
        let to: BTreeSet<_> = to.as_array().into_iter().flatten().map(name).collect();
        expected["children"][from] = json!(to);
    }
    Ok(Answer::new(ours, expected))
}

/// The nodes of spans, which are put together here: a test has no say in where its functions run.
fn nodes_used(vector: &Value) -> Answer {
    let ran_on = vector["ran_on"].as_object().into_iter().flatten();
    let spans = ran_on.map(|(function, node)| Span {
        function: function.clone(),
        worker: 0,
        node: format!("{:>9}", name(node)),
        begin: SystemTime::now(),
        took: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 0,
        calls: 1,
        together: 1,
        failed: false,
        notes: Vec::new(),
    });
    let trace = Trace { spans: spans.collect(), ..Trace::default() };
    let ours: Vec<_> = trace.nodes().iter().map(|node| node.trim().to_owned()).collect();
    let expected: Vec<_> = vector["expect"].as_array().into_iter().flatten().map(name).collect();
    Answer::new(json!(ours), json!(expected))
}

/// What a function leads to, as it is told step by step.
fn chained(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    const PARENT: &str = "of";
    let (mut logged, mut ours, mut expected) = (BTreeSet::new(), Vec::new(), Vec::new());
    for step in vector["steps"].as_array().ok_or("it has no steps")? {
        if let Some(added) = step["log"].get(1).or(step.get("add")) {
            logged.insert(name(added));
        }
        if step.get("reset").is_some() {
            logged.clear();
        }
        let Some(expect) = step.get("expect") else { continue };
        let edges: Vec<_> = logged.iter().map(|to| (PARENT.to_owned(), to.clone())).collect();
        let names = logged.iter().cloned().chain([PARENT.to_owned()]).collect();
        let found = children(scene, &names, &edges, 1).map_err(|error| error.to_string())?;
        match step.get("get") {
            Some(asked) => {
                ours.push(json!(found[PARENT].contains(&name(asked))));
                expected.push(json!(true));
            }
            None => {
                ours.push(json!(found[PARENT]));
                expected.push(expect.clone());
            }
        }
    }
    Ok(Answer::new(ours, expected))
}

fn returned<T>(result: Result<T, Error>) -> Value {
    match result {
        Ok(_) => json!(0),
        Err(Error::GraphFailed { source, .. }) => match *source {
            Error::FunctionFailed { code } => json!(code),
            other => json!(other.to_string()),
        },
        Err(other) => json!(other.to_string()),
    }
}

fn call(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let mut graph = Graph::new();
    let same = graph.function(&scene.library, "same");
    graph.input(same, 64).output(same, 64);
    let mut ours = json!(0);
    for _ in 0..vector["repeats"].as_u64().unwrap_or(1) {
        // Each time with other executors.
        let mut compiled = scene.compile(&graph).map_err(|error| error.to_string())?;
        let outputs = compiled.run(b"call");
        if outputs.as_ref().is_ok_and(|outputs| outputs[..] != [b"call"]) {
            return Err("the output is not that of the call".into());
        }
        if ours == 0 {
            ours = returned(outputs);
        }
    }
    Ok(Answer::new(ours, vector["expect"]["return"].clone()))
}

fn chain(scene: &Scene) -> Result<Answer, String> {
    let mut graph = Graph::new();
    let asks = graph.function(&scene.library, "asks_both");
    let [first, second] = [0, 1].map(|_| graph.function(&scene.library, "same"));
    graph.input(asks, 64).call(asks, first, 64, 64).call(asks, second, 64, 64).output(asks, 64);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let outputs = graph.run(b"ab").map_err(|error| error.to_string())?;
    let ours = json!({"return": 0, "all_outputs_right": outputs[..] == [b"abab"]});
    Ok(Answer::new(ours, json!({"return": 0, "all_outputs_right": true})))
}

/// As many workers as threads, as far as there are cores, of which each gets its own.
fn threads(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let threads = vector["threads"].as_u64().ok_or("it has no threads")? as u32;
    let mut graph = Graph::new();
    let first = graph.function(&scene.library, "same");
    let work = graph.function(&scene.library, "same");
    let last = graph.function(&scene.library, "inputs");
    graph.workers(work, threads.min(CORES - 2) as usize).input(first, 8192);
    graph.each(first, work, 8192).edge(work, last, 8192).output(last, 16384);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let own: Vec<_> = (0..threads).map(|thread| (thread, thread.to_le_bytes())).collect();
    let input = crate::scene::items(own.iter().map(|(key, data)| (*key, &data[..])));
    let mut results = BTreeMap::new();
    for _ in 0..vector["repeats"].as_u64().unwrap_or(1) {
        let outputs = graph.run(&input).map_err(|error| error.to_string())?;
        let lists = crate::scene::read_items(&outputs[0]);
        results = lists.iter().flat_map(|(_, list)| crate::scene::read_items(list)).collect();
    }
    let right = results.iter().filter(|(key, data)| data[..] == key.to_le_bytes()).count();
    let all = right == threads as usize;
    Ok(match &vector["expect"] {
        Value::Object(expect) if expect.contains_key("results") => {
            Answer::new(json!(right), expect["results"].clone())
        }
        // All of them have returned, or one has not.
        _ => Answer::new(json!(all), json!(true)),
    })
}

fn error(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    if vector.get("throws").is_some() {
        return Ok(Answer::not_ours());
    }
    let code = vector["returns"].as_i64().ok_or("it returns nothing")?;
    let mut graph = Graph::new();
    let fails = graph.function(&scene.library, "fails");
    graph.input(fails, 64).output(fails, 64);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let ours = returned(graph.run(&(code as i32).to_le_bytes()));
    Ok(Answer::new(ours, vector["expect"]["return"].clone()))
}
