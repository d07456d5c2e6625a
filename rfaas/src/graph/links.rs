//! Which edges of a lane share a connection: those from one worker to the same other one, or to the client. Pure.

use std::collections::HashMap;

use rfaas_call::edge::EdgeAt;
use rfaas_protocol::edge::MAX_ON_LINK;

use super::layout::Layout;

/// Where edges are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// Edges between workers, by number.
    pub(super) edges: Vec<EdgeAt>,
    /// How many links there are between workers.
    pub(super) count: usize,
    /// What comes to the client, by number.
    pub(super) ends: Vec<EdgeAt>,
    /// What comes to the client over each link: from which worker, and the numbers of the ends in the order in which
    /// both sides have them.
    pub(super) to_client: Vec<(usize, Vec<usize>)>,
}

impl Links {
    /// Finds out which edges of `layout`, of `slots` slots each, share a connection.
    pub(super) fn of(layout: &Layout, slots: u16) -> Self {
        let most = (MAX_ON_LINK / u32::from(slots.max(1))).max(1);
        let edges = share(layout.edges.iter().copied(), most);
        let ends = share(layout.ends.iter().map(|end| end.worker), most);
        let count = |edges: &[EdgeAt]| edges.iter().map(|at| at.link + 1).max().unwrap_or(0);
        let mut to_client = vec![(0, Vec::new()); count(&ends)];
        for (end, at) in ends.iter().enumerate() {
            let link = &mut to_client[at.link];
            link.0 = layout.ends[end].worker;
            link.1.push(end);
        }
        Links { count: count(&edges), edges, ends, to_client }
    }
}

/// Has edges with the same key share a link, up to `most`.
fn share<K: Eq + std::hash::Hash>(keys: impl Iterator<Item = K>, most: u32) -> Vec<EdgeAt> {
    let mut open: HashMap<K, EdgeAt> = HashMap::new();
    let mut links = 0;
    let places = keys.map(|key| {
        let next = open.get(&key).filter(|next| u32::from(next.edge) < most).copied();
        let at = next.unwrap_or_else(|| {
            links += 1;
            EdgeAt { link: links - 1, edge: 0 }
        });
        open.insert(key, EdgeAt { edge: at.edge + 1, ..at });
        at
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::super::description::Graph;
    use super::super::layout::lay_out;
    use super::*;

    #[test]
    fn edges_of_the_same_two_share_a_link_until_it_is_full() {
        let at = |link, edge| EdgeAt { link, edge };
        let shared = share(["ab", "ac", "ab", "ab", "ac"].into_iter(), 2);
        assert_eq!(shared, [at(0, 0), at(1, 0), at(0, 1), at(2, 0), at(1, 1)]);
        assert_eq!(share([1, 1].into_iter(), 1), [at(0, 0), at(1, 0)]);
    }

    #[test]
    fn a_pair_of_workers_has_one_link_in_each_direction() {
        let mut graph = Graph::new();
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| graph.function("lib.so", name));
        graph.share(c, a).share(d, b).input(a, 8).output(c, 8).output(d, 8).output(d, 4);
        graph.edge(a, b, 8).edge(b, c, 8).edge(c, d, 8);
        let layout = lay_out(&graph).unwrap();
        let at = |link, edge| EdgeAt { link, edge };
        let links = Links::of(&layout, 4);
        assert_eq!((links.edges, links.count), (vec![at(0, 0), at(1, 0), at(0, 1)], 2));
        assert_eq!(links.ends, [at(0, 0), at(1, 0), at(1, 1)]);
        assert_eq!(links.to_client, [(0, vec![0]), (1, vec![1, 2])]);
        let links = Links::of(&layout, 1024);
        assert_eq!(links.count, 2, "four edges fit");
    }
}
