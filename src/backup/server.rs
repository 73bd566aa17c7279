//! What a backup asks the running server, in plain SQL that a role with REPLICATION and EXECUTE on the backup
//! functions may ask.

use crate::archive::identity::Identity;
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::version::ServerVersion;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::wire::{Conn, Rows};
use crate::work::stop::Stop;
use std::path::Path;
use std::time::Duration;

/// The connected server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its version.
    pub version: ServerVersion,
    /// What `version()` says.
    pub version_text: String,
    /// System identifier, major version, segment size.
    pub identity: Identity,
    /// Catalog version, part of the tablespaces' directory names.
    pub catalog_version: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Seconds since 1970 when the postmaster started, as in line 3 of postmaster.pid.
    pub started: i64,
    /// The port that it listens on.
    pub port: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// Whether somebody receives WAL through a slot: `wal-receive`, or a standby.
    pub has_receiver: bool,
}

/// The end of backup mode.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The copy is consistent from here on.
    pub stop: Lsn,
    /// The contents of `backup_label`.
    pub label: String,
}

const FACTS: &str = "SELECT version() AS version_text, pg_is_in_recovery() AS in_recovery, \
    (SELECT system_identifier FROM pg_control_system()) AS system_identifier, \
    (SELECT catalog_version_no FROM pg_control_system()) AS catalog_version, \
    (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size, \
    current_setting('archive_mode') AS archive_mode, \
    EXISTS (SELECT FROM pg_replication_slots WHERE active AND slot_type = 'physical') AS has_receiver, \
    current_setting('port') AS port, \
    floor(extract(epoch FROM pg_postmaster_start_time()))::bigint AS started";

/// What the server reads from its own pg_control; its clock is told in whole seconds there.
const CHECKPOINT: &str = "SELECT checkpoint_lsn::text AS checkpoint, redo_lsn::text AS redo, \
    timeline_id AS timeline, extract(epoch FROM pg_control_last_modified)::bigint AS modified \
    FROM pg_control_checkpoint(), pg_control_system()";

/// How much later than its line in postmaster.pid a server may say that it started: in between it takes its memory
/// and removes temporary files.
const SLOW_START_SECS: i64 = 600;

/// How often pg_control is compared: the next checkpoint may come between the two readings.
const CONTROL_TRIES: u32 = 20;

/// Between two comparisons.
const CONTROL_PAUSE: Duration = Duration::from_millis(50);

/// Asks for everything at once.
pub fn ask(conn: &mut Conn) -> Result<Server> {
    let version = conn.server_version();
    let rows = conn
        .query(FACTS)
        .map_err(|e| e.context("could not ask the server what it is"))?;
    Ok(Server {
        version,
        version_text: text(&rows, "version_text")?,
        identity: Identity {
            system_id: number(&rows, "system_identifier")?,
            major: version.major(),
            segment_size: SegmentSize::new(number(&rows, "segment_size")?)?,
        },
        catalog_version: number(&rows, "catalog_version")?,
        in_recovery: text(&rows, "in_recovery")? == "t",
        started: number(&rows, "started")?,
        port: text(&rows, "port")?,
        archive_mode: text(&rows, "archive_mode")?,
        has_receiver: text(&rows, "has_receiver")? == "t",
    })
}

/// Enters backup mode; answers the start position and its timeline. The session must stay open.
pub fn start_backup(conn: &mut Conn, server: &Server, label: &str) -> Result<(Lsn, TimelineId)> {
    let rows = conn
        .query_params(server.version.backup_start_sql(), &[Some(label), Some("true")])
        .map_err(|e| e.context("could not start the backup").hint(
            "The role needs EXECUTE on the backup functions: GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO role; \
             (before PostgreSQL 15: pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)).",
        ))?;
    let start: Lsn = text_at(&rows, 0)?.parse()?;
    let name = conn.query_params(
        "SELECT pg_walfile_name($1::pg_lsn)",
        &[Some(&start.to_string())],
    )?;
    let name = text_at(&name, 0)?;
    let timeline = name.get(..8).and_then(TimelineId::parse_hex);
    let timeline = timeline.ok_or_else(|| unexpected("pg_walfile_name", &name))?;
    Ok((start, timeline))
}

