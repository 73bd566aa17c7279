//! `backup-fetch PGDATA NAME|LATEST`: a restored data directory, and what recovery needs to go on from there.

use super::arguments::{absolute_path, optional_path, parsed, path, setting_option, text, usage};
use super::output::{Progress, human_bytes};
use super::{BASE_RETRY, Context};
use crate::archive::catalog::Moment;
use crate::archive::sentinel::Spec;
use crate::backup::fetch::{self, Options};
use crate::backup::recovery::{self, Settings, Start};
use crate::backup::recovery::{Target, target_time};
use crate::backup::spec::Placement;
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use std::path::Path;
use std::path::PathBuf;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// Where to: absent or empty.
    pub pgdata: PathBuf,
    /// The backup: its name or `LATEST`.
    pub name: String,
    /// Where tablespaces go.
    pub tablespaces: Tablespaces,
    /// Where WAL goes, if not into PGDATA itself.
    pub waldir: Option<PathBuf>,
    /// What to write for recovery, if anything.
    pub recovery: Option<Recovery>,
    /// Leave archiving as it was backed up; otherwise it is off in the copy.
    pub keep_archiving: bool,
    /// Leave subscriptions and synchronous standbys as they were backed up; otherwise the copy has none.
    pub keep_replication: bool,
}

/// Where tablespaces go. Without any of it they go where they were, if these places are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tablespaces {
    /// Plain directories below pg_tblspc, no links.
    pub blind: bool,
    /// WAL-E's restore specification.
    pub spec: Option<RestoreSpec>,
    /// Old location and new one.
    pub mapping: Vec<(PathBuf, PathBuf)>,
}

/// `--restore-spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreSpec {
    /// The word `SOURCE`: where they were.
    Source,
    /// A JSON file of the form of the sentinel's `spec`.
    File(PathBuf),
}

/// What recovery shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Where to end.
    pub target: Target,
    /// `recovery_target_timeline`: `latest`, `current` or a number.
    pub timeline: Option<String>,
    /// `recovery_target_action`: `pause`, `promote` or `shutdown`.
    pub action: Option<String>,
    /// Stop just before the target.
    pub exclusive: bool,
    /// standby.signal instead of recovery.signal.
    pub standby: bool,
    /// In place of the one that seawall writes.
    pub restore_command: Option<String>,
    /// How the one that seawall writes fetches.
    pub wal_fetch: WalFetch,
}

/// Options of the `wal-fetch` in the `restore_command`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalFetch {
    /// `--spool`, absolute.
    pub spool: Option<PathBuf>,
    /// `--partial`.
    pub partial: bool,
    /// `--on-hole`.
    pub on_hole: Option<String>,
}

/// The verb's command line.
pub fn command() -> Command {
    Command::new("backup-fetch")
        .about("Restore a base backup")
        .arg(
            Arg::new("pgdata")
                .value_name("PGDATA")
                .value_parser(clap::value_parser!(PathBuf))
                .required(true)
                .help("The directory to restore into, absent or empty"),
        )
        .arg(
            Arg::new("name")
                .value_name("NAME|LATEST")
                .required(true)
                .help("The backup; LATEST is the newest complete one"),
        )
        .arg(
            setting_option("download.threads", "pool-size", "N")
                .short('p')
                .help("Threads that fetch, decompress and write"),
        )
        .args(tablespace_options())
        .args(recovery_options())
        .args(target_options())
        .group(ArgGroup::new("target").args(TARGETS))
}

fn tablespace_options() -> [Arg; 4] {
    [
        Arg::new("blind-restore")
            .long("blind-restore")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(["restore-spec", "tablespace-mapping"])
            .help("Put tablespaces into pg_tblspc itself, as plain directories")
            .long_help(
                "Put tablespaces into pg_tblspc itself, as plain directories without links. PostgreSQL needs\n\
                 allow_in_place_tablespaces for that; it is set for the recovery. PostgreSQL before 13.8 and 14.5\n\
                 does not have it: there this is refused if the backup has tablespaces.",
            ),
        Arg::new("restore-spec")
            .long("restore-spec")
            .value_name("FILE|SOURCE")
            .help("Put tablespaces where the JSON file says; SOURCE is where they were"),
        Arg::new("tablespace-mapping")
            .long("tablespace-mapping")
            .short('T')
            .value_name("OLD=NEW")
            .action(ArgAction::Append)
            .help("Put the tablespace that was at OLD to NEW; may be repeated")
            .long_help(
                "Put the tablespace that was at OLD to NEW, both absolute paths; may be repeated. A = in a path\n\
                 is written \\=.",
            ),
        Arg::new("waldir")
            .long("waldir")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Make pg_wal a link to this directory"),
    ]
}

