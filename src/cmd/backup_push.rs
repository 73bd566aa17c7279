//! `backup-push [PGDATA]`: a base backup, read from the data directory or streamed by the server.

use super::arguments::{
    Connection, absolute_path, connection, connection_options, optional_path, setting_option, text,
    usage,
};
use super::output::{Progress, human_bytes};
use super::{BASE_RETRY, Context};
use crate::archive::Archive;
use crate::backup::push::{Job, Options, Taken};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::limits::STORE_TEMP_AGE;
use crate::wire::{Conn, ConnectOptions};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::PathBuf;
use std::time::Duration;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// The data directory; without it the server streams the backup.
    pub pgdata: Option<PathBuf>,
    /// The server is stopped, and the backup is of a cleanly shut down cluster.
    pub offline: bool,
    /// What the backup is called in lists and in backup_label.
    pub label: Option<String>,
    /// How to reach PostgreSQL.
    pub connection: Connection,
    /// Whether page checksums are looked at while reading.
    pub verify_checksums: bool,
    /// How long to wait at the end until the WAL of the backup is archived.
    pub wal_timeout: Duration,
}

/// The verb's command line.
pub fn command() -> Command {
    let options = [
        setting_option("upload.threads", "pool-size", "N")
            .short('p')
            .help("Threads that read, compress and send"),
        setting_option("rate-limit", "rate-limit", "BYTES")
            .visible_alias("cluster-read-rate-limit")
            .help("Most bytes per second to read, all threads together, as in 50M"),
        Arg::new("while-offline")
            .long("while-offline")
            .action(ArgAction::SetTrue)
            .requires("pgdata")
            .help("Back up a cluster whose server is cleanly shut down")
            .long_help(
                "Back up a cluster whose server is cleanly shut down. Nothing is connected to; the WAL of the\n\
                 shutdown checkpoint becomes part of the backup.",
            ),
        Arg::new("label")
            .long("label")
            .value_name("TEXT")
            .help("Name the backup in backup-list and backup_label"),
        Arg::new("no-verify-checksums")
            .long("no-verify-checksums")
            .action(ArgAction::SetTrue)
            .help("Do not look at page checksums while reading"),
        Arg::new("wal-timeout")
            .long("wal-timeout")
            .value_name("TIME")
            .default_value("1h")
            .help("How long to wait for the archiving of the backup's WAL"),
    ];
    Command::new("backup-push")
        .about("Make a base backup")
        .arg(
            Arg::new("pgdata")
                .value_name("PGDATA")
                .value_parser(clap::value_parser!(PathBuf))
                .help("The data directory; without it the server streams the backup")
                .long_help(
                    "The data directory, read with several threads. It must be the directory of the server\n\
                     that is connected to. Without it the server streams the backup (BASE_BACKUP), from\n\
                     this host or another.",
                ),
        )
        .args(options)
        .args(connection_options(false))
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let timeout = text(matches, "wal-timeout").unwrap_or_default();
    let wal_timeout = config::duration(&timeout)
        .map_err(|reason| usage(format!("--wal-timeout: {timeout:?} {reason}")))?;
    let label = text(matches, "label");
    // backup_label is read line by line, and PostgreSQL's own limit is 1024 bytes.
    if label
        .as_ref()
        .is_some_and(|l| l.len() > 1024 || l.contains(char::is_control))
    {
        return Err(usage(
            "--label is longer than 1024 bytes or holds a line end",
        ));
    }
    Ok(Args {
        pgdata: optional_path(matches, "pgdata")
            .map(|path| absolute_path(&path))
            .transpose()?,
        offline: matches.get_flag("while-offline"),
        label,
        connection: connection(matches)?,
        verify_checksums: !matches.get_flag("no-verify-checksums"),
        wal_timeout,
    })
}

/// Takes the backup; `Kind::Findings` if it is complete but pages are bad.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let archive = context.archive(BASE_RETRY)?;
    let options = Options {
        label: args.label.clone().unwrap_or_else(|| "seawall".to_string()),
        threads: context.config.upload_threads(),
        verify_checksums: args.verify_checksums,
        rate_limit: context.config.rate_limit(),
        wal_timeout: args.wal_timeout,
    };
    sweep(&archive);
    let progress = Progress::new(&context.screen, "backing up", 0);
    let job = Job {
        archive: &archive,
        options: &options,
        progress: &progress,
        stop: &context.stop,
    };
    let taken = match &args.pgdata {
        Some(data) if args.offline => job.offline(data),
        Some(data) => job.local(&mut connect(context, args, false)?, data),
        None => job.remote(&mut connect(context, args, true)?),
    };
    progress.finish();
    report(&taken?)
}

/// Takes away what writers that were killed left half-written in an archive of files. A backup can do without.
fn sweep(archive: &Archive) {
    match archive.store.sweep(STORE_TEMP_AGE) {
        Ok(0) => {}
        Ok(count) => log::info!(
            "removed {count} temporary files that killed writers had left in the archive"
        ),
        // An archive that is not begun yet has nothing to sweep; one that is away says so in a moment.
        Err(e) => log::debug!(
            "could not look for leftover temporary files: {}",
            e.one_line()
        ),
    }
}

fn connect(context: &Context, args: &Args, replication: bool) -> Result<Conn> {
    let connection = &args.connection;
    let info = context
        .config
        .conninfo(connection.conninfo.as_deref(), connection.overrides.clone())?;
    let options = ConnectOptions {
        replication,
        application_name: "seawall".to_string(),
        statement_timeout: None,
    };
    Conn::connect(&info, &options, &context.stop).map_err(|e| match e.full_detail() {
        // insufficient_privilege: the password was right
        Some(detail) if replication && detail.contains("42501") => {
            e.hint("The role needs REPLICATION: ALTER ROLE role REPLICATION.")
        }
        _ => e,
    })
}

fn report(taken: &Taken) -> Result<()> {
    let details = taken.sentinel.details(&taken.id)?;
    log::info!(
        "backup {} is complete: {} in {} parts of {}, from {} to {}",
        taken.id,
        human_bytes(taken.sentinel.expanded_size_bytes),
        details.parts.len(),
        human_bytes(details.stored_bytes()),
        details.start_lsn,
        details.stop_lsn
    );
    let bad = &details.page_checksums;
    if bad.bad_pages == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Findings,
        format!("{} pages have wrong checksums", bad.bad_pages),
    )
    .detail(format!(
        "Backup {} is complete and holds them as they are: {}.",
        taken.id,
        bad.first_bad.join("; ")
    ))
    .hint("Keep older backups. Find the relations with pg_filenode_relation() and check the disk."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let parse = |words: &[&str]| {
            let words = std::iter::once("backup-push").chain(words.iter().copied());
            args(&command().try_get_matches_from(words).unwrap())
        };
        let plain = parse(&["/data"]).unwrap();
        assert_eq!(plain.pgdata, Some("/data".into()));
        assert!(plain.verify_checksums && !plain.offline);
        assert_eq!(plain.wal_timeout, Duration::from_secs(3600));
        let remote = parse(&["--host", "h", "-U", "b", "--wal-timeout", "5min"]).unwrap();
        assert_eq!(remote.pgdata, None);
        let expected = vec![("host", "h".to_string()), ("user", "b".to_string())];
        assert_eq!(remote.connection.overrides, expected);
        assert_eq!(remote.wal_timeout, Duration::from_secs(300));
        assert!(parse(&["--wal-timeout", "soon"]).is_err());
        assert!(parse(&["--label", "a\nb"]).is_err());
    }
}
