//! Identities over REST: stored fields, refused requests, and returned documents.

use std::time::Duration;

use fe2o3_amqp_types::messaging::Outcome;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use twincast_emulator::MessageState;

use crate::client::{Client, hub_with, message, plain_hub};
use crate::http::{Rest, error_name};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[tokio::test]
async fn each_authentication_is_kept_in_identity_twin_and_queries() {
    let hub = plain_hub(0).await;
    let rest = Rest::new(&hub);
    let thumbprint = "ab".repeat(20);
    let thumbprints = json!({ "primaryThumbprint": thumbprint, "secondaryThumbprint": null });
    let no_thumbprints = json!({ "primaryThumbprint": null, "secondaryThumbprint": null });
    let no_keys = json!({ "primaryKey": null, "secondaryKey": null });
    let keys = json!({ "primaryKey": KEY, "secondaryKey": KEY });
    for (id, requested, kind, keys, thumbprints) in [
        (
            "keys",
            json!({ "type": "sas", "symmetricKey": keys }),
            "sas",
            &keys,
            &no_thumbprints,
        ),
        (
            "self-signed",
            json!({ "type": "selfSigned", "x509Thumbprint": thumbprints }),
            "selfSigned",
            &no_keys,
            &thumbprints,
        ),
        (
            "authority",
            json!({ "type": "certificateAuthority" }),
            "certificateAuthority",
            &no_keys,
            &no_thumbprints,
        ),
        (
            "none",
            json!({ "type": "none" }),
            "none",
            &no_keys,
            &no_thumbprints,
        ),
    ] {
        let device = json!({ "deviceId": id, "authentication": requested });
        let made: Value = rest.put_device(&device, None).await.json().await.unwrap();
        let expected = json!({ "symmetricKey": keys, "x509Thumbprint": thumbprints, "type": kind });
        assert_eq!(made["authentication"], expected, "{id}");
        let found = rest.get(&format!("/devices/{id}")).await;
        assert_eq!(found["authentication"], expected, "{id}");
        let twin = rest.get(&format!("/twins/{id}")).await;
        assert_eq!(twin["authenticationType"], kind, "{id}");
        assert_eq!(twin["x509Thumbprint"], *thumbprints, "{id}");
        let query = format!("SELECT deviceId FROM devices WHERE authenticationType = '{kind}'");
        assert_eq!(rest.rows(&query, None).await.0, [json!({ "deviceId": id })]);
    }
    // Missing keys are generated, and stay.
    let device = json!({ "deviceId": "made" });
    let made: Value = rest.put_device(&device, None).await.json().await.unwrap();
    assert_eq!(made["authentication"]["type"], "sas");
    let key = made["authentication"]["symmetricKey"]["primaryKey"].clone();
    assert_eq!(key.as_str().map(str::len), Some(44));
    for authentication in [
        json!(null),
        json!({ "type": "sas", "symmetricKey": { "primaryKey": "", "secondaryKey": "" } }),
    ] {
        let device = json!({ "deviceId": "made", "authentication": authentication });
        let kept: Value = rest
            .put_device(&device, Some("*"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(kept["authentication"]["symmetricKey"]["primaryKey"], key);
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn refused_requests_leave_the_registry_unchanged() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    let keys = |primary: &str, secondary: &str| json!({ "symmetricKey": { "primaryKey": primary, "secondaryKey": secondary } });
    let bodies = [
        json!({ "authentication": keys("not base64!", KEY) }),
        json!({ "authentication": keys(KEY, "c2hvcnQ=") }),
        json!({ "authentication": keys(KEY, "") }),
        json!({ "authentication": { "type": "password" } }),
        json!({ "authentication": { "type": "selfSigned" } }),
        json!({ "status": "asleep" }),
        json!({ "statusReason": "x".repeat(129) }),
        json!({ "capabilities": { "iotEdge": "yes" } }),
    ];
    let before = rest.get("/devices/d0").await;
    for body in &bodies {
        let device = |id: &str| {
            let mut device = body.clone();
            device["deviceId"] = id.into();
            device
        };
        for answer in [
            rest.put_device(&device("new"), None).await,
            rest.put_device(&device("d0"), Some("*")).await,
        ] {
            let (status, name, text) = error_name(answer).await;
            assert_eq!(
                (status, name.as_str()),
                (StatusCode::BAD_REQUEST, "ArgumentInvalid"),
                "{body}: {text}"
            );
        }
        if body.get("capabilities").is_some() {
            // In bulk, an unreadable list is refused as a whole.
            continue;
        }
        let mut item = body.clone();
        item["id"] = "new".into();
        item["importMode"] = "create".into();
        let answer = rest.request(Method::POST, "/devices").json(&json!([item]));
        let answer = answer.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["errors"][0]["errorCode"], 400_004, "{body}");
    }
    // A refused tag refuses the whole item.
    let item =
        json!({ "id": "new", "importMode": "create", "tags": { "n": 4_503_599_627_370_496u64 } });
    let answer = rest.request(Method::POST, "/devices").json(&json!([item]));
    assert_eq!(
        answer.send().await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(rest.get("/devices/d0").await, before);
    assert_eq!(rest.get("/statistics/devices").await["totalDeviceCount"], 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn update_resets_omitted_fields_if_the_etag_matches() {
    let hub = plain_hub(0).await;
    let rest = Rest::new(&hub);
    let device = json!({
        "deviceId": "edge", "status": "disabled", "statusReason": "stolen", "capabilities": { "iotEdge": true },
    });
    let made: Value = rest.put_device(&device, None).await.json().await.unwrap();
    let fields = |document: &Value| {
        [
            &document["status"],
            &document["statusReason"],
            &document["capabilities"]["iotEdge"],
        ]
        .map(Value::clone)
    };
    let expected = [json!("disabled"), json!("stolen"), json!(true)];
    assert_eq!(fields(&made), expected);
    let scope = made["deviceScope"].as_str().unwrap();
    let generation = made["generationId"].as_str().unwrap();
    assert_eq!(scope, format!("ms-azure-iot-edge://edge-{generation}"));
    assert_eq!(fields(&rest.get("/twins/edge").await), expected);
    assert_ne!(made["statusUpdatedTime"], "0001-01-01T00:00:00Z");
    let query = "SELECT deviceId FROM devices WHERE capabilities.iotEdge = true AND statusReason = 'stolen'";
    assert_eq!(rest.rows(query, None).await.0.len(), 1);
    // A child device names the parent's scope.
    let child = json!({ "deviceId": "child", "deviceScope": scope });
    let child: Value = rest.put_device(&child, None).await.json().await.unwrap();
    assert_eq!(child["parentScopes"], json!([scope]));
    assert_eq!(child["statusUpdatedTime"], "0001-01-01T00:00:00Z");

    let etag = made["etag"].as_str().unwrap();
    let update = json!({ "deviceId": "edge" });
    for etag in [format!("\"{etag}\""), format!("W/\"{etag}\"")] {
        let wrong = etag.replace('A', "B");
        let refused = rest.put_device(&update, Some(&wrong)).await;
        assert_eq!(error_name(refused).await.0, StatusCode::PRECONDITION_FAILED);
        let both = format!("{wrong}, {etag}");
        let answer = rest.put_device(&update, Some(&both)).await;
        if etag.starts_with('"') {
            let updated: Value = answer.json().await.unwrap();
            assert_eq!(
                fields(&updated),
                [json!("enabled"), json!(null), json!(false)]
            );
            assert_eq!(updated["deviceScope"], "");
        } else {
            // This ETag was current until the first update.
            assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
        }
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn bulk_requests_report_errors_per_device() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    let items = json!([
        {
            "id": "a", "importMode": "create", "status": "disabled", "statusReason": "new",
            "authentication": { "type": "certificateAuthority" }, "capabilities": { "iotEdge": true },
            "tags": { "kind": "bulk" }, "properties": { "desired": { "speed": 5 } },
        },
        { "id": "a", "importMode": "update" },
        { "id": "b", "importMode": "update" },
        { "id": "c d", "importMode": "create" },
        { "id": "d0", "importMode": "updateTwin", "tags": { "kind": "bulk" } },
        { "id": "e", "importMode": "shred" },
        { "id": "f", "importMode": "createOrUpdateIfMatchETag" },
    ]);
    let bulk = async |items: &Value| -> Value {
        let request = rest.request(Method::POST, "/devices").json(items);
        request.send().await.unwrap().json().await.unwrap()
    };
    let answer = bulk(&items).await;
    let errors: Vec<_> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            (
                error["deviceId"].as_str().unwrap(),
                error["errorCode"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("a", 400_011),
        ("b", 404_001),
        ("c d", 400_004),
        ("e", 400_004),
    ];
    assert_eq!(errors, expected);
    let made = rest.get("/devices/a").await;
    assert_eq!(
        (
            &made["status"],
            &made["statusReason"],
            &made["capabilities"]["iotEdge"],
            &made["authentication"]["type"]
        ),
        (
            &json!("disabled"),
            &json!("new"),
            &json!(true),
            &json!("certificateAuthority")
        )
    );
    assert_eq!(
        rest.get("/twins/a").await["properties"]["desired"]["speed"],
        5
    );
    let query = "SELECT devices.deviceId FROM devices WHERE devices.tags.kind = 'bulk'";
    assert_eq!(
        rest.rows(query, None).await.0,
        [json!({ "deviceId": "d0" }), json!({ "deviceId": "a" })]
    );
    // An existing name needs the matching ETag.
    for (etag, ok) in [
        (json!(null), false),
        (json!("AAAAAAAAAAk="), false),
        (made["etag"].clone(), true),
    ] {
        let answer =
            bulk(&json!([{ "id": "a", "importMode": "createOrUpdateIfMatchETag", "eTag": etag }]))
                .await;
        assert_eq!(answer["isSuccessful"], ok, "{etag}: {answer}");
    }
    assert_eq!(rest.get("/devices/a").await["statusReason"], json!(null));
    let delete =
        json!([{ "id": "a", "importMode": "delete" }, { "id": "f", "importMode": "delete" }]);
    assert_eq!(bulk(&delete).await["isSuccessful"], true);
    hub.shutdown().await;
}

#[tokio::test]
async fn device_created_over_rest_is_offline_and_queues_messages() {
    let hub = plain_hub(0).await;
    let rest = Rest::new(&hub);
    rest.put_device(&json!({ "deviceId": "new" }), None).await;
    assert_eq!(
        rest.get("/devices/new").await["connectionState"],
        "Disconnected"
    );
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for id in ["1", "2"] {
        let outcome = sender.send(message("new", id, "none")).await.unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    for path in ["/devices/new", "/twins/new"] {
        assert_eq!(rest.get(path).await["cloudToDeviceMessageCount"], 2);
    }
    let query = "SELECT deviceId FROM devices WHERE cloudToDeviceMessageCount = 2 AND connectionState = 'Disconnected'";
    assert_eq!(rest.rows(query, None).await.0.len(), 1);
    let purged = rest.request(Method::DELETE, "/devices/new/commands");
    let purged: Value = purged.send().await.unwrap().json().await.unwrap();
    assert_eq!(
        purged,
        json!({ "deviceId": "new", "moduleId": null, "totalMessagesPurged": 2 })
    );
    assert_eq!(
        rest.get("/devices/new").await["cloudToDeviceMessageCount"],
        0
    );
    let states: Vec<_> = hub.hub().messages("new").unwrap();
    assert!(states.iter().all(|one| one.state == MessageState::Purged));
    hub.shutdown().await;
}

#[tokio::test]
async fn devices_made_over_rest_may_be_connected() {
    let hub = hub_with("groups: []", |config| config.added_devices_online = true).await;
    let rest = Rest::new(&hub);
    rest.put_device(&json!({ "deviceId": "new" }), None).await;
    let disabled = json!({ "deviceId": "off", "status": "disabled" });
    rest.put_device(&disabled, None).await;
    for (id, state) in [("new", "Connected"), ("off", "Disconnected")] {
        let device = rest.get(&format!("/devices/{id}")).await;
        assert_eq!(device["connectionState"], state);
    }
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    sender.send(message("new", "1", "none")).await.unwrap();
    let delivered = async {
        while hub.hub().summary().delivered == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), delivered)
        .await
        .expect("the device completes its message");
    hub.shutdown().await;
}
