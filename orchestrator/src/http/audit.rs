//! The audit trail: one line of the log for each operation, and for whatever was denied.

use std::net::IpAddr;

use axum::extract::ConnectInfo;
use axum::http::Method;
use axum::http::request::Parts;
use twincast_core::spec::MAX_TEXT_CHARS;

use super::Shared;
use super::auth::Caller;
use super::problem::Problem;
use crate::command::Command;

/// The longest text of somebody's that is logged, in characters. What is done has no longer ones.
const LONGEST: usize = MAX_TEXT_CHARS;

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

impl Shared {
    /// Notes that somebody asked for what they may not.
    pub(super) fn denied(&self, parts: &Parts, origin: &Origin, problem: &Problem) {
        let path = parts.uri.path();
        let steps: Vec<_> = path.trim_start_matches("/api/v1/").split('/').collect();
        let is_operation = parts.method == Method::POST;
        let (operation, rollout) = match (is_operation, &steps[..]) {
            (false, ["rollouts", name, ..]) => ("look", Some(*name)),
            (false, _) => ("look", None),
            (true, ["rollouts"]) => ("start", None),
            (true, ["rollouts", name, operation]) => (*operation, Some(*name)),
            (true, steps) => (*steps.last().unwrap_or(&""), None),
        };
        if is_operation {
            self.api.status.metrics.denied();
        }
        tracing::warn!(
            target: "twincast_orchestrator::audit",
            operation, rollout, path, address = origin.address(), forwarded_for = origin.forwarded_for,
            result = "denied", why = problem.detail(), "operation"
        );
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
