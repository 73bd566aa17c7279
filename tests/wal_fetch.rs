//! `wal-fetch`: delivers the file that was asked for, or proves that there is none, or stops recovery.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::archive::{Archive, filter, zstd};
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::seawall::{Outcome, Seawall};
use crate::support::tmpfs::Tmpfs;
use crate::support::wal::{Wal, control_of_another, next_name};
use crate::support::{Scratch, give_to_postgres, is_root, unique, wait_for};

/// What stands at DEST before.
const BEFORE: &[u8] = b"what stood here before";

/// A cluster's directory, and a place of its own for each DEST.
struct Host {
    scratch: Scratch,
    data: PathBuf,
}

impl Host {
    fn new() -> Host {
        let scratch = Scratch::new();
        let data = Wal::shared().data_dir(&scratch, "data");
        Host { scratch, data }
    }

    /// An archive with these of the five segments, in a directory.
    fn archive(&self, name: &str, segments: &[usize]) -> Archive<'_> {
        let archive = Archive::directory(&self.scratch, name);
        self.fill(&archive, segments);
        archive
    }

    fn fill(&self, archive: &Archive, segments: &[usize]) {
        for index in segments {
            let path = format!("pg_wal/{}", segment(*index).name);
            let push = archive.seawall().cwd(&self.data);
            push.args(["wal-push", &path]).run().ok();
        }
    }

    /// DEST in a new directory, with something there already.
    fn dest(&self) -> PathBuf {
        let place = self.scratch.dir(format!("place-{}", unique()));
        self.scratch.file(place.join("RECOVERYXLOG"), BEFORE)
    }

    /// wal-fetch as PostgreSQL runs it: in the data directory.
    fn fetch(&self, archive: &Archive, name: &str, dest: &Path) -> Seawall {
        let seawall = archive.seawall().cwd(&self.data);
        let seawall = seawall.env("SEAWALL_RETRY_TIMEOUT", "200ms");
        seawall.args(["wal-fetch", name]).arg(dest)
    }

    /// Runs it, and checks that DEST was delivered whole or not touched.
    #[track_caller]
    fn run(&self, command: impl FnOnce(&Path) -> Seawall, expected: Option<&[u8]>) -> Outcome {
        let dest = self.dest();
        let outcome = command(&dest).run();
        check_dest(&dest, expected, &outcome);
        outcome
    }
}

#[track_caller]
fn check_dest(dest: &Path, expected: Option<&[u8]>, outcome: &Outcome) {
    let names = fs::read_dir(dest.parent().expect("a directory")).expect("readable");
    assert_eq!(names.count(), 1, "something beside DEST: {outcome:?}");
    let there = fs::read(dest).expect("DEST");
    assert!(there == expected.unwrap_or(BEFORE), "DEST: {outcome:?}");
}

fn segment(index: usize) -> &'static crate::support::wal::WalFile {
    &Wal::shared().segments[index]
}

fn key(index: usize) -> String {
    format!("wal_005/{}.zst", segment(index).name)
}

const HOLE: i32 = 210;

#[test]
fn hits_in_every_form() {
    let host = Host::new();
    let archive = host.archive("archive", &[4]);
    let bytes = &segment(0).bytes;
    let (first, second) = bytes.split_at(400_000);
    let pack = |program: &str| filter(Command::new(program).arg("-c"), bytes);
    // Frames of several runs, one after the other, are one object too.
    let frames = [zstd(first), zstd(second)].concat();
    let forms = [
        (".zst", pack("zstd")),
        (".zst", frames),
        (".gz", pack("gzip")),
        (".lz4", pack("lz4")),
        ("", bytes.clone()),
    ];
    for (ending, stored) in forms {
        let key = format!("wal_005/{}{ending}", segment(0).name);
        archive.put(&key, &stored);
        for codec in ["zstd", "gzip", "lz4"] {
            let fetch = |dest: &Path| {
                let fetch = host.fetch(&archive, &segment(0).name, dest);
                fetch.env("SEAWALL_COMPRESSION", codec)
            };
            let outcome = host.run(fetch, Some(bytes)).ok();
            assert!(outcome.stdout.is_empty(), "{outcome:?}");
        }
        archive.delete(&key);
    }
}

