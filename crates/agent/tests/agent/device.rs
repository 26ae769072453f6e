//! A device: a folder with a configuration, logging hooks, and the agent's process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use twincast_agent::envelope::{self, SecretKey};
use twincast_agent::manifest::{Artifact, Manifest};

use crate::files::FileServer;
use crate::hub::Hub;
use crate::until;

/// The hook script: logs begin and end, waits while held, and fails on request.
const HOOK: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 99
echo "$1 begin $TWINCAST_VERSION" >>log
while test -e "hold-$1"; do sleep 0.03; done
if test -e "fail-$1"; then echo "this is the output of $1"; exit 1; fi
if test -e "code-$1"; then exit "$(cat "code-$1")"; fi
echo "$1 done $TWINCAST_VERSION" >>log
"#;

pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) key: SecretKey,
    pub(crate) files: FileServer,
    child: Option<Child>,
}

impl Drop for Device {
    #[expect(clippy::print_stderr, reason = "the log of a failed test is shown")]
    fn drop(&mut self) {
        for hook in ["install", "activate", "health", "confirm", "rollback"] {
            self.release(hook);
        }
        self.kill();
        if std::thread::panicking() {
            let log = content(&self.path("agent.log"));
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            eprintln!("{}: {:?}\n{last}", self.id, self.log());
        }
    }
}

/// The settings of a device that differ between tests.
pub(crate) struct Setup {
    pub(crate) identity: Option<String>,
    pub(crate) mqtt_port: u16,
    pub(crate) hub: String,
    pub(crate) download: String,
    pub(crate) low_speed_time: &'static str,
    pub(crate) more: String,
}

impl Setup {
    pub(crate) fn of(hub: &Hub) -> Self {
        Self {
            identity: None,
            mqtt_port: hub.running.mqtt_addr().port(),
            hub: String::new(),
            download: "jitter = \"0s\"".to_owned(),
            low_speed_time: "30s",
            more: String::new(),
        }
    }
}

impl Device {
    /// Creates a device of the hub without starting the agent.
    pub(crate) async fn new(hub: &Hub, id: &str, setup: Setup) -> Self {
        let (key, _) = SecretKey::new().unwrap();
        let device = Self {
            id: id.to_owned(),
            folder: tempfile::tempdir().unwrap(),
            files: FileServer::start().await,
            key,
            child: None,
        };
        device.write("ca.pem", hub.running.ca_pem());
        device.write("hook", HOOK);
        let identity = setup.identity.unwrap_or_else(|| {
            let text = hub.running.device_connection_string(id).unwrap();
            format!("connection_string = \"{text}\"")
        });
        let hook = |name: &str| {
            format!(
                "[\"/bin/sh\", \"{}\", \"{name}\"]",
                device.path("hook").display()
            )
        };
        let config = format!(
            r#"
state = "state"
log = "debug"
[identity]
{identity}
[hub]
port = {mqtt_port}
https_port = {https_port}
ca_file = "ca.pem"
reconnect_max = "200ms"
{hub}
[update]
name = "fridge"
hardware = "a"
keys = ["{key}"]
max_size = 10000000
[firmware]
version = "1.0.0"
[download]
retry_wait = "50ms"
low_speed_time = "{low_speed_time}"
keep_free = 0
{download}
[health]
command = {health}
within = "8s"
every = "100ms"
[hooks]
timeout = "20s"
retry_pause = "100ms"
install = {install}
activate = {activate}
confirm = {confirm}
rollback = {rollback}
{more}
"#,
            mqtt_port = setup.mqtt_port,
            https_port = hub.running.https_addr().port(),
            hub = setup.hub,
            key = device.key.public(),
            download = setup.download,
            low_speed_time = setup.low_speed_time,
            health = hook("health"),
            install = hook("install"),
            activate = hook("activate"),
            confirm = hook("confirm"),
            rollback = hook("rollback"),
            more = setup.more,
        );
        device.write("agent.toml", &config);
        device
    }

    /// Creates a device and starts the agent.
    pub(crate) async fn started(hub: &Hub, id: &str) -> Self {
        let mut device = Self::new(hub, id, Setup::of(hub)).await;
        device.begin(hub).await;
        device
    }

    /// Starts the agent for the first time. From the agent's first connection on, the emulator no
    /// longer simulates the device.
    pub(crate) async fn begin(&mut self, hub: &Hub) {
        self.start();
        until("the first report", async || {
            let twin = hub.twin(&self.id).await;
            twin["properties"]["reported"]["firmware"]
                .as_str()
                .map(drop)
        })
        .await;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_twincast-agent"))
            .arg("--config")
            .arg(self.path("agent.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Kills the agent with `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Makes the hook wait.
    pub(crate) fn hold(&self, hook: &str) {
        self.write(&format!("hold-{hook}"), "");
    }

    pub(crate) fn release(&self, hook: &str) {
        _ = std::fs::remove_file(self.path(&format!("hold-{hook}")));
    }

    /// Makes the hook fail.
    pub(crate) fn fail(&self, hook: &str) {
        self.write(&format!("fail-{hook}"), "");
    }

    /// Makes the hook end with this exit code, or succeed again without a code.
    pub(crate) fn code(&self, hook: &str, code: Option<u8>) {
        match code {
            Some(code) => self.write(&format!("code-{hook}"), &code.to_string()),
            None => _ = std::fs::remove_file(self.path(&format!("code-{hook}"))),
        }
    }

    /// Returns the lines logged by hooks.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Returns the number of equal lines in the hooks' log.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.log().iter().filter(|it| *it == line).count()
    }

    pub(crate) async fn wait_for_line(&self, line: &str) {
        until(line, async || (self.count(line) > 0).then_some(())).await;
    }

    /// Returns the signed message of a version, and puts the artefact on the file server.
    pub(crate) fn update(&self, version: &str) -> Vec<u8> {
        self.update_with(version, |_| {})
    }

    pub(crate) fn update_with(&self, version: &str, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
        let artifact = artifact(version);
        let url = self.files.put(version, &artifact);
        let mut manifest = Manifest {
            schema: 1,
            name: "fridge".to_owned(),
            version: version.to_owned(),
            hardware: Some(vec!["a".to_owned()]),
            artifact: Artifact {
                url,
                size: artifact.len() as u64,
                sha256: twincast_agent::sha256(&mut &artifact[..]).unwrap(),
            },
            expires: None,
            force: false,
        };
        change(&mut manifest);
        let payload = serde_json::to_vec(&manifest).unwrap();
        serde_json::to_vec(&envelope::seal(&payload, std::slice::from_ref(&self.key))).unwrap()
    }
}

/// Returns an artefact of 200 kB with a content unique to the version.
pub(crate) fn artifact(version: &str) -> Vec<u8> {
    version.bytes().cycle().take(200_000).collect()
}

/// Returns the content of a file, or an empty text.
pub(crate) fn content(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
