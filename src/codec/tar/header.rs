//! One member's header, and how it is written.

use super::BLOCK_BYTES;
use crate::error::{Error, Kind, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Two blocks of zeros end an archive.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Longest name or target that the header itself holds; a longer one gets a PAX record.
const NAME_BYTES: usize = 100;

/// Longest name and target together that are written; PATH_MAX is 4 KiB, and a reader bounds its memory too.
const NAMES_BYTES_MAX: usize = 32 << 10;

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(PathBuf),
    /// A hard link with its target.
    Hardlink(PathBuf),
    /// Anything else, by its type flag.
    Other(u8),
}

/// A member's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of its body.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time in seconds since 1970 UTC.
    pub modified_secs: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Zeros that follow a body of `size` bytes, up to a whole block.
pub fn padding(size: u64) -> usize {
    // Not by rounding up: the size may come from a damaged header and be anything.
    ((BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64) as usize
}

impl Header {
    /// An empty member, mode 0600 (0700 for a directory), at the beginning of 1970.
    pub fn new(path: &Path, kind: EntryKind) -> Header {
        let mode = if kind == EntryKind::Directory {
            0o700
        } else {
            0o600
        };
        Header {
            path: path.to_path_buf(),
            kind,
            size: 0,
            mode,
            modified_secs: 0,
            uid: 0,
            gid: 0,
        }
    }

    /// The header's blocks, preceded by a PAX header if a name is long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        if self.kind == EntryKind::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let (flag, target): (u8, &[u8]) = match &self.kind {
            EntryKind::File => (b'0', b""),
            EntryKind::Directory => (b'5', b""),
            EntryKind::Symlink(target) => (b'2', target.as_os_str().as_bytes()),
            EntryKind::Hardlink(target) => (b'1', target.as_os_str().as_bytes()),
            EntryKind::Other(flag) => (*flag, b""),
        };
        if name.len() + target.len() > NAMES_BYTES_MAX {
            let error = Error::new(Kind::Refused, "a file name is too long for an archive");
            return Err(error.detail(format!("It has {} bytes.", name.len() + target.len())));
        }
        let mut out = self.extension(&name, target);
        out.extend(self.block(&name, target, flag, self.size));
        Ok(out)
    }

    /// The PAX header for what the member's own header cannot hold, or nothing.
    fn extension(&self, name: &[u8], target: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in [("path", name), ("linkpath", target)] {
            if value.len() > NAME_BYTES {
                // Any bytes; `hdrcharset` would be right for names that are no UTF-8, but tar(1) complains of it.
                records.extend(pax_record(key, value));
            }
        }
        let size = records.len() as u64;
        if size == 0 {
            return records;
        }
        let mut out = self.block(b"pax", b"", b'x', size).to_vec();
        out.extend(records);
        out.resize(out.len() + padding(size), 0);
        out
    }

    fn block(&self, name: &[u8], target: &[u8], flag: u8, size: u64) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(NAME_BYTES)]);
        put(100, &number(i128::from(self.mode & 0o7777), 8));
        put(108, &number(i128::from(self.uid), 8));
        put(116, &number(i128::from(self.gid), 8));
        put(124, &number(i128::from(size), 12));
        put(136, &number(i128::from(self.modified_secs), 12));
        put(148, b"        ");
        put(156, &[flag]);
        put(157, &target[..target.len().min(NAME_BYTES)]);
        put(257, b"ustar\x0000");
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Octal digits and a NUL if they fit, else GNU's base 256: big endian two's complement behind a set top bit.
fn number(value: i128, width: usize) -> Vec<u8> {
    let digits = width - 1;
    if (0..1 << (3 * digits)).contains(&value) {
        return format!("{value:0digits$o}\0").into_bytes();
    }
    let mut bytes = value.to_be_bytes()[16 - width..].to_vec();
    bytes[0] |= 0x80;
    bytes
}
