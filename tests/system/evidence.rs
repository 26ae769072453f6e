//! Gates on evidence: silence counts only if an answer would have been received.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Chance, Fleet, Hub, Room, Running, eventually};

/// Devices behind the canaries.
const OTHERS: u64 = 50;

/// Returns a fleet of canaries that reject, are offline or take their messages, and of other
/// devices.
fn fleet(reject: u64, away: u64, take: u64) -> Fleet {
    let group = |id: &str, many: u64, ring: &str, behaviour: &str| match many {
        0 => String::new(),
        many => format!(
            "  - {{count: {many}, id: \"{id}-{{index:03}}\", tags: {{type: fridge, ring: {ring}}}, \
             behaviour: {{{behaviour}}}}}\n"
        ),
    };
    let groups = [
        group("reject", reject, "canary", "rejects: 100%"),
        group("away", away, "canary", "offline: 100%"),
        group("take", take, "canary", ""),
        group("other", OTHERS, "main", ""),
    ];
    Fleet::written(&format!("seed: 3\ngroups:\n{}", groups.concat()))
}

/// A hub that sends feedback every three seconds, and locks delivered feedback for two seconds.
fn hub(fleet: &Fleet) -> Hub {
    hub_with_batching(fleet, "3s")
}

/// A hub that leaves time to kill a run before any feedback, even on a busy machine.
fn slow_hub(fleet: &Fleet) -> Hub {
    hub_with_batching(fleet, "6s")
}

fn hub_with_batching(fleet: &Fleet, batching: &str) -> Hub {
    let flags = format!("--unlimited --feedback-batching {batching} --feedback-lock 2s");
    let flags: Vec<_> = flags.split(' ').collect();
    Hub::start(fleet, &flags)
}

/// A rollout with a gate behind its canaries.
fn write(room: &Room, gate: &str) {
    room.write(
        "r.yaml",
        &format!(
            "name: r\ntarget: {{ tags: {{ type: fridge }} }}\nmessage: {{ body: {{ text: hi }}, ack: full }}\n\
             stages: [{{ name: canary, tags: {{ ring: canary }}, gate: {{ counts: delivered, {gate} }} }}]\n"
        ),
    );
}

/// The rollout's record, as shown by `status --json`.
fn status(room: &Room) -> Value {
    room.run(&["--json", "status", "r"]).expect(0).json()
}

/// Kills a `run` after its sends, and before any feedback. Returns when the hub holds `answers`
/// feedback records.
fn kill_before_feedback(room: &Room, hub: &Hub, answers: u64) {
    let running: Running = room.start(&["run", "r.yaml"]);
    eventually("the canaries' messages", || {
        (hub.summary().accepted >= answers).then_some(())
    });
    eventually("the records of the sends", || {
        (status(room)["counts"]["enqueued"] == answers).then_some(())
    });
    running.kill();
    eventually("the canaries' answers", || {
        (hub.summary().feedback_waiting >= answers).then_some(())
    });
}

/// Waits until `time` has passed since `since`.
fn until_after(since: Instant, time: Duration) {
    eventually("time to pass", || (since.elapsed() >= time).then_some(()));
}

#[test]
fn silent_devices_do_not_hide_rejections() {
    for (reject, away) in [(9, 1), (19, 30)] {
        let hub = hub(&fleet(reject, away, 0));
        let room = Room::with(&hub);
        write(&room, "failure_above: 5%, deadline: 20s");
        let stopped = room.run(&["run", "r.yaml"]).expect(8);
        // On a busy machine, the first feedback has only some of the rejections.
        let because = "the gate of stage canary failed: ";
        assert!(stopped.stdout.contains(because), "{}", stopped.stdout);
        assert!(
            hub.summary().accepted <= reject + away,
            "no other device received a message"
        );
    }
}

#[test]
fn too_few_answers_pause_unless_the_spec_permits_a_pass() {
    let hub = hub(&fleet(0, 2, 8));
    let room = Room::with(&hub);
    write(&room, "failure_above: 5%, deadline: 5s, on_failure: abort");
    let paused = room.run(&["run", "r.yaml"]).expect(8);
    let because = "the sample is too small: 8 of 10 devices measured, 2 silent; 10 are needed";
    assert!(paused.stdout.contains(because), "{}", paused.stdout);
    assert!(paused.stderr.contains("r is paused: "), "{}", paused.stderr);
    assert_eq!(
        (status(&room)["phase"].as_str(), hub.summary().accepted),
        (Some("paused"), 10)
    );

    let room = Room::with(&hub);
    write(&room, "failure_above: 5%, deadline: 5s, too_little: pass");
    room.run(&["run", "r.yaml", "--no-wait"]).expect(0);
    assert_eq!(hub.summary().accepted, 10 + 10 + OTHERS);
}

