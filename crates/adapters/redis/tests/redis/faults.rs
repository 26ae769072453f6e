//! Servers that are full, unavailable, restarted, or demoted.

use std::time::{Duration, Instant};

use twincast_core::ids::{Attempt, BatchId, RolloutId};
use twincast_core::outcome::{Outcome, OutcomeList};
use twincast_core::ports::{
    Batches as _, Limiter as _, RolloutRegistry, Rollouts as _, StoreError,
};
use twincast_core::rollout::{Adding, Event, PlanId};
use twincast_redis::{RedisStore, Settings};
use twincast_testkit::build::{
    TTL, accepted, apply, batch, holder, leased, name, planning, report, running,
};
use twincast_testkit::services::{Proxy, Redis, RedisCluster};

use crate::common::{PATIENCE, connect, patient, prefix, settings, verify};

const TIMEOUT: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

/// Repeats a call until the server answers, as all callers do.
async fn until_back(store: &RedisStore) {
    let started_at = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(started_at.elapsed() < TIMEOUT, "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn assert_unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Unavailable { .. }) => {}
        other => panic!("not unavailable: {other:?}"),
    }
}

/// A restart keeps outcomes, leases, epochs and claims.
#[tokio::test]
async fn restart_keeps_outcomes_leases_epochs_and_claims() {
    let redis = Redis::start(&["--appendfsync", "always"]).await;
    let store = connect(&settings(&redis)).await;
    let rollout = running(&store, "r", vec![batch(0, 300), batch(1, 2)]).await;
    let lease = leased(&store, &name("r"), 0, "w").await;
    let reports: Vec<_> = (0..200).map(|i| report(i, Outcome::Enqueued)).collect();
    store.record(&lease, &reports, TTL).await.unwrap();
    store.claim(&[name("r")], &holder("o"), HOUR).await.unwrap();
    redis.kill().await;
    assert_unavailable(store.ping().await);
    redis.start_stopped().await;

    until_back(&store).await;
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(rollout));
    store
        .record(&lease, &[report(200, Outcome::NotFound)], TTL)
        .await
        .unwrap();
    let held = store.claim(&[name("r")], &holder("p"), HOUR).await.unwrap();
    assert_eq!(held[&name("r")].by, holder("o"));
    let next = leased(&store, &name("r"), 1, "w").await;
    assert!(next.epoch > lease.epoch);
    verify(&store, &name("r")).await;
    assert_eq!(store.active().await.unwrap(), [name("r")]);
}

/// A restart between two calls, or a connection closed for idleness, is not visible to the caller.
#[tokio::test]
async fn closed_connection_is_replaced_transparently() {
    let redis = Redis::start(&[]).await;
    let store = connect(&settings(&redis)).await;
    store.create(&accepted("r")).await.unwrap();
    redis.restart().await;
    assert_eq!(store.rollouts().await.unwrap(), [name("r")]);
    redis.command("CLIENT KILL TYPE normal").await;
    assert_eq!(store.rollouts().await.unwrap(), [name("r")]);
}

/// A caller that stops polling while its call connects, as an arm of `select!` may, holds up no
/// other call.
#[tokio::test]
async fn unpolled_call_does_not_block_other_calls() {
    let redis = Redis::shared().await;
    let proxy = Proxy::start(redis.address()).await;
    let settings = Settings {
        url: Settings::new(redis.url_via(&proxy)).url,
        ..settings(redis)
    };
    let store = connect(&settings).await;
    proxy.refuse();
    assert_unavailable(store.ping().await);
    proxy.block();
    let (mut connecting, mut waiting) = (Box::pin(store.ping()), Box::pin(store.ping()));
    assert!(futures::poll!(&mut connecting).is_pending());
    assert!(futures::poll!(&mut waiting).is_pending());
    proxy.unblock();
    store.ping().await.unwrap();
    connecting.await.unwrap();
    waiting.await.unwrap();
}

/// Whether the server refuses or is silent, the store reports an error in time, and works again
/// when the server is back.
#[tokio::test]
async fn unavailable_server_is_reported_in_time() {
    let redis = Redis::shared().await;
    let proxy = Proxy::start(redis.address()).await;
    let settings = Settings {
        url: Settings::new(redis.url_via(&proxy)).url,
        response_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(2),
        ..settings(redis)
    };
    let store = connect(&settings).await;
    let patient_store = connect(&patient(settings.clone())).await;
    running(&patient_store, "r", vec![batch(0, 2)]).await;
    let lease = leased(&patient_store, &name("r"), 0, "w").await;
    for silent in [true, false] {
        if silent {
            proxy.block();
        } else {
            proxy.refuse();
        }
        for _ in 0..3 {
            let started_at = Instant::now();
            let recorded = store.record(&lease, &[], TTL).await;
            assert!(started_at.elapsed() < PATIENCE);
            assert_unavailable(recorded);
        }
        proxy.unblock();
        until_back(&store).await;
        let started_at = Instant::now();
        while let Err(error) = store.record(&lease, &[], TTL).await {
            assert!(started_at.elapsed() < PATIENCE, "{error:?}");
        }
    }
}

