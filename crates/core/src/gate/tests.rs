use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::evidence::{Evidence, EvidenceClock, ListenerState, ListenerStatus, Watermark};
use crate::ids::{Holder, HubName, StageName};
use crate::outcome::{Counts, Outcome};
use crate::rollout::{Approval, Event, Rollout, StageProgress, Word};
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
    let heard = &Evidence::complete();
    in_words(gate, counts, &progress, measured, heard, minutes(after))
}

/// A clock that has counted all the time since the stage was sent.
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

fn in_words(
    gate: &Gate,
    counts: &Counts,
    progress: &StageProgress,
    measured: Option<Measured>,
    evidence: &Evidence,
    at: Timestamp,
) -> String {
    let view = View {
        within: Duration::ZERO,
        by_answers: false,
        left: false,
        gate,
        counts,
        progress,
        measured,
        ttl: None,
        evidence,
        clock: &baked_until(at),
    };
    match judge(view, at) {
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
            "waits for 88 silent devices to be heard of, until 1970-01-01T01:17:10Z",
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
            "waits for 11 silent devices to be heard of, until 1970-01-01T01:17:10Z",
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
        // Nothing was measured: no pass.
        (
            "counts: delivered, success_at_least: 0%",
            "100 enqueued",
            0,
            "waits for 100 silent devices to be heard of, until 1970-01-01T01:17:10Z",
        ),
        (
            "counts: delivered, failure_above: 5%",
            "100 enqueued",
            61,
            "undecided: too little measured: 0 of 100 devices, 100 silent; 20 are needed",
        ),
        (
            "failure_above: 5%",
            "100 skipped",
            0,
            "undecided: too little measured: no device was left to measure",
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
fn too_little_measured_is_never_a_pass() {
    let reject = "counts: delivered, failure_above: 5%, deadline: 20s";
    let table = [
        // Nine of ten reject, one is away: nobody can make that good.
        (
            reject,
            10,
            "9 rejected, 1 enqueued",
            0,
            "failed: 9 of 10 devices failed (90.0%), more than 5%, whatever the others do",
        ),
        (
            reject,
            49,
            "19 rejected, 30 enqueued",
            0,
            "failed: 19 of 49 devices failed (38.8%), more than 5%, whatever the others do",
        ),
        // A few that failed are no sample while more can be measured; at the end they count.
        (
            reject,
            100,
            "5 rejected, 95 enqueued",
            0,
            "waits for 95 silent devices to be heard of, until 1970-01-01T00:17:00Z",
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
            "undecided: too little measured: 19 of 100 devices, 81 silent; 20 are needed",
        ),
        (
            reject,
            100,
            "20 delivered, 80 enqueued",
            1,
            "passed: 20 of 100 devices delivered, 0 failed, 80 silent",
        ),
        // A stage below the sample: all of it.
        (
            reject,
            10,
            "9 delivered, 1 enqueued",
            1,
            "undecided: too little measured: 9 of 10 devices, 1 silent; 10 are needed",
        ),
        (
            "counts: delivered, failure_above: 5%, deadline: 20s, too_little: pass",
            10,
            "9 delivered, 1 enqueued",
            1,
            "passed: 9 of 10 devices delivered, 0 failed, 1 silent",
        ),
        // Silent devices that can change nothing are not needed.
        (
            "counts: delivered, failure_above: 50%, success_at_least: 80%",
            10,
            "9 delivered, 1 enqueued",
            0,
            "passed: 9 of 10 devices delivered, 0 failed, 1 silent",
        ),
        // The success rule is about all devices, and needs enough of them to be measured, too.
        (
            "counts: delivered, success_at_least: 90%, deadline: 20s",
            100,
            "19 delivered, 81 enqueued",
            1,
            "undecided: too little measured: 19 of 100 devices, 81 silent; 20 are needed",
        ),
        (
            "counts: delivered, success_at_least: 90%, deadline: 20s",
            100,
            "20 delivered, 80 enqueued",
            1,
            "failed: 20 of 100 devices delivered (20.0%), less than 90%",
        ),
        // Devices that count as something by decree are measured.
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

/// Evidence of one hub that was heard until then, or never.
fn heard_until(until: Option<Timestamp>, now: Timestamp) -> Evidence {
    let state = ListenerState {
        listening: true,
        hidden_ms: 0,
        foreign: 37,
        batching_ms: 15_000,
        ..ListenerState::default()
    };
    let listener = ListenerStatus {
        listener: Holder::new("w").unwrap(),
        heard_ago: until.map(|until| now.since(until)),
        reported_ago: Duration::ZERO,
        state,
    };
    let hub = HubName::new("main").unwrap();
    Evidence::of([(hub, Watermark::of(&[listener], now))])
}

#[test]
fn silence_counts_when_an_answer_would_have_been_heard() {
    let gate = gate("counts: delivered, failure_above: 5%, deadline: 10m, on_failure: abort");
    let all = counts(100, "100 enqueued");
    let says = |until: Option<u64>, at: u64| {
        let at = START.plus(Duration::from_secs(at));
        let until = until.map(|until| START.plus(Duration::from_secs(until)));
        let evidence = heard_until(until, at);
        in_words(&gate, &all, &sent(START), None, &evidence, at)
    };
    let foreign = "waits for evidence of 100 silent devices: \
                   hub main: 37 feedback messages of other applications are in front";
    assert!(says(Some(598), 599).starts_with("waits for 100 silent devices"));
    assert_eq!(says(Some(599), 600), foreign, "the deadline is over");
    // What a device did at the deadline is told 15 s later.
    assert_eq!(says(Some(614), 616), foreign);
    let verdict = "undecided: too little measured: 0 of 100 devices, 100 silent; 20 are needed";
    assert_eq!(says(Some(615), 616), verdict);
    assert_eq!(says(None, 7_200), foreign, "hours later");
}

#[test]
fn what_cannot_be_heard_is_waited_for_up_to_a_bound_and_then_pauses() {
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
        // Heard for a minute and a half, and then no more.
        let until = now.min(START.plus(Duration::from_secs(90)));
        let evidence = heard_until(Some(until), now);
        clock.advance(true, &evidence, now);
        let progress = sent(START);
        let view = View {
            within: Duration::ZERO,
            by_answers: false,
            left: false,
            gate: &gate,
            counts: &all,
            progress: &progress,
            measured: None,
            ttl: None,
            evidence: &evidence,
            clock: &clock,
        };
        let word = match judge(view, now) {
            Verdict::Waits(Waiting::Silent { .. }) => "silent".to_owned(),
            Verdict::Waits(Waiting::Bake { .. }) => "bake".to_owned(),
            Verdict::Waits(Waiting::Evidence { .. }) => "evidence".to_owned(),
            Verdict::Undecided { because } => because,
            other => format!("{other:?}"),
        };
        if said.last().is_none_or(|(_, last)| *last != word) {
            said.push((seconds, word));
        }
    }
    let not_measured = "not measured: nothing was heard for 5m 00s of 10 silent devices: \
                        hub main: 37 feedback messages of other applications are in front";
    // A minute without a word is no outage yet.
    assert_eq!(
        said.iter()
            .map(|(at, word)| (*at, &**word))
            .collect::<Vec<_>>(),
        [
            (0, "silent"),
            (10, "evidence"),
            (30, "bake"),
            (160, "evidence"),
            (390, not_measured)
        ]
    );
}

#[test]
fn a_rollout_ends_when_its_devices_were_heard_or_their_messages_are_over() {
    let mut rollout = staged("failure_above: 5%");
    let all = counts(10, "10 delivered");
    rollout = happened(&rollout, &all, minutes(1));
    rollout = happened(&rollout, &all, minutes(1));
    let rest = counts(90, "80 delivered, 10 enqueued");
    rollout = happened(&rollout, &rest, minutes(2));
    assert_eq!(rollout.sent_at, Some(minutes(2)));
    let next = |until: u64, at: u64| {
        let seen = Seen {
            recorded: true,
            unanswered: 0,
            stage: &rest,
            all: &rest,
            left: false,
            measured: None,
            evidence: &heard_until(Some(minutes(until)), minutes(at)),
        };
        next(&rollout, seen, minutes(at))
    };
    // An hour and 15 s after the last send, and as long as the hub collects.
    let until = minutes(62).plus(Duration::from_secs(15));
    let waits = Next::Wait(Waiting::Answers { devices: 10, until });
    assert_eq!(next(3, 3), waits);
    assert_eq!(next(62, 62), waits);
    assert!(matches!(
        next(62, 63),
        Next::Wait(Waiting::Evidence { devices: 10, .. })
    ));
    assert_eq!(next(63, 63), Next::Over);
    let heard = counts(90, "80 delivered, 10 rejected");
    assert_eq!(
        next_when_heard(&rollout, &heard, false, minutes(3)),
        Next::Over
    );
}

#[test]
fn a_stage_without_devices_does_not_pass_by_measuring_nothing() {
    for text in [
        "failure_above: 5%",
        "success_at_least: 0%",
        "counts: delivered, success_at_least: 95%",
    ] {
        let says = says_of(&gate(text), &Counts::default(), None, 0);
        let expected = "undecided: too little measured: no device was left to measure";
        assert_eq!(says, expected, "{text}");
    }
}

#[test]
fn what_is_applied_is_measured_again_until_the_deadline() {
    let gate = gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
    let counts = counts(100, "100 delivered");
    let says = |applied, at, after| {
        let measured = Measured {
            applied,
            failed: 0,
            as_of: minutes(at),
            asked_at: minutes(at),
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
        "undecided: too little measured: 0 of 100 devices, 100 silent; 20 are needed"
    );
}

#[test]
fn a_device_that_failed_after_it_was_measured_does_not_count_as_applied() {
    let gate = gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
    let counts = counts(100, "97 delivered, 3 rejected");
    let says = |applied, failed, minute| {
        let measured = Measured {
            applied,
            failed,
            as_of: minutes(minute),
            asked_at: minutes(minute),
        };
        says_of(&gate, &counts, Some(measured), minute)
    };
    let passed = |applied: u64| {
        let silent = 97 - applied;
        format!("passed: {applied} of 100 devices applied, 3 failed, {silent} silent")
    };
    // All three had failed before, one of them, or none.
    assert_eq!(says(90, 3, 0), passed(90));
    assert_eq!(says(92, 1, 0), passed(90));
    assert_eq!(says(93, 0, 0), passed(90));
    let waits = "waits for 8 silent devices to be heard of, until 1970-01-01T00:26:40Z";
    assert_eq!(says(92, 0, 0), waits);
    // Before it fails, the hub is asked of those that are left.
    assert_eq!(says(92, 0, 10), "measure");
    assert_eq!(
        says(89, 3, 10),
        "failed: 89 of 100 devices applied (89.0%), less than 90%"
    );
}

#[test]
fn an_approval_is_waited_for_as_long_as_the_gate_says() {
    let gate = gate("approval: {within: 1h}");
    let counts = counts(1, "1 enqueued");
    let mut progress = sent(START);
    let says = |progress: &StageProgress, after| {
        let view = View {
            within: Duration::ZERO,
            by_answers: false,
            gate: &gate,
            counts: &counts,
            left: false,
            progress,
            measured: None,
            ttl: None,
            evidence: &Evidence::complete(),
            clock: &EvidenceClock::default(),
        };
        judge(view, minutes(after))
    };
    assert_eq!(
        says(&progress, 0),
        Verdict::Waits(Waiting::ApprovalToBeNoted)
    );
    progress.ripe_at = Some(minutes(5));
    assert_eq!(
        says(&progress, 64),
        Verdict::Waits(Waiting::Approval {
            until: Some(minutes(65))
        })
    );
    assert!(
        matches!(says(&progress, 65), Verdict::Failed { because } if because.starts_with("nobody approved until"))
    );
    let approved_at = |minute| {
        let word = Word {
            by: Some("ann".into()),
            reason: Some("looks well".into()),
        };
        let at = minutes(minute);
        Some(Approval { word, at })
    };
    // Nobody drove when the time was over: what counts is when the word was given.
    progress.approved = approved_at(65);
    assert!(matches!(says(&progress, 99), Verdict::Failed { .. }));
    progress.approved = approved_at(64);
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
    match next_when_heard(rollout, counts, counts.unsettled() > 0, at) {
        Next::Happened(event) => rollout.after(event, at).unwrap().unwrap(),
        other => panic!("nothing happened: {other:?}"),
    }
}

/// A retry may have reopened devices of a stage that has passed: those are sent to first.
#[test]
fn a_gate_is_not_undecided_while_something_is_to_be_sent() {
    let rollout = staged("counts: delivered, failure_above: 5%");
    let skipped = counts(10, "10 skipped");
    let rollout = happened(&rollout, &skipped, minutes(1));
    let next = |left| next_when_heard(&rollout, &skipped, left, minutes(2));
    assert_eq!(next(true), Next::Send);
    assert!(matches!(
        next(false),
        Next::Happened(Event::GateUndecided { .. })
    ));
}

#[test]
fn a_stage_goes_through_its_gate_to_the_next() {
    let rollout = staged("failure_above: 5%, approval: {}");
    let all = counts(10, "10 enqueued");
    assert_eq!(
        next_when_heard(&rollout, &counts(10, ""), true, START),
        Next::Send
    );
    let rollout = happened(&rollout, &all, minutes(1));
    assert_eq!(rollout.stages[0].sent_at, Some(minutes(1)));
    let rollout = happened(&rollout, &all, minutes(2));
    assert_eq!(rollout.stages[0].ripe_at, Some(minutes(2)));
    let waits = next_when_heard(&rollout, &all, false, minutes(3));
    assert_eq!(waits, Next::Wait(Waiting::Approval { until: None }));
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
        next_when_heard(&rollout, &counts(90, ""), true, minutes(6)),
        Next::Send
    );
    assert_eq!(
        next_when_heard(&rollout, &counts(90, "90 delivered"), false, minutes(6)),
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
        next_when_heard(&rollout, &some, true, minutes(2)),
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
        let view = View { by_answers: false, within: Duration::ZERO, gate: &gate, counts: &counts, left: false, progress: &progress, measured: None, ttl: None,
            evidence: &Evidence::complete(), clock: &baked_until(minutes(after)) };
        let failed = numbers[1] + if delivered { numbers[3] } else { 0 };
        let succeeded = numbers[4] + if delivered { 0 } else { numbers[2] + numbers[3] };
        match judge(view, minutes(after)) {
            Verdict::Passed { .. } => {
                prop_assert!(numbers[0] == 0 && after >= 30);
                prop_assert!(failed * 100 <= u64::from(above) * (failed + succeeded));
                prop_assert!(unconfirmed == "as_succeeded" || failed + succeeded > 0 || unconfirmed == "as_failed");
            }
            Verdict::Waits(Waiting::Sends { left }) => prop_assert_eq!(left, numbers[0]),
            Verdict::Waits(Waiting::Silent { devices, .. }) => {
                prop_assert!(delivered && after < 90 && devices == numbers[2]);
            }
            Verdict::Waits(Waiting::Bake { .. }) => prop_assert!(after < 30),
            Verdict::Failed { .. } => {}
            Verdict::Undecided { .. } => prop_assert!(failed + succeeded == 0),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
