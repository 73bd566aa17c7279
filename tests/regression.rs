//! What once broke a promise, end to end: each test is the shortest way to it that a real server takes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::cluster::{Cluster, Stop, pg_tool};
use crate::support::seawall::Seawall;
use crate::support::{Scratch, as_postgres, give_to_postgres, is_root, run};

/// A server that archives into `archive`, and how its seawall is called.
fn archiving(scratch: &Scratch, archive: &str, configure: &[(&str, &str)]) -> (Cluster, String) {
    let prefix = format!("file://{}", scratch.join(archive).display());
    let push = seawall(scratch, &prefix).args(["wal-push", "%p"]);
    // A percent sign of the prefix is none of PostgreSQL's.
    let command = push.shell_line().replace("%f", "%%f");
    let mut builder = Cluster::builder(scratch, "production").archive_command(command);
    for (name, value) in configure {
        builder = builder.config(name, *value);
    }
    (builder.start(), prefix)
}

fn seawall(scratch: &Scratch, prefix: &str) -> Seawall {
    Seawall::new(scratch).env("SEAWALL_PREFIX", prefix)
}

fn back_up(scratch: &Scratch, prefix: &str, cluster: &Cluster) {
    let push = seawall(scratch, prefix).envs(cluster.client_env());
    push.arg("backup-push")
        .arg(cluster.data())
        .args(["--wal-timeout", "1min"])
        .run()
        .ok();
}

/// What `postgres -C` reads from a data directory that no server runs in.
fn setting(data: &Path, name: &str) -> String {
    let mut postgres = pg_tool("postgres");
    postgres.arg("-D").arg(data).args(["-C", name]);
    run(as_postgres(&mut postgres)).trim_end().to_string()
}

#[test]
fn a_copy_recovers_whatever_its_prefix_and_productions_settings_are() {
    // Given an archive whose name needs every kind of quoting, and a production that recovered once itself,
    let scratch = Scratch::new();
    let (production, prefix) = archiving(
        &scratch,
        r#"it's a "100%f" \n archive"#,
        &[
            ("recovery_target_time", "2020-01-01 00:00:00+00"),
            ("archive_cleanup_command", "touch cleaned"),
            ("recovery_end_command", "touch ended"),
            ("primary_conninfo", "host=production"),
            ("primary_slot_name", "standby"),
        ],
    );
    production.execute("create table t as select 1 as n");
    back_up(&scratch, &prefix, &production);
    production.execute("insert into t values (2)");
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    let lsn = production.value("select pg_current_wal_lsn()");
    production.execute("insert into t values (3)");
    let segment = production.switch_wal();
    production.wait_archived(&segment);

    // when it is restored with another target,
    let copy = scratch.join("copy");
    let fetch = seawall(&scratch, &prefix).arg("backup-fetch").arg(&copy);
    fetch
        .args(["LATEST", "--target-lsn", &lsn, "--target-action", "promote"])
        .run()
        .ok();

    // then nothing of production's is in force, and recovery ends at that target.
    for name in [
        "archive_cleanup_command",
        "recovery_end_command",
        "primary_conninfo",
        "primary_slot_name",
        "recovery_target_time",
    ] {
        assert_eq!(setting(&copy, name), "", "{name}");
    }
    let mut copy = Cluster::builder(&scratch, "restored").on(copy);
    copy.start();
    copy.wait_recovered();
    assert_eq!(
        copy.value("select string_agg(n::text, ' ' order by n) from t"),
        "1 2"
    );
    assert!(!copy.data().join("ended").exists() && !copy.data().join("cleaned").exists());
}

