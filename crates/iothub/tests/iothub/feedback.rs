//! Feedback over real sockets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use twincast_emulator::{Cut, Faults, HubConfig};
use twincast_iothub::{Ack, C2dSender, C2dTemplate, FeedbackReceiver, FeedbackStatus, LinkState};

use crate::common::{client, client_with, config, message, options, until_opened};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn quick() -> HubConfig {
    HubConfig {
        feedback_interval: Duration::from_millis(50),
        feedback_lock: Duration::from_secs(5),
        ..config(100, Faults::default())
    }
}

fn acked() -> Arc<C2dTemplate> {
    C2dTemplate::builder("hello")
        .ack(Ack::Full)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requested_feedback_arrives_also_after_a_lost_connection() {
    let hub = twincast_emulator::start(quick()).await.unwrap();
    let client = client(&hub);
    let sender = C2dSender::connect(&client).await.unwrap();
    let mut feedback = FeedbackReceiver::connect(&client).await.unwrap();
    let mut state = feedback.state();
    let template = acked();
    let mut seen: HashMap<String, FeedbackStatus> = HashMap::new();
    for round in 0..2_u64 {
        for i in 0..50 {
            let outcome = sender.send(message(&template, i, round * 50 + i)).await;
            assert!(outcome.is_accepted(), "{outcome}");
        }
        while seen.len() < 50 * (round as usize + 1) {
            let batch = timeout(TEST_TIMEOUT, feedback.next())
                .await
                .unwrap()
                .unwrap();
            assert!(batch.unreadable.is_empty());
            assert!(batch.enqueued_time.is_some());
            for record in &batch.records {
                assert!(record.enqueued_time.is_some());
                seen.insert(record.original_message_id.clone(), record.status.clone());
            }
            // A batch received before the loss cannot be completed after it.
            let _ = batch.complete().await;
        }
        // The receiver reconnects only in `next`.
        let opened = hub.hub().summary().link_opens;
        hub.hub().cut_connections(Cut::Drop);
        let reopened = until_opened(&hub, opened + 1);
        timeout(TEST_TIMEOUT, reopened).await.unwrap();
    }
    assert!(
        seen.values()
            .all(|status| *status == FeedbackStatus::Success),
        "{seen:?}"
    );
    assert_eq!(seen.len(), 100);
    assert!(!matches!(*state.borrow_and_update(), LinkState::Failed(_)));
    feedback.close();
}

/// Delays doubling over so many losses would far exceed the test's time-out.
#[tokio::test(flavor = "multi_thread")]
async fn reconnect_delays_do_not_grow_after_delivered_feedback() {
    let hub = twincast_emulator::start(quick()).await.unwrap();
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let mut options = options(&hub);
    let (first, longest) = (Duration::from_millis(100), Duration::from_secs(3600));
    options.reconnect = twincast_retry::Policy::new(first, longest).unwrap();
    let mut feedback = FeedbackReceiver::new(&client_with(&hub, options));
    let template = acked();
    let again_and_again = async {
        let mut id = 0;
        for _ in 0..16 {
            let mut began = None;
            // The link is used for longer than the longest first delay.
            while began.is_none_or(|began: Instant| began.elapsed() < first) {
                id += 1;
                // A message lost with the connection has no feedback.
                while !sender.send(message(&template, 1, id)).await.is_accepted() {}
                feedback.next().await.unwrap().complete().await.unwrap();
                began.get_or_insert_with(Instant::now);
            }
            hub.hub().cut_connections(Cut::Drop);
        }
    };
    timeout(TEST_TIMEOUT, again_and_again)
        .await
        .expect("the waits stay short");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_batch_is_redelivered() {
    let hub = twincast_emulator::start(quick()).await.unwrap();
    let client = client(&hub);
    let sender = C2dSender::connect(&client).await.unwrap();
    let mut feedback = FeedbackReceiver::new(&client);
    assert!(sender.send(message(&acked(), 1, 7)).await.is_accepted());
    let first = timeout(TEST_TIMEOUT, feedback.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.records[0].original_message_id, "m-7");
    assert_eq!(first.records[0].device_id, "d-1");
    first.release().await.unwrap();
    let second = timeout(TEST_TIMEOUT, feedback.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(second.records[0].original_message_id, "m-7");
    second.complete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_end_the_feedback() {
    let hub = twincast_emulator::start(HubConfig {
        faults: Faults {
            refuse_cbs: true,
            ..Faults::default()
        },
        ..quick()
    });
    let hub = hub.await.unwrap();
    let mut feedback = FeedbackReceiver::new(&client(&hub));
    let error = timeout(TEST_TIMEOUT, feedback.next())
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, twincast_iothub::FeedbackError::Failed(_)),
        "{error:?}"
    );
}
