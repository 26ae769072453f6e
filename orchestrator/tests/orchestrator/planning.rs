//! Planning on test doubles: devices, batches, and reasons for exclusion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::ids::DeviceId;
use twincast_core::plan::{Batch, Cohort, PlanSummary};
use twincast_core::ports::{DevicePage, DeviceRow, MalformedRow};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::Timestamp;
use twincast_orchestrator::planner::{PlanError, PlanProgress, Planner, dry_run};
use twincast_orchestrator::{HubHandle, Hubs, view};
use twincast_testkit::{ManualClock, ScriptedHub, build};

type Tags = BTreeMap<String, String>;

fn tags(pairs: &[(&str, String)]) -> Tags {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

/// `count` devices `PREFIX-000000` in three regions. Every tenth device is a vip, and every seventh
/// has no region.
fn fleet(prefix: &str, count: u32) -> Vec<(DeviceId, Tags)> {
    (0..count)
        .map(|n| {
            let mut pairs = vec![("vip", (n % 10 == 0).to_string())];
            if !n.is_multiple_of(7) {
                pairs.push(("region", format!("r{}", n % 3)));
            }
            (build::device(&format!("{prefix}-{n:06}")), tags(&pairs))
        })
        .collect()
}

/// A hub that understands only the conditions of these tests.
fn scripted(prefix: &str, count: u32) -> ScriptedHub {
    ScriptedHub::with_tags(fleet(prefix, count)).matching(|condition, device, tags| {
        let vip = tags["vip"] == "true";
        condition
            .split(" AND ")
            .all(|part| match part.trim_matches(|c| c == '(' || c == ')') {
                "" => true,
                "tags.vip = 'true'" => vip,
                "NOT IS_DEFINED(tags.vip) OR tags.vip != 'true'" => !vip,
                part if part.starts_with("deviceId IN") => part.contains(&format!("'{device}'")),
                other => panic!("unexpected condition {other:?}"),
            })
    })
}

fn hubs(each: &[(&str, ScriptedHub)], limits: HubLimits) -> Hubs {
    each.iter()
        .map(|(name, hub)| {
            (
                build::hub(name),
                HubHandle {
                    host: build::host(name),
                    hub: Arc::new(hub.clone()),
                    limits,
                },
            )
        })
        .collect()
}

fn spec(target: &str, more: &str) -> RolloutSpec {
    let text = format!("{{name: r, target: {{{target}}}, message: {{body: {{text: hi}}}}{more}}}");
    RolloutSpec::read("test", &text).unwrap()
}

async fn plan(
    spec: &RolloutSpec,
    hubs: &Hubs,
    base: &Path,
) -> Result<(PlanSummary, Vec<Batch>), PlanError> {
    let progress = PlanProgress::default();
    let planner = Planner {
        spec,
        hubs,
        base,
        progress: &progress,
        joiners: None,
    };
    let (sender, mut receiver) = mpsc::channel(2);
    let collect = async {
        let mut batches = Vec::new();
        while let Some(batch) = receiver.recv().await {
            batches.push(batch);
        }
        batches
    };
    let (summary, batches) = futures::join!(planner.plan(sender), collect);
    Ok((summary?, batches))
}

fn ids(batches: &[Batch]) -> BTreeSet<(String, String)> {
    let mut ids = BTreeSet::new();
    for batch in batches {
        for id in batch.devices.iter() {
            assert!(
                ids.insert((batch.header.hub.to_string(), id.to_owned())),
                "{id} is planned twice"
            );
        }
    }
    ids
}

#[tokio::test]
async fn a_query_becomes_batches_by_tag_group() {
    let hubs = hubs(
        &[("a", scripted("x", 2_000))],
        HubLimits::of(Tier::S3, 1, 1.0),
    );
    let spec = spec(
        "all: true, exclude: [{tags: {vip: 'true'}, reason: asked}, {devices: [x-000001, nobody]}]",
        ", batch_by: [region]",
    );
    let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
    assert_eq!(summary.devices, 1_799);
    let left_out: Vec<_> = summary
        .excluded
        .iter()
        .map(|e| (e.rule.as_str(), e.reason.as_deref(), e.devices))
        .collect();
    assert_eq!(
        left_out,
        [
            ("tags.vip = 'true'", Some("asked"), 200),
            ("2 listed devices", None, 1)
        ]
    );
    let planned = ids(&batches);
    assert_eq!(planned.len(), 1_799);
    assert!(
        !planned
            .iter()
            .any(|(_, id)| id.ends_with('0') || id == "x-000001")
    );
    let numbers: BTreeSet<_> = batches.iter().map(|batch| batch.header.id.0).collect();
    assert_eq!(
        numbers,
        (0..summary.batches).collect(),
        "batches are numbered without gaps"
    );
    for batch in &batches {
        let region = batch.header.group.0[0].1.clone();
        for id in batch.devices.iter() {
            let n: u32 = id[2..].parse().unwrap();
            let own = (!n.is_multiple_of(7)).then(|| format!("r{}", n % 3));
            assert_eq!(own, region, "{id}");
        }
    }
}

#[tokio::test]
async fn many_small_groups_share_batches_and_keep_their_names() {
    let sites = (0..4_000).map(|n| {
        let site = tags(&[("site", (n / 2).to_string())]);
        (build::device(&format!("x-{n:06}")), site)
    });
    let hubs = hubs(
        &[("a", ScriptedHub::with_tags(sites.collect::<Vec<_>>()))],
        HubLimits::unlimited(),
    );
    let spec = spec("all: true", ", batch_by: [site]");
    let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
    assert_eq!((summary.devices, ids(&batches).len()), (4_000, 4_000));
    assert!(summary.batches <= 4_000 / 128 + 1, "{summary:?}");
    for batch in &batches {
        for (index, id) in (0..).zip(batch.devices.iter()) {
            let n: u32 = id[2..].parse().unwrap();
            let site = Some((n / 2).to_string());
            assert_eq!(batch.header.group_of(index).0[0].1, site, "{id}");
        }
    }
    let again = plan(&spec, &hubs, Path::new("")).await.unwrap();
    assert_eq!(again, (summary, batches));
}

#[tokio::test]
async fn the_digest_does_not_depend_on_hub_order() {
    let spec = spec("all: true", ", batch_by: [region]");
    let mut digests = BTreeSet::new();
    for _ in 0..5 {
        let hubs = hubs(
            &[("a", scripted("x", 500)), ("b", scripted("y", 900))],
            HubLimits::unlimited(),
        );
        let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
        assert_eq!(ids(&batches).len(), 1_400);
        digests.insert(summary.digest.clone());
        let progress = PlanProgress::default();
        let planner = Planner {
            spec: &spec,
            hubs: &hubs,
            base: Path::new(""),
            progress: &progress,
            joiners: None,
        };
        let mut seen = 0;
        let dry = dry_run(&planner, |header| seen += header.devices)
            .await
            .unwrap();
        assert_eq!((dry, seen), (summary, 1_400));
    }
    assert_eq!(digests.len(), 1);
    let other = hubs(
        &[("a", scripted("x", 501)), ("b", scripted("y", 900))],
        HubLimits::unlimited(),
    );
    assert!(!digests.contains(&plan(&spec, &other, Path::new("")).await.unwrap().0.digest));
}

#[tokio::test]
async fn a_list_for_one_hub_is_planned_without_lookup() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("ids.txt"),
        "# fleet\nx-1\nx-2\nx-1\n\nnot-registered\n",
    )
    .unwrap();
    let hubs = hubs(&[("a", scripted("x", 0))], HubLimits::unlimited());
    let (summary, batches) = plan(&spec("devices_file: ids.txt", ""), &hubs, dir.path())
        .await
        .unwrap();
    assert_eq!((summary.devices, summary.repeated), (3, 1));
    assert!(
        ids(&batches).contains(&("a".into(), "not-registered".into())),
        "unregistered devices of a file are planned"
    );
}

