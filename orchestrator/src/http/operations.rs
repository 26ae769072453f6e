//! What changes something. Each is a command, done as if it had come over the queue.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use twincast_core::error::in_words;
use twincast_core::ids::{CommandKey, RolloutName, StageName};
use twincast_core::outcome::Outcome;
use twincast_core::spec::Document;
use twincast_core::trace::TRACEPARENT;
use utoipa::ToSchema;

use super::admitted::Admitted;
use super::audit;
use super::auth::{Decide, Delete, Needed, Operate, Stop};
use super::problem::{OfARollout, Operating, Problem};
use super::shared::Context;
use crate::command::{Answer, Command, KEY_HEADER, Kind};
use crate::intake::NotDone;
use crate::planner::{PlanProgress, Planner};
use crate::view::overlaps;
use crate::view::plan::{self, PlanView};

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Because {
    /// Why, for people. Recorded with the name of whoever asks.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// About a stage, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfStage {
    /// The stage that it must be. Default: the current one.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: Option<String>,
    /// Why, for people. Recorded with the name of whoever asks.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// Which devices, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Again {
    /// Those with one of these outcomes. Default: all that failed.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    outcomes: Vec<Outcome>,
    /// Those of this stage. Default: of all.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: Option<String>,
    /// Why, for people. Recorded with the name of whoever asks.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// Which stage, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Override {
    /// The stage that is to count as passed.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: String,
    /// Why. A gate is overridden for a reason.
    #[schema(max_length = 1000)]
    reason: String,
}

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The body of a request, once all of it has come.
pub(crate) struct Sent(Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let reading = Bytes::from_request(request, state);
        match tokio::time::timeout(BODY_TIME, reading).await {
            Ok(body) => Ok(Self(body?)),
            Err(_) => {
                let detail = format!("the body did not come within {BODY_TIME:?}");
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }
}

type Body = Result<Sent, Problem>;
type Name = Result<Path<String>, PathRejection>;

/// Start a rollout. The same spec again is the same rollout, and changes nothing.
#[utoipa::path(
    post, path = "/api/v1/rollouts", tag = "operations", security(("token" = [])),
    request_body(content = ref("#/components/schemas/RolloutSpec"), description = "A rollout's spec. Its files must be inlined", content_type = "application/json"),
    responses(
        (status = 200, description = "It was there already, or is now: see `changed`", body = Answer),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "Another spec has the name"),
        Operating,
    )
)]
pub(crate) async fn start(
    State(shared): Context,
    by: Admitted<Operate>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Answer>, Problem> {
    let command = Command {
        spec: Some(said(&headers, body)?),
        ..Command::about(Kind::Start, None)
    };
    done(&shared, &by, &headers, command).await
}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident, $path:literal, $right:ident, $kind:ident, $body:ty, |$said:ident, $command:ident| { $($fill:tt)* }) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "operations", security(("token" = [])),
            params(
                ("name" = String, Path, description = "The rollout's name"),
                ("Idempotency-Key" = Option<String>, Header, description = "What the request is known by when it is made again: it changes the rollout once. 1 to 128 letters, digits, '.', '_' or '-', not for another request", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
            ),
            request_body(content = $body, content_type = "application/json"),
            responses(
                (status = 200, description = "Done, or it was so already: see `changed`", body = Answer),
                (status = 409, body = Problem, content_type = "application/problem+json", description = "The rollout is not in a state in which that can be done"),
                Operating,
                OfARollout,
            )
        )]
        pub(crate) async fn $name(
            State(shared): Context,
            by: Admitted<$right>,
            name: Name,
            headers: HeaderMap,
            body: Body,
        ) -> Result<Json<Answer>, Problem> {
            let Path(name) = name?;
            let $said: $body = said(&headers, body)?;
            let mut $command = Command::about(Kind::$kind, Some(rollout(&name)?));
            $($fill)*
            done(&shared, &by, &headers, $command).await
        }
    };
}

operation!(
    /// Send nothing more for now.
    pause, "/api/v1/rollouts/{name}/pause", Stop, Pause, Because,
    |said, command| { command.reason = said.reason; }
);
operation!(
    /// Let it go on. A gate that has paused it is asked again.
    resume, "/api/v1/rollouts/{name}/resume", Operate, Resume, Because,
    |said, command| { command.reason = said.reason; }
);
operation!(
    /// End it. What was not sent is skipped.
    abort, "/api/v1/rollouts/{name}/abort", Stop, Abort, Because,
    |said, command| { command.reason = said.reason; }
);
operation!(
    /// Remove it, once it has ended, with all that is stored of it. Its name is free then.
    delete, "/api/v1/rollouts/{name}/delete", Delete, Delete, Because,
    |said, command| { command.reason = said.reason; }
);
operation!(
    /// A new attempt at devices that failed. A rollout that has ended runs again.
    retry, "/api/v1/rollouts/{name}/retry", Operate, Retry, Again,
    |said, command| {
        command.outcomes = said.outcomes;
        command.stage = said.stage.as_deref().map(stage).transpose()?;
        command.reason = said.reason;
    }
);
operation!(
    /// Say yes to a stage's gate.
    approve, "/api/v1/rollouts/{name}/approve", Decide, Approve, OfStage,
    |said, command| {
        command.stage = said.stage.as_deref().map(stage).transpose()?;
        command.reason = said.reason;
    }
);
operation!(
    /// Say no to a stage's gate, which then has failed.
    reject, "/api/v1/rollouts/{name}/reject", Decide, Reject, OfStage,
    |said, command| {
        command.stage = said.stage.as_deref().map(stage).transpose()?;
        command.reason = said.reason;
    }
);
operation!(
    /// Take a stage's gate for passed, whatever it says.
    promote, "/api/v1/rollouts/{name}/promote", Decide, Promote, Override,
    |said, command| {
        command.stage = Some(stage(&said.stage)?);
        command.reason = Some(said.reason);
    }
);

