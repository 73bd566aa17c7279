//! Streams from a server made of a socket pair: what a real one does seldom, in every cut.

use super::*;
use crate::wire::connect::Route;
use crate::wire::script::{
    complete, data_row, error, fields, keepalive, message, row_description, wal,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const START: Lsn = Lsn(0x0300_0000);
const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A session that is logged in, and the server's end of its socket.
fn session(stop: &Stop) -> (Conn, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let wait = Wait {
        stop: stop.clone(),
        deadline: None,
    };
    let mut conn = Conn::new(Stream::over(ours), Route::nowhere(), wait);
    conn.logged_in(Some(Duration::from_secs(10)));
    (conn, theirs)
}

/// What START_REPLICATION gives when this is the answer.
fn start(answer: &[u8]) -> (Result<Replication>, UnixStream) {
    let (conn, mut server) = session(&Stop::new());
    server.write_all(answer).unwrap();
    (
        conn.start_replication(Some("s"), START, TimelineId(3)),
        server,
    )
}

fn streaming(answer: &[u8]) -> (WalStream, UnixStream) {
    match start(answer) {
        (Ok(Replication::Streaming(stream)), mut server) => {
            read_message(&mut server, b'Q');
            (stream, server)
        }
        (other, _) => panic!("it does not stream: {other:?}"),
    }
}

/// The next message that the server gets, which must be of this type.
fn read_message(server: &mut UnixStream, tag: u8) -> Vec<u8> {
    let mut header = [0; 5];
    server.read_exact(&mut header).unwrap();
    assert_eq!(header[0], tag, "{header:?}");
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    let mut body = vec![0; length as usize - 4];
    server.read_exact(&mut body).unwrap();
    body
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// The next arrival as text, with the WAL before it.
fn arrival(stream: &mut WalStream, deadline: Instant) -> (Vec<(u64, Vec<u8>)>, Result<Arrival>) {
    let mut pieces = Vec::new();
    let outcome = stream.next(deadline, &mut |lsn, bytes| {
        pieces.push((lsn.0, bytes.to_vec()));
        Ok(())
    });
    (pieces, outcome)
}

fn next_timeline_row(timeline: &str, switch: &str) -> Vec<u8> {
    [
        row_description(&["next_tli", "next_tli_startpos"]),
        data_row(&[Some(timeline), Some(switch)]),
    ]
    .concat()
}

#[test]
fn wal_keepalives_notices_and_the_end_in_any_cuts() {
    let notice = message(
        b'N',
        &fields(&[(b'V', "WARNING"), (b'C', "01000"), (b'M', "by the way")]),
    );
    let script = [
        wal(START.0, START.0 + 5, b"hello"),
        notice,
        message(b'S', b"application_name\0other\0"),
        wal(START.0 + 5, START.0 + 9, b"more"),
        keepalive(START.0 + 9, true),
        keepalive(START.0 + 9, false),
        wal(START.0 + 9, START.0 + 10, b"!"),
        message(b'c', b""),
    ]
    .concat();
    for cut in (1..40).chain([64, script.len()]) {
        let (mut stream, mut server) = streaming(COPY_BOTH);
        let (mut bytes, mut others) = (Vec::new(), Vec::new());
        let mut sent = script.chunks(cut);
        while others.last() != Some(&Arrival::EndOfTimeline) {
            if let Some(piece) = sent.next() {
                server.write_all(piece).unwrap();
            }
            let (pieces, arrival) = arrival(&mut stream, Instant::now());
            let arrival = arrival.unwrap();
            assert_eq!(pieces.is_empty(), arrival != Arrival::Wal, "{arrival:?}");
            for (lsn, piece) in pieces {
                assert_eq!(lsn, START.0 + bytes.len() as u64);
                bytes.extend(piece);
            }
            if !matches!(arrival, Arrival::Wal | Arrival::Quiet) {
                others.push(arrival);
            }
        }
        assert_eq!(bytes, b"hellomore!", "cut {cut}");
        let asked = |reply_requested| Arrival::Keepalive {
            server_end: Lsn(START.0 + 9),
            reply_requested,
        };
        assert_eq!(
            others,
            [asked(true), asked(false), Arrival::EndOfTimeline],
            "cut {cut}"
        );
        assert_eq!(stream.next_lsn(), Lsn(START.0 + 10));
        assert_eq!(stream.conn.parameter("application_name"), Some("other"));
        assert_eq!(stream.conn.take_notices()[0].message, "by the way");
    }
}

#[test]
fn one_read_is_one_round() {
    let script: Vec<u8> = (0..100).flat_map(|n| wal(START.0 + n, 0, b"x")).collect();
    let (mut stream, _server) = streaming(&[COPY_BOTH, &script].concat());
    let (pieces, outcome) = arrival(&mut stream, soon());
    assert_eq!((pieces.len(), outcome.unwrap()), (100, Arrival::Wal));
    let (pieces, outcome) = arrival(&mut stream, Instant::now());
    assert_eq!((pieces.len(), outcome.unwrap()), (0, Arrival::Quiet));
}

#[test]
fn a_timeline_that_ended_where_we_start_is_told_without_a_copy() {
    let answer = [
        next_timeline_row("4", "0/3000000"),
        complete("START_STREAMING"),
        READY.to_vec(),
    ]
    .concat();
    let (outcome, mut server) = start(&answer);
    let query = read_message(&mut server, b'Q');
    assert_eq!(
        query,
        b"START_REPLICATION SLOT \"s\" PHYSICAL 0/3000000 TIMELINE 3\0"
    );
    let Replication::TimelineEnded { conn, next, switch } = outcome.unwrap() else {
        panic!("there is no copy");
    };
    assert_eq!((next, switch), (TimelineId(4), START));
    // The session serves on.
    server.write_all(COPY_BOTH).unwrap();
    let again = conn.start_replication(None, switch, next);
    assert!(matches!(again, Ok(Replication::Streaming(_))));
    for (timeline, switch) in [
        ("3", "0/3000000"),
        ("x", "0/3000000"),
        ("4", "0/3000001"),
        ("4", ""),
    ] {
        let answer = [
            next_timeline_row(timeline, switch),
            complete("START_STREAMING"),
            READY.to_vec(),
        ];
        let error = start(&answer.concat()).0.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{timeline} {switch}");
    }
    let nothing = [complete("START_STREAMING"), READY.to_vec()].concat();
    assert_eq!(start(&nothing).0.unwrap_err().kind(), Kind::Protocol);
}

#[test]
fn refusals_have_kind_and_sqlstate_before_the_copy_and_in_it() {
    let cases = [
        ("55006", Kind::Locked, Kind::Locked),
        ("42704", Kind::Missing, Kind::Missing),
        ("58P01", Kind::Hole, Kind::Hole),
        ("55000", Kind::Protocol, Kind::Protocol),
        ("XX000", Kind::Mismatch, Kind::Protocol),
        ("57P01", Kind::Transient, Kind::Transient),
    ];
    for (code, before, within) in cases {
        let refusal = [error(code, "no"), READY.to_vec()].concat();
        let early = start(&refusal).0.unwrap_err();
        assert_eq!((early.kind(), early.sqlstate()), (before, Some(code)));
        let wal = wal(START.0, 0, b"abc");
        let (mut stream, _server) = streaming(&[COPY_BOTH, &wal[..], &refusal[..]].concat());
        let (pieces, outcome) = arrival(&mut stream, soon());
        assert_eq!(pieces, [(START.0, b"abc".to_vec())]);
        let late = outcome.unwrap_err();
        assert_eq!((late.kind(), late.sqlstate()), (within, Some(code)));
    }
}

#[test]
fn the_end_of_a_timeline_names_the_next_and_gives_the_session_back() {
    let script = [
        COPY_BOTH,
        &wal(START.0, 0, b"abcdef")[..],
        &message(b'c', b"")[..],
    ];
    let (mut stream, mut server) = streaming(&script.concat());
    let sender = stream.sender();
    assert_eq!(arrival(&mut stream, soon()).1.unwrap(), Arrival::Wal);
    assert_eq!(
        arrival(&mut stream, soon()).1.unwrap(),
        Arrival::EndOfTimeline
    );
    let answer = [
        next_timeline_row("7", "0/3000004"),
        complete("SELECT"),
        complete("START_STREAMING"),
        message(b'S', b"application_name\0other\0"),
        READY.to_vec(),
    ];
    server.write_all(&answer.concat()).unwrap();
    let (conn, next) = stream.end().unwrap();
    read_message(&mut server, b'c');
    // Before what we have: the rest was of a record that nobody completed.
    assert_eq!(next, Some((TimelineId(7), Lsn(0x0300_0004))));
    let late = sender.send(Lsn(1), None, false).unwrap_err();
    assert_eq!(late.kind(), Kind::Transient);
    server.write_all(COPY_BOTH).unwrap();
    let again = conn.start_replication(None, START, TimelineId(7));
    assert!(matches!(again, Ok(Replication::Streaming(_))));
}

#[test]
fn a_copy_that_we_end_names_no_timeline() {
    let (stream, mut server) = streaming(COPY_BOTH);
    let answer = [
        wal(START.0, 0, b"under way"),
        message(b'c', b""),
        complete("COPY 0"),
        complete("START_STREAMING"),
        READY.to_vec(),
    ];
    server.write_all(&answer.concat()).unwrap();
    let (_conn, next) = stream.end().unwrap();
    assert_eq!(next, None);
}

#[test]
fn a_shutdown_and_a_cut() {
    let script = [
        COPY_BOTH,
        &wal(START.0, 0, b"abc")[..],
        &complete("COPY 0")[..],
    ];
    let (mut stream, server) = streaming(&script.concat());
    assert_eq!(arrival(&mut stream, soon()).1.unwrap(), Arrival::Wal);
    assert_eq!(
        arrival(&mut stream, soon()).1.unwrap(),
        Arrival::ServerShutdown
    );
    drop(server);
    let error = arrival(&mut stream, soon()).1.unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");

    // In mid message.
    let message = wal(START.0, 0, b"abc");
    let (mut stream, server) = streaming(&[COPY_BOTH, &message[..20]].concat());
    assert_eq!(
        arrival(&mut stream, Instant::now()).1.unwrap(),
        Arrival::Quiet
    );
    drop(server);
    let error = arrival(&mut stream, soon()).1.unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
}

#[test]
fn gaps_and_strange_messages_end_the_stream() {
    for bad in [wal(START.0 + 1, 0, b"x"), message(b'H', b"\0\0\0")] {
        let (mut stream, _server) = streaming(&[COPY_BOTH, &bad[..]].concat());
        let (pieces, outcome) = arrival(&mut stream, soon());
        assert!(pieces.is_empty());
        assert_eq!(outcome.unwrap_err().kind(), Kind::Protocol);
    }
}

#[test]
fn an_error_of_the_caller_is_his_and_the_rest_is_there_still() {
    let script = [wal(START.0, 0, b"abc"), wal(START.0 + 3, 0, b"d")].concat();
    let (mut stream, _server) = streaming(&[COPY_BOTH, &script[..]].concat());
    let mut full = |_: Lsn, _: &[u8]| Err(Error::new(Kind::Full, "no room"));
    let error = stream.next(soon(), &mut full).unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert_eq!(stream.next_lsn(), Lsn(START.0 + 3));
    let (pieces, _) = arrival(&mut stream, soon());
    assert_eq!(pieces, [(START.0 + 3, b"d".to_vec())]);
}

#[test]
fn a_stop_wakes_the_reader_and_statuses_still_go_out() {
    let stop = Stop::new();
    let (conn, mut server) = session(&stop);
    server.write_all(COPY_BOTH).unwrap();
    let outcome = conn.start_replication(None, START, TimelineId(1)).unwrap();
    let Replication::Streaming(mut stream) = outcome else {
        panic!("it streams");
    };
    read_message(&mut server, b'Q');
    let began = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| stop.set());
        arrival(&mut stream, began + Duration::from_secs(60)).1
    });
    assert_eq!(error.unwrap_err().kind(), Kind::Interrupted);
    assert!(began.elapsed() < Duration::from_secs(5));
    stream.sender().send(Lsn(9), Some(Lsn(8)), false).unwrap();
    drop(stream);
    let status = read_message(&mut server, b'd');
    assert_eq!((status[8], status[16]), (9, 8));
    read_message(&mut server, b'X');
}

