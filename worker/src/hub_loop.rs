//! The loop of a hub: acquires slots, takes dispatches, leases batches.

use std::sync::{Arc, PoisonError};

use futures::{FutureExt as _, TryFutureExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::describe;
use twincast_core::ids::{BatchId, RolloutId, RolloutName};
use twincast_core::message::Ack;
use twincast_core::plan::{BatchHeader, TagGroup};
use twincast_core::ports::{
    Clock, Deliveries, Dispatch, Disposition, LeaseReply, Queue, QueueError, Store, StoreError,
    Ticket,
};
use twincast_core::spec::{RolloutSpec, ScheduleState};
use twincast_core::trace::Tracer;
use twincast_retry::Policy;

use crate::batch::{self, BatchRun, Ended, HeldBatch};
use crate::batch_span::BatchSpan;
use crate::config::{WorkerConfig, WorkerError, WorkerHub};
use crate::feedback;
use crate::link;
use crate::metrics::GaugeGuard;
use crate::pacer::Pacer;
use crate::retry_queue::RetryQueue;
use crate::rollout_cache::{CACHE_SIZE, CachedRollout};
use crate::shared::Shared;
use crate::status::HubStatus;

pub(crate) struct HubLoop {
    shared: Arc<Shared>,
}

/// The work of a slot.
struct Work {
    dispatch: Dispatch,
    /// The pending answer to the queue. `None` for a dispatch from [`RetryQueue`], which was
    /// answered before.
    ticket: Option<Box<dyn Ticket>>,
}

/// The result of handling a dispatch.
enum Handled {
    /// Work on the batch has ended, or never began.
    Ended(Ended),
    /// Another holder has the lease of the batch.
    Held,
}

impl HubLoop {
    pub(crate) fn new(
        config: WorkerConfig,
        store: Arc<dyn Store>,
        hub: WorkerHub,
        clock: Arc<dyn Clock>,
        status: Arc<HubStatus>,
        tracer: Tracer,
    ) -> Self {
        Self {
            shared: Arc::new(Shared::new(config, store, hub, clock, status, tracer)),
        }
    }

    /// Runs until `stop`, then drains.
    pub(crate) async fn run(
        self,
        queue: Arc<dyn Queue>,
        stop: CancellationToken,
    ) -> Result<(), WorkerError> {
        let shared = self.shared;
        let queue_error = |source| WorkerError::Queue {
            hub: shared.hub.name.clone(),
            source,
        };
        let subscribed = shared.subscribe(&*queue, &stop).await;
        let Some(mut deliveries) = subscribed.map_err(queue_error)? else {
            return Ok(());
        };
        let slots = Arc::new(Semaphore::new(shared.config.slots));
        // A run returns the dispatch of a batch leased by another holder.
        let mut runs: JoinSet<Result<Option<Dispatch>, WorkerError>> = JoinSet::new();
        let mut retry_queue = RetryQueue::new(shared.config.lease);
        for task in [
            feedback::listen(Arc::clone(&shared), stop.clone()).boxed(),
            link::report(Arc::clone(&shared), stop.clone()).boxed(),
        ] {
            runs.spawn(task.map_ok(|()| None));
        }
        let result = loop {
            let next = shared.next(&slots, &mut retry_queue, &mut *deliveries);
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(ended) = runs.join_next() => match ended {
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some(held))) => retry_queue.push(held, Instant::now()),
                    Ok(Err(error)) => break Err(error),
                    Err(error) => break Err(WorkerError::Panicked(error)),
                },
                (work, slot) = next => match work {
                    Ok(work) => {
                        let (shared, stop) = (Arc::clone(&shared), stop.clone());
                        runs.spawn(async move {
                            let result = shared.handle(work, stop).await;
                            drop(slot);
                            result
                        });
                    }
                    Err(source) => break Err(queue_error(source)),
                },
            }
        };
        // Remaining runs see `stop`, or the directive in the store's next answer; all runs are
        // awaited.
        stop.cancel();
        let mut result = result;
        while let Some(ended) = runs.join_next().await {
            let ended = ended.map_err(WorkerError::Panicked).and_then(|ended| ended);
            result = result.and(ended.map(drop));
        }
        result
    }
}

