//! The permits of hubs, kept in memory.

use std::collections::HashMap;
use std::time::Duration;

use twincast_core::ids::HubName;
use twincast_core::permits::{Grant, HubPermits, LimiterState, Links, PermitRequest};
use twincast_core::time::Timestamp;

/// The limiters and link budgets of hubs.
#[derive(Debug, Default)]
pub(super) struct Permits {
    hubs: HashMap<HubName, HubPermits>,
    links: HashMap<HubName, Links>,
}

impl Permits {
    /// Reserves permits.
    pub(super) fn take(&mut self, now: Timestamp, request: &PermitRequest) -> Grant {
        let hub = self.hubs.entry(request.hub.clone()).or_default();
        hub.take(now, request)
    }

    pub(super) fn throttled(
        &mut self,
        now: Timestamp,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) {
        let hub = self.hubs.entry(hub.clone()).or_default();
        hub.throttled(now, retry_after);
    }

    /// Returns the state of a hub's limiter.
    pub(super) fn state(&self, now: Timestamp, hub: &HubName) -> LimiterState {
        let hub = self.hubs.get(hub);
        hub.map(|permits| permits.state(now)).unwrap_or_default()
    }

    /// Reserves the opening of a link.
    pub(super) fn open_link(&mut self, now: Timestamp, hub: &HubName) -> Duration {
        self.links.entry(hub.clone()).or_default().open(now)
    }
}
