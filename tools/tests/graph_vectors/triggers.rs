//! When objects that arrive call a function: objects are payloads of the inputs of a stage, a session is a row of runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rfaas::Graph;
use rfaas_call::edge::{Input, InputFrom, JoinPlan, Joined, Joins, Stage, StageInput};
use rfaas_protocol::edge::{InputKind, Join, Takes};
use serde_json::{Value, json};

use crate::Answer;
use crate::scene::{Scene, items, name, read_items};

pub fn run(scene: &Scene, vector: &Value) -> Result<Answer, String> {
    let objects: Vec<_> = vector["objects"].as_array().ok_or("it has no objects")?.iter().collect();
    let number = |field: &str| vector[field].as_u64().unwrap_or(0) as usize;
    let strings = |field: &str| -> Vec<String> {
        vector[field].as_array().into_iter().flatten().map(name).collect()
    };
    let all = |_: &Value| Some(0);
    let fired = match vector["kind"].as_str().ok_or("it has no kind")? {
        "immediate" => fire(&objects, 1, (Join::All, 0), By::Key, all),
        "by_name" => {
            let wanted = name(&vector["name"]);
            fire(&objects, 1, (Join::All, 0), By::Key, |key| (name(key) == wanted).then_some(0))
        }
        "by_count" => fire(&objects, number("count"), (Join::All, 0), By::Order, all),
        "by_set" => {
            let set = strings("set");
            let of_set = |key: &Value| set.iter().position(|known| *known == name(key));
            fire(&objects, set.len(), (Join::All, 0), By::Key, of_set)
        }
        "k_of_n" => {
            let wanted = number("k") as u32;
            fire(&objects, number("n"), (Join::Of, wanted), By::Order, all)
        }
        "by_time" => {
            let fired = by_time(&objects, window(vector)?);
            return Ok(Answer { brief: "closes by itself", ..answer(&fired, vector) });
        }
        "by_group" => by_group(scene, &objects, &strings("control"))?,
        "rerun" => return Ok(Answer::not_ours()),
        other => return Err(format!("kind {other:?} is not known")),
    };
    Ok(answer(&fired, vector))
}

fn answer(fired: &[Value], vector: &Value) -> Answer {
    let expected = vector["expect"].as_array().into_iter().flatten();
    let expected: Vec<_> = expected.map(sorted).collect();
    Answer::new(fired.iter().map(sorted).collect::<Vec<_>>(), expected)
}

/// How long a window is, in milliseconds: the only number that a vector of them has.
fn window(vector: &Value) -> Result<Duration, String> {
    let fields = vector.as_object().into_iter().flatten();
    let numbers: Vec<_> = fields.filter_map(|(_, value)| value.as_u64()).collect();
    match numbers[..] {
        [ms] => Ok(Duration::from_millis(ms)),
        _ => Err("it does not say how long a window is".into()),
    }
}

/// A call, with its objects in the order of their keys: inputs are told apart by number, not by time.
fn sorted(call: &Value) -> Value {
    let mut objects: Vec<_> = call[1].as_array().into_iter().flatten().cloned().collect();
    objects.sort_by_key(Value::to_string);
    json!([call[0], objects])
}

/// Which input an object is.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// What its key says.
    Key,
    /// The next one, run after run.
    Order,
}

fn stage(inputs: usize, join: JoinPlan) -> Stage {
    let input = |number| StageInput { from: InputFrom::Edge(number), kind: InputKind::Whole };
    Stage {
        function: (0, 0),
        member: (0, 1),
        join,
        takes: Takes::Whole,
        batch: None,
        inputs: (0..inputs).map(input).collect(),
        outputs: Vec::new(),
    }
}

/// Has objects arrive at a stage with so many inputs. Returns its calls: after which object, with which.
fn fire(
    objects: &[&Value],
    inputs: usize,
    (kind, wanted): (Join, u32),
    by: By,
    input_of: impl Fn(&Value) -> Option<usize>,
) -> Vec<Value> {
    const SLOTS: u16 = 64;
    let mut joins = Joins::new(&stage(inputs, JoinPlan { kind, wanted, within: None }), SLOTS);
    // Of each session: its slot, the run that is filled, and what has come in that.
    let mut sessions: BTreeMap<String, (u16, u8, Vec<Value>)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        let Some(number) = input_of(&object[1]) else { continue };
        let next = sessions.len() as u16;
        let entry =
            sessions.entry(name(&object[0])).or_insert((next, 1, vec![Value::Null; inputs]));
        let (slot, run, there) = entry;
        let number = match by {
            By::Key => number,
            By::Order => there.iter().position(Value::is_null).unwrap(),
        };
        let joined =
            joins.arrived((*slot, *run), number, Input::Value(number as u32), Instant::now);
        there[number] = (*object).clone();
        if joined.unwrap() == Joined::Call {
            let given = (0..inputs).filter(|number| joins.bytes(*slot, *number).is_some());
            let given: Vec<_> = given.map(|number| there[number].clone()).collect();
            calls.push(json!([at, given]));
            joins.settle(*slot);
        }
        if joins.is_over(*slot) {
            *run += 1;
            there.fill(Value::Null);
        }
    }
    calls
}

