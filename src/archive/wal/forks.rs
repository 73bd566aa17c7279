//! What the histories of later timelines prove. A history names the timelines that led to its own and where each was
//! left: so each of them had WAL up to there, and a history of its own, whether or not the archive has them.

use crate::archive::{Archive, keys};
use crate::codec;
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::{SegmentSize, TimelineHistory, TimelineId, WalName};
use crate::store::Key;
use std::io::Read;

impl Archive {
    /// How the history of a later timeline proves that there was `name`, if one does. Of a segment that takes the
    /// size of segments. The segment in which a timeline was left is not proven: nobody may have written it to its
    /// end, and the next timeline has it too; nor is what lies after it.
    pub(super) fn proven_by_fork(
        &self,
        name: WalName,
        size: Option<SegmentSize>,
    ) -> Result<Option<String>> {
        let timeline = name.timeline();
        let end = match (name, size) {
            (WalName::Segment(segment), Some(size)) => Some(segment.next(size)?.start(size)?),
            // The first timeline has no history.
            (WalName::History(timeline), _) if timeline > TimelineId(1) => None,
            _ => return Ok(None),
        };
        let proof = self.later_histories(timeline)?.into_iter().find_map(|of| {
            let existed = of.existed(timeline)?;
            let proves = end.is_none_or(|end| existed.start < end && end <= existed.end);
            proves.then(|| {
                format!(
                    "{} says that timeline {timeline} was left at {}",
                    of.timeline.history_name(),
                    existed.end
                )
            })
        });
        Ok(proof)
    }

    /// The histories of all timelines above `timeline` that the archive has, ascending.
    pub fn histories_above(&self, timeline: TimelineId) -> Result<Vec<TimelineHistory>> {
        let found = self.later_timelines(timeline)?.into_iter();
        found
            .map(|(timeline, key)| self.read_history(timeline, &key))
            .collect()
    }

    /// The same, the highest first, without those whose every line stands in a higher one that is here.
    fn later_histories(&self, timeline: TimelineId) -> Result<Vec<TimelineHistory>> {
        let mut histories: Vec<TimelineHistory> = Vec::new();
        for (timeline, key) in self.later_timelines(timeline)?.into_iter().rev() {
            if !histories.iter().any(|higher| higher.contains(timeline)) {
                histories.push(self.read_history(timeline, &key)?);
            }
        }
        Ok(histories)
    }

    /// The timelines above `timeline` whose histories are archived, with their objects. One LIST for each timeline there
    /// is, and one more.
    fn later_timelines(&self, timeline: TimelineId) -> Result<Vec<(TimelineId, Key)>> {
        let mut found = Vec::new();
        let mut above = timeline;
        while let Some((next, history)) = self.next_timeline(above)? {
            found.extend(history.map(|key| (next, key)));
            above = next;
        }
        Ok(found)
    }

    /// The first timeline above `above` that has anything in the archive, with the object of its history.
    fn next_timeline(&self, above: TimelineId) -> Result<Option<(TimelineId, Option<Key>)>> {
        // Behind every name of this timeline: it is greater than all that may follow the digits.
        let after = format!("{}{:08X}~", keys::WAL, above.0);
        let mut next: Option<(TimelineId, Option<Key>)> = None;
        self.store.list(keys::WAL, &after, &mut |object| {
            // A history sorts before the segments of its timeline.
            match keys::wal_in_any_form(&object.key).filter(|name| name.timeline() > above) {
                Some(WalName::History(timeline)) if next.is_none() => {
                    let readable = keys::parse_wal(&object.key).is_some();
                    next = Some((timeline, Some(object.key)));
                    Ok(!readable)
                }
                Some(name @ WalName::History(_)) if keys::parse_wal(&object.key).is_some() => {
                    if let Some((timeline, key)) = &mut next
                        && *timeline == name.timeline()
                    {
                        *key = Some(object.key);
                    }
                    Ok(false)
                }
                Some(name) => {
                    next.get_or_insert((name.timeline(), None));
                    Ok(false)
                }
                None => Ok(true),
            }
        })?;
        Ok(next)
    }

