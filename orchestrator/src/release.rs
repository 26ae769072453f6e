//! Which of a hub's open batches are released now.

use std::time::Duration;

use twincast_core::batch::BatchStatus;
use twincast_core::batch::{groups_of, sort_out};
use twincast_core::budget::FullGroup;
use twincast_core::ids::RolloutName;
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::Order;
use twincast_core::waiting::Waiting;

/// In an order by a tag, the next value begins when no more than this much sending is left of those before it. Longer than
/// the longest pass of a driver, so that no hub waits for it.
const HEAD_START: Duration = Duration::from_secs(3);

/// Batches that may be released, in their order.
#[derive(Debug, Default)]
pub(crate) struct Releasable {
    pub(crate) batches: Vec<BatchStatus>,
    /// There are none, because budgets hold them back.
    pub(crate) held_back: bool,
    /// The groups that hold some back.
    pub(crate) full: Vec<FullGroup>,
    /// The closed schedule that opens first, if a schedule holds some back.
    pub(crate) closed: Option<Waiting>,
}

/// Holds back batches that their budgets have no room for. The store would not give them; so that others of the hub
/// are released in their place.
pub(crate) async fn keep_budgets(
    store: &dyn Store,
    name: &RolloutName,
    open: Vec<BatchStatus>,
) -> Result<Releasable, StoreError> {
    let groups = groups_of(&open);
    if groups.is_empty() {
        return Ok(Releasable {
            batches: open,
            ..Releasable::default()
        });
    }
    let progress = store.in_progress(name, &groups).await?;
    let any_open = !open.is_empty();
    let (batches, full) = sort_out(open, &groups, &progress);
    Ok(Releasable {
        held_back: any_open && batches.is_empty(),
        batches,
        full,
        closed: None,
    })
}

/// Holds back batches whose turn has not come: those of a later place while too much of the ones before is left. `open` is
/// in the order of release; `pace` is the hub's, a minute, if it has one.
pub(crate) fn keep_order(open: &mut Vec<BatchStatus>, order: Option<&Order>, pace: Option<f64>) {
    let (Some(Order::By(_)), Some(pace)) = (order, pace) else {
        return;
    };
    let head_start = (pace / 60.0 * HEAD_START.as_secs_f64()).max(1.0) as u64;
    let turn = |batch: &BatchStatus| (batch.header.stage, batch.header.place.clone());
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
    use twincast_core::plan::Place;
    use twincast_core::query::TagPath;
    use twincast_testkit::build;

    use super::*;

    /// How many of these are released: value and devices that are left.
    fn released(order: Option<&Order>, pace: Option<f64>, batches: &[(&str, u32)]) -> usize {
        let status = |(value, devices): &(&str, u32)| {
            let mut header = build::batch(0, *devices).header;
            header.place = Place::of_value(Some(value));
            build::open_status(header)
        };
        let mut open = batches.iter().map(status).collect();
        keep_order(&mut open, order, pace);
        open.len()
    }

    #[test]
    fn a_value_waits_for_the_one_before_it() {
        let by = Order::By(TagPath::new("site").unwrap());
        let by = Some(&by);
        // 600 a minute are 30 in three seconds.
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
        // What is not paced is sent faster than one could wait.
        assert_eq!(released(by, None, &[("1", 90), ("2", 90)]), 2);
        let shuffled = Some(&Order::Shuffled);
        assert_eq!(released(shuffled, pace, &[("1", 90), ("2", 90)]), 2);
        assert_eq!(released(None, pace, &[("1", 90), ("2", 90)]), 2);
    }
}
