//! A Redis with a replica, and sentinels that promote the replica.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Certificate, Redis};

/// The time limit for synchronisation and for the agreement of the sentinels. Two seconds are
/// usual.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(300);
/// The rights of the default user, for queries by tests, less the rights reserved for clients with
/// a password.
const OPEN: &str = "on nopass ~* &* +@all";

/// Two servers, a master and a replica, and three sentinels.
///
/// Servers and sentinels use TLS among themselves and with clients, with a certificate for a name,
/// and announce addresses. Only the user `engine` with [`SentinelRedis::PASSWORD`] may run scripts
/// on the servers; only the user `asker` with [`SentinelRedis::SENTINEL_PASSWORD`] may ask the
/// sentinels for the master.
#[derive(Debug)]
pub struct SentinelRedis {
    servers: [Redis; 2],
    sentinels: [Redis; 3],
    certificate: Certificate,
}

impl SentinelRedis {
    /// The password of `engine`.
    pub const PASSWORD: &str = "engine-pass,word";
    /// The password of `asker`.
    pub const SENTINEL_PASSWORD: &str = "asker-password";
    /// The time of silence after which the master counts as dead at first. A sentinel checks once a
    /// second: below two seconds, a new master counts as dead.
    pub const DOWN_AFTER: Duration = Duration::from_millis(2_500);
    /// The sentinels' name of the master.
    pub const NAME: &str = "fleet-store";

    /// Starts all processes, with further options for the servers, and waits until the replica can
    /// be promoted. The processes end on drop.
    ///
    /// # Panics
    /// If a process cannot be started, or the sentinels do not agree within five minutes.
    pub async fn start(options: &[&str]) -> Self {
        let certificate = Certificate::new();
        let engine = format!("engine on >{} ~* &* +@all", Self::PASSWORD);
        let mut shared: Vec<String> = [
            &format!("--user default {OPEN} -eval -evalsha"),
            &format!("--user {engine}"),
            "--user replica on >replica-password +psync +replconf +ping",
            "--masteruser replica --masterauth replica-password",
            // Synchronisation begins at once.
            "--repl-diskless-sync-delay 0",
        ]
        .iter()
        .flat_map(|option| option.split(' ').map(str::to_owned))
        .collect();
        for (name, value) in certificate.options() {
            shared.extend([format!("--{name}"), value]);
        }
        shared.extend(options.iter().map(ToString::to_string));
        let shared: Vec<_> = shared.iter().map(String::as_str).collect();
        let first = Redis::start(&shared).await;
        let port = first.tls_port().to_string();
        let second =
            Redis::start(&[&shared[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;

        let name = Self::NAME;
        let mut lines = vec![
            format!("user default {OPEN} -sentinel|get-master-addr-by-name"),
            format!("user asker on >{} ~* &* +@all", Self::SENTINEL_PASSWORD),
            format!("sentinel monitor {name} 127.0.0.1 {port} 2"),
            format!("sentinel auth-user {name} engine"),
            format!("sentinel auth-pass {name} {}", Self::PASSWORD),
            format!(
                "sentinel down-after-milliseconds {name} {}",
                Self::DOWN_AFTER.as_millis()
            ),
            format!("sentinel failover-timeout {name} 5000"),
        ];
        lines.extend(
            certificate
                .options()
                .into_iter()
                .map(|(name, value)| format!("{name} {value}")),
        );
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let sentinel = || Redis::sentinel(&lines);
        let (a, b, c) = tokio::join!(sentinel(), sentinel(), sentinel());
        let sentinel_redis = Self {
            servers: [first, second],
            sentinels: [a, b, c],
            certificate,
        };
        sentinel_redis.ready().await;
        sentinel_redis
    }

    /// `rediss://` with user, password and the master's name.
    #[must_use]
    pub fn url(&self) -> String {
        format!("rediss://engine:{}@{}", Self::PASSWORD, Self::NAME)
    }

    /// The sentinels' URLs.
    #[must_use]
    pub fn sentinel_url(&self) -> String {
        let url = |sentinel: &Redis| {
            let (password, port) = (Self::SENTINEL_PASSWORD, sentinel.tls_port());
            format!("rediss://asker:{password}@localhost:{port}")
        };
        self.sentinels.each_ref().map(url).join(",")
    }

    /// Returns the certificate authority to trust. The certificates of the servers are for
    /// [`Certificate::NAME`].
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.certificate.file()
    }

    /// Returns both servers. The first was the master at the start.
    #[must_use]
    pub fn servers(&self) -> &[Redis; 2] {
        &self.servers
    }

    /// Returns the sentinels. Each sentinel can be stopped and killed separately.
    #[must_use]
    pub fn sentinels(&self) -> &[Redis; 3] {
        &self.sentinels
    }

    /// Sets the time of silence after which the master counts as dead.
    ///
    /// # Panics
    /// When a sentinel is down.
    pub async fn set_down_after(&self, silence: Duration) {
        let (name, ms) = (Self::NAME, silence.as_millis());
        let set = format!("SENTINEL SET {name} down-after-milliseconds {ms}");
        for sentinel in &self.sentinels {
            assert_eq!(sentinel.command(&set).await, "+OK\r\n");
        }
    }

    /// Waits until both servers run, one as a synchronised replica, and all sentinels know both.
    ///
    /// # Panics
    /// After five minutes, or when a process is down.
    pub async fn ready(&self) {
        let start = Instant::now();
        for sentinel in &self.sentinels {
            loop {
                let answer = sentinel
                    .command(&format!("SENTINEL CKQUORUM {}", Self::NAME))
                    .await;
                let masters = sentinel.command("INFO sentinel").await;
                if answer.starts_with("+OK 3 usable")
                    && masters.contains("status=ok")
                    && masters.contains("slaves=1,sentinels=3")
                {
                    break;
                }
                assert!(
                    start.elapsed() < AGREEMENT_TIMEOUT,
                    "sentinels do not agree: {answer} {masters}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        loop {
            let mut is_linked = false;
            for server in &self.servers {
                // A server closes connections during a demotion.
                let info = server.try_command("INFO replication").await;
                is_linked |= info.is_ok_and(|info| info.contains("master_link_status:up"));
            }
            if is_linked {
                break;
            }
            assert!(
                start.elapsed() < AGREEMENT_TIMEOUT,
                "the replica is not connected to the master"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
