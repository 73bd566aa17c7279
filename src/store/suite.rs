//! Suite: the one conformance test that every backend runs. It panics when a store breaks one of S1 to S6; each
//! case begins with an empty store of its own.

use super::{Key, ObjectInfo, Store, Upload, When};
use crate::error::{Error, Kind, Result, from_io};
use crate::limits::UPLOAD_PIECE_BYTES;
use crate::work::crew;
use crate::work::stop::Stop;
use std::io::Read;
use std::sync::Mutex;

/// Makes an empty store, prepared, for one case.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// Threads that write one key at the same moment.
const WRITERS: usize = 8;

/// One case: its name and what it does.
pub type Case = (&'static str, fn(&Subject));

/// All cases, for those who want them one by one.
pub const CASES: &[Case] = &[
    ("an absent object", absent),
    ("an object comes back as it was stored", round_trip),
    ("absent never replaces, always does", replacing),
    ("sizes around a piece", sizes),
    (
        "pieces in any order, from several threads",
        pieces_in_any_order,
    ),
    ("a dropped upload leaves nothing", dropped_upload),
    (
        "a finish that does not fit its pieces is refused",
        wrong_finish,
    ),
    ("an upload obeys absent and always", upload_replacing),
    ("a body from any offset", offsets),
    ("odd characters in keys", odd_keys),
    ("siblings that share a prefix", siblings),
    ("a long listing", long_listing),
    ("an error of the caller ends a listing", listing_error),
    ("a deleted object is gone", deleting),
    ("of many writers one wins", many_writers),
    ("many readers", many_readers),
];

/// Runs all cases on what `make` makes; panics at the first broken promise, after naming the case in the log.
pub fn run(make: Make) {
    for (name, case) in CASES {
        let subject = Subject::new(make);
        log::info!("conformance of {}: {name}", subject.store.location());
        case(&subject);
    }
}

/// The store under test and the verbs of a careful caller.
pub struct Subject {
    store: Box<dyn Store>,
}

impl Subject {
    /// A fresh store.
    pub fn new(make: Make) -> Subject {
        Subject { store: make() }
    }

    /// Stores a new object.
    #[track_caller]
    fn put(&self, key: &str, bytes: &[u8]) {
        let result = self.store.put(&k(key), bytes, When::Absent);
        result.unwrap_or_else(|error| panic!("could not store {key}: {error}"));
    }

    /// Stores a new object in pieces of the usual size.
    fn upload(&self, key: &str, bytes: &[u8]) {
        let upload = self.begin(key, When::Absent);
        let mut count = 0;
        for (number, piece) in (0u32..).zip(bytes.chunks(UPLOAD_PIECE_BYTES)) {
            let offset = u64::from(number) * UPLOAD_PIECE_BYTES as u64;
            upload.piece(number, offset, piece).unwrap();
            count += 1;
        }
        upload.finish(count, bytes.len() as u64).unwrap();
    }

    fn begin(&self, key: &str, when: When) -> Box<dyn Upload> {
        self.store.begin(&k(key), when).unwrap()
    }

    fn read(&self, key: &str) -> Vec<u8> {
        self.read_from(key, 0)
    }

    fn read_from(&self, key: &str, offset: u64) -> Vec<u8> {
        self.try_read_from(key, offset)
            .unwrap_or_else(|error| panic!("could not read {key}: {error}"))
    }

    fn try_read_from(&self, key: &str, offset: u64) -> Result<Vec<u8>> {
        let mut body = self.store.get(&k(key), offset)?;
        let mut bytes = Vec::new();
        let read = body.reader.read_to_end(&mut bytes);
        read.map_err(|e| from_io("could not read", e))?;
        let end = offset + bytes.len() as u64;
        assert_eq!(end, body.size, "S6: {key} ended early without an error");
        assert_eq!(body.reader.read(&mut [0; 8]).unwrap(), 0, "the end stays");
        Ok(bytes)
    }

    fn size(&self, key: &str) -> Option<u64> {
        let info = self.store.head(&k(key)).unwrap()?;
        assert_eq!(info.key, k(key));
        Some(info.size)
    }

    #[track_caller]
    fn gone(&self, key: &str) {
        assert_eq!(self.size(key), None, "{key} is there");
        assert_eq!(fails(self.store.get(&k(key), 0)), Kind::Missing, "{key}");
        assert!(!self.keys("", "").contains(&key.to_string()), "{key}");
    }

    /// A listing gives exactly `expected`. The first difference is told, not thousands of keys.
    #[track_caller]
    fn lists(&self, prefix: &str, after: &str, expected: &[String]) {
        let found = self.keys(prefix, after);
        let same = found.iter().zip(expected).take_while(|(f, e)| f == e);
        let at = same.count();
        assert!(
            found == expected,
            "listing {prefix:?} after {after:?}: {} keys instead of {}, key {at} is {:?} instead of {:?}",
            found.len(),
            expected.len(),
            found.get(at),
            expected.get(at),
        );
    }

    fn keys(&self, prefix: &str, after: &str) -> Vec<String> {
        let mut keys = Vec::new();
        let mut each = |info: ObjectInfo| {
            keys.push(info.key.to_string());
            Ok(true)
        };
        self.store.list(prefix, after, &mut each).unwrap();
        keys
    }
}

fn absent(subject: &Subject) {
    subject.gone("wal_005/x");
    subject.gone("x");
    assert!(subject.keys("wal_005/", "").is_empty());
    assert!(subject.keys("", "").is_empty());
    subject.store.delete(&k("wal_005/x")).unwrap();
    assert_eq!(fails(subject.store.settle(&k("wal_005/x"))), Kind::Missing);
    // A neighbour changes nothing.
    subject.put("wal_005/y", b"y");
    subject.gone("wal_005/x");
    subject.gone("wal_005/y-z");
}

fn round_trip(subject: &Subject) {
    let bytes = pattern(1, 100_000);
    subject.put("base/part", &bytes);
    subject.put("empty", b"");
    subject.put("a/b/c/d/e", b"deep");
    assert!(subject.read("base/part") == bytes, "other bytes came back");
    assert_eq!(subject.size("base/part"), Some(100_000));
    assert_eq!(subject.read("empty"), b"");
    assert_eq!(subject.size("empty"), Some(0));
    assert_eq!(subject.read("a/b/c/d/e"), b"deep");
    subject.store.settle(&k("base/part")).unwrap();

    let mut found = Vec::new();
    let mut each = |info: ObjectInfo| {
        found.push((info.key.to_string(), info.size));
        Ok(true)
    };
    subject.store.list("", "", &mut each).unwrap();
    let expected = [("a/b/c/d/e", 4), ("base/part", 100_000), ("empty", 0)];
    assert_eq!(found, expected.map(|(key, size)| (key.to_string(), size)));
    let info = subject.store.head(&k("empty")).unwrap().unwrap();
    let year_2020 = 1_577_836_800_000_000;
    assert!(info.modified.0 > year_2020, "modified is in microseconds");
}

fn replacing(subject: &Subject) {
    let Subject { store, .. } = subject;
    let key = k("metadata.json");
    subject.put("metadata.json", b"first");
    for other in [&b"second"[..], b"First", b""] {
        let again = store.put(&key, other, When::Absent);
        if store.features().atomic_absent {
            assert_eq!(fails(again), Kind::Exists, "S2");
            assert_eq!(subject.read("metadata.json"), b"first", "S2");
        }
    }
    for bytes in [&b"a longer one"[..], b"short", b""] {
        store.put(&key, bytes, When::Always).unwrap();
        assert_eq!(subject.read("metadata.json"), bytes);
    }
    store.put(&k("new"), b"new", When::Always).unwrap();
    assert_eq!(subject.read("new"), b"new");
}

fn sizes(subject: &Subject) {
    const P: usize = UPLOAD_PIECE_BYTES;
    for size in [1, P - 1, P] {
        let (key, bytes) = (format!("put/{size}"), pattern(size, size));
        subject.put(&key, &bytes);
        assert!(subject.read(&key) == bytes, "{size} bytes");
        assert_eq!(subject.size(&key), Some(size as u64));
        subject.store.delete(&k(&key)).unwrap();
    }
    for size in [1, P, P + 1, 2 * P - 1, 2 * P, 2 * P + 1] {
        let (key, bytes) = (format!("upload/{size}"), pattern(size, size));
        subject.upload(&key, &bytes);
        assert!(subject.read(&key) == bytes, "{size} bytes");
        assert_eq!(subject.size(&key), Some(size as u64));
        subject.store.delete(&k(&key)).unwrap();
    }
}

fn pieces_in_any_order(subject: &Subject) {
    const P: usize = UPLOAD_PIECE_BYTES;
    let bytes = pattern(7, 5 * P + 12_345);
    let upload = subject.begin("parts/x", When::Absent);
    let upload_ref = &*upload;
    let pieces: Vec<&[u8]> = bytes.chunks(P).collect();
    let queue = Mutex::new(vec![0usize, 3, 1, 5, 4, 2]);
    together(3, |_| {
        loop {
            let Some(number) = queue.lock().unwrap().pop() else {
                return Ok(());
            };
            upload_ref.piece(number as u32, (number * P) as u64, pieces[number])?;
        }
    });
    // Sent again, as after a lost acknowledgement, it counts once.
    upload.piece(1, P as u64, pieces[1]).unwrap();
    subject.gone("parts/x");
    upload
        .finish(pieces.len() as u32, bytes.len() as u64)
        .unwrap();
    drop(upload);
    assert!(subject.read("parts/x") == bytes, "other bytes came back");
}

fn dropped_upload(subject: &Subject) {
    let piece = pattern(3, UPLOAD_PIECE_BYTES);
    for sent in 0..2 {
        let upload = subject.begin("base/part", When::Absent);
        for number in 0..sent {
            upload.piece(number, 0, &piece).unwrap();
        }
        drop(upload);
        subject.gone("base/part");
    }
    subject.put("kept", b"kept");
    let upload = subject.begin("kept", When::Always);
    upload.piece(0, 0, &piece).unwrap();
    assert_eq!(subject.read("kept"), b"kept", "S3");
    drop(upload);
    assert_eq!(subject.read("kept"), b"kept", "S3");
    assert_eq!(subject.keys("", ""), ["kept"], "S3");
}

fn wrong_finish(subject: &Subject) {
    let piece = pattern(3, UPLOAD_PIECE_BYTES);
    let size = piece.len() as u64;
    for (pieces, size) in [(2, 2 * size), (2, size), (1, size + 1), (0, 0)] {
        let upload = subject.begin("base/part", When::Absent);
        upload.piece(0, 0, &piece).unwrap();
        let result = upload.finish(pieces, size);
        drop(upload);
        assert!(result.is_err(), "{pieces} pieces, {size} bytes");
        subject.gone("base/part");
    }
}

fn upload_replacing(subject: &Subject) {
    let (old, new) = (pattern(1, 5_000), pattern(2, UPLOAD_PIECE_BYTES + 1));
    let size = new.len() as u64;
    let (head, tail) = new.split_at(UPLOAD_PIECE_BYTES);
    let send = |when| -> Result<()> {
        let upload = subject.store.begin(&k("x"), when)?;
        upload.piece(0, 0, head)?;
        upload.piece(1, head.len() as u64, tail)?;
        upload.finish(2, size)
    };
    subject.put("x", &old);
    if subject.store.features().atomic_absent {
        assert_eq!(fails(send(When::Absent)), Kind::Exists, "S2");
        assert!(subject.read("x") == old, "S2");
    }
    send(When::Always).unwrap();
    assert!(subject.read("x") == new, "other bytes came back");
}

fn offsets(subject: &Subject) {
    let bytes = pattern(5, 300_001);
    let size = bytes.len() as u64;
    subject.put("x", &bytes);
    for offset in [0, 1, 65_536, 150_000, size - 1, size] {
        let rest = subject.read_from("x", offset);
        assert!(rest == bytes[offset as usize..], "from {offset}");
    }
    let kind = match subject.try_read_from("x", size + 1) {
        Ok(_) => panic!("a body from beyond the end"),
        Err(error) => error.kind(),
    };
    assert_ne!(kind, Kind::Missing, "S4");
    subject.put("empty", b"");
    assert_eq!(subject.read_from("empty", 0), b"");
}

fn odd_keys(subject: &Subject) {
    let parts = [
        "a b", " a", "a+b", "a=b", "ü", "日本", "a%20b", "%", "%2F", "a?b=c", "#a", "a&b", "a;b",
        "a:b", "~a", "a'b\"c", "a\\b", "<a>", "$(a)", "*", "[a]", "@a,b", "!a", "..a", "a.",
    ];
    let mut expected = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        for key in [format!("odd/{part}"), format!("{part}/x")] {
            subject.put(&key, format!("{number} {key}").as_bytes());
            expected.push((key, number));
        }
    }
    for (key, number) in &expected {
        assert_eq!(subject.read(key), format!("{number} {key}").as_bytes());
        assert!(subject.size(key).is_some(), "{key}");
        assert_eq!(subject.keys(key, "").first(), Some(key));
    }
    let mut keys: Vec<String> = expected.into_iter().map(|(key, _)| key).collect();
    keys.sort();
    subject.lists("", "", &keys);
    for pair in keys.windows(2) {
        let next = subject.keys("", &pair[0]).into_iter().next();
        assert_eq!(next.as_ref(), Some(&pair[1]), "after {}", pair[0]);
    }
    for key in &keys {
        subject.store.delete(&k(key)).unwrap();
    }
    assert!(subject.keys("", "").is_empty());
}

