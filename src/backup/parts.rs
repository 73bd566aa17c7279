//! Tar parts on their way to the store: compressed chunks arrive from the workers in any order, leave in order.
//!
//! A chunk is a whole compressed frame, so a part is frames one after another. Whoever completes a piece of the
//! upload sends it; the lock is held only while frames are put in order. While one chunk is slow (a disk that tries a
//! bad sector again and again), the others go on for a few frames and then wait for it, so memory is threads × chunk.

use crate::archive::sentinel::Object;
use crate::codec::Method;
use crate::codec::digest::{Sha256, hex};
use crate::error::{Error, Kind, Result};
use crate::limits::UPLOAD_PIECE_BYTES;
use crate::store::{Key, Store, Upload, When};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, RwLock};

/// One object under construction.
pub struct Part<'a> {
    store: &'a dyn Store,
    key: Key,
    method: Method,
    /// How many chunks may wait for an earlier one.
    window: u32,
    order: Mutex<Order>,
    /// An earlier chunk came, or none will come any more.
    moved: Condvar,
    /// Written once, to begin.
    upload: RwLock<Option<Box<dyn Upload>>>,
}

#[derive(Default)]
struct Order {
    next_chunk: u32,
    /// The number of chunks, once the last one is known.
    chunks: Option<u32>,
    early: BTreeMap<u32, Frame>,
    /// In order, not yet part of a piece.
    pending: Vec<u8>,
    digest: Option<Sha256>,
    raw_bytes: u64,
    cut_bytes: u64,
    pieces_cut: u32,
    pieces_sent: u32,
    object: Option<Object>,
    given_up: bool,
}

/// A compressed chunk.
struct Frame {
    bytes: Vec<u8>,
    raw_bytes: u64,
}

/// Bytes that one thread must send now.
struct Piece {
    number: u32,
    offset: u64,
    bytes: Vec<u8>,
    /// The only piece of its object: a PUT does.
    alone: bool,
}

impl<'a> Part<'a> {
    /// An object that nothing has been sent of. A chunk waits if it is `window` or more ahead of one that is missing.
    pub fn new(store: &'a dyn Store, key: Key, method: Method, window: u32) -> Part<'a> {
        let order = Order {
            digest: Some(Sha256::new()),
            ..Order::default()
        };
        Part {
            store,
            key,
            method,
            window,
            order: Mutex::new(order),
            moved: Condvar::new(),
            upload: RwLock::new(None),
        }
    }

    /// Takes chunk `number`, compressed from `raw_bytes`; `last` says that it is the part's last one. Sends
    /// what became complete.
    pub fn add(&self, number: u32, bytes: Vec<u8>, raw_bytes: u64, last: bool) -> Result<()> {
        let piece = {
            let mut order = self.locked();
            while number.saturating_sub(order.next_chunk) >= self.window.max(1) && !order.given_up {
                order = self.moved.wait(order).expect(ORDERED);
            }
            if order.given_up {
                return Err(Error::new(
                    Kind::Interrupted,
                    "interrupted: an earlier chunk of the part will not come",
                ));
            }
            if last {
                order.chunks = Some(number + 1);
            }
            order.early.insert(number, Frame { bytes, raw_bytes });
            order.take_in_order();
            self.moved.notify_all();
            order.cut()
        };
        match piece {
            Some(piece) => self.send(piece),
            None => Ok(()),
        }
    }

    /// A chunk of the part will never come: whoever waits for it wakes and fails.
    pub fn give_up(&self) {
        self.locked().given_up = true;
        self.moved.notify_all();
    }

    /// The finished object; `None` while something is missing.
    pub fn finished(&self) -> Option<Object> {
        self.locked().object.clone()
    }

    fn locked(&self) -> MutexGuard<'_, Order> {
        self.order.lock().expect(ORDERED)
    }

    fn send(&self, piece: Piece) -> Result<()> {
        if piece.alone {
            self.store.put(&self.key, &piece.bytes, When::Absent)?;
        } else {
            self.send_piece(&piece)?;
        }
        let (pieces, size) = {
            let mut order = self.locked();
            order.pieces_sent += 1;
            if !order.complete() {
                return Ok(());
            }
            (order.pieces_sent, order.cut_bytes)
        };
        if let Some(upload) = &*self.upload.read().expect(UNPOISONED) {
            upload.finish(pieces, size)?;
        }
        let mut order = self.locked();
        let digest = order.digest.take().expect("a part is finished once");
        order.object = Some(Object {
            key: self.key.to_string(),
            stored_bytes: size,
            raw_bytes: order.raw_bytes,
            sha256: hex(&digest.finish()),
            codec: self.method.to_string(),
            key_id: None,
        });
        Ok(())
    }

