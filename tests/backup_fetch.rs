//! backup-fetch: where a backup may go, how far it recovers, and that damage is named and never started.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archive::{self, Archive, sentinel_key, sha256, unzstd, zstd};
use crate::support::cluster::{Cluster, Stop, pg_tool};
use crate::support::minio::SECRET_KEY;
use crate::support::seawall::Seawall;
use crate::support::tmpfs::Tmpfs;
use crate::support::{Scratch, give_to_postgres, is_root, run, wait_for};

/// A server with two tablespaces, `a=b` and `c d`, 1000 rows in each, and one backup.
struct Source<'a> {
    archive: Archive<'a>,
    production: Cluster,
    spaces: [PathBuf; 2],
    oids: [String; 2],
}

impl<'a> Source<'a> {
    fn new(scratch: &'a Scratch) -> Source<'a> {
        let archive = Archive::directory(scratch, "archive");
        let production = archive.builder("production").start();
        let spaces = ["a=b", "c d"].map(|name| scratch.dir(name));
        let make = |n: usize| {
            let place = spaces[n].display();
            production.execute(&format!("create tablespace s{n} location '{place}'"));
            production.execute(&format!(
                "create table t{n} tablespace s{n} as select generate_series(1, 1000) as n"
            ));
            production.value(&format!(
                "select oid from pg_tablespace where spcname = 's{n}'"
            ))
        };
        let oids = [make(0), make(1)];
        let push = archive.seawall_for(&production).arg("backup-push");
        push.arg(production.data()).run().ok();
        Source {
            archive,
            production,
            spaces,
            oids,
        }
    }

    fn fetch(&self, data: &Path) -> Seawall {
        self.archive
            .seawall()
            .arg("backup-fetch")
            .arg(data)
            .arg("LATEST")
    }

    /// Starts a copy in recovery and looks at its tables.
    fn assert_alive(&self, scratch: &Scratch, data: &Path) -> Cluster {
        let name = format!(
            "{}-server",
            data.file_name().expect("a name").to_string_lossy()
        );
        let mut copy = Cluster::builder(scratch, &name).on(data);
        copy.start();
        copy.wait_recovered();
        for table in ["t0", "t1"] {
            assert_eq!(copy.number(&format!("select count(*) from {table}")), 1000);
        }
        copy
    }
}

#[test]
fn tablespaces_go_where_they_are_sent() {
    // Given a backup with two tablespaces, one with '=' in its path and one with a space,
    let scratch = Scratch::new();
    let source = Source::new(&scratch);
    let link = |data: &Path, n: usize| {
        fs::read_link(data.join("pg_tblspc").join(&source.oids[n])).expect("a link")
    };
    let segment = source.production.switch_wal();
    source.production.wait_archived(&segment);

    // when nothing is said, they would go where the living original has them: refused, nothing written;
    let data = scratch.join("nothing said");
    for words in [&[][..], &["--restore-spec", "SOURCE"]] {
        source
            .fetch(&data)
            .args(words)
            .run()
            .expect(3, &["a=b", "is not empty", "--tablespace-mapping"]);
        assert!(!data.exists());
    }

    // when each is mapped, '=' escaped, they go there;
    let data = scratch.join("mapped");
    let places = [scratch.join("new=a"), scratch.join("new c")];
    let escaped = |path: &Path| path.display().to_string().replace('=', "\\=");
    let pair = |n: usize| format!("{}={}", escaped(&source.spaces[n]), escaped(&places[n]));
    source
        .fetch(&data)
        .args([
            "--recovery",
            "-T",
            &pair(0),
            "--tablespace-mapping",
            &pair(1),
        ])
        .run()
        .ok();
    assert_eq!([link(&data, 0), link(&data, 1)], places);
    archive::verify(
        &data,
        &source.archive.fetch_wal_of(&source.archive.latest()),
    );
    source.assert_alive(&scratch, &data);

    // when a restore specification says so, they go there, and pg_wal where --waldir says;
    let data = scratch.join("specified");
    let places = [scratch.join("specified a"), scratch.join("specified c")];
    let mut spec = source.archive.sentinel(&source.archive.latest())["spec"].clone();
    for (oid, place) in source.oids.iter().zip(&places) {
        spec[oid]["loc"] = json!(place.to_str());
    }
    let file = scratch.file("spec.json", spec.to_string());
    let waldir = scratch.join("wal dir");
    source
        .fetch(&data)
        .args(["--recovery", "--restore-spec"])
        .arg(file)
        .arg("--waldir")
        .arg(&waldir)
        .run()
        .ok();
    assert_eq!([link(&data, 0), link(&data, 1)], places);
    assert_eq!(fs::read_link(data.join("pg_wal")).expect("a link"), waldir);
    archive::verify(
        &data,
        &source.archive.fetch_wal_of(&source.archive.latest()),
    );
    let copy = source.assert_alive(&scratch, &data);
    assert!(
        waldir
            .join(copy.value("select pg_walfile_name(pg_current_wal_lsn())"))
            .exists()
    );
    drop(copy);

    // when all goes into the data directory, there is no link, and the server accepts it.
    let data = scratch.join("blind");
    let told = source
        .fetch(&data)
        .args(["--recovery", "--blind-restore"])
        .run()
        .ok();
    assert!(
        told.stderr.contains("allow_in_place_tablespaces"),
        "{told:?}"
    );
    for oid in &source.oids {
        assert!(
            fs::symlink_metadata(data.join("pg_tblspc").join(oid))
                .expect("a directory")
                .is_dir()
        );
    }
    archive::verify(
        &data,
        &source.archive.fetch_wal_of(&source.archive.latest()),
    );
    let copy = source.assert_alive(&scratch, &data);

    // Such a copy can be backed up and restored in its turn.
    let next = Archive::directory(&scratch, "next");
    copy.execute("alter system set archive_mode = on");
    copy.configure("archive_command", &next.archive_command());
    let mut copy = copy;
    copy.restart();
    next.seawall_for(&copy)
        .arg("backup-push")
        .arg(copy.data())
        .run()
        .ok();
    let data = scratch.join("blind again");
    let fetch = next.seawall().arg("backup-fetch").arg(&data);
    fetch.args(["LATEST", "--recovery"]).run().ok();
    archive::verify(&data, &next.fetch_wal_of(&next.latest()));
    source.assert_alive(&scratch, &data);
}

#[test]
fn places_that_do_not_fit_are_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch);
    let data = scratch.join("copy");
    let map = |n: usize, to: &str| {
        format!(
            "{}={to}",
            source.spaces[n].display().to_string().replace('=', "\\=")
        )
    };
    let new = |name: &str| scratch.join(name).display().to_string();
    let both = [map(0, &new("x")), map(1, &new("y"))];
    let fetch = |data: &Path| source.fetch(data).args(["-T", &both[0], "-T", &both[1]]);

    // A directory with something in it, a running server's, a file, one below a file.
    fs::write(scratch.dir("filled").join("x"), "mine").expect("a file");
    fetch(&scratch.join("filled"))
        .run()
        .expect(3, &["filled\" is not empty", "Give a new directory"]);
    fetch(source.production.data())
        .run()
        .expect(3, &["belongs to a running server", "postmaster.pid"]);
    let inside = source.production.data().join("pg_log/copy");
    fetch(&inside)
        .run()
        .expect(3, &["pg_log/copy\" lies inside the data directory"]);
    assert!(!source.production.data().join("pg_log").exists());
    let file = scratch.file("file", "mine");
    fetch(&file).run().expect(3, &["is not a directory"]);
    let waldir = fetch(&data).arg("--waldir").arg(&file);
    waldir.run().expect(3, &["file\" is not a directory"]);
    fetch(&file.join("below")).run().expect(1, &["file/below"]);
    assert_eq!(fs::read_to_string(&file).expect("the file"), "mine");
    assert_eq!(
        fs::read_dir(scratch.join("filled"))
            .expect("the directory")
            .count(),
        1
    );

    // Tablespaces: no such one, not absolute, two in one place, a file that is no specification, a filled place.
    let refused: [(&[&str], i32, &str); 7] = [
        (
            &["-T", "/nowhere=/x"],
            2,
            "no tablespace of this backup was in \"/nowhere\"",
        ),
        (&["-T", "nonsense"], 2, "is not OLD=NEW"),
        (
            &["-T", &map(0, &new("x")), "-T", &map(1, &new("x/y"))],
            2,
            "two tablespaces would share",
        ),
        (
            &["--restore-spec", &file.display().to_string()],
            2,
            "is not a restore specification",
        ),
        (&["--restore-spec", &new("absent")], 9, "absent"),
        (
            &["-T", &both[0], "-T", &map(1, &new("filled"))],
            3,
            "filled\" is not empty",
        ),
        (
            &["-T", &both[0], "-T", &both[1], "--waldir", &new("filled")],
            3,
            "filled\" is not empty",
        ),
    ];
    for (words, code, text) in refused {
        source.fetch(&data).args(words).run().expect(code, &[text]);
    }
    // Places inside each other: PostgreSQL's own directories would be mixed up.
    let inside = |name: &str| data.join(name).display().to_string();
    let waldir = |place: &str| fetch(&data).args(["--waldir", place]).run();
    waldir(&inside("pg_wal")).expect(2, &["inside"]);
    waldir(&new("x/wal")).expect(2, &["inside"]);
    let space = |place: &str| {
        source
            .fetch(&data)
            .args(["-T", &both[0], "-T", &map(1, place)])
            .run()
    };
    space(&inside("space")).expect(2, &["inside"]);
    space(&scratch.path().display().to_string()).expect(2, &["would share"]);

    // Links on the way do not hide it.
    let real = scratch.dir("real");
    for (link, to) in [("link", &real), ("way", &scratch.path().to_path_buf())] {
        std::os::unix::fs::symlink(to, scratch.join(link)).expect("a link");
    }
    let apart = |words: &[&str]| {
        let refused = source.fetch(&data).args(words).run();
        refused.expect(2, &["lies inside", "whatever links"]);
    };
    let (one, other) = (map(0, &new("real/x")), map(1, &new("link/x")));
    apart(&["-T", &one, "-T", &other]);
    let waldir = new("way/copy/pg_wal");
    apart(&["-T", &both[0], "-T", &both[1], "--waldir", &waldir]);
    assert!(!real.join("x").exists());

    // A parent that may not be written to.
    if is_root() {
        let closed = scratch.join("closed");
        fs::create_dir(&closed).expect("root's directory");
        fetch(&closed.join("copy"))
            .run()
            .expect(7, &["closed/copy"]);
    }
    assert!(!data.exists());
    for name in ["x", "y"] {
        assert!(!scratch.join(name).exists(), "{name}");
    }
}

