//! Threads uploader and upload-n: whole segments from the spool into the archive. The directory is the queue, so a
//! restart and the steady state go one way; a hint only says when to look. Nothing here ever holds up the receiver, and
//! an archive that is down is tried again for ever: the spool keeps what waits, and the slot what does not fit.
//!
//! It needs no server: whose WAL it is, each segment says itself, so what a dead server left is archived all the same.

use super::{Relay, Upload};
use crate::archive::Archive;
use crate::archive::growing::Grown;
use crate::archive::identity::Identity;
use crate::archive::wal::{Expect, Put};
use crate::disk;
use crate::disk::os::OsDir;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment, TimelineId, WalName};
use crate::spool::queue::{Queue, Waiting};
use crate::spool::{self, owner, partial_name};
use crate::work::crew;
use crate::work::stop::Stop;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the uploader sleeps when nobody hints: what an earlier life left is found at once, and what comes is hinted.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// First pause after a failed upload; it doubles up to `FAILURE_PAUSE_MAX`.
const FAILURE_PAUSE_FIRST: Duration = Duration::from_secs(1);

/// Longest pause after a failed upload.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a file that the archive will not take is left alone, while others go on.
const STUCK_PAUSE: Duration = Duration::from_secs(60);

/// A segment that is to be sent, and what it must say of itself.
type Job = (Segment, Expect);

/// A segment on its way, and what became of it.
type Sent = (Segment, Result<Put>);

/// What the uploader remembers between its rounds.
struct Uploader<'a> {
    relay: &'a Relay<'a>,
    upload: &'a Upload<'a>,
    jobs: Sender<Job>,
    results: Receiver<Sent>,
    /// The cluster that the archive was claimed for.
    cluster: Option<Identity>,
    /// What the archive will not take, and when it said so.
    stuck: BTreeMap<Waiting, Instant>,
    /// The growing segment that was put last, and up to where.
    grown: Option<(Segment, Lsn)>,
    /// When what grows was looked at last, if the next look is to be `partial_every` later. Counted from the end of the
    /// put instead, what came while it was under way would wait for the whole time and for a second put.
    looked: Option<Instant>,
    pause: Duration,
}

impl Relay<'_> {
    /// Uploads until `over`; when that is not because of `stop`, to the end of what is there.
    pub(super) fn upload(
        &self,
        upload: &Upload<'_>,
        hint: &Receiver<()>,
        over: &Stop,
        stop: &Stop,
    ) -> Result<()> {
        let (jobs, queue) = bounded::<Job>(upload.threads);
        let (done, results) = bounded::<Sent>(upload.threads);
        crew::run(stop, |crew| {
            for n in 0..upload.threads {
                let (queue, done) = (queue.clone(), done.clone());
                crew.spawn(format!("upload-{n}"), move || {
                    for (segment, expect) in queue {
                        let sent = self.put(upload, segment, expect);
                        if done.send((segment, sent)).is_err() {
                            break;
                        }
                    }
                    Ok(())
                })?;
            }
            drop((queue, done));
            // Dropped at the end with its ends of the channels, and the workers end.
            Uploader {
                relay: self,
                upload,
                jobs,
                results,
                cluster: None,
                stuck: BTreeMap::new(),
                grown: None,
                looked: None,
                pause: FAILURE_PAUSE_FIRST,
            }
            .run(hint, over, stop);
            Ok(())
        })
    }

    fn put(&self, upload: &Upload<'_>, segment: Segment, expect: Expect) -> Result<Put> {
        let path = self.options.directory.join(segment.to_string());
        self.archive(upload)?
            .put_wal(WalName::Segment(segment), &path, expect, || Ok(()))
    }
}

