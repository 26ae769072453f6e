//! Live status of a worker.

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

/// Whether messages can be sent through a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubState {
    /// No outage is known.
    Serving,
    /// The hub refuses all messages from all senders.
    Unavailable {
        /// The start of the outage.
        since: Instant,
        /// The time of the next try.
        until: Instant,
        /// The kind of trouble.
        trouble: HubTrouble,
        /// The reason in text.
        reason: String,
    },
}

/// The status of a hub, as seen by a worker.
#[derive(Debug)]
pub struct HubStatus {
    name: HubName,
    state: Mutex<HubState>,
    /// Whether the store currently grants permits too late.
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

    /// Returns the metrics of the hub.
    #[must_use]
    pub fn metrics(&self) -> &HubMetrics {
        &self.metrics
    }

    /// Returns whether messages can be sent through the hub.
    #[must_use]
    pub fn state(&self) -> HubState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes that the hub accepted a message. Ignored before an unavailable hub is due for the next
    /// try: an answer received until then belongs to an earlier send.
    pub(crate) fn serving(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*state, HubState::Unavailable { until, .. } if *until <= Instant::now()) {
            *state = HubState::Serving;
            self.metrics.unavailable.set(0);
        }
    }

    /// Notes that the hub is unavailable. Returns whether the hub was serving before.
    pub(crate) fn set_unavailable(
        &self,
        retry_after: Duration,
        trouble: HubTrouble,
        reason: &str,
    ) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*state {
            HubState::Unavailable { since, .. } => *since,
            HubState::Serving => Instant::now(),
        };
        let is_news = *state == HubState::Serving;
        *state = HubState::Unavailable {
            since,
            until: Instant::now() + retry_after,
            trouble,
            reason: reason.to_owned(),
        };
        self.metrics.unavailable.set(1);
        is_news
    }

    /// Counts permits that cannot be used, because the store took too long to grant them.
    pub(crate) fn permits_late(&self, permits: u32, took: Duration) {
        self.metrics.permits_late.inc_by(permits.into());
        if !self.is_late.swap(true, Ordering::Relaxed) {
            tracing::warn!(hub = %self.name, ?took, "no permits, the store answers too late");
        }
    }

    /// Notes that the store granted permits in time.
    pub(crate) fn permits_in_time(&self) {
        if self.is_late.swap(false, Ordering::Relaxed) {
            tracing::info!(hub = %self.name, "permits in time again");
        }
    }

    /// Returns the time of the next try of an unavailable hub, if still to come.
    pub(crate) fn unavailable_until(&self) -> Option<Instant> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            HubState::Unavailable { until, .. } => {
                Some(*until).filter(|until| *until > Instant::now())
            }
            HubState::Serving => None,
        }
    }
}

/// The live status of a worker.
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

    /// Registers all metrics with `registry`.
    ///
    /// # Errors
    /// When `registry` already exports metrics of these names.
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

    /// Returns the hubs of the worker, by name.
    pub fn hubs(&self) -> impl Iterator<Item = (&HubName, &HubStatus)> {
        self.hubs.iter().map(|(name, status)| (name, &**status))
    }
}
