//! Crash simulation of the spool: the code of this room on the disk that forgets, a server that forgets too, a store.
//!
//! The server keeps only WAL from the segment of the confirmed flush on, and may be promoted at any point it has sent.
//! The driver does what the threads of `relay` do, one step at a time and in any order. After every death the promises
//! W1 to W6 (`super`) are checked from outside: against reference WAL, whose bytes are a function of timeline and
//! LSN and never zero, and as recovery would find it: newest timeline first, whole segment before `.partial`.
//!
//! Two drivers: seeds (`SEAWALL_SIM_FIRST`, `SEAWALL_SIM_SEEDS`; `scripts/sim` runs them until stopped), and scripts
//! with a death after every single operation. Planted bugs prove that both can see: product code has no trace of
//! them, they are bad habits of the program that uses the disk (`Sloppy`) or slips of the driver.

use super::queue::{Archived, Keep, Queue, Waiting};
use super::resume::{self, Contents, Start};
use super::writer::SegmentWriter;
use super::{Name, done_name, partial_name, store_history};
use crate::disk::Fs;
use crate::disk::sim::{Call, Play, Prng, SimFs, Sloppy, Weather};
use crate::error::{Error, Kind};
use crate::pg::timeline::Ancestor;
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineHistory, TimelineId};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::OnceLock;

const SEGMENT: u64 = 4096;
const SIZE: SegmentSize = SegmentSize::tiny(SEGMENT as u32);
const START: Lsn = Lsn(8 * SEGMENT);
/// No WAL is sent from here on.
const END: Lsn = Lsn(40 * SEGMENT);
const TIMELINES_MAX: u32 = 6;
const STEPS: u64 = 150;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    // Of the disk.
    NoDataSyncBeforeSeal,
    RenameBeforeDataSync,
    NoDirSyncAfterCreate,
    NoDirSyncAfterSeal,
    RetryFailedDataSync,
    PassOverFailedDirSync,
    // Of a life's start.
    TrustDirectory,
    ResumeBehindPartial,
    NewestArchivedIsTheEnd,
    ForkIgnored,
    PartialZeroedAgain,
    // Of acknowledging.
    ReportWriteAsFlush,
    ArchivedUpToTheNewest,
    // Of allocation.
    AllocationNotSynced,
    FullDiskPassedOver,
    // Of timelines.
    TimelineBeginsEmpty,
    NamedBeforeSwitchIsReached,
    HistoryStoredLate,
    // Of uploads.
    RemovedBeforeAcknowledged,
    DoneBeforeAcknowledged,
    SegmentSentBeforeHistory,
    MarkNotDurableBeforeRemoval,
}

impl Bug {
    fn play(self, call: &Call, trimming: bool) -> Play {
        let is_segment = |name: &str| Segment::parse(name).is_some();
        match (self, call) {
            (Bug::NoDataSyncBeforeSeal, Call::DataSync { name, end: SEGMENT })
                if name.ends_with(".partial") =>
            {
                Play::Forget
            }
            (Bug::RenameBeforeDataSync, Call::DataSync { name, end: SEGMENT })
                if name.ends_with(".partial") =>
            {
                Play::Late
            }
            (Bug::NoDirSyncAfterCreate, Call::DirSync { after, .. })
                if after.starts_with("rename") && after.ends_with(".partial") =>
            {
                Play::Forget
            }
            (Bug::NoDirSyncAfterSeal, Call::DirSync { after, .. })
                if after.rsplit(' ').next().is_some_and(is_segment) && after.starts_with("ren") =>
            {
                Play::Forget
            }
            (Bug::RetryFailedDataSync, Call::DataSync { .. }) => Play::Again,
            (Bug::PassOverFailedDirSync, Call::DirSync { .. }) => Play::PassOver,
            (Bug::TrustDirectory, Call::DirSync { first: true, .. }) => Play::Forget,
            (Bug::PartialZeroedAgain, Call::Open(name)) if name.ends_with(".partial") => {
                Play::Zeros
            }
            (Bug::AllocationNotSynced, Call::DataSync { name, .. }) if name.ends_with(".tmp") => {
                Play::Forget
            }
            (Bug::FullDiskPassedOver, Call::Write { name, .. }) if name.ends_with(".tmp") => {
                Play::PassOver
            }
            (Bug::TimelineBeginsEmpty, Call::Read(name))
                if is_segment(name) || name.ends_with(".partial") =>
            {
                Play::Zeros
            }
            (Bug::NamedBeforeSwitchIsReached, Call::Write { name, synced: true }) => {
                let early = name.strip_suffix(".tmp");
                early.map_or(Play::Right, |early| Play::Name(early.into()))
            }
            (Bug::MarkNotDurableBeforeRemoval, Call::DirSync { .. }) if trimming => Play::Forget,
            _ => Play::Right,
        }
    }
}

/// The bytes of every timeline, were it alone.
fn wal_of(timeline: TimelineId) -> &'static [u8] {
    static WAL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let byte = |timeline: u64, lsn: u64| {
        let mixed = (lsn ^ timeline << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 56) as u8 | 1
    };
    let all = WAL.get_or_init(|| {
        let timelines = 0..u64::from(TIMELINES_MAX) + 1;
        let one = |timeline| {
            (0..END.0 + SEGMENT)
                .map(|lsn| byte(timeline, lsn))
                .collect()
        };
        timelines.map(one).collect()
    });
    &all[timeline.0 as usize]
}

/// The WAL along a path of timelines.
fn wal(path: &TimelineHistory, from: Lsn, to: Lsn) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((to.0 - from.0) as usize);
    for (timeline, begin, end) in path.ranges() {
        let (begin, end) = (begin.max(from), end.min(to));
        if begin < end {
            bytes.extend_from_slice(&wal_of(timeline)[begin.0 as usize..end.0 as usize]);
        }
    }
    bytes
}

