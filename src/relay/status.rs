//! The status file: what a running relay tells of itself, written beside its WAL and replaced in one step, so that
//! `seawall status` needs neither the database nor the process.

use crate::disk::{self, durable};
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The status file's name in a spool directory.
pub const FILE_NAME: &str = "seawall-status.json";

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Format of this document.
    pub format: u32,
    /// The seawall that wrote it.
    pub tool_version: String,
    /// Its process.
    pub pid: u32,
    /// When it was written, RFC 3339, UTC.
    pub updated: String,
    /// `starting`, `connecting`, `streaming`, `paused`, `waiting`, `stopped`.
    pub state: String,
    /// Where the server is.
    pub server: String,
    /// Since when it is connected, RFC 3339, UTC.
    pub connected_since: Option<String>,
    /// The slot, if one is used.
    pub slot: Option<String>,
    /// The cluster.
    pub system_identifier: String,
    /// The timeline that is being received.
    pub timeline: Option<u32>,
    /// Up to where the server said that it has WAL.
    pub server_lsn: Option<String>,
    /// Up to where it arrived.
    pub received: Option<Position>,
    /// Up to where it was handed to the kernel.
    pub written: Option<Position>,
    /// Up to where it survives power loss here.
    pub flushed: Option<Position>,
    /// Up to where the archive has it without a hole; none while nothing is uploaded.
    pub archived: Option<Position>,
    /// The directory.
    pub spool: Spool,
    /// The last thing that went wrong.
    pub last_error: Option<Trouble>,
}

/// Something that went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When, RFC 3339, UTC.
    pub at: String,
    /// What.
    pub message: String,
}

/// A position and how far it is behind the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The position.
    pub lsn: String,
    /// How far it is behind.
    pub lag: Lag,
}

/// A distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// In bytes of WAL.
    pub bytes: u64,
    /// In seconds since the server had more than that.
    pub seconds: u64,
}

/// What lies in the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spool {
    /// Its path.
    pub directory: String,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Whole segments that wait for the archive; none while nothing is uploaded.
    pub waiting: Option<u64>,
}

impl Document {
    /// Replaces the file. It survives a crash of the process, and need not survive power loss.
    pub fn write(mut self, path: &Path) -> Result<()> {
        self.format = FORMAT;
        self.tool_version = env!("CARGO_PKG_VERSION").to_string();
        self.pid = std::process::id();
        self.updated = crate::work::now().to_string();
        let mut bytes = serde_json::to_vec_pretty(&self).expect("strings and numbers");
        bytes.push(b'\n');
        durable::replace_unsynced(path, &bytes)
    }

    /// Reads the file.
    pub fn read(path: &Path) -> Result<Document> {
        let bytes = disk::read_small(path).map_err(|e| match e.kind() {
            Kind::Missing => e.hint("A wal-receive writes it; name its directory with --directory, or the file with --status-file."),
            _ => e,
        })?;
        let damaged = |e: serde_json::Error| {
            Error::new(
                Kind::Corrupt,
                format!("{path:?} is not the status of a wal-receive"),
            )
            .because(e)
        };
        let document: Document = serde_json::from_slice(&bytes).map_err(damaged)?;
        match document.format {
            FORMAT => Ok(document),
            other => Err(
                Error::new(Kind::Unavailable, format!("{path:?} has format {other}"))
                    .detail(format!("This seawall knows format {FORMAT}."))
                    .hint("Use the seawall that wrote it."),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let missing = Document::read(&path).unwrap_err();
        assert_eq!(missing.kind(), Kind::Missing);
        let position = Position {
            lsn: "0/3000000".into(),
            lag: Lag {
                bytes: 7,
                seconds: 1,
            },
        };
        let document = Document {
            state: "streaming".into(),
            flushed: Some(position),
            ..Document::default()
        };
        document.clone().write(&path).unwrap();
        document.clone().write(&path).unwrap();
        let read = Document::read(&path).unwrap();
        assert_eq!(read.state, document.state);
        assert_eq!(read.flushed, document.flushed);
        assert_eq!((read.format, read.pid), (FORMAT, std::process::id()));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Document::read(&path).unwrap_err().kind(), Kind::Corrupt);
    }
}
