//! Prometheus metrics of a worker. Label values come from closed sets: the configured hubs,
//! outcomes, and the ends of batch runs. All counters start with the process.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};
use twincast_core::ids::HubName;
use twincast_core::outcome::{OUTCOMES, Outcome};

use crate::batch::Ended;

/// From a nearby hub to a hub that delays messages: 12 s and more
/// (`iot-hub-devguide-quotas-throttling`).
const SEND_SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];
/// From a nearby store to a practically unavailable store.
const RECORD_SECONDS: [f64; 10] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

/// The metric families, each with a child for every hub.
#[derive(Debug)]
pub(crate) struct Families {
    accepted: IntCounterVec,
    throttled: IntCounterVec,
    unanswered: IntCounterVec,
    repeated: IntCounterVec,
    in_flight: IntGaugeVec,
    send_seconds: HistogramVec,
    permits_late: IntCounterVec,
    quota: GaugeVec,
    link_up: IntGaugeVec,
    clock: GaugeVec,
    unavailable: IntGaugeVec,
    batches: IntGaugeVec,
    batches_ended: IntCounterVec,
    outcomes: IntCounterVec,
    record_seconds: HistogramVec,
    feedback: IntCounterVec,
    feedback_lag: IntGaugeVec,
    foreign_in_front: IntGaugeVec,
}

impl Families {
    // Long because all families are listed.
    pub(crate) fn new() -> Self {
        Self {
            accepted: counters(
                "twincast_messages_accepted_total",
                "Messages that the hub has accepted from this worker.",
                &["hub"],
            ),
            throttled: counters(
                "twincast_sends_throttled_total",
                "Sends refused by the hub because of its quota. They are repeated.",
                &["hub"],
            ),
            unanswered: counters(
                "twincast_sends_unanswered_total",
                "Sends without an answer from the hub.",
                &["hub"],
            ),
            repeated: counters(
                "twincast_sends_repeated_total",
                "Repeated sends, for any reason.",
                &["hub"],
            ),
            in_flight: gauges(
                "twincast_sends_in_flight",
                "Sends that wait for the hub's answer.",
                &["hub"],
            ),
            send_seconds: histograms(
                "twincast_send_duration_seconds",
                "Time from a send to the hub's answer, in seconds.",
                &SEND_SECONDS,
            ),
            permits_late: counters(
                "twincast_permits_late_total",
                "Permits granted too late to be used: the store took more than half a second.",
                &["hub"],
            ),
            quota: vec(GaugeVec::new(
                Opts::new(
                    "twincast_hub_quota_messages_per_minute",
                    "Messages per minute that all workers together may send through the hub, by \
                     the configuration. No sample for a hub without limits.",
                ),
                &["hub"],
            )),
            link_up: gauges(
                "twincast_hub_link_up",
                "1 while this worker has a usable sending link to the hub, otherwise 0. No sample \
                 before the first use.",
                &["hub"],
            ),
            clock: vec(GaugeVec::new(
                Opts::new(
                    "twincast_hub_clock_ahead_seconds",
                    "Seconds by which the hub's clock is ahead of this worker's: 0 when both may \
                     agree, negative when the hub's clock is behind. No sample while unknown.",
                ),
                &["hub"],
            )),
            unavailable: gauges(
                "twincast_hub_unavailable",
                "1 while the hub accepts no messages: its daily quota is used up, it is suspended, \
                 or it refuses the key.",
                &["hub"],
            ),
            batches: gauges(
                "twincast_batches_held",
                "Batches held by this worker.",
                &["hub"],
            ),
            batches_ended: counters(
                "twincast_batches_ended_total",
                "Batches that this worker no longer works on, by reason: done, not_running, stopped, \
                 hub_unavailable, fenced, newer (left to workers of a newer release), \
                 other_hub (planned for another host under the hub's name).",
                &["hub", "end"],
            ),
            outcomes: counters(
                "twincast_outcomes_total",
                "Outcomes recorded by this worker for its own sends.",
                &["hub", "outcome"],
            ),
            record_seconds: histograms(
                "twincast_record_duration_seconds",
                "Time for the store to record outcomes and renew a lease, in seconds.",
                &RECORD_SECONDS,
            ),
            feedback: counters(
                "twincast_feedback_records_total",
                "Feedback records received, repetitions included: own, foreign (of other \
                 applications), or unreadable.",
                &["hub", "whose"],
            ),
            feedback_lag: gauges(
                "twincast_feedback_lag_seconds",
                "Seconds since the moment up to which this worker has received all of the hub's \
                 feedback; before the first such moment, seconds since the worker began to \
                 listen.",
                &["hub"],
            ),
            foreign_in_front: gauges(
                "twincast_feedback_foreign_messages",
                "Feedback messages of other applications that this worker last found ahead of its \
                 own in the queue.",
                &["hub"],
            ),
        }
    }

