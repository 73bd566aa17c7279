//! FileStore: an archive in a directory; keys are paths below it.
//!
//! A name appears by `disk::durable`, so P4 holds after power loss too, and `Ok` is answered only when the file, its
//! name and the names of all directories between it and the prefix are synced. The prefix directory itself is made
//! by `prepare` alone: if it is not there it may not be mounted, which is `Kind::Unavailable`, never an absence.
//! The same goes for symbolic links that lead nowhere.
//!
//! A store belongs to the directory that it saw first, and holds it. Each verb looks before and after whether the
//! path still leads there: what was seen elsewhere is not believed, what was made counts only there. A file system
//! that comes or goes under way is thus an outage until the end of this store; who lives long opens another one.

use super::mem::beyond;
use super::pieces::Pieces;
use super::{Body, Features, Key, ObjectInfo, Prefix, Store, Upload, When};
use crate::disk::durable::{self, NewFile, Publish};
use crate::disk::os::{HeldDir, OsDir};
use crate::disk::{self, File, FileKind, Fs, Stat};
use crate::error::{Error, Kind, Result};
use crate::limits::LIST_NAMES_MAX;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, ErrorKind as E, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// Mode of new directories, less the umask: the group may read, as backup operators expect.
const DIRECTORY_MODE: u32 = 0o750;

/// Mode of new objects, less the umask.
const OBJECT_MODE: u32 = 0o640;

/// An archive in a directory.
pub struct FileStore {
    root: Arc<Root>,
    /// Directories whose names this process has made durable up to the prefix. Another process may have made one
    /// and died before it synced the name, so existing is not enough. A mutex: threads look here once per object.
    settled: Mutex<BTreeSet<PathBuf>>,
}

