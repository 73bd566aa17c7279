//! The last WAL: what the archive does not have when the primary is gone, from the directory of a receiver or from
//! segments that were never completed.
//!
//! * L1 No WAL is taken from elsewhere before the archive has given its whole answer; an outage of it stays an outage.
//! * L2 A complete segment from the spool is checked like an archived one, and is delivered also where the archive has a
//!   hole. What is unfinished is delivered only at the proven end, padded with zeros to the segment's size.
//! * L3 What is padded goes only to a recovery (`Padded`): a standby could archive it as complete.
//! * L4 Beyond the point where another timeline left this one nothing is delivered, unless this one is the target
//!   (`branches`). Of a complete segment in the archive that holds as long as no branch has its own in the place.
//! * L5 A later segment of the timeline in the spool, or one growing in the archive, shows that this is not the end: a
//!   hole.
//! * L6 What a timeline's first segment lacks below the point where it began is its parent's, which has the same bytes
//!   (`parents`).

mod parents;

use super::branches::{Leaving, leaving};
use super::spool_dir::SpoolDir;
use crate::archive::wal::{Expect, Extent, Fetched, Found, HolePolicy, Inspector};
use crate::archive::{Archive, keys};
use crate::codec::{self, Method};
use crate::disk;
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::wal_header::HEADER_BYTES;
use crate::pg::{Lsn, Segment, SegmentSize, TimelineHistory, TimelineId, WalName};
use crate::store::Key;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Where to look beside the complete segments of the archive.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The directory of a receiver, or a copy of it.
    pub spool: Option<PathBuf>,
    /// Unfinished segments in the archive count too.
    pub archived: bool,
    /// The timeline that the recovery follows to its end.
    pub timeline: Option<TimelineId>,
    /// Whether an unfinished segment may be delivered.
    pub padded: Padded,
}

/// Whether an unfinished segment may be delivered, padded with zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padded {
    /// The server is in a recovery that ends, or the operator wants it.
    Allowed,
    /// It may be a standby: to it the segment is absent.
    #[default]
    Refused,
}

/// What was fetched, and from where if not from the archive's complete segments.
#[derive(Debug)]
pub struct Delivery {
    /// The answer.
    pub fetched: Fetched,
    /// What was delivered instead.
    pub source: Option<String>,
}

/// Delivers the file from the archive, or what `sources` have of it. As with the archive alone, what was written counts
/// for nothing after an error.
pub fn get_wal(
    archive: &Archive,
    name: WalName,
    out: &mut dyn Write,
    expect: Expect,
    on_hole: HolePolicy,
    sources: &Sources,
) -> Result<Delivery> {
    let asked = sources.spool.is_some() || sources.archived;
    let left = match name {
        WalName::Segment(segment) if asked => left_behind(archive, segment, out, expect, sources),
        _ => Ok(LeftBehind::No),
    };
    let left = left.map_err(|e| sources.console(e, name))?;
    if let LeftBehind::Answered(delivery) = left {
        return Ok(delivery);
    }
    let mut counted = Counted { out, bytes: 0 };
    let answer = archive.get_wal(name, &mut counted, expect, on_hole);
    let untouched = counted.bytes == 0;
    let ended = match &answer {
        Ok(Fetched::Delivered(_)) if matches!(left, LeftBehind::NotThere) => {
            let what = format!("{name} was archived while it was looked for");
            return Err(Error::new(Kind::Transient, what).detail(
                "Another timeline left this one before its end, so it is not delivered whole.",
            ));
        }
        Ok(Fetched::Absent(_)) if asked => Ended::Absent,
        Err(e) if asked && untouched && e.kind() == Kind::Hole => Ended::Hole,
        _ => {
            return answer
                .map(Delivery::archived)
                .map_err(|e| sources.console(e, name));
        }
    };
    let search = Search {
        archive,
        expect: archive.known(expect)?,
        on_hole,
        sources,
        spool: sources.spool.as_deref().map(SpoolDir::read).transpose()?,
        ended,
        complete: None,
    };
    let found = match name {
        WalName::Segment(segment) => search.segment(segment, out)?,
        WalName::History(_) => search.text(name, out)?,
        WalName::Partial(_) | WalName::BackupHistory(..) => None,
    };
    found.map_or_else(|| answer.map(Delivery::archived), Ok)
}

