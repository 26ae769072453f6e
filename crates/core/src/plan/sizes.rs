//! How large a batch may be whose devices are held back by budgets.

use std::collections::HashMap;

use super::{Group, Place};
use crate::budget::BudgetGroup;
use crate::spec::RolloutSpec;

/// Of what a group allows, one batch is this part at the most: so that others go on while a silent device of one
/// is waited for.
const PARTS: u64 = 4;
/// Groups that are counted at once. Beyond, counting begins anew, which makes some batches smaller.
const COUNTED: usize = 200_000;

/// The sizes of one hub's batches, as its devices come by.
///
/// What a per cent of a group allows is known when all its devices are. But it is no less than the same per cent of those
/// that have come by, so batches by that are never too large: they begin small, and grow with the group.
#[derive(Debug, Default)]
pub struct BatchSizes {
    /// By group: devices that have come by, and batches that were filled.
    seen: HashMap<String, (u64, u32)>,
}

impl BatchSizes {
    /// Counts a device. Gives how many devices a batch of its tag group may have now; `None` without budgets.
    pub fn with_one_more(&mut self, spec: &RolloutSpec, group: &Group) -> Option<usize> {
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

    /// A place for the next batch of a tag group: first come the first batches of all groups, then the second ones. So the
    /// batches of one that is full do not stand before those of all others.
    pub fn next_place(&mut self, groups: &[BudgetGroup]) -> Place {
        let Some(first) = groups.first() else {
            return Place::default();
        };
        let (_, batches) = self.of(first.group.clone());
        *batches += 1;
        Place::of_round(*batches)
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
        /// Filled as they come, no batch is larger than what its group allows in the end.
        #[test]
        fn a_batch_fits_into_its_group(
            at_most in prop_oneof![(1u32..40).prop_map(|n| n.to_string()), (1u32..100).prop_map(|n| format!("{n}%"))],
            sites in prop::collection::vec(0u8..4, 1..600),
        ) {
            let text = format!("{{name: r, target: {{all: true}}, batch_by: [site], message: {{body: {{text: x}}, ack: full}}, \
                budgets: [{{tag: site, at_most: {at_most}}}]}}");
            let spec = RolloutSpec::read("x", &text).unwrap();
            let group = |site: u8| Group(vec![("site".into(), (site > 0).then(|| site.to_string()))]);
            let mut sizes = BatchSizes::default();
            let mut open = [0usize; 4];
            let mut largest = [0usize; 4];
            for site in &sites {
                let at = usize::from(*site);
                let most = sizes.with_one_more(&spec, &group(*site));
                prop_assert_eq!(most.is_none(), *site == 0, "without the tag there is no budget");
                open[at] += 1;
                largest[at] = largest[at].max(open[at]);
                if most.is_some_and(|most| open[at] >= most) {
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
