//! Is this file what its name says? Asked of the source before it is archived, and of the delivery before it
//! gets its final name.

use crate::error::{Error, Kind, Result};
use crate::pg::label::BackupLabel;
use crate::pg::wal_header::{HEADER_BYTES, SegmentHeader};
use crate::pg::{Segment, SegmentSize, SystemId, TimelineHistory, WalName};
use std::borrow::Cow;

/// What is known of the cluster that the file must belong to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expect {
    /// The system identifier, if it is known.
    pub system_id: Option<SystemId>,
    /// The segment size, if it is known.
    pub segment_size: Option<SegmentSize>,
}

/// History files have a line per timeline switch; this is thousands of switches.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Looks at a file while it passes by: keeps its beginning, counts the rest.
pub struct Inspector {
    name: WalName,
    expect: Expect,
    head: Vec<u8>,
    size: u64,
}

impl Inspector {
    /// Nothing has passed yet.
    pub fn new(name: WalName, expect: Expect) -> Inspector {
        Inspector {
            name,
            expect,
            head: Vec::new(),
            size: 0,
        }
    }

    /// How many bytes from the beginning decide.
    pub fn head_bytes(&self) -> usize {
        match self.name {
            WalName::Segment(_) | WalName::Partial(_) => HEADER_BYTES,
            WalName::History(_) | WalName::BackupHistory(..) => TEXT_BYTES_MAX,
        }
    }

    /// The next bytes.
    pub fn pass(&mut self, bytes: &[u8]) {
        let room = self.head_bytes().saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
        self.size += bytes.len() as u64;
    }

    /// Of what passed, the beginning that decides.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Bytes that passed.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Judges a file of `size` bytes by what passed. `what` names it in messages, as in `file "pg_wal/…"`.
    /// Answers the header of a segment, `None` for the text files.
    pub fn judge(&self, size: u64, what: &str) -> Result<Option<SegmentHeader>> {
        let judged = match self.name {
            WalName::Segment(segment) | WalName::Partial(segment) => {
                self.segment(size, segment).map(Some)
            }
            WalName::History(timeline) => self.text(size).and_then(|text| {
                match TimelineHistory::parse(timeline, &text)?
                    .ancestors
                    .is_empty()
                {
                    true => Err(Error::new(
                        Kind::Corrupt,
                        "it is a timeline history without ancestors",
                    )),
                    false => Ok(None),
                }
            }),
            WalName::BackupHistory(segment, offset) => self
                .text(size)
                .and_then(|text| self.backup_history(&text, segment, offset))
                .map(|()| None),
        };
        judged.map_err(|e| {
            let name = self.name;
            e.context(format!("{what} is not what its name {name} says"))
        })
    }

    fn segment(&self, size: u64, segment: Segment) -> Result<SegmentHeader> {
        let header = SegmentHeader::parse(&self.head)?;
        for warning in header.check(segment, self.expect.system_id)? {
            log::warn!("{warning}");
        }
        let expected = self
            .expect
            .segment_size
            .unwrap_or(header.segment_size)
            .bytes();
        if header.segment_size.bytes() != expected {
            return Err(
                Error::new(Kind::Mismatch, "its header names another segment size").detail(
                    format!(
                        "The header says {} bytes, this cluster has {expected} bytes.",
                        header.segment_size.bytes()
                    ),
                ),
            );
        }
        if size != expected {
            return Err(Error::new(
                Kind::Corrupt,
                format!("it has {size} bytes, a segment here has {expected}"),
            ));
        }
        Ok(header)
    }

    /// The name says where the backup began: in which segment, and where in it.
    fn backup_history(&self, text: &str, segment: Segment, offset: u32) -> Result<()> {
        let label = BackupLabel::parse(text)?;
        // Where the segment size is not known, the bits that are an offset in every size decide.
        let size = self.expect.segment_size.unwrap_or(SegmentSize::SMALLEST);
        let in_segment = |position: u64| position % size.bytes();
        let same_offset = match self.expect.segment_size {
            Some(_) => in_segment(label.start.0) == u64::from(offset),
            None => in_segment(label.start.0) == in_segment(u64::from(offset)),
        };
        if label.segment != segment || !same_offset {
            return Err(
                Error::new(Kind::Corrupt, "it is the history of another backup").detail(format!(
                    "It says that the backup began at {} in segment {}.",
                    label.start, label.segment
                )),
            );
        }
        match label.stop {
            Some(_) => Ok(()),
            None => Err(
                Error::new(Kind::Corrupt, "it does not say where the backup ended").detail(
                    "It is a backup_label, not the history of a backup that came to its end.",
                ),
            ),
        }
    }

