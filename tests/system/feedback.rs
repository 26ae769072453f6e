//! The devices' handling of messages, as reported by the hub's feedback.

use std::collections::BTreeMap;
use std::time::Duration;

use twincast_emulator::{Fleet, HubConfig, MessageState, RunningHub};

use crate::harness::{Room, Row};

const DEVICES: usize = 48;

/// Starts a hub in this process: the command line offers neither immediate feedback nor messages
/// expiring within seconds.
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

/// Returns the reported outcome for the hub's state of a message.
fn describe_state(state: MessageState) -> &'static str {
    match state {
        MessageState::Delivered => "delivered",
        MessageState::Rejected => "rejected",
        MessageState::Expired => "expired",
        _ => "enqueued",
    }
}

/// Asserts that the classes add up to the devices, and agree in all views.
fn assert_classes_agree(room: &Room, name: &str) {
    let status = room.run(&["--json", "status", name]).expect(0).json();
    let by_class: BTreeMap<String, usize> =
        serde_json::from_value(status["by_class"].clone()).expect("devices by class");
    assert_eq!(by_class.values().sum::<usize>(), DEVICES, "{status}");
    for shown in [&status["stages"][0], &status["groups"][0]] {
        assert_eq!(shown["by_class"], status["by_class"], "{status}");
    }
    for (class, devices) in &by_class {
        let report = ["report", name, "--format", "csv", "--class", class];
        let report = room.run(&report).expect(0).stdout;
        assert_eq!(report.lines().count(), 1 + devices, "{class}: {report}");
    }
    let failed = room.run(&["report", name, "--failed"]).expect(0).stdout;
    let not_taken = by_class["not_taken"];
    assert_eq!(failed.lines().count(), 1 + not_taken, "{failed}");
    let headline = format!(
        "{name} finished with failures: {DEVICES} devices: {} taken, ",
        by_class["taken"]
    );
    let text = room.run(&["status", name]).expect(0).stdout;
    assert!(text.starts_with(&headline), "{text}");
    assert!(
        text.contains(&format!(" {not_taken} not taken\n")),
        "{text}"
    );
}

#[test]
fn feedback_before_the_end_of_a_run_is_in_the_report() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = quick_hub(&runtime);
    let room = Room::of(&hub);
    // At four sends a second, the first half is settled long before the send to the last device
    // ends the run.
    room.write(
        "answered.yaml",
        "name: answered\ntarget: { tags: { type: fridge } }\nrate: 240/min\n\
         message: { body: { text: hello }, ack: full }\n",
    );
    room.run(&["run", "answered.yaml"]).expect(4);

    let rows = room.report("answered");
    assert_eq!(rows.len(), DEVICES);
    let (answered, waited_for): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.outcome != "enqueued");
    for row in &answered {
        let messages = hub.hub().messages(&row.device).expect("a device");
        let states: Vec<_> = messages.iter().map(|m| describe_state(m.state)).collect();
        assert_eq!(states, [row.outcome.as_str()], "{row:?}");
    }
    assert_classes_agree(&room, "answered");
    let mut counts = BTreeMap::new();
    for row in &answered {
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
        answered.len() as u64 >= seen.feedback_completed && seen.feedback_completed > 0,
        "{} were completed, of {} that are in the report",
        seen.feedback_completed,
        answered.len()
    );
    runtime.block_on(hub.shutdown());
}
