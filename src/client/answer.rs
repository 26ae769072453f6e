//! What a server answers, and what is in the way of an answer.

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
use crate::exit::{ExitCode, Failure};

/// The largest answer that is read; streams are read in pieces.
const LARGEST: usize = 64 * 1024 * 1024;

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It is not there, or went away.
    #[error("it cannot be reached")]
    Transit(#[source] BoxError),
    /// It may be somebody else.
    #[error("its certificate is not trusted")]
    Certificate(#[source] reqwest::Error),
    /// It says nothing.
    #[error("it did not answer within {}", friendly(*.after))]
    Silent { after: Duration },
    /// Its answer has no end.
    #[error("it answered with more than {LARGEST} bytes")]
    TooLarge,
    /// It said why not.
    #[error("{}", .problem.in_words())]
    Refused {
        status: StatusCode,
        problem: Box<Problem>,
        retry_after: Option<Duration>,
    },
    /// What answers is no Twincast, or something between it and us.
    #[error("it answered {status}, and not as Twincast does")]
    Strange { status: StatusCode },
    /// What the store says, of this process.
    #[error(transparent)]
    Store(StoreError),
}

/// What a server says is wrong: `application/problem+json`.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    detail: String,
    cause: Option<Cause>,
    #[serde(default)]
    details: Vec<String>,
    hint: Option<String>,
}

impl Problem {
    fn in_words(&self) -> String {
        let lines = [std::slice::from_ref(&self.detail), &self.details].concat();
        lines.join("\n    ")
    }
}

impl Trouble {
    pub(super) fn transit(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if is_about_trust(&error) {
            Self::Certificate(error)
        } else {
            Self::Transit(error.into())
        }
    }

    /// The same request may be answered later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Transit(_) | Self::Silent { .. } => true,
            Self::Refused { status, .. } | Self::Strange { status } => is_passing(*status),
            Self::Certificate(_) | Self::TooLarge | Self::Store(_) => false,
        }
    }

    /// Not before so long from now.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// What it means for the user of the server that is shown so.
    pub(super) fn failure(self, shown: &str) -> Failure {
        let cannot = |code, trouble: Self| {
            let error = anyhow::Error::new(trouble);
            Failure::new(code, error.context(format!("{shown} cannot be asked")))
        };
        match self {
            Self::Transit(_) => cannot(ExitCode::Services, self).hint(
                "check the address (--server), and that an orchestrator answers there (api.listen)",
            ),
            Self::Certificate(_) => cannot(ExitCode::Services, self).hint(
                "give the certificate of the authority that signed it as server.ca_file, and use the name that is in it",
            ),
            Self::Silent { .. } => cannot(ExitCode::Services, self)
                .hint("doing it again does no harm: what was done is not done twice"),
            Self::TooLarge => cannot(ExitCode::Unexpected, self),
            Self::Strange { status } if is_passing(status) => cannot(ExitCode::Services, self)
                .hint("is an orchestrator running behind it?"),
            Self::Strange { .. } => cannot(ExitCode::Refused, self)
                .hint("check the address (--server): the API is at /api/v1 below it"),
            Self::Store(error) => engine::store_failure(error),
            Self::Refused {
                status, problem, ..
            } => refused(shown, status, *problem),
        }
    }
}

fn refused(shown: &str, status: StatusCode, problem: Problem) -> Failure {
    let words = problem.in_words();
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
            format!("{shown} does not know who asks: {words}"),
            Some(
                "give its token as TWINCAST_TOKEN, or in a file named by server.token_file; `twincast token NAME` makes one",
            ),
        ),
        StatusCode::FORBIDDEN => with(
            ExitCode::Refused,
            format!("{shown} does not allow that: {words}"),
            Some("use a token of a role that may"),
        ),
        StatusCode::INTERNAL_SERVER_ERROR => with(
            ExitCode::Unexpected,
            format!("{shown} failed: {words}"),
            Some("its log says more"),
        ),
        status if is_passing(status) => with(
            ExitCode::Services,
            format!("{shown} cannot do that now: {words}"),
            Some("do it again later; what was done is not done twice"),
        ),
        _ => match problem.cause {
            // In the same words as over the queue.
            Some(cause) => of_refusal(&Refusal {
                details: problem.details,
                ..Refusal::new(cause, problem.detail)
            }),
            None => with(ExitCode::Refused, words, None),
        },
    }
}

/// What it means for the user that a command is refused.
pub(crate) fn of_refusal(refusal: &Refusal) -> Failure {
    let message = [vec![refusal.error.clone()], refusal.details.clone()].concat();
    let failure = Failure::message(ExitCode::Refused, message.join("\n    "));
    match refusal.cause {
        Cause::Conflict => failure.hint(
            "a rollout never changes once it is started: give this one another name, or undo the change",
        ),
        _ => failure,
    }
}

/// A response, if it is a good one.
pub(super) async fn good(mut response: Response<Body>) -> Result<Response<Body>, Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let in_the_way = response.extensions_mut().remove::<Arc<StoreError>>();
    if let Some(error) = in_the_way.and_then(Arc::into_inner) {
        return Err(Trouble::Store(error));
    }
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = body(response).await?;
    Err(match serde_json::from_slice(&body) {
        Ok(problem) => Trouble::Refused {
            status,
            problem: Box::new(problem),
            retry_after: retry_after.map(Duration::from_secs),
        },
        Err(_) => Trouble::Strange { status },
    })
}

/// The whole of an answer.
pub(super) async fn body(response: Response<Body>) -> Result<Vec<u8>, Trouble> {
    let mut pieces = response.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Trouble::Transit(error.into()))?;
        if body.len() + piece.len() > LARGEST {
            return Err(Trouble::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// It failed for the server's certificate. Errors of the system may hold others, in which they are not their causes.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return matches!(found, rustls::Error::InvalidCertificate(_));
    }
    let held = error.downcast_ref::<std::io::Error>();
    let held = held.and_then(|error| error.get_ref());
    let held = held.is_some_and(|error| is_about_trust(error));
    held || error.source().is_some_and(is_about_trust)
}
