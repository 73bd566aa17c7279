//! Look-ahead of `wal-push`: once the segment that PostgreSQL asks for is archived, those that wait behind it are archived
//! in the same call, so that a backlog costs one start and one connection for many of them.
//!
//! * A1 The file that was asked for alone decides what the call answers: nothing else begins before it is archived.
//! * A2 Nothing is sent before the segment before it is archived: look-ahead never leaves a hole, so whoever finds one
//!   may go on believing that it is none of ours.
//! * A3 `archive_status` is PostgreSQL's: it is read and never written. What was archived ahead is in the `Ledger`, and
//!   where that cannot be written nothing is archived ahead.
//! * A4 What fails, or ends early, costs a second push later.

use super::ledger::{Ledger, Seen};
use crate::archive::Archive;
use crate::archive::wal::{Expect, Put};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::AHEAD_JOBS_MAX;
use crate::pg::{Segment, SegmentSize, SystemId, WalName};
use crate::work::pool;
use crate::work::stop::Stop;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::path::PathBuf;

/// What waits, and how much of it is taken along.
pub struct Ahead {
    /// Where it is noted.
    pub ledger: Ledger,
    /// `pg_wal`.
    pub directory: PathBuf,
    /// Whose WAL it is.
    pub system_id: SystemId,
    /// Of which size its segments are.
    pub segment_size: SegmentSize,
    /// How many segments at most.
    pub count: usize,
}

/// One segment in the row.
struct Job {
    segment: Segment,
    /// Says that the one before it is archived; fallen without a word, it is not.
    before: Receiver<()>,
    /// Says it of this one.
    after: Sender<()>,
}

impl Ahead {
    /// The segments behind `own` that PostgreSQL says are finished, up to the first that is not, but for those that were
    /// archived ahead before; none where nothing can be noted.
    pub fn waiting(&self, own: Segment) -> Result<Vec<Segment>> {
        let notes = self.directory.join("archive_status");
        let (mut waiting, mut segment) = (Vec::new(), own);
        for _ in 0..self.count {
            segment = segment.next(self.segment_size)?;
            if disk::stat(&notes.join(format!("{segment}.ready")))?.is_none() {
                break;
            }
            let path = self.directory.join(segment.to_string());
            // An entry for another file says that somebody else archives here: the archive must be asked.
            if !self.ledger.vouches_for(segment, &path, self.system_id)? {
                waiting.push(segment);
            }
        }
        if !waiting.is_empty() {
            self.ledger.prepare()?;
        }
        Ok(waiting)
    }

    /// Archives them in order, a few side by side up to the moment when they are sent.
    pub fn push(&self, archive: &Archive, waiting: Vec<Segment>, stop: &Stop) -> Result<()> {
        pool::run(
            "ahead",
            waiting.len().min(AHEAD_JOBS_MAX),
            stop,
            |submit| {
                let (archived, mut before) = bounded(1);
                // The one that was asked for.
                let _ = archived.send(());
                for segment in waiting {
                    let (after, next) = bounded(1);
                    submit(Job {
                        segment,
                        before: std::mem::replace(&mut before, next),
                        after,
                    })?;
                }
                Ok(())
            },
            |_, job| self.one(archive, job),
        )
    }

    fn one(&self, archive: &Archive, job: Job) -> Result<()> {
        let Job {
            segment,
            before,
            after,
        } = job;
        let path = self.directory.join(segment.to_string());
        let expect = Expect {
            system_id: Some(self.system_id),
            segment_size: Some(self.segment_size),
        };
        let seen = Seen::of(&path)?;
        let in_turn = || {
            before.recv().map_err(|_| {
                Error::new(Kind::Interrupted, "the segment before it was not archived")
            })
        };
        let put = archive.put_wal(WalName::Segment(segment), &path, expect, in_turn)?;
        self.ledger.note(segment, self.system_id, seen)?;
        match put {
            Put::Stored(bytes) => log::info!("archived {segment} ahead ({bytes} bytes)"),
            Put::AlreadyThere => log::info!("{segment} is archived already, with the same bytes"),
        }
        // Nobody may be behind it.
        let _ = after.send(());
        Ok(())
    }
}
