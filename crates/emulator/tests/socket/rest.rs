//! The REST interface and the control interface.

use std::collections::BTreeSet;

use fe2o3_amqp_types::messaging::Outcome;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use twincast_emulator::{Chance, Faults, Fleet, HubConfig, start};

use crate::client::{Client, hub_with, message, plain_hub};
use crate::http::{Rest, error_name};

const FLEET: &str = "
groups:
  - count: 250
    id: 'fridge-{index:03}'
    tags: { kind: fridge, region: { $weighted: { eu: 60, us: 40 } }, floor: { $cycle: [1, 2] } }
    reported: { firmware: '1.0' }
    reported_after_delivery: { firmware: '2.0' }
    behaviour: { latency: 1ms }
  - { count: 50, id: 'oven-{index}', tags: { kind: oven }, behaviour: { offline: 100%, latency: 1ms } }
";

#[tokio::test]
async fn queries_page_project_and_count() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let (rows, pages) = rest.rows("SELECT * FROM devices", None).await;
    assert_eq!((rows.len(), pages), (300, 3));
    assert_eq!(rows[0]["properties"]["reported"]["firmware"], "1.0");
    assert_eq!(rows[299]["connectionState"], "Disconnected");
    let ids: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row["deviceId"].as_str())
        .collect();
    assert_eq!(ids.len(), 300);
    let query = "SELECT deviceId, tags.region AS r FROM devices WHERE tags.kind = 'fridge' AND tags.region IN ['eu']";
    let (rows, pages) = rest.rows(query, Some(40)).await;
    assert_eq!((rows.len(), pages), (150, 4));
    assert!(
        rows.iter()
            .all(|row| row["r"] == "eu" && row.as_object().unwrap().len() == 2)
    );
    let (rows, _) = rest
        .rows("SELECT TOP 120 deviceId FROM devices", Some(100))
        .await;
    assert_eq!(rows.len(), 120);
    let (rows, _) = rest
        .rows(
            "SELECT COUNT() AS n FROM devices WHERE NOT tags.floor = 1",
            None,
        )
        .await;
    assert_eq!(rows, [json!({ "n": 125 })]);
    let answer = rest.query("SELECT * FROM devices", Some(1), None).await;
    assert_eq!(answer.headers()["x-ms-item-type"], "Twin");
    hub.shutdown().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_reason() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let (status, name, text) =
        error_name(rest.query("SELECT * FORM devices", None, None).await).await;
    assert_eq!(
        (status, name.as_str()),
        (StatusCode::BAD_REQUEST, "ArgumentInvalid")
    );
    assert!(text.contains("position 10"), "{text}");
    let answer = rest.query("SELECT * FROM devices", Some(1), None).await;
    let other = answer.headers()["x-ms-continuation"]
        .to_str()
        .unwrap()
        .to_owned();
    for (continuation, page) in [
        (Some("nonsense"), None),
        (Some(other.as_str()), None),
        (None, Some(0)),
    ] {
        let answer = rest
            .query("SELECT deviceId FROM devices", page, continuation)
            .await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{continuation:?}");
    }
    let without = rest.http.get(format!(
        "https://localhost:{}/devices",
        hub.https_addr().port()
    ));
    assert_eq!(
        error_name(without.send().await.unwrap()).await.0,
        StatusCode::UNAUTHORIZED
    );
    let reader = Rest {
        policy: "registryRead",
        ..Rest::new(&hub)
    };
    assert_eq!(
        reader
            .request(Method::GET, "/devices/oven-1")
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    assert_eq!(
        reader
            .query("SELECT * FROM devices", None, None)
            .await
            .status(),
        StatusCode::UNAUTHORIZED
    );
    let unknown = rest
        .request(Method::GET, "/twins/nobody")
        .send()
        .await
        .unwrap();
    assert_eq!(error_name(unknown).await.1, "DeviceNotFound");
    hub.shutdown().await;
}

#[tokio::test]
async fn devices_are_created_changed_and_deleted() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let put = |id: &str, body: Value| {
        rest.request(Method::PUT, &format!("/devices/{id}"))
            .json(&body)
    };
    let created = put("new%401", json!({ "deviceId": "new@1" }))
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), StatusCode::OK);
    let again = put("new%401", json!({ "deviceId": "new@1" }))
        .send()
        .await
        .unwrap();
    assert_eq!(error_name(again).await.1, "DeviceAlreadyExists");
    let bad = put("b%20d", json!({ "deviceId": "b d" }))
        .send()
        .await
        .unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    // A device of the computed fleet changes too, and a query finds the new tag.
    let twin = rest
        .request(Method::GET, "/twins/fridge-007")
        .send()
        .await
        .unwrap();
    let etag = twin.headers()["etag"].to_str().unwrap().to_owned();
    let patch = json!({ "tags": { "region": "mars", "floor": null } });
    for (expected, etag) in [
        (StatusCode::OK, &etag),
        (StatusCode::PRECONDITION_FAILED, &etag),
    ] {
        let patched = rest
            .request(Method::PATCH, "/twins/fridge-007")
            .header("If-Match", etag)
            .json(&patch);
        assert_eq!(patched.send().await.unwrap().status(), expected);
    }
    let (rows, _) = rest
        .rows(
            "SELECT deviceId, tags.floor FROM devices WHERE tags.region = 'mars'",
            None,
        )
        .await;
    assert_eq!(rows, [json!({ "deviceId": "fridge-007" })]);
    let delete = rest
        .request(Method::DELETE, "/devices/fridge-007")
        .header("If-Match", "*");
    assert_eq!(
        delete.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    let counts: Value = rest
        .request(Method::GET, "/statistics/devices")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(counts["totalDeviceCount"], 300);
    assert_eq!(hub.hub().summary().devices, 300);
    hub.shutdown().await;
}

