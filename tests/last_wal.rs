//! The last WAL: what comes back when the primary is gone and its last segments were never archived, and what must not
//! come back, on real servers and a real pg_receivewal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::support::archive::{Archive, filter, sha256, unzstd, zstd};
use crate::support::cluster::{Cluster, tools_bin};
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::seawall::{Outcome, Seawall};
use crate::support::wal::{Wal, WalFile, next_name};
use crate::support::{Scratch, Server, as_postgres, run, unique, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of each step of a story.
const ROWS: i64 = 100;
const HOLE: i32 = 210;

/// A pg_receivewal that flushes at once and holds a slot.
struct Receiver {
    server: Server,
    dir: PathBuf,
}

impl Receiver {
    fn start(scratch: &Scratch, primary: &Cluster) -> Receiver {
        let dir = scratch.dir(format!("spool-{}", unique()));
        let mut create = primary.tool("pg_receivewal");
        run(create.args(["--create-slot", "--slot=spool"]));
        let socket = primary.sockets().display();
        let conninfo = format!(
            "host={socket} port={} user=postgres application_name=spool",
            primary.port()
        );
        let args = ["--synchronous", "--no-loop", "--slot=spool", "--directory"];
        let mut args: Vec<String> = args.map(String::from).to_vec();
        args.extend([dir.display().to_string(), "--dbname".into(), conninfo]);
        let program = tools_bin().join("pg_receivewal");
        let state = scratch.dir(format!("receiver-{}", unique()));
        let server = Server::start(&state, "TERM", None, &program, &args, |command| {
            command.env("LC_ALL", "C").current_dir("/");
            command.stdout(Stdio::null()).stderr(Stdio::null());
            as_postgres(command);
        });
        wait_for(PATIENCE, "a receiver that streams", || {
            let streaming = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'spool'";
            primary.number(streaming) == 1
        });
        Receiver { server, dir }
    }

    /// Waits until it has flushed all that the primary wrote.
    fn wait_flushed(&self, primary: &Cluster) {
        let end = primary.value("select pg_current_wal_flush_lsn()");
        let flushed = format!(
            "select count(*) from pg_stat_replication where application_name = 'spool' and flush_lsn >= '{end}'"
        );
        wait_for(PATIENCE, "a receiver that has all", || {
            primary.number(&flushed) == 1
        });
    }
}

fn back_up(archive: &Archive, server: &Cluster) {
    let push = archive.seawall_for(server).arg("backup-push");
    push.arg(server.data()).run().ok();
}

/// Every server promises what it acknowledges; here the disk of the primary is gone, and the receiver was its only
/// synchronous standby.
#[test]
fn every_acknowledged_commit_comes_back() {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut origin = archive.builder("origin").start();
    origin.execute("create table t (n bigint primary key, filler text)");
    back_up(&archive, &origin);
    let mut receiver = Receiver::start(&scratch, &origin);
    origin.configure("synchronous_standby_names", "spool");
    origin.reload();
    wait_for(PATIENCE, "a synchronous standby", || {
        let sync = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        origin.number(sync) == 1
    });
    let acknowledged = write_until_killed(&mut origin);
    receiver.server.wait(PATIENCE);
    fs::remove_dir_all(origin.data()).expect("PGDATA");

    let spool = receiver.dir.display().to_string();
    let mut copy = archive.copy(&["--recovery", "--spool", &spool, "--partial"]);
    copy.start();
    copy.wait_recovered();
    let there = copy.client().query("select n from t", &[]).expect("rows");
    let there: std::collections::BTreeSet<i64> = there.iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    println!("{} acknowledged, {} there", acknowledged.len(), there.len());
    let log = copy.log();
    // From the archive, complete from the spool, and the last one padded.
    assert!(log.contains(" from file:///"), "{log}");
    assert!(log.contains(&format!(" from file \"{spool}/0000")), "{log}");
    assert!(log.contains("was never completed"), "{log}");
}

/// Four writers, and what they got acknowledged before the server was killed. From the middle on nothing is archived.
fn write_until_killed(origin: &mut Cluster) -> Vec<i64> {
    let acknowledged = Mutex::new(Vec::new());
    let count = || acknowledged.lock().expect("nothing panics in here").len();
    let clients: Vec<_> = (0..4).map(|_| origin.client()).collect();
    std::thread::scope(|scope| {
        for (writer, mut client) in clients.into_iter().enumerate() {
            let acknowledged = &acknowledged;
            scope.spawn(move || {
                let insert = "insert into t select $1, string_agg(md5(random()::text), '') from generate_series(1, 50)";
                for n in (writer as i64 * 1_000_000).. {
                    if client.execute(insert, &[&n]).is_err() {
                        return;
                    }
                    acknowledged.lock().expect("nothing panics in here").push(n);
                }
            });
        }
        wait_for(PATIENCE, "the first half", || count() > 1500);
        origin.configure("archive_command", "/bin/false");
        origin.reload();
        wait_for(PATIENCE, "the second half", || count() > 4000);
        origin.kill9();
    });
    acknowledged.into_inner().expect("nothing panics in here")
}

/// A primary whose standby was promoted while it went on writing: in the segment of the switch, and beyond it. The
/// promoted one archived its history and the `.partial` of the switch, and was lost too.
struct Split {
    scratch: Scratch,
    /// The old primary's receiver when both branches were in the segment of the switch.
    within: PathBuf,
    /// The same when the old branch had left that segment.
    beyond: PathBuf,
    /// The segment of the switch, on timeline 1.
    segment: String,
}

impl Split {
    fn new() -> Split {
        let scratch = Scratch::new();
        let archive = Archive::directory(&scratch, "archive");
        let mut origin = archive.builder("origin").start();
        origin.execute("create table t (what text)");
        back_up(&archive, &origin);
        let mut standby = standby_of(&scratch, &origin);
        let receiver = Receiver::start(&scratch, &origin);
        let first = origin.switch_wal();
        origin.wait_archived(&first);
        origin.configure("archive_command", "/bin/false");
        origin.reload();
        insert(&origin, "common");
        let segment = origin.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
        wait_for(PATIENCE, "a standby that has all", || {
            rows(&standby, "common") == ROWS
        });
        standby.promote();
        for name in [
            "00000002.history.zst".to_string(),
            format!("{segment}.partial.zst"),
        ] {
            let key = format!("wal_005/{name}");
            wait_for(PATIENCE, &key, || archive.get(&key).is_some());
        }
        standby.kill9();

        insert(&origin, "within");
        receiver.wait_flushed(&origin);
        let within = copy_dir(&scratch, &receiver.dir);
        origin.switch_wal();
        insert(&origin, "beyond");
        receiver.wait_flushed(&origin);
        let beyond = copy_dir(&scratch, &receiver.dir);
        assert!(within.join(format!("{segment}.partial")).exists());
        assert!(beyond.join(&segment).exists());
        origin.kill9();
        drop(receiver);
        Split {
            scratch,
            within,
            beyond,
            segment,
        }
    }

    fn archive(&self) -> Archive<'_> {
        Archive::directory(&self.scratch, "archive")
    }

    /// Rows of each step after a recovery with these options, and the server's log.
    fn recover(&self, options: &[&str]) -> ([i64; 3], String) {
        let mut copy = self.archive().copy(options);
        copy.start();
        copy.wait_recovered();
        (all_rows(&copy), copy.log())
    }
}

