//! `twincast orchestrator`: takes commands, plans and drives rollouts.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_amqp::{Amqp, AmqpError, CommandBody, CommandConsumer, IncomingCommand};
use twincast_core::error::describe;
use twincast_core::ids::Holder;
use twincast_core::ports::{RolloutRegistry, Store, StoreError};
use twincast_orchestrator::Hubs;
use twincast_orchestrator::command::{Answer, Cause, Command, Refusal};
use twincast_orchestrator::command_executor::{Attempted, CommandError, CommandExecutor};
use twincast_orchestrator::http::{Api, REQUEST_TIMEOUT};
use twincast_orchestrator::metrics::Metrics;
use twincast_orchestrator::retention::Retention;
use twincast_orchestrator::service::{Orchestrator, OrchestratorConfig, OrchestratorStatus};
use twincast_retry::Policy;

use crate::api::Listener;
use crate::commands::dead_letters::BrokerDeadLetters;
use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::otlp;
use crate::output::Output;
use crate::process::Process;
use crate::prometheus;
use crate::services::{BrokerEvents, Services};

/// The largest number of commands held by this process; other orchestrators take the remaining
/// commands. Greater than 1, because an answer waits until the effect is durable.
const MAX_CONCURRENT_COMMANDS: usize = 32;
/// The interval of counting dead letters.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// The delay before a command is tried again after a failed write to the store.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(crate) async fn orchestrator(
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let hubs = engine::all_hubs(settings, None)?;
    engine::note_assumed_limits(&hubs, settings, output);
    let listener = Listener::bind(settings).await?;
    let metric_source = prometheus::server(settings)?;
    let traces = otlp::start(settings, "orchestrator")?;
    let Some(process) = Process::start("orchestrator", settings, output).await? else {
        return Ok(ExitCode::Success);
    };
    let services = &process.services;
    engine::bind_hubs(&*services.store(), &hubs).await?;
    let clock = engine::clock();
    let rollout_registry = services.store() as Arc<dyn RolloutRegistry>;
    let executor = Arc::new(CommandExecutor {
        clock: Arc::clone(&clock),
        tracer: traces.tracer(),
        ..engine::command_executor(services.store(), Some(rollout_registry), settings)
    });
    let status = Arc::new(OrchestratorStatus::default());
    let api = listener.map(|listener| {
        listener.announce(output);
        let (hubs, executor, status) = (hubs.clone(), Arc::clone(&executor), Arc::clone(&status));
        let api = api(services, settings, &listener, hubs, executor, status);
        (listener, api.router())
    });
    let service = Arc::new(Orchestrator {
        store: services.store() as Arc<dyn Store>,
        registry: services.store() as Arc<dyn RolloutRegistry>,
        queue: Arc::new(services.amqp.queue()),
        events: Arc::new(BrokerEvents(services.amqp.clone())),
        hubs,
        metric_source,
        clock,
        config: OrchestratorConfig::default(),
        id: Holder::new(format!("orchestrator-{}", uuid::Uuid::new_v4().simple()))
            .expect("letters and digits"),
        status,
        tracer: traces.tracer(),
    });
    process.export(|registry| service.status.metrics.register(registry))?;
    process.export(|registry| traces.register(registry))?;
    let stop = process.stop.clone();
    let metrics = &service.status.metrics;
    let answering = async {
        if let Some((listener, router)) = api {
            listener.serve(router, stop.clone()).await;
        }
    };
    let work = async {
        tokio::join!(
            Arc::clone(&service).run(stop.clone()),
            take_commands(&services.amqp, &executor, metrics, &stop),
            answering
        )
    };
    let ((), taken, ()) = tokio::select! {
        worked = process.until_stopped(work) => worked,
        () = count_dead_letters(&services.amqp, metrics) => unreachable!("it counts for ever"),
        () = apply_retention(settings.retention.rule(), &executor) => unreachable!("it deletes for ever"),
    };
    process.end().await;
    traces.close(otlp::FINAL_EXPORT_TIMEOUT).await;
    taken.map_err(crate::services::broker_failure)?;
    Ok(ExitCode::Success)
}

fn api(
    services: &Services,
    settings: &Settings,
    listener: &Listener,
    hubs: Hubs,
    executor: Arc<CommandExecutor>,
    status: Arc<OrchestratorStatus>,
) -> Api {
    Api {
        store: services.store() as Arc<dyn Store>,
        queue: Some(Arc::new(services.amqp.queue())),
        limits: settings.limits(),
        hubs,
        executor,
        dead_letters: Some(Arc::new(BrokerDeadLetters(services.amqp.clone()))),
        access: listener.access(),
        status,
        request_timeout: REQUEST_TIMEOUT,
    }
}

/// Deletes old ended rollouts, until dropped. Without a rule, deletes nothing.
async fn apply_retention(rule: Option<Retention>, executor: &CommandExecutor) {
    match rule {
        Some(rule) => rule.apply_repeatedly(executor).await,
        None => std::future::pending().await,
    }
}

