//! Where input slots and output areas lie in a worker's memory. Pure.
//!
//! ```text
//!   inputs:   | 32 unused | RequestHeader | input …… | pad |      one a slot, offered to the client
//!             ^ slot × stride             ^ 64-byte aligned
//!   outputs:  | slack | reply detail …… to 64 | output …… | guard page |       one a slot, the client may read
//!             ^ slot × stride                 ^ 64-byte aligned     ^ page-aligned
//! ```
//! * An output area ends where its guard page starts, less the padding to 64 bytes. The function interface tells a
//!   function no capacity, so one that writes more than was agreed runs into the guard and is stopped there, instead of
//!   writing over the results of other calls.
//! * An area has room for at least as much as an input. So a function that answers with what it was given, where the
//!   agreed output is smaller than the input, is refused with its reply ("output too large") and not stopped.
//!
//! Elsewhere: the memory itself (`memory`), placing the guard pages (`executor`).

use std::ops::Range;

use rfaas_protocol::invocation::{HEADER_SPACE, MAX_SLOTS, RequestHeader};

/// Sizes that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    /// No slots, or more than an immediate can name.
    #[error("{0} input slots: a worker has 1 to {MAX_SLOTS}")]
    Slots(u16),
    /// Too much for this machine's addresses or the protocol's.
    #[error(
        "{slots} slots of {input_bytes} bytes of input and {output_bytes} of output are too large"
    )]
    TooLarge {
        /// Slots asked for.
        slots: u16,
        /// Largest input.
        input_bytes: u32,
        /// Largest output.
        output_bytes: u32,
    },
}

/// A slot of the layout that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// Returns its number.
    #[inline]
    pub fn number(self) -> u16 {
        self.0
    }
}

/// The memory layout of one worker. All workers of an executor have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    slots: u16,
    input_bytes: u32,
    output_bytes: u32,
    slot_stride: u32,
    area_stride: usize,
    /// First byte of an output, from the start of its area.
    output_offset: usize,
    page_bytes: usize,
}

impl Layout {
    /// Lays out memory for `slots` calls at a time, of at most these sizes, on a machine with pages of `page_bytes` (a
    /// power of two).
    pub fn new(
        slots: u16,
        input_bytes: u32,
        output_bytes: u32,
        page_bytes: usize,
    ) -> Result<Layout, BadLayout> {
        debug_assert!(page_bytes.is_power_of_two() && page_bytes >= HEADER_SPACE);
        if slots == 0 || usize::from(slots) > MAX_SLOTS {
            return Err(BadLayout::Slots(slots));
        }
        Self::checked(slots, input_bytes, output_bytes, page_bytes).ok_or(BadLayout::TooLarge {
            slots,
            input_bytes,
            output_bytes,
        })
    }

    fn checked(slots: u16, input_bytes: u32, output_bytes: u32, page: usize) -> Option<Layout> {
        let lines = |bytes: u32| (bytes as usize).checked_next_multiple_of(HEADER_SPACE);
        let slot_stride = lines(input_bytes)?.checked_add(HEADER_SPACE)?;
        let output_lines = lines(input_bytes.max(output_bytes))?; // room for an input
        let used = output_lines.checked_add(HEADER_SPACE)?.checked_next_multiple_of(page)?;
        let area_stride = used.checked_add(page)?;
        slot_stride.checked_mul(usize::from(slots))?;
        area_stride.checked_mul(usize::from(slots))?;
        Some(Layout {
            slots,
            input_bytes,
            output_bytes,
            slot_stride: u32::try_from(slot_stride).ok()?,
            area_stride,
            output_offset: used - output_lines, // it ends at the guard
            page_bytes: page,
        })
    }

    /// Returns the number of slots.
    #[inline]
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Returns the size of the largest input, in bytes.
    #[inline]
    pub fn input_bytes(&self) -> u32 {
        self.input_bytes
    }

    /// Returns the size of the largest output, in bytes.
    #[inline]
    pub fn output_bytes(&self) -> u32 {
        self.output_bytes
    }

    /// Returns the distance between two slots, in bytes.
    pub fn slot_stride(&self) -> u32 {
        self.slot_stride
    }

