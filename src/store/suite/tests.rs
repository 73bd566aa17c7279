//! The suite over the stores of this room, and over flawed ones: every case must be able to fail.

use super::*;
use crate::store::faulty::Faulty;
use crate::store::file::FileStore;
use crate::store::mem::MemStore;
use crate::store::retry::testing::{FakeClock, patient};
use crate::store::{Body, Features};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

/// A prepared file store below `dir`, another one at each call.
fn file_store(dir: &Path) -> Box<dyn Store> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let store = FileStore::new(dir.join(number.to_string()));
    store.prepare().unwrap();
    Box::new(store)
}

/// A store whose every seventh call fails, below a retry whose clock needs no time.
fn unsteady(inner: Box<dyn Store>, seed: u64) -> Box<dyn Store> {
    let faulty = Faulty::seeded(inner, seed, 15);
    Box::new(patient(Box::new(faulty), FakeClock::new()))
}

#[test]
fn mem_conforms() {
    run(&|| Box::new(MemStore::new()));
}

#[test]
fn file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    run(&|| file_store(dir.path()));
}

#[test]
fn retry_makes_an_unsteady_mem_conform() {
    for seed in 0..2 {
        run(&|| unsteady(Box::new(MemStore::new()), seed));
    }
}

#[test]
fn retry_makes_an_unsteady_file_conform() {
    let dir = tempfile::tempdir().unwrap();
    run(&|| unsteady(file_store(dir.path()), 7));
}

#[test]
fn an_unsteady_store_alone_does_not_conform() {
    let make = || Box::new(Faulty::seeded(Box::new(MemStore::new()), 1, 15)) as Box<dyn Store>;
    assert!(catch_unwind(AssertUnwindSafe(|| run(&make))).is_err());
}

/// One way to break a promise for each case of the suite.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    MissingIsEmpty,
    SizeIsWrong,
    Overwrites,
    DropsEvenBytes,
    PiecesAsTheyCome,
    ShowsUnfinished,
    BelievesFinish,
    UploadOverwrites,
    EndsEarly,
    PlusIsSpace,
    UnorderedListing,
    OnePage,
    SwallowsErrors,
    DeletesNothing,
    LooksThenWrites,
    OneReader,
}

const FLAWS: &[(Flaw, &str)] = &[
    (Flaw::MissingIsEmpty, "an absent object"),
    (Flaw::SizeIsWrong, "an object comes back as it was stored"),
    (Flaw::Overwrites, "absent never replaces, always does"),
    (Flaw::DropsEvenBytes, "sizes around a piece"),
    (
        Flaw::PiecesAsTheyCome,
        "pieces in any order, from several threads",
    ),
    (Flaw::ShowsUnfinished, "a dropped upload leaves nothing"),
    (
        Flaw::BelievesFinish,
        "a finish that does not fit its pieces is refused",
    ),
    (Flaw::UploadOverwrites, "an upload obeys absent and always"),
    (Flaw::EndsEarly, "a body from any offset"),
    (Flaw::PlusIsSpace, "odd characters in keys"),
    (Flaw::UnorderedListing, "siblings that share a prefix"),
    (Flaw::OnePage, "a long listing"),
    (
        Flaw::SwallowsErrors,
        "an error of the caller ends a listing",
    ),
    (Flaw::DeletesNothing, "a deleted object is gone"),
    (Flaw::LooksThenWrites, "of many writers one wins"),
    (Flaw::OneReader, "many readers"),
];

#[test]
fn each_case_can_fail() {
    run(&|| Box::new(Flawed::new(Flaw::None)));
    assert_eq!(FLAWS.len(), CASES.len());
    for ((flaw, caught_by), (name, case)) in FLAWS.iter().zip(CASES) {
        assert_eq!(caught_by, name);
        let make = || Box::new(Flawed::new(*flaw)) as Box<dyn Store>;
        let subject = Subject::new(&make);
        let verdict = catch_unwind(AssertUnwindSafe(|| case(&subject)));
        assert!(verdict.is_err(), "{flaw:?} passed \"{name}\"");
    }
}

#[derive(Clone)]
struct Flawed {
    inner: MemStore,
    flaw: Flaw,
    readers: Arc<AtomicU64>,
    looked: Arc<Barrier>,
}

