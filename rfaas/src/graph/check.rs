//! Whether a graph can be. Pure.

use rfaas_protocol::constraints::MAX_GANG;
use rfaas_protocol::edge::MAX_EDGES;
use rfaas_protocol::invocation::MAX_SLOTS;
use rfaas_protocol::lease::MAX_GRAPH_NAME_BYTES;

use super::description::{Edge, EdgeKind, Graph, Join};
use super::lane::Lanes;
use crate::error::{Error, Result};

/// Most workers of a graph: each costs a lease, and this process two connections.
pub(super) const MAX_WORKERS: usize = 256;
/// Most lanes of a graph.
const MAX_LANES: usize = 256;
/// Most functions of a graph, and so of a worker that they share: as many as an executor takes for one.
const MAX_FUNCTIONS: usize = 1024;
/// Most bytes of an edge, and of all that come to a worker, are less than this.
pub(super) const TOO_LARGE: usize = 1 << 32;

/// What is wrong with a graph.
pub(super) fn wrong(what: String) -> Error {
    Error::InvalidGraph(what)
}

/// Checks it. Returns its functions, each behind those that lead to it. An error says what is wrong, with the names of
/// functions.
pub(super) fn check(graph: &Graph) -> Result<Vec<usize>> {
    let Graph { functions, edges, inputs, outputs, .. } = graph;
    let count = functions.len();
    if count == 0 {
        return Err(wrong("it has no functions".into()));
    }
    if count > MAX_FUNCTIONS {
        return Err(wrong(format!("it has {count} functions; {MAX_FUNCTIONS} are possible")));
    }
    let name = |function: usize| functions[function].name.as_str();
    let ends = inputs.iter().chain(outputs).map(|end| (end.function, end.bytes));
    let of_edges = edges.iter().flat_map(|edge| {
        let answer = if let EdgeKind::Call(bytes) = edge.kind { bytes } else { 0 };
        [(edge.from, edge.bytes.max(answer)), (edge.to, edge.bytes)]
    });
    for (function, bytes) in ends.chain(of_edges) {
        if function >= count {
            return Err(wrong("an edge is of a function of another graph".into()));
        }
        if bytes >= TOO_LARGE {
            let name = name(function);
            return Err(wrong(format!(
                "an edge of {name:?} has {bytes} bytes: 4 GiB are too many"
            )));
        }
    }
    check_placement(graph, check_workers(graph)?)?;
    if let Some(name) = &graph.name {
        let bytes = name.len();
        if !(1..=MAX_GRAPH_NAME_BYTES).contains(&bytes) {
            let what = format!("its name has {bytes} bytes, not 1 to {MAX_GRAPH_NAME_BYTES}");
            return Err(wrong(what));
        }
        if name.chars().any(char::is_control) {
            return Err(wrong("its name has a control character".into()));
        }
    }
    let Lanes { least, most } = graph.lanes;
    if least == 0 || !(least..=MAX_LANES).contains(&most) {
        return Err(wrong(format!("it has {most} lanes, not 1 to {MAX_LANES}")));
    }
    let names = |cycle: Vec<usize>| {
        let names: Vec<_> = cycle.into_iter().map(name).collect();
        names.join(" → ")
    };
    let order = order(count, |function| {
        edges.iter().filter(move |edge| edge.from == function).map(|edge| edge.to)
    });
    let order = order.map_err(|cycle| wrong(format!("its edges lead back: {}", names(cycle))))?;
    for function in 0..count {
        check_function(graph, function)?;
    }
    check_calls(graph)?;
    Ok(order)
}

/// Checks that the constraints can be asked for, for a lane of so many workers.
fn check_placement(graph: &Graph, workers: usize) -> Result<()> {
    let leases = u32::try_from(workers).unwrap_or(u32::MAX);
    graph.lease.constraints.check(leases).map_err(Error::InvalidConstraint)?;
    match graph.of_all_leases().next().filter(|_| leases > MAX_GANG) {
        Some(constraint) => Err(Error::InvalidConstraint(format!(
            "{constraint} is for lanes of at most {MAX_GANG} workers, which are leased in one request; this has \
             {workers}"
        ))),
        None => Ok(()),
    }
}

