//! What comes in over HTTP, checked: every error names the field and says what it may be.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use axum::extract::Query;
use axum::http::Uri;
use axum::http::header::{self, HeaderMap};
use rfaas_api as api;
use rfaas_protocol::constraints::{Constraints, MAX_GANG, MAX_WAIT_MS};
use rfaas_protocol::lease::{LeaseId, MAX_GRAPH, Token};
use rfaas_protocol::placement::Policy;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pages::Format;
use crate::pool::{
    Ask, Capacity, DEFAULT_GRACE, DEFAULT_TIMEOUT, GraphWorker, MAX_CORES, MAX_GRACE, MAX_NODES,
    MAX_TIMEOUT, NodeSpec,
};

/// The client that a lease is billed to if the request gives no name.
const NAMELESS: &str = "http";

/// The fields of a JSON object. Each is given once and taken once; what is left at the end is not known.
#[derive(Debug)]
struct Fields(Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut given: A) -> Result<Fields, A::Error> {
                let mut fields = Map::new();
                while let Some((name, value)) = given.next_entry::<String, Value>()? {
                    if fields.contains_key(&name) {
                        return Err(A::Error::custom(format!("field {name:?} is given twice")));
                    }
                    fields.insert(name, value);
                }
                Ok(Fields(fields))
            }
        }
        body.deserialize_map(Object)
    }
}

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, String> {
        if body.trim_ascii().is_empty() {
            return Err("the body is empty; it must be a JSON object".into());
        }
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => format!("the body is not the JSON object that it must be: {error}"),
            _ => format!("the body is not JSON: {error}"),
        })
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("field {name:?} must be a string, not {}", kind(&other))),
        }
    }

    fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let wrong = format!("field {name:?} must be an array of strings, not {}", kind(&value));
        match serde_json::from_value(value) {
            Ok(texts) => Ok(Some(texts)),
            Err(_) => Err(wrong),
        }
    }

    fn lists(&mut self, name: &str) -> Result<Option<Vec<Vec<String>>>, String> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let given = kind(&value);
        match serde_json::from_value(value) {
            Ok(lists) => Ok(Some(lists)),
            Err(_) => {
                Err(format!("field {name:?} must be an array of arrays of strings, not {given}"))
            }
        }
    }

    fn numbers(&mut self, name: &str) -> Result<Option<Vec<u64>>, String> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let given = kind(&value);
        match serde_json::from_value(value) {
            Ok(numbers) => Ok(Some(numbers)),
            Err(_) => Err(format!("field {name:?} must be an array of whole numbers, not {given}")),
        }
    }

    fn truth(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(other) => Err(format!("field {name:?} must be a boolean, not {}", kind(&other))),
        }
    }

    fn object(&mut self, name: &str) -> Result<Option<Fields>, String> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match value {
            Value::Object(fields) => Ok(Some(Fields(fields))),
            other => Err(format!("field {name:?} must be an object, not {}", kind(&other))),
        }
    }

    fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (min, max) = range.into_inner();
                let given = if value.is_number() { value.to_string() } else { kind(&value).into() };
                Err(format!(
                    "field {name:?} must be a whole number from {min} to {max}, not {given}"
                ))
            }
        }
    }

    /// A number of fewer bits.
    fn small<N: Into<u64> + TryFrom<u64>>(
        &mut self,
        name: &str,
        range: RangeInclusive<N>,
    ) -> Result<Option<N>, String> {
        let (min, max) = range.into_inner();
        let number = self.whole(name, min.into()..=max.into())?;
        Ok(number.and_then(|number| N::try_from(number).ok()))
    }

    /// How long a lease is to last, in milliseconds.
    fn timeout_ms(&mut self) -> Result<Option<u64>, String> {
        let max = u64::try_from(MAX_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        self.whole("timeout_ms", 1..=max)
    }

    fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("field {name:?} is not known")),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn required<T>(name: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("field {name:?} is missing"))
}