    /// Registers all families.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 18] = [
            Box::new(self.accepted.clone()),
            Box::new(self.throttled.clone()),
            Box::new(self.unanswered.clone()),
            Box::new(self.repeated.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.send_seconds.clone()),
            Box::new(self.permits_late.clone()),
            Box::new(self.quota.clone()),
            Box::new(self.link_up.clone()),
            Box::new(self.clock.clone()),
            Box::new(self.unavailable.clone()),
            Box::new(self.batches.clone()),
            Box::new(self.batches_ended.clone()),
            Box::new(self.outcomes.clone()),
            Box::new(self.record_seconds.clone()),
            Box::new(self.feedback.clone()),
            Box::new(self.feedback_lag.clone()),
            Box::new(self.foreign_in_front.clone()),
        ];
        all.into_iter()
            .try_for_each(|family| registry.register(family))
    }

    /// Returns the children of a hub.
    pub(crate) fn hub(&self, name: &HubName) -> HubMetrics {
        let hub = [name.as_str()];
        let of = |label| [name.as_str(), label];
        HubMetrics {
            accepted: self.accepted.with_label_values(&hub),
            throttled: self.throttled.with_label_values(&hub),
            unanswered: self.unanswered.with_label_values(&hub),
            repeated: self.repeated.with_label_values(&hub),
            in_flight: self.in_flight.with_label_values(&hub),
            send_seconds: self.send_seconds.with_label_values(&hub),
            permits_late: self.permits_late.with_label_values(&hub),
            name: name.clone(),
            link_up: self.link_up.clone(),
            clock: self.clock.clone(),
            unavailable: self.unavailable.with_label_values(&hub),
            batches: self.batches.with_label_values(&hub),
            ended: Ended::ALL.map(|end| self.batches_ended.with_label_values(&of(end.as_str()))),
            outcomes: Outcome::ALL
                .map(|outcome| self.outcomes.with_label_values(&of(outcome.as_str()))),
            record_seconds: self.record_seconds.with_label_values(&hub),
            feedback_merged: self.feedback.with_label_values(&of("own")),
            feedback_foreign: self.feedback.with_label_values(&of("foreign")),
            feedback_unreadable: self.feedback.with_label_values(&of("unreadable")),
            feedback_lag: self.feedback_lag.with_label_values(&hub),
            foreign_in_front: self.foreign_in_front.with_label_values(&hub),
        }
    }

    /// Sets the quota of a hub. A hub without a quota has no sample.
    pub(crate) fn quota(&self, name: &HubName, per_minute: f64) {
        let gauge: Gauge = self.quota.with_label_values(&[name.as_str()]);
        gauge.set(per_minute);
    }
}

/// The metrics of a hub.
#[derive(Debug)]
pub struct HubMetrics {
    /// Messages accepted by the hub.
    pub accepted: IntCounter,
    /// Sends refused for the hub's quota.
    pub throttled: IntCounter,
    /// Sends without an answer.
    pub unanswered: IntCounter,
    /// Repeated sends, for any reason.
    pub repeated: IntCounter,
    /// Sends under way.
    pub in_flight: IntGauge,
    /// Merged feedback records; a redelivered record counts again.
    pub feedback_merged: IntCounter,
    /// Feedback records of other applications; a redelivered record counts again.
    pub feedback_foreign: IntCounter,
    /// Unreadable feedback records and unreadable messages; a redelivered record counts again.
    pub feedback_unreadable: IntCounter,
    feedback_lag: IntGauge,
    foreign_in_front: IntGauge,
    pub(crate) send_seconds: Histogram,
    pub(crate) permits_late: IntCounter,
    name: HubName,
    /// The children of `link_up` and `clock` are created with the first known value.
    link_up: IntGaugeVec,
    clock: GaugeVec,
    pub(crate) unavailable: IntGauge,
    pub(crate) batches: IntGauge,
    pub(crate) record_seconds: Histogram,
    ended: [IntCounter; Ended::ALL.len()],
    outcomes: [IntCounter; OUTCOMES],
}

impl HubMetrics {
    /// Counts the end of a batch run.
    pub(crate) fn ended(&self, end: Ended) {
        self.ended[end as usize].inc();
    }

    /// Sets the age of the heard-until time, and the number of messages of other applications at
    /// the front of the queue.
    pub(crate) fn set_feedback_lag(&self, lag: Duration, foreign: u64) {
        self.feedback_lag.set(lag.as_secs().cast_signed());
        self.foreign_in_front.set(foreign.cast_signed());
    }

    /// Sets whether a link to the hub is open for messages.
    pub(crate) fn link_up(&self, is_up: bool) {
        let gauge = self.link_up.with_label_values(&[self.name.as_str()]);
        gauge.set(is_up.into());
    }

    /// Sets how far the hub's clock is ahead, if known.
    pub(crate) fn clock_ahead(&self, ms: Option<i64>) {
        let hub = [self.name.as_str()];
        match ms {
            Some(ms) => self.clock.with_label_values(&hub).set(ms as f64 / 1_000.0),
            // There is no sample to remove before the first known value.
            None => _ = self.clock.remove_label_values(&hub),
        }
    }

    /// Counts a recorded outcome.
    pub(crate) fn recorded(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }
}

/// Adds 1 to a gauge until dropped.
pub(crate) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub(crate) fn of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Unwraps a new family. Names and labels are constants, so a failure is a defect.
fn vec<T>(made: Result<T, prometheus::Error>) -> T {
    made.expect("names and labels are valid")
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    vec(IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    vec(IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histograms(name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    vec(HistogramVec::new(opts, &["hub"]))
}
