//! A Redis, and a cluster of three.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::{Proxy, Service};

/// How long a cluster may take to agree. It takes two seconds.
const AGREEMENT: Duration = Duration::from_secs(60);

/// A Redis that writes an append-only file, each second if not told otherwise, and forgets nothing for want of memory.
#[derive(Debug)]
pub struct Redis(Service);

impl Redis {
    /// The one that all tests of this process share; its data are whoever's. Each write is on disk before it is
    /// acknowledged, so no test waits for that.
    ///
    /// # Panics
    /// When it cannot be started, as [`Redis::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Redis> = OnceCell::const_new();
        SHARED
            .get_or_init(|| Self::start(&["--appendfsync", "always"]))
            .await
    }

    /// A new one that is ready, with options as `redis-server` takes them, such as
    /// `["--appendfsync", "always"]`. It ends when it is dropped.
    ///
    /// # Panics
    /// When it cannot be installed or started, with what the script said.
    pub async fn start(options: &[&str]) -> Self {
        Self(Service::start("redis-start", options).await)
    }

    /// Where it is, also after a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Its URL by way of a proxy.
    #[must_use]
    pub fn url_via(&self, proxy: &Proxy) -> String {
        format!("redis://{}", proxy.address())
    }

    /// The folder of its data and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.dir
    }

    /// Stops it in good order: what it took is on disk. Nothing if it is stopped.
    ///
    /// # Panics
    /// As all that follow, when the script fails, with what it said.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// Kills it: the last second of what it took may be lost.
    pub async fn kill(&self) {
        self.0.kill().await;
    }

    /// Starts it again on the same port and data, and waits until it is ready.
    pub async fn start_again(&self) {
        self.0.start_again().await;
    }

    /// Stops it and starts it again.
    pub async fn restart(&self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Its answer to a command in one line, as it comes over the wire.
    ///
    /// # Panics
    /// When it is not there, or breaks off.
    pub async fn ask(&self, command: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.address()).await?;
            // After QUIT it closes, which shows the answer's end without a parser.
            stream
                .write_all(format!("{command}\r\nQUIT\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = ask.await;
        let answer =
            answer.unwrap_or_else(|error| panic!("asking {}: {command}: {error}", self.url()));
        answer.strip_suffix("+OK\r\n").unwrap_or(&answer).to_owned()
    }
}

/// Three masters on this machine that share all slots, without replicas.
#[derive(Debug)]
pub struct RedisCluster([Redis; 3]);

impl RedisCluster {
    /// The one that all tests of this process share.
    ///
    /// # Panics
    /// When it cannot be started, as [`RedisCluster::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// A new one that is ready. It ends when it is dropped.
    ///
    /// # Panics
    /// When a node cannot be started, or they do not agree within a minute.
    pub async fn start() -> Self {
        // A node is missed after two seconds, not 15: tests that kill one wait for that.
        let node = || Redis::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        let (a, b, c) = tokio::join!(node(), node(), node());
        let cluster = Self([a, b, c]);
        let slots = ["0 5460", "5461 10922", "10923 16383"];
        for (node, (slots, epoch)) in cluster.nodes().iter().zip(slots.iter().zip(1..)) {
            assert_ok(&node.ask(&format!("CLUSTER ADDSLOTSRANGE {slots}")).await);
            // Nodes that all start in epoch 0 would settle by and by whose turn it is.
            assert_ok(&node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}")).await);
        }
        let [first, others @ ..] = cluster.nodes();
        for other in others {
            let (port, bus) = (other.address().port(), other.0.port("bus_port"));
            assert_ok(
                &first
                    .ask(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}"))
                    .await,
            );
        }
        cluster.ready().await;
        cluster
    }

    /// Its nodes, which can be stopped and killed one by one.
    #[must_use]
    pub fn nodes(&self) -> &[Redis; 3] {
        &self.0
    }

    /// The nodes' URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(Redis::url).collect()
    }

    /// Waits until every node sees three nodes and all slots served, as after a node's restart.
    ///
    /// # Panics
    /// After a minute, or when a node is down.
    pub async fn ready(&self) {
        let start = Instant::now();
        for node in &self.0 {
            loop {
                let info = node.ask("CLUSTER INFO").await;
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                    break;
                }
                assert!(
                    start.elapsed() < AGREEMENT,
                    "the cluster's state is still: {info}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn assert_ok(answer: &str) {
    assert_eq!(answer, "+OK\r\n", "a node of a new cluster refuses");
}
