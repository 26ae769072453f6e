//! Unusual devices: ids with all characters accepted by the hub, and tags of unusual types.

use twincast_core::ids::DeviceId;

use crate::harness::{Fleet, Hub, Room, assert_report_matches};

/// All permitted characters of an id beside letters and digits.
const MARKS: &str = "-:.+%_#*?!(),=@;$'";

#[test]
fn all_valid_device_ids_are_planned_sent_to_and_explained() {
    let fleet = format!(
        "{{groups: [\
         {{count: 30, id: \"{MARKS}{{index:02}}\", tags: {{site: \"a;b,c\"}}}}, \
         {{count: 5, id: \"%41{{index}}\"}}, {{count: 5, id: \"{{index}}..\"}}]}}"
    );
    let hub = Hub::unlimited(&Fleet::written(&fleet));
    let room = Room::with(&hub);
    let spec =
        "name: odd\ntarget: { all: true }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n";
    room.write("odd.yaml", spec);
    let plan = room.run(&["--json", "plan", "odd.yaml"]).expect(0).json();
    assert_eq!(plan["plan"]["devices"], 40);
    assert_eq!(plan["plan"]["malformed_rows"], serde_json::Value::Null);
    room.run(&["run", "odd.yaml"]).expect(0);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.distinct_devices), (40, 40));
    assert_report_matches(&room.report("odd"), &hub.message_log());
    for device in [&format!("{MARKS}07"), "%413", "2.."] {
        assert!(DeviceId::new(device).is_ok());
        let text = room.run(&["explain", "odd", device]).expect(0).stdout;
        assert!(text.starts_with(&format!("{device} in odd")), "{text}");
    }
    // The same for a list.
    room.write("list.txt", &format!("{MARKS}01\r\n%412\n0..\n"));
    room.write(
        "listed.yaml",
        "name: listed\ntarget: { devices_file: list.txt }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n",
    );
    room.run(&["run", "listed.yaml"]).expect(0);
    assert_eq!(hub.summary().accepted, 43);
}

#[test]
fn devices_with_invalid_tag_types_are_left_out_and_named() {
    let fleet = "{groups: [\
         {count: 12, id: \"odd-{index:02}\", tags: {site: {floor: 1}}}, \
         {count: 20, id: \"good-{index:02}\", tags: {site: 7}}]}";
    let hub = Hub::unlimited(&Fleet::written(fleet));
    let room = Room::with(&hub);
    room.write(
        "left.yaml",
        "name: left\ntarget: { all: true }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n",
    );
    let named = [
        "       12  in malformed rows of the hubs' answers:",
        "\"odd-00\" of hub emulator: tags.site is an object; batch_by allows text",
        "and 2 more",
    ];
    let plan = room.run(&["plan", "left.yaml"]).expect(0).stdout;
    let run = room.run(&["run", "left.yaml"]).expect(0).stdout;
    let status = room.run(&["status", "left"]).expect(0).stdout;
    let report = room.run(&["report", "left"]).expect(0);
    for text in [&plan, &run, &status, &report.stderr] {
        for words in named {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    assert!(!report.stdout.contains("odd-"), "{report}");
    for command in [["status", "left"], ["report", "left"]] {
        let json = room
            .run(&["--json", command[0], command[1]])
            .expect(0)
            .json();
        let malformed = &json["plan"]["malformed_rows"];
        assert_eq!(malformed["rows"], 12, "{json}");
        assert_eq!(malformed["examples"][0]["found"], "odd-00", "{json}");
    }
    assert_eq!(hub.summary().accepted, 20);
    room.run(&["explain", "left", "odd-03"])
        .expect(3)
        .says(&["the row of hub emulator is malformed: tags.site is an object"]);

    // No device is left, and the reason mentions the row.
    let none = "name: none\ntarget: { where: \"deviceId IN ['odd-01']\" }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n";
    room.write("none.yaml", none);
    for command in ["plan", "run"] {
        let ended = room.run(&[command, "none.yaml"]).expect(3).to_string();
        assert!(
            ended.contains(
                "the target matches no device; 1 malformed row of the hubs' answers was left out"
            ),
            "{ended}"
        );
    }
}
