//! Does what commands say, once, however often they come.

use std::collections::BTreeSet;
use std::sync::Arc;

use twincast_core::error::in_words;
use twincast_core::ids::{CommandKey, HubName, RolloutName, Version};
use twincast_core::json::Json;
use twincast_core::ports::{Clock, Disposition, Halt, Roster, Store, StoreError};
use twincast_core::rollout::{Commands, Event, Keyed, Rollout, Word};
use twincast_core::time::Timestamp;
use twincast_core::trace::{Begun, TraceContext, Tracer};

use crate::accept::{Accepted, accept};
use crate::command::{Answer, Ask, Cause, Command, Deed, Kind, Refusal, State, spec_of};
use crate::meaning::{approved, cannot, not_possible, pointless, promoted, rejected, retried};
use crate::{groups, traces};

/// How often a change is tried again that others came before.
const TRIES: usize = 20;

/// Takes commands in.
pub struct Intake {
    /// Where the truth is.
    pub store: Arc<dyn Store>,
    /// Which rollouts there are, in an engine of several processes.
    pub roster: Option<Arc<dyn Roster>>,
    /// The configured hubs.
    pub hubs: BTreeSet<HubName>,
    /// Gates may ask for metrics: there is somebody who answers.
    pub measures: bool,
    /// The time for records.
    pub clock: Arc<dyn Clock>,
    /// Who is told what was done.
    pub tracer: Tracer,
}

/// Why a command was not done.
#[derive(Debug)]
pub enum NotDone {
    /// It is at fault.
    Refused(Refusal),
    /// The store is: try again.
    Store(StoreError),
}

impl From<Refusal> for NotDone {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for NotDone {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Intake {
    /// Does what a command says. When it answers, the effect is durable.
    ///
    /// Cancel safety: may be dropped; the command is then to be handled again.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn handle(&self, body: &[u8], content_type: Option<&str>) -> Result<Answer, NotDone> {
        self.execute(&Command::read(body, content_type)?).await
    }

    /// Begins a command's span, in the trace that a `traceparent` names. One that is not understood counts for none.
    #[must_use]
    pub fn begin(&self, traceparent: Option<&str>) -> Begun {
        let caller = traceparent.and_then(|text| text.parse().ok());
        traces::begin(&self.tracer, caller)
    }

    /// Does a command that was read. When it answers, the effect is durable.
    ///
    /// Cancel safety: may be dropped; the command is then to be done again.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn execute(&self, command: &Command) -> Result<Answer, NotDone> {
        let done = self.attempt(command).await?;
        self.confirm(done).await
    }

