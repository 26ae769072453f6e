//! An issuer on this machine, with keys that change, arrive slowly, are malformed or missing.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Value, json};
use twincast_oidc::{
    ConfigError, Issuer, IssuerConfig, KEY_RETENTION, KeyLocation, KeysError, MAX_WAITING,
    MIN_REQUEST_INTERVAL, Rejection, TokenSigner,
};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const NOW_S: u64 = 1_800_000_000;
static NOW: LazyLock<SystemTime> = LazyLock::new(|| UNIX_EPOCH + Duration::from_secs(NOW_S));
const DISCOVERY: &str = "/realms/fleet/.well-known/openid-configuration";

fn claims(issuer: &str) -> Value {
    json!({ "iss": issuer, "aud": "twincast", "exp": NOW_S + 300, "sub": "ann" })
}

fn issuer(issuer: &str, keys: KeyLocation) -> Issuer {
    Issuer::new(configured(issuer, keys)).unwrap()
}

/// Builds the HTTP client like the product.
fn client() -> reqwest::Client {
    _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    http.timeout(Duration::from_secs(60)).build().unwrap()
}

fn configured(issuer: &str, keys: KeyLocation) -> IssuerConfig {
    IssuerConfig {
        issuer: issuer.to_owned(),
        audience: "twincast".to_owned(),
        keys,
    }
}

/// A server with these answers by path, each expected the given number of times.
async fn serving(answers: Vec<(&str, ResponseTemplate, u64)>) -> MockServer {
    let server = MockServer::start().await;
    for (at, answer, times) in answers {
        let mock = Mock::given(method("GET")).and(path(at));
        mock.respond_with(answer).expect(times).mount(&server).await;
    }
    server
}

fn answer(document: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(document)
}

/// Advances the time.
async fn passes(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn concurrent_callers_share_a_single_discovery() {
    let signer = TokenSigner::new("one");
    let slow = answer(&TokenSigner::key_set(&[&signer])).set_delay(Duration::from_millis(50));
    let server = serving(vec![("/keys", slow, 1)]).await;
    let name = format!("{}/realms/fleet", server.uri());
    let document =
        json!({ "issuer": name, "jwks_uri": format!("{}/keys", server.uri()), "more": [] });
    let discovery = Mock::given(path(DISCOVERY)).respond_with(answer(&document));
    discovery.expect(1).mount(&server).await;

    let issuer = issuer(&name, KeyLocation::Discovery(client()));
    let good = signer.sign(&claims(&name));
    let strange = TokenSigner::new("two").sign(&claims(&name));
    // A caller hanging up does not take the answer from other callers.
    let mut hung_up = Box::pin(issuer.verify(&good, *NOW));
    assert!(futures_pending(&mut hung_up).await);
    drop(hung_up);
    let (first, second, third) = tokio::join!(
        issuer.verify(&good, *NOW),
        issuer.verify(&good, *NOW),
        issuer.verify(&strange, *NOW)
    );
    assert_eq!(first.unwrap().text("sub"), Some("ann"));
    assert!(second.is_ok());
    let unknown = Rejection::Key {
        kid: Some("two".to_owned()),
    };
    assert_eq!(third, Err(unknown.clone()));
    for _ in 0..20 {
        assert_eq!(issuer.verify(&strange, *NOW).await, Err(unknown.clone()));
    }
}

#[tokio::test]
async fn waits_for_an_unknown_key_are_limited_and_share_a_request() {
    let signer = TokenSigner::new("one");
    let keys = answer(&TokenSigner::key_set(&[&signer]));
    let server = serving(vec![
        ("/keys", keys.clone(), 1),
        ("/slow", keys.set_delay(Duration::from_millis(100)), 1),
    ])
    .await;
    let at = |path: &str| KeyLocation::Url(format!("{}{path}", server.uri()), client());
    let issuer_of = issuer("https://i", at("/slow"));
    let other = TokenSigner::new("two").sign(&claims("https://i"));
    let mut waiting: Vec<_> = (0..MAX_WAITING)
        .map(|_| Box::pin(issuer_of.verify(&other, *NOW)))
        .collect();
    for verifying in &mut waiting {
        assert!(futures_pending(verifying).await);
    }
    assert_eq!(
        issuer_of.verify(&other, *NOW).await,
        Err(Rejection::TooManyWaiting)
    );
    for verifying in waiting {
        let rejected = verifying.await;
        assert!(
            matches!(rejected, Err(Rejection::Key { .. })),
            "{rejected:?}"
        );
    }
    // A token with a known key does not wait.
    let issuer = issuer("https://i", at("/keys"));
    issuer.load().await.unwrap();
    assert!(
        issuer
            .verify(&signer.sign(&claims("https://i")), *NOW)
            .await
            .is_ok()
    );
}

/// Whether the future has started and is pending.
async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
    })
    .await
}

