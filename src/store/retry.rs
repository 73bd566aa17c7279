//! Retry: tries again what failed with `Kind::Transient`, and nothing else, until its time is used up.
//!
//! * R1 The time (`Policy::total`) counts from the first failure of a call: a slow call is not punished, and each
//!   gets at least one more try. Within a body or a listing, bytes or keys that arrive start it anew, because a
//!   large object must survive more than one short outage.
//! * R2 Pauses double from `RETRY_PAUSE_FIRST` to `RETRY_PAUSE_MAX` and are drawn evenly between nothing and that
//!   (full jitter), so that many clients of one store that failed do not come back together. SIGTERM ends a pause.
//! * R3 A `put` or `finish` with `When::Absent` whose acknowledgement was lost meets its own object at the next
//!   try. Only the bytes tell whose it is: they are read back. The same bytes are success (after `settle`), other
//!   bytes are the `Kind::Exists` that they are. Without a failure of our own before it, `Kind::Exists` passes.
//! * R4 The same holds for a `finish` that meets an unknown upload (`Kind::Missing`) after a lost acknowledgement:
//!   done when the object is there with the bytes that were sent.
//! * R5 A body is continued at the byte where it broke, of the same version and size of the object. Another
//!   version is `Kind::Mismatch`, an object that was deleted meanwhile `Kind::Hole`; the caller may start again.

use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::error::{Error, Kind, Result, from_io};
use crate::limits::{COPY_BUFFER_BYTES, RETRY_PAUSE_FIRST, RETRY_PAUSE_MAX};
use crate::work::stop::Stop;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How patient to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Total time given to the transient failures of one object; zero means one try.
    pub total: Duration,
    /// How long one request may make no progress. The backends hold it; it stands here because the operator
    /// sets the two together.
    pub request_idle: Duration,
}

/// Time and chance, so that tests need no waiting.
pub trait Clock: Send + Sync {
    /// Time since any fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Sleeps; `true` when the process was told to stop.
    fn pause(&self, time: Duration) -> bool;

    /// An even draw from 0 to 1.
    fn draw(&self) -> f64;
}

/// A store that tries again.
pub struct Retry {
    shared: Arc<Shared>,
}

/// What uploads and readers need after the call that made them.
struct Shared {
    inner: Box<dyn Store>,
    total: Duration,
    clock: Box<dyn Clock>,
}

impl Retry {
    /// Wraps `inner`; `stop` ends every pause.
    pub fn new(inner: Box<dyn Store>, policy: Policy, stop: Stop) -> Retry {
        let clock = SystemClock {
            start: Instant::now(),
            stop,
        };
        Retry::with_clock(inner, policy, Box::new(clock))
    }

    /// The same with a given clock.
    pub fn with_clock(inner: Box<dyn Store>, policy: Policy, clock: Box<dyn Clock>) -> Retry {
        let shared = Shared {
            inner,
            total: policy.total,
            clock,
        };
        Retry {
            shared: Arc::new(shared),
        }
    }
}

impl Store for Retry {
    fn location(&self) -> String {
        self.shared.inner.location()
    }

    fn features(&self) -> Features {
        self.shared.inner.features()
    }

    fn prepare(&self) -> Result<()> {
        let shared = &self.shared;
        shared.run("preparing the archive", || shared.inner.prepare())
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        let shared = &self.shared;
        let mut tries = 0u32;
        let result = shared.run(&format!("storing {key}"), || {
            tries += 1;
            shared.inner.put(key, bytes, when)
        });
        match result {
            Err(error) if tries > 1 && error.kind() == Kind::Exists => {
                let whole = [Sent::Bytes(bytes)];
                shared.landed(key, bytes.len() as u64, whole.into_iter(), error)
            }
            other => other,
        }
    }

    /// An acknowledgement lost here leaves an upload without pieces in the store; it never shows as an object.
    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        let shared = &self.shared;
        let begin = || shared.inner.begin(key, when);
        let inner = shared.run(&format!("beginning {key}"), begin)?;
        Ok(Box::new(RetryUpload {
            shared: Arc::clone(shared),
            key: key.clone(),
            inner,
            sent: Mutex::default(),
        }))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        self.shared.open(key, offset)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let shared = &self.shared;
        shared.run(&format!("looking for {key}"), || shared.inner.head(key))
    }

    /// Goes on after the last key that `each` saw. An error of `each` itself is never retried.
    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let shared = &self.shared;
        let mut after = after.to_string();
        let mut patience = Patience::default();
        loop {
            let mut seen: Option<String> = None;
            let mut caller: Option<Error> = None;
            let result = shared.inner.list(prefix, &after, &mut |info| {
                seen = Some(info.key.as_str().to_string());
                Ok(each(info).unwrap_or_else(|error| {
                    caller = Some(error);
                    false
                }))
            });
            if let Some(error) = caller {
                return Err(error);
            }
            match result {
                Err(error) if error.kind() == Kind::Transient => {
                    if let Some(key) = seen {
                        after = key;
                        patience = Patience::default();
                    }
                    patience.wait(shared, &format!("listing \"{prefix}\""), error)?;
                }
                other => return other,
            }
        }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let shared = &self.shared;
        shared.run(&format!("deleting {key}"), || shared.inner.delete(key))
    }

    fn settle(&self, key: &Key) -> Result<()> {
        let shared = &self.shared;
        shared.run(&format!("settling {key}"), || shared.inner.settle(key))
    }

    /// Not worth a second try: the next run sweeps again.
    fn sweep(&self, older_than: Duration) -> Result<usize> {
        self.shared.inner.sweep(older_than)
    }
}

