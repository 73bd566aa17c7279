//! What waits for upload. The directory is the queue, so a restart and steady state share one path; and a segment goes
//! only after the archive has acknowledged it, which its `.done` mark says.

use super::resume::{self, Contents};
use super::{done_name, failed};
use crate::disk::Fs;
use crate::error::Result;
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineHistory, TimelineId};
use std::collections::BTreeSet;
use std::io;

/// One file that waits for upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Waiting {
    /// A timeline's history file.
    History(TimelineId),
    /// A whole segment.
    Segment(Segment),
}

/// How many archived segments stay in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None: they go as soon as the archive has them.
    None,
    /// So many of the newest.
    Count(usize),
    /// All of them.
    Always,
}

/// Uploads as the directory sees them. One thread uses it.
pub struct Queue<F: Fs> {
    fs: F,
    size: SegmentSize,
    /// History files that the archive acknowledged in this life. They have no mark: after a restart each is sent
    /// again, and found to be there.
    histories: BTreeSet<TimelineId>,
}

impl<F: Fs> Queue<F> {
    /// The queue of a directory.
    pub fn new(fs: F, size: SegmentSize) -> Queue<F> {
        Queue {
            fs,
            size,
            histories: BTreeSet::new(),
        }
    }

    /// What waits, in the order in which it is to be sent: timeline by timeline, each with its history file first, the
    /// oldest segment first. A segment must not be sent while a history file before it in this list is on its way:
    /// recovery follows a timeline as soon as it sees its history, and must not meet its segments without.
    pub fn waiting(&self) -> Result<Vec<Waiting>> {
        let contents = resume::look(&self.fs)?;
        let segments = contents.whole.difference(&contents.done);
        let mut waiting: Vec<Waiting> = segments.copied().map(Waiting::Segment).collect();
        let histories = contents.histories.difference(&self.histories);
        waiting.extend(histories.copied().map(Waiting::History));
        waiting.sort_by_key(|item| match item {
            Waiting::History(timeline) => (*timeline, None),
            Waiting::Segment(segment) => (segment.timeline, Some(*segment)),
        });
        Ok(waiting)
    }

    /// Notes that the archive acknowledged the whole object. Only then.
    pub fn mark_done(&mut self, item: Waiting) -> Result<()> {
        let segment = match item {
            Waiting::History(timeline) => {
                self.histories.insert(timeline);
                return Ok(());
            }
            Waiting::Segment(segment) => segment,
        };
        let name = done_name(segment);
        match self.fs.create_new(name.as_ref()) {
            // Not synced here: without its mark a segment is sent again, compared, and found to be there.
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(failed("create", &name, e)),
        }
    }

    /// Removes archived segments beyond what is to be kept, the oldest first, and marks that say nothing any more.
    /// Answers which segments were removed. Segments without mark stay, whatever is asked.
    pub fn trim(&mut self, keep: Keep) -> Result<Vec<Segment>> {
        let contents = resume::look(&self.fs)?;
        let removable = removable(&contents, keep);
        let stale = stale_marks(&contents, self.size)?;
        if removable.is_empty() && stale.is_empty() {
            return Ok(removable);
        }
        // In this order on the disk, too: first the mark, then the segment goes, then the mark. When the archive cannot
        // be asked, `resume` has nothing but the marks to know that a segment is not missing.
        self.fs.sync_dir().map_err(|e| failed("sync", "names", e))?;
        for mark in stale {
            self.remove(&done_name(mark))?;
        }
        for segment in &removable {
            self.remove(&segment.to_string())?;
        }
        Ok(removable)
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.fs.remove(name.as_ref()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", name, e)),
            _ => Ok(()),
        }
    }
}

/// Whole segments with a mark, less the newest that are kept.
fn removable(contents: &Contents, keep: Keep) -> Vec<Segment> {
    let archived: Vec<Segment> = contents
        .whole
        .intersection(&contents.done)
        .copied()
        .collect();
    let kept = match keep {
        Keep::None => 0,
        Keep::Count(count) => count,
        Keep::Always => archived.len(),
    };
    archived[..archived.len().saturating_sub(kept)].to_vec()
}

