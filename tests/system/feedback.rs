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
