//! The one recipe that gives a file its final name: temporary file, sync its data, link or rename, sync the
//! directory. At every moment, also after power loss, the final name is absent (or what it was) or whole, and when
//! `publish` has answered Ok it stays. `durable_sim` breaks the recipe in each step and must notice.

use super::os::{HeldDir, OsDir};
use super::{FileKind, Fs, FsFile, failed, lstat, open, parent_of, remove_file, sync_dir};
use crate::error::{Error, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// What the temporary names of seawall end with.
const TEMP_SUFFIX: &str = ".seawall-tmp";

/// Longest file name of Linux file systems, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// What `publish` does about a file that already has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// Leaves it alone and fails with `Kind::Exists`.
    Absent,
    /// Replaces it in one step.
    Replace,
}

/// A file under construction beside its destination. Dropped without `publish`, it is removed.
pub struct NewFile<F: Fs = OsDir> {
    fs: F,
    file: F::File,
    dest: PathBuf,
    temp: Option<OsString>,
    position: u64,
    /// A write failed: the file has a hole that must never get a final name.
    poisoned: AtomicBool,
}

impl NewFile {
    /// Begins a file that will be called `dest`, with `mode` less the umask.
    pub fn create(dest: &Path, mode: u32) -> Result<NewFile> {
        NewFile::create_in(OsDir::open(parent_of(dest), mode)?, dest)
    }

    /// The same for a file `below` a directory that is held: it appears there, whatever its path leads to by then.
    pub fn create_below(root: &HeldDir, below: &Path, mode: u32) -> Result<NewFile> {
        let dir = root.open_dir(below.parent().unwrap_or(below), mode)?;
        NewFile::create_in(dir, &root.path().join(below))
    }
}

impl<F: Fs> NewFile<F> {
    /// Begins a file in the directory `fs`, which is the one that `dest` names.
    pub fn create_in(fs: F, dest: &Path) -> Result<NewFile<F>> {
        let temp = temp_name(final_name(dest)?)?;
        let file = fs
            .create_new(&temp)
            .map_err(|e| failed("create", &dest.with_file_name(&temp), e))?;
        Ok(NewFile {
            fs,
            file,
            dest: dest.to_path_buf(),
            temp: Some(temp),
            position: 0,
            poisoned: AtomicBool::new(false),
        })
    }

    /// Writes all of `bytes` at `offset`; several threads may do so at once.
    pub fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(offset, bytes).map_err(|e| {
            self.poisoned.store(true, Ordering::Release);
            failed("write", &self.dest, e)
        })
    }

    /// Begins to write a range to the disk, while the next one is still being made.
    pub fn start_writeback(&self, offset: u64, bytes: u64) {
        self.file.start_writeback(offset, bytes);
    }

    /// Gives the file its name: whole and durable when this answers Ok. A failed sync is not tried again and the
    /// file is given up: the pages that could not be written may already be forgotten.
    pub fn publish(mut self, publish: Publish) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(
                Error::new(Kind::Bug, format!("{:?} was not written whole", self.dest))
                    .detail("An earlier write failed and its error was passed over."),
            );
        }
        self.file
            .sync_data()
            .map_err(|e| failed("sync", &self.dest, e))?;
        self.enter(publish)?;
        self.fs
            .sync_dir()
            .map_err(|e| failed("sync directory", parent_of(&self.dest), e))
    }

    /// The name appears here; afterwards the temporary one is gone, or left to `remove_stale_temps`.
    fn enter(&mut self, publish: Publish) -> Result<()> {
        let name = final_name(&self.dest)?;
        let temp = self
            .temp
            .as_deref()
            .expect("only publish takes it, by value");
        let entered = match publish {
            Publish::Replace => self.fs.rename(temp, name),
            Publish::Absent => match self.fs.link(temp, name) {
                // The bytes are durable and named; a leftover second name is untidy, not wrong.
                Ok(()) => self.fs.remove(temp).or(Ok(())),
                Err(e) if e.kind() == io::ErrorKind::Unsupported => self.fs.rename_new(temp, name),
                Err(e) => Err(e),
            },
        };
        match entered {
            Ok(()) => {
                self.temp = None;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::new(
                Kind::Exists,
                format!("{:?} exists already", self.dest),
            )),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Err(cannot_create(&self.dest)),
            Err(e) => Err(failed("create", &self.dest, e)),
        }
    }
}

