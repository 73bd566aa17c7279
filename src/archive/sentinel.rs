//! The sentinel: the object that makes a backup exist (P5), with WAL-E's keys at the top and ours under
//! `seawall`; and `metadata.json`, which WAL-G reads of every backup.

use super::keys::BackupId;
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::pg::{Lsn, Segment, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The newest format of the `seawall` member that this version understands.
pub const FORMAT: u32 = 1;

/// The sentinel as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sentinel {
    /// The segment that holds the last byte the backup needs.
    pub wal_segment_backup_stop: String,
    /// The stop position's offset in its segment, eight decimal digits.
    pub wal_segment_offset_backup_stop: String,
    /// Raw bytes of all files.
    pub expanded_size_bytes: u64,
    /// Where the data directory and the tablespaces were.
    pub spec: Spec,
    /// Tells WAL-G that there is no files_metadata.json.
    #[serde(rename = "FilesMetadataDisabled", default)]
    pub files_metadata_disabled: bool,
    /// What seawall adds; absent in a sentinel of WAL-E.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seawall: Option<Details>,
}

/// WAL-E's `spec`: the data directory, the tablespaces' OIDs, and for each OID where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The data directory at backup time.
    pub base_prefix: String,
    /// OIDs as text, in order.
    pub tablespaces: Vec<String>,
    /// Location and link of each.
    #[serde(flatten)]
    pub locations: BTreeMap<String, TablespaceSpec>,
}

/// One tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceSpec {
    /// Absolute path of its directory.
    pub loc: String,
    /// Its link relative to the data directory, `pg_tblspc/<oid>`.
    pub link: String,
}

/// How a backup was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Files read on the server's host.
    Local,
    /// One BASE_BACKUP stream.
    Remote,
    /// Files of a server that is shut down.
    Offline,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Local => "local",
            Mode::Remote => "remote",
            Mode::Offline => "offline",
        })
    }
}

/// The `seawall` member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Details {
    /// Format of this member.
    pub format: u32,
    /// The seawall that wrote it.
    pub tool_version: String,
    /// The cluster.
    pub system_identifier: SystemId,
    /// `server_version_num`.
    pub server_version: u32,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// The timeline at start and stop.
    pub timeline: u32,
    /// First WAL position that recovery needs.
    pub start_lsn: String,
    /// Position at which the copy becomes consistent.
    pub stop_lsn: String,
    /// RFC 3339, UTC.
    pub start_time: String,
    /// RFC 3339, UTC; orders the backups.
    pub finish_time: String,
    /// The host that took it.
    pub host: String,
    /// How it was made.
    pub mode: Mode,
    /// The operator's label.
    pub label: String,
    /// The manifest's object.
    pub manifest: Object,
    /// The tar parts, in order.
    pub parts: Vec<Object>,
    /// Files whose pages failed their checksum.
    pub page_checksums: PageChecksums,
}

/// One stored object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Key relative to the prefix.
    pub key: String,
    /// Stored bytes.
    pub stored_bytes: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// SHA-256 of the stored bytes, hexadecimal.
    pub sha256: String,
    /// `zstd`, `gzip` or `lz4`.
    pub codec: String,
    /// The key it is encrypted with; none.
    pub key_id: Option<String>,
}

/// The result of checking page checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageChecksums {
    /// Whether pages were checked: by us, or by the server while it sent them.
    pub checked: bool,
    /// Pages found bad after reading them again, or what the server reported.
    pub bad_pages: u64,
    /// The first of them, as `path, block n`.
    pub first_bad: Vec<String>,
}

/// `metadata.json`, in the shape that WAL-G's `backup-list --detail`, `wal-show`, `wal-verify`, `delete` and
/// `backup-mark` read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// RFC 3339, UTC, microseconds.
    pub start_time: String,
    /// RFC 3339, UTC, microseconds.
    pub finish_time: String,
    /// The format of the two above in strftime's words.
    pub date_fmt: String,
    /// The host that took the backup.
    pub hostname: String,
    /// The data directory.
    pub data_dir: String,
    /// `server_version_num`.
    pub pg_version: u32,
    /// Start position as a number.
    pub start_lsn: u64,
    /// Stop position as a number.
    pub finish_lsn: u64,
    /// The pin.
    pub is_permanent: bool,
    /// The cluster, as a number.
    pub system_identifier: u64,
    /// Raw bytes.
    pub uncompressed_size: u64,
    /// Stored bytes.
    pub compressed_size: u64,
    /// The pin's reason and time.
    #[serde(default)]
    pub user_data: serde_json::Value,
}

