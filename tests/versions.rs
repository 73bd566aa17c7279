//! What differs from one server version to the next, from archiving to recovery: each test is one short life of a
//! cluster, and runs on PostgreSQL 15 in scripts/test and on all versions in scripts/matrix.
//!
//! The verdicts are those of `support::judges`, and of another client's `select`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::cluster::{Cluster, Stop};
use crate::support::seawall::Seawall;
use crate::support::{Scratch, judges, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that archives through seawall, with page checksums and a tablespace in which the table `rows` lies.
struct Origin {
    cluster: Cluster,
    /// Where the tablespace is.
    space: PathBuf,
}

impl Origin {
    fn start(scratch: &Scratch) -> Origin {
        let cluster = Cluster::builder(scratch, "origin")
            .checksums(true)
            .archive_command(seawall(scratch).args(["wal-push", "%p"]).shell_line())
            .start();
        let space = scratch.dir("a space");
        cluster.execute(&format!(
            "create tablespace roomy location '{}'",
            space.display()
        ));
        cluster.execute("create table rows (n bigint primary key, text text) tablespace roomy");
        Origin { cluster, space }
    }

    /// Archives all that was written so far.
    fn archive(&self) {
        archive_all(&self.cluster);
    }

    fn push(&self, scratch: &Scratch, args: &[&str]) {
        push(scratch, &self.cluster, args);
    }

    /// `OLD=NEW` for a restore beside the origin.
    fn mapping(&self, new: &Path) -> String {
        format!("{}={}", self.space.display(), new.display())
    }
}

/// The binary with the archive of this test.
fn seawall(scratch: &Scratch) -> Seawall {
    let archive = scratch.dir("archive");
    Seawall::new(scratch).env("SEAWALL_PREFIX", format!("file://{}", archive.display()))
}

/// Changes the version of the server that the only backup was taken from; gives the one that was there.
fn sentinel_version(scratch: &Scratch, version: u64) -> u64 {
    let mut names = fs::read_dir(scratch.join("archive/basebackups_005")).expect("backups");
    let path = names.find_map(|entry| {
        let path = entry.expect("an entry").path();
        path.extension()
            .is_some_and(|e| e == "json")
            .then_some(path)
    });
    let path = path.expect("a sentinel");
    let mut sentinel: Value =
        serde_json::from_slice(&fs::read(&path).expect("a sentinel")).expect("JSON");
    let field = &mut sentinel["seawall"]["server_version"];
    let before = field.as_u64().expect("a version");
    *field = version.into();
    fs::write(&path, sentinel.to_string()).expect("a sentinel");
    before
}

fn push(scratch: &Scratch, cluster: &Cluster, args: &[&str]) {
    let command = seawall(scratch).envs(cluster.client_env());
    command.arg("backup-push").args(args).run().ok();
}

/// Restores LATEST into a new directory.
fn fetch(scratch: &Scratch, name: &str, args: &[&str]) -> PathBuf {
    let data = scratch.join(name);
    let command = seawall(scratch).arg("backup-fetch").arg(&data);
    command.arg("LATEST").args(args).run().ok();
    data
}

/// Starts a restored directory and waits until it has recovered and writes.
fn recovered(scratch: &Scratch, name: &str, data: &Path) -> Cluster {
    let mut copy = Cluster::builder(scratch, &format!("{name}-server")).on(data);
    copy.start();
    copy.wait_recovered();
    copy
}

fn archive_all(cluster: &Cluster) {
    cluster.wait_archived(&cluster.switch_wal());
}

fn insert(cluster: &Cluster, from: i64, to: i64) {
    cluster.execute(&format!(
        "insert into rows select n, repeat('x', 100) from generate_series({from}, {to}) n"
    ));
}

/// The rows that are there, as `count min max`.
fn rows(cluster: &Cluster) -> String {
    cluster.value("select concat_ws(' ', count(*), min(n), max(n)) from rows")
}

/// Writes one row after the other, each its own transaction, while `work` is done; gives the number of the last one
/// that was acknowledged. At least `least` were by the time that `work` begins and again when it ended.
fn under_load(cluster: &Cluster, from: i64, least: i64, work: impl FnOnce()) -> i64 {
    let (ended, last) = (AtomicBool::new(false), AtomicI64::new(from - 1));
    let mut client = cluster.client();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let next = last.load(Ordering::SeqCst) + 1;
                client
                    .execute("insert into rows values ($1, repeat('x', 1000))", &[&next])
                    .expect("an acknowledged row");
                last.store(next, Ordering::SeqCst);
            }
        });
        let more = |what| {
            let target = last.load(Ordering::SeqCst) + least;
            wait_for(PATIENCE, what, || last.load(Ordering::SeqCst) >= target);
        };
        let guard = Ended(&ended); // also when `work` panics, or the scope would wait for ever
        more("rows before the work");
        work();
        more("rows after the work");
        drop(guard);
    });
    last.load(Ordering::SeqCst)
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Takes a backup under load, loses the server, restores and recovers to the end.
fn comes_back(backup_args: impl Fn(&Cluster) -> Vec<String>) {
    let scratch = Scratch::new();
    let mut origin = Origin::start(&scratch);
    insert(&origin.cluster, 1, 1000);
    let args = backup_args(&origin.cluster);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let last = under_load(&origin.cluster, 1001, 100, || {
        origin.push(&scratch, &args);
    });
    origin.archive();
    origin.cluster.kill9();

    let mapping = origin.mapping(&scratch.join("new space"));
    let data = fetch(
        &scratch,
        "copy",
        &["--recovery", "--tablespace-mapping", &mapping],
    );
    judges::assert_verified(&data);
    let copy = recovered(&scratch, "copy", &data);
    assert_eq!(rows(&copy), format!("{last} 1 {last}"));
    assert_eq!(copy.value("show archive_mode"), "off");
    let space =
        copy.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'roomy'");
    assert_eq!(Path::new(&space), scratch.join("new space"));
    judges::assert_sound(&copy);
}

