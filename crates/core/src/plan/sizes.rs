//! Limits the size of batches by budgets.

use std::collections::HashMap;

use super::{SortKey, TagGroup};
use crate::budget::BudgetGroup;
use crate::spec::RolloutSpec;

/// A batch takes at most this part (a quarter) of a group's limit, so that other batches proceed
/// while the silent devices of a batch are waited for.
const PARTS: u64 = 4;
/// The maximum number of groups counted at once. Beyond, counting restarts, and some batches become
/// smaller.
const COUNTED: usize = 200_000;

/// Computes the maximum size of a hub's batches while devices arrive.
///
/// A limit in per cent of a group is known only after the last device. The same per cent of the
/// devices seen so far is never more, so batches of that size are never too large. Batches begin
/// small and grow with the group.
#[derive(Debug, Default)]
pub struct BatchSizes {
    /// By group: the number of devices seen, and the number of batches filled.
    seen: HashMap<String, (u64, u32)>,
}

impl BatchSizes {
    /// Counts a device. Returns the current maximum number of devices in a batch of the device's
    /// tag group; `None` if no budget applies.
    pub fn count_device(&mut self, spec: &RolloutSpec, group: &TagGroup) -> Option<usize> {
        if spec.budgets.is_empty() {
            return None;
        }
        let groups = spec.budget_groups(group).into_iter();
        let sizes = groups.map(|BudgetGroup { group, limit, .. }| {
            let (devices, _) = self.of(group);
            *devices += 1;
            limit.of(*devices).div_ceil(PARTS)
        });
        sizes.min().and_then(|size| usize::try_from(size).ok())
    }

    /// Returns the sort key of the next batch of these budget groups: the first batches of all
    /// groups come before the second batches. The batches of a full group therefore do not precede
    /// the batches of all other groups.
    pub fn next_sort_key(&mut self, groups: &[BudgetGroup]) -> SortKey {
        let Some(first) = groups.first() else {
            return SortKey::default();
        };
        let (_, batches) = self.of(first.group.clone());
        *batches += 1;
        SortKey::of_round(*batches)
    }

    fn of(&mut self, group: String) -> &mut (u64, u32) {
        if self.seen.len() >= COUNTED && !self.seen.contains_key(&group) {
            self.seen.clear();
        }
        self.seen.entry(group).or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In any order of arrival, no batch is larger than the final limit of the group.
        #[test]
        fn batch_size_stays_within_group_limit(
            at_most in prop_oneof![(1u32..40).prop_map(|n| n.to_string()), (1u32..100).prop_map(|n| format!("{n}%"))],
            sites in prop::collection::vec(0u8..4, 1..600),
        ) {
            let text = format!("{{name: r, target: {{all: true}}, batch_by: [site], message: {{body: {{text: x}}, ack: full}}, \
                budgets: [{{tag: site, at_most: {at_most}}}]}}");
            let spec = RolloutSpec::read("x", &text).unwrap();
            let group = |site: u8| TagGroup(vec![("site".into(), (site > 0).then(|| site.to_string()))]);
            let mut sizes = BatchSizes::default();
            let mut open = [0usize; 4];
            let mut largest = [0usize; 4];
            for site in &sites {
                let at = usize::from(*site);
                let max_devices = sizes.count_device(&spec, &group(*site));
                prop_assert_eq!(max_devices.is_none(), *site == 0, "without the tag there is no budget");
                open[at] += 1;
                largest[at] = largest[at].max(open[at]);
                if max_devices.is_some_and(|max| open[at] >= max) {
                    open[at] = 0;
                }
            }
            for site in 1u8..4 {
                let devices = sites.iter().filter(|other| **other == site).count() as u64;
                let Some(own) = spec.budget_groups(&group(site)).pop() else { continue };
                prop_assert!(largest[usize::from(site)] as u64 <= own.limit.of(devices));
            }
        }
    }
}
