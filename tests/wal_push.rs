//! `wal-push`: takes only what is what its name says, stores it whole or not at all, and never over anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::archive::{Archive, filter, sha256, unzstd};
use crate::support::minio::{Minio, SECRET_KEY, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::rclone::Rclone;
use crate::support::seawall::{Outcome, Seawall};
use crate::support::tmpfs::Tmpfs;
use crate::support::wal::{Wal, WalFile, control_of_another};
use crate::support::{Scratch, give_to_postgres, is_root, run, unique, wait_for};

/// wal-push in a cluster's directory, as PostgreSQL runs it.
fn push(archive: &Archive, data: &Path, name: &str) -> Seawall {
    let seawall = archive.seawall().cwd(data);
    seawall.args(["wal-push", &format!("pg_wal/{name}")])
}

fn key(name: &str) -> String {
    format!("wal_005/{name}.zst")
}

/// No object, and no temporary file.
#[track_caller]
fn nothing_below(path: &Path) {
    let found = run(Command::new("find").arg(path).args(["-type", "f"]));
    assert_eq!(found, "");
}

#[test]
fn every_kind_of_file_is_stored_in_every_codec() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let history = b"1\t0/9000060\tno recovery target specified\n";
    scratch.file("data/pg_wal/00000002.history", history);
    let segment = &wal.segments[0];
    let partial = format!("{}.partial", wal.segments[1].name);
    scratch.file(format!("data/pg_wal/{partial}"), &wal.segments[1].bytes);
    let backup = &wal.backup_history;
    let files: [(&str, &[u8]); 4] = [
        (&segment.name, &segment.bytes),
        (&partial, &wal.segments[1].bytes),
        ("00000002.history", history),
        (&backup.name, &backup.bytes),
    ];
    for (codec, ending, program) in [
        ("zstd", "zst", "zstd"),
        ("gzip", "gz", "gzip"),
        ("lz4", "lz4", "lz4"),
    ] {
        let archive = Archive::directory(&scratch, codec);
        for (name, bytes) in files {
            let push = push(&archive, &data, name).env("SEAWALL_COMPRESSION", codec);
            let outcome = push.run().ok();
            assert!(outcome.stdout.is_empty(), "{outcome:?}");
            let stored = archive.get(&format!("wal_005/{name}.{ending}"));
            let plain = filter(Command::new(program).arg("-dc"), &stored.expect("stored"));
            assert!(plain == bytes, "{name} in {codec}");
        }
        assert_eq!(archive.keys("").len(), files.len() + 1, "and seawall.json");
    }
}

