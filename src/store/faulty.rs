//! Faulty: a store that fails as told by a script, or at random by a seed. It proves that what stands above it
//! (retry, the archive, the verbs) keeps its promises when a store does not answer as it should.

use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::error::{Error, Kind, Result};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `Store::prepare`.
    Prepare,
    /// `Store::put`.
    Put,
    /// `Store::begin`.
    Begin,
    /// `Upload::piece`.
    Piece,
    /// `Upload::finish`.
    Finish,
    /// `Store::get`, and the body it gives.
    Get,
    /// `Store::head`.
    Head,
    /// `Store::list`.
    List,
    /// `Store::delete`.
    Delete,
    /// `Store::settle`.
    Settle,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and this is the error.
    Before(Kind),
    /// It is done, and this is the error: an acknowledgement that was lost.
    After(Kind),
    /// The body fails after so many bytes, the listing after so many keys; other calls fail before they begin.
    Cut(u64, Kind),
    /// The body ends after so many bytes as if that were all. Other calls do not fail.
    Short(u64),
    /// The lowest bit of this byte of the object is the other one. Other calls do not fail.
    Flip(u64),
}

/// A store that fails on purpose. Clones share the script.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: Arc<Plan>,
}

/// What fails next; shared with the uploads. A mutex, because calls come from many threads and each fault is used
/// once.
struct Plan(Mutex<Source>);

enum Source {
    Script(Vec<(Verb, Fault)>),
    Seed { state: u64, percent: u64 },
}

impl Faulty {
    /// Each entry fails the next call of its verb, in order; when there are none left, calls succeed.
    pub fn scripted(
        inner: Box<dyn Store>,
        script: impl IntoIterator<Item = (Verb, Fault)>,
    ) -> Faulty {
        let script = script.into_iter().collect();
        Faulty::with(inner, Source::Script(script))
    }

    /// About `percent` of all calls fail with `Kind::Transient`, before or after their effect or in between. With
    /// calls from one thread the same seed gives the same faults.
    pub fn seeded(inner: Box<dyn Store>, seed: u64, percent: u64) -> Faulty {
        let state = seed;
        Faulty::with(inner, Source::Seed { state, percent })
    }

    fn with(inner: Box<dyn Store>, source: Source) -> Faulty {
        let plan = Arc::new(Plan(Mutex::new(source)));
        let inner = Arc::from(inner);
        Faulty { inner, plan }
    }

    /// Entries of the script that were not used yet; a test that leaves some has not tried what it meant to.
    pub fn left(&self) -> usize {
        match &*self.plan.source() {
            Source::Script(script) => script.len(),
            Source::Seed { .. } => 0,
        }
    }
}

impl Store for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn prepare(&self) -> Result<()> {
        self.plan.call(Verb::Prepare, || self.inner.prepare())
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        self.plan
            .call(Verb::Put, || self.inner.put(key, bytes, when))
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        let begin = || self.inner.begin(key, when);
        let inner = self.plan.call(Verb::Begin, begin)?;
        let plan = Arc::clone(&self.plan);
        Ok(Box::new(FaultyUpload { inner, plan }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        let fault = self.plan.next(Verb::Get);
        if let Some(Fault::Before(kind) | Fault::After(kind)) = fault {
            return Err(planned(Verb::Get, kind));
        }
        let body = self.inner.get(key, offset)?;
        let Some(fault) = fault else { return Ok(body) };
        let reader = FaultyReader {
            inner: body.reader,
            fault,
            offset,
            given: 0,
        };
        Ok(Body {
            reader: Box::new(reader),
            ..body
        })
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        self.plan.call(Verb::Head, || self.inner.head(key))
    }

    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let fault = self.plan.next(Verb::List);
        if let Some(Fault::Before(kind)) = fault {
            return Err(planned(Verb::List, kind));
        }
        let mut count = 0;
        let mut enough = false;
        self.inner.list(prefix, after, &mut |info| {
            match fault {
                Some(Fault::Cut(keys, kind)) if keys == count => {
                    return Err(planned(Verb::List, kind));
                }
                _ => count += 1,
            }
            let go_on = each(info)?;
            enough = !go_on;
            Ok(go_on)
        })?;
        match fault {
            // A caller that had enough has hung up: nothing can fail any more.
            Some(Fault::After(kind) | Fault::Cut(_, kind)) if !enough => {
                Err(planned(Verb::List, kind))
            }
            _ => Ok(()),
        }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.plan.call(Verb::Delete, || self.inner.delete(key))
    }

