//! WalName: the only parser of `%f`, the file names that PostgreSQL gives to `archive_command` and asks
//! `restore_command` for.

use super::segment::hex8;
use super::{Segment, TimelineId};
use crate::error::{Error, Kind, Result};
use std::fmt;
use std::str::FromStr;

/// A name in `pg_wal` that can be archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// `<24 hex>`: a complete segment.
    Segment(Segment),
    /// `<24 hex>.partial`: the last segment of a timeline that was left by a promotion.
    Partial(Segment),
    /// `<8 hex>.history`: the ancestors of a timeline.
    History(TimelineId),
    /// `<24 hex>.<8 hex>.backup`: start segment and offset of a base backup.
    BackupHistory(Segment, u32),
}

impl WalName {
    /// The segment that the name speaks of, if any.
    pub fn segment(self) -> Option<Segment> {
        match self {
            WalName::Segment(s) | WalName::Partial(s) | WalName::BackupHistory(s, _) => Some(s),
            WalName::History(_) => None,
        }
    }

    /// The timeline that the name speaks of.
    pub fn timeline(self) -> TimelineId {
        match self {
            WalName::History(timeline) => timeline,
            WalName::Segment(s) | WalName::Partial(s) | WalName::BackupHistory(s, _) => s.timeline,
        }
    }
}

impl FromStr for WalName {
    type Err = Error;

    fn from_str(name: &str) -> Result<WalName> {
        let parsed = match name.split_once('.') {
            None => Segment::parse(name).map(WalName::Segment),
            Some((stem, "partial")) => Segment::parse(stem).map(WalName::Partial),
            Some((stem, "history")) => TimelineId::parse_hex(stem).map(WalName::History),
            Some((stem, rest)) => rest.strip_suffix(".backup").and_then(|offset| {
                Some(WalName::BackupHistory(Segment::parse(stem)?, hex8(offset)?))
            }),
        };
        parsed.ok_or_else(|| {
            Error::new(Kind::Usage, format!("\"{name}\" is not the name of a WAL file"))
                .detail(
                    "Names are 24 upper case hexadecimal digits, alone or with .partial or .XXXXXXXX.backup, \
                     or 8 digits with .history.",
                )
                .hint("Check that archive_command passes %p and restore_command passes %f.")
        })
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalName::Segment(segment) => write!(f, "{segment}"),
            WalName::Partial(segment) => write!(f, "{segment}.partial"),
            WalName::History(timeline) => f.write_str(&timeline.history_name()),
            WalName::BackupHistory(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for name in [
            "0000000100000000000000FF",
            "0000000100000000000000FF.partial",
            "0000000A.history",
            "0000000100000000000000FF.00000028.backup",
        ] {
            assert_eq!(name.parse::<WalName>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "",
            ".",
            "x",
            "RECOVERYXLOG",
            "0000000100000000000000ff",
            "0000000100000000000000FF.",
            "00000000.history",
            "0000000100000000000000FF.zst",
            "0000000100000000000000FF.28.backup",
            "000000010000000000000000FF",
            "0000000100000000000000FF.partial.zst",
            "../0000000100000000000000FF",
            "0000000A.history.tmp",
            "0000000100000000000000FF.00000028.backup.backup",
            "00000001é0000000000000F",
        ] {
            assert_eq!(
                name.parse::<WalName>().unwrap_err().kind(),
                Kind::Usage,
                "{name}"
            );
        }
    }
}
