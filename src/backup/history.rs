//! The history file of the backup's timeline. PostgreSQL archives it once, when the timeline begins; an archive that
//! was begun later lacks it, and a hole is all that `wal-fetch` may say of a history that is missing before WAL of
//! its timeline. So a backup brings it along.

use super::push::{Facts, Job};
use crate::archive::wal::Put;
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::TimelineId;
use crate::wire::Conn;
use std::path::Path;

/// The first timeline has no history.
fn has_history(timeline: TimelineId) -> bool {
    timeline > TimelineId(1)
}

/// The history file in a data directory.
pub fn in_directory(data: &Path, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
    if !has_history(timeline) {
        return Ok(None);
    }
    match disk::read_small(&data.join("pg_wal").join(timeline.history_name())) {
        Err(e) if e.kind() == Kind::Missing => Ok(None),
        other => other.map(Some),
    }
}

/// The history file of a server, by a replication session.
pub fn of_server(conn: &mut Conn, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
    if !has_history(timeline) {
        return Ok(None);
    }
    match conn.timeline_history(timeline) {
        Ok(text) => Ok(Some(text.into_bytes())),
        // It may have been removed by hand; whether that matters is seen in the archive.
        Err(e) if e.kind() == Kind::Protocol => {
            log::debug!("the server has no history: {}", e.one_line());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Job<'_> {
    /// Archives the history of the backup's timeline, unless it is there.
    pub(super) fn archive_history(&self, facts: &Facts, found: Option<Vec<u8>>) -> Result<()> {
        if !has_history(facts.timeline) {
            return Ok(());
        }
        let name = facts.timeline.history_name();
        let Some(text) = found else {
            if self.archive.history(facts.timeline)?.is_none() {
                log::warn!(
                    "{name} is neither in the archive nor at the server: recovery from this backup will ask for it"
                );
            }
            return Ok(());
        };
        match self.archive.put_history(facts.timeline, &text) {
            Ok(Put::Stored(_)) => {
                log::info!("archived {name}, which was not there");
                Ok(())
            }
            Ok(Put::AlreadyThere) => Ok(()),
            Err(e) => Err(explained(e)),
        }
    }
}

fn explained(error: Error) -> Error {
    error.context("the archive does not fit the server's timeline")
}
