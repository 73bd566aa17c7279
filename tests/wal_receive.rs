//! `wal-receive` on real servers: what it receives, what it acknowledges, where it goes on, and what it survives.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::archive::Archive;
use crate::support::cluster::{Builder, Cluster, Stop, tools_bin};
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Request, Rule};
use crate::support::seawall::{Running, Seawall};
use crate::support::tmpfs::Tmpfs;
use crate::support::{Scratch, give_to_postgres, is_root, peak_kib, rounds, run, unique, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A spool directory and how its receiver is called.
struct Receiver<'a> {
    scratch: &'a Scratch,
    spool: PathBuf,
}

impl<'a> Receiver<'a> {
    fn new(scratch: &'a Scratch, name: &str) -> Receiver<'a> {
        let spool = scratch.dir(name);
        Receiver { scratch, spool }
    }

    /// A receiver of `server` with its slot; it reports often, so that tests need not wait.
    fn command(&self, seawall: Seawall, server: &Cluster) -> Seawall {
        self.without_slot(seawall, server).args(["--slot", "spool"])
    }

    fn without_slot(&self, seawall: Seawall, server: &Cluster) -> Seawall {
        seawall
            .envs(server.client_env())
            .args(["wal-receive", "--status-interval", "1"])
            .arg("--directory")
            .arg(&self.spool)
    }

    fn plain(&self, server: &Cluster) -> Seawall {
        self.command(Seawall::new(self.scratch), server)
    }

    fn has(&self, name: &str) -> bool {
        self.spool.join(name).exists()
    }

    /// What `seawall status` tells; null until there is something to tell.
    fn status(&self) -> Value {
        let status = Seawall::new(self.scratch).args(["status", "--json", "--directory"]);
        let outcome = status.arg(&self.spool).run();
        match outcome.code {
            Some(9) => Value::Null,
            _ => serde_json::from_slice(&outcome.ok().stdout).expect("JSON"),
        }
    }

    /// Waits until everything that the server has written by now is flushed here.
    fn wait_flushed(&self, server: &Cluster) {
        let now = server.value("select pg_current_wal_lsn()::text");
        let behind = format!(
            "select coalesce(bool_or(flush_lsn >= '{now}'), false)::text from pg_stat_replication"
        );
        wait_for(PATIENCE, "the receiver to flush", || {
            server.value(&behind) == "true"
        });
    }
}

fn create_slot(scratch: &Scratch, server: &Cluster) {
    let seawall = Seawall::new(scratch).envs(server.client_env());
    seawall
        .args(["wal-receive", "--create-slot", "--slot", "spool"])
        .run()
        .ok();
}

fn server<'a>(scratch: &'a Scratch, name: &str) -> Builder<'a> {
    Cluster::builder(scratch, name)
        .config("wal_sender_timeout", "10s")
        .config("fsync", "on")
}

/// A server with a slot, and its receiver.
fn production(scratch: &Scratch) -> (Cluster, Receiver<'_>) {
    let server = server(scratch, "production").start();
    create_slot(scratch, &server);
    (server, Receiver::new(scratch, "spool"))
}

/// Writes about `mib` MiB of WAL and ends its last segment; answers that segment's name.
fn write_wal(server: &Cluster, mib: u32) -> String {
    server.execute("create table if not exists filler (t text)");
    for _ in 0..mib {
        server.execute("insert into filler select repeat(md5(random()::text), 30) from generate_series(1, 1000)");
    }
    server.switch_wal()
}

/// Every whole file in the spool that the server still has is the same there, byte for byte.
fn compare_with_server(spool: &Path, server: &Cluster) -> usize {
    compare(spool, &server.data().join("pg_wal"))
}

/// How many segments two directories have in common, which are the same byte for byte.
fn compare(spool: &Path, other: &Path) -> usize {
    let mut same = 0;
    for entry in fs::read_dir(spool).expect("the spool") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let theirs = other.join(name);
        if name.len() == 24 && theirs.exists() {
            let (ours, theirs) = (fs::read(&path).unwrap(), fs::read(theirs).unwrap());
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!((ours.len(), differs), (theirs.len(), None), "{name}");
            same += 1;
        }
    }
    same
}

#[test]
fn matrix_wal_is_received_and_uploaded_byte_for_byte() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let server = server(&scratch, "production")
        .config("wal_keep_size", "200MB")
        .start();
    create_slot(&scratch, &server);
    let kept = Receiver::new(&scratch, "kept");
    let receiver = kept.command(archive.seawall(), &server);
    let running = receiver.args(["--keep-local", "always"]).spawn();
    let beside = scratch.dir("beside");
    // That of version 15 refuses newer servers.
    let witness = (server.major() <= 15).then(|| {
        Seawall::of(&scratch, tools_bin().join("pg_receivewal"))
            .envs(server.client_env())
            .arg("--directory")
            .arg(&beside)
            .spawn()
    });
    let receivers = 1 + i64::from(witness.is_some());
    wait_for(PATIENCE, "all receivers", || {
        server.number("select count(*) from pg_stat_replication") == receivers
    });

    let last = write_wal(&server, 5);
    let key = format!("wal_005/{last}.zst");
    wait_for(PATIENCE, "the last segment in the archive", || {
        archive.get(&key).is_some() && kept.has(&format!("{last}.done"))
    });
    // The same bytes: in the spool, on the server, with another receiver, in the archive.
    assert!(compare_with_server(&kept.spool, &server) >= 5);
    if witness.is_some() {
        wait_for(PATIENCE, "the last segment beside", || {
            beside.join(&last).exists()
        });
        assert!(compare(&kept.spool, &beside) >= 5);
    }
    let stored = crate::support::archive::unzstd(&archive.get(&key).unwrap());
    assert!(stored == fs::read(kept.spool.join(&last)).unwrap());

    // The status says so without asking the server.
    let mut status = Value::Null;
    wait_for(PATIENCE, "a status with everything archived", || {
        status = kept.status();
        status["state"] == "streaming" && status["spool"]["waiting"] == 0
    });
    assert_eq!(status["slot"], "spool");
    assert_eq!(status["timeline"], 1);
    assert_eq!(status["running"], true);
    for position in ["received", "written", "flushed", "archived"] {
        assert!(status[position]["lsn"].is_string(), "{position}: {status}");
    }
    let lsn = |text: &Value| crate::support::archive::lsn(text);
    assert!(lsn(&status["flushed"]["lsn"]) >= lsn(&status["archived"]["lsn"]));

    // A stop is a good end; whole segments that are archived go, where nobody wants them.
    running.terminate();
    assert_eq!(kept.status()["running"], false);
    let again = kept.command(archive.seawall(), &server).spawn();
    wait_for(PATIENCE, "the spool to be emptied", || !kept.has(&last));
    again.signal(Signal::INT);
    again.wait(PATIENCE).ok();
}

