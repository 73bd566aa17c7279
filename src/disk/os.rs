//! The real directory. It is held open: verbs work on the directory that was opened, whatever becomes of its path.

use super::{File, Fs, FsFile, failed};
use crate::error::Result;
use rustix::fs::{Advice, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| failed("open directory", path, e.into()))?;
        let file_mode = Mode::from_raw_mode(file_mode & 0o7777);
        Ok(OsDir { fd, file_mode })
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
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
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