/// The parameters of a query, likewise.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(uri: &Uri) -> Result<Self, String> {
        well_encoded(uri.query().unwrap_or_default())?;
        match Query::<Vec<(String, String)>>::try_from_uri(uri) {
            Ok(Query(params)) => Ok(Params(params)),
            Err(rejection) => Err(rejection.body_text()),
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.0.iter().position(|(key, _)| key == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        match self.0.iter().any(|(key, _)| key == name) {
            true => Err(format!("query parameter {name:?} is given twice")),
            false => Ok(Some(value)),
        }
    }

    pub(super) fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("query parameter {name:?} is not known")),
        }
    }

    fn node(&mut self) -> Result<String, String> {
        self.take("node")?.ok_or_else(|| "query parameter \"node\" is missing".into())
    }
}

/// Fails unless a query is percent-encoded UTF-8: what is decoded leniently has another name than was meant.
fn well_encoded(query: &str) -> Result<(), String> {
    let wrong = |what: &str| format!("the query {query:?} is not percent-encoded UTF-8: {what}");
    let mut decoded = Vec::with_capacity(query.len());
    let mut rest = query.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        decoded.push(match first {
            b'%' => {
                let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let digits = digits.filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = after.get(2..).unwrap_or_default();
                byte.ok_or_else(|| wrong("two hexadecimal digits follow a \"%\""))?
            }
            other => *other,
        });
    }
    std::str::from_utf8(&decoded).map(drop).map_err(|error| wrong(&error.to_string()))
}

fn node_body(body: &[u8]) -> Result<api::NewNode, String> {
    let mut fields = Fields::parse(body)?;
    let node = api::NewNode {
        ip_address: required("ip_address", fields.text("ip_address")?)?,
        port: required("port", fields.small("port", 1..=u16::MAX)?)?,
        cores: required("cores", fields.small("cores", 1..=MAX_CORES)?)?,
        memory: required("memory", fields.small("memory", 1..=u32::MAX)?)?,
        labels: fields.texts("labels")?,
    };
    fields.finish()?;
    Ok(node)
}

/// `POST /add?node=NAME`.
pub(super) fn add(uri: &Uri, body: &[u8]) -> Result<NodeSpec, String> {
    let mut params = Params::parse(uri)?;
    let name = params.node()?;
    params.finish()?;
    let api::NewNode { ip_address, port, cores, memory, labels } = node_body(body)?;
    if ip_address.parse::<IpAddr>().is_err() {
        return Err(format!("field \"ip_address\" must be an IP address, not {ip_address:?}"));
    }
    let spec = NodeSpec::new(&name, &ip_address, port, Capacity { cores, memory })?;
    match labels {
        Some(labels) => spec.with_labels(&labels),
        None => Ok(spec),
    }
}

/// `POST /remove?node=NAME&grace_ms=N`: the node and the grace period. The body may be anything that
/// is JSON: the original demanded the fields of `/add`.
pub(super) fn remove(uri: &Uri, body: &[u8]) -> Result<(String, Duration), String> {
    let mut params = Params::parse(uri)?;
    let name = params.node()?;
    let grace = match params.take("grace_ms")? {
        None => DEFAULT_GRACE,
        Some(text) => {
            let max = u64::try_from(MAX_GRACE.as_millis()).unwrap_or(u64::MAX);
            let grace = text.parse().ok().filter(|ms| *ms <= max).ok_or_else(|| {
                format!("query parameter \"grace_ms\" must be from 0 to {max}, not {text:?}")
            })?;
            Duration::from_millis(grace)
        }
    };
    params.finish()?;
    if !body.trim_ascii().is_empty() {
        serde_json::from_slice::<serde::de::IgnoredAny>(body)
            .map_err(|error| format!("the body is neither empty nor JSON: {error}"))?;
    }
    Ok((name, grace))
}