fn recovery_options() -> [Arg; 8] {
    [
        Arg::new("recovery")
            .long("recovery")
            .action(ArgAction::SetTrue)
            .help("Write recovery.signal and a restore_command; every --target option implies it")
            .long_help(
                "Write recovery.signal and a restore_command that fetches from this archive. Every --target\n\
                 option implies it.",
            ),
        Arg::new("standby")
            .long("standby")
            .action(ArgAction::SetTrue)
            .conflicts_with("target")
            .help("Write standby.signal: the copy follows the archive until it is promoted"),
        Arg::new("restore-command")
            .long("restore-command")
            .value_name("COMMAND")
            .help("The restore_command to write in place of seawall's own"),
        Arg::new("spool")
            .long("spool")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .conflicts_with("restore-command")
            .help("Let the restore_command look in this directory of a receiver, too")
            .long_help(
                "Let the restore_command fetch what is not in the archive from this directory of a receiver, or\n\
                 a copy of it: seawall wal-fetch --spool. It must exist. Implies --recovery.",
            ),
        Arg::new("partial")
            .long("partial")
            .action(ArgAction::SetTrue)
            .conflicts_with("restore-command")
            .help("Let the restore_command fetch unfinished segments of the archive, too")
            .long_help(
                "Let the restore_command fetch unfinished segments of the archive, too: seawall wal-fetch\n\
                 --partial. Implies --recovery.",
            ),
        Arg::new("on-hole")
            .long("on-hole")
            .value_name("WHAT")
            .value_parser(["auto", "abort", "absent"])
            .hide_possible_values(true)
            .conflicts_with("restore-command")
            .help("What a missing segment is to the restore_command while later ones exist")
            .long_help(
                "What a missing segment is to the restore_command while later ones exist: auto, abort or absent, as\n\
                 seawall wal-fetch --on-hole has it. absent ends the recovery at a hole and gives up what is behind\n\
                 it. Implies --recovery.",
            ),
        Arg::new("keep-archiving")
            .long("keep-archiving")
            .action(ArgAction::SetTrue)
            .help("Leave archive_mode as it was backed up")
            .long_help(
                "Leave archive_mode as it was backed up. Without this it is off in the copy: one that is promoted\n\
                 beside a living production would write its timeline into production's archive, and the next\n\
                 recovery of production would follow it.",
            ),
        Arg::new("keep-replication")
            .long("keep-replication")
            .action(ArgAction::SetTrue)
            .help("Leave subscriptions and synchronous standbys as they were backed up")
            .long_help(
                "Leave max_logical_replication_workers and synchronous_standby_names as they were backed up. Without\n\
                 this the copy runs no subscription and waits for no standby: its subscriptions have production's\n\
                 slots, and rows that are sent to the copy never reach a living production.",
            ),
    ]
}

const TARGETS: [&str; 5] = [
    "target-time",
    "target-lsn",
    "target-xid",
    "target-name",
    "target-immediate",
];

