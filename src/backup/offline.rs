//! What is different about a server that is shut down: its own files say where WAL ends, and the WAL it needs for
//! its next start is not archived yet, so it travels inside the backup.

use super::pages::Source;
use super::plan::{Plan, Submit};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::{Lsn, Segment};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Reads pg_control and refuses a server that runs or was not shut down cleanly.
pub fn shut_down_cluster(data: &Path) -> Result<ControlFile> {
    if disk::stat(&data.join("postmaster.pid"))?.is_some() {
        return Err(Error::new(Kind::Refused, format!("\"{}\" belongs to a running server", data.display()))
            .detail("It has a postmaster.pid.")
            .hint("Shut the server down, or take the backup without --while-offline."));
    }
    let control = ControlFile::parse(&disk::read_small(&data.join("global/pg_control"))?)?;
    if control.state != ClusterState::ShutDown {
        return Err(Error::new(Kind::Refused, "the server was not shut down cleanly")
            .detail(format!("pg_control says: {}.", control.state))
            .hint("Start it and shut it down with pg_ctl stop, or take the backup while it runs."));
    }
    Ok(control)
}

/// The position behind the shutdown checkpoint's record, which begins at `control.checkpoint`.
pub fn end_of_checkpoint(data: &Path, control: &ControlFile) -> Result<Lsn> {
    let size = control.segment_size;
    let segment = Segment::holding(control.timeline, control.checkpoint, size);
    let path = data.join("pg_wal").join(segment.to_string());
    let file = disk::open(&path)?;
    let mut length = [0; 4];
    file.read_exact_at(&mut length, control.checkpoint.0 % size.bytes())
        .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))?;
    let length = u64::from(u32::from_le_bytes(length));
    if !(24..8192).contains(&length) {
        return Err(Error::new(Kind::Corrupt, format!("there is no checkpoint record at {}", control.checkpoint)));
    }
    Ok(after_record(control.checkpoint, length, size.bytes()))
}

/// Where a record of `length` bytes ends that begins at `start`: a page header interrupts it at each page, a long
/// one at each segment; records end on multiples of eight.
fn after_record(start: Lsn, length: u64, segment_bytes: u64) -> Lsn {
    const PAGE: u64 = 8192;
    let (mut at, mut left) = (start.0, length);
    loop {
        let room = PAGE - at % PAGE;
        if left <= room {
            return Lsn((at + left).next_multiple_of(8));
        }
        left -= room;
        at += room;
        at += if at % segment_bytes == 0 { 40 } else { 24 };
    }
}

/// The segments as members of `pg_wal`; they are not in the manifest, which does not speak of WAL files.
pub fn wal_members<'p>(data: &Path, segments: &[Segment], plan: &mut Plan<'p>, submit: Submit<'_, 'p>) -> Result<()> {
    for segment in segments {
        let path = data.join("pg_wal").join(segment.to_string());
        let file = disk::open(&path)?;
        let stat = disk::stat_open(&file, &path)?;
        let name = Path::new("pg_wal").join(segment.to_string());
        let source = Arc::new(Source::new(name, file, stat.size, stat.modified, None));
        plan.file(source, 0o600, submit)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_goes_on_behind_page_headers() {
        let cases = [
            (0x28, 114, 1 << 20, 0xA0),
            (8192 - 114, 114, 1 << 20, 8192),
            (8192 - 50, 114, 1 << 20, 8192 + 24 + 64),
            ((1 << 20) - 48, 114, 1 << 20, (1 << 20) + 40 + 72),
        ];
        for (start, length, segment, end) in cases {
            assert_eq!(after_record(Lsn(start), length, segment), Lsn(end), "{start}");
        }
    }
}
