//! The cluster secret: where it is configured, which of the places counts, whether it is any good.
//!
//! ```text
//!   RFAAS_SECRET (environment) ─▶ else "secret_file" ─▶ else "rdma-secret", "resource_manager_secret"
//! ```
//! Leases and registrations are signed with it (HMAC-SHA256), so whoever can guess it can lease
//! everything.
//!
//! A line end behind it is no part of it, wherever it stands: tools that write files and environments
//! put one there, or take it away, and a cluster has one secret.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::file::{ConfigError, read_bounded};
use crate::shell;

/// Environment variable with the cluster secret.
pub const SECRET_VARIABLE: &str = "RFAAS_SECRET";

/// Fewest bytes of a secret that is not told to be weak: 128 bits (NIST SP 800-107, 5.3.4).
const STRONG_BYTES: usize = 16;

/// A secret as configuration files have it: a text, or a number as in rFaaS, which stands for its decimal
/// digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(String);

impl From<u32> for SecretValue {
    fn from(number: u32) -> Self {
        SecretValue(number.to_string())
    }
}

impl Default for SecretValue {
    /// Returns that of the tutorial.
    fn default() -> Self {
        42.into()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.parse::<u32>() {
            Ok(number) if number.to_string() == self.0 => serializer.serialize_u32(number),
            _ => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = SecretValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 4294967295, or a text that is not empty")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<SecretValue, E> {
                let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(SecretValue::from).map_err(wrong)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<SecretValue, E> {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretValue, E> {
                if trimmed(text.as_bytes()).is_empty() {
                    return Err(E::invalid_value(Unexpected::Str(text), &self));
                }
                Ok(SecretValue(text.to_owned()))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

/// The cluster secret, found.
#[derive(Clone)]
pub struct ClusterSecret {
    bytes: Arc<[u8]>,
    warning: Option<String>,
}

impl ClusterSecret {
    /// Returns the secret of a program whose configuration has `value` and `file` (empty: none):
    /// that of the environment if there is one, else that in the file, else the value.
    pub fn load(value: &SecretValue, file: &str) -> Result<Self, ConfigError> {
        let environment = std::env::var_os(SECRET_VARIABLE).unwrap_or_default();
        if !trimmed(environment.as_bytes()).is_empty() {
            return Ok(Self::judged(environment.as_bytes(), SECRET_VARIABLE));
        }
        if file.is_empty() {
            return Ok(Self::of(value));
        }
        Self::read(Path::new(file))
    }

    /// Returns the secret that `value` stands for, whatever environment and files say.
    pub fn of(value: &SecretValue) -> Self {
        Self::judged(value.0.as_bytes(), "the configuration")
    }

    /// Returns the content of a file.
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |reason| ConfigError::Read { path: path.to_owned(), reason };
        let bytes = read_bounded(path).map_err(failed)?;
        if trimmed(&bytes).is_empty() {
            let why = "is empty: write the cluster secret into it, such as `openssl rand -hex 32`";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
        let mut secret = Self::judged(&bytes, "secret_file");
        if mode & 0o077 != 0 {
            let command = shell::line([OsStr::new("chmod"), OsStr::new("600"), path.as_os_str()]);
            let open = format!("{} is open to others: {command}", path.display());
            secret.warning.get_or_insert(open);
        }
        Ok(secret)
    }

    fn judged(bytes: &[u8], origin: &str) -> Self {
        let bytes = trimmed(bytes);
        let count = bytes.len();
        let warning = (count < STRONG_BYTES).then(|| {
            format!(
                "the cluster secret from {origin} is weak ({count} bytes): whoever guesses it can lease \
                 every node; put the output of `openssl rand -hex 32` into a file and name it in secret_file"
            )
        });
        ClusterSecret { bytes: bytes.into(), warning }
    }

    /// Returns the key of signatures.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Returns what the operator should know about it.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

/// Returns `secret` without the line ends behind it.
fn trimmed(mut secret: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = secret {
        secret = rest;
    }
    secret
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Result<SecretValue, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_number_stands_for_its_digits_and_a_text_for_itself() {
        for (json, bytes) in [("42", "42"), ("4294967295", "4294967295"), (r#""a b""#, "a b")] {
            let value = value(json).unwrap();
            assert_eq!(&**ClusterSecret::of(&value).bytes(), bytes.as_bytes());
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
        }
        for wrong in ["-1", "4294967296", "\"\"", "\"\\n\"", "true", "1.5"] {
            assert!(value(wrong).unwrap_err().contains("a number from 0 to"), "{wrong}");
        }
    }

    #[test]
    fn a_short_secret_is_told_to_be_weak_and_never_shown() {
        let weak = ClusterSecret::of(&42.into());
        assert!(weak.warning().unwrap().contains("weak (2 bytes)"));
        assert!(!format!("{weak:?} {:?}", SecretValue::from(42)).contains("42"));
        let strong = ClusterSecret::of(&value("\"0123456789abcdef\"").unwrap());
        assert_eq!(strong.warning(), None);
    }

    #[test]
    fn a_file_is_read_without_its_last_line_end_and_should_be_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o600);
        let secret = ClusterSecret::read(&path).unwrap();
        assert_eq!((&**secret.bytes(), secret.warning()), (&b"0123456789abcdef"[..], None));
        mode(0o644);
        assert!(ClusterSecret::read(&path).unwrap().warning().unwrap().contains("chmod 600"));
    }

    #[test]
    fn a_line_end_behind_a_secret_is_no_part_of_it_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let plain = ClusterSecret::of(&value("\"0123456789abcdef\"").unwrap());
        for ended in ["0123456789abcdef\n", "0123456789abcdef\r\n", "0123456789abcdef"] {
            std::fs::write(&path, ended).unwrap();
            let of_a_value = ClusterSecret::of(&SecretValue(ended.into()));
            let of_the_environment = ClusterSecret::judged(ended.as_bytes(), SECRET_VARIABLE);
            for secret in [ClusterSecret::read(&path).unwrap(), of_a_value, of_the_environment] {
                assert_eq!(secret.bytes(), plain.bytes());
            }
        }
        let inside = ClusterSecret::of(&SecretValue("\n0123456789\nabcdef ".into()));
        assert_eq!(&**inside.bytes(), b"\n0123456789\nabcdef ");
    }

    #[test]
    fn a_file_that_is_missing_or_empty_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert!(ClusterSecret::read(&path).unwrap_err().to_string().contains("secret"));
        std::fs::write(&path, "\n").unwrap();
        assert!(ClusterSecret::read(&path).unwrap_err().to_string().contains("is empty"));
    }
}
