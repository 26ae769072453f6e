mod resumed;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::evidence::{Evidence, EvidenceClock, ListenerState, ListenerStatus, Watermark};
use crate::ids::{Holder, HubName, StageName};
use crate::outcome::{Counts, Outcome};
use crate::rollout::{Approval, Attribution, Event, Rollout, StageProgress};
use crate::spec::{Gate, OnFailure, RolloutSpec};
use crate::time::Timestamp;
use crate::waiting::Waiting;

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

/// Parses `"90 enqueued, 5 not_found"`; the rest of `all` is pending.
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

/// Returns the verdict of a gate on a stage of 100 devices, `after` minutes after the last send.
fn says(text: &str, outcomes: &str, after: u64) -> String {
    says_of(&gate(text), &counts(100, outcomes), None, after)
}

fn says_of(
    gate: &Gate,
    counts: &Counts,
    applied_count: Option<AppliedCount>,
    after: u64,
) -> String {
    let progress = if counts.unsettled() > 0 {
        StageProgress {
            sent_at: None,
            ..sent(START)
        }
    } else {
        sent(START)
    };
    let evidence = &Evidence::complete();
    describe(
        gate,
        counts,
        &progress,
        applied_count,
        evidence,
        minutes(after),
    )
}

/// A clock with all time counted since the last send of the stage.
fn baked_until(at: Timestamp) -> EvidenceClock {
    let mut clock = EvidenceClock::default();
    clock.start_bake(START);
    let mut now = START;
    while now < at {
        now = now.plus(Duration::from_secs(10)).min(at);
        clock.advance(true, &Evidence::complete(), now);
    }
    clock
}

fn describe(
    gate: &Gate,
    counts: &Counts,
    progress: &StageProgress,
    applied_count: Option<AppliedCount>,
    evidence: &Evidence,
    at: Timestamp,
) -> String {
    let view = StageView {
        answer_time: Duration::ZERO,
        by_answers: false,
        sends_owed: false,
        gate,
        counts,
        progress,
        applied_count,
        ttl: None,
        evidence,
        clock: &baked_until(at),
    };
    match judge(view, at) {
        Verdict::Passed { reason } => format!("passed: {reason}"),
        Verdict::Failed { reason } => format!("failed: {reason}"),
        Verdict::Undecided { reason } => format!("undecided: {reason}"),
        Verdict::Waiting(waits) => format!("waits for {waits}"),
        Verdict::QueryTwins => "measure".to_owned(),
    }
}

