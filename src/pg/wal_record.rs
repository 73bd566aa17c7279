//! Record: single records taken out of raw WAL, to tell whose WAL it is. Nothing is believed before its CRC-32C fits.
//!
//! The layout (PostgreSQL, `xlogrecord.h`, `XLogRecord`, little endian): total length u32, transaction u32, previous
//! record u64, info u8, resource manager u8, 2 bytes of padding, CRC u32 over what follows and then over the header
//! before it; behind the header what the record is about, here one block of main data. Records begin at multiples of
//! 8 and go on behind the header of the next page. What the two records say is in `pg_control.h`, the same from 13 on.

use super::{Lsn, SegmentSize, TimelineId};
use crate::error::{Error, Kind, Result};

pub(super) const HEADER_BYTES: usize = 24;
/// Where the header has the CRC-32C: of the body, and of the header up to here.
pub(super) const CRC_AT: usize = 20;
/// Before the main data: that it is short (`XLR_BLOCK_ID_DATA_SHORT`), and its length.
const DATA_HEADER_BYTES: usize = 2;
const DATA_SHORT: u8 = 255;
/// The longest record that is read here; a checkpoint has 114 bytes.
pub const RECORD_BYTES_MAX: usize = 1024;
/// What the end of a backup takes up: its position in 34 bytes, padded to 8.
const BACKUP_END_BYTES: u64 = 40;

/// The resource manager of WAL itself, `RM_XLOG_ID`, and its records by the upper half of the info byte.
const RM_XLOG: u8 = 0;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const BACKUP_END: u8 = 0x50;

/// How WAL is cut: every page begins with a header, the first one of a segment with a longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of a WAL page.
    pub page_bytes: u64,
    /// Size of a segment.
    pub segment_size: SegmentSize,
}

impl Layout {
    pub(super) fn header_bytes(self, page: Lsn) -> u64 {
        match page.0 % self.segment_size.bytes() {
            0 => 40,
            _ => 24,
        }
    }

    /// The position behind `bytes` of records that begin at `from`.
    pub fn behind(self, from: Lsn, bytes: u64) -> Lsn {
        let room = self.page_bytes - from.0 % self.page_bytes;
        if bytes <= room {
            return Lsn(from.0 + bytes);
        }
        let page = Lsn(from.0 + room);
        self.behind(Lsn(page.0 + self.header_bytes(page)), bytes - room)
    }

    /// The position before `bytes` of records that end at `end`; `None` if there is no such place.
    pub fn before(self, end: Lsn, bytes: u64) -> Option<Lsn> {
        let in_page = match end.0 % self.page_bytes {
            0 => self.page_bytes,
            part => part,
        };
        let page = Lsn(end.0.checked_sub(in_page)?);
        let room = in_page.saturating_sub(self.header_bytes(page));
        if bytes <= room {
            return Some(Lsn(end.0 - bytes));
        }
        self.before(page, bytes - room)
    }

    /// Where the record stands that ends a backup at `stop`.
    pub fn backup_end(self, stop: Lsn) -> Option<Lsn> {
        self.before(stop, BACKUP_END_BYTES)
    }
}

/// A record whose CRC fits, with main data alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    manager: u8,
    info: u8,
    data: Vec<u8>,
}

impl Record {
    /// Takes the record at `at` out of `wal`, the raw bytes from there on. `None`: they end before the record does.
    /// `Kind::Corrupt`: there is no such record.
    pub fn parse(at: Lsn, wal: &[u8], layout: Layout) -> Result<Option<Record>> {
        let Some(header) = without_page_headers(at, wal, HEADER_BYTES, layout) else {
            return Ok(None);
        };
        let total = u32_at(&header, 0) as usize;
        if !(HEADER_BYTES + DATA_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&total) {
            return Err(none_at(at));
        }
        let Some(bytes) = without_page_headers(at, wal, total, layout) else {
            return Ok(None);
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[HEADER_BYTES..]), &bytes[..CRC_AT]);
        let (what, data) = bytes[HEADER_BYTES..].split_at(DATA_HEADER_BYTES);
        let plain = u8::try_from(data.len()).is_ok_and(|length| what == [DATA_SHORT, length]);
        if crc != u32_at(&bytes, CRC_AT) || !plain {
            return Err(none_at(at));
        }
        Ok(Some(Record {
            manager: bytes[17],
            info: bytes[16] & 0xF0,
            data: data.to_vec(),
        }))
    }

    /// Where replay from this checkpoint begins, and on which timeline it was made; `None` if it is no checkpoint.
    pub fn checkpoint(&self) -> Option<(Lsn, TimelineId)> {
        let is_one = [CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE].contains(&self.info);
        (self.manager == RM_XLOG && is_one && self.data.len() >= 12).then(|| {
            (
                Lsn(u64_at(&self.data, 0)),
                TimelineId(u32_at(&self.data, 8)),
            )
        })
    }

    /// The start of the backup that ended here; `None` if none did.
    pub fn backup_end(&self) -> Option<Lsn> {
        (self.manager == RM_XLOG && self.info == BACKUP_END && self.data.len() == 8)
            .then(|| Lsn(u64_at(&self.data, 0)))
    }
}

