//! The worker on test doubles with paused time, while the store is full or slow, or some calls are
//! not answered.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use twincast_core::ids::{BatchId, Holder, RolloutName};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Batches as _, Dispatch, LeaseReply, LeaseRequest, NotSent, Queue, SendResult,
};
use twincast_testkit::{Condition, build};

use crate::bench::Bench;

/// Answers received before are recorded once there is room again, and no message is sent twice.
#[tokio::test(start_paused = true)]
async fn a_full_store_is_waited_for_and_no_answer_is_lost() {
    for per_minute in [None, Some(6_000.0)] {
        let mut bench = Bench::new(&[500]).await;
        bench.limits.sends_per_minute = per_minute;
        bench.hub.set_delay(Duration::from_millis(200));
        let worker = bench.start();
        bench.hub.arrived(100).await;
        bench.faulty_store.set(Condition::Full);
        sleep(Duration::from_secs(1)).await;
        let sent = bench.hub.sends();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.hub.sends(), sent, "no further sends");
        assert!(!worker.task.is_finished(), "{per_minute:?}");
        bench.faulty_store.set(Condition::Open);
        bench.until_settled().await;
        worker.stopped().await;
        assert_eq!(bench.hub.sends(), 500);
    }
}

/// The worker does not wait for a full store on the same machine.
#[tokio::test(start_paused = true)]
async fn a_full_local_store_ends_the_worker_at_once() {
    for per_minute in [None, Some(6_000.0)] {
        let mut bench = Bench::new(&[500]).await;
        bench.limits.sends_per_minute = per_minute;
        bench.config.give_up = Some(Duration::from_secs(30));
        let mut worker = bench.start();
        bench.hub.arrived(1).await;
        bench.faulty_store.set(Condition::Full);
        let full_at = Instant::now();
        let ended = (&mut worker.task).await.unwrap();
        assert!(ended.is_err() && full_at.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_are_recorded_while_a_throttle_is_reported() {
    let mut bench = Bench::new(&[256]).await;
    bench.limits.sends_per_minute = Some(60_000.0);
    let throttled = SendResult::NotSent {
        cause: NotSent::Throttled,
        retry_after: None,
        detail: "slow down".into(),
    };
    bench.hub.answer_next(vec![throttled; 100]);
    bench.faulty_store.set_of("throttled", Condition::Silent);
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(256).await;
    bench.hub.release_all();
    let answered_at = Instant::now();
    bench
        .until("recorded", |c| c.get(Outcome::Enqueued) >= 156)
        .await;
    assert!(answered_at.elapsed() < Duration::from_millis(200));
    bench.until_settled().await;
    worker.stopped().await;
}

/// Permits granted too late are not used, and are not requested in a loop.
#[tokio::test(start_paused = true)]
async fn late_permits_are_counted_and_not_requested_in_a_loop() {
    let mut bench = Bench::new(&[200]).await;
    bench.limits.sends_per_minute = Some(6_000.0);
    bench
        .faulty_store
        .set(Condition::Slow(Duration::from_millis(700)));
    let worker = bench.start();
    let metrics = prometheus::Registry::new();
    worker.status.register(&metrics).unwrap();
    let late = || {
        let families = metrics.gather();
        let mut families = families.iter();
        let family = families.find(|family| family.name() == "twincast_permits_late_total");
        let family = family.expect("the counter exists");
        family.get_metric()[0].get_counter().get_value()
    };
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.hub.sends(), 0);
    assert!((1.0..=20.0).contains(&late()), "{} late permits", late());
    bench.faulty_store.set(Condition::Open);
    bench.until_settled().await;
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_of_a_rollout_does_not_delay_other_rollouts() {
    let bench = Bench::new(&[100]).await;
    let slow = RolloutName::new("slow").unwrap();
    bench.faulty_store.set_of("rollout slow", Condition::Silent);
    let dispatch = Dispatch {
        rollout: slow,
        batch: BatchId(0),
        hub: build::hub("a"),
    };
    bench.queue.publish(&dispatch).await.unwrap();
    // Delays the calls of the other rollout until after the slow read.
    bench
        .faulty_store
        .set(Condition::Slow(Duration::from_millis(1)));
    let worker = bench.start();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.hub.sends(), 100);
    bench.faulty_store.set_of("rollout slow", Condition::Open);
    worker.stopped().await;
}

/// Batches leased by another holder take no slot until the leases lapse, and are worked on
/// afterwards.
#[tokio::test(start_paused = true)]
async fn batches_leased_elsewhere_occupy_no_slot() {
    let mut bench = Bench::new(&[10; 41]).await;
    bench.config.slots = 4;
    for batch in 0..40 {
        let request = LeaseRequest {
            rollout: bench.rollout.clone(),
            batch: BatchId(batch),
            holder: Holder::new("another").unwrap(),
            ttl: Duration::from_secs(9),
        };
        let reply = bench.store.lease(&request).await.unwrap();
        assert!(matches!(reply, LeaseReply::Granted(_)));
    }
    let started = Instant::now();
    let worker = bench.start();
    bench.hub.arrived(10).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    sleep(Duration::from_secs(8)).await;
    assert_eq!(bench.hub.sends(), 10, "leases are respected");
    bench.until_settled().await;
    assert!(started.elapsed() < Duration::from_secs(12));
    worker.stopped().await;
    assert_eq!(bench.hub.sends(), 410);
}
