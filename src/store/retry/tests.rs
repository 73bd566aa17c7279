//! R1 to R5 by scripted faults.

use super::testing::{FakeClock, patient};
use super::*;
use crate::store::faulty::{Fault, Faulty, Verb};
use crate::store::mem::MemStore;
use Fault::{After, Before, Cut, Flip, Short};
use Kind::Transient;

struct Rig {
    mem: MemStore,
    faulty: Faulty,
    clock: Arc<FakeClock>,
    store: Retry,
}

fn rig(script: Vec<(Verb, Fault)>) -> Rig {
    let (mem, clock) = (MemStore::new(), FakeClock::new());
    let faulty = Faulty::scripted(Box::new(mem.clone()), script);
    let store = patient(Box::new(faulty.clone()), Arc::clone(&clock));
    Rig {
        mem,
        faulty,
        clock,
        store,
    }
}

impl Rig {
    fn pauses(&self) -> usize {
        self.clock.times().pauses.len()
    }

    fn read(&self, key: &Key, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.store.get(key, offset)?.reader;
        let read = reader.read_to_end(&mut bytes);
        read.map_err(|e| from_io("reading", e))?;
        Ok(bytes)
    }
}

fn key() -> Key {
    Key::new("k").unwrap()
}

#[test]
fn only_what_may_pass_is_tried_again() {
    let (k, verbs) = (key(), [Before(Transient), After(Transient)]);
    for fault in verbs {
        let all = [
            Verb::Prepare,
            Verb::Put,
            Verb::Get,
            Verb::Head,
            Verb::List,
            Verb::Settle,
            Verb::Delete,
        ];
        let rig = rig(all.map(|verb| (verb, fault)).to_vec());
        rig.store.prepare().unwrap();
        rig.store.put(&k, b"abc", When::Always).unwrap();
        assert_eq!(rig.read(&k, 0).unwrap(), b"abc");
        assert!(rig.store.head(&k).unwrap().is_some());
        rig.store.list("", "", &mut |_| Ok(true)).unwrap();
        rig.store.settle(&k).unwrap();
        rig.store.delete(&k).unwrap();
        assert_eq!((rig.pauses(), rig.faulty.left()), (all.len(), 0));
    }
    for kind in [Kind::Denied, Kind::Unavailable, Kind::Io, Kind::Full] {
        let rig = rig(vec![(Verb::Put, Before(kind))]);
        let error = rig.store.put(&k, b"", When::Absent).unwrap_err();
        assert_eq!((error.kind(), rig.pauses()), (kind, 0));
    }
}

#[test]
fn pauses_double_and_the_time_ends() {
    let rig = rig(vec![(Verb::Head, Before(Transient)); 1_000]);
    let error = rig.store.head(&key()).unwrap_err();
    assert_eq!(error.kind(), Transient);
    assert_eq!(error.message(), "head failed as planned");
    let detail = error.full_detail().unwrap();
    assert_eq!(detail, "Gave up after 13 tries in 60.0 s.");
    let pauses = rig.clock.times().pauses.clone();
    let ms: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
    assert_eq!(ms[..7], [100, 200, 400, 800, 1_600, 3_200, 6_400]);
    assert_eq!(ms[7..], [10_000, 10_000, 10_000, 10_000, 7_300]);
}

#[test]
fn no_time_is_one_try() {
    let script = vec![(Verb::Head, Before(Transient)); 2];
    let clock = FakeClock::new();
    let faulty = Faulty::scripted(Box::new(MemStore::new()), script);
    let policy = Policy {
        total: Duration::ZERO,
        request_idle: Duration::ZERO,
    };
    let store = Retry::with_clock(Box::new(faulty), policy, Box::new(clock));
    let error = store.head(&key()).unwrap_err();
    assert_eq!((error.kind(), error.full_detail()), (Transient, None));
}

#[test]
fn a_signal_ends_the_pause() {
    let rig = rig(vec![(Verb::Put, Before(Transient)); 9]);
    rig.clock.times().stop_at = Some(3);
    let error = rig.store.put(&key(), b"", When::Absent).unwrap_err();
    assert_eq!((error.kind(), rig.pauses()), (Kind::Interrupted, 3));
    assert!(error.full_detail().unwrap().contains("failed as planned"));
}

#[test]
fn after_a_lost_acknowledgement_the_bytes_decide() {
    for (fault, there, expected) in [
        (After(Transient), None, Ok(())),
        (Before(Transient), Some(&b"mine"[..]), Ok(())),
        (Before(Transient), Some(b"them"), Err(Kind::Exists)),
        (Before(Transient), Some(b"mine!"), Err(Kind::Exists)),
        (Before(Transient), Some(b""), Err(Kind::Exists)),
    ] {
        let script = vec![(Verb::Put, fault), (Verb::Get, Cut(2, Transient))];
        let rig = rig(script);
        if let Some(bytes) = there {
            rig.mem.put(&key(), bytes, When::Absent).unwrap();
        }
        let result = rig.store.put(&key(), b"mine", When::Absent);
        assert_eq!(
            result.map_err(|e| e.kind()),
            expected,
            "{fault:?} {there:?}"
        );
    }
}

#[test]
fn without_a_failure_before_it_exists_is_believed() {
    let rig = rig(vec![(Verb::Get, Before(Kind::Bug))]);
    rig.mem.put(&key(), b"mine", When::Absent).unwrap();
    let error = rig.store.put(&key(), b"mine", When::Absent).unwrap_err();
    assert_eq!((error.kind(), rig.faulty.left()), (Kind::Exists, 1));
}

