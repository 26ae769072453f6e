//! What a worker counts, for Prometheus. Labels come from closed sets: the configured hubs, outcomes,
//! ends of batches. Everything is counted from the start of the process.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};
use twincast_core::ids::HubName;
use twincast_core::outcome::{OUTCOMES, Outcome};

use crate::batch::Ended;

/// From a hub near by to one that holds messages back: 12 s and more (`iot-hub-devguide-quotas-throttling`).
const SEND_SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];
/// From a store near by to one that is as good as away.
const RECORD_SECONDS: [f64; 10] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

/// The families, each with a child for every hub.
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
    shut: IntGaugeVec,
    batches: IntGaugeVec,
    batches_ended: IntCounterVec,
    outcomes: IntCounterVec,
    record_seconds: HistogramVec,
    feedback: IntCounterVec,
    unheard: IntGaugeVec,
    foreign_in_front: IntGaugeVec,
}

impl Families {
    // Long because it is the list of all families.
    pub(crate) fn new() -> Self {
        Self {
            accepted: counters(
                "twincast_messages_accepted_total",
                "Messages that the hub has accepted from this worker.",
                &["hub"],
            ),
            throttled: counters(
                "twincast_sends_throttled_total",
                "Sends that the hub refused for its quota. They are made again.",
                &["hub"],
            ),
            unanswered: counters(
                "twincast_sends_unanswered_total",
                "Sends whose answer did not come.",
                &["hub"],
            ),
            repeated: counters(
                "twincast_sends_repeated_total",
                "Sends that were made again, for whatever reason.",
                &["hub"],
            ),
            in_flight: gauges(
                "twincast_sends_in_flight",
                "Sends that wait for the hub's answer.",
                &["hub"],
            ),
            send_seconds: histograms(
                "twincast_send_duration_seconds",
                "From a send to the hub's answer.",
                &SEND_SECONDS,
            ),
            permits_late: counters(
                "twincast_permits_late_total",
                "Permits that the store gave too late to be used: it took more than half a second.",
                &["hub"],
            ),
            quota: vec(GaugeVec::new(
                Opts::new(
                    "twincast_hub_quota_messages_per_minute",
                    "What all workers together may send through the hub in a minute, by the configuration. \
                     No sample for a hub without limits.",
                ),
                &["hub"],
            )),
            link_up: gauges(
                "twincast_hub_link_up",
                "1 while this worker has a link to the hub that messages can leave over, 0 while it has none. \
                 No sample before it needs one.",
                &["hub"],
            ),
            clock: vec(GaugeVec::new(
                Opts::new(
                    "twincast_hub_clock_ahead_seconds",
                    "How far the hub's clock is ahead of this worker's, 0 when they may agree, negative when it is behind. \
                     No sample while that is not known.",
                ),
                &["hub"],
            )),
            shut: gauges(
                "twincast_hub_shut",
                "1 while the hub takes nothing: its daily quota is used up, it is suspended, or refuses the key.",
                &["hub"],
            ),
            batches: gauges(
                "twincast_batches_held",
                "Batches that this worker works on.",
                &["hub"],
            ),
            batches_ended: counters(
                "twincast_batches_ended_total",
                "Batches that were put down, by why: done, unwanted, stopped, hub_shut, fenced, newer (left to workers of a newer release).",
                &["hub", "end"],
            ),
            outcomes: counters(
                "twincast_outcomes_total",
                "Outcomes that this worker has recorded for sends of its own.",
                &["hub", "outcome"],
            ),
            record_seconds: histograms(
                "twincast_record_duration_seconds",
                "How long it took the store to record outcomes and renew a lease.",
                &RECORD_SECONDS,
            ),
            feedback: counters(
                "twincast_feedback_records_total",
                "Feedback records that came, as often as they came: ours, those of others that use the hub, or \
                 unreadable.",
                &["hub", "whose"],
            ),
            unheard: gauges(
                "twincast_feedback_unheard_seconds",
                "How long ago the moment is until which this worker has heard all of the hub's feedback; of one \
                 that has heard nothing, how long it has tried.",
                &["hub"],
            ),
            foreign_in_front: gauges(
                "twincast_feedback_foreign_messages",
                "Feedback messages of other applications that this worker found in front of ours the last time.",
                &["hub"],
            ),
        }
    }

