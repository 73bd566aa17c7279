//! Facts of PostgreSQL: numbers, names and file formats. No I/O, no clock, no threads.

pub mod conninfo;
pub mod control;
pub mod label;
pub mod lsn;
pub mod manifest;
pub mod page;
pub mod segment;
pub mod system_id;
pub mod timeline;
pub mod timestamp;
pub mod version;
pub mod wal_header;
pub mod wal_name;
pub mod wal_record;
pub mod wal_records;

pub use control::ControlFile;
pub use lsn::Lsn;
pub use segment::{Segment, SegmentNo, SegmentSize};
pub use system_id::SystemId;
pub use timeline::{TimelineHistory, TimelineId};
pub use timestamp::Timestamp;
pub use version::ServerVersion;
pub use wal_name::WalName;
