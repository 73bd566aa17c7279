//! Delivering one file of `pg_wal`, or the proof that recovery has reached the end.
//!
//! The answer "absent" ends recovery and opens the database, so it needs proof in the same call: the archive
//! shows itself, the store names the key as missing, no other codec holds it, nothing beyond it on its timeline is
//! archived, and no later timeline's history says that there was more (`forks`). Everything else is a failure that
//! recovery must not mistake for the end.

use super::check::{Expect, Inspector};
use super::forks::unreadable;
use crate::archive::catalog::Backup;
use crate::archive::sentinel::Mode;
use crate::archive::{Archive, keys};
use crate::codec::{self, Method};
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::{Segment, SegmentSize, TimelineHistory, TimelineId, WalName};
use crate::store::Key;
use std::io::{Read, Write};

/// What to say when WAL is missing in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolePolicy {
    /// It is a failure: recovery must not end there (default).
    Abort,
    /// The same, but a segment that only the history of a later timeline proves is absent: the server is a standby,
    /// which gets it by streaming from the server that has that timeline, or asks again.
    Streaming,
    /// The operator wants recovery to end there.
    Absent,
}

/// The answer to a request for WAL.
#[derive(Debug)]
pub enum Fetched {
    /// It was written and checked; so many bytes.
    Delivered(u64),
    /// It is proven not to be in the archive; the sentence says how.
    Absent(String),
}

impl Archive {
    /// Writes the archived file `name` to `out` and checks it, or proves that it is absent. After an error what
    /// was written counts for nothing.
    pub fn get_wal(
        &self,
        name: WalName,
        out: &mut dyn Write,
        expect: Expect,
        on_hole: HolePolicy,
    ) -> Result<Fetched> {
        let expect = self.remembered(expect)?;
        let usual = keys::wal(&name.to_string(), Some(self.compression.method));
        let answer = match self.deliver(&usual, Some(self.compression.method), name, out, expect) {
            Err(e) if e.kind() == Kind::Missing => self.look_further(name, out, expect, on_hole),
            other => other.map(Fetched::Delivered),
        };
        match answer {
            Err(e) if e.kind() == Kind::Hole && on_hole == HolePolicy::Absent => {
                log::warn!("{}", e.one_line());
                Ok(Fetched::Absent(e.message().to_string()))
            }
            Err(e) if e.kind() == Kind::Hole => Err(e.context(format!("{name} is missing, and this is not the end of WAL"))
                .hint("Restore the object, recover to a target before it, or force the end with --on-hole absent.")),
            other => other,
        }
    }

    /// What this host knows of the cluster from earlier runs fills what the caller does not know.
    pub fn remembered(&self, expect: Expect) -> Result<Expect> {
        if expect.system_id.is_some() && expect.segment_size.is_some() {
            return Ok(expect);
        }
        let memory = self.state.read()?;
        Ok(Expect {
            system_id: expect.system_id.or(memory.system_identifier),
            segment_size: expect.segment_size.or(memory.segment_size()),
        })
    }

    /// The same, and the archive itself is asked for what is still not known.
    pub fn known(&self, expect: Expect) -> Result<Expect> {
        let expect = self.remembered(expect)?;
        if expect.system_id.is_some() && expect.segment_size.is_some() {
            return Ok(expect);
        }
        let identity = self.identity()?;
        Ok(Expect {
            system_id: expect.system_id.or(identity.as_ref().map(|i| i.system_id)),
            segment_size: expect.segment_size.or(identity.map(|i| i.segment_size)),
        })
    }

