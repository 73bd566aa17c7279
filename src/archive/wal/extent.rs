//! How far an unfinished segment goes.
//!
//! It is preallocated: behind its WAL come zeros, or the bytes of an older segment whose file was used again. Each page
//! begins with a magic number and its own address, so the first page without them is where the WAL has ended; within
//! the last page it ends with the last byte that is not zero.

use super::check::{Expect, Inspector};
use crate::error::{Error, Kind, Result};
use crate::pg::wal_header::{HEADER_BYTES, SegmentHeader, is_blank};
use crate::pg::wal_record::Layout;
use crate::pg::wal_records::Records;
use crate::pg::{Segment, SegmentSize, SystemId, WalName};

/// Of a page's header: magic number, flags, timeline, address.
const PAGE_HEAD_BYTES: usize = 16;

/// Follows the pages of an unfinished segment while they pass by.
pub struct Extent {
    segment: Segment,
    expect: Expect,
    inspector: Inspector,
    size: u64,
    held: u64,
    page: [u8; PAGE_HEAD_BYTES],
    pages: Option<Pages>,
    records: Option<Records>,
    over: bool,
}

/// What there is of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// So many bytes from its beginning on are WAL.
    pub held: u64,
    /// So many bytes are whole records, checked, with the padding behind: zeros at the end of a record count here alone.
    pub whole: u64,
    /// What it will have when it is complete.
    pub size: SegmentSize,
    /// The cluster that wrote it.
    pub system_id: SystemId,
}

/// What each page must say.
struct Pages {
    magic: [u8; 2],
    start: u64,
    bytes: u64,
}

impl Extent {
    /// Nothing has passed yet.
    pub fn new(segment: Segment, expect: Expect) -> Extent {
        Extent {
            segment,
            expect,
            inspector: Inspector::new(WalName::Partial(segment), expect),
            size: 0,
            held: 0,
            page: [0; PAGE_HEAD_BYTES],
            pages: None,
            records: None,
            over: false,
        }
    }

    /// The next bytes.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.inspector.pass(bytes);
        let mut rest = bytes;
        while !rest.is_empty() && !self.over {
            // The first page tells how long pages are; its first bytes are enough.
            let page_bytes = match &self.pages {
                Some(pages) => pages.bytes,
                None => HEADER_BYTES as u64,
            };
            let in_page = self.size % page_bytes;
            let take = rest.len().min((page_bytes - in_page) as usize);
            let (now, later) = rest.split_at(take);
            self.follow(in_page as usize, now);
            if let Some(records) = self.records.as_mut().filter(|_| !self.over) {
                records.pass(now);
            }
            self.size += now.len() as u64;
            if self.pages.is_none() && self.size >= HEADER_BYTES as u64 {
                self.begin();
            }
            rest = later;
        }
        self.size += rest.len() as u64;
    }

    /// Bytes that passed.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of one page, from `in_page` on. They count once the page's header is there and right.
    fn follow(&mut self, in_page: usize, mut bytes: &[u8]) {
        let page_start = self.size - in_page as u64;
        let mut at = self.size;
        if in_page < PAGE_HEAD_BYTES {
            let take = bytes.len().min(PAGE_HEAD_BYTES - in_page);
            self.page[in_page..in_page + take].copy_from_slice(&bytes[..take]);
            if in_page + take < PAGE_HEAD_BYTES {
                return;
            }
            if !self.is_page(page_start) {
                self.over = true;
                return;
            }
            self.held = behind_last(&self.page).map_or(self.held, |end| page_start + end);
            (at, bytes) = (at + take as u64, &bytes[take..]);
        }
        self.held = behind_last(bytes).map_or(self.held, |end| at + end);
    }

    fn is_page(&self, page_start: u64) -> bool {
        let Some(pages) = &self.pages else {
            return true;
        };
        let address = (pages.start + page_start).to_le_bytes();
        self.page[..2] == pages.magic && self.page[8..] == address
    }

    fn begin(&mut self) {
        match self.header() {
            Ok(Some(header)) => {
                self.pages = Some(Pages {
                    magic: header.magic.to_le_bytes(),
                    start: header.page_address.0,
                    bytes: u64::from(header.page_bytes),
                });
                let layout = Layout {
                    page_bytes: u64::from(header.page_bytes),
                    segment_size: header.segment_size,
                };
                let mut records = Records::new(layout);
                records.pass(self.inspector.head());
                self.records = Some(records);
            }
            // `judge` says it again, to somebody who listens.
            Ok(None) | Err(_) => (self.held, self.over) = (0, true),
        }
    }

    /// The header if there is WAL of this segment: a first page that is all zero was never written, one with another
    /// address is left over from an older segment.
    fn header(&self) -> Result<Option<SegmentHeader>> {
        let head = self.inspector.head();
        if is_blank(head) {
            return Ok(None);
        }
        let header = SegmentHeader::parse(head)?;
        let start = self.segment.start(header.segment_size)?;
        Ok((header.page_address == start).then_some(header))
    }

    /// Judges what passed as the beginning of the segment; `what` names it in messages. `None` if it holds nothing.
    pub fn judge(&self, what: &str) -> Result<Option<Found>> {
        let header = self
            .header()
            .map_err(|e| e.context(format!("{what} holds no WAL of segment {}", self.segment)))?;
        let Some(header) = header else {
            return Ok(None);
        };
        let size = self.expect.segment_size.unwrap_or(header.segment_size);
        self.inspector.judge(size.bytes(), what)?;
        if self.size > size.bytes() {
            let error = Error::new(Kind::Corrupt, format!("{what} is larger than a segment"));
            return Err(error.detail(format!(
                "It has {} bytes, a segment here has {}.",
                self.size,
                size.bytes()
            )));
        }
        Ok(Some(Found {
            held: self.held,
            whole: self.records.as_ref().map_or(0, Records::whole),
            size,
            system_id: header.system_id,
        }))
    }
}

