//! LZ4's frame format with content checksum.

use super::Frames;
use lz4_flex::frame::{BlockMode, FrameDecoder, FrameEncoder, FrameInfo};
use std::io::{self, Read, Write};

pub fn encoder<W: Write>(out: W) -> FrameEncoder<W> {
    let info = FrameInfo::new().content_checksum(true).block_mode(BlockMode::Linked);
    FrameEncoder::with_frame_info(info, out)
}

/// Frame after frame. lz4_flex takes the end of input for the end of a frame; `Frames` makes that an error.
pub struct Decoder<R: Read>(State<R>);

enum State<R: Read> {
    Between(Frames<R>),
    Inside(Box<FrameDecoder<Frames<R>>>),
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
                    self.0 = State::Inside(Box::new(FrameDecoder::new(input)));
                }
                State::Inside(mut frame) => match frame.read(out) {
                    Ok(0) => self.0 = State::Between(frame.into_inner()),
                    Ok(count) => {
                        self.0 = State::Inside(frame);
                        return Ok(count);
                    }
                    Err(e) => return Err(frame.get_ref().judge(e)),
                },
                State::Failed => return Err(super::corrupt("the object was found damaged before").into()),
            }
        }
    }
}
