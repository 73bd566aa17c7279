//! The directory that a backup is restored into: refused unless it is new, written so that no name in an archive
//! can lead out of it.

use super::scan::tablespace_oid;
use crate::disk::bulk::{Buffer, BulkFile};
use crate::disk::durable::{NewFile, Publish};
use crate::disk::tree::{self, TreeSync};
use crate::disk::{self, FileKind};
use crate::error::{Error, Kind, Result, from_io};
use crate::pg::timestamp::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where members of the backup go.
pub struct Target {
    data: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    waldir: Option<PathBuf>,
    /// Whether a tablespace became a plain directory in `pg_tblspc`.
    in_place: AtomicBool,
    /// Directories made so far, so that parts can come in any order.
    made: Mutex<HashSet<PathBuf>>,
    /// Of files that are closed, for those to come: one per worker.
    buffers: Mutex<Vec<Buffer>>,
    /// Begun before the first write, so that no lost page goes unnoticed.
    syncs: Mutex<Vec<TreeSync>>,
}

/// A file being restored.
pub struct OpenFile<'a> {
    file: BulkFile,
    path: PathBuf,
    target: &'a Target,
}

impl Target {
    /// Nothing is touched yet.
    pub fn new(
        data: &Path,
        tablespaces: BTreeMap<u32, PathBuf>,
        waldir: Option<PathBuf>,
    ) -> Target {
        Target {
            data: data.to_path_buf(),
            tablespaces,
            waldir,
            in_place: AtomicBool::new(false),
            made: Mutex::default(),
            buffers: Mutex::default(),
            syncs: Mutex::default(),
        }
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Refuses directories in use or not empty.
    pub fn refuse_used(&self) -> Result<()> {
        refuse_other_than_directory(&self.data)?;
        self.roots()
            .try_for_each(|root| refuse_inside_cluster(root))?;
        self.refuse_nested()?;
        if disk::lstat(&self.data.join("postmaster.pid"))?.is_some() {
            return Err(Error::new(Kind::Refused, format!("\"{}\" belongs to a running server", self.data.display()))
                .detail("It has a postmaster.pid.")
                .hint("Restore into a new directory, or shut that server down and move its directory away."));
        }
        self.roots().try_for_each(|root| refuse_filled(root))
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.data]
            .into_iter()
            .chain(self.tablespaces.values())
            .chain(&self.waldir)
    }

    /// Directories inside each other would mix their files, or hide one behind a link of ours; so would one directory
    /// under two names. Links on the way are followed, and mounts are seen by their inodes, as far as they are there.
    fn refuse_nested(&self) -> Result<()> {
        let roots: Vec<&PathBuf> = self.roots().collect();
        let resolved = roots.iter().map(|root| resolved(root));
        let resolved = resolved.collect::<Result<Vec<PathBuf>>>()?;
        for (n, root) in roots.iter().enumerate() {
            for (other, outer) in roots.iter().enumerate().filter(|(other, _)| *other != n) {
                if lies_inside(&resolved[n], &resolved[other])? {
                    return Err(Error::new(
                        Kind::Usage,
                        format!("\"{}\" lies inside \"{}\"", root.display(), outer.display()),
                    )
                    .detail("PGDATA, --waldir and the places of tablespaces must be apart, whatever links lead there.")
                    .hint("Send a tablespace elsewhere with --tablespace-mapping OLD=NEW."));
                }
            }
        }
        Ok(())
    }

    /// Makes the directories that everything goes into.
    pub fn create(&self) -> Result<()> {
        self.roots()
            .try_for_each(|root| disk::create_dirs(root, 0o700))?;
        // Now that all are there, nothing about them is a guess.
        self.refuse_nested()?;
        for root in self.roots() {
            tree::set_mode(root, 0o700)?;
            self.made.lock().expect(UNPOISONED).insert(root.clone());
            self.syncs
                .lock()
                .expect(UNPOISONED)
                .push(TreeSync::begin(root)?);
        }
        Ok(())
    }

    /// A directory with its mode; `.` is the data directory.
    pub fn directory(&self, name: &Path, mode: u32) -> Result<()> {
        let path = self.place(name)?;
        self.make(&path)?;
        tree::set_mode(&path, mode & 0o777)
    }

