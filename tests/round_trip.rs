//! What it is all for: a server under load is backed up and archived, dies, and comes back with every archived row.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use postgres::Client;
use rustix::process::Signal;

use crate::support::archive::{self, Archive};
use crate::support::cluster::{Cluster, pg_tool, tools_bin};
use crate::support::seawall::{Running, Seawall};
use crate::support::{Scratch, as_postgres, give_to_postgres, run, wait_for};

/// A second database, whose name needs quotes everywhere.
const SECOND: &str = "zweite ü";

/// What a production has that a restore could lose: two tablespaces, a second database, large objects, an unlogged
/// table, names with spaces and ü, an empty directory.
struct Production {
    cluster: Cluster,
    /// Where the tablespaces `eins` and `zwei` are.
    spaces: [PathBuf; 2],
    /// The file of the unlogged table.
    unlogged: PathBuf,
}

impl Production {
    fn start(scratch: &Scratch, archive_command: &str) -> Production {
        let cluster = Cluster::builder(scratch, "produ ü ktion")
            .checksums(true)
            .wal_dir(scratch.join("wal ü"))
            .archive_command(archive_command)
            .config("max_wal_size", "64MB")
            .start();
        let spaces = ["raum eins ü", "raum=zwei"].map(|name| scratch.dir(name));
        let mut production = Production {
            cluster,
            spaces,
            unlogged: PathBuf::new(),
        };
        production.furnish();
        let unlogged = "select pg_relation_filepath('fluechtig')";
        production.unlogged = production.cluster.value(unlogged).into();
        production
    }

    fn furnish(&self) {
        for (name, path) in ["eins", "zwei"].iter().zip(&self.spaces) {
            let sql = format!("create tablespace {name} location '{}'", path.display());
            self.cluster.execute(&sql);
        }
        self.cluster
            .execute(&format!("create database \"{SECOND}\" tablespace zwei"));
        self.cluster.execute(
            "create table \"tafel mit ü\" (n int primary key using index tablespace zwei, t text) tablespace eins;
             insert into \"tafel mit ü\" select n, repeat(md5(n::text), 40) from generate_series(1, 12000) n;
             create table acknowledged (n bigint primary key);
             create unlogged table fluechtig as select generate_series(1, 1000) as n;
             select lo_from_bytea(0, decode(repeat('5eaa11', 20000), 'hex')) from generate_series(1, 5)",
        );
        for setting in [
            "primary_conninfo = 'host=production'",
            "primary_slot_name = 'production'",
            "restore_command = 'false'",
        ] {
            self.cluster.execute(&format!("alter system set {setting}"));
        }
        let mut second = self.cluster.client_to(SECOND);
        second
            .batch_execute(
                "create table \"größe\" as select n, md5(n::text) from generate_series(1, 5000) n",
            )
            .expect("a table in the second database");
        run(self
            .cluster
            .tool("pgbench")
            .args(["--initialize", "--quiet", "--scale=1"]));
        let data = self.cluster.data();
        for (name, bytes) in [("datei mit ü", "in PGDATA"), ("leer", "")] {
            fs::write(data.join(name), bytes).expect("a file");
            give_to_postgres(&data.join(name), 0o640);
        }
        fs::create_dir(data.join("leeres verzeichnis")).expect("a directory");
        give_to_postgres(&data.join("leeres verzeichnis"), 0o750);
    }

    /// `-T OLD=NEW` for each tablespace, with new places below `beside`.
    fn mappings(&self, beside: &Path) -> Vec<String> {
        let escaped = |path: &Path| path.display().to_string().replace('=', "\\=");
        let places = self.spaces.iter().enumerate();
        let pair = |(n, old): (usize, &PathBuf)| {
            let new = beside.with_extension(format!("space={n}"));
            format!("--tablespace-mapping={}={}", escaped(old), escaped(&new))
        };
        places.map(pair).collect()
    }
}

