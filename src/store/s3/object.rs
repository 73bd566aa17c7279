//! Single objects: stored and verified, proven absent, read from any offset whatever the server makes of a range.

use super::client::{Ask, Client, Failure};
use super::error::{self, Refusal};
use super::http::{Answer, BodyReader};
use crate::codec::digest;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::pg::timestamp::Timestamp;
use crate::store::{Body, Key, ObjectInfo, When};
use std::io::Read;

impl Client {
    /// Stores an object in one request.
    pub(super) fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        let crc32c = crc32c::crc32c(bytes);
        let mut ask = Ask::of("PUT", key);
        ask.body = Some(bytes);
        ask.headers = self.keeping();
        ask.headers.extend(self.condition(when));
        if self.options.checksums {
            ask.headers
                .push(("x-amz-checksum-crc32c", crc_text(crc32c)));
        }
        // The body of the answer says nothing; reading it gives the connection back.
        self.want(&ask)?.text(limits::ERROR_BODY_BYTES_MAX)?;
        self.verify(key, bytes.len() as u64, Some(crc32c))
    }

    /// What the store knows of a key; `None` only with proof.
    pub(super) fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let mut ask = Ask::of("HEAD", key);
        if self.options.checksums {
            ask.headers
                .push(("x-amz-checksum-mode", "ENABLED".to_string()));
        }
        let answer = self.ask(&ask)?;
        let doing = self.doing(&ask);
        match answer.status {
            200 => {
                let size = answer.length();
                check_object(&answer, &doing)?;
                let size = size.ok_or_else(|| error::not_s3(200, &doing, "it tells no length"))?;
                Ok(Some(info(key, size, &answer)))
            }
            408 | 429 | 500..=599 => Err(Refusal::read(answer)?.error(&doing)),
            _ if answer.header("x-amz-delete-marker") == Some("true") => {
                Err(Refusal::read(answer)?.error(&doing))
            }
            _ => self.ask_again(key),
        }
    }

    /// What a HEAD could not say for want of a body, asked as GET of one byte.
    fn ask_again(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let mut ask = Ask::of("GET", key);
        ask.headers.push(("range", "bytes=0-0".to_string()));
        let doing = self.doing(&ask);
        match self.demand(&ask) {
            Ok(answer) => {
                check_object(&answer, &doing)?;
                let total = content_range(&answer).map(|range| range.total);
                let size = total.or(answer.length().filter(|_| answer.status == 200));
                let size =
                    size.ok_or_else(|| error::not_s3(answer.status, &doing, "it tells no length"))?;
                Ok(Some(info(key, size, &answer)))
            }
            Err(Failure::Refused(refusal)) if refusal.is_missing_key() => Ok(None),
            Err(Failure::Refused(refusal)) if refusal.status == 416 => Ok(Some(ObjectInfo {
                key: key.clone(),
                size: 0,
                modified: Timestamp::default(),
                crc32c: None,
            })),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Believes a write only when the object shows itself, with its size and, where it is told, its checksum.
    pub(super) fn verify(&self, key: &Key, size: u64, crc32c: Option<u32>) -> Result<()> {
        let lie = |what: String| {
            Error::new(
                Kind::Unavailable,
                format!("the store acknowledged {}/{key} but {what}", self.location),
            )
            .hint("Something between answers in place of the store, or the store loses writes: do not trust it.")
        };
        let Some(found) = self.head(key)? else {
            return Err(lie("does not have it".to_string()));
        };
        if found.size != size {
            return Err(lie(format!("has {} bytes of {size}", found.size)));
        }
        match (found.crc32c, crc32c) {
            (Some(found), Some(sent)) if found != sent => Err(lie(format!(
                "has other bytes: CRC-32C {found:08x}, not {sent:08x}"
            ))),
            _ => Ok(()),
        }
    }

    /// Opens an object.
    pub(super) fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        let mut ask = Ask::of("GET", key);
        if offset > 0 {
            ask.headers.push(("range", format!("bytes={offset}-")));
        }
        let doing = self.doing(&ask);
        match self.demand(&ask) {
            Ok(answer) => self.open(key, offset, answer, &doing),
            Err(Failure::Refused(refusal)) if refusal.status == 416 && offset > 0 => {
                self.open_at_end(key, offset, &doing)
            }
            Err(Failure::Refused(refusal)) => Err(refusal.error_of_key(&doing)),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Finds out which bytes an answer holds: some servers send a range with status 200, some ignore the wish.
    fn open(&self, key: &Key, offset: u64, answer: Answer, doing: &str) -> Result<Body> {
        check_object(&answer, doing)?;
        let (size, skip) = match (content_range(&answer), answer.length()) {
            (Some(range), _) if range.start == offset && range.end + 1 == range.total => {
                (range.total, 0)
            }
            (Some(_), _) => {
                return Err(error::not_s3(
                    answer.status,
                    doing,
                    "it is another range than asked for",
                ));
            }
            (None, Some(length)) if offset == 0 => (length, 0),
            (None, length) => self.guess_range(key, offset, length, doing)?,
        };
        let version = answer.header("etag").map(str::to_string);
        let mut reader = ObjectReader {
            left: size - offset + skip,
            inner: answer.into_reader(),
            doing: doing.to_string(),
        };
        if skip > 0 {
            let skipped = std::io::copy(&mut (&mut reader).take(skip), &mut std::io::sink());
            skipped.map_err(|e| crate::error::from_io("could not skip to the offset", e))?;
        }
        Ok(Body {
            size,
            version,
            reader: Box::new(reader),
        })
    }

    /// Size and bytes to skip of an answer that does not say which bytes it holds.
    fn guess_range(
        &self,
        key: &Key,
        offset: u64,
        length: Option<u64>,
        doing: &str,
    ) -> Result<(u64, u64)> {
        let size = match self.head(key)? {
            Some(info) => info.size,
            None => return Err(error::not_s3(200, doing, "HEAD does not know the object")),
        };
        match length {
            _ if offset > size => Err(beyond(key, offset, size)),
            Some(length) if length == size => Ok((size, offset)),
            Some(length) if length == size - offset => Ok((size, 0)),
            None => Ok((size, offset)),
            Some(_) => Err(error::not_s3(
                200,
                doing,
                "its length fits neither the object nor the range",
            )),
        }
    }

    fn open_at_end(&self, key: &Key, offset: u64, doing: &str) -> Result<Body> {
        match self.head(key)? {
            Some(info) if info.size == offset => Ok(Body {
                size: offset,
                version: None,
                reader: Box::new(std::io::empty()),
            }),
            Some(info) => Err(beyond(key, offset, info.size)),
            None => Err(error::not_s3(416, doing, "HEAD does not know the object")),
        }
    }
}

/// An object's bytes, exactly as many as it has.
struct ObjectReader {
    inner: BodyReader,
    left: u64,
    doing: String,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            let message = format!(
                "the answer to {} ended {} bytes early",
                self.doing, self.left
            );
            return Err(Error::new(Kind::Transient, message).into());
        }
        self.left -= count as u64;
        if self.left == 0 {
            // Seeing the end gives the connection back to the pool. An error here no longer matters.
            let _ = self.inner.read(&mut [0]);
        }
        Ok(count)
    }
}