#[test]
fn text_files_and_partial_segments() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let history: &[u8] = b"1\t0/9000060\tno recovery target specified\n";
    let partial = format!("{}.partial", segment(1).name);
    let backup = &Wal::shared().backup_history;
    for (name, bytes) in [
        ("00000002.history", history),
        (&partial, &segment(1).bytes),
        (&backup.name, &backup.bytes),
    ] {
        let fetch = |dest: &Path| host.fetch(&archive, name, dest);
        host.run(fetch, None).expect(1, &["is not in archive"]);
        archive.put(&format!("wal_005/{name}.zst"), &zstd(bytes));
        host.run(fetch, Some(bytes)).ok();
    }
}

#[test]
fn absence_is_proven_by_an_archive_that_shows_itself() {
    let host = Host::new();
    let bucket = Archive::bucket(&host.scratch, "absent");
    host.fill(&bucket, &[0, 1]);
    let directory = host.archive("archive", &[0, 1]);
    let next = segment(2).name.as_str();
    let timeline_2 = format!("00000002{}", &next[8..]);
    for archive in [&bucket, &directory] {
        for name in [next, "00000002.history", &timeline_2] {
            let outcome = host.run(|dest| host.fetch(archive, name, dest), None);
            let outcome = outcome.expect(1, &["is not in archive"]);
            // An answer, not an accident: every recovery ends with it.
            assert!(!outcome.stderr.contains("error"), "{outcome:?}");
        }
        // What lies beyond on another timeline proves no hole on this one.
        let beyond = format!("00000003{}", &segment(3).name[8..]);
        archive.put(&format!("wal_005/{beyond}.zst"), &zstd(&segment(3).bytes));
        host.run(|dest| host.fetch(archive, next, dest), None)
            .expect(1, &[]);
        // But the timeline's own history must be there then.
        let fetch = |dest: &Path| host.fetch(archive, "00000003.history", dest);
        host.run(fetch, None)
            .expect(HOLE, &["not the end of WAL", "\nhint: "]);
    }
}

#[test]
fn a_hole_is_not_the_end() {
    let host = Host::new();
    let versioned = Archive::bucket(&host.scratch, "versioned");
    versioned.keep_versions();
    host.fill(&versioned, &[0, 1, 2]);
    let directory = host.archive("archive", &[0, 1, 2]);
    let bucket = Archive::bucket(&host.scratch, "hole");
    host.fill(&bucket, &[0, 1, 2]);
    for archive in [&directory, &bucket, &versioned] {
        archive.delete(&key(1));
        let name = segment(1).name.as_str();
        let fetch = |dest: &Path| host.fetch(archive, name, dest);
        let texts = [name, "not the end of WAL", "\ndetail: ", "--on-hole absent"];
        host.run(fetch, None).expect(HOLE, &texts);
        let absent = |dest: &Path| fetch(dest).arg("--on-hole=absent");
        host.run(absent, None).expect(1, &["WARN"]);
        // What is there is delivered as ever.
        let fetch = |dest: &Path| host.fetch(archive, &segment(2).name, dest);
        host.run(fetch, Some(&segment(2).bytes)).ok();
    }
    // A delete marker tells of a hole even where nothing lies beyond.
    versioned.delete(&key(2));
    let fetch = |dest: &Path| host.fetch(&versioned, &segment(2).name, dest);
    host.run(fetch, None)
        .expect(HOLE, &["deleted in a versioned bucket"]);
    host.run(|dest| fetch(dest).arg("--on-hole=absent"), None)
        .expect(1, &[]);
    // And a deleted identity is no archive that shows itself, whatever holes are taken for.
    versioned.delete("seawall.json");
    let next = segment(3).name.as_str();
    for policy in ["abort", "absent"] {
        let fetch = |dest: &Path| {
            let fetch = host.fetch(&versioned, next, dest);
            fetch.args(["--on-hole", policy])
        };
        let texts = ["identity", "deleted in a versioned bucket", "\nhint: Bring"];
        host.run(fetch, None).expect(208, &texts);
    }
}

