//! The REST client against a scripted HTTP server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt as _;
use serde_json::{Value, json};
use twincast_retry::Policy;
use wiremock::matchers::{body_json, header, header_exists, method, path, query_param};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::*;
use crate::{Client, ClientOptions, ConnectionString, Secret};

fn quick_options() -> ClientOptions {
    let quick = Policy::new(Duration::from_millis(1), Duration::from_millis(2)).unwrap();
    ClientOptions {
        http_transient: quick.clone().with_max_attempts(3).unwrap(),
        throttled: quick.with_max_attempts(3).unwrap(),
        ..ClientOptions::default()
    }
}

fn client(server: &MockServer, options: ClientOptions) -> Client {
    let connection =
        ConnectionString::new("hub.example.net", "service", Secret::new("c2VjcmV0")).unwrap();
    let mut client = Client::new(&connection, options).unwrap();
    Arc::get_mut(&mut client.inner)
        .unwrap()
        .http
        .plain_for_tests(server.uri());
    client
}

fn page(items: Value, continuation: Option<&str>) -> ResponseTemplate {
    let response = ResponseTemplate::new(200)
        .set_body_json(items)
        .insert_header("x-ms-item-type", "Raw");
    match continuation {
        Some(token) => response.insert_header("x-ms-continuation", token),
        None => response,
    }
}

/// Only a refused first page is the query's fault.
#[tokio::test]
async fn a_refused_continuation_can_be_requested_again() {
    let server = MockServer::start().await;
    let continues = |r: &Request| r.headers.contains_key("x-ms-continuation");
    let refused = || ResponseTemplate::new(400).set_body_string("ErrorCode:BadFormat;continuation");
    let query = || Mock::given(method("POST")).and(path("/devices/query"));
    query()
        .and(continues)
        .respond_with(refused())
        .up_to_n_times(1)
        .mount(&server)
        .await;
    query()
        .and(continues)
        .respond_with(page(json!([{"deviceId": "b"}]), None))
        .mount(&server)
        .await;
    query()
        .respond_with(page(json!([{"deviceId": "a"}]), Some("t1")))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    query().respond_with(refused()).mount(&server).await;
    let client = client(&server, quick_options());
    let mut pages = client.query("SELECT deviceId FROM devices", 100).unwrap();
    assert_eq!(pages.next_page().await.unwrap().unwrap().items.len(), 1);
    let error = pages.next_page().await.unwrap_err();
    assert!(
        matches!(&error, RestError::Continuation(api) if api.status == 400),
        "{error:?}"
    );
    let last = pages.next_page().await.unwrap().unwrap();
    assert_eq!(last.items, [json!({"deviceId": "b"})]);
    let mut other = client.query("nonsense", 100).unwrap();
    let error = other.next_page().await.unwrap_err();
    assert!(
        matches!(&error, RestError::Api(api) if api.status == 400),
        "{error:?}"
    );
}