#[test]
fn postgresql_reads_every_form_of_a_target_time() {
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[("timezone", "Asia/Kathmandu")]);
    back_up(&scratch, &prefix, &production);
    for (form, at) in [
        // The manual's own example: what reads the configuration file does not know what Z is.
        ("2036-11-21T03:40:00Z", "2036-11-21 03:40:00.000000+00"),
        ("2036-11-21t03:40:00z", "2036-11-21 03:40:00.000000+00"),
        (" 2036-11-21 03:40:00 Z", "2036-11-21 03:40:00.000000+00"),
        ("2036-11-21 03:40:00+00", "2036-11-21 03:40:00.000000+00"),
        ("2036-11-21T03:40:00+05:45", "2036-11-20 21:55:00.000000+00"),
        ("2036-11-21 03:40:00 -0800", "2036-11-21 11:40:00.000000+00"),
        (
            "2036-11-21 03:40:00.5+23:59",
            "2036-11-20 03:41:00.500000+00",
        ),
        (
            "2036-11-21T03:40:00.1234567Z",
            "2036-11-21 03:40:00.123456+00",
        ),
        ("2036-12-31T23:59:60Z", "2037-01-01 00:00:00.000000+00"),
        ("9999-12-31T23:59:59-12", "10000-01-01 11:59:59.000000+00"),
    ] {
        let copy = scratch.join("copy");
        let fetch = seawall(&scratch, &prefix).arg("backup-fetch").arg(&copy);
        let fetched = fetch.args(["LATEST", "--target-time", form]).run();
        fetched.expect(0, &["lies in the future"]);
        assert_eq!(setting(&copy, "recovery_target_time"), at, "{form}");
        fs::remove_dir_all(&copy).expect("the copy");
    }
}

#[test]
fn files_with_odd_names_come_back() {
    // Given a data directory with names that tar, JSON and paths find hard,
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    let deep = format!(
        "{}/{}/{}",
        "d".repeat(200),
        "e".repeat(200),
        "f".repeat(255)
    );
    let names: [&[u8]; 8] = [
        b"odd/\xff\xfe",
        b"odd/line\nbreak",
        b"odd/-rf",
        b"odd/ blank ",
        b"odd/back\\slash",
        b"odd/%p \"quoted\" 'twice'",
        b"odd/29 path=x\n",
        deep.as_bytes(),
    ];
    for name in names {
        let path = production.data().join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
    }
    symlink("/nowhere", production.data().join("pg_tblspc/link")).unwrap();
    run(Command::new("chown")
        .args(["--recursive", "--no-dereference", "--reference"])
        .args([production.data(), production.data()]));

    // when it is backed up and restored,
    back_up(&scratch, &prefix, &production);
    let copy: PathBuf = scratch.join("copy");
    seawall(&scratch, &prefix)
        .arg("backup-fetch")
        .arg(&copy)
        .args(["LATEST", "--recovery"])
        .run()
        .ok();

    // then each is there with its bytes, the judge agrees, and the copy starts.
    for name in names {
        let path = copy.join(OsStr::from_bytes(name));
        assert_eq!(fs::read(&path).unwrap_or_default(), name, "{path:?}");
    }
    run(as_postgres(pg_tool("pg_verifybackup").arg("-n").arg(&copy)));
    let mut copy = Cluster::builder(&scratch, "restored").on(copy);
    copy.start();
    copy.wait_recovered();
}

#[test]
fn an_outage_is_no_end_of_wal_where_any_directory_says_recovery() {
    // Given an archive that is not there, a standby's directory to run in, and a copy's to deliver to,
    let scratch = Scratch::new();
    let (standby, copy) = (scratch.dir("standby"), scratch.dir("copy"));
    scratch.file("standby/standby.signal", "");
    scratch.dir("copy/pg_wal");
    let fetch = || {
        seawall(&scratch, "file:///nowhere/at/all")
            .env("SEAWALL_RETRY_TIMEOUT", "100ms")
            .cwd(&standby)
            .args(["wal-fetch", "000000010000000000000001"])
            .arg(copy.join("pg_wal/RECOVERYXLOG"))
    };
    // then the outage is absence for a standby, but not for a recovery.
    fetch().run().expect(1, &[]);
    scratch.file("copy/recovery.signal", "");
    fetch().run().expect(208, &["does not exist"]);
    give_to_postgres(&copy, 0o700);
}

