//! Data directories: what lies in them, how to rebuild them, and how to make thousands of new files durable.
//!
//! Symbolic links are never followed below the path that is given.

use super::{File, FileKind, Stat, failed, lstat, sync_dir};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs::{OpenOptions, Permissions};
use std::io::ErrorKind::NotFound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without the directory.
    pub name: OsString,
    /// What it is; a symbolic link is not followed.
    pub stat: Stat,
}

/// Lists one directory, sorted by the bytes of the names. A running server creates and removes files meanwhile: what
/// vanishes between the listing and the look at it is left out.
pub fn walk_dir(path: &Path) -> Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| failed("list", path, e))? {
        let entry = entry.map_err(|e| failed("list", path, e))?;
        match entry.metadata() {
            Ok(data) => entries.push(DirEntry {
                name: entry.file_name(),
                stat: data.into(),
            }),
            Err(e) if e.kind() == NotFound => {}
            Err(e) => return Err(failed("examine", &entry.path(), e)),
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The names in one directory, sorted by their bytes. They lie one behind the other, because there may be millions.
pub struct Names {
    bytes: Vec<u8>,
    /// Where each begins, and in the lower 16 bits how long it is.
    places: Vec<u64>,
}

impl Names {
    /// Lists a directory.
    pub fn list(path: &Path) -> Result<Names> {
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(path).map_err(|e| failed("list", path, e))? {
            let name = entry.map_err(|e| failed("list", path, e))?.file_name();
            places.push((bytes.len() as u64) << 16 | name.len() as u64);
            bytes.extend_from_slice(name.as_bytes());
        }
        places.sort_unstable_by(|a, b| at(&bytes, *a).cmp(at(&bytes, *b)));
        Ok(Names { bytes, places })
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &OsStr> {
        let name = |place: &u64| OsStr::from_bytes(at(&self.bytes, *place));
        self.places.iter().map(name)
    }

    /// Whether there is one like this.
    pub fn contains(&self, name: &str) -> bool {
        let order = |place: &u64| at(&self.bytes, *place).cmp(name.as_bytes());
        self.places.binary_search_by(order).is_ok()
    }
}

fn at(bytes: &[u8], place: u64) -> &[u8] {
    let from = (place >> 16) as usize;
    &bytes[from..from + (place & 0xFFFF) as usize]
}

/// The data directory of PostgreSQL that `path`, without links, is or lies in: what belongs to others would be backed up,
/// restored and removed with it. What cannot be looked at is none.
pub fn data_directory_around(path: &Path) -> Option<&Path> {
    path.ancestors()
        .find(|above| matches!(lstat(&above.join("PG_VERSION")), Ok(Some(_))))
}

/// Whether a directory has no entry at all.
pub fn is_empty_dir(path: &Path) -> Result<bool> {
    let mut names = std::fs::read_dir(path).map_err(|e| failed("list", path, e))?;
    match names.next() {
        None => Ok(true),
        Some(Ok(_)) => Ok(false),
        Some(Err(e)) => Err(failed("list", path, e)),
    }
}

/// Creates one directory with exactly `mode`, whatever the umask.
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    std::fs::create_dir(path).map_err(|e| failed("create directory", path, e))?;
    set_mode(path, mode)
}

/// Creates a file that must not exist, for reading and writing, with exactly `mode`, whatever the umask.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode & 0o700)
        .open(path)
        .map_err(|e| failed("create", path, e))?;
    file.set_permissions(Permissions::from_mode(mode & 0o7777))
        .map_err(|e| failed("set the mode of", path, e))?;
    Ok(file)
}

/// Creates the symbolic link `link` that points to `target`.
pub fn make_symlink(target: &Path, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, link).map_err(|e| failed("create symbolic link", link, e))
}

/// Sets permission bits.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
        .map_err(|e| failed("set the mode of", path, e))
}

/// Sets the time of the last change; the time of the last access stays.
pub fn set_modified(path: &Path, modified: Timestamp) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: modified.0.div_euclid(1_000_000),
            tv_nsec: modified.0.rem_euclid(1_000_000) * 1_000,
        },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| failed("set the time of", path, e.into()))
}

/// Removes a directory and everything in it; absent is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

/// Makes everything below `root` durable: contents, names, modes. Prefer `TreeSync`, begun before the first write.
pub fn sync_tree(root: &Path) -> Result<()> {
    TreeSync::begin(root)?.finish()
}

/// Flushes the whole file system that holds `path`. Kernels before 5.8 answer Ok even when a write failed.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let fd = open_dir(path)?;
    rustix::fs::syncfs(&fd).map_err(|e| failed("sync the file system of", path, e.into()))
}

