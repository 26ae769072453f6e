//! Selects the open batches of a hub to be released now.

use std::time::Duration;

use twincast_core::batch::BatchStatus;
use twincast_core::batch::{budget_groups, with_room};
use twincast_core::budget::FullGroup;
use twincast_core::ids::RolloutName;
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::Order;
use twincast_core::waiting::Waiting;

/// In an order by a tag, the next value begins when at most this much sending time is left of the
/// earlier values. Longer than the longest pass of a driver, so that no hub runs idle.
const HEAD_START: Duration = Duration::from_secs(3);

/// The batches that may be released, in order.
#[derive(Debug, Default)]
pub(crate) struct Releasable {
    pub(crate) batches: Vec<BatchStatus>,
    /// Whether budgets hold back all open batches.
    pub(crate) held_back: bool,
    /// The full budget groups that hold back batches.
    pub(crate) full: Vec<FullGroup>,
    /// The closed schedule that opens first, if a schedule holds some back.
    pub(crate) closed: Option<Waiting>,
}

/// Holds back batches without room in their budgets, so that other batches of the hub are released
/// instead. The store would not lease the held batches anyway.
pub(crate) async fn keep_budgets(
    store: &dyn Store,
    name: &RolloutName,
    open: Vec<BatchStatus>,
) -> Result<Releasable, StoreError> {
    let groups = budget_groups(&open);
    if groups.is_empty() {
        return Ok(Releasable {
            batches: open,
            ..Releasable::default()
        });
    }
    let progress = store.in_progress(name, &groups).await?;
    let any_open = !open.is_empty();
    let (batches, full) = with_room(open, &groups, &progress);
    Ok(Releasable {
        held_back: any_open && batches.is_empty(),
        batches,
        full,
        closed: None,
    })
}

/// Holds back batches with a later sort key while too much of the earlier batches is left. `open`
/// is in the order of release; `pace` is the hub's rate per minute, if limited.
pub(crate) fn keep_order(open: &mut Vec<BatchStatus>, order: Option<&Order>, pace: Option<f64>) {
    let (Some(Order::By(_)), Some(pace)) = (order, pace) else {
        return;
    };
    let head_start = (pace / 60.0 * HEAD_START.as_secs_f64()).max(1.0) as u64;
    let turn = |batch: &BatchStatus| (batch.header.stage, batch.header.sort_key.clone());
    let Some(first) = open.first().map(turn) else {
        return;
    };
    let mut before = 0;
    let released = open.iter().take_while(|batch| {
        let may_begin = turn(batch) == first || before < head_start;
        before += batch.counts.unsettled();
        may_begin
    });
    let released = released.count();
    open.truncate(released);
}

#[cfg(test)]
mod tests {
    use twincast_core::plan::SortKey;
    use twincast_core::query::TagPath;
    use twincast_testkit::build;

    use super::*;

    /// Returns how many of these batches are released. A batch is a tag value and the number of
    /// remaining devices.
    fn released(order: Option<&Order>, pace: Option<f64>, batches: &[(&str, u32)]) -> usize {
        let status = |(value, devices): &(&str, u32)| {
            let mut header = build::batch(0, *devices).header;
            header.sort_key = SortKey::of_value(Some(value));
            build::open_status(header)
        };
        let mut open = batches.iter().map(status).collect();
        keep_order(&mut open, order, pace);
        open.len()
    }

    #[test]
    fn a_tag_value_waits_for_the_previous_value() {
        let by = Order::By(TagPath::new("site").unwrap());
        let by = Some(&by);
        // 600 per minute are 30 in three seconds.
        let pace = Some(600.0);
        assert_eq!(released(by, pace, &[]), 0);
        assert_eq!(released(by, pace, &[("1", 90), ("1", 90), ("1", 90)]), 3);
        assert_eq!(released(by, pace, &[("1", 90), ("1", 90), ("2", 90)]), 2);
        assert_eq!(released(by, pace, &[("1", 30), ("2", 90)]), 1);
        assert_eq!(released(by, pace, &[("1", 29), ("2", 90), ("3", 1)]), 2);
        assert_eq!(
            released(by, pace, &[("1", 5), ("2", 5), ("3", 20), ("4", 9)]),
            3
        );
        assert_eq!(released(by, Some(0.1), &[("1", 1), ("2", 1)]), 1);
        // Without a pace, sends are too fast to wait for.
        assert_eq!(released(by, None, &[("1", 90), ("2", 90)]), 2);
        let shuffled = Some(&Order::Shuffled);
        assert_eq!(released(shuffled, pace, &[("1", 90), ("2", 90)]), 2);
        assert_eq!(released(None, pace, &[("1", 90), ("2", 90)]), 2);
    }
}