/// Marks of segments that are gone, once no older segment is left: then `resume` does not come by there any more. The
/// newest stays: in an empty spool it is all that shows how far we were.
fn stale_marks(contents: &Contents, size: SegmentSize) -> Result<Vec<Segment>> {
    let mut oldest: Option<SegmentNo> = None;
    for segment in &contents.whole {
        let number = segment.number(size)?;
        oldest = Some(oldest.map_or(number, |o| o.min(number)));
    }
    let mut stale = Vec::new();
    for segment in contents.done.difference(&contents.whole) {
        let number = segment.number(size)?;
        if oldest.is_none_or(|oldest| number < oldest) {
            stale.push((number, *segment));
        }
    }
    stale.sort();
    if contents.whole.is_empty() {
        stale.pop();
    }
    Ok(stale.into_iter().map(|(_, segment)| segment).collect())
}

/// How far the archive reaches without a hole: the LSN below which all WAL along the server's timelines is archived.
/// Pure; uploads may finish in any order.
#[derive(Clone, Debug)]
pub struct Archived {
    size: SegmentSize,
    path: TimelineHistory,
    next: SegmentNo,
    ahead: BTreeSet<Segment>,
}

impl Archived {
    /// At the start of a life, of which `start` is the first byte it receives: the unbroken part ends at the oldest
    /// segment that still waits in the spool. `archived` is what the archive is known to have, beside the marks.
    pub fn begin(
        contents: &Contents,
        archived: &BTreeSet<Segment>,
        path: TimelineHistory,
        size: SegmentSize,
        start: Lsn,
    ) -> Result<Archived> {
        // What earlier lives uploaded out of order is not acknowledged again.
        let ahead: BTreeSet<Segment> = contents.done.union(archived).copied().collect();
        let mut next = SegmentNo::holding(start, size);
        for segment in contents.whole.difference(&ahead) {
            let number = segment.number(size)?;
            if path.holding(last_byte(number, size)) == segment.timeline {
                next = next.min(number);
            }
        }
        let mut begun = Archived {
            size,
            path,
            next,
            ahead,
        };
        begun.advance();
        Ok(begun)
    }

    /// The position up to which the archive has everything. After a reconnect that may be more than was received again:
    /// what is reported to the server is the smaller of this and the write LSN.
    pub fn lsn(&self) -> Lsn {
        self.next.start(self.size)
    }

    /// The segment of `timeline` that is durable up to `durable`, if what it has says more than the archive. All before
    /// it must be archived, and a timeline that began in it must have come beyond its beginning: recovery asks for its
    /// file before the parent's, which has more.
    pub fn growing(&self, timeline: TimelineId, durable: Lsn) -> Option<Segment> {
        let number = SegmentNo::holding(durable, self.size);
        let began = self.path.ranges().find(|(t, ..)| *t == timeline)?.1;
        let grows = self.next == number && durable > number.start(self.size).max(began);
        grows.then(|| Segment::new(timeline, number, self.size))
    }

    /// The segments of which a whole one holds everything: itself, and those of the timelines that were left in it.
    pub fn held_by(&self, whole: Segment) -> Result<Vec<Segment>> {
        let number = whole.number(self.size)?;
        let (start, end) = (number.start(self.size), number.next().start(self.size));
        let here = |(timeline, from, to): (TimelineId, Lsn, Lsn)| {
            (from < end && start < to && timeline < whole.timeline)
                .then(|| Segment::new(timeline, number, self.size))
        };
        Ok(self.path.ranges().filter_map(here).chain([whole]).collect())
    }

    /// Notes that the archive acknowledged a segment.
    pub fn acknowledged(&mut self, segment: Segment) {
        self.ahead.insert(segment);
        self.advance();
    }

    /// The server went over to another timeline, which left the one before at `switch`. A segment of the old one that
    /// reaches beyond that does not count, so the position may step back.
    pub fn switch_timeline(&mut self, path: TimelineHistory, switch: Lsn) {
        self.path = path;
        self.next = self.next.min(SegmentNo::holding(switch, self.size));
        self.advance();
    }

    fn advance(&mut self) {
        loop {
            let timeline = self.path.holding(last_byte(self.next, self.size));
            let segment = Segment::new(timeline, self.next, self.size);
            if !self.ahead.remove(&segment) {
                return;
            }
            self.next = self.next.next();
        }
    }
}

