use super::*;
use crate::ids::{Attempt, MetricName, RolloutName, StageName, Version};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::spec::{OnFailure, RolloutSpec};
use crate::time::Timestamp;

pub(super) fn plan(devices: u64) -> Event {
    Event::PlanCompleted {
        plan: PlanSummary {
            checksum: Default::default(),
            devices,
            batches: 1,
            digest: String::new(),
            hubs: vec![],
            stages: vec![],
            excluded: vec![],
            repeated: 0,
            malformed_rows: Default::default(),
            unknown_zones: Default::default(),
        },
    }
}

fn phases() -> Vec<Phase> {
    let reason = || "r".to_owned();
    vec![
        Phase::Accepted,
        Phase::Planning,
        Phase::Running,
        Phase::Paused { reason: reason() },
        Phase::Halted { reason: reason() },
        Phase::Aborting { reason: reason() },
        Phase::Aborted { reason: reason() },
        Phase::Succeeded,
        Phase::FinishedWithFailures,
        Phase::Failed { reason: reason() },
    ]
}

fn events() -> Vec<Event> {
    let reason = || "e".to_owned();
    let mut failed = Counts::pending(2);
    failed.shift(Outcome::Pending, Outcome::Enqueued);
    let mut counts = failed;
    failed.shift(Outcome::Pending, Outcome::NotFound);
    counts.shift(Outcome::Pending, Outcome::Enqueued);
    vec![
        Event::Queued {
            behind: RolloutName::new("b").unwrap(),
        },
        Event::PlanningStarted,
        plan(2),
        plan(0),
        Event::PlanningFailed { reason: reason() },
        Event::PauseRequested { reason: reason() },
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
        Event::HaltRequested { reason: reason() },
        Event::HaltLifted {
            attribution: Attribution::default(),
        },
        Event::AbortRequested { reason: reason() },
        Event::AllSettled { counts },
        Event::AllSettled { counts: failed },
        retry(&[Outcome::NotFound], None),
        Event::RetryPrepared,
    ]
}

fn retry(outcomes: &[Outcome], stage: Option<&str>) -> Event {
    Event::RetryRequested {
        outcomes: outcomes.to_vec(),
        stage: stage.map(|stage| StageName::new(stage).unwrap()),
        attribution: Attribution::default(),
    }
}

fn stage_events() -> Vec<Event> {
    let stage = || StageName::new("s").unwrap();
    let failed = |then| Event::GateFailed {
        stage: stage(),
        reason: "g".into(),
        then,
    };
    vec![
        Event::StageSent { stage: stage() },
        Event::ApprovalAwaited { stage: stage() },
        Event::StagePassed {
            stage: stage(),
            reason: "g".into(),
        },
        Event::Approved {
            stage: stage(),
            attribution: Attribution::default(),
        },
        Event::Promoted {
            stage: stage(),
            attribution: Attribution::default(),
        },
        failed(OnFailure::Pause),
        failed(OnFailure::Abort),
        failed(OnFailure::Continue),
        Event::MetricMeasured {
            stage: stage(),
            metric: MetricName::new("m").unwrap(),
            result: MetricResult::Succeeded,
            samples: "1".into(),
        },
        Event::GateUndecided {
            stage: stage(),
            reason: "g".into(),
        },
    ]
}

fn table(events: &[Event]) -> Vec<String> {
    phases()
        .iter()
        .map(|phase| {
            let row: Vec<_> = events
                .iter()
                .map(|event| match transition(phase, event) {
                    Err(_) => ".",
                    Ok(next) if next == *phase => "=",
                    Ok(next) => next.as_str(),
                })
                .collect();
            format!("{}: {}", phase.as_str(), row.join(" "))
        })
        .collect()
}

/// Events of a stage's gate are legal only while the rollout is under way.
#[test]
fn every_edge_of_stages() {
    assert_eq!(
        table(&stage_events()),
        [
            "accepted: . . . . . . . . . .",
            "planning: . . . . . . . . . .",
            "running: = = = = = paused aborting = = paused",
            "paused: . . . = running . . . . .",
            "halted: . . . = = . . . . .",
            "aborting: . . . . . . . . . .",
            "aborted: . . . . . . . . . .",
            "succeeded: . . . . . . . . . .",
            "finished_with_failures: . . . . . . . . . .",
            "failed: . . . . . . . . . .",
        ]
    );
}

/// The whole state machine as a table: `.` is illegal, `=` changes nothing.
#[test]
fn every_edge() {
    assert_eq!(
        table(&events()),
        [
            "accepted: = planning . . failed = = = = aborting . . . .",
            "planning: = = running failed failed = = = = aborting . . . .",
            "running: . . . . . paused = halted = aborting succeeded finished_with_failures = =",
            "paused: . . . . . = running = = aborting succeeded finished_with_failures = =",
            "halted: . . . . . paused . = running aborting succeeded finished_with_failures = =",
            "aborting: . . . . . . . = = = aborted aborted . .",
            "aborted: . . . . . . . = = = = = . .",
            "succeeded: . . . . . . . = = . = = running .",
            "finished_with_failures: . . . . . . . = = . = = running .",
            "failed: . . . . . . . = = . . . . .",
        ]
    );
}