/// A source that is not what its name says, the code, and what the message tells.
type Bad = (&'static str, String, Vec<u8>, i32, String);

fn bad_sources() -> Vec<Bad> {
    let wal = Wal::shared();
    let (first, second) = (&wal.segments[0], &wal.segments[1]);
    let name = || first.name.clone();
    let own = wal.system_id.to_string();
    let (other, longer) = (first.of_another_cluster(), {
        let mut bytes = first.bytes.clone();
        bytes.push(0);
        bytes
    });
    let half = first.bytes[..first.bytes.len() / 2].to_vec();
    let not = |name: &str| format!("is not what its name {name} says");
    let history = || "00000002.history".to_string();
    let child = format!("00000002{}", &first.name[8..]);
    let mut of_the_future = first.bytes.clone();
    of_the_future[4] = 2;
    vec![
        ("empty", name(), Vec::new(), 6, not(&first.name)),
        (
            "a header alone",
            name(),
            first.bytes[..40].to_vec(),
            6,
            "40 bytes".into(),
        ),
        (
            "a part of a header",
            name(),
            first.bytes[..39].to_vec(),
            6,
            "39 bytes".into(),
        ),
        ("half", name(), half, 6, "524288 bytes".into()),
        ("too long", name(), longer, 6, "1048577 bytes".into()),
        (
            "garbage",
            name(),
            vec![0x55; 1 << 20],
            6,
            "page magic".into(),
        ),
        ("zeros", name(), vec![0; 1 << 20], 6, "all zeros".into()),
        (
            "another segment",
            name(),
            second.bytes.clone(),
            5,
            not(&first.name),
        ),
        ("of another cluster", name(), other.bytes, 5, own),
        (
            "of 16 MiB",
            name(),
            first.incompressible(16).bytes,
            5,
            not(&first.name),
        ),
        (
            "of a later timeline",
            name(),
            of_the_future,
            5,
            "timeline 2".into(),
        ),
        (
            "another under a child's name",
            child,
            second.bytes.clone(),
            5,
            "first page".into(),
        ),
        ("no history", history(), Vec::new(), 6, "0 bytes".into()),
        (
            "a history without ancestors",
            history(),
            b"# none\n".to_vec(),
            6,
            "without ancestors".into(),
        ),
        (
            "no text",
            history(),
            vec![0xFF; 100],
            6,
            "not a timeline history".into(),
        ),
        (
            "a segment as history",
            history(),
            first.bytes.clone(),
            6,
            not("00000002.history"),
        ),
        (
            "the history of another backup",
            format!("{}.00000028.backup", wal.segments[4].name),
            wal.backup_history.bytes.clone(),
            6,
            "another backup".into(),
        ),
        (
            "another offset than the name's",
            format!("{}.000000FF.backup", &wal.backup_history.name[..24]),
            wal.backup_history.bytes.clone(),
            6,
            "another backup".into(),
        ),
        (
            "a label without an end",
            wal.backup_history.name.clone(),
            String::from_utf8_lossy(&wal.backup_history.bytes)
                .replace("STOP WAL", "STOPPED WAL")
                .into_bytes(),
            6,
            "where the backup ended".into(),
        ),
        (
            "a cut name",
            first.name[..23].into(),
            first.bytes.clone(),
            2,
            "name of a WAL file".into(),
        ),
        (
            "a name in lower case",
            "00000001000000000000000a".into(),
            vec![],
            2,
            "upper case".into(),
        ),
        (
            "a temporary name",
            format!("{}.tmp", first.name),
            vec![],
            2,
            "WAL file".into(),
        ),
        (
            "an archiver's note",
            format!("{}.ready", first.name),
            vec![],
            2,
            "WAL file".into(),
        ),
    ]
}

#[test]
fn a_source_that_is_not_what_its_name_says_is_refused() {
    let scratch = Scratch::new();
    let data = Wal::shared().data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    for (what, name, bytes, code, text) in bad_sources() {
        println!("{what}");
        scratch.dir("data/bad");
        scratch.file(format!("data/bad/{name}"), bytes);
        let seawall = archive.seawall().cwd(&data);
        let outcome = seawall.args(["wal-push", &format!("bad/{name}")]).run();
        outcome.expect(code, &["seawall: error: ", "\ndetail: ", &text]);
        nothing_below(archive.path());
    }
    let missing = push(&archive, &data, "00000001000000000000ABCD").run();
    missing.expect(9, &["00000001000000000000ABCD", "No such file"]);
    let closed = scratch.file(format!("data/bad/{}", Wal::shared().segments[0].name), "");
    if is_root() {
        give_to_postgres(&closed, 0);
        let seawall = archive.seawall().cwd(&data).arg("wal-push").arg(&closed);
        seawall.run().expect(7, &["Permission denied"]);
    }
    let directory = scratch.dir(format!("data/bad/{}", Wal::shared().next_name()));
    let seawall = archive.seawall().cwd(&data).arg("wal-push").arg(directory);
    assert!((1..=125).contains(&seawall.run().code.expect("a code")));
    nothing_below(archive.path());
}

#[test]
fn what_is_archived_stays_as_it_is() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let file = &wal.segments[0];
    let rclone = Rclone::start(&scratch, false);
    let ignorant = rclone.bucket("ignorant");
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "same"),
        Archive::of_witness(&scratch, rclone.env("ignorant"), ignorant),
    ];
    for archive in archives {
        push(&archive, &data, &file.name).run().ok();
        let stored = archive.get(&key(&file.name)).expect("stored");
        let keys = archive.keys("");

        // The same again, and again under another codec.
        for codec in ["zstd", "gzip", "lz4"] {
            let again = push(&archive, &data, &file.name).env("SEAWALL_COMPRESSION", codec);
            again
                .run()
                .expect(0, &["archived already, with the same bytes"]);
        }
        // Other bytes, under any codec.
        let other = file.with_other_bytes();
        let place = scratch.dir(format!("other-{}", unique()));
        scratch.file(place.join(&file.name), &other.bytes);
        for codec in ["zstd", "gzip", "lz4"] {
            let seawall = archive
                .seawall()
                .cwd(&data)
                .env("SEAWALL_COMPRESSION", codec);
            let outcome = seawall.arg("wal-push").arg(place.join(&file.name)).run();
            let digests = [sha256(&file.bytes), sha256(&other.bytes)];
            outcome.expect(
                5,
                &[
                    "is archived already with other bytes",
                    &digests[0],
                    &digests[1],
                    "\nhint: Nothing was changed.",
                ],
            );
        }
        // The other kinds of files are as safe.
        let (history, text) = ("pg_wal/00000002.history", "1\t0/9000060\tno reason\n");
        for (text, code) in [(text, 0), (text, 0), ("1\t0/8000060\tother\n", 5)] {
            scratch.file(data.join(history), text);
            let seawall = archive.seawall().cwd(&data);
            seawall.args(["wal-push", history]).run().expect(code, &[]);
        }
        let first = archive.get("wal_005/00000002.history.zst").expect("stored");
        assert_eq!(unzstd(&first), text.as_bytes());
        let keys = [keys, vec!["wal_005/00000002.history.zst".into()]].concat();
        // A damaged object is not mended, and not taken for the same.
        let mut damaged = stored.clone();
        damaged.truncate(stored.len() - 1);
        assert_eq!(archive.get(&key(&file.name)), Some(stored));
        archive.put(&key(&file.name), &damaged);
        push(&archive, &data, &file.name)
            .run()
            .expect(6, &[&key(&file.name)]);
        assert_eq!(archive.get(&key(&file.name)), Some(damaged));
        assert_eq!(archive.keys(""), keys);
        fs::remove_file(data.join(history)).expect("a file");
    }
}