#[test]
fn matrix_every_archived_row_comes_back_from_a_local_backup() {
    comes_back(|cluster| vec![cluster.data().display().to_string()]);
}

#[test]
fn matrix_every_archived_row_comes_back_from_a_remote_backup() {
    comes_back(|_| Vec::new());
}

#[test]
fn matrix_recovery_stops_at_a_position_or_once_consistent() {
    // Given rows in the backup, more of them up to a position, and others after it.
    let scratch = Scratch::new();
    let origin = Origin::start(&scratch);
    insert(&origin.cluster, 1, 100);
    origin.push(&scratch, &[&origin.cluster.data().display().to_string()]);
    insert(&origin.cluster, 101, 200);
    let position = origin.cluster.value("select pg_current_wal_lsn()");
    insert(&origin.cluster, 201, 300);
    origin.archive();

    // When it is restored with a target, then it has what belongs to the target.
    for (name, target, expected) in [
        ("consistent", vec!["--target-immediate"], "100 1 100"),
        ("position", vec!["--target-lsn", &position], "200 1 200"),
    ] {
        let mapping = origin.mapping(&scratch.join(format!("{name}-space")));
        let mut args = vec!["--target-action", "promote", "-T", &mapping];
        args.extend(target);
        let data = fetch(&scratch, name, &args);
        let copy = recovered(&scratch, name, &data);
        assert_eq!(rows(&copy), expected, "{name}");
    }
}

#[test]
fn matrix_an_offline_backup_starts_by_itself() {
    let scratch = Scratch::new();
    let mut origin = Origin::start(&scratch);
    insert(&origin.cluster, 1, 1000);
    origin.cluster.stop(Stop::Fast);
    let data = origin.cluster.data().display().to_string();
    seawall(&scratch)
        .args(["backup-push", "--while-offline", &data])
        .run()
        .ok();

    let mapping = origin.mapping(&scratch.join("new space"));
    let data = fetch(&scratch, "copy", &["--tablespace-mapping", &mapping]);
    judges::assert_verified(&data);
    let copy = recovered(&scratch, "copy", &data);
    assert_eq!(rows(&copy), "1000 1 1000");
    judges::assert_sound(&copy);
}

