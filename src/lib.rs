//! seawall keeps PostgreSQL clusters recoverable: it archives WAL, takes base backups and restores them.
//!
//! This is the map. Twelve rooms stand on six floors; a room imports only from lower floors, rooms on one floor
//! do not know each other (`tests/tidy.rs` holds this). `error` and `limits` are the ground that all stand on.
//!
//! ```text
//! 5 words      cli · cmd/ (one file per verb; output) · config
//! 4 workflows  relay/ (reader, writer, uploader of wal-receive) · backup/ (scan, parts, push, fetch, recovery) ·
//!              transfer/ (look-ahead, the last WAL, branches)
//! 3 meaning    archive/ (keys, wal, growing, gaps, sentinel, catalog, identity) · spool/ (the local WAL directory;
//!              crash-critical)
//! 2 outward    store/ (trait Store; file, s3, mem; retry; suite) · wire/ (the one socket to PostgreSQL; SQL)
//! 1 machine    disk/ (files, durable names, locks, trees) · work/ (crew, pool, watermark, stop)
//! 0 facts      pg/ (lsn, timeline, segment, control, page, conninfo) · codec/ (zstd, gzip, lz4, tar, digests)
//! ```
//!
//! How data falls through the floors:
//!
//! ```text
//! wal-receive   cmd → relay ⟨wal-reader: wire/replication⟩ ═batches═▶ ⟨wal-writer: spool/writer, one sync per round⟩
//!                     ┄hint┄▶ ⟨upload-n: spool/queue → archive/wal.put⟩     back: flushed | archived → status update
//! wal-push      cmd → archive/wal.put → codec → store; what waits behind it: transfer/ahead ⟨archive/wal.put, in turn⟩
//! wal-fetch     cmd → transfer/last → archive/wal.get → store → codec → disk/durable → DEST
//!                                   ↳ proven absent: spool directory, or what grows in the archive
//! backup-push   cmd → backup/push: start → scan → parts through the pool ⟨read → tar → codec → store⟩
//!                     → stop → WAL present? → manifest → sentinel
//! backup-fetch  cmd → archive/catalog → backup/fetch ⟨store → codec → disk⟩ → backup/recovery → sync → pg_control
//! backup-list   cmd → archive/catalog → output
//! ```
//!
//! Doors: files only in `disk`, sockets only in `wire` and `store`, threads only in `work`, printing only in
//! `cmd` (`cli` writes errors to stderr), environment only in `config`, `exit` only in `main`.

pub mod archive;
pub mod backup;
pub mod cli;
pub mod cmd;
pub mod codec;
pub mod config;
pub mod disk;
pub mod error;
pub mod limits;
pub mod pg;
pub mod relay;
pub mod spool;
pub mod store;
pub mod transfer;
pub mod wire;
pub mod work;
