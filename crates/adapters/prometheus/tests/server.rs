//! The client against a scripted server over HTTP.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use twincast_core::error::describe;
use twincast_core::ports::MetricSource as _;
use twincast_prometheus::Prometheus;
use wiremock::matchers::{body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

fn client(server: &MockServer, part: &str, timeout: Duration) -> Prometheus {
    _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().timeout(timeout).build().unwrap();
    let url = format!("{}/{part}", server.uri()).parse().unwrap();
    Prometheus::new(http, url, || {
        let mut token = HeaderValue::from_static("Bearer s3cr3t");
        token.set_sensitive(true);
        Ok([(AUTHORIZATION, token)].into_iter().collect())
    })
}

async fn query(client: &Prometheus) -> Result<Vec<f64>, String> {
    let answered = client.ask("sum(up) > 1").await;
    answered.map_err(|error| describe(&error))
}

#[tokio::test]
async fn query_is_sent_with_the_token() {
    let server = MockServer::start().await;
    let body = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.25"]}]}}"#;
    Mock::given(method("POST"))
        .and(path("/prom/api/v1/query"))
        .and(header("authorization", "Bearer s3cr3t"))
        .and(body_string("query=sum%28up%29+%3E+1"))
        .respond_with(ResponseTemplate::new(200).set_body_raw(body, "application/json"))
        .expect(1)
        .mount(&server)
        .await;
    assert_eq!(
        query(&client(&server, "prom/", Duration::from_secs(60))).await,
        Ok(vec![0.25])
    );
}

#[tokio::test]
async fn late_oversized_and_missing_answers_are_errors() {
    let server = MockServer::start().await;
    let late = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    Mock::given(path("/late/api/v1/query"))
        .respond_with(late)
        .mount(&server)
        .await;
    let large = ResponseTemplate::new(200).set_body_bytes(vec![b' '; 2 * 1024 * 1024]);
    Mock::given(path("/large/api/v1/query"))
        .respond_with(large)
        .mount(&server)
        .await;
    let at = |part, ms| client(&server, part, Duration::from_millis(ms));
    let late = query(&at("late", 500)).await.unwrap_err();
    assert!(late.contains("the connection failed"), "{late}");
    let large = query(&at("large", 60_000)).await.unwrap_err();
    assert!(large.contains("larger than 1 MiB"), "{large}");
    let none = query(&at("none", 60_000)).await.unwrap_err();
    assert!(none.contains("it answers 404"), "{none}");
}

#[tokio::test]
async fn secrets_do_not_show() {
    let server = MockServer::start().await;
    let client = client(&server, "", Duration::from_secs(60));
    let error = client.ask("up").await.unwrap_err();
    let shown = format!("{client:?} {error:?} {}", describe(&error));
    assert!(!shown.contains("s3cr3t"), "{shown}");
}

#[tokio::test]
async fn unreadable_token_fails_the_query() {
    _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::new();
    let url = "http://localhost:1".parse().unwrap();
    let client = Prometheus::new(http, url, || Err("cannot read /nowhere/token".into()));
    let error = query(&client).await.unwrap_err();
    assert!(error.contains("cannot read /nowhere/token"), "{error}");
}