#[test]
fn a_raw_object_counts_too() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    push(&archive, &data, &wal.segments[1].name).run().ok();
    let file = &wal.segments[0];
    archive.put(&format!("wal_005/{}", file.name), &file.bytes);
    push(&archive, &data, &file.name)
        .run()
        .expect(0, &["with the same bytes"]);
    assert_eq!(archive.get(&key(&file.name)), None);
}

/// What cannot be read cannot be compared, and beside it there would be two files of one name.
#[test]
fn an_object_in_a_form_that_cannot_be_read_is_no_empty_place() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    scratch.file("data/pg_wal/00000002.history", "1\t0/9000060\tno reason\n");
    for archive in [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "forms"),
    ] {
        push(&archive, &data, &wal.segments[1].name).run().ok();
        let partial = format!("{}.partial", wal.segments[0].name);
        scratch.file(format!("data/pg_wal/{partial}"), &wal.segments[0].bytes);
        let backup = wal.backup_history.name.as_str();
        for name in [&wal.segments[0].name, &partial, backup, "00000002.history"] {
            for ending in [".br", ".lzo", ".zst.aes"] {
                let strange = format!("wal_005/{name}{ending}");
                archive.put(&strange, b"who knows");
                let keys = archive.keys("");
                let texts = ["in a form that cannot be read", &strange, "\nhint: "];
                push(&archive, &data, name).run().expect(3, &texts);
                assert_eq!(archive.keys(""), keys);
                archive.delete(&strange);
            }
            push(&archive, &data, name).run().ok();
            // What can be read decides.
            let strange = format!("wal_005/{name}.br");
            archive.put(&strange, b"who knows");
            push(&archive, &data, name)
                .run()
                .expect(0, &["with the same bytes"]);
            archive.delete(&strange);
        }
    }
}

/// Restore points and labels are in the encoding of a database, or in none.
#[test]
fn names_in_any_encoding_are_kept_byte_for_byte() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    let label = String::from_utf8_lossy(&wal.backup_history.bytes).into_owned();
    let (before, after) = label.split_once("LABEL: test\n").expect("its label");
    let labels: [&[u8]; 2] = [b"caf\xe9", b"x\nSTART TIMELINE: 7\nSTOP WAL LOCATION: 0/1"];
    let history = |text: &[u8]| [b"1\t0/9000060\tat restore point \"", text, b"\"\n"].concat();
    let mut files = vec![
        ("00000002.history", history(b"caf\xe9")),
        // As PostgreSQL writes it after a recovery along timeline 2 to a point before it.
        (
            "00000003.history",
            [&history(b"x")[..], b"2\t0/8000060\tbefore\n"].concat(),
        ),
    ];
    for label in labels {
        let text = [
            before.as_bytes(),
            b"LABEL: ",
            label,
            b"\n",
            after.as_bytes(),
        ]
        .concat();
        files.push((wal.backup_history.name.as_str(), text));
    }
    for (name, bytes) in files {
        scratch.file(data.join("pg_wal").join(name), &bytes);
        push(&archive, &data, name).run().ok();
        assert_eq!(unzstd(&archive.get(&key(name)).expect("stored")), bytes);
        let dest = scratch.dir("dest").join("RECOVERYXLOG");
        let fetch = archive.seawall().cwd(&data).args(["wal-fetch", name]);
        fetch.arg(&dest).run().ok();
        assert_eq!(fs::read(&dest).expect("DEST"), bytes);
        archive.delete(&key(name));
    }
}