#[tokio::test]
async fn purging_empties_a_queue_and_delivery_shows_in_the_twin() {
    let hub = hub_with(FLEET, |_| {}).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for device in ["oven-1", "oven-1", "fridge-001"] {
        let outcome = sender.send(message(device, "m", "none")).await.unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    let rest = Rest::new(&hub);
    let twin: Value = rest
        .request(Method::GET, "/twins/oven-1")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(twin["cloudToDeviceMessageCount"], 2);
    let purged = rest
        .request(Method::DELETE, "/devices/oven-1/commands")
        .send()
        .await
        .unwrap();
    assert_eq!(
        purged.json::<Value>().await.unwrap()["totalMessagesPurged"],
        2
    );
    while hub.hub().summary().delivered == 0 {
        tokio::task::yield_now().await;
    }
    let query = "SELECT deviceId FROM devices WHERE properties.reported.firmware = '2.0'";
    assert_eq!(
        rest.rows(query, None).await.0,
        [json!({ "deviceId": "fridge-001" })]
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn queries_are_throttled_and_disturbed() {
    let mut limits = twincast_emulator::Tier::S1.limits(1);
    limits.queries_per_minute = 6.0;
    let config = HubConfig {
        limits: Some(limits),
        throttle_wait_max: std::time::Duration::from_millis(100),
        ..HubConfig::with_fleet(Fleet::from_yaml(FLEET).unwrap())
    };
    let hub = start(config).await.unwrap();
    let rest = Rest::new(&hub);
    // The first query is on time, the second early within the tolerance, and the third too early.
    for expected in [
        StatusCode::OK,
        StatusCode::OK,
        StatusCode::TOO_MANY_REQUESTS,
    ] {
        let answer = rest
            .query("SELECT COUNT() AS n FROM devices", None, None)
            .await;
        assert_eq!(answer.status(), expected);
    }
    hub.shutdown().await;

    let hub = plain_hub(3).await;
    let rest = Rest::new(&hub);
    let next = Chance::next(1);
    hub.hub().set_faults(Faults {
        http_429: next,
        retry_after_s: Some(7),
        http_500: next,
        http_503: next,
        empty_page: next,
        ..Faults::default()
    });
    let answer = rest.query("SELECT * FROM devices", None, None).await;
    assert_eq!(answer.headers()["retry-after"], "7");
    assert_eq!(error_name(answer).await.1, "ThrottlingException");
    for expected in [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::SERVICE_UNAVAILABLE,
    ] {
        assert_eq!(
            rest.query("SELECT * FROM devices", None, None)
                .await
                .status(),
            expected
        );
    }
    // The empty page has a continuation, which leads to all rows.
    let (rows, pages) = rest.rows("SELECT * FROM devices", None).await;
    assert_eq!((rows.len(), pages), (3, 2));
    hub.shutdown().await;
}

#[tokio::test]
async fn control_interface_shows_messages_and_changes_faults() {
    let hub = hub_with(FLEET, |_| {}).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for n in 0..3 {
        sender
            .send(message("oven-2", &format!("m\"{n}"), "none"))
            .await
            .unwrap();
    }
    let base = format!("http://{}", hub.control_addr().unwrap());
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let http = reqwest::Client::new();
    let get = async |path: &str| http.get(format!("{base}{path}")).send().await.unwrap();
    assert_eq!(get("/health").await.status(), StatusCode::OK);
    assert_eq!(
        get("/summary").await.json::<Value>().await.unwrap()["accepted"],
        3
    );
    assert_eq!(
        get("/devices/oven-2/messages")
            .await
            .json::<Value>()
            .await
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        get("/devices/nobody/messages").await.status(),
        StatusCode::NOT_FOUND
    );
    let lines = get("/messages").await.text().await.unwrap();
    let line: Value = serde_json::from_str(lines.trim_end()).unwrap();
    assert_eq!(line["deviceId"], "oven-2");
    assert_eq!(
        line["messages"][2],
        json!({ "id": "m\"2", "state": "enqueued" })
    );
    let patch = async |body: Value| {
        http.patch(format!("{base}/faults"))
            .json(&body)
            .send()
            .await
            .unwrap()
    };
    patch(json!({ "released": { "next": 2 }, "retry_after_s": 3 })).await;
    let faults: Faults = patch(json!({ "retry_after_s": null }))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        faults,
        Faults {
            released: Chance::next(2),
            ..Faults::default()
        }
    );
    let wrong = patch(json!({ "relased": 1 })).await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert!(wrong.text().await.unwrap().contains("relased"));
    let cut = http
        .post(format!("{base}/faults/disconnect"))
        .json(&json!({ "how": "drop" }))
        .send()
        .await
        .unwrap();
    assert_eq!(cut.status(), StatusCode::NO_CONTENT);
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(60), sender.on_detach())
            .await
            .is_ok()
    );
    hub.shutdown().await;
}
