//! Reading files for a backup: page checksums and the manifest's CRC-32C come from the same pass over the data.

use crate::codec::digest::{Crc32c, crc32c_combine};
use crate::disk::File;
use crate::error::{Error, Result};
use crate::pg::Lsn;
use crate::pg::page::{self, PAGE_BYTES, PageVerdict};
use crate::pg::timestamp::Timestamp;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A file that is being backed up. Its length was fixed when its tar header was made.
pub struct Source {
    /// Its name in the backup.
    pub name: PathBuf,
    /// Its length in the backup.
    pub size: u64,
    /// Its modification time.
    pub modified: Timestamp,
    file: File,
    rules: Option<PageRules>,
    sums: Mutex<Sums>,
}

/// Where bytes of a chunk come from.
pub enum Piece {
    /// Headers, padding, members that are in memory.
    Bytes(Vec<u8>),
    /// `length` bytes of a file from `offset`.
    File {
        /// The file.
        source: Arc<Source>,
        /// First byte; a multiple of the page size.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
}

/// How pages of a file are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRules {
    /// Pages changed at or after this position are mended by the WAL, whatever we read of them. `None`: no WAL will be
    /// replayed.
    pub excused_from: Option<Lsn>,
    /// The block number of the file's first page in its relation.
    pub first_block: u32,
}

impl PageRules {
    /// Pages in a relation's segment file: 1 GiB of 8 KiB, as every packaged PostgreSQL is built.
    pub const BLOCKS_PER_FILE: u32 = 131_072;
}

/// CRCs of a file's pieces as they come in, in any order.
#[derive(Default)]
struct Sums {
    pieces: Vec<(u64, u32, u64)>,
    bytes: u64,
}

/// What reading found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Bad pages, as `name, block n`.
    pub bad_pages: Vec<String>,
    /// Pages that look as bad and were changed, as they say themselves, since the backup began: fine if the WAL reaches
    /// to that position, which only the backup's end shows.
    pub excused: Vec<(Lsn, String)>,
}

/// What a page turned out to be.
enum Page {
    Fine,
    Bad,
    Excused(Lsn),
}

/// A file that was read to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its name in the backup.
    pub name: PathBuf,
    /// Its length in the backup.
    pub size: u64,
    /// Its modification time.
    pub modified: Timestamp,
    /// CRC-32C of the bytes in the backup.
    pub crc32c: u32,
}

/// How often a page that looks bad is read again: a torn page is whole again once the server's write is done.
const TRIES: u32 = 5;

impl Source {
    /// An open file that will be `size` bytes long in the backup.
    pub fn new(
        name: PathBuf,
        file: File,
        size: u64,
        modified: Timestamp,
        rules: Option<PageRules>,
    ) -> Source {
        Source {
            name,
            size,
            modified,
            file,
            rules,
            sums: Mutex::default(),
        }
    }

    /// Appends `length` bytes from `offset` to `out`, zeros where the file became shorter, and checks pages.
    /// Answers the file's CRC when this was its last piece.
    fn read(
        &self,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> Result<Option<Finished>> {
        let from = out.len();
        out.resize(from + length, 0);
        let bytes = &mut out[from..];
        let read = self.fill(bytes, offset)?;
        if let Some(rules) = self.rules {
            for start in (0..read / PAGE_BYTES * PAGE_BYTES).step_by(PAGE_BYTES) {
                let block =
                    rules.first_block + ((offset + start as u64) / PAGE_BYTES as u64) as u32;
                let name = || format!("{}, block {block}", self.name.display());
                let page = &mut bytes[start..start + PAGE_BYTES];
                match self.page(page, offset + start as u64, block, rules)? {
                    Page::Fine => {}
                    Page::Bad => findings.bad_pages.push(name()),
                    Page::Excused(lsn) => findings.excused.push((lsn, name())),
                }
            }
        }
        Ok(self.account(offset, bytes))
    }

    /// Reads until `bytes` is full or the file ends; says how much came.
    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::io(
                        format!("could not read file \"{}\"", self.name.display()),
                        e,
                    ));
                }
            }
        }
        Ok(done)
    }

    fn page(&self, bytes: &mut [u8], offset: u64, block: u32, rules: PageRules) -> Result<Page> {
        let mut changed = Lsn(0);
        for _ in 0..TRIES {
            match page::verify(bytes, block) {
                PageVerdict::New | PageVerdict::Good => return Ok(Page::Fine),
                PageVerdict::Bad { lsn, .. } => changed = lsn,
            }
            if self.fill(bytes, offset)? < bytes.len() {
                return Ok(Page::Fine); // truncated meanwhile
            }
        }
        Ok(match rules.excused_from {
            Some(from) if changed >= from => Page::Excused(changed),
            _ => Page::Bad,
        })
    }

    fn account(&self, offset: u64, bytes: &[u8]) -> Option<Finished> {
        let mut crc = Crc32c::new();
        crc.update(bytes);
        let mut sums = self
            .sums
            .lock()
            .expect("no thread panics while it holds the sums of a file");
        sums.pieces.push((offset, crc.value(), bytes.len() as u64));
        sums.bytes += bytes.len() as u64;
        if sums.bytes < self.size {
            return None;
        }
        sums.pieces.sort_unstable();
        let crc32c = sums.pieces.iter().fold(0, |crc, (_, next, length)| {
            crc32c_combine(crc, *next, *length as usize)
        });
        Some(self.finished(crc32c))
    }

    /// The file with its CRC; also for an empty file, which has no pieces.
    pub fn finished(&self, crc32c: u32) -> Finished {
        Finished {
            name: self.name.clone(),
            size: self.size,
            modified: self.modified,
            crc32c,
        }
    }
}

