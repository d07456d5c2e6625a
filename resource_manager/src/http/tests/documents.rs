//! What programs read about the interface: metrics and its description.

use super::*;

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    world.call("POST", "/leases", r#"{"cores":1,"memory":12}"#);
    world.call("POST", "/leases", r#"{"cores":1,"memory":12}"#);
    let (status, text) = world.text("GET", "/metrics", "");
    assert_eq!(status, 200);
    for line in [
        r#"rfaas_nodes{state="ready"} 1"#,
        r#"rfaas_nodes{state="lost"} 0"#,
        r#"rfaas_leases{state="granted"} 1"#,
        "rfaas_leases_granted_total 1",
        "rfaas_leases_denied_total 1",
        r#"rfaas_leases_ended_total{reason="expired"} 0"#,
        "rfaas_cores 1",
        "rfaas_cores_free 0",
        "rfaas_memory_megabytes 512",
        "rfaas_memory_free_megabytes 500",
        "rfaas_silent_nodes_total 0",
        r#"rfaas_nodes_isolated{layer="seccomp"} 1"#,
        r#"rfaas_nodes_isolated{layer="view"} 0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(text.contains(&format!("# TYPE {} ", name.split('{').next().unwrap())), "{line}");
        value.parse::<u64>().unwrap();
    }
}

#[test]
fn every_path_that_openapi_json_describes_is_there_and_no_other() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let (_, document) = world.call("GET", "/openapi.json", "");
    let paths = document["paths"].as_object().unwrap();
    let mut count = 0;
    for (path, methods) in paths {
        let (_, lease) =
            world.call("POST", "/leases", r#"{"cores":1,"memory":1,"timeout_ms":200}"#);
        let path = path.replace("{name}", "a").replace("{id}", &lease["id"].to_string());
        for method in ["get", "post", "put", "patch", "delete"] {
            let (status, text) = world.text(&method.to_uppercase(), &path, "");
            let described = methods.get(method).is_some();
            assert_eq!(status == 405, !described, "{method} {path}: {status} {text}");
            assert_ne!(status, 404, "{method} {path}");
            if described {
                let answers = methods[method]["responses"].as_object().unwrap();
                assert!(answers.contains_key(&status.to_string()), "{method} {path}: {status}");
                if let Ok(answer) = serde_json::from_str(&text) {
                    check_answer(&document, &methods[method], status, &answer);
                }
                count += 1;
            }
        }
        if lease["id"].is_u64() {
            world.call("DELETE", &format!("/leases/{}", lease["id"]), "");
        }
    }
    assert_eq!(count, 18, "routes of `router`");
}

#[test]
fn every_reference_in_openapi_json_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_str(rfaas_api::OPENAPI).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// Fails unless `answer` is one that the description of a route's `method` allows.
fn check_answer(document: &Value, method: &Value, status: u16, answer: &Value) {
    let response = resolved(document, &method["responses"][status.to_string()]);
    let schema = &response["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{method} does not describe {status}");
    if let Err(why) = check(document, schema, answer) {
        panic!("{status} of {}: {why}: {answer}", method["operationId"]);
    }
}

/// What a reference leads to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// Whether `value` has the shape of `schema`: all fields that it must have, no others, and their types.
fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolved(document, schema);
    if let Some(any) = schema.get("oneOf").and_then(Value::as_array) {
        let fits = any.iter().any(|schema| check(document, schema, value).is_ok());
        return if fits { Ok(()) } else { Err("none of oneOf".into()) };
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        return Err(format!("{value} is none of {values:?}"));
    }
    let fits = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => {
            let bounds = ["minimum", "maximum"].map(|bound| schema.get(bound)?.as_f64());
            let number = value.as_f64();
            (value.is_u64() || value.is_i64())
                && bounds[0].is_none_or(|least| number >= Some(least))
                && bounds[1].is_none_or(|most| number <= Some(most))
        }
        Some("array") => {
            let items = value.as_array().ok_or("not an array")?;
            return items.iter().try_for_each(|item| check(document, &schema["items"], item));
        }
        Some("object") => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
                return if value.is_object() { Ok(()) } else { Err("not an object".into()) };
            };
            let fields = value.as_object().ok_or("not an object")?;
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            if let Some(missing) =
                required.iter().find(|name| !fields.contains_key(name.as_str().unwrap()))
            {
                return Err(format!("{missing} is missing"));
            }
            return fields.iter().try_for_each(|(name, value)| {
                let schema = properties.get(name).ok_or(format!("{name} is not described"))?;
                check(document, schema, value).map_err(|why| format!("{name}: {why}"))
            });
        }
        other => return Err(format!("a schema of type {other:?}")),
    };
    if fits { Ok(()) } else { Err(format!("{value} is not {schema}")) }
}

