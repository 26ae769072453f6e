//! The HTTP API of a server, asked in place of the services behind it.
//!
//! Every request may be made twice ("twice is once", docs/api.md): operations by their keys. So what may pass is tried again.

mod answer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Client, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use twincast_core::ids::{CommandKey, DeviceId, RolloutName};
use twincast_core::json::Json;
use twincast_core::outcome::{Class, Outcome};
use twincast_core::spec::Span;
use twincast_core::trace::TRACEPARENT;
use twincast_orchestrator::command::{Answer, Command, KEY_HEADER, Kind};
use twincast_orchestrator::view::devices::{Format, Wanted};
use twincast_orchestrator::view::explain::Explanation;
use twincast_orchestrator::view::hubs::HubList;
use twincast_orchestrator::view::outcomes::Outcomes;
use twincast_orchestrator::view::plan::PlanView;
use twincast_orchestrator::view::{RolloutRow, RolloutView, Stopped};
use twincast_retry::Policy;

use crate::commander;
use crate::config::{SecretText, Settings};
use crate::exit::{ExitCode, Failure};
use crate::place::Listing;
use crate::socket;
use crate::textfile;

use answer::Trouble;

/// How long it may take to be connected.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may be silent in the midst of a stream.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a process of this machine may take to answer; it waits for its disk, at the most.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(20);
/// The most rollouts of a page.
const PAGE: usize = 200;

/// The server that is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) allow_http: bool,
    pub(crate) timeout: Span,
}

/// A server whose API is asked.
pub(crate) struct Server {
    http: Client,
    /// Up to and with `/api/v1`.
    base: Url,
    token: Option<HeaderValue>,
    /// How long an answer is waited for.
    timeout: Duration,
    /// The server as it is shown.
    shown: String,
    /// It works on a folder of this machine, and takes the name of who asks as it is given.
    folder: Option<FolderServer>,
}

/// What is kept of a server on a state folder.
struct FolderServer {
    /// The folder, while its path is made from it being open.
    _open: Option<File>,
}

/// A page of rollouts.
#[derive(Deserialize)]
struct Page {
    rollouts: Vec<RolloutRow>,
    next: Option<String>,
    #[serde(default)]
    newer: Vec<RolloutName>,
    #[serde(default)]
    damaged: Vec<RolloutName>,
    stopped: Option<Stopped>,
}

/// Messages that could not be used.
#[derive(Deserialize)]
struct Letters {
    dead_letters: Vec<Value>,
}

