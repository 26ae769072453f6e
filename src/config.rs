//! The configuration: commented defaults, then a file, then the environment, then flags.

mod auth;
mod hubs;
mod oidc;
mod redis;
mod remote_server;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, Environment, File, FileFormat, ValueKind};
use serde::{Deserialize, Serialize};
use twincast_core::hub::HubLimits;
use twincast_core::ids::HubName;
use twincast_core::spec::{Document, HumanDuration, InputValue};
use twincast_orchestrator::retention::Retention;
use twincast_secret::SecretSource;

pub(crate) use auth::AuthSettings;
pub(crate) use hubs::HubSettings;
pub(crate) use oidc::OidcSettings;
pub(crate) use redis::RedisSettings;
pub(crate) use remote_server::{RemoteServerSettings, address, endpoint};
pub(crate) use values::{SecretText, Share, source_of};

use crate::failure::{ExitCode, Failure};
use crate::textfile;

const DEFAULTS: &str = include_str!("default.toml");

/// The shortest retention: a device may answer up to an hour after the end of a rollout, and users
/// look at recently ended rollouts.
const MIN_KEEP: Duration = Duration::from_secs(3600);

/// The whole configuration.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) state: PathBuf,
    pub(crate) log: LogSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) run: RunSettings,
    pub(crate) retention: RetentionSettings,
    pub(crate) amqp: AmqpSettings,
    pub(crate) redis: RedisSettings,
    pub(crate) http: HttpSettings,
    pub(crate) api: ApiSettings,
    pub(crate) server: RemoteServerSettings,
    pub(crate) prometheus: RemoteServerSettings,
    pub(crate) otlp: RemoteServerSettings,
    pub(crate) traces: TraceSettings,
    pub(crate) hubs: BTreeMap<HubName, HubSettings>,
    /// The base of relative paths: the folder of the configuration file.
    #[serde(skip)]
    pub(crate) base: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<String>,
    pub(crate) format: LogFormat,
}

impl LogSettings {
    /// Returns the configured filter, or the default.
    pub(crate) fn filter_for(&self, is_service: bool) -> &str {
        let default = if is_service { "info" } else { "warn" };
        self.filter.as_deref().unwrap_or(default)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    Pretty,
    Json,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkerSettings {
    pub(crate) slots: usize,
    pub(crate) window: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunSettings {
    pub(crate) give_up_after: HumanDuration,
}

/// Retention of ended rollouts. Without `keep`, no rollout is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetentionSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<HumanDuration>,
    keep_at_least: u32,
}

impl RetentionSettings {
    pub(crate) fn rule(&self) -> Option<Retention> {
        Some(Retention {
            keep: self.keep?.0,
            keep_at_least: self.keep_at_least as usize,
        })
    }
}

/// RabbitMQ. Needed only by the processes of the distributed engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AmqpSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) prefix: String,
}

impl AmqpSettings {
    /// Returns true if commands go to RabbitMQ.
    pub(crate) fn is_configured(&self) -> bool {
        self.url.is_some() || self.url_file.is_some()
    }
}

impl Settings {
    /// Returns true if services are configured, so rollouts are not in a state folder.
    pub(crate) fn is_distributed(&self) -> bool {
        self.amqp.is_configured() || self.redis.is_configured()
    }

    /// Returns the limits of each hub.
    pub(crate) fn limits(&self) -> BTreeMap<HubName, HubLimits> {
        let hubs = self.hubs.iter();
        hubs.map(|(name, hub)| (name.clone(), hub.limits()))
            .collect()
    }
}

/// Settings of rollouts' traces.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sampled: Option<Share>,
}

/// The endpoint for probes and metrics.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<std::net::SocketAddr>,
}

/// The HTTP API of orchestrators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc: Option<OidcSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key_file: Option<PathBuf>,
}

/// Returns the source of a URL with a password: the setting itself, or a file.
pub(crate) fn secret_source(
    section: &str,
    url: Option<&SecretText>,
    file: Option<&Path>,
    base: &Path,
) -> Result<SecretSource, Failure> {
    let refused = |message: String| Failure::message(ExitCode::Refused, message);
    if url.is_some() && file.is_some() {
        let what = format!("{section} must have only one of url and url_file");
        return Err(refused(what));
    }
    source_of(&format!("{section}.url"), url, file, base).ok_or_else(|| {
        let variable = section.to_uppercase();
        refused(format!("{section}.url is not configured")).hint(format!(
            "set it in the configuration file, or as TWINCAST__{variable}__URL; `scripts/services \
             up` starts a private RabbitMQ and Redis and prints both URLs"
        ))
    })
}