#[tokio::test]
async fn a_list_is_looked_up_when_hub_or_tags_are_required() {
    let list: Vec<_> = (0..250)
        .map(|n| format!("x-{n:06}"))
        .chain(["y-000003".into(), "nobody".into(), "nobody".into()])
        .collect();
    let hubs = hubs(
        &[("a", scripted("x", 200)), ("b", scripted("y", 10))],
        HubLimits::unlimited(),
    );
    let target = format!(
        "devices: [{}], exclude: [{{tags: {{vip: 'true'}}}}]",
        list.join(", ")
    );
    let (summary, batches) = plan(&spec(&target, ", batch_by: [region]"), &hubs, Path::new(""))
        .await
        .unwrap();
    let planned = ids(&batches);
    assert_eq!(planned.len(), 181, "180 of hub a, one of hub b");
    assert!(planned.contains(&("b".into(), "y-000003".into())));
    let left_out: Vec<_> = summary
        .excluded
        .iter()
        .map(|e| (e.rule.as_str(), e.devices))
        .collect();
    assert_eq!(
        left_out,
        [
            ("tags.vip = 'true'", 20),
            ("listed, but in none of the hubs", 51)
        ]
    );
    assert_eq!(summary.repeated, 1);
}

#[tokio::test]
async fn planning_errors_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ids.txt"), "x-1\nx 2\n").unwrap();
    let hub = scripted("x", 10);
    let hubs = hubs(&[("a", hub.clone())], HubLimits::unlimited());
    let error = plan(&spec("all: true, hubs: [b]", ""), &hubs, Path::new(""))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "hub b is not configured; configured hubs: a"
    );
    assert!(matches!(
        plan(&spec("all: true", ""), &Hubs::new(), Path::new("")).await,
        Err(PlanError::NoHubs)
    ));
    assert!(matches!(
        plan(&spec("devices_file: ids.txt", ""), &hubs, dir.path()).await,
        Err(PlanError::List(_))
    ));
    hub.set_down(true);
    assert!(matches!(
        plan(&spec("all: true", ""), &hubs, Path::new("")).await,
        Err(PlanError::Hub { .. })
    ));
}

