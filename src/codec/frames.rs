//! The reader that all push-style decoders share: it pulls stored bytes, counts frames and is strict about the end.

use super::Method;
use crate::error::{Error, Kind, Result};
use std::io::{self, BufRead, BufReader, Read};

/// Stored bytes read at a time.
pub(super) const STORED_BUFFER_BYTES: usize = 128 << 10;

/// What one call of a decoder did.
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    /// The frame's end mark and checksum were read and found right, and all its bytes were given out.
    pub(super) frame_ended: bool,
}

/// A decoder of one frame after the other that does no I/O.
pub(super) trait Decode {
    const METHOD: Method;

    /// Decodes from `stored` into `raw`, as far as either goes. The error is what the decoder says of the damage.
    fn step(&mut self, stored: &[u8], raw: &mut [u8]) -> std::result::Result<Step, String>;

    /// Called once after each frame: whether it holds content (skippable frames do not).
    fn ended_with_content(&mut self) -> bool;
}

/// Where a decoder stands in an object, and the words for what may be wrong there.
pub(super) struct Place {
    method: Method,
    /// Stored bytes that were used.
    pub(super) offset: u64,
    /// Stored bytes used when the present frame began.
    pub(super) frame_start: u64,
    /// Whole frames with content so far.
    pub(super) frames: u64,
    ended: bool,
    failed: bool,
}

impl Place {
    pub(super) fn new(method: Method) -> Place {
        Place {
            method,
            offset: 0,
            frame_start: 0,
            frames: 0,
            ended: false,
            failed: false,
        }
    }

    /// `Some(0)` after the end, an error after an error: a reader that failed must not seem to end well later, and
    /// if it was the input that failed it is not damage either.
    pub(super) fn settled(&self) -> io::Result<Option<usize>> {
        if self.failed {
            return Err(Error::new(
                Kind::Bug,
                format!("a {} decoder was read again after an error", self.method),
            )
            .into());
        }
        Ok(self.ended.then_some(0))
    }

    pub(super) fn at_border(&self) -> bool {
        self.offset == self.frame_start
    }

    pub(super) fn frame_ended(&mut self, with_content: bool) {
        self.frame_start = self.offset;
        self.frames += u64::from(with_content);
    }

    /// Remembers the error, except one after which the caller is asked to try again.
    pub(super) fn fail(&mut self, error: io::Error) -> io::Error {
        self.failed = error.kind() != io::ErrorKind::Interrupted;
        error
    }

    /// The stored bytes are over: fine only on a border, after at least one frame with content.
    pub(super) fn end(&mut self) -> Result<usize> {
        if !self.at_border() {
            return Err(self.cut());
        }
        if self.frames == 0 {
            let error = match self.offset {
                0 => self.corrupt("is empty").detail("It has no bytes."),
                bytes => self
                    .corrupt("is empty")
                    .detail(format!("Its {bytes} bytes hold no frame with content.")),
            };
            return Err(error);
        }
        self.ended = true;
        Ok(0)
    }

    pub(super) fn cut(&self) -> Error {
        self.corrupt("ends before its end mark").detail(format!(
            "It has {} bytes; the frame that began at byte {} is not complete.",
            self.offset, self.frame_start
        ))
    }

    pub(super) fn damaged(&self, what: &str) -> Error {
        let error = match self.frames {
            0 => self.corrupt("is damaged"),
            _ => self.corrupt("is damaged or goes on after its last frame"),
        };
        error.detail(format!(
            "In the frame that began at byte {}, near byte {}: {what}.",
            self.frame_start, self.offset
        ))
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::new(
            Kind::Corrupt,
            format!("the {}-compressed object {what}", self.method),
        )
    }
}

/// All frames of an object, one after the other, as one stream of raw bytes.
pub(super) struct Reader<R, D> {
    stored: BufReader<R>,
    decode: D,
    place: Place,
}

impl<R: Read, D: Decode> Reader<R, D> {
    pub(super) fn new(stored: R, decode: D) -> Reader<R, D> {
        Reader {
            stored: BufReader::with_capacity(STORED_BUFFER_BYTES, stored),
            decode,
            place: Place::new(D::METHOD),
        }
    }

    fn read_some(&mut self, raw: &mut [u8]) -> io::Result<usize> {
        loop {
            let stored = self.stored.fill_buf()?;
            if stored.is_empty() && self.place.at_border() {
                return Ok(self.place.end()?);
            }
            let last = stored.is_empty();
            let step = self
                .decode
                .step(stored, raw)
                .map_err(|what| self.place.damaged(&what))?;
            self.stored.consume(step.consumed);
            self.place.offset += step.consumed as u64;
            if step.frame_ended {
                self.place.frame_ended(self.decode.ended_with_content());
            } else if last && step.produced == 0 {
                return Err(self.place.cut().into());
            }
            if step.produced > 0 {
                return Ok(step.produced);
            }
        }
    }
}

impl<R: Read, D: Decode> Read for Reader<R, D> {
    fn read(&mut self, raw: &mut [u8]) -> io::Result<usize> {
        if let Some(end) = self.place.settled()? {
            return Ok(end);
        }
        if raw.is_empty() {
            return Ok(0);
        }
        self.read_some(raw).map_err(|e| self.place.fail(e))
    }
}