/// Settings from flags, and the token from the environment: these override all other sources.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) state: Option<PathBuf>,
    pub(crate) log: Option<String>,
    pub(crate) server: Option<String>,
    /// The value of `TWINCAST_TOKEN`: a secret is never passed as an argument.
    pub(crate) token: Option<String>,
}

impl Settings {
    /// Loads the configuration from all sources.
    ///
    /// # Errors
    /// All mistakes in the configuration at once.
    pub(crate) fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, Failure> {
        let environment = Environment::with_prefix("TWINCAST")
            .prefix_separator("__")
            .separator("__");
        Self::load_from(file, environment, overrides)
    }

    fn load_from(
        file: Option<&Path>,
        environment: Environment,
        overrides: Overrides,
    ) -> Result<Self, Failure> {
        let refused = |error: config::ConfigError| {
            let origin = file.map(|path| format!(" {}", path.display()));
            let origin = origin.unwrap_or_default();
            let what = without_lines(&error.to_string());
            Failure::message(
                ExitCode::Refused,
                format!("cannot read the configuration{origin}: {what}"),
            )
        };
        let mut builder = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        let (mut base, mut is_of_file) = (PathBuf::new(), false);
        if let Some(path) = file {
            let text = textfile::read("the configuration", path)
                .map_err(|error| Failure::new(ExitCode::Refused, error))?;
            let format = match path.extension().and_then(|it| it.to_str()) {
                Some("yaml" | "yml") => FileFormat::Yaml,
                _ => FileFormat::Toml,
            };
            let of_file = Config::builder().add_source(File::from_str(&text, format));
            let of_file = of_file.build().map_err(refused)?;
            is_of_file = of_file.get::<config::Value>("state").is_ok();
            builder = builder.add_source(of_file);
            base = path.parent().map(Path::to_owned).unwrap_or_default();
        }
        let read = builder.add_source(environment).build().map_err(refused)?;
        // Like all paths in a file, the state's path in a file is relative to the file's folder;
        // the state's path in a variable is relative to the current directory.
        if let ValueKind::Table(values) = &read.cache.kind {
            let origin = values.get("state").and_then(config::Value::origin);
            is_of_file &= origin != Some("the environment");
        }
        let InputValue::Map(values) = input_value(read.cache) else {
            unreachable!("a configuration is a table");
        };
        let mut sections = Sections {
            values: values.into_iter().collect(),
            problems: Vec::new(),
        };
        let settings = sections.settings(base, is_of_file);
        let Some(settings) = settings.filter(|_| sections.problems.is_empty()) else {
            let origin = file.map_or("the environment".to_owned(), |path| {
                format!("{} and the environment", path.display())
            });
            let problems = sections.problems.join("\n  ");
            return Err(Failure::message(
                ExitCode::Refused,
                format!("the configuration from {origin} is invalid:\n  {problems}"),
            ));
        };
        Ok(settings.with(overrides))
    }

    fn with(mut self, overrides: Overrides) -> Self {
        if let Some(state) = overrides.state {
            self.state = state;
        }
        if let Some(log) = overrides.log {
            self.log.filter = Some(log);
        }
        if let Some(url) = overrides.server {
            self.server.url = Some(url);
        }
        if let Some(token) = overrides.token {
            self.server.token = Some(SecretText(token));
        }
        self
    }
}

/// Returns a parser's message without the quoted lines of the file: the lines may contain a secret.
fn without_lines(words: &str) -> String {
    let is_said = |line: &&str| {
        let mark = line
            .trim_start()
            .trim_start_matches(|c: char| c.is_ascii_digit());
        !mark.trim_start().starts_with('|') && !line.trim().is_empty()
    };
    let said = words.lines().filter(is_said).map(str::trim);
    said.collect::<Vec<_>>().join(": ")
}

/// Converts a value of a source. A variable of the environment is always a text.
fn input_value(value: config::Value) -> InputValue {
    let is_of_environment = value.origin() == Some("the environment");
    match value.kind {
        ValueKind::Nil => InputValue::Nothing,
        ValueKind::Boolean(value) => InputValue::Bool(value),
        ValueKind::I64(number) => InputValue::Number(number.to_string()),
        ValueKind::I128(number) => InputValue::Number(number.to_string()),
        ValueKind::U64(number) => InputValue::Number(number.to_string()),
        ValueKind::U128(number) => InputValue::Number(number.to_string()),
        ValueKind::Float(number) => InputValue::Number(number.to_string()),
        ValueKind::String(text) if is_of_environment => InputValue::UntypedText(text),
        ValueKind::String(text) => InputValue::Text(text),
        ValueKind::Array(items) => InputValue::List(items.into_iter().map(input_value).collect()),
        ValueKind::Table(entries) => {
            let mut entries: Vec<_> = entries.into_iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            InputValue::Map(
                entries
                    .into_iter()
                    .map(|(key, it)| (key, input_value(it)))
                    .collect(),
            )
        }
    }
}