/// The planned ids of each stage.
fn by_stage(batches: &[Batch]) -> BTreeMap<u16, BTreeSet<String>> {
    let mut stages: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for batch in batches {
        let ids = batch.devices.iter().map(str::to_owned);
        stages.entry(batch.header.stage.0).or_default().extend(ids);
    }
    stages
}

fn stages_of(summary: &PlanSummary) -> Vec<(&str, u64)> {
    let stages = summary.stages.iter();
    stages
        .map(|stage| (stage.name.as_str(), stage.devices))
        .collect()
}

const STAGES: &str = ", stages: [{name: canary, tags: {region: r1}, max_devices: 40}, \
    {name: tenth, percent: 10%}, {name: half, percent: 50%, rate: 240/min}]";

#[tokio::test]
async fn stages_are_exact_over_all_hubs() {
    let spec = spec(
        "all: true, exclude: [{devices: [x-000001, y-000002]}]",
        STAGES,
    );
    let mut digests = BTreeSet::new();
    for _ in 0..3 {
        let hubs = hubs(
            &[("a", scripted("x", 3_001)), ("b", scripted("y", 1_101))],
            HubLimits::unlimited(),
        );
        let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
        digests.insert(summary.digest.clone());
        assert_eq!(ids(&batches).len(), 4_100);
        assert_eq!(summary.devices, 4_100);

        let stages = by_stage(&batches);
        let sizes = stages.values().map(|ids| ids.len() as u64);
        let planned: Vec<_> = stages_of(&summary).into_iter().map(|(_, n)| n).collect();
        assert_eq!(sizes.collect::<Vec<_>>(), planned);
        let batches_of = summary.stages.iter().map(|stage| stage.batches);
        assert_eq!(batches_of.sum::<u32>(), summary.batches);

        let mut order: Vec<_> = stages.values().flatten().collect();
        order.sort_by_key(|id| Cohort::of(&build::device(id), spec.salt()));
        let canary: BTreeSet<_> = order
            .iter()
            .filter(|id| {
                let n: u32 = id[2..].parse().unwrap();
                !n.is_multiple_of(7) && n % 3 == 1
            })
            .take(40)
            .map(|id| (*id).clone())
            .collect();
        let first = |count: usize| -> BTreeSet<String> {
            order[..count].iter().map(|id| (*id).clone()).collect()
        };
        let upto_tenth = &canary | &first(410);
        let upto_half = &upto_tenth | &first(2_050);
        assert_eq!(stages[&0], canary);
        assert_eq!(&stages[&0] | &stages[&1], upto_tenth);
        assert_eq!(&(&upto_tenth | &stages[&2]), &upto_half);
        // The slowest stage sends 240 a minute.
        assert!(batches.iter().all(|batch| batch.header.devices <= 120));
    }
    assert_eq!(digests.len(), 1);
}