#[test]
fn a_finish_that_meets_another_answer_is_decided_by_the_bytes() {
    // What the first finish answers, what the second does, the object then found, and the verdict.
    let (missing, exists) = (Err(Kind::Missing), Err(Kind::Exists));
    for (first, second, there, expected) in [
        (
            Before(Transient),
            Kind::Missing,
            Some(&b"abcde"[..]),
            Ok(()),
        ),
        (Before(Transient), Kind::Exists, Some(b"abcde"), Ok(())),
        (After(Transient), Kind::Missing, None, Ok(())),
        (Before(Transient), Kind::Missing, Some(b"abcdX"), missing),
        (Before(Transient), Kind::Exists, Some(b"abXde"), exists),
        (Before(Transient), Kind::Exists, Some(b"abcdef"), exists),
        (Before(Transient), Kind::Missing, None, missing),
        (
            Before(Kind::Missing),
            Kind::Missing,
            Some(b"abcde"),
            missing,
        ),
        (Before(Kind::Exists), Kind::Exists, Some(b"abcde"), exists),
    ] {
        let script = [(Verb::Finish, first), (Verb::Finish, Before(second))];
        let rig = rig(script.to_vec());
        let upload = rig.store.begin(&key(), When::Always).unwrap();
        upload.piece(1, 3, b"de").unwrap();
        upload.piece(0, 0, b"abc").unwrap();
        if let Some(bytes) = there {
            rig.mem.put(&key(), bytes, When::Always).unwrap();
        }
        let result = upload.finish(2, 5).map_err(|e| e.kind());
        assert_eq!(result, expected, "{first:?} {second:?} {there:?}");
    }
}

#[test]
fn pieces_are_tried_one_by_one() {
    let script = [
        (Verb::Begin, Before(Transient)),
        (Verb::Piece, Before(Transient)),
        (Verb::Piece, After(Transient)),
        (Verb::Finish, Before(Transient)),
        (Verb::Finish, After(Transient)),
    ];
    let rig = rig(script.to_vec());
    let upload = rig.store.begin(&key(), When::Absent).unwrap();
    upload.piece(0, 0, b"abc").unwrap();
    upload.piece(1, 3, b"de").unwrap();
    upload.finish(2, 5).unwrap();
    assert_eq!((rig.pauses(), rig.faulty.left()), (5, 0));
    assert_eq!(rig.read(&key(), 0).unwrap(), b"abcde");
}

#[test]
fn a_body_goes_on_where_it_broke() {
    let script = [
        (Verb::Get, Cut(3, Transient)),
        (Verb::Get, Before(Transient)),
        (Verb::Get, Cut(0, Transient)),
        (Verb::Get, Short(2)),
    ];
    let rig = rig(script.to_vec());
    rig.mem.put(&key(), b"0123456789", When::Absent).unwrap();
    assert_eq!(rig.read(&key(), 1).unwrap(), b"123456789");
    assert_eq!((rig.pauses(), rig.faulty.left()), (4, 0));
}

#[test]
fn bytes_that_arrive_renew_patience_and_silence_does_not() {
    let mut script = vec![(Verb::Get, Cut(1, Transient)); 50];
    let rig_long = rig(script.clone());
    rig_long.mem.put(&key(), &[7; 60], When::Absent).unwrap();
    assert_eq!(rig_long.read(&key(), 0).unwrap(), [7; 60]);
    let pauses = rig_long.clock.times().pauses.clone();
    assert!(pauses.iter().all(|pause| *pause == RETRY_PAUSE_FIRST));

    script.truncate(1);
    script.extend(vec![(Verb::Get, Short(0)); 50]);
    let rig = rig(script);
    rig.mem.put(&key(), &[7; 60], When::Absent).unwrap();
    let error = rig.read(&key(), 0).unwrap_err();
    assert_eq!(error.kind(), Transient);
    let detail = error.full_detail().unwrap();
    assert!(detail.contains("ended at byte 1 of 60"), "{detail}");
    assert!(detail.contains("Gave up after"), "{detail}");
}

#[test]
fn a_body_of_another_version_is_not_continued() {
    for (other, kind) in [
        (Some(&b"9876543210"[..]), Kind::Mismatch),
        (None, Kind::Hole),
    ] {
        let rig = rig(vec![(Verb::Get, Cut(3, Transient))]);
        rig.mem.put(&key(), b"0123456789", When::Absent).unwrap();
        let mut body = rig.store.get(&key(), 0).unwrap();
        match other {
            Some(bytes) => rig.mem.put(&key(), bytes, When::Always).unwrap(),
            None => rig.mem.delete(&key()).unwrap(),
        }
        let mut bytes = Vec::new();
        let error = body.reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(from_io("", error).kind(), kind);
        assert_eq!(bytes, b"012");
    }
}

#[test]
fn damage_passes_through_for_those_who_check() {
    let rig = rig(vec![(Verb::Get, Flip(1))]);
    rig.mem.put(&key(), b"aaa", When::Absent).unwrap();
    assert_eq!(rig.read(&key(), 0).unwrap(), b"a`a");
}

#[test]
fn a_listing_goes_on_after_the_last_key() {
    let mut script = vec![(Verb::List, Cut(2, Transient)); 3];
    script.push((Verb::List, After(Transient)));
    let rig = rig(script);
    let names: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    for name in &names {
        let key = Key::new(name.as_str()).unwrap();
        rig.mem.put(&key, b"", When::Absent).unwrap();
    }
    let mut seen = Vec::new();
    let mut each = |info: ObjectInfo| {
        seen.push(info.key.to_string());
        Ok(true)
    };
    rig.store.list("k", "", &mut each).unwrap();
    assert_eq!(seen, names);
    assert_eq!((rig.pauses(), rig.faulty.left()), (4, 0));
}
