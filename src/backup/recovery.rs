//! What a restored copy is told about itself: never production's archiving or replication, and, if asked for, how
//! to recover and how far.

use super::target::file_mode_in;
use crate::disk::durable::{NewFile, Publish};
use crate::disk::{self};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use std::io::Write;
use std::path::Path;

/// Where recovery stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// At the end of WAL.
    End,
    /// At a moment.
    Time(Timestamp),
    /// At a WAL position.
    Lsn(crate::pg::Lsn),
    /// After a transaction.
    Xid(u64),
    /// At a restore point.
    Name(String),
    /// As soon as the copy is consistent.
    Immediate,
}

/// What the copy does when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is configured: it starts from the backup alone, if its WAL is at hand.
    Nothing,
    /// `recovery.signal`: recover to the target.
    Recover(Recovery),
    /// `standby.signal`: follow the archive.
    Standby(Recovery),
}

/// The settings of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The complete `restore_command`.
    pub restore_command: String,
    /// Where to stop.
    pub target: Target,
    /// `--target-timeline`: `latest`, `current` or a number.
    pub timeline: Option<String>,
    /// `--target-action`: `pause`, `promote` or `shutdown`.
    pub action: Option<String>,
    /// Stop before the target instead of after it.
    pub exclusive: bool,
}

/// Everything that is written into the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it does when started.
    pub start: Start,
    /// `--keep-archiving`: leave `archive_mode` as it was.
    pub keep_archiving: bool,
    /// `--keep-replication`: leave subscriptions and synchronous standbys as they were.
    pub keep_replication: bool,
    /// Plain directories in `pg_tblspc` are accepted during recovery.
    pub in_place_tablespaces: bool,
}

/// Settings of the production server that a copy must not inherit.
const NOT_INHERITED: &[&str] = &[
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "promote_trigger_file",
    "primary_conninfo",
    "primary_slot_name",
];

/// Settings that may stand in postgresql.conf or in a file that it includes, where we do not change them; what stands
/// in postgresql.auto.conf counts last. A second target is fatal, production's archive_cleanup_command would remove
/// WAL from production's archive, and its recovery_end_command or slot is production's business.
const EMPTIED: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "archive_cleanup_command",
    "recovery_end_command",
    "primary_conninfo",
    "primary_slot_name",
];

const AUTO_CONF: &str = "postgresql.auto.conf";

/// Writes signal file and settings into the restored `data` directory.
pub fn write(data: &Path, settings: &Settings) -> Result<()> {
    let path = data.join(AUTO_CONF);
    let before = match disk::read_small(&path) {
        Err(e) if e.kind() == Kind::Missing => Vec::new(),
        other => other?,
    };
    let text = auto_conf(&before, settings)?;
    let mode = file_mode_in(data)?;
    replace(&path, mode, &text)?;
    match &settings.start {
        Start::Nothing => Ok(()),
        Start::Recover(_) => replace(&data.join("recovery.signal"), mode, b""),
        Start::Standby(_) => replace(&data.join("standby.signal"), mode, b""),
    }?;
    warn_of_settings_elsewhere(data, &lines(settings)?);
    Ok(())
}

fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path, mode)?;
    file.write_all(bytes)
        .map_err(|e| Error::io(format!("could not write \"{}\"", path.display()), e))?;
    file.publish(Publish::Replace)
}

/// The new `postgresql.auto.conf`: what must not be inherited is commented out, ours is appended. The rest stays byte
/// for byte: values are in the encoding of the database in which somebody set them.
fn auto_conf(before: &[u8], settings: &Settings) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for line in before.split_inclusive(|byte| *byte == b'\n') {
        if setting_of(line).is_some_and(|name| NOT_INHERITED.contains(&name.as_str())) {
            text.extend_from_slice(b"# commented out by seawall backup-fetch: ");
        }
        text.extend_from_slice(line);
    }
    if text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    let ours = lines(settings)?;
    if !ours.is_empty() {
        text.extend_from_slice(b"# added by seawall backup-fetch\n");
    }
    for (name, value) in ours {
        text.extend_from_slice(format!("{name} = '{}'\n", quoted(&value)).as_bytes());
    }
    Ok(text)
}

/// The inside of a text in a configuration file: a backslash begins an escape there, as in C.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