#[test]
fn a_file_system_that_is_too_small_is_refused_or_named() {
    if !is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let scratch = Scratch::new();
    let source = Source::new(&scratch);
    let map = |n: usize, to: &Path| {
        format!(
            "{}={}",
            source.spaces[n].display().to_string().replace('=', "\\="),
            to.display()
        )
    };
    let small = Tmpfs::mount(&scratch, "small", 2 << 20);
    let fetch = |data: &Path, spaces: [&Path; 2]| {
        let fetch = source.fetch(data);
        fetch.args([
            "-T",
            &map(0, spaces[0]),
            "-T",
            &map(1, spaces[1]),
            "--recovery",
        ])
    };
    let [x, y] = [scratch.join("x"), scratch.join("y")];

    // Given a place that is too small for the data directory, then nothing is written there;
    let data = small.path().join("copy");
    fetch(&data, [&x, &y]).run().expect(
        11,
        &["there is not enough room", "small", "Nothing was written"],
    );
    assert!(!data.exists() && !x.exists());

    // for a tablespace it is large enough.
    let data = scratch.join("copy");
    fetch(&data, [&small.path().join("space"), &y]).run().ok();
    let segment = source.production.switch_wal();
    source.production.wait_archived(&segment);
    drop(source.assert_alive(&scratch, &data));

    // Given a backup with a large file, and somebody who fills the file system while it is restored,
    let ballast = source.production.data().join("zzz");
    run(Command::new("truncate").arg("--size=200M").arg(&ballast));
    give_to_postgres(&ballast, 0o600);
    source
        .archive
        .seawall_for(&source.production)
        .arg("backup-push")
        .arg(source.production.data())
        .run()
        .ok();
    let medium = Tmpfs::mount(&scratch, "medium", 300 << 20);
    let data = medium.path().join("copy");
    let [x, y] = [scratch.join("x2"), scratch.join("y2")];
    let restore = fetch(&data, [&x, &y]).spawn();
    wait_for(Duration::from_secs(30), "the first files", || {
        data.join("base/1/PG_VERSION").exists()
    });
    run(Command::new("fallocate")
        .arg("--length=110M")
        .arg(medium.path().join("somebody else's")));

    // then the restore says what happened, and cannot be started.
    restore
        .wait(Duration::from_secs(60))
        .expect(11, &["was not restored", "zzz", "cannot be started"]);
    assert_cannot_start(&scratch, &data);
}

