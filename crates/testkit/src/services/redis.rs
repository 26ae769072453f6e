//! Redis for tests: a single server, and a cluster of three.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::{Proxy, ROOT, Service};

/// The time limit for the agreement of a cluster. Two seconds are usual.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A Redis server with an append-only file, synced each second by default, and without eviction of
/// data.
#[derive(Debug)]
pub struct Redis(Service);

impl Redis {
    /// Returns the server shared by all tests of this process; all tests share the data. Each write
    /// is on disk before the acknowledgement, so no test waits for durability.
    ///
    /// # Panics
    /// If the server cannot be started, as [`Redis::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Redis> = OnceCell::const_new();
        SHARED
            .get_or_init(|| Self::start(&["--appendfsync", "always"]))
            .await
    }

    /// Starts a new server and waits until it is ready. The options are options of `redis-server`,
    /// such as `["--appendfsync", "always"]`. The server ends on drop.
    ///
    /// # Panics
    /// If the server cannot be installed or started, with the output of the script.
    pub async fn start(options: &[&str]) -> Self {
        Self(Service::start("redis-start", options).await)
    }

    /// Starts a new sentinel with these lines in the configuration, and waits until it is ready.
    pub(super) async fn sentinel(lines: &[&str]) -> Self {
        Self(Service::start("sentinel-start", lines).await)
    }

    /// Returns the port for TLS of a server with a [`Certificate`].
    ///
    /// # Panics
    /// Without a certificate.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.0.port("tls_port")
    }

    /// Returns the server's address, unchanged by a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Returns `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Returns the server's URL through a proxy.
    #[must_use]
    pub fn url_via(&self, proxy: &Proxy) -> String {
        format!("redis://{}", proxy.address())
    }

    /// Returns the folder of the server's data and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.dir
    }

    /// Stops the server in good order: all accepted writes are on disk. Does nothing if the server
    /// is stopped.
    ///
    /// # Panics
    /// If the script fails, with the script's output, as all following methods.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// Kills the server: the writes of the last second may be lost.
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

    /// Sends a command in a single line, and returns the answer in the form of the wire protocol.
    ///
    /// # Panics
    /// If the server cannot be reached, or breaks the connection off.
    pub async fn command(&self, command: &str) -> String {
        let answer = self.try_command(command).await;
        answer.unwrap_or_else(|error| panic!("{}: {command}: {error}", self.url()))
    }

    /// Returns whether the server reports to be a master. A server closes connections during a
    /// promotion or demotion; a closed connection counts as no.
    pub async fn is_master(&self) -> bool {
        let role = self.try_command("ROLE").await;
        role.is_ok_and(|role| role.contains("master"))
    }

    pub(super) async fn try_command(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address()).await?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await?;
        // The server closes after the answer, so the answer ends without a parser. (A sentinel has
        // no QUIT.)
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// A certificate for [`Certificate::NAME`] and `localhost`, and for no address.
#[derive(Debug, Clone)]
pub struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// The first name in the certificate.
    pub const NAME: &str = "redis.test";

    /// Creates a certificate, in files removed with the process.
    ///
    /// # Panics
    /// If the certificate cannot be made or written.
    #[must_use]
    pub fn new() -> Self {
        let folder = ROOT.shared_folder();
        let names = [Self::NAME.to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text);
        write("cert.pem", made.cert.pem()).expect("the file is writable");
        write("key.pem", made.signing_key.serialize_pem()).expect("the file is writable");
        Self { folder }
    }

    /// Returns the certificate, also the authority for clients to trust.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    /// Returns the options of a server with the certificate, also towards other servers.
    #[must_use]
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("tls-cert-file", path("cert.pem")),
            ("tls-key-file", path("key.pem")),
            ("tls-ca-cert-file", path("cert.pem")),
            ("tls-auth-clients", "no".to_owned()),
            ("tls-replication", "yes".to_owned()),
        ]
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}

/// A cluster of three masters on this machine, sharing all slots, without replicas.
#[derive(Debug)]
pub struct RedisCluster([Redis; 3]);

impl RedisCluster {
    /// Returns the cluster shared by all tests of this process.
    ///
    /// # Panics
    /// If the cluster cannot be started, as [`RedisCluster::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a new cluster and waits until it is ready. The cluster ends on drop.
    ///
    /// # Panics
    /// If a node cannot be started, or the nodes do not agree within a minute.
    pub async fn start() -> Self {
        Self::of(&[], Redis::address).await
    }

    /// Starts a new cluster with TLS between the nodes. The nodes announce addresses and ports for
    /// TLS.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub async fn start_with_tls(certificate: &Certificate) -> Self {
        let mut options = vec!["--tls-cluster".to_owned(), "yes".to_owned()];
        for (name, value) in certificate.options() {
            options.extend([format!("--{name}"), value]);
        }
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        Self::of(&options, |node| {
            (Ipv4Addr::LOCALHOST, node.tls_port()).into()
        })
        .await
    }

    async fn of(options: &[&str], address: impl Fn(&Redis) -> SocketAddr) -> Self {
        let all = ["--cluster-enabled", "yes"];
        let options = [&all, options].concat();
        let node = || Redis::start(&options);
        let (a, b, c) = tokio::join!(node(), node(), node());
        let cluster = Self([a, b, c]);
        let slots = ["0 5460", "5461 10922", "10923 16383"];
        for (node, (slots, epoch)) in cluster.nodes().iter().zip(slots.iter().zip(1..)) {
            assert_ok(
                &node
                    .command(&format!("CLUSTER ADDSLOTSRANGE {slots}"))
                    .await,
            );
            // Nodes all starting in epoch 0 would agree on distinct epochs only after some time.
            assert_ok(
                &node
                    .command(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}"))
                    .await,
            );
        }
        let [first, others @ ..] = cluster.nodes();
        for other in others {
            let (port, bus) = (address(other).port(), other.0.port("bus_port"));
            assert_ok(
                &first
                    .command(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}"))
                    .await,
            );
        }
        cluster.ready().await;
        cluster
    }

    /// Returns the nodes. Each node can be stopped and killed separately.
    #[must_use]
    pub fn nodes(&self) -> &[Redis; 3] {
        &self.0
    }

    /// Returns the nodes' URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(Redis::url).collect()
    }

    /// Waits until every node sees three nodes and all slots served, as after a node's restart.
    ///
    /// # Panics
    /// After five minutes, or when a node is down.
    pub async fn ready(&self) {
        let start = Instant::now();
        for node in &self.0 {
            loop {
                let info = node.command("CLUSTER INFO").await;
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                    break;
                }
                assert!(
                    start.elapsed() < AGREEMENT_TIMEOUT,
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
