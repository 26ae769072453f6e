//! Packs small tag groups into shared batches.
//!
//! Every batch costs a dispatch, a lease and a few records, regardless of the number of devices.
//! Thousands of groups of two devices would be sent at the pace of this overhead, so small groups
//! share batches. Few small groups do not share batches: separate batches then cost little, and
//! several workers can take part.

use std::collections::BTreeMap;

use super::batcher::{BatchLimits, ClosedBatch};
use super::manifest::{DeviceList, TagGroup};
use super::order::apply_release_order;
use super::sort_key::SortKey;
use crate::ids::StageIndex;
use crate::spec::{Order, RolloutSpec};

/// A tag group with fewer devices is small.
const SMALL: usize = BatchLimits::MIN_DEVICES;
/// Up to this number of small groups, each group has a batch of its own.
const FEW: usize = 100;
/// The maximum number of groups in a batch, and the maximum size of their tags in bytes: every
/// listing reads the batch header.
const MAX_GROUPS: usize = 64;
const MAX_GROUP_BYTES: usize = 8 * 1024;

/// A batch without number, hub and budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The stage of all devices.
    pub stage: StageIndex,
    /// The position in the release order.
    pub sort_key: SortKey,
    /// The tag group of the first devices.
    pub group: TagGroup,
    /// Further groups, each with the position of the first device.
    pub further_groups: Vec<(u32, TagGroup)>,
    /// The devices, group by group.
    pub devices: DeviceList,
}

/// Arranges closed batches in the release order of their stages, and joins small batches of a hub.
/// Groups share a batch only if no rule distinguishes the groups: stage, zone and sort key are
/// equal, and no budget applies.
#[must_use]
pub fn pack(spec: &RolloutSpec, limits: BatchLimits, closed: Vec<ClosedBatch>) -> Vec<Packed> {
    let mut packed = Vec::new();
    let mut small = Vec::new();
    for (stage, group, devices) in closed {
        let (sort_key, devices) = apply_release_order(spec, stage, &group, devices);
        let one = Packed {
            stage,
            sort_key,
            further_groups: Vec::new(),
            devices,
            group,
        };
        let may_share = one.devices.len() < SMALL && spec.budget_groups(&one.group).is_empty();
        if may_share { &mut small } else { &mut packed }.push(one);
    }
    if small.len() <= FEW {
        packed.append(&mut small);
        return packed;
    }
    let mut open: BTreeMap<_, Packed> = BTreeMap::new();
    for one in small {
        // The sort key of a shuffled batch is random, so the sort key of the first group is as good
        // as any other sort key.
        let is_shuffled = matches!(spec.order_of(one.stage), Some(Order::Shuffled));
        let sort_key = (!is_shuffled).then(|| one.sort_key.clone());
        let zone = spec.zone_in(&one.group).map(str::to_owned);
        let key = (one.stage, sort_key, zone);
        match open.get_mut(&key) {
            Some(shared) if shared.has_room(&one, limits) => shared.add(one),
            _ => packed.extend(open.insert(key, one)),
        }
    }
    packed.extend(open.into_values());
    packed
}

impl Packed {
    fn has_room(&self, other: &Self, limits: BatchLimits) -> bool {
        self.further_groups.len() + 1 < MAX_GROUPS
            && self.group_bytes() + other.group_bytes() <= MAX_GROUP_BYTES
            && self.devices.len() + other.devices.len() <= limits.devices
            && self.devices.bytes() + other.devices.bytes() <= limits.bytes
    }

    fn group_bytes(&self) -> usize {
        let further = self.further_groups.iter().map(|(_, group)| group);
        let tags = std::iter::once(&self.group).chain(further);
        let tags = tags.flat_map(|group| &group.0);
        tags.map(|(tag, value)| tag.len() + value.as_ref().map_or(0, String::len))
            .sum()
    }

