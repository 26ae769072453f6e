use super::*;
use crate::hub::{HubLimits, Tier};
use crate::ids::HubHost;
use crate::plan::{HubPlan, estimate};

/// Monday 2026-01-05, noon.
fn noon() -> Timestamp {
    at("2026-01-05T12:00:00Z")
}

fn at(text: &str) -> Timestamp {
    serde_json::from_value(serde_json::json!(text)).unwrap()
}

fn spec(rest: &str) -> RolloutSpec {
    let text = format!("name: a\ntarget: {{all: true}}\nbatch_by: [zone]\n{rest}");
    let text = if rest.contains("message:") {
        text
    } else {
        format!("{text}\nmessage: {{body: {{text: x}}, ack: full}}")
    };
    RolloutSpec::read("x", &text).unwrap()
}

fn hub() -> HubName {
    HubName::new("eu").unwrap()
}

fn shares(
    devices: &[(Option<&str>, u64)],
    limits: HubLimits,
    spec: &RolloutSpec,
    stage: u16,
) -> StageShares {
    let plan = HubPlan {
        hub: hub(),
        host: HubHost::new("h").unwrap(),
        devices: devices.iter().map(|(_, devices)| devices).sum(),
        batches: 1,
    };
    StageShares {
        shares: devices
            .iter()
            .map(|(zone, devices)| Share {
                hub: hub(),
                zone: zone.map(str::to_owned),
                devices: *devices,
            })
            .collect(),
        estimate: estimate(
            &[plan],
            |_| limits,
            &spec.pace_of(StageIndex(stage)),
            0,
            100,
        ),
    }
}

/// Limits with a pace of exactly `pace` sends per minute.
fn a_minute(pace: f64) -> HubLimits {
    HubLimits {
        sends_per_minute: Some(pace / crate::hub::HEADROOM),
        ..HubLimits::unlimited()
    }
}

