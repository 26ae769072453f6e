//! `twincast orchestrator`: takes commands, plans and drives rollouts.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_amqp::{Amqp, AmqpError, CommandBody, CommandConsumer, IncomingCommand};
use twincast_core::error::in_words;
use twincast_core::ids::Holder;
use twincast_core::ports::{Roster, Store, StoreError};
use twincast_orchestrator::Hubs;
use twincast_orchestrator::command::{Answer, Cause, Command, Refusal};
use twincast_orchestrator::http::{Api, TIME};
use twincast_orchestrator::intake::{Attempted, Intake, NotDone};
use twincast_orchestrator::metrics::Metrics;
use twincast_orchestrator::retention::Retention;
use twincast_orchestrator::service::{Orchestrator, OrchestratorConfig, OrchestratorStatus};
use twincast_retry::Policy;

use crate::api::Listener;
use crate::commands::dead_letters::BrokerLetters;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::otlp;
use crate::output::Output;
use crate::process::Process;
use crate::prometheus;
use crate::services::{BrokerEvents, Services};

/// Commands that this process holds: the others are for other orchestrators meanwhile. More than one, because an answer waits
/// until the effect is durable.
const AT_ONCE: usize = 32;
/// How often dead letters are counted.
const COUNTED_EVERY: Duration = Duration::from_secs(5);
/// How long a command waits whose effect could not be stored.
const TRY_AGAIN: Duration = Duration::from_secs(1);

pub(crate) async fn orchestrator(
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let hubs = engine::all_hubs(settings, None)?;
    engine::note_guesses(&hubs, settings, output);
    let listener = Listener::bind(settings).await?;
    let metric_source = prometheus::server(settings)?;
    let traces = otlp::start(settings, "orchestrator")?;
    let Some(process) = Process::start("orchestrator", settings, output).await? else {
        return Ok(ExitCode::Success);
    };
    let services = &process.services;
    engine::bind_hubs(&*services.store(), &hubs).await?;
    let clock = engine::clock();
    let roster = services.store() as Arc<dyn Roster>;
    let intake = Arc::new(Intake {
        clock: Arc::clone(&clock),
        tracer: traces.tracer(),
        ..engine::intake_of(services.store(), Some(roster), settings)
    });
    let status = Arc::new(OrchestratorStatus::default());
    let api = listener.map(|listener| {
        listener.announce(output);
        let (hubs, intake, status) = (hubs.clone(), Arc::clone(&intake), Arc::clone(&status));
        let api = api(services, settings, &listener, hubs, intake, status);
        (listener, api.router())
    });
    let service = Arc::new(Orchestrator {
        store: services.store() as Arc<dyn Store>,
        roster: services.store() as Arc<dyn Roster>,
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
            take(&services.amqp, &intake, metrics, &stop),
            answering
        )
    };
    let ((), taken, ()) = tokio::select! {
        worked = process.until_stopped(work) => worked,
        () = count_dead_letters(&services.amqp, metrics) => unreachable!("it counts for ever"),
        () = keep_to(settings.retention.rule(), &intake) => unreachable!("it deletes for ever"),
    };
    process.end().await;
    traces.close(otlp::LAST).await;
    taken.map_err(crate::services::broker_failure)?;
    Ok(ExitCode::Success)
}

fn api(
    services: &Services,
    settings: &Settings,
    listener: &Listener,
    hubs: Hubs,
    intake: Arc<Intake>,
    status: Arc<OrchestratorStatus>,
) -> Api {
    Api {
        store: services.store() as Arc<dyn Store>,
        queue: Some(Arc::new(services.amqp.queue())),
        limits: settings.limits(),
        hubs,
        intake,
        letters: Some(Arc::new(BrokerLetters(services.amqp.clone()))),
        door: listener.door(),
        status,
        time: TIME,
    }
}

/// Deletes rollouts that ended long ago, until dropped. Without a rule it deletes nothing.
async fn keep_to(rule: Option<Retention>, intake: &Intake) {
    match rule {
        Some(rule) => rule.keep_to(intake).await,
        None => std::future::pending().await,
    }
}