/// pgbench with four clients, and one of ours that keeps count of what was acknowledged.
struct Load {
    pgbench: Option<Running>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn begin(scratch: &Scratch, cluster: &Cluster) -> Load {
        let pgbench = Seawall::of(scratch, tools_bin().join("pgbench"))
            .args(["--client=4", "--jobs=1", "--no-vacuum", "--time=600"])
            .envs(cluster.client_env())
            .spawn();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicI64::new(0));
        let mut client = cluster.client();
        let writer = std::thread::spawn({
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = acknowledged.load(Ordering::Relaxed) + 1;
                    let done = client.execute("insert into acknowledged values ($1)", &[&next]);
                    done.expect("an insert");
                    acknowledged.store(next, Ordering::Relaxed);
                }
            }
        });
        let load = Load {
            pgbench: Some(pgbench),
            stop,
            acknowledged,
            writer: Some(writer),
        };
        load.goes_on(cluster);
        load
    }

    /// Waits until both have written something more.
    fn goes_on(&self, cluster: &Cluster) {
        let ours = self.acknowledged.load(Ordering::Relaxed);
        let theirs = cluster.number("select count(*) from pgbench_history");
        wait_for(Duration::from_secs(30), "writes of the load", || {
            self.acknowledged.load(Ordering::Relaxed) > ours
                && cluster.number("select count(*) from pgbench_history") > theirs
        });
    }

    /// Ends it; how many inserts of ours were acknowledged.
    fn end(mut self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        let writer = self.writer.take().expect("it runs");
        writer.join().expect("the writer had no error");
        let pgbench = self.pgbench.take().expect("it runs");
        pgbench.signal(Signal::TERM);
        pgbench
            .wait(Duration::from_secs(30))
            .expect_signal(Signal::TERM);
        self.acknowledged.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A digest of every logged table of both databases, and of the large objects.
fn contents(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for database in ["postgres", SECOND] {
        let mut client = cluster.client_to(database);
        let tables = client.query(
            "select format('%I', relname) from pg_class
             where relkind = 'r' and relpersistence = 'p' and relnamespace = 'public'::regnamespace",
            &[],
        );
        for row in tables.expect("the tables") {
            let table: String = row.get(0);
            let sql = format!(
                "select count(*)::text || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0)::text from {table} t"
            );
            found.insert(format!("{database}.{table}"), one(&mut client, &sql));
        }
        let objects = "select count(*)::text || ' ' || coalesce(md5(string_agg(md5(data), '' order by loid, pageno)), '') from pg_largeobject";
        found.insert(
            format!("{database}: large objects"),
            one(&mut client, objects),
        );
    }
    found
}

fn one(client: &mut Client, sql: &str) -> String {
    client.query_one(sql, &[]).expect("one row").get(0)
}

#[test]
fn matrix_a_restore_of_a_backup_under_load_brings_back_every_archived_row() {
    // Given a production that archives to a directory and to S3 with TLS, and a load that never pauses,
    let scratch = Scratch::new();
    let archives = [
        Archive::directory(&scratch, "archive ü"),
        Archive::bucket(&scratch, "round-trip"),
    ];
    let both = archives
        .each_ref()
        .map(Archive::archive_command)
        .join(" && ");
    let mut production = Production::start(&scratch, &both);
    let load = Load::begin(&scratch, &production.cluster);
    let mut temporary = production.cluster.client();
    temporary
        .batch_execute("create temporary table voruebergehend as select generate_series(1, 1000)")
        .expect("a temporary table, which stays open");

    // when it is backed up locally and remotely to both, writes on, and dies,
    let mut backups = Vec::new();
    for archive in &archives {
        for local in [true, false] {
            let mut push = archive.seawall_for(&production.cluster).arg("backup-push");
            if local {
                push = push.arg(production.cluster.data());
            }
            push.run().ok();
            load.goes_on(&production.cluster);
            backups.push((archive, local, archive.latest()));
        }
    }
    let acknowledged = load.end();
    drop(temporary);
    let expected = contents(&production.cluster);
    let segment = production.cluster.switch_wal();
    production.cluster.wait_archived(&segment);
    production.cluster.kill9();

    // then each backup comes back with all of it.
    for (archive, local, backup) in backups {
        let mode = if local { "local" } else { "remote" };
        let sentinel = archive.sentinel(&backup);
        assert_eq!(sentinel["seawall"]["mode"], mode);
        assert_eq!(sentinel["seawall"]["page_checksums"]["bad_pages"], 0);
        let copy = restored(&scratch, archive, &production, &backup);
        assert_eq!(contents(&copy), expected, "{mode} {backup}");
        let rows = copy.number(
            "select max(n) from acknowledged where n = (select count(*) from acknowledged)",
        );
        assert_eq!(rows, acknowledged, "{mode} {backup}");
    }
}

/// Restores a backup, has it judged, recovers it to the end of WAL, and looks at what must not have come along.
fn restored(
    scratch: &Scratch,
    archive: &Archive,
    production: &Production,
    backup: &str,
) -> Cluster {
    let name = format!("copy-{}", crate::support::unique());
    let data = scratch.join(&name);
    archive
        .seawall_by_envdir()
        .arg("backup-fetch")
        .arg(&data)
        .args([backup, "--recovery"])
        .args(production.mappings(&data))
        .run()
        .ok();
    archive::verify(&data, &archive.fetch_wal_of(backup));
    let file = fs::metadata(data.join("datei mit ü")).expect("the file with an ü");
    assert_eq!(mode_of(&file), 0o640);
    let empty = fs::metadata(data.join("leeres verzeichnis")).expect("the empty directory");
    assert!(empty.is_dir());
    assert_eq!(mode_of(&empty), 0o750);
    assert!(
        fs::symlink_metadata(data.join("pg_wal"))
            .expect("pg_wal")
            .is_dir()
    );

    let unlogged = data.join(&production.unlogged);
    assert!(!unlogged.exists(), "rows of an unlogged table");
    let init = PathBuf::from(format!("{}_init", unlogged.display()));
    assert!(init.exists(), "an unlogged table is begun anew");
    let temporary = Command::new("find")
        .arg(&data)
        .args(["-name", "t[0-9]*_[0-9]*"])
        .output();
    assert!(
        temporary.expect("find").stdout.is_empty(),
        "files of temporary tables"
    );

    let mut copy = Cluster::builder(scratch, &name).on(&data);
    copy.start();
    copy.wait_recovered();
    assert!(copy.log().contains("consistent recovery state reached"));
    assert_eq!(copy.value("show archive_mode"), "off");
    assert_eq!(copy.value("show primary_conninfo"), "");
    assert_eq!(copy.value("show primary_slot_name"), "");
    assert_eq!(
        copy.number("select count(*) from fluechtig"),
        0,
        "an unlogged table comes back empty"
    );
    copy.execute("insert into fluechtig values (1)");
    archive::amcheck(&copy);
    copy
}

fn mode_of(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777
}

#[test]
fn zstd_and_tar_alone_bring_a_backup_back() {
    // Given a local and a remote backup of a server with tablespaces,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = Production::start(&scratch, &archive.archive_command());
    let long_name = format!("{}.txt", "lang ü ".repeat(20));
    let long_file = production.cluster.data().join(&long_name);
    let push = || archive.seawall_for(&production.cluster).arg("backup-push");
    push().run().ok();
    let remote = archive.latest();
    fs::write(&long_file, "longer than tar's header takes").expect("a file");
    give_to_postgres(&long_file, 0o600);
    push().arg(production.cluster.data()).run().ok();
    let local = archive.latest();
    production
        .cluster
        .execute("insert into acknowledged values (7)");
    let expected = contents(&production.cluster);
    let segment = production.cluster.switch_wal();
    production.cluster.wait_archived(&segment);
    production.cluster.kill9();

    for backup in [remote, local.clone()] {
        // when it is unpacked as seawall-archive(7) tells, links made by hand,
        let data = scratch.join(format!("copy-{}", crate::support::unique()));
        let sentinel = archive.sentinel(&backup);
        by_postgres(
            RESCUE,
            &[&archive.path().display(), &backup, &data.display()],
        );
        for oid in sentinel["spec"]["tablespaces"].as_array().expect("OIDs") {
            let oid = oid.as_str().expect("text");
            by_postgres(
                "mv \"$1/pg_tblspc/$2\" \"$1.space.$2\"; ln -s \"$1.space.$2\" \"$1/pg_tblspc/$2\"",
                &[&data.display(), &oid],
            );
        }

        // then its parts held no link, and the server starts and has everything.
        run(pg_tool("pg_verifybackup").arg("--no-parse-wal").arg(&data));
        assert_eq!(data.join(&long_name).exists(), backup == local);
        let mut copy =
            Cluster::builder(&scratch, &format!("rescue-{}", crate::support::unique())).on(&data);
        copy.start();
        copy.wait_recovered();
        assert_eq!(contents(&copy), expected, "{backup}");
        archive::amcheck(&copy);
    }
}

/// $1 archive, $2 backup, $3 new data directory: the lines of seawall-archive(7), and a look at each part.
const RESCUE: &str = r#"
cd "$1/basebackups_005/$2"
mkdir -m 0700 "$3"
for part in tar_partitions/part_*.tar.zst; do
    zstd -d -c "$part" | tar -t -v -f - >"$3.list"
    head -n 1 "$3.list" | grep -q '^drwx------ .* \./$' || test "$part" != tar_partitions/part_00000000.tar.zst
    ! grep -v '^[d-]' "$3.list"
    ! grep -e tablespace_map -e '\.signal$' -e postmaster -e '/t[0-9]*_[0-9]*$' -e pg_wal/0 "$3.list"
    zstd -d -c "$part" | tar -x -p -C "$3" -f -
done
mkdir -p "$3/pg_wal"
zstd -d -c backup_manifest.zst > "$3/backup_manifest"
cat >> "$3/postgresql.auto.conf" <<END
restore_command = 'zstd -d -q -f "$1/wal_005/%f.zst" -o %p'
archive_mode = off
max_logical_replication_workers = 0
synchronous_standby_names = ''
END
touch "$3/recovery.signal"
"#;

/// Runs a script of bash(1) as user postgres; any failure in it fails the test.
fn by_postgres(script: &str, arguments: &[&dyn std::fmt::Display]) {
    let mut command = Command::new("/bin/bash");
    command.args(["-e", "-u", "-o", "pipefail", "-c", script, "script"]);
    command
        .args(arguments.iter().map(|a| a.to_string()))
        .current_dir("/");
    run(as_postgres(&mut command));
}

/// The most that backup-push and backup-fetch may hold, whatever the size of the database.
const PEAK_RSS_KIB: u64 = 192 << 10;

#[test]
fn memory_stays_bounded_while_parts_and_chunks_are_many() {
    // 300 MiB are more than one part and 75 chunks.
    large_relation(300, &[(0, true), (1, false)]);
}

#[test]
#[ignore = "writes and reads 20 GiB: scripts/long runs it"]
fn memory_stays_bounded_with_relations_beyond_a_gibibyte() {
    large_relation(3 << 10, &[(0, true), (0, false), (1, true), (1, false)]);
}

/// A table of so many MiB goes to a directory (0) or to S3 (1) and back, in local mode or not, within bounded memory.
fn large_relation(mib: u64, ways: &[(usize, bool)]) {
    // Given a server with a table that compresses to its half,
    let scratch = Scratch::new();
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "large"),
    ];
    let both = archives
        .each_ref()
        .map(Archive::archive_command)
        .join(" && ");
    // It is filled without WAL: with wal_level=minimal, a new table's rows go to its file only.
    let mut production = Cluster::builder(&scratch, "production")
        .checksums(true)
        .archive_command(both)
        .config("wal_level", "minimal")
        .config("max_wal_senders", "0")
        .config("archive_mode", "off")
        // It would write to the table while it is compared.
        .config("autovacuum", "off")
        .start();
    production.execute("create extension pgcrypto");
    production.execute(&format!(
        "create table large as select n, gen_random_bytes(1000) || repeat('tide', 240)::bytea as noise
         from generate_series(1, {}) n",
        mib * 1024 / 8 * 4 // rows of 1990 bytes on pages of 8 KiB
    ));
    for (name, value) in [
        ("wal_level", "replica"),
        ("max_wal_senders", "10"),
        ("archive_mode", "on"),
    ] {
        production.configure(name, value);
    }
    production.restart();
    let bytes = production.number("select pg_relation_size('large')");
    assert!(bytes as u64 >= mib << 20, "{bytes}");

    for (archive, local) in ways
        .iter()
        .map(|(archive, local)| (&archives[*archive], *local))
    {
        // when it is backed up and restored,
        let mut push = archive.seawall_for(&production).arg("backup-push");
        if local {
            push = push.arg(production.data());
        }
        let pushed = push.measured(&scratch).run().ok();
        let backup = archive.latest();
        let data = scratch.join(format!("copy-{}", crate::support::unique()));
        let fetch = archive.seawall_by_envdir().arg("backup-fetch").arg(&data);
        let fetched = fetch
            .args(["LATEST", "--recovery"])
            .measured(&scratch)
            .run()
            .ok();

        // then neither held much of it, and the table is whole.
        for outcome in [&pushed, &fetched] {
            let peak = outcome.peak_rss_kib.expect("measured");
            println!("{mib} MiB in {:?}: peak {peak} KiB", outcome.wall);
            assert!(peak <= PEAK_RSS_KIB, "{peak} KiB: {outcome:?}");
        }
        let parts = archive.sentinel(&backup)["seawall"]["parts"]
            .as_array()
            .expect("parts")
            .len();
        assert!(parts >= 2, "{parts} parts");
        archive::verify(&data, &archive.fetch_wal_of(&backup));
        let relation = production.value("select pg_relation_filepath('large')");
        for suffix in ["", ".1", ".2"] {
            let name = format!("{relation}{suffix}");
            if production.data().join(&name).exists() {
                let judge = Command::new("cmp")
                    .arg(production.data().join(&name))
                    .arg(data.join(&name))
                    .status();
                assert!(judge.is_ok_and(|status| status.success()), "{name} differs");
            }
        }
        fs::remove_dir_all(&data).expect("the copy goes, for the disk's sake");
    }
}
