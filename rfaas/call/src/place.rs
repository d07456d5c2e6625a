//! Where a function finds its input and where its output goes.

use std::marker::PhantomData;

use rdmalib::Region;

/// Both lie in memory of a connection, are aligned to 64 bytes, and are valid for `'a`. The bytes change at any time,
/// since a peer writes its slots when it likes: so these are pointers for functions, and no references.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    input: *mut u8,
    input_bytes: u32,
    output: *mut u8,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Place<'a> {
    /// Makes one of where input and output start, in which regions.
    #[inline]
    pub(crate) fn new(
        input: (&'a Region, usize),
        input_bytes: u32,
        output: (&'a Region, usize),
    ) -> Self {
        let at = |(region, start): (&Region, usize)| region.as_ptr().wrapping_add(start);
        Place { input: at(input), input_bytes, output: at(output), memory: PhantomData }
    }

    /// Returns where the input is.
    #[inline]
    pub fn input(self) -> *mut u8 {
        self.input
    }

    /// Returns how many bytes of input there are.
    #[inline]
    pub fn input_bytes(self) -> u32 {
        self.input_bytes
    }

    /// Returns where the output goes.
    #[inline]
    pub fn output(self) -> *mut u8 {
        self.output
    }
}