    fn deliver(
        &self,
        key: &Key,
        method: Option<Method>,
        name: WalName,
        out: &mut dyn Write,
        expect: Expect,
    ) -> Result<u64> {
        let body = self.store.get(key, 0)?;
        let mut reader: Box<dyn Read> = match method {
            Some(method) => codec::decoder(method, body.reader),
            None => body.reader,
        };
        let reading = |e| {
            from_io("could not read the object", e).context(format!("could not fetch object {key}"))
        };
        let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
        let mut inspector = Inspector::new(name, expect);
        loop {
            let count = reader.read(&mut buffer).map_err(reading).map_err(present)?;
            if count == 0 {
                break;
            }
            inspector.pass(&buffer[..count]);
            if inspector.size() > limits::WAL_FILE_BYTES_MAX {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("object {key} is larger than any WAL file"),
                ));
            }
            out.write_all(&buffer[..count])
                .map_err(|e| from_io("could not write the delivered file", e))?;
        }
        inspector
            .judge(inspector.size(), &format!("object {key}"))
            .map_err(present)?;
        Ok(inspector.size())
    }

    /// The configured name is missing: another codec, a hole, or the end?
    fn look_further(
        &self,
        name: WalName,
        out: &mut dyn Write,
        expect: Expect,
        on_hole: HolePolicy,
    ) -> Result<Fetched> {
        let mut seen = self.look_around(name)?;
        // A directory is not read in one moment: it may show the later of two segments that arrive meanwhile and not
        // the earlier one. Once the later one was seen, another look finds the earlier one or there is none.
        if seen.same.is_none() && seen.beyond.is_some() {
            seen = self.look_around(name)?;
        }
        if let Some((key, method)) = seen.same {
            return self
                .deliver(&key, method, name, out, expect)
                .map(Fetched::Delivered)
                .map_err(|e| match e.kind() {
                    Kind::Missing => e.with_kind(Kind::Hole),
                    _ => e,
                });
        }
        if let Some(key) = seen.unreadable {
            return Err(unreadable(name, &key));
        }
        let identified = self.prove_present(&expect).map_err(of_another)?;
        let segment_size = identified.or(expect.segment_size);
        // A gap that somebody accepted says more than that something lies beyond it.
        self.refuse_gap(name.segment(), segment_size)?;
        if let Some(beyond) = &seen.beyond
            && !self
                .before_its_timeline(name, segment_size)
                .map_err(of_another)?
        {
            return Err(Error::new(
                Kind::Hole,
                format!("object {beyond} lies beyond it"),
            ));
        }
        let fork = match seen.later {
            true => self.proven_by_fork(name, segment_size),
            false => Ok(None),
        };
        if let Some(proof) = fork.map_err(of_another)? {
            let hole = Error::new(Kind::Hole, proof);
            match (on_hole, name) {
                (HolePolicy::Streaming, WalName::Segment(_)) => {
                    log::warn!("{name} is missing in the archive: {}", hole.one_line());
                }
                _ => return Err(hole),
            }
        }
        if !seen.any {
            self.prove_wal_present().map_err(of_another)?;
        }
        let mut text = format!("{name} is not in archive {}", self.store.location());
        if !matches!(name, WalName::History(_)) {
            text.push_str(&format!(
                ", and nothing beyond it on timeline {}",
                name.timeline()
            ));
        }
        Ok(Fetched::Absent(text))
    }

    /// The object that holds the complete segment, under whatever codec; `None` if a LIST shows none.
    pub fn segment_object(&self, segment: Segment) -> Result<Option<(Key, Option<Method>)>> {
        let seen = self.look_around(WalName::Segment(segment))?;
        match seen.unreadable.filter(|_| seen.same.is_none()) {
            Some(key) => Err(unreadable(WalName::Segment(segment), &key)),
            None => Ok(seen.same),
        }
    }

    /// One LIST from just before the name to what follows it: on its timeline, or the next one.
    fn look_around(&self, name: WalName) -> Result<Around> {
        let text = name.to_string();
        // A history file sorts before the segments of its timeline, so its list begins at the timeline.
        let before = match name {
            WalName::History(_) => &text[..8],
            _ => &text[..23],
        };
        let after = format!("{}{before}", keys::WAL);
        let mut seen = Around::default();
        self.store
            .list(keys::WAL, &after, &mut |object| {
                seen.any = true;
                match (
                    keys::parse_wal(&object.key),
                    keys::wal_in_any_form(&object.key),
                ) {
                    (Some((there, method)), _) if there == name => {
                        seen.same = Some((object.key, method));
                    }
                    (_, Some(there)) if there == name => seen.unreadable = Some(object.key),
                    (_, Some(there)) if lies_beyond(there, name) => {
                        seen.beyond = Some(object.key);
                    }
                    (_, Some(there)) => seen.later = there.timeline() > name.timeline(),
                    _ => {}
                }
                Ok(seen.same.is_none() && seen.beyond.is_none() && !seen.later)
            })
            .map_err(|e| e.context(format!("could not prove that {name} is absent")))?;
        Ok(seen)
    }

    /// The archive must show itself: its identity, or for an archive of another tool at least one object.
    fn prove_present(&self, expect: &Expect) -> Result<Option<SegmentSize>> {
        if let Some(identity) = self.identity()? {
            if let Some(system_id) = expect.system_id.filter(|id| *id != identity.system_id) {
                return Err(self.stranger(identity.system_id, system_id));
            }
            return Ok(Some(identity.segment_size));
        }
        if self.state.read()?.system_identifier.is_none()
            && (self.shows_any(keys::WAL)? || self.shows_any(keys::BACKUPS)?)
        {
            return Ok(None);
        }
        Err(Error::new(Kind::Unavailable, format!("archive {} does not show itself", self.store.location()))
            .detail("It has no seawall.json and nothing that another tool archived, so an absent file proves nothing.")
            .hint("Check that the archive is mounted and that the prefix is right."))
    }

    /// `Kind::Unavailable` unless the archive shows itself: then what it does not show is not there.
    pub fn prove_shown(&self) -> Result<()> {
        self.prove_present(&Expect::default()).map(drop)
    }

    /// A backup of a running server became complete when its WAL was archived. Where such backups are and no WAL at
    /// all is, `wal_005/` was taken away or is not mounted, and what it does not show is not absent.
    fn prove_wal_present(&self) -> Result<()> {
        if self.shows_any(keys::WAL)? {
            return Ok(());
        }
        let catalog = self.catalog()?;
        let needs_wal = |backup: &Backup| match &backup.sentinel.seawall {
            Some(details) => details.mode != Mode::Offline,
            None => true,
        };
        if catalog.unreadable.is_empty() && !catalog.backups.iter().any(needs_wal) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("archive {} shows no WAL at all", self.store.location()),
        )
        .detail("It holds base backups, and their WAL was archived with them.")
        .hint(format!(
            "Check that {} of the archive is mounted and was not removed.",
            keys::WAL
        )))
    }

    fn shows_any(&self, prefix: &str) -> Result<bool> {
        let mut any = false;
        self.store.list(prefix, "", &mut |_| {
            any = true;
            Ok(false)
        })?;
        Ok(any)
    }

    /// Whether the segment lies before the first one of its timeline: PostgreSQL may ask for it, and its absence
    /// is right although later ones exist.
    fn before_its_timeline(
        &self,
        name: WalName,
        segment_size: Option<SegmentSize>,
    ) -> Result<bool> {
        let (WalName::Segment(segment) | WalName::Partial(segment), Some(size)) =
            (name, segment_size)
        else {
            return Ok(false);
        };
        let Some(history) = self.history(segment.timeline)? else {
            return Ok(false);
        };
        let Some(parent) = history.ancestors.last() else {
            return Ok(false);
        };
        Ok(segment.next(size)?.start(size)? <= parent.end)
    }

    /// Which of `segments`, ascending and of one timeline, are not archived yet.
    pub fn missing_wal(&self, segments: &[Segment]) -> Result<Vec<Segment>> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return Ok(Vec::new());
        };
        let mut missing: std::collections::BTreeSet<Segment> = segments.iter().copied().collect();
        let name = first.to_string();
        let (prefix, after) = (
            format!("{}{}", keys::WAL, &name[..8]),
            format!("{}{}", keys::WAL, &name[..23]),
        );
        self.store.list(&prefix, &after, &mut |object| {
            match keys::parse_wal(&object.key) {
                Some((WalName::Segment(segment), _)) if segment > *last => return Ok(false),
                Some((WalName::Segment(segment), _)) => missing.remove(&segment),
                _ => false,
            };
            Ok(!missing.is_empty())
        })?;
        Ok(missing.into_iter().collect())
    }

    /// The history of a timeline; `None` when it is not archived.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        if timeline == TimelineId(1) {
            return Ok(None);
        }
        let name = WalName::History(timeline);
        match self.look_around(name)?.same {
            Some((key, _)) => self.read_history(timeline, &key).map(Some),
            None => Ok(None),
        }
    }
}

