//! What clients say of their leases: which graph they are for, what of that is shown, and for how long.

use rfaas_protocol::lease;
use rfaas_protocol::{Malformed, Text};

use super::restarting::{Kept, restart};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn worker(graph: u64, lane: u16, worker: u16) -> GraphWorker {
    let (name, functions) = ("words".into(), "split\ncount".into());
    GraphWorker { graph, name, lane, worker, functions }
}

impl World {
    fn lease_for(&mut self, client: &str, worker: GraphWorker) -> Grant {
        let ask = Ask::new(1, 1, HOUR, client).unwrap();
        let grant = self.pool.request(self.now, &ask).unwrap().remove(0);
        self.pool.note_worker(grant.terms.lease, worker);
        grant
    }

    /// Number, client, name and leases of each graph.
    fn graphs(&self) -> Vec<(u64, String, String, Vec<LeaseId>)> {
        let shown = |graph: GraphView| {
            let GraphKey { graph: number, client, name } = graph.key;
            assert_eq!(graph.leases, graph.shown.len());
            let leases = graph.shown.iter().map(|(lease, _)| lease.lease).collect();
            (number, client.to_string(), name.to_string(), leases)
        };
        self.pool.graphs_after(None, usize::MAX).into_iter().map(shown).collect()
    }
}

#[test]
fn a_graph_has_the_leases_that_are_for_it_until_they_end() {
    let mut world = World::new();
    world.node("a", 16, 1024);
    let (words, name) =
        (|leases: &[&Grant]| leases.iter().map(|l| l.terms.lease).collect(), "words");
    let of = |number, client: &str, leases| (number, client.to_owned(), name.to_owned(), leases);
    let late = world.lease_for("one", worker(7, 1, 0));
    let second = world.lease_for("one", worker(7, 0, 1));
    let first = world.lease_for("one", worker(7, 0, 0));
    let before = world.lease_for("one", worker(3, 0, 0));
    // Who draws the same number is listed apart.
    let other = world.lease_for("two", worker(7, 0, 0));
    world.request(1, 1, HOUR).unwrap();
    let listed = [
        of(3, "one", words(&[&before])),
        of(7, "one", words(&[&first, &second, &late])),
        of(7, "two", words(&[&other])),
    ];
    assert_eq!(world.graphs(), listed);

    // What was said first stays.
    world.pool.note_worker(before.terms.lease, worker(7, 0, 0));
    assert_eq!(world.graphs(), listed);
    // One that is not known, or has ended.
    world.pool.note_worker(LeaseId::new(1).unwrap(), worker(9, 0, 0));
    for lease in [&before, &second] {
        world.pool.end_lease(world.now, lease.terms.lease, EndReason::Released, &mut world.out);
        world.pool.note_worker(lease.terms.lease, worker(9, 0, 0));
    }
    assert_eq!(
        world.graphs(),
        [of(7, "one", words(&[&first, &late])), of(7, "two", words(&[&other]))]
    );
    world.pass(2 * HOUR);
    assert_eq!(world.graphs(), []);
}

#[test]
fn what_a_lease_is_for_goes_with_it_to_another_node_and_into_the_next_run() {
    let mut world = World::new();
    let link = world.node("a", 1, 1024);
    world.node("b", 1, 1024);
    let grant = world.lease_for("one", worker(7, 0, 0));
    let (lease, because) = (grant.terms.lease, Unusable::Unreachable);
    let stays = world.lease_for("one", worker(7, 0, 1));
    world.pool.end_lease(world.now, stays.terms.lease, EndReason::Released, &mut world.out);
    let replaced =
        world.pool.replace(world.now, lease, because, Peer::User(1), &mut world.out).unwrap();
    assert_eq!(&*replaced.node, "b");
    assert_eq!(world.graphs()[0].3, [replaced.terms.lease]);

    let claimed = world.lease_for("one", worker(7, 0, 1));
    world.claim(&claimed, link);
    let mut kept = Kept::default();
    let before = world.pool.graphs_after(None, 1);
    restart(&mut world, &mut kept);
    let after = world.pool.graphs_after(None, 1);
    assert_eq!((before[0].leases, before == after), (2, true), "{after:?}");
    // Nothing waits for it to be committed.
    assert!(world.pool.take_changes().is_empty());
    world.pool.note_worker(claimed.terms.lease, worker(8, 0, 0));
    assert!(world.pool.take_changes().is_empty(), "it was said before");
}

#[test]
fn a_page_has_so_many_graphs_and_so_many_workers_of_them() {
    let mut world = World::new();
    world.node("a", 2000, 65_535);
    for lease in 0..=MOST_SHOWN as u16 {
        world.lease_for("one", worker(5, 0, lease));
    }
    for graph in [9, 6, 1] {
        world.lease_for("one", worker(graph, 0, 0));
    }
    let page = |world: &World, after: Option<&GraphKey>, most| {
        let page = world.pool.graphs_after(after, most);
        let numbers: Vec<_> = page.iter().map(|graph| (graph.key.graph, graph.leases)).collect();
        let last = page.last().unwrap();
        (numbers, world.pool.any_graphs_after(&last.key), last.clone())
    };
    let (numbers, more, last) = page(&world, None, 3);
    assert_eq!((numbers, more), (vec![(1, 1)], true), "the next has as many as a page by itself");
    let (numbers, more, last) = page(&world, Some(&last.key), 3);
    assert_eq!((numbers, more), (vec![(5, MOST_SHOWN + 1)], true));
    assert_eq!(last.shown.len(), MOST_SHOWN);
    let workers = last.shown.iter().map(|(_, shown)| usize::from(shown.worker));
    assert!(workers.eq(0..MOST_SHOWN));
    let (numbers, more, last) = page(&world, Some(&last.key), 1);
    assert_eq!((numbers, more), (vec![(6, 1)], true));
    let (numbers, more, _) = page(&world, Some(&last.key), 1);
    assert_eq!((numbers, more), (vec![(9, 1)], false));
}

#[test]
fn what_a_client_says_is_a_line_each_or_malformed() {
    let said = |change: &dyn Fn(&mut lease::GraphWorker)| {
        let mut said = lease::GraphWorker {
            lease: 1.into(),
            graph: 2.into(),
            lane: 3.into(),
            worker: 4.into(),
            name: Text::truncated("words"),
            functions: Text::truncated("split\ncount"),
        };
        change(&mut said);
        GraphWorker::from_wire(&said)
    };
    let good = GraphWorker { graph: 2, ..worker(2, 3, 4) };
    assert_eq!(said(&|_| ()), Ok((LeaseId::new(1).unwrap(), good)));
    assert!(said(&|said| said.graph = lease::MAX_GRAPH.into()).is_ok());
    for (change, field) in [
        (
            &(|said: &mut lease::GraphWorker| said.lease = 0.into())
                as &dyn Fn(&mut lease::GraphWorker),
            "lease",
        ),
        (&|said| said.graph = 0.into(), "number of a graph"),
        (&|said| said.graph = (lease::MAX_GRAPH + 1).into(), "number of a graph"),
        (&|said| said.name = Text::truncated(""), "name of a graph"),
        (&|said| said.name = Text::truncated("a\nb"), "name of a graph"),
        (&|said| said.functions = Text::truncated(""), "functions of a worker"),
        (&|said| said.functions = Text::truncated("a\n"), "functions of a worker"),
        (&|said| said.functions = Text::truncated("a\tb"), "functions of a worker"),
    ] {
        assert_eq!(said(change), Err(Malformed::Field(field)));
    }
}
