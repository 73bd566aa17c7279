//! The replication commands that are not streams, and the texts of those that are.

use super::base_backup::BackupRequest;
use super::codec;
use super::conn::Conn;
use crate::error::{Error, Kind, Result};
use crate::pg::version::{CommandForm, ServerVersion};
use crate::pg::{Lsn, SegmentSize, SystemId, TimelineId};

/// The answer to IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_id: SystemId,
    /// Its timeline now.
    pub timeline: TimelineId,
    /// WAL is durable up to here.
    pub flush: Lsn,
}

impl Conn {
    /// Who the server is; in a replication session.
    pub fn identify_system(&mut self) -> Result<Identity> {
        let rows = self.query("IDENTIFY_SYSTEM")?;
        let strange = |what: &str| {
            Error::new(
                Kind::Protocol,
                "the server's answer to IDENTIFY_SYSTEM is not understood",
            )
            .detail(format!(
                "Its {what} is \"{}\".",
                rows.get(0, what).unwrap_or_default()
            ))
        };
        let timeline = rows.need(0, "timeline")?.parse().ok().filter(|id| *id > 0);
        Ok(Identity {
            system_id: rows
                .need(0, "systemid")?
                .parse()
                .map_err(|_| strange("systemid"))?,
            timeline: TimelineId(timeline.ok_or_else(|| strange("timeline"))?),
            flush: rows
                .need(0, "xlogpos")?
                .parse()
                .map_err(|_| strange("xlogpos"))?,
        })
    }

    /// The text of a timeline's history file, as it is in the server's pg_wal; in a replication session.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<String> {
        let rows = self.query(&format!("TIMELINE_HISTORY {}", timeline.0))?;
        rows.need(0, "content").map(str::to_string)
    }

    /// The same with the name of the file and byte by byte: for a copy that must be the server's, whatever encoding the
    /// reasons in it are in. A server that names another file is `Kind::Protocol`.
    pub fn timeline_history_raw(&mut self, timeline: TimelineId) -> Result<(String, Vec<u8>)> {
        let row = self.query_row_bytes(&format!("TIMELINE_HISTORY {}", timeline.0))?;
        let [name, content] = <[_; 2]>::try_from(row)
            .map_err(|_| codec::malformed("A timeline history is a name and a content."))?;
        let due = timeline.history_name();
        if name != due.as_bytes() {
            let name = String::from_utf8_lossy(&name);
            return Err(Error::new(
                Kind::Protocol,
                "the server sent another file than the timeline history that was asked for",
            )
            .detail(format!("It is {name:?}, not {due:?}.")));
        }
        Ok((due, content))
    }

    /// The size of the server's WAL segments, in either kind of session.
    pub fn wal_segment_size(&mut self) -> Result<SegmentSize> {
        let text = self.show("wal_segment_size")?;
        SegmentSize::from_setting(&text)
            .map_err(|e| e.context(format!("the server says wal_segment_size is \"{text}\"")))
    }

    /// The mode of the server's data directory, 0o700 or 0o750, in either kind of session.
    pub fn data_directory_mode(&mut self) -> Result<u32> {
        let text = self.show("data_directory_mode")?;
        u32::from_str_radix(text.trim(), 8).map_err(|cause| {
            Error::new(
                Kind::Protocol,
                format!("the server says data_directory_mode is \"{text}\""),
            )
            .because(cause)
        })
    }

    /// A setting of the server, in either kind of session.
    pub fn show(&mut self, name: &str) -> Result<String> {
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(known) {
            return Err(Error::new(
                Kind::Bug,
                format!("\"{name}\" is not the name of a setting"),
            ));
        }
        let rows = self.query(&format!("SHOW {name}"))?;
        let value = rows.rows.first().and_then(|row| row.first()?.clone());
        value.ok_or_else(|| Error::new(Kind::Protocol, format!("the server shows no \"{name}\"")))
    }
}

/// BASE_BACKUP in the grammar of the server's version: words before 15, a list of options since. The server waits for
/// no archiving (we look at the archive ourselves) and sends no tablespace_map: whoever unpacks a tar part by hand
/// must not be led to the places of the running server.
pub(super) fn base_backup(request: &BackupRequest, version: ServerVersion) -> String {
    match version.command_form() {
        CommandForm::List => format!("BASE_BACKUP ({})", options(request).join(", ")),
        CommandForm::Keywords => format!("BASE_BACKUP {}", words(request).join(" ")),
    }
}

