use proptest::prelude::*;

use super::*;
use crate::ids::StageName;
use crate::rollout::{Event, Rollout, Word};
use crate::spec::{OnFailure, RolloutSpec};

const START: Timestamp = Timestamp(1_000_000);

fn minutes(n: u64) -> Timestamp {
    START.plus(Duration::from_secs(60 * n))
}

fn gate(text: &str) -> Gate {
    let spec = format!(
        "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full}}, \
         stages: [{{name: s, gate: {{{text}}}}}]}}"
    );
    let spec = RolloutSpec::read("x", &spec).unwrap();
    spec.stages[0].gate.clone().unwrap()
}

/// `"90 enqueued, 5 not_found"`; the rest of `all` is pending.
fn counts(all: u64, text: &str) -> Counts {
    let mut counts = Counts::pending(all);
    for part in text.split(", ").filter(|part| !part.is_empty()) {
        let (number, outcome) = part.split_once(' ').unwrap();
        let outcome = Outcome::ALL
            .into_iter()
            .find(|o| o.as_str() == outcome)
            .unwrap();
        for _ in 0..number.parse::<u64>().unwrap() {
            counts.shift(Outcome::Pending, outcome);
        }
    }
    counts
}

fn sent(at: Timestamp) -> StageProgress {
    StageProgress {
        started_at: Some(START),
        sent_at: Some(at),
        ..StageProgress::new(StageName::new("s").unwrap())
    }
}

/// What a gate says to a stage of 100 devices, some minutes after it was sent.
fn says(text: &str, outcomes: &str, after: u64) -> String {
    says_of(&gate(text), &counts(100, outcomes), None, after)
}

fn says_of(gate: &Gate, counts: &Counts, measured: Option<Measured>, after: u64) -> String {
    let progress = if counts.unsettled() > 0 {
        StageProgress {
            sent_at: None,
            ..sent(START)
        }
    } else {
        sent(START)
    };
    let view = View {
        gate,
        counts,
        progress: &progress,
        measured,
        ttl: None,
    };
    match judge(view, minutes(after)) {
        Verdict::Passed { because } => format!("passed: {because}"),
        Verdict::Failed { because } => format!("failed: {because}"),
        Verdict::Undecided { because } => format!("undecided: {because}"),
        Verdict::Waits(waits) => format!("waits for {waits}"),
        Verdict::Measure => "measure".to_owned(),
    }
}

