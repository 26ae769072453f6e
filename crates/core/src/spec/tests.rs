use serde_json::Value;

use super::*;
use crate::json::Json;

const FRIDGES: &str = "\
name: firmware-1.4.2
target:
  tags: {type: fridge, region: [eu, us]}
  where: properties.reported.firmware != '1.4.2'
  exclude:
    - tags: {vip: true}
      reason: asked not to be disturbed
    - devices: [fridge-000007]
batch_by: [region]
message:
  body:
    json: {command: update, version: 1.4.2}
  ttl: 24h
  ack: full
rate: 600/min
";

#[test]
fn a_spec_reads_and_writes() {
    let spec = RolloutSpec::read("x.yaml", FRIDGES).unwrap();
    assert_eq!(
        spec.condition(),
        "((tags.region IN ['eu', 'us'] AND tags.type = 'fridge') AND (properties.reported.firmware != '1.4.2')) \
         AND (NOT IS_DEFINED(tags.vip) OR tags.vip != true)"
    );
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(RolloutSpec::read("x.json", &json).unwrap(), spec);
}

#[test]
fn numbers_of_a_body_keep_their_last_digit() {
    let spec = RolloutSpec::read("x.yaml", FRIDGES).unwrap();
    for step in 0..2000_u64 {
        // From 6e-11 to 1e30, roughly.
        let number = f64::from_bits(0x3dd0_0000_0000_0000 + step * 0x0001_1335_5779_9bbd);
        let mut spec = spec.clone();
        spec.message.body = Body::Json(Json::of(&serde_json::json!({ "number": number })).unwrap());
        // The forms in a store and in a command.
        let json = serde_json::to_string(&spec).unwrap();
        let stored: RolloutSpec = serde_json::from_str(&json).unwrap();
        assert_eq!(stored, spec);
        assert_eq!(RolloutSpec::read("x.json", &json).unwrap(), spec);
    }
}

#[test]
fn problems_are_reported_with_line() {
    let text = FRIDGES
        .replace("ttl: 24h", "ttl: 72h")
        .replace("tags: {vip: true}", "reason2: x")
        .replace("      reason: asked", "      note: asked");
    let error = RolloutSpec::read("x.yaml", &text).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "x.yaml:6:7: target.exclude[0].reason2: is not a field here; the fields are tags, "
        ),
        "{error}"
    );

    let text = FRIDGES
        .replace("ttl: 24h", "ttl: 72h")
        .replace("    - devices: [fridge-000007]", "    - {}")
        .replace("batch_by: [region]", "batch_by: [region, region]");
    let error = RolloutSpec::read("x.yaml", &text).unwrap_err().to_string();
    let lines: Vec<_> = error
        .lines()
        .map(|l| l.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert_eq!(
        lines,
        [
            "x.yaml:8:7: target.exclude[1]",
            "x.yaml:9:20: batch_by[1]",
            "x.yaml:13:3: message.ttl"
        ],
        "{error}"
    );
}

/// Mistakes of type, unit, choice, bounds and unknown fields: each with a position, and without a
/// term of the implementation language.
#[test]
fn all_errors_are_reported_at_once() {
    let text = "\
nme: a
name: 1.10
concurrency: {group: g, policy: replace}
target:
  tags: {location: {site: x}, n: 12345678901234567890}
batch_by: region
message:
  body: {jsn: 1}
  ttl: 3x
  ack: yes
rate: 600
weight: -1
stages:
  - {name: a, percent: [1]}
  - {nme: b}
budgets: [{tag: region, at_most: 1.5}]
";
    let found = RolloutSpec::read("x", text).unwrap_err().to_string();
    let fields: Vec<_> = found
        .lines()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert_eq!(
        fields,
        [
            "x:1:1: nme",
            "x:2:1: name",
            "x:3:25: concurrency.policy",
            "x:5:10: target.tags.location",
            "x:5:31: target.tags.n",
            "x:6:1: batch_by",
            "x:8:10: message.body.jsn",
            "x:9:3: message.ttl",
            "x:10:3: message.ack",
            "x:11:1: rate",
            "x:12:1: weight",
            "x:14:15: stages[0].percent",
            "x:15:5: stages[1].name",
            "x:15:6: stages[1].nme",
            "x:16:25: budgets[0].at_most",
        ],
        "{found}"
    );
    for term in [
        "invalid type",
        "struct",
        "enum",
        "variant",
        "u32",
        "`",
        "sequence",
        "integer",
    ] {
        assert!(!found.contains(term), "{term}: {found}");
    }
    // Consequences of another mistake are not reported. Independent mistakes are reported.
    let found = RolloutSpec::read("x", "description: x")
        .unwrap_err()
        .to_string();
    assert_eq!(
        found,
        "x:1:1: name: is missing\nx:1:1: target: is missing\nx:1:1: message: is missing"
    );
    let text = "name: 7\ntarget: {al: 1}\nmessage: {bdy: {text: x}, ack: full, ttl: 72h}\nweight: 0\nbatch_by: [a, a]\n";
    let found = RolloutSpec::read("x", text).unwrap_err().to_string();
    let fields: Vec<_> = found
        .lines()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    let all = [
        "name",
        "target.al",
        "message.body",
        "message.bdy",
        "message.ttl",
        "weight",
        "batch_by[1]",
    ];
    assert_eq!(fields, all, "{found}");
    let text = "name: a\ntarget: {all: true}\nmessage: {body: {text: x}, ack: ful, ttl: 72h}\nweight: 0\nstages: [{name: s, gate: {failure_above: 1%, counts: delivered}}]\n";
    let found = RolloutSpec::read("x", text).unwrap_err().to_string();
    let fields: Vec<_> = found
        .lines()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(fields, ["message.ack", "message.ttl", "weight"], "{found}");
}

