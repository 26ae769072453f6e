//! Which servers are accepted, and how servers are reached.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use twincast_core::error::describe;
use twincast_core::permits::PermitRequest;
use twincast_core::ports::{Batches as _, Limiter as _, Rollouts as _};
use twincast_redis::{ConnectError, RedisStore, Settings};
use twincast_testkit::build::{accepted, hub, name};
use twincast_testkit::services::Redis;

use crate::common::{self, MANAGED, connect, patient, prefix, settings};
use crate::interposer::{self, Refusals};

async fn refused(settings: &Settings) -> ConnectError {
    RedisStore::connect(settings)
        .await
        .expect_err("the settings are refused")
}

#[tokio::test]
async fn evicting_server_is_refused() {
    let redis = Redis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let error = refused(&settings(&redis)).await;
    assert!(matches!(error, ConnectError::Evicts { .. }), "{error:?}");
    assert!(error.to_string().contains("noeviction"), "{error}");
    // Evicts only keys with a time to live, and no key of the store has a time to live.
    redis
        .command("CONFIG SET maxmemory-policy volatile-lru")
        .await;
    connect(&settings(&redis)).await;
}

#[tokio::test]
async fn unreachable_server_is_reported_with_address() {
    let redis = Redis::start(&[]).await;
    let settings = settings(&redis);
    redis.stop().await;
    let error = refused(&settings).await;
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains(&redis.address().to_string()),
        "{error}"
    );
}

/// The store connects with the user's rights, which may be few, and errors never show the password.
#[tokio::test]
async fn users_and_passwords_are_taken_from_the_url() {
    let redis = Redis::start(&[]).await;
    redis
        .command("ACL SETUSER app on >s3cret ~test-* +@all -@admin -info")
        .await;
    redis
        .command("ACL SETUSER poor on >s3cret ~test-* +@all -@scripting")
        .await;
    redis.command("ACL SETUSER default off").await;
    let with = |user: &str, password: &str| Settings {
        prefix: prefix(),
        ..patient(Settings::new(format!(
            "redis://{user}:{password}@{}",
            redis.address()
        )))
    };
    let store = connect(&with("app", "s3cret")).await;
    store.create(&accepted("r")).await.unwrap();

    let poor = refused(&with("poor", "s3cret")).await;
    assert!(matches!(poor, ConnectError::NoScripts { .. }), "{poor:?}");
    let wrong = refused(&with("app", "wr0ng")).await;
    assert!(matches!(wrong, ConnectError::Refused { .. }), "{wrong:?}");
    for error in [poor, wrong] {
        let message = format!("{} {error:?}", describe(&error));
        assert!(
            !message.contains("s3cret") && !message.contains("wr0ng"),
            "{message}"
        );
    }
}

/// Refusals may have either wording. The store then uses the default time until writes are durable,
/// and grants permits.
#[tokio::test]
async fn server_without_introspection_commands_is_accepted() {
    let unknown = |name: &str| format!("-ERR unknown command '{name}'\r\n");
    let denied = |name: &str| {
        format!("-NOPERM this user has no permissions to run the '{name}' command\r\n")
    };
    for answer in [unknown, denied] {
        let refusals = Refusals {
            commands: MANAGED,
            answer,
        };
        let address = interposer::start(common::as_documented().await, refusals).await;
        let settings = Settings {
            prefix: prefix(),
            ..patient(Settings::new(format!("redis://engine:secret@{address}")))
        };
        let store = connect(&settings).await;
        assert_eq!(store.durable_after(), Duration::from_secs(2));
        let request = PermitRequest {
            hub: hub("main"),
            max_permits: 1,
            per_minute: 600.0,
            rollout: name("r"),
            weight: 1,
            limit: None,
        };
        let grant = store.take_permits(&request).await.unwrap();
        assert_eq!(grant.permits, 1);
    }
}

/// The store trusts the CA of the settings, and no other CA.
#[tokio::test]
async fn tls_trusts_the_given_ca_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(file("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(file("none.pem"), "nothing").unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let redis = Redis::start(&[
        "--tls-cert-file",
        &text(file("cert.pem")),
        "--tls-key-file",
        &text(file("key.pem")),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let with = |ca: Option<&str>| Settings {
        ca: ca.map(&file),
        prefix: prefix(),
        ..patient(Settings::new(format!(
            "rediss://localhost:{}",
            redis.tls_port()
        )))
    };
    let store = connect(&with(Some("cert.pem"))).await;
    store.create(&accepted("r")).await.unwrap();

    let stranger = refused(&with(None)).await;
    assert!(
        matches!(stranger, ConnectError::Unreachable { .. }),
        "{stranger:?}"
    );
    assert!(stranger.source().is_some());
    for ca in ["none.pem", "missing.pem"] {
        let error = refused(&with(Some(ca))).await;
        assert!(matches!(error, ConnectError::Authorities(_)), "{error:?}");
    }
}
