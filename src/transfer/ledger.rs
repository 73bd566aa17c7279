//! The ledger of look-ahead: which segments a `wal-push` has archived before PostgreSQL asked for them.
//!
//! An entry is a file of its own in the state directory of the archive, so nobody needs a lock and a damaged one spoils
//! no other. It counts for the archive, the cluster and the very file that was archived, and for nothing else; without
//! it a segment is pushed again and found archived with the same bytes.

use crate::archive::Archive;
use crate::codec::digest::Crc32c;
use crate::disk;
use crate::disk::durable::{self, NewFile, is_temp_name};
use crate::disk::os::OsDir;
use crate::error::{Error, Kind, Result};
use crate::limits::{COPY_BUFFER_BYTES, LEDGER_AGE_MAX};
use crate::pg::{Segment, SystemId};
use crate::work::now;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Below the state directory of an archive.
const DIRECTORY: &str = "ahead";
const FORMAT: u32 = 1;
/// More than an entry.
const PROBE_BYTES: usize = 4096;

/// The entries for one archive.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// `None` where there is no state directory: then nothing is remembered.
    directory: Option<PathBuf>,
    archive: String,
}

/// One entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    format: u32,
    archive: String,
    system_identifier: SystemId,
    file: Seen,
}

/// A file as it was when it was archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    size: u64,
    /// Microseconds since 1970.
    modified: i64,
    device: u64,
    inode: u64,
    /// With the rest it tells an accident; it need not resist anybody who can write to `pg_wal`.
    crc32c: u32,
}

impl Seen {
    /// Reads the whole file.
    pub fn of(path: &Path) -> Result<Seen> {
        let mut file = disk::open(path)?;
        let stat = disk::stat_open(&file, path)?;
        let (mut crc, mut buffer) = (Crc32c::new(), vec![0; COPY_BUFFER_BYTES]);
        loop {
            let count = file
                .read(&mut buffer)
                .map_err(|e| Error::io(format!("could not read {path:?}"), e))?;
            if count == 0 {
                break;
            }
            crc.update(&buffer[..count]);
        }
        Ok(Seen {
            size: stat.size,
            modified: stat.modified.0,
            device: stat.device,
            inode: stat.inode,
            crc32c: crc.value(),
        })
    }
}

impl Ledger {
    /// The ledger of this archive on this host.
    pub fn of(archive: &Archive) -> Ledger {
        let state = archive.state.directory();
        Ledger {
            directory: state.map(|directory| directory.join(DIRECTORY)),
            archive: archive.store.location(),
        }
    }

    /// Whether this segment of this cluster was archived ahead, from the file at `path` as it is now.
    pub fn vouches_for(&self, segment: Segment, path: &Path, system_id: SystemId) -> Result<bool> {
        let Some(entry) = self.read(segment) else {
            return Ok(false);
        };
        if !self.is_fresh(segment)? {
            return Ok(false);
        }
        let now = Entry {
            format: FORMAT,
            archive: self.archive.clone(),
            system_identifier: system_id,
            file: Seen::of(path)?,
        };
        Ok(entry == now)
    }

    /// Sees whether entries can be written.
    pub fn prepare(&self) -> Result<()> {
        let directory = self.directory.as_ref().ok_or_else(|| {
            Error::new(Kind::Missing, "there is no state directory to note them in")
        })?;
        disk::create_dirs(directory, 0o700)?;
        // It never gets its name, and goes by itself.
        NewFile::create(&directory.join("probe"), 0o600)?.write_all_at(0, &[0; PROBE_BYTES])
    }

    /// Remembers a segment that the store has acknowledged.
    pub fn note(&self, segment: Segment, system_id: SystemId, file: Seen) -> Result<()> {
        let Some(path) = self.path(segment) else {
            return Ok(());
        };
        let entry = Entry {
            format: FORMAT,
            archive: self.archive.clone(),
            system_identifier: system_id,
            file,
        };
        let bytes = serde_json::to_vec(&entry).expect("numbers and strings");
        durable::replace_unsynced(&path, &bytes)
    }

    /// Removes what nobody will ask for any more: entries of this cluster for `present` and what lies before it on its
    /// timeline, and old ones of any. Files that are no entries are left alone.
    pub fn sweep(&self, present: Segment, system_id: SystemId) {
        if let Err(e) = self.try_sweep(present, system_id)
            && e.kind() != Kind::Missing
        {
            log::debug!("could not clean the ledger: {}", e.one_line());
        }
    }