#[test]
fn an_archive_that_is_not_mounted_is_not_begun_anew_without_a_state_directory() {
    // Given an archive in use,
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    production.configure("archive_command", "false");
    production.reload();
    let next = production.switch_wal();

    // when it is not there, and neither is what this host remembers of it,
    let archive = scratch.join("archive");
    fs::rename(&archive, scratch.join("elsewhere")).expect("the archive");
    let closed = scratch.dir("closed");
    give_to_postgres(&closed, 0o000);
    let push = || {
        let push = seawall(&scratch, &prefix).cwd(production.data());
        let push = push.env("SEAWALL_STATE_DIR", &closed);
        push.arg("wal-push").arg(format!("pg_wal/{next}"))
    };

    // then nothing is stored in its place;
    push().run().expect(8, &["does not exist"]);
    assert!(!archive.exists());

    // and when it is there again, its own word is enough.
    fs::rename(scratch.join("elsewhere"), &archive).expect("the archive");
    push().run().ok();
}

#[test]
fn the_segment_in_use_is_not_archived_before_its_time() {
    // Given a server that writes to a segment,
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    production.execute("create table t as select 1 as n");
    let name = production.value("select pg_walfile_name(pg_current_wal_lsn())");

    // when somebody pushes it by hand,
    let push = seawall(&scratch, &prefix).cwd(production.data());
    let push = push.arg("wal-push").arg(format!("pg_wal/{name}"));
    push.run().expect(3, &["has not finished", &name]);

    // then nothing of it is stored, and the archiver comes through with the whole one.
    production.execute("insert into t values (2)");
    assert_eq!(production.switch_wal(), name);
    production.wait_archived(&name);
    assert!(scratch.join(format!("archive/wal_005/{name}.zst")).exists());
}

#[test]
fn what_killed_calls_left_is_swept_by_the_next_one() {
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    production.execute("create table t as select 1 as n");
    back_up(&scratch, &prefix, &production);
    let leave = |path: PathBuf| {
        fs::write(&path, "half").expect("written");
        run(Command::new("touch")
            .args(["--date", "2020-01-01"])
            .arg(&path));
        give_to_postgres(&path, 0o600);
        path
    };

    // Given the temporary files of killed calls, in the archive and beside DEST,
    let stored = leave(scratch.join("archive/wal_005/.0000.zst.0123.seawall-tmp"));
    let place = scratch.dir("place");
    let fetched = leave(place.join(".RECOVERYXLOG.0123.seawall-tmp"));
    let foreign = leave(place.join(".RECOVERYXLOG.tmp"));

    // then the next backup and the next fetch take them away, and nothing else.
    back_up(&scratch, &prefix, &production);
    let fetch = seawall(&scratch, &prefix).args(["wal-fetch", "00000002.history"]);
    fetch
        .cwd(production.data())
        .arg(place.join("RECOVERYXLOG"))
        .run()
        .expect(1, &["not in archive"]);
    assert!(!stored.exists() && !fetched.exists() && foreign.exists());
}

#[test]
fn a_restore_by_root_says_whose_the_files_are() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    back_up(&scratch, &prefix, &production);
    let fetch = |name: &str| {
        let fetch = seawall(&scratch, &prefix).arg("backup-fetch");
        fetch.arg(scratch.join(name)).arg("LATEST")
    };
    let said = "chown -R postgres";
    fetch("root").by_root().run().expect(0, &[said]);
    assert!(!fetch("postgres").run().ok().text().contains(said));
}

