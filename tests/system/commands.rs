//! The commands beside `run` have the documented effects, and no others.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Fleet, Hub, Room};

/// The project's folder.
fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const README: &str = include_str!("../../README.md");
const REFERENCE: &str = include_str!("../../docs/reference/rollouts.md");

fn spec_of_the_readme() -> String {
    first_yaml_of(README)
}

fn spec_of_the_reference() -> String {
    first_yaml_of(REFERENCE)
}

fn first_yaml_of(text: &str) -> String {
    let start = text.find("```yaml\n").expect("a YAML block") + "```yaml\n".len();
    let length = text[start..].find("```").expect("the end of the block");
    text[start..start + length].to_owned()
}

fn examples() -> Vec<(String, String)> {
    let files = fs::read_dir(project().join("examples")).expect("examples");
    let files = files.map(|file| file.expect("a file").path());
    let specs = files.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    specs
        .map(|path| {
            let text = fs::read_to_string(&path).expect("an example");
            (path.display().to_string(), text)
        })
        .collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

#[test]
fn the_demo_succeeds_and_leaves_no_files() {
    let room = Room::bare();
    let ended = room.run(&["demo"]).expect(0);
    ended.says(&[
        "the door sensor does not answer",
        "Firmware of the devices",
        "Next, start an emulator",
    ]);
    assert!(is_empty(room.path()), "the working folder is empty");
    assert!(is_empty(room.temporary()), "the temporary folder is empty");

    let ended = room.run(&["--json", "demo", "--devices", "300"]).expect(0);
    let ended = ended.json();
    assert_eq!(ended["stopped"]["phase"], "paused", "{ended}");
    // The gate fails as soon as the failures of some canaries decide, before all have answered.
    let failed = ended["stopped"]["by_class"]["not_applied"].as_u64();
    assert!(
        failed.is_some_and(|failed| (2..=5).contains(&failed)),
        "{ended}"
    );
    assert_eq!(ended["stopped"]["by_class"]["pending"], 300, "{ended}");
    assert_eq!(ended["done"]["by_class"]["not_applied"], 1, "{ended}");
    assert_eq!(
        ended["versions"],
        serde_json::json!({"1.3.0": 1, "1.4.1": 304})
    );
    assert!(is_empty(room.path()) && is_empty(room.temporary()));
}

#[test]
fn a_plan_has_no_side_effects_and_matches_the_run() {
    let hub = Hub::unlimited(&Fleet::of(7_000));
    let room = Room::with(&hub);
    let spec = room.rollout("planned", "");
    let plan = room.run(&["--json", "plan", &spec]).expect(0).json();
    assert_eq!(plan["plan"]["devices"], 7_000);
    let seen = hub.summary();
    assert_eq!((seen.transfers, seen.connections), (0, 0));
    assert!(
        !room.path().join("twincast-state").exists(),
        "the plan leaves no state folder"
    );
    let again = room.run(&["--json", "plan", &spec]).expect(0).json();
    assert_eq!(again["plan"]["digest"], plan["plan"]["digest"]);

    let run = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_eq!(run["plan"]["digest"], plan["plan"]["digest"]);
    assert_eq!(run["devices"], plan["plan"]["devices"]);

    // Another target gives another plan.
    let text = fs::read_to_string(room.path().join(&spec)).expect("the file was written");
    room.write(&spec, &text.replace("type: fridge", "region: us-west"));
    let other = room.run(&["--json", "plan", &spec]).expect(0).json();
    assert_ne!(other["plan"]["digest"], plan["plan"]["digest"]);
}

/// The body arrives exactly as written, and is shown in advance.
#[test]
fn the_exact_body_is_shown_in_advance() {
    let hub = Hub::unlimited(&Fleet::of(1));
    let room = Room::with(&hub);
    let body = r#"{"big":12345678901234567890123,"cents":1.10,"hash":"1234567e8","float":1e2}"#;
    let written = "{ big: 12345678901234567890123, cents: 1.10, hash: '1234567e8', float: 1e2 }";
    let spec = |body: &str| {
        format!("name: a\ntarget: {{ all: true }}\nmessage: {{ body: {{ json: {body} }} }}\n")
    };
    room.write("spec.yaml", &spec(written));
    let shown = format!(
        "  message: {} bytes of application/json: {body}\n",
        body.len()
    );
    for command in ["validate", "plan"] {
        let printed = room.run(&[command, "spec.yaml"]).expect(0);
        assert!(
            (printed.stdout.clone() + "\n").contains(&shown),
            "{printed}"
        );
        let printed = room.run(&["--json", command, "spec.yaml"]).expect(0);
        assert_eq!(printed.json()["message"]["body"], body);
    }
    for number in ["0123", "08", "0x1F"] {
        room.write("odd.yaml", &spec(&format!("{{ n: {number} }}")));
        let printed = room.run(&["validate", "odd.yaml"]).expect(3);
        assert!(
            printed.stderr.contains(&format!("quote it (\"{number}\")")),
            "{printed}"
        );
    }
}

/// Tags of any name work wherever a spec takes a tag.
#[test]
fn a_tag_may_have_any_name() {
    let fleet = "\
seed: 1
groups:
  - name: odd
    count: 40
    id: \"d-{index:02}\"
    tags:
      group: { $choice: [a] }
      order: { $choice: ['1', '2'] }
      count: { $choice: [1, 2] }
      device-type: fridge
      2nd: { $choice: [x, y] }
      iotin:x: { by: here }
      zone-name: Europe/Berlin
";
    let hub = Hub::unlimited(&Fleet::written(fleet));
    let room = Room::with(&hub);
    let spec = "\
name: odd
target:
  tags: { device-type: fridge, group: [a, b], 'iotin:x.by': here }
  where: tags.[[device-type]] = 'fridge' OR tags.[[group]] = 'x'
  exclude: [{ tags: { 2nd: y } }]
batch_by: [group, order, 2nd, zone-name]
order: { by: order }
budgets: [{ tag: 2nd, at_most: 100% }]
schedule: { zone_tag: zone-name }
stages: [{ name: first, tags: { count: 1 } }]
message: { body: { text: hi }, ack: full, ttl: 1m }
";
    room.write("spec.yaml", spec);
    let plan = room.run(&["--json", "plan", "spec.yaml"]).expect(0).json();
    let left_out = plan["plan"]["excluded"][0]["devices"]
        .as_u64()
        .expect("a number");
    assert!((5..35).contains(&left_out), "{plan}");
    assert_eq!(plan["plan"]["devices"], 40 - left_out);
    room.run(&["run", "--no-wait", "spec.yaml"]);
    let summary = hub.summary();
    assert_eq!(summary.accepted, 40 - left_out, "{summary:?}");
}

/// A condition has no effect beyond the brackets around the condition.
#[test]
fn a_condition_with_an_unmatched_bracket_is_refused() {
    let room = Room::bare();
    let where_ = "tags.region='zz') OR (tags.type='fridge'";
    let spec = format!(
        "name: a\ntarget: {{ tags: {{ a: b }}, where: \"{where_}\" }}\nmessage: {{ body: {{ text: hi }} }}\n"
    );
    room.write("spec.yaml", &spec);
    let printed = room.run(&["validate", "spec.yaml"]).expect(3);
    assert!(
        printed
            .stderr
            .contains("2:27: target.where: has an unmatched ) at character 17"),
        "{printed}"
    );
}

#[test]
fn the_readme_and_the_examples_are_valid() {
    let room = Room::bare();
    let mut specs = examples();
    assert!(!specs.is_empty(), "there are no examples");
    specs.push(("README.md".to_owned(), spec_of_the_readme()));
    specs.push(("rollouts.md".to_owned(), spec_of_the_reference()));
    for (origin, text) in specs {
        room.write("spec.yaml", &text);
        let result = room
            .run(&["--json", "validate", "spec.yaml"])
            .expect(0)
            .json();
        assert_eq!(result["valid"], true, "{origin}");
        assert_eq!(result["rollout"], "firmware-1.4.2", "{origin}");
    }
}

/// Every field of a spec has a row in the reference.
#[test]
fn the_reference_has_every_field() {
    let schema = Room::bare().run(&["schema"]).expect(0).json();
    let parts = [
        "Target",
        "Exclusion",
        "MessageSpec",
        "Stage",
        "Gate",
        "Metric",
        "ApprovalRule",
        "Schedule",
    ];
    let parts = parts.map(|part| &schema["$defs"][part]);
    for part in parts.into_iter().chain([&schema]) {
        let fields = part["properties"].as_object().expect("fields");
        for field in fields.keys() {
            assert!(
                REFERENCE.contains(&format!("`{field}`")),
                "{field} is not explained"
            );
        }
    }
}

#[test]
fn the_schema_agrees_with_validate() {
    let room = Room::bare();
    let schema = room.run(&["schema"]).expect(0).json();
    let schema = jsonschema::validator_for(&schema).expect("a JSON Schema");
    let value = |text: &str| -> Value { serde_saphyr::from_str(text).expect("YAML") };
    let mut specs = examples();
    specs.push(("README.md".to_owned(), spec_of_the_readme()));
    specs.push(("rollouts.md".to_owned(), spec_of_the_reference()));
    for (origin, text) in specs {
        if let Err(error) = schema.validate(&value(&text)) {
            panic!("{origin}: {}: {error}", error.instance_path());
        }
    }
    let good = "name: a\ntarget: { all: true }\nmessage: { body: { text: hi } }\n";
    assert!(schema.is_valid(&value(good)));
    for bad in [
        good.replace("name: a\n", ""),
        good.replace("name: a", "name: a b"),
        good.replace("text: hi", "txet: hi"),
        good.replace("all: true", "all: perhaps"),
        good.replace("text: hi }", "text: hi }, ack: maybe"),
        format!("{good}colour: red\n"),
    ] {
        room.write("spec.yaml", &bad);
        room.run(&["validate", "spec.yaml"]).expect(3);
        assert!(!schema.is_valid(&value(&bad)), "the schema accepts {bad}");
    }
}

#[test]
fn a_never_opening_schedule_is_refused() {
    let room = Room::bare();
    let validate = |schedule: &str| {
        let spec = "name: a\ntarget: { all: true }\nmessage: { body: { text: hi } }\n";
        room.write("spec.yaml", &format!("{spec}schedule: {{ {schedule} }}\n"));
        room.run(&["validate", "spec.yaml"])
    };
    let ended = validate("freeze: [{ from: 2020-01-01, to: 9999-12-31, reason: sold }]").expect(3);
    assert!(
        ended
            .stderr
            .contains("spec.yaml: schedule: is frozen: sold at"),
        "{ended}"
    );
    validate("start_at: 2099-12-31T00:00:00Z").expect(0);
}

#[test]
fn a_spec_may_come_from_standard_input_or_be_json() {
    let room = Room::bare();
    let json = r#"{"name": "j", "target": {"all": true}, "message": {"body": {"json": {"a": 1}}}}"#;
    room.write("spec.json", json);
    let result = room
        .run(&["--json", "validate", "spec.json"])
        .expect(0)
        .json();
    assert_eq!(result["rollout"], "j");
    let ended = room.run(&["validate", "-"]).expect(3);
    // Standard input is empty in these tests.
    ended.says(&["-:1:1"]);
}

/// Users' text about a rollout is shown in a single line, without an effect on the terminal.
#[test]
fn user_text_cannot_forge_output_lines() {
    let hub = Hub::unlimited(&Fleet::of(5));
    let room = Room::with(&hub);
    // The gate is never approved, so the rollout is still active when paused.
    let spec = room.rollout(
        "odd",
        "stages: [{ name: one, percent: 40%, gate: { approval: {} } }]",
    );
    room.run(&["run", &spec]).expect(8);
    let reason = "x\nodd succeeded: 5 devices\u{1b}[2J\u{202e}";
    room.run(&["pause", "odd", "--reason", reason, "--by", "a\rb"])
        .expect(0);
    for arguments in [
        &["status"][..],
        &["status", "odd"],
        &["explain", "odd", "d-000001"],
        &["watch", "odd"],
        &["run", &spec],
    ] {
        let ended = room.run(arguments);
        let text = format!("{}{}", ended.stdout, ended.stderr);
        assert!(text.contains(r"\nodd succeeded"), "{arguments:?}: {text}");
        let is_faked = text.lines().any(|line| line.starts_with("odd succeeded"));
        assert!(!is_faked, "{arguments:?}: {text}");
        assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text:?}");
    }
    let status = room.run(&["--json", "status", "odd"]).expect(0).json();
    let printed = status["reason"].as_str().unwrap_or_default();
    assert!(printed.contains(reason), "{printed:?}");
    let aborted = room.run(&["abort", "odd"]).expect(0).stdout;
    assert_eq!(aborted, "odd was aborted\n");
}