fn siblings(subject: &Subject) {
    // In key order: the slash stands between the dot and the digits.
    let sorted = [
        "base",
        "base b",
        "base+x",
        "base-x",
        "base.x",
        "base_1/x",
        "base_1/y/z",
        "base_1_s",
        "base_10/x",
        "base_1x",
        "bas\u{e9}",
        "dir-a/x",
        "dir.a",
        "dir/a",
        "dir/b-x",
        "dir/b/c",
        "dir/b0",
        "dir0/a",
    ];
    let mut sorted: Vec<String> = sorted.map(String::from).to_vec();
    for key in sorted.iter().rev() {
        subject.put(key, key.as_bytes());
    }
    sorted.sort();
    subject.lists("", "", &sorted);
    let prefixes = [
        "",
        "b",
        "base",
        "base_1",
        "base_1/",
        "base_1/y",
        "base_1/y/",
        "base_10",
        "dir",
        "dir/",
        "dir/b",
        "dir/b/",
        "dir/b/c",
        "dir/b/cc",
        "none",
        "none/",
        "dir/none/x",
        "base/",
    ];
    for prefix in prefixes {
        for after in sorted
            .iter()
            .map(String::as_str)
            .chain(["", "dir", "dir/", "zz"])
        {
            let wanted = |key: &&String| key.starts_with(prefix) && key.as_str() > after;
            let expected: Vec<String> = sorted.iter().filter(wanted).cloned().collect();
            subject.lists(prefix, after, &expected);
        }
    }
    subject.store.delete(&k("base_1/x")).unwrap();
    subject.gone("base_1/x");
    sorted.retain(|key| key != "base_1/x");
    subject.lists("", "", &sorted);
}

