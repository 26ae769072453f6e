//! What the API speaks for, and what its handlers share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use serde_json::Value;
use twincast_core::hub::HubLimits;
use twincast_core::ids::HubName;
use twincast_core::ports::{Queue, Store};

use super::audit::Denials;
use super::auth::Door;
use super::places::Places;
use crate::Hubs;
use crate::intake::Intake;
use crate::service::OrchestratorStatus;

/// Messages that could not be used, wherever they are kept.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// The oldest, `most` at the most, each as an object; or why they cannot be had.
    async fn list(&self, most: usize) -> Result<Vec<Value>, String>;
}

/// What the API speaks for.
pub struct Api {
    /// Where the truth is.
    pub store: Arc<dyn Store>,
    /// Where dispatches wait, if it is at hand.
    pub queue: Option<Arc<dyn Queue>>,
    /// All configured hubs, with their quotas.
    pub limits: BTreeMap<HubName, HubLimits>,
    /// Those that plans can be tried with.
    pub hubs: Hubs,
    /// Does what is asked for.
    pub intake: Arc<Intake>,
    /// Messages that could not be used, where there may be some.
    pub letters: Option<Arc<dyn DeadLetters>>,
    /// Who may ask.
    pub door: Arc<Door>,
    /// Where commands are counted.
    pub status: Arc<OrchestratorStatus>,
    /// How long a request may take that is no stream and no plan.
    pub time: Duration,
}

/// What handlers share.
pub(crate) struct Shared {
    pub(super) api: Api,
    /// For requests that are no emergency.
    pub(super) requests: Arc<Places>,
    /// For what stops: they are there when all others are taken.
    pub(super) emergencies: Arc<Places>,
    pub(super) plans: Arc<Places>,
    /// For requests that look through all batches of a rollout.
    pub(super) searches: Arc<Places>,
    pub(super) exports: Arc<Places>,
    /// For streams of events.
    pub(super) followers: Arc<Places>,
    pub(super) denials: Denials,
    /// Where the files of specs are not: over HTTP they are inlined.
    pub(super) base: PathBuf,
}

/// What handlers are given of it.
pub(super) type Context = State<Arc<Shared>>;

impl Shared {
    pub(super) fn new(api: Api) -> Self {
        Self {
            api,
            requests: Places::new("requests are being answered", 64, 16),
            emergencies: Places::new("stops are being asked for", 16, 4),
            plans: Places::new("plans are being tried", 4, 2),
            searches: Places::new("requests look through batches", 4, 2),
            exports: Places::new("exports are open", 16, 4),
            followers: Places::new("streams of events are open", 32, 8),
            denials: Denials::default(),
            base: PathBuf::new(),
        }
    }
}
