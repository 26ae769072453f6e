//! The loop of a batch run: performs the steps of the [`State`], and returns the results as events.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::error::describe;
use twincast_core::ids::DeviceId;
use twincast_core::outcome::Counts;
use twincast_core::ports::{BatchWork, Disposition, NotSent, Report, SendResult, StoreError};

use super::held::HeldBatch;
use super::send::{Messages, SendDeadline, Sending};
use super::state::{Ended, Event, RunStart, Saved, State, Step};
use crate::pacer::Pacer;
use crate::rollout_cache::CachedRollout;
use crate::shared::Shared;

/// The interval between two checks of a hub that is not ready for sends.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The time limit for reporting a throttle to the store.
const THROTTLE_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before an unavailable hub is tried again, if the hub gives no pause.
const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause before an unavailable hub is tried again, regardless of the hub's answer. A
/// refused message costs nothing, and clocks differ: a daily quota ends at midnight by the hub's
/// clock, not by the worker's clock.
const MAX_UNAVAILABLE_PAUSE: Duration = Duration::from_secs(15 * 60);

pub(crate) struct BatchRun<'a> {
    shared: &'a Shared,
    state: State,
    messages: Messages,
    pacer: Option<Arc<Pacer>>,
    send_deadline: SendDeadline,
    /// `None` while a record is under way, which owns the batch.
    batch: Option<HeldBatch>,
    // Futures persist across iterations of the loop.
    in_flight: FuturesUnordered<Sending>,
    saving: Option<BoxFuture<'static, (HeldBatch, Saved)>>,
    acquiring: Option<BoxFuture<'static, Result<(), StoreError>>>,
    reporting_throttle: Option<BoxFuture<'static, ()>>,
}

impl<'a> BatchRun<'a> {
    /// Creates a run of `batch`. No message is sent from `closes_at` on.
    pub(crate) fn new(
        shared: &'a Shared,
        batch: HeldBatch,
        work: BatchWork,
        rollout: &CachedRollout,
        closes_at: Option<Instant>,
    ) -> Self {
        let header = &work.batch.header;
        let pacer = rollout.pacer(header.stage);
        let messages = Messages {
            name: rollout.spec.name.clone(),
            rollout: work.rollout,
            stage: header.stage,
            batch: header.id,
            attempt: work.attempt,
            content: Arc::clone(&rollout.content),
            devices: work.batch.devices,
        };
        let start = RunStart {
            leased_at: batch.leased_at,
            closes_at,
            resend_unanswered: rollout.resend_unanswered,
            is_paced: pacer.is_some(),
        };
        let state = State::new(shared.config, start, work.outcomes.iter(), Instant::now());
        Self {
            shared,
            send_deadline: SendDeadline::new(state.may_send_until()),
            state,
            messages,
            pacer,
            batch: Some(batch),
            in_flight: FuturesUnordered::new(),
            saving: None,
            acquiring: None,
            reporting_throttle: None,
        }
    }

    /// Returns the outcomes recorded in this run.
    pub(crate) fn recorded(&self) -> &Counts {
        self.state.recorded()
    }

    /// Returns the batch, unless a store call about the batch is under way.
    pub(crate) fn into_batch(self) -> Option<HeldBatch> {
        self.batch
    }

    /// Works until the batch is done or must be released, and the outcomes of all sends in flight
    /// are recorded.
    pub(crate) async fn until_ended(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        let mut event = Event::Time;
        loop {
            for step in self.state.handle(event, Instant::now()) {
                self.perform(step);
            }
            self.send_deadline.set(self.state.may_send_until());
            if let Some(ended) = self.state.ended(Instant::now()) {
                return ended;
            }
            event = self.next(stop).await;
        }
    }