/// Checks which functions share a worker. Returns how many workers there are.
fn check_workers(graph: &Graph) -> Result<usize> {
    let functions = &graph.functions;
    let mut workers = 0;
    for described in functions {
        let name = &described.name;
        match described.shares {
            None if described.workers == 0 || described.workers > MAX_EDGES => {
                let count = described.workers;
                let what = format!("{name:?} has {count} workers, not 1 to {MAX_EDGES}");
                return Err(wrong(what));
            }
            None => workers += described.workers,
            Some(with) => {
                let why = match functions.get(with) {
                    None => "is of another graph",
                    Some(with) if with.shares.is_some() => "has no worker of its own",
                    Some(with) if with.workers != 1 || described.workers != 1 => {
                        "is not called by one worker, as both have to be"
                    }
                    Some(with) if with.library != described.library => "is of another library",
                    Some(_) => continue,
                };
                let with = functions.get(with).map_or("", |with| &with.name);
                let what = format!("{name:?} cannot share the worker of {with:?}, which {why}");
                return Err(wrong(what));
            }
        }
    }
    match workers > MAX_WORKERS {
        true => Err(wrong(format!("it has {workers} workers; {MAX_WORKERS} are possible"))),
        false => Ok(workers),
    }
}

/// Checks what comes to a function and goes from it.
fn check_function(graph: &Graph, function: usize) -> Result<()> {
    let described = &graph.functions[function];
    let name = &described.name;
    let workers = |function: usize| graph.functions[function].workers;
    let (mut items, mut keyed, mut called, mut calls, mut leads) = (0, 0, 0, 0, 0);
    let mut comes = graph.inputs.iter().filter(|end| end.function == function).count();
    for edge in &graph.edges {
        if edge.to == function {
            comes += workers(edge.from);
            match edge.kind {
                EdgeKind::Each => items += 1,
                EdgeKind::Keyed => keyed += 1,
                EdgeKind::Call(_) => called += 1,
                EdgeKind::Whole => {}
            }
        }
        if edge.from == function {
            leads += 1;
            calls += usize::from(matches!(edge.kind, EdgeKind::Call(_)));
        }
    }
    let outputs = graph.outputs.iter().filter(|end| end.function == function).count();
    let goes = leads - calls + outputs;
    // Two more tell the client of its end, and what it did.
    let most_edges = MAX_EDGES - 2;
    // Answers come, too, and what it made when it is called again.
    let most_inputs = MAX_EDGES - calls - 1;
    let what = match described.join {
        _ if comes == 0 => format!("nothing leads to {name:?}: an input, or an edge"),
        _ if goes == 0 && called == 0 => {
            format!("nothing leads from {name:?}: an edge, or an output")
        }
        _ if comes > most_inputs => {
            format!("{comes} inputs lead to {name:?}; {most_inputs} are possible")
        }
        _ if goes + calls > most_edges => {
            let goes = goes + calls;
            format!("{goes} edges lead from {name:?}; {most_edges} are possible")
        }
        _ if items > 0 && keyed > 0 => {
            format!("items come to {name:?} one by one and by key; they can do one of both")
        }
        Join::Of(wanted) if wanted == 0 || wanted as usize > comes => {
            format!("{name:?} waits for {wanted} of {comes} inputs")
        }
        Join::Any if items + keyed > 0 => {
            format!("{name:?} is tried with each input, and gets items: it can do one of both")
        }
        Join::Any if described.within.is_some() => {
            format!("{name:?} is tried with each input as it comes, so it waits for none")
        }
        _ if described.again && items + keyed > 0 => {
            format!("{name:?} gets items: it cannot be called again")
        }
        _ if (described.sends || calls > 0) && items + keyed > 0 => {
            format!("{name:?} gets items: it cannot send before it returns, or call another one")
        }
        Join::Any if described.sends => {
            format!("{name:?} is tried with each input: it cannot send before it returns")
        }
        _ if described.batch.is_some() => match batch_with(graph, function, comes, calls, called) {
            Some(what) => format!("{name:?} takes batches: {what}"),
            None => return Ok(()),
        },
        _ => match described.within.map(|within| u32::try_from(within.as_millis())) {
            Some(Ok(0)) => format!("{name:?} waits for less than a millisecond"),
            Some(Err(_)) => format!("{name:?} waits for longer than 49 days"),
            Some(Ok(_)) | None => return Ok(()),
        },
    };
    Err(wrong(what))
}

