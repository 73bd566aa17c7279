//! How headers are read: ustar, PAX records, GNU's long names, numbers in base 256.

use super::BLOCK_BYTES;
use super::header::{EntryKind, Header};
use crate::error::{Error, Kind, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Longest extension body (names, PAX records) that is believed.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

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
    waits: bool,
    next: Extended,
}

/// What extensions said of the member to come, in place of what its header says.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified_secs: Option<i64>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Assembler {
    /// Reads a header block.
    pub(super) fn block(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<Block> {
        if block.iter().all(|b| *b == 0) {
            return match self.waits {
                true => Err(damaged("it ends in the middle of a member")),
                false => Ok(Block::Zeros),
            };
        }
        check_sum(block)?;
        let size = field(&block[124..136])?;
        self.flag = block[156];
        if matches!(self.flag, b'x' | b'g' | b'L' | b'K') {
            if size > EXTENSION_BYTES_MAX {
                return Err(damaged("an extension is absurdly long"));
            }
            self.waits |= self.flag != b'g';
            return Ok(Block::Extension(size));
        }
        self.waits = false;
        self.member(block, size).map(Block::Member)
    }

    fn member(&mut self, block: &[u8; BLOCK_BYTES], size: u64) -> Result<Header> {
        let next = std::mem::take(&mut self.next);
        let path = next.path.unwrap_or_else(|| ustar_name(block));
        let target = next.target;
        let target = target.unwrap_or_else(|| text(&block[157..257]).to_vec());
        let target = PathBuf::from(OsString::from_vec(target));
        let size = next.size.unwrap_or(size);
        let (kind, size) = match self.flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => (EntryKind::Directory, 0),
            b'0' | 0 | b'7' => (EntryKind::File, size),
            b'5' => (EntryKind::Directory, 0),
            b'2' => (EntryKind::Symlink(target), 0),
            b'1' => (EntryKind::Hardlink(target), 0),
            b'S' => return Err(sparse()),
            other => (EntryKind::Other(other), size),
        };
        if path.is_empty() || path.contains(&0) {
            return Err(damaged("a member has no usable name"));
        }
        let slashes = path.iter().rev().take_while(|b| **b == b'/').count();
        let name = &path[..(path.len() - slashes).max(1)];
        Ok(Header {
            path: PathBuf::from(OsString::from_vec(name.to_vec())),
            kind,
            size,
            mode: field::<u32>(&block[100..108])? & 0o7777,
            modified_secs: next
                .modified_secs
                .map_or_else(|| field(&block[136..148]), Ok)?,
            uid: next.uid.map_or_else(|| field(&block[108..116]), Ok)?,
            gid: next.gid.map_or_else(|| field(&block[116..124]), Ok)?,
        })
    }

    /// Reads the body of the extension that was announced last.
    pub(super) fn extension(&mut self, body: &[u8]) -> Result<()> {
        match self.flag {
            b'L' => self.next.path = Some(text(body).to_vec()),
            b'K' => self.next.target = Some(text(body).to_vec()),
            b'x' => return self.pax(body),
            _ => {} // Global records: none that matter to us.
        }
        Ok(())
    }

    fn pax(&mut self, mut body: &[u8]) -> Result<()> {
        while !body.is_empty() && body[0] != 0 {
            let bad = || damaged("a PAX record is malformed");
            let (key, value, rest) = pax_record(body).ok_or_else(bad)?;
            let next = &mut self.next;
            match key {
                b"path" => next.path = Some(value.to_vec()),
                b"linkpath" => next.target = Some(value.to_vec()),
                b"size" => next.size = Some(decimal(value).ok_or_else(bad)?),
                b"uid" => next.uid = Some(decimal(value).ok_or_else(bad)?),
                b"gid" => next.gid = Some(decimal(value).ok_or_else(bad)?),
                b"mtime" => next.modified_secs = Some(whole_seconds(value).ok_or_else(bad)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {}
            }
            body = rest;
        }
        Ok(())
    }

    /// Whether an extension waits for its member, so that the archive cannot end here.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }
}

/// Key, value and what follows the record `<length> <key>=<value>\n`, whose length counts itself.
fn pax_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().position(|b| *b == b' ')?;
    let length: usize = decimal(&body[..space])?;
    let record = body.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &body[length..]))
}

fn decimal<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with or without a fraction, rounded down.
fn whole_seconds(value: &[u8]) -> Option<i64> {
    let point = value.iter().position(|b| *b == b'.');
    let (whole, fraction) = value.split_at(point.unwrap_or(value.len()));
    let below = whole.starts_with(b"-") && fraction.iter().any(|b| (b'1'..=b'9').contains(b));
    decimal::<i64>(whole)?.checked_sub(i64::from(below))
}

fn check_sum(block: &[u8; BLOCK_BYTES]) -> Result<()> {
    let stated: u64 = field(&block[148..156])?;
    // The field itself counts as spaces.
    let others = block[..148].iter().chain(&block[156..]);
    let sum: u64 = others.map(|b| u64::from(*b)).sum::<u64>() + 8 * u64::from(b' ');
    match stated == sum {
        true => Ok(()),
        false => Err(damaged("a header's checksum is wrong")),
    }
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

/// A number that fits its type.
fn field<T: TryFrom<i128>>(field: &[u8]) -> Result<T> {
    T::try_from(number(field)?).map_err(|_| damaged("a number is out of range"))
}

/// A field of at most 12 bytes: octal digits, or base 256 in two's complement behind a set top bit (GNU).
fn number(field: &[u8]) -> Result<i128> {
    if field[0] & 0x80 != 0 {
        // The bit below the mark is the sign.
        let first = i128::from(((field[0] << 1) as i8) >> 1);
        return Ok(field[1..]
            .iter()
            .fold(first, |value, byte| value << 8 | i128::from(*byte)));
    }
    let digits = text(field).trim_ascii();
    if !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
        return Err(damaged("a number is not octal"));
    }
    Ok(digits
        .iter()
        .fold(0, |value, digit| value << 3 | i128::from(digit - b'0')))
}

fn sparse() -> Error {
    Error::new(Kind::Refused, "the tar archive has a sparse member")
        .detail("seawall never writes one and does not read them.")
        .hint("Make the archive without tar's --sparse.")
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the tar archive is damaged: {what}"))
}
