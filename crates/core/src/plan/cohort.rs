//! The stable position of a device in a rollout.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ids::DeviceId;

/// The position of a device in a rollout: a 64-bit fraction 0 ≤ c < 1, from a keyed hash of the
/// device id.
///
/// The position depends on the id and the salt only, and does not change when other devices join or
/// leave. The hash is part of the format: another hash would reorder the devices of every rollout
/// under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cohort(pub u64);

impl Cohort {
    /// Returns the position of `device` under `salt`; by default the salt is the rollout's name.
    #[must_use]
    pub fn of(device: &DeviceId, salt: &str) -> Self {
        Self(xxh3_64_with_seed(
            device.as_str().as_bytes(),
            xxh3_64(salt.as_bytes()),
        ))
    }

    /// Returns the position as a fraction.
    #[must_use]
    pub fn fraction(self) -> f64 {
        // A double holds 53 bits below 1.
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohorts_are_fixed_salted_and_spread() {
        let id = |n: usize| DeviceId::new(format!("fridge-{n:06}")).unwrap();
        // A fixed value, to detect a change of the hash.
        assert_eq!(
            Cohort::of(&id(1), "firmware-1.4.2"),
            Cohort(13_883_535_682_814_338_299)
        );
        assert_ne!(Cohort::of(&id(1), "a"), Cohort::of(&id(1), "b"));
        let n = 20_000;
        let below = (0..n)
            .filter(|i| Cohort::of(&id(*i), "x").fraction() < 0.1)
            .count();
        assert!(
            (1_850..2_150).contains(&below),
            "{below} of {n} in the first tenth"
        );
        assert!(Cohort(u64::MAX).fraction() < 1.0);
    }
}
