//! The devices that a hub has named so far, so that none is planned twice.
//!
//! A hub lists its twins in pages, and a twin that changes meanwhile may stand in two of them. A device is known by 128 bits of the
//! SHA-256 of its id: of 10 million devices, two have the same bits once in some 10^24 plans, and nobody can choose ids so
//! that they do. So a device is never taken for another one, as the ids themselves would show.
//!
//! 16 bytes a device, and an eighth more at the most: 180 MB for 10 million devices of one hub, of which a hub has one million
//! unless its owner was given more. They are gone when the hub's part of a plan is made.

use sha2::{Digest as _, Sha256};
use twincast_core::ids::DeviceId;

/// Parts, each of which grows on its own, so that growing never needs much room at once: 100 KB when they are empty.
const PARTS: usize = 4_096;

/// The devices of a hub.
#[derive(Debug)]
pub(crate) struct Seen {
    /// By the first bits; each ascending.
    parts: Box<[Vec<u128>]>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            parts: vec![Vec::new(); PARTS].into(),
        }
    }
}

/// What a device is known by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Print(u128);

impl Print {
    pub(crate) fn of(device: &DeviceId) -> Self {
        let hash = Sha256::digest(device.as_str());
        let (first, _) = hash.split_first_chunk().expect("it has 32 bytes");
        Self(u128::from_be_bytes(*first))
    }

    fn part(self) -> usize {
        (self.0 >> 64) as usize % PARTS
    }
}

impl Seen {
    /// Whether a device was [added](Self::add).
    pub(crate) fn has(&self, device: Print) -> bool {
        self.parts[device.part()].binary_search(&device.0).is_ok()
    }

    /// Adds a device. Once more is as good as once.
    pub(crate) fn add(&mut self, device: Print) {
        let part = &mut self.parts[device.part()];
        let Err(at) = part.binary_search(&device.0) else {
            return;
        };
        if part.len() == part.capacity() {
            // Doubling would leave half of it empty at the worst.
            part.reserve_exact(part.len() / 8 + 1);
        }
        part.insert(at, device.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u32) -> Print {
        Print::of(&DeviceId::new(format!("fridge-{number}")).unwrap())
    }

    #[test]
    fn each_device_is_new_once() {
        let mut seen = Seen::default();
        // In an order of its own, and each twice.
        for number in (0..50_000).map(|n| n * 7_919 % 50_000) {
            assert!(!seen.has(device(number)), "{number}");
            seen.add(device(number));
            seen.add(device(number));
        }
        assert!((0..50_000).all(|number| seen.has(device(number))));
        assert!(!seen.has(device(50_000)));
        assert_eq!(seen.parts.iter().map(Vec::len).sum::<usize>(), 50_000);
    }

    #[test]
    fn a_device_takes_few_bytes() {
        let mut seen = Seen::default();
        for number in 0..200_000 {
            seen.add(device(number));
        }
        let room: usize = seen.parts.iter().map(Vec::capacity).sum();
        // Of parts that are this small, one place more weighs most.
        assert!(room * 16 <= 200_000 * 18 + PARTS * 16, "{room}");
    }
}
