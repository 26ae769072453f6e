//! A compact set of a rollout's devices, for finding new and departed devices of the target.
//!
//! A device is represented by a 64-bit hash. With the largest set, a new device is taken for a
//! known device about once in 10^12 scans. The number of the scan is part of the hash, so the next
//! scan finds such a device.

use std::sync::atomic::{AtomicU64, Ordering};

use twincast_core::ids::{DeviceId, HubName};
use twincast_core::rollout::ScanId;
use xxhash_rust::xxh3::Xxh3;

/// The most devices held at once, at 8 bytes and one bit per device. A scan of a larger fleet takes
/// several parts one after the other, and queries the hubs once per part.
pub const MAX_MEMBERS_PER_PART: u64 = 4_000_000;

/// One of several equal parts of all possible devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) index: u64,
    pub(crate) of: u64,
}

impl Part {
    /// Returns the parts for scanning a fleet of this size.
    pub(crate) fn all(devices: u64) -> impl Iterator<Item = Self> {
        let of = devices.div_ceil(MAX_MEMBERS_PER_PART).max(1);
        (0..of).map(move |index| Self { index, of })
    }
}

/// The known devices of a part.
#[derive(Debug)]
pub struct Members {
    scan: ScanId,
    part: Part,
    /// Sorted ascending.
    hashes: Vec<u64>,
    /// One bit per device: whether the device is still in the target.
    seen: Vec<AtomicU64>,
}

/// Collects the known devices of a part.
#[derive(Debug)]
pub(crate) struct MembersBuilder {
    scan: ScanId,
    part: Part,
    hashes: Vec<u64>,
}

impl MembersBuilder {
    pub(crate) fn new(scan: ScanId, part: Part) -> Self {
        Self {
            scan,
            part,
            hashes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, hub: &HubName, device: &str) {
        self.hashes
            .extend(device_hash(self.scan, self.part, hub, device));
    }

    pub(crate) fn build(mut self) -> Members {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        let words = self.hashes.len().div_ceil(64);
        Members {
            scan: self.scan,
            part: self.part,
            hashes: self.hashes,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Members {
    /// Returns whether a device of the target belongs to the part and was not known before. Marks a
    /// known device as still in the target.
    #[must_use]
    pub fn is_new(&self, hub: &HubName, device: &DeviceId) -> bool {
        let Some(hash) = device_hash(self.scan, self.part, hub, device.as_str()) else {
            return false;
        };
        match self.hashes.binary_search(&hash) {
            Ok(at) => {
                self.seen[at / 64].fetch_or(1 << (at % 64), Ordering::Relaxed);
                false
            }
            Err(_) => true,
        }
    }

    /// Returns whether a device is known and was not seen in the target.
    pub(crate) fn has_departed(&self, hub: &HubName, device: &str) -> bool {
        let hash = device_hash(self.scan, self.part, hub, device);
        let at = hash.and_then(|hash| self.hashes.binary_search(&hash).ok());
        at.is_some_and(|at| self.seen[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 0)
    }
}

/// Returns the hash of a device, if the device belongs to the part.
fn device_hash(scan: ScanId, part: Part, hub: &HubName, device: &str) -> Option<u64> {
    let mut hasher = Xxh3::with_seed(u64::from(scan.0));
    hasher.update(hub.as_str().as_bytes());
    hasher.update(b"\0");
    hasher.update(device.as_bytes());
    let hash = hasher.digest();
    (hash % part.of == part.index).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> HubName {
        HubName::new(name).unwrap()
    }

    fn device(id: u32) -> DeviceId {
        DeviceId::new(format!("d{id}")).unwrap()
    }

    #[test]
    fn each_new_or_departed_device_is_found_by_one_part() {
        let (a, b) = (hub("a"), hub("b"));
        let mut new = 0;
        let mut left = 0;
        for part in [0, 1, 2].map(|index| Part { index, of: 3 }) {
            let mut known = MembersBuilder::new(ScanId(7), part);
            for id in 0..200 {
                known.add(&a, device(id).as_str());
                // A device added twice counts once.
                known.add(&a, device(id).as_str());
            }
            let known = known.build();
            for id in 100..300 {
                new += u32::from(known.is_new(&a, &device(id)));
            }
            // The same id on another hub is another device.
            new += u32::from(known.is_new(&b, &device(0)));
            for id in 0..300 {
                let has_departed = known.has_departed(&a, device(id).as_str());
                assert!(!has_departed || id < 100, "device {id} was seen");
                left += u32::from(has_departed);
            }
        }
        assert_eq!((new, left), (101, 100));
    }

    #[test]
    fn large_fleets_are_split_into_parts() {
        for (devices, parts) in [
            (0, 1),
            (1, 1),
            (MAX_MEMBERS_PER_PART, 1),
            (MAX_MEMBERS_PER_PART + 1, 2),
            (10_000_000, 3),
        ] {
            assert_eq!(Part::all(devices).count(), parts, "{devices}");
        }
    }
}
