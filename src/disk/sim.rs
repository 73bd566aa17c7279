//! A disk that forgets, for the simulations of `durable` and of the spool; and `Sloppy`, a program that uses it badly.
//!
//! The model. Live state is what the process sees, durable state what is left after power loss. A write that was not
//! synced is kept or lost sector by sector, in any order; a create, link, rename, remove or length change that was
//! not synced is kept or lost by itself. `sync_data` and `sync_dir` make exactly their own part durable. A
//! `sync_data` that fails drops what it should have written, but for some sectors: the pages look clean and the next
//! sync says Ok. A `sync_dir` that fails shuts the disk down until power comes back, as ext4 and XFS do when their
//! journal breaks. A full disk takes the first half of a write that makes a file longer; what is allocated can
//! always be written again.
//!
//! Two kinds of death: `kill` (kill -9: the page cache lives, handles die) and `power_loss`. The bad cases need the
//! first followed by the second. Not modelled: read errors, a disk that lies about syncs, two processes.

use super::{Fs, FsFile};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::rc::Rc;

pub(crate) const SECTOR_BYTES: usize = 512;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
#[derive(Clone, Default)]
pub(crate) struct Prng(pub(crate) u64);

impl Prng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What the file system cannot do, and how often, in percent, an operation fails on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Weather {
    pub(crate) no_links: bool,
    pub(crate) no_rename_new: bool,
    /// EIO in the middle of a write.
    pub(crate) write: u64,
    /// ENOSPC when a file is created or made longer.
    pub(crate) full: u64,
    pub(crate) data_sync: u64,
    pub(crate) dir_sync: u64,
}

#[derive(Clone)]
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

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// A sync failed: live has what durable will never get.
    dropped: bool,
}

#[derive(Clone, Default)]
struct Disk {
    weather: Weather,
    prng: Prng,
    inodes: Vec<Inode>,
    live: BTreeMap<OsString, usize>,
    durable: BTreeMap<OsString, usize>,
    pending: Vec<DirChange>,
    life: u64,
    operations: u64,
    /// The last operation that still happens; the process is dead afterwards.
    crash_after: Option<u64>,
    crashed: bool,
    shut_down: bool,
    /// Operations that failed on their own in this life, lack of space apart.
    faults: u64,
}

/// The directory, as one life of the process holds it.
#[derive(Clone, Default)]
pub(crate) struct SimFs {
    disk: Rc<RefCell<Disk>>,
    life: u64,
}

pub(crate) struct SimFile {
    fs: SimFs,
    inode: usize,
}

fn apply_write(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset {
        data.resize(offset, 0);
    }
    let (inside, behind) = bytes.split_at(bytes.len().min(data.len() - offset));
    data[offset..offset + inside.len()].copy_from_slice(inside);
    data.extend_from_slice(behind);
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
    /// Makes pending changes durable, each sector by the chance of `keep_percent`.
    fn settle(&mut self, prng: &mut Prng, keep_percent: u64) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::SetLen(len) if prng.chance(keep_percent) => self.durable.resize(len, 0),
                Change::SetLen(_) => {}
                Change::Write(offset, bytes) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let start = offset + at;
                        let end = (at + SECTOR_BYTES - start % SECTOR_BYTES).min(bytes.len());
                        if prng.chance(keep_percent) {
                            apply_write(&mut self.durable, start, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
    }

    fn harden(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::SetLen(len) => self.durable.resize(len, 0),
                Change::Write(offset, bytes) => apply_write(&mut self.durable, offset, &bytes),
            }
        }
    }

    fn lose_power(&mut self, prng: &mut Prng, keep_percent: u64) {
        if !self.pending.is_empty() || self.dropped {
            self.settle(prng, keep_percent);
            self.live.clone_from(&self.durable);
            self.dropped = false;
        }
    }
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        self.crashed |= self.crash_after.is_some_and(|last| self.operations >= last);
        if self.shut_down || self.crashed {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.operations += 1;
        Ok(())
    }

    fn fault(&mut self, percent: u64) -> bool {
        let fails = self.prng.chance(percent);
        self.faults += u64::from(fails);
        fails
    }

    fn full(&mut self) -> bool {
        self.prng.chance(self.weather.full)
    }

    fn inode_of(&self, name: &OsStr) -> io::Result<usize> {
        let found = self.live.get(name).copied();
        found.ok_or(ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: DirChange) {
        change.clone().apply(&mut self.live);
        self.pending.push(change);
    }

    fn write(&mut self, inode: usize, offset: usize, bytes: &[u8]) {
        let inode = &mut self.inodes[inode];
        apply_write(&mut inode.live, offset, bytes);
        inode.pending.push(Change::Write(offset, bytes.to_vec()));
    }

    fn set_len(&mut self, inode: usize, len: u64) {
        let inode = &mut self.inodes[inode];
        inode.live.resize(len as usize, 0);
        inode.pending.push(Change::SetLen(len as usize));
    }

    fn begin_life(&mut self) {
        self.life += 1;
        (self.operations, self.crash_after, self.faults) = (0, None, 0);
        self.crashed = false;
    }

    fn lose_power(&mut self, prng: &mut Prng, keep_percent: u64) {
        for change in std::mem::take(&mut self.pending) {
            if prng.chance(keep_percent) {
                change.apply(&mut self.durable);
            }
        }
        self.live.clone_from(&self.durable);
        for (number, inode) in self.inodes.iter_mut().enumerate() {
            if self.live.values().any(|named| *named == number) {
                inode.lose_power(prng, keep_percent);
            } else {
                *inode = Inode::default();
            }
        }
        self.shut_down = false;
        self.begin_life();
    }
}

