//! Fills the batches of a hub within bounded memory.

use std::collections::BTreeMap;

use super::manifest::{DeviceList, TagGroup};
use crate::ids::{DeviceId, StageIndex};

/// The limits on the size of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The maximum number of devices in a batch; at least 1.
    pub devices: usize,
    /// The size of the ids, in bytes, at which a batch is full.
    pub bytes: usize,
    /// The maximum number of devices in all open batches together. Beyond the maximum, the largest
    /// open batches are closed early: many tag groups lead to smaller batches, not to more memory.
    pub open_devices: usize,
}

impl BatchLimits {
    /// The limit on the bytes of a batch: small enough for a single value in the store and a cheap
    /// read.
    pub const MAX_BYTES: usize = 256 * 1024;
    /// The maximum number of devices in a batch at any rate: keeps leases short, and bounds the
    /// effect of a crash.
    pub const MAX_DEVICES: usize = 10_000;
    /// The lowest limit on the devices of a batch: below, the fixed cost of a batch would dominate.
    pub const MIN_DEVICES: usize = 100;
    /// The limit on the devices in open batches: about 5 MiB of 20-character ids. In the worst
    /// case, with a tag group per device, the groups take some 50 MiB.
    pub const OPEN_DEVICES: usize = 200_000;

    /// Returns the limits for batches of about 30 seconds of sending at `per_minute`. `None` is an
    /// unlimited hub.
    #[must_use]
    pub fn for_rate(per_minute: Option<f64>) -> Self {
        let devices = per_minute.map_or(Self::MAX_DEVICES, |rate| (rate / 2.0) as usize);
        Self {
            devices: devices.clamp(Self::MIN_DEVICES, Self::MAX_DEVICES),
            bytes: Self::MAX_BYTES,
            open_devices: Self::OPEN_DEVICES,
        }
    }
}

/// Sorts the devices of a hub into batches by stage and tag group.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    open: BTreeMap<(StageIndex, TagGroup), DeviceList>,
    open_devices: usize,
}

/// A closed batch: the stage, the tag group and the devices.
pub type ClosedBatch = (StageIndex, TagGroup, DeviceList);

impl Batcher {
    /// Creates an empty batcher.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            open: BTreeMap::new(),
            open_devices: 0,
        }
    }

    /// Adds a device. Returns the batch filled by the device, or the batches closed to make room. A
    /// batch with `max_devices` devices is full regardless of the limits.
    pub fn push(
        &mut self,
        stage: StageIndex,
        group: TagGroup,
        device: &DeviceId,
        max_devices: Option<usize>,
    ) -> Vec<ClosedBatch> {
        let max_devices = max_devices.unwrap_or(usize::MAX).min(self.limits.devices);
        let key = (stage, group);
        // Look up before inserting: only a new group needs a clone of the key.
        let list = match self.open.get_mut(&key) {
            Some(list) => list,
            None => self.open.entry(key.clone()).or_default(),
        };
        list.push(device);
        self.open_devices += 1;
        if list.len() >= max_devices || list.bytes() >= self.limits.bytes {
            return self.close(&key).into_iter().collect();
        }
        if self.open_devices > self.limits.open_devices {
            return self.make_room();
        }
        Vec::new()
    }

    /// Closes the largest batches until a quarter of the room is free. Closing several batches at a
    /// time saves work, because finding the largest batch requires a scan of all batches.
    fn make_room(&mut self) -> Vec<ClosedBatch> {
        let mut by_size: Vec<_> = self
            .open
            .iter()
            .map(|(key, list)| (list.len(), key.clone()))
            .collect();
        by_size.sort_unstable_by(|a, b| b.cmp(a));
        let room = self.limits.open_devices - self.limits.open_devices / 4;
        let mut closed = Vec::new();
        for (_, key) in by_size {
            if self.open_devices <= room {
                break;
            }
            closed.extend(self.close(&key));
        }
        closed
    }

    fn close(&mut self, key: &(StageIndex, TagGroup)) -> Option<ClosedBatch> {
        let ((stage, group), list) = self.open.remove_entry(key)?;
        self.open_devices -= list.len();
        Some((stage, group, list))
    }

    /// Closes all open batches and returns them, ordered by stage and group.
    pub fn finish(&mut self) -> Vec<ClosedBatch> {
        self.open_devices = 0;
        let open = std::mem::take(&mut self.open).into_iter();
        open.map(|((stage, group), list)| (stage, group, list))
            .collect()
    }

    /// Returns the limits on the size of batches.
    #[must_use]
    pub fn limits(&self) -> BatchLimits {
        self.limits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every device is in exactly one batch, with the correct group, within the limits.
        #[test]
        fn batching_keeps_devices_and_groups(
            groups in prop::collection::vec(0u8..6, 0..300),
            devices in 1usize..20, bytes in 1usize..100, open_devices in 1usize..60,
        ) {
            let mut batcher = Batcher::new(BatchLimits { devices, bytes, open_devices });
            let mut closed = Vec::new();
            for (index, group) in groups.iter().enumerate() {
                let tag = TagGroup(vec![("g".into(), Some(group.to_string()))]);
                let id = DeviceId::new(format!("d{index}")).unwrap();
                closed.extend(batcher.push(StageIndex(0), tag, &id, None));
                prop_assert!(batcher.open_devices <= open_devices);
                prop_assert_eq!(batcher.open_devices, batcher.open.values().map(DeviceList::len).sum::<usize>());
            }
            closed.extend(batcher.finish());
            let mut seen = BTreeSet::new();
            for (_, group, list) in &closed {
                prop_assert!(!list.is_empty() && list.len() <= devices);
                for id in list.iter() {
                    let index: usize = id[1..].parse().unwrap();
                    let own = groups[index].to_string();
                    prop_assert_eq!(group.0[0].1.as_ref(), Some(&own));
                    prop_assert!(seen.insert(index));
                }
            }
            prop_assert_eq!(seen.len(), groups.len());
        }
    }

    #[test]
    fn batches_hold_about_half_a_minute_of_sending() {
        assert_eq!(BatchLimits::for_rate(Some(100.0)).devices, 100);
        assert_eq!(BatchLimits::for_rate(Some(5_000.0)).devices, 2_500);
        assert_eq!(BatchLimits::for_rate(Some(50_000.0)).devices, 10_000);
        assert_eq!(BatchLimits::for_rate(None).devices, 10_000);
    }
}