/// Has objects arrive, at their times, at a stage that is called so long after the first of them, with those that are
/// there then (`Graph::within`). A window is of one session. No arrival closes it, so none stands in a call.
fn by_time(objects: &[&Value], window: Duration) -> Vec<Value> {
    // One more than can come: it is the time that closes a window.
    let join = JoinPlan { kind: Join::All, wanted: 0, within: Some(window) };
    let mut joins = Joins::new(&stage(objects.len() + 1, join), objects.len() as u16);
    let begin = Instant::now();
    // The window of each session that is open; and the objects of all windows, by slot.
    let mut open: BTreeMap<String, usize> = BTreeMap::new();
    let mut windows: Vec<Vec<Value>> = Vec::new();
    let mut calls = Vec::new();
    let end = [begin + Duration::from_secs(u32::MAX.into())];
    let times = objects.iter().map(|object| object[2].as_u64().unwrap_or(0));
    let times = times.map(|ms| begin + Duration::from_millis(ms)).chain(end);
    for (at, object) in times.zip(objects.iter().map(Some).chain([None])) {
        while let (Some((slot, ..)), _) = joins.due(at) {
            joins.settle(slot);
            open.retain(|_, window| *window != usize::from(slot));
            calls.push(json!([Value::Null, windows[usize::from(slot)]]));
        }
        let Some(object) = object else { break };
        let slot = *open.entry(name(&object[0])).or_insert(windows.len());
        if slot == windows.len() {
            windows.push(Vec::new());
        }
        let number = windows[slot].len();
        joins.arrived((slot as u16, 1), number, Input::Value(1), || at).unwrap();
        windows[slot].push(json!([object[0], object[1]]));
    }
    calls
}

#[test]
fn a_window_of_a_session_closes_by_itself_at_its_time() {
    let objects = json!([[1, "a", 0], [2, "b", 5], [1, "c", 9], [1, "d", 10], [1, "e", 40]]);
    let objects: Vec<_> = objects.as_array().unwrap().iter().collect();
    let calls = by_time(&objects, Duration::from_millis(10));
    let expected = json!([
        [null, [[1, "a"], [1, "c"]]],
        [null, [[2, "b"]]],
        [null, [[1, "d"]]],
        [null, [[1, "e"]]]
    ]);
    assert_eq!(Value::Array(calls), expected);
    assert_eq!(window(&json!({"id": "t", "window_ms": 7})), Ok(Duration::from_millis(7)));
    assert!(window(&json!({"id": "t"})).is_err() && window(&json!({"a": 1, "b": 2})).is_err());
}

/// Objects go, by the number of their group, from as many workers as there are control objects to one that is called
/// for each group when all of them have sent: a worker has those that came before its control object.
fn by_group(scene: &Scene, objects: &[&Value], control: &[String]) -> Result<Vec<Value>, String> {
    let mut graph = Graph::new();
    let pick = graph.function(&scene.library, "pick");
    let of_key = graph.function(&scene.library, "of_key");
    graph.workers(pick, control.len()).input(pick, 4096).keyed(pick, of_key, 4096);
    graph.output(of_key, 4096);
    let mut graph = scene.compile(&graph).map_err(|error| error.to_string())?;
    let group = |key: &str| -> Option<u32> {
        key.split_once(':')?.0.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()
    };
    let mut calls = Vec::new();
    let mut lists: Vec<Vec<u8>> = Vec::new();
    let mut list = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        let (session, key) = (&object[0], name(&object[1]));
        if !control.contains(&key) {
            let number = group(&key).ok_or("an object of no group")?;
            list.extend(items([(number, key.as_bytes())]));
            continue;
        }
        lists.push(std::mem::take(&mut list));
        if lists.len() < control.len() {
            continue;
        }
        let of_workers = lists.iter().enumerate().map(|(worker, list)| (worker as u32, &list[..]));
        let input = items(of_workers);
        lists.clear();
        let outputs = graph.run(&input).map_err(|error| error.to_string())?;
        for (_, of_group) in read_items(&outputs[0]) {
            let text = String::from_utf8_lossy(&of_group).into_owned();
            let objects = text.split_whitespace().map(|key| json!([session, key]));
            calls.push(json!([at, objects.collect::<Vec<_>>()]));
        }
    }
    Ok(calls)
}
