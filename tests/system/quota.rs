//! The quota: used up, never exceeded, whatever its size. The hub counts.

use std::time::{Duration, Instant};

use crate::harness::{Fleet, Hub, Room};

/// What to send on a hub with a quota.
struct Measure {
    devices: u64,
    hub: &'static [&'static str],
    spec: &'static str,
    /// Sends a minute that are allowed.
    quota: u64,
    /// Sends until the pace is steady.
    before: u64,
    /// Sends that are timed.
    timed: u64,
}

impl Measure {
    /// Runs until enough was sent to tell the pace, and checks it.
    fn check(&self) {
        let hub = Hub::start(&Fleet::of(self.devices), self.hub);
        let room = Room::with(&hub);
        let spec = room.rollout("paced", self.spec);
        let mut run = room.start(&["run", &spec]);
        let mut reached = |sends: u64| {
            // This takes minutes by its nature, so it has its own deadline and a calmer look.
            let deadline = Instant::now() + Duration::from_secs(400);
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
        let from = reached(self.before);
        let to = reached(self.before + self.timed);
        let minutes = (to.uptime_ms - from.uptime_ms) as f64 / 60_000.0;
        let used = (to.accepted - from.accepted) as f64 / minutes / self.quota as f64;
        println!(
            "quota {}: {:.2} % used over {:.0} s; at most {} in any minute, {} slowed, {} refused",
            self.quota,
            used * 100.0,
            minutes * 60.0,
            to.accepted_in_any_minute_max,
            to.shaped,
            to.throttled
        );
        assert!(minutes > 1.0, "too short to tell");
        assert!(to.accepted_in_any_minute_max <= self.quota, "{to:?}");
        assert_eq!(to.throttled, 0, "{to:?}");
        assert!(used >= 0.98, "only {used} of the quota is used: {to:?}");
        assert_eq!(to.repeats_by_device, 0);
    }
}

#[test]
fn no_minute_exceeds_the_quota_and_nearly_all_of_it_is_used() {
    let measures = [
        Measure {
            devices: 90_000,
            hub: &["--tier", "S3", "--units", "10"],
            spec: "",
            quota: 50_000,
            before: 8_000,
            timed: 62_500,
        },
        Measure {
            devices: 400,
            hub: &["--tier", "S1", "--units", "1"],
            spec: "",
            quota: 100,
            before: 10,
            timed: 214,
        },
        // The rollout's own rate, far below the hub's quota.
        Measure {
            devices: 1_000,
            hub: &["--tier", "S3", "--units", "1"],
            spec: "rate: 600/min",
            quota: 600,
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
