//! Storing the files of a data directory on this host, whether its server runs or not.
//!
//! All workers read what the scan finds; when nothing is being read any more pg_control follows, and then what only
//! the caller knows: backup_label once the server left backup mode, or the WAL of a server that is shut down.

use super::manifest::ManifestObject;
use super::pack::Packing;
use super::pages::{Finished, PageRules, Source};
use super::plan::{self, Plan};
use super::push::{Facts, Job};
use super::scan::{Found, Scan, Unlogged};
use super::{file_mode, history, spec};
use crate::archive::object::ObjectWriter;
use crate::archive::sentinel::{PageChecksums, Spec};
use crate::codec::digest::Crc32c;
use crate::disk::{self, FileKind};
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::page::PAGE_BYTES;
use crate::pg::{Lsn, Segment};
use crate::work::now;
use crate::work::pool;
use crate::work::rate::RateLimit;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A data directory, and how its files are read.
pub(super) struct Directory<'a> {
    pub data: &'a Path,
    /// The one directory of a tablespace that is this server's.
    pub version_directory: String,
    /// What of unlogged relations is read.
    pub unlogged: Unlogged,
    /// Its pg_control, as it was in the beginning.
    pub control: ControlFile,
    /// Pages changed from here to the backup's end are mended by the WAL, whatever we read of them; `None`: nobody
    /// writes them.
    pub excused_from: Option<Lsn>,
}

/// Files that are stored; their manifest still lacks its end.
pub(super) struct Copied<'a> {
    pub plan: Plan<'a>,
    pub manifest: ManifestObject<'a>,
    pub spec: Spec,
    pub findings: PageChecksums,
    /// The copy is consistent from here on.
    pub stop: Lsn,
}

/// Where members are added when all workers are done.
pub(super) struct Tail<'t, 'p, 'm> {
    directory: &'t Directory<'t>,
    plan: &'t mut Plan<'p>,
    manifest: &'t ManifestObject<'p>,
    packing: &'t Packing<'m, 'p>,
}

impl Job<'_> {
    /// Stores the files, then pg_control, then what `end` adds; `end` answers the stop position.
    pub(super) fn copied(
        &self,
        facts: &Facts,
        directory: &Directory<'_>,
        end: impl FnOnce(&mut Tail<'_, '_, '_>) -> Result<Lsn>,
    ) -> Result<Copied<'_>> {
        let (data, excused_from) = (directory.data, directory.excused_from);
        self.archive_history(facts, history::in_directory(data, facts.timeline)?)?;
        let scan = Scan::new(
            data,
            directory.version_directory.clone(),
            directory.unlogged,
        )?;
        let spec = spec::of(data, &scan.tablespaces)?;
        let checks = self.checks_pages(&directory.control);
        let manifest = self.manifest(facts)?;
        let rate = self.options.rate_limit.map(RateLimit::new);
        let packing = Packing::new(
            self.archive.compression,
            self.options.threads,
            Some(&manifest),
            rate.as_ref(),
            self.progress,
            self.stop,
        )?;
        let mut plan = self.plan(facts, self.measure(&scan)?);
        pool::run(
            "backup",
            self.options.threads,
            self.stop,
            |submit| {
                scan.walk(&mut |found| match found.stat.kind {
                    FileKind::Directory => {
                        let modified = found.stat.modified.secs();
                        plan.directory(found.name, found.stat.mode, modified, submit)
                    }
                    _ => {
                        let rules = checks.then(|| plan::page_rules(found.name, excused_from));
                        file(&found, rules.flatten(), &mut plan, &manifest, submit)
                    }
                })?;
                plan.flush(submit)
            },
            |worker, chunk| packing.pack(worker, chunk),
        )?;
        let mut tail = Tail {
            directory,
            plan: &mut plan,
            manifest: &manifest,
            packing: &packing,
        };
        self.control_file(&mut tail)?;
        let stop = end(&mut tail)?;
        plan.close(&mut |chunk| packing.pack(0, chunk))?;
        let findings = PageChecksums {
            checked: checks,
            ..packing.findings(stop)
        };
        drop(packing);
        Ok(Copied {
            plan,
            manifest,
            spec,
            findings,
            stop,
        })
    }

    /// Pages are checked where they carry checksums and have the size that every packaged PostgreSQL has.
    fn checks_pages(&self, control: &ControlFile) -> bool {
        let usual = control.block_size as usize == PAGE_BYTES
            && control.blocks_per_file == PageRules::BLOCKS_PER_FILE;
        usual && control.data_checksums && self.options.verify_checksums
    }

    fn manifest(&self, facts: &Facts) -> Result<ManifestObject<'_>> {
        let compression = self.archive.compression;
        let key = facts.id.manifest(compression.method);
        let object = ObjectWriter::new(&*self.archive.store, key, compression)?;
        ManifestObject::new(facts.version, facts.identity.system_id, object)
    }

    /// Adds up what will be read, for the progress and the size of the parts.
    fn measure(&self, scan: &Scan<'_>) -> Result<u64> {
        let mut total = 0;
        scan.walk(&mut |found| {
            if found.stat.kind == FileKind::File {
                total += found.stat.size;
            }
            self.stop.check()
        })?;
        self.progress.expect(total);
        Ok(total)
    }

    /// pg_control in one read, again until its CRC is right: the server may be writing it.
    fn control_file(&self, tail: &mut Tail<'_, '_, '_>) -> Result<()> {
        let name = Path::new("global/pg_control");
        let path = tail.directory.data.join(name);
        for _ in 0..50 {
            let bytes = disk::read_small(&path)?;
            match ControlFile::parse(&bytes) {
                Ok(_) => return tail.file(name, &bytes),
                Err(e) => log::debug!("pg_control is read again: {}", e.one_line()),
            }
            self.stop.wait(Duration::from_millis(20));
            self.stop.check()?;
        }
        Err(Error::new(
            Kind::Corrupt,
            format!("\"{}\" has a wrong checksum", path.display()),
        )
        .hint("Check the server's disk before anything else."))
    }
}

