//! The driver: takes what happens into the state, stores it, and then acts on it. It decides nothing.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, at_random};
use crate::clock::Clock;
use crate::config::{Config, span};
use crate::download::{self, Downloader};
use crate::hooks::{Context, Runner};
use crate::identity::{Credentials, IdentityError};
use crate::link::{FromHub, Link, ToHub, chain};
use crate::manifest;
use crate::report::Report;
use crate::store::Store;
use crate::tls::{self, TlsError};
use crate::update::{Event, Hook, HookEnd, ID_MAX, Patch, State, Step, Work};
use crate::version;

/// Why an agent cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// Its identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its certificates, or whom it trusts.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its folder.
    #[error("cannot use the folder {}", .folder.display())]
    Store {
        /// The folder.
        folder: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// HTTP, or its proxy.
    #[error("cannot use HTTP as configured")]
    Http(#[source] reqwest::Error),
}

/// A device agent that is ready to run.
pub struct Agent {
    config: Config,
    store: Store,
    state: State,
    clock: Clock,
    runner: Runner,
    downloader: Downloader,
    link: Option<Link>,
    from_hub: mpsc::Receiver<FromHub>,
    boot: String,
    /// To the hub, while there is a connection.
    hub: Option<mpsc::Sender<ToHub>>,
    /// The twin was read, and nothing is being written to it: reports may be written.
    may_report: bool,
    report_backoff: Backoff,
    report_at: Option<tokio::time::Instant>,
    work: Option<(Work, JoinHandle<Event>)>,
}

/// How many events of the hub wait for the driver.
const EVENTS_MAX: usize = 16;

impl Agent {
    /// Opens the folder, reads keys and certificates. Nothing is sent yet.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn new(config: Config) -> Result<Self, AgentError> {
        let clock = Clock::default();
        let in_folder = |source| AgentError::Store {
            folder: config.state.clone(),
            source,
        };
        let store = Store::open(&config.state).map_err(in_folder)?;
        let credentials = Credentials::load(&config.identity)?;
        let ca_file = config.hub.ca_file.as_deref();
        let tls = tls::client(ca_file, credentials.certificate(), &clock)?;
        let anonymous = tls::client(ca_file, None, &clock)?;
        let (events, from_hub) = mpsc::channel(EVENTS_MAX);
        let state = store.load().map_err(in_folder)?;
        let installed = config.firmware.version.clone();
        let link = Link {
            settings: config.hub.clone(),
            property: config.firmware.property.clone(),
            http: http(&config, &tls)?,
            credentials,
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
            link: Some(link),
            from_hub,
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

    /// Runs until `stop`. A hook that runs then goes on, and is found by the next run.
    ///
    /// # Errors
    /// None while it runs: what can pass is waited for.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let ended = CancellationToken::new();
        let link = self
            .link
            .take()
            .map(|link| tokio::spawn(link.run(ended.clone())));
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
        self.from_hub.close();
        if let Some(link) = link {
            _ = link.await;
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
            self.sync_work().await;
            self.tell();
            let report_at = self.report_at;
            tokio::select! {
                event = self.from_hub.recv() => match event {
                    Some(event) => self.heard(event).await,
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

    /// Takes an event into the state. Nothing is done before that is stored.
    async fn apply(&mut self, event: Event) {
        let mut next = self.state.clone();
        next.on(event, &self.config.limits(), self.clock.now());
        if next == self.state {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while let Err(error) = self.store.save(&next) {
            let wait = backoff.next();
            tracing::error!(%error, wait_ms = wait.as_millis(), "state cannot be stored; nothing is done until it can");
            tokio::time::sleep(wait).await;
        }
        let before = std::mem::replace(&mut self.state, next);
        if before.said != self.state.said
            && let Some(report) = &self.state.said
        {
            log(report);
        }
        let id = |state: &State| state.current.as_ref().map(|update| update.id.clone());
        if before.current.is_some() && id(&before) != id(&self.state) {
            self.tidy();
        }
    }

    /// Removes what an update has left.
    fn tidy(&self) {
        if let Err(error) = crate::store::clear(&self.store.downloads()) {
            tracing::warn!(%error, "artefact cannot be removed");
        }
        self.runner.clear();
    }

    /// Does what the state asks for, and nothing else.
    async fn sync_work(&mut self) {
        let wanted = self.state.work();
        if self.work.as_ref().map(|(work, _)| work) == wanted.as_ref() {
            return;
        }
        if let Some((_, running)) = self.work.take() {
            running.abort();
            _ = running.await;
        }
        self.work = wanted.map(|work| {
            let running = self.start(&work);
            (work, running)
        });
    }

    fn start(&self, work: &Work) -> JoinHandle<Event> {
        let clock = self.clock.clone();
        match work.clone() {
            Work::Check(body) => {
                let (policy, installed) = (self.config.policy(), self.state.installed.clone());
                let jitter = at_random(span(self.config.download.jitter));
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
                // In pieces: the clock may be set meanwhile.
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
                tokio::spawn(async move { Event::Healthy(runner.healthy(&context).await) })
            }
        }
    }

    fn start_hook(&self, hook: Hook, attempt: u32) -> JoinHandle<Event> {
        let (runner, context, boot) = (self.runner.clone(), self.context(), self.boot.clone());
        let firmware = self.config.firmware.clone();
        let update = self.state.current.as_ref();
        let artifact = update.and_then(|update| Some(update.manifest.as_ref()?.artifact.clone()));
        tokio::spawn(async move {
            // The last look before it is installed: between download and now the machine may have lost its power.
            let is_good = match (&artifact, hook) {
                (Some(artifact), Hook::Install) => {
                    download::verify(&context.artifact, artifact).await
                }
                _ => Ok(true),
            };
            let end = match is_good {
                Ok(true) => runner.run(hook, attempt, &context).await,
                Ok(false) => HookEnd::Failed(
                    "the artefact on the disk is not what the manifest says".to_owned(),
                ),
                Err(reason) => HookEnd::Failed(reason.text),
            };
            Event::Ended {
                end,
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

    /// Tells the hub what it is to be told, one write at a time.
    fn tell(&mut self) {
        let Some(patch) = self.state.patch().filter(|_| self.may_report) else {
            return;
        };
        if self.send(ToHub::Report(patch)) {
            self.may_report = false;
        }
    }

    /// Whether the connection took it. What it did not take comes again: messages by the hub, reports by the state.
    fn send(&self, command: ToHub) -> bool {
        self.hub
            .as_ref()
            .is_some_and(|hub| hub.try_send(command).is_ok())
    }

    async fn heard(&mut self, event: FromHub) {
        match event {
            FromHub::Up(hub) => {
                tracing::info!("connected to the hub");
                self.hub = Some(hub);
            }
            FromHub::Down => {
                self.hub = None;
                self.may_report = false;
                self.report_at = None;
            }
            FromHub::Twin(twin) => {
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
            FromHub::Desired(patch) => {
                if let Some(update) = patch
                    .get("update")
                    .filter(|it| it.is_null() || it.get("cancel").is_some())
                {
                    self.apply(Event::Desired(cancel_of(update))).await;
                }
            }
            FromHub::Message {
                packet,
                properties,
                body,
            } => {
                if let Some(event) = message(&properties, &body) {
                    self.apply(event).await;
                }
                if let Some(packet) = packet {
                    self.send(ToHub::Acknowledge(packet));
                }
            }
            FromHub::Method { name, rid } => {
                let (status, body) = match &*name {
                    "update.status" => (200, self.status()),
                    _ => (
                        404,
                        json!({ "error": "the agent has the method update.status" }),
                    ),
                };
                self.send(ToHub::Answer { rid, status, body });
            }
            FromHub::Reported(patch) => {
                self.apply(Event::Reported(patch)).await;
                self.report_backoff.reset();
                self.may_report = true;
            }
            FromHub::NotReported { status } => {
                let wait = self.report_backoff.next().max(Duration::from_millis(500));
                tracing::warn!(
                    status,
                    wait_ms = wait.as_millis(),
                    "hub did not take the report"
                );
                self.report_at = Some(tokio::time::Instant::now() + wait);
            }
        }
    }

    /// What the direct method `update.status` answers.
    fn status(&self) -> Value {
        json!({
            "agent": env!("CARGO_PKG_VERSION"),
            "version": self.state.installed,
            "update": self.state.said,
            "step": self.state.current.as_ref().map(|update| &update.step),
            "waiting": self.state.waiting.iter().map(|update| &update.id).collect::<Vec<_>>(),
            "at": self.clock.now(),
        })
    }

    fn installed(&self) -> Option<String> {
        installed(&self.config.firmware)
    }
}

/// The version that the device says it runs.
fn installed(firmware: &crate::config::Firmware) -> Option<String> {
    let path = firmware.version_file.as_ref()?;
    let text = std::fs::read_to_string(path);
    match text.as_deref().map(str::trim) {
        Ok(text) if version::is_version(text) => return Some(text.to_owned()),
        Ok(_) => tracing::warn!(path = %path.display(), "version file has no version"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "version file cannot be read"),
    }
    None
}

/// What a message asks for. What the agent does not understand is acknowledged: the hub would only send it again.
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
                    "message with an update has no usable id and is dropped: nobody could be answered"
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
                    tracing::warn!("message that cancels does not say what, and is dropped");
                    None
                }
            }
        }
        _ => {
            tracing::warn!(
                kind = property("kind"),
                "message of another kind is dropped"
            );
            None
        }
    }
}

/// What `{"cancel": "..."}` asks to give up.
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

/// How the work came out, once it has; nothing if it ended in a defect. It is begun anew then, as it is after a crash, and
/// after a pause.
async fn finished(work: &mut Option<(Work, JoinHandle<Event>)>) -> Option<Event> {
    let Some((_, running)) = work else {
        return std::future::pending().await;
    };
    let error = match running.await {
        Ok(event) => return Some(event),
        Err(error) => error,
    };
    *work = None;
    tracing::error!(error = chain(&error), "work ended in a defect");
    tokio::time::sleep(Duration::from_secs(10)).await;
    None
}

/// Waits until then; for ever, if there is no then.
pub(crate) async fn until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