impl Flawed {
    fn new(flaw: Flaw) -> Flawed {
        Flawed {
            inner: MemStore::new(),
            flaw,
            readers: Arc::default(),
            looked: Arc::new(Barrier::new(WRITERS)),
        }
    }

    fn key(&self, key: &Key) -> Key {
        match self.flaw {
            Flaw::PlusIsSpace => k(&key.as_str().replace('+', " ")),
            _ => key.clone(),
        }
    }
}

impl Store for Flawed {
    fn location(&self) -> String {
        "flawed://".to_string()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        let key = self.key(key);
        let when = match self.flaw {
            Flaw::Overwrites => When::Always,
            Flaw::LooksThenWrites if when == When::Absent => {
                let found = self.inner.head(&key)?;
                // Every writer has looked before the first one writes.
                self.looked.wait();
                match found {
                    Some(_) => When::Absent,
                    None => When::Always,
                }
            }
            _ => when,
        };
        self.inner.put(&key, bytes, when)
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        Ok(Box::new(FlawedUpload {
            store: self.clone(),
            key: key.clone(),
            when,
            bytes: Mutex::default(),
            inner: self.inner.begin(key, when)?,
        }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        let got = self.inner.get(&self.key(key), offset);
        if self.flaw == Flaw::MissingIsEmpty && got.is_err() {
            let size = 0;
            let (version, reader) = (None, Box::new(std::io::empty()));
            return Ok(Body {
                size,
                version,
                reader,
            });
        }
        let mut body = got?;
        match self.flaw {
            Flaw::EndsEarly if offset > 0 => {
                let left = body.size - offset;
                body.reader = Box::new(body.reader.take(left.saturating_sub(1)));
            }
            // A position that all readers share.
            Flaw::OneReader if self.readers.fetch_add(1, Ordering::Relaxed) > 0 => {
                body.reader = Box::new(std::io::empty());
            }
            _ => {}
        }
        Ok(body)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let mut found = self.inner.head(&self.key(key))?;
        if let (Flaw::SizeIsWrong, Some(info)) = (self.flaw, &mut found) {
            info.size += 1;
        }
        Ok(found)
    }

    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let mut page = Vec::new();
        self.inner.list(prefix, after, &mut |info| {
            page.push(info);
            Ok(true)
        })?;
        match self.flaw {
            // As a walk that sorts each directory by its bare names.
            Flaw::UnorderedListing => page.sort_by_key(|i| i.key.as_str().replace('/', "\0")),
            Flaw::OnePage => page.truncate(1_000),
            _ => {}
        }
        for info in page {
            match each(info) {
                Err(_) if self.flaw == Flaw::SwallowsErrors => {}
                Ok(true) => {}
                other => return other.map(|_| ()),
            }
        }
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        match self.flaw {
            Flaw::DeletesNothing => Ok(()),
            _ => self.inner.delete(&self.key(key)),
        }
    }

    fn settle(&self, key: &Key) -> Result<()> {
        self.inner.settle(&self.key(key))
    }
}

struct FlawedUpload {
    store: Flawed,
    key: Key,
    when: When,
    bytes: Mutex<Vec<u8>>,
    inner: Box<dyn Upload>,
}

impl Upload for FlawedUpload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut all = self.bytes.lock().unwrap();
        all.extend_from_slice(bytes);
        if self.store.flaw == Flaw::ShowsUnfinished {
            self.store.inner.put(&self.key, &all, When::Always)?;
        }
        self.inner.piece(number, offset, bytes)
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let store = &self.store.inner;
        match self.store.flaw {
            Flaw::PiecesAsTheyCome | Flaw::BelievesFinish => {
                store.put(&self.key, &bytes, self.when)
            }
            Flaw::UploadOverwrites => store.put(&self.key, &bytes, When::Always),
            // An object of whole pieces loses its last one, as with a buffer that is sent when the next comes.
            Flaw::DropsEvenBytes if size.is_multiple_of(UPLOAD_PIECE_BYTES as u64) => {
                let kept = bytes.len() - UPLOAD_PIECE_BYTES;
                store.put(&self.key, &bytes[..kept], self.when)
            }
            _ => self.inner.finish(pieces, size),
        }
    }
}
