//! Sends commands: to the API, or, in a distributed engine without a server, to an orchestrator
//! over the queue.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twincast_amqp::{Amqp, AmqpError};
use twincast_core::ids::RolloutName;
use twincast_core::ports::Batches as _;
use twincast_core::spec::HumanDuration;
use twincast_core::time::friendly;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::command::{Answer, CONTENT_TYPE, Command, Kind, Refusal, RolloutState};

use crate::args::CallerArgs;
use crate::client::{Client, refusal_failure};
use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::otlp;
use crate::services;

/// A sender of commands, with the caller's name and a time limit.
pub(crate) struct CommandSender {
    target: CommandTarget,
    by: Option<String>,
    timeout: Duration,
}

/// The receiver of commands.
enum CommandTarget {
    Api(Client),
    Broker(Amqp),
}

impl CommandSender {
    /// Returns a sender for the configured server, or for orchestrators over the queue.
    pub(crate) async fn of_engine(
        settings: &Settings,
        caller: &CallerArgs,
    ) -> Result<Self, Failure> {
        let timeout: HumanDuration = caller
            .timeout
            .parse()
            .map_err(|error| Failure::message(ExitCode::Usage, format!("--timeout: {error}")))?;
        let target = match Client::of_server(settings)? {
            Some(server) => CommandTarget::Api(server.with_timeout(timeout.0)),
            None => CommandTarget::Broker(services::broker(settings, "cli").await?),
        };
        Ok(Self {
            target,
            by: caller_name(caller),
            timeout: timeout.0,
        })
    }

    /// Like [`of_engine`](Self::of_engine); uses the state folder if no services are configured.
    pub(crate) async fn connect(settings: &Settings, caller: &CallerArgs) -> Result<Self, Failure> {
        if settings.server.url.is_some() || settings.is_distributed() {
            return Self::of_engine(settings, caller).await;
        }
        Ok(Self {
            target: CommandTarget::Api(Client::of_folder(settings).await?),
            by: caller_name(caller),
            timeout: Duration::ZERO,
        })
    }

    /// Returns the state folder if no process works on the folder: the rollout then rests until the
    /// next `run`.
    pub(crate) fn idle_folder(&self) -> Option<&Arc<EmbeddedStore>> {
        match &self.target {
            CommandTarget::Api(client) => client.idle_folder(),
            CommandTarget::Broker(_) => None,
        }
    }

    /// Performs a command; returns the answer once the effect is durable.
    pub(crate) async fn ask(&self, mut command: Command) -> Result<Answer, Failure> {
        command.by = command.by.or_else(|| self.by.clone());
        let answer = match &self.target {
            CommandTarget::Api(client) => client.command(&command).await,
            CommandTarget::Broker(amqp) => self.ask_over_amqp(amqp, &command).await,
        }?;
        match (command.command, &command.rollout, self.idle_folder()) {
            // No other process would skip the remaining devices.
            (Kind::Abort, Some(name), Some(store)) => complete_abort(store, name, answer).await,
            _ => Ok(answer),
        }
    }

    async fn ask_over_amqp(&self, amqp: &Amqp, command: &Command) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(command);
        let body = body.map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
        let most = twincast_amqp::MAX_COMMAND_BYTES;
        if body.len() > most {
            let message = format!(
                "the command has {} bytes; at most {most} are allowed",
                body.len()
            );
            return Err(Failure::message(ExitCode::Refused, message));
        }
        let reply = amqp
            .request(body, CONTENT_TYPE, otlp::caller(), self.timeout)
            .await;
        let reply = reply.map_err(|error| match error {
            AmqpError::TimedOut { after } => {
                let message = format!("no orchestrator answered within {}", friendly(after));
                Failure::message(ExitCode::Services, message).hint(
                    "check that an orchestrator and Redis are running. The command waits on the \
                     queue until both run; sending the command again does no harm",
                )
            }
            error => services::broker_failure(error),
        })?;
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&reply) {
            return Err(refusal_failure(&refusal));
        }
        serde_json::from_slice(&reply).map_err(|error| {
            let error = anyhow::Error::new(error).context("cannot parse the orchestrator's answer");
            Failure::new(ExitCode::Unexpected, error)
        })
    }

    /// Closes the connection or the store.
    pub(crate) async fn close(&self) {
        match &self.target {
            CommandTarget::Api(client) => client.close().await,
            CommandTarget::Broker(amqp) => amqp.close().await,
        }
    }
}

/// Completes the abort of a rollout in a folder without a running process. Needs no hub: nothing is
/// sent.
async fn complete_abort(
    store: &Arc<EmbeddedStore>,
    name: &RolloutName,
    mut answer: Answer,
) -> Result<Answer, Failure> {
    let driver = engine::idle_driver(Arc::clone(store));
    let driven = driver.drive(name, &CancellationToken::new()).await;
    let rollout = driven.map_err(engine::drive_failure)?;
    let tallies = store.tallies(name).await.map_err(engine::store_failure)?;
    answer.rollouts = vec![RolloutState::of(&rollout, &tallies)];
    Ok(answer)
}

/// Returns the caller's name, if known.
fn caller_name(caller: &CallerArgs) -> Option<String> {
    let given = |key| std::env::var(key).ok().filter(|user| !user.is_empty());
    // Services and containers have only a numeric user id.
    let number = || {
        let process = std::fs::metadata("/proc/self").ok()?;
        Some(format!("user {}", process.uid()))
    };
    let by = caller.by.clone();
    by.or_else(|| given("USER"))
        .or_else(|| given("LOGNAME"))
        .or_else(number)
}

/// Returns the rollout named by an answer about a single rollout.
pub(crate) fn only_rollout(answer: &Answer) -> Result<RolloutState, Failure> {
    let state = answer.rollouts.first().cloned();
    state.ok_or_else(|| Failure::message(ExitCode::Unexpected, "the answer names no rollout"))
}
