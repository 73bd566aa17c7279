//! LZ4 frames, with content checksum, in independent blocks of 1 MiB.

use super::Method;
use super::frames::{Place, STORED_BUFFER_BYTES};
use crate::error::{Error, Kind, Result};
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use std::io::{self, BufRead, BufReader, Read, Write};

/// A compression context.
pub(super) struct Stream {
    encoder: FrameEncoder<Vec<u8>>,
    pushed: bool,
}

impl Stream {
    pub(super) fn new() -> Stream {
        // Independent blocks of one fixed size: a frame's buffers serve the next one, and what is learnt from the
        // last 64 KiB is lost only once per MiB.
        let info = FrameInfo::new()
            .content_checksum(true)
            .block_mode(BlockMode::Independent)
            .block_size(BlockSize::Max1MB);
        Stream {
            encoder: FrameEncoder::with_frame_info(info, Vec::new()),
            pushed: false,
        }
    }

    pub(super) fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.pushed |= !raw.is_empty();
        std::mem::swap(self.encoder.get_mut(), out);
        let done = self.encoder.write_all(raw);
        std::mem::swap(self.encoder.get_mut(), out);
        done.map_err(failed)
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if !self.pushed {
            // An encoder that has made a frame before would write an end mark without a header.
            *self = Stream::new();
        }
        std::mem::swap(self.encoder.get_mut(), out);
        let done = self.encoder.try_finish();
        std::mem::swap(self.encoder.get_mut(), out);
        self.pushed = false;
        done.map_err(|e| failed(e.into()))
    }
}

fn failed(cause: io::Error) -> Error {
    Error::new(Kind::Bug, "lz4 could not compress").because(cause)
}

const MAGIC: [u8; 4] = 0x184D_2204u32.to_le_bytes();
/// Magic number and the two bytes that say what else the header has.
const HEADER_START_BYTES: u32 = 6;
const WORD_BYTES: u32 = 4;
const FLAG_DICTIONARY: u8 = 1;
const FLAG_CONTENT_CHECKSUM: u8 = 1 << 2;
const FLAG_CONTENT_SIZE: u8 = 1 << 3;
const FLAG_BLOCK_CHECKSUMS: u8 = 1 << 4;

/// What the bytes that come next are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    HeaderStart,
    HeaderRest,
    BlockSize,
    Block,
    Checksum,
    /// The frame is over, or none has begun.
    Between,
}

/// Stands between the stored bytes and the library's decoder, and follows the structure of the frame, because the
/// decoder takes an end of input between two blocks, and an empty block, for the end of the frame. It gives out
/// the bytes of one frame and no more, and keeps every error of the input, which the decoder may swallow.
struct Gate<R> {
    stored: BufReader<R>,
    place: Place,
    part: Part,
    /// Bytes of the part that are still to come.
    left: u32,
    /// Begin of a header, or the size of a block.
    gathered: [u8; HEADER_START_BYTES as usize],
    gathered_bytes: usize,
    flags: u8,
    failure: Option<io::Error>,
}

impl<R: Read> Gate<R> {
    /// Between frames: whether another one begins.
    fn begin(&mut self) -> io::Result<bool> {
        let more = !self.stored.fill_buf()?.is_empty();
        if more {
            self.expect(Part::HeaderStart, HEADER_START_BYTES);
        }
        Ok(more)
    }

    fn expect(&mut self, part: Part, bytes: u32) {
        (self.part, self.left, self.gathered_bytes) = (part, bytes, 0);
    }

