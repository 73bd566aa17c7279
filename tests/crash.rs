//! Whatever dies, an acknowledged commit comes back: crash series of `wal-receive` on a real server whose commits wait
//! for it alone.
//!
//! 1. Receiver, server, both, the store, a promotion: archive and spool together have everything.
//! 2. The receiver's disk too: the store has all but the last `--partial-every` and one put.
//! 3. Power loss: what a copy of the spool's file system has, made while it is mounted, is enough. That this can fail
//!    shows a receiver whose fdatasync is a lie.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use postgres::NoTls;
use rustix::process::Signal;

use crate::support::archive::{self, Archive};
use crate::support::chance::Chance;
use crate::support::cluster::Cluster;
use crate::support::ext4::Ext4;
use crate::support::load::{Acknowledged, Load, Pace, TABLE};
use crate::support::minio::{Minio, s3_env};
use crate::support::proxy::{Fault, Proxy, Request, Rule};
use crate::support::seawall::{Running, Seawall};
use crate::support::{
    Scratch, give_to_postgres, is_stopped, resident_kib, rounds, run, unique, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of all that the writers wrote in a series of full length.
const RECOVERY: Duration = Duration::from_secs(600);
const WRITERS: usize = 8;
/// Commits that show that all goes on.
const SOME: usize = 20;

/// Rows that fill a segment in a second or so.
const FAST: Pace = Pace {
    filler: 1500,
    thinks: Duration::ZERO,
};

/// A server, the receiver that its commits wait for, the archive that this one fills, and writers.
struct Site<'a> {
    scratch: &'a Scratch,
    archive: &'a Archive<'a>,
    load: Load,
    receiver: Option<Running>,
    server: Cluster,
    spool: PathBuf,
    setup: Setup,
    strays: i64,
}

/// How the receiver is run.
#[derive(Default)]
struct Setup {
    words: Vec<&'static str>,
    environment: Vec<(String, String)>,
}