/// Nothing is half-done, reads continue, and writes continue once there is room.
#[tokio::test]
async fn full_server_refuses_writes_and_serves_reads() {
    let redis = Redis::start(&[]).await;
    let store = connect(&settings(&redis)).await;
    running(&store, "r", vec![batch(0, 4)]).await;
    let lease = leased(&store, &name("r"), 0, "w").await;
    let other = planning(&store, "s").await;
    assert_eq!(redis.command("CONFIG SET maxmemory 1").await, "+OK\r\n");

    let batches = vec![batch(0, 100), batch(1, 100)];
    let reports = [report(0, Outcome::Enqueued), report(1, Outcome::NotFound)];
    let next = other
        .after(Event::PlanningStarted, other.changed_at)
        .unwrap()
        .unwrap();
    for refused in [
        store.create(&accepted("t")).await.map(drop),
        store.save(&next, other.revision()).await,
        store
            .add_batches(&name("s"), Adding::Plan(PlanId(1)), batches.clone())
            .await
            .map(drop),
        store.record(&lease, &reports, TTL).await.map(drop),
        store
            .merge(
                &name("r"),
                RolloutId::default(),
                BatchId(0),
                Attempt::FIRST,
                &reports,
            )
            .await
            .map(drop),
        store.release(&lease).await,
        store.open_link(&batches[0].header.hub).await.map(drop),
        store.ping().await,
    ] {
        match refused {
            Err(StoreError::NotWritable { .. }) => {}
            other => panic!("not refused: {other:?}"),
        }
    }
    assert_eq!(store.rollouts().await.unwrap(), [name("r"), name("s")]);
    assert_eq!(
        store.rollout(&name("s")).await.unwrap(),
        Some(other.clone())
    );
    assert!(store.batches(&name("s"), None, 9).await.unwrap().is_empty());
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!(work.outcomes, OutcomeList::pending(4));
    verify(&store, &name("r")).await;

    assert_eq!(redis.command("CONFIG SET maxmemory 0").await, "+OK\r\n");
    store.record(&lease, &reports, TTL).await.unwrap();
    store
        .add_batches(&name("s"), Adding::Plan(PlanId(1)), batches)
        .await
        .unwrap();
    verify(&store, &name("r")).await;
    verify(&store, &name("s")).await;
}

/// The store drops a connection to a server that became a replica: the address may lead to the new
/// primary by then.
#[tokio::test]
async fn demoted_server_is_unavailable_and_reconnected() {
    let redis = Redis::start(&[]).await;
    let store = connect(&settings(&redis)).await;
    let rollout = planning(&store, "r").await;
    redis.command("REPLICAOF 127.0.0.1 1").await;
    let connections = async || {
        let info = redis.command("INFO stats").await;
        let line = info
            .lines()
            .find(|l| l.starts_with("total_connections_received"));
        line.and_then(|l| l.split_once(':')?.1.trim().parse::<u64>().ok())
            .unwrap()
    };
    let before = connections().await;
    let next = rollout
        .after(Event::PlanningStarted, rollout.changed_at)
        .unwrap()
        .unwrap();
    assert_unavailable(store.save(&next, rollout.revision()).await);
    assert!(
        connections().await > before + 1,
        "the same call opens another connection"
    );
    assert_eq!(
        store.revision(&name("r")).await.unwrap(),
        Some(rollout.revision())
    );
    redis.command("REPLICAOF NO ONE").await;
    apply(&store, &rollout, Event::PlanningStarted).await;
}

/// Rollouts on the other nodes stay available; rollouts on the lost node are back when the node is
/// back.
#[tokio::test]
async fn unavailable_cluster_node_is_reported_in_time() {
    let cluster = RedisCluster::start().await;
    // Lets the other nodes serve their slots while a node is unavailable.
    for node in cluster.nodes() {
        node.command("CONFIG SET cluster-require-full-coverage no")
            .await;
    }
    let settings = Settings {
        prefix: prefix(),
        response_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        ..Settings::cluster(&cluster.urls())
    };
    let store = connect(&settings).await;
    let patient_store = connect(&patient(settings)).await;
    for n in 0..12 {
        running(&patient_store, &format!("r{n}"), vec![batch(0, 2)]).await;
    }
    let survey = async || {
        let mut served = 0;
        for n in 0..12 {
            let started_at = Instant::now();
            match store.tallies(&name(&format!("r{n}"))).await {
                Ok(_) => served += 1,
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
            assert!(started_at.elapsed() < Duration::from_secs(30));
        }
        served
    };
    let until_all_served = async || {
        let started_at = Instant::now();
        while survey().await < 12 {
            assert!(started_at.elapsed() < TIMEOUT);
        }
    };
    until_all_served().await;
    cluster.nodes()[0].kill().await;
    let served = survey().await;
    assert!((1..12).contains(&served), "{served} of 12");
    cluster.nodes()[0].start_stopped().await;
    cluster.ready().await;
    until_all_served().await;

    for node in cluster.nodes() {
        node.stop().await;
    }
    assert_eq!(survey().await, 0);
    for node in cluster.nodes() {
        node.start_stopped().await;
    }
    cluster.ready().await;
    until_all_served().await;
}

/// A server that lost the last second grants no epoch of this second again.
#[tokio::test]
async fn lease_lost_by_the_server_is_fenced() {
    let redis = Redis::shared().await;
    let settings = settings(redis);
    let store = connect(&settings).await;
    running(&store, "r", vec![batch(0, 2)]).await;
    let head = format!("{}{{r}}", settings.prefix);
    let before = redis.command(&format!("HGET {head} 0")).await;
    let before = before.lines().nth(1).unwrap();
    let first = leased(&store, &name("r"), 0, "a").await;
    redis
        .command(&format!("HSET {head} epoch 0 0 \"{before}\""))
        .await;
    // A crash takes longer than a step of the clock.
    while store.time().await.unwrap().0 <= first.epoch.0 {}
    let second = leased(&store, &name("r"), 0, "b").await;
    assert!(first.epoch < second.epoch);

    let reports = [report(0, Outcome::Enqueued)];
    let recorded = store.record(&first, &reports, TTL).await;
    assert!(
        matches!(recorded, Err(StoreError::Superseded { .. })),
        "{recorded:?}"
    );
    store.release(&first).await.unwrap();
    store.record(&second, &reports, TTL).await.unwrap();
}
