//! Engines and doubles broken on purpose: the checks must detect every defect.

use std::time::Duration;

use twincast_testkit::sim::Bug;

use crate::run::{Report, Setup};
use crate::run_all;

/// The number of seeds before a defect counts as undetected.
const MAX_SEEDS: u64 = 300;

/// Asserts that the defect shows in a world, with any of these words: a defect may have several
/// consequences.
fn is_found(setup: &Setup, words: &[&str]) {
    let is_named = |violation: &String| words.iter().any(|words| violation.contains(words));
    let shows = |report: &Report| report.violations.iter().any(is_named);
    let is_shown = |failed: &[Report]| failed.iter().any(shows);
    let (failed, _) = run_all(0..MAX_SEEDS, setup, is_shown);
    for report in &failed {
        println!("seed {}: {}", report.plan.seed, report.violations[0]);
    }
    assert!(failed.iter().any(shows), "a seed shows one of {words:?}");
}

fn has(bug: Bug) -> Setup {
    Setup {
        bug: Some(bug),
        ..Setup::default()
    }
}

#[test]
fn a_store_without_a_fence() {
    is_found(&has(Bug::NoFence), &[""]);
}

#[test]
fn a_store_without_version_checks() {
    is_found(&has(Bug::NoVersions), &[""]);
}

#[test]
fn a_store_losing_reports() {
    is_found(&has(Bug::ForgetsReports), &[""]);
}

#[test]
fn a_store_without_stop_directives() {
    is_found(&has(Bug::NeverStops), &["sends"]);
}

#[test]
fn a_store_without_a_quota() {
    is_found(&has(Bug::NoQuota), &["in a minute"]);
}

#[test]
fn a_worker_repeating_at_most_once_sends() {
    is_found(&has(Bug::AlwaysAtLeastOnce), &["again"]);
}

#[test]
fn a_hub_losing_messages() {
    is_found(&has(Bug::ForgetsMessages), &[""]);
}

#[test]
fn an_announcer_losing_events() {
    let setup = Setup {
        loses_events: true,
        ..Setup::default()
    };
    is_found(&setup, &["published"]);
}

#[test]
fn lost_dispatches_without_repetition() {
    let setup = Setup {
        bug: Some(Bug::ForgetsDispatches),
        tweak: |plan| {
            plan.orchestrator.driver.redispatch_if_queue_empty_after = Duration::MAX / 4;
            plan.orchestrator.driver.redispatch_after = Duration::MAX / 4;
        },
        ..Setup::default()
    };
    is_found(&setup, &["not at an end"]);
}

fn lost_writes_and(bug: Bug) -> Setup {
    Setup {
        loses_writes: true,
        ..has(bug)
    }
}

#[test]
fn a_store_claiming_lost_data() {
    is_found(
        &lost_writes_and(Bug::RefusesNothing),
        &["and means", "at the end"],
    );
}

#[test]
fn a_store_relying_on_non_durable_writes() {
    is_found(
        &lost_writes_and(Bug::NotDurable),
        &["and now", "was never created", "history"],
    );
}

#[test]
fn a_worker_reading_the_directive_too_seldom() {
    let setup = Setup {
        tweak: |plan| {
            plan.worker.heartbeat = Duration::from_secs(2);
            plan.worker.linger = Duration::from_secs(2);
        },
        ..Setup::default()
    };
    is_found(&setup, &["sends"]);
}

#[test]
fn a_worker_with_too_wide_a_window() {
    let setup = Setup {
        tweak: |plan| plan.worker.window *= 4,
        ..Setup::default()
    };
    is_found(&setup, &["not recorded", "under way"]);
}

#[test]
fn a_store_handing_out_stages_too_early() {
    is_found(&has(Bug::NoStages), &["before its time"]);
}

#[test]
fn a_store_losing_late_joiners() {
    is_found(&has(Bug::ForgetsLateJoiners), &["and means"]);
}

#[test]
fn a_driver_without_gates() {
    is_found(&has(Bug::NoGates), &["stage_passed"]);
}

#[test]
fn a_driver_counting_silence_as_success() {
    is_found(&has(Bug::CountsSilent), &["it did not hold"]);
}

#[test]
fn a_driver_without_bakes() {
    is_found(&has(Bug::NoBakes), &["baked for"]);
}

#[test]
fn a_driver_without_approvals() {
    is_found(&has(Bug::NoApprovals), &["nobody approved"]);
}

#[test]
fn a_driver_continuing_after_a_failed_gate() {
    is_found(&has(Bug::NoFailures), &["and will Continue"]);
}

#[test]
fn a_driver_without_deadlines() {
    is_found(&has(Bug::NoDeadlines), &["it did not", "measured enough"]);
}

#[test]
fn a_driver_assuming_complete_feedback() {
    is_found(
        &has(Bug::ClaimsHeard),
        &["hub had reported", "hub reported", ", reported "],
    );
}

#[test]
fn a_driver_passing_small_samples() {
    is_found(&has(Bug::PassesTooLittle), &["it did not hold"]);
}

#[test]
fn a_bake_continuing_during_pauses() {
    is_found(&has(Bug::LongBakes), &["it baked for"]);
}

#[test]
fn an_approval_counting_after_the_time_limit() {
    is_found(&has(Bug::ApprovalsWithoutTimeout), &["it was approved at"]);
}

#[test]
fn a_store_losing_feedback() {
    is_found(&has(Bug::ForgetsFeedback), &["that was forgotten"]);
}

#[test]
fn a_store_losing_approvals() {
    is_found(&has(Bug::ForgetsApprovals), &["not in the history"]);
}

#[test]
fn an_abort_without_an_end() {
    is_found(&has(Bug::SkipsOvertaken), &["not at an end"]);
}

/// A gate waits for longer than specified.
#[test]
fn a_stalled_gate() {
    let setup = Setup {
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
    };
    is_found(&setup, &["not at an end"]);
}