    fn send_piece(&self, piece: &Piece) -> Result<()> {
        if self.upload.read().expect(UNPOISONED).is_none() {
            let mut upload = self.upload.write().expect(UNPOISONED);
            if upload.is_none() {
                *upload = Some(self.store.begin(&self.key, When::Absent)?);
            }
        }
        let upload = self.upload.read().expect(UNPOISONED);
        upload
            .as_ref()
            .expect("begun above")
            .piece(piece.number, piece.offset, &piece.bytes)
    }
}

const ORDERED: &str = "no thread panics while it holds the order of a part";
const UNPOISONED: &str = "a panicking worker ends the backup";

impl Order {
    fn take_in_order(&mut self) {
        while let Some(frame) = self.early.remove(&self.next_chunk) {
            self.next_chunk += 1;
            self.raw_bytes += frame.raw_bytes;
            if let Some(digest) = &mut self.digest {
                digest.update(&frame.bytes);
            }
            if self.pending.is_empty() {
                self.pending = frame.bytes;
            } else {
                self.pending.extend_from_slice(&frame.bytes);
            }
        }
    }

    fn all_here(&self) -> bool {
        self.chunks == Some(self.next_chunk)
    }

    fn complete(&self) -> bool {
        self.all_here() && self.pending.is_empty() && self.pieces_sent == self.pieces_cut
    }

    fn cut(&mut self) -> Option<Piece> {
        let last = self.all_here();
        if self.pending.is_empty() || (self.pending.len() < UPLOAD_PIECE_BYTES && !last) {
            return None;
        }
        let bytes = std::mem::take(&mut self.pending);
        let piece = Piece {
            number: self.pieces_cut,
            offset: self.cut_bytes,
            alone: last && self.pieces_cut == 0,
            bytes,
        };
        self.cut_bytes += piece.bytes.len() as u64;
        self.pieces_cut += 1;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::mem::MemStore;

    #[test]
    fn chunks_in_any_order_become_one_object_in_order() {
        let chunk = |n: u32| vec![n as u8; UPLOAD_PIECE_BYTES / 3 + n as usize];
        let expected: Vec<u8> = (0..8).flat_map(chunk).collect();
        for order in [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [7, 6, 5, 4, 3, 2, 1, 0],
            [3, 0, 7, 1, 6, 2, 5, 4],
        ] {
            let store = MemStore::new();
            let key = Key::new("p").unwrap();
            let part = Part::new(&store, key.clone(), Method::Zstd, 8);
            for number in order {
                assert_eq!(part.finished(), None);
                part.add(number, chunk(number), 10, number == 7).unwrap();
            }
            let object = part.finished().unwrap();
            let mut stored = Vec::new();
            std::io::Read::read_to_end(&mut store.get(&key, 0).unwrap().reader, &mut stored)
                .unwrap();
            assert!(stored == expected);
            assert_eq!(
                (object.stored_bytes, object.raw_bytes),
                (expected.len() as u64, 80)
            );
            assert_eq!(object.sha256, hex(&crate::codec::digest::sha256(&expected)));
        }
    }

    #[test]
    fn few_wait_for_a_slow_chunk_and_none_for_one_that_will_not_come() {
        let store = MemStore::new();
        let part = Part::new(&store, Key::new("p").unwrap(), Method::Zstd, 2);
        part.add(1, vec![1], 1, false).unwrap();
        std::thread::scope(|scope| {
            let ahead = scope.spawn(|| part.add(2, vec![2], 1, true));
            part.give_up();
            let refused = ahead.join().unwrap().unwrap_err();
            assert_eq!(refused.kind(), Kind::Interrupted);
        });

        let part = Part::new(&store, Key::new("q").unwrap(), Method::Zstd, 2);
        std::thread::scope(|scope| {
            scope.spawn(|| part.add(3, vec![3], 1, true).unwrap());
            scope.spawn(|| part.add(2, vec![2], 1, false).unwrap());
            part.add(1, vec![1], 1, false).unwrap();
            part.add(0, vec![0], 1, false).unwrap();
        });
        assert_eq!(part.finished().unwrap().stored_bytes, 4);
    }

    #[test]
    fn workers_side_by_side_lose_nothing() {
        let store = MemStore::new();
        let key = Key::new("p").unwrap();
        let part = Part::new(&store, key.clone(), Method::Zstd, 8);
        let next = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if number >= 40 {
                            return;
                        }
                        part.add(number, vec![number as u8; 1 << 20], 1, number == 39)
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(part.finished().unwrap().stored_bytes, 40 << 20);
    }

    #[test]
    fn a_part_that_fits_into_a_piece_is_one_put() {
        let store = MemStore::new();
        let part = Part::new(&store, Key::new("p").unwrap(), Method::Zstd, 8);
        part.add(0, b"x".to_vec(), 1, true).unwrap();
        assert_eq!(part.finished().unwrap().stored_bytes, 1);
    }
}