#[test]
fn rules_and_their_edges() {
    let table = [
        // Success: this share or more.
        (
            "success_at_least: 95%",
            "95 enqueued, 5 not_found",
            0,
            "passed: 95 of 100 devices enqueued, 5 failed, 0 silent",
        ),
        (
            "success_at_least: 95%",
            "94 enqueued, 6 not_found",
            0,
            "failed: 6 of 100 devices failed (6.0%), so that 95% cannot be enqueued any more",
        ),
        (
            "success_at_least: 95%",
            "40 enqueued, 6 not_found",
            0,
            "failed: 6 of 100 devices failed (6.0%), so that 95% cannot be enqueued any more",
        ),
        (
            "success_at_least: 95%",
            "40 enqueued, 5 not_found",
            0,
            "waits for 55 devices to be sent to",
        ),
        (
            "success_at_least: 100%",
            "100 enqueued",
            0,
            "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
        ),
        // Failure: strictly above, from the smallest sample on.
        (
            "failure_above: 5%",
            "95 enqueued, 5 refused",
            0,
            "passed: 95 of 100 devices enqueued, 5 failed, 0 silent",
        ),
        (
            "failure_above: 5%",
            "94 enqueued, 6 refused",
            0,
            "failed: 6 of 100 measured devices failed (6.0%), more than 5%",
        ),
        (
            "failure_above: 5%, min_sample: 20",
            "18 enqueued, 1 refused",
            0,
            "waits for 81 devices to be sent to",
        ),
        (
            "failure_above: 5%, min_sample: 20",
            "19 enqueued, 1 refused",
            0,
            "waits for 80 devices to be sent to",
        ),
        (
            "failure_above: 5%, min_sample: 20",
            "18 enqueued, 2 refused",
            0,
            "failed: 2 of 20 measured devices failed (10.0%), more than 5%",
        ),
        (
            "failure_above: 5%, min_sample: 1",
            "1 refused",
            0,
            "failed: 1 of 1 measured devices failed (100.0%), more than 5%",
        ),
        (
            "failure_above: 0%, min_sample: 1",
            "99 enqueued, 1 unknown",
            0,
            "failed: 1 of 100 measured devices failed (1.0%), more than 0%",
        ),
        (
            "failure_above: 100%",
            "100 not_found",
            0,
            "passed: 0 of 100 devices enqueued, 100 failed, 0 silent",
        ),
        // A sample larger than the stage is the stage.
        (
            "failure_above: 5%, min_sample: 1000",
            "90 enqueued, 10 refused",
            0,
            "failed: 10 of 100 measured devices failed (10.0%), more than 5%",
        ),
        // Everything fails at once.
        (
            "failure_above: 5%",
            "100 refused",
            0,
            "failed: 100 of 100 measured devices failed (100.0%), more than 5%",
        ),
        (
            "success_at_least: 1%",
            "100 refused",
            0,
            "failed: 100 of 100 devices failed (100.0%), so that 1% cannot be enqueued any more",
        ),
        // What the hub took counts as enqueued, whatever the device did then.
        (
            "success_at_least: 95%",
            "92 delivered, 8 rejected",
            0,
            "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
        ),
        (
            "counts: delivered, success_at_least: 95%",
            "92 delivered, 8 rejected",
            0,
            "failed: 8 of 100 devices failed (8.0%), so that 95% cannot be delivered any more",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "10 delivered, 2 rejected, 88 enqueued",
            0,
            "waits for 88 silent devices to be heard of, until 1970-01-01T01:16:40Z",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "18 delivered, 2 rejected, 80 enqueued",
            0,
            "failed: 2 of 20 measured devices failed (10.0%), more than 5%",
        ),
        // Silent devices: waited for until the deadline (1h, or the message's own), and not longer than they matter.
        (
            "counts: delivered, success_at_least: 90%",
            "89 delivered, 11 enqueued",
            59,
            "waits for 11 silent devices to be heard of, until 1970-01-01T01:16:40Z",
        ),
        (
            "counts: delivered, success_at_least: 90%",
            "90 delivered, 10 enqueued",
            0,
            "passed: 90 of 100 devices delivered, 0 failed, 10 silent",
        ),
        (
            "counts: delivered, success_at_least: 90%",
            "89 delivered, 11 enqueued",
            60,
            "failed: 89 of 100 devices delivered (89.0%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
            "89 delivered, 11 enqueued",
            60,
            "passed: 89 of 100 devices delivered, 0 failed, 11 silent",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
            "80 delivered, 9 rejected, 11 enqueued",
            60,
            "failed: 80 of 89 devices delivered (89.9%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: as_failed",
            "89 delivered, 11 enqueued",
            60,
            "failed: 89 of 100 devices delivered (89.0%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: as_succeeded",
            "1 delivered, 99 enqueued",
            60,
            "passed: 1 of 100 devices delivered, 0 failed, 99 silent",
        ),
        (
            "counts: delivered, failure_above: 10%, unconfirmed: as_failed",
            "89 delivered, 11 enqueued",
            60,
            "failed: 11 of 100 measured devices failed (11.0%), more than 10%",
        ),
        (
            "counts: delivered, success_at_least: 90%, deadline: 2m",
            "80 delivered, 9 rejected, 11 enqueued",
            2,
            "failed: 80 of 100 devices delivered (80.0%), less than 90%",
        ),
        // Nothing was measured: no pass.
        (
            "counts: delivered, success_at_least: 0%",
            "100 enqueued",
            0,
            "waits for 100 silent devices to be heard of, until 1970-01-01T01:16:40Z",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "100 enqueued",
            60,
            "failed: nothing was measured: all 100 devices are silent",
        ),
        (
            "failure_above: 5%",
            "100 skipped",
            0,
            "failed: no device was left to measure",
        ),
        // Skipped devices do not count.
        (
            "success_at_least: 95%",
            "19 enqueued, 1 refused, 80 skipped",
            0,
            "passed: 19 of 20 devices enqueued, 1 failed, 0 silent",
        ),
        // The bake begins when all is sent; the failure rule stays armed.
        (
            "bake: 30m, failure_above: 5%",
            "100 enqueued",
            29,
            "waits for the end of its bake at 1970-01-01T00:46:40Z",
        ),
        (
            "bake: 30m, failure_above: 5%",
            "100 enqueued",
            30,
            "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
        ),
        (
            "bake: 30m, counts: delivered, failure_above: 5%",
            "94 delivered, 6 rejected",
            29,
            "failed: 6 of 100 measured devices failed (6.0%), more than 5%",
        ),
        (
            "bake: 30m",
            "100 refused",
            29,
            "waits for the end of its bake at 1970-01-01T00:46:40Z",
        ),
        ("bake: 30m", "100 refused", 30, "passed: its bake is over"),
        // Approval comes last.
        (
            "approval: {}, bake: 5m",
            "100 enqueued",
            4,
            "waits for the end of its bake at 1970-01-01T00:21:40Z",
        ),
        (
            "approval: {}, bake: 5m",
            "100 enqueued",
            5,
            "waits for an approval",
        ),
        // Applied: asked for when the bake is over.
        (
            "counts: applied, applied_when: x = 1, bake: 5m, success_at_least: 90%",
            "100 delivered",
            4,
            "waits for the end of its bake at 1970-01-01T00:21:40Z",
        ),
        (
            "counts: applied, applied_when: x = 1, bake: 5m, success_at_least: 90%",
            "100 delivered",
            5,
            "measure",
        ),
        (
            "counts: applied, applied_when: x = 1, failure_above: 5%",
            "50 enqueued, 3 refused",
            0,
            "failed: 3 of 53 measured devices failed (5.7%), more than 5%",
        ),
    ];
    for (text, outcomes, after, expected) in table {
        assert_eq!(
            says(text, outcomes, after),
            expected,
            "{text} with {outcomes} after {after}m"
        );
    }
}

