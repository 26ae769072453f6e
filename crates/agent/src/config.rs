//! The agent's configuration: one TOML file, checked as a whole before anything is done.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use twincast_tunnel::Proxy;

use crate::envelope::PublicKey;
use crate::manifest::Policy;
use crate::update::Limits;
use crate::version;

mod secret;

pub use secret::Secret;

/// Everything that can be chosen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder that the agent keeps its state, its artefacts and the results of hooks in. Only it writes there.
    pub state: PathBuf,
    /// The lowest level that is logged: error, warn, info, debug or trace.
    #[serde(default = "info")]
    pub log: String,
    /// Who the device is.
    pub identity: Identity,
    /// How it reaches its hub.
    #[serde(default)]
    pub hub: Hub,
    /// What it takes.
    pub update: Update,
    /// What it runs.
    #[serde(default)]
    pub firmware: Firmware,
    /// How it fetches artefacts.
    #[serde(default)]
    pub download: Download,
    /// Two folders that versions are installed in by turns.
    pub slots: Option<Slots>,
    /// The device's own commands.
    #[serde(default)]
    pub hooks: Hooks,
    /// How it is seen whether a new version works.
    pub health: Option<Health>,
}

/// Who the device is: a connection string, a certificate, or what the Device Provisioning Service makes of either.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `HostName=..;DeviceId=..;SharedAccessKey=..`.
    pub connection_string: Option<Secret>,
    /// A file with the connection string.
    pub connection_string_file: Option<PathBuf>,
    /// The hub's host name, for a device that is known to it by its certificate.
    pub hub: Option<String>,
    /// The device's id there.
    pub device_id: Option<String>,
    /// The certificate (PEM, the device's first), for `hub` and for `dps`.
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub private_key_file: Option<PathBuf>,
    /// The Device Provisioning Service.
    pub dps: Option<Dps>,
}

/// The Device Provisioning Service, which says which hub the device belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dps {
    /// Its host.
    #[serde(default = "dps_host")]
    pub host: String,
    /// Its HTTPS port.
    #[serde(default = "https_port")]
    pub port: u16,
    /// The scope of its ids.
    pub id_scope: String,
    /// The device's registration id.
    pub registration_id: String,
    /// The device's own symmetric key, base64.
    pub key: Option<Secret>,
    /// A file with it.
    pub key_file: Option<PathBuf>,
    /// The key of an enrolment group, which the device's is derived from. It does not belong on a device outside of tests.
    pub group_key: Option<Secret>,
}

/// What MQTT travels in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TLS.
    #[default]
    Mqtt,
    /// WebSockets over TLS, for networks that let nothing else out.
    Websocket,
}

/// How the device reaches its hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hub {
    /// What MQTT travels in.
    pub transport: Transport,
    /// The port. Default: 8883, or 443 for WebSockets.
    pub port: Option<u16>,
    /// The HTTPS port, which the time is asked at if the clock cannot be right.
    pub https_port: u16,
    /// An HTTP proxy (`http://user:password@host:port`) for everything but FTP, or `none`. When not set, the proxy of the
    /// environment: `HTTPS_PROXY` and `NO_PROXY`.
    pub proxy: Option<String>,
    /// Certificate authorities (PEM) that are trusted next to the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a token is good for.
    pub token_life: SignedDuration,
    /// How long nothing may be heard. At most 1,177 s: the hub's limit.
    pub keep_alive: SignedDuration,
    /// The longest wait before the next try to connect.
    pub reconnect_max: SignedDuration,
}

impl Hub {
    /// The proxy. The text was checked when the configuration was read.
    pub(crate) fn proxy(&self) -> Proxy {
        let text = self.proxy.as_deref();
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// What the device takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The name of its updates.
    pub name: String,
    /// Its hardware.
    pub hardware: String,
    /// The public keys that updates are signed with (base64): one, or two while one takes the place of the other.
    pub keys: Vec<String>,
    /// The largest artefact, in bytes.
    #[serde(default = "max_size")]
    pub max_size: u64,
}

/// What the device runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Firmware {
    /// The reported property that has the version.
    pub property: String,
    /// The version that runs until the agent has installed another.
    pub version: Option<String>,
    /// A file with the version that runs. It is read at each start and after each update, and counts more than what the
    /// agent remembers.
    pub version_file: Option<PathBuf>,
}