impl<'a> Site<'a> {
    /// With a base backup, and writers at work.
    fn new(
        scratch: &'a Scratch,
        archive: &'a Archive<'a>,
        spool: PathBuf,
        setup: Setup,
        pace: Pace,
    ) -> Site<'a> {
        let server = Cluster::builder(scratch, &format!("node-{}", unique()))
            .wal_segsize_mib(1)
            .config("synchronous_standby_names", "seawall")
            .config("wal_sender_timeout", "2s")
            .start();
        let seawall = Seawall::new(scratch).envs(server.client_env());
        seawall
            .args(["wal-receive", "--create-slot", "--slot", "spool"])
            .run()
            .ok();
        let mut site = Site {
            scratch,
            archive,
            load: Load::start(WRITERS, pace),
            receiver: None,
            server,
            spool,
            setup,
            strays: 0,
        };
        site.start_receiver();
        site.server.execute(TABLE);
        let push = archive.seawall_for(&site.server).arg("backup-push");
        push.arg(site.server.data())
            .args(["--wal-timeout", "1min"])
            .run()
            .ok();
        site.load.aim(&site.server);
        site.load.wait_for_more(SOME);
        let sync = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        assert_eq!(site.server.number(sync), 1);
        site
    }

    fn start_receiver(&mut self) {
        let seawall = self.archive.seawall().envs(self.server.client_env());
        let receiver = seawall
            .env("SEAWALL_RETRY_TIMEOUT", "1s")
            .envs(self.setup.environment.iter().cloned())
            .args(["wal-receive", "--synchronous", "--slot", "spool"])
            .args(["--status-interval", "1", "--receive-timeout", "5s"])
            .args(&self.setup.words)
            .arg("--directory")
            .arg(&self.spool);
        assert!(self.receiver.is_none());
        self.receiver = Some(receiver.spawn());
    }

    fn receiver(&mut self) -> &mut Running {
        self.receiver.as_mut().expect("it runs")
    }

    /// A receiver that ended by itself is a failure, told with what it said.
    fn kill_receiver(&mut self) {
        let receiver = self.receiver.take().expect("it runs");
        receiver.kill9();
    }

    /// Stops all of its threads, wherever they are.
    fn stop_receiver(&mut self) {
        let receiver = self.receiver();
        receiver.signal(Signal::STOP);
        let pid = receiver.pid();
        wait_for(PATIENCE, "a receiver that stands still", || is_stopped(pid));
    }

    /// The machine of both is lost, in the middle of commits: what was acknowledged.
    fn lose_everything(&mut self) -> Vec<Acknowledged> {
        self.kill_receiver();
        self.server.kill9();
        self.load.finish()
    }

    /// A server after a recovery with these words of `wal-fetch`, or the log of one that did not end well.
    fn recover(&self, words: &[&str]) -> Result<Cluster, String> {
        let name = format!("copy-{}", unique());
        let data = self.scratch.join(&name);
        let command = self.archive.seawall().arg("wal-fetch").args(words);
        let command = command.args(["%f", "%p"]).shell_line();
        let fetch = self.archive.seawall().arg("backup-fetch").arg(&data);
        fetch
            .args(["LATEST", "--recovery", "--restore-command", &command])
            .run()
            .ok();
        let mut copy = Cluster::builder(self.scratch, &name).on(&data);
        copy.try_start()?;
        wait_for(RECOVERY, "the end of recovery", || {
            is_open(&copy) || copy.has_ended()
        });
        match copy.has_ended() {
            true => Err(copy.log()),
            false => Ok(copy),
        }
    }

    /// The acknowledged rows that are not there.
    fn lost_in(&self, copy: &Cluster) -> Vec<Acknowledged> {
        let rows = copy.client().query("select n from paid", &[]);
        let rows = rows.expect("rows");
        let there: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let strays: Vec<_> = there.range(..0).collect();
        assert!(strays.is_empty(), "of a branch that was left: {strays:?}");
        let mut lost = self.load.acknowledged();
        println!("{} acknowledged, {} there", lost.len(), there.len());
        lost.retain(|row| !there.contains(&row.n));
        lost
    }

    /// What a recovery with these words does not bring back.
    fn lost(&self, words: &[&str]) -> Result<Vec<Acknowledged>, String> {
        let copy = self.recover(words)?;
        let lost = self.lost_in(&copy);
        discard(copy);
        Ok(lost)
    }

    /// Archive and spool have all that was acknowledged.
    fn assert_nothing_is_lost(&self) {
        let spool = self.spool.display().to_string();
        let copy = self.recover(&["--spool", &spool]);
        let copy = copy.unwrap_or_else(|log| panic!("no recovery:\n{log}"));
        let lost = self.lost_in(&copy);
        assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
        archive::amcheck(&copy);
        discard(copy);
    }
}

/// Ends a server and removes what it had.
fn discard(server: Cluster) {
    let data = server.data().to_path_buf();
    drop(server);
    fs::remove_dir_all(data).expect("PGDATA");
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let Some(receiver) = self.receiver.take() else {
            return;
        };
        receiver.signal(Signal::KILL);
        let outcome = receiver.wait(PATIENCE);
        if thread::panicking() {
            eprintln!("{outcome:?}");
        }
    }
}

/// Whether recovery is over. A server that is gone is not open.
fn is_open(server: &Cluster) -> bool {
    let ask = |mut client: postgres::Client| {
        let row = client.query_one("select not pg_is_in_recovery()", &[]);
        Some(row.ok()?.get(0))
    };
    let client = server.address().connect(NoTls).ok();
    client.and_then(ask).unwrap_or(false)
}

