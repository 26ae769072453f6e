//! The driver: applies events to the state, stores the state, and then performs the work due.
//! [`crate::update`] makes all decisions.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, at_random};
use crate::clock::Clock;
use crate::config::{Config, to_std};
use crate::download::{self, Downloader};
use crate::hooks::{Context, Runner};
use crate::hub_connection::{HubCommand, HubConnection, HubEvent, error_chain};
use crate::identity::{DeviceIdentity, IdentityError};
use crate::manifest;
use crate::report::Report;
use crate::store::Store;
use crate::tls::{self, TlsError};
use crate::update::{Event, Hook, HookResult, ID_MAX, Patch, State, Step, Work};
use crate::version;

/// Errors of [`Agent::new`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The device's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The device's certificate or the trusted certificate authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The state folder cannot be used.
    #[error("cannot use the state folder {}", .folder.display())]
    Store {
        /// The folder.
        folder: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The HTTP client or the proxy cannot be used.
    #[error("cannot set up the HTTP client")]
    Http(#[source] reqwest::Error),
}

/// A device agent, ready to run.
pub struct Agent {
    config: Config,
    store: Store,
    state: State,
    clock: Clock,
    runner: Runner,
    downloader: Downloader,
    connection: Option<HubConnection>,
    hub_events: mpsc::Receiver<HubEvent>,
    boot: String,
    /// The channel to the hub, while a connection is up.
    hub: Option<mpsc::Sender<HubCommand>>,
    /// Whether a report may be written now: the twin was read, and no write is outstanding.
    may_report: bool,
    report_backoff: Backoff,
    report_at: Option<tokio::time::Instant>,
    work: Option<(Work, JoinHandle<Event>)>,
}

/// The capacity of the channel of hub events to the driver.
const EVENTS_MAX: usize = 16;

impl Agent {
    /// Opens the state folder and reads keys and certificates. Sends nothing yet.
    ///
    /// # Errors
    /// [`AgentError`] if folder, identity, certificates or HTTP settings cannot be used.
    pub fn new(config: Config) -> Result<Self, AgentError> {
        let clock = Clock::default();
        let in_folder = |source| AgentError::Store {
            folder: config.state.clone(),
            source,
        };
        let store = Store::open(&config.state).map_err(in_folder)?;
        let identity = DeviceIdentity::load(&config.identity)?;
        let ca_file = config.hub.ca_file.as_deref();
        let tls = tls::client(ca_file, identity.certificate(), &clock)?;
        let anonymous = tls::client(ca_file, None, &clock)?;
        let (events, hub_events) = mpsc::channel(EVENTS_MAX);
        let state = store.load().map_err(in_folder)?;
        let installed = config.firmware.version.clone();
        let connection = HubConnection {
            settings: config.hub.clone(),
            property: config.firmware.property.clone(),
            http: http(&config, &tls)?,
            identity,
            tls,
            clock: clock.clone(),
            store: store.clone(),
            events,
        };
        Ok(Self {
            runner: Runner {
                hooks: config.hooks.clone(),
                slots: config.slots.clone(),
                health: config.health.clone(),
                folder: store.hooks(),
            },
            downloader: Downloader {
                http: http(&config, &anonymous)?,
                settings: config.download.clone(),
                folder: store.downloads(),
                clock: clock.clone(),
            },
            state: state.unwrap_or_else(|| State::new(installed)),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            connection: Some(connection),
            hub_events,
            hub: None,
            may_report: false,
            report_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            report_at: None,
            work: None,
            config,
            store,
            clock,
        })
    }

    /// Runs until `stop` completes. A hook running at this moment continues, and the next run of
    /// the agent waits for it.
    ///
    /// Transient errors are retried, so the method returns no error.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let ended = CancellationToken::new();
        let connection = self
            .connection
            .take()
            .map(|connection| tokio::spawn(connection.run(ended.clone())));
        {
            let drive = self.drive();
            tokio::pin!(drive, stop);
            tokio::select! {
                () = &mut drive => {}
                () = &mut stop => {}
            }
        }
        ended.cancel();
        if let Some((_, work)) = self.work.take() {
            work.abort();
            _ = work.await;
        }
        self.hub_events.close();
        if let Some(connection) = connection {
            _ = connection.await;
        }
    }

    async fn drive(&mut self) {
        tracing::info!(version = self.state.installed, "agent starts");
        let started = Event::Started {
            boot: self.boot.clone(),
            installed: self.installed(),
        };
        self.apply(started).await;
        if self.state.current.is_none() {
            self.tidy();
        }
        loop {
            self.start_due_work().await;
            self.send_report();
            let report_at = self.report_at;
            tokio::select! {
                event = self.hub_events.recv() => match event {
                    Some(event) => self.handle_hub_event(event).await,
                    None => return,
                },
                event = finished(&mut self.work) => {
                    if let Some(event) = event {
                        self.work = None;
                        self.apply(event).await;
                    }
                }
                () = until(report_at) => {
                    self.report_at = None;
                    self.may_report = self.hub.is_some();
                }
            }
        }
    }

    /// Applies an event to the state and stores the result. Retries until the state is stored; no
    /// work resulting from the event starts earlier.
    async fn apply(&mut self, event: Event) {
        let mut next = self.state.clone();
        next.on(event, &self.config.limits(), self.clock.now());
        if next == self.state {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while let Err(error) = self.store.save(&next) {
            let wait = backoff.next();
            tracing::error!(%error, wait_ms = wait.as_millis(), "failed to store the state; no further work starts until a retry succeeds");
            tokio::time::sleep(wait).await;
        }
        let before = std::mem::replace(&mut self.state, next);
        if before.last_report != self.state.last_report
            && let Some(report) = &self.state.last_report
        {
            log(report);
        }
        let id = |state: &State| state.current.as_ref().map(|update| update.id.clone());
        if before.current.is_some() && id(&before) != id(&self.state) {
            self.tidy();
        }
    }

    /// Removes the downloaded artefact and the hook results of an ended update.
    fn tidy(&self) {
        if let Err(error) = crate::store::clear(&self.store.downloads()) {
            tracing::warn!(%error, "failed to remove the downloaded artefact");
        }
        self.runner.clear();
    }

    /// Starts the work due in the state, after stopping any other work.
    async fn start_due_work(&mut self) {
        let due_work = self.state.work();
        if self.work.as_ref().map(|(work, _)| work) == due_work.as_ref() {
            return;
        }
        if let Some((_, running)) = self.work.take() {
            running.abort();
            _ = running.await;
        }
        self.work = due_work.map(|work| {
            let running = self.start(&work);
            (work, running)
        });
    }

    fn start(&self, work: &Work) -> JoinHandle<Event> {
        let clock = self.clock.clone();
        match work.clone() {
            Work::Check(body) => {
                let (policy, installed) = (self.config.policy(), self.state.installed.clone());
                let jitter = at_random(to_std(self.config.download.jitter));
                tokio::spawn(async move {
                    let now = clock.now();
                    let result =
                        manifest::check(body.as_bytes(), &policy, installed.as_deref(), now);
                    Event::Checked {
                        result,
                        until: now.checked_add(jitter).unwrap_or(now),
                    }
                })
            }
            Work::Wait(until) => tokio::spawn(async move {
                // Sleep for at most 60 s at a time: the clock may be set meanwhile.
                while let Ok(left) = Duration::try_from(until.duration_since(clock.now()))
                    && !left.is_zero()
                {
                    tokio::time::sleep(left.min(Duration::from_secs(60))).await;
                }
                Event::Due
            }),
            Work::Download { artifact, since } => {
                let downloader = self.downloader.clone();
                tokio::spawn(
                    async move { Event::Downloaded(downloader.fetch(&artifact, since).await) },
                )
            }
            Work::Run(hook, attempt) => self.start_hook(hook, attempt),
            Work::Health => {
                let (runner, context) = (self.runner.clone(), self.context());
                tokio::spawn(async move {
                    Event::HealthChecked(runner.wait_until_healthy(&context).await)
                })
            }
        }
    }

    fn start_hook(&self, hook: Hook, attempt: u32) -> JoinHandle<Event> {
        let (runner, context, boot) = (self.runner.clone(), self.context(), self.boot.clone());
        let firmware = self.config.firmware.clone();
        let update = self.state.current.as_ref();
        let artifact = update.and_then(|update| Some(update.manifest.as_ref()?.artifact.clone()));
        tokio::spawn(async move {
            // Verify the artefact again before the installation: the machine may have lost power
            // since the download.
            let is_good = match (&artifact, hook) {
                (Some(artifact), Hook::Install) => {
                    download::verify(&context.artifact, artifact).await
                }
                _ => Ok(true),
            };
            let result = match is_good {
                Ok(true) => runner.run(hook, attempt, &context).await,
                Ok(false) => HookResult::Failed(
                    "the artefact on the disk does not match the size and SHA-256 in the manifest"
                        .to_owned(),
                ),
                Err(reason) => HookResult::Failed(reason.text),
            };
            Event::HookEnded {
                result,
                boot,
                installed: installed(&firmware),
            }
        })
    }

    fn context(&self) -> Context {
        let update = self.state.current.as_ref();
        let manifest = update.and_then(|update| update.manifest.as_ref());
        let reason = update.and_then(|update| match &update.step {
            Step::RollingBack { reason } => Some(reason.code.clone()),
            _ => None,
        });
        Context {
            id: update.map(|update| update.id.clone()).unwrap_or_default(),
            name: manifest
                .map(|manifest| manifest.name.clone())
                .unwrap_or_default(),
            version: manifest
                .map(|manifest| manifest.version.clone())
                .unwrap_or_default(),
            previous: self.state.installed.clone(),
            artifact: self.downloader.path(),
            reason,
        }
    }

    /// Writes the next pending report to the twin, a single write at a time.
    fn send_report(&mut self) {
        let Some(patch) = self.state.patch().filter(|_| self.may_report) else {
            return;
        };
        if self.send(HubCommand::Report(patch)) {
            self.may_report = false;
        }
    }

    /// Passes a command to the connection and returns whether the connection accepted the command.
    /// A rejected command needs no retry: the hub delivers an unacknowledged message again, and a
    /// pending report stays in the state.
    fn send(&self, command: HubCommand) -> bool {
        self.hub
            .as_ref()
            .is_some_and(|hub| hub.try_send(command).is_ok())
    }

    async fn handle_hub_event(&mut self, event: HubEvent) {
        match event {
            HubEvent::Up(hub) => {
                tracing::info!("connected to the hub");
                self.hub = Some(hub);
            }
            HubEvent::Down => {
                self.hub = None;
                self.may_report = false;
                self.report_at = None;
            }
            HubEvent::Twin(twin) => {
                self.apply(Event::Desired(cancel_of(&twin["desired"]["update"])))
                    .await;
                let reported = &twin["reported"];
                let patch = Patch {
                    update: serde_json::from_value(reported["update"].clone()).ok(),
                    version: reported[&self.config.firmware.property]
                        .as_str()
                        .map(str::to_owned),
                };
                self.apply(Event::Twin(patch)).await;
                self.may_report = true;
            }
            HubEvent::Desired(patch) => {
                if let Some(update) = patch
                    .get("update")
                    .filter(|it| it.is_null() || it.get("cancel").is_some())
                {
                    self.apply(Event::Desired(cancel_of(update))).await;
                }
            }
            HubEvent::Message {
                packet,
                properties,
                body,
            } => {
                if let Some(event) = message(&properties, &body) {
                    self.apply(event).await;
                }
                if let Some(packet) = packet {
                    self.send(HubCommand::Acknowledge(packet));
                }
            }
            HubEvent::Method { name, rid } => {
                let (status, body) = match &*name {
                    "update.status" => (200, self.status()),
                    _ => (
                        404,
                        json!({ "error": "unknown method; the only method of the agent is update.status" }),
                    ),
                };
                self.send(HubCommand::Answer { rid, status, body });
            }
            HubEvent::Reported(patch) => {
                self.apply(Event::Reported(patch)).await;
                self.report_backoff.reset();
                self.may_report = true;
            }
            HubEvent::NotReported { status } => {
                let wait = self.report_backoff.next().max(Duration::from_millis(500));
                tracing::warn!(
                    status,
                    wait_ms = wait.as_millis(),
                    "hub did not accept the report; retrying"
                );
                self.report_at = Some(tokio::time::Instant::now() + wait);
            }
        }
    }

    /// Returns the answer to the direct method `update.status`.
    fn status(&self) -> Value {
        json!({
            "agent": env!("CARGO_PKG_VERSION"),
            "version": self.state.installed,
            "update": self.state.last_report,
            "step": self.state.current.as_ref().map(|update| &update.step),
            "waiting": self.state.waiting.iter().map(|update| &update.id).collect::<Vec<_>>(),
            "at": self.clock.now(),
        })
    }

    fn installed(&self) -> Option<String> {
        installed(&self.config.firmware)
    }
}

/// Returns the running version from the version file, or none without a valid file.
fn installed(firmware: &crate::config::Firmware) -> Option<String> {
    let path = firmware.version_file.as_ref()?;
    let text = std::fs::read_to_string(path);
    match text.as_deref().map(str::trim) {
        Ok(text) if version::is_version(text) => return Some(text.to_owned()),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "version file does not contain a valid version");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "failed to read the version file");
        }
    }
    None
}