macro_rules! of_all {
    ($(#[$doc:meta])* $name:ident, $path:literal, $right:ident, $kind:ident) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "operations", security(("token" = [])),
            request_body(content = Because, content_type = "application/json"),
            responses(
                (status = 200, description = "Done, or it was so already: see `changed`", body = Answer),
                Operating,
            )
        )]
        pub(crate) async fn $name(
            State(shared): Context,
            by: Admitted<$right>,
            headers: HeaderMap,
            body: Body,
        ) -> Result<Json<Answer>, Problem> {
            let said: Because = said(&headers, body)?;
            let mut command = Command::about(Kind::$kind, None);
            command.reason = said.reason;
            done(&shared, &by, &headers, command).await
        }
    };
}

of_all!(
    /// Send nothing of any rollout, nor of those to come.
    stop_all, "/api/v1/stop-all", Stop, StopAll
);
of_all!(
    /// Let all rollouts go on that stop-all has stopped.
    resume_all, "/api/v1/resume-all", Operate, ResumeAll
);

/// What a spec would come to: devices by stage, hub and tag group, what is left out and why, when it is over, and what
/// else is under way. Sends and stores nothing. Asks the hubs for all devices, out of their quota for queries, and may
/// take as long.
#[utoipa::path(
    post, path = "/api/v1/plan", tag = "operations", security(("token" = [])),
    request_body(content = ref("#/components/schemas/RolloutSpec"), description = "A rollout's spec. Its files must be inlined", content_type = "application/json"),
    responses(
        (status = 200, description = "The plan", body = PlanView),
        Operating,
    )
)]
pub(crate) async fn plan(
    State(shared): Context,
    by: Admitted<Operate>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PlanView>, Problem> {
    let command = Command {
        spec: Some(said(&headers, body)?),
        ..Command::about(Kind::Start, None)
    };
    let spec = command.spec()?;
    let _place = shared.plans.take(by.caller.name())?;
    let progress = PlanProgress::default();
    let planner = Planner {
        spec: &spec,
        hubs: &shared.api.hubs,
        base: &shared.base,
        progress: &progress,
        joiners: None,
    };
    let api = &shared.api;
    let mut view = plan::read(&planner, &*api.intake.clock).await?;
    let active = match &api.intake.roster {
        Some(roster) => roster.active().await?,
        None => api.store.rollouts().await?,
    };
    let configured: Vec<_> = api.hubs.keys().cloned().collect();
    view.overlaps = overlaps::read(&*api.store, active, &spec, &view.hubs(), &configured).await?;
    Ok(Json(view))
}

/// Does a command in the name of whoever asks.
async fn done<R: Needed>(
    shared: &super::shared::Shared,
    by: &Admitted<R>,
    headers: &HeaderMap,
    mut command: Command,
) -> Result<Json<Answer>, Problem> {
    command.by = Some(by.caller.name().to_owned());
    command.key = key(headers)?;
    let request = headers.get(TRACEPARENT);
    let request = request.and_then(|value| value.to_str().ok());
    command.begun = Some(shared.api.intake.begin(request));
    let answered = match command.ask() {
        Ok(_) => shared.api.intake.execute(&command).await,
        Err(refusal) => Err(refusal.into()),
    };
    let result = match &answered {
        Ok(answer) => shared.api.status.metrics.answered(Ok(answer)),
        Err(NotDone::Refused(refusal)) => shared.api.status.metrics.answered(Err(refusal)),
        Err(NotDone::Store(_)) => "not done: the store does not answer",
    };
    audit::done(&by.caller, &by.origin, &command, result);
    Ok(Json(answered?))
}

/// What the request is known by when it is made again.
///
/// The header's draft has it in quotes (`draft-ietf-httpapi-idempotency-key-header`); most clients leave them out.
fn key(headers: &HeaderMap) -> Result<Option<CommandKey>, Problem> {
    let Some(given) = headers.get(KEY_HEADER) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(given.as_bytes());
    let bare = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let key = CommandKey::new(bare.unwrap_or(&text)).map_err(|error| {
        let detail = format!("the header {KEY_HEADER}: {}", in_words(&error));
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    Ok(Some(key))
}

/// A JSON body. Its content type must say so: a page of somewhere else cannot send that without being asked.
fn document_of(headers: &HeaderMap, body: Body) -> Result<Document, Problem> {
    let Sent(body) = body?;
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let detail = format!("the content type must be application/json, and is {content_type:?}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let not_json = |what: String| Problem::new(StatusCode::BAD_REQUEST, what);
    let text = std::str::from_utf8(&body)
        .map_err(|_| not_json("the body is not JSON: it is not UTF-8 text".into()))?;
    Document::parse_json("the body", text).map_err(|problems| not_json(problems.in_one_line()))
}

fn said<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    document_of(headers, body)?.read().map_err(|problems| {
        let detail = format!(
            "the body has mistakes: {}",
            problems.without_places().join("; ")
        );
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })
}

pub(super) fn rollout(name: &str) -> Result<RolloutName, Problem> {
    RolloutName::new(name).map_err(|_| Problem::not_found(&format!("rollout {name}")))
}

fn stage(name: &str) -> Result<StageName, Problem> {
    StageName::new(name)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, in_words(&error)))
}
