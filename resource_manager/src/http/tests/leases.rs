//! Leases over HTTP: granted, renewed, ended, limited.

use super::*;

#[test]
fn a_gang_is_granted_in_parts_or_refused_by_the_name_of_a_constraint() {
    let world = World::new();
    let node =
        r#"{"ip_address":"192.168.0.29","port":10005,"cores":4,"memory":1024,"labels":["gpu"]}"#;
    world.call("POST", "/add?node=a", node);
    world.connect("a");
    let ask = |gang: u32, constraints: &str| {
        let body = format!(r#"{{"cores":1,"memory":1,"gang":{gang},"constraints":{constraints}}}"#);
        world.call("POST", "/leases", &body)
    };
    let (status, grant) = ask(3, r#"{"has":["gpu"],"near":"a","at_least":2}"#);
    assert_eq!(status, 201, "{grant}");
    assert_eq!(grant["parts"].as_array().map(Vec::len), Some(3));
    for (gang, constraints, status, words) in [
        (1, r#"{"has":["fpga"]}"#, 409, "constraint has: no node has label"),
        (1, r#"{"leave_free":1}"#, 409, "constraint leave_free cannot hold"),
        (2, "{}", 409, "no ready nodes have 2 times 1 core and 1 MB free now"),
        (33, "{}", 400, "field \"gang\" must be a whole number from 1 to 32"),
        (1, r#"{"together":1}"#, 400, "field \"together\" must be a boolean"),
        (1, "[]", 400, "field \"constraints\" must be an object"),
        (1, r#"{"colour":1}"#, 400, "field \"colour\" is not known"),
        (2, r#"{"nodes":["a"]}"#, 400, "nodes names 1 nodes for 2 leases"),
    ] {
        let (answered, error) = ask(gang, constraints);
        assert_eq!(answered, status, "{error}");
        assert!(error["error"].as_str().unwrap().contains(words), "{error}");
    }
    assert_eq!(world.call("GET", "/nodes/a", "").1["free_cores"], 1, "nothing more is held");
    let both = r#"{"cores":2,"memory":1,"gang":2,"max_nodes":2}"#;
    assert_eq!(world.call("POST", "/leases", both).0, 400);
}

#[test]
fn a_gang_is_told_where_it_would_be_on_fewer_nodes() {
    let world = World::new();
    let add = |name: &str, cores: u32| {
        let node = format!(
            r#"{{"ip_address":"192.168.0.29","port":10005,"cores":{cores},"memory":1024}}"#
        );
        assert_eq!(world.call("POST", &format!("/add?node={name}"), &node).0, 200);
    };
    add("a", 2);
    add("b", 2);
    ["a", "b"].into_iter().for_each(|name| world.connect(name));
    let (status, grant) = world.call("POST", "/leases", r#"{"cores":1,"memory":1,"gang":3}"#);
    assert_eq!(status, 201, "{grant}");
    let (first, third) = (&grant["id"], &grant["parts"][2]["id"]);
    let better = |id: &Value| world.call("GET", &format!("/leases/{id}/better"), "");
    let stay = json!({"advice": "stay", "nodes": 2, "better_nodes": 2, "moves": []});
    assert_eq!(better(first), (200, stay));
    add("c", 4);
    world.connect("c");
    let (status, advice) = better(third);
    assert_eq!((status, &advice["advice"]), (200, &json!("move")), "{advice}");
    assert_eq!((&advice["nodes"], &advice["better_nodes"]), (&json!(2), &json!(1)));
    assert_eq!(advice["moves"].as_array().map(Vec::len), Some(3));
    assert_eq!(advice["moves"][0], json!({"id": first, "from": "a", "to": "c"}));
    assert_eq!(better(&json!(1)).0, 404);
}

#[test]
fn a_request_waits_until_there_is_room_or_its_time_is_over() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let ask = |wait_ms: u64| {
        world.call("POST", "/leases", &format!(r#"{{"cores":1,"memory":1,"wait_ms":{wait_ms}}}"#))
    };
    let (status, first) = ask(0);
    assert_eq!(status, 201, "{first}");
    let (status, error) = ask(100);
    assert_eq!(status, 409);
    assert!(error["error"].as_str().unwrap().starts_with("after 100ms of waiting: "), "{error}");
    thread::scope(|scope| {
        let second = scope.spawn(|| ask(60_000));
        thread::sleep(Duration::from_millis(100)); // most of the times it waits by then
        let ended = world.call("DELETE", &format!("/leases/{}", first["id"]), "");
        assert_eq!(ended.0, 200);
        let (status, second) = second.join().unwrap();
        assert_eq!(status, 201, "{second}");
        assert_ne!(second["id"], first["id"]);
    });
    assert_eq!(ask(3_600_001).0, 400);
    let divided = r#"{"cores":1,"memory":1,"wait_ms":1,"max_nodes":2}"#;
    assert_eq!(world.call("POST", "/leases", divided).0, 400);
}

#[test]
fn a_lease_is_granted_listed_without_its_token_and_ended_once() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let request = r#"{"cores":1,"memory":512,"timeout_ms":60000,"client":"me"}"#;
    let (status, grant) = world.call("POST", "/leases", request);
    assert_eq!(status, 201, "{grant}");
    let id = grant["id"].as_u64().unwrap();
    let token = grant["token"].as_str().unwrap();
    let token = rfaas_protocol::lease::Token::from_text(token).unwrap();
    assert!(token.verify(b"42") && !token.verify(b"43"));
    assert_eq!(token.terms.lease.get(), id);
    assert_eq!(token.terms.client.get(), Ok("me"));
    assert_eq!((&grant["address"], &grant["port"]), (&json!("192.168.0.29"), &json!(10005)));

    let (_, lease) = world.call("GET", &format!("/leases/{id}"), "");
    assert_eq!(lease["state"], "granted");
    assert_eq!(lease["expires_at"], grant["expires_at"]);
    let (_, all) = world.text("GET", "/leases", "");
    assert!(!all.contains("token"), "{all}");
    assert_eq!(serde_json::from_str::<Value>(&all).unwrap(), json!([lease]));

    for _ in 0..2 {
        let ended = world.call("DELETE", &format!("/leases/{id}"), "");
        assert_eq!(ended, (200, json!({"id": id, "state": "ended"})));
        assert_eq!(world.call("GET", "/nodes/a", "").1["free_cores"], 1);
    }
    let (status, gone) = world.call("GET", &format!("/leases/{id}"), "");
    assert!(status == 404 && gone["error"].as_str().unwrap().contains("/billing"), "{gone}");
    let (_, bills) = world.call("GET", "/billing?client=me", "");
    assert_eq!(bills.as_array().map(Vec::len), Some(1));
    assert_eq!((&bills[0]["lease"], &bills[0]["reason"]), (&json!(id), &json!("withdrawn")));
    assert_eq!(world.call("GET", "/billing?client=you", ""), (200, json!([])));
    assert_eq!(world.call("GET", "/billing", ""), (200, bills.clone()));

    let ended_at = bills[0]["ended_at"].as_str().unwrap();
    let since = |time: &str| world.call("GET", &format!("/billing?since={time}"), "").1;
    assert_eq!(since(ended_at), bills);
    assert_eq!(since("1970-01-01T01:00:00+01:00"), bills);
    assert_eq!(since("9999-01-01T00:00:00Z"), json!([]));
    let (status, table) = world.text("GET", "/billing?format=csv&client=me", "");
    assert!(status == 200 && table.starts_with("lease,client,node,cores,"), "{table}");
    assert!(table.contains(&format!("\r\n{id},me,a,1,512,")), "{table}");
    assert_eq!(table.lines().count(), 2, "{table}");
    let sums = json!([{
        "client": "me", "leases": 1, "allocated_core_ms": 0, "allocated_mb_ms": 0,
        "hot_polling_ns": 0, "execution_ns": 0, "invocations": 0,
    }]);
    assert_eq!(world.call("GET", "/billing?by=client", ""), (200, sums));
    assert_eq!(world.call("GET", "/billing?by=client&client=you", ""), (200, json!([])));
    let (_, table) = world.text("GET", "/billing?by=client&format=csv", "");
    let head =
        "client,leases,allocated_core_ms,allocated_mb_ms,hot_polling_ns,execution_ns,invocations";
    assert_eq!(table, format!("{head}\r\nme,1,0,0,0,0,0\r\n"));
}

#[test]
fn a_lease_is_renewed_by_its_token_until_it_has_ended() {
    let world = World::new();
    world.call("POST", "/add?node=a", &NODE.replace(r#""cores": 1"#, r#""cores": 2"#));
    world.connect("a");
    let request = r#"{"cores":1,"memory":1,"timeout_ms":60000}"#;
    let (_, grant) = world.call("POST", "/leases", request);
    let (_, other) = world.call("POST", "/leases", request);
    let renew = |lease: &Value, token: &Value, timeout_ms: u64| {
        let body = json!({"token": token, "timeout_ms": timeout_ms}).to_string();
        world.call("POST", &format!("/leases/{}/renew", lease["id"]), &body)
    };
    let (status, renewed) = renew(&grant, &grant["token"], 3_600_000);
    assert_eq!(status, 200, "{renewed}");
    for key in ["id", "node", "address", "port", "cores", "memory"] {
        assert_eq!(renewed[key], grant[key], "{key}");
    }
    assert!(renewed["expires_at"].as_str() > grant["expires_at"].as_str());
    let (status, again) = renew(&grant, &renewed["token"], 1);
    assert_eq!((status, &again["expires_at"]), (200, &renewed["expires_at"]), "never nearer");
    let (_, lease) = world.call("GET", &format!("/leases/{}", grant["id"]), "");
    assert_eq!(lease["expires_at"], renewed["expires_at"]);

    let token = rfaas_protocol::lease::Token::from_text(grant["token"].as_str().unwrap()).unwrap();
    let mut terms = token.terms;
    terms.cores = 2.into();
    let altered = rfaas_protocol::lease::Token::unsigned(terms).to_text();
    assert_eq!(renew(&grant, &json!(altered), 1000).0, 403);
    assert_eq!(renew(&grant, &other["token"], 1000).0, 403);
    terms.lease = 7.into();
    let unknown = rfaas_protocol::lease::Token::sign(terms, b"42").to_text();
    assert_eq!(renew(&json!({"id": 7}), &json!(unknown), 1000).0, 404);
    world.call("DELETE", &format!("/leases/{}", grant["id"]), "");
    let (status, ended) = renew(&grant, &grant["token"], 1000);
    assert!(status == 409 && ended["error"].as_str().unwrap().contains("ended"), "{ended}");
}

#[test]
fn a_request_for_several_nodes_is_answered_with_all_its_parts() {
    let world = World::new();
    for node in ["a", "b"] {
        world.call("POST", &format!("/add?node={node}"), NODE);
    }
    world.connect("a");
    world.connect("b");
    let ask = |max_nodes: u32| {
        let body = json!({"cores": 2, "memory": 9, "max_nodes": max_nodes}).to_string();
        world.call("POST", "/leases", &body)
    };
    assert_eq!(ask(1).0, 409);
    let (status, grant) = ask(2);
    assert_eq!(status, 201, "{grant}");
    let parts = grant["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 2);
    for key in ["id", "node", "address", "port", "cores", "memory", "expires_at", "token"] {
        assert_eq!(grant[key], parts[0][key], "{key}");
    }
    let sum = |key| parts.iter().map(|part| part[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("cores"), sum("memory")), (2, 10), "memory is rounded up");
    assert_ne!(parts[0]["node"], parts[1]["node"]);
    assert_eq!(world.call("GET", "/leases", "").1.as_array().map(Vec::len), Some(2));
    assert_eq!(ask(2).0, 409);
}

#[test]
fn on_this_machine_a_lease_is_ended_with_its_token_or_without_and_not_with_another() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let (_, grant) = world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
    let lease = format!("/leases/{}", grant["id"]);
    let mut terms = Token::from_text(grant["token"].as_str().unwrap()).unwrap().terms;
    terms.lease = 7.into();
    let other = Token::sign(terms, b"42").to_text();
    let head = format!("Host: x\r\nAuthorization: Bearer {other}");
    assert_eq!(world.with_head("DELETE", &lease, &head, "").0, 403);
    assert_eq!(world.call("DELETE", &lease, "").0, 200);
}

#[test]
fn a_client_beyond_a_limit_is_told_which() {
    let rules = FairUse { cores: Some(2), requests_per_second: Some(3), ..FairUse::default() };
    let world = World::with(Access::default(), rules, None);
    world.call("POST", "/add?node=a", &NODE.replace(r#""cores": 1"#, r#""cores": 8"#));
    world.connect("a");
    let ask = |client: &str| {
        let body = json!({"cores": 2, "memory": 1, "client": client}).to_string();
        let (status, answer) = world.call("POST", "/leases", &body);
        (status, answer["error"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask("me").0, 201);
    let (status, why) = ask("me");
    assert!(
        status == 409
            && why.starts_with("127.0.0.1 may hold 2 cores")
            && why.contains("limits.cores"),
        "{why}"
    );
    let (status, why) = ask("you");
    assert!(status == 409 && why.starts_with("127.0.0.1 may hold 2 cores"), "{why}");
    // It asks faster than the limit however slow the machine is: each answer is waited for, so at last within a second.
    let limited = (0..1000).map(|_| ask("me")).find(|(status, _)| *status == 429);
    let (_, why) = limited.expect("more than 3 requests in a second");
    assert!(why.contains("limits.requests_per_second"), "{why}");
}