impl Tail<'_, '_, '_> {
    /// A small file whose bytes we hold, with the mode that the server would give it.
    pub fn file(&mut self, name: &Path, bytes: &[u8]) -> Result<()> {
        let mut crc = Crc32c::new();
        crc.update(bytes);
        let modified = now();
        self.manifest.add(&Finished {
            name: name.to_path_buf(),
            size: bytes.len() as u64,
            modified,
            crc32c: crc.value(),
        })?;
        let mode = file_mode(disk::stat(self.directory.data)?.map_or(0, |stat| stat.mode));
        let packing = self.packing;
        self.plan
            .member(name, mode, modified.secs(), bytes, &mut |chunk| {
                packing.pack(0, chunk)
            })
    }

    /// Segments as members of `pg_wal`; they are not in the manifest, which does not speak of WAL files.
    pub fn wal(&mut self, segments: &[Segment]) -> Result<()> {
        for segment in segments {
            let name = Path::new("pg_wal").join(segment.to_string());
            let path = self.directory.data.join(&name);
            let file = disk::open(&path)?;
            let stat = disk::stat_open(&file, &path)?;
            let source = Arc::new(Source::new(name, file, stat.size, stat.modified, None));
            let packing = self.packing;
            self.plan
                .file(source, 0o600, &mut |chunk| packing.pack(0, chunk))?;
        }
        // The caller looks next whether all was read in time.
        let packing = self.packing;
        self.plan.flush(&mut |chunk| packing.pack(0, chunk))
    }
}

/// Opens and announces a file; one that vanished since it was listed is left to the WAL.
fn file<'p>(
    found: &Found<'_>,
    rules: Option<PageRules>,
    plan: &mut Plan<'p>,
    manifest: &ManifestObject<'_>,
    submit: plan::Submit<'_, 'p>,
) -> Result<()> {
    let file = match disk::open(&found.source) {
        Err(e) if e.kind() == Kind::Missing => return Ok(()),
        other => other?,
    };
    let stat = disk::stat_open(&file, &found.source)?;
    let source = Arc::new(Source::new(
        found.name.to_path_buf(),
        file,
        stat.size,
        stat.modified,
        rules,
    ));
    if stat.size == 0 {
        manifest.add(&source.finished(0))?;
    }
    plan.file(source, stat.mode, submit)
}
