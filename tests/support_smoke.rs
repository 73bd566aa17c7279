//! The tools of the tests, tested: a fault that does not happen would let every test behind it pass.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::cluster::{Cluster, Stop};
use crate::support::ext4::Ext4;
use crate::support::minio::{Minio, SECRET_KEY, Witness};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::rclone::Rclone;
use crate::support::seawall::Seawall;
use crate::support::tmpfs::Tmpfs;
use crate::support::{Scratch, Server, is_alive, is_root, ports, raw_http, run, wait_for};

const PATIENCE: Duration = Duration::from_millis(300);

#[test]
fn matrix_a_cluster_lives_dies_and_recovers() {
    let scratch = Scratch::new();
    let archive = scratch.dir("archive");
    let mut cluster = Cluster::builder(&scratch, "primary")
        .checksums(true)
        .config("max_connections", "20")
        .archive_command(format!("cp %p {}/%f", archive.display()))
        .start();
    cluster.execute("create table t as select generate_series(1, 1000) as n");
    assert_eq!(cluster.number("select count(*) from t"), 1000);
    assert_eq!(cluster.psql("select count(*) from t"), "1000");
    assert_eq!(cluster.value("show wal_segment_size"), "1MB");
    assert_eq!(cluster.value("show max_connections"), "20");

    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    let archived = fs::metadata(archive.join(&segment)).expect("the archived segment");
    assert_eq!(archived.len(), 1 << 20);

    cluster.kill9();
    cluster.start();
    assert_eq!(cluster.number("select count(*) from t"), 1000);
    assert!(cluster.log().contains("automatic recovery in progress"));

    let pid = cluster.pid();
    cluster.stop(Stop::Fast);
    assert!(!is_alive(pid));
    if is_root() {
        let owner = fs::metadata(cluster.data()).expect("PGDATA").uid();
        assert_ne!(owner, 0, "the server's files belong to user postgres");
    }
}

#[test]
fn a_copy_runs_beside_its_origin_and_is_promoted() {
    let scratch = Scratch::new();
    let mut origin = Cluster::builder(&scratch, "origin").start();
    origin.execute("create table t as select 1 as n; checkpoint");
    let copy = scratch.join("copy");
    run(origin
        .tool("pg_basebackup")
        .args(["--checkpoint=fast", "--write-recovery-conf", "--pgdata"])
        .arg(&copy));
    let mut standby = Cluster::builder(&scratch, "standby")
        .config("hot_standby", "on")
        .on(copy);
    standby.start();
    assert_ne!(standby.port(), origin.port());
    assert_eq!(standby.value("select pg_is_in_recovery()::text"), "true");
    standby.promote();
    standby.wait_recovered();
    standby.execute("insert into t values (2)");
    assert_eq!(origin.number("select count(*) from t"), 1);
    origin.stop(Stop::Immediate);
}

#[test]
fn a_server_that_cannot_start_gives_its_log() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(&scratch, "broken")
        .config("shared_buffers", "no number")
        .create();
    let log = cluster.try_start().expect_err("a broken configuration");
    assert!(log.contains("shared_buffers"), "{log}");
}

#[test]
fn a_server_does_not_outlive_its_owner() {
    let scratch = Scratch::new();
    let state = scratch.dir("state");
    let remove = scratch.dir("removed");
    let args = ["600".to_string()];
    let sleeper = "/bin/sleep".as_ref();
    let quiet = |command: &mut Command| {
        command.stderr(std::process::Stdio::null());
    };
    let mut server = Server::start(&state, "TERM", Some(&remove), sleeper, &args, quiet);
    let pid = server.pid();
    assert!(is_alive(pid));
    server.end(); // closes the pipe, as our death would
    assert!(!is_alive(pid));
    assert!(!remove.exists());

    let mut server = Server::start(&state, "TERM", None, sleeper, &args, quiet);
    crate::support::send_signal(server.pid(), Signal::KILL);
    let status = server.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(128 + 9));
    assert!(!is_alive(server.pid()), "no zombie makes it look alive");
}