/// Fills `raw` with the bytes of a chunk. Files that end in it are handed to `done`.
pub fn fill(
    pieces: &[Piece],
    raw: &mut Vec<u8>,
    findings: &mut Findings,
    done: &mut dyn FnMut(Finished) -> Result<()>,
) -> Result<()> {
    raw.clear();
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => raw.extend_from_slice(bytes),
            Piece::File {
                source,
                offset,
                length,
            } => {
                if let Some(finished) = source.read(*offset, *length, raw, findings)? {
                    done(finished)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8], size: u64, rules: Option<PageRules>) -> Arc<Source> {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(Source::new(
            "base/5/1".into(),
            file,
            size,
            Timestamp(0),
            rules,
        ))
    }

    fn read(source: &Arc<Source>, cuts: &[(u64, usize)]) -> (Vec<u8>, Vec<Finished>, Findings) {
        let (mut all, mut raw, mut findings, mut done) = (
            vec![0; source.size as usize],
            Vec::new(),
            Findings::default(),
            Vec::new(),
        );
        for &(offset, length) in cuts {
            let piece = Piece::File {
                source: source.clone(),
                offset,
                length,
            };
            fill(&[piece], &mut raw, &mut findings, &mut |f| {
                done.push(f);
                Ok(())
            })
            .unwrap();
            all[offset as usize..offset as usize + length].copy_from_slice(&raw);
        }
        (all, done, findings)
    }

    #[test]
    fn the_crc_is_of_the_whole_file_whatever_the_order() {
        let bytes: Vec<u8> = (0..20_000u32).map(|n| (n * 31 % 251) as u8).collect();
        let mut crc = Crc32c::new();
        crc.update(&bytes);
        let source = source(&bytes, 20_000, None);
        let (all, done, _) = read(&source, &[(8192, 8192), (16_384, 3616), (0, 8192)]);
        assert!(all == bytes);
        assert_eq!(done, [source.finished(crc.value())]);
    }

    #[test]
    fn what_a_file_shrinks_by_becomes_zeros() {
        let source = source(&[7; 5000], 9000, None);
        let (all, done, _) = read(&source, &[(0, 8192), (8192, 808)]);
        assert!(all[..5000].iter().all(|b| *b == 7) && all[5000..].iter().all(|b| *b == 0));
        let mut crc = Crc32c::new();
        crc.update(&all);
        assert_eq!(done[0].crc32c, crc.value());
    }

    #[test]
    fn a_bad_page_is_reported_unless_the_wal_mends_it() {
        let mut bytes = vec![0; 3 * PAGE_BYTES]; // new, then bad, then new
        bytes[PAGE_BYTES..PAGE_BYTES + 32].fill(0x11);
        let lsn = Lsn(0x1111_1111_1111_1111);
        let named = "base/5/1, block 131073".to_string();
        let bad = || Findings {
            bad_pages: vec![named.clone()],
            ..Findings::default()
        };
        let excused = Findings {
            excused: vec![(lsn, named.clone())],
            ..Findings::default()
        };
        for (excused_from, expected) in [
            (Some(Lsn(lsn.0 + 1)), bad()),
            (Some(lsn), excused),
            (None, bad()),
        ] {
            let rules = PageRules {
                excused_from,
                first_block: PageRules::BLOCKS_PER_FILE,
            };
            let source = source(&bytes, bytes.len() as u64, Some(rules));
            let (_, _, findings) = read(&source, &[(0, bytes.len())]);
            assert_eq!(findings, expected, "{excused_from:?}");
        }
    }
}
