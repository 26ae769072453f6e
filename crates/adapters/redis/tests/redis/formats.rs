//! Data of other releases: data of the same format is read, data of a newer format is left alone.

use serde_json::{Value, json};
use twincast_core::ids::{BatchId, RolloutId};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Batches as _, Created, LeaseReply, RolloutRegistry, Rollouts as _, StoreError,
};
use twincast_testkit::build::{
    TTL, accepted, after, batch, lease_request, leased, name, pause_requested, report, running,
};
use twincast_testkit::services::Redis;

use crate::common::{connect, settings};

fn is_newer<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    match answer {
        Err(StoreError::Newer {
            what,
            found: 2,
            known: 1,
        }) => assert_eq!(what, "rollout r"),
        other => panic!("{other:?}"),
    }
}

/// No operation reads or changes the rollout, and other rollouts are unaffected.
#[tokio::test]
async fn a_rollout_of_a_newer_format_is_left_alone() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    let rollout = running(&store, "r", vec![batch(0, 4), batch(1, 4)]).await;
    let lease = leased(&store, &name("r"), 0, "w").await;
    let head = format!("{}{{r}}", settings.prefix);
    redis.command(&format!("HSET {head} format 2")).await;
    let content = async || redis.command(&format!("HGETALL {head}")).await;
    let before = content().await;

    let r = &name("r");
    let sent = [report(0, Outcome::Enqueued)];
    is_newer(store.rollout(r).await);
    is_newer(store.create(&accepted("r")).await);
    is_newer(
        store
            .save(&after(&rollout, pause_requested()), rollout.revision())
            .await,
    );
    is_newer(store.batches(r, None, 9).await);
    is_newer(store.load(r, BatchId(0)).await);
    is_newer(store.lease(&lease_request(r, 1, "w")).await);
    is_newer(store.record(&lease, &sent, TTL).await);
    is_newer(store.release(&lease).await);
    is_newer(
        store
            .merge(r, RolloutId::default(), BatchId(0), rollout.attempt, &sent)
            .await,
    );
    is_newer(store.tallies(r).await);
    assert_eq!(content().await, before);

    // The name is known, so that the rollout can be reported.
    assert_eq!(store.active().await.unwrap(), [name("r")]);
    assert_eq!(store.revision(r).await.unwrap(), Some(rollout.revision()));
    running(&store, "s", vec![batch(0, 4)]).await;
    let leased = store.lease(&lease_request(&name("s"), 0, "w")).await;
    assert!(matches!(leased, Ok(LeaseReply::Granted(_))), "{leased:?}");

    redis.command(&format!("HSET {head} format 1")).await;
    assert_eq!(store.rollout(r).await.unwrap(), Some(rollout));
    store.record(&lease, &sent, TTL).await.unwrap();
}

/// A release may add fields that other releases need not know.
#[tokio::test]
async fn unknown_fields_of_the_same_format_are_passed_over() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    let rollout = running(&store, "r", vec![batch(0, 4)]).await;
    let head = format!("{}{{r}}", settings.prefix);
    let mut record = serde_json::to_value(&rollout).unwrap();
    for place in ["", "/plan", "/stages/0", "/history/0"] {
        let object = record.pointer_mut(place).and_then(Value::as_object_mut);
        let object = object.unwrap_or_else(|| panic!("no object at {place}"));
        object.insert("of_tomorrow".to_owned(), json!({ "a": 1 }));
    }
    let header = &store.batches(&name("r"), None, 1).await.unwrap()[0].header;
    let mut of_batch = serde_json::to_value(header).unwrap();
    of_batch["of_tomorrow"] = json!(1);
    redis
        .command(&format!("HSET {head} record {:?}", record.to_string()))
        .await;
    redis
        .command(&format!("HSET {head}:headers 0 {:?}", of_batch.to_string()))
        .await;

    assert_eq!(
        store.create(&accepted("r")).await.unwrap(),
        Created::Existing(Box::new(rollout.clone()))
    );
    let read = store.rollout(&name("r")).await.unwrap();
    assert_eq!(read.as_ref(), Some(&rollout));
    let lease = leased(&store, &name("r"), 0, "w").await;
    let sent: Vec<_> = (0..4).map(|at| report(at, Outcome::Enqueued)).collect();
    store.record(&lease, &sent, TTL).await.unwrap();
    let next = after(&rollout, pause_requested());
    store.save(&next, rollout.revision()).await.unwrap();

    // But not in the spec: an unknown rule would be an ignored rule.
    record["spec"]["of_tomorrow"] = json!(1);
    redis
        .command(&format!("HSET {head} record {:?}", record.to_string()))
        .await;
    let read = store.rollout(&name("r")).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
}

#[tokio::test]
async fn corrupt_record_does_not_hide_other_rollouts() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    for rollout in ["r", "s", "t"] {
        store.create(&accepted(rollout)).await.unwrap();
    }
    let prefix = &settings.prefix;
    for set in ["rollouts", "{registry}:active"] {
        redis
            .command(&format!("ZADD {prefix}{set} 0 \"no name\""))
            .await;
    }
    redis
        .command(&format!("HSET {prefix}{{s}} version x"))
        .await;
    redis.command(&format!("HSET {prefix}{{t}} record x")).await;
    let all = [name("r"), name("s"), name("t")];
    assert_eq!(store.rollouts().await.unwrap(), all);
    assert_eq!(store.active().await.unwrap(), all);
    assert!(store.rollout(&name("r")).await.unwrap().is_some());
    let read = store.revision(&name("s")).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    let read = store.rollout(&name("t")).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
}
