//! The Prometheus metrics of an orchestrator. Labels come from closed sets, except for rollout
//! names: only gauges of rollouts driven by this orchestrator at the moment have a name as label.

use std::collections::BTreeSet;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use twincast_core::account::Activity;
use twincast_core::answer::Answered;
use twincast_core::ids::{HubName, RolloutName};
use twincast_core::outcome::{Counts, Outcome, OutcomeClass};
use twincast_core::ports::{Depth, Tally};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;

use crate::command::{Answer, Cause, Refusal};
use crate::rollout_text::valid_tallies;
use crate::view::stage_name;

/// The results of commands besides the causes of refusals.
const DONE: &str = "done";
const UNCHANGED: &str = "unchanged";
const DENIED: &str = "denied";

/// The metric families.
#[derive(Debug)]
pub struct Metrics {
    /// Rollouts driven by this orchestrator.
    pub driven: IntGauge,
    /// Active rollouts of a newer release, left alone by this orchestrator.
    pub newer: IntGauge,
    /// Whether all rollouts are stopped.
    pub(crate) stopped: IntGauge,
    pub(crate) repairs: Repairs,
    /// Messages on the dead-letter queue.
    pub dead_letters: IntGauge,
    commands: IntCounterVec,
    waiting: IntGaugeVec,
    consumers: IntGaugeVec,
    phase: IntGaugeVec,
    stage: IntGaugeVec,
    awaits_approval: IntGaugeVec,
    planning_blocked: IntGaugeVec,
    devices: IntGaugeVec,
    answers: IntGaugeVec,
    spent: IntGaugeVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let rollout = ["rollout"];
        Self {
            driven: made(IntGauge::new(
                "twincast_rollouts_driven",
                "Rollouts driven by this orchestrator.",
            )),
            newer: made(IntGauge::new(
                "twincast_rollouts_newer",
                "Active rollouts of a newer release, left to newer orchestrators.",
            )),
            stopped: made(IntGauge::new(
                "twincast_stopped",
                "1 while all rollouts are stopped, from stop-all to resume-all.",
            )),
            repairs: Repairs::default(),
            dead_letters: made(IntGauge::new(
                "twincast_dead_letters",
                "Messages on the dead letter queue, as last seen by this orchestrator.",
            )),
            commands: commands(),
            waiting: gauges(
                "twincast_dispatches_waiting",
                "Batches on a hub's dispatch queue, not yet taken by a worker.",
                &["hub"],
            ),
            consumers: gauges(
                "twincast_dispatch_consumers",
                "Workers consuming a hub's dispatch queue.",
                &["hub"],
            ),
            phase: gauges(
                "twincast_rollout_phase",
                "1 for the current phase of a rollout. All metrics twincast_rollout_* cover the \
                 rollouts driven by this orchestrator.",
                &["rollout", "phase"],
            ),
            stage: gauges(
                "twincast_rollout_stage",
                "The number of a rollout's current stage, from 1; 0 before the plan is complete.",
                &rollout,
            ),
            awaits_approval: gauges(
                "twincast_rollout_awaits_approval",
                "1 while a rollout waits only for an approval.",
                &rollout,
            ),
            planning_blocked: gauges(
                "twincast_rollout_planning_blocked",
                "1 while a rollout's devices or late joiners cannot be found.",
                &rollout,
            ),
            devices: gauges(
                "twincast_rollout_devices",
                "A rollout's devices by stage, class and outcome, once the plan is complete.",
                &["rollout", "stage", "class", "outcome"],
            ),
            answers: gauges(
                "twincast_rollout_answers",
                "Devices with an answer in the twin, by stage and state: installing, applied, \
                 failed.",
                &["rollout", "stage", "state"],
            ),
            spent: gauges(
                "twincast_rollout_time_spent_seconds",
                "Seconds spent by a rollout per activity; the sum is the time since the rollout \
                 was accepted.",
                &["rollout", "activity"],
            ),
        }
    }
}

impl Metrics {
    /// Registers all metric families with `registry`.
    ///
    /// # Errors
    /// When `registry` already has metrics of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 15] = [
            Box::new(self.driven.clone()),
            Box::new(self.newer.clone()),
            Box::new(self.stopped.clone()),
            Box::new(self.repairs.0.clone()),
            Box::new(self.dead_letters.clone()),
            Box::new(self.commands.clone()),
            Box::new(self.waiting.clone()),
            Box::new(self.consumers.clone()),
            Box::new(self.phase.clone()),
            Box::new(self.stage.clone()),
            Box::new(self.awaits_approval.clone()),
            Box::new(self.planning_blocked.clone()),
            Box::new(self.devices.clone()),
            Box::new(self.answers.clone()),
            Box::new(self.spent.clone()),
        ];
        all.into_iter()
            .try_for_each(|family| registry.register(family))
    }

    /// Counts the result of a command and returns the label.
    pub fn count_answer(&self, result: Result<&Answer, &Refusal>) -> &'static str {
        let result = match result {
            Ok(answer) if answer.changed => DONE,
            Ok(_) => UNCHANGED,
            Err(refusal) => refusal.cause.as_str(),
        };
        self.commands.with_label_values(&[result]).inc();
        result
    }

    /// Counts a command denied for missing permission.
    pub(crate) fn count_denied(&self) {
        self.commands.with_label_values(&[DENIED]).inc();
    }

    pub(crate) fn queue(&self, hub: &HubName, depth: Depth) {
        let set = |family: &IntGaugeVec, n| {
            let gauge = family.with_label_values(&[hub.as_str()]);
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(&self.waiting, depth.waiting);
        set(&self.consumers, depth.consumers);
    }

    /// Returns the metrics of one rollout. Dropping the result removes the metrics.
    pub(crate) fn rollout(&self, name: &RolloutName) -> RolloutMetrics<'_> {
        RolloutMetrics {
            of: self,
            name: name.clone(),
            phase: None,
            exported: BTreeSet::new(),
            answer_stages: BTreeSet::new(),
        }
    }
}