/// Makes a tree of new files durable, in one of two ways.
///
/// Where the kernel reports every failed write of a file system to syncfs(2) (Linux 5.8 and later, the local file
/// systems of `reports_lost_writes`), one call does it all in one journal commit: 100,000 fsyncs cost 10 s on a quick
/// disk and minutes on others. The descriptor is opened by `begin`, before anything is written, because it is told of
/// the failures since it was opened. A later fsync of each reopened file is told less: once the kernel has given up a
/// page and dropped the inode from memory, the failure is forgotten. Everywhere else (network, FUSE, overlay, ZFS)
/// each file and then each directory is synced.
///
/// Other programs' data on that file system is flushed too, and their failures are reported to us: a wait or an
/// error too much, never an Ok too much.
pub struct TreeSync {
    root: PathBuf,
    fd: OwnedFd,
}

impl TreeSync {
    /// To be called before the first write below `root`, which must exist.
    pub fn begin(root: &Path) -> Result<TreeSync> {
        Ok(TreeSync {
            root: root.to_path_buf(),
            fd: open_dir(root)?,
        })
    }

    /// Makes everything below the root durable. A failure is final: what was lost cannot be written again.
    pub fn finish(self) -> Result<()> {
        sync_below(&self.root, &mut |dir| {
            if dir == self.root {
                return flush(&self.fd, dir);
            }
            flush(&open_dir(dir)?, dir)
        })
    }
}

/// syncfs, where its Ok can be believed; else `false`.
fn flush(fd: &OwnedFd, dir: &Path) -> Result<bool> {
    let about = rustix::fs::fstatfs(fd).map_err(|e| failed("examine", dir, e.into()))?;
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    if !reports_lost_writes(&release, about.f_type as u32) {
        return Ok(false);
    }
    rustix::fs::syncfs(fd)
        .map(|()| true)
        .map_err(|e| failed("sync the file system of", dir, e.into()))
}

/// Whether syncfs(2) reports failed writes: kernel 5.8 or later and one of the file systems (numbers from
/// linux/magic.h) that note each failure where syncfs looks, and flush the disk's cache.
fn reports_lost_writes(release: &str, magic: u32) -> bool {
    const EXT: u32 = 0xEF53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683E;
    const F2FS: u32 = 0xF2F5_2010;
    const TMPFS: u32 = 0x0102_1994;
    let number = |part: &str| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    };
    let mut parts = release.split('.').map(number);
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= (5, 8) && [EXT, XFS, BTRFS, F2FS, TMPFS].contains(&magic)
}

/// Walks the tree; `flush` is asked once for each file system (device) it meets and answers whether all files there
/// are durable now. Files elsewhere are synced one by one, then their directories.
fn sync_below(root: &Path, flush: &mut dyn FnMut(&Path) -> Result<bool>) -> Result<()> {
    let missing = || Error::new(Kind::Missing, format!("{root:?} does not exist"));
    let top = lstat(root)?.ok_or_else(missing)?;
    let mut flushed = BTreeMap::from([(top.device, flush(root)?)]);
    let mut waiting = vec![(root.to_path_buf(), top.device)];
    let mut dirs = Vec::new();
    while let Some((dir, device)) = waiting.pop() {
        for entry in walk_dir(&dir)? {
            let (path, device) = (dir.join(&entry.name), entry.stat.device);
            match entry.stat.kind {
                FileKind::Directory => {
                    // Another device: something is mounted here.
                    if let Entry::Vacant(unknown) = flushed.entry(device) {
                        unknown.insert(flush(&path)?);
                    }
                    waiting.push((path, device));
                }
                FileKind::File if flushed.get(&device) != Some(&true) => sync_file(&path)?,
                _ => {}
            }
        }
        if flushed.get(&device) != Some(&true) {
            dirs.push(dir);
        }
    }
    dirs.iter().try_for_each(|dir| sync_dir(dir))
}

