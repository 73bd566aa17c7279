//! What the binary says, and how it ends, before any work begins: arguments and configuration.
//!
//! PostgreSQL reads the codes: whatever is wrong with a call of `wal-fetch`, the code must stop recovery.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::Scratch;
use crate::support::seawall::{Outcome, Seawall};

fn seawall(scratch: &Scratch, line: &str) -> Outcome {
    Seawall::new(scratch).args(line.split_whitespace()).run()
}

#[test]
fn arguments_that_are_not_understood() {
    let scratch = Scratch::new();
    let cases: &[(&str, i32, &[&str])] = &[
        ("", 202, &["Usage:"]),
        (
            "--nonsense",
            202,
            &["seawall: error: unexpected argument '--nonsense'"],
        ),
        ("wal-fecth F P", 202, &["wal-fecth", "wal-fetch"]),
        (
            "wal-fetch",
            202,
            &["seawall: error:", "<NAME>", "<DEST>", "hint: "],
        ),
        ("wal-fetch F", 202, &["<DEST>"]),
        ("wal-fetch F P Q", 202, &["'Q'"]),
        ("wal-fetch --on-hole maybe F P", 202, &["maybe"]),
        ("--nonsense wal-fetch F P", 202, &["--nonsense"]),
        ("wal-push", 2, &["<PATH>"]),
        ("wal-push --pol-size 3 P", 2, &["--pol-size", "--pool-size"]),
        ("--terse -v wal-push P", 2, &["--terse"]),
        ("backup-fetch D", 2, &["<NAME|LATEST>"]),
        ("backup-push --while-offline", 2, &["PGDATA"]),
        ("man nothing", 2, &["no manual page \"nothing\"", "hint: "]),
    ];
    for (line, code, texts) in cases {
        seawall(&scratch, line).expect(*code, texts);
    }
}

#[test]
fn help_and_version_are_answers() {
    let scratch = Scratch::new();
    let help = seawall(&scratch, "--help").ok();
    assert!(help.text().contains("wal-push") && help.text().contains("--envdir"));
    let version = seawall(&scratch, "--version").ok();
    assert_eq!(
        version.text(),
        format!("seawall {}\n", env!("CARGO_PKG_VERSION"))
    );
    let verb = seawall(&scratch, "wal-fetch --help").ok();
    assert!(verb.text().contains("--on-outage"));
}

#[test]
fn settings_that_are_wrong() {
    let scratch = Scratch::new();
    let toml = scratch.file("seawall.toml", "prefx = \"file:///a\"\n");
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "SEAWALL_NONE",
            "x",
            &["unknown setting SEAWALL_NONE (environment)"],
        ),
        (
            "SEAWALL_PERFIX",
            "file:///a",
            &["SEAWALL_PERFIX", "hint: Perhaps SEAWALL_PREFIX is meant."],
        ),
        (
            "SEAWALL_UPLOAD_THREADS",
            "x",
            &["SEAWALL_UPLOAD_THREADS (environment): \"x\" is not a count"],
        ),
        ("SEAWALL_RETRY_TIMEOUT", "soon", &["is not a duration"]),
        (
            "SEAWALL_PREFIX",
            "gopher://x",
            &["SEAWALL_PREFIX (environment)", "gopher://"],
        ),
        (
            "WALE_GPG_KEY_ID",
            "ABCD",
            &["WALE_GPG_KEY_ID", "unencrypted"],
        ),
        (
            "SEAWALL_CONFIG",
            "/nonexistent/seawall.toml",
            &["/nonexistent/seawall.toml"],
        ),
        (
            "SEAWALL_CONFIG",
            toml.to_str().expect("a plain path"),
            &["\"prefx\"", "Perhaps prefix is meant."],
        ),
    ];
    for (name, value, texts) in cases {
        for (line, code) in [
            ("wal-push P", 2),
            ("wal-fetch 000000010000000000000001 P", 202),
        ] {
            Seawall::new(&scratch)
                .args(line.split_whitespace())
                .env(name, value)
                .run()
                .expect(code, texts);
        }
    }
}

