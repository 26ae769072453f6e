//! A client of the HTTP API: of a server, of the process working on a state folder, or of a router
//! in this process on a local state folder or Redis. Commands use the client without knowing the
//! target.
//!
//! ```text
//!  command ──▶ request ──▶ network │ socket │ router in this process ──▶ response ──▶ result | failure
//! ```
//!
//! Every request may be repeated ("Repeated requests", docs/reference/api.md): operations carry
//! keys. The client therefore retries transient errors.

mod answer;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use axum::http::{Method, Request, Response, Uri};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tower::ServiceExt as _;
use twincast_core::ids::{CommandKey, DeviceId, RolloutName};
use twincast_core::json::Json;
use twincast_core::outcome::{Outcome, OutcomeClass};
use twincast_core::time::Timestamp;
use twincast_core::trace::TRACEPARENT;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::Hubs;
use twincast_orchestrator::command::{Answer, Command, KEY_HEADER, Kind};
use twincast_orchestrator::http::Api;
use twincast_orchestrator::http::auth::{Access, Caller, Role};
use twincast_orchestrator::view::devices::{DeviceFilter, Format};
use twincast_orchestrator::view::explain::Explanation;
use twincast_orchestrator::view::hubs::HubList;
use twincast_orchestrator::view::plan::PlanView;
use twincast_orchestrator::view::{RolloutRow, RolloutView, Stopped};
use twincast_retry::Policy;

use crate::config::{Settings, address};
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::http_client;
use crate::otlp;
use crate::socket::{self, Socket};
use crate::stores::{self, AnyStore, StoreAccess};
use crate::summary::Summary;

use answer::RequestError;
pub(crate) use answer::refusal_failure;

/// Time limit for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for silence of a server in the middle of a stream.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for an answer of a process on this machine; such a process waits at most for a disk.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest number of rollouts on a page.
const MAX_PAGE_ROLLOUTS: usize = 200;
/// Characters to percent-encode in a URL: all except the unreserved characters.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A client of the API.
pub(crate) struct Client {
    target: Target,
    /// The URL prefix, up to and including `/api/v1`.
    base: String,
    /// Time limit for an answer of another process.
    timeout: Duration,
    /// The name of the target in messages to the user.
    target_name: String,
}

/// The target of requests.
enum Target {
    /// A server; identifies the caller by a token.
    Server { http: reqwest::Client },
    /// The process working on a state folder of this machine. The process accepts the caller's name
    /// as given.
    FolderOwner {
        http: reqwest::Client,
        /// Keeps open the folder of the socket's path: a long path leads through the open folder.
        _socket: Socket,
    },
    /// A router in this process, on a local store: access to the store confers all rights.
    InProcess { api: Router, store: AnyStore },
}

/// All active rollouts, and the newest ended rollouts.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) rows: Vec<RolloutRow>,
    /// The number of ended rollouts left out.
    pub(crate) omitted: usize,
    /// Rollouts written by a newer release.
    pub(crate) of_newer_release: Vec<RolloutName>,
    /// Rollouts with damaged records.
    pub(crate) damaged: Vec<RolloutName>,
    /// Present while all rollouts are stopped.
    pub(crate) stopped: Option<Stopped>,
}

/// A page of rollouts.
#[derive(Deserialize)]
struct Page {
    rollouts: Vec<RolloutRow>,
    next: Option<String>,
    #[serde(default)]
    of_newer_release: Vec<RolloutName>,
    #[serde(default)]
    damaged: Vec<RolloutName>,
    stopped: Option<Stopped>,
}

/// Dead letters: messages that could not be used.
#[derive(Deserialize)]
struct DeadLetterList {
    dead_letters: Vec<Value>,
}

