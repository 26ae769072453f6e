//! The limiter of a hub: who may send how much now.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::ids::HubName;
use crate::permits::{Grant, LimiterState, PermitRequest};

/// Shares out each hub's quota among all processes.
#[async_trait]
pub trait Limiter: Send + Sync + 'static {
    /// Reserves permits on a hub.
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError>;

    /// A hub refused a send for its quota: slows everyone down.
    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError>;

    /// What a hub's limiter does now. Changes nothing.
    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError>;

    /// Reserves the opening of one link to a hub, and says how long to wait before it: links have
    /// a small budget of their own, see [`Links`](crate::permits::Links).
    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError>;
}
