//! `wal-push PATH`: what `archive_command` runs.

use super::arguments::{path, setting_option};
use super::{Context, WAL_RETRY, cluster_of};
use crate::archive::Archive;
use crate::archive::identity::Identity;
use crate::archive::wal::{Expect, Put};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::{AHEAD_OWN_MAX, AHEAD_TIME_MAX, STORE_STOP_GRACE};
use crate::pg::wal_header::{HEADER_BYTES, SegmentHeader};
use crate::pg::{Segment, WalName};
use crate::transfer::{Ahead, Ledger};
use crate::work::{now, unless_stopped};
use clap::{Arg, ArgMatches, Command};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// The file to archive: PostgreSQL's `%p`.
    pub path: PathBuf,
}

/// The verb's command line.
pub fn command() -> Command {
    Command::new("wal-push")
        .about("Archive one WAL file; for archive_command")
        .arg(
            Arg::new("path")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .required(true)
                .help("The file to archive: %p in archive_command")
                .long_help(
                    "The file to archive, %p in archive_command: a segment, a .partial segment, a timeline\n\
                     history or a backup history file. Its name says what it must be, and it is looked at\n\
                     before it is sent: size, page header, segment size and system identifier.",
                ),
        )
        .arg(
            setting_option("upload.threads", "pool-size", "N")
                .short('p')
                .help("Threads that compress and send, as in WAL-E"),
        )
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    Ok(Args {
        path: path(matches, "path"),
    })
}

/// How long a push that was told to stop may still come to its end: one whose store answers is done by then, and
/// leaves no half of an upload in the store.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Archives the file. `Ok` only when the store acknowledged the whole object and shows it.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let (own, path) = (context.clone(), args.path.clone());
    unless_stopped("push", &context.stop, LAST_WORDS, move || push(&own, &path))
}

fn push(context: &Context, path: &Path) -> Result<()> {
    let name = name_of(path)?;
    refuse_unfinished(path, name)?;
    let archive = context.archive(WAL_RETRY)?;
    let identity = identity(path, name)?;
    let ledger = Ledger::of(&archive);
    let own = match (name, &identity) {
        (WalName::Segment(segment), Some(cluster)) => Some((segment, cluster)),
        _ => None,
    };
    if let Some((segment, cluster)) = own
        && ledger.vouches_for(segment, path, cluster.system_id)?
    {
        log::info!("{name} was archived ahead");
        return Ok(());
    }
    let expect = Expect {
        system_id: identity.as_ref().map(|cluster| cluster.system_id),
        segment_size: identity.as_ref().map(|cluster| cluster.segment_size),
    };
    let permit = || permit(&archive, identity.as_ref(), name);
    let begun = Instant::now();
    let put = archive.put_wal(name, path, expect, permit)?;
    match put {
        Put::Stored(bytes) => log::info!(
            "archived {name} ({bytes} bytes) in {}",
            archive.store.location()
        ),
        Put::AlreadyThere => log::info!("{name} is archived already, with the same bytes"),
    }
    if let Some((segment, cluster)) = own
        && begun.elapsed() < AHEAD_OWN_MAX
    {
        ledger.sweep(segment, cluster.system_id);
        let ahead = Ahead {
            ledger,
            directory: disk::parent_of(path).to_path_buf(),
            system_id: cluster.system_id,
            segment_size: cluster.segment_size,
            count: context.config.wal_ahead(),
        };
        // Not an error of this call: PostgreSQL will ask for them.
        if let Err(e) = look_ahead(context, ahead, segment) {
            log::info!("looking ahead has ended: {}", e.one_line());
        }
    }
    Ok(())
}

/// Takes along what waits behind `own`, for as long as PostgreSQL can wait; what will not end by then is left behind.
fn look_ahead(context: &Context, ahead: Ahead, own: Segment) -> Result<()> {
    let waiting = ahead.waiting(own)?;
    if waiting.is_empty() {
        return Ok(());
    }
    let end = context.stop.within(AHEAD_TIME_MAX);
    // Its own connection, which `end` cuts.
    let archive = context.archive_until(WAL_RETRY, &end)?;
    let stop = end.clone();
    unless_stopped("look-ahead", &end, STORE_STOP_GRACE, move || {
        ahead.push(&archive, waiting, &stop)
    })
}

/// Whether the archive takes WAL of this cluster; a new one is begun.
fn permit(archive: &Archive, cluster: Option<&Identity>, name: WalName) -> Result<()> {
    match cluster {
        Some(cluster) => archive.claim(cluster, now()),
        // A text file alone does not say whose it is: it may join an archive, not begin one.
        None => archive.identity()?.map(drop).ok_or_else(|| {
            Error::new(Kind::Refused, format!("cannot tell which cluster {name} belongs to"))
                .detail("There is no pg_control in the current directory nor above the file, and the archive is new.")
                .hint("Run archive_command from PostgreSQL, which runs it in the data directory.")
        }),
    }
}

fn name_of(path: &Path) -> Result<WalName> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.parse()
        .map_err(|e: Error| e.context(format!("cannot archive \"{}\"", path.display())))
}

/// A segment that a server still writes to has the size and the header of a whole one. PostgreSQL says that it is
/// whole by a note in `archive_status`, which is there before archive_command runs, on every version and on a standby
/// too. Where that directory is not, as in the one of a WAL receiver, names alone tell.
fn refuse_unfinished(path: &Path, name: WalName) -> Result<()> {
    let notes = disk::parent_of(path).join("archive_status");
    let there = disk::stat(&notes)?.is_some() && disk::stat(path)?.is_some();
    if !matches!(name, WalName::Segment(_)) || !there {
        return Ok(());
    }
    for note in ["ready", "done"] {
        if disk::stat(&notes.join(format!("{name}.{note}")))?.is_some() {
            return Ok(());
        }
    }
    Err(Error::new(Kind::Refused, format!("the server has not finished segment {name}"))
        .detail(format!("There is neither {name}.ready nor {name}.done in \"{}\".", notes.display()))
        .hint("Leave it to archive_command (pg_switch_wal() finishes the segment in use). To push a whole segment of a server that does not archive, copy it elsewhere first."))
}

/// Whose WAL this is: the data directory says it, else the segment itself.
fn identity(path: &Path, name: WalName) -> Result<Option<Identity>> {
    if let Some(control) = cluster_of(path)? {
        let (system_id, segment_size) = (control.system_id, control.segment_size);
        return Ok(Some(Identity {
            system_id,
            major: control.major,
            segment_size,
        }));
    }
    if !matches!(name, WalName::Segment(_) | WalName::Partial(_)) {
        return Ok(None);
    }
    let mut head = Vec::new();
    disk::open(path)?
        .take(HEADER_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))?;
    let header = SegmentHeader::parse(&head).map_err(|e| {
        e.context(format!(
            "file \"{}\" is not what its name {name} says",
            path.display()
        ))
    })?;
    Ok(Some(Identity {
        system_id: header.system_id,
        major: header.major.unwrap_or(0),
        segment_size: header.segment_size,
    }))
}
