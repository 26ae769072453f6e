//! The loop of a batch's run: performs the steps of its [`State`], and brings it what comes of them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::ids::DeviceId;
use twincast_core::outcome::Counts;
use twincast_core::ports::{BatchWork, Disposition, NotSent, Report, SendResult, StoreError};

use super::held::HeldBatch;
use super::send::{Clearance, Messages, Sending};
use super::state::{Begun, Ended, Event, Saved, State, Step};
use crate::known::Known;
use crate::pacer::Pacer;
use crate::shared::Shared;

/// How often a hub that is not ready for sends is asked again.
const READY_AGAIN: Duration = Duration::from_millis(50);

/// How long it may take to tell the others of a throttle.
const TELL: Duration = Duration::from_secs(1);

/// When a shut hub is tried again, if it does not say.
const SHUT_PAUSE: Duration = Duration::from_secs(60);
/// A shut hub is tried at least this often, whatever it says: one refused message costs nothing,
/// and clocks differ (a daily quota ends at the hub's midnight, not at ours).
const LONGEST_SHUT_PAUSE: Duration = Duration::from_secs(15 * 60);

pub(crate) struct BatchRun<'a> {
    shared: &'a Shared,
    state: State,
    messages: Messages,
    pacer: Option<Arc<Pacer>>,
    clearance: Clearance,
    /// Ours, but while something is being recorded.
    batch: Option<HeldBatch>,
    // Futures are kept across turns.
    in_flight: FuturesUnordered<Sending>,
    saving: Option<BoxFuture<'static, (HeldBatch, Saved)>>,
    acquiring: Option<BoxFuture<'static, Result<(), StoreError>>>,
    telling: Option<BoxFuture<'static, ()>>,
}

impl<'a> BatchRun<'a> {
    /// A run of `batch`, in which nothing is sent from `closes_at` on.
    pub(crate) fn new(
        shared: &'a Shared,
        batch: HeldBatch,
        work: BatchWork,
        known: &Known,
        closes_at: Option<Instant>,
    ) -> Self {
        let header = &work.batch.header;
        let pacer = known.pacer(header.stage);
        let messages = Messages {
            name: known.spec.name.clone(),
            rollout: work.rollout,
            stage: header.stage,
            batch: header.id,
            attempt: work.attempt,
            content: Arc::clone(&known.content),
            devices: work.batch.devices,
        };
        let begun = Begun {
            leased_at: batch.leased_at,
            closes_at,
            again: known.again,
            is_paced: pacer.is_some(),
        };
        let state = State::new(shared.config, begun, work.outcomes.iter(), Instant::now());
        Self {
            shared,
            clearance: Clearance::until(state.cleared_until()),
            state,
            messages,
            pacer,
            batch: Some(batch),
            in_flight: FuturesUnordered::new(),
            saving: None,
            acquiring: None,
            telling: None,
        }
    }

    /// What was recorded in this run.
    pub(crate) fn recorded(&self) -> &Counts {
        self.state.recorded()
    }

    /// Gives back the batch, if the store is not being asked about it.
    pub(crate) fn into_batch(self) -> Option<HeldBatch> {
        self.batch
    }

    /// Works until the batch is done or is to be put down, and everything in flight is recorded.
    pub(crate) async fn until_ended(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        let mut event = Event::Time;
        loop {
            for step in self.state.handle(event, Instant::now()) {
                self.perform(step);
            }
            self.clearance.set(self.state.cleared_until());
            if let Some(ended) = self.state.ended(Instant::now()) {
                return ended;
            }
            event = self.next(stop).await;
        }
    }