fn long_listing(subject: &Subject) {
    const COUNT: usize = 2_500;
    let name = |number: usize| format!("wal_005/{number:08}");
    together(8, |thread| {
        for number in (thread..COUNT).step_by(8) {
            subject.put(&name(number), b"x");
        }
        Ok(())
    });
    subject.put("wal_004/x", b"x");
    subject.put("wal_006/x", b"x");
    let all: Vec<String> = (0..COUNT).map(name).collect();
    subject.lists("wal_005/", "", &all);
    subject.lists("wal_005/", &all[0], &all[1..]);
    subject.lists("wal_005/", &all[999], &all[1_000..]);
    subject.lists("wal_005/", &all[COUNT - 1], &[]);
    subject.lists("wal_005/000012", "", &all[1_200..1_300]);
    assert_eq!(subject.keys("", "").len(), COUNT + 2);
    for most in [1, 1_000, 1_001] {
        let mut seen = Vec::new();
        let mut each = |info: ObjectInfo| {
            seen.push(info.key.to_string());
            Ok(seen.len() < most)
        };
        subject.store.list("wal_005/", "", &mut each).unwrap();
        assert!(seen == all[..most], "an early end after {most}");
    }
}

fn listing_error(subject: &Subject) {
    subject.put("a", b"");
    subject.put("b", b"");
    for kind in [Kind::Hole, Kind::Transient] {
        let mut calls = 0;
        let result = subject.store.list("", "", &mut |_| {
            calls += 1;
            Err(Error::new(kind, "enough"))
        });
        assert_eq!((fails(result), calls), (kind, 1));
    }
    // The caller may use the store while it lists.
    let mut each = |info: ObjectInfo| subject.store.delete(&info.key).map(|()| true);
    subject.store.list("", "", &mut each).unwrap();
    assert!(subject.keys("", "").is_empty());
}