/// Returns when a rollout with a single stage is sent, at 10 devices per minute.
fn sent(rest: &str, devices: u64) -> String {
    let spec = spec(rest);
    let stage = shares(&[(None, devices)], a_minute(10.0), &spec, 0);
    match forecast(&spec, &[stage], noon()) {
        Ok(forecast) => forecast.stages[0].sent_at.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn forecast_follows_schedule() {
    let night =
        |more: &str| format!("schedule: {{windows: [{{from: \"22:00\", for: 1h}}], {more}}}");
    for (rest, devices, expected) in [
        // No schedule: a device every six seconds, the first device immediately.
        ("", 601, "2026-01-05T13:00:00Z"),
        ("", 1, "2026-01-05T12:00:00Z"),
        ("", 0, "2026-01-05T12:00:00Z"),
        ("rate: 1/min", 7, "2026-01-05T12:06:03.637Z"),
        (
            "schedule: {start_at: 2026-01-06T00:00:00Z}",
            601,
            "2026-01-06T01:00:00Z",
        ),
        (
            "schedule: {start_at: 2099-12-31T23:59:00Z}",
            601,
            "2100-01-01T00:59:00Z",
        ),
        (
            &night("start_at: 2099-12-31T00:00:00Z"),
            601,
            "2100-01-01T22:00:00Z",
        ),
        // A window holds 600 devices: half of a window, a whole window, a device more, many
        // windows.
        (&night(""), 301, "2026-01-05T22:30:00Z"),
        (&night(""), 600, "2026-01-05T22:59:54Z"),
        (&night(""), 601, "2026-01-06T22:00:00Z"),
        (&night(""), 6_000, "2026-01-14T22:59:54Z"),
        // The window is as long as an interval, so each window holds a single device.
        (
            &format!("{}\nrate: 1/h", night("")),
            3,
            "2026-01-07T22:00:00Z",
        ),
        // A frozen day, and a zone an hour ahead of UTC.
        (
            &night("freeze: [{from: 2026-01-05}]"),
            301,
            "2026-01-06T22:30:00Z",
        ),
        (&night("zone: Europe/Berlin"), 301, "2026-01-05T21:30:00Z"),
        // A freeze during sending: from noon to midnight, then two days later.
        (
            "schedule: {freeze: [{from: 2026-01-06, to: 2026-01-07}]}",
            7_301,
            "2026-01-08T00:10:00Z",
        ),
    ] {
        assert_eq!(sent(rest, devices), expected, "{rest} {devices}");
    }
}

#[test]
fn impossible_sends_are_refused() {
    let never = sent(
        "schedule: {windows: [{days: [mon], from: \"10:00\", for: 1h}], freeze: [{from: 2026-01-06, to: 2099-12-31, reason: sold}]}",
        10,
    );
    assert!(never.contains("stage all can never be sent: the schedule is outside its windows at 2026-01-05T12:00:00Z"), "{never}");
    // Frozen for 400 days and for 401 days, from the start on and in the middle of sending.
    for (freeze, devices, expected) in [
        (
            "{from: 2026-01-05, to: 2027-02-08}",
            1,
            "2027-02-09T00:00:00Z",
        ),
        (
            "{from: 2026-01-05, to: 2027-02-09}",
            1,
            "stage all can never be sent: the schedule is frozen at 2026-01-05T12:00:00Z and does not open again within 400 days: shorten its freezes",
        ),
        (
            "{from: 2026-01-06, to: 2027-02-09}",
            7_201,
            "2027-02-10T00:00:00Z",
        ),
        (
            "{from: 2026-01-06, to: 2027-02-10}",
            7_201,
            "stage all can never be sent: the schedule is frozen at 2026-01-06T00:00:00Z and does not open again within 400 days: shorten its freezes",
        ),
        (
            "{from: 2026-01-06, to: 2027-02-10}",
            7_200,
            "2026-01-05T23:59:54Z",
        ),
    ] {
        let found = sent(&format!("schedule: {{freeze: [{freeze}]}}"), devices);
        assert_eq!(found, expected, "{freeze} {devices}");
    }
    let long = sent("rate: 0.001/min", 100_000);
    assert!(long.contains("would not be sent within 20 years"), "{long}");
    let spec = spec("");
    let limits = HubLimits {
        messages_per_day: Some(0),
        ..HubLimits::unlimited()
    };
    let error = forecast(&spec, &[shares(&[(None, 1)], limits, &spec, 0)], noon()).unwrap_err();
    assert_eq!(
        error,
        Impossible::NoQuota {
            stage: StageName::new("all").unwrap(),
            hub: hub()
        }
    );
    // A stage without devices is never impossible.
    assert!(forecast(&spec, &[shares(&[], limits, &spec, 0)], noon()).is_ok());
}

#[test]
fn stages_follow_each_other_with_their_waits() {
    let spec = spec(
        "stages:\n  - {name: canary, percent: 1%, rate: 10/min, gate: {bake: 2h}}\n  \
         - {name: tenth, percent: 10%, gate: {counts: delivered, success_at_least: 90%, deadline: 6h, bake: 1h, approval: {}}}\n",
    );
    let limits = a_minute(100.0);
    let ten_a_minute = a_minute(10.0);
    let stages = [
        shares(&[(None, 601)], ten_a_minute, &spec, 1),
        shares(&[(None, 6_001)], limits, &spec, 1),
        shares(&[(None, 12_001)], limits, &spec, 2),
    ];
    let forecast = forecast(&spec, &stages, noon()).unwrap();
    let rows: Vec<_> = forecast
        .stages
        .iter()
        .map(|stage| {
            let times = [
                stage.starts_at,
                stage.sent_at,
                stage.ends_at,
                stage.ends_at_latest,
            ];
            let times = times.map(|time| time.to_string()["2026-01-".len()..].replace(":00Z", ""));
            format!("{} {}", stage.name, times.join(" "))
        })
        .collect();
    assert_eq!(
        rows,
        [
            "canary 05T12:00 05T13:00 05T15:00 05T15:00",
            "tenth 05T15:00 05T16:00 05T17:00 05T22:00:15Z",
            "rest 05T17:00 05T19:00 05T19:00 06T00:00:15Z",
        ]
    );
    assert_eq!(forecast.approvals, 1);
    assert_eq!(forecast.ends_at, forecast.stages[2].ends_at);
    assert_eq!(forecast.ends_at_latest, forecast.stages[2].ends_at_latest);
}

/// Metrics are measured from the stage's turn on, after the initial delay. Measurements before the
/// last send do not count.
#[test]
fn metrics_are_measured_at_their_own_times() {
    let ends = |gate: &str, devices: u64| {
        let spec = spec(&format!(
            "stages: [{{name: one, percent: 1%, gate: {{{gate}}}}}, {{name: two, gate: {{{gate}}}}}]"
        ));
        let stage = |index| shares(&[(None, devices)], a_minute(60.0), &spec, index);
        let forecast = forecast(&spec, &[stage(0), stage(1)], noon()).unwrap();
        let seconds = |time: Timestamp| time.since(noon()).as_secs();
        let stages = forecast.stages.iter();
        let ends = stages.map(|it| (seconds(it.ends_at), seconds(it.ends_at_latest)));
        ends.collect::<Vec<_>>()
    };
    let metric = |rest: &str| format!("metrics: [{{name: m, query: x, success: '> 0', {rest}}}]");
    for (gate, devices, expected) in [
        // All is sent after 5 s: measured at 0, and with effect at 10 and 20.
        (metric("every: 10s, count: 2"), 6, [(20, 20), (40, 40)]),
        // All is sent at once, so the first measurement counts.
        (metric("every: 10s, count: 2"), 1, [(10, 10), (20, 20)]),
        // The first send of the next stage is an interval later, so the last send is at 21.
        (metric("every: 10s, count: 1"), 11, [(10, 10), (30, 30)]),
        // A delay longer than the sending, and a shorter delay.
        (
            metric("every: 10s, count: 3, initial_delay: 42s"),
            6,
            [(62, 62), (124, 124)],
        ),
        (
            metric("every: 10s, count: 3, initial_delay: 3s"),
            6,
            [(33, 33), (66, 66)],
        ),
        // The bake runs at the same time.
        (
            format!("bake: 1m, {}", metric("every: 10s, initial_delay: 3s")),
            6,
            [(65, 65), (130, 130)],
        ),
        // The wait for silent devices runs at the same time, too. The next stage is measured from
        // its own start on.
        (
            format!(
                "counts: delivered, success_at_least: 1%, deadline: 90s, {}",
                metric("every: 10s, count: 3, initial_delay: 42s")
            ),
            6,
            [(62, 110), (124, 220)],
        ),
    ] {
        assert_eq!(ends(&gate, devices), expected, "{gate}");
    }
}

/// Returns the start and the end of sending of each stage on some hubs, as times on 2026-01-05.
fn stage_times(spec: &RolloutSpec, stages: &[(&[u64], u64)]) -> Vec<String> {
    let hubs = ["eu", "us"].map(|hub| HubName::new(hub).unwrap());
    let stages = (0..).zip(stages).map(|(index, (devices, before))| {
        let plans: Vec<_> = hubs
            .iter()
            .zip(*devices)
            .map(|(hub, devices)| HubPlan {
                hub: hub.clone(),
                host: HubHost::new("h").unwrap(),
                devices: *devices,
                batches: 1,
            })
            .collect();
        let share = |plan: &HubPlan| Share {
            hub: plan.hub.clone(),
            zone: None,
            devices: plan.devices,
        };
        StageShares {
            shares: plans.iter().map(share).collect(),
            estimate: estimate(
                &plans,
                |_| a_minute(10.0),
                &spec.pace_of(StageIndex(index)),
                *before,
                100,
            ),
        }
    });
    let forecast = forecast(spec, &stages.collect::<Vec<_>>(), noon()).unwrap();
    let times = |stage: &StageForecast| {
        let times = [stage.starts_at, stage.sent_at];
        let times = times.map(|time| time.to_string()["2026-01-05T".len()..].to_owned());
        times.join(" ")
    };
    forecast.stages.iter().map(times).collect()
}

#[test]
fn sends_of_a_hub_are_an_interval_apart_across_stages() {
    let two = "stages: [{name: one, percent: 1%}, {name: two, percent: 50%GATE}]";
    let plain = spec(&two.replace("GATE", ""));
    // As many intervals of six seconds as between the same number of messages in a single stage.
    let times = stage_times(&plain, &[(&[3], 0), (&[2], 3), (&[1], 5)]);
    assert_eq!(
        times,
        [
            "12:00:00Z 12:00:12Z",
            "12:00:18Z 12:00:24Z",
            "12:00:30Z 12:00:30Z"
        ]
    );
    // Another hub has an interval of its own, which is over by then.
    let times = stage_times(&plain, &[(&[3, 1], 0), (&[0, 2], 4), (&[0, 0], 6)]);
    assert_eq!(
        times,
        [
            "12:00:00Z 12:00:12Z",
            "12:00:12Z 12:00:18Z",
            "12:00:18Z 12:00:18Z"
        ]
    );
    // An interval also ends while a gate waits.
    let bakes = spec(
        &two.replace("percent: 1%", "percent: 1%, gate: {bake: 10s}")
            .replace("GATE", ""),
    );
    let times = stage_times(&bakes, &[(&[3], 0), (&[2], 3), (&[0], 5)]);
    assert_eq!(times[1], "12:00:22Z 12:00:28Z");
}

#[test]
fn zones_share_the_pace_of_their_hub() {
    let spec = spec("schedule: {windows: [{from: \"22:00\", for: 2h}], zone_tag: zone}");
    let sent = |devices: &[(Option<&str>, u64)]| {
        let stage = shares(devices, a_minute(10.0), &spec, 0);
        forecast(&spec, &[stage], noon()).unwrap().stages[0]
            .sent_at
            .to_string()
    };
    // The window of Berlin is from 21:00 to 23:00 UTC.
    assert_eq!(
        sent(&[(None, 601), (Some("Europe/Berlin"), 600)]),
        "2026-01-05T23:00:00Z"
    );
    // In the common hour each zone gets half of the pace, so Berlin is not done at the end of the
    // window.
    assert_eq!(
        sent(&[(None, 600), (Some("Europe/Berlin"), 1_201)]),
        "2026-01-06T21:30:00Z"
    );
}

/// If the turn of a stage comes while the schedule is closed or the quota of the day is used up,
/// the stage starts afterwards.
#[test]
fn stage_starts_with_first_message() {
    let starts = |rest: &str, devices: &[(Option<&str>, u64)], limits: HubLimits| {
        let stages = "stages: [{name: one, percent: 1%}, {name: two, percent: 50%}]";
        let spec = spec(&format!("{stages}\n{rest}"));
        let stages = [
            shares(devices, limits, &spec, 0),
            shares(devices, limits, &spec, 1),
            shares(&[], limits, &spec, 2),
        ];
        let forecast = forecast(&spec, &stages, noon()).unwrap();
        let stages = forecast.stages.iter();
        let starts = stages.map(|stage| stage.starts_at.to_string()["2026-01-".len()..].to_owned());
        starts.collect::<Vec<_>>().join(" ")
    };
    let hour = [(None, 600)];
    let window = "schedule: {windows: [{from: \"22:00\", for: 1h}], zone_tag: zone";
    for (rest, devices, expected) in [
        ("", &hour[..], "05T12:00:00Z 05T13:00:00Z 05T13:59:54Z"),
        // The first stage fills the window.
        (
            &format!("{window}}}"),
            &hour,
            "05T22:00:00Z 06T22:00:00Z 06T22:59:54Z",
        ),
        (
            &format!("{window}, freeze: [{{from: 2026-01-05, to: 2026-01-06}}]}}"),
            &hour,
            "07T22:00:00Z 08T22:00:00Z 08T22:59:54Z",
        ),
        (
            "schedule: {start_at: 2026-01-07T08:00:00Z}",
            &hour,
            "07T08:00:00Z 07T09:00:00Z 07T09:59:54Z",
        ),
        // The zone with the earliest opening begins.
        (
            &format!("{window}}}"),
            &[(None, 10), (Some("Europe/Berlin"), 10)],
            "05T21:00:00Z 05T22:01:00Z 06T21:00:54Z",
        ),
    ] {
        let found = starts(rest, devices, a_minute(10.0));
        assert_eq!(found, expected, "{rest}");
    }
    let limits = HubLimits {
        messages_per_day: Some(600),
        ..HubLimits::unlimited()
    };
    assert_eq!(
        starts("", &hour, limits),
        "05T12:00:00Z 06T00:00:00Z 06T00:00:00Z"
    );
}

#[test]
fn daily_quota_delays_sends_until_midnight() {
    let spec = spec("");
    let limits = HubLimits {
        messages_per_day: Some(1_000),
        ..HubLimits::unlimited()
    };
    let sent = |devices| {
        let stage = shares(&[(None, devices)], limits, &spec, 0);
        forecast(&spec, &[stage], noon()).unwrap().stages[0]
            .sent_at
            .to_string()
    };
    assert_eq!(sent(1_000), "2026-01-05T12:00:00Z");
    assert_eq!(sent(1_001), "2026-01-06T00:00:00Z");
    assert_eq!(sent(3_500), "2026-01-08T00:00:00Z");
    // Stages share the quota of a day.
    let stages = [shares(&[(None, 700)], limits, &spec, 0)];
    let mut walk = Walk::at(noon());
    let name = StageName::new("s").unwrap();
    let first = walk.send(&spec, &name, &stages[0], noon()).unwrap();
    walk.now = first.sent_at;
    let second = walk.send(&spec, &name, &stages[0], noon()).unwrap();
    assert_eq!(second.starts_at, noon());
    assert_eq!(second.sent_at.to_string(), "2026-01-06T00:00:00Z");
}

#[test]
fn implausible_specs_produce_warnings() {
    let of = |rest: &str, devices: u64, limits: HubLimits| {
        let spec = spec(rest);
        let stage = shares(&[(None, devices)], limits, &spec, 0);
        warnings(&spec, &stage.estimate).join("|")
    };
    let windows = |ttl: &str| {
        format!(
            "message: {{body: {{text: x}}, ttl: {ttl}}}\nschedule: {{windows: [{{from: \"01:00\", for: 2h}}, {{from: \"12:00\", for: 4h}}]}}"
        )
    };
    assert_eq!(of(&windows("2h"), 1, a_minute(1.0)), "");
    assert!(of(&windows("3h"), 1, a_minute(1.0)).contains("longer than a window (2h 00m)"));

    // A quota of 8,000 a day matters at a pace above the quota: 100 a minute.
    let free = HubLimits::of(Tier::F1, 1, 1.0);
    assert_eq!(of("", 8_000, free), "");
    assert!(of("", 16_000, free).contains("needs 2.0 days of its whole daily quota"));
    assert_eq!(of("rate: 5/min", 16_000, free), "");
    assert!(
        of("rate: 1/min", 200_000, free).contains("sending alone takes 140d"),
        "a long rollout"
    );
    // Waiting does not count as slow sending.
    for waits in [
        "schedule: {start_at: 2027-01-05T00:00:00Z}",
        "schedule: {windows: [{days: [mon], from: \"10:00\", for: 1m}]}",
        "stages: [{name: s, percent: 1%, gate: {bake: 90d}}, {name: t, gate: {bake: 90d}}]",
    ] {
        assert_eq!(of(waits, 1_000, a_minute(10.0)), "", "{waits}");
    }
}