#[tokio::test]
async fn a_new_key_is_fetched_and_an_old_key_is_removed() {
    let (old, new) = (TokenSigner::new("old"), TokenSigner::new("new"));
    let server = MockServer::start().await;
    let keys = |signers: &[&TokenSigner]| {
        let answer = answer(&TokenSigner::key_set(signers));
        Mock::given(path("/keys"))
            .respond_with(answer)
            .up_to_n_times(1)
    };
    keys(&[&old]).mount(&server).await;
    let issuer = issuer(
        "https://i",
        KeyLocation::Url(format!("{}/keys", server.uri()), client()),
    );
    issuer.load().await.unwrap();
    keys(&[&new]).mount(&server).await;
    let (by_old, by_new) = (
        old.sign(&claims("https://i")),
        new.sign(&claims("https://i")),
    );
    assert!(issuer.verify(&by_old, *NOW).await.is_ok());
    let unknown = issuer.verify(&by_new, *NOW).await;
    assert!(
        matches!(unknown, Err(Rejection::Key { .. })),
        "a new request is too soon"
    );
    passes(MIN_REQUEST_INTERVAL).await;
    assert!(issuer.verify(&by_new, *NOW).await.is_ok());
    assert!(issuer.verify(&by_old, *NOW).await.is_err());
    assert_eq!(server.received_requests().await.unwrap().len(), 2);
}

#[tokio::test]
async fn keys_serve_for_a_day_while_the_issuer_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let signer = TokenSigner::new("one");
    let set = TokenSigner::key_set(&[&signer]).to_string();
    std::fs::write(&file, &set).unwrap();
    let issuer = issuer("https://i", KeyLocation::File(file.clone()));
    issuer.load().await.unwrap();
    std::fs::remove_file(&file).unwrap();
    let token = signer.sign(&claims("https://i"));
    passes(KEY_RETENTION - Duration::from_secs(10)).await;
    assert!(issuer.verify(&token, *NOW).await.is_ok());
    passes(Duration::from_secs(11)).await;
    assert_eq!(issuer.verify(&token, *NOW).await, Err(Rejection::NoKeys));
    std::fs::write(&file, &set).unwrap();
    assert_eq!(
        issuer.verify(&token, *NOW).await,
        Err(Rejection::NoKeys),
        "a new request is too soon"
    );
    passes(MIN_REQUEST_INTERVAL).await;
    assert!(issuer.verify(&token, *NOW).await.is_ok());
}

#[tokio::test]
async fn keys_are_refreshed_every_few_minutes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let (old, new) = (TokenSigner::new("same"), TokenSigner::new("same"));
    let write = |signer| {
        let set = TokenSigner::key_set(&[signer]).to_string();
        std::fs::write(&file, set).unwrap();
    };
    write(&old);
    let issuer = issuer("https://i", KeyLocation::File(file.clone()));
    issuer.load().await.unwrap();
    write(&new);
    let token = new.sign(&claims("https://i"));
    assert_eq!(issuer.verify(&token, *NOW).await, Err(Rejection::Signature));
    tokio::time::pause();
    let renewed = async {
        while issuer.verify(&token, *NOW).await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = issuer.refresh_forever() => unreachable!("the refresh never ends"),
        () = renewed => {}
    }
}