#[test]
fn it_is_pg_receivewal_changed_by_one_word() {
    let scratch = Scratch::new();
    let server = server(&scratch, "production").start();
    let receiver = Receiver::new(&scratch, "spool");
    let slot = |words: &[&str]| {
        let seawall = Seawall::new(&scratch).envs(server.client_env());
        seawall.arg("wal-receive").args(words.iter().copied()).run()
    };
    slot(&["--create-slot", "-S", "spool"]).ok();
    slot(&["--create-slot", "-S", "spool", "--if-not-exists"]).ok();
    slot(&["--create-slot", "-S", "spool"]).expect(1, &["already exists"]);

    // Up to a position, as pg_receivewal does, into the same directory one after the other.
    let half = write_wal(&server, 2);
    let position = server.value("select pg_current_wal_lsn()::text");
    write_wal(&server, 2);
    let words = ["--no-loop", "--endpos", &position, "--synchronous"];
    receiver.plain(&server).args(words).run().ok();
    assert!(receiver.has(&half));
    // What was reached before needs no more WAL to be seen.
    let words = ["--no-loop", "--endpos", "0/100000"];
    receiver.plain(&server).args(words).run().ok();
    let status = receiver.status();
    assert_eq!(status["archived"], Value::Null, "nothing is uploaded");
    assert_eq!(status["last_error"], Value::Null);
    let end = server.value("select pg_current_wal_lsn()::text");
    write_wal(&server, 1);
    let mut other = server.tool("pg_receivewal");
    other
        .args(["--slot", "spool", "--no-loop", "--endpos", &end, "-D"])
        .arg(&receiver.spool);
    run(&mut other);
    let end = server.value("select pg_current_wal_lsn()::text");
    write_wal(&server, 1);
    let words = ["-n", "-E", &end, "-Z", "none"];
    receiver.plain(&server).args(words).run().ok();
    // What it must not do it says so.
    for (word, value, says) in [
        ("--no-sync", "", "synced"),
        ("-Z", "gzip:5", "SEAWALL_COMPRESSION"),
    ] {
        let words = [word, value].into_iter().filter(|word| !word.is_empty());
        let refused = receiver.plain(&server).args(words).run();
        refused.expect(2, &["is not possible", "Leave it out", says]);
    }
    assert!(compare_with_server(&receiver.spool, &server) >= 1);
    let whole: BTreeSet<String> = names(&receiver.spool)
        .into_iter()
        .filter(|n| n.len() == 24)
        .collect();
    assert!(whole.len() >= 5, "{whole:?}");

    slot(&["--drop-slot", "-S", "spool"]).ok();
    slot(&["--drop-slot", "-S", "spool"]).expect(9, &["spool"]);
    // It is not made again in silence.
    let gone = receiver.plain(&server).run();
    gone.expect(
        9,
        &["there is no replication slot \"spool\"", "--create-slot"],
    );
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn matrix_as_synchronous_standby_it_loses_no_acknowledged_commit() {
    // Given a server whose commits wait for the receiver,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = server(&scratch, "production").start();
    create_slot(&scratch, &production);
    production.execute("create table paid (n bigint primary key)");
    let push = archive.seawall_for(&production).arg("backup-push");
    let receiver = Receiver::new(&scratch, "spool");
    let start = |server: &Cluster| {
        receiver
            .command(archive.seawall(), server)
            .args(["--synchronous", "--receive-timeout", "5s"])
            .spawn()
    };
    let mut running = start(&production);
    push.arg(production.data())
        .args(["--wal-timeout", "1min"])
        .run()
        .ok();
    production.configure("synchronous_standby_names", "seawall");
    production.reload();
    let mut acknowledged = 0;
    for round in 0..rounds(3, 20) {
        // when commits go on until the receiver, the server or both are killed,
        let end = Instant::now() + Duration::from_millis(300 + 150 * round as u64 % 700);
        let mut client = production.client();
        while Instant::now() < end {
            acknowledged += 1;
            let insert = format!("insert into paid values ({acknowledged})");
            client.batch_execute(&insert).expect("a commit");
        }
        drop(client);
        running.kill9();
        if round % 2 == 1 {
            production.kill9();
            production.start();
        }
        running = start(&production);
    }
    let mut client = production.client();
    for _ in 0..50 {
        acknowledged += 1;
        let insert = format!("insert into paid values ({acknowledged})");
        client.batch_execute(&insert).expect("a commit");
    }
    drop(client);
    // and at last the server is lost for good,
    production.kill9();
    running.kill9();

    // then a restore from archive and spool has every commit that was acknowledged.
    let spool = receiver.spool.display().to_string();
    let mut copy = archive.copy(&["--spool", &spool, "--partial"]);
    copy.start();
    copy.wait_recovered();
    assert_eq!(copy.number("select count(*) from paid"), acknowledged);
    assert_eq!(copy.number("select max(n) from paid"), acknowledged);
}

#[test]
fn a_fast_shutdown_does_not_wait_and_the_server_is_met_again() {
    let scratch = Scratch::new();
    let (mut server, receiver) = production(&scratch);
    let mut running = receiver.plain(&server).arg("--synchronous").spawn();
    write_wal(&server, 1);
    receiver.wait_flushed(&server);
    let began = Instant::now();
    server.stop(Stop::Fast);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "the shutdown took {took:?}");
    wait_for(PATIENCE, "a receiver that waits", || {
        let state = receiver.status()["state"].clone();
        state == "waiting" || state == "connecting"
    });
    server.start();
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "the segment after the restart", || {
        receiver.has(&last)
    });
    assert!(!running.has_ended());
    assert!(compare_with_server(&receiver.spool, &server) >= 1);
    running.terminate();
}