#[tokio::test]
async fn a_plan_without_stages_has_one_stage() {
    let hubs = hubs(&[("a", scripted("x", 30))], HubLimits::unlimited());
    let (summary, _) = plan(&spec("all: true", ""), &hubs, Path::new(""))
        .await
        .unwrap();
    assert_eq!(stages_of(&summary), [("all", 30)]);
    let old = serde_json::json!({
        "devices": 0, "batches": 0, "digest": "", "checksum": {"batches": 0, "devices": 0, "sum": 0}, "hubs": [], "excluded": [], "repeated": 0
    });
    let old: PlanSummary = serde_json::from_value(old).unwrap();
    assert_eq!(old.stages, []);
}

/// Six devices: two zones, two invalid zones (including a long value), one device without the tag,
/// and one excluded device.
fn zoned(prefix: &str) -> ScriptedHub {
    let long = "x".repeat(100);
    let zones = [
        Some("Europe/Oslo"),
        Some("UTC"),
        Some("Europe/Olso"),
        Some(&*long),
        None,
        Some("Mars"),
    ];
    let devices = zones.iter().enumerate().map(|(n, zone)| {
        let zone = zone.map(|zone| ("zone", zone.to_owned()));
        let id = build::device(&format!("{prefix}-{n}"));
        (id, tags(&Vec::from_iter(zone)))
    });
    ScriptedHub::with_tags(devices)
}

#[tokio::test]
async fn devices_with_an_unknown_zone_are_counted_and_may_be_left_out() {
    let two = hubs(
        &[("a", zoned("x")), ("b", zoned("y"))],
        HubLimits::unlimited(),
    );
    let with = |schedule: &str| {
        spec(
            "all: true, exclude: [{devices: [x-5, y-5]}]",
            &format!(", batch_by: [zone], schedule: {{zone: Asia/Tokyo{schedule}}}"),
        )
    };
    let plan = async |schedule: &str| plan(&with(schedule), &two, Path::new("")).await.unwrap();

    let (summary, batches) = plan(", zone_tag: zone").await;
    assert_eq!(ids(&batches).len(), 10);
    let unknown = &summary.unknown_zones;
    let cut = "x".repeat(40);
    assert_eq!(
        (unknown.devices, &*unknown.values),
        (4, &["Europe/Olso".to_owned(), cut][..])
    );
    assert_eq!(summary.excluded.len(), 1);

    let (summary, batches) = plan(", zone_tag: zone, unknown_zone: skip").await;
    let planned: Vec<_> = ids(&batches).into_iter().map(|(_, id)| id).collect();
    assert_eq!(planned, ["x-0", "x-1", "x-4", "y-0", "y-1", "y-4"]);
    assert_eq!((summary.devices, summary.unknown_zones.devices), (6, 4));
    let left_out = &summary.excluded[1];
    assert_eq!(left_out.devices, 4);
    assert!(
        left_out
            .rule
            .starts_with("tags.zone is not a time zone: \"Europe/Olso\", \"xxx"),
        "{}",
        left_out.rule
    );

    for (schedule, warned) in [("", true), (", unknown_zone: skip", false)] {
        let planner = Planner {
            spec: &with(&format!(", zone_tag: zone{schedule}")),
            hubs: &two,
            base: Path::new(""),
            progress: &PlanProgress::default(),
            joiners: None,
        };
        let clock = ManualClock::at(Timestamp(1_790_000_000_000));
        let view = view::plan::read(&planner, &clock).await.unwrap();
        let says = |warning: &String| {
            warning.starts_with("4 devices have an unknown zone, \"Europe/Olso\", ")
        };
        assert_eq!(
            view.warnings.iter().any(says),
            warned,
            "{:?}",
            view.warnings
        );
    }

    // Without device zones, no zone can be unknown.
    let (summary, _) = plan("").await;
    assert_eq!((summary.devices, summary.unknown_zones.devices), (10, 0));
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json.get("unknown_zones"), None);
}

