//! Look-ahead of `wal-push`: what waits is archived along with what was asked for, in order and without a hole, and
//! nothing else changes for PostgreSQL.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::archive::{Archive, unzstd};
use crate::support::chance::Chance;
use crate::support::cluster::Cluster;
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Request, Rule};
use crate::support::seawall::Seawall;
use crate::support::wal::{Wal, WalFile};
use crate::support::{Scratch, rounds, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster's directory with five segments that wait, and an archive behind a proxy.
struct Site {
    scratch: Scratch,
    proxy: Proxy,
    data: PathBuf,
}

fn segments() -> &'static [WalFile] {
    &Wal::shared().segments
}

fn key(index: usize) -> String {
    format!("wal_005/{}.zst", segments()[index].name)
}

impl Site {
    fn new() -> Site {
        let scratch = Scratch::new();
        let data = Wal::shared().data_dir(&scratch, "data");
        scratch.dir("data/pg_wal/archive_status");
        let proxy = Proxy::start(Minio::plain().port());
        let site = Site {
            scratch,
            proxy,
            data,
        };
        (0..segments().len()).for_each(|index| site.ready(index));
        site
    }

    fn note(&self, index: usize, state: &str) -> PathBuf {
        let name = format!("{}.{state}", segments()[index].name);
        self.data.join("pg_wal/archive_status").join(name)
    }

    fn ready(&self, index: usize) {
        self.scratch.file(self.note(index, "ready"), "");
    }

    fn notes(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.data.join("pg_wal/archive_status")).expect("the notes");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        entries
            .map(|e| name(e).into_string().expect("a name"))
            .collect()
    }

    fn archive(&self) -> Archive<'_> {
        let bucket = Minio::plain().bucket("ahead");
        let env = s3_env(&self.proxy.endpoint(), &bucket.name());
        Archive::of_witness(&self.scratch, env, bucket)
    }

    /// wal-push as PostgreSQL runs it; it does not try for long.
    fn push(&self, archive: &Archive, index: usize) -> Seawall {
        let path = format!("pg_wal/{}", segments()[index].name);
        let seawall = archive.seawall().cwd(&self.data);
        let seawall = seawall.env("SEAWALL_RETRY_TIMEOUT", "1s");
        seawall.args(["wal-push", &path])
    }

    /// Which of the segments are archived, each with its bytes.
    fn archived(&self, archive: &Archive) -> Vec<usize> {
        let there = |index: &usize| {
            let object = archive.get(&key(*index));
            let same = |object: Vec<u8>| unzstd(&object) == segments()[*index].bytes;
            object.is_some_and(|object| {
                assert!(same(object), "{index}");
                true
            })
        };
        (0..segments().len()).filter(there).collect()
    }
}

#[test]
fn what_waits_is_archived_along_and_asked_for_without_the_network() {
    // Given five segments that wait,
    let site = Site::new();
    let archive = site.archive();
    let notes = site.notes();

    // when PostgreSQL asks for the first, then all are archived, one after the other, and its notes are as they were.
    let said = site.push(&archive, 0).run().ok().stderr;
    assert!(
        said.contains("archived ahead") || said.contains(" ahead ("),
        "{said}"
    );
    assert_eq!(site.archived(&archive), [0, 1, 2, 3, 4]);
    assert_eq!(site.notes(), notes);
    let requests = site.proxy.take_requests();
    let puts = requests.iter().filter(|r| r.method == "PUT");
    let puts: Vec<_> = puts.filter_map(|r| r.path.split_once("wal_005/")).collect();
    let names: Vec<_> = puts.iter().map(|(_, name)| name.to_string()).collect();
    let expected = segments().iter().map(|s| format!("{}.zst", s.name));
    assert_eq!(names, expected.collect::<Vec<_>>());

    // What was archived ahead is not looked at again.
    site.push(&archive, 0)
        .run()
        .expect(0, &["archived already"]);
    let requests = site.proxy.take_requests();
    let asked = |r: &Request| format!("{}{}", r.path, r.query).contains(&segments()[1].name);
    assert!(!requests.iter().any(asked), "{requests:?}");

    // When it asks for the others, then the network is not needed, again and again;
    site.proxy.refuse();
    for index in [1, 2, 3, 4, 1] {
        site.push(&archive, index)
            .run()
            .expect(0, &["was archived ahead"]);
    }
    // but for bytes that are not the archived ones, in another archive, or for another cluster it is.
    let path = site.data.join("pg_wal").join(&segments()[3].name);
    fs::write(&path, &segments()[3].with_other_bytes().bytes).expect("other bytes");
    site.push(&archive, 3).run().expect(8, &[]);
    let elsewhere = site
        .push(&archive, 2)
        .env("SEAWALL_PREFIX", "s3://elsewhere/x");
    elsewhere.run().expect(8, &[]);
    site.proxy.listen();
    let other = site.push(&archive, 3).run();
    other.expect(5, &["archived already with other bytes"]);
    assert_eq!(
        archive.get(&key(3)).map(|o| unzstd(&o)),
        Some(segments()[3].bytes.clone())
    );
}

