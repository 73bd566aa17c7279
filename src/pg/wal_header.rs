//! SegmentHeader: what the first page of a WAL segment says about itself, and whether that fits its name.
//!
//! Layout (PostgreSQL, `xlog_internal.h`, `XLogLongPageHeaderData`, little endian): magic u16, flags u16, timeline
//! u32, page address u64, rest of a record u32, 4 bytes of padding, system identifier u64, segment size u32, WAL
//! page size u32.

use super::version::{self, MAJOR_MAX, RELEASES};
use super::{Lsn, Segment, SegmentSize, SystemId, TimelineId};
use crate::error::{Error, Kind, Result};

/// Size of the long page header with which each segment begins.
pub const HEADER_BYTES: usize = 40;

/// What PostgreSQL can be built with (`--with-wal-blocksize`).
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 1 << 10..=64 << 10;

/// The flag of pages that carry the long header.
const LONG_HEADER: u16 = 0x0002;
/// Continued record, long header, removable backup blocks, overwritten continuation.
const KNOWN_FLAGS: u16 = 0x000F;

/// The header of a segment's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The page magic, which changes with each major version.
    pub magic: u16,
    /// The major version that has this magic; `None` if we do not know it.
    pub major: Option<u32>,
    /// The timeline on which the page was written: that of the segment's name, or an ancestor's.
    pub timeline: TimelineId,
    /// The position of the page, and so of the segment.
    pub page_address: Lsn,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page; a header stands at the beginning of each.
    pub page_bytes: u32,
}

impl SegmentHeader {
    /// Parses the first bytes of a segment; `HEADER_BYTES` of them are enough.
    ///
    /// Magic numbers that we do not know are let through from 13's on: `check` warns of them.
    pub fn parse(first_page: &[u8]) -> Result<SegmentHeader> {
        let Some(head) = first_page.first_chunk::<HEADER_BYTES>() else {
            return Err(no_wal(format!("It has only {} bytes.", first_page.len())));
        };
        if is_blank(first_page) {
            return Err(no_wal("Its first page is all zeros.".to_string()));
        }
        let magic = check_magic(u16_at(head, 0))?;
        let flags = u16_at(head, 2);
        let known = version::by_wal_magic(magic);
        if flags & LONG_HEADER == 0 || (known.is_some() && flags & !KNOWN_FLAGS != 0) {
            return Err(no_wal(format!("Its first page has the flags {flags:04X}.")));
        }
        let timeline = u32_at(head, 4);
        if timeline == 0 {
            return Err(no_wal("Its first page says timeline 0.".to_string()));
        }
        let page_bytes = u32_at(head, 36);
        if !page_bytes.is_power_of_two() || !PAGE_BYTES.contains(&page_bytes) {
            return Err(no_wal(format!("It says WAL pages of {page_bytes} bytes.")));
        }
        Ok(SegmentHeader {
            magic,
            major: known.map(|release| release.major),
            timeline: TimelineId(timeline),
            page_address: Lsn(u64_at(head, 8)),
            system_id: SystemId(u64_at(head, 24)),
            segment_size: SegmentSize::new(u64::from(u32_at(head, 32)))
                .map_err(|e| no_wal(format!("It says {}.", e.message())))?,
            page_bytes,
        })
    }

