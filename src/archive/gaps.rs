//! Gaps: WAL that an operator knowingly skipped (`wal-receive --accept-gap`). A marker is created once and never
//! changed; its name says everything that a recovery must know, its text is for people.
//!
//! Without the marker the end of the WAL before the gap would look like the end of all WAL, and a recovery would open
//! there and seem complete.

use super::{Archive, keys, render_json};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::pg::{Lsn, Segment, SegmentSize, SystemId, TimelineId};
use serde::Serialize;

/// WAL that nobody has: of `timeline`, from `start` up to `end`, exclusively.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte that is missing.
    pub start: Lsn,
    /// The first byte that is there again.
    pub end: Lsn,
}

/// The marker as it is stored.
#[derive(Serialize)]
struct Document {
    format: u32,
    system_identifier: SystemId,
    timeline: u32,
    start_lsn: String,
    end_lsn: String,
    created: String,
}

const FORMAT: u32 = 1;

impl Archive {
    /// Leaves the marker of a gap. One that is there already, of the same gap, is as good.
    pub fn put_gap(&self, gap: Gap, system_id: SystemId, now: Timestamp) -> Result<()> {
        if gap.start >= gap.end {
            return Err(Error::new(
                Kind::Bug,
                format!("{} to {} is no gap", gap.start, gap.end),
            ));
        }
        let key = keys::gap(gap.timeline, gap.start, gap.end);
        let document = Document {
            format: FORMAT,
            system_identifier: system_id,
            timeline: gap.timeline.0,
            start_lsn: gap.start.to_string(),
            end_lsn: gap.end.to_string(),
            created: now.to_string(),
        };
        match self.create(&key, &render_json(&document)) {
            Err(e) if e.kind() == Kind::Exists => self.store.settle(&key),
            other => other,
        }
        .map_err(|e| {
            e.context(format!(
                "could not mark the gap from {} to {}",
                gap.start, gap.end
            ))
        })
    }

    /// The gaps of a timeline that are marked, in the order of their start.
    pub fn gaps(&self, timeline: TimelineId) -> Result<Vec<Gap>> {
        let mut gaps = Vec::new();
        self.each_gap(timeline, &mut |gap| {
            gaps.push(gap);
            Ok(true)
        })?;
        Ok(gaps)
    }

    /// A segment of which some byte was knowingly skipped is a hole: recovery must not end there as if it were the
    /// end. (`segment_size`: without it nothing is known of the segment's place, and nothing is refused.)
    pub(super) fn refuse_gap(
        &self,
        segment: Option<Segment>,
        segment_size: Option<SegmentSize>,
    ) -> Result<()> {
        let (Some(segment), Some(size)) = (segment, segment_size) else {
            return Ok(());
        };
        let (start, end) = (segment.start(size)?, segment.next(size)?.start(size)?);
        self.each_gap(segment.timeline, &mut |gap| {
            if end <= gap.start || gap.end <= start {
                return Ok(true);
            }
            let key = keys::gap(gap.timeline, gap.start, gap.end);
            Err(Error::new(
                Kind::Hole,
                format!(
                    "WAL from {} to {} was knowingly skipped (object {key})",
                    gap.start, gap.end
                ),
            ))
        })
    }

    /// Gaps of a timeline in the order of their start, until `each` answers `false`.
    fn each_gap(
        &self,
        timeline: TimelineId,
        each: &mut dyn FnMut(Gap) -> Result<bool>,
    ) -> Result<()> {
        let prefix = keys::gaps_of(timeline);
        self.store.list(
            &prefix,
            "",
            &mut |object| match keys::parse_gap(&object.key) {
                Some((timeline, start, end)) => each(Gap {
                    timeline,
                    start,
                    end,
                }),
                None => Ok(true),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::testing;

    const GAP: Gap = Gap {
        timeline: TimelineId(1),
        start: Lsn(0x250_0000),
        end: Lsn(0x400_0000),
    };

    #[test]
    fn a_marker_is_left_once_and_found_by_every_segment_in_it() {
        let archive = testing::archive();
        let put = |gap, now| archive.put_gap(gap, SystemId(7), Timestamp(now));
        put(GAP, 0).unwrap();
        let key = keys::gap(GAP.timeline, GAP.start, GAP.end);
        let first = archive.read_document(&key).unwrap();
        put(GAP, 1).unwrap();
        assert_eq!(archive.read_document(&key).unwrap(), first, "create-only");
        let text = String::from_utf8(first).unwrap();
        assert!(text.contains("\"start_lsn\": \"0/2500000\""), "{text}");

        let other = Gap {
            timeline: TimelineId(2),
            ..GAP
        };
        put(other, 0).unwrap();
        assert_eq!(archive.gaps(TimelineId(1)).unwrap(), [GAP]);
        assert_eq!(archive.gaps(TimelineId(3)).unwrap(), []);
        let empty = Gap {
            end: GAP.start,
            ..GAP
        };
        assert_eq!(put(empty, 0).unwrap_err().kind(), Kind::Bug);

        let size = SegmentSize::DEFAULT;
        for (number, inside) in [(1, false), (2, true), (3, true), (4, false)] {
            let lsn = Lsn(number * size.bytes());
            let segment = Segment::holding(TimelineId(1), lsn, size);
            let answer = archive.refuse_gap(Some(segment), Some(size));
            let kind = answer.err().map(|e| e.kind());
            assert_eq!(kind, inside.then_some(Kind::Hole), "{segment}");
        }
    }
}
