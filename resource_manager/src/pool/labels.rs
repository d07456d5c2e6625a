//! The numbers that labels of nodes have: a bit each, as long as a node has the label.

use std::collections::BTreeMap;

use crate::placement::{LabelSet, MAX_DIFFERENT_LABELS};

#[derive(Debug, Default)]
pub(super) struct LabelNumbers {
    /// The number of each label, and how many nodes have it.
    known: BTreeMap<String, (usize, usize)>,
}

impl LabelNumbers {
    /// Counts labels of a node. `Err` is the one that there is no number for; then none is counted.
    pub(super) fn take(&mut self, labels: &[String]) -> Result<LabelSet, String> {
        let mut set = LabelSet::default();
        for (at, label) in labels.iter().enumerate() {
            let free =
                || (0..MAX_DIFFERENT_LABELS).find(|n| self.known.values().all(|(k, _)| k != n));
            let known = self.known.get(label).map(|(number, _)| *number);
            let Some(number) = known.or_else(free) else {
                self.give(&labels[..at]);
                return Err(label.clone());
            };
            self.known.entry(label.clone()).or_insert((number, 0)).1 += 1;
            set.0 |= 1 << number;
        }
        Ok(set)
    }

    /// The labels that have a number. `Err` is one that no node has.
    pub(super) fn find(&self, labels: &[String]) -> Result<LabelSet, String> {
        let mut set = LabelSet::default();
        for label in labels {
            let (number, _) = self.known.get(label).ok_or_else(|| label.clone())?;
            set.0 |= 1 << number;
        }
        Ok(set)
    }

    /// Counts `after` instead of `before`, labels of the same node. `Err` as for [`take`](Self::take).
    pub(super) fn exchange(
        &mut self,
        before: &[String],
        after: &[String],
    ) -> Result<LabelSet, String> {
        self.give(before);
        self.take(after).inspect_err(|_| {
            let back = self.take(before);
            debug_assert!(back.is_ok(), "they were there just now");
        })
    }

    /// Counts them no longer.
    pub(super) fn give(&mut self, labels: &[String]) {
        for label in labels {
            if let Some((_, nodes)) = self.known.get_mut(label) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.known.remove(label);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: impl IntoIterator<Item = usize>) -> Vec<String> {
        names.into_iter().map(|name| format!("label-{name}")).collect()
    }

    #[test]
    fn a_number_is_free_again_when_no_node_has_the_label() {
        let mut numbers = LabelNumbers::default();
        for first in (0..64).step_by(16) {
            numbers.take(&labels(first..first + 16)).unwrap();
        }
        let again = numbers.take(&labels([3])).unwrap();
        assert_eq!(numbers.take(&labels([5, 64, 6])), Err("label-64".into()));
        numbers.give(&labels([3]));
        assert_eq!(numbers.take(&labels([3])), Ok(again));
        numbers.give(&labels([3, 3, 5])); // a refused request has counted nothing
        assert_eq!(numbers.take(&labels([64])).map(|set| set.0.count_ones()), Ok(1));
        assert_eq!(numbers.known.len(), 63);
    }

    #[test]
    fn a_label_makes_room_for_the_one_that_takes_its_place() {
        let mut numbers = LabelNumbers::default();
        for first in (0..64).step_by(16) {
            numbers.take(&labels(first..first + 16)).unwrap();
        }
        assert!(numbers.exchange(&labels([3]), &labels([64])).is_ok());
        assert_eq!(numbers.exchange(&labels([64]), &labels([65, 66])), Err("label-66".into()));
        assert_eq!(numbers.known.len(), 64);
        assert!(numbers.known.contains_key("label-64"), "it is as it was");
    }
}
