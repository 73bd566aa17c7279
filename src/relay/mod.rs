//! wal-receive at work: WAL from the server into the spool, from the spool into the archive, and back to the server
//! how far it is safe.
//!
//! ```text
//! ⟨wal-reader⟩ wire/replication ═ batches, bounded ═▶ ⟨wal-writer⟩ spool/writer, one sync per round
//!       ▲                                                  │ sealed: one-slot hint
//!       │ the server                                       ▼
//!       ◀──── Progress: received, written, flushed ──── ⟨uploader⟩ spool/queue ═▶ ⟨upload-n⟩ archive/wal
//!                                          archived ◀─────────────────────────────────┘
//! ```
//!
//! 1. What the server is told to be flushed is durable here, or with `Acknowledge::Archived` in the store too.
//! 2. The reader never waits for the disk, the writer never for the network, and nobody for the archive.
//! 3. A failed write or sync ends the process. Everything else that may pass is tried again for ever.
//! 4. Spool, archive and server belong to one cluster, checked at every connect before anything is asked for.

mod progress;
mod reader;
mod session;
pub mod status;
mod uploader;
mod writer;

pub use progress::Acknowledge;

use crate::archive::Archive;
use crate::disk;
use crate::disk::durable;
use crate::disk::lock::Lock;
use crate::disk::os::OsDir;
use crate::disk::tree;
use crate::error::{Error, Kind, Result};
use crate::limits::{ARCHIVE_ASK_MAX, RECONNECT_PAUSE_FIRST, RECONNECT_PAUSE_MAX};
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineId};
use crate::spool::owner;
use crate::spool::queue::{Archived, Keep};
use crate::wire::Conn;
use crate::work::crew;
use crate::work::stop::Stop;
use progress::Progress;
use reader::Batch;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes from reader to writer.
#[derive(Debug)]
enum Item {
    /// WAL.
    Wal(Batch),
    /// The server wants to know how far what came before this is.
    Reply,
}

/// What was asked for.
pub struct Options<'a> {
    /// The spool.
    pub directory: PathBuf,
    /// The replication slot.
    pub slot: Option<String>,
    /// Sync and report after each round of the writer, not only at the status interval.
    pub synchronous: bool,
    /// How often the server hears of us at least.
    pub status_interval: Duration,
    /// How long the server may be silent; `None` is for ever.
    pub receive_timeout: Option<Duration>,
    /// Where to end.
    pub end_position: Option<Lsn>,
    /// End at the first trouble instead of trying again.
    pub no_loop: bool,
    /// Which position counts as durable.
    pub acknowledge: Acknowledge,
    /// A gap that was accepted: go on at this position.
    pub accept_gap: Option<Lsn>,
    /// How large the spool may become in bytes; `None` is as large as the file system.
    pub spool_bytes_max: Option<u64>,
    /// Where to tell how it goes.
    pub status_file: PathBuf,
    /// The archive, if segments are uploaded.
    pub upload: Option<Upload<'a>>,
}

/// How to reach the archive, of which nothing more is asked after the stop.
pub type OpenArchive<'a> = Box<dyn Fn(&Stop) -> Result<Archive> + Sync + 'a>;

/// How segments get into the archive.
pub struct Upload<'a> {
    /// Opens it.
    pub open: OpenArchive<'a>,
    /// How many at a time.
    pub threads: usize,
    /// What stays in the spool afterwards.
    pub keep: Keep,
    /// How often the segment that is being written is put into the archive as far as it is durable.
    pub partial_every: Option<Duration>,
}

/// What reader and writer go by.
struct Rules {
    synchronous: bool,
    status_interval: Duration,
    receive_timeout: Option<Duration>,
    end_position: Option<Lsn>,
    segment_size: SegmentSize,
    /// Raised by SIGINT and SIGTERM, and when a thread of the relay fails.
    stop: Stop,
    /// Raised when the reader has left a writer that waits for room.
    given_up: Stop,
}

