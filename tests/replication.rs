//! Streams of WAL from a real server: the bytes are those of its own files, ends of timelines and of servers are told
//! apart, slots are what they are called.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use seawall::error::{Error, Kind, Result};
use seawall::pg::control::ControlFile;
use seawall::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineId};
use seawall::wire::{Arrival, Conn, Replication, StatusSender, WalStream};
use seawall::work::stop::Stop;

use crate::support::certs::Ca;
use crate::support::cluster::{self, Cluster};
use crate::support::{Scratch, wait_for};
use crate::wire::{at, info, options, over_socket, replication, standby_of};

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: TimelineId = TimelineId(1);
const SECOND: TimelineId = TimelineId(2);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("1 MiB")
}

fn segment_start(lsn: Lsn) -> Lsn {
    SegmentNo::holding(lsn, size()).start(size())
}

fn lsn(cluster: &Cluster, function: &str) -> Lsn {
    let text = cluster.value(&format!("select {function}()"));
    text.parse().unwrap_or(Lsn::INVALID)
}

fn streaming(outcome: Result<Replication>) -> WalStream {
    match outcome {
        Ok(Replication::Streaming(stream)) => stream,
        other => panic!("it does not stream: {other:?}"),
    }
}

/// WAL as it came.
struct Received {
    start: Lsn,
    bytes: Vec<u8>,
}

impl Received {
    fn new(stream: &WalStream) -> Received {
        Received {
            start: stream.next_lsn(),
            bytes: Vec::new(),
        }
    }

    fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// The next arrival; keepalives that ask are answered as if all were durable.
    fn next(&mut self, stream: &mut WalStream, sender: &StatusSender) -> Result<Arrival> {
        let arrival = stream.next(Instant::now() + PATIENCE, &mut |lsn, bytes| {
            assert_eq!(lsn.0, self.start.0 + self.bytes.len() as u64);
            self.bytes.extend_from_slice(bytes);
            Ok(())
        })?;
        if matches!(arrival, Arrival::Keepalive { reply_requested, .. } if reply_requested) {
            sender.send(self.end(), Some(self.end()), false)?;
        }
        Ok(arrival)
    }

    /// Receives until all before `lsn` is there.
    fn up_to(&mut self, stream: &mut WalStream, lsn: Lsn) {
        let sender = stream.sender();
        while self.end() < lsn {
            let arrival = self.next(stream, &sender).expect("WAL");
            let expected = matches!(arrival, Arrival::Wal | Arrival::Keepalive { .. });
            assert!(expected, "{arrival:?} at {}, not yet at {lsn}", self.end());
        }
    }

    /// Receives until something else than WAL and keepalives comes.
    fn until_it_ends(&mut self, stream: &mut WalStream) -> Result<Arrival> {
        let sender = stream.sender();
        loop {
            match self.next(stream, &sender)? {
                Arrival::Wal | Arrival::Keepalive { .. } => {}
                other => return Ok(other),
            }
        }
    }

    /// Up to `end` these are the bytes of the server's files.
    fn compare(&self, cluster: &Cluster, timeline: TimelineId, end: Lsn) {
        assert!(self.start < end && end <= self.end());
        let mut at = self.start;
        while at < end {
            let segment = Segment::holding(timeline, at, size());
            let path = cluster.data().join("pg_wal").join(segment.to_string());
            let file = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let next = Lsn(segment_start(at).0 + size().bytes()).min(end);
            let offset = (at.0 % size().bytes()) as usize;
            let (from, length) = ((at.0 - self.start.0) as usize, (next.0 - at.0) as usize);
            assert!(
                self.bytes[from..from + length] == file[offset..offset + length],
                "{segment} differs between {at} and {next}"
            );
            at = next;
        }
    }
}

