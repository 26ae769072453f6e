//! The hubs' limiters, for as long as this process lives.

use std::collections::HashMap;
use std::time::Duration;

use twincast_core::ids::{HubName, RolloutName};
use twincast_core::permits::{Grant, Limiter};
use twincast_core::ports::PermitRequest;
use twincast_core::time::Timestamp;

/// One limiter for each hub, and one for each rollout with a limit of its own on a hub.
#[derive(Debug, Default)]
pub(super) struct Permits {
    hubs: HashMap<HubName, Limiter>,
    rollouts: HashMap<(RolloutName, HubName), Limiter>,
}

impl Permits {
    /// Reserves permits, where both the hub and the rollout have room.
    ///
    /// A rollout's limiter gives nothing ahead of time: a place in the hub's line that is used
    /// later than it was reserved for would come on top of the places reserved for then.
    pub(super) fn take(&mut self, now: Timestamp, request: &PermitRequest) -> Grant {
        let hub = self.hubs.entry(request.hub.clone()).or_default();
        let Some((name, per_minute)) = &request.rollout else {
            return hub.take(now, request.wanted, request.per_minute);
        };
        let rollout = self
            .rollouts
            .entry((name.clone(), request.hub.clone()))
            .or_default();
        let mut tried = *rollout;
        let allowed = tried.take(now, request.wanted, *per_minute);
        if !allowed.wait.is_zero() {
            return Grant {
                permits: 0,
                wait: allowed.wait,
            };
        }
        let grant = hub.take(now, allowed.permits, request.per_minute);
        if grant.permits > 0 {
            rollout.take(now, grant.permits, *per_minute);
        }
        grant
    }

    pub(super) fn throttled(
        &mut self,
        now: Timestamp,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) {
        self.hubs
            .entry(hub.clone())
            .or_default()
            .throttled(now, retry_after);
    }
}