#[test]
fn gate_rules_hold_at_bounds() {
    let table = [
        // Success rule: this share or more.
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
            "failed: 6 of 100 devices failed (6.0%), so 95% can no longer be enqueued",
        ),
        (
            "success_at_least: 95%",
            "40 enqueued, 6 not_found",
            0,
            "failed: 6 of 100 devices failed (6.0%), so 95% can no longer be enqueued",
        ),
        (
            "success_at_least: 95%",
            "40 enqueued, 5 not_found",
            0,
            "waits for sends to 55 devices",
        ),
        (
            "success_at_least: 100%",
            "100 enqueued",
            0,
            "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
        ),
        // Failure rule: strictly above this share, from the smallest sample on.
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
            "waits for sends to 81 devices",
        ),
        (
            "failure_above: 5%, min_sample: 20",
            "19 enqueued, 1 refused",
            0,
            "waits for sends to 80 devices",
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
        // A sample larger than the stage is the whole stage.
        (
            "failure_above: 5%, min_sample: 1000",
            "90 enqueued, 10 refused",
            0,
            "failed: 10 of 100 measured devices failed (10.0%), more than 5%",
        ),
        // All devices fail.
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
            "failed: 100 of 100 devices failed (100.0%), so 1% can no longer be enqueued",
        ),
        // A message accepted by the hub counts as enqueued, regardless of the device.
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
            "failed: 8 of 100 devices failed (8.0%), so 95% can no longer be delivered",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "10 delivered, 2 rejected, 88 enqueued",
            0,
            "waits for 88 silent devices, until 1970-01-01T01:17:10Z",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "18 delivered, 2 rejected, 80 enqueued",
            0,
            "failed: 2 of 20 measured devices failed (10.0%), more than 5%",
        ),
        // Silent devices are waited for until the deadline (1h 30s, or the gate's own), and only as
        // long as they matter.
        (
            "counts: delivered, success_at_least: 90%",
            "89 delivered, 11 enqueued",
            59,
            "waits for 11 silent devices, until 1970-01-01T01:17:10Z",
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
            61,
            "failed: 89 of 100 devices delivered (89.0%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
            "89 delivered, 11 enqueued",
            61,
            "passed: 89 of 100 devices delivered, 0 failed, 11 silent",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
            "80 delivered, 9 rejected, 11 enqueued",
            61,
            "failed: 80 of 89 devices delivered (89.9%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: as_failed",
            "89 delivered, 11 enqueued",
            61,
            "failed: 89 of 100 devices delivered (89.0%), less than 90%",
        ),
        (
            "counts: delivered, success_at_least: 90%, unconfirmed: as_succeeded",
            "1 delivered, 99 enqueued",
            61,
            "passed: 1 of 100 devices delivered, 0 failed, 99 silent",
        ),
        (
            "counts: delivered, failure_above: 10%, unconfirmed: as_failed",
            "89 delivered, 11 enqueued",
            61,
            "failed: 11 of 100 measured devices failed (11.0%), more than 10%",
        ),
        (
            "counts: delivered, success_at_least: 90%, deadline: 2m",
            "80 delivered, 9 rejected, 11 enqueued",
            2,
            "failed: 80 of 100 devices delivered (80.0%), less than 90%",
        ),
        // Without a measured device, a gate does not pass.
        (
            "counts: delivered, success_at_least: 0%",
            "100 enqueued",
            0,
            "waits for 100 silent devices, until 1970-01-01T01:17:10Z",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "100 enqueued",
            61,
            "undecided: the sample is too small: 0 of 100 devices measured, 100 silent; 20 are \
             needed",
        ),
        (
            "failure_above: 5%",
            "100 skipped",
            0,
            "undecided: the sample is too small: no device was left to measure",
        ),
        // Skipped devices do not count.
        (
            "success_at_least: 95%",
            "19 enqueued, 1 refused, 80 skipped",
            0,
            "passed: 19 of 20 devices enqueued, 1 failed, 0 silent",
        ),
        // The bake begins after the last send. The failure rule stays armed.
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
        ("bake: 30m", "100 refused", 30, "passed: the bake is over"),
        // The approval comes last.
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
        // With `applied`, twins are queried after the bake.
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
fn too_small_samples_do_not_pass_by_default() {
    let reject = "counts: delivered, failure_above: 5%, deadline: 20s";
    let table = [
        // Nine of ten devices reject the message and a device is silent: no answer can avert the
        // failure.
        (
            reject,
            10,
            "9 rejected, 1 enqueued",
            0,
            "failed: 9 of 10 devices failed (90.0%), more than 5%, regardless of the other devices",
        ),
        (
            reject,
            49,
            "19 rejected, 30 enqueued",
            0,
            "failed: 19 of 49 devices failed (38.8%), more than 5%, regardless of the other \
             devices",
        ),
        // A few failed devices are no sample while more devices can be measured. At the end, they
        // count.
        (
            reject,
            100,
            "5 rejected, 95 enqueued",
            0,
            "waits for 95 silent devices, until 1970-01-01T00:17:00Z",
        ),
        (
            reject,
            100,
            "5 rejected, 95 enqueued",
            1,
            "failed: 5 of 5 measured devices failed (100.0%), more than 5%",
        ),
        (
            reject,
            100,
            "19 delivered, 81 enqueued",
            1,
            "undecided: the sample is too small: 19 of 100 devices measured, 81 silent; 20 are \
             needed",
        ),
        (
            reject,
            100,
            "20 delivered, 80 enqueued",
            1,
            "passed: 20 of 100 devices delivered, 0 failed, 80 silent",
        ),
        // In a stage smaller than the sample, all devices are needed.
        (
            reject,
            10,
            "9 delivered, 1 enqueued",
            1,
            "undecided: the sample is too small: 9 of 10 devices measured, 1 silent; 10 are needed",
        ),
        (
            "counts: delivered, failure_above: 5%, deadline: 20s, too_little: pass",
            10,
            "9 delivered, 1 enqueued",
            1,
            "passed: 9 of 10 devices delivered, 0 failed, 1 silent",
        ),
        // Silent devices without influence on the verdict are not needed.
        (
            "counts: delivered, failure_above: 50%, success_at_least: 80%",
            10,
            "9 delivered, 1 enqueued",
            0,
            "passed: 9 of 10 devices delivered, 0 failed, 1 silent",
        ),
        // The success rule covers all devices, and also needs a large enough sample.
        (
            "counts: delivered, success_at_least: 90%, deadline: 20s",
            100,
            "19 delivered, 81 enqueued",
            1,
            "undecided: the sample is too small: 19 of 100 devices measured, 81 silent; 20 are \
             needed",
        ),
        (
            "counts: delivered, success_at_least: 90%, deadline: 20s",
            100,
            "20 delivered, 80 enqueued",
            1,
            "failed: 20 of 100 devices delivered (20.0%), less than 90%",
        ),
        // Silent devices counted by `unconfirmed` are measured devices.
        (
            "counts: delivered, failure_above: 5%, deadline: 20s, unconfirmed: as_failed",
            100,
            "100 enqueued",
            1,
            "failed: 100 of 100 measured devices failed (100.0%), more than 5%",
        ),
    ];
    for (text, all, outcomes, after, expected) in table {
        let says = says_of(&gate(text), &counts(all, outcomes), None, after);
        assert_eq!(says, expected, "{text} with {outcomes} after {after}m");
    }
}

