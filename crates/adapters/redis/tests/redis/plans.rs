//! Names, records and plans, beyond the contract of the port.

use std::sync::Arc;

use twincast_core::ids::{BatchId, Version};
use twincast_core::outcome::{Outcome, OutcomeList};
use twincast_core::ports::{Batches as _, RolloutRegistry, Rollouts as _, StoreError};
use twincast_core::rollout::{Adding, Attribution, Event, PlanId};
use twincast_testkit::build::{
    TTL, accepted, apply, batch, leased, name, pause_requested, planning, report, running,
};
use twincast_testkit::services::Redis;

use crate::common::{connect, settings};

/// Returns the number of keys. Only tests may ask for all keys; the adapter never does.
async fn keys(redis: &Redis, prefix: &str) -> usize {
    let found = redis.command(&format!("KEYS {prefix}*")).await;
    found
        .lines()
        .filter(|line| line.starts_with(prefix))
        .count()
}

/// The old keys are gone for any number of batches in any state.
#[tokio::test]
async fn replanning_removes_all_keys_of_the_old_plan() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    let rollout = planning(&store, "r").await;
    let before = keys(redis, &settings.prefix).await;
    let batches = (0..300).map(|id| batch(id, 3)).collect();
    store
        .add_batches(&name("r"), Adding::Plan(PlanId(1)), batches)
        .await
        .unwrap();
    assert!(keys(redis, &settings.prefix).await > before);
    apply(&store, &rollout, Event::PlanningStarted).await;
    assert_eq!(keys(redis, &settings.prefix).await, before);
}

/// A crash between writing the name and the record leaves a name without a record.
#[tokio::test]
async fn names_without_a_record_are_passed_over() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    store.create(&accepted("a")).await.unwrap();
    for key in ["rollouts", "{registry}:active"] {
        redis
            .command(&format!("ZADD {}{key} 1 ghost", settings.prefix))
            .await;
    }
    assert_eq!(store.rollouts().await.unwrap(), [name("a")]);
    assert_eq!(store.active().await.unwrap(), [name("a")]);
    store.create(&accepted("ghost")).await.unwrap();
    assert_eq!(store.active().await.unwrap(), [name("a"), name("ghost")]);
}

/// A version about to be stored keeps the rollout active, in any order of the two calls.
#[tokio::test]
async fn deactivation_never_drops_a_concurrent_save() {
    let store = Arc::new(connect(&settings(Redis::shared().await)).await);
    let mut rollout = running(&*store, "r", vec![batch(0, 1)]).await;
    for round in 0..200 {
        let event = if round % 2 == 0 {
            pause_requested()
        } else {
            Event::ResumeRequested {
                attribution: Attribution::default(),
            }
        };
        let deactivating = {
            let (store, version) = (Arc::clone(&store), rollout.version);
            tokio::spawn(async move { store.deactivate(&name("r"), version).await })
        };
        rollout = apply(&*store, &rollout, event).await;
        deactivating.await.unwrap().unwrap();
        assert_eq!(store.active().await.unwrap(), [name("r")], "round {round}");
    }
    store.deactivate(&name("r"), rollout.version).await.unwrap();
    assert!(store.active().await.unwrap().is_empty());
}

/// A repeated create command does not make an ended rollout active.
#[tokio::test]
async fn repeated_create_does_not_reactivate_a_rollout() {
    let store = connect(&settings(Redis::shared().await)).await;
    store.create(&accepted("a")).await.unwrap();
    store.deactivate(&name("a"), Version(1)).await.unwrap();
    store.create(&accepted("a")).await.unwrap();
    assert!(store.active().await.unwrap().is_empty());
}

/// Batches larger than Lua's stack, batches of odd size next to each other, and more refusals than
/// fit into a command.
#[tokio::test]
async fn large_batches_are_kept_whole() {
    const DEVICES: u32 = 20_001;
    let store = connect(&settings(Redis::shared().await)).await;
    running(
        &store,
        "r",
        vec![batch(0, 1), batch(1, DEVICES), batch(2, 3)],
    )
    .await;
    let lease = leased(&store, &name("r"), 1, "w").await;
    let reports: Vec<_> = (0..DEVICES)
        .map(|index| twincast_core::ports::Report {
            code: index + 1,
            ..report(index, Outcome::Refused)
        })
        .collect();
    store.record(&lease, &reports, TTL).await.unwrap();
    let work = store.load(&name("r"), BatchId(1)).await.unwrap();
    assert_eq!(work.codes.len(), DEVICES as usize);
    assert!(work.codes.iter().all(|(index, code)| *code == index + 1));
    assert!(
        work.outcomes
            .iter()
            .all(|outcome| outcome == Outcome::Refused)
    );
    for (id, devices) in [(0, 1), (2, 3)] {
        let beside = store.load(&name("r"), BatchId(id)).await.unwrap();
        assert_eq!(beside.outcomes, OutcomeList::pending(devices));
    }
}

/// Damaged data is reported, not replaced by made-up data.
#[tokio::test]
async fn damaged_data_is_reported() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    running(&store, "r", vec![batch(0, 4)]).await;
    let lease = leased(&store, &name("r"), 0, "w").await;
    let head = format!("{}{{r}}", settings.prefix);
    let first = [report(1, Outcome::Enqueued)];
    store.record(&lease, &first, TTL).await.unwrap();
    redis.command(&format!("DEL {head}:states")).await;
    let load = store.load(&name("r"), BatchId(0)).await;
    let record = store
        .record(&lease, &[report(0, Outcome::Enqueued)], TTL)
        .await;
    redis.command(&format!("HSET {head} 0 x")).await;
    let page = store.batches(&name("r"), None, 1).await;
    redis.command(&format!("HSET {head} record x")).await;
    let read = store.rollout(&name("r")).await;
    for error in [
        load.unwrap_err(),
        record.unwrap_err(),
        page.unwrap_err(),
        read.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("rollout r"), "{error}");
    }
}