/// A standby of `primary` with its own archive of nothing, which follows it by streaming. It begins as a copy of the
/// primary while that is stopped, which needs no tool of its version.
fn standby(scratch: &Scratch, primary: &mut Cluster, name: &str) -> Cluster {
    let data = scratch.join(name);
    primary.stop(Stop::Fast);
    let mut copy = std::process::Command::new("cp");
    run(copy.arg("--archive").arg(primary.data()).arg(&data));
    primary.start();
    // No recycled files: once a switch record is replayed, a cascading server sends the rest of its segment even where
    // that has not arrived yet, and then it is what was in the file before.
    let present = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    for name in names(&data.join("pg_wal")) {
        if name.len() == 24 && name > present {
            fs::remove_file(data.join("pg_wal").join(name)).expect("a recycled segment");
        }
    }
    fs::write(data.join("standby.signal"), "").expect("standby.signal");
    give_to_postgres(&data.join("standby.signal"), 0o600);
    let mut standby = Cluster::builder(scratch, name).on(data);
    let conninfo = format!(
        "host={} port={} user=postgres",
        primary.sockets().display(),
        primary.port()
    );
    standby.configure("primary_conninfo", &conninfo);
    standby.start();
    standby
}

fn wait_caught_up(primary: &Cluster, standby: &Cluster) {
    let lsn = primary.value("select pg_current_wal_lsn()::text");
    let caught = format!("select (pg_last_wal_replay_lsn() >= '{lsn}')::text");
    wait_for(PATIENCE, "the standby to catch up", || {
        standby.value(&caught) == "true"
    });
}

#[test]
fn matrix_timelines_are_followed_in_mid_segment_and_on_its_border() {
    for on_border in [false, true] {
        let scratch = Scratch::new();
        let archive = Archive::directory(&scratch, "archive");
        let mut primary = server(&scratch, "primary").start();
        let standby = standby(&scratch, &mut primary, "standby");
        standby.execute("select pg_create_physical_replication_slot('spool', true)");
        let receiver = Receiver::new(&scratch, "spool");
        let command = receiver.command(archive.seawall(), &standby);
        let words = ["--keep-local", "always", "--partial-every", "100ms"];
        let running = command.args(words).spawn();
        write_wal(&primary, 2);
        if !on_border {
            primary.execute("create table half as select 1");
        }
        wait_caught_up(&primary, &standby);
        if on_border {
            // Everything up to the end of a segment, and nothing behind it: the server must not write on.
            primary.stop(Stop::Immediate);
        }
        standby.promote();
        standby.execute("create table after_the_switch as select 1");
        let last = write_wal(&standby, 2);
        assert!(last.starts_with("00000002"), "{last}");
        let key = format!("wal_005/{last}.zst");
        wait_for(PATIENCE, "the new timeline in the archive", || {
            archive.get(&key).is_some()
        });
        assert!(archive.get("wal_005/00000002.history.zst").is_some());
        assert!(receiver.has("00000002.history"));
        assert!(compare_with_server(&receiver.spool, &standby) >= 2);
        // What grew of the old timeline is in the whole segments of the new one.
        wait_for(
            PATIENCE,
            "the last growing segment to be the present one",
            || {
                let keys = archive.keys("wal_005/00000001");
                !keys.iter().any(|key| key.contains(".growing"))
            },
        );
        // The run of segments has no hole along the path.
        running.terminate();
        let again = receiver.command(archive.seawall(), &standby).spawn();
        let last = write_wal(&standby, 1);
        let key = format!("wal_005/{last}.zst");
        wait_for(PATIENCE, "a segment after the restart", || {
            archive.get(&key).is_some()
        });
        again.terminate();
    }
}

#[test]
fn the_archive_may_be_down_for_as_long_as_it_likes() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let (server, receiver) = production(&scratch);
    let command = receiver.command(archive.seawall(), &server);
    let mut running = command.env("SEAWALL_RETRY_TIMEOUT", "1s").spawn();
    let first = write_wal(&server, 1);
    let key = |segment: &str| format!("wal_005/{segment}.zst");
    wait_for(PATIENCE, "the first segment", || {
        archive.get(&key(&first)).is_some()
    });

    // The archive goes away; receiving goes on, and nothing leaves the spool.
    let away = scratch.join("away");
    fs::rename(archive.path(), &away).expect("moved");
    let second = write_wal(&server, 2);
    wait_for(PATIENCE, "the segment in the spool", || {
        receiver.has(&second)
    });
    receiver.wait_flushed(&server);
    wait_for(PATIENCE, "a status that says what is wrong", || {
        receiver.status()["last_error"]
            .to_string()
            .contains("archive")
    });
    assert!(!running.has_ended());
    assert!(receiver.has(&second));
    // A receiver that is started meanwhile receives all the same.
    running.kill9();
    let command = receiver.command(archive.seawall(), &server);
    let mut running = command.env("SEAWALL_RETRY_TIMEOUT", "1s").spawn();
    let third = write_wal(&server, 1);
    wait_for(PATIENCE, "a segment without the archive", || {
        receiver.has(&third)
    });
    assert!(!running.has_ended());

    // It comes back, as another mount of the same bytes, and everything gets there.
    run(std::process::Command::new("cp")
        .args(["--archive"])
        .arg(&away)
        .arg(archive.path()));
    wait_for(PATIENCE, "the backlog in the archive", || {
        archive.get(&key(&second)).is_some() && !receiver.has(&second)
    });
    running.terminate();
}

/// A second is the promise, and the other one is the test's own.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Ends a receiver whose archive hangs.
fn end_at_once(running: Running) {
    running.signal(Signal::TERM);
    running.wait(AT_ONCE).ok();
}

#[test]
fn an_archive_that_hangs_holds_up_neither_receiving_nor_the_end() {
    // Given a store that takes connections and never answers,
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let _held: Vec<_> = listener.incoming().collect();
    });
    let (server, receiver) = production(&scratch);
    let seawall = || Seawall::new(&scratch).envs(s3_env(&endpoint, "bucket"));
    // and a spool that tells where to go on,
    let running = receiver.plain(&server).spawn();
    let first = write_wal(&server, 1);
    wait_for(PATIENCE, "the first segment", || receiver.has(&first));
    running.terminate();

    // when a receiver begins, then it is ended while it asks,
    let running = receiver.command(seawall(), &server).spawn();
    wait_for(PATIENCE, "the receiver to connect", || {
        server.number("select count(*) from pg_stat_replication") == 1
    });
    end_at_once(running);

    // or it receives before one request would have been given up,
    let running = receiver.command(seawall(), &server).spawn();
    let last = write_wal(&server, 1);
    let began = Instant::now();
    wait_for(PATIENCE, "the segment", || receiver.has(&last));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    receiver.wait_flushed(&server);
    // and is ended while it uploads.
    end_at_once(running);
    assert!(receiver.has(&last));
}

