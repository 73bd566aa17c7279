//! A tar archive read member by member.

use super::BLOCK_BYTES;
use super::header::{Header, padding};
use super::parse::{Assembler, Block, damaged};
use crate::error::{Result, from_io};
use std::io::{self, Read};

/// Reads headers with `next_member` and the body of the current member with `Read`.
pub struct Reader<R> {
    inner: R,
    assembler: Assembler,
    body_left: u64,
    padding: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// At the beginning of an archive.
    pub fn new(inner: R) -> Reader<R> {
        Reader {
            inner,
            assembler: Assembler::default(),
            body_left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next member; `None` after the archive's end mark, which must be there. What is left of the current
    /// body is skipped.
    pub fn next_member(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        io::copy(self, &mut io::sink()).map_err(|e| from_io("could not read the archive", e))?;
        self.skip_padding()?;
        loop {
            let mut block = [0; BLOCK_BYTES];
            self.exact(&mut block)?;
            match self.assembler.block(&block)? {
                Block::Zeros => {
                    self.ended = true;
                    return Ok(None);
                }
                Block::Extension(size) => {
                    let mut body = vec![0; size as usize + padding(size)];
                    self.exact(&mut body)?;
                    self.assembler.extension(&body[..size as usize])?;
                }
                Block::Member(header) => {
                    (self.body_left, self.padding) = (header.size, padding(header.size));
                    return Ok(Some(header));
                }
            }
        }
    }

    /// Gives the input back.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn skip_padding(&mut self) -> Result<()> {
        let mut block = [0; BLOCK_BYTES];
        let count = std::mem::take(&mut self.padding);
        self.exact(&mut block[..count])
    }

    /// Not `read_exact`: an input that fails with `UnexpectedEof` is an outage, an input that ends is damage.
    fn exact(&mut self, out: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.inner.read(&mut out[filled..]) {
                Ok(0) => return Err(damaged("it ends too early")),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(from_io("could not read the archive", e)),
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = out
            .len()
            .min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut out[..wanted])?;
        if count == 0 {
            return Err(damaged("it ends within a member").into());
        }
        self.body_left -= count as u64;
        Ok(count)
    }
}
