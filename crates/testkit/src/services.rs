//! Real services for tests: [`RabbitMq`], [`RabbitMqCluster`], [`Redis`], [`RedisCluster`], [`WatchedRedis`], and a
//! [`Proxy`] to put in front of them.
//!
//! `shared()` is one service per test process, started by who asks first. Tests that share one use
//! names of their own in it. A test that stops or kills its service takes a private one, from
//! `start()`; it ends when it is dropped.
//!
//! `scripts/services` does the work, and installs what is missing. Nothing outlives the test
//! process, however that ends: a guard waits for the end of a pipe that only it and the process
//! hold, then kills what is left and removes its files.

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

pub use proxy::Proxy;
pub use rabbitmq::{RabbitMq, RabbitMqCluster};
pub use redis::{Certificate, Redis, RedisCluster};
pub use sentinels::WatchedRedis;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/services");

/// The folder of this process's services, which goes with the process.
static ROOT: LazyLock<Root> = LazyLock::new(Root::new);

struct Root {
    dir: PathBuf,
    next: AtomicUsize,
    /// Holds the pipe whose end the guard waits for.
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

    /// A folder that is made, for files that several services share.
    fn folder_of_files(&self) -> PathBuf {
        let dir = self.subfolder();
        std::fs::create_dir_all(&dir).expect("a folder in a folder of ours");
        dir
    }

    fn subfolder(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(number.to_string())
    }
}

/// A service that the script started, in a folder of its own.
#[derive(Debug)]
struct Service {
    verb: &'static str,
    options: Vec<String>,
    dir: PathBuf,
    /// What the script said of it.
    facts: HashMap<String, String>,
}

impl Service {
    async fn start(verb: &'static str, options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let dir = ROOT.subfolder();
        let mut service = Self {
            verb,
            options,
            dir,
            facts: HashMap::new(),
        };
        service.facts = service.launch().await;
        service
    }

    /// A folder shared by services, without a service of its own. Programs started there end when this is dropped.
    fn folder() -> Self {
        Self {
            verb: "kill",
            options: Vec::new(),
            dir: ROOT.subfolder(),
            facts: HashMap::new(),
        }
    }

    async fn launch(&self) -> HashMap<String, String> {
        let options = self.options.iter().map(String::as_str).collect::<Vec<_>>();
        let facts = self.run(self.verb, &options).await;
        let facts = facts.lines().filter_map(|line| line.split_once('='));
        facts
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    async fn start_again(&self) {
        self.launch().await;
    }

    async fn stop(&self) {
        self.run("stop", &[]).await;
    }

    async fn kill(&self) {
        self.run("kill", &[]).await;
    }

    /// Runs a verb of the script on this service's folder; the verb's output.
    async fn run(&self, verb: &'static str, options: &[&str]) -> String {
        let mut command = script();
        command.arg(verb).arg(&self.dir).args(options);
        tokio::task::spawn_blocking(move || output(command))
            .await
            .expect("the script runs")
            .unwrap_or_else(|trouble| panic!("{trouble}"))
    }

    fn port(&self, name: &str) -> u16 {
        let port = self.facts.get(name).and_then(|value| value.parse().ok());
        port.unwrap_or_else(|| panic!("{SCRIPT} {}: said no {name}: {:?}", self.verb, self.facts))
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port("port")).into()
    }
}

impl Drop for Service {
    /// Ends it. What goes wrong here is left to the guard.
    fn drop(&mut self) {
        let mut command = script();
        command.arg("kill").arg(&self.dir);
        if output(command).is_ok() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// The script, out of reach of the Ctrl-C that ends the tests: what it began, it must finish.
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
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{SCRIPT} {shown}: {}: {}",
            output.status,
            said.trim_end()
        ))
    }
}
