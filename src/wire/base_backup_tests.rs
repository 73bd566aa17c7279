//! The dialogue of BASE_BACKUP, by synthetic streams of both forms.

use super::*;
use crate::wire::script::{complete, data_row, error, message, row_description};

/// Runs a whole dialogue; gives the events as text, and how it ended.
fn run(tagged: bool, manifest: bool, stream: &[Vec<u8>]) -> (Vec<String>, Result<()>) {
    let mut machine = Machine::new(tagged, manifest);
    let mut seen = Vec::new();
    for bytes in stream {
        let (tag, body) = (bytes[0], &bytes[5..]);
        if machine.phase < Phase::Archives {
            if let Err(failure) = parse(tag, body).and_then(|m| machine.before_copies(tag, m)) {
                return (seen, Err(failure));
            }
            continue;
        }
        let shown = |from: usize| String::from_utf8_lossy(&body[from..]).into_owned();
        match machine.step(tag, body) {
            Ok(Step::Skip) => {}
            Ok(Step::Data(from)) => seen.push(format!("data {}", shown(from))),
            Ok(Step::ManifestData(from)) => seen.push(format!("manifest {}", shown(from))),
            Ok(step) => seen.push(format!("{step:?}")),
            Err(failure) => return (seen, Err(failure)),
        }
    }
    (seen, Ok(()))
}

fn position_result(lsn: &str) -> Vec<Vec<u8>> {
    vec![
        row_description(&["recptr", "tli"]),
        data_row(&[Some(lsn), Some("1")]),
        complete("SELECT"),
    ]
}

fn header() -> Vec<Vec<u8>> {
    let mut list = position_result("0/2000028");
    list.extend([
        row_description(&["spcoid", "spclocation", "size"]),
        data_row(&[Some("16384"), Some("/ts"), Some("10")]),
        data_row(&[None, None, Some("30000")]),
        complete("SELECT"),
    ]);
    list
}

fn copy_out() -> Vec<u8> {
    message(b'H', &[0, 0, 0])
}

fn copy(body: &[u8]) -> Vec<u8> {
    message(b'd', body)
}

fn footer() -> Vec<Vec<u8>> {
    let mut list = position_result("0/2000100");
    list.extend([complete("BASE_BACKUP"), message(b'Z', b"I")]);
    list
}

fn since_15() -> Vec<Vec<u8>> {
    let mut list = header();
    list.extend([
        copy_out(),
        copy(b"n16384.tar\0/ts\0"),
        copy(b"dAB"),
        copy(b"p\0\0\0\0\0\0\x01\0"),
        copy(b"nbase.tar\0\0"),
        copy(b"dCD"),
        copy(b"d"),
        copy(b"m"),
        copy(b"d{}"),
        message(b'c', b""),
    ]);
    list.extend(footer());
    list
}

fn before_15() -> Vec<Vec<u8>> {
    let mut list = header();
    for data in ["AB", "CD", "{}"] {
        list.extend([copy_out(), copy(data.as_bytes()), message(b'c', b"")]);
    }
    list.extend(footer());
    list
}

const END: &str = "End { stop: (Lsn(33554688), TimelineId(1)), findings: false }";
const END_WITH_FINDINGS: &str = "End { stop: (Lsn(33554688), TimelineId(1)), findings: true }";

#[test]
fn both_forms_give_the_same_events() {
    let (events, outcome) = run(true, true, &since_15());
    outcome.unwrap();
    let new = [
        "Archive(Some(16384))",
        "data AB",
        "Progress(256)",
        "Archive(None)",
        "data CD",
        "data ",
        "Manifest",
        "manifest {}",
        END,
    ];
    assert_eq!(events, new);
    let (events, outcome) = run(false, true, &before_15());
    outcome.unwrap();
    let old = [
        "Archive(Some(16384))",
        "data AB",
        "TarEnd",
        "Archive(None)",
        "data CD",
        "TarEnd",
        "Manifest",
        "manifest {}",
        END,
    ];
    assert_eq!(events, old);
}

