//! A library of small functions, to call and to copy: `libfunctions.so`.
//!
//! What a function does is an ordinary Rust function here, from an input to an output whose length it
//! returns. What makes it callable is in `interface`: the exported symbol, and how much output it
//! writes. The same functions in C and C++ are in `c/` and `cpp/`.
//!
//! Numbers are in the byte order of the machine: client and executor are of one architecture, since
//! the client sends the executor machine code. Bytes behind the last whole number are ignored.

use std::time::{Duration, Instant};

mod interface;

/// Returns its whole input.
pub fn empty(input: &[u8], output: &mut [u8]) -> usize {
    output.copy_from_slice(input);
    input.len()
}

/// Returns as many bytes as its input has, of which it copies the first and the last eight; what is between
/// them is what was there before. So its time does not depend on the length.
pub fn edges(input: &[u8], output: &mut [u8]) -> usize {
    let edge = input.len().min(8);
    output[..edge].copy_from_slice(&input[..edge]);
    let last = input.len() - edge;
    output[last..].copy_from_slice(&input[last..]);
    input.len()
}

/// Sum of 64-bit floating-point numbers, as one such number.
pub fn sum_f64(input: &[u8], output: &mut [u8]) -> usize {
    let (numbers, _) = input.as_chunks();
    // From 0.0, not with `sum`: that of no numbers is −0.0.
    let sum = numbers.iter().fold(0.0, |sum, number| sum + f64::from_ne_bytes(*number));
    output.copy_from_slice(&sum.to_ne_bytes());
    output.len()
}

/// CRC-32 of the input as in Ethernet, gzip and PNG, as a 32-bit number.
pub fn crc32(input: &[u8], output: &mut [u8]) -> usize {
    let crc = input.iter().fold(u32::MAX, |crc, byte| {
        CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8 // the low byte is what leaves
    });
    output.copy_from_slice(&(!crc).to_ne_bytes());
    output.len()
}

/// What each byte adds to a CRC-32.
const CRC_TABLE: [u32; 256] = {
    const POLYNOMIAL: u32 = 0xedb8_8320; // IEEE 802.3, bits reversed
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { POLYNOMIAL ^ crc >> 1 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Sorts unsigned 32-bit numbers.
pub fn sort_u32(input: &[u8], output: &mut [u8]) -> usize {
    let (sorted, _) = output.as_chunks_mut();
    sorted.copy_from_slice(input.as_chunks().0);
    sorted.sort_unstable_by_key(|number| u32::from_ne_bytes(*number));
    sorted.len() * size_of::<u32>()
}

/// Keeps its core busy for as many microseconds as its input says, a 32-bit number. No output.
pub fn spin_us(input: &[u8], _output: &mut [u8]) -> usize {
    let us = input.first_chunk().map_or(0, |number| u32::from_ne_bytes(*number));
    let (start, time) = (Instant::now(), Duration::from_micros(us.into()));
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    0
}
