//! Restrictive networks: a single open port, reachable through a proxy.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;
use tokio::net::TcpSocket;
use twincast_testkit::services::refusing_address;

use crate::harness::{Fleet, Hub, Room, assert_report_matches, eventually};

const DEVICES: u64 = 2_000;

/// A real proxy with tunnels to a single port, for a user with a password.
struct HttpProxy {
    process: Option<Child>,
    folder: TempDir,
    port: u16,
}

impl HttpProxy {
    fn start(allowed: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let conf = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Connect\nLogFile \"{}\"\n\
             BasicAuth ann s3cr3t\nConnectPort {allowed}\n",
            path("access.log"),
        );
        std::fs::write(folder.path().join("tinyproxy.conf"), conf).expect("the folder is writable");
        let mut proxy = Self {
            process: None,
            folder,
            port,
        };
        proxy.up();
        proxy
    }

    fn up(&mut self) {
        let process = Command::new("tinyproxy")
            .args(["-d", "-c"])
            .arg(self.file("tinyproxy.conf"))
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("tinyproxy is installed"));
        eventually("the proxy", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a child can be killed");
            process.wait().expect("the process has ended");
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("access.log")).unwrap_or_default()
    }

    fn url(&self, password: &str) -> String {
        format!("http://ann:{password}@127.0.0.1:{}", self.port)
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.down();
    }
}

/// Returns a free port below the ports of outgoing connections, which could take the port while the
/// proxy restarts. Each call of a process begins elsewhere, and so do most processes.
fn free_port() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 100).expect("below 100");
    let first = 20_000 + 100 * process + 10 * CALLS.fetch_add(1, Ordering::Relaxed);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..32_000).find(is_free).expect("a free port")
}

/// Creates a folder with access to the hub's HTTPS port only; the socket keeps the port of AMQP
/// closed.
fn room(hub: &Hub, more: &str) -> (Room, TcpSocket) {
    let (closed, socket) = refusing_address();
    let room = Room::configured(&format!(
        "[hubs.emulator]\nconnection_string_file = \"{}\"\nca_file = \"{}\"\namqp_port = {}\nhttps_port = {}\n\
         unlimited = true\nquery_lag = \"0s\"\n{more}",
        hub.folder().join("connection-string").display(),
        hub.ca().display(),
        closed.port(),
        hub.https_port(),
    ));
    (room, socket)
}

#[test]
fn a_rollout_over_a_proxy_survives_a_proxy_restart() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let mut proxy = HttpProxy::start(hub.https_port());
    let (room, _closed) = room(&hub, "");
    let room = room.set("HTTPS_PROXY", &proxy.url("s3cr3t"));
    let spec = room.rollout("proxied", "rate: 18000/min");
    let mut run = room.start(&["--log", "info", "run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted >= DEVICES / 3).then_some(())
    });
    proxy.down();
    proxy.up();
    let ended = run.wait().expect(0);
    assert!(ended.stderr.contains("amqp_ws"), "{ended}");
    assert!(!ended.stderr.contains("s3cr3t"), "{ended}");
    let report = room.run(&["--json", "report", "proxied"]).expect(0).json();
    let rows: Vec<_> = serde_json::from_value(report["devices_list"].clone()).expect("rows");
    assert_report_matches(&rows, &hub.message_log());
    assert!(rows.len() as u64 == DEVICES);
    let tunnels = format!("CONNECT localhost:{}", hub.https_port());
    assert!(
        proxy.log().matches(&tunnels).count() >= 2,
        "{}",
        proxy.log()
    );
}

#[test]
fn a_refusing_proxy_is_named() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let proxy = HttpProxy::start(hub.https_port());
    let wrong = proxy.url("wr0ng");
    let (room, _closed) = room(
        &hub,
        &format!("proxy = \"{wrong}\"\n[run]\ngive_up_after = \"2s\"\n"),
    );
    let spec = room.rollout("refused", "");
    let ended = room.run(&["run", &spec]).expect(5).says(&["proxy"]);
    assert!(!ended.stderr.contains("wr0ng"), "{ended}");
}

#[test]
fn a_configured_transport_has_no_fallback() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let (room, _closed) = room(
        &hub,
        "transport = \"amqp\"\n[run]\ngive_up_after = \"2s\"\n",
    );
    let spec = room.rollout("only", "");
    room.run(&["run", &spec]).expect(5).says(&["was refused"]);
    for (toml, says) in [
        ("transport = \"mqtt\"\n", "hubs.eu.transport"),
        ("proxy = \"socks5://p:1080\"\n", "only http:// proxies"),
    ] {
        room.write(
            "twincast.toml",
            &format!("[hubs.eu]\nhost = \"h\"\nauth = \"managed_identity\"\n{toml}"),
        );
        room.run(&["plan", &spec]).expect(3).says(&[says]);
    }
}