fn options(request: &BackupRequest) -> Vec<String> {
    let mut list = vec![
        format!("LABEL {}", quoted(&request.label)),
        "PROGRESS".to_string(),
        format!(
            "CHECKPOINT '{}'",
            if request.fast { "fast" } else { "spread" }
        ),
        "WAIT false".to_string(),
        format!("VERIFY_CHECKSUMS {}", request.verify_checksums),
    ];
    if let Some(rate) = request.max_rate_kib {
        list.push(format!("MAX_RATE {rate}"));
    }
    if request.manifest {
        list.push("MANIFEST 'yes'".to_string());
        list.push(format!(
            "MANIFEST_CHECKSUMS {}",
            quoted(&request.manifest_checksums)
        ));
    }
    list
}

fn words(request: &BackupRequest) -> Vec<String> {
    let mut list = vec![
        format!("LABEL {}", quoted(&request.label)),
        "PROGRESS".to_string(),
    ];
    if request.fast {
        list.push("FAST".to_string());
    }
    list.push("NOWAIT".to_string());
    if let Some(rate) = request.max_rate_kib {
        list.push(format!("MAX_RATE {rate}"));
    }
    if !request.verify_checksums {
        list.push("NOVERIFY_CHECKSUMS".to_string());
    }
    if request.manifest {
        list.push("MANIFEST 'yes'".to_string());
        list.push(format!(
            "MANIFEST_CHECKSUMS {}",
            quoted(&request.manifest_checksums)
        ));
    }
    list
}

/// START_REPLICATION, in the grammar of all versions.
pub(super) fn start_replication(slot: Option<&str>, start: Lsn, timeline: TimelineId) -> String {
    let slot = slot.map_or(String::new(), |name| format!("SLOT {} ", identifier(name)));
    format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")
}

/// A name of the replication grammar. It knows no quotes in names, no slot has any, and doubled they are a syntax error
/// rather than the end of the name. Whether it is a good name otherwise is the server's to say.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A literal of the replication grammar: quotes are doubled, backslashes mean nothing.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_replication_quotes_the_slot() {
        let (lsn, timeline) = (Lsn(0x16_B300_0000), TimelineId(12));
        assert_eq!(
            start_replication(None, lsn, timeline),
            "START_REPLICATION PHYSICAL 16/B3000000 TIMELINE 12"
        );
        assert_eq!(
            start_replication(Some("a\" \\b"), lsn, timeline),
            "START_REPLICATION SLOT \"a\"\" \\b\" PHYSICAL 16/B3000000 TIMELINE 12"
        );
    }

    #[test]
    fn base_backup_by_version() {
        let full = BackupRequest {
            label: "it's \\ me".to_string(),
            fast: true,
            max_rate_kib: Some(1024),
            manifest: true,
            manifest_checksums: "CRC32C".to_string(),
            verify_checksums: false,
        };
        let bare = BackupRequest {
            label: "x".to_string(),
            manifest: false,
            ..BackupRequest::default()
        };
        let cases = [
            (
                &full,
                14,
                "BASE_BACKUP LABEL 'it''s \\ me' PROGRESS FAST NOWAIT MAX_RATE 1024 NOVERIFY_CHECKSUMS MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'",
            ),
            (
                &full,
                15,
                "BASE_BACKUP (LABEL 'it''s \\ me', PROGRESS, CHECKPOINT 'fast', WAIT false, VERIFY_CHECKSUMS false, MAX_RATE 1024, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')",
            ),
            (&bare, 13, "BASE_BACKUP LABEL 'x' PROGRESS NOWAIT"),
            (
                &bare,
                18,
                "BASE_BACKUP (LABEL 'x', PROGRESS, CHECKPOINT 'spread', WAIT false, VERIFY_CHECKSUMS true)",
            ),
        ];
        for (request, major, text) in cases {
            assert_eq!(base_backup(request, ServerVersion(major * 10_000)), text);
        }
    }
}