#[test]
fn a_stage_without_devices_does_not_pass_by_measuring_nothing() {
    for text in [
        "failure_above: 5%",
        "success_at_least: 0%",
        "counts: delivered, success_at_least: 95%",
    ] {
        let says = says_of(&gate(text), &Counts::default(), None, 0);
        assert_eq!(says, "failed: no device was left to measure", "{text}");
    }
}

#[test]
fn what_is_applied_is_measured_again_until_the_deadline() {
    let gate = gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
    let counts = counts(100, "100 delivered");
    let says = |applied, at, after| {
        let measured = Measured {
            applied,
            at: minutes(at),
        };
        says_of(&gate, &counts, Some(measured), after)
    };
    assert_eq!(
        says(90, 0, 0),
        "passed: 90 of 100 devices applied, 0 failed, 10 silent"
    );
    assert_eq!(
        says(89, 0, 0),
        "waits for 11 silent devices to be heard of, until 1970-01-01T00:26:40Z"
    );
    assert_eq!(says(89, 0, 1), "measure");
    assert_eq!(says(89, 9, 10), "measure", "once more at the deadline");
    assert_eq!(
        says(89, 10, 10),
        "failed: 89 of 100 devices applied (89.0%), less than 90%"
    );
    assert_eq!(
        says(0, 10, 10),
        "failed: nothing was measured: all 100 devices are silent"
    );
}

