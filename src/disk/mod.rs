//! Files: the only door to file systems. Every error names its path, and a sync that failed is never tried again:
//! the kernel may have dropped the pages, so a second sync would answer Ok for bytes that are gone.
//!
//! `Fs` and `FsFile` are the seam for code that must survive power loss. `os` is the real directory, `sim` (tests)
//! the disk that forgets, `durable` the one recipe that gives a new file its final name. `tree` reads and rebuilds
//! data directories, `lock` keeps a second seawall out.

pub mod bulk;
pub mod durable;
#[cfg(test)]
mod durable_sim;
pub mod lock;
pub mod os;
#[cfg(test)]
pub(crate) mod sim;
pub mod tree;

use crate::error::{Error, Kind, Result};
use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::pg::timestamp::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

pub use std::fs::File;

/// One flat directory, as much of it as crash-safe code needs. Names are single path components.
pub trait Fs {
    /// Its files.
    type File: FsFile;
    /// Creates a file that must not exist, readable and writable.
    fn create_new(&self, name: &OsStr) -> io::Result<Self::File>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &OsStr) -> io::Result<Self::File>;
    /// Gives a file a second name; `AlreadyExists` if `to` is there, `Unsupported` where there are no hard links.
    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Renames; whatever was called `to` is replaced in the same step.
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Renames unless `to` exists (`AlreadyExists`); `Unsupported` where the file system cannot.
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &OsStr) -> io::Result<()>;
    /// All names, sorted.
    fn list(&self) -> io::Result<Vec<OsString>>;
    /// Makes every earlier create, link, rename and remove survive power loss.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file of an `Fs`. Reads and writes are positional, so threads may share it.
pub trait FsFile {
    /// Fills `bytes` from `offset` on; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Extends to `len` bytes, zeros so far, for all of which the disk has room from now on; the next sync makes that
    /// durable. `Unsupported` where the file system cannot, with nothing changed.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes contents and length survive power loss. Says nothing about the name.
    fn sync_data(&self) -> io::Result<()>;
    /// Asks to begin writing a range to the disk now, so that a later sync finds less to do. Promises nothing.
    fn start_writeback(&self, _offset: u64, _bytes: u64) {}
}

/// Several parts of a program may use one open directory.
impl<F: Fs> Fs for &F {
    type File = F::File;

    fn create_new(&self, name: &OsStr) -> io::Result<F::File> {
        (**self).create_new(name)
    }

    fn open(&self, name: &OsStr) -> io::Result<F::File> {
        (**self).open(name)
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        (**self).link(from, to)
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        (**self).rename(from, to)
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        (**self).rename_new(from, to)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        (**self).remove(name)
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        (**self).list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        (**self).sync_dir()
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link (only `lstat` sees these).
    Symlink,
    /// A socket, pipe or device.
    Other,
}

/// What the file system tells of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits (0o7777).
    pub mode: u32,
    /// Last change of the contents.
    pub modified: Timestamp,
    /// Inode number.
    pub inode: u64,
    /// Number of the device, which tells file systems apart.
    pub device: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Stat {
    /// Whether both are the same file, under whatever names.
    pub fn is_same_file(&self, other: &Stat) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl From<std::fs::Metadata> for Stat {
    fn from(data: std::fs::Metadata) -> Stat {
        let kind = match data.file_type() {
            t if t.is_file() => FileKind::File,
            t if t.is_dir() => FileKind::Directory,
            t if t.is_symlink() => FileKind::Symlink,
            _ => FileKind::Other,
        };
        Stat {
            kind,
            size: data.size(),
            mode: data.mode() & 0o7777,
            modified: Timestamp(data.mtime() * 1_000_000 + data.mtime_nsec() / 1_000),
            inode: data.ino(),
            device: data.dev(),
            uid: data.uid(),
            gid: data.gid(),
        }
    }
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| failed("open", path, e))
}

/// Reads a file that is small by nature (at most `SMALL_FILE_BYTES_MAX`).
pub fn read_small(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, SMALL_FILE_BYTES_MAX)
}

/// Reads a whole file of at most `bytes_max` bytes; a longer one is refused.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = bytes_max.saturating_add(1);
    open(path)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| failed("read", path, e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::new(Kind::Refused, format!("{path:?} is too large"))
            .detail(format!("It has more than {bytes_max} bytes.")));
    }
    Ok(bytes)
}

/// What `path` stands for, symbolic links followed; `None` when the name does not exist.
pub fn stat(path: &Path) -> Result<Option<Stat>> {
    found(path, std::fs::metadata(path))
}

/// What `path` itself is, a symbolic link not followed; `None` when the name does not exist.
pub fn lstat(path: &Path) -> Result<Option<Stat>> {
    found(path, std::fs::symlink_metadata(path))
}

/// What an open file is, whatever became of its name.
pub fn stat_open(file: &File, path: &Path) -> Result<Stat> {
    let data = file.metadata().map_err(|e| failed("examine", path, e))?;
    Ok(data.into())
}

/// How many files this process may have open at a time, once it has asked for all that it may have.
pub fn open_files_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What is refused leaves us with what we have.
    let now = setrlimit(Resource::Nofile, raised).map_or(limit, |()| raised);
    now.current.map_or(usize::MAX, |count| {
        usize::try_from(count).unwrap_or(usize::MAX)
    })
}

/// Where a symbolic link points, as written in it.
pub fn read_link(path: &Path) -> Result<PathBuf> {
    std::fs::read_link(path).map_err(|e| failed("read symbolic link", path, e))
}