    /// Does a command that was read. The effect is not durable before it is [confirmed](Self::confirm).
    ///
    /// Cancel safety: may be dropped; the command is then to be done again.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn attempt(&self, command: &Command) -> Result<Attempted, NotDone> {
        let begun = command.begun.unwrap_or_else(|| self.begin(None));
        let mut command = command.clone();
        command.begun = Some(begun);
        if command.rollout.is_some() && !self.store.durable_after().is_zero() {
            // Known by its span, a command whose effect was lost is told from one that was overruled since.
            command.key = command.key.or_else(|| key_of(begun.context));
        }
        let at = self.clock.now();
        let answer = self.perform(&command).await?;
        Ok(Attempted {
            command,
            at,
            answer,
        })
    }

    /// Waits until the effect of a command is durable. If the store has lost the effect meanwhile, the command is done again.
    ///
    /// Cancel safety: may be dropped; the effect may then be lost with the store's last writes.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn confirm(&self, attempted: Attempted) -> Result<Answer, NotDone> {
        let Attempted {
            command,
            at,
            mut answer,
        } = attempted;
        let durable_after = self.store.durable_after();
        if durable_after.is_zero() || !answer.changed {
            return Ok(answer);
        }
        for _ in 0..TRIES {
            tokio::time::sleep(durable_after).await;
            if self.is_in_effect(&command, at).await? {
                break;
            }
            let Some(begun) = command.begun else {
                break;
            };
            match self.carry_out(&command, begun.context).await {
                // It is there: that was the question.
                Ok(again) if !again.changed && command.command == Kind::Start => break,
                Ok(again) => {
                    tracing::warn!(
                        command = command.name(),
                        "the store had lost a command, it was done again"
                    );
                    answer = again;
                }
                // The start of its rollout was lost, too, and is done again by whoever did it.
                Err(NotDone::Refused(refusal)) if refusal.cause == Cause::UnknownRollout => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Whether the store still has the effect of a command that changed something after `at`.
    async fn is_in_effect(&self, command: &Command, at: Timestamp) -> Result<bool, NotDone> {
        let name = match command.command {
            Kind::StopAll => return Ok(self.halted().await?.is_some()),
            // A stop that came since stays.
            Kind::ResumeAll => {
                let halt = self.halted().await?;
                return Ok(halt.is_none_or(|halt| halt.since > at));
            }
            // Whether the rollout of that name is the same one is found by starting it again.
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

    /// Does a command and tells of it.
    async fn perform(&self, command: &Command) -> Result<Answer, NotDone> {
        let begun = command.begun.unwrap_or_else(|| self.begin(None));
        let start = self.clock.now();
        let done = self.carry_out(command, begun.context).await;
        let end = self.clock.now();
        let told = match &done {
            Ok(answer) => Some(Ok(answer)),
            Err(NotDone::Refused(refusal)) => Some(Err(refusal)),
            // The command comes again.
            Err(NotDone::Store(_)) => None,
        };
        let told = told.and_then(|done| traces::of_command(command, begun, start..end, done));
        self.tracer.tell(told);
        done
    }

    async fn carry_out(&self, command: &Command, span: TraceContext) -> Result<Answer, NotDone> {
        let reason = command.because();
        let (name, deed) = match command.ask()? {
            Ask::Start(spec) => return self.start(spec, command, span).await,
            Ask::StopAll => return self.stop_all(reason, command.by.clone()).await,
            Ask::ResumeAll => return self.resume_all(command.word()).await,
            Ask::Of(name, deed) => (name, deed),
        };
        let once = command.keyed();
        let about = &About { name, once };
        if let Some(answer) = self.answered_before(about).await? {
            return Ok(answer);
        }
        let word = || command.word();
        match deed {
            Deed::Pause => self.change(about, Event::PauseRequested { reason }).await,
            Deed::Abort => self.change(about, Event::AbortRequested { reason }).await,
            Deed::Resume => {
                let event = |_: &Rollout| Ok(Event::ResumeRequested { word: word() });
                self.go_on(about, &event).await
            }
            Deed::Approve { stage } => {
                self.change_by(about, &|it| approved(it, stage, word()))
                    .await
            }
            Deed::Reject { stage } => {
                self.change_by(about, &|it| rejected(it, stage, &word()))
                    .await
            }
            Deed::Promote { stage } => self.go_on(about, &|it| promoted(it, stage, word())).await,
            Deed::Retry { stage, outcomes } => {
                self.retry(about, &|it| retried(it, stage, outcomes, &word()))
                    .await
            }
            Deed::Delete => self.delete(name, &reason).await,
            Deed::Status => Ok(self.answer(false, &[self.rollout(name).await?]).await?),
        }
    }

    /// The answer to a command whose key has changed its rollout. It is not looked into again: what it would find now is
    /// not what it was meant for.
    async fn answered_before(&self, about: &About<'_>) -> Result<Option<Answer>, NotDone> {
        let Some(once) = &about.once else {
            return Ok(None);
        };
        if !is_done(&self.store.commands(about.name).await?, once)? {
            return Ok(None);
        }
        let rollout = self.rollout(about.name).await?;
        Ok(Some(self.answer(true, &[rollout]).await?))
    }

    async fn start(
        &self,
        spec: &Json,
        command: &Command,
        span: TraceContext,
    ) -> Result<Answer, NotDone> {
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
                "target.hubs names {}, which is not configured; configured are: {}",
                unknown.join(", "),
                known.join(", ")
            );
            return Err(Refusal::new(Cause::UnknownHub, error).into());
        }
        if !self.measures
            && let Some(stage) = spec.asks_for_metrics()
        {
            let refusal = Refusal::new(Cause::InvalidSpec, "no Prometheus server is configured");
            let detail = format!(
                "the gate of stage {stage} has metrics; configure prometheus.url for the orchestrators"
            );
            return Err(refusal.with(vec![detail]).into());
        }
        let name = spec.name.clone();
        for _ in 0..TRIES {
            let now = self.clock.now();
            let wanted = Rollout::accepted(spec.clone(), Default::default(), now);
            let wanted = wanted.wanted_by(command.word()).traced_to(span);
            let accepted = accept(&*self.store, wanted).await;
            return match accepted {
                Ok(Accepted::New(rollout)) => {
                    tracing::info!(rollout = %name, because = command.because(), "rollout accepted");
                    Ok(self.answer(true, &[*rollout]).await?)
                }
                Ok(Accepted::Same(rollout)) => Ok(self.answer(false, &[*rollout]).await?),
                Ok(Accepted::Conflict { difference, .. }) => {
                    let error = format!(
                        "there is a rollout {name} with another spec; give this one another name"
                    );
                    Err(Refusal::new(Cause::Conflict, error).with(difference).into())
                }
                Ok(Accepted::NotAdmitted(refused)) => {
                    Err(Refusal::new(Cause::Conflict, refused.to_string()).into())
                }
                Err(StoreError::Superseded { .. }) => continue,
                Err(error) => Err(error.into()),
            };
        }
        Err(contended(&name))
    }

    /// While all is stopped, nothing is resumed. A stop-all that comes at the same time finds the
    /// rollout paused and leaves it alone, so the switch is looked at once more.
    async fn go_on(&self, about: &About<'_>, event: EventFor<'_>) -> Result<Answer, NotDone> {
        if let Some(halt) = self.halted().await? {
            let rollout = self.rollout(about.name).await?;
            let found = format!(
                "all rollouts are stopped ({}); let them go on first, by resume-all",
                halt.reason
            );
            return Err(cannot(&rollout, &event(&rollout)?, found).into());
        }
        let answer = self.change_by(about, event).await?;
        match self.halted().await? {
            None => Ok(answer),
            Some(Halt { reason, .. }) => {
                let about = &About::just(about.name);
                self.change(about, Event::HaltRequested { reason }).await
            }
        }
    }

    /// A rollout that had ended runs again, which it may not while all is stopped, or another one of its group
    /// is active. One that would not be changed is not: nothing is prepared, and no gate asked anew, for no device.
    async fn retry(&self, about: &About<'_>, event: EventFor<'_>) -> Result<Answer, NotDone> {
        let name = about.name;
        let rollout = self.rollout(name).await?;
        let wanted = event(&rollout)?;
        let next = rollout
            .after(wanted.clone(), self.clock.now())
            .map_err(|error| not_possible(&error))?;
        if next.is_some() {
            let tallies = self.store.tallies(name).await?;
            if let Some(note) = pointless(&wanted, &rollout, &tallies) {
                let answer = self.answer(false, &[rollout]).await?;
                let note = Some(note);
                return Ok(Answer { note, ..answer });
            }
        }
        if rollout.phase.is_ended() {
            if let Some(group) = &rollout.spec.group {
                let next = Version(rollout.version.0 + 1);
                let now = self.clock.now();
                groups::join(&*self.store, group, name, next, true, now)
                    .await?
                    .map_err(|refused| Refusal::new(Cause::Conflict, refused.to_string()))?;
            }
            self.go_on(about, event).await
        } else {
            self.change_by(about, event).await
        }
    }

    /// Removes a rollout that has ended. That there is none of its name is no refusal: the command may have come before.
    async fn delete(&self, name: &RolloutName, because: &str) -> Result<Answer, NotDone> {
        for _ in 0..TRIES {
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
                    "rollout {name} is {phase}; only one that has ended can be deleted: abort it first, or wait for its end"
                );
                return Err(Refusal::new(Cause::NotPossible, error).into());
            }
            if let Some(roster) = &self.roster
                && roster.active().await?.contains(name)
            {
                let error = format!(
                    "rollout {name} is {phase}, and its end is still being published; try again in some seconds"
                );
                return Err(Refusal::new(Cause::NotPossible, error).into());
            }
            let answer = self.answer(true, std::slice::from_ref(&rollout)).await?;
            if let Some(group) = &rollout.spec.group {
                groups::leave(&*self.store, group, name).await?;
            }
            match self.store.remove(name, rollout.revision()).await {
                Ok(()) => {
                    tracing::info!(rollout = %name, because, "rollout deleted");
                    return Ok(answer);
                }
                Err(StoreError::Superseded { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended(name))
    }

    /// Applies an event to one rollout.
    async fn change(&self, about: &About<'_>, event: Event) -> Result<Answer, NotDone> {
        self.change_by(about, &|_| Ok(event.clone())).await
    }

    /// Applies an event that depends on where the rollout is.
    async fn change_by(&self, about: &About<'_>, event: EventFor<'_>) -> Result<Answer, NotDone> {
        let (changed, rollout) = self.apply(about, event).await?;
        Ok(self.answer(changed, &[rollout]).await?)
    }

    /// What stop-all has said, while it is in force.
    ///
    /// # Errors
    /// The store's.
    pub async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        match &self.roster {
            Some(roster) => roster.halted().await,
            None => Ok(None),
        }
    }

    fn roster(&self) -> Result<&dyn Roster, NotDone> {
        let error = "all rollouts together are stopped in the distributed engine only";
        let refusal = || Refusal::new(Cause::NotPossible, error);
        Ok(self.roster.as_deref().ok_or_else(refusal)?)
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Rollout, NotDone> {
        let found = self.store.rollout(name).await?;
        found.ok_or_else(|| {
            let error = format!("there is no rollout {name}");
            Refusal::new(Cause::UnknownRollout, error).into()
        })
    }

    async fn apply(
        &self,
        about: &About<'_>,
        event: EventFor<'_>,
    ) -> Result<(bool, Rollout), NotDone> {
        let About { name, once } = about;
        for _ in 0..TRIES {
            let rollout = self.rollout(name).await?;
            let mut commands = None;
            if let Some(once) = once {
                let known = self.store.commands(name).await?;
                // The same command may be done by another orchestrator just now.
                if is_done(&known, once)? {
                    return Ok((true, rollout));
                }
                commands = Some(known.with(once.clone()));
            }
            let next = rollout
                .after(event(&rollout)?, self.clock.now())
                .map_err(|error| not_possible(&error))?;
            let Some(next) = next else {
                return Ok((false, rollout));
            };
            let from = rollout.revision();
            let saved = self.store.save_with(&next, from, commands.as_ref()).await;
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

    /// The switch first: what starts to run from here on finds it.
    async fn stop_all(&self, reason: String, by: Option<String>) -> Result<Answer, NotDone> {
        let halt = Halt {
            reason: reason.clone(),
            by,
            since: self.clock.now(),
        };
        let roster = self.roster()?;
        let before = roster.halted().await?;
        roster.set_halted(Some(&halt)).await?;
        tracing::warn!(reason, "all rollouts are stopped");
        self.change_all(before.is_none(), &Event::HaltRequested { reason })
            .await
    }

    async fn resume_all(&self, word: Word) -> Result<Answer, NotDone> {
        let roster = self.roster()?;
        let before = roster.halted().await?;
        roster.set_halted(None).await?;
        tracing::info!(by = %word, "all rollouts may go on");
        self.change_all(before.is_some(), &Event::HaltLifted { word })
            .await
    }

    async fn answer(&self, changed: bool, of: &[Rollout]) -> Result<Answer, StoreError> {
        let mut rollouts = Vec::new();
        for rollout in of {
            let tallies = self.store.tallies(&rollout.spec.name).await?;
            rollouts.push(State::of(rollout, &tallies));
        }
        Ok(Answer {
            ok: true,
            changed,
            rollouts,
            note: None,
        })
    }

    async fn change_all(&self, mut changed: bool, event: &Event) -> Result<Answer, NotDone> {
        let mut rollouts = Vec::new();
        let mut trouble = None;
        for name in self.roster()?.active().await? {
            match self
                .apply(&About::just(&name), &|_| Ok(event.clone()))
                .await
            {
                Ok((moved, rollout)) => {
                    changed |= moved;
                    rollouts.push(rollout);
                }
                // It went in the meantime; or its driver is of a newer release, and sees the switch.
                Err(NotDone::Refused(_) | NotDone::Store(StoreError::Newer { .. })) => {}
                // One that cannot be changed must not keep the others from it.
                Err(NotDone::Store(error)) => trouble = Some(error),
            }
        }
        match trouble {
            // Its driver, and its workers, meet the same damage.
            Some(error) if error.disposition() == Disposition::Fatal => {
                tracing::error!(error = in_words(&error), "a rollout could not be changed");
            }
            Some(error) => return Err(error.into()),
            None => {}
        }
        Ok(self.answer(changed, &rollouts).await?)
    }
}

/// A command that was done, in a store that may lose the effect yet.
#[derive(Debug, Clone)]
pub struct Attempted {
    command: Command,
    at: Timestamp,
    answer: Answer,
}

/// The key of a command without one.
fn key_of(span: TraceContext) -> Option<CommandKey> {
    CommandKey::new(span.to_string()).ok()
}

/// The rollout that is to be changed, and the command by its key, if it has one.
struct About<'a> {
    name: &'a RolloutName,
    once: Option<Keyed>,
}

impl<'a> About<'a> {
    fn just(name: &'a RolloutName) -> Self {
        Self { name, once: None }
    }
}

/// Whether a command has changed a rollout before.
fn is_done(known: &Commands, command: &Keyed) -> Result<bool, Refusal> {
    match known.find(&command.key) {
        None => Ok(false),
        Some(done) if done.asks == command.asks => Ok(true),
        Some(done) => {
            let error = format!(
                "the key {} was given to another command: {}, and now {}",
                command.key, done.asks, command.asks
            );
            Err(Refusal::new(Cause::InvalidCommand, error))
        }
    }
}

/// What a command means for a rollout as it is.
type EventFor<'a> = &'a (dyn Fn(&Rollout) -> Result<Event, Refusal> + Sync);

/// Others kept changing the record: not the command's fault.
fn contended(name: &RolloutName) -> NotDone {
    NotDone::Store(StoreError::Superseded {
        what: format!("rollout {name}"),
    })
}
