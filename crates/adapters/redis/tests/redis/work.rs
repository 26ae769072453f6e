//! Several concurrent workers.

use std::sync::Arc;
use std::time::Duration;

use twincast_core::ids::{Attempt, BatchId, RolloutId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Batches as _, LeaseReply, Report, StoreError};
use twincast_redis::{RedisStore, Settings};
use twincast_testkit::build::{batch_on, lease_request, name, running};
use twincast_testkit::services::{Redis, RedisCluster};

use crate::common::{Dice, connect, patient, prefix, settings, verify};

const BATCHES: u32 = 6;
const DEVICES: u32 = 301;

fn reports(dice: &mut Dice) -> Vec<Report> {
    (0..dice.roll(60))
        .map(|_| Report {
            index: dice.roll(DEVICES),
            outcome: Outcome::ALL[dice.roll(16) as usize],
            code: dice.roll(3),
        })
        .collect()
}

/// Leases, records, merges and releases batches at random.
async fn work(store: Arc<RedisStore>, worker: u32, flush: Option<&'static Redis>) {
    let mut dice = Dice::new(u64::from(worker) + 7);
    for round in 0..60 {
        let batch = dice.roll(BATCHES);
        let mut request = lease_request(&name("r"), batch, &format!("w{worker}"));
        // Short enough to lapse now and then, so that another worker takes over.
        request.ttl = Duration::from_millis(u64::from(dice.roll(30)));
        if let LeaseReply::Granted(lease) = store.lease(&request).await.unwrap() {
            for _ in 0..3 {
                match store.record(&lease, &reports(&mut dice), request.ttl).await {
                    Ok(_) => {}
                    Err(StoreError::Superseded { .. }) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
            if dice.roll(2) == 0 {
                store.release(&lease).await.unwrap();
            }
        }
        let other = BatchId(dice.roll(BATCHES));
        store
            .merge(
                &name("r"),
                RolloutId::default(),
                other,
                Attempt::FIRST,
                &reports(&mut dice),
            )
            .await
            .unwrap();
        if let Some(redis) = flush
            && round % 10 == 0
        {
            assert_eq!(redis.command("SCRIPT FLUSH").await, "+OK\r\n");
        }
    }
}

async fn many_at_once(store: RedisStore, flush: Option<&'static Redis>) {
    let store = Arc::new(store);
    let batches = (0..BATCHES).map(|id| batch_on(id, ["a", "b"][id as usize % 2], 0, DEVICES));
    running(&*store, "r", batches.collect()).await;
    let workers = (0..6).map(|worker| tokio::spawn(work(Arc::clone(&store), worker, flush)));
    for worker in futures::future::join_all(workers).await {
        worker.unwrap();
    }
    verify(&*store, &name("r")).await;
    let mut counts = Counts::default();
    for tally in store.tallies(&name("r")).await.unwrap() {
        counts.add(&tally.counts);
    }
    assert_eq!(counts.total(), u64::from(BATCHES * DEVICES));
    assert!(counts.get(Outcome::Failed) > 0, "some devices failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_never_drift() {
    many_at_once(connect(&settings(Redis::shared().await)).await, None).await;
}

/// On a cluster, with servers that forget the scripts in between.
#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_are_sent_again() {
    let cluster = RedisCluster::shared().await;
    let settings = Settings {
        prefix: prefix(),
        durable_after: Some(Duration::ZERO),
        ..patient(Settings::cluster(&cluster.urls()))
    };
    for node in cluster.nodes() {
        many_at_once(
            connect(&Settings {
                prefix: prefix(),
                ..settings.clone()
            })
            .await,
            Some(node),
        )
        .await;
    }
}
