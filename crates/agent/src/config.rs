//! The agent's configuration: a single TOML file, checked as a whole before the agent starts.

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

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of the agent's state, artefacts and hook results. Only the agent writes there.
    pub state: PathBuf,
    /// The lowest logged level: error, warn, info, debug or trace.
    #[serde(default = "info")]
    pub log: String,
    /// The device's identity.
    pub identity: Identity,
    /// The connection to the hub.
    #[serde(default)]
    pub hub: Hub,
    /// The accepted updates.
    pub update: Update,
    /// The running firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// Downloads of artefacts.
    #[serde(default)]
    pub download: Download,
    /// Two folders for alternating installations.
    pub slots: Option<Slots>,
    /// The device's own commands.
    #[serde(default)]
    pub hooks: Hooks,
    /// The health check of a new version.
    pub health: Option<Health>,
}

/// The device's identity: a connection string, a certificate, or a registration with the Device
/// Provisioning Service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `HostName=..;DeviceId=..;SharedAccessKey=..`.
    pub connection_string: Option<Secret>,
    /// A file with the connection string.
    pub connection_string_file: Option<PathBuf>,
    /// The hub's host name, for a device with a certificate.
    pub hub: Option<String>,
    /// The device's id in the hub `hub`.
    pub device_id: Option<String>,
    /// The certificate chain (PEM, the device's certificate first), for `hub` and for `dps`.
    pub certificate_file: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    pub private_key_file: Option<PathBuf>,
    /// The Device Provisioning Service.
    pub dps: Option<Dps>,
}

/// The Device Provisioning Service, for assigning the device to a hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dps {
    /// The service's host.
    #[serde(default = "dps_host")]
    pub host: String,
    /// The service's HTTPS port.
    #[serde(default = "https_port")]
    pub port: u16,
    /// The id scope of the service.
    pub id_scope: String,
    /// The device's registration id.
    pub registration_id: String,
    /// The device's own symmetric key, base64.
    pub key: Option<Secret>,
    /// A file with the symmetric key.
    pub key_file: Option<PathBuf>,
    /// The key of an enrolment group, for deriving the device's key. A group key belongs on a
    /// device only in tests.
    pub group_key: Option<Secret>,
}

/// The transport of MQTT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TLS.
    #[default]
    Mqtt,
    /// WebSockets over TLS, for networks without other outbound connections.
    Websocket,
}

/// The connection to the hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hub {
    /// The transport of MQTT.
    pub transport: Transport,
    /// The MQTT port. Default: 8883, or 443 for WebSockets.
    pub port: Option<u16>,
    /// The hub's HTTPS port, for learning the time if the system clock is wrong.
    pub https_port: u16,
    /// An HTTP proxy (`http://user:password@host:port`) for everything but FTP, or `none`. Default:
    /// the proxy of the environment (`HTTPS_PROXY` and `NO_PROXY`).
    pub proxy: Option<String>,
    /// Certificate authorities (PEM), trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// The validity of a token.
    pub token_life: SignedDuration,
    /// The MQTT keep-alive interval. At most 1,177 s: the hub's limit.
    pub keep_alive: SignedDuration,
    /// The longest wait between two connection attempts.
    pub reconnect_max: SignedDuration,
}

impl Hub {
    /// Returns the parsed proxy. [`Config::load`] has checked the text.
    pub(crate) fn proxy(&self) -> Proxy {
        let text = self.proxy.as_deref();
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// The updates accepted by the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The accepted update name.
    pub name: String,
    /// The name of the device's hardware.
    pub hardware: String,
    /// The public keys of accepted signatures (base64): a single key, or two keys during a
    /// rotation.
    pub keys: Vec<String>,
    /// The largest accepted artefact, in bytes.
    #[serde(default = "max_size")]
    pub max_size: u64,
}

/// The firmware running on the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Firmware {
    /// The name of the reported property with the version.
    pub property: String,
    /// The running version until the agent installs another version.
    pub version: Option<String>,
    /// A file with the running version, read at each start and after each update. The file takes
    /// precedence over the version in the agent's state.
    pub version_file: Option<PathBuf>,
}

/// Downloads of artefacts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Download {
    /// The longest random delay before the start of a download.
    pub jitter: SignedDuration,
    /// The time limit of a download, including all retries and restarts.
    pub within: SignedDuration,
    /// The first ceiling of the random wait between retries. The ceiling doubles up to 10 minutes.
    pub retry_wait: SignedDuration,
    /// The measuring period of the download speed.
    pub low_speed_time: SignedDuration,
    /// The lowest accepted speed, in bytes per second. A connection below this speed during
    /// `low_speed_time` is closed.
    pub low_speed_rate: u64,
    /// The number of bytes kept free on the disk.
    pub keep_free: u64,
}

/// Two folders, `a` and `b`, and a symbolic link `current` to the running folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// The parent folder of `a`, `b` and `current`.
    pub root: PathBuf,
    /// The format of artefacts.
    #[serde(default)]
    pub artifact: ArtifactKind,
}

