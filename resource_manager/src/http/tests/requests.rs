//! What a request is answered, whatever is in it; nodes are added and removed.

use super::*;

#[test]
fn the_tutorials_add_works_and_shows_the_node() {
    let world = World::new();
    let (status, node) = world.call("POST", "/add?node=exec-mgr-node", NODE);
    assert_eq!(status, 200);
    assert_eq!(
        node,
        json!({
            "node": "exec-mgr-node", "ip_address": "192.168.0.29", "port": 10005, "cores": 1,
            "free_cores": 1, "memory": 512, "free_memory": 512, "state": "registered",
        })
    );
    assert_eq!(world.call("POST", "/add?node=exec-mgr-node", NODE), (200, node.clone()));
    assert_eq!(world.call("GET", "/nodes", ""), (200, json!([node])));
    assert_eq!(world.call("GET", "/nodes/exec-mgr-node", ""), (200, node));
    assert_eq!(world.call("GET", "/nodes/other", "").0, 404);
}

#[test]
fn a_bad_request_is_answered_by_name_and_changes_nothing() {
    let world = World::new();
    world.call("POST", "/add?node=good", NODE);
    world.connect("good");
    let before = [world.call("GET", "/nodes", ""), world.call("GET", "/leases", "")];
    let long = "n".repeat(129);
    let long_name = format!("/add?node={long}");
    let lease = |fields: &str| format!(r#"{{"cores":1,"memory":1{fields}}}"#);
    let client = lease(&format!(r#","client":"{}""#, "c".repeat(65)));
    let wrong = |old: &str, new: &str| NODE.replacen(old, new, 1);
    #[rustfmt::skip]
    let table: &[(u16, &str, &str, &str, &str)] = &[
        // status, method, target, body, what the error must name
        (400, "POST", "/add", NODE, "node"),
        (400, "POST", "/add?node=", NODE, "node"),
        (400, "POST", "/add?node=a&node=b", NODE, "twice"),
        (400, "POST", "/add?node=a&grace=1", NODE, "grace"),
        (400, "POST", "/add?node=a%0Ab", NODE, "control"),
        (400, "POST", "/add?node=a%ffb", NODE, "UTF-8"),
        (400, "POST", "/add?node=a%f", NODE, "hexadecimal"),
        (400, "POST", "/add?node=a%+1", NODE, "hexadecimal"),
        (400, "POST", "/add?node=a%ed%a0%80", NODE, "UTF-8"),
        (400, "POST", "/remove?node=good%ff", "", "UTF-8"),
        (400, "GET", "/billing?client=%ff", "", "UTF-8"),
        (400, "POST", "/add?node=a", &wrong("512", "512, \"port\": 10006"), "\"port\" is given twice"),
        (400, "POST", "/leases", &lease(r#","cores":1"#), "\"cores\" is given twice"),
        (400, "POST", "/add?node=a", &wrong("192.168.0.29", "::ffff:0.0.0.0"), "address"),
        (400, "POST", "/add?node=a", &wrong("192.168.0.29", "224.0.0.1"), "many machines"),
        (400, "POST", &long_name, NODE, "128"),
        (400, "POST", "/add?node=a", "", "empty"),
        (400, "POST", "/add?node=a", "{", "JSON"),
        (400, "POST", "/add?node=a", "[]", "object"),
        (400, "POST", "/add?node=a", "7", "object"),
        (400, "POST", "/add?node=a", "{}{}", "JSON"),
        (400, "POST", "/add?node=a", &"[".repeat(5_000), "JSON"),
        (400, "POST", "/add?node=a", "{}", "ip_address"),
        (400, "POST", "/add?node=a", &wrong(r#""ip_address": "192.168.0.29", "#, ""), "ip_address"),
        (400, "POST", "/add?node=a", &wrong(r#""port": 10005, "#, ""), "port"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1, "#, ""), "cores"),
        (400, "POST", "/add?node=a", &wrong(r#", "memory": 512"#, ""), "memory"),
        (400, "POST", "/add?node=a", &wrong("192.168.0.29", "node.example"), "ip_address"),
        (400, "POST", "/add?node=a", &wrong("192.168.0.29", "1.2.3.4.5"), "ip_address"),
        (400, "POST", "/add?node=a", &wrong("192.168.0.29", "0.0.0.0"), "address"),
        (400, "POST", "/add?node=a", &wrong(r#""192.168.0.29""#, "7"), "ip_address"),
        (400, "POST", "/add?node=a", &wrong(r#""192.168.0.29""#, "null"), "ip_address"),
        (400, "POST", "/add?node=a", &wrong("10005", "0"), "port"),
        (400, "POST", "/add?node=a", &wrong("10005", "65536"), "65535"),
        (400, "POST", "/add?node=a", &wrong("10005", "-1"), "port"),
        (400, "POST", "/add?node=a", &wrong("10005", r#""10005""#), "port"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1"#, r#""cores": 0"#), "cores"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1"#, r#""cores": -1"#), "cores"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1"#, r#""cores": 1.5"#), "cores"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1"#, r#""cores": true"#), "cores"),
        (400, "POST", "/add?node=a", &wrong(r#""cores": 1"#, r#""cores": 70000"#), "65535"),
        (400, "POST", "/add?node=a", &wrong("512", "0"), "memory"),
        (400, "POST", "/add?node=a", &wrong("512", "-5"), "memory"),
        (400, "POST", "/add?node=a", &wrong("512", "4294967296"), "memory"),
        (400, "POST", "/add?node=a", &wrong("512", "1e99"), "memory"),
        (400, "POST", "/add?node=a", &wrong("512", r#""512""#), "memory"),
        (400, "POST", "/add?node=a", &wrong("512", "512, \"gpus\": 1"), "gpus"),
        (400, "POST", "/remove", "", "node"),
        (400, "POST", "/remove?node=good&grace_ms=x", "", "grace_ms"),
        (400, "POST", "/remove?node=good&grace_ms=-1", "", "grace_ms"),
        (400, "POST", "/remove?node=good&grace_ms=86400001", "", "86400000"),
        (400, "POST", "/remove?node=good&force=1", "", "force"),
        (400, "POST", "/remove?node=good", "{", "JSON"),
        (400, "POST", "/leases", "", "empty"),
        (400, "POST", "/leases", r#"{"memory":1}"#, "cores"),
        (400, "POST", "/leases", r#"{"cores":1}"#, "memory"),
        (400, "POST", "/leases", r#"{"cores":0,"memory":1}"#, "cores"),
        (400, "POST", "/leases", r#"{"cores":1,"memory":0}"#, "memory"),
        (400, "POST", "/leases", &lease(r#","timeout_ms":0"#), "timeout_ms"),
        (400, "POST", "/leases", &lease(r#","timeout_ms":2592000001"#), "2592000000"),
        (400, "POST", "/leases", &lease(r#","client":7"#), "client"),
        (400, "POST", "/leases", &lease(r#","client":"""#), "client"),
        (400, "POST", "/leases", &client, "64"),
        (400, "POST", "/leases", &lease(r#","priority":1"#), "priority"),
        (400, "POST", "/leases?node=good", &lease(""), "node"),
        (409, "POST", "/leases", r#"{"cores":2,"memory":1}"#, "cores"),
        (409, "POST", "/leases", r#"{"cores":1,"memory":513}"#, "513 MB"),
        (400, "POST", "/leases", &lease(r#","max_nodes":0"#), "max_nodes"),
        (400, "POST", "/leases", &lease(r#","max_nodes":33"#), "32"),
        (400, "POST", "/leases", &lease(r#","max_nodes":"2""#), "max_nodes"),
        (400, "POST", "/leases/7/renew", "", "empty"),
        (400, "POST", "/leases/7/renew", "{}", "token"),
        (400, "POST", "/leases/7/renew", r#"{"token":7}"#, "token"),
        (400, "POST", "/leases/7/renew", r#"{"token":"AAAA"}"#, "token"),
        (400, "POST", "/leases/7/renew", r#"{"token":"AAAA","timeout_ms":0}"#, "timeout_ms"),
        (400, "POST", "/leases/7/renew?id=7", r#"{"token":"AAAA"}"#, "id"),
        (404, "POST", "/leases/0/renew", "{}", "0"),
        (405, "GET", "/leases/7/renew", "", "GET"),
        (400, "GET", "/billing?by=node", "", "client"),
        (400, "GET", "/billing?user=x", "", "user"),
        (400, "GET", "/billing?since=yesterday", "", "2026-01-31T12:00:00Z"),
        (400, "GET", "/billing?format=xml", "", "csv"),
        (400, "GET", "/nodes?x", "", "x"),
        (404, "GET", "/leases/7", "", "7"),
        (404, "GET", "/leases/seven", "", "seven"),
        (404, "DELETE", "/leases/7", "", "7"),
        (404, "DELETE", "/leases/0", "", "0"),
        (404, "DELETE", "/leases/-1", "", "-1"),
        (404, "GET", "/nodes/none", "", "none"),
        (400, "GET", "/nodes/%ff", "", "UTF-8"),
        (404, "GET", "/", "", "/openapi.json"),
        (404, "POST", "/add/x?node=a", NODE, "/add/x"),
        (405, "GET", "/add?node=a", "", "GET"),
        (405, "PUT", "/add?node=a", NODE, "PUT"),
        (405, "GET", "/remove?node=a", "", "GET"),
        (405, "DELETE", "/leases", "", "DELETE"),
        (405, "POST", "/leases/7", "", "POST"),
        (405, "POST", "/billing", "", "POST"),
    ];
    for (status, method, target, body, named) in table {
        let (got, answer) = world.call(method, target, body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(
            got == *status && error.contains(named),
            "{method} {target} {body}: {got} {answer}"
        );
        assert!(answer.as_object().is_some_and(|fields| fields.len() == 1), "{answer}");
    }
    assert_eq!([world.call("GET", "/nodes", ""), world.call("GET", "/leases", "")], before);
}

#[test]
fn a_body_that_is_too_large_is_413_and_the_client_hears_it() {
    let world = World::new();
    for bytes in [MAX_BODY_BYTES + 1, 300_000] {
        let (status, answer) = world.call("POST", "/add?node=a", &" ".repeat(bytes));
        assert_eq!(status, 413, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("65536"));
    }
    let fits = format!("{NODE}{}", " ".repeat(MAX_BODY_BYTES - NODE.len()));
    assert_eq!(world.call("POST", "/add?node=a", &fits).0, 200);
}

#[test]
fn bytes_that_are_no_http_harm_nobody() {
    let world = World::new();
    for bytes in [
        &b"\x00\xff\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST /add HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        let answer = world.raw(bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(world.call("GET", "/healthz", "").0, 200);
}

#[test]
fn a_node_is_removed_however_often_and_whatever_the_body() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    let removed = |state| (200, json!({"node": "a", "state": state}));
    assert_eq!(world.call("POST", "/remove?node=a", ""), removed("removed"));
    for body in ["", NODE, "{}", " null "] {
        assert_eq!(world.call("POST", "/remove?node=a&grace_ms=0", body), removed("unknown"));
    }
    assert_eq!(world.call("GET", "/nodes", ""), (200, json!([])));
}

#[test]
fn a_node_has_one_name_for_its_address() {
    let world = World::new();
    for address in ["::ffff:192.168.0.29", "192.168.0.29"] {
        let (status, node) =
            world.call("POST", "/add?node=a", &NODE.replace("192.168.0.29", address));
        assert_eq!((status, &node["ip_address"]), (200, &json!("192.168.0.29")));
    }
}
