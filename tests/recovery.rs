//! PostgreSQL itself reads the codes: it recovers to the proven end of the archive and opens there, and stops at
//! everything else, so that recovery can go on when the archive is well again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Stop};
use crate::support::minio::{Minio, SECRET_KEY, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::rclone::Rclone;
use crate::support::seawall::Seawall;
use crate::support::{Scratch, as_postgres, give_to_postgres, run, unique, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
/// Rows for each segment.
const ROWS: i64 = 100;

/// An envdir(8) that leads to an archive.
fn envdir(scratch: &Scratch, env: &[(String, String)]) -> PathBuf {
    let dir = scratch.dir(format!("envdir-{}", unique()));
    for (name, value) in env {
        scratch.file(dir.join(name), format!("{value}\n"));
    }
    dir
}

/// The environment of a seawall whose archive is there, with little patience.
fn environment(scratch: &Scratch, archive: Vec<(String, String)>) -> Vec<(String, String)> {
    let state = scratch.dir("state").display().to_string();
    let own = [
        ("SEAWALL_STATE_DIR", state.as_str()),
        ("SEAWALL_RETRY_TIMEOUT", "500ms"),
        ("SEAWALL_REQUEST_TIMEOUT", "1s"),
    ];
    let own = own.map(|(name, value)| (name.to_string(), value.to_string()));
    archive.into_iter().chain(own).collect()
}

/// `seawall --envdir DIR wal-fetch %f %p`, as README tells.
fn restore_command(scratch: &Scratch, envdir: &Path) -> String {
    let program = scratch.binary().display();
    format!("{program} --envdir {} wal-fetch %f %p", envdir.display())
}

/// A server that archived under envdir(8), was backed up, wrote six more segments, and died.
struct Lost {
    scratch: Scratch,
    archive: Vec<(String, String)>,
    /// The base backup, restored and ready for recovery.
    base: PathBuf,
    /// Segments after the backup, all archived.
    segments: Vec<String>,
    /// Rows in them and before.
    rows: i64,
}

impl Lost {
    fn new(scratch: Scratch, archive: Vec<(String, String)>) -> Lost {
        let environment = environment(&scratch, archive.clone());
        let dir = envdir(&scratch, &environment);
        let program = scratch.binary().display().to_string();
        let command = format!("/usr/bin/envdir {} {program} wal-push %p", dir.display());
        let mut origin = Cluster::builder(&scratch, "origin")
            .archive_command(command)
            .start();
        origin.execute("create table t (n int)");
        let seawall = || Seawall::new(&scratch).arg("--envdir").arg(&dir);
        let backup = seawall().arg("backup-push").arg(origin.data());
        backup.envs(origin.client_env()).run().ok();
        let mut rows = 0;
        let segments: Vec<String> = (0..6)
            .map(|_| {
                let insert = format!("insert into t select * from generate_series(1, {ROWS})");
                origin.execute(&insert);
                rows += ROWS;
                origin.switch_wal()
            })
            .collect();
        origin.wait_archived(segments.last().expect("six"));
        assert_eq!(
            origin.number("select failed_count from pg_stat_archiver"),
            0
        );
        origin.kill9();
        let base = scratch.join("base");
        seawall()
            .arg("backup-fetch")
            .arg(&base)
            .arg("LATEST")
            .run()
            .ok();
        scratch.file(base.join("recovery.signal"), "");
        Lost {
            scratch,
            archive,
            base,
            segments,
            rows,
        }
    }

    fn on_directory() -> Lost {
        let scratch = Scratch::new();
        let archive = scratch.dir("archive").display().to_string();
        let prefix = ("SEAWALL_PREFIX".to_string(), format!("file://{archive}"));
        Lost::new(scratch, vec![prefix])
    }

    fn object(&self, index: usize) -> PathBuf {
        let name = format!("archive/wal_005/{}.zst", self.segments[index]);
        self.scratch.join(name)
    }

    /// A copy of the base. One that did not open can be started again and again: recovery goes on where it was.
    fn copy(&self) -> PathBuf {
        let data = self.scratch.join(format!("copy-{}", unique()));
        let mut copy = Command::new("cp");
        run(as_postgres(&mut copy).arg("-a").arg(&self.base).arg(&data));
        data
    }

    /// A server on a copy, not started, that restores by this command.
    fn server(&self, data: &Path, restore_command: &str) -> Cluster {
        Cluster::builder(&self.scratch, &format!("server-{}", unique()))
            .config("restore_command", restore_command)
            .config("hot_standby", "off")
            .on(data)
    }

    /// The same, which fetches from the archive itself.
    fn well(&self, data: &Path) -> Cluster {
        self.server(data, &self.fetch_from(self.archive.clone()))
    }

    fn fetch_from(&self, archive: Vec<(String, String)>) -> String {
        let dir = envdir(&self.scratch, &environment(&self.scratch, archive));
        restore_command(&self.scratch, &dir)
    }
}

/// Recovery ended at the proven end of the archive: everything is there, on a new timeline.
#[track_caller]
fn opens_with(copy: &mut Cluster, rows: i64) {
    copy.start();
    copy.wait_recovered();
    assert_eq!(copy.number("select count(*) from t"), rows);
    let timeline = "select timeline_id from pg_control_checkpoint()";
    copy.execute("checkpoint");
    assert_eq!(copy.number(timeline), 2);
}

/// The server ended with a fatal error; nothing was opened, and recovery can go on.
#[track_caller]
fn does_not_open(copy: &mut Cluster, code: i32) -> String {
    let log = copy.try_start().expect_err("it must not open");
    let fatal = format!("exit code {code}");
    assert!(log.contains("FATAL:  could not restore file"), "{log}");
    assert!(log.contains(&fatal), "{log}");
    assert!(!log.contains(SECRET_KEY), "{log}");
    let data = copy.data();
    assert!(data.join("recovery.signal").exists(), "{log}");
    assert!(!data.join("pg_wal/00000002.history").exists(), "{log}");
    let leftovers = run(Command::new("find")
        .arg(data)
        .args(["-name", "*.seawall-tmp"]));
    assert_eq!(leftovers, "");
    log
}

#[test]
fn matrix_a_lost_server_comes_back_at_the_end_and_at_nothing_else() {
    let lost = Lost::on_directory();
    let data = lost.copy();
    stops_where_nothing_is_mounted(&lost, &data);
    programs_in_between_are_kept_from_ending_it(&lost, &data);
    stops_at_a_hole(&lost, &data);
    stops_at_damage(&lost, &data);
    comes_back(&lost, &data);
    ends_at_a_hole_on_purpose(&lost, &lost.copy());
}

fn stops_where_nothing_is_mounted(lost: &Lost, data: &Path) {
    let archive = lost.scratch.join("archive");
    let away = lost.scratch.join("archive.away");
    fs::rename(&archive, &away).expect("rename");
    does_not_open(&mut lost.well(data), 208);
    lost.scratch.dir("archive");
    let log = does_not_open(&mut lost.well(data), 208);
    assert!(log.contains("does not show itself"), "{log}");
    fs::remove_dir(&archive).expect("an empty directory");
    fs::rename(&away, &archive).expect("rename");
}

/// The form for those who must have envdir(8), or another program, in between.
fn programs_in_between_are_kept_from_ending_it(lost: &Lost, data: &Path) {
    let archive = environment(&lost.scratch, lost.archive.clone());
    let dir = envdir(&lost.scratch, &archive);
    let form = |dir: &Path, program: &str| {
        let dir = dir.display();
        let fetch = format!("/usr/bin/envdir {dir} {program} wal-fetch %f %p");
        format!("{fetch}; r=$?; [ $r -le 1 ] || exit 255; exit $r")
    };
    let program = lost.scratch.binary().display().to_string();
    let nowhere = form(&lost.scratch.join("nowhere"), &program);
    does_not_open(&mut lost.server(data, &nowhere), 255);
    let nothing = form(&dir, "/nonexistent/seawall");
    does_not_open(&mut lost.server(data, &nothing), 255);
    // And what it delivers arrives: recovery goes on up to the hole.
    let away = Away::of(lost.object(1));
    let log = does_not_open(&mut lost.server(data, &form(&dir, &program)), 255);
    assert!(log.contains(&restored(&lost.segments[0])), "{log}");
    away.comes_back();
}

fn stops_at_a_hole(lost: &Lost, data: &Path) {
    let away = Away::of(lost.object(3));
    let log = does_not_open(&mut lost.well(data), 210);
    assert!(log.contains(&restored(&lost.segments[2])), "{log}");
    assert!(log.contains("not the end of WAL"), "{log}");
    assert!(log.contains("hint: Restore the object"), "{log}");
    away.comes_back();
}

fn stops_at_damage(lost: &Lost, data: &Path) {
    let object = lost.object(4);
    let whole = fs::read(&object).expect("an object");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    let other = fs::read(lost.object(3)).expect("an object");
    for (bytes, code) in [(&damaged[..], 206), (b"", 206), (&other, 205)] {
        fs::write(&object, bytes).expect("an object");
        let log = does_not_open(&mut lost.well(data), code);
        assert!(log.contains(&restored(&lost.segments[3])), "{log}");
    }
    fs::write(&object, &whole).expect("an object");
}

fn comes_back(lost: &Lost, data: &Path) {
    let mut server = lost.well(data);
    opens_with(&mut server, lost.rows);
    let log = server.log();
    assert!(log.contains(&restored(&lost.segments[5])), "{log}");
    assert!(!log.contains("seawall: error"), "{log}");
}

fn ends_at_a_hole_on_purpose(lost: &Lost, data: &Path) {
    let away = Away::of(lost.object(3));
    let command = lost.fetch_from(lost.archive.clone());
    let mut server = lost.server(data, &format!("{command} --on-hole absent"));
    opens_with(&mut server, 3 * ROWS);
    away.comes_back();
}

/// An object that is outside of the archive for a while.
struct Away {
    object: PathBuf,
    place: PathBuf,
}

impl Away {
    fn of(object: PathBuf) -> Away {
        let outside = object
            .ancestors()
            .nth(3)
            .expect("the archive is in a directory");
        let place = outside.join("away");
        fs::rename(&object, &place).expect("rename");
        Away { object, place }
    }

    fn comes_back(self) {
        fs::rename(&self.place, &self.object).expect("rename");
    }
}

fn restored(segment: &str) -> String {
    format!("restored log file \"{segment}\" from archive")
}

#[test]
fn it_comes_back_from_s3_and_its_child_follows_the_new_timeline() {
    let scratch = Scratch::new();
    let minio = Minio::tls();
    let bucket = minio.bucket("recovery");
    let ca = scratch.file("ca.pem", minio.ca_pem());
    let mut archive = minio.env(&bucket.name());
    archive.push(("SEAWALL_S3_CA_FILE".into(), ca.display().to_string()));
    let lost = Lost::new(scratch, archive);
    let command = lost.fetch_from(lost.archive.clone());
    let push = command.replace("wal-fetch %f %p", "wal-push %p");
    let mut heir = lost.server(&lost.copy(), &command);
    // It takes the lost one's place, so it archives where that one did.
    let auto = heir.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).expect("postgresql.auto.conf");
    let text = text.replace("archive_mode", "#archive_mode");
    lost.scratch
        .file(auto, format!("{text}\narchive_command = '{push}'\n"));
    opens_with(&mut heir, lost.rows);
    heir.execute(&format!(
        "insert into t select * from generate_series(1, {ROWS})"
    ));
    let last = heir.switch_wal();
    heir.wait_archived(&last);
    let keys = bucket.keys("archive/wal_005/00000002");
    assert!(keys[0].ends_with("/00000002.history.zst"), "{keys:?}");
    heir.kill9();

    let mut grandchild = lost.well(&lost.copy());
    grandchild.start();
    grandchild.wait_recovered();
    assert_eq!(
        grandchild.number("select count(*) from t"),
        lost.rows + ROWS
    );
}

/// Whatever happens to the store in the middle of recovery, the server does not open before the end.
#[test]
fn a_store_that_falls_ill_is_not_the_end() {
    let scratch = Scratch::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("ill");
    let lost = Lost::new(scratch, minio.env(&bucket.name()));
    let proxy = Proxy::start(minio.port());
    let command = lost.fetch_from(s3_env(&proxy.endpoint(), &bucket.name()));
    let mut copy = lost.server(&lost.copy(), &command);
    let here = format!("/wal_005/{}", lost.segments[3]);
    for (fault, code) in [
        (Fault::Refuse, 208),
        (Fault::html(404), 208),
        (Fault::Status(404, Vec::new(), String::new()), 208),
        (Fault::s3_error(404, "NoSuchBucket"), 208),
        (Fault::html(200), 208),
        (Fault::s3_error(403, "AccessDenied"), 207),
        (Fault::s3_error(500, "InternalError"), 208),
        (Fault::Silence, 208),
    ] {
        println!("{fault:?}");
        proxy.rule(Rule::new(fault).path(&here));
        let log = does_not_open(&mut copy, code);
        assert!(log.contains(&restored(&lost.segments[2])), "{log}");
        proxy.clear();
        proxy.listen();
    }
    // From the first moment on, it does not even begin.
    proxy.refuse();
    does_not_open(&mut copy, 208);
    proxy.listen();
    opens_with(&mut copy, lost.rows);
}

#[test]
fn a_standby_outlives_an_outage_and_a_shutdown_waits_for_no_store() {
    let scratch = Scratch::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("standby");
    let lost = Lost::new(scratch, minio.env(&bucket.name()));
    let proxy = Proxy::start(minio.port());
    let key = format!("/wal_005/{}", lost.segments[3]);
    proxy.rule(Rule::new(Fault::s3_error(503, "SlowDown")).path(&key));
    let command = lost.fetch_from(s3_env(&proxy.endpoint(), &bucket.name()));
    let data = lost.copy();
    fs::remove_file(data.join("recovery.signal")).expect("a file");
    lost.scratch.file(data.join("standby.signal"), "");
    let mut standby = Cluster::builder(&lost.scratch, "standby")
        .config("restore_command", command)
        .config("wal_retrieve_retry_interval", "100ms")
        .on(data);
    standby.start();
    let hits = || {
        let requests = proxy.requests();
        requests.iter().filter(|r| r.fault.is_some()).count()
    };
    // It asked, gave up, and asked again more than once.
    wait_for(PATIENCE, "a standby that asks again", || hits() > 20);
    assert_eq!(standby.value("select pg_is_in_recovery()::text"), "true");
    assert_eq!(standby.number("select count(*) from t"), 3 * ROWS);

    // A shutdown while the store says nothing: the server must not wait for it.
    proxy.clear();
    let from = hits();
    proxy.rule(Rule::new(Fault::Silence));
    wait_for(PATIENCE, "a silent request", || hits() > from);
    let begin = Instant::now();
    standby.stop(Stop::Fast);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    assert!(!standby.log().contains("archive recovery complete"));

    proxy.clear();
    standby.start();
    wait_for(PATIENCE, "all rows", || {
        standby.number("select count(*) from t") == lost.rows
    });
    standby.promote();
    assert_eq!(standby.number("select count(*) from t"), lost.rows);
}

/// The archiver tries again for ever, and goes on by itself; nothing is lost meanwhile, and it is never killed.
#[test]
fn an_archiver_outlives_its_store() {
    let scratch = Scratch::new();
    let minio = Minio::plain();
    let bucket = minio.bucket("archiver");
    let proxy = Proxy::start(minio.port());
    let archive = s3_env(&proxy.endpoint(), &bucket.name());
    let dir = envdir(&scratch, &environment(&scratch, archive));
    let program = scratch.binary().display().to_string();
    let command = format!("/usr/bin/envdir {} {program} wal-push %p", dir.display());
    let mut origin = Cluster::builder(&scratch, "origin")
        .archive_command(command)
        .start();
    let first = origin.switch_wal();
    origin.wait_archived(&first);
    proxy.rule(Rule::new(Fault::s3_error(503, "SlowDown")));
    let second = origin.switch_wal();
    wait_for(PATIENCE, "failures of the archiver", || {
        origin.number("select failed_count from pg_stat_archiver") >= 2
    });
    assert!(origin.log().contains("exit code 8"), "{}", origin.log());
    assert!(
        !origin.log().contains("archiver process"),
        "{}",
        origin.log()
    );
    proxy.clear();
    let third = origin.switch_wal();
    origin.wait_archived(&third);
    for segment in [&first, &second, &third] {
        let key = format!("archive/wal_005/{segment}.zst");
        assert!(bucket.get(&key).is_some(), "{key}");
    }
    origin.stop(Stop::Fast);
    assert!(!origin.log().contains(SECRET_KEY));
}

/// Another cluster, and a copy of this one, that archive where it does: neither can do harm, and the log says why.
#[test]
fn nobody_else_archives_here() {
    let scratch = Scratch::new();
    let rclone = Rclone::start(&scratch, false);
    let bucket = rclone.bucket("shared");
    let archive = rclone.env("shared");
    let dir = envdir(&scratch, &environment(&scratch, archive));
    let program = scratch.binary().display().to_string();
    let command = format!("{program} --envdir {} wal-push %p", dir.display());
    let server = |name: &str| Cluster::builder(&scratch, name).archive_command(&command);
    let mut origin = server("origin").start();
    let segment = origin.switch_wal();
    origin.wait_archived(&segment);

    let stranger = server("stranger").start();
    stranger.switch_wal();
    let failed = "select failed_count from pg_stat_archiver";
    wait_for(PATIENCE, "a refusal", || stranger.number(failed) > 0);
    let ids = [&origin, &stranger]
        .map(|cluster| cluster.value("select system_identifier from pg_control_system()"));
    let log = stranger.log();
    assert!(ids.iter().all(|id| log.contains(id)), "{log}");
    drop(stranger);

    // A copy that was taken while the server was down, and started beside it.
    origin.stop(Stop::Fast);
    let data = scratch.join("copy");
    let mut copy = Command::new("cp");
    run(as_postgres(&mut copy)
        .arg("-a")
        .arg(origin.data())
        .arg(&data));
    give_to_postgres(&data, 0o700);
    origin.start();
    origin.execute("create table ours as select generate_series(1, 1000) as n");
    let segment = origin.switch_wal();
    origin.wait_archived(&segment);
    let key = format!("archive/wal_005/{segment}.zst");
    let before = bucket.get(&key).expect("archived");
    let mut copy = Cluster::builder(&scratch, "copy").on(data);
    copy.start();
    copy.execute("create table theirs as select generate_series(1, 2000) as n");
    assert_eq!(copy.switch_wal(), segment);
    wait_for(PATIENCE, "a refusal", || copy.number(failed) > 0);
    assert!(copy.log().contains("archived already with other bytes"));
    assert_eq!(bucket.get(&key), Some(before));
}