#[test]
fn answers_have_the_shape_that_openapi_json_describes() {
    let world = World::new();
    let (_, document) = world.call("GET", "/openapi.json", "");
    let call = |method: &str, path: &str, route: &str, body: &str, expected: u16| {
        let (status, answer) = world.call(method, path, body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
        let described = &document["paths"][route][method.to_lowercase()];
        check_answer(&document, described, status, &answer);
        answer
    };
    call("POST", "/add?node=a", "/add", NODE, 200);
    call("POST", "/add?node=a", "/add", "{}", 400);
    world.connect("a");
    let node = call("GET", "/nodes/a", "/nodes/{name}", "", 200);
    assert!(node["clock_ahead_s"].is_i64(), "{node}");
    assert_eq!(node["isolation"], json!(["user", "seccomp"]));
    call("GET", "/nodes", "/nodes", "", 200);
    call("GET", "/policy", "/policy", "", 200);
    call("PUT", "/policy", "/policy", r#"{"placement":"spread"}"#, 200);
    call("PUT", "/policy", "/policy", r#"{"placement":"best"}"#, 400);
    let leaving = r#"{"in_ms":86400000}"#;
    let node = call("POST", "/nodes/a/leaving", "/nodes/{name}/leaving", leaving, 200);
    assert!(node["leaves_at"].is_string(), "{node}");
    call("POST", "/nodes/a/leaving", "/nodes/{name}/leaving", "{}", 400);
    call("POST", "/nodes/b/leaving", "/nodes/{name}/leaving", leaving, 404);
    call("GET", "/nodes/b", "/nodes/{name}", "", 404);
    let ask = r#"{"cores":1,"memory":1,"timeout_ms":60000,"max_nodes":2,"client":"c"}"#;
    let grant = call("POST", "/leases", "/leases", ask, 201);
    assert!(grant["parts"].is_array(), "{grant}");
    call("POST", "/leases", "/leases", ask, 409);
    call("GET", "/leases", "/leases", "", 200);
    let (id, token) = (&grant["id"], &grant["token"]);
    let lease = format!("/leases/{id}");
    call("GET", &lease, "/leases/{id}", "", 200);
    call("GET", &format!("{lease}/better"), "/leases/{id}/better", "", 200);
    call("GET", "/leases/1/better", "/leases/{id}/better", "", 404);
    world.note_worker(id.as_u64().unwrap(), 7);
    let graphs = call("GET", "/graphs", "/graphs", "", 200);
    assert_eq!(graphs[0]["workers"][0]["functions"], json!(["split", "count"]));
    call("GET", "/graphs?id=7", "/graphs", "", 400);
    let body = json!({ "token": token }).to_string();
    call("POST", &format!("{lease}/renew"), "/leases/{id}/renew", &body, 200);
    call("POST", "/leases/1/renew", "/leases/{id}/renew", &body, 403);
    call("DELETE", &lease, "/leases/{id}", "", 200);
    call("GET", &lease, "/leases/{id}", "", 404);
    let bills = call("GET", "/billing", "/billing", "", 200);
    let bill: rfaas_api::Bill = serde_json::from_value(bills[0].clone()).unwrap();
    assert_eq!((&*bill.client, bill.reason), ("c", rfaas_api::Reason::Withdrawn));
    call("GET", "/billing?by=client", "/billing", "", 200);
    call("POST", "/remove?node=a", "/remove", "", 200);
    call("GET", "/healthz", "/healthz", "", 200);
}

#[test]
fn bounds_that_openapi_json_describes_are_those_that_are_checked() {
    use crate::pool::{DEFAULT_TIMEOUT, MAX_CORES, MAX_NODES, MAX_TIMEOUT};

    let document: Value = serde_json::from_str(rfaas_api::OPENAPI).unwrap();
    let request = &document["components"]["schemas"]["LeaseRequest"]["properties"];
    assert_eq!(request["cores"]["maximum"], json!(MAX_CORES));
    assert_eq!(request["max_nodes"]["maximum"], json!(MAX_NODES));
    assert_eq!(request["gang"]["maximum"], json!(rfaas_protocol::constraints::MAX_GANG));
    assert_eq!(request["grows"]["maxItems"], json!(rfaas_protocol::constraints::MAX_GROWN));
    assert_eq!(request["grows"]["items"]["minimum"], json!(1), "0 is no lease");
    assert_eq!(request["wait_ms"]["maximum"], json!(rfaas_protocol::constraints::MAX_WAIT_MS));
    assert_eq!(request["timeout_ms"]["maximum"], json!(MAX_TIMEOUT.as_millis() as u64));
    let graph = &document["components"]["schemas"]["Graph"]["properties"];
    assert_eq!(graph["id"]["maximum"], json!(rfaas_protocol::lease::MAX_GRAPH));
    assert_eq!(request["timeout_ms"]["default"], json!(DEFAULT_TIMEOUT.as_millis() as u64));
}