impl Client {
    /// Returns a client of the configured server; `None` if no server is configured. Opens no
    /// connection.
    pub(crate) fn of_server(settings: &Settings) -> Result<Option<Self>, Failure> {
        let from = &settings.server;
        let Some(url) = &from.url else {
            return Ok(None);
        };
        let base = base(url, from.allow_http)?;
        let mut http = http_client::builder("server", from.ca_file.as_deref(), &settings.base)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(SILENCE_TIMEOUT);
        if base.scheme() == "http" {
            // Cleartext requests to this machine must not leave the machine through a proxy.
            http = http.no_proxy();
        }
        let headers =
            http_client::credential_headers("server", from, &settings.base).map_err(refused)?;
        let mut server = base.clone();
        server.set_path("");
        Ok(Some(Self {
            target: Target::Server {
                http: http_client::build(http.default_headers(headers))?,
            },
            base: base.into(),
            timeout: from.timeout.0,
            target_name: format!("the server at {}", server.as_str().trim_end_matches('/')),
        }))
    }

    /// Returns a client for reading: of the configured server; otherwise of the configured store,
    /// or of the process working on the store.
    pub(crate) async fn for_reading(settings: &Settings) -> Result<Self, Failure> {
        match Self::of_server(settings)? {
            Some(server) => Ok(server),
            None => Self::of(stores::open_for_reading(settings).await?, settings),
        }
    }

    /// Returns a client for changing the state folder, which must exist.
    pub(crate) async fn of_folder(settings: &Settings) -> Result<Self, Failure> {
        Self::of(stores::folder_for_changes(settings).await?, settings)
    }

    fn of(access: StoreAccess, settings: &Settings) -> Result<Self, Failure> {
        let base = "http://localhost/api/v1".to_owned();
        let socket = match access {
            StoreAccess::Owner(socket) => socket,
            StoreAccess::Store(store) => {
                return Ok(Self {
                    target: Target::InProcess {
                        api: api(&store, settings).router(),
                        store,
                    },
                    base,
                    timeout: Duration::MAX,
                    target_name: "the store".to_owned(),
                });
            }
        };
        let http = http_client::builder("", None, &settings.base)?.unix_socket(socket.path());
        Ok(Self {
            target: Target::FolderOwner {
                http: http_client::build(http)?,
                _socket: socket,
            },
            base,
            timeout: FOLDER_TIMEOUT,
            target_name: format!("the twincast process using {}", settings.state.display()),
        })
    }

    /// Returns the client with another time limit for an answer.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Returns the state folder if no process works on the folder: the state stays unchanged.
    pub(crate) fn idle_folder(&self) -> Option<&Arc<EmbeddedStore>> {
        match &self.target {
            Target::InProcess { store, .. } => store.folder(),
            Target::Server { .. } | Target::FolderOwner { .. } => None,
        }
    }

    /// Returns true if the target is a process working on a state folder. Once the process stops
    /// answering, open the folder instead.
    pub(crate) fn is_folder_owner(&self) -> bool {
        matches!(self.target, Target::FolderOwner { .. })
    }

    /// Returns the minimum interval between polls of the same resource.
    pub(crate) fn pace(&self) -> Duration {
        match self.target {
            Target::InProcess { .. } => Duration::from_millis(500),
            Target::Server { .. } | Target::FolderOwner { .. } => Duration::from_secs(1),
        }
    }

    /// Closes the store.
    pub(crate) async fn close(&self) {
        if let Target::InProcess { store, .. } = &self.target {
            store.close().await;
        }
    }

