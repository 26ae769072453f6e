//! Twins over REST: limits, metadata and queries.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Client, hub_with, message, plain_hub};
use crate::http::{Rest, error_name};

const FLEET: &str = "
groups:
  - count: 120
    id: 'd-{index:03}'
    tags: { room: { $cycle: [hall, yard, roof] }, floor: { $cycle: [1, 2, 3, 4] } }
    reported: { firmware: { version: '1.0' }, load: { $cycle: [10, 20.5] } }
    reported_after_delivery: { firmware: { version: '2.0' }, done: true }
    behaviour: { latency: 1ms, reverts: { share: 1, after: 1ms } }
  - { count: 2, id: 'bare-{index}', reported: { firmware: { version: '1.0' } }, reported_after_delivery: { firmware: { version: '2.0' } }, behaviour: { latency: 1ms } }
";

#[tokio::test]
async fn twin_updates_beyond_limits_are_refused_as_a_whole() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    let patch = async |method: Method, body: Value| {
        let request = rest.request(method, "/twins/d0").json(&body);
        request.send().await.unwrap()
    };
    let good = json!({
        "tags": { "least": -4_503_599_627_370_496i64, "most": 4_503_599_627_370_495i64, "list": [1, { "a": 0.5 }] },
        "properties": { "desired": { "note": "x".repeat(4096) } },
    });
    assert_eq!(patch(Method::PATCH, good).await.status(), StatusCode::OK);
    let before = rest.get("/twins/d0").await;
    for method in [Method::PATCH, Method::PUT] {
        for bad in [
            json!({ "n": 4_503_599_627_370_496u64 }),
            json!({ "n": { "m": -4_503_599_627_370_497i64 } }),
            json!({ "n": [[u64::MAX]] }),
            json!({ "n": 1e20 }),
            json!({ "n": "x".repeat(4097) }),
            json!({ "n.m": 1 }),
        ] {
            for body in [
                json!({ "tags": bad, "properties": { "desired": { "ok": 1 } } }),
                json!({ "tags": { "ok": 1 }, "properties": { "desired": bad } }),
            ] {
                let answer = patch(method.clone(), body.clone()).await;
                let (status, name, text) = error_name(answer).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
                assert!(name == "ArgumentInvalid" && text.contains('n'), "{text}");
            }
        }
    }
    assert_eq!(rest.get("/twins/d0").await, before);
    // Eight kilobytes of tags, as counted by the hub; punctuation does not count.
    let tags = |last: usize| {
        let mut tags = serde_json::Map::new();
        for (key, length) in [("a", 4095), ("b", last)] {
            tags.insert(key.to_owned(), Value::from("x".repeat(length)));
        }
        json!({ "tags": tags })
    };
    let fits = patch(Method::PUT, tags(4095)).await;
    assert_eq!(fits.status(), StatusCode::OK);
    let (_, _, text) = error_name(patch(Method::PUT, tags(4096)).await).await;
    assert!(text.contains("8193 bytes; at most 8192"), "{text}");
    hub.shutdown().await;
}

