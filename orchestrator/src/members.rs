//! The devices of a rollout, for telling which of a target are new and which are gone.
//!
//! A device is known by 64 bits of it. With so many as are held at once, a new device is taken for a known one once in some 10^12
//! looks; as each look mixes its number in, the next one then finds it.

use std::sync::atomic::{AtomicU64, Ordering};

use twincast_core::ids::{DeviceId, HubName};
use twincast_core::rollout::LookId;
use xxhash_rust::xxh3::Xxh3;

/// Devices that are held at once, in 8 bytes and a bit each. Of a larger fleet, a look takes several parts one after the other, and
/// asks the hubs once for each.
pub const HELD_AT_ONCE: u64 = 4_000_000;

/// One of equal parts of all devices there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) index: u64,
    pub(crate) of: u64,
}

impl Part {
    /// The parts in which a fleet of so many devices is gone through.
    pub(crate) fn all(devices: u64) -> impl Iterator<Item = Self> {
        let of = devices.div_ceil(HELD_AT_ONCE).max(1);
        (0..of).map(move |index| Self { index, of })
    }
}

/// The known devices of a part.
#[derive(Debug)]
pub struct Members {
    look: LookId,
    part: Part,
    /// Ascending.
    prints: Vec<u64>,
    /// Of each whether it is still in the target: one bit.
    seen: Vec<AtomicU64>,
}

/// Collects them.
#[derive(Debug)]
pub(crate) struct Gathering {
    look: LookId,
    part: Part,
    prints: Vec<u64>,
}

impl Gathering {
    pub(crate) fn new(look: LookId, part: Part) -> Self {
        Self {
            look,
            part,
            prints: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, hub: &HubName, device: &str) {
        self.prints
            .extend(print_of(self.look, self.part, hub, device));
    }

    pub(crate) fn done(mut self) -> Members {
        self.prints.sort_unstable();
        self.prints.dedup();
        let words = self.prints.len().div_ceil(64);
        Members {
            look: self.look,
            part: self.part,
            prints: self.prints,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Members {
    /// Whether a device of the target belongs to the part and was not known before. One that was known is now known to be there still.
    #[must_use]
    pub fn is_new(&self, hub: &HubName, device: &DeviceId) -> bool {
        let Some(print) = print_of(self.look, self.part, hub, device.as_str()) else {
            return false;
        };
        match self.prints.binary_search(&print) {
            Ok(at) => {
                self.seen[at / 64].fetch_or(1 << (at % 64), Ordering::Relaxed);
                false
            }
            Err(_) => true,
        }
    }

    /// Whether a device is known and was not seen in the target.
    pub(crate) fn has_left(&self, hub: &HubName, device: &str) -> bool {
        let print = print_of(self.look, self.part, hub, device);
        let at = print.and_then(|print| self.prints.binary_search(&print).ok());
        at.is_some_and(|at| self.seen[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 0)
    }
}

/// A device's bits, if it is of the part.
fn print_of(look: LookId, part: Part, hub: &HubName, device: &str) -> Option<u64> {
    let mut hasher = Xxh3::with_seed(u64::from(look.0));
    hasher.update(hub.as_str().as_bytes());
    hasher.update(b"\0");
    hasher.update(device.as_bytes());
    let print = hasher.digest();
    (print % part.of == part.index).then_some(print)
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
    fn every_part_tells_its_own() {
        let (a, b) = (hub("a"), hub("b"));
        let mut new = 0;
        let mut left = 0;
        for part in [0, 1, 2].map(|index| Part { index, of: 3 }) {
            let mut known = Gathering::new(LookId(7), part);
            for id in 0..200 {
                known.add(&a, device(id).as_str());
                // What is added twice is there once.
                known.add(&a, device(id).as_str());
            }
            let known = known.done();
            for id in 100..300 {
                new += u32::from(known.is_new(&a, &device(id)));
            }
            // An id is another device on another hub.
            new += u32::from(known.is_new(&b, &device(0)));
            for id in 0..300 {
                let gone = known.has_left(&a, device(id).as_str());
                assert!(!gone || id < 100, "device {id} was seen");
                left += u32::from(gone);
            }
        }
        assert_eq!((new, left), (101, 100));
    }

    #[test]
    fn large_fleets_are_gone_through_in_parts() {
        for (devices, parts) in [
            (0, 1),
            (1, 1),
            (HELD_AT_ONCE, 1),
            (HELD_AT_ONCE + 1, 2),
            (10_000_000, 3),
        ] {
            assert_eq!(Part::all(devices).count(), parts, "{devices}");
        }
    }
}
