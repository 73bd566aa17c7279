//! SystemId: the number that initdb gives to a cluster and that all its copies share.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// PostgreSQL's system identifier. Printed in decimal; in JSON it is a string, because a JSON number loses the
/// low digits of 64 bits in most readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = Error;

    /// Parses decimal digits. A negative number is read as well: `pg_control_system()` returns the identifier
    /// as a signed bigint.
    fn from_str(text: &str) -> Result<SystemId> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let parsed = decimal.then(|| match text.starts_with('-') {
            true => text.parse::<i64>().ok().map(i64::cast_unsigned),
            false => text.parse::<u64>().ok(),
        });
        parsed.flatten().map(SystemId).ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!("\"{text}\" is not a system identifier"),
            )
            .detail("A system identifier is a decimal number of 64 bits.")
        })
    }
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for text in ["0", "7392817263512345678", "18446744073709551615"] {
            assert_eq!(text.parse::<SystemId>().unwrap().to_string(), text);
        }
        assert_eq!("-1".parse::<SystemId>().unwrap(), SystemId(u64::MAX));
        for text in ["", "-", "+1", " 1", "1 ", "0x1", "18446744073709551616"] {
            assert!(text.parse::<SystemId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn json_holds_a_string() {
        let id = SystemId(7392817263512345678);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"7392817263512345678\"");
        assert_eq!(serde_json::from_str::<SystemId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SystemId>("7392817263512345678").is_err());
    }
}