fn target_options() -> [Arg; 8] {
    [
        Arg::new("target-time")
            .long("target-time")
            .value_name("TIME")
            .help("Recover up to this time, with an offset from UTC: 2026-11-21T03:40:00Z"),
        Arg::new("target-lsn")
            .long("target-lsn")
            .value_name("LSN")
            .help("Recover up to this position"),
        Arg::new("target-xid")
            .long("target-xid")
            .value_name("XID")
            .help("Recover up to this transaction"),
        Arg::new("target-name")
            .long("target-name")
            .value_name("NAME")
            .help("Recover up to this restore point"),
        Arg::new("target-immediate")
            .long("target-immediate")
            .action(ArgAction::SetTrue)
            .help("Recover only until the copy is consistent"),
        Arg::new("target-timeline")
            .long("target-timeline")
            .value_name("TIMELINE")
            .help("Recover along this timeline: latest, current or a number"),
        Arg::new("target-action")
            .long("target-action")
            .value_name("ACTION")
            .value_parser(["pause", "promote", "shutdown"])
            .hide_possible_values(true)
            .requires("target")
            .help("What to do at the target: pause, promote or shutdown"),
        Arg::new("target-exclusive")
            .long("target-exclusive")
            .action(ArgAction::SetTrue)
            .requires("target")
            .help("Stop just before the target, not just after it"),
    ]
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let mapping = matches.get_many::<String>("tablespace-mapping");
    Ok(Args {
        pgdata: absolute_path(&path(matches, "pgdata"))?,
        name: text(matches, "name").unwrap_or_default(),
        tablespaces: Tablespaces {
            blind: matches.get_flag("blind-restore"),
            spec: text(matches, "restore-spec").map(|spec| match spec.as_str() {
                "SOURCE" => RestoreSpec::Source,
                _ => RestoreSpec::File(PathBuf::from(spec)),
            }),
            mapping: mapping
                .unwrap_or_default()
                .map(|text| old_and_new(text))
                .collect::<Result<_>>()?,
        },
        waldir: absolute(optional_path(matches, "waldir"), "--waldir")?,
        recovery: recovery(matches)?,
        keep_archiving: matches.get_flag("keep-archiving"),
        keep_replication: matches.get_flag("keep-replication"),
    })
}

fn absolute(path: Option<PathBuf>, option: &str) -> Result<Option<PathBuf>> {
    match &path {
        Some(p) if !p.is_absolute() => Err(usage(format!(
            "{option}: \"{}\" is not an absolute path",
            p.display()
        ))),
        _ => Ok(path),
    }
}

/// `OLD=NEW`, where `\=` is a plain `=`, as pg_basebackup reads it.
fn old_and_new(text: &str) -> Result<(PathBuf, PathBuf)> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("never empty");
        match c {
            '\\' if chars.peek() == Some(&'=') => last.extend(chars.next()),
            '=' => parts.push(String::new()),
            other => last.push(other),
        }
    }
    match &parts[..] {
        [old, new] if old.starts_with('/') && new.starts_with('/') => Ok((old.into(), new.into())),
        _ => Err(usage(format!(
            "--tablespace-mapping: {text:?} is not OLD=NEW with two absolute paths"
        ))
        .hint("Write = as \\= where it belongs to a path.")),
    }
}

fn recovery(matches: &ArgMatches) -> Result<Option<Recovery>> {
    let recovery = Recovery {
        target: target(matches)?,
        timeline: timeline(matches)?,
        action: text(matches, "target-action"),
        exclusive: matches.get_flag("target-exclusive"),
        standby: matches.get_flag("standby"),
        restore_command: text(matches, "restore-command"),
        wal_fetch: WalFetch {
            spool: optional_path(matches, "spool")
                .map(|path| absolute_path(&path))
                .transpose()?,
            partial: matches.get_flag("partial"),
            on_hole: text(matches, "on-hole"),
        },
    };
    let wanted = matches.get_flag("recovery")
        || recovery.target != Target::End
        || recovery.timeline.is_some()
        || recovery.standby
        || recovery.restore_command.is_some()
        || recovery.wal_fetch != WalFetch::default();
    Ok(wanted.then_some(recovery))
}

fn target(matches: &ArgMatches) -> Result<Target> {
    if let Some(text) = text(matches, "target-time") {
        return target_time(&text).map(Target::Time);
    }
    if let Some(lsn) = parsed::<Lsn>(matches, "target-lsn", "--target-lsn")? {
        return Ok(Target::Lsn(lsn));
    }
    if let Some(text) = text(matches, "target-xid") {
        let xid = text.parse();
        let xid =
            xid.map_err(|_| usage(format!("--target-xid: {text:?} is not a transaction id")))?;
        return Ok(Target::Xid(xid));
    }
    if let Some(name) = text(matches, "target-name") {
        // PostgreSQL's names are shorter than 64 bytes (MAXFNAMELEN); a longer one would never be reached.
        if name.is_empty() || name.len() > 63 || name.contains(char::is_control) {
            return Err(usage("--target-name is not the name of a restore point"));
        }
        return Ok(Target::Name(name));
    }
    Ok(match matches.get_flag("target-immediate") {
        true => Target::Immediate,
        false => Target::End,
    })
}

