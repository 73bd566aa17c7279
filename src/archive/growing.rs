//! Growing segments: `wal_005/<segment>.growing.zst`, what `wal-receive` has of the segment that is being written now.
//! One of the two objects that are ever replaced.
//!
//! * G1 It is replaced only by one that is at least as long and whose bytes agree with it up to its length.
//! * G2 It is removed only when all of it lies in a complete segment that is archived: its own, or the one with which a
//!   child timeline began.
//! * G3 It tells how long it is, whose it is and its digest, and is delivered only if all of that is true.
//!
//! The bytes: a zstd frame without content (magic 0x184D2A50, 32-bit length, both little endian) with the facts in
//! JSON, then one ordinary frame with the durable bytes, not padded. So a single object, replaced in one step, carries
//! both; `zstd -d` passes over the facts and gives the WAL; and whoever wants to replace the object reads its first few
//! hundred bytes alone. The codec is always zstd: gzip has no such frame, and with several codecs there could be
//! several objects, of which the wrong one may be the longest.

use super::object::ObjectWriter;
use super::wal::{Expect, Extent};
use super::{Archive, keys, parse_json};
use crate::codec::digest::{Sha256, hex};
use crate::codec::{self, Compression, Method};
use crate::disk::File;
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::{Lsn, Segment, SegmentSize, SystemId, TimelineId, WalName};
use crate::store::Key;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// What a growing segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The segment that grows.
    pub segment: Segment,
    /// Bytes from its beginning on, all of them durable at the receiver when they were sent.
    pub length: u64,
    /// The cluster that wrote them.
    pub system_id: SystemId,
    /// SHA-256 of them, in lower case hexadecimal digits.
    pub sha256: String,
}

/// What `put_growing` did. In every case the archive holds what was given, in some object, with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grown {
    /// The object is new, or longer now; so many bytes are stored.
    Stored(u64),
    /// The archived one is as long, or longer: so many bytes of the segment.
    AlreadyThere(u64),
    /// The complete segment is archived, so nothing is put. Its bytes were not compared.
    Complete,
}

/// A growing segment being read. Its end is only reached if length and digest are what its facts say.
pub struct Growing {
    /// What it says of itself.
    pub facts: Facts,
    reader: Box<dyn Read + Send>,
    passed: u64,
    digest: Option<Sha256>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    segment: String,
    length: u64,
    system_identifier: SystemId,
    sha256: String,
}

const FORMAT: u32 = 1;
const MAGIC: [u8; 4] = 0x184D_2A50u32.to_le_bytes();
/// The facts are a few hundred bytes.
const FACTS_BYTES_MAX: usize = 4 << 10;

impl Archive {
    /// Puts the first `durable` bytes of `file` as the growing `segment`. An archived one that is longer stays if it
    /// begins with the same bytes; other bytes are `Kind::Mismatch` and change nothing.
    ///
    /// Two rules are the caller's: the archive was claimed for this cluster (`claim`), and every segment before this
    /// one is archived, because a growing segment behind a missing one is a hole. One receiver puts at a time: that
    /// nothing longer arrives between look and put cannot be asked of a store.
    pub fn put_growing(
        &self,
        segment: Segment,
        file: &File,
        durable: u64,
        expect: Expect,
    ) -> Result<Grown> {
        let expect = self.remembered(expect)?;
        let put = || {
            let seen = self.look_for_growing(segment)?;
            if seen.complete {
                return Ok(Grown::Complete);
            }
            let there = match seen.growing {
                true => self.get_growing(segment)?,
                false => None,
            };
            self.grow(segment, file, durable, expect, there)
        };
        put().map_err(|e: Error| {
            e.context(format!("could not archive the growing segment {segment}"))
        })
    }

    /// The growing segment and what it says of itself; `None` when there is none.
    pub fn get_growing(&self, segment: Segment) -> Result<Option<Growing>> {
        let key = keys::growing(segment);
        let body = match self.store.get(&key, 0) {
            Err(e) if matches!(e.kind(), Kind::Missing | Kind::Hole) => return Ok(None),
            other => other?,
        };
        let mut stored = body.reader;
        let facts = read_facts(&key, segment, &mut stored)?;
        Ok(Some(Growing {
            facts,
            reader: codec::decoder(Method::Zstd, stored),
            passed: 0,
            digest: Some(Sha256::new()),
        }))
    }

    /// The growing segments of a timeline from `from` on, ascending.
    pub fn growing_segments(
        &self,
        timeline: TimelineId,
        from: Option<Segment>,
    ) -> Result<Vec<Segment>> {
        let prefix = format!("{}{:08X}", keys::WAL, timeline.0);
        let after = from.map_or(String::new(), |segment| format!("{}{segment}", keys::WAL));
        let mut found = Vec::new();
        self.store.list(&prefix, &after, &mut |object| {
            found.extend(keys::parse_growing(&object.key));
            Ok(true)
        })?;
        Ok(found)
    }

