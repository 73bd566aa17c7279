//! The spool: the local directory into which `wal-receive` writes WAL, and from which it is uploaded. Crash-critical.
//!
//! The directory is flat and is the whole state. Its names:
//!
//! ```text
//! <24 hex>                a segment, whole and durable: its bytes were synced before it got this name
//! <24 hex>.partial        the segment being written, of full length from its first day; behind what was received
//!                         come zeros, or what an earlier life received. The last one of a timeline that was left stays
//! <24 hex>.partial.tmp    a segment file in the making; nothing in it was ever acknowledged
//! <8 hex>.history         a timeline's ancestors, stored before any segment of that timeline
//! <24 hex>.done           empty: the archive acknowledged this segment
//! ```
//!
//! What holds after kill -9 and after power loss at any moment (`sim` checks it from outside, after every crash):
//! * W1 flush LSN ≤ write LSN, and while a timeline is being written both only grow.
//! * W2 every byte below a flush LSN that was reported is in the spool or in the archive, and recovery finds it there:
//!   the newest timeline that has a file for a segment is asked first, so that file must not be the emptier one.
//! * W3 a file under its final name is whole and durable.
//! * W4 resuming asks the server only for WAL that it still has, and leaves nothing out.
//! * W5 what is `.done` is in the archive, byte for byte; a segment goes only then; a history file comes before it.
//! * W6 a file named `.partial` has its full length, so that writing it needs no space and changes no metadata.
//!
//! `writer` writes segments into files that `segment_file` makes, `resume` finds out where to go on, `queue` says what waits for upload and removes it
//! afterwards. One process at a time: the caller holds the directory's lock.

pub mod owner;
pub mod queue;
pub mod resume;
mod segment_file;
#[cfg(test)]
mod sim;
pub mod writer;

use crate::disk::durable::{NewFile, Publish};
use crate::disk::{Fs, FsFile};
use crate::error::{Error, Kind, Result};
use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::pg::{Segment, TimelineId};
use std::ffi::OsStr;
use std::io;
use std::path::Path;

/// What a name in the directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Whole(Segment),
    Partial(Segment),
    Unfinished(Segment),
    Done(Segment),
    History(TimelineId),
    /// A segment in a form that pg_receivewal writes and we do not.
    Compressed,
    /// Not ours; left alone.
    Foreign,
}

impl Name {
    fn parse(name: &OsStr) -> Name {
        let Some((stem, rest)) = name.to_str().map(|n| n.split_once('.').unwrap_or((n, ""))) else {
            return Name::Foreign;
        };
        match (Segment::parse(stem), TimelineId::parse_hex(stem), rest) {
            (Some(segment), _, "") => Name::Whole(segment),
            (Some(segment), _, "partial") => Name::Partial(segment),
            (Some(segment), _, "partial.tmp") => Name::Unfinished(segment),
            (Some(segment), _, "done") => Name::Done(segment),
            (Some(_), _, "gz" | "lz4" | "zst" | "gz.partial" | "lz4.partial" | "zst.partial") => {
                Name::Compressed
            }
            (_, Some(timeline), "history") => Name::History(timeline),
            _ => Name::Foreign,
        }
    }
}

/// The file of a segment that is being written.
pub fn partial_name(segment: Segment) -> String {
    format!("{segment}.partial")
}

/// The file of a segment in the making.
fn unfinished_name(segment: Segment) -> String {
    format!("{segment}.partial.tmp")
}

/// The mark of a segment that the archive has.
fn done_name(segment: Segment) -> String {
    format!("{segment}.done")
}

/// Stores a timeline's history as the server sent it; durable when this answers Ok. The same bytes may be stored
/// again; other bytes under this name are `Kind::Mismatch`: two servers made this timeline.
pub fn store_history<F: Fs>(fs: &F, timeline: TimelineId, text: &[u8]) -> Result<()> {
    let name = timeline.history_name();
    let names = fs.list().map_err(|e| failed("list", "names", e))?;
    // One that is there needs no room.
    if !names.iter().any(|there| there == name.as_str()) {
        let file = NewFile::create_in(fs, Path::new(&name))?;
        file.write_all_at(0, text)?;
        match file.publish(Publish::Absent) {
            Err(e) if e.kind() == Kind::Exists => {}
            other => return other,
        }
    }
    if read_history(fs, timeline)? != text {
        return Err(Error::new(
            Kind::Mismatch,
            format!("the server's {name} differs from the one in the spool directory"),
        )
        .detail("Two servers were promoted to the same timeline.")
        .hint(
            "Find out which of them the archive follows. For the other one use another archive prefix and an \
             empty spool directory.",
        ));
    }
    // Whoever wrote it may have died before its name was durable.
    fs.sync_dir().map_err(|e| failed("sync", "directory", e))
}

