//! The dependencies of the API, and the state shared by the handlers.

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

use super::audit::DenialLog;
use super::auth::Access;
use super::caller_limits::CallerLimit;
use crate::Hubs;
use crate::command_executor::CommandExecutor;
use crate::service::OrchestratorStatus;

/// Unusable messages, wherever stored.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// Returns the oldest `most` messages, each as an object, or the reason for a failure.
    async fn list(&self, most: usize) -> Result<Vec<Value>, String>;
}

/// The dependencies of the API.
pub struct Api {
    /// The store, the source of truth.
    pub store: Arc<dyn Store>,
    /// The queue of dispatches, if available.
    pub queue: Option<Arc<dyn Queue>>,
    /// All configured hubs, with their quotas.
    pub limits: BTreeMap<HubName, HubLimits>,
    /// The hubs for previews of plans.
    pub hubs: Hubs,
    /// The executor of commands.
    pub executor: Arc<CommandExecutor>,
    /// The unusable messages, if available.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
    /// The way in which callers are identified.
    pub access: Arc<Access>,
    /// The status with the counters of commands.
    pub status: Arc<OrchestratorStatus>,
    /// The time limit of a request, except for streams and plans.
    pub request_timeout: Duration,
}

/// The state shared by the handlers.
pub(crate) struct Shared {
    pub(super) api: Api,
    /// For requests without urgency.
    pub(super) requests: Arc<CallerLimit>,
    /// For operations that stop sends: free even when all other slots are taken.
    pub(super) stops: Arc<CallerLimit>,
    pub(super) plans: Arc<CallerLimit>,
    /// For requests that read all batches of a rollout.
    pub(super) batch_searches: Arc<CallerLimit>,
    pub(super) exports: Arc<CallerLimit>,
    /// For streams of events.
    pub(super) event_streams: Arc<CallerLimit>,
    pub(super) denials: DenialLog,
    /// The directory of the specs' files. Empty: over HTTP, files are inlined.
    pub(super) base: PathBuf,
}

/// The handlers' access to the shared state.
pub(super) type Context = State<Arc<Shared>>;

impl Shared {
    pub(super) fn new(api: Api) -> Self {
        Self {
            api,
            requests: CallerLimit::new("concurrent requests", 64, 16),
            stops: CallerLimit::new("concurrent stop requests", 16, 4),
            plans: CallerLimit::new("concurrent plans", 4, 2),
            batch_searches: CallerLimit::new("concurrent searches of batches", 4, 2),
            exports: CallerLimit::new("concurrent exports", 16, 4),
            event_streams: CallerLimit::new("concurrent event streams", 32, 8),
            denials: DenialLog::default(),
            base: PathBuf::new(),
        }
    }
}