#[test]
fn a_gap_marker_is_not_the_end() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let name = segment(1).name.as_str();
    let number = u64::from_str_radix(&name[16..], 16).expect("a segment");
    let start = number << 20;
    let fetch = |dest: &Path| host.fetch(&archive, name, dest);
    host.run(fetch, None).expect(1, &[]);
    // One that ends where the segment begins, one on another timeline.
    for (timeline, from, to) in [(1, start - 10, start), (2, start, start + 10)] {
        archive.put(
            &format!("gaps/{timeline:08X}_{from:016X}_{to:016X}.json"),
            b"{}",
        );
        host.run(fetch, None).expect(1, &[]);
    }
    let (from, to) = (start + 100, start + 200);
    archive.put(&format!("gaps/00000001_{from:016X}_{to:016X}.json"), b"{}");
    host.run(fetch, None)
        .expect(HOLE, &["knowingly skipped", "\nhint: "]);
    host.run(|dest| fetch(dest).arg("--on-hole=absent"), None)
        .expect(1, &[]);
}

/// PostgreSQL asks a timeline for segments that only its parent has: the history says so, and later ones of the
/// timeline do not make that a hole.
#[test]
fn what_lies_before_a_timeline_is_absent_from_it() {
    let host = Host::new();
    let archive = host.archive("archive", &[0, 1]);
    let on_2 = |index: usize| format!("00000002{}", &segment(index).name[8..]);
    archive.put(
        &format!("wal_005/{}.zst", on_2(3)),
        &zstd(&segment(3).bytes),
    );
    let number = |index: usize| u64::from_str_radix(&segment(index).name[16..], 16).expect("hex");
    let fetch = |index: usize, code: i32| {
        println!("segment {index}");
        let name = on_2(index);
        let bytes = (code == 0).then_some(&segment(index).bytes[..]);
        let outcome = host.run(|dest| host.fetch(&archive, &name, dest), bytes);
        outcome.expect(code, &[]);
    };
    // Without its history nothing is known of timeline 2.
    fetch(1, HOLE);
    // It began within the third segment, which is missing.
    let fork = (number(2) << 20) + 0x60;
    let history = format!("1\t0/{fork:X}\tno recovery target specified\n");
    archive.put("wal_005/00000002.history.zst", &zstd(history.as_bytes()));
    fetch(0, 1);
    fetch(1, 1);
    fetch(2, HOLE);
    fetch(3, 0);
    fetch(4, 1);
}

/// The history of a later timeline says how far the earlier one went: what is missing before that was lost.
#[test]
fn what_lies_before_a_fork_is_a_hole() {
    let host = Host::new();
    let bucket = Archive::bucket(&host.scratch, "fork");
    host.fill(&bucket, &[0]);
    let number = |index: usize| u64::from_str_radix(&segment(index).name[16..], 16).expect("hex");
    let fork = format!("1\t0/{:X}\tno reason\n", (number(2) << 20) + 0xB8);
    let again = format!("{fork}2\t0/{:X}\tno reason\n", (number(3) << 20) + 0xB8);
    for archive in [host.archive("archive", &[0]), bucket] {
        let fetch = |name: &str, code: i32| {
            let outcome = host.run(|dest| host.fetch(&archive, name, dest), None);
            outcome.expect(code, &[])
        };
        fetch(&segment(1).name, 1);
        archive.put("wal_005/00000002.history.zst", &zstd(fork.as_bytes()));
        for (index, code) in [(1, HOLE), (2, 1), (3, 1)] {
            fetch(&segment(index).name, code);
        }
        // A standby may get it by streaming; unless it is told to stop, or recovers.
        for (signals, words, code) in [
            (&["standby.signal"][..], &[][..], 1),
            (&["standby.signal"], &["--on-hole=abort"], HOLE),
            (&["standby.signal", "recovery.signal"], &[], HOLE),
            (&[], &["--on-hole=absent"], 1),
        ] {
            let data = host.scratch.dir(format!("data-{}", unique()));
            for signal in signals {
                host.scratch.file(data.join(signal), "");
            }
            let fetch = |dest: &Path| host.fetch(&archive, &segment(1).name, dest).cwd(&data);
            let outcome = host.run(|dest| fetch(dest).args(words), None);
            outcome.expect(code, &["00000002.history", "was left at"]);
        }
        // The second history of three is lost, and the third names it.
        archive.delete("wal_005/00000002.history.zst");
        archive.put("wal_005/00000003.history.zst", &zstd(again.as_bytes()));
        fetch("00000002.history", HOLE);
        fetch("00000004.history", 1);
    }
}