fn timeline(matches: &ArgMatches) -> Result<Option<String>> {
    let Some(text) = text(matches, "target-timeline") else {
        return Ok(None);
    };
    match (text.as_str(), timeline_number(&text)) {
        ("latest" | "current", _) => Ok(Some(text)),
        (_, Some(_)) => Ok(Some(text)),
        _ => Err(usage(format!(
            "--target-timeline: {text:?} is neither latest nor current nor a timeline"
        ))),
    }
}

/// PostgreSQL reads 0x… as hexadecimal, and a leading 0 as octal; the latter is nobody's intent.
fn timeline_number(text: &str) -> Option<TimelineId> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok().filter(|_| !text.starts_with('0')),
    };
    number.filter(|number| *number > 0).map(TimelineId)
}

/// Restores the backup and says how to go on.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let archive = context.archive_until(BASE_RETRY, &context.stop)?;
    check_spool(args)?;
    let backup = match moment(args) {
        Some(moment) => archive.select_for(&args.name, moment)?,
        None => archive.select(&args.name)?,
    };
    let settings = settings(context, args, backup.id.segment.timeline)?;
    if let Some(details) = &backup.sentinel.seawall {
        let segment_size = SegmentSize::new(details.segment_size)?;
        archive.remember(details.system_identifier, segment_size);
    }
    let options = Options {
        threads: context.config.download_threads(),
        placement: placement(&args.tablespaces)?,
        waldir: args.waldir.clone(),
        settings: settings.clone(),
    };
    warn_of_the_future(args, crate::work::now());
    log::info!("restoring {} into \"{}\"", backup.id, args.pgdata.display());
    let progress = Progress::new(&context.screen, "restoring", 0);
    let restored = fetch::fetch(
        &archive,
        &backup,
        &args.pgdata,
        &options,
        &progress,
        &context.stop,
    );
    progress.finish();
    let restored = restored?;
    log::info!(
        "restored {} files ({}) that match the manifest; the directory is synced",
        restored.files,
        human_bytes(restored.bytes)
    );
    advise(args, &settings);
    Ok(())
}

/// The moment at which the recovery shall end, if it is one that a backup can be too young for.
fn moment(args: &Args) -> Option<Moment> {
    match args.recovery.as_ref()?.target {
        Target::Time(time) => Some(Moment::Time(time)),
        Target::Lsn(lsn) => Some(Moment::Lsn(lsn)),
        _ => None,
    }
}

/// It is no mistake that can be proven, clocks differ: but such a recovery ends in failure, after hours perhaps.
fn warn_of_the_future(args: &Args, now: Timestamp) {
    if let Some(Moment::Time(time)) = moment(args)
        && time > now
    {
        log::warn!(
            "--target-time {time} lies in the future: PostgreSQL will replay all WAL, not find it, and end with \
             \"recovery ended before configured recovery target was reached\""
        );
    }
}

/// A directory that is not there would be noticed only at the end of the archived WAL.
fn check_spool(args: &Args) -> Result<()> {
    let asked = args.recovery.as_ref();
    let Some(spool) = asked.and_then(|recovery| recovery.wal_fetch.spool.as_ref()) else {
        return Ok(());
    };
    match disk::stat(spool)? {
        Some(found) if found.kind == disk::FileKind::Directory => Ok(()),
        _ => Err(usage(format!(
            "--spool: there is no directory \"{}\"",
            spool.display()
        ))),
    }
}

fn settings(context: &Context, args: &Args, own_timeline: TimelineId) -> Result<Settings> {
    let start = match &args.recovery {
        None => Start::Nothing,
        Some(asked) => {
            let recovery = recovery::Recovery {
                restore_command: match &asked.restore_command {
                    Some(command) => command.clone(),
                    None => restore_command(context, &fetch_options(asked, own_timeline)?)?,
                },
                target: asked.target.clone(),
                timeline: asked.timeline.clone(),
                action: asked.action.clone(),
                exclusive: asked.exclusive,
            };
            if asked.standby {
                Start::Standby(recovery)
            } else {
                Start::Recover(recovery)
            }
        }
    };
    Ok(Settings {
        start,
        keep_archiving: args.keep_archiving,
        keep_replication: args.keep_replication,
        in_place_tablespaces: false,
    })
}