/// Where the bytes that are not zero end.
fn behind_last(bytes: &[u8]) -> Option<u64> {
    let last = bytes.iter().rposition(|byte| *byte != 0)?;
    Some(last as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::testing::{self, SIZE, SYSTEM};

    /// What is found, with the bytes passing in steps of `step`.
    fn measure(bytes: &[u8], step: usize) -> Result<Option<u64>> {
        let expect = Expect {
            system_id: Some(SYSTEM),
            segment_size: None,
        };
        let mut extent = Extent::new(testing::segment(1, 3), expect);
        bytes.chunks(step).for_each(|chunk| extent.pass(chunk));
        Ok(extent.judge("x")?.map(|found| found.held))
    }

    #[test]
    fn it_ends_where_the_pages_end() {
        let whole = testing::wal(testing::segment(1, 3), 0);
        let older = testing::wal(testing::segment(1, 2), 0x40);
        for held in [41, 8191, 8192 + 25, 100_000, SIZE as usize] {
            // Zeros behind it, or nothing, or an older segment from the next page on.
            let mut zeros = whole[..held].to_vec();
            let cut = zeros.clone();
            zeros.resize(SIZE as usize, 0);
            let next_page = held.next_multiple_of(8192);
            let mut used = zeros.clone();
            used[next_page..].copy_from_slice(&older[next_page..]);
            for bytes in [&zeros, &cut, &used] {
                for step in [1 << 20, 8192, 5000, 7] {
                    assert_eq!(measure(bytes, step).unwrap(), Some(held as u64), "{step}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_no_wal_and_what_is_wrong_is_said() {
        let good = testing::wal(testing::segment(1, 3), 0);
        let nothing = vec![0; SIZE as usize];
        let older = testing::wal(testing::segment(1, 2), 0);
        for bytes in [&nothing[..], &older, b""] {
            assert_eq!(measure(bytes, 8192).unwrap(), None);
        }
        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            measure(&bytes, 8192).unwrap_err().kind()
        };
        assert_eq!(change(1, 0), Kind::Corrupt, "magic");
        assert_eq!(change(4, 2), Kind::Mismatch, "timeline");
        assert_eq!(change(24, 8), Kind::Mismatch, "system identifier");
        let long = [&good[..], b"x"].concat();
        assert_eq!(measure(&long, 8192).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(
            measure(&good[..39], 8192).unwrap_err().kind(),
            Kind::Corrupt
        );
    }
}
