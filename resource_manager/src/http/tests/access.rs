//! Who may change something: no web page, and other machines if the operator allows it.

use super::*;

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
            ("POST", "/nodes/a/leaving", r#"{"in_ms":0}"#),
            ("PUT", "/policy", r#"{"placement":"spread"}"#),
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