    /// Performs a command.
    pub(crate) async fn command(&self, command: &Command) -> Result<Answer, Failure> {
        let name = command.rollout.as_ref();
        let kind = command.name();
        let (path, body) = match (command.command, name) {
            (Kind::Status, Some(name)) => {
                let rollouts = vec![self.rollout(name.as_str()).await?.row.state];
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
            None => Json::of(&command_body(command)).map_err(|error| refused(error.into()))?,
        };
        let key = command.key.as_ref();
        let by = command.by.as_deref();
        let request_kind = RequestKind::Post {
            body: &body,
            key,
            by,
        };
        self.json(request_kind, &path, &[]).await
    }

    /// Returns the current state of a rollout.
    pub(crate) async fn rollout(&self, name: &str) -> Result<RolloutView, Failure> {
        let name = rollout_name(name)?;
        self.get(&["rollouts", name.as_str()]).await
    }

    /// Returns a rollout and the outcomes of the rollout's devices.
    pub(crate) async fn summary(&self, name: &str) -> Result<Summary, Failure> {
        Ok(Summary {
            rollout: self.rollout(name).await?,
            outcomes: self.get(&["rollouts", name, "outcomes"]).await?,
        })
    }

    /// Explains a device's position in a rollout: the place, the reason, and the awaited condition.
    pub(crate) async fn explain(
        &self,
        name: &str,
        device: &DeviceId,
    ) -> Result<Explanation, Failure> {
        let name = rollout_name(name)?;
        let is_in_process = matches!(self.target, Target::InProcess { .. });
        if matches!(device.as_str(), "." | "..") && !is_in_process {
            // `.` and `..` are path steps even when percent-encoded, so no URL can name such a
            // device.
            let message = format!("device {device} cannot be requested over HTTP");
            return Err(Failure::message(ExitCode::Refused, message)
                .hint("read the store directly: set redis.url or --state, and no server"));
        }
        let path = ["rollouts", name.as_str(), "devices", device.as_str()];
        self.get(&path).await
    }

    /// Returns all active rollouts and the newest ended rollouts: `most` at most, unless more are
    /// active.
    pub(crate) async fn newest(&self, most: usize) -> Result<Listing, Failure> {
        let limit = MAX_PAGE_ROLLOUTS.to_string();
        let mut all = Listing::default();
        let mut after = String::new();
        loop {
            let part = [("limit", &*limit), ("after", &after)];
            let page: Page = self.json(RequestKind::Get, &["rollouts"], &part).await?;
            all.rows.extend(page.rollouts);
            all.of_newer_release.extend(page.of_newer_release);
            all.damaged.extend(page.damaged);
            all.stopped = page.stopped;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        let end_and_start = |row: &RolloutRow| (row.state.is_ended(), row.created_at);
        all.omitted = sort_and_truncate(&mut all.rows, most, end_and_start);
        Ok(all)
    }

    /// Plans a spec without starting a rollout. Planning may take hours. The request is sent only
    /// once, because every plan costs the hubs' query quota.
    pub(crate) async fn plan(&self, spec: &Json) -> Result<PlanView, Failure> {
        let request_kind = RequestKind::Post {
            body: spec,
            key: None,
            by: None,
        };
        let response = self.send(self.request(request_kind, &["plan"], &[])).await;
        self.read(response.map_err(|error| error.failure(&self.target_name))?)
            .await
    }

    /// Returns the hubs, with quotas and the current state of the limiters.
    pub(crate) async fn hubs(&self) -> Result<HubList, Failure> {
        self.get(&["hubs"]).await
    }

    /// Returns the oldest hundred dead letters.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<Value>, Failure> {
        let list: DeadLetterList = self.get(&["dead-letters"]).await?;
        Ok(list.dead_letters)
    }

    /// Returns the selected devices of a rollout, as text in pieces. A partly received answer is
    /// not requested again.
    pub(crate) async fn devices(
        &self,
        name: &str,
        filter: &DeviceFilter,
        format: Format,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        let name = rollout_name(name)?;
        let (of, names): (_, Vec<_>) = match filter {
            DeviceFilter::Outcomes(outcomes) => {
                let names = outcomes.iter().copied().map(Outcome::as_str);
                ("outcome", names.collect())
            }
            DeviceFilter::Classes(classes) => {
                let names = classes.iter().copied().map(OutcomeClass::as_str);
                ("class", names.collect())
            }
        };
        let names = names.join(",");
        let query = [(of, &*names), ("format", format.as_str())];
        let path = ["rollouts", name.as_str(), "export"];
        let response = self.ask(RequestKind::Get, &path, &query).await?;
        let pieces = response.into_body().into_data_stream();
        if let Target::InProcess { .. } = self.target {
            let pieces = pieces.map(|piece| piece.map_err(engine::store_failure));
            return Ok(pieces.boxed());
        }
        let target_name = self.target_name.clone();
        let pieces = stream::try_unfold(pieces, move |mut pieces| {
            let target_name = target_name.clone();
            async move {
                let piece = tokio::time::timeout(SILENCE_TIMEOUT, pieces.next()).await;
                let error = match piece {
                    Ok(None) => return Ok(None),
                    Ok(Some(Ok(piece))) => return Ok(Some((piece, pieces))),
                    Ok(Some(Err(error))) => RequestError::Transit(error.into()),
                    Err(_) => RequestError::Silent {
                        after: SILENCE_TIMEOUT,
                    },
                };
                let error = anyhow::Error::new(error).context(format!(
                    "the answer of {target_name} broke off: the list of devices is incomplete"
                ));
                Err(Failure::new(ExitCode::Services, error).hint("run the command again"))
            }
        });
        Ok(pieces.boxed())
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.json(RequestKind::Get, path, &[]).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request_kind: RequestKind<'_>,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let response = self.ask(request_kind, path, query).await?;
        self.read(response).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response<Body>) -> Result<T, Failure> {
        let read = tokio::time::timeout(SILENCE_TIMEOUT, answer::body(response)).await;
        let read = read.unwrap_or(Err(RequestError::Silent {
            after: SILENCE_TIMEOUT,
        }));
        let body = read.map_err(|error| error.failure(&self.target_name))?;
        serde_json::from_slice(&body).map_err(|error| {
            let doing = format!("cannot parse the answer of {}", self.target_name);
            Failure::new(
                ExitCode::Unexpected,
                anyhow::Error::new(error).context(doing),
            )
            .hint("use the same release of twincast as the server")
        })
    }

    /// Sends a request until answered, as long as errors are transient and time is left.
    async fn ask(
        &self,
        request_kind: RequestKind<'_>,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Response<Body>, Failure> {
        let request = self.request(request_kind, path, query);
        if let Target::InProcess { .. } = self.target {
            // The store has already retried.
            let answered = self.send(request).await;
            return answered.map_err(|error| error.failure(&self.target_name));
        }
        let until = Instant::now() + self.timeout;
        let mut delays = Policy::http_transient().delays();
        loop {
            let silent = RequestError::Silent {
                after: self.timeout,
            };
            let answered = tokio::time::timeout_at(until, self.send(request.clone())).await;
            let error = match answered.unwrap_or(Err(silent)) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let wait = error.is_transient().then(|| delays.next_delay()).flatten();
            let wait = wait.map(|wait| wait.max(error.retry_after()));
            match wait.filter(|wait| Instant::now() + *wait < until) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error.failure(&self.target_name)),
            }
        }
    }

    /// Sends a request once.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, RequestError> {
        let response = match &self.target {
            Target::Server { http } | Target::FolderOwner { http, .. } => {
                let request = reqwest::Request::try_from(request).map_err(RequestError::transit)?;
                let response = http.execute(request).await.map_err(RequestError::transit)?;
                Response::from(response).map(Body::new)
            }
            Target::InProcess { api, .. } => {
                let answered = api.clone().oneshot(request.map(Body::from)).await;
                answered.unwrap_or_else(|never| match never {})
            }
        };
        answer::check_status(response).await
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> String {
        let encoded = |text| utf8_percent_encode(text, PLAIN);
        let path = path.iter().map(|step| format!("/{}", encoded(step)));
        let pairs = query
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)));
        let query = pairs.collect::<Vec<_>>().join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{}{mark}{query}", self.base, path.collect::<String>())
    }

    fn request(
        &self,
        request_kind: RequestKind<'_>,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Request<Bytes> {
        let mut request = Request::builder()
            .uri(self.url(path, query))
            .header(ACCEPT, "application/json, */*");
        if let Some(caller) = otlp::caller() {
            request = request.header(TRACEPARENT, caller.to_string());
        }
        let (body, key, by) = match request_kind {
            RequestKind::Get => (Bytes::new(), None, None),
            RequestKind::Post { body, key, by } => {
                request = request.method(Method::POST);
                request = request.header(CONTENT_TYPE, "application/json");
                (Bytes::from(body.as_str().to_owned()), key, by)
            }
        };
        if let Some(key) = key {
            request = request.header(KEY_HEADER, key.as_str());
        }
        match &self.target {
            Target::Server { .. } => {}
            Target::FolderOwner { .. } => {
                let by = by.and_then(|by| HeaderValue::from_bytes(by.as_bytes()).ok());
                if let Some(by) = by {
                    request = request.header(socket::BY, by);
                }
            }
            Target::InProcess { .. } => {
                let by = by.unwrap_or("somebody").to_owned();
                request = request.extension(Caller::new(by, Role::Admin));
            }
        }
        let request = request.body(body);
        request.expect("what is not plain is encoded")
    }
}

