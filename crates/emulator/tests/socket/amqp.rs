//! Sends, links and tokens.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fe2o3_amqp_types::messaging::{Data, Message, Outcome, Properties};
use fe2o3_amqp_types::primitives::{Binary, Timestamp};
use futures::future::join_all;
use twincast_emulator::{Fleet, HubConfig, MessageState, Tier, start};

use crate::client::{
    Cbs, Client, FAR_FUTURE_S, hub_with, message, message_to, plain_hub, rejection, token,
};

const OFFLINE: &str = "groups: [{count: 3, id: 'd{index}', behaviour: {offline: 100%}}]";

#[tokio::test]
async fn accepted_message_is_enqueued_for_the_device() {
    let hub = hub_with(OFFLINE, |_| {}).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let outcome = sender.send(message("d1", "m-1", "full")).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    let messages = hub.hub().messages("d1").unwrap();
    assert_eq!(messages.len(), 1);
    let stored = &messages[0];
    assert_eq!(
        (stored.message_id.as_str(), stored.state),
        ("m-1", MessageState::Enqueued)
    );
    assert_eq!(
        (stored.ack.as_str(), stored.body.as_deref()),
        ("full", Some("hello"))
    );
    assert_eq!(stored.properties["kind"], "test");
    assert_eq!(stored.expires_ms - stored.enqueued_ms, 3_600_000);
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.accepted, summary.pending, summary.distinct_devices),
        (1, 1, 1)
    );
    assert_eq!(
        (
            summary.connections,
            summary.link_opens,
            summary.tokens_accepted
        ),
        (1, 1, 1)
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn refusals_carry_the_hubs_conditions_and_codes() {
    let yaml = "groups: [{count: 1, id: 'd{index}'}, {count: 1, id: 'off{index}', behaviour: {disabled: 100%}}]";
    let hub = hub_with(yaml, |_| {}).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let in_three_days = Timestamp::from_milliseconds(i64::try_from(now).unwrap() + 3 * 86_400_000);
    let late = Message::builder()
        .properties(
            Properties::builder()
                .to("/devices/d0/messages/devicebound".to_owned())
                .absolute_expiry_time(in_three_days)
                .build(),
        )
        .body(Data(Binary::from(b"x".to_vec())))
        .build();
    let to = "/devices/d0/messages/devicebound";
    for (message, condition, code) in [
        (message("nobody", "1", "none"), "amqp:not-found", 404_001),
        (message("D0", "1", "none"), "amqp:not-found", 404_001),
        (message("off0", "1", "none"), "amqp:not-found", 403_012),
        (
            message_to(
                "/devices/d0/modules/m/messages/devicebound",
                "1",
                "none",
                b"",
            ),
            "amqp:not-found",
            404_010,
        ),
        (
            message_to("/devices/d0", "1", "none", b""),
            "amqp:not-allowed",
            400_003,
        ),
        (
            message("d0", "1", "sometimes"),
            "com.microsoft:argument-error",
            400_004,
        ),
        (late, "com.microsoft:argument-error", 403_009),
        (
            message_to(to, "1", "none", &[0; 65_600]),
            "amqp:link:message-size-exceeded",
            413_001,
        ),
    ] {
        let outcome = sender.send(message).await.unwrap();
        assert_eq!(rejection(&outcome), (condition.to_owned(), code));
    }
    // The largest allowed message, in two frames.
    let outcome = sender
        .send(message_to(to, "1", "none", &[0; 65_000]))
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.not_found, summary.disabled, summary.accepted),
        (3, 1, 1),
        "{summary:?}"
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn the_fifty_first_message_of_a_device_is_refused() {
    let hub = hub_with(OFFLINE, |_| {}).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for n in 0..50 {
        let outcome = sender
            .send(message("d0", &n.to_string(), "none"))
            .await
            .unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{n}: {outcome:?}");
    }
    let outcome = sender.send(message("d0", "50", "none")).await.unwrap();
    assert_eq!(
        rejection(&outcome),
        ("amqp:resource-limit-exceeded".to_owned(), 403_004)
    );
    assert_eq!(hub.hub().summary().queue_full, 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_tier_without_commands_and_a_used_up_quota_are_refused() {
    let fleet = || Fleet::plain(9, "d{index}").unwrap();
    let basic = HubConfig {
        tier: Tier::B1,
        unlimited: true,
        ..HubConfig::with_fleet(fleet())
    };
    let mut limits = Tier::S3.limits(10);
    limits.daily_messages = 3;
    let tight = HubConfig {
        limits: Some(limits),
        ..HubConfig::with_fleet(fleet())
    };
    for (config, accepted, expected) in [
        (basic, 0, ("amqp:not-allowed", 403_010)),
        (tight, 3, ("com.microsoft:quota-exceeded", 403_002)),
    ] {
        let hub = start(config).await.unwrap();
        let mut client = Client::authorised(&hub).await.unwrap();
        let mut sender = client.commands().await.unwrap();
        for n in 0..accepted {
            let outcome = sender
                .send(message(&format!("d{n}"), "1", "none"))
                .await
                .unwrap();
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }
        let outcome = sender.send(message("d8", "1", "none")).await.unwrap();
        assert_eq!(rejection(&outcome), (expected.0.to_owned(), expected.1));
        hub.shutdown().await;
    }
}

#[tokio::test]
async fn nodes_attach_in_every_spelling_and_unknown_nodes_fail() {
    let hub = plain_hub(1).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    for address in [
        "/messages/deviceBound",
        "amqps://localhost/messages/devicebound",
        "amqps://localhost:5671/messages/deviceBound",
    ] {
        let mut sender = client.sender(address).await.unwrap();
        let outcome = sender.send(message("d0", address, "none")).await.unwrap();
        assert!(
            matches!(outcome, Outcome::Accepted(_)),
            "{address}: {outcome:?}"
        );
    }
    let error = client
        .sender("/messages/elsewhere")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(format!("{error:?}").contains("NotFound"), "{error:?}");
    hub.shutdown().await;
}

#[tokio::test]
async fn links_require_a_valid_token_with_permission() {
    let hub = plain_hub(1).await;
    let bad = "SharedAccessSignature sr=localhost&sig=x&se=1&skn=service".to_owned();
    // A new connection each time: the client library may not survive a refused link on a session.
    for (token, status, attaches) in [
        (None, 0, false),
        (Some(bad), 401, false),
        (Some(token(&hub, "service", 1)), 401, false),
        // Valid, without the required permission.
        (Some(token(&hub, "registryRead", FAR_FUTURE_S)), 200, false),
        (Some(token(&hub, "service", FAR_FUTURE_S)), 200, true),
    ] {
        let mut client = Client::connect(&hub).await.unwrap();
        if let Some(token) = &token {
            let mut cbs = Cbs::attach(&mut client).await.unwrap();
            assert_eq!(cbs.put(token).await.unwrap(), status, "{token}");
        }
        match client.commands().await {
            Ok(_) => assert!(attaches, "{token:?}"),
            Err(error) => {
                assert!(
                    !attaches && format!("{error:?}").contains("UnauthorizedAccess"),
                    "{error:?}"
                );
            }
        }
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn link_ends_on_token_expiry_unless_renewed() {
    let hub = plain_hub(1).await;
    let [mut renewed, mut lapsed] = [
        Client::connect(&hub).await.unwrap(),
        Client::connect(&hub).await.unwrap(),
    ];
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut links = Vec::new();
    let mut cbs_links = Vec::new();
    for client in [&mut renewed, &mut lapsed] {
        let mut cbs = Cbs::attach(client).await.unwrap();
        assert_eq!(
            cbs.put(&token(&hub, "service", now_s + 10)).await.unwrap(),
            200
        );
        links.push(client.commands().await.unwrap());
        cbs_links.push(cbs);
    }
    assert_eq!(
        cbs_links[0]
            .put(&token(&hub, "service", FAR_FUTURE_S))
            .await
            .unwrap(),
        200
    );
    let detached = tokio::time::timeout(Duration::from_secs(60), links[1].on_detach())
        .await
        .unwrap();
    assert!(
        format!("{detached:?}").contains("UnauthorizedAccess"),
        "{detached:?}"
    );
    let outcome = links[0].send(message("d0", "1", "none")).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    hub.shutdown().await;
}

#[tokio::test]
async fn sends_above_the_rate_are_shaped() {
    // The tier allows 83 sends a second, and the sends of a quarter of a second may be early.
    let fleet = Fleet::plain(1000, "d{index}").unwrap();
    let config = HubConfig {
        tier: Tier::S3,
        ..HubConfig::with_fleet(fleet)
    };
    let hub = start(config).await.unwrap();
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let started = Instant::now();
    let mut sends = Vec::new();
    for n in 0..100 {
        sends.push(
            sender
                .send_batchable(message(&format!("d{n}"), "1", "none"))
                .await
                .unwrap(),
        );
    }
    for outcome in join_all(sends).await {
        assert!(matches!(outcome, Ok(Outcome::Accepted(_))), "{outcome:?}");
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    let summary = hub.hub().summary();
    assert!(summary.shaped > 0 && summary.throttled == 0, "{summary:?}");
    hub.shutdown().await;
}

#[tokio::test]
async fn sends_far_above_the_rate_are_throttled() {
    let fleet = Fleet::plain(1000, "d{index}").unwrap();
    let wait = Duration::from_millis(100);
    let config = HubConfig {
        tier: Tier::S3,
        throttle_wait_max: wait,
        ..HubConfig::with_fleet(fleet)
    };
    let hub = start(config).await.unwrap();
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let mut sends = Vec::new();
    for n in 0..200 {
        sends.push(
            sender
                .send_batchable(message(&format!("d{n}"), "1", "none"))
                .await
                .unwrap(),
        );
    }
    let outcomes = join_all(sends).await;
    // On a busy machine, the last sends may be slow enough.
    let mut outcomes = outcomes.iter().flatten();
    let refused = outcomes.find(|outcome| !matches!(outcome, Outcome::Accepted(_)));
    assert_eq!(
        rejection(refused.unwrap()),
        (
            "com.microsoft:device-container-throttled".to_owned(),
            429_001
        )
    );
    let summary = hub.hub().summary();
    assert_eq!(summary.accepted + summary.throttled, 200, "{summary:?}");
    assert!(summary.throttled > 0, "{summary:?}");
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_sends_in_flight_are_all_answered() {
    let hub = plain_hub(20_000).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let mut sends = Vec::new();
    for n in 0..20_000 {
        let id = format!("r.{n}");
        sends.push(
            sender
                .send_batchable(message(&format!("d{n}"), &id, "none"))
                .await
                .unwrap(),
        );
    }
    let outcomes = tokio::time::timeout(Duration::from_secs(60), join_all(sends))
        .await
        .unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(Outcome::Accepted(_))))
    );
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.accepted, summary.distinct_devices),
        (20_000, 20_000)
    );
    assert_eq!(
        (summary.repeats_by_message_id, summary.repeats_by_device),
        (0, 0)
    );
    hub.shutdown().await;
}
