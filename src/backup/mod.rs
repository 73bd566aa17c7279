//! Base backups: taking them (`push`, from files or from one BASE_BACKUP stream) and restoring them (`fetch`).
//!
//! ```text
//! local    scan → plan ⟨chunks of descriptors⟩ → pool ⟨read, check pages, compress⟩ → parts ⟨in order⟩ → store
//! remote   wire/base_backup → tar splitter → plan ⟨chunks of bytes⟩ → pool ⟨compress⟩ → parts → store
//! fetch    parts of the store → pool ⟨decode, untar, check against the manifest⟩ → disk → sync → pg_control
//! ```

pub mod copy;
pub mod expected;
pub mod fetch;
pub mod history;
pub mod manifest;
pub mod offline;
pub mod owner;
pub mod pack;
pub mod pages;
pub mod parts;
pub mod plan;
pub mod progress;
pub mod push;
pub mod recovery;
pub mod remote;
pub mod scan;
pub mod server;
pub mod spec;
pub mod target;
pub mod wal;

/// The mode of files in a data directory of this mode, by PostgreSQL's rule: the group may read the files of a
/// directory that it may read.
pub fn file_mode(directory_mode: u32) -> u32 {
    0o600 | directory_mode & 0o040
}
