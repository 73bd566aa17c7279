//! Streams of bytes in and out of their stored form: compression, digests, tar. No I/O of its own, no threads.
//!
//! What holds for every stored object:
//! * C1 It is one or more whole frames, each with a checksum of its content, so it can be checked by itself and
//!   read by `zstd -d`, `gzip -d` or `lz4 -d`.
//! * C2 A decoder gives back all bytes that went in, or an error. It refuses an object that is empty, ends before
//!   its end mark, or goes on after the last frame with anything but another frame.
//! * C3 Damage is `Kind::Corrupt` inside the `io::Error`. An error of the reader below passes through unchanged:
//!   an outage never looks like damage.
//! * C4 Memory is bounded by the method, whatever the object says of itself.

pub mod digest;
mod frames;
mod gzip;
mod lz4;
pub mod tar;
mod zstd;

use crate::error::{Error, Kind, Result, from_io};
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// The LZ4 frame format.
    Lz4,
}

impl Method {
    /// Every method, the default first: the order in which a fetch looks for an object under another codec.
    pub const ALL: [Method; 3] = [Method::Zstd, Method::Gzip, Method::Lz4];

    /// The end of an object's name, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Method::Zstd => "zst",
            Method::Gzip => "gz",
            Method::Lz4 => "lz4",
        }
    }

    /// The method of an extension, without the dot; `None` for any other.
    pub fn from_extension(extension: &str) -> Option<Method> {
        Method::ALL
            .into_iter()
            .find(|method| method.extension() == extension)
    }

    /// Lowest and highest level; 0 is never one, because it means something else to each library.
    fn levels(self) -> (i32, i32) {
        match self {
            Method::Zstd => (-7, 19),
            Method::Gzip => (1, 9),
            Method::Lz4 => (1, 1),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Zstd => "zstd",
            Method::Gzip => "gzip",
            Method::Lz4 => "lz4",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Method> {
        Method::ALL
            .into_iter()
            .find(|method| method.to_string() == text)
            .ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format!("{text:?} is not a compression method"),
                )
                .hint("Use zstd, gzip or lz4.")
            })
    }
}

/// A method with a level that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// How.
    pub method: Method,
    level: i32,
}

impl Compression {
    /// Checks the level (`Kind::Config`): -7 to 19 for zstd, 1 to 9 for gzip, 1 for lz4, never 0; 1 if none is given.
    pub fn new(method: Method, level: Option<i32>) -> Result<Compression> {
        let level = level.unwrap_or(1);
        let (low, high) = method.levels();
        if (low..=high).contains(&level) && level != 0 {
            return Ok(Compression { method, level });
        }
        Err(Error::new(
            Kind::Config,
            format!("{level} is not a compression level of {method}"),
        )
        .detail(format!("Levels are {low} to {high}, without 0.")))
    }
}

/// One of the three compressors, with its context. Each appends to `out` whatever is ready.
enum Stream {
    Zstd(zstd::Stream),
    Gzip(gzip::Stream),
    Lz4(lz4::Stream),
}

impl Stream {
    fn new(compression: Compression) -> Result<Stream> {
        let level = compression.level;
        Ok(match compression.method {
            Method::Zstd => Stream::Zstd(zstd::Stream::new(level)?),
            Method::Gzip => Stream::Gzip(gzip::Stream::new(level)),
            Method::Lz4 => Stream::Lz4(lz4::Stream::new()),
        })
    }

    fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match self {
            Stream::Zstd(stream) => stream.push(raw, out),
            Stream::Gzip(stream) => stream.push(raw, out),
            Stream::Lz4(stream) => stream.push(raw, out),
        }
    }

    /// Writes the end mark; the next `push` begins a new frame.
    fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Stream::Zstd(stream) => stream.end(out),
            Stream::Gzip(stream) => stream.end(out),
            Stream::Lz4(stream) => stream.end(out),
        }
    }
}

/// Makes whole frames, one per call, and keeps its context between calls. For chunks that are in memory.
pub struct Compressor(Stream);

impl Compressor {
    /// Allocates the context.
    pub fn new(compression: Compression) -> Result<Compressor> {
        Stream::new(compression).map(Compressor)
    }

    /// Appends one frame with all of `raw` and its checksum to `out`. A zstd frame also carries the raw size.
    /// After an error `out` has its old length or a torn frame at its end, and the compressor is of no use.
    pub fn frame(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match &mut self.0 {
            Stream::Zstd(stream) => stream.frame(raw, out),
            stream => {
                stream.push(raw, out)?;
                stream.end(out)
            }
        }
    }
}

/// Compressed bytes that gather before they are handed to the writer.
const ENCODER_OUT_BYTES: usize = 64 << 10;

/// Makes one frame from a stream of unknown length. Dropped without `finish`, the frame has no end mark, so what
/// was written can never pass for a whole object.
pub struct Encoder<W: Write> {
    stream: Stream,
    out: Vec<u8>,
    inner: W,
}

impl<W: Write> Encoder<W> {
    /// An encoder that writes to `inner`.
    pub fn new(compression: Compression, inner: W) -> Result<Encoder<W>> {
        Ok(Encoder {
            stream: Stream::new(compression)?,
            out: Vec::with_capacity(2 * ENCODER_OUT_BYTES),
            inner,
        })
    }

    /// Writes what is left and the end mark, and gives the writer back. The writer is not flushed.
    pub fn finish(mut self) -> Result<W> {
        self.stream.end(&mut self.out)?;
        self.inner
            .write_all(&self.out)
            .map_err(|e| from_io("could not write compressed bytes", e))?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, raw: &[u8]) -> io::Result<usize> {
        // Bounded steps, so that the compressed bytes that gather are bounded too.
        let raw = &raw[..raw.len().min(crate::limits::COPY_BUFFER_BYTES)];
        self.stream.push(raw, &mut self.out)?;
        if self.out.len() >= ENCODER_OUT_BYTES {
            self.inner.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(raw.len())
    }

    /// Hands on what is ready; what the compressor still holds stays there, a forced block would cost space.
    fn flush(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.out)?;
        self.out.clear();
        self.inner.flush()
    }
}

/// Reads all frames of a stored object, strictly (C2 to C4). After an error every further read fails too.
pub fn decoder(method: Method, stored: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    match method {
        Method::Zstd => Box::new(frames::Reader::new(stored, zstd::Decode::new())),
        Method::Gzip => Box::new(frames::Reader::new(stored, gzip::Decode::new())),
        Method::Lz4 => Box::new(lz4::Reader::new(stored)),
    }
}

#[cfg(test)]
mod tests;
