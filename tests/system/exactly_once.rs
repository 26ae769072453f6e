//! A rollout without failures: every device gets the message once, and every report agrees.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Fleet, Hub, Room, Row, assert_report_matches, assert_same_ids};

const DEVICES: u64 = 20_000;

#[test]
fn each_device_gets_one_message_and_all_reports_agree() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let room = Room::with(&hub);
    let spec = room.rollout("one", "");

    let result = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_eq!(result["phase"], "succeeded");
    assert_eq!(result["devices"], DEVICES);
    assert_eq!(result["counts"], json!({ "enqueued": DEVICES }));
    assert_eq!(result["failures"], json!([]));
    let groups: Vec<_> = result["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .map(|group| {
            (
                group["group"].as_str(),
                group["counts"]["enqueued"].as_u64(),
            )
        })
        .collect();
    assert_eq!(
        groups,
        [
            (Some("region=eu-north"), Some(8_000)),
            (Some("region=eu-south"), Some(5_000)),
            (Some("region=us-east"), Some(4_000)),
            (Some("region=us-west"), Some(3_000)),
        ]
    );

    let seen = hub.summary();
    assert_eq!(
        (seen.accepted, seen.distinct_devices, seen.repeats_by_device),
        (DEVICES, DEVICES, 0)
    );
    assert_eq!(seen.transfers, DEVICES, "no send was repeated");

    let message_log = hub.message_log();
    assert_eq!(message_log.len() as u64, DEVICES);
    assert_same_ids(&message_log);
    let rows = room.report("one");
    assert_eq!(rows.len() as u64, DEVICES);
    assert_report_matches(&rows, &message_log);
    assert!(rows.iter().all(|row| row.outcome == "enqueued"));

    assert_same_as_csv(&room, &rows);
    assert_same_as_table(&room, &rows);
    assert_same_as_json(&room, &rows);
    let failed = room.run(&["report", "one", "--failed", "--format", "jsonl"]);
    assert_eq!(failed.expect(0).stdout, "");
}

fn assert_same_as_csv(room: &Room, rows: &[Row]) {
    let ended = room.run(&["report", "one", "--format", "csv"]).expect(0);
    let mut reader = csv::Reader::from_reader(ended.stdout.as_bytes());
    let from_csv: Vec<Row> = reader
        .deserialize()
        .collect::<Result<_, _>>()
        .expect("rows with a header");
    assert!(from_csv == rows, "the CSV report differs from JSON Lines");
}

fn assert_same_as_table(room: &Room, rows: &[Row]) {
    let ended = room.run(&["report", "one"]).expect(0);
    let mut lines = ended.stdout.lines();
    let headings: Vec<_> = lines.next().expect("headings").split_whitespace().collect();
    assert_eq!(
        headings,
        ["device", "hub", "outcome", "class", "group", "reason"]
    );
    let from_table: Vec<_> = lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("a column").to_owned();
            (word(), word(), word(), word(), word())
        })
        .collect();
    let expected: Vec<_> = rows
        .iter()
        .cloned()
        .map(|row| {
            (
                row.device,
                row.hub,
                row.outcome,
                "sent".to_owned(),
                row.group,
            )
        })
        .collect();
    assert!(from_table == expected, "the table differs from JSON Lines");
}

fn assert_same_as_json(room: &Room, rows: &[Row]) {
    let report = room.run(&["--json", "report", "one"]).expect(0).json();
    let devices: Vec<Row> =
        serde_json::from_value(report["devices_list"].clone()).expect("rows of devices");
    assert!(devices == rows, "the JSON report differs from JSON Lines");
    assert_eq!(report["counts"], json!({ "enqueued": DEVICES }));
}

#[test]
fn failed_devices_are_reported_with_the_reason() {
    let hub = Hub::unlimited(&Fleet::behaving(1_000, "{ disabled: 3%, offline: 20% }"));
    let room = Room::with(&hub);
    room.write(
        "devices.txt",
        "# some there, some not\nd-000000\nd-000001\nnobody\n\nd-000001\n",
    );
    let spec = room.rollout("all", "");
    let listed =
        "name: listed\ntarget: { devices_file: devices.txt }\nmessage: { body: { text: hi } }\n";
    room.write("listed.yaml", listed);

    let result = room.run(&["--json", "run", &spec]).expect(4).json();
    assert_eq!(result["phase"], "finished_with_failures");
    let failure = &result["failures"][0];
    assert_eq!(failure["devices"], 30);
    assert_eq!(hub.summary().distinct_devices, 970);
    let rows = room.report("all");
    assert_report_matches(&rows, &hub.message_log());
    let failed = room.run(&["report", "all", "--failed", "--format", "jsonl"]);
    let failed: BTreeSet<Row> = failed
        .expect(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    let expected: BTreeSet<Row> = rows
        .into_iter()
        .filter(|row| row.outcome != "enqueued")
        .collect();
    assert_eq!(failed.len(), 30);
    assert!(failed == expected, "--failed shows other devices");

    // At most 50 messages wait for a device; an unknown device is not found; a duplicate counts
    // once.
    let result = room.run(&["--json", "run", "listed.yaml"]).expect(4).json();
    assert_eq!(result["devices"], 3);
    assert_eq!(result["counts"]["enqueued"], 2);
    assert_eq!(result["failures"][0]["outcome"], "not_found");
    assert_eq!(result["failures"][0]["samples"], json!(["nobody"]));
}

#[test]
fn a_full_device_queue_is_reported() {
    let hub = Hub::unlimited(&Fleet::behaving(2, "{ offline: 50% }"));
    let room = Room::with(&hub);
    for round in 0..50 {
        let spec = room.rollout(&format!("fill-{round}"), "");
        room.run(&["run", &spec]).expect(0);
    }
    let spec = room.rollout("too-much", "");
    let result = room.run(&["--json", "run", &spec]).expect(4).json();
    assert_eq!(result["counts"], json!({ "queue_full": 1, "enqueued": 1 }));
    assert_eq!(hub.summary().queue_full, 1);
    assert_report_matches(
        &room.report("too-much"),
        &hub.message_log()
            .into_iter()
            .map(|(device, mut ids)| {
                ids.retain(|id| id.starts_with("too-much."));
                (device, ids)
            })
            .filter(|(_, ids)| !ids.is_empty())
            .collect(),
    );
}
