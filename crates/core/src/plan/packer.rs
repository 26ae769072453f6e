//! Small tag groups share batches.
//!
//! A batch costs a dispatch, a lease and a few records, however few devices it has. Thousands of groups of two devices
//! would be sent at the pace of these, so they share batches. A few small groups do not: a batch each costs little, and
//! workers share the batches among themselves.

use std::collections::BTreeMap;

use super::batcher::{BatchLimits, Filled};
use super::manifest::{DeviceList, Group};
use super::order::arrange;
use super::place::Place;
use crate::ids::StageIndex;
use crate::spec::{Order, RolloutSpec};

/// A group with fewer devices is small.
const SMALL: usize = BatchLimits::MIN_DEVICES;
/// Up to this many small groups have a batch each.
const FEW: usize = 100;
/// The most groups of a batch, and the most bytes of their tags: a batch's header is read each time it is listed.
const MAX_GROUPS: usize = 64;
const MAX_GROUP_BYTES: usize = 8 * 1024;

/// A batch without number, hub and budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The stage of all devices.
    pub stage: StageIndex,
    /// The place in the order of release.
    pub place: Place,
    /// The tag group of the first devices.
    pub group: Group,
    /// Further groups, each with the position of its first device.
    pub further: Vec<(u32, Group)>,
    /// The devices, group by group.
    pub devices: DeviceList,
}

/// Arranges filled batches as their stages want it, and joins small ones of a hub. Groups share a batch only if no rule can
/// tell them apart: they have the same stage, zone and place, and no budget.
#[must_use]
pub fn pack(spec: &RolloutSpec, limits: BatchLimits, filled: Vec<Filled>) -> Vec<Packed> {
    let mut packed = Vec::new();
    let mut small = Vec::new();
    for (stage, group, devices) in filled {
        let (place, devices) = arrange(spec, stage, &group, devices);
        let one = Packed {
            stage,
            place,
            further: Vec::new(),
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
        // The place of a shuffled batch is a random one, and that of the first group will do.
        let is_shuffled = matches!(spec.order_of(one.stage), Some(Order::Shuffled));
        let place = (!is_shuffled).then(|| one.place.clone());
        let zone = spec.zone_in(&one.group).map(str::to_owned);
        let key = (one.stage, place, zone);
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
        self.further.len() + 1 < MAX_GROUPS
            && self.group_bytes() + other.group_bytes() <= MAX_GROUP_BYTES
            && self.devices.len() + other.devices.len() <= limits.devices
            && self.devices.bytes() + other.devices.bytes() <= limits.bytes
    }

    fn group_bytes(&self) -> usize {
        let further = self.further.iter().map(|(_, group)| group);
        let tags = std::iter::once(&self.group).chain(further);
        let tags = tags.flat_map(|group| &group.0);
        tags.map(|(tag, value)| tag.len() + value.as_ref().map_or(0, String::len))
            .sum()
    }

    fn add(&mut self, other: Self) {
        let first = u32::try_from(self.devices.len()).expect("batches are small");
        self.further.push((first, other.group));
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

    /// One group for each site, with so many devices each.
    fn sites(zone: &str, sites: std::ops::Range<u32>, devices: u32) -> Vec<Filled> {
        let filled = sites.map(|site| {
            let mut list = DeviceList::default();
            for device in 0..devices {
                list.push(&DeviceId::new(format!("{}-{site}-{device}", zone.len())).unwrap());
            }
            let tag = |name: &str, value: String| (name.to_owned(), Some(value));
            let group = vec![tag("zone", zone.to_owned()), tag("site", site.to_string())];
            (StageIndex(0), Group(group), list)
        });
        filled.collect()
    }

    /// How many groups each batch has.
    fn groups(spec: &RolloutSpec, filled: Vec<Filled>) -> Vec<usize> {
        let packed = pack(spec, LIMITS, filled);
        packed.iter().map(|one| one.further.len() + 1).collect()
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
    fn groups_that_a_rule_tells_apart_share_nothing() {
        let both = || [sites("UTC", 0..64, 1), sites("Asia/Tokyo", 0..64, 1)].concat();
        assert_eq!(groups(&spec(""), both()).len(), 2);
        let zones = spec(", schedule: {zone_tag: zone}");
        for one in pack(&zones, LIMITS, both()) {
            let further = one.further.iter().map(|(_, group)| group);
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
        /// Every device keeps its group, and is in one batch.
        #[test]
        fn nothing_is_lost_or_mixed(sizes in prop::collection::vec(1u32..120, 0..250), shuffled: bool) {
            let spec = spec(if shuffled { ", order: shuffled" } else { "" });
            let mut filled = Vec::new();
            for (site, size) in (0..).zip(&sizes) {
                filled.extend(sites("UTC", site..site + 1, *size));
            }
            let mut expected = BTreeMap::new();
            for (_, group, list) in &filled {
                expected.extend(list.iter().map(|id| (id.to_owned(), group.clone())));
            }
            let mut found = BTreeMap::new();
            for one in pack(&spec, LIMITS, filled) {
                prop_assert!(one.devices.len() <= LIMITS.devices && one.further.len() < MAX_GROUPS);
                let starts: Vec<_> = one.further.iter().map(|(first, _)| *first).collect();
                prop_assert!(starts.is_sorted() && starts.iter().all(|first| *first > 0));
                for (index, id) in (0..).zip(one.devices.iter()) {
                    let own = one.further.iter().rev().find(|(first, _)| *first <= index);
                    let group = own.map_or(&one.group, |(_, group)| group).clone();
                    prop_assert!(found.insert(id.to_owned(), group).is_none());
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