    /// Removes the growing segment once it is of no more use (G2). Answers whether none is left.
    pub fn remove_growing(&self, segment: Segment, size: SegmentSize) -> Result<bool> {
        let remove = || {
            let seen = self.look_for_growing(segment)?;
            if !seen.growing {
                return Ok(true);
            }
            let covered = seen.complete || self.is_covered(segment, size)?;
            if covered {
                self.store.delete(&keys::growing(segment))?;
            }
            Ok(covered)
        };
        remove().map_err(|e: Error| {
            e.context(format!("could not remove the growing segment {segment}"))
        })
    }

    /// Whether a child timeline began with a segment that holds all of the growing one, and that one is archived.
    fn is_covered(&self, segment: Segment, size: SegmentSize) -> Result<bool> {
        let Some(growing) = self.get_growing(segment)? else {
            return Ok(true);
        };
        let end = segment.start(size)?.0 + growing.facts.length;
        for child in self.histories_above(segment.timeline)? {
            let holds = |left: Lsn| {
                left.0 >= end && Segment::holding(segment.timeline, left, size) == segment
            };
            if child.left_at(segment.timeline).is_some_and(holds) {
                let number = segment.number(size)?;
                let first = Segment::new(child.timeline, number, size);
                if self.find_wal(WalName::Segment(first))?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// One LIST. A growing segment that is not there is not deleted either: where versions are kept, that leaves a
    /// marker for each.
    fn look_for_growing(&self, segment: Segment) -> Result<Seen> {
        let growing = keys::growing(segment);
        let mut seen = Seen::default();
        let prefix = format!("{}{segment}", keys::WAL);
        self.store.list(&prefix, "", &mut |object| {
            seen.growing |= object.key == growing;
            seen.complete |= keys::wal_in_any_form(&object.key) == Some(WalName::Segment(segment));
            Ok(true)
        })?;
        Ok(seen)
    }

    /// Puts it, unless what is there is as long; in any case only if both agree (G1).
    fn grow(
        &self,
        segment: Segment,
        file: &File,
        durable: u64,
        expect: Expect,
        there: Option<Growing>,
    ) -> Result<Grown> {
        let length = there.as_ref().map_or(0, |growing| growing.facts.length);
        let ours = look_at(segment, file, durable, expect, length)?;
        let Some(there) = there else {
            return self.send_growing(&ours.facts, file);
        };
        let theirs = there.facts.clone();
        if length > durable {
            if digest_of_first(there, durable)? != ours.facts.sha256 {
                return Err(self.disagree(&theirs, &ours.facts));
            }
        } else if ours.sha256_of_first != theirs.sha256 || ours.facts.system_id != theirs.system_id
        {
            return Err(self.disagree(&theirs, &ours.facts));
        } else if length < durable {
            return self.send_growing(&ours.facts, file);
        }
        self.store.settle(&keys::growing(segment))?;
        Ok(Grown::AlreadyThere(length))
    }

    fn send_growing(&self, facts: &Facts, file: &File) -> Result<Grown> {
        let compression = match self.compression.method {
            Method::Zstd => self.compression,
            Method::Gzip | Method::Lz4 => Compression::new(Method::Zstd, None)?,
        };
        let key = keys::growing(facts.segment);
        let front = facts.frame();
        let mut writer = ObjectWriter::replacing(&*self.store, key, compression, &front)?;
        each_piece(file, facts.length, &mut |bytes| {
            writer
                .write_all(bytes)
                .map_err(|e| from_io("could not send the object", e))
        })?;
        writer
            .finish()
            .map(|object| Grown::Stored(object.stored_bytes))
    }

    fn disagree(&self, theirs: &Facts, ours: &Facts) -> Error {
        Error::new(Kind::Mismatch, "the archive has other bytes of it")
            .detail(format!(
                "Object {} in {} has {} bytes of system identifier {} with SHA-256 {}; here are {} bytes of {} with {}, \
                 and they differ within the shorter length.",
                keys::growing(ours.segment),
                self.store.location(),
                theirs.length,
                theirs.system_id,
                theirs.sha256,
                ours.length,
                ours.system_id,
                ours.sha256
            ))
            .hint("Nothing was changed. Two clusters archive to one prefix, or the server lost WAL that it had sent; keep both until you know.")
    }
}

/// What is in the archive of a segment.
#[derive(Default)]
struct Seen {
    complete: bool,
    growing: bool,
}

/// What we have, and the digest of its beginning.
struct Ours {
    facts: Facts,
    sha256_of_first: String,
}

/// Reads what is to be sent: is it WAL of this segment, and what are its digests, as a whole and of its first `first`
/// bytes?
fn look_at(
    segment: Segment,
    file: &File,
    durable: u64,
    expect: Expect,
    first: u64,
) -> Result<Ours> {
    let mut extent = Extent::new(segment, expect);
    let (mut whole, mut passed) = (Sha256::new(), 0);
    let mut sha256_of_first = None;
    each_piece(file, durable, &mut |bytes| {
        extent.pass(bytes);
        let before = first.saturating_sub(passed).min(bytes.len() as u64) as usize;
        whole.update(&bytes[..before]);
        passed += bytes.len() as u64;
        if passed >= first && sha256_of_first.is_none() {
            sha256_of_first = Some(hex(&whole.clone().finish()));
        }
        whole.update(&bytes[before..]);
        Ok(())
    })?;
    let found = extent.judge("the source")?;
    let found = found.ok_or_else(|| Error::new(Kind::Refused, "the source holds no WAL of it"))?;
    Ok(Ours {
        facts: Facts {
            segment,
            length: durable,
            system_id: found.system_id,
            sha256: hex(&whole.finish()),
        },
        sha256_of_first: sha256_of_first.unwrap_or_default(),
    })
}

/// Hands out the first `length` bytes; there may be more, and more may come meanwhile.
fn each_piece(file: &File, length: u64, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
    let mut offset = 0;
    while offset < length {
        let want = buffer.len().min((length - offset) as usize);
        file.read_exact_at(&mut buffer[..want], offset)
            .map_err(|e| Error::io("could not read the source", e))?;
        each(&buffer[..want])?;
        offset += want as u64;
    }
    Ok(())
}

/// The digest of the first bytes of a growing segment, all of which is read: only then is it known to be sound.
fn digest_of_first(mut growing: Growing, length: u64) -> Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
    let mut left = length;
    loop {
        let count = growing
            .read(&mut buffer)
            .map_err(|e| from_io("could not read the growing segment", e))?;
        if count == 0 {
            return Ok(hex(&digest.finish()));
        }
        let ours = left.min(count as u64);
        digest.update(&buffer[..ours as usize]);
        left -= ours;
    }
}

fn read_facts(key: &Key, segment: Segment, stored: &mut dyn Read) -> Result<Facts> {
    let not_ours = |why: &str| {
        Error::new(
            Kind::Corrupt,
            format!("object {key} is not a growing segment"),
        )
        .detail(why)
        .hint("It is damaged, or something else wrote it. Take it away by hand if it is of no use.")
    };
    let mut read = |bytes: &mut [u8]| {
        stored.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => not_ours("It ends within its first frame."),
            _ => from_io(&format!("could not read object {key}"), e),
        })
    };
    let (mut magic, mut length) = ([0; 4], [0; 4]);
    read(&mut magic)?;
    read(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if magic != MAGIC || length > FACTS_BYTES_MAX {
        return Err(not_ours("It does not begin with its facts."));
    }
    let mut text = vec![0; length];
    read(&mut text)?;
    let document: Document = parse_json(key, &text)?;
    if document.format > FORMAT {
        return Err(not_ours("Its facts have a newer format.").hint("Use a newer seawall."));
    }
    if document.length > limits::WAL_FILE_BYTES_MAX {
        return Err(not_ours("It says that it is larger than any segment."));
    }
    if document.segment != segment.to_string() {
        return Err(not_ours(&format!("It is of segment {}.", document.segment)));
    }
    Ok(Facts {
        segment,
        length: document.length,
        system_id: document.system_identifier,
        sha256: document.sha256,
    })
}

impl Facts {
    /// The frame without content.
    fn frame(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            segment: self.segment.to_string(),
            length: self.length,
            system_identifier: self.system_id,
            sha256: self.sha256.clone(),
        };
        let text = serde_json::to_vec(&document).expect("plain fields");
        let length = u32::try_from(text.len()).expect("a few hundred bytes");
        [&MAGIC[..], &length.to_le_bytes(), &text].concat()
    }
}

impl Growing {
    /// At the end: is it what its facts say?
    fn prove(&mut self) -> Result<()> {
        let Some(digest) = self.digest.take() else {
            return Ok(());
        };
        let found = hex(&digest.finish());
        if self.passed == self.facts.length && found == self.facts.sha256 {
            return Ok(());
        }
        Err(Error::new(
            Kind::Corrupt,
            format!("growing segment {} is damaged", self.facts.segment),
        )
        .detail(format!(
            "It has {} bytes with SHA-256 {found}; it says that it has {} bytes with {}.",
            self.passed, self.facts.length, self.facts.sha256
        )))
    }
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.prove()?;
        }
        if let Some(digest) = &mut self.digest {
            digest.update(&buffer[..count]);
        }
        self.passed += count as u64;
        // More than it says is no reason to go on reading for ever.
        if self.passed > self.facts.length {
            self.prove()?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