/// There is no pg_control, and PostgreSQL refuses the directory.
fn assert_cannot_start(scratch: &Scratch, data: &Path) {
    assert!(!data.join("global/pg_control").exists());
    let mut copy = Cluster::builder(scratch, "not-startable").on(data);
    let log = copy.try_start().expect_err("a server on half a restore");
    assert!(
        log.contains("does not exist")
            || log.contains("could not")
            || log.contains("not a valid data directory"),
        "{log}"
    );
}

#[test]
fn damage_of_every_kind_is_named_and_leaves_nothing_that_starts() {
    // Given two backups of a server,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    let push = || {
        archive
            .seawall_for(&production)
            .arg("backup-push")
            .arg(production.data())
            .run()
            .ok()
    };
    push();
    let other = archive.latest();
    push();
    let backup = archive.latest();
    let directory = |backup: &str, name: &str| format!("basebackups_005/{backup}/{name}");
    let part = directory(&backup, "tar_partitions/part_00000000.tar.zst");
    let manifest = directory(&backup, "backup_manifest.zst");
    let other_part = archive
        .get(&directory(&other, "tar_partitions/part_00000000.tar.zst"))
        .expect("a part");
    let other_manifest = archive
        .get(&directory(&other, "backup_manifest.zst"))
        .expect("a manifest");
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let data = scratch.join("copy");

    // when an object of it is damaged, then that object is named, the exit code tells the kind, nothing starts.
    let check = |key: &str, damaged: Option<Vec<u8>>, code: i32, texts: &[&str], what: &str| {
        let whole = archive.get(key).expect("the object");
        match damaged {
            Some(bytes) => archive.put(key, &bytes),
            None => archive.delete(key),
        }
        let outcome = archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg(&backup)
            .run();
        println!("{what}: {}", outcome.stderr);
        outcome.expect(code, &[key]).expect(code, texts);
        if data.exists() {
            assert_cannot_start(&scratch, &data);
            fs::remove_dir_all(&data).expect("the copy");
        }
        archive.put(key, &whole);
    };
    let whole = archive.get(&part).expect("the part");
    let restored: &[&str] = &["was not restored", "cannot be started"];
    check(&part, None, 10, restored, "part missing");
    check(
        &part,
        Some(whole[..whole.len() / 2].to_vec()),
        6,
        restored,
        "part cut in half",
    );
    check(
        &part,
        Some(whole[..whole.len() - 1].to_vec()),
        6,
        restored,
        "part without its last byte",
    );
    check(
        &part,
        Some([&whole[..], b"x"].concat()),
        6,
        restored,
        "part with a byte more",
    );
    check(&part, Some(Vec::new()), 6, restored, "empty part");
    for at in [0, whole.len() / 3, whole.len() - 1] {
        check(
            &part,
            Some(flipped(&whole, at)),
            6,
            restored,
            "bit flipped in a part",
        );
    }
    check(
        &part,
        Some(other_part),
        6,
        restored,
        "part of another backup",
    );
    let text = archive.get(&manifest).expect("the manifest");
    check(&manifest, None, 10, &[], "manifest missing");
    check(
        &manifest,
        Some(flipped(&text, text.len() / 2)),
        6,
        &[],
        "bit flipped in the manifest",
    );
    check(
        &manifest,
        Some(other_manifest),
        6,
        &[],
        "manifest of another backup",
    );

    // A sentinel that names the wrong bytes as right: the manifest still knows.
    let sentinel = archive.get(&sentinel_key(&backup)).expect("the sentinel");
    let tampered = tampered_part(&unzstd(&whole));
    replace_part(&archive, &backup, &tampered);
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .arg(&backup)
        .run()
        .expect(6, &["PG_VERSION", "does not match the manifest"]);
    assert_cannot_start(&scratch, &data);
    fs::remove_dir_all(&data).expect("the copy");
    archive.put(&part, &whole);

    // A sentinel that has another digest of an object: nobody knows which of the two is wrong.
    let mut doubtful: Value = serde_json::from_slice(&sentinel).expect("JSON");
    doubtful["seawall"]["parts"][0]["sha256"] = json!(sha256(b"another"));
    archive.put(&sentinel_key(&backup), doubtful.to_string().as_bytes());
    let fetch = archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .arg(&backup);
    fetch
        .run()
        .expect(6, &[&part, "is not the one that was stored"]);
    assert_cannot_start(&scratch, &data);
    fs::remove_dir_all(&data).expect("the copy");

    // A sentinel that cannot be read, that is of a later format, of another tool, or is not there.
    let mut later: Value = serde_json::from_slice(&sentinel).expect("JSON");
    later["seawall"]["format"] = json!(99);
    let mut foreign: Value = serde_json::from_slice(&sentinel).expect("JSON");
    foreign
        .as_object_mut()
        .expect("an object")
        .remove("seawall");
    let key = sentinel_key(&backup);
    let cases = [
        ("{".to_string(), 6, key.as_str()),
        (String::new(), 6, &key),
        ("{\"spec\": 1}".to_string(), 6, &key),
        (later.to_string(), 8, "has format 99"),
        (foreign.to_string(), 8, "written by another tool"),
    ];
    for (text, code, expected) in cases {
        archive.put(&key, text.as_bytes());
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg(&backup)
            .run()
            .expect(code, &[expected]);
        assert!(!data.exists());
    }
    archive.delete(&sentinel_key(&backup));
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .arg(&backup)
        .run()
        .expect(9, &["there is no backup", &backup]);
    archive.put(&sentinel_key(&backup), &sentinel);

    // Names: unknown, half a name, not a name.
    let unknown = backup.replace("base_0000000100000000000000", "base_0000000100000000000001");
    for (name, code, text) in [
        (unknown.as_str(), 9, "there is no backup"),
        (&backup[..backup.len() - 1], 2, "is not"),
        (&format!("{backup}0"), 2, "is not"),
        ("latest", 2, "is not"),
        ("", 2, ""),
        ("../seawall", 2, "is not"),
    ] {
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg(name)
            .run()
            .expect(code, &[text]);
    }
    assert!(!data.exists());

    // and whole again, it is restored.
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .arg(&backup)
        .run()
        .ok();
    archive::verify(&data, &archive.fetch_wal_of(&backup));
}