/// The format of artefacts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArtifactKind {
    /// A single file, copied under the name `artifact`.
    #[default]
    #[serde(rename = "file")]
    File,
    /// A tar archive, unpacked into the slot.
    #[serde(rename = "tar")]
    Tar,
    /// A gzip-compressed tar archive, unpacked into the slot.
    #[serde(rename = "tar.gz")]
    TarGz,
}

/// The device's own commands: program and arguments, without a shell. With [`Slots`], each command
/// runs after the slots' part of the same step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Installs the artefact beside the running version. Must not change the running version.
    pub install: Option<Vec<String>>,
    /// Switches to the new version.
    pub activate: Option<Vec<String>>,
    /// Makes the switch permanent.
    pub confirm: Option<Vec<String>>,
    /// Switches back to the previous version.
    pub rollback: Option<Vec<String>>,
    /// The time limit of each command.
    pub timeout: SignedDuration,
    /// The largest number of `install` attempts. Exit code 75 of `install` requests another
    /// attempt.
    pub max_attempts: u32,
    /// The pause between two attempts.
    pub retry_pause: SignedDuration,
    /// The time limit of a restart announced by `activate` (exit code 3).
    pub restart_within: SignedDuration,
}

/// The health check of a new version.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Program and arguments; exit code 0 means healthy.
    pub command: Vec<String>,
    /// The time limit until a successful check.
    #[serde(default = "health_within")]
    pub within: SignedDuration,
    /// The pause between two checks.
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
            max_attempts: 3,
            retry_pause: SignedDuration::from_mins(1),
            restart_within: SignedDuration::from_mins(15),
        }
    }
}

/// Errors of [`Config::load`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The configuration file, or a file named in it, cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not TOML, or has unknown keys or invalid values.
    #[error("cannot parse the configuration {}, {place}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line.
        place: String,
        /// The problem, without the value: the value may be a secret.
        message: String,
    },
    /// The values are out of bounds or inconsistent. The error lists all mistakes at once.
    #[error("the configuration {} is not valid: {}", .path.display(), .mistakes.join("; "))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The mistakes, each with the key.
        mistakes: Vec<String>,
    },
}

impl Config {
    /// Reads and checks a configuration file. Relative paths in the file are resolved against the
    /// file's folder.
    ///
    /// # Errors
    /// [`ConfigError`]; the error contains no secret.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|range| text.get(..range.start));
            let line = before.map(|before| before.matches('\n').count() + 1);
            ConfigError::Syntax {
                path: path.to_owned(),
                place: line
                    .map_or_else(|| "unknown line".to_owned(), |line| format!("line {line}")),
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
        // A name without a slash is searched in `PATH`.
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
            "hooks: hooks.install and hooks.activate are required without slots",
        );
        check(
            self.slots.is_some() || self.hooks.rollback.is_some(),
            "hooks.rollback: is required without slots",
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
            (1..=100).contains(&self.hooks.max_attempts),
            "hooks.max_attempts: must be 1 to 100",
        );
        check(
            (1..=1177).contains(&self.hub.keep_alive.as_secs()),
            "hub.keep_alive: must be 1s to 1177s",
        );
        for (name, duration, least) in self.durations() {
            let in_bounds = duration >= least && duration <= SignedDuration::from_hours(24 * 30);
            check(in_bounds, &format!("{name}: must be {least:#} to 720h"));
        }
        mistakes
    }

    fn durations(&self) -> Vec<(&'static str, SignedDuration, SignedDuration)> {
        let (zero, short) = (SignedDuration::ZERO, SignedDuration::from_millis(10));
        let mut durations = vec![
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
            ("hooks.retry_pause", self.hooks.retry_pause, short),
            ("hooks.restart_within", self.hooks.restart_within, short),
        ];
        if let Some(health) = &self.health {
            durations.push(("health.within", health.within, short));
            durations.push(("health.every", health.every, short));
        }
        durations
    }

    /// Returns the policy for accepted updates.
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
            max_attempts: self.hooks.max_attempts,
            retry_pause: self.hooks.retry_pause,
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
            "identity.device_id: must be set together with identity.hub",
        );
        let has_certificate = self.certificate_file.is_some();
        check(
            has_certificate == self.private_key_file.is_some(),
            "identity: certificate_file and private_key_file must be set together",
        );
        check(
            self.hub.is_none() || has_certificate,
            "identity.certificate_file: is required with identity.hub",
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

/// Reads the configuration file, or a file named in it, as text.
///
/// # Errors
/// [`ConfigError::Read`].
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Removes the quoted values from a parser's message; only the expectation stays.
fn without_values(message: &str) -> String {
    let is_quoting = message.starts_with("invalid type") || message.starts_with("invalid value");
    match (is_quoting, message.find(", expected ")) {
        (true, Some(at)) => format!("invalid type or value{}", &message[at..]),
        (true, None) => "invalid type or value".to_owned(),
        (false, _) => message.to_owned(),
    }
}

/// Converts a configured duration for the runtime.
pub(crate) fn to_std(duration: SignedDuration) -> Duration {
    duration.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests;
