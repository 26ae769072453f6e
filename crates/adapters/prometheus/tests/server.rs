//! The client against a scripted server over HTTP.

use std::time::Duration;

use twincast_core::error::in_words;
use twincast_core::ports::MetricSource as _;
use twincast_prometheus::{Prometheus, PrometheusConfig, Token};
use wiremock::matchers::{body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

fn config(server: &MockServer) -> PrometheusConfig {
    PrometheusConfig {
        url: format!("{}/prom/", server.uri()),
        token: Some(Token::Text("s3cr3t\n".into())),
        ca_file: None,
        timeout: Duration::from_secs(5),
    }
}

async fn asked(config: &PrometheusConfig) -> Result<Vec<f64>, String> {
    let server = Prometheus::new(config).unwrap();
    let answered = server.ask("sum(up) > 1").await;
    answered.map_err(|error| in_words(&error))
}

#[tokio::test]
async fn a_query_is_asked_with_its_token() {
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
    assert_eq!(asked(&config(&server)).await, Ok(vec![0.25]));
}

/// As some editors write it.
#[tokio::test]
async fn a_token_is_what_its_file_says_and_no_mark_before_it() {
    let server = MockServer::start().await;
    let body = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    Mock::given(header("authorization", "Bearer s3cr3t"))
        .respond_with(ResponseTemplate::new(200).set_body_raw(body, "application/json"))
        .expect(1)
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let config = PrometheusConfig {
        token: Some(Token::File(path.clone())),
        ..config(&server)
    };
    std::fs::write(&path, "\u{feff}s3cr3t\r\n").unwrap();
    assert_eq!(asked(&config).await, Ok(vec![]));
    let wide: Vec<u8> = "s3cr3t\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    std::fs::write(&path, wide).unwrap();
    let error = asked(&config).await.unwrap_err();
    assert!(error.contains("it is UTF-16; save it as UTF-8"), "{error}");
}

#[tokio::test]
async fn what_does_not_answer_in_time_or_size_is_an_error() {
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
    let at = |part: &str| PrometheusConfig {
        url: format!("{}/{part}", server.uri()),
        timeout: Duration::from_millis(500),
        ..config(&server)
    };
    let late = asked(&at("late")).await.unwrap_err();
    assert!(late.contains("the connection failed"), "{late}");
    let large = asked(&PrometheusConfig {
        timeout: Duration::from_secs(30),
        ..at("large")
    })
    .await
    .unwrap_err();
    assert!(large.contains("larger than 1 MiB"), "{large}");
    let none = asked(&at("none")).await.unwrap_err();
    assert!(none.contains("it answers 404"), "{none}");
}

#[tokio::test]
async fn secrets_do_not_show() {
    let server = MockServer::start().await;
    let config = config(&server);
    let client = Prometheus::new(&config).unwrap();
    let error = client.ask("up").await.unwrap_err();
    let shown = format!("{client:?} {error:?} {}", in_words(&error));
    assert!(!shown.contains("s3cr3t"), "{shown}");
    for url in [
        "http://ann:s3cr3t@prometheus:9090",
        "ftp://x",
        "prometheus:9090",
        "http://x/?a=b",
    ] {
        let refused = Prometheus::new(&PrometheusConfig {
            url: url.into(),
            ..config.clone()
        });
        let shown = refused.unwrap_err().to_string();
        assert!(
            shown.contains("Prometheus server") && !shown.contains("s3cr3t"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_token_that_is_not_there_is_named() {
    let server = MockServer::start().await;
    let config = PrometheusConfig {
        token: Some(Token::File("/nowhere/token".into())),
        ..config(&server)
    };
    let error = asked(&config).await.unwrap_err();
    assert!(
        error.contains("cannot read the token in /nowhere/token"),
        "{error}"
    );
}
