//! A graph that a file describes, and one that is checked without a cluster.

use std::path::Path;
use std::time::Duration;

use rfaas_config::{GraphFile, GraphFileEdgeKind, GraphFileJoin};
use rfaas_protocol::Text;
use rfaas_protocol::lease::MAX_GRAPH_NAME_BYTES;

use super::compile::read_libraries;
use super::description::{Graph, GraphFunction, Join};
use super::lane::Lanes;
use super::layout::lay_out;
use super::listed::plain;
use crate::error::Result;
use crate::library::KnownLibraries;

impl Graph {
    /// Reads a graph from the JSON file at `path`, whose keys `docs/graphs.md` explains. Paths of libraries that are
    /// relative begin at the directory of the file.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) names the file and the key. Whether the graph can be is seen when it is
    /// [checked](Self::check) or compiled.
    ///
    /// ```no_run
    /// # fn example(client: &rfaas::Client) -> rfaas::Result<()> {
    /// let graph = rfaas::Graph::read("words.json")?;
    /// print!("{graph}"); // what leads where
    /// let outputs = client.compile(&graph)?.run(b"to be or not to be")?;
    /// # drop(outputs);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read(path: impl AsRef<Path>) -> Result<Graph> {
        let path = path.as_ref();
        let file = GraphFile::load(path)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut graph = built(&file, directory);
        if let (None, Some(name)) = (&graph.name, path.file_stem()) {
            let name: Text<MAX_GRAPH_NAME_BYTES> = Text::truncated(&plain(&name.to_string_lossy()));
            graph.name = name.get().ok().map(Into::into);
        }
        Ok(graph)
    }

    /// Checks what can be checked without a cluster: that its libraries can be read and have its functions, and that it
    /// can be. Compiling does so, too.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`](crate::Error::InvalidGraph),
    /// [`Error::LibraryUnreadable`](crate::Error::LibraryUnreadable),
    /// [`Error::Library`](crate::Error::Library), [`Error::UnknownFunction`](crate::Error::UnknownFunction).
    pub fn check(&self) -> Result<()> {
        lay_out(self)?;
        read_libraries(&KnownLibraries::default(), self).map(drop)
    }
}

