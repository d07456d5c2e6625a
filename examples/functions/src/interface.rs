//! The functions as an executor sees them: exported symbols that take pointers.
//!
//! ```text
//!   uint32_t name(void *input, uint32_t input_bytes, void *output)     returns bytes of output
//! ```
//! The interface tells a function how long its input is, and not how much room its output has: that
//! is what the client set as `Deployment::output_bytes` when it deployed the library, for all of its
//! functions. So a function documents how much it writes, and the client makes room for it. One that
//! writes more is stopped with its executor.

#![allow(unsafe_code)] // pointers from the executor; exported symbols

use std::slice;

/// Calls `function` with the executor's memory as slices: all of the input, and `room` bytes of output,
/// which is the most that `function` writes.
///
/// Only exported functions call it, and only executors call these, as the interface says.
fn call(
    input: *mut u8,
    input_bytes: u32,
    output: *mut u8,
    room: usize,
    function: impl FnOnce(&[u8], &mut [u8]) -> usize,
) -> u32 {
    // SAFETY: the executor passes `input_bytes` readable bytes that are this call's until it returns: the
    // client does not write a slot whose invocation is under way.
    let input = unsafe { slice::from_raw_parts(input, input_bytes as usize) };
    // SAFETY: the executor passes an output of its own, apart from all inputs, that is this call's until
    // it returns. It has `room` bytes because the client deployed this library with so many (module
    // docs); if it did not, the executor's guard page ends the process.
    let output = unsafe { slice::from_raw_parts_mut(output, room) };
    function(input, output) as u32 // at most `room`, which comes from a u32 or is a few bytes
}

/// Returns its whole input; output: as many bytes as the input.
#[unsafe(no_mangle)]
pub extern "C" fn empty(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    call(input, input_bytes, output, input_bytes as usize, super::empty)
}

/// Copies the first and the last eight bytes; output: as many bytes as the input.
#[unsafe(no_mangle)]
pub extern "C" fn edges(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    call(input, input_bytes, output, input_bytes as usize, super::edges)
}

/// Sum of 64-bit floating-point numbers; output: 8 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn sum_f64(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    call(input, input_bytes, output, size_of::<f64>(), super::sum_f64)
}

/// CRC-32 of the input; output: 4 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn crc32(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    call(input, input_bytes, output, size_of::<u32>(), super::crc32)
}

/// Sorts unsigned 32-bit numbers; output: as many bytes as the input, in whole numbers.
#[unsafe(no_mangle)]
pub extern "C" fn sort_u32(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    let room = input_bytes as usize / size_of::<u32>() * size_of::<u32>();
    call(input, input_bytes, output, room, super::sort_u32)
}

/// Keeps its core busy for as many microseconds as its input says; output: none.
#[unsafe(no_mangle)]
pub extern "C" fn spin_us(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
    call(input, input_bytes, output, 0, super::spin_us)
}
