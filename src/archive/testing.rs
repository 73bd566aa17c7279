//! An archive in memory, and WAL for it.

use super::Archive;
use super::state::State;
use crate::codec::{Compression, Method};
use crate::pg::{Segment, SegmentSize, SystemId, TimelineId};
use crate::store::mem::MemStore;

/// The cluster that all of this belongs to.
pub const SYSTEM: SystemId = SystemId(7);
/// Its segment size: 1 MiB.
pub const SIZE: u64 = 1 << 20;

/// An archive that is empty.
pub fn archive() -> Archive {
    Archive {
        store: Box::new(MemStore::new()),
        compression: Compression::new(Method::Zstd, None).unwrap(),
        state: State::none(),
    }
}

/// A segment's identity.
pub fn segment(timeline: u32, number: u64) -> Segment {
    let size = SegmentSize::new(SIZE).unwrap();
    Segment::new(TimelineId(timeline), crate::pg::SegmentNo(number), size)
}

/// A whole segment as PostgreSQL 15 begins its pages, full of bytes that depend on `salt`.
pub fn wal(segment: Segment, salt: u8) -> Vec<u8> {
    let start = segment.start(SegmentSize::new(SIZE).unwrap()).unwrap().0;
    let mut bytes: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8 ^ salt | 1).collect();
    for page in (0..SIZE).step_by(8192) {
        let head = &mut bytes[page as usize..][..40];
        head[..24].fill(0);
        head[..4].copy_from_slice(&[0x10, 0xD1, if page == 0 { 6 } else { 4 }, 0]);
        head[4..8].copy_from_slice(&segment.timeline.0.to_le_bytes());
        head[8..16].copy_from_slice(&(start + page).to_le_bytes());
    }
    bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}