fn deleting(subject: &Subject) {
    subject.put("base/x", b"1");
    subject.put("base/xy", b"2");
    for _ in 0..2 {
        subject.store.delete(&k("base/x")).unwrap();
        subject.gone("base/x");
    }
    assert_eq!(subject.read("base/xy"), b"2");
    subject.put("base/x", b"again");
    assert_eq!(subject.read("base/x"), b"again");
}

fn many_writers(subject: &Subject) {
    for round in 0..5 {
        let key = format!("gaps/{round}");
        let results = Mutex::new(Vec::new());
        together(WRITERS, |writer| {
            let bytes = pattern(writer + 1, 20_000);
            let result = subject.store.put(&k(&key), &bytes, When::Absent);
            results.lock().unwrap().push((writer, result));
            Ok(())
        });
        let content = subject.read(&key);
        let whole = |writer| content == pattern(writer + 1, 20_000);
        assert!((0..WRITERS).any(whole), "S1: a mixture of two objects");
        if !subject.store.features().atomic_absent {
            continue;
        }
        let mut winners = 0;
        for (writer, result) in results.into_inner().unwrap() {
            match result {
                Ok(()) => {
                    winners += 1;
                    assert!(whole(writer), "S2: the winner's object was replaced");
                }
                Err(error) => assert_eq!(error.kind(), Kind::Exists, "{error}"),
            }
        }
        assert_eq!(winners, 1, "S2: one writer wins");
    }
}

