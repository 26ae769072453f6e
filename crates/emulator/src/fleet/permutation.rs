//! A keyed permutation of the numbers below `n`, computed without a table.
//!
//! Assigning shares along a permutation makes shares exact: ten per cent of a thousand devices are
//! exactly a hundred devices, and not a random number around a hundred.

/// A Feistel network over the smallest domain of even bit width, applied repeatedly until the
/// result is below `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permutation {
    n: u32,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// Returns the permutation of `0..n` for `key`.
    pub(crate) fn new(n: u32, key: u64) -> Self {
        let bits = u32::BITS - n.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(1);
        let keys =
            [1, 2, 3, 4].map(|round: u64| mix(key ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Self { n, half_bits, keys }
    }

    /// Returns the image of `i`, which must be below `n`.
    #[inline]
    pub(crate) fn at(&self, i: u32) -> u32 {
        let mut value = u64::from(i);
        // The domain is less than four times `n`: on average, the loop takes less than four turns.
        loop {
            value = self.once(value);
            if value < u64::from(self.n) || self.n == 0 {
                return u32::try_from(value).unwrap_or(0);
            }
        }
    }

    #[inline]
    fn once(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }

    /// Returns the position of `i` in the permuted order, as a share of the whole: `0 ≤ p < 1`.
    #[inline]
    pub(crate) fn share(&self, i: u32) -> f64 {
        (f64::from(self.at(i)) + 0.5) / f64::from(self.n.max(1))
    }
}

/// A bijection of 64-bit numbers that scatters neighbouring numbers.
#[inline]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_appears_once() {
        for n in [1, 2, 3, 7, 64, 65, 1000, 4097] {
            let permutation = Permutation::new(n, 42);
            let mut seen: Vec<u32> = (0..n).map(|i| permutation.at(i)).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..n), "n = {n}");
        }
    }

    #[test]
    fn keys_give_different_orders() {
        let order = |key| {
            (0..100)
                .map(|i| Permutation::new(100, key).at(i))
                .collect::<Vec<_>>()
        };
        assert_ne!(order(1), order(2));
        assert_eq!(order(1), order(1));
    }
}