/// Makes the graph of `file`, which is valid.
fn built(file: &GraphFile, directory: &Path) -> Graph {
    let mut graph = Graph::new();
    let functions: Vec<GraphFunction> = file
        .functions
        .iter()
        .map(|function| {
            let name = function.function.as_ref().unwrap_or(&function.name);
            graph.function(directory.join(&function.library), name)
        })
        .collect();
    // A name that no function had was refused before.
    let of = |name: &str| file.function(name).and_then(|at| functions.get(at).copied());
    for (described, &function) in file.functions.iter().zip(&functions) {
        if let Some(workers) = described.workers {
            graph.workers(function, workers);
        }
        if let Some(with) = described.share.as_deref().and_then(of) {
            graph.share(function, with);
        }
        graph.join(
            function,
            match described.join {
                GraphFileJoin::All => Join::All,
                GraphFileJoin::Any => Join::Any,
                GraphFileJoin::Of(inputs) => Join::Of(inputs),
            },
        );
        if let Some(within) = described.within_ms {
            graph.within(function, Duration::from_millis(within.into()));
        }
        if let Some(batch) = described.batch {
            graph.batch(function, batch.most, Duration::from_micros(batch.wait_us.into()));
        }
        if described.emits {
            graph.emits(function);
        }
        if described.again {
            graph.again(function);
        }
    }
    for input in &file.inputs {
        if let Some(to) = of(&input.to) {
            graph.input(to, input.bytes);
        }
    }
    for edge in &file.edges {
        let (Some(from), Some(to)) = (of(&edge.from), of(&edge.to)) else { continue };
        match edge.kind {
            GraphFileEdgeKind::Whole => graph.edge(from, to, edge.bytes),
            GraphFileEdgeKind::Each => graph.each(from, to, edge.bytes),
            GraphFileEdgeKind::Keyed => graph.keyed(from, to, edge.bytes),
            GraphFileEdgeKind::Call => {
                graph.call(from, to, edge.bytes, edge.answer_bytes.unwrap_or(0))
            }
        };
    }
    for output in &file.outputs {
        if let Some(from) = of(&output.from) {
            graph.output(from, output.bytes);
        }
    }
    if let Some(memory_mb) = file.memory_mb {
        graph.memory_mb(memory_mb);
    }
    if let Some(seconds) = file.lease_s {
        graph.lease_time(Duration::from_secs(seconds.into()));
    }
    if let Some(lanes) = file.lanes {
        graph.lanes(Lanes::exactly(lanes));
    }
    if let Some(lanes) = file.lanes_up_to {
        graph.lanes(Lanes::up_to(lanes));
    }
    graph.lease.constraints.clone_from(&file.constraints);
    graph.idempotent(file.idempotent).traced(file.traced);
    graph.name.clone_from(&file.name);
    graph
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_has_everything_that_the_builder_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph.json");
        let text = r#"{
            "functions": [
                {"name": "a", "library": "l.so", "emits": true},
                {"name": "b", "library": "/m.so", "function": "other", "workers": 3},
                {"name": "c", "library": "l.so", "join": {"of": 2}, "within_ms": 7},
                {"name": "d", "library": "l.so", "share": "a", "again": true},
                {"name": "e", "library": "l.so", "join": "any"},
                {"name": "f", "library": "l.so", "join": "all"},
                {"name": "g", "library": "l.so", "batch": {"most": 25, "wait_us": 26}},
                {"name": "h", "library": "l.so", "batch": {"most": 27}}
            ],
            "inputs": [{"to": "a", "bytes": 10}, {"to": "e", "bytes": 11}],
            "edges": [
                {"from": "a", "to": "b", "bytes": 12, "kind": "keyed"},
                {"from": "b", "to": "c", "bytes": 13, "kind": "whole"},
                {"from": "a", "to": "d", "bytes": 14},
                {"from": "e", "to": "c", "bytes": 15, "kind": "each"},
                {"from": "c", "to": "f", "bytes": 16, "kind": "call", "answer_bytes": 17}
            ],
            "outputs": [{"from": "c", "bytes": 18}, {"from": "d", "bytes": 19}],
            "memory_mb": 20, "lease_s": 21, "lanes_up_to": 22, "idempotent": true, "traced": true,
            "constraints": {
                "together": true, "apart": true, "near": "n1", "leave_free": 23, "at_least": 24,
                "has": ["gpu", "rack=7"], "nodes": ["n1", "n2"]
            }
        }"#;
        fs::write(&path, text).unwrap();
        let read = Graph::read(&path).unwrap();

        let mut graph = Graph::new();
        let own = directory.path().join("l.so");
        let a = graph.function(&own, "a");
        let b = graph.function("/m.so", "other");
        let [c, d, e, f, g, h] =
            ["c", "d", "e", "f", "g", "h"].map(|name| graph.function(&own, name));
        graph.emits(a).workers(b, 3).join(c, Join::Of(2)).within(c, Duration::from_millis(7));
        graph.share(d, a).again(d).join(e, Join::Any);
        graph.batch(g, 25, Duration::from_micros(26)).batch(h, 27, Duration::ZERO);
        graph.input(a, 10).input(e, 11).keyed(a, b, 12).edge(b, c, 13).edge(a, d, 14);
        graph.each(e, c, 15).call(c, f, 16, 17).output(c, 18).output(d, 19);
        graph.memory_mb(20).lease_time(Duration::from_secs(21));
        graph.lanes(Lanes::up_to(22)).idempotent(true).traced(true);
        graph.together().apart().near("n1").leave_free(23).at_least(24).has("gpu").has("rack=7");
        graph.nodes(["n1", "n2"]);
        assert_eq!(graph.to_string(), read.to_string());
        let described = |graph: &Graph| {
            let text = format!("{graph:?}");
            text.split_once("functions").map(|(_, parts)| parts.to_owned()).unwrap()
        };
        assert_eq!(described(&graph), described(&read), "each part, but not which graph it is");

        fs::write(&path, text.replace("_up_to", "")).unwrap();
        graph.lanes(Lanes::exactly(22));
        assert_eq!(described(&graph), described(&Graph::read(&path).unwrap()));

        // It is called as its file is, unless it has a name.
        assert_eq!(read.name.as_deref(), Some("graph"));
        fs::write(&path, text.replace("\"memory_mb\"", "\"name\": \"n\", \"memory_mb\"")).unwrap();
        assert_eq!(Graph::read(&path).unwrap().name.as_deref(), Some("n"));
        let long = directory.path().join(format!("{}ü.json", "x".repeat(63)));
        fs::copy(directory.path().join("graph.json"), &long).unwrap();
        fs::write(&long, text).unwrap();
        assert_eq!(Graph::read(&long).unwrap().name.unwrap(), "x".repeat(63));
    }

    #[test]
    fn the_guide_has_a_graph_and_its_picture() {
        let guide = include_str!("../../../docs/graphs.md");
        let block = |begin: &str| {
            let (_, rest) = guide.split_once(begin).unwrap();
            rest.split_once("```").unwrap().0
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("words.json");
        fs::write(&path, block("```json\n")).unwrap();
        let graph = built(&GraphFile::load(&path).unwrap(), Path::new(""));
        lay_out(&graph).unwrap();
        assert_eq!(graph.to_string(), block("are:\n```\n"));
    }

    #[test]
    fn what_is_wrong_is_told_without_a_cluster() {
        let mut graph = Graph::new();
        let a = graph.function("/nowhere/lib.so", "a");
        graph.input(a, 1);
        let error = graph.check().unwrap_err().to_string();
        assert!(error.contains("nothing leads from \"a\""), "{error}");
        graph.output(a, 1).lanes(Lanes::exactly(0));
        assert!(graph.check().unwrap_err().to_string().contains("0 lanes"));
        graph.lanes(Lanes::exactly(1));
        let error = graph.check().unwrap_err().to_string();
        assert!(error.contains("/nowhere/lib.so"), "{error}");
        let error = Graph::read("/nowhere/graph.json").unwrap_err().to_string();
        assert!(error.contains("/nowhere/graph.json: cannot be read"), "{error}");
    }
}