/// The segment that a server writes to looks like a whole one; the note that it is whole is not there.
#[test]
fn a_segment_that_is_still_written_is_refused() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    let notes = scratch.dir("data/pg_wal/archive_status");
    let partial = format!("{}.partial", wal.segments[3].name);
    scratch.file(format!("data/pg_wal/{partial}"), &wal.segments[3].bytes);
    scratch.file("data/pg_wal/00000002.history", "1\t0/9000060\tno reason\n");
    for (file, note) in wal.segments.iter().zip(["ready", "done"]) {
        let texts = ["has not finished", "archive_status", "\nhint: "];
        push(&archive, &data, &file.name).run().expect(3, &texts);
        assert!(archive.get(&key(&file.name)).is_none());
        let absolute = archive.seawall().arg("wal-push");
        let absolute = absolute.arg(data.join("pg_wal").join(&file.name));
        absolute.run().expect(3, &texts);
        scratch.file(notes.join(format!("{}.{note}", file.name)), "");
        push(&archive, &data, &file.name).run().ok();
    }
    // The other files are written in one piece; and a receiver's directory keeps no notes.
    for name in [&partial, "00000002.history", &wal.backup_history.name] {
        push(&archive, &data, name).run().ok();
    }
    let spool = scratch.dir("spool").join(&wal.segments[2].name);
    scratch.file(&spool, &wal.segments[2].bytes);
    archive.seawall().arg("wal-push").arg(&spool).run().ok();
}

/// Two servers that were promoted from one timeline archive different `.partial` files of its last segment: none may
/// be kept from archiving by the other.
#[test]
fn a_partial_segment_with_other_bytes_goes_beside() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let name = format!("{}.partial", wal.segments[0].name);
    let (one, two) = (&wal.segments[0], wal.segments[0].with_other_bytes());
    for archive in [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "partial"),
    ] {
        for _ in 0..2 {
            for file in [one, &two] {
                scratch.file(format!("data/pg_wal/{name}"), &file.bytes);
                push(&archive, &data, &name).run().ok();
            }
        }
        let beside = format!("wal_005/{name}.{}.zst", &sha256(&two.bytes)[..8]);
        assert_eq!(archive.keys("wal_005/"), [beside.clone(), key(&name)]);
        assert!(unzstd(&archive.get(&key(&name)).expect("the first")) == one.bytes);
        assert!(unzstd(&archive.get(&beside).expect("the second")) == two.bytes);
        // It is no segment, and none is taken for it.
        push(&archive, &data, &one.name).run().ok();
        assert_eq!(archive.keys("wal_005/").len(), 3);
    }
}

#[test]
fn two_clusters_do_not_share_a_prefix() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let other = wal.data_dir(&scratch, "other");
    scratch.file("other/global/pg_control", control_of_another(&wal.control));
    let their_id = wal.system_id ^ 1;
    let mut theirs = wal.segments[2].clone();
    theirs.bytes[24..32].copy_from_slice(&their_id.to_le_bytes());
    scratch.file(format!("other/pg_wal/{}", theirs.name), &theirs.bytes);
    scratch.file("other/pg_wal/00000002.history", "1\t0/9000060\tno reason\n");
    let ids = [wal.system_id.to_string(), their_id.to_string()];
    for archive in [
        Archive::directory(&scratch, "archive"),
        Archive::bucket(&scratch, "shared"),
    ] {
        push(&archive, &data, &wal.segments[0].name).run().ok();
        let keys = archive.keys("");
        for name in [theirs.name.as_str(), "00000002.history"] {
            // From this host, which remembers, and from one that does not.
            let remembering = push(&archive, &other, name);
            let elsewhere = scratch.dir(format!("state-{}", unique()));
            let stranger = push(&archive, &other, name).env("SEAWALL_STATE_DIR", elsewhere);
            for command in [remembering, stranger] {
                let texts = ["belongs to another cluster", &ids[0], &ids[1]];
                command.run().expect(5, &texts);
            }
        }
        // Their segment alone, with nothing around it that says whose it is.
        let alone = scratch
            .dir(format!("alone-{}", unique()))
            .join(&theirs.name);
        scratch.file(&alone, &theirs.bytes);
        let outcome = archive.seawall().arg("wal-push").arg(&alone).run();
        outcome.expect(5, &[&ids[0], &ids[1]]);
        assert_eq!(archive.keys(""), keys);
    }
}