    /// What is exported.
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
            Box::new(self.shut.clone()),
            Box::new(self.batches.clone()),
            Box::new(self.batches_ended.clone()),
            Box::new(self.outcomes.clone()),
            Box::new(self.record_seconds.clone()),
            Box::new(self.feedback.clone()),
            Box::new(self.unheard.clone()),
            Box::new(self.foreign_in_front.clone()),
        ];
        all.into_iter()
            .try_for_each(|family| registry.register(family))
    }

    /// A hub's children.
    pub(crate) fn hub(&self, name: &HubName) -> HubMetrics {
        let hub = [name.as_str()];
        let of = |label| [name.as_str(), label];
        HubMetrics {
            accepted: self.accepted.with_label_values(&hub),
            throttled: self.throttled.with_label_values(&hub),
            unanswered: self.unanswered.with_label_values(&hub),
            resent: self.repeated.with_label_values(&hub),
            in_flight: self.in_flight.with_label_values(&hub),
            send_seconds: self.send_seconds.with_label_values(&hub),
            permits_late: self.permits_late.with_label_values(&hub),
            name: name.clone(),
            link_up: self.link_up.clone(),
            clock: self.clock.clone(),
            shut: self.shut.with_label_values(&hub),
            batches: self.batches.with_label_values(&hub),
            ended: Ended::ALL.map(|end| self.batches_ended.with_label_values(&of(end.as_str()))),
            outcomes: Outcome::ALL
                .map(|outcome| self.outcomes.with_label_values(&of(outcome.as_str()))),
            record_seconds: self.record_seconds.with_label_values(&hub),
            feedback_merged: self.feedback.with_label_values(&of("ours")),
            feedback_foreign: self.feedback.with_label_values(&of("others")),
            feedback_unreadable: self.feedback.with_label_values(&of("unreadable")),
            unheard: self.unheard.with_label_values(&hub),
            foreign_in_front: self.foreign_in_front.with_label_values(&hub),
        }
    }

    /// A hub's quota; without one there is no sample.
    pub(crate) fn quota(&self, name: &HubName, per_minute: f64) {
        let gauge: Gauge = self.quota.with_label_values(&[name.as_str()]);
        gauge.set(per_minute);
    }
}

/// What is counted of one hub.
#[derive(Debug)]
pub struct HubMetrics {
    /// Messages that the hub accepted.
    pub accepted: IntCounter,
    /// Refusals for the hub's quota.
    pub throttled: IntCounter,
    /// Sends whose answer did not come.
    pub unanswered: IntCounter,
    /// Sends that were made again, for whatever reason.
    pub resent: IntCounter,
    /// Sends under way.
    pub in_flight: IntGauge,
    /// Feedback records that were merged, as often as they came.
    pub feedback_merged: IntCounter,
    /// Feedback records of other applications, as often as they came.
    pub feedback_foreign: IntCounter,
    /// Feedback records, and whole messages, that could not be understood, as often as they came.
    pub feedback_unreadable: IntCounter,
    unheard: IntGauge,
    foreign_in_front: IntGauge,
    pub(crate) send_seconds: Histogram,
    pub(crate) permits_late: IntCounter,
    name: HubName,
    /// Its child is made when there is something to say, as that of the next one.
    link_up: IntGaugeVec,
    clock: GaugeVec,
    pub(crate) shut: IntGauge,
    pub(crate) batches: IntGauge,
    pub(crate) record_seconds: Histogram,
    ended: [IntCounter; Ended::ALL.len()],
    outcomes: [IntCounter; OUTCOMES],
}

impl HubMetrics {
    /// A batch was put down.
    pub(crate) fn ended(&self, end: Ended) {
        self.ended[end as usize].inc();
    }

    /// How long ago the moment is until which all feedback was heard, and how many messages of others were in front.
    pub(crate) fn heard(&self, ago: Duration, foreign: u64) {
        self.unheard.set(ago.as_secs().cast_signed());
        self.foreign_in_front.set(foreign.cast_signed());
    }

    /// Whether there is a link to the hub that messages can leave over.
    pub(crate) fn link_up(&self, is_up: bool) {
        let gauge = self.link_up.with_label_values(&[self.name.as_str()]);
        gauge.set(is_up.into());
    }

    /// How far the hub's clock is ahead, if that is known.
    pub(crate) fn clock_ahead(&self, ms: Option<i64>) {
        let hub = [self.name.as_str()];
        match ms {
            Some(ms) => self.clock.with_label_values(&hub).set(ms as f64 / 1_000.0),
            // There is none before it was known.
            None => _ = self.clock.remove_label_values(&hub),
        }
    }

    /// An outcome was recorded.
    pub(crate) fn recorded(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }
}

/// Counts one thing in a gauge until it is dropped.
pub(crate) struct OneMore(IntGauge);

impl OneMore {
    pub(crate) fn of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Names and labels are written down here, so a family that cannot be made is a defect.
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
