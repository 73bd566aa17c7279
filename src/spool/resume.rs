//! Where to go on: what the directory holds, and the position from which WAL is asked of the server.
//!
//! Sync first, look second: after kill -9 the page cache shows names that a later power loss may take back, and a
//! start behind such a name would be acknowledged although its WAL can vanish.

use super::{Name, failed};
use crate::disk::{Fs, FsFile};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineHistory, TimelineId};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

/// What the directory holds. All of it survives power loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Segments under their final names.
    pub whole: BTreeSet<Segment>,
    /// Segments being written, or left when their timeline was.
    pub partial: BTreeSet<Segment>,
    /// Segment files in the making; worth nothing.
    pub unfinished: BTreeSet<Segment>,
    /// Stored history files.
    pub histories: BTreeSet<TimelineId>,
    /// Segments that the archive acknowledged, whether they are still here or not.
    pub done: BTreeSet<Segment>,
}

impl Contents {
    /// Whether there is nothing that tells how far anybody was.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.partial.is_empty() && self.done.is_empty()
    }
}

/// Where to start streaming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The timeline to ask for.
    pub timeline: TimelineId,
    /// The first byte of a segment.
    pub lsn: Lsn,
    /// What decided, for the log: `the spool's oldest segment is at 0/3000000; nothing is missing …`.
    pub why: String,
}

/// Reads the directory, after making durable what is to be seen in it. `Kind::Corrupt` names a whole segment that is
/// not whole, `Kind::Refused` a file that pg_receivewal compressed, `Kind::Mismatch` a segment that cannot exist with
/// this segment size.
pub fn read<F: Fs>(fs: &F, size: SegmentSize) -> Result<Contents> {
    fs.sync_dir().map_err(|e| failed("sync", "names", e))?;
    let mut contents = look(fs)?;
    check_whole(fs, size, &mut contents)?;
    for segment in contents.partial.iter().chain(&contents.done) {
        segment
            .number(size)
            .map_err(|e| foreign_size(*segment, e))?;
    }
    Ok(contents)
}

/// Lists the directory as it is, without making anything durable.
pub(super) fn look<F: Fs>(fs: &F) -> Result<Contents> {
    let mut contents = Contents::default();
    for name in fs.list().map_err(|e| failed("list", "names", e))? {
        match Name::parse(&name) {
            Name::Whole(segment) => contents.whole.insert(segment),
            Name::Partial(segment) => contents.partial.insert(segment),
            Name::Unfinished(segment) => contents.unfinished.insert(segment),
            Name::Done(segment) => contents.done.insert(segment),
            Name::History(timeline) => contents.histories.insert(timeline),
            Name::Compressed => return Err(compressed(&name.display().to_string())),
            Name::Foreign => false,
        };
    }
    Ok(contents)
}

/// The position to start from: the end of the unbroken run of whole segments, in the spool and the archive together,
/// along the server's timelines `path`, that begins at or below `slot_restart` or the spool's oldest segment.
///
/// A segment counts only if it is itself present, because uploads run side by side and the newest archived one proves
/// nothing about those before it. It counts only on the timeline that holds its last byte on `path`: a whole segment of
/// a timeline that was left inside it has bytes that never became history. `archived` is what the archive has (a gap that
/// was accepted belongs into it, as if it were there), or `None` while it cannot be asked: then the `.done` marks stand
/// for it, as far as they go.
///
/// A server may have removed what its `restart_lsn` names, after a lower flush LSN than before was reported to it. When it
/// says so to a start that was found without the archive, that is no gap: the archive must be asked first.
///
/// `Kind::Hole`: WAL is missing that the slot no longer keeps. `Kind::Transient`: only the archive can tell whether it
/// is. `Kind::Mismatch`: this is not the server whose WAL the spool holds, or it has fallen behind it.
pub fn start_position(
    contents: &Contents,
    archived: Option<&BTreeSet<Segment>>,
    path: &TimelineHistory,
    size: SegmentSize,
    slot_restart: Option<Lsn>,
    server_flush: Lsn,
) -> Result<Start> {
    refuse_strays(contents, path)?;
    let run = Run::gather(contents, archived, path, size)?;
    let (floor, why) = run.floor(slot_restart, server_flush)?;
    let mut next = run.end_from(floor);
    if let Some(restart) = slot_restart {
        next = run.next_above_gap(next, restart)?;
    }
    let (from, lsn) = (floor.start(size), next.start(size));
    let start = Start {
        timeline: run.timeline_to_ask(next),
        lsn,
        why: format!("{why} {from}; nothing is missing from there up to {lsn}"),
    };
    match lsn > server_flush {
        true => Err(server_behind(&start, server_flush, path)),
        false => Ok(start),
    }
}

