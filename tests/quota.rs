//! The quota: never exceeded, whatever its size. The hub counts. How much of it is used is for `benches/quota.rs`, and
//! asserted where time is the test's own: in the worker's tests, on doubles.
//!
//! A test binary of its own: these measurements share the machine with each other and with
//! nothing else of ours.

#[expect(
    dead_code,
    unused_imports,
    reason = "the harness has more than this binary needs"
)]
#[path = "system/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use crate::harness::{Fleet, Hub, Room};

/// What to send on a hub with a quota.
struct Measure {
    devices: u64,
    hub: &'static [&'static str],
    spec: &'static str,
    /// Sends a minute that are allowed.
    allowed: u64,
    /// Sends that are looked at: some more than a minute's.
    sends: u64,
}

impl Measure {
    /// Runs until enough was sent, and checks the hub's account of it.
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
        let first = reached(1);
        let last = reached(self.sends);
        assert!(
            last.uptime_ms - first.uptime_ms > 60_000,
            "too short to tell"
        );
        assert!(last.accepted_in_any_minute_max <= self.allowed, "{last:?}");
        assert_eq!((last.throttled, last.repeats_by_device), (0, 0), "{last:?}");
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
        // The rollout's own rate, far below the hub's quota: a promise of "no more than".
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
