//! The release order of a stage's batches.
//!
//! The planner receives devices in a stream and keeps none of the devices, so the planner cannot
//! sort. Instead, the planner gives each batch a [`SortKey`], and the store returns batches in the
//! order of their sort keys.

use super::sort_key::SortKey;
use super::{Cohort, DeviceList, TagGroup};
use crate::ids::StageIndex;
use crate::spec::{Order, RolloutSpec};

/// Returns the sort key of a batch, and the batch's devices in order, according to the release
/// order of the stage.
#[must_use]
pub(super) fn apply_release_order(
    spec: &RolloutSpec,
    stage: StageIndex,
    group: &TagGroup,
    devices: DeviceList,
) -> (SortKey, DeviceList) {
    match spec.order_of(stage) {
        None => (SortKey::default(), devices),
        Some(Order::By(tag)) => {
            let own = group.0.iter().find(|(name, _)| name == tag.as_str());
            let value = own.and_then(|(_, value)| value.as_deref());
            (SortKey::of_value(value), devices)
        }
        Some(Order::Shuffled) => {
            let mut ids: Vec<_> = (0..devices.len()).map(|index| devices.get(index)).collect();
            let sort_key = ids.first().map(|first| {
                // Uses another salt than the order of devices: a larger batch must not tend to come
                // earlier.
                SortKey::of_cohort(Cohort::of(first, &format!("{}\0batches", spec.salt())))
            });
            ids.sort_by_cached_key(|id| (Cohort::of(id, spec.salt()), id.clone()));
            let mut shuffled = DeviceList::default();
            ids.iter().for_each(|id| shuffled.push(id));
            (sort_key.unwrap_or_default(), shuffled)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::DeviceId;
    use crate::plan::COMPARED_BYTES;

    #[test]
    fn values_ascend() {
        let long = "x".repeat(COMPARED_BYTES);
        let ascending = [
            Some("-1e300"),
            Some("-10"),
            Some("-2.5"),
            Some("0"),
            Some("0.001"),
            Some("9"),
            Some("10"),
            Some("1e5"),
            Some("100001"),
            Some(""),
            Some(" "),
            Some("1-north"),
            Some("A"),
            Some("a"),
            Some("a!"),
            Some("aa"),
            Some("b"),
            Some("inf"),
            Some(long.as_str()),
            Some("\u{e9}u"),
            None,
        ];
        for pair in ascending.windows(2) {
            let sort_keys = [SortKey::of_value(pair[0]), SortKey::of_value(pair[1])];
            assert!(sort_keys[0] < sort_keys[1], "{pair:?}: {sort_keys:?}");
            // A store may compare sort keys with a suffix.
            let [one, other] =
                sort_keys.map(|sort_key| format!("{}-0000000001", sort_key.as_str()));
            assert!(one < other, "{pair:?}");
        }
        assert_eq!(SortKey::of_value(Some("-0")), SortKey::of_value(Some("0")));
        assert_eq!(SortKey::of_value(Some("07")), SortKey::of_value(Some("7")));
        assert_eq!(
            SortKey::of_value(Some(&format!("{long}1"))),
            SortKey::of_value(Some(&format!("{long}2")))
        );
    }

    fn spec(order: &str) -> RolloutSpec {
        let text = format!(
            "{{name: r, target: {{all: true}}, batch_by: [region, site], message: {{body: {{text: hi}}}}, {order}}}"
        );
        RolloutSpec::read("x", &text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn list(range: std::ops::Range<u32>) -> DeviceList {
        let mut list = DeviceList::default();
        for n in range {
            list.push(&DeviceId::new(format!("d-{n}")).unwrap());
        }
        list
    }

    #[test]
    fn stage_order_overrides_rollout_order() {
        let spec = spec(
            "order: {by: site}, stages: [{name: a, percent: 1%}, {name: b, percent: 2%, order: shuffled}]",
        );
        let group = TagGroup(vec![
            ("region".into(), Some("eu".into())),
            ("site".into(), Some("7".into())),
        ]);
        let (sort_key, devices) = apply_release_order(&spec, StageIndex(0), &group, list(0..9));
        assert_eq!(
            (sort_key, &devices),
            (SortKey::of_value(Some("7")), &list(0..9))
        );
        let (sort_key, devices) = apply_release_order(&spec, StageIndex(1), &group, list(0..9));
        assert!(!sort_key.is_none());
        assert_ne!(devices, list(0..9));
        let rest = apply_release_order(&spec, StageIndex(2), &TagGroup::default(), list(0..9));
        assert_eq!(rest.0, SortKey::of_value(None));
    }

    #[test]
    fn invalid_orders_are_reported() {
        for (order, wrong) in [
            (
                "order: {by: ring}",
                "order.by: tag ring must be one of batch_by",
            ),
            ("order: sorted", "\"sorted\" is not one of by, shuffled"),
            (
                "stages: [{name: s, order: {by: ring}}]",
                "stages[0].order.by: tag ring must be",
            ),
        ] {
            let text = format!(
                "{{name: r, target: {{all: true}}, batch_by: [site], message: {{body: {{text: hi}}}}, {order}}}"
            );
            let found = RolloutSpec::read("x", &text).unwrap_err().to_string();
            assert!(found.contains(wrong), "{wrong:?} is not in {found:?}");
        }
    }

    #[test]
    fn shuffle_spreads_batches_reproducibly() {
        let spec = spec("order: shuffled");
        let sort_keys: Vec<_> = (0..1_000)
            .map(|n| {
                apply_release_order(
                    &spec,
                    StageIndex(0),
                    &TagGroup::default(),
                    list(n * 5..n * 5 + 5),
                )
                .0
            })
            .collect();
        let mut sorted: Vec<_> = (0..1_000).collect();
        sorted.sort_by_key(|n| &sort_keys[*n]);
        // The mean displacement in a random order is a third of the length.
        let moved: usize = sorted
            .iter()
            .enumerate()
            .map(|(at, n)| at.abs_diff(*n))
            .sum();
        assert!((300_000..370_000).contains(&moved), "{moved}");
        assert_eq!(
            sort_keys[3],
            apply_release_order(&spec, StageIndex(0), &TagGroup::default(), list(15..20)).0
        );
    }

    proptest! {
        #[test]
        fn numbers_ascend(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(a.is_finite() && b.is_finite() && a < b);
            let sort_key = |number: f64| SortKey::of_value(Some(&format!("{number:?}")));
            prop_assert!(sort_key(a) < sort_key(b));
        }

        #[test]
        fn shuffle_keeps_all_devices(from in 0u32..1_000, devices in 0u32..50) {
            let all = list(from..from + devices);
            let (_, shuffled) = apply_release_order(&spec("order: shuffled"), StageIndex(0), &TagGroup::default(), all.clone());
            let sorted = |list: &DeviceList| {
                let mut ids: Vec<_> = list.iter().map(str::to_owned).collect();
                ids.sort_unstable();
                ids
            };
            prop_assert_eq!(sorted(&shuffled), sorted(&all));
        }
    }
}
