//! `twincast run`: a rollout from this machine, resumable.

mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::in_words;
use twincast_core::ids::{HubName, RolloutName, StageName};
use twincast_core::outcome::Ends;
use twincast_core::ports::{Disposition, Tally};
use twincast_core::rollout::{Event, Owed, Phase, Rollout, Word};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::friendly;
use twincast_core::trace::Span;
use twincast_core::waiting::Waiting;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::Hubs;
use twincast_orchestrator::accept::{Accepted, accept};
use twincast_orchestrator::driver::{DriveError, Driver};
use twincast_orchestrator::intake::Intake;
use twincast_orchestrator::planner::{self, PlanError};
use twincast_orchestrator::traces;
use twincast_retry::Policy;
use twincast_worker::WorkerError;

use watcher::{Watcher, Why};

use crate::args::RunArgs;
use crate::config::Settings;
use crate::engine::{self, Engine};
use crate::exit::{ExitCode, Failure};
use crate::otlp;
use crate::output::{Output, counted, one_line};
use crate::progress::Progress;
use crate::prometheus;
use crate::signal::asked_to_stop;
use crate::socket::Desk;
use crate::specfile::{self, SpecFile};
use crate::stores;
use crate::summary::{self, Summary};

pub(crate) async fn run(
    args: &RunArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let file = specfile::read(&args.spec)?;
    let how = How {
        again: Some(this_command()),
        waits: !args.no_wait,
        resumes: args.resume,
    };
    prometheus::check(&file.spec, settings)?;
    let hubs = engine::hubs_of(&file.spec, settings)?;
    engine::note_guesses(&hubs, settings, output);
    let store = stores::work_on(&settings.state).await?;
    roll_out(file, hubs, store, settings, &how, output).await
}

/// How a rollout is run.
pub(crate) struct How {
    /// The command that goes on after an interruption; `None` where nothing is kept.
    pub(crate) again: Option<String>,
    /// It ends when the devices' answers were heard, or their messages are over.
    pub(crate) waits: bool,
    /// A rollout that is paused is resumed.
    pub(crate) resumes: bool,
}

impl How {
    /// Answers others for as long as the rollout is run, where something is kept that they could ask for.
    fn desk(&self, engine: &Engine, settings: &Settings) -> Result<Option<Desk>, Failure> {
        let is_kept = self.again.is_some();
        is_kept.then(|| Desk::open(engine, settings)).transpose()
    }
}

/// The command line of this process, as one types it into a shell: options such as `--state` are
/// needed to go on, too.
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
    how: &How,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let told = otlp::start(settings, "run")?;
    let tracer = &told.tracer();
    let mut engine = Engine::new(store, hubs, &settings.worker, file.base, tracer);
    engine.driver.metric_source = prometheus::server(settings)?;
    engine.driver.config.leave_when_sent = !how.waits;
    let store = Arc::clone(&engine.store);
    let intake = engine.intake(settings);
    let ended = match how.desk(&engine, settings) {
        Ok(desk) => {
            let ran = take_through(engine, file.spec, file.files, settings, how, output).await;
            let ended = ran.map(|ran| {
                output.result(&ran.summary, &ran.text(output));
                outcome_of_run(&ran.rollout, ran.interrupted, &ran.summary, how, output)
            });
            if let Ok(ExitCode::Success | ExitCode::FinishedWithFailures) = ended {
                tidy_up(&intake, settings, output).await;
            }
            if let Some(desk) = desk {
                desk.close().await;
            }
            ended
        }
        Err(failure) => Err(failure),
    };
    store.close().await;
    told.close(otlp::LAST).await;
    ended
}

/// Deletes rollouts that ended long ago. One that cannot be deleted now is left to the next `run`.
async fn tidy_up(intake: &Intake, settings: &Settings, output: &Output) {
    let Some(rule) = settings.retention.rule() else {
        return;
    };
    match rule.pass(intake, Duration::ZERO).await {
        Ok(0) => {}
        Ok(deleted) => {
            let rollouts = counted(deleted as u64, "rollout", "rollouts");
            output.note(&format!(
                "Deleted {rollouts} that ended more than {} ago (retention.keep).",
                friendly(rule.keep)
            ));
        }
        Err(error) => {
            tracing::warn!(
                error = in_words(&error),
                "rollouts that ended long ago are not deleted"
            );
        }
    }
}

/// A rollout, as far as it was run.
pub(crate) struct Ran {
    pub(crate) rollout: Rollout,
    /// The user has stopped it.
    pub(crate) interrupted: bool,
    pub(crate) summary: Summary,
    /// How long this process has worked on it, if something was left to do.
    took: Option<Duration>,
}

impl Ran {
    /// The summary for people.
    pub(crate) fn text(&self, output: &Output) -> String {
        self.summary.text(output, self.took)
    }
}

