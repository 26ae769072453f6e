//! Feedback through the socket.

use std::time::Duration;

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::delivery::Delivery;
use fe2o3_amqp_types::messaging::{Data, Outcome};
use serde_json::Value;
use twincast_emulator::RunningHub;

use crate::client::{Client, hub_with, message};

const FLEET: &str = "
groups:
  - { count: 100, id: 'd{index}', behaviour: { latency: 1ms } }
  - { count: 1, id: 'rejects{index}', behaviour: { rejects: 100%, latency: 1ms } }
  - { count: 1, id: 'abandons{index}', behaviour: { abandons: 100%, latency: 1ms } }
  - { count: 1, id: 'offline{index}', behaviour: { offline: 100% } }
";

async fn hub(interval: Duration) -> RunningHub {
    hub_with(FLEET, |config| {
        config.feedback_interval = interval;
        config.default_ttl = Duration::from_millis(300);
    })
    .await
}

async fn next(receiver: &mut Receiver) -> (Delivery<Data>, Vec<Value>) {
    let received = tokio::time::timeout(Duration::from_secs(60), receiver.recv::<Data>()).await;
    let delivery = received.expect("feedback in time").unwrap();
    let records = serde_json::from_slice(&delivery.body().0).unwrap();
    (delivery, records)
}

async fn send(client: &mut Client, ids: impl IntoIterator<Item = String>, ack: &str) {
    let mut sender = client.commands().await.unwrap();
    for device in ids {
        let id = format!("to {device}");
        let outcome = sender.send(message(&device, &id, ack)).await.unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    sender.close().await.unwrap();
}

#[tokio::test]
async fn every_end_is_reported_with_a_status_code() {
    let hub = hub(Duration::from_millis(100)).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let devices = ["d1", "rejects0", "abandons0", "offline0"].map(str::to_owned);
    send(&mut client, devices, "full").await;
    let mut receiver = client.feedback().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let (delivery, records) = next(&mut receiver).await;
        let properties = delivery.message().properties.as_ref().unwrap();
        let content_type = properties.content_type.as_ref().unwrap();
        assert_eq!(
            content_type.as_str(),
            "application/vnd.microsoft.iothub.feedback.json"
        );
        assert_eq!(properties.user_id.as_ref().unwrap().as_ref(), b"localhost");
        assert_eq!(delivery.delivery_tag().len(), 16);
        let annotations = delivery.message().message_annotations.as_ref().unwrap();
        assert!(format!("{annotations:?}").contains("iothub-enqueuedtime"));
        for record in records {
            assert!(
                record["deviceGenerationId"].is_string() && record["enqueuedTimeUtc"].is_string()
            );
            let text = |key: &str| record[key].as_str().unwrap().to_owned();
            assert_eq!(
                text("originalMessageId"),
                format!("to {}", text("deviceId"))
            );
            seen.push((text("deviceId"), text("statusCode")));
        }
        receiver.accept(&delivery).await.unwrap();
    }
    seen.sort();
    let expected = [
        ("abandons0", "DeliveryCountExceeded"),
        ("d1", "Success"),
        ("offline0", "Expired"),
        ("rejects0", "Rejected"),
    ];
    assert_eq!(
        seen,
        expected.map(|(device, status)| (device.to_owned(), status.to_owned()))
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn feedback_follows_the_requested_ack() {
    let hub = hub(Duration::from_millis(100)).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    for (ack, devices) in [
        ("none", ["d1", "rejects0"]),
        ("positive", ["d2", "rejects0"]),
        ("negative", ["d3", "rejects0"]),
    ] {
        send(&mut client, devices.map(str::to_owned), ack).await;
    }
    let mut receiver = client.feedback().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (delivery, records) = next(&mut receiver).await;
        seen.extend(
            records
                .iter()
                .map(|record| record["deviceId"].as_str().unwrap().to_owned()),
        );
        receiver.accept(&delivery).await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, ["d2", "rejects0"]);
    assert_eq!(hub.hub().summary().feedback_made, 2);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_full_batch_has_sixty_four_records_and_comes_back_when_released_or_lost() {
    let hub = hub(Duration::from_secs(3600)).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    send(&mut client, (0..70).map(|n| format!("d{n}")), "full").await;
    let mut receiver = client.feedback().await.unwrap();
    let (delivery, first) = next(&mut receiver).await;
    assert_eq!(first.len(), 64);
    receiver.release(&delivery).await.unwrap();
    let (_, second) = next(&mut receiver).await;
    assert_eq!(first, second);
    // The batch is lost with the connection, and another service receives the batch.
    drop(receiver);
    drop(client);
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut receiver = client.feedback().await.unwrap();
    let (delivery, third) = next(&mut receiver).await;
    assert_eq!(first, third);
    receiver.accept(&delivery).await.unwrap();
    receiver.close().await.unwrap();
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.feedback_completed, summary.feedback_waiting),
        (64, 6),
        "{summary:?}"
    );
    hub.shutdown().await;
}