/// Updates the count of dead letters, until dropped.
async fn count_dead_letters(amqp: &Amqp, metrics: &Metrics) {
    loop {
        if let Ok(count) = amqp.dead_letters_waiting().await {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            metrics.dead_letters.set(count);
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
}

/// Takes and performs commands in sequence until `stop`. Each answer follows once the effect is
/// durable. Another orchestrator may perform later commands meanwhile: a caller in need of an order
/// waits for each answer.
async fn take_commands(
    amqp: &Amqp,
    executor: &CommandExecutor,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), AmqpError> {
    let Some(mut commands) = subscribe(amqp, stop).await? else {
        return Ok(());
    };
    let mut answering = FuturesUnordered::new();
    loop {
        let command = tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = answering.next() => continue,
            command = commands.next() => command?,
        };
        // The broker redelivers a command dropped here.
        let done = tokio::select! {
            () = stop.cancelled() => break,
            done = attempt(&command, executor) => done,
        };
        answering.push(answer(command, done, executor, metrics));
    }
    // Performed commands are still answered.
    while answering.next().await.is_some() {}
    Ok(())
}

/// Subscribes to the command queue, retrying without limit. Returns `None` if `stop` comes first.
async fn subscribe(
    amqp: &Amqp,
    stop: &CancellationToken,
) -> Result<Option<CommandConsumer>, AmqpError> {
    let mut delays = Policy::reconnect().delays();
    loop {
        let subscribed = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            subscribed = amqp.commands(MAX_CONCURRENT_COMMANDS) => subscribed,
        };
        let error = match subscribed {
            Ok(commands) => return Ok(Some(commands)),
            Err(AmqpError::Closed) => return Err(AmqpError::Closed),
            Err(error) => error,
        };
        let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
        tracing::warn!(
            error = describe(&error),
            ?wait,
            "waiting for the command queue"
        );
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Performs a single command.
async fn attempt(
    command: &IncomingCommand,
    executor: &CommandExecutor,
) -> Result<Attempted, Refusal> {
    let body = match &command.body {
        CommandBody::Whole(body) => body,
        CommandBody::TooLarge { size, .. } => return Err(too_large(*size)),
    };
    let span = executor.begin(command.traceparent.as_deref());
    let log = tracing::error_span!("command", trace_id = %span.context.trace);
    let command = Command {
        span: Some(span),
        ..Command::read(body, command.content_type.as_deref())?
    };
    retry_until_stored(|| executor.attempt(&command))
        .instrument(log)
        .await
}

/// Answers a command once the effect is durable.
async fn answer(
    command: IncomingCommand,
    done: Result<Attempted, Refusal>,
    executor: &CommandExecutor,
    metrics: &Metrics,
) {
    let done = match done {
        Ok(attempted) => retry_until_stored(|| executor.confirm(attempted.clone())).await,
        Err(refusal) => Err(refusal),
    };
    metrics.count_answer(done.as_ref());
    if let Err(error) = reply(command, done).await {
        tracing::warn!(
            error = describe(&error),
            "command not answered, the broker redelivers the command"
        );
    }
}

/// Replies with the result of a command, and removes the command from the queue.
async fn reply(command: IncomingCommand, done: Result<Answer, Refusal>) -> Result<(), AmqpError> {
    let refusal = match done {
        Ok(answer) => {
            command.reply(json(&answer)).await;
            return command.ack().await;
        }
        Err(refusal) => refusal,
    };
    let cause = refusal.cause;
    tracing::warn!(
        cause = cause.as_str(),
        error = refusal.error,
        "command refused"
    );
    command.reply(json(&refusal)).await;
    if command.reply_to.is_some() && cause.is_about_the_rollout() {
        // The caller knows the reason; the command itself was well-formed.
        return command.ack().await;
    }
    let detail = [vec![refusal.error], refusal.details].concat();
    command
        .dead_letter(cause.as_str(), &detail.join("; "))
        .await
}

/// Repeats a call until the store is available, without limit.
async fn retry_until_stored<T, F>(call: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, CommandError>>,
{
    let mut has_waited = false;
    loop {
        match call().await {
            Ok(done) => return Ok(done),
            Err(CommandError::Refused(refusal)) => return Err(refusal),
            Err(CommandError::Store(error @ StoreError::Newer { .. })) => {
                return Err(Refusal::new(Cause::NewerRelease, describe(&error)));
            }
            Err(CommandError::Store(error @ StoreError::Corrupt { .. })) => {
                return Err(Refusal::new(Cause::Damaged, describe(&error)));
            }
            Err(CommandError::Store(error)) => {
                if !std::mem::replace(&mut has_waited, true) {
                    tracing::warn!(error = describe(&error), "command waits for the store");
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

fn too_large(size: usize) -> Refusal {
    let most = twincast_amqp::MAX_COMMAND_BYTES;
    Refusal::new(
        Cause::TooLarge,
        format!("the command has {size} bytes; at most {most} are allowed"),
    )
}

fn json(answer: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("answers are plain data")
}