impl Shared {
    fn run<T>(&self, doing: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let mut patience = Patience::default();
        loop {
            match attempt() {
                Err(error) if error.kind() == Kind::Transient => {
                    patience.wait(self, doing, error)?;
                }
                other => return other,
            }
        }
    }

    fn open(self: &Arc<Self>, key: &Key, offset: u64) -> Result<Body> {
        let body = self.run(&format!("opening {key}"), || self.inner.get(key, offset))?;
        let reader = Resuming {
            shared: Arc::clone(self),
            key: key.clone(),
            size: body.size,
            version: body.version.clone(),
            offset,
            reader: Some(body.reader),
            ended: false,
            patience: Patience::default(),
        };
        Ok(Body {
            size: body.size,
            version: body.version,
            reader: Box::new(reader),
        })
    }

    /// R3 and R4: the object under `key` is what was sent, or `error` holds.
    fn landed<'a>(
        self: &Arc<Self>,
        key: &Key,
        size: u64,
        sent: impl Iterator<Item = Sent<'a>>,
        error: Error,
    ) -> Result<()> {
        let mut body = match self.open(key, 0) {
            Err(gone) if gone.kind() == Kind::Missing => return Err(error),
            other => other?,
        };
        let doing = format!("could not compare {key} with what was sent");
        let mut same = body.size == size;
        let mut total = 0;
        for piece in sent {
            total += piece.len();
            same = same
                && piece
                    .is_next_in(&mut body.reader)
                    .map_err(|e| from_io(&doing, e))?;
        }
        if !same || total != size {
            return Err(error);
        }
        log::info!("{key} was stored although its acknowledgement was lost");
        self.run(&format!("settling {key}"), || self.inner.settle(key))
    }
}

/// What is remembered of bytes that were sent.
enum Sent<'a> {
    Bytes(&'a [u8]),
    Piece { bytes: u64, crc32c: u32 },
}

impl Sent<'_> {
    fn len(&self) -> u64 {
        match self {
            Sent::Bytes(bytes) => bytes.len() as u64,
            Sent::Piece { bytes, .. } => *bytes,
        }
    }

    /// Whether `reader` goes on with exactly these bytes.
    fn is_next_in(&self, reader: &mut dyn Read) -> io::Result<bool> {
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let (mut done, mut crc) = (0u64, 0u32);
        while done < self.len() {
            let left = usize::try_from(self.len() - done).unwrap_or(usize::MAX);
            let most = buffer.len().min(left);
            let count = reader.read(&mut buffer[..most])?;
            if count == 0 {
                return Ok(false);
            }
            let got = &buffer[..count];
            crc = crc32c::crc32c_append(crc, got);
            if let Sent::Bytes(sent) = self
                && &sent[done as usize..][..count] != got
            {
                return Ok(false);
            }
            done += count as u64;
        }
        Ok(match self {
            Sent::Bytes(_) => true,
            Sent::Piece { crc32c, .. } => *crc32c == crc,
        })
    }
}

/// The failures of one call so far.
#[derive(Default)]
struct Patience {
    first_failure: Option<Duration>,
    failures: u32,
}

impl Patience {
    /// Pauses before the next try; or gives `error` back when the time is used up. The last pause ends with the
    /// time itself, so the last try is made at its end.
    fn wait(&mut self, shared: &Shared, doing: &str, error: Error) -> Result<()> {
        self.failures += 1;
        let now = shared.clock.now();
        let spent = now.saturating_sub(*self.first_failure.get_or_insert(now));
        if spent >= shared.total {
            return Err(match self.failures {
                1 => error,
                tries => error.also(format!(
                    "Gave up after {tries} tries in {}.",
                    seconds(spent)
                )),
            });
        }
        let longest = RETRY_PAUSE_FIRST
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(RETRY_PAUSE_MAX);
        let pause = longest
            .mul_f64(shared.clock.draw())
            .min(shared.total - spent);
        log::warn!(
            "{doing} failed, trying again in {}: {}",
            seconds(pause),
            error.one_line()
        );
        if shared.clock.pause(pause) {
            return Err(error
                .with_kind(Kind::Interrupted)
                .context(format!("stopped while waiting to try again ({doing})")));
        }
        Ok(())
    }
}

