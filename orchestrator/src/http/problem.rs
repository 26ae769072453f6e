//! Errors as `application/problem+json` (RFC 9457).

use std::sync::Arc;

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use twincast_core::error::in_words;
use twincast_core::ports::StoreError;
use utoipa::{IntoResponses, ToSchema};

use crate::command::{Cause, Refusal};
use crate::intake::NotDone;
use crate::planner::is_final;
use crate::view::explain::Unexplained;
use crate::view::plan::Unplanned;

/// How a request that only looks may fail, for the document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) enum Looking {
    /// No token, or one that is not known
    #[response(status = 401, content_type = "application/problem+json")]
    Unknown(Problem),
    /// The token gives no role
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// Busy, or what it needs does not answer
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// How one that asks for a part of a list may fail, besides.
#[derive(IntoResponses)]
#[response(
    status = 400,
    description = "A parameter cannot be used",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) struct OfAPart(Problem);

/// How one about a rollout may fail, besides.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "There is no such rollout",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) struct OfARollout(Problem);

/// How a request with a body may fail.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "what matters is what is derived")]
pub(crate) enum Operating {
    /// Not JSON
    #[response(status = 400, content_type = "application/problem+json")]
    NotJson(Problem),
    /// No token, or one that is not known
    #[response(status = 401, content_type = "application/problem+json")]
    Unknown(Problem),
    /// The role does not allow it, or the token gives none
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The body does not come in time
    #[response(status = 408, content_type = "application/problem+json")]
    Slow(Problem),
    /// Too large
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// Not application/json
    #[response(status = 415, content_type = "application/problem+json")]
    NotCalledJson(Problem),
    /// What the body asks for has mistakes, or cannot be had
    #[response(status = 422, content_type = "application/problem+json")]
    Mistaken(Problem),
    /// Busy, or what it needs does not answer
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// What is wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: `status` and `cause` say what kind of problem it is.
    #[schema(value_type = String)]
    r#type: Type,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What was found, and what is allowed, for people.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// Why an operation was refused, for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// Mistakes, differences or reasons one by one, where there may be several.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<String>)]
    details: Box<[String]>,
    /// What can be done about it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<Box<str>>,
    /// There was a token, and it is no good.
    #[serde(skip)]
    is_about_the_token: bool,
    /// What is for the log alone.
    #[serde(skip)]
    because: Option<Box<str>>,
    /// What the store has said, for whoever asks in this process.
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
            because: None,
            store: None,
        }
    }

    /// There is a token, and it is no good.
    pub(crate) fn bad_token(detail: impl Into<String>) -> Self {
        Self {
            is_about_the_token: true,
            ..Self::new(StatusCode::UNAUTHORIZED, detail)
        }
    }

    /// The same request will be answered later.
    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Whoever asks may not.
    pub(crate) fn is_denial(&self) -> bool {
        let denials = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        denials.iter().any(|status| status.as_u16() == self.status)
    }

    /// With more than whoever asks may know, for the log.
    pub(crate) fn because(self, reason: impl std::fmt::Display) -> Self {
        let because = Some(reason.to_string().into());
        Self { because, ..self }
    }

    /// What is wrong, for the log.
    pub(crate) fn in_log(&self) -> &str {
        self.because.as_deref().unwrap_or(&self.detail)
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
        let words = in_words(&error);
        let status = match error {
            StoreError::NotFound { .. } => StatusCode::NOT_FOUND,
            StoreError::Corrupt { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            // Another orchestrator may be newer.
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

impl From<NotDone> for Problem {
    fn from(error: NotDone) -> Self {
        match error {
            NotDone::Refused(refusal) => refusal.into(),
            NotDone::Store(error) => error.into(),
        }
    }
}

impl From<Unexplained> for Problem {
    fn from(error: Unexplained) -> Self {
        match error {
            Unexplained::Absent(absence) => Self {
                details: absence.possible.into(),
                hint: absence.hint.map(Into::into),
                ..Self::new(StatusCode::NOT_FOUND, absence.error)
            },
            Unexplained::Store(error) => error.into(),
        }
    }
}

impl From<Unplanned> for Problem {
    fn from(error: Unplanned) -> Self {
        let (detail, hint) = (in_words(&error), error.hint().map(Into::into));
        match error {
            Unplanned::Plan(error) if !is_final(&error) => Self::busy(detail),
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
