//! Numbers that look random and are the same for the same seed, `SEAWALL_TEST_SEED`, which is printed.

use std::ops::Range;
use std::time::Duration;

/// A row of such numbers (splitmix64).
pub struct Chance(u64);

impl Chance {
    /// The one that the environment names; 1 if it names none.
    pub fn new() -> Chance {
        let seed = std::env::var("SEAWALL_TEST_SEED").ok();
        let seed = seed.map_or(1, |text| {
            text.parse().expect("SEAWALL_TEST_SEED is a number")
        });
        println!("SEAWALL_TEST_SEED={seed}");
        Chance(seed)
    }

    /// A number below.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// A time between these milliseconds.
    pub fn millis(&mut self, between: Range<u64>) -> Duration {
        Duration::from_millis(between.start + self.below(between.end - between.start))
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}
