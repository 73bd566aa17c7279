//! Which segments the archive holds, for a receiver that asks where to go on.

use crate::archive::{Archive, keys};
use crate::error::Result;
use crate::pg::{Lsn, Segment, SegmentSize, TimelineHistory, WalName};
use std::collections::BTreeSet;

impl Archive {
    /// The segments of the timelines of `path`, in any codec, from the one that holds `from` on; with `back` also the
    /// newest one before it of each timeline, for which all of the archive is listed. Memory grows with their number:
    /// give a position that is near.
    pub fn held_segments(
        &self,
        path: &TimelineHistory,
        size: SegmentSize,
        from: Lsn,
        back: bool,
    ) -> Result<BTreeSet<Segment>> {
        let mut held = BTreeSet::new();
        let ancestors = path.ancestors.iter().map(|ancestor| ancestor.timeline);
        for timeline in ancestors.chain([path.timeline]) {
            let first = Segment::holding(timeline, from, size);
            let name = first.to_string();
            let prefix = format!("{}{}", keys::WAL, &name[..8]);
            let after = match back {
                true => prefix.clone(),
                false => format!("{}{}", keys::WAL, &name[..23]),
            };
            let mut before = None;
            self.store.list(&prefix, &after, &mut |object| {
                match keys::parse_wal(&object.key) {
                    Some((WalName::Segment(segment), _)) if segment < first => {
                        before = before.max(Some(segment));
                    }
                    Some((WalName::Segment(segment), _)) => {
                        held.insert(segment);
                    }
                    _ => {}
                }
                Ok(true)
            })?;
            held.extend(before.filter(|_| back));
        }
        Ok(held)
    }
}