#[tokio::test]
async fn only_a_missing_continuation_ends_a_query() {
    let server = MockServer::start().await;
    let query = || {
        Mock::given(method("POST"))
            .and(path("/devices/query"))
            .and(query_param("api-version", "2021-04-12"))
            .and(header("x-ms-max-item-count", "100"))
            .and(header_exists("authorization"))
            .and(body_json(
                json!({ "query": "SELECT deviceId FROM devices" }),
            ))
    };
    let second = |r: &Request| {
        r.headers
            .get("x-ms-continuation")
            .is_some_and(|v| v == "t1")
    };
    let third = |r: &Request| {
        r.headers
            .get("x-ms-continuation")
            .is_some_and(|v| v == "t2")
    };
    query()
        .and(second)
        .respond_with(page(json!([]), Some("t2")))
        .expect(1)
        .mount(&server)
        .await;
    query()
        .and(third)
        .respond_with(page(json!([{"deviceId": "c"}]), None))
        .expect(1)
        .mount(&server)
        .await;
    let first = page(json!([{"deviceId": "a"}, {"deviceId": "b"}]), Some("t1"));
    let no_token = |r: &Request| !r.headers.contains_key("x-ms-continuation");
    query()
        .and(no_token)
        .respond_with(first)
        .expect(1)
        .mount(&server)
        .await;

    let client = client(&server, quick_options());
    let pages = client.query("SELECT deviceId FROM devices", 1_000).unwrap();
    let items: Vec<Value> = pages.into_items().try_collect().await.unwrap();
    let ids: Vec<_> = items
        .iter()
        .map(|item| item["deviceId"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn invalid_utf8_affects_a_single_item() {
    let server = MockServer::start().await;
    let body = b"[{\"id\":\"a\"},{\"id\":\"\xff\"},{\"id\":\"c\"}]".to_vec();
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(200).set_body_bytes(body))
        .mount(&server)
        .await;
    let client = client(&server, quick_options());
    let mut pages = client.query("SELECT * FROM devices", 10).unwrap();
    let items = pages.next_page().await.unwrap().unwrap().items;
    assert_eq!(
        items,
        [
            json!({"id": "a"}),
            json!({"id": "\u{fffd}"}),
            json!({"id": "c"})
        ]
    );
}

#[tokio::test]
async fn a_failed_page_can_be_requested_again() {
    let server = MockServer::start().await;
    let refused = ResponseTemplate::new(400)
        .set_body_json(json!({"Message": "ErrorCode:ArgumentInvalid;bad"}));
    Mock::given(method("POST"))
        .respond_with(refused)
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(page(json!([1]), None))
        .mount(&server)
        .await;
    let client = client(&server, quick_options());
    let mut pages = client.query("SELECT * FROM devices", 10).unwrap();
    let error = pages.next_page().await.unwrap_err();
    assert_eq!(
        error.api().unwrap().name.as_deref(),
        Some("ArgumentInvalid")
    );
    assert_eq!(pages.next_page().await.unwrap().unwrap().items.len(), 1);
    assert!(pages.next_page().await.unwrap().is_none());
}

#[tokio::test]
async fn throttling_respects_retry_after_and_retries_are_reported() {
    let server = MockServer::start().await;
    let throttled = ResponseTemplate::new(429)
        .insert_header("Retry-After", "0")
        .insert_header("iothub-errorcode", "ThrottlingException");
    Mock::given(method("POST"))
        .respond_with(throttled)
        .up_to_n_times(2)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(page(json!([{"n": 123}]), None))
        .mount(&server)
        .await;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let notices = Arc::clone(&notices);
        RetryHook::new(move |notice| notices.lock().unwrap().push((notice.reason, notice.wait)))
    };
    let options = ClientOptions {
        on_retry: Some(hook),
        ..quick_options()
    };
    assert_eq!(
        client(&server, options)
            .count(Some("tags.a = 'b'"))
            .await
            .unwrap(),
        123
    );
    let notices = notices.lock().unwrap();
    assert_eq!(notices.len(), 3);
    assert_eq!(notices[0], (RetryReason::Throttled, Duration::ZERO));
    assert_eq!(notices[2].0, RetryReason::ServerError);
}

#[tokio::test]
async fn retries_end_with_the_hubs_own_error() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(500).set_body_json(
        json!({"Message": "{\"errorCode\":500001,\"trackingId\":\"T\",\"message\":\"oh\"}"}),
    );
    Mock::given(method("GET"))
        .respond_with(answer)
        .expect(4)
        .mount(&server)
        .await;
    let error = client(&server, quick_options())
        .statistics()
        .await
        .unwrap_err();
    let api = error.api().unwrap();
    assert_eq!(
        (api.status, api.code, api.tracking_id.as_deref()),
        (500, Some(500_001), Some("T"))
    );
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let server = MockServer::start().await;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    Mock::given(method("GET"))
        .respond_with(
            move |_: &Request| match counted.fetch_add(1, Ordering::Relaxed) {
                0 => ResponseTemplate::new(401),
                _ => ResponseTemplate::new(200).set_body_json(json!({
                    "totalDeviceCount": 3, "enabledDeviceCount": 2, "disabledDeviceCount": 1
                })),
            },
        )
        .mount(&server)
        .await;
    let statistics = client(&server, quick_options()).statistics().await.unwrap();
    assert_eq!(statistics.total_device_count, 3);
    assert_eq!(calls.load(Ordering::Relaxed), 2);

    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(401))
        .expect(2)
        .mount(&server)
        .await;
    let error = client(&server, quick_options())
        .statistics()
        .await
        .unwrap_err();
    assert!(error.is_unauthorised());
}

#[tokio::test]
async fn twin_ids_are_encoded_and_missing_twins_are_reported() {
    let server = MockServer::start().await;
    let twin = json!({
        "deviceId": "a/b c", "etag": "AAA=", "status": "enabled", "version": 7,
        "lastActivityTime": "0001-01-01T00:00:00", "tags": {"region": "eu"},
        "properties": {"desired": {"$version": 1}, "reported": {}}
    });
    Mock::given(path("/twins/a%2Fb%20c"))
        .respond_with(ResponseTemplate::new(200).set_body_json(twin))
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(404))
        .mount(&server)
        .await;
    let client = client(&server, quick_options());
    let twin = client.twin("a/b c").await.unwrap();
    assert_eq!(twin.tags["region"], "eu");
    assert_eq!(twin.version, Some(7));
    assert!(twin.other.contains_key("lastActivityTime"));
    assert!(client.twin("nobody").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_overlong_query_is_not_sent() {
    let server = MockServer::start().await;
    let client = client(&server, quick_options());
    let error = client
        .query(&"x".repeat(MAX_QUERY_CHARS + 1), 1)
        .unwrap_err();
    assert!(matches!(
        error,
        RestError::QueryTooLong { found: 8_193, .. }
    ));
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_closed_port_is_reported_as_refused() {
    let server = MockServer::start().await;
    let options = ClientOptions {
        https: crate::Endpoint {
            host: Some("127.0.0.1".into()),
            port: Some(1),
        },
        ..quick_options()
    };
    let connection =
        ConnectionString::new("hub.example.net", "service", Secret::new("c2VjcmV0")).unwrap();
    let error = Client::new(&connection, options)
        .unwrap()
        .statistics()
        .await
        .unwrap_err();
    let RestError::Connect(error) = error else {
        panic!("{error:?}")
    };
    assert!(
        matches!(error, crate::ConnectError::Refused { .. }),
        "{error:?}"
    );
    drop(server);
}
