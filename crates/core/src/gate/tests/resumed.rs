//! Failures right after a resume: reports of the time before may be missing.

use super::*;
use crate::answer::Answered;
use crate::ids::StageIndex;
use crate::spec::EVIDENCE_WITHIN;

const PAUSED: Timestamp = Timestamp(START.0 + 60_000);
const RESUMED: Timestamp = Timestamp(START.0 + 3_600_000);

fn resumed(rollout: &Rollout) -> Rollout {
    let reason = "a test".to_owned();
    let paused = match rollout.phase.as_str() {
        "paused" => rollout.clone(),
        _ => changed(rollout, Event::PauseRequested { reason }, PAUSED),
    };
    let attribution = Attribution::default();
    changed(&paused, Event::ResumeRequested { attribution }, RESUMED)
}

fn changed(rollout: &Rollout, event: Event, at: Timestamp) -> Rollout {
    rollout.after(event, at).unwrap().unwrap()
}

/// Evidence that covers reports until `heard_until`.
fn heard_until(heard_until: Timestamp) -> Evidence {
    let watermark = Watermark {
        heard_until: Some(heard_until),
        batching: Duration::ZERO,
        obstacle: None,
    };
    Evidence::of([(HubName::new("eu").unwrap(), watermark)])
}

fn no_listener() -> Evidence {
    Evidence::of([(HubName::new("eu").unwrap(), Watermark::of(&[], RESUMED))])
}

/// Returns the next step of a rollout that owes sends.
fn next_step(rollout: &mut Rollout, counts: &Counts, evidence: &Evidence, at: Timestamp) -> Next {
    rollout.advance_clock(evidence, at);
    let seen = ObservedState {
        stage: counts,
        all: counts,
        sends_owed: true,
        applied_count: None,
        unanswered: 0,
        recorded: true,
        evidence,
    };
    next(rollout, seen, at)
}

fn is_failure(next: &Next) -> bool {
    matches!(next, Next::Apply(Event::GateFailed { .. }))
}

fn awaited_evidence(next: &Next) -> Option<(u64, &str)> {
    match next {
        Next::Wait(Waiting::Evidence { devices, obstacles }) => Some((*devices, obstacles)),
        _ => None,
    }
}

#[test]
fn failure_waits_for_reports_of_the_time_before_the_resume() {
    let rollout = staged("counts: delivered, failure_above: 30%, min_sample: 3");
    let bad = counts(10, "3 enqueued, 1 delivered, 2 rejected");
    let mut rollout = resumed(&happened(&rollout, &bad, PAUSED));
    let (before, until) = (heard_until(PAUSED), heard_until(RESUMED));
    let at = RESUMED.plus(Duration::from_secs(1));
    let waits = next_step(&mut rollout, &bad, &before, at);
    assert_eq!(awaited_evidence(&waits), Some((3, "")), "{waits:?}");
    let mut repaired = rollout.clone();
    let good = counts(10, "5 delivered, 2 rejected");
    assert_eq!(next_step(&mut repaired, &good, &until, at), Next::Send);
    let failed = next_step(&mut rollout, &bad, &until, at);
    assert!(is_failure(&failed), "{failed:?}");
}

/// Once the reports are received, a later failure does not wait, even without a listener.
#[test]
fn later_failure_does_not_wait() {
    let rollout = staged("counts: delivered, failure_above: 30%, min_sample: 3");
    let good = counts(10, "3 enqueued, 3 delivered");
    let mut rollout = resumed(&rollout);
    let until = heard_until(RESUMED);
    assert_eq!(next_step(&mut rollout, &good, &until, RESUMED), Next::Send);
    let bad = counts(10, "3 delivered, 3 rejected");
    let failed = next_step(&mut rollout, &bad, &no_listener(), RESUMED);
    assert!(is_failure(&failed), "{failed:?}");
}

/// A failure before any pause does not wait: the results stem from this run.
#[test]
fn failure_without_a_pause_does_not_wait() {
    let mut rollout = staged("counts: delivered, failure_above: 30%, min_sample: 3");
    let bad = counts(10, "3 delivered, 3 rejected");
    let failed = next_step(&mut rollout, &bad, &no_listener(), PAUSED);
    assert!(is_failure(&failed), "{failed:?}");
}

#[test]
fn failure_waits_no_longer_than_evidence_within() {
    let mut rollout = resumed(&staged(
        "counts: delivered, failure_above: 30%, min_sample: 3",
    ));
    let bad = counts(10, "3 enqueued, 1 delivered, 2 rejected");
    let (pass, evidence) = (Duration::from_secs(10), no_listener());
    let mut at = RESUMED;
    while at.since(RESUMED) < EVIDENCE_WITHIN {
        let waits = next_step(&mut rollout, &bad, &evidence, at);
        let obstacle = "hub eu: no worker listens to its feedback";
        assert_eq!(awaited_evidence(&waits), Some((3, obstacle)), "{at:?}");
        at = at.plus(pass);
    }
    let failed = next_step(&mut rollout, &bad, &evidence, at);
    assert!(is_failure(&failed), "{failed:?}");
}

/// Answers of devices are counted by queries, apart from the feedback.
#[test]
fn failure_waits_for_a_count_of_answers() {
    let spec = "{name: a, target: {all: true}, message: {body: {text: x}, ack: full}, \
         answers: true, stages: [{name: canary, percent: 10%, \
         gate: {counts: applied, failure_above: 30%, min_sample: 3}}]}";
    let mut rollout = resumed(&planned(spec));
    assert!(rollout.gate_counts_answers());
    let bad = counts(10, "3 delivered, 3 failed");
    let until = heard_until(RESUMED);
    let mut count = |asked_at| {
        let answered = Answered {
            failed: 3,
            asked_at,
            ..Answered::default()
        };
        rollout.notes.answers.note(StageIndex(0), answered);
        next_step(&mut rollout, &bad, &until, RESUMED)
    };
    let waits = count(PAUSED);
    assert!(awaited_evidence(&waits).is_some(), "{waits:?}");
    let failed = count(RESUMED);
    assert!(is_failure(&failed), "{failed:?}");
}

/// The stage of late joiners has a failure rule, and no other conditions.
#[test]
fn failure_of_late_joiners_waits() {
    let spec = "{name: a, target: {all: true}, message: {body: {text: x}, ack: full}, \
         continuous: {}, stages: [{name: canary, percent: 10%, \
         gate: {counts: delivered, failure_above: 30%, min_sample: 3}}]}";
    let mut rollout = planned(spec);
    for (index, stage) in rollout.stages.iter_mut().enumerate() {
        stage.started_at = Some(START);
        stage.passed_at = Some(START).filter(|_| index < 2);
    }
    let mut rollout = resumed(&rollout);
    assert!(rollout.is_at_late_stage(), "{:?}", rollout.stages);
    let bad = counts(10, "3 enqueued, 1 delivered, 2 rejected");
    let waits = next_step(&mut rollout, &bad, &heard_until(PAUSED), RESUMED);
    assert!(awaited_evidence(&waits).is_some(), "{waits:?}");
    let failed = next_step(&mut rollout, &bad, &heard_until(RESUMED), RESUMED);
    assert!(is_failure(&failed), "{failed:?}");
}