#[test]
fn null_fields_count_as_absent() {
    let text = "name: a\ndescription:\ntarget: {hubs: , tags: ~, all: true, exclude: null}\nbatch_by:\nmessage: {body: {text: x}, properties: , ttl: , ack: ~}\n\
        stages:\nbudgets:\ncontinuous:\nweight:\ndelivery:\nconcurrency:\nschedule:\n";
    let spec = RolloutSpec::read("x", text).unwrap();
    let plain = "{name: a, target: {all: true}, message: {body: {text: x}}}";
    assert_eq!(spec, RolloutSpec::read("x", plain).unwrap());
    // A tag is not a field: without the tag, the target would be larger.
    let text = "{name: a, target: {tags: {type: x, region: }}, message: {body: {text: x}}}";
    assert!(RolloutSpec::read("x", text).is_err());
    let text = "{name: , target: {all: true}, message: {body: {json: null}}}";
    let found = RolloutSpec::read("x", text).unwrap_err().to_string();
    assert_eq!(found, "x:1:2: name: is missing");
}

#[test]
fn invalid_stages_are_reported() {
    let with = |stages: &str| {
        let text = format!(
            "name: a\ntarget: {{all: true}}\nmessage: {{body: {{text: x}}, ack: positive}}\nstages:\n{stages}"
        );
        match RolloutSpec::read("x", &text) {
            Ok(_) => String::new(),
            Err(problems) => problems.to_string(),
        }
    };
    assert_eq!(
        with(
            "  - {name: a, tags: {ring: canary}, gate: {success_at_least: 95%}}\n  - {name: b, percent: 10%}\n  - {name: c}\n"
        ),
        ""
    );
    for (stages, wrong) in [
        (
            "  - {name: a}\n  - {name: b}\n",
            "x:5:5: stages[0]: takes every device",
        ),
        (
            "  - {name: a, percent: 1%}\n  - {name: a}\n",
            "x:6:6: stages[1].name: stage a is named twice",
        ),
        (
            "  - {name: a, percent: 20%}\n  - {name: b, percent: 20%}\n",
            "x:6:15: stages[1].percent: is 20%, but it is cumulative",
        ),
        (
            "  - {name: a, percent: 0%}\n",
            "x:5:15: stages[0].percent: is 0%",
        ),
        (
            "  - {name: a, max_devices: 0}\n",
            "x:5:15: stages[0].max_devices: is 0",
        ),
        (
            "  - {name: rest, percent: 1%}\n",
            "stages[0].name: \"rest\"",
        ),
        ("  - {name: a, gate: {min_sample: 5}}\n", "has no condition"),
        (
            "  - {name: a, gate: {bake: 1h, counts: delivered}}\n",
            "needs success_at_least or failure_above",
        ),
        (
            "  - {name: a, gate: {failure_above: 1%, counts: delivered}}\n",
            "message.ack: full, so that failures",
        ),
        (
            "  - {name: a, gate: {failure_above: 1%, counts: applied}}\n",
            "applied_when: is missing",
        ),
        (
            "  - {name: a, gate: {failure_above: 1%, applied_when: x}}\n",
            "is allowed only with",
        ),
        (
            "  - {name: a, gate: {failure_above: 101%}}\n",
            "\"101%\" is not a per cent",
        ),
        (
            "  - {name: a, gate: {success_at_least: 0.95}}\n",
            "stages[0].gate.success_at_least: 0.95 can be read as 0.95% or as 95%: write \"0.95%\" or \"95%\"",
        ),
        (
            "  - {name: a, gate: {failure_above: 0}}\n",
            "stages[0].gate.failure_above: 0 has no per cent sign: write \"0%\"",
        ),
        (
            "  - {name: a, percent: 10}\n",
            "stages[0].percent: 10 has no per cent sign: write \"10%\"",
        ),
        ("  - {name: a, gate: {bake: 91d}}\n", "is too long"),
        (
            "  - {name: a, gate: {bake: 1h, min_sample: 0}}\n",
            "min_sample: is 0",
        ),
    ] {
        let found = with(stages);
        assert!(found.contains(wrong), "{wrong:?} is not in {found:?}");
    }
}

