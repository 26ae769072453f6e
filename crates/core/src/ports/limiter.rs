//! The limiter of a hub: permits to send, shared by all processes.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::ids::HubName;
use crate::permits::{Grant, LimiterState, PermitRequest};

/// Shares each hub's quota among all processes.
#[async_trait]
pub trait Limiter: Send + Sync + 'static {
    /// Reserves permits on a hub.
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError>;

    /// Notes a hub's refusal of a send for its quota: all senders slow down.
    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError>;

    /// Returns the state of a hub's limiter, without changing it.
    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError>;

    /// Reserves the opening of one link to a hub, and returns the time to wait before opening.
    /// Links have a small budget of their own, see [`Links`](crate::permits::Links).
    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError>;
}
