//! gzip: the format has its own CRC-32 and length.

use super::Frames;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{self, Read, Write};

pub fn encoder<W: Write>(level: i32, out: W) -> GzEncoder<W> {
    GzEncoder::new(out, Compression::new(level.unsigned_abs()))
}

/// Member after member; flate2's own multi-member reader ends quietly at garbage.
pub struct Decoder<R>(State<R>);

enum State<R> {
    Between(Frames<R>),
    Inside(Box<GzDecoder<Frames<R>>>),
    Failed,
}

impl<R: Read> Decoder<R> {
    pub fn new(input: Frames<R>) -> Decoder<R> {
        Decoder(State::Between(input))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.0, State::Failed) {
                State::Between(mut input) => {
                    if !input.begin()? {
                        self.0 = State::Between(input);
                        return Ok(0);
                    }
                    self.0 = State::Inside(Box::new(GzDecoder::new(input)));
                }
                State::Inside(mut member) => match member.read(out) {
                    Ok(0) => self.0 = State::Between(member.into_inner()),
                    Ok(count) => {
                        self.0 = State::Inside(member);
                        return Ok(count);
                    }
                    Err(e) => return Err(member.get_ref().judge(e)),
                },
                State::Failed => return Err(super::corrupt("the object was found damaged before").into()),
            }
        }
    }
}
