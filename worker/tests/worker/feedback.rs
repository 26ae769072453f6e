//! Feedback on test doubles with paused time: which records are merged, and how messages of other
//! applications are handled.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use twincast_core::evidence::{Obstacle, Watermark};
use twincast_core::hub::FeedbackQueue;
use twincast_core::ids::BatchId;
use twincast_core::message::Ack;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Batches as _, FeedbackRecord, Hub, Presence as _};
use twincast_core::time::Timestamp;
use twincast_testkit::FeedbackAnswer::{Completed, Released};
use twincast_testkit::{Condition, FeedbackAnswer, build};

use crate::bench::{Bench, Working, map};

/// A queue without a message for this long is empty.
const QUIET: Duration = Duration::from_secs(1);
/// Timers are exact to a millisecond.
const LATE: Duration = Duration::from_millis(10);

/// A running rollout that asks for all feedback.
async fn asking(batches: &[u32]) -> Bench {
    Bench::with(batches, |rollout| rollout.spec.message.ack = Ack::Full).await
}

fn record(message_id: &str, outcome: Outcome) -> FeedbackRecord {
    FeedbackRecord {
        message_id: message_id.into(),
        outcome,
        at: None,
    }
}

fn foreign() -> FeedbackRecord {
    record("2f1c9a52-5f5e-4b0c-9f43-0e2f4cf9f5a1", Outcome::Delivered)
}

fn answers(bench: &Bench) -> Vec<(usize, FeedbackAnswer)> {
    let answered = bench.hub.feedback_answered();
    answered.iter().map(|a| (a.message, a.answer)).collect()
}

/// Returns the number of merged records, and of records of other applications.
fn counted(worker: &Working) -> (u64, u64) {
    let hub = worker.hub().metrics();
    (hub.feedback_merged.get(), hub.feedback_foreign.get())
}

