//! Zstandard with content checksum.

use super::{Frames, corrupt};
use crate::error::{Result, from_io};
use std::io::{self, BufRead, Read, Write};
use zstd::stream::raw::{self, Operation};
use zstd::zstd_safe::{CCtx, CParameter, DParameter, InBuffer, OutBuffer};

/// Largest window that is decoded, as a power of two: 128 MiB, what `zstd -d` accepts without being asked.
const WINDOW_LOG_MAX: u32 = 27;

pub fn encoder<W: Write>(level: i32, out: W) -> Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(out, level).map_err(|e| from_io("could not set up zstd", e))?;
    encoder.include_checksum(true).map_err(|e| from_io("could not set up zstd", e))?;
    Ok(encoder)
}

/// Compresses slices into frames that state their content's size.
pub struct FrameMaker(CCtx<'static>);

impl FrameMaker {
    pub fn new(level: i32) -> Result<FrameMaker> {
        let mut context = CCtx::create();
        for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
            context.set_parameter(parameter).map_err(failed)?;
        }
        Ok(FrameMaker(context))
    }

    pub fn frame(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        out.resize(begin + zstd::zstd_safe::compress_bound(raw.len()), 0);
        let written = self.0.compress2(&mut out[begin..], raw).map_err(failed)?;
        out.truncate(begin + written);
        Ok(())
    }
}

fn failed(code: usize) -> crate::error::Error {
    corrupt("could not compress").detail(zstd::zstd_safe::get_error_name(code))
}

pub struct Decoder<R> {
    input: Frames<R>,
    context: raw::Decoder<'static>,
    inside: bool,
}

impl<R: Read> Decoder<R> {
    pub fn new(input: Frames<R>) -> Decoder<R> {
        let mut context = raw::Decoder::new().expect("a decoder without dictionary can be made");
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).expect("the window is in zstd's range");
        Decoder { input, context, inside: false }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.input.begin()? {
                return Ok(0);
            }
            self.inside = true;
            // What is decoded already may need room before more input does.
            let mut target = OutBuffer::around(out);
            let mut source = InBuffer::around(&[]);
            let mut left = self.context.run(&mut source, &mut target).map_err(|e| self.input.judge(e))?;
            if target.pos() == 0 {
                let mut source = InBuffer::around(self.input.fill_buf()?);
                let result = self.context.run(&mut source, &mut target);
                let used = source.pos();
                left = result.map_err(|e| self.input.judge(e))?;
                self.input.consume(used);
            }
            self.inside = left != 0;
            if target.pos() > 0 {
                return Ok(target.pos());
            }
        }
    }
}