impl<F: Fs> Write for NewFile<F> {
    /// Writes after what was written before through `Write`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all_at(self.position, bytes)?;
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: Fs> Drop for NewFile<F> {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take()
            && let Err(e) = self.fs.remove(&temp)
        {
            log::debug!("could not remove temporary file {temp:?}: {e}");
        }
    }
}

/// Replaces a small file in one step, so that no reader ever sees half of it. Nothing is synced: after power loss it may
/// be empty, so this is only for what a living process tells of itself, and for what may be lost.
pub fn replace_unsynced(dest: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(dest, 0o644)?;
    file.write_all_at(0, bytes)?;
    file.enter(Publish::Replace)
}

/// Syncs an existing file and its directory, before "it is there already" is believed: whoever wrote it may have
/// died before doing so.
pub fn settle(path: &Path) -> Result<()> {
    let file = open(path)?;
    file.sync_all().map_err(|e| failed("sync", path, e))?;
    sync_dir(parent_of(path))
}

/// Removes temporary files in `dir` that nobody has written to for `older_than`: what killed processes left.
/// Answers how many.
pub fn remove_stale_temps(dir: &Path, older_than: Duration) -> Result<usize> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_us = now.map_or(0, |d| d.as_micros() as i64);
    let mut removed = 0;
    OsDir::open(dir, 0)?.each_name(dir, &mut |name, _| {
        if !is_temp_name(name) {
            return Ok(());
        }
        let path = dir.join(name);
        // Gone in between: its owner was alive after all.
        let Some(found) = lstat(&path)? else {
            return Ok(());
        };
        let age_us = now_us.saturating_sub(found.modified.0);
        if found.kind == FileKind::File && age_us >= older_than.as_micros() as i64 {
            removed += usize::from(remove_file(&path)?);
        }
        Ok(())
    })?;
    Ok(removed)
}

/// Whether a file of this name is one of our temporary ones.
pub fn is_temp_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(TEMP_SUFFIX.as_bytes())
}

/// `.<name>.<random>.seawall-tmp`; a long name is cut so that the whole fits.
pub(super) fn temp_name(name: &OsStr) -> Result<OsString> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("could not get random bytes", e.into()))?;
    let tail = format!(".{:016x}{TEMP_SUFFIX}", u64::from_ne_bytes(random));
    let kept = name.len().min(NAME_BYTES_MAX - tail.len() - 1);
    let mut temp = OsString::from(".");
    temp.push(OsStr::from_bytes(&name.as_bytes()[..kept]));
    temp.push(tail);
    Ok(temp)
}

fn final_name(dest: &Path) -> Result<&OsStr> {
    dest.file_name()
        .ok_or_else(|| Error::new(Kind::Refused, format!("{dest:?} does not name a file")))
}