/// The metrics of one rollout.
pub(crate) struct RolloutMetrics<'a> {
    of: &'a Metrics,
    name: RolloutName,
    phase: Option<&'static str>,
    /// The stages, classes and outcomes with a sample.
    exported: BTreeSet<(String, OutcomeClass, Outcome)>,
    /// The stages with samples of answers.
    answer_stages: BTreeSet<String>,
}

/// The exported states of answers.
const ANSWER_STATES: [&str; 3] = ["installing", "applied", "failed"];

impl RolloutMetrics<'_> {
    pub(crate) fn set(&mut self, rollout: &Rollout, tallies: &[Tally], now: Timestamp) {
        let tallies = valid_tallies(rollout, tallies);
        let name = self.name.as_str();
        let phase = rollout.phase.as_str();
        if let Some(before) = self.phase.replace(phase).filter(|before| *before != phase) {
            _ = self.of.phase.remove_label_values(&[name, before]);
        }
        self.of.phase.with_label_values(&[name, phase]).set(1);
        let stage = self.of.stage.with_label_values(&[name]);
        let number = rollout.plan.as_ref().map_or(0, |_| rollout.stage().0 + 1);
        stage.set(i64::from(number));
        let awaits = rollout.stage_progress().is_some_and(|stage| {
            stage.approval_awaited_at.is_some()
                && stage.approved.is_none()
                && stage.passed_at.is_none()
        });
        let awaiting = self.of.awaits_approval.with_label_values(&[name]);
        awaiting.set(i64::from(awaits));
        let blocked = self.of.planning_blocked.with_label_values(&[name]);
        blocked.set(i64::from(rollout.search_trouble().is_some()));
        for (activity, seconds) in rollout.time_spent(now).seconds() {
            let spent = self.of.spent.with_label_values(&[name, activity.as_str()]);
            spent.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        let stages: BTreeSet<_> = tallies.iter().map(|tally| tally.stage).collect();
        for stage in stages {
            let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
            let answers = rollout.spec.message.wants_feedback();
            self.set_devices(&stage_name(rollout, stage), &counts, answers);
        }
        for (stage, answered) in rollout.notes.answers.stages() {
            self.set_answers(&stage_name(rollout, stage), answered);
        }
    }

    fn set_answers(&mut self, stage: &str, answered: &Answered) {
        self.answer_stages.insert(stage.to_owned());
        let numbers = [answered.installing, answered.applied, answered.failed];
        for (state, devices) in ANSWER_STATES.into_iter().zip(numbers) {
            let gauge = self
                .of
                .answers
                .with_label_values(&[self.name.as_str(), stage, state]);
            gauge.set(i64::try_from(devices).unwrap_or(i64::MAX));
        }
    }

    /// Sets a sample for each present or past outcome: an ended series would keep the last value.
    fn set_devices(&mut self, stage: &str, counts: &Counts, answers: bool) {
        self.exported.extend(counts.iter().map(|(outcome, _)| {
            (
                stage.to_owned(),
                OutcomeClass::of(outcome, answers),
                outcome,
            )
        }));
        for (_, class, outcome) in self.exported.iter().filter(|(of, ..)| of == stage) {
            let labels = [self.name.as_str(), stage, class.as_str(), outcome.as_str()];
            let devices = i64::try_from(counts.get(*outcome)).unwrap_or(i64::MAX);
            self.of.devices.with_label_values(&labels).set(devices);
        }
    }
}

impl Drop for RolloutMetrics<'_> {
    fn drop(&mut self) {
        let name = self.name.as_str();
        // Without a phase, no metric was ever set.
        if let Some(phase) = self.phase {
            _ = self.of.phase.remove_label_values(&[name, phase]);
        }
        _ = self.of.stage.remove_label_values(&[name]);
        _ = self.of.awaits_approval.remove_label_values(&[name]);
        _ = self.of.planning_blocked.remove_label_values(&[name]);
        for activity in Activity::ALL {
            _ = self
                .of
                .spent
                .remove_label_values(&[name, activity.as_str()]);
        }
        for (stage, class, outcome) in &self.exported {
            let labels = [name, stage, class.as_str(), outcome.as_str()];
            _ = self.of.devices.remove_label_values(&labels);
        }
        for stage in &self.answer_stages {
            for state in ANSWER_STATES {
                _ = self.of.answers.remove_label_values(&[name, stage, state]);
            }
        }
    }
}

