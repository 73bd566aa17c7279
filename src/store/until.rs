//! Until: a store of which nothing more is asked once it is time to stop. Between two requests, keys or bytes it looks;
//! a request that hangs must be ended by the backend.

use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::error::Result;
use crate::work::stop::Stop;
use std::io::{self, Read};
use std::time::Duration;

/// A store up to a stop.
pub struct Until {
    inner: Box<dyn Store>,
    stop: Stop,
}

impl Until {
    /// Wraps `inner`.
    pub fn new(inner: Box<dyn Store>, stop: Stop) -> Until {
        Until { inner, stop }
    }
}

impl Store for Until {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn prepare(&self) -> Result<()> {
        self.stop.check()?;
        self.inner.prepare()
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        self.stop.check()?;
        self.inner.put(key, bytes, when)
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        self.stop.check()?;
        Ok(Box::new(UploadUntil {
            inner: self.inner.begin(key, when)?,
            stop: self.stop.clone(),
        }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        self.stop.check()?;
        let body = self.inner.get(key, offset)?;
        let reader = ReadUntil {
            inner: body.reader,
            stop: self.stop.clone(),
        };
        Ok(Body {
            reader: Box::new(reader),
            ..body
        })
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        self.stop.check()?;
        self.inner.head(key)
    }

    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        self.stop.check()?;
        self.inner.list(prefix, after, &mut |info| {
            self.stop.check()?;
            each(info)
        })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.stop.check()?;
        self.inner.delete(key)
    }

    fn settle(&self, key: &Key) -> Result<()> {
        self.stop.check()?;
        self.inner.settle(key)
    }

    fn sweep(&self, older_than: Duration) -> Result<usize> {
        self.stop.check()?;
        self.inner.sweep(older_than)
    }
}

struct UploadUntil {
    inner: Box<dyn Upload>,
    stop: Stop,
}

impl Upload for UploadUntil {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        self.stop.check()?;
        self.inner.piece(number, offset, bytes)
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        self.stop.check()?;
        self.inner.finish(pieces, size)
    }
}

struct ReadUntil {
    inner: Box<dyn Read + Send>,
    stop: Stop,
}

impl Read for ReadUntil {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.inner.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind, from_io};
    use crate::store::mem::MemStore;
    use crate::store::suite;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    /// A store with three objects, and what ends it.
    fn three() -> (Until, Stop) {
        let inner = MemStore::new();
        for name in ["a", "b", "c"] {
            inner.put(&key(name), b"bytes", When::Absent).unwrap();
        }
        let stop = Stop::new();
        (Until::new(Box::new(inner), stop.clone()), stop)
    }

    fn is_interrupted<T>(result: Result<T>) -> bool {
        result.is_err_and(|e: Error| e.kind() == Kind::Interrupted)
    }

    #[test]
    fn until_then_it_is_a_store() {
        suite::run(&|| Box::new(Until::new(Box::new(MemStore::new()), Stop::new())));
    }

    #[test]
    fn a_listing_ends_in_its_midst() {
        let (store, stop) = three();
        let mut seen = 0;
        let listed = store.list("", "", &mut |_| {
            seen += 1;
            stop.set();
            Ok(true)
        });
        assert!(is_interrupted(listed));
        assert_eq!(seen, 1);
    }

    #[test]
    fn bodies_and_uploads_end_and_nothing_new_begins() {
        let (store, stop) = three();
        let mut body = store.get(&key("a"), 0).unwrap();
        let upload = store.begin(&key("d"), When::Absent).unwrap();
        upload.piece(0, 0, b"x").unwrap();
        stop.set();
        let read = body.reader.read(&mut [0; 8]);
        assert!(is_interrupted(read.map_err(|e| from_io("read", e))));
        assert!(is_interrupted(upload.piece(1, 1, b"y")));
        assert!(is_interrupted(upload.finish(1, 1)));
        assert!(is_interrupted(store.put(&key("d"), b"", When::Always)));
        assert!(is_interrupted(store.head(&key("a"))));
        assert!(is_interrupted(store.delete(&key("a"))));
    }
}