/// What becomes of a complete archived segment by L4.
enum LeftBehind {
    /// No other timeline left this one before the segment's end.
    No,
    /// One may have, but the segment is not there.
    NotThere,
    /// That was the answer.
    Answered(Delivery),
}

/// L4 for a complete segment that is archived. A spool that is not there is no reason to withhold what the archive has.
fn left_behind(
    archive: &Archive,
    segment: Segment,
    out: &mut dyn Write,
    expect: Expect,
    sources: &Sources,
) -> Result<LeftBehind> {
    if sources.timeline == Some(segment.timeline) {
        return Ok(LeftBehind::No);
    }
    let spool = match sources.spool.as_deref().map(SpoolDir::read).transpose() {
        Err(e) if e.kind() == Kind::Unavailable => None,
        other => other?,
    };
    let mut search = Search {
        archive,
        expect: archive.remembered(expect)?,
        on_hole: HolePolicy::Abort,
        sources,
        spool,
        ended: Ended::Absent,
        complete: None,
    };
    if !search.may_be_left(segment)? {
        return Ok(LeftBehind::No);
    }
    search.complete = archive.segment_object(segment)?;
    if search.complete.is_none() {
        return Ok(LeftBehind::NotThere);
    }
    let absent = || Fetched::Absent(format!("{segment} is archived, but counts as absent"));
    let delivery = search.segment(segment, out)?;
    let delivery = delivery.unwrap_or_else(|| Delivery::archived(absent()));
    Ok(LeftBehind::Answered(delivery))
}

/// How the archive has answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It is proven absent, and nothing is beyond it.
    Absent,
    /// It is missing, and this is not the end.
    Hole,
}

impl Delivery {
    fn archived(fetched: Fetched) -> Delivery {
        Delivery {
            fetched,
            source: None,
        }
    }

    fn of(bytes: u64, source: String) -> Delivery {
        Delivery {
            fetched: Fetched::Delivered(bytes),
            source: Some(source),
        }
    }
}

impl Sources {
    /// An archive that does not answer is not overruled: what lies beyond, and who left this timeline, it alone knows.
    fn console(&self, error: Error, name: WalName) -> Error {
        let outage = matches!(error.kind(), Kind::Transient | Kind::Unavailable);
        let spool = self.spool.as_ref().filter(|_| outage);
        let file = spool.and_then(|path| SpoolDir::read(path).ok()?.file(name));
        match file {
            Some(path) => error.also(format!(
                "It is in the spool, as {path:?}, which is asked only when the archive has answered."
            )),
            None => error,
        }
    }
}

/// One request that the archive alone could not serve, or must not.
struct Search<'a> {
    archive: &'a Archive,
    expect: Expect,
    on_hole: HolePolicy,
    sources: &'a Sources,
    spool: Option<SpoolDir>,
    ended: Ended,
    /// The complete segment in the archive, where another timeline may have left this one.
    complete: Option<(Key, Option<Method>)>,
}

/// Something that holds a segment, or a part of it.
enum Candidate {
    Archived(Key, Option<Method>),
    Whole(PathBuf),
    Spooled(PathBuf),
    Growing(Segment),
    Partial(Key, Option<Method>),
}

/// What was found of a segment, of the one asked for or its parent's.
struct Part {
    of: Segment,
    candidate: Candidate,
    found: Found,
}