fn last_byte(number: SegmentNo, size: SegmentSize) -> Lsn {
    Lsn(number.next().start(size).0 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FsFile;
    use crate::disk::sim::{SimFs, Weather};
    use crate::error::Kind;
    use crate::pg::timeline::Ancestor;

    const SIZE: SegmentSize = SegmentSize::tiny(0x1000);

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment::new(TimelineId(timeline), SegmentNo(number), SIZE)
    }

    fn waits(timeline: u32, number: u64) -> Waiting {
        Waiting::Segment(segment(timeline, number))
    }

    fn spool_with(segments: &[Segment], histories: &[u32]) -> SimFs {
        let fs = SimFs::default();
        for segment in segments {
            let file = fs.create_new(segment.to_string().as_ref()).unwrap();
            file.write_at(0, &[1; 0x1000]).unwrap();
        }
        for timeline in histories {
            super::super::store_history(&fs, TimelineId(*timeline), b"1\t0/4800\tx\n").unwrap();
        }
        fs
    }

    #[test]
    fn the_oldest_goes_first_and_a_history_before_its_timeline() {
        let fs = spool_with(
            &[segment(2, 4), segment(1, 4), segment(1, 3), segment(3, 5)],
            &[2, 3],
        );
        fs.create_new("000000010000000000000005.partial".as_ref())
            .unwrap();
        let mut queue = Queue::new(fs, SIZE);
        let history = |timeline| Waiting::History(TimelineId(timeline));
        let all = [
            waits(1, 3),
            waits(1, 4),
            history(2),
            waits(2, 4),
            history(3),
            waits(3, 5),
        ];
        assert_eq!(queue.waiting().unwrap(), all);
        for item in [all[2], all[1], all[1]] {
            queue.mark_done(item).unwrap();
        }
        assert_eq!(queue.waiting().unwrap(), [all[0], all[3], all[4], all[5]]);
    }

    #[test]
    fn only_what_is_archived_and_not_to_be_kept_goes() {
        let all = [segment(1, 3), segment(1, 4), segment(1, 5), segment(1, 6)];
        let cases = [
            (Keep::Always, vec![]),
            (Keep::Count(5), vec![]),
            (Keep::Count(2), vec![all[0]]),
            (Keep::None, vec![all[0], all[2], all[3]]),
        ];
        for (keep, expected) in cases {
            let fs = spool_with(&all, &[]);
            let mut queue = Queue::new(fs.clone(), SIZE);
            for done in [all[3], all[0], all[2]] {
                queue.mark_done(Waiting::Segment(done)).unwrap();
            }
            assert_eq!(queue.trim(keep).unwrap(), expected, "{keep:?}");
            let left = resume::look(&fs).unwrap();
            assert!(expected.iter().all(|gone| !left.whole.contains(gone)));
            assert_eq!(left.whole.len(), all.len() - expected.len());
            // 4 is not archived: the marks of what is above it must stay.
            queue.trim(keep).unwrap();
            let marks = resume::look(&fs).unwrap().done;
            assert!(marks.contains(&all[2]) && marks.contains(&all[3]));
            assert_eq!(marks.contains(&all[0]), left.whole.contains(&all[0]));
        }
    }

    #[test]
    fn a_mark_on_a_full_disk_can_be_made_later() {
        let fs = spool_with(&[segment(1, 3)], &[]);
        let mut queue = Queue::new(fs.clone(), SIZE);
        let weather = Weather {
            full: 100,
            ..Weather::default()
        };
        fs.set_weather(weather, 1);
        let full = queue.mark_done(waits(1, 3)).unwrap_err();
        assert_eq!(full.kind(), Kind::Full);
        assert_eq!(queue.trim(Keep::None).unwrap(), []);
        fs.set_weather(Weather::default(), 1);
        queue.mark_done(waits(1, 3)).unwrap();
        assert_eq!(queue.trim(Keep::None).unwrap(), [segment(1, 3)]);
        assert_eq!(fs.names(), ["000000010000000000000003.done"]);
        // The newest mark stays, until there is a newer one.
        assert_eq!(queue.trim(Keep::None).unwrap(), []);
        queue.mark_done(waits(1, 4)).unwrap();
        assert_eq!(queue.trim(Keep::None).unwrap(), []);
        assert_eq!(fs.names(), ["000000010000000000000004.done"]);
    }

    fn archived_from(contents: &Contents, path: TimelineHistory, number: u64) -> Archived {
        let start = SegmentNo(number).start(SIZE);
        Archived::begin(contents, &BTreeSet::new(), path, SIZE, start).unwrap()
    }

    #[test]
    fn the_archived_position_waits_for_the_slowest() {
        let path = TimelineHistory::root(TimelineId(1));
        let mut archived = archived_from(&Contents::default(), path, 3);
        let steps = [(4, 3), (6, 3), (3, 5), (5, 7), (5, 7), (8, 7), (7, 9)];
        assert_eq!(archived.lsn(), Lsn(0x3000));
        for (done, reached) in steps {
            archived.acknowledged(segment(1, done));
            assert_eq!(archived.lsn(), Lsn(reached * 0x1000), "after {done}");
        }
    }

    #[test]
    fn a_segment_grows_behind_all_others_and_beyond_its_timelines_beginning() {
        let path = TimelineHistory {
            timeline: TimelineId(2),
            ancestors: vec![Ancestor {
                timeline: TimelineId(1),
                end: Lsn(0x4800),
            }],
        };
        let mut archived = archived_from(&Contents::default(), path, 4);
        let cases = [
            (1, 0x4000, None),
            (1, 0x4400, Some(segment(1, 4))),
            (2, 0x4400, None), // the parent's file has more
            (2, 0x4800, None),
            (2, 0x4801, Some(segment(2, 4))),
            (2, 0x5400, None), // 4 is not archived
            (3, 0x4900, None),
        ];
        for (timeline, durable, grows) in cases {
            let found = archived.growing(TimelineId(timeline), Lsn(durable));
            assert_eq!(found, grows, "{timeline} up to {durable:X}");
        }
        let held = |timeline, number| archived.held_by(segment(timeline, number)).unwrap();
        assert_eq!(held(2, 4), [segment(1, 4), segment(2, 4)]);
        assert_eq!(held(1, 4), [segment(1, 4)]);
        assert_eq!(held(2, 5), [segment(2, 5)]);
        archived.acknowledged(segment(2, 4));
        let next = archived.growing(TimelineId(2), Lsn(0x5400));
        assert_eq!(next, Some(segment(2, 5)));
    }

    #[test]
    fn the_archived_position_knows_what_earlier_lives_did() {
        let contents = Contents {
            whole: BTreeSet::from([segment(1, 4), segment(1, 5), segment(1, 7)]),
            done: BTreeSet::from([segment(1, 5), segment(1, 6)]),
            ..Contents::default()
        };
        let path = TimelineHistory::root(TimelineId(1));
        let mut archived = archived_from(&contents, path, 8);
        assert_eq!(archived.lsn(), Lsn(0x4000));
        archived.acknowledged(segment(1, 4));
        assert_eq!(archived.lsn(), Lsn(0x7000));
        archived.acknowledged(segment(1, 7));
        assert_eq!(archived.lsn(), Lsn(0x8000));
    }

    #[test]
    fn the_archived_position_steps_back_where_a_timeline_was_left() {
        let root = TimelineHistory::root(TimelineId(1));
        let child = TimelineHistory {
            timeline: TimelineId(2),
            ancestors: vec![Ancestor {
                timeline: TimelineId(1),
                end: Lsn(0x4800),
            }],
        };
        let mut archived = archived_from(&Contents::default(), root, 3);
        for done in [3, 4, 5] {
            archived.acknowledged(segment(1, done));
        }
        assert_eq!(archived.lsn(), Lsn(0x6000));
        archived.switch_timeline(child, Lsn(0x4800));
        assert_eq!(archived.lsn(), Lsn(0x4000), "2:4 covers the switch");
        archived.acknowledged(segment(1, 4));
        assert_eq!(archived.lsn(), Lsn(0x4000));
        archived.acknowledged(segment(2, 4));
        assert_eq!(archived.lsn(), Lsn(0x5000));
    }
}
