//! `twincast run`: a resumable rollout from this machine.

mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::describe;
use twincast_core::ids::{HubName, RolloutName, StageName};
use twincast_core::outcome::ClassCounts;
use twincast_core::ports::{Disposition, Tally};
use twincast_core::rollout::{Attribution, Duty, Event, Phase, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::friendly;
use twincast_core::trace::Span;
use twincast_core::waiting::Waiting;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::Hubs;
use twincast_orchestrator::accept::{SubmitResult, accept};
use twincast_orchestrator::command_executor::CommandExecutor;
use twincast_orchestrator::driver::{DriveError, Driver};
use twincast_orchestrator::planner::{self, PlanError};
use twincast_orchestrator::traces;
use twincast_retry::Policy;
use twincast_worker::WorkerError;

use watcher::{StopReason, Watcher};

use crate::args::RunArgs;
use crate::config::Settings;
use crate::engine::{self, Engine};
use crate::failure::{ExitCode, Failure};
use crate::otlp;
use crate::output::{Output, escape_line, thousands, with_noun};
use crate::progress::Progress;
use crate::prometheus;
use crate::signal::StopSignals;
use crate::socket::StateSocketServer;
use crate::specfile::{self, SpecFile};
use crate::stores;
use crate::summary::{self, Summary};

pub(crate) async fn run(
    args: &RunArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let file = specfile::read(&args.spec)?;
    let options = RunOptions {
        command_to_continue: Some(this_command()),
        waits_for_answers: !args.no_wait,
        resumes_paused: args.resume,
    };
    prometheus::check(&file.spec, settings)?;
    let hubs = engine::hubs_of(&file.spec, settings)?;
    engine::note_assumed_limits(&hubs, settings, output);
    let store = stores::open_or_create_folder(&settings.state).await?;
    roll_out(file, hubs, store, settings, &options, output).await
}

/// Options of a run.
pub(crate) struct RunOptions {
    /// The command to continue after an interruption; `None` if no state is kept.
    pub(crate) command_to_continue: Option<String>,
    /// The run waits until the devices' answers were heard or the messages have expired.
    pub(crate) waits_for_answers: bool,
    /// The run resumes a paused rollout.
    pub(crate) resumes_paused: bool,
}

impl RunOptions {
    /// Opens the state folder's socket to other commands for the duration of the run, if state is
    /// kept.
    fn serve_state_socket(
        &self,
        engine: &Engine,
        settings: &Settings,
    ) -> Result<Option<StateSocketServer>, Failure> {
        let is_kept = self.command_to_continue.is_some();
        is_kept
            .then(|| StateSocketServer::open(engine, settings))
            .transpose()
    }
}

/// Returns the command line of this process as typed into a shell. Continuing needs options such as
/// `--state`, too.
fn this_command() -> String {
    let words = std::env::args_os().enumerate().map(|(index, word)| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
        if index == 0 {
            "twincast".to_owned()
        } else if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Rolls out with a given store and hubs.
pub(crate) async fn roll_out(
    file: SpecFile,
    hubs: Hubs,
    store: Arc<EmbeddedStore>,
    settings: &Settings,
    options: &RunOptions,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let exporter = otlp::start(settings, "run")?;
    let tracer = &exporter.tracer();
    let mut engine = Engine::new(store, hubs, &settings.worker, file.base, tracer);
    engine.driver.metric_source = prometheus::server(settings)?;
    engine.driver.config.stop_when_sent = !options.waits_for_answers;
    let store = Arc::clone(&engine.store);
    let executor = engine.command_executor(settings);
    let ended = match options.serve_state_socket(&engine, settings) {
        Ok(state_socket) => {
            let result =
                accept_and_run(engine, file.spec, file.files, settings, options, output).await;
            let ended = result.map(|result| {
                output.result(&result.summary, &result.text(output));
                outcome_of_run(
                    &result.rollout,
                    result.interrupted,
                    &result.summary,
                    options,
                    output,
                )
            });
            if let Ok(ExitCode::Success | ExitCode::FinishedWithFailures) = ended {
                apply_retention(&executor, settings, output).await;
            }
            if let Some(state_socket) = state_socket {
                state_socket.close().await;
            }
            ended
        }
        Err(failure) => Err(failure),
    };
    store.close().await;
    exporter.close(otlp::FINAL_EXPORT_TIMEOUT).await;
    ended
}

/// Deletes old ended rollouts. A failed deletion is left to the next `run`.
async fn apply_retention(executor: &CommandExecutor, settings: &Settings, output: &Output) {
    let Some(rule) = settings.retention.rule() else {
        return;
    };
    match rule.apply_once(executor, Duration::ZERO).await {
        Ok(0) => {}
        Ok(deleted) => {
            let rollouts = with_noun(deleted as u64, "rollout", "rollouts");
            output.note(&format!(
                "Deleted {rollouts} that ended more than {} ago (retention.keep).",
                friendly(rule.keep)
            ));
        }
        Err(error) => {
            tracing::warn!(error = describe(&error), "cannot delete expired rollouts");
        }
    }
}

/// A rollout at the end of a run.
pub(crate) struct RunResult {
    pub(crate) rollout: Rollout,
    /// The user stopped the run.
    pub(crate) interrupted: bool,
    pub(crate) summary: Summary,
    /// The working time of this process, if any work was left.
    took: Option<Duration>,
}

impl RunResult {
    /// Returns the summary as text.
    pub(crate) fn text(&self, output: &Output) -> String {
        self.summary.text(output, self.took)
    }
}

/// Accepts a rollout and runs the rollout until no work is due or the user interrupts.
pub(crate) async fn accept_and_run(
    engine: Engine,
    spec: RolloutSpec,
    files: BTreeMap<String, String>,
    settings: &Settings,
    options: &RunOptions,
    output: &Output,
) -> Result<RunResult, Failure> {
    engine::bind_hubs(&*engine.store, &engine.driver.hubs).await?;
    let rollout = match accept_or_replace(&engine.driver, spec, files).await? {
        SubmitResult::New(rollout) => *rollout,
        SubmitResult::Same(rollout) if let Some(refused) = not_configured(&rollout, settings) => {
            return Err(refused);
        }
        SubmitResult::Same(rollout) => {
            continue_existing(*rollout, &engine.driver, options, output).await?
        }
        SubmitResult::Conflict {
            existing,
            difference,
        } => return Err(conflict(&existing, &difference, settings)),
        SubmitResult::NotAdmitted(refused) => return Err(Failure::new(ExitCode::Refused, refused)),
    };
    let store = Arc::clone(&engine.store);
    let mut took = None;
    let result = if rollout.duty() == Duty::Nothing {
        Ok((rollout, false))
    } else {
        let started = Instant::now();
        let result = work(engine, &rollout, settings, output).await;
        took = Some(started.elapsed());
        result
    };
    let (rollout, interrupted) = result?;
    let summary = summary::read(&*store, &rollout)
        .await
        .map_err(engine::store_failure)?;
    Ok(RunResult {
        rollout,
        interrupted,
        summary,
        took,
    })
}

/// Prints how to continue, if the run can continue, and returns the exit code.
fn outcome_of_run(
    rollout: &Rollout,
    interrupted: bool,
    summary: &Summary,
    options: &RunOptions,
    output: &Output,
) -> ExitCode {
    let name = &rollout.spec.name;
    let again = |what: &str, flag: &str| match &options.command_to_continue {
        Some(again) => format!(" {what}: {again}{flag}"),
        None => String::new(),
    };
    if interrupted {
        let again = again("To continue", "");
        output.note(&format!("Interrupted.{again}"));
        return ExitCode::Interrupted;
    }
    if let Phase::Paused { reason } = &rollout.phase {
        let flag = if options.resumes_paused {
            ""
        } else {
            " --resume"
        };
        let again = again("To continue", flag);
        output.note(&format!(
            "{name} is paused: {}.{again}",
            escape_line(reason)
        ));
        return ExitCode::NotRolledOut;
    }
    if let Some(waits @ Waiting::GroupQueue { .. }) = rollout.waits_to_be_planned() {
        let again = again("To continue after the end of that rollout", "");
        output.note(&format!("{name} waits for {waits}.{again}"));
        return ExitCode::NotRolledOut;
    }
    if let Some(stage) = stage_awaiting_approval(rollout) {
        let again = again("Then, to continue", "");
        output.note(&format!(
            "Stage {stage} waits for an approval. To approve: twincast approve {name}.{again}"
        ));
        return ExitCode::NotRolledOut;
    }
    if rollout.phase == Phase::Running && rollout.sent_at.is_some() {
        let by_class = ClassCounts::of(&summary.rollout.counts, true);
        let again = again("To collect their answers", "");
        output.note(&format!(
            "{} not answered yet.{again}",
            with_noun(by_class.silent, "device has", "devices have")
        ));
        return match by_class.failed() {
            0 => ExitCode::Success,
            _ => ExitCode::FinishedWithFailures,
        };
    }
    ExitCode::of(rollout.phase.as_str())
}

/// Returns the stage awaiting approval.
fn stage_awaiting_approval(rollout: &Rollout) -> Option<&StageName> {
    let stage = rollout.stage_progress()?;
    let waits = rollout.phase == Phase::Running
        && stage.approval_awaited_at.is_some()
        && stage.approved.is_none();
    waits.then_some(&stage.name)
}

/// Accepts a rollout. An unplanned rollout of the same name is replaced: such a rollout has sent
/// nothing, and no other process can be planning in a state folder held by this process.
async fn accept_or_replace(
    driver: &Driver,
    spec: RolloutSpec,
    files: BTreeMap<String, String>,
) -> Result<SubmitResult, Failure> {
    let now = driver.clock.now();
    let start = traces::begin(&driver.tracer, otlp::caller());
    let rollout = Rollout::accepted(spec, files, now).with_trace(start.context);
    let name = rollout.spec.name.clone();
    let accepted = accept(&*driver.store, rollout.clone()).await;
    let accepted = match accepted.map_err(engine::store_failure)? {
        SubmitResult::Conflict { existing, .. }
            if existing.plan.is_none() && !existing.phase.is_ended() =>
        {
            let reason = "replaced by another spec before it was planned".to_owned();
            let event = Event::PlanningFailed { reason };
            driver
                .apply(&existing, event)
                .await
                .map_err(engine::drive_failure)?;
            let accepted = accept(&*driver.store, rollout).await;
            accepted.map_err(engine::store_failure)?
        }
        accepted => accepted,
    };
    if let SubmitResult::New(_) = &accepted {
        let time = now..driver.clock.now();
        let span = Span::new(start.context, start.parent, "command", time);
        let span = span
            .with_text("twincast.command", "run")
            .with_text("twincast.rollout", &name);
        driver.tracer.emit([span]);
    }
    Ok(accepted)
}

/// Resumes work on an accepted rollout, and prints the progress. A paused rollout stays paused,
/// unless the options ask to resume.
async fn continue_existing(
    rollout: Rollout,
    driver: &Driver,
    options: &RunOptions,
    output: &Output,
) -> Result<Rollout, Failure> {
    let name = &rollout.spec.name;
    planner::check_hosts(&rollout, &driver.hubs).map_err(engine::plan_failure)?;
    if rollout.phase.is_ended() {
        output.note(&format!("{name} has already ended; its summary follows. To send again, choose another rollout name."));
        return Ok(rollout);
    }
    if rollout.plan.is_some() {
        let tallies = driver
            .store
            .tallies(name)
            .await
            .map_err(engine::store_failure)?;
        let counts = Tally::sum(&tallies);
        output.note(&format!(
            "{name}: continuing, {} of {} devices are done",
            thousands(counts.settled()),
            thousands(counts.total())
        ));
    }
    if let Phase::Paused { .. } = rollout.phase
        && options.resumes_paused
    {
        let attribution = Attribution {
            by: None,
            reason: Some("run --resume".to_owned()),
        };
        return driver
            .apply(&rollout, Event::ResumeRequested { attribution })
            .await
            .map_err(engine::drive_failure);
    }
    Ok(rollout)
}

/// Returns a failure if a rollout with work left needs a hub missing from the configuration.
fn not_configured(rollout: &Rollout, settings: &Settings) -> Option<Failure> {
    let plan = rollout.plan.as_ref()?;
    let hubs = plan.hubs.iter().filter(|part| part.devices > 0);
    let missing: Vec<_> = hubs
        .map(|part| part.hub.as_str())
        .filter(|hub| !settings.hubs.keys().any(|known| known.as_str() == *hub))
        .collect();
    if missing.is_empty() || rollout.phase.is_ended() {
        return None;
    }
    let configured: Vec<_> = settings.hubs.keys().map(HubName::as_str).collect();
    let message = format!(
        "rollout {} has devices on hub {}, which is not configured; configured hubs: {}",
        rollout.spec.name,
        missing.join(", "),
        configured.join(", ")
    );
    Some(Failure::message(ExitCode::Refused, message).hint(format!(
        "configure the hub under this name again, and run the same command to continue; or end the \
         rollout with `twincast abort {}`",
        rollout.spec.name
    )))
}

fn conflict(existing: &Rollout, difference: &[String], settings: &Settings) -> Failure {
    let name = &existing.spec.name;
    let message = format!(
        "rollout {name} was started at {} with another spec; differences:\n    {}",
        existing.created_at,
        difference.join("\n    ")
    );
    Failure::message(ExitCode::Refused, message).hint(format!(
        "choose another name, or undo the change to continue {name} (kept in {}): a started \
         rollout never changes",
        settings.state.display()
    ))
}

/// Runs worker and driver side by side until no work is due or the run is stopped. The flag is true
/// if the user stopped the run.
async fn work(
    engine: Engine,
    rollout: &Rollout,
    settings: &Settings,
    output: &Output,
) -> Result<(Rollout, bool), Failure> {
    let name = &rollout.spec.name;
    let stop = CancellationToken::new();
    let Engine {
        store,
        driver,
        worker,
    } = engine;
    let status = worker.status();
    let mut worker = tokio::spawn(worker.run(stop.clone()));
    let mut worker_result = None;
    let mut progress = Progress::new(output.clone());
    let mut signals = StopSignals::new();
    let watcher = Watcher {
        store: &store,
        driver: &driver,
        status: &status,
        name,
        give_up_after: settings.run.give_up_after.0,
    };

    let end = {
        let drive = drive(&driver, name, &stop).instrument(traces::log_span(rollout.trace));
        let mut drive = std::pin::pin!(drive);
        let watch = watcher.watch(&mut progress, &mut signals);
        tokio::select! {
            driven = &mut drive => RunEnd::Finished(driven.map_err(engine::drive_failure)),
            reason = watch => {
                stop.cancel();
                if matches!(reason, StopReason::Signal) {
                    progress.print(
                        "Stopping: recording the sends in flight. Interrupt again to stop at once.",
                    );
                }
                let driven = tokio::select! {
                    driven = drive => driven.map_err(engine::drive_failure),
                    () = signals.next() => {
                        progress.finish();
                        return Err(interrupted());
                    }
                };
                match reason {
                    StopReason::Signal => RunEnd::ByUser(driven),
                    StopReason::HubUnavailable(failure) => RunEnd::Finished(Err(failure)),
                    StopReason::DevicesUnavailable(failure) => {
                        // Readers of the rollout see the reason later.
                        let why = failure.lines().join(": ");
                        driver.note_failed_try(name, &why, None).await;
                        RunEnd::Finished(Err(failure))
                    }
                }
            }
            // The worker ended without being stopped: the worker failed.
            ended = &mut worker => {
                worker_result = Some(ended);
                stop.cancel();
                RunEnd::Finished(drive.await.map_err(engine::drive_failure))
            }
        }
    };
    stop.cancel();
    let recorded = wait_for_worker(worker_result, worker, &mut signals).await;
    progress.finish();
    recorded?;
    match end {
        RunEnd::Finished(driven) => Ok((driven?, false)),
        RunEnd::ByUser(driven) => driven.map(|rollout| (rollout, true)),
    }
}

/// Waits for a stopping worker, unless `ended` already holds the result. A further signal of the
/// user ends the wait.
async fn wait_for_worker(
    ended: Option<WorkerResult>,
    worker: JoinHandle<Result<(), WorkerError>>,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let result = async {
        match ended {
            Some(ended) => ended,
            None => worker.await,
        }
    };
    tokio::select! {
        ended = result => ended
            .map_err(|error| Failure::new(ExitCode::Unexpected, error))?
            .map_err(engine::worker_failure),
        () = signals.next() => Err(interrupted()),
    }
}

fn interrupted() -> Failure {
    let message = "stopped before all sends in flight were recorded";
    Failure::message(ExitCode::Interrupted, message).hint(
        "run the same command again: up to one window of sends may repeat for each batch under way",
    )
}

/// The result of a worker's task.
type WorkerResult = Result<Result<(), WorkerError>, JoinError>;

/// Drives a rollout. Planning is retried after a transient error of a hub; the watcher decides when
/// to give up.
async fn drive(
    driver: &Driver,
    name: &RolloutName,
    stop: &CancellationToken,
) -> Result<Rollout, DriveError> {
    let mut delays = Policy::reconnect().delays();
    loop {
        let (error, wait) = match driver.drive(name, stop).await {
            Err(DriveError::Plan { source, .. })
                if is_transient(&source) && !stop.is_cancelled() =>
            {
                let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
                (source, wait)
            }
            ended => return ended,
        };
        driver
            .note_failed_try(name, &describe(&error), Some(wait))
            .await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Returns true for a transient error of a hub, by the same rule as for sends.
fn is_transient(error: &PlanError) -> bool {
    let PlanError::Hub { source, .. } = error else {
        return false;
    };
    source.disposition() == Disposition::Retry
}

/// The end of the work: by itself, or by the user.
enum RunEnd {
    Finished(Result<Rollout, Failure>),
    ByUser(Result<Rollout, Failure>),
}