/// The one path of what exists, without symbolic links, `.` and `..`.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|e| failed("examine", path, e))
}

/// Bytes that an ordinary user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).map_err(|e| failed("ask free space at", path, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether this process is root, so that the files it makes are root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Removes a file; `false` if there was none. Not synced: a removal that power loss undoes is repeated by whoever
/// wanted it.
pub fn remove_file(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", path, e)),
    }
}

/// Renames, replacing what is there. Not durable by itself; `durable` has the recipe.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .map_err(|e| Error::io(format!("could not rename {from:?} to {to:?}"), e))
}

/// Creates `path` and every missing directory above it with `mode` (less the umask), each new name synced, so that
/// files made durable inside cannot vanish with their directory.
pub fn create_dirs(path: &Path, mode: u32) -> Result<()> {
    let mut missing = Vec::new();
    let mut above = path;
    while stat(above)?.is_none() {
        missing.push(above);
        above = parent_of(above);
    }
    for dir in missing.into_iter().rev() {
        match std::fs::DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => {}
            // Another process was faster; a file of that name shows itself at the next step down.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("create directory", dir, e)),
        }
        sync_dir(parent_of(dir))?;
    }
    match stat(path)? {
        Some(found) if found.kind == FileKind::Directory => Ok(()),
        _ => Err(Error::new(
            Kind::Refused,
            format!("{path:?} is not a directory"),
        )),
    }
}

/// Makes the names in a directory survive power loss.
pub fn sync_dir(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| failed("open directory", path, e.into()))?;
    sync_dir_fd(&dir).map_err(|e| failed("sync directory", path, e))
}

/// Opens what is there for reading and writing.
pub fn open_writable(path: &Path) -> Result<File> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|e| failed("open", path, e))
}

/// Opens an unnamed file in `dir` for reading and writing; it is gone when closed, whatever happens.
pub fn hidden_temp(dir: &Path) -> Result<File> {
    use rustix::io::Errno;
    let mode = Mode::RUSR | Mode::WUSR;
    let unnamed = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, unnamed, mode) {
        Ok(fd) => return Ok(fd.into()),
        // The file system cannot: a named file, unlinked at once.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(e) => return Err(failed("create a temporary file in", dir, e.into())),
    }
    let path = dir.join(durable::temp_name(OsStr::new("hidden"))?);
    let named = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, named, mode).map_err(|e| failed("create", &path, e.into()))?;
    std::fs::remove_file(&path).map_err(|e| failed("remove", &path, e))?;
    Ok(fd.into())
}

/// The directory that holds `path`: `.` for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// fsync of a directory. EINVAL means that the file system has no such operation (some network and FUSE file
/// systems keep names on the other side): nothing was attempted, nothing can be done, and PostgreSQL passes over it
/// too. Said once, then accepted.
fn sync_dir_fd(dir: impl std::os::fd::AsFd) -> io::Result<()> {
    static TOLD: Once = Once::new();
    match rustix::fs::fsync(dir) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL) => {
            TOLD.call_once(|| log::warn!("this file system cannot sync directories"));
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn found(path: &Path, data: io::Result<std::fs::Metadata>) -> Result<Option<Stat>> {
    match data {
        Ok(data) => Ok(Some(data.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("examine", path, e)),
    }
}

/// `could not <verb> "<path>"`, with a hint where the operator can act.
fn failed(verb: &str, path: &Path, cause: io::Error) -> Error {
    let error = Error::io(format!("could not {verb} {path:?}"), cause);
    match error.kind() {
        Kind::Full => {
            error.hint("Free space on that file system or raise the quota, then try again.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn small_files_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), [7; 100]);
        let error = read_bounded(&path, 99).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.message().contains(path.to_str().unwrap()));
        let absent = read_small(&dir.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), Kind::Missing);
        assert!(absent.message().ends_with("/absent\""), "{absent}");
    }

    #[test]
    fn stat_tells_absent_from_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "abc").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        let link = dir.path().join("l");
        std::os::unix::fs::symlink("f", &link).unwrap();

        let seen = stat(&file).unwrap().unwrap();
        assert_eq!(
            (seen.kind, seen.size, seen.mode),
            (FileKind::File, 3, 0o640)
        );
        assert!(seen.modified.0 > 1_600_000_000_000_000, "microseconds");
        assert_eq!(lstat(&link).unwrap().unwrap().kind, FileKind::Symlink);
        assert!(stat(&link).unwrap().unwrap().is_same_file(&seen));
        assert_eq!(read_link(&link).unwrap(), Path::new("f"));
        assert_eq!(stat(&dir.path().join("absent")).unwrap(), None);
        // A file where a directory should be is not absence.
        assert!(stat(&file.join("below")).is_err());
        assert!(remove_file(&link).unwrap());
        assert!(!remove_file(&link).unwrap());
    }

    #[test]
    fn directories_are_made_with_all_above_them() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep, 0o700).unwrap();
        create_dirs(&deep, 0o700).unwrap();
        assert_eq!(stat(&deep).unwrap().unwrap().mode, 0o700);
        let file = dir.path().join("a/file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(create_dirs(&file, 0o700).unwrap_err().kind(), Kind::Refused);
        assert!(create_dirs(&file.join("x"), 0o700).is_err());
    }

    #[test]
    fn a_hidden_file_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = hidden_temp(dir.path()).unwrap();
        io::Write::write_all(&mut file, b"x").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let absent = dir.path().join("absent");
        assert_eq!(hidden_temp(&absent).unwrap_err().kind(), Kind::Missing);
        assert!(free_bytes(dir.path()).unwrap() > 0);
    }
}
