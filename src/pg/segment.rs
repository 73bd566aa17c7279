//! Segments: the fixed-size pieces of the write-ahead log, by timeline and number. A `Segment` is an identity;
//! bytes on disk are a segment file, the object in the store is an archived segment.

use super::{Lsn, TimelineId};
use crate::error::{Error, Kind, Result};
use std::fmt;

/// Size of the cluster's WAL segments in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// The smallest possible one, 1 MiB.
    pub const SMALLEST: SegmentSize = SegmentSize(1 << 20);

    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// Checks that `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<SegmentSize> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            return Ok(SegmentSize(bytes as u32));
        }
        Err(Error::new(
            Kind::Corrupt,
            format!("{bytes} bytes is not a WAL segment size"),
        )
        .detail("WAL segments are a power of two from 1 MiB to 1 GiB."))
    }

    /// Parses the setting `wal_segment_size` as SHOW prints it: `16MB`, `1GB`.
    pub fn from_setting(text: &str) -> Result<SegmentSize> {
        let unit = |suffix: &str, bytes: u64| {
            let number = text.strip_suffix(suffix)?.trim().parse::<u64>().ok()?;
            Some(number.saturating_mul(bytes))
        };
        let bytes = unit("MB", 1 << 20)
            .or_else(|| unit("GB", 1 << 30))
            .or_else(|| unit("kB", 1 << 10));
        SegmentSize::new(bytes.unwrap_or(0))
    }

    /// Smaller than PostgreSQL allows, so that simulated disks are quick.
    #[cfg(test)]
    pub(crate) const fn tiny(bytes: u32) -> SegmentSize {
        assert!(bytes.is_power_of_two());
        SegmentSize(bytes)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share the middle eight digits of a name.
    fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// Number of a segment from the start of the WAL: LSN divided by the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// The segment that holds the byte at `lsn`.
    pub fn holding(lsn: Lsn, size: SegmentSize) -> SegmentNo {
        SegmentNo(lsn.0 / size.bytes())
    }

    /// Its first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0 * size.bytes())
    }

    /// The one after it.
    pub fn next(self) -> SegmentNo {
        SegmentNo(self.0 + 1)
    }
}

/// A segment's name, 24 hexadecimal digits: timeline, log, segment in log. Ordered as names are: by timeline,
/// then by position. Without the segment size its number is not known, so the name keeps the two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline it belongs to.
    pub timeline: TimelineId,
    log: u32,
    low: u32,
}

impl Segment {
    /// The segment with this number on this timeline.
    pub fn new(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Segment {
        let (log, low) = (number.0 / size.per_log(), number.0 % size.per_log());
        Segment {
            timeline,
            log: log as u32,
            low: low as u32,
        }
    }

    /// The segment that holds the byte at `lsn`.
    pub fn holding(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Segment {
        Segment::new(timeline, SegmentNo::holding(lsn, size), size)
    }

    /// Parses exactly 24 upper case hexadecimal digits.
    pub fn parse(name: &str) -> Option<Segment> {
        if name.len() != 24 {
            return None;
        }
        let timeline = hex8(name.get(0..8)?)?;
        let (log, low) = (hex8(name.get(8..16)?)?, hex8(name.get(16..24)?)?);
        (timeline > 0).then_some(Segment {
            timeline: TimelineId(timeline),
            log,
            low,
        })
    }

    /// Its number, if the name is possible with this segment size.
    pub fn number(self, size: SegmentSize) -> Result<SegmentNo> {
        if u64::from(self.low) >= size.per_log() {
            return Err(Error::new(
                Kind::Mismatch,
                format!(
                    "segment {self} cannot exist with {} byte segments",
                    size.bytes()
                ),
            )
            .hint("Check that this archive belongs to this cluster: their segment sizes differ."));
        }
        Ok(SegmentNo(
            u64::from(self.log) * size.per_log() + u64::from(self.low),
        ))
    }

    /// Its first byte, if the name is possible with this segment size.
    pub fn start(self, size: SegmentSize) -> Result<Lsn> {
        Ok(self.number(size)?.start(size))
    }

    /// The segment after it on the same timeline.
    pub fn next(self, size: SegmentSize) -> Result<Segment> {
        Ok(Segment::new(self.timeline, self.number(size)?.next(), size))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.low)
    }
}

/// Exactly eight upper case hexadecimal digits, as PostgreSQL writes them.
pub(super) fn hex8(text: &str) -> Option<u32> {
    let valid = text.len() == 8
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    valid.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_segment_size() {
        let cases = [
            (16 << 20, "0/0", "000000010000000000000000"),
            (16 << 20, "0/FFFFFFFF", "0000000100000000000000FF"),
            (16 << 20, "1/0", "000000010000000100000000"),
            (1 << 20, "0/FFFFFFFF", "000000010000000000000FFF"),
            (1 << 30, "2/C0000000", "000000010000000200000003"),
        ];
        for (size, lsn, name) in cases {
            let size = SegmentSize::new(size).unwrap();
            let segment = Segment::holding(TimelineId(1), lsn.parse().unwrap(), size);
            assert_eq!(segment.to_string(), name);
            assert_eq!(Segment::parse(name), Some(segment));
            assert_eq!(
                Segment::new(TimelineId(1), segment.number(size).unwrap(), size),
                segment
            );
        }
    }

    #[test]
    fn sizes_as_show_prints_them() {
        for (text, bytes) in [
            ("16MB", 16 << 20),
            ("1MB", 1 << 20),
            ("1GB", 1 << 30),
            ("1024kB", 1 << 20),
        ] {
            let size = SegmentSize::from_setting(text).unwrap();
            assert_eq!(size.bytes(), bytes, "{text}");
        }
        for text in ["", "16", "17MB", "2GB", "MB", "99999999999999999999GB"] {
            assert!(SegmentSize::from_setting(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_next_segment_carries_over() {
        let size = SegmentSize::DEFAULT;
        let last = Segment::parse("0000000A00000003000000FF").unwrap();
        assert_eq!(
            last.next(size).unwrap().to_string(),
            "0000000A0000000400000000"
        );
    }

    #[test]
    fn impossible_names_and_sizes_are_refused() {
        for name in [
            "",
            "00000001000000000000000",
            "00000001000000000000000a",
            "000000000000000000000001",
            "+0000001000000000000000A",
        ] {
            assert_eq!(Segment::parse(name), None, "{name}");
        }
        let beyond = Segment::parse("000000010000000000000100").unwrap();
        assert_eq!(
            beyond.number(SegmentSize::DEFAULT).unwrap_err().kind(),
            Kind::Mismatch
        );
        assert!(beyond.number(SegmentSize::new(1 << 20).unwrap()).is_ok());
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 1 << 31] {
            assert!(SegmentSize::new(bytes).is_err());
        }
    }
}
