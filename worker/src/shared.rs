//! What all that is done for one hub shares.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::error::in_words;
use twincast_core::ids::RolloutName;
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::trace::Tracer;
use twincast_retry::Policy;
use uuid::Uuid;

use crate::config::{WorkerConfig, WorkerHub};
use crate::known::Rollouts;
use crate::patience::{Patience, Tries};
use crate::status::HubStatus;
use crate::turns::Turns;

/// What all batch runs of a hub share.
pub(crate) struct Shared {
    pub(crate) config: WorkerConfig,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hub: WorkerHub,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<HubStatus>,
    pub(crate) tracer: Tracer,
    pub(crate) known: Rollouts,
    /// Rollouts that are left to other workers, as the log says once of each.
    pub(crate) left_alone: Mutex<BTreeSet<RolloutName>>,
    /// Who may send at the same time.
    pub(crate) turns: Arc<Turns>,
    /// Told when a rollout is worked on that asks the hub for feedback.
    pub(crate) feedback_wanted: Notify,
    /// This run of this worker.
    pub(crate) id: Uuid,
}

impl Shared {
    pub(crate) fn new(
        config: WorkerConfig,
        store: Arc<dyn Store>,
        hub: WorkerHub,
        clock: Arc<dyn Clock>,
        status: Arc<HubStatus>,
        tracer: Tracer,
    ) -> Self {
        Self {
            config,
            store,
            hub,
            clock,
            status,
            tracer,
            known: Rollouts::default(),
            left_alone: Mutex::default(),
            turns: Arc::default(),
            feedback_wanted: Notify::new(),
            id: Uuid::new_v4(),
        }
    }

    /// Makes a call again for as long as the store does not answer. `None` when told to stop.
    pub(crate) async fn patiently<T, F>(
        &self,
        stop: &CancellationToken,
        call: impl Fn() -> F,
    ) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = Tries::new(self.patience(), &Policy::send_retry());
        loop {
            let called = tokio::select! {
                biased;
                called = call() => called,
                () = stop.cancelled() => return Ok(None),
            };
            let error = match called {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => error,
            };
            let words = in_words(&error);
            let is_news = !tries.is_failing();
            let wait = tries.failed(error, Instant::now())?;
            if is_news {
                tracing::warn!(hub = %self.hub.name, error = words, "the store does not answer");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience(self.config.give_up)
    }
}