#[test]
fn published_schema_is_current() {
    let published = include_str!("../../../../docs/reference/rollout.schema.json");
    let published: Value = serde_json::from_str(published).unwrap();
    assert_eq!(
        published,
        RolloutSpec::json_schema(),
        "twincast schema > docs/reference/rollout.schema.json"
    );
}

/// The size of a message includes the address and the id, at their greatest length.
#[test]
fn oversized_message_is_refused() {
    let read = |target: &str, more: &str, bytes: usize| {
        let body = "x".repeat(bytes);
        let text =
            format!("name: a\ntarget: {target}\nmessage: {{body: {{text: {body}}}{more}}}\n");
        RolloutSpec::read("x", &text)
    };
    // The bytes besides the body: sections 45, expiry 9, address with its id, message id, `utf-8`.
    let beside = |id: usize| {
        45 + 9 + (5 + 30 + id) + (2 + "a.3w5e11264sgsf.1ekf.1z141z3.1z141z3.1ekf".len()) + (2 + 5)
    };
    let all = 65_536 - beside(384);
    assert!(read("{all: true}", "", all).is_ok(), "{all}");
    let error = read("{all: true}", "", all + 1).unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "this message has 65537; there is room for a body of {all}, and the body has"
        )),
        "{error}"
    );
    assert!(read("{all: true}", "", 65_450).is_err());
    // The ids of a list are known; `%` is three bytes in an address.
    let listed = 65_536 - (beside("ab%25".len()) - 3);
    assert!(read("{devices: [a, 'ab%']}", "", listed).is_ok());
    assert!(read("{devices: [a, 'ab%']}", "", listed + 1).is_err());
    // An ack and properties count, too.
    for more in [
        ", ack: full",
        ", properties: {k: v}",
        ", content_type: text/plain",
    ] {
        assert!(read("{all: true}", more, all).is_err(), "{more}");
    }
}

#[test]
fn empty_target_is_refused() {
    let text = "name: a\ntarget: {}\nmessage: {body: {text: hi}}\n";
    let error = RolloutSpec::read("x.yaml", text).unwrap_err().to_string();
    assert!(
        error.contains("x.yaml:2:1: target: selects no devices"),
        "{error}"
    );
    assert!(RolloutSpec::read("x", &text.replace("{}", "{all: true}")).is_ok());
    assert!(RolloutSpec::read("x", &text.replace("{}", "{all: true, devices: [a]}")).is_err());
}

#[test]
fn free_texts_are_bounded_as_stated_in_schema() {
    let spec = |length: usize| {
        let text = "\u{e4}".repeat(length);
        format!(
            "name: r\ntarget: {{all: true, exclude: [{{devices: [a], reason: {text}}}]}}\n\
             message: {{body: {{text: hi}}}}\ndescription: {text}\nsalt: {text}\n\
             schedule: {{freeze: [{{from: 2026-12-24, reason: {text}}}]}}\n"
        )
    };
    RolloutSpec::read("r", &spec(MAX_TEXT_CHARS)).unwrap();
    let problems = RolloutSpec::read("r", &spec(MAX_TEXT_CHARS + 1)).unwrap_err();
    let fields: Vec<_> = problems.problems.iter().map(|it| &*it.field).collect();
    let texts = [
        "target.exclude[0].reason",
        "description",
        "salt",
        "schedule.freeze[0].reason",
    ];
    assert_eq!(fields, texts);
    let schema = RolloutSpec::json_schema();
    for path in [
        "/properties/description",
        "/properties/salt",
        "/$defs/Exclusion/properties/reason",
        "/$defs/Freeze/properties/reason",
    ] {
        let stated = schema.pointer(path).expect(path);
        assert_eq!(stated["maxLength"], MAX_TEXT_CHARS, "{path}");
    }
}
