//! Read-ahead: a reader that a thread of its own reads, a few buffers ahead of who wants the bytes. Fetching and decoding go
//! on while the other side writes to its disk.

use super::{Handle, background};
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the thread has read: a buffer, and how much of it counts.
type Piece = io::Result<(Vec<u8>, usize)>;

/// The near end. Dropped, it waits for the thread, which ends with the one read that it is in.
pub struct ReadAhead {
    /// `None` when all was given, or an error.
    pieces: Option<Receiver<Piece>>,
    /// Emptied buffers go back.
    empty: Option<Sender<Vec<u8>>>,
    piece: (Vec<u8>, usize),
    given: usize,
    failed: bool,
    /// Raised when nobody wants more.
    unwanted: Arc<AtomicBool>,
    thread: Option<Handle<()>>,
}

impl ReadAhead {
    /// Reads `inner` on thread `name`, up to `buffers` times `bytes` ahead.
    pub fn start(
        name: &str,
        inner: impl Read + Send + 'static,
        buffers: usize,
        bytes: usize,
    ) -> Result<ReadAhead> {
        let (full, pieces) = bounded(buffers);
        let (back, empty) = bounded(buffers);
        for _ in 0..buffers {
            back.send(vec![0; bytes]).expect("it has room");
        }
        let unwanted = Arc::new(AtomicBool::new(false));
        let enough = unwanted.clone();
        let thread = background(name, move || read_ahead(inner, &full, &empty, &enough))?;
        Ok(ReadAhead {
            pieces: Some(pieces),
            empty: Some(back),
            piece: (Vec::new(), 0),
            given: 0,
            failed: false,
            unwanted,
            thread: Some(thread),
        })
    }

    /// The next piece; `false` at the end.
    fn next(&mut self) -> io::Result<bool> {
        if self.failed {
            // Not the end, which is what the closed channel looks like.
            return Err(Error::new(Kind::Bug, "read on after an error").into());
        }
        let Some(pieces) = &self.pieces else {
            return Ok(false);
        };
        match pieces.recv() {
            Ok(Ok(piece)) => {
                let emptied = std::mem::replace(&mut self.piece, piece);
                self.given = 0;
                if let Some(empty) = self.empty.as_ref().filter(|_| !emptied.0.is_empty()) {
                    // The thread may have come to the end.
                    let _ = empty.send(emptied.0);
                }
                Ok(true)
            }
            Ok(Err(e)) => {
                self.failed = true;
                Err(e)
            }
            Err(_) => {
                self.pieces = None;
                // A panic is not the end either.
                let ended = self.thread.take().map_or(Ok(()), Handle::join);
                self.failed = ended.is_err();
                ended.map(|()| false).map_err(io::Error::from)
            }
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || (self.given == self.piece.1 && !self.next()?) {
            return Ok(0);
        }
        let there = &self.piece.0[self.given..self.piece.1];
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.given += count;
        Ok(count)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Relaxed);
        // Both ends: it may wait at one of them.
        (self.pieces, self.empty) = (None, None);
        if let Some(thread) = self.thread.take() {
            // Nobody wants its bytes any more, so neither how it ended.
            let _ = thread.join();
        }
    }
}

/// Until the end, an error, or nobody wants more.
fn read_ahead(
    mut inner: impl Read,
    full: &Sender<Piece>,
    empty: &Receiver<Vec<u8>>,
    enough: &AtomicBool,
) {
    for mut buffer in empty {
        let piece = match fill(&mut inner, &mut buffer, enough) {
            Ok(0) => return,
            other => other.map(|count| (buffer, count)),
        };
        let failed = piece.is_err();
        if full.send(piece).is_err() || failed {
            return;
        }
    }
}

/// As much as there is room for, less only at the end. What came before an error does not count.
fn fill(inner: &mut impl Read, buffer: &mut [u8], enough: &AtomicBool) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() && !enough.load(Ordering::Relaxed) {
        match inner.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::from_io;

    /// Gives bytes one by one, and then what it is told to.
    struct Script {
        bytes: Vec<u8>,
        at: usize,
        end: fn() -> io::Result<usize>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.bytes.get(self.at) {
                Some(byte) => {
                    buffer[0] = *byte;
                    self.at += 1;
                    Ok(1)
                }
                None => (self.end)(),
            }
        }
    }

    fn ahead(count: usize, end: fn() -> io::Result<usize>) -> ReadAhead {
        let bytes = (0..count).map(|n| n as u8).collect();
        ReadAhead::start("ahead", Script { bytes, at: 0, end }, 2, 16).unwrap()
    }

    #[test]
    fn all_bytes_come_in_order_and_then_the_end() {
        for count in [0, 1, 15, 16, 17, 32, 1000] {
            let mut ahead = ahead(count, || Ok(0));
            let mut read = Vec::new();
            ahead.read_to_end(&mut read).unwrap();
            let expected: Vec<u8> = (0..count).map(|n| n as u8).collect();
            assert_eq!(read, expected);
            assert_eq!(ahead.read(&mut [0; 8]).unwrap(), 0, "still");
        }
    }

    #[test]
    fn an_error_or_a_panic_is_never_the_end() {
        let corrupt: fn() -> io::Result<usize> = || Err(Error::new(Kind::Corrupt, "bad").into());
        let panics: fn() -> io::Result<usize> = || panic!("odd");
        for (end, kind) in [(corrupt, Kind::Corrupt), (panics, Kind::Bug)] {
            let mut ahead = ahead(40, end);
            let mut read = Vec::new();
            let error = from_io("x", ahead.read_to_end(&mut read).unwrap_err());
            assert_eq!(error.kind(), kind);
            assert!(read.len() <= 40);
            let again = from_io("x", ahead.read(&mut [0; 8]).unwrap_err());
            assert_eq!(again.kind(), Kind::Bug);
        }
    }

    #[test]
    fn who_stops_reading_is_not_held_up() {
        // The thread waits for a buffer, or has all of them full.
        for wanted in [0, 1, 40] {
            let mut ahead = ahead(1000, || Ok(0));
            ahead.read_exact(&mut vec![0; wanted]).unwrap();
            drop(ahead);
        }
        // Or it is in the midst of filling one, which would take for ever.
        struct Slow(std::sync::mpsc::Sender<()>);
        impl Read for Slow {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                let _ = self.0.send(());
                std::thread::sleep(std::time::Duration::from_millis(1));
                Ok(1)
            }
        }
        let (reads, read) = std::sync::mpsc::channel();
        let ahead = ReadAhead::start("ahead", Slow(reads), 2, 1 << 30).unwrap();
        read.recv().unwrap();
        drop(ahead);
    }
}