impl Server {
    /// The configured server; `None` when there is none. Nothing is dialled yet.
    pub(crate) fn configured(settings: &Settings) -> Result<Option<Self>, Failure> {
        let from = &settings.server;
        let Some(url) = &from.url else {
            return Ok(None);
        };
        let base = base(url, from.allow_http)?;
        let mut http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("twincast/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tcp_keepalive(SILENCE);
        if base.scheme() == "http" {
            // What goes to this machine in clear must not leave it by way of a proxy.
            http = http.no_proxy();
        }
        if let Some(file) = &from.ca_file {
            let path = settings.base.join(file);
            let doing = || format!("cannot use server.ca_file {}", path.display());
            let pem = textfile::read("server.ca_file", &path);
            let bundle = |pem: String| Certificate::from_pem_bundle(pem.as_bytes());
            let read = pem.and_then(|pem| bundle(pem).with_context(doing));
            http = http.tls_certs_merge(read.map_err(refused)?);
        }
        // The library asks for one that the whole process uses; there may be one already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = http.build().context("cannot set up TLS").map_err(refused)?;
        let mut shown = base.clone();
        shown.set_path("");
        Ok(Some(Self {
            http,
            base,
            token: token(settings)?,
            timeout: from.timeout.0,
            shown: format!("the server at {}", shown.as_str().trim_end_matches('/')),
            folder: None,
        }))
    }

    /// The process that works on the state in `dir`, asked through its socket.
    pub(crate) fn of_folder(
        socket: PathBuf,
        open: Option<File>,
        dir: &Path,
    ) -> Result<Self, Failure> {
        // The library asks for one that the whole process uses, though nothing is encrypted here.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().unix_socket(socket).build();
        let http = http.context("cannot set up HTTP").map_err(refused)?;
        Ok(Self {
            http,
            base: Url::parse("http://localhost/api/v1").expect("a valid address"),
            token: None,
            timeout: FOLDER_TIMEOUT,
            shown: format!("the twincast that works on {}", dir.display()),
            folder: Some(FolderServer { _open: open }),
        })
    }

    /// It works on a folder of this machine, for as long as that takes.
    pub(crate) fn is_of_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// The same with another limit on how long an answer is waited for.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Has a command done.
    pub(crate) async fn command(&self, command: &Command) -> Result<Answer, Failure> {
        let name = command.rollout.as_ref();
        let kind = command.name();
        let (path, body) = match (command.command, name) {
            (Kind::Status, Some(name)) => {
                let rollouts = vec![self.rollout(name).await?.row.state];
                return Ok(Answer {
                    ok: true,
                    changed: false,
                    rollouts,
                    note: None,
                });
            }
            (Kind::Start, _) => (vec!["rollouts"], command.spec.clone()),
            (_, Some(name)) => (vec!["rollouts", name.as_str(), &kind], None),
            (_, None) => (vec![&*kind], None),
        };
        let body = match body {
            Some(spec) => spec,
            None => Json::of(&said(command)).map_err(|error| refused(error.into()))?,
        };
        let key = command.key.as_ref();
        let by = command.by.as_deref();
        let asked = Asked::Post {
            body: &body,
            key,
            by,
        };
        self.json(asked, &path, &[]).await
    }

    /// A rollout as it is now.
    pub(crate) async fn rollout(&self, name: &RolloutName) -> Result<RolloutView, Failure> {
        self.get(&["rollouts", name.as_str()]).await
    }

    /// What became of a rollout's devices.
    pub(crate) async fn outcomes(&self, name: &RolloutName) -> Result<Outcomes, Failure> {
        self.get(&["rollouts", name.as_str(), "outcomes"]).await
    }

    /// Where a device is in a rollout.
    pub(crate) async fn explain(
        &self,
        name: &RolloutName,
        device: &DeviceId,
    ) -> Result<Explanation, Failure> {
        if matches!(device.as_str(), "." | "..") {
            // No URL can name it: these are steps of a path, also when they are encoded.
            let message = format!("device {device} cannot be asked for over HTTP");
            return Err(Failure::message(ExitCode::Refused, message)
                .hint("ask the store: configure redis.url or --state, and no server"));
        }
        let path = ["rollouts", name.as_str(), "devices", device.as_str()];
        self.get(&path).await
    }

    /// All rollouts, by name, and those that cannot be shown.
    pub(crate) async fn rollouts(&self) -> Result<Listing, Failure> {
        let limit = PAGE.to_string();
        let mut all = Listing::default();
        let mut after = String::new();
        loop {
            let part = [("limit", &*limit), ("after", &after)];
            let page: Page = self.json(Asked::Get, &["rollouts"], &part).await?;
            all.rows.extend(page.rollouts);
            all.newer.extend(page.newer);
            all.damaged.extend(page.damaged);
            all.stopped = page.stopped;
            match page.next {
                Some(next) => after = next,
                None => return Ok(all),
            }
        }
    }

    /// What a spec would come to. It may take hours, and is asked for once: each time costs the hubs' quota for queries.
    pub(crate) async fn plan(&self, spec: &Json) -> Result<PlanView, Failure> {
        let url = self.url(&["plan"], &[]);
        let asked = Asked::Post {
            body: spec,
            key: None,
            by: None,
        };
        let response = answer::of(self.request(asked, url)).await;
        self.read(response.map_err(|trouble| trouble.failure(&self.shown))?)
            .await
    }

    /// The hubs, with what they have to give.
    pub(crate) async fn hubs(&self) -> Result<HubList, Failure> {
        self.get(&["hubs"]).await
    }

    /// The oldest hundred of the messages that could not be used.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<Value>, Failure> {
        let letters: Letters = self.get(&["dead-letters"]).await?;
        Ok(letters.dead_letters)
    }