    /// What comes next. The arms that are futures of ours are kept across turns; the others are cancel-safe.
    async fn next(&mut self, stop: &CancellationToken) -> Event {
        let wake_at = self.state.wake_at(Instant::now());
        tokio::select! {
            biased;
            (batch, saved) = wait_for(&mut self.saving) => {
                self.saving = None;
                self.batch = Some(batch);
                self.tell_of_silence(&saved);
                Event::Saved(saved)
            }
            Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                let mut answers = vec![answer];
                // Takes what else has been answered: turns are not free.
                while let Some(Some(answer)) = self.in_flight.next().now_or_never() {
                    answers.push(answer);
                }
                for (index, result) in &answers {
                    self.note(*index, result);
                }
                Event::Answered(answers)
            }
            acquired = wait_for(&mut self.acquiring) => {
                self.acquiring = None;
                Event::Acquired(acquired)
            }
            () = wait_for(&mut self.telling) => {
                self.telling = None;
                Event::Told
            }
            () = stop.cancelled(), if !self.state.is_stopping() => Event::Stop,
            () = sleep_until(wake_at) => Event::Time,
        }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Send { index, alone } => {
                let (pacer, clearance) = (self.pacer.clone(), self.clearance.clone());
                let sending = self
                    .messages
                    .send(self.shared, index, alone, pacer, clearance);
                self.in_flight.push(sending);
            }
            Step::Save { reports, after } => {
                let batch = self.batch.take().expect("one record at a time");
                self.saving = Some(self.save(batch, reports, after));
            }
            Step::Acquire { more } => {
                let pacer = self.pacer.clone();
                self.acquiring = pacer.map(|pacer| self.acquire(pacer, more));
            }
            Step::Waive => self.acquiring = None,
            Step::Void => {
                if let Some(pacer) = &self.pacer {
                    pacer.void();
                }
            }
            Step::Tell { retry_after } => {
                let pacer = self.pacer.clone();
                self.telling = pacer.map(|pacer| self.tell(pacer, retry_after));
            }
        }
    }

    fn save(
        &self,
        mut batch: HeldBatch,
        reports: Vec<Report>,
        after: Duration,
    ) -> BoxFuture<'static, (HeldBatch, Saved)> {
        let (status, ttl) = (Arc::clone(&self.shared.status), self.shared.config.lease);
        let saving = async move {
            sleep(after).await;
            let asked_at = Instant::now();
            let result = batch.record(&reports, ttl).await;
            if result.is_ok() {
                let took = asked_at.elapsed().as_secs_f64();
                status.metrics().record_seconds.observe(took);
                reports
                    .iter()
                    .for_each(|report| status.metrics().recorded(report.outcome));
            }
            let saved = Saved {
                reports,
                asked_at,
                result,
            };
            (batch, saved)
        };
        saving.boxed()
    }

    fn acquire(
        &self,
        pacer: Arc<Pacer>,
        more: usize,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        let hub = Arc::clone(&self.shared.hub.hub);
        let acquiring = async move {
            // No permit for a send that could not leave.
            while !hub.is_ready() {
                sleep(READY_AGAIN).await;
            }
            pacer.acquire(more).await
        };
        acquiring.boxed()
    }

    fn tell(&self, pacer: Arc<Pacer>, retry_after: Option<Duration>) -> BoxFuture<'static, ()> {
        let hub = self.shared.hub.name.clone();
        let telling = async move {
            let told = timeout(TELL, pacer.throttled(retry_after)).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::warn!(%hub, "throttle not passed on to others");
            }
        };
        telling.boxed()
    }

    /// Notes what an answer says of the hub, and not of its device.
    fn note(&self, index: u32, result: &SendResult) {
        let status = &self.shared.status;
        match result {
            SendResult::Enqueued => {
                status.metrics().accepted.inc();
                status.serving();
            }
            SendResult::Final {
                outcome,
                code,
                detail,
            } => {
                status.serving();
                tracing::debug!(device = %self.device(index), %outcome, code, detail, "not sent, for good");
            }
            SendResult::NotSent { cause, detail, .. } => {
                if *cause == NotSent::Throttled {
                    status.metrics().throttled.inc();
                }
                status.metrics().resent.inc();
                tracing::debug!(device = %self.device(index), ?cause, detail, "not sent yet");
            }
            SendResult::Unknown { .. } => {
                status.metrics().unanswered.inc();
                if self.state.sends_again() {
                    status.metrics().resent.inc();
                }
            }
            SendResult::HubShut {
                retry_after,
                reason,
                trouble,
            } => {
                let pause = retry_after.unwrap_or(SHUT_PAUSE).min(LONGEST_SHUT_PAUSE);
                if status.shut(pause, *trouble, reason) {
                    tracing::warn!(hub = %self.shared.hub.name, reason, "hub takes nothing for now");
                }
            }
        }
    }

    fn device(&self, index: u32) -> DeviceId {
        self.messages.devices.get(index as usize)
    }

    fn tell_of_silence(&self, saved: &Saved) {
        if let Err(error) = &saved.result
            && error.disposition() == Disposition::Retry
            && !self.state.is_silent()
        {
            let Messages { name, batch, .. } = &self.messages;
            tracing::warn!(rollout = %name, %batch, ?error, "outcomes not recorded yet");
        }
    }
}

/// Waits for a future that is kept elsewhere; for ever if there is none.
async fn wait_for<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