#[test]
fn what_was_reported_is_never_taken_back() {
    let (stream, mut server) = streaming(COPY_BOTH);
    let sender = stream.sender();
    let cases = [
        ((5, None), (5, 0)),
        ((7, Some(6)), (7, 6)),
        ((6, Some(3)), (7, 6)),
        ((9, None), (9, 6)),
        ((8, Some(8)), (9, 8)),
    ];
    for ((write, flush), expected) in cases {
        sender.send(Lsn(write), flush.map(Lsn), true).unwrap();
        let status = read_message(&mut server, b'd');
        let number = |at: usize| u64::from_be_bytes(status[at..at + 8].try_into().unwrap());
        assert_eq!((number(1), number(9)), expected);
        assert_eq!((number(17), status[33]), (0, 1));
    }
}

#[test]
fn a_status_that_cannot_go_out_whole_ends_the_stream_for_all() {
    let stop = Stop::new();
    let (conn, mut server) = session(&stop);
    server.write_all(COPY_BOTH).unwrap();
    let outcome = conn.start_replication(None, START, TimelineId(1)).unwrap();
    let Replication::Streaming(mut stream) = outcome else {
        panic!("it streams");
    };
    // Nobody reads: the socket fills up, and the stop spares us the wait.
    stop.set();
    let sender = stream.sender();
    let mut sent = (0..1_000_000).map(|lsn| sender.send(Lsn(lsn), None, false));
    let error = sent.find_map(|outcome| outcome.err()).expect("it is full");
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(sender.send(Lsn(1), None, false).is_err());
    assert!(arrival(&mut stream, soon()).1.is_err());
    let mut rest = Vec::new();
    assert!(server.read_to_end(&mut rest).is_ok(), "the end was told");
}

#[test]
fn many_threads_send_whole_messages_while_the_reader_waits() {
    let (mut stream, mut server) = streaming(COPY_BOTH);
    let sender = stream.sender();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let sender = sender.clone();
            scope.spawn(move || {
                for lsn in 0..500 {
                    sender.send(Lsn(lsn), Some(Lsn(lsn)), false).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..2000 {
                assert_eq!(read_message(&mut server, b'd').len(), 34);
            }
            server.write_all(&keepalive(1, false)).unwrap();
        });
        let arrived = arrival(&mut stream, soon()).1.unwrap();
        assert!(matches!(arrived, Arrival::Keepalive { .. }));
    });
}