#[test]
fn a_moment_before_the_backup_is_not_reached_by_it() {
    // Given a backup before a mistake, and one after it,
    let scratch = Scratch::new();
    let (production, prefix) = archiving(&scratch, "archive", &[]);
    let now = || {
        production.value("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
    };
    let too_early = now();
    production.execute("create table t as select generate_series(1, 30) as n");
    back_up(&scratch, &prefix, &production);
    let (before, lsn) = (now(), production.value("select pg_current_wal_lsn()::text"));
    production.execute("delete from t");
    back_up(&scratch, &prefix, &production);
    let list = seawall(&scratch, &prefix)
        .args(["backup-list", "--json"])
        .run()
        .ok();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let name = |n: usize| list[n]["name"].as_str().expect("a name").to_string();
    let fetch = |to: &str, name: &str, words: [&str; 2]| {
        let fetch = seawall(&scratch, &prefix)
            .arg("backup-fetch")
            .arg(scratch.join(to));
        fetch.arg(name).args(words).run()
    };

    // when the moment before it is wanted, then the later backup is refused, and the earlier one is taken by itself.
    let refused = "cannot be recovered to";
    fetch("x", &name(1), ["--target-time", &before]).expect(3, &[refused, &name(0)]);
    fetch("x", &name(1), ["--target-lsn", &lsn]).expect(3, &[refused, &name(0)]);
    fetch("x", "LATEST", ["--target-time", &too_early]).expect(3, &[refused, "old enough"]);
    fetch("by-lsn", "LATEST", ["--target-lsn", &lsn]).expect(0, &[&name(0)]);
    let taken = fetch("copy", "LATEST", ["--target-time", &before]);
    let said = taken.expect(0, &[&name(0)]).stderr;
    assert!(!said.contains("future"), "{said}");
    let mut copy = Cluster::builder(&scratch, "restored").on(scratch.join("copy"));
    copy.start();
    assert_eq!(copy.number("select count(*) from t"), 30);
}

#[test]
fn a_host_that_restored_knows_the_archive() {
    // Given a host that has only restored from the archive,
    let scratch = Scratch::new();
    let (mut production, prefix) = archiving(&scratch, "archive", &[]);
    back_up(&scratch, &prefix, &production);
    let there = |words: &[&str]| {
        let seawall =
            seawall(&scratch, &prefix).env("SEAWALL_STATE_DIR", scratch.dir("other-host"));
        seawall.args(words.iter().copied())
    };
    there(&["backup-fetch"])
        .arg(scratch.join("copy"))
        .arg("LATEST")
        .run()
        .ok();

    // when the archive is not mounted, then nothing there takes the empty place for an archive.
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    // Read before it is stopped: its last checkpoint recycles what is archived.
    let bytes = fs::read(production.data().join("pg_wal").join(&segment)).expect("the segment");
    production.stop(Stop::Fast);
    let segment = scratch.file(scratch.dir("aside").join(&segment), bytes);
    fs::rename(scratch.join("archive"), scratch.join("away")).expect("moved");
    scratch.dir("archive");
    there(&["backup-list"])
        .run()
        .expect(8, &["does not show itself"]);
    there(&["backup-fetch", "/nowhere", "LATEST"])
        .run()
        .expect(8, &["does not show itself"]);
    let push = there(&["wal-push"]).arg(&segment).cwd(production.data());
    push.run().expect(8, &["has lost its seawall.json"]);
}

#[test]
fn a_copy_without_configuration_is_not_said_to_start() {
    let scratch = Scratch::new();
    let (mut production, prefix) = archiving(&scratch, "archive", &[]);
    production.stop(Stop::Fast);
    let conf = production.data().join("postgresql.conf");
    fs::rename(&conf, scratch.join("postgresql.conf")).expect("moved");
    let push = seawall(&scratch, &prefix).args(["backup-push", "--while-offline"]);
    push.arg(production.data()).run().ok();
    let fetch = seawall(&scratch, &prefix)
        .arg("backup-fetch")
        .arg(scratch.join("copy"));
    let fetched = fetch.args(["LATEST", "--recovery"]).run().ok();
    assert!(
        fetched.stderr.contains("has no postgresql.conf"),
        "{fetched:?}"
    );
    assert!(!fetched.stderr.contains("start it with"), "{fetched:?}");
}
