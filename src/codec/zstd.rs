//! zstd frames (RFC 8878), with content checksum.

use super::Method;
use super::frames::{self, Step};
use crate::error::{Error, Kind, Result};
use std::io::Cursor;
use zstd::zstd_safe::{
    self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective,
};

/// Largest window (log2 of bytes) a decoder grants, which bounds its memory: 128 MiB, as zstd(1) without `--long`.
/// Our own frames need at most 8 MiB (level 19).
const WINDOW_LOG_MAX: u32 = 27;

/// Room made in the output before each step of a stream.
const GROW_BYTES: usize = 64 << 10;

fn failed(doing: &str, code: usize) -> Error {
    let cause = zstd_safe::get_error_name(code);
    Error::new(Kind::Bug, format!("zstd could not {doing}")).detail(format!("It says: {cause}."))
}

/// A compression context.
pub(super) struct Stream(CCtx<'static>);

impl Stream {
    pub(super) fn new(level: i32) -> Result<Stream> {
        let mut context = CCtx::try_create()
            .ok_or_else(|| Error::new(Kind::Io, "no memory for a zstd context"))?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ChecksumFlag(true),
            CParameter::ContentSizeFlag(true),
        ] {
            context
                .set_parameter(parameter)
                .map_err(|code| failed("take a parameter", code))?;
        }
        Ok(Stream(context))
    }

    /// One frame in one call: the context's tables are kept, the size goes into the header, nothing is buffered.
    pub(super) fn frame(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.reserve(zstd_safe::compress_bound(raw.len()));
        let end = out.len() as u64;
        let mut cursor = Cursor::new(std::mem::take(out));
        cursor.set_position(end);
        let done = self.0.compress2(&mut cursor, raw);
        *out = cursor.into_inner();
        done.map(drop).map_err(|code| failed("compress", code))
    }

    pub(super) fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut input = InBuffer::around(raw);
        while input.pos() < raw.len() {
            self.step(&mut input, out, ZSTD_EndDirective::ZSTD_e_continue)?;
        }
        Ok(())
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let mut input = InBuffer::around(&[]);
        while self.step(&mut input, out, ZSTD_EndDirective::ZSTD_e_end)? > 0 {}
        Ok(())
    }

    fn step(
        &mut self,
        input: &mut InBuffer<'_>,
        out: &mut Vec<u8>,
        directive: ZSTD_EndDirective,
    ) -> Result<usize> {
        out.reserve(GROW_BYTES);
        let end = out.len();
        let mut output = OutBuffer::around_pos(out, end);
        self.0
            .compress_stream2(&mut output, input, directive)
            .map_err(|code| failed("compress", code))
    }
}

/// First four bytes of a frame without content, but for the low half byte of the first.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2A, 0x4D, 0x18];

/// A decompression context, and the magic number of the present frame, which may come in pieces.
pub(super) struct Decode {
    context: DCtx<'static>,
    magic: [u8; 4],
    magic_bytes: usize,
}

impl Decode {
    pub(super) fn new() -> Decode {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .expect("27 is within zstd's bounds on every machine");
        Decode {
            context,
            magic: [0; 4],
            magic_bytes: 0,
        }
    }

    fn note_magic(&mut self, stored: &[u8]) {
        let free = &mut self.magic[self.magic_bytes..];
        let take = free.len().min(stored.len());
        free[..take].copy_from_slice(&stored[..take]);
        self.magic_bytes += take;
    }
}

impl frames::Decode for Decode {
    const METHOD: Method = Method::Zstd;

    fn step(&mut self, stored: &[u8], raw: &mut [u8]) -> std::result::Result<Step, String> {
        let mut input = InBuffer::around(stored);
        let mut output = OutBuffer::around(raw);
        let hint = self
            .context
            .decompress_stream(&mut output, &mut input)
            .map_err(describe)?;
        let (consumed, produced) = (input.pos(), output.pos());
        self.note_magic(&stored[..consumed]);
        Ok(Step {
            consumed,
            produced,
            frame_ended: hint == 0,
        })
    }

    fn ended_with_content(&mut self) -> bool {
        self.magic_bytes = 0;
        (self.magic[0] & 0xF0, &self.magic[1..]) != (SKIPPABLE_MAGIC[0], &SKIPPABLE_MAGIC[1..])
    }
}

/// The decoder's words, and more where they would puzzle.
fn describe(code: usize) -> String {
    let name = zstd_safe::get_error_name(code);
    if name.contains("too much memory") {
        return format!(
            "its window is larger than the {} MiB that seawall grants (zstd --long makes such frames)",
            1 << (WINDOW_LOG_MAX - 20)
        );
    }
    name.to_lowercase()
}
