//! A hub that fails over: identities and twins stay, messages to devices and feedback are lost.

use tokio::runtime::Runtime;
use twincast_emulator::{Faults, Fleet, HubConfig, RunningHub};

use crate::harness::{Room, eventually};

const DEVICES: u64 = 600;

/// Starts the hub at a new place: the same name, keys and devices, and no messages. The hub delays
/// its answers to sends.
fn hub(runtime: &Runtime, disposition_delay_ms: u64) -> RunningHub {
    let fleet = format!(
        "seed: 5\ngroups:\n  - name: fridges\n    count: {DEVICES}\n    id: \"d-{{index:06}}\"\n    tags: {{ type: fridge, region: eu }}\n    behaviour: {{ offline: 100% }}\n"
    );
    let config = HubConfig {
        unlimited: true,
        faults: Faults {
            disposition_delay_ms,
            ..Faults::default()
        },
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub")
}

#[test]
fn the_documented_retry_resends_messages_lost_in_a_failover() {
    let runtime = Runtime::new().expect("a runtime");
    // The run takes three windows of slow answers, and the failover is in the second window.
    let first = hub(&runtime, 5_000);
    let mut room = Room::of(&first).set("TWINCAST__RUN__GIVE_UP_AFTER", "10s");
    let spec = room.rollout("firmware", "");
    let mut run = room.start(&["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (first.hub().summary().accepted >= DEVICES / 2).then_some(())
    });
    runtime.block_on(first.shutdown());
    run.wait().expect(5);

    let second = hub(&runtime, 0);
    room.goes_to(&second);
    room.set_for_all("TWINCAST__RUN__GIVE_UP_AFTER", "15m");
    // The run continues without help, and cannot know of lost messages.
    room.run(&["run", &spec]).expect(0);
    let accepted = second.hub().summary().accepted;
    assert!(accepted < DEVICES, "{accepted} of {DEVICES}");
    let rows = room.report("firmware");
    assert_eq!(rows.len() as u64, DEVICES);
    assert!(rows.iter().all(|row| row.outcome == "enqueued"), "{rows:?}");

    room.run(&["retry", "firmware", "--outcome", "enqueued"])
        .expect(0);
    room.run(&["run", &spec]).expect(0);
    let seen = second.hub().summary();
    assert_eq!(seen.distinct_devices, DEVICES, "{seen:?}");
    // The second message to a device has a new id.
    assert_eq!(seen.repeats_by_message_id, 0, "{seen:?}");
    runtime.block_on(second.shutdown());
}
