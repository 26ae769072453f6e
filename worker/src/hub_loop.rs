//! One hub's loop: slots, dispatches, leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::batch::Lease;
use twincast_core::error::in_words;
use twincast_core::ids::{BatchId, Holder, RolloutId, RolloutName, StageIndex};
use twincast_core::message::{Ack, Content};
use twincast_core::plan::{BatchHeader, Group};
use twincast_core::ports::{
    Clock, Deliveries, Delivery, LeaseReply, LeaseRequest, Queue, QueueError, Store, StoreError,
};
use twincast_core::spec::{Delivery as DeliveryMode, Opening, RolloutSpec};
use twincast_core::trace::{TraceContext, Tracer};
use twincast_retry::Policy;
use uuid::Uuid;

use crate::batch_run::{BatchRun, Ended, is_passing, next_delay};
use crate::feedback;
use crate::link;
use crate::metrics::OneMore;
use crate::pacer::Pacer;
use crate::status::HubStatus;
use crate::told::Telling;
use crate::turns::Turns;
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
    clock: Arc<dyn Clock>,
    pub(crate) status: Arc<HubStatus>,
    tracer: Tracer,
    known: Mutex<BTreeMap<RolloutName, Arc<Known>>>,
    /// Rollouts that are left to other workers, as the log says once of each.
    left_alone: Mutex<BTreeSet<RolloutName>>,
    /// Who may send at the same time.
    pub(crate) turns: Arc<Turns>,
    /// Told when a rollout is worked on that asks the hub for feedback.
    pub(crate) feedback_wanted: Notify,
    /// This run of this worker. Every lease gets a holder of its own below it, so that a second
    /// dispatch of a batch that we hold is seen for what it is.
    pub(crate) id: Uuid,
}

/// What all batches of a rollout need.
pub(crate) struct Known {
    id: RolloutId,
    pub(crate) content: Arc<Content>,
    spec: RolloutSpec,
    /// The span of the command that started it, if there is one, and how many batches it has.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) batches: u32,
    /// By stage.
    pacers: Vec<Option<Arc<Pacer>>>,
    /// Unanswered sends are made again.
    pub(crate) again: bool,
}

