//! How far a backup or restore is: counted by the workers, shown by whoever asked for it.

/// Somebody who watches. Called by many threads.
pub trait Progress: Sync {
    /// So many raw bytes are expected.
    fn expect(&self, bytes: u64);

    /// So many more raw bytes were handled.
    fn add(&self, bytes: u64);
}

/// Nobody watches.
pub struct Unwatched;

impl Progress for Unwatched {
    fn expect(&self, _bytes: u64) {}

    fn add(&self, _bytes: u64) {}
}
