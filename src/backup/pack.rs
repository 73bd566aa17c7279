//! What the workers of a backup do with a chunk: read, check, count, compress, hand to its part.

use super::manifest::ManifestObject;
use super::pages::{self, Findings};
use super::plan::Chunk;
use super::progress::Progress;
use crate::archive::sentinel::PageChecksums;
use crate::codec::{Compression, Compressor};
use crate::error::Result;
use crate::limits::{CHUNK_BYTES, EXCUSED_PAGES_MAX};
use crate::pg::Lsn;
use crate::work::rate::RateLimit;
use crate::work::stop::Stop;
use std::sync::Mutex;

/// How many bad pages are named one by one; the rest is counted.
pub const BAD_PAGES_NAMED: usize = 100;

/// What all workers share.
pub struct Packing<'a, 'm> {
    /// Files that were read to their end; `None` when the server sends its own manifest.
    manifest: Option<&'a ManifestObject<'m>>,
    found: Mutex<Found>,
    rate: Option<&'a RateLimit>,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    workers: Vec<Mutex<Worker>>,
}

/// Pages that did not fit so far.
#[derive(Default)]
struct Found {
    bad: PageChecksums,
    /// Bad unless the WAL reaches to their position.
    excused: Vec<(Lsn, String)>,
}

/// What one worker uses again for each chunk.
struct Worker {
    raw: Vec<u8>,
    compressor: Compressor,
}

impl<'a, 'm> Packing<'a, 'm> {
    /// Buffers and compressors for `threads` workers.
    pub fn new(
        compression: Compression,
        threads: usize,
        manifest: Option<&'a ManifestObject<'m>>,
        rate: Option<&'a RateLimit>,
        progress: &'a dyn Progress,
        stop: &'a Stop,
    ) -> Result<Packing<'a, 'm>> {
        let worker = || {
            let compressor = Compressor::new(compression)?;
            Ok(Mutex::new(Worker {
                raw: Vec::with_capacity(CHUNK_BYTES),
                compressor,
            }))
        };
        let workers = (0..threads.max(1))
            .map(|_| worker())
            .collect::<Result<_>>()?;
        Ok(Packing {
            manifest,
            found: Mutex::default(),
            rate,
            progress,
            stop,
            workers,
        })
    }

    /// Handles one chunk on worker `number`.
    pub fn pack(&self, number: usize, chunk: Chunk<'_>) -> Result<()> {
        let mut worker = self.workers[number]
            .lock()
            .expect("each worker has its own");
        let Worker { raw, compressor } = &mut *worker;
        let mut findings = Findings::default();
        pages::fill(
            &chunk.pieces,
            raw,
            &mut findings,
            &mut |file| match self.manifest {
                Some(manifest) => manifest.add(&file),
                None => Ok(()),
            },
        )?;
        self.report(findings);
        if let Some(rate) = self.rate {
            rate.take(raw.len() as u64, self.stop)?;
        }
        let mut frame = Vec::with_capacity(raw.len() / 4);
        compressor.frame(raw, &mut frame)?;
        let raw_bytes = raw.len() as u64;
        chunk.part.add(chunk.number, frame, raw_bytes, chunk.last)?;
        chunk.packed();
        self.progress.add(raw_bytes);
        Ok(())
    }

    fn report(&self, findings: Findings) {
        if findings == Findings::default() {
            return;
        }
        let mut found = self.found.lock().expect(COUNTING);
        for page in findings.bad_pages {
            found.is_bad(page);
        }
        for (lsn, page) in findings.excused {
            match found.excused.len() < EXCUSED_PAGES_MAX {
                true => found.excused.push((lsn, page)),
                false => found.is_bad(page),
            }
        }
    }

    /// The bad pages of a backup that ends at `stop`. No page that was read can have been changed after it: one that
    /// says so is no page that the WAL mends.
    pub fn findings(&self, stop: Lsn) -> PageChecksums {
        let mut found = self.found.lock().expect(COUNTING);
        for (lsn, page) in std::mem::take(&mut found.excused) {
            if lsn > stop {
                found.is_bad(page);
            }
        }
        found.bad.clone()
    }
}

const COUNTING: &str = "no thread panics while it counts bad pages";

impl Found {
    fn is_bad(&mut self, page: String) {
        log::warn!("page checksum is wrong: {page}");
        self.bad.bad_pages += 1;
        if self.bad.first_bad.len() < BAD_PAGES_NAMED {
            self.bad.first_bad.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Unwatched;
    use super::*;
    use crate::codec::Method;

    #[test]
    fn a_page_is_excused_up_to_the_end_of_the_backup_and_only_so_often() {
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let stop = Stop::new();
        let packing = Packing::new(compression, 1, None, None, &Unwatched, &stop).unwrap();
        packing.report(Findings {
            bad_pages: vec!["bad".into()],
            excused: vec![
                (Lsn(99), "before".into()),
                (Lsn(100), "at the end".into()),
                (Lsn(101), "after".into()),
                (Lsn(u64::MAX), "all ones".into()),
            ],
        });
        let found = packing.findings(Lsn(100));
        assert_eq!(found.first_bad, ["bad", "after", "all ones"]);
        assert_eq!(found.bad_pages, 3);

        packing.report(Findings {
            excused: vec![(Lsn(99), "torn".into()); EXCUSED_PAGES_MAX + 1],
            ..Findings::default()
        });
        assert_eq!(packing.findings(Lsn(100)).bad_pages, 4);
    }
}