/// Accepts a rollout and runs it, until it owes nothing or is interrupted.
pub(crate) async fn take_through(
    engine: Engine,
    spec: RolloutSpec,
    files: BTreeMap<String, String>,
    settings: &Settings,
    how: &How,
    output: &Output,
) -> Result<Ran, Failure> {
    engine::bind_hubs(&*engine.store, &engine.driver.hubs).await?;
    let rollout = match take_in(&engine.driver, spec, files).await? {
        Accepted::New(rollout) => *rollout,
        Accepted::Same(rollout) if let Some(refused) = not_configured(&rollout, settings) => {
            return Err(refused);
        }
        Accepted::Same(rollout) => take_up(*rollout, &engine.driver, how, output).await?,
        Accepted::Conflict {
            existing,
            difference,
        } => return Err(conflict(&existing, &difference, settings)),
        Accepted::NotAdmitted(refused) => return Err(Failure::new(ExitCode::Refused, refused)),
    };
    let store = Arc::clone(&engine.store);
    let mut took = None;
    let result = if rollout.owed() == Owed::Nothing {
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
    Ok(Ran {
        rollout,
        interrupted,
        summary,
        took,
    })
}

/// Says how to go on, where there is something to go on with, and gives the exit code.
fn outcome_of_run(
    rollout: &Rollout,
    interrupted: bool,
    summary: &Summary,
    how: &How,
    output: &Output,
) -> ExitCode {
    let name = &rollout.spec.name;
    let again = |what: &str, flag: &str| match &how.again {
        Some(again) => format!(" {what}: {again}{flag}"),
        None => String::new(),
    };
    if interrupted {
        let again = again("To go on where this left off", "");
        output.note(&format!("Interrupted.{again}"));
        return ExitCode::Interrupted;
    }
    if let Phase::Paused { reason } = &rollout.phase {
        let flag = if how.resumes { "" } else { " --resume" };
        let again = again("To go on", flag);
        output.note(&format!("{name} is paused: {}.{again}", one_line(reason)));
        return ExitCode::NotRolledOut;
    }
    if let Some(waits @ Waiting::Line { .. }) = rollout.waits_to_be_planned() {
        let again = again("When that one has ended, to go on", "");
        output.note(&format!("{name} waits for {waits}.{again}"));
        return ExitCode::NotRolledOut;
    }
    if let Some(stage) = awaited(rollout) {
        let again = again("Then, to go on", "");
        output.note(&format!(
            "Stage {stage} waits for an approval. To give it: twincast approve {name}.{again}"
        ));
        return ExitCode::NotRolledOut;
    }
    if rollout.phase == Phase::Running && rollout.sent_at.is_some() {
        let ends = Ends::of(&summary.rollout.counts, true);
        let again = again("To take in what they say", "");
        output.note(&format!(
            "{} not answered yet.{again}",
            counted(ends.silent, "device has", "devices have")
        ));
        return match ends.failed() {
            0 => ExitCode::Success,
            _ => ExitCode::FinishedWithFailures,
        };
    }
    ExitCode::of(rollout.phase.as_str())
}

/// The stage that somebody must approve before the rollout goes on.
fn awaited(rollout: &Rollout) -> Option<&StageName> {
    let stage = rollout.stage_progress()?;
    let waits =
        rollout.phase == Phase::Running && stage.ripe_at.is_some() && stage.approved.is_none();
    waits.then_some(&stage.name)
}

/// Accepts a rollout. One of its name that was never planned has sent nothing, and nobody else
/// can be planning it in a state folder that is ours: it gives way.
async fn take_in(
    driver: &Driver,
    spec: RolloutSpec,
    files: BTreeMap<String, String>,
) -> Result<Accepted, Failure> {
    let now = driver.clock.now();
    let begun = traces::begin(&driver.tracer, otlp::caller());
    let wanted = Rollout::accepted(spec, files, now).traced_to(begun.context);
    let name = wanted.spec.name.clone();
    let accepted = accept(&*driver.store, wanted.clone()).await;
    let accepted = match accepted.map_err(engine::store_failure)? {
        Accepted::Conflict { existing, .. }
            if existing.plan.is_none() && !existing.phase.is_ended() =>
        {
            let reason = "replaced by another spec before it was planned".to_owned();
            let event = Event::PlanningFailed { reason };
            driver
                .apply(&existing, event)
                .await
                .map_err(engine::drive_failure)?;
            let accepted = accept(&*driver.store, wanted).await;
            accepted.map_err(engine::store_failure)?
        }
        accepted => accepted,
    };
    if let Accepted::New(_) = &accepted {
        let time = now..driver.clock.now();
        let span = Span::new(begun.context, begun.parent, "command", time);
        let span = span
            .with("twincast.command", "run")
            .with("twincast.rollout", &name);
        driver.tracer.tell([span]);
    }
    Ok(accepted)
}

/// The same rollout again: says where it stands. One that is paused stays so, unless it is to be resumed.
async fn take_up(
    rollout: Rollout,
    driver: &Driver,
    how: &How,
    output: &Output,
) -> Result<Rollout, Failure> {
    let name = &rollout.spec.name;
    planner::check_hosts(&rollout, &driver.hubs).map_err(engine::plan_failure)?;
    if rollout.phase.is_ended() {
        output.note(&format!("{name} is over already; this is its summary. To send again, give the rollout another name."));
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
            "{name}: going on, {} of {} devices are done",
            counts.settled(),
            counts.total()
        ));
    }
    if let Phase::Paused { .. } = rollout.phase
        && how.resumes
    {
        let word = Word {
            by: None,
            reason: Some("run --resume".to_owned()),
        };
        return driver
            .apply(&rollout, Event::ResumeRequested { word })
            .await
            .map_err(engine::drive_failure);
    }
    Ok(rollout)
}

