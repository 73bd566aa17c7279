//! Multipart upload: pieces in any order from any thread, one completion, abort when dropped unfinished.
//!
//! Pieces carry their CRC-32C, and the completion the CRC-32C of the whole object, combined from theirs: so the HEAD
//! after it can prove the object. S3 may answer a completion with 200 and an error in the body.

use super::client::{Ask, Client, Failure};
use super::error::{self, Refusal};
use super::object::crc_text;
use super::xml::{self, Completed};
use crate::codec::digest;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::store::{Key, Upload, When};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// S3 numbers pieces from 1 to this.
const PIECES_MAX: u32 = 10_000;

struct Piece {
    offset: u64,
    bytes: u64,
    etag: String,
    crc32c: u32,
}

/// An upload that S3 has begun.
pub struct S3Upload {
    client: Arc<Client>,
    key: Key,
    when: When,
    id: String,
    /// Threads insert what they have sent; nothing is held while sending.
    pieces: Mutex<BTreeMap<u32, Piece>>,
    /// A completion was sent: its answer may have been lost.
    asked: AtomicBool,
    /// The store said that the object is there, or that the upload is not: nothing to abort.
    closed: AtomicBool,
}

impl S3Upload {
    pub(super) fn begin(client: Arc<Client>, key: Key, when: When) -> Result<S3Upload> {
        let mut ask = Ask::of("POST", &key);
        ask.query = &[("uploads", "")];
        ask.body = Some(b"");
        ask.headers = client.keeping();
        if client.options.checksums {
            ask.headers
                .push(("x-amz-checksum-algorithm", "CRC32C".into()));
            ask.headers
                .push(("x-amz-checksum-type", "FULL_OBJECT".into()));
        }
        let answer = client.want(&ask)?;
        let status = answer.status;
        let text = answer.text(limits::ERROR_BODY_BYTES_MAX)?;
        let id = xml::upload_id(&text)
            .map_err(|reason| error::not_s3(status, &client.doing(&ask), &reason))?;
        Ok(S3Upload {
            client,
            key,
            when,
            id,
            pieces: Mutex::default(),
            asked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn pieces(&self) -> MutexGuard<'_, BTreeMap<u32, Piece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The completion's parts and the CRC-32C of the whole, if the pieces make exactly the object.
    fn whole(&self, pieces: u32, size: u64) -> Result<(Vec<xml::Part>, u32)> {
        let held = self.pieces();
        let mut parts = Vec::with_capacity(held.len());
        let (mut end, mut crc32c, mut gap) = (0u64, 0u32, false);
        for (expected, (&number, piece)) in held.iter().enumerate() {
            gap |= number as usize != expected || piece.offset != end;
            crc32c = digest::crc32c_combine(crc32c, piece.crc32c, piece.bytes as usize);
            end += piece.bytes;
            let checksum = self
                .client
                .options
                .checksums
                .then(|| crc_text(piece.crc32c));
            parts.push((number + 1, piece.etag.clone(), checksum));
        }
        if gap || parts.len() != pieces as usize || end != size {
            let message = format!("the pieces of {} do not make the object", self.key);
            return Err(Error::new(Kind::Bug, message).detail(format!(
                "{} pieces with {end} bytes were sent, {pieces} with {size} were announced.",
                parts.len()
            )));
        }
        Ok((parts, crc32c))
    }

    fn complete(&self, parts: &[xml::Part], crc32c: u32) -> Result<()> {
        let document = xml::complete_request(parts);
        let query = [("uploadId", self.id.as_str())];
        let mut ask = Ask::of("POST", &self.key);
        ask.query = &query;
        ask.body = Some(document.as_bytes());
        ask.headers.push(("content-type", "application/xml".into()));
        ask.headers.extend(self.client.condition(self.when));
        if self.client.options.checksums {
            ask.headers
                .push(("x-amz-checksum-crc32c", crc_text(crc32c)));
            ask.headers
                .push(("x-amz-checksum-type", "FULL_OBJECT".into()));
        }
        let doing = self.client.doing(&ask);
        let asked_before = self.asked.swap(true, Ordering::Relaxed);
        let refusal = match self.client.demand(&ask) {
            Ok(answer) => {
                let status = answer.status;
                let text = answer.text(limits::ERROR_BODY_BYTES_MAX)?;
                match xml::completed(&text) {
                    Ok(Completed::Done) => {
                        self.closed.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                    Ok(Completed::Failed(body)) => Refusal::within(status, body),
                    Err(reason) => return Err(error::not_s3(status, &doing, &reason)),
                }
            }
            Err(Failure::Refused(refusal)) => refusal,
            Err(Failure::Lost(error)) => return Err(error),
        };
        if refusal.is("NoSuchUpload") && self.is_ours(parts, crc32c, asked_before)? {
            self.closed.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(refusal.error(&doing))
    }

    /// After a completion whose acknowledgement was lost the upload is gone and the object is there. It is ours if its
    /// checksum says so, or, where none is told, if we had asked before and the size agrees.
    fn is_ours(&self, parts: &[xml::Part], crc32c: u32, asked_before: bool) -> Result<bool> {
        let size: u64 = self.pieces().values().map(|piece| piece.bytes).sum();
        Ok(match self.client.head(&self.key)? {
            Some(found) if found.size == size && !parts.is_empty() => match found.crc32c {
                Some(value) => value == crc32c,
                None => asked_before,
            },
            _ => false,
        })
    }

    fn abort(&self) -> Result<()> {
        let query = [("uploadId", self.id.as_str())];
        let mut ask = Ask::of("DELETE", &self.key);
        ask.query = &query;
        match self.client.demand(&ask) {
            Ok(answer) => answer.text(limits::ERROR_BODY_BYTES_MAX).map(drop),
            Err(Failure::Refused(refusal)) if refusal.is("NoSuchUpload") => Ok(()),
            Err(failure) => Err(failure.error(&self.client.doing(&ask))),
        }
    }
}

impl Upload for S3Upload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        if number >= PIECES_MAX {
            let message = format!("{} has more than {PIECES_MAX} pieces", self.key);
            return Err(
                Error::new(Kind::Refused, message).detail("S3 takes no more in one object.")
            );
        }
        let crc32c = crc32c::crc32c(bytes);
        let part = (number + 1).to_string();
        let query = [
            ("partNumber", part.as_str()),
            ("uploadId", self.id.as_str()),
        ];
        let mut ask = Ask::of("PUT", &self.key);
        ask.query = &query;
        ask.body = Some(bytes);
        if self.client.options.checksums {
            ask.headers
                .push(("x-amz-checksum-crc32c", crc_text(crc32c)));
        }
        let answer = self.client.want(&ask)?;
        let etag = answer.header("etag").map(str::to_string);
        let status = answer.status;
        answer.text(limits::ERROR_BODY_BYTES_MAX)?;
        let etag =
            etag.ok_or_else(|| error::not_s3(status, &self.client.doing(&ask), "it has no ETag"))?;
        let piece = Piece {
            offset,
            bytes: bytes.len() as u64,
            etag,
            crc32c,
        };
        self.pieces().insert(number, piece);
        Ok(())
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        let (parts, crc32c) = self.whole(pieces, size)?;
        if parts.is_empty() {
            // S3 completes no upload without parts.
            self.abort()?;
            self.closed.store(true, Ordering::Relaxed);
            return self.client.put(&self.key, b"", self.when);
        }
        if !self.closed.load(Ordering::Relaxed) {
            self.complete(&parts, crc32c)?;
        }
        self.client.verify(&self.key, size, Some(crc32c))
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.abort() {
            log::warn!(
                "an unfinished upload of {} remains: {}",
                self.key,
                error.one_line()
            );
        }
    }
}
