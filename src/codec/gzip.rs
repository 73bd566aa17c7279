//! gzip members (RFC 1952), whose trailer holds CRC-32 and size of the content.

use super::Method;
use super::frames::{self, Step};
use crate::error::{Error, Kind, Result};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// log2 of the window that every gzip reader has: 32 KiB.
const WINDOW_BITS: u8 = 15;

/// Room made in the output before each step.
const GROW_BYTES: usize = 64 << 10;

/// A compression context.
pub(super) struct Stream(Compress);

impl Stream {
    pub(super) fn new(level: i32) -> Stream {
        let level = Compression::new(u32::try_from(level).unwrap_or(1));
        Stream(Compress::new_gzip(level, WINDOW_BITS))
    }

    pub(super) fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut rest = raw;
        while !rest.is_empty() {
            let (used, _) = self.step(rest, out, FlushCompress::None)?;
            rest = &rest[used..];
        }
        Ok(())
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        while self.step(&[], out, FlushCompress::Finish)?.1 != Status::StreamEnd {}
        self.0.reset();
        Ok(())
    }

    fn step(
        &mut self,
        raw: &[u8],
        out: &mut Vec<u8>,
        flush: FlushCompress,
    ) -> Result<(usize, Status)> {
        out.reserve(GROW_BYTES);
        let before = self.0.total_in();
        let status = self
            .0
            .compress_vec(raw, out, flush)
            .map_err(|e| Error::new(Kind::Bug, "gzip could not compress").because(e))?;
        Ok(((self.0.total_in() - before) as usize, status))
    }
}

/// A decompression context; a new one for each member, because resetting it would lose the gzip header.
pub(super) struct Decode(Decompress);

impl Decode {
    pub(super) fn new() -> Decode {
        Decode(Decompress::new_gzip(WINDOW_BITS))
    }
}

impl frames::Decode for Decode {
    const METHOD: Method = Method::Gzip;

    fn step(&mut self, stored: &[u8], raw: &mut [u8]) -> std::result::Result<Step, String> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(stored, raw, FlushDecompress::None)
            .map_err(|e| e.message().unwrap_or("invalid data").to_string())?;
        Ok(Step {
            consumed: (self.0.total_in() - before_in) as usize,
            produced: (self.0.total_out() - before_out) as usize,
            frame_ended: status == Status::StreamEnd,
        })
    }

    fn ended_with_content(&mut self) -> bool {
        *self = Decode::new();
        true
    }
}