    /// The devices that are wanted, written by the server. What has come in part is not asked for again.
    pub(crate) async fn devices(
        &self,
        name: &RolloutName,
        wanted: &Wanted,
        format: Format,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, Failure>>, Failure> {
        let (of, names): (_, Vec<_>) = match wanted {
            Wanted::Outcomes(outcomes) => {
                let names = outcomes.iter().copied().map(Outcome::as_str);
                ("outcome", names.collect())
            }
            Wanted::Classes(classes) => {
                let names = classes.iter().copied().map(Class::as_str);
                ("class", names.collect())
            }
        };
        let names = names.join(",");
        let how = [(of, &*names), ("format", format.as_str())];
        let path = ["rollouts", name.as_str(), "export"];
        let response = self.ask(Asked::Get, &path, &how).await?;
        let shown = self.shown.clone();
        let pieces = stream::try_unfold(response, move |mut response| {
            let shown = shown.clone();
            async move {
                let piece = tokio::time::timeout(SILENCE, response.chunk()).await;
                let trouble = match piece {
                    Ok(Ok(piece)) => return Ok(piece.map(|piece| (piece, response))),
                    Ok(Err(error)) => Trouble::transit(error),
                    Err(_) => Trouble::Silent { after: SILENCE },
                };
                let error = anyhow::Error::new(trouble)
                    .context(format!("{shown} broke off: the devices are not complete"));
                Err(Failure::new(ExitCode::Services, error).hint("do it again"))
            }
        });
        Ok(pieces.boxed())
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.json(Asked::Get, path, &[]).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        asked: Asked<'_>,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let response = self.ask(asked, path, query).await?;
        self.read(response).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let read = tokio::time::timeout(SILENCE, answer::body(response)).await;
        let read = read.unwrap_or(Err(Trouble::Silent { after: SILENCE }));
        let body = read.map_err(|trouble| trouble.failure(&self.shown))?;
        serde_json::from_slice(&body).map_err(|error| {
            let doing = format!("the answer of {} is not understood", self.shown);
            Failure::new(
                ExitCode::Unexpected,
                anyhow::Error::new(error).context(doing),
            )
            .hint("is it an older or newer twincast? Ask it with its own version")
        })
    }

    /// Asks until it is answered, as long as what is in the way may pass and there is time.
    async fn ask(
        &self,
        asked: Asked<'_>,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Response, Failure> {
        let url = self.url(path, query);
        let until = Instant::now() + self.timeout;
        let mut delays = Policy::http_transient().delays();
        loop {
            let request = self.request(asked, url.clone());
            let silent = Trouble::Silent {
                after: self.timeout,
            };
            let answered = tokio::time::timeout_at(until, answer::of(request)).await;
            let trouble = match answered.unwrap_or(Err(silent)) {
                Ok(response) => return Ok(response),
                Err(trouble) => trouble,
            };
            let wait = trouble.may_pass().then(|| delays.next_delay()).flatten();
            let wait = wait.map(|wait| wait.max(trouble.retry_after()));
            match wait.filter(|wait| Instant::now() + *wait < until) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(trouble.failure(&self.shown)),
            }
        }
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an address of a server has a path")
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn request(&self, asked: Asked<'_>, url: Url) -> RequestBuilder {
        let mut request = match asked {
            Asked::Get => self.http.get(url),
            Asked::Post { body, .. } => self.http.post(url).json(body),
        };
        request = request.header(ACCEPT, "application/json, */*");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if let Some(caller) = commander::caller() {
            request = request.header(TRACEPARENT, caller.to_string());
        }
        if let Asked::Post { by: Some(by), .. } = asked
            && self.is_of_folder()
            && let Ok(by) = HeaderValue::from_bytes(by.as_bytes())
        {
            request = request.header(socket::BY, by);
        }
        match asked {
            Asked::Post { key: Some(key), .. } => request.header(KEY_HEADER, key.as_str()),
            _ => request,
        }
    }
}

/// What a request asks for. One that changes something has a key, by which it is known when it is made again.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Get,
    Post {
        body: &'a Json,
        key: Option<&'a CommandKey>,
        /// Who asks, where no token says it.
        by: Option<&'a str>,
    },
}

/// What an operation's body says of a command.
fn said(command: &Command) -> Value {
    let mut said = serde_json::to_value(command).expect("a command is plain data");
    if let Some(fields) = said.as_object_mut() {
        // The path says these, a header, and the token whose name it is done under.
        for elsewhere in ["command", "rollout", "key", "by"] {
            fields.remove(elsewhere);
        }
    }
    said
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

/// The address of a server's API.
fn base(url: &str, allow_http: bool) -> Result<Url, Failure> {
    let problem = |what: &str| Failure::message(ExitCode::Refused, format!("--server: {what}"));
    let mut base = Url::parse(url.trim()).map_err(|_| {
        let shown: String = url.chars().take(200).collect();
        problem(&format!(
            "{shown:?} is not the address of a server; write for example https://twincast.example"
        ))
    })?;
    if !base.username().is_empty() || base.password().is_some() {
        return Err(problem("the address must have no user and password in it")
            .hint("give a token as TWINCAST_TOKEN"));
    }
    if base.query().is_some() || base.fragment().is_some() || !base.has_host() {
        return Err(problem(
            "the address must be that of a server, with a path below it at the most",
        ));
    }
    match base.scheme() {
        "https" => {}
        "http" if allow_http || is_loopback(&base) => {}
        "http" => {
            return Err(problem(
                "plain http is for this machine only: others can read the token on the way",
            )
            .hint("write https://, or allow it with server.allow_http"));
        }
        other => {
            return Err(problem(&format!("{other:?} must be https")));
        }
    }
    let path = base.path().trim_end_matches('/');
    let path = path.strip_suffix("/api/v1").unwrap_or(path);
    let path = format!("{path}/api/v1");
    base.set_path(&path);
    Ok(base)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let address = host.trim_start_matches('[').trim_end_matches(']');
            let address = address.parse::<std::net::IpAddr>();
            address.is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

fn token(settings: &Settings) -> Result<Option<HeaderValue>, Failure> {
    let from = &settings.server;
    let text = match (&from.token, &from.token_file) {
        (Some(token), _) => token.expose().to_owned(),
        (None, Some(file)) => {
            let path = settings.base.join(file);
            textfile::read("server.token_file", &path).map_err(refused)?
        }
        (None, None) => return Ok(None),
    };
    let value = HeaderValue::try_from(format!("Bearer {}", text.trim()));
    // The library's error would show what was found.
    let mut value = value.map_err(|_| {
        let message =
            "the token (TWINCAST_TOKEN, or server.token_file) has characters that none has";
        Failure::message(ExitCode::Refused, message)
    })?;
    // Keeps it out of every Debug output of the HTTP libraries.
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests;
