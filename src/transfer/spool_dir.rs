//! The directory of a `wal-receive` or pg_receivewal, or a copy of one, as a recovery finds it: read, never changed.
//! Names are those of `pg_wal`, with `.partial` for the segment that was being received.

use crate::disk::os::OsDir;
use crate::disk::{self, Fs};
use crate::error::{Error, Kind, Result};
use crate::pg::{Segment, TimelineHistory, TimelineId, WalName};
use std::path::{Path, PathBuf};

/// What lies in it.
pub(super) struct SpoolDir {
    path: PathBuf,
    names: Vec<String>,
}

/// Endings that pg_receivewal gives to segments that it compresses.
const COMPRESSED: [&str; 2] = [".gz", ".lz4"];

/// What a receiver has there at any time, between two segments too.
const MARKS: [&str; 2] = ["seawall.lock", "seawall-status.json"];

impl SpoolDir {
    /// Lists it. A directory that is not there, or in which no receiver ever was, may be one that is not mounted: what
    /// it does not have proves nothing (`Kind::Unavailable`).
    pub(super) fn read(path: &Path) -> Result<SpoolDir> {
        let unavailable = |e: Error| match e.kind() {
            Kind::Missing => e.with_kind(Kind::Unavailable),
            _ => e,
        };
        let names = OsDir::open(path, 0o600).map_err(unavailable)?.list();
        let names = names.map_err(|e| Error::io(format!("could not list {path:?}"), e))?;
        let names: Vec<String> = names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| MARKS.contains(&name.as_str()) || wal_of(name).is_some())
            .collect();
        if names.is_empty() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("{path:?} holds nothing of a receiver"),
            )
            .detail("What is not in it may be anywhere.")
            .hint("Check that the directory is mounted and that --spool is right."));
        }
        let path = path.to_path_buf();
        Ok(SpoolDir { path, names })
    }

    /// The file of that name, if it is there.
    pub(super) fn file(&self, name: WalName) -> Option<PathBuf> {
        let name = name.to_string();
        let there = self.names.binary_search(&name).is_ok();
        there.then(|| self.path.join(name))
    }

    /// A segment that is there in a form that we do not read is not absent.
    pub(super) fn refuse_compressed(&self, segment: Segment) -> Result<()> {
        let stem = segment.to_string();
        let compressed = |name: &&String| {
            name.strip_prefix(&stem)
                .is_some_and(|rest| COMPRESSED.iter().any(|ending| rest.starts_with(ending)))
        };
        match self.names.iter().find(compressed) {
            None => Ok(()),
            Some(name) => Err(Error::new(
                Kind::Refused,
                format!("{:?} is compressed", self.path.join(name)),
            )
            .hint("Decompress it beside it: gzip or lz4, with -d and -k.")),
        }
    }

    /// The history files.
    pub(super) fn histories(&self) -> Result<Vec<TimelineHistory>> {
        let names = self.names.iter().filter_map(|name| wal_of(name));
        let timelines = names.filter_map(|name| match name {
            WalName::History(timeline) => Some(timeline),
            _ => None,
        });
        timelines.map(|timeline| self.history(timeline)).collect()
    }

    fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        let path = self.path.join(timeline.history_name());
        let bytes = disk::read_small(&path)?;
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes))
            .map_err(|e| e.context(format!("{path:?} cannot be used")))
    }

    /// A later segment of the same timeline, in whatever form.
    pub(super) fn beyond(&self, segment: Segment) -> Option<PathBuf> {
        let later = |name: &&String| match wal_of(name) {
            Some(WalName::Segment(there) | WalName::Partial(there)) => {
                there.timeline == segment.timeline && there > segment
            }
            _ => false,
        };
        self.names
            .iter()
            .find(later)
            .map(|name| self.path.join(name))
    }
}

/// What a file of a receiver is, whole or not, compressed or not.
fn wal_of(name: &str) -> Option<WalName> {
    let plain = COMPRESSED
        .iter()
        .find_map(|ending| name.split_once(ending))
        .filter(|(_, rest)| ["", ".partial"].contains(rest))
        .map_or(name, |(stem, _)| stem);
    plain.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_receiver_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| SpoolDir::read(path).err().map(|e| e.kind());
        assert_eq!(refused(&dir.path().join("absent")), Some(Kind::Unavailable));
        assert_eq!(refused(dir.path()), Some(Kind::Unavailable));
        std::fs::write(dir.path().join("lost+found"), "").unwrap();
        assert_eq!(refused(dir.path()), Some(Kind::Unavailable));
        std::fs::write(dir.path().join("seawall.lock"), "").unwrap();
        assert_eq!(refused(dir.path()), None);
    }

    #[test]
    fn names_are_known_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let segment = |digit: u8| Segment::parse(&format!("00000001000000000000000{digit}"));
        let names = [
            "00000002.history",
            "000000010000000000000001",
            "000000010000000000000001.done",
            "000000010000000000000002.partial",
            "000000010000000000000003.gz",
            "000000010000000000000005.lz4.partial",
            "000000020000000000000009",
            "000000010000000000000008.partial.tmp",
        ];
        for name in names {
            std::fs::write(dir.path().join(name), "1\t0/1000060\tx\n").unwrap();
        }
        let spool = SpoolDir::read(dir.path()).unwrap();
        let [first, second, third, fourth, fifth] =
            [1, 2, 3, 4, 5].map(|digit| segment(digit).unwrap());
        assert!(spool.file(WalName::Segment(first)).is_some());
        assert!(spool.file(WalName::Segment(second)).is_none());
        assert!(spool.file(WalName::Partial(second)).is_some());
        for (segment, compressed) in [
            (second, false),
            (third, true),
            (fourth, false),
            (fifth, true),
        ] {
            let refused = spool.refuse_compressed(segment).err().map(|e| e.kind());
            assert_eq!(refused, compressed.then_some(Kind::Refused), "{segment}");
        }
        let beyond = |segment| {
            let path = spool.beyond(segment)?;
            Some(path.file_name()?.to_str()?.to_string())
        };
        assert_eq!(beyond(first).as_deref(), Some(names[3]));
        assert_eq!(beyond(fourth).as_deref(), Some(names[5]));
        assert_eq!(beyond(fifth), None);
        let histories = spool.histories().unwrap();
        assert_eq!(histories[0].timeline, TimelineId(2));
        std::fs::write(dir.path().join("00000002.history"), "x").unwrap();
        assert_eq!(spool.histories().unwrap_err().kind(), Kind::Corrupt);
    }
}
