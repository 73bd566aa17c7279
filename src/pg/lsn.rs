//! Lsn: a byte position in the write-ahead log, printed `X/X` as PostgreSQL does.

use crate::error::{Error, Kind, Result};
use std::{fmt, str::FromStr};

/// A byte position in the write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid position, `0/0`.
    pub const INVALID: Lsn = Lsn(0);
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Lsn> {
        let half = |part: &str| {
            let digits =
                !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| {
                Error::new(Kind::Usage, format!("\"{text}\" is not an LSN"))
                    .hint("An LSN is two hexadecimal numbers, as in 16/B374D848.")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/1000028"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "0/123456789",
            "g/0",
            "+1/0",
            "0/-1",
            "0/0/0",
            " 0/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
