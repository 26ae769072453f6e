//! The audit trail: one log line per operation and per denied request. Anybody can cause any number
//! of denied requests, so at most [`MAX_DENIALS_PER_SECOND`] such lines are logged per second; each
//! line has the number of lines left out before.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use axum::extract::ConnectInfo;
use axum::http::Method;
use axum::http::request::Parts;
use twincast_core::spec::MAX_TEXT_CHARS;

use super::auth::Caller;
use super::problem::Problem;
use crate::command::Command;

/// The longest logged text from a caller, in characters. Executed operations have no longer texts.
const MAX_LOGGED_CHARS: usize = MAX_TEXT_CHARS;

/// The most lines about denied requests per second.
const MAX_DENIALS_PER_SECOND: u32 = 20;

/// Counts the lines about denied requests.
#[derive(Debug, Default)]
pub(super) struct DenialLog(Mutex<DenialLogState>);

#[derive(Debug, Default)]
struct DenialLogState {
    second: u64,
    lines: u32,
    left_out: u64,
}

impl DenialLog {
    /// Returns the number of lines left out before this line; `None` if this line is left out, too.
    fn next(&self, second: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.second != second {
            state.second = second;
            state.lines = 0;
        }
        if state.lines == MAX_DENIALS_PER_SECOND {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }

    /// Logs a request denied at `second`.
    pub(super) fn note(
        &self,
        second: u64,
        parts: &Parts,
        origin: &Origin,
        by: Option<&Caller>,
        problem: &Problem,
    ) {
        let Some(left_out) = self.next(second) else {
            return;
        };
        let path = &*shortened(parts.uri.path());
        let steps: Vec<_> = path.trim_start_matches("/api/v1/").split('/').collect();
        let is_operation = parts.method == Method::POST;
        let (operation, rollout) = match (is_operation, &steps[..]) {
            (false, ["rollouts", name, ..]) => ("read", Some(*name)),
            (false, _) => ("read", None),
            (true, ["rollouts"]) => ("start", None),
            (true, ["rollouts", name, operation]) => (*operation, Some(*name)),
            (true, steps) => (*steps.last().unwrap_or(&""), None),
        };
        tracing::warn!(
            target: "twincast_orchestrator::audit",
            by = by.map(Caller::name), role = by.map(|by| by.role().as_str()), operation, rollout, path,
            address = origin.address(), forwarded_for = origin.forwarded_for, result = "denied",
            why = shortened(problem.in_log()), left_out = Some(left_out).filter(|it| *it > 0), "operation"
        );
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_LOGGED_CHARS).collect()
}

/// The origin of a request.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The peer address of the connection.
    address: Option<IpAddr>,
    /// The value of `X-Forwarded-For`. A client may send any value unless a proxy prevents this.
    forwarded_for: Option<String>,
}

impl Origin {
    pub(super) fn of(parts: &Parts) -> Self {
        let address = parts.extensions.get::<ConnectInfo<IpAddr>>();
        let forwarded_for = parts.headers.get("x-forwarded-for");
        let forwarded_for = forwarded_for.and_then(|value| value.to_str().ok());
        Self {
            address: address.map(|ConnectInfo(address)| *address),
            forwarded_for: forwarded_for.map(shortened),
        }
    }

    fn address(&self) -> Option<String> {
        self.address.map(|address| address.to_string())
    }
}

/// Logs the result of an operation.
pub(super) fn log_result(by: &Caller, origin: &Origin, command: &Command, result: &str) {
    let reason = command.reason.as_deref().map(shortened);
    tracing::info!(
        target: "twincast_orchestrator::audit",
        by = by.name(), role = by.role().as_str(), operation = command.name(),
        rollout = command.subject().map(tracing::field::display),
        stage = command.stage.as_ref().map(tracing::field::display),
        reason, address = origin.address(), forwarded_for = origin.forwarded_for,
        result, "operation"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_requests_do_not_fill_the_log() {
        let denials = DenialLog::default();
        let left_out = (0..1_000).filter_map(|_| denials.next(7)).sum::<u64>();
        assert_eq!(left_out, 0, "no earlier denial was left out");
        assert_eq!(
            denials.next(8),
            Some(1_000 - u64::from(MAX_DENIALS_PER_SECOND))
        );
        assert_eq!(denials.next(8), Some(0));
    }
}
