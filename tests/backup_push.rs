//! backup-push: what it stores, what it refuses, and that a backup which failed leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archive::{self, Archive, lsn, segments_of, sha256, unzstd, zstd};
use crate::support::cluster::{Cluster, Stop};
use crate::support::seawall::Seawall;
use crate::support::{Scratch, give_to_postgres, run, wait_for};

const MODES: [&str; 2] = ["local", "remote"];

/// `backup-push` of a server, with PGDATA or without.
fn push(archive: &Archive, cluster: &Cluster, mode: &str) -> Seawall {
    let push = archive.seawall_for(cluster).arg("backup-push");
    if mode == "local" {
        push.arg(cluster.data())
    } else {
        push
    }
}

/// Nothing of a backup is in the archive.
#[track_caller]
fn assert_no_trace(archive: &Archive) {
    assert_eq!(archive.keys("basebackups_005/"), [""; 0]);
}

/// A copy of a data directory that nobody writes to.
fn copy_directory(scratch: &Scratch, from: &Path, name: &str) -> PathBuf {
    let to = scratch.join(name);
    run(Command::new("cp").arg("--archive").arg(from).arg(&to));
    to
}

#[test]
fn matrix_the_documents_of_a_backup_are_what_other_tools_expect() {
    // Given a server with checksums and a tablespace,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").checksums(true).start();
    let space = scratch.dir("space");
    production.execute(&format!(
        "create tablespace s location '{}'",
        space.display()
    ));
    production.execute("create table t tablespace s as select generate_series(1, 1000) as n");
    let oid = production.value("select oid from pg_tablespace where spcname = 's'");
    let version: u64 = production
        .value("show server_version_num")
        .parse()
        .expect("a number");
    let system = production.value("select system_identifier from pg_control_system()");
    let host = run(Command::new("uname").arg("-n")).trim().to_string();

    for mode in MODES {
        // when it is backed up,
        let before = production
            .value("select to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        push(&archive, &production, mode)
            .args(["--label", "nightly ü"])
            .run()
            .ok();
        let after = production
            .value("select to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        let name = archive.latest();

        // then the sentinel has WAL-E's keys, ours, and no others;
        let sentinel = archive.sentinel(&name);
        let ours = &sentinel["seawall"];
        let parts = parts_of(&archive, &sentinel);
        let file_bytes: u64 = parts.iter().map(|part| part.file_bytes).sum();
        let raw_manifest = unzstd(
            &archive
                .get(ours["manifest"]["key"].as_str().expect("a key"))
                .expect("the manifest"),
        );
        let manifest: Value = serde_json::from_slice(&raw_manifest).expect("JSON");
        let manifest_bytes: u64 = manifest["Files"]
            .as_array()
            .expect("files")
            .iter()
            .map(|f| f["Size"].as_u64().expect("a size"))
            .sum();
        let (start, stop) = (lsn(&ours["start_lsn"]), lsn(&ours["stop_lsn"]));
        assert!(start < stop);
        assert_eq!(
            keys_of(&sentinel),
            keys(
                "FilesMetadataDisabled expanded_size_bytes seawall spec wal_segment_backup_stop wal_segment_offset_backup_stop"
            )
        );
        assert_eq!(sentinel["FilesMetadataDisabled"], true);
        assert_eq!(sentinel["expanded_size_bytes"], file_bytes);
        // the remote stream's backup_label and tablespace links are not in the server's own manifest
        assert!(
            file_bytes >= manifest_bytes && file_bytes < manifest_bytes + 4096,
            "{file_bytes} {manifest_bytes}"
        );
        assert_eq!(
            sentinel["wal_segment_backup_stop"],
            *segments_of(&sentinel).last().expect("a segment")
        );
        assert_eq!(
            sentinel["wal_segment_offset_backup_stop"],
            format!("{:08}", stop % (1 << 20))
        );
        assert_eq!(
            sentinel["spec"],
            json!({
                "base_prefix": production.data().to_str(),
                "tablespaces": [oid],
                &oid: {"loc": space.to_str(), "link": format!("pg_tblspc/{oid}")},
            })
        );
        assert_eq!(
            keys_of(ours),
            keys(
                "format finish_time host label manifest mode page_checksums parts segment_size server_version start_lsn start_time \
             stop_lsn system_identifier timeline tool_version"
            )
        );
        assert_eq!(ours["format"], 1);
        assert_eq!(ours["tool_version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(ours["system_identifier"], system, "a string");
        assert_eq!(ours["server_version"], version);
        assert_eq!(ours["segment_size"], 1 << 20);
        assert_eq!(ours["timeline"], 1);
        assert_eq!(ours["host"], host);
        assert_eq!(ours["mode"], mode);
        assert_eq!(ours["label"], "nightly ü");
        assert_eq!(
            ours["page_checksums"],
            json!({"checked": true, "bad_pages": 0, "first_bad": []})
        );
        let (began, finished) = (
            ours["start_time"].as_str().expect("text"),
            ours["finish_time"].as_str().expect("text"),
        );
        assert!(
            *before <= *began && began < finished && *finished <= *after,
            "{before} {began} {finished} {after}"
        );
        assert_eq!(began.len(), "2026-11-21T03:40:00.000000Z".len());

        // its name is the start segment and the offset in it, in decimal digits;
        let segment = segments_of(&sentinel).remove(0);
        assert_eq!(name, format!("base_{segment}_{:08}", start % (1 << 20)));

        // metadata.json has numbers where WAL-G reads numbers;
        let stored: u64 = ours["parts"]
            .as_array()
            .expect("parts")
            .iter()
            .map(|part| part["stored_bytes"].as_u64().expect("a number"))
            .sum();
        let metadata = archive.json(&format!("basebackups_005/{name}/metadata.json"));
        assert_eq!(
            metadata,
            json!({
                "start_time": began, "finish_time": finished, "date_fmt": "%Y-%m-%dT%H:%M:%S.%fZ", "hostname": host,
                "data_dir": production.data().to_str(), "pg_version": version, "start_lsn": start, "finish_lsn": stop,
                "is_permanent": false, "system_identifier": system.parse::<u64>().expect("a number"),
                "uncompressed_size": file_bytes, "compressed_size": stored, "user_data": null,
            })
        );

        // and there is nothing else: the parts in order, the manifest, the documents, the owner.
        let directory = format!("basebackups_005/{name}/");
        let mut expected = vec![
            "backup_manifest.zst".to_string(),
            "extended_version.txt".into(),
            "metadata.json".into(),
            "owner.json".into(),
        ];
        expected.extend((0..parts.len()).map(|n| format!("tar_partitions/part_{n:08}.tar.zst")));
        let found: Vec<String> = archive
            .keys(&directory)
            .iter()
            .map(|key| key[directory.len()..].to_string())
            .collect();
        assert_eq!(found, expected);
        let owner = archive.json(&format!("{directory}owner.json"));
        assert_eq!(owner["host"], host);
        assert!(
            owner["pid"].is_u64() && owner["id"].as_str().is_some_and(|id| id.len() == 32),
            "{owner}"
        );
        let told = archive
            .get(&format!("{directory}extended_version.txt"))
            .expect("the version");
        assert!(String::from_utf8_lossy(&told).starts_with("PostgreSQL "));
    }
    // seawall.json names the cluster.
    let identity = archive.json("seawall.json");
    assert_eq!(identity["system_identifier"], system, "a string");
    assert_eq!(identity["segment_size"], 1 << 20);
    assert_eq!(identity["postgresql"], u64::from(production.major()));
}

/// What tar(1) says of a part.
struct Part {
    file_bytes: u64,
}

/// Looks at every object that a sentinel names, with sha256sum, zstd and tar.
fn parts_of(archive: &Archive, sentinel: &Value) -> Vec<Part> {
    let ours = &sentinel["seawall"];
    let objects = ours["parts"].as_array().expect("parts");
    for object in objects.iter().chain([&ours["manifest"]]) {
        let bytes = archive
            .get(object["key"].as_str().expect("a key"))
            .expect("the object");
        assert_eq!(
            keys_of(object),
            keys("codec key key_id raw_bytes sha256 stored_bytes")
        );
        assert_eq!(object["stored_bytes"], bytes.len());
        assert_eq!(object["raw_bytes"], unzstd(&bytes).len());
        assert_eq!(object["sha256"], sha256(&bytes));
        assert_eq!(object["codec"], "zstd");
        assert_eq!(object["key_id"], Value::Null);
    }
    let part = |(number, object): (usize, &Value)| {
        let bytes = unzstd(
            &archive
                .get(object["key"].as_str().expect("a key"))
                .expect("the object"),
        );
        let listing = archive::tar_list(&bytes);
        let lines: Vec<&str> = listing.lines().collect();
        assert!(
            lines.iter().all(|line| line.starts_with(['d', '-'])),
            "files and directories only: {listing}"
        );
        if number == 0 {
            assert!(
                lines[0].starts_with("drwx------") && lines[0].ends_with(" ./"),
                "{}",
                lines[0]
            );
        }
        let unwanted = [
            "tablespace_map",
            "postmaster.pid",
            "postmaster.opts",
            " recovery.signal",
            " standby.signal",
            "pg_internal.init",
        ];
        for word in unwanted {
            assert!(!listing.contains(word), "{word}: {listing}");
        }
        assert_eq!(
            listing.contains(" pg_wal/0"),
            ours["mode"] == "offline",
            "{listing}"
        );
        let size = |line: &&str| {
            line.split_whitespace()
                .nth(2)
                .and_then(|size| size.parse::<u64>().ok())
                .expect("a size")
        };
        Part {
            file_bytes: lines
                .iter()
                .filter(|line| line.starts_with('-'))
                .map(size)
                .sum(),
        }
    };
    objects.iter().enumerate().map(part).collect()
}

fn keys_of(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

fn keys(words: &str) -> BTreeSet<&str> {
    words.split_whitespace().collect()
}

#[test]
fn matrix_a_role_with_replication_and_execute_is_enough() {
    // Given a role that may do these two things and has a password,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive
        .builder("production")
        .auth_host("scram-sha-256")
        .start();
    let functions = match production.major() {
        ..15 => "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)",
        _ => "pg_backup_start, pg_backup_stop",
    };
    production.execute(&format!(
        "create role keeper login replication password 'swordfish';
         grant execute on function {functions} to keeper;
         create role replicator login replication password 'swordfish';
         create role nobody login password 'swordfish'",
    ));
    let hba = fs::read_to_string(production.data().join("pg_hba.conf")).expect("pg_hba.conf");
    assert!(hba.contains("replication"), "initdb lets replication in");
    let by = |role: &str, password: &str, mode: &str| {
        let port = production.port().to_string();
        push(&archive, &production, mode)
            .env("PGPASSWORD", password)
            .args(["--host", "127.0.0.1", "--port", &port, "--username", role])
            .run()
            .without(&["swordfish", "wrong-password"])
    };

    // when it takes backups, then they are complete;
    for mode in MODES {
        by("keeper", "swordfish", mode).ok();
    }
    assert_eq!(archive.backups().len(), 2);

    // and others are told what they lack.
    by("keeper", "wrong-password", "local").expect(7, &["password authentication failed"]);
    by("keeper", "wrong-password", "remote").expect(7, &["password authentication failed"]);
    by("replicator", "swordfish", "local")
        .expect(7, &["Permission denied for function pg_", "GRANT EXECUTE"]);
    by("nobody", "swordfish", "remote").expect(7, &["42501", "The role needs REPLICATION"]);
    assert_eq!(archive.backups().len(), 2);
}

#[test]
fn matrix_a_standby_is_refused_as_the_source() {
    // Given a standby with a tablespace,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    let space = scratch.dir("space");
    production.execute(&format!(
        "create tablespace s location '{}'",
        space.display()
    ));
    production.execute("create table t tablespace s as select generate_series(1, 1000) as n");
    push(&archive, &production, "local").run().ok();
    let backups = archive.backups();
    let data = scratch.join("standby");
    let mapping = format!("{}={}", space.display(), scratch.join("space2").display());
    let fetch = archive.seawall().arg("backup-fetch").arg(&data);
    fetch
        .args(["LATEST", "--standby", "-T", &mapping])
        .run()
        .ok();
    let mut standby = Cluster::builder(&scratch, "standby").on(data);
    standby.start();

    // when a backup of it is asked for, then it is refused and nothing of it is left.
    for mode in MODES {
        let refused = push(&archive, &standby, mode)
            .run()
            .expect(3, &["the server is a standby", "Connect to the primary"]);
        assert!(!refused.stderr.contains("starts at"), "{refused:?}");
        assert_eq!(archive.backups(), backups);
        let mut rest = archive.keys("basebackups_005/");
        rest.retain(|key| !key.contains(&backups[0]));
        assert_eq!(rest, [""; 0], "nothing of it is left");
    }

    // A standby that was shut down cleanly is none the less a standby.
    standby.stop(Stop::Fast);
    let offline = archive
        .seawall()
        .args(["backup-push", "--while-offline"])
        .arg(standby.data());
    let refused = offline.run();
    refused.expect(3, &["the server is a standby", "promote this server first"]);
    assert_eq!(archive.backups(), backups);
}

#[test]
fn the_directory_of_another_server_is_refused() {
    // Given two servers with one system identifier, and a third,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.stop(Stop::Fast);
    let clone_data = copy_directory(&scratch, production.data(), "clone");
    production.start();
    // The start is told in seconds: a clone must have another one.
    let age = "select extract(epoch from clock_timestamp() - pg_postmaster_start_time())::int";
    wait_for(Duration::from_secs(30), "two seconds", || {
        production.number(age) > 2
    });
    let mut clone = Cluster::builder(&scratch, "clone").on(&clone_data);
    clone.start();
    let stranger = Cluster::builder(&scratch, "stranger").create();
    let local = |data: &Path| {
        archive
            .seawall_for(&production)
            .arg("backup-push")
            .arg(data)
            .run()
    };
    let not_ours = "is not the data directory of the connected server";

    // when one is connected to and the directory of another is given, then that is refused;
    local(clone.data()).expect(5, &[not_ours, "seconds since 1970", "PGPORT"]);
    local(stranger.data()).expect(5, &[not_ours, "system identifier"]);
    clone.stop(Stop::Fast);
    local(clone.data()).expect(5, &[not_ours, "No server runs in the directory"]);
    local(&scratch.dir("empty")).expect(9, &["is not a data directory that can be read"]);
    assert_no_trace(&archive);

    // and so is an archive of another cluster, with both identifiers.
    push(&archive, &production, "local").run().ok();
    let mut stranger = stranger;
    stranger.start();
    let system =
        |cluster: &Cluster| cluster.value("select system_identifier from pg_control_system()");
    let both = [system(&production), system(&stranger)];
    for mode in MODES {
        push(&archive, &stranger, mode)
            .run()
            .expect(5, &[&both[0], &both[1]]);
    }
    assert_eq!(archive.backups().len(), 1);
}

/// Rewrites a line of a server's postmaster.pid. The server itself looks at the first one alone.
fn set_pid_line(cluster: &Cluster, number: usize, text: &str) {
    let path = cluster.data().join("postmaster.pid");
    let file = fs::read_to_string(&path).expect("postmaster.pid");
    let mut lines: Vec<&str> = file.lines().collect();
    lines[number - 1] = text;
    fs::write(&path, lines.join("\n") + "\n").expect("postmaster.pid");
}

fn pid_line(cluster: &Cluster, number: usize) -> String {
    let file = fs::read_to_string(cluster.data().join("postmaster.pid")).expect("postmaster.pid");
    let line = file.lines().nth(number - 1).expect("the line");
    line.trim().to_string()
}

#[test]
fn matrix_a_directory_that_only_looks_like_the_servers_is_refused() {
    // Given a server that went on since its directory was copied, with postmaster.pid as a snapshot has it, and a clone
    // that runs,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.stop(Stop::Fast);
    let clone_data = copy_directory(&scratch, production.data(), "clone");
    production.start();
    let snapshot = copy_directory(&scratch, production.data(), "snapshot");
    production.execute("create table t as select generate_series(1, 1000) as n");
    production.execute("checkpoint");
    let mut clone = Cluster::builder(&scratch, "clone-server")
        .config("archive_mode", "off")
        .on(&clone_data);
    clone.start();
    let local = |data: &Path| {
        archive
            .seawall_for(&production)
            .arg("backup-push")
            .arg(data)
            .run()
    };
    let not_ours = "is not the data directory of the connected server";

    // when a backup of the copy is asked for, then it is refused;
    local(&snapshot).expect(5, &[not_ours, "Its last checkpoint is at", "PGPORT"]);

    // and so is one of the clone, if it started in the same second, and even if it had the same port;
    set_pid_line(&clone, 3, &pid_line(&production, 3));
    local(clone.data()).expect(5, &[not_ours, "listens on port"]);
    set_pid_line(&clone, 4, &pid_line(&production, 4));
    local(clone.data()).expect(5, &[not_ours, "Its last checkpoint is at"]);
    clone.stop(Stop::Fast);
    assert_no_trace(&archive);

    // and the server's own directory is taken although it was slow to start, within reason.
    let started: i64 = pid_line(&production, 3).parse().expect("seconds");
    set_pid_line(&production, 3, &(started - 3600).to_string());
    local(production.data()).expect(5, &[not_ours, "seconds since 1970"]);
    assert_no_trace(&archive);
    set_pid_line(&production, 3, &(started - 30).to_string());
    local(production.data()).ok();
}

#[test]
fn matrix_the_wal_of_another_server_is_not_taken_for_the_backups() {
    // Given a clone that does not archive, and its original that archives to the same prefix and is ahead,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.stop(Stop::Fast);
    let clone_data = copy_directory(&scratch, production.data(), "clone");
    let mut clone = Cluster::builder(&scratch, "clone-server")
        .config("archive_mode", "off")
        .on(&clone_data);
    production.start();
    for _ in 0..8 {
        production.execute("create table if not exists t (n int); insert into t values (1)");
        let segment = production.switch_wal();
        production.wait_archived(&segment);
    }
    clone.start();

    // when the clone is backed up, then the names of all the WAL that it needs are there, and it is refused;
    for mode in MODES {
        push(&archive, &clone, mode)
            .args(["--wal-timeout", "20s"])
            .run()
            .expect(5, &["holds the WAL of another server", "prefix of its own"]);
        assert_no_trace(&archive);
    }
    // Where nobody archives it is said at once, unless somebody receives WAL.
    let local = || {
        archive
            .seawall_for(&clone)
            .args(["backup-push", "--wal-timeout", "1s"])
            .arg(clone.data())
    };
    let nobody = "archive_mode is off: the backup will wait for WAL that nobody may archive";
    local().run().expect(5, &[nobody]);
    clone.execute("select pg_create_physical_replication_slot('receiver')");
    let receiver = Seawall::new(&scratch)
        .envs(clone.client_env())
        .args(["wal-receive", "--slot", "receiver", "--directory"])
        .arg(scratch.dir("received"))
        .spawn();
    wait_for(Duration::from_secs(30), "the receiver", || {
        clone.value("select active::text from pg_replication_slots") == "true"
    });
    let outcome = local().run();
    receiver.kill9();
    assert!(!outcome.expect(5, &[]).stderr.contains(nobody));

    // while its original is backed up as ever.
    for mode in MODES {
        push(&archive, &production, mode).run().ok();
    }
}

#[test]
fn a_backup_whose_wal_does_not_arrive_is_taken_back() {
    // Given a server whose archive_command fails,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = Cluster::builder(&scratch, "production")
        .archive_command("echo no space left >&2; exit 1")
        .start();
    production.switch_wal();
    wait_for(Duration::from_secs(30), "a failure of the archiver", || {
        production.number("select failed_count from pg_stat_archiver") > 0
    });

    // when it is backed up, then the backup is given up in time and leaves nothing.
    let local = push(&archive, &production, "local")
        .args(["--wal-timeout", "300ms"])
        .run();
    let last_failed = production.value("select last_failed_wal from pg_stat_archiver");
    local.expect(
        8,
        &[
            "was not archived within",
            "The server's archiver failed with",
            &last_failed,
            "archive_command",
            "--wal-timeout",
        ],
    );
    assert_no_trace(&archive);
    let remote = push(&archive, &production, "remote")
        .args(["--wal-timeout", "300ms"])
        .run();
    remote.expect(8, &["was not archived within", "archive_command"]);
    assert_no_trace(&archive);
    assert_eq!(archive.backups(), [""; 0]);
}

#[test]
fn matrix_damaged_pages_are_found_and_the_backup_is_complete() {
    // Given a server with checksums and two damaged pages,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").checksums(true).start();
    production
        .execute("create table t as select n, repeat('x', 500) from generate_series(1, 2000) n");
    production.execute("checkpoint");
    let relation = production.value("select pg_relation_filepath('t')");
    production.stop(Stop::Fast);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(production.data().join(&relation))
        .expect("the relation");
    for block in [3u64, 100] {
        file.seek(SeekFrom::Start(block * 8192 + 5000))
            .expect("seek");
        file.write_all(b"damage").expect("write");
    }
    drop(file);
    production.start();

    for mode in MODES {
        // when it is backed up, then the backup is complete and the exit code tells of the pages;
        let outcome = push(&archive, &production, mode).run();
        outcome.expect(
            13,
            &["2 pages have wrong checksums", &relation, "is complete"],
        );
        let sentinel = archive.sentinel(&archive.latest());
        assert_eq!(sentinel["seawall"]["mode"], mode);
        let found = &sentinel["seawall"]["page_checksums"];
        assert_eq!(found["checked"], true, "{found}");
        assert_eq!(found["bad_pages"], 2, "{found}");
        assert!(
            found["first_bad"].to_string().contains(&relation),
            "{found}"
        );
        if mode == "local" {
            assert_eq!(
                found["first_bad"],
                json!([
                    format!("{relation}, block 3"),
                    format!("{relation}, block 100")
                ])
            );
        }

        // and nobody looks when told not to.
        push(&archive, &production, mode)
            .arg("--no-verify-checksums")
            .run()
            .ok();
        let sentinel = archive.sentinel(&archive.latest());
        let unchecked = json!({"checked": false, "bad_pages": 0, "first_bad": []});
        assert_eq!(sentinel["seawall"]["page_checksums"], unchecked);
    }
    assert_eq!(archive.backups().len(), 4);
}

#[test]
fn a_page_that_says_it_is_newer_than_the_wal_is_damaged() {
    // Given a server with checksums and a page of ones, which by its position was changed at the end of all time,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").checksums(true).start();
    production
        .execute("create table t as select n, repeat('x', 500) from generate_series(1, 2000) n");
    let relation = production.value("select pg_relation_filepath('t')");
    production.stop(Stop::Fast);
    let path = production.data().join(&relation);
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("t");
    file.seek(SeekFrom::Start(3 * 8192)).expect("seek");
    file.write_all(&[0xFF; 8192]).expect("write");
    drop(file);
    let damaged =
        json!({"checked": true, "bad_pages": 1, "first_bad": [format!("{relation}, block 3")]});

    // when it is backed up, down or running, then the page is found.
    let offline = archive
        .seawall()
        .args(["backup-push", "--while-offline"])
        .arg(production.data());
    offline
        .run()
        .expect(13, &["1 pages have wrong checksums", &relation]);
    let sentinel = archive.sentinel(&archive.latest());
    assert_eq!(sentinel["seawall"]["page_checksums"], damaged);
    production.start();
    let local = push(&archive, &production, "local").run();
    local.expect(13, &["1 pages have wrong checksums", &relation]);
    let sentinel = archive.sentinel(&archive.latest());
    assert_eq!(sentinel["seawall"]["mode"], "local");
    assert_eq!(sentinel["seawall"]["page_checksums"], damaged);
}

#[test]
fn pages_of_a_cluster_without_checksums_count_as_unchecked() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").checksums(false).start();
    for mode in MODES {
        push(&archive, &production, mode).run().ok();
        let sentinel = archive.sentinel(&archive.latest());
        assert_eq!(
            sentinel["seawall"]["page_checksums"]["checked"], false,
            "{mode}"
        );
    }
}

#[test]
fn matrix_a_server_that_is_shut_down_is_backed_up_with_its_wal() {
    // Given a server that was shut down cleanly, with a tablespace,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = Cluster::builder(&scratch, "production")
        .checksums(true)
        .start();
    let space = scratch.dir("space");
    production.execute(&format!(
        "create tablespace s location '{}'",
        space.display()
    ));
    production.execute("create table t tablespace s as select generate_series(1, 1000) as n");
    production.execute("create unlogged table u as select generate_series(1, 500) as n");
    let offline = |cluster: &Cluster| {
        archive
            .seawall()
            .args(["backup-push", "--while-offline"])
            .arg(cluster.data())
    };
    offline(&production)
        .run()
        .expect(3, &["belongs to a running server"]);
    production.stop(Stop::Fast);

    // when it is backed up, twice,
    offline(&production)
        .args(["--label", "moving house"])
        .run()
        .ok();
    let backup = archive.latest();
    let again = offline(&production).run();

    // then the second is told of the first, which starts without any archive;
    again.expect(1, &[&backup, "complete already", "not touched"]);
    let sentinel = archive.sentinel(&backup);
    assert_eq!(sentinel["seawall"]["mode"], "offline");
    assert_eq!(
        sentinel["seawall"]["page_checksums"],
        json!({"checked": true, "bad_pages": 0, "first_bad": []})
    );
    assert_eq!(archive.keys("wal_005/"), [""; 0]);
    let data = scratch.join("copy");
    let mapping = format!("{}={}", space.display(), scratch.join("space2").display());
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .args(["LATEST", "--tablespace-mapping", &mapping])
        .run()
        .ok();
    archive::verify(&data, &data.join("pg_wal"));
    let mut copy = Cluster::builder(&scratch, "copy").on(data);
    copy.start();
    assert_eq!(copy.number("select count(*) from t"), 1000);
    // No recovery makes unlogged tables anew: they are as they were.
    assert_eq!(copy.number("select count(*) from u"), 500);
    copy.execute("insert into u values (501)");
    archive::amcheck(&copy);

    // and a server that crashed is refused.
    production.start();
    production.kill9();
    offline(&production).run().expect(3, &["running server"]);
    fs::remove_file(production.data().join("postmaster.pid"))
        .expect("the pid file of the dead server");
    offline(&production)
        .run()
        .expect(3, &["was not shut down cleanly"]);
    assert_eq!(archive.backups(), [backup]);
}

#[test]
fn many_small_files_need_few_descriptors() {
    // Given a server that is shut down, with more small relations than files may be open,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = Cluster::builder(&scratch, "production").start();
    production.stop(Stop::Fast);
    for number in 900_000..901_500 {
        let path = production.data().join(format!("base/1/{number}"));
        fs::write(&path, [0; 8192]).expect("a relation");
        give_to_postgres(&path, 0o600);
    }

    // when it is backed up, then its files are open a few at a time.
    let push = Seawall::of(&scratch, "prlimit")
        .arg("--nofile=100:100")
        .arg(scratch.binary())
        .args(["backup-push", "--while-offline", "--pool-size", "4"])
        .arg(production.data())
        .env(
            "SEAWALL_PREFIX",
            format!("file://{}", archive.path().display()),
        );
    push.run().ok();
    let sentinel = archive.sentinel(&archive.latest());
    assert!(!parts_of(&archive, &sentinel).is_empty());
}

#[test]
fn memory_does_not_grow_with_the_files_of_a_directory() {
    // Given a server that is shut down and kept all its logs,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = Cluster::builder(&scratch, "production").start();
    production.stop(Stop::Fast);
    let logs = scratch.dir("production/log");
    let peak_with = |files: std::ops::Range<u64>| {
        for number in files {
            let name = format!("postgresql-2026-11-27_{number:08}.log");
            fs::File::create(logs.join(name)).expect("a log");
        }
        let push = archive
            .seawall()
            .measured(&scratch)
            .args(["--terse", "backup-push"]);
        let push = push.args(["--while-offline", "--pool-size", "2"]);
        let outcome = push.arg(production.data()).run().ok();
        for key in archive.keys("basebackups_005/") {
            archive.delete(&key); // the next one has the same name
        }
        outcome.peak_rss_kib.expect("it was measured") * 1024
    };

    // when it is backed up, then a file costs little more than its name while its directory is walked: with its path
    // and what the kernel says of it, it would be 300 bytes. Headers fill the chunks on their way in both cases, a
    // few MiB more or less.
    let (few, many) = (50_000, 200_000);
    let (with_few, with_many) = (peak_with(0..few), peak_with(few..many));
    assert!(
        with_many < with_few + (many - few) * 130,
        "{with_few} bytes with few files, {with_many} with many"
    );
}

#[test]
fn a_living_owner_is_not_disturbed() {
    // Given a slow backup of a server that is shut down, whose backups have all one name,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = Cluster::builder(&scratch, "production").start();
    production.stop(Stop::Fast);
    let offline = || {
        archive
            .seawall()
            .args(["backup-push", "--while-offline"])
            .arg(production.data())
    };
    let first = offline().args(["--rate-limit", "5M"]).spawn();
    wait_for(Duration::from_secs(30), "the first owner", || {
        !archive.keys("basebackups_005/").is_empty()
    });

    // when another begins, then it is refused by name, and the first becomes complete.
    offline().run().expect(
        4,
        &[
            "is being taken by another process",
            &format!("Process {}", first.pid()),
        ],
    );
    // Where other processes have these numbers, as in another container, nobody can say that the first one is gone.
    let elsewhere = Seawall::of(&scratch, "unshare")
        .args(["--pid", "--fork", "--mount-proc", "setpriv"])
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(scratch.binary())
        .args(["backup-push", "--while-offline"])
        .arg(production.data())
        .env(
            "SEAWALL_PREFIX",
            format!("file://{}", archive.path().display()),
        )
        .env("SEAWALL_STATE_DIR", scratch.dir("elsewhere"))
        .by_root();
    elsewhere
        .run()
        .expect(4, &["is being taken by another process"]);
    first.wait(Duration::from_secs(60)).ok();
    let sentinel = archive.sentinel(&archive.latest());
    assert!(!parts_of(&archive, &sentinel).is_empty());
}

#[test]
fn two_backups_at_the_same_moment_are_both_whole() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    for modes in [
        ["local", "local"],
        ["local", "remote"],
        ["remote", "remote"],
    ] {
        // Given a server, when two backups of it begin at the same moment,
        let before = archive.backups().len();
        let both = modes.map(|mode| push(&archive, &production, mode).spawn());
        for running in both {
            running.wait(Duration::from_secs(60)).ok();
        }

        // then both are whole.
        let backups = archive.backups();
        assert_eq!(backups.len(), before + 2);
        for backup in &backups[before..] {
            let sentinel = archive.sentinel(backup);
            assert!(!parts_of(&archive, &sentinel).is_empty());
            archive.fetch_wal_of(backup);
        }
    }
}

#[test]
fn the_rate_is_limited_in_both_modes() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    for mode in MODES {
        // When a backup may read so much in a second, half of what there is,
        push(&archive, &production, mode).run().ok();
        let bytes = archive.sentinel(&archive.latest())["expanded_size_bytes"]
            .as_u64()
            .expect("a number");
        let outcome = push(&archive, &production, mode)
            .args(["--cluster-read-rate-limit", &(bytes / 2).to_string()])
            .run()
            .ok();

        // then it takes two seconds; the first may be a burst.
        assert!(
            outcome.wall >= Duration::from_millis(900),
            "{mode}: {bytes} bytes in {:?}",
            outcome.wall
        );
    }
}

#[test]
fn names_of_any_length_are_backed_up_from_files_and_refused_by_the_stream() {
    // Given a file in PGDATA whose name is longer than the server's own tar knows,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    let long = "n".repeat(120);
    let path = production.data().join(&long);
    fs::write(&path, "long").expect("a file");
    give_to_postgres(&path, 0o600);

    // when it is backed up, then files are read whatever they are called, and the server's refusal is explained.
    push(&archive, &production, "local").run().ok();
    let backup = archive.latest();
    push(&archive, &production, "remote")
        .run()
        .expect(1, &["file name too long for tar format", &long, "PGDATA"]);
    assert_eq!(archive.backups(), std::slice::from_ref(&backup));
    assert_eq!(
        archive
            .keys("basebackups_005/")
            .iter()
            .filter(|key| !key.contains(&backup))
            .count(),
        0
    );
    let data = scratch.join("copy");
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .arg(&backup)
        .run()
        .ok();
    assert_eq!(
        fs::read_to_string(data.join(&long)).expect("the file"),
        "long"
    );
}

#[test]
fn matrix_a_linked_database_is_backed_up_or_refused() {
    // Given a server with a database on another disk, by a link, and linked logs,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.execute("create database d");
    let oid = production.value("select oid from pg_database where datname = 'd'");
    let create = "create table t as select generate_series(1, 1000) as n";
    production.client_to("d").batch_execute(create).expect("t");
    production.stop(Stop::Fast);
    let (inside, outside) = (
        production.data().join(format!("base/{oid}")),
        scratch.join("disk"),
    );
    run(Command::new("mv").arg(&inside).arg(&outside));
    std::os::unix::fs::symlink(&outside, &inside).expect("a link");
    let logs = scratch.dir("logs");
    fs::write(logs.join("old.log"), "old").expect("a log");
    std::os::unix::fs::symlink(&logs, production.data().join("log")).expect("a link");
    production.start();

    // when it is streamed, then the server leaves the database out, and that is no backup;
    let told = format!("the server left \"base/{oid}\" out");
    push(&archive, &production, "remote")
        .run()
        .expect(3, &[&told, "backup-push PGDATA"]);
    assert_no_trace(&archive);

    // when its files are read, then the copy has the database, as a plain directory, and none of the logs.
    push(&archive, &production, "local").run().ok();
    let data = scratch.join("copy");
    let fetch = archive.seawall().arg("backup-fetch").arg(&data);
    fetch.args(["LATEST", "--recovery"]).run().ok();
    archive::verify(&data, &archive.fetch_wal_of(&archive.latest()));
    let database = fs::symlink_metadata(data.join(format!("base/{oid}"))).expect("base/…");
    assert!(database.is_dir());
    assert!(!data.join("log/old.log").exists());
    let mut copy = Cluster::builder(&scratch, "copy").on(&data);
    copy.start();
    copy.wait_recovered();
    let rows = copy.client_to("d").query_one("select count(*) from t", &[]);
    assert_eq!(rows.expect("t").get::<_, i64>(0), 1000);
}

#[test]
fn a_tablespace_inside_pgdata_is_backed_up_once() {
    // Given a server with a tablespace inside its data directory, against all advice,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    let space = scratch.dir("production/space");
    let location = format!("create tablespace s location '{}'", space.display());
    production.execute(&location);
    production.execute("create table t tablespace s as select generate_series(1, 1000) as n");
    let file = production.value("select pg_relation_filepath('t')");
    let name = file.rsplit('/').next().expect("a name");

    // when it is backed up, then its files are there once, and come back.
    for mode in MODES {
        push(&archive, &production, mode).run().ok();
        let sentinel = archive.sentinel(&archive.latest());
        let listing = |object: &Value| {
            let key = object["key"].as_str().expect("a key");
            archive::tar_list(&unzstd(&archive.get(key).expect("the part")))
        };
        let parts = sentinel["seawall"]["parts"].as_array().expect("parts");
        let listings: String = parts.iter().map(listing).collect();
        let ending = format!("/{name}");
        let members: Vec<&str> = listings.lines().filter(|l| l.ends_with(&ending)).collect();
        assert_eq!(members.len(), 1, "{mode}: {members:?}");
        let (data, place) = (
            scratch.join(format!("copy-{mode}")),
            scratch.join(format!("space-{mode}")),
        );
        let mapping = format!("{}={}", space.display(), place.display());
        let fetch = archive.seawall().arg("backup-fetch").arg(&data);
        fetch
            .args(["LATEST", "--recovery", "--tablespace-mapping", &mapping])
            .run()
            .ok();
        let mut copy = Cluster::builder(&scratch, &format!("server-{mode}")).on(&data);
        copy.start();
        copy.wait_recovered();
        assert_eq!(copy.number("select count(*) from t"), 1000);
    }
}

#[test]
fn a_relative_pgdata_is_stored_as_the_absolute_one() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    let push = archive
        .seawall_for(&production)
        .cwd(scratch.path())
        .args(["backup-push", "./production/"]);
    push.run().ok();
    let sentinel = archive.sentinel(&archive.latest());
    assert_eq!(
        sentinel["spec"]["base_prefix"],
        json!(production.data().to_str())
    );
}

#[test]
fn group_access_is_kept() {
    // Given a cluster whose group may read it,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive
        .builder("production")
        .initdb_arg("--allow-group-access")
        .start();
    for mode in MODES {
        // when it goes there and back,
        push(&archive, &production, mode).run().ok();
        let data = scratch.join(format!("copy-{mode}"));
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .args(["LATEST", "--recovery"])
            .run()
            .ok();

        // then the group may read the copy too, all of it.
        let closed = run(Command::new("find")
            .arg(&data)
            .args(["!", "-perm", "-g=r", "-printf", "%M %P\n"]));
        assert_eq!(closed, "", "{mode}");
    }
}

#[test]
fn a_backup_without_a_server_says_so() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.stop(Stop::Fast);
    for mode in MODES {
        push(&archive, &production, mode)
            .run()
            .expect(8, &["could not connect", &production.port().to_string()]);
    }
    assert_no_trace(&archive);
}

