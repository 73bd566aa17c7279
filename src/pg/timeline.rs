//! Timelines and their history files (`0000000N.history`): which timeline holds which part of the WAL.
//!
//! Format (PostgreSQL, `timeline.c`): one line per ancestor, `tli <tab> X/X <tab> reason`; `#` starts a comment,
//! empty lines are allowed; timelines ascend. The position is where the ancestor was left.

use super::Lsn;
use super::segment::hex8;
use crate::error::{Error, Kind, Result};
use std::fmt;

/// A timeline identifier; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The name of its history file, `0000000N.history`.
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// Parses the eight upper case digits that start a WAL file name.
    pub fn parse_hex(text: &str) -> Option<TimelineId> {
        hex8(text).filter(|id| *id > 0).map(TimelineId)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One ancestor: the timeline, and the position at which it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The ancestor's identifier.
    pub timeline: TimelineId,
    /// Its WAL counts up to here, exclusively.
    pub end: Lsn,
}

/// The ancestors of a timeline, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline this is the history of.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first.
    pub ancestors: Vec<Ancestor>,
}

impl TimelineHistory {
    /// Timeline 1, and any timeline without history file, has no ancestors.
    pub fn root(timeline: TimelineId) -> TimelineHistory {
        TimelineHistory {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Parses a history file.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<TimelineHistory> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: &str| {
                Error::new(
                    Kind::Corrupt,
                    format!("{} is not a timeline history", timeline.history_name()),
                )
                .detail(format!("Line {}: {why}: \"{line}\".", number + 1))
            };
            let mut words = line.split_whitespace();
            let id = words
                .next()
                .and_then(|word| word.parse().ok())
                .filter(|id| *id > 0);
            let id = TimelineId(id.ok_or_else(|| bad("no timeline number"))?);
            let end = words
                .next()
                .and_then(|word| word.parse().ok())
                .ok_or_else(|| bad("no switch position"))?;
            if ancestors
                .last()
                .is_some_and(|last| last.timeline >= id || last.end > end)
                || id >= timeline
            {
                return Err(bad("timelines and positions must ascend"));
            }
            ancestors.push(Ancestor { timeline: id, end });
        }
        Ok(TimelineHistory {
            timeline,
            ancestors,
        })
    }

    /// The timeline of this history that holds the byte at `lsn`.
    pub fn holding(&self, lsn: Lsn) -> TimelineId {
        self.ancestors
            .iter()
            .find(|a| lsn < a.end)
            .map_or(self.timeline, |a| a.timeline)
    }

    /// Where `timeline` was left on the way to this one; `None` for this one itself or a stranger.
    pub fn left_at(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors
            .iter()
            .find(|a| a.timeline == timeline)
            .map(|a| a.end)
    }

    /// Whether `timeline` is this one or an ancestor.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.left_at(timeline).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_timeline_of_a_position() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# comment\n2\t0/5000060\tat restore point \"x\"\n";
        let history = TimelineHistory::parse(TimelineId(4), text).unwrap();
        let cases = [
            ("0/0", 1),
            ("0/2FFFFFF", 1),
            ("0/3000000", 2),
            ("0/500005F", 2),
            ("0/5000060", 4),
            ("9/0", 4),
        ];
        for (lsn, timeline) in cases {
            assert_eq!(
                history.holding(lsn.parse().unwrap()),
                TimelineId(timeline),
                "{lsn}"
            );
        }
        assert!(history.contains(TimelineId(2)) && !history.contains(TimelineId(3)));
    }

    #[test]
    fn refuses_what_does_not_ascend() {
        for text in [
            "x 0/0",
            "1",
            "1 0",
            "2 0/1\n1 0/2",
            "1 0/2\n2 0/1",
            "4 0/1",
            "0 0/1",
        ] {
            assert!(
                TimelineHistory::parse(TimelineId(4), text).is_err(),
                "{text:?}"
            );
        }
    }
}