#[test]
fn an_upload_that_hangs_does_not_hold_up_the_end() {
    let scratch = Scratch::new();
    let proxy = Proxy::start(Minio::plain().port());
    let bucket = Minio::plain().bucket("hanging");
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let archive = Archive::of_witness(&scratch, env, bucket);
    let (server, receiver) = production(&scratch);
    proxy.rule(Rule::new(Fault::Silence).method("PUT").path("wal_005"));
    let running = receiver.command(archive.seawall(), &server).spawn();
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "the upload to hang", || {
        let is_put = |r: &Request| r.method == "PUT" && r.path.contains("wal_005");
        proxy.requests().iter().any(is_put)
    });
    receiver.wait_flushed(&server);
    end_at_once(running);

    // The next life does it again.
    proxy.clear();
    let running = receiver.command(archive.seawall(), &server).spawn();
    let key = format!("wal_005/{last}.zst");
    wait_for(PATIENCE, "the segment in the archive", || {
        archive.get(&key).is_some()
    });
    running.terminate();
}

#[test]
fn a_full_disk_pauses_and_loses_nothing() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let server = server(&scratch, "production").start();
    create_slot(&scratch, &server);
    let disk = Tmpfs::mount(&scratch, "small", 6 << 20);
    give_to_postgres(disk.path(), 0o700);
    let receiver = Receiver {
        scratch: &scratch,
        spool: disk.path().to_path_buf(),
    };
    // The status goes elsewhere: its own file would not fit either.
    let status = scratch.dir("status").join("status.json");
    let command = receiver.plain(&server).arg("--status-file").arg(&status);
    let mut running = command.spawn();
    let last = write_wal(&server, 9);
    wait_for(PATIENCE, "a receiver that pauses", || {
        fs::read_to_string(&status).is_ok_and(|text| text.contains("\"paused\""))
    });
    assert!(!running.has_ended(), "it must not end");
    assert!(!receiver.has(&last));
    // Somebody makes room, segment by segment.
    let kept = scratch.dir("kept");
    wait_for(PATIENCE, "the last segment", || {
        for name in names(&receiver.spool) {
            if name.len() == 24 && name != last {
                let from = receiver.spool.join(&name);
                fs::copy(&from, kept.join(&name)).expect("copied");
                fs::remove_file(&from).expect("removed");
            }
        }
        receiver.has(&last)
    });
    assert!(compare_with_server(&receiver.spool, &server) >= 1);
    running.terminate();
}

#[test]
fn a_spool_that_is_full_still_takes_the_segment_it_has_begun() {
    let scratch = Scratch::new();
    let (server, receiver) = production(&scratch);
    let running = receiver.plain(&server).spawn();
    write_wal(&server, 1);
    server.execute("create table begun as select 1");
    receiver.wait_flushed(&server);
    running.kill9();
    let segments = || {
        let names = names(&receiver.spool).into_iter();
        names.filter(|name| name.len() >= 24).collect::<Vec<_>>()
    };
    let full = segments();
    assert!(full.last().unwrap().ends_with(".partial"), "{full:?}");
    let most = format!("{}MiB", full.len());
    let command = receiver.plain(&server).args(["--spool-max", &most]);
    let running = command.spawn();
    receiver.wait_flushed(&server);
    assert_eq!(segments(), full);
    let last = write_wal(&server, 2);
    wait_for(PATIENCE, "a receiver that pauses", || {
        receiver.status()["state"] == "paused"
    });
    assert_eq!(segments().len(), full.len());
    // One that is killed is not shown as running.
    running.kill9();
    let status = Seawall::new(&scratch).args(["status", "--directory"]);
    let shown = status.arg(&receiver.spool).run().ok().text();
    assert!(shown.contains("NOT RUNNING"), "{shown}");
    assert_eq!(receiver.status()["state"], "not running");
    let running = receiver.plain(&server).spawn();
    wait_for(PATIENCE, "the last segment", || receiver.has(&last));
    running.terminate();
}

#[test]
fn a_gap_is_named_and_accepted_only_by_word() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let (server, receiver) = production(&scratch);
    let command = || receiver.command(archive.seawall(), &server);
    let running = command().spawn();
    let first = write_wal(&server, 1);
    let key = |segment: &str| format!("wal_005/{segment}.zst");
    wait_for(PATIENCE, "the first segment", || {
        archive.get(&key(&first)).is_some()
    });
    running.terminate();

    // Somebody drops the slot and makes it anew: what lies between is gone.
    server.execute("select pg_drop_replication_slot('spool')");
    write_wal(&server, 3);
    server.execute("checkpoint");
    server.execute("select pg_create_physical_replication_slot('spool', true)");
    let restart = server.value("select restart_lsn::text from pg_replication_slots");
    let refused = command().run();
    refused.expect(10, &["--accept-gap", &restart]);
    // So it is for a receiver that begins with nothing: the archive tells how far everything was.
    let fresh = Receiver::new(&scratch, "fresh");
    let fresh = || fresh.command(archive.seawall(), &server);
    fresh().run().expect(10, &["--accept-gap", &restart]);
    // What the slot keeps is not given up.
    write_wal(&server, 2);
    let beyond = server.value("select pg_current_wal_flush_lsn()::text");
    let kept = format!("Say --accept-gap {restart}");
    for command in [command(), fresh()] {
        let refused = command.args(["--accept-gap", &beyond]).run();
        refused.expect(2, &["would give up WAL that the server still has", &kept]);
    }
    // Nor is half of a gap accepted, which would leave a mark that helps nobody.
    let number = |name: &str| u64::from_str_radix(&name[16..], 16).expect("a segment's name");
    let within = format!("0/{:X}", (number(&first) + 2) << 20);
    for command in [command(), fresh()] {
        let refused = command.args(["--accept-gap", &within]).run();
        refused.expect(2, &["leaves WAL missing", &kept]);
    }
    assert!(archive.keys("gaps/").is_empty());

    // Told so, it goes on, and the archive knows what is missing. While that does not answer nothing is accepted.
    let accept = |receiver: &Receiver, restart: &str| {
        let away = scratch.join(format!("away-{}", unique()));
        fs::rename(archive.path(), &away).expect("moved");
        let command = receiver.command(archive.seawall(), &server);
        let command = command.env("SEAWALL_RETRY_TIMEOUT", "1s");
        let running = command.args(["--accept-gap", restart]).spawn();
        wait_for(PATIENCE, "a receiver that waits for the archive", || {
            let error = receiver.status()["last_error"].to_string();
            error.contains("must be asked and told before a gap")
        });
        fs::rename(&away, archive.path()).expect("moved back");
        running
    };
    let running = accept(&receiver, &restart);
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "a segment after the gap", || {
        archive.get(&key(&last)).is_some()
    });
    running.terminate();
    let gaps = archive.keys("gaps/");
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let missing = crate::support::wal::next_name(&first);
    let fetch = archive.seawall().args(["wal-fetch", &missing]);
    let dest = scratch.dir("dest").join("RECOVERYXLOG");
    fetch.arg(&dest).run().expect(210, &["knowingly skipped"]);
    // The gap stays accepted.
    let running = command().spawn();
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "a segment after the restart", || {
        archive.get(&key(&last)).is_some()
    });
    running.terminate();

    // Behind it a second one is found and marked where it begins, also by one that has nothing.
    server.execute("select pg_drop_replication_slot('spool')");
    write_wal(&server, 3);
    server.execute("checkpoint");
    server.execute("select pg_create_physical_replication_slot('spool', true)");
    let restart = server.value("select restart_lsn::text from pg_replication_slots");
    let reached = format!("0/{:X}", (number(&last) + 1) << 20);
    let newer = Receiver::new(&scratch, "newer");
    let refused = newer.command(archive.seawall(), &server).run();
    refused.expect(10, &[&format!("reach up to {reached}"), &restart]);
    let running = accept(&newer, &restart);
    wait_for(PATIENCE, "the second mark", || {
        archive.keys("gaps/").len() == 2
    });
    running.terminate();
    let begins = format!("_{:016X}_", (number(&last) + 1) << 20);
    let gaps = archive.keys("gaps/");
    assert!(gaps.iter().any(|key| key.contains(&begins)), "{gaps:?}");
}