fn standby_of(scratch: &Scratch, origin: &Cluster) -> Cluster {
    let data = scratch.join("standby");
    let mut basebackup = origin.tool("pg_basebackup");
    run(basebackup
        .args([
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            "--pgdata",
        ])
        .arg(&data));
    let mut standby = Cluster::builder(scratch, "standby-server").on(data);
    standby.start();
    standby
}

fn insert(server: &Cluster, what: &str) {
    server.execute(&format!(
        "insert into t select '{what}' from generate_series(1, {ROWS})"
    ));
}

fn rows(server: &Cluster, what: &str) -> i64 {
    server.number(&format!("select count(*) from t where what = '{what}'"))
}

fn all_rows(server: &Cluster) -> [i64; 3] {
    ["common", "within", "beyond"].map(|what| rows(server, what))
}

fn copy_dir(scratch: &Scratch, from: &Path) -> PathBuf {
    let to = scratch.join(format!("copied-{}", unique()));
    run(as_postgres(&mut Command::new("cp"))
        .arg("-a")
        .arg(from)
        .arg(&to));
    to
}

#[test]
fn a_branch_that_was_left_does_not_come_back_unless_it_is_the_target() {
    let split = Split::new();
    let [within, beyond] = [&split.within, &split.beyond].map(|dir| dir.display().to_string());
    let cut = format!("{} is delivered from file", split.segment);
    for (options, expected, text) in [
        // The newest timeline, which left the old one in the middle of the segment.
        (&["--spool", &within][..], [ROWS, 0, 0], cut.as_str()),
        (&["--spool", &beyond], [ROWS, 0, 0], &cut),
        // What the promoted server archived of it; the branch is known by its history alone.
        (&["--partial"], [ROWS, 0, 0], "was never completed"),
        (&["--partial", "--spool", &beyond], [ROWS, 0, 0], &cut),
        // The old branch, which somebody wants back.
        (
            &["--spool", &within, "--target-timeline", "1"],
            [ROWS, ROWS, 0],
            "was never completed",
        ),
        (
            &["--spool", &beyond, "--target-timeline", "1"],
            [ROWS, ROWS, ROWS],
            "was never completed",
        ),
        (
            &[
                "--spool",
                &beyond,
                "--target-timeline",
                "current",
                "--partial",
            ],
            [ROWS, ROWS, ROWS],
            "--timeline",
        ),
        // Nothing asked for, nothing gained.
        (&["--recovery"], [0, 0, 0], "is not in archive"),
    ] {
        println!("{options:?}");
        let (found, log) = split.recover(options);
        assert_eq!(found, expected, "{log}");
        if text != "--timeline" && text != "is not in archive" {
            assert!(log.contains(text), "{log}");
        }
    }
    beyond_the_switch_it_is_absent(&split);
    up_to_the_fork_is_enough(&split);
    without_its_archive_nothing_ends(&split);
}