#[test]
fn a_command_is_clean_captured_and_bounded() {
    let scratch = Scratch::new();
    let sh = |script: &str| Seawall::of(&scratch, "/bin/sh").args(["-c", script]);
    let outcome = sh("echo out; echo err >&2; exit 7").run();
    assert_eq!(outcome.text(), "out\n");
    outcome.expect(7, &["err"]).without(&["secret"]);

    sh("kill -TERM $$").run().expect_signal(Signal::TERM);
    let text = sh("env; pwd; id -u; cat")
        .env("A", "b c")
        .stdin("input")
        .run();
    let text = text.ok().text();
    assert!(
        text.contains("A=b c\n") && text.ends_with("input"),
        "{text}"
    );
    assert!(
        !text.contains("CARGO"),
        "nothing of our environment: {text}"
    );
    if is_root() {
        assert!(!text.contains("\n0\n"), "as user postgres: {text}");
        let by_root = sh("id -u").by_root().run().ok().text();
        assert_eq!(by_root, "0\n");
    }

    let hanging = || sh("sleep 60").deadline(PATIENCE).run();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(hanging)).is_err());
    let mut running = sh("exec sleep 60").spawn();
    assert!(!running.has_ended());
    running.signal(Signal::KILL);
    running.wait(PATIENCE * 10).expect_signal(Signal::KILL);

    let line = sh("echo \"$A\" %p").env("A", "it's").shell_line();
    let out = run(Command::new("/bin/sh").args(["-c", &line]));
    assert_eq!(out, "it's %p\n");
}

#[test]
fn peak_memory_is_measured() {
    let scratch = Scratch::new();
    let python = |mib: usize| {
        let script = format!("x = b'1' * ({mib} << 20)");
        let command = Seawall::of(&scratch, "/usr/bin/python3").args(["-c", &script]);
        let outcome = command.measured(&scratch).run().ok();
        outcome.peak_rss_kib.expect("it was measured")
    };
    let (small, large) = (python(1), python(65));
    assert!(
        (60 << 10..70 << 10).contains(&(large - small)),
        "{small} {large} KiB"
    );
    let failing = Seawall::of(&scratch, "/bin/sh").args(["-c", "exit 3"]);
    failing.measured(&scratch).run().expect(3, &[]);
}

#[test]
fn ports_are_given_once() {
    let mut seen: Vec<u16> = (0..20).map(|_| ports::free_port()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20);
}

#[test]
fn a_small_file_system_fills_up() {
    if !is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let scratch = Scratch::new();
    let small = Tmpfs::mount(&scratch, "small", 1 << 20);
    let error = fs::write(small.path().join("big"), vec![1u8; 2 << 20]).expect_err("full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let path = small.path().to_path_buf();
    small.unmount();
    assert!(fs::read_dir(&path).expect("the directory").next().is_none());
}

#[test]
fn after_power_loss_there_is_what_was_synced_and_nothing_else() {
    if !Ext4::is_possible() {
        return;
    }
    let scratch = Scratch::new();
    let disk = Ext4::make(&scratch);
    let file = fs::File::create(disk.path().join("old")).expect("a file");
    file.write_all_at(&[1; 8192], 0).expect("bytes");
    disk.sync();
    // Bytes and a name that nobody has synced.
    file.write_all_at(&[2; 4096], 4096).expect("bytes");
    fs::write(disk.path().join("new"), "new").expect("a file");
    let loss = disk.after_power_loss(&scratch);
    assert!(!loss.path().join("new").exists());
    let bytes = fs::read(loss.path().join("old")).expect("the file");
    assert!(bytes == [1; 8192]);
    // The same when they were.
    file.sync_data().expect("synced");
    disk.sync();
    let loss = disk.after_power_loss(&scratch);
    assert_eq!(fs::read(loss.path().join("new")).expect("a file"), b"new");
    let bytes = fs::read(loss.path().join("old")).expect("the file");
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096]);
    // Mount and loop device go with it.
    let (path, image) = (loss.path().to_path_buf(), loss.image().to_path_buf());
    drop(loss);
    assert!(fs::read_dir(&path).expect("the directory").next().is_none());
    let loops = run(Command::new("losetup").args(["--list", "--noheadings"]));
    assert!(!loops.contains(image.to_str().expect("UTF-8")), "{loops}");
}

