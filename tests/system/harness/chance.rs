//! Numbers at random that repeat with their seed.

use std::ops::Range;

/// A source of numbers (SplitMix64): the same seed, the same numbers.
pub(crate) struct Chance(u64);

impl Chance {
    /// Numbers that follow from `seed`. The caller says it when its test fails.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number in `range`, which is not empty.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        range.start + mixed % (range.end - range.start)
    }
}