impl SimFs {
    fn disk(&self) -> RefMut<'_, Disk> {
        let disk = self.disk.borrow_mut();
        assert_eq!(disk.life, self.life, "handle used after its life");
        disk
    }

    fn file(&self, inode: usize) -> SimFile {
        let fs = self.clone();
        SimFile { fs, inode }
    }

    pub(crate) fn set_weather(&self, weather: Weather, seed: u64) {
        let mut disk = self.disk();
        (disk.weather, disk.prng) = (weather, Prng(seed));
    }

    /// The process dies after so many more operations.
    pub(crate) fn crash_after(&self, operations: u64) {
        let mut disk = self.disk();
        disk.crash_after = Some(disk.operations + operations);
    }

    /// Operations of this life that happened.
    pub(crate) fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Whether this life may see errors that are not the program's fault.
    pub(crate) fn misbehaved(&self) -> bool {
        let disk = self.disk();
        disk.crashed || disk.shut_down || disk.faults > 0
    }

    /// Whether only power loss, a reboot, brings the disk back.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.disk().shut_down
    }

    /// kill -9: a new life that finds what the old one saw.
    pub(crate) fn kill(&self) -> SimFs {
        self.disk.borrow_mut().begin_life();
        self.now()
    }

    /// Power loss: all that was synced is there, and of the rest each part by the chance of `keep_percent`.
    pub(crate) fn power_loss(&self, prng: &mut Prng, keep_percent: u64) -> SimFs {
        self.disk.borrow_mut().lose_power(prng, keep_percent);
        self.now()
    }

    /// Another disk in the same state.
    pub(crate) fn copy(&self) -> SimFs {
        SimFs {
            disk: Rc::new(RefCell::new(self.disk.borrow().clone())),
            life: self.life,
        }
    }

    fn now(&self) -> SimFs {
        let life = self.disk.borrow().life;
        let disk = self.disk.clone();
        SimFs { disk, life }
    }

    /// What stands under a name now, seen from outside.
    pub(crate) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk.borrow();
        let inode = disk.live.get(OsStr::new(name))?;
        Some(disk.inodes[*inode].live.clone())
    }

    /// All names, seen from outside.
    pub(crate) fn names(&self) -> Vec<String> {
        let disk = self.disk.borrow();
        let names = disk.live.keys().map(|name| name.to_str().unwrap().into());
        names.collect()
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
        if disk.full() {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        disk.change(DirChange::Add(name.into(), inode));
        Ok(self.file(inode))
    }

    fn open(&self, name: &OsStr) -> io::Result<SimFile> {
        let inode = self.disk().inode_of(name)?;
        Ok(self.file(inode))
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        if disk.weather.no_links {
            return Err(ErrorKind::Unsupported.into());
        }
        let inode = disk.inode_of(from)?;
        if disk.live.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        disk.change(DirChange::Add(to.into(), inode));
        Ok(())
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        let inode = disk.inode_of(from)?;
        disk.change(DirChange::Move(from.into(), to.into(), inode));
        Ok(())
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        if self.disk().weather.no_rename_new {
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
        let percent = disk.weather.dir_sync;
        if disk.fault(percent) {
            disk.shut_down = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        for change in std::mem::take(&mut disk.pending) {
            change.apply(&mut disk.durable);
        }
        Ok(())
    }
}

impl SimFile {
    /// Cuts or extends (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        disk.set_len(self.inode, len);
        Ok(())
    }
}

impl FsFile for SimFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.fs.disk();
        let range = offset as usize..offset as usize + bytes.len();
        let found = disk.inodes[self.inode].live.get(range);
        bytes.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        let offset = offset as usize;
        let grows = offset + bytes.len() > disk.inodes[self.inode].live.len();
        let percent = disk.weather.write;
        let error = if grows && disk.full() {
            ENOSPC
        } else if disk.fault(percent) {
            EIO
        } else {
            disk.write(self.inode, offset, bytes);
            return Ok(());
        };
        disk.write(self.inode, offset, &bytes[..bytes.len() / 2]);
        Err(io::Error::from_raw_os_error(error))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let grows = len > self.len()?;
        let mut disk = self.fs.disk();
        disk.step()?;
        let percent = disk.weather.write;
        let error = if grows && disk.full() {
            ENOSPC
        } else if disk.fault(percent) {
            EIO
        } else {
            disk.set_len(self.inode, len);
            return Ok(());
        };
        Err(io::Error::from_raw_os_error(error))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.disk().inodes[self.inode].live.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.fs.disk();
        disk.step()?;
        let percent = disk.weather.data_sync;
        if disk.fault(percent) {
            let Disk { inodes, prng, .. } = &mut *disk;
            let keep_percent = prng.pick(&[0, 50]);
            inodes[self.inode].settle(prng, keep_percent);
            inodes[self.inode].dropped = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        disk.inodes[self.inode].harden();
        Ok(())
    }
}