/// Whether a success comes from an object: S3 always tells an ETag, and pages of gateways are HTML.
fn check_object(answer: &Answer, doing: &str) -> Result<()> {
    let page = answer
        .header("content-type")
        .is_some_and(|t| t.starts_with("text/html"));
    let reason = if answer.header("etag").is_none() {
        "it has no ETag"
    } else if page && answer.header("x-amz-request-id").is_none() {
        "it is HTML"
    } else {
        return Ok(());
    };
    Err(error::not_s3(answer.status, doing, reason))
}

fn info(key: &Key, size: u64, answer: &Answer) -> ObjectInfo {
    let modified = answer
        .header("last-modified")
        .and_then(Timestamp::http_date);
    // A checksum of checksums (composite, of uploads in pieces) says nothing that we could compare.
    let whole = answer.header("x-amz-checksum-type") != Some("COMPOSITE");
    let crc32c = answer.header("x-amz-checksum-crc32c").filter(|_| whole);
    ObjectInfo {
        key: key.clone(),
        size,
        modified: modified.unwrap_or_default(),
        crc32c: crc32c.and_then(crc_value),
    }
}

struct ContentRange {
    start: u64,
    end: u64,
    total: u64,
}

/// `Content-Range: bytes 5-9/10`.
fn content_range(answer: &Answer) -> Option<ContentRange> {
    let text = answer.header("content-range")?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let range = ContentRange {
        start: start.trim().parse().ok()?,
        end: end.trim().parse().ok()?,
        total: total.trim().parse().ok()?,
    };
    (range.start <= range.end && range.end < range.total).then_some(range)
}

fn beyond(key: &Key, offset: u64, size: u64) -> Error {
    let message = format!("{key} has {size} bytes and cannot be read from {offset}");
    Error::new(Kind::Mismatch, message)
}

/// A CRC-32C as S3 writes it: base64 of its four bytes, highest first.
pub(super) fn crc_text(crc32c: u32) -> String {
    digest::base64(&crc32c.to_be_bytes())
}

/// The opposite; `None` for checksums of checksums (`…-7`) and anything else.
pub(super) fn crc_value(text: &str) -> Option<u32> {
    let digits = text.strip_suffix("==").filter(|d| d.len() == 6)?;
    let mut bits = 0u64;
    for byte in digits.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(digit);
    }
    u32::try_from(bits >> 4).ok()
}