/// Reads a stored history file.
pub fn read_history<F: Fs>(fs: &F, timeline: TimelineId) -> Result<Vec<u8>> {
    let name = timeline.history_name();
    let read = || -> io::Result<Option<Vec<u8>>> {
        let file = fs.open(name.as_ref())?;
        let len = file.len()?;
        if len > SMALL_FILE_BYTES_MAX {
            return Ok(None);
        }
        let mut text = vec![0; len as usize];
        file.read_at(0, &mut text)?;
        Ok(Some(text))
    };
    read()
        .map_err(|e| failed("read", &name, e))?
        .ok_or_else(|| Error::new(Kind::Corrupt, format!("{name} in the spool is too large")))
}

/// `could not <verb> <name> in the spool`.
fn failed(verb: &str, name: &str, cause: io::Error) -> Error {
    let error = Error::io(format!("could not {verb} {name} in the spool"), cause);
    match error.kind() {
        Kind::Full => error.hint("Free space on the file system of the spool directory."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDir;
    use crate::disk::sim::{SimFs, Weather};

    #[test]
    fn a_history_that_is_there_needs_no_room() {
        let fs = SimFs::default();
        let store = |text: &[u8]| store_history(&fs, TimelineId(2), text);
        store(b"1\t0/4800\tx\n").unwrap();
        let full = Weather {
            full: 100,
            ..Weather::default()
        };
        fs.set_weather(full, 1);
        store(b"1\t0/4800\tx\n").unwrap();
        let other = store(b"1\t0/5000\tx\n").unwrap_err();
        assert_eq!(other.kind(), Kind::Mismatch);
        let more = store_history(&fs, TimelineId(3), b"2\t0/6000\tx\n");
        assert_eq!(more.unwrap_err().kind(), Kind::Full);
    }

    #[test]
    fn names_are_told_apart() {
        let segment = Segment::parse("0000000200000000000000A0").unwrap();
        let cases = [
            ("0000000200000000000000A0", Name::Whole(segment)),
            ("0000000200000000000000A0.partial", Name::Partial(segment)),
            (
                "0000000200000000000000A0.partial.tmp",
                Name::Unfinished(segment),
            ),
            ("0000000200000000000000A0.done", Name::Done(segment)),
            ("00000002.history", Name::History(TimelineId(2))),
            ("0000000200000000000000A0.gz", Name::Compressed),
            ("0000000200000000000000A0.lz4.partial", Name::Compressed),
            ("0000000200000000000000a0", Name::Foreign),
            ("0000000200000000000000A0.backup", Name::Foreign),
            ("00000002.history.tmp", Name::Foreign),
            ("seawall.lock", Name::Foreign),
            ("archive_status", Name::Foreign),
            ("", Name::Foreign),
        ];
        for (name, expected) in cases {
            assert_eq!(Name::parse(name.as_ref()), expected, "{name}");
        }
        assert_eq!(
            Name::parse(partial_name(segment).as_ref()),
            Name::Partial(segment)
        );
        assert_eq!(
            Name::parse(unfinished_name(segment).as_ref()),
            Name::Unfinished(segment)
        );
        assert_eq!(
            Name::parse(done_name(segment).as_ref()),
            Name::Done(segment)
        );
    }

    #[test]
    fn a_history_file_is_stored_once_and_never_changed() {
        let fs = SimFs::default();
        let text = b"1\t0/8100\tno recovery target specified\n";
        store_history(&fs, TimelineId(2), text).unwrap();
        store_history(&fs, TimelineId(2), text).unwrap();
        assert_eq!(read_history(&fs, TimelineId(2)).unwrap(), text);
        let other = store_history(&fs, TimelineId(2), b"1\t0/8200\tx\n").unwrap_err();
        assert_eq!(other.kind(), Kind::Mismatch);
        assert!(other.message().contains("00000002.history"), "{other}");
        assert!(other.hint_text().is_some());
        assert_eq!(fs.names(), ["00000002.history"], "no temporary file stays");
        assert_eq!(fs.read("00000002.history").unwrap(), text);
        let absent = read_history(&fs, TimelineId(3)).unwrap_err();
        assert_eq!(absent.kind(), Kind::Missing);
    }

    #[test]
    fn a_real_directory_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let fs = OsDir::open(dir.path(), 0o600).unwrap();
        store_history(&fs, TimelineId(2), b"1\t0/8100\tx\n").unwrap();
        store_history(&fs, TimelineId(2), b"1\t0/8100\tx\n").unwrap();
        assert_eq!(read_history(&fs, TimelineId(2)).unwrap(), b"1\t0/8100\tx\n");
        std::fs::write(dir.path().join("00000003.history"), vec![0; 2 << 20]).unwrap();
        let large = read_history(&fs, TimelineId(3)).unwrap_err();
        assert_eq!(large.kind(), Kind::Corrupt);
    }
}
