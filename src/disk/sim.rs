//! A disk that forgets, and what the recipe of `durable` must hold on it at every crash point.
//!
//! The model. Live state is what the process sees, durable state what is left after power loss. A write that was not
//! synced is kept or lost sector by sector, in any order; a create, link, rename, remove or length change that was
//! not synced is kept or lost by itself. `sync_data` and `sync_dir` make exactly their own part durable. A
//! `sync_data` that fails drops what it should have written: the pages look clean and the next sync says Ok. A
//! `sync_dir` that fails shuts the disk down, as ext4 and XFS do when their journal breaks.
//!
//! The invariants, for a file that is being published, after a crash at any operation:
//! * D1 the final name is as before (absent, or the old bytes) or has all the new bytes.
//! * D2 once `publish` has answered Ok, it has the new bytes.
//! * D3 with `Publish::Absent`, old bytes stay, crash or no crash.
//! * D4 a `publish` during which a sync failed does not answer Ok.

use super::durable::{NewFile, Publish};
use super::{Fs, FsFile};
use crate::error::{Kind, Result};
use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::rc::Rc;

const SECTOR_BYTES: usize = 512;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// A mistake in the recipe, played by the disk: a sync that does nothing is a sync that was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Planted {
    #[default]
    Nothing,
    NoDataSync,
    NoDirSync,
    RenameBeforeSync,
    RetryFailedDataSync,
    PassOverFailedDirSync,
    LookThenRename,
}

/// Which operation fails on its own, without a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    Write,
    DataSync,
    DirSync,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Nature {
    no_links: bool,
    no_rename_new: bool,
    planted: Planted,
    fault: Fault,
}

enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Clone)]
enum DirChange {
    Add(OsString, usize),
    Remove(OsString),
    Move(OsString, OsString, usize),
}

#[derive(Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Default)]
struct Disk {
    nature: Nature,
    inodes: Vec<Inode>,
    live: BTreeMap<OsString, usize>,
    durable: BTreeMap<OsString, usize>,
    pending: Vec<DirChange>,
    operations: u64,
    /// The last operation that still happens; power is gone afterwards.
    crash_after: Option<u64>,
    shut_down: bool,
    /// `Planted::RenameBeforeSync`: the data sync that waits for the rename.
    late_sync: Option<usize>,
}

#[derive(Clone, Default)]
struct SimFs(Rc<RefCell<Disk>>);

struct SimFile {
    fs: SimFs,
    inode: usize,
}

