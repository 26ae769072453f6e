//! Injected faults between a device and the hub.

use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use twincast_emulator::{Chance, Faults, HubConfig, Limits, Tier};

use crate::client::{hub_with, plain_hub};
use crate::device_client::{ConnectOptions, Device, send, text, until};

const FLEET: &str = "groups: [{count: 2, id: 'd{index}'}]";

#[tokio::test]
async fn a_connection_is_refused_on_request() {
    use ConnectReturnCode::{NotAuthorized, ServiceUnavailable};
    let hub = plain_hub(2).await;
    hub.hub().set_faults(Faults {
        device_unavailable: Chance::next(2),
        device_unauthorized: Chance::next(1),
        ..Faults::default()
    });
    for expected in [
        Err(ServiceUnavailable),
        Err(ServiceUnavailable),
        Err(NotAuthorized),
        Ok(()),
    ] {
        let found = Device::connect_as(&hub, ConnectOptions::of(&hub, "d1")).await;
        assert_eq!(found.map(drop), expected);
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn lost_acknowledgement_leaves_the_message_pending() {
    let hub = plain_hub(2).await;
    let (mut device, _) = Device::connect(&hub, "d1").await;
    device.subscribe_messages(QoS::AtLeastOnce).await;
    send(&hub, "d1", "a", &[], b"a").await;
    hub.hub().set_faults(Faults {
        device_drop_before_ack: Chance::next(1),
        ..Faults::default()
    });
    let publish = device.publication().await;
    device.acknowledge(&publish).await;
    assert_eq!(device.next().await, None);
    assert_eq!(hub.hub().summary().pending, 1);
    let (mut device, _) = Device::connect(&hub, "d1").await;
    let publish = device.publication().await;
    assert_eq!((text(&publish.payload), publish.dup), ("a", true));
    device.acknowledge(&publish).await;
    device.settle().await;
    assert_eq!(hub.hub().summary().delivered, 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_half_open_connection_is_silent_until_the_device_connects_anew() {
    let hub = plain_hub(2).await;
    hub.hub().set_faults(Faults {
        device_half_open: Chance::next(1),
        ..Faults::default()
    });
    let (mut device, _) = Device::connect(&hub, "d1").await;
    device.ping().await;
    send(&hub, "d1", "a", &[], b"a").await;
    let silence = tokio::time::timeout(Duration::from_millis(100), device.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(hub.hub().summary().connected_devices, 1);
    let (mut second, _) = Device::connect(&hub, "d1").await;
    assert_eq!(device.next().await, None);
    second.subscribe_messages(QoS::AtLeastOnce).await;
    assert_eq!(text(&second.publication().await.payload), "a");
    hub.shutdown().await;
}

#[tokio::test]
async fn connections_drop_and_answers_are_slow() {
    let hub = plain_hub(2).await;
    hub.hub().set_faults(Faults {
        device_drop_after_packets: Some(2),
        device_delay_ms: 120,
        device_twin_429: Chance::next(1),
        ..Faults::default()
    });
    let (mut device, _) = Device::connect(&hub, "d1").await;
    let started = Instant::now();
    let filters = [("$iothub/twin/res/#", QoS::AtMostOnce)];
    device.subscribe(&filters).await;
    assert!(started.elapsed() >= Duration::from_millis(120));
    device
        .publish("$iothub/twin/GET/?$rid=1", QoS::AtMostOnce, " ")
        .await;
    let answer = device.publication().await;
    assert_eq!(answer.topic, "$iothub/twin/res/429/?$rid=1");
    device.ping().await;
    assert_eq!(device.next().await, None);
    hub.shutdown().await;
}

#[tokio::test]
async fn device_operations_are_throttled_at_the_tier_limits() {
    let hub = hub_with(FLEET, |config: &mut HubConfig| {
        config.unlimited = false;
        config.throttle_tolerance = Duration::from_millis(1);
        config.throttle_wait_max = Duration::from_millis(300);
        config.limits = Some(Limits {
            device_connects_per_second: 2.5,
            device_sends_per_second: 2.0,
            twin_reads_per_second: 5.0,
            ..Tier::S1.limits(1)
        });
    })
    .await;
    // The first connection passes at once, the next connections wait, and the remaining connections
    // are refused.
    let mut codes = Vec::new();
    let mut devices = Vec::new();
    let mut connecting = tokio::task::JoinSet::new();
    let hub = std::sync::Arc::new(hub);
    for _ in 0..6 {
        let hub = std::sync::Arc::clone(&hub);
        connecting.spawn(async move {
            let mut options = ConnectOptions::of(&hub, "d1");
            options.clean = true;
            Device::connect_as(&hub, options).await
        });
    }
    while let Some(connected) = connecting.join_next().await {
        match connected.unwrap() {
            Ok((device, _)) => devices.push(device),
            Err(code) => codes.push(code),
        }
    }
    assert!(!devices.is_empty());
    assert!(
        codes.len() >= 2
            && codes
                .iter()
                .all(|code| *code == ConnectReturnCode::ServiceUnavailable),
        "{codes:?}"
    );
    drop(devices);
    until(&hub, |summary| summary.connected_devices == 0).await;
    let connected = loop {
        if let Ok((device, _)) = Device::connect_as(&hub, ConnectOptions::of(&hub, "d0")).await {
            break device;
        }
    };
    let mut device = connected;
    device
        .subscribe(&[("$iothub/twin/res/#", QoS::AtMostOnce)])
        .await;
    for rid in 0..9 {
        let topic = format!("$iothub/twin/GET/?$rid={rid}");
        device.publish(&topic, QoS::AtMostOnce, " ").await;
    }
    let mut statuses = Vec::new();
    for _ in 0..9 {
        let topic = device.publication().await.topic;
        statuses.push(topic.split('/').nth(3).unwrap().to_owned());
    }
    let count = |status: &str| statuses.iter().filter(|it| *it == status).count();
    assert!(count("200") >= 2 && count("429") >= 2, "{statuses:?}");
    // For telemetry, the only answer is the end of the connection.
    for _ in 0..6 {
        device
            .publish("devices/d0/messages/events/", QoS::AtMostOnce, "x")
            .await;
    }
    assert_eq!(device.next().await, None);
    let summary = hub.hub().summary();
    assert!(
        summary.device_throttled >= 5 && summary.device_shaped >= 1,
        "{summary:#?}"
    );
}