/// The segment behind that of the switch, asked for by hand.
fn beyond_the_switch_it_is_absent(split: &Split) {
    let name = next_name(&split.segment);
    let archive = split.archive();
    let fetch = || {
        let fetch = archive
            .seawall()
            .args(["wal-fetch", "--partial=force", "--spool"]);
        fetch.arg(&split.beyond)
    };
    let dest = split.scratch.dir("by-hand").join(&name);
    let outcome = fetch().arg(&name).arg(&dest).run();
    outcome.expect(1, &["--timeline 1 delivers it"]);
    assert!(!dest.exists());
    fetch()
        .args(["--timeline", "1", &name])
        .arg(&dest)
        .run()
        .ok();
    assert_eq!(fs::metadata(&dest).expect("delivered").len(), 1 << 20);
}

/// A child's segment that was received just up to the fork needs nothing of its parent: the last record is whole, though
/// it ends with zeros.
fn up_to_the_fork_is_enough(split: &Split) {
    let name = format!("00000002{}", &split.segment[8..]);
    let archive = split.archive();
    let history = archive.get("wal_005/00000002.history.zst");
    let history = String::from_utf8(unzstd(&history.expect("archived"))).expect("text");
    let fork = history.split(['/', '\t']).nth(2).expect("a position");
    let fork = usize::from_str_radix(fork, 16).expect("digits") % (1 << 20);
    let pg_wal = split.scratch.join("standby/pg_wal");
    let mut bytes = fs::read(pg_wal.join(&name)).expect("a segment");
    bytes[fork..].fill(0);
    assert_eq!(bytes[fork - 1], 0);
    let mut short = bytes.clone();
    let last = bytes.iter().rposition(|byte| *byte != 0).expect("WAL");
    short[last] = 0;

    let spool = split.scratch.dir("of-the-child");
    let fetch = |received: &[u8], options: &[&str]| {
        split
            .scratch
            .file(spool.join(format!("{name}.partial")), received);
        let fetch = archive.seawall().cwd(split.scratch.dir("nowhere"));
        let fetch = fetch.args(["wal-fetch", "--spool"]).arg(&spool);
        fetch.args(options).arg(&name).arg("-")
    };
    let by_hand = split.scratch.dir("a-recovery");
    split.scratch.file(by_hand.join("recovery.signal"), "");
    gives(fetch(&bytes, &[]).cwd(&by_hand), &bytes);
    let outcome = fetch(&short, &[]).cwd(&by_hand).run();
    outcome.expect(HOLE, &["not the end of WAL", "--partial"]);
    // PostgreSQL archived what it had of the parent's.
    gives(fetch(&short, &["--partial=force"]), &bytes);
}

/// The archive is asked first, also when the spool has it all.
fn without_its_archive_nothing_ends(split: &Split) {
    let spool = split.within.display().to_string();
    let mut copy = split.archive().copy(&["--spool", &spool]);
    let (archive, away) = (split.scratch.join("archive"), split.scratch.join("away"));
    fs::rename(&archive, &away).expect("rename");
    let log = copy.try_start().expect_err("it must not open");
    assert!(log.contains("exit code 208"), "{log}");
    fs::rename(&away, &archive).expect("rename");
    copy.start();
    copy.wait_recovered();
    assert_eq!(all_rows(&copy), [ROWS, 0, 0]);
}

/// A standby could archive a padded segment as complete, and would never see the rest of it.
#[test]
fn a_standby_waits_for_the_whole_segment() {
    let split = Split::new();
    let spool = split.within.display().to_string();
    let archive = split.archive();
    let mut standby = archive.copy(&["--standby", "--spool", &spool, "--partial"]);
    standby.start();
    wait_for(PATIENCE, "a segment that counts as absent", || {
        standby.log().contains("so it counts as absent")
    });
    assert_eq!(all_rows(&standby), [0, 0, 0]);
    // The operator says that this one may; the switch is honoured all the same.
    standby.stop(crate::support::cluster::Stop::Fast);
    let auto = standby.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).expect("postgresql.auto.conf");
    assert_eq!(text.matches(" --partial ").count(), 1, "{text}");
    let text = text.replace(" --partial ", " --partial=force ");
    split.scratch.file(&auto, text);
    standby.start();
    wait_for(PATIENCE, "all rows of the common part", || {
        all_rows(&standby) == [ROWS, 0, 0]
    });
    standby.promote();
    assert_eq!(all_rows(&standby), [ROWS, 0, 0]);
}