impl Uploader<'_> {
    fn run(&mut self, hint: &Receiver<()>, over: &Stop, stop: &Stop) {
        loop {
            let last = over.is_set();
            match self.round(stop) {
                Ok(()) => self.pause = FAILURE_PAUSE_FIRST,
                // What was cut off is in the spool, for the next life.
                Err(_) if stop.is_set() => return,
                Err(e) => self.failed(&e),
            }
            if last || stop.is_set() {
                return;
            }
            // The end of the receiver drops the other end of the hint, and wakes us.
            if let Err(RecvTimeoutError::Disconnected) = hint.recv_timeout(self.patience()) {
                over.wait(Duration::from_secs(1));
            }
        }
    }

    /// Sends everything that waits, side by side, history files first; then the growing segment.
    fn round(&mut self, stop: &Stop) -> Result<()> {
        let Some(header) = owner::any_header(&self.relay.spool)? else {
            self.looked = None;
            return Ok(());
        };
        self.claim(Identity {
            system_id: header.system_id,
            major: header.major.unwrap_or(0),
            segment_size: header.segment_size,
        })?;
        // A file of another cluster that somebody put here is not sent under this one's name.
        let expect = Expect {
            system_id: Some(header.system_id),
            segment_size: Some(header.segment_size),
        };
        let mut queue = Queue::new(self.relay.open_spool()?, header.segment_size);
        self.stuck.retain(|_, since| since.elapsed() < STUCK_PAUSE);
        let waiting = queue.waiting()?;
        let (mut under_way, mut sent) = (0, Ok(()));
        for item in waiting {
            if stop.is_set() || sent.is_err() {
                break;
            }
            match item {
                _ if self.stuck.contains_key(&item) => {}
                Waiting::History(timeline) => sent = self.send_history(timeline, &mut queue),
                // Recovery must not meet segments of a timeline whose history is not there.
                Waiting::Segment(segment) if self.is_held_up(segment.timeline) => {}
                Waiting::Segment(segment) => {
                    if under_way == self.upload.threads {
                        under_way -= 1;
                        sent = self.take_one(&mut queue);
                    }
                    self.jobs
                        .send((segment, expect))
                        .map_err(|_| workers_gone())?;
                    under_way += 1;
                }
            }
        }
        // However that ended: a result that nobody takes would be taken for one of the next round, and block its worker.
        for _ in 0..under_way {
            sent = sent.and(self.take_one(&mut queue));
        }
        queue.trim(self.upload.keep)?;
        sent?;
        self.grow(expect)
    }

    /// Whether the archive will not take the history of this timeline.
    fn is_held_up(&self, timeline: TimelineId) -> bool {
        self.stuck.contains_key(&Waiting::History(timeline))
    }

    fn send_history(&mut self, timeline: TimelineId, queue: &mut Queue<OsDir>) -> Result<()> {
        let item = Waiting::History(timeline);
        let put = spool::read_history(&self.relay.spool, timeline)
            .and_then(|text| self.archive()?.put_history(timeline, &text));
        match put {
            Ok(_) => queue.mark_done(item),
            Err(e) => self.not_taken(item, e),
        }
    }

    /// One upload has ended, well or not. An error would meet the next one too.
    fn take_one(&mut self, queue: &mut Queue<OsDir>) -> Result<()> {
        let (segment, sent) = self.results.recv().map_err(|_| workers_gone())?;
        let item = Waiting::Segment(segment);
        let put = match sent {
            Ok(put) => put,
            Err(e) => return self.not_taken(item, e),
        };
        queue.mark_done(item)?;
        match put {
            Put::Stored(bytes) => log::info!("archived {segment} ({bytes} bytes)"),
            Put::AlreadyThere => log::info!("{segment} is archived already, with the same bytes"),
        }
        self.relay.acknowledge_archived(segment);
        if self.upload.partial_every.is_some() {
            if self.grown.take_if(|(grown, _)| *grown == segment).is_some() {
                self.looked = None;
            }
            self.remove_growing(segment);
        }
        Ok(())
    }

    /// What concerns this one alone is said, and it is left for a while; else it is an outage.
    fn not_taken(&mut self, item: Waiting, error: Error) -> Result<()> {
        if !matches!(error.kind(), Kind::Mismatch | Kind::Corrupt | Kind::Refused) {
            return Err(error);
        }
        self.stuck.insert(item, Instant::now());
        self.failed(&error);
        Ok(())
    }

    /// Makes sure, once, that the archive is this cluster's.
    fn claim(&mut self, cluster: Identity) -> Result<()> {
        if self.cluster.as_ref() != Some(&cluster) {
            self.archive()?.claim(&cluster, crate::work::now())?;
            self.cluster = Some(cluster);
        }
        Ok(())
    }

    /// Puts what is durable of the segment being written, if that is wanted, due and more than before.
    fn grow(&mut self, expect: Expect) -> Result<()> {
        let Some(every) = self.upload.partial_every else {
            return Ok(());
        };
        let owed = self.relay.progress.owed_by_archive().is_some();
        if !owed && self.looked.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let Some((segment, start, durable)) = self.relay.growing() else {
            return Ok(());
        };
        if self.grown == Some((segment, durable)) {
            return Ok(());
        }
        let path = self.relay.options.directory.join(partial_name(segment));
        let file = match disk::open(&path) {
            // It has become whole meanwhile.
            Err(e) if e.kind() == Kind::Missing => return Ok(()),
            other => other?,
        };
        let bytes = durable.0 - start.0;
        let archive = self.archive()?;
        if archive.put_growing(segment, &file, bytes, expect)? != Grown::Complete {
            self.grown = Some((segment, durable));
            self.relay.acknowledge_grown(segment, durable);
        }
        Ok(())
    }

    /// A whole segment is archived: what grew of it has served, in an earlier life and on timelines before it too.
    fn remove_growing(&self, whole: Segment) {
        let remove = || -> Result<()> {
            let archive = self.archive()?;
            if let (Some(archived), Some(cluster)) = (self.relay.archived(), &self.cluster) {
                for segment in archived.held_by(whole)? {
                    archive.remove_growing(segment, cluster.segment_size)?;
                }
            }
            Ok(())
        };
        // It does no harm, and the next segment's archiving is worth more.
        if let Err(e) = remove() {
            log::debug!("{}", e.one_line());
        }
    }

    fn archive(&self) -> Result<Arc<Archive>> {
        self.relay.archive(self.upload)
    }

    /// How long to sleep when nobody hints.
    fn patience(&self) -> Duration {
        if self.pause > FAILURE_PAUSE_FIRST {
            return self.pause;
        }
        let since = self.looked.map_or(Duration::ZERO, |at| at.elapsed());
        let grows = self.upload.partial_every.unwrap_or(LOOK_AGAIN);
        LOOK_AGAIN.min(grows.saturating_sub(since))
    }

    /// Said once per failure; receiving goes on.
    fn failed(&mut self, error: &Error) {
        log::warn!("uploading will be tried again: {}", error.one_line());
        if error.kind() == Kind::Unavailable {
            self.relay.archive_failed();
            self.cluster = None;
        }
        self.relay.progress.set_error(error.one_line());
        self.looked = None;
        self.pause = (self.pause * 2).min(FAILURE_PAUSE_MAX);
    }
}

/// Their own error is the one that counts.
fn workers_gone() -> Error {
    Error::new(Kind::Interrupted, "interrupted: the uploaders have ended")
}