    /// Whether this is the segment of that name, of that cluster if one is given; returns what to warn of.
    ///
    /// The timeline may be lower than the name's: the first segment of a new timeline begins as a copy of its
    /// parent's. The length of the file is the caller's to compare with `segment_size`.
    pub fn check(
        &self,
        segment: Segment,
        expected_system: Option<SystemId>,
    ) -> Result<Vec<String>> {
        let start = segment.start(self.segment_size)?;
        if self.page_address != start {
            return Err(misnamed(segment).detail(format!(
                "Its first page is that of {}, the name's is {start}.",
                self.page_address
            )));
        }
        if self.timeline > segment.timeline {
            return Err(misnamed(segment).detail(format!(
                "Its first page was written on timeline {}.",
                self.timeline
            )));
        }
        if let Some(expected) = expected_system
            && self.system_id != expected
        {
            return Err(Error::new(
                Kind::Mismatch,
                format!("segment {segment} is of another cluster"),
            )
            .detail(format!(
                "Its system identifier is {}, expected was {expected}.",
                self.system_id
            ))
            .hint("Check that each cluster has a prefix of its own."));
        }
        let warning = self.major.is_none().then(|| {
            format!(
                "its page magic {:04X} is of no release up to {MAJOR_MAX}",
                self.magic
            )
        });
        Ok(warning.into_iter().collect())
    }
}