#[test]
fn what_the_server_removed_is_no_gap_before_the_archive_was_asked() {
    // Given a receiver without a slot that was down while another one filled the archive,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let server = server(&scratch, "production").start();
    let late = Receiver::new(&scratch, "late");
    let receiver = || late.without_slot(archive.seawall(), &server);
    let in_archive = |segment: &str| archive.get(&format!("wal_005/{segment}.zst")).is_some();
    let running = receiver().args(["--keep-local", "always"]).spawn();
    wait_for(PATIENCE, "the receiver to stream", || {
        late.status()["state"] == "streaming"
    });
    let first = write_wal(&server, 1);
    wait_for(PATIENCE, "the first segment", || in_archive(&first));
    running.terminate();
    create_slot(&scratch, &server);
    let other = Receiver::new(&scratch, "other");
    let running = other.command(archive.seawall(), &server).spawn();
    let last = write_wal(&server, 3);
    wait_for(PATIENCE, "the others", || in_archive(&last));
    running.terminate();
    server.execute("select pg_drop_replication_slot('spool')");
    let missed = server
        .data()
        .join("pg_wal")
        .join(crate::support::wal::next_name(&first));
    wait_for(PATIENCE, "the server to remove them", || {
        write_wal(&server, 1);
        server.execute("checkpoint");
        !missed.exists()
    });

    // when it starts while the archive is down, then it waits,
    let away = scratch.join("away");
    fs::rename(archive.path(), &away).expect("moved");
    let mut running = receiver().env("SEAWALL_RETRY_TIMEOUT", "1s").spawn();
    wait_for(PATIENCE, "a status that says what is missing", || {
        let error = late.status()["last_error"].to_string();
        error.contains("the archive must be asked whether this is a gap")
    });
    assert!(!running.has_ended());

    // and when the archive is back, it is a gap only if the archive does not have it either.
    fs::rename(&away, archive.path()).expect("moved back");
    let ended = running.wait(PATIENCE);
    let next = crate::support::wal::next_name(&last);
    ended.expect(10, &["has already been removed", &next]);
}

#[test]
fn a_history_that_the_archive_will_not_take_holds_up_its_timeline_alone() {
    // Given a spool full of the first timeline, a server on the second, and an archive that knows another second one,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let (mut server, receiver) = production(&scratch);
    let running = receiver.plain(&server).spawn();
    let last = write_wal(&server, 6);
    wait_for(PATIENCE, "the first timeline in the spool", || {
        receiver.has(&last)
    });
    receiver.wait_flushed(&server);
    running.terminate();
    server.stop(Stop::Fast);
    fs::write(server.data().join("standby.signal"), "").expect("standby.signal");
    give_to_postgres(&server.data().join("standby.signal"), 0o600);
    server.start();
    server.promote();
    let running = receiver.plain(&server).spawn();
    let newest = write_wal(&server, 2);
    assert!(newest.starts_with("00000002"), "{newest}");
    receiver.wait_flushed(&server);
    running.terminate();
    let history = archive.path().join("wal_005/00000002.history");
    fs::create_dir_all(history.parent().expect("a directory")).expect("wal_005");
    fs::write(&history, "1\t0/1000028\tanother promotion\n").expect("a history");
    give_to_postgres(archive.path(), 0o700);
    give_to_postgres(history.parent().expect("a directory"), 0o700);
    give_to_postgres(&history, 0o600);

    // when it receives, then all of the first timeline is archived, and nothing of the second.
    let in_archive = |segment: &str| archive.get(&format!("wal_005/{segment}.zst")).is_some();
    let running = receiver.command(archive.seawall(), &server);
    let running = running.env("SEAWALL_UPLOAD_THREADS", "2");
    let running = running.args(["--keep-local", "always"]).spawn();
    wait_for(PATIENCE, "the first timeline in the archive", || {
        in_archive(&last) && receiver.has(&format!("{last}.done"))
    });
    receiver.wait_flushed(&server);
    assert!(receiver.has(&newest) && !in_archive(&newest));
    running.signal(Signal::TERM);
    let stderr = running.wait(PATIENCE).ok().stderr;
    assert!(stderr.contains("00000002.history"), "{stderr}");

    // When the operator has settled it, then the second follows.
    fs::remove_file(&history).expect("the history");
    let running = receiver.command(archive.seawall(), &server).spawn();
    wait_for(PATIENCE, "the second timeline in the archive", || {
        in_archive(&newest) && archive.get("wal_005/00000002.history.zst").is_some()
    });
    running.terminate();
}

#[test]
fn what_a_killed_receiver_left_half_written_is_removed() {
    let scratch = Scratch::new();
    let server = server(&scratch, "production").start();
    let receiver = Receiver::new(&scratch, "spool");
    let left = [".00000002.history.1-2-3.seawall-tmp", "notes.txt"];
    for name in left {
        fs::write(receiver.spool.join(name), "half").expect("a file");
        give_to_postgres(&receiver.spool.join(name), 0o600);
    }
    create_slot(&scratch, &server);
    let running = receiver.plain(&server).spawn();
    receiver.wait_flushed(&server);
    assert_eq!(left.map(|name| receiver.has(name)), [false, true]);
    running.terminate();
}

