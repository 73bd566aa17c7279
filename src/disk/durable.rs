//! The one recipe that gives a file its final name: temporary file, sync its data, link or rename, sync the
//! directory. At every moment, also after power loss, the final name is absent (or what it was) or whole, and when
//! `publish` has answered Ok it stays. `sim` breaks the recipe in each step and must notice.

use super::os::OsDir;
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
}

impl<F: Fs> NewFile<F> {
    /// Begins a file in the directory `fs`, which is the one that `dest` names.
    pub(super) fn create_in(fs: F, dest: &Path) -> Result<NewFile<F>> {
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
    for name in OsDir::open(dir, 0)?
        .list()
        .map_err(|e| failed("list", dir, e))?
    {
        if !is_temp_name(&name) {
            continue;
        }
        let path = dir.join(&name);
        // Gone in between: its owner was alive after all.
        let Some(found) = lstat(&path)? else { continue };
        let age_us = now_us.saturating_sub(found.modified.0);
        if found.kind == FileKind::File && age_us >= older_than.as_micros() as i64 {
            removed += usize::from(remove_file(&path)?);
        }
    }
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
