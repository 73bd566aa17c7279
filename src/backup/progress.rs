//! How far a backup or restore is: counted by the workers, shown by whoever asked for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes done of bytes expected, and what is going on.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Sets how many raw bytes are expected.
    pub fn expect(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// Counts raw bytes that were handled.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Raw bytes done and expected.
    pub fn read(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}
