//! What the workers of a backup do with a chunk: read, check, count, compress, hand to its part.

use super::manifest::ManifestObject;
use super::pages::{self, Findings};
use super::plan::Chunk;
use super::progress::Progress;
use crate::archive::sentinel::PageChecksums;
use crate::codec::{Compression, Compressor};
use crate::error::Result;
use crate::limits::CHUNK_BYTES;
use crate::work::rate::RateLimit;
use crate::work::stop::Stop;
use std::sync::Mutex;

/// How many bad pages are named one by one; the rest is counted.
pub const BAD_PAGES_NAMED: usize = 100;

/// What all workers share.
pub struct Packing<'a, 'm> {
    /// Files that were read to their end; `None` when the server sends its own manifest.
    manifest: Option<&'a ManifestObject<'m>>,
    /// Bad pages so far.
    pub findings: Mutex<PageChecksums>,
    rate: Option<&'a RateLimit>,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    workers: Vec<Mutex<Worker>>,
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
            findings: Mutex::default(),
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
        if findings.bad_pages.is_empty() {
            return;
        }
        let mut all = self
            .findings
            .lock()
            .expect("no thread panics while it counts bad pages");
        for page in findings.bad_pages {
            log::warn!("page checksum is wrong: {page}");
            all.bad_pages += 1;
            if all.first_bad.len() < BAD_PAGES_NAMED {
                all.first_bad.push(page);
            }
        }
    }
}
