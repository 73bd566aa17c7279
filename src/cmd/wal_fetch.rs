//! `wal-fetch NAME DEST`: what `restore_command` runs. Its exit codes are PostgreSQL's to read.

use super::arguments::{path, setting_option, text, word};
use crate::error::{Error, Kind, Result};
use crate::pg::WalName;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// The file: PostgreSQL's `%f`.
    pub name: WalName,
    /// Where to: PostgreSQL's `%p`, or standard output.
    pub dest: Dest,
    /// What to make of a hole in the archive.
    pub on_hole: OnHole,
    /// What to make of an archive that cannot be reached.
    pub on_outage: OnOutage,
}

/// Where the file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// `-`.
    Stdout,
    /// A path that must not hold half a file at any moment.
    File(PathBuf),
}

/// What a hole is: the segment is not there, later ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHole {
    /// Recovery must stop (exit 200 and above).
    Abort,
    /// Recovery ends here (exit 1).
    Absent,
}

/// What an outage is: whether the file is there could not be found out in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// `Absent` for a segment on a standby, which asks again for ever; else `Abort`.
    Auto,
    /// Recovery must stop (exit 200 and above).
    Abort,
    /// Recovery ends here, or the standby asks again (exit 1).
    Absent,
}

/// The verb's command line.
pub fn command() -> Command {
    Command::new("wal-fetch")
        .about("Fetch one WAL file; for restore_command")
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help("The file to fetch: %f in restore_command"),
        )
        .arg(
            Arg::new("dest")
                .value_name("DEST")
                .value_parser(clap::value_parser!(PathBuf))
                .required(true)
                .help("Where to write it: %p in restore_command, or - for standard output")
                .long_help(
                    "Where to write it: %p in restore_command. The file appears under this name whole and\n\
                     synced, or not at all. - is standard output.",
                ),
        )
        .arg(
            setting_option("wal.prefetch", "prefetch", "N")
                .short('p')
                .help("Segments to fetch ahead, as in WAL-E"),
        )
        .arg(
            Arg::new("on-hole")
                .long("on-hole")
                .value_name("WHAT")
                .value_parser(["abort", "absent"])
                .default_value("abort")
                .hide_possible_values(true)
                .help("What a missing segment is while later ones exist: abort or absent")
                .long_help(
                    "What a missing segment is while later ones of its timeline exist. abort stops recovery\n\
                     (exit 200 and above), because the end of WAL it would be taken for is not the end.\n\
                     absent exits 1: recovery ends there and everything after the hole is given up.",
                ),
        )
        .arg(
            Arg::new("on-outage")
                .long("on-outage")
                .value_name("WHAT")
                .value_parser(["auto", "abort", "absent"])
                .default_value("auto")
                .hide_possible_values(true)
                .help("What an archive that cannot be reached is: auto, abort or absent")
                .long_help(
                    "What an archive is that cannot be reached within the retry timeout. abort stops recovery\n\
                     (exit 200 and above). absent exits 1. auto is absent for a segment where standby.signal\n\
                     and no recovery.signal is found, because a standby asks again for ever, and abort\n\
                     elsewhere. A standby that may be promoted during an outage is safer with abort.",
                ),
        )
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let name = text(matches, "name").unwrap_or_default();
    let name = name.parse().map_err(|e: Error| {
        e.with_kind(Kind::Usage)
            .hint("Write wal-fetch %f %p in restore_command.")
    })?;
    let dest = path(matches, "dest");
    Ok(Args {
        name,
        dest: match dest.as_os_str() == "-" {
            true => Dest::Stdout,
            false => Dest::File(dest),
        },
        on_hole: match word(matches, "on-hole") {
            "absent" => OnHole::Absent,
            _ => OnHole::Abort,
        },
        on_outage: match word(matches, "on-outage") {
            "abort" => OnOutage::Abort,
            "absent" => OnOutage::Absent,
            _ => OnOutage::Auto,
        },
    })
}