#[tokio::test]
async fn desired_properties_record_the_last_update() {
    let hub = plain_hub(1).await;
    let rest = Rest::new(&hub);
    let desired = async |method: Method, desired: Value| -> Value {
        let body = json!({ "properties": { "desired": desired } });
        let request = rest.request(method, "/twins/d0").json(&body);
        let twin: Value = request.send().await.unwrap().json().await.unwrap();
        twin["properties"]["desired"].clone()
    };
    let first = desired(Method::PATCH, json!({ "fan": { "speed": 5, "on": true } })).await;
    let metadata = &first["$metadata"];
    let time = metadata["fan"]["speed"]["$lastUpdated"].as_str().unwrap();
    assert!(
        time.len() == "2016-03-30T16:24:48.789Z".len() && time.ends_with('Z'),
        "{time}"
    );
    assert_eq!(metadata["$lastUpdated"], time);
    assert_eq!(metadata["fan"]["on"]["$lastUpdatedVersion"], 2);
    let second = desired(Method::PATCH, json!({ "fan": { "on": null } })).await;
    let metadata = &second["$metadata"];
    assert_eq!(metadata["fan"]["$lastUpdatedVersion"], 3);
    assert_eq!(metadata["fan"]["speed"]["$lastUpdatedVersion"], 2);
    assert_eq!(metadata["fan"].get("on"), None);
    // A twin written back after a read gets new metadata, without duplicates.
    let third = desired(Method::PUT, second).await;
    assert_eq!(third["$version"], 4);
    assert_eq!(third["$metadata"]["fan"]["speed"]["$lastUpdatedVersion"], 4);
    assert_eq!(third["$metadata"].as_object().unwrap().len(), 3);
    let query = format!(
        "SELECT deviceId, properties.desired.$version AS v FROM devices WHERE properties.desired.$metadata.fan.speed.$lastUpdated >= '{time}'"
    );
    assert_eq!(
        rest.rows(&query, None).await.0,
        [json!({ "deviceId": "d0", "v": 4 })]
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn reported_properties_record_the_last_update() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let before = rest.get("/twins/bare-0").await;
    let reported = &before["properties"]["reported"];
    let made = reported["$metadata"]["$lastUpdated"].as_str().unwrap();
    assert_eq!(
        reported["$metadata"]["firmware"]["version"]["$lastUpdated"],
        made
    );
    assert_eq!(reported["$version"], 1);
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for device in ["bare-0", "d-000"] {
        sender.send(message(device, "m", "none")).await.unwrap();
    }
    let version = async |device: &str| {
        let twin = rest.get(&format!("/twins/{device}")).await;
        twin["properties"]["reported"]["$version"].as_u64().unwrap()
    };
    while version("bare-0").await < 2 || version("d-000").await < 3 {
        tokio::task::yield_now().await;
    }
    let after = rest.get("/twins/bare-0").await;
    let changed = &after["properties"]["reported"];
    assert_eq!(changed["firmware"], json!({ "version": "2.0" }));
    let time = changed["$metadata"]["firmware"]["version"]["$lastUpdated"].clone();
    let time = time.as_str().unwrap();
    assert!(time >= made, "{time} {made}");
    let query = format!(
        "SELECT deviceId FROM devices WHERE properties.reported.$metadata.$lastUpdated >= '{time}' AND properties.reported.$version = 2"
    );
    assert_eq!(
        rest.rows(&query, None).await.0,
        [json!({ "deviceId": "bare-0" })]
    );
    // A recreated device has reported nothing.
    let delete = rest.request(Method::DELETE, "/devices/bare-0");
    delete.header("If-Match", "*").send().await.unwrap();
    rest.put_device(&json!({ "deviceId": "bare-0" }), None)
        .await;
    let anew = rest.get("/twins/bare-0").await["properties"]["reported"].clone();
    assert_eq!((anew.get("firmware"), &anew["$version"]), (None, &json!(1)));
    // A reverting device has the earlier values again, with the time of the reversal.
    let back = rest.get("/twins/d-000").await["properties"]["reported"].clone();
    assert_eq!(
        (
            &back["firmware"]["version"],
            back.get("done"),
            &back["load"]
        ),
        (&json!("1.0"), None, &json!(10))
    );
    let metadata = &back["$metadata"];
    assert!(metadata["firmware"]["version"]["$lastUpdated"].as_str() > Some(made));
    assert_eq!(metadata["load"]["$lastUpdated"], made);
    hub.shutdown().await;
}

#[tokio::test]
async fn groups_are_counted_over_computed_and_changed_devices() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let patch = json!({ "tags": { "room": "moon", "floor": 100 } });
    let moved = rest.request(Method::PATCH, "/twins/d-119").json(&patch);
    assert_eq!(moved.send().await.unwrap().status(), StatusCode::OK);
    let query = "SELECT tags.room AS room, COUNT() AS n, SUM(tags.floor) AS s, AVG(devices.tags.floor) AS a, MIN(tags.floor) AS l, MAX(tags.floor) AS m FROM devices GROUP BY tags.room";
    let (rows, pages) = rest.rows(query, None).await;
    let expected = [
        json!({ "room": "hall", "n": 40, "s": 100, "a": 2.5, "l": 1, "m": 4 }),
        json!({ "room": "yard", "n": 40, "s": 100, "a": 2.5, "l": 1, "m": 4 }),
        json!({ "room": "roof", "n": 39, "s": 96, "a": 96.0 / 39.0, "l": 1, "m": 4 }),
        json!({ "room": "moon", "n": 1, "s": 100, "a": 100.0, "l": 100, "m": 100 }),
        json!({ "n": 2 }),
    ];
    assert_eq!((rows.as_slice(), pages), (&expected[..], 1));
    // In pages, and with a limited number of rows.
    let (rows, pages) = rest.rows(query, Some(2)).await;
    assert_eq!((rows.as_slice(), pages), (&expected[..], 3));
    let top = query.replace("SELECT", "SELECT TOP 4");
    let (rows, pages) = rest.rows(&top, Some(2)).await;
    assert_eq!((rows.as_slice(), pages), (&expected[..4], 2));
    // Two keys, a condition, and a value missing in some devices.
    let query = "SELECT tags.floor, tags.room, SUM(properties.reported.load) AS s FROM devices WHERE tags.floor <= 2 AND tags.room != 'roof' GROUP BY tags.room, tags.floor";
    let (rows, _) = rest.rows(query, None).await;
    assert_eq!(
        rows,
        [
            json!({ "floor": 1, "room": "hall", "s": 100 }),
            json!({ "floor": 2, "room": "yard", "s": 205.0 }),
            json!({ "floor": 1, "room": "yard", "s": 100 }),
            json!({ "floor": 2, "room": "hall", "s": 205.0 }),
        ]
    );
    let query = "SELECT COUNT() AS n, MAX(properties.reported.firmware.version) AS v FROM devices";
    let answer = rest.query(query, None, None).await;
    assert_eq!(answer.headers()["x-ms-item-type"], "Raw");
    let rows: Vec<Value> = answer.json().await.unwrap();
    assert_eq!(rows, [json!({ "n": 122, "v": "1.0" })]);
    let query = "SELECT tags.room, COUNT() FROM devices";
    let (status, _, text) = error_name(rest.query(query, None, None).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("'tags.room' is neither grouped by"), "{text}");
    hub.shutdown().await;
}

#[tokio::test]
async fn projections_name_devices_as_the_documentation_does() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    let query = "SELECT TOP 1 devices.DeviceId, ConnectionState, devices.tags.room AS r FROM devices WHERE Devices.deviceId = 'd-001'";
    assert_eq!(
        rest.rows(query, None).await.0,
        [json!({ "deviceId": "d-001", "connectionState": "Connected", "r": "yard" })]
    );
    hub.shutdown().await;
}
