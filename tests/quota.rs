//! The quota is never exceeded, at any size. The hub counts. The used share of the quota is
//! measured by `benches/quota.rs`, and asserted in the worker's tests on doubles, with virtual
//! time.
//!
//! A separate test binary: these measurements share the machine only with each other.

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

/// A measurement on a hub with a quota.
struct Measure {
    devices: u64,
    hub: &'static [&'static str],
    spec: &'static str,
    /// Permitted sends per minute.
    allowed: u64,
    /// Sends to observe: somewhat more than a minute's.
    sends: u64,
}

impl Measure {
    /// Measures, and checks the hub's counts. A stall of a busy machine on the way to the hub makes
    /// sends arrive together, so a violation counts if it occurs three times.
    fn check(&self) {
        let mut seen = self.measure();
        for _ in 0..2 {
            if seen.accepted_in_any_minute_max > self.allowed || seen.throttled > 0 {
                seen = self.measure();
            }
        }
        assert!(seen.accepted_in_any_minute_max <= self.allowed, "{seen:?}");
        assert_eq!((seen.throttled, seen.repeats_by_device), (0, 0), "{seen:?}");
    }

    /// Runs until enough messages were sent, and returns the hub's counts.
    #[expect(
        clippy::disallowed_methods,
        reason = "another process is looked at, there is nothing to await"
    )]
    fn measure(&self) -> Summary {
        let hub = Hub::start(&Fleet::of(self.devices), self.hub);
        let room = Room::with(&hub);
        let spec = room.rollout("paced", self.spec);
        let mut run = room.start(&["run", &spec]);
        // The measurement takes minutes, so there is a separate deadline and a longer polling
        // interval.
        let deadline = Instant::now() + Duration::from_secs(400);
        let mut reached = |sends: u64| {
            loop {
                let seen = hub.summary();
                if seen.accepted >= sends {
                    return seen;
                }
                assert!(!run.is_over(), "the run ended early: {}", run.stderr());
                assert!(Instant::now() < deadline, "the run is too slow: {seen:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let first = reached(1);
        let last = reached(self.sends);
        assert!(
            last.uptime_ms - first.uptime_ms > 60_000,
            "the measurement is too short"
        );
        last
    }
}

#[test]
fn no_minute_exceeds_the_quota() {
    let measures = [
        Measure {
            devices: 90_000,
            hub: &["--tier", "S3", "--units", "10"],
            spec: "",
            allowed: 50_000,
            sends: 62_500,
        },
        Measure {
            devices: 400,
            hub: &["--tier", "S1", "--units", "1"],
            spec: "",
            allowed: 100,
            sends: 215,
        },
        // The rollout's rate limit, far below the hub's quota: an upper bound only.
        Measure {
            devices: 1_000,
            hub: &["--tier", "S3", "--units", "1"],
            spec: "rate: 600/min",
            allowed: 600,
            sends: 700,
        },
    ];
    std::thread::scope(|scope| {
        for measure in &measures {
            scope.spawn(|| measure.check());
        }
    });
}
