//! The proof that a store holds the batches of a plan.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::Batch;

/// The checksum of a set of batches: equal checksums mean equal sets.
///
/// A store adds each batch to the checksum in the step that stores the batch. After a crash, a
/// store with missing batches therefore has another checksum than the planner. All parts are sums,
/// so the order of the batches does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checksum {
    /// The number of batches.
    pub batches: u32,
    /// The number of devices in all batches.
    pub devices: u64,
    /// The sum of the batches' [fingerprints](Batch::fingerprint); below 2^64, because each is
    /// below 2^32.
    pub sum: u64,
}

impl Checksum {
    /// Adds a batch.
    pub fn add(&mut self, batch: &Batch) {
        self.join(&Self {
            batches: 1,
            devices: batch.header.devices.into(),
            sum: batch.fingerprint().into(),
        });
    }

    /// Adds another, disjoint set of batches.
    pub fn join(&mut self, other: &Self) {
        self.batches += other.batches;
        self.devices += other.devices;
        self.sum += other.sum;
    }
}

impl<'a> FromIterator<&'a Batch> for Checksum {
    fn from_iter<T: IntoIterator<Item = &'a Batch>>(batches: T) -> Self {
        let mut checksum = Self::default();
        batches.into_iter().for_each(|batch| checksum.add(batch));
        checksum
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            batches,
            devices,
            sum,
        } = self;
        write!(
            f,
            "{devices} devices in {batches} batches, checksum {sum:x}"
        )
    }
}

impl Batch {
    /// Returns a hash of the batch, including the number and the order of the devices.
    #[must_use]
    pub fn fingerprint(&self) -> u32 {
        let header = serde_json::to_vec(&self.header).expect("a batch's header is plain data");
        let parts = [xxh3_64(&header), xxh3_64(self.devices.as_text().as_bytes())];
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_be_bytes()).collect();
        (xxh3_64(&bytes) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchHeader, DeviceList, TagGroup};
    use super::*;
    use crate::ids::{BatchId, DeviceId, HubHost, HubName, StageIndex};

    fn batch(id: u32, devices: &[&str]) -> Batch {
        let mut list = DeviceList::default();
        for device in devices {
            list.push(&DeviceId::new(device).unwrap());
        }
        Batch {
            header: BatchHeader {
                id: BatchId(id),
                hub: HubName::new("h").unwrap(),
                host: HubHost::new("h").unwrap(),
                stage: StageIndex(0),
                group: TagGroup::default(),
                further_groups: Vec::new(),
                devices: devices.len() as u32,
                sort_key: Default::default(),
                budgets: Vec::new(),
            },
            devices: list,
        }
    }

    #[test]
    fn only_the_same_batches_have_the_same_checksum() {
        let [first, second] = [batch(0, &["a", "b"]), batch(1, &["c"])];
        let all: Checksum = [&first, &second].into_iter().collect();
        assert_eq!(all, [&second, &first].into_iter().collect());
        assert_eq!((all.batches, all.devices), (2, 3));
        for other in [
            vec![&first],
            vec![&first, &batch(2, &["c"])],
            vec![&first, &batch(1, &["d"])],
            vec![&batch(0, &["b", "a"]), &second],
        ] {
            assert_ne!(all, other.into_iter().collect());
        }
    }
}
