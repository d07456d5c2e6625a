//! The HTTP interface over real sockets, in front of a loop that only has a pool.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime;
use tokio::sync::oneshot;

use super::*;
use rfaas::config::AddressRange;
use tokio::net::TcpListener;

use crate::commands::{Command, Inbox, commands};
use crate::ledger::Ledger;
use crate::pool::{Ask, Capacity, FairUse, LinkId, NodeSpec, Run};

/// Carries out work, without devices. Ends when told to stop.
fn serve_pool(inbox: &Inbox, mut ledger: Ledger, rules: FairUse) {
    let pool = Pool::new(Now::read(), Duration::from_secs(10));
    let mut pool = pool.with_rules(Now::read(), rules);
    loop {
        let now = Now::read();
        pool.tick(now, &mut Vec::new());
        let command = inbox.try_next();
        let answer = match command {
            Some(Command::Work(work)) => Some(work(&mut pool, now, &mut Vec::new())),
            Some(Command::Stop) => return,
            None => None,
        };
        ledger.settle(now, pool.take_changes()).unwrap();
        match answer {
            Some(answer) => answer(),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// An interface at a port of its own.
struct World {
    address: SocketAddr,
    commands: Commands,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        World::with(Access::default(), FairUse::default(), None)
    }

    /// One with these rules; all requests seem to come `from` there.
    fn with(access: Access, rules: FairUse, from: Option<Ends>) -> Self {
        let (commands, inbox) = commands().unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (durable, events) = (Arc::new(Durable::in_memory().unwrap()), Arc::default());
        let ledger = Ledger::new(durable.clone(), Arc::clone(&events), Duration::from_secs(1));
        let api = Api::new(commands.clone(), durable, events, Arc::from(&b"42"[..]), access);
        let (stop, stopped) = oneshot::channel();
        let router = match from {
            Some(ends) => router(api).layer(Extension(ends)), // within that of the connection
            None => router(api),
        };
        let http = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        };
        let threads =
            vec![thread::spawn(http), thread::spawn(move || serve_pool(&inbox, ledger, rules))];
        World { address, commands, stop: Some(stop), threads }
    }

    /// Sends bytes, reads until the interface closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Status and body of a request, its body as `curl -d` sends it.
    fn text(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let answer = self.raw(
            format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
        let status = answer[9..12].parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Status and JSON of a request with such header lines.
    fn with_head(&self, method: &str, target: &str, head: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n\r\n{body}"
        );
        let answer = self.raw(request.as_bytes());
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        (answer[9..12].parse().unwrap(), serde_json::from_str(json).unwrap())
    }

    fn call(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.text(method, target, body);
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text:?}")))
    }

    /// Does what an executor manager does when it registers.
    fn connect(&self, node: &'static str) {
        self.commands
            .tell(move |pool, now, out| {
                let link = LinkId(node.as_bytes()[0].into());
                let address = SocketAddr::from(([192, 168, 0, 29], 10_005));
                let run = Run { instance: 1, address, clock_ahead_ms: 0 };
                pool.node_connected(now, node, run, link, out).unwrap();
            })
            .unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.commands.stop().unwrap();
        drop(self.stop.take());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// The tutorial's.
const NODE: &str = r#"{"ip_address": "192.168.0.29", "port": 10005, "cores": 1, "memory": 512}"#;

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
fn a_lease_is_granted_listed_without_its_token_and_ended_once() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let request = r#"{"cores":1,"memory":512,"timeout_ms":60000,"client":"me"}"#;
    let (status, grant) = world.call("POST", "/leases", request);
    assert_eq!(status, 201, "{grant}");
    let id = grant["id"].as_u64().unwrap();
    let token = grant["token"].as_str().unwrap();
    let token = rfaas::protocol::lease::Token::from_text(token).unwrap();
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

    let token = rfaas::protocol::lease::Token::from_text(grant["token"].as_str().unwrap()).unwrap();
    let mut terms = token.terms;
    terms.cores = 2.into();
    let altered = rfaas::protocol::lease::Token::unsigned(terms).to_text();
    assert_eq!(renew(&grant, &json!(altered), 1000).0, 403);
    assert_eq!(renew(&grant, &other["token"], 1000).0, 403);
    terms.lease = 7.into();
    let unknown = rfaas::protocol::lease::Token::sign(terms, b"42").to_text();
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

/// Header lines that browsers send for a page of another site, or that only a page would send.
const OF_PAGES: [(u16, &str); 9] = [
    (403, "Host: 127.0.0.1\r\nOrigin: https://evil.example"),
    (403, "Host: 127.0.0.1\r\nOrigin: null"),
    // DNS rebinding: the page is of the same origin as what it asks.
    (
        403,
        "Host: evil.example:5000\r\nOrigin: http://evil.example:5000\r\nSec-Fetch-Site: same-origin",
    ),
    (403, "Host: evil.example:5000"),
    (403, "Host: 127.0.0.1\r\nHost: evil.example"),
    (403, "Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site"),
    (403, "Host: 127.0.0.1\r\nSec-Fetch-Site: same-site"),
    (415, "Host: 127.0.0.1\r\nContent-Type: text/plain;charset=UTF-8"),
    (415, "Host: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x"),
];

#[test]
fn a_web_page_changes_nothing_and_programs_do() {
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let (_, lease) = world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
    let lease = format!("/leases/{}", lease["id"]);
    let before = [world.call("GET", "/nodes", ""), world.call("GET", "/leases", "")];
    for (status, head) in OF_PAGES {
        for (method, target, body) in [
            ("POST", "/add?node=b", NODE),
            ("POST", "/remove?node=a&grace_ms=0", ""),
            ("POST", "/leases", r#"{"cores":1,"memory":1}"#),
            ("POST", &*format!("{lease}/renew"), "{}"),
            ("DELETE", &*lease, ""),
        ] {
            let (got, answer) = world.with_head(method, target, head, body);
            assert_eq!(got, status, "{method} {target} {head}: {answer}");
            assert!(answer["error"].as_str().is_some_and(|why| why.len() > 20), "{answer}");
        }
    }
    assert_eq!([world.call("GET", "/nodes", ""), world.call("GET", "/leases", "")], before);
    for head in [
        "Host: x",
        "Host: localhost:5000\r\nContent-Type: application/json; charset=utf-8",
        "Host: [::1]:5000\r\nSec-Fetch-Site: none",
        "Host: 10.0.0.1",
    ] {
        assert_eq!(world.with_head("POST", "/add?node=b", head, NODE).0, 200, "{head}");
    }
    let (_, head) = OF_PAGES[0];
    assert_eq!(world.with_head("GET", "/nodes", head, "").0, 200, "which no page can read");
}

fn of(peer: &str) -> Option<Ends> {
    let peer = peer.parse().unwrap();
    Some(Ends { peer, is_local: false, is_forwarded: false })
}

#[test]
fn another_machine_reads_and_changes_what_the_operator_allows_it_to() {
    let range = || vec![AddressRange::try_from("10.1.0.0/16".to_owned()).unwrap()];
    let world = World::with(Access::new(&range(), "0.0.0.0"), FairUse::default(), of("10.2.0.1"));
    assert_eq!(world.call("GET", "/nodes", ""), (200, json!([])));
    for (method, target) in [("POST", "/add?node=a"), ("POST", "/leases"), ("DELETE", "/leases/7")]
    {
        let (status, answer) = world.call(method, target, NODE);
        let why = answer["error"].as_str().unwrap();
        assert_eq!(status, 403, "{answer}");
        assert!(why.contains(r#""http_changes_from": ["10.2.0.1"]"#), "{why}");
    }
    assert_eq!(world.call("GET", "/nodes", ""), (200, json!([])));

    let world = World::with(Access::new(&range(), "0.0.0.0"), FairUse::default(), of("10.1.2.3"));
    assert_eq!(world.call("POST", "/add?node=a", NODE).0, 200);
    world.connect("a");
    let (_, grant) = world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
    let lease = format!("/leases/{}", grant["id"]);
    let end = |token: &str| {
        let head = format!("Host: x\r\nAuthorization: Bearer {token}");
        world.with_head("DELETE", &lease, &head, "")
    };
    let (status, answer) = world.call("DELETE", &lease, "");
    assert!(status == 403 && answer["error"].as_str().unwrap().contains("Bearer"), "{answer}");
    assert_eq!(end("AAAA").0, 400);
    let token = grant["token"].as_str().unwrap();
    let mut terms = Token::from_text(token).unwrap().terms;
    terms.cores = 2.into();
    assert_eq!(end(&Token::sign(terms, b"43").to_text()).0, 403);
    terms.lease = 7.into();
    assert_eq!(end(&Token::sign(terms, b"42").to_text()).0, 403, "of another lease");
    assert_eq!(world.call("GET", &lease, "").0, 200);
    assert_eq!(end(token).0, 200);
}

#[test]
fn what_a_proxy_on_this_machine_passes_on_is_from_elsewhere() {
    let proxies = [
        "Forwarded: for=10.1.2.3",
        "X-Forwarded-For: 127.0.0.1",
        "x-forwarded-proto: https",
        "X-Real-IP: 10.1.2.3",
        "Via: 1.1 proxy",
    ];
    let world = World::new();
    world.call("POST", "/add?node=a", NODE);
    world.connect("a");
    let (_, grant) = world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
    let lease = format!("/leases/{}", grant["id"]);
    for proxy in proxies {
        let head = format!("Host: x\r\n{proxy}");
        assert_eq!(world.with_head("GET", "/nodes", &head, "").0, 200);
        for (method, target) in [("POST", "/add?node=b"), ("POST", "/leases"), ("DELETE", &*lease)]
        {
            let (status, answer) = world.with_head(method, target, &head, NODE);
            let why = answer["error"].as_str().unwrap();
            assert!(status == 403 && why.contains("passed on by 127.0.0.1"), "{proxy}: {answer}");
        }
    }
    drop(world);

    // The operator may allow it; a lease is still ended with its token only.
    let range = vec![AddressRange::try_from("127.0.0.1".to_owned()).unwrap()];
    let world = World::with(Access::new(&range, "0.0.0.0"), FairUse::default(), None);
    let head = format!("Host: x\r\n{}", proxies[0]);
    assert_eq!(world.with_head("POST", "/add?node=a", &head, NODE).0, 200);
    let (status, answer) = world.with_head("DELETE", "/leases/7", &head, "");
    assert!(status == 403 && answer["error"].as_str().unwrap().contains("Bearer"), "{answer}");
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

#[test]
fn a_list_of_many_pages_is_whole_and_in_order() {
    let world = World::new();
    let many = 2 * pages::ROWS + 7;
    world
        .commands
        .tell(move |pool, now, out| {
            for number in (0..many).rev() {
                let capacity = Capacity { cores: 1, memory: 1 };
                let spec =
                    NodeSpec::new(&format!("node-{number:05}"), "10.0.0.1", 1, capacity).unwrap();
                pool.add_node(now, spec, out).unwrap();
            }
            let address = ([10, 0, 0, 1], 1).into();
            let run = Run { instance: 1, address, clock_ahead_ms: 0 };
            pool.node_connected(now, "node-00000", run, LinkId(1), out).unwrap();
            let spec =
                NodeSpec::new("node-00000", "10.0.0.1", 1, Capacity { cores: 9999, memory: 9999 });
            pool.add_node(now, spec.unwrap(), out).unwrap();
            for client in 0..many {
                let hour = Duration::from_secs(3600);
                let ask = Ask::new(1, 1, hour, &format!("client-{}", client % 1000)).unwrap();
                let lease = pool.request(now, &ask).unwrap().remove(0).terms.lease;
                if client >= pages::ROWS {
                    pool.end_lease(now, lease, EndReason::Withdrawn, out);
                }
            }
        })
        .unwrap();
    // Of version 1.0, so that the answer comes as it is, without chunks.
    let list = |target: &str| {
        let answer = world.raw(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let json = |target: &str| serde_json::from_str::<Vec<Value>>(&list(target)).unwrap();
    let nodes = json("/nodes");
    for (number, node) in nodes.iter().enumerate() {
        assert_eq!(node["node"], format!("node-{number:05}"));
    }
    assert_eq!(nodes.len(), many);
    assert_eq!(json("/leases").len(), pages::ROWS, "a page that is full, and an empty one");
    let ended = many - pages::ROWS;
    let bills = json("/billing");
    let ids: Vec<_> = bills.iter().map(|bill| bill["lease"].as_u64()).collect();
    assert!(ids.is_sorted() && ids.len() == ended, "{}", ids.len());
    let table = list("/billing?format=csv");
    assert_eq!(table.lines().count(), 1 + ended);
    assert_eq!(table.matches("provisional").count(), 1, "one head");
    assert_eq!(json("/billing?by=client").len(), ended.min(1000));
    assert_eq!(json("/billing?client=client-600").len(), 1);
}

#[test]
fn a_read_has_its_turn_until_it_ends_also_when_nobody_waits_for_it() {
    let (commands, _inbox) = commands().unwrap();
    let durable = Arc::new(Durable::in_memory().unwrap());
    let secret = Arc::from(&b"42"[..]);
    let api = Api::new(commands, durable, Arc::default(), secret, Access::default());
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let reader = api.clone();
        let request = tokio::spawn(async move {
            let slow = move |_: &Durable| {
                begin.send(()).unwrap();
                let _ = ended.recv();
                Ok(())
            };
            let _ = reader.read(slow).await;
        });
        begun.await.unwrap();
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(api.reads.available_permits(), READS - 1);
        drop(end);
        drop(api.reads.acquire_many(READS as u32).await.unwrap());
    });
}

#[test]
fn a_client_that_has_closed_its_sending_side_is_answered() {
    let world = World::new();
    for number in 0..20 {
        let target = format!("/add?node=n{number}");
        for (method, target, body) in [("POST", &*target, NODE), ("GET", "/nodes", "")] {
            let mut stream = TcpStream::connect(world.address).unwrap();
            let length = body.len();
            let request = format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{method}: {answer:?}");
        }
    }
}

/// A client that asks for much and does not read. Returns when nothing more is taken from it.
fn does_not_read(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.address).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    while stream.write_all(&ask).is_ok() {}
    stream
}

#[test]
fn clients_that_do_not_read_keep_nobody_out() {
    let world = World::new();
    let held: Vec<_> = thread::scope(|scope| {
        let one = || scope.spawn(|| does_not_read(&world));
        let all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| one()).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for _ in 0..3 {
        assert_eq!(world.call("GET", "/healthz", "").0, 200);
    }
    drop(held);
}

#[test]
fn clients_that_send_slowly_keep_nobody_out() {
    let world = World::new();
    let (address, done) = (world.address, Arc::new(AtomicBool::new(false)));
    let (full, is_full) = std::sync::mpsc::channel();
    let over = done.clone();
    // Each sends a byte now and then, so that its head is there in time, and the next one, for ever.
    let slow = thread::spawn(move || {
        let connect = || TcpStream::connect(address).unwrap();
        let mut all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".iter().cycle() {
            for stream in &mut all {
                if stream.write_all(&[*byte]).is_err() {
                    *stream = connect();
                }
            }
            let _ = full.send(());
            if over.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    for _ in 0..3 {
        is_full.recv().unwrap();
        assert_eq!(world.call("GET", "/healthz", "").0, 200);
    }
    done.store(true, Ordering::Relaxed);
    slow.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_on_is_cut_off() {
    let world = World::new();
    let mut stream = does_not_read(&world);
    thread::sleep(PATIENCE + Duration::from_secs(2));
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert_eq!(world.call("GET", "/healthz", "").0, 200);
}

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
                count += 1;
            }
        }
        if lease["id"].is_u64() {
            world.call("DELETE", &format!("/leases/{}", lease["id"]), "");
        }
    }
    assert_eq!(count, 13, "routes of `router`");
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
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