/// How artefacts are fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Download {
    /// The download begins at a random time within so long.
    pub jitter: SignedDuration,
    /// How long it may take, with all retries and restarts.
    pub within: SignedDuration,
    /// The first wait before the next try; it doubles up to 10 minutes, and is drawn at random.
    pub retry_wait: SignedDuration,
    /// A connection is given up if so long ...
    pub low_speed_time: SignedDuration,
    /// ... fewer bytes a second come in than this.
    pub low_speed_rate: u64,
    /// So many bytes stay free on the disk.
    pub keep_free: u64,
}

/// Two folders, `a` and `b`, and a link `current` to the one that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// The folder that has them.
    pub root: PathBuf,
    /// What an artefact is.
    #[serde(default)]
    pub artifact: ArtifactKind,
}

/// What an artefact is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArtifactKind {
    /// One file, which is copied with the name `artifact`.
    #[default]
    #[serde(rename = "file")]
    File,
    /// A tar archive, which is unpacked.
    #[serde(rename = "tar")]
    Tar,
    /// A tar archive in gzip.
    #[serde(rename = "tar.gz")]
    TarGz,
}

/// The device's own commands: program and arguments, no shell. With [`Slots`], they run after what those do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Puts the artefact where it does not run yet. Must not change what runs.
    pub install: Option<Vec<String>>,
    /// Makes the new version the one that runs.
    pub activate: Option<Vec<String>>,
    /// Makes that last.
    pub confirm: Option<Vec<String>>,
    /// Makes the version before it run again.
    pub rollback: Option<Vec<String>>,
    /// How long each may take.
    pub timeout: SignedDuration,
    /// How often `install` is tried if it asks for it (exit code 75).
    pub tries: u32,
    /// How long is waited between two.
    pub pause: SignedDuration,
    /// How long a restart may take that `activate` announced (exit code 3).
    pub restart_within: SignedDuration,
}

/// How it is seen whether a new version works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Program and arguments; exit code 0 says that it works.
    pub command: Vec<String>,
    /// How long it may take until it says so.
    #[serde(default = "health_within")]
    pub within: SignedDuration,
    /// How long is waited before it is asked again.
    #[serde(default = "health_every")]
    pub every: SignedDuration,
}

fn info() -> String {
    "info".to_owned()
}

fn dps_host() -> String {
    "global.azure-devices-provisioning.net".to_owned()
}

fn https_port() -> u16 {
    443
}

fn max_size() -> u64 {
    1 << 30
}

fn health_within() -> SignedDuration {
    SignedDuration::from_secs(120)
}

fn health_every() -> SignedDuration {
    SignedDuration::from_secs(5)
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            transport: Transport::Mqtt,
            port: None,
            https_port: 443,
            proxy: None,
            ca_file: None,
            token_life: SignedDuration::from_hours(1),
            keep_alive: SignedDuration::from_secs(240),
            reconnect_max: SignedDuration::from_mins(5),
        }
    }
}

impl Default for Firmware {
    fn default() -> Self {
        Self {
            property: "firmware".to_owned(),
            version: None,
            version_file: None,
        }
    }
}

impl Default for Download {
    fn default() -> Self {
        Self {
            jitter: SignedDuration::from_secs(60),
            within: SignedDuration::from_hours(6),
            retry_wait: SignedDuration::from_secs(5),
            low_speed_time: SignedDuration::from_secs(60),
            low_speed_rate: 100,
            keep_free: 16 << 20,
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            install: None,
            activate: None,
            confirm: None,
            rollback: None,
            timeout: SignedDuration::from_mins(10),
            tries: 3,
            pause: SignedDuration::from_mins(1),
            restart_within: SignedDuration::from_mins(15),
        }
    }
}