    /// Reads the history that is archived as this object.
    pub(super) fn read_history(&self, timeline: TimelineId, key: &Key) -> Result<TimelineHistory> {
        let Some((_, method)) = keys::parse_wal(key) else {
            return Err(unreadable(WalName::History(timeline), key));
        };
        let body = self.store.get(key, 0)?;
        let reader: Box<dyn Read> = match method {
            Some(method) => codec::decoder(method, body.reader),
            None => body.reader,
        };
        let mut text = Vec::new();
        reader
            .take(limits::SMALL_FILE_BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(|e| from_io(&format!("could not read object {key}"), e))?;
        // The names of restore points in it may be in any encoding.
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
            .map_err(|e| e.context(format!("object {key} cannot be understood")))
    }
}

/// There it is, but nobody can say what it holds.
pub(super) fn unreadable(name: WalName, key: &Key) -> Error {
    Error::new(
        Kind::Refused,
        format!("{name} is archived in a form that cannot be read"),
    )
    .detail(format!(
        "Object {key} was written by another tool or a newer seawall."
    ))
    .hint(format!(
        "Take it out of the archive with the tool that wrote it, and put the plain file there as {}{name}.",
        keys::WAL
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::state::State;
    use crate::archive::wal::{Expect, Fetched, HolePolicy};
    use crate::codec::{Compression, Encoder, Method};
    use crate::store::When;
    use crate::store::mem::MemStore;
    use std::io::Write;

    const IDENTITY: &[u8] = br#"{"format":1,"system_identifier":"7","postgresql":15,"segment_size":1048576,"created":""}"#;

    /// Segments 06 to 09 of timeline 1, and these objects of `wal_005/`.
    fn archive(objects: &[(&str, &[u8])]) -> Archive {
        let store = MemStore::new();
        let archive = Archive {
            store: Box::new(store),
            compression: Compression::new(Method::Zstd, None).unwrap(),
            state: State::none(),
        };
        let put = |key: &Key, bytes: &[u8]| archive.store.put(key, bytes, When::Absent).unwrap();
        put(&keys::identity(), IDENTITY);
        for low in 6..=9 {
            put(&keys::wal(&on(1, low), Some(Method::Zstd)), b"a segment");
        }
        for (name, bytes) in objects {
            put(&keys::wal(name, None), bytes);
        }
        archive
    }

    fn on(timeline: u32, low: u32) -> String {
        format!("{timeline:08X}00000000{low:08X}")
    }

    fn ask(archive: &Archive, name: &str, policy: HolePolicy) -> Option<Kind> {
        let mut out = Vec::new();
        let name = name.parse().unwrap();
        match archive.get_wal(name, &mut out, Expect::default(), policy) {
            Ok(Fetched::Absent(_)) => None,
            Ok(Fetched::Delivered(_)) => panic!("{name} was delivered"),
            Err(e) => Some(e.kind()),
        }
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_lies_before_a_fork_was_there() {
        const HOLE: Option<Kind> = Some(Kind::Hole);
        let (h2, h3) = ("00000002.history", "00000003.history");
        let segment_2: &(&str, &[u8]) = &("00000002000000000000000C", b"a segment");
        // The objects; what is asked for, and the answer.
        type Row<'a> = (
            &'a str,
            Vec<(&'a str, &'a [u8])>,
            Vec<(String, Option<Kind>)>,
        );
        let rows: Vec<Row<'_>> = vec![
            (
                "one failover",
                vec![(h2, b"1\t0/C000B8\tat caf\xe9\n"), *segment_2],
                vec![
                    (on(1, 0xA), HOLE),
                    (on(1, 0xB), HOLE),
                    // The segment with the fork, and what would come after it.
                    (on(1, 0xC), None),
                    (on(1, 0xD), None),
                    // Before timeline 2 began, and after its end.
                    (on(2, 0xB), None),
                    (on(2, 0xD), None),
                    (format!("{}.partial", on(1, 0xA)), None),
                    ("00000001.history".into(), None),
                    (h3.into(), None),
                ],
            ),
            (
                "a fork between two segments",
                vec![(h2, b"1\t0/C00000\tx\n")],
                vec![(on(1, 0xB), HOLE), (on(1, 0xC), None)],
            ),
            (
                "two failovers, the first without its history",
                vec![(h3, b"1\t0/C000B8\tx\n2\t0/D000B8\ty\n")],
                vec![
                    (h2.into(), HOLE),
                    ("00000001.history".into(), None),
                    (on(1, 0xB), HOLE),
                    (on(1, 0xC), None),
                    (on(2, 0xB), None),
                    (on(2, 0xC), HOLE),
                    (on(2, 0xD), None),
                ],
            ),
            (
                "a recovery to before the first failover",
                vec![(h3, b"1\t0/C000B8\tx\n2\t0/B000B8\ty\n")],
                vec![
                    (h2.into(), HOLE),
                    (on(1, 0xA), HOLE),
                    (on(1, 0xB), HOLE),
                    (on(1, 0xC), None),
                    (on(2, 0xA), None),
                    (on(2, 0xB), None),
                    (on(2, 0xC), None),
                ],
            ),
            (
                "two that left the same timeline, the later one further on",
                vec![(h2, b"1\t0/A000B8\tx\n"), (h3, b"1\t0/C000B8\ty\n")],
                vec![(on(1, 0xB), HOLE), (on(1, 0xC), None)],
            ),
            (
                "the earlier one further on",
                vec![(h2, b"1\t0/C000B8\tx\n"), (h3, b"1\t0/A000B8\ty\n")],
                vec![(on(1, 0xB), HOLE), (on(1, 0xC), None)],
            ),
            (
                "a timeline without a history",
                vec![*segment_2],
                vec![(on(1, 0xA), None), (h2.into(), HOLE)],
            ),
            (
                "a history that nobody can read",
                vec![("00000002.history.br", b"?")],
                vec![
                    (on(1, 0xA), Some(Kind::Refused)),
                    (on(1, 0xD), Some(Kind::Refused)),
                    (on(2, 0xD), None),
                ],
            ),
            (
                "one that a later history tells of too",
                vec![
                    ("00000002.history.br", b"?"),
                    (h3, b"1\t0/C000B8\tx\n2\t0/D000B8\ty\n"),
                ],
                vec![(on(1, 0xB), HOLE), (on(1, 0xD), None)],
            ),
            (
                "a damaged history",
                vec![(h2, b"?")],
                vec![(on(1, 0xA), Some(Kind::Corrupt))],
            ),
        ];
        for (what, objects, answers) in rows {
            let archive = archive(&objects);
            for (name, expected) in answers {
                let answer = ask(&archive, &name, HolePolicy::Abort);
                assert_eq!(answer, expected, "{what}: {name}");
            }
        }
        // Under two forms, of which the second can be read.
        let text = zstd(b"1\t0/C000B8\tx\n");
        let two = archive(&[
            ("00000002.history.br", b"?"),
            ("00000002.history.zst", &text),
        ]);
        assert_eq!(ask(&two, &on(1, 0xB), HolePolicy::Abort), HOLE);
    }

    #[test]
    fn a_standby_may_stream_what_only_a_fork_proves() {
        let history: &[u8] = b"1\t0/C000B8\tx\n2\t0/D000B8\ty\n";
        let archive = archive(&[("00000003.history", history)]);
        let ask = |name: &str| ask(&archive, name, HolePolicy::Streaming);
        assert_eq!(ask(&on(1, 0xA)), None);
        // But never the wrong timeline, nor a hole between segments.
        assert_eq!(ask("00000002.history"), Some(Kind::Hole));
        assert_eq!(ask(&on(1, 5)), Some(Kind::Hole));
    }

    #[test]
    fn every_timeline_above_is_found_whatever_lies_between() {
        let archive = crate::archive::testing::archive();
        for (timeline, text) in [
            (2, "1\t0/200000\tx\n"),
            (5, "1\t0/200000\tx\n2\t0/300000\ty\n"),
        ] {
            let put = archive.put_history(TimelineId(timeline), text.as_bytes());
            put.unwrap();
        }
        for name in [
            "000000010000000000000001",
            "000000020000000000000002",
            "000000020000000000000003",
            "000000030000000000000003",
            "000000050000000000000003",
        ] {
            let key = keys::wal(name, Some(Method::Zstd));
            archive.store.put(&key, b"x", When::Absent).unwrap();
        }
        let found = |above: u32| -> Vec<u32> {
            let histories = archive.histories_above(TimelineId(above)).unwrap();
            histories.iter().map(|history| history.timeline.0).collect()
        };
        assert_eq!(found(1), [2, 5]);
        assert_eq!(found(2), [5]);
        assert_eq!(found(5), [0; 0]);
    }
}
