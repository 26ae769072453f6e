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
    assert!(found.contains("not recorded"), "{found}");
}