#[tokio::test]
async fn a_gated_stage_without_devices_is_refused() {
    let hubs_with = |count| {
        hubs(
            &[("a", scripted("x", count)), ("b", scripted("y", 0))],
            HubLimits::unlimited(),
        )
    };
    let gated = |gate: &str| {
        let stages = format!(", stages: [{{name: canary, tags: {{region: r9}}{gate}}}]");
        spec("all: true", &stages)
    };
    let bake = gated(", gate: {bake: 1h}");
    let error = plan(&bake, &hubs_with(20), Path::new("")).await;
    let error = error.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("stage canary has a gate but no devices, so the gate can never pass: "),
        "{error}"
    );
    // A stage without a gate cannot fail, and an empty target is no plan in any case.
    let (summary, _) = plan(&gated(""), &hubs_with(20), Path::new(""))
        .await
        .unwrap();
    assert_eq!(stages_of(&summary), [("canary", 0), ("rest", 20)]);
    let (summary, _) = plan(&bake, &hubs_with(0), Path::new("")).await.unwrap();
    assert_eq!(stages_of(&summary), [("canary", 0), ("rest", 0)]);
}

#[tokio::test]
async fn stages_apply_to_device_lists() {
    let dir = tempfile::tempdir().unwrap();
    let list: String = (0..5_000).map(|n| format!("x-{n:06}\n")).collect();
    std::fs::write(dir.path().join("ids.txt"), list).unwrap();
    let in_file = |stages: &str| spec("devices_file: ids.txt", stages);

    let alone = hubs(&[("a", scripted("x", 0))], HubLimits::unlimited());
    let tenth = in_file(", stages: [{name: one, percent: 0.1%}, {name: two, percent: 10%}]");
    let (summary, _) = plan(&tenth, &alone, dir.path()).await.unwrap();
    assert_eq!(
        stages_of(&summary),
        [("one", 5), ("two", 495), ("rest", 4_500)]
    );

    // Most of the list is in neither hub. The percentage applies to the devices found.
    let two = hubs(
        &[("a", scripted("x", 101)), ("b", scripted("y", 7))],
        HubLimits::unlimited(),
    );
    let (summary, _) = plan(&tenth, &two, dir.path()).await.unwrap();
    assert_eq!(stages_of(&summary), [("one", 1), ("two", 10), ("rest", 90)]);

    // Tags must be looked up for a stage by tags, even with a single hub.
    let known = hubs(&[("a", scripted("x", 70))], HubLimits::unlimited());
    let by_tag = in_file(", stages: [{name: one, tags: {region: [r0, r2]}}]");
    let (summary, batches) = plan(&by_tag, &known, dir.path()).await.unwrap();
    assert_eq!(stages_of(&summary), [("one", 40), ("rest", 30)]);
    assert!(by_stage(&batches)[&0].contains("x-000002"));
}

fn row(device: &str, tags: Vec<Option<Value>>) -> DeviceRow {
    let device = build::device(device);
    DeviceRow { device, tags }
}

#[tokio::test]
async fn a_malformed_row_is_left_out_counted_and_named() {
    let hub = ScriptedHub::of(0);
    let group = |value: Value| vec![Some(value)];
    hub.set_pages([
        DevicePage {
            rows: vec![
                row("a;1", group("eu".into())),
                row("b", group(json!({"eu": 1}))),
                row("c", group(json!(["eu"]))),
                row("d", group(json!(7))),
            ],
            malformed_rows: vec![MalformedRow::new("x y", "its id is no good")],
        },
        DevicePage {
            rows: vec![row("e", vec![None]), row("f", group(json!(true)))],
            malformed_rows: vec![
                MalformedRow::of(build::device("g"), "its tags are odd"),
                MalformedRow::of(build::device("h"), "it is excluded"),
            ],
        },
    ]);
    let hubs = hubs(&[("a", hub)], HubLimits::unlimited());
    let spec = spec("all: true, exclude: [{devices: [h]}]", ", batch_by: [site]");
    let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
    let planned = ids(&batches);
    let planned: Vec<_> = planned.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(planned, ["a;1", "d", "e", "f"]);
    assert_eq!(summary.excluded[0].devices, 1);
    let malformed = summary.malformed_rows;
    assert_eq!(malformed.rows, 4);
    let named: Vec<_> = malformed.examples.iter().map(ToString::to_string).collect();
    assert_eq!(
        named,
        [
            "\"x y\" of hub a: its id is no good",
            "\"b\" of hub a: tags.site is an object; batch_by allows text, numbers, true and false",
            "\"c\" of hub a: tags.site is a list; batch_by allows text, numbers, true and false",
            "\"g\" of hub a: its tags are odd",
        ]
    );
}