/// `POST /nodes/NAME/leaving`: in how long.
pub(super) fn leaving(uri: &Uri, body: &[u8]) -> Result<Duration, String> {
    Params::parse(uri)?.finish()?;
    let mut fields = Fields::parse(body)?;
    let max = u64::try_from(MAX_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let in_ms = required("in_ms", fields.whole("in_ms", 0..=max)?)?;
    fields.finish()?;
    Ok(Duration::from_millis(in_ms))
}

/// `PUT /policy`.
pub(super) fn policy(uri: &Uri, body: &[u8]) -> Result<Policy, String> {
    Params::parse(uri)?.finish()?;
    let mut fields = Fields::parse(body)?;
    let named = required("placement", fields.text("placement")?)?;
    fields.finish()?;
    named.parse().map_err(|wrong| format!("field \"placement\": {wrong}"))
}

fn lease_body(body: &[u8]) -> Result<api::LeaseRequest, String> {
    let mut fields = Fields::parse(body)?;
    let request = api::LeaseRequest {
        cores: required("cores", fields.small("cores", 1..=MAX_CORES)?)?,
        memory: required("memory", fields.small("memory", 1..=u32::MAX)?)?,
        max_nodes: fields.small("max_nodes", 1..=MAX_NODES)?,
        timeout_ms: fields.timeout_ms()?,
        gang: fields.small("gang", 1..=MAX_GANG)?,
        constraints: fields.object("constraints")?.map(constraints).transpose()?,
        wait_ms: fields.whole("wait_ms", 0..=MAX_WAIT_MS)?,
        grows: fields.numbers("grows")?,
        client: fields.text("client")?,
        graph: fields.object("graph")?.map(graph).transpose()?,
    };
    fields.finish()?;
    Ok(request)
}

fn graph(mut fields: Fields) -> Result<api::LeaseGraph, String> {
    let graph = api::LeaseGraph {
        id: required("id", fields.whole("id", 1..=MAX_GRAPH)?)?,
        name: required("name", fields.text("name")?)?,
        lane: fields.small("lane", 0..=u16::MAX)?.unwrap_or(0),
        workers: required("workers", fields.lists("workers")?)?,
    };
    fields.finish()?;
    Ok(graph)
}

/// Returns what each of `leases` leases is for.
fn workers(graph: &api::LeaseGraph, leases: u32) -> Result<Vec<GraphWorker>, String> {
    let api::LeaseGraph { id, name, lane, workers } = graph;
    if workers.len() != leases as usize {
        let count = workers.len();
        return Err(format!("field \"graph\" has {count} workers for {leases} leases"));
    }
    let worker = |(worker, functions): (u16, &Vec<String>)| {
        let functions = match functions.iter().any(|name| name.contains('\n')) {
            true => return Err("field \"graph\": a function has a name of several lines".into()),
            false => functions.join("\n"),
        };
        GraphWorker::new(*id, name, (*lane, worker), &functions)
            .map_err(|malformed| format!("field \"graph\": {malformed}"))
    };
    (0..).zip(workers).map(worker).collect()
}

fn constraints(mut fields: Fields) -> Result<api::Constraints, String> {
    let constraints = api::Constraints {
        together: fields.truth("together")?.unwrap_or(false),
        apart: fields.truth("apart")?.unwrap_or(false),
        near: fields.text("near")?,
        leave_free: fields.small("leave_free", 0..=MAX_CORES)?.unwrap_or(0),
        at_least: fields.small("at_least", 0..=MAX_CORES)?.unwrap_or(0),
        has: fields.texts("has")?.unwrap_or_default(),
        nodes: fields.texts("nodes")?.unwrap_or_default(),
    };
    fields.finish()?;
    Ok(constraints)
}

/// What is asked for.
pub(super) struct Wanted {
    pub(super) ask: Ask,
    /// Whether it is for several leases, which are the parts of the answer.
    pub(super) in_parts: bool,
    /// How long it may wait for room.
    pub(super) wait: Duration,
    /// What each of the leases is for, if that is said.
    pub(super) workers: Vec<GraphWorker>,
}

/// `POST /leases`.
pub(super) fn lease(uri: &Uri, body: &[u8]) -> Result<Wanted, String> {
    Params::parse(uri)?.finish()?;
    let request = lease_body(body)?;
    let client = request.client.as_deref().unwrap_or(NAMELESS);
    let ask = Ask::new(request.cores, request.memory, timeout(request.timeout_ms), client)?;
    let max_nodes = request.max_nodes.unwrap_or(1);
    let api::Constraints { together, apart, near, leave_free, at_least, has, nodes } =
        request.constraints.unwrap_or_default();
    let constraints = Constraints { together, apart, near, leave_free, at_least, has, nodes };
    let mut ask = ask.on_nodes(max_nodes)?.gang(request.gang.unwrap_or(1), constraints)?;
    let grows = request.grows.is_some();
    if let Some(ids) = request.grows {
        let lease = |id| LeaseId::new(id).ok_or("field \"grows\" has 0, which is no lease");
        ask = ask.growing(ids.into_iter().map(lease).collect::<Result<_, _>>()?)?;
    }
    let workers = match &request.graph {
        Some(_) if grows || max_nodes > 1 => {
            return Err("field \"graph\" is not for requests with max_nodes or grows".into());
        }
        Some(graph) => workers(graph, request.gang.unwrap_or(1))?,
        None => Vec::new(),
    };
    let wait = Duration::from_millis(request.wait_ms.unwrap_or(0));
    if max_nodes > 1 && !wait.is_zero() {
        return Err("a request with max_nodes of more than 1 cannot wait".into());
    }
    let in_parts = max_nodes > 1 || request.gang.is_some() || grows;
    Ok(Wanted { ask, in_parts, wait, workers })
}

fn renewal_body(body: &[u8]) -> Result<api::Renewal, String> {
    let mut fields = Fields::parse(body)?;
    let token = required("token", fields.text("token")?)?;
    let timeout_ms = fields.timeout_ms()?;
    fields.finish()?;
    Ok(api::Renewal { token, timeout_ms })
}

/// `POST /leases/ID/renew`: the token, and for how long.
pub(super) fn renewal(uri: &Uri, body: &[u8]) -> Result<(Token, Duration), String> {
    Params::parse(uri)?.finish()?;
    let api::Renewal { token, timeout_ms } = renewal_body(body)?;
    let token = Token::from_text(&token).map_err(|_| "field \"token\" is not a lease's token")?;
    Ok((token, timeout(timeout_ms)))
}

/// How long a lease is to last.
fn timeout(ms: Option<u64>) -> Duration {
    ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis)
}