/// A part in which PG_VERSION says 16, as long as before.
fn tampered_part(raw: &[u8]) -> Vec<u8> {
    let mut raw = raw.to_vec();
    let at = raw
        .windows(11)
        .position(|bytes| bytes == b"PG_VERSION\0")
        .expect("the member");
    raw[at + 512] = b'9';
    raw
}

/// Stores these raw bytes as the backup's only part, and lets the sentinel say that it is so.
fn replace_part(archive: &Archive, backup: &str, raw: &[u8]) {
    let stored = zstd(raw);
    let mut sentinel = archive.sentinel(backup);
    let part = &mut sentinel["seawall"]["parts"][0];
    part["stored_bytes"] = json!(stored.len());
    part["raw_bytes"] = json!(raw.len());
    part["sha256"] = json!(sha256(&stored));
    archive.put(part["key"].as_str().expect("a key"), &stored);
    archive.put(&sentinel_key(backup), sentinel.to_string().as_bytes());
}

#[test]
fn a_crafted_archive_writes_nothing_outside() {
    // Given a backup with a tablespace,
    let scratch = Scratch::new();
    let source = Source::new(&scratch);
    let backup = source.archive.latest();
    let key = format!("basebackups_005/{backup}/tar_partitions/part_00000000.tar.zst");
    let raw = unzstd(&source.archive.get(&key).expect("the part"));
    let outside = scratch.join("outside");
    let map = |n: usize| {
        format!(
            "{}={}",
            source.spaces[n].display().to_string().replace('=', "\\="),
            scratch.join(format!("copied{n}")).display()
        )
    };
    let oid = &source.oids[0];
    let absolute = outside.display().to_string();
    let in_space = format!("pg_tblspc/{oid}/../outside");
    let behind_link = format!("pg_tblspc/{oid}");

    // when somebody puts such a member before all others,
    let members: Vec<(Vec<u8>, &str)> = vec![
        (member("../outside", b'0', ""), "unsafe name"),
        (member(&absolute, b'0', ""), "unsafe name"),
        (member("base/../../outside", b'0', ""), "unsafe name"),
        (member(&in_space, b'0', ""), "unsafe name"),
        (member("../outside", b'5', ""), "unsafe name"),
        (
            member("base", b'2', &absolute),
            "neither a file nor a directory",
        ),
        (
            member(&behind_link, b'2', &absolute),
            "neither a file nor a directory",
        ),
        (
            member("base/hard", b'1', "/etc/hostname"),
            "neither a file nor a directory",
        ),
        (member("device", b'3', ""), "neither a file nor a directory"),
        (member("pipe", b'6', ""), "neither a file nor a directory"),
        (
            member("not-in-the-manifest", b'0', ""),
            "does not match the manifest",
        ),
        // What is not at its place under any other spelling, least of all the file that lets a server start,
        (
            member("./global/pg_control", b'0', ""),
            "global/pg_control\" does not match the manifest",
        ),
        (
            member("./standby.signal", b'0', ""),
            "\"standby.signal\" does not match the manifest",
        ),
        // and WAL that the backup does not need.
        (
            member("pg_wal/extra", b'0', ""),
            "\"pg_wal/extra\" does not match the manifest",
        ),
        (
            member("pg_wal/archive_status/x.ready", b'0', ""),
            "x.ready\" does not match the manifest",
        ),
    ];
    for (member, text) in members {
        replace_part(&source.archive, &backup, &[&member[..], &raw].concat());
        let data = scratch.join("copy");
        let fetch = source
            .fetch(&data)
            .args(["-T", &map(0), "-T", &map(1)])
            .run();

        // then the restore is refused and nothing is written beside the copy.
        fetch.expect(6, &[text, "cannot be started"]);
        assert!(!outside.exists(), "{text}");
        assert_cannot_start(&scratch, &data);
        fs::remove_dir_all(&data).expect("the copy");
        for n in [0, 1] {
            fs::remove_dir_all(scratch.join(format!("copied{n}"))).expect("the copy's tablespace");
        }
    }
}

