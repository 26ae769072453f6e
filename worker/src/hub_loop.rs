//! One hub's loop: slots, dispatches, leases.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twincast_core::ids::{Holder, RolloutName};
use twincast_core::message::Content;
use twincast_core::ports::{
    Delivery, LeaseReply, LeaseRequest, Queue, QueueError, Store, StoreError,
};
use twincast_core::spec::Delivery as DeliveryMode;
use uuid::Uuid;

use crate::batch_run::{BatchRun, Ended};
use crate::pacer::Pacer;
use crate::status::HubStatus;
use crate::{WorkerConfig, WorkerError, WorkerHub};

/// When there are more rollouts than this, those that are not worked on just now are forgotten,
/// and read again when they are back.
const KNOWN: usize = 64;

pub(crate) struct HubLoop {
    inner: Arc<Inner>,
}

/// What all batch runs of a hub share.
pub(crate) struct Inner {
    pub(crate) config: WorkerConfig,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hub: WorkerHub,
    pub(crate) status: Arc<HubStatus>,
    /// The hub's own pace, for rollouts without a limit of their own.
    pacer: Option<Arc<Pacer>>,
    known: Mutex<BTreeMap<RolloutName, Arc<Known>>>,
    /// This run of this worker. Every lease gets a holder of its own below it, so that a second
    /// dispatch of a batch that we hold is seen for what it is.
    id: Uuid,
}

/// What all batches of a rollout need.
pub(crate) struct Known {
    pub(crate) content: Arc<Content>,
    pub(crate) pacer: Option<Arc<Pacer>>,
    /// Unanswered sends are made again.
    pub(crate) again: bool,
}

impl HubLoop {
    pub(crate) fn new(
        config: WorkerConfig,
        store: Arc<dyn Store>,
        hub: WorkerHub,
        status: Arc<HubStatus>,
    ) -> Self {
        let pacer = Pacer::new(Arc::clone(&store), &hub.name, hub.limits, None).map(Arc::new);
        Self {
            inner: Arc::new(Inner {
                config,
                store,
                hub,
                status,
                pacer,
                known: Mutex::default(),
                id: Uuid::new_v4(),
            }),
        }
    }

    /// Runs until `stop`, then drains.
    pub(crate) async fn run(
        self,
        queue: Arc<dyn Queue>,
        stop: CancellationToken,
    ) -> Result<(), WorkerError> {
        let inner = self.inner;
        let queue_error = |source| WorkerError::Queue {
            hub: inner.hub.name.clone(),
            source,
        };
        let mut deliveries = queue.consume(&inner.hub.name).await.map_err(queue_error)?;
        let slots = Arc::new(Semaphore::new(inner.config.slots));
        let mut runs: JoinSet<Result<(), WorkerError>> = JoinSet::new();
        let result = loop {
            // A slot first, then a dispatch: the queue never waits for us. Every arm is
            // cancel-safe, by the contracts of semaphore, join set and `Deliveries::next`.
            let next = async {
                if let Some(until) = inner.status.shut_until() {
                    tokio::time::sleep_until(until).await;
                }
                let slot = Arc::clone(&slots)
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                (deliveries.next().await, slot)
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(ended) = runs.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    Err(error) => break Err(WorkerError::Panicked(error)),
                },
                (delivery, slot) = next => match delivery {
                    Ok(delivery) => {
                        let (inner, stop) = (Arc::clone(&inner), stop.clone());
                        runs.spawn(async move {
                            let result = inner.handle(delivery, stop).await;
                            drop(slot);
                            result
                        });
                    }
                    Err(source) => break Err(queue_error(source)),
                },
            }
        };
        // Those that still run see `stop`, or their rollout's next answer; all of them are awaited.
        stop.cancel();
        let mut result = result;
        while let Some(ended) = runs.join_next().await {
            result = result.and(ended.map_err(WorkerError::Panicked).and_then(|ended| ended));
        }
        result
    }
}