fn lines(settings: &Settings) -> Result<Vec<(&'static str, String)>> {
    let mut lines = Vec::new();
    if !settings.keep_archiving {
        lines.push(("archive_mode", "off".to_string()));
    }
    if !settings.keep_replication {
        // A subscription of the copy would take production's slot, and what is sent to the copy is sent only once; a
        // commit of the copy would wait for standbys that follow production.
        lines.push(("max_logical_replication_workers", "0".to_string()));
        lines.push(("synchronous_standby_names", String::new()));
    }
    if settings.in_place_tablespaces {
        lines.push(("allow_in_place_tablespaces", "on".to_string()));
    }
    let (Start::Recover(recovery) | Start::Standby(recovery)) = &settings.start else {
        return Ok(lines);
    };
    if recovery.restore_command.contains('\n') {
        return Err(Error::new(
            Kind::Usage,
            "a restore_command cannot contain a line break",
        ));
    }
    lines.push(("restore_command", recovery.restore_command.clone()));
    // Beyond consistency another timeline would still be followed: stay on the backup's own.
    let mut timeline = recovery.timeline.clone();
    match &recovery.target {
        Target::End => {}
        Target::Time(time) => lines.push(("recovery_target_time", time.postgres())),
        Target::Lsn(lsn) => lines.push(("recovery_target_lsn", lsn.to_string())),
        Target::Xid(xid) => lines.push(("recovery_target_xid", xid.to_string())),
        Target::Name(name) => lines.push(("recovery_target_name", name.clone())),
        Target::Immediate => {
            lines.push(("recovery_target", "immediate".to_string()));
            timeline = timeline.or(Some("current".to_string()));
        }
    }
    if let Some(timeline) = timeline {
        lines.push(("recovery_target_timeline", timeline));
    }
    if recovery.exclusive {
        lines.push(("recovery_target_inclusive", "off".to_string()));
    }
    if let Some(action) = &recovery.action {
        lines.push(("recovery_target_action", action.clone()));
    }
    // The server applies settings in this order, and one that is emptied after the target counts as a second target.
    let emptied = EMPTIED.iter().filter(|name| !is_set(&lines, name));
    let mut all: Vec<_> = emptied.map(|name| (*name, String::new())).collect();
    all.append(&mut lines);
    Ok(all)
}

fn is_set(lines: &[(&str, String)], name: &str) -> bool {
    lines.iter().any(|(set, _)| *set == name)
}

/// RFC 3339 or PostgreSQL's form. A target time without offset would be read in the server's time zone, whatever that
/// is; there is no WAL from before 1970, and PostgreSQL does not read the year 0.
pub fn target_time(text: &str) -> Result<Timestamp> {
    let parsed = Timestamp::parse_rfc3339(text).ok();
    parsed.filter(|time| time.0 >= 0).ok_or_else(|| {
        Error::new(
            Kind::Usage,
            format!("\"{text}\" is not a target time with a UTC offset"),
        )
        .hint("Write it as in 2026-11-21 14:03:00+01:00, or 2026-11-21T13:03:00Z.")
    })
}

/// The name before `=` of a line in a configuration file, in lower case; `None` for comments and empty lines.
fn setting_of(line: &[u8]) -> Option<String> {
    let name = line.trim_ascii_start().iter();
    let name = name.take_while(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(byte));
    let name: String = name.map(|byte| byte.to_ascii_lowercase() as char).collect();
    (!name.is_empty()).then_some(name)
}