    fn try_sweep(&self, present: Segment, system_id: SystemId) -> Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        durable::remove_stale_temps(directory, LEDGER_AGE_MAX)?;
        let mut names = Vec::new();
        OsDir::open(directory, 0)?.each_name(directory, &mut |name, _| {
            if !is_temp_name(name) {
                names.push(name.to_os_string());
            }
            Ok(())
        })?;
        for name in names {
            let Some(segment) = name.to_str().and_then(Segment::parse) else {
                continue;
            };
            let passed = segment.timeline == present.timeline && segment <= present;
            let ours = || {
                self.read(segment)
                    .is_some_and(|entry| entry.system_identifier == system_id)
            };
            if !self.is_fresh(segment)? || (passed && ours()) {
                disk::remove_file(&directory.join(&name))?;
            }
        }
        Ok(())
    }

    /// Whether there is an entry that is not too old to be believed.
    fn is_fresh(&self, segment: Segment) -> Result<bool> {
        let Some(path) = self.path(segment) else {
            return Ok(false);
        };
        let age = |found: disk::Stat| now().0.saturating_sub(found.modified.0);
        let found = disk::stat(&path)?;
        Ok(found.is_some_and(|found| age(found) <= LEDGER_AGE_MAX.as_micros() as i64))
    }

    /// What cannot be read counts for nothing.
    fn read(&self, segment: Segment) -> Option<Entry> {
        let bytes = disk::read_small(&self.path(segment)?).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn path(&self, segment: Segment) -> Option<PathBuf> {
        let directory = self.directory.as_ref()?;
        Some(directory.join(segment.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tree;
    use crate::pg::timestamp::Timestamp;
    use crate::pg::{SegmentNo, SegmentSize, TimelineId};

    const CLUSTER: SystemId = SystemId(7);

    fn segment(timeline: u32, number: u64) -> Segment {
        let number = SegmentNo(number);
        Segment::new(TimelineId(timeline), number, SegmentSize::SMALLEST)
    }

    fn ledger(directory: &Path, archive: &str) -> Ledger {
        Ledger {
            directory: Some(directory.join(DIRECTORY)),
            archive: archive.to_string(),
        }
    }

    #[test]
    fn an_entry_counts_for_what_was_archived_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ledger(dir.path(), "s3://a/b");
        let (path, first) = (dir.path().join("f"), segment(1, 5));
        let vouches = |ledger: &Ledger, segment, id| ledger.vouches_for(segment, &path, id);
        std::fs::write(&path, "bytes").unwrap();
        tree::set_modified(&path, Timestamp(5)).unwrap();
        assert!(!vouches(&ours, first, CLUSTER).unwrap());
        ours.prepare().unwrap();
        let left = std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap();
        assert_eq!(left.count(), 0, "no probe stays");
        ours.note(first, CLUSTER, Seen::of(&path).unwrap()).unwrap();
        assert!(vouches(&ours, first, CLUSTER).unwrap());
        assert!(!vouches(&ours, first, SystemId(8)).unwrap());
        assert!(!vouches(&ours, segment(2, 5), CLUSTER).unwrap());
        let other = ledger(dir.path(), "s3://a/c");
        assert!(!vouches(&other, first, CLUSTER).unwrap());

        // Other bytes in the same file, of the same length and time; the same bytes at another time; another file.
        std::fs::write(&path, "bytez").unwrap();
        tree::set_modified(&path, Timestamp(5)).unwrap();
        assert!(!vouches(&ours, first, CLUSTER).unwrap());
        std::fs::write(&path, "bytes").unwrap();
        tree::set_modified(&path, Timestamp(6)).unwrap();
        assert!(!vouches(&ours, first, CLUSTER).unwrap());
        tree::set_modified(&path, Timestamp(5)).unwrap();
        assert!(vouches(&ours, first, CLUSTER).unwrap());
        std::fs::copy(&path, dir.path().join("g")).unwrap();
        std::fs::rename(dir.path().join("g"), &path).unwrap();
        tree::set_modified(&path, Timestamp(5)).unwrap();
        assert!(!vouches(&ours, first, CLUSTER).unwrap());
    }

    #[test]
    fn damage_and_want_of_a_directory_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ledger(dir.path(), "s3://a/b");
        let path = dir.path().join("f");
        std::fs::write(&path, "bytes").unwrap();
        let seen = Seen::of(&path).unwrap();
        ours.prepare().unwrap();
        ours.note(segment(1, 5), CLUSTER, seen).unwrap();
        let entry = ours.path(segment(1, 5)).unwrap();
        let whole = std::fs::read(&entry).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&entry, &whole[..length]).unwrap();
            assert!(!ours.vouches_for(segment(1, 5), &path, CLUSTER).unwrap());
        }
        let nowhere = Ledger {
            directory: None,
            archive: String::new(),
        };
        assert!(nowhere.prepare().is_err());
        nowhere.sweep(segment(1, 5), CLUSTER);
        // Nothing can be noted where a file is in the way.
        let blocked = ledger(&path, "s3://a/b");
        assert!(blocked.prepare().is_err());
        assert!(blocked.note(segment(1, 5), CLUSTER, seen).is_err());
    }

    #[test]
    fn what_was_passed_and_what_is_old_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ledger(dir.path(), "s3://a/b");
        ours.sweep(segment(1, 1), CLUSTER);
        ours.prepare().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "bytes").unwrap();
        let seen = Seen::of(&path).unwrap();
        let all = [(1, 4), (1, 5), (1, 6), (2, 3), (2, 9)].map(|(t, n)| segment(t, n));
        for (segment, cluster) in all
            .iter()
            .map(|s| (*s, CLUSTER))
            .chain([(segment(1, 3), SystemId(8))])
        {
            ours.note(segment, cluster, seen).unwrap();
        }
        let foreign = ours.directory.as_ref().unwrap().join("notes.txt");
        std::fs::write(&foreign, "").unwrap();
        tree::set_modified(&ours.path(segment(2, 9)).unwrap(), Timestamp(0)).unwrap();
        assert!(
            !ours.vouches_for(segment(2, 9), &path, CLUSTER).unwrap(),
            "old"
        );
        ours.sweep(segment(1, 5), CLUSTER);
        let left: Vec<bool> = all.iter().map(|s| ours.read(*s).is_some()).collect();
        assert_eq!(left, [false, false, true, true, false]);
        assert!(ours.read(segment(1, 3)).is_some(), "another cluster's");
        assert!(foreign.exists());
    }
}
