//! Reproducible randomness from a seed.

use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A source of dice. The throws at a place do not depend on the throws at other places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance(u64);

impl Chance {
    /// Returns the chance of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self(mixed(seed))
    }

    /// Returns the chance of a place.
    #[must_use]
    pub fn at(self, place: impl Hash) -> Self {
        let mut hasher = Mixer(self.0);
        place.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// Returns dice for successive throws.
    #[must_use]
    pub fn dice(self) -> Dice {
        Dice(self.0)
    }
}

/// Dice: the same throws for the same chance.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// Returns a number of the range.
    pub fn among(&mut self, range: RangeInclusive<u64>) -> u64 {
        let span = range.end() - range.start() + 1;
        range.start() + self.number() % span
    }

    /// Returns true with this probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        // The upper 53 bits are a fraction that a float holds exactly.
        ((self.number() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// Returns a random element.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        let last = all.len().checked_sub(1).expect("a slice that is not empty");
        all[self.among(0..=last as u64) as usize].clone()
    }

    /// Returns a duration of the range, in whole milliseconds.
    pub fn time(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let ms = |time: &Duration| {
            u64::try_from(time.as_millis()).expect("the duration fits into a u64")
        };
        Duration::from_millis(self.among(ms(range.start())..=ms(range.end())))
    }
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of the number.
fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A hasher with the same result on every machine and with every release of the compiler.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = mixed(self.0.rotate_left(5) ^ u64::from_le_bytes(word))
                .wrapping_add(chunk.len() as u64);
        }
    }

    fn finish(&self) -> u64 {
        mixed(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_depend_on_seed_and_place() {
        let chance = Chance::of(7);
        assert_eq!(chance.at(("a", 1)), Chance::of(7).at(("a", 1)));
        assert_ne!(chance.at(("a", 1)), chance.at(("a", 2)));
        assert_ne!(chance.at("a"), Chance::of(8).at("a"));
    }

    #[test]
    fn dice_are_fair_enough() {
        let mut dice = Chance::of(1).dice();
        let happened = (0..10_000).filter(|_| dice.happens(0.1)).count();
        assert!((800..1_200).contains(&happened), "{happened}");
        let mut seen = [0; 3];
        for _ in 0..3_000 {
            seen[dice.among(0..=2) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
        assert!(!dice.happens(0.0));
        assert!(dice.happens(1.0));
    }
}