    /// A new file of `size` bytes; an existing one is an error, so nothing is written through a link.
    pub fn create_file(&self, name: &Path, mode: u32, size: u64) -> Result<OpenFile<'_>> {
        let path = self.place(name)?;
        self.make(path.parent().unwrap_or(&self.data))?;
        let buffer = self.buffers.lock().expect(UNPOISONED).pop();
        let file = BulkFile::create(&path, mode & 0o777, size, buffer.unwrap_or_default())?;
        Ok(OpenFile {
            file,
            path,
            target: self,
        })
    }

    /// Writes a file with all care: temporary, synced, then named.
    pub fn write_new(&self, name: &str, bytes: &mut dyn Read) -> Result<()> {
        let path = self.data.join(name);
        let mut file = NewFile::create(&path, file_mode_in(&self.data)?)?;
        std::io::copy(bytes, &mut file)
            .map_err(|e| from_io(&format!("could not write \"{}\"", path.display()), e))?;
        file.publish(Publish::Absent)
    }

    /// Links to tablespaces and to a separate WAL directory; `pg_wal` exists afterwards in any case.
    pub fn links(&self) -> Result<()> {
        for (oid, place) in &self.tablespaces {
            self.make(&self.data.join("pg_tblspc"))?;
            tree::make_symlink(place, &self.data.join("pg_tblspc").join(oid.to_string()))?;
        }
        if let Some(waldir) = &self.waldir {
            tree::make_symlink(waldir, &self.data.join("pg_wal"))?;
        }
        self.make(&self.place(Path::new("pg_wal/archive_status"))?)
    }

    /// Whether something went into a tablespace that is a plain directory: one that a blind restore put there, or
    /// one that was made there (PostgreSQL 15 and later, with `allow_in_place_tablespaces`). A server without that
    /// setting panics over any directory whose name is digits when its recovery becomes consistent.
    pub fn has_in_place_tablespaces(&self) -> bool {
        self.in_place.load(Ordering::Relaxed)
    }

    /// Makes everything durable.
    pub fn sync(&self) -> Result<()> {
        let syncs = std::mem::take(&mut *self.syncs.lock().expect(UNPOISONED));
        syncs.into_iter().try_for_each(TreeSync::finish)?;
        self.roots()
            .try_for_each(|root| disk::sync_dir(disk::parent_of(root)))
    }

    /// Where a member goes, by its plain name; never through a link: the only links are made by us, and what lies
    /// behind them is addressed directly.
    fn place(&self, name: &Path) -> Result<PathBuf> {
        let name = plain_name(name)?;
        let parts: Vec<&OsStr> = name.iter().collect();
        let (root, inside) = self.root(&parts);
        if root == self.data && is_in_tablespace(&parts) {
            self.in_place.store(true, Ordering::Relaxed);
        }
        Ok(root.join(inside.iter().collect::<PathBuf>()))
    }

    /// The directory that a name belongs into, and the rest of the name.
    fn root<'n, 'p>(&self, parts: &'n [&'p OsStr]) -> (&Path, &'n [&'p OsStr]) {
        match parts {
            [first, oid, inside @ ..] if *first == "pg_tblspc" => {
                let place = tablespace_oid(oid).and_then(|oid| self.tablespaces.get(&oid));
                place.map_or((&self.data, parts), |place| (place, inside))
            }
            [first, inside @ ..] if *first == "pg_wal" => match &self.waldir {
                Some(waldir) => (waldir, inside),
                None => (&self.data, parts),
            },
            _ => (&self.data, parts),
        }
    }

    /// Makes a directory and its parents inside a root.
    fn make(&self, path: &Path) -> Result<()> {
        let mut made = self.made.lock().expect(UNPOISONED);
        let mut missing = Vec::new();
        let mut at = path;
        while !made.contains(at) {
            missing.push(at.to_path_buf());
            at = match at.parent() {
                Some(parent) => parent,
                None => break,
            };
        }
        for directory in missing.into_iter().rev() {
            match tree::create_dir(&directory, 0o700) {
                Err(e) if e.kind() == Kind::Exists => {}
                other => other?,
            }
            made.insert(directory);
        }
        Ok(())
    }
}

/// The one spelling of a member's name, so that no comparison can be fooled: relative, without `.` and `..`. The data
/// directory itself is empty.
pub fn plain_name(name: &Path) -> Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            _ => {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the backup contains the unsafe name \"{}\"", name.display()),
                )
                .hint("Nothing was written there. This archive was tampered with or damaged."));
            }
        }
    }
    Ok(plain)
}

/// `pg_tblspc/<digits>` and what is below.
fn is_in_tablespace(parts: &[&OsStr]) -> bool {
    let digits = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    matches!(parts, [first, oid, ..] if *first == "pg_tblspc" && digits(oid))
}

const UNPOISONED: &str = "a panicking worker ends the restore";

/// The room that a backup needs on each file system.
pub struct Room<'a> {
    target: &'a Target,
    /// Bytes by directory that they go into.
    needed: BTreeMap<PathBuf, u64>,
}

