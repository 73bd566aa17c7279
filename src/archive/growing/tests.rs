use super::*;
use crate::archive::testing::{self, SIZE, SYSTEM};
use crate::store::When;

const EXPECT: Expect = Expect {
    system_id: Some(SYSTEM),
    segment_size: None,
};

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn put(archive: &Archive, segment: Segment, bytes: &[u8], durable: usize) -> Result<Grown> {
    archive.put_growing(segment, &file(bytes), durable as u64, EXPECT)
}

fn contents(archive: &Archive, segment: Segment) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut growing = archive.get_growing(segment)?.expect("it is there");
    growing
        .read_to_end(&mut bytes)
        .map_err(|e| from_io("could not read", e))?;
    Ok(bytes)
}

fn store_whole(archive: &Archive, segment: Segment) {
    let key = keys::wal(&segment.to_string(), Some(Method::Zstd));
    archive.store.put(&key, b"whole", When::Absent).unwrap();
}

#[test]
fn it_grows_and_never_shrinks() {
    let archive = testing::archive();
    let segment = testing::segment(1, 3);
    let wal = testing::wal(segment, 0);
    assert!(archive.get_growing(segment).unwrap().is_none());
    let grow = |durable| put(&archive, segment, &wal, durable).unwrap();
    for durable in [100, 300_000, 300_001, SIZE as usize] {
        assert!(matches!(grow(durable), Grown::Stored(_)), "{durable}");
        assert_eq!(contents(&archive, segment).unwrap(), wal[..durable]);
        assert_eq!(grow(durable), Grown::AlreadyThere(durable as u64));
        // A receiver that was started again begins at the segment's first byte.
        assert_eq!(grow(90), Grown::AlreadyThere(durable as u64));
        assert_eq!(contents(&archive, segment).unwrap(), wal[..durable]);
    }
    let facts = archive.get_growing(segment).unwrap().unwrap().facts;
    assert_eq!((facts.length, facts.system_id), (SIZE, SYSTEM));
}

#[test]
fn other_bytes_change_nothing() {
    let archive = testing::archive();
    let segment = testing::segment(1, 3);
    let wal = testing::wal(segment, 0);
    put(&archive, segment, &wal, 300_000).unwrap();
    let mut other = wal.clone();
    other[50_000] ^= 1;
    for durable in [60_000, 300_000, 400_000] {
        let error = put(&archive, segment, &other, durable).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch, "{durable}");
        assert_eq!(contents(&archive, segment).unwrap(), wal[..300_000]);
    }
    // The first bytes alone are the same.
    let same = put(&archive, segment, &other, 50_000).unwrap();
    assert_eq!(same, Grown::AlreadyThere(300_000));
}

#[test]
fn what_is_no_wal_of_it_is_refused() {
    let archive = testing::archive();
    let segment = testing::segment(1, 3);
    let wal = testing::wal(segment, 0);
    let older = testing::wal(testing::segment(1, 2), 0);
    for (bytes, durable, kind) in [
        (&wal, 39, Kind::Corrupt),
        (&wal, 0, Kind::Refused),
        (&vec![0; 10_000], 10_000, Kind::Refused),
        (&older, 10_000, Kind::Refused),
        (&wal, SIZE as usize + 1, Kind::Io),
        (&[&wal[..], b"x"].concat(), SIZE as usize + 1, Kind::Corrupt),
    ] {
        let error = put(&archive, segment, bytes, durable).unwrap_err();
        assert_eq!(error.kind(), kind, "{durable}: {error}");
    }
    let stranger = Expect {
        system_id: Some(SystemId(8)),
        ..EXPECT
    };
    let error = archive.put_growing(segment, &file(&wal), 10_000, stranger);
    assert_eq!(error.unwrap_err().kind(), Kind::Mismatch);
    assert!(archive.get_growing(segment).unwrap().is_none());
}

/// Whatever the codec of the archive, `zstd -d` gives the plain bytes; the library's strict decoder stands for it here.
#[test]
fn the_plain_bytes_come_out_of_any_zstd() {
    let mut archive = testing::archive();
    archive.compression = Compression::new(Method::Lz4, None).unwrap();
    let segment = testing::segment(1, 3);
    let wal = testing::wal(segment, 0);
    put(&archive, segment, &wal, 123_456).unwrap();
    let body = archive.store.get(&keys::growing(segment), 0).unwrap();
    let mut plain = Vec::new();
    let mut reader = codec::decoder(Method::Zstd, body.reader);
    reader.read_to_end(&mut plain).unwrap();
    assert_eq!(plain, wal[..123_456]);
}