/// Counts the repairs by drivers: repeated dispatches and repeated writes.
#[derive(Debug, Clone)]
pub struct Repairs(IntCounter);

impl Default for Repairs {
    fn default() -> Self {
        Self(made(IntCounter::new(
            "twincast_dispatches_repeated_total",
            "Repeated dispatches of batches without a worker, and repeated writes after a loss in \
             the store.",
        )))
    }
}

impl Repairs {
    /// Returns the number of repairs since the start of the process.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn add_one(&self) {
        self.0.inc();
    }
}

/// Creates the counter of commands. All results exist from the start, so that the first of a kind
/// shows as an increase, too.
fn commands() -> IntCounterVec {
    let family = made(IntCounterVec::new(
        Opts::new(
            "twincast_commands_total",
            "Answered commands over the queue and HTTP: done, unchanged (already in effect), \
             denied (the caller lacks the role), or the cause of a refusal.",
        ),
        &["result"],
    ));
    let causes = Cause::ALL.into_iter().map(Cause::as_str);
    for result in [DONE, UNCHANGED, DENIED].into_iter().chain(causes) {
        family.with_label_values(&[result]);
    }
    family
}

/// Unwraps a metric family. Names and labels are constants, so a failure is a defect.
fn made<T>(family: Result<T, prometheus::Error>) -> T {
    family.expect("names and labels are valid")
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    made(IntGaugeVec::new(Opts::new(name, help), labels))
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;
    use twincast_core::ids::StageIndex;
    use twincast_core::rollout::Event;
    use twincast_testkit::build;

    use super::*;

    fn samples(registry: &Registry) -> Vec<String> {
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        let of_rollouts = text
            .lines()
            .filter(|line| line.starts_with("twincast_rollout_"));
        of_rollouts.map(str::to_owned).collect()
    }

    #[test]
    fn every_result_of_a_command_is_counted_from_the_start() {
        let metrics = Metrics::default();
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        let text = || {
            TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap()
        };
        for result in ["done", "unchanged", "denied"]
            .into_iter()
            .chain(Cause::ALL.map(Cause::as_str))
        {
            let sample = format!("twincast_commands_total{{result=\"{result}\"}} 0\n");
            assert!(text().contains(&sample), "{result}: {}", text());
        }
        metrics.count_denied();
        let refusal = Refusal::new(Cause::Damaged, "x");
        assert_eq!(metrics.count_answer(Err(&refusal)), "damaged");
        for result in ["denied", "damaged"] {
            let sample = format!("twincast_commands_total{{result=\"{result}\"}} 1\n");
            assert!(text().contains(&sample), "{result}");
        }
    }

    #[test]
    fn a_rollout_has_metrics_while_driven() {
        let metrics = Metrics::default();
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        let rollout = build::accepted("r");
        let rollout = build::after(&rollout, Event::PlanningStarted);
        let mut counts = Counts::pending(2);
        let tally = |counts| Tally {
            stage: StageIndex(0),
            hub: HubName::new("a").unwrap(),
            counts,
        };
        let mut of = metrics.rollout(&rollout.spec.name);
        let devices = |sample: &String| sample.starts_with("twincast_rollout_devices");
        of.set(&rollout, &[tally(counts)], Timestamp(4_002));
        let exported = samples(&registry);
        assert!(
            !exported.iter().any(devices),
            "devices of an incomplete plan: {exported:?}"
        );
        let rollout = build::after(&rollout, build::plan_completed(2));
        of.set(&rollout, &[tally(counts)], Timestamp(4_002));
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        counts.shift(Outcome::Pending, Outcome::Refused);
        of.set(&rollout, &[tally(counts)], Timestamp(4_002));
        let (spent, exported): (Vec<_>, Vec<_>) = samples(&registry)
            .into_iter()
            .partition(|sample| sample.contains("time_spent"));
        let sending = r#"twincast_rollout_time_spent_seconds{activity="sending",rollout="r"} 4"#;
        assert!(spent.iter().any(|sample| sample == sending), "{spent:?}");
        assert_eq!(
            exported,
            [
                r#"twincast_rollout_awaits_approval{rollout="r"} 0"#,
                r#"twincast_rollout_devices{class="not_sent",outcome="refused",rollout="r",stage="all"} 1"#,
                r#"twincast_rollout_devices{class="pending",outcome="pending",rollout="r",stage="all"} 0"#,
                r#"twincast_rollout_devices{class="sent",outcome="enqueued",rollout="r",stage="all"} 1"#,
                r#"twincast_rollout_phase{phase="running",rollout="r"} 1"#,
                r#"twincast_rollout_planning_blocked{rollout="r"} 0"#,
                r#"twincast_rollout_stage{rollout="r"} 1"#,
            ]
        );
        drop(of);
        assert_eq!(samples(&registry), Vec::<String>::new());
    }
}
