//! Executes each command once, however often the command arrives.

use std::collections::BTreeSet;
use std::sync::Arc;

use twincast_core::error::describe;
use twincast_core::ids::{CommandKey, HubName, RolloutName, Version};
use twincast_core::json::Json;
use twincast_core::ports::{Clock, Disposition, Halt, RolloutRegistry, Store, StoreError};
use twincast_core::rollout::{Attribution, Commands, Event, KeyedCommand, Rollout};
use twincast_core::time::Timestamp;
use twincast_core::trace::{CommandSpan, TraceContext, Tracer};

use crate::accept::{SubmitResult, accept};
use crate::command::{
    Answer, Cause, Command, Kind, Operation, Refusal, RolloutOperation, RolloutState, spec_of,
};
use crate::command_events::{
    approval, not_possible, promotion, refuse, rejection, retry_request, why_no_effect,
};
use crate::{groups, traces};

/// The most attempts at a contended change.
const MAX_TRIES: usize = 20;

/// Executes commands.
pub struct CommandExecutor {
    /// The store, the source of truth.
    pub store: Arc<dyn Store>,
    /// The rollout registry, in an engine of several processes.
    pub registry: Option<Arc<dyn RolloutRegistry>>,
    /// The configured hubs.
    pub hubs: BTreeSet<HubName>,
    /// Whether gates may use metrics: a metric source is configured.
    pub has_metric_source: bool,
    /// The clock for records.
    pub clock: Arc<dyn Clock>,
    /// The tracer for the spans of commands and rollouts.
    pub tracer: Tracer,
}

/// Why a command was not executed.
#[derive(Debug)]
pub enum CommandError {
    /// The command is at fault.
    Refused(Refusal),
    /// The store is at fault: try again.
    Store(StoreError),
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl CommandExecutor {
    /// Parses and executes a command. The effect is durable when the call returns.
    ///
    /// Cancel safety: may be dropped; the command must then be handled again.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn handle(
        &self,
        body: &[u8],
        content_type: Option<&str>,
    ) -> Result<Answer, CommandError> {
        self.execute(&Command::read(body, content_type)?).await
    }

    /// Begins a command's span, in the trace named by `traceparent`. An invalid `traceparent`
    /// counts as absent.
    #[must_use]
    pub fn begin(&self, traceparent: Option<&str>) -> CommandSpan {
        let caller = traceparent.and_then(|text| text.parse().ok());
        traces::begin(&self.tracer, caller)
    }

