//! A single send: send lock, permit, and the hub's answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use twincast_core::ids::{Attempt, BatchId, RolloutId, RolloutName, StageIndex};
use twincast_core::message::{Content, MessageId, Outbound};
use twincast_core::plan::DeviceList;
use twincast_core::ports::{NotSent, SendResult};

use crate::metrics::GaugeGuard;
use crate::pace::PERMIT_GRACE;
use crate::pacer::Pacer;
use crate::shared::Shared;

/// How long an exclusive send waits for the send lock.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) type Sending = BoxFuture<'static, (u32, SendResult)>;

/// Until when sends waiting for the send lock may still leave, for all sends of a run.
#[derive(Clone)]
pub(super) struct SendDeadline(Arc<Mutex<Instant>>);

impl SendDeadline {
    pub(super) fn new(at: Instant) -> Self {
        Self(Arc::new(Mutex::new(at)))
    }

    pub(super) fn set(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn is_ahead(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The messages of a batch run.
pub(super) struct Messages {
    pub(super) name: RolloutName,
    pub(super) rollout: RolloutId,
    pub(super) stage: StageIndex,
    pub(super) batch: BatchId,
    pub(super) attempt: Attempt,
    pub(super) content: Arc<Content>,
    pub(super) devices: DeviceList,
}

impl Messages {
    fn of(&self, index: u32) -> Outbound {
        let id = MessageId {
            rollout: self.name.clone(),
            id: self.rollout,
            stage: self.stage,
            batch: self.batch,
            index,
            attempt: self.attempt,
        };
        Outbound {
            device: self.devices.get(index as usize),
            id: id.to_string(),
            content: Arc::clone(&self.content),
        }
    }

    /// Sends to a device when the send lock is acquired. `alone` acquires it exclusively, for a
    /// send that may end the connection.
    pub(super) fn send(
        &self,
        shared: &Shared,
        index: u32,
        alone: bool,
        pacer: Option<Arc<Pacer>>,
        send_deadline: SendDeadline,
    ) -> Sending {
        let message = self.of(index);
        let hub = Arc::clone(&shared.hub.hub);
        let (status, lock) = (Arc::clone(&shared.status), Arc::clone(&shared.send_lock));
        let limit = if alone {
            EXCLUSIVE_TIMEOUT
        } else {
            PERMIT_GRACE
        };
        let started_at = Instant::now();
        let sending = async move {
            let Ok(_guard) = timeout(limit, lock.acquire(alone)).await else {
                return (index, not_now());
            };
            // The permit has expired, and the rollout may have been stopped.
            if started_at.elapsed() > PERMIT_GRACE {
                let is_paced = match pacer {
                    Some(pacer) => pacer.acquire(0).await.is_ok(),
                    None => true,
                };
                if !is_paced || !send_deadline.is_ahead() {
                    return (index, not_now());
                }
            }
            let in_flight = GaugeGuard::of(&status.metrics().in_flight);
            let sent_at = Instant::now();
            let result = hub.send(message).await;
            drop(in_flight);
            let took = sent_at.elapsed().as_secs_f64();
            status.metrics().send_seconds.observe(took);
            (index, result)
        };
        sending.boxed()
    }
}

/// The result of a send that did not get the send lock.
fn not_now() -> SendResult {
    SendResult::NotSent {
        cause: NotSent::NoConnection,
        retry_after: None,
        detail: "another send of the hub is alone".to_owned(),
    }
}
