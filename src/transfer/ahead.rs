//! Look-ahead of `wal-push`: the segments that wait behind the one PostgreSQL asks for are compressed beside it and
//! archived after it, so that a backlog costs one start, one connection and no idle processor per segment.
//!
//! * A1 The file that was asked for alone decides what the call answers, and nobody else holds it up.
//! * A2 Nothing is sent before the segment before it is archived: look-ahead never leaves a hole, so whoever finds one
//!   may go on believing that it is none of ours.
//! * A3 `archive_status` is PostgreSQL's: it is read and never written. What was archived ahead is in the `Ledger`.
//! * A4 What fails, or ends early, costs a second push later.

use super::ledger::{Ledger, Seen};
use crate::archive::Archive;
use crate::archive::wal::{Expect, Put};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::AHEAD_TIME_MAX;
use crate::pg::{Segment, SegmentSize, SystemId, WalName};
use crate::work::stop::Stop;
use crate::work::{crew, pool};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::path::PathBuf;

/// What waits, and how much of it is taken along.
pub struct Ahead<'a> {
    /// Where it goes.
    pub archive: &'a Archive,
    /// Where it is noted.
    pub ledger: &'a Ledger,
    /// `pg_wal`.
    pub directory: PathBuf,
    /// Whose WAL it is.
    pub system_id: SystemId,
    /// Of which size its segments are.
    pub segment_size: SegmentSize,
    /// How many segments at most.
    pub count: usize,
    /// How many of them side by side.
    pub threads: usize,
    /// Ends the store of `archive` for whatever is under way.
    pub end: Stop,
}

/// One segment in the row.
struct Job {
    segment: Segment,
    /// Says that the one before it is archived; fallen without a word, it is not.
    before: Receiver<()>,
    /// Says it of this one.
    after: Sender<()>,
}

impl Ahead<'_> {
    /// Does `own`, which archives `segment`, and takes along what waits behind it. Once `own` is done the rest has
    /// `AHEAD_TIME_MAX` to come to its end, and `stop` ends it at once.
    pub fn along_with(
        &self,
        segment: Segment,
        own: impl FnOnce() -> Result<Put>,
        stop: &Stop,
    ) -> Result<Put> {
        // What is wrong here is wrong with the file that was asked for, or no concern of this call.
        let waiting = self.waiting(segment).unwrap_or_default();
        if waiting.is_empty() {
            return own();
        }
        crew::run(stop, |crew| {
            let (archived, first) = bounded(1);
            let over = stop.child();
            let (stop, ended) = (crew.stop().clone(), over.clone());
            crew.spawn("ahead", move || {
                // Not an error of this call: PostgreSQL will ask for it.
                if let Err(e) = self.follow(waiting, first, &stop)
                    && !stop.is_set()
                {
                    log::info!("looking ahead has ended: {}", e.one_line());
                }
                ended.set();
                Ok(())
            })?;
            let put = own()?;
            let _ = archived.send(());
            over.wait(AHEAD_TIME_MAX);
            self.end.set();
            Ok(put)
        })
    }

    /// The segments behind `own` that PostgreSQL says are finished, up to the first that is not, but for those that were
    /// archived ahead before.
    fn waiting(&self, own: Segment) -> Result<Vec<Segment>> {
        let notes = self.directory.join("archive_status");
        let (mut waiting, mut segment) = (Vec::new(), own);
        for _ in 0..self.count {
            segment = segment.next(self.segment_size)?;
            if disk::stat(&notes.join(format!("{segment}.ready")))?.is_none() {
                break;
            }
            if !self.ledger.mentions(segment) {
                waiting.push(segment);
            }
        }
        Ok(waiting)
    }

    fn follow(&self, waiting: Vec<Segment>, first: Receiver<()>, stop: &Stop) -> Result<()> {
        pool::run(
            "ahead",
            self.threads,
            stop,
            |submit| {
                let mut before = first;
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
            |_, job| self.push(job),
        )
    }

    fn push(&self, job: Job) -> Result<()> {
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
        let name = WalName::Segment(segment);
        let put = self.archive.put_wal(name, &path, expect, in_turn)?;
        self.ledger.note(segment, self.system_id, seen);
        log::info!(
            "archived {segment} ahead{}",
            match put {
                Put::Stored(bytes) => format!(" ({bytes} bytes)"),
                Put::AlreadyThere => ": it was there already".to_string(),
            }
        );
        // Nobody may be behind it.
        let _ = after.send(());
        Ok(())
    }
}
