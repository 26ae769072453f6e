//! Records the activity of a running rollout for the rollout's [time
//! account](twincast_core::account).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::account::Activity;
use twincast_core::gate::Next;
use twincast_core::ids::HubName;
use twincast_core::link::LinkObstacle;
use twincast_core::plan::TagGroup;
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::spec::ScheduleState;
use twincast_core::time::Timestamp;
use twincast_core::waiting::{Shortlist, Waiting};

/// The shortest interval between two checks of the hubs.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A hub without consumers is reported after this time. A shorter gap means that workers are being
/// replaced.
const NO_WORKER_GRACE: Duration = Duration::from_secs(10);
/// The interval at which an advancing clock is stored. A driver that dies loses at most this much
/// of the counted time.
const CLOCK_SAVE_INTERVAL: Duration = Duration::from_secs(20);

/// The obstacles to a rollout's sends, as last seen by the driver.
#[derive(Debug)]
pub(crate) struct Obstacles {
    /// Whether the schedule permitted an open batch at the last pass.
    pub(crate) any_open: bool,
    /// Whether budgets held back all of those batches.
    pub(crate) held_back: bool,
    /// The reason why no batch could be sent, if any.
    pub(crate) release_obstacle: Option<Waiting>,
    /// The reason why the queue accepted no dispatch at the last pass while no worker held a batch.
    pub(crate) queue_unreachable: Option<String>,
    /// The hubs without consumers, and the start of that state.
    without_workers: BTreeMap<HubName, Instant>,
    /// Whether all hubs have recently refused sends because of the quota.
    are_throttled: bool,
    /// The hubs through which nothing can be sent.
    blocked_hubs: Vec<(HubName, LinkObstacle)>,
    /// The wait for a hub with pending sends but without configuration, if any.
    pub(crate) not_configured: Option<Waiting>,
    hubs_checked_at: Option<Instant>,
    /// The time of the last save of the rollout's clock.
    clock_saved_at: Option<Instant>,
}

impl Default for Obstacles {
    fn default() -> Self {
        Self {
            any_open: true,
            held_back: false,
            release_obstacle: None,
            queue_unreachable: None,
            without_workers: BTreeMap::new(),
            are_throttled: false,
            blocked_hubs: Vec::new(),
            not_configured: None,
            hubs_checked_at: None,
            clock_saved_at: None,
        }
    }
}

impl Obstacles {
    /// Notes whether a worker consumes the batches of a hub. Callers leave out hubs with an unknown
    /// queue depth.
    pub(crate) fn note_workers(&mut self, hub: &HubName, has_some: bool, now: Instant) {
        if has_some {
            self.without_workers.remove(hub);
        } else {
            self.without_workers.entry(hub.clone()).or_insert(now);
        }
    }

    /// Returns the activity while sends through `hubs` are pending, and the reason why some of
    /// these sends wait, if any.
    fn activity_and_obstacle(
        &self,
        hubs: &BTreeSet<&HubName>,
        now: Instant,
    ) -> (Activity, Option<Waiting>) {
        if let Some(why) = &self.queue_unreachable {
            return (Activity::Blocked, Some(Waiting::of_queue(why)));
        }
        let is_stuck = |hub: &HubName| self.blocked_hubs.iter().any(|(stuck, _)| stuck == hub);
        let is_without_workers = |hub: &HubName| matches!(self.without_workers.get(hub), Some(since) if now >= *since + NO_WORKER_GRACE);
        let without_workers: Vec<_> = hubs.iter().filter(|hub| is_without_workers(hub)).collect();
        let stuck = hubs
            .iter()
            .filter(|hub| is_stuck(hub) || is_without_workers(hub));
        let others = hubs.len() - stuck.count();
        let obstacle = match without_workers.first() {
            Some(hub) => Some(Waiting::NoWorker((**hub).clone())),
            None if self.blocked_hubs.is_empty() => None,
            None => Some(Waiting::of_hubs(self.blocked_hubs.iter().cloned(), others)),
        };
        match others {
            0 if obstacle.is_some() => (Activity::Blocked, obstacle),
            _ if self.are_throttled => {
                let names = hubs.iter().map(|hub| (*hub).clone());
                let quota = || Some(Waiting::Quota(Shortlist::of(names)));
                (Activity::Throttled, obstacle.or_else(quota))
            }
            _ => (Activity::Sending, obstacle),
        }
    }
}

