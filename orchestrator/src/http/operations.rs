//! The handlers with effect. Each handler executes a command as if received over the queue.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use twincast_core::error::describe;
use twincast_core::ids::{CommandKey, RolloutName, StageName};
use twincast_core::outcome::Outcome;
use twincast_core::spec::Document;
use twincast_core::trace::TRACEPARENT;
use utoipa::ToSchema;

use super::admitted::Admitted;
use super::audit;
use super::auth::{Decide, Delete, Operate, RequiredRight, Stop};
use super::problem::{OperationErrors, Problem, RolloutErrors};
use super::shared::Context;
use crate::command::{Answer, Command, KEY_HEADER, Kind};
use crate::command_executor::CommandError;
use crate::planner::{PlanProgress, Planner};
use crate::view::overlaps;
use crate::view::plan::{self, PlanView};

/// A reason.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReasonBody {
    /// The reason, for people. Recorded with the caller's name.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// A stage, and a reason.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageBody {
    /// The stage to which the operation is restricted. Default: the current stage.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: Option<String>,
    /// The reason, for people. Recorded with the caller's name.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// A selection of devices, and a reason.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryBody {
    /// Only devices with one of these outcomes. Default: all failures.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    outcomes: Vec<Outcome>,
    /// Only devices of this stage. Default: all stages.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: Option<String>,
    /// The reason, for people. Recorded with the caller's name.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// A stage, and a reason.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromoteBody {
    /// The stage to count as passed.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stage: String,
    /// The reason. Overriding a gate requires a reason.
    #[schema(max_length = 1000)]
    reason: String,
}

/// The time limit for receiving a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a request, completely received.
pub(crate) struct TimedBody(Bytes);

impl<S: Send + Sync> FromRequest<S> for TimedBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let reading = Bytes::from_request(request, state);
        match tokio::time::timeout(BODY_TIMEOUT, reading).await {
            Ok(body) => Ok(Self(body?)),
            Err(_) => {
                let detail = format!("the body did not arrive within {BODY_TIMEOUT:?}");
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }
}

type Body = Result<TimedBody, Problem>;
type Name = Result<Path<String>, PathRejection>;

/// Start a rollout. Starting the same spec again changes nothing.
#[utoipa::path(
    post, path = "/api/v1/rollouts", tag = "operations", security(("token" = [])),
    request_body(content = ref("#/components/schemas/RolloutSpec"), description = "A rollout's spec, with inlined files", content_type = "application/json"),
    responses(
        (status = 200, description = "The rollout exists; `changed` shows whether this request started it", body = Answer),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "A rollout with this name and another spec exists"),
        OperationErrors,
    )
)]
pub(crate) async fn start(
    State(shared): Context,
    by: Admitted<Operate>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Answer>, Problem> {
    let command = Command {
        spec: Some(parse_body(&headers, body)?),
        ..Command::about(Kind::Start, None)
    };
    execute(&shared, &by, &headers, command).await
}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident, $path:literal, $right:ident, $kind:ident, $body:ty, |$request:ident, $command:ident| { $($fill:tt)* }) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "operations", security(("token" = [])),
            params(
                ("name" = String, Path, description = "The rollout's name"),
                ("Idempotency-Key" = Option<String>, Header, description = "Identifies the request, so that repeated requests change the rollout once. 1 to 128 letters, digits, '.', '_' or '-'. Another request needs another key", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
            ),
            request_body(content = $body, content_type = "application/json"),
            responses(
                (status = 200, description = "The operation is in effect; `changed` shows whether this request changed anything", body = Answer),
                (status = 409, body = Problem, content_type = "application/problem+json", description = "The state of the rollout does not allow the operation"),
                OperationErrors,
                RolloutErrors,
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
            let $request: $body = parse_body(&headers, body)?;
            let mut $command = Command::about(Kind::$kind, Some(rollout(&name)?));
            $($fill)*
            execute(&shared, &by, &headers, $command).await
        }
    };
}

operation!(
    /// Pause the rollout: send nothing more for now.
    pause, "/api/v1/rollouts/{name}/pause", Stop, Pause, ReasonBody,
    |request, command| { command.reason = request.reason; }
);
operation!(
    /// Let the rollout continue. A gate that has paused the rollout is judged again.
    resume, "/api/v1/rollouts/{name}/resume", Operate, Resume, ReasonBody,
    |request, command| { command.reason = request.reason; }
);
operation!(
    /// End the rollout and skip the devices not sent to.
    abort, "/api/v1/rollouts/{name}/abort", Stop, Abort, ReasonBody,
    |request, command| { command.reason = request.reason; }
);
operation!(
    /// Remove an ended rollout with all of its stored data. The name is free afterwards.
    delete, "/api/v1/rollouts/{name}/delete", Delete, Delete, ReasonBody,
    |request, command| { command.reason = request.reason; }
);
operation!(
    /// Make a new attempt at devices that failed. An ended rollout runs again.
    retry, "/api/v1/rollouts/{name}/retry", Operate, Retry, RetryBody,
    |request, command| {
        command.outcomes = request.outcomes;
        command.stage = request.stage.as_deref().map(stage).transpose()?;
        command.reason = request.reason;
    }
);
operation!(
    /// Approve a stage's gate.
    approve, "/api/v1/rollouts/{name}/approve", Decide, Approve, StageBody,
    |request, command| {
        command.stage = request.stage.as_deref().map(stage).transpose()?;
        command.reason = request.reason;
    }
);
operation!(
    /// Reject a stage's gate. The gate has then failed.
    reject, "/api/v1/rollouts/{name}/reject", Decide, Reject, StageBody,
    |request, command| {
        command.stage = request.stage.as_deref().map(stage).transpose()?;
        command.reason = request.reason;
    }
);
operation!(
    /// Count a stage's gate as passed, whatever its state.
    promote, "/api/v1/rollouts/{name}/promote", Decide, Promote, PromoteBody,
    |request, command| {
        command.stage = Some(stage(&request.stage)?);
        command.reason = Some(request.reason);
    }
);

