//! Refused specs, lists and command lines: each with the place of the mistake, and before any send.

use crate::harness::{Fleet, Hub, Room, assert_refused, assert_tidy};

const GOOD: &str = "name: a\ntarget: { all: true }\nmessage: { body: { text: hi } }\n";

/// Asserts that `run` and `validate` refuse this spec with these words.
#[track_caller]
fn refused(spec: &str, words: &[&str]) {
    let room = Room::bare();
    room.write("spec.yaml", spec);
    assert_refused(&room, &["run", "spec.yaml"], 3, words);
    assert_refused(&room, &["validate", "spec.yaml"], 3, words);
    assert!(
        !room.path().join("twincast-state").exists(),
        "a refused spec leaves a state folder"
    );
}

#[test]
fn a_good_spec_is_not_refused() {
    let room = Room::bare();
    room.write("spec.yaml", GOOD);
    room.run(&["validate", "spec.yaml"]).expect(0);
}

#[test]
fn yaml_errors_are_reported_with_line_and_column() {
    refused("name: a\ntarget: [\n", &["spec.yaml:2:9: ", "bracket"]);
    refused("name: a\n\ttarget: 1\n", &["spec.yaml:", "tab"]);
    refused(
        &format!("{GOOD}name: b\n"),
        &["spec.yaml:4:1: name: is given twice", "line 1"],
    );
}

#[test]
fn unknown_fields_are_reported_with_known_fields() {
    refused(
        &format!("{GOOD}colour: red\n"),
        &["spec.yaml:4:1: colour: is not a field here", "batch_by"],
    );
    refused(
        "name: a\ntarget: { all: true }\nmessage:\n  body: { text: hi }\n  tll: 1h\n",
        &["spec.yaml:5:3: message.tll: is not a field here", "ttl"],
    );
}

#[test]
fn invalid_types_and_values_are_reported_with_allowed_values() {
    refused(
        "name: a\ntarget: { all: perhaps }\nmessage: { body: { text: hi } }\n",
        &["spec.yaml:2:11: target.all: ", "perhaps", "true or false"],
    );
    refused(
        "name: a\ntarget: { all: true }\nmessage: { body: { text: hi }, ttl: soon }\n",
        &["spec.yaml:3:32: message.ttl: ", "soon", "90s"],
    );
    refused(
        "name: a b\ntarget: { all: true }\nmessage: { body: { text: hi } }\n",
        &["spec.yaml:1:1: name: ", "a b", "1 to 64"],
    );
    refused(
        "target: { all: true }\nmessage: { body: { text: hi } }\n",
        &["spec.yaml:1:1: name: is missing"],
    );
    refused(
        "name: a\ntarget: { all: true, devices: [x] }\nmessage: { body: { text: hi } }\n",
        &["spec.yaml:2:", "target: ", "more than one way"],
    );
}

#[test]
fn files_named_in_a_spec_are_checked() {
    let room = Room::bare();
    let spec = |target: &str, body: &str| {
        room.write(
            "spec.yaml",
            &format!("name: a\ntarget: {{ {target} }}\nmessage: {{ body: {{ {body} }} }}\n"),
        );
    };
    room.write("list.txt", "good-1\n# a remark\nnot good\n");
    spec("devices_file: list.txt", "text: hi");
    assert_refused(
        &room,
        &["validate", "spec.yaml"],
        3,
        &["list.txt:3: invalid device id", "1 to 128"],
    );
    room.write("list.txt", "\n# nobody\n");
    let words = ["list.txt", "no device"];
    assert_refused(&room, &["validate", "spec.yaml"], 3, &words);
    spec("devices_file: gone.txt", "text: hi");
    let words = ["device list gone.txt", "No such file"];
    assert_refused(&room, &["run", "spec.yaml"], 3, &words);
    spec("all: true", "file: gone.bin");
    let words = ["body gone.bin", "No such file"];
    assert_refused(&room, &["run", "spec.yaml"], 3, &words);
    room.write("large.bin", &"x".repeat(70_000));
    spec("all: true", "file: large.bin");
    let words = ["large.bin", "at most 65536"];
    assert_refused(&room, &["run", "spec.yaml"], 3, &words);
}

#[test]
fn unreadable_files_are_reported() {
    let room = Room::bare();
    let words = ["spec gone.yaml", "No such file"];
    assert_refused(&room, &["run", "gone.yaml"], 3, &words);
    assert_refused(&room, &["run", "."], 3, &["directory"]);
    let binary = room.path().join("binary.yaml");
    std::fs::write(binary, [0xff, 0xfe, 0]).expect("the folder is writable");
    assert_refused(
        &room,
        &["run", "binary.yaml"],
        3,
        &["binary.yaml", "the text is UTF-16; save it as UTF-8"],
    );
    assert_refused(
        &room,
        &["report", "a"],
        7,
        &["no state folder twincast-state", "--state"],
    );
}

#[test]
fn a_target_without_devices_is_reported() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    room.write(
        "spec.yaml",
        &GOOD.replace("all: true", "tags: { type: oven }"),
    );
    let plan = room.run(&["plan", "spec.yaml"]).expect(3);
    let plan = plan.says(&["the target matches no device", "check the tags"]);
    assert_tidy(&plan);
    let run = room.run(&["run", "spec.yaml"]).expect(3);
    assert!(run.stdout.contains("no device"), "{run}");
    assert_tidy(&run);
}

#[test]
fn a_condition_rejected_by_the_hub_is_reported() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    room.write(
        "spec.yaml",
        &GOOD.replace("all: true", "where: tags.region = = 1"),
    );
    let words = ["target.where", "What to do"];
    for command in ["plan", "run"] {
        let ended = room.run(&[command, "spec.yaml"]);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.code, Some(3), "{ended}");
        assert_tidy(&ended);
        if command == "plan" {
            for word in words {
                assert!(said.contains(word), "{word:?} is missing: {ended}");
            }
        }
    }
    assert_eq!(hub.summary().transfers, 0);
}

#[test]
fn wrong_command_lines_end_with_2() {
    let room = Room::bare();
    room.write("spec.yaml", GOOD);
    let cases: [(&[&str], &str); 11] = [
        (&[], "--help"),
        (&["frobnicate"], "frobnicate"),
        (&["run"], "<SPEC>"),
        (&["run", "spec.yaml", "--fast"], "--fast"),
        (&["run", "spec.yaml", "more"], "more"),
        (&["report", "a", "--format", "xml"], "jsonl"),
        (&["report", "a", "--outcome", "lost"], "not_found"),
        (&["report", "a", "--class", "lost"], "not_taken"),
        (&["report", "a", "--failed", "--class", "sent"], "--failed"),
        (
            &["report", "a", "--failed", "--outcome", "unknown"],
            "--failed",
        ),
        (&["hub", "--tier", "B1"], "S3"),
    ];
    for (arguments, word) in cases {
        let ended = room.run(arguments).expect(2).says(&[word]);
        assert_tidy(&ended);
        assert_eq!(ended.stdout, "", "{ended}");
    }
}
