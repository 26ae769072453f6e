//! The HTTP API, asked: of a server, of the process that works on a state folder, or in this process, on a state folder or
//! a Redis that is at hand. Commands ask it, and need not know which.
//!
//! ```text
//!  command ──▶ request ──▶ network │ socket │ router in this process ──▶ response ──▶ what was asked for | failure
//! ```
//!
//! Every request may be made twice ("twice is once", docs/api.md): operations by their keys. So what may pass is tried again.

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
use twincast_core::outcome::{Class, Outcome};
use twincast_core::time::Timestamp;
use twincast_core::trace::TRACEPARENT;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::Hubs;
use twincast_orchestrator::command::{Answer, Command, KEY_HEADER, Kind};
use twincast_orchestrator::http::Api;
use twincast_orchestrator::http::auth::{Caller, Door, Role};
use twincast_orchestrator::view::devices::{Format, Wanted};
use twincast_orchestrator::view::explain::Explanation;
use twincast_orchestrator::view::hubs::HubList;
use twincast_orchestrator::view::plan::PlanView;
use twincast_orchestrator::view::{RolloutRow, RolloutView, Stopped};
use twincast_retry::Policy;

use crate::config::{Settings, address};
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::otlp;
use crate::peer;
use crate::socket::{self, Socket};
use crate::stores::{self, AnyStore, Reached};
use crate::summary::Summary;

use answer::Trouble;
pub(crate) use answer::of_refusal;

/// How long it may take to be connected.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may be silent in the midst of a stream.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a process of this machine may take to answer; it waits for its disk, at the most.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(20);
/// The most rollouts of a page.
const PAGE: usize = 200;
/// What stands in a URL for itself.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A client of the API.
pub(crate) struct Client {
    to: To,
    /// Up to and with `/api/v1`.
    base: String,
    /// How long an answer is waited for, of another process.
    timeout: Duration,
    /// Who answers, as it is shown.
    shown: String,
}

/// Who answers.
enum To {
    /// A server, which knows by tokens who asks.
    Server { http: reqwest::Client },
    /// The process that works on a state folder of this machine. It takes the name of who asks as it is given.
    AtWork {
        http: reqwest::Client,
        /// Its path may lead through what this holds open.
        _socket: Socket,
    },
    /// This process, on a store that is at hand: whoever has the right to it may do all.
    Here { api: Router, store: AnyStore },
}

/// The rollouts that have not ended, and the newest others.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) rows: Vec<RolloutRow>,
    /// How many others there are; all of them have ended.
    pub(crate) older: usize,
    /// Those that a newer release has written.
    pub(crate) newer: Vec<RolloutName>,
    /// Those whose records are damaged.
    pub(crate) damaged: Vec<RolloutName>,
    /// That all rollouts are stopped, if that is so.
    pub(crate) stopped: Option<Stopped>,
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

impl Client {
    /// Of the configured server; `None` when there is none. Nothing is dialled yet.
    pub(crate) fn of_server(settings: &Settings) -> Result<Option<Self>, Failure> {
        let from = &settings.server;
        let Some(url) = &from.url else {
            return Ok(None);
        };
        let base = base(url, from.allow_http)?;
        let mut http = peer::builder("server", from.ca_file.as_deref(), &settings.base)?
            .connect_timeout(CONNECT)
            .tcp_keepalive(SILENCE);
        if base.scheme() == "http" {
            // What goes to this machine in clear must not leave it by way of a proxy.
            http = http.no_proxy();
        }
        let headers = peer::shown("server", from, &settings.base).map_err(refused)?;
        let mut shown = base.clone();
        shown.set_path("");
        Ok(Some(Self {
            to: To::Server {
                http: peer::built(http.default_headers(headers))?,
            },
            base: base.into(),
            timeout: from.timeout.0,
            shown: format!("the server at {}", shown.as_str().trim_end_matches('/')),
        }))
    }

    /// To look: of the configured server, else on the configured store, or of the process that works on it.
    pub(crate) async fn to_look(settings: &Settings) -> Result<Self, Failure> {
        match Self::of_server(settings)? {
            Some(server) => Ok(server),
            None => Self::of(stores::look(settings).await?, settings),
        }
    }

    /// To change what is in the state folder, which must be there.
    pub(crate) async fn of_folder(settings: &Settings) -> Result<Self, Failure> {
        Self::of(stores::folder(settings).await?, settings)
    }

