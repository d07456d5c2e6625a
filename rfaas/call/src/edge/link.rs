//! Which edges share a connection: those from one worker to another one, or to the client. Pure.

use rfaas_protocol::edge::{EdgeShape, InPlaceLength};

/// What lengths begin at a multiple of: the smallest page of Linux. Both ends reckon with it, whatever their pages.
const PAGE: u64 = 4096;

/// The edges of a link, as both ends have them from the client.
#[derive(Clone, Debug)]
pub struct Link {
    edges: Box<[Linked]>,
    /// Where the lengths of payloads in place are, behind all slots: together, so that what is looked at in a hop is on
    /// few pages, however large payloads are, and on none that a sender maps, so that a function which writes too far
    /// changes none of another run.
    lengths_at: u64,
    /// How many slots there are.
    payloads: u32,
}

/// An edge of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linked {
    /// Its number at this end.
    pub(super) number: usize,
    pub(super) shape: EdgeShape,
    /// Where its slot 0 is, from that of the first edge on.
    pub(super) start: u64,
    /// Slots of those before it.
    pub(super) slots_before: u32,
}

/// Where an edge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeAt {
    /// Number of the link.
    pub link: usize,
    /// Which of its edges it is.
    pub edge: u16,
}

impl Link {
    /// Makes one of these edges: the number that each has at this end, and what its slots are. Both ends name them in
    /// the same order.
    pub fn new(edges: impl IntoIterator<Item = (usize, EdgeShape)>) -> Self {
        let (mut start, mut slots_before) = (0u64, 0u32);
        let edges = edges.into_iter().map(|(number, shape)| {
            let linked = Linked { number, shape, start, slots_before };
            start += shape.all_bytes(); // 1024 edges of 1024 slots of 4 GiB fit
            slots_before += u32::from(shape.slots);
            linked
        });
        let edges = edges.collect();
        Link { edges, lengths_at: start.next_multiple_of(PAGE), payloads: slots_before }
    }

    /// Returns the size of all slots and lengths, in bytes.
    pub fn all_bytes(&self) -> u64 {
        let is_in_place = self.edges.iter().any(|linked| linked.shape.is_in_place());
        let slots = self.edges.last().map_or(0, |last| last.start + last.shape.all_bytes());
        if is_in_place { self.lengths_at + Self::lengths(self.payloads) } else { slots }
    }

    /// Returns how many payloads may be on their way.
    pub fn payloads(&self) -> u32 {
        self.payloads
    }

    /// Returns where the length of a payload in place is, of an edge of the link.
    #[inline]
    pub(super) fn length_at(&self, linked: &Linked, slot: u16) -> u64 {
        self.lengths_at + Self::lengths(linked.slots_before + u32::from(slot))
    }

    /// Returns how many bytes so many lengths have.
    fn lengths(count: u32) -> u64 {
        u64::from(count) * size_of::<InPlaceLength>() as u64
    }

    /// Returns the number of the first edge at this end, by which the whole is named.
    pub fn name(&self) -> usize {
        self.edges.first().map_or(0, |first| first.number)
    }

    /// Returns the shape of the first edge, which is the only one of a link from the client.
    pub fn only_shape(&self) -> Option<EdgeShape> {
        self.edges.first().map(|first| first.shape)
    }

    /// Returns where each edge of `links` is, by its number. Each number is there once, from 0 on.
    pub fn places<'a>(links: impl IntoIterator<Item = &'a Link>) -> Vec<EdgeAt> {
        let places = links.into_iter().enumerate().flat_map(|(link, edges)| {
            (0..)
                .zip(&edges.edges)
                .map(move |(edge, linked)| (linked.number, EdgeAt { link, edge }))
        });
        let mut places: Vec<_> = places.collect();
        places.sort_unstable_by_key(|(number, _)| *number);
        debug_assert!(places.iter().enumerate().all(|(at, (number, _))| at == *number));
        places.into_iter().map(|(_, at)| at).collect()
    }

    /// Returns an edge, if there is one of that number on the link.
    #[inline]
    pub(super) fn get(&self, edge: u16) -> Option<&Linked> {
        self.edges.get(usize::from(edge))
    }

    /// Returns an edge that there is: a number that both ends have checked.
    #[inline]
    pub(super) fn at(&self, edge: u16) -> &Linked {
        &self.edges[usize::from(edge)]
    }
}

impl Linked {
    /// Returns where a slot starts, from slot 0 of the link's first edge on.
    #[inline]
    pub(super) fn slot(&self, slot: u16) -> u64 {
        self.start + self.shape.start(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(slots: u16, bytes: u32) -> EdgeShape {
        EdgeShape { slots, bytes }
    }

    #[test]
    fn edges_lie_one_behind_the_other() {
        let link = Link::new([(3, shape(2, 100)), (1, shape(4, 64)), (4, shape(1, 0))]);
        assert_eq!((link.all_bytes(), link.payloads(), link.name()), (2 * 128 + 4 * 64 + 64, 7, 3));
        assert_eq!([0, 1, 2].map(|edge| link.at(edge).slot(0)), [0, 256, 512]);
        assert_eq!((link.at(1).slot(3), link.at(2).slots_before), (448, 6));
        assert!(link.get(3).is_none());
        let in_place = Link::new([(0, shape(2, 64)), (1, shape(3, 16 << 10))]);
        let slots = 4096 + 3 * (16 << 10); // to the end of the page
        assert_eq!((in_place.all_bytes(), in_place.payloads()), (slots + 5 * 4, 5));
        assert_eq!(in_place.length_at(in_place.at(1), 2), slots + 4 * 4);
        let none = Link::new([]);
        assert_eq!((none.all_bytes(), none.payloads(), none.name()), (0, 0, 0));
    }

    #[test]
    fn edges_are_found_by_their_numbers() {
        let links =
            [Link::new([(2, shape(1, 1)), (0, shape(1, 1))]), Link::new([(1, shape(1, 1))])];
        let places = Link::places(&links);
        let at = |link, edge| EdgeAt { link, edge };
        assert_eq!(places, [at(0, 1), at(1, 0), at(0, 0)]);
    }
}