fn segment_start(lsn: Lsn) -> Lsn {
    SegmentNo::holding(lsn, SIZE).start(SIZE)
}

fn history_text(path: &TimelineHistory) -> Vec<u8> {
    let line = |a: &Ancestor| format!("{}\t{}\tno recovery target specified\n", a.timeline, a.end);
    path.ancestors.iter().map(line).collect::<String>().into()
}

/// The timelines of a path whose files recovery looks at for a segment, newest first.
fn candidates(path: &TimelineHistory, number: SegmentNo) -> Vec<TimelineId> {
    let (start, end) = (number.start(SIZE), number.next().start(SIZE));
    let ranges = path.ranges();
    let touching = ranges.filter(|(_, begin, left)| *begin < end && *left > start);
    let mut timelines: Vec<TimelineId> = touching.map(|(timeline, ..)| timeline).collect();
    timelines.reverse();
    timelines
}

/// A walsender, and the server it would be after each promotion.
struct Server {
    path: TimelineHistory,
    paths: BTreeMap<TimelineId, TimelineHistory>,
    streaming: TimelineId,
    sent: Lsn,
    /// End of the WAL on the newest timeline.
    flush: Lsn,
    confirmed: Lsn,
    /// What is before it was removed.
    oldest: Lsn,
}

impl Server {
    fn new() -> Server {
        let path = TimelineHistory::root(TimelineId(1));
        Server {
            paths: BTreeMap::from([(path.timeline, path.clone())]),
            streaming: path.timeline,
            path,
            sent: START,
            flush: START,
            confirmed: START,
            oldest: START,
        }
    }

    fn start(&mut self, timeline: TimelineId, at: Lsn) -> Result<(), End> {
        let left = self.path.existed(timeline).map(|range| range.end);
        if !self.path.contains(timeline) || left.is_some_and(|left| left < at) {
            return violation(format!(
                "W4: {at} on timeline {timeline} is not in the history"
            ));
        }
        if at < self.oldest {
            let (oldest, confirmed) = (self.oldest, self.confirmed);
            return violation(format!(
                "W4: {at} was removed, the oldest is {oldest}, confirmed {confirmed}"
            ));
        }
        (self.streaming, self.sent) = (timeline, at);
        Ok(())
    }

    /// Bytes that can be sent now.
    fn room(&self) -> u64 {
        let end = self
            .path
            .existed(self.streaming)
            .map(|range| range.end)
            .unwrap_or(END);
        end.0.saturating_sub(self.sent.0)
    }

    fn send(&mut self, bytes_max: u64) -> Option<(Lsn, Vec<u8>)> {
        let bytes = bytes_max.min(self.room());
        let at = self.sent;
        self.sent.0 += bytes;
        if self.streaming == self.path.timeline {
            self.flush = self.flush.max(self.sent);
        }
        let path = &self.paths[&self.streaming];
        (bytes > 0).then(|| (at, wal(path, at, self.sent)))
    }

    /// Where the timeline that is streamed was left, once all of it is sent.
    fn ended(&self) -> Option<(TimelineId, Lsn)> {
        let left = self.path.existed(self.streaming).map(|range| range.end)?;
        let mut later = self.path.ranges().map(|(timeline, ..)| timeline);
        let next = later.find(|timeline| *timeline > self.streaming);
        (self.sent >= left).then_some((next.expect("it was left for one"), left))
    }

    fn confirm(&mut self, lsn: Lsn) {
        self.confirmed = lsn;
        // A server does not remove the segment in which its own timeline begins because of what was sent before.
        let needed = self
            .path
            .existed(self.streaming)
            .map(|range| range.end)
            .unwrap_or(lsn)
            .min(lsn);
        self.oldest = self.oldest.max(segment_start(needed));
    }

    /// The server dies, and another one, which had WAL up to `at`, is promoted.
    fn promote(&mut self, at: Lsn) {
        let (timeline, end) = (self.path.timeline, at);
        self.path.ancestors.push(Ancestor { timeline, end });
        self.path.timeline = TimelineId(timeline.0 + 1);
        self.paths.insert(self.path.timeline, self.path.clone());
        self.flush = at;
        self.confirmed = self.confirmed.min(at);
        self.oldest = self.oldest.min(segment_start(at));
    }

    fn begin_of_newest(&self) -> Lsn {
        self.path.ancestors.last().map_or(START, |a| a.end)
    }
}

/// Objects by name; put only if absent, as `archive/wal` does.
#[derive(Default)]
struct Store(BTreeMap<Waiting, Vec<u8>>);

impl Store {
    /// W5, from the store's side.
    fn put(&mut self, upload: Upload, server: &Server) -> Result<(), String> {
        let Upload { item, bytes } = upload;
        let (timeline, right) = match item {
            Waiting::History(timeline) => (timeline, history_text(&server.paths[&timeline])),
            Waiting::Segment(segment) => (segment.timeline, whole(segment, server)),
        };
        let history = Waiting::History(timeline);
        if timeline.0 > 1 && item != history && !self.0.contains_key(&history) {
            return Err(format!("W5: {item:?} came before its history"));
        }
        if bytes != right {
            return Err(format!("W5: {item:?} was stored with wrong bytes"));
        }
        self.0.insert(item, bytes);
        Ok(())
    }

    fn has(&self, segment: Segment) -> bool {
        self.0.contains_key(&Waiting::Segment(segment))
    }