/// What a file system gives at least to a file that is not empty.
const BLOCK_BYTES: u64 = 4096;

impl<'a> Room<'a> {
    /// Nothing yet.
    pub fn new(target: &'a Target) -> Room<'a> {
        Room {
            target,
            needed: BTreeMap::new(),
        }
    }

    /// A file of the backup.
    pub fn add(&mut self, name: &Path, size: u64) {
        let parts: Vec<&OsStr> = name.iter().collect();
        let (root, _) = self.target.root(&parts);
        let size = size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        match self.needed.get_mut(root) {
            Some(needed) => *needed = needed.saturating_add(size),
            None => drop(self.needed.insert(root.to_path_buf(), size)),
        }
    }

    /// Refuses a file system that has less room than all that goes there needs.
    pub fn refuse_small(&self) -> Result<()> {
        let mut systems: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
        for (root, needed) in &self.needed {
            let there = existing(root);
            let device = disk::stat(there)?.map_or(0, |stat| stat.device);
            let (_, sum) = systems.entry(device).or_insert((there, 0));
            *sum = sum.saturating_add(*needed);
        }
        for (path, needed) in systems.into_values() {
            let free = disk::free_bytes(path)?;
            if free < needed {
                return Err(Error::new(
                    Kind::Full,
                    format!("there is not enough room in \"{}\"", path.display()),
                )
                .detail(format!("The backup needs {needed} bytes there, {free} are free."))
                .hint("Nothing was written. Use another file system, or map tablespaces to other ones."));
            }
        }
        Ok(())
    }
}

impl OpenFile<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write(bytes)
    }

    /// Writes what is left and sets the modification time; syncing comes later, for all files.
    pub fn close(self, modified_secs: i64) -> Result<()> {
        let buffer = self.file.finish()?;
        self.target.buffers.lock().expect(UNPOISONED).push(buffer);
        tree::set_modified(&self.path, Timestamp::from_secs(modified_secs))
    }
}

/// The mode of a new file in this data directory.
pub fn file_mode_in(data: &Path) -> Result<u32> {
    Ok(super::file_mode(
        disk::stat(data)?.map_or(0, |stat| stat.mode),
    ))
}

fn refuse_other_than_directory(root: &Path) -> Result<()> {
    match disk::stat(root)? {
        Some(stat) if stat.kind != FileKind::Directory => Err(Error::new(
            Kind::Refused,
            format!("\"{}\" is not a directory", root.display()),
        )),
        _ => Ok(()),
    }
}

fn refuse_filled(root: &Path) -> Result<()> {
    refuse_other_than_directory(root)?;
    match disk::stat(root)? {
        None => Ok(()),
        Some(_) if tree::is_empty_dir(root)? => Ok(()),
        Some(_) => Err(Error::new(Kind::Refused, format!("directory \"{}\" is not empty", root.display()))
            .detail("A restore never mixes with files that are there.")
            .hint("Give a new directory, or move what is there away; tablespaces: --tablespace-mapping OLD=NEW.")),
    }
}

/// Inside the data directory of a server a copy would be backed up with it, and in the way of pg_rewind.
fn refuse_inside_cluster(root: &Path) -> Result<()> {
    let resolved = resolved(root)?;
    let around = resolved.parent().and_then(tree::data_directory_around);
    let Some(around) = around else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Refused,
        format!(
            "\"{}\" lies inside the data directory \"{}\"",
            root.display(),
            around.display()
        ),
    )
    .hint("Give a place outside of any server's directory."))
}

/// Where a path leads when links are followed, although its end may not be there yet.
fn resolved(path: &Path) -> Result<PathBuf> {
    let there = existing(path);
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    // Component by component: joined with nothing, a file would become the directory of that name.
    Ok(disk::canonical(there)?.join(rest).components().collect())
}