impl Known {
    /// What paces a stage, if it is paced.
    pub(crate) fn pacer(&self, stage: StageIndex) -> Option<Arc<Pacer>> {
        let pacer = self.pacers.get(usize::from(stage.0));
        pacer.cloned().flatten()
    }
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
            inner: Arc::new(Inner {
                config,
                store,
                hub,
                clock,
                status,
                tracer,
                known: Mutex::default(),
                left_alone: Mutex::default(),
                turns: Arc::default(),
                feedback_wanted: Notify::new(),
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
        let Some(mut deliveries) = inner.subscribe(&*queue, &stop).await else {
            return Ok(());
        };
        let slots = Arc::new(Semaphore::new(inner.config.slots));
        let mut runs: JoinSet<Result<(), WorkerError>> = JoinSet::new();
        runs.spawn(feedback::listen(Arc::clone(&inner), stop.clone()));
        runs.spawn(link::report(Arc::clone(&inner), stop.clone()));
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
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Begins to take dispatches, trying for as long as it takes: a broker may be away, or be
    /// making the queue for another worker just now. `None` when told to stop.
    async fn subscribe(
        &self,
        queue: &dyn Queue,
        stop: &CancellationToken,
    ) -> Option<Box<dyn Deliveries>> {
        let mut delays = Policy::reconnect().delays();
        loop {
            let subscribed = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                subscribed = queue.consume(&self.hub.name, self.config.slots) => subscribed,
            };
            let error = match subscribed {
                Ok(deliveries) => return Some(deliveries),
                Err(error) => error,
            };
            let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
            tracing::warn!(hub = %self.hub.name, error = in_words(&error), ?wait, "waiting for the queue");
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

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
            // It is rung for again, until a newer worker hears it.
            Err(error @ StoreError::Newer { .. }) => {
                if self.leaves_alone(&dispatch.rollout, Ended::Newer).await {
                    tracing::warn!(rollout = %dispatch.rollout, error = in_words(&error), "left to newer workers");
                }
                Ended::Newer
            }
            // One batch that cannot be read must not stop the others; its lease lapses, and counts
            // against it.
            Err(error @ StoreError::Corrupt { .. }) if self.config.give_up.is_none() => {
                tracing::error!(batch = %dispatch.batch, rollout = %dispatch.rollout, error = in_words(&error), "batch cannot be worked on");
                Ended::Fenced
            }
            Err(source) => return Err(store_error(source)),
        };
        tracing::debug!(rollout = %dispatch.rollout, batch = %dispatch.batch, ?ended, "batch put down");
        let answered = match ended {
            // A batch of a shut hub is rung for again; a dispatch that went back and forth would
            // be taken for a poisonous one.
            Ended::Done
            | Ended::Unwanted
            | Ended::Fenced
            | Ended::HubShut
            | Ended::Newer
            | Ended::OtherHub => ticket.ack().await,
            Ended::Stopped => ticket.requeue().await,
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
        batch: BatchId,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        if self.status.shut_until().is_some() {
            // It was on its way here when the hub was found shut. The loop waits, not the dispatch.
            return Ok(Ended::HubShut);
        }
        // Known first: also of a batch that is not given, a rollout's feedback may be waited for.
        let Some(known) = self.patiently(stop, || self.known(name, None)).await? else {
            return Ok(Ended::Stopped);
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
    ) -> Result<Ended, StoreError> {
        let holder = Holder::new(format!("{}-{}", self.id.simple(), Uuid::new_v4().simple()))
            .expect("hexadecimal digits");
        let request = LeaseRequest {
            rollout: name.clone(),
            batch,
            holder,
            ttl: self.config.lease,
        };
        let (lease, leased_at) = match self.lease(&request, stop).await? {
            Some((LeaseReply::Granted(lease), asked_at)) => (lease, asked_at),
            Some((LeaseReply::Done, _)) => return Ok(Ended::Done),
            Some((LeaseReply::Held(_) | LeaseReply::NotWanted, _)) => return Ok(Ended::Unwanted),
            Some((LeaseReply::Quarantined, _)) => {
                tracing::warn!(rollout = %name, %batch, "batch has brought down its workers, left alone");
                return Ok(Ended::Unwanted);
            }
            None => return Ok(Ended::Stopped),
        };
        let load = || self.store.load(name, batch);
        let Some(work) = self.patiently(stop, load).await? else {
            return Ok(Ended::Stopped);
        };
        if work.header().host != self.hub.host {
            self.leave_to_other_hub(name, work.header(), &lease).await;
            return Ok(Ended::OtherHub);
        }
        // What was known may be of another rollout of that name, which was removed.
        let known = || self.known(name, Some(work.rollout));
        let Some(known) = self.patiently(stop, known).await? else {
            return Ok(Ended::Stopped);
        };
        let known = &*known;
        tracing::debug!(rollout = %name, %batch, "batch taken up");
        let closes_at = self.closes_at(&known.spec, &work.header().group);
        let telling = Telling::of(known, work.header(), &lease, self.clock.now());
        let mut run = BatchRun::new(self, lease, leased_at, work, known, closes_at);
        let held = OneMore::of(&self.status.metrics().batches);
        let ended = run.until_ended(stop).await?;
        drop(held);
        self.status.metrics().ended(ended);
        let end = self.clock.now();
        self.tracer
            .tell(telling.map(|it| it.ended(ended, run.recorded(), end)));
        if ended != Ended::Fenced
            && let Err(error) = self.store.release(run.lease()).await
        {
            // It lapses by itself; that costs time only.
            tracing::warn!(rollout = %name, %batch, ?error, "batch not released");
        }
        Ok(ended)
    }

    /// Counts a batch that is left to other workers. Whether it is the first of its rollout, as far as is remembered.
    async fn leaves_alone(&self, name: &RolloutName, ended: Ended) -> bool {
        self.status.metrics().ended(ended);
        let mut left_alone = self.left_alone.lock().await;
        if left_alone.len() >= KNOWN {
            left_alone.clear();
        }
        left_alone.insert(name.clone())
    }

    /// Gives a batch back that was planned for another hub than the one of its name here.
    async fn leave_to_other_hub(&self, name: &RolloutName, header: &BatchHeader, lease: &Lease) {
        if self.leaves_alone(name, Ended::OtherHub).await {
            tracing::error!(
                rollout = %name, hub = %header.hub, planned = %header.host, configured = %self.hub.host,
                "its batches are not sent: this hub is another one in this worker's configuration"
            );
        }
        if let Err(error) = self.store.release(lease).await {
            tracing::warn!(rollout = %name, batch = %header.id, error = in_words(&error), "batch not released");
        }
    }

    /// When nothing more may be sent to a tag group, by its rollout's schedule: at once, if it is closed.
    fn closes_at(&self, spec: &RolloutSpec, group: &Group) -> Option<Instant> {
        let now = self.clock.now();
        match spec.opening(group, now) {
            Opening::Closed { .. } => Some(Instant::now()),
            Opening::Open { until } => until.map(|until| Instant::now() + until.since(now)),
        }
    }

    /// Asks for a batch; when somebody has it, once more when that lease is over: a dispatch that
    /// comes back tells that its worker crashed, or only that its connection broke. Gives the answer,
    /// and when it was asked for.
    async fn lease(
        &self,
        request: &LeaseRequest,
        stop: &CancellationToken,
    ) -> Result<Option<(LeaseReply, Instant)>, StoreError> {
        let ask = || async {
            let asked_at = Instant::now();
            Ok((self.store.lease(request).await?, asked_at))
        };
        let reply = self.patiently(stop, ask).await?;
        if !matches!(reply, Some((LeaseReply::Held(_), _))) {
            return Ok(reply);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(request.ttl) => {}
        }
        self.patiently(stop, ask).await
    }

    /// A full disk of this machine's: not for us to wait for.
    pub(crate) fn is_local(&self, error: &StoreError) -> bool {
        self.config.give_up.is_some() && matches!(error, StoreError::NotWritable { .. })
    }

    /// Makes a call again for as long as the store does not answer. `None` when told to stop.
    pub(crate) async fn patiently<T, F>(
        &self,
        stop: &CancellationToken,
        call: impl Fn() -> F,
    ) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let since = Instant::now();
        let mut delays = Policy::send_retry().delays();
        loop {
            let called = tokio::select! {
                biased;
                called = call() => called,
                () = stop.cancelled() => return Ok(None),
            };
            match called {
                Err(error) if is_passing(&error) && !self.is_local(&error) => {
                    let limit = self.config.give_up;
                    if limit.is_some_and(|limit| since.elapsed() >= limit) {
                        return Err(error);
                    }
                    tracing::warn!(hub = %self.hub.name, error = in_words(&error), "the store does not answer");
                }
                result => return result.map(Some),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(next_delay(&mut delays)) => {}
            }
        }
    }

    /// What all batches of a rollout need: of `which` one, if several have had the name. A rollout never changes, so it is
    /// read once.
    async fn known(
        &self,
        name: &RolloutName,
        which: Option<RolloutId>,
    ) -> Result<Arc<Known>, StoreError> {
        let is_it = |id| which.is_none_or(|which| which == id);
        let mut known = self.known.lock().await;
        if let Some(known) = known.get(name).filter(|known| is_it(known.id)) {
            return Ok(Arc::clone(known));
        }
        let missing = || StoreError::NotFound {
            what: format!("rollout {name}"),
        };
        let rollout = self.store.rollout(name).await?;
        let rollout = rollout.filter(|rollout| is_it(rollout.id));
        let rollout = rollout.ok_or_else(missing)?;
        let content = rollout
            .spec
            .message
            .content()
            .map_err(|source| StoreError::Corrupt {
                doing: format!("read the message of rollout {name}"),
                source: Box::new(source),
            })?;
        let pacer = |stage| {
            let store = Arc::clone(&self.store);
            Pacer::new(
                store,
                &self.hub.name,
                self.hub.limits,
                &rollout.spec,
                StageIndex(stage),
            )
        };
        let pacers = (0..).take(rollout.spec.all_stages().len());
        let pacers = pacers.map(|stage| pacer(stage).map(Arc::new)).collect();
        let again = rollout.spec.delivery == DeliveryMode::AtLeastOnce;
        if content.ack != Ack::None {
            self.feedback_wanted.notify_one();
        }
        let new = Arc::new(Known {
            id: rollout.id,
            content: Arc::new(content),
            pacers,
            spec: rollout.spec,
            trace: rollout.trace,
            batches: rollout.plan.map_or(0, |plan| plan.batches),
            again,
        });
        if known.len() >= KNOWN {
            known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        known.insert(name.clone(), Arc::clone(&new));
        Ok(new)
    }
}