/// `count` bytes of records from `at` on; `None` if `wal` ends before.
fn without_page_headers(at: Lsn, wal: &[u8], count: usize, layout: Layout) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(count);
    let (mut from, mut rest) = (at, wal);
    loop {
        let room = (layout.page_bytes - from.0 % layout.page_bytes) as usize;
        let wanted = room.min(count - bytes.len());
        bytes.extend_from_slice(rest.get(..wanted)?);
        if bytes.len() == count {
            return Some(bytes);
        }
        let page = Lsn(from.0 + room as u64);
        let header = layout.header_bytes(page);
        from = Lsn(page.0 + header);
        rest = rest.get(room + header as usize..)?;
    }
}

fn none_at(at: Lsn) -> Error {
    Error::new(Kind::Corrupt, format!("there is no such record at {at}"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes[at..at + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a backup on a cluster with 1 MiB segments: its checkpoint, 120 bytes, and its end, 40 bytes.
    const REAL: [(&[u8], &str, &str, &str); 6] = [
        (
            include_bytes!("../../tests/fixtures/wal_records/13"),
            "0/700028",
            "0/700060",
            "0/700100",
        ),
        (
            include_bytes!("../../tests/fixtures/wal_records/14"),
            "0/900028",
            "0/900060",
            "0/900100",
        ),
        (
            include_bytes!("../../tests/fixtures/wal_records/15"),
            "0/700028",
            "0/700060",
            "0/700100",
        ),
        (
            include_bytes!("../../tests/fixtures/wal_records/16"),
            "0/600028",
            "0/600060",
            "0/600100",
        ),
        (
            include_bytes!("../../tests/fixtures/wal_records/17"),
            "0/600028",
            "0/600080",
            "0/600120",
        ),
        (
            include_bytes!("../../tests/fixtures/wal_records/18"),
            "0/900028",
            "0/900080",
            "0/900120",
        ),
    ];

    fn layout() -> Layout {
        Layout {
            page_bytes: 8192,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        }
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn real_records_of_every_version() {
        for (bytes, start, checkpoint, stop) in REAL {
            let (first, second) = bytes.split_at(120);
            let record = Record::parse(lsn(checkpoint), first, layout()).unwrap();
            let record = record.unwrap();
            assert_eq!(record.checkpoint(), Some((lsn(start), TimelineId(1))));
            assert_eq!(record.backup_end(), None);

            let end = layout().backup_end(lsn(stop)).unwrap();
            let record = Record::parse(end, second, layout()).unwrap().unwrap();
            assert_eq!(record.backup_end(), Some(lsn(start)));
            assert_eq!(record.checkpoint(), None);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_and_a_cut_is_told_apart() {
        let (bytes, ..) = REAL[2];
        let at = lsn("0/700060");
        for bit in 0..114 * 8 {
            let mut bad = bytes[..120].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A greater length may look as if bytes were missing.
            let parsed = Record::parse(at, &bad, layout());
            assert!(!matches!(parsed, Ok(Some(_))), "bit {bit}");
        }
        for cut in 0..114 {
            assert_eq!(Record::parse(at, &bytes[..cut], layout()).unwrap(), None);
        }
        assert!(Record::parse(at, &[0; 8192], layout()).is_err());
    }

    #[test]
    fn records_go_on_behind_page_headers() {
        let (bytes, ..) = REAL[4];
        // Page borders within the record's header, within its data, and the border of a segment.
        for (at, header) in [
            ("0/601FE8", 24),
            ("0/601FF8", 24),
            ("0/601FA8", 24),
            ("0/6FFFC8", 40),
        ] {
            let at = lsn(at);
            let room = (8192 - at.0 % 8192) as usize;
            let mut wal = bytes[..room].to_vec();
            wal.extend(vec![0xEE; header]);
            wal.extend(&bytes[room..120]);
            let record = Record::parse(at, &wal, layout()).unwrap().unwrap();
            assert!(record.checkpoint().is_some());
            let end = layout().behind(at, 120);
            assert_eq!(end.0, at.0 + 120 + header as u64);
            assert_eq!(layout().before(end, 120), Some(at));
        }
    }

    #[test]
    fn positions_count_page_headers_in_both_directions() {
        for (end, begin) in [
            ("0/2000100", "0/20000D8"),
            ("0/2002000", "0/2001FD8"),
            ("0/2002020", "0/2001FE0"),
            ("0/2000030", "0/1FFFFE0"),
            ("0/2000028", "0/1FFFFD8"),
        ] {
            assert_eq!(layout().before(lsn(end), 40), Some(lsn(begin)), "{end}");
        }
        assert_eq!(layout().before(lsn("0/28"), 40), None);
    }
}
