//! Watermark: a position that one thread raises and others read. While it is raised it never falls, so who reads an old
//! value acts too carefully, never too boldly.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that grows; 0 at first.
#[derive(Debug, Default)]
pub struct Watermark(AtomicU64);

impl Watermark {
    /// Where it is. What was made durable before it was raised there, is durable for who reads it here.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Begins anew at `value`, which may be lower: only while nobody raises it.
    pub fn restart(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// Raises it to `value`; a lower one changes nothing.
    pub fn raise(&self, value: u64) {
        self.0.fetch_max(value, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_or_begun_anew() {
        let mark = Watermark::default();
        for (value, expected) in [(5, 5), (3, 5), (9, 9), (0, 9)] {
            mark.raise(value);
            assert_eq!(mark.get(), expected);
        }
        mark.restart(4);
        assert_eq!(mark.get(), 4);
    }
}