impl Inner {
    /// Answers for one dispatch.
    async fn handle(&self, delivery: Delivery, stop: CancellationToken) -> Result<(), WorkerError> {
        let Delivery {
            dispatch, ticket, ..
        } = delivery;
        let store_error = |source| WorkerError::Store {
            rollout: dispatch.rollout.clone(),
            batch: dispatch.batch,
            source,
        };
        let ended = match self.work(&dispatch.rollout, dispatch.batch, &stop).await {
            Ok(ended) => ended,
            // The rollout or its plan is gone: an old dispatch, with nothing left to ring for.
            Err(StoreError::NotFound { what }) => {
                tracing::warn!(what, batch = %dispatch.batch, rollout = %dispatch.rollout, "dispatch of something that does not exist");
                Ended::Done
            }
            Err(source) => return Err(store_error(source)),
        };
        tracing::debug!(rollout = %dispatch.rollout, batch = %dispatch.batch, ?ended, "batch put down");
        let answered = match ended {
            Ended::Done | Ended::Unwanted | Ended::Fenced => ticket.ack().await,
            Ended::Stopped | Ended::HubShut => ticket.requeue().await,
        };
        // An unanswered dispatch comes back by itself; that costs time only.
        if let Err(QueueError::Unavailable { .. } | QueueError::Full { .. }) = answered {
            tracing::warn!(rollout = %dispatch.rollout, batch = %dispatch.batch, "dispatch not answered");
        }
        Ok(())
    }

    async fn work(
        &self,
        name: &RolloutName,
        batch: twincast_core::ids::BatchId,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        if self.status.shut_until().is_some() {
            // It was on its way here when the hub was found shut. The loop waits, not the dispatch.
            return Ok(Ended::HubShut);
        }
        let holder = Holder::new(format!("{}-{}", self.id.simple(), Uuid::new_v4().simple()))
            .expect("hexadecimal digits");
        let request = LeaseRequest {
            rollout: name.clone(),
            batch,
            holder,
            ttl: self.config.lease,
            // A dispatch that came back says nothing about who holds the batch now: another dispatch
            // of it may have been taken since. Whoever put it back has released it before.
            takeover: false,
        };
        let lease = match self.store.lease(&request).await? {
            LeaseReply::Granted(lease) => lease,
            LeaseReply::Done => return Ok(Ended::Done),
            LeaseReply::Held(_) | LeaseReply::NotWanted => return Ok(Ended::Unwanted),
        };
        let known = self.known(name).await?;
        let work = self.store.load(name, batch).await?;
        let mut run = BatchRun::new(self, lease, work, &known);
        let ended = run.until_ended(stop).await?;
        if ended != Ended::Fenced
            && let Err(error) = self.store.release(run.lease()).await
        {
            // It lapses by itself; that costs time only.
            tracing::warn!(rollout = %name, %batch, ?error, "batch not released");
        }
        Ok(ended)
    }

    /// What all batches of a rollout need. A rollout never changes, so it is read once.
    async fn known(&self, name: &RolloutName) -> Result<Arc<Known>, StoreError> {
        let mut known = self.known.lock().await;
        if let Some(known) = known.get(name) {
            return Ok(Arc::clone(known));
        }
        let missing = || StoreError::NotFound {
            what: format!("rollout {name}"),
        };
        let rollout = self.store.rollout(name).await?.ok_or_else(missing)?;
        let content = rollout
            .spec
            .message
            .content()
            .map_err(|source| StoreError::Corrupt {
                doing: format!("read the message of rollout {name}"),
                source: Box::new(source),
            })?;
        let pacer = match rollout.spec.rate {
            None => self.pacer.clone(),
            Some(rate) => {
                let limit = Some((name.clone(), rate));
                Pacer::new(
                    Arc::clone(&self.store),
                    &self.hub.name,
                    self.hub.limits,
                    limit,
                )
                .map(Arc::new)
            }
        };
        let again = rollout.spec.delivery == DeliveryMode::AtLeastOnce;
        let new = Arc::new(Known {
            content: Arc::new(content),
            pacer,
            again,
        });
        if known.len() >= KNOWN {
            known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        known.insert(name.clone(), Arc::clone(&new));
        Ok(new)
    }
}
