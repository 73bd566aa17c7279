//! Where a timeline was left, as far as the history files know. Pure.
//!
//! PostgreSQL asks the parent timeline for the segment of a switch when the child's is not there. What the parent wrote
//! beyond the switch is of a branch that the recovery does not follow: replayed, it would corrupt the copy silently.

use crate::pg::{Lsn, TimelineHistory, TimelineId};

/// A timeline leaves its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    /// Where: the parent's WAL counts up to here, exclusively.
    pub(super) at: Lsn,
    /// Who.
    pub(super) child: TimelineId,
}

/// Where `timeline` was left before `end`; `None` if all of it up to there counts. `target` is the timeline to which
/// the recovery goes, if that is known: on it nothing is left, and on its way its own history decides. Otherwise the
/// earliest leaving does, whoever left: then no byte of another branch is delivered.
pub(super) fn leaving(
    timeline: TimelineId,
    end: Lsn,
    histories: &[TimelineHistory],
    target: Option<TimelineId>,
) -> Option<Leaving> {
    if target == Some(timeline) {
        return None;
    }
    let of = |history: &TimelineHistory| {
        let at = history.left_at(timeline)?;
        let child = history.timeline;
        Some(Leaving { at, child })
    };
    let path = histories.iter().find(|h| Some(h.timeline) == target);
    let leaving = match path.and_then(of) {
        Some(leaving) => Some(leaving),
        None => histories.iter().filter_map(of).min_by_key(|l| l.at),
    };
    leaving.filter(|leaving| leaving.at < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_path_decides_else_the_earliest() {
        let history =
            |timeline: u32, text: &str| TimelineHistory::parse(TimelineId(timeline), text).unwrap();
        let histories = [
            history(2, "1\t0/200\tx\n"),
            history(3, "1\t0/300\tx\n"),
            history(4, "1\t0/200\tx\n2\t0/400\tx\n"),
        ];
        let ask = |timeline: u32, end: u64, target: Option<u32>| {
            let target = target.map(TimelineId);
            let found = leaving(TimelineId(timeline), Lsn(end), &histories, target);
            found.map(|leaving| (leaving.at.0, leaving.child.0))
        };
        assert_eq!(ask(1, 0x1000, None), Some((0x200, 2)));
        assert_eq!(ask(1, 0x1000, Some(3)), Some((0x300, 3)));
        assert_eq!(ask(1, 0x1000, Some(4)), Some((0x200, 4)));
        assert_eq!(ask(1, 0x1000, Some(1)), None);
        assert_eq!(ask(2, 0x1000, None), Some((0x400, 4)));
        assert_eq!(ask(2, 0x1000, Some(2)), None);
        // A target of which nothing is known.
        assert_eq!(ask(1, 0x1000, Some(9)), Some((0x200, 2)));
        // Not yet left.
        assert_eq!(ask(1, 0x200, None), None);
        assert_eq!(ask(1, 0x201, None), Some((0x200, 2)));
        assert_eq!(ask(1, 0x300, Some(3)), None);
        assert_eq!(ask(3, 0x1000, None), None);
    }
}