#[test]
fn another_cluster_is_refused_by_spool_and_archive() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let ours = server(&scratch, "ours").start();
    let other = server(&scratch, "other").start();
    for server in [&ours, &other] {
        create_slot(&scratch, server);
    }
    let receiver = Receiver::new(&scratch, "spool");
    let position = ours.value("select pg_current_wal_lsn()::text");
    write_wal(&ours, 1);
    let words = ["--no-loop", "--endpos", &position, "--keep-local", "always"];
    receiver
        .command(archive.seawall(), &ours)
        .args(words)
        .run()
        .ok();
    let id =
        |server: &Cluster| server.value("select system_identifier::text from pg_control_system()");
    let both = [id(&ours), id(&other)];
    let both = [both[0].as_str(), both[1].as_str()];
    receiver.plain(&other).run().expect(5, &both);
    let empty = Receiver::new(&scratch, "empty");
    empty
        .command(archive.seawall(), &other)
        .run()
        .expect(5, &both);
    assert_eq!(
        archive
            .keys("wal_005/")
            .iter()
            .filter(|key| key.contains(".history"))
            .count(),
        0
    );
}

#[test]
fn one_receiver_per_spool_and_a_busy_slot_is_waited_for() {
    let scratch = Scratch::new();
    let (server, receiver) = production(&scratch);
    let running = receiver.plain(&server).spawn();
    write_wal(&server, 1);
    receiver.wait_flushed(&server);
    let pid = running.pid().to_string();
    receiver
        .plain(&server)
        .run()
        .expect(4, &["seawall.lock", &pid]);
    // Another spool, the same slot: it waits until the slot is free.
    let second = Receiver::new(&scratch, "second");
    let mut waiting = second.plain(&server).spawn();
    wait_for(PATIENCE, "a receiver that waits for the slot", || {
        second.has("seawall-status.json")
            && second.status()["last_error"]
                .to_string()
                .contains("is active")
    });
    assert!(!waiting.has_ended());
    running.terminate();
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "the second receiver's segment", || {
        second.has(&last)
    });
    waiting.terminate();
}

#[test]
fn with_growing_segments_the_store_alone_has_the_last_commit() {
    // Given a server whose commits wait for the store,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = server(&scratch, "production").start();
    create_slot(&scratch, &production);
    production.execute("create table paid (n bigint primary key)");
    let receiver = Receiver::new(&scratch, "spool");
    let words = [
        "--synchronous",
        "--acknowledge",
        "archived",
        "--partial-every",
        "100ms",
    ];
    let running = receiver
        .command(archive.seawall(), &production)
        .args(words)
        .spawn();
    let push = archive.seawall_for(&production).arg("backup-push");
    push.arg(production.data())
        .args(["--wal-timeout", "1min"])
        .run()
        .ok();
    production.configure("synchronous_standby_names", "seawall");
    production.reload();
    for n in 1..=5 {
        production.execute(&format!("insert into paid values ({n})"));
    }
    // when server and spool are lost together,
    production.kill9();
    running.kill9();
    fs::remove_dir_all(&receiver.spool).expect("removed");

    // then the archive has every commit.
    let mut copy = archive.copy(&["--partial"]);
    copy.start();
    copy.wait_recovered();
    assert_eq!(copy.number("select count(*) from paid"), 5);
}