/// How to reach the server, in a replication session and in an ordinary one.
pub trait Connect: Sync {
    /// A session for replication.
    fn replication(&self, stop: &Stop) -> Result<Conn>;
    /// A session for SQL with the server of `beside` and no other, which that may refuse us.
    fn ordinary(&self, beside: &Conn, stop: &Stop) -> Result<Conn>;
}

/// How a session of receiving ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// As asked for.
    Done,
    /// To be begun again, after this was said.
    Again(String),
}

/// The relay.
struct Relay<'a> {
    options: &'a Options<'a>,
    connect: &'a dyn Connect,
    progress: Progress,
    spool: OsDir,
    /// What is being written, and how far the archive reaches. A mutex: the receiver begins it, the uploader raises it,
    /// and a position must never be taken for one of another timeline.
    course: Mutex<Option<Course>>,
    /// What was archived while the next course is worked out: it may be known to neither spool nor archive when those
    /// are asked. `None` when there is no such work. A mutex for the same two, taken after that of `course`.
    meanwhile: Mutex<Option<Vec<Segment>>>,
    /// The archive while it answers. A store stays with the directory that it saw first, so after an outage it is opened
    /// anew. A mutex: receiver and uploaders use it.
    archive: Mutex<Option<Arc<Archive>>>,
    /// Ends what the uploaders ask of it.
    stop: Stop,
    /// The last session has ended for want of the archive's answer: the next waits for it.
    needs_archive: AtomicBool,
}

/// The timeline that is being received.
struct Course {
    timeline: TimelineId,
    segment_size: SegmentSize,
    archived: Archived,
}

/// Receives until it is told to stop, the end position is reached or nobody knows any more what is on the disk.
pub fn run(options: &Options<'_>, connect: &dyn Connect, stop: &Stop) -> Result<()> {
    refuse_unfit(&options.directory)?;
    let _lock = lock(&options.directory, stop)?;
    make_ready(&options.directory)?;
    let relay = Relay {
        options,
        connect,
        // Without slot and --synchronous the server must not mistake us for a standby that it may wait for.
        progress: Progress::new(
            options.acknowledge,
            options.slot.is_some() || options.synchronous,
        ),
        spool: OsDir::open(&options.directory, 0o600)?,
        course: Mutex::default(),
        meanwhile: Mutex::default(),
        archive: Mutex::default(),
        stop: stop.child(),
        needs_archive: AtomicBool::new(false),
    };
    let (sealed, hint) = crossbeam_channel::bounded(1);
    let relay_ref = &relay;
    let end = crew::run(stop, move |crew| {
        let relay = relay_ref;
        // Ends the helpers when the receiver has come to its end in good order.
        let over = crew.stop().child();
        let helpers = over.clone();
        crew.spawn("status", move || relay.tell(&helpers))?;
        if let Some(upload) = &options.upload {
            let (helpers, stop) = (over.clone(), crew.stop().clone());
            crew.spawn("uploader", move || {
                relay.upload(upload, &hint, &helpers, &stop)
            })?;
        }
        let end = relay.receive(&sealed, crew.stop());
        over.set();
        if end.is_err() {
            // What is under way is done again by the next life: an end in trouble does not wait for it.
            relay.stop.set();
        }
        // Wakes an uploader that waits for a segment.
        drop(sealed);
        end
    });
    relay.progress.set_state("stopped");
    let end = match end {
        // SIGINT and SIGTERM are how a receiver ends; everything that came is flushed and reported.
        Err(e) if stop.is_set() && spool_is_sound(&e) => {
            log::info!("stopped: {}", e.one_line());
            Ok(())
        }
        other => other,
    };
    if let Err(e) = &end {
        relay.progress.set_error(e.one_line());
    }
    relay.write_status();
    end
}

/// Whether an error tells of server, archive or the end, but not of files that could not be written. The next life meets
/// it again, if it has come to stay.
fn spool_is_sound(error: &Error) -> bool {
    use Kind::{Hole, Interrupted, Locked, Mismatch, Protocol, Refused, Transient, Unavailable};
    matches!(
        error.kind(),
        Interrupted | Transient | Unavailable | Locked | Protocol | Mismatch | Hole | Refused
    )
}

