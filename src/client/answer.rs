//! Answers of a server, and the errors of missing or unusable answers.

use std::sync::Arc;
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use axum::http::header::RETRY_AFTER;
use axum::http::{Response, StatusCode};
use futures::StreamExt as _;
use serde::Deserialize;
use twincast_core::ports::StoreError;
use twincast_core::time::friendly;
use twincast_orchestrator::command::{Cause, Refusal};

use crate::engine;
use crate::failure::{ExitCode, Failure};

/// The largest answer read as a whole, in bytes; streams are read in pieces.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The cause of a missing or unusable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The server is unreachable or closed the connection.
    #[error("connection failed")]
    Transit(#[source] BoxError),
    /// The server's identity is in doubt.
    #[error("the certificate of the server is not trusted")]
    Certificate(#[source] reqwest::Error),
    /// The server stays silent.
    #[error("no answer within {}", friendly(*.after))]
    Silent { after: Duration },
    /// The answer exceeds the size limit.
    #[error("the answer has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// The server refused the request with a reason.
    #[error("{}", .problem.describe())]
    Refused {
        status: StatusCode,
        problem: Box<Problem>,
        retry_after: Option<Duration>,
    },
    /// The answer comes from another program, or from a proxy on the way.
    #[error("the answer {status} does not come from Twincast")]
    Strange { status: StatusCode },
    /// An error of the store in this process.
    #[error(transparent)]
    Store(StoreError),
}

/// A server's error document: `application/problem+json`.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    detail: String,
    cause: Option<Cause>,
    #[serde(default)]
    details: Vec<String>,
    hint: Option<String>,
}

impl Problem {
    fn describe(&self) -> String {
        let lines = [std::slice::from_ref(&self.detail), &self.details].concat();
        lines.join("\n    ")
    }
}

impl RequestError {
    pub(super) fn transit(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if is_about_trust(&error) {
            Self::Certificate(error)
        } else {
            Self::Transit(error.into())
        }
    }

    /// Returns true for a transient error: the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transit(_) | Self::Silent { .. } => true,
            Self::Refused { status, .. } | Self::Strange { status } => is_transient_status(*status),
            Self::Certificate(_) | Self::TooLarge | Self::Store(_) => false,
        }
    }

    /// Returns the minimum delay before the next attempt.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// Converts the error into a failure for the user. `target_name` is the name of the server.
    pub(super) fn failure(self, target_name: &str) -> Failure {
        let cannot = |code, error: Self| {
            let error = anyhow::Error::new(error);
            Failure::new(
                code,
                error.context(format!("request to {target_name} failed")),
            )
        };
        match self {
            Self::Transit(_) => cannot(ExitCode::Services, self).hint(
                "check the address (--server), and that an orchestrator listens there (api.listen)",
            ),
            Self::Certificate(_) => cannot(ExitCode::Services, self).hint(
                "set server.ca_file to the certificate of the signing authority, and use the host \
                 name of the server's certificate",
            ),
            Self::Silent { .. } => cannot(ExitCode::Services, self)
                .hint("run the command again: a completed change is not made twice"),
            Self::TooLarge => cannot(ExitCode::Unexpected, self),
            Self::Strange { status } if is_transient_status(status) => {
                cannot(ExitCode::Services, self)
                    .hint("check that an orchestrator is running behind this address")
            }
            Self::Strange { .. } => cannot(ExitCode::Refused, self).hint(
                "check the address (--server): the API must be at /api/v1 below this address",
            ),
            Self::Store(error) => engine::store_failure(error),
            Self::Refused {
                status, problem, ..
            } => refused(target_name, status, *problem),
        }
    }
}

fn refused(target_name: &str, status: StatusCode, problem: Problem) -> Failure {
    let words = problem.describe();
    let with = |code, message: String, otherwise: Option<&str>| {
        let failure = Failure::message(code, message);
        match problem.hint.as_deref().or(otherwise) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    match status {
        StatusCode::UNAUTHORIZED => with(
            ExitCode::Refused,
            format!("authentication at {target_name} failed: {words}"),
            Some(
                "set TWINCAST_TOKEN to a token of the server, or server.token_file to a file with \
                 the token; `twincast token NAME` creates a token",
            ),
        ),
        StatusCode::FORBIDDEN => with(
            ExitCode::Refused,
            format!("{target_name} denied the request: {words}"),
            Some("use a token with a permitted role"),
        ),
        StatusCode::INTERNAL_SERVER_ERROR => with(
            ExitCode::Unexpected,
            format!("{target_name} failed: {words}"),
            Some("read the log of the server"),
        ),
        status if is_transient_status(status) => with(
            ExitCode::Services,
            format!("{target_name} cannot serve the request now: {words}"),
            Some("retry later; a completed change is not made twice"),
        ),
        _ => match problem.cause {
            // The wording matches an answer over the queue.
            Some(cause) => refusal_failure(&Refusal {
                details: problem.details,
                ..Refusal::new(cause, problem.detail)
            }),
            None => with(ExitCode::Refused, words, None),
        },
    }
}

/// Converts the refusal of a command into a failure for the user.
pub(crate) fn refusal_failure(refusal: &Refusal) -> Failure {
    let message = [vec![refusal.error.clone()], refusal.details.clone()].concat();
    let failure = Failure::message(ExitCode::Refused, message.join("\n    "));
    match refusal.cause {
        Cause::Conflict => {
            failure.hint("choose another name, or undo the change: a started rollout never changes")
        }
        _ => failure,
    }
}

/// Returns a successful response; converts any other response into an error.
pub(super) async fn check_status(
    mut response: Response<Body>,
) -> Result<Response<Body>, RequestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let store_error = response.extensions_mut().remove::<Arc<StoreError>>();
    if let Some(error) = store_error.and_then(Arc::into_inner) {
        return Err(RequestError::Store(error));
    }
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = body(response).await?;
    Err(match serde_json::from_slice(&body) {
        Ok(problem) => RequestError::Refused {
            status,
            problem: Box::new(problem),
            retry_after: retry_after.map(Duration::from_secs),
        },
        Err(_) => RequestError::Strange { status },
    })
}

/// Reads an answer to the end.
pub(super) async fn body(response: Response<Body>) -> Result<Vec<u8>, RequestError> {
    let mut pieces = response.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| RequestError::Transit(error.into()))?;
        if body.len() + piece.len() > MAX_BYTES {
            return Err(RequestError::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn is_transient_status(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Returns true for an error about the server's certificate. An I/O error may wrap an error without
/// reporting the wrapped error as a source, so wrapped errors are searched, too.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return matches!(found, rustls::Error::InvalidCertificate(_));
    }
    let held = error.downcast_ref::<std::io::Error>();
    let held = held.and_then(|error| error.get_ref());
    let held = held.is_some_and(|error| is_about_trust(error));
    held || error.source().is_some_and(is_about_trust)
}