/// What is known of the segments along one path of timelines.
struct Run<'a> {
    contents: &'a Contents,
    path: &'a TimelineHistory,
    size: SegmentSize,
    archive_asked: bool,
    archived: BTreeSet<Segment>,
    /// Segments of which the archive has anything on the path.
    in_archive: BTreeSet<SegmentNo>,
    /// Complete segments, wherever they are.
    held: BTreeSet<SegmentNo>,
    /// The first segment that the spool vouches for.
    spool: Option<SegmentNo>,
}

impl<'a> Run<'a> {
    fn gather(
        contents: &'a Contents,
        archived: Option<&BTreeSet<Segment>>,
        path: &'a TimelineHistory,
        size: SegmentSize,
    ) -> Result<Run<'a>> {
        let known = contents.done.iter().chain(archived.into_iter().flatten());
        let mut run = Run {
            contents,
            path,
            size,
            archive_asked: archived.is_some(),
            archived: known.copied().collect(),
            in_archive: BTreeSet::new(),
            held: BTreeSet::new(),
            spool: None,
        };
        run.in_archive = run.touching(&run.archived)?;
        run.held = run.complete(&contents.whole)?;
        run.held.extend(run.complete(&run.archived)?);
        run.spool = run.spool_oldest()?;
        Ok(run)
    }

    /// Where the run begins, and why there.
    fn floor(
        &self,
        slot_restart: Option<Lsn>,
        server_flush: Lsn,
    ) -> Result<(SegmentNo, &'static str)> {
        let slot = slot_restart.map(|lsn| SegmentNo::holding(lsn, self.size));
        Ok(match (slot, self.spool, self.in_archive.first()) {
            (Some(slot), Some(spool), _) if spool < slot => {
                (spool, "the spool's oldest segment is at")
            }
            (Some(slot), ..) => (slot, "the slot's restart_lsn is in the segment at"),
            (None, Some(spool), _) => (spool, "the spool's oldest segment is at"),
            _ if !self.archive_asked => return Err(cannot_tell(server_flush)),
            (None, None, Some(oldest)) => (*oldest, "the archive's oldest segment is at"),
            (None, None, None) if !self.contents.whole.is_empty() => {
                return Err(nothing_in_common(self.contents, self.path));
            }
            (None, None, None) => (
                SegmentNo::holding(server_flush, self.size),
                "there is no slot, no spool and no archive; the server writes the segment at",
            ),
        })
    }

    /// The first segment from `floor` on that is not complete.
    fn end_from(&self, floor: SegmentNo) -> SegmentNo {
        let mut next = floor;
        while self.held.contains(&next) {
            next = next.next();
        }
        next
    }

    /// Checks that the slot still keeps what is missing, from `next` on or, with an empty spool, from before it.
    fn next_above_gap(&self, next: SegmentNo, restart: Lsn) -> Result<SegmentNo> {
        let slot = SegmentNo::holding(restart, self.size);
        // An empty spool proves nothing; then the archive must reach up to the slot.
        let before_slot = self.in_archive.range(..slot).next_back();
        let reached = before_slot.map(|last| self.end_from(*last));
        let (next, proven) = match (self.spool, reached) {
            (None, Some(reached)) if reached < slot => (reached, self.archive_asked),
            // Marks go oldest first: one at the slot or beyond says that all before it was archived.
            (None, None) => (next, self.archive_asked || !self.in_archive.is_empty()),
            _ => (next, true),
        };
        let reached = self.acknowledged(next)?;
        if reached < slot && self.archive_asked {
            return Err(gap(next.start(self.size), restart));
        }
        if reached < slot || !proven {
            return Err(cannot_tell(restart));
        }
        Ok(next)
    }

    fn bytes(&self, number: SegmentNo) -> Range<Lsn> {
        number.start(self.size)..number.next().start(self.size)
    }

    /// The timeline that holds the last byte of a segment: only its file is complete.
    fn owner(&self, number: SegmentNo) -> TimelineId {
        self.path.holding(Lsn(self.bytes(number).end.0 - 1))
    }

    /// The timelines that hold any byte of a segment, or begin in it, oldest first.
    fn timelines(&self, number: SegmentNo) -> impl Iterator<Item = TimelineId> {
        let bytes = self.bytes(number);
        let ranges = self.path.ranges();
        ranges
            .filter(move |(_, begin, end)| *begin < bytes.end && *end > bytes.start)
            .map(|(timeline, _, _)| timeline)
    }

    /// Which of these segments are complete: of the timeline that holds their last byte on the path.
    fn complete(&self, segments: &BTreeSet<Segment>) -> Result<BTreeSet<SegmentNo>> {
        self.select(segments, |number| [self.owner(number)].into_iter())
    }

    /// Which of these segments hold anything of the path.
    fn touching(&self, segments: &BTreeSet<Segment>) -> Result<BTreeSet<SegmentNo>> {
        self.select(segments, |number| self.timelines(number))
    }

    fn select<I: Iterator<Item = TimelineId>>(
        &self,
        segments: &BTreeSet<Segment>,
        timelines: impl Fn(SegmentNo) -> I,
    ) -> Result<BTreeSet<SegmentNo>> {
        let mut numbers = BTreeSet::new();
        for segment in segments {
            let number = segment.number(self.size)?;
            if timelines(number).any(|timeline| timeline == segment.timeline) {
                numbers.insert(number);
            }
        }
        Ok(numbers)
    }

    /// The segment up to which we may have acknowledged WAL ourselves, `next` or beyond: the server sent more of a
    /// timeline than was in it when it was left, and the slot followed what we said. That is no gap.
    fn acknowledged(&self, mut next: SegmentNo) -> Result<SegmentNo> {
        let mut left = BTreeSet::new();
        for segment in self.contents.whole.iter().chain(&self.archived) {
            if self.path.existed(segment.timeline).is_some() {
                left.insert(segment.number(self.size)?);
            }
        }
        while left.contains(&next) {
            next = next.next();
        }
        Ok(next)
    }

    /// A `.partial` vouches only while nothing at or beyond it is complete: one that is left of an old timeline says
    /// nothing about today.
    fn spool_oldest(&self) -> Result<Option<SegmentNo>> {
        let oldest = self.touching(&self.contents.whole)?.first().copied();
        let current = self.touching(&self.contents.partial)?.last().copied();
        let current = current.filter(|number| self.held.last().is_none_or(|last| last < number));
        Ok(oldest.into_iter().chain(current).min())
    }

    /// The timeline on which to ask for a segment: the newest for which we have begun it, so that this file is
    /// completed in place; else the one that holds its first byte, so that each later one begins with a copy.
    fn timeline_to_ask(&self, number: SegmentNo) -> TimelineId {
        let begun = |timeline: &TimelineId| {
            let segment = Segment::new(*timeline, number, self.size);
            self.contents.partial.contains(&segment)
        };
        let newest = self.timelines(number).filter(begun).last();
        newest.unwrap_or_else(|| self.path.holding(self.bytes(number).start))
    }
}