/// What lies under the name of the last segment and is not it.
#[test]
fn a_partial_that_holds_nothing_ends_recovery_and_a_wrong_one_stops_it() {
    let split = Split::new();
    let file = split.within.join(format!("{}.partial", split.segment));
    let bytes = fs::read(&file).expect("the last segment");
    let spool = split.within.display().to_string();
    let older = Wal::shared().segments[4].bytes.clone();
    let mut of_this = older.clone();
    of_this[24..32].copy_from_slice(&bytes[24..32]);
    // Preallocated and not begun; a segment file that is used again.
    for nothing in [vec![0; bytes.len()], of_this] {
        split.scratch.file(&file, &nothing);
        let (found, log) = split.recover(&["--spool", &spool]);
        assert_eq!(found, [0, 0, 0], "{log}");
        assert!(log.contains("holds nothing of"), "{log}");
    }
    let changed = |at: usize, byte: u8| {
        let mut other = bytes.clone();
        other[at] ^= byte;
        other
    };
    let long = [&bytes[..], b"x"].concat();
    let mut copy = split.archive().copy(&["--spool", &spool]);
    for (wrong, code) in [(changed(24, 1), 205), (changed(1, 0x80), 206), (long, 206)] {
        split.scratch.file(&file, &wrong);
        let log = copy.try_start().expect_err("it must not open");
        assert!(log.contains(&format!("exit code {code}")), "{log}");
    }
    // A copy that was cut where the file system ended is shorter, and padded.
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("WAL");
    split.scratch.file(&file, &bytes[..=end]);
    copy.start();
    copy.wait_recovered();
    assert_eq!(all_rows(&copy), [ROWS, 0, 0]);
}

/// A cluster's directory without a server, its archive, and a spool.
struct Host {
    scratch: Scratch,
    data: PathBuf,
    spool: PathBuf,
}

impl Host {
    fn new() -> Host {
        let scratch = Scratch::new();
        let data = Wal::shared().data_dir(&scratch, "data");
        let spool = scratch.dir("spool");
        scratch.file("spool/seawall.lock", "");
        Host {
            scratch,
            data,
            spool,
        }
    }

    /// The archive, with these of the five segments.
    fn archive(&self, segments: &[usize]) -> Archive<'_> {
        let archive = Archive::directory(&self.scratch, "archive");
        for index in segments {
            let path = format!("pg_wal/{}", segment(*index).name);
            let push = archive.seawall().cwd(&self.data);
            push.args(["wal-push", &path]).run().ok();
        }
        archive
    }

    /// wal-fetch of a file with these options, as a recovery in the data directory runs it.
    fn fetch(&self, archive: &Archive, options: &[&str], name: &str) -> Seawall {
        self.scratch.file("data/recovery.signal", "");
        let seawall = archive.seawall().cwd(&self.data);
        let seawall = seawall.env("SEAWALL_RETRY_TIMEOUT", "200ms");
        let spool = self.spool.display().to_string();
        let options = options.iter().map(|o| o.replace("DIR", &spool));
        seawall.arg("wal-fetch").args(options).arg(name).arg("-")
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        self.scratch.file(self.spool.join(name), bytes);
    }
}

fn segment(index: usize) -> &'static WalFile {
    &Wal::shared().segments[index]
}

/// The beginning of a segment, with zeros behind.
fn padded(index: usize, bytes: usize) -> Vec<u8> {
    let mut padded = segment(index).bytes[..bytes].to_vec();
    padded.resize(segment(index).bytes.len(), 0);
    padded
}

/// A `.growing` object as the manual describes it.
fn growing(index: usize, bytes: &[u8]) -> Vec<u8> {
    growing_of(&segment(index).name, bytes)
}

fn growing_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    let facts = format!(
        "{{\"format\":1,\"segment\":\"{name}\",\"length\":{},\"system_identifier\":\"{}\",\"sha256\":\"{}\"}}",
        bytes.len(),
        Wal::shared().system_id,
        sha256(bytes)
    );
    let length = u32::try_from(facts.len()).expect("short").to_le_bytes();
    [
        &b"\x50\x2A\x4D\x18"[..],
        &length,
        facts.as_bytes(),
        &zstd(bytes),
    ]
    .concat()
}

/// The segment as a later timeline names it.
fn on_timeline(timeline: u32, index: usize) -> String {
    format!("{timeline:08X}{}", &segment(index).name[8..])
}

/// The position so many bytes into the segment.
fn position(index: usize, bytes: u32) -> String {
    let number = u32::from_str_radix(&segment(index).name[16..], 16).expect("digits");
    format!("0/{:X}", (number << 20) + bytes)
}

#[track_caller]
fn gives(fetch: Seawall, expected: &[u8]) -> Outcome {
    let outcome = fetch.run().ok();
    assert!(outcome.stdout == expected, "other bytes: {outcome:?}");
    outcome
}

const SPOOL: &[&str] = &["--spool", "DIR"];