#[test]
fn ended_phases_are_final_and_only_running_sends() {
    for phase in phases() {
        assert_eq!(
            phase.directive() == Directive::Continue,
            phase == Phase::Running
        );
        if phase.is_ended() {
            assert_eq!(phase.duty(), Duty::Nothing);
            for event in events() {
                if matches!(event, Event::RetryRequested { .. }) {
                    continue;
                }
                assert!(
                    transition(&phase, &event).is_err()
                        || transition(&phase, &event).unwrap() == phase
                );
            }
        }
    }
}

/// A running rollout with two stages; the first stage has a gate.
fn staged() -> Rollout {
    let spec = RolloutSpec::read(
        "x",
        "{name: a, target: {all: true}, message: {body: {text: hi}}, \
         stages: [{name: s, percent: 10%, gate: {approval: {}}}]}",
    )
    .unwrap();
    let rollout = Rollout::accepted(spec, Default::default(), Timestamp(5));
    let rollout = step(&rollout, Event::PlanningStarted);
    step(&rollout, plan(20))
}

fn step(rollout: &Rollout, event: Event) -> Rollout {
    rollout.after(event, Timestamp(9)).unwrap().unwrap()
}

#[test]
fn retry_is_prepared_before_sending_continues() {
    let stage = || StageName::new("s").unwrap();
    let running = staged();
    let sent = step(&running, Event::StageSent { stage: stage() });
    let ripe = step(&sent, Event::ApprovalAwaited { stage: stage() });
    let requested = step(&ripe, retry(&[Outcome::NotFound, Outcome::Expired], None));
    assert_eq!(requested.attempt, Attempt(2));
    let progress = requested.stage_progress().unwrap();
    assert_eq!(
        (progress.sent_at, progress.approval_awaited_at),
        (None, None),
        "the stage's times are reset"
    );
    assert_eq!(requested.duty(), Duty::PrepareRetry);
    assert_eq!(requested.directive(), Directive::Stop);
    assert!(requested.prepares(Attempt(2)) && !requested.prepares(Attempt(1)));

    let again = |event| requested.after(event, Timestamp(9));
    assert_eq!(
        again(retry(&[Outcome::NotFound, Outcome::Expired], None)),
        Ok(None)
    );
    let other = again(retry(&[Outcome::NotFound], None)).unwrap_err();
    assert!(
        other
            .to_string()
            .contains("another retry is being prepared"),
        "{other}"
    );
    let settled = Event::AllSettled {
        counts: Counts::default(),
    };
    assert!(again(settled).is_err());

    let paused = step(&requested, Event::PauseRequested { reason: "p".into() });
    assert_eq!(paused.duty(), Duty::Nothing);
    assert!(!paused.prepares(Attempt(2)));
    let resumed = step(
        &paused,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    );
    assert_eq!(resumed.duty(), Duty::PrepareRetry);
    let aborted = step(&resumed, Event::AbortRequested { reason: "a".into() });
    assert_eq!((aborted.duty(), aborted.retry), (Duty::SkipRemaining, None));

    let prepared = step(&requested, Event::RetryPrepared);
    assert_eq!(prepared.duty(), Duty::ReleaseBatches);
    assert_eq!(prepared.directive(), Directive::Continue);
    assert_eq!(prepared.after(Event::RetryPrepared, Timestamp(9)), Ok(None));
    let third = step(&prepared, retry(&[Outcome::Enqueued], Some("s")));
    assert_eq!(third.attempt, Attempt(3));
}

#[test]
fn retry_of_other_stage_does_not_change_current_stage() {
    let stage = || StageName::new("s").unwrap();
    let running = staged();
    assert!(
        running
            .after(retry(&[Outcome::Expired], Some("rest")), Timestamp(9))
            .is_err()
    );
    let passed = Event::StagePassed {
        stage: stage(),
        reason: "g".into(),
    };
    let second = step(&running, passed);
    let retried = step(&second, retry(&[Outcome::Expired], Some("s")));
    assert!(
        retried.stages[0].passed_at.is_some(),
        "the stage remains passed"
    );
    assert_eq!(retried.stages, second.stages);
    assert!(
        second
            .after(retry(&[Outcome::Delivered], None), Timestamp(9))
            .is_err()
    );

    let settled = Event::AllSettled {
        counts: Counts::default(),
    };
    let ended = step(&second, settled);
    let again = step(&ended, retry(&[Outcome::Expired], None));
    assert_eq!(again.phase, Phase::Running);
    let text = serde_json::to_string(&again).unwrap();
    let read: Rollout = serde_json::from_str(&text).unwrap();
    let notes = again.notes.clone();
    assert_eq!(Rollout { notes, ..read }, again);
}

#[test]
fn records_without_attempt_read_as_first_attempt() {
    let mut record = serde_json::to_value(staged()).unwrap();
    record.as_object_mut().unwrap().remove("attempt").unwrap();
    let rollout: Rollout = serde_json::from_value(record).unwrap();
    assert_eq!((rollout.attempt, rollout.retry), (Attempt(1), None));
}