/// Returns why a function cannot take batches, if so. What comes to it, how many functions it calls and by how many it
/// is called is known.
fn batch_with(
    graph: &Graph,
    function: usize,
    comes: usize,
    calls: usize,
    called: usize,
) -> Option<String> {
    let described = &graph.functions[function];
    let (most, wait) = described.batch?;
    let of_items = |edge: &&Edge| matches!(edge.kind, EdgeKind::Each | EdgeKind::Keyed);
    let gets_items =
        graph.edges.iter().filter(|edge| edge.to == function).any(|edge| of_items(&edge));
    let shared = graph.functions.iter().any(|other| other.shares == Some(function));
    Some(match () {
        () if !(1..=MAX_SLOTS).contains(&most) => {
            format!("{most} runs at once, not 1 to {MAX_SLOTS}")
        }
        () if u32::try_from(wait.as_micros()).is_err() => {
            "a run cannot wait for longer than 71 minutes".into()
        }
        () if gets_items => "it cannot get items".into(),
        () if comes > 1 => format!("{comes} inputs lead to it, and it can have one"),
        () if described.join != Join::All || described.within.is_some() => {
            "it has one input, and can have no join".into()
        }
        () if described.shares.is_some() || shared => "it cannot share a worker".into(),
        () if described.again => "it cannot be called again".into(),
        () if described.sends => "it cannot send before it returns".into(),
        () if calls > 0 => "it cannot call another one".into(),
        () if called > 0 => "it cannot be called by another one".into(),
        () => return None,
    })
}

/// Checks calls from one function to another one.
fn check_calls(graph: &Graph) -> Result<()> {
    let functions = &graph.functions;
    let host = |function: usize| functions[function].shares.unwrap_or(function);
    let calls = || graph.edges.iter().filter(|edge| matches!(edge.kind, EdgeKind::Call(_)));
    for call in calls() {
        let (from, to) = (&functions[call.from].name, &functions[call.to].name);
        let of_callee =
            graph.edges.iter().filter(|edge| edge.from == call.to || edge.to == call.to);
        let is_called_only = of_callee.count() == 1;
        let has_end = graph.inputs.iter().chain(&graph.outputs).any(|end| end.function == call.to);
        let what = if functions[call.from].workers != 1 || functions[call.to].workers != 1 {
            format!("{from:?} calls {to:?}: both have one worker then")
        } else if !is_called_only || has_end {
            format!("{from:?} calls {to:?}: nothing else leads to that or from it then")
        } else if functions[call.to].sends
            || functions[call.to].join != Join::All
            || functions[call.to].within.is_some()
        {
            format!("{from:?} calls {to:?}: that has one input, and answers when it returns")
        } else {
            continue;
        };
        return Err(wrong(what));
    }
    // A worker that waits for an answer answers nobody meanwhile.
    let back = order(functions.len(), |worker| {
        let of_worker = calls().filter(move |edge| host(edge.from) == worker);
        of_worker.map(|edge| host(edge.to))
    });
    back.map(|_| ()).map_err(|cycle| {
        let names: Vec<_> =
            cycle.into_iter().map(|worker| functions[worker].name.as_str()).collect();
        wrong(format!("workers call each other: those of {}", names.join(" → ")))
    })
}

