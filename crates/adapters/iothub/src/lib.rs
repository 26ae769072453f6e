//! The hub port on Azure IoT Hub: translates between the engine's words and the client's, and
//! keeps queries within the hub's query throttle. No decisions of its own.

mod feedback;
mod links;
mod queries;
mod sends;
mod trouble;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use twincast_core::message::{Content, Outbound};
use twincast_core::ports::{
    DevicePage, DeviceQuery, Feedback, Hindrance, Hub, HubError, SendResult,
};
use twincast_iothub::{C2dSender, C2dTemplate, Client, ClockOffset};

pub use crate::links::link_budget;

use crate::feedback::HubFeedback;
use crate::queries::Throttle;

/// An Azure IoT hub.
pub struct IotHub {
    client: Client,
    /// One long-lived link, opened by the first send. A new one takes its place when it has
    /// failed for good, and then only when something is to be sent.
    sender: Mutex<Option<Arc<C2dSender>>>,
    throttle: Option<Throttle>,
    /// The newest few contents in the client's form. A rollout has one, so this is a hit but for
    /// a rollout's first message.
    templates: Mutex<Vec<(Arc<Content>, Arc<C2dTemplate>)>>,
}

impl IotHub {
    /// A hub that is reached by `client`. Queries keep to `queries_per_minute` pages.
    #[must_use]
    pub fn new(client: Client, queries_per_minute: Option<f64>) -> Self {
        let throttle = queries_per_minute.map(Throttle::new);
        Self {
            client,
            sender: Mutex::default(),
            throttle,
            templates: Mutex::default(),
        }
    }
}

#[async_trait]
impl Hub for IotHub {
    async fn count(&self, condition: &str) -> Result<u64, HubError> {
        queries::count(&self.client, self.throttle.as_ref(), condition).await
    }

    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>> {
        queries::devices(&self.client, self.throttle.as_ref(), &query)
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

    fn hindrance(&self) -> Option<Hindrance> {
        sends::hindrance(self)
    }

    fn clock_ahead_ms(&self) -> Option<i64> {
        let offset = self.client.clock_offset();
        offset.map(ClockOffset::nearest)
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        Some(Box::new(HubFeedback::new(&self.client)))
    }
}