#[test]
fn what_the_spool_has_whole_is_delivered_everywhere() {
    let host = Host::new();
    let archive = host.archive(&[0, 3]);
    host.put(&segment(1).name, &segment(1).bytes);
    host.put(&segment(4).name, &segment(4).bytes);
    // In a hole of the archive, and at its end; a standby needs it too.
    for index in [1, 4] {
        let fetch = |options| host.fetch(&archive, options, &segment(index).name);
        for signal in ["recovery.signal", "standby.signal"] {
            let elsewhere = host.scratch.dir(format!("data-{}", unique()));
            host.scratch.file(elsewhere.join(signal), "");
            gives(fetch(SPOOL).cwd(elsewhere), &segment(index).bytes);
        }
        let code = if index == 1 { HOLE } else { 1 };
        fetch(&[]).run().expect(code, &[]);
        fetch(&["--partial"]).run().expect(code, &[]);
    }
    // The hole that neither has.
    let fetch = |options| host.fetch(&archive, options, &segment(2).name);
    fetch(SPOOL).run().expect(HOLE, &["not the end of WAL"]);
    // A history that was not archived yet.
    let history = b"1\t0/9000060\tno recovery target specified\n";
    host.put("00000002.history", history);
    gives(host.fetch(&archive, SPOOL, "00000002.history"), history);
    host.fetch(&archive, SPOOL, "00000003.history")
        .run()
        .expect(1, &[]);
    host.put("00000002.history", b"rubbish");
    host.fetch(&archive, SPOOL, "00000002.history")
        .run()
        .expect(206, &["00000002.history"]);
}

#[test]
fn a_wrong_file_in_the_spool_is_not_delivered() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let file = segment(1);
    let short = &file.bytes[..file.bytes.len() - 8192];
    let long = [&file.bytes[..], &[0; 8192]].concat();
    for (bytes, code) in [
        (short, 206),
        (&long, 206),
        (&vec![0; file.bytes.len()], 206),
        (b"", 206),
        (&segment(2).bytes, 206),
        (&file.of_another_cluster().bytes, 205),
    ] {
        host.put(&file.name, bytes);
        let outcome = host.fetch(&archive, SPOOL, &file.name).run();
        assert!(outcome.stdout.is_empty());
        outcome.expect(code, &[&file.name, "\ndetail: "]);
    }
    fs::remove_file(host.spool.join(&file.name)).expect("a file");
    for ending in [".gz", ".gz.partial", ".lz4", ".lz4.partial"] {
        let name = format!("{}{ending}", file.name);
        host.put(&name, b"whatever");
        let outcome = host.fetch(&archive, SPOOL, &file.name).run();
        outcome.expect(203, &[&name, "\nhint: Decompress"]);
        fs::remove_file(host.spool.join(&name)).expect("a file");
    }
}

#[test]
fn a_spool_that_does_not_show_itself_proves_nothing() {
    let host = Host::new();
    let archive = host.archive(&[0, 1]);
    let next = &segment(2).name;
    host.fetch(&archive, SPOOL, next).run().expect(1, &[]);
    fs::remove_file(host.spool.join("seawall.lock")).expect("a file");
    let outcome = host.fetch(&archive, SPOOL, next).run();
    outcome.expect(208, &["holds nothing of a receiver", "\nhint: "]);
    let nowhere = ["--spool", "/nonexistent"];
    host.fetch(&archive, &nowhere, next)
        .run()
        .expect(208, &["/nonexistent"]);
    host.fetch(&archive, &["--spool", ""], next)
        .run()
        .expect(202, &[]);
    // What the archive has is delivered without a look.
    gives(
        host.fetch(&archive, &nowhere, &segment(1).name),
        &segment(1).bytes,
    );
    // And a spool is no answer of an archive that has none.
    host.put(next, &segment(2).bytes);
    let outage = Archive::directory(&host.scratch, "outage");
    let outcome = host.fetch(&outage, SPOOL, next).run();
    outcome.expect(208, &["does not show itself", "It is in the spool"]);
}

#[test]
fn a_later_segment_shows_that_this_is_not_the_end() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let partial = |index: usize| format!("{}.partial", segment(index).name);
    host.put(&partial(1), &padded(1, 50_000));
    gives(
        host.fetch(&archive, SPOOL, &segment(1).name),
        &padded(1, 50_000),
    );
    for later in [
        segment(2).name.clone(),
        partial(2),
        format!("{}.gz", segment(3).name),
    ] {
        host.put(&later, &segment(2).bytes);
        let fetch = |options: &[&str]| host.fetch(&archive, options, &segment(1).name);
        fetch(SPOOL)
            .run()
            .expect(HOLE, &[&later, "not the end of WAL"]);
        let forced = fetch(&["--spool", "DIR", "--on-hole", "absent"]);
        gives(forced, &padded(1, 50_000));
        fs::remove_file(host.spool.join(&later)).expect("a file");
    }
    // The same for what the archive has.
    let key = |index: usize| format!("wal_005/{}.growing.zst", segment(index).name);
    archive.put(&key(2), &growing(2, &segment(2).bytes[..9000]));
    let fetch = |options: &[&str]| host.fetch(&archive, options, &segment(1).name).run();
    fetch(&["--spool", "DIR", "--partial"]).expect(HOLE, &[&key(2)]);
    fetch(SPOOL).ok();
}