#[test]
fn matrix_tablespaces_in_place_come_back() {
    // Given a server with a tablespace that is a directory in pg_tblspc, where the server knows such a thing,
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "origin")
        .archive_command(seawall(&scratch).args(["wal-push", "%p"]).shell_line())
        .start();
    let setting = "select count(*) from pg_settings where name = 'allow_in_place_tablespaces'";
    if cluster.number(setting) == 0 {
        println!("skipped: this server has no allow_in_place_tablespaces");
        return;
    }
    cluster.execute("alter role postgres set allow_in_place_tablespaces = on");
    cluster.execute("create tablespace inside location ''");
    cluster.execute("create tablespace empty location ''");
    cluster.execute("create table rows tablespace inside as select generate_series(1, 1000) as n");
    let data = cluster.data().display().to_string();
    for (way, args) in [("local", &[data.as_str()][..]), ("remote", &[])] {
        // when it is backed up and restored in whatever way,
        push(&scratch, &cluster, args);
        archive_all(&cluster);
        for (n, options) in [&["--recovery"][..], &["--recovery", "--blind-restore"]]
            .iter()
            .enumerate()
        {
            let name = format!("{way}-{n}");
            let told = seawall(&scratch)
                .arg("backup-fetch")
                .arg(scratch.join(&name));
            let told = told.arg("LATEST").args(*options).run().ok();
            assert!(
                told.stderr.contains("allow_in_place_tablespaces"),
                "{told:?}"
            );

            // then the copy recovers, and the tablespaces are where they were.
            let mut copy =
                Cluster::builder(&scratch, &format!("{name}-server")).on(scratch.join(&name));
            copy.start();
            copy.wait_recovered();
            assert_eq!(copy.number("select count(*) from rows"), 1000, "{name}");
            copy.execute("create table more tablespace empty as select 1 as n");
            judges::assert_sound(&copy);
        }
    }
}

#[test]
fn matrix_a_blind_restore_starts_and_is_backed_up_again_or_is_refused() {
    let scratch = Scratch::new();
    let mut origin = Origin::start(&scratch);
    insert(&origin.cluster, 1, 1000);
    origin.push(&scratch, &[]);
    origin.archive();
    let known = origin
        .cluster
        .number("select count(*) from pg_settings where name = 'allow_in_place_tablespaces'");
    origin.cluster.kill9();

    // From a server that does not know the setting, it is refused: the copy would not start with it.
    let refused = || {
        let data = scratch.join("refused");
        let command = seawall(&scratch).arg("backup-fetch").arg(&data);
        command
            .args(["LATEST", "--blind-restore", "--recovery"])
            .run()
            .expect(3, &["allow_in_place_tablespaces", "--tablespace-mapping"]);
        assert!(!data.exists());
    };
    if known == 0 {
        return refused();
    }
    let version = sentinel_version(&scratch, 140_004);
    refused();
    sentinel_version(&scratch, version);

    // From one that knows it, the copy starts.
    let restore = ["--blind-restore", "--recovery", "--keep-archiving"];
    let data = fetch(&scratch, "copy", &restore);
    judges::assert_verified(&data);
    let copy = recovered(&scratch, "copy", &data);
    assert_eq!(rows(&copy), "1000 1 1000");
    for entry in fs::read_dir(data.join("pg_tblspc")).expect("pg_tblspc") {
        let kind = entry.and_then(|e| e.file_type()).expect("an entry");
        assert!(kind.is_dir(), "a tablespace became a {kind:?}");
    }

    // The copy takes the place of the original: its own backups are as good.
    let local = data.display().to_string();
    for (name, args) in [("local", vec![local.as_str()]), ("remote", vec![])] {
        push(&scratch, &copy, &args);
        archive_all(&copy);
        let data = fetch(&scratch, name, &["--blind-restore", "--recovery"]);
        judges::assert_verified(&data);
        let second = recovered(&scratch, name, &data);
        assert_eq!(rows(&second), "1000 1 1000", "{name}");
    }
}

#[test]
fn matrix_recovery_follows_a_promotion_through_the_archive() {
    // Given a backup on timeline 1 and a copy of it that took over, on timeline 2.
    let scratch = Scratch::new();
    let mut origin = Origin::start(&scratch);
    insert(&origin.cluster, 1, 100);
    origin.push(&scratch, &[&origin.cluster.data().display().to_string()]);
    insert(&origin.cluster, 101, 200);
    origin.archive();
    origin.cluster.kill9();
    let mapping = origin.mapping(&scratch.join("heir-space"));
    let data = fetch(
        &scratch,
        "heir",
        &["--recovery", "--keep-archiving", "-T", &mapping],
    );
    let mut heir = recovered(&scratch, "heir", &data);
    assert_eq!(
        heir.value("select timeline_id from pg_control_checkpoint()"),
        "2"
    );
    insert(&heir, 201, 300);
    archive_all(&heir);
    insert(&heir, 301, 400);
    archive_all(&heir);
    heir.kill9();

    // When the backup of timeline 1 is restored, then recovery goes through to the end of timeline 2, or stays.
    for (name, timeline, expected) in [
        ("through", "latest", "400 1 400"),
        ("stay", "current", "200 1 200"),
    ] {
        let mapping = origin.mapping(&scratch.join(format!("{name}-space")));
        let args = ["--recovery", "--target-timeline", timeline, "-T", &mapping];
        let data = fetch(&scratch, name, &args);
        let copy = recovered(&scratch, name, &data);
        assert_eq!(rows(&copy), expected, "{name}");
        assert_eq!(
            copy.value("select timeline_id from pg_control_checkpoint()"),
            "3",
            "{name}: timeline 2 is taken, so a copy opens on 3"
        );
    }
}

