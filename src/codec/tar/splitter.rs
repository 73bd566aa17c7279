//! A tar stream in pieces of any size: bytes are pushed in, members come out, bodies without a copy.

use super::BLOCK_BYTES;
use super::header::{Header, padding};
use super::parse::{Assembler, Block};
use crate::error::Result;

/// What came out.
#[derive(Debug)]
pub enum Event<'a> {
    /// A member begins; `size` bytes of `Data` follow for it.
    Header(Header),
    /// Bytes of the member's body.
    Data(&'a [u8]),
    /// The member is complete.
    EndOfMember,
}

enum State {
    Header,
    Extension(u64),
    Body(u64),
    Padding(usize),
    End,
}

/// The state between two pieces.
pub struct Splitter {
    assembler: Assembler,
    state: State,
    /// A header block or extension that has not come whole.
    gathered: Vec<u8>,
    padding: usize,
}

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter::new()
    }
}

impl Splitter {
    /// At the beginning of an archive.
    pub fn new() -> Splitter {
        Splitter {
            assembler: Assembler::default(),
            state: State::Header,
            gathered: Vec::new(),
            padding: 0,
        }
    }

    /// Takes the next bytes of the archive. What follows its end mark is ignored, as tar(1) does.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            match self.state {
                State::End => return Ok(()),
                State::Header => {
                    if let Some(block) = self.gather(&mut bytes, BLOCK_BYTES) {
                        self.header(&block, each)?;
                    }
                }
                State::Extension(size) => {
                    let whole = size as usize + padding(size);
                    if let Some(body) = self.gather(&mut bytes, whole) {
                        self.assembler.extension(&body[..size as usize])?;
                        self.state = State::Header;
                    }
                }
                State::Body(left) => {
                    let (now, later) = bytes
                        .split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                    bytes = later;
                    each(Event::Data(now))?;
                    self.body_left(left - now.len() as u64, each)?;
                }
                State::Padding(left) => {
                    let skipped = left.min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.state = if skipped == left {
                        State::Header
                    } else {
                        State::Padding(left - skipped)
                    };
                }
            }
        }
        Ok(())
    }

    /// Whether the archive may end here: after its end mark, or between two members (PostgreSQL before 15 sends
    /// no end mark).
    pub fn at_border(&self) -> bool {
        match self.state {
            State::End => true,
            State::Header => self.gathered.is_empty() && !self.assembler.waits(),
            _ => false,
        }
    }

    fn header(
        &mut self,
        block: &[u8],
        each: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let block: &[u8; BLOCK_BYTES] = block.try_into().expect("gathered as one block");
        match self.assembler.block(block)? {
            Block::Zeros => {
                self.state = State::End;
                Ok(())
            }
            Block::Extension(0) => self.assembler.extension(&[]),
            Block::Extension(size) => {
                self.state = State::Extension(size);
                Ok(())
            }
            Block::Member(header) => {
                let size = header.size;
                self.padding = padding(size);
                each(Event::Header(header))?;
                self.body_left(size, each)
            }
        }
    }

    fn body_left(
        &mut self,
        left: u64,
        each: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        if left > 0 {
            self.state = State::Body(left);
            return Ok(());
        }
        self.state = if self.padding > 0 {
            State::Padding(self.padding)
        } else {
            State::Header
        };
        each(Event::EndOfMember)
    }

    /// Collects `whole` bytes; `None` until they are there.
    fn gather(&mut self, bytes: &mut &[u8], whole: usize) -> Option<Vec<u8>> {
        let count = (whole - self.gathered.len()).min(bytes.len());
        self.gathered.extend_from_slice(&bytes[..count]);
        *bytes = &bytes[count..];
        (self.gathered.len() == whole).then(|| std::mem::take(&mut self.gathered))
    }
}