/// In the spool: held by the receiver that writes there.
const LOCK: &str = "seawall.lock";
/// How often it is tried, and the pause between two tries.
const LOCK_TRIES: u32 = 6;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// One seawall per directory. Who asks `is_running` has the lock for a moment, so it is tried more than once.
fn lock(directory: &Path, stop: &Stop) -> Result<Lock> {
    let path = directory.join(LOCK);
    taken_patiently(stop, || Lock::try_acquire(&path))
}

fn taken_patiently<T>(stop: &Stop, mut take: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..LOCK_TRIES {
        match take() {
            Err(e) if e.kind() == Kind::Locked => stop.wait(LOCK_PAUSE),
            other => return other,
        };
    }
    take()
}

/// Whether a receiver writes into this spool now.
pub fn is_running(directory: &Path) -> Result<bool> {
    Lock::is_held(&directory.join(LOCK))
}

/// A directory that is there and is no server's: its WAL would be taken for what was received, and removed once it is
/// archived.
fn refuse_unfit(directory: &Path) -> Result<()> {
    if disk::stat(directory)?.is_none() {
        return Err(Error::new(
            Kind::Missing,
            format!("the directory \"{}\" does not exist", directory.display()),
        )
        .hint("Make it, on a file system that survives this host's crash, for the user that runs wal-receive."));
    }
    let resolved = disk::canonical(directory)?;
    let is_pg_wal = disk::stat(&resolved.join("archive_status"))?.is_some();
    let around = tree::data_directory_around(&resolved);
    if around.is_none() && !is_pg_wal {
        return Ok(());
    }
    let whose = around.unwrap_or(&resolved);
    Err(Error::new(
        Kind::Refused,
        format!(
            "the directory \"{}\" belongs to a server",
            directory.display()
        ),
    )
    .detail(format!(
        "\"{}\" is a data directory, or the place of its WAL.",
        whose.display()
    ))
    .hint("Give a directory of its own: what is archived is removed from there."))
}

/// Removes what a killed one left half-written, nobody else writes here while we have the lock, and sees whether
/// anything can be written at all: without WAL on its way it would not show for hours.
fn make_ready(directory: &Path) -> Result<()> {
    match durable::remove_stale_temps(directory, Duration::ZERO)? {
        0 => {}
        count => log::info!("removed {count} temporary files of an earlier receiver"),
    }
    match disk::hidden_temp(directory) {
        // That may pass, and receiving waits for it.
        Err(e) if e.kind() == Kind::Full => Ok(()),
        other => other.map(|_| ()),
    }
}