/// The error with which a stream from there ends, be it before or in the copy.
fn refusal(conn: Conn, slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Error {
    match conn.start_replication(slot, start, timeline) {
        Err(error) => error,
        Ok(Replication::Streaming(mut stream)) => {
            let mut received = Received::new(&stream);
            received.until_it_ends(&mut stream).expect_err("a refusal")
        }
        Ok(other) => panic!("no refusal: {other:?}"),
    }
}

/// A session that has asked who the server is, as servers before 15 want it.
fn session(cluster: &Cluster) -> Conn {
    let mut conn = replication(cluster);
    conn.identify_system().expect("an identity");
    conn
}

fn ordinary(cluster: &Cluster) -> Conn {
    let info = info(&over_socket(cluster));
    Conn::connect(&info, &options(false), &Stop::new()).expect("a session")
}

const WRITE: &str =
    "insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 500) n";

#[test]
fn matrix_a_stream_is_the_servers_files_byte_by_byte() {
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "origin").start();
    cluster.execute("create table t (n int, text text)");
    // A name that is a word of the grammar: it must be quoted.
    let slot = "physical";
    let mut conn = session(&cluster);
    assert_eq!(conn.wal_segment_size().expect("a size"), size());
    assert_eq!(conn.data_directory_mode().expect("a mode"), 0o700);
    conn.create_physical_slot(slot, false, true)
        .expect("a slot");
    let mut sql = ordinary(&cluster);
    let kept = sql.slot_info(slot).expect("an answer").expect("a slot");
    let start = segment_start(kept.restart_lsn.expect("reserved"));
    cluster.execute(WRITE);
    let mut stream = streaming(conn.start_replication(Some(slot), start, FIRST));
    let mut received = Received::new(&stream);
    let end = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..10 {
                cluster.execute(WRITE);
                if round % 3 == 0 {
                    cluster.switch_wal();
                }
            }
            lsn(&cluster, "pg_current_wal_flush_lsn")
        });
        while !writer.is_finished() {
            let deadline = Instant::now() + Duration::from_millis(50);
            let mut take = |_: Lsn, bytes: &[u8]| {
                received.bytes.extend_from_slice(bytes);
                Ok(())
            };
            stream.next(deadline, &mut take).expect("WAL");
        }
        writer.join().expect("a writer")
    });
    received.up_to(&mut stream, end);
    assert!(received.bytes.len() > 3 << 20);
    received.compare(&cluster, FIRST, end);

    // What we report is what the server knows, and where its slot stands.
    let flushed = Lsn(end.0 - 1000);
    stream
        .sender()
        .send(end, Some(flushed), false)
        .expect("a status");
    let shown = "select concat_ws(' ', write_lsn, flush_lsn, replay_lsn) from pg_stat_replication";
    wait_for(PATIENCE, "the status on the server", || {
        cluster.value(shown) == format!("{end} {flushed}")
    });
    let info = sql.slot_info(slot).expect("an answer").expect("a slot");
    assert_eq!(info.restart_lsn, Some(flushed));
    assert!(
        info.physical && info.active_pid.is_some() && !info.is_lost(),
        "{info:?}"
    );

    // It is ours while we stream, and a stop ends that at once.
    let busy = refusal(session(&cluster), Some(slot), start, FIRST);
    assert_eq!(
        (busy.kind(), busy.sqlstate()),
        (Kind::Locked, Some("55006"))
    );
    let busy = session(&cluster).drop_slot(slot).expect_err("busy");
    assert_eq!(busy.kind(), Kind::Locked, "{busy}");
    drop(stream);
    wait_for(PATIENCE, "the end of the sender", || {
        let info = sql.slot_info(slot).expect("an answer").expect("a slot");
        info.active_pid.is_none()
    });
    assert!(
        !cluster.log().contains("unexpected EOF"),
        "{}",
        cluster.log()
    );
    session(&cluster).drop_slot(slot).expect("dropped");
}

