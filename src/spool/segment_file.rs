//! How a segment file comes to be.
//!
//! It is made under its `.partial.tmp` name, filled to its full length and synced, then renamed to `.partial`, and the
//! directory synced, before the first byte of WAL in it counts. Hence whatever is called `.partial` has its full
//! length, and whatever is called `.tmp` was never acknowledged and may be removed.

use super::{failed, partial_name, unfinished_name};
use crate::disk::{Fs, FsFile};
use crate::error::{Error, Kind, Result, from_io};
use crate::limits::{COPY_BUFFER_BYTES, FILL_SYNC_BYTES};
use crate::pg::{Lsn, Segment, SegmentSize};
use crate::work::stop::Stop;
use std::io;

/// The segment being written.
pub(super) struct Open<T> {
    pub(super) file: T,
    pub(super) segment: Segment,
    /// Its name is still `.tmp`, because it holds less than the parent timeline's file did until here.
    pub(super) hidden_until: Option<Lsn>,
}

/// How the room for WAL is made in a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empty {
    /// Zeros are written, so that later syncs have no metadata to write: for commits that wait for each.
    Zeros,
    /// The disk sets it aside, and nothing is written twice: for a segment that comes as a whole, with one sync.
    Reserved,
}

/// A switch in the middle of a segment.
pub(super) struct Fork {
    pub(super) at: Lsn,
    /// The file in which we received this segment up to the switch on the parent timeline. It may be gone: uploaded.
    pub(super) parent: String,
}

impl<T> Open<T> {
    /// Its name now.
    pub(super) fn name(&self) -> String {
        match self.hidden_until {
            None => partial_name(self.segment),
            Some(_) => unfinished_name(self.segment),
        }
    }
}

/// Takes up or makes the file of a segment. `Kind::Full`, and `Kind::Interrupted` when it is time to stop, leave
/// everything as it was; no other error has these kinds.
pub(super) fn prepare<F: Fs>(
    fs: &F,
    size: SegmentSize,
    segment: Segment,
    fork: Option<&Fork>,
    empty: Empty,
    stop: &Stop,
) -> Result<Open<F::File>> {
    let open = |file, hidden_until| Open {
        file,
        segment,
        hidden_until,
    };
    if let Some(file) = reuse(fs, size, &partial_name(segment)).map_err(not_full)? {
        return Ok(open(file, None));
    }
    let (parent, at) = match fork {
        Some(fork) => (open_parent(fs, size, &fork.parent)?, Some(fork.at)),
        None => (None, None),
    };
    let copied = at.map_or(0, |lsn| lsn.0 % size.bytes());
    let source = parent.as_ref().map(|file| (file, copied));
    let file = allocate(fs, size, &unfinished_name(segment), source, empty, stop)?;
    if at.is_some() && parent.is_none() {
        return Ok(open(file, at));
    }
    let (made, name) = (unfinished_name(segment), partial_name(segment));
    rename(fs, &made, &name).map_err(|e| discard(fs, &made, e))?;
    sync_dir(fs).map_err(not_full)?;
    Ok(open(file, None))
}

/// Takes up the `.partial` of an earlier life, to be received again from its first byte, in place. It is neither cut
/// nor zeroed: its bytes were acknowledged, and stay until the same ones are written over them.
///
/// It has its full length, because it got its name after that was durable. A shorter one is not ours: pg_receivewal
/// names its files first, and leaves zeros or nothing when it dies while filling one. Such a file never held WAL, so it
/// may be replaced. A shorter one with anything else in it did hold WAL and was cut by somebody: that needs a human.
fn reuse<F: Fs>(fs: &F, size: SegmentSize, name: &str) -> Result<Option<F::File>> {
    let file = match fs.open(name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| failed("open", name, e))?,
    };
    let len = file.len().map_err(|e| failed("examine", name, e))?;
    if len < size.bytes() && is_zero(&file, len).map_err(|e| failed("read", name, e))? {
        return Ok(None);
    }
    if len != size.bytes() {
        return Err(wrong_size(name, len, size));
    }
    // The life that wrote it may have been killed before it synced.
    file.sync_data().map_err(|e| failed("sync", name, e))?;
    sync_dir(fs)?;
    Ok(Some(file))
}

/// Opens the file from which a new timeline's first segment takes what lies before the switch.
fn open_parent<F: Fs>(fs: &F, size: SegmentSize, name: &str) -> Result<Option<F::File>> {
    let file = match fs.open(name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| failed("open", name, e))?,
    };
    let len = file.len().map_err(|e| failed("examine", name, e))?;
    if len != size.bytes() {
        return Err(wrong_size(name, len, size));
    }
    Ok(Some(file))
}

