//! What of a data directory belongs into a backup: PostgreSQL's own exclusion list (`basebackup.c`), by path.
//!
//! The walk holds the names of one directory per level and nothing else: about 40 MB for a million files in one.

use crate::disk::tree::Names;
use crate::disk::{self, FileKind, Stat};
use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Something that becomes a tar member.
#[derive(Debug)]
pub struct Found<'a> {
    /// Where it is on this host.
    pub source: PathBuf,
    /// Its name relative to the data directory, tablespaces as `pg_tblspc/<oid>/…`.
    pub name: &'a Path,
    /// Kind, size, mode and times at the time of listing.
    pub stat: Stat,
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link.
    pub oid: u32,
    /// The directory its link points to.
    pub location: PathBuf,
}

/// What of unlogged relations belongs into a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlogged {
    /// The init fork alone: a copy of a running server begins with recovery, which makes the others from it.
    InitFork,
    /// All forks: a copy of a server that was shut down begins as it ended, without recovery.
    AllForks,
}

/// Directories whose contents the server makes anew; the directory itself belongs into the backup.
const EMPTY_DIRECTORIES: &[&str] = &[
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Files at the top that describe the running server or another backup. The signal files would make a copy a
/// standby or start a recovery that nobody asked for.
const TOP_FILES: &[&str] = &[
    "postmaster.pid",
    "postmaster.opts",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "backup_manifest.tmp",
    "recovery.signal",
    "standby.signal",
];

/// Directories in which every name is the server's. A link there is followed, as the server does it; what else is linked
/// at the top is somebody's own affair, a directory of logs say.
const SERVERS_OWN: &[&str] = &[
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_stat",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// The walk over one data directory.
pub struct Scan<'a> {
    data: &'a Path,
    /// The tablespaces that lie outside the data directory, by their links. They are fixed before the walk: the
    /// sentinel names these, and the WAL makes what is created meanwhile.
    pub tablespaces: Vec<Tablespace>,
    /// The directories of these.
    locations: Vec<Stat>,
    /// The one directory of a tablespace that is this server's: `PG_<major>_<catalog version>`.
    version_directory: String,
    unlogged: Unlogged,
}

impl<'a> Scan<'a> {
    /// A walk over `data`, of a server whose tablespaces have `version_directory`.
    pub fn new(data: &'a Path, version_directory: String, unlogged: Unlogged) -> Result<Scan<'a>> {
        let (mut tablespaces, mut locations) = (Vec::new(), Vec::new());
        let directory = data.join("pg_tblspc");
        for name in Names::list(&directory)?.iter() {
            let link = directory.join(name);
            if let Some(oid) = tablespace_oid(name)
                && disk::lstat(&link)?.is_some_and(|stat| stat.kind == FileKind::Symlink)
            {
                let location = disk::read_link(&link)?;
                tablespaces.push(Tablespace { oid, location });
                locations.extend(disk::stat(&link)?);
            }
        }
        Ok(Scan {
            data,
            tablespaces,
            locations,
            version_directory,
            unlogged,
        })
    }

    /// Calls `each` for every directory and file that belongs into the backup, directories before what is in
    /// them, except `global/pg_control`, which the caller reads last.
    pub fn walk(&self, each: &mut dyn FnMut(Found<'_>) -> Result<()>) -> Result<()> {
        let root = disk::stat(self.data)?.ok_or_else(|| {
            Error::new(
                Kind::Missing,
                format!("there is no directory \"{}\"", self.data.display()),
            )
        })?;
        each(Found {
            source: self.data.to_path_buf(),
            name: Path::new("."),
            stat: root,
        })?;
        let mut walk = Walk {
            each,
            above: Vec::new(),
        };
        self.directory(self.data, Path::new(""), root, &mut walk)
    }

    fn directory(&self, source: &Path, name: &Path, stat: Stat, walk: &mut Walk<'_>) -> Result<()> {
        walk.above.push(stat);
        let walked = self.below(source, name, walk);
        walk.above.pop();
        walked
    }

    fn below(&self, source: &Path, name: &Path, walk: &mut Walk<'_>) -> Result<()> {
        let names = match Names::list(source) {
            // A database dropped since its parent was listed; the WAL knows about it.
            Err(e) if e.kind() == Kind::Missing && name.components().count() > 1 => return Ok(()),
            other => other?,
        };
        for entry in names.iter() {
            let (path, member) = (source.join(entry), name.join(entry));
            match disk::lstat(&path)? {
                Some(stat) if !self.left_out(&member, stat.kind, &names) => {
                    self.entry(path, &member, stat, walk)?;
                }
                // Of what vanished since it was listed the WAL knows too.
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&self, source: PathBuf, member: &Path, stat: Stat, walk: &mut Walk<'_>) -> Result<()> {
        let top = member.components().count() == 1;
        let name = member.to_str().unwrap_or_default();
        match stat.kind {
            FileKind::Directory | FileKind::Symlink if top && name == "pg_wal" => {
                self.pg_wal(member, source, walk)
            }
            // pg_stat_tmp as a link to a memory disk is usual; the copy needs the directory.
            FileKind::Directory | FileKind::Symlink if top && EMPTY_DIRECTORIES.contains(&name) => {
                let stat = directory_stat(&source)?;
                walk.found(source, member, stat)
            }
            FileKind::Directory => {
                walk.found(source.clone(), member, stat)?;
                // A tablespace inside the data directory: its files come below pg_tblspc, and once is enough.
                if self.locations.iter().any(|place| place.is_same_file(&stat)) {
                    return Ok(());
                }
                self.directory(&source, member, stat, walk)
            }
            FileKind::File => walk.found(source, member, stat),
            FileKind::Symlink if self.is_tablespace(member) => {
                self.tablespace(source, member, walk)
            }
            FileKind::Symlink if is_tablespace_link(member) => {
                log::info!(
                    "tablespace \"{}\" was created during the backup: the WAL has it",
                    source.display()
                );
                Ok(())
            }
            FileKind::Symlink => self.link(source, member, walk),
            FileKind::Other => {
                log::warn!(
                    "\"{}\" is left out: it is neither a file nor a directory",
                    source.display()
                );
                Ok(())
            }
        }
    }

    /// `pg_wal` is always an empty directory with its `archive_status`: WAL comes from the archive.
    fn pg_wal(&self, member: &Path, source: PathBuf, walk: &mut Walk<'_>) -> Result<()> {
        let stat = directory_stat(&source)?;
        let (status, below) = (source.join("archive_status"), member.join("archive_status"));
        walk.found(source, member, stat)?;
        walk.found(status, &below, stat)
    }

    fn tablespace(&self, source: PathBuf, member: &Path, walk: &mut Walk<'_>) -> Result<()> {
        let stat = match directory_stat(&source) {
            // Dropped since the backup began; the WAL drops it in the copy too.
            Err(e) if e.kind() == Kind::Missing && disk::lstat(&source)?.is_none() => {
                return Ok(());
            }
            other => other?,
        };
        let ours = source.join(&self.version_directory);
        let below = member.join(&self.version_directory);
        walk.found(source, member, stat)?;
        match disk::stat(&ours)? {
            None => Ok(()),
            Some(stat) => {
                walk.found(ours.clone(), &below, stat)?;
                self.directory(&ours, &below, stat, walk)
            }
        }
    }

    /// What a link points to takes its place in the backup where the server would follow it. Files at the top are its
    /// configuration.
    fn link(&self, source: PathBuf, member: &Path, walk: &mut Walk<'_>) -> Result<()> {
        let own = is_servers_own(member);
        let target = match disk::stat(&source) {
            Err(_) if !own => None,
            other => other?,
        };
        let top = member.components().count() == 1;
        match target {
            Some(stat) if stat.kind == FileKind::File && (own || top) => {
                walk.found(source, member, stat)
            }
            Some(stat) if stat.kind == FileKind::Directory && own => {
                walk.refuse_loop(&source, stat)?;
                log::info!(
                    "\"{}\" is a link: what it points to becomes a plain directory of the backup",
                    source.display()
                );
                walk.found(source.clone(), member, stat)?;
                self.directory(&source, member, stat, walk)
            }
            None if own && disk::lstat(&source)?.is_none() => Ok(()), // removed meanwhile
            None if own => Err(points_to_nothing(&source)),
            _ => {
                log::warn!(
                    "\"{}\" is left out: it is a link, and not the server's own",
                    source.display()
                );
                Ok(())
            }
        }
    }

    fn is_tablespace(&self, member: &Path) -> bool {
        let known = |oid| self.tablespaces.iter().any(|space| space.oid == oid);
        is_tablespace_link(member)
            && member
                .file_name()
                .and_then(tablespace_oid)
                .is_some_and(known)
    }

    fn left_out(&self, member: &Path, kind: FileKind, beside: &Names) -> bool {
        let Some(name) = member.file_name().and_then(OsStr::to_str) else {
            return false;
        };
        let top = member.components().count() == 1;
        if top && (TOP_FILES.contains(&name) || name == "lost+found") {
            return true;
        }
        // pg_control is the last file read; its temporary neighbours are nobody's.
        if member == Path::new("global/pg_control")
            || name.starts_with("pgsql_tmp")
            || name.starts_with("pg_internal.init")
        {
            return true;
        }
        if holds_relations(member.parent().unwrap_or(Path::new(""))) && kind == FileKind::File {
            if is_temporary_relation(name) {
                return true;
            }
            if let Some((relation, fork)) = relation_of(name) {
                // An init fork says that the relation is unlogged.
                return self.unlogged == Unlogged::InitFork
                    && fork != Some("init")
                    && beside.contains(&format!("{relation}_init"));
            }
        }
        false
    }
}

/// One walk on its way.
struct Walk<'w> {
    each: &'w mut dyn FnMut(Found<'_>) -> Result<()>,
    /// The directories from the top to the one that is walked.
    above: Vec<Stat>,
}

impl Walk<'_> {
    fn found(&mut self, source: PathBuf, name: &Path, stat: Stat) -> Result<()> {
        (self.each)(Found { source, name, stat })
    }

    /// A link upwards would be followed for ever.
    fn refuse_loop(&self, source: &Path, target: Stat) -> Result<()> {
        if !self.above.iter().any(|above| above.is_same_file(&target)) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Refused,
            format!(
                "\"{}\" is a link to a directory that it lies in",
                source.display()
            ),
        )
        .hint("The server does not make such links: remove it."))
    }
}