/// Parses a cloud-to-device message into an event, or returns none for a message of no use to the
/// agent. The caller acknowledges such a message too, because the hub would only deliver it again.
fn message(properties: &[(String, String)], body: &[u8]) -> Option<Event> {
    let property = |name: &str| {
        properties
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    match property("kind") {
        Some("update") => {
            let id = property("$.mid").unwrap_or_default();
            if id.is_empty() || id.len() > ID_MAX || id.chars().any(char::is_control) {
                tracing::warn!(
                    "dropped an update message without a valid message id: no report could refer to the message"
                );
                return None;
            }
            Some(Event::Message {
                id: id.to_owned(),
                body: String::from_utf8_lossy(body).into_owned(),
            })
        }
        Some("cancel") => {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            match cancel_of(&body) {
                Some(target) => Some(Event::Cancel(target)),
                None => {
                    tracing::warn!("dropped a cancel message without a valid target");
                    None
                }
            }
        }
        _ => {
            tracing::warn!(
                kind = property("kind"),
                "dropped a message of an unknown kind"
            );
            None
        }
    }
}

/// Returns the target of `{"cancel": "..."}`: a message id or a rollout's name.
fn cancel_of(value: &Value) -> Option<String> {
    let target = value.get("cancel")?.as_str()?;
    (1..=ID_MAX)
        .contains(&target.len())
        .then(|| target.to_owned())
}

fn log(report: &Report) {
    let (code, text) = report
        .error
        .as_ref()
        .map(|it| (&*it.code, &*it.text))
        .unzip();
    let state = serde_json::to_value(report.state).unwrap_or_default();
    tracing::info!(
        id = report.id,
        state = state.as_str(),
        version = report.version,
        code,
        text,
        "update"
    );
}

fn http(config: &Config, tls: &rustls::ClientConfig) -> Result<reqwest::Client, AgentError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .connect_timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::limited(5))
        .user_agent(concat!("twincast-agent/", env!("CARGO_PKG_VERSION")));
    let builder = config.hub.proxy().apply(builder);
    builder
        .and_then(reqwest::ClientBuilder::build)
        .map_err(AgentError::Http)
}

/// Waits for the running work and returns the resulting event. After a panic of the work, pauses
/// for 10 seconds and returns none; the work then starts anew, as after a crash.
async fn finished(work: &mut Option<(Work, JoinHandle<Event>)>) -> Option<Event> {
    let Some((_, running)) = work else {
        return std::future::pending().await;
    };
    let error = match running.await {
        Ok(event) => return Some(event),
        Err(error) => error,
    };
    *work = None;
    tracing::error!(
        error = error_chain(&error),
        "task panicked; it starts again in 10 s"
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    None
}

/// Sleeps until `instant`, or forever without an instant.
pub(crate) async fn until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
