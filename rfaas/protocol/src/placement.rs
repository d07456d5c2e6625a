//! Placement: the names of its policies, and of what nodes are labelled with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest label of a node.
pub const MAX_LABEL_BYTES: usize = 64;
/// Most labels of a node.
pub const MAX_LABELS: usize = 16;

/// How the operator has leases placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// In the order in which nodes were added: as much on each as fits.
    #[default]
    FirstFit,
    /// On as few nodes as possible: as much as fits on the one with the most room, then on the next.
    BinPack,
    /// As `bin_pack`; but what could be better is judged by how many nodes it leaves empty.
    Compact,
    /// On as many nodes as possible, those with the most room first.
    Spread,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 4] =
        [Policy::FirstFit, Policy::BinPack, Policy::Compact, Policy::Spread];

    /// Returns its name in settings and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::FirstFit => "first_fit",
            Policy::BinPack => "bin_pack",
            Policy::Compact => "compact",
            Policy::Spread => "spread",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| {
            let all = Policy::ALL.map(Policy::name).join(", ");
            format!("no placement is named {name:?}; there are {all}")
        })
    }
}

impl Serialize for Policy {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// Checks the labels of a node; `Err` says what is wrong.
pub fn check_labels<L: AsRef<str>>(labels: &[L]) -> Result<(), String> {
    if labels.len() > MAX_LABELS {
        return Err(format!("labels has {}; at most {MAX_LABELS} are possible", labels.len()));
    }
    for (at, label) in labels.iter().map(AsRef::as_ref).enumerate() {
        if label.is_empty() || label.len() > MAX_LABEL_BYTES {
            let bytes = label.len();
            return Err(format!("labels[{at}] has {bytes} bytes, not 1 to {MAX_LABEL_BYTES}"));
        }
        if !label.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/=".contains(c)) {
            return Err(format!(
                "labels[{at}] is {label:?}; it may have ASCII letters, digits and any of -_.:/="
            ));
        }
        if labels[..at].iter().any(|earlier| earlier.as_ref() == label) {
            return Err(format!("labels[{at}] is {label:?}, which is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_has_one_name_everywhere_and_others_are_refused_with_the_known_ones() {
        for policy in Policy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        }
        let error = "best".parse::<Policy>().unwrap_err();
        assert_eq!(
            error,
            "no placement is named \"best\"; there are first_fit, bin_pack, compact, spread"
        );
    }

    #[test]
    fn labels_are_few_short_plain_and_different() {
        assert_eq!(check_labels(&["gpu", "rack=7", "a.b/c:d_e-f"]), Ok(()));
        assert_eq!(check_labels::<&str>(&[]), Ok(()));
        let long = "x".repeat(MAX_LABEL_BYTES + 1);
        for (labels, error) in [
            (vec![""], "labels[0] has 0 bytes, not 1 to 64"),
            (vec!["a", &long], "labels[1] has 65 bytes, not 1 to 64"),
            (vec!["a b"], "labels[0] is \"a b\"; it may have"),
            (vec!["a", "b", "a"], "labels[2] is \"a\", which is there twice"),
            (vec!["a"; 17], "labels has 17; at most 16 are possible"),
        ] {
            assert!(check_labels(&labels).unwrap_err().starts_with(error), "{labels:?}");
        }
    }
}
