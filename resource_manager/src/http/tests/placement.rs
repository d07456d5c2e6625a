//! Where leases go: the policy, labels of nodes, nodes that leave.

use super::*;

/// A world with nodes a and b of 4 cores.
fn two_nodes() -> World {
    let world = World::new();
    for node in ["a", "b"] {
        let body = NODE.replace(r#""cores": 1"#, r#""cores": 4, "labels": ["gpu", "rack=7"]"#);
        assert_eq!(world.call("POST", &format!("/add?node={node}"), &body).0, 200);
        world.connect(node);
    }
    world
}

#[test]
fn a_policy_is_changed_by_name_and_counts_for_the_next_lease() {
    let world = two_nodes();
    let (status, policy) = world.call("GET", "/policy", "");
    assert_eq!((status, policy), (200, json!({"placement": "first_fit"})));
    let lease = || world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#).1["node"].clone();
    assert_eq!([lease(), lease()], ["a", "a"]);
    for named in ["first_fit", "bin_pack", "compact", "spread"] {
        let body = json!({ "placement": named });
        assert_eq!(world.call("PUT", "/policy", &body.to_string()), (200, body.clone()));
        assert_eq!(world.call("GET", "/policy", ""), (200, body));
    }
    assert_eq!([lease(), lease()], ["b", "b"], "the node with the most room");
    for (body, why) in [
        (r#"{"placement":"spot"}"#, "there are first_fit, bin_pack, compact, spread"),
        (r#"{"placement":1}"#, "must be a string"),
        (r#"{"policy":"spread"}"#, "\"placement\" is missing"),
        ("", "the body is empty"),
        ("compact", "the body is not JSON"),
    ] {
        let (status, answer) = world.call("PUT", "/policy", body);
        assert!(status == 400 && answer["error"].as_str().unwrap().contains(why), "{answer}");
    }
    assert_eq!(world.call("GET", "/policy", "").1["placement"], "spread", "as it was");
}

#[test]
fn a_node_that_leaves_gets_only_what_ends_before_until_it_is_added_again() {
    let world = two_nodes();
    assert_eq!(world.call("POST", "/remove?node=b", "").0, 200);
    let (status, node) = world.call("POST", "/nodes/a/leaving", r#"{"in_ms":600000}"#);
    assert_eq!(status, 200, "{node}");
    let node = world.call("GET", "/nodes", "").1[0].clone();
    assert!(node["leaves_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{node}");
    let lease = |ms: u64| {
        let body = format!(r#"{{"cores":1,"memory":1,"timeout_ms":{ms}}}"#);
        world.call("POST", "/leases", &body)
    };
    let (status, refused) = lease(700_000);
    assert_eq!(status, 409);
    let why = refused["error"].as_str().unwrap();
    assert!(why.contains("1 leaving, with room for what ends before"), "{why}");
    assert_eq!(lease(1_000).0, 201);
    let body = NODE.replace(r#""cores": 1"#, r#""cores": 4"#);
    assert!(world.call("POST", "/add?node=a", &body).1.get("leaves_at").is_none());
    assert_eq!(lease(700_000).0, 201);
    for (body, why) in [("{}", "\"in_ms\" is missing"), (r#"{"in_ms":-1}"#, "whole number from 0")]
    {
        let (status, answer) = world.call("POST", "/nodes/a/leaving", body);
        assert!(status == 400 && answer["error"].as_str().unwrap().contains(why), "{answer}");
    }
}

#[test]
fn labels_are_shown_and_wrong_or_too_many_ones_refused() {
    let world = two_nodes();
    assert_eq!(world.call("GET", "/nodes/a", "").1["labels"], json!(["gpu", "rack=7"]));
    let add = |labels: Value| {
        let mut body: Value = serde_json::from_str(NODE).unwrap();
        (body["labels"], body["cores"]) = (labels, json!(4));
        world.call("POST", "/add?node=a", &body.to_string())
    };
    assert_eq!(add(json!(["ssd"])).1["labels"], json!(["ssd"]));
    assert_eq!(add(json!(["a b"])).0, 400);
    assert_eq!(add(json!("gpu")).0, 400);
    for first in (0..60).step_by(15) {
        let labels: Vec<_> = (first..first + 15).map(|n| format!("l{n}")).collect();
        let body =
            json!({"ip_address": "10.0.0.9", "port": 1, "cores": 1, "memory": 1, "labels": labels});
        assert_eq!(world.call("POST", &format!("/add?node=n{first}"), &body.to_string()).0, 200);
    }
    let (status, refused) = add(json!(["x1", "x2", "x3", "x4"]));
    assert_eq!(status, 409, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("64 different labels"), "{refused}");
    assert_eq!(world.call("GET", "/nodes/a", "").1["labels"], json!(["ssd"]), "as it was");
}

#[test]
fn a_request_says_which_graph_its_leases_are_for_or_is_told_what_is_wrong() {
    let world = two_nodes();
    let ask = |more: Value, graph: Value| {
        let mut body = json!({"cores": 1, "memory": 4, "client": "me", "graph": graph});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.call("POST", "/leases", &body.to_string())
    };
    let graph = |change: Value| {
        let mut graph = json!({"id": 5, "name": "words", "workers": [["split"]]});
        graph.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        graph
    };
    for (more, graph, why) in [
        (json!({}), json!("words"), "\"graph\" must be an object"),
        (json!({}), json!({"id": 5, "name": "words"}), "\"workers\" is missing"),
        (json!({}), graph(json!({"id": 0})), "\"id\" must be a whole number from 1"),
        (json!({}), graph(json!({"name": ""})), "name of a graph"),
        (json!({}), graph(json!({"name": "x".repeat(65)})), "name of a graph"),
        (json!({}), graph(json!({"lane": 65_536})), "\"lane\" must be"),
        (json!({}), graph(json!({"workers": ["split"]})), "array of arrays of strings"),
        (json!({}), graph(json!({"workers": [[]]})), "functions of a worker"),
        (json!({}), graph(json!({"workers": [["a\nb"]]})), "several lines"),
        (json!({}), graph(json!({"workers": [["x".repeat(257)]]})), "functions of a worker"),
        (json!({}), graph(json!({"workers": [["a"], ["b"]]})), "2 workers for 1 leases"),
        (json!({"gang": 2}), graph(json!({})), "1 workers for 2 leases"),
        (json!({"max_nodes": 2}), graph(json!({})), "is not for requests with max_nodes"),
        (json!({"grows": [7]}), graph(json!({})), "is not for requests with max_nodes or grows"),
        (json!({}), graph(json!({"workres": 1})), "\"workres\" is not known"),
    ] {
        let (status, answer) = ask(more, graph);
        let told = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && told.contains(why), "{why}: {status} {answer}");
    }
    assert_eq!(world.call("GET", "/graphs", "").1, json!([]));
    assert_eq!(ask(json!({"gang": 1}), graph(json!({"lane": 2}))).0, 201);
    let (_, listed) = world.call("GET", "/graphs", "");
    let worker = &listed[0]["workers"][0];
    assert_eq!((&listed[0]["name"], &listed[0]["client"]), (&json!("words"), &json!("me")));
    assert_eq!((&worker["lane"], &worker["functions"]), (&json!(2), &json!(["split"])));
}

#[test]
fn leases_grow_on_their_own_node_first_with_a_lease_on_each() {
    let world = two_nodes();
    let ask = |body: Value| world.call("POST", "/leases", &body.to_string());
    let (status, first) =
        ask(json!({"cores": 2, "memory": 8, "client": "me", "constraints": {"near": "b"}}));
    assert_eq!((status, &first["node"]), (201, &json!("b")), "{first}");
    let grow = |more: Value| {
        let mut body = json!({"cores": 1, "memory": 4, "client": "me", "grows": [first["id"]]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask(body)
    };
    let (status, refused) = grow(json!({"gang": 7}));
    assert_eq!(status, 409, "{refused}");
    let why = refused["error"].as_str().unwrap();
    assert!(why.contains("no ready nodes have 7 times 1 core and 4 MB free now"), "{why}");
    let (status, grown) = grow(json!({"gang": 3}));
    assert_eq!(status, 201, "{grown}");
    let parts = grown["parts"].as_array().unwrap();
    let of = |part: &Value| json!([part["node"], part["cores"], part["memory"]]);
    let parts: Vec<_> = parts.iter().map(of).collect();
    assert_eq!(parts, [json!(["b", 2, 8]), json!(["a", 1, 4])]);
    assert_eq!(grow(json!({})).1["parts"][0]["node"], "a", "one worker, and b is full");
    for (more, expected, why) in [
        (json!({"grows": []}), 400, "grows names no lease"),
        (json!({"grows": [0]}), 400, "\"grows\" has 0"),
        (json!({"grows": "7"}), 400, "\"grows\" must be an array of whole numbers"),
        (json!({"grows": [-1]}), 400, "\"grows\" must be an array of whole numbers"),
        (json!({"max_nodes": 2}), 400, "goes not with grows"),
        (json!({"constraints": {"near": "a"}}), 400, "goes with neither near nor nodes"),
        // What is none of the client's counts for nothing.
        (json!({"client": "you"}), 201, ""),
        (json!({"grows": [7]}), 201, ""),
    ] {
        let (status, answer) = grow(more);
        let told = answer["error"].as_str().unwrap_or_default();
        assert!(status == expected && told.contains(why), "{status} {answer}");
    }
}