/// Evidence of a hub with this watermark, or without a watermark.
fn evidence_until(until: Option<Timestamp>, now: Timestamp) -> Evidence {
    let state = ListenerState {
        listening: true,
        hidden_ms: 0,
        foreign: 37,
        batching_ms: 15_000,
        ..ListenerState::default()
    };
    let listener = ListenerStatus {
        listener: Holder::new("w").unwrap(),
        received_ago: until.map(|until| now.since(until)),
        reported_ago: Duration::ZERO,
        state,
    };
    let hub = HubName::new("main").unwrap();
    Evidence::of([(hub, Watermark::of(&[listener], now))])
}

#[test]
fn silence_counts_once_evidence_covers_deadline() {
    let gate = gate("counts: delivered, failure_above: 5%, deadline: 10m, on_failure: abort");
    let all = counts(100, "100 enqueued");
    let says = |until: Option<u64>, at: u64| {
        let at = START.plus(Duration::from_secs(at));
        let until = until.map(|until| START.plus(Duration::from_secs(until)));
        let evidence = evidence_until(until, at);
        describe(&gate, &all, &sent(START), None, &evidence, at)
    };
    let foreign = "waits for evidence of 100 silent devices: hub main: 37 feedback messages of \
         other applications are ahead in the queue";
    assert!(says(Some(598), 599).starts_with("waits for 100 silent devices"));
    assert_eq!(says(Some(599), 600), foreign, "the deadline is over");
    // The hub reports the device's actions at the deadline within 15 s.
    assert_eq!(says(Some(614), 616), foreign);
    let verdict = "undecided: the sample is too small: 0 of 100 devices measured, 100 silent; 20 \
         are needed";
    assert_eq!(says(Some(615), 616), verdict);
    assert_eq!(says(None, 7_200), foreign, "hours later");
}

#[test]
fn gate_is_undecided_after_missing_evidence_limit() {
    let gate = gate(
        "counts: delivered, failure_above: 5%, deadline: 10s, bake: 10m, evidence_within: 5m, \
         on_failure: abort",
    );
    let all = counts(10, "10 enqueued");
    let mut clock = EvidenceClock::default();
    clock.start_bake(START);
    let mut said = Vec::new();
    for seconds in (0..=420).step_by(10) {
        let now = START.plus(Duration::from_secs(seconds));
        // Feedback arrives for a minute and a half, and then no more.
        let until = now.min(START.plus(Duration::from_secs(90)));
        let evidence = evidence_until(Some(until), now);
        clock.advance(true, &evidence, now);
        let progress = sent(START);
        let view = StageView {
            answer_time: Duration::ZERO,
            by_answers: false,
            sends_owed: false,
            gate: &gate,
            counts: &all,
            progress: &progress,
            applied_count: None,
            ttl: None,
            evidence: &evidence,
            clock: &clock,
        };
        let verdict = match judge(view, now) {
            Verdict::Waiting(Waiting::Silent { .. }) => "silent".to_owned(),
            Verdict::Waiting(Waiting::Bake { .. }) => "bake".to_owned(),
            Verdict::Waiting(Waiting::Evidence { .. }) => "evidence".to_owned(),
            Verdict::Undecided { reason } => reason,
            other => format!("{other:?}"),
        };
        if said.last().is_none_or(|(_, last)| *last != verdict) {
            said.push((seconds, verdict));
        }
    }
    let missing_evidence = "not measured: no feedback for 5m 00s from 10 silent devices: hub main: 37 \
         feedback messages of other applications are ahead in the queue";
    // A minute without feedback is no outage yet.
    assert_eq!(
        said.iter()
            .map(|(at, verdict)| (*at, &**verdict))
            .collect::<Vec<_>>(),
        [
            (0, "silent"),
            (10, "evidence"),
            (30, "bake"),
            (160, "evidence"),
            (390, missing_evidence)
        ]
    );
}

