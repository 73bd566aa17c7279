//! One member's header, and how it is written and read.

use super::BLOCK_BYTES;
use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Two blocks of zeros end an archive.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Largest size that eleven octal digits hold.
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;
/// Longest extension body (a name) that is believed.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

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
    (size.next_multiple_of(BLOCK_BYTES as u64) - size) as usize
}

impl Header {
    /// An empty member, mode 0600 (0700 for a directory), at the beginning of 1970.
    pub fn new(path: &Path, kind: EntryKind) -> Header {
        let mode = if kind == EntryKind::Directory { 0o700 } else { 0o600 };
        Header { path: path.to_path_buf(), kind, size: 0, mode, modified_secs: 0, uid: 0, gid: 0 }
    }

    /// The header's blocks, preceded by a PAX header if a name is long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        if self.kind == EntryKind::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let (flag, target) = match &self.kind {
            EntryKind::File => (b'0', None),
            EntryKind::Directory => (b'5', None),
            EntryKind::Symlink(target) => (b'2', Some(target.as_os_str().as_bytes())),
            EntryKind::Hardlink(target) => (b'1', Some(target.as_os_str().as_bytes())),
            EntryKind::Other(flag) => (*flag, None),
        };
        let target = target.unwrap_or_default();
        let mut records = Vec::new();
        for (key, value) in [("path", &name[..]), ("linkpath", target)] {
            if value.len() > 100 {
                records.extend(pax_record(key, value));
            }
        }
        if name.len() as u64 + target.len() as u64 > EXTENSION_BYTES_MAX / 2 {
            return Err(Error::new(Kind::Refused, "a file name is too long for an archive"));
        }
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        if !records.is_empty() {
            let extension = Fields { name: b"pax", target: b"", flag: b'x', size: records.len() as u64, header: self };
            out.extend(extension.block());
            let size = records.len() as u64;
            out.extend(records);
            out.resize(out.len() + padding(size), 0);
        }
        out.extend(Fields { name: &name, target, flag, size: self.size, header: self }.block());
        Ok(out)
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

/// What goes into one header block.
struct Fields<'a> {
    name: &'a [u8],
    target: &'a [u8],
    flag: u8,
    size: u64,
    header: &'a Header,
}

