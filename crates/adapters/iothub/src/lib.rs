//! The hub port on Azure IoT Hub: translates between the engine's types and the client's, and keeps
//! queries within the hub's query throttle. Makes no decisions of its own.

mod answers;
mod classify;
mod feedback;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod links;
mod queries;
mod query_health;
mod sends;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use twincast_core::answer::Answer;
use twincast_core::message::{Content, Outbound};
use twincast_core::ports::{
    DevicePage, DeviceQuery, Feedback, Hub, HubError, HubObstacle, SendResult,
};
use twincast_core::query::PropertyName;
use twincast_iothub::{
    C2dSender, C2dTemplate, Client, ClientError, ClientOptions, ClockOffset, Credentials,
    HubAddress,
};

pub use crate::classify::classify_link_failure;
pub use crate::links::link_budget;
pub use crate::queries::classify_request_error;

use crate::feedback::HubFeedback;
use crate::queries::Throttle;
use crate::query_health::QueryHealth;

/// An Azure IoT hub.
pub struct IotHub {
    client: Client,
    /// One long-lived link, opened by the first send. After a permanent failure of the link, the
    /// next send opens a new one.
    sender: Mutex<Option<Arc<C2dSender>>>,
    throttle: Option<Throttle>,
    query_health: QueryHealth,
    /// The latest few contents in the client's form. A rollout has a single content, so only a
    /// rollout's first message misses the cache.
    templates: Mutex<Vec<(Arc<Content>, Arc<C2dTemplate>)>>,
}

impl IotHub {
    /// Creates the port of the hub at `address`, authenticated with `credentials`. Replaces the
    /// retry hook in `options`. Queries are limited to `queries_per_minute` pages. No connection is
    /// opened yet.
    ///
    /// # Errors
    /// When the client cannot be created: see [`Client::with_credentials`].
    pub fn new(
        address: &HubAddress,
        credentials: Credentials,
        mut options: ClientOptions,
        queries_per_minute: Option<f64>,
    ) -> Result<Self, ClientError> {
        let query_health = QueryHealth::default();
        options.on_retry = Some(query_health.hook());
        Ok(Self {
            client: Client::with_credentials(address, credentials, options)?,
            sender: Mutex::default(),
            throttle: queries_per_minute.map(Throttle::new),
            query_health,
            templates: Mutex::default(),
        })
    }
}

#[async_trait]
impl Hub for IotHub {
    async fn count(&self, condition: &str) -> Result<u64, HubError> {
        queries::count(self, condition).await
    }

    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>> {
        queries::devices(self, &query)
    }

    async fn count_states(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError> {
        answers::count_states(self, condition, property).await
    }

    fn answers(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> BoxStream<'_, Result<Vec<Answer>, HubError>> {
        answers::answers(self, condition, property)
    }

    async fn send(&self, message: Outbound) -> SendResult {
        sends::send(self, message).await
    }

    fn is_ready(&self) -> bool {
        sends::is_ready(self)
    }

    fn has_link(&self) -> Option<bool> {
        sends::has_link(self)
    }

    fn obstacle(&self) -> Option<HubObstacle> {
        sends::obstacle(self)
    }

    fn clock_ahead_ms(&self) -> Option<i64> {
        let offset = self.client.clock_offset();
        offset.map(ClockOffset::nearest)
    }

    fn query_obstacle(&self) -> Option<HubObstacle> {
        self.query_health.obstacle()
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        Some(Box::new(HubFeedback::new(&self.client)))
    }
}