#[test]
fn only_what_is_finished_and_only_so_many_are_taken_along() {
    let site = Site::new();
    let archive = site.archive();
    let ahead = |count: &str, index| site.push(&archive, index).env("SEAWALL_WAL_AHEAD", count);
    ahead("0", 0).run().ok();
    assert_eq!(site.archived(&archive), [0]);
    // The server writes to the fourth.
    fs::remove_file(site.note(3, "ready")).expect("a note");
    ahead("8", 1).run().ok();
    assert_eq!(site.archived(&archive), [0, 1, 2]);
    site.ready(3);
    // What was archived ahead before counts, and is not read again.
    site.push(&archive, 2)
        .run()
        .expect(0, &["was archived ahead"]);
    ahead("1", 3).run().ok();
    assert_eq!(site.archived(&archive), [0, 1, 2, 3, 4]);
    // Nobody asks for what is archived any more.
    ahead("8", 4).run().expect(0, &["was archived ahead"]);
    let again = site.push(&archive, 0).run();
    again.expect(0, &["archived already"]);
}

#[test]
fn what_fails_ahead_is_nobodys_error_and_leaves_no_hole() {
    // Given a store that does not take the third,
    let site = Site::new();
    let archive = site.archive();
    let denied = || Rule::new(Fault::s3_error(403, "AccessDenied")).method("PUT");
    site.proxy.rule(denied().path(&segments()[2].name));
    site.push(&archive, 0).run().ok();
    assert_eq!(site.archived(&archive), [0, 1]);
    site.push(&archive, 1)
        .run()
        .expect(0, &["was archived ahead"]);
    site.push(&archive, 2).run().expect(7, &[]);
    assert_eq!(site.archived(&archive), [0, 1]);
    site.proxy.clear();
    site.push(&archive, 2).run().ok();
    assert_eq!(site.archived(&archive), [0, 1, 2, 3, 4]);
}

#[test]
fn without_its_own_file_nothing_is_taken_along() {
    let site = Site::new();
    let archive = site.archive();
    let other = segments()[0].with_other_bytes();
    let path = site.data.join("pg_wal").join(&other.name);
    site.push(&archive, 0)
        .env("SEAWALL_WAL_AHEAD", "0")
        .run()
        .ok();
    fs::write(&path, &other.bytes).expect("other bytes");
    let refused = site.push(&archive, 0).run();
    refused.expect(5, &["archived already with other bytes"]);
    assert_eq!(site.archived(&archive), [0]);
    // Nor is anything that is not what its name says.
    fs::write(&path, &segments()[0].bytes).expect("its bytes");
    let broken = site.data.join("pg_wal").join(&segments()[2].name);
    fs::write(&broken, &segments()[3].bytes).expect("a wrong segment");
    site.push(&archive, 0)
        .run()
        .expect(0, &["looking ahead has ended"]);
    assert_eq!(site.archived(&archive), [0, 1]);
}

/// A store that falls silent after the first: PostgreSQL, and a server that shuts down, wait for us.
#[test]
fn what_hangs_ahead_does_not_hold_up_the_answer_for_long() {
    let site = Site::new();
    let archive = site.archive();
    let silence = Rule::new(Fault::Silence).method("PUT");
    site.proxy.rule(silence.path(&segments()[1].name));
    let asked = || {
        let requests = site.proxy.requests();
        requests.iter().any(|r| r.fault.is_some())
    };
    let push = || {
        let push = site.push(&archive, 0).env("SEAWALL_RETRY_TIMEOUT", "1h");
        push.env("SEAWALL_REQUEST_TIMEOUT", "1h")
    };
    let running = push().spawn();
    wait_for(PATIENCE, "a silent PUT", asked);
    running.signal(Signal::TERM);
    // The file that was asked for is archived, and that is the answer.
    running.wait(PATIENCE).ok();
    assert_eq!(site.archived(&archive), [0]);
    push().spawn().wait(PATIENCE).ok();
    assert_eq!(site.archived(&archive), [0]);
}

