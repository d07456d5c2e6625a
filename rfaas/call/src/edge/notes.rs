//! What a function notes while it is called, for the trace of the run.

use rfaas_protocol::edge::{MAX_NOTE_KEY_BYTES, MAX_NOTES, TraceNote};

use crate::turn::Denied;

/// The notes of a run, or of a batch of them.
#[derive(Debug, Default)]
pub(super) struct Notes(Vec<TraceNote>);

impl Notes {
    /// Makes room for all that there can be.
    pub(super) fn new() -> Self {
        Notes(Vec::with_capacity(MAX_NOTES))
    }

    /// Notes a number under a name.
    pub(super) fn add(&mut self, name: &[u8], value: i64) -> Result<(), Denied> {
        let mut key = [0; MAX_NOTE_KEY_BYTES];
        let place = key.get_mut(..name.len()).filter(|_| !name.is_empty()).ok_or(Denied::Bounds)?;
        place.copy_from_slice(name);
        let is_full = self.0.len() == MAX_NOTES;
        match self.0.iter_mut().find(|note| note.key == key) {
            Some(note) => note.value = value.into(),
            None if is_full => return Err(Denied::Bounds),
            None => self.0.push(TraceNote { key, value: value.into() }),
        }
        Ok(())
    }

    pub(super) fn all(&self) -> &[TraceNote] {
        &self.0
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_have_a_name_each_of_which_the_last_counts_and_are_few() {
        let mut notes = Notes::new();
        for n in 0..10 {
            assert_eq!(notes.add(b"n", n), Ok(()));
        }
        assert_eq!(notes.add(b"", 1), Err(Denied::Bounds));
        assert_eq!(notes.add(&[b'x'; MAX_NOTE_KEY_BYTES + 1], 1), Err(Denied::Bounds));
        for key in [&[b'x'; MAX_NOTE_KEY_BYTES][..], b"y", b"z"] {
            assert_eq!(notes.add(key, i64::MIN), Ok(()));
        }
        assert_eq!(notes.add(b"more", 1), Err(Denied::Bounds));
        assert_eq!(notes.add(b"y", 7), Ok(()));
        let values: Vec<_> = notes.all().iter().map(|note| note.value.get()).collect();
        assert_eq!(values, [9, i64::MIN, 7, i64::MIN]);
        notes.clear();
        assert_eq!((notes.add(b"more", 1), notes.all().len()), (Ok(()), 1));
    }
}