/// Whether the server, and nobody else, has put it there.
pub fn is_servers_own(member: &Path) -> bool {
    let first = member.iter().next().and_then(OsStr::to_str);
    // Of what lies in pg_tblspc the server looks at numbers alone.
    first.is_some_and(|name| SERVERS_OWN.contains(&name))
        && member.parent() != Some(Path::new("pg_tblspc"))
}

/// The number that is the name of a tablespace in `pg_tblspc`, spelt as PostgreSQL spells it.
pub fn tablespace_oid(name: &OsStr) -> Option<u32> {
    let oid: u32 = name.to_str()?.parse().ok()?;
    (OsStr::new(&oid.to_string()) == name).then_some(oid)
}

/// `pg_tblspc/<oid>`.
fn is_tablespace_link(member: &Path) -> bool {
    member.parent() == Some(Path::new("pg_tblspc"))
        && member.file_name().and_then(tablespace_oid).is_some()
}

/// The target of a link or the directory itself; it must be there.
fn directory_stat(source: &Path) -> Result<Stat> {
    match disk::stat(source)? {
        Some(stat) if stat.kind == FileKind::Directory => Ok(stat),
        Some(_) => Err(Error::new(
            Kind::Refused,
            format!("\"{}\" is not a directory", source.display()),
        )),
        None => Err(points_to_nothing(source)),
    }
}

