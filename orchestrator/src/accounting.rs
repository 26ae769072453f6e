//! Notes what a running rollout is doing, for its [account](twincast_core::account).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::account::Activity;
use twincast_core::gate::Next;
use twincast_core::ids::HubName;
use twincast_core::link::Impasse;
use twincast_core::plan::Group;
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::spec::Opening;
use twincast_core::time::Timestamp;
use twincast_core::waiting::{Named, Waiting};

/// How often the hubs are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A hub whose batches no worker takes for less time is not told of: its workers are being replaced.
const DESERTED: Duration = Duration::from_secs(10);
/// How often a clock is stored that counts. Of what it has counted, at most so much is lost when its driver dies.
const CLOCK_SAVED_EVERY: Duration = Duration::from_secs(20);

/// What a driver remembers of what keeps a rollout's sends.
#[derive(Debug)]
pub(crate) struct WaySeen {
    /// Some open batch could be sent to at the last pass.
    pub(crate) any_open: bool,
    /// There were some, and budgets held back all of them.
    pub(crate) held_back: bool,
    /// The reason why none could be sent to, if there is one.
    pub(crate) hold: Option<Waiting>,
    /// Why the queue took no dispatch at the last pass, while nobody worked on any batch.
    pub(crate) queue_away: Option<String>,
    /// Since when no worker takes the batches of a hub.
    deserted: BTreeMap<HubName, Instant>,
    /// All hubs have refused sends for their quota of late.
    are_throttled: bool,
    /// The hubs that nothing can be sent through.
    stuck: Vec<(HubName, Impasse)>,
    /// Hubs with something to be sent that are not configured here.
    pub(crate) not_configured: Option<Waiting>,
    looked_at: Option<Instant>,
    /// When the rollout's clock was stored last.
    clock_saved_at: Option<Instant>,
}

impl Default for WaySeen {
    fn default() -> Self {
        Self {
            any_open: true,
            held_back: false,
            hold: None,
            queue_away: None,
            deserted: BTreeMap::new(),
            are_throttled: false,
            stuck: Vec::new(),
            not_configured: None,
            looked_at: None,
            clock_saved_at: None,
        }
    }
}

impl WaySeen {
    /// Notes whether a worker takes the batches of a hub. A queue that did not say is not to be noted.
    pub(crate) fn has_workers(&mut self, hub: &HubName, has_some: bool, now: Instant) {
        if has_some {
            self.deserted.remove(hub);
        } else {
            self.deserted.entry(hub.clone()).or_insert(now);
        }
    }

    /// What is done while something is to be sent through `hubs`, and why not all of it can be.
    fn way(&self, hubs: &BTreeSet<&HubName>, now: Instant) -> (Activity, Option<Waiting>) {
        if let Some(why) = &self.queue_away {
            return (Activity::Blocked, Some(Waiting::of_queue(why)));
        }
        let is_stuck = |hub: &HubName| self.stuck.iter().any(|(stuck, _)| stuck == hub);
        let is_deserted = |hub: &HubName| matches!(self.deserted.get(hub), Some(since) if now >= *since + DESERTED);
        let deserted: Vec<_> = hubs.iter().filter(|hub| is_deserted(hub)).collect();
        let none = hubs.iter().filter(|hub| is_stuck(hub) || is_deserted(hub));
        let others = hubs.len() - none.count();
        let hold = match deserted.first() {
            Some(hub) => Some(Waiting::NoWorker((**hub).clone())),
            None if self.stuck.is_empty() => None,
            None => Some(Waiting::of_hubs(self.stuck.iter().cloned(), others)),
        };
        match others {
            0 if hold.is_some() => (Activity::Blocked, hold),
            _ if self.are_throttled => {
                let names = hubs.iter().map(|hub| (*hub).clone());
                let quota = || Some(Waiting::Quota(Named::of(names)));
                (Activity::Throttled, hold.or_else(quota))
            }
            _ => (Activity::Sending, hold),
        }
    }
}

/// Keeps the account of a rollout.
pub(crate) struct Accounting<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) clock: &'a dyn Clock,
}

impl Accounting<'_> {
    /// Notes in the record, and in the store, what the rollout is doing. `hubs` are those through which something
    /// is to be sent.
    pub(crate) async fn note(
        &self,
        rollout: &mut Rollout,
        next: &Next,
        hubs: &BTreeSet<&HubName>,
        seen: &mut WaySeen,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (sending, hold) = match next {
            Next::Send if is_closed(rollout, seen.any_open, now) => {
                (Activity::OutsideWindow, seen.hold.clone())
            }
            Next::Send if seen.held_back => (Activity::Feedback, seen.hold.clone()),
            Next::Send => {
                self.look_at(hubs, seen).await?;
                seen.way(hubs, Instant::now())
            }
            _ => (Activity::Sending, None),
        };
        let (sending, hold) = match (sending, hold, &seen.not_configured) {
            (Activity::Sending, _, Some(missing)) if !seen.any_open => {
                (Activity::Blocked, Some(missing.clone()))
            }
            (sending, hold, missing) => (sending, hold.or_else(|| missing.clone())),
        };
        let doing = match next {
            Next::Measure if rollout.notes.clock.not_asked().is_some() => Some(Activity::Evidence),
            next => next.activity(sending),
        };
        let noted = doing.and_then(|doing| rollout.noting(doing, hold, now));
        let clock_at = *seen.clock_saved_at.get_or_insert_with(Instant::now);
        let is_due = counts(next) && clock_at.elapsed() >= CLOCK_SAVED_EVERY;
        let noted = noted.or_else(|| is_due.then(|| rollout.clone()));
        if let Some(noted) = noted {
            self.store.note(&noted).await?;
            *rollout = noted;
            seen.clock_saved_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Looks whether anything can be sent through the hubs, and whether they throttle: once in [`LOOK`] at the most.
    async fn look_at(
        &self,
        hubs: &BTreeSet<&HubName>,
        seen: &mut WaySeen,
    ) -> Result<(), StoreError> {
        if seen.looked_at.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        let (mut are_throttled, mut stuck) = (true, Vec::new());
        for hub in hubs {
            // Others need not be asked when one is not.
            are_throttled = are_throttled && self.store.limiter(hub).await?.factor < 1.0;
            if let Some(impasse) = Impasse::of(&self.store.links(hub).await?) {
                stuck.push(((*hub).clone(), impasse));
            }
        }
        (seen.are_throttled, seen.stuck) = (are_throttled, stuck);
        seen.looked_at = Some(Instant::now());
        Ok(())
    }
}

/// The clock of the rollout counts towards what is waited for.
fn counts(next: &Next) -> bool {
    let waits = match next {
        Next::Measure | Next::Record => return true,
        Next::Wait(waits) => waits,
        Next::Send | Next::Happened(_) | Next::Over => return false,
    };
    matches!(
        waits,
        Waiting::Bake { .. } | Waiting::Silent { .. } | Waiting::Evidence { .. }
    )
}

/// Its schedule does not let it send. Where devices have zones of their own, it is closed when it is for all that
/// are left, which the last pass has seen.
fn is_closed(rollout: &Rollout, any_open: bool, now: Timestamp) -> bool {
    if rollout.spec.has_zones() {
        return !any_open;
    }
    let opening = rollout.spec.opening(&Group::default(), now);
    matches!(opening, Opening::Closed { .. })
}
