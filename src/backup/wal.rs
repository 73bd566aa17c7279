//! P5: no backup without its WAL. The last step before a backup becomes complete waits until every segment from its
//! start to its end is archived.

use super::push::{Facts, Job};
use super::server;
use crate::archive::sentinel;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment};
use crate::wire::Conn;
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
}