#[test]
fn an_unfinished_segment_is_for_recoveries() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let name = &segment(1).name;
    let (recovery, standby) = ("recovery.signal", "standby.signal");
    host.put(&format!("{name}.partial"), &padded(1, 50_000));
    archive.put(
        &format!("wal_005/{name}.growing.zst"),
        &growing(1, &segment(1).bytes[..50_000]),
    );
    for options in [SPOOL, &["--partial"], &["--partial", "--spool", "DIR"]] {
        for (signals, delivered) in [
            (&[recovery][..], true),
            (&[standby], false),
            (&[recovery, standby], false),
            (&[], false),
        ] {
            println!("{options:?} {signals:?}");
            let data = host.scratch.dir(format!("data-{}", unique()));
            for signal in signals {
                host.scratch.file(data.join(signal), "");
            }
            let fetch = |options: &[&str]| host.fetch(&archive, options, name).cwd(&data);
            match delivered {
                true => {
                    gives(fetch(options), &padded(1, 50_000));
                }
                false => {
                    fetch(options).run().expect(1, &["counts as absent"]);
                }
            }
            let force: Vec<&str> = options
                .iter()
                .map(|o| o.trim_start_matches("--partial"))
                .collect();
            let force: Vec<&str> = force
                .into_iter()
                .filter(|o| !o.is_empty())
                .chain(["--partial=force"])
                .collect();
            gives(fetch(&force), &padded(1, 50_000));
        }
    }
}

#[test]
fn what_grows_in_the_archive_is_delivered_if_it_is_sound() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let file = segment(1);
    let key = format!("wal_005/{}.growing.zst", file.name);
    let partial = format!("wal_005/{}.partial", file.name);
    let fetch = |options: &[&str]| host.fetch(&archive, options, &file.name);
    archive.put(&key, &growing(1, &file.bytes[..50_000]));
    assert!(unzstd(&archive.get(&key).expect("stored")) == file.bytes[..50_000]);
    fetch(&[]).run().expect(1, &[]);
    gives(fetch(&["--partial"]), &padded(1, 50_000));
    // What is longer counts, whatever its form.
    let gzip = filter(Command::new("gzip").arg("-c"), &padded(1, 60_000));
    archive.put(&format!("{partial}.gz"), &gzip);
    gives(fetch(&["--partial"]), &padded(1, 60_000));
    archive.put(
        &format!("{partial}.0123abcd.zst"),
        &zstd(&padded(1, 70_000)),
    );
    gives(fetch(&["--partial"]), &padded(1, 70_000));
    host.put(&format!("{}.partial", file.name), &padded(1, 65_000));
    gives(fetch(&["--partial", "--spool", "DIR"]), &padded(1, 70_000));
    gives(fetch(SPOOL), &padded(1, 65_000));

    let whole = growing(1, &file.bytes[..50_000]);
    let text = |from: &str, to: &str| {
        let at = whole
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .expect("in it");
        let mut other = whole.clone();
        other[at..at + to.len()].copy_from_slice(to.as_bytes());
        other
    };
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    for (what, bytes, code) in [
        ("a bit", flipped, 206),
        ("cut", whole[..whole.len() / 2].to_vec(), 206),
        ("another length", text(":50000", ":49999"), 206),
        ("another digest", text("sha256\":\"", "sha256\":\"zz"), 206),
        ("another segment", text(&file.name, &segment(2).name), 206),
        ("without facts", zstd(&file.bytes[..50_000]), 206),
        (
            "of another cluster",
            growing(1, &file.of_another_cluster().bytes[..50_000]),
            205,
        ),
    ] {
        println!("{what}");
        archive.put(&key, &bytes);
        fetch(&["--partial"])
            .run()
            .expect(code, &[&file.name, "\ndetail: "]);
    }
    archive.put(&key, &whole);
    archive.put(&format!("wal_005/{}.growing.lz4", file.name), b"who knows");
    fetch(&["--partial"])
        .run()
        .expect(203, &["growing.lz4", "\nhint: "]);
}

