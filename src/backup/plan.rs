//! From members to chunks: the one thread that decides the order of everything in the tar parts.
//!
//! A file is opened and measured in the moment its header is made, so a file that vanished before is never
//! announced, and one that is removed later is still read through its descriptor. From then on its length in
//! the archive is fixed: what it shrinks by becomes zeros, what it grows by is left to the WAL.

use super::pages::{PageRules, Piece, Source};
use super::parts::Part;
use crate::archive::keys::BackupId;
use crate::codec::Method;
use crate::codec::tar::{self, EntryKind, Header};
use crate::error::Result;
use crate::limits::{CHUNK_BYTES, CHUNK_FILES_MAX};
use crate::pg::Lsn;
use crate::pg::page::PAGE_BYTES;
use crate::store::Store;
use std::path::Path;
use std::sync::Arc;

/// Some bytes of a tar part, for one worker to read, check and compress.
pub struct Chunk<'a> {
    /// The part it belongs to.
    pub part: Arc<Part<'a>>,
    /// Its place in the part, from 0.
    pub number: u32,
    /// Whether it is the part's last.
    pub last: bool,
    /// What it is made of.
    pub pieces: Vec<Piece>,
    packed: bool,
}

impl Chunk<'_> {
    /// Its part has it.
    pub fn packed(mut self) {
        self.packed = true;
    }
}

impl Drop for Chunk<'_> {
    /// Left undone, for whatever reason: nobody shall wait for it.
    fn drop(&mut self) {
        if !self.packed {
            self.part.give_up();
        }
    }
}

/// What fills a member up to whole tar blocks.
const PADDING: [u8; 512] = [0; 512];

/// Where finished chunks go; blocks while all workers are busy.
pub type Submit<'s, 'a> = &'s mut dyn FnMut(Chunk<'a>) -> Result<()>;

/// The plan of one backup's parts.
pub struct Plan<'a> {
    store: &'a dyn Store,
    id: BackupId,
    method: Method,
    part_bytes: u64,
    /// How many chunks of a part may wait for an earlier one.
    window: u32,
    files_per_chunk: usize,
    /// All parts so far, in order.
    pub parts: Vec<Arc<Part<'a>>>,
    open: Option<Open<'a>>,
    /// Raw bytes of all files so far.
    pub file_bytes: u64,
}

struct Open<'a> {
    part: Arc<Part<'a>>,
    part_bytes: u64,
    next_chunk: u32,
    pieces: Vec<Piece>,
    files: usize,
    chunk_bytes: usize,
}

impl<'a> Plan<'a> {
    /// A plan of parts of about `part_bytes` raw bytes each, for so many workers, of which `open_files` files are open
    /// at most.
    pub fn new(
        store: &'a dyn Store,
        id: BackupId,
        method: Method,
        part_bytes: u64,
        workers: usize,
        open_files: usize,
    ) -> Plan<'a> {
        // One chunk with each worker and one waiting for it, one that waits to be handed out, one that is filled.
        let chunks = 2 * workers + 2;
        Plan {
            store,
            id,
            method,
            part_bytes,
            window: u32::try_from(2 * workers).unwrap_or(u32::MAX),
            files_per_chunk: (open_files / chunks).clamp(1, CHUNK_FILES_MAX),
            parts: Vec::new(),
            open: None,
            file_bytes: 0,
        }
    }

    /// A directory.
    pub fn directory(
        &mut self,
        name: &Path,
        mode: u32,
        modified_secs: i64,
        submit: Submit<'_, 'a>,
    ) -> Result<()> {
        let mut header = Header::new(name, EntryKind::Directory);
        (header.mode, header.modified_secs) = (mode & 0o7777, modified_secs);
        self.bytes(&header.encode()?, submit)
    }

    /// A file on this host.
    pub fn file(&mut self, source: Arc<Source>, mode: u32, submit: Submit<'_, 'a>) -> Result<()> {
        let mut header = Header::new(&source.name, EntryKind::File);
        header.size = source.size;
        (header.mode, header.modified_secs) =
            (mode & 0o7777, source.modified.0.div_euclid(1_000_000));
        self.bytes(&header.encode()?, submit)?;
        let mut offset = 0;
        while offset < source.size {
            let room = self.opened().room();
            let length = (source.size - offset).min(room as u64) as usize;
            self.opened().take(
                Piece::File {
                    source: source.clone(),
                    offset,
                    length,
                },
                length,
            );
            offset += length as u64;
            self.cut_if_full(submit)?;
        }
        self.file_bytes += source.size;
        self.bytes(&PADDING[..tar::padding(source.size)], submit)?;
        self.close_if_large(submit)
    }

    /// The header of a file whose bytes come through `bytes`.
    pub fn header(&mut self, header: &Header, submit: Submit<'_, 'a>) -> Result<()> {
        if header.kind == EntryKind::File {
            self.file_bytes += header.size;
        }
        self.bytes(&header.encode()?, submit)
    }

    /// Bytes that are in memory.
    pub fn bytes(&mut self, mut bytes: &[u8], submit: Submit<'_, 'a>) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.opened().room().min(bytes.len()));
            self.opened().append(now);
            self.cut_if_full(submit)?;
            bytes = later;
        }
        Ok(())
    }

    /// A whole file that is in memory.
    pub fn member(
        &mut self,
        name: &Path,
        mode: u32,
        modified_secs: i64,
        bytes: &[u8],
        submit: Submit<'_, 'a>,
    ) -> Result<()> {
        let mut header = Header::new(name, EntryKind::File);
        header.size = bytes.len() as u64;
        (header.mode, header.modified_secs) = (mode & 0o7777, modified_secs);
        self.header(&header, submit)?;
        self.bytes(bytes, submit)?;
        self.bytes(&PADDING[..tar::padding(header.size)], submit)
    }

    /// Closes the open part if it is large enough; called between members.
    pub fn close_if_large(&mut self, submit: Submit<'_, 'a>) -> Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.part_bytes >= self.part_bytes)
        {
            self.close(submit)?;
        }
        Ok(())
    }

    /// Hands out what the open part has so far, and keeps it open: everything planned is then on its way.
    pub fn flush(&mut self, submit: Submit<'_, 'a>) -> Result<()> {
        match &mut self.open {
            Some(open) if !open.pieces.is_empty() => submit(open.cut(false)),
            _ => Ok(()),
        }
    }

    /// Ends the open part with tar's end mark.
    pub fn close(&mut self, submit: Submit<'_, 'a>) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        open.append(&tar::END);
        submit(open.cut(true))
    }

    fn opened(&mut self) -> &mut Open<'a> {
        self.open.get_or_insert_with(|| {
            let key = self.id.part(self.parts.len() as u32, self.method);
            let part = Arc::new(Part::new(self.store, key, self.method, self.window));
            self.parts.push(part.clone());
            Open {
                part,
                part_bytes: 0,
                next_chunk: 0,
                pieces: Vec::new(),
                files: 0,
                chunk_bytes: 0,
            }
        })
    }

    fn cut_if_full(&mut self, submit: Submit<'_, 'a>) -> Result<()> {
        match &mut self.open {
            Some(open) if open.room() == 0 || open.files >= self.files_per_chunk => {
                submit(open.cut(false))
            }
            _ => Ok(()),
        }
    }
}