/// One tar member without contents: name, type flag and target of a link.
fn member(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000700\0");
    header[124..136].copy_from_slice(b"00000000000\0");
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.to_vec()
}

#[test]
fn matrix_recovery_ends_at_the_target_that_was_asked_for() {
    // Given a server with rows before and after a backup, and what leads to each of them,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    production.execute("create table t as select 1 as n");
    archive
        .seawall_for(&production)
        .arg("backup-push")
        .arg(production.data())
        .run()
        .ok();
    let insert = |n: i64| {
        production.value(&format!(
            "with w as (insert into t values ({n})) select pg_current_xact_id()::text"
        ))
    };
    insert(2);
    let lsn = production.value("select pg_current_wal_insert_lsn()");
    insert(3);
    // The form of the manual's example.
    let time = production.value(
        "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') || 'Z'",
    );
    let xid = insert(4);
    production.execute("select pg_create_restore_point('vor dem ü''nfall')");
    insert(5);
    let segment = production.switch_wal();
    production.wait_archived(&segment);

    // when a copy recovers to a target, then it has the rows up to there and none beyond,
    let rows =
        |copy: &Cluster| copy.number("select max(n) from t where n = (select count(*) from t)");
    let recover = |name: &str, words: &[&str]| {
        let data = scratch.join(name);
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg("LATEST")
            .args(words)
            .run()
            .ok();
        Cluster::builder(&scratch, &format!("{name}-server")).on(data)
    };
    let promoted: [(&str, &[&str], i64); 6] = [
        ("end", &["--recovery"], 5),
        (
            "time",
            &["--target-time", &time, "--target-action", "promote"],
            3,
        ),
        ("lsn", &["--target-lsn", &lsn, "--target-action=promote"], 2),
        (
            "before",
            &[
                "--target-xid",
                &xid,
                "--target-exclusive",
                "--target-action=promote",
            ],
            3,
        ),
        (
            "immediate",
            &["--target-immediate", "--target-action=promote"],
            1,
        ),
        ("latest", &["--target-timeline", "latest"], 5),
    ];
    for (name, words, expected) in promoted {
        let mut copy = recover(name, words);
        copy.start();
        copy.wait_recovered();
        assert_eq!(rows(&copy), expected, "{name}");
        assert_eq!(copy.value("show archive_mode"), "off");
    }
    // or pauses there,
    let mut copy = recover("xid", &["--target-xid", &xid]);
    copy.start();
    wait_for(Duration::from_secs(30), "a pause", || {
        copy.value("select pg_is_wal_replay_paused()::text") == "true"
    });
    assert_eq!(rows(&copy), 4);
    drop(copy);
    // or ends there.
    let mut copy = recover(
        "name",
        &[
            "--target-name",
            "vor dem ü'nfall",
            "--target-action",
            "shutdown",
        ],
    );
    copy.launch();
    wait_for(
        Duration::from_secs(30),
        "the shutdown at the target",
        || copy.has_ended(),
    );
    assert!(
        copy.log()
            .contains("recovery stopping at restore point \"vor dem ü'nfall\""),
        "{}",
        copy.log()
    );

    // A standby follows the archive until it is promoted, and keeps to itself then.
    let data = scratch.join("standby");
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .args(["LATEST", "--standby"])
        .run()
        .ok();
    assert!(data.join("standby.signal").exists() && !data.join("recovery.signal").exists());
    let mut standby = Cluster::builder(&scratch, "standby-server").on(data);
    standby.start();
    insert(6);
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    wait_for(Duration::from_secs(30), "the row at the standby", || {
        rows(&standby) == 6
    });
    standby.promote();
    standby.switch_wal();
    assert_eq!(
        archive.keys("wal_005/00000002"),
        [""; 0],
        "the promoted copy does not archive"
    );
}

