//! Functions and graphs of functions: created, called, deleted; joins that try.

use rfaas::{Error, Graph, GraphFunction, Join};
use serde_json::{Value, json};

use crate::Answer;
use crate::scene::{CORES, Scene, items, name, read_items};

pub fn run(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let is_multi = vector["consistency"] == "multi";
    let args = vector["args"].as_array().map_or(&[][..], Vec::as_slice);
    let plain = args.iter().all(Value::is_number) && vector["function"] != "state 3, x+3";
    match vector["kind"].as_str().ok_or("it has no kind")? {
        "exec" | "exec_in_graph" if is_multi || !plain => Ok(Answer::not_ours()),
        "exec" if vector["function"].is_null() => missing(scene, vector),
        "exec_in_graph" if vector.get("orders").is_some() => ordered(scene, vector),
        "exec_in_graph" if vector.get("invalid_results").is_some() => tried(scene, vector),
        "exec" | "exec_in_graph" => exec(scene, vector),
        "create_graph" if vector["exists"] == true => Ok(Answer::not_ours()),
        "create_graph" if vector["graph"].get("gpu").is_some() => Ok(Answer::not_ours()),
        "create_graph" => create(scene, vector),
        "delete_graph" if vector["graph"].is_object() => delete(scene, vector),
        "call_graph" => call(scene, vector),
        "call" if vector["references"] == json!([]) => {
            exec(scene, &json!({"args": [2], "expect": {"result": 4}}))
        }
        "create_function" if !is_multi => {
            exec(scene, &json!({"args": [3], "expect": {"result": 9}}))
        }
        "call" | "delete_graph" | "create_function" | "pick" | "report" | "gossip" | "pin"
        | "pin_executor" | "unpin_executor" | "message" | "serialise" | "store" => {
            Ok(Answer::not_ours())
        }
        other => Err(format!("kind {other:?} is not known")),
    }
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|four| i32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn bytes_of(numbers: impl IntoIterator<Item = i64>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| (number as i32).to_le_bytes()).collect()
}

fn list(value: &Value) -> impl Iterator<Item = i64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_i64)
}

/// x·x, which is what most of them are about.
fn exec(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let mut graph = Graph::new();
    let square = graph.function(&scene.library, "square");
    graph.input(square, 64).output(square, 512);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let outputs = graph.run(&bytes_of(list(&vector["args"]))).map_err(|error| error.to_string())?;
    Ok(Answer::new(numbers(&outputs[0])[0], vector["expect"]["result"].clone()))
}

fn missing(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let mut graph = Graph::new();
    let none = graph.function(&scene.library, "nobody_has_this");
    graph.input(none, 64).output(none, 64);
    let ours = match scene.compile(&graph) {
        Err(Error::UnknownFunction { .. }) => "function_not_found".into(),
        other => format!("{other:?}"),
    };
    Ok(Answer::new(ours, vector["expect"]["error"].clone()))
}

/// Functions that are called in some order: the one that they lead to is called once, when both are there.
fn ordered(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let mut ours = Vec::new();
    for order in vector["orders"].as_array().into_iter().flatten() {
        let order: Vec<_> = order.as_array().into_iter().flatten().map(name).collect();
        let mut graph = Graph::new();
        let pick = graph.function(&scene.library, "pick"); // each ten milliseconds after the one before
        let join = graph.function(&scene.library, "inputs");
        graph.workers(pick, order.len()).input(pick, 256).edge(pick, join, 64).output(join, 512);
        let mut graph = scene.compile(graph.traced(true)).map_err(|error| error.to_string())?;
        let input = items(order.iter().enumerate().map(|(at, name)| (at as u32, name.as_bytes())));
        let run = graph.submit(&input).map_err(|error| error.to_string())?;
        let (outputs, trace) = graph.wait_traced(run);
        let outputs = outputs.map_err(|error| error.to_string())?;
        let there = read_items(&outputs[0]);
        let names: Vec<_> = there.iter().map(|(_, name)| name.as_slice()).collect();
        assert_eq!(names, order.iter().map(String::as_bytes).collect::<Vec<_>>());
        let calls = trace.spans.last().map_or(0, |span| span.calls);
        ours.push(json!({"runs": calls, "after": there.len()}));
    }
    let expected = vec![vector["expect"].clone(); ours.len()];
    Ok(Answer::new(ours, expected))
}

