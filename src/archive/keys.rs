//! The only file that spells object keys: WAL-E's layout 005, which other tools read.

use crate::codec::Method;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment, SegmentSize, TimelineId, WalName};
use crate::store::Key;
use std::fmt;
use std::str::FromStr;

/// Where WAL lies.
pub const WAL: &str = "wal_005/";
/// Where base backups lie.
pub const BACKUPS: &str = "basebackups_005/";
/// Where markers of knowingly skipped WAL lie.
pub const GAPS: &str = "gaps/";
const SENTINEL_SUFFIX: &str = "_backup_stop_sentinel.json";

/// A key made of parts that we spell ourselves.
fn key(text: String) -> Key {
    Key::new(text).expect("our own keys follow the rules")
}

/// The create-only object that names the one cluster of this prefix.
pub fn identity() -> Key {
    key("seawall.json".into())
}

/// An archived file of `pg_wal`; `None` is a raw object, which is read but never written.
pub fn wal(name: &str, method: Option<Method>) -> Key {
    key(match method {
        Some(method) => format!("{WAL}{name}.{}", method.extension()),
        None => format!("{WAL}{name}"),
    })
}

/// Where a `.partial` segment goes when another one with other bytes has its name: the first digits of its SHA-256
/// follow. Nothing in `wal_005/` is looked for under such a name.
pub fn partial_beside(segment: Segment, sha256: &str, method: Method) -> Key {
    let digits = &sha256[..8];
    wal(&format!("{segment}.partial.{digits}"), Some(method))
}

/// Whether a key is one that `partial_beside` makes, in whatever form.
pub fn is_beside(key: &Key) -> bool {
    let digits = |rest: &str| {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let (digits, ending) = rest.split_at_checked(8)?;
        Some(digits.bytes().all(hex) && ending.starts_with('.'))
    };
    let rest = key.as_str().split_once(".partial.");
    rest.and_then(|(_, rest)| digits(rest)).unwrap_or(false)
}

/// Takes a key below `wal_005/` apart: the WAL name, and the codec (`None`: raw).
pub fn parse_wal(key: &Key) -> Option<(WalName, Option<Method>)> {
    let file = key.as_str().strip_prefix(WAL)?;
    if let Ok(name) = file.parse() {
        return Some((name, None));
    }
    let (stem, extension) = file.rsplit_once('.')?;
    Some((stem.parse().ok()?, Some(Method::from_extension(extension)?)))
}

/// The file of `pg_wal` that a key below `wal_005/` holds in whatever form: other tools and releases have endings that
/// we cannot read, and what lies there is not absent. A growing segment is none yet.
pub fn wal_in_any_form(key: &Key) -> Option<WalName> {
    let file = key.as_str().strip_prefix(WAL)?;
    let dots = file.rmatch_indices('.').map(|(at, _)| at);
    std::iter::once(file.len()).chain(dots).find_map(|end| {
        let (name, ending) = file.split_at(end);
        name.parse()
            .ok()
            .filter(|_| !ending.starts_with(".growing"))
    })
}

/// What `wal-receive` has of a segment that is still being written. Always zstd, whose frames without content hold the
/// facts, so that there is one name for it and "replaced only by a longer one" means something.
pub fn growing(segment: Segment) -> Key {
    key(format!("{WAL}{segment}{GROWING}"))
}

const GROWING: &str = ".growing.zst";

/// The segment of such a key.
pub fn parse_growing(key: &Key) -> Option<Segment> {
    let file = key.as_str().strip_prefix(WAL)?;
    Segment::parse(file.strip_suffix(GROWING)?)
}

/// The codec of a `.partial` segment, under its own name or beside another one (`partial_beside`).
pub fn parse_partial(key: &Key, segment: Segment) -> Option<Option<Method>> {
    let begin = format!("{WAL}{segment}.partial");
    let rest = key.as_str().strip_prefix(&begin)?;
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let beside = |text: &str| text.len() == 8 && text.bytes().all(digit);
    match rest.split('.').skip(1).collect::<Vec<_>>()[..] {
        [] if rest.is_empty() => Some(None),
        [extension] => Method::from_extension(extension).map(Some),
        [digits, extension] if beside(digits) => Method::from_extension(extension).map(Some),
        _ => None,
    }
}