#[test]
fn an_unwritable_result_is_a_failure() {
    let room = Room::bare();
    for arguments in [&["schema"][..], &["--help"], &["--print-config"]] {
        let mut command = room.command(arguments);
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        command.stdout(full.expect("/dev/full is writable"));
        let ended = command.output().expect("the program runs");
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
    }
    let ended = room.run(&["--json", "report", "x", "--format", "csv"]);
    assert!(
        ended
            .expect(2)
            .stdout
            .contains("--json writes one JSON object")
    );
}

/// The rollout of the README suits the emulator of the README: each stage has devices.
#[test]
fn the_rollout_of_the_readme_fits_the_default_fleet() {
    let mut room = Room::bare();
    let hub = room.start(&["hub", "--amqp-port", "0", "--tier", "S3"]);
    let config = room.path().join("twincast-hub/twincast.toml");
    crate::harness::eventually("the hub", || {
        hub.stdout().contains("is running").then_some(())
    });
    room.set_for_all("TWINCAST_CONFIG", &config.display().to_string());
    room.write("readme.yaml", &spec_of_the_readme());
    let plan = room
        .run(&["--json", "plan", "readme.yaml"])
        .expect(0)
        .json();
    let stages = plan["stages"].as_array().expect("stages");
    assert!(stages.len() >= 2, "{plan}");
    // The stage of late joiners has no devices yet.
    for stage in stages.iter().filter(|stage| stage["stage"] != "late") {
        assert!(stage["devices"].as_u64() > Some(0), "{stage}");
    }
    hub.kill();
}