    fn give(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let stored = loop {
            match self.stored.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(_) => break self.stored.buffer(),
            }
        };
        if stored.is_empty() {
            return Err(self.place.cut().into());
        }
        let count = stored.len().min(out.len()).min(self.left as usize);
        out[..count].copy_from_slice(&stored[..count]);
        self.stored.consume(count);
        self.place.offset += count as u64;
        self.follow(&out[..count])?;
        Ok(count)
    }

    fn follow(&mut self, bytes: &[u8]) -> Result<()> {
        if matches!(self.part, Part::HeaderStart | Part::BlockSize) {
            let end = self.gathered_bytes + bytes.len();
            self.gathered[self.gathered_bytes..end].copy_from_slice(bytes);
            self.gathered_bytes = end;
        }
        self.left -= bytes.len() as u32;
        if self.left == 0 {
            self.advance()
        } else {
            Ok(())
        }
    }

    fn advance(&mut self) -> Result<()> {
        match self.part {
            Part::HeaderStart => {
                let [m0, m1, m2, m3, flags, _] = self.gathered;
                if [m0, m1, m2, m3] != MAGIC {
                    return Err(self.place.damaged("no LZ4 frame begins here"));
                }
                self.flags = flags;
                let size = if flags & FLAG_CONTENT_SIZE != 0 { 8 } else { 0 };
                let dictionary = if flags & FLAG_DICTIONARY != 0 { 4 } else { 0 };
                self.expect(Part::HeaderRest, size + dictionary + 1);
            }
            Part::BlockSize => self.block_or_end(),
            Part::HeaderRest | Part::Block => self.expect(Part::BlockSize, WORD_BYTES),
            Part::Checksum | Part::Between => self.expect(Part::Between, 0),
        }
        Ok(())
    }

    fn block_or_end(&mut self) {
        let [a, b, c, d, ..] = self.gathered;
        let word = u32::from_le_bytes([a, b, c, d]);
        let checksum = |flag| {
            if self.flags & flag != 0 {
                WORD_BYTES
            } else {
                0
            }
        };
        let (part, bytes) = match word {
            0 => (Part::Checksum, checksum(FLAG_CONTENT_CHECKSUM)),
            // The top bit says that the block is not compressed; the decoder checks the size against its limit.
            _ => {
                let size = word & (u32::MAX >> 1);
                (Part::Block, size + checksum(FLAG_BLOCK_CHECKSUMS))
            }
        };
        match (part, bytes) {
            (Part::Checksum, 0) => self.expect(Part::Between, 0),
            (_, 0) => self.expect(Part::BlockSize, WORD_BYTES),
            _ => self.expect(part, bytes),
        }
    }
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.part == Part::Between || out.is_empty() {
            return Ok(0);
        }
        self.give(out).map_err(|e| {
            self.failure = Some(e);
            io::Error::other("the input failed")
        })
    }
}

/// All frames of an object, one after the other, as one stream of raw bytes.
pub(super) struct Reader<R: Read> {
    /// A new one for each frame, so that its buffers fit that frame. Never `None` between calls.
    decoder: Option<FrameDecoder<Gate<R>>>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(stored: R) -> Reader<R> {
        let gate = Gate {
            stored: BufReader::with_capacity(STORED_BUFFER_BYTES, stored),
            place: Place::new(Method::Lz4),
            part: Part::Between,
            left: 0,
            gathered: [0; HEADER_START_BYTES as usize],
            gathered_bytes: 0,
            flags: 0,
            failure: None,
        };
        Reader {
            decoder: Some(FrameDecoder::new(gate)),
        }
    }

    fn decoder(&mut self) -> &mut FrameDecoder<Gate<R>> {
        self.decoder.as_mut().expect("put back after each frame")
    }

    fn gate(&mut self) -> &mut Gate<R> {
        self.decoder().get_mut()
    }

    fn read_some(&mut self, raw: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.gate().part == Part::Between && !self.gate().begin()? {
                return Ok(self.gate().place.end()?);
            }
            let result = self.decoder().read(raw);
            let gate = self.gate();
            if let Some(failure) = gate.failure.take() {
                return Err(failure);
            }
            match result {
                Ok(0) if gate.part == Part::Between => self.next_frame(),
                // An empty block.
                Ok(0) => {}
                Ok(count) => return Ok(count),
                Err(e) => return Err(gate.place.damaged(&e.to_string()).into()),
            }
        }
    }

    fn next_frame(&mut self) {
        self.gate().place.frame_ended(true);
        let gate = self.decoder.take().map(FrameDecoder::into_inner);
        self.decoder = gate.map(FrameDecoder::new);
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, raw: &mut [u8]) -> io::Result<usize> {
        if let Some(end) = self.gate().place.settled()? {
            return Ok(end);
        }
        if raw.is_empty() {
            return Ok(0);
        }
        self.read_some(raw).map_err(|e| self.gate().place.fail(e))
    }
}
