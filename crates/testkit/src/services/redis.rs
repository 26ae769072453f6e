//! A Redis, and a cluster of three.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::{Proxy, ROOT, Service};

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

    /// A new sentinel that is ready, with these lines in its configuration.
    pub(super) async fn sentinel(lines: &[&str]) -> Self {
        Self(Service::start("sentinel-start", lines).await)
    }

    /// The port for TLS of a server with a [`Certificate`].
    ///
    /// # Panics
    /// Without a certificate.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.0.port("tls_port")
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
        let answer = self.try_ask(command).await;
        answer.unwrap_or_else(|error| panic!("asking {}: {command}: {error}", self.url()))
    }

    /// Whether the server says that it is a master. A server that is promoted or demoted closes connections, which counts as
    /// no.
    pub async fn is_master(&self) -> bool {
        let role = self.try_ask("ROLE").await;
        role.is_ok_and(|role| role.contains("master"))
    }

    async fn try_ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address()).await?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await?;
        // The server closes after the answer, so the answer ends without a parser. (A sentinel has no QUIT.)
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

    /// Makes a certificate, in files that are removed with the process.
    ///
    /// # Panics
    /// When the certificate cannot be made or written.
    #[must_use]
    pub fn new() -> Self {
        let folder = ROOT.folder_of_files();
        let names = [Self::NAME.to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text);
        write("cert.pem", made.cert.pem()).expect("a file of ours");
        write("key.pem", made.signing_key.serialize_pem()).expect("a file of ours");
        Self { folder }
    }

    /// The certificate, which is also the authority for clients to trust.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    /// The options of a server with the certificate, also towards other servers.
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
        Self::of(&[], Redis::address).await
    }

    /// A new cluster whose nodes use TLS among themselves, and announce addresses and ports for TLS.
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
        // A node is missed after two seconds, not 15: tests that kill one wait for that.
        let all = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let options = [&all, options].concat();
        let node = || Redis::start(&options);
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
            let (port, bus) = (address(other).port(), other.0.port("bus_port"));
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