impl<'a> Open<'a> {
    /// Bytes that still fit, in whole pages, so that no page of a file is split between two workers.
    fn room(&self) -> usize {
        CHUNK_BYTES.saturating_sub(self.chunk_bytes) / PAGE_BYTES * PAGE_BYTES
    }

    fn take(&mut self, piece: Piece, length: usize) {
        self.files += usize::from(matches!(piece, Piece::File { .. }));
        self.pieces.push(piece);
        self.chunk_bytes += length;
        self.part_bytes += length as u64;
    }

    /// Adds bytes, to the last piece where that is in memory too.
    fn append(&mut self, bytes: &[u8]) {
        if let Some(Piece::Bytes(last)) = self.pieces.last_mut() {
            last.extend_from_slice(bytes);
            self.chunk_bytes += bytes.len();
            self.part_bytes += bytes.len() as u64;
        } else if !bytes.is_empty() {
            self.take(Piece::Bytes(bytes.to_vec()), bytes.len());
        }
    }

    fn cut(&mut self, last: bool) -> Chunk<'a> {
        let number = self.next_chunk;
        self.next_chunk += 1;
        (self.files, self.chunk_bytes) = (0, 0);
        Chunk {
            part: self.part.clone(),
            number,
            last,
            pieces: std::mem::take(&mut self.pieces),
            packed: false,
        }
    }
}

/// The rules by which pages of `name` are checked, if its pages carry checksums at all.
pub fn page_rules(name: &Path, excused_from: Option<Lsn>) -> Option<PageRules> {
    let directory = name.parent()?;
    let (relation, _) = super::scan::relation_of(name.file_name()?.to_str()?)?;
    let _: u64 = relation.parse().ok()?;
    if !super::scan::holds_relations(directory) {
        return None;
    }
    let segment = name
        .file_name()?
        .to_str()?
        .split_once('.')
        .map_or(Some(0), |(_, number)| number.parse().ok())?;
    Some(PageRules {
        excused_from,
        first_block: segment * PageRules::BLOCKS_PER_FILE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timestamp::Timestamp;
    use crate::store::mem::MemStore;
    use std::sync::Weak;

    #[test]
    fn few_files_are_open_at_a_time_however_small_they_are() {
        let store = MemStore::new();
        let id = "base_000000010000000000000002_00000040".parse().unwrap();
        let mut plan = Plan::new(&store, id, Method::Zstd, 1 << 40, 2, 20);
        let (mut sources, mut chunks): (Vec<Weak<Source>>, Vec<Vec<usize>>) = Default::default();
        let mut submit = |chunk: Chunk<'_>| {
            let files = chunk.pieces.iter().filter_map(|piece| match piece {
                Piece::File { length, .. } => Some(*length),
                Piece::Bytes(_) => None,
            });
            chunks.push(files.collect());
            Ok(())
        };
        for size in [1, 1, 1, 0, 1, 1, 1, 3 * CHUNK_BYTES as u64 / 2, 1] {
            let file = tempfile::tempfile().unwrap();
            let name = "base/5/1".into();
            let source = Arc::new(Source::new(name, file, size, Timestamp(0), None));
            sources.push(Arc::downgrade(&source));
            plan.file(source, 0o600, &mut submit).unwrap();
            let open = sources.iter().filter(|source| source.strong_count() > 0);
            assert!(open.count() <= 3);
        }
        plan.close(&mut submit).unwrap();
        let counts: Vec<usize> = chunks.iter().map(Vec::len).collect();
        // Twenty for six chunks; the large file is in two of them.
        assert_eq!(counts, [3, 3, 1, 2]);
    }
}
