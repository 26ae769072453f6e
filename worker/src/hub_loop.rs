//! One hub's loop: slots, dispatches, leases.

use std::sync::{Arc, PoisonError};

use futures::{FutureExt as _, TryFutureExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::in_words;
use twincast_core::ids::{BatchId, RolloutId, RolloutName};
use twincast_core::message::Ack;
use twincast_core::plan::{BatchHeader, Group};
use twincast_core::ports::{
    Clock, Deliveries, Dispatch, Disposition, LeaseReply, Queue, QueueError, Store, StoreError,
    Ticket,
};
use twincast_core::spec::{Opening, RolloutSpec};
use twincast_core::trace::Tracer;
use twincast_retry::Policy;

use crate::batch::{self, BatchRun, Ended, HeldBatch};
use crate::config::{WorkerConfig, WorkerError, WorkerHub};
use crate::feedback;
use crate::known::{KNOWN, Known};
use crate::later::Later;
use crate::link;
use crate::metrics::OneMore;
use crate::pacer::Pacer;
use crate::shared::Shared;
use crate::status::HubStatus;
use crate::told::Telling;

pub(crate) struct HubLoop {
    shared: Arc<Shared>,
}

/// What a slot is taken for.
struct Work {
    dispatch: Dispatch,
    /// Its answer is owed; one that is remembered has been answered.
    ticket: Option<Box<dyn Ticket>>,
}

/// What became of a dispatch.
enum Handled {
    /// The batch was put down.
    PutDown(Ended),
    /// Somebody else has the batch.
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
        // Each gives the dispatch back that it could not work on, because somebody else has the batch.
        let mut runs: JoinSet<Result<Option<Dispatch>, WorkerError>> = JoinSet::new();
        let mut later = Later::new(shared.config.lease);
        for task in [
            feedback::listen(Arc::clone(&shared), stop.clone()).boxed(),
            link::report(Arc::clone(&shared), stop.clone()).boxed(),
        ] {
            runs.spawn(task.map_ok(|()| None));
        }
        let result = loop {
            let next = shared.next(&slots, &mut later, &mut *deliveries);
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(ended) = runs.join_next() => match ended {
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some(held))) => later.put(held, Instant::now()),
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
        // Those that still run see `stop`, or their rollout's next answer; all of them are awaited.
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
    /// A slot first, then something to do in it: the queue never waits for us.
    ///
    /// Cancel safety: if dropped, nothing is lost, by the contracts of semaphore and [`Deliveries::next`].
    async fn next(
        &self,
        slots: &Arc<Semaphore>,
        later: &mut Later,
        deliveries: &mut dyn Deliveries,
    ) -> (Result<Work, QueueError>, OwnedSemaphorePermit) {
        if let Some(until) = self.status.shut_until() {
            tokio::time::sleep_until(until).await;
        }
        let slot = Arc::clone(slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        let work = tokio::select! {
            biased;
            dispatch = later.next() => Ok(Work { dispatch, ticket: None }),
            delivery = deliveries.next() => delivery.map(|delivery| Work {
                dispatch: delivery.dispatch,
                ticket: Some(delivery.ticket),
            }),
        };
        (work, slot)
    }

    /// Begins to take dispatches, trying for as long as it takes: a broker may be away, or be
    /// making the queue for another worker just now. `None` when told to stop.
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
            tracing::warn!(hub = %self.hub.name, error = in_words(&error), ?wait, "waiting for the queue");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Answers for one dispatch. Gives it back when it is to be tried once more.
    async fn handle(
        &self,
        work: Work,
        stop: CancellationToken,
    ) -> Result<Option<Dispatch>, WorkerError> {
        let Work { dispatch, ticket } = work;
        let handled = match self.work(&dispatch.rollout, dispatch.batch, &stop).await {
            Ok(handled) => handled,
            Err(error) => Handled::PutDown(self.ended_by(&dispatch, error)?),
        };
        // A dispatch that comes back tells that its worker crashed, or only that its connection broke: it is tried once
        // more, and needs no slot until then. A batch of a shut hub is rung for again; a dispatch that went back and forth
        // would be taken for a poisonous one.
        let is_new = ticket.is_some();
        let answered = match (ticket, &handled) {
            (None, _) => Ok(()),
            (Some(ticket), Handled::PutDown(Ended::Stopped)) => ticket.requeue().await,
            (Some(ticket), _) => ticket.ack().await,
        };
        if answered.is_err() {
            // An unanswered dispatch comes back by itself; that costs time only.
            tracing::warn!(rollout = %dispatch.rollout, batch = %dispatch.batch, "dispatch not answered");
        }
        Ok(match handled {
            Handled::Held if is_new => Some(dispatch),
            Handled::Held => None,
            Handled::PutDown(ended) => {
                tracing::debug!(rollout = %dispatch.rollout, batch = %dispatch.batch, ?ended, "batch put down");
                None
            }
        })
    }

    /// How work on a batch has ended that has failed, if the worker can go on.
    fn ended_by(&self, dispatch: &Dispatch, error: StoreError) -> Result<Ended, WorkerError> {
        let Dispatch { rollout, batch, .. } = dispatch;
        match error.disposition() {
            // An old dispatch, with nothing left to ring for.
            Disposition::Superseded => {
                tracing::warn!(%rollout, %batch, error = in_words(&error), "dispatch of something that does not exist");
                Ok(Ended::Done)
            }
            // It is rung for again, until a newer worker hears it.
            Disposition::Fatal if matches!(error, StoreError::Newer { .. }) => {
                if self.leaves_alone(rollout, Ended::Newer) {
                    tracing::warn!(%rollout, error = in_words(&error), "left to newer workers");
                }
                Ok(Ended::Newer)
            }
            // One batch that cannot be read must not stop the others; its lease lapses, and counts
            // against it.
            Disposition::Fatal if self.config.give_up.is_none() => {
                tracing::error!(%rollout, %batch, error = in_words(&error), "batch cannot be worked on");
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
        if self.status.shut_until().is_some() {
            // It was on its way here when the hub was found shut. The loop waits, not the dispatch.
            return Ok(Handled::PutDown(Ended::HubShut));
        }
        // Known first: also of a batch that is not given, a rollout's feedback may be waited for.
        let Some(known) = self.patiently(stop, || self.known(name, None)).await? else {
            return Ok(Handled::PutDown(Ended::Stopped));
        };
        let trace_id = known
            .trace
            .map(|trace| tracing::field::display(trace.trace));
        let log = tracing::error_span!("batch", trace_id);
        self.work_on(name, batch, stop).instrument(log).await
    }

    /// Works on a batch.
    async fn work_on(
        &self,
        name: &RolloutName,
        batch: BatchId,
        stop: &CancellationToken,
    ) -> Result<Handled, StoreError> {
        let stopped = Handled::PutDown(Ended::Stopped);
        let wish = batch::wish(self.id, name, batch, self.config.lease);
        let take = || HeldBatch::take(&self.store, &wish);
        let mut held = match self.patiently(stop, take).await? {
            None => return Ok(stopped),
            Some(Ok(held)) => held,
            Some(Err(LeaseReply::Held(_))) => return Ok(Handled::Held),
            Some(Err(LeaseReply::Done)) => return Ok(Handled::PutDown(Ended::Done)),
            Some(Err(reply)) => {
                if reply == LeaseReply::Quarantined {
                    tracing::warn!(rollout = %name, %batch, "batch has brought down its workers, left alone");
                }
                return Ok(Handled::PutDown(Ended::Unwanted));
            }
        };
        let work = held.work();
        if work.header().host != self.hub.host {
            self.leave_to_other_hub(name, work.header(), held).await;
            return Ok(Handled::PutDown(Ended::OtherHub));
        }
        // What was known may be of another rollout of that name, which was removed.
        let known = || self.known(name, Some(work.rollout));
        let Some(known) = self.patiently(stop, known).await? else {
            return Ok(stopped);
        };
        tracing::debug!(rollout = %name, %batch, "batch taken up");
        let closes_at = self.closes_at(&known.spec, &work.header().group);
        let telling = Telling::of(&known, work.header(), held.epoch(), self.clock.now());
        let mut run = BatchRun::new(self, held, work, &known, closes_at);
        let counted = OneMore::of(&self.status.metrics().batches);
        let ended = run.until_ended(stop).await?;
        drop(counted);
        self.status.metrics().ended(ended);
        let end = self.clock.now();
        self.tracer
            .tell(telling.map(|it| it.ended(ended, run.recorded(), end)));
        if ended != Ended::Fenced
            && let Some(held) = run.into_batch()
        {
            held.release().await;
        }
        Ok(Handled::PutDown(ended))
    }

    /// Counts a batch that is left to other workers. Whether it is the first of its rollout, as far as is remembered.
    fn leaves_alone(&self, name: &RolloutName, ended: Ended) -> bool {
        self.status.metrics().ended(ended);
        let left_alone = self.left_alone.lock();
        let mut left_alone = left_alone.unwrap_or_else(PoisonError::into_inner);
        if left_alone.len() >= KNOWN {
            left_alone.clear();
        }
        left_alone.insert(name.clone())
    }

    /// Gives a batch back that was planned for another hub than the one of its name here.
    async fn leave_to_other_hub(&self, name: &RolloutName, header: &BatchHeader, held: HeldBatch) {
        if self.leaves_alone(name, Ended::OtherHub) {
            tracing::error!(
                rollout = %name, hub = %header.hub, planned = %header.host, configured = %self.hub.host,
                "its batches are not sent: this hub is another one in this worker's configuration"
            );
        }
        held.release().await;
    }

    /// When nothing more may be sent to a tag group, by its rollout's schedule: at once, if it is closed.
    fn closes_at(&self, spec: &RolloutSpec, group: &Group) -> Option<Instant> {
        let now = self.clock.now();
        match spec.opening(group, now) {
            Opening::Closed { .. } => Some(Instant::now()),
            Opening::Open { until } => until.map(|until| Instant::now() + until.since(now)),
        }
    }

    /// What all batches of a rollout need: of `which` one, if several have had the name. A slow read keeps only those
    /// waiting that need this rollout.
    async fn known(
        &self,
        name: &RolloutName,
        which: Option<RolloutId>,
    ) -> Result<Arc<Known>, StoreError> {
        if let Some(known) = self.known.get(name, which) {
            return Ok(known);
        }
        let rollout = self.store.rollout(name).await?;
        let rollout = rollout.filter(|rollout| which.is_none_or(|which| which == rollout.id));
        let rollout = rollout.ok_or_else(|| StoreError::NotFound {
            what: format!("rollout {name}"),
        })?;
        let known = Known::new(rollout, |spec, stage| {
            Pacer::new(
                Arc::clone(&self.store),
                Arc::clone(&self.status),
                self.patience(),
                self.hub.limits,
                &self.hub.name,
                (spec, stage),
            )
        })?;
        if known.content.ack != Ack::None {
            self.feedback_wanted.notify_one();
        }
        Ok(self.known.put(known))
    }
}