    fn add(&mut self, other: Self) {
        let first = u32::try_from(self.devices.len()).expect("batches are small");
        self.further_groups.push((first, other.group));
        self.devices.append(&other.devices);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::DeviceId;

    const LIMITS: BatchLimits = BatchLimits {
        devices: 200,
        bytes: BatchLimits::MAX_BYTES,
        open_devices: BatchLimits::OPEN_DEVICES,
    };

    fn spec(more: &str) -> RolloutSpec {
        let text = format!(
            "{{name: r, target: {{all: true}}, batch_by: [zone, site], message: {{body: {{text: x}}, ack: full}}{more}}}"
        );
        RolloutSpec::read("x", &text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns a group with `devices` devices for each site.
    fn sites(zone: &str, sites: std::ops::Range<u32>, devices: u32) -> Vec<ClosedBatch> {
        let closed = sites.map(|site| {
            let mut list = DeviceList::default();
            for device in 0..devices {
                list.push(&DeviceId::new(format!("{}-{site}-{device}", zone.len())).unwrap());
            }
            let tag = |name: &str, value: String| (name.to_owned(), Some(value));
            let group = vec![tag("zone", zone.to_owned()), tag("site", site.to_string())];
            (StageIndex(0), TagGroup(group), list)
        });
        closed.collect()
    }

    /// Returns the number of groups in each batch.
    fn groups(spec: &RolloutSpec, closed: Vec<ClosedBatch>) -> Vec<usize> {
        let packed = pack(spec, LIMITS, closed);
        packed
            .iter()
            .map(|one| one.further_groups.len() + 1)
            .collect()
    }

    #[test]
    fn many_small_groups_share_batches_and_few_do_not() {
        let spec = spec("");
        assert_eq!(groups(&spec, sites("UTC", 0..100, 2)), [1; 100]);
        assert_eq!(groups(&spec, sites("UTC", 0..128, 2)), [64, 64]);
        assert_eq!(
            groups(&spec, sites("UTC", 0..101, 99)),
            [[2; 50].as_slice(), &[1]].concat()
        );
        assert_eq!(groups(&spec, sites("UTC", 0..101, 100)), [1; 101]);
        let long = "z".repeat(MAX_GROUP_BYTES / 3);
        assert_eq!(groups(&spec, sites(&long, 0..102, 1)), [2; 51]);
    }

    #[test]
    fn groups_separated_by_rules_do_not_share_batches() {
        let both = || [sites("UTC", 0..64, 1), sites("Asia/Tokyo", 0..64, 1)].concat();
        assert_eq!(groups(&spec(""), both()).len(), 2);
        let zones = spec(", schedule: {zone_tag: zone}");
        for one in pack(&zones, LIMITS, both()) {
            let further = one.further_groups.iter().map(|(_, group)| group);
            for group in further {
                assert_eq!(group.0[0], one.group.0[0]);
            }
        }
        let budgets = spec(", budgets: [{tag: site, at_most: 1}]");
        assert_eq!(groups(&budgets, both()), [1; 128]);
        assert_eq!(groups(&spec(", order: {by: site}"), both()), [2; 64]);
        assert_eq!(groups(&spec(", order: {by: zone}"), both()), [64, 64]);
        assert_eq!(groups(&spec(", order: shuffled"), both()), [64, 64]);
        let mut stages = both();
        stages[..64].iter_mut().for_each(|(stage, ..)| stage.0 = 1);
        assert_eq!(groups(&spec(""), stages), [64, 64]);
    }

    proptest! {
        /// Every device keeps its group, and is in exactly one batch.
        #[test]
        fn packing_keeps_devices_and_groups(sizes in prop::collection::vec(1u32..120, 0..250), shuffled: bool) {
            let spec = spec(if shuffled { ", order: shuffled" } else { "" });
            let mut closed = Vec::new();
            for (site, size) in (0..).zip(&sizes) {
                closed.extend(sites("UTC", site..site + 1, *size));
            }
            let mut expected = BTreeMap::new();
            for (_, group, list) in &closed {
                expected.extend(list.iter().map(|id| (id.to_owned(), group.clone())));
            }
            let mut found = BTreeMap::new();
            for one in pack(&spec, LIMITS, closed) {
                prop_assert!(one.devices.len() <= LIMITS.devices && one.further_groups.len() < MAX_GROUPS);
                let starts: Vec<_> = one.further_groups.iter().map(|(first, _)| *first).collect();
                prop_assert!(starts.is_sorted() && starts.iter().all(|first| *first > 0));
                for (index, id) in (0..).zip(one.devices.iter()) {
                    let own = one.further_groups.iter().rev().find(|(first, _)| *first <= index);
                    let group = own.map_or(&one.group, |(_, group)| group).clone();
                    prop_assert!(found.insert(id.to_owned(), group).is_none());
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