fn apply_write(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl DirChange {
    fn apply(self, names: &mut BTreeMap<OsString, usize>) {
        match self {
            DirChange::Add(name, inode) => {
                names.insert(name, inode);
            }
            DirChange::Remove(name) => {
                names.remove(&name);
            }
            DirChange::Move(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Inode {
    fn harden(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Write(offset, bytes) => apply_write(&mut self.durable, offset, &bytes),
                Change::SetLen(len) => self.durable.resize(len, 0),
            }
        }
    }

    /// What power loss leaves of it: sectors of unsynced writes survive one by one.
    fn remains(&self, prng: &mut Prng, keep_percent: u64) -> Vec<u8> {
        let mut data = self.durable.clone();
        for change in &self.pending {
            match change {
                Change::SetLen(len) if prng.chance(keep_percent) => data.resize(*len, 0),
                Change::SetLen(_) => {}
                Change::Write(offset, bytes) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let start = offset + at;
                        let end = (at + SECTOR_BYTES - start % SECTOR_BYTES).min(bytes.len());
                        if prng.chance(keep_percent) {
                            apply_write(&mut data, start, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        data
    }
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        if self.shut_down || self.crash_after.is_some_and(|last| self.operations >= last) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.operations += 1;
        Ok(())
    }

    fn inode_of(&self, name: &OsStr) -> io::Result<usize> {
        self.live
            .get(name)
            .copied()
            .ok_or(ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: DirChange) {
        change.clone().apply(&mut self.live);
        self.pending.push(change);
    }

    fn late_sync(&mut self) -> io::Result<()> {
        if let Some(inode) = self.late_sync.take() {
            self.step()?;
            self.inodes[inode].harden();
        }
        Ok(())
    }

    /// What is found under `name` when power comes back.
    fn after_power_loss(
        &self,
        name: &OsStr,
        prng: &mut Prng,
        keep_percent: u64,
    ) -> Option<Vec<u8>> {
        let mut names = self.durable.clone();
        for change in &self.pending {
            if prng.chance(keep_percent) {
                change.clone().apply(&mut names);
            }
        }
        names
            .get(name)
            .map(|i| self.inodes[*i].remains(prng, keep_percent))
    }
}

impl SimFs {
    fn disk(&self) -> RefMut<'_, Disk> {
        self.0.borrow_mut()
    }
}

impl Fs for SimFs {
    type File = SimFile;

    fn create_new(&self, name: &OsStr) -> io::Result<SimFile> {
        let mut disk = self.disk();
        disk.step()?;
        if disk.live.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        disk.change(DirChange::Add(name.into(), inode));
        let fs = self.clone();
        Ok(SimFile { fs, inode })
    }

    fn open(&self, name: &OsStr) -> io::Result<SimFile> {
        let inode = self.disk().inode_of(name)?;
        let fs = self.clone();
        Ok(SimFile { fs, inode })
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        if disk.nature.no_links {
            return Err(ErrorKind::Unsupported.into());
        }
        let inode = disk.inode_of(from)?;
        if disk.live.contains_key(to) && disk.nature.planted != Planted::LookThenRename {
            return Err(ErrorKind::AlreadyExists.into());
        }
        disk.change(DirChange::Add(to.into(), inode));
        disk.late_sync()
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        let inode = disk.inode_of(from)?;
        disk.change(DirChange::Move(from.into(), to.into(), inode));
        disk.late_sync()
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        if self.disk().nature.no_rename_new {
            return Err(ErrorKind::Unsupported.into());
        }
        if self.disk().live.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        disk.inode_of(name)?;
        disk.change(DirChange::Remove(name.into()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        Ok(self.disk().live.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        let failed = disk.nature.fault == Fault::DirSync;
        match disk.nature.planted {
            Planted::NoDirSync => return Ok(()),
            Planted::PassOverFailedDirSync if failed => return Ok(()),
            _ => {}
        }
        if failed {
            disk.shut_down = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        for change in std::mem::take(&mut disk.pending) {
            change.apply(&mut disk.durable);
        }
        Ok(())
    }
}

impl FsFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        let fails = disk.nature.fault == Fault::Write;
        let taken = if fails {
            &bytes[..bytes.len() / 2]
        } else {
            bytes
        };
        let inode = &mut disk.inodes[self.inode];
        apply_write(&mut inode.live, offset as usize, taken);
        inode
            .pending
            .push(Change::Write(offset as usize, taken.to_vec()));
        if fails {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        let inode = &mut disk.inodes[self.inode];
        inode.live.resize(len as usize, 0);
        inode.pending.push(Change::SetLen(len as usize));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.disk().inodes[self.inode].live.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        if disk.nature.fault == Fault::DataSync {
            // Once: whoever tries again is told Ok.
            disk.nature.fault = Fault::None;
            disk.inodes[self.inode].pending.clear();
            return match disk.nature.planted {
                Planted::RetryFailedDataSync => Ok(()),
                _ => Err(io::Error::from_raw_os_error(EIO)),
            };
        }
        match disk.nature.planted {
            Planted::NoDataSync => {}
            Planted::RenameBeforeSync => disk.late_sync = Some(self.inode),
            _ => disk.inodes[self.inode].harden(),
        }
        Ok(())
    }
}

/// One thing to try: how to publish, and over what.
#[derive(Clone, Copy, Debug)]
struct Case {
    publish: Publish,
    old: bool,
    nature: Nature,
}

const NAME: &str = "000000010000000000000001";
const OLD: &[u8] = b"what was there before";

/// Three sectors and a piece, never zero and not the same in any two sectors.
fn content() -> Vec<u8> {
    let byte = |i: usize| (1 + (i * 7 + i / SECTOR_BYTES) % 255) as u8;
    (0..3 * SECTOR_BYTES + 100).map(byte).collect()
}

fn cases(nature: Nature) -> impl Iterator<Item = Case> {
    let each = [Publish::Absent, Publish::Replace].into_iter();
    each.flat_map(move |publish| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(old, no_links)| Case {
            publish,
            old,
            nature: Nature { no_links, ..nature },
        })
    })
}

/// A disk with the old file, durable, on which nothing has gone wrong yet.
fn prepare(case: Case) -> SimFs {
    let fs = SimFs::default();
    if case.old {
        let file = fs.create_new(NAME.as_ref()).unwrap();
        file.write_at(0, OLD).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir().unwrap();
    }
    fs.disk().nature = case.nature;
    fs.disk().operations = 0;
    fs
}

/// What the product does with it.
fn publish(fs: &SimFs, how: Publish) -> Result<()> {
    let bytes = content();
    let mut file = NewFile::create_in(fs.clone(), Path::new(NAME))?;
    let written = file.write_all(&bytes[..700]);
    written.map_err(|e| crate::error::from_io("unexpected", e))?;
    // Pieces may come in any order.
    file.write_all_at(1024, &bytes[1024..])?;
    file.write_all_at(700, &bytes[700..1024])?;
    file.publish(how)
}

/// Runs `case` to the crash after `crash_after` operations and looks at what may be left; `Some` says what is wrong.
fn look(case: Case, crash_after: u64) -> Option<String> {
    let fs = prepare(case);
    fs.disk().crash_after = Some(crash_after);
    let answer = publish(&fs, case.publish);
    let whole = content();
    let before = case.old.then(|| OLD.to_vec());
    let never_new = case.old && case.publish == Publish::Absent;
    for variant in 0..64 {
        let mut prng = Prng(variant);
        let keep_percent = [0, 100, 50, 90][variant as usize % 4];
        let found = fs
            .disk()
            .after_power_loss(NAME.as_ref(), &mut prng, keep_percent);
        let is_new = found.as_ref() == Some(&whole);
        let broken = match &answer {
            _ if found != before && !is_new => "D1: neither old nor whole",
            Ok(()) if !is_new => "D2: acknowledged and lost",
            _ if never_new && found != before => "D3: overwritten",
            _ => continue,
        };
        return Some(format!(
            "{broken}: {case:?}, crash after {crash_after}, variant {variant}"
        ));
    }
    let sync_failed = matches!(case.nature.fault, Fault::DataSync | Fault::DirSync);
    (sync_failed && answer.is_ok()).then(|| format!("D4: {case:?}"))
}

/// Every case, a crash after every operation and one after the last.
fn first_violation(nature: Nature) -> Option<String> {
    cases(nature).find_map(|case| {
        let fs = prepare(case);
        let _ = publish(&fs, case.publish);
        let operations = fs.disk().operations;
        assert!(operations >= 3, "the script does something: {case:?}");
        (0..=operations).find_map(|crash_after| look(case, crash_after))
    })
}

#[test]
fn the_recipe_holds_at_every_crash_point() {
    for fault in [Fault::None, Fault::Write, Fault::DataSync, Fault::DirSync] {
        let nature = Nature {
            fault,
            ..Nature::default()
        };
        assert_eq!(first_violation(nature), None);
    }
}

#[test]
fn every_planted_bug_is_caught() {
    for (planted, fault, invariant) in [
        (Planted::NoDataSync, Fault::None, "D1"),
        (Planted::NoDirSync, Fault::None, "D2"),
        (Planted::RenameBeforeSync, Fault::None, "D1"),
        (Planted::RetryFailedDataSync, Fault::DataSync, "D1"),
        (Planted::PassOverFailedDirSync, Fault::DirSync, "D2"),
        (Planted::LookThenRename, Fault::None, "D3"),
    ] {
        let nature = Nature {
            planted,
            fault,
            ..Nature::default()
        };
        let caught = first_violation(nature).unwrap_or_default();
        assert!(caught.starts_with(invariant), "{planted:?} gave {caught:?}");
    }
}

#[test]
fn without_a_crash_the_answer_and_the_directory_are_as_promised() {
    for case in cases(Nature::default()) {
        let fs = prepare(case);
        let answer = publish(&fs, case.publish).map_err(|e| e.kind());
        let refused = case.old && case.publish == Publish::Absent;
        assert_eq!(
            answer,
            if refused { Err(Kind::Exists) } else { Ok(()) },
            "{case:?}"
        );
        assert_eq!(
            fs.list().unwrap(),
            [NAME],
            "no temporary file is left: {case:?}"
        );
    }
}

#[test]
fn a_disk_that_cannot_promise_is_refused_by_name() {
    let nature = Nature {
        no_links: true,
        no_rename_new: true,
        ..Nature::default()
    };
    let case = Case {
        publish: Publish::Absent,
        old: false,
        nature,
    };
    let fs = prepare(case);
    let error = publish(&fs, Publish::Absent).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.message().contains(NAME), "{error}");
    assert_eq!(fs.list().unwrap(), [""; 0]);
    publish(&fs, Publish::Replace).unwrap();
}

#[test]
fn a_full_disk_is_named_and_its_file_never_published() {
    let fs = SimFs::default();
    fs.disk().nature.fault = Fault::Write;
    let error = publish(&fs, Publish::Replace).unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert_eq!(error.message(), format!("could not write \"{NAME}\""));
    assert!(error.hint_text().is_some());
    assert_eq!(fs.list().unwrap(), [""; 0], "the temporary file is removed");

    // Whoever passes over the error of a write is stopped at the door.
    let file = NewFile::create_in(fs.clone(), Path::new(NAME)).unwrap();
    let _ = file.write_all_at(0, b"lost");
    fs.disk().nature.fault = Fault::None;
    assert_eq!(
        file.publish(Publish::Replace).unwrap_err().kind(),
        Kind::Bug
    );
    assert_eq!(fs.list().unwrap(), [""; 0]);
}

#[test]
fn the_model_forgets_what_was_not_synced() {
    let fs = SimFs::default();
    let file = fs.create_new("f".as_ref()).unwrap();
    file.write_at(0, &[1; 2 * SECTOR_BYTES]).unwrap();
    let left = |keep| fs.disk().after_power_loss("f".as_ref(), &mut Prng(1), keep);
    assert_eq!(left(0), None);
    fs.sync_dir().unwrap();
    assert_eq!(left(0), Some(vec![]));
    let mut lengths: Vec<_> = (0..50)
        .filter_map(|seed| {
            fs.disk()
                .after_power_loss("f".as_ref(), &mut Prng(seed), 50)
        })
        .map(|bytes| bytes.iter().filter(|b| **b == 1).count())
        .collect();
    lengths.sort();
    lengths.dedup();
    assert_eq!(
        lengths,
        [0, SECTOR_BYTES, 2 * SECTOR_BYTES],
        "torn by sectors"
    );
    file.sync_data().unwrap();
    file.set_len(1).unwrap();
    assert_eq!(left(0), Some(vec![1; 2 * SECTOR_BYTES]));
    assert_eq!(file.len().unwrap(), 1);
    assert!(!fs.open("f".as_ref()).unwrap().is_empty().unwrap());
}