/// What a round does to the site.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// kill -9 of the receiver.
    Receiver,
    /// kill -9 of the server.
    Server,
    /// Of both, in any order, and they come again in any order.
    Both,
    /// SIGSTOP and SIGCONT of the receiver; the server may have lost patience.
    Pause,
    /// kill -9 of the store, perhaps of the receiver too while it is away.
    Store,
    /// A standby takes over.
    Promotion,
    /// A standby takes over, and the old primary writes on in the segment of the switch.
    Split,
    /// The same, and the receiver is killed when it has just begun the new timeline's first segment.
    Begun,
}

/// So often in twenty rounds.
const DECK: [(Blow, usize); 8] = [
    (Blow::Receiver, 4),
    (Blow::Server, 3),
    (Blow::Both, 4),
    (Blow::Pause, 3),
    (Blow::Store, 3),
    (Blow::Promotion, 1),
    (Blow::Split, 1),
    (Blow::Begun, 1),
];

fn blows(count: usize, chance: &mut Chance) -> Vec<Blow> {
    let mut blows = Vec::new();
    while blows.len() < count {
        let mut deck: Vec<Blow> = DECK
            .iter()
            .flat_map(|(blow, often)| vec![*blow; *often])
            .collect();
        chance.shuffle(&mut deck);
        blows.extend(deck);
    }
    blows.truncate(count);
    blows
}

fn archive_in<'a>(scratch: &'a Scratch, store: &Minio) -> Archive<'a> {
    let bucket = store.bucket("crash");
    Archive::of_witness(scratch, store.env(&bucket.name()), bucket)
}

#[test]
fn whatever_dies_no_acknowledged_commit_is_lost() {
    let scratch = Scratch::new();
    let store = Minio::lasting(&scratch);
    let archive = archive_in(&scratch, &store);
    let spool = scratch.dir("spool");
    let mut site = Site::new(&scratch, &archive, spool, Setup::default(), FAST);
    let mut chance = Chance::new();
    for (round, blow) in blows(rounds(20, 200), &mut chance).into_iter().enumerate() {
        println!("round {round}, {} rows: {blow:?}", site.load.count());
        thread::sleep(chance.millis(50..600));
        site.strike(blow, &store, &mut chance);
        site.load.wait_for_more(SOME);
        assert!(!site.receiver().has_ended());
    }
    thread::sleep(chance.millis(50..600));
    site.lose_everything();
    site.assert_nothing_is_lost();
    // It was the spool that had the last ones: else this would prove nothing.
    let lost = site.lost(&[]).expect("a recovery");
    assert!(!lost.is_empty());
}

#[test]
fn a_store_that_is_down_costs_room_on_the_disk_alone() {
    // Given a receiver that uploads,
    let scratch = Scratch::new();
    let store = Minio::lasting(&scratch);
    let archive = archive_in(&scratch, &store);
    let spool = scratch.dir("spool");
    let mut site = Site::new(&scratch, &archive, spool, Setup::default(), FAST);
    let pid = site.receiver().pid();
    let segments = |site: &Site| site.kept().len();
    wait_for(PATIENCE, "an empty spool", || segments(&site) == 0);

    // when the store is gone for a while, then commits go on and the spool grows;
    store.kill9();
    let time = Duration::from_secs(rounds(30, 600) as u64);
    let (began, mut early) = (Instant::now(), None);
    while began.elapsed() < time {
        site.load.wait_for_more(WRITERS * SOME);
        if began.elapsed() > time / 5 {
            early.get_or_insert_with(|| (resident_kib(pid), segments(&site)));
        }
    }
    let (early_kib, early_segments) = early.expect("it took some time");
    let (kib, waiting) = (resident_kib(pid), segments(&site));
    println!("{early_segments} to {waiting} segments waited, {early_kib} to {kib} KiB");
    assert!(waiting > early_segments, "{waiting} after {early_segments}");
    assert!(kib < early_kib + (2 << 10), "{early_kib} to {kib} KiB");

    // and when it is back, then all of it gets there by itself, and only then leaves the spool.
    store.start_again();
    site.load.rest();
    wait_for(PATIENCE * 3, "an empty spool", || segments(&site) == 0);
    site.load.aim(&site.server);
    site.load.wait_for_more(SOME);
    site.lose_everything();
    site.assert_nothing_is_lost();
}