impl Fields<'_> {
    fn block(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &octal(u64::from(self.header.mode & 0o7777), 8));
        put(108, &octal(u64::from(self.header.uid.min(0o7_777_777)), 8));
        put(116, &octal(u64::from(self.header.gid.min(0o7_777_777)), 8));
        put(124, &number(self.size));
        put(136, &octal(self.header.modified_secs.max(0) as u64 & OCTAL_SIZE_MAX, 12));
        put(148, b"        ");
        put(156, &[self.flag]);
        put(157, &self.target[..self.target.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn octal(value: u64, width: usize) -> Vec<u8> {
    let mut text = format!("{value:0digits$o}", digits = width - 1).into_bytes();
    text.push(0);
    text
}

/// Eleven octal digits, or base 256 with the top bit set.
fn number(value: u64) -> Vec<u8> {
    if value <= OCTAL_SIZE_MAX {
        return octal(value, 12);
    }
    [&[0x80, 0, 0, 0][..], &value.to_be_bytes()].concat()
}

/// What a block turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// A member; its body and padding follow.
    Member(Header),
    /// A body of so many bytes follows that speaks of the next member; feed it to `extension`.
    Extension(u64),
    /// The first block of zeros.
    Zeros,
}

/// Puts headers together from blocks and extensions.
#[derive(Default)]
pub(super) struct Assembler {
    flag: u8,
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Assembler {
    /// Reads a header block.
    pub fn block(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<Block> {
        if block.iter().all(|b| *b == 0) {
            return Ok(Block::Zeros);
        }
        check_sum(block)?;
        let size = parse_number(&block[124..136])?;
        self.flag = block[156];
        if matches!(self.flag, b'x' | b'g' | b'L' | b'K') {
            if size > EXTENSION_BYTES_MAX {
                return Err(damaged("an extension is absurdly long"));
            }
            return Ok(Block::Extension(size));
        }
        self.member(block, size).map(Block::Member)
    }

    fn member(&mut self, block: &[u8; BLOCK_BYTES], size: u64) -> Result<Header> {
        let path = self.path.take().unwrap_or_else(|| ustar_name(block));
        let target = self.target.take().unwrap_or_else(|| text(&block[157..257]).to_vec());
        let target = PathBuf::from(OsStr::from_bytes(&target));
        let (kind, has_body) = match self.flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => (EntryKind::Directory, false),
            b'0' | 0 | b'7' => (EntryKind::File, true),
            b'5' => (EntryKind::Directory, false),
            b'2' => (EntryKind::Symlink(target), false),
            b'1' => (EntryKind::Hardlink(target), false),
            other => (EntryKind::Other(other), true),
        };
        let size = self.size.take().unwrap_or(size);
        if path.is_empty() {
            return Err(damaged("a member has no name"));
        }
        let trimmed = path.len() - path.iter().rev().take_while(|b| **b == b'/').count();
        Ok(Header {
            path: PathBuf::from(std::ffi::OsString::from_vec(path[..trimmed.max(1)].to_vec())),
            kind,
            size: if has_body { size } else { 0 },
            mode: parse_number(&block[100..108])? as u32 & 0o7777,
            modified_secs: parse_number(&block[136..148])? as i64,
            uid: parse_number(&block[108..116])? as u32,
            gid: parse_number(&block[116..124])? as u32,
        })
    }

    /// Reads the body of the extension that was announced last.
    pub fn extension(&mut self, body: &[u8]) -> Result<()> {
        match self.flag {
            b'L' => self.path = Some(text(body).to_vec()),
            b'K' => self.target = Some(text(body).to_vec()),
            b'x' => return self.pax(body),
            _ => {} // global PAX records: none that matter to us
        }
        Ok(())
    }

    fn pax(&mut self, mut body: &[u8]) -> Result<()> {
        while !body.is_empty() && body[0] != 0 {
            let bad = || damaged("a PAX record is malformed");
            let space = body.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&body[..space]).ok().and_then(|n| n.parse().ok()).ok_or_else(bad)?;
            let record = body.get(space + 1..length).filter(|r| r.ends_with(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let value = &record[equals + 1..record.len() - 1];
            match &record[..equals] {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(std::str::from_utf8(value).ok().and_then(|n| n.parse().ok()).ok_or_else(bad)?),
                _ => {}
            }
            body = &body[length..];
        }
        Ok(())
    }

    /// Whether an extension waits for its member.
    pub fn waits(&self) -> bool {
        self.path.is_some() || self.target.is_some() || self.size.is_some()
    }
}

fn check_sum(block: &[u8; BLOCK_BYTES]) -> Result<()> {
    let stated = parse_number(&block[148..156])?;
    let sum: u64 = block.iter().enumerate().map(|(n, b)| if (148..156).contains(&n) { 32 } else { u64::from(*b) }).sum();
    if stated == sum { Ok(()) } else { Err(damaged("a header's checksum is wrong")) }
}

fn ustar_name(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    // GNU's own format keeps times where POSIX keeps the prefix.
    match &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

fn parse_number(field: &[u8]) -> Result<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - field.len().min(8));
        let negative = field[0] & 0x40 != 0;
        let fits = high.iter().enumerate().all(|(n, b)| *b == 0 || (n == 0 && *b == 0x80));
        if negative || !fits {
            return Err(damaged("a number is out of range"));
        }
        let mut bytes = [0; 8];
        bytes[8 - low.len()..].copy_from_slice(low);
        if high.is_empty() {
            bytes[8 - low.len()] &= 0x7F;
        }
        return Ok(u64::from_be_bytes(bytes));
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| damaged("a number is not octal"))?.trim();
    match digits {
        "" => Ok(0),
        _ => u64::from_str_radix(digits, 8).map_err(|_| damaged("a number is not octal")),
    }
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the tar archive is damaged: {what}"))
}