#[test]
fn matrix_slots_are_made_read_and_dropped() {
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "origin").start();
    let (mut conn, mut sql) = (session(&cluster), ordinary(&cluster));
    let reads = conn.server_version().reads_slots();
    let is_absent = |conn: &mut Conn, sql: &mut Conn, name: &str| {
        assert_eq!(sql.slot_info(name).expect("an answer"), None);
        if reads {
            assert_eq!(conn.read_slot(name).expect("an answer"), None);
        }
        let error = conn.drop_slot(name).expect_err("no such slot");
        assert_eq!(
            (error.kind(), error.sqlstate()),
            (Kind::Missing, Some("42704"))
        );
    };
    is_absent(&mut conn, &mut sql, "a");
    is_absent(&mut conn, &mut sql, "it's not there");
    for reserve in [false, true] {
        conn.create_physical_slot("a", false, reserve)
            .expect("a slot");
        let error = conn
            .create_physical_slot("a", false, reserve)
            .expect_err("twice");
        assert_eq!(
            (error.kind(), error.sqlstate()),
            (Kind::Exists, Some("42710"))
        );
        let info = sql.slot_info("a").expect("an answer").expect("a slot");
        assert!(info.physical && info.active_pid.is_none() && !info.is_lost());
        assert_eq!(info.restart_lsn.is_some(), reserve);
        assert_eq!(info.wal_status.as_deref(), reserve.then_some("reserved"));
        if reads {
            let state = conn.read_slot("a").expect("an answer").expect("a slot");
            assert_eq!(state.restart_lsn, info.restart_lsn);
            assert_eq!(state.restart_timeline, reserve.then_some(FIRST));
        }
        conn.drop_slot("a").expect("dropped");
        is_absent(&mut conn, &mut sql, "a");
    }
    let error = conn
        .create_physical_slot("No", false, true)
        .expect_err("a bad name");
    assert_eq!(
        (error.kind(), error.sqlstate()),
        (Kind::Protocol, Some("42602"))
    );
    assert!(conn.create_physical_slot("a\0b", false, true).is_err());
    // Quotes do not lead out of a name.
    for name in ["a\"b", "a\" PHYSICAL; --", "\""] {
        let error = conn
            .create_physical_slot(name, false, true)
            .expect_err("no name");
        assert_eq!(error.sqlstate(), Some("42601"), "{name}: {error}");
        assert_eq!(sql.slot_info(name).expect("an answer"), None);
    }
    // A temporary one goes with its session.
    let mut other = session(&cluster);
    other
        .create_physical_slot("passing", true, true)
        .expect("a slot");
    assert!(sql.slot_info("passing").expect("an answer").is_some());
    drop(other);
    wait_for(PATIENCE, "the end of the temporary slot", || {
        sql.slot_info("passing").expect("an answer").is_none()
    });
    let missing = refusal(conn, Some("a"), Lsn(1 << 20), FIRST);
    assert_eq!(missing.kind(), Kind::Missing, "{missing}");
}

#[test]
fn matrix_a_lost_slot_is_named_and_its_wal_is_a_hole() {
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "origin")
        .config("max_slot_wal_keep_size", "1MB")
        .config("min_wal_size", "2MB")
        .config("max_wal_size", "2MB")
        .start();
    let mut conn = session(&cluster);
    conn.create_physical_slot("slow", false, true)
        .expect("a slot");
    let mut sql = ordinary(&cluster);
    let info = sql.slot_info("slow").expect("an answer").expect("a slot");
    let start = segment_start(info.restart_lsn.expect("reserved"));
    for _ in 0..8 {
        cluster.switch_wal();
    }
    wait_for(PATIENCE, "the loss of the slot", || {
        cluster.execute("checkpoint");
        let info = sql.slot_info("slow").expect("an answer").expect("a slot");
        info.is_lost()
    });
    let first = Segment::holding(FIRST, start, size()).to_string();
    assert!(!cluster.data().join("pg_wal").join(first).exists());
    let gone = refusal(session(&cluster), None, start, FIRST);
    assert_eq!((gone.kind(), gone.sqlstate()), (Kind::Hole, Some("58P01")));
    let lost = refusal(session(&cluster), Some("slow"), start, FIRST);
    assert!(
        matches!(lost.sqlstate(), Some("58P01" | "55000")),
        "{:?} {lost}",
        lost.sqlstate()
    );
}