/// Reads the configuration section by section, so a mistake in a section hides no mistake in
/// another section.
struct Sections {
    values: BTreeMap<String, InputValue>,
    problems: Vec<String>,
}

impl Sections {
    /// Reads all sections. `base` is the folder of the configuration file, and the base of relative
    /// paths; of the state's path only if the path `is_of_file`.
    fn settings(&mut self, base: PathBuf, is_of_file: bool) -> Option<Settings> {
        let state: Option<PathBuf> = self.take("state");
        let log = self.take("log");
        let worker = self.take("worker");
        let run = self.take("run");
        let retention = self.take("retention");
        let amqp = self.take("amqp");
        let redis = self.take("redis");
        let http = self.take("http");
        let api = self.take("api");
        let server = self.take_remote_server("server");
        let prometheus = self.take_remote_server("prometheus");
        let otlp = self.take_remote_server("otlp");
        let traces = self.take("traces");
        let hubs = self.take_hubs();
        self.check_bounds(worker.as_ref(), retention.as_ref(), api.as_ref());
        for (at, otherwise) in redis.iter().flat_map(RedisSettings::problems) {
            self.check(false, &at, &otherwise);
        }
        let unknown: Vec<_> = self.values.keys().cloned().collect();
        for key in unknown {
            self.check(
                false,
                &key,
                "is not a key; allowed: state, log, worker, run, retention, amqp, redis, http, \
                 api, server, prometheus, otlp, traces and hubs",
            );
        }
        let state = state?;
        Some(Settings {
            state: if is_of_file { base.join(state) } else { state },
            log: log?,
            worker: worker?,
            run: run?,
            retention: retention?,
            amqp: amqp?,
            redis: redis?,
            http: http?,
            api: api?,
            server: server?,
            prometheus: prometheus?,
            otlp: otlp?,
            traces: traces?,
            hubs,
            base,
        })
    }

    fn check_bounds(
        &mut self,
        worker: Option<&WorkerSettings>,
        retention: Option<&RetentionSettings>,
        api: Option<&ApiSettings>,
    ) {
        if let Some(worker) = worker {
            let slots = (1..=64).contains(&worker.slots);
            self.check(slots, "worker.slots", "must be 1 to 64");
            let window = (1..=10_000).contains(&worker.window);
            self.check(window, "worker.window", "must be 1 to 10000");
        }
        if let Some(keep) = retention.and_then(|it| it.keep) {
            let is_long = keep.0 >= MIN_KEEP;
            self.check(is_long, "retention.keep", "must be 1h or more");
        }
        let oidc = api.and_then(|api| api.oidc.as_ref());
        for (at, otherwise) in oidc.into_iter().flat_map(OidcSettings::problems) {
            self.check(false, at, otherwise);
        }
    }

