//! MemStore: the reference backend. It keeps S1 to S6 by the simplest means, so that what differs from it in the
//! conformance suite is wrong. Clones share their objects.

use super::pieces::Pieces;
use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

type Objects = BTreeMap<String, Object>;

/// A store in memory.
#[derive(Clone, Default)]
pub struct MemStore {
    /// A mutex rather than a channel: each verb is one look or one insertion, and readers share the bytes.
    objects: Arc<Mutex<Objects>>,
}

#[derive(Clone)]
struct Object {
    bytes: Arc<Vec<u8>>,
    modified: Timestamp,
    version: u64,
}

/// Numbers the objects of all stores.
static VERSION: AtomicU64 = AtomicU64::new(0);

impl MemStore {
    /// An empty store.
    pub fn new() -> MemStore {
        MemStore::default()
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, key: &Key, bytes: Vec<u8>, when: When) -> Result<()> {
        let mut objects = self.objects();
        if when == When::Absent && objects.contains_key(key.as_str()) {
            return Err(exists(key));
        }
        let object = Object {
            bytes: Arc::new(bytes),
            modified: now(),
            version: VERSION.fetch_add(1, Ordering::Relaxed),
        };
        objects.insert(key.as_str().to_string(), object);
        Ok(())
    }
}

impl Store for MemStore {
    fn location(&self) -> String {
        "mem://".to_string()
    }

    fn features(&self) -> Features {
        Features {
            atomic_absent: true,
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        self.insert(key, bytes.to_vec(), when)
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        Ok(Box::new(MemUpload {
            store: self.clone(),
            key: key.clone(),
            when,
            pieces: Pieces::default(),
            state: Mutex::new(State::Open(Vec::new())),
        }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        let found = self.objects().get(key.as_str()).cloned();
        let object = found.ok_or_else(|| missing(key))?;
        let size = object.bytes.len() as u64;
        if offset > size {
            return Err(beyond(key, offset, size));
        }
        let mut reader = Cursor::new(Shared(Arc::clone(&object.bytes)));
        reader
            .seek(SeekFrom::Start(offset))
            .map_err(|e| Error::io("could not seek in memory", e))?;
        Ok(Body {
            size,
            version: Some(object.version.to_string()),
            reader: Box::new(reader) as Box<dyn Read + Send>,
        })
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let found = self.objects().get(key.as_str()).cloned();
        Ok(found.map(|object| info(key.clone(), &object)))
    }

    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let mut from = match after >= prefix {
            true => Bound::Excluded(after.to_string()),
            false => Bound::Included(prefix.to_string()),
        };
        loop {
            // One at a time, so that `each` may use the store.
            let next = self
                .objects()
                .range((from, Bound::Unbounded))
                .next()
                .map(|(name, object)| (name.clone(), object.clone()));
            let Some((name, object)) = next.filter(|(name, _)| name.starts_with(prefix)) else {
                return Ok(());
            };
            if !each(info(Key::new(name.as_str())?, &object))? {
                return Ok(());
            }
            from = Bound::Excluded(name);
        }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.objects().remove(key.as_str());
        Ok(())
    }

    fn settle(&self, key: &Key) -> Result<()> {
        match self.objects().contains_key(key.as_str()) {
            true => Ok(()),
            false => Err(missing(key)),
        }
    }
}

struct MemUpload {
    store: MemStore,
    key: Key,
    when: When,
    pieces: Pieces,
    state: Mutex<State>,
}

enum State {
    Open(Vec<u8>),
    Finished,
}

impl Upload for MemUpload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Open(object) = &mut *state else {
            return Err(Error::new(Kind::Bug, "a piece after the end of the upload"));
        };
        let end = offset as usize + bytes.len();
        if object.len() < end {
            object.resize(end, 0);
        }
        object[offset as usize..end].copy_from_slice(bytes);
        self.pieces.record(number, offset, bytes.len() as u64);
        Ok(())
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(object) = &mut *state {
            self.pieces.check(&self.key, pieces, size)?;
            let bytes = std::mem::take(object);
            self.store.insert(&self.key, bytes, self.when)?;
            *state = State::Finished;
        }
        Ok(())
    }
}

/// Lets a `Cursor` read shared bytes without copying them.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn info(key: Key, object: &Object) -> ObjectInfo {
    ObjectInfo {
        key,
        size: object.bytes.len() as u64,
        modified: object.modified,
        crc32c: None,
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |d| d.as_micros() as i64))
}

fn missing(key: &Key) -> Error {
    Error::new(Kind::Missing, format!("there is no object {key}"))
}

fn exists(key: &Key) -> Error {
    Error::new(Kind::Exists, format!("the object {key} exists already"))
}

/// An offset that lies beyond an object: it is not the one whose size the caller knows.
pub(super) fn beyond(key: &Key, offset: u64, size: u64) -> Error {
    Error::new(
        Kind::Mismatch,
        format!("could not read {key} from byte {offset}"),
    )
    .detail(format!("The object has {size} bytes."))
}
