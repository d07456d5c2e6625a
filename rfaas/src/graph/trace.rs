//! What was done in a run: where, when, with how many bytes.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use rfaas_protocol::edge::{TraceNote, TraceRecord};
use serde_json::{Map, Value, json};

use super::description::Graph;
use super::layout::{Layout, PartLayout};
use super::listed::plain;

/// What was done in a run of a graph that is [traced](Graph::traced).
///
/// ```no_run
/// # fn example(client: &rfaas::Client, graph: &mut rfaas::Graph) -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = client.compile(graph.traced(true))?;
/// let run = graph.submit(b"input")?;
/// let (outputs, trace) = graph.wait_traced(run);
/// for span in &trace.spans {
///     println!("{} on {}: {:?}", span.function, span.node, span.took);
/// }
/// std::fs::write("trace.json", trace.to_chrome_json())?; // for chrome://tracing, or ui.perfetto.dev
/// # drop(outputs);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// One for each worker of each function that has told what it did, in the order of [`Graph`]'s functions.
    pub spans: Vec<Span>,
    /// Workers that have told nothing: function, and which of its workers. They have not done their part, or are gone.
    pub missing: Vec<(String, usize)>,
    /// What led to what: numbers of spans.
    pub edges: Vec<(usize, usize)>,
}

/// What a worker did in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name of the function.
    pub function: String,
    /// Which of its workers, from 0.
    pub worker: usize,
    /// Name of the node.
    pub node: String,
    /// When what the function waits for was there, by the clock of the node; for a batch, when that was put together.
    pub begin: SystemTime,
    /// From then until its outputs were on their way, behind those of the runs before it in a batch.
    pub took: Duration,
    /// Bytes of its inputs.
    pub bytes_in: u32,
    /// Bytes that it returned.
    pub bytes_out: u32,
    /// How often it was called.
    pub calls: u16,
    /// With how many runs at once it was, this one included: one, unless it takes [batches](Graph::batch).
    pub together: u16,
    /// The run had failed here, or before.
    pub failed: bool,
    /// What the function has noted (`rfaas_note`, `docs/functions.md`): a name and a number each.
    pub notes: Vec<(String, i64)>,
}