    fn take<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.values.remove(key).unwrap_or(InputValue::Nothing);
        self.read(key, value)
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self, at: &str, value: InputValue) -> Option<T> {
        match Document::from_input(at, value).read() {
            Ok(section) => Some(section),
            Err(problems) => {
                for problem in problems.problems {
                    let field = match &*problem.field {
                        "" => at.to_owned(),
                        field => format!("{at}.{field}"),
                    };
                    self.problems.push(format!("{field}: {}", problem.message));
                }
                None
            }
        }
    }

    fn take_remote_server(&mut self, key: &str) -> Option<RemoteServerSettings> {
        let server: RemoteServerSettings = self.take(key)?;
        for (part, otherwise) in server.problems() {
            self.check(false, &format!("{key}{part}"), &otherwise);
        }
        Some(server)
    }

    fn take_hubs(&mut self) -> BTreeMap<HubName, HubSettings> {
        let mut hubs = BTreeMap::new();
        let values = match self.values.remove("hubs") {
            None => return hubs,
            Some(InputValue::Map(values)) => values,
            Some(_) => {
                let what = "hubs: must be a table of hubs by name: [hubs.NAME]";
                self.problems.push(what.to_owned());
                return hubs;
            }
        };
        for (name, value) in values {
            let at = format!("hubs.{name}");
            let hub: Option<HubSettings> = self.read(&at, value);
            let Some(hub) = hub else { continue };
            for (part, otherwise) in hub.problems() {
                self.check(false, &format!("{at}{part}"), &otherwise);
            }
            match HubName::new(&name) {
                Ok(name) => drop(hubs.insert(name, hub)),
                Err(error) => self.problems.push(format!("{at}: {error}")),
            }
        }
        hubs
    }

    fn check(&mut self, holds: bool, at: &str, otherwise: &str) {
        if !holds {
            self.problems.push(format!("{at}: {otherwise}"));
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Returns the settings of a configuration file, without the environment.
    pub(crate) fn of(toml: &str) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile();
        let file = file.expect("a temporary file");
        std::fs::write(file.path(), toml).expect("the file is writable");
        let nothing = Environment::default().source(Some(config::Map::new()));
        let settings = Self::load_from(Some(file.path()), nothing, Overrides::default());
        settings.unwrap_or_else(|failure| panic!("{:?}", failure.lines()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        let pairs = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let source = Environment::with_prefix("TWINCAST")
            .prefix_separator("__")
            .separator("__")
            .source(Some(pairs));
        Settings::load_from(Some(file.path()), source, Overrides::default())
            .map_err(|failure| failure.lines().join("\n"))
    }

    #[test]
    fn later_sources_win() {
        let toml = "state = 'x'\n[hubs.eu]\nconnection_string = 'a'\ntier = 'S3'\nunits = 2\nshare = '50%'\n";
        let settings = load(
            toml,
            &[
                ("TWINCAST__WORKER__SLOTS", "7"),
                ("TWINCAST__HUBS__EU__UNITS", "4"),
            ],
        )
        .unwrap();
        assert_eq!(
            (settings.state.file_name(), settings.worker.slots),
            (Some("x".as_ref()), 7)
        );
        assert!(
            settings.state.is_absolute(),
            "the state folder is beside the file"
        );
        let state = |toml: &str, environment: &[(&str, &str)]| {
            load(toml, environment).unwrap().state.display().to_string()
        };
        assert_eq!(state("", &[]), "twincast-state");
        assert_eq!(state("state = 'x'", &[("TWINCAST__STATE", "y")]), "y");
        let hub = &settings.hubs[&HubName::new("eu").unwrap()];
        assert_eq!(hub.limits().sends_per_minute, Some(10_000.0));
        let shown = serde_json::to_string(&settings).unwrap() + &format!("{settings:?}");
        assert!(
            shown.contains("(secret)") && !shown.contains("\"a\""),
            "{shown}"
        );
    }

    #[test]
    fn assumed_limits_are_the_limits_in_force() {
        for (units, share, expected) in [
            ("", "", Some("(S1, 1 unit, 100 messages a minute)")),
            (
                "units = 3\n",
                "",
                Some("(S1, 3 units, 300 messages a minute)"),
            ),
            (
                "units = 3\n",
                "share = '50%'\n",
                Some("(S1, 3 units, 150 messages a minute)"),
            ),
            ("units = 3\ntier = 'S1'\n", "", None),
            ("unlimited = true\n", "", None),
        ] {
            let toml = format!("[hubs.eu]\nconnection_string = 'a'\n{units}{share}");
            let settings = load(&toml, &[]).unwrap();
            let assumed = settings.hubs[&HubName::new("eu").unwrap()].assumed_limits();
            assert_eq!(assumed.is_some(), expected.is_some(), "{toml}");
            let assumed = assumed.unwrap_or_default();
            assert!(assumed.contains(expected.unwrap_or_default()), "{assumed}");
        }
    }

    #[test]
    fn values_of_roles_may_have_any_characters() {
        let toml = "[api.oidc]\nissuer = 'https://i'\naudience = 'a'\n[api.oidc.roles]\noperator = ['Fleet.Ops', '/a b/C']\n";
        let environment = [
            ("TWINCAST__API__OIDC__AUDIENCE", "api://B"),
            ("TWINCAST__API__OIDC__ROLES__ADMIN", "Root"),
        ];
        let settings = load(toml, &environment).unwrap();
        let oidc = serde_json::to_value(settings.api.oidc).unwrap();
        assert_eq!(
            oidc,
            serde_json::json!({
                "issuer": "https://i", "audience": "api://B", "roles_claim": "roles", "name_claim": "preferred_username",
                "roles": { "viewer": [], "operator": ["Fleet.Ops", "/a b/C"], "approver": [], "admin": ["Root"] },
            })
        );
    }

    #[test]
    fn values_of_the_environment_are_texts() {
        let texts = [
            ("TWINCAST__STATE", "007"),
            ("TWINCAST__PROMETHEUS__TOKEN", "1234567890"),
            ("TWINCAST__AMQP__PREFIX", "1e3"),
            ("TWINCAST__LOG__FILTER", "true"),
            ("TWINCAST__WORKER__SLOTS", "7"),
            ("TWINCAST__REDIS__CLUSTER", "true"),
            ("TWINCAST__HUBS__EU__CONNECTION_STRING", "12"),
        ];
        let settings = load("", &texts).unwrap();
        assert_eq!(settings.state, Path::new("007"));
        assert_eq!(settings.prometheus.token.unwrap().expose(), "1234567890");
        assert_eq!(settings.amqp.prefix, "1e3");
        assert_eq!(settings.log.filter.as_deref(), Some("true"));
        assert_eq!((settings.worker.slots, settings.redis.cluster), (7, true));
        let error = load("", &[("TWINCAST__WORKER__SLOTS", "many")]).unwrap_err();
        assert!(
            error.contains("worker.slots: is the text \"many\", and must be a whole number"),
            "{error}"
        );
    }

    /// Mistakes in secrets, and in texts possibly containing a secret.
    #[test]
    fn no_problem_shows_a_secret() {
        for (toml, at) in [
            (
                "[prometheus]\ntoken = 12345670\n",
                "prometheus.token: must be a text",
            ),
            (
                "[prometheus]\ntoken = [\"12345670\"]\n",
                "prometheus.token: must be a text",
            ),
            (
                "[amqp]\nurl = { pass = \"12345670\" }\n",
                "amqp.url: must be a text",
            ),
            (
                "[prometheus]\nuser = \"ann\"\npassword = 12345670\n",
                "prometheus.password: must be a text",
            ),
            (
                "[otlp]\nheaders = 12345670.5\n",
                "otlp.headers: must be a text",
            ),
            (
                "[server]\ntoken = 12345670\n",
                "server.token: must be a text",
            ),
            (
                "[hubs.eu]\nconnection_string = 12345670\n",
                "hubs.eu.connection_string: must be a text",
            ),
            ("hubs = \"12345670\"\n", "hubs: must be a table"),
            (
                "[hubs]\neu = \"12345670\"\n",
                "hubs.eu: is a text, and must be a map",
            ),
            (
                "redis = \"redis://:12345670@host\"\n",
                "redis: is a text, and must be a map",
            ),
            ("[server]\ntoken = \"12345670\n", "line 2"),
        ] {
            let error = load(toml, &[]).unwrap_err();
            assert!(error.contains(at), "{at}: {error}");
            assert!(!error.contains("1234567"), "{error}");
        }
        let error = load("", &[("TWINCAST__REDIS", "redis://:12345670@host")]).unwrap_err();
        assert!(!error.contains("1234567"), "{error}");
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = load(
            "colour = 1\n[worker]\nslots = 0\nwindw = 3\n[hubs.eu]\nunits = 11\ntier = 'S3'\n[hubs.us]\nshare = '0%'\n[hubs.in]\nsend_timeout = '20ms'\n[run]\ngive_up_after = 'x'\n[prometheus]\nurl = 'http://a:b@c'\ntoken = 'secret'\ntoken_file = 'f'\nuser = 'a:b'\ntimeout = '1h'\n[otlp]\nurl = 'collector:4318'\n[traces]\nsampled = '0%'\n[api.oidc]\nissuer = ''\naudience = 'x'\nkeys_file = 'f'\nkeys_url = 'https://a:b@c'\n[api.oidc.roles]\nadmin = ['']\n",
            &[],
        )
        .unwrap_err();
        for part in [
            "colour: is not a key",
            "worker.windw: is not a field here; the fields are slots, window",
            "hubs.eu: must have exactly one of",
            "hubs.eu.units: must be 1 to 10 for tier S3",
            "hubs.us.share: \"0%\" is not a share",
            "hubs.in.send_timeout: must be 1s to 1h",
            "run.give_up_after: \"x\" is not a duration",
            "prometheus: must have only one of token",
            "prometheus: must have only one of a token, and user and password",
            "prometheus: must have both user and password",
            "prometheus.user: must have no colon",
            "prometheus.url: the address must have no user",
            "prometheus.timeout: must be 100ms to 1m",
            "otlp.url: \"collector:4318\" is not the address of a server",
            "traces.sampled: \"0%\" is not a share",
            "api.oidc.issuer: must not be empty",
            "api.oidc: must have no user and password",
            "api.oidc: must have only one of keys_file and keys_url",
            "api.oidc.roles: must have values for at least one role",
        ] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}