fn placement(asked: &Tablespaces) -> Result<Placement> {
    let restore_spec = match &asked.spec {
        Some(RestoreSpec::File(path)) => {
            let bytes = disk::read_small(path)?;
            let spec: Spec = serde_json::from_slice(&bytes).map_err(|e| {
                Error::new(Kind::Usage, format!("\"{}\" is not a restore specification", path.display()))
                    .because(e)
                    .hint("It has the form of the sentinel's spec; seawall backup-list NAME --detail --json shows it.")
            })?;
            Some(spec)
        }
        Some(RestoreSpec::Source) | None => None,
    };
    Ok(Placement {
        blind: asked.blind,
        restore_spec,
        mapping: asked.mapping.clone(),
    })
}

/// The options of `wal-fetch`. With unfinished segments it matters on which timeline the recovery ends.
fn fetch_options(asked: &Recovery, own_timeline: TimelineId) -> Result<Vec<String>> {
    let mut options = Vec::new();
    if let Some(spool) = &asked.wal_fetch.spool {
        options.extend(["--spool".to_string(), path_text(spool)?]);
    }
    if asked.wal_fetch.partial {
        options.push("--partial".to_string());
    }
    let timeline = match asked.timeline.as_deref() {
        Some("current") => Some(own_timeline),
        None if asked.target == Target::Immediate => Some(own_timeline),
        Some(text) => timeline_number(text),
        None => None,
    };
    if let Some(timeline) = timeline.filter(|_| !options.is_empty()) {
        options.extend(["--timeline".to_string(), timeline.to_string()]);
    }
    if let Some(what) = &asked.wal_fetch.on_hole {
        options.extend(["--on-hole".to_string(), what.clone()]);
    }
    Ok(options)
}

/// The command by which the copy fetches its WAL: this program with the settings of this run. Secrets that only
/// this process has cannot be written down.
fn restore_command(context: &Context, fetch_options: &[String]) -> Result<String> {
    let program = std::env::current_exe().map_err(|e| {
        Error::io("could not find the path of this program", e).hint("Give --restore-command.")
    })?;
    let handed = context.config.handed_on()?;
    let variables = handed.variables.iter();
    let mut words: Vec<String> = variables
        .map(|(name, value)| format!("{name}={}", shell_quoted(value)))
        .collect();
    if !words.is_empty() {
        words.insert(0, "env".to_string());
    }
    words.push(shell_quoted(&path_text(&program)?));
    words.extend(context.options.iter().map(|option| shell_quoted(option)));
    words.push("wal-fetch".to_string());
    words.extend(fetch_options.iter().map(|option| shell_quoted(option)));
    let command = words.join(" ").replace('%', "%%");
    if !handed.secrets.is_empty() {
        log::warn!(
            "the server must be started with {} in its environment, or restore_command fails; an --envdir is better",
            handed.secrets.join(" and ")
        );
    }
    for origin in handed.misread {
        log::warn!(
            "{origin} is a relative path: restore_command looks for it in the copy's data directory"
        );
    }
    Ok(format!("{command} \"%f\" \"%p\""))
}

fn path_text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_string).ok_or_else(|| {
        Error::new(
            Kind::Refused,
            format!("the path {} is not UTF-8", path.display()),
        )
        .hint("Give --restore-command.")
    })
}

