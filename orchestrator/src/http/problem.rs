//! Errors as `application/problem+json` (RFC 9457).

use std::sync::Arc;

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use twincast_core::error::describe;
use twincast_core::ports::StoreError;
use utoipa::{IntoResponses, ToSchema};

use crate::command::{Cause, Refusal};
use crate::command_executor::CommandError;
use crate::planner::is_permanent;
use crate::view::explain::ExplainError;
use crate::view::plan::PreviewError;

/// The errors of a read-only request, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) enum ReadErrors {
    /// No token, or an unknown token
    #[response(status = 401, content_type = "application/problem+json")]
    Unknown(Problem),
    /// The token gives no role
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// Busy, or a dependency does not answer
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// The further errors of a request for a part of a list.
#[derive(IntoResponses)]
#[response(
    status = 400,
    description = "A parameter is invalid",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) struct ListErrors(Problem);

/// The further errors of a request about a rollout.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "The rollout does not exist",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) struct RolloutErrors(Problem);

/// The errors of a request with a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) enum OperationErrors {
    /// Not JSON
    #[response(status = 400, content_type = "application/problem+json")]
    NotJson(Problem),
    /// No token, or an unknown token
    #[response(status = 401, content_type = "application/problem+json")]
    Unknown(Problem),
    /// The role does not permit the operation, or the token gives no role
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The body does not arrive in time
    #[response(status = 408, content_type = "application/problem+json")]
    Slow(Problem),
    /// Too large
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// Not application/json
    #[response(status = 415, content_type = "application/problem+json")]
    NotCalledJson(Problem),
    /// The request in the body has mistakes, or cannot be fulfilled
    #[response(status = 422, content_type = "application/problem+json")]
    Mistaken(Problem),
    /// Busy, or a dependency does not answer
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// An error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: `status` and `cause` give the kind of the problem.
    #[schema(value_type = String)]
    r#type: Type,
    /// The status as text.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The problem and the allowed values, for people.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// The cause of a refused operation, for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// The single mistakes, differences or reasons, where there may be several.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<String>)]
    details: Box<[String]>,
    /// A possible remedy, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<Box<str>>,
    /// Whether the request had an invalid token.
    #[serde(skip)]
    is_about_the_token: bool,
    /// Details for the log only.
    #[serde(skip)]
    log_detail: Option<Box<str>>,
    /// The store's error, for callers in this process.
    #[serde(skip)]
    store: Option<Arc<StoreError>>,
}

#[derive(Debug, Clone, Copy, Serialize)]
enum Type {
    #[serde(rename = "about:blank")]
    Blank,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            r#type: Type::Blank,
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into().into(),
            cause: None,
            details: Box::default(),
            hint: None,
            is_about_the_token: false,
            log_detail: None,
            store: None,
        }
    }

    /// Creates the error for an invalid token.
    pub(crate) fn bad_token(detail: impl Into<String>) -> Self {
        Self {
            is_about_the_token: true,
            ..Self::new(StatusCode::UNAUTHORIZED, detail)
        }
    }

    /// Creates the error for a request that can be answered later.
    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Returns whether the caller lacks the permission.
    pub(crate) fn is_denial(&self) -> bool {
        let denials = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        denials.iter().any(|status| status.as_u16() == self.status)
    }

    /// Adds details for the log, which the caller may not see.
    pub(crate) fn with_log_detail(self, reason: impl std::fmt::Display) -> Self {
        let log_detail = Some(reason.to_string().into());
        Self { log_detail, ..self }
    }

    /// Returns the problem for the log.
    pub(crate) fn in_log(&self) -> &str {
        self.log_detail.as_deref().unwrap_or(&self.detail)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let mut response = (status, body).into_response();
        if let Some(error) = self.store {
            response.extensions_mut().insert(error);
        }
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                let challenge = if self.is_about_the_token {
                    "Bearer error=\"invalid_token\""
                } else {
                    "Bearer"
                };
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(challenge),
                );
            }
            _ => {}
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.cause {
            Cause::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Cause::Unreadable => StatusCode::BAD_REQUEST,
            Cause::UnsupportedVersion => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Cause::InvalidCommand | Cause::InvalidSpec | Cause::UnknownHub => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Cause::UnknownRollout => StatusCode::NOT_FOUND,
            Cause::Damaged => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self {
            cause: Some(refusal.cause.as_str()),
            details: refusal.details.into(),
            ..Self::new(status, refusal.error)
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let words = describe(&error);
        let status = match error {
            StoreError::NotFound { .. } => StatusCode::NOT_FOUND,
            StoreError::Corrupt { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            // Another orchestrator may be of the newer release.
            StoreError::Newer { .. }
            | StoreError::Superseded { .. }
            | StoreError::Regressed { .. }
            | StoreError::NotWritable { .. }
            | StoreError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            store: Some(Arc::new(error)),
            ..Self::new(status, words)
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::Store(error) => error.into(),
        }
    }
}

impl From<ExplainError> for Problem {
    fn from(error: ExplainError) -> Self {
        match error {
            ExplainError::Absent(absence) => Self {
                details: absence.possible.into(),
                hint: absence.hint.map(Into::into),
                ..Self::new(StatusCode::NOT_FOUND, absence.error)
            },
            ExplainError::Store(error) => error.into(),
        }
    }
}

impl From<PreviewError> for Problem {
    fn from(error: PreviewError) -> Self {
        let (detail, hint) = (describe(&error), error.hint().map(Into::into));
        match error {
            PreviewError::Plan(error) if !is_permanent(&error) => Self::busy(detail),
            _ => Self {
                hint,
                ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
            },
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(StatusCode::NOT_FOUND, rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