#[tokio::test(start_paused = true)]
async fn unreadable_records_are_counted_and_readable_are_merged() {
    let bench = asking(&[3]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench
        .hub
        .push_feedback_with_unreadable([record("r.0.0.0.0.1", Outcome::Delivered)], 2);
    bench.hub.until_feedback_answered(1).await;
    assert_eq!(answers(&bench), [(0, Completed)]);
    assert_eq!(counted(&worker), (1, 0));
    let unreadable = &worker.hub().metrics().feedback_unreadable;
    assert_eq!(unreadable.get(), 2);
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn feedback_is_merged_and_messages_are_completed() {
    let bench = asking(&[3, 3]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.hub.push_feedback([
        record("r.0.0.0.0.1", Outcome::Delivered),
        record("r.0.0.1.2.1", Outcome::Expired),
        record("r.0.0.0.1.1", Outcome::Rejected),
    ]);
    bench.hub.push_feedback([
        record("r.0.0.1.0.1", Outcome::Undeliverable),
        record("r.0.0.1.1.1", Outcome::Purged),
    ]);
    bench.hub.until_feedback_answered(2).await;
    assert_eq!(answers(&bench), [(0, Completed), (1, Completed)]);
    assert_eq!(counted(&worker), (5, 0));
    worker.stopped().await;
    let mut outcomes = Vec::new();
    for batch in [0, 1] {
        let work = bench.store.load(&bench.rollout, BatchId(batch)).await;
        outcomes.extend(work.unwrap().outcomes.iter().map(Outcome::as_str));
    }
    assert_eq!(
        outcomes,
        [
            "delivered",
            "rejected",
            "enqueued",
            "undeliverable",
            "purged",
            "expired"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_messages_are_merged_together_and_concurrently() {
    const CALL: Duration = Duration::from_millis(100);
    let bench = asking(&[2; 8]).await;
    let worker = bench.start();
    bench.until_settled().await;
    for call in ["revision", "batch", "merge reports into"] {
        bench.faulty_store.set_of(call, Condition::Slow(CALL));
    }
    let pushed = Instant::now();
    for message in 0..16 {
        let id = format!("r.0.0.{:x}.{}.1", message % 8, message / 8);
        bench.hub.push_feedback([record(&id, Outcome::Delivered)]);
    }
    bench.hub.until_feedback_answered(16).await;
    let took = pushed.elapsed();
    assert!(took < 3 * CALL + LATE, "more than three calls: {took:?}");
    let in_order: Vec<_> = (0..16).map(|message| (message, Completed)).collect();
    assert_eq!(answers(&bench), in_order);
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("delivered", 16)])
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn feedback_may_precede_the_record_of_the_send() {
    let bench = asking(&[3]).await;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(3).await;
    bench
        .hub
        .push_feedback([record("r.0.0.0.1.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(1).await;
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("pending", 2), ("delivered", 1)])
    );
    bench.hub.release_all();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(
        map(&counts),
        BTreeMap::from([("enqueued", 2), ("delivered", 1)])
    );
}

#[tokio::test(start_paused = true)]
async fn delivered_messages_are_not_resent_after_a_crash() {
    let bench = asking(&[3]).await;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(3).await;
    bench
        .hub
        .push_feedback([record("r.0.0.0.1.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(1).await;
    bench.crash(worker, 1).await;
    bench.hub.release_all();
    let worker = bench.start();
    bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(bench.hub.sends_by_id()["r.0.0.0.0.1"], 2);
    assert_eq!(bench.hub.sends_by_id()["r.0.0.0.1.1"], 1);
}

#[tokio::test(start_paused = true)]
async fn repeated_and_contradicting_records_are_ignored() {
    let bench = asking(&[2]).await;
    let worker = bench.start();
    bench.until_settled().await;
    let delivered = record("r.0.0.0.0.1", Outcome::Delivered);
    bench
        .hub
        .push_feedback([delivered.clone(), delivered.clone()]);
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Expired)]);
    bench.hub.push_feedback([delivered]);
    bench.hub.until_feedback_answered(3).await;
    worker.stopped().await;
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("enqueued", 1), ("delivered", 1)])
    );
}

/// Completes the next messages, as another application does.
async fn take_as_another(bench: &Bench, messages: usize) {
    let mut other = bench.hub.feedback().unwrap();
    for _ in 0..messages {
        let batch = other.next(Duration::from_secs(3_600)).await.unwrap();
        batch.expect("a message").ticket.complete().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_message_is_released_when_the_queue_is_empty() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    let pushed = Instant::now();
    bench.hub.push_feedback([foreign()]);
    bench.hub.until_feedback_answered(1).await;
    let first = bench.hub.feedback_answered()[0];
    assert_eq!((first.message, first.answer), (0, Released));
    assert!(first.at - pushed < QUIET + LATE, "no other listener waits");

    // Another listener receives this message, and every message enqueued in the pause.
    bench.hub.push_feedback([foreign()]);
    let released = Instant::now();
    take_as_another(&bench, 2).await;
    assert!(released.elapsed() < LATE);

    // An own message waits no longer than the pause.
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(4).await;
    let pause = released.elapsed();
    assert!(pause < Duration::from_secs(1) + LATE, "{pause:?}");
    assert_eq!(counted(&worker), (1, 1));
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn own_messages_are_found_behind_foreign_messages() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    for _ in 0..1_000 {
        bench.hub.push_feedback([foreign()]);
    }
    let pushed = Instant::now();
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(1).await;
    assert!(pushed.elapsed() < LATE, "{:?}", pushed.elapsed());
    assert_eq!(answers(&bench), [(1_000, Completed)]);
    // The other application receives all of its messages.
    bench.hub.until_feedback_answered(1_001).await;
    assert!(answers(&bench)[1..].iter().all(|(_, it)| *it == Released));
    take_as_another(&bench, 1_000).await;
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn foreign_messages_are_released_before_the_lock_expires() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    // The queue is never empty for a full second.
    let pushed = Instant::now();
    for _ in 0..90 {
        bench.hub.push_feedback([foreign()]);
        sleep(Duration::from_millis(500)).await;
    }
    bench.hub.until_feedback_answered(1).await;
    let first = bench.hub.feedback_answered()[0].at - pushed;
    let expected = Duration::from_secs(45);
    assert!(first >= expected && first < expected + QUIET, "{first:?}");
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn foreign_messages_are_removed_from_an_exclusive_queue() {
    let mut bench = asking(&[1]).await;
    bench.limits.feedback.queue = FeedbackQueue::Exclusive;
    let worker = bench.start();
    bench.until_settled().await;
    for _ in 0..100 {
        bench.hub.push_feedback([foreign()]);
    }
    let pushed = Instant::now();
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(101).await;
    assert!(pushed.elapsed() < LATE);
    assert!(answers(&bench).iter().all(|(_, it)| *it == Completed));
    assert_eq!(counted(&worker), (1, 100));
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn unclaimed_messages_are_received_at_growing_intervals() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    // A rollout of another store, a foreign message id, and a message without readable records.
    for records in [
        vec![record("other.0.0.0.0.1", Outcome::Delivered)],
        vec![record("not-an-id", Outcome::Delivered)],
        vec![],
    ] {
        let before = bench.hub.feedback_answered().len();
        bench.hub.push_feedback(records);
        bench.hub.until_feedback_answered(before + 8).await;
        let answered = bench.hub.feedback_answered().split_off(before);
        assert!(answered.iter().all(|a| a.answer == Released));
        let pauses: Vec<_> = answered
            .windows(2)
            .map(|pair| (pair[1].at - pair[0].at - QUIET).as_secs_f64().round())
            .collect();
        assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        // The hub drops the message in the end, and an own record ends the pauses.
        take_as_another(&bench, 1).await;
        bench
            .hub
            .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
        bench.hub.until_feedback_answered(before + 10).await;
    }
    worker.stopped().await;
}

/// Returns the age of the heard-until time, and the obstacle to hearing more.
async fn watermark(bench: &Bench) -> (Option<Duration>, Option<Obstacle>) {
    let listeners = bench.store.listeners(&build::hub("a")).await.unwrap();
    let now = Timestamp::MAX;
    let watermark = Watermark::of(&listeners, now);
    let ago = watermark.heard_until.map(|until| now.since(until));
    (ago, watermark.obstacle)
}

#[tokio::test(start_paused = true)]
async fn an_empty_queue_keeps_the_watermark_current() {
    let bench = asking(&[2]).await;
    assert_eq!(watermark(&bench).await, (None, Some(Obstacle::NoListener)));
    let worker = bench.start();
    bench.until_settled().await;
    for _ in 0..20 {
        sleep(Duration::from_millis(1_300)).await;
        let (ago, obstacle) = watermark(&bench).await;
        assert!(ago.unwrap() <= 3 * QUIET, "{ago:?}");
        assert_eq!(obstacle, None);
    }
    // A received message counts as heard only after the merge.
    bench.faulty_store.set(Condition::Broken);
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    sleep(Duration::from_secs(8)).await;
    let (ago, _) = watermark(&bench).await;
    assert!(ago.unwrap() >= Duration::from_secs(8), "{ago:?}");
    bench.faulty_store.set(Condition::Open);
    bench.hub.until_feedback_answered(1).await;
    sleep(3 * QUIET).await;
    assert!(watermark(&bench).await.0.unwrap() <= 3 * QUIET);
    // The hub may have been about to deliver a message to the ended worker.
    worker.stopped().await;
    let why = "the worker that received it has ended".to_owned();
    assert_eq!(
        watermark(&bench).await,
        (None, Some(Obstacle::ListenersFailing { why }))
    );
}

#[tokio::test(start_paused = true)]
async fn the_watermark_stalls_while_a_lost_worker_may_hold_messages() {
    let bench = asking(&[2]).await;
    let (first, second) = (bench.start(), bench.start());
    bench.until_settled().await;
    bench.dispatch(0).await;
    bench.dispatch(0).await;
    sleep(3 * QUIET).await;
    assert!(watermark(&bench).await.0.unwrap() <= 3 * QUIET);
    drop(first);
    // The hub may hide messages of the worker for a minute, and the clock may be off by 15 s.
    let lost_at = Instant::now();
    let hidden = Duration::from_secs(75);
    while lost_at.elapsed() < hidden {
        sleep(QUIET).await;
        let (ago, obstacle) = watermark(&bench).await;
        let known = lost_at.elapsed() < Duration::from_secs(11);
        let is_hidden = matches!(obstacle, Some(Obstacle::Hidden { .. }));
        assert!(known || is_hidden, "{obstacle:?}");
        assert!(ago.unwrap() + 2 * QUIET >= lost_at.elapsed(), "{ago:?}");
    }
    sleep(4 * QUIET).await;
    let (ago, obstacle) = watermark(&bench).await;
    assert!(ago.unwrap() <= 3 * QUIET, "{ago:?}");
    assert_eq!(obstacle, None);
    second.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn foreign_messages_ahead_are_counted_and_reported() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    for _ in 0..37 {
        bench.hub.push_feedback([foreign()]);
    }
    bench.hub.until_feedback_answered(37).await;
    sleep(Duration::from_millis(1)).await;
    let (ago, obstacle) = watermark(&bench).await;
    assert_eq!(obstacle, Some(Obstacle::Foreign { messages: 37 }));
    assert!(
        ago.unwrap() <= 2 * QUIET,
        "the queue has no other messages: {ago:?}"
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_mixed_message_is_completed_with_foreign_records_counted() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.hub.push_feedback([
        foreign(),
        record("r.0.0.0.0.1", Outcome::Delivered),
        record("other.0.0.0.0.1", Outcome::Delivered),
    ]);
    bench.hub.until_feedback_answered(1).await;
    assert_eq!(answers(&bench), [(0, Completed)]);
    assert_eq!(counted(&worker), (1, 2));
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("delivered", 1)])
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn records_of_an_older_plan_are_ignored_and_completed() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.hub.push_feedback([
        record("r.0.0.77.0.1", Outcome::Delivered),
        record("r.0.0.0.0.1", Outcome::Delivered),
    ]);
    bench
        .hub
        .push_feedback([record("r.0.0.0.55.1", Outcome::Delivered)]);
    bench.hub.until_feedback_answered(2).await;
    assert_eq!(answers(&bench), [(0, Completed), (1, Completed)]);
    assert_eq!(counted(&worker), (1, 0));
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn feedback_waits_for_an_unavailable_store() {
    let bench = asking(&[2]).await;
    let worker = bench.start();
    bench.until_settled().await;
    for (index, condition) in [Condition::Broken, Condition::Silent]
        .into_iter()
        .enumerate()
    {
        bench.faulty_store.set(condition);
        let id = format!("r.0.0.0.{index}.1");
        bench.hub.push_feedback([record(&id, Outcome::Delivered)]);
        sleep(Duration::from_secs(600)).await;
        assert_eq!(bench.hub.feedback_waiting(), 0, "the message is received");
        assert_eq!(answers(&bench).len(), index, "the message is unanswered");
        bench.faulty_store.set(Condition::Open);
        bench.hub.until_feedback_answered(index + 1).await;
    }
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("delivered", 2)])
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopping_worker_merges_held_messages_and_takes_no_more() {
    let bench = asking(&[2]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.faulty_store.set(Condition::Silent);
    for id in ["r.0.0.0.0.1", "r.0.0.0.1.1"] {
        bench.hub.push_feedback([record(id, Outcome::Delivered)]);
        sleep(Duration::from_secs(1)).await;
    }
    let faulty_store = bench.faulty_store.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(5)).await;
        faulty_store.set(Condition::Open);
    });
    let started = Instant::now();
    worker.stopped().await;
    assert!(started.elapsed() < Duration::from_secs(6));
    assert_eq!(answers(&bench), [(0, Completed)]);
    assert_eq!(bench.hub.feedback_waiting(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_worker_returns_messages_after_the_drain_time() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.faulty_store.set(Condition::Broken);
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    worker.stopped().await;
    assert!(started.elapsed() <= bench.config.drain + Duration::from_secs(1));
    assert_eq!(answers(&bench), []);
    assert_eq!(bench.hub.feedback_waiting(), 1, "the message is requeued");
}

#[tokio::test(start_paused = true)]
async fn a_pause_does_not_keep_a_worker_from_stopping() {
    let bench = asking(&[1]).await;
    let worker = bench.start();
    bench.until_settled().await;
    bench.hub.push_feedback([foreign()]);
    bench.hub.until_feedback_answered(6).await;
    let started = Instant::now();
    worker.stopped().await;
    assert!(started.elapsed() < LATE);
}

#[tokio::test(start_paused = true)]
async fn one_listener_serves_all_rollouts_with_feedback() {
    let bench = Bench::new(&[2]).await;
    let worker = bench.start();
    bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(bench.hub.feedback_listeners(), 0);
    let bench = asking(&[2, 2, 2]).await;
    let worker = bench.start();
    bench.until_settled().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.hub.feedback_listeners(), 1);
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_without_feedback_still_receives_sends() {
    let mut bench = asking(&[5]).await;
    bench.hub = bench.hub.without_feedback();
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 5)]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_feedback_listener_is_retried_later() {
    let bench = asking(&[1]).await;
    bench.hub.refuse_feedback(2);
    let worker = bench.start();
    bench.until_settled().await;
    bench
        .hub
        .push_feedback([record("r.0.0.0.0.1", Outcome::Delivered)]);
    let started = Instant::now();
    bench.hub.until_feedback_answered(1).await;
    assert_eq!(bench.hub.feedback_listeners(), 3);
    assert!(started.elapsed() > Duration::from_secs(500));
    worker.stopped().await;
}