#[test]
fn matrix_segments_of_this_version_are_known_and_come_back() {
    // Given whole segments, the first of them as initdb left it.
    let scratch = Scratch::new();
    // They wait for an archiver that has nothing to run.
    let cluster = Cluster::builder(&scratch, "primary")
        .archive_command("")
        .start();
    cluster.execute("create table rows (n bigint primary key, text text)");
    let mut segments = vec![cluster.switch_wal()];
    for round in 0..3 {
        insert(&cluster, round * 3000 + 1, (round + 1) * 3000);
        segments.push(cluster.switch_wal());
    }
    for segment in &segments {
        // When a segment goes to the archive and comes back, then it is the same, and nothing about it is strange.
        let path = cluster.data().join("pg_wal").join(segment);
        let pushed = seawall(&scratch).arg("wal-push").arg(&path).run().ok();
        assert!(!pushed.stderr.contains("WARN"), "{pushed:?}");
        let back = scratch.join(format!("{segment}.back"));
        let fetched = seawall(&scratch)
            .args(["wal-fetch", segment])
            .arg(&back)
            .run()
            .ok();
        assert!(!fetched.stderr.contains("WARN"), "{fetched:?}");
        assert!(fs::read(&path).expect("the segment") == fs::read(&back).expect("the copy"));
    }
    // Then the archive knows the cluster's version.
    let identity = fs::read(scratch.join("archive/seawall.json")).expect("seawall.json");
    let identity: Value = serde_json::from_slice(&identity).expect("JSON");
    assert_eq!(identity["postgresql"], cluster.major());
}

#[test]
fn matrix_judges_of_manifests_find_the_same_faults() {
    // Given a restored backup that fits.
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "primary")
        .archive_command(seawall(&scratch).args(["wal-push", "%p"]).shell_line())
        .start();
    push(&scratch, &cluster, &[&cluster.data().display().to_string()]);
    let data = fetch(&scratch, "copy", &["--recovery"]);
    let fits = || {
        assert_eq!(judges::manifest_findings(&data), "");
        assert_eq!(judges::verifybackup_findings(&data).unwrap_or_default(), "");
    };
    fits();

    // When a fault is planted, then every judge names the file; when it is taken back, none does.
    let found = |what: &str, name: &str| {
        let ours = judges::manifest_findings(&data);
        assert!(ours.contains(name), "{what}: {ours}");
        assert_eq!(ours.lines().count(), 1, "{what}: {ours}");
        if let Some(theirs) = judges::verifybackup_findings(&data) {
            assert!(theirs.contains(name), "{what}: {theirs}");
        }
    };
    let victim = data.join("global/pg_filenode.map");
    let whole = fs::read(&victim).expect("a file");
    let mut flipped = whole.clone();
    flipped[300] ^= 0x10;
    fs::write(&victim, &flipped).expect("a flipped file");
    found("a flipped bit", "global/pg_filenode.map");
    fs::write(&victim, &whole[..511]).expect("a short file");
    found("a short file", "global/pg_filenode.map");
    fs::remove_file(&victim).expect("a missing file");
    found("a missing file", "global/pg_filenode.map");
    fs::write(&victim, &whole).expect("a whole file");
    fs::write(data.join("base/1/4711"), b"").expect("an extra file");
    found("an extra file", "base/1/4711");
    fs::remove_file(data.join("base/1/4711")).expect("the extra file");
    // WAL and the settings of the copy are nobody's business.
    fs::write(data.join("pg_wal/000000010000000000000009"), b"").expect("WAL");
    fits();

    // The manifest is not believed when it is not itself.
    let manifest = data.join("backup_manifest");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(&manifest, text.replacen("PG_VERSION", "PG_VERSIOM", 1)).expect("a manifest");
    let out = judges::verify_manifest(&data).output().expect("python3");
    assert_eq!(out.status.code(), Some(2));
}
