//! Killed at any moment: a backup that is listed is whole, a restore that was not finished never starts.
//!
//! The moments are drawn from a seed, `SEAWALL_TEST_SEED`, over the time that an undisturbed run takes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::archive::{self, Archive, segments_of, sha256};
use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Stop, pg_tool};
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::seawall::{Running, Seawall};
use crate::support::{Scratch, rounds, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Moments that look random and are the same in every run.
struct Moments(Chance);

impl Moments {
    fn new() -> Moments {
        Moments(Chance::new())
    }

    /// Kills it at a moment within a time a little longer than it takes; `true` if that ended it.
    fn kill(&mut self, running: Running, usual: Duration) -> bool {
        let micros = u64::try_from(usual.as_micros()).expect("short") * 11 / 10;
        std::thread::sleep(Duration::from_micros(self.0.below(micros)));
        running.signal(Signal::KILL);
        let outcome = running.wait(PATIENCE);
        assert!(
            outcome.signal == Some(9) || outcome.code == Some(0),
            "{outcome:?}"
        );
        outcome.signal.is_some()
    }
}

/// `backup-push` in one of the modes; an offline one needs the server to be down.
fn push(archive: &Archive, cluster: &Cluster, mode: &str) -> Seawall {
    let push = archive.seawall_for(cluster).arg("backup-push");
    match mode {
        "remote" => push,
        "local" => push.arg(cluster.data()),
        _ => push.arg(cluster.data()).args(["--while-offline"]),
    }
}

/// Every backup that is listed has its objects, byte for byte, and its WAL.
fn assert_whole(archive: &Archive) -> Vec<String> {
    let backups = archive.backups();
    for backup in &backups {
        let sentinel = archive.sentinel(backup);
        let ours = &sentinel["seawall"];
        for object in ours["parts"]
            .as_array()
            .expect("parts")
            .iter()
            .chain([&ours["manifest"]])
        {
            let key = object["key"].as_str().expect("a key");
            let bytes = archive
                .get(key)
                .unwrap_or_else(|| panic!("{backup} lacks {key}"));
            assert_eq!(object["sha256"], sha256(&bytes), "{key}");
        }
        assert!(
            archive
                .get(&format!("basebackups_005/{backup}/metadata.json"))
                .is_some(),
            "{backup}"
        );
        if ours["mode"] != "offline" {
            for segment in segments_of(&sentinel) {
                assert!(
                    archive.get(&format!("wal_005/{segment}.zst")).is_some(),
                    "{backup} lacks {segment}"
                );
            }
        }
    }
    backups
}

#[test]
fn a_backup_killed_at_any_moment_is_not_listed_unless_it_is_whole() {
    // Given a server that archives to a directory and to S3,
    let scratch = Scratch::new();
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "kill"),
    ];
    let both = archives
        .each_ref()
        .map(Archive::archive_command)
        .join(" && ");
    let production = Cluster::builder(&scratch, "production")
        .archive_command(both)
        .start();
    production.execute("create table t as select generate_series(1, 100000) as n");
    let mut moments = Moments::new();
    let mut killed = 0;
    for (archive, mode) in archives
        .iter()
        .flat_map(|archive| [(archive, "local"), (archive, "remote")])
    {
        let usual = push(archive, &production, mode).run().ok().wall;
        // Each round is one of the four.
        for round in 0..rounds(4, 20).div_ceil(4) {
            // when a backup is killed,
            let before = archive.backups();
            let dead = moments.kill(push(archive, &production, mode).spawn(), usual);
            killed += usize::from(dead);

            // then it is not listed, or it is whole; the others are; and the next one succeeds.
            let after = assert_whole(archive);
            assert!(after.starts_with(&before), "{before:?} {after:?}");
            assert!(
                dead || after.len() == before.len() + 1,
                "round {round}: it said that it was done"
            );
            push(archive, &production, mode).run().ok();
            assert_eq!(archive.backups().len(), after.len() + 1);
        }
        assert_whole(archive);
    }
    println!("{killed} were killed before they ended");
    assert!(killed > 0);
}

