//! Passwords that change while a store is connected, and tokens that expire.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use twincast_core::error::describe;
use twincast_core::ports::{Rollouts as _, StoreError};
use twincast_redis::{
    ConnectError, Credentials, CredentialsProvider, RedisStore, Settings, Topology,
};
use twincast_secret::{Secret, SecretSource};
use twincast_testkit::build::name;
use twincast_testkit::services::{Redis, RedisCluster};

use crate::common::{connect, patient, prefix};

fn in_file(path: &Path, topology: Topology) -> Settings {
    Settings {
        url: SecretSource::File {
            setting: "redis.url_file".to_owned(),
            path: path.to_owned(),
        },
        topology,
        prefix: prefix(),
        ..patient(Settings::new(""))
    }
}

/// Replaces a user's password, and ends the user's connections.
async fn rotate(server: &Redis, to: &str) {
    let set = format!("ACL SETUSER app on resetpass >{to} ~* +@all");
    assert_eq!(server.command(&set).await, "+OK\r\n");
    server.command("CLIENT KILL USER app").await;
}

async fn until_back(store: &RedisStore) {
    let started_at = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(started_at.elapsed() < Duration::from_secs(120), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the number of connections so far; each call makes a further connection.
async fn connections(server: &Redis) -> u64 {
    let info = server.command("INFO stats").await;
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("total_connections_received:"));
    count.unwrap().trim().parse().unwrap()
}

/// The first call after the change of the file succeeds; before the change, the store tries a
/// connection at most once a second.
#[tokio::test]
async fn changed_password_is_reread() {
    let redis = Redis::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    let write = |password: &str| {
        std::fs::write(
            &path,
            format!("redis://app:{password}@{}\n", redis.address()),
        )
        .unwrap();
    };
    rotate(&redis, "one").await;
    write("one");
    let store = connect(&in_file(&path, Topology::Single)).await;

    // The file changes first: no call fails.
    write("two");
    rotate(&redis, "two").await;
    store.ping().await.unwrap();

    // The server changes first: calls fail until the file has the password.
    rotate(&redis, "three").await;
    let before = connections(&redis).await;
    let started_at = Instant::now();
    let mut calls = 0;
    while calls <= 50 || started_at.elapsed() < Duration::from_millis(2_500) {
        let answer = store.ping().await;
        assert!(
            matches!(answer, Err(StoreError::Unavailable { .. })),
            "{answer:?}"
        );
        calls += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let tried = connections(&redis).await - before - 1;
    let most = 1 + started_at.elapsed().as_secs();
    assert!(
        (1..=most).contains(&tried),
        "{calls} calls, {tried} tries, at most {most}"
    );
    write("three");
    until_back(&store).await;

    // The store waits for a missing file.
    std::fs::remove_file(&path).unwrap();
    store.ping().await.unwrap();
    redis.command("CLIENT KILL USER app").await;
    let answer = store.ping().await;
    assert!(
        matches!(answer, Err(StoreError::Unavailable { .. })),
        "{answer:?}"
    );
    write("three");
    until_back(&store).await;

    // At the start a refusal is an error.
    write("wrong");
    let error = RedisStore::connect(&in_file(&path, Topology::Single)).await;
    assert!(
        matches!(error, Err(ConnectError::Refused { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn password_changed_on_all_nodes_is_reread() {
    let cluster = RedisCluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    let write = |password: &str| {
        let url = |node: &Redis| format!("redis://app:{password}@{}", node.address());
        std::fs::write(&path, cluster.nodes().each_ref().map(url).join(",")).unwrap();
    };
    let rotate_all = async |to: &str| {
        for node in cluster.nodes() {
            rotate(node, to).await;
        }
    };
    rotate_all("one").await;
    write("one");
    let settings = in_file(&path, Topology::Cluster);
    let store = connect(&settings).await;
    for (password, is_file_first) in [("two", true), ("three", false)] {
        if is_file_first {
            write(password);
        }
        rotate_all(password).await;
        if !is_file_first {
            let answer = store.ping().await;
            assert!(
                matches!(answer, Err(StoreError::Unavailable { .. })),
                "{answer:?}"
            );
            write(password);
        }
        until_back(&store).await;
    }
    // The store is connected to a single node only: the connections to the other nodes would use
    // the former password.
    write("four");
    for node in cluster.nodes() {
        let set = "ACL SETUSER app on resetpass >four ~* +@all";
        assert_eq!(node.command(set).await, "+OK\r\n");
    }
    cluster.nodes()[1].command("CLIENT KILL USER app").await;
    let started_at = Instant::now();
    for number in 0..12 {
        let name = name(&format!("r{number}"));
        while let Err(error) = store.revision(&name).await {
            assert!(started_at.elapsed() < Duration::from_secs(120), "{error:?}");
        }
    }

    write("wrong");
    let error = RedisStore::connect(&settings).await;
    assert!(
        matches!(error, Err(ConnectError::Refused { .. })),
        "{error:?}"
    );
}

/// Tokens for a user that expire after a time.
struct Tokens {
    life: Duration,
    /// The time of each token.
    given: Mutex<Vec<Instant>>,
    refused: AtomicU32,
    fails: Mutex<bool>,
}

#[async_trait]
impl CredentialsProvider for Tokens {
    async fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
        if *self.fails.lock().unwrap() {
            return Err("the issuer of tokens is away".into());
        }
        let mut given = self.given.lock().unwrap();
        let number = given.len();
        given.push(Instant::now());
        Ok(Credentials {
            user: "app".to_owned(),
            password: Secret::new(format!("token-{number}")),
            expires_at: Some(SystemTime::now() + self.life),
        })
    }

    fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection is replaced before the token expires, and no call fails.
#[tokio::test]
async fn connection_is_renewed_before_the_token_expires() {
    let redis = Redis::start(&[]).await;
    let passwords: String = (0..64).map(|number| format!(">token-{number} ")).collect();
    redis
        .command(&format!("ACL SETUSER app on {passwords} ~* +@all"))
        .await;
    let tokens = Arc::new(Tokens {
        life: Duration::from_secs(2),
        given: Mutex::default(),
        refused: AtomicU32::new(0),
        fails: Mutex::new(false),
    });
    let settings = Settings {
        credentials: Some(Arc::clone(&tokens) as _),
        prefix: prefix(),
        ..patient(Settings::new(redis.url()))
    };
    let store = connect(&settings).await;
    let (mut ended, mut last) = (0, Instant::now());
    loop {
        store.ping().await.unwrap();
        let given = tokens.given.lock().unwrap().clone();
        if given.len() > 4 {
            let is_early = |pair: &[Instant]| pair[1] - pair[0] < tokens.life / 2;
            assert!(!given.windows(2).any(is_early), "{given:?}");
            break;
        }
        let is_over = given.last().unwrap().elapsed() > tokens.life;
        // On a busy machine, the store cannot renew in time.
        let was_busy = last.elapsed() > Duration::from_millis(200);
        assert!(was_busy || !is_over, "the store uses an expired token");
        last = Instant::now();
        // Like the service, the server refuses a token after the expiry.
        if given.len() > ended + 1 {
            redis
                .command(&format!("ACL SETUSER app <token-{ended}"))
                .await;
            ended += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // Without a new token, the last token serves for as long as the server accepts the token.
    *tokens.fails.lock().unwrap() = true;
    let started_at = Instant::now();
    while started_at.elapsed() < Duration::from_secs(3) {
        store.ping().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    redis.command("CLIENT KILL USER app").await;
    let error = store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(
        describe(&error).contains("the issuer of tokens is away"),
        "{error:?}"
    );
    *tokens.fails.lock().unwrap() = false;
    until_back(&store).await;

    // The provider is notified of a refusal.
    redis.command("ACL SETUSER app resetpass").await;
    redis.command("CLIENT KILL USER app").await;
    store.ping().await.unwrap_err();
    assert!(tokens.refused.load(Ordering::Relaxed) > 0);
}
