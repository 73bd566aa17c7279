//! The real directory. It is held open: verbs work on the directory that was opened, whatever becomes of its path.
//! `HeldDir` does the same for a whole tree, and tells whether its path still leads there.

use super::{File, FileKind, Fs, FsFile, failed};
use crate::error::Result;
use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of names that one system call brings from a directory.
const NAMES_BYTES: usize = 32 << 10;

/// What is opened is a directory.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A directory and all below it, held fast: what is made through it comes to lie there, whatever is mounted over or
/// moved to its path meanwhile. While it is held it cannot be unmounted, and no other directory gets its number.
pub struct HeldDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl HeldDir {
    /// Holds the directory that is at `path` now.
    pub fn hold(path: &Path) -> Result<HeldDir> {
        let fd = rustix::fs::open(path, OFlags::PATH | DIRECTORY, Mode::empty())
            .map_err(|e| failed("open directory", path, e.into()))?;
        Ok(HeldDir {
            path: path.to_path_buf(),
            fd,
        })
    }

    /// The path it was at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path still leads to it.
    pub fn is_in_place(&self) -> Result<bool> {
        let failed = |e: Errno| failed("examine", &self.path, e.into());
        let held = rustix::fs::fstat(&self.fd).map_err(failed)?;
        match rustix::fs::statat(CWD, &self.path, AtFlags::empty()) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// Makes the directory `below` with `mode` less the umask, if it is not there; the one above it must be.
    pub fn make_dir(&self, below: &Path, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match rustix::fs::mkdirat(&self.fd, below, mode) {
            // What it is shows itself when it is opened.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(failed("create directory", &self.path.join(below), e.into())),
        }
    }

    /// Opens the directory `below`, itself if that is empty; files created through it get `file_mode` less the umask.
    pub fn open_dir(&self, below: &Path, file_mode: u32) -> Result<OsDir> {
        let name = match below.as_os_str().is_empty() {
            true => Path::new("."),
            false => below,
        };
        let fd = rustix::fs::openat(&self.fd, name, OFlags::RDONLY | DIRECTORY, Mode::empty())
            .map_err(|e| failed("open directory", &self.path.join(below), e.into()))?;
        let file_mode = Mode::from_raw_mode(file_mode & 0o7777);
        Ok(OsDir { fd, file_mode })
    }
}

/// An open directory.
pub struct OsDir {
    fd: OwnedFd,
    file_mode: Mode,
}

/// A file opened through `OsDir`.
pub struct OsFile(File);

impl OsDir {
    /// Opens a directory; files created through it get `file_mode` less the umask.
    pub fn open(path: &Path, file_mode: u32) -> Result<OsDir> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | DIRECTORY, Mode::empty())
            .map_err(|e| failed("open directory", path, e.into()))?;
        let file_mode = Mode::from_raw_mode(file_mode & 0o7777);
        Ok(OsDir { fd, file_mode })
    }

    /// Calls `each` with every name, in no order, and with what it is where the file system tells it along. Takes as
    /// much memory for a million names as for one. What is removed meanwhile may be among them. `path` is for messages.
    pub fn each_name(
        &self,
        path: &Path,
        each: &mut dyn FnMut(&OsStr, Option<FileKind>) -> Result<()>,
    ) -> Result<()> {
        let listing = |e: Errno| failed("list", path, e.into());
        // A descriptor of its own, because the position in the directory belongs to it.
        let fd = rustix::fs::openat(&self.fd, ".", OFlags::RDONLY | DIRECTORY, Mode::empty())
            .map_err(listing)?;
        let mut buffer = Vec::with_capacity(NAMES_BYTES);
        let mut names = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = names.next() {
            let entry = entry.map_err(listing)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => Some(FileKind::File),
                FileType::Directory => Some(FileKind::Directory),
                FileType::Symlink => Some(FileKind::Symlink),
                FileType::Unknown => None,
                _ => Some(FileKind::Other),
            };
            each(OsStr::from_bytes(name), kind)?;
        }
        Ok(())
    }

    fn open_with(&self, name: &OsStr, more: OFlags) -> io::Result<OsFile> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
        let fd = rustix::fs::openat(&self.fd, name, flags, self.file_mode)?;
        Ok(OsFile(fd.into()))
    }

    /// NFS repeats a request whose answer was lost, and then says that the link which it made itself is there.
    fn is_same_file(&self, one: &OsStr, other: &OsStr) -> bool {
        let inode = |name| {
            let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        inode(one).is_some_and(|found| inode(other) == Some(found))
    }
}

impl Fs for OsDir {
    type File = OsFile;

    fn create_new(&self, name: &OsStr) -> io::Result<OsFile> {
        self.open_with(name, OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &OsStr) -> io::Result<OsFile> {
        self.open_with(name, OFlags::empty())
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        match rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty()) {
            Err(Errno::EXIST) if self.is_same_file(from, to) => Ok(()),
            // link(2) names EPERM for file systems without hard links (FAT, some FUSE and SMB mounts).
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => Ok(other?),
        }
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => Ok(other?),
        }
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        super::sync_dir_fd(&self.fd)
    }
}

impl FsFile for OsFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        // Not posix_fallocate(3), which writes a byte into each block where the kernel cannot.
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_writeback(&self, offset: u64, bytes: u64) {
        // Linux begins to write dirty pages that are said not to be needed, and drops them only when they are clean.
        // An archive is not read back soon, so its pages need not push PostgreSQL's out of the cache.
        if let Some(bytes) = NonZeroU64::new(bytes)
            && let Err(e) = rustix::fs::fadvise(&self.0, offset, Some(bytes), Advice::DontNeed)
        {
            log::trace!("this file system takes no advice: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_held_stays_the_one_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("d"), dir.path().join("away"));
        std::fs::create_dir(&path).unwrap();
        let held = HeldDir::hold(&path).unwrap();
        assert!(held.is_in_place().unwrap());
        std::fs::rename(&path, &away).unwrap();
        assert!(!held.is_in_place().unwrap(), "nothing there");
        std::fs::create_dir(&path).unwrap();
        assert!(!held.is_in_place().unwrap(), "another one there");
        held.make_dir(Path::new("a"), 0o700).unwrap();
        held.make_dir(Path::new("a"), 0o700).unwrap();
        held.open_dir(Path::new("a"), 0o600)
            .unwrap()
            .create_new(OsStr::new("f"))
            .unwrap();
        assert!(away.join("a/f").exists());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn names_come_with_what_they_are() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("d")).unwrap();
        let many = 2 * NAMES_BYTES / 24;
        for number in 0..many {
            std::fs::write(temp.path().join(format!("{number:020}")), "").unwrap();
        }
        let dir = OsDir::open(temp.path(), 0).unwrap();
        // Twice: a listing begins at the beginning.
        for _ in 0..2 {
            let (mut files, mut directories) = (0, 0);
            dir.each_name(temp.path(), &mut |name, kind| {
                match kind {
                    Some(FileKind::Directory) => {
                        assert_eq!((name, directories), (OsStr::new("d"), 0))
                    }
                    kind => assert!(matches!(kind, None | Some(FileKind::File))),
                }
                files += usize::from(name != "d");
                directories += usize::from(name == "d");
                Ok(())
            })
            .unwrap();
            assert_eq!((files, directories), (many, 1));
        }
    }
}