    /// Restore points and backups have names in the encoding of some database, or in none: what is not UTF-8 is
    /// replaced for reading, and stays as it is in what is archived and delivered.
    fn text(&self, size: u64) -> Result<Cow<'_, str>> {
        if size == 0 || size != self.head.len() as u64 {
            return Err(Error::new(Kind::Corrupt, format!("it has {size} bytes")));
        }
        Ok(String::from_utf8_lossy(&self.head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(name: &str, bytes: &[u8], segment_size: Option<SegmentSize>) -> Option<String> {
        let expect = Expect {
            system_id: None,
            segment_size,
        };
        let mut inspector = Inspector::new(name.parse().unwrap(), expect);
        inspector.pass(bytes);
        let judged = inspector.judge(bytes.len() as u64, "file \"x\"");
        judged.err().map(|e| {
            assert_eq!(e.kind(), Kind::Corrupt);
            e.one_line()
        })
    }

    /// As PostgreSQL 15 writes it at the end of a backup, with the label in LATIN1.
    const HISTORY: &[u8] = b"START WAL LOCATION: 0/7000028 (file 000000010000000000000007)\n\
        STOP WAL LOCATION: 0/7000130 (file 000000010000000000000007)\n\
        CHECKPOINT LOCATION: 0/7000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-27 09:12:00 UTC\nLABEL: Sauvegarde \xe9t\xe9\nSTART TIMELINE: 1\n\
        STOP TIME: 2026-11-27 09:12:01 UTC\nSTOP TIMELINE: 1\n";

    fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = HISTORY.windows(from.len()).position(|w| w == from).unwrap();
        [&HISTORY[..at], to, &HISTORY[at + from.len()..]].concat()
    }

    #[test]
    fn text_of_any_encoding_is_fine() {
        let histories: [&[u8]; 2] = [
            b"1\t0/C000B8\tat restore point \"caf\xe9\"\n",
            b"1\t0/C000B8\tx\n2\t0/B000B8\tbefore \xff\xfe\n",
        ];
        for text in histories {
            assert_eq!(judge("00000003.history", text, None), None);
        }
        let name = "000000010000000000000007.00000028.backup";
        let forged =
            b"x\nSTART TIMELINE: 7\nSTART WAL LOCATION: 0/1 (file 000000070000000000000001)";
        for text in [HISTORY.to_vec(), replaced(b"Sauvegarde \xe9t\xe9", forged)] {
            assert_eq!(judge(name, &text, Some(SegmentSize::DEFAULT)), None);
        }
    }

    #[test]
    fn a_backup_history_fits_its_name_and_has_an_end() {
        let size = Some(SegmentSize::DEFAULT);
        let name = "000000010000000000000007.00000028.backup";
        assert_eq!(judge(name, HISTORY, None), None);
        // Without the segment size only the lower bits of an offset can be compared.
        let (low, high) = (
            "000000010000000000000007.000000FF.backup",
            "000000010000000000000007.00300028.backup",
        );
        assert_eq!(judge(high, HISTORY, None), None);
        type Row<'a> = (&'a str, &'a str, Vec<u8>, Option<SegmentSize>, &'a str);
        let rows: [Row<'_>; 6] = [
            ("offset", low, HISTORY.to_vec(), size, "another backup"),
            ("offset", low, HISTORY.to_vec(), None, "another backup"),
            (
                "higher offset",
                high,
                HISTORY.to_vec(),
                size,
                "another backup",
            ),
            (
                "segment",
                "000000010000000000000008.00000028.backup",
                HISTORY.to_vec(),
                size,
                "another backup",
            ),
            (
                "label",
                name,
                replaced(b"STOP WAL LOCATION", b"WAL"),
                size,
                "not say where the backup ended",
            ),
            (
                "forged end",
                name,
                [
                    &replaced(b"STOP WAL LOCATION", b"WAL")[..],
                    b"STOP WAL LOCATION: 0/7000130 (file 000000010000000000000007)\n",
                ]
                .concat(),
                size,
                "not say where the backup ended",
            ),
        ];
        for (what, name, text, size, expected) in rows {
            let said = judge(name, &text, size).unwrap_or_default();
            assert!(said.contains(expected), "{what}: {said}");
        }
    }
}
