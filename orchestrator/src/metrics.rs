//! What an orchestrator tells Prometheus. Labels come from closed sets, but for the rollouts' names:
//! those are on gauges of rollouts only that this orchestrator drives just now.

use std::collections::BTreeSet;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use twincast_core::account::Activity;
use twincast_core::answer::Answered;
use twincast_core::ids::{HubName, RolloutName};
use twincast_core::outcome::{Class, Counts, Outcome};
use twincast_core::ports::{Depth, Tally};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;

use crate::command::{Answer, Cause, Refusal};
use crate::standing::counted;
use crate::view::stage_name;

/// Results of commands that are no causes of a refusal.
const DONE: &str = "done";
const UNCHANGED: &str = "unchanged";
const DENIED: &str = "denied";

/// The families.
#[derive(Debug)]
pub struct Metrics {
    /// Rollouts that this orchestrator drives.
    pub driven: IntGauge,
    /// Active rollouts of a newer release, which this orchestrator leaves alone.
    pub newer: IntGauge,
    /// Whether all rollouts are stopped.
    pub(crate) stopped: IntGauge,
    pub(crate) repairs: Repairs,
    /// Messages on the queue of dead letters.
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
                "Rollouts that this orchestrator drives.",
            )),
            newer: made(IntGauge::new(
                "twincast_rollouts_newer",
                "Active rollouts of a newer release, which this orchestrator leaves to newer ones.",
            )),
            stopped: made(IntGauge::new(
                "twincast_stopped",
                "1 while all rollouts are stopped: from stop-all to resume-all.",
            )),
            repairs: Repairs::default(),
            dead_letters: made(IntGauge::new(
                "twincast_dead_letters",
                "Messages on the queue of dead letters, as this orchestrator last saw it.",
            )),
            commands: commands(),
            waiting: gauges(
                "twincast_dispatches_waiting",
                "Batches on a hub's dispatch queue that no worker has taken yet.",
                &["hub"],
            ),
            consumers: gauges(
                "twincast_dispatch_consumers",
                "Workers that take batches from a hub's dispatch queue.",
                &["hub"],
            ),
            phase: gauges(
                "twincast_rollout_phase",
                "1 for the phase that a rollout is in. Of rollouts that this orchestrator drives, as all twincast_rollout_*.",
                &["rollout", "phase"],
            ),
            stage: gauges(
                "twincast_rollout_stage",
                "The number of the stage that a rollout is at, from 1; 0 before its plan is whole.",
                &rollout,
            ),
            awaits_approval: gauges(
                "twincast_rollout_awaits_approval",
                "1 while an approval is all that a rollout waits for.",
                &rollout,
            ),
            planning_blocked: gauges(
                "twincast_rollout_planning_blocked",
                "1 while the devices of a rollout, or its joiners, cannot be found.",
                &rollout,
            ),
            devices: gauges(
                "twincast_rollout_devices",
                "A rollout's devices, by stage, class and outcome, once its plan is whole.",
                &["rollout", "stage", "class", "outcome"],
            ),
            answers: gauges(
                "twincast_rollout_answers",
                "Devices that have answered in their twins, by stage and state: installing, applied, failed.",
                &["rollout", "stage", "state"],
            ),
            spent: gauges(
                "twincast_rollout_time_spent_seconds",
                "For how long a rollout did what; added up, the time since it was accepted.",
                &["rollout", "activity"],
            ),
        }
    }
}

impl Metrics {
    /// Lets `registry` export what is counted.
    ///
    /// # Errors
    /// When it exports metrics of these names already.
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

    /// A command was answered for; gives what is counted.
    pub fn answered(&self, result: Result<&Answer, &Refusal>) -> &'static str {
        let result = match result {
            Ok(answer) if answer.changed => DONE,
            Ok(_) => UNCHANGED,
            Err(refusal) => refusal.cause.as_str(),
        };
        self.commands.with_label_values(&[result]).inc();
        result
    }

    /// Somebody asked for what they may not.
    pub(crate) fn denied(&self) {
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

    /// What is told of one rollout, until it is dropped.
    pub(crate) fn rollout(&self, name: &RolloutName) -> RolloutMetrics<'_> {
        RolloutMetrics {
            of: self,
            name: name.clone(),
            phase: None,
            told: BTreeSet::new(),
            answered: BTreeSet::new(),
        }
    }
}

/// What is told of one rollout.
pub(crate) struct RolloutMetrics<'a> {
    of: &'a Metrics,
    name: RolloutName,
    phase: Option<&'static str>,
    /// Stages, classes and outcomes of which there is a sample.
    told: BTreeSet<(String, Class, Outcome)>,
    /// Stages of whose answers there is a sample.
    answered: BTreeSet<String>,
}

/// The states of answers that are told.
const ANSWERS: [&str; 3] = ["installing", "applied", "failed"];