/// As PostgreSQL does it: ask for the oldest that waits, again until it is archived, and then say so. Whatever moment
/// the calls are killed at, what it takes for archived is.
#[test]
fn pushes_killed_at_any_moment_archive_everything() {
    let mut chance = Chance::new();
    for round in 0..rounds(10, 200) {
        let site = Site::new();
        let archive = site.archive();
        for index in 0..segments().len() {
            let mut done = false;
            for _ in 0..chance.below(3) {
                let push = site.push(&archive, index);
                let running = push.env("SEAWALL_RETRY_TIMEOUT", "30s").spawn();
                std::thread::sleep(chance.millis(0..120));
                running.signal(Signal::KILL);
                done = running.wait(PATIENCE).code == Some(0);
                if done {
                    break;
                }
            }
            if !done {
                site.push(&archive, index).run().ok();
            }
            fs::rename(site.note(index, "ready"), site.note(index, "done")).expect("its note");
            let archived = site.archived(&archive);
            assert!(
                archived.len() > index,
                "round {round}, {index}: {archived:?}"
            );
            // No hole.
            assert_eq!(archived, (0..archived.len()).collect::<Vec<_>>());
        }
    }
}

/// A copy of the cluster on the same host archives into the same place, by mistake: what the first one archived ahead
/// does not let the second one pass the place where they differ.
#[test]
fn a_copy_that_archives_here_too_stops_where_it_differs() {
    let site = Site::new();
    let archive = site.archive();
    let first = site.push(&archive, 0).env("SEAWALL_WAL_AHEAD", "1");
    first.run().ok();
    assert_eq!(site.archived(&archive), [0, 1]);
    for segment in &segments()[1..] {
        let path = site.data.join("pg_wal").join(&segment.name);
        fs::write(path, segment.with_other_bytes().bytes).expect("the copy's");
    }
    let copy = site.push(&archive, 0).run();
    copy.expect(
        0,
        &[
            "looking ahead has ended",
            "archived already with other bytes",
        ],
    );
    assert_eq!(site.archived(&archive), [0, 1]);
    // The first one goes on as if nothing had been.
    for segment in &segments()[1..] {
        let path = site.data.join("pg_wal").join(&segment.name);
        fs::write(path, &segment.bytes).expect("the first one's");
    }
    site.push(&archive, 1).run().ok();
    assert_eq!(site.archived(&archive), [0, 1, 2, 3, 4]);
}

/// Where nothing can be noted, each call would send everything again.
#[test]
fn without_a_ledger_nothing_is_taken_along() {
    let site = Site::new();
    let archive = site.archive();
    site.push(&archive, 0)
        .env("SEAWALL_WAL_AHEAD", "0")
        .run()
        .ok();
    let state = site.scratch.join("state");
    let state = fs::read_dir(&state).expect("the state directory");
    for archive in state {
        site.scratch.file(
            archive.expect("an entry").path().join("ahead"),
            "in the way",
        );
    }
    site.push(&archive, 1)
        .run()
        .expect(0, &["looking ahead has ended"]);
    assert_eq!(site.archived(&archive), [0, 1]);
}

/// The real archiver with a backlog.
#[test]
fn matrix_a_backlog_of_the_real_archiver_is_archived_whole() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    // Given a server whose archiving has failed for a while,
    let server = Cluster::builder(&scratch, "production")
        .archive_command("false")
        .start();
    server.execute("create table t as select n, md5(n::text) from generate_series(1, 1000) n");
    let names: Vec<String> = (0..20)
        .map(|_| {
            server.execute("insert into t select n, md5(n::text) from generate_series(1, 500) n");
            server.switch_wal()
        })
        .collect();
    let in_wal = |name: &str| fs::read(server.data().join("pg_wal").join(name)).expect("a segment");
    let segments: Vec<_> = names.iter().map(|name| (name, in_wal(name))).collect();

    // when it works again, then all is archived, and the server is told so.
    server.configure("archive_command", &archive.archive_command());
    server.reload();
    server.wait_archived(names.last().expect("twenty"));
    for (name, bytes) in segments {
        let object = archive
            .get(&format!("wal_005/{name}.zst"))
            .expect("archived");
        assert!(unzstd(&object) == bytes, "{name}");
    }
    let log = server.log();
    let ahead = log.lines().filter(|line| line.contains(" ahead (")).count();
    assert!(
        ahead >= 10,
        "{ahead} of {} were archived ahead",
        names.len()
    );
}