/// Returns the functions so that each is behind those that lead to it; or a way from one back to it, with that at both
/// ends.
fn order<I: Iterator<Item = usize>>(
    count: usize,
    next: impl Fn(usize) -> I,
) -> std::result::Result<Vec<usize>, Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Not; count];
    let mut done = Vec::with_capacity(count);
    for start in (0..count).rev() {
        if seen[start] != Seen::Not {
            continue;
        }
        seen[start] = Seen::OnTheWay;
        let mut way = vec![(start, next(start))];
        while let Some((function, followers)) = way.last_mut() {
            match followers.next() {
                None => {
                    seen[*function] = Seen::Done;
                    done.push(*function);
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
                        return Err(from.chain([to]).collect());
                    }
                },
            }
        }
    }
    done.reverse();
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert!(error(&Graph::new()).contains("no functions"));
        let (mut graph, [a, b]) = functions(["a", "b"]);
        graph.input(a, 64).output(a, 64);
        assert!(error(&graph).contains("nothing leads to \"b\""));
        graph.edge(a, b, 64);
        assert!(error(&graph).contains("nothing leads from \"b\""));
        graph.output(b, 64).input(b, 64);
        assert_eq!(check(&graph).unwrap(), [0, 1]);
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
        assert!(error(&graph).contains("65 edges"), "{}", error(&graph));
    }

    #[test]
    fn a_name_fits_into_a_list_or_is_refused() {
        let (mut graph, [a]) = functions(["a"]);
        graph.input(a, 1).output(a, 1);
        assert_eq!(graph.shown_name(), graph.functions[0].library.to_str().unwrap());
        graph.name("x".repeat(64));
        check(&graph).unwrap();
        graph.name("x".repeat(65));
        assert!(error(&graph).contains("its name has 65 bytes"), "{}", error(&graph));
        graph.name("");
        assert!(error(&graph).contains("its name has 0 bytes"));
        graph.name("a\nb");
        assert!(error(&graph).contains("a control character"));
    }

    #[test]
    fn a_way_back_is_told_with_its_names() {
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 1).edge(a, b, 1).edge(b, c, 1).edge(c, b, 1).output(c, 1);
        assert!(error(&graph).contains("its edges lead back: c → b → c"), "{}", error(&graph));
        let edges = |edges: &'static [(usize, usize)]| {
            move |from: usize| edges.iter().filter(move |edge| edge.0 == from).map(|edge| edge.1)
        };
        assert_eq!(order(4, edges(&[(3, 1), (1, 2), (3, 2), (2, 0)])), Ok(vec![3, 1, 2, 0]));
        assert_eq!(order(4, edges(&[(0, 1), (1, 2), (2, 3), (3, 1)])), Err(vec![3, 1, 2, 3]));
        assert_eq!(order(1, edges(&[(0, 0)])), Err(vec![0, 0]));
    }

    type Describe = dyn for<'a> Fn(&'a mut Graph, [GraphFunction; 3]) -> &'a mut Graph;

    #[test]
    fn what_workers_joins_and_calls_cannot_be_is_told() {
        let wrong = |describe: &Describe, words: &str| {
            let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
            graph.input(a, 64).edge(a, c, 64).output(c, 64);
            describe(&mut graph, [a, b, c]);
            assert!(error(&graph).contains(words), "{words}: {}", error(&graph));
        };
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).workers(b, 0), "0 workers");
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).workers(b, 65), "65 workers");
        wrong(
            &|graph, [a, b, c]| graph.edge(a, b, 1).output(b, 1).workers(c, 2).share(b, c),
            "one worker",
        );
        wrong(&|graph, [a, b, c]| graph.share(c, a).share(b, c), "no worker of its own");
        wrong(&|graph, [a, b, c]| graph.edge(a, b, 1).edge(b, c, 1).join(c, Join::Of(3)), "3 of 2");
        wrong(&|graph, [a, b, c]| graph.edge(a, b, 1).edge(b, c, 1).join(c, Join::Of(0)), "0 of 2");
        wrong(
            &|graph, [a, b, c]| graph.each(a, b, 1).keyed(a, b, 1).edge(b, c, 1),
            "one by one and by key",
        );
        wrong(
            &|graph, [a, b, c]| graph.each(a, b, 1).edge(b, c, 1).join(b, Join::Any),
            "tried with each",
        );
        wrong(&|graph, [a, b, c]| graph.each(a, b, 1).edge(b, c, 1).again(b), "called again");
        wrong(
            &|graph, [a, b, c]| {
                graph.edge(a, b, 1).edge(b, c, 1).within(b, Duration::from_micros(9))
            },
            "less than",
        );
        wrong(&|graph, [a, b, c]| graph.call(a, b, 1, 1).edge(b, c, 1), "nothing else leads to");
        wrong(&|graph, [a, b, _]| graph.call(a, b, 1, 1).output(b, 1), "nothing else leads to");
        wrong(&|graph, [a, b, _]| graph.call(a, b, 1, 1).workers(a, 2), "one worker then");
        wrong(&|graph, [a, b, _]| graph.call(a, b, 1, 1).emits(b), "answers when it returns");
        wrong(
            &|graph, [a, b, _]| graph.call(a, b, 1, 1).within(b, Duration::from_secs(1)),
            "answers when",
        );
        wrong(&|graph, [a, b, c]| graph.each(a, b, 1).edge(b, c, 1).emits(b), "cannot send before");
        wrong(
            &|graph, [a, b, c]| graph.edge(a, b, 1).edge(b, c, 1).join(c, Join::Any).emits(c),
            "cannot send",
        );
        wrong(
            &|graph, [a, b, _]| graph.call(a, b, 1, 1).share(b, a),
            "workers call each other: those of a → a",
        );
    }

    #[test]
    fn what_a_function_that_takes_batches_cannot_be_is_told() {
        const MAX_WAIT: Duration = Duration::from_micros(u32::MAX as u64);
        let wrong = |describe: &Describe, words: &str| {
            let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
            graph.input(a, 64).edge(a, c, 64).output(c, 64).batch(b, MAX_SLOTS, MAX_WAIT);
            describe(&mut graph, [a, b, c]);
            let error = error(&graph);
            assert!(error.contains("\"b\" takes batches: ") && error.contains(words), "{error}");
        };
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).batch(b, 0, MAX_WAIT), "0 runs");
        wrong(
            &|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).batch(b, 1025, MAX_WAIT),
            "1025 runs at once, not 1 to 1024",
        );
        wrong(
            &|graph, [a, b, _]| {
                let wait = MAX_WAIT + Duration::from_micros(1);
                graph.edge(a, b, 1).output(b, 1).batch(b, 1, wait)
            },
            "71 minutes",
        );
        wrong(&|graph, [a, b, _]| graph.each(a, b, 1).output(b, 1), "cannot get items");
        wrong(&|graph, [a, b, _]| graph.keyed(a, b, 1).output(b, 1), "cannot get items");
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).input(b, 1).output(b, 1), "2 inputs");
        wrong(
            &|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).workers(a, 3),
            "3 inputs lead to it",
        );
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).join(b, Join::Of(1)), "no join");
        wrong(
            &|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).within(b, Duration::from_secs(1)),
            "no join",
        );
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).share(b, a), "share a worker");
        wrong(&|graph, [a, b, c]| graph.edge(a, b, 1).output(b, 1).share(c, b), "share a worker");
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).again(b), "called again");
        wrong(&|graph, [a, b, _]| graph.edge(a, b, 1).output(b, 1).emits(b), "before it returns");
        wrong(&|graph, [a, b, _]| graph.call(a, b, 1, 1), "called by another one");
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 1).edge(a, b, 1).output(b, 1).call(b, c, 1, 1).batch(b, 1, MAX_WAIT);
        assert!(error(&graph).contains("cannot call another one"), "{}", error(&graph));
        // It may have several workers, and deal out items to others.
        let (mut graph, [a, b, c]) = functions(["a", "b", "c"]);
        graph.input(a, 1).edge(a, b, 1).each(b, c, 64).output(c, 64).workers(b, 2).workers(c, 3);
        assert!(check(graph.batch(b, MAX_SLOTS, MAX_WAIT)).is_ok());
    }

    #[test]
    fn constraints_that_cannot_be_asked_for_are_refused_by_their_names() {
        let wrong = |workers: usize, describe: &dyn Fn(&mut Graph) -> &mut Graph, words: &str| {
            let (mut graph, [a]) = functions(["a"]);
            graph.input(a, 64).output(a, 64).workers(a, workers);
            describe(&mut graph);
            let error = check(&graph).unwrap_err();
            assert!(matches!(error, Error::InvalidConstraint(_)), "{error:?}");
            assert!(error.to_string().contains(words), "{words}: {error}");
        };
        wrong(1, &|graph| graph.near(""), "near has a node name of 0");
        wrong(1, &|graph| graph.has("a b"), "has: labels[0]");
        wrong(3, &|graph| graph.nodes(["n1", "n2"]), "nodes names 2 nodes for 3 leases");
        // One request has at most 32 leases.
        wrong(33, &|graph| graph.together(), "together is for lanes of at most 32 workers");
        wrong(33, &|graph| graph.apart(), "apart is for lanes");
        wrong(33, &|graph| graph.near("n"), "near is for lanes");
        wrong(33, &|graph| graph.at_least(1), "at_least is for lanes");
        let (mut graph, [a]) = functions(["a"]);
        graph.input(a, 64).output(a, 64).workers(a, 40);
        graph.leave_free(1).has("gpu").nodes((0..40).map(|n| format!("n{n}")));
        check(&graph).unwrap();
        assert_eq!(graph.lease_request(32..40).constraints.nodes[0], "n32");
        assert_eq!(graph.lease_request(39..40).constraints.nodes, ["n39"]);
        assert_eq!(graph.lease_request(39..40).constraints.has, ["gpu"]);
        graph.workers(a, 32).nodes([""; 0]).together().apart().near("n").at_least(1);
        check(&graph).unwrap();
        assert_eq!(graph.of_all_leases().count(), 4);
    }
}
