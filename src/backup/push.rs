//! Taking a base backup of files on this host: of a running server, or of one that is shut down.
//!
//! The order is the promise: owner first; every file read before the server is told to stop; the sentinel last,
//! and only when the WAL from start to stop is archived and the store shows every part in its full size.

use super::manifest::ManifestObject;
use super::owner::{self, Owner};
use super::pack::Packing;
use super::pages::{Finished, PageRules, Source};
use super::plan::{self, Plan};
use super::progress::Progress;
use super::scan::{Found, Scan};
use super::{file_mode, history, now, server, spec};
use crate::archive::Archive;
use crate::archive::identity::Identity;
use crate::archive::keys::BackupId;
use crate::archive::object::ObjectWriter;
use crate::archive::sentinel::{
    self, Details, Metadata, Mode, Object, PageChecksums, Sentinel, Spec,
};
use crate::codec::digest::Crc32c;
use crate::disk::{self, FileKind};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::pg::control::ControlFile;
use crate::pg::manifest::WalRange;
use crate::pg::page::PAGE_BYTES;
use crate::pg::timestamp::Timestamp;
use crate::pg::version::ServerVersion;
use crate::pg::{Lsn, Segment, TimelineId};
use crate::wire::Conn;
use crate::work::pool;
use crate::work::rate::RateLimit;
use crate::work::stop::Stop;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First pause between two looks for the backup's WAL: an archiver that works is done in a moment.
const WAL_PAUSE_FIRST: Duration = Duration::from_millis(20);

/// Longest pause between two looks; each is a LIST.
const WAL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often the log says that the backup still waits.
const WAL_REPORT: Duration = Duration::from_secs(30);

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Free text, kept in the sentinel and given to the server.
    pub label: String,
    /// Workers that read, compress and send.
    pub threads: usize,
    /// Check page checksums where the cluster has them.
    pub verify_checksums: bool,
    /// Bytes read per second, of the whole process.
    pub rate_limit: Option<u64>,
    /// How long to wait for the last WAL segment to be archived.
    pub wal_timeout: Duration,
}

/// What a backup works with.
pub struct Job<'a> {
    /// Where it goes.
    pub archive: &'a Archive,
    /// How it is taken.
    pub options: &'a Options,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may end it.
    pub stop: &'a Stop,
}

/// A complete backup.
#[derive(Debug)]
pub struct Taken {
    /// Its name.
    pub id: BackupId,
    /// Its sentinel.
    pub sentinel: Sentinel,
}

/// Facts of a backup, collected on the way.
pub(super) struct Facts {
    pub id: BackupId,
    pub mode: Mode,
    pub version: ServerVersion,
    pub identity: Identity,
    pub timeline: TimelineId,
    pub start: Lsn,
    pub start_time: Timestamp,
}

/// What was stored.
pub(super) struct Stored {
    pub parts: Vec<Object>,
    pub manifest: Object,
    pub file_bytes: u64,
    pub findings: PageChecksums,
}

