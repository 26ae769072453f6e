//! Has commands done: by a server, by an orchestrator over the queue, by the process that works on a state folder, or
//! here on the folder when there is none.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twincast_amqp::{Amqp, AmqpError};
use twincast_core::ids::RolloutName;
use twincast_core::ports::Batches as _;
use twincast_core::spec::Span;
use twincast_core::time::friendly;
use twincast_core::trace::TraceContext;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::command::{Answer, CONTENT_TYPE, Cause, Command, Kind, Refusal, State};
use twincast_orchestrator::intake::{Intake, NotDone};

use crate::args::Who;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::server::Server;
use crate::services;
use crate::stores::{self, Reached};

/// Someone who gives commands.
pub(crate) struct Commander {
    to: Doer,
    by: Option<String>,
    timeout: Duration,
}

/// Who does them.
enum Doer {
    Server(Server),
    Broker(Amqp),
    /// While nobody runs a rollout from it.
    Folder {
        store: Arc<EmbeddedStore>,
        intake: Intake,
    },
}

impl Commander {
    /// Commands for the configured server, or for orchestrators over the queue.
    pub(crate) async fn of_engine(settings: &Settings, who: &Who) -> Result<Self, Failure> {
        let timeout: Span = who
            .timeout
            .parse()
            .map_err(|error| Failure::message(ExitCode::Usage, format!("--timeout: {error}")))?;
        let to = match Server::configured(settings)? {
            Some(server) => Doer::Server(server.with_timeout(timeout.0)),
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
        let store = match stores::folder(settings).await? {
            Reached::Store(store) => Arc::new(store),
            Reached::AtWork(server) => {
                return Ok(Self {
                    to: Doer::Server(server),
                    by: name(who),
                    timeout: Duration::ZERO,
                });
            }
        };
        let intake = engine::intake_of(&store, settings);
        Ok(Self {
            to: Doer::Folder { store, intake },
            by: name(who),
            timeout: Duration::ZERO,
        })
    }

    /// Nobody goes on with the rollout until somebody runs it.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.to, Doer::Folder { .. })
    }

    /// Has a command done; gives the answer when its effect is durable.
    pub(crate) async fn ask(&self, mut command: Command) -> Result<Answer, Failure> {
        command.by = command.by.or_else(|| self.by.clone());
        match &self.to {
            Doer::Server(server) => server.command(&command).await,
            Doer::Broker(amqp) => self.over(amqp, &command).await,
            Doer::Folder { store, intake } => {
                let done = intake.handle(&body_of(&command)?, None).await;
                let answer = done.map_err(|error| match error {
                    NotDone::Refused(refusal) => refused(&refusal),
                    NotDone::Store(error) => engine::store_failure(error),
                })?;
                match (command.command, &command.rollout) {
                    // Nobody else would skip what is left.
                    (Kind::Abort, Some(name)) => aborted(store, name, answer).await,
                    _ => Ok(answer),
                }
            }
        }
    }

    async fn over(&self, amqp: &Amqp, command: &Command) -> Result<Answer, Failure> {
        let body = body_of(command)?;
        let most = twincast_amqp::MAX_COMMAND_BYTES;
        if body.len() > most {
            let message = format!(
                "the command has {} bytes; at most {most} are taken",
                body.len()
            );
            return Err(Failure::message(ExitCode::Refused, message));
        }
        let reply = amqp
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

    /// Lets go of what it holds.
    pub(crate) async fn close(&self) {
        match &self.to {
            Doer::Server(_) => {}
            Doer::Broker(amqp) => amqp.close().await,
            Doer::Folder { store, .. } => store.close().await,
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

/// The span that this process is part of, by the environment: pipelines set it for their steps.
pub(crate) fn caller() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

fn body_of(command: &Command) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(command).map_err(|error| Failure::new(ExitCode::Unexpected, error))
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

pub(crate) fn refused(refusal: &Refusal) -> Failure {
    let message = [vec![refusal.error.clone()], refusal.details.clone()].concat();
    let failure = Failure::message(ExitCode::Refused, message.join("\n    "));
    match refusal.cause {
        Cause::Conflict => failure.hint(
            "a rollout never changes once it is started: give this one another name, or undo the change",
        ),
        _ => failure,
    }
}
