//! BackupLabel: the file `backup_label` of a backup, and the backup history file that goes into the archive.
//!
//! Format (PostgreSQL, `xlogbackup.c`): lines `NAME: value`. The label is the user's text, in whatever encoding, and
//! may even hold line breaks and what looks like other lines. So of each line is known on which side of it PostgreSQL
//! writes it: what decides is believed only before the line `LABEL`, the rest only from the last `START TIMELINE` on.

use super::{Lsn, Segment, TimelineId};
use crate::error::{Error, Kind, Result};

/// Where a backup's WAL begins and ends, and what it was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Replay must begin here.
    pub start: Lsn,
    /// The segment that holds `start`; names the timeline.
    pub segment: Segment,
    /// The checkpoint that `start` belongs to.
    pub checkpoint: Lsn,
    /// The timeline on which the backup began.
    pub timeline: TimelineId,
    /// Whether the backup was taken from a standby.
    pub from_standby: bool,
    /// `streamed` for every backup since 15; older servers also had `pg_start_backup`.
    pub method: String,
    /// When the backup began, in the server's own zone and words.
    pub start_time: String,
    /// The user's text, its first line.
    pub label: String,
    /// Where the backup ended; only in a backup history file.
    pub stop: Option<Lsn>,
    /// Whether it is an incremental backup, which alone restores nothing.
    pub incremental: bool,
}

impl BackupLabel {
    /// Parses `backup_label`, or a backup history file.
    pub fn parse(text: &str) -> Result<BackupLabel> {
        let (head, label, tail) = around_label(text);
        let (start, segment) = position(head, "START WAL LOCATION")?
            .ok_or_else(|| bad("It does not say where the WAL starts."))?;
        let checkpoint = field(head, "CHECKPOINT LOCATION")
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| bad("It does not say where its checkpoint is."))?;
        let label = BackupLabel {
            start,
            segment,
            checkpoint,
            timeline: segment.timeline,
            from_standby: field(head, "BACKUP FROM") == Some("standby"),
            method: field(head, "BACKUP METHOD").unwrap_or_default().to_string(),
            start_time: field(head, "START TIME").unwrap_or_default().to_string(),
            label: field(label, "LABEL").unwrap_or_default().to_string(),
            stop: position(head, "STOP WAL LOCATION")?.map(|(lsn, _)| lsn),
            incremental: field(tail, "INCREMENTAL FROM LSN").is_some(),
        };
        label.check(tail)?;
        Ok(label)
    }

    /// The places must agree with each other, as PostgreSQL itself checks before recovery.
    fn check(&self, tail: &str) -> Result<()> {
        if let Some(stated) = field(tail, "START TIMELINE")
            && stated.parse() != Ok(self.timeline.0)
        {
            return Err(bad(&format!(
                "It says timeline {stated} and segment {}.",
                self.segment
            )));
        }
        if self.checkpoint < self.start {
            return Err(bad("Its checkpoint lies before its start."));
        }
        if self.stop.is_some_and(|stop| stop < self.start) {
            return Err(bad("Its end lies before its start."));
        }
        Ok(())
    }
}

/// What stands before the label, the label and what follows it, and of that what the label cannot hold.
fn around_label(text: &str) -> (&str, &str, &str) {
    let (head, rest) = text.split_at(line_start(text.find("\nLABEL: "), text));
    let tail = &rest[line_start(rest.rfind("\nSTART TIMELINE: "), rest)..];
    (head, rest, tail)
}

fn line_start(newline: Option<usize>, text: &str) -> usize {
    newline.map_or(text.len(), |at| at + 1)
}

/// The value of the first line with this name.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A line `X/X (file <24 hex>)`.
fn position(text: &str, name: &str) -> Result<Option<(Lsn, Segment)>> {
    let Some(value) = field(text, name) else {
        return Ok(None);
    };
    let parsed = value.split_once(" (file ").and_then(|(lsn, file)| {
        let segment = Segment::parse(file.strip_suffix(')')?)?;
        Some((lsn.parse().ok()?, segment))
    });
    parsed
        .map(Some)
        .ok_or_else(|| bad(&format!("Its line \"{name}\" cannot be read.")))
}

fn bad(detail: &str) -> Error {
    Error::new(Kind::Corrupt, "this is not a usable backup_label").detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pg_stop_backup() of PostgreSQL 13 returned it; 15 and later differ in `primary`.
    const REAL: &str = "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n\
        CHECKPOINT LOCATION: 0/3000060\nBACKUP METHOD: streamed\nBACKUP FROM: master\n\
        START TIME: 2026-11-21 04:14:06 UTC\nLABEL: it's ü\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_a_real_label() {
        let label = BackupLabel::parse(REAL).unwrap();
        let expected = BackupLabel {
            start: Lsn(0x3000028),
            segment: Segment::parse("000000010000000000000003").unwrap(),
            checkpoint: Lsn(0x3000060),
            timeline: TimelineId(1),
            from_standby: false,
            method: "streamed".to_string(),
            start_time: "2026-11-21 04:14:06 UTC".to_string(),
            label: "it's ü".to_string(),
            stop: None,
            incremental: false,
        };
        assert_eq!(label, expected);
    }

    #[test]
    fn reads_variants() {
        let standby = REAL.replace("master", "standby");
        assert!(BackupLabel::parse(&standby).unwrap().from_standby);

        let broken_line = REAL.replace("it's ü", "two\nlines");
        assert_eq!(BackupLabel::parse(&broken_line).unwrap().label, "two");

        let stop = "STOP WAL LOCATION: 0/3000100 (file 000000010000000000000003)\n";
        let history = REAL.replace("CHECKPOINT", &format!("{stop}CHECKPOINT"));
        assert_eq!(
            BackupLabel::parse(&history).unwrap().stop,
            Some(Lsn(0x3000100))
        );

        // A label that says it all again, and otherwise, changes nothing.
        let forged = "x\nSTART WAL LOCATION: 0/1 (file 000000070000000000000001)\nSTART TIMELINE: 7\n\
            STOP WAL LOCATION: 0/1 (file 000000070000000000000001)\nBACKUP FROM: standby\n\
            INCREMENTAL FROM LSN: 0/1\nCHECKPOINT LOCATION: 0/0\nLABEL: y";
        let expected = BackupLabel {
            label: "x".to_string(),
            ..BackupLabel::parse(REAL).unwrap()
        };
        let text = REAL.replace("it's ü", forged);
        assert_eq!(BackupLabel::parse(&text).unwrap(), expected);

        let incremental = format!("{REAL}INCREMENTAL FROM LSN: 0/2000028\n");
        assert!(BackupLabel::parse(&incremental).unwrap().incremental);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for (from, to) in [
            ("START WAL LOCATION: 0/3000028", "START WAL LOCATION: x"),
            ("START WAL", "WAL"),
            ("(file 000000010000000000000003)", "(file 3)"),
            ("CHECKPOINT LOCATION: 0/3000060", "CHECKPOINT LOCATION: "),
            (
                "CHECKPOINT LOCATION: 0/3000060",
                "CHECKPOINT LOCATION: 0/3000000",
            ),
            ("TIMELINE: 1", "TIMELINE: 2"),
        ] {
            let error = BackupLabel::parse(&REAL.replace(from, to)).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{to}");
        }
        assert!(BackupLabel::parse("").is_err());
    }
}