fn points_to_nothing(source: &Path) -> Error {
    Error::new(
        Kind::Missing,
        format!("\"{}\" points to nothing", source.display()),
    )
    .hint("Is the file system mounted that it points to?")
}

/// `base/<db>`, `global`, `pg_tblspc/<oid>/PG_…/<db>`.
pub fn holds_relations(directory: &Path) -> bool {
    let parts: Vec<&OsStr> = directory.iter().collect();
    match parts.as_slice() {
        [only] => *only == "global",
        [first, _] => *first == "base",
        [first, _, _, _] => *first == "pg_tblspc",
        _ => false,
    }
}

/// Takes the file name of a relation apart: number and fork (`None`: main), as in `16384_vm.1`.
pub fn relation_of(name: &str) -> Option<(&str, Option<&str>)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, Some(segment)),
        None => (name, None),
    };
    if segment.is_some_and(|digits| !all_digits(digits)) {
        return None;
    }
    let (relation, fork) = match stem.split_once('_') {
        Some((relation, fork)) if ["init", "fsm", "vm"].contains(&fork) => (relation, Some(fork)),
        Some(_) => return None,
        None => (stem, None),
    };
    all_digits(relation).then_some((relation, fork))
}

/// `t<backend>_<relation>`, with forks and segments.
fn is_temporary_relation(name: &str) -> bool {
    let parse = || {
        let (backend, relation) = name.strip_prefix('t')?.split_once('_')?;
        (all_digits(backend) && relation_of(relation).is_some()).then_some(())
    };
    parse().is_some()
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_names_come_apart() {
        let cases = [
            ("16384", Some(("16384", None))),
            ("16384.1", Some(("16384", None))),
            ("16384_vm", Some(("16384", Some("vm")))),
            ("16384_init.2", Some(("16384", Some("init")))),
            ("16384_foo", None),
            ("PG_VERSION", None),
            ("pg_filenode.map", None),
            ("16384.x", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(relation_of(name), expected, "{name}");
        }
        for (name, temporary) in [
            ("t3_16384", true),
            ("t3_16384_fsm", true),
            ("t12_5.1", true),
            ("t_5", false),
            ("table_5", false),
        ] {
            assert_eq!(is_temporary_relation(name), temporary, "{name}");
        }
    }

    #[test]
    fn the_walk_leaves_out_what_the_server_leaves_out() {
        let dir = tempfile::tempdir().unwrap();
        let (data, space) = (dir.path().join("data"), dir.path().join("space"));
        let put = |root: &Path, name: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        };
        for name in [
            "PG_VERSION",
            "postmaster.pid",
            "backup_label",
            "standby.signal",
            "postgresql.conf",
            "global/pg_control",
            "global/1262",
            "global/pg_internal.init.77",
            "base/5/16384",
            "base/5/16384_init",
            "base/5/16384_vm",
            "base/5/16385",
            "base/5/16385_vm",
            "base/5/t2_16390",
            "base/pgsql_tmp/x",
            "base/5/pgsql_tmp1.2",
            "pg_replslot/s/state",
            "pg_notify/0000",
            "pg_wal/000000010000000000000001",
            "pg_xact/0000",
            "log/ü name",
            "current_logfiles",
        ] {
            put(&data, name);
        }
        put(&space, "PG_15_202209061/5/20000");
        put(&space, "PG_14_202107181/5/20000");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16400")).unwrap();

        let scan = |unlogged| Scan::new(&data, "PG_15_202209061".into(), unlogged).unwrap();
        let expected = [
            ".",
            "PG_VERSION",
            "base",
            "base/5",
            "base/5/16384_init",
            "base/5/16385",
            "base/5/16385_vm",
            "current_logfiles",
            "global",
            "global/1262",
            "log",
            "log/ü name",
            "pg_notify",
            "pg_replslot",
            "pg_tblspc",
            "pg_tblspc/16400",
            "pg_tblspc/16400/PG_15_202209061",
            "pg_tblspc/16400/PG_15_202209061/5",
            "pg_tblspc/16400/PG_15_202209061/5/20000",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_xact",
            "pg_xact/0000",
            "postgresql.conf",
        ];
        assert_eq!(names(&scan(Unlogged::InitFork)), expected);
        // Without recovery nothing would make the other forks of an unlogged relation.
        let mut expected = expected.to_vec();
        expected.splice(
            4..5,
            ["base/5/16384", "base/5/16384_init", "base/5/16384_vm"],
        );
        assert_eq!(names(&scan(Unlogged::AllForks)), expected);
        assert_eq!(
            scan(Unlogged::InitFork).tablespaces,
            [Tablespace {
                oid: 16400,
                location: space
            }]
        );
    }

    fn names(scan: &Scan<'_>) -> Vec<String> {
        let mut names = Vec::new();
        scan.walk(&mut |found| {
            names.push(found.name.to_str().unwrap().to_string());
            Ok(())
        })
        .unwrap();
        names
    }

    #[test]
    fn tablespaces_are_those_of_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        let link = |name: &str| {
            let space = dir.path().join(format!("space {name}"));
            std::fs::create_dir_all(space.join("PG_15_1/5")).unwrap();
            std::os::unix::fs::symlink(&space, data.join("pg_tblspc").join(name)).unwrap();
        };
        link("16400");
        link("16401");
        link("other");
        std::fs::write(data.join("pg_tblspc/note"), "x").unwrap();
        let scan = Scan::new(&data, "PG_15_1".into(), Unlogged::InitFork).unwrap();
        link("16402");
        std::fs::remove_file(data.join("pg_tblspc/16401")).unwrap();
        let expected = [
            ".",
            "pg_tblspc",
            "pg_tblspc/16400",
            "pg_tblspc/16400/PG_15_1",
            "pg_tblspc/16400/PG_15_1/5",
            "pg_tblspc/note",
        ];
        assert_eq!(names(&scan), expected);
    }

    #[test]
    fn a_tablespace_inside_the_data_directory_comes_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::fs::create_dir_all(data.join("spaces/one/PG_15_1/5")).unwrap();
        std::fs::create_dir_all(data.join("spaces/two")).unwrap();
        std::fs::write(data.join("spaces/one/PG_15_1/5/20000"), "x").unwrap();
        // The server's path to it need not be ours.
        let alias = dir.path().join("alias");
        std::os::unix::fs::symlink(&data, &alias).unwrap();
        let link = data.join("pg_tblspc/16400");
        std::os::unix::fs::symlink(alias.join("spaces/one"), link).unwrap();
        let scan = Scan::new(&data, "PG_15_1".into(), Unlogged::InitFork).unwrap();
        let expected = [
            ".",
            "pg_tblspc",
            "pg_tblspc/16400",
            "pg_tblspc/16400/PG_15_1",
            "pg_tblspc/16400/PG_15_1/5",
            "pg_tblspc/16400/PG_15_1/5/20000",
            "spaces",
            "spaces/one",
            "spaces/two",
        ];
        assert_eq!(names(&scan), expected);
    }

    #[test]
    fn links_are_followed_where_the_server_follows_them() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (data, disk) = (dir.path().join("data"), dir.path().join("disk"));
        for path in ["base/5", "pg_tblspc", "pg_xact", "pg_stat"] {
            std::fs::create_dir_all(data.join(path)).unwrap();
        }
        for path in ["6", "xact", "log", "space"] {
            std::fs::create_dir_all(disk.join(path)).unwrap();
        }
        for path in ["6/16384", "6/t1_5", "xact/0000", "log/old", "conf", "7"] {
            std::fs::write(disk.join(path), path).unwrap();
        }
        std::fs::remove_dir(data.join("pg_xact")).unwrap();
        for (target, link) in [
            ("6", "base/6"),
            ("7", "base/5/7"),
            ("xact", "pg_xact"),
            ("conf", "postgresql.conf"),
            ("log", "log"),
            ("space", "pg_tblspc/space"),
            ("nowhere", "nowhere"),
        ] {
            symlink(disk.join(target), data.join(link)).unwrap();
        }
        symlink("round", data.join("round")).unwrap();
        let scan = Scan::new(&data, "PG_15_1".into(), Unlogged::InitFork).unwrap();
        let expected = [
            ".",
            "base",
            "base/5",
            "base/5/7",
            "base/6",
            "base/6/16384",
            "pg_stat",
            "pg_tblspc",
            "pg_xact",
            "pg_xact/0000",
            "postgresql.conf",
        ];
        assert_eq!(names(&scan), expected);
        scan.walk(&mut |found| {
            assert_ne!(found.stat.kind, FileKind::Symlink, "{found:?}");
            Ok(())
        })
        .unwrap();

        let refused = |target: &Path| {
            let link = data.join("pg_stat/link");
            symlink(target, &link).unwrap();
            let error = scan.walk(&mut |_| Ok(())).unwrap_err();
            std::fs::remove_file(&link).unwrap();
            error.kind()
        };
        for upwards in [".", "../../data", ".."] {
            assert_eq!(refused(Path::new(upwards)), Kind::Refused, "{upwards}");
        }
        // Outside, and back from there.
        symlink(data.join("pg_stat"), disk.join("space/back")).unwrap();
        assert_eq!(refused(&disk.join("space")), Kind::Refused);
        assert_eq!(refused(&disk.join("nowhere")), Kind::Missing);
    }

    #[test]
    fn a_directory_that_is_made_anew_may_be_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::fs::create_dir(dir.path().join("memory")).unwrap();
        std::fs::write(dir.path().join("memory/x"), "").unwrap();
        std::os::unix::fs::symlink("../memory", data.join("pg_stat_tmp")).unwrap();
        let scan = Scan::new(&data, "PG_15_1".into(), Unlogged::InitFork).unwrap();
        assert_eq!(names(&scan), [".", "pg_stat_tmp", "pg_tblspc"]);
    }
}