/// A server for a standby; both keep the WAL that the tests look at.
fn primary(scratch: &Scratch) -> Cluster {
    Cluster::builder(scratch, "primary")
        .config("wal_keep_size", "64MB")
        .start()
}

#[test]
fn matrix_a_promotion_in_mid_segment_ends_the_stream() {
    let scratch = Scratch::new();
    let mut primary = primary(&scratch);
    primary.execute("create table t (n int, text text)");
    let standby = standby_of(&scratch, &primary, "standby");
    primary.switch_wal();
    primary.execute(WRITE);
    let written = lsn(&primary, "pg_current_wal_flush_lsn");
    wait_for(PATIENCE, "the standby", || {
        lsn(&standby, "pg_last_wal_replay_lsn") >= written
    });
    primary.stop(cluster::Stop::Immediate);
    let start = segment_start(written);
    let mut stream = streaming(session(&standby).start_replication(None, start, FIRST));
    let mut received = Received::new(&stream);
    received.up_to(&mut stream, written);
    standby.promote();
    let end = received.until_it_ends(&mut stream).expect("an end");
    assert_eq!(end, Arrival::EndOfTimeline);
    let (mut conn, next) = stream.end().expect("a session");
    let (timeline, switch) = next.expect("a next timeline");
    assert_eq!(timeline, SECOND);
    assert!(written <= switch && switch <= received.end());
    assert!(!switch.0.is_multiple_of(size().bytes()));
    received.compare(&standby, FIRST, switch);

    let (name, history) = conn.timeline_history_raw(SECOND).expect("a history");
    assert_eq!(name, "00000002.history");
    let file = fs::read(standby.data().join("pg_wal").join(&name)).expect("a history");
    assert!(history == file && String::from_utf8_lossy(&file).contains(&switch.to_string()));
    let none = conn
        .timeline_history_raw(TimelineId(9))
        .expect_err("no such timeline");
    assert_eq!(none.sqlstate(), Some("58P01"), "{none}");

    // The same session goes on with the new timeline, from the start of the segment that both have.
    let mut stream = streaming(conn.start_replication(None, start, SECOND));
    let mut received = Received::new(&stream);
    standby.execute(WRITE);
    let end = lsn(&standby, "pg_current_wal_flush_lsn");
    received.up_to(&mut stream, end);
    received.compare(&standby, SECOND, end);

    // Past the switch the old timeline is not in this history, nor is a timeline that never was.
    for (start, timeline) in [(end, FIRST), (start, TimelineId(9))] {
        let error = refusal(session(&standby), None, start, timeline);
        assert_eq!(
            (error.kind(), error.sqlstate()),
            (Kind::Mismatch, Some("XX000")),
            "{error}"
        );
    }
    let ahead = refusal(session(&standby), None, Lsn(end.0 + (64 << 20)), SECOND);
    assert_eq!(
        (ahead.kind(), ahead.sqlstate()),
        (Kind::Protocol, Some("XX000")),
        "{ahead}"
    );
}

/// A standby that has replayed exactly to the start of a segment when its primary goes. A record that the primary
/// writes by itself in the meantime means another try.
fn standby_at_a_boundary(primary: &mut Cluster, standby: &Cluster) -> Lsn {
    for _ in 0..10 {
        primary.switch_wal();
        // Nothing but the header of the next segment's first page: the position is given without it.
        let insert = lsn(primary, "pg_current_wal_insert_lsn");
        let boundary = segment_start(insert);
        wait_for(PATIENCE, "the standby", || {
            lsn(standby, "pg_last_wal_replay_lsn") >= boundary
        });
        primary.stop(cluster::Stop::Immediate);
        wait_for(PATIENCE, "the end of what the standby had", || {
            let received = lsn(standby, "pg_last_wal_receive_lsn");
            lsn(standby, "pg_last_wal_replay_lsn") >= received
        });
        if lsn(standby, "pg_last_wal_replay_lsn") == boundary {
            return boundary;
        }
        primary.start();
    }
    panic!("the primary always wrote something");
}