#[test]
fn memory_does_not_grow_with_the_segment() {
    let host = Host::new();
    let archive = Archive::directory(&host.scratch, "archive");
    let large = segment(0).incompressible(64);
    let push = archive.seawall().cwd(host.scratch.dir("elsewhere"));
    let first = host
        .scratch
        .file(host.scratch.dir("wal").join(&large.name), &large.bytes);
    push.arg("wal-push").arg(first).run().ok();
    let name = next_name(&large.name);
    let mut next = large.bytes.clone();
    next[8..16].copy_from_slice(&(2u64 * (64 << 20)).to_le_bytes());
    host.put(&format!("{name}.partial"), &next);
    for options in [SPOOL, &["--spool", "DIR", "--partial"]] {
        let dest = host.scratch.dir(format!("place-{}", unique())).join("x");
        let data = host.scratch.dir(format!("data-{}", unique()));
        host.scratch.file(data.join("recovery.signal"), "");
        let spool = host.spool.display().to_string();
        let fetch = archive.seawall().cwd(data).arg("wal-fetch");
        let fetch = fetch.args(options.iter().map(|o| o.replace("DIR", &spool)));
        let outcome = fetch
            .arg(&name)
            .arg(&dest)
            .measured(&host.scratch)
            .run()
            .ok();
        assert_eq!(fs::metadata(&dest).expect("delivered").len(), 64 << 20);
        let peak = outcome.peak_rss_kib.expect("measured");
        assert!(peak < 40 << 10, "{peak} KiB");
    }
}

/// The old primary went on after its standby was promoted, and its archiver too.
#[test]
fn a_complete_archived_segment_is_cut_where_its_timeline_was_left() {
    let host = Host::new();
    let archive = host.archive(&[0, 1, 2]);
    let history = format!("1\t{}\tx\n", position(1, 40_000));
    let whole = |options: &[&str], index: usize| {
        gives(
            host.fetch(&archive, options, &segment(index).name),
            &segment(index).bytes,
        );
    };
    let asked: [&[&str]; 3] = [SPOOL, &["--partial"], &["--partial", "--spool", "DIR"]];
    for options in asked {
        whole(options, 1);
    }
    // Also when the receiver has the history and the archive does not yet.
    host.put("00000002.history", history.as_bytes());
    gives(
        host.fetch(&archive, SPOOL, &segment(1).name),
        &padded(1, 40_000),
    );
    whole(&["--partial"], 1);
    fs::remove_file(host.spool.join("00000002.history")).expect("a file");
    archive.put("wal_005/00000002.history.zst", &zstd(history.as_bytes()));
    for options in asked {
        println!("{options:?}");
        let fetch = |index: usize| host.fetch(&archive, options, &segment(index).name);
        whole(options, 0);
        let outcome = gives(fetch(1), &padded(1, 40_000));
        outcome.expect(0, &["timeline 2 left timeline 1", "--timeline 1 delivers"]);
        fetch(2).run().expect(1, &["--timeline 1 delivers it"]);
        // A standby could archive it as complete.
        let standby = host.scratch.dir(format!("data-{}", unique()));
        host.scratch.file(standby.join("standby.signal"), "");
        let outcome = fetch(1).cwd(standby).run();
        outcome.expect(1, &["counts as absent"]);
        for (target, delivered) in [("1", true), ("2", false)] {
            let options = [options, &["--timeline", target]].concat();
            match delivered {
                true => [1, 2].map(|index| whole(&options, index)),
                false => {
                    let fetch = host.fetch(&archive, &options, &segment(1).name);
                    gives(fetch, &padded(1, 40_000));
                    [(); 2]
                }
            };
        }
    }
    // PostgreSQL's own way, without any of it.
    whole(&[], 1);
    whole(&[], 2);
    // Whoever follows the branch asks for this one, and not for its parent's.
    let own = format!("wal_005/{}.zst", on_timeline(2, 1));
    archive.put(&own, &zstd(&segment(1).bytes));
    for options in asked {
        whole(options, 1);
        whole(options, 2);
    }
}

/// Between the question what there is and the one for the segment, it is archived: whole, though it was left.
#[test]
fn what_is_archived_while_it_is_looked_for_is_asked_for_again() {
    // Given a timeline that was left, and a store that answers the question for the segment late,
    let host = Host::new();
    let proxy = Proxy::start(Minio::plain().port());
    let bucket = Minio::plain().bucket("meanwhile");
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let archive = Archive::of_witness(&host.scratch, env, bucket);
    let push = archive.seawall().cwd(&host.data);
    push.args(["wal-push", &format!("pg_wal/{}", segment(0).name)])
        .run()
        .ok();
    let history = format!("1\t{}\tx\n", position(1, 40_000));
    archive.put("wal_005/00000002.history.zst", &zstd(history.as_bytes()));
    let key = format!("wal_005/{}.zst", segment(1).name);
    proxy.rule(
        Rule::new(Fault::Late(Duration::from_secs(5)))
            .method("GET")
            .path(&key),
    );

    // when the segment arrives in between, then nothing is delivered, and the next one is cut.
    let fetch = || host.fetch(&archive, &["--partial"], &segment(1).name);
    let fetching = fetch().env("SEAWALL_RETRY_TIMEOUT", "1min").spawn();
    wait_for(PATIENCE, "the question for it", || {
        let requests = proxy.requests();
        requests
            .iter()
            .any(|asked| asked.method == "GET" && asked.path.ends_with(&key))
    });
    archive.put(&key, &zstd(&segment(1).bytes));
    let outcome = fetching.wait(PATIENCE);
    assert!(outcome.stdout.is_empty());
    outcome.expect(208, &["was archived while it was looked for"]);
    proxy.clear();
    gives(fetch(), &padded(1, 40_000));
}