#[test]
fn rollout_ends_after_final_answers_or_message_expiry() {
    let mut rollout = staged("failure_above: 5%");
    let all = counts(10, "10 delivered");
    rollout = happened(&rollout, &all, minutes(1));
    rollout = happened(&rollout, &all, minutes(1));
    let rest = counts(90, "80 delivered, 10 enqueued");
    rollout = happened(&rollout, &rest, minutes(2));
    assert_eq!(rollout.sent_at, Some(minutes(2)));
    let next = |until: u64, at: u64| {
        let seen = ObservedState {
            recorded: true,
            unanswered: 0,
            stage: &rest,
            all: &rest,
            sends_owed: false,
            applied_count: None,
            evidence: &evidence_until(Some(minutes(until)), minutes(at)),
        };
        next(&rollout, seen, minutes(at))
    };
    // An hour and 15 s after the last send. The evidence must cover this time, including the hub's
    // batching.
    let until = minutes(62).plus(Duration::from_secs(15));
    let waits = Next::Wait(Waiting::Answers { devices: 10, until });
    assert_eq!(next(3, 3), waits);
    assert_eq!(next(62, 62), waits);
    assert!(matches!(
        next(62, 63),
        Next::Wait(Waiting::Evidence { devices: 10, .. })
    ));
    assert_eq!(next(63, 63), Next::Over);
    let answered = counts(90, "80 delivered, 10 rejected");
    assert_eq!(
        next_with_complete_evidence(&rollout, &answered, false, minutes(3)),
        Next::Over
    );
}

#[test]
fn stage_without_devices_is_undecided() {
    for text in [
        "failure_above: 5%",
        "success_at_least: 0%",
        "counts: delivered, success_at_least: 95%",
    ] {
        let says = says_of(&gate(text), &Counts::default(), None, 0);
        let expected = "undecided: the sample is too small: no device was left to measure";
        assert_eq!(says, expected, "{text}");
    }
}

#[test]
fn applied_devices_are_counted_again_until_deadline() {
    let gate = gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
    let counts = counts(100, "100 delivered");
    let says = |applied, at, after| {
        let count = AppliedCount {
            applied,
            failed: 0,
            as_of: minutes(at),
            queried_at: minutes(at),
        };
        says_of(&gate, &counts, Some(count), after)
    };
    assert_eq!(
        says(90, 0, 0),
        "passed: 90 of 100 devices applied, 0 failed, 10 silent"
    );
    assert_eq!(
        says(89, 0, 0),
        "waits for 11 silent devices, until 1970-01-01T00:26:40Z"
    );
    assert_eq!(says(89, 0, 1), "measure");
    assert_eq!(says(89, 9, 10), "measure", "measured again");
    assert_eq!(
        says(89, 10, 10),
        "failed: 89 of 100 devices applied (89.0%), less than 90%"
    );
    assert_eq!(
        says(0, 10, 10),
        "undecided: the sample is too small: 0 of 100 devices measured, 100 silent; 20 are needed"
    );
}

#[test]
fn device_failing_after_measurement_is_not_applied() {
    let gate = gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
    let counts = counts(100, "97 delivered, 3 rejected");
    let says = |applied, failed, minute| {
        let count = AppliedCount {
            applied,
            failed,
            as_of: minutes(minute),
            queried_at: minutes(minute),
        };
        says_of(&gate, &counts, Some(count), minute)
    };
    let passed = |applied: u64| {
        let silent = 97 - applied;
        format!("passed: {applied} of 100 devices applied, 3 failed, {silent} silent")
    };
    // Before the query, all three devices had failed, a single device, or no device.
    assert_eq!(says(90, 3, 0), passed(90));
    assert_eq!(says(92, 1, 0), passed(90));
    assert_eq!(says(93, 0, 0), passed(90));
    let waits = "waits for 8 silent devices, until 1970-01-01T00:26:40Z";
    assert_eq!(says(92, 0, 0), waits);
    // Before the gate fails, the hub is queried about the remaining devices.
    assert_eq!(says(92, 0, 10), "measure");
    assert_eq!(
        says(89, 3, 10),
        "failed: 89 of 100 devices applied (89.0%), less than 90%"
    );
}