#[test]
fn matrix_a_promotion_on_a_segment_boundary_ends_the_stream() {
    let scratch = Scratch::new();
    let mut primary = primary(&scratch);
    let standby = standby_of(&scratch, &primary, "standby");
    let before = segment_start(lsn(&primary, "pg_current_wal_insert_lsn"));
    let boundary = standby_at_a_boundary(&mut primary, &standby);
    let start = Lsn(boundary.0 - size().bytes()).max(before);
    let mut stream = streaming(session(&standby).start_replication(None, start, FIRST));
    let mut received = Received::new(&stream);
    received.up_to(&mut stream, boundary);
    standby.promote();
    let end = received.until_it_ends(&mut stream).expect("an end");
    assert_eq!((end, received.end()), (Arrival::EndOfTimeline, boundary));
    received.compare(&standby, FIRST, boundary);
    let (conn, next) = stream.end().expect("a session");
    assert_eq!(next, Some((SECOND, boundary)));

    // Whoever asks for the rest of the old timeline now gets no copy at all.
    let (conn, next, switch) = match conn.start_replication(None, boundary, FIRST) {
        Ok(Replication::TimelineEnded { conn, next, switch }) => (conn, next, switch),
        other => panic!("there is nothing to stream: {other:?}"),
    };
    assert_eq!((next, switch), (SECOND, boundary));
    let mut stream = streaming(conn.start_replication(None, switch, next));
    let mut received = Received::new(&stream);
    let end = lsn(&standby, "pg_current_wal_flush_lsn");
    received.up_to(&mut stream, end);
    received.compare(&standby, SECOND, end);
}

#[test]
fn matrix_a_shutdown_is_told_after_the_last_record() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(&scratch, "origin").start();
    cluster.execute("create table t (n int, text text)");
    cluster.execute(WRITE);
    let mut conn = session(&cluster);
    conn.create_physical_slot("s", false, true).expect("a slot");
    let start = segment_start(lsn(&cluster, "pg_current_wal_flush_lsn"));
    let mut stream = streaming(conn.start_replication(Some("s"), start, FIRST));
    let mut received = Received::new(&stream);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| received.until_it_ends(&mut stream));
        cluster.stop(cluster::Stop::Fast);
        let end = reader.join().expect("the reader").expect("an end");
        assert_eq!(end, Arrival::ServerShutdown);
    });
    assert!(began.elapsed() < Duration::from_secs(10));
    received.compare(&cluster, FIRST, received.end());
    // The shutdown checkpoint is the last record, and we have it.
    let control = fs::read(cluster.data().join("global/pg_control")).expect("pg_control");
    let control = ControlFile::parse(&control).expect("pg_control");
    assert_eq!(received.end(), control.checkpoint_end());
    let gone = received
        .until_it_ends(&mut stream)
        .expect_err("nobody there");
    assert_eq!(gone.kind(), Kind::Transient, "{gone}");
}