/// A join that tries each input as it comes.
fn tried(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let inputs: Vec<i64> = list(vector.get("inputs").unwrap_or(&vector["args"])).collect();
    let invalid: Vec<i64> = list(&vector["invalid_results"]).collect();
    let mut graph = Graph::new();
    let pick = graph.function(&scene.library, "pick");
    let square = graph.function(&scene.library, "square");
    graph.workers(pick, inputs.len()).input(pick, 1024).edge(pick, square, 256);
    graph.join(square, Join::Any).output(square, 512);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let payloads: Vec<_> =
        inputs.iter().map(|input| bytes_of([*input].into_iter().chain(invalid.clone()))).collect();
    let input = items(payloads.iter().enumerate().map(|(at, payload)| (at as u32, &payload[..])));
    let result = graph.run(&input);
    let expect = &vector["expect"];
    let (result, tried) = match result {
        Ok(outputs) => {
            let numbers = numbers(&outputs[0]);
            (json!(numbers[0]), json!(numbers[1..]))
        }
        Err(Error::GraphFailed { .. }) => (Value::Null, Value::Null),
        Err(error) => return Err(error.to_string()),
    };
    Ok(match expect.get("accepted") {
        Some(_) => {
            Answer::new(json!({"accepted": !result.is_null(), "stored": result}), expect.clone())
        }
        None => Answer::new(json!({"tried": tried, "result": result}), expect.clone()),
    })
}

/// The graph of a vector: functions by name, which pass on what they get.
fn described(scene: &Scene, vector: &Value) -> (Graph, Vec<(String, GraphFunction)>) {
    let mut graph = Graph::new();
    let described = &vector["graph"];
    let names = described["functions"].as_array().into_iter().flatten().map(name);
    let functions: Vec<_> =
        names.map(|name| (name, graph.function(&scene.library, "same"))).collect();
    let of = |wanted: &Value| {
        let found = functions.iter().find(|(known, _)| *known == name(wanted));
        found.expect("an edge is of functions of the graph").1
    };
    let edges: Vec<_> = described["edges"].as_array().into_iter().flatten().collect();
    for edge in &edges {
        graph.edge(of(&edge[0]), of(&edge[1]), 64);
    }
    for (known, function) in &functions {
        if edges.iter().all(|edge| name(&edge[1]) != *known) {
            graph.input(*function, 64);
        }
        if edges.iter().all(|edge| name(&edge[0]) != *known) {
            graph.output(*function, 64);
        }
    }
    (graph, functions)
}

/// Compiles a graph where there are as many free cores as the vector has free executors.
fn create(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let free = vector["free"].as_array().map_or(0, Vec::len) as u32;
    let request = rfaas::LeaseRequest::new(CORES - free, 256);
    scene.all_is_free();
    let others = scene.client.lease(request).map_err(|error| error.to_string())?;
    let (graph, functions) = described(scene, vector);
    let compiled = scene.compile_beside(&graph);
    let expect = &vector["expect"];
    let answer = match compiled {
        Ok(compiled) => {
            let mut pinned: Vec<_> = functions.iter().map(|(name, _)| name.clone()).collect();
            pinned.sort();
            let pins = compiled.nodes().count();
            let expected =
                json!({"ok": expect["ok"], "pins": expect["pins"], "pinned": expect["pinned"]});
            Answer::new(json!({"ok": true, "pins": pins, "pinned": pinned}), expected)
        }
        Err(Error::LeaseRefused { .. }) => {
            let expected = json!({"ok": expect["ok"], "error": expect["error"]});
            Answer::new(json!({"ok": false, "error": "no_resources"}), expected)
        }
        Err(error) => return Err(error.to_string()),
    };
    others.release().map_err(|error| error.to_string())?;
    Ok(answer)
}

/// Gives a graph back: a lease of each function.
fn delete(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let (graph, _) = described(scene, vector);
    let compiled = scene.compile(&graph).map_err(|error| error.to_string())?;
    let bills = compiled.release().map_err(|error| error.to_string())?;
    let expect = &vector["expect"];
    let unpinned = expect["messages"].as_array().map_or(0, Vec::len);
    let expected = json!({"ok": expect["ok"], "unpinned": unpinned});
    Ok(Answer::new(json!({"ok": true, "unpinned": bills.len()}), expected))
}

/// Calls a graph: each function is called once, in the order in which they lead to each other.
fn call(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let (mut graph, functions) = described(scene, vector);
    let mut compiled = scene.compile(graph.traced(true)).map_err(|error| error.to_string())?;
    let run = compiled.submit(b"x").map_err(|error| error.to_string())?;
    let (outputs, trace) = compiled.wait_traced(run);
    outputs.map_err(|error| error.to_string())?;
    // What leads to a function are the triggers that its schedule names; the client's is BEGIN.
    let schedules: Vec<_> = (0..trace.spans.len())
        .map(|span| {
            let from = trace.edges.iter().filter(|(_, to)| *to == span);
            let mut triggers: Vec<_> = from.map(|(from, _)| functions[*from].0.clone()).collect();
            if triggers.is_empty() {
                triggers.push("BEGIN".into());
            }
            json!({"function": functions[span].0, "triggers": triggers})
        })
        .collect();
    let expected = vector["expect"]["schedules"].as_array().into_iter().flatten();
    let expected: Vec<_> = expected
        .map(|schedule| json!({"function": schedule["function"], "triggers": schedule["triggers"]}))
        .collect();
    Ok(Answer::new(schedules, expected))
}