/// A call about which a program may make a mistake.
pub(crate) enum Call<'a> {
    Open(&'a str),
    Read(&'a str),
    /// `synced`: this handle was synced before.
    Write {
        name: &'a str,
        synced: bool,
    },
    /// `end`: behind the last byte written by this handle.
    DataSync {
        name: &'a str,
        end: u64,
    },
    /// `after`: the last change of names, as in `rename a b`; `first`: no sync of the directory came before.
    DirSync {
        after: &'a str,
        first: bool,
    },
    Link,
}

/// What the program does instead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Play {
    Right,
    /// Leaves it out and goes on.
    Forget,
    /// Does it behind the next rename or link.
    Late,
    /// When it fails, tries again and believes the answer.
    Again,
    /// Takes an error for success.
    PassOver,
    /// Acts as if the file held zeros only: reads them, or (`Open`) makes it so.
    Zeros,
    /// Gives the file this name first; a later rename to it is left out.
    Name(String),
    /// `Link`: replaces what is there.
    Replace,
}

type Habit = dyn Fn(&Call) -> Play;

/// A disk used by a program with a bad habit: what the code under test calls, and does not know of.
#[derive(Clone)]
pub(crate) struct Sloppy {
    pub(crate) fs: SimFs,
    habit: Rc<Habit>,
    names: Rc<RefCell<Names>>,
}

#[derive(Default)]
struct Names {
    last_change: String,
    dir_syncs: u64,
    late: Option<usize>,
}

pub(crate) struct SloppyFile {
    fs: Sloppy,
    file: SimFile,
    end: Cell<u64>,
    synced: Cell<bool>,
}

impl Sloppy {
    pub(crate) fn new(fs: SimFs, habit: impl Fn(&Call) -> Play + 'static) -> Sloppy {
        Sloppy {
            fs,
            habit: Rc::new(habit),
            names: Rc::default(),
        }
    }

