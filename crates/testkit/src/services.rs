//! Real services for tests: [`RabbitMq`], [`RabbitMqCluster`], [`Redis`], [`RedisCluster`],
//! [`SentinelRedis`], a [`Proxy`] in front of a service, and [`NewerBroker`] in front of RabbitMQ.
//!
//! `shared()` returns a single service per test process, started by the first call. Tests of a
//! shared service use distinct names in the service. A test that stops or kills a service takes a
//! private service from `start()`; a private service ends on drop.
//!
//! The script `scripts/services` does the work, and installs missing programs. No service outlives
//! the test process, however the process ends: a guard waits for the end of a pipe held by the
//! guard and the test process only, then kills the remaining services and removes their files.

mod newer_broker;
mod proxy;
mod rabbitmq;
mod redis;
mod sentinels;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpSocket;

pub use newer_broker::{DeliveryCounts, NACK, NewerBroker, REJECT};
pub use proxy::Proxy;
pub use rabbitmq::{RabbitMq, RabbitMqCluster};
pub use redis::{Certificate, Redis, RedisCluster};
pub use sentinels::SentinelRedis;

/// Returns an address that refuses connections until the socket is dropped.
///
/// # Panics
/// When the machine has no free port.
#[must_use]
pub fn refusing_address() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((Ipv4Addr::LOCALHOST, 0).into())
        .expect("a free port");
    (socket.local_addr().expect("a bound socket"), socket)
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/services");

/// The folder of this process's services, removed with the process.
static ROOT: LazyLock<Root> = LazyLock::new(Root::new);

struct Root {
    dir: PathBuf,
    next: AtomicUsize,
    /// The guard. The handle holds the pipe watched by the guard.
    _guard: Child,
}

impl Root {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("twincast-test-")
            .tempdir()
            .expect("a folder for services in the folder for temporary files")
            .keep();
        let guard = script()
            .arg("guard")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {SCRIPT} guard: {error}"));
        Self {
            dir,
            next: AtomicUsize::new(0),
            _guard: guard,
        }
    }

    /// Creates a folder for files of several services.
    fn shared_folder(&self) -> PathBuf {
        let dir = self.subfolder();
        std::fs::create_dir_all(&dir).expect("a folder in the root folder");
        dir
    }

    fn subfolder(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(number.to_string())
    }
}

/// A service started by the script, in a separate folder.
#[derive(Debug)]
struct Service {
    verb: &'static str,
    options: Vec<String>,
    dir: PathBuf,
    /// The script's output about the service.
    output_values: HashMap<String, String>,
}

impl Service {
    async fn start(verb: &'static str, options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let dir = ROOT.subfolder();
        let mut service = Self {
            verb,
            options,
            dir,
            output_values: HashMap::new(),
        };
        service.output_values = service.launch().await;
        service
    }

    /// Creates a folder shared by services, without a service. Programs started in the folder end
    /// on drop.
    fn folder() -> Self {
        Self {
            verb: "kill",
            options: Vec::new(),
            dir: ROOT.subfolder(),
            output_values: HashMap::new(),
        }
    }

    async fn launch(&self) -> HashMap<String, String> {
        let options = self.options.iter().map(String::as_str).collect::<Vec<_>>();
        let output_values = self.run(self.verb, &options).await;
        let output_values = output_values
            .lines()
            .filter_map(|line| line.split_once('='));
        output_values
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    async fn start_stopped(&self) {
        self.launch().await;
    }

    async fn stop(&self) {
        self.run("stop", &[]).await;
    }

    async fn kill(&self) {
        self.run("kill", &[]).await;
    }

    /// Runs a verb of the script on this service's folder. Returns the output of the verb.
    async fn run(&self, verb: &'static str, options: &[&str]) -> String {
        let mut command = script();
        command.arg(verb).arg(&self.dir).args(options);
        tokio::task::spawn_blocking(move || output(command))
            .await
            .expect("the script runs")
            .unwrap_or_else(|trouble| panic!("{trouble}"))
    }

    fn port(&self, name: &str) -> u16 {
        let port = self
            .output_values
            .get(name)
            .and_then(|value| value.parse().ok());
        port.unwrap_or_else(|| {
            panic!(
                "{SCRIPT} {}: printed no {name}: {:?}",
                self.verb, self.output_values
            )
        })
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port("port")).into()
    }
}

impl Drop for Service {
    /// Ends the service. After an error here, the guard ends the service.
    fn drop(&mut self) {
        let mut command = script();
        command.arg("kill").arg(&self.dir);
        if output(command).is_ok() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// Returns the script as a command out of reach of a Ctrl-C on the tests: the script must finish
/// begun work.
fn script() -> Command {
    let mut command = Command::new(SCRIPT);
    command.process_group(0);
    command
}

fn output(mut command: Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output();
    let shown = command
        .get_args()
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ");
    let output = output.map_err(|error| format!("starting {SCRIPT} {shown}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{SCRIPT} {shown}: {}: {}",
            output.status,
            stderr.trim_end()
        ))
    }
}