#[test]
fn what_a_dead_owner_left_under_the_same_name_is_removed() {
    // Given a server that is shut down, whose backups all have one name,
    let scratch = Scratch::new();
    for archive in [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "dead-owner"),
    ] {
        let name = format!("production-{}", crate::support::unique());
        let mut production = Cluster::builder(&scratch, &name).start();
        production.execute("create table t as select generate_series(1, 100000) as n");
        production.stop(Stop::Fast);

        // when a slow backup of it is killed after its owner is known, and has left more parts than it will need,
        let slow = push(&archive, &production, "offline")
            .args(["--rate-limit", "4M"])
            .spawn();
        // The temporary file of the owner may be seen, and left behind, beside it.
        let mut directory = None;
        wait_for(PATIENCE, "the owner", || {
            let keys = archive.keys("basebackups_005/");
            let owner = keys.iter().find_map(|key| key.strip_suffix("/owner.json"));
            directory = owner.map(|directory| format!("{directory}/"));
            directory.is_some()
        });
        slow.signal(Signal::KILL);
        slow.wait(PATIENCE).expect_signal(Signal::KILL);
        let directory = directory.expect("waited for");
        for key in [
            "tar_partitions/part_00000000.tar.zst",
            "tar_partitions/part_00000077.tar.zst",
            "backup_manifest.zst",
        ] {
            archive.put(&format!("{directory}{key}"), b"left by the dead");
        }
        assert_eq!(archive.backups(), [""; 0]);

        // then the next one removes all of it and is whole.
        let next = push(&archive, &production, "offline").run().ok();
        assert!(
            next.stderr.contains("removing what an interrupted backup"),
            "{next:?}"
        );
        assert_eq!(assert_whole(&archive).len(), 1);
        let found = archive.keys(&directory);
        assert!(
            !found.iter().any(|key| key.contains("part_00000077")),
            "{found:?}"
        );
        let data = scratch.join(format!("{name}-copy"));
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg("LATEST")
            .run()
            .ok();
        run(pg_tool("pg_verifybackup").arg(&data));
    }
}

#[test]
fn a_backup_that_is_told_to_stop_leaves_nothing() {
    // Given slow backups of a server, one that has stored something and one that waits for WAL,
    let scratch = Scratch::new();
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "stop"),
    ];
    let production = Cluster::builder(&scratch, "production")
        .archive_command("false")
        .start();
    let sessions = "select count(*) from pg_stat_activity where application_name = 'seawall'";
    for archive in &archives {
        for (mode, signal) in [("local", Signal::TERM), ("remote", Signal::INT)] {
            for (limit, parts) in [("2M", false), ("1G", true)] {
                let backup = push(archive, &production, mode)
                    .args(["--rate-limit", limit])
                    .spawn();
                wait_for(PATIENCE, "a backup under way", || {
                    let keys = archive.keys("basebackups_005/");
                    keys.iter().any(|key| {
                        if parts {
                            key.contains("part_")
                        } else {
                            key.ends_with("owner.json")
                        }
                    })
                });
                assert!(production.number(sessions) > 0);

                // when one is told to stop,
                backup.signal(signal);

                // then it says so, and is gone, in the archive and at the server.
                let name = if signal == Signal::TERM {
                    "SIGTERM"
                } else {
                    "SIGINT"
                };
                backup
                    .wait(PATIENCE)
                    .expect(12, &[name, "removing the parts of unfinished backup"]);
                assert_eq!(archive.keys("basebackups_005/"), [""; 0], "{mode}");
                wait_for(PATIENCE, "the end of the session", || {
                    production.number(sessions) == 0
                });
            }
        }
        assert_eq!(archive.backups(), [""; 0]);
    }
    // Backup mode is over: PostgreSQL says so of sessions that leave without pg_backup_stop.
    let ended = production
        .log()
        .matches("aborting backup due to backend exiting")
        .count();
    assert!(ended >= 2, "{ended}");
}

