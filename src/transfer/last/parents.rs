//! L6. The first segment of a timeline begins with a copy of what its parent had of it, up to the fork. A receiver that
//! died before it had come so far leaves less of the child than there is of the parent, and PostgreSQL asks for the
//! child's first.

use super::{Candidate, Part, Search};
use crate::archive::wal::{Found, HolePolicy};
use crate::codec::digest::{Sha256, hex};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment};

impl Search<'_> {
    /// What was found of the segment, or what a parent has of it up to the fork if that is more.
    pub(super) fn completed(&self, segment: Segment, own: Part) -> Result<Part> {
        let size = own.found.size;
        let Some(history) = self.history(segment.timeline)? else {
            return Ok(own);
        };
        let start = segment.start(size)?;
        let fork = history.ancestors.last().map_or(Lsn(0), |a| a.end);
        let below = fork.0.saturating_sub(start.0);
        if below >= size.bytes() || own.reaches(below) {
            return Ok(own);
        }
        // One that was left before the fork has other bytes from there on, and so has what came before it.
        let parents = history.ancestors.iter().rev();
        for parent in parents.take_while(|a| a.end >= fork) {
            let of = Segment::holding(parent.timeline, start, size);
            for candidate in self.parents_candidates(of)? {
                let Some(part) = self.part(of, candidate)? else {
                    continue;
                };
                if part.reaches(below) {
                    self.refuse_other_bytes(&own, &part)?;
                    let held = below;
                    let found = Found { held, ..part.found };
                    return Ok(Part { found, ..part });
                }
            }
        }
        let error = Error::new(
            Kind::Hole,
            format!("{segment} is missing, and this is not the end of WAL"),
        )
        .detail(format!(
            "{} has it up to {}. Timeline {} began at {fork}, and what lies between is not there, neither as its own nor \
             as its parent's.",
            own.candidate.name(),
            Lsn(start.0 + own.found.held),
            segment.timeline
        ));
        if self.on_hole == HolePolicy::Absent {
            log::warn!("{}", error.one_line());
            return Ok(own);
        }
        Err(error.hint(
            "Give both --spool and --partial, recover to a target before it, or force the end with --on-hole absent.",
        ))
    }

    fn parents_candidates(&self, of: Segment) -> Result<Vec<Candidate>> {
        if let Some((key, method)) = self.archive.segment_object(of)? {
            return Ok(vec![Candidate::Archived(key, method)]);
        }
        self.candidates(of)
    }

    /// Below the fork both are the same by definition; if they are not, nobody knows which of them is right.
    fn refuse_other_bytes(&self, own: &Part, parents: &Part) -> Result<()> {
        let bytes = own.found.held;
        if self.digest(own, bytes)? == self.digest(parents, bytes)? {
            return Ok(());
        }
        let (own_name, name) = (own.candidate.name(), parents.candidate.name());
        Err(Error::new(
            Kind::Mismatch,
            format!("{own_name} and {name} have other bytes before the fork"),
        )
        .detail(format!(
            "They differ within the first {bytes} bytes, which timeline {} has from its parent.",
            own.of.timeline
        ))
        .hint("Keep both until you know which is right, and take the other one away."))
    }

    /// Of the first bytes.
    fn digest(&self, part: &Part, bytes: u64) -> Result<String> {
        let (mut digest, mut left) = (Sha256::new(), bytes);
        self.pass(part.of, &part.candidate, &mut |passed| {
            let now = left.min(passed.len() as u64);
            digest.update(&passed[..now as usize]);
            left -= now;
            Ok(())
        })?;
        Ok(hex(&digest.finish()))
    }
}

impl Part {
    /// Whether it is known to have so many bytes.
    fn reaches(&self, bytes: u64) -> bool {
        self.found.held.max(self.found.whole) >= bytes
    }
}
