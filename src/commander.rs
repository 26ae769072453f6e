//! Has commands done: over the API, or by an orchestrator over the queue, where the distributed engine has no server.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twincast_amqp::{Amqp, AmqpError};
use twincast_core::ids::RolloutName;
use twincast_core::ports::Batches as _;
use twincast_core::spec::Span;
use twincast_core::time::friendly;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::command::{Answer, CONTENT_TYPE, Command, Kind, Refusal, State};

use crate::args::Who;
use crate::client::{Client, of_refusal};
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::otlp;
use crate::services;

/// Someone who gives commands.
pub(crate) struct Commander {
    to: Doer,
    by: Option<String>,
    timeout: Duration,
}

/// Who does them.
enum Doer {
    Api(Client),
    Broker(Amqp),
}

impl Commander {
    /// Commands for the configured server, or for orchestrators over the queue.
    pub(crate) async fn of_engine(settings: &Settings, who: &Who) -> Result<Self, Failure> {
        let timeout: Span = who
            .timeout
            .parse()
            .map_err(|error| Failure::message(ExitCode::Usage, format!("--timeout: {error}")))?;
        let to = match Client::of_server(settings)? {
            Some(server) => Doer::Api(server.with_timeout(timeout.0)),
            None => Doer::Broker(services::broker(settings, "cli").await?),
        };
        Ok(Self {
            to,
            by: name(who),
            timeout: timeout.0,
        })
    }

    /// The same, or for the state folder when there are no services.
    pub(crate) async fn connect(settings: &Settings, who: &Who) -> Result<Self, Failure> {
        if settings.server.url.is_some() || settings.is_distributed() {
            return Self::of_engine(settings, who).await;
        }
        Ok(Self {
            to: Doer::Api(Client::of_folder(settings).await?),
            by: name(who),
            timeout: Duration::ZERO,
        })
    }

    /// The state folder, if nobody goes on with the rollout until somebody runs it.
    pub(crate) fn still(&self) -> Option<&Arc<EmbeddedStore>> {
        match &self.to {
            Doer::Api(client) => client.still(),
            Doer::Broker(_) => None,
        }
    }

    /// Has a command done; gives the answer when its effect is durable.
    pub(crate) async fn ask(&self, mut command: Command) -> Result<Answer, Failure> {
        command.by = command.by.or_else(|| self.by.clone());
        let answer = match &self.to {
            Doer::Api(client) => client.command(&command).await,
            Doer::Broker(amqp) => self.over(amqp, &command).await,
        }?;
        match (command.command, &command.rollout, self.still()) {
            // Nobody else would skip what is left.
            (Kind::Abort, Some(name), Some(store)) => aborted(store, name, answer).await,
            _ => Ok(answer),
        }
    }

    async fn over(&self, amqp: &Amqp, command: &Command) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(command);
        let body = body.map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
        let most = twincast_amqp::MAX_COMMAND_BYTES;
        if body.len() > most {
            let message = format!(
                "the command has {} bytes; at most {most} are taken",
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
                    "is an orchestrator running, and Redis? The command waits on its queue, and is done when both are; sending it again does no harm",
                )
            }
            error => services::broker_failure(error),
        })?;
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&reply) {
            return Err(of_refusal(&refusal));
        }
        serde_json::from_slice(&reply).map_err(|error| {
            let error =
                anyhow::Error::new(error).context("the orchestrator's answer is not understood");
            Failure::new(ExitCode::Unexpected, error)
        })
    }

    /// Lets go of what it holds.
    pub(crate) async fn close(&self) {
        match &self.to {
            Doer::Api(client) => client.close().await,
            Doer::Broker(amqp) => amqp.close().await,
        }
    }
}

/// Ends a rollout that is being aborted in a folder where nobody works. It needs no hub: nothing is sent.
async fn aborted(
    store: &Arc<EmbeddedStore>,
    name: &RolloutName,
    mut answer: Answer,
) -> Result<Answer, Failure> {
    let driver = engine::idle_driver(Arc::clone(store));
    let driven = driver.drive(name, &CancellationToken::new()).await;
    let rollout = driven.map_err(engine::drive_failure)?;
    let tallies = store.tallies(name).await.map_err(engine::store_failure)?;
    answer.rollouts = vec![State::of(&rollout, &tallies)];
    Ok(answer)
}

/// Who gives commands, if it is known.
fn name(who: &Who) -> Option<String> {
    let given = |key| std::env::var(key).ok().filter(|user| !user.is_empty());
    // Services and containers have a user's number alone.
    let number = || {
        let process = std::fs::metadata("/proc/self").ok()?;
        Some(format!("user {}", process.uid()))
    };
    let by = who.by.clone();
    by.or_else(|| given("USER"))
        .or_else(|| given("LOGNAME"))
        .or_else(number)
}

/// The one rollout that an answer is about.
pub(crate) fn one(answer: &Answer) -> Result<State, Failure> {
    let state = answer.rollouts.first().cloned();
    state.ok_or_else(|| Failure::message(ExitCode::Unexpected, "the answer names no rollout"))
}