#[tokio::test]
async fn invalid_or_unreachable_key_sets_yield_no_keys() {
    let at = |server: &MockServer, path: &str| {
        KeyLocation::Url(format!("{}{path}", server.uri()), client())
    };
    let large = ResponseTemplate::new(200).set_body_string(" ".repeat(256 * 1024 + 1));
    let moved = ResponseTemplate::new(302).insert_header("location", "http://example.com/keys");
    let server = serving(vec![
        ("/large", large, 1),
        ("/moved", moved, 1),
        ("/strange", answer(&json!({ "keys": [] })), 1),
        (
            "/a/.well-known/openid-configuration",
            answer(&json!({ "issuer": "https://other", "jwks_uri": "https://i/k" })),
            1,
        ),
    ])
    .await;
    let discovered = format!("{}/a", server.uri());
    let plain =
        json!({ "issuer": format!("{}/b", server.uri()), "jwks_uri": "http://example.com/keys" });
    let mock =
        Mock::given(path("/b/.well-known/openid-configuration")).respond_with(answer(&plain));
    mock.mount(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let token = TokenSigner::new("k").sign(&claims("https://i"));
    let table = [
        issuer("https://i", at(&server, "/large")),
        issuer("https://i", at(&server, "/moved")),
        issuer("https://i", at(&server, "/strange")),
        issuer("https://i", at(&server, "/nothing")),
        issuer(
            "https://i",
            KeyLocation::Url("http://127.0.0.1:1/".to_owned(), client()),
        ),
        issuer(&discovered, KeyLocation::Discovery(client())),
        issuer(
            &format!("{}/b", server.uri()),
            KeyLocation::Discovery(client()),
        ),
    ];
    for issuer in table {
        issuer.load().await.expect("failed requests are tolerated");
        assert_eq!(
            issuer.verify(&token, *NOW).await,
            Err(Rejection::NoKeys),
            "{issuer:?}"
        );
    }
    let missing = issuer(
        "https://i",
        KeyLocation::File(folder.path().join("keys.json")),
    );
    assert!(matches!(missing.load().await, Err(KeysError::File { .. })));
    let plain = Issuer::new(configured(
        "http://example.com",
        KeyLocation::Discovery(client()),
    ));
    assert!(matches!(plain, Err(ConfigError::Url { .. })));
}

/// An issuer with the key `k`, from a file deleted afterwards.
async fn with_key(signer: &TokenSigner) -> Issuer {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, TokenSigner::key_set(&[signer]).to_string()).unwrap();
    let issuer = issuer("https://i", KeyLocation::File(file));
    issuer.load().await.unwrap();
    issuer
}