/// An archive that is mounted after the fetch began: it is asked again, from the beginning.
#[test]
fn an_archive_that_is_mounted_in_a_moment_is_waited_for() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let away = host.scratch.join("away");
    let begin = |name: &str| {
        let dest = host.dest();
        let fetch = host.fetch(&archive, name, &dest);
        (fetch.env("SEAWALL_RETRY_TIMEOUT", "60s").spawn(), dest)
    };
    // There is nothing at its place, or the empty directory that it will be mounted on.
    for empty in [false, true] {
        fs::rename(archive.path(), &away).expect("rename");
        if empty {
            host.scratch.dir("archive");
        }
        let hit = begin(&segment(0).name);
        let miss = begin(&segment(1).name);
        std::thread::sleep(Duration::from_millis(700));
        if empty {
            fs::remove_dir(archive.path()).expect("empty");
        }
        fs::rename(&away, archive.path()).expect("rename");
        let outcome = hit.0.wait(Duration::from_secs(60));
        let outcome = outcome.ok();
        check_dest(&hit.1, Some(&segment(0).bytes), &outcome);
        let outcome = miss.0.wait(Duration::from_secs(60));
        check_dest(&miss.1, None, &outcome);
        outcome.expect(1, &["is not in archive"]);
    }
    // A signal ends the wait; a push is tried again by the archiver and does not wait.
    fs::rename(archive.path(), &away).expect("rename");
    let (waiting, dest) = begin(&segment(0).name);
    std::thread::sleep(Duration::from_millis(300));
    waiting.signal(Signal::TERM);
    let outcome = waiting.wait(Duration::from_secs(5));
    let outcome = outcome.expect_signal(Signal::TERM);
    check_dest(&dest, None, &outcome);
    let push = archive.seawall().cwd(&host.data);
    let push = push.args(["wal-push", &format!("pg_wal/{}", segment(1).name)]);
    let begin = Instant::now();
    push.run().expect(8, &["does not exist"]);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_damaged_object_is_not_delivered() {
    let host = Host::new();
    let archive = host.archive("archive", &[0, 1]);
    let file = segment(0);
    let whole = archive.get(&key(0)).expect("stored");
    let cut = |bytes: &[u8], at: usize| bytes[..at].to_vec();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        bytes
    };
    let pack = |program: &str, bytes: &[u8]| filter(Command::new(program).arg("-c"), bytes);
    let (gz, lz4) = (pack("gzip", &file.bytes), pack("lz4", &file.bytes));
    let end = whole.len();
    let short = &file.bytes[..file.bytes.len() - 8192];
    let long = [&file.bytes[..], &[0u8; 8192]].concat();
    let of_16_mib = file.incompressible(16).bytes;
    let rows: Vec<(&str, &str, Vec<u8>, i32)> = vec![
        ("empty", ".zst", Vec::new(), 206),
        ("truncated within the header", ".zst", cut(&whole, 3), 206),
        ("truncated in the middle", ".zst", cut(&whole, end / 2), 206),
        ("truncated by a byte", ".zst", cut(&whole, end - 1), 206),
        ("a bit in the magic", ".zst", flipped(0), 206),
        ("a bit early", ".zst", flipped(100), 206),
        ("a bit in the middle", ".zst", flipped(end / 2), 206),
        ("a bit in the checksum", ".zst", flipped(end - 1), 206),
        ("with a tail", ".zst", [&whole[..], b"tail"].concat(), 206),
        ("of another codec", ".zst", gz.clone(), 206),
        (
            "a page of a gateway",
            ".zst",
            b"<html></html>".to_vec(),
            206,
        ),
        ("not compressed", ".zst", file.bytes.clone(), 206),
        ("empty gzip", ".gz", Vec::new(), 206),
        ("truncated gzip", ".gz", cut(&gz, gz.len() - 1), 206),
        ("empty lz4", ".lz4", Vec::new(), 206),
        ("truncated lz4", ".lz4", cut(&lz4, lz4.len() - 1), 206),
        ("short", ".zst", zstd(short), 206),
        ("long", ".zst", zstd(&long), 206),
        ("nothing compressed", ".zst", zstd(b""), 206),
        ("zeros", ".zst", zstd(&[0; 1 << 20]), 206),
        ("another segment", ".zst", zstd(&segment(1).bytes), 205),
        (
            "of another cluster",
            ".zst",
            zstd(&file.of_another_cluster().bytes),
            205,
        ),
        ("of another size", ".zst", zstd(&of_16_mib), 205),
        ("empty, raw", "", Vec::new(), 206),
        ("short, raw", "", short.to_vec(), 206),
        ("another segment, raw", "", segment(1).bytes.clone(), 205),
    ];
    // PostgreSQL's directory says whose WAL it is; elsewhere the memory of an earlier run does.
    let elsewhere = host.scratch.dir("elsewhere");
    for (what, ending, bytes, code) in rows {
        println!("{what}");
        let key = format!("wal_005/{}{ending}", file.name);
        for other in ["", ".zst", ".gz", ".lz4"] {
            let _ = fs::remove_file(archive.path().join(format!("wal_005/{}{other}", file.name)));
        }
        archive.put(&key, &bytes);
        for cwd in [&host.data, &elsewhere] {
            let fetch = |dest: &Path| host.fetch(&archive, &file.name, dest).cwd(cwd);
            let outcome = host.run(fetch, None);
            outcome.expect(code, &[&key, "\ndetail: "]);
            let outcome = fetch(Path::new("-")).run();
            assert!(
                outcome.stdout.is_empty(),
                "{what}: half of it on standard output"
            );
            outcome.expect(code, &[]);
        }
    }
}