fn many_readers(subject: &Subject) {
    let bytes = pattern(9, 2_000_000);
    subject.put("x", &bytes);
    together(8, |reader| {
        for round in 0..3 {
            let offset = (reader * 250_000 + round) as u64;
            let rest = subject.try_read_from("x", offset)?;
            assert!(rest == bytes[offset as usize..], "from {offset}");
            assert_eq!(subject.size("x"), Some(2_000_000));
        }
        Ok(())
    });
}

/// Runs `job` on `count` threads at once.
fn together(count: usize, job: impl Fn(usize) -> Result<()> + Sync) {
    let job = &job;
    let done = crew::run(&Stop::new(), |crew| {
        for number in 0..count {
            crew.spawn(format!("suite-{number}"), move || job(number))?;
        }
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
}

fn k(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// The kind of an error that must be one.
#[track_caller]
fn fails<T>(result: Result<T>) -> Kind {
    match result {
        Ok(_) => panic!("this must fail"),
        Err(error) => error.kind(),
    }
}

/// Bytes that differ by `seed` and repeat at no power of two, so that a piece in the wrong place shows.
fn pattern(seed: usize, size: usize) -> Vec<u8> {
    const PERIOD: usize = 65_521;
    let byte = |i: usize| (i.wrapping_mul(i + 2 * seed + 1).wrapping_add(seed) >> 3) as u8;
    let block: Vec<u8> = (0..PERIOD.min(size)).map(byte).collect();
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let left = (size - bytes.len()).min(block.len());
        bytes.extend_from_slice(&block[..left]);
    }
    bytes
}

#[cfg(test)]
mod tests;