#[test]
fn an_end_needs_all_of_the_stream() {
    for (tagged, stream) in [(true, since_15()), (false, before_15())] {
        for missing in 0..stream.len() {
            let mut stream = stream.clone();
            let gone = stream.remove(missing);
            let (events, _) = run(tagged, true, &stream);
            let ended = events.last().is_some_and(|last| last.starts_with("End"));
            // Without these a backup is still a backup: data and progress are not counted, and the last
            // CommandComplete is missed only if the one of the stop position is there.
            let harmless = gone[0] == b'd' && !matches!(gone[5], b'n' | b'm');
            assert_eq!(
                ended, harmless,
                "tagged {tagged}, without message {missing} {:?}",
                gone[0] as char
            );
        }
    }
}

#[test]
fn errors_by_place() {
    let bad_pages = || error("XX001", "checksum verification failure during base backup");
    for (tagged, stream) in [(true, since_15()), (false, before_15())] {
        let last = stream.len() - 2;
        // After the stop position, in place of the last CommandComplete.
        let mut findings = stream.clone();
        findings[last] = bad_pages();
        let (events, outcome) = run(tagged, true, &findings);
        outcome.unwrap();
        assert_eq!(events.last().unwrap(), END_WITH_FINDINGS);
        // Another error there, and the same error anywhere before, end it.
        let mut other = stream.clone();
        other[last] = error("58030", "could not read file");
        assert_eq!(
            run(tagged, true, &other).1.unwrap_err().message(),
            "could not read file"
        );
        for place in 0..last {
            let mut early = stream[..place].to_vec();
            early.extend([bad_pages(), message(b'Z', b"I")]);
            let (events, outcome) = run(tagged, true, &early);
            assert!(outcome.is_err(), "{place}");
            assert!(
                !events.iter().any(|event| event.starts_with("End")),
                "{place}"
            );
        }
    }
}

#[test]
fn archives_must_be_announced_and_well_named() {
    let names = [
        "",
        "base.tar.gz",
        "../base.tar",
        "base",
        "16385.tar",
        "/etc/x.tar",
        "16384",
        "-1.tar",
        ".tar",
    ];
    for name in names {
        let mut stream = header();
        stream.extend([copy_out(), copy(format!("n{name}\0\0").as_bytes())]);
        assert_eq!(
            run(true, true, &stream).1.unwrap_err().kind(),
            Kind::Protocol,
            "{name}"
        );
    }
    let mut twice = header();
    twice.extend([copy_out(), copy(b"nbase.tar\0\0"), copy(b"nbase.tar\0\0")]);
    assert!(run(true, true, &twice).1.is_err());
}

#[test]
fn oddities_are_refused() {
    let cases: [(bool, Vec<Vec<u8>>); 7] = [
        (true, vec![copy_out(), copy(b"")]),
        (true, vec![copy_out(), copy(b"dAB")]),
        (true, vec![copy_out(), copy(b"x")]),
        (true, vec![copy_out(), copy(b"p\0")]),
        (true, vec![copy(b"nbase.tar\0\0")]),
        (false, vec![copy(b"AB")]),
        (false, vec![message(b'W', &[0, 0, 0])]),
    ];
    for (tagged, tail) in cases {
        let mut stream = header();
        stream.extend(tail.clone());
        assert!(run(tagged, true, &stream).1.is_err(), "{tail:?}");
    }
    let mut unasked = header();
    unasked.extend([copy_out(), copy(b"m")]);
    assert!(run(true, false, &unasked).1.is_err());
}

#[test]
fn a_header_must_make_sense() {
    let main = || data_row(&[None, None, Some("1")]);
    let cases = [
        vec![],
        vec![main(), main()],
        vec![data_row(&[Some("x"), Some("/ts"), Some("1")]), main()],
        vec![data_row(&[Some("1"), None, Some("1")]), main()],
        vec![data_row(&[None, None, None])],
    ];
    for rows in cases {
        let mut stream = position_result("0/2000028");
        stream.push(row_description(&["spcoid", "spclocation", "size"]));
        stream.extend(rows.clone());
        stream.push(complete("SELECT"));
        assert!(run(true, true, &stream).1.is_err(), "{rows:?}");
    }
    for (lsn, timeline) in [("x", "1"), ("0/1", "0"), ("0/1", "x")] {
        let stream = [
            row_description(&["recptr", "tli"]),
            data_row(&[Some(lsn), Some(timeline)]),
            complete("SELECT"),
        ];
        assert_eq!(
            run(true, true, &stream).1.unwrap_err().kind(),
            Kind::Protocol
        );
    }
}