impl FileStore {
    /// The archive in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> FileStore {
        let root = Root {
            path: root.into(),
            first: OnceLock::new(),
        };
        FileStore {
            root: Arc::new(root),
            settled: Mutex::default(),
        }
    }

    fn path(&self, key: &Key) -> Result<PathBuf> {
        let temporary = |part: &str| durable::is_temp_name(OsStr::new(part));
        if key.as_str().split('/').any(temporary) {
            return Err(Error::new(
                Kind::Refused,
                format!("{key} is the name of a temporary file"),
            ));
        }
        Ok(self.root.path.join(key.as_str()))
    }

    /// Proves that nothing has the name in the prefix directory, which `Root::within` has shown: the first part of
    /// the key that is missing is missing in an existing directory, not behind a link to a place that is not mounted.
    fn prove_absent(&self, key: &str) -> Result<()> {
        let mut path = self.root.path.clone();
        for part in key.split('/') {
            path.push(part);
            match look(&path)? {
                Look::Nothing => return Ok(()),
                Look::Is(_) => {}
            }
        }
        Err(Error::new(
            Kind::Transient,
            format!("{path:?} appeared while it was looked for"),
        ))
    }

    /// The object's file; `None` when it is proven absent.
    fn find(&self, key: &Key, path: &Path) -> Result<Option<Stat>> {
        match disk::stat(path).map_err(outage)? {
            Some(found) if found.kind == FileKind::File => Ok(Some(found)),
            Some(_) => Err(
                Error::new(Kind::Refused, format!("{path:?} is not a regular file"))
                    .detail("Every object of an archive is one."),
            ),
            None => self.prove_absent(key.as_str()).map(|()| None),
        }
    }

    /// Begins the file of a new object, in a directory whose name is durable.
    fn create(&self, key: &Key, when: When) -> Result<NewFile> {
        let path = self.path(key)?;
        let root = self.root.show()?;
        // Only saves the writing; the link decides.
        if when == When::Absent && disk::lstat(&path).map_err(outage)?.is_some() {
            return Err(exists(key));
        }
        let below = Path::new(key.as_str());
        self.settle_directories(root, parent_below(below))?;
        NewFile::create_below(root, below, OBJECT_MODE).map_err(|error| {
            if error.kind() == Kind::Missing {
                // A directory went away under us (another file system was mounted): look at all again next time.
                self.settled().clear();
            }
            outage(error)
        })
    }

    /// Makes the directories from the prefix down to `dir` below it, and each of their names durable.
    fn settle_directories(&self, root: &HeldDir, dir: &Path) -> Result<()> {
        let mut settled = self.settled();
        if settled.contains(dir) {
            return Ok(());
        }
        let below = |dir: &&Path| !dir.as_os_str().is_empty();
        let mut chain: Vec<&Path> = dir.ancestors().take_while(below).collect();
        chain.reverse();
        for dir in chain {
            if !settled.contains(dir) {
                root.make_dir(dir, DIRECTORY_MODE).map_err(outage)?;
                let above = root.open_dir(parent_below(dir), OBJECT_MODE);
                above.map_err(outage)?.sync_dir().map_err(|e| {
                    let above = self.root.path.join(parent_below(dir));
                    outage(Error::io(format!("could not sync directory {above:?}"), e))
                })?;
                settled.insert(dir.to_path_buf());
            }
        }
        Ok(())
    }

    fn settled(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for FileStore {
    fn location(&self) -> String {
        Prefix::File(self.root.path.clone()).to_string()
    }

    fn features(&self) -> Features {
        Features {
            atomic_absent: true,
        }
    }

    fn prepare(&self) -> Result<()> {
        if self.root.first.get().is_some() {
            return self.root.show().map(drop);
        }
        let root = &self.root.path;
        disk::create_dirs(root, DIRECTORY_MODE).map_err(outage)?;
        // Whoever made it may have died before the sync. A directory above that we may not read was not made by
        // seawall under this user, and its owner has cared for it.
        match disk::sync_dir(disk::parent_of(root)) {
            Err(error) if error.kind() == Kind::Denied => Ok(()),
            other => other.map_err(outage),
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        self.root.within(|| {
            let file = self.create(key, when)?;
            file.write_all_at(0, bytes).map_err(outage)?;
            file.publish(publish(when)).map_err(outage)
        })
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        let file = self.root.within(|| self.create(key, when))?;
        Ok(Box::new(FileUpload {
            root: Arc::clone(&self.root),
            key: key.clone(),
            when,
            pieces: Pieces::default(),
            state: RwLock::new(State::Open(file)),
        }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        self.root.within(|| self.open(key, offset))
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let path = self.path(key)?;
        let found = self.root.within(|| self.find(key, &path))?;
        Ok(found.map(|stat| info(key.clone(), &stat)))
    }

    /// Holds at most `LIST_NAMES_MAX` names of one directory per level in memory.
    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let view = View {
            prefix,
            after,
            names_max: LIST_NAMES_MAX,
        };
        self.root.within(|| self.list_view(&view, each))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path(key)?;
        self.root.within(|| {
            let dir = disk::parent_of(&path);
            if !disk::remove_file(&path).map_err(outage)? {
                self.prove_absent(key.as_str())?;
                if disk::stat(dir).map_err(outage)?.is_none() {
                    return Ok(());
                }
            }
            // Also when it was gone: who removed it may have died before the sync.
            disk::sync_dir(dir).map_err(outage)
        })
    }

    fn settle(&self, key: &Key) -> Result<()> {
        let path = self.path(key)?;
        self.root.within(|| {
            if self.find(key, &path)?.is_none() {
                return Err(missing(key));
            }
            durable::settle(&path).map_err(outage)?;
            let dir = parent_below(Path::new(key.as_str()));
            self.settle_directories(self.root.show()?, dir)
        })
    }

    fn sweep(&self, older_than: Duration) -> Result<usize> {
        self.root
            .within(|| self.sweep_in(&self.root.path, older_than))
    }
}

impl FileStore {
    fn open(&self, key: &Key, offset: u64) -> Result<Body> {
        let path = self.path(key)?;
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if self.find(key, &path)?.is_none() {
            return Err(missing(key));
        }
        let mut file = match disk::open(&path) {
            Err(error) if error.kind() == Kind::Missing => {
                self.prove_absent(key.as_str())?;
                return Err(missing(key));
            }
            other => other.map_err(outage)?,
        };
        let found = disk::stat_open(&file, &path).map_err(outage)?;
        if offset > found.size {
            return Err(beyond(key, offset, found.size));
        }
        file.seek(SeekFrom::Start(offset))
            .map_err(|e| outage(Error::io(format!("could not seek in {path:?}"), e)))?;
        Ok(Body {
            size: found.size,
            version: Some(version(&found)),
            reader: Box::new(Whole {
                file,
                path,
                left: found.size - offset,
            }),
        })
    }

    /// Temporary files of one directory and of those below it.
    fn sweep_in(&self, dir: &Path, older_than: Duration) -> Result<usize> {
        let mut swept = durable::remove_stale_temps(dir, older_than).map_err(outage)?;
        let names = OsDir::open(dir, OBJECT_MODE).map_err(outage)?;
        names.each_name(dir, &mut |name, kind| {
            if is_foreign(dir == self.root.path, name) {
                return Ok(());
            }
            let path = dir.join(name);
            let kind = match kind {
                None => disk::lstat(&path).map_err(outage)?.map(|stat| stat.kind),
                known => known,
            };
            if kind == Some(FileKind::Directory) {
                swept += self.sweep_in(&path, older_than)?;
            }
            Ok(())
        })?;
        Ok(swept)
    }

    fn list_view(
        &self,
        view: &View<'_>,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let Some((start, _)) = view.prefix.rsplit_once('/') else {
            return self.walk("", view, each).map(drop);
        };
        // A prefix is not a key; this keeps `..` out.
        let start = Key::new(start)?;
        match look(&self.path(&start)?)? {
            Look::Is(found) if found.kind == FileKind::Directory => {
                self.walk(&format!("{start}/"), view, each).map(drop)
            }
            Look::Is(_) => Ok(()),
            Look::Nothing => self.prove_absent(start.as_str()),
        }
    }

    /// Lists the directory `within` ("" or a key and a slash) in key order; `false` when `each` had enough.
    ///
    /// A directory `a` stands in the order as `a/`, that is after `a-b` and `a.b`. What a name is costs a system
    /// call, so names wait and are looked at when their turn comes; a directory then waits once more.
    fn walk(
        &self,
        within: &str,
        view: &View<'_>,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<bool> {
        let mut names = self.names(within, view, "")?;
        // Each of them is the beginning of the next, so there are not many.
        let mut directories = BTreeSet::new();
        loop {
            if names.wanted.is_empty()
                && let Some(last) = names.last.take()
            {
                names = self.names(within, view, &last)?;
            }
            let next = match (names.wanted.first(), directories.first()) {
                (Some(name), Some(directory)) if name > directory => directories.pop_first(),
                (None, _) => directories.pop_first(),
                _ => names.wanted.pop_first(),
            };
            let Some(full) = next else {
                return Ok(true);
            };
            if full.ends_with('/') {
                if view.reaches(&full) && !self.walk(&full, view, each)? {
                    return Ok(false);
                }
                continue;
            }
            // Removed meanwhile, or a name no key can have: not ours.
            let Look::Is(found) = look(&self.root.path.join(&full))? else {
                continue;
            };
            match found.kind {
                FileKind::Directory => {
                    directories.insert(full + "/");
                }
                FileKind::File if view.shows(&full) => {
                    let Ok(key) = Key::new(full) else { continue };
                    if !each(info(key, &found))? {
                        return Ok(false);
                    }
                }
                _ => {}
            }
        }
    }

    /// The first names in `within` behind `after` that the view may want, with `within` before them. A directory
    /// removed meanwhile has none; temporary files and names that are not UTF-8 are not objects.
    fn names(&self, within: &str, view: &View<'_>, after: &str) -> Result<Names> {
        let dir = self.root.path.join(within);
        let mut names = Names::default();
        let opened = match OsDir::open(&dir, OBJECT_MODE) {
            Err(error) if error.kind() == Kind::Missing && !within.is_empty() => return Ok(names),
            other => other.map_err(outage)?,
        };
        let mut full = String::new();
        let read = opened.each_name(&dir, &mut |name, _| {
            let Some(text) = name.to_str().filter(|_| !durable::is_temp_name(name)) else {
                return Ok(());
            };
            full.clear();
            full.push_str(within);
            full.push_str(text);
            let behind = names.last.as_ref().is_some_and(|last| full > *last);
            if behind || full.as_str() <= after || !view.may_want(&mut full) {
                return Ok(());
            }
            if !is_foreign(within.is_empty(), name) {
                names.insert(full.clone(), view.names_max);
            }
            Ok(())
        });
        read.map_err(outage)?;
        Ok(names)
    }
}

/// The directory of an archive. A store and its uploads share it.
struct Root {
    path: PathBuf,
    /// What was there when it was looked at first.
    first: OnceLock<HeldDir>,
}

impl Root {
    /// The archive shows itself: its directory is there, and it is the one that was there before.
    fn show(&self) -> Result<&HeldDir> {
        let held = match self.first.get() {
            Some(held) => held,
            None => {
                let held = HeldDir::hold(&self.path).map_err(|e| self.hidden(e))?;
                // Another thread may have been faster; then its directory counts.
                self.first.get_or_init(|| held)
            }
        };
        if held.is_in_place().map_err(|e| self.hidden(e))? {
            return Ok(held);
        }
        if disk::stat(&self.path).map_err(outage)?.is_none() {
            return Err(self.outage("does not exist"));
        }
        Err(self
            .outage("is not the one that it was")
            .detail("A file system was mounted or unmounted there, or the directory was replaced, while it was in use.")
            .hint("See that the archive is mounted, then try again. Nothing was reported as archived or absent."))
    }

    /// Does something in the one directory. Whatever came of it counts for nothing if it is not in place afterwards;
    /// and then that is what went wrong.
    fn within<T>(&self, verb: impl FnOnce() -> Result<T>) -> Result<T> {
        self.show()?;
        let result = verb();
        self.show()?;
        result
    }

    fn hidden(&self, error: Error) -> Error {
        match outage(error) {
            error if error.kind() != Kind::Unavailable => error,
            error => match disk::stat(&self.path) {
                Ok(None) => self.outage("does not exist"),
                Ok(Some(found)) if found.kind != FileKind::Directory => {
                    self.outage("is not a directory")
                }
                _ => error,
            },
        }
    }

    fn outage(&self, problem: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            format!("the archive directory {:?} {problem}", self.path),
        )
        .hint("Mount the file system that holds it, or correct the prefix.")
    }
}

/// As many names of a directory as are held at a time.
#[derive(Default)]
struct Names {
    /// The smallest ones that are wanted, each with the directory before it.
    wanted: BTreeSet<String>,
    /// The last of them, where there are more behind it.
    last: Option<String>,
}

impl Names {
    fn insert(&mut self, full: String, names_max: usize) {
        self.wanted.insert(full);
        if self.wanted.len() > names_max {
            self.wanted.pop_last();
            self.last = self.wanted.last().cloned();
        }
    }
}

/// Which keys a listing wants.
struct View<'a> {
    prefix: &'a str,
    after: &'a str,
    /// How many names of a directory are held at a time.
    names_max: usize,
}

