//! Is this file what its name says? Asked of the source before it is archived, and of the delivery before it
//! gets its final name.

use crate::disk::File;
use crate::error::{Error, Kind, Result};
use crate::pg::wal_header::{HEADER_BYTES, SegmentHeader};
use crate::pg::{Segment, SegmentSize, SystemId, TimelineHistory, WalName};
use std::os::unix::fs::FileExt;

/// What is known of the cluster that the file must belong to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expect {
    /// The system identifier, if it is known.
    pub system_id: Option<SystemId>,
    /// The segment size, if it is known.
    pub segment_size: Option<SegmentSize>,
}

/// History files have a line per timeline switch; this is thousands of switches.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Checks the whole of `file` against `name`. `what` names it in messages, as in `file "pg_wal/…"`. Returns the
/// header of a segment, `None` for the text files.
pub fn check_file(file: &File, size: u64, name: WalName, expect: Expect, what: &str) -> Result<Option<SegmentHeader>> {
    let checked = match name {
        WalName::Segment(segment) | WalName::Partial(segment) => check_segment(file, size, segment, expect).map(Some),
        WalName::History(timeline) => {
            let text = read_text(file, size)?;
            TimelineHistory::parse(timeline, &text).and_then(|history| {
                if history.ancestors.is_empty() {
                    return Err(Error::new(Kind::Corrupt, "a timeline history without ancestors"));
                }
                Ok(None)
            })
        }
        WalName::BackupHistory(..) => {
            let text = read_text(file, size)?;
            if text.starts_with("START WAL LOCATION: ") {
                Ok(None)
            } else {
                Err(Error::new(Kind::Corrupt, "a backup history file must begin with START WAL LOCATION"))
            }
        }
    };
    checked.map_err(|e| e.context(format!("{what} is not what its name {name} says")))
}

fn check_segment(file: &File, size: u64, segment: Segment, expect: Expect) -> Result<SegmentHeader> {
    let mut page = [0; HEADER_BYTES];
    if size < page.len() as u64 {
        return Err(Error::new(Kind::Corrupt, format!("it has only {size} bytes")));
    }
    file.read_exact_at(&mut page, 0).map_err(|e| Error::io("could not read its first page", e))?;
    let header = SegmentHeader::parse(&page)?;
    for warning in header.check(segment, expect.system_id)? {
        log::warn!("segment {segment}: {warning}");
    }
    let expected = expect.segment_size.unwrap_or(header.segment_size);
    if header.segment_size != expected {
        return Err(Error::new(Kind::Mismatch, "its header names another segment size").detail(format!(
            "The header says {} bytes, this cluster has {} bytes.",
            header.segment_size.bytes(),
            expected.bytes()
        )));
    }
    if size != expected.bytes() {
        return Err(Error::new(Kind::Corrupt, format!("it has {size} bytes, a segment here has {}", expected.bytes())));
    }
    Ok(header)
}

fn read_text(file: &File, size: u64) -> Result<String> {
    if size == 0 || size > TEXT_BYTES_MAX {
        return Err(Error::new(Kind::Corrupt, format!("it has {size} bytes")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("could not read it", e))?;
    String::from_utf8(bytes).map_err(|e| Error::new(Kind::Corrupt, "it is not text").because(e))
}