/// Whether a path without links is another one or below it, by name or because a directory is mounted twice.
fn lies_inside(path: &Path, outer: &Path) -> Result<bool> {
    if path.starts_with(outer) {
        return Ok(true);
    }
    let Some(outer) = disk::stat(outer)? else {
        return Ok(false);
    };
    for above in path.ancestors() {
        if disk::stat(above)?.is_some_and(|stat| stat.is_same_file(&outer)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The nearest directory above that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| matches!(disk::stat(path), Ok(Some(_))))
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(dir: &Path) -> Target {
        Target::new(
            &dir.join("data"),
            BTreeMap::from([(16400, dir.join("space"))]),
            Some(dir.join("wal")),
        )
    }

    #[test]
    fn no_name_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        for (name, place) in [
            ("base/5/1", "data/base/5/1"),
            (".", "data"),
            ("./base", "data/base"),
            ("pg_tblspc", "data/pg_tblspc"),
            ("pg_tblspc/16400", "space"),
            ("pg_tblspc/16400/PG_15/1", "space/PG_15/1"),
            ("pg_tblspc/16401/PG_15/1", "data/pg_tblspc/16401/PG_15/1"),
            ("pg_tblspc/note", "data/pg_tblspc/note"),
            ("pg_tblspc/016400/x", "data/pg_tblspc/016400/x"),
            ("pg_wal/archive_status", "wal/archive_status"),
        ] {
            assert_eq!(
                target.place(Path::new(name)).unwrap(),
                dir.path().join(place),
                "{name}"
            );
        }
        for name in [
            "/etc/passwd",
            "../x",
            "base/../../x",
            "pg_tblspc/../x",
            "pg_tblspc/16400/../../x",
        ] {
            assert_eq!(
                target.place(Path::new(name)).unwrap_err().kind(),
                Kind::Corrupt,
                "{name}"
            );
        }
    }

    #[test]
    fn roots_are_apart_whatever_links_lead_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("dangling")).unwrap();
        for (space, waldir, apart) in [
            ("real/x", "link/y", true),
            ("real/x", "link/x", false),
            ("link/x", "real/x/wal", false),
            ("real", "link", false),
            ("link/x", "link/../data/pg_wal", false),
            ("link/x", "dangling/pg_wal", false),
            ("dangling", "y", false),
        ] {
            let spaces = BTreeMap::from([(16400, at(space))]);
            let target = Target::new(&at("data"), spaces, Some(at(waldir)));
            let made = target.refuse_used().and_then(|()| target.create());
            assert_eq!(made.is_ok(), apart, "{space} {waldir}: {made:?}");
            // Only what a link hides that leads nowhere yet is seen after directories were made.
            let late = [space, waldir]
                .iter()
                .any(|name| name.starts_with("dangling"));
            assert_eq!(at("data").exists(), apart || late, "{space} {waldir}");
            for name in ["data", "real/x", "real/y"] {
                tree::remove_tree(&at(name)).unwrap();
            }
        }
    }

    #[test]
    fn a_tablespace_without_a_place_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, noticed) in [
            ("pg_tblspc", false),
            ("pg_tblspc/16400/PG_15/1", false),
            ("pg_tblspc/note", false),
            ("base/16401", false),
            ("pg_tblspc/16401", true),
            ("pg_tblspc/016400", true),
            ("pg_tblspc/16401/PG_15/1", true),
        ] {
            let target = target(dir.path());
            target.place(Path::new(name)).unwrap();
            assert_eq!(target.has_in_place_tablespaces(), noticed, "{name}");
        }
    }

    #[test]
    fn parts_may_come_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        target.refuse_used().unwrap();
        target.create().unwrap();
        let mut file = target.create_file(Path::new("base/5/1"), 0o600, 1).unwrap();
        file.write(b"x").unwrap();
        file.close(1_000_000_000).unwrap();
        target.directory(Path::new("base/5"), 0o750).unwrap();
        target.directory(Path::new("."), 0o750).unwrap();
        target
            .create_file(Path::new("pg_tblspc/16400/PG_15/2"), 0o600, 1)
            .unwrap();
        target.links().unwrap();
        target.sync().unwrap();
        let stat = disk::stat(&dir.path().join("data/base/5"))
            .unwrap()
            .unwrap();
        assert_eq!((stat.kind, stat.mode), (FileKind::Directory, 0o750));
        assert!(dir.path().join("data/pg_tblspc/16400/PG_15/2").exists());
        assert!(dir.path().join("data/pg_wal/archive_status").is_dir());
        assert_eq!(target.refuse_used().unwrap_err().kind(), Kind::Refused);
        assert_eq!(
            target
                .create_file(Path::new("base/5/1"), 0o600, 1)
                .err()
                .unwrap()
                .kind(),
            Kind::Exists
        );
    }

    #[test]
    fn a_small_disk_is_noticed_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        let mut room = Room::new(&target);
        for name in ["base/5/1", "pg_tblspc/16400/PG_15/1", "pg_wal"] {
            room.add(Path::new(name), 4097);
        }
        room.refuse_small().unwrap();
        let needed: Vec<u64> = room.needed.values().copied().collect();
        assert_eq!(needed, [8192; 3]);
        room.add(Path::new("base/5/2"), u64::MAX);
        assert_eq!(room.refuse_small().unwrap_err().kind(), Kind::Full);
        assert!(!dir.path().join("data").exists());
    }
}
