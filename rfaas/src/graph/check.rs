//! Whether a graph can be. Pure.

use rfaas_protocol::edge::MAX_EDGES;

use super::description::Graph;
use crate::error::{Error, Result};

/// Most functions of a graph: each costs a lease, and this process two connections.
pub(super) const MAX_FUNCTIONS: usize = 256;

/// What is wrong with a graph.
fn wrong(what: String) -> Error {
    Error::InvalidGraph(what)
}

/// Checks it. An error says what is wrong, with the names of functions.
pub(super) fn check(graph: &Graph) -> Result<()> {
    let Graph { functions, edges, inputs, outputs, .. } = graph;
    let count = functions.len();
    if !(1..=MAX_FUNCTIONS).contains(&count) {
        return Err(wrong(format!("it has {count} functions, not 1 to {MAX_FUNCTIONS}")));
    }
    let name = |function: usize| functions[function].name.as_str();
    let ends = inputs.iter().chain(outputs).map(|end| (end.function, end.bytes));
    let of_edges = edges.iter().flat_map(|edge| [(edge.from, edge.bytes), (edge.to, edge.bytes)]);
    for (function, bytes) in ends.chain(of_edges) {
        if function >= count {
            return Err(wrong("an edge is of a function of another graph".into()));
        }
        if u32::try_from(bytes).is_err() {
            let name = name(function);
            return Err(wrong(format!(
                "an edge of {name:?} has {bytes} bytes: 4 GiB are too many"
            )));
        }
    }
    let way_back = cycle(count, |function| {
        edges.iter().filter(move |edge| edge.from == function).map(|edge| edge.to)
    });
    if let Some(cycle) = way_back {
        let names: Vec<_> = cycle.into_iter().map(name).collect();
        return Err(wrong(format!("its edges lead back: {}", names.join(" → "))));
    }
    for function in 0..count {
        let input = inputs.iter().filter(|end| end.function == function).count();
        let comes = input + edges.iter().filter(|edge| edge.to == function).count();
        let output = outputs.iter().filter(|end| end.function == function).count();
        let goes = output + edges.iter().filter(|edge| edge.from == function).count();
        let name = name(function);
        match (comes, goes) {
            (0, _) => {
                return Err(wrong(format!("nothing leads to {name:?}: an input, or an edge")));
            }
            (_, 0) => {
                return Err(wrong(format!("nothing leads from {name:?}: an edge, or an output")));
            }
            (2.., _) => {
                let what = format!("{comes} inputs lead to {name:?}; it can have one");
                return Err(wrong(what));
            }
            (_, goes) if goes > MAX_EDGES => {
                let what = format!("{goes} edges lead from {name:?}; {MAX_EDGES} are possible");
                return Err(wrong(what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns a way from a function back to it, with that at both ends.
fn cycle<I: Iterator<Item = usize>>(count: usize, next: impl Fn(usize) -> I) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Not; count];
    for start in 0..count {
        if seen[start] != Seen::Not {
            continue;
        }
        seen[start] = Seen::OnTheWay;
        let mut way = vec![(start, next(start))];
        while let Some((function, followers)) = way.last_mut() {
            match followers.next() {
                None => {
                    seen[*function] = Seen::Done;
                    way.pop();
                }
                Some(to) => match seen[to] {
                    Seen::Done => {}
                    Seen::Not => {
                        seen[to] = Seen::OnTheWay;
                        way.push((to, next(to)));
                    }
                    Seen::OnTheWay => {
                        let on_way = way.iter().map(|(function, _)| *function);
                        let from = on_way.skip_while(|function| *function != to);
                        return Some(from.chain([to]).collect());
                    }
                },
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::GraphFunction;

    fn functions<const N: usize>(names: [&str; N]) -> (Graph, [GraphFunction; N]) {
        let mut graph = Graph::new();
        let functions = names.map(|name| graph.function("lib.so", name));
        (graph, functions)
    }

    fn error(graph: &Graph) -> String {
        check(graph).unwrap_err().to_string()
    }

    #[test]
    fn a_chain_and_a_fan_out_can_be() {
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 64).edge(a, b, 64).edge(b, c, 64).output(c, 64);
        assert!(check(&graph).is_ok());
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 64).edge(a, b, 64).edge(a, c, 64).output(b, 64).output(c, 64);
        graph.output(a, 64);
        assert!(check(&graph).is_ok());
    }

    #[test]
    fn a_function_that_nothing_leads_to_or_from_is_named() {
        assert!(error(&Graph::new()).contains("0 functions"));
        let (mut graph, [a, b]) = functions(["a", "b"]);
        graph.input(a, 64).output(a, 64);
        assert!(error(&graph).contains("nothing leads to \"b\""));
        graph.edge(a, b, 64);
        assert!(error(&graph).contains("nothing leads from \"b\""));
        graph.output(b, 64).input(b, 64);
        assert!(error(&graph).contains("2 inputs lead to \"b\""));
    }

    #[test]
    fn sizes_and_foreign_functions_are_found() {
        let (mut graph, [a]) = functions(["a"]);
        graph.input(a, 1 << 32).output(a, 64);
        assert!(error(&graph).contains("4 GiB"));
        let (mut graph, [a]) = functions(["a"]);
        let (_, [other]) = functions(["a"]);
        graph.input(a, 64).output(other, 64);
        assert!(error(&graph).contains("another graph"));
        let (mut graph, [a]) = functions(["a"]);
        graph.input(a, 64);
        for _ in 0..65 {
            graph.output(a, 64);
        }
        assert!(error(&graph).contains("65 edges"));
    }

    #[test]
    fn a_way_back_is_told_with_its_names() {
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 1).edge(a, b, 1).edge(b, c, 1).edge(c, b, 1).output(c, 1);
        assert!(error(&graph).contains("its edges lead back: b → c → b"), "{}", error(&graph));
        let edges = |edges: &'static [(usize, usize)]| {
            move |from: usize| edges.iter().filter(move |edge| edge.0 == from).map(|edge| edge.1)
        };
        assert_eq!(cycle(4, edges(&[(0, 1), (1, 2), (0, 2), (2, 3)])), None);
        assert_eq!(cycle(4, edges(&[(0, 1), (1, 2), (2, 3), (3, 1)])), Some(vec![1, 2, 3, 1]));
        assert_eq!(cycle(1, edges(&[(0, 0)])), Some(vec![0, 0]));
    }
}