struct RetryUpload {
    shared: Arc<Shared>,
    key: Key,
    inner: Box<dyn Upload>,
    /// Length and CRC-32C of each piece, for R3 and R4. A mutex, held for one insertion: pieces come from several
    /// threads.
    sent: Mutex<BTreeMap<u32, (u64, u32)>>,
}

impl RetryUpload {
    fn sent(&self) -> MutexGuard<'_, BTreeMap<u32, (u64, u32)>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload for RetryUpload {
    fn piece(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let doing = format!("storing piece {number} of {}", self.key);
        self.shared
            .run(&doing, || self.inner.piece(number, offset, bytes))?;
        let sum = (bytes.len() as u64, crc32c::crc32c(bytes));
        self.sent().insert(number, sum);
        Ok(())
    }

    fn finish(&self, pieces: u32, size: u64) -> Result<()> {
        let mut tries = 0u32;
        let result = self.shared.run(&format!("finishing {}", self.key), || {
            tries += 1;
            self.inner.finish(pieces, size)
        });
        match result {
            Err(error) if tries > 1 && matches!(error.kind(), Kind::Exists | Kind::Missing) => {
                let sent = self.sent().clone();
                let sent = sent
                    .into_values()
                    .map(|(bytes, crc32c)| Sent::Piece { bytes, crc32c });
                self.shared.landed(&self.key, size, sent, error)
            }
            other => other,
        }
    }
}

/// The bytes of one version of one object, over as many requests as it takes.
struct Resuming {
    shared: Arc<Shared>,
    key: Key,
    size: u64,
    version: Option<String>,
    offset: u64,
    reader: Option<Box<dyn Read + Send>>,
    ended: bool,
    patience: Patience,
}

impl Read for Resuming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.offset == self.size {
            return Ok(self.end()?);
        }
        loop {
            match self.step(buffer) {
                Ok(count) => {
                    self.offset += count as u64;
                    self.patience = Patience::default();
                    return Ok(count);
                }
                Err(error) if error.kind() == Kind::Transient => {
                    self.reader = None;
                    let doing = format!("reading {} at byte {}", self.key, self.offset);
                    self.patience.wait(&self.shared, &doing, error)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Resuming {
    /// At least one byte from the present reader or a new one.
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.reopen()?,
        };
        let left = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let doing = format!("could not read {}", self.key);
        let count =
            retry_interrupted(&mut reader, &mut buffer[..most]).map_err(|e| from_io(&doing, e))?;
        if count == 0 {
            let (offset, size) = (self.offset, self.size);
            return Err(Error::new(Kind::Transient, doing)
                .detail(format!("The body ended at byte {offset} of {size}.")));
        }
        self.reader = Some(reader);
        Ok(count)
    }

    /// A reader at the present offset, of the object that was opened first.
    fn reopen(&self) -> Result<Box<dyn Read + Send>> {
        let body = match self.shared.inner.get(&self.key, self.offset) {
            Err(error) if error.kind() == Kind::Missing => {
                return Err(error
                    .with_kind(Kind::Hole)
                    .context(format!("{} was deleted while it was read", self.key)));
            }
            other => other?,
        };
        if body.size != self.size || body.version != self.version {
            return Err(Error::new(
                Kind::Mismatch,
                format!("{} was replaced while it was read", self.key),
            )
            .hint("Run the command again: it will read the new object from its beginning."));
        }
        Ok(body.reader)
    }

    /// All bytes are there. The backend's reader still hears of its end once: it may check a digest there or give
    /// its connection back. A transient error takes nothing away any more.
    fn end(&mut self) -> Result<usize> {
        let Some(mut reader) = self.reader.take().filter(|_| !self.ended) else {
            return Ok(0);
        };
        self.ended = true;
        let doing = format!("could not read {}", self.key);
        match retry_interrupted(&mut reader, &mut [0u8; 1]).map_err(|e| from_io(&doing, e)) {
            Ok(0) => Ok(0),
            Ok(_) => Err(Error::new(Kind::Corrupt, doing)
                .detail(format!("The body goes on after its {} bytes.", self.size))),
            Err(error) if error.kind() == Kind::Transient => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn retry_interrupted(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

struct SystemClock {
    start: Instant,
    stop: Stop,
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self, time: Duration) -> bool {
        self.stop.wait(time)
    }

    fn draw(&self) -> f64 {
        // The keys of the standard library's hasher are random per process and differ by call.
        let random = RandomState::new().hash_one(0u8);
        random as f64 / u64::MAX as f64
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