    fn of(reached: Reached, settings: &Settings) -> Result<Self, Failure> {
        let base = "http://localhost/api/v1".to_owned();
        let socket = match reached {
            Reached::AtWork(socket) => socket,
            Reached::Store(store) => {
                return Ok(Self {
                    to: To::Here {
                        api: api(&store, settings).router(),
                        store,
                    },
                    base,
                    timeout: Duration::MAX,
                    shown: "the store".to_owned(),
                });
            }
        };
        let http = peer::builder("", None, &settings.base)?.unix_socket(socket.path());
        Ok(Self {
            to: To::AtWork {
                http: peer::built(http)?,
                _socket: socket,
            },
            base,
            timeout: FOLDER_TIMEOUT,
            shown: format!("the twincast that works on {}", settings.state.display()),
        })
    }

    /// The same with another limit on how long an answer is waited for.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The state folder, if nobody works on it: what is there stays as it is.
    pub(crate) fn still(&self) -> Option<&Arc<EmbeddedStore>> {
        match &self.to {
            To::Here { store, .. } => store.folder(),
            To::Server { .. } | To::AtWork { .. } => None,
        }
    }

    /// It asks a process that works on a state folder. When that does not answer any more, the folder is to be opened.
    pub(crate) fn is_at_work(&self) -> bool {
        matches!(self.to, To::AtWork { .. })
    }

    /// How often it may be asked for one thing.
    pub(crate) fn pace(&self) -> Duration {
        match self.to {
            To::Here { .. } => Duration::from_millis(500),
            To::Server { .. } | To::AtWork { .. } => Duration::from_secs(1),
        }
    }

    /// Lets go of the store.
    pub(crate) async fn close(&self) {
        if let To::Here { store, .. } = &self.to {
            store.close().await;
        }
    }

    /// Has a command done.
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
    pub(crate) async fn rollout(&self, name: &str) -> Result<RolloutView, Failure> {
        let name = rollout_name(name)?;
        self.get(&["rollouts", name.as_str()]).await
    }

    /// A rollout, and what became of its devices.
    pub(crate) async fn summary(&self, name: &str) -> Result<Summary, Failure> {
        Ok(Summary {
            rollout: self.rollout(name).await?,
            outcomes: self.get(&["rollouts", name, "outcomes"]).await?,
        })
    }

    /// Where a device is in a rollout, why, and what it waits for.
    pub(crate) async fn explain(
        &self,
        name: &str,
        device: &DeviceId,
    ) -> Result<Explanation, Failure> {
        let name = rollout_name(name)?;
        let is_here = matches!(self.to, To::Here { .. });
        if matches!(device.as_str(), "." | "..") && !is_here {
            // No URL can name it: these are steps of a path, also when they are encoded.
            let message = format!("device {device} cannot be asked for over HTTP");
            return Err(Failure::message(ExitCode::Refused, message)
                .hint("ask the store: configure redis.url or --state, and no server"));
        }
        let path = ["rollouts", name.as_str(), "devices", device.as_str()];
        self.get(&path).await
    }

