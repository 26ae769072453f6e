use std::time::Duration;

use super::*;
use crate::gate::{Next, next_with_complete_evidence};
use crate::ids::{StageName, Version};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::rollout::{Attribution, Event, Phase, Rollout};
use crate::spec::RolloutSpec;

const START: Timestamp = Timestamp(1_000_000);

fn at(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

/// A running rollout to ten devices, in a stage with this gate.
fn rollout(gate: &str) -> Rollout {
    let spec = format!(
        "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}}}, stages: [{{name: s, gate: {{{gate}}}}}]}}"
    );
    let spec = RolloutSpec::read("x", &spec).unwrap();
    let plan = PlanSummary {
        checksum: Default::default(),
        devices: 10,
        batches: 1,
        digest: String::new(),
        hubs: vec![],
        stages: vec![],
        excluded: vec![],
        repeated: 0,
        malformed_rows: Default::default(),
        unknown_zones: Default::default(),
    };
    let rollout = Rollout::accepted(spec, Default::default(), START);
    let planned = rollout.after(Event::PlanningStarted, START).unwrap();
    let event = Event::PlanCompleted { plan };
    planned.unwrap().after(event, START).unwrap().unwrap()
}

fn metric(text: &str) -> Metric {
    let rollout = rollout(&format!("metrics: [{{name: m, query: up, {text}}}]"));
    gate_of(&rollout).metrics[0].clone()
}

fn gate_of(rollout: &Rollout) -> &Gate {
    rollout.spec.gate_of(rollout.stage()).unwrap()
}

#[test]
fn samples_are_evaluated() {
    use MetricResult::{Failed, Inconclusive, NotMeasured, Succeeded};
    let nan = f64::NAN;
    for (conditions, samples, result) in [
        // With a single condition, the opposite is implied.
        ("success: '>= 0.99'", vec![0.99], Succeeded),
        ("success: '>= 0.99'", vec![0.98], Failed),
        ("failure: '< 0.95'", vec![0.95], Succeeded),
        ("failure: '< 0.95'", vec![0.94], Failed),
        // With both conditions, values in between are inconclusive. Failure comes first.
        (
            "success: '>= 0.99', failure: '< 0.95'",
            vec![0.97],
            Inconclusive,
        ),
        (
            "success: '>= 0.99', failure: '< 0.95'",
            vec![0.99],
            Succeeded,
        ),
        ("success: '>= 0.99', failure: '< 0.95'", vec![0.94], Failed),
        ("success: '> 0', failure: '> 0'", vec![1.0], Failed),
        // All samples of a vector must succeed, and none may fail.
        ("success: '>= 0.99'", vec![1.0, 0.99, 1.0], Succeeded),
        ("success: '>= 0.99'", vec![1.0, 0.98, 1.0], Failed),
        ("failure: '< 0.95'", vec![1.0, 0.94], Failed),
        (
            "success: '>= 0.99', failure: '< 0.95'",
            vec![1.0, 0.97],
            Inconclusive,
        ),
        (
            "success: '>= 0.99', failure: '< 0.95'",
            vec![0.97, 0.94],
            Failed,
        ),
        // A missing sample or NaN is not measured, and fails nothing.
        ("success: '>= 0.99'", vec![], NotMeasured),
        ("failure: '< 0.95'", vec![], NotMeasured),
        ("success: '>= 0.99'", vec![nan], NotMeasured),
        ("failure: '< 0.95'", vec![nan], NotMeasured),
        ("failure: '< 0.95'", vec![nan, 0.5], Failed),
        ("failure: '< 0.95'", vec![nan, 1.0], NotMeasured),
        ("success: '<= 5'", vec![f64::INFINITY], Failed),
        ("success: '<= 5'", vec![f64::NEG_INFINITY], Succeeded),
    ] {
        let measurement = evaluate(&metric(conditions), Ok(&samples));
        assert_eq!(measurement.result, result, "{conditions} {samples:?}");
    }
    let metric = metric("success: '> 0'");
    let measurement = evaluate(&metric, Err("y".repeat(10_000)));
    assert_eq!(measurement.result, NotMeasured);
    assert_eq!(measurement.samples.len(), MAX_TEXT_CHARS);
    assert_eq!(evaluate(&metric, Ok(&[])).samples, "no sample");
    let many = evaluate(&metric, Ok(&[0.25; 7])).samples;
    assert_eq!(many, "0.25, 0.25, 0.25, 0.25, 0.25, and 2 more");
}

/// Runs a driver through measurements of a metric, and returns the verdict of the gate after each
/// measurement: `s`ucceeded, `f`ailed, `i`nconclusive, `n`ot measured. `S` marks the last send.
fn course(gate: &str, measurements: &str) -> Vec<String> {
    let mut rollout = rollout(gate);
    let mut counts = Counts::pending(10);
    let mut said = Vec::new();
    for (n, measured) in (1..).zip(measurements.chars()) {
        let now = at(60 * n);
        let result = match measured {
            's' => MetricResult::Succeeded,
            'f' => MetricResult::Failed,
            'i' => MetricResult::Inconclusive,
            'n' => MetricResult::NotMeasured,
            _ => {
                for _ in 0..10 {
                    counts.shift(Outcome::Pending, Outcome::Enqueued);
                }
                let Next::Apply(event) = next_with_complete_evidence(&rollout, &counts, false, now)
                else {
                    panic!("expected an event after the last send");
                };
                rollout = rollout.after(event, now).unwrap().unwrap();
                continue;
            }
        };
        let (progress, metric) = (
            rollout.stage_progress().unwrap(),
            &gate_of(&rollout).metrics[0],
        );
        if must_be_noted(metric, progress, result) {
            let event = Event::MetricMeasured {
                stage: progress.name.clone(),
                metric: metric.name.clone(),
                result,
                samples: "0.9".into(),
            };
            rollout = rollout.after(event, now).unwrap().unwrap();
        }
        let left = counts.unsettled() > 0;
        said.push(
            match next_with_complete_evidence(&rollout, &counts, left, now) {
                Next::Send => "sends".to_owned(),
                Next::Wait(waits) => format!("waits for {waits}"),
                Next::Apply(Event::StagePassed { reason, .. }) => format!("passed: {reason}"),
                Next::Apply(Event::GateFailed { reason, .. }) => format!("failed: {reason}"),
                Next::Apply(Event::GateUndecided { reason, .. }) => format!("undecided: {reason}"),
                other => format!("{other:?}"),
            },
        );
    }
    said
}

#[test]
fn a_gate_counts_measurements() {
    let gate =
        |text: &str| format!("metrics: [{{name: m, query: up, success: '> 0', count: 2{text}}}]");
    let sends = || "sends".to_owned();
    // Success before the last send is no success of the stage.
    assert_eq!(
        course(&gate(""), "sssSss"),
        [
            sends(),
            sends(),
            sends(),
            "waits for 1 more successful measurements of metric m".into(),
            "passed: all metrics have succeeded: m 0.9".into(),
        ]
    );
    // Failure counts at any time.
    let failed = "failed: metric m has failed once (limit 0); last result 0.9, expected > 0";
    assert_eq!(course(&gate(""), "f"), [failed]);
    assert_eq!(course(&gate(""), "Ssf").last().unwrap(), failed);
    assert_eq!(
        course(&gate(", failure_limit: 1"), "fSsf"),
        [
            sends(),
            "waits for 1 more successful measurements of metric m".into(),
            "failed: metric m has failed 2 times (limit 1); last result 0.9, expected > 0".into(),
        ]
    );
    assert_eq!(
        course(&gate(", failure_limit: 1"), "Sfss").last().unwrap(),
        "passed: all metrics have succeeded: m 0.9"
    );
    // An inconclusive measurement is neither success nor failure.
    assert_eq!(
        course(&gate(""), "i"),
        ["undecided: metric m was inconclusive once (limit 0); last result 0.9"]
    );
    assert_eq!(
        course(&gate(", inconclusive_limit: 2"), "Siiss")
            .last()
            .unwrap(),
        "passed: all metrics have succeeded: m 0.9"
    );
    // A missing measurement is neither success nor failure, and only several in a row count.
    assert_eq!(
        course(&gate(", error_limit: 1"), "nsnsn"),
        [sends(), sends(), sends(), sends(), sends()]
    );
    assert_eq!(
        course(&gate(", error_limit: 1"), "nn").last().unwrap(),
        "undecided: metric m could not be measured 2 times in a row (limit 1); last result 0.9"
    );
    let four = course(&gate(""), "Snnnnn");
    assert_eq!(
        four[3],
        "waits for 2 more successful measurements of metric m"
    );
    assert!(four[4].starts_with("undecided: metric m could not be measured 5 times in a row"));
    assert_eq!(course(&gate(", error_limit: 0"), "n").len(), 1);
}

/// A gate does not wait without need: an approval is requested when all other conditions hold.
#[test]
fn metrics_precede_approval_and_continue_while_waiting() {
    let gate = "metrics: [{name: m, query: up, success: '> 0', count: 1}], approval: {}";
    let said = course(gate, "Ss");
    assert!(said[0].contains("ApprovalAwaited"), "{said:?}");
    let said = course(gate, "Ssf");
    assert!(said[1].starts_with("failed"), "{said:?}");
    // Failure is checked before success, and devices before metrics.
    let gate = "metrics: [{name: m, query: up, success: '> 0', count: 1}], bake: 1h";
    assert!(course(gate, "Ss")[0].starts_with("waits for the end of its bake"));
}

#[test]
fn metric_is_queried_when_due() {
    let text = "metrics: [{name: a, query: up, success: '> 0', initial_delay: 5m}, {name: b, query: up, success: '> 0', every: 10m}]";
    let mut rollout = rollout(text);
    let due_metric = |rollout: &Rollout, seconds: u64, a: Option<u64>, b: Option<u64>| {
        let progress = rollout.stage_progress().unwrap();
        let queried_at = |name: &MetricName| if name.as_str() == "a" { a } else { b }.map(at);
        due(gate_of(rollout), progress, queried_at, at(seconds))
            .map(|metric| metric.name.to_string())
    };
    assert_eq!(due_metric(&rollout, 0, None, None).as_deref(), Some("b"));
    assert_eq!(due_metric(&rollout, 299, None, Some(0)), None);
    assert_eq!(
        due_metric(&rollout, 300, None, Some(0)).as_deref(),
        Some("a")
    );
    assert_eq!(due_metric(&rollout, 599, Some(560), Some(0)), None);
    assert_eq!(
        due_metric(&rollout, 600, Some(560), Some(0)).as_deref(),
        Some("b")
    );
    // A measurement noted by another driver is not repeated at once.
    let event = |name: &str| Event::MetricMeasured {
        stage: StageName::new("s").unwrap(),
        metric: MetricName::new(name).unwrap(),
        result: MetricResult::Succeeded,
        samples: "1".into(),
    };
    for name in ["a", "b"] {
        rollout = rollout.after(event(name), at(700)).unwrap().unwrap();
    }
    assert_eq!(due_metric(&rollout, 759, None, None), None);
    assert_eq!(due_metric(&rollout, 760, None, None).as_deref(), Some("a"));
    assert_eq!(
        due_metric(&rollout, 1_300, Some(1_299), None).as_deref(),
        Some("b")
    );
    assert_eq!(
        describe(gate_of(&rollout), rollout.stage_progress().unwrap())
            .matches(" of 5")
            .count(),
        2
    );
}

/// In a stage of any length, a metric with a constant result is noted only a few times.
#[test]
fn redundant_measurements_are_not_recorded() {
    let gate = "bake: 1d, metrics: [{name: m, query: up, success: '> 0', count: 3}]";
    let rollout = rollout(gate);
    let version = |measurements: &str| {
        let mut rollout = rollout.clone();
        for (n, c) in (1..).zip(measurements.chars()) {
            let progress = rollout.stage_progress().unwrap();
            let stage = progress.name.clone();
            let event = if c == 'S' {
                Event::StageSent { stage }
            } else {
                let metric = &gate_of(&rollout).metrics[0];
                if !must_be_noted(metric, progress, MetricResult::Succeeded) {
                    continue;
                }
                Event::MetricMeasured {
                    stage,
                    metric: metric.name.clone(),
                    result: MetricResult::Succeeded,
                    samples: "1".into(),
                }
            };
            rollout = rollout.after(event, at(n)).unwrap().unwrap();
        }
        rollout.version.0
    };
    assert_eq!(version(&"s".repeat(100)) - rollout.version.0, 1);
    let long = format!("{}S{}", "s".repeat(100), "s".repeat(100));
    assert_eq!(version(&long) - rollout.version.0, 1 + 1 + 3);
}

/// After a resume, the whole gate is judged again.
#[test]
fn undecided_gate_pauses_and_restarts_after_resume() {
    let rollout =
        rollout("metrics: [{name: m, query: up, success: '> 0'}], approval: {}, on_failure: abort");
    let stage = StageName::new("s").unwrap();
    let measured = Event::MetricMeasured {
        stage: stage.clone(),
        metric: MetricName::new("m").unwrap(),
        result: MetricResult::Inconclusive,
        samples: "0".into(),
    };
    let rollout = rollout.after(measured, at(1)).unwrap().unwrap();
    let text = serde_json::to_string(&rollout).unwrap();
    let read: Rollout = serde_json::from_str(&text).unwrap();
    let notes = rollout.notes.clone();
    assert_eq!(Rollout { notes, ..read }, rollout);
    let Next::Apply(event) =
        next_with_complete_evidence(&rollout, &Counts::pending(10), true, at(2))
    else {
        panic!("expected an event of the undecided gate");
    };
    let rollout = rollout.after(event, at(2)).unwrap().unwrap();
    let Phase::Paused { reason } = &rollout.phase else {
        panic!("expected a paused rollout, regardless of on_failure");
    };
    assert!(
        reason.starts_with("the gate of stage s cannot be judged: metric m"),
        "{reason}"
    );
    assert_eq!(rollout.stages[0].metrics, []);
    assert_eq!(rollout.version, Version(5));
    let resumed = rollout
        .after(
            Event::ResumeRequested {
                attribution: Attribution::default(),
            },
            at(3),
        )
        .unwrap()
        .unwrap();
    assert_eq!(
        next_with_complete_evidence(&resumed, &Counts::pending(10), true, at(4)),
        Next::Send
    );
}
