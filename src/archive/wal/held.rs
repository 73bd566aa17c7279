//! Which segments the archive holds, for a receiver that asks where to go on.

use crate::archive::{Archive, keys};
use crate::error::Result;
use crate::pg::{Lsn, Segment, SegmentSize, TimelineHistory, WalName};
use std::collections::BTreeSet;

impl Archive {
    /// The segments of the timelines of `path`, in any codec, from the one that holds `from` on. Memory grows with
    /// their number: give a position that is near.
    pub fn held_segments(
        &self,
        path: &TimelineHistory,
        size: SegmentSize,
        from: Lsn,
    ) -> Result<BTreeSet<Segment>> {
        let mut held = BTreeSet::new();
        let ancestors = path.ancestors.iter().map(|ancestor| ancestor.timeline);
        for timeline in ancestors.chain([path.timeline]) {
            let first = Segment::holding(timeline, from, size).to_string();
            let prefix = format!("{}{}", keys::WAL, &first[..8]);
            let after = format!("{}{}", keys::WAL, &first[..23]);
            self.store.list(&prefix, &after, &mut |object| {
                if let Some((WalName::Segment(segment), _)) = keys::parse_wal(&object.key) {
                    held.insert(segment);
                }
                Ok(true)
            })?;
        }
        Ok(held)
    }
}