#[test]
fn wait_reason_is_reported_until_planning() {
    let text =
        "{name: a, concurrency: {group: g}, target: {all: true}, message: {body: {text: hi}}}";
    let spec = RolloutSpec::read("x", text).unwrap();
    let accepted = Rollout::accepted(spec, Default::default(), Timestamp(5));
    let queued = |behind: &str| Event::Queued {
        behind: RolloutName::new(behind).unwrap(),
    };
    let after = |rollout: &Rollout, event| rollout.after(event, Timestamp(6)).unwrap();
    assert_eq!(accepted.waits_to_be_planned(), None);
    let waits = after(&accepted, queued("b")).unwrap();
    assert_eq!(
        waits.waits_to_be_planned().unwrap().to_string(),
        "rollout b, which is ahead of it in concurrency group g"
    );
    assert_eq!(
        (after(&waits, queued("b")), waits.changed_at),
        (None, Timestamp(5))
    );
    let reason = "r".to_owned();
    for event in [Event::PlanningStarted, Event::AbortRequested { reason }] {
        assert_eq!(after(&waits, event).unwrap().queued_behind, None);
    }
}

#[test]
fn records_keep_a_bounded_history_and_read_back() {
    let spec = RolloutSpec::read(
        "x",
        "{name: a, target: {all: true}, message: {body: {text: hi}}}",
    )
    .unwrap();
    let mut rollout = Rollout::accepted(spec, Default::default(), Timestamp(5));
    rollout = rollout
        .after(Event::PlanningStarted, Timestamp(6))
        .unwrap()
        .unwrap();
    rollout = rollout
        .after(Event::PlanningStarted, Timestamp(7))
        .unwrap()
        .unwrap();
    assert_eq!((rollout.version, rollout.plan_id), (Version(3), PlanId(2)));
    rollout = rollout.after(plan(2), Timestamp(8)).unwrap().unwrap();
    for i in 0..300 {
        rollout = rollout
            .after(
                Event::PauseRequested {
                    reason: i.to_string(),
                },
                Timestamp(9),
            )
            .unwrap()
            .unwrap();
        assert_eq!(
            rollout.after(Event::PauseRequested { reason: "x".into() }, Timestamp(9)),
            Ok(None)
        );
        rollout = rollout
            .after(
                Event::ResumeRequested {
                    attribution: Attribution::default(),
                },
                Timestamp(9),
            )
            .unwrap()
            .unwrap();
    }
    // Two tries at planning, and the operators' actions.
    assert_eq!(rollout.history.len(), 2 + 2 + 600);
    let text = serde_json::to_string(&rollout).unwrap();
    let read: Rollout = serde_json::from_str(&text).unwrap();
    let notes = rollout.notes.clone();
    assert_eq!(Rollout { notes, ..read }, rollout);
}

#[test]
fn event_attribution_is_optional() {
    let event = |text: &str| serde_json::from_str::<Event>(text).unwrap();
    let resumed = |by: Option<&str>| Event::ResumeRequested {
        attribution: Attribution {
            by: by.map(str::to_owned),
            reason: None,
        },
    };
    let text = r#"{"event":"resume_requested","by":"ann"}"#;
    assert_eq!(event(text), resumed(Some("ann")));
    assert_eq!(serde_json::to_string(&resumed(Some("ann"))).unwrap(), text);
    assert_eq!(event(r#"{"event":"resume_requested"}"#), resumed(None));
}

/// A pause requested before there is a plan takes effect before the first send, whatever happens in
/// between.
#[test]
fn pause_is_kept_until_plan_is_complete() {
    let paused = || Event::PauseRequested { reason: "p".into() };
    let resumed = || Event::ResumeRequested {
        attribution: Attribution::default(),
    };
    let spec = staged().spec;
    let accepted = Rollout::accepted(spec, Default::default(), Timestamp(5));
    let planning = step(&accepted, Event::PlanningStarted);
    for before in [step(&accepted, paused()), step(&planning, paused())] {
        let again = Event::PauseRequested { reason: "q".into() };
        assert_eq!(before.after(again, Timestamp(9)), Ok(None));
        let planned = step(&step(&before, Event::PlanningStarted), plan(2));
        assert_eq!(planned.phase, Phase::Paused { reason: "p".into() });
        assert_eq!(
            (planned.directive(), planned.pause_after_planning.as_ref()),
            (Directive::Stop, None)
        );
        assert_eq!(step(&planned, resumed()).phase, Phase::Running);
        // The pause is taken back, or the rollout is aborted, before the plan is complete.
        let continued = step(&step(&before, resumed()), Event::PlanningStarted);
        assert_eq!(step(&continued, plan(2)).phase, Phase::Running);
        let aborted = step(&before, Event::AbortRequested { reason: "a".into() });
        assert_eq!(aborted.pause_after_planning, None);
        assert_eq!(aborted.phase, Phase::Aborting { reason: "a".into() });
    }
}