#[test]
fn an_approval_is_waited_for_as_long_as_the_gate_says() {
    let gate = gate("approval: {within: 1h}");
    let counts = counts(1, "1 enqueued");
    let mut progress = sent(START);
    let says = |progress: &StageProgress, after| {
        let view = View {
            gate: &gate,
            counts: &counts,
            progress,
            measured: None,
            ttl: None,
        };
        judge(view, minutes(after))
    };
    assert_eq!(
        says(&progress, 0),
        Verdict::Waits(WaitsFor::ApprovalToBeNoted)
    );
    progress.ripe_at = Some(minutes(5));
    assert_eq!(
        says(&progress, 64),
        Verdict::Waits(WaitsFor::Approval {
            until: Some(minutes(65))
        })
    );
    assert!(
        matches!(says(&progress, 65), Verdict::Failed { because } if because.starts_with("nobody approved until"))
    );
    progress.approved = Some(Word {
        by: Some("ann".into()),
        reason: Some("looks well".into()),
    });
    assert_eq!(
        says(&progress, 99),
        Verdict::Passed {
            because: "approved by ann (looks well)".into()
        }
    );
}

/// A rollout of two stages that runs, and what its stages' events are.
fn staged(gate: &str) -> Rollout {
    let spec = format!(
        "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full}}, \
         stages: [{{name: canary, percent: 10%, gate: {{{gate}}}}}]}}"
    );
    let spec = RolloutSpec::read("x", &spec).unwrap();
    let mut rollout = Rollout::accepted(spec, Default::default(), START);
    let plan = serde_json::from_value(serde_json::json!({
        "devices": 100, "batches": 2, "digest": "", "hubs": [], "excluded": [], "repeated": 0, "stages": []
    }));
    for event in [
        Event::PlanningStarted,
        Event::PlanCompleted {
            plan: plan.unwrap(),
        },
    ] {
        rollout = rollout.after(event, START).unwrap().unwrap();
    }
    rollout
}

fn happened(rollout: &Rollout, counts: &Counts, at: Timestamp) -> Rollout {
    match next(rollout, counts, counts.unsettled() > 0, None, at) {
        Next::Happened(event) => rollout.after(event, at).unwrap().unwrap(),
        other => panic!("nothing happened: {other:?}"),
    }
}

#[test]
fn a_stage_goes_through_its_gate_to_the_next() {
    let rollout = staged("failure_above: 5%, approval: {}");
    let all = counts(10, "10 enqueued");
    assert_eq!(
        next(&rollout, &counts(10, ""), true, None, START),
        Next::Send
    );
    let rollout = happened(&rollout, &all, minutes(1));
    assert_eq!(rollout.stages[0].sent_at, Some(minutes(1)));
    let rollout = happened(&rollout, &all, minutes(2));
    assert_eq!(rollout.stages[0].ripe_at, Some(minutes(2)));
    let waits = next(&rollout, &all, false, None, minutes(3));
    assert_eq!(waits, Next::Wait(WaitsFor::Approval { until: None }));
    let word = Word {
        by: Some("ann".into()),
        reason: None,
    };
    let stage = StageName::new("canary").unwrap();
    let approved = Event::Approved {
        stage: stage.clone(),
        word: word.clone(),
    };
    let rollout = rollout
        .after(approved.clone(), minutes(4))
        .unwrap()
        .unwrap();
    assert_eq!(
        rollout.after(approved.clone(), minutes(4)),
        Ok(None),
        "said twice"
    );
    let rollout = happened(&rollout, &all, minutes(5));
    assert_eq!(
        (rollout.stage().0, rollout.stages[0].passed_at),
        (1, Some(minutes(5)))
    );
    assert_eq!(rollout.stages[1].started_at, Some(minutes(5)));
    assert_eq!(
        rollout.after(approved, minutes(6)),
        Ok(None),
        "it has passed"
    );
    // The last stage has no gate.
    assert_eq!(
        next(&rollout, &counts(90, ""), true, None, minutes(6)),
        Next::Send
    );
    assert_eq!(
        next(
            &rollout,
            &counts(90, "90 enqueued"),
            false,
            None,
            minutes(6)
        ),
        Next::Over
    );
    let other = Event::Approved {
        stage: StageName::new("rest").unwrap(),
        word,
    };
    assert!(
        staged("bake: 1h").after(other, START).is_err(),
        "its time has not come"
    );
}

