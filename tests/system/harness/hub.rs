//! An emulated hub in a separate process, and the hub's control endpoint.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use twincast_emulator::Summary;

use super::{MAX_WAIT, MessageLog, Running, eventually};

/// The devices of a hub.
#[derive(Debug, Clone)]
pub(crate) struct Fleet(String);

impl Fleet {
    /// Returns devices `d-000000`, `d-000001`, … of type `fridge` over four regions.
    pub(crate) fn of(devices: u64) -> Self {
        Self::behaving(devices, "{}")
    }

    /// Returns the devices of the given fleet file.
    pub(crate) fn written(yaml: &str) -> Self {
        Self(yaml.to_owned())
    }

    /// Returns devices as in [`of`](Self::of), with a behaviour in the syntax of the fleet file.
    pub(crate) fn behaving(devices: u64, behaviour: &str) -> Self {
        Self(format!(
            "\
seed: 5
groups:
  - name: fridges
    count: {devices}
    id: \"d-{{index:06}}\"
    tags:
      type: fridge
      region: {{ $weighted: {{ eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 }} }}
    behaviour: {behaviour}
"
        ))
    }
}

/// A running emulator, killed on drop.
pub(crate) struct Hub {
    process: Running,
    folder: TempDir,
    announced: Value,
    control: SocketAddr,
}

impl Hub {
    /// Starts a hub without limits.
    pub(crate) fn unlimited(fleet: &Fleet) -> Self {
        Self::start(fleet, &["--unlimited"])
    }

    /// Starts a hub with further flags, on free ports.
    pub(crate) fn start(fleet: &Fleet, flags: &[&str]) -> Self {
        Self::start_with(fleet, flags, &[])
    }

    /// Starts a hub with further flags and environment variables.
    pub(crate) fn start_with(fleet: &Fleet, flags: &[&str], set: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("fleet.yaml");
        std::fs::write(&file, &fleet.0).expect("the folder is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twincast"));
        command
            .current_dir(folder.path())
            .env_clear()
            .envs(set.iter().copied())
            .args(["hub", "--json", "--amqp-port", "0", "--out"])
            .arg(folder.path())
            .arg("--fleet")
            .arg(file)
            .args(flags);
        let mut process = Running::start(&mut command);
        let announced: Value = eventually("the hub's announcement", || {
            assert!(!process.is_over(), "the hub ended: {}", process.stderr());
            serde_json::from_str(&process.stdout()).ok()
        });
        let control = announced["control"]
            .as_str()
            .and_then(|url| url.strip_prefix("http://"))
            .and_then(|address| address.parse().ok())
            .expect("a control endpoint");
        Self {
            process,
            folder,
            announced,
            control,
        }
    }

    /// Returns the path of the configuration for the hub's clients. The configuration names the hub
    /// `emulator`.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("twincast.toml")
    }

    /// Returns the path of the CA certificate that signed the hub's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Returns the hub's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the connection string, including the key.
    pub(crate) fn connection_string(&self) -> &str {
        self.announced["connection_string"]
            .as_str()
            .expect("a text")
    }

    /// Returns the key of the connection string, in base64.
    pub(crate) fn key(&self) -> &str {
        let marker = "SharedAccessKey=";
        let string = self.connection_string();
        let at = string.find(marker).expect("the string has a key") + marker.len();
        &string[at..]
    }

    /// Returns the port of AMQP.
    pub(crate) fn amqp_port(&self) -> u16 {
        self.port("amqp")
    }

    /// Returns the port of HTTPS.
    pub(crate) fn https_port(&self) -> u16 {
        self.port("https")
    }

    /// Returns an announced port by name.
    pub(crate) fn port(&self, of: &str) -> u16 {
        let address: SocketAddr = self.announced[of]
            .as_str()
            .and_then(|address| address.parse().ok())
            .expect("an address");
        address.port()
    }

    /// Returns the hub's counts.
    pub(crate) fn summary(&self) -> Summary {
        serde_json::from_str(&self.control("GET", "/summary", "")).expect("a summary")
    }

    /// Returns the message ids of all devices with messages.
    pub(crate) fn message_log(&self) -> MessageLog {
        let lines = self.control("GET", "/messages", "");
        let mut message_log = MessageLog::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).expect("a JSON line");
            let device = line["deviceId"].as_str().expect("a device").to_owned();
            let messages = line["messages"].as_array().expect("a list of messages");
            let ids = messages
                .iter()
                .map(|message| message["id"].as_str().expect("an id").to_owned())
                .collect();
            assert!(
                message_log.insert(device, ids).is_none(),
                "the hub lists each device once"
            );
        }
        message_log
    }

    /// Changes the faults named in `patch` (JSON).
    pub(crate) fn faults(&self, patch: &str) {
        self.control("PATCH", "/faults", patch);
    }

    /// Puts a resource at the control endpoint.
    pub(crate) fn put(&self, path: &str, body: &str) {
        self.control("PUT", path, body);
    }

    /// Returns the URL of the control endpoint.
    pub(crate) fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// Cuts all AMQP connections without notice.
    pub(crate) fn drop_connections(&self) {
        self.control("POST", "/faults/disconnect", r#"{"how": "drop"}"#);
    }

    /// Returns the standard output of the hub: the announcement.
    pub(crate) fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// Returns the standard error of the hub.
    pub(crate) fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Sends a request to the control endpoint. HTTP/1.0, so the answer ends with the connection.
    #[track_caller]
    fn control(&self, method: &str, path: &str, body: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.control, MAX_WAIT)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            let length = body.len();
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_else(|error| {
            panic!("{method} {path}: {error}; the hub wrote: {}", self.stderr())
        });
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).unwrap_or_default();
        assert!(status.starts_with('2'), "{method} {path}: {answer}");
        body.to_owned()
    }
}
