//! A master and its replica, watched by sentinels, over TLS and with passwords.

use std::time::{Duration, Instant};

use twincast_core::error::describe;
use twincast_core::ports::{Batches as _, Rollouts as _};
use twincast_redis::{ConnectError, RedisStore, Settings, Topology};
use twincast_secret::{Secret, SecretSource};
use twincast_testkit::build::{accepted, name};
use twincast_testkit::services::{Certificate, SentinelRedis};

use crate::common::{connect, patient, prefix};
use crate::interposer;

/// How long a failover may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);

fn fixed(url: impl Into<String>) -> SecretSource {
    SecretSource::Fixed(Secret::new(url))
}

fn settings(sentinel_redis: &SentinelRedis) -> Settings {
    Settings {
        topology: Topology::Sentinels(fixed(sentinel_redis.sentinel_url())),
        tls_name: Some(Certificate::NAME.to_owned()),
        ca: Some(sentinel_redis.ca()),
        prefix: prefix(),
        ..patient(Settings::new(sentinel_redis.url()))
    }
}

/// Repeats a write until the server accepts the write.
async fn until_written(store: &RedisStore) {
    let started_at = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(started_at.elapsed() < TIMEOUT, "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The master is killed first; then the new master is demoted while a sentinel is away.
#[tokio::test]
async fn the_new_master_is_found_after_a_failover() {
    let sentinel_redis = SentinelRedis::start(&[]).await;
    let store = connect(&settings(&sentinel_redis)).await;
    assert_eq!(store.durable_after(), Duration::from_secs(2));
    store.create(&accepted("before")).await.unwrap();

    let [first, second] = sentinel_redis.servers();
    first.kill().await;
    until_written(&store).await;
    assert!(second.is_master().await);
    store.create(&accepted("between")).await.unwrap();
    first.start_stopped().await;
    sentinel_redis.ready().await;

    sentinel_redis.sentinels()[0].stop().await;
    let failover = format!("SENTINEL FAILOVER {}", SentinelRedis::NAME);
    let started_at = Instant::now();
    // A sentinel refuses a failover while the replica seems unavailable, or another is under way.
    while sentinel_redis.sentinels()[1].command(&failover).await != "+OK\r\n" {
        assert!(started_at.elapsed() < TIMEOUT);
    }
    while !first.is_master().await || second.is_master().await {
        assert!(started_at.elapsed() < TIMEOUT);
        // Calls continue during the failover.
        store.ping().await.ok();
    }
    until_written(&store).await;
    store.create(&accepted("after")).await.unwrap();
    let names = ["after", "before", "between"].map(name);
    assert_eq!(store.rollouts().await.unwrap(), names);
}

/// Errors name mistakes in user, password, name and certificate, for sentinels and for servers.
#[tokio::test]
async fn sentinel_errors_are_reported() {
    let sentinel_redis = SentinelRedis::start(&[]).await;
    sentinel_redis.set_down_after(TIMEOUT).await;
    let good = settings(&sentinel_redis);
    let with = |from: &str, to: &str| Settings {
        url: fixed(sentinel_redis.url().replace(from, to)),
        topology: Topology::Sentinels(fixed(sentinel_redis.sentinel_url().replace(from, to))),
        ..good.clone()
    };
    let by_host = Settings {
        tls_name: None,
        ..good.clone()
    };
    for (settings, is_refused, named) in [
        (
            with("engine-pass", "wr0ng"),
            true,
            "refuses user or password: Password authentication failed",
        ),
        (
            with("asker-password", "wr0ng"),
            true,
            "the sentinel refuses",
        ),
        (
            with(&format!("asker:{}@", SentinelRedis::SENTINEL_PASSWORD), ""),
            false,
            "get-master-addr-by-name",
        ),
        (
            with("fleet-store", "fleet"),
            false,
            "knows no master \"fleet\"",
        ),
        (by_host, false, "certificate"),
    ] {
        let error = RedisStore::connect(&settings).await.expect_err(named);
        let message = describe(&error);
        assert!(message.contains(named), "{message}");
        assert_eq!(
            matches!(error, ConnectError::Refused { .. }),
            is_refused,
            "{message}"
        );
        for secret in ["wr0ng", "pass,word", "asker-password"] {
            assert!(
                !format!("{message} {error:?}").contains(secret),
                "{message}"
            );
        }
    }
    // A sentinel that missed a failover leads to a replica, and is skipped.
    let port = sentinel_redis.servers()[1].tls_port().to_string();
    let answer = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
    let behind = interposer::answering("SENTINEL", answer).await;
    let by = |urls: String| Settings {
        topology: Topology::Sentinels(fixed(urls)),
        ..good.clone()
    };
    let error = RedisStore::connect(&by(format!("redis://{behind}"))).await;
    let message = describe(&error.expect_err("the replica is refused"));
    assert!(message.contains("is a replica"), "{message}");
    connect(&by(format!(
        "redis://{behind},{}",
        sentinel_redis.sentinel_url()
    )))
    .await;

    // A single sentinel is enough.
    for sentinel in &sentinel_redis.sentinels()[..2] {
        sentinel.stop().await;
    }
    connect(&good).await;
}

/// The settings of the master bound how long a master without replicas takes writes.
#[tokio::test]
async fn durable_after_follows_the_min_replicas_settings() {
    let sentinel_redis = SentinelRedis::start(&["--appendfsync", "always"]).await;
    sentinel_redis.set_down_after(TIMEOUT).await;
    let [master, _] = sentinel_redis.servers();
    let durable_after = async || connect(&settings(&sentinel_redis)).await.durable_after();
    assert_eq!(durable_after().await, Duration::from_secs(2));
    master.command("CONFIG SET min-replicas-to-write 1").await;
    master.command("CONFIG SET min-replicas-max-lag 4").await;
    assert_eq!(durable_after().await, Duration::from_secs(5));
}