impl Site<'_> {
    /// Whole segments in the spool.
    fn kept(&self) -> Vec<String> {
        let names = fs::read_dir(&self.spool).expect("the spool");
        let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.len() == 24).collect()
    }

    fn strike(&mut self, blow: Blow, store: &Minio, chance: &mut Chance) {
        match blow {
            Blow::Receiver => {
                self.kill_receiver();
                self.start_receiver();
            }
            Blow::Server => {
                self.server.kill9();
                self.server.start();
            }
            Blow::Both => self.strike_both(chance),
            Blow::Pause => {
                self.stop_receiver();
                thread::sleep(chance.millis(50..2500));
                self.receiver().signal(Signal::CONT);
            }
            Blow::Store => self.strike_store(store, chance),
            Blow::Promotion => self.fail_over(0, false, chance),
            Blow::Split => {
                let strays = 1 + chance.below(20);
                self.fail_over(strays, false, chance);
            }
            Blow::Begun => {
                let strays = chance.below(20);
                self.fail_over(strays, true, chance);
            }
        }
    }

    fn strike_both(&mut self, chance: &mut Chance) {
        if chance.coin() {
            self.kill_receiver();
            self.server.kill9();
        } else {
            self.server.kill9();
            self.kill_receiver();
        }
        if chance.coin() {
            self.start_receiver();
            self.server.start();
        } else {
            self.server.start();
            self.start_receiver();
        }
    }

    fn strike_store(&mut self, store: &Minio, chance: &mut Chance) {
        store.kill9();
        // Nobody waits for it.
        self.load.wait_for_more(SOME);
        thread::sleep(chance.millis(50..600));
        if chance.coin() {
            self.kill_receiver();
            self.start_receiver();
            self.load.wait_for_more(SOME);
        }
        store.start_again();
    }

    /// A standby that has everything is promoted, and the receiver goes over to it. `strays` rows are written to the old
    /// primary after that; the receiver has them, and they must not come back. With `begun` the receiver dies when it
    /// has just begun the new timeline, and the new primary with it, as far as the restore knows.
    fn fail_over(&mut self, strays: u64, begun: bool, chance: &mut Chance) {
        let standby = self.standby();
        self.load.rest();
        self.leave_room_in_segment();
        wait_replayed(&self.server, &standby);
        standby.promote();
        self.write_strays(strays);
        if chance.coin() {
            self.kill_receiver();
            self.server.kill9();
        } else {
            self.server.kill9();
            self.kill_receiver();
        }
        discard(std::mem::replace(&mut self.server, standby));
        self.start_receiver();
        if begun {
            let timeline = self
                .server
                .value("select left(pg_walfile_name(pg_current_wal_lsn()), 8)");
            self.wait_begun(&timeline);
            self.kill_receiver();
            println!("killed with {:?} in the spool", names(&self.spool));
            self.assert_nothing_is_lost();
            self.start_receiver();
        }
        self.load.aim(&self.server);
    }

    /// A standby with a slot for the receiver.
    fn standby(&self) -> Cluster {
        let name = format!("node-{}", unique());
        let data = self.scratch.join(&name);
        let mut basebackup = self.server.tool("pg_basebackup");
        basebackup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]);
        run(basebackup.arg("--pgdata").arg(&data));
        let mut standby = Cluster::builder(self.scratch, &name).on(data);
        standby.start();
        standby.execute("select pg_create_physical_replication_slot('spool', true)");
        standby
    }

    /// So that the switch and the strays fall into one segment, with something before them.
    fn leave_room_in_segment(&self) {
        let used = "select (pg_current_wal_insert_lsn() - '0/0')::bigint % (1 << 20)";
        if self.server.number(used) > 1 << 19 {
            self.server.switch_wal();
        }
        let message =
            "select pg_logical_emit_message(true, 'test', 'to be flushed, and waited for')";
        self.server.execute(message);
    }

    /// Rows of the branch that is left, acknowledged there.
    fn write_strays(&mut self, count: u64) {
        let segment = "select pg_walfile_name(pg_current_wal_insert_lsn())";
        let before = self.server.value(segment);
        let mut client = self.server.client();
        for _ in 0..count {
            self.strays += 1;
            let insert = format!("insert into paid values (-{}, 'stray')", self.strays);
            client.batch_execute(&insert).expect("a commit");
        }
        assert_eq!(before, self.server.value(segment), "not the switch segment");
    }

    /// Waits until the receiver has begun this timeline's first segment.
    fn wait_begun(&self, timeline: &str) {
        let end = Instant::now() + PATIENCE;
        let first = |name: &String| name.starts_with(timeline) && name.ends_with(".partial");
        while !names(&self.spool).iter().any(first) {
            assert!(Instant::now() < end, "timeline {timeline} was not begun");
        }
    }
}

