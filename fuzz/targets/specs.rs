//! A rollout's spec as YAML or JSON: a parsed spec survives a round trip, and everything derived
//! from a spec is bounded.

#![no_main]

use std::time::Duration;

use twincast_core::hub::{FeedbackQueue, FeedbackRules, HubLimits};
use twincast_core::ids::{HubHost, HubName, StageIndex};
use twincast_core::plan::{HubPlan, estimate};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::Timestamp;

const LIMITS: HubLimits = HubLimits {
    sends_per_minute: Some(120.0),
    queries_per_minute: Some(20.0),
    messages_per_day: Some(400_000),
    meter_bytes: 4096,
    feedback: FeedbackRules {
        queue: FeedbackQueue::Shared,
        lock: Duration::from_secs(60),
        batching: Duration::from_secs(15),
    },
    query_lag: Duration::ZERO,
};

twincast_fuzz::text!(|text: &str| {
    let spec = match RolloutSpec::read("spec", text) {
        Ok(spec) => spec,
        Err(problems) => {
            assert!(!problems.problems.is_empty());
            assert!(!problems.to_string().is_empty());
            return;
        }
    };
    let json = serde_json::to_string(&spec).expect("a spec can be written");
    match RolloutSpec::read("again", &json) {
        Ok(again) => assert_eq!(again, spec, "{json}"),
        Err(problems) => panic!("{json}: {problems}"),
    }
    assert_eq!(spec.problems(), []);
    follow(&spec);
});

fn follow(spec: &RolloutSpec) {
    _ = spec.condition();
    _ = spec.message.content();
    let now = Timestamp(1_800_000_000_000);
    if let Some(schedule) = &spec.schedule {
        for zone in [None, Some("Europe/Oslo"), Some("nowhere")] {
            _ = schedule.state_at(now, zone);
        }
        _ = schedule.never_opens(now);
    }
    let hub = HubPlan {
        hub: HubName::new("hub").expect("a name"),
        host: HubHost::new("hub.azure-devices.net").expect("a host name"),
        devices: 1_000_000,
        batches: 4000,
    };
    for (index, _) in spec.all_stages().iter().enumerate() {
        let stage = StageIndex(u16::try_from(index).expect("few stages"));
        _ = spec.rate_of(stage);
        let pace = spec.pace_of(stage);
        let estimate = estimate(std::slice::from_ref(&hub), |_| LIMITS, &pace, 0, 1000);
        assert!(estimate.sending.is_none_or(|time| time < Duration::MAX));
        _ = pace.rate_at(1000);
        _ = pace.next_step(1000);
    }
}
