//! What is different about a server that is shut down: its own files say where WAL ends, and the WAL it needs for
//! its next start is not archived yet, so it travels inside the backup.

use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::control::{ClusterState, ControlFile};
use std::path::Path;

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
    if control.state == ClusterState::ShutDownInRecovery {
        return Err(Error::new(Kind::Refused, "the server is a standby")
            .detail("Base backups are taken from the primary in this release.")
            .hint("Take the backup on the primary, or promote this server first."));
    }
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

/// Refuses a server that ran since `before` was read: its files are of two moments.
pub fn refuse_started(data: &Path, before: &ControlFile) -> Result<()> {
    if shut_down_cluster(data)?.checkpoint == before.checkpoint {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        "the server was started while its files were read",
    )
    .hint("Begin again: with the server shut down, or without --while-offline."))
}