/// The marker of WAL that was knowingly skipped on a timeline, as `parse_gap` reads it.
pub fn gap(timeline: TimelineId, start: Lsn, end: Lsn) -> Key {
    key(format!(
        "{GAPS}{:08X}_{:016X}_{:016X}.json",
        timeline.0, start.0, end.0
    ))
}

/// Where the markers of one timeline begin.
pub fn gaps_of(timeline: TimelineId) -> String {
    format!("{GAPS}{:08X}_", timeline.0)
}

/// A marker of skipped WAL: `gaps/<timeline>_<start>_<end>.json`, positions in 16 hexadecimal digits.
pub fn parse_gap(key: &Key) -> Option<(TimelineId, Lsn, Lsn)> {
    let stem = key.as_str().strip_prefix(GAPS)?.strip_suffix(".json")?;
    let mut parts = stem.split('_');
    let timeline = TimelineId::parse_hex(parts.next()?)?;
    let start = u64::from_str_radix(parts.next()?, 16).ok()?;
    let end = u64::from_str_radix(parts.next()?, 16).ok()?;
    (parts.next().is_none() && start < end).then_some((timeline, Lsn(start), Lsn(end)))
}

/// A base backup's name: start segment and byte offset in it, `base_<24 hex>_<8 decimal>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    /// The segment with the start position.
    pub segment: Segment,
    /// The start position's offset in it.
    pub offset: u32,
}

impl BackupId {
    /// The name of a backup that started at `start`.
    pub fn new(timeline: TimelineId, start: crate::pg::Lsn, size: SegmentSize) -> BackupId {
        let segment = Segment::holding(timeline, start, size);
        BackupId {
            segment,
            offset: (start.0 % size.bytes()) as u32,
        }
    }

    /// Everything of the backup but the sentinel lies below this.
    pub fn directory(&self) -> String {
        format!("{BACKUPS}{self}/")
    }

    /// The object that makes the backup exist.
    pub fn sentinel(&self) -> Key {
        key(format!("{BACKUPS}{self}{SENTINEL_SUFFIX}"))
    }

    /// A tar part.
    pub fn part(&self, number: u32, method: Method) -> Key {
        key(format!(
            "{}tar_partitions/part_{number:08}.tar.{}",
            self.directory(),
            method.extension()
        ))
    }

    /// PostgreSQL's manifest, compressed.
    pub fn manifest(&self, method: Method) -> Key {
        key(format!(
            "{}backup_manifest.{}",
            self.directory(),
            method.extension()
        ))
    }

    /// What WAL-G wants to know, and the pin.
    pub fn metadata(&self) -> Key {
        key(format!("{}metadata.json", self.directory()))
    }

    /// Who writes this backup.
    pub fn owner(&self) -> Key {
        key(format!("{}owner.json", self.directory()))
    }

    /// The server's `version()`.
    pub fn extended_version(&self) -> Key {
        key(format!("{}extended_version.txt", self.directory()))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base_{}_{:08}", self.segment, self.offset)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(name: &str) -> Result<BackupId> {
        let parse = || {
            let (segment, offset) = name.strip_prefix("base_")?.split_once('_')?;
            let digits =
                (8..=10).contains(&offset.len()) && offset.bytes().all(|b| b.is_ascii_digit());
            let id = BackupId {
                segment: Segment::parse(segment)?,
                offset: digits.then(|| offset.parse().ok())??,
            };
            (id.to_string() == name).then_some(id)
        };
        parse().ok_or_else(|| {
            Error::new(Kind::Usage, format!("\"{name}\" is not the name of a base backup"))
                .hint("Names look like base_00000001000000000000000A_00000040; seawall backup-list shows them. LATEST is the newest.")
        })
    }
}