    /// Returns the size of all input slots, in bytes.
    pub fn inputs_len(&self) -> usize {
        usize::from(self.slots) * self.slot_stride as usize
    }

    /// Returns the size of all output areas and their guards, in bytes.
    pub fn outputs_len(&self) -> usize {
        usize::from(self.slots) * self.area_stride
    }

    /// Returns the slot of this number.
    #[inline]
    pub fn slot(&self, number: u32) -> Option<Slot> {
        u16::try_from(number).ok().filter(|slot| *slot < self.slots).map(Slot)
    }

    /// Returns where the header of `slot` is, among the inputs.
    #[inline]
    pub fn header(&self, slot: Slot) -> usize {
        self.input(slot) - size_of::<RequestHeader>()
    }

    /// Returns where the input of `slot` starts, among the inputs.
    #[inline]
    pub fn input(&self, slot: Slot) -> usize {
        usize::from(slot.0) * self.slot_stride as usize + HEADER_SPACE
    }

    /// Returns where the detail of a reply from `slot` is, among the outputs.
    #[inline]
    pub fn detail(&self, slot: Slot) -> usize {
        self.output(slot) - HEADER_SPACE
    }

    /// Returns where the output of `slot` starts, among the outputs.
    #[inline]
    pub fn output(&self, slot: Slot) -> usize {
        usize::from(slot.0) * self.area_stride + self.output_offset
    }

    /// Returns the guard pages among the outputs, one behind each.
    pub fn guards(&self) -> impl Iterator<Item = Range<usize>> {
        let (stride, page) = (self.area_stride, self.page_bytes);
        (1..=usize::from(self.slots)).map(move |next| next * stride - page..next * stride)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 4096;

    proptest! {
        #[test]
        fn areas_are_aligned_disjoint_and_end_at_their_guard(
            slots in 1u16..=40, input in 0u32..200_000, output in 0u32..200_000,
        ) {
            let layout = Layout::new(slots, input, output, PAGE).unwrap();
            let mut area_start = 0;
            for (number, guard) in layout.guards().enumerate() {
                let slot = layout.slot(number as u32).unwrap();
                prop_assert_eq!(layout.input(slot) % 64, 0);
                prop_assert_eq!(layout.header(slot) + 32, layout.input(slot));
                prop_assert!(layout.header(slot) >= number * layout.slot_stride() as usize);
                prop_assert!(layout.input(slot) + input as usize <= (number + 1) * layout.slot_stride() as usize);

                prop_assert_eq!(layout.output(slot) % 64, 0);
                prop_assert!(layout.detail(slot) >= area_start);
                prop_assert!(layout.detail(slot) + 64 <= layout.output(slot));
                let room = guard.start - layout.output(slot);
                prop_assert!(room >= input.max(output) as usize && room < input.max(output) as usize + 64);
                prop_assert_eq!(guard.start % PAGE, 0);
                prop_assert_eq!(guard.len(), PAGE);
                area_start = guard.end;
            }
            prop_assert_eq!(area_start, layout.outputs_len());
            prop_assert_eq!(layout.inputs_len(), slots as usize * layout.slot_stride() as usize);
        }
    }

    #[test]
    fn an_immediate_that_names_no_slot_is_refused() {
        let layout = Layout::new(4, 64, 64, PAGE).unwrap();
        assert_eq!(layout.slot(3).map(Slot::number), Some(3));
        assert_eq!(layout.slot(4), None);
        assert_eq!(layout.slot(0x1_0000), None);
        assert_eq!(layout.slot(u32::MAX), None);
    }

    #[test]
    fn sizes_beyond_the_protocol_are_refused() {
        assert_eq!(Layout::new(0, 1, 1, PAGE), Err(BadLayout::Slots(0)));
        assert_eq!(Layout::new(1025, 1, 1, PAGE), Err(BadLayout::Slots(1025)));
        assert!(matches!(Layout::new(1, u32::MAX, 1, PAGE), Err(BadLayout::TooLarge { .. })));
        assert!(Layout::new(1024, 0, 0, PAGE).is_ok());
    }
}
