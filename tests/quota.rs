//! The quota: used up, never exceeded, whatever its size. The hub counts.
//!
//! A test binary of its own: these measurements share the machine with each other and with
//! nothing else of ours.

#![expect(clippy::print_stdout, reason = "the figures are worth a line")]

#[expect(
    dead_code,
    unused_imports,
    reason = "the harness has more than this binary needs"
)]
#[path = "system/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use twincast_emulator::Summary;

use crate::harness::{Fleet, Hub, Room};

/// What to send on a hub with a quota.
struct Measure {
    devices: u64,
    hub: &'static [&'static str],
    spec: &'static str,
    /// Sends a minute that are allowed.
    allowed: u64,
    /// The part of them that must be used.
    used: f64,
    /// Sends until the pace is steady.
    before: u64,
    /// Sends that are timed, in parts.
    timed: u64,
}

/// The parts that the pace is taken in. The best of them says what the program can do; the others
/// may say what else the machine did.
const PARTS: u64 = 5;

impl Measure {
    /// Runs until enough was sent to tell the pace, and checks it.
    #[expect(
        clippy::disallowed_methods,
        reason = "another process is looked at, there is nothing to await"
    )]
    fn check(&self) {
        let hub = Hub::start(&Fleet::of(self.devices), self.hub);
        let room = Room::with(&hub);
        let spec = room.rollout("paced", self.spec);
        let mut run = room.start(&["run", &spec]);
        // This takes minutes by its nature, so it has its own deadline and a calmer look.
        let deadline = Instant::now() + Duration::from_secs(400);
        let mut reached = |sends: u64| {
            loop {
                let seen = hub.summary();
                if seen.accepted >= sends {
                    return seen;
                }
                assert!(!run.is_over(), "over too early: {}", run.stderr());
                assert!(Instant::now() < deadline, "too slow: {seen:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let looks: Vec<_> = (0..=PARTS)
            .map(|part| reached(self.before + self.timed * part / PARTS))
            .collect();
        let parts: Vec<_> = looks
            .windows(2)
            .map(|pair| self.used_between(&pair[0], &pair[1]))
            .collect();
        let (first, last) = (&looks[0], &looks[looks.len() - 1]);
        println!(
            "{} a minute: {:.2} % used over {:.0} s (parts: {:.4?}); at most {} in any minute, {} slowed, {} refused",
            self.allowed,
            self.used_between(first, last) * 100.0,
            (last.uptime_ms - first.uptime_ms) as f64 / 1_000.0,
            parts,
            last.accepted_in_any_minute_max,
            last.shaped,
            last.throttled
        );
        assert!(
            last.uptime_ms - first.uptime_ms > 60_000,
            "too short to tell"
        );
        assert!(last.accepted_in_any_minute_max <= self.allowed, "{last:?}");
        assert_eq!((last.throttled, last.repeats_by_device), (0, 0), "{last:?}");
        let best = parts.into_iter().fold(0.0, f64::max);
        assert!(best >= self.used, "only {best} is used: {last:?}");
    }

    /// The part of what is allowed that was used.
    fn used_between(&self, from: &Summary, to: &Summary) -> f64 {
        let minutes = (to.uptime_ms - from.uptime_ms) as f64 / 60_000.0;
        (to.accepted - from.accepted) as f64 / minutes / self.allowed as f64
    }
}

#[test]
fn no_minute_exceeds_the_quota_and_nearly_all_of_it_is_used() {
    let measures = [
        Measure {
            devices: 90_000,
            hub: &["--tier", "S3", "--units", "10"],
            spec: "",
            allowed: 50_000,
            used: 0.98,
            before: 8_000,
            timed: 62_500,
        },
        Measure {
            devices: 400,
            hub: &["--tier", "S1", "--units", "1"],
            spec: "",
            allowed: 100,
            used: 0.98,
            before: 10,
            timed: 215,
        },
        // The rollout's own rate, far below the hub's quota: a promise of "no more than".
        Measure {
            devices: 1_000,
            hub: &["--tier", "S3", "--units", "1"],
            spec: "rate: 600/min",
            allowed: 600,
            used: 0.95,
            before: 30,
            timed: 700,
        },
    ];
    std::thread::scope(|scope| {
        for measure in &measures {
            scope.spawn(|| measure.check());
        }
    });
}