#[test]
fn a_damaged_history_is_not_delivered() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let rows: [(&str, Vec<u8>); 5] = [
        ("empty", zstd(b"")),
        ("no text", zstd(&[0xFF; 50])),
        ("without ancestors", zstd(b"# nothing\n")),
        ("a segment", zstd(&segment(0).bytes)),
        ("its own ancestor", zstd(b"2\t0/9000060\tno reason\n")),
    ];
    for (what, bytes) in rows {
        println!("{what}");
        archive.put("wal_005/00000002.history.zst", &bytes);
        let fetch = |dest: &Path| host.fetch(&archive, "00000002.history", dest);
        host.run(fetch, None).expect(206, &["00000002.history"]);
    }
}

#[test]
fn an_archive_of_another_tool_is_read() {
    let host = Host::new();
    let scratch = &host.scratch;
    let pack = |program: &str, index: usize| {
        filter(Command::new(program).arg("-c"), &segment(index).bytes)
    };
    let wal = |index: usize, ending: &str| format!("wal_005/{}{ending}", segment(index).name);
    for archive in [
        Archive::directory(scratch, "foreign"),
        Archive::bucket(scratch, "foreign"),
    ] {
        // Nothing there proves nothing.
        let fetch = |index: usize, expected: Option<&[u8]>| {
            let name = &segment(index).name;
            host.run(|dest| host.fetch(&archive, name, dest), expected)
        };
        fetch(3, None).expect(208, &["does not show itself", "\nhint: "]);
        archive.put(&wal(0, ".gz"), &pack("gzip", 0));
        archive.put(&wal(1, ".lz4"), &pack("lz4", 1));
        archive.put(&wal(2, ".zst"), &pack("zstd", 2));
        for index in 0..3 {
            fetch(index, Some(&segment(index).bytes)).ok();
        }
        fetch(3, None).expect(1, &["is not in archive"]);
        // Forms that seawall cannot read are there all the same: WAL-E's own default, brotli, encryption.
        for ending in [".lzo", ".br", ".zst.aes", ".gpg"] {
            archive.put(&wal(3, ending), b"who knows");
            let texts = ["in a form that cannot be read", &wal(3, ending), "\nhint: "];
            fetch(3, None).expect(203, &texts);
            archive.delete(&wal(3, ending));
            archive.put(&wal(4, ending), b"who knows");
            fetch(3, None).expect(HOLE, &[&wal(4, ending)]);
            archive.delete(&wal(4, ending));
        }
        // Base backups without any WAL are no archive: it was archived with them.
        for (index, ending) in [(0, ".gz"), (1, ".lz4"), (2, ".zst")] {
            archive.delete(&wal(index, ending));
        }
        let sentinel = "basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json";
        archive.put(sentinel, b"{}");
        fetch(3, None).expect(208, &["shows no WAL at all"]);
    }
}

