//! Engines and doubles that are broken on purpose: what the checks do not find, they do not check.

use std::time::Duration;

use twincast_testkit::sim::Bug;

use crate::run::Setup;
use crate::run_all;

/// So many seeds are tried before a defect counts as not found.
const WITHIN: u64 = 300;

fn is_found(setup: &Setup) -> String {
    let (failed, _) = run_all(0..WITHIN, setup, 1);
    let report = failed.first().expect("a seed in which the defect is found");
    println!("seed {}: {}", report.plan.seed, report.wrong[0]);
    report.wrong[0].clone()
}

fn has(bug: Bug) -> Setup {
    Setup {
        bug: Some(bug),
        ..Setup::default()
    }
}

#[test]
fn a_store_that_forgets_the_fence() {
    is_found(&has(Bug::NoFence));
}

#[test]
fn a_store_that_does_not_compare_versions() {
    is_found(&has(Bug::NoVersions));
}

#[test]
fn a_store_that_forgets_reports() {
    is_found(&has(Bug::ForgetsReports));
}

#[test]
fn a_store_that_tells_nobody_to_stop() {
    let found = is_found(&has(Bug::NeverStops));
    assert!(found.contains("sends"), "{found}");
}

#[test]
fn a_store_without_a_quota() {
    let found = is_found(&has(Bug::EndlessPermits));
    assert!(found.contains("in a minute"), "{found}");
}

#[test]
fn a_worker_that_repeats_what_must_not_be() {
    let found = is_found(&has(Bug::AlwaysAgain));
    assert!(found.contains("again"), "{found}");
}

#[test]
fn a_hub_that_loses_messages() {
    is_found(&has(Bug::ForgetsMessages));
}

#[test]
fn an_announcer_that_forgets_events() {
    let found = is_found(&Setup {
        forgets_events: true,
        ..Setup::default()
    });
    assert!(found.contains("told"), "{found}");
}

#[test]
fn dispatches_that_are_lost_and_not_rung_for_again() {
    let found = is_found(&Setup {
        bug: Some(Bug::ForgetsDispatches),
        tweak: |plan| {
            plan.orchestrator.driver.lost_after = Duration::MAX / 4;
            plan.orchestrator.driver.ring_again = Duration::MAX / 4;
        },
        ..Setup::default()
    });
    assert!(found.contains("not at an end"), "{found}");
}

#[test]
fn a_worker_that_looks_too_seldom() {
    let found = is_found(&Setup {
        tweak: |plan| {
            plan.worker.heartbeat = Duration::from_secs(2);
            plan.worker.linger = Duration::from_secs(2);
        },
        ..Setup::default()
    });
    assert!(found.contains("sends"), "{found}");
}

#[test]
fn a_worker_with_too_wide_a_window() {
    let found = is_found(&Setup {
        tweak: |plan| plan.worker.window *= 4,
        ..Setup::default()
    });
    let is_wrong = |words: &str| found.contains(words);
    assert!(is_wrong("not recorded") || is_wrong("under way"), "{found}");
}

#[test]
fn a_store_that_gives_out_stages_before_their_time() {
    let found = is_found(&has(Bug::NoStages));
    assert!(found.contains("before its time"), "{found}");
}

#[test]
fn a_store_that_forgets_who_has_joined() {
    let found = is_found(&has(Bug::ForgetsJoiners));
    assert!(found.contains("and means"), "{found}");
}

#[test]
fn a_driver_that_sees_no_gates() {
    let found = is_found(&has(Bug::NoGates));
    assert!(found.contains("stage_passed"), "{found}");
}

#[test]
fn a_driver_that_counts_silence_as_success() {
    let found = is_found(&has(Bug::CountsSilent));
    assert!(found.contains("it did not hold"), "{found}");
}

#[test]
fn a_driver_that_does_not_bake() {
    let found = is_found(&has(Bug::NoBakes));
    assert!(found.contains("baked for"), "{found}");
}

#[test]
fn a_driver_that_asks_nobody() {
    let found = is_found(&has(Bug::NoApprovals));
    assert!(found.contains("nobody approved"), "{found}");
}

#[test]
fn a_driver_that_goes_on_when_a_gate_has_failed() {
    let found = is_found(&has(Bug::NoFailures));
    assert!(found.contains("and will Continue"), "{found}");
}

#[test]
fn a_driver_that_takes_silence_for_a_verdict_at_once() {
    let found = is_found(&has(Bug::NoDeadlines));
    let is_wrong = |words: &str| found.contains(words);
    assert!(
        is_wrong("it did not") || is_wrong("measured enough"),
        "{found}"
    );
}

#[test]
fn a_driver_that_believes_every_hub_was_heard() {
    let found = is_found(&has(Bug::ClaimsHeard));
    assert!(found.contains("told"), "{found}");
}

#[test]
fn a_driver_that_passes_on_too_little() {
    let found = is_found(&has(Bug::PassesTooLittle));
    assert!(found.contains("it did not hold"), "{found}");
}

#[test]
fn a_bake_that_goes_on_while_the_rollout_does_not() {
    let found = is_found(&has(Bug::BakesAsleep));
    assert!(found.contains("it baked for"), "{found}");
}

#[test]
fn an_approval_that_counts_when_its_time_is_over() {
    let found = is_found(&has(Bug::PatientApprovals));
    assert!(found.contains("it was approved at"), "{found}");
}

#[test]
fn a_store_that_forgets_feedback() {
    let found = is_found(&has(Bug::ForgetsFeedback));
    assert!(found.contains("that was forgotten"), "{found}");
}

#[test]
fn a_store_that_forgets_what_people_say() {
    let found = is_found(&has(Bug::ForgetsWords));
    assert!(found.contains("not in the history"), "{found}");
}

#[test]
fn an_abort_that_does_not_end() {
    let found = is_found(&has(Bug::NeverSkips));
    assert!(found.contains("not at an end"), "{found}");
}

/// A gate that waits for longer than it says.
#[test]
fn a_gate_that_stalls() {
    let found = is_found(&Setup {
        tweak: |plan| {
            for rollout in &mut plan.rollouts {
                let stages = rollout.spec.get_mut("stages");
                let stages = stages.and_then(|stages| stages.as_array_mut());
                for stage in stages.into_iter().flatten() {
                    if let Some(gate) = stage.get_mut("gate") {
                        gate["bake"] = "2h".into();
                    }
                }
            }
        },
        ..Setup::default()
    });
    assert!(found.contains("not at an end"), "{found}");
}