    /// Waits for the next event. Arms with a future stored in `self` keep the future across calls;
    /// the other arms are cancel-safe.
    async fn next(&mut self, stop: &CancellationToken) -> Event {
        let wake_at = self.state.wake_at(Instant::now());
        tokio::select! {
            biased;
            (batch, saved) = wait_for(&mut self.saving) => {
                self.saving = None;
                self.batch = Some(batch);
                self.log_store_outage(&saved);
                Event::Saved(saved)
            }
            Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                let mut answers = vec![answer];
                // Takes all further answers at hand, because each iteration of the loop has a cost.
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
            () = wait_for(&mut self.reporting_throttle) => {
                self.reporting_throttle = None;
                Event::ThrottleReported
            }
            () = stop.cancelled(), if !self.state.is_stopping() => Event::Stop,
            () = sleep_until(wake_at) => Event::Time,
        }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Send { index, alone } => {
                let (pacer, send_deadline) = (self.pacer.clone(), self.send_deadline.clone());
                let sending = self
                    .messages
                    .send(self.shared, index, alone, pacer, send_deadline);
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
            Step::CancelAcquire => self.acquiring = None,
            Step::VoidPermits => {
                if let Some(pacer) = &self.pacer {
                    pacer.void();
                }
            }
            Step::ReportThrottle { retry_after } => {
                let pacer = self.pacer.clone();
                self.reporting_throttle =
                    pacer.map(|pacer| self.report_throttle(pacer, retry_after));
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
            let requested_at = Instant::now();
            let result = batch.record(&reports, ttl).await;
            if result.is_ok() {
                let took = requested_at.elapsed().as_secs_f64();
                status.metrics().record_seconds.observe(took);
                reports
                    .iter()
                    .for_each(|report| status.metrics().recorded(report.outcome));
            }
            let saved = Saved {
                reports,
                requested_at,
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
            // Take no permit for a send that could not leave.
            while !hub.is_ready() {
                sleep(READY_CHECK_INTERVAL).await;
            }
            pacer.acquire(more).await
        };
        acquiring.boxed()
    }

    fn report_throttle(
        &self,
        pacer: Arc<Pacer>,
        retry_after: Option<Duration>,
    ) -> BoxFuture<'static, ()> {
        let hub = self.shared.hub.name.clone();
        let reporting = async move {
            let reported = timeout(THROTTLE_REPORT_TIMEOUT, pacer.throttled(retry_after)).await;
            if !matches!(reported, Ok(Ok(()))) {
                tracing::warn!(%hub, "throttling not reported to other workers");
            }
        };
        reporting.boxed()
    }

    /// Updates the hub's status and metrics from the result of a send.
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
                tracing::debug!(device = %self.device(index), %outcome, code, detail, "send failed \
                     permanently");
            }
            SendResult::NotSent { cause, detail, .. } => {
                if *cause == NotSent::Throttled {
                    status.metrics().throttled.inc();
                }
                status.metrics().repeated.inc();
                tracing::debug!(device = %self.device(index), ?cause, detail, "send failed, to be repeated");
            }
            SendResult::Unknown { .. } => {
                status.metrics().unanswered.inc();
                if self.state.resend_unanswered() {
                    status.metrics().repeated.inc();
                }
            }
            SendResult::HubUnavailable {
                retry_after,
                reason,
                trouble,
            } => {
                let pause = retry_after
                    .unwrap_or(UNAVAILABLE_PAUSE)
                    .min(MAX_UNAVAILABLE_PAUSE);
                if status.set_unavailable(pause, *trouble, reason) {
                    tracing::warn!(hub = %self.shared.hub.name, reason, "hub accepts no messages \
                         for now");
                }
            }
        }
    }

    fn device(&self, index: u32) -> DeviceId {
        self.messages.devices.get(index as usize)
    }

    fn log_store_outage(&self, saved: &Saved) {
        if let Err(error) = &saved.result
            && error.disposition() == Disposition::Retry
            && !self.state.is_store_failing()
        {
            let Messages { name, batch, .. } = &self.messages;
            tracing::warn!(rollout = %name, %batch, error = describe(error), "outcomes not recorded yet");
        }
    }
}

/// Waits for a future stored elsewhere; for ever if there is none.
async fn wait_for<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
