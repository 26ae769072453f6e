//! Fills batches, one hub at a time, within a bounded memory.

use std::collections::BTreeMap;

use super::manifest::{DeviceList, Group};
use crate::ids::{DeviceId, StageIndex};

/// How large batches may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Devices in a batch; at least 1.
    pub devices: usize,
    /// Bytes of ids in a batch.
    pub bytes: usize,
    /// Devices in all batches that are not full yet. When there are more, the largest open ones
    /// are closed as they are: many tag groups cost smaller batches, never memory.
    pub open_devices: usize,
}

impl BatchLimits {
    /// Bytes of ids in a batch: small enough to be one value in the store, one cheap read.
    pub const MAX_BYTES: usize = 256 * 1024;
    /// Devices in a batch at the most, whatever the rate: a lease is never held for long, and
    /// what one crash can disturb stays small.
    pub const MAX_DEVICES: usize = 10_000;
    /// Devices in a batch at the least: below it the batch's own cost would dominate.
    pub const MIN_DEVICES: usize = 100;
    /// About 5 MiB of 20-character ids, and at the worst, when every device has a group of its
    /// own, some 50 MiB of groups.
    pub const OPEN_DEVICES: usize = 200_000;

    /// Batches of about 30 seconds of sending at `per_minute`; `None` is an unlimited hub.
    #[must_use]
    pub fn for_rate(per_minute: Option<f64>) -> Self {
        let wanted = per_minute.map_or(Self::MAX_DEVICES, |rate| (rate / 2.0) as usize);
        Self {
            devices: wanted.clamp(Self::MIN_DEVICES, Self::MAX_DEVICES),
            bytes: Self::MAX_BYTES,
            open_devices: Self::OPEN_DEVICES,
        }
    }
}

/// Sorts one hub's devices into batches by stage and tag group.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    open: BTreeMap<(StageIndex, Group), DeviceList>,
    open_devices: usize,
}

/// The devices of one stage and tag group that fill a batch.
pub type Filled = (StageIndex, Group, DeviceList);

impl Batcher {
    /// An empty one.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            open: BTreeMap::new(),
            open_devices: 0,
        }
    }

    /// Adds a device; gives the batch that became full by it, or those that had to be closed for
    /// room. A batch with `most` devices or more is full, whatever the limits are.
    pub fn push(
        &mut self,
        stage: StageIndex,
        group: Group,
        device: &DeviceId,
        most: Option<usize>,
    ) -> Vec<Filled> {
        let most = most.unwrap_or(usize::MAX).min(self.limits.devices);
        let key = (stage, group);
        // Looked up before inserting, to clone the key only for a new group.
        let list = match self.open.get_mut(&key) {
            Some(list) => list,
            None => self.open.entry(key.clone()).or_default(),
        };
        list.push(device);
        self.open_devices += 1;
        if list.len() >= most || list.bytes() >= self.limits.bytes {
            return self.close(&key).into_iter().collect();
        }
        if self.open_devices > self.limits.open_devices {
            return self.make_room();
        }
        Vec::new()
    }

    /// Closes the largest batches, until a quarter of the room is free: not one at a time, for
    /// finding the largest means looking at all.
    fn make_room(&mut self) -> Vec<Filled> {
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

    fn close(&mut self, key: &(StageIndex, Group)) -> Option<Filled> {
        let ((stage, group), list) = self.open.remove_entry(key)?;
        self.open_devices -= list.len();
        Some((stage, group, list))
    }

    /// Closes all that are open, by stage and group.
    pub fn finish(&mut self) -> Vec<Filled> {
        self.open_devices = 0;
        let open = std::mem::take(&mut self.open).into_iter();
        open.map(|((stage, group), list)| (stage, group, list))
            .collect()
    }

    /// How large its batches may get.
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
        /// Every device is in exactly one batch, with its own group, within the limits.
        #[test]
        fn nothing_is_lost_or_mixed(
            groups in prop::collection::vec(0u8..6, 0..300),
            devices in 1usize..20, bytes in 1usize..100, open_devices in 1usize..60,
        ) {
            let mut batcher = Batcher::new(BatchLimits { devices, bytes, open_devices });
            let mut filled = Vec::new();
            for (index, group) in groups.iter().enumerate() {
                let tag = Group(vec![("g".into(), Some(group.to_string()))]);
                let id = DeviceId::new(format!("d{index}")).unwrap();
                filled.extend(batcher.push(StageIndex(0), tag, &id, None));
                prop_assert!(batcher.open_devices <= open_devices);
                prop_assert_eq!(batcher.open_devices, batcher.open.values().map(DeviceList::len).sum::<usize>());
            }
            filled.extend(batcher.finish());
            let mut seen = BTreeSet::new();
            for (_, group, list) in &filled {
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