#[test]
fn a_copy_takes_over_when_archiving_is_kept() {
    // Given a lost server, when its copy is told to keep archiving,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.execute("create table t as select 1 as n");
    archive
        .seawall_for(&production)
        .arg("backup-push")
        .arg(production.data())
        .run()
        .ok();
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    production.kill9();
    let data = scratch.join("copy");
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(&data)
        .args(["LATEST", "--recovery", "--keep-archiving"])
        .run()
        .ok();
    let mut copy = Cluster::builder(&scratch, "copy-server").on(data);
    copy.start();
    copy.wait_recovered();
    copy.execute("insert into t values (2)");
    let segment = copy.switch_wal();
    copy.wait_archived(&segment);

    // then its timeline is archived, backed up, and followed by the next restore.
    assert!(
        archive
            .keys("wal_005/")
            .contains(&"wal_005/00000002.history.zst".to_string())
    );
    archive
        .seawall_for(&copy)
        .arg("backup-push")
        .arg(copy.data())
        .run()
        .ok();
    assert_eq!(
        archive.sentinel(&archive.latest())["seawall"]["timeline"],
        2
    );
    let segment = copy.switch_wal();
    copy.wait_archived(&segment);
    let first = archive.backups().remove(0);
    for backup in [first.as_str(), "LATEST"] {
        let data = scratch.join(format!("from {backup}"));
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .args([backup, "--recovery"])
            .run()
            .ok();
        let mut next = Cluster::builder(&scratch, &format!("{backup}-server")).on(data);
        next.start();
        next.wait_recovered();
        assert_eq!(next.number("select count(*) from t"), 2, "{backup}");
        next.stop(Stop::Fast);
    }
}