    fn play(&self, call: Call) -> Play {
        (self.habit)(&call)
    }

    fn file(&self, file: SimFile) -> SloppyFile {
        SloppyFile {
            fs: self.clone(),
            file,
            end: Cell::new(0),
            synced: Cell::new(false),
        }
    }

    fn changed(&self, change: String) -> io::Result<()> {
        self.names.borrow_mut().last_change = change;
        let late = self.names.borrow_mut().late.take();
        late.map_or(Ok(()), |inode| self.fs.file(inode).sync_data())
    }

    /// The dead pass over nothing.
    fn pass_over(&self, result: io::Result<()>) -> io::Result<()> {
        let dead = self.fs.disk().crashed;
        result.or_else(|e| if dead { Err(e) } else { Ok(()) })
    }

    fn has(&self, name: &OsStr) -> bool {
        self.fs.disk().live.contains_key(name)
    }
}

impl Fs for Sloppy {
    type File = SloppyFile;

    fn create_new(&self, name: &OsStr) -> io::Result<SloppyFile> {
        let file = self.fs.create_new(name)?;
        self.changed(format!("create {}", name.display()))?;
        Ok(self.file(file))
    }

    fn open(&self, name: &OsStr) -> io::Result<SloppyFile> {
        let file = self.fs.open(name)?;
        if self.play(Call::Open(name.to_str().unwrap_or_default())) == Play::Zeros {
            let len = file.len()?;
            file.set_len(0)?;
            file.set_len(len)?;
        }
        Ok(self.file(file))
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        if self.has(to) && self.play(Call::Link) == Play::Replace {
            let mut disk = self.fs.disk();
            disk.step()?;
            let inode = disk.inode_of(from)?;
            disk.change(DirChange::Add(to.into(), inode));
            return Ok(());
        }
        self.fs.link(from, to)?;
        self.changed(format!("link {} {}", from.display(), to.display()))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        match self.fs.rename(from, to) {
            Err(e) if e.kind() == ErrorKind::NotFound && self.has(to) => {} // `Play::Name` did it
            other => other?,
        }
        self.changed(format!("rename {} {}", from.display(), to.display()))
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.fs.rename_new(from, to)?;
        self.changed(format!("rename {} {}", from.display(), to.display()))
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        self.fs.remove(name)?;
        self.changed(format!("remove {}", name.display()))
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        self.fs.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let play = {
            let mut names = self.names.borrow_mut();
            names.dir_syncs += 1;
            let (after, first) = (names.last_change.as_str(), names.dir_syncs == 1);
            self.play(Call::DirSync { after, first })
        };
        match play {
            Play::Forget => Ok(()),
            Play::PassOver => self.pass_over(self.fs.sync_dir()),
            _ => self.fs.sync_dir(),
        }
    }
}

impl SloppyFile {
    /// The name it has now, if any.
    fn name(&self) -> String {
        let disk = self.fs.fs.disk();
        let mut names = disk.live.iter();
        let named = names.find(|(_, inode)| **inode == self.file.inode);
        named.map_or(String::new(), |(name, _)| name.to_str().unwrap().into())
    }
}

impl SloppyFile {
    /// Plays a call that changes bytes up to `end`.
    fn change(&self, end: u64, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let (name, synced) = (self.name(), self.synced.get());
        let call = Call::Write {
            name: &name,
            synced,
        };
        let play = self.fs.play(call);
        if let Play::Name(early) = &play {
            self.fs.rename(name.as_ref(), early.as_ref())?;
            self.fs.sync_dir()?;
        }
        self.end.set(self.end.get().max(end));
        let changed = change();
        match play {
            Play::PassOver => self.fs.pass_over(changed),
            _ => changed,
        }
    }
}

