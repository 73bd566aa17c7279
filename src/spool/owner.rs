//! Whose WAL lies in the spool, and how much: read from the segments themselves, so that no file can say otherwise.

use super::resume::{Contents, look};
use super::{failed, partial_name};
use crate::disk::{Fs, FsFile};
use crate::error::{Error, Kind, Result};
use crate::pg::wal_header::{HEADER_BYTES, SegmentHeader};
use crate::pg::{Segment, SegmentSize, SystemId};
use std::io;

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Of those that uploading will remove: a `.partial` stays when its timeline was left, or when somebody else has
    /// archived the whole segment.
    pub passing: u64,
    /// Whole segments that the archive has not acknowledged.
    pub waiting: u64,
}

/// The header of a segment file; `None` if it is not there, or nothing was received into it yet.
pub fn header<F: Fs>(fs: &F, name: &str) -> Result<Option<SegmentHeader>> {
    let file = match fs.open(name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| failed("open", name, e))?,
    };
    let mut head = [0; HEADER_BYTES];
    match file.read_at(0, &mut head) {
        // Shorter than a header: a file that pg_receivewal had just begun.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(|e| failed("read", name, e))?,
    }
    if head == [0; HEADER_BYTES] {
        return Ok(None);
    }
    SegmentHeader::parse(&head)
        .map(Some)
        .map_err(|e| e.context(format!("{name} in the spool is no WAL")))
}

/// The header of some segment; `None` while the spool holds no WAL.
pub fn any_header<F: Fs>(fs: &F) -> Result<Option<SegmentHeader>> {
    for name in names(&look(fs)?) {
        if let Some(header) = header(fs, &name)? {
            return Ok(Some(header));
        }
    }
    Ok(None)
}

/// `Kind::Mismatch` with both, if any WAL in the spool is of another cluster than the server.
pub fn refuse_stranger<F: Fs>(fs: &F, server: SystemId, size: SegmentSize) -> Result<()> {
    for name in names(&look(fs)?) {
        if let Some(header) = header(fs, &name)?
            && (header.system_id != server || header.segment_size != size)
        {
            return Err(stranger(&name, &header, server, size));
        }
    }
    Ok(())
}

/// The files with WAL, the newest whole one first.
fn names(contents: &Contents) -> impl Iterator<Item = String> {
    let whole = contents.whole.iter().rev().map(Segment::to_string);
    let partial = contents.partial.iter().rev();
    whole.chain(partial.map(|segment| partial_name(*segment)))
}

fn stranger(name: &str, header: &SegmentHeader, server: SystemId, size: SegmentSize) -> Error {
    Error::new(
        Kind::Mismatch,
        "the spool directory holds WAL of another cluster",
    )
    .detail(format!(
        "The system identifier of {name} is {}, its segments have {} bytes; the server's are {server} and {}.",
        header.system_id,
        header.segment_size.bytes(),
        size.bytes()
    ))
    .hint("Give each cluster a spool directory of its own, or connect to the right server.")
}

/// Whether there is a file that is being filled with this segment.
pub fn has_begun<F: Fs>(fs: &F, segment: Segment) -> bool {
    fs.open(partial_name(segment).as_ref()).is_ok()
}

/// Counts.
pub fn usage<F: Fs>(fs: &F, size: SegmentSize) -> Result<Usage> {
    let contents = look(fs)?;
    let passing = contents.whole.len() + contents.unfinished.len();
    let files = passing + contents.partial.len();
    Ok(Usage {
        bytes: files as u64 * size.bytes(),
        passing: passing as u64 * size.bytes(),
        waiting: contents.whole.difference(&contents.done).count() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDir;
    use std::path::Path;

    const MIB: u64 = 1 << 20;

    /// The beginning of a segment of 1 MiB, as PostgreSQL 15 writes it.
    fn write(dir: &Path, name: &str, system_id: u64) {
        let mut segment = vec![0; MIB as usize];
        segment[..4].copy_from_slice(&[0x10, 0xD1, 0x06, 0x00]);
        segment[4] = 1;
        segment[24..32].copy_from_slice(&system_id.to_le_bytes());
        segment[32..36].copy_from_slice(&(MIB as u32).to_le_bytes());
        segment[36..40].copy_from_slice(&8192u32.to_le_bytes());
        std::fs::write(dir.join(name), segment).unwrap();
    }

    #[test]
    fn the_segments_say_whose_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let fs = OsDir::open(dir.path(), 0o600).unwrap();
        let size = SegmentSize::new(MIB).unwrap();
        let refused = |id| refuse_stranger(&fs, SystemId(id), size);
        refused(7).unwrap();
        let partial = "000000010000000000000002.partial";
        std::fs::write(dir.path().join(partial), vec![0; MIB as usize]).unwrap();
        assert_eq!(any_header(&fs).unwrap(), None, "nothing was received yet");
        std::fs::write(dir.path().join("000000010000000000000003.partial"), "").unwrap();
        refused(7).unwrap();

        write(dir.path(), partial, 7);
        refused(7).unwrap();
        let error = refused(8).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        let detail = error.full_detail().unwrap();
        assert!(
            detail.contains("is 7") && detail.contains("are 8"),
            "{detail}"
        );
        let other_size = SegmentSize::DEFAULT;
        assert!(refuse_stranger(&fs, SystemId(7), other_size).is_err());

        write(dir.path(), "000000010000000000000001", 8);
        let detail = refused(7).unwrap_err().full_detail().unwrap();
        assert!(detail.contains("000000010000000000000001 is 8"), "{detail}");
        write(dir.path(), "000000010000000000000001", 7);
        refused(7).unwrap();
        std::fs::write(dir.path().join("000000010000000000000000"), "").unwrap();
        std::fs::write(dir.path().join("000000010000000000000000.done"), "").unwrap();
        let used = usage(&fs, size).unwrap();
        assert_eq!((used.bytes, used.waiting), (4 * MIB, 1));
        assert_eq!(used.passing, 2 * MIB, "two are .partial");
    }
}