/// What a key below `basebackups_005/` belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum BackupKey<'a> {
    /// A sentinel, with the backup's name.
    Sentinel(&'a str),
    /// Something in the backup's directory, with the backup's name.
    Inside(&'a str),
}

/// Takes a key below `basebackups_005/` apart.
pub fn parse_backup(key: &Key) -> Option<BackupKey<'_>> {
    let rest = key.as_str().strip_prefix(BACKUPS)?;
    match rest.split_once('/') {
        Some((name, _)) => Some(BackupKey::Inside(name)),
        None => rest.strip_suffix(SENTINEL_SUFFIX).map(BackupKey::Sentinel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_name_is_start_segment_and_offset() {
        let id = BackupId::new(
            TimelineId(1),
            "0/2000028".parse().unwrap(),
            SegmentSize::DEFAULT,
        );
        assert_eq!(id.to_string(), "base_000000010000000000000002_00000040");
        assert_eq!(id.to_string().parse::<BackupId>().unwrap(), id);
        let wide = BackupId {
            offset: 1_000_000_000,
            ..id
        };
        assert_eq!(wide.to_string().parse::<BackupId>().unwrap(), wide);
        for name in [
            "",
            "LATEST",
            "base_",
            "base_000000010000000000000002",
            "base_000000010000000000000002_40",
            "base_000000010000000000000002_000000040",
            "base_000000010000000000000002_0000004x",
            "base_000000010000000000000002_00000040/..",
            "base_000000010000000000000002_D_000000010000000000000001",
        ] {
            assert_eq!(
                name.parse::<BackupId>().unwrap_err().kind(),
                Kind::Usage,
                "{name}"
            );
        }
    }

    #[test]
    fn keys_come_apart_as_they_were_made() {
        let name: WalName = "00000001000000000000000A.partial".parse().unwrap();
        for method in [
            None,
            Some(Method::Zstd),
            Some(Method::Gzip),
            Some(Method::Lz4),
        ] {
            assert_eq!(
                parse_wal(&wal(&name.to_string(), method)),
                Some((name, method))
            );
        }
        assert_eq!(
            parse_wal(&key("wal_005/00000001000000000000000A.zst.tmp".into())),
            None
        );
        assert_eq!(
            parse_wal(&key("wal_005/00000001000000000000000A.growing.zst".into())),
            None
        );

        for (ending, form) in [
            ("", Some("")),
            (".zst", Some("")),
            (".lzo", Some("")),
            (".zst.aes", Some("")),
            (".partial.br", Some(".partial")),
            (".partial.0123abcd.zst", Some(".partial")),
            (".00000028.backup.lzo", Some(".00000028.backup")),
            (".growing.zst", None),
            ("_delta.lz4", None),
        ] {
            let segment = "00000001000000000000000A";
            let file = key(format!("wal_005/{segment}{ending}"));
            let expected = form.map(|form| format!("{segment}{form}").parse().unwrap());
            assert_eq!(wal_in_any_form(&file), expected, "{ending}");
            assert_eq!(is_beside(&file), ending.contains("0123abcd"), "{ending}");
        }

        let segment = Segment::parse("00000001000000000000000A").unwrap();
        assert_eq!(parse_growing(&growing(segment)), Some(segment));
        assert_eq!(wal_in_any_form(&growing(segment)), None);
        for (ending, method) in [
            (".partial", Some(None)),
            (".partial.lz4", Some(Some(Method::Lz4))),
            (".partial.0123abcd.zst", Some(Some(Method::Zstd))),
            (".partial.0123abcd", None),
            (".partial.br", None),
            (".partial.zst.aes", None),
            (".growing.zst", None),
            ("", None),
        ] {
            let file = key(format!("wal_005/{segment}{ending}"));
            assert_eq!(parse_partial(&file, segment), method, "{ending}");
        }

        let id: BackupId = "base_000000010000000000000002_00000040".parse().unwrap();
        assert_eq!(
            parse_backup(&id.sentinel()),
            Some(BackupKey::Sentinel(&id.to_string()))
        );
        assert_eq!(
            parse_backup(&id.part(7, Method::Zstd)),
            Some(BackupKey::Inside(&id.to_string()))
        );
        assert_eq!(
            id.part(7, Method::Zstd).as_str(),
            "basebackups_005/base_000000010000000000000002_00000040/tar_partitions/part_00000007.tar.zst"
        );
        assert_eq!(
            parse_gap(&key(
                "gaps/00000001_0000000003000000_0000000005000000.json".into()
            )),
            Some((TimelineId(1), Lsn(0x300_0000), Lsn(0x500_0000)))
        );
        let marker = gap(TimelineId(1), Lsn(0x300_0000), Lsn(0x500_0000));
        assert_eq!(
            marker.as_str(),
            "gaps/00000001_0000000003000000_0000000005000000.json"
        );
        assert!(marker.as_str().starts_with(&gaps_of(TimelineId(1))));
        assert_eq!(
            parse_gap(&key(
                "gaps/00000001_0000000005000000_0000000003000000.json".into()
            )),
            None
        );
    }
}
