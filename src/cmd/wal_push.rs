//! `wal-push PATH`: what `archive_command` runs.

use super::arguments::{path, setting_option};
use crate::error::Result;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

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