/// A text file does not say whose it is: what is run in one cluster's directory does not archive another's.
#[test]
fn a_file_in_another_clusters_directory_is_refused() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    push(&archive, &data, &wal.segments[0].name).run().ok();
    let other = wal.data_dir(&scratch, "other");
    scratch.file("other/global/pg_control", control_of_another(&wal.control));
    scratch.file("other/pg_wal/00000002.history", "1\t0/9000060\tx\n");
    let ids = [wal.system_id, wal.system_id ^ 1].map(|id| id.to_string());
    let keys = archive.keys("");
    for name in [
        "00000002.history",
        &wal.segments[1].name,
        &wal.backup_history.name,
    ] {
        let seawall = archive.seawall().cwd(&data).arg("wal-push");
        let outcome = seawall.arg(other.join("pg_wal").join(name)).run();
        outcome.expect(5, &["another cluster's", &ids[0], &ids[1], "\nhint: "]);
    }
    assert_eq!(archive.keys(""), keys);
    let fetch = archive.seawall().cwd(&data).arg("wal-fetch");
    let fetch = fetch.arg(&wal.segments[0].name);
    let outcome = fetch.arg(other.join("pg_wal/RECOVERYXLOG")).run();
    outcome.expect(205, &[&ids[0], &ids[1]]);
    // The same one by another name is none.
    let seawall = archive.seawall().cwd(&data).arg("wal-push");
    let own = data.join("pg_wal").join(&wal.segments[1].name);
    seawall.arg(own).run().ok();
}

/// The archive is unmounted while a push compresses: what lies below the mount point is no archive.
#[test]
fn an_archive_that_is_unmounted_under_way_acknowledges_nothing() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let large = Wal::shared().segments[0].incompressible(16);
    let source = scratch.dir("large").join(&large.name);
    scratch.file(&source, &large.bytes);
    let push = || archive.seawall().arg("wal-push").arg(&source);
    push().run().ok();
    archive.delete(&key(&large.name));
    let (away, bare) = (scratch.join("away"), scratch.dir("bare"));
    let mut swapped = 0;
    for round in 0..20u64 {
        let running = push().spawn();
        std::thread::sleep(Duration::from_millis(round * 3));
        fs::rename(archive.path(), &away).expect("rename");
        fs::rename(&bare, archive.path()).expect("rename");
        let outcome = running.wait(Duration::from_secs(60));
        nothing_below(archive.path());
        fs::rename(archive.path(), &bare).expect("rename");
        fs::rename(&away, archive.path()).expect("rename");
        let stored = archive.get(&key(&large.name));
        match outcome.code {
            Some(0) => assert!(unzstd(&stored.expect("stored")) == large.bytes),
            _ => {
                outcome.expect(8, &["archive"]);
                swapped += 1;
            }
        }
        let _ = fs::remove_file(archive.path().join(key(&large.name)));
    }
    println!("{swapped} of 20 met the change");
}

/// Of two clusters whose first pushes meet, one has the prefix; four servers of one cluster are one.
#[test]
fn first_pushes_that_meet() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let theirs = wal.segments[0].of_another_cluster();
    let alone = scratch.dir("alone").join(&theirs.name);
    scratch.file(&alone, &theirs.bytes);
    for round in 0..3 {
        for archive in [
            Archive::directory(&scratch, &format!("archive-{round}")),
            Archive::bucket(&scratch, "meet"),
        ] {
            let state = || scratch.dir(format!("state-{}", unique()));
            let ours = (0..4).map(|_| push(&archive, &data, &theirs.name));
            let their = archive.seawall().arg("wal-push").arg(&alone);
            let commands: Vec<Seawall> = ours.chain([their]).collect();
            let running: Vec<_> = commands
                .into_iter()
                .map(|command| command.env("SEAWALL_STATE_DIR", state()).spawn())
                .collect();
            let outcomes: Vec<Outcome> = running
                .into_iter()
                .map(|one| one.wait(Duration::from_secs(60)))
                .collect();
            let codes: Vec<_> = outcomes.iter().map(|o| o.code).collect();
            let lost = [Some(5); 4];
            let won = [Some(0); 4];
            let fair = (codes[..4] == won && codes[4] == Some(5))
                || (codes[..4] == lost && codes[4] == Some(0));
            assert!(fair, "{outcomes:?}");
            assert_eq!(archive.keys("").len(), 2);
        }
    }
}

#[test]
fn a_text_file_alone_begins_no_archive_but_joins_one() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let archive = Archive::directory(&scratch, "archive");
    let history = scratch.dir("away").join("00000002.history");
    scratch.file(&history, "1\t0/9000060\tno reason\n");
    let alone = || archive.seawall().arg("wal-push").arg(&history);
    let texts = ["annot tell which cluster", "\nhint: "];
    alone().run().expect(3, &texts);
    nothing_below(archive.path());
    // A segment says whose it is by itself.
    let segment = scratch.join("away").join(&wal.segments[0].name);
    scratch.file(&segment, &wal.segments[0].bytes);
    archive.seawall().arg("wal-push").arg(&segment).run().ok();
    let id = archive.json("seawall.json")["system_identifier"].clone();
    assert_eq!(id, wal.system_id.to_string());
    alone().run().ok();
}