impl Search<'_> {
    fn text(&self, name: WalName, out: &mut dyn Write) -> Result<Option<Delivery>> {
        let Some(path) = self.spool.as_ref().and_then(|spool| spool.file(name)) else {
            return Ok(None);
        };
        let what = format!("file {path:?}");
        let mut inspector = Inspector::new(name, self.expect);
        let mut reader = disk::open(&path)?;
        copy(&mut reader, &what, &mut |bytes| {
            inspector.pass(bytes);
            write(out, bytes)
        })?;
        inspector.judge(inspector.size(), &what)?;
        Ok(Some(Delivery::of(inspector.size(), what)))
    }

    fn segment(&self, segment: Segment, out: &mut dyn Write) -> Result<Option<Delivery>> {
        let Some(best) = self.best(segment)? else {
            let size = self.expect.segment_size;
            return self.refuse_beyond(segment, size).map(|()| None);
        };
        let size = best.found.size;
        let start = segment.start(size)?;
        let left = self.leaving(segment, size)?;
        if left.is_none() && best.candidate.is_whole() {
            return self.deliver(&best, best.found.held, out);
        }
        let room = left.map_or(size.bytes(), |left| left.at.0.saturating_sub(start.0));
        if let Some(left) = left.filter(|_| room < HEADER_BYTES as u64) {
            log::warn!(
                "{} has {segment}, but timeline {} left timeline {} before, at {}: it counts as absent; --timeline {} delivers it",
                best.candidate.name(),
                left.child,
                segment.timeline,
                left.at,
                segment.timeline
            );
            return Ok(None);
        }
        if self.ended == Ended::Hole {
            return Ok(None);
        }
        self.refuse_beyond(segment, Some(size))?;
        if self.sources.padded == Padded::Refused {
            log::info!(
                "{} has a part of {segment}; this is no recovery (recovery.signal without standby.signal), so it counts as absent",
                best.candidate.name()
            );
            return Ok(None);
        }
        let best = self.completed(segment, best)?;
        let held = best.found.held;
        self.say(
            segment,
            &best.candidate,
            Lsn(start.0 + held),
            left,
            room < held,
        );
        self.deliver(&best, room.min(held), out)
    }

    fn say(&self, segment: Segment, best: &Candidate, end: Lsn, left: Option<Leaving>, cut: bool) {
        let name = best.name();
        match left.filter(|_| cut) {
            Some(left) => log::warn!(
                "{segment} is delivered from {name} with zeros from {} on, where timeline {} left timeline {}; it goes on \
                 to {end}, and --timeline {} delivers all",
                left.at,
                left.child,
                segment.timeline,
                segment.timeline
            ),
            None => log::warn!(
                "{segment} was never completed; it is delivered from {name} up to {end}, with zeros behind"
            ),
        }
    }

    /// What has most of the segment: the complete file in the spool, at the end of WAL also what is unfinished.
    fn best(&self, segment: Segment) -> Result<Option<Part>> {
        let mut best: Option<Part> = None;
        for candidate in self.candidates(segment)? {
            let Some(part) = self.part(segment, candidate)? else {
                continue;
            };
            let goes = |part: &Part| (part.found.held, part.found.whole);
            if best.as_ref().is_none_or(|best| goes(best) < goes(&part)) {
                best = Some(part);
            }
        }
        Ok(best)
    }

    fn part(&self, of: Segment, candidate: Candidate) -> Result<Option<Part>> {
        let found = self.pass(of, &candidate, &mut |_| Ok(()))?;
        if found.is_none() {
            log::info!("{} holds nothing of {of}", candidate.name());
        }
        Ok(found.map(|found| Part {
            of,
            candidate,
            found,
        }))
    }

    fn candidates(&self, segment: Segment) -> Result<Vec<Candidate>> {
        if let Some((key, method)) = &self.complete {
            return Ok(vec![Candidate::Archived(key.clone(), *method)]);
        }
        let mut candidates = Vec::new();
        if let Some(spool) = &self.spool {
            if let Some(path) = spool.file(WalName::Segment(segment)) {
                return Ok(vec![Candidate::Whole(path)]);
            }
            spool.refuse_compressed(segment)?;
            let partial = spool.file(WalName::Partial(segment));
            candidates.extend(partial.map(Candidate::Spooled));
        }
        if self.ended == Ended::Hole {
            return Ok(Vec::new());
        }
        if self.sources.archived {
            self.archived(segment, &mut candidates)?;
        }
        Ok(candidates)
    }

    /// The unfinished forms of the segment in the archive.
    fn archived(&self, segment: Segment, candidates: &mut Vec<Candidate>) -> Result<()> {
        for form in ["growing", "partial"] {
            let prefix = format!("{}{segment}.{form}", keys::WAL);
            self.archive.store.list(&prefix, "", &mut |object| {
                let key = object.key;
                candidates.push(if keys::parse_growing(&key) == Some(segment) {
                    Candidate::Growing(segment)
                } else if let Some(method) = keys::parse_partial(&key, segment) {
                    Candidate::Partial(key, method)
                } else {
                    return Err(Error::new(
                        Kind::Refused,
                        format!("object {key} has a form that cannot be read"),
                    )
                    .hint("It was written by another tool or a newer seawall. Without --partial it is passed over."));
                });
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// Reads a candidate to its end and judges it; `None` if it holds nothing of the segment.
    fn pass(
        &self,
        segment: Segment,
        candidate: &Candidate,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<Found>> {
        let what = candidate.name();
        let Some(mut reader) = candidate.open(self.archive)? else {
            return Ok(None);
        };
        let mut extent = Extent::new(segment, self.expect);
        copy(&mut reader, &what, &mut |bytes| {
            extent.pass(bytes);
            each(bytes)
        })?;
        let found = extent.judge(&what)?;
        let size = extent.size();
        if !candidate.is_whole() {
            // What grows is not preallocated: zeros at its end are WAL too.
            let grown = matches!(candidate, Candidate::Growing(_));
            return Ok(found.map(|found| match grown {
                true => Found {
                    whole: size,
                    ..found
                },
                false => found,
            }));
        }
        match found {
            Some(found) if size == found.size.bytes() => Ok(Some(Found {
                held: size,
                whole: size,
                ..found
            })),
            _ => Err(
                Error::new(Kind::Corrupt, format!("{what} is not what its name says"))
                    .detail(format!("It is no complete segment: it has {size} bytes."))
                    .hint("Take it away from there."),
            ),
        }
    }

    /// Writes the first `held` bytes of what was found before, and zeros up to the segment's size.
    fn deliver(&self, part: &Part, held: u64, out: &mut dyn Write) -> Result<Option<Delivery>> {
        let mut left = held;
        let found = self.pass(part.of, &part.candidate, &mut |bytes| {
            let now = left.min(bytes.len() as u64);
            left -= now;
            write(out, &bytes[..now as usize])
        })?;
        let name = part.candidate.name();
        // Whoever still writes to it may have made it longer.
        if found.is_none_or(|found| found.held.max(found.whole) < held) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{name} became shorter while it was read"),
            ));
        }
        let size = part.found.size.bytes();
        // A part may end with zeros that nobody wrote down.
        let mut zeros = size - held + left;
        let blank = vec![0; limits::COPY_BUFFER_BYTES];
        while zeros > 0 {
            let now = zeros.min(blank.len() as u64);
            write(out, &blank[..now as usize])?;
            zeros -= now;
        }
        Ok(Some(Delivery::of(size, name)))
    }

    /// Where another timeline left this one, in this segment or before it.
    fn leaving(&self, segment: Segment, size: SegmentSize) -> Result<Option<Leaving>> {
        let mut histories = self.histories_above(segment.timeline)?;
        let end = segment.next(size)?.start(size)?;
        let target = self.sources.timeline;
        while let Some(left) = leaving(segment.timeline, end, &histories, target) {
            if self.complete.is_none() || !self.goes_on(segment.timeline, left, &histories, size)? {
                return Ok(Some(left));
            }
            if Some(left.child) == target {
                return Ok(None);
            }
            histories.retain(|history| history.timeline != left.child);
        }
        Ok(None)
    }

    /// Whether any timeline left this one before the segment's end, as far as the segment size is known.
    fn may_be_left(&self, segment: Segment) -> Result<bool> {
        let histories = self.histories_above(segment.timeline)?;
        let end = match self.expect.segment_size {
            Some(size) => segment.next(size)?.start(size)?,
            None => Lsn(u64::MAX),
        };
        Ok(leaving(segment.timeline, end, &histories, self.sources.timeline).is_some())
    }

    /// Whether the branch has a complete segment of its own in the place where it left. Then PostgreSQL asks for that
    /// one when it follows the branch, and whoever asks for the parent's does not follow it.
    fn goes_on(
        &self,
        timeline: TimelineId,
        left: Leaving,
        histories: &[TimelineHistory],
        size: SegmentSize,
    ) -> Result<bool> {
        let path = histories.iter().filter(|h| h.timeline == left.child);
        let ancestors = path.flat_map(|h| h.ancestors.iter().map(|a| a.timeline));
        for on_path in ancestors.filter(|t| *t > timeline).chain([left.child]) {
            let own = Segment::holding(on_path, left.at, size);
            let spooled = self
                .spool
                .as_ref()
                .and_then(|s| s.file(WalName::Segment(own)));
            if spooled.is_some() || self.archive.segment_object(own)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn histories_above(&self, timeline: TimelineId) -> Result<Vec<TimelineHistory>> {
        let mut histories = self.archive.histories_above(timeline)?;
        if let Some(spool) = &self.spool {
            histories.extend(spool.histories()?);
        }
        Ok(histories)
    }

    /// What the archive or else the spool has as the timeline's history.
    fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let history = self.archive.history(timeline)?;
        let (None, Some(spool)) = (&history, &self.spool) else {
            return Ok(history);
        };
        let mut spooled = spool.histories()?.into_iter();
        Ok(spooled.find(|h| h.timeline == timeline))
    }

    /// L5. On a branch that was left, and before the timeline's own beginning, later segments prove nothing.
    fn refuse_beyond(&self, segment: Segment, size: Option<SegmentSize>) -> Result<()> {
        let Some(beyond) = self.beyond(segment)? else {
            return Ok(());
        };
        let excused = |size| {
            let left = self.leaving(segment, size)?;
            Ok(left.is_some() || self.begins_later(segment, size)?)
        };
        if self.ended == Ended::Hole || size.map_or(Ok(false), excused)? {
            return Ok(());
        }
        let error = Error::new(
            Kind::Hole,
            format!("{segment} is missing, and this is not the end of WAL"),
        )
        .detail(format!("{beyond} lies beyond it."));
        if self.on_hole == HolePolicy::Absent {
            log::warn!("{}", error.one_line());
            return Ok(());
        }
        Err(error.hint(
            "Find the segment, recover to a target before it, or force the end with --on-hole absent.",
        ))
    }

    fn beyond(&self, segment: Segment) -> Result<Option<String>> {
        let spooled = self.spool.as_ref().and_then(|spool| spool.beyond(segment));
        if let Some(path) = spooled {
            return Ok(Some(format!("File {path:?}")));
        }
        if !self.sources.archived {
            return Ok(None);
        }
        let growing = self
            .archive
            .growing_segments(segment.timeline, Some(segment))?;
        let later = growing.into_iter().find(|there| *there > segment);
        Ok(later.map(|there| format!("Object {}", keys::growing(there))))
    }

    /// Whether the timeline itself begins behind the segment.
    fn begins_later(&self, segment: Segment, size: SegmentSize) -> Result<bool> {
        let history = self.history(segment.timeline)?;
        let end = segment.next(size)?.start(size)?;
        let parent = history.and_then(|history| history.ancestors.last().copied());
        Ok(parent.is_some_and(|parent| end <= parent.end))
    }
}

impl Candidate {
    fn name(&self) -> String {
        match self {
            Candidate::Whole(path) | Candidate::Spooled(path) => format!("file {path:?}"),
            Candidate::Growing(segment) => format!("object {}", keys::growing(*segment)),
            Candidate::Archived(key, _) | Candidate::Partial(key, _) => format!("object {key}"),
        }
    }

    /// Whether it must be complete.
    fn is_whole(&self) -> bool {
        matches!(self, Candidate::Archived(..) | Candidate::Whole(_))
    }

    /// `None` if it has gone since it was listed.
    fn open(&self, archive: &Archive) -> Result<Option<Box<dyn Read + Send>>> {
        let opened: Result<Box<dyn Read + Send>> = match self {
            Candidate::Whole(path) | Candidate::Spooled(path) => {
                disk::open(path).map(|file| Box::new(file) as _)
            }
            Candidate::Growing(segment) => {
                let growing = archive.get_growing(*segment)?;
                return Ok(growing.map(|growing| Box::new(growing) as _));
            }
            Candidate::Archived(key, method) | Candidate::Partial(key, method) => {
                archive.store.get(key, 0).map(|body| match method {
                    Some(method) => codec::decoder(*method, body.reader),
                    None => body.reader,
                })
            }
        };
        match opened {
            Err(e) if e.kind() == Kind::Missing => match self {
                Candidate::Archived(..) => Err(e.with_kind(Kind::Hole)),
                _ => Ok(None),
            },
            other => other.map(Some),
        }
    }
}

/// Hands out all that a reader has.
fn copy(
    reader: &mut dyn Read,
    what: &str,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
    let mut passed = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(|e| {
                from_io("it cannot be read", e).context(format!("could not fetch {what}"))
            })?,
        };
        passed += count as u64;
        if count == 0 {
            return Ok(());
        }
        if passed > limits::WAL_FILE_BYTES_MAX {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{what} is larger than any WAL file"),
            ));
        }
        each(&buffer[..count])?;
    }
}

fn write(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)
        .map_err(|e| from_io("could not write the delivered file", e))
}

/// Knows whether anything was written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
