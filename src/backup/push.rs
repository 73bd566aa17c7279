//! Taking a base backup of files on this host: of a running server, or of one that is shut down.
//!
//! The order is the promise: owner first; every file read before the server is told to stop; the sentinel last,
//! and only when the WAL from start to stop is archived and the store shows every part in its full size.

use super::copy::{Copied, Directory};
use super::owner::{self, Owner};
use super::plan::Plan;
use super::progress::Progress;
use super::scan::Unlogged;
use super::server;
use crate::archive::Archive;
use crate::archive::identity::Identity;
use crate::archive::keys::BackupId;
use crate::archive::sentinel::{
    self, Details, Metadata, Mode, Object, PageChecksums, Sentinel, Spec,
};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::pg::control::ControlFile;
use crate::pg::label::BackupLabel;
use crate::pg::manifest::WalRange;
use crate::pg::timestamp::Timestamp;
use crate::pg::version::ServerVersion;
use crate::pg::{Lsn, TimelineId};
use crate::wire::Conn;
use crate::work::now;
use crate::work::stop::Stop;
use std::path::Path;
use std::time::Duration;

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
        let control = server::prove_directory(conn, data, start, timeline, self.stop)?;
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
        self.owned(&facts, |job| {
            let directory = Directory {
                data,
                version_directory: server.version_directory(),
                unlogged: Unlogged::InitFork,
                control,
                excused_from: Some(start),
            };
            job.local_started(conn, &directory, &server, &facts)
        })
    }

    /// Backs up the data directory of a server that was shut down cleanly. The WAL that it needs is inside.
    pub fn offline(&self, data: &Path) -> Result<Taken> {
        let control = super::offline::shut_down_cluster(data)?;
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
        self.owned(&facts, |job| job.offline_started(data, control, &facts))
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
        directory: &Directory<'_>,
        server: &server::Server,
        facts: &Facts,
    ) -> Result<Taken> {
        let mut checkpoint = facts.start;
        let copied = self.copied(facts, directory, |tail| {
            // Only now: everything was read while the server was in backup mode.
            let stopped = server::stop_backup(conn, server)?;
            tail.file(Path::new("backup_label"), stopped.label.as_bytes())?;
            checkpoint = BackupLabel::parse(&stopped.label)?.checkpoint;
            Ok(stopped.stop)
        })?;
        log::info!("all files are stored; the backup ends at {}", copied.stop);
        self.wait_for_wal(facts, copied.stop, Some(conn))?;
        self.refuse_foreign_wal(facts, checkpoint, copied.stop)?;
        self.finished(facts, copied, &server.version_text)
    }

    fn offline_started(&self, data: &Path, control: ControlFile, facts: &Facts) -> Result<Taken> {
        let directory = Directory {
            data,
            version_directory: format!("PG_{}_{}", control.major, control.catalog_version),
            unlogged: Unlogged::AllForks,
            control,
            excused_from: None,
        };
        let stop = directory.control.checkpoint_end();
        let size = facts.identity.segment_size;
        let segments = sentinel::needed_segments(facts.timeline, facts.start, stop, size)?;
        let copied = self.copied(facts, &directory, |tail| {
            tail.wal(&segments)?;
            super::offline::refuse_started(data, &directory.control)?;
            Ok(stop)
        })?;
        self.finished(facts, copied, &format!("PostgreSQL {}", facts.version))
    }

    /// A plan whose parts are large enough that there are never too many. Half of the descriptors are for the files
    /// that it opens, the others for the store and all else.
    pub(super) fn plan(&self, facts: &Facts, total: u64) -> Plan<'_> {
        let part_bytes = limits::TAR_PART_BYTES.max(total / limits::TAR_PARTS_MAX);
        Plan::new(
            &*self.archive.store,
            facts.id,
            self.archive.compression.method,
            part_bytes,
            self.options.threads,
            disk::open_files_max() / 2,
        )
    }

    /// The files are stored and the WAL is there: ends the manifest and writes the documents.
    fn finished(&self, facts: &Facts, copied: Copied<'_>, version_text: &str) -> Result<Taken> {
        let range = WalRange {
            timeline: facts.timeline,
            start: facts.start,
            end: copied.stop,
        };
        let stored = Stored {
            manifest: copied.manifest.finish(range)?,
            parts: finished_parts(&copied.plan)?,
            file_bytes: copied.plan.file_bytes,
            findings: copied.findings,
        };
        self.complete(facts, copied.stop, copied.spec, stored, version_text)
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

#[cfg(test)]
mod tests {
    use super::super::parts::Part;
    use super::super::progress::Unwatched;
    use super::*;
    use crate::archive::object::ObjectWriter;
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