macro_rules! operation_on_all {
    ($(#[$doc:meta])* $name:ident, $path:literal, $right:ident, $kind:ident) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "operations", security(("token" = [])),
            request_body(content = ReasonBody, content_type = "application/json"),
            responses(
                (status = 200, description = "The operation is in effect; `changed` shows whether this request changed anything", body = Answer),
                OperationErrors,
            )
        )]
        pub(crate) async fn $name(
            State(shared): Context,
            by: Admitted<$right>,
            headers: HeaderMap,
            body: Body,
        ) -> Result<Json<Answer>, Problem> {
            let request: ReasonBody = parse_body(&headers, body)?;
            let mut command = Command::about(Kind::$kind, None);
            command.reason = request.reason;
            execute(&shared, &by, &headers, command).await
        }
    };
}

operation_on_all!(
    /// Stop all rollouts, present and future: send nothing.
    stop_all, "/api/v1/stop-all", Stop, StopAll
);
operation_on_all!(
    /// Let all rollouts continue that stop-all has stopped.
    resume_all, "/api/v1/resume-all", Operate, ResumeAll
);

/// The preview of a spec: devices by stage, hub and tag group, left-out devices with the reasons,
/// the end of the rollout, and overlapping rollouts. Sends and stores nothing. Queries the hubs for
/// all devices within the query quota, and may take a long time accordingly.
#[utoipa::path(
    post, path = "/api/v1/plan", tag = "operations", security(("token" = [])),
    request_body(content = ref("#/components/schemas/RolloutSpec"), description = "A rollout's spec, with inlined files", content_type = "application/json"),
    responses(
        (status = 200, description = "The plan", body = PlanView),
        OperationErrors,
    )
)]
pub(crate) async fn plan(
    State(shared): Context,
    by: Admitted<Operate>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PlanView>, Problem> {
    let command = Command {
        spec: Some(parse_body(&headers, body)?),
        ..Command::about(Kind::Start, None)
    };
    let spec = command.spec()?;
    let _slot = shared.plans.take(by.caller.name())?;
    let progress = PlanProgress::default();
    let planner = Planner {
        spec: &spec,
        hubs: &shared.api.hubs,
        base: &shared.base,
        progress: &progress,
        joiners: None,
    };
    let api = &shared.api;
    let mut view = plan::read(&planner, &*api.executor.clock).await?;
    let active = match &api.executor.registry {
        Some(registry) => registry.active().await?,
        None => api.store.rollouts().await?,
    };
    let configured: Vec<_> = api.hubs.keys().cloned().collect();
    view.overlaps = overlaps::read(&*api.store, active, &spec, &view.hubs(), &configured).await?;
    Ok(Json(view))
}

/// Executes a command on behalf of the caller.
async fn execute<R: RequiredRight>(
    shared: &super::shared::Shared,
    by: &Admitted<R>,
    headers: &HeaderMap,
    mut command: Command,
) -> Result<Json<Answer>, Problem> {
    command.by = Some(by.caller.name().to_owned());
    command.key = key(headers)?;
    let request = headers.get(TRACEPARENT);
    let request = request.and_then(|value| value.to_str().ok());
    command.span = Some(shared.api.executor.begin(request));
    let answered = match command.operation() {
        Ok(_) => shared.api.executor.execute(&command).await,
        Err(refusal) => Err(refusal.into()),
    };
    let result = match &answered {
        Ok(answer) => shared.api.status.metrics.count_answer(Ok(answer)),
        Err(CommandError::Refused(refusal)) => shared.api.status.metrics.count_answer(Err(refusal)),
        Err(CommandError::Store(_)) => "not done: the store does not answer",
    };
    audit::log_result(&by.caller, &by.origin, &command, result);
    Ok(Json(answered?))
}

/// Returns the idempotency key of a request.
///
/// The header's draft has the key in quotes (`draft-ietf-httpapi-idempotency-key-header`); most
/// clients omit the quotes.
fn key(headers: &HeaderMap) -> Result<Option<CommandKey>, Problem> {
    let Some(given) = headers.get(KEY_HEADER) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(given.as_bytes());
    let bare = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let key = CommandKey::new(bare.unwrap_or(&text)).map_err(|error| {
        let detail = format!("the header {KEY_HEADER}: {}", describe(&error));
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    Ok(Some(key))
}

/// Parses a JSON body. The content type must be JSON: a browser asks the server before sending this
/// type for a foreign page (CORS).
fn document_of(headers: &HeaderMap, body: Body) -> Result<Document, Problem> {
    let TimedBody(body) = body?;
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let detail = format!("the content type must be application/json; found {content_type:?}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let not_json = |what: String| Problem::new(StatusCode::BAD_REQUEST, what);
    let text = std::str::from_utf8(&body)
        .map_err(|_| not_json("the body is not JSON: it is not UTF-8 text".into()))?;
    Document::parse_json("the body", text).map_err(|problems| not_json(problems.in_one_line()))
}

fn parse_body<T: serde::de::DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    document_of(headers, body)?.read().map_err(|problems| {
        let detail = format!(
            "the body is invalid: {}",
            problems.without_positions().join("; ")
        );
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })
}

pub(super) fn rollout(name: &str) -> Result<RolloutName, Problem> {
    RolloutName::new(name).map_err(|_| Problem::not_found(&format!("rollout {name}")))
}

fn stage(name: &str) -> Result<StageName, Problem> {
    StageName::new(name)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, describe(&error)))
}