/// Proves that `data` is the directory of the server that has just begun a backup at `start`. For that it made a
/// checkpoint and wrote it to its own pg_control: no copy of the directory can show the same one, however young it is
/// and whatever its postmaster.pid says.
pub fn prove_directory(
    conn: &mut Conn,
    data: &Path,
    start: Lsn,
    timeline: TimelineId,
    stop: &Stop,
) -> Result<ControlFile> {
    let mut tries = 0;
    loop {
        tries += 1;
        let ours = control_file(data)?;
        let theirs = last_checkpoint(conn);
        match &theirs {
            Ok(theirs)
                if theirs.is_of(&ours) && ours.redo >= start && ours.timeline == timeline =>
            {
                return Ok(ours);
            }
            _ if tries < CONTROL_TRIES => {}
            _ => {
                return Err(other_directory(data).detail(format!(
                    "Its last checkpoint is at {}, the server's at {}, and the backup's begins at {start}.",
                    ours.checkpoint, theirs?.checkpoint
                )));
            }
        }
        stop.wait(CONTROL_PAUSE);
        stop.check()?;
    }
}

/// What tells one state of pg_control from another.
struct Checkpoint {
    checkpoint: Lsn,
    redo: Lsn,
    timeline: u32,
    modified_secs: i64,
}

impl Checkpoint {
    fn is_of(&self, control: &ControlFile) -> bool {
        self.checkpoint == control.checkpoint
            && self.redo == control.redo
            && self.timeline == control.timeline.0
            && self.modified_secs == control.modified.secs()
    }
}

fn last_checkpoint(conn: &mut Conn) -> Result<Checkpoint> {
    let rows = conn
        .query(CHECKPOINT)
        .map_err(|e| e.context("could not ask the server for its last checkpoint"))?;
    Ok(Checkpoint {
        checkpoint: number(&rows, "checkpoint")?,
        redo: number(&rows, "redo")?,
        timeline: number(&rows, "timeline")?,
        modified_secs: number(&rows, "modified")?,
    })
}

fn other_directory(data: &Path) -> Error {
    Error::new(
        Kind::Mismatch,
        format!(
            "\"{}\" is not the data directory of the connected server",
            data.display()
        ),
    )
    .hint("Check PGHOST and PGPORT against the directory; two servers on one host are easily confused.")
}

/// Leaves backup mode without waiting for the archiver: that is done by looking into the archive.
pub fn stop_backup(conn: &mut Conn, server: &Server) -> Result<Stopped> {
    let rows = conn
        .query(server.version.backup_stop_sql())
        .map_err(|e| e.context("could not stop the backup"))?;
    Ok(Stopped {
        stop: text_at(&rows, 0)?.parse()?,
        label: text_at_column(&rows, 1)?,
    })
}

/// pg_control of a data directory; a torn read, possible while a server runs, is read again.
pub fn control_file(data: &Path) -> Result<ControlFile> {
    let path = data.join("global/pg_control");
    let mut tries = 0;
    loop {
        let bytes = disk::read_small(&path).map_err(|e| {
            e.context(format!("\"{}\" is not a data directory that can be read", data.display()))
                .hint("Run backup-push on the server's host as its operating system user, or without PGDATA.")
        })?;
        match ControlFile::parse(&bytes) {
            Err(e) if e.kind() == Kind::Corrupt && tries < 50 => tries += 1,
            other => return other,
        }
    }
}