/// Whether the page holds nothing but zeros: preallocated, and not written yet.
pub fn is_blank(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// Lets a magic number pass that a release from 13 on may have.
fn check_magic(magic: u16) -> Result<u16> {
    let oldest = RELEASES[0].wal_magic;
    // Since 9.3 the high byte has been D0 or D1, and the number grows with each format.
    match magic {
        _ if magic >= oldest && magic >> 8 <= 0xDF => Ok(magic),
        _ if magic >> 8 == 0xD0 || (0xD100..oldest).contains(&magic) => Err(Error::new(
            Kind::Refused,
            "this WAL is of a version of PostgreSQL that is too old for seawall",
        )
        .detail(format!(
            "Its page magic is {magic:04X}; PostgreSQL 13 writes {oldest:04X}."
        ))),
        _ => Err(no_wal(format!("Its page magic is {magic:04X}."))),
    }
}

fn no_wal(detail: String) -> Error {
    Error::new(Kind::Corrupt, "this is not a WAL segment").detail(detail)
}

fn misnamed(segment: Segment) -> Error {
    Error::new(Kind::Mismatch, format!("this is not segment {segment}"))
}

fn u16_at(head: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn u32_at(head: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from(u16_at(head, at)) | u32::from(u16_at(head, at + 2)) << 16
}

fn u64_at(head: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(head, at)) | u64::from(u32_at(head, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first 40 bytes of real segments: major, name, system identifier, segment MiB, bytes.
    #[rustfmt::skip]
    const REAL: [(u32, &str, u64, u64, u128, u128, u64); 6] = [
        (13, "000000010000000000000002", 7710471709302365717, 16, 0x06d1_0600_0100_0000_0000_0002_0000_0000, 0x0000_0000_0000_0000_159e_aaf3_2a19_016b, 0x0000_0001_0020_0000),
        (14, "00000001000000000000000E", 7710471711948860978, 1, 0x0dd1_0700_0100_0000_0000_e000_0000_0000, 0x4108_0000_0000_0000_32ee_6891_2b19_016b, 0x0000_1000_0020_0000),
        (15, "000000010000000000000002", 7710471715061091919, 16, 0x10d1_0600_0100_0000_0000_0002_0000_0000, 0x0000_0000_0000_0000_4fce_e94a_2c19_016b, 0x0000_0001_0020_0000),
        (16, "000000010000000000000002", 7710471717545836139, 16, 0x13d1_0600_0100_0000_0000_0002_0000_0000, 0x0000_0000_0000_0000_6bfe_03df_2c19_016b, 0x0000_0001_0020_0000),
        (17, "000000010000000000000002", 7710471720394202759, 64, 0x16d1_0600_0100_0000_0000_0008_0000_0000, 0x0000_0000_0000_0000_879e_ca88_2d19_016b, 0x0000_0004_0020_0000),
        (18, "000000010000000000000002", 7710471724177034915, 16, 0x18d1_0600_0100_0000_0000_0002_0000_0000, 0x0000_0000_0000_0000_a30e_446a_2e19_016b, 0x0000_0001_0020_0000),
    ];

    fn real(index: usize) -> Vec<u8> {
        let (.., a, b, c) = REAL[index];
        [&a.to_be_bytes()[..], &b.to_be_bytes(), &c.to_be_bytes()].concat()
    }

    #[test]
    fn real_segments_of_every_version() {
        for (index, (major, name, system, segment_mib, ..)) in REAL.into_iter().enumerate() {
            let header = SegmentHeader::parse(&real(index)).unwrap();
            let segment = Segment::parse(name).unwrap();
            assert_eq!(header.major, Some(major));
            assert_eq!(header.system_id, SystemId(system));
            assert_eq!(header.segment_size.bytes(), segment_mib << 20);
            assert_eq!(header.page_bytes, 8192);
            assert!(
                header
                    .check(segment, Some(SystemId(system)))
                    .unwrap()
                    .is_empty()
            );
        }
    }

    #[test]
    fn another_name_or_cluster_is_refused() {
        let header = SegmentHeader::parse(&real(2)).unwrap();
        let check = |name: &str, system| header.check(Segment::parse(name).unwrap(), system);
        for name in ["000000010000000000000003", "000000010000000100000002"] {
            assert_eq!(check(name, None).unwrap_err().kind(), Kind::Mismatch);
        }
        let name = "000000010000000000000002";
        let error = check(name, Some(SystemId(7))).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        assert!(
            error
                .to_string()
                .contains("7710471715061091919, expected was 7")
        );
        // A name that 16 MiB segments cannot have.
        assert!(check("000000010000000000000100", None).is_err());
    }

    #[test]
    fn an_ancestors_page_may_begin_a_new_timeline() {
        let mut page = real(2);
        let segment = |name| Segment::parse(name).unwrap();
        let (older, newer) = (
            segment("000000010000000000000002"),
            segment("000000030000000000000002"),
        );
        let header = SegmentHeader::parse(&page).unwrap();
        assert!(header.check(newer, None).is_ok());
        page[4] = 2;
        let header = SegmentHeader::parse(&page).unwrap();
        assert!(header.check(newer, None).is_ok());
        assert!(header.check(older, None).is_err());
    }

    #[test]
    fn a_newer_magic_passes_with_a_warning() {
        let mut page = real(2);
        for magic in [0xD119u16, 0xD111, 0xD200] {
            page[..2].copy_from_slice(&magic.to_le_bytes());
            let header = SegmentHeader::parse(&page).unwrap();
            assert_eq!(header.major, None);
            let warnings = header.check(Segment::parse(REAL[2].1).unwrap(), None);
            assert_eq!(warnings.unwrap().len(), 1);
        }
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let change = |at: usize, bytes: &[u8]| {
            let mut page = real(2);
            page[at..at + bytes.len()].copy_from_slice(bytes);
            SegmentHeader::parse(&page)
        };
        let kind = |result: Result<SegmentHeader>| result.unwrap_err().kind();
        assert_eq!(kind(change(0, &[0x01, 0xD1])), Kind::Refused); // 12
        assert_eq!(kind(change(0, &[0x98, 0xD0])), Kind::Refused); // 10
        for (at, bytes) in [
            (0, &[0x00, 0x00][..]),
            (0, &[0x50, 0x4B]),
            (0, &[0xFF, 0xFF]),
            (2, &[0x05, 0x00]),
            (2, &[0x16, 0x00]),
            (4, &[0; 4]),
            (32, &[0; 4]),
            (36, &[0; 4]),
            (36, &[0, 2, 0, 0]),
            (36, &[0, 0, 2, 0]),
        ] {
            assert_eq!(kind(change(at, bytes)), Kind::Corrupt, "{bytes:x?} at {at}");
        }
        assert_eq!(kind(SegmentHeader::parse(&real(2)[..39])), Kind::Corrupt);
        let blank = SegmentHeader::parse(&[0; 8192]).unwrap_err();
        assert!(blank.to_string().contains("zeros"));
    }
}