#[test]
fn a_server_that_dies_ends_the_backup() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    for mode in ["local", "remote"] {
        // Given a slow backup, when the server is killed,
        let backup = push(&archive, &production, mode)
            .args(["--rate-limit", "10M"])
            .spawn();
        wait_for(PATIENCE, "a backup under way", || {
            !archive.keys("basebackups_005/").is_empty()
        });
        production.kill9();

        // then it fails, and nothing of it is left.
        let outcome = backup.wait(PATIENCE);
        assert!(matches!(outcome.code, Some(1 | 8)), "{outcome:?}");
        assert!(outcome.stderr.contains("the server"), "{outcome:?}");
        assert_eq!(archive.keys("basebackups_005/"), [""; 0], "{mode}");
        production.start();
    }
    push(&archive, &production, "local").run().ok();
}

#[test]
fn a_restore_that_was_interrupted_never_starts() {
    // Given a backup in a directory and one in S3,
    let scratch = Scratch::new();
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "kill-fetch"),
    ];
    let both = archives
        .each_ref()
        .map(Archive::archive_command)
        .join(" && ");
    let production = Cluster::builder(&scratch, "production")
        .archive_command(both)
        .start();
    production.execute("create table t as select generate_series(1, 100000) as n");
    let data = scratch.join("copy");
    let fetch = |archive: &Archive| {
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg("LATEST")
    };
    let mut moments = Moments::new();
    let mut killed = 0;
    for archive in &archives {
        push(archive, &production, "local").run().ok();
        let wal = archive.fetch_wal_of(&archive.latest());
        let usual = fetch(archive).run().ok().wall;
        fs::remove_dir_all(&data).expect("the copy");
        for _ in 0..rounds(4, 20).div_ceil(2) {
            // when a restore is killed, then the server does not start, unless all is there;
            let dead = moments.kill(fetch(archive).spawn(), usual);
            killed += usize::from(dead);
            if data.join("global/pg_control").exists() {
                archive::verify(&data, &wal);
            } else {
                assert!(dead, "it said that it was done");
                assert_does_not_start(&scratch, &data);
                // and a second restore into it is refused, not mixed.
                if fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
                    fetch(archive).run().expect(3, &["is not empty"]);
                }
            }
            let _ = fs::remove_dir_all(&data);
        }

        // when it is told to stop, it says so.
        let running = fetch(archive).spawn();
        wait_for(PATIENCE, "the first files", || data.join("base/1").exists());
        running.signal(Signal::TERM);
        let outcome = running.wait(PATIENCE);
        if outcome.code == Some(0) {
            archive::verify(&data, &wal);
        } else {
            outcome.expect(12, &["SIGTERM", "cannot be started"]);
            assert_does_not_start(&scratch, &data);
        }
        fs::remove_dir_all(&data).expect("the copy");
    }
    println!("{killed} were killed before they ended");
    assert!(killed > 0);
}

/// The store answers with half of a part, and no more: that is waited for, but not by one who is told to stop.
#[test]
fn a_restore_from_a_silent_store_ends_when_it_is_told_to() {
    let scratch = Scratch::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("silent");
    let proxy = Proxy::start(minio.port());
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let archive = Archive::of_witness(&scratch, env, bucket);
    let production = Cluster::builder(&scratch, "production")
        .archive_command(archive.archive_command())
        .start();
    push(&archive, &production, "local").run().ok();
    proxy.rule(
        Rule::new(Fault::SilenceAt(1000))
            .method("GET")
            .path("/part_"),
    );
    let data = scratch.join("copy");
    let fetch = archive.seawall().arg("backup-fetch").arg(&data);
    let running = fetch
        .arg("LATEST")
        .env("SEAWALL_REQUEST_TIMEOUT", "1h")
        .spawn();
    wait_for(PATIENCE, "a part that is sent by half", || {
        proxy.requests().iter().any(|r| r.fault.is_some())
    });
    running.signal(Signal::TERM);
    running.wait(PATIENCE).expect(12, &["SIGTERM"]);
    assert_does_not_start(&scratch, &data);
}

fn assert_does_not_start(scratch: &Scratch, data: &Path) {
    if !data.exists() {
        return;
    }
    assert!(!data.join("global/pg_control").exists());
    let mut copy = Cluster::builder(scratch, "not-startable").on(data);
    assert!(copy.try_start().is_err(), "half a restore started");
    run(Command::new("rm")
        .arg("--force")
        .arg(data.join("postmaster.pid")));
}
