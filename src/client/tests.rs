use serde_json::json;
use twincast_core::ids::{CommandKey, StageName};
use twincast_orchestrator::command::{Cause, Refusal};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::config::Overrides;

#[test]
fn server_addresses_get_the_api_path_or_are_refused() {
    let table = [
        ("https://a.example", "https://a.example/api/v1"),
        ("https://a.example/", "https://a.example/api/v1"),
        ("https://a.example/b/", "https://a.example/b/api/v1"),
        ("https://a.example/api/v1", "https://a.example/api/v1"),
        ("http://localhost:8081", "http://localhost:8081/api/v1"),
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081/api/v1"),
        ("http://[::1]:8081", "http://[::1]:8081/api/v1"),
    ];
    for (given, expected) in table {
        assert_eq!(base(given, false).unwrap().as_str(), expected);
    }
    for bad in ["a.example", "http://a.example"] {
        let said = base(bad, false).unwrap_err().lines().join("\n");
        assert!(said.starts_with("--server: "), "{bad}: {said}");
    }
}

#[test]
fn a_command_body_omits_values_of_the_path() {
    let name = RolloutName::new("r").unwrap();
    let command = Command {
        by: Some("ann".to_owned()),
        reason: Some("why".to_owned()),
        stage: Some(StageName::new("s").unwrap()),
        ..Command::about(Kind::Approve, Some(name))
    };
    let expected = json!({ "stage": "s", "reason": "why" });
    assert_eq!(command_body(&command), expected);
    let all = Command::about(Kind::StopAll, None);
    assert_eq!(command_body(&all), json!({}));
}

fn client(of: &MockServer) -> Client {
    let overrides = Overrides {
        server: Some(of.uri()),
        token: Some("twc_secret".to_owned()),
        ..Overrides::default()
    };
    let settings = Settings::load(None, overrides).unwrap();
    Client::of_server(&settings)
        .unwrap()
        .expect("the server is configured")
}

fn answer(status: u16, body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(body)
}

#[tokio::test]
async fn transient_errors_are_retried_with_the_token() {
    let server = MockServer::start().await;
    let of_hubs = || {
        Mock::given(method("GET"))
            .and(path("/api/v1/hubs"))
            .and(header("authorization", "Bearer twc_secret"))
    };
    let busy = answer(503, &json!({ "detail": "busy" })).insert_header("retry-after", "1");
    let first = of_hubs().respond_with(busy).up_to_n_times(1).expect(1);
    first.mount(&server).await;
    let bad_gateway = of_hubs().respond_with(ResponseTemplate::new(502));
    bad_gateway.up_to_n_times(1).expect(1).mount(&server).await;
    let good = of_hubs().respond_with(answer(200, &json!({ "hubs": [] })));
    good.expect(1).mount(&server).await;
    let began = Instant::now();
    assert_eq!(client(&server).hubs().await.unwrap().hubs, []);
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "the client respects Retry-After"
    );
}

/// The first answer may be lost in transit.
#[tokio::test]
async fn a_repeated_request_has_the_same_key() {
    let server = MockServer::start().await;
    let retries = || {
        Mock::given(method("POST"))
            .and(path("/api/v1/rollouts/r/retry"))
            .and(header("idempotency-key", "k-1"))
    };
    let bad_gateway = retries().respond_with(ResponseTemplate::new(502));
    bad_gateway.up_to_n_times(1).expect(1).mount(&server).await;
    let done = json!({ "ok": true, "changed": true, "rollouts": [] });
    let good = retries().respond_with(answer(200, &done));
    good.expect(1).mount(&server).await;
    let command = Command {
        key: Some(CommandKey::new("k-1").unwrap()),
        ..Command::about(Kind::Retry, Some(RolloutName::new("r").unwrap()))
    };
    assert!(client(&server).command(&command).await.unwrap().changed);
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.last().unwrap().body, b"{}");
}

#[tokio::test]
async fn refusals_end_with_a_hint() {
    let conflict = json!({ "detail": "taken", "cause": "conflict", "details": ["ttl: 1h, 2h"] });
    let table = [
        (
            401,
            json!({ "detail": "the token is not known" }),
            ExitCode::Refused,
            "TWINCAST_TOKEN",
        ),
        (
            403,
            json!({ "detail": "this needs admin" }),
            ExitCode::Refused,
            "permitted role",
        ),
        (
            404,
            json!({ "detail": "nobody", "hint": "look" }),
            ExitCode::Refused,
            "look",
        ),
        (404, json!("a page"), ExitCode::Refused, "check the address"),
        (409, conflict, ExitCode::Refused, "another name"),
        (
            500,
            json!({ "detail": "damaged" }),
            ExitCode::Unexpected,
            "log of the server",
        ),
    ];
    for (status, body, code, hint) in table {
        let server = MockServer::start().await;
        let mock = Mock::given(method("GET")).respond_with(answer(status, &body));
        mock.expect(1).mount(&server).await;
        let failure = client(&server).hubs().await.unwrap_err();
        let said = failure.lines().join("; ") + failure.hint.as_deref().unwrap_or_default();
        assert_eq!(failure.code, code, "{status}: {said}");
        assert!(said.contains(hint), "{status}: {said}");
        assert!(!said.contains("twc_secret"), "{said}");
        if status == 409 {
            let refusal = Refusal {
                details: vec!["ttl: 1h, 2h".to_owned()],
                ..Refusal::new(Cause::Conflict, "taken")
            };
            assert_eq!(failure.lines(), refusal_failure(&refusal).lines());
        }
    }
}

#[test]
fn active_entries_are_never_truncated() {
    // Name, ended, start time.
    let all = [
        ("a", false, 1),
        ("b", true, 5),
        ("c", true, 9),
        ("d", false, 3),
    ];
    for (most, kept, cut) in [(9, "dacb", 0), (3, "dac", 1), (2, "da", 2), (1, "da", 2)] {
        let mut list = all.to_vec();
        let end_and_start =
            |(_, is_ended, began): &(&str, bool, u64)| (*is_ended, Timestamp(*began));
        assert_eq!(
            sort_and_truncate(&mut list, most, end_and_start),
            cut,
            "{most}"
        );
        let names: String = list.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, kept, "{most}");
    }
}