impl Relay<'_> {
    /// Connects and receives, again and again.
    fn receive(&self, sealed: &crossbeam_channel::Sender<()>, stop: &Stop) -> Result<()> {
        let mut pause = RECONNECT_PAUSE_FIRST;
        loop {
            let before = self.progress.received.get();
            self.progress.set_state("connecting");
            let outcome = self.session(sealed, stop);
            self.progress.disconnect();
            let why = match outcome {
                Ok(Outcome::Done) => return Ok(()),
                Ok(Outcome::Again(why)) => why,
                Err(e) if may_pass(&e, self.progress.has_streamed()) && !self.options.no_loop => {
                    e.one_line()
                }
                Err(e) => return Err(e),
            };
            stop.check()?;
            if self.options.no_loop {
                return Err(
                    Error::new(Kind::Transient, why).detail("--no-loop says not to connect again.")
                );
            }
            if self.progress.received.get() > before {
                pause = RECONNECT_PAUSE_FIRST;
            }
            log::warn!("{why}; connecting again in {:.1} s", pause.as_secs_f64());
            self.progress.set_error(why);
            self.progress.set_state("waiting");
            stop.wait(pause);
            stop.check()?;
            pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        }
    }

    /// Keeps the status file true.
    fn tell(&self, over: &Stop) -> Result<()> {
        while !over.wait(Duration::from_secs(1)) {
            self.write_status();
        }
        Ok(())
    }

    /// Nobody's WAL depends on it: what goes wrong is said and passed over.
    fn write_status(&self) {
        let mut document = self.progress.document();
        document.slot = self.options.slot.clone();
        document.spool = self.spool_status();
        if self.options.upload.is_none() {
            document.archived = None;
        }
        if let Err(e) = document.write(&self.options.status_file) {
            log::debug!("could not write the status file: {}", e.one_line());
        }
    }

    fn spool_status(&self) -> status::Spool {
        let mut shown = status::Spool {
            directory: self.options.directory.display().to_string(),
            ..status::Spool::default()
        };
        let size = lock_of(&self.course)
            .as_ref()
            .map(|course| course.segment_size);
        let Some(Ok(usage)) = size.map(|size| owner::usage(&self.spool, size)) else {
            return shown;
        };
        shown.bytes = usage.bytes;
        shown.waiting = self.options.upload.as_ref().map(|_| usage.waiting);
        shown
    }

    /// The archive, opened if it is not.
    fn archive(&self, upload: &Upload<'_>) -> Result<Arc<Archive>> {
        let mut archive = lock_of(&self.archive);
        match archive.as_ref() {
            Some(open) => Ok(open.clone()),
            None => {
                let opened = (upload.open)(&self.stop)?;
                Ok(archive.insert(Arc::new(opened)).clone())
            }
        }
    }

    /// Until when the archive may be asked where to go on. What the server has must not wait for one that hangs, unless
    /// there is nothing to receive without its answer.
    fn asking(&self, stop: &Stop) -> Stop {
        match self.needs_archive.swap(false, Ordering::Relaxed) {
            true => stop.clone(),
            false => stop.within(ARCHIVE_ASK_MAX),
        }
    }

    /// What the archive answers until `asking`, or nothing while it is down: receiving does not depend on it.
    fn ask_archive<T>(
        &self,
        upload: &Upload<'_>,
        asking: &Stop,
        ask: impl FnOnce(&Archive) -> Result<T>,
    ) -> Result<Option<T>> {
        // Its own archive: what is cut off here disturbs no uploader.
        let answer = (upload.open)(asking).and_then(|archive| ask(&archive));
        let answer = answer.map_err(|e| match e.kind() {
            Kind::Interrupted if !self.stop.is_set() => Error::new(
                Kind::Transient,
                format!(
                    "the archive did not answer within {} s",
                    ARCHIVE_ASK_MAX.as_secs()
                ),
            ),
            _ => e,
        });
        match answer {
            Err(e) if matches!(e.kind(), Kind::Transient | Kind::Unavailable | Kind::Denied) => {
                log::warn!("receiving without the archive: {}", e.one_line());
                self.progress.set_error(e.one_line());
                self.archive_failed();
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// The next who needs it opens it anew.
    fn archive_failed(&self) {
        *lock_of(&self.archive) = None;
    }

    /// The spool's directory, for one more user.
    fn open_spool(&self) -> Result<OsDir> {
        OsDir::open(&self.options.directory, 0o600)
    }

    /// The next course will be worked out: what the archive gets from now on is remembered for it.
    fn expect_course(&self) {
        *lock_of(&self.meanwhile) = Some(Vec::new());
    }

    /// From now on positions are those of `course`, and begin at `start`.
    fn enter(&self, mut course: Course, start: Lsn) {
        let mut present = lock_of(&self.course);
        for segment in lock_of(&self.meanwhile).take().into_iter().flatten() {
            course.archived.acknowledged(segment);
        }
        self.progress.begin(start);
        self.progress.archived.restart(course.archived.lsn().0);
        self.progress.set_timeline(course.timeline);
        *present = Some(course);
    }

    /// How far the archive reaches on the present timeline.
    fn archived(&self) -> Option<Archived> {
        lock_of(&self.course)
            .as_ref()
            .map(|course| course.archived.clone())
    }

    /// The segment that is being written, where it begins, and up to where it is durable, if that is worth putting.
    fn growing(&self) -> Option<(Segment, Lsn, Lsn)> {
        let course = lock_of(&self.course);
        let course = course.as_ref()?;
        let durable = Lsn(self.progress.flushed.get());
        let segment = course.archived.growing(course.timeline, durable)?;
        let start = SegmentNo::holding(durable, course.segment_size).start(course.segment_size);
        Some((segment, start, durable))
    }

    /// The archive has one segment more.
    fn acknowledge_archived(&self, segment: Segment) {
        let mut course = lock_of(&self.course);
        if let Some(meanwhile) = lock_of(&self.meanwhile).as_mut() {
            meanwhile.push(segment);
        }
        if let Some(course) = course.as_mut() {
            course.archived.acknowledged(segment);
            self.progress.archived.raise(course.archived.lsn().0);
        }
        drop(course);
        self.report_archived();
    }

    /// The archive has the segment that is being written up to here, unless the timeline was left meanwhile.
    fn acknowledge_grown(&self, segment: Segment, durable: Lsn) {
        if let Some(course) = lock_of(&self.course).as_ref()
            && course.timeline == segment.timeline
        {
            self.progress.archived.raise(durable.0);
        }
        self.report_archived();
    }

    /// The server hears of it at once if it waits for the archive.
    fn report_archived(&self) {
        if self.progress.waits_for_archive()
            && let Err(e) = self.progress.report(false)
        {
            log::debug!("could not report to the server: {}", e.one_line());
        }
    }
}

/// What the locks guard is whole at every moment, so a panic elsewhere does not spoil it.
fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a new try may meet a better world. What a human must decide is none of that; a server that refuses us is, if
/// it did not do so before: else the operator who starts us has made a mistake, and waits to be told.
fn may_pass(error: &Error, has_streamed: bool) -> bool {
    match error.kind() {
        // A full disk while connecting is waited for, as one while receiving is.
        Kind::Transient | Kind::Locked | Kind::Full => true,
        Kind::Denied | Kind::Unavailable | Kind::Protocol => has_streamed,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_a_receiver_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::new();
        drop(lock(dir.path(), &stop).unwrap());
        assert!(!is_running(dir.path()).unwrap());
        let asking = std::fs::File::open(dir.path().join(LOCK)).unwrap();
        asking.try_lock_shared().unwrap();
        let refused = lock(dir.path(), &stop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Locked, "that is no moment");
        drop(asking);
        let _held = lock(dir.path(), &stop).unwrap();
        assert!(is_running(dir.path()).unwrap());
        // The last try counts, and only a lock that is held is tried again.
        for (free_at, kind, tries) in [(1, Kind::Locked, 1), (6, Kind::Locked, 6), (7, Kind::Io, 1)]
        {
            let mut tried = 0;
            let taken = taken_patiently(&stop, || {
                tried += 1;
                match tried >= free_at {
                    true => Ok(()),
                    false => Err(Error::new(kind, "x")),
                }
            });
            assert_eq!((taken.is_ok(), tried), (free_at <= 6, tries), "{free_at}");
        }
    }

    #[test]
    fn a_stop_excuses_all_but_a_spool_that_was_not_written() {
        for kind in [
            Kind::Interrupted,
            Kind::Mismatch,
            Kind::Hole,
            Kind::Transient,
        ] {
            assert!(spool_is_sound(&Error::new(kind, "x")), "{kind:?}");
        }
        for kind in [Kind::Io, Kind::Full, Kind::Denied, Kind::Missing, Kind::Bug] {
            assert!(!spool_is_sound(&Error::new(kind, "x")), "{kind:?}");
        }
    }

    #[test]
    fn what_is_tried_again() {
        let cases = [
            (Kind::Transient, true, true),
            (Kind::Locked, true, true),
            (Kind::Full, true, true),
            (Kind::Denied, false, true),
            (Kind::Unavailable, false, true),
            (Kind::Protocol, false, true),
            (Kind::Hole, false, false),
            (Kind::Mismatch, false, false),
            (Kind::Missing, false, false),
            (Kind::Io, false, false),
            (Kind::Bug, false, false),
        ];
        for (kind, first, later) in cases {
            let error = || Error::new(kind, "x");
            assert_eq!(may_pass(&error(), false), first, "{kind:?} at first");
            assert_eq!(may_pass(&error(), true), later, "{kind:?} later");
        }
    }
}
