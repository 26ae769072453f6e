//! The service's REST interface as a whole: API versions, emulated routes, and feedback.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use twincast_emulator::RunningHub;

use crate::client::{Client, hub_with, message, plain_hub};
use crate::http::{Rest, error_name};

#[tokio::test]
async fn requests_need_a_known_api_version() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    for path in [
        "/devices/d0",
        "/twins/d0",
        "/devices",
        "/statistics/devices",
    ] {
        for version in ["2021-04-12", "2020-03-13", "2018-06-30"] {
            let request = rest.raw(Method::GET, &format!("{path}?api-version={version}"));
            assert_eq!(
                request.send().await.unwrap().status(),
                StatusCode::OK,
                "{version}"
            );
        }
        for query in [
            "",
            "?api-version=",
            "?api-version=2021-04-13",
            "?version=2021-04-12",
        ] {
            let request = rest.raw(Method::GET, &format!("{path}{query}"));
            let (status, name, text) = error_name(request.send().await.unwrap()).await;
            assert_eq!(
                (status, name.as_str()),
                (StatusCode::BAD_REQUEST, "InvalidProtocolVersion"),
                "{query}"
            );
            assert!(text.contains("2021-04-12"), "{text}");
        }
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn unemulated_features_are_reported_as_not_implemented() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    for (method, path, what) in [
        (Method::GET, "/devices/d0/modules", "modules"),
        (Method::PUT, "/devices/d0/modules/m", "modules"),
        (Method::GET, "/twins/d0/modules/m", "modules"),
        (Method::PUT, "/jobs/v2/j", "jobs"),
        (Method::POST, "/jobs/create", "jobs"),
        (Method::GET, "/configurations", "configurations"),
        (Method::GET, "/digitaltwins/d0", "digital twins"),
        (Method::POST, "/devices/d0/files", "file uploads"),
    ] {
        let answer = rest.request(method, path).send().await.unwrap();
        let (status, name, text) = error_name(answer).await;
        assert_eq!(
            (status, name.as_str()),
            (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
            "{path}"
        );
        assert!(text.contains("emulator") && text.contains(what), "{text}");
    }
    for collection in ["devices.modules", "devices.jobs"] {
        let query = format!("SELECT * FROM {collection}");
        let (status, _, text) = error_name(rest.query(&query, None, None).await).await;
        assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
        assert!(text.contains(collection), "{text}");
    }
    for (method, path, expected) in [
        (Method::GET, "/nonsense", StatusCode::NOT_FOUND),
        (Method::PATCH, "/devices/d0", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let answer = rest.request(method, path).send().await.unwrap();
        assert_eq!(error_name(answer).await.0, expected, "{path}");
    }
    hub.shutdown().await;
}

const FLEET: &str = "
groups:
  - { count: 100, id: 'd{index}', behaviour: { latency: 1ms } }
";

const PATH: &str = "/messages/serviceBound/feedback";

async fn feedback_hub(change: impl FnOnce(&mut twincast_emulator::HubConfig)) -> RunningHub {
    hub_with(FLEET, |config| {
        // Every batch is full.
        config.feedback_interval = Duration::from_secs(3_600);
        config.feedback_batch = 2;
        change(config);
    })
    .await
}

async fn send(hub: &RunningHub, devices: std::ops::Range<u32>) {
    let mut client = Client::authorised(hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for device in devices {
        let device = format!("d{device}");
        let id = format!("to {device}");
        sender.send(message(&device, &id, "full")).await.unwrap();
    }
    sender.close().await.unwrap();
}

/// Returns the next batch: the lock token, and the devices in the batch.
async fn next(rest: &Rest<'_>) -> (String, Vec<String>) {
    let waited = async {
        loop {
            let answer = rest.request(Method::GET, PATH).send().await.unwrap();
            if answer.status() == StatusCode::OK {
                return answer;
            }
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
            assert!(answer.headers().get("etag").is_none());
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .expect("feedback in time");
    let headers = answer.headers().clone();
    assert_eq!(
        headers["content-type"],
        "application/vnd.microsoft.iothub.feedback.json"
    );
    assert!(headers.contains_key("iothub-enqueuedtime"));
    let etag = headers["etag"].to_str().unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    let records: Vec<Value> = answer.json().await.unwrap();
    let devices = records.iter().map(|record| {
        assert_eq!(record["statusCode"], "Success");
        let device = record["deviceId"].as_str().unwrap().to_owned();
        assert_eq!(record["originalMessageId"], format!("to {device}"));
        device
    });
    (etag.trim_matches('"').to_owned(), devices.collect())
}

async fn ask(rest: &Rest<'_>, method: Method, rest_of_path: &str) -> Response {
    let path = format!("{PATH}/{rest_of_path}");
    rest.raw(method, &path).send().await.unwrap()
}

const VERSION: &str = "?api-version=2021-04-12";

#[tokio::test]
async fn feedback_is_received_abandoned_rejected_and_completed() {
    let hub = feedback_hub(|_| {}).await;
    let service = Rest {
        policy: "service",
        ..Rest::new(&hub)
    };
    let empty = service.request(Method::GET, PATH).send().await.unwrap();
    assert_eq!(empty.status(), StatusCode::NO_CONTENT);
    send(&hub, 0..4).await;
    let (first, devices) = next(&service).await;
    assert_eq!(devices.len(), 2);
    let (second, others) = next(&service).await;
    assert_ne!(devices, others);
    // A locked batch waits for the receiver.
    let empty = service.request(Method::GET, PATH).send().await.unwrap();
    assert_eq!(empty.status(), StatusCode::NO_CONTENT);
    let waiting = || hub.hub().summary().feedback_waiting;
    assert_eq!(waiting(), 4);
    let abandoned = ask(&service, Method::POST, &format!("{first}/abandon{VERSION}")).await;
    assert_eq!(abandoned.status(), StatusCode::NO_CONTENT);
    let (again, same) = next(&service).await;
    assert_eq!(same, devices);
    assert_ne!(again, first);
    // With the quotes of the ETag, and the switch in the query.
    let rejected = ask(
        &service,
        Method::DELETE,
        &format!("%22{again}%22{VERSION}&reject"),
    )
    .await;
    assert_eq!(rejected.status(), StatusCode::NO_CONTENT);
    let completed = ask(&service, Method::DELETE, &format!("{second}{VERSION}")).await;
    assert_eq!(completed.status(), StatusCode::NO_CONTENT);
    let summary = hub.hub().summary();
    assert_eq!(
        (
            summary.feedback_completed,
            summary.feedback_dropped,
            summary.feedback_waiting
        ),
        (2, 2, 0)
    );
    for token in [first.as_str(), second.as_str(), "nonsense"] {
        for (method, path) in [
            (Method::DELETE, format!("{token}{VERSION}")),
            (Method::DELETE, format!("{token}{VERSION}&reject=true")),
            (Method::POST, format!("{token}/abandon{VERSION}")),
        ] {
            let (status, name, _) = error_name(ask(&service, method, &path).await).await;
            assert_eq!(
                (status, name.as_str()),
                (StatusCode::PRECONDITION_FAILED, "DeviceMessageLockLost")
            );
        }
    }
    let reader = Rest {
        policy: "registryReadWrite",
        ..Rest::new(&hub)
    };
    let refused = reader.request(Method::GET, PATH).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    hub.shutdown().await;
}

#[tokio::test]
async fn unsettled_batch_is_dropped_at_the_delivery_limit() {
    let hub = feedback_hub(|config| {
        config.feedback_lock = Duration::from_millis(20);
        config.delivery_count_max = 3;
    })
    .await;
    let rest = Rest::new(&hub);
    send(&hub, 0..2).await;
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let (token, devices) = next(&rest).await;
        assert_eq!(devices.len(), 2);
        tokens.push(token);
    }
    let dropped = async {
        while hub.hub().summary().feedback_dropped < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), dropped)
        .await
        .expect("the batch is dropped");
    for token in tokens {
        let late = ask(&rest, Method::DELETE, &format!("{token}{VERSION}")).await;
        assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
    }
    assert_eq!(hub.hub().summary().feedback_waiting, 0);
    hub.shutdown().await;
}

#[tokio::test]
async fn https_and_amqp_share_the_feedback_queue() {
    let hub = feedback_hub(|_| {}).await;
    let rest = Rest::new(&hub);
    send(&hub, 0..2).await;
    let (token, devices) = next(&rest).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut receiver = client.feedback().await.unwrap();
    let abandoned = ask(&rest, Method::POST, &format!("{token}/abandon{VERSION}")).await;
    assert_eq!(abandoned.status(), StatusCode::NO_CONTENT);
    let received = receiver.recv::<fe2o3_amqp_types::messaging::Data>();
    let delivery = tokio::time::timeout(Duration::from_secs(60), received)
        .await
        .expect("feedback in time")
        .unwrap();
    let records: Vec<Value> = serde_json::from_slice(&delivery.body().0).unwrap();
    let reported: Vec<_> = records.iter().map(|record| &record["deviceId"]).collect();
    assert_eq!(reported, devices.iter().collect::<Vec<_>>());
    receiver.accept(&delivery).await.unwrap();
    receiver.close().await.unwrap();
    assert_eq!(hub.hub().summary().feedback_completed, 2);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_tier_without_messages_to_devices_has_no_feedback_either() {
    let hub = feedback_hub(|config| config.tier = twincast_emulator::Tier::B1).await;
    let rest = Rest::new(&hub);
    for (method, path) in [
        (Method::GET, PATH.to_owned()),
        (
            Method::DELETE,
            format!("{PATH}/91ba2d2a-5d8c-4c7e-9ad3-4d0d3a4a4b6e"),
        ),
        (Method::DELETE, "/devices/d1/commands".to_owned()),
    ] {
        let answer = rest.request(method, &path).send().await.unwrap();
        assert_eq!(error_name(answer).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn file_notification_queue_is_empty() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    let path = "/messages/serviceBound/filenotifications";
    let none = rest.request(Method::GET, path).send().await.unwrap();
    assert_eq!(none.status(), StatusCode::NO_CONTENT);
    let token = format!("{path}/91ba2d2a-5d8c-4c7e-9ad3-4d0d3a4a4b6e");
    let completed = rest.request(Method::DELETE, &token).send().await.unwrap();
    assert_eq!(error_name(completed).await.1, "DeviceMessageLockLost");
    // Over AMQP the link opens and stays open, as on a hub without uploaded files.
    let mut client = Client::authorised(&hub).await.unwrap();
    let address = "/messages/serviceBound/filenotifications";
    let receiver = fe2o3_amqp::Receiver::attach(&mut client.session, "files", address);
    let receiver = receiver.await.unwrap();
    let mut sender = client.commands().await.unwrap();
    sender.send(message("d0", "1", "none")).await.unwrap();
    receiver.close().await.unwrap();
    hub.shutdown().await;
}

#[tokio::test]
async fn links_to_unemulated_nodes_are_refused_with_a_text() {
    let hub = plain_hub(1).await;
    for (address, expected) in [
        ("/messages/events", "amqp:not-implemented"),
        (
            "/devices/d0/modules/m/messages/events",
            "amqp:not-implemented",
        ),
        ("/messages/nonsense", "amqp:not-found"),
    ] {
        let mut client = Client::authorised(&hub).await.unwrap();
        let refused = fe2o3_amqp::Receiver::attach(&mut client.session, "link", address);
        let error = refused.await.unwrap_err();
        let text = format!("{error:?}").to_ascii_lowercase();
        let condition = expected.trim_start_matches("amqp:");
        assert!(
            text.contains(condition) || text.contains(&condition.replace('-', "")),
            "{address}: {text}"
        );
        assert_eq!(
            text.contains("emulator"),
            expected == "amqp:not-implemented",
            "{address}: {text}"
        );
    }
    hub.shutdown().await;
}
