//! The audit trail: one line of the log for each operation, and for what was denied: of that, anybody can ask for as
//! much as they like, so there are [`DENIALS`] lines a second at the most, and each says how many were left out before.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use axum::extract::ConnectInfo;
use axum::http::Method;
use axum::http::request::Parts;
use twincast_core::spec::MAX_TEXT_CHARS;

use super::auth::Caller;
use super::problem::Problem;
use crate::command::Command;

/// The longest text of somebody's that is logged, in characters. What is done has no longer ones.
const LONGEST: usize = MAX_TEXT_CHARS;

/// Lines of what was denied, a second.
const DENIALS: u32 = 20;

/// How much was told of what was denied.
#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    second: u64,
    lines: u32,
    left_out: u64,
}

impl Denials {
    /// How many were left out before this one, if it is to be told.
    fn next(&self, second: u64) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.second != second {
            told.second = second;
            told.lines = 0;
        }
        if told.lines == DENIALS {
            told.left_out += 1;
            return None;
        }
        told.lines += 1;
        Some(std::mem::take(&mut told.left_out))
    }

    /// Notes that somebody asked at `second` for what they may not.
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
            (false, ["rollouts", name, ..]) => ("look", Some(*name)),
            (false, _) => ("look", None),
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
    text.chars().take(LONGEST).collect()
}

/// Where a request comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The other end of the connection.
    address: Option<IpAddr>,
    /// Who that says it asks for. Anybody can say so who is not kept from it.
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

/// Notes what came of an operation.
pub(super) fn done(by: &Caller, origin: &Origin, command: &Command, result: &str) {
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
    fn what_is_denied_does_not_fill_the_log() {
        let denials = Denials::default();
        let told = (0..1_000).filter_map(|_| denials.next(7)).sum::<u64>();
        assert_eq!(told, 0, "of the first second, none was left out before");
        assert_eq!(denials.next(8), Some(1_000 - u64::from(DENIALS)));
        assert_eq!(denials.next(8), Some(0));
    }
}