impl View<'_> {
    fn shows(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && key > self.after
    }

    /// Whether a wanted key can begin with `dir`, which ends with a slash.
    fn reaches(&self, dir: &str) -> bool {
        (dir.starts_with(self.prefix) || self.prefix.starts_with(dir))
            && (dir > self.after || self.after.starts_with(dir))
    }

    /// Whether a wanted key can be this file, or lie in this directory. `full` is given back as it was.
    fn may_want(&self, full: &mut String) -> bool {
        if self.shows(full) {
            return true;
        }
        full.push('/');
        let reaches = self.reaches(full);
        full.pop();
        reaches
    }
}

struct FileUpload {
    root: Arc<Root>,
    key: Key,
    when: When,
    pieces: Pieces,
    /// Pieces are written side by side under the reading lock; `finish` takes the file out.
    state: RwLock<State>,
}

enum State {
    Open(NewFile),
    Finished,
    Failed,
}

impl Upload for FileUpload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(file) => {
                file.write_all_at(offset, bytes)?;
                file.start_writeback(offset, bytes.len() as u64);
            }
            _ => return Err(ended(&self.key)),
        }
        self.pieces.record(number, offset, bytes.len() as u64);
        Ok(())
    }

    /// An error here is never transient: a failed sync must not be tried again on the same file.
    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let file = match std::mem::replace(&mut *state, State::Failed) {
            State::Open(file) => file,
            State::Finished => {
                *state = State::Finished;
                return Ok(());
            }
            State::Failed => return Err(ended(&self.key)),
        };
        self.pieces.check(&self.key, pieces, size)?;
        self.root.within(|| file.publish(publish(self.when)))?;
        *state = State::Finished;
        Ok(())
    }
}

