//! One send: its turn, its permit, the hub's answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use twincast_core::ids::{Attempt, BatchId, RolloutId, RolloutName, StageIndex};
use twincast_core::message::{Content, MessageId, Outbound};
use twincast_core::plan::DeviceList;
use twincast_core::ports::{NotSent, SendResult};

use crate::metrics::OneMore;
use crate::pace::LATE;
use crate::pacer::Pacer;
use crate::shared::Shared;

/// How long a send that is to be alone waits for that.
const ALONE_WITHIN: Duration = Duration::from_secs(2);

pub(super) type Sending = BoxFuture<'static, (u32, SendResult)>;

/// Until when a run's sends may leave, for those that wait for their turn.
#[derive(Clone)]
pub(super) struct Clearance(Arc<Mutex<Instant>>);

impl Clearance {
    pub(super) fn until(at: Instant) -> Self {
        Self(Arc::new(Mutex::new(at)))
    }

    pub(super) fn set(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn holds(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose messages a run sends.
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

    /// Sends to one device when it is its turn; `alone`, if it may end the connection.
    pub(super) fn send(
        &self,
        shared: &Shared,
        index: u32,
        alone: bool,
        pacer: Option<Arc<Pacer>>,
        clearance: Clearance,
    ) -> Sending {
        let message = self.of(index);
        let hub = Arc::clone(&shared.hub.hub);
        let (status, turns) = (Arc::clone(&shared.status), Arc::clone(&shared.turns));
        let patience = if alone { ALONE_WITHIN } else { LATE };
        let sending = async move {
            let asked_at = Instant::now();
            let Ok(_turn) = timeout(patience, turns.take(alone)).await else {
                return (index, not_now());
            };
            // What its permit stood for is over, and the rollout may have been stopped.
            if asked_at.elapsed() > LATE {
                let is_paced = match pacer {
                    Some(pacer) => pacer.acquire(0).await.is_ok(),
                    None => true,
                };
                if !is_paced || !clearance.holds() {
                    return (index, not_now());
                }
            }
            let in_flight = OneMore::of(&status.metrics().in_flight);
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

/// A send that did not get its turn.
fn not_now() -> SendResult {
    SendResult::NotSent {
        cause: NotSent::NoConnection,
        retry_after: None,
        detail: "another send of the hub is alone".to_owned(),
    }
}