#[test]
fn matrix_a_copy_leaves_productions_subscription_alone() {
    // Given a production that subscribes to another server, is written to synchronously, and is backed up,
    let scratch = Scratch::new();
    let publisher = Cluster::builder(&scratch, "publisher")
        .config("wal_level", "logical")
        .start();
    publisher.execute("create table t (n int)");
    publisher.execute("create publication p for table t");
    let archive = Archive::directory(&scratch, "archive");
    let mut production = archive.builder("production").start();
    production.execute("create table t (n int)");
    production.execute(&format!(
        "create subscription s connection 'host={} port={} user=postgres dbname=postgres' publication p",
        publisher.sockets().display(),
        publisher.port()
    ));
    let rows = |cluster: &Cluster| {
        cluster.value("select coalesce(string_agg(n::text, ' ' order by n), '') from t")
    };
    let wait_for_rows = |cluster: &Cluster, expected: &str| {
        let what = format!("{expected:?} in {}", cluster.data().display());
        wait_for(Duration::from_secs(30), &what, || rows(cluster) == expected);
    };
    publisher.execute("insert into t values (1)");
    wait_for_rows(&production, "1");
    production.configure("synchronous_standby_names", "nobody");
    let push = archive.seawall_for(&production).arg("backup-push");
    push.arg(production.data()).run().ok();
    production.stop(Stop::Fast);

    // when a copy of it is promoted while it is down,
    let data = scratch.join("copy");
    let restore = |data: &Path, words: &[&str]| {
        let fetch = archive.seawall().arg("backup-fetch").arg(data);
        fetch
            .args(["LATEST", "--target-immediate", "--target-action=promote"])
            .args(words)
            .run()
            .ok()
    };
    let told = restore(&data, &[]);
    assert!(
        told.stderr.contains("runs no subscriptions"),
        "{}",
        told.stderr
    );
    let mut copy = Cluster::builder(&scratch, "copy-server").on(data);
    copy.start();
    copy.wait_recovered();
    assert_eq!(copy.value("show synchronous_standby_names"), "");
    copy.execute("create table own as select 1 as n");
    publisher.execute("insert into t values (2)");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rows(&copy), "1");
    drop(copy);

    // then production misses nothing when it is up again.
    production.configure("synchronous_standby_names", "");
    production.start();
    wait_for_rows(&production, "1 2");

    // Given a production that is lost, then the copy that takes its place is told to keep what it had, and does.
    production.kill9();
    publisher.execute("insert into t values (3)");
    let data = scratch.join("heir");
    let told = restore(&data, &["--keep-archiving"]);
    assert!(
        told.stderr.contains("give --keep-replication too"),
        "{}",
        told.stderr
    );
    fs::remove_dir_all(&data).expect("the copy");
    restore(&data, &["--keep-archiving", "--keep-replication"]);
    let mut heir = Cluster::builder(&scratch, "heir-server").on(data);
    heir.start();
    heir.wait_recovered();
    assert_eq!(heir.value("show synchronous_standby_names"), "nobody");
    // Row 2 is with production alone if the publisher was told so in time.
    wait_for(Duration::from_secs(30), "the row in the heir", || {
        rows(&heir).ends_with(" 3")
    });
}

#[test]
fn restore_command_works_in_another_directory_and_environment() {
    // Given a bucket behind a certificate and a secret that are named by relative paths, and a proxy to stay clear of,
    let scratch = Scratch::new();
    let archive = Archive::bucket(&scratch, "elsewhere");
    let mut production = archive.builder("production").start();
    production.execute("create table t as select 1 as n");
    let push = archive.seawall_for(&production).arg("backup-push");
    push.arg(production.data()).run().ok();
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    production.kill9();
    let working = scratch.dir("working");
    let ca = fs::read(scratch.join("elsewhere-ca.pem")).expect("the certificate");
    scratch.file("working/ca.pem", ca);
    scratch.file("working/secret", SECRET_KEY);
    let dead = "http://127.0.0.1:1";
    let fetch = |data: &Path, proxy: &str| {
        let fetch = archive.seawall().arg("backup-fetch").arg(data);
        fetch
            .args(["LATEST", "--recovery"])
            .cwd(&working)
            .env("SEAWALL_S3_CA_FILE", "ca.pem")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env("AWS_SECRET_ACCESS_KEY_FILE", "secret")
            .env("HTTPS_PROXY", proxy)
            .env("NO_PROXY", "localhost,127.0.0.1")
            .run()
            .ok()
    };

    // when it is restored and started with nothing of that, and with a proxy of its own,
    let data = scratch.join("copy");
    fetch(&data, dead);
    let mut copy = Cluster::builder(&scratch, "copy-server")
        .env("HTTPS_PROXY", dead)
        .on(&data);

    // then it finds its WAL.
    copy.start();
    copy.wait_recovered();
    assert!(copy.log().contains("restored log file"), "{}", copy.log());

    // What would tell a password is named, not written.
    let data = scratch.join("secret");
    let told = fetch(&data, "http://user:topsecret@127.0.0.1:1").without(&["topsecret"]);
    let warning = "must be started with HTTPS_PROXY in its environment";
    assert!(told.stderr.contains(warning), "{told:?}");
    let written = fs::read_to_string(data.join("postgresql.auto.conf")).expect("settings");
    assert!(!written.contains("topsecret") && !written.contains(SECRET_KEY));
}