/// What one LIST showed around a name.
#[derive(Default)]
struct Around {
    /// The same file under some codec.
    same: Option<(Key, Option<Method>)>,
    /// The same file under an ending that we cannot read.
    unreadable: Option<Key>,
    /// Something later of the same timeline.
    beyond: Option<Key>,
    /// A later timeline; nothing more of this one.
    later: bool,
    /// Anything at all.
    any: bool,
}

/// Whether `there` proves that `name` was archived or skipped: a later segment, or any segment of the timeline
/// whose history is asked for. Of the other files nobody can tell whether there ought to be one.
fn lies_beyond(there: WalName, name: WalName) -> bool {
    match (name, there.segment()) {
        (WalName::Segment(asked), Some(segment)) => later(segment, asked),
        // The first timeline has no history; a server that makes its second one asks for it all the same.
        (WalName::History(timeline), Some(_)) => timeline != TimelineId(1),
        _ => false,
    }
}

fn later(segment: Segment, asked: Segment) -> bool {
    segment.timeline == asked.timeline && segment > asked
}

/// An error while or after the object was read must never count as "the object is missing".
fn present(error: Error) -> Error {
    match error.kind() {
        Kind::Missing | Kind::Absent => error.with_kind(Kind::Hole),
        _ => error,
    }
}