    fn segments(&self) -> BTreeSet<Segment> {
        let segment = |item: &Waiting| match item {
            Waiting::Segment(segment) => Some(*segment),
            Waiting::History(_) => None,
        };
        self.0.keys().filter_map(segment).collect()
    }
}

/// What a segment must hold.
fn whole(segment: Segment, server: &Server) -> Vec<u8> {
    let start = segment.start(SIZE).unwrap();
    let end = Lsn(start.0 + SEGMENT);
    wal(&server.paths[&segment.timeline], start, end)
}

struct Upload {
    item: Waiting,
    bytes: Vec<u8>,
}

/// Why a life ended before its time.
enum End {
    /// A promise was broken.
    Violation(String),
    /// The process ended with this error; fine if the disk was to blame.
    Died(Error),
    /// The connection broke, or the disk was full at a bad moment: the process begins again from the start.
    Reconnect,
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        match error.kind() {
            Kind::Full => End::Reconnect,
            _ => End::Died(error),
        }
    }
}

fn violation<T>(text: String) -> Result<T, End> {
    Err(End::Violation(text))
}

/// One thing that a thread of the relay, the server or the store does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u64),
    /// The writer takes all that came, and follows the server to its next timeline.
    Write,
    Flush,
    Status,
    /// The next file that waits goes on its way to the store.
    Upload,
    /// An upload arrives and is acknowledged: the oldest, or a later one.
    Arrive(usize),
    /// An upload is given up; whether it arrived nobody knows.
    Lose,
    Trim,
    Promote(Lsn),
    Reconnect,
}

/// What stays the same in one run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    weather: Weather,
    keep: Keep,
    /// `--acknowledge archived`.
    acknowledge_archived: bool,
    slot: bool,
    store_down_percent: u64,
    /// No start need wait for the archive: whatever it acknowledged has its mark.
    marks_suffice: bool,
    kill_percent: u64,
    /// Of what was not synced, how much a power loss leaves.
    left_percent: u64,
}

const CALM: Plan = Plan {
    weather: Weather {
        no_links: false,
        no_rename_new: false,
        write: 0,
        full: 0,
        data_sync: 0,
        dir_sync: 0,
    },
    keep: Keep::None,
    acknowledge_archived: false,
    slot: true,
    store_down_percent: 0,
    marks_suffice: true,
    kill_percent: 0,
    left_percent: 0,
};

/// All but the process.
struct World {
    plan: Plan,
    bug: Bug,
    prng: Prng,
    disk: SimFs,
    server: Server,
    store: Store,
    in_flight: Vec<Upload>,
    /// The highest flush LSN that was ever reported, by timeline.
    reported: BTreeMap<TimelineId, Lsn>,
    trimming: Rc<Cell<bool>>,
    /// Where the spool began.
    base: Lsn,
    /// Operations of the disk in the lives that are over.
    operations: u64,
    deaths: u64,
}

/// The process.
struct Life {
    fs: Sloppy,
    writer: SegmentWriter<Sloppy>,
    chunks: VecDeque<(Lsn, Vec<u8>)>,
    flushed: Lsn,
    queue: Queue<Sloppy>,
    archived: Archived,
    newest_archived: Lsn,
}

impl World {
    fn new(plan: Plan, bug: Bug, seed: u64) -> World {
        World {
            plan,
            bug,
            prng: Prng(seed),
            disk: SimFs::default(),
            server: Server::new(),
            store: Store::default(),
            in_flight: Vec::new(),
            reported: BTreeMap::new(),
            trimming: Rc::default(),
            base: START,
            operations: 0,
            deaths: 0,
        }
    }

    /// What `relay` does before it connects its threads.
    fn boot(&mut self) -> Result<Life, End> {
        let (bug, trimming) = (self.bug, self.trimming.clone());
        let fs = Sloppy::new(self.disk.clone(), move |call| {
            bug.play(call, trimming.get())
        });
        let contents = resume::read(&fs, SIZE)?;
        let down = self.prng.chance(self.plan.store_down_percent);
        let mut archived = (!down).then(|| self.store.segments());
        let found = self.find_start(&contents, archived.as_ref())?;
        // "Already removed" to a start that was found without the archive: it waits for the archive, too.
        let may_wait = down && !self.plan.marks_suffice;
        let start = match found.filter(|start| !may_wait || start.lsn >= self.server.oldest) {
            Some(start) => start,
            None => {
                archived = Some(self.store.segments());
                let found = self.find_start(&contents, archived.as_ref())?;
                found.expect("the archive was asked")
            }
        };
        show(|| {
            format!(
                "starts at {} on timeline {}: {}",
                start.lsn, start.timeline, start.why
            )
        });
        if start.why.contains("no archive") {
            self.begin_anew(start.lsn)?;
        }
        for timeline in self.server.path.ranges().map(|(timeline, ..)| timeline) {
            if timeline.0 > 1 && timeline <= start.timeline && bug != Bug::HistoryStoredLate {
                store_history(&fs, timeline, &history_text(&self.server.paths[&timeline]))?;
            }
        }
        self.server.start(start.timeline, start.lsn)?;
        let path = self.server.path.clone();
        let life = Life {
            writer: SegmentWriter::begin(fs.clone(), SIZE, start.timeline, start.lsn)?,
            chunks: VecDeque::new(),
            flushed: start.lsn,
            queue: Queue::new(fs.clone(), SIZE),
            archived: Archived::begin(
                &contents,
                &archived.unwrap_or_default(),
                path,
                SIZE,
                start.lsn,
            )?,
            newest_archived: START,
            fs,
        };
        self.report(&life)?;
        Ok(life)
    }