/// The token that a request shows, as `Authorization: Bearer TOKEN`.
pub(super) fn shown_token(headers: &HeaderMap) -> Result<Option<Token>, String> {
    let Some(shown) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = shown.to_str().ok().and_then(|shown| shown.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = token.and_then(|(_, token)| Token::from_text(token.trim()).ok());
    token
        .map(Some)
        .ok_or_else(|| "the header Authorization is not \"Bearer\" and a lease's token".into())
}

/// Which bills, and how.
pub(super) struct Billing {
    pub(super) client: Option<String>,
    pub(super) since: Option<SystemTime>,
    /// Summed up, one row a client.
    pub(super) by_client: bool,
    pub(super) format: Format,
}

/// `GET /billing?client=NAME&since=TIME&by=client&format=FORMAT`.
pub(super) fn billing(uri: &Uri) -> Result<Billing, String> {
    let mut params = Params::parse(uri)?;
    let client = params.take("client")?;
    let since = params.take("since")?.map(|text| time("since", &text)).transpose()?;
    let by_client = match params.take("by")?.as_deref() {
        None | Some("lease") => false,
        Some("client") => true,
        Some(other) => {
            return Err(format!("query parameter \"by\" must be lease or client, not {other:?}"));
        }
    };
    let format = match params.take("format")?.as_deref() {
        None | Some("json") => Format::Json,
        Some("csv") => Format::Csv,
        Some(other) => {
            return Err(format!("query parameter \"format\" must be json or csv, not {other:?}"));
        }
    };
    params.finish()?;
    Ok(Billing { client, since, by_client, format })
}

/// A time as RFC 3339 has it. A query that was not encoded has a blank where an offset's plus was.
fn time(name: &str, text: &str) -> Result<SystemTime, String> {
    match OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339) {
        Ok(time) => Ok(time.into()),
        Err(error) => Err(format!(
            "query parameter {name:?} must be a time like 2026-01-31T12:00:00Z, not {text:?}: {error}"
        )),
    }
}
