//! A graph in a file: what `rfaas::Graph::read` builds one from.

use std::path::{Path, PathBuf};

use rfaas_protocol::constraints::Constraints;
use serde::Deserialize;

use super::file::{ConfigError, File, Invalid, require};

/// A graph. Functions have names here, by which edges are of them; everything else is as the builder has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFile {
    /// Its functions, in the order of their leases.
    pub functions: Vec<GraphFileFunction>,
    /// Which functions get the input of a run.
    pub inputs: Vec<GraphFileInput>,
    /// What goes from one function to another.
    #[serde(default)]
    pub edges: Vec<GraphFileEdge>,
    /// Which functions return the outputs of a run, in their order.
    pub outputs: Vec<GraphFileOutput>,
    /// What it is called where graphs are listed; this file's name if it is not there.
    pub name: Option<String>,
    /// Memory of the lease of each worker, in MB; the builder's default if it is not there.
    pub memory_mb: Option<u32>,
    /// Time of the leases, in seconds; likewise.
    pub lease_s: Option<u32>,
    /// How many lanes there are: all of them or none.
    pub lanes: Option<usize>,
    /// How many there may be: as many as there is room for.
    pub lanes_up_to: Option<usize>,
    /// Where the workers of a lane may be: anywhere, by default.
    #[serde(default)]
    pub constraints: Constraints,
    /// Whether a run may run more than once.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether workers tell what they do.
    #[serde(default)]
    pub traced: bool,
}

/// A function of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFileFunction {
    /// Its name in this file.
    pub name: String,
    /// Its library: a path from the directory of this file.
    pub library: PathBuf,
    /// Its name in the library, if that is another one.
    pub function: Option<String>,
    /// How many workers call it.
    pub workers: Option<usize>,
    /// The function whose worker it shares.
    pub share: Option<String>,
    /// When it is called.
    #[serde(default)]
    pub join: GraphFileJoin,
    /// The longest wait for further inputs, in milliseconds.
    pub within_ms: Option<u32>,
    /// Whether it may send before it returns.
    #[serde(default)]
    pub emits: bool,
    /// Whether it may say that it is called again.
    #[serde(default)]
    pub again: bool,
    /// With how many runs at once it is called, if it takes batches.
    pub batch: Option<GraphFileBatch>,
}

/// How runs are put together for a function that takes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFileBatch {
    /// The most of them.
    pub most: usize,
    /// How long the first one waits for others, in microseconds.
    #[serde(default)]
    pub wait_us: u32,
}

/// When a function is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphFileJoin {
    /// `"all"`: with all inputs.
    #[default]
    All,
    /// `"any"`: with each, until there is a value.
    Any,
    /// `{"of": 2}`: with so many.
    Of(u32),
}

/// A function that gets the input.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFileInput {
    /// Its name.
    pub to: String,
    /// The largest input, in bytes.
    pub bytes: usize,
}

/// A function whose value is an output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFileOutput {
    /// Its name.
    pub from: String,
    /// The largest output, in bytes.
    pub bytes: usize,
}

/// Something that goes from one function to another.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFileEdge {
    /// Whose value it is, or who calls.
    pub from: String,
    /// Who gets it.
    pub to: String,
    /// The most of it, in bytes.
    pub bytes: usize,
    /// What of it goes to which worker.
    #[serde(default)]
    pub kind: GraphFileEdgeKind,
    /// The largest answer to a call, in bytes: there with that kind, and with no other.
    pub answer_bytes: Option<usize>,
}

/// What goes over an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphFileEdgeKind {
    /// `"whole"`: all, to each worker.
    #[default]
    Whole,
    /// `"each"`: items, each to one worker.
    Each,
    /// `"keyed"`: items, those of a key to the same worker.
    Keyed,
    /// `"call"`: a call while the first one runs.
    Call,
}

impl GraphFile {
    /// Reads the graph at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(path.as_ref())
    }

    /// Returns the place in the file of the function called `name`.
    pub fn function(&self, name: &str) -> Option<usize> {
        self.functions.iter().position(|function| function.name == name)
    }

    fn require_function(&self, name: &str, key: String) -> Result<(), Invalid> {
        if self.function(name).is_some() {
            return Ok(());
        }
        let names: Vec<_> = self.functions.iter().map(|function| &function.name[..]).collect();
        let reason = format!("no function {name:?}; there is {}", names.join(", "));
        Err(Invalid { key, reason })
    }
}

