//! What is different about a server that is shut down: its own files say where WAL ends, and the WAL it needs for
//! its next start is not archived yet, so it travels inside the backup.

use super::pages::Source;
use super::plan::{Plan, Submit};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::Segment;
use crate::pg::control::{ClusterState, ControlFile};
use std::path::Path;
use std::sync::Arc;

/// Reads pg_control and refuses a server that runs or was not shut down cleanly.
pub fn shut_down_cluster(data: &Path) -> Result<ControlFile> {
    if disk::stat(&data.join("postmaster.pid"))?.is_some() {
        return Err(Error::new(
            Kind::Refused,
            format!("\"{}\" belongs to a running server", data.display()),
        )
        .detail("It has a postmaster.pid.")
        .hint("Shut the server down, or take the backup without --while-offline."));
    }
    let control = ControlFile::parse(&disk::read_small(&data.join("global/pg_control"))?)?;
    if control.state != ClusterState::ShutDown {
        return Err(
            Error::new(Kind::Refused, "the server was not shut down cleanly")
                .detail(format!("pg_control says: {:?}.", control.state))
                .hint(
                    "Start it and shut it down with pg_ctl stop, or take the backup while it runs.",
                ),
        );
    }
    Ok(control)
}

/// The segments as members of `pg_wal`; they are not in the manifest, which does not speak of WAL files.
pub fn wal_members<'p>(
    data: &Path,
    segments: &[Segment],
    plan: &mut Plan<'p>,
    submit: Submit<'_, 'p>,
) -> Result<()> {
    for segment in segments {
        let path = data.join("pg_wal").join(segment.to_string());
        let file = disk::open(&path)?;
        let stat = disk::stat_open(&file, &path)?;
        let name = Path::new("pg_wal").join(segment.to_string());
        let source = Arc::new(Source::new(name, file, stat.size, stat.modified, None));
        plan.file(source, 0o600, submit)?;
    }
    Ok(())
}
