//! Codecs: bytes in, bytes out, in bounded memory. Every frame carries a checksum of its content, and every
//! decoder reads all frames of an object and refuses one that is empty, ends before its end mark, or goes on
//! after its last frame, because the crates underneath do not do all of that by themselves.

pub mod digest;
mod gzip;
mod lz4;
pub mod tar;
mod zstd;

use crate::error::{Error, Kind, Result, from_io};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::str::FromStr;

/// How an object is compressed; its extension says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Zstandard, RFC 8878: the default.
    Zstd,
    /// gzip, RFC 1952.
    Gzip,
    /// LZ4's frame format.
    Lz4,
}

impl Method {
    /// All of them, the default first.
    pub const ALL: [Method; 3] = [Method::Zstd, Method::Gzip, Method::Lz4];

    /// What follows the last dot of a key.
    pub fn extension(self) -> &'static str {
        match self {
            Method::Zstd => "zst",
            Method::Gzip => "gz",
            Method::Lz4 => "lz4",
        }
    }

    /// The method that an extension names.
    pub fn from_extension(extension: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.extension() == extension)
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
        Method::ALL.into_iter().find(|method| method.to_string() == text).ok_or_else(|| {
            Error::new(Kind::Config, format!("\"{text}\" is not a compression method"))
                .hint("Methods are zstd, gzip and lz4.")
        })
    }
}

/// A method with its level, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// The method.
    pub method: Method,
    level: i32,
}

impl Compression {
    /// Level 1 unless another is given: -7 to 19 for zstd, 1 to 9 for gzip; lz4 has one level only.
    pub fn new(method: Method, level: Option<i32>) -> Result<Compression> {
        let (low, high) = match method {
            Method::Zstd => (-7, 19),
            Method::Gzip => (1, 9),
            Method::Lz4 => (1, 1),
        };
        let level = level.unwrap_or(1);
        if (low..=high).contains(&level) && level != 0 {
            return Ok(Compression { method, level });
        }
        Err(Error::new(Kind::Config, format!("{level} is not a compression level of {method}"))
            .detail(format!("Levels are {low} to {high}, without 0.")))
    }
}

/// Makes whole frames out of slices; its context is used again for each.
pub struct Compressor {
    compression: Compression,
    zstd: Option<zstd::FrameMaker>,
}

impl Compressor {
    /// A compressor for one thread.
    pub fn new(compression: Compression) -> Result<Compressor> {
        let zstd = match compression.method {
            Method::Zstd => Some(zstd::FrameMaker::new(compression.level)?),
            _ => None,
        };
        Ok(Compressor { compression, zstd })
    }

    /// Appends one whole frame that holds `raw`.
    pub fn frame(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match &mut self.zstd {
            Some(maker) => maker.frame(raw, out),
            None => {
                let mut encoder = Encoder::new(self.compression, out)?;
                encoder.write_all(raw).map_err(|e| from_io("could not compress", e))?;
                encoder.finish().map(|_| ())
            }
        }
    }
}

/// Compresses a stream of unknown length into one frame.
pub enum Encoder<W: Write> {
    /// Zstandard.
    Zstd(::zstd::stream::write::Encoder<'static, W>),
    /// gzip.
    Gzip(flate2::write::GzEncoder<W>),
    /// LZ4.
    Lz4(Box<lz4_flex::frame::FrameEncoder<W>>),
}

impl<W: Write> Encoder<W> {
    /// An encoder that writes to `out`.
    pub fn new(compression: Compression, out: W) -> Result<Encoder<W>> {
        match compression.method {
            Method::Zstd => zstd::encoder(compression.level, out).map(Encoder::Zstd),
            Method::Gzip => Ok(Encoder::Gzip(gzip::encoder(compression.level, out))),
            Method::Lz4 => Ok(Encoder::Lz4(Box::new(lz4::encoder(out)))),
        }
    }

    /// Writes the end of the frame; answers the output.
    pub fn finish(self) -> Result<W> {
        let finished = match self {
            Encoder::Zstd(encoder) => encoder.finish(),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Lz4(encoder) => encoder.finish().map_err(io::Error::from),
        };
        finished.map_err(|e| from_io("could not compress", e))
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Zstd(encoder) => encoder.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Lz4(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Zstd(encoder) => encoder.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Lz4(encoder) => encoder.flush(),
        }
    }
}

/// Reads all frames of an object. Damage is `Kind::Corrupt` inside the `io::Error`; an error of `object` itself
/// comes through unchanged, so that an outage never looks like damage.
pub fn decoder(method: Method, object: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    let object = Frames::new(object);
    match method {
        Method::Zstd => Box::new(zstd::Decoder::new(object)),
        Method::Gzip => Box::new(gzip::Decoder::new(object)),
        Method::Lz4 => Box::new(lz4::Decoder::new(object)),
    }
}

/// Input of a decoder. Inside a frame the end of the object is an error, so no crate can take it for the end of
/// the data.
struct Frames<R> {
    inner: BufReader<R>,
    inside: bool,
    frames: u64,
}

/// Input buffer of a decoder.
const INPUT_BYTES: usize = 128 << 10;

impl<R: Read> Frames<R> {
    fn new(inner: R) -> Frames<R> {
        Frames { inner: BufReader::with_capacity(INPUT_BYTES, inner), inside: false, frames: 0 }
    }

    /// Between frames: whether another one begins. An object without any is damaged.
    fn begin(&mut self) -> io::Result<bool> {
        self.inside = false;
        let more = !filled(&mut self.inner)?.is_empty();
        if !more && self.frames == 0 {
            return Err(corrupt("the object is empty").into());
        }
        self.frames += u64::from(more);
        self.inside = more;
        Ok(more)
    }

    /// What a crate says about a frame; our own errors and those of the object stay what they are.
    fn judge(&self, cause: io::Error) -> io::Error {
        let ours = cause.get_ref().is_some_and(|e| e.is::<Error>());
        match cause.kind() {
            _ if ours => cause,
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
                let what = match self.frames {
                    1 => "the object is damaged".to_string(),
                    n => format!("the object is damaged, or something follows its last frame (frame {n})"),
                };
                corrupt(&what).because(cause).into()
            }
            _ => cause,
        }
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Frames<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let inside = self.inside;
        let available = filled(&mut self.inner)?;
        if available.is_empty() && inside {
            return Err(corrupt("the object ends before its end mark").into());
        }
        Ok(available)
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
    }
}

/// The object's own errors become ours here, so that `judge` can tell them from a decoder's.
fn filled<R: Read>(reader: &mut BufReader<R>) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(from_io("could not read the object", e).into()),
        }
    }
    Ok(reader.buffer())
}

fn corrupt(message: &str) -> Error {
    Error::new(Kind::Corrupt, message)
}

#[cfg(test)]
mod tests;
