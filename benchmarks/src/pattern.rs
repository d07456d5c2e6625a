//! The contents of payloads, which distinguish each result from any other.
//!
//! Every repetition stamps its number over the start of the payload, and over the end where both fit, which is cheap
//! at any size. The whole payload is compared once a run.

use rfaas_program::Failure;

/// Bytes of a stamp.
const STAMP_BYTES: usize = 8;

/// The stamp of repetition `number`. No byte of it is zero, so that memory that nobody wrote is no stamp, and
/// neighbours differ in their first byte, so that a late or repeated reply shows even in a payload of one.
fn stamp(number: u64) -> [u8; STAMP_BYTES] {
    // An odd multiplier is a bijection; this one (2^64 divided by the golden ratio) spreads over all bytes.
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().map(|byte| byte | 1)
}

/// Offsets at which a payload of `len` bytes carries a stamp, and how much of it fits.
fn places(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = Some((0, len.min(STAMP_BYTES)));
    let last = (len >= 2 * STAMP_BYTES).then(|| (len - STAMP_BYTES, STAMP_BYTES));
    first.into_iter().chain(last)
}

/// Stamps a payload of `len` bytes with `number`, through `write` of bytes at an offset.
pub fn write_stamp(
    len: usize,
    number: u64,
    mut write: impl FnMut(usize, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stamp = stamp(number);
    places(len).try_for_each(|(offset, bytes)| write(offset, &stamp[..bytes]))
}

/// Fails unless a payload of `len` bytes carries the stamp of `number`; `read` reads from an offset.
pub fn check_stamp(
    len: usize,
    number: u64,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stamp = stamp(number);
    places(len).try_for_each(|(offset, bytes)| {
        let mut got = [0; STAMP_BYTES];
        read(offset, &mut got[..bytes])?;
        compare(number, offset, &stamp[..bytes], &got[..bytes])
    })
}

/// Fails, as repetition `number`, unless as many bytes came back as were sent.
pub fn compare_length(number: u64, sent: usize, returned: usize) -> Result<(), Failure> {
    if sent == returned {
        return Ok(());
    }
    Err(Failure::later(format!(
        "wrong result in repetition {number}: {returned} bytes came back, {sent} were sent"
    )))
}

/// Fails, as repetition `number`, unless the bytes from `offset` on came back as they were sent.
pub fn compare(number: u64, offset: usize, sent: &[u8], got: &[u8]) -> Result<(), Failure> {
    compare_length(number, sent.len(), got.len())?;
    match sent.iter().zip(got).position(|(sent, got)| sent != got) {
        None => Ok(()),
        Some(at) => Err(Failure::later(format!(
            "wrong result in repetition {number}: byte {} came back as {}, it was sent as {}",
            offset + at,
            got[at],
            sent[at],
        ))),
    }
}

/// A payload whose bytes depend on their offsets, for the comparison of a whole one.
pub fn payload(len: usize) -> Vec<u8> {
    // 251 is prime: a shift by any power of two, the usual mistake, shows.
    (0..len).map(|offset| (offset % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_payloads_carry_one_stamp_and_large_ones_two() {
        assert_eq!(places(1).collect::<Vec<_>>(), [(0, 1)]);
        assert_eq!(places(15).collect::<Vec<_>>(), [(0, 8)]);
        assert_eq!(places(4096).collect::<Vec<_>>(), [(0, 8), (4088, 8)]);
    }

    #[test]
    fn neighbouring_stamps_differ_and_none_is_zero() {
        for number in 0..1000 {
            assert_ne!(stamp(number)[0], stamp(number + 1)[0]);
            assert!(stamp(number).iter().all(|&byte| byte != 0));
        }
    }

    #[test]
    fn a_stamp_is_found_and_that_of_another_repetition_is_not() {
        for len in [1, 8, 16, 300] {
            let mut memory = vec![0; len];
            write_stamp(len, 5, |offset, bytes| {
                memory[offset..offset + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            let read = |offset: usize, out: &mut [u8]| {
                out.copy_from_slice(&memory[offset..offset + out.len()]);
                Ok(())
            };
            assert!(check_stamp(len, 5, read).is_ok());
            assert!(check_stamp(len, 4, read).is_err());
            assert!(check_stamp(len, 6, read).is_err());
        }
    }

    #[test]
    fn a_difference_is_reported_with_its_offset() {
        let sent = payload(300);
        assert!(compare(7, 0, &sent, &sent).is_ok());
        let mut got = sent.clone();
        got[299] ^= 1;
        let error = compare(7, 1000, &sent, &got).unwrap_err();
        assert!(error.to_string().contains("repetition 7: byte 1299 came back as"), "{error}");
        let error = compare(7, 0, &sent, &got[1..]).unwrap_err();
        assert!(error.to_string().contains("299 bytes came back, 300 were sent"), "{error}");
    }
}