    /// `None`: it waits for the archive.
    fn find_start(
        &self,
        contents: &Contents,
        archived: Option<&BTreeSet<Segment>>,
    ) -> Result<Option<Start>, End> {
        let mut path = self.server.path.clone();
        let mut archived = archived.cloned();
        match (self.bug, path.ancestors.last_mut(), &mut archived) {
            (Bug::ForkIgnored, Some(last), _) => last.end = END,
            (Bug::NewestArchivedIsTheEnd, _, Some(archived)) => fill_up(archived, &path),
            _ => {}
        }
        let slot = self.plan.slot.then_some(self.server.confirmed);
        let flush = self.server.flush;
        let found = resume::start_position(contents, archived.as_ref(), &path, SIZE, slot, flush);
        let nothing = contents.whole.is_empty() && contents.partial.is_empty();
        let nothing = nothing && contents.done.is_empty();
        let may_wait = archived.is_none() && (nothing || !self.plan.marks_suffice);
        let mut start = match found {
            Err(e) if e.kind() == Kind::Transient && may_wait => return Ok(None),
            other => other.or_else(|e| violation(format!("W4: {}", e.one_line())))?,
        };
        let segment = Segment::holding(start.timeline, start.lsn, SIZE);
        if self.bug == Bug::ResumeBehindPartial && contents.partial.contains(&segment) {
            start.lsn.0 += SEGMENT;
        }
        Ok(Some(start))
    }

    /// Without a slot, whoever has nothing begins with what the server writes now: right if nothing was acknowledged.
    fn begin_anew(&mut self, start: Lsn) -> Result<(), End> {
        if self.plan.slot || self.acknowledged(&self.server.path) > self.base {
            return violation("W4: all was forgotten".into());
        }
        self.base = start;
        self.reported.clear();
        Ok(())
    }

    /// Up to where WAL on this path was ever acknowledged.
    fn acknowledged(&self, path: &TimelineHistory) -> Lsn {
        let reported = path.ranges().filter_map(|(timeline, _, left)| {
            let reported = self.reported.get(&timeline);
            reported.map(|lsn| left.min(*lsn))
        });
        reported.max().unwrap_or(START).max(self.base)
    }

    fn step(&mut self, life: &mut Life, step: Step) -> Result<(), End> {
        show(|| format!("   {step:?}, reported {:?}", self.reported));
        match step {
            Step::Send(bytes) => life.chunks.extend(self.server.send(bytes)),
            Step::Write => self.write(life)?,
            Step::Flush => life.flushed = life.writer.flush()?,
            Step::Status => self.report(life)?,
            Step::Upload => self.upload(life)?,
            Step::Arrive(which) if which < self.in_flight.len() => self.arrive(life, which)?,
            Step::Arrive(_) => {}
            Step::Lose => self.lose()?,
            Step::Trim => self.trim(life)?,
            Step::Promote(at) => self.server.promote(at),
            Step::Reconnect => return Err(End::Reconnect),
        }
        let (write, flush) = (life.writer.write_lsn(), life.writer.flush_lsn());
        if flush > write {
            return violation(format!("W1: flush {flush} is ahead of write {write}"));
        }
        Ok(())
    }

    fn write(&mut self, life: &mut Life) -> Result<(), End> {
        while let Some((lsn, bytes)) = life.chunks.front() {
            let before = life.writer.flush_lsn();
            let last = life
                .chunks
                .back()
                .map(|(lsn, bytes)| lsn.0 + bytes.len() as u64);
            life.writer.server_reaches(Lsn(last.unwrap_or(0)));
            match life.writer.append(*lsn, bytes) {
                // No room for another segment: the same bytes come again.
                Err(e) if e.kind() == Kind::Full => return Ok(()),
                other => other?,
            }
            if life.writer.flush_lsn() < before {
                return violation("W1: the flush LSN went back".into());
            }
            life.chunks.pop_front();
            self.store_late_history(life)?;
        }
        life.flushed = life.writer.flush_lsn();
        let Some((next, switch)) = self.server.ended() else {
            return Ok(());
        };
        if self.bug != Bug::HistoryStoredLate {
            store_history(&life.fs, next, &history_text(&self.server.paths[&next]))?;
        }
        life.writer.switch_timeline(next, switch)?;
        self.server.start(next, segment_start(switch))?;
        life.flushed = life.writer.flush_lsn();
        let path = self.server.path.clone();
        life.archived.switch_timeline(path, switch);
        Ok(())
    }

    fn store_late_history(&self, life: &Life) -> Result<(), End> {
        let timeline = life.writer.timeline();
        if self.bug == Bug::HistoryStoredLate && timeline.0 > 1 {
            let text = history_text(&self.server.paths[&timeline]);
            store_history(&life.fs, timeline, &text)?;
        }
        Ok(())
    }

    fn report(&mut self, life: &Life) -> Result<(), End> {
        let flush = match (self.bug, self.plan.acknowledge_archived) {
            (Bug::ArchivedUpToTheNewest, true) => {
                let newest = life.newest_archived.max(life.archived.lsn());
                newest.min(life.writer.write_lsn())
            }
            (_, true) => life.archived.lsn().min(life.writer.write_lsn()),
            (Bug::ReportWriteAsFlush, _) => life.writer.write_lsn(),
            _ => life.flushed,
        };
        if flush > self.server.sent {
            return violation(format!("W1: {flush} is reported and was never sent"));
        }
        let timeline = life.writer.timeline();
        let highest = self.reported.entry(timeline).or_insert(flush);
        *highest = flush.max(*highest);
        self.server.confirm(flush);
        Ok(())
    }