#[test]
fn a_lasting_minio_keeps_what_it_has() {
    let scratch = Scratch::new();
    let minio = Minio::lasting(&scratch);
    let witness = minio.bucket("lasting");
    witness.put("key", b"bytes");
    minio.kill9();
    minio.start_again();
    assert_eq!(witness.get("key").as_deref(), Some(&b"bytes"[..]));
}

/// The witness speaks through the proxy and sees what it stored.
fn round_trip(witness: &Witness) {
    let odd = "archive/with space, ü + and =/x";
    witness.put("archive/one", b"first");
    witness.put(odd, &vec![7u8; 300_000]);
    assert_eq!(witness.get("archive/one").as_deref(), Some(&b"first"[..]));
    assert_eq!(witness.get(odd).map(|b| b.len()), Some(300_000));
    assert_eq!(witness.get("archive/none"), None);
    assert_eq!(witness.keys("archive/"), ["archive/one", odd]);
    witness.delete(odd);
    assert_eq!(witness.list(""), [("archive/one".to_string(), 5)]);
}

#[test]
fn minio_with_and_without_tls() {
    for minio in [Minio::plain(), Minio::tls()] {
        let witness = minio.bucket("smoke");
        round_trip(&witness);
        let other = minio.bucket("smoke");
        assert!(other.keys("").is_empty(), "every test has its own bucket");
    }
    let scratch = Scratch::new();
    let ca = scratch.file("ca.pem", Minio::tls().ca_pem());
    let url = format!("{}/minio/health/live", Minio::tls().endpoint());
    let curl = |with_ca: bool| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-verify_return_error", "-connect"]);
        openssl.arg(format!("localhost:{}", Minio::tls().port()));
        if with_ca {
            openssl.arg("-CAfile").arg(&ca);
        }
        let out = openssl.stdin(std::process::Stdio::null()).output();
        out.expect("openssl").status.success()
    };
    assert!(curl(true), "{url} is trusted with our authority");
    assert!(!curl(false), "and not without");
}

#[test]
fn minio_keeps_versions_when_told() {
    let witness = Minio::plain().bucket("versions");
    witness.keep_versions();
    witness.put("x", b"1");
    witness.delete("x");
    assert_eq!(witness.get("x"), None);
    let path = format!("/{}/x", witness.name());
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (answer, _) = raw_http(Minio::plain().port(), request.as_bytes(), PATIENCE * 10);
    assert!(answer.starts_with(b"HTTP/1.1 403"), "anonymous is refused");
}

#[test]
fn rclone_with_and_without_tls() {
    for tls in [false, true] {
        let scratch = Scratch::new();
        let rclone = Rclone::start(&scratch, tls);
        let witness = rclone.bucket("smoke");
        round_trip(&witness);
        let bytes = fs::read(rclone.data().join("smoke/archive/one")).expect("a plain file");
        assert_eq!(bytes, b"first");
    }
}

/// A proxy before MinIO, with an object behind it that anybody may read.
struct Stage {
    proxy: Proxy,
    witness: Witness,
}

impl Stage {
    fn new(rule: Rule) -> Stage {
        let minio = Minio::plain();
        let bucket = minio.bucket("faults");
        let proxy = Proxy::start(minio.port());
        let witness = Witness::new(
            proxy.port(),
            &bucket.name(),
            crate::support::minio::ACCESS_KEY,
            SECRET_KEY,
        );
        witness.put("object", b"0123456789");
        proxy.take_requests();
        proxy.rule(rule);
        Stage { proxy, witness }
    }

