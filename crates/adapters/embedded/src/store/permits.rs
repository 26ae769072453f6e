//! The hubs' limiters, for as long as this process lives.

use std::collections::HashMap;
use std::time::Duration;

use twincast_core::ids::{HubName, RolloutName};
use twincast_core::permits::{Grant, Limiter, take_within};
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
    pub(super) fn take(&mut self, now: Timestamp, request: &PermitRequest) -> Grant {
        let hub = self.hubs.entry(request.hub.clone()).or_default();
        let rollout = request.rollout.as_ref().map(|(name, per_minute)| {
            let key = (name.clone(), request.hub.clone());
            (self.rollouts.entry(key).or_default(), *per_minute)
        });
        take_within((hub, request.per_minute), rollout, now, request.wanted)
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
