//! Pages of relation files: their checksum and their LSN.
//!
//! The checksum (PostgreSQL, `checksum_impl.h`) runs 32 modified FNV-1a sums side by side over the page's 32-bit
//! words, folds them, mixes in the page's number and keeps 16 bits that are never 0. The number is that of the
//! page in its relation (file number × pages per file + place in the file), so a page at a wrong place shows.

use super::Lsn;

/// Size of a data page unless the server was built otherwise (`ControlFile::block_size` tells).
pub const PAGE_BYTES: usize = 8192;

const LANES: usize = 32;
const LANE_BYTES: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
/// Where the sums start; part of the format.
const SEEDS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];
/// Places in the page's header: checksum, and end of the free space.
const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;

/// What a page looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageVerdict {
    /// All zeros: added to the file and not used yet. It has no checksum.
    New,
    /// The checksum fits.
    Good,
    /// The checksum does not fit, or the header is that of a new page with something behind it, which the
    /// server refuses to read just the same.
    Bad {
        /// When it was changed last, as far as its header can be believed: a page changed after a backup began
        /// is rewritten by replay, and may be torn when it is read.
        lsn: Lsn,
        /// What the page says.
        stored: u16,
        /// What it should say at this place.
        computed: u16,
    },
}

/// Checks a whole page, `block` being its number in the relation.
///
/// # Panics
/// If the length is not one that PostgreSQL can be built with (a power of two from 1 to 32 KiB).
pub fn verify(page: &[u8], block: u32) -> PageVerdict {
    let stored = u16_at(page, CHECKSUM_AT);
    let unused = u16_at(page, UPPER_AT) == 0;
    if unused && page.iter().all(|byte| *byte == 0) {
        return PageVerdict::New;
    }
    let computed = checksum(page, block);
    if stored == computed && !unused {
        return PageVerdict::Good;
    }
    PageVerdict::Bad {
        lsn: lsn(page),
        stored,
        computed,
    }
}

/// The LSN of the last change of the page.
pub fn lsn(page: &[u8]) -> Lsn {
    // Two halves, the high one first, each in the machine's order.
    let half = |at: usize| u64::from(u16_at(page, at)) | u64::from(u16_at(page, at + 2)) << 16;
    Lsn(half(0) << 32 | half(4))
}

/// The checksum that a page should carry as number `block` of its relation; what it carries does not matter.
///
/// # Panics
/// As `verify`.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    assert!(
        page.len().is_power_of_two() && (1024..=32_768).contains(&page.len()),
        "a page has 1 to 32 KiB"
    );
    let (rows, _) = page.as_chunks::<LANE_BYTES>();
    let mut first = rows[0];
    first[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
    let mut sums = SEEDS;
    mix(&mut sums, &first);
    for row in &rows[1..] {
        mix(&mut sums, row);
    }
    // Two rounds of zeros let the last words reach every bit.
    mix(&mut sums, &[0; LANE_BYTES]);
    mix(&mut sums, &[0; LANE_BYTES]);
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    (folded % 65_535 + 1) as u16
}

/// One word into each of the sums. The shift carries high bits down, which FNV-1a alone does not.
#[inline]
fn mix(sums: &mut [u32; LANES], row: &[u8; LANE_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The free space map of a table with 20,000 rows, PostgreSQL 15 with checksums.
    const MAP: &[u8] = include_bytes!("../../tests/fixtures/pages/freespace");

    #[test]
    fn real_pages_fit_at_their_place_and_nowhere_else() {
        let (pages, rest) = MAP.as_chunks::<8192>();
        assert_eq!((pages.len(), rest.len()), (3, 0));
        for (number, page) in (0u32..).zip(pages) {
            assert_eq!(verify(page, number), PageVerdict::Good, "page {number}");
            assert!(matches!(
                verify(page, number + 131_072),
                PageVerdict::Bad { .. }
            ));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        for at in (0..8192).step_by(7) {
            let mut page = MAP[..8192].to_vec();
            page[at] ^= 0x10;
            assert!(
                matches!(verify(&page, 0), PageVerdict::Bad { .. }),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_new_page_is_all_zeros() {
        let mut page = vec![0; 8192];
        assert_eq!(verify(&page, 7), PageVerdict::New);
        page[8191] = 1;
        assert!(matches!(verify(&page, 7), PageVerdict::Bad { .. }));
        // A good page whose first sector was lost is no new page.
        let mut lost = MAP[..8192].to_vec();
        lost[..512].fill(0);
        lost[8000] = 1;
        assert!(matches!(verify(&lost, 0), PageVerdict::Bad { .. }));
    }

    #[test]
    fn the_lsn_is_stored_high_half_first() {
        let mut page = vec![0; 8192];
        page[..8].copy_from_slice(&[0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3]);
        assert_eq!(lsn(&page).to_string(), "16/B374D848");
    }
}
