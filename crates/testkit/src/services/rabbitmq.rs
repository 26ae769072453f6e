//! A RabbitMQ.

use std::net::SocketAddr;
use std::path::Path;

use tokio::sync::OnceCell;

use super::{Proxy, Service};

/// A RabbitMQ without plugins. It takes ten seconds to start and 130 MB, so most tests share one,
/// with names of their own for exchanges and queues.
#[derive(Debug)]
pub struct RabbitMq(Service);

impl RabbitMq {
    /// The one that all tests of this process share.
    ///
    /// # Panics
    /// When it cannot be started, as [`RabbitMq::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// A new one that is ready. It ends when it is dropped.
    ///
    /// # Panics
    /// When it cannot be installed or started, with what the script said.
    pub async fn start() -> Self {
        Self(Service::start("rabbitmq-start", &[]).await)
    }

    /// Where it is, also after a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// `amqp://guest:guest@127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.address())
    }

    /// Its URL by way of a proxy.
    #[must_use]
    pub fn url_via(&self, proxy: &Proxy) -> String {
        url(proxy.address())
    }

    /// The folder of its data and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.dir
    }

    /// Stops it in good order. Nothing if it is stopped.
    ///
    /// # Panics
    /// As all that follow, when the script fails, with what it said.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// Kills it: what it confirmed is on disk, the rest may be lost.
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

    /// Drops the messages that are ready in a queue. Takes a second.
    pub async fn purge(&self, queue: &str) {
        self.ctl(&["purge_queue", queue]).await;
    }

    /// Closes all connections, as an operator does: clients are told, with code 320. Takes a second.
    pub async fn close_connections(&self, reason: &str) {
        self.ctl(&["close_all_connections", reason]).await;
    }

    /// What `rabbitmqctl` says to these arguments. Takes a second.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.0.run("rabbitmqctl", arguments).await
    }
}

/// Three nodes of one cluster. Starting takes 15 seconds and 400 MB. All nodes end when this is dropped.
#[derive(Debug)]
pub struct RabbitMqCluster {
    nodes: Vec<RabbitMq>,
    /// The folder with cookie and epmd. Dropped last.
    _shared: Service,
}

impl RabbitMqCluster {
    /// Starts a cluster, and waits until all nodes are ready.
    ///
    /// # Panics
    /// As [`RabbitMq::start`].
    pub async fn start() -> Self {
        let shared = Service::folder();
        let folder = shared.dir.to_string_lossy().into_owned();
        let node = async || {
            let options = ["--cluster", &folder];
            RabbitMq(Service::start("rabbitmq-start", &options).await)
        };
        // The first node makes the cluster, and the other nodes join.
        let first = node().await;
        let (second, third) = tokio::join!(node(), node());
        Self {
            nodes: vec![first, second, third],
            _shared: shared,
        }
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RabbitMq] {
        &self.nodes
    }

    /// The URLs of all nodes, with commas between them.
    #[must_use]
    pub fn urls(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(RabbitMq::url).collect();
        urls.join(",")
    }
}

fn url(address: SocketAddr) -> String {
    format!("amqp://guest:guest@{address}")
}