/// Makes a segment file of full length, durable under a name that nobody trusts: the first bytes of `source`, the rest
/// zeros. Never a hole: later writes must find their space.
fn allocate<F: Fs>(
    fs: &F,
    size: SegmentSize,
    name: &str,
    source: Option<(&F::File, u64)>,
    empty: Empty,
    stop: &Stop,
) -> Result<F::File> {
    let create = || fs.create_new(name.as_ref());
    let created = create().or_else(|e| match e.kind() {
        // A life that died while making it.
        io::ErrorKind::AlreadyExists => fs.remove(name.as_ref()).and_then(|()| create()),
        _ => Err(e),
    });
    let file = created.map_err(|e| failed("create", name, e))?;
    let filled = match (source, empty) {
        (None, Empty::Reserved) => reserve(&file, size.bytes(), stop),
        _ => fill(&file, size.bytes(), source, stop),
    };
    match filled {
        Ok(()) => Ok(file),
        Err(e) => {
            let error = match e.get_ref().is_some_and(|cause| cause.is::<Error>()) {
                true => from_io("it is time to stop", e),
                false => failed("write", name, e),
            };
            Err(discard(fs, name, error))
        }
    }
}

fn reserve<T: FsFile>(file: &T, size: u64, stop: &Stop) -> io::Result<()> {
    match file.reserve(size) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => fill(file, size, None, stop),
        other => other.and_then(|()| file.sync_data()),
    }
}

/// The disk is made to keep up, so that neither the last sync nor a stop has to wait for a gigabyte.
fn fill<T: FsFile>(file: &T, size: u64, source: Option<(&T, u64)>, stop: &Stop) -> io::Result<()> {
    let copied = source.map_or(0, |(_, bytes)| bytes);
    let mut buffer = vec![0; COPY_BUFFER_BYTES.min(size as usize)];
    let mut at = 0;
    while at < size {
        stop.check()?;
        let end = if at < copied { copied } else { size };
        let bytes = (end - at).min(buffer.len() as u64) as usize;
        let piece = &mut buffer[..bytes];
        match source {
            Some((from, _)) if at < copied => from.read_at(at, piece)?,
            _ => piece.fill(0),
        }
        file.write_at(at, piece)?;
        let before = at;
        at += piece.len() as u64;
        if before / FILL_SYNC_BYTES < at / FILL_SYNC_BYTES && at < size {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

/// Removes a file that could not be finished. What stays is removed before the next try.
fn discard<F: Fs>(fs: &F, name: &str, error: Error) -> Error {
    if let Err(e) = fs.remove(name.as_ref()) {
        log::debug!("could not remove {name} from the spool: {e}");
    }
    error
}

fn is_zero<T: FsFile>(file: &T, len: u64) -> io::Result<bool> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES.min(len as usize)];
    let mut at = 0;
    while at < len {
        let bytes = (len - at).min(buffer.len() as u64) as usize;
        file.read_at(at, &mut buffer[..bytes])?;
        if buffer[..bytes].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += bytes as u64;
    }
    Ok(true)
}

pub(super) fn rename<F: Fs>(fs: &F, from: &str, to: &str) -> Result<()> {
    let renamed = fs.rename(from.as_ref(), to.as_ref());
    renamed.map_err(|e| failed("rename", from, e))
}

pub(super) fn sync_dir<F: Fs>(fs: &F) -> Result<()> {
    fs.sync_dir().map_err(|e| failed("sync", "names", e))
}

fn not_full(error: Error) -> Error {
    match error.kind() {
        Kind::Full => error.with_kind(Kind::Io),
        _ => error,
    }
}

/// A segment file whose length cannot be.
pub(super) fn wrong_size(name: &str, len: u64, size: SegmentSize) -> Error {
    Error::new(Kind::Corrupt, format!("{name} in the spool is damaged"))
        .detail(format!(
            "It has {len} bytes; the server's segments have {}.",
            size.bytes()
        ))
        .hint(
            "If this directory belongs to another cluster, use an empty one. Else move the file away: what is \
             missing is asked of the server and of the archive.",
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{SimFile, SimFs};

    /// A file where nothing can be reserved.
    struct Old(SimFile);

    impl FsFile for Old {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.0.read_at(offset, bytes)
        }
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.write_at(offset, bytes)
        }
        fn reserve(&self, _len: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
    }

    #[test]
    fn where_nothing_can_be_reserved_zeros_are_written() {
        let fs = SimFs::default();
        let file = Old(fs.create_new("f".as_ref()).unwrap());
        reserve(&file, 0x1000, &Stop::new()).unwrap();
        fs.sync_dir().unwrap();
        let after = fs.copy().power_loss(&mut Default::default(), 0);
        assert_eq!(after.read("f").unwrap(), [0; 0x1000]);
    }
}