impl Trace {
    /// Puts together what workers have told: `records` and `nodes` are by worker of the layout, `records` by part of
    /// that, too.
    pub(super) fn of(
        graph: &Graph,
        layout: &Layout,
        mut record: impl FnMut(usize, &PartLayout) -> Option<(TraceRecord, Vec<TraceNote>)>,
        node: impl Fn(usize) -> String,
    ) -> Trace {
        let mut found = Vec::new();
        let mut trace = Trace::default();
        for (number, worker) in layout.workers.iter().enumerate() {
            for part in &worker.parts {
                let function = graph.functions[part.function].name.clone();
                match record(number, part) {
                    None => trace.missing.push((function, part.member)),
                    Some(told) => found.push((part.function, part.member, function, number, told)),
                }
            }
        }
        found.sort_by_key(|(number, member, ..)| (*number, *member));
        for edge in &graph.edges {
            let of = |function: usize| {
                let spans = found.iter().enumerate();
                spans.filter(move |(_, found)| found.0 == function).map(|(span, _)| span)
            };
            trace
                .edges
                .extend(of(edge.from).flat_map(|from| of(edge.to).map(move |to| (from, to))));
        }
        let spans = found.into_iter().map(|(_, worker, function, at, (told, notes))| Span {
            function,
            worker,
            node: node(at),
            begin: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_nanos(told.begin_ns.get()))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            took: Duration::from_nanos(told.took_ns.get()),
            bytes_in: told.bytes_in.get(),
            bytes_out: told.bytes_out.get(),
            calls: told.calls.get(),
            together: told.together.get(),
            failed: told.failed != 0,
            notes: notes.iter().map(noted).collect(),
        });
        trace.spans = spans.collect();
        trace
    }

    /// Returns whether all workers have told what they did.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Returns the spans that lead from `span`, by number.
    pub fn children(&self, span: usize) -> impl Iterator<Item = usize> {
        self.edges.iter().filter(move |(from, _)| *from == span).map(|(_, to)| *to)
    }

    /// Returns the names of the nodes that were used, each once, sorted.
    pub fn nodes(&self) -> Vec<&str> {
        let mut nodes: Vec<_> = self.spans.iter().map(|span| span.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Returns it in the Trace Event Format, which Chrome (`chrome://tracing`) and Perfetto show: a process for each
    /// node, a thread for each worker.
    pub fn to_chrome_json(&self) -> String {
        let nodes = self.nodes();
        let process = |span: &Span| nodes.binary_search(&span.node.as_str()).unwrap_or(0);
        let mut events: Vec<Value> = nodes
            .iter()
            .enumerate()
            .map(|(number, name)| {
                json!({"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}})
            })
            .collect();
        for (number, span) in self.spans.iter().enumerate() {
            events.push(json!({
                "ph": "X", "name": span.function, "cat": "function",
                "pid": process(span), "tid": number,
                "ts": micros(since_epoch(span.begin)), "dur": micros(span.took),
                "args": {
                    "worker": span.worker, "bytes_in": span.bytes_in, "bytes_out": span.bytes_out,
                    "calls": span.calls, "together": span.together, "failed": span.failed,
                    "notes": span.notes.iter().map(|(name, n)| (name.clone(), json!(n))).collect::<Map<_, _>>(),
                },
            }));
        }
        for (number, (from, to)) in self.edges.iter().enumerate() {
            for (phase, span, at) in [("s", from, true), ("f", to, false)] {
                let span_of = &self.spans[*span];
                let end = if at { span_of.took } else { Duration::ZERO };
                events.push(json!({
                    "ph": phase, "bp": "e", "name": "edge", "cat": "edge", "id": number,
                    "pid": process(span_of), "tid": span,
                    "ts": micros(since_epoch(span_of.begin) + end),
                }));
            }
        }
        let missing: Vec<_> =
            self.missing.iter().map(|(name, worker)| json!([name, worker])).collect();
        json!({"traceEvents": events, "otherData": {"missing": missing}}).to_string()
    }

    /// Returns it as spans of OpenTelemetry: a request of OTLP over HTTP in JSON (`/v1/traces`). `id` is that of the
    /// trace; each span has one of it and its number. A span that several lead to has the first as its parent and links
    /// to the others.
    pub fn to_otlp_json(&self, id: u128) -> String {
        let span_id = |number: usize| hex(&(number as u64 + 1).to_be_bytes());
        let trace_id = hex(&id.to_be_bytes());
        let spans: Vec<Value> = self.spans.iter().enumerate().map(|(number, span)| {
            let mut parents = self.edges.iter().filter(|(_, to)| *to == number).map(|(from, _)| *from);
            let begin = since_epoch(span.begin);
            let parent = parents.next().map(span_id).unwrap_or_default();
            let links: Vec<_> = parents
                .map(|from| json!({"traceId": trace_id, "spanId": span_id(from)}))
                .collect();
            let number_of = |key: &str, value: i64| {
                json!({"key": key, "value": {"intValue": value.to_string()}})
            };
            let notes = span.notes.iter().map(|(name, n)| number_of(&format!("rfaas.note.{name}"), *n));
            let attributes = [
                json!({"key": "host.name", "value": {"stringValue": span.node}}),
                number_of("rfaas.worker", span.worker as i64),
                number_of("rfaas.bytes_in", span.bytes_in.into()),
                number_of("rfaas.bytes_out", span.bytes_out.into()),
                number_of("rfaas.calls", span.calls.into()),
                number_of("rfaas.together", span.together.into()),
            ];
            let attributes: Vec<_> = attributes.into_iter().chain(notes).collect();
            json!({
                "traceId": trace_id, "spanId": span_id(number), "parentSpanId": parent,
                "name": span.function, "kind": 1,
                "startTimeUnixNano": begin.as_nanos().to_string(),
                "endTimeUnixNano": (begin + span.took).as_nanos().to_string(),
                "attributes": attributes,
                "links": links,
                "status": {"code": if span.failed { 2 } else { 1 }},
            })
        }).collect();
        let service = json!([{"key": "service.name", "value": {"stringValue": "rfaas"}}]);
        json!({"resourceSpans": [{
            "resource": {"attributes": service},
            "scopeSpans": [{"scope": {"name": "rfaas"}, "spans": spans}],
        }]})
        .to_string()
    }
}

/// Returns what was noted, with a name that can be shown.
fn noted(note: &TraceNote) -> (String, i64) {
    let end = note.key.iter().position(|byte| *byte == 0).unwrap_or(note.key.len());
    (plain(&String::from_utf8_lossy(&note.key[..end])), note.value.get())
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns microseconds, with their fractions.
fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a string takes all
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(function: &str, worker: usize, node: &str, begin_us: u64) -> Span {
        Span {
            function: function.into(),
            worker,
            node: node.into(),
            begin: SystemTime::UNIX_EPOCH + Duration::from_micros(begin_us),
            took: Duration::from_nanos(1500),
            bytes_in: 8,
            bytes_out: 16,
            calls: 1,
            together: 1,
            failed: worker == 1,
            notes: vec![("n".into(), -7)],
        }
    }

    fn diamond() -> Trace {
        let spans = vec![
            span("split", 0, "b", 10),
            span("work", 0, "a", 12),
            span("work", 1, "b", 13),
            span("join", 0, "a", 15),
        ];
        let edges = vec![(0, 1), (0, 2), (1, 3), (2, 3)];
        Trace { spans, missing: vec![("late".into(), 3)], edges }
    }

    #[test]
    fn children_and_nodes_are_those_that_took_part() {
        let trace = diamond();
        assert_eq!(trace.children(0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(trace.children(3).count(), 0);
        assert_eq!(trace.nodes(), ["a", "b"]);
        assert!(!trace.is_complete());
    }

    #[test]
    fn chrome_has_a_process_a_node_and_an_arrow_an_edge() {
        let text: Value = serde_json::from_str(&diamond().to_chrome_json()).unwrap();
        let events = text["traceEvents"].as_array().unwrap();
        let of =
            |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
        assert_eq!(of("M").len(), 2);
        let spans = of("X");
        assert_eq!(
            (spans.len(), &spans[0]["name"], &spans[0]["pid"]),
            (4, &json!("split"), &json!(1))
        );
        assert_eq!((&spans[2]["ts"], &spans[2]["dur"]), (&json!(13.0), &json!(1.5)));
        assert_eq!(spans[0]["args"]["notes"], json!({"n": -7}));
        assert_eq!((of("s").len(), of("f").len()), (4, 4));
        assert_eq!(of("s")[0]["ts"], json!(11.5), "at the end of who leads there");
        assert_eq!(text["otherData"]["missing"], json!([["late", 3]]));
    }

    #[test]
    fn opentelemetry_has_parents_links_and_a_status() {
        let text: Value = serde_json::from_str(&diamond().to_otlp_json(7)).unwrap();
        let spans = text["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        assert_eq!(spans[0]["traceId"], json!("00000000000000000000000000000007"));
        assert_eq!(
            (&spans[0]["parentSpanId"], &spans[0]["spanId"]),
            (&json!(""), &json!("0000000000000001"))
        );
        assert_eq!(spans[3]["parentSpanId"], spans[1]["spanId"]);
        assert_eq!(
            spans[3]["links"],
            json!([{"traceId": spans[0]["traceId"], "spanId": spans[2]["spanId"]}])
        );
        assert_eq!(spans[0]["startTimeUnixNano"], json!("10000"));
        assert_eq!(spans[0]["endTimeUnixNano"], json!("11500"));
        let note = json!({"key": "rfaas.note.n", "value": {"intValue": "-7"}});
        assert!(spans[0]["attributes"].as_array().unwrap().contains(&note));
        assert_eq!(
            (&spans[1]["status"]["code"], &spans[2]["status"]["code"]),
            (&json!(1), &json!(2))
        );
    }
}
