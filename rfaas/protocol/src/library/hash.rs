//! What a library is known by: the SHA-256 of its file.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The SHA-256 (FIPS 180-4) of a library's file. In JSON and text, 64 hex digits.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[serde(try_from = "String", into = "String")]
#[repr(C)]
pub struct LibraryHash(pub [u8; 32]);

impl LibraryHash {
    /// Returns that of a library whose file is `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        LibraryHash(Sha256::digest(bytes).into())
    }
}

/// Computes a [`LibraryHash`] of bytes that come one after the other.
#[derive(Clone, Debug, Default)]
pub struct LibraryHasher(Sha256);

impl LibraryHasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of all of them.
    pub fn finish(self) -> LibraryHash {
        LibraryHash(self.0.finalize().into())
    }
}

impl fmt::Display for LibraryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LibraryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<LibraryHash> for String {
    fn from(hash: LibraryHash) -> String {
        hash.to_string()
    }
}

impl TryFrom<String> for LibraryHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a SHA-256 is 64 hex digits";
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(WRONG);
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(LibraryHash(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_standard_however_the_bytes_come() {
        // FIPS 180-2, B.1.
        const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(LibraryHash::of(b"abc").to_string(), OF_ABC);
        let mut hasher = LibraryHasher::default();
        hasher.update(b"a");
        hasher.update(b"");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), LibraryHash::of(b"abc"));
    }

    #[test]
    fn text_is_read_back_and_what_is_no_hash_is_refused() {
        let hash = LibraryHash::of(b"abc");
        assert_eq!(LibraryHash::try_from(hash.to_string()), Ok(hash));
        for bad in [String::new(), "f".repeat(63), "f".repeat(65), "g".repeat(64), "é".repeat(32)]
        {
            assert!(LibraryHash::try_from(bad.clone()).is_err(), "{bad}");
        }
    }
}
