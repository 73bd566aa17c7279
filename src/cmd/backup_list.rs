//! `backup-list [NAME|LATEST]`: which backups there are.

use super::arguments::text;
use super::output::{Align, Table, human_bytes, print, print_json};
use super::{BASE_RETRY, Context};
use crate::archive::Archive;
use crate::archive::catalog::Backup;
use crate::error::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

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
                .help("Show what the sentinels tell: LSNs, sizes, times, host, label")
                .long_help(
                    "Show what the sentinels tell: LSNs, sizes, times, host, label. JSON has that anyway; of one backup,\n\
                     by name or LATEST, it then has the whole sentinel too.",
                ),
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

/// One backup as `--json` shows it: a stable form.
#[derive(Serialize)]
struct Shown {
    name: String,
    finish_time: String,
    mode: Option<String>,
    host: Option<String>,
    label: Option<String>,
    start_lsn: Option<String>,
    stop_lsn: Option<String>,
    timeline: Option<u32>,
    wal_segment_backup_start: String,
    wal_segment_backup_stop: String,
    system_identifier: Option<String>,
    server_version: Option<u32>,
    expanded_size_bytes: u64,
    stored_size_bytes: Option<u64>,
    bad_pages: Option<u64>,
    /// Whole, for one backup asked for by name: a list of many would be as long as their parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel: Option<crate::archive::sentinel::Sentinel>,
}

/// Lists complete backups, oldest first; what is unfinished or unreadable is said on standard error.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let archive = context.archive_until(BASE_RETRY, &context.stop)?;
    let backups = match &args.name {
        Some(name) => vec![archive.select(name)?],
        None => all(&archive)?,
    };
    if args.json {
        let shown: Vec<Shown> = backups
            .iter()
            .map(|backup| shown(backup, args.detail && args.name.is_some()))
            .collect();
        return print_json(&shown);
    }
    print(&if args.detail {
        detailed(&backups)
    } else {
        plain(&backups)
    })
}

fn all(archive: &Archive) -> Result<Vec<Backup>> {
    let catalog = archive.catalog()?;
    if catalog.backups.is_empty() && catalog.unreadable.is_empty() && catalog.unfinished.is_empty()
    {
        // Nothing at all may be a directory that is not mounted.
        archive.prove_shown()?;
    }
    for name in &catalog.unfinished {
        log::info!("{name} is unfinished: running, or interrupted");
    }
    for (name, error) in &catalog.unreadable {
        log::warn!("{name} cannot be read: {}", error.one_line());
    }
    Ok(catalog.backups)
}

fn shown(backup: &Backup, detail: bool) -> Shown {
    let details = backup.sentinel.seawall.as_ref();
    Shown {
        name: backup.id.to_string(),
        finish_time: backup.finished().to_string(),
        mode: details.map(|d| d.mode.to_string()),
        host: details.map(|d| d.host.clone()),
        label: details.map(|d| d.label.clone()),
        start_lsn: details.map(|d| d.start_lsn.clone()),
        stop_lsn: details.map(|d| d.stop_lsn.clone()),
        timeline: details.map(|d| d.timeline),
        wal_segment_backup_start: backup.id.segment.to_string(),
        wal_segment_backup_stop: backup.sentinel.wal_segment_backup_stop.clone(),
        system_identifier: details.map(|d| d.system_identifier.to_string()),
        server_version: details.map(|d| d.server_version),
        expanded_size_bytes: backup.sentinel.expanded_size_bytes,
        stored_size_bytes: backup.stored_bytes,
        bad_pages: details.map(|d| d.page_checksums.bad_pages),
        sentinel: detail.then(|| backup.sentinel.clone()),
    }
}

fn plain(backups: &[Backup]) -> String {
    let mut table = Table::new(&[
        ("name", Align::Left),
        ("finished", Align::Left),
        ("size", Align::Right),
        ("wal_segment_backup_start", Align::Left),
    ]);
    for backup in backups {
        table.row(vec![
            backup.id.to_string(),
            backup.finished().to_string(),
            human_bytes(backup.sentinel.expanded_size_bytes),
            backup.id.segment.to_string(),
        ]);
    }
    table.render()
}

fn detailed(backups: &[Backup]) -> String {
    let mut table = Table::new(&[
        ("name", Align::Left),
        ("finished", Align::Left),
        ("mode", Align::Left),
        ("size", Align::Right),
        ("stored", Align::Right),
        ("start", Align::Left),
        ("stop", Align::Left),
        ("wal_segment_backup_stop", Align::Left),
        ("bad_pages", Align::Right),
        ("host", Align::Left),
        ("data_directory", Align::Left),
        ("tablespaces", Align::Left),
        ("label", Align::Left),
    ]);
    for backup in backups {
        let shown = shown(backup, false);
        let spec = &backup.sentinel.spec;
        let spaces: Vec<String> = spec
            .locations
            .iter()
            .map(|(oid, space)| format!("{oid}={}", space.loc))
            .collect();
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_string());
        table.row(vec![
            shown.name,
            shown.finish_time,
            text(shown.mode),
            human_bytes(shown.expanded_size_bytes),
            text(shown.stored_size_bytes.map(human_bytes)),
            text(shown.start_lsn),
            text(shown.stop_lsn),
            shown.wal_segment_backup_stop,
            text(shown.bad_pages.map(|count| count.to_string())),
            text(shown.host),
            spec.base_prefix.clone(),
            if spaces.is_empty() {
                "-".to_string()
            } else {
                spaces.join(",")
            },
            text(shown.label),
        ]);
    }
    table.render()
}