    fn upload(&mut self, life: &mut Life) -> Result<(), End> {
        let mut waiting = life.queue.waiting()?;
        if self.bug == Bug::SegmentSentBeforeHistory {
            waiting.sort_by_key(|item| matches!(item, Waiting::History(_)));
        }
        for item in waiting {
            let on_its_way = self.in_flight.iter().any(|upload| upload.item == item);
            match item {
                Waiting::History(_) if on_its_way => return Ok(()),
                _ if on_its_way => continue,
                _ => return self.begin_upload(life, item),
            }
        }
        Ok(())
    }

    fn begin_upload(&mut self, life: &mut Life, item: Waiting) -> Result<(), End> {
        let name = match item {
            Waiting::History(timeline) => timeline.history_name(),
            Waiting::Segment(segment) => segment.to_string(),
        };
        let bytes = self.disk.read(&name).expect("it waits");
        self.in_flight.push(Upload { item, bytes });
        match self.bug {
            Bug::DoneBeforeAcknowledged => life.queue.mark_done(item)?,
            Bug::RemovedBeforeAcknowledged if matches!(item, Waiting::Segment(_)) => {
                let removed = life.fs.remove(name.as_ref());
                removed.map_err(|e| Error::io("could not remove", e))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn arrive(&mut self, life: &mut Life, which: usize) -> Result<(), End> {
        let upload = self.in_flight.remove(which);
        let item = upload.item;
        self.store
            .put(upload, &self.server)
            .map_err(End::Violation)?;
        match life.queue.mark_done(item) {
            Err(e) if e.kind() == Kind::Full => return Ok(()), // sent again later
            other => other?,
        }
        if let Waiting::Segment(segment) = item {
            life.archived.acknowledged(segment);
            let end = Lsn(segment.start(SIZE)?.0 + SEGMENT);
            life.newest_archived = life.newest_archived.max(end);
        }
        Ok(())
    }

    fn lose(&mut self) -> Result<(), End> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let upload = self.in_flight.remove(0);
        if self.prng.chance(30) {
            let put = self.store.put(upload, &self.server);
            put.map_err(End::Violation)?;
        }
        Ok(())
    }

    fn trim(&mut self, life: &mut Life) -> Result<(), End> {
        self.trimming.set(true);
        let trimmed = life.queue.trim(self.plan.keep);
        self.trimming.set(false);
        trimmed?;
        Ok(())
    }

    /// Lives until the steps end, or something else does.
    fn live(
        &mut self,
        mut next: impl FnMut(&mut World, &Life) -> Option<Step>,
    ) -> Result<(), String> {
        let lived = self.boot().and_then(|mut life| {
            while let Some(step) = next(self, &life) {
                self.step(&mut life, step)?;
            }
            Ok(())
        });
        self.operations += self.disk.operations();
        match lived {
            Ok(()) | Err(End::Reconnect) => {
                self.disk = self.disk.kill();
                Ok(())
            }
            Err(End::Violation(text)) => Err(text),
            Err(End::Died(e)) if self.disk.misbehaved() => {
                show(|| format!("died: {}", e.one_line()));
                self.die()
            }
            Err(End::Died(e)) => Err(format!("an error for no reason: {}", e.one_line())),
        }
    }

    /// kill -9 or power loss; uploads on their way arrive or do not. Then everything is looked at.
    fn die(&mut self) -> Result<(), String> {
        self.deaths += 1;
        for upload in std::mem::take(&mut self.in_flight) {
            if self.prng.chance(50) {
                self.store.put(upload, &self.server)?;
            }
        }
        let Plan {
            acknowledge_archived,
            slot,
            ..
        } = self.plan;
        // Without a slot nobody remembers where the archive should begin.
        if acknowledge_archived && slot && self.prng.chance(20) {
            show(|| "the machine is lost".into());
            self.disk = SimFs::default();
        } else if !self.disk.is_shut_down() && self.prng.chance(self.plan.kill_percent) {
            show(|| "kill -9".into());
            self.disk = self.disk.kill();
        } else {
            show(|| "power loss".into());
            let left_percent = self.plan.left_percent;
            self.disk = self.disk.power_loss(&mut self.prng, left_percent);
        }
        show(|| format!("left: {:?}", self.disk.names()));
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        for name in self.disk.names() {
            self.check_file(&name)?;
        }
        for (timeline, path) in &self.server.paths {
            self.check_recovery(*timeline, path)?;
        }
        Ok(())
    }

    /// W3, W5, W6.
    fn check_file(&self, name: &str) -> Result<(), String> {
        let bytes = self.disk.read(name).expect("it was listed");
        let timeline = match Name::parse(name.as_ref()) {
            Name::Whole(segment) if bytes != whole(segment, &self.server) => {
                return Err(format!("W3: {name} is not what it should be"));
            }
            Name::Done(segment) if !self.store.has(segment) => {
                return Err(format!("W5: {name}, but the archive has it not"));
            }
            Name::Partial(_) if bytes.len() as u64 != SEGMENT => {
                return Err(format!("W6: {name} has {} bytes", bytes.len()));
            }
            Name::Whole(segment) | Name::Partial(segment) => segment.timeline,
            _ => return Ok(()),
        };
        match self.knows(timeline) {
            true => Ok(()),
            false => Err(format!("W5: {name} has no history file")),
        }
    }

    fn knows(&self, timeline: TimelineId) -> bool {
        let stored = self.store.0.contains_key(&Waiting::History(timeline));
        stored || timeline.0 == 1 || self.disk.read(&timeline.history_name()).is_some()
    }

    /// W2: recovery to the end of this timeline finds all that was acknowledged on it and on its ancestors.
    fn check_recovery(&self, timeline: TimelineId, path: &TimelineHistory) -> Result<(), String> {
        let end = self.acknowledged(path);
        if !self.knows(timeline) {
            let begin = path.ancestors.last().map_or(START, |a| a.end);
            let own = self.reported.get(&timeline).copied().unwrap_or(START);
            return match own > begin.max(self.base) {
                true => Err(format!("W2: the history of timeline {timeline} is lost")),
                false => Ok(()),
            };
        }
        let mut at = self.base;
        while at < end {
            let number = SegmentNo::holding(at, SIZE);
            let until = end.min(number.next().start(SIZE));
            self.check_found(path, number, until).map_err(|what| {
                format!("W2: {what}; timeline {timeline} is acknowledged up to {end}")
            })?;
            at = until;
        }
        Ok(())
    }

    /// What recovery finds of a segment has all bytes up to `until`.
    fn check_found(
        &self,
        path: &TimelineHistory,
        number: SegmentNo,
        until: Lsn,
    ) -> Result<(), String> {
        let spool = !self.plan.acknowledge_archived;
        let start = number.start(SIZE);
        for timeline in candidates(path, number) {
            let segment = Segment::new(timeline, number, SIZE);
            if self.store.has(segment) {
                return Ok(()); // compared when it was put
            }
            let read = |name: String| self.disk.read(&name).filter(|_| spool);
            let found = read(segment.to_string()).or_else(|| read(partial_name(segment)));
            let Some(bytes) = found else { continue };
            let expected = wal(path, start, until);
            return match bytes.starts_with(&expected) {
                true => Ok(()),
                false => {
                    let same = bytes.iter().zip(&expected).take_while(|(a, b)| a == b);
                    Err(format!("{segment} is wrong from byte {} on", same.count()))
                }
            };
        }
        Err(format!("there is no segment at {start}"))
    }

    /// In good weather everything is received, flushed, archived and removed.
    fn finish(&mut self) -> Result<(), String> {
        if self.disk.is_shut_down() {
            self.die()?;
        }
        self.plan.store_down_percent = 0;
        self.plan.keep = Keep::None;
        self.disk.set_weather(Weather::default(), 0);
        let mut round = 0;
        self.live(|world, life| {
            let all = life.chunks.is_empty()
                && life.writer.timeline() == world.server.path.timeline
                && life.writer.write_lsn() == world.server.flush;
            round += 1;
            let missing = world.server.flush.0.saturating_sub(world.server.sent.0);
            match round % 4 {
                _ if round > 1000 => None,
                0 if all => None,
                0 if world.server.streaming < world.server.path.timeline => {
                    Some(Step::Send(SEGMENT))
                }
                0 => Some(Step::Send(missing.min(SEGMENT))),
                1 => Some(Step::Write),
                2 => Some(Step::Flush),
                _ => Some(Step::Status),
            }
        })?;
        self.in_flight.clear();
        let mut round = 2; // trims first
        self.live(|_, life| {
            round += 1;
            match round % 3 {
                0 => Some(Step::Trim),
                1 if round > 500 || life.queue.waiting().is_ok_and(|w| w.is_empty()) => None,
                1 => Some(Step::Upload),
                _ => Some(Step::Arrive(0)),
            }
        })?;
        self.check()?;
        self.check_all_archived()
    }

    fn check_all_archived(&self) -> Result<(), String> {
        let mut number = SegmentNo::holding(self.base, SIZE);
        while number.next().start(SIZE) <= self.server.flush {
            let owner = candidates(&self.server.path, number)[0];
            let last = Lsn(number.next().start(SIZE).0 - 1);
            let owner = owner.min(self.server.path.holding(last));
            let segment = Segment::new(owner, number, SIZE);
            if !self.store.has(segment) {
                return Err(format!("in the end {segment} is not in the archive"));
            }
            let (name, mark) = (segment.to_string(), done_name(segment));
            if self.disk.read(&name).is_some() && self.disk.read(&mark).is_some() {
                return Err(format!("in the end {segment} is still in the spool"));
            }
            number = number.next();
        }
        Ok(())
    }
}

/// `SEAWALL_SIM_SHOW=1` tells the story, for one seed.
#[allow(clippy::print_stdout)] // for whoever repeats it
fn show(what: impl Fn() -> String) {
    static SHOW: OnceLock<bool> = OnceLock::new();
    if *SHOW.get_or_init(|| from_environment("SEAWALL_SIM_SHOW", 0) > 0) {
        println!("{}", what());
    }
}

/// `Bug::NewestArchivedIsTheEnd`: takes everything before the newest for archived.
fn fill_up(archived: &mut BTreeSet<Segment>, path: &TimelineHistory) {
    let newest = archived.iter().map(|s| s.number(SIZE).unwrap()).max();
    let mut number = SegmentNo::holding(START, SIZE);
    while newest.is_some_and(|newest| number < newest) {
        let last = Lsn(number.next().start(SIZE).0 - 1);
        archived.insert(Segment::new(path.holding(last), number, SIZE));
        number = number.next();
    }
}

// Seeds: each has its own weather and habits.

impl Plan {
    fn random(prng: &mut Prng) -> Plan {
        Plan {
            weather: Weather {
                write: prng.pick(&[0, 0, 0, 2]),
                full: prng.pick(&[0, 0, 10, 40]),
                data_sync: prng.pick(&[0, 0, 1, 8]),
                dir_sync: prng.pick(&[0, 0, 1, 8]),
                ..Weather::default()
            },
            keep: prng.pick(&[Keep::None, Keep::None, Keep::Count(2), Keep::Always]),
            acknowledge_archived: prng.chance(25),
            slot: prng.chance(80),
            store_down_percent: prng.pick(&[0, 0, 50]),
            marks_suffice: false,
            kill_percent: prng.below(100),
            left_percent: prng.pick(&[0, 10, 50, 90, 100]),
        }
    }
}

impl World {
    fn random_step(&mut self, life: &Life) -> Step {
        let prng = &mut self.prng;
        match prng.below(100) {
            0..24 if life.chunks.len() < 4 => {
                let to_border = SEGMENT - self.server.sent.0 % SEGMENT;
                let bytes = 1 + prng.below(1500);
                Step::Send(match prng.below(10) {
                    0..3 => bytes.min(to_border),
                    3..6 => to_border,
                    6 => 1,
                    7 => to_border + bytes,
                    _ => bytes,
                })
            }
            0..44 => Step::Write,
            44..56 => Step::Flush,
            56..66 => Step::Status,
            66..77 => Step::Upload,
            77..88 => Step::Arrive(prng.below(3) as usize),
            88 => Step::Lose,
            89..94 => Step::Trim,
            94..98 => self.random_promotion(),
            _ => Step::Reconnect,
        }
    }

    /// Inside the segment that was sent last, at its border, or in the one before.
    fn random_promotion(&mut self) -> Step {
        let (sent, newest) = (self.server.flush, self.server.path.timeline);
        let begin = self.server.begin_of_newest();
        if newest.0 >= TIMELINES_MAX {
            return Step::Write;
        }
        let border = segment_start(sent);
        let at = match self.prng.below(6) {
            0 => border,
            1 => sent,
            2 => Lsn(border.0 - 1 - self.prng.below(SEGMENT - 1)),
            _ => Lsn(border.0 + self.prng.below(sent.0 - border.0 + 1)),
        };
        Step::Promote(at.max(begin).min(sent))
    }
}

/// One seed: many lives, each until something happens. `Err` says which promise was broken.
fn run(seed: u64, bug: Bug) -> Result<(), String> {
    let mut prng = Prng(seed);
    let plan = Plan::random(&mut prng);
    let mut world = World::new(plan, bug, prng.next());
    let mut left = STEPS;
    while left > 0 {
        world.disk.set_weather(plan.weather, prng.next());
        if prng.chance(70) {
            world.disk.crash_after(prng.below(50));
        }
        left -= 1; // a life that ends at once counts too
        world.live(|world, life| {
            left = left.saturating_sub(1);
            (left > 0).then(|| world.random_step(life))
        })?;
    }
    world.finish()
}

fn from_environment(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn nothing_acknowledged_is_lost_whatever_the_seed() {
    let first = from_environment("SEAWALL_SIM_FIRST", 0);
    let seeds = from_environment("SEAWALL_SIM_SEEDS", 500);
    let failed = |seed| Some(format!("seed {seed}: {}", run(seed, Bug::None).err()?));
    let failures: Vec<String> = (first..first + seeds).filter_map(failed).take(5).collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

// Scripts: short stories, with a death after every operation.

const fn at(segment: u64, offset: u64) -> Lsn {
    Lsn((8 + segment) * SEGMENT + offset)
}

/// Uploads what waits, and removes it.
const ARCHIVE: [Step; 3] = [Step::Upload, Step::Arrive(0), Step::Trim];
/// Receives and acknowledges.
const fn take(bytes: u64) -> [Step; 4] {
    [Step::Send(bytes), Step::Write, Step::Flush, Step::Status]
}

const PLAIN: &str = "segments come and go";
const OUT_OF_ORDER: &str = "uploads arrive out of order";
const SWITCH: &str = "a switch inside a segment";
const SWITCH_AT_BORDER: &str = "a switch at the border";
const SWITCH_IN_ARCHIVED: &str = "a switch in a segment that is archived and gone";

fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    let story = |parts: &[&[Step]]| parts.concat();
    let (promote, write) = (|lsn| [Step::Promote(lsn), Step::Write], [Step::Write]);
    vec![
        (
            PLAIN,
            story(&[
                &take(1024),
                &take(3072),
                &ARCHIVE,
                &take(1500),
                &take(5000),
                &ARCHIVE,
                &take(1),
                &take(1690),
                &[Step::Send(300), Step::Write, Step::Status],
                &ARCHIVE,
            ]),
        ),
        (
            OUT_OF_ORDER,
            story(&[
                &take(3 * SEGMENT + 100),
                &[Step::Upload, Step::Upload, Step::Upload],
                &[Step::Arrive(1), Step::Trim, Step::Arrive(1), Step::Trim],
                &take(700),
                &[Step::Lose, Step::Trim, Step::Reconnect],
                &ARCHIVE,
            ]),
        ),
        (
            SWITCH,
            story(&[
                &take(SEGMENT + 2000),
                &promote(at(1, 1500)),
                &take(1000),
                &take(2000),
                &ARCHIVE,
                &take(2000),
                &ARCHIVE,
                &ARCHIVE,
            ]),
        ),
        (
            SWITCH_AT_BORDER,
            story(&[
                &take(SEGMENT),
                &promote(at(1, 0)),
                &take(1000),
                &ARCHIVE,
                &take(3096),
                &ARCHIVE,
                &ARCHIVE,
            ]),
        ),
        (
            "three timelines in one segment",
            story(&[
                &take(1000),
                &promote(at(0, 900)),
                &take(2000),
                &promote(at(0, 1600)),
                &take(3000),
                &take(2000),
                &ARCHIVE,
                &ARCHIVE,
                &ARCHIVE,
            ]),
        ),
        (
            SWITCH_IN_ARCHIVED,
            story(&[
                &take(SEGMENT + 10),
                &ARCHIVE,
                &promote(at(0, 3000)),
                &take(1000),
                &take(1990),
                &take(100),
                &take(2000),
                &ARCHIVE,
                &ARCHIVE,
            ]),
        ),
        (
            "the server dies, the next one has less",
            story(&[
                &take(2 * SEGMENT + 10),
                &[Step::Promote(at(1, 700)), Step::Reconnect],
                &take(2 * SEGMENT),
                &write,
                &take(SEGMENT),
                &ARCHIVE,
                &ARCHIVE,
            ]),
        ),
    ]
}

/// Plays a script to its end, or to the death after so many operations. A reconnect goes on in a new life.
fn play(world: &mut World, script: &[Step], crash_after: Option<u64>) -> Result<(), String> {
    let mut steps = script.iter();
    while steps.len() > 0 && world.deaths == 0 {
        if let Some(last) = crash_after {
            world.disk.crash_after(last - world.operations);
        }
        world.live(|_, _| steps.next().copied())?;
    }
    Ok(())
}

/// `Err` names the promise that was broken, by which script and where.
fn run_scripts(bug: Bug, wanted: impl Fn(&str) -> bool) -> Result<u64, String> {
    let mut cases = 0;
    for (name, script) in scripts().into_iter().filter(|(name, _)| wanted(name)) {
        let mut whole = World::new(CALM, bug, 1);
        let mut operations = 0;
        play(&mut whole, &script, None)
            .and_then(|()| {
                operations = whole.operations;
                whole.finish()
            })
            .map_err(|what| format!("\"{name}\" without a death: {what}"))?;
        for crash_after in 0..=operations {
            for variant in 0..VARIANTS {
                run_variant(bug, &script, crash_after, variant).map_err(|what| {
                    format!("\"{name}\", death after {crash_after}, variant {variant}: {what}")
                })?;
                cases += 1;
            }
        }
    }
    Ok(cases)
}

const VARIANTS: u64 = 10;

/// A death, perhaps by kill -9 with a second life that says hello, or receives a little, and power loss then; and a life
/// that brings all to its end.
fn run_variant(bug: Bug, script: &[Step], crash_after: u64, variant: u64) -> Result<(), String> {
    let kill = variant % 2 == 1;
    let left_percent = [0, 25, 50, 75, 100][variant as usize / 2 % 5];
    let plan = Plan {
        kill_percent: if kill { 100 } else { 0 },
        store_down_percent: if left_percent % 50 == 25 { 100 } else { 0 },
        left_percent,
        ..CALM
    };
    let mut world = World::new(plan, bug, crash_after * 1000 + variant);
    play(&mut world, script, Some(crash_after))?;
    if kill {
        let receives = [Step::Send(10), Step::Write];
        let mut second = receives.iter().filter(|_| variant % 4 == 3);
        world.live(|_, _| second.next().copied())?;
        world.plan.kill_percent = 0;
    }
    world.die()?;
    world.live(|_, _| None)?;
    world.finish()?;
    world.die()
}

#[test]
fn nothing_acknowledged_is_lost_wherever_it_dies() {
    let cases = run_scripts(Bug::None, |_| true).unwrap_or_else(|what| panic!("{what}"));
    assert!(cases > 2000, "{cases} cases");
}

/// Which driver sees a bug, and the promise that it breaks.
#[rustfmt::skip] // a table
const BUGS: [(Bug, By, &str); 22] = [
    (Bug::NoDataSyncBeforeSeal, By::Script(PLAIN), "W3"),
    (Bug::RenameBeforeDataSync, By::Script(PLAIN), "W3"),
    (Bug::NoDirSyncAfterCreate, By::Script(PLAIN), "W2"),
    (Bug::NoDirSyncAfterSeal, By::Script(SWITCH_AT_BORDER), "W4"),
    (Bug::RetryFailedDataSync, By::Seed, "W"),
    (Bug::PassOverFailedDirSync, By::Seed, "W"),
    (Bug::TrustDirectory, By::Script(PLAIN), "W4"),
    (Bug::ResumeBehindPartial, By::Script(PLAIN), "W4"),
    (Bug::NewestArchivedIsTheEnd, By::Seed, "W"),
    (Bug::ForkIgnored, By::Script(SWITCH), "W4"),
    (Bug::PartialZeroedAgain, By::Script(PLAIN), "W2"),
    (Bug::ReportWriteAsFlush, By::Script(PLAIN), "W2"),
    (Bug::ArchivedUpToTheNewest, By::Seed, "W2"),
    (Bug::AllocationNotSynced, By::Script(PLAIN), "W6"),
    (Bug::FullDiskPassedOver, By::Seed, "W6"),
    (Bug::TimelineBeginsEmpty, By::Script(SWITCH), "W2"),
    (Bug::NamedBeforeSwitchIsReached, By::Script(SWITCH_IN_ARCHIVED), "W2"),
    (Bug::HistoryStoredLate, By::Script(SWITCH), "W5"),
    (Bug::RemovedBeforeAcknowledged, By::Script(OUT_OF_ORDER), "W2"),
    (Bug::DoneBeforeAcknowledged, By::Script(OUT_OF_ORDER), "W"),
    (Bug::SegmentSentBeforeHistory, By::Script(SWITCH), "W5"),
    (Bug::MarkNotDurableBeforeRemoval, By::Script(OUT_OF_ORDER), "W4"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Script(&'static str),
    Seed,
}

#[test]
fn every_planted_bug_is_caught() {
    for (bug, by, promise) in BUGS {
        let broken = |seed| Some(format!("seed {seed}: {}", run(seed, bug).err()?));
        let caught = match by {
            By::Script(name) => run_scripts(bug, |script| script == name).err(),
            By::Seed => (0..2000).find_map(broken),
        };
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} was not seen"));
        assert!(caught.contains(promise), "{bug:?} gave {caught}");
        show(|| format!("{bug:?}: {caught}"));
    }
}
