//! What the resource manager is told of a graph, for people who look who runs what where (`GET /graphs`).

use rfaas_protocol::lease::{
    GraphWorker, LeaseId, MAX_FUNCTION_NAMES_BYTES, MAX_GRAPH, MAX_GRAPH_NAME_BYTES,
};
use rfaas_protocol::{Secret, Text};

use super::description::Graph;
use super::layout::Layout;

/// Stands for functions whose names do not fit.
const MORE: &str = "…";

/// A compiled graph as it is listed.
pub(super) struct Listed {
    id: u64,
    name: Text<MAX_GRAPH_NAME_BYTES>,
}

impl Listed {
    /// Draws a number for `graph`.
    pub(super) fn new(graph: &Graph) -> Self {
        let random = u128::from_le_bytes(Secret::generate().0);
        let id = (random % u128::from(MAX_GRAPH)) as u64 + 1; // below `MAX_GRAPH`
        Listed { id, name: Text::truncated(&graph.shown_name()) }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Returns what is told of the worker of this lane, whose lease is `lease`.
    pub(super) fn worker(
        &self,
        graph: &Graph,
        layout: &Layout,
        (lane, worker): (usize, usize),
        lease: LeaseId,
    ) -> GraphWorker {
        let parts = layout.workers.get(worker).map_or(&[][..], |worker| &worker.parts);
        let names = parts.iter().filter_map(|part| graph.functions.get(part.function));
        GraphWorker {
            lease: lease.get().into(),
            graph: self.id.into(),
            lane: (lane as u16).into(), // both are few
            worker: (worker as u16).into(),
            name: self.name,
            functions: lines(names.map(|function| plain(&function.name))),
        }
    }
}

/// Returns `text` as one line of a list.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Returns a line for each name, as far as they fit.
fn lines(names: impl Iterator<Item = String>) -> Text<MAX_FUNCTION_NAMES_BYTES> {
    let names: Vec<_> = names.collect();
    let all = names.join("\n");
    if let Some(all) = Text::new(&all) {
        return all;
    }
    let mut fitting = String::new();
    for name in &names {
        if fitting.len() + name.len() + 1 + MORE.len() > MAX_FUNCTION_NAMES_BYTES {
            break;
        }
        fitting.push_str(name);
        fitting.push('\n');
    }
    Text::truncated(&(fitting + MORE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_what_does_not_fit_is_said_to_be_missing() {
        let of = |names: &[String]| lines(names.iter().cloned()).get().unwrap().to_owned();
        let names = |count: usize, bytes: usize| vec!["f".repeat(bytes); count];
        assert_eq!(of(&names(2, 3)), "fff\nfff");
        assert_eq!(of(&names(64, 3)).lines().count(), 64); // 255 bytes
        for (count, bytes, fit) in [(65, 3, 63), (2, 200, 1), (1, 257, 0), (300, 1, 126)] {
            let text = of(&names(count, bytes));
            let lines: Vec<_> = text.lines().collect();
            assert_eq!((lines.len(), lines[fit]), (fit + 1, "…"), "{text}");
            assert!(lines[..fit].iter().all(|line| line.len() == bytes), "{text}");
            assert!(text.len() <= MAX_FUNCTION_NAMES_BYTES);
        }
        assert_eq!(plain("a\nb\u{7f}"), "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn each_compiled_graph_has_a_number_of_its_own() {
        let graph = Graph::new();
        let numbers: Vec<_> = (0..100).map(|_| Listed::new(&graph).id()).collect();
        assert!(numbers.iter().all(|id| (1..=MAX_GRAPH).contains(id)));
        assert!(numbers.iter().skip(1).all(|id| *id != numbers[0]));
    }
}
