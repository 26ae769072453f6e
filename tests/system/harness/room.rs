//! The folder of a user: specs, state, and the commands run in the folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use twincast_emulator::RunningHub;

use super::{Ended, Hub, Row, Running};

/// A separate folder, and another folder for temporary files.
pub(crate) struct Room {
    folder: TempDir,
    temporary: TempDir,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

impl Room {
    /// Creates a folder without a configuration.
    pub(crate) fn bare() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            temporary: tempfile::tempdir().expect("a temporary folder"),
            config: None,
            environment: Vec::new(),
        }
    }

    /// Creates a folder with the configuration of a hub.
    pub(crate) fn with(hub: &Hub) -> Self {
        let mut room = Self::bare();
        room.config = Some(hub.config());
        room
    }

    /// Uses another hub from now on, under the same name.
    pub(crate) fn configure(&mut self, hub: &Hub) {
        self.config = Some(hub.config());
    }

    /// Creates a folder with this text as the configuration.
    pub(crate) fn configured(toml: &str) -> Self {
        let mut room = Self::bare();
        room.config = Some(room.write("twincast.toml", toml));
        room
    }

    /// Creates a folder with a configuration for a hub in this process.
    pub(crate) fn of(hub: &RunningHub) -> Self {
        let room = Self::configured("");
        room.goes_to(hub);
        room
    }

    /// Uses a hub in this process from now on.
    pub(crate) fn goes_to(&self, hub: &RunningHub) {
        let toml = format!(
            "[hubs.emulator]\nconnection_string_file = \"connection-string\"\nca_file = \"ca.pem\"\n\
             unlimited = true\nquery_lag = \"0s\"\naddress = \"{}\"\namqp_port = {}\nhttps_port = {}\n",
            hub.amqp_addr().ip(),
            hub.amqp_addr().port(),
            hub.https_addr().port(),
        );
        self.write("twincast.toml", &toml);
        // The port is configured above: a different port does not change the hub's identity.
        let port = format!(":{}", hub.amqp_addr().port());
        let string = hub.connection_string().replace(&port, "");
        self.write("connection-string", &string);
        self.write("ca.pem", hub.ca_pem());
    }

    /// Sets an environment variable for all commands.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.set_for_all(key, value);
        self
    }

    /// Sets an environment variable for commands started from here on.
    pub(crate) fn set_for_all(&mut self, key: &str, value: &str) {
        self.environment.push((key.to_owned(), value.to_owned()));
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the folder for temporary files.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("the folder is writable");
        path
    }

    /// Writes `NAME.yaml`: a rollout to all refrigerators, batched by region, with further lines.
    pub(crate) fn rollout(&self, name: &str, more: &str) -> String {
        let file = format!("{name}.yaml");
        self.write(
            &file,
            &format!(
                "name: {name}\ntarget: {{ tags: {{ type: fridge }} }}\nbatch_by: [region]\n\
                 message: {{ body: {{ text: hello }}, ttl: 24h }}\n{more}\n"
            ),
        );
        file
    }

    /// Returns the program with these arguments, in this folder, and with a minimal environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twincast"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// Puts a command into this folder and environment.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let inherited = ["PATH", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"];
        let inherited = inherited
            .into_iter()
            .filter_map(|key| Some((key, std::env::var_os(key)?)));
        let inherited: Vec<_> = inherited.collect();
        command
            .current_dir(self.path())
            .env_clear()
            .envs(inherited)
            .env("TMPDIR", self.temporary.path());
        if let Some(config) = &self.config {
            command.env("TWINCAST_CONFIG", config);
        }
        command.envs(self.environment.iter().cloned());
    }

    /// Starts the program.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(&mut self.command(arguments))
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).wait()
    }

    /// Returns the rows of a rollout's report.
    #[track_caller]
    pub(crate) fn report(&self, name: &str) -> Vec<Row> {
        let ended = self.run(&["report", name, "--format", "jsonl"]).expect(0);
        let rows = ended
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("a row"));
        rows.collect()
    }
}