#[test]
fn answers_queued_at_the_hub_count_after_a_crash() {
    // All devices reject, and no process listened until the deadline was over.
    let rejecting = slow_hub(&fleet(10, 0, 0));
    let room = Room::with(&rejecting);
    write(&room, "failure_above: 5%, deadline: 5s");
    kill_before_feedback(&room, &rejecting, 10);
    until_after(Instant::now(), Duration::from_secs(6));
    let stopped = room.run(&["run", "r.yaml"]).expect(8);
    assert!(
        stopped
            .stdout
            .contains("the gate of stage canary failed: 10 of 10"),
        "{}",
        stopped.stdout
    );
    assert_eq!(rejecting.summary().distinct_devices, 10);

    // All devices take the message: no reason to abort.
    let taking = slow_hub(&fleet(0, 0, 20));
    let room = Room::with(&taking);
    write(
        &room,
        "failure_above: 5%, success_at_least: 90%, deadline: 5s, on_failure: abort",
    );
    kill_before_feedback(&room, &taking, 20);
    until_after(Instant::now(), Duration::from_secs(6));
    room.run(&["run", "r.yaml"]).expect(0);
    assert_eq!(taking.summary().distinct_devices, 20 + OTHERS);
}

#[test]
fn the_wait_for_an_unavailable_hub_is_reported() {
    let hub = slow_hub(&fleet(10, 0, 0));
    let room = Room::with(&hub);
    write(&room, "failure_above: 5%, deadline: 5s, on_failure: abort");
    kill_before_feedback(&room, &hub, 10);
    hub.faults(r#"{"refuse_connections": true}"#);
    let running = room.start(&["run", "r.yaml"]);
    eventually("a message about the obstacle", || {
        let said = running.stderr();
        said.contains("stage canary waits for evidence of 10 silent devices: hub emulator: ")
            .then_some(())
    });
    hub.faults(r#"{"refuse_connections": false}"#);
    let ended = running.wait().expect(8);
    assert!(
        ended
            .stdout
            .contains("the gate of stage canary failed: 10 of 10"),
        "{ended}"
    );
}

#[test]
fn a_run_ends_after_feedback_of_all_devices() {
    // Messages for offline devices expire after two seconds, and the hub reports the expiry. All
    // feedback is in a single message, after the end of the first run.
    let fleet = fleet(8, 4, 20);
    let flags = "--unlimited --feedback-batching 10s --feedback-records 1000 --feedback-lock 2s \
                 --default-ttl 2s";
    let flags: Vec<_> = flags.split(' ').collect();
    let hub = Hub::start(&fleet, &flags);
    let room = Room::with(&hub);
    let spec =
        "name: r\ntarget: { tags: { type: fridge } }\nmessage: { body: { text: hi }, ack: full }\n";
    room.write("r.yaml", spec);
    let sent = room.run(&["run", "r.yaml", "--no-wait"]).expect(0);
    assert!(
        sent.stderr.contains("devices have not answered yet"),
        "{sent}"
    );
    // A second run receives the feedback of the meantime, and ends.
    let ended = room.run(&["run", "r.yaml"]).expect(4);
    assert!(ended.stdout.contains("finished with failures"), "{ended}");
    let rows = room.report("r");
    let of = |outcome: &str| rows.iter().filter(|row| row.outcome == outcome).count();
    assert_eq!(
        [of("delivered"), of("rejected"), of("expired")],
        [70, 8, 4],
        "{rows:?}"
    );
    let again = room.run(&["run", "r.yaml"]).expect(4);
    assert!(again.stderr.contains("has already ended"), "{again}");
}

#[test]
fn unread_foreign_feedback_does_not_hide_own_feedback() {
    // Devices answer slowly, so no process receives the answers to the first rollout; the first run
    // is killed.
    let fleet = Fleet::written(
        "seed: 3\ngroups:\n\
         - {count: 10, id: \"reject-{index:03}\", tags: {type: fridge, ring: canary}, \
            behaviour: {rejects: 100%, latency: 6s..7s}}\n\
         - {count: 60, id: \"take-{index:03}\", tags: {type: fridge, ring: canary}, behaviour: {latency: 6s..7s}}\n\
         - {count: 50, id: \"other-{index:03}\", tags: {type: fridge, ring: main}}\n",
    );
    // Each answer is a separate message.
    let flags = "--unlimited --feedback-batching 1s --feedback-lock 5s --feedback-records 1";
    let flags: Vec<_> = flags.split(' ').collect();
    let hub = Hub::start(&fleet, &flags);
    let other = Room::with(&hub);
    write(&other, "failure_above: 90%, bake: 10m");
    kill_before_feedback(&other, &hub, 70);

    let room = Room::with(&hub);
    write(&room, "failure_above: 5%, deadline: 60s, on_failure: abort");
    let ended = room.run(&["run", "r.yaml"]);
    let ended = ended.expect(8);
    assert!(
        ended.stdout.contains("the gate of stage canary failed: "),
        "{ended}"
    );
    assert_eq!(
        hub.summary().accepted,
        140,
        "no device behind the canaries received a message"
    );
}

#[test]
fn a_pause_by_a_person_is_lifted_by_a_person() {
    let hub = hub(&fleet(0, 0, 10));
    let room = Room::with(&hub);
    write(&room, "success_at_least: 90%, approval: {}");
    room.run(&["run", "r.yaml"]).expect(8);
    let pause = ["pause", "r", "--reason", "complaints", "--by", "ann"];
    room.run(&pause).expect(0);
    let paused = room.run(&["run", "r.yaml"]).expect(8).stderr;
    assert!(
        paused.contains("r is paused: complaints (pause by ann). To continue: "),
        "{paused}"
    );
    room.run(&["approve", "r"]).expect(0);
    room.run(&["run", "r.yaml"]).expect(8);
    assert_eq!(hub.summary().accepted, 10);
    room.run(&["resume", "r"]).expect(0);
    room.run(&["run", "r.yaml"]).expect(0);
    assert_eq!(hub.summary().accepted, 10 + OTHERS);
}

#[test]
fn failed_twin_queries_are_reported_and_retried() {
    let hub = Hub::start(
        &Fleet::written(
            "seed: 3\ngroups:\n  - {count: 10, id: \"c-{index:03}\", tags: {type: fridge, ring: canary}, \
             reported_after_delivery: {firmware: \"2\"}}\n",
        ),
        &[
            "--unlimited",
            "--feedback-batching",
            "1s",
            "--feedback-lock",
            "2s",
        ],
    );
    let room = Room::with(&hub);
    room.write(
        "r.yaml",
        "name: r\ntarget: { tags: { type: fridge } }\nmessage: { body: { text: hi }, ack: full }\n\
         stages: [{ name: canary, tags: { ring: canary }, gate: { counts: applied, bake: 10s, \
         applied_when: \"properties.reported.firmware = '2'\", success_at_least: 100% } }]\n",
    );
    let running = room.start(&["run", "r.yaml"]);
    eventually("the canaries' messages", || {
        (hub.summary().accepted >= 10).then_some(())
    });
    hub.faults(r#"{"http_503": {"share": 1.0}}"#);
    eventually("a message about the obstacle", || {
        let said = running.stderr();
        said.contains("the hub's count of devices that have applied it: cannot")
            .then_some(())
    });
    hub.faults(r#"{"http_503": {"share": 0.0}}"#);
    running.wait().expect(0);
}

/// A kill of `run` around the deadline does not change the verdict.
#[test]
fn twenty_kills_around_a_deadline_change_no_verdict() {
    const KILLS: usize = 20;
    let verdict = |index: usize| {
        // The gate fails for even numbers, and holds for odd numbers.
        let (fleet, gate, code, devices) = match index % 2 {
            0 => (
                fleet(3, 7, 10),
                "failure_above: 20%, deadline: 5s, min_sample: 15",
                8,
                20,
            ),
            _ => (
                fleet(0, 3, 17),
                "success_at_least: 85%, failure_above: 10%, deadline: 5s, min_sample: 15",
                0,
                20 + OTHERS,
            ),
        };
        let hub = hub(&fleet);
        let room = Room::with(&hub);
        write(&room, gate);
        let mut chance = Chance::seeded(index as u64);
        let first = room.start(&["run", "r.yaml", "--no-wait"]);
        eventually("the canaries' messages", || {
            (hub.summary().accepted >= 20).then_some(())
        });
        // The deadline is five seconds later, and feedback arrives up to three more seconds later.
        until_after(
            Instant::now(),
            Duration::from_millis(chance.within(0..8_500)),
        );
        first.kill();
        until_after(
            Instant::now(),
            Duration::from_millis(chance.within(0..2_000)),
        );
        let ended = room.run(&["run", "r.yaml", "--no-wait"]).expect(code);
        assert_eq!(hub.summary().distinct_devices, devices, "{index}: {ended}");
    };
    std::thread::scope(|scope| {
        for turn in 0..10 {
            let verdict = &verdict;
            scope.spawn(move || (turn..KILLS).step_by(10).for_each(verdict));
        }
    });
}