fn wait_replayed(primary: &Cluster, standby: &Cluster) {
    let end = primary.value("select pg_current_wal_flush_lsn()");
    let replayed = format!("select (pg_last_wal_replay_lsn() >= '{end}')::text");
    wait_for(PATIENCE, "a standby that has all", || {
        standby.value(&replayed) == "true"
    });
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(name).collect()
}

/// As in `--partial-every 1`.
const PARTIAL_EVERY: Duration = Duration::from_secs(1);
/// How late the store answers a put of the growing segment.
const PUT: Duration = Duration::from_millis(500);
/// What two cores that also run eight writers, a server and a store may add.
const SLACK: Duration = Duration::from_millis(300);

#[test]
fn with_the_spool_lost_too_the_store_lacks_the_last_moment_only() {
    let mut chance = Chance::new();
    let mut most = Duration::ZERO;
    for round in 0..rounds(2, 20) {
        // Just before a put is done, the archive is as old as it gets; and at any moment.
        let (loss, put) = lose_the_spool(&mut chance, round % 2 == 0);
        println!("round {round}: the last {loss:?} were lost; the slowest put took {put:?}");
        assert!(loss <= PARTIAL_EVERY + put + SLACK, "{loss:?}");
        most = most.max(loss);
    }
    println!("with --partial-every 1 at most {most:?} were lost");
}

/// How much a site loses whose store is slow, and the time of its slowest put.
fn lose_the_spool(chance: &mut Chance, at_worst: bool) -> (Duration, Duration) {
    let scratch = Scratch::new();
    let proxy = Proxy::start(Minio::plain().port());
    proxy.rule(Rule::new(Fault::Late(PUT)).method("PUT").path(".growing."));
    let bucket = Minio::plain().bucket("lost-spool");
    let env = s3_env(&proxy.endpoint(), &bucket.name());
    let archive = Archive::of_witness(&scratch, env, bucket);
    let setup = Setup {
        words: vec!["--partial-every", "1"],
        ..Setup::default()
    };
    // A segment lasts longer than the time between two puts.
    let pace = Pace {
        filler: 0,
        thinks: Duration::from_millis(10),
    };
    let mut site = Site::new(&scratch, &archive, scratch.dir("spool"), setup, pace);
    thread::sleep(chance.millis(1500..2500));
    if at_worst {
        let puts = || proxy.requests().into_iter().filter(is_growing_put).count();
        let before = puts();
        wait_for(PATIENCE, "a put", || puts() > before);
        thread::sleep(PUT * 9 / 10);
    }
    let acknowledged = site.lose_everything();
    fs::remove_dir_all(&site.spool).expect("the spool");
    let slowest = slowest_put(&proxy.requests());
    let lost = site.lost(&["--partial"]);
    let lost = lost.unwrap_or_else(|log| panic!("no recovery:\n{log}"));
    let last = acknowledged.iter().map(|row| row.at).max();
    let first = lost.iter().map(|row| row.at).min();
    println!("{} of {} rows lost", lost.len(), acknowledged.len());
    let loss = first.map_or(Duration::ZERO, |first| last.expect("rows") - first);
    (loss, slowest.expect("a put"))
}

