//! `backup-list [NAME|LATEST]`: which backups there are.

use super::arguments::text;
use crate::error::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// One backup by name, or `LATEST`; without it, all.
    pub name: Option<String>,
    /// More columns, from the sentinels.
    pub detail: bool,
    /// JSON instead of a table.
    pub json: bool,
}

/// The verb's command line.
pub fn command() -> Command {
    Command::new("backup-list")
        .about("List the backups")
        .arg(
            Arg::new("name")
                .value_name("NAME|LATEST")
                .help("Only this backup; LATEST is the newest complete one"),
        )
        .arg(
            Arg::new("detail")
                .long("detail")
                .action(ArgAction::SetTrue)
                .help("Show what the sentinels tell: LSNs, sizes, times, host, label"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON, whose keys stay as they are between releases"),
        )
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    Ok(Args {
        name: text(matches, "name"),
        detail: matches.get_flag("detail"),
        json: matches.get_flag("json"),
    })
}
