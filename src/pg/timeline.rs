//! Timelines and their history files (`0000000N.history`): which timeline holds which part of the WAL.
//!
//! Format (PostgreSQL, `timeline.c`): one line per ancestor, `tli <tab> X/X <tab> reason`; `#` starts a comment,
//! empty lines are allowed; timelines ascend. The position is where the ancestor was left. Positions need not ascend:
//! a recovery along timeline 2 that ends at a target before timeline 2 began leaves it "at" that target, so 2 holds
//! nothing on the way to 3, and 1 counts only up to there.

use super::Lsn;
use super::segment::hex8;
use crate::error::{Error, Kind, Result};
use std::fmt;
use std::ops::Range;

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
    /// Where it was left, exclusively. It existed up to here, if this lies after its begin at all.
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
            if ancestors.last().is_some_and(|last| last.timeline >= id) || id >= timeline {
                return Err(bad("timelines must ascend"));
            }
            ancestors.push(Ancestor { timeline: id, end });
        }
        Ok(TimelineHistory {
            timeline,
            ancestors,
        })
    }

    /// The timeline of this history that holds the byte at `lsn`: the newest that had begun there, as PostgreSQL
    /// has it.
    pub fn holding(&self, lsn: Lsn) -> TimelineId {
        match self.ancestors.iter().rposition(|a| a.end <= lsn) {
            Some(last_left) => self.timeline_at(last_left + 1),
            None => self.timeline_at(0),
        }
    }

    /// Each timeline with the range of the WAL that it holds on this way, from and up to, oldest first. A range is empty
    /// where a timeline was left before it had any WAL of its own.
    pub fn ranges(&self) -> impl Iterator<Item = (TimelineId, Lsn, Lsn)> {
        (0..=self.ancestors.len()).map(|at| {
            let from = self.begin(at);
            let end = self.ancestors[at..].iter().map(|a| a.end).min();
            let end = end.unwrap_or(Lsn(u64::MAX)).max(from);
            (self.timeline_at(at), from, end)
        })
    }

    /// Where `timeline` was left on the way to this one; `None` for this one itself, a stranger, and an ancestor that
    /// holds nothing on this way.
    pub fn left_at(&self, timeline: TimelineId) -> Option<Lsn> {
        let at = self.position(timeline)?;
        let end = self.ancestors[at..].iter().map(|a| a.end).min()?;
        (self.begin(at) < end).then_some(end)
    }

    /// The WAL of an ancestor that there was when it was left, whatever of it lies on the way to this one: from where
    /// it began to where the next one left it. `None` for what is no ancestor; empty if it was left before it began.
    pub fn existed(&self, timeline: TimelineId) -> Option<Range<Lsn>> {
        let at = self.position(timeline)?;
        Some(self.begin(at)..self.ancestors[at].end)
    }

    /// Whether `timeline` is this one or an ancestor.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.position(timeline).is_some()
    }

    fn position(&self, timeline: TimelineId) -> Option<usize> {
        self.ancestors.iter().position(|a| a.timeline == timeline)
    }

    fn timeline_at(&self, at: usize) -> TimelineId {
        self.ancestors.get(at).map_or(self.timeline, |a| a.timeline)
    }

    /// Where the ancestor at this place left the one before it.
    fn begin(&self, at: usize) -> Lsn {
        match at.checked_sub(1) {
            Some(before) => self.ancestors[before].end,
            None => Lsn(0),
        }
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
        let ranges: Vec<_> = history.ranges().map(|(t, a, b)| (t.0, a.0, b.0)).collect();
        let expected = [
            (1, 0, 0x300_0000),
            (2, 0x300_0000, 0x500_0060),
            (4, 0x500_0060, u64::MAX),
        ];
        assert_eq!(ranges, expected);
    }

    /// What PostgreSQL 15 wrote: timeline 2 left 1 at 0/C000B8, and a recovery along 2 ended at 0/B000B8.
    const BACK: &str =
        "1\t0/C000B8\tbefore 2026-11-27 09:12:00+00\n2\t0/B000B8\tat restore point \"x\"\n";

    #[test]
    fn ranges_are_what_timelines_hold() {
        let history = TimelineHistory::parse(TimelineId(3), BACK).unwrap();
        let ranges: Vec<_> = history.ranges().map(|(t, a, b)| (t.0, a.0, b.0)).collect();
        let (back, on) = (0xB0_00B8, 0xC0_00B8);
        assert_eq!(ranges, [(1, 0, back), (2, on, on), (3, back, u64::MAX)]);
        for (timeline, from, to) in history.ranges() {
            if from < to {
                assert_eq!(history.holding(from), timeline);
                assert_eq!(history.holding(Lsn(to.0 - 1)), timeline);
            }
        }
    }

    #[test]
    fn an_ancestor_left_before_it_began_holds_nothing() {
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        // The text, the timeline; then for each ancestor: left at, existed from and to.
        type Row<'a> = (u32, &'a str, &'a [(u32, Option<&'a str>, &'a str, &'a str)]);
        let rows: &[Row<'_>] = &[
            (
                3,
                BACK,
                &[
                    (1, Some("0/B000B8"), "0/0", "0/C000B8"),
                    (2, None, "0/C000B8", "0/B000B8"),
                ],
            ),
            (
                3,
                "1 0/C000B8\n2 0/C000B8\n",
                &[
                    (1, Some("0/C000B8"), "0/0", "0/C000B8"),
                    (2, None, "0/C000B8", "0/C000B8"),
                ],
            ),
            // Further along 3, or back before even that.
            (
                4,
                "1 0/C000B8\n2 0/B000B8\n3 0/D000B8\n",
                &[
                    (1, Some("0/B000B8"), "0/0", "0/C000B8"),
                    (2, None, "0/C000B8", "0/B000B8"),
                    (3, Some("0/D000B8"), "0/B000B8", "0/D000B8"),
                ],
            ),
            (
                4,
                "1 0/C000B8\n2 0/B000B8\n3 0/A000B8\n",
                &[
                    (1, Some("0/A000B8"), "0/0", "0/C000B8"),
                    (2, None, "0/C000B8", "0/B000B8"),
                    (3, None, "0/B000B8", "0/A000B8"),
                ],
            ),
        ];
        for (timeline, text, ancestors) in rows {
            let history = TimelineHistory::parse(TimelineId(*timeline), text).unwrap();
            for (id, left_at, from, to) in *ancestors {
                let (id, what) = (TimelineId(*id), format!("{id} in {text:?}"));
                assert!(history.contains(id), "{what}");
                assert_eq!(history.left_at(id), left_at.map(lsn), "{what}");
                assert_eq!(history.existed(id), Some(lsn(from)..lsn(to)), "{what}");
            }
            assert_eq!(history.left_at(TimelineId(*timeline)), None);
            assert_eq!(history.existed(TimelineId(*timeline)), None);
        }

        let history = TimelineHistory::parse(TimelineId(3), BACK).unwrap();
        for (at, timeline) in [
            ("0/0", 1),
            ("0/B000B7", 1),
            ("0/B000B8", 3),
            ("0/C000B7", 3),
            ("0/C000B8", 3),
            ("9/0", 3),
        ] {
            assert_eq!(history.holding(lsn(at)), TimelineId(timeline), "{at}");
        }
    }

    #[test]
    fn refuses_what_does_not_ascend() {
        for text in [
            "x 0/0",
            "1",
            "1 0",
            "2 0/1\n1 0/2",
            "2 0/1\n2 0/2",
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