/// Reads a file up to the size it had when it was opened.
struct Whole {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = match self.file.read(&mut buffer[..most]) {
            Err(e) if e.kind() == E::Interrupted => return Err(e),
            other => other
                .map_err(|e| outage(Error::io(format!("could not read {:?}", self.path), e)))?,
        };
        if count == 0 {
            let error = Error::new(Kind::Corrupt, format!("{:?} became shorter", self.path));
            let detail = format!("Its last {} bytes went away while it was read.", self.left);
            return Err(error.detail(detail).into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

enum Look {
    Is(Stat),
    Nothing,
}

/// What `path` leads to. A symbolic link that leads nowhere is an outage.
fn look(path: &Path) -> Result<Look> {
    if let Some(found) = disk::stat(path).map_err(outage)? {
        return Ok(Look::Is(found));
    }
    match disk::lstat(path).map_err(outage)? {
        None => Ok(Look::Nothing),
        Some(found) if found.kind == FileKind::Symlink => Err(Error::new(
            Kind::Unavailable,
            format!("the symbolic link {path:?} leads nowhere"),
        )
        .hint("Mount the file system that it leads to, or remove it.")),
        Some(found) => Ok(Look::Is(found)),
    }
}

/// The file system's own directory at the top of a mount, closed to all but root.
fn is_foreign(at_root: bool, name: &OsStr) -> bool {
    at_root && name == "lost+found"
}

/// What a path below the archive's directory lies in; empty for the directory itself.
fn parent_below(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// An error of the file system as a store's error: a missing directory is no absent object (S4), and what network
/// file systems answer while their server is away may pass (S5).
fn outage(error: Error) -> Error {
    match error.kind() {
        Kind::Missing => error.with_kind(Kind::Unavailable),
        Kind::Io => match cause(&error) {
            Some(E::NotADirectory) => error.with_kind(Kind::Unavailable),
            Some(cause) if may_pass(cause) => error.with_kind(Kind::Transient),
            _ => error,
        },
        Kind::Denied => {
            error.hint("Give the user who runs this the right to read and write the archive.")
        }
        _ => error,
    }
}

fn cause(error: &Error) -> Option<E> {
    let source = std::error::Error::source(error)?;
    Some(source.downcast_ref::<io::Error>()?.kind())
}

fn may_pass(cause: E) -> bool {
    matches!(
        cause,
        E::TimedOut
            | E::StaleNetworkFileHandle
            | E::HostUnreachable
            | E::NetworkUnreachable
            | E::NetworkDown
            | E::NotConnected
            | E::ConnectionReset
            | E::ConnectionAborted
    )
}

fn info(key: Key, stat: &Stat) -> ObjectInfo {
    ObjectInfo {
        key,
        size: stat.size,
        modified: stat.modified,
        crc32c: None,
    }
}

/// Objects are never changed in place, so another object of the same name is another inode, or a later time.
fn version(stat: &Stat) -> String {
    format!("{}-{}-{}", stat.device, stat.inode, stat.modified.0)
}

fn publish(when: When) -> Publish {
    match when {
        When::Absent => Publish::Absent,
        When::Always => Publish::Replace,
    }
}

fn missing(key: &Key) -> Error {
    Error::new(Kind::Missing, format!("there is no object {key}"))
}

fn exists(key: &Key) -> Error {
    Error::new(Kind::Exists, format!("the object {key} exists already"))
}

fn ended(key: &Key) -> Error {
    Error::new(Kind::Bug, format!("the upload of {key} has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timestamp::Timestamp;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn fresh() -> (tempfile::TempDir, FileStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path().join("archive"));
        store.prepare().unwrap();
        (dir, store)
    }

    /// Every verb, on a key that is not there.
    fn kinds(store: &FileStore) -> Vec<Option<Kind>> {
        let k = key("wal_005/x");
        let kind = |result: Result<()>| result.err().map(|e| e.kind());
        vec![
            kind(store.head(&k).map(|found| assert!(found.is_none()))),
            kind(store.get(&k, 0).map(|_| ())),
            kind(store.list("wal_005/", "", &mut |_| panic!("an object"))),
            kind(store.list("", "", &mut |_| panic!("an object"))),
            kind(store.delete(&k)),
            kind(store.settle(&k)),
        ]
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_outage() {
        let (dir, store) = fresh();
        let missing = Some(Kind::Missing);
        assert_eq!(kinds(&store), [None, missing, None, None, None, missing]);

        let unmounted = FileStore::new(dir.path().join("other"));
        assert_eq!(kinds(&unmounted), [Some(Kind::Unavailable); 6]);
        let put = unmounted.put(&key("x"), b"x", When::Absent).unwrap_err();
        assert_eq!(put.kind(), Kind::Unavailable);
        assert!(put.hint_text().unwrap().contains("Mount"));
        assert!(unmounted.begin(&key("x"), When::Absent).is_err());
        assert!(!dir.path().join("other").exists());

        fs::write(dir.path().join("file"), "").unwrap();
        let file = FileStore::new(dir.path().join("file"));
        assert_eq!(kinds(&file), [Some(Kind::Unavailable); 6]);
    }

    /// What is mounted over the archive, or what is seen when it is unmounted: another directory at its path.
    fn swap(dir: &tempfile::TempDir) {
        let root = dir.path().join("archive");
        fs::rename(&root, dir.path().join("away")).unwrap();
        fs::create_dir(&root).unwrap();
    }

    fn files_below(path: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files_below(&path));
            }
            found.push(path);
        }
        found
    }

    #[test]
    fn nothing_is_stored_in_a_directory_that_came_under_way() {
        for uploaded in [false, true] {
            let (dir, store) = fresh();
            let (one, two) = (key("seawall.json"), key("wal_005/x"));
            store.put(&one, b"1", When::Absent).unwrap();
            let upload = store.begin(&two, When::Absent).unwrap();
            upload.piece(0, 0, b"x").unwrap();
            swap(&dir);
            let result = match uploaded {
                true => upload.finish(1, 1),
                false => {
                    drop(upload);
                    store.put(&two, b"x", When::Absent)
                }
            };
            assert_eq!(result.unwrap_err().kind(), Kind::Unavailable);
            assert!(store.begin(&key("a/b"), When::Always).is_err());
            assert!(store.prepare().is_err());
            assert!(store.settle(&one).is_err());
            assert_eq!(
                files_below(&dir.path().join("archive")),
                [""; 0].map(PathBuf::from)
            );
            let there = files_below(&dir.path().join("away"));
            let temporary = |path: &PathBuf| durable::is_temp_name(path.file_name().unwrap());
            assert!(!there.iter().any(temporary), "{there:?}");
        }
    }

    #[test]
    fn a_directory_made_late_is_made_in_the_archive_that_was_seen() {
        // Between the look at the archive and the making of a directory it is unmounted.
        let (dir, store) = fresh();
        let held = store.root.show().unwrap();
        swap(&dir);
        store
            .settle_directories(held, Path::new("wal_005/deep"))
            .unwrap();
        assert!(dir.path().join("away/wal_005/deep").is_dir());
        assert_eq!(
            files_below(&dir.path().join("archive")),
            [""; 0].map(PathBuf::from)
        );
    }

    #[test]
    fn what_is_seen_in_two_directories_proves_nothing() {
        // Given a place where the archive is not mounted yet,
        let (dir, filled) = fresh();
        filled
            .put(&key("seawall.json"), b"1", When::Absent)
            .unwrap();
        filled.put(&key("wal_005/x"), b"x", When::Absent).unwrap();
        swap(&dir);
        let store = FileStore::new(dir.path().join("archive"));
        store
            .list("wal_005/", "", &mut |_| panic!("an object"))
            .unwrap();
        // when it is mounted between the listing and the archive's proof of itself,
        fs::remove_dir(dir.path().join("archive")).unwrap();
        fs::rename(dir.path().join("away"), dir.path().join("archive")).unwrap();
        // then this store sees nothing there any more, and the next one sees it all.
        let k = key("seawall.json");
        assert_eq!(store.get(&k, 0).err().unwrap().kind(), Kind::Unavailable);
        assert_eq!(kinds(&store), [Some(Kind::Unavailable); 6]);
        let next = FileStore::new(dir.path().join("archive"));
        assert_eq!(next.get(&k, 0).unwrap().size, 1);
        // A swap in the middle of a listing is found at its end.
        let swapped = next.list("", "", &mut |_| {
            if dir.path().join("archive/wal_005").exists() {
                swap(&dir);
            }
            Ok(true)
        });
        assert_eq!(swapped.unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn few_names_are_held_at_a_time() {
        let (_dir, store) = fresh();
        let names = [
            "a", "a-b", "a.b", "a!", "b", "b/c", "b-", "b-/x", "b-/y", "b.d/e", "c/1", "c/2",
            "c/3", "c/4/5", "c/4/6", "c-", "d", "e", "f", "g/h",
        ];
        // A name is a file or a directory.
        let taken = |name: &str| names.iter().any(|n| n.starts_with(&format!("{name}/")));
        let mut keys: Vec<&str> = names.into_iter().filter(|name| !taken(name)).collect();
        for name in &keys {
            store.put(&key(name), b"x", When::Absent).unwrap();
        }
        keys.sort();
        for names_max in 1..=keys.len() {
            for (prefix, after) in [
                ("", ""),
                ("", "b-"),
                ("", "b/"),
                ("b", ""),
                ("c/", "c/2"),
                ("c/4", "c"),
            ] {
                let view = View {
                    prefix,
                    after,
                    names_max,
                };
                let mut seen = Vec::new();
                let mut each = |info: ObjectInfo| {
                    seen.push(info.key.to_string());
                    Ok(true)
                };
                store.list_view(&view, &mut each).unwrap();
                let wanted: Vec<&str> =
                    keys.iter().copied().filter(|key| view.shows(key)).collect();
                assert_eq!(
                    seen, wanted,
                    "{prefix:?} after {after:?}, {names_max} names"
                );
            }
            let view = View {
                prefix: "",
                after: "",
                names_max,
            };
            let names = store.names("", &view, "").unwrap();
            assert!(names.wanted.len() <= names_max);
            assert_eq!(names.last.is_some(), names_max < 13);
        }
        // Nothing outside the prefix is held, or looked at.
        let view = View {
            prefix: "c/4",
            after: "",
            names_max: 100,
        };
        assert_eq!(
            store.names("", &view, "").unwrap().wanted,
            BTreeSet::from(["c".to_string()])
        );
    }

    #[test]
    fn a_link_to_nowhere_is_an_outage() {
        let (dir, store) = fresh();
        let link = dir.path().join("archive/wal_005");
        symlink(dir.path().join("unmounted"), &link).unwrap();
        assert_eq!(kinds(&store), [Some(Kind::Unavailable); 6]);
        assert!(store.put(&key("wal_005/x"), b"", When::Absent).is_err());

        fs::create_dir(dir.path().join("unmounted")).unwrap();
        store.put(&key("wal_005/y"), b"y", When::Absent).unwrap();
        assert!(dir.path().join("unmounted/y").exists());
        let mut seen = Vec::new();
        store
            .list("wal", "", &mut |info| {
                seen.push(info.key.to_string());
                Ok(true)
            })
            .unwrap();
        assert_eq!(seen, ["wal_005/y"]);
    }

    #[test]
    fn only_regular_files_are_objects() {
        let (dir, store) = fresh();
        fs::create_dir_all(dir.path().join("archive/wal_005/x")).unwrap();
        let k = key("wal_005/x");
        assert_eq!(store.head(&k).unwrap_err().kind(), Kind::Refused);
        assert_eq!(store.get(&k, 0).err().unwrap().kind(), Kind::Refused);
        assert_eq!(store.settle(&k).unwrap_err().kind(), Kind::Refused);
        assert_eq!(
            store.put(&k, b"x", When::Absent).unwrap_err().kind(),
            Kind::Exists
        );
        assert!(store.put(&k, b"x", When::Always).is_err());
        assert!(store.delete(&k).is_err());
        assert!(dir.path().join("archive/wal_005/x").is_dir());
    }

    #[test]
    fn foreign_and_temporary_names_are_not_listed() {
        let (dir, store) = fresh();
        let root = dir.path().join("archive");
        let held = store.begin(&key("a/held"), When::Absent).unwrap();
        held.piece(0, 0, b"x").unwrap();
        assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 1);
        fs::create_dir(root.join("lost+found")).unwrap();
        fs::write(root.join("lost+found/x"), "x").unwrap();
        let odd: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
        fs::write(root.join(odd), "x").unwrap();
        store.put(&key("a/x"), b"x", When::Absent).unwrap();
        let mut seen = Vec::new();
        let mut each = |info: ObjectInfo| {
            seen.push(info.key.to_string());
            Ok(true)
        };
        store.list("", "", &mut each).unwrap();
        assert_eq!(seen, ["a/x"]);
        let temp = key("a/.x.0000.seawall-tmp");
        let refused = store.put(&temp, b"", When::Always).unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused);
        assert!(store.list("../archive/", "", &mut |_| Ok(true)).is_err());
    }

    #[test]
    fn what_killed_writers_left_is_swept() {
        let (dir, store) = fresh();
        let root = dir.path().join("archive");
        let deep = root.join("basebackups_005/base/tar_partitions");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(root.join("lost+found")).unwrap();
        store.put(&key("wal_005/x"), b"x", When::Absent).unwrap();
        let temps = [
            (deep.join(".part.1.seawall-tmp"), true),
            (root.join("wal_005/.x.2.seawall-tmp"), true),
            (root.join("lost+found/.x.3.seawall-tmp"), false),
        ];
        for path in temps
            .iter()
            .map(|(path, _)| path)
            .chain([&root.join("wal_005/x")])
        {
            fs::write(path, "x").unwrap();
            crate::disk::tree::set_modified(path, Timestamp(0)).unwrap();
        }
        let living = store.begin(&key("wal_005/y"), When::Absent).unwrap();
        living.piece(0, 0, b"y").unwrap();
        assert_eq!(store.sweep(Duration::from_secs(60)).unwrap(), 2);
        for (path, swept) in temps {
            assert_eq!(path.exists(), !swept, "{path:?}");
        }
        living.finish(1, 1).unwrap();
        let mut seen = Vec::new();
        let mut each = |info: ObjectInfo| {
            seen.push(info.key.to_string());
            Ok(true)
        };
        store.list("wal_005/", "", &mut each).unwrap();
        assert_eq!(seen, ["wal_005/x", "wal_005/y"]);
        let unmounted = FileStore::new(dir.path().join("other"));
        assert!(unmounted.sweep(Duration::ZERO).is_err());
    }

    #[test]
    fn a_file_that_shrinks_is_not_whole() {
        let (dir, store) = fresh();
        let k = key("x");
        store.put(&k, &[1; 100], When::Absent).unwrap();
        let mut body = store.get(&k, 0).unwrap();
        let path = dir.path().join("archive/x");
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & !OBJECT_MODE, 0);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(60)
            .unwrap();
        let error = body.reader.read_to_end(&mut Vec::new()).unwrap_err();
        let error = crate::error::from_io("", error);
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[test]
    fn what_network_file_systems_answer_may_pass() {
        for (code, kind) in [
            (2, Kind::Unavailable),
            (5, Kind::Io),
            (13, Kind::Denied),
            (20, Kind::Unavailable),
            (28, Kind::Full),
            (107, Kind::Transient),
            (110, Kind::Transient),
            (116, Kind::Transient),
        ] {
            let error = Error::io("could not x", io::Error::from_raw_os_error(code));
            assert_eq!(outage(error).kind(), kind, "errno {code}");
        }
    }
}
