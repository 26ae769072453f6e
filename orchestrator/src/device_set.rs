//! The devices listed by a hub so far, so that no device is planned twice.
//!
//! A hub lists its twins in pages, and a twin that changes meanwhile may appear on two pages. A
//! device is represented by 128 bits of the SHA-256 of its id: among 10 million devices, two have
//! equal bits about once in 10^24 plans, and ids with equal bits cannot be constructed. So these
//! bits distinguish devices as reliably as the ids.
//!
//! The set takes 16 bytes per device plus an eighth at most: 180 MB for 10 million devices of one
//! hub. A hub has one million devices unless its owner was given more. The memory is freed when the
//! hub's part of a plan is made.

use sha2::{Digest as _, Sha256};
use twincast_core::ids::DeviceId;

/// The number of parts. Each part grows on its own, so growth never needs much memory at once. All
/// parts together take 100 KB when empty.
const PARTS: usize = 4_096;

/// A set of a hub's devices.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    /// The hashes by part, each part sorted ascending.
    parts: Box<[Vec<u128>]>,
}

impl Default for DeviceSet {
    fn default() -> Self {
        Self {
            parts: vec![Vec::new(); PARTS].into(),
        }
    }
}

/// The hash that represents a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceHash(u128);

impl DeviceHash {
    pub(crate) fn of(device: &DeviceId) -> Self {
        let hash = Sha256::digest(device.as_str());
        let (first, _) = hash.split_first_chunk().expect("it has 32 bytes");
        Self(u128::from_be_bytes(*first))
    }

    fn part(self) -> usize {
        (self.0 >> 64) as usize % PARTS
    }
}

impl DeviceSet {
    /// Returns whether a device was [added](Self::add).
    pub(crate) fn has(&self, device: DeviceHash) -> bool {
        self.parts[device.part()].binary_search(&device.0).is_ok()
    }

    /// Adds a device. Idempotent.
    pub(crate) fn add(&mut self, device: DeviceHash) {
        let part = &mut self.parts[device.part()];
        let Err(at) = part.binary_search(&device.0) else {
            return;
        };
        if part.len() == part.capacity() {
            // Doubling could leave half of the part empty.
            part.reserve_exact(part.len() / 8 + 1);
        }
        part.insert(at, device.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u32) -> DeviceHash {
        DeviceHash::of(&DeviceId::new(format!("fridge-{number}")).unwrap())
    }

    #[test]
    fn a_device_added_twice_is_stored_once() {
        let mut set = DeviceSet::default();
        // Each device twice, in a shuffled order.
        for number in (0..50_000).map(|n| n * 7_919 % 50_000) {
            assert!(!set.has(device(number)), "{number}");
            set.add(device(number));
            set.add(device(number));
        }
        assert!((0..50_000).all(|number| set.has(device(number))));
        assert!(!set.has(device(50_000)));
        assert_eq!(set.parts.iter().map(Vec::len).sum::<usize>(), 50_000);
    }

    #[test]
    fn a_device_takes_few_bytes() {
        let mut set = DeviceSet::default();
        for number in 0..200_000 {
            set.add(device(number));
        }
        let room: usize = set.parts.iter().map(Vec::capacity).sum();
        // In parts this small, one extra place weighs most.
        assert!(room * 16 <= 200_000 * 18 + PARTS * 16, "{room}");
    }
}