#[test]
fn a_prefix_that_vanished_is_not_begun_anew() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let state = scratch.join("state");
    // A fresh place is made, with its parents.
    let place = scratch.join("deep/er/archive");
    fs::create_dir_all(scratch.join("deep")).expect("a directory");
    give_to_postgres(&scratch.join("deep"), 0o700);
    let push = |name: &str| {
        Seawall::new(&scratch)
            .cwd(&data)
            .env("SEAWALL_PREFIX", format!("file://{}", place.display()))
            .args(["wal-push", &format!("pg_wal/{name}")])
    };
    let (first, second) = (&wal.segments[0].name, &wal.segments[1].name);
    push(first)
        .run()
        .expect(0, &["now belongs to system identifier"]);

    let away = scratch.join("deep/er/away");
    fs::rename(&place, &away).expect("rename");
    push(second)
        .run()
        .expect(8, &["does not exist", "\nhint: Mount"]);
    assert!(!place.exists());
    fs::create_dir(&place).expect("a directory");
    give_to_postgres(&place, 0o700);
    let id = wal.system_id.to_string();
    let texts = [
        "has lost its seawall.json",
        &id,
        "\nhint: Check that",
        "remove ",
    ];
    push(second).run().expect(8, &texts);
    nothing_below(&place);

    // Memory that can only be read counts too.
    if is_root() {
        let dirs = run(Command::new("find").arg(&state).args(["-type", "d"]));
        let close = |mode| {
            dirs.lines()
                .for_each(|d| give_to_postgres(Path::new(d), mode))
        };
        close(0o500);
        let texts = ["going on without writing", "has lost its seawall.json"];
        push(second).run().expect(8, &texts);
        nothing_below(&place);
        close(0o700);
    }
    // On purpose: the hint's way.
    fs::remove_dir_all(&state).expect("the state directory");
    push(second).run().ok();
    fs::rename(&place, scratch.join("deep/er/new")).expect("rename");
    fs::rename(&away, &place).expect("rename");
    push(second).run().expect(0, &["archived"]);
}

#[test]
fn a_bucket_that_was_emptied_is_not_begun_anew() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::bucket(&scratch, "emptied");
    push(&archive, &data, &wal.segments[0].name).run().ok();
    for key in archive.keys("") {
        archive.delete(&key);
    }
    let outcome = push(&archive, &data, &wal.segments[1].name).run();
    outcome.expect(8, &["has lost its seawall.json", "\nhint: "]);
    assert!(archive.keys("").is_empty());
}

#[test]
fn a_state_directory_that_cannot_be_used_keeps_nobody_from_archiving() {
    if !is_root() {
        println!("skipped: needs another user's directory");
        return;
    }
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::directory(&scratch, "archive");
    let theirs = scratch.dir("theirs");
    fs::write(scratch.join("a-file"), "").expect("a file");
    let places = [
        theirs.join("deep"),
        scratch.join("a-file"),
        "/proc/nowhere".into(),
    ];
    give_to_postgres(&theirs, 0);
    // A new archive would not be begun where nobody remembers it; this one is known by its seawall.json.
    push(&archive, &data, &wal.segments[3].name).run().ok();
    for (file, place) in wal.segments.iter().zip(places) {
        let push = push(&archive, &data, &file.name).env("SEAWALL_STATE_DIR", place);
        push.run()
            .expect(0, &["going on without writing to the state directory"]);
    }
    assert_eq!(archive.keys("wal_005/").len(), 4);
    // But never in PGDATA: a base backup would carry it.
    scratch.file("data/PG_VERSION", "15\n");
    let inside =
        push(&archive, &data, &wal.segments[3].name).env("SEAWALL_STATE_DIR", data.join("seawall"));
    inside.run().expect(2, &["inside a data directory"]);
    assert!(!data.join("seawall").exists());
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    if !is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let small = Tmpfs::mount(&scratch, "small", 1 << 20);
    let prefix = format!("file://{}/archive", small.path().display());
    let place = scratch.dir("large");
    let large = wal.segments[0].incompressible(16);
    scratch.file(place.join(&large.name), &large.bytes);
    let push = || {
        let seawall = Seawall::new(&scratch).env("SEAWALL_PREFIX", &prefix);
        seawall.arg("wal-push").arg(place.join(&large.name))
    };
    for _ in 0..2 {
        push()
            .run()
            .expect(11, &["could not archive", "No space left"]);
    }
    let found = run(Command::new("find").arg(small.path()).args(["-type", "f"]));
    let identity = small.path().join("archive/seawall.json");
    assert_eq!(found.trim_end(), identity.display().to_string());
    // Room is made.
    let options = format!("remount,size={}", 64 << 20);
    run(Command::new("mount")
        .args(["-o", &options])
        .arg(small.path()));
    push().run().ok();
}

