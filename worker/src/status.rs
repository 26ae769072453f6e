//! What a worker is doing, for whoever watches it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ids::HubName;
use twincast_core::ports::HubTrouble;

/// Whether a hub can be sent through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubState {
    /// As far as is known.
    Serving,
    /// The hub takes nothing from anyone.
    Shut {
        /// Since when.
        since: Instant,
        /// When it is tried again.
        until: Instant,
        /// What the matter is.
        trouble: HubTrouble,
        /// Why.
        reason: String,
    },
}

/// One hub, as a worker sees it.
#[derive(Debug)]
pub struct HubStatus {
    state: Mutex<HubState>,
    /// Messages that the hub accepted.
    pub accepted: AtomicU64,
    /// Refusals for the hub's quota.
    pub throttled: AtomicU64,
    /// Sends whose answer did not come.
    pub unanswered: AtomicU64,
    /// Sends that were made again, for whatever reason.
    pub resent: AtomicU64,
    /// Sends under way.
    pub in_flight: AtomicU64,
    /// Feedback records that were merged, as often as they came.
    pub feedback_merged: AtomicU64,
    /// Feedback records of other applications, as often as they came.
    pub feedback_foreign: AtomicU64,
}

impl HubStatus {
    fn new() -> Self {
        Self {
            state: Mutex::new(HubState::Serving),
            accepted: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            feedback_merged: AtomicU64::new(0),
            feedback_foreign: AtomicU64::new(0),
        }
    }

    /// Whether it can be sent through.
    #[must_use]
    pub fn state(&self) -> HubState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The hub takes messages. While it is shut that says nothing: what it answers then was on
    /// its way before.
    pub(crate) fn serving(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*state, HubState::Shut { until, .. } if *until <= Instant::now()) {
            *state = HubState::Serving;
        }
    }

    /// The hub is shut. Says whether that is news.
    pub(crate) fn shut(&self, retry_after: Duration, trouble: HubTrouble, reason: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*state {
            HubState::Shut { since, .. } => *since,
            HubState::Serving => Instant::now(),
        };
        let is_news = *state == HubState::Serving;
        *state = HubState::Shut {
            since,
            until: Instant::now() + retry_after,
            trouble,
            reason: reason.to_owned(),
        };
        is_news
    }

    /// When a shut hub is to be tried again, if that is still to come.
    pub(crate) fn shut_until(&self) -> Option<Instant> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            HubState::Shut { until, .. } => Some(*until).filter(|until| *until > Instant::now()),
            HubState::Serving => None,
        }
    }

    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A worker, live.
#[derive(Debug)]
pub struct WorkerStatus {
    hubs: BTreeMap<HubName, Arc<HubStatus>>,
}

impl WorkerStatus {
    pub(crate) fn new(hubs: impl Iterator<Item = HubName>) -> Self {
        Self {
            hubs: hubs.map(|hub| (hub, Arc::new(HubStatus::new()))).collect(),
        }
    }

    pub(crate) fn hub(&self, name: &HubName) -> Arc<HubStatus> {
        Arc::clone(
            self.hubs
                .get(name)
                .expect("a worker's status has all its hubs"),
        )
    }

    /// Its hubs, by name.
    pub fn hubs(&self) -> impl Iterator<Item = (&HubName, &HubStatus)> {
        self.hubs.iter().map(|(name, status)| (name, &**status))
    }
}