fn cannot_create(dest: &Path) -> Error {
    Error::new(
        Kind::Refused,
        format!("could not create {dest:?} without risk of overwriting"),
    )
    .detail("The file system has neither hard links nor renames that keep an existing file.")
    .hint("Use a file system that has them, or an object store.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{read_small, stat, tree};
    use crate::pg::timestamp::Timestamp;

    fn names(dir: &Path) -> Vec<OsString> {
        let entries = tree::walk_dir(dir).unwrap();
        entries.into_iter().map(|e| e.name).collect()
    }

    fn write_new(dest: &Path, bytes: &[u8], publish: Publish) -> Result<()> {
        let mut file = NewFile::create(dest, 0o600)?;
        file.write_all(bytes).unwrap();
        file.publish(publish)
    }

    #[test]
    fn a_file_appears_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x".repeat(NAME_BYTES_MAX));
        let mut file = NewFile::create(&dest, 0o600).unwrap();
        file.write_all(b"hello ").unwrap();
        assert_eq!(stat(&dest).unwrap(), None, "no final name before publish");
        assert!(is_temp_name(&names(dir.path())[0]));
        file.write_all(b"world").unwrap();
        file.publish(Publish::Absent).unwrap();
        assert_eq!(read_small(&dest).unwrap(), b"hello world");
        assert_eq!(stat(&dest).unwrap().unwrap().mode, 0o600);
        assert_eq!(names(dir.path()).len(), 1);
        settle(&dest).unwrap();
    }

    #[test]
    fn what_exists_is_kept_or_replaced_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        write_new(&dest, b"one", Publish::Absent).unwrap();
        let error = write_new(&dest, b"two", Publish::Absent).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert_eq!(error.message(), format!("{dest:?} exists already"));
        assert_eq!(read_small(&dest).unwrap(), b"one");
        write_new(&dest, b"three", Publish::Replace).unwrap();
        assert_eq!(read_small(&dest).unwrap(), b"three");
        assert_eq!(names(dir.path()), ["f"], "no temporary file is left");
    }

    #[test]
    fn threads_may_write_pieces_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        let file = NewFile::create(&dest, 0o600).unwrap();
        std::thread::scope(|s| {
            for piece in (0..8u8).rev() {
                let file = &file;
                s.spawn(move || {
                    file.write_all_at(u64::from(piece) * 1000, &[piece; 1000])
                        .unwrap()
                });
            }
        });
        file.publish(Publish::Absent).unwrap();
        let expected: Vec<u8> = (0..8u8).flat_map(|piece| [piece; 1000]).collect();
        assert_eq!(read_small(&dest).unwrap(), expected);
    }

    #[test]
    fn the_rename_that_keeps_an_existing_file_is_a_way_too() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("old"), "old").unwrap();
        std::fs::write(dir.path().join("new"), "new").unwrap();
        let fs = OsDir::open(dir.path(), 0o600).unwrap();
        let (old, new) = (OsStr::new("old"), OsStr::new("new"));
        match fs.rename_new(new, old).unwrap_err().kind() {
            io::ErrorKind::AlreadyExists => {
                fs.rename_new(new, OsStr::new("free")).unwrap();
                assert_eq!(fs.list().unwrap(), ["free", "old"]);
            }
            // This file system cannot, and says so instead of overwriting.
            other => assert_eq!(other, io::ErrorKind::Unsupported),
        }
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"old");
    }

    #[test]
    fn a_link_that_is_there_already_is_ours_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("one"), "1").unwrap();
        std::fs::write(dir.path().join("other"), "2").unwrap();
        let fs = OsDir::open(dir.path(), 0o600).unwrap();
        let one = OsStr::new("one");
        fs.link(one, OsStr::new("two")).unwrap();
        // NFS after a lost answer: the second request meets the first one's link.
        fs.link(one, OsStr::new("two")).unwrap();
        let error = fs.link(one, OsStr::new("other")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn nothing_is_left_of_a_file_given_up() {
        let dir = tempfile::tempdir().unwrap();
        drop(NewFile::create(&dir.path().join("f"), 0o600).unwrap());
        assert_eq!(names(dir.path()), [""; 0]);
        let absent = NewFile::create(&dir.path().join("absent/f"), 0o600);
        assert_eq!(absent.map(|_| ()).unwrap_err().kind(), Kind::Missing);
        let nameless = NewFile::create(&dir.path().join(".."), 0o600);
        assert_eq!(nameless.map(|_| ()).unwrap_err().kind(), Kind::Refused);
        assert!(settle(&dir.path().join("f")).is_err());
    }

    #[test]
    fn only_old_temporary_files_of_ours_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let all = [
            ".f.1.seawall-tmp",
            ".f.2.seawall-tmp",
            ".f.3.tmp",
            "f.4.seawall-tmp",
        ];
        for name in all {
            std::fs::write(path(name), "").unwrap();
            tree::set_modified(&path(name), Timestamp(0)).unwrap();
        }
        std::fs::write(path(all[1]), "still being written").unwrap();
        tree::create_dir(&path(".d.seawall-tmp"), 0o700).unwrap();
        tree::set_modified(&path(".d.seawall-tmp"), Timestamp(0)).unwrap();
        let removed = remove_stale_temps(dir.path(), Duration::from_secs(3600)).unwrap();
        assert_eq!(removed, 1);
        assert_eq!(
            names(dir.path()),
            [".d.seawall-tmp", all[1], all[2], all[3]]
        );
    }
}
