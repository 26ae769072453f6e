//! Sends commands and waits for an orchestrator's answer.

use std::time::Duration;

use twincast_amqp::{Amqp, AmqpError};
use twincast_core::spec::Span;
use twincast_core::time::friendly;
use twincast_core::trace::TraceContext;
use twincast_orchestrator::command::{Answer, CONTENT_TYPE, Cause, Command, Refusal, State};

use crate::args::Who;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::services;

/// Someone who gives commands.
pub(crate) struct Commander {
    amqp: Amqp,
    by: Option<String>,
    timeout: Duration,
}

impl Commander {
    pub(crate) async fn connect(settings: &Settings, who: &Who) -> Result<Self, Failure> {
        let timeout: Span = who
            .timeout
            .parse()
            .map_err(|error| Failure::message(ExitCode::Usage, format!("--timeout: {error}")))?;
        Ok(Self {
            amqp: services::broker(settings, "cli").await?,
            by: name(who),
            timeout: timeout.0,
        })
    }

    /// Sends a command; gives the answer when its effect is durable.
    pub(crate) async fn ask(&self, mut command: Command) -> Result<Answer, Failure> {
        command.by = command.by.or_else(|| self.by.clone());
        let body = serde_json::to_vec(&command)
            .map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
        let most = twincast_amqp::MAX_COMMAND_BYTES;
        if body.len() > most {
            let message = format!(
                "the command has {} bytes; at most {most} are taken",
                body.len()
            );
            return Err(Failure::message(ExitCode::Refused, message));
        }
        let reply = self
            .amqp
            .request(body, CONTENT_TYPE, caller(), self.timeout)
            .await;
        let reply = reply.map_err(|error| match error {
            AmqpError::TimedOut { after } => {
                let message = format!("no orchestrator answered within {}", friendly(after));
                Failure::message(ExitCode::Services, message).hint(
                    "is an orchestrator running, and Redis? The command waits on its queue, and is done when both are; sending it again does no harm",
                )
            }
            error => services::broker_failure(error),
        })?;
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&reply) {
            return Err(refused(&refusal));
        }
        serde_json::from_slice(&reply).map_err(|error| {
            let error =
                anyhow::Error::new(error).context("the orchestrator's answer is not understood");
            Failure::new(ExitCode::Unexpected, error)
        })
    }

    pub(crate) async fn close(&self) {
        self.amqp.close().await;
    }
}

/// The span that this process is part of, by the environment: pipelines set it for their steps.
pub(crate) fn caller() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

/// Who gives commands, if it is known.
pub(crate) fn name(who: &Who) -> Option<String> {
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    who.by.clone().or_else(user)
}

/// The one rollout that an answer is about.
pub(crate) fn one(answer: &Answer) -> Result<State, Failure> {
    let state = answer.rollouts.first().cloned();
    state.ok_or_else(|| Failure::message(ExitCode::Unexpected, "the answer names no rollout"))
}

pub(crate) fn refused(refusal: &Refusal) -> Failure {
    let message = [vec![refusal.error.clone()], refusal.details.clone()].concat();
    let failure = Failure::message(ExitCode::Refused, message.join("\n    "));
    match refusal.cause {
        Cause::NotPossible => failure.hint("see where it is with `twincast status`"),
        Cause::Conflict => failure.hint(
            "a rollout never changes once it is started: give this one another name, or undo the change",
        ),
        _ => failure,
    }
}