/// The archive is to prove something about a file by other objects. One of those that is gone is no hole where the
/// file is: the proof has failed.
fn of_another(error: Error) -> Error {
    match error.kind() {
        Kind::Hole => error
            .with_kind(Kind::Unavailable)
            .hint("Bring that object back (in a versioned bucket: remove its delete marker); without it the archive proves nothing."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::state::State;
    use crate::codec::Compression;
    use crate::store::mem::MemStore;
    use crate::store::{Body, Features, ObjectInfo, Store, Upload, When};
    use std::sync::Mutex;

    const ASKED: &str = "000000010000000000000002";
    const IDENTITY: &[u8] = br#"{"format":1,"system_identifier":"7","postgresql":15,"segment_size":1048576,"created":""}"#;

    /// A directory that is read while two segments arrive in it: the first listing shows the later one alone.
    struct Racing {
        inner: MemStore,
        arriving: Mutex<Vec<Key>>,
    }

    impl Store for Racing {
        fn location(&self) -> String {
            self.inner.location()
        }
        fn features(&self) -> Features {
            self.inner.features()
        }
        fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
            self.inner.put(key, bytes, when)
        }
        fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
            self.inner.begin(key, when)
        }
        fn get(&self, key: &Key, offset: u64) -> Result<Body> {
            self.inner.get(key, offset)
        }
        fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
            self.inner.head(key)
        }
        fn list(
            &self,
            prefix: &str,
            after: &str,
            each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
        ) -> Result<()> {
            self.inner.list(prefix, after, each)?;
            for key in std::mem::take(&mut *self.arriving.lock().unwrap()) {
                self.inner.put(&key, &compressed(), When::Absent)?;
            }
            Ok(())
        }
        fn delete(&self, key: &Key) -> Result<()> {
            self.inner.delete(key)
        }
        fn settle(&self, key: &Key) -> Result<()> {
            self.inner.settle(key)
        }
    }

    /// A segment of 1 MiB that begins as PostgreSQL 15 writes it.
    fn compressed() -> Vec<u8> {
        let mut segment = vec![0; 1 << 20];
        segment[..4].copy_from_slice(&[0x10, 0xD1, 0x06, 0x00]);
        segment[4] = 1;
        segment[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
        segment[24..32].copy_from_slice(&7u64.to_le_bytes());
        segment[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        segment[36..40].copy_from_slice(&8192u32.to_le_bytes());
        let mut encoder =
            codec::Encoder::new(Compression::new(Method::Zstd, None).unwrap(), Vec::new()).unwrap();
        encoder.write_all(&segment).unwrap();
        encoder.finish().unwrap()
    }

    fn archive(store: impl Store + 'static) -> Archive {
        Archive {
            store: Box::new(store),
            compression: Compression::new(Method::Zstd, None).unwrap(),
            state: State::none(),
        }
    }

    /// A sentinel as far as a catalog reads it; `None` is one of another tool.
    fn sentinel(mode: Option<&str>) -> Vec<u8> {
        let mut sentinel = serde_json::json!({
            "wal_segment_backup_stop": ASKED,
            "wal_segment_offset_backup_stop": "00000040",
            "expanded_size_bytes": 1,
            "spec": {"base_prefix": "/data", "tablespaces": []},
        });
        if let Some(mode) = mode {
            let object = serde_json::json!({"key": "x", "stored_bytes": 1, "raw_bytes": 1, "sha256": "", "codec": "zstd", "key_id": null});
            sentinel["seawall"] = serde_json::json!({
                "format": 1, "tool_version": "0", "system_identifier": "7", "server_version": 150000, "segment_size": 1 << 20,
                "timeline": 1, "start_lsn": "0/200028", "stop_lsn": "0/200100", "start_time": "2026-11-21T00:00:00Z",
                "finish_time": "2026-11-21T00:00:01Z", "host": "h", "mode": mode, "label": "", "manifest": object, "parts": [],
                "page_checksums": {"checked": false, "bad_pages": 0, "first_bad": []},
            });
        }
        sentinel.to_string().into_bytes()
    }

    #[test]
    fn an_archive_whose_wal_was_taken_away_proves_nothing() {
        let cases: [(&str, Option<Option<&str>>, bool); 5] = [
            ("nothing yet", None, true),
            ("offline", Some(Some("offline")), true),
            ("local", Some(Some("local")), false),
            ("remote", Some(Some("remote")), false),
            ("of another tool", Some(None), false),
        ];
        for name in [ASKED, "00000002.history"] {
            for (what, backup, absent) in cases {
                let store = MemStore::new();
                let put = |key: &Key, bytes: &[u8]| store.put(key, bytes, When::Always).unwrap();
                put(&keys::identity(), IDENTITY);
                if let Some(mode) = backup {
                    let id: keys::BackupId =
                        "base_000000010000000000000002_00000040".parse().unwrap();
                    put(&id.sentinel(), &sentinel(mode));
                }
                let ask = |archive: &Archive| {
                    let (name, expect) = (name.parse().unwrap(), Expect::default());
                    archive.get_wal(name, &mut Vec::new(), expect, HolePolicy::Abort)
                };
                let archive = archive(store);
                match (ask(&archive), absent) {
                    (Ok(Fetched::Absent(_)), true) => {}
                    (Err(e), false) if e.kind() == Kind::Unavailable => {}
                    (answer, _) => panic!("{name}, {what}: {answer:?}"),
                }
                // Any file of WAL shows that the place is there.
                let earlier = keys::wal("000000010000000000000001", Some(Method::Zstd));
                archive.store.put(&earlier, b"x", When::Absent).unwrap();
                assert!(
                    matches!(ask(&archive), Ok(Fetched::Absent(_))),
                    "{name}, {what}"
                );
            }
        }
    }

    #[test]
    fn a_segment_that_arrives_with_the_next_one_is_no_hole() {
        let key = |name: &str| keys::wal(name, Some(Method::Zstd));
        for (arriving, delivered) in [(vec![key(ASKED)], true), (vec![], false)] {
            let inner = MemStore::new();
            let next = key("000000010000000000000003");
            inner.put(&next, &compressed(), When::Absent).unwrap();
            inner
                .put(&keys::identity(), IDENTITY, When::Absent)
                .unwrap();
            let archive = archive(Racing {
                inner,
                arriving: Mutex::new(arriving),
            });
            let name = ASKED.parse().unwrap();
            let mut out = Vec::new();
            let got = archive.get_wal(name, &mut out, Expect::default(), HolePolicy::Abort);
            match delivered {
                true => {
                    assert!(matches!(got.unwrap(), Fetched::Delivered(bytes) if bytes == 1 << 20))
                }
                false => assert_eq!(got.unwrap_err().kind(), Kind::Hole),
            }
        }
    }
}
