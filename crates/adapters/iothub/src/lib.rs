//! The hub port on Azure IoT Hub: translates between the engine's words and the client's, and
//! keeps queries within the hub's query throttle. No decisions of its own.

mod answers;
mod asking;
mod feedback;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod links;
mod queries;
mod sends;
mod trouble;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use twincast_core::answer::Answer;
use twincast_core::message::{Content, Outbound};
use twincast_core::ports::{
    DevicePage, DeviceQuery, Feedback, Hindrance, Hub, HubError, SendResult,
};
use twincast_core::query::PropertyName;
use twincast_iothub::{
    C2dSender, C2dTemplate, Client, ClientError, ClientOptions, ClockOffset, Credentials,
    HubAddress,
};

pub use crate::links::link_budget;
pub use crate::queries::trouble_of as trouble_of_request;
pub use crate::trouble::of_link as trouble_of_link;

use crate::asking::Asking;
use crate::feedback::HubFeedback;
use crate::queries::Throttle;

/// An Azure IoT hub.
pub struct IotHub {
    client: Client,
    /// One long-lived link, opened by the first send. A new one takes its place when it has
    /// failed for good, and then only when something is to be sent.
    sender: Mutex<Option<Arc<C2dSender>>>,
    throttle: Option<Throttle>,
    asking: Asking,
    /// The newest few contents in the client's form. A rollout has one, so this is a hit but for
    /// a rollout's first message.
    templates: Mutex<Vec<(Arc<Content>, Arc<C2dTemplate>)>>,
}

impl IotHub {
    /// The hub at `address`, which is shown `credentials`. The hook for retries in `options` is replaced. Queries keep to
    /// `queries_per_minute` pages. Nothing is dialled yet.
    ///
    /// # Errors
    /// When the client cannot be made: see [`Client::with_credentials`].
    pub fn new(
        address: &HubAddress,
        credentials: Credentials,
        mut options: ClientOptions,
        queries_per_minute: Option<f64>,
    ) -> Result<Self, ClientError> {
        let asking = Asking::default();
        options.on_retry = Some(asking.hook());
        Ok(Self {
            client: Client::with_credentials(address, credentials, options)?,
            sender: Mutex::default(),
            throttle: queries_per_minute.map(Throttle::new),
            asking,
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

    fn hindrance(&self) -> Option<Hindrance> {
        sends::hindrance(self)
    }

    fn clock_ahead_ms(&self) -> Option<i64> {
        let offset = self.client.clock_offset();
        offset.map(ClockOffset::nearest)
    }

    fn asking_hindrance(&self) -> Option<Hindrance> {
        self.asking.hindrance()
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        Some(Box::new(HubFeedback::new(&self.client)))
    }
}