/// Returns the API of a local store. Plans need hubs, so this API serves no plans. This process is
/// the only caller, so requests have no time limit.
fn api(store: &AnyStore, settings: &Settings) -> Api {
    Api {
        store: store.shared(),
        queue: None,
        limits: settings.limits(),
        hubs: Hubs::default(),
        executor: Arc::new(engine::command_executor(
            store.shared(),
            store.registry(),
            settings,
        )),
        dead_letters: None,
        access: Arc::new(Access::Provided),
        status: Arc::default(),
        request_timeout: Duration::MAX,
    }
}

/// Sorts `list`: active entries first, then newest first. `end_and_start` returns for an entry
/// whether the entry has ended, and the start time. Truncates the list to `most`, or to all active
/// entries if more are active; returns the number of removed entries.
fn sort_and_truncate<T>(
    list: &mut Vec<T>,
    most: usize,
    end_and_start: impl Fn(&T) -> (bool, Timestamp),
) -> usize {
    list.sort_by_key(|it| {
        let (is_ended, began) = end_and_start(it);
        (is_ended, std::cmp::Reverse(began))
    });
    let active = list.partition_point(|it| !end_and_start(it).0);
    let cut = list.len().saturating_sub(most.max(active));
    list.truncate(list.len() - cut);
    cut
}