#[test]
fn two_archives_under_two_names_are_refused() {
    let scratch = Scratch::new();
    let envdir = scratch.dir("env");
    fs::write(envdir.join("SEAWALL_PREFIX"), "file:///new\n").expect("a file");
    Seawall::new(&scratch)
        .arg("--envdir")
        .arg(&envdir)
        .args(["wal-push", "P"])
        .env("WALE_S3_PREFIX", "s3://old")
        .run()
        .expect(
            2,
            &[
                "SEAWALL_PREFIX (envdir)",
                "WALE_S3_PREFIX (environment)",
                "s3://old",
            ],
        );
    Seawall::new(&scratch)
        .args([
            "--envdir",
            "/nonexistent/env",
            "wal-fetch",
            "000000010000000000000001",
            "P",
        ])
        .run()
        .expect(202, &["/nonexistent/env"]);
}

#[test]
fn secrets_are_neither_taken_from_arguments_nor_repeated() {
    let scratch = Scratch::new();
    let toml = scratch.file("seawall.toml", "[s3]\nsecret-access-key = \"topsecret\n");
    seawall(&scratch, "backup-push --dbname password=topsecret")
        .expect(2, &["--dbname holds a password", "hint: "])
        .without(&["topsecret"]);
    seawall(&scratch, "wal-push --secret-access-key=topsecret P")
        .expect(2, &["--secret-access-key"])
        .without(&["topsecret"]);
    Seawall::new(&scratch)
        .arg("--config")
        .arg(&toml)
        .args(["wal-push", "P"])
        .run()
        .expect(2, &["Line 2"])
        .without(&["topsecret"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let scratch = Scratch::new();
    let mut child = Command::new(scratch.binary())
        .args(["man", "toml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// A store that takes the connection and never answers.
fn silent_store(scratch: &Scratch, listener: &TcpListener) -> Seawall {
    let port = listener.local_addr().expect("bound").port();
    Seawall::new(scratch)
        .env("SEAWALL_PREFIX", "s3://bucket/path")
        .env("SEAWALL_S3_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("SEAWALL_REQUEST_TIMEOUT", "5s")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "topsecret")
}

#[test]
fn a_signal_ends_wal_fetch_by_itself_and_other_verbs_by_their_code() {
    let scratch = Scratch::new();
    let target = scratch.dir("target");
    for signal in [Signal::TERM, Signal::INT] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let fetch = silent_store(&scratch, &listener)
            .args(["wal-fetch", "000000010000000000000001"])
            .arg(target.join("segment"))
            .spawn();
        let connection = listener.accept().expect("it asks the store");
        fetch.signal(signal);
        drop(connection);
        let outcome = fetch.wait(Duration::from_secs(30));
        outcome.expect_signal(signal).without(&["topsecret"]);
        assert_eq!(fs::read_dir(&target).expect("a directory").count(), 0);

        let list = silent_store(&scratch, &listener).arg("backup-list").spawn();
        let connection = listener.accept().expect("it asks the store");
        list.signal(signal);
        drop(connection);
        let outcome = list.wait(Duration::from_secs(30));
        outcome
            .expect(12, &["seawall: error:"])
            .without(&["topsecret"]);
    }
}

#[test]
fn json_messages_are_json() {
    let scratch = Scratch::new();
    let outcome = Seawall::new(&scratch)
        .args(["--verbose", "wal-fetch", "000000010000000000000001", "P"])
        .env("SEAWALL_LOG_FORMAT", "json")
        .env("SEAWALL_RETRY_TIMEOUT", "1s")
        .env("SEAWALL_PREFIX", "file:///nonexistent/archive")
        .run()
        .expect(208, &[]);
    let lines: Vec<serde_json::Value> = (outcome.stderr.lines())
        .map(|line| serde_json::from_str(line).expect("a JSON object on every line"))
        .collect();
    let last = lines.last().expect("an error");
    assert_eq!(last["exit"], 208);
    assert_eq!(last["kind"], "unavailable");
    assert!(lines.iter().all(|l| l["time"].is_string()), "{outcome:?}");
}