impl Details {
    /// Start position.
    pub fn start(&self) -> Result<Lsn> {
        self.start_lsn.parse()
    }

    /// Stop position.
    pub fn stop(&self) -> Result<Lsn> {
        self.stop_lsn.parse()
    }

    /// When it was begun.
    pub fn started(&self) -> Result<Timestamp> {
        Timestamp::parse_rfc3339(&self.start_time)
    }

    /// When it was finished.
    pub fn finished(&self) -> Result<Timestamp> {
        Timestamp::parse_rfc3339(&self.finish_time)
    }

    /// Stored bytes of all parts.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.stored_bytes).sum()
    }

    /// The WAL segments from start to the last one needed, in order.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let size = SegmentSize::new(self.segment_size)?;
        needed_segments(TimelineId(self.timeline), self.start()?, self.stop()?, size)
    }
}

/// The segments that a backup from `start` to `stop` needs: those with bytes in start..stop.
pub fn needed_segments(
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
    size: SegmentSize,
) -> Result<Vec<Segment>> {
    if stop <= start || stop.0 - start.0 > u64::from(u32::MAX) * size.bytes() {
        return Err(Error::new(
            Kind::Corrupt,
            format!("a backup cannot last from {start} to {stop}"),
        ));
    }
    let mut segment = Segment::holding(timeline, start, size);
    let last = Segment::holding(timeline, Lsn(stop.0 - 1), size);
    let mut segments = vec![segment];
    while segment != last {
        segment = segment.next(size)?;
        segments.push(segment);
    }
    Ok(segments)
}

impl Sentinel {
    /// WAL-E's keys and ours for a finished backup.
    pub fn new(details: Details, spec: Spec, expanded_size_bytes: u64) -> Result<Sentinel> {
        let size = SegmentSize::new(details.segment_size)?;
        let stop = details.stop()?;
        let last = Segment::holding(TimelineId(details.timeline), stop, size);
        Ok(Sentinel {
            wal_segment_backup_stop: last.to_string(),
            wal_segment_offset_backup_stop: format!("{:08}", stop.0 % size.bytes()),
            expanded_size_bytes,
            spec,
            files_metadata_disabled: true,
            seawall: Some(details),
        })
    }

    /// Our member, or why this backup cannot be used by this version.
    pub fn details(&self, id: &BackupId) -> Result<&Details> {
        let details = self.seawall.as_ref().ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("backup {id} was written by another tool"),
            )
            .hint("Restore it with the tool that wrote it.")
        })?;
        if details.format > FORMAT {
            return Err(Error::new(
                Kind::Unavailable,
                format!("backup {id} has format {}", details.format),
            )
            .detail(format!("This seawall knows formats up to {FORMAT}."))
            .hint("Use a newer seawall for this backup."));
        }
        Ok(details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_needed_segment_holds_the_byte_before_stop() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let cases = [
            ("0/100028", "0/100100", 1),
            ("0/100028", "0/200000", 1),
            ("0/100028", "0/200001", 2),
            ("0/0", "0/500000", 5),
        ];
        for (start, stop, count) in cases {
            let segments = needed_segments(
                TimelineId(1),
                start.parse().unwrap(),
                stop.parse().unwrap(),
                size,
            )
            .unwrap();
            assert_eq!(segments.len(), count, "{start} {stop}");
        }
        for (start, stop) in [
            ("0/100", "0/100"),
            ("0/200", "0/100"),
            ("0/0", "FFFFFFFF/0"),
        ] {
            assert!(
                needed_segments(
                    TimelineId(1),
                    start.parse().unwrap(),
                    stop.parse().unwrap(),
                    size
                )
                .is_err()
            );
        }
    }
}