fn sync_file(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", path, e.into()))?;
    rustix::fs::fsync(&fd).map_err(|e| failed("sync", path, e.into()))
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| failed("open directory", path, e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{read_link, stat};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    /// `d/` with a file, a link that leads nowhere and a pipe that would block whoever opens it for reading.
    fn sample(root: &Path) {
        create_dir(&root.join("d"), 0o750).unwrap();
        create_new(&root.join("d/file"), 0o640).unwrap();
        make_symlink(Path::new("/nowhere/at/all"), &root.join("link")).unwrap();
        rustix::fs::mknodat(
            CWD,
            root.join("d/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
    }

    #[test]
    fn a_directory_is_listed_in_order_with_links_as_links() {
        let temp = tempfile::tempdir().unwrap();
        sample(temp.path());
        let odd = OsStr::from_bytes(b"\xff not utf-8");
        create_new(&temp.path().join(odd), 0o600).unwrap();
        let entries = walk_dir(temp.path()).unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.name.as_os_str(), e.stat.kind))
            .collect();
        let expected = [
            (OsStr::new("d"), FileKind::Directory),
            (OsStr::new("link"), FileKind::Symlink),
            (odd, FileKind::File),
        ];
        assert_eq!(seen, expected);
        assert_eq!(
            read_link(&temp.path().join("link")).unwrap(),
            Path::new("/nowhere/at/all")
        );
        assert!(!is_empty_dir(temp.path()).unwrap());
        assert_eq!(
            walk_dir(&temp.path().join("absent")).unwrap_err().kind(),
            Kind::Missing
        );
        remove_tree(&temp.path().join("d")).unwrap();
        remove_tree(&temp.path().join("d")).unwrap();
        assert_eq!(stat(&temp.path().join("d")).unwrap(), None);
    }

    #[test]
    fn modes_and_times_are_as_asked() {
        let temp = tempfile::tempdir().unwrap();
        sample(temp.path());
        let look = |name: &str| stat(&temp.path().join(name)).unwrap().unwrap();
        // 0o666 would lose its last bits to any usual umask.
        create_new(&temp.path().join("all"), 0o666).unwrap();
        assert_eq!(
            (look("all").mode, look("d").mode, look("d/file").mode),
            (0o666, 0o750, 0o640)
        );
        for modified in [Timestamp(1_700_000_000_123_456), Timestamp(-1)] {
            set_modified(&temp.path().join("all"), modified).unwrap();
            assert_eq!(look("all").modified, modified);
        }
        let again = create_new(&temp.path().join("all"), 0o600).unwrap_err();
        assert_eq!(again.kind(), Kind::Exists);
        let through_link = create_new(&temp.path().join("link"), 0o600).unwrap_err();
        assert_eq!(
            through_link.kind(),
            Kind::Exists,
            "a link is never written through"
        );
    }

    #[test]
    fn names_are_sorted_and_found_again() {
        let temp = tempfile::tempdir().unwrap();
        let mut expected: Vec<OsString> = (0..500).map(|n| format!("{n}_init").into()).collect();
        expected.push(OsStr::from_bytes(b"not \xFF UTF-8").into());
        expected.push("n".repeat(255).into());
        for name in &expected {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        expected.sort();
        let names = Names::list(temp.path()).unwrap();
        assert!(names.iter().eq(&expected));
        assert!(names.contains("0_init") && names.contains("499_init"));
        assert!(!names.contains("500_init") && !names.contains("") && !names.contains("z"));
        let absent = Names::list(&temp.path().join("absent"));
        assert_eq!(absent.err().unwrap().kind(), Kind::Missing);
    }

    #[test]
    fn both_ways_to_sync_pass_over_links_and_pipes() {
        let temp = tempfile::tempdir().unwrap();
        sample(temp.path());
        sync_tree(temp.path()).unwrap();
        sync_filesystem(temp.path()).unwrap();
        let mut asked = Vec::new();
        sync_below(temp.path(), &mut |dir| {
            asked.push(dir.to_path_buf());
            Ok(false)
        })
        .unwrap();
        assert_eq!(asked, [temp.path()], "once for each file system");
        assert_eq!(
            sync_tree(&temp.path().join("absent")).unwrap_err().kind(),
            Kind::Missing
        );
    }

    #[test]
    fn one_by_one_reaches_every_file() {
        let temp = tempfile::tempdir().unwrap();
        sample(temp.path());
        // A name that vanished cannot be synced: the walk that meets it through a stale listing must say so.
        let error = sync_file(&temp.path().join("d/absent")).unwrap_err();
        assert_eq!(error.kind(), Kind::Missing);
        let refused = sync_below(temp.path(), &mut |_| {
            Err(Error::new(Kind::Io, "lost writes"))
        });
        assert_eq!(
            refused.unwrap_err().kind(),
            Kind::Io,
            "a failed flush is not replaced by single syncs"
        );
    }

    #[test]
    fn syncfs_is_believed_only_where_it_reports() {
        const EXT4: u32 = 0xEF53;
        const NFS: u32 = 0x6969;
        const OVERLAY: u32 = 0x794C_7630;
        for (release, magic, believed) in [
            ("6.18.44-custom", EXT4, true),
            ("5.8.0", EXT4, true),
            ("5.8-rc1", EXT4, true),
            ("5.7.19", EXT4, false),
            ("4.19.0-27-amd64", EXT4, false),
            ("10.0", EXT4, true),
            ("6.1.0", NFS, false),
            ("6.1.0", OVERLAY, false),
            ("unknown", EXT4, false),
        ] {
            assert_eq!(
                reports_lost_writes(release, magic),
                believed,
                "{release} {magic:x}"
            );
        }
    }
}
