//! Pieces: which pieces of an upload have arrived. It proves that an object is whole before it appears.

use super::Key;
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Offset and length of each piece. Sent again, a piece counts once. The mutex is held for one insertion; the
/// pieces themselves are written beside it, by several threads.
#[derive(Default)]
pub(super) struct Pieces(Mutex<BTreeMap<u32, (u64, u64)>>);

impl Pieces {
    /// Notes that piece `number` arrived whole.
    pub(super) fn record(&self, number: u32, offset: u64, bytes: u64) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(number, (offset, bytes));
    }

    /// Checks that pieces `0..pieces` arrived and that they cover `0..size` without a gap or an overlap.
    pub(super) fn check(&self, key: &Key, pieces: u32, size: u64) -> Result<()> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = 0u64;
        let mut expected = 0u32;
        for (&number, &(offset, bytes)) in map.iter() {
            if number != expected || offset != end {
                return Err(broken(
                    key,
                    format!("Piece {number} begins at {offset}, not at {end}."),
                ));
            }
            expected += 1;
            end += bytes;
        }
        if (expected, end) == (pieces, size) {
            return Ok(());
        }
        Err(broken(
            key,
            format!(
                "{expected} pieces with {end} bytes arrived, {pieces} with {size} were announced."
            ),
        ))
    }
}

fn broken(key: &Key, detail: String) -> Error {
    Error::new(
        Kind::Bug,
        format!("the pieces of {key} do not make the object"),
    )
    .detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_gapless_object_is_whole() {
        let key = Key::new("x").unwrap();
        for (sent, pieces, size, whole) in [
            (vec![(0, 0, 5), (1, 5, 3)], 2, 8, true),
            (vec![(1, 5, 3), (0, 0, 5), (0, 0, 5)], 2, 8, true),
            (vec![], 0, 0, true),
            (vec![(0, 0, 5), (2, 5, 3)], 2, 8, false),
            (vec![(0, 0, 5), (1, 6, 3)], 2, 8, false),
            (vec![(0, 0, 5), (1, 4, 4)], 2, 8, false),
            (vec![(0, 0, 5)], 2, 5, false),
            (vec![(0, 0, 5)], 1, 6, false),
        ] {
            let got = Pieces::default();
            for (number, offset, bytes) in &sent {
                got.record(*number, *offset, *bytes);
            }
            assert_eq!(got.check(&key, pieces, size).is_ok(), whole, "{sent:?}");
        }
    }
}