#[test]
fn pieces_go_up_whole_or_not_at_all() {
    let scratch = Scratch::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("pieces");
    let place = scratch.dir("large");
    let large = Wal::shared().segments[0].incompressible(16);
    scratch.file(place.join(&large.name), &large.bytes);
    let post = || Rule::new(Fault::s3_error(500, "InternalError")).method("POST");
    let piece = |fault| Rule::new(fault).method("PUT").query("partNumber=2");
    let complete = |fault| Rule::new(fault).method("POST").query("uploadId=");
    let within = "<Error><Code>InternalError</Code><Message>later</Message></Error>";
    let in_200 = || Fault::Status(200, Vec::new(), within.to_string());
    let denied = || Fault::s3_error(403, "AccessDenied");
    // What happens, and the code; 0 after a while.
    let trials: Vec<(&str, Rule, i32)> = vec![
        ("nothing", post().times(0), 0),
        (
            "begun on the fourth try",
            post().query("uploads").times(3),
            0,
        ),
        ("never begun", post().query("uploads"), 8),
        (
            "a piece is cut",
            piece(Fault::CutRequestAt(100_000)).times(1),
            0,
        ),
        (
            "a piece's answer is lost",
            piece(Fault::LoseAck).times(1),
            0,
        ),
        ("a piece is denied", piece(denied()), 7),
        ("a piece is swallowed", piece(Fault::Swallow), 8),
        ("a piece never arrives", piece(Fault::Reset), 8),
        (
            "completed on the fourth try",
            complete(in_200()).times(3),
            0,
        ),
        ("never completed", complete(in_200()), 8),
        ("completing is denied", complete(denied()), 7),
        ("a page completes it", complete(Fault::html(200)), 8),
        (
            "completed, the answer is lost",
            complete(Fault::LoseAck).times(1),
            0,
        ),
    ];
    for (what, rule, code) in trials {
        println!("{what}");
        let proxy = Proxy::start(minio.port());
        proxy.rule(rule);
        let prefix = format!("pieces-{}", unique());
        let mut env = s3_env(&proxy.endpoint(), &bucket.name());
        env[0].1 = format!("s3://{}/{prefix}", bucket.name());
        let seawall = Seawall::new(&scratch).envs(env).arg("wal-push");
        let retry = if code == 0 { "60s" } else { "300ms" };
        let seawall = seawall.env("SEAWALL_RETRY_TIMEOUT", retry);
        seawall.arg(place.join(&large.name)).run().expect(code, &[]);
        let key = format!("{prefix}/wal_005/{}.zst", large.name);
        let stored = bucket.get(&key);
        assert_eq!(stored.is_some(), code == 0, "{what}");
        if let Some(stored) = stored {
            assert!(unzstd(&stored) == large.bytes, "{what}");
        }
        assert!(bucket.unfinished_uploads(&key).is_empty(), "{what}");
    }
}

#[test]
fn a_segment_of_64_mib_of_noise_needs_no_more_memory() {
    let scratch = Scratch::new();
    let large = Wal::shared().segments[0].incompressible(64);
    let place = scratch.dir("large");
    scratch.file(place.join(&large.name), &large.bytes);
    let archive = Archive::bucket(&scratch, "large");
    let push = archive
        .seawall()
        .arg("wal-push")
        .arg(place.join(&large.name));
    let outcome = push.measured(&scratch).run().ok();
    let peak = outcome.peak_rss_kib.expect("measured");
    assert!(peak <= 32 << 10, "{peak} KiB");
    let stored = archive.get(&key(&large.name)).expect("stored");
    assert!(unzstd(&stored) == large.bytes);
}

