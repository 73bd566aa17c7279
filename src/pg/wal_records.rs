//! Records: follows the records of a segment while its bytes pass by, and knows up to where they are whole.
//!
//! Where an unfinished segment ends cannot be seen from its bytes alone: behind it are zeros, and a record may end with
//! zeros too (that of a shutdown does). But a record of which something is missing does not fit its CRC-32C. What the
//! first page continues from the segment before is passed over.

use super::Lsn;
use super::wal_record::{CRC_AT, HEADER_BYTES, Layout, u32_at};

/// In the segment's first header: how many bytes of a record go on behind it.
const REST_AT: u64 = 16;
const ALIGNMENT: u64 = 8;

/// Follows them.
pub struct Records {
    layout: Layout,
    /// From the segment's beginning, as all positions here.
    at: u64,
    /// What is left of a page's header.
    skip: u64,
    state: State,
    whole: u64,
}

/// What the next bytes are, but for the headers of pages.
enum State {
    /// The end of a record that began in the segment before: so many bytes.
    Rest(u64),
    /// A record's header, of which this has passed; before it, padding.
    Head(Vec<u8>),
    /// A record's body: its header, so many bytes, and the CRC of those before.
    Body(Vec<u8>, u64, u32),
    /// No records.
    Over,
}

impl Records {
    /// Nothing of the segment has passed yet.
    pub fn new(layout: Layout) -> Records {
        Records {
            layout,
            at: 0,
            skip: 0,
            state: State::Rest(0),
            whole: 0,
        }
    }

    /// Where the last whole record ends, with its padding; 0 if there is none.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The next bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !matches!(self.state, State::Over) {
            let in_page = self.at % self.layout.page_bytes;
            if in_page == 0 {
                self.skip = self.layout.header_bytes(Lsn(self.at));
            }
            let room = match self.skip {
                0 => self.wanted().min(self.layout.page_bytes - in_page),
                skip => skip,
            };
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.take(now);
            bytes = later;
        }
    }

    /// How many bytes are of one kind.
    fn wanted(&self) -> u64 {
        match &self.state {
            State::Rest(left) | State::Body(_, left, _) => *left,
            State::Head(head) if head.is_empty() && self.padding() > 0 => self.padding(),
            State::Head(head) => (HEADER_BYTES - head.len()) as u64,
            State::Over => 0,
        }
    }

    fn padding(&self) -> u64 {
        self.at.next_multiple_of(ALIGNMENT) - self.at
    }

    fn take(&mut self, bytes: &[u8]) {
        let (count, padding) = (bytes.len() as u64, self.padding());
        let from = self.at;
        self.at += count;
        if self.skip > 0 {
            self.skip -= count;
            self.learn_rest(from, bytes);
        } else {
            match &mut self.state {
                State::Rest(left) => *left -= count,
                State::Head(head) if head.is_empty() && padding > 0 => {}
                State::Head(head) => head.extend_from_slice(bytes),
                State::Body(_, left, crc) => {
                    *left -= count;
                    *crc = crc32c::crc32c_append(*crc, bytes);
                }
                State::Over => {}
            }
        }
        if self.skip == 0 {
            self.go_on();
        }
    }

    /// Reads how much the segment's first page continues, from its header.
    fn learn_rest(&mut self, from: u64, bytes: &[u8]) {
        let State::Rest(left) = &mut self.state else {
            return;
        };
        for (offset, byte) in (from..REST_AT + 4).zip(bytes) {
            if offset >= REST_AT {
                *left |= u64::from(*byte) << (8 * (offset - REST_AT));
            }
        }
    }

    /// Where something has come to its end, something else begins.
    fn go_on(&mut self) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Rest(0) => self.state = State::Head(Vec::new()),
            State::Head(head) if head.len() == HEADER_BYTES => {
                let total = u64::from(u32_at(&head, 0));
                if let Some(left) = total.checked_sub(HEADER_BYTES as u64) {
                    self.state = State::Body(head, left, 0);
                    if left == 0 {
                        self.go_on();
                    }
                }
            }
            State::Body(head, 0, crc) => {
                let crc = crc32c::crc32c_append(crc, &head[..CRC_AT]);
                if crc == u32_at(&head, CRC_AT) {
                    self.whole = self.at + self.padding();
                    self.state = State::Head(Vec::new());
                }
            }
            unfinished => self.state = unfinished,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SegmentSize;

    /// WAL in pages, with a record that continues from before and then these; where each of them ends.
    fn wal(rest: u32, bodies: &[usize]) -> (Vec<u8>, Vec<u64>) {
        let mut stream = vec![7; (rest as usize).next_multiple_of(8)];
        let mut ends = Vec::new();
        for length in bodies {
            // Zeros at the end, as a shutdown has them.
            let mut body = vec![3; *length];
            body[length.saturating_sub(30)..].fill(0);
            let mut head = vec![1; CRC_AT];
            head[..4].copy_from_slice(&((HEADER_BYTES + length) as u32).to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &head);
            let record = [&head[..], &crc.to_le_bytes(), &body].concat();
            stream.extend(record);
            stream.resize(stream.len().next_multiple_of(8), 0);
            ends.push(stream.len());
        }
        let mut bytes = Vec::new();
        let mut positions = Vec::new();
        for byte in stream {
            if bytes.len() % 8192 == 0 {
                let mut header = vec![0xEE; if bytes.is_empty() { 40 } else { 24 }];
                header[16..20].copy_from_slice(&rest.to_le_bytes());
                bytes.extend(header);
            }
            bytes.push(byte);
            positions.push(bytes.len() as u64);
        }
        let ends = ends.iter().map(|end| positions[end - 1]).collect();
        (bytes, ends)
    }

    fn whole(bytes: &[u8], step: usize) -> u64 {
        let layout = Layout {
            page_bytes: 8192,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        };
        let mut records = Records::new(layout);
        bytes.chunks(step).for_each(|chunk| records.pass(chunk));
        records.whole()
    }

    #[test]
    fn records_are_whole_up_to_the_last_that_fits() {
        for rest in [0, 50, 8000, 20_000] {
            let (bytes, ends) = wal(rest, &[0, 90, 8120, 37, 30_000, 8000, 10, 114]);
            for step in [1, 7, 8192, 1 << 20] {
                for pair in ends.windows(2) {
                    let (before, end) = (pair[0], pair[1] as usize);
                    let mut padded = bytes.clone();
                    padded[end..].fill(0);
                    assert_eq!(whole(&padded, step), end as u64);
                    assert_eq!(whole(&bytes[..end], step), end as u64);
                    // Some of its bytes that are not zero have not come.
                    padded[end - 60..].fill(0);
                    assert!(whole(&padded, step) <= before, "{rest} {step} {end}");
                }
            }
        }
        assert_eq!(whole(&[0; 8192], 8192), 0);
    }
}
