//! Planning on doubles: which devices, in which batches, left out why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::ids::DeviceId;
use twincast_core::plan::{Batch, PlanSummary};
use twincast_core::spec::RolloutSpec;
use twincast_orchestrator::planner::{PlanError, PlanProgress, Planner, dry_run};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{ScriptedHub, build};

type Tags = BTreeMap<String, String>;

fn tags(pairs: &[(&str, String)]) -> Tags {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

/// `count` devices `PREFIX-000000` in three regions; every tenth is a vip, every seventh has no
/// region.
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

/// Understands the conditions of these tests, and no others.
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
                other => panic!("the test does not know {other:?}"),
            })
    })
}

fn hubs(each: &[(&str, ScriptedHub)], limits: HubLimits) -> Hubs {
    each.iter()
        .map(|(name, hub)| {
            (
                build::hub(name),
                HubHandle {
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
async fn the_same_fleet_gives_the_same_digest_whichever_hub_is_first() {
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
async fn a_list_for_one_hub_is_taken_as_it_is() {
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
        "the hub will say that it does not know it"
    );
}

#[tokio::test]
async fn a_list_is_looked_up_where_more_must_be_known() {
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
async fn what_cannot_be_planned_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ids.txt"), "x-1\nx 2\n").unwrap();
    let hub = scripted("x", 10);
    let hubs = hubs(&[("a", hub.clone())], HubLimits::unlimited());
    let error = plan(&spec("all: true, hubs: [b]", ""), &hubs, Path::new(""))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "hub b is not configured; configured are: a"
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
