//! Stores: keys and bytes, no WAL, no backups. One backend is one file; `retry`, `until` and `faulty` are decorators with
//! the same trait; `suite` is the one conformance test that every backend runs.
//!
//! What every backend promises:
//! * S1 `put` and `Upload::finish` answer `Ok` only when the whole object is durable under its final name.
//! * S2 With `When::Absent` an existing object is never changed; the answer is `Kind::Exists`.
//! * S3 A failed or dropped upload leaves nothing under the final name.
//! * S4 `Kind::Missing` from `get` and `None` from `head` mean that the store itself said the key is not there;
//!   a missing bucket, directory, permission or gateway never look like that.
//! * S5 Errors that may pass are `Kind::Transient`; nothing else is. No backend retries by itself.
//! * S6 A reader that ends before the object does gives an error, never a short success.

use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::work::stop::Stop;
use file::FileStore;
use retry::Retry;
use s3::S3;
use std::fmt;
use std::io::Read;
use std::time::Duration;
use until::Until;

#[doc(hidden)]
pub mod faulty;
pub mod file;
pub mod mem;
mod pieces;
mod prefix;
pub mod retry;
pub mod s3;
#[doc(hidden)]
pub mod suite;
mod until;

pub use prefix::Prefix;

/// The name of an object: relative to the prefix, parts joined by `/`, never empty parts, `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Checks the rules above.
    pub fn new(text: impl Into<String>) -> Result<Key> {
        let text = text.into();
        let fine =
            |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if text.split('/').all(fine) && text.len() <= 900 {
            return Ok(Key(text));
        }
        Err(Error::new(
            Kind::Corrupt,
            format!("{text:?} is not an object key"),
        ))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a store tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: Key,
    /// Stored bytes.
    pub size: u64,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
    /// CRC-32C of the stored bytes, where the store keeps and returns it for the whole object.
    pub crc32c: Option<u32>,
}

/// Whether an existing object may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Only if there is none: the rule for everything but the two replaceable objects.
    Absent,
    /// Always: `metadata.json` and `<segment>.growing`.
    Always,
}

/// What a backend can promise, as far as it is known without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `When::Absent` is decided by the store in one step. `false`: unknown or known to be ignored, so the
    /// caller must look first (`head`); some S3 servers say yes and overwrite.
    pub atomic_absent: bool,
}

/// An open object: its stored size and its bytes from the asked offset to the end.
pub struct Body {
    /// Stored bytes of the whole object.
    pub size: u64,
    /// What tells one version of the object from another (ETag, inode and time), for resuming.
    pub version: Option<String>,
    /// The bytes from the offset to the end; an early end is an error.
    pub reader: Box<dyn Read + Send>,
}

/// What `open` needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the archive is.
    pub prefix: Prefix,
    /// How to use S3, if it is there.
    pub s3: s3::Options,
    /// How patient to be.
    pub retry: retry::Policy,
    /// What ends the pauses between two tries.
    pub stop: Stop,
    /// What ends everything else too, requests under way included: for those who have nothing to take back in the store
    /// when they end.
    pub until: Option<Stop>,
}

/// The store of a prefix, behind its retries. Nothing is asked of it yet. The one place that names all backends.
pub fn open(options: &Options) -> Result<Box<dyn Store>> {
    let backend: Box<dyn Store> = match &options.prefix {
        Prefix::File(root) => Box::new(FileStore::new(root)),
        Prefix::S3 { bucket, path } => {
            let mut s3 = options.s3.clone();
            s3.stop = options.until.clone().unwrap_or_default();
            Box::new(S3::new(bucket, path, &s3)?)
        }
    };
    let stop = options.until.as_ref().unwrap_or(&options.stop).clone();
    let patient = Retry::new(backend, options.retry, stop);
    Ok(match &options.until {
        None => Box::new(patient),
        Some(stop) => Box::new(Until::new(Box::new(patient), stop.clone())),
    })
}

/// Keys and bytes. Every method may be called from many threads.
pub trait Store: Send + Sync {
    /// Where this is, without secrets, as in `s3://bucket/path` or `file:///dir`.
    fn location(&self) -> String;

    /// What it can promise.
    fn features(&self) -> Features;

    /// Makes the place of a new archive, where a place must exist before its first object: creates the directory
    /// of a file store. Called only while a prefix is initialised; `put` never creates it, because a directory
    /// that is not there may be one that is not mounted. Stores without directories do nothing.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Stores `bytes` whole under `key`.
    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()>;

    /// Begins an object that is larger than `limits::UPLOAD_PIECE_BYTES`, to be sent in pieces.
    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>>;

    /// Opens an object at `offset`; an offset equal to the size gives an empty reader, one beyond it an error.
    fn get(&self, key: &Key, offset: u64) -> Result<Body>;

    /// What the store knows of `key`; `None` when it is proven absent.
    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>>;

    /// Calls `each` for every object whose key begins with `prefix` and is greater than `after`, in key order
    /// (bytes). Pages are bounded; `each` returning `false` ends the listing early.
    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()>;

    /// Removes an object; absent is fine.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Makes sure that an existing object and its name are durable, before "it is there already" is believed.
    /// A store whose acknowledgement is durable looks whether it is there; `Kind::Missing` if not.
    fn settle(&self, key: &Key) -> Result<()>;

    /// Removes what killed writers left half-written and nobody has touched for `older_than`; answers how much of it
    /// there was. Stores that keep no half-written files do nothing.
    fn sweep(&self, _older_than: Duration) -> Result<usize> {
        Ok(0)
    }
}

/// An object sent in pieces. Dropped without `finish`: aborted, nothing remains under the final name.
pub trait Upload: Send + Sync {
    /// Sends piece `number` (from 0) that begins at `offset` of the object. Pieces may be sent by several threads
    /// and in any order; each but the last has at least `limits::UPLOAD_PIECE_BYTES` bytes. A piece that failed
    /// may be sent again.
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes the object appear, whole and durable, with `pieces` pieces and `size` bytes. Called once, and again
    /// only after a `Kind::Transient` error; a backend that knows it had finished then answers `Ok` again, and
    /// one whose store no longer knows the upload answers `Kind::Missing`.
    fn finish(&self, pieces: u32, size: u64) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_opens_its_store() {
        for text in ["file:///srv/none", "s3://bucket/path"] {
            let options = Options {
                prefix: Prefix::parse(text).unwrap(),
                s3: s3::Options::default(),
                retry: retry::Policy {
                    total: Duration::ZERO,
                    request_idle: Duration::from_secs(1),
                },
                stop: Stop::new(),
                until: Some(Stop::new()),
            };
            assert_eq!(open(&options).unwrap().location(), text);
        }
    }
}
