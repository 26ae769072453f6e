//! Reproducible random numbers.

use std::ops::Range;

/// A generator of random numbers (SplitMix64): the same seed gives the same numbers.
pub(crate) struct Chance(u64);

impl Chance {
    /// Returns the generator for `seed`. The caller prints the seed of a failed test.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number in `range`, which must not be empty.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        range.start + mixed % (range.end - range.start)
    }
}
