//! Queries over real sockets, under the hub's faults.

use std::time::Duration;

use futures::TryStreamExt as _;
use serde::Deserialize;
use twincast_emulator::{Chance, Faults};
use twincast_iothub::{ConnectError, RestError, Roots};
use twincast_retry::Policy;

use crate::common::{client, client_with, hub, options};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Id {
    device_id: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_device_is_listed_once_through_empty_pages_throttling_and_server_errors() {
    let faults = Faults {
        empty_page: Chance::share(0.3),
        http_429: Chance::next(2),
        retry_after_s: Some(0),
        http_500: Chance::next(2),
        http_503: Chance::next(1),
        ..Faults::default()
    };
    let hub = hub(1_234, faults).await;
    let mut options = options(&hub);
    let quick = Policy::new(Duration::from_millis(1), Duration::from_millis(5)).unwrap();
    options.http_transient = quick.clone().with_max_attempts(10).unwrap();
    options.throttled = quick.with_max_attempts(10).unwrap();
    let client = client_with(&hub, options);
    let pages = client.query("SELECT deviceId FROM devices", 100).unwrap();
    let mut ids: Vec<String> = pages
        .into_items::<Id>()
        .map_ok(|id| id.device_id)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(ids.len(), 1_234);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1_234);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_statistics_and_twins_are_read() {
    let hub = hub(321, Faults::default()).await;
    let client = client(&hub);
    assert_eq!(client.count(None).await.unwrap(), 321);
    assert_eq!(client.count(Some("deviceId = 'd-7'")).await.unwrap(), 1);
    assert_eq!(client.statistics().await.unwrap().total_device_count, 321);
    assert!(client.service_statistics().await.is_ok());
    assert_eq!(client.twin("d-7").await.unwrap().device_id, "d-7");
    assert!(client.twin("nobody").await.unwrap_err().is_not_found());
    let error = client
        .query("SELEKT", 1)
        .unwrap()
        .next_page()
        .await
        .unwrap_err();
    assert_eq!(error.api().unwrap().status, 400, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_ends_in_time_and_a_foreign_certificate_is_named() {
    let hub = hub(
        1,
        Faults {
            http_delay_ms: 60_000,
            ..Faults::default()
        },
    )
    .await;
    let mut slow = options(&hub);
    slow.request_timeout = Duration::from_millis(200);
    slow.http_transient = Policy::new(Duration::from_millis(1), Duration::from_millis(1))
        .and_then(|p| p.with_max_attempts(1))
        .unwrap();
    let error = client_with(&hub, slow.clone())
        .statistics()
        .await
        .unwrap_err();
    assert!(matches!(error, RestError::Transit(_)), "{error:?}");

    slow.request_timeout = Duration::from_secs(60);
    let made = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    slow.roots = Roots::Only(made.cert.pem());
    let error = client_with(&hub, slow.clone())
        .statistics()
        .await
        .unwrap_err();
    let RestError::Connect(error) = error else {
        panic!("{error:?}")
    };
    assert!(
        matches!(error, ConnectError::UnknownIssuer { .. }),
        "{error:?}"
    );

    let key = twincast_iothub::Secret::new("c2VjcmV0");
    let other = twincast_iothub::ConnectionString::new("no-such-host.invalid", "s", key).unwrap();
    let error = twincast_iothub::Client::new(&other, slow)
        .unwrap()
        .statistics()
        .await
        .unwrap_err();
    let RestError::Connect(error) = error else {
        panic!("{error:?}")
    };
    assert!(matches!(error, ConnectError::Dns { .. }), "{error:?}");
}
