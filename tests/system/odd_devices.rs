//! Devices that are not as one thinks of them: ids with all characters that the hub takes, tags of odd types.

use twincast_core::ids::DeviceId;

use crate::harness::{Fleet, Hub, Room, agree};

/// Every character that an id may have beside letters and digits.
const MARKS: &str = "-:.+%_#*?!(),=@;$'";

#[test]
fn every_id_that_a_hub_takes_is_planned_sent_to_and_explained() {
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
    assert_eq!(plan["plan"]["not_understood"], serde_json::Value::Null);
    room.run(&["run", "odd.yaml"]).expect(0);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.distinct_devices), (40, 40));
    agree(&room.report("odd"), &hub.account());
    for device in [&format!("{MARKS}07"), "%413", "2.."] {
        assert!(DeviceId::new(device).is_ok());
        let text = room.run(&["explain", "odd", device]).expect(0).stdout;
        assert!(text.starts_with(&format!("{device} in odd")), "{text}");
    }
    // The same of a list.
    room.write("list.txt", &format!("{MARKS}01\r\n%412\n0..\n"));
    room.write(
        "listed.yaml",
        "name: listed\ntarget: { devices_file: list.txt }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n",
    );
    room.run(&["run", "listed.yaml"]).expect(0);
    assert_eq!(hub.summary().accepted, 43);
}

#[test]
fn devices_with_odd_tags_are_left_out_and_named() {
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
        "       12  in rows of the hubs that are not understood:",
        "\"odd-00\" of hub emulator: tags.site is an object; batches are made by texts",
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
        let odd = &json["plan"]["not_understood"];
        assert_eq!(odd["rows"], 12, "{json}");
        assert_eq!(odd["examples"][0]["found"], "odd-00", "{json}");
    }
    assert_eq!(hub.summary().accepted, 20);
    room.run(&["explain", "left", "odd-03"])
        .expect(3)
        .says(&["what hub emulator says of it is not understood: tags.site is an object"]);

    // Nobody is left: the reason says so.
    let none = "name: none\ntarget: { where: \"deviceId IN ['odd-01']\" }\nmessage: { body: { text: hi } }\nbatch_by: [site]\n";
    room.write("none.yaml", none);
    for command in ["plan", "run"] {
        let ended = room.run(&[command, "none.yaml"]).expect(3).to_string();
        assert!(
            ended.contains(
                "the target matches no device; 1 row of the hubs' answers is not understood"
            ),
            "{ended}"
        );
    }
}
