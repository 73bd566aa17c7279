//! The replication commands that are not streams, and the text of BASE_BACKUP.

use super::base_backup::BackupRequest;
use super::conn::Conn;
use crate::error::{Error, Kind, Result};
use crate::pg::version::{CommandForm, ServerVersion};
use crate::pg::{Lsn, SystemId, TimelineId};

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

/// A literal of the replication grammar: quotes are doubled, backslashes mean nothing.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