#[tokio::test]
async fn bad_tokens_are_rejected() {
    let signer = TokenSigner::new("k");
    let issuer = with_key(&signer).await;
    let good = signer.sign(&claims("https://i"));
    assert!(issuer.verify(&good, *NOW).await.is_ok());
    let headed = |header: Value| signer.sign_with(&header, &claims("https://i"));
    let unsigned = good.rsplit_once('.').unwrap().0;
    let mut other_claims = good.split('.').map(str::to_owned).collect::<Vec<_>>();
    other_claims[1] = signer
        .sign(&claims("https://j"))
        .split('.')
        .nth(1)
        .unwrap()
        .to_owned();
    let unknown = "the token is not known";
    let table = [
        (String::new(), unknown),
        ("twc_abc".to_owned(), unknown),
        ("..".to_owned(), unknown),
        (unsigned.to_owned(), unknown),
        (format!("{unsigned}."), unknown),
        (good[..good.len() - 8].to_owned(), unknown),
        (format!("{good}AAAA"), unknown),
        (format!("{good}.AAAA"), unknown),
        (format!(" {good}"), unknown),
        (good.replace('.', "=."), unknown),
        (format!("{good}{}", "A".repeat(16 * 1024)), unknown),
        (other_claims.join("."), unknown),
        (TokenSigner::new("k").sign(&claims("https://i")), unknown),
        (TokenSigner::new("j").sign(&claims("https://i")), unknown),
        (headed(json!({ "alg": "none" })), unknown),
        (headed(json!({ "alg": "HS256", "kid": "k" })), unknown),
        (headed(json!({ "alg": "RS256", "kid": "k" })), unknown),
        (headed(json!({ "alg": "ES384", "kid": "k" })), unknown),
        (headed(json!({ "alg": "es256", "kid": "k" })), unknown),
        (headed(json!({ "alg": ["ES256"], "kid": "k" })), unknown),
        (headed(json!({ "alg": "ES256", "kid": 1 })), unknown),
        (
            headed(json!({ "alg": "ES256", "kid": "k", "crit": ["b64"] })),
            unknown,
        ),
        (
            headed(json!({ "alg": "ES256", "kid": "k", "typ": "logout+jwt" })),
            unknown,
        ),
        (signer.sign(&json!([])), unknown),
        (
            signer.sign(&claims("https://j")),
            "the token is from another issuer",
        ),
        (
            signer.sign(&json!({ "iss": "https://i", "aud": "x" })),
            "the token is for another audience",
        ),
        (
            signer.sign(&json!({ "iss": "https://i", "aud": "twincast" })),
            "a time in the token is missing or not valid",
        ),
    ];
    for (token, shown) in table {
        let rejection = issuer.verify(&token, *NOW).await.unwrap_err();
        assert_eq!(rejection.public_message(), shown, "{token}: {rejection}");
    }
    let later = *NOW + Duration::from_secs(360);
    assert_eq!(issuer.verify(&good, later).await, Err(Rejection::Expired));
    let without_kid = headed(json!({ "alg": "ES256", "typ": "at+jwt" }));
    assert!(issuer.verify(&without_kid, *NOW).await.is_ok());
}

/// A shared secret equal to the text of the public key: a known attack on some libraries.
#[tokio::test]
async fn the_public_key_is_no_secret_to_sign_with() {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let signer = TokenSigner::new("k");
    let issuer = with_key(&signer).await;
    let header = json!({ "alg": "HS256", "typ": "JWT", "kid": "k" });
    let claims = claims("https://i");
    let signed = [&header, &claims]
        .map(|part| encode(part.to_string().as_bytes()))
        .join(".");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, signer.jwk().to_string().as_bytes());
    let token = format!(
        "{signed}.{}",
        encode(ring::hmac::sign(&key, signed.as_bytes()).as_ref())
    );
    let found = "HS256".to_owned();
    assert_eq!(
        issuer.verify(&token, *NOW).await,
        Err(Rejection::Algorithm { found })
    );
}

proptest! {
    /// Every input gets an answer, and no changed token stays valid.
    #[test]
    fn arbitrary_and_changed_tokens_are_rejected(any in ".{0,200}", at in 0..10_000_usize, to in any::<char>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let signer = TokenSigner::new("k");
            let issuer = with_key(&signer).await;
            let good = signer.sign(&claims("https://i"));
            let mut changed: Vec<char> = good.chars().collect();
            let at = at % changed.len();
            changed[at] = to;
            let changed: String = changed.into_iter().collect();
            prop_assert!(issuer.verify(&any, *NOW).await.is_err());
            let parts = [&any[..], &any, &any].map(|part| part.replace('.', ""));
            prop_assert!(issuer.verify(&parts.join("."), *NOW).await.is_err());
            prop_assert!(changed == good || issuer.verify(&changed, *NOW).await.is_err());
            let strange = signer.sign(&json!({ "iss": any.clone(), "aud": [any.clone()], "exp": any }));
            prop_assert!(issuer.verify(&strange, *NOW).await.is_err());
            Ok(())
        })?;
    }
}