#[test]
fn an_archive_of_another_cluster_proves_nothing() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let other = host.scratch.dir("other");
    host.scratch.dir("other/global");
    let control = control_of_another(&Wal::shared().control);
    host.scratch.file("other/global/pg_control", control);
    let ids = [Wal::shared().system_id, Wal::shared().system_id ^ 1].map(|id| id.to_string());
    for (name, code) in [(&segment(0).name, 205), (&segment(1).name, 205)] {
        let fetch = |dest: &Path| host.fetch(&archive, name, dest).cwd(&other);
        host.run(fetch, None).expect(code, &[&ids[0], &ids[1]]);
    }
    // A pg_control that cannot be understood is no reason to guess.
    host.scratch.file("other/global/pg_control", b"garbage");
    let fetch = |dest: &Path| host.fetch(&archive, &segment(1).name, dest).cwd(&other);
    let outcome = host.run(fetch, None);
    outcome.expect(206, &["pg_control", "\nhint: "]);
}

#[test]
fn standard_output_gets_all_or_nothing() {
    let host = Host::new();
    let archive = host.archive("archive", &[0, 2]);
    let out = Path::new("-");
    let fetch = |index: usize| host.fetch(&archive, &segment(index).name, out);
    let hit = fetch(0).run().ok();
    assert!(hit.stdout == segment(0).bytes);
    for (index, code) in [(1, HOLE), (3, 1)] {
        let outcome = fetch(index).run().expect(code, &[]);
        assert!(outcome.stdout.is_empty());
    }
    // Without a state directory to work in.
    let outcome = fetch(0).env("SEAWALL_STATE_DIR", "/proc/nowhere").run();
    assert!(outcome.ok().stdout == segment(0).bytes);
    // A reader that goes away has not got it.
    let script = format!(
        "{} | head -c 1000 >/dev/null; exit ${{PIPESTATUS[0]}}",
        fetch(0).shell_line()
    );
    let shell = Seawall::of(&host.scratch, "/bin/bash").args(["-c", &script]);
    let code = shell.run().code.expect("a code");
    assert!((200..220).contains(&code), "{code}");
}

#[test]
fn a_destination_that_cannot_be_written() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    let fetch = |dest: &Path| host.fetch(&archive, &segment(0).name, dest).run();
    let gone = host.scratch.join("no-such-directory/RECOVERYXLOG");
    fetch(&gone).expect(201, &["no-such-directory"]);
    assert!(!gone.parent().expect("a directory").exists());
    let directory = host.scratch.dir("is-a-directory");
    let outcome = fetch(&directory);
    assert!(
        (200..220).contains(&outcome.code.expect("a code")),
        "{outcome:?}"
    );
    assert_eq!(fs::read_dir(&directory).expect("readable").count(), 0);
    if !is_root() {
        println!("skipped: the rest needs root");
        return;
    }
    let closed = host.scratch.dir("closed");
    give_to_postgres(&closed, 0o500);
    fetch(&closed.join("RECOVERYXLOG")).expect(207, &["Permission denied"]);
    assert_eq!(fs::read_dir(&closed).expect("readable").count(), 0);
    let small = Tmpfs::mount(&host.scratch, "small", 512 << 10);
    fetch(&small.path().join("RECOVERYXLOG")).expect(211, &["No space left"]);
    assert_eq!(fs::read_dir(small.path()).expect("readable").count(), 0);
}

#[test]
fn names_and_paths_that_are_none() {
    let host = Host::new();
    let archive = host.archive("archive", &[0]);
    for name in ["RECOVERYXLOG", "00000001", "../../etc/passwd", "%f", ""] {
        let outcome = host.run(|dest| host.fetch(&archive, name, dest), None);
        outcome.expect(202, &["is not the name of a WAL file", "\nhint: "]);
    }
    let outcome = host.fetch(&archive, &segment(0).name, Path::new("/")).run();
    assert!(
        (200..220).contains(&outcome.code.expect("a code")),
        "{outcome:?}"
    );
}