#[test]
fn what_only_a_human_can_mend_ends_it_and_says_what_to_do() {
    let scratch = Scratch::new();
    let server = server(&scratch, "production")
        .config("wal_level", "logical")
        .auth_host("scram-sha-256")
        .hba(
            "local all postgres trust\nlocal replication postgres trust\n\
             host replication all 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n",
        )
        .start();
    for role in ["standby replication", "clerk", "stranger replication"] {
        server.execute(&format!("create role {role} login password 'right'"));
    }
    let hba = server.data().join("pg_hba.conf");
    let lines = fs::read_to_string(&hba).expect("pg_hba.conf");
    fs::write(
        &hba,
        format!("host replication stranger all reject\n{lines}"),
    )
    .expect("pg_hba.conf");
    server.reload();
    let receiver = Receiver::new(&scratch, "spool");
    let as_role = |user: &str, password: &str| {
        let seawall = Seawall::new(&scratch).env("PGPASSWORD", password);
        let seawall = seawall.args(["wal-receive", "--slot", "spool", "--host", "127.0.0.1"]);
        let seawall = seawall.arg("--port").arg(server.port().to_string());
        let seawall = seawall.args(["--username", user]);
        seawall.arg("--directory").arg(&receiver.spool)
    };

    // Logins that are refused, as the server says it, and what is needed.
    as_role("standby", "wrong")
        .run()
        .expect(
            7,
            &["password authentication failed", "\"standby\"", "~/.pgpass"],
        )
        .without(&["wrong"]);
    as_role("clerk", "right")
        .run()
        .expect(7, &["replication role", "ALTER ROLE", "REPLICATION"]);
    as_role("stranger", "right")
        .run()
        .expect(7, &["pg_hba.conf needs a line", "stranger"]);

    // Who wants to be asked for the password needs a terminal.
    as_role("standby", "wrong")
        .arg("--password")
        .run()
        .expect(2, &["no terminal", "PGPASSWORD"]);
    let program = Seawall::new(&scratch).shell_line();
    let line = format!(
        "{program} wal-receive -W --create-slot -S asked -h 127.0.0.1 -p {} -U standby",
        server.port()
    );
    let [typed, shown] = ["typed", "shown"].map(|name| scratch.join(name));
    run(std::process::Command::new("mkfifo").arg(&typed));
    give_to_postgres(&typed, 0o600);
    let [at, into] = [&typed, &shown].map(|path| path.display().to_string());
    let script = r#"exec script --quiet --return --flush --command "$1" "$2" <>"$3""#;
    let asked = Seawall::of(&scratch, "/bin/sh").args(["-c", script, "sh"]);
    let asked = asked.args([&line, &into, &at]).spawn();
    wait_for(PATIENCE, "the question", || {
        fs::read_to_string(&shown).is_ok_and(|text| text.contains("Password: "))
    });
    fs::write(&typed, "right\n").expect("typed");
    let asked = asked.wait(PATIENCE).ok();
    assert!(!asked.text().contains("right"), "{asked:?}");

    // A slot that is not there, and one that the server gave up.
    receiver.plain(&server).run().expect(
        9,
        &[
            "no replication slot \"spool\"",
            "--create-slot --slot spool",
        ],
    );
    server.execute("select pg_create_logical_replication_slot('spool', 'pgoutput')");
    let logical = receiver.plain(&server).run();
    logical.expect(3, &["slot \"spool\" is logical", "another name"]);
    server.execute("select pg_drop_replication_slot('spool')");
    create_slot(&scratch, &server);
    server.configure("max_slot_wal_keep_size", "1MB");
    server.configure("max_wal_size", "2MB");
    server.configure("min_wal_size", "2MB");
    server.reload();
    wait_for(PATIENCE, "the loss of the slot", || {
        write_wal(&server, 2);
        server.execute("checkpoint");
        server.value("select wal_status from pg_replication_slots") == "lost"
    });
    receiver.plain(&server).run().expect(
        10,
        &[
            "\"spool\" is lost",
            "max_slot_wal_keep_size",
            "--accept-gap",
        ],
    );
    server.execute("select pg_drop_replication_slot('spool')");
    create_slot(&scratch, &server);

    // What is in the spool does not fit, or nothing can be put there.
    let name = "000000010000000000000001";
    let odd = scratch.file("spool/".to_string() + name, vec![1; 1000]);
    give_to_postgres(&odd, 0o600);
    receiver
        .plain(&server)
        .run()
        .expect(6, &[name, "is no WAL", "page magic"]);
    fs::write(&odd, vec![0; 1000]).expect("a short file");
    receiver
        .plain(&server)
        .run()
        .expect(6, &[name, "1000 bytes", "1048576"]);
    fs::rename(&odd, receiver.spool.join(format!("{name}.gz"))).expect("renamed");
    receiver.plain(&server).run().expect(3, &[".gz"]);
    fs::remove_file(receiver.spool.join(format!("{name}.gz"))).expect("removed");
    // A server's own WAL is not what was received: it would go once it is archived.
    let copied = scratch.dir("pg_wal/archive_status");
    for directory in [
        server.data().to_path_buf(),
        server.data().join("pg_wal"),
        copied.parent().expect("pg_wal").to_path_buf(),
    ] {
        let receive = Seawall::new(&scratch).envs(server.client_env());
        let receive = receive.args(["wal-receive", "--directory"]).arg(&directory);
        receive.run().expect(3, &["belongs to a server"]);
        assert!(!directory.join("seawall.lock").exists());
    }
    let nowhere = Seawall::new(&scratch).envs(server.client_env());
    let nowhere = nowhere.args(["wal-receive", "--directory"]);
    nowhere
        .arg(scratch.join("nowhere"))
        .run()
        .expect(9, &["nowhere\" does not exist", "Make it"]);
    give_to_postgres(&receiver.spool, 0o500);
    receiver
        .plain(&server)
        .run()
        .expect(7, &["temporary file in", "spool\"", "ermission denied"]);
    give_to_postgres(&receiver.spool, 0o700);

    // None of that did any harm.
    let running = receiver.plain(&server).spawn();
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "a segment after all", || receiver.has(&last));
    running.terminate();
}

#[test]
fn a_fast_shutdown_waits_for_the_archive_but_not_for_ever() {
    // Given a server that waits for what the store has, which gets it once an hour,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let (mut server, receiver) = production(&scratch);
    let words = ["--acknowledge", "archived", "--partial-every", "1h"];
    let command = receiver.command(archive.seawall(), &server).args(words);
    let running = command.env("SEAWALL_RETRY_TIMEOUT", "1s").spawn();
    let streams = |server: &Cluster| {
        let streaming = "select count(*) from pg_stat_replication where state = 'streaming'";
        server.number(streaming) == 1
    };
    wait_for(PATIENCE, "the receiver", || streams(&server));
    server.execute("create table paid as select 1 as n");

    // when it is shut down, then the archive gets the rest at once.
    server.stop(Stop::Fast);
    let position = |what: &str| match &receiver.status()[what]["lsn"] {
        Value::Null => 0,
        lsn => crate::support::archive::lsn(lsn),
    };
    wait_for(PATIENCE, "all in the archive", || {
        position("flushed") > 0 && position("archived") == position("flushed")
    });

    // When the archive is down, it is let go all the same, and nothing is told to be safe that is not.
    server.start();
    wait_for(PATIENCE, "the receiver again", || streams(&server));
    let away = scratch.join("away");
    fs::rename(archive.path(), &away).expect("moved");
    server.execute("insert into paid values (2)");
    server.stop(Stop::Fast);
    assert!(position("archived") < position("flushed"));
    running.terminate();
}

#[test]
fn segments_of_another_cluster_are_not_sent() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let other = server(&scratch, "other").start();
    let stranger = write_wal(&other, 20);
    let (server, receiver) = production(&scratch);
    let running = receiver.command(archive.seawall(), &server).spawn();
    let first = write_wal(&server, 1);
    let key = |segment: &str| format!("wal_005/{segment}.zst");
    wait_for(PATIENCE, "the first segment", || {
        archive.get(&key(&first)).is_some()
    });
    assert!(stranger > first, "{stranger} {first}");
    let file = receiver.spool.join(&stranger);
    fs::copy(other.data().join("pg_wal").join(&stranger), &file).expect("copied");
    give_to_postgres(&file, 0o600);
    write_wal(&server, 1);
    wait_for(PATIENCE, "a status that names the stranger", || {
        let error = receiver.status()["last_error"].to_string();
        error.contains("system identifier") || error.contains("another cluster")
    });
    running.terminate();
    let refused = receiver.command(archive.seawall(), &server).run();
    refused.expect(5, &["WAL of another cluster", &stranger]);
    assert!(archive.get(&key(&stranger)).is_none());
}

#[test]
fn the_slot_is_asked_of_the_server_that_sends() {
    // Given two servers of which the first one lets nobody replicate,
    let scratch = Scratch::new();
    let first = server(&scratch, "first")
        .config("max_wal_senders", "0")
        .start();
    let second = server(&scratch, "second").start();
    create_slot(&scratch, &second);
    let receiver = Receiver::new(&scratch, "spool");
    let places = [&first, &second].map(|server| (server.sockets().display(), server.port()));
    let [(a, at), (b, bt)] = places;
    let conninfo = format!("host={a},{b} port={at},{bt} user=postgres");
    let seawall = Seawall::new(&scratch).args(["wal-receive", "--slot", "spool"]);
    let seawall = seawall.args(["--dbname", &conninfo, "--directory"]);
    let running = seawall.arg(&receiver.spool).spawn();
    let last = write_wal(&second, 1);
    wait_for(PATIENCE, "a segment", || receiver.has(&last));
    running.terminate();
}

