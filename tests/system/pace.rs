//! The rate and the order of sends: ramps and orders. Times come from the hub's message log.

use std::time::Duration;

use twincast_emulator::{Fleet, HubConfig, RunningHub};

use crate::harness::{Room, Signal, eventually, from_now};

/// Starts a hub in this process with devices of three sites, one without a number, and devices
/// without a site; in no particular order.
fn hub_of_sites(runtime: &tokio::runtime::Runtime, each: usize, latency: &str) -> RunningHub {
    let group = |site: &str, tags: &str| {
        format!(
            "{{count: {each}, id: \"{site}-{{index:02}}\", tags: {{type: fridge{tags}}}, behaviour: {{latency: {latency}}}}}"
        )
    };
    let groups = [
        group("none", ""),
        group("ten", ", site: 10"),
        group("north", ", site: north"),
        group("nine", ", site: \"9\""),
    ];
    let fleet = format!("{{seed: 3, groups: [{}]}}", groups.join(", "));
    let config = HubConfig {
        unlimited: true,
        feedback_interval: Duration::from_millis(100),
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

/// Returns the times of sends to the devices of a site, in milliseconds, ascending.
fn times(hub: &RunningHub, site: &str, each: usize) -> Vec<u64> {
    let messages = (0..each).flat_map(|n| {
        let id = format!("{site}-{n:02}");
        hub.hub().messages(&id).unwrap_or_default()
    });
    let mut times: Vec<_> = messages.map(|message| message.enqueued_ms).collect();
    times.sort_unstable();
    times
}

/// A ramp from 600 to 2400 a minute, and sites in numerical order. The program is stopped in
/// between, and continues at the rate reached by the ramp.
#[test]
fn a_ramp_rises_and_an_order_is_kept() {
    const EACH: usize = 60;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_of_sites(&runtime, EACH, "10ms");
    let room = Room::of(&hub);
    room.write(
        "ramped.yaml",
        "name: ramped\ntarget: { tags: { type: fridge } }\nbatch_by: [site]\n\
         message: { body: { text: hi } }\norder: { by: site }\n\
         ramp: { base: 600/min, factor: 2, every: 80, up_to: 2400/min }\n",
    );
    let plan = room
        .run(&["--json", "plan", "ramped.yaml"])
        .expect(0)
        .json();
    // 80 intervals at 10 a second, 80 at 20, 79 at 40, a per cent slower.
    let expected = (8.0 + 4.0 + 79.0 / 40.0) / 0.99;
    let predicted = plan["estimate"]["sending_seconds"].as_f64();
    assert!(
        predicted.is_some_and(|seconds| (seconds - expected).abs() < 0.01),
        "{plan}"
    );

    let begin = from_now(Duration::ZERO).0;
    let run = room.start(&["run", "ramped.yaml"]);
    eventually("the ramp's second step to be reached", || {
        (hub.hub().summary().accepted >= 100).then_some(())
    });
    run.signal(Signal::Interrupt);
    run.wait().expect(130);
    let status = room.run(&["--json", "status", "ramped"]).expect(0).json();
    let ramp = &status["ramp"];
    // On a busy machine, the program stops at a later step.
    let counted = ramp["counted"].as_u64().expect("a number");
    let rate: f64 = if counted < 160 { 1200.0 } else { 2400.0 };
    assert!(counted >= 100, "{status}");
    assert_eq!(ramp["rate_per_minute"], rate, "{status}");
    if counted < 160 {
        assert_eq!(ramp["next"]["counted"], 160, "{status}");
        assert_eq!(ramp["next"]["rate_per_minute"], 2400.0, "{status}");
    } else {
        assert!(ramp["next"].is_null(), "{status}");
    }
    let text = room.run(&["status", "ramped"]).expect(0).stdout;
    let line = format!("ramp: {rate}/min per hub with {counted}");
    assert!(text.contains(&line), "{text}");
    room.run(&["run", "ramped.yaml"]).expect(0);

    let sites: Vec<_> = ["nine", "ten", "north", "none"]
        .into_iter()
        .map(|site| times(&hub, site, EACH))
        .collect();
    for pair in sites.windows(2) {
        let middle = |times: &[u64]| times[times.len() / 2];
        assert!(pair[0][0] < pair[1][0], "{sites:?}");
        assert!(middle(&pair[0]) < middle(&pair[1]), "{sites:?}");
    }
    assert!(sites[0][EACH / 4] < sites[1][0], "{sites:?}");
    let mut all = sites.concat();
    all.sort_unstable();
    // No step comes early: after 8 s at the first rate, 4 s at the second, less the time that a
    // rollout may make up for. Delays of a busy machine only make sends later.
    for (sends, least) in [(80, 7_500), (160, 11_200)] {
        assert!(all[sends - 1] >= begin + least, "{sends}: {begin}, {all:?}");
    }
}

/// Returns the peak number of a site's devices with an uncompleted message. For a device sent to
/// again after a crash, the first completion counts.
fn most_in_progress(hub: &RunningHub, site: &str, each: usize) -> usize {
    let spans: Vec<(u64, u64)> = (0..each)
        .filter_map(|n| {
            let id = format!("{site}-{n:02}");
            let messages = hub.hub().messages(&id).unwrap_or_default();
            let start = messages.iter().map(|message| message.enqueued_ms).min()?;
            let done = messages.iter().filter_map(|message| message.done_ms).min();
            Some((start, done.unwrap_or(u64::MAX)))
        })
        .collect();
    let at = |now: u64| {
        let under_way = spans.iter().filter(|span| (span.0..span.1).contains(&now));
        under_way.count()
    };
    spans.iter().map(|span| at(span.0)).max().unwrap_or(0)
}

/// At most three devices of a site are in progress, through kills at any moment; devices without
/// the tag are not held back.
#[test]
fn a_budget_is_kept_through_kills() {
    const EACH: usize = 24;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_of_sites(&runtime, EACH, "1000ms..1500ms");
    let room = Room::of(&hub);
    room.write(
        "careful.yaml",
        "name: careful\ntarget: { tags: { type: fridge } }\nbatch_by: [site]\n\
         message: { body: { text: hi }, ack: full }\nbudgets: [{ tag: site, at_most: 3 }]\n",
    );
    let plan = room.run(&["plan", "careful.yaml"]).expect(0).stdout;
    let line = "Budget: at most 3 per site in progress; not included in the times";
    assert!(plan.contains(line), "{plan}");

    let mut held_back = false;
    for until in [EACH + 9, EACH + 30, EACH + 50] {
        let run = room.start(&["run", "careful.yaml"]);
        eventually("messages to further devices", || {
            (hub.hub().summary().distinct_devices >= until as u64).then_some(())
        });
        run.kill();
        let status = room.run(&["--json", "status", "careful"]).expect(0).json();
        let budgets = &status["budgets"];
        held_back |= budgets["held_back"].as_u64() > Some(0)
            && budgets["full"][0]["at_most"] == 3
            && budgets["full"][0]["in_progress"] == 3;
    }
    assert!(held_back, "some devices are held back");
    // After a kill, some devices may have been sent to again.
    let free = times(&hub, "none", EACH).len();
    assert!(
        free >= EACH,
        "devices without a budget are not held back: {free}"
    );
    room.run(&["run", "careful.yaml"]).expect(0);
    assert_eq!(hub.hub().summary().distinct_devices, 4 * EACH as u64);
    for site in ["nine", "ten", "north"] {
        let most = most_in_progress(&hub, site, EACH);
        assert_eq!(most, 3, "{site}");
    }
}