#[tokio::test]
async fn an_empty_plan_message_mentions_malformed_rows() {
    let hub = ScriptedHub::of(0);
    hub.set_pages([DevicePage {
        rows: vec![],
        malformed_rows: vec![MalformedRow::new("x y", "its id is no good")],
    }]);
    let hubs = hubs(&[("a", hub)], HubLimits::unlimited());
    let (summary, _) = plan(&spec("all: true", ""), &hubs, Path::new(""))
        .await
        .unwrap();
    assert_eq!(
        summary.empty_plan_message(),
        "the target matches no device; 1 malformed row of the hubs' answers was left out: \"x y\" \
         of hub a: its id is no good"
    );
}

fn page(devices: &[&str]) -> DevicePage {
    DevicePage {
        rows: devices.iter().map(|it| row(it, vec![])).collect(),
        malformed_rows: vec![],
    }
}

#[tokio::test]
async fn a_device_in_two_pages_is_planned_once() {
    let hub = ScriptedHub::of(0);
    hub.set_pages([
        page(&["a", "b", "b", "c"]),
        page(&["c", "d", "x"]),
        page(&["a", "x", "e"]),
    ]);
    let other = ScriptedHub::of(0);
    other.set_pages([page(&["a", "b"]), page(&["b"])]);
    let hubs = hubs(&[("one", hub), ("two", other)], HubLimits::unlimited());
    let target = "all: true, exclude: [{devices: [x]}]";
    let (summary, batches) = plan(&spec(target, ""), &hubs, Path::new("")).await.unwrap();
    let planned = ids(&batches);
    let planned: Vec<_> = planned
        .iter()
        .map(|(hub, id)| format!("{hub}/{id}"))
        .collect();
    assert_eq!(
        planned,
        [
            "one/a", "one/b", "one/c", "one/d", "one/e", "two/a", "two/b"
        ]
    );
    assert_eq!((summary.devices, summary.repeated), (7, 5));
    assert_eq!(
        summary.excluded[0].devices, 1,
        "an excluded device counts once"
    );
}

#[tokio::test]
async fn a_device_with_good_and_malformed_rows_is_planned_once() {
    let hub = ScriptedHub::of(0);
    let malformed = |device: &str| MalformedRow::of(build::device(device), "odd");
    let with_malformed = |rows: &[&str], malformed_rows: Vec<MalformedRow>| DevicePage {
        malformed_rows,
        ..page(rows)
    };
    hub.set_pages([
        with_malformed(&["a"], vec![malformed("b")]),
        with_malformed(&["b"], vec![malformed("a")]),
    ]);
    let hubs = hubs(&[("h", hub)], HubLimits::unlimited());
    let (summary, batches) = plan(&spec("all: true", ""), &hubs, Path::new(""))
        .await
        .unwrap();
    assert_eq!(ids(&batches).len(), 2);
    assert_eq!((summary.repeated, summary.malformed_rows.rows), (1, 1));
}

#[tokio::test]
async fn a_listed_device_repeated_by_the_hub_is_planned_once() {
    let hub = ScriptedHub::of(0);
    hub.set_pages([page(&["a", "b"]), page(&["b", "a"])]);
    let hubs = hubs(&[("h", hub)], HubLimits::unlimited());
    // With a tag for batching, the hub is queried for listed devices.
    let spec = spec("devices: [a, b, a]", ", batch_by: [site]");
    let (summary, batches) = plan(&spec, &hubs, Path::new("")).await.unwrap();
    assert_eq!(ids(&batches).len(), 2);
    assert_eq!(summary.repeated, 1 + 2);
}