/// Keeps the time account of a rollout.
pub(crate) struct Accounting<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) clock: &'a dyn Clock,
}

impl Accounting<'_> {
    /// Notes the rollout's activity in the record and in the store. `hubs` are the hubs with
    /// pending sends.
    pub(crate) async fn note(
        &self,
        rollout: &mut Rollout,
        next: &Next,
        hubs: &BTreeSet<&HubName>,
        obstacles: &mut Obstacles,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (sending, obstacle) = match next {
            Next::Send if is_closed(rollout, obstacles.any_open, now) => {
                (Activity::OutsideWindow, obstacles.release_obstacle.clone())
            }
            Next::Send if obstacles.held_back => {
                (Activity::Feedback, obstacles.release_obstacle.clone())
            }
            Next::Send => {
                self.check_hubs(hubs, obstacles).await?;
                obstacles.activity_and_obstacle(hubs, Instant::now())
            }
            _ => (Activity::Sending, None),
        };
        let (sending, obstacle) = match (sending, obstacle, &obstacles.not_configured) {
            (Activity::Sending, _, Some(missing)) if !obstacles.any_open => {
                (Activity::Blocked, Some(missing.clone()))
            }
            (sending, obstacle, missing) => (sending, obstacle.or_else(|| missing.clone())),
        };
        let activity = match next {
            Next::QueryTwins if rollout.notes.clock.query_failure().is_some() => {
                Some(Activity::Evidence)
            }
            next => next.activity(sending),
        };
        let noted = activity.and_then(|activity| rollout.with_activity(activity, obstacle, now));
        let clock_at = *obstacles.clock_saved_at.get_or_insert_with(Instant::now);
        let is_due = clock_advances(next) && clock_at.elapsed() >= CLOCK_SAVE_INTERVAL;
        let noted = noted.or_else(|| is_due.then(|| rollout.clone()));
        if let Some(noted) = noted {
            self.store.save_notes(&noted).await?;
            *rollout = noted;
            obstacles.clock_saved_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Checks whether the hubs can send and whether they throttle, at most once per
    /// [`CHECK_INTERVAL`].
    async fn check_hubs(
        &self,
        hubs: &BTreeSet<&HubName>,
        obstacles: &mut Obstacles,
    ) -> Result<(), StoreError> {
        if obstacles
            .hubs_checked_at
            .is_some_and(|at| at.elapsed() < CHECK_INTERVAL)
        {
            return Ok(());
        }
        let (mut are_throttled, mut blocked_hubs) = (true, Vec::new());
        for hub in hubs {
            // All hubs must throttle, so the first hub without throttling ends the queries.
            are_throttled = are_throttled && self.store.limiter(hub).await?.factor < 1.0;
            if let Some(obstacle) = LinkObstacle::of(&self.store.links(hub).await?) {
                blocked_hubs.push(((*hub).clone(), obstacle));
            }
        }
        (obstacles.are_throttled, obstacles.blocked_hubs) = (are_throttled, blocked_hubs);
        obstacles.hubs_checked_at = Some(Instant::now());
        Ok(())
    }
}

/// Returns whether the rollout's clock advances the current wait.
fn clock_advances(next: &Next) -> bool {
    let waits = match next {
        Next::QueryTwins | Next::Record => return true,
        Next::Wait(waits) => waits,
        Next::Send | Next::Apply(_) | Next::Over => return false,
    };
    matches!(
        waits,
        Waiting::Bake { .. } | Waiting::Silent { .. } | Waiting::Evidence { .. }
    )
}

/// Returns whether the schedule forbids sends. With device time zones, the schedule counts as
/// closed when the last pass found all remaining devices in closed zones.
fn is_closed(rollout: &Rollout, any_open: bool, now: Timestamp) -> bool {
    if rollout.spec.has_zones() {
        return !any_open;
    }
    let schedule = rollout.spec.schedule_state(&TagGroup::default(), now);
    matches!(schedule, ScheduleState::Closed { .. })
}
