//! What executors and their functions have written, kept for the clients of their leases. Pure.
//!
//! * BOUNDED - of a lease at most [`LEASE_BYTES`] are kept, of all leases together at most
//!   [`NODE_BYTES`]. Then the oldest are dropped: of the lease itself, or of the one that has most.
//! * Every byte has a number, by which a client knows how many were dropped.

use std::collections::{HashMap, VecDeque};

use rfaas_protocol::allocation::{MAX_PART_BYTES, OutputPart, OutputStream};

/// Bytes that are kept of a lease: some thousand lines, the last of which say why a function failed.
pub const LEASE_BYTES: usize = 256 << 10;
/// Bytes that are kept of all leases: as much as 256 leases may have.
pub const NODE_BYTES: usize = 64 << 20;
/// What a piece counts for beside its bytes, so that one byte of one stream and one of the other in turn are no way
/// around the bounds.
const PIECE_COST: usize = 64;

/// The output of all leases that are followed.
#[derive(Debug, Default)]
pub struct KeptOutputs {
    leases: HashMap<u64, LeaseOutput>,
    /// Cost of all pieces.
    cost: usize,
}

#[derive(Debug, Default)]
struct LeaseOutput {
    /// In the order of their bytes.
    pieces: VecDeque<Piece>,
    /// Bytes that were written so far.
    end: u64,
    /// Cost of the pieces.
    cost: usize,
}

/// Bytes of one stream, as many as fit a message at most.
#[derive(Debug)]
struct Piece {
    at: u64,
    stream: OutputStream,
    bytes: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn cost(&self) -> usize {
        PIECE_COST + self.bytes.len()
    }
}

impl LeaseOutput {
    /// Takes in the first of `bytes`, as many as it says.
    fn append(&mut self, stream: OutputStream, bytes: &[u8]) -> usize {
        let fits = |piece: &&mut Piece| {
            piece.stream == stream && piece.end() == self.end && piece.bytes.len() < MAX_PART_BYTES
        };
        let taken = match self.pieces.back_mut().filter(fits) {
            Some(last) => {
                let taken = bytes.len().min(MAX_PART_BYTES - last.bytes.len());
                last.bytes.extend_from_slice(&bytes[..taken]);
                self.cost += taken;
                taken
            }
            None => {
                let taken = bytes.len().min(MAX_PART_BYTES);
                let piece = Piece { at: self.end, stream, bytes: bytes[..taken].to_vec() };
                self.cost += piece.cost();
                self.pieces.push_back(piece);
                taken
            }
        };
        self.end += taken as u64;
        taken
    }

    fn drop_oldest(&mut self) {
        self.cost -= self.pieces.pop_front().map_or(0, |piece| piece.cost());
    }

    fn part(&self, from: u64) -> OutputPart {
        let index = self.pieces.partition_point(|piece| piece.end() <= from);
        match self.pieces.get(index) {
            Some(piece) => {
                let at = from.max(piece.at);
                let bytes = &piece.bytes[(at - piece.at) as usize..]; // less than its length
                OutputPart::new(from, at, self.end, piece.stream, bytes)
            }
            None => OutputPart::new(from, self.end, self.end, OutputStream::Stdout, &[]),
        }
    }
}

impl KeptOutputs {
    /// From now on the output of `lease` is kept.
    pub fn keep(&mut self, lease: u64) {
        self.leases.entry(lease).or_default();
    }

    /// The output of `lease` is of no interest any more.
    pub fn forget(&mut self, lease: u64) {
        self.cost -= self.leases.remove(&lease).map_or(0, |output| output.cost);
    }

    /// An executor of `lease` wrote this.
    pub fn append(&mut self, lease: u64, stream: OutputStream, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(output) = self.leases.get_mut(&lease)
        {
            let before = output.cost;
            let taken = output.append(stream, bytes);
            while output.cost > LEASE_BYTES {
                output.drop_oldest();
            }
            self.cost = self.cost - before + output.cost;
            bytes = &bytes[taken..];
            self.fit();
        }
    }

    /// Drops the oldest bytes of those that have most, until all are within their bound.
    fn fit(&mut self) {
        while self.cost > NODE_BYTES
            && let Some(largest) = self.leases.values_mut().max_by_key(|output| output.cost)
        {
            let before = largest.cost;
            largest.drop_oldest();
            self.cost -= before - largest.cost;
        }
    }