    /// Executes a parsed command. The effect is durable when the call returns.
    ///
    /// Cancel safety: may be dropped; the command must then be executed again.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn execute(&self, command: &Command) -> Result<Answer, CommandError> {
        let attempted = self.attempt(command).await?;
        self.confirm(attempted).await
    }

    /// Executes a parsed command. The effect is not durable before it is
    /// [confirmed](Self::confirm).
    ///
    /// Cancel safety: may be dropped; the command must then be executed again.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn attempt(&self, command: &Command) -> Result<Attempted, CommandError> {
        let span = command.span.unwrap_or_else(|| self.begin(None));
        let mut command = command.clone();
        command.span = Some(span);
        if command.rollout.is_some() && !self.store.durable_after().is_zero() {
            // With its span as key, a command with a lost effect can be told from a command
            // overruled since.
            command.key = command.key.or_else(|| key_of(span.context));
        }
        let at = self.clock.now();
        let answer = self.perform(&command).await?;
        Ok(Attempted {
            command,
            at,
            answer,
        })
    }

    /// Waits until the effect of a command is durable. If the store has lost the effect meanwhile,
    /// the command is executed again.
    ///
    /// Cancel safety: may be dropped; the effect may then be lost with the store's last writes.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn confirm(&self, attempted: Attempted) -> Result<Answer, CommandError> {
        let Attempted {
            command,
            at,
            mut answer,
        } = attempted;
        let durable_after = self.store.durable_after();
        if durable_after.is_zero() || !answer.changed {
            return Ok(answer);
        }
        for _ in 0..MAX_TRIES {
            tokio::time::sleep(durable_after).await;
            if self.is_in_effect(&command, at).await? {
                break;
            }
            let Some(span) = command.span else {
                break;
            };
            match self.run_operation(&command, span.context).await {
                // The rollout still exists, so the start is in effect.
                Ok(again) if !again.changed && command.command == Kind::Start => break,
                Ok(again) => {
                    tracing::warn!(
                        command = command.name(),
                        "the store lost a command, the command was repeated"
                    );
                    answer = again;
                }
                // The start of the rollout was lost, too. The issuer of the start confirms and
                // repeats the start.
                Err(CommandError::Refused(refusal)) if refusal.cause == Cause::UnknownRollout => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Returns whether the store still has the effect of a command that changed something after
    /// `at`.
    async fn is_in_effect(&self, command: &Command, at: Timestamp) -> Result<bool, CommandError> {
        let name = match command.command {
            Kind::StopAll => return Ok(self.halted().await?.is_some()),
            // A later stop stays in force.
            Kind::ResumeAll => {
                let halt = self.halted().await?;
                return Ok(halt.is_none_or(|halt| halt.since > at));
            }
            // Only starting again shows whether the rollout of this name is the same.
            Kind::Start => return Ok(false),
            Kind::Delete => {
                let Some(name) = &command.rollout else {
                    return Ok(true);
                };
                let found = self.store.rollout(name).await?;
                return Ok(found.is_none_or(|another| another.created_at > at));
            }
            _ => &command.rollout,
        };
        let Some((name, key)) = name.as_ref().zip(command.key.as_ref()) else {
            return Ok(true);
        };
        Ok(self.store.commands(name).await?.find(key).is_some())
    }

    /// Executes a command and emits its span.
    async fn perform(&self, command: &Command) -> Result<Answer, CommandError> {
        let span = command.span.unwrap_or_else(|| self.begin(None));
        let start = self.clock.now();
        let done = self.run_operation(command, span.context).await;
        let end = self.clock.now();
        let result = match &done {
            Ok(answer) => Some(Ok(answer)),
            Err(CommandError::Refused(refusal)) => Some(Err(refusal)),
            // The command will be sent again.
            Err(CommandError::Store(_)) => None,
        };
        let spans = result.and_then(|done| traces::of_command(command, span, start..end, done));
        self.tracer.emit(spans);
        done
    }

    async fn run_operation(
        &self,
        command: &Command,
        span: TraceContext,
    ) -> Result<Answer, CommandError> {
        let reason = command.reason_text();
        let (name, operation) = match command.operation()? {
            Operation::Start(spec) => return self.start(spec, command, span).await,
            Operation::StopAll => return self.stop_all(reason, command.by.clone()).await,
            Operation::ResumeAll => return self.resume_all(command.attribution()).await,
            Operation::Of(name, operation) => (name, operation),
        };
        let keyed = command.keyed();
        let subject = &Subject { name, keyed };
        if let Some(answer) = self.answered_before(subject).await? {
            return Ok(answer);
        }
        let attribution = || command.attribution();
        match operation {
            RolloutOperation::Pause => self.change(subject, Event::PauseRequested { reason }).await,
            RolloutOperation::Abort => self.change(subject, Event::AbortRequested { reason }).await,
            RolloutOperation::Resume => {
                let event = |_: &Rollout| {
                    Ok(Event::ResumeRequested {
                        attribution: attribution(),
                    })
                };
                self.resume_with(subject, &event).await
            }
            RolloutOperation::Approve { stage } => {
                self.change_by(subject, &|it| approval(it, stage, attribution()))
                    .await
            }
            RolloutOperation::Reject { stage } => {
                self.change_by(subject, &|it| rejection(it, stage, &attribution()))
                    .await
            }
            RolloutOperation::Promote { stage } => {
                self.resume_with(subject, &|it| promotion(it, stage, attribution()))
                    .await
            }
            RolloutOperation::Retry { stage, outcomes } => {
                self.retry(subject, &|it| {
                    retry_request(it, stage, outcomes, &attribution())
                })
                .await
            }
            RolloutOperation::Delete => self.delete(name, &reason).await,
            RolloutOperation::Status => {
                Ok(self.answer(false, &[self.rollout(name).await?]).await?)
            }
        }
    }

    /// Returns the answer to a command whose key has already changed the rollout. Such a command is
    /// not evaluated again, because the rollout may have changed since.
    async fn answered_before(&self, subject: &Subject<'_>) -> Result<Option<Answer>, CommandError> {
        let Some(keyed) = &subject.keyed else {
            return Ok(None);
        };
        if !is_done(&self.store.commands(subject.name).await?, keyed)? {
            return Ok(None);
        }
        let rollout = self.rollout(subject.name).await?;
        Ok(Some(self.answer(true, &[rollout]).await?))
    }

    async fn start(
        &self,
        spec: &Json,
        command: &Command,
        span: TraceContext,
    ) -> Result<Answer, CommandError> {
        let spec = spec_of(spec.as_str())?;
        let unknown = spec
            .target
            .hubs
            .iter()
            .filter(|hub| !self.hubs.contains(*hub));
        let unknown: Vec<_> = unknown.map(ToString::to_string).collect();
        if !unknown.is_empty() {
            let known: Vec<_> = self.hubs.iter().map(HubName::as_str).collect();
            let error = format!(
                "target.hubs has unconfigured hubs: {}; configured hubs: {}",
                unknown.join(", "),
                known.join(", ")
            );
            return Err(Refusal::new(Cause::UnknownHub, error).into());
        }
        if !self.has_metric_source
            && let Some(stage) = spec.asks_for_metrics()
        {
            let refusal = Refusal::new(Cause::InvalidSpec, "no Prometheus server is configured");
            let detail = format!(
                "the gate of stage {stage} has metrics; configure prometheus.url for the orchestrators"
            );
            return Err(refusal.with(vec![detail]).into());
        }
        let name = spec.name.clone();
        for _ in 0..MAX_TRIES {
            let now = self.clock.now();
            let rollout = Rollout::accepted(spec.clone(), Default::default(), now);
            let rollout = rollout
                .with_attribution(command.attribution())
                .with_trace(span);
            let accepted = accept(&*self.store, rollout).await;
            return match accepted {
                Ok(SubmitResult::New(rollout)) => {
                    tracing::info!(rollout = %name, reason = command.reason_text(), "rollout accepted");
                    Ok(self.answer(true, &[*rollout]).await?)
                }
                Ok(SubmitResult::Same(rollout)) => Ok(self.answer(false, &[*rollout]).await?),
                Ok(SubmitResult::Conflict { difference, .. }) => {
                    let error = format!(
                        "rollout {name} already exists with another spec; choose another name"
                    );
                    Err(Refusal::new(Cause::Conflict, error).with(difference).into())
                }
                Ok(SubmitResult::NotAdmitted(refused)) => {
                    Err(Refusal::new(Cause::Conflict, refused.to_string()).into())
                }
                Err(StoreError::Superseded { .. }) => continue,
                Err(error) => Err(error.into()),
            };
        }
        Err(contended(&name))
    }

    /// Applies an event that lets a rollout continue, unless all rollouts are stopped. A concurrent
    /// stop-all finds the rollout paused and leaves the rollout alone, so the stop switch is read
    /// again after the change.
    async fn resume_with(
        &self,
        subject: &Subject<'_>,
        event: EventFor<'_>,
    ) -> Result<Answer, CommandError> {
        if let Some(halt) = self.halted().await? {
            let rollout = self.rollout(subject.name).await?;
            let found = format!(
                "all rollouts are stopped ({}); run resume-all first",
                halt.reason
            );
            return Err(refuse(&rollout, &event(&rollout)?, found).into());
        }
        let answer = self.change_by(subject, event).await?;
        match self.halted().await? {
            None => Ok(answer),
            Some(Halt { reason, .. }) => {
                let subject = &Subject::without_key(subject.name);
                self.change(subject, Event::HaltRequested { reason }).await
            }
        }
    }

    /// Requests a retry. An ended rollout runs again, unless all rollouts are stopped or another
    /// rollout of the concurrency group is active. A retry that concerns no device changes nothing:
    /// no preparation, and no new judgement of a gate.
    async fn retry(
        &self,
        subject: &Subject<'_>,
        event: EventFor<'_>,
    ) -> Result<Answer, CommandError> {
        let name = subject.name;
        let rollout = self.rollout(name).await?;
        let requested = event(&rollout)?;
        let next = rollout
            .after(requested.clone(), self.clock.now())
            .map_err(|error| not_possible(&error))?;
        if next.is_some() {
            let tallies = self.store.tallies(name).await?;
            if let Some(note) = why_no_effect(&requested, &rollout, &tallies) {
                let answer = self.answer(false, &[rollout]).await?;
                let note = Some(note);
                return Ok(Answer { note, ..answer });
            }
        }
        if rollout.phase.is_ended() {
            if let Some(group) = rollout.spec.concurrency_group() {
                let next = Version(rollout.version.0 + 1);
                let now = self.clock.now();
                groups::join(&*self.store, group, name, next, true, now)
                    .await?
                    .map_err(|refused| Refusal::new(Cause::Conflict, refused.to_string()))?;
            }
            self.resume_with(subject, event).await
        } else {
            self.change_by(subject, event).await
        }
    }

    /// Removes an ended rollout. An unknown name is not refused, because the command may have been
    /// executed before.
    async fn delete(&self, name: &RolloutName, reason: &str) -> Result<Answer, CommandError> {
        for _ in 0..MAX_TRIES {
            let Some(rollout) = self.store.rollout(name).await? else {
                return Ok(Answer {
                    ok: true,
                    changed: false,
                    rollouts: Vec::new(),
                    note: Some(format!("there is no rollout {name}")),
                });
            };
            let phase = rollout.phase.as_str().replace('_', " ");
            if !rollout.phase.is_ended() {
                let error = format!(
                    "rollout {name} is {phase}; only ended rollouts can be deleted: abort the \
                     rollout, or wait for its end"
                );
                return Err(Refusal::new(Cause::NotPossible, error).into());
            }
            if let Some(registry) = &self.registry
                && registry.active().await?.contains(name)
            {
                let error = format!(
                    "rollout {name} is {phase}, and its end is still being published; retry in a \
                     few seconds"
                );
                return Err(Refusal::new(Cause::NotPossible, error).into());
            }
            let answer = self.answer(true, std::slice::from_ref(&rollout)).await?;
            if let Some(group) = rollout.spec.concurrency_group() {
                groups::leave(&*self.store, group, name).await?;
            }
            match self.store.remove(name, rollout.revision()).await {
                Ok(()) => {
                    tracing::info!(rollout = %name, reason, "rollout deleted");
                    return Ok(answer);
                }
                Err(StoreError::Superseded { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended(name))
    }

    /// Applies an event to one rollout.
    async fn change(&self, subject: &Subject<'_>, event: Event) -> Result<Answer, CommandError> {
        self.change_by(subject, &|_| Ok(event.clone())).await
    }

    /// Applies an event that depends on the rollout's state.
    async fn change_by(
        &self,
        subject: &Subject<'_>,
        event: EventFor<'_>,
    ) -> Result<Answer, CommandError> {
        let (changed, rollout) = self.apply(subject, event).await?;
        Ok(self.answer(changed, &[rollout]).await?)
    }

    /// Returns the halt of all rollouts by stop-all, while in force.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        match &self.registry {
            Some(registry) => registry.halted().await,
            None => Ok(None),
        }
    }

    fn registry(&self) -> Result<&dyn RolloutRegistry, CommandError> {
        let error = "stop-all and resume-all require the distributed engine";
        let refusal = || Refusal::new(Cause::NotPossible, error);
        Ok(self.registry.as_deref().ok_or_else(refusal)?)
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Rollout, CommandError> {
        let found = self.store.rollout(name).await?;
        found.ok_or_else(|| {
            let error = format!("there is no rollout {name}");
            Refusal::new(Cause::UnknownRollout, error).into()
        })
    }

    async fn apply(
        &self,
        subject: &Subject<'_>,
        event: EventFor<'_>,
    ) -> Result<(bool, Rollout), CommandError> {
        let Subject { name, keyed } = subject;
        for _ in 0..MAX_TRIES {
            let rollout = self.rollout(name).await?;
            let mut commands = None;
            if let Some(keyed) = keyed {
                let known = self.store.commands(name).await?;
                // Another orchestrator may have executed the same command meanwhile.
                if is_done(&known, keyed)? {
                    return Ok((true, rollout));
                }
                commands = Some(known.with(keyed.clone()));
            }
            let next = rollout
                .after(event(&rollout)?, self.clock.now())
                .map_err(|error| not_possible(&error))?;
            let Some(next) = next else {
                return Ok((false, rollout));
            };
            let from = rollout.revision();
            let saved = self
                .store
                .save_with_commands(&next, from, commands.as_ref())
                .await;
            match saved {
                Ok(()) => {
                    traces::moved_on(&self.tracer, &rollout, &next);
                    return Ok((true, next));
                }
                Err(StoreError::Superseded { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended(name))
    }

    /// Stops all rollouts. The switch is set first, so that rollouts starting to run afterwards
    /// find the switch.
    async fn stop_all(&self, reason: String, by: Option<String>) -> Result<Answer, CommandError> {
        let halt = Halt {
            reason: reason.clone(),
            by,
            since: self.clock.now(),
        };
        let registry = self.registry()?;
        let before = registry.halted().await?;
        registry.set_halted(Some(&halt)).await?;
        tracing::warn!(reason, "all rollouts are stopped");
        self.change_all(before.is_none(), &Event::HaltRequested { reason })
            .await
    }

    async fn resume_all(&self, attribution: Attribution) -> Result<Answer, CommandError> {
        let registry = self.registry()?;
        let before = registry.halted().await?;
        registry.set_halted(None).await?;
        tracing::info!(by = %attribution, "all rollouts resumed");
        self.change_all(before.is_some(), &Event::HaltLifted { attribution })
            .await
    }

    async fn answer(&self, changed: bool, of: &[Rollout]) -> Result<Answer, StoreError> {
        let mut rollouts = Vec::new();
        for rollout in of {
            let tallies = self.store.tallies(&rollout.spec.name).await?;
            rollouts.push(RolloutState::of(rollout, &tallies));
        }
        Ok(Answer {
            ok: true,
            changed,
            rollouts,
            note: None,
        })
    }

    async fn change_all(&self, mut changed: bool, event: &Event) -> Result<Answer, CommandError> {
        let mut rollouts = Vec::new();
        let mut trouble = None;
        for name in self.registry()?.active().await? {
            match self
                .apply(&Subject::without_key(&name), &|_| Ok(event.clone()))
                .await
            {
                Ok((moved, rollout)) => {
                    changed |= moved;
                    rollouts.push(rollout);
                }
                // The rollout is gone; or the driver is of a newer release and reads the switch.
                Err(CommandError::Refused(_) | CommandError::Store(StoreError::Newer { .. })) => {}
                // A rollout that cannot be changed must not hold up the other rollouts.
                Err(CommandError::Store(error)) => trouble = Some(error),
            }
        }
        match trouble {
            // The driver and the workers of the rollout meet the same damage.
            Some(error) if error.disposition() == Disposition::Fatal => {
                tracing::error!(error = describe(&error), "cannot change a rollout");
            }
            Some(error) => return Err(error.into()),
            None => {}
        }
        Ok(self.answer(changed, &rollouts).await?)
    }
}

/// An executed command whose effect the store may still lose.
#[derive(Debug, Clone)]
pub struct Attempted {
    command: Command,
    at: Timestamp,
    answer: Answer,
}

/// Returns the key for a command without a key.
fn key_of(span: TraceContext) -> Option<CommandKey> {
    CommandKey::new(span.to_string()).ok()
}

/// The rollout to change, and the keyed command, if the command has a key.
struct Subject<'a> {
    name: &'a RolloutName,
    keyed: Option<KeyedCommand>,
}

impl<'a> Subject<'a> {
    fn without_key(name: &'a RolloutName) -> Self {
        Self { name, keyed: None }
    }
}

/// Returns whether a command has already changed a rollout. Refuses a key used for another command.
fn is_done(known: &Commands, command: &KeyedCommand) -> Result<bool, Refusal> {
    match known.find(&command.key) {
        None => Ok(false),
        Some(done) if done.operation == command.operation => Ok(true),
        Some(done) => {
            let error = format!(
                "the key {} was already used for another command: {}; this command is {}",
                command.key, done.operation, command.operation
            );
            Err(Refusal::new(Cause::InvalidCommand, error))
        }
    }
}

/// The event that a command means for the current state of a rollout.
type EventFor<'a> = &'a (dyn Fn(&Rollout) -> Result<Event, Refusal> + Sync);

/// Returns the error for exhausted attempts, which is not the command's fault.
fn contended(name: &RolloutName) -> CommandError {
    CommandError::Store(StoreError::Superseded {
        what: format!("rollout {name}"),
    })
}