#[test]
fn a_gate_that_failed_stops_and_is_asked_again() {
    let rollout = staged("failure_above: 5%, approval: {}");
    let bad = counts(10, "8 enqueued, 2 refused");
    let mut rollout = happened(&rollout, &bad, minutes(1));
    let reason = rollout.phase.reason().unwrap().to_owned();
    assert_eq!(
        reason,
        "the gate of stage canary failed: 2 of 10 measured devices failed (20.0%), more than 5%"
    );
    rollout = rollout
        .after(
            Event::ResumeRequested {
                word: Word::default(),
            },
            minutes(2),
        )
        .unwrap()
        .unwrap();
    rollout = happened(&rollout, &bad, minutes(3));
    assert_eq!(rollout.phase.as_str(), "paused");
    let word = Word {
        by: Some("ann".into()),
        reason: Some("known, harmless".into()),
    };
    let stage = StageName::new("canary").unwrap();
    rollout = rollout
        .after(Event::Promoted { stage, word }, minutes(4))
        .unwrap()
        .unwrap();
    assert_eq!(rollout.phase.as_str(), "running");
    rollout = happened(&rollout, &bad, minutes(5));
    assert_eq!(rollout.stage().0, 1);
}

#[test]
fn a_gate_may_abort_or_be_only_a_warning() {
    let bad = counts(10, "8 enqueued, 2 refused");
    let rollout = happened(
        &staged("failure_above: 5%, on_failure: abort"),
        &bad,
        minutes(1),
    );
    assert_eq!(rollout.phase.as_str(), "aborting");
    let some = counts(10, "8 refused");
    let rollout = staged("failure_above: 5%, min_sample: 5, on_failure: continue");
    let rollout = happened(&rollout, &some, minutes(1));
    assert_eq!(rollout.phase.as_str(), "running");
    assert!(matches!(
        &rollout.history.last().unwrap().event,
        Event::GateFailed {
            then: OnFailure::Continue,
            ..
        }
    ));
    assert_eq!(
        next(&rollout, &some, true, None, minutes(2)),
        Next::Send,
        "told once"
    );
    let rollout = happened(&rollout, &bad, minutes(3));
    assert_eq!(rollout.stage().0, 1);
}

proptest! {
    /// A gate that measures never passes when too many failed, nor while something is to be sent, nor before
    /// its bake is over; and it always says something by its deadline.
    #[test]
    fn promises(
        numbers in prop::collection::vec(0u64..30, 6), above in 0u32..100, least in 0u32..100,
        delivered in any::<bool>(), unconfirmed in 0usize..4, after in 0u64..200,
    ) {
        let unconfirmed = ["neither", "left_out", "as_failed", "as_succeeded"][unconfirmed];
        let rung = if delivered { "delivered" } else { "enqueued" };
        let gate = gate(&format!("counts: {rung}, failure_above: {above}%, success_at_least: {least}%, \
            min_sample: 1, bake: 30m, deadline: 90m, unconfirmed: {unconfirmed}"));
        let names = ["pending", "not_found", "enqueued", "rejected", "delivered", "skipped"];
        let text: Vec<_> = names.iter().zip(&numbers).map(|(name, n)| format!("{n} {name}")).collect();
        let counts = counts(numbers.iter().sum(), &text.join(", "));
        let progress = sent(START);
        let view = View { gate: &gate, counts: &counts, progress: &progress, measured: None, ttl: None };
        let failed = numbers[1] + if delivered { numbers[3] } else { 0 };
        let succeeded = numbers[4] + if delivered { 0 } else { numbers[2] + numbers[3] };
        match judge(view, minutes(after)) {
            Verdict::Passed { .. } => {
                prop_assert!(numbers[0] == 0 && after >= 30);
                prop_assert!(failed * 100 <= u64::from(above) * (failed + succeeded));
                prop_assert!(unconfirmed == "as_succeeded" || failed + succeeded > 0 || unconfirmed == "as_failed");
            }
            Verdict::Waits(WaitsFor::Sends { left }) => prop_assert_eq!(left, numbers[0]),
            Verdict::Waits(WaitsFor::Silent { devices, .. }) => {
                prop_assert!(delivered && after < 90 && devices == numbers[2]);
            }
            Verdict::Waits(WaitsFor::Bake { .. }) => prop_assert!(after < 30),
            Verdict::Failed { .. } => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