/// What is said of a rollout with something left to do on a hub that is not in the configuration any more.
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
        "rollout {} has devices on hub {}, which is not configured; configured are: {}",
        rollout.spec.name,
        missing.join(", "),
        configured.join(", ")
    );
    Some(Failure::message(ExitCode::Refused, message).hint(format!(
        "configure the hub again under this name, and the same command goes on; or end the rollout with `twincast abort {}`",
        rollout.spec.name
    )))
}

fn conflict(existing: &Rollout, difference: &[String], settings: &Settings) -> Failure {
    let name = &existing.spec.name;
    let message = format!(
        "rollout {name} was started at {} with another spec; what differs:\n    {}",
        existing.created_at,
        difference.join("\n    ")
    );
    Failure::message(ExitCode::Refused, message).hint(format!(
        "a rollout never changes once it is started: give this one another name, or undo the change to go on with {name} (it is kept in {})",
        settings.state.display()
    ))
}

/// Runs worker and driver side by side until the rollout owes nothing, or until something stops
/// them. The flag says that the user did.
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
    let mut worked = None;
    let mut progress = Progress::new(output.clone());
    let watcher = Watcher {
        store: &store,
        driver: &driver,
        status: &status,
        name,
        give_up_after: settings.run.give_up_after.0,
    };

    let stopped = {
        let drive = drive(&driver, name, &stop).instrument(traces::log_span(rollout.trace));
        let mut drive = std::pin::pin!(drive);
        let watch = watcher.watch(&mut progress);
        tokio::select! {
            driven = &mut drive => Stopped::Driven(driven.map_err(engine::drive_failure)),
            why = watch => {
                stop.cancel();
                let driven = drive.await.map_err(engine::drive_failure);
                match why {
                    Why::Signal => Stopped::ByUser(driven),
                    Why::Hub(failure) => Stopped::Driven(Err(failure)),
                    Why::NotFound(failure) => {
                        // For those who look at the rollout later.
                        let why = failure.lines().join(": ");
                        driver.note_failed_try(name, &why, None).await;
                        Stopped::Driven(Err(failure))
                    }
                }
            }
            // Before anyone told it to: it has failed.
            ended = &mut worker => {
                worked = Some(ended);
                stop.cancel();
                Stopped::Driven(drive.await.map_err(engine::drive_failure))
            }
        }
    };
    stop.cancel();
    if let Stopped::ByUser(_) = &stopped {
        progress.print("Stopping: recording what is in flight. Once more to stop at once.");
    }
    let drained = drain(worked, worker).await;
    progress.finish();
    drained?;
    match stopped {
        Stopped::Driven(driven) => Ok((driven?, false)),
        Stopped::ByUser(driven) => driven.map(|rollout| (rollout, true)),
    }
}

/// Waits for a worker that was told to stop and has not `ended`, unless the user asks again.
async fn drain(
    ended: Option<WorkerEnd>,
    worker: JoinHandle<Result<(), WorkerError>>,
) -> Result<(), Failure> {
    let drain = async {
        match ended {
            Some(ended) => ended,
            None => worker.await,
        }
    };
    tokio::select! {
        ended = drain => ended
            .map_err(|error| Failure::new(ExitCode::Unexpected, error))?
            .map_err(engine::worker_failure),
        () = asked_to_stop() => {
            let message = "stopped before everything in flight was recorded";
            Err(Failure::message(ExitCode::Interrupted, message)
                .hint("run the same command again: up to a window of sends for each batch under way may be repeated"))
        }
    }
}

/// What a worker's task has ended with.
type WorkerEnd = Result<Result<(), WorkerError>, JoinError>;

/// Drives a rollout. A hub that does not let it be planned is asked again: the watcher decides when that makes no sense any
/// more.
async fn drive(
    driver: &Driver,
    name: &RolloutName,
    stop: &CancellationToken,
) -> Result<Rollout, DriveError> {
    let mut delays = Policy::reconnect().delays();
    loop {
        let (error, wait) = match driver.drive(name, stop).await {
            Err(DriveError::Plan { source, .. }) if may_pass(&source) && !stop.is_cancelled() => {
                let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
                (source, wait)
            }
            ended => return ended,
        };
        driver
            .note_failed_try(name, &in_words(&error), Some(wait))
            .await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Whether a hub may answer later what it has not answered now, as with sends.
fn may_pass(error: &PlanError) -> bool {
    let PlanError::Hub { source, .. } = error else {
        return false;
    };
    source.disposition() == Disposition::Retry
}

/// What ended the work.
enum Stopped {
    Driven(Result<Rollout, Failure>),
    ByUser(Result<Rollout, Failure>),
}