/// PostgreSQL's shutdown waits for restore_command: a signal must end it at once, whatever the store does, and by the
/// signal itself.
#[test]
fn a_signal_ends_it_while_the_store_is_silent() {
    let host = Host::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("silent");
    let name = segment(0).name.as_str();
    bucket.put(&format!("archive/{}", key(0)), &zstd(&segment(0).bytes));
    // Before the answer, within the body, in the pause between two tries, at the proof of absence.
    let faults = [
        Fault::Silence,
        Fault::SilenceAt(1000),
        Fault::s3_error(503, "SlowDown"),
    ];
    for signal in [Signal::TERM, Signal::INT] {
        for (dash, fault) in [false, true]
            .into_iter()
            .flat_map(|d| faults.clone().map(|f| (d, f)))
        {
            println!("{signal:?} at {fault:?}");
            let proxy = Proxy::start(minio.port());
            proxy.rule(Rule::new(fault));
            let dest = host.dest();
            let to = if dash { Path::new("-") } else { &dest };
            let env = s3_env(&proxy.endpoint(), &bucket.name());
            let fetch = Seawall::new(&host.scratch).cwd(&host.data).envs(env);
            let running = fetch.args(["wal-fetch", name]).arg(to).spawn();
            wait_for(Duration::from_secs(20), "the fault", || {
                proxy.requests().iter().any(|r| r.fault.is_some())
            });
            let begin = Instant::now();
            running.signal(signal);
            let outcome = running.wait(Duration::from_secs(20)).expect_signal(signal);
            assert!(begin.elapsed() < Duration::from_secs(3), "{outcome:?}");
            assert!(outcome.stdout.is_empty());
            check_dest(&dest, None, &outcome);
        }
    }
}

#[test]
fn a_standby_asks_again_and_a_recovery_does_not() {
    let host = Host::new();
    let outage = Archive::directory(&host.scratch, "outage");
    let segment = segment(0).name.as_str();
    let (nothing, recovery, standby) = ("", "recovery.signal", "standby.signal");
    let history = "00000002.history";
    // Signal files, what is asked for, --on-outage, the code.
    let rows: &[(&[&str], &str, &str, i32)] = &[
        (&[], segment, nothing, 208),
        (&[], segment, "auto", 208),
        (&[], segment, "absent", 1),
        (&[recovery], segment, nothing, 208),
        (&[recovery], segment, "absent", 1),
        (&[standby], segment, nothing, 1),
        (&[standby], segment, "auto", 1),
        (&[standby], segment, "abort", 208),
        (&[standby], history, nothing, 208),
        (&[standby], history, "auto", 208),
        (&[standby, recovery], segment, nothing, 208),
        (&[standby, recovery], segment, "abort", 208),
    ];
    for (signals, name, policy, code) in rows {
        println!("{signals:?} {name} {policy}");
        // The data directory is where it runs, or above DEST.
        for inside in [true, false] {
            let data = host.scratch.dir(format!("data-{}", unique()));
            let wal = host.scratch.dir(data.join("pg_wal"));
            let dest = host.scratch.file(wal.join("RECOVERYXLOG"), BEFORE);
            for signal in *signals {
                host.scratch.file(data.join(signal), "");
            }
            let fetch = outage.seawall().env("SEAWALL_RETRY_TIMEOUT", "100ms");
            let fetch = match inside {
                true => fetch
                    .cwd(&data)
                    .args(["wal-fetch", name, "pg_wal/RECOVERYXLOG"]),
                false => fetch.args(["wal-fetch", name]).arg(&dest),
            };
            let fetch = match policy.is_empty() {
                true => fetch,
                false => fetch.args(["--on-outage", policy]),
            };
            let outcome = fetch.run();
            check_dest(&dest, None, &outcome);
            outcome.expect(*code, &["does not show itself"]);
        }
    }
}

/// An outage is one of these two: what is damaged, denied or missing in the middle stops a standby too.
#[test]
fn what_is_no_outage_stops_a_standby_too() {
    let host = Host::new();
    let archive = host.archive("archive", &[0, 1, 3]);
    archive.put(&key(0), b"damaged");
    let standby = host.scratch.dir("standby");
    host.scratch.file("standby/standby.signal", "");
    for (index, code) in [(0, 206), (2, HOLE)] {
        for policy in ["auto", "absent"] {
            let fetch = |dest: &Path| {
                let fetch = host.fetch(&archive, &segment(index).name, dest);
                fetch.cwd(&standby).args(["--on-outage", policy])
            };
            host.run(fetch, None).expect(code, &[]);
        }
    }
    let end = next_name(&segment(3).name);
    let fetch = |dest: &Path| host.fetch(&archive, &end, dest).cwd(&standby);
    host.run(fetch, None).expect(1, &["is not in archive"]);
}
