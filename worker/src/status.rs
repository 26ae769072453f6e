//! What a worker is doing, for whoever watches it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Registry;
use tokio::time::Instant;
use twincast_core::ids::HubName;
use twincast_core::ports::HubTrouble;

use crate::config::WorkerHub;
use crate::metrics::{Families, HubMetrics};

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
    name: HubName,
    state: Mutex<HubState>,
    /// The store gives permits too late.
    is_late: AtomicBool,
    metrics: HubMetrics,
}

impl HubStatus {
    pub(crate) fn new(name: HubName, metrics: HubMetrics) -> Self {
        Self {
            name,
            state: Mutex::new(HubState::Serving),
            is_late: AtomicBool::new(false),
            metrics,
        }
    }

    /// What is counted of it.
    #[must_use]
    pub fn metrics(&self) -> &HubMetrics {
        &self.metrics
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
            self.metrics.shut.set(0);
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
        self.metrics.shut.set(1);
        is_news
    }

    /// The store took so long to give permits that they cannot be used.
    pub(crate) fn permits_late(&self, permits: u32, took: Duration) {
        self.metrics.permits_late.inc_by(permits.into());
        if !self.is_late.swap(true, Ordering::Relaxed) {
            tracing::warn!(hub = %self.name, ?took, "no permits, the store answers too late");
        }
    }

    /// The store has given permits that can be used.
    pub(crate) fn permits_in_time(&self) {
        if self.is_late.swap(false, Ordering::Relaxed) {
            tracing::info!(hub = %self.name, "permits come in time again");
        }
    }

    /// When a shut hub is to be tried again, if that is still to come.
    pub(crate) fn shut_until(&self) -> Option<Instant> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            HubState::Shut { until, .. } => Some(*until).filter(|until| *until > Instant::now()),
            HubState::Serving => None,
        }
    }
}

/// A worker, live.
#[derive(Debug)]
pub struct WorkerStatus {
    metrics: Families,
    hubs: BTreeMap<HubName, Arc<HubStatus>>,
}

impl WorkerStatus {
    pub(crate) fn new(hubs: &[WorkerHub]) -> Self {
        let metrics = Families::new();
        let hubs = hubs.iter().map(|hub| {
            if let Some(per_minute) = hub.limits.sends_per_minute {
                metrics.quota(&hub.name, per_minute);
            }
            let status = HubStatus::new(hub.name.clone(), metrics.hub(&hub.name));
            (hub.name.clone(), Arc::new(status))
        });
        Self {
            hubs: hubs.collect(),
            metrics,
        }
    }

    /// Lets `registry` export what is counted.
    ///
    /// # Errors
    /// When it exports metrics of these names already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.metrics.register(registry)
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
