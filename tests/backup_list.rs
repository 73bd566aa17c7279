//! backup-list: complete backups and nothing else, for people and for programs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::archive::{Archive, sentinel_key};
use crate::support::cluster::Cluster;
use crate::support::{Scratch, run};

#[test]
fn the_table_the_details_and_the_json_tell_the_same() {
    // Given an archive without backups,
    let scratch = Scratch::new();
    let archive = Archive::bucket(&scratch, "list");
    let list = |words: &[&str]| archive.seawall().arg("backup-list").args(words).run();
    // which may as well be one that is not there,
    for words in [&["LATEST"][..], &["--json"], &[]] {
        list(words).expect(8, &["does not show itself"]);
    }
    let production = archive.builder("production").start();
    let space = scratch.dir("space");
    production.execute(&format!(
        "create tablespace s location '{}'",
        space.display()
    ));
    let segment = production.switch_wal();
    production.wait_archived(&segment);
    list(&["LATEST"]).expect(9, &["there is no complete backup"]);
    assert_eq!(list(&["--json"]).ok().text().trim(), "[]");
    let header = list(&[]).ok().text();
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["name", "finished", "size", "wal_segment_backup_start"]
    );

    // when two backups are taken, one local, one remote, with labels,
    let push = || archive.seawall_for(&production).arg("backup-push");
    push()
        .arg(production.data())
        .args(["--label", "nightly ü"])
        .run()
        .ok();
    push().args(["--label", "second"]).run().ok();

    // then the JSON has the keys that programs rely on, and the values of the sentinels, oldest first;
    let json: Value = serde_json::from_slice(&list(&["--json"]).ok().stdout).expect("JSON");
    let backups = json.as_array().expect("an array");
    assert_eq!(backups.len(), 2);
    for (backup, (mode, label)) in backups
        .iter()
        .zip([("local", "nightly ü"), ("remote", "second")])
    {
        let name = backup["name"].as_str().expect("a name");
        let sentinel = archive.sentinel(name);
        let ours = &sentinel["seawall"];
        let stored: u64 = ours["parts"]
            .as_array()
            .expect("parts")
            .iter()
            .map(|part| part["stored_bytes"].as_u64().expect("a number"))
            .sum();
        assert_eq!(
            *backup,
            json!({
                "name": name,
                "finish_time": ours["finish_time"],
                "mode": mode,
                "host": ours["host"],
                "label": label,
                "start_lsn": ours["start_lsn"],
                "stop_lsn": ours["stop_lsn"],
                "timeline": 1,
                "wal_segment_backup_start": &name[5..29],
                "wal_segment_backup_stop": sentinel["wal_segment_backup_stop"],
                "system_identifier": production.value("select system_identifier from pg_control_system()"),
                "server_version": production.number("select current_setting('server_version_num')::int"),
                "expanded_size_bytes": sentinel["expanded_size_bytes"],
                "stored_size_bytes": stored,
                "bad_pages": 0,
            })
        );
    }
    let names: Vec<&str> = backups
        .iter()
        .map(|backup| backup["name"].as_str().expect("a name"))
        .collect();

    // the table has a line for each;
    let table = list(&[]).ok().text();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    for (line, backup) in lines[1..].iter().zip(backups) {
        assert!(
            line.starts_with(backup["name"].as_str().expect("a name")),
            "{line}"
        );
        assert!(
            line.contains(backup["finish_time"].as_str().expect("a time")),
            "{line}"
        );
    }

    // the details say where the tablespaces were, which --tablespace-mapping asks for;
    let oid = production.value("select oid from pg_tablespace where spcname = 's'");
    let detail = list(&["--detail"]).ok().text();
    for text in [
        "local",
        "remote",
        "nightly ü",
        "second",
        &format!("{oid}={}", space.display()),
        &production.data().display().to_string(),
    ] {
        assert!(detail.contains(text), "{text}: {detail}");
    }
    let detail: Value =
        serde_json::from_slice(&list(&[names[1], "--detail", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(detail[0]["sentinel"], archive.sentinel(names[1]));

    // and one can be named.
    let one = |words: &[&str]| -> Vec<String> {
        let json: Value = serde_json::from_slice(&list(words).ok().stdout).expect("JSON");
        json.as_array()
            .expect("an array")
            .iter()
            .map(|b| b["name"].as_str().expect("a name").to_string())
            .collect()
    };
    assert_eq!(one(&["LATEST", "--json"]), [names[1]]);
    assert_eq!(one(&[names[0], "--json"]), [names[0]]);
    list(&[&names[0].replace("base_00000001", "base_00000009")]).expect(9, &["there is no backup"]);
    list(&[&names[0][..20]]).expect(2, &["is not the name of a base backup"]);
}

#[test]
fn what_is_unfinished_or_unreadable_is_said_and_passed_over() {
    // Given three backups,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    for _ in 0..3 {
        archive
            .seawall_for(&production)
            .arg("backup-push")
            .run()
            .ok();
    }
    let names = archive.backups();
    let list = |words: &[&str]| archive.seawall().arg("backup-list").args(words).run();
    let whole = archive.get(&sentinel_key(&names[2])).expect("the sentinel");

    for damage in [&b""[..], b"{\"spec\":", b"[]", b"\xff\xfe"] {
        // when the sentinel of the newest cannot be read,
        archive.put(&sentinel_key(&names[2]), damage);

        // then the others are listed, LATEST is the one before, and by its name it is refused.
        let listed = list(&["--json"]).expect(0, &[&names[2], "cannot be read"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        assert_eq!(listed.as_array().expect("an array").len(), 2);
        let latest = list(&["LATEST"]).expect(0, &["passed over", &names[2]]);
        assert!(latest.text().contains(&names[1]), "{latest:?}");
        list(&[&names[2]]).expect(6, &[&sentinel_key(&names[2])]);
    }

    // When it is gone, then the backup is unfinished.
    archive.delete(&sentinel_key(&names[2]));
    list(&[]).expect(0, &[&names[2], "is unfinished"]);
    list(&[&names[2]]).expect(9, &["there is no backup"]);
    assert_eq!(archive.backups(), names[..2]);
    archive.put(&sentinel_key(&names[2]), &whole);
    assert_eq!(archive.backups(), names);

    // What lies beside is not taken for a backup.
    for key in [
        "basebackups_005/readme_backup_stop_sentinel.json",
        "basebackups_005/base_0000000100000000000000FF_00000040_backup_stop_sentinel.json.old",
        "basebackups_005/base_/owner.json",
    ] {
        archive.put(key, b"{}");
    }
    assert_eq!(archive.backups(), names);
}

#[test]
fn the_latest_is_the_one_that_was_finished_last() {
    // Given three backups, the sentinel of the first one stored again after the others',
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = archive.builder("production").start();
    for _ in 0..3 {
        archive
            .seawall_for(&production)
            .arg("backup-push")
            .run()
            .ok();
    }
    let names = archive.backups();
    let mut first = archive.sentinel(&names[0]);
    archive.put(&sentinel_key(&names[0]), first.to_string().as_bytes());

    // then its date does not matter, the time in it does.
    assert_eq!(archive.backups(), names);
    first["seawall"]["finish_time"] = json!("2999-01-01T00:00:00.000000Z");
    archive.put(&sentinel_key(&names[0]), first.to_string().as_bytes());
    assert_eq!(archive.latest(), names[0]);
    let latest = archive
        .seawall()
        .args(["backup-list", "LATEST"])
        .run()
        .ok()
        .text();
    assert!(latest.contains(&names[0]), "{latest}");
}

#[test]
fn names_that_are_prefixes_of_others_are_kept_apart() {
    // Given backups whose names begin alike, as offsets of 8 and 9 digits do,
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let production = Cluster::builder(&scratch, "production")
        .archive_command(archive.archive_command())
        .start();
    archive
        .seawall_for(&production)
        .arg("backup-push")
        .run()
        .ok();
    let original = archive.latest();
    let short = "base_000000010000000000000042_12345678";
    let long = "base_000000010000000000000042_123456789";
    for name in [short, long] {
        let text = String::from_utf8(archive.get(&sentinel_key(&original)).expect("the sentinel"))
            .expect("text");
        archive.put(
            &sentinel_key(name),
            text.replace(&original, name).as_bytes(),
        );
        for key in archive.keys(&format!("basebackups_005/{original}/")) {
            archive.put(
                &key.replace(&original, name),
                &archive.get(&key).expect("the object"),
            );
        }
    }

    // then each is itself, with its own parts;
    let names: BTreeSet<String> = archive.backups().into_iter().collect();
    assert_eq!(
        names,
        BTreeSet::from([original.clone(), short.to_string(), long.to_string()])
    );
    for name in [short, long] {
        let shown = archive
            .seawall()
            .args(["backup-list", "--json", name])
            .run()
            .ok();
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        assert_eq!(shown[0]["name"], name);
        assert_eq!(shown.as_array().expect("an array").len(), 1);
        let data = scratch.join(name);
        archive
            .seawall()
            .arg("backup-fetch")
            .arg(&data)
            .arg(name)
            .run()
            .ok();
    }

    // and when the shorter one has no sentinel, the longer one does not lend it its own.
    archive.delete(&sentinel_key(short));
    archive
        .seawall()
        .args(["backup-list", short])
        .run()
        .expect(9, &["there is no backup", short]);
    run(std::process::Command::new("rm")
        .arg("-r")
        .arg(scratch.join(long)));
    archive
        .seawall()
        .arg("backup-fetch")
        .arg(scratch.join(long))
        .arg(long)
        .run()
        .ok();
}