/// What postgresql.conf sets and ours does not override; that file is the operator's and is restored as it was.
fn warn_of_settings_elsewhere(data: &Path, ours: &[(&str, String)]) {
    let Ok(bytes) = disk::read_small(&data.join("postgresql.conf")) else {
        return;
    };
    let inherited = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(setting_of)
        .filter(|name| NOT_INHERITED.contains(&name.as_str()) && !is_set(ours, name));
    for name in inherited {
        log::warn!("postgresql.conf of the copy sets {name}; check it before you start the server");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(target: Target) -> Recovery {
        let restore_command = "seawall wal-fetch '%f' \"%p\"".to_string();
        Recovery {
            restore_command,
            target,
            timeline: None,
            action: None,
            exclusive: false,
        }
    }

    fn written(before: &str, start: Start, keep: bool) -> String {
        let settings = Settings {
            start,
            keep_archiving: keep,
            keep_replication: keep,
            in_place_tablespaces: false,
        };
        String::from_utf8(auto_conf(before.as_bytes(), &settings).unwrap()).unwrap()
    }

    #[test]
    fn productions_archiving_and_replication_stay_behind() {
        let before = "work_mem = '1GB'\nprimary_conninfo = 'host=p'\n  Recovery_Target_Time='x'\nrestore_command = 'cp'\n";
        assert_eq!(
            written(before, Start::Nothing, false),
            "work_mem = '1GB'\n\
             # commented out by seawall backup-fetch: primary_conninfo = 'host=p'\n\
             # commented out by seawall backup-fetch:   Recovery_Target_Time='x'\n\
             # commented out by seawall backup-fetch: restore_command = 'cp'\n\
             # added by seawall backup-fetch\n\
             archive_mode = 'off'\n\
             max_logical_replication_workers = '0'\n\
             synchronous_standby_names = ''\n"
        );
        assert_eq!(written("a = 1\n", Start::Nothing, true), "a = 1\n");
    }

    #[test]
    fn values_in_any_encoding_stay_as_they_are() {
        let settings = Settings {
            start: Start::Nothing,
            keep_archiving: true,
            keep_replication: true,
            in_place_tablespaces: false,
        };
        for (before, after) in [
            (
                &b"application_name = 'caf\xe9'\r\n\n\xff"[..],
                &b"application_name = 'caf\xe9'\r\n\n\xff\n"[..],
            ),
            (
                b"restore_command = '\xe9'\n",
                b"# commented out by seawall backup-fetch: restore_command = '\xe9'\n",
            ),
            (b"", b""),
        ] {
            assert_eq!(auto_conf(before, &settings).unwrap(), after);
        }
    }

    #[test]
    fn one_target_is_written_with_its_companions() {
        let text = written("", Start::Recover(recovery(Target::Immediate)), false);
        assert!(text.contains("restore_command = 'seawall wal-fetch ''%f'' \"%p\"'\n"));
        assert!(
            text.contains("recovery_target = 'immediate'\nrecovery_target_timeline = 'current'\n")
        );
        let settings = Recovery {
            timeline: Some("3".into()),
            action: Some("promote".into()),
            exclusive: true,
            ..recovery(Target::Lsn("0/3000060".parse().unwrap()))
        };
        let text = written("", Start::Recover(settings), false);
        assert!(text.contains(
            "recovery_target_lsn = '0/3000060'\nrecovery_target_timeline = '3'\nrecovery_target_inclusive = 'off'\nrecovery_target_action = 'promote'\n"
        ));
    }

    #[test]
    fn what_postgresql_conf_may_set_is_overridden() {
        let text = written("", Start::Recover(recovery(Target::Xid(7))), false);
        assert!(text.contains("recovery_target_xid = '7'\n"));
        for name in EMPTIED
            .iter()
            .filter(|name| **name != "recovery_target_xid")
        {
            // Emptied after the target it would count as a second one.
            let emptied = text.find(&format!("\n{name} = ''\n"));
            assert!(emptied < text.find("recovery_target_xid"), "{name}: {text}");
            assert!(emptied.is_some(), "{name}: {text}");
        }
        let text = written(
            "archive_cleanup_command = 'rm %r'\nrecovery_end_command='x'\n",
            Start::Nothing,
            true,
        );
        assert_eq!(text.matches("# commented out").count(), 2, "{text}");
    }

    #[test]
    fn a_backslash_does_not_begin_an_escape() {
        let mut settings = recovery(Target::End);
        settings.restore_command = r"'/a'\''b\n' %f".to_string();
        let text = written("", Start::Recover(settings), false);
        let expected = r"restore_command = '''/a''\\''''b\\n'' %f'";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_target_time_needs_its_offset() {
        for (fine, written) in [
            ("2026-11-21 14:03:00+01:00", "2026-11-21 13:03:00.000000+00"),
            ("2026-11-21T13:03:00Z", "2026-11-21 13:03:00.000000+00"),
            (
                " 2026-11-21t23:03:00.5-08 ",
                "2026-11-22 07:03:00.500000+00",
            ),
        ] {
            let target = Target::Time(target_time(fine).unwrap());
            let text = self::written("", Start::Recover(recovery(target)), false);
            let line = format!("recovery_target_time = '{written}'\n");
            assert!(text.contains(&line), "{fine}: {text}");
        }
        for bad in [
            "2026-11-21 14:03:00",
            "yesterday",
            "",
            "14:03+01:00",
            "2026-13-21 14:03:00+01:00",
            "0000-11-21 14:03:00+01:00",
        ] {
            assert_eq!(target_time(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }
}