    /// The rollouts that have not ended, and the newest others: `most` at the most, unless more have not ended.
    pub(crate) async fn newest(&self, most: usize) -> Result<Listing, Failure> {
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
                None => break,
            }
        }
        let stands = |row: &RolloutRow| (row.state.is_ended(), row.created_at);
        all.older = cut_to(&mut all.rows, most, stands);
        Ok(all)
    }

    /// What a spec would come to. It may take hours, and is asked for once: each time costs the hubs' quota for queries.
    pub(crate) async fn plan(&self, spec: &Json) -> Result<PlanView, Failure> {
        let asked = Asked::Post {
            body: spec,
            key: None,
            by: None,
        };
        let response = self.send(self.request(asked, &["plan"], &[])).await;
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

    /// The devices of a rollout that are wanted, as text in pieces. What has come in part is not asked for again.
    pub(crate) async fn devices(
        &self,
        name: &str,
        wanted: &Wanted,
        format: Format,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        let name = rollout_name(name)?;
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
        let pieces = response.into_body().into_data_stream();
        if let To::Here { .. } = self.to {
            let pieces = pieces.map(|piece| piece.map_err(engine::store_failure));
            return Ok(pieces.boxed());
        }
        let shown = self.shown.clone();
        let pieces = stream::try_unfold(pieces, move |mut pieces| {
            let shown = shown.clone();
            async move {
                let piece = tokio::time::timeout(SILENCE, pieces.next()).await;
                let trouble = match piece {
                    Ok(None) => return Ok(None),
                    Ok(Some(Ok(piece))) => return Ok(Some((piece, pieces))),
                    Ok(Some(Err(error))) => Trouble::Transit(error.into()),
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

    async fn read<T: DeserializeOwned>(&self, response: Response<Body>) -> Result<T, Failure> {
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
    ) -> Result<Response<Body>, Failure> {
        let request = self.request(asked, path, query);
        if let To::Here { .. } = self.to {
            // The store has tried again what it can.
            let answered = self.send(request).await;
            return answered.map_err(|trouble| trouble.failure(&self.shown));
        }
        let until = Instant::now() + self.timeout;
        let mut delays = Policy::http_transient().delays();
        loop {
            let silent = Trouble::Silent {
                after: self.timeout,
            };
            let answered = tokio::time::timeout_at(until, self.send(request.clone())).await;
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

    /// Asks once.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Trouble> {
        let response = match &self.to {
            To::Server { http } | To::AtWork { http, .. } => {
                let request = reqwest::Request::try_from(request).map_err(Trouble::transit)?;
                let response = http.execute(request).await.map_err(Trouble::transit)?;
                Response::from(response).map(Body::new)
            }
            To::Here { api, .. } => {
                let answered = api.clone().oneshot(request.map(Body::from)).await;
                answered.unwrap_or_else(|never| match never {})
            }
        };
        answer::good(response).await
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

    fn request(&self, asked: Asked<'_>, path: &[&str], query: &[(&str, &str)]) -> Request<Bytes> {
        let mut request = Request::builder()
            .uri(self.url(path, query))
            .header(ACCEPT, "application/json, */*");
        if let Some(caller) = otlp::caller() {
            request = request.header(TRACEPARENT, caller.to_string());
        }
        let (body, key, by) = match asked {
            Asked::Get => (Bytes::new(), None, None),
            Asked::Post { body, key, by } => {
                request = request.method(Method::POST);
                request = request.header(CONTENT_TYPE, "application/json");
                (Bytes::from(body.as_str().to_owned()), key, by)
            }
        };
        if let Some(key) = key {
            request = request.header(KEY_HEADER, key.as_str());
        }
        match &self.to {
            To::Server { .. } => {}
            To::AtWork { .. } => {
                let by = by.and_then(|by| HeaderValue::from_bytes(by.as_bytes()).ok());
                if let Some(by) = by {
                    request = request.header(socket::BY, by);
                }
            }
            To::Here { .. } => {
                let by = by.unwrap_or("somebody").to_owned();
                request = request.extension(Caller::new(by, Role::Admin));
            }
        }
        let request = request.body(body);
        request.expect("what is not plain is encoded")
    }
}

/// The API on a store that is at hand. Plans are not asked of it, for they need hubs; nobody else asks, so a request may
/// take as long as it does.
fn api(store: &AnyStore, settings: &Settings) -> Api {
    Api {
        store: store.shared(),
        queue: None,
        limits: settings.limits(),
        hubs: Hubs::default(),
        intake: Arc::new(engine::intake_of(store.shared(), store.roster(), settings)),
        letters: None,
        door: Arc::new(Door::Known),
        status: Arc::default(),
        time: Duration::MAX,
    }
}

/// Sorts what `stands` says has ended, and when it began, for a list: what has not ended first, and the newest first. Cuts
/// it to `most`, or to all that have not ended if those are more; gives how many were cut off.
fn cut_to<T>(list: &mut Vec<T>, most: usize, stands: impl Fn(&T) -> (bool, Timestamp)) -> usize {
    list.sort_by_key(|it| {
        let (is_ended, began) = stands(it);
        (is_ended, std::cmp::Reverse(began))
    });
    let active = list.partition_point(|it| !stands(it).0);
    let cut = list.len().saturating_sub(most.max(active));
    list.truncate(list.len() - cut);
    cut
}

/// A rollout's name, as a user gave it.
fn rollout_name(name: &str) -> Result<RolloutName, Failure> {
    RolloutName::new(name).map_err(|error| Failure::new(ExitCode::Refused, error))
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
    let problem = |what: &dyn std::fmt::Display| {
        Failure::message(ExitCode::Refused, format!("--server: {what}"))
    };
    let mut base = address(url, allow_http).map_err(|error| problem(&error))?;
    let path = base.path().trim_end_matches('/');
    let path = path.strip_suffix("/api/v1").unwrap_or(path);
    let path = format!("{path}/api/v1");
    base.set_path(&path);
    // The HTTP library takes a little less than the standard of addresses.
    match base.as_str().parse::<Uri>() {
        Ok(_) => Ok(base),
        Err(error) => Err(problem(&error)),
    }
}

#[cfg(test)]
mod tests;
