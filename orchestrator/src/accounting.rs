//! Notes what a running rollout is doing, for its [account](twincast_core::account).

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::account::{Activity, Hold, NOTED_EVERY, Way};
use twincast_core::gate::Next;
use twincast_core::ids::HubName;
use twincast_core::plan::Group;
use twincast_core::ports::StoreError;
use twincast_core::rollout::Rollout;
use twincast_core::spec::Opening;
use twincast_core::time::Timestamp;

use crate::driver::Driver;

/// How often it is looked whether the hubs are throttled.
const LOOK: Duration = Duration::from_secs(1);

/// What a driver remembers of what keeps a rollout's sends.
#[derive(Debug)]
pub(crate) struct WaySeen {
    /// Some open batch could be sent to at the last pass.
    pub(crate) any_open: bool,
    /// There were some, and budgets held back all of them.
    pub(crate) held_back: bool,
    /// The reason why none could be sent to, if there is one.
    pub(crate) hold: Option<Hold>,
    is_throttled: bool,
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
            is_throttled: false,
            looked_at: None,
            clock_saved_at: None,
        }
    }
}

impl Driver {
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
        let way = match next {
            Next::Send if is_closed(rollout, seen.any_open, now) => Way::OutsideWindow,
            Next::Send if seen.held_back => Way::HeldBack,
            Next::Send if self.are_throttled(hubs, seen).await? => Way::Throttled,
            _ => Way::Clear,
        };
        let hold = match way {
            Way::OutsideWindow | Way::HeldBack => seen.hold.clone(),
            Way::Throttled | Way::Clear => None,
        };
        let doing = match next {
            Next::Measure if rollout.clock.not_asked().is_some() => Some(Activity::Evidence),
            next => Activity::of_next(next, way),
        };
        let noted = doing.and_then(|doing| rollout.noting(doing, hold, now));
        // Of its clock, at most so much is lost when its driver dies.
        let clock_at = *seen.clock_saved_at.get_or_insert_with(Instant::now);
        let is_due =
            matches!(next, Next::Wait(_) | Next::Measure) && clock_at.elapsed() >= NOTED_EVERY;
        let noted = noted.or_else(|| is_due.then(|| rollout.clone()));
        if let Some(noted) = noted {
            self.store.save(&noted, noted.revision()).await?;
            *rollout = noted;
            seen.clock_saved_at = Some(Instant::now());
        }
        Ok(())
    }

    /// All of the hubs have refused sends for their quota of late.
    async fn are_throttled(
        &self,
        hubs: &BTreeSet<&HubName>,
        seen: &mut WaySeen,
    ) -> Result<bool, StoreError> {
        if seen.looked_at.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(seen.is_throttled);
        }
        let mut all = true;
        for hub in hubs {
            // Others need not be asked when one is not.
            all = all && self.store.limiter(hub).await?.factor < 1.0;
        }
        (seen.is_throttled, seen.looked_at) = (all, Some(Instant::now()));
        Ok(all)
    }
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