/// Every segment here must be of the server's past or present.
fn refuse_strays(contents: &Contents, path: &TimelineHistory) -> Result<()> {
    let mut segments = contents.whole.iter().chain(&contents.partial);
    let Some(stray) = segments.find(|segment| !path.contains(segment.timeline)) else {
        return Ok(());
    };
    let error = Error::new(
        Kind::Mismatch,
        format!(
            "timeline {} of the spool is not in this server's history",
            stray.timeline
        ),
    )
    .detail(format!(
        "The spool holds segment {stray}; the server is on timeline {}.",
        path.timeline
    ));
    Err(if stray.timeline > path.timeline {
        error.hint("If another server was promoted, connect to that one. If this one was restored to an earlier \
             point on purpose, move the files of that timeline out of the spool directory.")
    } else {
        error.hint("If the server was restored to an earlier point on purpose, move the files of that timeline out \
             of the spool directory. Else this is another server.")
    })
}

fn nothing_in_common(contents: &Contents, path: &TimelineHistory) -> Error {
    let first = contents
        .whole
        .first()
        .map_or(String::new(), |s| s.to_string());
    let left = contents
        .whole
        .first()
        .and_then(|s| path.existed(s.timeline).map(|range| range.end));
    let left = left.map_or(String::new(), |lsn| {
        format!(" and left that timeline at {lsn}")
    });
    Error::new(
        Kind::Mismatch,
        "the spool and this server have no WAL in common",
    )
    .detail(format!(
        "The spool begins with segment {first}; the server is on timeline {}{left}.",
        path.timeline
    ))
    .hint(
        "If the server was restored to an earlier point on purpose, use an empty spool directory.",
    )
}