/// A word for the shell that PostgreSQL runs; plain ones stay readable.
fn shell_quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:=@+,".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn advise(args: &Args, settings: &Settings) {
    if disk::is_root() {
        log::warn!(
            "the restored files belong to root, and PostgreSQL refuses to run as root: give them to its user, as with chown -R postgres: \"{}\" (and the tablespaces)",
            args.pgdata.display()
        );
    }
    if !settings.keep_archiving {
        log::info!(
            "archive_mode is off in the copy, so that it cannot write into the archive it came from"
        );
    }
    if !settings.keep_replication {
        let off = "the copy runs no subscriptions and waits for no standbys: max_logical_replication_workers is 0, \
                   synchronous_standby_names is empty";
        // Only what takes production's place archives where production did, and it wants its replication too.
        match settings.keep_archiving {
            false => log::info!("{off}, so that it cannot take production's slots"),
            true => {
                log::warn!("{off}; if it takes production's place, give --keep-replication too")
            }
        }
    }
    match &settings.start {
        Start::Nothing => log::info!(
            "to use it: give it the WAL of its backup and start it; backup-fetch --recovery writes a restore_command"
        ),
        _ if matches!(disk::stat(&args.pgdata.join("postgresql.conf")), Ok(None)) => log::warn!(
            "the copy has no postgresql.conf, because production's lies outside its data directory (config_file): put a postgresql.conf, pg_hba.conf and pg_ident.conf into \"{}\" before you start it, or name others with pg_ctl -o '-c config_file=...'",
            args.pgdata.display()
        ),
        Start::Recover(_) | Start::Standby(_) => {
            log::info!(
                "start it with: pg_ctl -D \"{}\" start",
                args.pgdata.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args> {
        let words = ["backup-fetch", "/data", "LATEST"].iter().chain(words);
        let matches = command().try_get_matches_from(words);
        args(&matches.map_err(|e| usage(e.to_string()))?)
    }

    #[test]
    fn without_options_nothing_is_changed() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.recovery, None);
        assert!(!args.keep_archiving && !args.keep_replication);
        assert_eq!(args.tablespaces, Tablespaces::default());
    }

    #[test]
    fn a_target_implies_recovery() {
        let target = |words: &[&str]| parse(words).unwrap().recovery.unwrap().target;
        let time = Target::Time("2026-11-21T01:40:00Z".parse().unwrap());
        assert_eq!(target(&["--target-time", "2026-11-21 03:40:00+02"]), time);
        let lsn = Target::Lsn(Lsn(0x1_0000_00A0));
        assert_eq!(target(&["--target-lsn", "1/A0"]), lsn);
        assert_eq!(target(&["--target-xid", "731"]), Target::Xid(731));
        assert_eq!(target(&["--target-immediate"]), Target::Immediate);
        assert_eq!(target(&["--recovery"]), Target::End);
        assert_eq!(target(&["--standby"]), Target::End);
    }

    #[test]
    fn options_of_the_wal_fetch_in_the_restore_command() {
        let options = |words: &[&str]| {
            let recovery = parse(words).unwrap().recovery.expect("implied");
            fetch_options(&recovery, TimelineId(3)).unwrap().join(" ")
        };
        assert_eq!(options(&["--recovery", "--target-timeline", "2"]), "");
        assert_eq!(options(&["--partial"]), "--partial");
        assert_eq!(options(&["--spool", "/s/../t"]), "--spool /s/../t");
        let both = ["--spool", "/s", "--partial", "--target-timeline"];
        for (timeline, option) in [
            ("latest", ""),
            ("current", " --timeline 3"),
            ("2", " --timeline 2"),
            ("0x1F", " --timeline 31"),
        ] {
            let words = [&both[..], &[timeline]].concat();
            assert_eq!(options(&words), format!("--spool /s --partial{option}"));
        }
        let immediate = options(&["--partial", "--target-immediate"]);
        assert_eq!(immediate, "--partial --timeline 3");
        let to_the_hole = ["--on-hole", "absent", "--target-timeline", "2"];
        assert_eq!(options(&to_the_hole), "--on-hole absent");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wrong: &[&[&str]] = &[
            &["--target-time", "2026-11-21 03:40:00"],
            &["--target-lsn", "7"],
            &["--target-xid", "x"],
            &["--target-name", ""],
            &["--target-lsn", "0/7", "--target-xid", "7"],
            &["--target-immediate", "--standby"],
            &["--target-timeline", "newest"],
            &["--target-timeline", "0"],
            &["--target-timeline", "010"],
            &["--target-action", "promote"],
            &["--blind-restore", "--restore-spec", "SOURCE"],
            &["--spool", "/s", "--restore-command", "cp"],
            &["--partial", "--restore-command", "cp"],
            &["--tablespace-mapping", "a=/b"],
            &["--tablespace-mapping", "/a"],
            &["--tablespace-mapping", "/a=/b=/c"],
            &["--waldir", "wal"],
        ];
        for words in wrong {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn mappings() {
        let args = parse(&["-T", "/a\\=b=/c", "--tablespace-mapping", "/d=/e"]).unwrap();
        let expected = [("/a=b", "/c"), ("/d", "/e")];
        let expected = expected.map(|(old, new)| (PathBuf::from(old), PathBuf::from(new)));
        assert_eq!(args.tablespaces.mapping, expected);
    }
}
