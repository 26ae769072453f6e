//! Events reach all listeners, or none.

use twincast_amqp::{EVENT_TYPE, EventItem};
use twincast_secret::SecretSource;
use twincast_testkit::services::{Proxy, RabbitMq};

use crate::{amqp, connect, in_time, settings};

fn event(topic: &str, body: &[u8]) -> EventItem {
    EventItem::Event {
        topic: topic.into(),
        content_type: Some(EVENT_TYPE.into()),
        body: body.to_vec(),
    }
}

#[tokio::test]
async fn listeners_receive_matching_events() {
    let (amqp, _) = amqp().await;
    let publish = async |topic: &str| amqp.publish_event(topic, topic.into()).await.unwrap();
    publish("rollout.planning").await;
    let mut all = amqp.events("#").await.unwrap();
    let mut running = amqp.events("*.running").await.unwrap();
    for topic in ["rollout.running", "rollout.done"] {
        publish(topic).await;
    }
    for topic in ["rollout.running", "rollout.done"] {
        let received = in_time(all.next()).await.unwrap();
        assert_eq!(received, event(topic, topic.as_bytes()));
    }
    let received = in_time(running.next()).await.unwrap();
    assert_eq!(received, event("rollout.running", b"rollout.running"));
}

/// More events than the broker sends ahead.
#[tokio::test]
async fn events_beyond_the_prefetch_are_received() {
    let (amqp, _) = amqp().await;
    let mut all = amqp.events("#").await.unwrap();
    for _ in 0..250 {
        amqp.publish_event("a", Vec::new()).await.unwrap();
    }
    for _ in 0..250 {
        assert_eq!(in_time(all.next()).await.unwrap(), event("a", b""));
    }
}

/// A listener is notified that events may be missing.
#[tokio::test]
async fn a_lost_connection_is_a_gap() {
    let broker = RabbitMq::shared().await;
    let proxy = Proxy::start(broker.address()).await;
    let listening = settings(&broker.url_via(&proxy));
    let publishing = twincast_amqp::Settings {
        urls: SecretSource::Fixed(broker.url().into()),
        ..listening.clone()
    };
    let (listening, publishing) = (connect(listening).await, connect(publishing).await);
    let mut events = listening.events("#").await.unwrap();
    proxy.cut();
    assert_eq!(in_time(events.next()).await.unwrap(), EventItem::Gap);
    publishing.publish_event("a", Vec::new()).await.unwrap();
    assert_eq!(in_time(events.next()).await.unwrap(), event("a", b""));
    listening.close().await;
    assert!(in_time(events.next()).await.is_err());
}
