//! `kill -9` in every state, with every hook held and every hook failing: no update is installed
//! twice, and every end is reported.

use serde_json::json;
use twincast_agent::report::Progress;

use crate::device::{Device, Setup};
use crate::hub::Hub;
use crate::relay::Relay;
use crate::until;

/// The byte offset of the stalled transfer, for a kill during the download.
const HELD_AT: usize = 100_000;

/// The state at the moment of the kill, and the failing hooks.
struct Case {
    killed_in: &'static str,
    fails: &'static [&'static str],
    ends: Progress,
    code: Option<&'static str>,
}

const fn case(
    killed_in: &'static str,
    fails: &'static [&'static str],
    ends: Progress,
    code: Option<&'static str>,
) -> Case {
    Case {
        killed_in,
        fails,
        ends,
        code,
    }
}

const CASES: [Case; 14] = [
    case("received", &[], Progress::Applied, None),
    case("verified", &[], Progress::Applied, None),
    case("downloading", &[], Progress::Applied, None),
    case("install", &[], Progress::Applied, None),
    case("install", &["install"], Progress::Failed, Some("install")),
    case("activate", &[], Progress::Applied, None),
    case(
        "activate",
        &["activate"],
        Progress::RolledBack,
        Some("activate"),
    ),
    case("health", &[], Progress::Applied, None),
    case(
        "health",
        &["health"],
        Progress::RolledBack,
        Some("health_check"),
    ),
    case("confirm", &[], Progress::Applied, None),
    case(
        "confirm",
        &["confirm"],
        Progress::RolledBack,
        Some("confirm"),
    ),
    case(
        "rollback",
        &["health"],
        Progress::RolledBack,
        Some("health_check"),
    ),
    case(
        "rollback",
        &["health", "rollback"],
        Progress::Failed,
        Some("rollback"),
    ),
    case("end", &[], Progress::Applied, None),
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_every_state_with_every_hook_failing() {
    let hub = Hub::start().await;
    let cases = CASES.iter().enumerate().map(|(at, case)| {
        let hub = &hub;
        async move { run(hub, &format!("dev-{at}"), case).await }
    });
    futures::future::join_all(cases).await;
}

async fn run(hub: &Hub, id: &str, case: &Case) {
    let relay = Relay::to(hub.running.mqtt_addr(), false).await;
    let jitter = if case.killed_in == "verified" {
        "720h"
    } else {
        "0s"
    };
    let setup = Setup {
        mqtt_port: relay.address.port(),
        download: format!("jitter = \"{jitter}\""),
        ..Setup::of(hub)
    };
    let mut device = Device::new(hub, id, setup).await;
    case.fails.iter().for_each(|hook| device.fail(hook));
    device.begin(hub).await;
    // An update stays in the state `received` while the installation of an earlier update is held.
    let before = "fw.before";
    if case.killed_in == "received" {
        device.hold("install");
        hub.send(id, before, &device.update("1.0.1")).await;
        device.wait_for_line("install begin 1.0.1").await;
    }
    if case.killed_in == "downloading" {
        device.files.set(|files| files.hold = Some(HELD_AT));
    }
    let is_hook = !matches!(
        case.killed_in,
        "received" | "verified" | "downloading" | "end"
    );
    match case.killed_in {
        "end" => device.hold("confirm"),
        hook if is_hook => device.hold(hook),
        _ => {}
    }
    hub.send(id, "fw.1", &device.update("1.1.0")).await;
    match case.killed_in {
        "received" => drop(hub.wait_for(id, "fw.1", Progress::Received).await),
        "verified" => drop(hub.wait_for(id, "fw.1", Progress::Verified).await),
        "downloading" => {
            // The state is reported before the first byte is requested.
            let artifact = device.path("state/download/artifact");
            until("the bytes before the hold", async || {
                let stored = std::fs::metadata(&artifact).ok()?.len();
                (stored == HELD_AT as u64).then_some(())
            })
            .await;
        }
        "end" => {
            device.wait_for_line("confirm begin 1.1.0").await;
            relay.block();
            device.release("confirm");
            // The end is stored, and cannot be reported.
            let log = device.path("agent.log");
            until("the applied state is logged", async || {
                crate::device::content(&log)
                    .contains("\"state\":\"applied\"")
                    .then_some(())
            })
            .await;
        }
        hook => device.wait_for_line(&format!("{hook} begin 1.1.0")).await,
    }
    device.kill();
    if case.killed_in == "verified" {
        time_passes(&device.path("state/state.json"));
    }
    device.start();
    if is_hook {
        // The hook survived the agent, and ends while the next agent waits for the hook.
        device.release(case.killed_in);
        device.restart();
    }
    device.release("install");
    device.files.set(|files| files.hold = None);
    relay.unblock();
    if case.killed_in == "received" {
        until("the earlier update is confirmed", async || {
            (device.count("confirm done 1.0.1") == 1).then_some(())
        })
        .await;
    }
    let report = hub.end_of(id, "fw.1").await;
    let killed_in = case.killed_in;
    assert_eq!(report["state"], json!(case.ends), "{killed_in} {report}");
    assert_eq!(
        report["error"]["code"],
        json!(case.code),
        "{killed_in} {report}"
    );
    // The health check may run again; every other hook runs once.
    for hook in ["install", "activate", "confirm", "rollback"] {
        let (begins, done) = (
            device.count(&format!("{hook} begin 1.1.0")),
            device.count(&format!("{hook} done 1.1.0")),
        );
        assert!(
            begins <= 1,
            "{killed_in}: {hook} was run {begins} times: {:?}",
            device.log()
        );
        let expected = usize::from(begins == 1 && !case.fails.contains(&hook));
        assert_eq!(done, expected, "{killed_in} {hook}: {:?}", device.log());
    }
    let installs = usize::from(!case.fails.contains(&"install"));
    assert_eq!(device.count("install done 1.1.0"), installs, "{killed_in}");
    if killed_in == "downloading" {
        let rest = format!("bytes={HELD_AT}-");
        assert_eq!(device.files.ranges(), [None, Some(rest)]);
    }
    // The version at the start, and at most seven states of each update.
    let (_, writes) = hub.reported(id).await;
    let updates = if killed_in == "received" { 2 } else { 1 };
    assert!(writes <= 1 + 7 * updates, "{killed_in}: {writes} writes");
}

/// Moves the deadline of a waiting update into the past.
fn time_passes(state: &std::path::Path) {
    let mut stored: serde_json::Value =
        serde_json::from_str(&crate::device::content(state)).unwrap();
    let until = stored.pointer_mut("/current/step/until").unwrap();
    *until = json!("2026-01-01T00:00:00Z");
    std::fs::write(state, stored.to_string()).unwrap();
}