/// What the server's archiver complains about, if it does.
pub fn last_archiver_failure(conn: &mut Conn) -> Result<Option<String>> {
    let rows = conn.query(
        "SELECT last_failed_wal, last_failed_time::text FROM pg_stat_archiver \
         WHERE last_failed_time > coalesce(last_archived_time, '-infinity')",
    )?;
    let Some(row) = rows.rows.first() else {
        return Ok(None);
    };
    let word = |n: usize| row.get(n).cloned().flatten().unwrap_or_default();
    Ok(Some(format!(
        "The server's archiver failed with {} at {}.",
        word(0),
        word(1)
    )))
}

impl Server {
    /// The directory of this server in each tablespace.
    pub fn version_directory(&self) -> String {
        format!("PG_{}_{}", self.version.major(), self.catalog_version)
    }

    /// A standby cannot switch WAL, so its last segment would not be archived.
    pub fn refuse_standby(&self) -> Result<()> {
        if !self.in_recovery {
            return Ok(());
        }
        Err(Error::new(Kind::Refused, "the server is a standby")
            .detail("Base backups are taken from the primary in this release.")
            .hint("Connect to the primary: set PGHOST, or run backup-push there."))
    }

    /// The directory must be the connected server's. Clones share the system identifier, so what postmaster.pid says
    /// of the server is compared too; `prove_directory` finds out what that cannot show.
    pub fn refuse_other_directory(&self, data: &Path) -> Result<()> {
        let control = control_file(data)?;
        let other = |detail: String| other_directory(data).detail(detail);
        if control.system_id != self.identity.system_id {
            return Err(other(format!(
                "The directory has system identifier {}, the server {}.",
                control.system_id, self.identity.system_id
            )));
        }
        let pid_file =
            disk::read_small(&data.join("postmaster.pid")).map_err(|e| match e.kind() {
                Kind::Missing => other("No server runs in the directory.".to_string()),
                _ => e,
            })?;
        let pid_file = String::from_utf8_lossy(&pid_file).into_owned();
        let line = |number: usize| pid_file.lines().nth(number - 1).map(str::trim);
        let started = line(3).and_then(|line| line.parse::<i64>().ok());
        let possible = self.started - SLOW_START_SECS..=self.started + 1;
        if started.is_none_or(|started| !possible.contains(&started)) {
            return Err(other(format!(
                "Its server started at {}, the connected one at {} (seconds since 1970).",
                started.map_or("an unknown time".to_string(), |s| s.to_string()),
                self.started
            )));
        }
        if let Some(port) = line(4).filter(|port| *port != self.port) {
            return Err(other(format!(
                "Its server listens on port {port}, the connected one on {}.",
                self.port
            )));
        }
        Ok(())
    }

    /// Without archiving the backup's WAL can only come from a receiver.
    pub fn warn_without_archiving(&self) {
        if self.archive_mode == "off" && !self.has_receiver {
            log::warn!("archive_mode is off: the backup will wait for WAL that nobody may archive");
        }
    }
}

fn text(rows: &Rows, column: &str) -> Result<String> {
    rows.get(0, column)
        .map(str::to_string)
        .ok_or_else(|| unexpected(column, "nothing"))
}

fn number<T: std::str::FromStr>(rows: &Rows, column: &str) -> Result<T> {
    let value = text(rows, column)?;
    value.parse().map_err(|_| unexpected(column, &value))
}

fn text_at(rows: &Rows, row: usize) -> Result<String> {
    rows.rows
        .get(row)
        .and_then(|row| row.first().cloned().flatten())
        .ok_or_else(|| unexpected("a position", "nothing"))
}

fn text_at_column(rows: &Rows, column: usize) -> Result<String> {
    rows.rows
        .first()
        .and_then(|row| row.get(column).cloned().flatten())
        .ok_or_else(|| unexpected("a backup label", "nothing"))
}

fn unexpected(what: &str, value: &str) -> Error {
    Error::new(
        Kind::Protocol,
        format!("the server answered \"{value}\" for {what}"),
    )
}
