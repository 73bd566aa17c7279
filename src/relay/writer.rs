//! Thread wal-writer: from batches into segment files. It takes what has gathered, writes it, syncs once, and tells
//! the server at once: commits that wait together pay for one sync.

use super::progress::Progress;
use super::reader::Batch;
use super::{Item, Rules};
use crate::disk::Fs;
use crate::error::{Kind, Result};
use crate::limits::RECEIVE_SYNC_BYTES;
use crate::pg::{Lsn, Segment, SegmentNo};
use crate::spool::writer::SegmentWriter;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// How long the writer waits for room before it looks again.
const ROOM_PAUSE: Duration = Duration::from_millis(500);

/// One writer.
pub struct Writer<'a, F: Fs> {
    /// Where the WAL goes.
    pub segments: &'a mut SegmentWriter<F>,
    /// From the reader.
    pub items: Receiver<Item>,
    /// Emptied buffers go back.
    pub empty: Sender<Vec<u8>>,
    /// Says that a segment is whole.
    pub sealed: Sender<()>,
    /// How far all are.
    pub progress: &'a Progress,
    /// What was asked for.
    pub rules: &'a Rules,
    /// Whether the spool may hold this segment, of which nothing was written in this life.
    pub room: &'a (dyn Fn(Segment) -> bool + Sync),
}

impl<F: Fs> Writer<'_, F> {
    /// Writes until the reader has ended and all that it left is durable. An error means that nobody knows what is on
    /// the disk: the process must end.
    pub fn run(mut self) -> Result<()> {
        let items = self.items.clone();
        'receiving: loop {
            let patience = self
                .rules
                .status_interval
                .saturating_sub(self.progress.since_report());
            let first = match items.recv_timeout(patience.max(Duration::from_millis(1))) {
                Ok(item) => Some(item),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let before = self.segments.write_lsn();
            let (mut reply, mut asked) = (first.is_none(), false);
            let mut next = first;
            while let Some(item) = next.take() {
                match item {
                    Item::Reply => (reply, asked) = (true, true),
                    Item::Wal(batch) => {
                        if !self.write(batch)? {
                            break 'receiving;
                        }
                    }
                }
                let written = self.segments.write_lsn().0.saturating_sub(before.0);
                if written < RECEIVE_SYNC_BYTES {
                    next = items.try_recv().ok();
                }
            }
            if self.rules.synchronous || reply {
                self.flush()?;
                self.report();
            }
            // Once: while it shuts down the server asks again after each answer.
            if asked && self.progress.want_archived() {
                // Full: it will look anyway.
                let _ = self.sealed.try_send(());
            }
        }
        self.flush()?;
        self.report();
        Ok(())
    }

    /// Writes a batch as soon as there is room for it; `false` when it was given up, for want of room when the reader has
    /// gone, or because it is time to stop and its file is not made yet. What was not written was not acknowledged
    /// either, and is asked for again.
    fn write(&mut self, batch: Batch) -> Result<bool> {
        let flushed = self.segments.flush_lsn();
        let mut told = false;
        self.segments
            .server_reaches(Lsn(self.progress.server.get()));
        loop {
            let begun = self.begun_by(&batch);
            let written = match begun.is_some_and(|segment| !(self.room)(segment)) {
                true => Err("the spool is as large as it may become".to_string()),
                false => match self.segments.append(batch.lsn, &batch.bytes) {
                    Err(e) if e.kind() == Kind::Full => Err(e.one_line()),
                    Err(e) if e.kind() == Kind::Interrupted => return Ok(false),
                    other => Ok(other?),
                },
            };
            match written {
                Ok(()) => break,
                Err(why) => self.tell(&mut told, &why),
            }
            // Nobody will send more: leave what cannot be written to the server, which has it.
            if self.rules.given_up.wait(ROOM_PAUSE) || self.rules.stop.is_set() {
                return Ok(false);
            }
        }
        self.progress.written.raise(self.segments.write_lsn().0);
        if self.segments.flush_lsn() > flushed {
            self.finished_segment();
        }
        if told {
            log::info!("receiving goes on");
            self.progress.set_state("streaming");
        }
        let mut buffer = batch.bytes;
        buffer.clear();
        // Full: the reader has buffers enough.
        let _ = self.empty.try_send(buffer);
        Ok(true)
    }

    /// The last segment that a batch begins.
    fn begun_by(&self, batch: &Batch) -> Option<Segment> {
        let size = self.rules.segment_size;
        let (at, end) = (self.segments.write_lsn(), batch.end());
        let last = SegmentNo::holding(Lsn(end.0.saturating_sub(1)), size);
        (last.start(size) >= at).then(|| Segment::new(self.segments.timeline(), last, size))
    }

    fn tell(&self, told: &mut bool, why: &str) {
        if !std::mem::replace(told, true) {
            log::warn!("receiving pauses: {why}");
            self.progress.set_state("paused");
            self.progress.set_error(why.to_string());
        }
    }

    /// A full segment is durable: the server may forget it, and the uploader may take it.
    fn finished_segment(&mut self) {
        self.progress.flushed.raise(self.segments.flush_lsn().0);
        // Full: it knows already that there is something to do.
        let _ = self.sealed.try_send(());
        self.report();
    }

    fn flush(&mut self) -> Result<()> {
        let flushed = self.segments.flush()?;
        self.progress.written.raise(self.segments.write_lsn().0);
        self.progress.flushed.raise(flushed.0);
        Ok(())
    }

    /// A report that does not get through is the reader's to notice: it is the one who listens.
    fn report(&self) {
        if let Err(e) = self.progress.report(false) {
            log::debug!("could not report to the server: {}", e.one_line());
        }
    }
}
