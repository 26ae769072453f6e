//! An emulated hub in a process of its own, and its control endpoint.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use twincast_emulator::Summary;

use super::{Account, PATIENCE, Running, eventually};

/// The devices of a hub.
#[derive(Debug, Clone)]
pub(crate) struct Fleet(String);

impl Fleet {
    /// Devices `d-000000`, `d-000001`, … of type `fridge` over four regions.
    pub(crate) fn of(devices: u64) -> Self {
        Self::behaving(devices, "{}")
    }

    /// A fleet file of one's own.
    pub(crate) fn written(yaml: &str) -> Self {
        Self(yaml.to_owned())
    }

    /// The same with a behaviour, in the fleet file's words.
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

/// A running emulator. It ends with this value.
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
        std::fs::write(&file, &fleet.0).expect("the folder is ours");
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
            assert!(!process.is_over(), "no hub: {}", process.stderr());
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

    /// The configuration that the hub wrote for its clients; it calls the hub `emulator`.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("twincast.toml")
    }

    /// The certificate of the authority that signed the hub's.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The hub's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The connection string, with its key.
    pub(crate) fn connection_string(&self) -> &str {
        self.announced["connection_string"]
            .as_str()
            .expect("a text")
    }

    /// The key of the connection string, in base64.
    pub(crate) fn key(&self) -> &str {
        let marker = "SharedAccessKey=";
        let string = self.connection_string();
        let at = string.find(marker).expect("it has a key") + marker.len();
        &string[at..]
    }

    /// The port of AMQP.
    pub(crate) fn amqp_port(&self) -> u16 {
        self.port("amqp")
    }

    /// The port of HTTPS.
    pub(crate) fn https_port(&self) -> u16 {
        self.port("https")
    }

    /// One of its ports, as it is announced.
    pub(crate) fn port(&self, of: &str) -> u16 {
        let address: SocketAddr = self.announced[of]
            .as_str()
            .and_then(|address| address.parse().ok())
            .expect("an address");
        address.port()
    }

    /// The hub's own counts.
    pub(crate) fn summary(&self) -> Summary {
        serde_json::from_str(&self.control("GET", "/summary", "")).expect("a summary")
    }

    /// All devices that were sent something, with the ids of their messages.
    pub(crate) fn account(&self) -> Account {
        let lines = self.control("GET", "/messages", "");
        let mut account = Account::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).expect("a JSON line");
            let device = line["deviceId"].as_str().expect("a device").to_owned();
            let messages = line["messages"].as_array().expect("its messages");
            let ids = messages
                .iter()
                .map(|message| message["id"].as_str().expect("an id").to_owned())
                .collect();
            assert!(
                account.insert(device, ids).is_none(),
                "the hub told of a device twice"
            );
        }
        account
    }

    /// Changes the faults that `patch` (JSON) names.
    pub(crate) fn faults(&self, patch: &str) {
        self.control("PATCH", "/faults", patch);
    }

    /// Changes something else at the control endpoint.
    pub(crate) fn put(&self, path: &str, body: &str) {
        self.control("PUT", path, body);
    }

    /// Where the control endpoint is.
    pub(crate) fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// Cuts all AMQP connections without a word.
    pub(crate) fn drop_connections(&self) {
        self.control("POST", "/faults/disconnect", r#"{"how": "drop"}"#);
    }

    /// What the hub wrote to standard output: its announcement.
    pub(crate) fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// What the hub wrote to standard error.
    pub(crate) fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// One request to the control endpoint. HTTP/1.0, so that the answer ends with the connection.
    #[track_caller]
    fn control(&self, method: &str, path: &str, body: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.control, PATIENCE)?;
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
