//! RabbitMQ for tests.

use std::net::SocketAddr;
use std::path::Path;

use tokio::sync::OnceCell;

use super::{Proxy, Service};

/// A RabbitMQ server without plugins. A server takes ten seconds to start and 130 MB, so most tests
/// share a server, with distinct names of exchanges and queues.
#[derive(Debug)]
pub struct RabbitMq(Service);

impl RabbitMq {
    /// Returns the server shared by all tests of this process.
    ///
    /// # Panics
    /// If the server cannot be started, as [`RabbitMq::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a new server and waits until it is ready. The server ends on drop.
    ///
    /// # Panics
    /// If the server cannot be installed or started, with the output of the script.
    pub async fn start() -> Self {
        Self(Service::start("rabbitmq-start", &[]).await)
    }

    /// Returns the server's address, unchanged by a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Returns `amqp://guest:guest@127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.address())
    }

    /// Returns the server's URL through a proxy.
    #[must_use]
    pub fn url_via(&self, proxy: &Proxy) -> String {
        url(proxy.address())
    }

    /// Returns the folder of the server's data and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.dir
    }

    /// Stops the server in good order. Does nothing if the server is stopped.
    ///
    /// # Panics
    /// If the script fails, with the script's output, as all following methods.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// Kills the server: confirmed messages are on disk, the rest may be lost.
    pub async fn kill(&self) {
        self.0.kill().await;
    }

    /// Starts the server again on the same port and data, and waits until it is ready.
    pub async fn start_stopped(&self) {
        self.0.start_stopped().await;
    }

    /// Stops the server and starts it again.
    pub async fn restart(&self) {
        self.stop().await;
        self.start_stopped().await;
    }

    /// Drops the ready messages of a queue. Takes a second.
    pub async fn purge(&self, queue: &str) {
        self.ctl(&["purge_queue", queue]).await;
    }

    /// Closes all connections, as an operator does: clients are notified, with code 320. Takes a
    /// second.
    pub async fn close_connections(&self, reason: &str) {
        self.ctl(&["close_all_connections", reason]).await;
    }

    /// Runs `rabbitmqctl` with these arguments, and returns the output. Takes a second.
    ///
    /// # Panics
    /// If `rabbitmqctl` fails, with the output.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.0.run("rabbitmqctl", arguments).await
    }
}

/// A cluster of three nodes. A start takes 15 seconds and 400 MB. All nodes end on drop.
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

    /// Returns the nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RabbitMq] {
        &self.nodes
    }

    /// Returns the URLs of all nodes, with commas between them.
    #[must_use]
    pub fn urls(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(RabbitMq::url).collect();
        urls.join(",")
    }
}

pub(super) fn url(address: SocketAddr) -> String {
    format!("amqp://guest:guest@{address}")
}