#[test]
fn matrix_reports_go_out_under_tls_while_the_reader_waits() {
    let scratch = Scratch::new();
    let ca = Ca::new("authority of the test");
    let cluster = Cluster::builder(&scratch, "origin")
        .hba(
            "local all postgres trust\n\
             hostssl replication receiver 127.0.0.1/32 scram-sha-256\n",
        )
        .tls(ca.server(&["localhost"]), ca.pem())
        .start();
    cluster.execute(
        "set password_encryption = 'scram-sha-256'; \
         create role receiver login replication password 'secret'; \
         create table t (n int, text text)",
    );
    let root = scratch.file("root.crt", ca.pem());
    let place = at(
        &cluster,
        "localhost",
        &format!(
            "user=receiver password=secret sslmode=verify-full channel_binding=require sslrootcert={}",
            root.display()
        ),
    );
    let stop = Stop::new();
    let mut conn = Conn::connect(&info(&place), &options(true), &stop).expect("a session");
    assert!(conn.is_encrypted());
    let identity = conn.identify_system().expect("an identity");
    let start = segment_start(identity.flush);
    let mut stream = streaming(conn.start_replication(None, start, identity.timeline));
    let sender = stream.sender();
    let (chunks, arrived) = mpsc::channel::<Lsn>();
    std::thread::scope(|scope| {
        // The writer: reports what came, at once. The reader has a deadline that no commit can wait for.
        let writer = scope.spawn(move || {
            for end in arrived {
                sender.send(end, Some(end), false).expect("a status");
            }
        });
        let reader = scope.spawn(|| {
            let mut received = Received::new(&stream);
            let chunks = chunks;
            loop {
                let deadline = Instant::now() + Duration::from_secs(600);
                let arrival = stream.next(deadline, &mut |_, bytes| {
                    received.bytes.extend_from_slice(bytes);
                    Ok(())
                });
                match arrival {
                    Ok(Arrival::Wal | Arrival::Keepalive { .. }) => {
                        chunks.send(received.end()).expect("a writer");
                    }
                    other => return (received, other),
                }
            }
        });
        cluster.configure("synchronous_standby_names", "\"seawall-test\"");
        cluster.reload();
        let state = "select sync_state from pg_stat_replication";
        wait_for(PATIENCE, "a synchronous standby", || {
            cluster.value(state) == "sync"
        });
        let mut client = cluster.client();
        let began = Instant::now();
        for n in 0..200 {
            client
                .batch_execute(&format!("insert into t values ({n}, 'x')"))
                .expect("a commit");
        }
        client.batch_execute(WRITE).expect("a large commit");
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        let end = lsn(&cluster, "pg_current_wal_flush_lsn");
        // Nothing is left to do: the stop finds the reader asleep.
        let stopped = Instant::now();
        stop.set();
        let (received, outcome) = reader.join().expect("the reader");
        assert!(stopped.elapsed() < Duration::from_secs(2));
        let error = outcome.expect_err("a stop");
        assert_eq!(error.kind(), Kind::Interrupted, "{error}");
        writer.join().expect("the writer");
        received.compare(&cluster, FIRST, end.min(received.end()));
    });
    // Our own question is answered too, once the stop is no longer in the way: a new session.
    drop(stream);
    let mut conn = Conn::connect(&info(&place), &options(true), &Stop::new()).expect("a session");
    let identity = conn.identify_system().expect("an identity");
    let mut stream = streaming(conn.start_replication(None, identity.flush, FIRST));
    stream
        .sender()
        .send(identity.flush, None, true)
        .expect("a status");
    let mut received = Received::new(&stream);
    let sender = stream.sender();
    let began = Instant::now();
    while !matches!(
        received.next(&mut stream, &sender).expect("an answer"),
        Arrival::Keepalive { .. }
    ) {}
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_sender_that_is_ended_is_told_by_its_sqlstate() {
    let scratch = Scratch::new();
    let cluster = Cluster::builder(&scratch, "origin").start();
    let mut conn = session(&cluster);
    let identity = conn.identify_system().expect("an identity");
    let start = segment_start(identity.flush);
    let mut stream = streaming(conn.start_replication(None, start, FIRST));
    let mut received = Received::new(&stream);
    received.up_to(&mut stream, identity.flush);
    cluster.execute("select pg_terminate_backend(pid) from pg_stat_replication");
    let error = received.until_it_ends(&mut stream).expect_err("an end");
    assert_eq!(
        (error.kind(), error.sqlstate()),
        (Kind::Transient, Some("57P01"))
    );
}