#[test]
fn a_standby_that_starts_again_is_waited_for() {
    let scratch = Scratch::new();
    let mut primary = server(&scratch, "primary")
        .config("wal_keep_size", "100MB")
        .start();
    let mut standby = standby(&scratch, &mut primary, "standby");
    standby.execute("select pg_create_physical_replication_slot('spool', true)");
    let receiver = Receiver::new(&scratch, "spool");
    let mut running = receiver.plain(&standby).spawn();
    standby.configure("recovery_min_apply_delay", "1h");
    standby.reload();
    let last = write_wal(&primary, 3);
    wait_for(PATIENCE, "the segment", || receiver.has(&last));

    // It has it all and has replayed nothing of it: after a start that is all it says it has.
    primary.execute("select pg_switch_wal()");
    standby.stop(Stop::Fast);
    fs::rename(primary.sockets(), scratch.join("away")).expect("moved");
    standby.start();
    wait_for(PATIENCE, "the standby to be behind", || {
        let error = receiver.status()["last_error"].to_string();
        error.contains("the standby has WAL up to")
    });
    assert!(!running.has_ended());
    fs::rename(scratch.join("away"), primary.sockets()).expect("moved back");
    standby.configure("recovery_min_apply_delay", "0");
    standby.reload();
    let last = write_wal(&primary, 1);
    wait_for(PATIENCE, "a segment afterwards", || receiver.has(&last));
    running.terminate();
}

#[test]
fn another_server_at_the_same_address_ends_it() {
    let scratch = Scratch::new();
    let (mut production, receiver) = production(&scratch);
    let running = receiver.plain(&production).spawn();
    let last = write_wal(&production, 1);
    wait_for(PATIENCE, "a segment", || receiver.has(&last));
    let ours = production.value("select system_identifier::text from pg_control_system()");
    let other = server(&scratch, "other").create();
    production.stop(Stop::Immediate);
    fs::rename(production.data(), scratch.join("lost")).expect("moved away");
    fs::rename(other.data(), production.data()).expect("moved there");
    production.start();
    let ended = running.wait(PATIENCE);
    ended.expect(5, &[&ours, "another cluster"]);
    assert!(receiver.has(&last));
}

#[test]
fn a_server_that_stops_answering_is_given_up_and_met_again() {
    let scratch = Scratch::new();
    let (server, receiver) = production(&scratch);
    let patient = receiver.plain(&server).args(["--receive-timeout", "2s"]);
    let running = patient.spawn();
    receiver.wait_flushed(&server);
    let walsender = server.number("select pid from pg_stat_replication");
    let walsender = rustix::process::Pid::from_raw(walsender as i32).expect("a process");
    rustix::process::kill_process(walsender, Signal::STOP).expect("stopped");
    // The silent one still has the slot.
    wait_for(PATIENCE, "the next connection", || {
        let error = receiver.status()["last_error"].to_string();
        error.contains("is active for PID")
    });
    rustix::process::kill_process(walsender, Signal::CONT).expect("continued");
    let last = write_wal(&server, 1);
    wait_for(PATIENCE, "a segment afterwards", || receiver.has(&last));
    running.signal(Signal::TERM);
    let stderr = running.wait(PATIENCE).ok().stderr;
    assert!(
        stderr.contains("the server has been silent for 2 s"),
        "{stderr}"
    );
}

#[test]
fn segments_of_any_size() {
    // 1 MiB is what all other tests have.
    let sizes: &[u32] = match rounds(1, 2) {
        1 => &[64],
        _ => &[64, 1024],
    };
    for mib in sizes {
        let scratch = Scratch::new();
        let archive = Archive::directory(&scratch, "archive");
        let server = server(&scratch, "production")
            .wal_segsize_mib(*mib)
            .config("min_wal_size", format!("{}MB", mib * 2))
            .config("max_wal_size", format!("{}MB", mib * 4))
            .start();
        create_slot(&scratch, &server);
        let receiver = Receiver::new(&scratch, "spool");
        let command = receiver.command(archive.seawall(), &server);
        let running = command.args(["--keep-local", "always"]).spawn();
        let last = write_wal(&server, 2);
        let key = format!("wal_005/{last}.zst");
        wait_for(PATIENCE, "the segment in the archive", || {
            archive.get(&key).is_some()
        });
        assert_eq!(compare_with_server(&receiver.spool, &server), 1);
        // The rest of the second segment comes at once, so its file is made in the other way.
        let last = write_wal(&server, 1);
        wait_for(PATIENCE, "the next one", || receiver.has(&last));
        let peak = peak_kib(running.pid());
        assert!(peak <= 64 << 10, "{peak} KiB");
        running.terminate();
    }
}

#[test]
fn what_is_archived_while_the_receiver_connects_counts() {
    // Given a spool with a whole segment that waits for the archive, and the next one begun,
    let scratch = Scratch::new();
    let proxy = Proxy::start(Minio::plain().port());
    let bucket = Minio::plain().bucket("meanwhile");
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let archive = Archive::of_witness(&scratch, env, bucket);
    let (server, receiver) = production(&scratch);
    let running = receiver.plain(&server).arg("--synchronous").spawn();
    let whole = write_wal(&server, 1);
    server.execute("create table begun as select 1");
    wait_for(PATIENCE, "the segment", || receiver.has(&whole));
    receiver.wait_flushed(&server);
    running.terminate();

    // when it gets into the archive after that was asked what it has, and before it has answered,
    let put = Rule::new(Fault::Late(Duration::from_millis(600)));
    proxy.rule(put.method("PUT").path(&format!("{whole}.zst")));
    let list = Rule::new(Fault::SlowBody(100, Duration::from_millis(400)));
    proxy.rule(list.method("GET").query("start-after").times(1));
    let words = ["--synchronous", "--partial-every", "200ms"];
    let running = receiver
        .command(archive.seawall(), &server)
        .args(words)
        .spawn();

    // then nothing is missing before the one that grows.
    let grows = crate::support::wal::next_name(&whole);
    let key = format!("wal_005/{grows}.growing.zst");
    wait_for(PATIENCE, "the growing segment", || {
        archive.get(&key).is_some()
    });
    running.terminate();
}