/// Why a configuration is not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that it is, or that it names, cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not TOML, or has other keys or values.
    #[error("{} is not a configuration of the agent, {place}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line.
        place: String,
        /// What is wrong. No value is in it: it may be a secret.
        message: String,
    },
    /// Its values do not go together. All that is wrong is told at once.
    #[error("the configuration {} is refused: {}", .path.display(), .mistakes.join("; "))]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong, by key.
        mistakes: Vec<String>,
    },
}

impl Config {
    /// Reads and checks a file. Paths in it count from its folder.
    ///
    /// # Errors
    /// [`ConfigError`]; no secret is in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map(|before| before.matches('\n').count() + 1);
            ConfigError::Syntax {
                path: path.to_owned(),
                place: line.map_or_else(|| "somewhere".to_owned(), |line| format!("line {line}")),
                message: without_values(error.message()),
            }
        })?;
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        config.resolve(place.parent().unwrap_or(Path::new("")));
        let mistakes = config.mistakes();
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Refused {
                path: path.to_owned(),
                mistakes,
            })
        }
    }

    fn resolve(&mut self, base: &Path) {
        let identity = &mut self.identity;
        let files = [
            Some(&mut self.state),
            identity.connection_string_file.as_mut(),
            identity.certificate_file.as_mut(),
            identity.private_key_file.as_mut(),
            identity.dps.as_mut().and_then(|dps| dps.key_file.as_mut()),
            self.hub.ca_file.as_mut(),
            self.firmware.version_file.as_mut(),
            self.slots.as_mut().map(|slots| &mut slots.root),
        ];
        for file in files.into_iter().flatten() {
            *file = base.join(&*file);
        }
        let hooks = &mut self.hooks;
        let commands = [
            hooks.install.as_mut(),
            hooks.activate.as_mut(),
            hooks.confirm.as_mut(),
            hooks.rollback.as_mut(),
            self.health.as_mut().map(|health| &mut health.command),
        ];
        let programs = commands
            .into_iter()
            .flatten()
            .filter_map(|command| command.first_mut());
        // A name alone is looked for in the path.
        for program in programs.filter(|program| program.contains('/')) {
            *program = base.join(&*program).display().to_string();
        }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.identity.mistakes();
        let mut check = |holds: bool, what: &str| {
            if !holds {
                mistakes.push(what.to_owned());
            }
        };
        check(
            self.log.parse::<tracing::Level>().is_ok(),
            "log: must be error, warn, info, debug or trace",
        );
        if let Some(Err(error)) = self.hub.proxy.as_ref().map(|text| text.parse::<Proxy>()) {
            check(false, &format!("hub.proxy: {error}"));
        }
        check(
            (1..=2).contains(&self.update.keys.len()),
            "update.keys: must be one key, or two during a rotation",
        );
        for key in &self.update.keys {
            check(
                key.parse::<PublicKey>().is_ok(),
                "update.keys: each must be an ed25519 public key: 32 bytes in base64",
            );
        }
        check(
            !self.update.name.is_empty(),
            "update.name: must not be empty",
        );
        let version = self.firmware.version.as_deref();
        check(
            version.is_none_or(version::is_version),
            "firmware.version: must be 1 to 64 visible ASCII characters",
        );
        let property = &self.firmware.property;
        let is_property = !property.is_empty()
            && !property.contains(['.', '$', ' ', '#'])
            && property != "update";
        check(
            is_property,
            "firmware.property: must be a name without . $ # and spaces, other than update",
        );
        check(
            self.slots.is_some() || self.hooks.install.is_some() && self.hooks.activate.is_some(),
            "hooks: there must be slots, or hooks.install and hooks.activate",
        );
        check(
            self.slots.is_some() || self.hooks.rollback.is_some(),
            "hooks.rollback: must be there if there are no slots",
        );
        let health = self.health.as_ref();
        check(
            health.is_none_or(|it| !it.command.is_empty()),
            "health.command: must not be empty",
        );
        for (name, hook) in self.hooks.all() {
            check(
                hook.is_none_or(|it| !it.is_empty()),
                &format!("hooks.{name}: must not be empty"),
            );
        }
        check(
            (1..=100).contains(&self.hooks.tries),
            "hooks.tries: must be 1 to 100",
        );
        check(
            (1..=1177).contains(&self.hub.keep_alive.as_secs()),
            "hub.keep_alive: must be 1s to 1177s",
        );
        for (name, span, least) in self.spans() {
            let in_bounds = span >= least && span <= SignedDuration::from_hours(24 * 30);
            check(in_bounds, &format!("{name}: must be {least:#} to 720h"));
        }
        mistakes
    }

    fn spans(&self) -> Vec<(&'static str, SignedDuration, SignedDuration)> {
        let (zero, short) = (SignedDuration::ZERO, SignedDuration::from_millis(10));
        let mut spans = vec![
            (
                "hub.token_life",
                self.hub.token_life,
                SignedDuration::from_secs(5),
            ),
            ("hub.reconnect_max", self.hub.reconnect_max, short),
            ("download.jitter", self.download.jitter, zero),
            ("download.within", self.download.within, short),
            ("download.retry_wait", self.download.retry_wait, short),
            (
                "download.low_speed_time",
                self.download.low_speed_time,
                short,
            ),
            ("hooks.timeout", self.hooks.timeout, short),
            ("hooks.pause", self.hooks.pause, short),
            ("hooks.restart_within", self.hooks.restart_within, short),
        ];
        if let Some(health) = &self.health {
            spans.push(("health.within", health.within, short));
            spans.push(("health.every", health.every, short));
        }
        spans
    }

    /// What updates it takes.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            keys: self
                .update
                .keys
                .iter()
                .filter_map(|key| key.parse().ok())
                .collect(),
            name: self.update.name.clone(),
            hardware: self.update.hardware.clone(),
            max_size: self.update.max_size,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            tries: self.hooks.tries,
            pause: self.hooks.pause,
            restart_within: self.hooks.restart_within,
        }
    }
}