/// The receiver of a promoted server died before it had sent what that server had from the old one.
#[test]
fn what_a_child_lacks_below_its_fork_comes_from_the_parent() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let (parent, child) = (&segment(1).name, on_timeline(2, 1));
    let bytes = &segment(1).bytes;
    let history = format!("1\t{}\tx\n", position(1, 40_000));
    archive.put("wal_005/00000002.history.zst", &zstd(history.as_bytes()));
    let own = format!("wal_005/{child}.growing.zst");
    let both: &[&str] = &["--partial", "--spool", "DIR"];
    let fetch = |options: &[&str]| host.fetch(&archive, options, &child);
    let is_missing = |options: &[&str]| {
        let said = ["not the end of WAL", &position(1, 40_000)];
        fetch(options).run().expect(HOLE, &said);
    };
    archive.put(&own, &growing_of(&child, &bytes[..20_000]));
    is_missing(both);
    let forced = fetch(&["--partial", "--on-hole", "absent"]);
    gives(forced, &padded(1, 20_000));

    let object = |ending: &str| format!("wal_005/{parent}{ending}");
    for (ending, stored) in [
        (".growing.zst", growing(1, &bytes[..40_000])),
        (".growing.zst", growing(1, &bytes[..45_000])),
        (".partial.zst", zstd(&padded(1, 45_000))),
        (".zst", zstd(bytes)),
    ] {
        println!("{ending}");
        archive.put(&object(ending), &stored);
        gives(fetch(&["--partial"]), &padded(1, 40_000));
        archive.delete(&object(ending));
        is_missing(both);
    }
    // Not enough, or of another branch.
    archive.put(&object(".growing.zst"), &growing(1, &bytes[..30_000]));
    is_missing(both);
    archive.delete(&object(".growing.zst"));
    let mut other = bytes.clone();
    other[10_000] ^= 1;
    archive.put(&object(".zst"), &zstd(&other));
    let outcome = fetch(&["--partial"]).run();
    outcome.expect(205, &["before the fork", "\nhint: "]);
    archive.delete(&object(".zst"));
    for (name, there) in [
        (parent.clone(), bytes.clone()),
        (format!("{parent}.partial"), padded(1, 45_000)),
    ] {
        host.put(&name, &there);
        gives(fetch(both), &padded(1, 40_000));
        is_missing(&["--partial"]);
        fs::remove_file(host.spool.join(&name)).expect("a file");
    }
    // The child's in the spool; and then it has come to the fork, and needs nobody.
    archive.delete(&own);
    archive.put(&object(".zst"), &zstd(bytes));
    host.put(&format!("{child}.partial"), &padded(1, 20_000));
    gives(fetch(SPOOL), &padded(1, 40_000));
    archive.put(&object(".zst"), &zstd(&other));
    host.put(&format!("{child}.partial"), &padded(1, 44_000));
    gives(fetch(SPOOL), &padded(1, 44_000));
}

#[test]
fn only_a_parent_that_was_left_at_the_fork_completes_it() {
    let host = Host::new();
    let archive = host.archive(&[0]);
    let bytes = &segment(1).bytes;
    let put_history = |timeline: u32, ends: &[(u32, u32)]| {
        let line = |(of, at): &(u32, u32)| format!("{of}\t{}\tx\n", position(1, *at));
        let text: String = ends.iter().map(line).collect();
        let key = format!("wal_005/{timeline:08X}.history.zst");
        archive.put(&key, &zstd(text.as_bytes()));
    };
    let put = |timeline: u32, length: usize| {
        let name = on_timeline(timeline, 1);
        let key = format!("wal_005/{name}.growing.zst");
        archive.put(&key, &growing_of(&name, &bytes[..length]));
    };
    let fetch = |timeline| host.fetch(&archive, &["--partial"], &on_timeline(timeline, 1));
    put_history(2, &[(1, 30_000)]);
    put_history(3, &[(1, 30_000), (2, 40_000)]);
    put(3, 20_000);
    put(1, 45_000);
    // Timeline 1 has other bytes from 30,000 on.
    fetch(3).run().expect(HOLE, &["not the end of WAL"]);
    put(2, 35_000);
    fetch(3).run().expect(HOLE, &["not the end of WAL"]);
    put(2, 40_000);
    gives(fetch(3), &padded(1, 40_000));
    // The one in the middle is asked for when the last one is not there.
    put(2, 20_000);
    gives(fetch(2), &padded(1, 30_000));
    // Left where it began, it has nothing of its own.
    put_history(3, &[(1, 30_000), (2, 30_000)]);
    gives(fetch(3), &padded(1, 30_000));
}