fn is_growing_put(request: &Request) -> bool {
    request.method == "PUT" && request.path.contains(".growing.")
}

/// From the first question about the object to the end of its put.
fn slowest_put(requests: &[Request]) -> Option<Duration> {
    let time = |(index, put): (usize, &Request)| {
        let (_, segment) = put.path.rsplit_once('/')?;
        let segment = &segment[..24];
        let questions = requests[..index].iter().rev().take_while(|asked| {
            let of_it = asked.path.contains(segment) || asked.query.contains(segment);
            asked.method == "GET" && of_it
        });
        let first = questions.last().unwrap_or(put);
        Some(put.came - first.came + put.took?)
    };
    let puts = requests.iter().enumerate();
    puts.filter(|(_, request)| is_growing_put(request))
        .filter_map(time)
        .max()
}

#[test]
fn what_was_acknowledged_survives_power_loss() {
    if Ext4::is_possible() {
        let lost = lose_power(rounds(3, 20), Vec::new());
        lost.unwrap_or_else(|lost| panic!("{lost}"));
    }
}

/// fdatasync is a lie, but for a segment file in the making, so that WAL alone is lost.
const LIAR: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int fd) {
    char link[32], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name);
    int made = length > 4 && memcmp(name + length - 4, ".tmp", 4) == 0;
    return made ? syscall(SYS_fdatasync, fd) : 0;
}
"#;

/// The planted bug. The product knows nothing of it: its receiver believes that what it wrote is synced.
#[test]
fn a_receiver_that_acknowledges_before_the_sync_is_found_out() {
    if Ext4::is_possible() {
        let scratch = Scratch::new();
        let (source, liar) = (scratch.file("liar.c", LIAR), scratch.join("liar.so"));
        let mut compiler = Command::new("cc");
        run(compiler
            .args(["-shared", "-fPIC", "-o"])
            .args([&liar, &source]));
        give_to_postgres(&liar, 0o755);
        let environment = vec![("LD_PRELOAD".to_string(), liar.display().to_string())];
        let lost = lose_power(3, environment).expect_err("nobody noticed");
        println!("{lost}");
    }
}

/// In each round the power of the receiver's host fails and comes back: what of its file system had reached the disk is
/// its spool from then on. The error tells what was lost.
fn lose_power(rounds: usize, environment: Vec<(String, String)>) -> Result<(), String> {
    let scratch = Scratch::new();
    let archive = Archive::directory(&scratch, "archive");
    let mut disk = Ext4::make(&scratch);
    let spool = |disk: &Ext4| disk.path().join("spool");
    fs::create_dir(spool(&disk)).expect("a directory");
    give_to_postgres(&spool(&disk), 0o700);
    disk.sync();
    let setup = Setup {
        environment,
        ..Setup::default()
    };
    let mut site = Site::new(&scratch, &archive, spool(&disk), setup, FAST);
    let mut chance = Chance::new();
    for round in 0..rounds {
        thread::sleep(chance.millis(50..1000));
        site.stop_receiver();
        let after = disk.after_power_loss(&scratch);
        site.kill_receiver();
        disk = after;
        site.spool = spool(&disk);
        println!("round {round}: {:?} in the spool", names(&site.spool));
        let words = ["--spool", &site.spool.display().to_string()];
        let lost = site.lost(&words)?;
        if !lost.is_empty() {
            return Err(format!("{} acknowledged rows were lost", lost.len()));
        }
        site.start_receiver();
        site.load.wait_for_more(SOME);
    }
    site.lose_everything();
    Ok(())
}
