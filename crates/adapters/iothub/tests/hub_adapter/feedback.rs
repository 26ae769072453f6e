//! The port's feedback over real sockets.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use twincast_core::message::{Ack, Content, Outbound};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Feedback, FeedbackBatch, Hub, SendResult};
use twincast_emulator::{Fleet, HubConfig, RunningHub, Summary};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, ConnectionString, Credentials, Roots};
use twincast_testkit::build;

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

async fn emulated() -> (RunningHub, IotHub) {
    let config = HubConfig {
        unlimited: true,
        control_port: None,
        feedback_interval: Duration::from_millis(20),
        ..HubConfig::with_fleet(Fleet::plain(10, "d-{index}").unwrap())
    };
    let running = twincast_emulator::start(config).await.unwrap();
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(running.ca_pem().to_owned());
    let connection: ConnectionString = running.connection_string().parse().unwrap();
    let hub = IotHub::new(
        connection.address(),
        Credentials::SharedAccess(connection.clone().into()),
        options,
        None,
    )
    .unwrap();
    (running, hub)
}

/// Sends a message with feedback requested, and waits until the hub holds the feedback.
async fn send(running: &RunningHub, hub: &IotHub, id: &str, waiting: u64) {
    let content = Content {
        body: "hello".into(),
        content_type: None,
        content_encoding: None,
        properties: vec![],
        ttl: None,
        ack: Ack::Full,
    };
    let message = Outbound {
        device: build::device("d-1"),
        id: id.into(),
        content: Arc::new(content),
    };
    assert_eq!(hub.send(message).await, SendResult::Enqueued);
    until(running, |seen| seen.feedback_waiting == waiting).await;
}

async fn until(running: &RunningHub, condition: impl Fn(&Summary) -> bool) {
    let seen = async {
        while !condition(&running.hub().summary()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(TEST_TIMEOUT, seen).await.unwrap();
}

async fn next(feedback: &mut dyn Feedback) -> FeedbackBatch {
    let next = feedback.next(TEST_TIMEOUT).await.unwrap();
    next.expect("a message")
}

fn ids(batch: &FeedbackBatch) -> Vec<&str> {
    let records = batch.records.iter();
    records.map(|record| record.message_id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn released_and_new_feedback_skip_paused_listeners() {
    let (running, hub) = emulated().await;
    let mut feedback = hub.feedback().unwrap();
    send(&running, &hub, "r.0.0.1", 1).await;
    let first = next(&mut *feedback).await;
    assert_eq!(ids(&first), ["r.0.0.1"]);
    assert_eq!(first.records[0].outcome, Outcome::Delivered);
    assert!(first.records[0].at.is_some());

    // A paused listener leaves new messages to other listeners.
    feedback.pause().await;
    // The pause reaches the hub over another connection than the message.
    until(&running, |seen| seen.feedback_pauses == 1).await;
    send(&running, &hub, "r.0.1.1", 1).await;
    let mut other = hub.feedback().unwrap();
    let second = next(&mut *other).await;
    assert_eq!(ids(&second), ["r.0.1.1"]);
    second.ticket.complete().await.unwrap();

    first.ticket.release().await.unwrap();
    let again = next(&mut *other).await;
    assert_eq!(ids(&again), ["r.0.0.1"]);
    again.ticket.complete().await.unwrap();
    // A settlement made just before the drop still leaves.
    drop(other);
    until(&running, |seen| seen.feedback_completed == 2).await;
}