#[test]
fn approval_is_awaited_until_gate_limit() {
    let gate = gate("approval: {within: 1h}");
    let counts = counts(1, "1 enqueued");
    let mut progress = sent(START);
    let says = |progress: &StageProgress, after| {
        let view = StageView {
            answer_time: Duration::ZERO,
            by_answers: false,
            gate: &gate,
            counts: &counts,
            sends_owed: false,
            progress,
            applied_count: None,
            ttl: None,
            evidence: &Evidence::complete(),
            clock: &EvidenceClock::default(),
        };
        judge(view, minutes(after))
    };
    assert_eq!(
        says(&progress, 0),
        Verdict::Waiting(Waiting::ApprovalToBeNoted)
    );
    progress.approval_awaited_at = Some(minutes(5));
    assert_eq!(
        says(&progress, 64),
        Verdict::Waiting(Waiting::Approval {
            until: Some(minutes(65))
        })
    );
    assert!(
        matches!(says(&progress, 65), Verdict::Failed { reason } if reason.starts_with("no approval until"))
    );
    let approved_at = |minute| {
        let attribution = Attribution {
            by: Some("ann".into()),
            reason: Some("looks well".into()),
        };
        let at = minutes(minute);
        Some(Approval { attribution, at })
    };
    // No driver was running when the time was over: only the time of the approval counts.
    progress.approved = approved_at(65);
    assert!(matches!(says(&progress, 99), Verdict::Failed { .. }));
    progress.approved = approved_at(64);
    assert_eq!(
        says(&progress, 99),
        Verdict::Passed {
            reason: "approved by ann (looks well)".into()
        }
    );
}

/// A running rollout of two stages.
fn staged(gate: &str) -> Rollout {
    let spec = format!(
        "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full}}, \
         stages: [{{name: canary, percent: 10%, gate: {{{gate}}}}}]}}"
    );
    planned(&spec)
}

fn planned(spec: &str) -> Rollout {
    let spec = RolloutSpec::read("x", spec).unwrap();
    let mut rollout = Rollout::accepted(spec, Default::default(), START);
    let plan = serde_json::from_value(serde_json::json!({
        "devices": 100, "batches": 2, "digest": "", "checksum": {"batches": 0, "devices": 0, "sum": 0}, "hubs": [], "excluded": [], "repeated": 0, "stages": []
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
    match next_with_complete_evidence(rollout, counts, counts.unsettled() > 0, at) {
        Next::Apply(event) => rollout.after(event, at).unwrap().unwrap(),
        other => panic!("expected an event: {other:?}"),
    }
}

/// A retry may have reopened devices of a passed stage: these devices are sent to first.
#[test]
fn gate_is_not_undecided_while_sends_are_owed() {
    let rollout = staged("counts: delivered, failure_above: 5%");
    let skipped = counts(10, "10 skipped");
    let rollout = happened(&rollout, &skipped, minutes(1));
    let next = |owed| next_with_complete_evidence(&rollout, &skipped, owed, minutes(2));
    assert_eq!(next(true), Next::Send);
    assert!(matches!(
        next(false),
        Next::Apply(Event::GateUndecided { .. })
    ));
}

#[test]
fn stage_passes_gate_and_next_stage_starts() {
    let rollout = staged("failure_above: 5%, approval: {}");
    let all = counts(10, "10 enqueued");
    assert_eq!(
        next_with_complete_evidence(&rollout, &counts(10, ""), true, START),
        Next::Send
    );
    let rollout = happened(&rollout, &all, minutes(1));
    assert_eq!(rollout.stages[0].sent_at, Some(minutes(1)));
    let rollout = happened(&rollout, &all, minutes(2));
    assert_eq!(rollout.stages[0].approval_awaited_at, Some(minutes(2)));
    let waits = next_with_complete_evidence(&rollout, &all, false, minutes(3));
    assert_eq!(waits, Next::Wait(Waiting::Approval { until: None }));
    let attribution = Attribution {
        by: Some("ann".into()),
        reason: None,
    };
    let stage = StageName::new("canary").unwrap();
    let approved = Event::Approved {
        stage: stage.clone(),
        attribution: attribution.clone(),
    };
    let rollout = rollout
        .after(approved.clone(), minutes(4))
        .unwrap()
        .unwrap();
    assert_eq!(
        rollout.after(approved.clone(), minutes(4)),
        Ok(None),
        "approved twice"
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
        "the stage has passed"
    );
    // The last stage has no gate.
    assert_eq!(
        next_with_complete_evidence(&rollout, &counts(90, ""), true, minutes(6)),
        Next::Send
    );
    assert_eq!(
        next_with_complete_evidence(&rollout, &counts(90, "90 delivered"), false, minutes(6)),
        Next::Over
    );
    let other = Event::Approved {
        stage: StageName::new("rest").unwrap(),
        attribution,
    };
    assert!(
        staged("bake: 1h").after(other, START).is_err(),
        "the stage has not started"
    );
}

#[test]
fn failed_gate_pauses_and_is_judged_again_after_resume() {
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
                attribution: Attribution::default(),
            },
            minutes(2),
        )
        .unwrap()
        .unwrap();
    rollout.advance_clock(&Evidence::complete(), minutes(3));
    rollout = happened(&rollout, &bad, minutes(3));
    assert_eq!(rollout.phase.as_str(), "paused");
    let attribution = Attribution {
        by: Some("ann".into()),
        reason: Some("known, harmless".into()),
    };
    let stage = StageName::new("canary").unwrap();
    rollout = rollout
        .after(Event::Promoted { stage, attribution }, minutes(4))
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
        next_with_complete_evidence(&rollout, &some, true, minutes(2)),
        Next::Send,
        "the failure is recorded once"
    );
    let rollout = happened(&rollout, &bad, minutes(3));
    assert_eq!(rollout.stage().0, 1);
}

