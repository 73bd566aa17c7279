//! P5: no backup without its WAL. The last step before a backup becomes complete waits until every segment from its
//! start to its end is archived, and then looks whether it is this server's: names do not tell.

use super::push::{Facts, Job};
use super::server;
use crate::archive::sentinel;
use crate::archive::wal::{Expect, Fetched, HolePolicy};
use crate::error::{Error, Kind, Result};
use crate::pg::wal_header::{self, SegmentHeader};
use crate::pg::wal_record::{Layout, RECORD_BYTES_MAX, Record};
use crate::pg::{Lsn, Segment, WalName};
use crate::wire::Conn;
use std::io::Write;
use std::time::{Duration, Instant};

/// First pause between two looks for the backup's WAL: an archiver that works is done in a moment.
const WAL_PAUSE_FIRST: Duration = Duration::from_millis(20);

/// Longest pause between two looks; each is a LIST.
const WAL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often the log says that the backup still waits.
const WAL_REPORT: Duration = Duration::from_secs(30);

impl Job<'_> {
    /// Waits until every segment from start to the last byte of the backup is archived (P5).
    pub(super) fn wait_for_wal(
        &self,
        facts: &Facts,
        stop: Lsn,
        mut conn: Option<&mut Conn>,
    ) -> Result<()> {
        let segments = sentinel::needed_segments(
            facts.timeline,
            facts.start,
            stop,
            facts.identity.segment_size,
        )?;
        let (began, mut pause, mut next_report) = (Instant::now(), WAL_PAUSE_FIRST, Duration::ZERO);
        loop {
            let missing = self.archive.missing_wal(&segments)?;
            let Some(first) = missing.first() else {
                return Ok(());
            };
            let waited = began.elapsed();
            if waited >= self.options.wal_timeout {
                return Err(self.wal_is_missing(first, missing.len(), conn.take()));
            }
            if waited >= next_report {
                log::info!(
                    "waiting for {} WAL segments to be archived, from {first}",
                    missing.len()
                );
                next_report = waited + WAL_REPORT;
            }
            self.stop.wait(pause.min(self.options.wal_timeout - waited));
            self.stop.check()?;
            pause = (pause * 2).min(WAL_PAUSE_MAX);
        }
    }

    fn wal_is_missing(&self, first: &Segment, count: usize, conn: Option<&mut Conn>) -> Error {
        let told = conn.and_then(|conn| server::last_archiver_failure(conn).ok().flatten());
        let detail = told.map(|text| format!(" {text}")).unwrap_or_default();
        Error::new(
            Kind::Unavailable,
            format!(
                "WAL segment {first} was not archived within {} s",
                self.options.wal_timeout.as_secs()
            ),
        )
        .detail(format!(
            "{count} of the segments that the backup needs are not in {}.{detail}",
            self.archive.store.location()
        ))
        .hint(
            "Check archive_mode, archive_command and the server's log; the backup was removed. \
                 --wal-timeout waits longer.",
        )
    }

    /// Refuses WAL of another server. A clone shares system identifier, timeline and names with its original, and
    /// where both archive, or only one, the archive may hold the other's segments. Two records are this backup's alone:
    /// the checkpoint that it began with and, at the stop position, the one that ends it.
    pub(super) fn refuse_foreign_wal(
        &self,
        facts: &Facts,
        checkpoint: Lsn,
        stop: Lsn,
    ) -> Result<()> {
        if facts.version.release().is_none() {
            return Ok(()); // nobody knows yet how its records look
        }
        let (layout, begin) = self.archived_record(facts, checkpoint)?;
        if begin.and_then(|record| record.checkpoint()) != Some((facts.start, facts.timeline)) {
            return Err(foreign(
                facts,
                checkpoint,
                "the checkpoint that the backup began with",
            ));
        }
        let end = match layout.backup_end(stop) {
            Some(at) => self.archived_record(facts, at)?.1,
            None => None,
        };
        if end.and_then(|record| record.backup_end()) != Some(facts.start) {
            return Err(foreign(facts, stop, "the end of the backup"));
        }
        Ok(())
    }

    /// The record at `at`, if the archive has one there.
    fn archived_record(&self, facts: &Facts, at: Lsn) -> Result<(Layout, Option<Record>)> {
        let mut wal = Vec::new();
        loop {
            let (layout, more) = self.archived_wal(facts, Lsn(at.0 + wal.len() as u64))?;
            wal.extend(more);
            match Record::parse(at, &wal, layout) {
                Ok(None) => {} // it goes on in the next segment
                Ok(record) => return Ok((layout, record)),
                Err(e) if e.kind() == Kind::Corrupt => return Ok((layout, None)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Raw WAL from `from` on: as much as a record may have, or to the end of the segment.
    fn archived_wal(&self, facts: &Facts, from: Lsn) -> Result<(Layout, Vec<u8>)> {
        let size = facts.identity.segment_size;
        let segment = Segment::holding(facts.timeline, from, size);
        let expect = Expect {
            system_id: Some(facts.identity.system_id),
            segment_size: Some(size),
        };
        let mut window = Window::new((from.0 % size.bytes()) as usize);
        let name = WalName::Segment(segment);
        match self
            .archive
            .get_wal(name, &mut window, expect, HolePolicy::Abort)?
        {
            Fetched::Delivered(_) => {}
            Fetched::Absent(reason) => return Err(Error::new(Kind::Unavailable, reason)),
        }
        let layout = Layout {
            page_bytes: u64::from(SegmentHeader::parse(&window.head)?.page_bytes),
            segment_size: size,
        };
        Ok((layout, window.bytes))
    }
}

fn foreign(facts: &Facts, at: Lsn, what: &str) -> Error {
    let segment = Segment::holding(facts.timeline, Lsn(at.0 - 1), facts.identity.segment_size);
    Error::new(
        Kind::Mismatch,
        "the archive holds the WAL of another server under the names of this one's",
    )
    .detail(format!("Segment {segment} does not have {what} at {at}."))
    .hint(
        "A clone of this server, or the server that this is a clone of, archives here: give each a prefix of its own. \
         The backup was removed.",
    )
}

/// Keeps of a segment that passes by its header and what is asked for.
struct Window {
    from: usize,
    passed: usize,
    head: Vec<u8>,
    bytes: Vec<u8>,
}

impl Window {
    /// Two pages' headers may stand within a record.
    const BYTES: usize = RECORD_BYTES_MAX + 2 * wal_header::HEADER_BYTES;

    fn new(from: usize) -> Window {
        Window {
            from,
            passed: 0,
            head: Vec::new(),
            bytes: Vec::new(),
        }
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = wal_header::HEADER_BYTES - self.head.len();
        self.head.extend(bytes.iter().take(room));
        let skipped = self.from.saturating_sub(self.passed).min(bytes.len());
        let room = Window::BYTES - self.bytes.len();
        self.bytes.extend(bytes[skipped..].iter().take(room));
        self.passed += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Unwatched;
    use super::super::push::Options;
    use super::*;
    use crate::archive::identity::Identity;
    use crate::archive::sentinel::Mode;
    use crate::archive::state::State;
    use crate::archive::{Archive, keys};
    use crate::codec::{Compression, Encoder, Method};
    use crate::pg::version::ServerVersion;
    use crate::pg::{SegmentSize, SystemId, TimelineId, Timestamp};
    use crate::store::mem::MemStore;
    use crate::store::{Store, When};
    use crate::work::stop::Stop;

    /// Checkpoint and end of a backup from 0/700028 to 0/700100, by PostgreSQL 15.
    const RECORDS: &[u8] = include_bytes!("../../tests/fixtures/wal_records/15");
    const CHECKPOINT_AT: usize = 0x60;
    const END_AT: usize = 0xD8;

    /// Segment 7 of 1 MiB with these records.
    fn segment(checkpoint: &[u8], end: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; 1 << 20];
        segment[..4].copy_from_slice(&[0x10, 0xD1, 0x06, 0x00]);
        segment[4] = 1;
        segment[8..16].copy_from_slice(&0x70_0000u64.to_le_bytes());
        segment[24..32].copy_from_slice(&7u64.to_le_bytes());
        segment[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        segment[36..40].copy_from_slice(&8192u32.to_le_bytes());
        segment[CHECKPOINT_AT..CHECKPOINT_AT + checkpoint.len()].copy_from_slice(checkpoint);
        segment[END_AT..END_AT + end.len()].copy_from_slice(end);
        segment
    }

    /// Asks an archive that holds this segment for the WAL of a backup that began at `start`.
    fn ask(segment: &[u8], start: Lsn) -> Result<()> {
        let store = MemStore::new();
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(segment).unwrap();
        let key = keys::wal("000000010000000000000007", Some(Method::Zstd));
        let object = encoder.finish().unwrap();
        store.put(&key, &object, When::Absent).unwrap();
        let archive = Archive {
            store: Box::new(store),
            compression,
            state: State::none(),
        };
        let options = Options {
            label: String::new(),
            threads: 1,
            verify_checksums: false,
            rate_limit: None,
            wal_timeout: Duration::ZERO,
        };
        let job = Job {
            archive: &archive,
            options: &options,
            progress: &Unwatched,
            stop: &Stop::new(),
        };
        let facts = Facts {
            id: "base_000000010000000000000007_00000040".parse().unwrap(),
            mode: Mode::Local,
            version: ServerVersion(150_000),
            identity: Identity {
                system_id: SystemId(7),
                major: 15,
                segment_size: SegmentSize::new(1 << 20).unwrap(),
            },
            timeline: TimelineId(1),
            start,
            start_time: Timestamp(0),
        };
        job.refuse_foreign_wal(&facts, Lsn(0x70_0060), Lsn(0x70_0100))
    }

    #[test]
    fn the_archived_wal_must_hold_the_backups_own_checkpoint_and_end() {
        let (checkpoint, end) = RECORDS.split_at(120);
        let start = Lsn(0x70_0028);
        ask(&segment(checkpoint, end), start).unwrap();
        for (bytes, start) in [
            (segment(&[], end), start),
            (segment(checkpoint, &[]), start),
            (segment(end, end), start),
            (segment(checkpoint, &checkpoint[..40]), start),
            (segment(checkpoint, end), Lsn(0x70_0030)),
        ] {
            assert_eq!(ask(&bytes, start).unwrap_err().kind(), Kind::Mismatch);
        }
    }

    #[test]
    fn a_window_keeps_the_header_and_what_is_asked_for_whatever_the_cuts() {
        let segment: Vec<u8> = (0..1 << 16).map(|n: u32| (n % 251) as u8).collect();
        for from in [0, 30, 5000, (1 << 16) - 10] {
            for cut in [1, 7, 4096, 1 << 16] {
                let mut window = Window::new(from);
                for piece in segment.chunks(cut) {
                    window.write_all(piece).unwrap();
                }
                let to = segment.len().min(from + Window::BYTES);
                assert!(window.head == segment[..40], "{from} {cut}");
                assert!(window.bytes == segment[from..to], "{from} {cut}");
            }
        }
    }
}