fn gap(reached: Lsn, restart: Lsn) -> Error {
    Error::new(
        Kind::Hole,
        format!("WAL from {reached} to {restart} is missing"),
    )
    .detail(format!(
        "The spool and the archive reach up to {reached}; the slot keeps WAL from {restart} on only."
    ))
    .hint(format!(
        "Start with --accept-gap {restart}, and take a new base backup then: recovery cannot cross what is missing."
    ))
}

/// To start without knowing what the archive has could hide a gap.
fn cannot_tell(kept: Lsn) -> Error {
    Error::new(
        Kind::Transient,
        "only the archive can tell whether WAL is missing",
    )
    .detail(format!(
        "The spool does not reach up to {kept}, from where on the server has WAL."
    ))
    .hint("Wait until the archive can be reached.")
}

fn server_behind(start: &Start, server_flush: Lsn, path: &TimelineHistory) -> Error {
    Error::new(
        Kind::Mismatch,
        format!("the server is behind the spool: it has WAL up to {server_flush} only"),
    )
    .detail(format!(
        "The spool and the archive reach up to {} on timeline {}; the server is on timeline {}.",
        start.lsn, start.timeline, path.timeline
    ))
    .hint(
        "If it is a standby, wait until it has caught up, or connect to the primary. If it was restored or \
         reset, its WAL is another one: use another archive prefix and an empty spool directory.",
    )
}

/// Whole segments have their full length. The uploader may have archived one since the look and removed it, after its
/// mark: then the mark counts.
fn check_whole<F: Fs>(fs: &F, size: SegmentSize, contents: &mut Contents) -> Result<()> {
    let mut gone = false;
    for segment in &contents.whole {
        gone |= !is_whole(fs, size, *segment)?;
    }
    if gone {
        let now = look(fs)?;
        contents.whole.retain(|segment| now.whole.contains(segment));
        contents.done.extend(now.done);
    }
    Ok(())
}

/// `false` if it is not there any more.
fn is_whole<F: Fs>(fs: &F, size: SegmentSize, segment: Segment) -> Result<bool> {
    segment.number(size).map_err(|e| foreign_size(segment, e))?;
    let name = segment.to_string();
    let file = match fs.open(name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(|e| failed("open", &name, e))?,
    };
    let len = file.len().map_err(|e| failed("examine", &name, e))?;
    match len == size.bytes() {
        true => Ok(true),
        false => Err(super::segment_file::wrong_size(&name, len, size)),
    }
}

fn foreign_size(segment: Segment, error: Error) -> Error {
    error
        .context(format!(
            "segment {segment} in the spool is not of this cluster"
        ))
        .hint("Use an empty spool directory for this cluster.")
}

