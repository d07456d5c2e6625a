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