#[test]
fn every_codec_goes_there_and_back() {
    let scratch = Scratch::new();
    for (method, extension, magic) in [
        ("gzip", "gz", &[0x1f, 0x8b][..]),
        ("lz4", "lz4", &[4, 0x22, 0x4d, 0x18]),
        ("zstd", "zst", &[0x28, 0xb5, 0x2f, 0xfd]),
    ] {
        // Given a server that archives with this codec, when it goes there and back,
        let archive = Archive::directory(&scratch, method);
        let command = archive
            .seawall()
            .env("SEAWALL_COMPRESSION", method)
            .args(["wal-push", "%p"])
            .shell_line();
        let production = Cluster::builder(&scratch, &format!("{method}-production"))
            .archive_command(command)
            .start();
        production.execute("create table t as select generate_series(1, 1000) as n");
        let push = archive
            .seawall_for(&production)
            .env("SEAWALL_COMPRESSION", method)
            .arg("backup-push");
        push.arg(production.data()).run().ok();
        let backup = archive.latest();
        let data = scratch.join(format!("{method}-copy"));
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .args(["LATEST", "--recovery"])
            .run()
            .ok();

        // then it is whole, and was stored with that codec.
        archive::verify(&data, &archive.fetch_wal_of(&backup));
        let mut copy = Cluster::builder(&scratch, &format!("{method}-server")).on(data);
        copy.start();
        copy.wait_recovered();
        assert_eq!(copy.number("select count(*) from t"), 1000);
        let parts: BTreeMap<String, Vec<u8>> = archive
            .keys(&format!("basebackups_005/{backup}/"))
            .into_iter()
            .filter(|key| key.contains("part_") || key.contains("backup_manifest"))
            .map(|key| (key.clone(), archive.get(&key).expect("the object")))
            .collect();
        assert_eq!(parts.len(), 2);
        for (key, bytes) in parts {
            assert!(
                key.ends_with(&format!(".{extension}")) && bytes.starts_with(magic),
                "{key}"
            );
        }
    }
}

#[test]
fn signal_files_and_targets_of_the_source_do_not_come_along() {
    // Given a server in whose directory somebody left signal files and old targets,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    for setting in [
        "restore_command = 'false'",
        "recovery_target_name = 'old'",
        "recovery_target_timeline = 'current'",
        "primary_conninfo = 'host=production'",
        "primary_slot_name = 'slot'",
    ] {
        production.execute(&format!("alter system set {setting}"));
    }
    for name in ["standby.signal", "recovery.signal"] {
        fs::write(production.data().join(name), "").expect("a file");
        give_to_postgres(&production.data().join(name), 0o600);
    }
    for local in [true, false] {
        // when it goes there and back with a target of its own,
        let mut push = archive.seawall_for(&production).arg("backup-push");
        if local {
            push = push.arg(production.data());
        }
        push.run().ok();
        let data = scratch.join(format!("copy-{local}"));
        let fetch = archive.seawall().arg("backup-fetch").arg(&data);
        fetch
            .args(["LATEST", "--target-immediate", "--target-action=promote"])
            .run()
            .ok();

        // then there is one signal file and one target, and no replication.
        assert!(!data.join("standby.signal").exists());
        run(pg_tool("pg_verifybackup").arg("--no-parse-wal").arg(&data));
        let mut copy = Cluster::builder(&scratch, &format!("server-{local}")).on(&data);
        copy.start();
        copy.wait_recovered();
        for name in [
            "recovery_target_name",
            "primary_conninfo",
            "primary_slot_name",
        ] {
            assert_eq!(copy.value(&format!("show {name}")), "", "{name}");
        }
        let plain = scratch.join(format!("plain-{local}"));
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&plain)
            .arg("LATEST")
            .run()
            .ok();
        assert!(!plain.join("standby.signal").exists() && !plain.join("recovery.signal").exists());
    }
}