impl Job<'_> {
    /// Backs up the data directory of the running server that `conn` is connected to.
    pub fn local(&self, conn: &mut Conn, data: &Path) -> Result<Taken> {
        let server = server::ask(conn)?;
        server.refuse_standby()?;
        server.refuse_other_directory(data)?;
        server.warn_without_archiving();
        self.archive.claim(&server.identity, now())?;
        let start_time = now();
        log::info!("waiting for the server's checkpoint");
        let (start, timeline) = server::start_backup(conn, &server, &self.options.label)?;
        let id = BackupId::new(timeline, start, server.identity.segment_size);
        log::info!("backup {id} starts at {start} on timeline {timeline}");
        let facts = Facts {
            id,
            mode: Mode::Local,
            version: server.version,
            identity: server.identity.clone(),
            timeline,
            start,
            start_time,
        };
        // Ending the session ends backup mode; the owner's objects go with it.
        self.owned(&facts, |job| job.local_started(conn, data, &server, &facts))
    }

    /// Backs up the data directory of a server that was shut down cleanly. The WAL that it needs is inside.
    pub fn offline(&self, data: &Path) -> Result<Taken> {
        let control = super::offline::shut_down_cluster(data)?;
        let stop = control.checkpoint_end();
        let identity = Identity {
            system_id: control.system_id,
            major: control.major,
            segment_size: control.segment_size,
        };
        self.archive.claim(&identity, now())?;
        let facts = Facts {
            id: BackupId::new(control.timeline, control.redo, control.segment_size),
            mode: Mode::Offline,
            version: ServerVersion(control.major * 10_000),
            identity,
            timeline: control.timeline,
            start: control.redo,
            start_time: now(),
        };
        self.owned(&facts, |job| {
            job.offline_started(data, &control, stop, &facts)
        })
    }

    /// Takes the backup's name, does the work, and removes what it stored if it fails. The sentinel comes last.
    pub(super) fn owned(
        &self,
        facts: &Facts,
        work: impl FnOnce(&Self) -> Result<Taken>,
    ) -> Result<Taken> {
        let owner = Owner::current(facts.start_time)?;
        owner::take(self.archive, &facts.id, &owner)?;
        let taken = work(self).and_then(|taken| self.stop.check().map(|()| taken));
        let taken = taken.inspect_err(|_| self.give_up(&facts.id, &owner))?;
        // From here on nothing is removed, whatever happens: a sentinel whose acknowledgement was lost is there, and
        // a backup that is listed must be whole.
        self.archive
            .create_sentinel(&taken.id, &taken.sentinel)
            .map_err(|e| {
                e.context(format!(
                    "it is not known whether backup {} became complete",
                    taken.id
                ))
                .hint("Everything else of it is stored and is left there; seawall backup-list shows whether it counts.")
            })?;
        Ok(taken)
    }

    fn give_up(&self, id: &BackupId, owner: &Owner) {
        log::info!("removing the parts of unfinished backup {id}");
        if let Err(cleanup) = owner::give_up(self.archive, id, owner) {
            log::warn!("could not remove them all: {}", cleanup.one_line());
        }
    }

    fn local_started(
        &self,
        conn: &mut Conn,
        data: &Path,
        server: &server::Server,
        facts: &Facts,
    ) -> Result<Taken> {
        self.archive_history(facts, history::in_directory(data, facts.timeline)?)?;
        let scan = Scan::new(data, server.version_directory())?;
        let spec = spec::of(data, &scan.tablespaces)?;
        let rules = self.checks_pages(server.data_checksums, &server::control_file(data)?);
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
                self.files(
                    &scan,
                    &mut plan,
                    &manifest,
                    rules.then_some(facts.start),
                    submit,
                )?;
                plan.flush(submit)
            },
            |worker, chunk| packing.pack(worker, chunk),
        )?;
        // Nothing is being read any more: pg_control is the last.
        let submit = &mut |chunk| packing.pack(0, chunk);
        self.control_file(data, &mut plan, &manifest, submit)?;
        // Only now: everything was read while the server was in backup mode.
        let stopped = server::stop_backup(conn, server)?;
        let (name, label) = (Path::new("backup_label"), stopped.label.as_bytes());
        self.memory_file(data, name, label, &mut plan, &manifest, submit)?;
        plan.close(submit)?;
        let findings = self.findings(&packing, rules);
        drop(packing);
        log::info!("all files are stored; the backup ends at {}", stopped.stop);
        self.wait_for_wal(facts, stopped.stop, Some(conn))?;
        let stored = self.stored(&plan, manifest, facts, stopped.stop, findings)?;
        self.complete(facts, stopped.stop, spec, stored, &server.version_text)
    }

    fn offline_started(
        &self,
        data: &Path,
        control: &ControlFile,
        stop: Lsn,
        facts: &Facts,
    ) -> Result<Taken> {
        self.archive_history(facts, history::in_directory(data, facts.timeline)?)?;
        let scan = Scan::new(
            data,
            format!("PG_{}_{}", control.major, control.catalog_version),
        )?;
        let spec = spec::of(data, &scan.tablespaces)?;
        let rules = self.checks_pages(control.data_checksums, control);
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
        let segments = sentinel::needed_segments(
            facts.timeline,
            facts.start,
            stop,
            facts.identity.segment_size,
        )?;
        pool::run(
            "backup",
            self.options.threads,
            self.stop,
            |submit| {
                self.files(
                    &scan,
                    &mut plan,
                    &manifest,
                    rules.then_some(Lsn(u64::MAX)),
                    submit,
                )?;
                super::offline::wal_members(data, &segments, &mut plan, submit)?;
                self.control_file(data, &mut plan, &manifest, submit)?;
                plan.close(submit)
            },
            |worker, chunk| packing.pack(worker, chunk),
        )?;
        let again = super::offline::shut_down_cluster(data)?;
        if again.checkpoint != control.checkpoint {
            return Err(Error::new(
                Kind::Refused,
                "the server was started while its files were read",
            )
            .hint("Begin again: with the server shut down, or without --while-offline."));
        }
        let findings = self.findings(&packing, rules);
        drop(packing);
        let stored = self.stored(&plan, manifest, facts, stop, findings)?;
        self.complete(
            facts,
            stop,
            spec,
            stored,
            &format!("PostgreSQL {}", facts.version),
        )
    }

    /// Pages are checked where they carry checksums and have the size that every packaged PostgreSQL has.
    fn checks_pages(&self, checksums: bool, control: &ControlFile) -> bool {
        let usual = control.block_size as usize == PAGE_BYTES
            && control.blocks_per_file == PageRules::BLOCKS_PER_FILE;
        checksums && self.options.verify_checksums && usual
    }

    fn manifest(&self, facts: &Facts) -> Result<ManifestObject<'_>> {
        let compression = self.archive.compression;
        let key = facts.id.manifest(compression.method);
        let object = ObjectWriter::new(&*self.archive.store, key, compression)?;
        ManifestObject::new(facts.version, facts.identity.system_id, object)
    }

    /// A plan whose parts are large enough that there are never too many.
    pub(super) fn plan(&self, facts: &Facts, total: u64) -> Plan<'_> {
        let part_bytes = limits::TAR_PART_BYTES.max(total / limits::TAR_PARTS_MAX);
        Plan::new(
            &*self.archive.store,
            facts.id,
            self.archive.compression.method,
            part_bytes,
            self.options.threads,
        )
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

    fn files<'p>(
        &self,
        scan: &Scan<'_>,
        plan: &mut Plan<'p>,
        manifest: &ManifestObject<'_>,
        checked_before: Option<Lsn>,
        submit: plan::Submit<'_, 'p>,
    ) -> Result<()> {
        scan.walk(&mut |found| match found.stat.kind {
            FileKind::Directory => plan.directory(
                found.name,
                found.stat.mode,
                found.stat.modified.secs(),
                submit,
            ),
            _ => file(&found, plan, manifest, checked_before, submit),
        })
    }

    /// pg_control in one read, again until its CRC is right: the server may be writing it.
    fn control_file<'p>(
        &self,
        data: &Path,
        plan: &mut Plan<'p>,
        manifest: &ManifestObject<'_>,
        submit: plan::Submit<'_, 'p>,
    ) -> Result<()> {
        let path = data.join("global/pg_control");
        for _ in 0..50 {
            let bytes = disk::read_small(&path)?;
            match ControlFile::parse(&bytes) {
                Ok(_) => {
                    let name = Path::new("global/pg_control");
                    return self.memory_file(data, name, &bytes, plan, manifest, submit);
                }
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

    /// A small file whose bytes we hold, with the mode that the server would give it.
    fn memory_file<'p>(
        &self,
        data: &Path,
        name: &Path,
        bytes: &[u8],
        plan: &mut Plan<'p>,
        manifest: &ManifestObject<'_>,
        submit: plan::Submit<'_, 'p>,
    ) -> Result<()> {
        let mut crc = Crc32c::new();
        crc.update(bytes);
        let modified = now();
        manifest.add(&Finished {
            name: name.to_path_buf(),
            size: bytes.len() as u64,
            modified,
            crc32c: crc.value(),
        })?;
        let mode = file_mode(disk::stat(data)?.map_or(0, |stat| stat.mode));
        plan.member(name, mode, modified.secs(), bytes, submit)
    }

    fn findings(&self, packing: &Packing<'_, '_>, checked: bool) -> PageChecksums {
        let found = packing
            .findings
            .lock()
            .expect("the workers have ended")
            .clone();
        PageChecksums { checked, ..found }
    }

    /// Waits until every segment from start to the last byte of the backup is archived (P5).
    pub(super) fn wait_for_wal(
        &self,
        facts: &Facts,
        stop: Lsn,
        mut conn: Option<&mut Conn>,
    ) -> Result<()> {
        let segments = sentinel::needed_segments(
            facts.timeline,
            facts.start,
            stop,
            facts.identity.segment_size,
        )?;
        let (began, mut pause, mut next_report) = (Instant::now(), WAL_PAUSE_FIRST, Duration::ZERO);
        loop {
            let missing = self.archive.missing_wal(&segments)?;
            let Some(first) = missing.first() else {
                return Ok(());
            };
            let waited = began.elapsed();
            if waited >= self.options.wal_timeout {
                return Err(self.wal_is_missing(first, missing.len(), conn.take()));
            }
            if waited >= next_report {
                log::info!(
                    "waiting for {} WAL segments to be archived, from {first}",
                    missing.len()
                );
                next_report = waited + WAL_REPORT;
            }
            self.stop.wait(pause.min(self.options.wal_timeout - waited));
            self.stop.check()?;
            pause = (pause * 2).min(WAL_PAUSE_MAX);
        }
    }

    fn wal_is_missing(&self, first: &Segment, count: usize, conn: Option<&mut Conn>) -> Error {
        let told = conn.and_then(|conn| server::last_archiver_failure(conn).ok().flatten());
        let detail = told.map(|text| format!(" {text}")).unwrap_or_default();
        Error::new(
            Kind::Unavailable,
            format!(
                "WAL segment {first} was not archived within {} s",
                self.options.wal_timeout.as_secs()
            ),
        )
        .detail(format!(
            "{count} of the segments that the backup needs are not in {}.{detail}",
            self.archive.store.location()
        ))
        .hint(
            "Check archive_mode, archive_command and the server's log; the backup was removed. \
                 --wal-timeout waits longer.",
        )
    }

    /// Collects the finished objects and asks the store whether it shows them in full.
    fn stored(
        &self,
        plan: &Plan<'_>,
        manifest: ManifestObject<'_>,
        facts: &Facts,
        stop: Lsn,
        findings: PageChecksums,
    ) -> Result<Stored> {
        let range = WalRange {
            timeline: facts.timeline,
            start: facts.start,
            end: stop,
        };
        let manifest = manifest.finish(range)?;
        Ok(Stored {
            parts: finished_parts(plan)?,
            manifest,
            file_bytes: plan.file_bytes,
            findings,
        })
    }

    /// Everything is stored: the documents. The sentinel is left to `owned`.
    pub(super) fn complete(
        &self,
        facts: &Facts,
        stop: Lsn,
        spec: Spec,
        stored: Stored,
        version_text: &str,
    ) -> Result<Taken> {
        self.check_listing(facts, &stored)?;
        self.archive
            .create(&facts.id.extended_version(), version_text.as_bytes())?;
        let finish_time = now();
        let details = Details {
            format: sentinel::FORMAT,
            tool_version: env!("CARGO_PKG_VERSION").to_string(),
            system_identifier: facts.identity.system_id,
            server_version: facts.version.0,
            segment_size: facts.identity.segment_size.bytes(),
            timeline: facts.timeline.0,
            start_lsn: facts.start.to_string(),
            stop_lsn: stop.to_string(),
            start_time: facts.start_time.to_string(),
            finish_time: finish_time.to_string(),
            host: owner::host_name(),
            mode: facts.mode,
            label: self.options.label.clone(),
            manifest: stored.manifest,
            parts: stored.parts,
            page_checksums: stored.findings,
        };
        let metadata = Metadata {
            start_time: facts.start_time.to_string(),
            finish_time: finish_time.to_string(),
            date_fmt: "%Y-%m-%dT%H:%M:%S.%fZ".to_string(),
            hostname: owner::host_name(),
            data_dir: spec.base_prefix.clone(),
            pg_version: facts.version.0,
            start_lsn: facts.start.0,
            finish_lsn: stop.0,
            is_permanent: false,
            system_identifier: facts.identity.system_id.0,
            uncompressed_size: stored.file_bytes,
            compressed_size: details.stored_bytes(),
            user_data: serde_json::Value::Null,
        };
        self.archive.write_metadata(&facts.id, &metadata)?;
        Ok(Taken {
            id: facts.id,
            sentinel: Sentinel::new(details, spec, stored.file_bytes)?,
        })
    }

    /// The store must list every part and the manifest in the size that was sent.
    fn check_listing(&self, facts: &Facts, stored: &Stored) -> Result<()> {
        let mut listed = std::collections::BTreeMap::new();
        self.archive
            .store
            .list(&facts.id.directory(), "", &mut |object| {
                listed.insert(object.key.to_string(), object.size);
                Ok(true)
            })?;
        for object in stored.parts.iter().chain([&stored.manifest]) {
            let size = listed.get(&object.key).copied();
            if size != Some(object.stored_bytes) {
                return Err(Error::new(Kind::Unavailable, format!("the store does not show {} as it was sent", object.key))
                    .detail(format!("Sent {} bytes, listed {}.", object.stored_bytes, size.map_or("nothing".to_string(), |n| format!("{n} bytes"))))
                    .hint("The store acknowledged the object and lost it: do not trust it before this is explained."));
            }
        }
        Ok(())
    }
}

/// All parts must be finished once their last chunk was packed.
pub(super) fn finished_parts(plan: &Plan<'_>) -> Result<Vec<Object>> {
    let unfinished = || Error::new(Kind::Bug, "a part of the backup is not finished");
    plan.parts
        .iter()
        .map(|part| part.finished().ok_or_else(unfinished))
        .collect()
}

/// Opens and announces a file; one that vanished since it was listed is left to the WAL.
fn file<'p>(
    found: &Found<'_>,
    plan: &mut Plan<'p>,
    manifest: &ManifestObject<'_>,
    checked_before: Option<Lsn>,
    submit: plan::Submit<'_, 'p>,
) -> Result<()> {
    let file = match disk::open(&found.source) {
        Err(e) if e.kind() == Kind::Missing => return Ok(()),
        other => other?,
    };
    let stat = disk::stat_open(&file, &found.source)?;
    let rules = checked_before.and_then(|before| plan::page_rules(found.name, before));
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

#[cfg(test)]
mod tests {
    use super::super::parts::Part;
    use super::super::progress::Unwatched;
    use super::*;
    use crate::archive::state::State;
    use crate::codec::{Compression, Method};
    use crate::pg::{SegmentSize, SystemId};
    use crate::store::faulty::{Fault, Faulty, Verb};
    use crate::store::mem::MemStore;
    use crate::store::{Key, Store, When};

    fn facts() -> Facts {
        Facts {
            id: "base_000000010000000000000002_00000040".parse().unwrap(),
            mode: Mode::Local,
            version: ServerVersion(150_000),
            identity: Identity {
                system_id: SystemId(7),
                major: 15,
                segment_size: SegmentSize::DEFAULT,
            },
            timeline: TimelineId(1),
            start: Lsn(0x200_0028),
            start_time: Timestamp(0),
        }
    }

    /// A backup of one part whose sentinel is a put that fails by `script`.
    fn take(
        store: &MemStore,
        script: &[(Verb, Fault)],
        work: &dyn Fn() -> Result<()>,
    ) -> Result<Taken> {
        let archive = Archive {
            store: Box::new(Faulty::scripted(Box::new(store.clone()), script.to_vec())),
            compression: Compression::new(Method::Zstd, None).unwrap(),
            state: State::none(),
        };
        let options = Options {
            label: String::new(),
            threads: 1,
            verify_checksums: false,
            rate_limit: None,
            wal_timeout: Duration::ZERO,
        };
        let job = Job {
            archive: &archive,
            options: &options,
            progress: &Unwatched,
            stop: &Stop::new(),
        };
        let facts = facts();
        job.owned(&facts, |job| {
            let part = Part::new(
                &*job.archive.store,
                facts.id.part(0, Method::Zstd),
                Method::Zstd,
                1,
            );
            part.add(0, b"frame".to_vec(), 5, true)?;
            let key = facts.id.manifest(Method::Zstd);
            let manifest = ObjectWriter::new(&*job.archive.store, key, archive.compression)?;
            let stored = Stored {
                parts: vec![part.finished().unwrap()],
                manifest: manifest.finish()?,
                file_bytes: 5,
                findings: PageChecksums::default(),
            };
            work()?;
            job.complete(
                &facts,
                Lsn(0x200_0100),
                Spec::default(),
                stored,
                "PostgreSQL",
            )
        })
    }

    fn keys(store: &MemStore) -> Vec<String> {
        let mut keys = Vec::new();
        let list = store.list("basebackups_005/", "", &mut |object| {
            keys.push(object.key.to_string());
            Ok(true)
        });
        list.unwrap();
        keys
    }

    /// Owner, part, manifest, version text, metadata; then the sentinel.
    const PUTS_BEFORE: usize = 5;

    #[test]
    fn a_sentinel_whose_acknowledgement_was_lost_keeps_its_parts() {
        for kind in [Kind::Transient, Kind::Interrupted, Kind::Denied, Kind::Io] {
            let store = MemStore::new();
            let mut script = vec![(Verb::Put, Fault::Short(u64::MAX)); PUTS_BEFORE];
            script.push((Verb::Put, Fault::After(kind)));
            assert_eq!(
                take(&store, &script, &|| Ok(())).err().unwrap().kind(),
                kind
            );
            let keys = keys(&store);
            let sentinel = facts().id.sentinel().to_string();
            assert!(
                keys.contains(&sentinel),
                "the fault did not meet the sentinel"
            );
            let part = facts().id.part(0, Method::Zstd).to_string();
            assert!(
                keys.contains(&part),
                "listed, but its part is gone: {keys:?}"
            );
        }
    }

    #[test]
    fn a_failure_removes_what_was_stored_and_only_under_our_own_name() {
        let failed = || Err(Error::new(Kind::Full, "no room"));
        let store = MemStore::new();
        assert_eq!(take(&store, &[], &failed).err().unwrap().kind(), Kind::Full);
        assert_eq!(keys(&store), [] as [String; 0]);

        let store = MemStore::new();
        let other = store.clone();
        let theirs: Key = facts().id.owner();
        let overtaken = || {
            let mut document = serde_json::to_value(Owner::current(now()).unwrap()).unwrap();
            document["id"] = "another".into();
            let bytes = serde_json::to_vec(&document).unwrap();
            other.put(&theirs, &bytes, When::Always)?;
            failed()
        };
        assert!(take(&store, &[], &overtaken).is_err());
        let part = facts().id.part(0, Method::Zstd).to_string();
        assert!(
            keys(&store).contains(&part),
            "another owner's part was removed"
        );
    }

    #[test]
    fn a_complete_backup_has_its_sentinel() {
        let store = MemStore::new();
        take(&store, &[], &|| Ok(())).unwrap();
        assert!(keys(&store).contains(&facts().id.sentinel().to_string()));
    }
}