    /// A health question to MinIO through the proxy: an answer with an empty body.
    fn ask(&self) -> (String, Option<std::io::ErrorKind>) {
        self.send("GET /minio/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    }

    /// A question that MinIO answers with an error document, which gives a body to bend.
    fn ask_document(&self) -> (String, Option<std::io::ErrorKind>) {
        self.send(
            "GET /no-such-bucket-here/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
    }

    fn send(&self, request: &str) -> (String, Option<std::io::ErrorKind>) {
        let (bytes, error) = raw_http(self.proxy.port(), request.as_bytes(), PATIENCE);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (text, error.map(|e| e.kind()))
    }
}

use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, WouldBlock};

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn faults_in_place_of_an_answer() {
    let stage = Stage::new(Rule::new(Fault::s3_error(503, "SlowDown")).times(1));
    let (answer, error) = stage.ask();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("<Code>SlowDown</Code>"));
    assert_eq!(error, None);
    let (answer, _) = stage.ask();
    assert!(answer.starts_with("HTTP/1.1 200"), "the count is over");

    let stage = Stage::new(Rule::new(Fault::html(200)));
    assert!(stage.ask().0.contains("Please log in"));

    let stage = Stage::new(Rule::new(Fault::Reset));
    assert_eq!(stage.ask(), (String::new(), Some(ConnectionReset)));

    let stage = Stage::new(Rule::new(Fault::Silence));
    let begin = Instant::now();
    assert_eq!(stage.ask(), (String::new(), Some(WouldBlock)));
    assert!(begin.elapsed() >= PATIENCE);

    let stage = Stage::new(Rule::new(Fault::CutRequestAt(4)));
    let put = "PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789";
    assert_eq!(stage.send(put), (String::new(), Some(ConnectionReset)));
}

#[test]
fn a_refusing_port_opens_again() {
    let stage = Stage::new(Rule::new(Fault::Refuse).times(1));
    assert_eq!(stage.ask().1, Some(ConnectionReset));
    wait_for(Duration::from_secs(5), "the closed port", || {
        stage.ask().1 == Some(ConnectionRefused)
    });
    stage.proxy.listen();
    assert!(stage.ask().0.starts_with("HTTP/1.1 200"));
    stage.proxy.refuse();
    assert_eq!(stage.ask(), (String::new(), Some(ConnectionRefused)));
}

#[test]
fn faults_within_an_answer() {
    let whole = Stage::new(Rule::new(Fault::FlipBitAt(0)).times(0)).ask_document();
    let body = body_of(&whole.0).to_string();
    assert!(body.len() > 100, "{whole:?}");

    let stage = Stage::new(Rule::new(Fault::CutBodyAt(10)));
    let (answer, error) = stage.ask_document();
    assert_eq!(body_of(&answer), &body[..10]);
    assert_eq!(error, Some(ConnectionReset));

    let stage = Stage::new(Rule::new(Fault::EndBodyAt(10)));
    let (answer, error) = stage.ask_document();
    assert_eq!((body_of(&answer), error), (&body[..10], None));

    let stage = Stage::new(Rule::new(Fault::SilenceAt(10)));
    let (answer, error) = stage.ask_document();
    assert_eq!((body_of(&answer), error), (&body[..10], Some(WouldBlock)));

    let stage = Stage::new(Rule::new(Fault::DropBeforeBody));
    let (answer, error) = stage.ask_document();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    assert_eq!((body_of(&answer), error), ("", Some(ConnectionReset)));

    let stage = Stage::new(Rule::new(Fault::FlipBitAt(3)));
    let (answer, _) = stage.ask_document();
    let bent = body_of(&answer).as_bytes();
    let differ = bent.iter().zip(body.as_bytes()).take(20);
    assert_eq!(differ.filter(|(a, b)| a != b).count(), 1);

    let stage = Stage::new(Rule::new(Fault::SlowBody(64, Duration::from_millis(30))));
    let begin = Instant::now();
    assert_eq!(body_of(&stage.ask_document().0).len(), body.len());
    assert!(begin.elapsed() >= Duration::from_millis(30));
}

#[test]
fn an_acknowledgement_is_lost_and_a_put_is_swallowed() {
    let stage = Stage::new(Rule::new(Fault::LoseAck).method("PUT").path("/lost"));
    let client = std::panic::AssertUnwindSafe(|| stage.witness.put("lost", b"stored"));
    assert!(std::panic::catch_unwind(client).is_err());
    assert_eq!(stage.witness.get("lost").as_deref(), Some(&b"stored"[..]));

    let stage = Stage::new(Rule::new(Fault::Swallow).method("PUT").path("/gone"));
    stage.witness.put("gone", b"never stored");
    stage.witness.put("kept", b"stored");
    assert_eq!(stage.witness.get("gone"), None);
    assert_eq!(stage.witness.keys(""), ["kept", "object"]);
}

#[test]
fn a_put_is_late_and_comes_only_if_its_client_waits() {
    let late = Duration::from_millis(400);
    let stage = Stage::new(Rule::new(Fault::Late(late)).method("PUT").path("late"));
    stage.witness.put("late", b"stored");
    // The client may see the answer before the proxy has noted it.
    let took = || stage.proxy.requests().last().expect("a request").took;
    wait_for(10 * PATIENCE, "the end of the request", || took().is_some());
    assert!(took() >= Some(late), "{:?}", took());
    assert_eq!(stage.witness.get("late").as_deref(), Some(&b"stored"[..]));
    // The client's patience is shorter.
    let put = "PUT /b/too-late HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789";
    assert_eq!(stage.send(put), (String::new(), Some(WouldBlock)));
    std::thread::sleep(late);
    assert_eq!(took(), None, "it was not forwarded");
}

#[test]
fn rules_choose_and_the_log_tells() {
    let stage = Stage::new(
        Rule::new(Fault::s3_error(500, "InternalError"))
            .method("GET")
            .query("which=a")
            .after(1)
            .times(2),
    );
    let ask = |method: &str, query: &str| {
        let text = format!(
            "{method} /minio/health/live?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        let (answer, _) = stage.send(&text);
        answer.split(' ').nth(1).unwrap_or_default().to_string()
    };
    assert_eq!(ask("GET", "which=b"), "200", "another query");
    assert_eq!(ask("GET", "which=a"), "200", "the first passes");
    assert_eq!(ask("HEAD", "which=a"), "200", "another method");
    assert_eq!(ask("GET", "which=a"), "500");
    assert_eq!(ask("GET", "which=a"), "500");
    assert_eq!(ask("GET", "which=a"), "200", "two are enough");

    let seen = stage.proxy.take_requests();
    let faults: Vec<bool> = seen.iter().map(|r| r.fault.is_some()).collect();
    assert_eq!(faults, [false, false, false, true, true, false]);
    let statuses: Vec<_> = seen.iter().map(|r| r.status).collect();
    assert_eq!(statuses[..4], [Some(200), Some(200), Some(200), Some(500)]);
    assert_eq!(seen[0].header("host"), Some("x"));

    stage.witness.put("signed", b"x");
    let signed = stage.proxy.take_requests();
    let headers = format!("{signed:?}");
    assert!(headers.contains("AWS4-HMAC-SHA256") && !headers.contains(SECRET_KEY));
}

#[test]
fn one_connection_serves_many_requests() {
    let stage = Stage::new(Rule::new(Fault::s3_error(503, "SlowDown")).query("slow"));
    let request = |query: &str, end: &str| {
        format!("GET /minio/health/live?{query} HTTP/1.1\r\nHost: x\r\n{end}\r\n")
    };
    let all = [
        request("a", ""),
        request("slow", ""),
        request("b", "Connection: close\r\n"),
    ];
    let (answers, error) = stage.send(&all.concat());
    assert_eq!(error, None);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 503").count(), 1, "{answers}");
}