impl File for GraphFile {
    fn validate(&self) -> Result<(), Invalid> {
        require(!self.functions.is_empty(), "functions", "must not be empty")?;
        for (number, function) in self.functions.iter().enumerate() {
            let key = |key| format!("functions[{number}].{key}");
            require(!function.name.is_empty(), &key("name"), "must not be empty")?;
            let is_first = self.function(&function.name) == Some(number);
            let name = &function.name;
            require(is_first, &key("name"), &format!("another function is called {name:?}"))?;
            if let Some(with) = &function.share {
                self.require_function(with, key("share"))?;
            }
        }
        for (number, input) in self.inputs.iter().enumerate() {
            self.require_function(&input.to, format!("inputs[{number}].to"))?;
        }
        for (number, edge) in self.edges.iter().enumerate() {
            let key = |key| format!("edges[{number}].{key}");
            self.require_function(&edge.from, key("from"))?;
            self.require_function(&edge.to, key("to"))?;
            let is_call = edge.kind == GraphFileEdgeKind::Call;
            require(
                is_call == edge.answer_bytes.is_some(),
                &key("answer_bytes"),
                "has to be there if kind is \"call\", and only then",
            )?;
        }
        for (number, output) in self.outputs.iter().enumerate() {
            self.require_function(&output.from, format!("outputs[{number}].from"))?;
        }
        require(self.memory_mb != Some(0), "memory_mb", "must be at least 1")?;
        require(self.lease_s != Some(0), "lease_s", "must be at least 1 (second)")?;
        let both = self.lanes.is_some() && self.lanes_up_to.is_some();
        require(!both, "lanes_up_to", "cannot be there if \"lanes\" is")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // what fails in a helper is the test
mod tests {
    use super::*;

    const GRAPH: &str = r#"{
        "functions": [{"name": "a", "library": "l.so"}, {"name": "b", "library": "l.so"}],
        "inputs": [{"to": "a", "bytes": 64}],
        "edges": [{"from": "a", "to": "b", "bytes": 64}],
        "outputs": [{"from": "b", "bytes": 64}]
    }"#;

    fn error(from: &str, to: &str) -> String {
        assert!(GRAPH.contains(from), "{from}");
        let text = GRAPH.replacen(from, to, 1);
        GraphFile::parse(Path::new("g.json"), text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_there_has_its_default() {
        let graph = GraphFile::parse(Path::new("g.json"), GRAPH.as_bytes()).unwrap();
        assert_eq!(graph.edges[0].kind, GraphFileEdgeKind::Whole);
        assert_eq!(graph.functions[1].join, GraphFileJoin::All);
        assert_eq!((graph.lanes, graph.memory_mb, graph.idempotent), (None, None, false));
        assert_eq!(graph.constraints, Constraints::default());
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let size = "\"bytes\": 64}],\n        \"edges\"";
        for (from, to, words) in [
            ("{", "[", "g.json: line"),
            ("\"functions\"", "\"funktions\"", "funktions"),
            ("\"inputs\"", "\"input\"", "unknown field"),
            ("\"library\": \"l.so\"}", "\"lib\": \"l.so\"}", "functions[0]"),
            ("\"to\": \"a\"", "\"to\": \"c\"", "inputs[0].to: no function \"c\"; there is a, b"),
            ("\"from\": \"a\"", "\"from\": \"x\"", "edges[0].from: no function \"x\""),
            ("\"to\": \"b\"", "\"to\": \"x\"", "edges[0].to: no function \"x\""),
            ("\"from\": \"b\"", "\"from\": \"x\"", "outputs[0].from: no function \"x\""),
            ("\"name\": \"b\"", "\"name\": \"a\"", "functions[1].name: another function"),
            ("\"name\": \"b\"", "\"name\": \"\"", "functions[1].name: must not"),
            ("\"name\": \"b\"", "\"name\": \"b\", \"share\": \"x\"", "functions[1].share: no"),
            ("\"name\": \"b\"", "\"name\": \"b\", \"join\": \"some\"", "functions[1].join"),
            ("\"name\": \"b\"", "\"name\": \"b\", \"batch\": 4", "functions[1].batch"),
            (
                "\"name\": \"b\"",
                "\"name\": \"b\", \"batch\": {}",
                "functions[1].batch: missing field",
            ),
            ("\"to\": \"b\"", "\"to\": \"b\", \"kind\": \"call\"", "edges[0].answer_bytes: has"),
            ("\"to\": \"b\"", "\"to\": \"b\", \"answer_bytes\": 1", "edges[0].answer_bytes: has"),
            ("\"to\": \"b\"", "\"to\": \"b\", \"kind\": \"some\"", "edges[0].kind"),
            (size, &size.replace("64", "\"64\""), "inputs[0].bytes"),
            (size, &size.replace("64", "-64"), "inputs[0].bytes"),
            ("\"inputs\"", "\"constraints\": {\"togeter\": true}, \"inputs\"", "unknown field"),
            (
                "\"inputs\"",
                "\"constraints\": {\"at_least\": -1}, \"inputs\"",
                "constraints.at_least",
            ),
            ("\"inputs\"", "\"constraints\": {\"near\": 7}, \"inputs\"", "constraints.near"),
            ("\"inputs\"", "\"memory_mb\": 0, \"inputs\"", "memory_mb: must be"),
            ("\"inputs\"", "\"lease_s\": 0, \"inputs\"", "lease_s: must be"),
            ("\"inputs\"", "\"lanes\": 1, \"lanes_up_to\": 2, \"inputs\"", "lanes_up_to: cannot"),
        ] {
            let error = error(from, to);
            assert!(error.starts_with("g.json: ") && error.contains(words), "{to}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