proptest! {
    /// A gate with shares never passes with too many failures, during sending, or before the end of
    /// the bake, and reaches a verdict by the deadline.
    #[test]
    fn verdicts_satisfy_gate_invariants(
        numbers in prop::collection::vec(0u64..30, 6), above in 0u32..100, least in 0u32..100,
        delivered in any::<bool>(), unconfirmed in 0usize..4, after in 0u64..200,
    ) {
        let unconfirmed = ["neither", "left_out", "as_failed", "as_succeeded"][unconfirmed];
        let level = if delivered { "delivered" } else { "enqueued" };
        let gate = gate(&format!("counts: {level}, failure_above: {above}%, success_at_least: {least}%, \
            min_sample: 1, bake: 30m, deadline: 90m, unconfirmed: {unconfirmed}"));
        let names = ["pending", "not_found", "enqueued", "rejected", "delivered", "skipped"];
        let text: Vec<_> = names.iter().zip(&numbers).map(|(name, n)| format!("{n} {name}")).collect();
        let counts = counts(numbers.iter().sum(), &text.join(", "));
        let progress = sent(START);
        let view = StageView { by_answers: false, answer_time: Duration::ZERO, gate: &gate, counts: &counts, sends_owed: false, progress: &progress, applied_count: None, ttl: None,
            evidence: &Evidence::complete(), clock: &baked_until(minutes(after)) };
        let failed = numbers[1] + if delivered { numbers[3] } else { 0 };
        let succeeded = numbers[4] + if delivered { 0 } else { numbers[2] + numbers[3] };
        match judge(view, minutes(after)) {
            Verdict::Passed { .. } => {
                prop_assert!(numbers[0] == 0 && after >= 30);
                prop_assert!(failed * 100 <= u64::from(above) * (failed + succeeded));
                prop_assert!(unconfirmed == "as_succeeded" || failed + succeeded > 0 || unconfirmed == "as_failed");
            }
            Verdict::Waiting(Waiting::Sends { left }) => prop_assert_eq!(left, numbers[0]),
            Verdict::Waiting(Waiting::Silent { devices, .. }) => {
                prop_assert!(delivered && after < 90 && devices == numbers[2]);
            }
            Verdict::Waiting(Waiting::Bake { .. }) => prop_assert!(after < 30),
            Verdict::Failed { .. } => {}
            Verdict::Undecided { .. } => prop_assert!(failed + succeeded == 0),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