#[test]
fn damage_is_found() {
    let archive = testing::archive();
    let segment = testing::segment(1, 3);
    put(&archive, segment, &testing::wal(segment, 0), 100_000).unwrap();
    let key = keys::growing(segment);
    let mut whole = Vec::new();
    let body = archive.store.get(&key, 0).unwrap();
    body.reader.take(u64::MAX).read_to_end(&mut whole).unwrap();
    let facts_end = 8 + usize::from(whole[4]);
    let text = String::from_utf8(whole[8..facts_end].to_vec()).unwrap();
    let with = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let text = text.replace(from, to);
        [&whole[..8], text.as_bytes(), &whole[facts_end..]].concat()
    };
    let mut flipped = whole.clone();
    flipped[whole.len() - 20] ^= 1;
    let digest = text.split_once("\"sha256\":\"").unwrap().1;
    let other = if digest.starts_with('0') { "1" } else { "0" };
    for (what, bytes) in [
        ("a bit", flipped),
        ("longer", with("100000", "100001")),
        ("shorter", with("100000", " 99999")),
        ("digest", with(digest, &format!("{other}{}", &digest[1..]))),
        ("segment", with("000003\"", "000004\"")),
        ("newer", with("\"format\":1", "\"format\":2")),
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("cut facts", whole[..50].to_vec()),
        ("no facts", whole[facts_end..].to_vec()),
        ("empty", Vec::new()),
    ] {
        archive.store.put(&key, &bytes, When::Always).unwrap();
        let error = contents(&archive, segment).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error}");
        // Nothing is put over what cannot be compared, and something sound over what is damaged further on.
        let wal = testing::wal(segment, 0);
        let replaced = put(&archive, segment, &wal, 200_000).is_ok();
        assert_eq!(replaced, ["a bit", "cut"].contains(&what), "{what}");
    }
}

#[test]
fn the_complete_segment_takes_its_place() {
    let archive = testing::archive();
    let (segment, next) = (testing::segment(1, 3), testing::segment(1, 4));
    for segment in [segment, next] {
        put(&archive, segment, &testing::wal(segment, 0), 1000).unwrap();
    }
    let growing = |from| archive.growing_segments(TimelineId(1), from).unwrap();
    assert_eq!(growing(None), [segment, next]);
    assert_eq!(growing(Some(next)), [next]);
    assert!(!archive.remove_growing(segment, size()).unwrap());
    store_whole(&archive, segment);
    // One that comes late is not put beside it.
    let late = put(&archive, segment, &testing::wal(segment, 0), 2000).unwrap();
    assert_eq!(late, Grown::Complete);
    assert!(archive.remove_growing(segment, size()).unwrap());
    assert_eq!(growing(None), [next]);
    assert!(archive.remove_growing(segment, size()).unwrap());
}

#[test]
fn a_child_timelines_first_segment_takes_its_place_if_it_holds_all_of_it() {
    let segment = testing::segment(1, 3);
    let start = 3 * SIZE;
    // Where timeline 2 leaves timeline 1, whether its segment is archived, and whether the growing one goes then.
    for (left, archived, gone) in [
        (start + 1000, true, true),
        (start + 1000, false, false),
        (start + 999, true, false),
        (start, true, false),
        (start + SIZE, true, false),
        (start - 1, true, false),
    ] {
        let archive = testing::archive();
        put(&archive, segment, &testing::wal(segment, 0), 1000).unwrap();
        let text = format!("1\t0/{left:X}\tno reason\n");
        archive.put_history(TimelineId(2), text.as_bytes()).unwrap();
        if archived {
            store_whole(&archive, testing::segment(2, 3));
        }
        let removed = archive.remove_growing(segment, size()).unwrap();
        assert_eq!(removed, gone, "{left:X} {archived}");
        assert_eq!(archive.get_growing(segment).unwrap().is_none(), gone);
    }
}
