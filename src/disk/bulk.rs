//! Large new files, written past the page cache (`O_DIRECT`).
//!
//! A restore writes much more than memory holds and reads none of it back. Fresh pages of the page cache cost more
//! processor time than decoding the data, and push out what the host needs; written directly, the bytes are on the
//! disk early and the final sync is short. Durability still comes from that sync, as for every file. Where the file
//! system refuses direct writes, they go through the page cache.

use super::{File, failed, tree};
use crate::error::Result;
use rustix::fs::OFlags;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Smaller files are written as usual: the page cache holds them easily.
const DIRECT_BYTES_MIN: u64 = 1 << 20;
/// Bytes of one write.
const BUFFER_BYTES: usize = 1 << 20;
/// What addresses, offsets and lengths of direct writes are multiples of: no disk has larger sectors.
const ALIGNMENT: usize = 4096;

/// A buffer that begins at an aligned address; used again from file to file.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Default for Buffer {
    fn default() -> Buffer {
        let bytes = vec![0; BUFFER_BYTES + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Buffer { bytes, start }
    }
}

impl Buffer {
    fn aligned(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BUFFER_BYTES]
    }
}

/// A file being written from its beginning to its end.
pub struct BulkFile {
    file: File,
    path: PathBuf,
    buffer: Buffer,
    filled: usize,
    written: u64,
    direct: bool,
}

impl BulkFile {
    /// Creates a file of about `size` bytes with exactly `mode`; an existing one is `Kind::Exists`.
    pub fn create(path: &Path, mode: u32, size: u64, buffer: Buffer) -> Result<BulkFile> {
        let file = tree::create_new(path, mode)?;
        let direct = size >= DIRECT_BYTES_MIN && switch(&file, true).is_ok();
        Ok(BulkFile {
            file,
            path: path.to_path_buf(),
            buffer,
            filled: 0,
            written: 0,
            direct,
        })
    }

    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.buffer.aligned()[self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BUFFER_BYTES {
                self.flush(BUFFER_BYTES)?;
            }
        }
        Ok(())
    }

    /// Writes what is left and gives the buffer back. The file is whole, and durable once it is synced.
    pub fn finish(mut self) -> Result<Buffer> {
        let whole = self.filled / ALIGNMENT * ALIGNMENT;
        if self.direct && whole > 0 && whole < self.filled {
            self.flush(whole)?;
        }
        if self.filled > 0 {
            if !self.filled.is_multiple_of(ALIGNMENT) {
                self.buffered()?;
            }
            self.flush(self.filled)?;
        }
        Ok(self.buffer)
    }

    /// Writes the first `count` bytes of the buffer and moves the rest to its front.
    fn flush(&mut self, count: usize) -> Result<()> {
        let bytes = &self.buffer.aligned()[..count];
        let result = match self.file.write_all_at(bytes, self.written) {
            // Some file systems refuse direct writes only when they come.
            Err(e) if self.direct && e.kind() == ErrorKind::InvalidInput => {
                self.buffered()?;
                self.file
                    .write_all_at(&self.buffer.aligned()[..count], self.written)
            }
            other => other,
        };
        result.map_err(|e| failed("write", &self.path, e))?;
        self.written += count as u64;
        self.buffer
            .aligned()
            .copy_within(count..self.filled.max(count), 0);
        self.filled -= count;
        Ok(())
    }

    /// From here on through the page cache.
    fn buffered(&mut self) -> Result<()> {
        if std::mem::take(&mut self.direct) {
            switch(&self.file, false).map_err(|e| failed("write", &self.path, e.into()))?;
        }
        Ok(())
    }
}

/// Turns direct writes on or off; `EINVAL` where the file system has none.
fn switch(file: &File, direct: bool) -> rustix::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    rustix::fs::fcntl_setfl(file, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_length_is_written_whole_directly_or_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut buffer = Buffer::default();
        let sizes = [
            0,
            1,
            4095,
            4096,
            4097,
            BUFFER_BYTES - 1,
            BUFFER_BYTES,
            BUFFER_BYTES + 1,
            3 * BUFFER_BYTES + 5000,
        ];
        for size in sizes {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            for (name, announced) in [("direct", u64::MAX), ("buffered", 0)] {
                let path = dir.path().join(format!("{name}-{size}"));
                let mut file = BulkFile::create(&path, 0o640, announced, buffer).unwrap();
                bytes
                    .chunks(70_001)
                    .for_each(|chunk| file.write(chunk).unwrap());
                buffer = file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{name} {size}");
                assert_eq!(
                    std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                    0o640
                );
            }
        }
    }

    #[test]
    fn a_file_system_without_direct_writes_is_served_too() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("x");
        let mut file = BulkFile::create(&path, 0o600, u64::MAX, Buffer::default()).unwrap();
        file.write(&vec![7; 2 * BUFFER_BYTES + 10]).unwrap();
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == vec![7; 2 * BUFFER_BYTES + 10]);
        let again = BulkFile::create(&path, 0o600, 0, Buffer::default());
        assert_eq!(again.err().unwrap().kind(), Kind::Exists);
    }
}