    fn settle(&self, key: &Key) -> Result<()> {
        self.plan.call(Verb::Settle, || self.inner.settle(key))
    }

    fn sweep(&self, older_than: Duration) -> Result<usize> {
        self.inner.sweep(older_than)
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    plan: Arc<Plan>,
}

impl Upload for FaultyUpload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        self.plan
            .call(Verb::Piece, || self.inner.piece(number, offset, bytes))
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        self.plan
            .call(Verb::Finish, || self.inner.finish(pieces, size))
    }
}

impl Plan {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, verb: Verb, inner: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.next(verb) {
            Some(Fault::Before(kind) | Fault::Cut(_, kind)) => Err(planned(verb, kind)),
            Some(Fault::After(kind)) => {
                inner()?;
                Err(planned(verb, kind))
            }
            Some(Fault::Short(_) | Fault::Flip(_)) | None => inner(),
        }
    }

    fn next(&self, verb: Verb) -> Option<Fault> {
        match &mut *self.source() {
            Source::Script(script) => {
                let found = script.iter().position(|(wanted, _)| *wanted == verb)?;
                Some(script.remove(found).1)
            }
            Source::Seed { state, percent } => {
                if random(state) % 100 >= *percent {
                    return None;
                }
                Some(match random(state) % 3 {
                    0 => Fault::Before(Kind::Transient),
                    1 => Fault::After(Kind::Transient),
                    _ => Fault::Cut(random(state) % 5_000, Kind::Transient),
                })
            }
        }
    }
}

struct FaultyReader {
    inner: Box<dyn Read + Send>,
    fault: Fault,
    offset: u64,
    given: u64,
}

impl Read for FaultyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.fault {
            Fault::Cut(bytes, _) | Fault::Short(bytes) => bytes - self.given,
            _ => u64::MAX,
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return match self.fault {
                Fault::Cut(_, kind) => Err(planned(Verb::Get, kind).into()),
                _ => Ok(0),
            };
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if let Fault::Flip(byte) = self.fault {
            let start = self.offset + self.given;
            if (start..start + count as u64).contains(&byte) {
                buffer[(byte - start) as usize] ^= 1;
            }
        }
        self.given += count as u64;
        Ok(count)
    }
}

fn planned(verb: Verb, kind: Kind) -> Error {
    let verb = format!("{verb:?}").to_lowercase();
    Error::new(kind, format!("{verb} failed as planned"))
}

/// The next number of SplitMix64 (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::mem::MemStore;

    #[test]
    fn faults_come_in_order_and_do_what_they_say() {
        let key = Key::new("k").unwrap();
        let mem = MemStore::new();
        let script = [
            (Verb::Put, Fault::Before(Kind::Denied)),
            (Verb::Get, Fault::Flip(2)),
            (Verb::Put, Fault::After(Kind::Transient)),
            (Verb::Get, Fault::Short(1)),
            (Verb::Get, Fault::Cut(2, Kind::Transient)),
        ];
        let store = Faulty::scripted(Box::new(mem.clone()), script);
        let put = || store.put(&key, b"aaaa", When::Always).unwrap_err().kind();
        assert_eq!(put(), Kind::Denied);
        assert_eq!(mem.head(&key).unwrap(), None);
        assert_eq!(put(), Kind::Transient);
        assert_eq!(mem.head(&key).unwrap().unwrap().size, 4);

        let read = || {
            let mut bytes = Vec::new();
            let mut body = store.get(&key, 1).unwrap();
            let result = body.reader.read_to_end(&mut bytes).map_err(|_| ());
            (bytes, result)
        };
        assert_eq!(read(), (b"a`a".to_vec(), Ok(3)));
        assert_eq!(read(), (b"a".to_vec(), Ok(1)));
        assert_eq!(read(), (b"aa".to_vec(), Err(())));
        assert_eq!(store.left(), 0);
        assert_eq!(read(), (b"aaa".to_vec(), Ok(3)));
    }

    #[test]
    fn a_seed_repeats() {
        let faults = |seed| {
            let store = Faulty::seeded(Box::new(MemStore::new()), seed, 30);
            let mut out = Vec::new();
            for _ in 0..200 {
                out.push(store.plan.next(Verb::Get));
            }
            out
        };
        assert_eq!(faults(1), faults(1));
        assert_ne!(faults(1), faults(2));
        let failed = faults(1).iter().flatten().count();
        assert!((30..90).contains(&failed), "{failed} of 200");
    }
}
