//! Where a function finds its input and where its output goes.

use std::marker::PhantomData;

use rdmalib::Region;

/// Both lie in memory of a connection, are aligned to 64 bytes (items of a list: to 8), and are valid for `'a`. The
/// bytes change at any time, since a peer writes its slots when it likes: so these are pointers for functions, and no
/// references.
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

    /// Makes one of an input of so many bytes at an address that is good for `'a`, and where the output starts.
    #[inline]
    pub(crate) fn of((input, input_bytes): (*mut u8, u32), output: (&'a Region, usize)) -> Self {
        let output = output.0.as_ptr().wrapping_add(output.1);
        Place { input, input_bytes, output, memory: PhantomData }
    }

    /// Makes one of the same input and an output that starts at `output`, which is as good as the other one.
    #[inline]
    pub(crate) fn with_output(self, output: *mut u8) -> Self {
        Place { output, ..self }
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