/// Keeps count of the dead letters, until dropped.
async fn count_dead_letters(amqp: &Amqp, metrics: &Metrics) {
    loop {
        if let Ok(letters) = amqp.dead_letters_waiting().await {
            let letters = i64::try_from(letters).unwrap_or(i64::MAX);
            metrics.dead_letters.set(letters);
        }
        tokio::time::sleep(COUNTED_EVERY).await;
    }
}

/// Takes commands until `stop`, and does one after the other; answers follow when the effects are durable. Another
/// orchestrator may do later ones meanwhile: who cares for an order waits for each answer.
async fn take(
    amqp: &Amqp,
    intake: &Intake,
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
        // One that is put down here comes again.
        let done = tokio::select! {
            () = stop.cancelled() => break,
            done = attempt(&command, intake) => done,
        };
        answering.push(answer(command, done, intake, metrics));
    }
    // What was done is answered for.
    while answering.next().await.is_some() {}
    Ok(())
}

/// Begins to take commands, trying for as long as it takes. `None` when `stop` comes first.
async fn subscribe(
    amqp: &Amqp,
    stop: &CancellationToken,
) -> Result<Option<CommandConsumer>, AmqpError> {
    let mut delays = Policy::reconnect().delays();
    loop {
        let subscribed = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            subscribed = amqp.commands(AT_ONCE) => subscribed,
        };
        let error = match subscribed {
            Ok(commands) => return Ok(Some(commands)),
            Err(AmqpError::Closed) => return Err(AmqpError::Closed),
            Err(error) => error,
        };
        let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
        tracing::warn!(
            error = in_words(&error),
            ?wait,
            "waiting for the queue of commands"
        );
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Does one command.
async fn attempt(command: &IncomingCommand, intake: &Intake) -> Result<Attempted, Refusal> {
    let body = match &command.body {
        CommandBody::Whole(body) => body,
        CommandBody::TooLarge { size, .. } => return Err(too_large(*size)),
    };
    let begun = intake.begin(command.traceparent.as_deref());
    let log = tracing::error_span!("command", trace_id = %begun.context.trace);
    let command = Command {
        begun: Some(begun),
        ..Command::read(body, command.content_type.as_deref())?
    };
    patiently(|| intake.attempt(&command)).instrument(log).await
}

/// Answers for a command once its effect is durable.
async fn answer(
    command: IncomingCommand,
    done: Result<Attempted, Refusal>,
    intake: &Intake,
    metrics: &Metrics,
) {
    let done = match done {
        Ok(attempted) => patiently(|| intake.confirm(attempted.clone())).await,
        Err(refusal) => Err(refusal),
    };
    metrics.answered(done.as_ref());
    if let Err(error) = reply(command, done).await {
        tracing::warn!(
            error = in_words(&error),
            "a command was not answered for, it comes again"
        );
    }
}

/// Says what came of a command, and takes it off the queue.
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
        // Whoever asked knows; the command itself was sound.
        return command.ack().await;
    }
    let detail = [vec![refusal.error], refusal.details].concat();
    command
        .dead_letter(cause.as_str(), &detail.join("; "))
        .await
}

/// Does something about a command, waiting for the store as long as it takes.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, NotDone>>,
{
    let mut has_waited = false;
    loop {
        match call().await {
            Ok(done) => return Ok(done),
            Err(NotDone::Refused(refusal)) => return Err(refusal),
            Err(NotDone::Store(error @ StoreError::Newer { .. })) => {
                return Err(Refusal::new(Cause::NewerRelease, in_words(&error)));
            }
            Err(NotDone::Store(error @ StoreError::Corrupt { .. })) => {
                return Err(Refusal::new(Cause::Damaged, in_words(&error)));
            }
            Err(NotDone::Store(error)) => {
                if !std::mem::replace(&mut has_waited, true) {
                    tracing::warn!(error = in_words(&error), "a command waits for the store");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

fn too_large(size: usize) -> Refusal {
    let most = twincast_amqp::MAX_COMMAND_BYTES;
    Refusal::new(
        Cause::TooLarge,
        format!("the command has {size} bytes; at most {most} are taken"),
    )
}

fn json(answer: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("answers are plain data")
}