impl Shared {
    /// Acquires a slot first, then work for the slot, so that no taken dispatch waits for a slot.
    ///
    /// Cancel safety: if dropped, nothing is lost, by the contracts of semaphore and
    /// [`Deliveries::next`].
    async fn next(
        &self,
        slots: &Arc<Semaphore>,
        retry_queue: &mut RetryQueue,
        deliveries: &mut dyn Deliveries,
    ) -> (Result<Work, QueueError>, OwnedSemaphorePermit) {
        if let Some(until) = self.status.unavailable_until() {
            tokio::time::sleep_until(until).await;
        }
        let slot = Arc::clone(slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        let work = tokio::select! {
            biased;
            dispatch = retry_queue.next() => Ok(Work { dispatch, ticket: None }),
            delivery = deliveries.next() => delivery.map(|delivery| Work {
                dispatch: delivery.dispatch,
                ticket: Some(delivery.ticket),
            }),
        };
        (work, slot)
    }

    /// Subscribes to dispatches, retrying for as long as necessary: the broker may be unavailable,
    /// or another worker may be declaring the queue at the same time. Returns `None` if `stop` is
    /// cancelled.
    async fn subscribe(
        &self,
        queue: &dyn Queue,
        stop: &CancellationToken,
    ) -> Result<Option<Box<dyn Deliveries>>, QueueError> {
        let mut delays = Policy::reconnect().delays();
        loop {
            let subscribed = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                subscribed = queue.consume(&self.hub.name, self.config.slots) => subscribed,
            };
            let error = match subscribed {
                Err(error) if error.disposition() == Disposition::Retry => error,
                subscribed => return subscribed.map(Some),
            };
            let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
            tracing::warn!(hub = %self.hub.name, error = describe(&error), ?wait, "waiting for the queue");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Handles and answers a dispatch. Returns the dispatch if the batch is to be tried again
    /// later.
    async fn handle(
        &self,
        work: Work,
        stop: CancellationToken,
    ) -> Result<Option<Dispatch>, WorkerError> {
        let Work { dispatch, ticket } = work;
        let handled = match self.work(&dispatch.rollout, dispatch.batch, &stop).await {
            Ok(handled) => handled,
            Err(error) => Handled::Ended(self.ended_by(&dispatch, error)?),
        };
        // A redelivered dispatch means that a worker crashed, or merely lost its connection. So the
        // dispatch of a leased batch is tried again later, and needs no slot until then. The
        // dispatch of an unavailable hub is acked, because the driver redispatches the batch, and a
        // repeatedly requeued dispatch would count as poisonous.
        let is_new = ticket.is_some();
        let answered = match (ticket, &handled) {
            (None, _) => Ok(()),
            (Some(ticket), Handled::Ended(Ended::Stopped)) => ticket.requeue().await,
            (Some(ticket), _) => ticket.ack().await,
        };
        if answered.is_err() {
            // The queue redelivers an unanswered dispatch, which costs time only.
            tracing::warn!(rollout = %dispatch.rollout, batch = %dispatch.batch, "dispatch not \
                 settled");
        }
        Ok(match handled {
            Handled::Held if is_new => Some(dispatch),
            Handled::Held => None,
            Handled::Ended(ended) => {
                tracing::debug!(rollout = %dispatch.rollout, batch = %dispatch.batch, ?ended, "work \
                     on batch ended");
                None
            }
        })
    }

    /// Returns how failed work on a batch has ended, or the error if the worker cannot continue.
    fn ended_by(&self, dispatch: &Dispatch, error: StoreError) -> Result<Ended, WorkerError> {
        let Dispatch { rollout, batch, .. } = dispatch;
        match error.disposition() {
            // An old dispatch, without a batch to work on.
            Disposition::Superseded => {
                tracing::warn!(%rollout, %batch, error = describe(&error), "dispatch for a missing \
                     rollout or batch");
                Ok(Ended::Done)
            }
            // The driver redispatches the batch until a newer worker takes the dispatch.
            Disposition::Fatal if matches!(error, StoreError::Newer { .. }) => {
                if self.note_skipped(rollout, Ended::Newer) {
                    tracing::warn!(%rollout, error = describe(&error), "left to newer workers");
                }
                Ok(Ended::Newer)
            }
            // A single unreadable batch must not stop the other batches. The lease lapses, and
            // counts as a failed lease of the batch.
            Disposition::Fatal if self.config.give_up.is_none() => {
                tracing::error!(%rollout, %batch, error = describe(&error), "cannot work on the \
                     batch");
                Ok(Ended::Fenced)
            }
            Disposition::Fatal | Disposition::Retry => Err(WorkerError::Store {
                rollout: rollout.clone(),
                batch: *batch,
                source: error,
            }),
        }
    }

    async fn work(
        &self,
        name: &RolloutName,
        batch: BatchId,
        stop: &CancellationToken,
    ) -> Result<Handled, StoreError> {
        if self.status.unavailable_until().is_some() {
            // The dispatch was taken before the hub was found unavailable. The loop waits for the
            // hub; the dispatch does not.
            return Ok(Handled::Ended(Ended::HubUnavailable));
        }
        // The rollout is read before the lease: feedback may be due for a rollout even if the batch
        // is not granted.
        let Some(cached) = self
            .retry_until_stop(stop, || self.cached_rollout(name, None))
            .await?
        else {
            return Ok(Handled::Ended(Ended::Stopped));
        };
        let trace_id = cached
            .trace
            .map(|trace| tracing::field::display(trace.trace));
        let log = tracing::error_span!("batch", trace_id);
        self.work_on(name, batch, stop).instrument(log).await
    }

    /// Leases a batch, and works on the batch.
    async fn work_on(
        &self,
        name: &RolloutName,
        batch: BatchId,
        stop: &CancellationToken,
    ) -> Result<Handled, StoreError> {
        let stopped = Handled::Ended(Ended::Stopped);
        let request = batch::lease_request(self.id, name, batch, self.config.lease);
        let take = || HeldBatch::take(&self.store, &request);
        let mut held = match self.retry_until_stop(stop, take).await? {
            None => return Ok(stopped),
            Some(Ok(held)) => held,
            Some(Err(LeaseReply::Held(_))) => return Ok(Handled::Held),
            Some(Err(LeaseReply::Done)) => return Ok(Handled::Ended(Ended::Done)),
            Some(Err(reply)) => {
                if reply == LeaseReply::Quarantined {
                    tracing::warn!(rollout = %name, %batch, "batch is quarantined, not worked on");
                }
                return Ok(Handled::Ended(Ended::NotRunning));
            }
        };
        let work = held.work();
        if work.header().host != self.hub.host {
            self.leave_to_other_hub(name, work.header(), held).await;
            return Ok(Handled::Ended(Ended::OtherHub));
        }
        // The cached rollout may be a removed rollout of the same name.
        let read = || self.cached_rollout(name, Some(work.rollout));
        let Some(cached) = self.retry_until_stop(stop, read).await? else {
            return Ok(stopped);
        };
        tracing::debug!(rollout = %name, %batch, "batch leased");
        let closes_at = self.closes_at(&cached.spec, &work.header().group);
        let span = BatchSpan::begin(&cached, work.header(), held.epoch(), self.clock.now());
        let mut run = BatchRun::new(self, held, work, &cached, closes_at);
        let counted = GaugeGuard::of(&self.status.metrics().batches);
        let ended = run.until_ended(stop).await?;
        drop(counted);
        self.status.metrics().ended(ended);
        let end = self.clock.now();
        self.tracer
            .emit(span.map(|it| it.end(ended, run.recorded(), end)));
        if ended != Ended::Fenced
            && let Some(held) = run.into_batch()
        {
            held.release().await;
        }
        Ok(Handled::Ended(ended))
    }

    /// Counts a batch left to other workers. Returns whether the batch is the first of its rollout,
    /// as far as remembered.
    fn note_skipped(&self, name: &RolloutName, ended: Ended) -> bool {
        self.status.metrics().ended(ended);
        let skipped = self.skipped.lock();
        let mut skipped = skipped.unwrap_or_else(PoisonError::into_inner);
        if skipped.len() >= CACHE_SIZE {
            skipped.clear();
        }
        skipped.insert(name.clone())
    }

    /// Releases a batch planned for a host other than the host configured here under the hub's
    /// name.
    async fn leave_to_other_hub(&self, name: &RolloutName, header: &BatchHeader, held: HeldBatch) {
        if self.note_skipped(name, Ended::OtherHub) {
            tracing::error!(
                rollout = %name, hub = %header.hub, planned = %header.host, configured = %self.hub.host,
                "batches not sent: this worker's configuration has another hub under this name"
            );
        }
        held.release().await;
    }

    /// Returns when the rollout's schedule closes for a tag group: now if already closed, `None` if
    /// never.
    fn closes_at(&self, spec: &RolloutSpec, group: &TagGroup) -> Option<Instant> {
        let now = self.clock.now();
        match spec.schedule_state(group, now) {
            ScheduleState::Closed { .. } => Some(Instant::now()),
            ScheduleState::Open { until } => until.map(|until| Instant::now() + until.since(now)),
        }
    }

    /// Returns the parts of a rollout shared by all batches. `which` selects a rollout if several
    /// rollouts have had the name. A slow read delays only batches of the same rollout.
    async fn cached_rollout(
        &self,
        name: &RolloutName,
        which: Option<RolloutId>,
    ) -> Result<Arc<CachedRollout>, StoreError> {
        if let Some(cached) = self.rollout_cache.get(name, which) {
            return Ok(cached);
        }
        let rollout = self.store.rollout(name).await?;
        let rollout = rollout.filter(|rollout| which.is_none_or(|which| which == rollout.id));
        let rollout = rollout.ok_or_else(|| StoreError::NotFound {
            what: format!("rollout {name}"),
        })?;
        let cached = CachedRollout::new(rollout, |spec, stage| {
            Pacer::new(
                Arc::clone(&self.store),
                Arc::clone(&self.status),
                self.retry_limit(),
                self.hub.limits,
                &self.hub.name,
                (spec, stage),
            )
        })?;
        if cached.content.ack != Ack::None {
            self.feedback_requested.notify_one();
        }
        Ok(self.rollout_cache.put(cached))
    }
}
