//! Batches with room in their budgets.

use std::collections::{BTreeMap, BTreeSet};

use super::BatchStatus;
use crate::budget::{BudgetGroup, FullGroup, GroupProgress};

/// Returns the budget groups of the batches, without duplicates.
#[must_use]
pub fn budget_groups(batches: &[BatchStatus]) -> Vec<BudgetGroup> {
    let all = batches.iter().flat_map(|batch| &batch.header.budgets);
    let by_name: BTreeMap<_, _> = all.map(|group| (&group.group, group)).collect();
    by_name.into_values().cloned().collect()
}

/// Returns the open batches with room in all of their budget groups, in their order, and the full
/// groups that hold back the other batches. `groups` is the result of [`budget_groups`], and
/// `progress` has the progress of each of these groups.
#[must_use]
pub fn with_room(
    batches: Vec<BatchStatus>,
    groups: &[BudgetGroup],
    progress: &[GroupProgress],
) -> (Vec<BatchStatus>, Vec<FullGroup>) {
    let mut rooms: BTreeMap<&str, u64> = groups
        .iter()
        .zip(progress)
        .map(|(group, progress)| (group.group.as_str(), progress.room(group.limit)))
        .collect();
    let mut full = BTreeSet::new();
    let mut fits = |batch: &BatchStatus| {
        if batch.is_counted {
            return true;
        }
        let unsettled = batch.counts.unsettled();
        let own = || {
            batch
                .header
                .budgets
                .iter()
                .map(|group| group.group.as_str())
        };
        let lacking = own().filter(|group| rooms.get(group).is_some_and(|room| *room < unsettled));
        let lacking: Vec<_> = lacking.map(str::to_owned).collect();
        if lacking.is_empty() {
            for group in own() {
                if let Some(room) = rooms.get_mut(group) {
                    *room -= unsettled;
                }
            }
        }
        let fits = lacking.is_empty();
        full.extend(lacking);
        fits
    };
    let mut batches = batches;
    batches.retain(&mut fits);
    let named = groups.iter().zip(progress);
    let full = named.filter(|(group, _)| full.contains(&group.group));
    let full = full.map(|(group, progress)| FullGroup {
        group: group.group.clone(),
        in_progress: progress.in_progress,
        at_most: group.limit.of(progress.devices),
    });
    (batches, full.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Limit;
    use crate::ids::{BatchId, HubHost, HubName, StageIndex};
    use crate::outcome::Counts;
    use crate::plan::{BatchHeader, TagGroup};

    fn batch(id: u32, sites: &[&str], devices: u64, is_counted: bool) -> BatchStatus {
        let group = |site: &&str| BudgetGroup {
            group: (*site).to_owned(),
            limit: Limit::Devices(3),
            silent_ms: 1,
        };
        BatchStatus {
            header: BatchHeader {
                id: BatchId(id),
                hub: HubName::new("a").unwrap(),
                host: HubHost::new("a").unwrap(),
                stage: StageIndex(0),
                group: TagGroup::default(),
                further_groups: Vec::new(),
                devices: 9,
                sort_key: Default::default(),
                budgets: sites.iter().map(group).collect(),
            },
            counts: Counts::pending(devices),
            held: None,
            lapsed: false,
            quarantined: false,
            is_counted,
        }
    }

    #[test]
    fn batches_with_budget_room_can_be_leased() {
        let batches = vec![
            batch(0, &["a"], 2, true),
            batch(1, &["a"], 2, false),
            batch(2, &["b"], 2, false),
            batch(3, &["b"], 2, false),
            batch(4, &["b"], 1, false),
            batch(5, &[], 9, false),
            batch(6, &["c", "b"], 1, false),
            batch(7, &["c"], 3, false),
        ];
        let groups = budget_groups(&batches);
        let names: Vec<_> = groups.iter().map(|group| group.group.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let progress = [2, 0, 0].map(|in_progress| GroupProgress {
            devices: 100,
            in_progress,
            finished: Vec::new(),
        });
        let (given, full) = with_room(batches, &groups, &progress);
        let ids: Vec<_> = given.iter().map(|batch| batch.header.id.0).collect();
        assert_eq!(ids, [0, 2, 4, 5, 7]);
        let full: Vec<_> = full
            .iter()
            .map(|full| (full.group.as_str(), full.in_progress, full.at_most))
            .collect();
        assert_eq!(full, [("a", 2, 3), ("b", 0, 3)]);
    }
}