fn compressed(name: &str) -> Error {
    Error::new(
        Kind::Refused,
        format!("{name} in the spool is a compressed segment"),
    )
    .detail("pg_receivewal --compress writes such files; seawall compresses what it stores in the archive only.")
    .hint("Decompress it in place (gzip -d, lz4 -d), or move it away once it is archived.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimFs;
    use crate::pg::timeline::Ancestor;

    const SIZE: SegmentSize = SegmentSize::tiny(0x1000);

    /// `1:4` is segment 4 of timeline 1.
    fn segments(text: &str) -> BTreeSet<Segment> {
        let one = |word: &str| {
            let (timeline, number) = word.split_once(':').unwrap();
            let timeline = TimelineId(timeline.parse().unwrap());
            Segment::new(timeline, SegmentNo(number.parse().unwrap()), SIZE)
        };
        text.split_whitespace().map(one).collect()
    }

    /// `1@0x4800 2`: timeline 1 was left at 0x4800 for timeline 2.
    fn path(text: &str) -> TimelineHistory {
        let (ancestors, timeline) = text.rsplit_once(' ').unwrap_or(("", text));
        let one = |word: &str| {
            let (timeline, end) = word.split_once("@0x").unwrap();
            Ancestor {
                timeline: TimelineId(timeline.parse().unwrap()),
                end: Lsn(u64::from_str_radix(end, 16).unwrap()),
            }
        };
        TimelineHistory {
            timeline: TimelineId(timeline.parse().unwrap()),
            ancestors: ancestors.split_whitespace().map(one).collect(),
        }
    }

    #[derive(Clone, Copy)]
    struct Case {
        whole: &'static str,
        partial: &'static str,
        done: &'static str,
        archived: &'static str,
        path: &'static str,
        slot: Option<u64>,
        flush: u64,
    }

    /// The archive cannot be asked.
    const DOWN: &str = "down";

    const PLAIN: Case = Case {
        whole: "",
        partial: "",
        done: "",
        archived: "",
        path: "1",
        slot: None,
        flush: 0xFF800,
    };

    fn start(case: Case) -> Result<Start> {
        let contents = Contents {
            whole: segments(case.whole),
            partial: segments(case.partial),
            done: segments(case.done),
            ..Contents::default()
        };
        let archived = (case.archived != DOWN).then(|| segments(case.archived));
        let (slot, flush) = (case.slot.map(Lsn), Lsn(case.flush));
        start_position(
            &contents,
            archived.as_ref(),
            &path(case.path),
            SIZE,
            slot,
            flush,
        )
    }

    #[rustfmt::skip] // a table
    #[test]
    fn the_start_is_the_end_of_the_unbroken_run() {
        let cases = [
            // Nothing here, nothing there.
            (Case { flush: 0x9800, ..PLAIN }, (1, 9)),
            (Case { slot: Some(0x5800), ..PLAIN }, (1, 5)),
            (Case { slot: Some(0x5000), flush: 0x5000, ..PLAIN }, (1, 5)),
            // Spool only.
            (Case { partial: "1:4", ..PLAIN }, (1, 4)),
            (Case { whole: "1:3 1:4", partial: "1:5", ..PLAIN }, (1, 5)),
            (Case { whole: "1:3 1:4", ..PLAIN }, (1, 5)),
            (Case { whole: "1:3 1:4", partial: "1:5", slot: Some(0x5010), ..PLAIN }, (1, 5)),
            (Case { whole: "1:3 1:4", partial: "1:5", slot: Some(0x3010), ..PLAIN }, (1, 5)),
            // The slot keeps more than we have: from there.
            (Case { whole: "1:3 1:4", partial: "1:5", slot: Some(0x2010), ..PLAIN }, (1, 2)),
            (Case { partial: "1:5", slot: Some(0x4010), ..PLAIN }, (1, 4)),
            // Archive only.
            (Case { archived: "1:3 1:4", ..PLAIN }, (1, 5)),
            (Case { archived: "1:3 1:4", slot: Some(0x5010), ..PLAIN }, (1, 5)),
            (Case { archived: "1:3 1:4", slot: Some(0x4010), ..PLAIN }, (1, 5)),
            (Case { archived: "1:8", slot: Some(0x4010), ..PLAIN }, (1, 4)),
            // Holes of long ago, by retention, are no concern of ours.
            (Case { archived: "1:1 1:3 1:4", slot: Some(0x5010), ..PLAIN }, (1, 5)),
            // Uploads that finished out of order: 5 and 7 are archived and gone, 6 was never sent.
            (Case { whole: "1:4", archived: "1:5 1:7", partial: "1:8", ..PLAIN }, (1, 6)),
            (Case { whole: "1:4 1:6", archived: "1:5 1:7", partial: "1:8", ..PLAIN }, (1, 8)),
            (Case { whole: "1:4 1:6", done: "1:5 1:7", partial: "1:8", ..PLAIN }, (1, 8)),
            (Case { archived: "1:3 1:4 1:6", ..PLAIN }, (1, 5)),
            (Case { archived: "1:4 1:6", slot: Some(0x4800), ..PLAIN }, (1, 5)),
            // Somebody else archives too (archive_command), and is ahead of us.
            (Case { archived: "1:4 1:5 1:6", partial: "1:5", slot: Some(0x5010), ..PLAIN }, (1, 7)),
            // A timeline left inside segment 4: the old one's whole segment proves nothing.
            (Case { path: "1@0x4800 2", whole: "1:3", partial: "1:4", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", whole: "1:3", partial: "1:4 2:4", ..PLAIN }, (2, 4)),
            (Case { path: "1@0x4800 2", whole: "1:3 1:4 1:5", partial: "1:6", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", whole: "1:4", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", whole: "1:3 2:4", partial: "1:4 2:5", ..PLAIN }, (2, 5)),
            (Case { path: "1@0x4800 2", archived: "1:3 1:4", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", archived: "1:3 1:4 2:4 2:5", partial: "1:4", slot: Some(0x6000), ..PLAIN }, (2, 6)),
            // The slot stands beyond the switch, where we acknowledged what the old timeline was sent too much of.
            (Case { path: "1@0x4800 2", whole: "1:3 1:4", partial: "1:5", slot: Some(0x5010), ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", archived: "1:3 1:4", slot: Some(0x5010), partial: "1:5", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", archived: "1:4", slot: Some(0x5000), flush: 0x4900, ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4800 2", archived: "1:4", flush: 0x5900, ..PLAIN }, (1, 4)),
            // Left at the border of a segment.
            (Case { path: "1@0x4000 2", whole: "1:3", ..PLAIN }, (2, 4)),
            (Case { path: "1@0x4000 2", whole: "1:3", partial: "1:4", ..PLAIN }, (2, 4)),
            // Several switches in one segment.
            (Case { path: "1@0x4200 2@0x4400 3", whole: "1:3", partial: "1:4", ..PLAIN }, (1, 4)),
            (Case { path: "1@0x4200 2@0x4400 3", whole: "1:3", partial: "1:4 2:4", ..PLAIN }, (2, 4)),
            (Case { path: "1@0x4200 2@0x4400 3", whole: "1:3 3:4", partial: "1:4 2:4", ..PLAIN }, (3, 5)),
            (Case { path: "1@0x4200 2@0x4200 3", whole: "1:3", partial: "1:4 2:4", ..PLAIN }, (2, 4)),
            // The archive cannot be asked: what the spool and its marks show is enough.
            (Case { archived: DOWN, whole: "1:4 1:6", done: "1:5 1:7", partial: "1:8", slot: Some(0x8010), ..PLAIN }, (1, 8)),
            (Case { archived: DOWN, done: "1:5", slot: Some(0x6010), ..PLAIN }, (1, 6)),
            (Case { archived: DOWN, partial: "1:4", ..PLAIN }, (1, 4)),
            (Case { archived: DOWN, path: "1@0x4800 2", partial: "1:5", done: "1:4", slot: Some(0x4800), ..PLAIN }, (1, 4)),
            // An old timeline's leftover says nothing about today.
            (Case { path: "1@0x4800 2", partial: "1:4", archived: "2:7 2:8", slot: Some(0x9010), ..PLAIN }, (2, 9)),
            (Case { path: "1@0x4800 2", partial: "1:4 2:9", slot: Some(0x9010), ..PLAIN }, (2, 9)),
        ];
        for (number, (case, (timeline, segment))) in cases.into_iter().enumerate() {
            let found = start(case).unwrap_or_else(|e| panic!("case {number}: {e}"));
            let expected = (TimelineId(timeline), Lsn(segment * 0x1000));
            assert_eq!((found.timeline, found.lsn), expected, "case {number}: {}", found.why);
        }
    }

    #[rustfmt::skip] // a table
    #[test]
    fn what_cannot_go_on_is_an_error_that_says_what_to_do() {
        let cases = [
            // Gaps: what we reach, and the slot.
            (Case { whole: "1:3", partial: "1:4", slot: Some(0x6010), ..PLAIN }, Kind::Hole, ["0/4000", "0/6010", "--accept-gap 0/6010"]),
            (Case { archived: "1:3 1:4", slot: Some(0x6010), ..PLAIN }, Kind::Hole, ["0/5000", "0/6010", "--accept-gap 0/6010"]),
            (Case { whole: "1:3 1:5", partial: "1:6", slot: Some(0x6010), ..PLAIN }, Kind::Hole, ["0/4000", "0/6010", "--accept-gap 0/6010"]),
            (Case { whole: "1:4", archived: "1:5 1:7", partial: "1:8", slot: Some(0x8010), ..PLAIN }, Kind::Hole, ["0/6000", "0/8010", "--accept-gap 0/8010"]),
            (Case { path: "1@0x4800 2", whole: "1:3 1:4", partial: "1:5", slot: Some(0x6010), ..PLAIN }, Kind::Hole, ["0/4000", "0/6010", "--accept-gap 0/6010"]),
            (Case { path: "1@0x4800 2", archived: "1:3 1:4", slot: Some(0x6010), ..PLAIN }, Kind::Hole, ["0/4000", "0/6010", "--accept-gap"]),
            // Only the archive can tell.
            (Case { archived: DOWN, whole: "1:4 1:6", partial: "1:8", slot: Some(0x8010), ..PLAIN }, Kind::Transient, ["archive", "does not reach", "0/8010"]),
            (Case { archived: DOWN, slot: Some(0x8010), ..PLAIN }, Kind::Transient, ["archive", "does not reach", "0/8010"]),
            (Case { archived: DOWN, done: "1:5", slot: Some(0x8010), ..PLAIN }, Kind::Transient, ["archive", "does not reach", "0/8010"]),
            (Case { archived: DOWN, ..PLAIN }, Kind::Transient, ["archive", "does not reach", "0/FF800"]),
            // The server has less than we do.
            (Case { whole: "1:3 1:4", flush: 0x4FFF, ..PLAIN }, Kind::Mismatch, ["behind", "0/4FFF", "0/5000"]),
            // Another past.
            (Case { partial: "2:4", ..PLAIN }, Kind::Mismatch, ["timeline 2", "000000020000000000000004", "promoted"]),
            (Case { path: "1@0x4800 3", partial: "2:4", ..PLAIN }, Kind::Mismatch, ["timeline 2", "000000020000000000000004", "restored"]),
            (Case { path: "1@0x4800 2", whole: "1:5 1:6", ..PLAIN }, Kind::Mismatch, ["in common", "0/4800", "restored"]),
        ];
        for (number, (case, kind, words)) in cases.into_iter().enumerate() {
            let error = start(case).expect_err(&format!("case {number}"));
            assert_eq!(error.kind(), kind, "case {number}: {error}");
            for word in words {
                assert!(error.to_string().contains(word), "case {number}: {word}: {error}");
            }
            assert!(error.hint_text().is_some(), "case {number}");
        }
    }

    fn spool_with(files: &[(&str, usize)]) -> SimFs {
        let fs = SimFs::default();
        for (name, len) in files {
            let file = fs.create_new(name.as_ref()).unwrap();
            file.write_at(0, &vec![1; *len]).unwrap();
        }
        fs
    }

    #[test]
    fn the_directory_is_sorted_by_name_and_foreign_files_are_left_alone() {
        let fs = spool_with(&[
            ("000000010000000000000003", 0x1000),
            ("000000010000000000000003.done", 0),
            ("000000010000000000000002.done", 0),
            ("000000010000000000000004.partial", 7),
            ("000000020000000000000004.partial.tmp", 7),
            ("00000002.history", 7),
            ("seawall.lock", 7),
            ("notes.txt", 7),
        ]);
        let contents = read(&fs, SIZE).unwrap();
        let expected = Contents {
            whole: segments("1:3"),
            partial: segments("1:4"),
            unfinished: segments("2:4"),
            histories: BTreeSet::from([TimelineId(2)]),
            done: segments("1:2 1:3"),
        };
        assert_eq!(contents, expected);
        assert_eq!(fs.names().len(), 8);
    }

    #[test]
    fn a_segment_that_is_archived_and_removed_while_we_look_counts_as_done() {
        let (third, fourth) = ("000000010000000000000003", "000000010000000000000004");
        let fs = spool_with(&[(third, 0x1000), (fourth, 0x1000)]);
        let mut contents = look(&fs).unwrap();
        let mark = format!("{third}.done");
        fs.create_new(mark.as_ref()).unwrap();
        fs.remove(third.as_ref()).unwrap();
        check_whole(&fs, SIZE, &mut contents).unwrap();
        assert_eq!(contents.whole, segments("1:4"));
        assert_eq!(contents.done, segments("1:3"));
    }

    #[test]
    fn files_that_cannot_be_ours_are_refused_by_name() {
        let cases = [
            ("000000010000000000000003", 0xFFF, Kind::Corrupt),
            ("000000010000000000000003", 0x1001, Kind::Corrupt),
            ("000000010000000000000003.gz", 9, Kind::Refused),
            ("000000010000000000000003.lz4.partial", 9, Kind::Refused),
            ("000000010000000000200000", 0x1000, Kind::Mismatch),
            ("000000010000000000200000.partial", 0x1000, Kind::Mismatch),
        ];
        for (name, len, kind) in cases {
            let error = read(&spool_with(&[(name, len)]), SIZE).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            let stem = &name[..24];
            assert!(error.message().contains(stem), "{error}");
            assert!(error.hint_text().is_some(), "{error}");
        }
    }
}
