//! The whole engine in simulated worlds: unmodified orchestrators, workers and commands, on doubles
//! of store, queue and hubs, on a single thread and in virtual time.
//!
//! A seed determines a world ([`world`]): hubs and fleets, rollouts, commands, and faults.
//! [`engine`] runs the world. [`auditor`] observes the real events and checks the engine's
//! promises, [`gates`] the promises about stages. After a time of chaos the faults stop, and all
//! work must come to an end. [`mutants`] proves that the checks can fail.
//!
//! ```text
//! cargo test --test simulation                            the usual seeds
//! TWINCAST_SIM_SEED=123 cargo test --test simulation      a single seed, with the trace
//! TWINCAST_SIM_SEEDS=10000 cargo test --test simulation   more seeds
//! ```

#![expect(clippy::print_stdout, reason = "worlds and figures")]

mod auditor;
mod engine;
mod gates;
mod mutants;
mod run;
mod world;

use std::env;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::auditor::Figures;
use crate::run::{Report, Setup};
use crate::world::CRASHES;

/// The default number of seeds.
const SEEDS: u64 = 1_000;
/// The number of seeds with a store that loses writes.
const LOST_WRITES_SEEDS: u64 = 250;
/// The number of failures to report before the run stops; the lowest failed seed is reported in
/// full.
const MAX_FAILURES: usize = 20;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

/// Runs seeds on all processors until the failed seeds are `enough`. Returns the failed seeds,
/// lowest first, and the figures of all seeds.
fn run_all(
    seeds: Range<u64>,
    setup: &Setup,
    enough: impl Fn(&[Report]) -> bool + Sync,
) -> (Vec<Report>, Figures) {
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::<Report>::new());
    let all = Mutex::new(Figures::default());
    let run_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || enough(&failed.lock().expect("no panic")) {
                return;
            }
            let report = run::run(seed, setup);
            all.lock().expect("no panic").add(&report.figures);
            if !report.violations.is_empty() {
                failed.lock().expect("no panic").push(report);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run_some);
        }
    });
    let mut failed = failed.into_inner().expect("no panic");
    failed.sort_by_key(|report| report.plan.seed);
    (failed, all.into_inner().expect("no panic"))
}

/// Returns true if a run need not look for more failures.
fn are_many(failed: &[Report]) -> bool {
    failed.len() >= MAX_FAILURES
}

#[test]
fn promises_are_kept() {
    if let Some(seed) = number("TWINCAST_SIM_SEED") {
        let report = run::run(seed, &Setup::default().with_lines(usize::MAX));
        println!("{report}");
        assert!(report.violations.is_empty(), "seed {seed} fails");
        return;
    }
    let from = number("TWINCAST_SIM_FROM").unwrap_or(0);
    let many = number("TWINCAST_SIM_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    let (failed, figures) = run_all(from..from + many, &Setup::default(), are_many);
    let rate = many as f64 / began.elapsed().as_secs_f64();
    println!("{many} seeds, {rate:.1} a second: {figures:?}");
    for report in &failed {
        println!("seed {}: {}", report.plan.seed, report.violations[0]);
    }
    if let Some(first) = failed.first() {
        panic!("{first}");
    }
}

/// The store crashes four times in each world, and loses up to the last second of writes.
#[test]
fn promises_are_kept_despite_lost_writes() {
    let setup = Setup {
        loses_writes: true,
        ..Setup::default()
    };
    if let Some(seed) = number("TWINCAST_SIM_LOST_WRITES_SEED") {
        let report = run::run(seed, &setup.with_lines(usize::MAX));
        println!("{report}");
        assert!(report.violations.is_empty(), "seed {seed} fails");
        return;
    }
    let many = number("TWINCAST_SIM_LOST_WRITES_SEEDS").unwrap_or(LOST_WRITES_SEEDS);
    let (failed, figures) = run_all(0..many, &setup, are_many);
    println!("{many} seeds with {CRASHES} crashes each: {figures:?}");
    for report in &failed {
        println!("seed {}: {}", report.plan.seed, report.violations[0]);
    }
    if let Some(first) = failed.first() {
        panic!("{first}");
    }
}

/// The same seed gives the same world, down to the last call.
#[test]
fn a_seed_can_be_replayed() {
    for seed in number("TWINCAST_SIM_FROM").map_or(0..12, |from| from..from + 200) {
        let [first, second] = [(); 2].map(|()| run::run(seed, &Setup::default()));
        assert_eq!(first.trace.count(), second.trace.count(), "seed {seed}");
        assert_eq!(
            first.trace.fingerprint(),
            second.trace.fingerprint(),
            "seed {seed}"
        );
    }
}