impl FsFile for SloppyFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, bytes)?;
        if self.fs.play(Call::Read(&self.name())) == Play::Zeros {
            bytes.fill(0);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(offset + bytes.len() as u64, || {
            self.file.write_at(offset, bytes)
        })
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.change(len, || self.file.reserve(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.synced.set(true);
        let (name, end) = (self.name(), self.end.get());
        // A sync begins a new count: the next one is about what was written since.
        self.end.set(0);
        match self.fs.play(Call::DataSync { name: &name, end }) {
            Play::Forget => Ok(()),
            Play::Late => {
                self.fs.names.borrow_mut().late = Some(self.file.inode);
                Ok(())
            }
            Play::Again => self.file.sync_data().or_else(|_| self.file.sync_data()),
            Play::PassOver => self.fs.pass_over(self.file.sync_data()),
            _ => self.file.sync_data(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(fs: &SimFs, seed: u64, keep_percent: u64) -> Option<Vec<u8>> {
        fs.copy()
            .power_loss(&mut Prng(seed), keep_percent)
            .read("f")
    }

    #[test]
    fn the_model_forgets_what_was_not_synced() {
        let fs = SimFs::default();
        let file = fs.create_new("f".as_ref()).unwrap();
        file.write_at(0, &[1; 2 * SECTOR_BYTES]).unwrap();
        assert_eq!(left(&fs, 1, 0), None);
        fs.sync_dir().unwrap();
        assert_eq!(left(&fs, 1, 0), Some(vec![]));
        let mut lengths: Vec<_> = (0..50)
            .filter_map(|seed| left(&fs, seed, 50))
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
        assert_eq!(left(&fs, 1, 0), Some(vec![1; 2 * SECTOR_BYTES]));
        assert_eq!(file.len().unwrap(), 1);
        assert!(!fs.open("f".as_ref()).unwrap().is_empty().unwrap());
        let mut byte = [0];
        file.read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [1]);
        let beyond = file.read_at(1, &mut byte).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_failed_sync_drops_its_pages_and_the_next_one_says_ok() {
        let fs = SimFs::default();
        let file = fs.create_new("f".as_ref()).unwrap();
        fs.sync_dir().unwrap();
        file.write_at(0, &[1; 8 * SECTOR_BYTES]).unwrap();
        let weather = Weather {
            data_sync: 100,
            ..Weather::default()
        };
        fs.set_weather(weather, 1);
        assert!(file.sync_data().is_err() && fs.misbehaved());
        fs.set_weather(Weather::default(), 1);
        file.sync_data().unwrap();
        let seen = fs.kill().read("f").unwrap();
        assert_eq!(seen, [1; 8 * SECTOR_BYTES], "the page cache lives");
        assert_ne!(left(&fs.now(), 1, 100), Some(seen));
    }

    #[test]
    fn a_failed_sync_of_the_directory_needs_a_reboot() {
        let fs = SimFs::default();
        let weather = Weather {
            dir_sync: 100,
            ..Weather::default()
        };
        fs.set_weather(weather, 1);
        assert!(fs.sync_dir().is_err() && fs.is_shut_down());
        fs.set_weather(Weather::default(), 1);
        assert!(fs.create_new("f".as_ref()).is_err());
        let fs = fs.kill();
        assert!(fs.sync_dir().is_err(), "a new process does not help");
        let fs = fs.power_loss(&mut Prng(1), 0);
        fs.create_new("f".as_ref()).unwrap();
    }

    #[test]
    fn a_full_disk_takes_half_and_lets_what_is_allocated_be_written() {
        let fs = SimFs::default();
        let file = fs.create_new("f".as_ref()).unwrap();
        file.write_at(0, &[1; 100]).unwrap();
        let weather = Weather {
            full: 100,
            ..Weather::default()
        };
        fs.set_weather(weather, 1);
        file.write_at(0, &[2; 100]).unwrap();
        let full = file.write_at(100, &[3; 100]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 150);
        let full = fs.create_new("g".as_ref()).map(|_| ()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(fs.names(), ["f"]);
    }

    #[test]
    fn the_process_dies_where_it_is_told() {
        let fs = SimFs::default();
        fs.crash_after(2);
        let file = fs.create_new("f".as_ref()).unwrap();
        file.write_at(0, &[1]).unwrap();
        assert!(file.write_at(1, &[1]).is_err() && file.sync_data().is_err());
        assert!(fs.misbehaved());
        assert_eq!((fs.operations(), fs.read("f")), (2, Some(vec![1])));
    }
}