/// 32 MiB for a segment of 16 MiB, to a directory, to S3 and to S3 over TLS, for what compresses and what does not.
#[test]
fn a_push_and_a_fetch_stay_within_32_mib() {
    let scratch = Scratch::new();
    let noise = Wal::shared().segments[0].incompressible(16);
    let mut even = noise.clone();
    even.bytes[8192..].fill(b'x');
    even.name = noise.name.clone();
    let plain = Minio::plain();
    let bucket = plain.bucket("memory");
    let archives = [
        Archive::directory(&scratch, "archive"),
        Archive::of_witness(&scratch, plain.env(&bucket.name()), bucket),
        Archive::bucket(&scratch, "memory"),
    ];
    let measure = |command: Seawall| {
        let outcome = command.measured(&scratch).run().ok();
        let peak = outcome.peak_rss_kib.expect("measured");
        assert!(peak <= 32 << 10, "{peak} KiB: {outcome:?}");
        peak >> 10
    };
    for archive in archives {
        for file in [&noise, &even] {
            let place = scratch.dir(format!("place-{}", unique()));
            let source = place.join(&file.name);
            scratch.file(&source, &file.bytes);
            for key in archive.keys("wal_005/") {
                archive.delete(&key);
            }
            let first = measure(archive.seawall().arg("wal-push").arg(&source));
            let again = measure(archive.seawall().arg("wal-push").arg(&source));
            let dest = place.join("RECOVERYXLOG");
            let fetch = archive.seawall().arg("wal-fetch").arg(&file.name);
            let fetch = measure(fetch.arg(&dest));
            assert!(fs::read(&dest).expect("DEST") == file.bytes);
            println!("push {first}, again {again}, fetch {fetch} MiB");
        }
    }
}

#[test]
fn settings_come_by_envdir() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let minio = Minio::plain();
    let bucket = minio.bucket("envdir");
    let envdir = scratch.dir("env");
    for (name, value) in minio.env(&bucket.name()) {
        scratch.file(envdir.join(name), format!("{value}\n"));
    }
    let native = Seawall::new(&scratch)
        .cwd(&data)
        .arg("--envdir")
        .arg(&envdir);
    let native = native.args(["wal-push", &format!("pg_wal/{}", wal.segments[0].name)]);
    native.run().ok().without(&[SECRET_KEY]);
    let binary = scratch.binary().to_path_buf();
    let daemontools = Seawall::of(&scratch, "/usr/bin/envdir").cwd(&data);
    let daemontools = daemontools.arg(&envdir).arg(binary).arg("wal-push");
    let daemontools = daemontools.arg(format!("pg_wal/{}", wal.segments[1].name));
    daemontools.run().ok().without(&[SECRET_KEY]);
    assert_eq!(bucket.keys("archive/wal_005/").len(), 2);
}

#[test]
fn no_secret_is_logged_even_at_trace() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let archive = Archive::bucket(&scratch, "trace");
    let trace = |command: Seawall| command.env("SEAWALL_LOG_LEVEL", "trace");
    let pushed = trace(push(&archive, &data, &wal.segments[0].name))
        .run()
        .ok();
    assert!(pushed.stderr.contains("DEBUG"), "{pushed:?}");
    pushed.without(&[SECRET_KEY]);
    let fetch = archive
        .seawall()
        .cwd(&data)
        .args(["wal-fetch", &wal.segments[0].name]);
    let dest = scratch.dir("dest").join("RECOVERYXLOG");
    trace(fetch.arg(dest)).run().ok().without(&[SECRET_KEY]);
    let token = "t0ken-of-the-test";
    let wrong = trace(push(&archive, &data, &wal.segments[1].name));
    let outcome = wrong.env("AWS_SESSION_TOKEN", token).run();
    outcome.expect(7, &[]).without(&[SECRET_KEY, token]);
}

/// One that is told to stop while the store is silent ends soon, by its own code: archive_command must not exceed 125.
#[test]
fn a_signal_ends_a_push_that_hangs() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    let minio = Minio::plain();
    let bucket = minio.bucket("signal");
    let proxy = Proxy::start(minio.port());
    proxy.rule(Rule::new(Fault::Silence).method("PUT"));
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let push = Seawall::new(&scratch).cwd(&data).envs(env);
    let push = push.args(["wal-push", &format!("pg_wal/{}", wal.segments[0].name)]);
    let running = push.spawn();
    wait_for(Duration::from_secs(20), "a silent PUT", || {
        proxy.requests().iter().any(|r| r.fault.is_some())
    });
    let begin = Instant::now();
    running.signal(Signal::TERM);
    let outcome = running.wait(Duration::from_secs(20));
    outcome.expect(12, &["interrupted by SIGTERM"]);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(bucket.keys("").is_empty());
}

/// A segment that PostgreSQL would write next, and one with a page magic of tomorrow: the rest fits, so it is taken.
#[test]
fn a_newer_page_magic_is_a_warning() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let archive = Archive::directory(&scratch, "archive");
    let mut newer: WalFile = wal.segments[0].clone();
    newer.bytes[..2].copy_from_slice(&0xD1FFu16.to_le_bytes());
    let path: PathBuf = scratch.dir("alone").join(&newer.name);
    scratch.file(&path, &newer.bytes);
    let outcome = archive.seawall().arg("wal-push").arg(&path).run();
    outcome.expect(0, &["WARN", "D1FF"]);
    assert!(archive.get(&key(&newer.name)).is_some());
}