/// Parses a rollout's name given by a user.
fn rollout_name(name: &str) -> Result<RolloutName, Failure> {
    RolloutName::new(name).map_err(|error| Failure::new(ExitCode::Refused, error))
}

/// The kind of a request. A request with side effects has a key; the key identifies a repeated
/// request.
#[derive(Clone, Copy)]
enum RequestKind<'a> {
    Get,
    Post {
        body: &'a Json,
        key: Option<&'a CommandKey>,
        /// The caller's name, for targets without tokens.
        by: Option<&'a str>,
    },
}

/// Returns the JSON body of an operation.
fn command_body(command: &Command) -> Value {
    let mut command_body = serde_json::to_value(command).expect("a command is plain data");
    if let Some(fields) = command_body.as_object_mut() {
        // The path carries `command` and `rollout`, a header carries `key`, and the token or a
        // header names the caller.
        for elsewhere in ["command", "rollout", "key", "by"] {
            fields.remove(elsewhere);
        }
    }
    command_body
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

/// Returns the base URL of a server's API.
fn base(url: &str, allow_http: bool) -> Result<Url, Failure> {
    let problem = |what: &dyn std::fmt::Display| {
        Failure::message(ExitCode::Refused, format!("--server: {what}"))
    };
    let mut base = address(url, allow_http).map_err(|error| problem(&error))?;
    let path = base.path().trim_end_matches('/');
    let path = path.strip_suffix("/api/v1").unwrap_or(path);
    let path = format!("{path}/api/v1");
    base.set_path(&path);
    // The HTTP library accepts slightly fewer URLs than the URL standard.
    match base.as_str().parse::<Uri>() {
        Ok(_) => Ok(base),
        Err(error) => Err(problem(&error)),
    }
}

#[cfg(test)]
mod tests;
