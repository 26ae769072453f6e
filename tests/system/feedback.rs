//! What devices did with their messages, as the hub's feedback tells it.

use std::collections::BTreeMap;
use std::time::Duration;

use twincast_emulator::{Fleet, HubConfig, MessageState, RunningHub};

use crate::harness::{Room, Row};

const DEVICES: usize = 48;

/// A hub in this process: feedback that comes at once, and messages that expire within seconds,
/// are no choice of the command line's.
fn quick_hub(runtime: &tokio::runtime::Runtime) -> RunningHub {
    let fleet = format!(
        "{{seed: 5, groups: [{{count: {DEVICES}, id: \"d-{{index:02}}\", tags: {{type: fridge}}, \
         behaviour: {{rejects: 25%, offline: 25%}}}}]}}"
    );
    let config = HubConfig {
        unlimited: true,
        default_ttl: Duration::from_secs(2),
        feedback_interval: Duration::from_millis(100),
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

/// What a report may say of a message that the hub says this of.
fn in_our_words(state: MessageState) -> &'static str {
    match state {
        MessageState::Delivered => "delivered",
        MessageState::Rejected => "rejected",
        MessageState::Expired => "expired",
        _ => "enqueued",
    }
}

/// Classes add up to the devices, and are the same in all that shows them.
fn assert_classes_agree(room: &Room, name: &str) {
    let status = room.run(&["--json", "status", name]).expect(0).json();
    let ends: BTreeMap<String, usize> =
        serde_json::from_value(status["ends"].clone()).expect("devices by class");
    assert_eq!(ends.values().sum::<usize>(), DEVICES, "{status}");
    for shown in [&status["stages"][0], &status["groups"][0]] {
        assert_eq!(shown["ends"], status["ends"], "{status}");
    }
    for (class, devices) in &ends {
        let report = ["report", name, "--format", "csv", "--class", class];
        let report = room.run(&report).expect(0).stdout;
        assert_eq!(report.lines().count(), 1 + devices, "{class}: {report}");
    }
    let failed = room.run(&["report", name, "--failed"]).expect(0).stdout;
    let not_taken = ends["not_taken"];
    assert_eq!(failed.lines().count(), 1 + not_taken, "{failed}");
    let headline = format!(
        "{name} finished with failures: {DEVICES} devices: {} taken, ",
        ends["taken"]
    );
    let text = room.run(&["status", name]).expect(0).stdout;
    assert!(text.starts_with(&headline), "{text}");
    assert!(
        text.contains(&format!(" {not_taken} not taken\n")),
        "{text}"
    );
}

#[test]
fn what_devices_did_in_time_is_in_the_report() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = quick_hub(&runtime);
    let room = Room::of(&hub);
    // At four a second the first half has long been dealt with when the last one is sent to,
    // which ends the run.
    room.write(
        "told.yaml",
        "name: told\ntarget: { tags: { type: fridge } }\nrate: 240/min\n\
         message: { body: { text: hello }, ack: full }\n",
    );
    room.run(&["run", "told.yaml"]).expect(4);

    let rows = room.report("told");
    assert_eq!(rows.len(), DEVICES);
    let (told, waited_for): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.outcome != "enqueued");
    for row in &told {
        let messages = hub.hub().messages(&row.device).expect("a device");
        let states: Vec<_> = messages.iter().map(|m| in_our_words(m.state)).collect();
        assert_eq!(states, [row.outcome.as_str()], "{row:?}");
    }
    assert_classes_agree(&room, "told");
    let mut counts = BTreeMap::new();
    for row in &told {
        *counts.entry(row.outcome.as_str()).or_insert(0) += 1;
    }
    let kinds: Vec<_> = counts.keys().copied().collect();
    assert_eq!(kinds, ["delivered", "expired", "rejected"], "{counts:?}");
    assert!(
        waited_for.len() <= DEVICES / 2,
        "{counts:?} when the run ended"
    );
    let seen = hub.hub().summary();
    assert!(
        told.len() as u64 >= seen.feedback_completed && seen.feedback_completed > 0,
        "{} were completed, of {} that are in the report",
        seen.feedback_completed,
        told.len()
    );
    runtime.block_on(hub.shutdown());
}