    /// What comes after the first `from` bytes of `lease`, as much as a message takes.
    pub fn part(&self, lease: u64, from: u64) -> OutputPart {
        self.leases.get(&lease).map_or_else(|| LeaseOutput::default().part(from), |o| o.part(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OutputStream::{Stderr, Stdout};

    /// Everything that is kept of `lease`, and how many bytes were dropped.
    fn read(kept: &KeptOutputs, lease: u64) -> (Vec<(u16, Vec<u8>)>, u64) {
        let (mut pieces, mut from, mut dropped) = (Vec::new(), 0, 0);
        loop {
            let part = kept.part(lease, from);
            dropped += part.at.get() - from;
            let bytes = part.bytes().unwrap();
            if bytes.is_empty() {
                assert_eq!(part.at, part.end);
                return (pieces, dropped);
            }
            from = part.at.get() + bytes.len() as u64;
            pieces.push((part.stream.get(), bytes.to_vec()));
        }
    }

    fn bytes_of(kept: &KeptOutputs, lease: u64) -> usize {
        read(kept, lease).0.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    #[test]
    fn what_was_written_is_read_in_order_and_with_its_stream() {
        let mut kept = KeptOutputs::default();
        kept.keep(7);
        assert_eq!(read(&kept, 7), (vec![], 0));
        for (stream, text) in [(Stdout, "one "), (Stdout, "two"), (Stderr, "bad"), (Stdout, "x")] {
            kept.append(7, stream, text.as_bytes());
        }
        let pieces = [(1, b"one two".to_vec()), (2, b"bad".to_vec()), (1, b"x".to_vec())];
        assert_eq!(read(&kept, 7), (pieces.to_vec(), 0));
        let part = kept.part(7, 5);
        assert_eq!((part.at.get(), part.bytes().unwrap()), (5, &b"wo"[..]), "from there on");
        let part = kept.part(7, u64::MAX);
        assert_eq!((part.at.get(), part.bytes().unwrap()), (11, &b""[..]), "beyond the end");
    }

    #[test]
    fn of_a_lease_the_last_bytes_are_kept_and_the_others_counted() {
        let mut kept = KeptOutputs::default();
        kept.keep(7);
        let written = 3 * LEASE_BYTES;
        for chunk in 0..3 {
            kept.append(7, Stdout, &vec![chunk; LEASE_BYTES]);
        }
        let (pieces, dropped) = read(&kept, 7);
        let left = bytes_of(&kept, 7);
        assert_eq!(left as u64 + dropped, written as u64);
        assert!(left > LEASE_BYTES * 9 / 10 && left <= LEASE_BYTES, "{left}");
        assert!(pieces.iter().all(|(_, bytes)| bytes.iter().all(|byte| *byte == 2)));
    }

    #[test]
    fn bytes_of_both_streams_in_turn_are_no_way_around_the_bound() {
        let mut kept = KeptOutputs::default();
        kept.keep(7);
        for _ in 0..LEASE_BYTES {
            kept.append(7, Stdout, b"o");
            kept.append(7, Stderr, b"e");
        }
        let output = &kept.leases[&7];
        assert!(output.pieces.len() <= LEASE_BYTES / PIECE_COST, "{}", output.pieces.len());
        assert_eq!(output.cost, kept.cost);
    }

    #[test]
    fn leases_that_write_much_do_not_cost_others_their_words() {
        let mut kept = KeptOutputs::default();
        let loud = 2 * (NODE_BYTES / LEASE_BYTES) as u64;
        kept.keep(loud);
        kept.append(loud, Stdout, b"a quiet word");
        for lease in 0..loud {
            kept.keep(lease);
            kept.append(lease, Stdout, &vec![b'x'; LEASE_BYTES]);
            assert!(kept.cost <= NODE_BYTES);
        }
        assert_eq!(read(&kept, loud), (vec![(1, b"a quiet word".to_vec())], 0));
        let last = bytes_of(&kept, loud - 1);
        assert!(last > LEASE_BYTES / 3, "all give a part: {last}");
        for lease in 0..=loud {
            kept.forget(lease);
        }
        assert_eq!(kept.cost, 0);
    }

    #[test]
    fn what_a_lease_writes_that_is_not_kept_goes_nowhere() {
        let mut kept = KeptOutputs::default();
        kept.append(7, Stdout, b"late");
        assert_eq!(read(&kept, 7), (vec![], 0));
        assert_eq!(kept.cost, 0);
    }
}