#[test]
fn matrix_an_archive_begun_on_a_later_timeline_gets_its_history() {
    // Given a server that was promoted before it archived anything,
    let scratch = Scratch::new();
    let mut production = Cluster::builder(&scratch, "production").create();
    let signal = scratch.file("production/standby.signal", "");
    production.start();
    production.promote();
    assert!(!signal.exists());
    production.execute("create table t as select 1 as n");
    production.configure("archive_mode", "on");
    production.stop(Stop::Fast);
    for mode in MODES {
        // when it begins to archive, and is backed up,
        let archive = Archive::directory(&scratch, &format!("archive-{mode}"));
        production.configure("archive_command", &archive.archive_command());
        production.start();
        push(&archive, &production, mode).run().ok();
        production.stop(Stop::Fast);

        // then the history is archived, and recovery follows it.
        let history = archive
            .get("wal_005/00000002.history.zst")
            .expect("the history");
        let original =
            fs::read(production.data().join("pg_wal/00000002.history")).expect("the original");
        assert_eq!(unzstd(&history), original);
        let data = scratch.join(format!("copy-{mode}"));
        let fetch = archive.seawall().arg("backup-fetch").arg(&data);
        fetch.args(["LATEST", "--recovery"]).run().ok();
        let mut copy = Cluster::builder(&scratch, &format!("server-{mode}")).on(data);
        copy.start();
        copy.wait_recovered();
        assert_eq!(copy.number("select count(*) from t"), 1);
        drop(copy);

        // An archive in which another timeline has that number is not mixed with this one.
        archive.put(
            "wal_005/00000002.history.zst",
            &zstd(b"1\t0/1000000\tanother\n"),
        );
        production.start();
        let refused = push(&archive, &production, mode).run();
        refused.expect(
            5,
            &["does not fit the server's timeline", "00000002.history"],
        );
        assert_eq!(archive.backups().len(), 1);
        production.stop(Stop::Fast);
    }
}