impl RolloutMetrics<'_> {
    pub(crate) fn set(&mut self, rollout: &Rollout, tallies: &[Tally], now: Timestamp) {
        let tallies = counted(rollout, tallies);
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
            stage.ripe_at.is_some() && stage.approved.is_none() && stage.passed_at.is_none()
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
            let answers = rollout.spec.message.answers();
            self.set_devices(&stage_name(rollout, stage), &counts, answers);
        }
        for (stage, answered) in rollout.notes.answers.stages() {
            self.set_answers(&stage_name(rollout, stage), answered);
        }
    }

    fn set_answers(&mut self, stage: &str, answered: &Answered) {
        self.answered.insert(stage.to_owned());
        let numbers = [answered.installing, answered.applied, answered.failed];
        for (state, devices) in ANSWERS.into_iter().zip(numbers) {
            let gauge = self
                .of
                .answers
                .with_label_values(&[self.name.as_str(), stage, state]);
            gauge.set(i64::try_from(devices).unwrap_or(i64::MAX));
        }
    }

    /// A sample for each outcome that there is or was: a series that ends would keep its last value.
    fn set_devices(&mut self, stage: &str, counts: &Counts, answers: bool) {
        self.told.extend(
            counts
                .iter()
                .map(|(outcome, _)| (stage.to_owned(), Class::of(outcome, answers), outcome)),
        );
        for (_, class, outcome) in self.told.iter().filter(|(of, ..)| of == stage) {
            let labels = [self.name.as_str(), stage, class.as_str(), outcome.as_str()];
            let devices = i64::try_from(counts.get(*outcome)).unwrap_or(i64::MAX);
            self.of.devices.with_label_values(&labels).set(devices);
        }
    }
}

impl Drop for RolloutMetrics<'_> {
    fn drop(&mut self) {
        let name = self.name.as_str();
        // One that was never set has nothing to remove.
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
        for (stage, class, outcome) in &self.told {
            let labels = [name, stage, class.as_str(), outcome.as_str()];
            _ = self.of.devices.remove_label_values(&labels);
        }
        for stage in &self.answered {
            for state in ANSWERS {
                _ = self.of.answers.remove_label_values(&[name, stage, state]);
            }
        }
    }
}

/// What drivers found out of order and put right: dispatches that were lost.
#[derive(Debug, Clone)]
pub struct Repairs(IntCounter);

impl Default for Repairs {
    fn default() -> Self {
        Self(made(IntCounter::new(
            "twincast_dispatches_repeated_total",
            "Batches that were released again, because nobody worked on them.",
        )))
    }
}

impl Repairs {
    /// How many there were since the process started.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn add_one(&self) {
        self.0.inc();
    }
}

/// What is counted of commands. All results are there from the start: the first of a kind is an increase, too.
fn commands() -> IntCounterVec {
    let family = made(IntCounterVec::new(
        Opts::new(
            "twincast_commands_total",
            "Commands that were answered for, over the queue and HTTP: done, unchanged (it was so already), denied (by whoever may not), or the cause of a refusal.",
        ),
        &["result"],
    ));
    let causes = Cause::ALL.into_iter().map(Cause::as_str);
    for result in [DONE, UNCHANGED, DENIED].into_iter().chain(causes) {
        family.with_label_values(&[result]);
    }
    family
}

/// Names and labels are written down here, so a family that cannot be made is a defect.
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
        let told = || {
            TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap()
        };
        for result in ["done", "unchanged", "denied"]
            .into_iter()
            .chain(Cause::ALL.map(Cause::as_str))
        {
            let sample = format!("twincast_commands_total{{result=\"{result}\"}} 0\n");
            assert!(told().contains(&sample), "{result}: {}", told());
        }
        metrics.denied();
        let refusal = Refusal::new(Cause::Damaged, "x");
        assert_eq!(metrics.answered(Err(&refusal)), "damaged");
        for result in ["denied", "damaged"] {
            let sample = format!("twincast_commands_total{{result=\"{result}\"}} 1\n");
            assert!(told().contains(&sample), "{result}");
        }
    }

    #[test]
    fn a_rollout_is_told_of_while_it_is_driven() {
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
        let told = samples(&registry);
        assert!(!told.iter().any(devices), "of half a plan: {told:?}");
        let rollout = build::after(&rollout, build::plan_completed(2));
        of.set(&rollout, &[tally(counts)], Timestamp(4_002));
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        counts.shift(Outcome::Pending, Outcome::Refused);
        of.set(&rollout, &[tally(counts)], Timestamp(4_002));
        let (spent, told): (Vec<_>, Vec<_>) = samples(&registry)
            .into_iter()
            .partition(|sample| sample.contains("time_spent"));
        let sending = r#"twincast_rollout_time_spent_seconds{activity="sending",rollout="r"} 4"#;
        assert!(spent.iter().any(|sample| sample == sending), "{spent:?}");
        assert_eq!(
            told,
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