impl Hooks {
    fn all(&self) -> [(&'static str, Option<&Vec<String>>); 4] {
        [
            ("install", self.install.as_ref()),
            ("activate", self.activate.as_ref()),
            ("confirm", self.confirm.as_ref()),
            ("rollback", self.rollback.as_ref()),
        ]
    }
}

impl Identity {
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut check = |holds: bool, what: &str| {
            if !holds {
                mistakes.push(what.to_owned());
            }
        };
        let strings = [
            self.connection_string.is_some(),
            self.connection_string_file.is_some(),
        ];
        let ways = strings
            .into_iter()
            .chain([self.hub.is_some(), self.dps.is_some()]);
        check(
            ways.filter(|is_given| *is_given).count() == 1,
            "identity: must have exactly one of connection_string, connection_string_file, hub (with device_id and a certificate), dps",
        );
        check(
            self.hub.is_some() == self.device_id.is_some(),
            "identity.device_id: belongs to identity.hub",
        );
        let has_certificate = self.certificate_file.is_some();
        check(
            has_certificate == self.private_key_file.is_some(),
            "identity: certificate_file and private_key_file belong together",
        );
        check(
            self.hub.is_none() || has_certificate,
            "identity.certificate_file: is needed with identity.hub",
        );
        if let Some(dps) = &self.dps {
            let keys = [
                dps.key.is_some(),
                dps.key_file.is_some(),
                dps.group_key.is_some(),
                has_certificate,
            ];
            check(
                keys.into_iter().filter(|is_given| *is_given).count() == 1,
                "identity.dps: must have exactly one of key, key_file, group_key, and identity.certificate_file",
            );
        }
        mistakes
    }
}

/// A file that is named in the configuration, as text.
///
/// # Errors
/// [`ConfigError::Read`].
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What a parser says, without the values that it quotes: only what is expected stays.
fn without_values(message: &str) -> String {
    let is_quoting = message.starts_with("invalid type") || message.starts_with("invalid value");
    match (is_quoting, message.find(", expected ")) {
        (true, Some(at)) => format!("invalid type or value{}", &message[at..]),
        (true, None) => "invalid type or value".to_owned(),
        (false, _) => message.to_owned(),
    }
}

/// As the runtime takes it.
pub(crate) fn span(span: SignedDuration) -> Duration {
    span.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests;
