//! Real devices: each is a process of the device agent, connected over MQTT.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};
use twincast_agent::envelope::PublicKey;
use twincast_emulator::RunningHub;

use super::files::script;

/// The number of canaries.
pub(super) const CANARIES: usize = 5;
/// The version of the canaries at the start.
pub(super) const FIRST_VERSION: &str = "1.3.0";
/// Time limit for connecting, and for ending.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Returns the id of a canary.
pub(super) fn id(number: usize) -> String {
    format!("canary-{number}")
}

/// Running agents, killed on drop.
pub(super) struct Canaries(Vec<Child>);

impl Canaries {
    /// Starts the agents, and waits until all are connected.
    pub(super) async fn start(
        folder: &Path,
        hub: &RunningHub,
        trusted: &PublicKey,
    ) -> anyhow::Result<Self> {
        let ca = folder.join("ca.pem");
        fs::write(&ca, hub.ca_pem()).context("cannot write the hub's certificate")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut agents = Vec::new();
        for number in 0..CANARIES {
            let config = prepare(&folder.join(id(number)), number, hub, (&ca, trusted))
                .with_context(|| format!("cannot prepare device {}", id(number)))?;
            let log = fs::File::create(config.with_extension("log"));
            let log = log.context("cannot write an agent's log")?;
            let agent = Command::new(&program)
                .arg("--config")
                .arg(&config)
                .arg("agent")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                // Only the demo receives Ctrl-C, and ends the agents.
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            agents.push(agent.context("cannot start a device agent")?);
        }
        let connected = async {
            while hub.hub().summary().connected_devices < CANARIES as u64 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let connected = tokio::time::timeout(MAX_WAIT, connected).await;
        connected.context("the device agents have not connected within 20 s")?;
        Ok(Self(agents))
    }

    /// Ends the agents.
    pub(super) async fn end(mut self) {
        for agent in &mut self.0 {
            _ = agent.start_kill();
        }
        for agent in &mut self.0 {
            _ = tokio::time::timeout(MAX_WAIT, agent.wait()).await;
        }
    }
}

/// Prepares a device's folder: the running version and the agent's configuration. Returns the path
/// of the configuration.
fn prepare(
    folder: &Path,
    number: usize,
    hub: &RunningHub,
    (ca, trusted): (&Path, &PublicKey),
) -> anyhow::Result<PathBuf> {
    let slots = folder.join("slots");
    fs::create_dir_all(slots.join("a"))?;
    fs::write(slots.join("a/artifact"), script(FIRST_VERSION, true))?;
    std::os::unix::fs::symlink("a", slots.join("current"))?;
    let identity = hub.device_connection_string(&id(number));
    let identity = identity.context("the hub does not know the device")?;
    let (mqtt, https) = (hub.mqtt_addr().port(), hub.https_addr().port());
    let health = slots.join("current/artifact");
    let text = format!(
        "state = {:?}\n\n[identity]\nconnection_string = {identity:?}\n\n\
         [hub]\nport = {mqtt}\nhttps_port = {https}\nca_file = {ca:?}\nreconnect_max = \"1s\"\n\n\
         [update]\nname = \"fridge-firmware\"\nhardware = \"fridge-a\"\nkeys = [\"{trusted}\"]\n\n\
         [firmware]\nversion = \"{FIRST_VERSION}\"\n\n\
         [download]\njitter = \"1s\"\nretry_wait = \"500ms\"\n\n\
         [slots]\nroot = {slots:?}\nartifact = \"file\"\n\n\
         [health]\ncommand = [\"/bin/sh\", {health:?}]\nwithin = \"8s\"\nevery = \"1s\"\n",
        folder.join("state"),
    );
    let config = folder.join("agent.toml");
    fs::write(&config, text)?;
    Ok(config)
}
